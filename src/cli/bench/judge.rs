//! What the figures mean. Pure.

use std::fmt::Write as _;

use super::super::Size;
use super::super::size::human;
use super::Results;
use super::measure::Point;

/// Within so much of the best, less memory and fewer requests are the better choice; runs of a second differ by this.
const GOOD_ENOUGH: f64 = 0.93;

/// A doubling of the requests that gives less than this has found a limit.
const STILL_GROWS: f64 = 1.15;

/// A process that uses this share of the cores has no more to give.
const CPU_BOUND: f64 = 0.85;

/// Which limit was met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Limit {
    /// The server answered 503.
    Throttled,
    /// This host's processor.
    Cpu,
    /// More requests gave no more bytes: the link, or what the endpoint gives one client.
    Link,
    /// More requests still gave more bytes: each is held up by its latency and its connection's rate.
    RequestLatency,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub(super) struct Judgement {
    pub(super) limit: Limit,
    pub(super) one_connection_bytes_per_second: f64,
    pub(super) ceiling_bytes_per_second: f64,
    pub(super) engine_bytes_per_second: f64,
    pub(super) part_bytes: u64,
    pub(super) concurrency: usize,
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
        engine_bytes_per_second: chosen.map_or(0.0, |point| point.bytes_per_second),
        part_bytes: chosen.map_or(0, |point| point.part_bytes),
        concurrency: chosen.map_or(0, |point| point.concurrency),
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
    let Some(best) = fastest(ceiling) else {
        return Limit::Link;
    };
    let grows = match ceiling {
        [.., before, last] => last.bytes_per_second > before.bytes_per_second * STILL_GROWS,
        _ => false,
    };
    if ceiling.iter().any(|point| point.throttles > 0) {
        Limit::Throttled
    } else if best.cores_used >= cores as f64 * CPU_BOUND {
        Limit::Cpu
    } else if grows {
        Limit::RequestLatency
    } else {
        Limit::Link
    }
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
                "more requests gave no more bytes: the link, or what the endpoint gives one client"
            }
            Limit::RequestLatency => {
                "every doubling of the requests still gave more: latency and the rate of one connection; try more --concurrency"
            }
        };
        format!(
            "One connection gives {}, all together at most {}.\nThe limit: {why}.\n\
             The engine gave {} of it in order ({:.0}%) with: --part-size {} --concurrency {} --memory {}\n",
            rate(self.one_connection_bytes_per_second),
            rate(self.ceiling_bytes_per_second),
            rate(self.engine_bytes_per_second),
            100.0 * self.engine_bytes_per_second / self.ceiling_bytes_per_second.max(1.0),
            Size(self.part_bytes),
            self.concurrency,
            Size(self.part_bytes * self.concurrency as u64 * 3 / 2)
        )
    }
}

/// All figures.
pub(super) fn table(results: &Results) -> String {
    let mut text = format!(
        "{}\n\n{:<10}{:>10}{:>12}{:>14}{:>10}{:>16}\n",
        results.what, "", "part", "in flight", "throughput", "CPUs", "first byte p50"
    );
    for (name, points) in [("bare", &results.ceiling), ("engine", &results.engine)] {
        for point in points {
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "{name:<10}{:>10}{:>12}{:>14}{:>10.2}{:>13.1} ms",
                Size(point.part_bytes).to_string(),
                point.concurrency,
                format!("{}/s", human(point.bytes_per_second)),
                point.cores_used,
                point.first_byte_p50_ms
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(part_mib: u64, concurrency: usize, mib_per_second: f64) -> Point {
        Point {
            part_bytes: part_mib << 20,
            concurrency,
            bytes_per_second: mib_per_second * f64::from(1 << 20),
            cores_used: 0.5,
            first_byte_p50_ms: 30.0,
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
        assert_eq!(limit(&growing, 4), Limit::RequestLatency);
        let flat = series(&[50.0, 100.0, 110.0, 111.0]);
        assert_eq!(limit(&flat, 4), Limit::Link);
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
