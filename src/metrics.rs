//! What the engine counts, and the one-line answer to "why is it slow?".
//!
//! Counters are relaxed atomics: a few nanoseconds each, read by [`Metrics::snapshot`] at any time. Bytes are
//! conserved: `received == delivered + wasted + in flight or ready`.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// Adds a duration, in nanoseconds.
    pub fn add_time(&self, time: Duration) {
        self.add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Its value.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A number that grows and shrinks; it never goes below zero while every `sub` follows its `add`.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// Takes `n` away.
    pub fn sub(&self, n: u64) {
        self.0.fetch_sub(n, Relaxed);
    }

    /// Sets it.
    pub fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }

    /// Its value.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

const BUCKETS: usize = 128;

/// Durations in quarter-octave buckets from 1 us up: a quantile is within 19 % of the truth.
#[derive(Debug)]
pub struct Histogram([AtomicU64; BUCKETS]);

impl Default for Histogram {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Histogram {
    /// Counts one duration.
    pub fn record(&self, time: Duration) {
        let micros = (time.as_secs_f64() * 1e6).max(1.0);
        let bucket = ((micros.log2() * 4.0) as usize).min(BUCKETS - 1);
        self.0[bucket].fetch_add(1, Relaxed);
    }

    /// The upper edge of the bucket that holds quantile `q` (0 to 1); zero when nothing was counted.
    pub fn quantile(&self, q: f64) -> Duration {
        let counts: Vec<u64> = self.0.iter().map(|n| n.load(Relaxed)).collect();
        let total: u64 = counts.iter().sum();
        let rank = ((total as f64 * q).ceil() as u64).max(1);
        let mut seen = 0;
        for (bucket, count) in counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Duration::from_secs_f64(2f64.powf((bucket + 1) as f64 / 4.0) / 1e6);
            }
        }
        Duration::ZERO
    }
}

/// The kinds that the list below speaks of.
enum Kind {
    Counter,
    Gauge,
}

