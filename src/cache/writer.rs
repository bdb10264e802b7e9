//! Threads that write what readers have already been given.
//!
//! The queue is bounded in bytes. When it is full, the disk is slower than the network, and blocks are dropped and
//! counted: they are fetched again when they are wanted again. A reader never waits for the disk.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::entry::Published;
use super::flight::Lease;
use crate::error::Error;

/// A thread without work ends after this.
const IDLE: Duration = Duration::from_secs(5);

/// The threads and their queue.
#[derive(Debug)]
pub(super) struct Writers {
    queue: Arc<Queue>,
    most_threads: usize,
}

/// Leave to queue some bytes; dropping it gives it back.
#[derive(Debug)]
pub(super) struct Room {
    queue: Arc<Queue>,
    bytes: u64,
}

#[derive(Debug)]
struct Queue {
    most_bytes: u64,
    state: Mutex<State>,
    /// Told of a new job, of the end, and of every job that is done.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    jobs: VecDeque<Job>,
    /// Of jobs that wait or are worked on, and of rooms.
    bytes: u64,
    threads: usize,
    idle: usize,
    /// Jobs that wait or are worked on.
    unfinished: usize,
    is_closing: bool,
}

/// Blocks on their way to the disk.
#[derive(Debug)]
struct Job {
    lease: Lease,
    blocks: Range<u64>,
    bytes: Bytes,
    _room: Room,
}

impl Writers {
    pub(super) fn new(most_bytes: u64, most_threads: usize) -> Self {
        Self {
            queue: Arc::new(Queue {
                most_bytes,
                state: Mutex::default(),
                changed: Condvar::new(),
            }),
            most_threads,
        }
    }

    /// Room for `bytes`, if there is.
    pub(super) fn room(&self, bytes: u64) -> Option<Room> {
        let mut state = self.queue.lock();
        if state.bytes + bytes > self.queue.most_bytes {
            return None;
        }
        state.bytes += bytes;
        Some(Room {
            queue: self.queue.clone(),
            bytes,
        })
    }

    /// Whether half of the queue is free.
    pub(super) fn keep_up(&self) -> bool {
        self.queue.lock().bytes <= self.queue.most_bytes / 2
    }

    /// Queues blocks, which the entry keeps in memory until they are written.
    pub(super) fn write(&self, lease: Lease, blocks: Range<u64>, bytes: Bytes, room: Room) {
        let job = Job {
            lease,
            blocks,
            bytes,
            _room: room,
        };
        let mut state = self.queue.lock();
        state.jobs.push_back(job);
        state.unfinished += 1;
        if state.idle < state.jobs.len() && state.threads < self.most_threads {
            let queue = self.queue.clone();
            let thread = std::thread::Builder::new().name("standpipe-cache".into());
            if thread.spawn(move || queue.work()).is_ok() {
                state.threads += 1;
            }
        }
        if state.threads > 0 {
            drop(state);
            self.queue.changed.notify_all();
            return;
        }
        // The system has no thread for us: these blocks are not stored.
        let dropped = state.jobs.pop_back();
        state.unfinished -= 1;
        drop(state);
        if let Some(job) = dropped {
            job.drop_unwritten();
        }
    }

    /// Waits until everything is written; `false` if that took longer than `patience`.
    pub(super) fn flush(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        let mut state = self.queue.lock();
        while state.unfinished > 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.queue.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

impl Drop for Writers {
    /// The threads write what is queued and end; nobody waits for them.
    fn drop(&mut self) {
        self.queue.lock().is_closing = true;
        self.queue.changed.notify_all();
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        while let Some(job) = self.next() {
            job.run();
            self.lock().unfinished -= 1;
            self.changed.notify_all();
        }
    }

    /// The next job; `None` when this thread is not needed any more.
    fn next(&self) -> Option<Job> {
        let mut state = self.lock();
        let until = Instant::now() + IDLE;
        loop {
            if let Some(job) = state.jobs.pop_front() {
                return Some(job);
            }
            let left = until.saturating_duration_since(Instant::now());
            if state.is_closing || left.is_zero() {
                state.threads -= 1;
                return None;
            }
            state.idle += 1;
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            state.idle -= 1;
        }
    }
}

impl Job {
    fn run(self) {
        let entry = self.lease.entry().clone();
        let core = entry.core();
        let dropped = &core.metrics.cache_dropped_bytes;
        // One that was evicted meanwhile has no readers to come.
        if core.is_sick() || !entry.is_linked() {
            dropped.add(self.bytes.len() as u64);
            self.finish();
            return;
        }
        let start = entry.blocks().start(self.blocks.start);
        match entry.publish(start, &self.bytes) {
            Ok(Published::Stored) => {}
            Ok(Published::Declined) => core
                .metrics
                .cache_declined_bytes
                .add(self.bytes.len() as u64),
            Err(error) => {
                dropped.add(self.bytes.len() as u64);
                if let Error::Io { source, .. } = &error {
                    core.failed("write", source);
                }
            }
        }
        self.finish();
    }

    fn drop_unwritten(self) {
        let metrics = &self.lease.entry().core().metrics;
        metrics.cache_dropped_bytes.add(self.bytes.len() as u64);
        self.finish();
    }

    /// From here on the blocks are read from the disk, or fetched again; then others may claim them.
    fn finish(self) {
        self.lease.entry().forget_pending(self.blocks.clone());
        drop(self.lease);
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.queue.lock().bytes -= self.bytes;
    }
}
