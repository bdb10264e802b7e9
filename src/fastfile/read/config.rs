//! How open objects are read.

use crate::buffer::class_bytes;
use crate::error::{Error, Result};
use crate::prefetch::PrefetchConfig;

/// How open objects are read. The defaults are those of the engine.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ReadConfig {
    /// Memory for parts of all open objects, in bytes. Default as [`PrefetchConfig::memory_bytes`].
    pub memory_bytes: u64,
    /// Size of a part when an object is read in order. Default 8 MiB, as the engine's.
    pub part_bytes: u64,
    /// What a random read fetches, aligned; a power of two. Default 1 MiB: 50 ms at S3's latency and pace, where
    /// 128 KiB take 33 ms and a full part 190 ms.
    pub block_bytes: u64,
    /// Whether a cache lies below that keeps blocks of [`block_bytes`](Self::block_bytes): every part then ends at
    /// their edges. Without one, random reads of an object that does not fit in memory fetch no more than 128 KiB
    /// around what they want, because the rest of a block would be gone before it is read.
    pub over_cache: bool,
    /// Parts fetched ahead at once, at most. Default as [`PrefetchConfig::concurrency`].
    pub concurrency: usize,
    /// The same while all that is in flight is small: up to so many, as long as they are less than a MiB for each of
    /// [`concurrency`](Self::concurrency) together. Default as [`PrefetchConfig::small_concurrency`].
    pub small_concurrency: usize,
    /// Whether the rest of a large file is fetched, in full parts, while it is read at random, as far as such reads show
    /// that it will be read, too. It needs a cache, or a quarter of the memory. Default yes.
    pub fills: bool,
}

/// So much in flight for each of `concurrency` is still little.
const SMALL_BYTES: u64 = 1 << 20;

impl Default for ReadConfig {
    fn default() -> Self {
        Self::of(&PrefetchConfig::default())
    }
}

impl ReadConfig {
    /// With the memory, parts and requests of an engine.
    pub fn of(engine: &PrefetchConfig) -> Self {
        Self {
            memory_bytes: engine.memory_bytes,
            part_bytes: engine.part_bytes,
            block_bytes: (1 << 20).min(1 << engine.part_bytes.max(1).ilog2()),
            over_cache: false,
            concurrency: engine.concurrency,
            small_concurrency: engine.small_concurrency,
            fills: true,
        }
    }

    /// Requests in flight at most, whatever they are for.
    pub fn most_requests(&self) -> usize {
        self.concurrency.max(self.small_concurrency)
    }

    /// Whether one more part may be fetched ahead beside so many requests for so many bytes.
    pub(super) fn has_slot(&self, in_flight: usize, in_flight_bytes: u64) -> bool {
        let little = SMALL_BYTES.saturating_mul(self.concurrency as u64);
        in_flight < self.concurrency
            || in_flight < self.small_concurrency && in_flight_bytes < little
    }

    /// Refuses what can't work, naming the field.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn validate(&self) -> Result<()> {
        if self.part_bytes < 64 << 10 || self.part_bytes > 1 << 30 {
            let reason = format!("{} bytes: use 64KiB to 1GiB", self.part_bytes);
            return Err(Error::config("part size", reason));
        }
        if !self.block_bytes.is_power_of_two()
            || self.block_bytes < 4 << 10
            || self.block_bytes > self.part_bytes
        {
            let reason = format!(
                "{} bytes: use a power of two from 4KiB to the part size",
                self.block_bytes
            );
            return Err(Error::config("block size", reason));
        }
        if self.concurrency == 0 || self.concurrency > 4096 {
            return Err(Error::config(
                "concurrency",
                format!("{}: use 1 to 4096", self.concurrency),
            ));
        }
        if self.small_concurrency > 4096 {
            let reason = format!("{}: use at most 4096", self.small_concurrency);
            return Err(Error::config("small concurrency", reason));
        }
        let least = class_bytes(self.part_bytes);
        if self.memory_bytes < least {
            let reason = format!(
                "{} bytes do not hold one part: use at least {least}, or smaller parts",
                self.memory_bytes
            );
            return Err(Error::config("memory", reason));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Starts requests of one size until there is no slot; how many those are.
    fn in_flight(bytes: u64, config: &ReadConfig) -> usize {
        (0..)
            .find(|n| !config.has_slot(*n, *n as u64 * bytes))
            .unwrap_or_default()
    }

    #[test]
    fn small_requests_fly_in_larger_numbers() {
        let config = ReadConfig::default();
        let sizes = [8 << 20, 1 << 20, 512 << 10, 100_000, 1];
        let counts = sizes.map(|bytes| in_flight(bytes, &config));
        assert_eq!(counts, [28, 28, 56, 96, 96]);
        let told = ReadConfig::of(&PrefetchConfig::fitting(None, None, Some(5)));
        assert_eq!(sizes.map(|bytes| in_flight(bytes, &told)), [5; 5]);
    }

    proptest! {
        #[test]
        fn a_limit_is_a_limit(concurrency in 1..500usize, small_concurrency in 1..500usize, bytes in 0..16u64 << 20) {
            let config = ReadConfig { concurrency, small_concurrency, ..ReadConfig::default() };
            let most = in_flight(bytes, &config);
            prop_assert!(most >= concurrency && most <= config.most_requests());
            let beyond = most > concurrency;
            prop_assert!(!beyond || (most - 1) as u64 * bytes < SMALL_BYTES * concurrency as u64);
        }
    }
}
