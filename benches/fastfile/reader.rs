//! A program that reads files and knows nothing of where they come from, in a process of its own for each run; and, as
//! baselines, the same work by the engine and by the library, without a mount.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use futures::stream::StreamExt;
use serde::{Deserialize, Serialize};
use standpipe::client::Transport;
use standpipe::fastfile::FastFiles;
use standpipe::metrics::Metrics;
use standpipe::prefetch::{PrefetchConfig, Prefetcher};

use crate::server::{BUCKET, Endpoint};
use crate::{Outcome, meter, stack};

const READER: &str = "STANDPIPE_BENCH_FILES";
const MIB: usize = 1 << 20;
/// One pass over files that the kernel knows takes some hundredths of a second.
const TIMES_AGAIN: u32 = 5;

/// Where it is read.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Place {
    /// A mount, or local files.
    Dir(PathBuf),
    /// The engine's stream of what is below a prefix, in order.
    Engine {
        endpoint: Endpoint,
        prefix: String,
        concurrency: Option<usize>,
    },
    /// The library's files, without a mount and without a cache.
    Library { endpoint: Endpoint, prefix: String },
}

/// What is read.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Reading {
    /// One file from its beginning to its end, a MiB at a time.
    Sequential { file: String },
    /// Blocks at random, each once, by `readers` threads: `reads` of them.
    Random {
        file: String,
        block_bytes: u64,
        readers: usize,
        reads: u64,
    },
    /// Every file whole, in the order of their names, by `readers` threads that take the next one.
    Files { readers: usize },
    /// The same once, and then several times, of which the mean counts.
    FilesAgain { readers: usize },
    /// The same in an order that nobody can foresee.
    Shuffled { readers: usize },
    /// Every file opened and closed.
    Opens { readers: usize },
    /// Every name and size, once or twice; the last time counts.
    Walk { times: usize },
}

/// What a reader saw.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Seen {
    pub(crate) bytes: u64,
    pub(crate) files: u64,
    /// Of the bytes, whatever the order in which they were read.
    pub(crate) fingerprint: u64,
    pub(crate) seconds: f64,
    pub(crate) cpu_s: f64,
    /// Of the process, where it fetches by itself.
    pub(crate) peak_rss_bytes: u64,
    /// When the first bytes came and how many had come some moments later, on the clock that all processes share.
    pub(crate) timeline: Vec<(u64, u64)>,
}

/// Whether this process is a reader; what it saw then.
pub(crate) fn read_if_asked() -> Outcome<Option<Seen>> {
    let Ok(text) = std::env::var(READER) else {
        return Ok(None);
    };
    let (place, reading): (Place, Reading) = serde_json::from_str(&text)?;
    let start = Instant::now();
    let mut seen = match &place {
        Place::Dir(root) => reading.perform(root)?,
        Place::Engine {
            endpoint,
            prefix,
            concurrency,
        } => stream(endpoint, prefix, *concurrency, &reading)?,
        Place::Library { endpoint, prefix } => library(endpoint, prefix, &reading)?,
    };
    if seen.seconds == 0.0 {
        seen.seconds = start.elapsed().as_secs_f64();
    }
    seen.cpu_s = meter::cpu_seconds(std::process::id());
    seen.peak_rss_bytes = meter::peak_rss_bytes();
    Ok(Some(seen))
}