macro_rules! metrics {
    ($($(#[$doc:meta])* $name:ident: $kind:ident,)*) => {
        /// The live counters, shared by a client, an engine and the mode above them.
        #[derive(Debug, Default)]
        pub struct Metrics {
            $($(#[$doc])* pub $name: $kind,)*
            /// Time from sending a GET to the first byte of its answer.
            pub first_byte: Histogram,
            /// Time from sending a GET to the last byte of its answer.
            pub request_time: Histogram,
        }

        /// The counters at one moment.
        #[derive(Debug, Clone, Default, serde::Serialize)]
        #[non_exhaustive]
        pub struct Snapshot {
            $($(#[$doc])* pub $name: u64,)*
            /// Median time to the first byte, microseconds.
            pub first_byte_p50_us: u64,
            /// 99th percentile of the time to the first byte, microseconds.
            pub first_byte_p99_us: u64,
            /// 99th percentile of the time to the last byte, microseconds.
            pub request_time_p99_us: u64,
        }

        impl Metrics {
            /// Every counter's name, and whether it only grows.
            pub const NAMES: &'static [(&'static str, bool)] =
                &[$((stringify!($name), matches!(Kind::$kind, Kind::Counter))),*];

            /// Reads every counter.
            pub fn snapshot(&self) -> Snapshot {
                let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
                Snapshot {
                    $($name: self.$name.get(),)*
                    first_byte_p50_us: micros(self.first_byte.quantile(0.5)),
                    first_byte_p99_us: micros(self.first_byte.quantile(0.99)),
                    request_time_p99_us: micros(self.request_time.quantile(0.99)),
                }
            }
        }
    };
}

metrics! {
    /// Bytes of objects read from the network or a file.
    bytes_received: Counter,
    /// Bytes handed to consumers.
    bytes_delivered: Counter,
    /// Bytes received and thrown away, because a reader was closed, a range was skipped or an attempt restarted.
    bytes_wasted: Counter,
    /// Requests sent, retries included.
    requests: Counter,
    /// Requests under way.
    requests_in_flight: Gauge,
    /// Attempts after the first.
    retries: Counter,
    /// Answers that asked for fewer requests (503 `SlowDown`, 429).
    throttles: Counter,
    /// Nanoseconds that requests waited because the server had throttled.
    throttle_wait_ns: Counter,
    /// Connections opened.
    connections_opened: Counter,
    /// Requests sent on a connection that had served another.
    connections_reused: Counter,
    /// Connections closed by an error or a broken rule, not by age.
    connections_dropped: Counter,
    /// Objects whose checksum was compared and agreed.
    checksums_verified: Counter,
    /// Objects whose checksum disagreed.
    checksums_bad: Counter,
    /// Objects for which the server offered no checksum that could be compared.
    checksums_unverified: Counter,
    /// Bytes of memory that the budget has given out.
    reserved_bytes: Gauge,
    /// The part of it that consumers hold.
    lent_bytes: Gauge,
    /// Bytes that were handed out beyond the budget, because one consumer held all of it and asked for more.
    overdraft_bytes: Counter,
    /// Bytes of memory that the pool has mapped.
    pool_mapped_bytes: Gauge,
    /// Buffers taken warm from the pool.
    pool_hits: Counter,
    /// Buffers that had to be mapped.
    pool_misses: Counter,
    /// How many requests the engine lets fly at once.
    concurrency_target: Gauge,
    /// Nanoseconds that consumers waited for data.
    consumer_stall_ns: Counter,
    /// Nanoseconds in which some consumer had data waiting and the engine had to pause for lack of memory.
    producer_stall_ns: Counter,
    /// Nanoseconds that writes to pipes, files or the standard output blocked.
    sink_wait_ns: Counter,
    /// Bytes served from the cache. They are not among those received.
    cache_hit_bytes: Counter,
    /// Bytes fetched because the cache lacked them; more than was asked for where a block was wanted in part.
    cache_miss_bytes: Counter,
    /// Bytes read past the cache: it had no room for the object, or could not be used.
    cache_bypass_bytes: Counter,
    /// Bytes written to the cache.
    cache_written_bytes: Counter,
    /// Bytes not written because the disk was slower than the network, or had failed.
    cache_dropped_bytes: Counter,
    /// Bytes not written because the cache was full.
    cache_declined_bytes: Counter,
    /// Bytes of disk that eviction has freed.
    cache_evicted_bytes: Counter,
    /// Waits for a block that another reader or process was fetching.
    cache_waits: Counter,
    /// Blocks of an earlier boot that agreed with their checksum.
    cache_blocks_verified: Counter,
    /// Blocks of an earlier boot that did not, and were fetched again.
    cache_blocks_bad: Counter,
    /// Failures of the cache's disk. No read fails by them.
    cache_errors: Counter,
    /// Opens of files on a mount that the kernel asked for; none where files are read without being opened.
    opens: Counter,
    /// Those of them that were passed through: the kernel reads a local file by itself.
    passthrough_opens: Counter,
}

/// Where the time went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bottleneck {
    /// Consumers waited for bytes: latency, bandwidth or too few requests in flight.
    Network,
    /// The server asked for fewer requests.
    Throttled,
    /// Bytes waited for the consumer: the loader is not the limit.
    Consumer,
    /// Writing to disk was the limit.
    Disk,
    /// Making records of the bytes was: decompression, framing, checks.
    Decoding,
}

/// The answer to "why is it slow?".
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Verdict {
    /// Where the time went.
    pub bottleneck: Bottleneck,
    /// The share of the time in which the consumer waited for bytes, 0 to 1.
    pub stall_share: f64,
    /// One sentence with the number behind it and the knob to turn.
    pub advice: String,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.advice)
    }
}

/// What a mode writes into; it decides whether a waiting sink means "consumer" or "disk".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sink {
    /// A program reads the bytes.
    Consumer,
    /// They go to local files.
    Disk,
}

/// How consumers spent the time in which they were there and had something to read, summed over all of them.
///
/// A lane without a file and a FIFO without a reader wait for nothing: their time is in none of these.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Presence {
    /// All of that time.
    pub present: Duration,
    /// The part of it in which data was waited for.
    pub stalled: Duration,
    /// The part of it in which writing blocked.
    pub blocked: Duration,
}

impl Presence {
    /// The share of the time in which data was waited for, 0 to 1.
    pub fn stall_share(&self) -> f64 {
        self.share(self.stalled)
    }

    fn share(&self, of: Duration) -> f64 {
        match self.present.is_zero() {
            true => 0.0,
            false => (of.as_secs_f64() / self.present.as_secs_f64()).min(1.0),
        }
    }
}

impl std::iter::Sum for Presence {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            present: sum.present + one.present,
            stalled: sum.stalled + one.stalled,
            blocked: sum.blocked + one.blocked,
        })
    }
}

impl Snapshot {
    /// Judges a run of `elapsed` with `streams` consumers that were there, and had something to read, all the time.
    pub fn verdict(&self, elapsed: Duration, streams: u32, sink: Sink) -> Verdict {
        let presence = Presence {
            present: elapsed * streams.max(1),
            stalled: Duration::from_nanos(self.consumer_stall_ns),
            blocked: Duration::from_nanos(self.sink_wait_ns),
        };
        self.verdict_on(presence, sink)
    }

