//! How slow the server is: time to the first byte, and bytes per second afterwards.
//!
//! A request waits for its first-byte latency; then its body is sent in slices, each when it is due. What several
//! connections share (total bandwidth, a budget of requests per second) is a [`Clock`]: the time up to which the
//! resource is promised away.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Latency of a request and pace of its body.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Latency {
    /// Median time to the first byte.
    #[serde(default)]
    pub first_byte_ms: f64,
    /// Time for each MiB of body.
    #[serde(default)]
    pub per_mib_ms: f64,
    /// One request in a hundred waits longer than this for its first byte (lognormal above half the median, which is
    /// the floor). Without it every request waits the median.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99_ms: Option<f64>,
}

impl Latency {
    /// The model of S3: 30 ms + 20 ms/MiB, one first byte in a hundred after 200 ms.
    pub fn s3() -> Latency {
        Latency {
            first_byte_ms: 30.0,
            per_mib_ms: 20.0,
            p99_ms: Some(200.0),
        }
    }

    /// A fixed time to the first byte.
    pub fn fixed(first_byte: Duration) -> Latency {
        Latency {
            first_byte_ms: first_byte.as_secs_f64() * 1e3,
            ..Latency::default()
        }
    }

    /// Reads `s3`, `none`, `30ms` or `30ms+20ms/MiB`.
    pub fn parse(text: &str) -> Option<Latency> {
        match text {
            "s3" => return Some(Latency::s3()),
            "none" => return Some(Latency::default()),
            _ => {}
        }
        let ms = |text: &str| text.trim().strip_suffix("ms")?.parse::<f64>().ok();
        let (first, per_mib) = text.split_once('+').unwrap_or((text, "0ms/MiB"));
        Some(Latency {
            first_byte_ms: ms(first)?,
            per_mib_ms: ms(per_mib.trim().strip_suffix("/MiB")?)?,
            p99_ms: None,
        })
    }

    /// One request's time to the first byte; `chance` are two uniform numbers of `(0, 1]`.
    pub(crate) fn first_byte(&self, chance: (f64, f64)) -> Duration {
        let median = self.first_byte_ms;
        let floor = median / 2.0;
        let wait = match self.p99_ms {
            Some(p99) if p99 > median && median > 0.0 => {
                // 2.3263 standard deviations have 1 % above them.
                let sigma = ((p99 - floor) / (median - floor)).ln() / 2.3263;
                let normal =
                    (-2.0 * chance.0.ln()).sqrt() * (std::f64::consts::TAU * chance.1).cos();
                floor + (median - floor) * (sigma * normal).exp()
            }
            _ => median,
        };
        Duration::from_secs_f64(wait.clamp(0.0, 60_000.0) / 1e3)
    }

    /// The pace of a body.
    pub(crate) fn bytes_per_second(&self) -> Option<u64> {
        (self.per_mib_ms > 0.0).then(|| (1048576.0 * 1e3 / self.per_mib_ms) as u64)
    }
}

/// The server's own shape, under all scripted conditions.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Shape {
    /// Latency of every request.
    #[serde(default)]
    pub latency: Latency,
    /// Bandwidth of one connection.
    #[serde(default)]
    pub connection_bytes_per_second: Option<u64>,
    /// Bandwidth of all connections together.
    #[serde(default)]
    pub total_bytes_per_second: Option<u64>,
}

/// A resource that is used at a fixed rate by many: the moment until which it is promised.
#[derive(Debug)]
pub(crate) struct Clock {
    start: Instant,
    units_per_second: f64,
    /// Unused time that may be caught up.
    burst: Duration,
    promised_ns: AtomicU64,
}

impl Clock {
    pub(crate) fn new(units_per_second: f64, burst: Duration) -> Clock {
        Clock {
            start: Instant::now(),
            units_per_second,
            burst,
            promised_ns: AtomicU64::new(0),
        }
    }

