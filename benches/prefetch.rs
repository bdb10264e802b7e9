//! The engine: one object in order, plain and over TLS, bare and under the latency model of S3.
//!
//! Baselines in the same run: a raw-socket reader (over TLS: rustls on raw sockets) and the SDK's own transport. The
//! promised ratios are measured by the bench `ratios`; this one shows a change of a few percent, by its confidence
//! intervals.

use std::error::Error;
use std::hint::black_box;
use std::sync::Arc;

use standpipe::client::Transport;
use standpipe::metrics::Metrics;
use standpipe::prefetch::{PrefetchConfig, Prefetcher};

#[path = "ratios/meter.rs"]
#[expect(dead_code, reason = "the bench `ratios` needs a clock, too")]
mod meter;
#[path = "support/raw.rs"]
mod raw;
#[path = "support/server.rs"]
mod server;
#[path = "support/stack.rs"]
mod stack;
#[path = "support/suite.rs"]
mod suite;

use meter::Meter;
use raw::Raw;
use server::{Endpoint, Objects};
use suite::{Case, Pass, Work};

pub(crate) type Outcome<T> = Result<T, Box<dyn Error>>;

const KEY: &str = "object";
const PART_BYTES: u64 = 8 << 20;
const CONCURRENCY: usize = 8;

fn main() -> Outcome<()> {
    let cases = [
        Case {
            name: "direct",
            make: |endpoint, _| engine(endpoint, Transport::Direct),
        },
        Case {
            name: "stock",
            make: |endpoint, _| engine(endpoint, Transport::Stock),
        },
        Case {
            name: "raw",
            make: baseline,
        },
    ];
    suite::run("prefetch", object, &cases)
}

fn object(size_bytes: u64) -> Vec<Objects> {
    vec![Objects::one(KEY, size_bytes)]
}

fn engine(endpoint: &Endpoint, transport: Transport) -> Outcome<Work> {
    let metrics = Arc::new(Metrics::default());
    let client = stack::connect(endpoint, transport, false, &metrics)?;
    let mut config = PrefetchConfig::default();
    config.concurrency = CONCURRENCY;
    config.part_bytes = PART_BYTES;
    config.memory_bytes = 2 * CONCURRENCY as u64 * PART_BYTES;
    let engine = Prefetcher::new(client, config, metrics)?;
    Ok(Box::new(move |meter| read(&engine, meter)))
}

fn read(engine: &Prefetcher, meter: &mut Meter) -> Outcome<Pass> {
    let before = engine.metrics().requests.get();
    let listed = stack::list(engine.client(), KEY);
    let mut reader = engine.read_all(listed)?.blocking();
    let mut bytes = 0;
    while let Some(chunk) = reader.next_chunk()? {
        meter.byte_seen();
        touch(&chunk.bytes);
        bytes += chunk.bytes.len() as u64;
    }
    let requests = engine.metrics().requests.get() - before;
    Ok(Pass { bytes, requests })
}

fn baseline(endpoint: &Endpoint, size_bytes: u64) -> Outcome<Work> {
    let mut raw = Raw::connect(endpoint, KEY, size_bytes, PART_BYTES, CONCURRENCY)?;
    let requests = size_bytes.div_ceil(PART_BYTES);
    Ok(Box::new(move |meter| {
        let bytes = raw.read(|part| {
            meter.byte_seen();
            touch(part);
        })?;
        Ok(Pass { bytes, requests })
    }))
}

/// A consumer that looks at every cache line.
fn touch(bytes: &[u8]) {
    black_box(
        bytes
            .iter()
            .step_by(64)
            .map(|byte| u64::from(*byte))
            .sum::<u64>(),
    );
}
