//! One version of one object in the cache, and the form of it that is whole.

use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use bytes::Bytes;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::blocks::{Bitmap, Blocks, Record, Standing, crc32c};
use super::core::Core;
use super::fail;
use super::flight::Local;
use super::fork::PerProcess;
use super::head::{CHECKSUM_AT, CHECKSUM_BYTES, USED_AT, decode_checksum, encode_checksum};
use super::policy;
use super::store::{self, Files};
use crate::checksum::Checksum;
use crate::error::{Error, Result};
use crate::object::ByteRange;

/// What became of bytes that were offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Published {
    /// They are stored.
    Stored,
    /// There is no room for them, or the entry can't be written to.
    Declined,
}

/// An object in the cache: a sparse file, of which some blocks are there.
///
/// It stays readable while it is held, even when it is evicted or the whole directory is removed.
pub struct Entry {
    core: Arc<Core>,
    /// Where it was when it was opened.
    dir: PathBuf,
    data: File,
    map: File,
    is_writable: bool,
    blocks: Blocks,
    records_at: u64,
    /// Blocks that this process knows to be there: they stay there, whatever others do.
    trusted: Bitmap,
    /// Blocks that the disk could not give back.
    unreadable: Bitmap,
    is_whole: AtomicBool,
    used_at: AtomicU64,
    local: PerProcess<Local>,
}

impl Entry {
    pub(super) fn new(core: Arc<Core>, files: Files) -> Arc<Self> {
        let blocks = files.head.blocks;
        let map_path = files.dir.join("map");
        // A child of a fork opens the file anew: locks belong to the open file, and this one is shared with the parent.
        // By way of the inherited descriptor, because another entry may have taken the place since.
        let fd = std::os::fd::AsRawFd::as_raw_fd(&files.map);
        let is_writable = files.is_writable;
        let lease = move || {
            let same = format!("/proc/self/fd/{fd}");
            let open = |path: &Path| File::options().read(true).write(true).open(path).ok();
            let file = is_writable.then(|| open(Path::new(&same)).or_else(|| open(&map_path)));
            Local::new(file.flatten())
        };
        Arc::new(Self {
            used_at: AtomicU64::new(store::used_at(&files.map).unwrap_or(0)),
            records_at: files.head.records_at(),
            core,
            dir: files.dir,
            data: files.data,
            map: files.map,
            is_writable,
            blocks,
            trusted: Bitmap::new(blocks.count()),
            unreadable: Bitmap::new(blocks.count()),
            is_whole: AtomicBool::new(false),
            local: PerProcess::new(lease),
        })
    }

    /// The object's length.
    pub fn size_bytes(&self) -> u64 {
        self.blocks.size_bytes
    }

    /// The length of all blocks but the last.
    pub fn block_bytes(&self) -> u64 {
        self.blocks.block_bytes
    }

    pub(super) fn blocks(&self) -> Blocks {
        self.blocks
    }

    pub(super) fn local(&self) -> &Local {
        self.local.get()
    }

    pub(super) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// Whether the cache still leads others to it.
    pub(super) fn is_linked(&self) -> bool {
        store::is_linked(&self.data)
    }

    /// Reads from `offset` as many bytes as are there without a gap, and says how many. Blocks that another boot has
    /// stored are compared with their checksums first. What the disk fails to read is not there. Blocks.
    pub fn read_present(&self, offset: u64, into: &mut [u8]) -> usize {
        let end = offset.saturating_add(into.len() as u64);
        let wanted = ByteRange::new(offset, end.min(self.size_bytes()));
        self.refresh(self.blocks.touching(wanted));
        let mut at = offset;
        while at < wanted.end {
            let into = &mut into[(at - offset) as usize..(wanted.end - offset) as usize];
            let n = match self.read_pending(at, into) {
                0 => self.read_disk(at, wanted.end, into),
                n => n,
            };
            if n == 0 {
                break;
            }
            at += n as u64;
        }
        at.min(wanted.end).saturating_sub(offset) as usize
    }

    /// From memory: a block that waits to be written.
    fn read_pending(&self, at: u64, into: &mut [u8]) -> usize {
        let block = self.blocks.at(at);
        if self.is_trusted(block) {
            return 0;
        }
        let Some(bytes) = self.local().tables().pending.get(&block).cloned() else {
            return 0;
        };
        let bytes = &bytes[(at - self.blocks.start(block)) as usize..];
        let n = bytes.len().min(into.len());
        into[..n].copy_from_slice(&bytes[..n]);
        n
    }