    /// Takes `units` and says when they may be used.
    pub(crate) fn reserve(&self, units: u64) -> Instant {
        let cost = self.cost(units);
        let now = self.start.elapsed().as_nanos() as u64;
        let mut before = 0;
        let _ = self
            .promised_ns
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |promised| {
                before = self.begin(promised, now);
                Some(before + cost)
            });
        self.start + Duration::from_nanos(before + cost)
    }

    /// Takes `units` if they are there now.
    pub(crate) fn try_take(&self, units: u64) -> bool {
        let cost = self.cost(units);
        // Counted from one burst before the start, so that the first burst is there at once.
        let now = self.start.elapsed().as_nanos() as u64 + self.burst.as_nanos() as u64;
        self.promised_ns
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |promised| {
                let end = self.begin(promised, now) + cost;
                (end <= now).then_some(end)
            })
            .is_ok()
    }

    fn begin(&self, promised: u64, now: u64) -> u64 {
        promised.max(now.saturating_sub(self.burst.as_nanos() as u64))
    }

    fn cost(&self, units: u64) -> u64 {
        (units as f64 / self.units_per_second * 1e9) as u64
    }
}

/// When each slice of one body is due.
#[derive(Debug)]
pub(crate) struct Pacer<'a> {
    start: Instant,
    sent: u64,
    bytes_per_second: Option<u64>,
    total: Vec<&'a Clock>,
}

impl<'a> Pacer<'a> {
    pub(crate) fn new(bytes_per_second: Option<u64>, total: Vec<&'a Clock>) -> Pacer<'a> {
        Pacer {
            start: Instant::now(),
            sent: 0,
            bytes_per_second,
            total,
        }
    }

    /// Whether slices are needed at all.
    pub(crate) fn is_free(&self) -> bool {
        self.bytes_per_second.is_none() && self.total.is_empty()
    }

    /// Size of the next slice: 8 ms' worth, so that 64 connections cost some thousand wake-ups a second; small at
    /// first, so that the first byte is not late.
    pub(crate) fn slice(&self) -> u64 {
        let steady = self
            .bytes_per_second
            .map_or(256 << 10, |rate| (rate / 125).clamp(16 << 10, 1 << 20));
        if self.sent == 0 {
            steady.min(32 << 10)
        } else {
            steady
        }
    }

    /// When the next `bytes` may go out.
    pub(crate) fn due(&mut self, bytes: u64) -> Instant {
        self.sent += bytes;
        let mut due = self.start;
        if let Some(rate) = self.bytes_per_second {
            due += Duration::from_secs_f64(self.sent as f64 / rate as f64);
        }
        self.total
            .iter()
            .map(|clock| clock.reserve(bytes))
            .fold(due, Instant::max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_of_s3_has_its_median_and_its_tail() {
        let model = Latency::s3();
        let mut waits: Vec<f64> = (0..100_000u64)
            .map(|i| (crate::script::unit(2 * i), crate::script::unit(2 * i + 1)))
            .map(|chance| model.first_byte(chance).as_secs_f64() * 1e3)
            .collect();
        waits.sort_by(f64::total_cmp);
        assert!(
            (waits[50_000] - 30.0).abs() < 1.0,
            "median {}",
            waits[50_000]
        );
        assert!(
            (waits[99_000] - 200.0).abs() < 15.0,
            "p99 {}",
            waits[99_000]
        );
        assert_eq!(model.bytes_per_second(), Some(52_428_800));
    }

    #[test]
    fn models_are_read_from_text() {
        assert_eq!(Latency::parse("s3"), Some(Latency::s3()));
        assert_eq!(
            Latency::parse("30ms"),
            Some(Latency::fixed(Duration::from_millis(30)))
        );
        let model = Latency::parse("5ms+20ms/MiB").unwrap();
        assert_eq!((model.first_byte_ms, model.per_mib_ms), (5.0, 20.0));
        assert_eq!(Latency::parse("fast"), None);
    }

    #[test]
    fn a_budget_lets_the_burst_through_and_then_refuses() {
        let clock = Clock::new(10.0, Duration::from_millis(500));
        let taken = (0..20).filter(|_| clock.try_take(1)).count();
        assert!((5..=6).contains(&taken), "{taken} of a burst of five");
    }
}
