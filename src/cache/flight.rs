//! One fetch per block and host: within the process by a table, among processes by locks.
//!
//! Who wants a block that is not there *claims* it: first in the entry's table, where others of the process find it and
//! wait for its bytes, then by a lock on one byte of the entry's `map`, far behind its end, which other processes try in
//! vain. The lock is held until the block is stored, or is known not to be; it dies with its holder. Who can't have it
//! looks again, ever less often, and after [`claim_patience`](super::CacheConfig::claim_patience) fetches the block
//! without: the same bytes are then stored twice, which is harmless.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::watch;

use super::entry::Entry;
use super::lease::{self, Lock};

/// Where the bytes that stand for blocks begin in a `map` file: behind any length that it can have.
const CLAIMS_AT: u64 = 1 << 60;

/// What a fetch brought: bytes from an offset on. `None` inside: they are not kept, look elsewhere.
pub(super) type Landed = Option<(u64, Bytes)>;

/// The part of an entry that belongs to one process.
#[derive(Debug)]
pub(super) struct Local {
    /// An open file of its own, because locks belong to it; `None` when the file can't be written to.
    lease: Option<File>,
    tables: Mutex<Tables>,
}

#[derive(Debug, Default)]
pub(super) struct Tables {
    /// Blocks that this process is fetching.
    flights: HashMap<u64, watch::Receiver<Landed>>,
    /// Blocks that have come and are not yet on the disk.
    pub(super) pending: HashMap<u64, Bytes>,
}

impl Local {
    pub(super) fn new(lease: Option<File>) -> Self {
        Self {
            lease,
            tables: Mutex::default(),
        }
    }

    pub(super) fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whose turn it is to fetch a block.
#[derive(Debug)]
pub(super) enum Turn {
    Mine(Claim),
    /// Somebody in this process is at it.
    Here(watch::Receiver<Landed>),
    /// Another process is.
    Elsewhere,
    /// It is there by now.
    Done,
}

/// Blocks in a row that nobody else fetches.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) blocks: Range<u64>,
    pub(super) lease: Lease,
    flight: Flight,
}

/// The lock on claimed blocks; goes with their bytes to the thread that writes.
#[derive(Debug)]
pub(super) struct Lease {
    entry: Arc<Entry>,
    locked: Range<u64>,
}

/// The entry in the process's table.
#[derive(Debug)]
struct Flight {
    entry: Arc<Entry>,
    blocks: Range<u64>,
    landed: watch::Sender<Landed>,
}

impl Claim {
    /// Claims the first of `wanted` and as many behind it as are free and missing. `alone`: without asking other
    /// processes.
    pub(super) fn take(entry: &Arc<Entry>, wanted: Range<u64>, alone: bool) -> Turn {
        let flight = match Flight::take(entry, wanted) {
            Ok(flight) => flight,
            Err(theirs) => return Turn::Here(theirs),
        };
        let lease = match alone {
            true => Lease::none(entry),
            false => match Lease::take(entry, flight.blocks.clone()) {
                Some(lease) => lease,
                None => return Turn::Elsewhere,
            },
        };
        let mut claim = Self {
            blocks: flight.blocks.clone(),
            lease,
            flight,
        };
        if !claim.lease.locked.is_empty() {
            claim.blocks.end = claim.lease.locked.end;
        }
        // The last holder may have stored them between our look and our lock.
        entry.refresh(claim.blocks.clone());
        if entry.is_at_hand(claim.blocks.start) {
            return Turn::Done;
        }
        let at_hand = claim.blocks.clone().find(|block| entry.is_at_hand(*block));
        claim.shrink(at_hand.unwrap_or(claim.blocks.end));
        Turn::Mine(claim)
    }

    /// Gives back the blocks from `end` on.
    pub(super) fn shrink(&mut self, end: u64) {
        self.blocks.end = end;
        self.lease.shrink(end);
        self.flight.shrink(end);
    }

    /// Whether somebody in the process waits for the bytes.
    pub(super) fn is_awaited(&self) -> bool {
        // One receiver per block is the table's own.
        self.flight.landed.receiver_count() as u64
            > self.flight.blocks.end - self.flight.blocks.start
    }

    /// Hands the bytes to who waits, and the lock to who writes.
    pub(super) fn land(self, bytes: Option<Bytes>) -> Lease {
        let start = self.lease.entry.blocks().start(self.blocks.start);
        self.flight
            .landed
            .send_replace(bytes.map(|bytes| (start, bytes)));
        self.lease
    }
}

impl Lease {
    fn none(entry: &Arc<Entry>) -> Self {
        Self {
            entry: entry.clone(),
            locked: 0..0,
        }
    }

    /// Locks the first of `blocks` and as many behind it as are free; `None` if the first is not.
    fn take(entry: &Arc<Entry>, blocks: Range<u64>) -> Option<Self> {
        let mut lease = Self::none(entry);
        let Some(file) = &entry.local().lease else {
            return Some(lease);
        };
        let lock = |blocks: &Range<u64>| {
            lease::try_lock(file, CLAIMS_AT + blocks.start, blocks.end - blocks.start)
        };
        match lock(&blocks) {
            Lock::Held => lease.locked = blocks,
            Lock::Unsupported => {}
            Lock::Taken => {
                let free = blocks
                    .clone()
                    .take_while(|block| lock(&(*block..block + 1)) == Lock::Held);
                let end = free.last()? + 1;
                lease.locked = blocks.start..end;
            }
        }
        Some(lease)
    }

    fn shrink(&mut self, end: u64) {
        if end < self.locked.end {
            let rest = end.max(self.locked.start)..self.locked.end;
            self.locked.end = rest.start;
            self.unlock(rest);
        }
    }

    fn unlock(&self, blocks: Range<u64>) {
        // In a child of a fork this is another file, which has no such lock.
        if let Some(file) = &self.entry.local().lease
            && !blocks.is_empty()
        {
            lease::unlock(file, CLAIMS_AT + blocks.start, blocks.end - blocks.start);
        }
    }

    pub(super) fn entry(&self) -> &Arc<Entry> {
        &self.entry
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.unlock(self.locked.clone());
    }
}

impl Flight {
    fn take(entry: &Arc<Entry>, wanted: Range<u64>) -> Result<Self, watch::Receiver<Landed>> {
        let mut tables = entry.local().tables();
        if let Some(theirs) = tables.flights.get(&wanted.start) {
            return Err(theirs.clone());
        }
        let (landed, receiver) = watch::channel(None);
        let free = wanted
            .clone()
            .find(|block| tables.flights.contains_key(block));
        let blocks = wanted.start..free.unwrap_or(wanted.end);
        for block in blocks.clone() {
            tables.flights.insert(block, receiver.clone());
        }
        drop(tables);
        Ok(Self {
            entry: entry.clone(),
            blocks,
            landed,
        })
    }

    fn shrink(&mut self, end: u64) {
        let mut tables = self.entry.local().tables();
        for block in end..self.blocks.end {
            tables.flights.remove(&block);
        }
        self.blocks.end = end.max(self.blocks.start);
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        // Before the sender goes: who wakes up then finds no flight and takes its own turn.
        self.shrink(self.blocks.start);
    }
}
