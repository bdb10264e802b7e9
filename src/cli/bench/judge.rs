//! What the figures mean. Pure.

use std::fmt::Write as _;

use super::super::Size;
use super::super::size::human;
use super::Results;
use super::measure::Point;
use super::plan::{Reader, Setting};

/// Within so much of the best, less memory and fewer requests are the better choice; runs of a second differ by this.
const GOOD_ENOUGH: f64 = 0.93;

/// A doubling of the requests that gives less than this has found a limit: the root of 2 lies half-way between doubling
/// the bytes and none more.
const STILL_GROWS: f64 = std::f64::consts::SQRT_2;

/// A process that uses this share of the cores has no more to give.
const CPU_BOUND: f64 = 0.85;

/// Whatever else runs on this host, there is little left of its processors.
const HOST_BUSY: f64 = 0.9;

/// A request that waits for its first byte for so much of its time gains more from larger parts than from a faster
/// connection.
const MOSTLY_WAITS: f64 = 0.5;

/// A window that holds fewer first bytes of S3 than three says little.
const ROUGH_SECONDS: f64 = 0.1;

/// Which limit was met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Limit {
    /// The server answered 503.
    Throttled,
    /// This host's processor.
    Cpu,
    /// More requests gave hardly more bytes: the link, or what the endpoint gives one client.
    Link,
    /// More requests still gave more bytes: each is held up by its connection's rate.
    Connection,
    /// The same, but what holds each up is the wait for its first byte.
    RequestLatency,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub(super) struct Judgement {
    pub(super) limit: Limit,
    pub(super) one_connection_bytes_per_second: f64,
    pub(super) ceiling_bytes_per_second: f64,
    pub(super) ceiling_concurrency: usize,
    pub(super) engine_bytes_per_second: f64,
    pub(super) part_bytes: u64,
    pub(super) concurrency: usize,
    pub(super) memory_bytes: u64,
}

/// Judges the two series on a host with so many cores.
pub(super) fn judge(ceiling: &[Point], engine: &[Point], cores: usize) -> Judgement {
    let best = fastest(ceiling);
    let chosen = chosen(engine);
    Judgement {
        limit: limit(ceiling, cores),
        one_connection_bytes_per_second: ceiling
            .first()
            .map_or(0.0, |point| point.bytes_per_second),
        ceiling_bytes_per_second: best.map_or(0.0, |point| point.bytes_per_second),
        ceiling_concurrency: best.map_or(0, |point| point.concurrency),
        engine_bytes_per_second: chosen.map_or(0.0, |point| point.bytes_per_second),
        part_bytes: chosen.map_or(0, |point| point.part_bytes),
        concurrency: chosen.map_or(0, |point| point.concurrency),
        memory_bytes: chosen.map_or(0, |point| engine_setting(point).memory_bytes()),
    }
}

fn engine_setting(point: &Point) -> Setting {
    Setting {
        reader: Reader::Engine,
        part_bytes: point.part_bytes,
        concurrency: point.concurrency,
    }
}

fn fastest(points: &[Point]) -> Option<&Point> {
    points
        .iter()
        .max_by(|a, b| a.bytes_per_second.total_cmp(&b.bytes_per_second))
}

/// Of those that are good enough, the one with the least in flight.
fn chosen(engine: &[Point]) -> Option<&Point> {
    let best = fastest(engine)?;
    engine
        .iter()
        .filter(|point| point.bytes_per_second >= best.bytes_per_second * GOOD_ENOUGH)
        .min_by_key(|point| point.part_bytes.saturating_mul(point.concurrency as u64))
}

fn limit(ceiling: &[Point], cores: usize) -> Limit {
    let (Some(best), Some((last, earlier))) = (fastest(ceiling), ceiling.split_last()) else {
        return Limit::Link;
    };
    // Compared with each: one run that was slow by chance makes no growth.
    let grows = !earlier.is_empty()
        && earlier
            .iter()
            .all(|point| growth_per_doubling(point, last) > STILL_GROWS);
    if ceiling.iter().any(|point| point.throttles > 0) {
        Limit::Throttled
    } else if best.cores_used >= cores as f64 * CPU_BOUND {
        Limit::Cpu
    } else if !grows {
        Limit::Link
    } else if waiting_share(last) > MOSTLY_WAITS {
        Limit::RequestLatency
    } else {
        Limit::Connection
    }
}