    fn read_disk(&self, at: u64, end: u64, into: &mut [u8]) -> usize {
        let blocks = self.blocks.touching(ByteRange::new(at, end));
        let until = blocks.clone().find(|block| !self.is_trusted(*block));
        let until = self.blocks.start(until.unwrap_or(blocks.end)).min(end);
        let n = until.saturating_sub(at) as usize;
        if n == 0 {
            return 0;
        }
        match self.data.read_exact_at(&mut into[..n], at) {
            Ok(()) => n,
            Err(error) => {
                self.core.failed("read", &error);
                // Which of them it was, shows when they are read one by one.
                self.read_one_by_one(blocks.start..self.blocks.at(until - 1) + 1);
                self.read_first(at, &mut into[..n])
            }
        }
    }

    /// What `into` has room for of the block at `at`, after a longer read has failed. Whoever asks again gets on: it is
    /// read now, or counts as unreadable.
    fn read_first(&self, at: u64, into: &mut [u8]) -> usize {
        let block = self.blocks.at(at);
        if !self.is_trusted(block) {
            return 0;
        }
        let n = into.len().min((self.blocks.start(block + 1) - at) as usize);
        if self.data.read_exact_at(&mut into[..n], at).is_err() {
            self.unreadable.set(block);
            return 0;
        }
        n
    }

    fn read_one_by_one(&self, blocks: Range<u64>) {
        for block in blocks {
            if self.read_block(block).is_err() {
                self.unreadable.set(block);
            }
        }
    }

    fn read_block(&self, block: u64) -> io::Result<Vec<u8>> {
        let range = self.blocks.bytes(block..block + 1);
        let mut bytes = vec![0; range.len() as usize];
        self.data.read_exact_at(&mut bytes, range.start)?;
        Ok(bytes)
    }

    fn is_trusted(&self, block: u64) -> bool {
        self.trusted.has(block) && !self.unreadable.has(block)
    }

    /// Whether a block can be read, from disk or memory, as far as this process knows.
    pub(super) fn is_at_hand(&self, block: u64) -> bool {
        self.is_trusted(block) || self.local().tables().pending.contains_key(&block)
    }

    /// Learns what others have stored since. Blocks of another boot are verified, and recorded anew if they are sound.
    pub(super) fn refresh(&self, blocks: Range<u64>) {
        let Some(first) = self.trusted.first_unset(blocks.clone()) else {
            return;
        };
        for (block, record) in (first..blocks.end).zip(self.records(first..blocks.end)) {
            if self.trusted.has(block) {
                continue;
            }
            match record.standing(self.core.store.boot) {
                Standing::Absent => {}
                Standing::Present => self.trusted.set(block),
                Standing::Suspect => self.verify(block, record),
            }
        }
    }

    /// None of what can't be read.
    fn records(&self, blocks: Range<u64>) -> Vec<Record> {
        let mut bytes = vec![0; (blocks.end - blocks.start) as usize * Record::LEN];
        match self
            .map
            .read_exact_at(&mut bytes, self.record_at(blocks.start))
        {
            Ok(()) => Record::all(&bytes).collect(),
            Err(error) => {
                self.core.failed("read", &error);
                Vec::new()
            }
        }
    }

    fn record_at(&self, block: u64) -> u64 {
        self.records_at + block * Record::LEN as u64
    }

    fn verify(&self, block: u64, record: Record) {
        match self.read_block(block) {
            Ok(bytes) if record.agrees_with(&bytes) => {
                let ours = Record::of(self.core.store.boot, crc32c(&bytes));
                if self.is_writable {
                    // If it fails, the next process verifies it again.
                    let _ = self
                        .map
                        .write_all_at(&ours.to_bytes(), self.record_at(block));
                }
                self.trusted.set(block);
                self.core.metrics.cache_blocks_verified.add(1);
            }
            Ok(_) => self.core.metrics.cache_blocks_bad.add(1),
            Err(error) => self.core.failed("read", &error),
        }
    }

    /// The part of `range`, from its start, that can be read without fetching.
    pub fn present(&self, range: ByteRange) -> ByteRange {
        let range = ByteRange::new(range.start, range.end.min(self.size_bytes()));
        let blocks = self.blocks.touching(range);
        self.refresh(blocks.clone());
        let end = match blocks.clone().find(|block| !self.is_at_hand(*block)) {
            Some(missing) => self.blocks.start(missing),
            None => range.end,
        };
        ByteRange::new(range.start, end)
    }

    /// Whether every block is on the disk. A look at the records; after a reboot, what was not read since does not count.
    pub fn is_complete(&self) -> bool {
        if self.is_whole.load(Relaxed) {
            return true;
        }
        let all = 0..self.blocks.count();
        let boot = self.core.store.boot;
        if let Some(first) = self.trusted.first_unset(all.clone()) {
            for (block, record) in (first..all.end).zip(self.records(first..all.end)) {
                if record.standing(boot) == Standing::Present {
                    self.trusted.set(block);
                }
            }
        }
        let is_whole = all.into_iter().all(|block| self.is_trusted(block));
        self.is_whole.store(is_whole, Relaxed);
        is_whole
    }

