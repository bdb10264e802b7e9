//! The limit on memory, in bytes.

use std::sync::{Arc, PoisonError, Weak};

use crate::sync::{AtomicU64, Mutex, Ordering};

/// Told whenever bytes come back to a budget. Called on whatever thread dropped them, with no lock held.
pub trait Released: Send + Sync {
    /// Some bytes are free again.
    fn released(&self);
}

/// How many bytes the engine may hold, and how many it does. Clones share the account.
///
/// A reservation is made before a request is sent and ends when the consumer drops the bytes, so the limit holds for
/// everything between the two. `reserved` never exceeds `limit`.
#[derive(Clone)]
pub struct MemoryBudget(Arc<Account>);

struct Account {
    limit: u64,
    reserved: AtomicU64,
    lent: AtomicU64,
    listeners: Mutex<Vec<Weak<dyn Released>>>,
}

impl MemoryBudget {
    /// A budget of `limit` bytes.
    pub fn new(limit: u64) -> Self {
        Self(Arc::new(Account {
            limit,
            reserved: AtomicU64::new(0),
            lent: AtomicU64::new(0),
            listeners: Mutex::new(Vec::new()),
        }))
    }

    /// The limit in bytes.
    pub fn limit(&self) -> u64 {
        self.0.limit
    }

    /// Bytes reserved now.
    pub fn reserved(&self) -> u64 {
        self.0.reserved.load(Ordering::Acquire)
    }

    /// The part of them that consumers hold.
    pub fn lent(&self) -> u64 {
        self.0.lent.load(Ordering::Acquire)
    }

    /// Reserves `bytes` if at least `keep_free` more stay free; `None` otherwise.
    pub fn try_reserve(&self, bytes: u64, keep_free: u64) -> Option<Reservation> {
        let ceiling = self.0.limit.checked_sub(keep_free)?;
        let mut now = self.0.reserved.load(Ordering::Relaxed);
        loop {
            let after = now.checked_add(bytes).filter(|after| *after <= ceiling)?;
            match self.0.reserved.compare_exchange_weak(
                now,
                after,
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => {
                    return Some(Reservation {
                        account: self.0.clone(),
                        bytes,
                        lent: false,
                    });
                }
                Err(found) => now = found,
            }
        }
    }

    /// Has `listener` told of every release, as long as it lives.
    pub fn subscribe(&self, listener: Weak<dyn Released>) {
        let mut listeners = self
            .0
            .listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        listeners.retain(|known| known.strong_count() > 0);
        listeners.push(listener);
    }
}

impl std::fmt::Debug for MemoryBudget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryBudget")
            .field("limit", &self.limit())
            .field("reserved", &self.reserved())
            .field("lent", &self.lent())
            .finish()
    }
}

impl Account {
    fn give_back(&self, bytes: u64, lent: bool) {
        if lent {
            self.lent.fetch_sub(bytes, Ordering::AcqRel);
        }
        self.reserved.fetch_sub(bytes, Ordering::AcqRel);
        // The listeners run after the lock is released: they take locks of their own.
        let listeners: Vec<_> = {
            let listeners = self
                .listeners
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            listeners.iter().filter_map(Weak::upgrade).collect()
        };
        for listener in listeners {
            listener.released();
        }
    }
}

/// Bytes taken from a budget; dropping it gives them back.
pub struct Reservation {
    account: Arc<Account>,
    bytes: u64,
    lent: bool,
}

impl Reservation {
    /// How many bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Counts the bytes as held by a consumer from now on.
    pub(crate) fn lend(&mut self) {
        if !self.lent {
            self.lent = true;
            self.account.lent.fetch_add(self.bytes, Ordering::AcqRel);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.account.give_back(self.bytes, self.lent);
    }
}

impl std::fmt::Debug for Reservation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reservation({} bytes)", self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct Count(AtomicU64);

    impl Released for Count {
        fn released(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn listeners_hear_of_every_release_until_they_die() {
        let budget = MemoryBudget::new(10);
        let count = Arc::new(Count(AtomicU64::new(0)));
        let listener: Arc<dyn Released> = count.clone();
        budget.subscribe(Arc::downgrade(&listener));
        drop(budget.try_reserve(4, 0));
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        drop((count, listener));
        drop(budget.try_reserve(4, 0));
        assert_eq!(budget.reserved(), 0);
    }

    #[test]
    fn what_is_kept_free_stays_free() {
        let budget = MemoryBudget::new(10);
        assert!(budget.try_reserve(8, 3).is_none());
        assert!(budget.try_reserve(1, 11).is_none());
        let held = budget.try_reserve(7, 3).unwrap();
        assert!(budget.try_reserve(u64::MAX, 0).is_none());
        assert_eq!(held.bytes(), 7);
    }

    proptest! {
        /// Invariant 1: the sum of what is held is what is reserved, never more than the limit, and zero at the end.
        #[test]
        fn reserved_is_what_is_held(limit in 0..100u64, asks in proptest::collection::vec((0..60u64, 0..20u64, any::<bool>()), 0..50)) {
            let budget = MemoryBudget::new(limit);
            let mut held: Vec<Reservation> = Vec::new();
            for (bytes, keep_free, drop_one) in asks {
                if drop_one && !held.is_empty() {
                    held.remove(0);
                } else if let Some(mut reservation) = budget.try_reserve(bytes, keep_free) {
                    if bytes % 2 == 0 { reservation.lend(); }
                    held.push(reservation);
                }
                prop_assert_eq!(budget.reserved(), held.iter().map(Reservation::bytes).sum::<u64>());
                prop_assert!(budget.reserved() <= limit);
                prop_assert!(budget.lent() <= budget.reserved());
            }
            held.clear();
            prop_assert_eq!((budget.reserved(), budget.lent()), (0, 0));
        }
    }
}