/// Reads in a new process.
pub(crate) fn run(place: &Place, reading: &Reading) -> Outcome<Seen> {
    let output = Command::new(std::env::current_exe()?)
        .env(READER, serde_json::to_string(&(place, reading))?)
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err(format!("the reader: {}: {reading:?}", output.status).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

impl Reading {
    fn perform(&self, root: &Path) -> Outcome<Seen> {
        match self {
            Self::Sequential { file } => whole(&root.join(file), &mut vec![0; MIB]),
            Self::Random {
                file,
                block_bytes,
                readers,
                reads,
            } => random(&root.join(file), *block_bytes, *readers, *reads),
            Self::Files { readers } => all(&names(root)?, *readers),
            Self::FilesAgain { readers } => {
                let names = names(root)?;
                all(&names, *readers)?;
                let (mut seen, start) = (Seen::default(), Instant::now());
                for _ in 0..TIMES_AGAIN {
                    seen = all(&names, *readers)?;
                }
                seen.seconds = start.elapsed().as_secs_f64() / f64::from(TIMES_AGAIN);
                Ok(seen)
            }
            Self::Shuffled { readers } => {
                let mut names = names(root)?;
                shuffle(&mut names);
                all(&names, *readers)
            }
            Self::Opens { readers } => opens(&names(root)?, *readers),
            Self::Walk { times } => walk(root, *times),
        }
    }
}

impl Seen {
    /// Looks at every cache line.
    fn eat(&mut self, bytes: &[u8]) {
        let touched: u64 = bytes.iter().step_by(64).map(|byte| u64::from(*byte)).sum();
        self.bytes += bytes.len() as u64;
        self.fingerprint = self.fingerprint.wrapping_add(touched);
    }

    fn add(mut self, other: &Self) -> Self {
        self.bytes += other.bytes;
        self.files += other.files;
        self.fingerprint = self.fingerprint.wrapping_add(other.fingerprint);
        self.timeline.extend(&other.timeline);
        self
    }
}

/// Everything below the prefix in order, or of one object, as the engine gives it.
fn stream(
    endpoint: &Endpoint,
    prefix: &str,
    concurrency: Option<usize>,
    reading: &Reading,
) -> Outcome<Seen> {
    let prefix = match reading {
        Reading::Sequential { file } => format!("{prefix}{file}"),
        _ => prefix.to_owned(),
    };
    let metrics = Arc::new(Metrics::default());
    let client = stack::connect(endpoint, Transport::Direct, false, &metrics)?;
    let mut config = PrefetchConfig::default();
    config.concurrency = concurrency.unwrap_or(config.concurrency);
    let engine = Prefetcher::new(client.clone(), config, metrics)?;
    let one = matches!(reading, Reading::Sequential { .. });
    let objects = stack::list(&client, &prefix);
    let mut reader = engine
        .read_all(objects.take(if one { 1 } else { usize::MAX }).boxed())?
        .blocking();
    let mut seen = Seen::default();
    while let Some(chunk) = reader.next_chunk()? {
        seen.eat(&chunk.bytes);
        seen.files += u64::from(chunk.ends_object);
    }
    Ok(seen)
}

/// One file, by way of the library's `Read`.
fn library(endpoint: &Endpoint, prefix: &str, reading: &Reading) -> Outcome<Seen> {
    let Reading::Sequential { file } = reading else {
        return Err(format!("the library is not measured at {reading:?}").into());
    };
    let metrics = Arc::new(Metrics::default());
    let client = stack::connect(endpoint, Transport::Direct, false, &metrics)?;
    let files = FastFiles::builder(format!("s3://{BUCKET}/{prefix}").parse()?)
        .client(client)
        .metrics(metrics)
        .open()?;
    to_the_end(files.open_file(file)?, &mut vec![0; MIB])
}

fn whole(path: &Path, buffer: &mut [u8]) -> Outcome<Seen> {
    let file = File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
    to_the_end(file, buffer)
}

fn to_the_end(mut file: impl Read, buffer: &mut [u8]) -> Outcome<Seen> {
    let mut seen = Seen::default();
    loop {
        let n = file.read(buffer)?;
        if n == 0 {
            seen.files = 1;
            return Ok(seen);
        }
        seen.eat(&buffer[..n]);
        seen.timeline.push((meter::now_ns(), n as u64));
    }
}

/// As the tools list them: sorted.
fn names(folder: &Path) -> Outcome<Vec<PathBuf>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        names.push(entry?.path());
    }
    names.sort();
    Ok(names)
}

/// An order that no pattern shows, the same for everyone (Fisher and Yates, with splitmix64).
fn shuffle<T>(items: &mut [T]) {
    let mut state = 7;
    for last in (1..items.len()).rev() {
        items.swap(last, (splitmix(&mut state) % (last as u64 + 1)) as usize);
    }
}

fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn in_threads(readers: usize, lane: impl Fn() -> Outcome<Seen> + Sync) -> Outcome<Seen> {
    std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..readers)
            .map(|_| scope.spawn(|| lane().map_err(|error| error.to_string())))
            .collect();
        lanes.into_iter().try_fold(Seen::default(), |sum, lane| {
            let seen = lane.join().map_err(|_| "a reader panicked")??;
            Ok(sum.add(&seen))
        })
    })
}

fn all(paths: &[PathBuf], readers: usize) -> Outcome<Seen> {
    let next = AtomicUsize::new(0);
    in_threads(readers, || {
        let (mut seen, mut buffer) = (Seen::default(), vec![0; MIB]);
        while let Some(path) = paths.get(next.fetch_add(1, Ordering::Relaxed)) {
            seen = seen.add(&whole(path, &mut buffer)?);
        }
        Ok(seen)
    })
}

fn opens(paths: &[PathBuf], readers: usize) -> Outcome<Seen> {
    let next = AtomicUsize::new(0);
    in_threads(readers, || {
        let mut seen = Seen::default();
        while let Some(path) = paths.get(next.fetch_add(1, Ordering::Relaxed)) {
            seen.bytes += File::open(path)?.metadata()?.len();
            seen.files += 1;
        }
        Ok(seen)
    })
}

fn random(path: &Path, block_bytes: u64, readers: usize, reads: u64) -> Outcome<Seen> {
    let size_bytes = File::open(path)?.seek(SeekFrom::End(0))?;
    let mut blocks: Vec<u64> = (0..size_bytes / block_bytes).collect();
    shuffle(&mut blocks);
    blocks.truncate(reads as usize);
    let next = AtomicUsize::new(0);
    in_threads(readers, || {
        let (mut seen, mut buffer) = (Seen::default(), vec![0; block_bytes as usize]);
        let file = File::open(path)?;
        while let Some(block) = blocks.get(next.fetch_add(1, Ordering::Relaxed)) {
            file.read_exact_at(&mut buffer, block * block_bytes)?;
            seen.eat(&buffer);
        }
        Ok(seen)
    })
}

fn walk(folder: &Path, times: usize) -> Outcome<Seen> {
    for _ in 1..times {
        walk(folder, 1)?;
    }
    let (mut seen, start) = (Seen::default(), Instant::now());
    for entry in std::fs::read_dir(folder)? {
        let meta = entry?.metadata()?;
        seen.files += 1;
        seen.bytes += meta.len();
    }
    seen.seconds = start.elapsed().as_secs_f64();
    Ok(seen)
}
