//! One run: bytes read and thrown away for a while, and what it took.
//!
//! Bytes are counted where they arrive: `bytes_received` of the run's own client grows with every read of a socket, for
//! a bare reader and for the engine alike. The figure is what the counter grew by between two moments, the end of the
//! warm-up and the end of the run. Whole GETs, or parts that the engine hands on, would be counted when they end: of
//! large ones a short window sees none, or those that began long before it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream;
use rustix::time::{ClockId, clock_gettime};
use tokio::task::JoinSet;

use super::plan::{Reader, Setting, Share};
use crate::buffer::PartBuf;
use crate::client::ObjectClient;
use crate::error::{Error, Result};
use crate::metrics::Metrics;
use crate::object::{ByteRange, ObjectMeta};
use crate::prefetch::{ObjectReader, Prefetcher};
use crate::runtime;

pub(super) type Client = Arc<dyn ObjectClient>;
pub(super) type Counters = Arc<Metrics>;

/// How often a run looks at what it has read: it exceeds its bytes by what comes in this time, 5 MB at 20 Gb/s.
const LOOK: Duration = Duration::from_millis(2);

/// Of a run, the first third is not counted: connections are opened and memory is touched for the first time.
const WARM_UP: u32 = 3;

/// Ranges that the bare readers take turns at: 80 GB in parts of 8 MiB, more than a run reads.
const MOST_RANGES: usize = 10_000;

/// A run's figures.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub(super) struct Point {
    pub(super) part_bytes: u64,
    pub(super) concurrency: usize,
    pub(super) bytes_per_second: f64,
    /// The time that was measured, after the warm-up.
    pub(super) seconds: f64,
    /// CPU seconds of this process per second.
    pub(super) cores_used: f64,
    /// The share of the time in which this host's processors were busy, with all programs' work; where that is known.
    pub(super) host_busy: Option<f64>,
    pub(super) first_byte_p50_ms: f64,
    /// Mean size of a GET: a part, or less where objects are smaller or end.
    pub(super) get_bytes: u64,
    pub(super) throttles: u64,
    pub(super) requests: u64,
}

/// Counters at one moment.
#[derive(Debug, Clone, Copy)]
struct Reading {
    at: Instant,
    bytes: u64,
    cpu: Duration,
    host: Option<HostTicks>,
}

/// What all processors of this host did since it was started.
#[derive(Debug, Clone, Copy, PartialEq)]
struct HostTicks {
    idle: u64,
    all: u64,
}

/// What happened between two of them.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Rates {
    seconds: f64,
    bytes_per_second: f64,
    cores_used: f64,
    host_busy: Option<f64>,
}

impl Reading {
    fn now(metrics: &Metrics) -> Self {
        Self {
            at: Instant::now(),
            bytes: metrics.bytes_received.get(),
            cpu: cpu_time(),
            host: std::fs::read_to_string("/proc/stat")
                .ok()
                .and_then(|stat| HostTicks::of(&stat)),
        }
    }

    fn until(&self, end: &Self) -> Rates {
        let seconds = (end.at - self.at).as_secs_f64().max(1e-9);
        Rates {
            seconds,
            bytes_per_second: (end.bytes - self.bytes) as f64 / seconds,
            cores_used: end.cpu.saturating_sub(self.cpu).as_secs_f64() / seconds,
            host_busy: self
                .host
                .zip(end.host)
                .and_then(|(from, to)| from.busy_until(to)),
        }
    }
}

impl HostTicks {
    /// From the text of /proc/stat.
    fn of(stat: &str) -> Option<Self> {
        let line = stat.lines().next()?.strip_prefix("cpu ")?;
        let ticks: Vec<u64> = line
            .split_whitespace()
            .map_while(|n| n.parse().ok())
            // The two after these are guests', and counted among the first.
            .take(8)
            .collect();
        // The fourth is idle, the fifth idle until a disk answers.
        Some(Self {
            idle: ticks.get(3)? + ticks.get(4)?,
            all: ticks.iter().sum(),
        })
    }

