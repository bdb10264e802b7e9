//! How a handle reads, and what to fetch for it: pure functions of offsets.

use super::config::ReadConfig;
use crate::object::ByteRange;

/// Reads this far behind the furthest one still count as in order: the kernel sends several at once, and they overtake
/// each other by a request or two of at most 1 MiB.
pub(super) const SLACK_BYTES: u64 = 1 << 20;
/// Where the indexes of parquet, zip and tar files are: readers look there first, and again.
const FOOTER_BYTES: u64 = 64 << 10;
/// What a random read fetches at least where nothing keeps the rest: the kernel's own read-ahead.
const LEAST_BYTES: u64 = 128 << 10;
/// This many parts make a window, until they are full ones: the first to be needed is not held up by the others.
const PARTS_IN_WINDOW: u64 = 8;

/// How one read follows those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Sequential,
    Footer,
    Random,
}

/// Tells reads in order from random ones, and grows the window.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Detector {
    /// Where the run began: what lies before it was not passed.
    pub(super) begin: u64,
    /// One past the furthest byte of the run.
    pub(super) end: u64,
    /// How far to read ahead of it; 0 is not at all.
    pub(super) window_bytes: u64,
    /// Reads in order since the run began; 0 before the first read.
    run: u32,
    misses: u32,
    /// Where the last miss ended: a run may begin there.
    stray: Option<u64>,
    grow_at: u64,
}

impl Detector {
    pub(super) fn observe(&mut self, range: ByteRange, size: u64, config: &ReadConfig) -> Access {
        if self.follows(range) {
            self.advance(range, config);
            return Access::Sequential;
        }
        if self.stray.is_some_and(|stray| range.start == stray) {
            *self = Self {
                begin: range.start,
                end: range.start,
                run: 1,
                ..Self::default()
            };
            self.advance(range, config);
            return Access::Sequential;
        }
        if range.start.saturating_add(FOOTER_BYTES) >= size {
            return Access::Footer;
        }
        self.misses += 1;
        self.stray = Some(range.end);
        if self.run == 0 || self.misses >= 2 {
            self.window_bytes = 0;
            (self.begin, self.end, self.run) = (range.start, range.end, 1);
        }
        Access::Random
    }

    fn follows(&self, range: ByteRange) -> bool {
        if self.run == 0 {
            return range.start == 0;
        }
        let from = match self.window_bytes {
            0 => self.end.saturating_sub(SLACK_BYTES.min(range.len())),
            _ => self.end.saturating_sub(SLACK_BYTES + range.len()),
        };
        let to = self.end.saturating_add(self.window_bytes.saturating_mul(2));
        (from..=to).contains(&range.start)
    }

    fn advance(&mut self, range: ByteRange, config: &ReadConfig) {
        self.run = self.run.saturating_add(1);
        self.misses = 0;
        self.stray = None;
        self.end = self.end.max(range.end);
        if self.run == 1 {
            // Most readers of a first byte read the second: one block ahead costs little.
            self.window_bytes = config.block_bytes;
        } else if self.window_bytes < config.part_bytes {
            // One part, and then twice as much each time.
            self.window_bytes = config.part_bytes;
            self.grow_at = self.end + self.window_bytes;
        } else if self.end >= self.grow_at {
            self.grow(config);
        }
    }

    /// The window was used up, or its reader had to wait.
    pub(super) fn grow(&mut self, config: &ReadConfig) {
        if self.window_bytes > 0 {
            self.window_bytes = (self.window_bytes * 2).min(config.memory_bytes);
            self.grow_at = self.end + self.window_bytes;
        }
    }

    /// Fetching ahead failed.
    pub(super) fn collapse(&mut self) {
        self.window_bytes = 0;
        self.run = self.run.min(1);
    }
}

/// The range to fetch so that byte `at` is there; never empty for `at < size`. `until` is the end of what is wanted.
pub(super) fn demand(
    access: Access,
    at: u64,
    until: u64,
    size: u64,
    window_bytes: u64,
    config: &ReadConfig,
) -> ByteRange {
    if size <= config.part_bytes {
        return ByteRange::new(0, size);
    }
    let cell = |bytes: u64| {
        ByteRange::new(
            at / bytes * bytes,
            (at / bytes)
                .saturating_add(1)
                .saturating_mul(bytes)
                .min(size),
        )
    };
    match access {
        // The first bytes of an object are small, so that they come after one latency.
        Access::Sequential if window_bytes <= config.block_bytes && !config.over_cache => {
            small(at, until, size, config)
        }
        Access::Sequential => cell(ahead_part_bytes(window_bytes, config)),
        Access::Footer => {
            let start = size.saturating_sub(FOOTER_BYTES) / config.block_bytes * config.block_bytes;
            ByteRange::new(start.min(at), size)
        }
        Access::Random if config.over_cache || size <= config.memory_bytes / 2 => {
            cell(config.block_bytes)
        }
        Access::Random => small(at, until, size, config),
    }
}