/// By what each doubling of the requests in flight multiplied the rate.
fn growth_per_doubling(from: &Point, to: &Point) -> f64 {
    let doublings = (to.concurrency as f64 / from.concurrency as f64).log2();
    let growth = to.bytes_per_second / from.bytes_per_second.max(1.0);
    growth.powf(1.0 / doublings.max(1.0))
}

/// The share of its time that a request waits for its first byte, 0 to 1; by Little's law it takes as long as all in
/// flight need to bring its bytes.
fn waiting_share(point: &Point) -> f64 {
    let request_seconds =
        point.get_bytes as f64 * point.concurrency as f64 / point.bytes_per_second.max(1.0);
    (point.first_byte_p50_ms / 1e3 / request_seconds.max(1e-9)).min(1.0)
}

impl Judgement {
    /// It in words.
    pub(super) fn text(&self) -> String {
        let rate = |bytes: f64| format!("{}/s", human(bytes));
        let why = match self.limit {
            Limit::Throttled => {
                "the endpoint asked for fewer requests (503): spread the data over more prefixes"
            }
            Limit::Cpu => "this host's processor was busy: more requests would not help",
            Limit::Link => {
                "the link, or what the endpoint gives one client: more requests gave hardly more"
            }
            Limit::Connection => {
                "what the endpoint gives one connection: more of them still gave more; try more --concurrency"
            }
            Limit::RequestLatency => {
                "the wait for each first byte: more requests still gave more; try more --concurrency, and larger parts of large objects"
            }
        };
        format!(
            "Bare, one connection gives {}, {} of them {}.\nThe limit: {why}.\n\
             The engine gave {} in order ({:.0}% of that) with: --part-size {} --concurrency {} --memory {}\n",
            rate(self.one_connection_bytes_per_second),
            self.ceiling_concurrency,
            rate(self.ceiling_bytes_per_second),
            rate(self.engine_bytes_per_second),
            100.0 * self.engine_bytes_per_second / self.ceiling_bytes_per_second.max(1.0),
            Size(self.part_bytes),
            self.concurrency,
            Size(self.memory_bytes)
        )
    }
}

/// What must be known of the figures before they are believed.
pub(super) fn doubt(results: &Results) -> String {
    let points = || results.ceiling.iter().chain(&results.engine);
    let rough = points()
        .filter(|point| point.seconds < ROUGH_SECONDS)
        .count();
    let mut text = String::new();
    if rough > 0 {
        let _ = writeln!(
            text,
            "{rough} of {} runs ended within {:.0} ms after the warm-up: their figures are rough (more --max-bytes helps).",
            points().count(),
            ROUGH_SECONDS * 1e3
        );
    }
    let busy = fastest(&results.ceiling).and_then(|point| point.host_busy);
    if let Some(busy) = busy.filter(|busy| *busy >= HOST_BUSY) {
        let _ = writeln!(
            text,
            "All processors of this host were {:.0}% busy meanwhile, other programs included: that may be the limit.",
            busy * 100.0
        );
    }
    text
}

