//! Which settings are tried, and what each of them may use. Pure.
//!
//! The time that was asked for holds: each run gets its share of what is *left*, so what opening connections or a slow
//! credential provider took from one run is taken from all that follow, and not added at the end. In little time fewer
//! settings are tried rather than all of them for too short.

use std::time::Duration;

use super::super::Size;
use crate::prefetch::PrefetchConfig;

/// Size of the bare requests: the engine's default part.
pub(super) const BARE_PART_BYTES: u64 = 8 << 20;

/// A run's least share of the time: a third of it warms up, and the rest is nine first bytes of S3 (30 ms) in a row.
const LEAST_SHARE: Duration = Duration::from_millis(400);

/// A run whose share was used up by what came before it still has so much: less would be a figure out of nothing.
const LEAST_TIME: Duration = Duration::from_millis(200);

/// An engine's run is worth two bare ones: it begins cold, with memory of its own.
const ENGINE_SHARES: u32 = 2;

/// What is tried.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Grid {
    /// Requests in flight, bare.
    bare: &'static [usize],
    /// Part sizes and concurrencies, through the engine.
    parts: &'static [u64],
    concurrencies: &'static [usize],
}

/// Up to what 25 Gb/s take at S3's latency.
const FULL: Grid = Grid {
    bare: &[1, 2, 4, 8, 16, 32, 64],
    parts: &[2 << 20, 8 << 20, 16 << 20],
    concurrencies: &[8, 32, 64],
};

/// The same range in little time.
const ROUGH: Grid = Grid {
    bare: &[1, 4, 16, 64],
    parts: &[8 << 20],
    concurrencies: &[8, 32, 64],
};

/// The least time that can be asked for, in seconds: [`ROUGH`] has ten shares.
pub(super) const LEAST_SECONDS: u64 = 4;

/// Who reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Reader {
    /// Ranged GETs in a row, thrown away: the ceiling, with nothing of the engine in it.
    Bare,
    /// The engine, in order.
    Engine,
}

/// One run's setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) reader: Reader,
    pub(super) part_bytes: u64,
    pub(super) concurrency: usize,
}

/// What a run may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) time: Duration,
    pub(super) bytes: u64,
}

impl Grid {
    /// The widest that `time` suffices for.
    pub(super) fn within(time: Duration) -> &'static Self {
        match time / FULL.shares() >= LEAST_SHARE {
            true => &FULL,
            false => &ROUGH,
        }
    }

    /// Part sizes that the engine is tried with.
    pub(super) fn parts(&self) -> &'static [u64] {
        self.parts
    }

    /// All runs in their order: first the ceiling, then the engine.
    pub(super) fn settings(&self) -> Vec<Setting> {
        let bare = self.bare.iter().map(|&concurrency| Setting {
            reader: Reader::Bare,
            part_bytes: BARE_PART_BYTES,
            concurrency,
        });
        let engine = self.parts.iter().flat_map(|&part_bytes| {
            self.concurrencies.iter().map(move |&concurrency| Setting {
                reader: Reader::Engine,
                part_bytes,
                concurrency,
            })
        });
        bare.chain(engine).collect()
    }

    fn shares(&self) -> u32 {
        let engine = self.parts.len() * self.concurrencies.len();
        self.bare.len() as u32 + ENGINE_SHARES * engine as u32
    }

    /// Shortest and longest run in `time`.
    pub(super) fn run_times(&self, time: Duration) -> (Duration, Duration) {
        let share = time / self.shares();
        (share, share * ENGINE_SHARES)
    }

    /// About how many GETs reading `bytes` of objects with these sizes takes: all with the smallest parts, and of each
    /// run those that are cut off at its end.
    pub(super) fn requests(&self, sizes_bytes: &[u64], bytes: u64) -> u64 {
        let part_bytes = self.parts.iter().copied().min().unwrap_or(BARE_PART_BYTES);
        let gets: u64 = sizes_bytes.iter().map(|n| n.div_ceil(part_bytes)).sum();
        let all_bytes: u64 = sizes_bytes.iter().sum();
        let cut: usize = self.settings().iter().map(|s| s.concurrency).sum();
        (bytes as f64 * gets as f64 / all_bytes.max(1) as f64).ceil() as u64 + cut as u64
    }
}

impl Setting {
    fn shares(&self) -> u32 {
        match self.reader {
            Reader::Bare => 1,
            Reader::Engine => ENGINE_SHARES,
        }
    }

