//! A cache of objects on local disk, shared by any number of processes.
//!
//! # How it works
//!
//! One version of one object is an *entry*: a sparse file of the object's length, and beside it a record of eight bytes
//! per block (1 MiB) that says whether the block is there and what its CRC32C is. Which version, is part of the entry's
//! name: bucket, key, ETag (or version) and size are hashed. So nothing is ever invalidated; a changed object is another
//! entry, and the old one is evicted in time.
//!
//! **Never a wrong byte.** A block's data is written before its record. A process that is killed at any point leaves what
//! the kernel has taken over, and the kernel keeps that: no `fsync` is needed. After a crash of the machine a record may
//! have reached the disk without its data. So records carry the boot in which they were written, and a block from another
//! boot is compared with its CRC before the first byte of it is served.
//!
//! **Each block is fetched once per host.** Who fetches a block holds a lock on a byte that stands for it, which dies
//! with the process; the others wait for the block, not for the lock (see `flight`). On file systems without such
//! locks some blocks are fetched twice, and stored twice with the same bytes.
//!
//! **The disk slows nothing and fails nothing.** Readers get what was fetched from memory, and threads of the cache write it
//! behind their back from a queue that has a limit. If the disk is slow, full, read-only, broken or gone, blocks are not
//! stored, which is counted and said once; the bytes are then fetched again. Records are read and written with system
//! calls and not through a mapping, because a mapping answers a failing disk with SIGBUS.
//!
//! **It has a limit,** in bytes and in free disk. Whole entries are evicted, but none that was used within about an
//! epoch; while there are no others, new objects are not stored: [`policy`] says why that beats LRU, and by how much.
//!
//! # What limits it
//!
//! A hit costs a copy out of the page cache and a trip to another thread. A miss costs a copy into the queue and one
//! into the page cache, beside the fetch. A small object takes 12 KiB beside its bytes and about 15 system calls to
//! store. A random read fetches a whole block.
//!
//! After a fork the child makes its own tables, threads and locks; entries that it inherited go on working.
//!
//! ```
//! # use std::sync::Arc;
//! use standpipe::cache::{BlockCache, CacheConfig, CachedClient};
//! use standpipe::client::{MemoryClient, ObjectClient};
//! # use standpipe::{buffer::PartBuf, metrics::Metrics, object::ByteRange};
//! # let dir = tempfile::tempdir().unwrap();
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! let client = MemoryClient::default();
//! client.put("memory://bucket/key".parse()?, "kept");
//! let cache = BlockCache::open(CacheConfig::new(dir.path()), Arc::new(Metrics::default()))?;
//! let client = CachedClient::new(Arc::new(client), cache.clone());
//!
//! let id = client.head(&"memory://bucket/key".parse()?).await?.id;
//! client.get(&id, ByteRange::new(0, 4), &mut PartBuf::heap(4)).await?;
//! cache.flush(std::time::Duration::from_secs(10));
//! let entry = cache.entry(&id)?.expect("it has just been stored");
//! assert_eq!(&entry.complete().expect("all of it").mmap()?[..], b"kept");
//! # Ok::<(), standpipe::error::Error>(()) }).unwrap();
//! ```

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::metrics::Metrics;
use crate::object::ObjectId;

mod blocks;
mod client;
mod config;
mod core;
mod entry;
mod fail;
mod flight;
mod fork;
mod ghosts;
mod head;
mod lease;
mod ledger;
pub mod policy;
mod store;
mod writer;

pub use client::CachedClient;
pub use config::CacheConfig;
pub use entry::{CompleteEntry, Entry, Hold, Mapping, Published};

use blocks::Blocks;
use core::Core;
use fork::PerProcess;
use ghosts::Ghosts;
use head::{Digest, Head, Identity};
use store::Look;
use writer::{Room, Writers};

/// How long open entries are used without a look whether they were evicted: 256 `fstat`s take 50 us.
const RECHECK: Duration = Duration::from_secs(1);

/// A directory of objects. Clones share it; so do other processes that open it.
#[derive(Debug, Clone)]
pub struct BlockCache {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    core: Arc<Core>,
    own: PerProcess<Own>,
}

/// What belongs to one process.
#[derive(Debug)]
struct Own {
    table: Mutex<HashMap<Digest, Handle>>,
    ghosts: Mutex<Ghosts>,
    writers: Writers,
    /// When the table was last searched for evicted entries, and `Core::evictions` at that time.
    searched: Mutex<(Instant, u64)>,
}

