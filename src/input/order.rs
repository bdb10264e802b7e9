//! Which items a host delivers in an epoch, and in what order: shuffled as a whole first, then shared out.

use super::{Shard, ShuffleConfig};
use crate::error::Result;

/// The rule of a channel on one host.
#[derive(Debug, Clone, Copy, Default)]
pub struct Order {
    /// Without it every epoch has the items' own order.
    pub shuffle: Option<ShuffleConfig>,
    /// This host's share.
    pub shard: Shard,
}

impl Order {
    /// The items of an epoch, out of `len`, by their places in the unshuffled list.
    ///
    /// # Errors
    /// As [`ShuffleConfig::order`].
    pub fn places(self, epoch: u64, len: usize) -> Result<Places> {
        let shuffled = self
            .shuffle
            .map(|shuffle| shuffle.order(epoch, len))
            .transpose()?;
        Ok(Places {
            shuffled,
            len,
            next: usize::try_from(self.shard.rank()).unwrap_or(usize::MAX),
            step: usize::try_from(self.shard.count()).unwrap_or(usize::MAX),
        })
    }
}

/// Places in a list.
#[derive(Debug)]
pub struct Places {
    shuffled: Option<Vec<u32>>,
    len: usize,
    next: usize,
    step: usize,
}

impl Iterator for Places {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let at = self.next;
        if at >= self.len {
            return None;
        }
        self.next = at.saturating_add(self.step);
        Some(
            self.shuffled
                .as_ref()
                .map_or(at, |order| order[at] as usize),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn places(seed: Option<i64>, rank: u64, count: u64, epoch: u64, len: usize) -> Vec<usize> {
        let order = Order {
            shuffle: seed.map(|seed| ShuffleConfig { seed }),
            shard: Shard::new(rank, count).unwrap(),
        };
        order.places(epoch, len).unwrap().collect()
    }

    #[test]
    fn without_shuffling_a_share_is_the_same_in_every_epoch() {
        assert_eq!(places(None, 1, 3, 0, 8), [1, 4, 7]);
        assert_eq!(places(None, 1, 3, 9, 8), [1, 4, 7]);
        assert_eq!(places(None, 2, 3, 0, 2), [0; 0]);
    }

    proptest! {
        /// So an item may be another host's in the next epoch, and is somebody's in each.
        #[test]
        fn shares_of_a_shuffled_epoch_interleave_to_the_whole(seed: i64, epoch in 0u64..9, count in 1u64..6, len in 0usize..60) {
            let whole = places(Some(seed), 0, 1, epoch, len);
            let mut shares: Vec<_> = (0..count).map(|rank| places(Some(seed), rank, count, epoch, len).into_iter()).collect();
            for (at, place) in whole.into_iter().enumerate() {
                prop_assert_eq!(shares[at % count as usize].next(), Some(place));
            }
            prop_assert!(shares.iter_mut().all(|share| share.next().is_none()));
        }
    }
}
