//! The modes: through a FIFO, and by way of the disk, plain and over TLS, bare and under the latency model of S3.
//!
//! "pipe" is Pipe mode, and "pipe-stock" the same over the SDK's own transport. "download" is File mode, a full download
//! and then a read of the files, which is what Pipe mode replaces. "raw" is the baseline: a raw-socket reader (over
//! TLS: rustls on raw sockets) that writes each part into a FIFO. The promised ratios are measured by the bench
//! `ratios`; this one shows a change of a few percent, by its confidence intervals.

use std::error::Error;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::Mode as Permissions;
use standpipe::client::Transport;
use standpipe::download::{Download, DownloadConfig};
use standpipe::metrics::Metrics;
use standpipe::pipe::{PipeChannel, PipeConfig, PipeServer};
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
use server::{BUCKET, Endpoint, Objects};
use suite::{Case, Pass, Work};

pub(crate) type Outcome<T> = Result<T, Box<dyn Error>>;

const PREFIX: &str = "files/";
const FILES: u64 = 4;
const WHOLE: &str = "whole";
const MEMORY_BYTES: u64 = 128 << 20;
const PIPE_BYTES: usize = 1 << 20;
/// The baseline's: two buffers for each of these connections are the engine's memory.
const RAW_PART_BYTES: u64 = 8 << 20;
const RAW_CONNECTIONS: usize = (MEMORY_BYTES / RAW_PART_BYTES / 2) as usize;

fn main() -> Outcome<()> {
    let cases = [
        Case {
            name: "pipe",
            make: |endpoint, _| mode(endpoint, Transport::Direct, pipe),
        },
        Case {
            name: "pipe-stock",
            make: |endpoint, _| mode(endpoint, Transport::Stock, pipe),
        },
        Case {
            name: "download",
            make: |endpoint, _| mode(endpoint, Transport::Direct, download),
        },
        Case {
            name: "raw",
            make: baseline,
        },
    ];
    suite::run("modes", files, &cases)
}

/// The files, in all of `size_bytes`, and one object of as many for the baseline.
fn files(size_bytes: u64) -> Vec<Objects> {
    let files = Objects {
        count: Some(FILES),
        ..Objects::one(PREFIX, size_bytes / FILES)
    };
    vec![files, Objects::one(WHOLE, size_bytes)]
}

/// A mode over an engine: what it read.
type Mode = fn(&Prefetcher, &Path, &mut Meter) -> Outcome<u64>;

fn mode(endpoint: &Endpoint, transport: Transport, mode: Mode) -> Outcome<Work> {
    let metrics = Arc::new(Metrics::default());
    let client = stack::connect(endpoint, transport, false, &metrics)?;
    let mut config = PrefetchConfig::default();
    config.memory_bytes = MEMORY_BYTES;
    let engine = Prefetcher::new(client, config, metrics)?;
    Ok(Box::new(move |meter| {
        let before = engine.metrics().requests.get();
        let dir = tempfile::tempdir()?;
        let bytes = mode(&engine, dir.path(), meter)?;
        let requests = engine.metrics().requests.get() - before;
        Ok(Pass { bytes, requests })
    }))
}

/// One epoch through a FIFO.
fn pipe(engine: &Prefetcher, dir: &Path, meter: &mut Meter) -> Outcome<u64> {
    let mut config = PipeConfig::new(dir);
    config.epochs = Some(1);
    config.farewell_grace = Duration::ZERO;
    let source = engine.clone();
    let channel = PipeChannel::new("train".parse()?, move |_| {
        source.read_all(stack::list(source.client(), PREFIX))
    });
    let metrics = engine.metrics().clone();
    let mut server = PipeServer::start(config, vec![channel], metrics, Arc::new(|_| {}))?;
    let bytes = read_to_end(&dir.join("train_0"), meter)?;
    server.wait()?;
    Ok(bytes)
}

/// A full download, then the files.
fn download(engine: &Prefetcher, dir: &Path, meter: &mut Meter) -> Outcome<u64> {
    let source = format!("s3://{BUCKET}/{PREFIX}").parse()?;
    Download::new(engine.clone(), source, dir, DownloadConfig::default()).run()?;
    let mut bytes = 0;
    for file in 0..FILES {
        bytes += read_to_end(&dir.join(format!("{file:06}")), meter)?;
    }
    Ok(bytes)
}

/// Received by raw sockets, on connections that stay open, and written into a FIFO.
fn baseline(endpoint: &Endpoint, size_bytes: u64) -> Outcome<Work> {
    let mut raw = Raw::connect(endpoint, WHOLE, size_bytes, RAW_PART_BYTES, RAW_CONNECTIONS)?;
    let requests = size_bytes.div_ceil(RAW_PART_BYTES);
    Ok(Box::new(move |meter| {
        let dir = tempfile::tempdir()?;
        let bytes = raw_pipe(&mut raw, dir.path(), meter)?;
        Ok(Pass { bytes, requests })
    }))
}

fn raw_pipe(raw: &mut Raw, dir: &Path, meter: &mut Meter) -> Outcome<u64> {
    let path = dir.join("raw");
    let mode = Permissions::RUSR | Permissions::WUSR;
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, mode)?;
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| read_to_end(&path, meter).map_err(|error| error.to_string()));
        let mut fifo = File::options().write(true).open(&path)?;
        rustix::pipe::fcntl_setpipe_size(&fifo, PIPE_BYTES)?;
        let mut failed = None;
        raw.read(|part| failed = fifo.write_all(part).err().or(failed.take()))?;
        // The reader sees its end.
        drop(fifo);
        failed.map_or(Ok(()), Err)?;
        Ok(reading
            .join()
            .map_err(|_| "the reading thread panicked")??)
    })
}

fn read_to_end(path: &Path, meter: &mut Meter) -> Outcome<u64> {
    let (mut file, mut buffer, mut bytes) = (File::open(path)?, vec![0; 1 << 20], 0);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(bytes),
            n => {
                meter.byte_seen();
                bytes += n as u64;
            }
        }
    }
}