#[derive(Debug)]
struct Handle {
    entry: Arc<Entry>,
    looked_up: Instant,
}

/// What a look that does not wait has seen of an object.
#[derive(Debug)]
pub enum Glance {
    /// A file that holds it whole, as [`BlockCache::whole_file`] gives it.
    Whole(File),
    /// Something of it is missing.
    NotWhole,
    /// The disk would have to be asked.
    Unknown,
}

/// What is in a cache.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct CacheStat {
    /// Objects of which something is stored.
    pub entries: u64,
    /// Those of them that are there to the last block.
    pub complete_entries: u64,
    /// Bytes of disk, overheads included.
    pub disk_bytes: u64,
    /// Bytes of objects.
    pub stored_bytes: u64,
    /// Blocks.
    pub blocks: u64,
    /// Entries that can't be read.
    pub damaged_entries: u64,
    /// What it may take now.
    pub capacity_bytes: u64,
    /// The size of a block.
    pub block_bytes: u64,
}

/// What a verification found.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct CacheAudit {
    /// Entries looked at.
    pub entries: u64,
    /// Blocks that agree with their checksum.
    pub sound_blocks: u64,
    /// Blocks that don't. They were taken out, and are fetched again when they are wanted.
    pub bad_blocks: u64,
    /// Entries that can't be read. They were removed.
    pub damaged_entries: u64,
}

/// What was removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Removed {
    /// Entries.
    pub entries: u64,
    /// Bytes of disk.
    pub bytes: u64,
    /// Entries that somebody holds: a mapping, or the kernel.
    pub kept_entries: u64,
}

impl BlockCache {
    /// Opens the cache in the config's directory, or makes one in an empty directory.
    ///
    /// A directory of another format, or one that holds something else, is refused.
    pub fn open(config: CacheConfig, metrics: Arc<Metrics>) -> Result<Self> {
        let core = Core::open(config, metrics)?;
        let (most, threads) = (core.config.write_behind_bytes, core.config.writer_threads);
        let own = PerProcess::new(move || Own {
            table: Mutex::default(),
            ghosts: Mutex::default(),
            writers: Writers::new(most, threads),
            searched: Mutex::new((Instant::now(), 0)),
        });
        Ok(Self {
            shared: Arc::new(Shared { core, own }),
        })
    }

    /// Its settings; the block size is that of the directory.
    pub fn config(&self) -> &CacheConfig {
        &self.shared.core.config
    }

    /// What is fetched and stored at a time, in this directory.
    pub fn block_bytes(&self) -> u64 {
        self.shared.core.store.block_bytes
    }

    pub(self) fn metrics(&self) -> &Metrics {
        &self.shared.core.metrics
    }

    /// The entry of an object: opened, or made.
    ///
    /// `None` when the object is not pinned to a size and a strong ETag or a version, when it is not there and the cache
    /// has no room for new ones, and when the disk fails. Then the object is read without the cache. Blocks.
    pub fn entry(&self, id: &ObjectId) -> Result<Option<Arc<Entry>>> {
        let core = &self.shared.core;
        let Some(head) = self.head(id) else {
            return Ok(None);
        };
        let digest = head.identity.digest();
        self.forget_evicted();
        if let Some(entry) = self.known(digest) {
            entry.touch();
            return Ok(Some(entry));
        }
        let files = match core.store.find(digest, &head) {
            Ok(Some(files)) => Ok(files),
            Ok(None) if self.turns_away(digest, head.blocks.size_bytes) => return Ok(None),
            Ok(None) => core.store.make(digest, head, core.clock()),
            Err(error) => Err(error),
        };
        match files {
            Ok(files) => {
                let entry = Entry::new(core.clone(), files);
                entry.touch();
                Ok(Some(self.keep(digest, entry)))
            }
            Err(error) => {
                core.failed("open an entry", &error);
                Ok(None)
            }
        }
    }

