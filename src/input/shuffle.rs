//! The order of an epoch: a permutation that depends on the seed, the epoch and how many items there are, on nothing
//! else. Every host and every run computes the same one; SageMaker's own algorithm is not published.
//!
//! The items are those of the channel in their unshuffled order: the objects of a prefix in the listing's order, the
//! entries of a manifest, the lines of an augmented manifest. Never the records inside of an object.
//!
//! # The algorithm
//!
//! It is fixed, and the tests pin it by values that another implementation computed: a resumed job depends on it. All
//! arithmetic is modulo 2^64; `G` is 0x9e3779b97f4a7c15, and `mix` is the finalizer of SplitMix64 (Steele, Lea and Flood,
//! OOPSLA 2014, in Vigna's form with the shifts 30, 27, 31).
//!
//! ```text
//! state = mix(mix(seed + G) + epoch + G)               the seed as two's complement
//! next():      state += G; return mix(state)
//! below(k):    repeat m = next() * k (128 bits) until m mod 2^64 >= (2^64 - k) mod k; return m >> 64
//! order = 0, 1, ..., n - 1
//! for i = n - 1 down to 1: swap order[i] and order[below(i + 1)]
//! ```
//!
//! That is Fisher and Yates' shuffle with Lemire's unbiased choice. Ten million items take 40 MB and a tenth of a second.

use crate::error::{Error, Result};

/// The increment of SplitMix64: 2^64 over the golden ratio.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// A channel's shuffling: another order in each epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShuffleConfig {
    /// What the orders depend on; a job with the same seed sees the same ones.
    pub seed: i64,
}

impl ShuffleConfig {
    /// The order of `len` items in an epoch: which item comes first, which second.
    ///
    /// # Errors
    /// [`Error::Config`] beyond 2^32 items, which are more than one shuffle can hold in 16 GiB.
    pub fn order(self, epoch: u64, len: usize) -> Result<Vec<u32>> {
        let len = u32::try_from(len).map_err(|_| {
            Error::config(
                "shuffle",
                format!("{len} items cannot be shuffled: use fewer than 2^32, in several channels"),
            )
        })?;
        Ok(permutation(self.seed, epoch, len))
    }
}

/// The numbers below `len` in the order of `seed` and `epoch`; see the module's notes.
pub fn permutation(seed: i64, epoch: u64, len: u32) -> Vec<u32> {
    let mut random = Random::new(seed, epoch);
    let mut order: Vec<u32> = (0..len).collect();
    for last in (1..order.len()).rev() {
        let chosen = random.below(last as u64 + 1);
        order.swap(last, chosen as usize);
    }
    order
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn new(seed: i64, epoch: u64) -> Self {
        let seed = mix(seed.cast_unsigned().wrapping_add(GAMMA));
        Self(mix(seed.wrapping_add(epoch).wrapping_add(GAMMA)))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GAMMA);
        mix(self.0)
    }

    /// A number below `count`, each as likely as the others (Lemire, ACM TOMACS 29(1)).
    fn below(&mut self, count: u64) -> u64 {
        let unfair = count.wrapping_neg() % count;
        loop {
            let wide = u128::from(self.next()) * u128::from(count);
            if wide as u64 >= unfair {
                return (wide >> 64) as u64;
            }
        }
    }
}

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Computed by twenty lines of Python out of the text above. If this fails, resumed jobs read the wrong data.
    #[test]
    fn the_order_is_the_documented_one_for_ever() {
        for (seed, epoch, order) in [
            (7, 0, [4, 1, 9, 2, 5, 8, 0, 7, 3, 6]),
            (7, 1, [1, 2, 0, 4, 8, 6, 3, 7, 5, 9]),
            (0, 0, [4, 7, 0, 5, 9, 3, 6, 2, 8, 1]),
            (-1, 0, [8, 7, 1, 0, 6, 5, 3, 4, 2, 9]),
            (i64::MAX, 1 << 40, [4, 7, 8, 0, 1, 5, 6, 9, 3, 2]),
        ] {
            assert_eq!(
                permutation(seed, epoch, 10),
                order,
                "seed {seed}, epoch {epoch}"
            );
        }
        let large = permutation(42, 3, 100_000);
        let bytes: Vec<u8> = large.iter().flat_map(|n| n.to_le_bytes()).collect();
        let crc32 = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32IsoHdlc, &bytes);
        assert_eq!(crc32, 2_601_854_599);
    }

    /// 24 orders of four items, 24,000 seeds: each comes about 1,000 times (standard deviation 31).
    #[test]
    fn no_order_is_preferred() {
        let mut counts = std::collections::BTreeMap::new();
        for seed in 0..24_000 {
            *counts.entry(permutation(seed, 5, 4)).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 24);
        assert!(
            counts.values().all(|n| (850..1150).contains(n)),
            "{counts:?}"
        );
    }

    proptest! {
        #[test]
        fn every_item_comes_once_and_epochs_differ(seed: i64, epoch in 0u64..1 << 50, len in 0u32..500) {
            let order = permutation(seed, epoch, len);
            if len > 20 {
                prop_assert_ne!(&order, &permutation(seed, epoch + 1, len));
            }
            let mut sorted = order;
            sorted.sort_unstable();
            prop_assert!(sorted.into_iter().eq(0..len));
        }
    }
}
