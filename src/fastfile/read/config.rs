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
}

impl Default for ReadConfig {
    fn default() -> Self {
        let engine = PrefetchConfig::default();
        Self {
            memory_bytes: engine.memory_bytes,
            part_bytes: engine.part_bytes,
            block_bytes: 1 << 20,
            over_cache: false,
            concurrency: engine.concurrency,
        }
    }
}

impl ReadConfig {
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