    /// A file that holds the object whole, open for reading; `None` when something of it is missing. Nothing is made. As long
    /// as the file is open, by whomever, eviction leaves it alone. After a reboot the blocks are verified first. Blocks.
    pub fn whole_file(&self, id: &ObjectId) -> Option<File> {
        let core = &self.shared.core;
        let head = self.head(id)?;
        let digest = head.identity.digest();
        self.forget_evicted();
        let entry = match self.known(digest) {
            // It knows what the disk has failed to read.
            Some(entry) => entry,
            None => match core.store.find_whole(digest, &head, Look::Patient) {
                Ok(Some((file, used_at))) => {
                    let gap = policy::pass_gap(core.capacity_bytes(), head.blocks.size_bytes);
                    if core.clock().abs_diff(used_at) >= gap {
                        // Notes the use.
                        let _ = self.entry(id);
                    }
                    return Some(file);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
                // Suspect, damaged, partly there: whoever opens it looks closer.
                _ => self.entry(id).ok()??,
            },
        };
        entry.touch();
        entry.complete()?.file().try_clone().ok()
    }

    /// The same, as far as it can be told without waiting for the disk. Does not block.
    pub fn glance(&self, id: &ObjectId) -> Glance {
        let core = &self.shared.core;
        let Some(head) = self.head(id) else {
            return Glance::NotWhole;
        };
        let digest = head.identity.digest();
        // What is open here may know more than the disk does.
        if lock(&self.own().table).contains_key(&digest) {
            return Glance::Unknown;
        }
        match core.store.find_whole(digest, &head, Look::AtOnce) {
            Ok(Some((file, used_at))) => {
                let gap = policy::pass_gap(core.capacity_bytes(), head.blocks.size_bytes);
                match core.clock().abs_diff(used_at) < gap {
                    true => Glance::Whole(file),
                    // The use is to be noted.
                    false => Glance::Unknown,
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Glance::NotWhole,
            _ => Glance::Unknown,
        }
    }

    fn head(&self, id: &ObjectId) -> Option<Head> {
        let identity = Identity::of(id, &self.config().namespace)?;
        let blocks = Blocks {
            size_bytes: id.size_bytes?,
            block_bytes: self.block_bytes(),
        };
        Some(Head { identity, blocks })
    }

    /// Whether no new entry is to be made. The use is remembered: it tells how long an epoch is.
    fn turns_away(&self, digest: Digest, size_bytes: u64) -> bool {
        let core = &self.shared.core;
        let (clock, gap) = (
            core.clock(),
            policy::pass_gap(core.capacity_bytes(), size_bytes),
        );
        let before = lock(&self.own().ghosts).used(digest.bits(), clock);
        if let Some(distance) = before.map(|before| clock.saturating_sub(before))
            && distance >= gap
        {
            core.learn(distance, size_bytes);
        }
        !self.is_storing()
    }

    fn own(&self) -> &Own {
        self.shared.own.get()
    }

    /// An entry that is open in this process.
    fn known(&self, digest: Digest) -> Option<Arc<Entry>> {
        let mut table = lock(&self.own().table);
        let handle = table.get_mut(&digest)?;
        if !handle.entry.is_linked() {
            table.remove(&digest);
            return None;
        }
        handle.looked_up = Instant::now();
        Some(handle.entry.clone())
    }

    /// Keeps an entry open. Another thread may have done so first.
    fn keep(&self, digest: Digest, entry: Arc<Entry>) -> Arc<Entry> {
        let mut table = lock(&self.own().table);
        if table.len() >= self.config().open_entries && !table.contains_key(&digest) {
            let unused = table
                .iter()
                .filter(|(_, handle)| Arc::strong_count(&handle.entry) == 1);
            let oldest = unused.min_by_key(|(_, handle)| handle.looked_up);
            if let Some(oldest) = oldest.map(|(digest, _)| *digest) {
                table.remove(&oldest);
            }
        }
        let fresh = Handle {
            entry,
            looked_up: Instant::now(),
        };
        let handle = table.entry(digest).or_insert(fresh);
        handle.entry.clone()
    }

    /// Closes entries that were evicted, here or by another process: their space is free only then.
    fn forget_evicted(&self) {
        let evictions = self.shared.core.evictions.load(Relaxed);
        let mut searched = lock(&self.own().searched);
        if searched.1 == evictions && searched.0.elapsed() < RECHECK {
            return;
        }
        *searched = (Instant::now(), evictions);
        drop(searched);
        lock(&self.own().table).retain(|_, handle| handle.entry.is_linked());
    }

    /// Whether blocks are stored now: the disk works, and there is room as far as this process knows.
    pub fn is_storing(&self) -> bool {
        let core = &self.shared.core;
        !(core.is_sick() || core.is_frozen())
    }

    /// Whether the disk keeps up: less than half of what may wait to be written does.
    pub fn keeps_up(&self) -> bool {
        self.own().writers.keep_up()
    }

    fn tick(&self, bytes: u64) {
        self.shared.core.tick(bytes);
    }

    /// Room in the queue for bytes that are worth storing.
    fn room(&self, bytes: u64) -> Option<Room> {
        let core = &self.shared.core;
        if core.is_sick() {
            core.metrics.cache_dropped_bytes.add(bytes);
            return None;
        }
        let room = self.own().writers.room(bytes);
        if room.is_none() {
            core.metrics.cache_dropped_bytes.add(bytes);
        }
        room
    }

    /// Gives fetched blocks to who waits for them and, if there is room, to the threads that write.
    fn store(&self, claim: flight::Claim, bytes: Option<Bytes>, room: Option<Room>) {
        let blocks = claim.blocks.clone();
        match (bytes, room) {
            (Some(bytes), Some(room)) => {
                // In memory before they leave the table of flights: at no moment are they nowhere.
                claim.lease.entry().keep_pending(blocks.clone(), &bytes);
                let lease = claim.land(Some(bytes.clone()));
                self.own().writers.write(lease, blocks, bytes, room);
            }
            (bytes, _) => drop(claim.land(bytes)),
        }
    }

    /// Waits until everything that was fetched is written; `false` if that took longer than `patience`.
    pub fn flush(&self, patience: Duration) -> bool {
        self.own().writers.flush(patience)
    }

    /// Counts what is there. Looks at every entry. Blocks.
    pub fn stat(&self) -> Result<CacheStat> {
        let core = &self.shared.core;
        let mut stat = CacheStat {
            block_bytes: self.block_bytes(),
            ..CacheStat::default()
        };
        for found in core.store.scan() {
            stat.disk_bytes += found.disk_bytes;
            match store::open_found(&found.dir) {
                Ok(files) => stat.count(&Entry::new(core.clone(), files)),
                // Evicted a moment ago.
                Err(_) if !found.dir.exists() => {}
                Err(_) => stat.damaged_entries += 1,
            }
        }
        core.ledger
            .update(|totals| totals.used_bytes = stat.disk_bytes);
        core.admit(0);
        stat.capacity_bytes = core.capacity_bytes();
        Ok(stat)
    }

    /// Reads everything that is stored and compares it with its checksums. What is wrong is removed. Blocks.
    pub fn verify(&self) -> Result<CacheAudit> {
        let core = &self.shared.core;
        let mut audit = CacheAudit::default();
        for found in core.store.scan() {
            match store::open_found(&found.dir) {
                Ok(files) => {
                    let (sound, bad) = Entry::new(core.clone(), files).audit();
                    audit.entries += 1;
                    audit.sound_blocks += sound;
                    audit.bad_blocks += bad.len() as u64;
                    if !bad.is_empty() {
                        tracing::warn!(entry = %found.dir.display(), blocks = ?bad, "blocks that were damaged");
                    }
                }
                Err(_) if !found.dir.exists() => {}
                Err(reason) => {
                    audit.damaged_entries += 1;
                    tracing::warn!(entry = %found.dir.display(), "an entry that is damaged: {reason}");
                    core.store.remove_if_unused(&found.dir);
                }
            }
        }
        Ok(audit)
    }

    /// Removes every entry that nobody holds. Blocks.
    pub fn clear(&self) -> Result<Removed> {
        self.evict(0)
    }

    /// Removes entries until they take at most `bytes`: first those of datasets that are not read any more, then any.
    /// Blocks.
    pub fn evict(&self, bytes: u64) -> Result<Removed> {
        let core = &self.shared.core;
        let io = |error| Error::io(core.store.root(), error);
        let before = self.count().map_err(io)?;
        core.make_room(0, before.1.saturating_sub(bytes))
            .map_err(io)?;
        self.forget_evicted();
        let after = self.count().map_err(io)?;
        Ok(Removed {
            entries: before.0.saturating_sub(after.0),
            bytes: before.1.saturating_sub(after.1),
            kept_entries: if after.1 > bytes { after.0 } else { 0 },
        })
    }

    fn count(&self) -> std::io::Result<(u64, u64)> {
        let mut count = (0, 0);
        for found in self.shared.core.store.scan() {
            count = (count.0 + 1, count.1 + found.disk_bytes);
        }
        Ok(count)
    }
}

impl CacheStat {
    fn count(&mut self, entry: &Entry) {
        let (blocks, all) = (entry.stored_blocks(), entry.blocks().count());
        self.entries += 1;
        self.blocks += blocks;
        self.complete_entries += u64::from(blocks == all);
        self.stored_bytes += match blocks == all {
            true => entry.size_bytes(),
            false => blocks * entry.block_bytes(),
        };
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