    /// The engine's settings; a bare reader's client has the same gate.
    pub(super) fn config(&self) -> PrefetchConfig {
        PrefetchConfig {
            part_bytes: self.part_bytes,
            concurrency: self.concurrency,
            memory_bytes: self.memory_bytes(),
            ..PrefetchConfig::default()
        }
    }

    /// As the engine's own default: half as much again as is in flight.
    pub(super) fn memory_bytes(&self) -> u64 {
        self.part_bytes * self.concurrency as u64 * 3 / 2
    }

    /// In a word or two.
    pub(super) fn name(&self) -> String {
        let reader = match self.reader {
            Reader::Bare => "bare GETs",
            Reader::Engine => "engine",
        };
        format!("{reader}, {} x {}", Size(self.part_bytes), self.concurrency)
    }
}

/// What the first of `settings` may use of what is left for all of them.
pub(super) fn share(settings: &[Setting], time: Duration, bytes: u64) -> Share {
    let of = |settings: &[Setting]| settings.iter().map(Setting::shares).sum::<u32>();
    let (own, all) = (of(&settings[..settings.len().min(1)]), of(settings).max(1));
    Share {
        time: (time * own / all).max(LEAST_TIME),
        // A budget that is used up leaves nothing but the first bytes that come.
        bytes: (u128::from(bytes) * u128::from(own) / u128::from(all)).max(1) as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn little_time_is_spent_on_fewer_settings() {
        for (seconds, settings, shortest_ms) in
            [(4, 7, 400), (9, 7, 900), (10, 16, 400), (20, 16, 800)]
        {
            let time = Duration::from_secs(seconds);
            let grid = Grid::within(time);
            assert_eq!(grid.settings().len(), settings, "{seconds} s");
            let (shortest, longest) = grid.run_times(time);
            assert_eq!(shortest, Duration::from_millis(shortest_ms), "{seconds} s");
            assert_eq!(longest, shortest * 2);
        }
        let least = Grid::within(Duration::from_secs(LEAST_SECONDS));
        let (shortest, _) = least.run_times(Duration::from_secs(LEAST_SECONDS));
        assert!(shortest >= LEAST_SHARE);
    }

    #[test]
    fn requests_are_counted_by_object_and_part() {
        let cut = ROUGH
            .settings()
            .iter()
            .map(|s| s.concurrency as u64)
            .sum::<u64>();
        for (sizes, bytes, gets) in [
            // Two objects of one part and a byte each take four GETs.
            (vec![(8 << 20) + 1; 2], 2 * ((8 << 20) + 1), 4),
            (vec![1 << 10], 1 << 20, 1 << 10),
            (vec![64 << 20], 64 << 20, 8),
        ] {
            assert_eq!(ROUGH.requests(&sizes, bytes), gets + cut, "{sizes:?}");
        }
    }

    /// Runs all settings, each with an overhead before it; returns the time and the bytes that it took.
    fn play(seconds: u64, bytes: u64, overheads_ms: &[u64]) -> (Duration, u64, Duration) {
        let time = Duration::from_secs(seconds);
        let settings = Grid::within(time).settings();
        let (mut elapsed, mut used, mut shortest) = (Duration::ZERO, 0, Duration::MAX);
        for (index, _) in settings.iter().enumerate() {
            elapsed += Duration::from_millis(overheads_ms[index]);
            let left = time.saturating_sub(elapsed);
            let share = share(&settings[index..], left, bytes - used);
            elapsed += share.time;
            used += share.bytes.min(bytes - used);
            shortest = shortest.min(share.time);
        }
        (elapsed, used, shortest)
    }

    proptest! {
        /// What opening connections takes is made up for, and no run becomes too short to mean something.
        #[test]
        fn the_time_and_the_bytes_hold(
            seconds in LEAST_SECONDS..200,
            bytes in 100u64..1 << 50,
            overheads in proptest::collection::vec(0u64..60, 16),
        ) {
            let (elapsed, used, shortest) = play(seconds, bytes, &overheads);
            let asked = Duration::from_secs(seconds);
            prop_assert!(elapsed <= asked + Duration::from_millis(300), "{elapsed:?}");
            prop_assert!(elapsed + Duration::from_millis(10) >= asked, "{elapsed:?}");
            prop_assert_eq!(used, bytes);
            prop_assert!(shortest >= LEAST_TIME);
        }
    }
}
