//! What stays when the cache is full. No I/O and no clock.
//!
//! Training reads the same objects once per epoch. When they are more than the cache holds, the object that was used
//! longest ago is the one that is needed next, so LRU throws out everything just before its use and never hits. The best
//! that is possible without knowing the future is to keep what is there for the whole epoch and to let the rest pass
//! by: hits are then cache / dataset, in any order. So:
//!
//! - **Nothing is thrown out that was used within about an epoch.** While nothing else is there, new objects are not
//!   stored (the cache is *frozen*).
//! - **How long an epoch is, is learned.** Time is counted in bytes asked for, which neither a jump of the clock nor a
//!   pause changes. Whenever an object is used again, the distance to its last use is about one epoch (in shuffled
//!   epochs, anything up to two); [`learn`] keeps a high quantile of these.
//! - **What was not used for [`stale_after`] belongs to a dataset that is not read any more**, and goes first, the longest
//!   unused of all first.
//!
//! Distances are also taken for objects that were *not* stored (a sample of their names is remembered), so a second
//! dataset makes itself known in its second epoch although the cache is frozen with the first.
//!
//! `examples/cache_policy.rs` simulates epochs under this and under LRU, random and optimal eviction, and prints the
//! table that docs/SEMANTICS.md quotes.

use std::collections::HashSet;

/// Before anything is used again, an epoch may be this many times as long as the cache is large. Ten is the largest
/// dataset that is worth caching at all (10 % hits), and shuffled epochs have distances of up to twice their length.
const UNKNOWN_EPOCH: u64 = 20;
/// In shuffled epochs the learned distance is about 1.6 epochs and the longest is 2.
const MARGIN: (u64, u64) = (3, 2);

/// Uses of an object that are closer than this belong to one pass over it, and are counted once.
pub fn pass_gap(capacity_bytes: u64, size_bytes: u64) -> u64 {
    (capacity_bytes / 256).max(size_bytes.saturating_mul(2))
}

/// The typical distance between two uses, after one more was seen to be `distance` bytes. It goes up quickly and comes
/// down slowly: a quantile near the top. Coming down takes reuse of about a quarter of the cache.
///
/// `reuse` is zero before the first.
pub fn learn(reuse: u64, distance: u64, size_bytes: u64, capacity_bytes: u64) -> u64 {
    if reuse == 0 {
        return distance.max(1);
    }
    if distance >= reuse {
        return reuse + (distance - reuse) / 4;
    }
    // The weight of the object in the cache, four times.
    let share =
        (size_bytes as f64 * 4.0 / capacity_bytes.max(1) as f64).clamp(1.0 / 65_536.0, 0.125);
    reuse - ((reuse - distance) as f64 * share) as u64
}

/// How long an object must be unused to be stale.
pub fn stale_after(reuse: u64, capacity_bytes: u64) -> u64 {
    match reuse {
        0 => capacity_bytes.saturating_mul(UNKNOWN_EPOCH),
        _ => (reuse / MARGIN.1).saturating_mul(MARGIN.0).max(1),
    }
}

/// Whether to look again for something stale is in vain, after a look at `looked_at` found nothing, and `oldest` to be the
/// oldest use. A look costs 10 us per object, so there are at most 64 while the cache's capacity is asked for.
pub fn is_frozen(
    clock: u64,
    looked_at: u64,
    oldest: u64,
    stale_after: u64,
    capacity_bytes: u64,
) -> bool {
    clock < looked_at.saturating_add(capacity_bytes / 64)
        || clock.saturating_sub(oldest) <= stale_after
}

/// An object in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// What throwing it out frees.
    pub bytes: u64,
    /// When it was last used, on the clock that counts bytes.
    pub used_at: u64,
    /// Something random that stays the same.
    pub bits: u64,
}

