//! What all entries of one cache share in a process: the directory, the ledger, and the decision what is stored.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::config::CacheConfig;
use super::ledger::Ledger;
use super::policy::{self, Candidate};
use super::store::{Found, Store};
use crate::error::Result;
use crate::metrics::Metrics;

/// After the disk has failed, it is left alone for so long. Readers don't notice either way; this spares the log, and a
/// disk that is full, a failing system call per block.
const RECOVERY: Duration = Duration::from_secs(5);
/// Throwing out makes room for this share of the capacity beyond what is needed, because looking through all entries
/// costs 10 us each.
const SLACK_SHARE: u64 = 64;

#[derive(Debug)]
pub(super) struct Core {
    pub(super) config: CacheConfig,
    pub(super) metrics: Arc<Metrics>,
    pub(super) store: Store,
    pub(super) ledger: Ledger,
    /// Bytes that the cache may take, as last computed.
    capacity_bytes: AtomicU64,
    /// Whether the last look for something to throw out was in vain; then when it was, on the cache's clock, and the
    /// oldest use that it saw.
    is_full: AtomicBool,
    looked_at: AtomicU64,
    oldest_use: AtomicU64,
    born: Instant,
    /// Milliseconds since `born`; the disk is not written to before.
    sick_until_ms: AtomicU64,
    has_warned: AtomicBool,
    /// How often something was thrown out: handles to removed entries are looked for then.
    pub(super) evictions: AtomicU64,
}

/// How full the cache is.
#[derive(Debug, Clone, Copy)]
struct Pressure {
    used_bytes: u64,
    capacity_bytes: u64,
    /// What must go because others need the space, or the limit was lowered.
    excess_bytes: u64,
}

impl Core {
    pub(super) fn open(config: CacheConfig, metrics: Arc<Metrics>) -> Result<Arc<Self>> {
        config.validate()?;
        let store = Store::open(&config)?;
        let files = store.clone();
        let ledger = Ledger::new(move || files.shared_file("ledger").ok());
        let core = Self {
            config,
            metrics,
            store,
            ledger,
            capacity_bytes: AtomicU64::new(u64::MAX),
            is_full: AtomicBool::new(false),
            looked_at: AtomicU64::new(0),
            oldest_use: AtomicU64::new(0),
            born: Instant::now(),
            sick_until_ms: AtomicU64::new(0),
            has_warned: AtomicBool::new(false),
            evictions: AtomicU64::new(0),
        };
        core.pressure();
        Ok(Arc::new(core))
    }

    pub(super) fn clock(&self) -> u64 {
        self.ledger.totals().clock
    }

    pub(super) fn capacity_bytes(&self) -> u64 {
        self.capacity_bytes.load(Relaxed)
    }

    /// Bytes were asked for.
    pub(super) fn tick(&self, bytes: u64) {
        self.ledger.tick(bytes, self.capacity_bytes() / 1024);
    }

    /// An object was used `distance` bytes after its last use.
    pub(super) fn learn(&self, distance: u64, size_bytes: u64) {
        let capacity = self.capacity_bytes();
        self.ledger.update(|totals| {
            totals.reuse = policy::learn(totals.reuse, distance, size_bytes, capacity);
        });
    }

    /// Whether there was no room at the last try, and nothing to make it from.
    pub(super) fn is_frozen(&self) -> bool {
        let totals = self.ledger.totals();
        let capacity = self.capacity_bytes();
        let after = policy::stale_after(totals.reuse, capacity);
        let (looked_at, oldest) = (self.looked_at.load(Relaxed), self.oldest_use.load(Relaxed));
        self.is_full.load(Relaxed)
            && policy::is_frozen(totals.clock, looked_at, oldest, after, capacity)
    }

