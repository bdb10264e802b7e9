//! What a reader counts.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::metrics::{Bottleneck, Presence, Verdict};

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
    /// Time that the threads spent decoding, added up.
    pub decoding: Duration,
    /// Time that they waited for bytes, added up.
    pub starved: Duration,
}

impl Stats {
    /// Why it is slow, if decoding is why: the consumer waited, and the threads had bytes more often than they waited for
    /// them. Else the engine's counters tell ([`Snapshot::verdict_on`](crate::metrics::Snapshot::verdict_on)).
    pub fn verdict(&self, presence: Presence) -> Option<Verdict> {
        let stall_share = presence.stall_share();
        if stall_share <= 0.1 || self.decoding <= self.starved {
            return None;
        }
        let advice = format!(
            "decoding was the limit: the consumer waited {:.0}% of the time, the decoding threads {:.1} s for bytes and worked {:.1} s; use more threads, or more workers",
            stall_share * 100.0,
            self.starved.as_secs_f64(),
            self.decoding.as_secs_f64(),
        );
        Some(Verdict {
            bottleneck: Bottleneck::Decoding,
            stall_share,
            advice,
        })
    }
}

/// The counters that decoding threads share with their consumer.
#[derive(Debug, Default)]
pub(super) struct Counters {
    skipped_records: AtomicU64,
    skipped_objects: AtomicU64,
    copied_bytes: AtomicU64,
    decoding_ns: AtomicU64,
    starved_ns: AtomicU64,
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

    pub(super) fn decoded(&self, time: Duration) {
        self.decoding_ns.fetch_add(nanos(time), Relaxed);
    }

    pub(super) fn starved(&self, time: Duration) {
        self.starved_ns.fetch_add(nanos(time), Relaxed);
    }

    /// The consumer's numbers with these.
    pub(super) fn complete(&self, stats: &Stats) -> Stats {
        Stats {
            skipped_records: self.skipped_records.load(Relaxed),
            skipped_objects: self.skipped_objects.load(Relaxed),
            copied_bytes: self.copied_bytes.load(Relaxed),
            decoding: Duration::from_nanos(self.decoding_ns.load(Relaxed)),
            starved: Duration::from_nanos(self.starved_ns.load(Relaxed)),
            skipped: self
                .skipped
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
            ..stats.clone()
        }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decoding_is_named_when_it_was_what_the_consumer_waited_for() {
        let second = Duration::from_secs(1);
        let told = |waited, decoding, starved| {
            let stats = Stats {
                waited,
                decoding,
                starved,
                ..Stats::default()
            };
            let presence = Presence {
                present: second * 10,
                stalled: waited,
                blocked: second * 10 - waited,
            };
            stats.verdict(presence).map(|verdict| verdict.bottleneck)
        };
        assert_eq!(
            told(second * 5, second * 8, second),
            Some(Bottleneck::Decoding)
        );
        assert_eq!(told(second * 5, second, second * 8), None);
        assert_eq!(told(second / 2, second * 8, second), None);
    }
}
