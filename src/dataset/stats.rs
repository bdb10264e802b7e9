//! What a reader counts.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Flaws that are kept by name; of those beyond only the number is.
const NAMED: usize = 100;

/// What was delivered, left out and waited for, since the reading began.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// Samples given out.
    pub samples: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Corrupt records that were left out.
    pub skipped_records: u64,
    /// Objects of which the rest was left out, because the next record could not be found.
    pub skipped_objects: u64,
    /// The first hundred of those, each with object, offset and reason.
    pub skipped: Vec<String>,
    /// Bytes that were copied out of the engine's memory, because consumers held much of it.
    pub copied_bytes: u64,
    /// Time that the consumer waited for samples.
    pub waited: Duration,
}

/// The counters that decoding threads share with their consumer.
#[derive(Debug, Default)]
pub(super) struct Counters {
    skipped_records: AtomicU64,
    skipped_objects: AtomicU64,
    copied_bytes: AtomicU64,
    skipped: Mutex<Vec<String>>,
}

impl Counters {
    /// A flaw that is not told to the consumer.
    pub(super) fn skip(&self, flaw: String, rest_of_object: bool) {
        match rest_of_object {
            true => self.skipped_objects.fetch_add(1, Relaxed),
            false => self.skipped_records.fetch_add(1, Relaxed),
        };
        let mut named = self.skipped.lock().unwrap_or_else(PoisonError::into_inner);
        if named.len() < NAMED {
            named.push(flaw);
        }
    }

    pub(super) fn copied(&self, bytes: u64) {
        self.copied_bytes.fetch_add(bytes, Relaxed);
    }

    /// The consumer's numbers with these.
    pub(super) fn complete(&self, stats: &Stats) -> Stats {
        Stats {
            skipped_records: self.skipped_records.load(Relaxed),
            skipped_objects: self.skipped_objects.load(Relaxed),
            copied_bytes: self.copied_bytes.load(Relaxed),
            skipped: self
                .skipped
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
            ..stats.clone()
        }
    }
}