    /// Judges a run by how its consumers spent their time: a pure function.
    pub fn verdict_on(&self, presence: Presence, sink: Sink) -> Verdict {
        let stall_share = presence.stall_share();
        let sink_share = presence.share(presence.blocked);
        let percent = |share: f64| (share * 100.0).round();
        let (bottleneck, advice) = if self.throttles > 0 && stall_share > 0.1 {
            (
                Bottleneck::Throttled,
                format!(
                    "the server throttled {} of {} requests, and the consumer waited {}% of the time: lower --concurrency or spread the data over more prefixes",
                    self.throttles,
                    self.requests,
                    percent(stall_share)
                ),
            )
        } else if stall_share > 0.1 && stall_share >= sink_share {
            (
                Bottleneck::Network,
                format!(
                    "the network was the limit: the consumer waited {}% of the time; more --concurrency helps until the link is full (`standpipe bench` finds where)",
                    percent(stall_share)
                ),
            )
        } else if sink == Sink::Disk && stall_share.max(sink_share) < 0.1 {
            let slower = if stall_share > sink_share {
                Bottleneck::Network
            } else {
                Bottleneck::Disk
            };
            let advice = format!(
                "neither was waited for long (the network {}%, the disk {}% of the time): the CPU was the limit, or the run was short",
                percent(stall_share),
                percent(sink_share)
            );
            (slower, advice)
        } else if sink == Sink::Disk {
            (
                Bottleneck::Disk,
                format!(
                    "the disk was the limit: writing took {}% of the time; use a faster disk, or Pipe mode and no disk",
                    percent(sink_share)
                ),
            )
        } else {
            (
                Bottleneck::Consumer,
                format!(
                    "the consumer was the limit: it waited for data {}% of the time, the loader waited for it {}%",
                    percent(stall_share),
                    percent(sink_share)
                ),
            )
        };
        Verdict {
            bottleneck,
            stall_share,
            advice,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn quantiles_are_within_a_bucket() {
        let histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), Duration::ZERO);
        for millis in 1..=100 {
            histogram.record(Duration::from_millis(millis));
        }
        let p50 = histogram.quantile(0.5).as_secs_f64();
        assert!((0.050..0.060).contains(&p50), "{p50}");
    }

    fn judged(stall: f64, sink_wait: f64, throttles: u64, sink: Sink) -> Bottleneck {
        let snapshot = Snapshot {
            consumer_stall_ns: (stall * 1e9) as u64,
            sink_wait_ns: (sink_wait * 1e9) as u64,
            throttles,
            ..Snapshot::default()
        };
        snapshot.verdict(SECOND, 1, sink).bottleneck
    }

    #[test]
    fn the_verdict_names_whoever_was_waited_for() {
        assert_eq!(judged(0.9, 0.1, 0, Sink::Consumer), Bottleneck::Network);
        assert_eq!(judged(0.9, 0.1, 5, Sink::Consumer), Bottleneck::Throttled);
        assert_eq!(judged(0.02, 0.9, 0, Sink::Consumer), Bottleneck::Consumer);
        assert_eq!(judged(0.02, 0.9, 0, Sink::Disk), Bottleneck::Disk);
        assert_eq!(judged(0.05, 0.02, 0, Sink::Disk), Bottleneck::Network);
    }

    #[test]
    fn shares_are_of_the_time_in_which_somebody_was_there() {
        let of = |present, stalled, blocked| Presence {
            present: Duration::from_millis(present),
            stalled: Duration::from_millis(stalled),
            blocked: Duration::from_millis(blocked),
        };
        for (presence, share, bottleneck) in [
            // One lane of eight had a file: seven that waited for nothing are not in the sum.
            (vec![of(1000, 900, 50)], 0.9, Bottleneck::Network),
            // Two readers, of whom one waited.
            (
                vec![of(1000, 900, 0), of(1000, 0, 900)],
                0.45,
                Bottleneck::Network,
            ),
            (
                vec![of(1000, 300, 600), of(3000, 100, 2000)],
                0.1,
                Bottleneck::Disk,
            ),
            // Nobody was there.
            (vec![], 0.0, Bottleneck::Disk),
            (vec![of(0, 5, 0)], 0.0, Bottleneck::Disk),
            // Clocks that were read at different moments.
            (vec![of(10, 11, 0)], 1.0, Bottleneck::Network),
        ] {
            let sum: Presence = presence.iter().copied().sum();
            let verdict = Snapshot::default().verdict_on(sum, Sink::Disk);
            assert_eq!(
                (verdict.stall_share, verdict.bottleneck),
                (share, bottleneck),
                "{presence:?}"
            );
        }
    }
}
