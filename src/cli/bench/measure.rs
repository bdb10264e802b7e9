//! One run: bytes read and thrown away for a while, and what it took.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream;
use rustix::time::{ClockId, clock_gettime};

use super::{ObjectClient, Share};
use crate::buffer::PartBuf;
use crate::error::{Error, Result};
use crate::metrics::Metrics;
use crate::object::{ByteRange, ObjectMeta};
use crate::prefetch::{Next, PrefetchConfig, Prefetcher};
use crate::runtime;

pub(super) type Client = Arc<dyn ObjectClient>;
pub(super) type Counters = Arc<Metrics>;

/// How long a run waits for bytes before it looks at the clock.
const LOOK: Duration = Duration::from_millis(20);

/// A run's figures.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub(super) struct Point {
    pub(super) part_bytes: u64,
    pub(super) concurrency: usize,
    pub(super) bytes_per_second: f64,
    /// CPU seconds of this process per second.
    pub(super) cores_used: f64,
    pub(super) first_byte_p50_ms: f64,
    pub(super) throttles: u64,
    pub(super) requests: u64,
}

/// Of a run, the first third is not counted: connections are opened and memory is touched for the first time.
const WARM_UP: u32 = 3;
/// A run whose parts are large and many for its time goes on until it has seen this many after the warm-up, or for
/// [`PATIENCE`] times as long: before that it has no rate.
const LEAST_PARTS: u64 = 4;
const PATIENCE: u32 = 4;

/// Clocks at the start of a run.
#[derive(Debug)]
struct Meter {
    started: Instant,
    cpu: Duration,
}

impl Meter {
    fn start() -> Self {
        Self {
            started: Instant::now(),
            cpu: cpu_time(),
        }
    }

    fn point(&self, bytes: u64, config: &PrefetchConfig, metrics: &Metrics) -> Point {
        let seconds = self.started.elapsed().as_secs_f64().max(1e-9);
        let snapshot = metrics.snapshot();
        Point {
            part_bytes: config.part_bytes,
            concurrency: config.concurrency,
            bytes_per_second: bytes as f64 / seconds,
            cores_used: cpu_time().saturating_sub(self.cpu).as_secs_f64() / seconds,
            first_byte_p50_ms: snapshot.first_byte_p50_us as f64 / 1e3,
            throttles: snapshot.throttles,
            requests: snapshot.requests,
        }
    }
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(
        time.tv_sec.unsigned_abs(),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

/// Ranged GETs in a row on each of `config.concurrency` tasks, each with one buffer that it fills again and again.
pub(super) fn bare(
    client: &Client,
    metrics: &Counters,
    objects: &[ObjectMeta],
    config: &PrefetchConfig,
    share: Share,
) -> Result<Point> {
    let begun = Instant::now();
    let work = Arc::new(Work {
        ranges: ranges(objects, config.part_bytes),
        next: AtomicU64::new(0),
        bytes: AtomicU64::new(0),
        until: begun + share.time,
        most_bytes: share.bytes,
    });
    let tasks: Vec<_> = (0..config.concurrency)
        .map(|_| runtime::handle().spawn(work.clone().fetch(client.clone(), config.part_bytes)))
        .collect();
    let warm_until = begun + share.time / WARM_UP;
    let is_warm = || {
        let bytes = work.bytes.load(Ordering::Relaxed);
        Instant::now() >= warm_until || bytes >= share.bytes / u64::from(WARM_UP)
    };
    while !is_warm() {
        std::thread::sleep(LOOK);
    }
    let (meter, warm) = (Meter::start(), work.bytes.load(Ordering::Relaxed));
    for task in tasks {
        runtime::handle()
            .block_on(task)
            .unwrap_or(Err(Error::Cancelled))?;
    }
    let bytes = work.bytes.load(Ordering::Relaxed) - warm;
    Ok(meter.point(bytes, config, metrics))
}

/// What the tasks share.
#[derive(Debug)]
struct Work {
    ranges: Vec<(ObjectMeta, ByteRange)>,
    next: AtomicU64,
    bytes: AtomicU64,
    until: Instant,
    most_bytes: u64,
}

/// The parts of `objects`, at most as many as one run could ever need.
fn ranges(objects: &[ObjectMeta], part_bytes: u64) -> Vec<(ObjectMeta, ByteRange)> {
    objects
        .iter()
        .flat_map(|meta| {
            (0..meta.size_bytes.div_ceil(part_bytes)).map(move |part| {
                let start = part * part_bytes;
                (
                    meta.clone(),
                    ByteRange::new(start, (start + part_bytes).min(meta.size_bytes)),
                )
            })
        })
        .take(10_000)
        .collect()
}

impl Work {
    async fn fetch(self: Arc<Self>, client: Client, part_bytes: u64) -> Result<()> {
        let mut buffer = PartBuf::heap(usize::try_from(part_bytes).unwrap_or(0));
        while self.bytes.load(Ordering::Relaxed) < self.most_bytes {
            let index = self.next.fetch_add(1, Ordering::Relaxed) % self.ranges.len() as u64;
            let (meta, range) = &self.ranges[index as usize];
            buffer.clear();
            let get = client.get(&meta.id, *range, &mut buffer);
            let in_time = tokio::time::timeout_at(self.until.into(), get).await;
            self.bytes
                .fetch_add(buffer.filled().len() as u64, Ordering::Relaxed);
            match in_time {
                Ok(answer) => drop(answer?),
                Err(_) => break,
            }
        }
        Ok(())
    }
}

/// The objects in order through the engine, again from the first after the last.
pub(super) fn engine(
    client: Client,
    metrics: Counters,
    objects: &[ObjectMeta],
    config: PrefetchConfig,
    share: Share,
) -> Result<Point> {
    let engine = Prefetcher::new(client, config.clone(), metrics.clone())?;
    let objects = objects.to_vec();
    let endless = stream::iter(objects.into_iter().cycle()).map(Ok).boxed();
    let mut reader = engine.read_all(endless)?.blocking();
    let begun = Instant::now();
    let mut take = |until: Duration, least_bytes: u64, most_bytes: u64| -> Result<u64> {
        let mut bytes = 0;
        let in_time = |bytes: u64| {
            let limit = if bytes < least_bytes {
                until * PATIENCE
            } else {
                until
            };
            begun.elapsed() < limit
        };
        while bytes < most_bytes && in_time(bytes) {
            match reader.next_chunk_timeout(LOOK)? {
                Next::Chunk(chunk) => bytes += chunk.bytes.len() as u64,
                Next::TimedOut => {}
                Next::End => break,
            }
        }
        Ok(bytes)
    };
    let one_part = config.part_bytes;
    let warm = take(
        share.time / WARM_UP,
        one_part,
        share.bytes / u64::from(WARM_UP),
    )?;
    let meter = Meter::start();
    let least_bytes = LEAST_PARTS * one_part;
    let most_bytes = share.bytes.saturating_sub(warm).max(least_bytes);
    let bytes = take(share.time, least_bytes, most_bytes)?;
    Ok(meter.point(bytes, &config, &metrics))
}
