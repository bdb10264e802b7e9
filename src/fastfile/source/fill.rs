//! Fetches the rest of large files that are read at random: [`Coverage`] decides, this acts.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::coverage::Coverage;
use crate::cache::BlockCache;
use crate::error::Result;
use crate::fastfile::read::{OpenFile, OpenFiles};
use crate::fastfile::tree::Ino;
use crate::object::{ByteRange, ObjectMeta};

/// Large files of which it is remembered what was read; the one that was read the longest ago gives way.
const MOST_FILES: usize = 64;
/// Parts that one read may add to what waits to be fetched.
const PARTS_AT_ONCE: usize = 4;
/// Without a cache the rest of a file stays in memory until it is read, of which it may take so much.
const MEMORY_SHARE: u64 = 4;

/// The files that are read at random.
#[derive(Debug)]
pub(super) struct Fill {
    files: OpenFiles,
    cache: Option<BlockCache>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    known: HashMap<Ino, Known>,
    reads: u64,
}

#[derive(Debug)]
struct Known {
    coverage: Coverage,
    /// The read that was the last.
    last: u64,
    /// As long as it is open, so are its parts: each reader may open it anew.
    held: Option<OpenFile>,
}

impl Fill {
    pub(super) fn new(files: OpenFiles, cache: Option<BlockCache>) -> Self {
        Self {
            files,
            cache,
            state: Mutex::default(),
        }
    }

    /// A range of a file is read, by way of `file`.
    pub(super) fn read(&self, ino: Ino, object: &ObjectMeta, file: &OpenFile, range: ByteRange) {
        if range.is_empty() || !self.is_for(object.size_bytes) {
            return;
        }
        let ranges = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            self.foresee(&mut state, ino, object, range)
        };
        match ranges {
            Ok(ranges) if !ranges.is_empty() => file.prefetch(&ranges),
            _ => {}
        }
    }

    /// Large files, whose blocks have a place to wait at.
    fn is_for(&self, size_bytes: u64) -> bool {
        let config = self.files.config();
        let has_place = match &self.cache {
            Some(cache) => cache.is_storing(),
            None => size_bytes <= config.memory_bytes / MEMORY_SHARE,
        };
        config.fills && size_bytes > config.part_bytes && has_place
    }

    /// Whether what is fetched now is kept: the disk must keep up, and what was asked for before must be on its way.
    fn keeps_up(&self) -> bool {
        let cache = self.cache.as_ref();
        cache.is_none_or(BlockCache::keeps_up) && !self.files.has_hints()
    }

    fn foresee(
        &self,
        state: &mut State,
        ino: Ino,
        object: &ObjectMeta,
        range: ByteRange,
    ) -> Result<Vec<ByteRange>> {
        let config = self.files.config();
        let (block_bytes, size_bytes) = (config.block_bytes, object.size_bytes);
        state.reads += 1;
        let known = state.known.entry(ino).or_insert_with(|| Known {
            coverage: Coverage::new(
                size_bytes.div_ceil(block_bytes),
                config.part_bytes / block_bytes,
            ),
            last: 0,
            held: None,
        });
        known.last = state.reads;
        known
            .coverage
            .read(range.start / block_bytes..range.end.div_ceil(block_bytes));
        let mut ranges = Vec::new();
        if self.keeps_up() {
            ranges = known.coverage.foresee(PARTS_AT_ONCE);
        }
        if !ranges.is_empty() && known.held.is_none() && self.cache.is_some() {
            known.held = Some(self.files.open(object.id.clone())?);
        }
        state.make_room();
        let bytes = |at: u64| at.saturating_mul(block_bytes).min(size_bytes);
        let ranges = ranges.into_iter();
        Ok(ranges
            .map(|run| ByteRange::new(bytes(run.start), bytes(run.end)))
            .collect())
    }
}

impl State {
    fn make_room(&mut self) {
        while self.known.len() > MOST_FILES {
            let oldest = self.known.iter().min_by_key(|(_, known)| known.last);
            let Some(oldest) = oldest.map(|(ino, _)| *ino) else {
                return;
            };
            self.known.remove(&oldest);
        }
    }
}