    /// The entry as a whole file that may be mapped, if every block is there; `None` otherwise, and when it was evicted.
    ///
    /// After a reboot this reads and verifies all of it. Blocks.
    pub fn complete(self: &Arc<Self>) -> Option<CompleteEntry> {
        if !self.is_complete() {
            let all = 0..self.blocks.count();
            let records = self.records(all.clone());
            let absent =
                |record: &Record| record.standing(self.core.store.boot) == Standing::Absent;
            if records.len() as u64 != self.blocks.count() || records.iter().any(absent) {
                return None;
            }
            self.refresh(all);
            if !self.is_complete() {
                return None;
            }
        }
        CompleteEntry::open(self).ok()
    }

    /// Keeps eviction away.
    ///
    /// # Errors
    /// `NotFound` when it has been evicted already: [`BlockCache::entry`](super::BlockCache::entry) makes it anew.
    pub fn hold(&self) -> io::Result<Hold> {
        let file = File::open(self.dir.join("data"))?;
        // Without locks eviction may take its name away, and nothing else. A lock that is held for writing is eviction's.
        if flock(&file, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK) {
            return Err(io::Error::from(io::ErrorKind::NotFound));
        }
        let (ours, there) = (self.data.metadata()?, file.metadata()?);
        // It may have been evicted, and made anew, before it was locked.
        if there.nlink() == 0 || (ours.dev(), ours.ino()) != (there.dev(), there.ino()) {
            return Err(io::Error::from(io::ErrorKind::NotFound));
        }
        Ok(Hold(file))
    }

    /// Stores whole blocks from `offset` on, the object's last one up to its end.
    ///
    /// The data is written first, then the records: a process that dies in between has stored nothing, and none that
    /// reads sees a record before its data. An error leaves the entry as it was.
    pub fn publish(&self, offset: u64, bytes: &[u8]) -> Result<Published> {
        let range = ByteRange::new(offset, offset.saturating_add(bytes.len() as u64));
        let blocks = self.blocks.inside(range);
        if range.is_empty() || self.blocks.bytes(blocks.clone()) != range {
            return Err(Error::config(
                "publish",
                format!("{range} is not whole blocks of {}", self.block_bytes()),
            ));
        }
        if !self.is_writable || !self.core.admit(range.len()) {
            return Ok(Published::Declined);
        }
        self.write(blocks, offset, bytes)
            .map_err(|error| Error::io(self.dir.join("data"), error))?;
        self.core.ledger.update(|totals| {
            totals.used_bytes = totals.used_bytes.saturating_add(range.len());
        });
        self.core.metrics.cache_written_bytes.add(range.len());
        Ok(Published::Stored)
    }

    fn write(&self, blocks: Range<u64>, offset: u64, bytes: &[u8]) -> io::Result<()> {
        fail::point("publish: begun");
        let (half, rest) = bytes.split_at(if cfg!(test) { bytes.len() / 2 } else { 0 });
        // In two steps for the tests, which die between them.
        if !half.is_empty() {
            self.data.write_all_at(half, offset)?;
        }
        fail::point("publish: half of the data");
        self.data.write_all_at(rest, offset + half.len() as u64)?;
        fail::point("publish: data");
        let boot = self.core.store.boot;
        let records = bytes.chunks(self.block_bytes() as usize);
        let records: Vec<u8> = records
            .flat_map(|block| Record::of(boot, crc32c(block)).to_bytes())
            .collect();
        let record_at = self.record_at(blocks.start);
        let torn = if cfg!(test) { 3 } else { 0 };
        if torn > 0 {
            self.map.write_all_at(&records[..torn], record_at)?;
            fail::point("publish: part of a record");
        }
        self.map.write_all_at(&records, record_at)?;
        fail::point("publish: records");
        for block in blocks {
            self.trusted.set(block);
        }
        Ok(())
    }

    /// Keeps blocks in memory until they are written, so that they are read from there.
    pub(super) fn keep_pending(&self, blocks: Range<u64>, bytes: &Bytes) {
        let start = self.blocks.start(blocks.start);
        let mut tables = self.local().tables();
        for block in blocks {
            let range = self.blocks.bytes(block..block + 1);
            let slice = bytes.slice((range.start - start) as usize..(range.end - start) as usize);
            tables.pending.insert(block, slice);
        }
    }

    pub(super) fn forget_pending(&self, blocks: Range<u64>) {
        let mut tables = self.local().tables();
        for block in blocks {
            tables.pending.remove(&block);
        }
    }