    fn busy_until(self, end: Self) -> Option<f64> {
        let all = end.all.checked_sub(self.all).filter(|all| *all > 0)?;
        Some(1.0 - end.idle.saturating_sub(self.idle) as f64 / all as f64)
    }
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(
        time.tv_sec.unsigned_abs(),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

/// Reads `objects` again and again with one setting until its share is used up.
pub(super) fn run(
    client: Client,
    metrics: &Counters,
    objects: &[ObjectMeta],
    setting: &Setting,
    share: Share,
) -> Result<Point> {
    let ranges = ranges(objects, setting.part_bytes);
    let get_bytes = mean_bytes(&ranges);
    let work = match setting.reader {
        Reader::Bare => bare(&client, ranges, setting),
        Reader::Engine => engine(client, metrics, objects, setting)?,
    };
    let rates = runtime::handle().block_on(watch(work, metrics, share))?;
    let snapshot = metrics.snapshot();
    Ok(Point {
        part_bytes: setting.part_bytes,
        concurrency: setting.concurrency,
        bytes_per_second: rates.bytes_per_second,
        seconds: rates.seconds,
        cores_used: rates.cores_used,
        host_busy: rates.host_busy,
        first_byte_p50_ms: snapshot.first_byte_p50_us as f64 / 1e3,
        get_bytes,
        throttles: snapshot.throttles,
        requests: snapshot.requests,
    })
}

/// Lets `work` go on for the warm-up and for the time that is measured; then it is cut off where it is.
async fn watch(mut work: JoinSet<Error>, metrics: &Metrics, share: Share) -> Result<Rates> {
    let warm_up = Share {
        time: share.time / WARM_UP,
        bytes: share.bytes / u64::from(WARM_UP),
    };
    spend(&mut work, metrics, Instant::now(), warm_up).await?;
    let warm = Reading::now(metrics);
    // From here, however late a busy processor came to it.
    let rest = Share {
        time: share.time - warm_up.time,
        ..share
    };
    spend(&mut work, metrics, warm.at, rest).await?;
    let end = Reading::now(metrics);
    // Not before the sockets are closed does the next run have the link for itself.
    work.shutdown().await;
    Ok(warm.until(&end))
}

/// Waits until the time since `begun` or the bytes since the run's start are used up, or the work fails.
async fn spend(
    work: &mut JoinSet<Error>,
    metrics: &Metrics,
    begun: Instant,
    share: Share,
) -> Result<()> {
    let until = begun + share.time;
    while Instant::now() < until && metrics.bytes_received.get() < share.bytes {
        let look = (Instant::now() + LOOK).min(until);
        tokio::select! {
            Some(ended) = work.join_next() => {
                let what = || "a reader of the bench".into();
                return Err(ended.unwrap_or_else(|_| Error::Internal { what: what() }));
            }
            () = tokio::time::sleep_until(look.into()) => {}
        }
    }
    Ok(())
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
        .take(MOST_RANGES)
        .collect()
}

fn mean_bytes(ranges: &[(ObjectMeta, ByteRange)]) -> u64 {
    let bytes: u64 = ranges.iter().map(|(_, range)| range.len()).sum();
    bytes / ranges.len().max(1) as u64
}

/// Ranged GETs in a row on as many tasks as shall be in flight, each with one buffer that it fills again and again.
fn bare(
    client: &Client,
    ranges: Vec<(ObjectMeta, ByteRange)>,
    setting: &Setting,
) -> JoinSet<Error> {
    let turns = Arc::new(Turns {
        ranges,
        next: AtomicUsize::new(0),
    });
    let mut work = JoinSet::new();
    for _ in 0..setting.concurrency {
        let fetch = turns.clone().fetch(client.clone(), setting.part_bytes);
        work.spawn_on(fetch, &runtime::handle());
    }
    work
}

/// The ranges, and whose turn it is.
#[derive(Debug)]
struct Turns {
    ranges: Vec<(ObjectMeta, ByteRange)>,
    next: AtomicUsize,
}

impl Turns {
    /// Goes on until it fails.
    async fn fetch(self: Arc<Self>, client: Client, part_bytes: u64) -> Error {
        let mut buffer = PartBuf::heap(usize::try_from(part_bytes).unwrap_or(0));
        loop {
            let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.ranges.len();
            let (meta, range) = &self.ranges[turn];
            buffer.clear();
            if let Err(error) = client.get(&meta.id, *range, &mut buffer).await {
                return error;
            }
        }
    }
}

/// The objects in order through the engine, again from the first after the last.
fn engine(
    client: Client,
    metrics: &Counters,
    objects: &[ObjectMeta],
    setting: &Setting,
) -> Result<JoinSet<Error>> {
    let engine = Prefetcher::new(client, setting.config(), metrics.clone())?;
    let objects = objects.to_vec();
    let endless = stream::iter(objects.into_iter().cycle());
    let reader = engine.read_all(endless.map(Ok).boxed())?;
    let mut work = JoinSet::new();
    work.spawn_on(consume(engine, reader), &runtime::handle());
    Ok(work)
}

/// Takes chunks until there is an error. The engine lives as long.
async fn consume(_engine: Prefetcher, mut reader: ObjectReader) -> Error {
    loop {
        match reader.next_chunk().await {
            Ok(Some(_)) => tokio::task::coop::consume_budget().await,
            Ok(None) => {
                let what = "the end of an endless stream".into();
                return Error::Internal { what };
            }
            Err(error) => return error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_came_between_two_readings_counts() {
        let at = Instant::now();
        let warm = Reading {
            at,
            bytes: 512 << 20,
            cpu: Duration::from_secs(3),
            host: HostTicks::of("cpu  100 0 20 300 10 0 5 0 7 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n"),
        };
        let end = Reading {
            at: at + Duration::from_millis(500),
            bytes: 532 << 20,
            cpu: Duration::from_millis(3250),
            host: HostTicks::of("cpu  150 5 40 320 15 0 5 0 9 0\n"),
        };
        assert_eq!(
            warm.until(&end),
            Rates {
                seconds: 0.5,
                bytes_per_second: f64::from(40 << 20),
                cores_used: 0.5,
                host_busy: Some(0.75)
            }
        );
        assert_eq!(HostTicks::of(""), None);
        assert_eq!(warm.host.unwrap().busy_until(warm.host.unwrap()), None);
    }
}