/// Which candidates to throw out, in order, so that `wanted_bytes` become free: stale ones only, the longest unused
/// first. A use that seems to lie in the future (the clock was lost) is as old as the clock.
pub fn stale(
    candidates: &[Candidate],
    clock: u64,
    stale_after: u64,
    wanted_bytes: u64,
) -> Vec<usize> {
    let idle = |candidate: &Candidate| match clock.checked_sub(candidate.used_at) {
        Some(idle) => idle,
        None => clock,
    };
    let mut order: Vec<usize> = (0..candidates.len())
        .filter(|at| idle(&candidates[*at]) > stale_after)
        .collect();
    order.sort_by_key(|at| std::cmp::Reverse(idle(&candidates[*at])));
    enough(candidates, order, wanted_bytes)
}

/// As [`stale`], for space that must be freed in any case: after the stale ones come the others at random, which on
/// scans does far better than the order of use.
pub fn forced(
    candidates: &[Candidate],
    clock: u64,
    stale_after: u64,
    wanted_bytes: u64,
) -> Vec<usize> {
    let mut order = stale(candidates, clock, stale_after, wanted_bytes);
    let first: HashSet<usize> = order.iter().copied().collect();
    let mut rest: Vec<usize> = (0..candidates.len())
        .filter(|at| !first.contains(at))
        .collect();
    rest.sort_by_key(|at| candidates[*at].bits);
    order.extend(rest);
    enough(candidates, order, wanted_bytes)
}

fn enough(candidates: &[Candidate], mut order: Vec<usize>, wanted_bytes: u64) -> Vec<usize> {
    let mut freed = 0u64;
    let taken = order.iter().take_while(|at| {
        let goes_on = freed < wanted_bytes;
        freed = freed.saturating_add(candidates[**at].bytes);
        goes_on
    });
    let count = taken.count();
    order.truncate(count);
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
        let one = (0..1_000u64, 0..2_000u64, any::<u64>());
        let one = one.prop_map(|(bytes, used_at, bits)| Candidate {
            bytes,
            used_at,
            bits,
        });
        proptest::collection::vec(one, 0..100)
    }

    proptest! {
        #[test]
        fn only_what_is_stale_goes_and_no_more_than_is_wanted(all in candidates(), clock in 0..2_000u64, after in 0..2_000u64, wanted in 0..20_000u64) {
            let order = stale(&all, clock, after, wanted);
            let idle: Vec<u64> = order.iter().map(|at| clock.checked_sub(all[*at].used_at).unwrap_or(clock)).collect();
            prop_assert!(idle.iter().all(|idle| *idle > after));
            prop_assert!(idle.is_sorted_by(|a, b| a >= b));
            let freed: u64 = order.iter().map(|at| all[*at].bytes).sum();
            if let Some((last, _)) = order.split_last() {
                prop_assert!(freed - all[*last].bytes < wanted || wanted > freed);
            }
        }

        #[test]
        fn what_must_be_freed_is_freed_if_it_is_there(all in candidates(), clock in 0..2_000u64, after in 0..2_000u64, wanted in 0..20_000u64) {
            let order = forced(&all, clock, after, wanted);
            let freed: u64 = order.iter().map(|at| all[*at].bytes).sum();
            let whole: u64 = all.iter().map(|one| one.bytes).sum();
            prop_assert!(freed >= wanted.min(whole));
            let mut once = order.clone();
            once.sort_unstable();
            once.dedup();
            prop_assert_eq!(once.len(), order.len());
            let expected = stale(&all, clock, after, wanted);
            prop_assert!(order.starts_with(&expected));
        }

        #[test]
        fn what_is_learned_lies_between_what_was_seen(seen in proptest::collection::vec(1..1u64 << 60, 1..50), size: u64, capacity: u64) {
            let mut reuse = 0;
            for distance in &seen {
                reuse = learn(reuse, *distance, size, capacity);
            }
            prop_assert!((*seen.iter().min().unwrap()..=*seen.iter().max().unwrap()).contains(&reuse));
            let _ = (stale_after(reuse, capacity), pass_gap(capacity, size));
        }
    }
}
