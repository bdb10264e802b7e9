//! Where the cache lies and how much it may take.

use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Error, Result};

/// Smaller blocks would cost more in records and system calls than they hold; also every file system's block divides it.
const LEAST_BLOCK_BYTES: u64 = 4 << 10;
/// A block is fetched whole for one byte of it, and it is verified in memory.
const MOST_BLOCK_BYTES: u64 = 64 << 20;

/// How a [`BlockCache`](super::BlockCache) works.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CacheConfig {
    /// Its directory; made if missing. Its permissions are those of everything in it: a directory that its group may
    /// write to (`chmod g+ws`) is shared by the group.
    pub dir: PathBuf,
    /// Tells stores apart that may hold different objects under one address, bucket, ETag and size: the endpoint's URL,
    /// or nothing for AWS.
    pub namespace: String,
    /// How many bytes of disk it may take, overheads included; `None`: as many as
    /// [`keep_free_share`](Self::keep_free_share) leaves.
    pub max_bytes: Option<u64>,
    /// The share of the file system that stays free for others, 0 to 1.
    pub keep_free_share: f64,
    /// What is fetched and stored at a time. It is fixed when the directory is made; later settings don't change it.
    pub block_bytes: u64,
    /// Bytes that may wait in memory to be written to disk, beside the engine's budget. Beyond them, blocks are not
    /// stored.
    pub write_behind_bytes: u64,
    /// Threads that write.
    pub writer_threads: usize,
    /// Objects that are kept open between reads, at three descriptors each.
    pub open_entries: usize,
    /// How long a block is waited for that another process has claimed. Then it is fetched a second time.
    pub claim_patience: Duration,
    /// Where the system says which boot this is. What was stored in another boot is compared with its checksum before it
    /// is served.
    pub boot_id_file: PathBuf,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self {
            dir: PathBuf::new(),
            namespace: String::new(),
            max_bytes: None,
            // ext4 keeps as much for root by default, and file systems become slow when they are fuller than that.
            keep_free_share: 0.05,
            // S3 takes 30 ms + 20 ms/MiB: a random miss costs 50 ms instead of 190 ms for the engine's 8 MiB, and
            // sequential reads fetch many blocks in one request anyway.
            block_bytes: 1 << 20,
            // Eight parts of the engine: enough to ride out the pauses of a disk that is as fast as the network.
            write_behind_bytes: 64 << 20,
            // One thread copies 3 to 5 GB/s into the page cache; the second one writes while the first is throttled.
            writer_threads: 2,
            // 768 of the 1,024 descriptors that a process usually has.
            open_entries: 256,
            // Longer than S3 takes for a block but for one in a million, shorter than a training job's patience: the
            // holder is stopped, or its network is gone.
            claim_patience: Duration::from_secs(10),
            boot_id_file: "/proc/sys/kernel/random/boot_id".into(),
        }
    }
}

impl CacheConfig {
    /// The defaults, in `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            ..Self::default()
        }
    }

    /// Refuses settings that cannot work.
    pub fn validate(&self) -> Result<()> {
        if self.dir.as_os_str().is_empty() {
            return Err(Error::config("cache", "no directory: name one"));
        }
        if !(0.0..1.0).contains(&self.keep_free_share) {
            return Err(Error::config(
                "keep_free_share",
                "not a share of the file system: use 0 to 0.99",
            ));
        }
        let block = self.block_bytes;
        if !block.is_power_of_two() || !(LEAST_BLOCK_BYTES..=MOST_BLOCK_BYTES).contains(&block) {
            return Err(Error::config(
                "block_bytes",
                format!("{block} is not usable: use a power of two from 4KiB to 64MiB"),
            ));
        }
        if self.max_bytes.is_some_and(|most| most < 4 * block) {
            return Err(Error::config(
                "cache size",
                format!(
                    "too small to hold anything: use at least {} bytes",
                    4 * block
                ),
            ));
        }
        if self.write_behind_bytes < block {
            return Err(Error::config(
                "write_behind_bytes",
                format!("less than a block: use at least {block} bytes"),
            ));
        }
        if self.writer_threads == 0 || self.open_entries == 0 {
            return Err(Error::config(
                "writer_threads, open_entries",
                "0 can't work: use at least 1",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_work_is_refused_with_what_would() {
        CacheConfig::new("/c").validate().unwrap();
        let cases: [fn(&mut CacheConfig); 6] = [
            |config| config.dir = PathBuf::new(),
            |config| config.keep_free_share = 1.0,
            |config| config.block_bytes = 1_000_000,
            |config| config.max_bytes = Some(1),
            |config| config.write_behind_bytes = 1,
            |config| config.writer_threads = 0,
        ];
        for spoil in cases {
            let mut config = CacheConfig::new("/c");
            spoil(&mut config);
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains("use ") || error.contains("name "), "{error}");
        }
    }
}
