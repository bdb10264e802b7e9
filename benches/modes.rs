//! The modes: through a FIFO, and by way of the disk, plain and over TLS, bare and under the latency model of S3.
//!
//! "file" is a full download and then a read of the files, which is what Pipe mode replaces. Baseline in the same run: a
//! raw-socket reader that writes what it receives into a FIFO (plain only, it speaks no TLS). The promised ratios are
//! measured by the bench `ratios`; this one shows a change of a few percent, by its confidence intervals.

use std::error::Error;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Throughput};
use fake_s3::raw::RawReader;
use rustix::fs::Mode as Permissions;
use standpipe::client::Transport;
use standpipe::metrics::Metrics;
use standpipe::pipe::{PipeChannel, PipeConfig, PipeServer};
use standpipe::prefetch::{PrefetchConfig, Prefetcher};

#[path = "support/server.rs"]
mod server;
#[path = "support/stack.rs"]
mod stack;
#[path = "support/suite.rs"]
mod suite;

use server::{BUCKET, Objects, Server};

pub(crate) type Outcome<T> = Result<T, Box<dyn Error>>;

const PREFIX: &str = "files/";
const FILES: u64 = 4;
const MEMORY_BYTES: u64 = 128 << 20;
const PIPE_BYTES: usize = 1 << 20;
/// The baseline's: two buffers for each of these connections are the engine's memory.
const RAW_PART_BYTES: u64 = 8 << 20;
const RAW_CONNECTIONS: u64 = MEMORY_BYTES / RAW_PART_BYTES / 2;

fn main() -> Outcome<()> {
    suite::run("modes", files, measure)
}

/// The files, in all of `size_bytes`.
fn files(size_bytes: u64) -> Objects {
    Objects {
        count: Some(FILES),
        ..Objects::one(PREFIX, size_bytes / FILES)
    }
}

fn measure(
    group: &mut BenchmarkGroup<'_, WallTime>,
    server: &Server,
    size_bytes: u64,
) -> Outcome<()> {
    let metrics = Arc::new(Metrics::default());
    let client = stack::connect(&server.endpoint, Transport::Direct, false, &metrics)?;
    let mut config = PrefetchConfig::default();
    config.memory_bytes = MEMORY_BYTES;
    let engine = Prefetcher::new(client, config, metrics)?;
    group.throughput(Throughput::Bytes(size_bytes));
    type Mode = fn(&Prefetcher, &Path) -> Outcome<u64>;
    let modes: [(&str, Mode); 2] = [("pipe", pipe), ("file", file)];
    for (name, mode) in modes {
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let dir = tempfile::tempdir().expect("a temporary directory");
                let bytes = mode(&engine, dir.path()).expect("the mode works");
                assert_eq!(bytes, size_bytes);
            });
        });
    }
    if server.endpoint.ca_file.is_none() {
        let mut readers = raw_readers(server, size_bytes)?;
        group.bench_function("raw", |bencher| {
            bencher.iter(|| {
                let dir = tempfile::tempdir().expect("a temporary directory");
                let bytes = raw(&mut readers, dir.path()).expect("the baseline works");
                assert_eq!(bytes, size_bytes);
            });
        });
    }
    Ok(())
}

/// One for each file, with connections that stay open.
fn raw_readers(server: &Server, size_bytes: u64) -> Outcome<Vec<RawReader>> {
    let connect = |file| {
        RawReader::connect(
            server.endpoint.addr,
            &format!("/{BUCKET}/{PREFIX}{file:06}"),
            size_bytes / FILES,
            RAW_PART_BYTES,
            RAW_CONNECTIONS as usize,
        )
    };
    Ok((0..FILES).map(connect).collect::<Result<_, _>>()?)
}

/// The baseline: received by raw sockets, and written into a FIFO.
fn raw(readers: &mut [RawReader], dir: &Path) -> Outcome<u64> {
    let path = dir.join("raw");
    let mode = Permissions::RUSR | Permissions::WUSR;
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, mode)?;
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| read_to_end(&path).map_err(|error| error.to_string()));
        let mut fifo = File::options().write(true).open(&path)?;
        rustix::pipe::fcntl_setpipe_size(&fifo, PIPE_BYTES)?;
        let mut failed = None;
        for reader in readers {
            reader.read(|part| failed = fifo.write_all(part).err().or(failed.take()))?;
        }
        // The reader sees its end.
        drop(fifo);
        failed.map_or(Ok(()), Err)?;
        Ok(reading
            .join()
            .map_err(|_| "the reading thread panicked")??)
    })
}

/// One epoch through a FIFO.
fn pipe(engine: &Prefetcher, dir: &Path) -> Outcome<u64> {
    let mut config = PipeConfig::new(dir);
    config.epochs = Some(1);
    config.farewell_grace = Duration::ZERO;
    let source = engine.clone();
    let channel = PipeChannel::new("train".parse()?, move |_| {
        source.read_all(stack::list(source.client(), PREFIX))
    });
    let metrics = engine.metrics().clone();
    let mut server = PipeServer::start(config, vec![channel], metrics, Arc::new(|_| {}))?;
    let bytes = read_to_end(&dir.join("train_0"))?;
    server.wait()?;
    Ok(bytes)
}

/// A full download, then the files.
fn file(engine: &Prefetcher, dir: &Path) -> Outcome<u64> {
    let listed = stack::list(engine.client(), PREFIX);
    let mut reader = engine.read_all(listed)?.blocking();
    let (mut paths, mut file) = (Vec::new(), None);
    while let Some(chunk) = reader.next_chunk()? {
        if chunk.offset == 0 {
            paths.push(dir.join(paths.len().to_string()));
            file = paths.last().map(File::create).transpose()?;
        }
        if let Some(file) = &mut file {
            file.write_all(&chunk.bytes)?;
        }
    }
    paths.iter().map(|path| read_to_end(path)).sum()
}

fn read_to_end(path: &Path) -> Outcome<u64> {
    let (mut file, mut buffer, mut bytes) = (File::open(path)?, vec![0; 1 << 20], 0);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(bytes),
            n => bytes += n as u64,
        }
    }
}