/// What is wanted, rounded to the least; within the part of `at`.
fn small(at: u64, until: u64, size: u64, config: &ReadConfig) -> ByteRange {
    let least = LEAST_BYTES.min(config.block_bytes);
    let start = at / least * least;
    let end = until
        .div_ceil(least)
        .saturating_mul(least)
        .max(start + least);
    ByteRange::new(start, end.min(start + config.block_bytes).min(size))
}

/// Parts grow with their window: small while the reader waits for each, full once it does not.
pub(super) fn ahead_part_bytes(window_bytes: u64, config: &ReadConfig) -> u64 {
    let wanted = window_bytes / PARTS_IN_WINDOW;
    let mut bytes = config.block_bytes;
    while bytes * 2 <= wanted && bytes * 2 < config.part_bytes {
        bytes *= 2;
    }
    if wanted >= config.part_bytes {
        config.part_bytes
    } else {
        bytes
    }
}

/// The part to fetch ahead from `from`, the end of what is there or under way; `None` while the window has no room
/// for it.
pub(super) fn ahead(
    from: u64,
    end: u64,
    size: u64,
    window_bytes: u64,
    config: &ReadConfig,
) -> Option<ByteRange> {
    if window_bytes == 0 || from >= size || size <= config.part_bytes {
        return None;
    }
    let bytes = ahead_part_bytes(window_bytes, config);
    let part = ByteRange::new(from, (from / bytes + 1).saturating_mul(bytes).min(size));
    (part.end <= end.saturating_add(window_bytes) || from <= end).then_some(part)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    fn config() -> ReadConfig {
        ReadConfig {
            memory_bytes: 256 * MIB,
            ..ReadConfig::default()
        }
    }

    fn reads(ranges: &[(u64, u64)]) -> (Vec<Access>, Detector) {
        let mut detector = Detector::default();
        let access = ranges
            .iter()
            .map(|(start, end)| detector.observe(ByteRange::new(*start, *end), 1 << 40, &config()));
        (access.collect(), detector)
    }

    #[test]
    fn reads_in_order_open_a_window_that_doubles_and_two_misses_close_it() {
        use Access::{Footer, Random, Sequential};
        let mut steps: Vec<_> = (0..16).map(|at| (at * MIB, (at + 1) * MIB)).collect();
        assert_eq!(reads(&steps[..1]).1.window_bytes, MIB);
        assert_eq!(reads(&steps[..2]).1.window_bytes, 8 * MIB);
        assert_eq!(reads(&steps).1.window_bytes, 16 * MIB);
        steps.push(((1 << 40) - 8, 1 << 40));
        steps.push((1 << 30, (1 << 30) + 10));
        let (access, detector) = reads(&steps);
        assert_eq!(
            (access[16], access[17], detector.window_bytes),
            (Footer, Random, 16 * MIB)
        );
        steps.push((1 << 31, (1 << 31) + 10));
        let (access, detector) = reads(&steps);
        assert_eq!((access[18], detector.window_bytes), (Random, 0));
        steps.push(((1 << 31) + 10, (1 << 31) + 20));
        let (access, detector) = reads(&steps);
        assert_eq!((access[19], detector.window_bytes), (Sequential, 8 * MIB));
    }

    #[test]
    fn requests_that_overtake_each_other_are_in_order() {
        let (access, detector) = reads(&[
            (0, MIB),
            (2 * MIB, 3 * MIB),
            (MIB, 2 * MIB),
            (3 * MIB, 4 * MIB),
        ]);
        assert_eq!(access, [Access::Sequential; 4]);
        assert_eq!(detector.end, 4 * MIB);
    }

    proptest! {
        #[test]
        fn what_is_fetched_covers_what_is_wanted(size in 1..100_000_000u64, at in any::<proptest::sample::Index>(), len in 1..2_000_000u64, window in 0..1_000_000_000u64, over_cache: bool) {
            let config = ReadConfig { over_cache, ..config() };
            let at = at.index(size as usize) as u64;
            for access in [Access::Sequential, Access::Footer, Access::Random] {
                let range = demand(access, at, (at + len).min(size), size, window, &config);
                prop_assert!(range.start <= at && at < range.end && range.end <= size);
                prop_assert!(access == Access::Footer || range.len() <= config.part_bytes);
            }
            if let Some(part) = ahead(at, at, size, window, &config) {
                prop_assert!(part.start == at && part.end <= size && !part.is_empty() && part.len() <= config.part_bytes);
            }
        }
    }
}
