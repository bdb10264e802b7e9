//! Which part of a channel a host gets.
//!
//! `ShardedByS3Key` gives each of n hosts every n-th item, counted over the epoch's order: shares that are disjoint,
//! complete, and differ by one item at most. Files are never split. Which host gets what on SageMaker is not published;
//! what is published holds here: about 1/n of the *number* of objects each, nothing for some when there are more hosts
//! than objects, and with shuffling another share in every epoch, because the whole is shuffled first.

use std::str::FromStr;

use crate::error::{Error, Result};

/// Whether every host gets all of a channel or a share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Distribution {
    /// Every host gets everything.
    #[default]
    FullyReplicated,
    /// Each host gets its share of the objects, manifest entries or lines.
    ShardedByS3Key,
}

impl Distribution {
    /// What the host gets whose share of sharded channels is `host`.
    pub fn shard(self, host: Shard) -> Shard {
        match self {
            Self::FullyReplicated => Shard::WHOLE,
            Self::ShardedByS3Key => host,
        }
    }

    /// As `CreateTrainingJob` and `inputdataconfig.json` write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::FullyReplicated => "FullyReplicated",
            Self::ShardedByS3Key => "ShardedByS3Key",
        }
    }
}

impl FromStr for Distribution {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "FullyReplicated" | "replicated" => Ok(Self::FullyReplicated),
            "ShardedByS3Key" | "sharded" => Ok(Self::ShardedByS3Key),
            _ => Err(Error::config(
                "distribution",
                format!(
                    "{text:?} is none: use sharded (ShardedByS3Key) or replicated (FullyReplicated)"
                ),
            )),
        }
    }
}

/// One of several shares: every `count`-th item, beginning with item `rank`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    rank: u64,
    count: u64,
}

impl Shard {
    /// The only share.
    pub const WHOLE: Self = Self { rank: 0, count: 1 };

    /// Share `rank` (from 0) of `count`.
    ///
    /// # Errors
    /// [`Error::Config`] unless `rank` is below `count`.
    pub fn new(rank: u64, count: u64) -> Result<Self> {
        if rank >= count {
            return Err(Error::config(
                "shard",
                format!(
                    "rank {rank} of {count} hosts does not exist: ranks go from 0 to one below the number of hosts"
                ),
            ));
        }
        Ok(Self { rank, count })
    }

    /// The share of a host: its place among all of them, sorted as SageMaker sorts them, byte by byte (`algo-10` comes
    /// before `algo-2`).
    ///
    /// # Errors
    /// [`Error::Config`] when the host is not among them, or one stands there twice.
    pub fn of_host<S: AsRef<str>>(current: &str, hosts: &[S]) -> Result<Self> {
        let mut sorted: Vec<&str> = hosts.iter().map(AsRef::as_ref).collect();
        sorted.sort_unstable();
        if let Some(twice) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::config(
                "hosts",
                format!("{} stands there twice: name each host once", twice[0]),
            ));
        }
        let rank = sorted.binary_search(&current).map_err(|_| {
            Error::config(
                "current-host",
                format!(
                    "{current:?} is not among the hosts ({}): name one of them",
                    sorted.join(", ")
                ),
            )
        })?;
        Self::new(rank as u64, sorted.len() as u64)
    }

    /// Which share it is.
    pub fn rank(self) -> u64 {
        self.rank
    }

    /// Of how many.
    pub fn count(self) -> u64 {
        self.count
    }

    /// Whether the item at this place of the epoch's order belongs to it.
    pub fn has(self, place: u64) -> bool {
        place % self.count == self.rank
    }

    /// How many of `total` items belong to it.
    pub fn share_of(self, total: u64) -> u64 {
        (total + self.count - 1 - self.rank) / self.count
    }
}

impl Default for Shard {
    fn default() -> Self {
        Self::WHOLE
    }
}

/// `RANK/COUNT`, ranks from 0.
impl FromStr for Shard {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let numbers = text
            .split_once('/')
            .and_then(|(rank, count)| Some((rank.parse().ok()?, count.parse().ok()?)));
        let Some((rank, count)) = numbers else {
            return Err(Error::config(
                "shard",
                format!("{text:?} is none: use RANK/COUNT with ranks from 0, such as 0/4"),
            ));
        };
        Self::new(rank, count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_hosts_rank_is_its_place_in_byte_order() {
        let hosts = ["algo-2", "algo-10", "algo-1"];
        for (host, rank) in [("algo-1", 0), ("algo-10", 1), ("algo-2", 2)] {
            assert_eq!(
                Shard::of_host(host, &hosts).unwrap(),
                Shard::new(rank, 3).unwrap()
            );
        }
        assert!(Shard::of_host("algo-3", &hosts).is_err());
        assert!(Shard::of_host("a", &["a", "b", "a"]).is_err());
        assert!(Shard::of_host::<&str>("a", &[]).is_err());
    }

    #[test]
    fn shares_are_written_rank_of_count() {
        assert_eq!("1/3".parse::<Shard>().unwrap(), Shard::new(1, 3).unwrap());
        for text in ["3/3", "0/0", "1", "-1/2", "a/b", ""] {
            assert!(text.parse::<Shard>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn shares_are_disjoint_complete_and_even(count in 1u64..20, total in 0u64..200) {
            let shards: Vec<_> = (0..count).map(|rank| Shard::new(rank, count).unwrap()).collect();
            for place in 0..total {
                prop_assert_eq!(shards.iter().filter(|shard| shard.has(place)).count(), 1);
            }
            let sizes: Vec<u64> = shards.iter().map(|shard| shard.share_of(total)).collect();
            for (shard, size) in shards.iter().zip(&sizes) {
                prop_assert_eq!((0..total).filter(|place| shard.has(*place)).count() as u64, *size);
            }
            prop_assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1);
        }
    }
}
