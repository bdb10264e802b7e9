//! The engine: one object in order, plain and over TLS, bare and under the latency model of S3.
//!
//! Baselines in the same run: a raw-socket reader (plain only, it speaks no TLS) and the SDK's own transport. The
//! promised ratios are measured by the bench `ratios`; this one shows a change of a few percent, by its confidence
//! intervals.

use std::error::Error;
use std::hint::black_box;
use std::sync::Arc;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Throughput};
use fake_s3::raw::RawReader;
use standpipe::client::Transport;
use standpipe::metrics::Metrics;
use standpipe::prefetch::{PrefetchConfig, Prefetcher};

#[path = "support/server.rs"]
mod server;
#[path = "support/stack.rs"]
mod stack;
#[path = "support/suite.rs"]
mod suite;

use server::{BUCKET, Objects, Server};

pub(crate) type Outcome<T> = Result<T, Box<dyn Error>>;

const KEY: &str = "object";
const PART_BYTES: u64 = 8 << 20;
const CONCURRENCY: usize = 8;

fn main() -> Outcome<()> {
    suite::run("prefetch", object, measure)
}

fn object(size_bytes: u64) -> Objects {
    Objects {
        count: Some(1),
        ..Objects::one(KEY, size_bytes)
    }
}

fn measure(
    group: &mut BenchmarkGroup<'_, WallTime>,
    server: &Server,
    size_bytes: u64,
) -> Outcome<()> {
    group.throughput(Throughput::Bytes(size_bytes));
    for (name, transport) in [("direct", Transport::Direct), ("stock", Transport::Stock)] {
        let metrics = Arc::new(Metrics::default());
        let client = stack::connect(&server.endpoint, transport, false, &metrics)?;
        let mut config = PrefetchConfig::default();
        config.concurrency = CONCURRENCY;
        config.part_bytes = PART_BYTES;
        config.memory_bytes = 2 * CONCURRENCY as u64 * PART_BYTES;
        let engine = Prefetcher::new(client, config, metrics)?;
        group.bench_function(name, |bencher| {
            bencher.iter(|| assert_eq!(read(&engine), size_bytes));
        });
    }
    if server.endpoint.ca_file.is_none() {
        let path = format!("/{BUCKET}/{KEY}000000");
        let mut reader = RawReader::connect(
            server.endpoint.addr,
            &path,
            size_bytes,
            PART_BYTES,
            CONCURRENCY,
        )?;
        group.bench_function("raw", |bencher| {
            bencher.iter(|| reader.read(touch).expect("the server serves"));
        });
    }
    Ok(())
}

fn read(engine: &Prefetcher) -> u64 {
    let listed = stack::list(engine.client(), KEY);
    let mut reader = engine
        .read_all(listed)
        .expect("room for one stream")
        .blocking();
    let mut bytes = 0;
    while let Some(chunk) = reader.next_chunk().expect("the server serves") {
        touch(&chunk.bytes);
        bytes += chunk.bytes.len() as u64;
    }
    bytes
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
