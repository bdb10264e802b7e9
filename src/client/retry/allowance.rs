//! How many retries all requests of a client may make together.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// What one retry takes, in tokens; what one first-attempt success gives back is 1. With the endpoint half-broken,
/// retries level off at a fifth of the good requests (the AWS SDKs' standard mode has the same ratio).
const RETRY_TOKENS: u32 = 5;

/// A bucket of tokens that retries drain and successes fill.
///
/// When the endpoint is dead, the requests in flight drain it together, and from then on every failure is final at
/// once: a dead endpoint is not hammered. A success shows life and gives tokens back.
#[derive(Debug)]
pub(super) struct Allowance {
    tokens: AtomicU32,
    capacity: u32,
}

impl Allowance {
    /// A full bucket that lasts for `retries` retries in a row.
    pub(super) fn new(retries: u32) -> Self {
        let capacity = retries.saturating_mul(RETRY_TOKENS);
        Self {
            tokens: AtomicU32::new(capacity),
            capacity,
        }
    }

    /// Takes a retry's tokens; `false` when there are too few.
    pub(super) fn take(&self) -> bool {
        self.tokens
            .fetch_update(Relaxed, Relaxed, |tokens| tokens.checked_sub(RETRY_TOKENS))
            .is_ok()
    }

    /// A request succeeded: at first attempt, or after a retry, whose tokens come back.
    pub(super) fn succeeded(&self, retried: bool) {
        self.give(if retried { RETRY_TOKENS } else { 1 });
    }

    fn give(&self, tokens: u32) {
        // The bucket is full nearly always: then nothing is written, and the cache line stays shared.
        if self.tokens.load(Relaxed) < self.capacity {
            let _ = self.tokens.fetch_update(Relaxed, Relaxed, |now| {
                Some(now.saturating_add(tokens).min(self.capacity))
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn it_lasts_for_as_many_retries_as_it_says_and_refills_slowly() {
        let allowance = Allowance::new(3);
        assert_eq!(
            [(); 4].map(|()| allowance.take()),
            [true, true, true, false]
        );
        for _ in 0..4 {
            allowance.succeeded(false);
            assert!(!allowance.take());
        }
        allowance.succeeded(false);
        assert!(allowance.take());
    }

    proptest! {
        #[test]
        fn it_never_holds_more_than_at_first(events in proptest::collection::vec(any::<Option<bool>>(), 0..100)) {
            let allowance = Allowance::new(4);
            for event in events {
                match event {
                    Some(retried) => allowance.succeeded(retried),
                    None => { allowance.take(); }
                }
                prop_assert!(allowance.tokens.load(Relaxed) <= 20);
            }
        }
    }
}