    /// Notes that it is in use. Cheap, except once in a while.
    pub(super) fn touch(&self) {
        let clock = self.core.clock();
        let before = self.used_at.load(Relaxed);
        let distance = clock.abs_diff(before);
        let gap = policy::pass_gap(self.core.capacity_bytes(), self.size_bytes());
        if distance < gap {
            return;
        }
        let swapped = self
            .used_at
            .compare_exchange(before, clock, Relaxed, Relaxed);
        if swapped.is_ok() && self.is_writable {
            // Another process may have used it since.
            let before = store::used_at(&self.map).unwrap_or(before);
            let _ = self.map.write_all_at(&clock.to_le_bytes(), USED_AT);
            if let Some(distance) = clock
                .checked_sub(before)
                .filter(|distance| *distance >= gap)
            {
                self.core.learn(distance, self.size_bytes());
            }
        }
    }

    /// The whole object's CRC, if a server has told it.
    pub fn checksum(&self) -> Option<Checksum> {
        let mut bytes = [0; CHECKSUM_BYTES];
        self.map.read_exact_at(&mut bytes, CHECKSUM_AT).ok()?;
        decode_checksum(bytes)
    }

    pub(super) fn set_checksum(&self, checksum: Checksum) {
        if self.is_writable && self.checksum() != Some(checksum) {
            let _ = self
                .map
                .write_all_at(&encode_checksum(checksum), CHECKSUM_AT);
        }
    }

    /// Compares every stored block with its checksum; gives how many agree and which do not. Those are taken out.
    pub(super) fn audit(&self) -> (u64, Vec<u64>) {
        let (mut sound, mut bad) = (0, Vec::new());
        for (block, record) in (0..).zip(self.records(0..self.blocks.count())) {
            if record.standing(self.core.store.boot) == Standing::Absent {
                continue;
            }
            if self
                .read_block(block)
                .is_ok_and(|bytes| record.agrees_with(&bytes))
            {
                sound += 1;
                continue;
            }
            bad.push(block);
            if self.is_writable {
                let _ = self
                    .map
                    .write_all_at(&Record::ABSENT, self.record_at(block));
            }
        }
        (sound, bad)
    }

    /// Takes it out of the cache, because what it holds is wrong.
    pub(super) fn discard(&self) {
        // Another one may have taken its place.
        if self.is_linked() && self.core.store.remove(&self.dir).is_ok() {
            self.core.evictions.fetch_add(1, Relaxed);
        }
        tracing::warn!(entry = %self.dir.display(), "the disk has other bytes than it was given; the entry is removed");
    }

    /// How many blocks are recorded.
    pub(super) fn stored_blocks(&self) -> u64 {
        let boot = self.core.store.boot;
        let records = self.records(0..self.blocks.count());
        records
            .iter()
            .filter(|record| record.standing(boot) != Standing::Absent)
            .count() as u64
    }
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Entry({}, {} bytes)",
            self.dir.display(),
            self.size_bytes()
        )
    }
}

/// As long as it lives, eviction leaves an entry alone.
#[derive(Debug)]
pub struct Hold(File);

/// An entry whose every block is there: the only form that can be mapped or handed to the kernel.
///
/// A mapping of a file with holes would show zeros where bytes are missing. As long as it is held, eviction leaves the
/// entry alone.
#[derive(Debug, Clone)]
pub struct CompleteEntry {
    entry: Arc<Entry>,
    /// Open for reading only, and locked.
    file: Arc<File>,
}

impl CompleteEntry {
    fn open(entry: &Arc<Entry>) -> io::Result<Self> {
        let Hold(file) = entry.hold()?;
        Ok(Self {
            entry: entry.clone(),
            file: Arc::new(file),
        })
    }

    /// The object's bytes as a file, open for reading.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where that file is. It must not be written to.
    pub fn path(&self) -> PathBuf {
        self.entry.dir.join("data")
    }

    /// The object's length.
    pub fn size_bytes(&self) -> u64 {
        self.entry.size_bytes()
    }

    /// Maps it into memory, read-only.
    ///
    /// A page that the disk can't read raises SIGBUS, as with every mapping of a file.
    #[expect(unsafe_code, reason = "mapping a file")]
    pub fn mmap(&self) -> Result<Mapping> {
        // A mapping of nothing is an error.
        let map = match self.size_bytes() {
            0 => None,
            // SAFETY: the cache never truncates or punches a file and writes a block again only with the same bytes; that
            // nobody else writes to the cache's directory is its documented condition.
            _ => Some(
                unsafe { memmap2::Mmap::map(&*self.file) }
                    .map_err(|error| Error::io(self.path(), error))?,
            ),
        };
        Ok(Mapping {
            map,
            _keeps: self.clone(),
        })
    }
}

/// A whole object in memory that is the page cache's.
#[derive(Debug)]
pub struct Mapping {
    map: Option<memmap2::Mmap>,
    _keeps: CompleteEntry,
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }
}

impl AsRef<[u8]> for Mapping {
    fn as_ref(&self) -> &[u8] {
        self
    }
}