/// All figures.
pub(super) fn table(results: &Results) -> String {
    let mut text = format!(
        "{}\n\n{:<10}{:>10}{:>12}{:>14}{:>10}{:>16}\n",
        results.what, "", "part", "in flight", "throughput", "CPUs", "first byte p50"
    );
    for (name, points) in [("bare", &results.ceiling), ("engine", &results.engine)] {
        for point in points {
            // None where no request was answered in the time, or files are read.
            let first_byte = match point.first_byte_p50_ms > 0.0 {
                true => format!("{:.1} ms", point.first_byte_p50_ms),
                false => "-".into(),
            };
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "{name:<10}{:>10}{:>12}{:>14}{:>10.2}{first_byte:>16}",
                Size(point.part_bytes).to_string(),
                point.concurrency,
                format!("{}/s", human(point.bytes_per_second)),
                point.cores_used
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn point(part_mib: u64, concurrency: usize, mib_per_second: f64) -> Point {
        Point {
            part_bytes: part_mib << 20,
            concurrency,
            bytes_per_second: mib_per_second * f64::from(1 << 20),
            seconds: 1.0,
            cores_used: 0.5,
            host_busy: Some(0.4),
            first_byte_p50_ms: 30.0,
            get_bytes: part_mib << 20,
            throttles: 0,
            requests: 10,
        }
    }

    fn series(rates: &[f64]) -> Vec<Point> {
        rates
            .iter()
            .enumerate()
            .map(|(n, rate)| point(8, 1 << n, *rate))
            .collect()
    }

    #[test]
    fn the_limit_is_the_one_that_was_met() {
        let growing = series(&[50.0, 100.0, 200.0, 400.0]);
        assert_eq!(limit(&growing, 4), Limit::Connection);
        // 8 MiB in 160 ms, of which the first byte takes 120.
        let waiting: Vec<_> = growing
            .iter()
            .map(|p| Point {
                first_byte_p50_ms: 120.0,
                ..p.clone()
            })
            .collect();
        assert_eq!(limit(&waiting, 4), Limit::RequestLatency);
        let flat = series(&[50.0, 100.0, 110.0, 111.0]);
        assert_eq!(limit(&flat, 4), Limit::Link);
        let dip = series(&[50.0, 100.0, 110.0, 80.0, 111.0]);
        assert_eq!(limit(&dip, 4), Limit::Link);
        let busy: Vec<_> = flat
            .into_iter()
            .map(|p| Point {
                cores_used: 3.9,
                ..p
            })
            .collect();
        assert_eq!(limit(&busy, 4), Limit::Cpu);
        let mut throttled = growing;
        throttled[3].throttles = 1;
        assert_eq!(limit(&throttled, 4), Limit::Throttled);
    }

    #[test]
    fn nothing_measured_is_judged_without_a_crash() {
        for ceiling in [vec![], series(&[0.0]), series(&[0.0, 0.0])] {
            let judgement = judge(&ceiling, &[], 2);
            assert_eq!(judgement.limit, Limit::Link);
            assert!(!judgement.text().contains("NaN"), "{}", judgement.text());
        }
    }

    #[test]
    fn a_first_byte_that_nobody_saw_is_no_zero() {
        let mut results = Results {
            what: "s3://b/".into(),
            parts: &[8 << 20],
            ceiling: series(&[50.0]),
            engine: vec![],
        };
        assert!(table(&results).ends_with(" 30.0 ms\n"));
        results.ceiling[0].first_byte_p50_ms = 0.0;
        assert!(table(&results).ends_with(" -\n"));
    }

    #[test]
    fn short_windows_are_told() {
        let mut results = Results {
            what: "s3://b/".into(),
            parts: &[8 << 20],
            ceiling: series(&[50.0, 100.0]),
            engine: series(&[50.0]),
        };
        assert_eq!(doubt(&results), "");
        results.engine[0].seconds = 0.02;
        assert!(doubt(&results).starts_with("1 of 3 runs ended within 100 ms"));
    }

    #[test]
    fn a_host_that_is_busy_with_other_work_is_told() {
        let mut results = Results {
            what: "s3://b/".into(),
            parts: &[8 << 20],
            ceiling: series(&[50.0, 100.0]),
            engine: vec![],
        };
        results.ceiling[0].host_busy = Some(1.0);
        assert_eq!(doubt(&results), "", "it was the slower of the two");
        results.ceiling[1].host_busy = Some(0.97);
        assert!(doubt(&results).contains("97% busy"));
    }

    proptest! {
        /// A server with a rate for each connection and one for all, measured to within 5 %: whichever binds is named.
        #[test]
        fn the_cap_that_binds_is_named(
            each in 1.0f64..100.0,
            total_in_connections in prop_oneof![1.0f64..24.0, 128.0f64..1000.0],
            step in 1u32..=2,
            noise in proptest::collection::vec(0.95f64..1.05, 7),
        ) {
            let total = each * total_in_connections;
            // As the plans have them: each doubling up to 64, or every other.
            let ceiling: Vec<_> = (0..=6)
                .filter(|n| n % step == 0)
                .zip(noise)
                .map(|(n, noise)| {
                    let rate = (each * f64::from(1 << n)).min(total);
                    point(8, 1 << n, rate * noise)
                })
                .collect();
            let named = limit(&ceiling, 64);
            match total_in_connections > 64.0 {
                true => prop_assert_eq!(named, Limit::Connection),
                false => prop_assert_eq!(named, Limit::Link),
            }
        }
    }

    #[test]
    fn the_smallest_of_the_good_is_recommended() {
        let engine = [
            point(8, 8, 300.0),
            point(8, 32, 970.0),
            point(16, 64, 1000.0),
        ];
        let judgement = judge(&series(&[50.0, 1000.0]), &engine, 4);
        assert_eq!((judgement.part_bytes, judgement.concurrency), (8 << 20, 32));
        assert!(
            judgement
                .text()
                .contains("--part-size 8MiB --concurrency 32 --memory 384MiB")
        );
    }
}