    /// Whether the disk has just failed.
    pub(super) fn is_sick(&self) -> bool {
        let until = self.sick_until_ms.load(Relaxed);
        until > 0 && self.now_ms() < until
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Counts a failure of the disk and says so once. It is nobody else's: the bytes come from elsewhere.
    pub(super) fn failed(&self, what: &str, error: &io::Error) {
        self.metrics.cache_errors.add(1);
        let recovery = u64::try_from(RECOVERY.as_millis()).unwrap_or(u64::MAX);
        self.sick_until_ms.store(self.now_ms() + recovery, Relaxed);
        if !self.has_warned.swap(true, Relaxed) {
            tracing::warn!(
                dir = %self.store.root().display(),
                "the cache can't {what}: {error}; bytes are served without it where needed (said once; \
                 cache_errors counts)"
            );
        }
    }

    fn pressure(&self) -> Pressure {
        let used_bytes = self.ledger.totals().used_bytes;
        let most = self.config.max_bytes.unwrap_or(u64::MAX);
        let (available, all) = self.store.free_bytes().unwrap_or((u64::MAX, 0));
        let keep = (all as f64 * self.config.keep_free_share) as u64;
        let fits = used_bytes.saturating_add(available).saturating_sub(keep);
        let capacity_bytes = most.min(fits);
        self.capacity_bytes.store(capacity_bytes, Relaxed);
        Pressure {
            used_bytes,
            capacity_bytes,
            excess_bytes: used_bytes.saturating_sub(capacity_bytes),
        }
    }

    /// Whether `bytes` more may be stored; throws out what it must and may. Called by the threads that write.
    pub(super) fn admit(&self, bytes: u64) -> bool {
        let pressure = self.pressure();
        let wanted =
            (pressure.used_bytes.saturating_add(bytes)).saturating_sub(pressure.capacity_bytes);
        if wanted == 0 {
            return true;
        }
        if pressure.excess_bytes == 0 && self.is_frozen() {
            return false;
        }
        let wanted = wanted.saturating_add(pressure.capacity_bytes / SLACK_SHARE);
        match self.make_room(wanted, pressure.excess_bytes) {
            Ok(_) => {
                let pressure = self.pressure();
                pressure.used_bytes.saturating_add(bytes) <= pressure.capacity_bytes
            }
            Err(error) => {
                self.failed("make room", &error);
                false
            }
        }
    }

    /// Throws out up to `wanted` bytes of what is stale, and `forced` bytes of anything. Gives what was freed.
    pub(super) fn make_room(&self, wanted: u64, forced: u64) -> io::Result<u64> {
        let Some(_lock) = self.store.lock_eviction()? else {
            return Ok(0);
        };
        self.store.sweep();
        let found: Vec<Found> = self.store.scan().collect();
        let candidates: Vec<Candidate> = found
            .iter()
            .map(|found| Candidate {
                bytes: found.disk_bytes,
                used_at: found.used_at,
                bits: found.bits,
            })
            .collect();
        let (clock, reuse) = (self.clock(), self.ledger.totals().reuse);
        let after = policy::stale_after(reuse, self.capacity_bytes());
        let mut order = policy::stale(&candidates, clock, after, u64::MAX);
        let stale = order.len();
        if forced > 0 {
            order = policy::forced(&candidates, clock, after, u64::MAX);
        }
        let mut freed = 0;
        for (at, candidate) in order.into_iter().enumerate() {
            let enough = if at < stale {
                wanted.max(forced)
            } else {
                forced
            };
            if freed >= enough {
                break;
            }
            if self.store.remove_if_unused(&found[candidate].dir) {
                freed += found[candidate].disk_bytes;
                self.metrics
                    .cache_evicted_bytes
                    .add(found[candidate].disk_bytes);
            }
        }
        let there: u64 = found.iter().map(|found| found.disk_bytes).sum();
        // What was counted, not what was believed: kills and lost locks make the two differ.
        self.ledger
            .update(|totals| totals.used_bytes = there - freed);
        if freed > 0 {
            self.evictions.fetch_add(1, Relaxed);
        }
        let oldest = candidates.iter().map(|one| one.used_at).min();
        self.oldest_use.store(oldest.unwrap_or(clock), Relaxed);
        self.looked_at.store(clock, Relaxed);
        // That somebody who asked for room in vain did so without need says nothing about the room.
        if freed > 0 || wanted > 0 {
            self.is_full.store(freed == 0, Relaxed);
        }
        Ok(freed)
    }
}
