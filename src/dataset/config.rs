//! What a dataset is told.

use crate::error::{Error, Result};
use crate::record::Decoding;

/// How objects become samples, and which of them this consumer gets.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DatasetConfig {
    /// Format and compression.
    pub decoding: Decoding,
    /// Another order in each epoch; none: the listing's.
    pub shuffle: Option<Shuffle>,
    /// Who reads.
    pub consumer: Consumer,
    /// The first epoch. Default 0.
    pub epoch: u64,
    /// How many epochs; none: no end. Default 1.
    pub epochs: Option<u64>,
    /// Samples that this consumer leaves out at the start of its first epoch. They are read. Default 0.
    pub skip: u64,
    /// What a corrupt record does. Default: it is an error.
    pub on_error: OnError,
    /// Whether all consumers get equally many samples. Default: each sample comes once, whatever that means for them.
    pub even: Even,
    /// How many records each object holds, where an index tells; `even` needs it. Known without for `raw`, and for
    /// `fixed:N` that is said to be uncompressed.
    pub counts: Option<Vec<u64>>,
    /// Samples of a batch. Default 1.
    pub batch: usize,
    /// Whether an epoch's last batch is left out if it is smaller. Default: it is not.
    pub drop_last: bool,
    /// Threads that read and decode; each takes every `threads`th object. Default 1: more than a network brings, unless
    /// objects are compressed or records are tiny (bench `decode`).
    pub threads: usize,
}

/// Shuffling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shuffle {
    /// What the orders depend on.
    pub seed: i64,
    /// Records that are mixed with each other; they are in memory together, twice. 1: only objects are permuted.
    pub window: u32,
}

/// One of those among whom an epoch is dealt out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Consumer {
    /// This process's place among those that train.
    pub rank: u32,
    /// How many those are.
    pub world: u32,
    /// This loader worker's place in its process.
    pub worker: u32,
    /// How many loader workers each process has.
    pub workers: u32,
}

/// What a corrupt record does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnError {
    /// It ends the reading with an error.
    #[default]
    Fail,
    /// It is left out, and counted. Where the next record can't be found, the rest of the object is.
    Skip,
}

/// Whether all consumers get equally many samples, as collective operations want it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Even {
    /// Each sample comes once.
    #[default]
    None,
    /// As many as the consumer with the fewest has: the others' last ones are left out.
    Drop,
    /// As many as the consumer with the most has: the others get some samples of the epoch again.
    Pad,
}

impl Consumer {
    /// The only one.
    pub const ALONE: Self = Self {
        rank: 0,
        world: 1,
        worker: 0,
        workers: 1,
    };

    /// Its place among all: the ranks' first workers, then their second ones. So ranks differ by one object at most.
    pub fn index(self) -> u32 {
        self.worker * self.world + self.rank
    }

    /// How many there are.
    pub fn count(self) -> u32 {
        self.world * self.workers
    }
}

impl DatasetConfig {
    /// Reads everything once, in the listing's order.
    pub fn new(decoding: Decoding) -> Self {
        Self {
            decoding,
            shuffle: None,
            consumer: Consumer::ALONE,
            epoch: 0,
            epochs: Some(1),
            skip: 0,
            on_error: OnError::default(),
            even: Even::default(),
            counts: None,
            batch: 1,
            drop_last: false,
            threads: 1,
        }
    }

    /// Refuses what can't work, naming the field.
    pub fn validate(&self) -> Result<()> {
        self.decoding.validate()?;
        let Consumer {
            rank,
            world,
            worker,
            workers,
        } = self.consumer;
        for (key, value, of, count) in [
            ("rank", rank, "world size", world),
            ("worker", worker, "workers", workers),
        ] {
            if value >= count {
                return Err(Error::config(
                    key,
                    format!("{value}, with {of} {count}: it counts from 0"),
                ));
            }
        }
        if world
            .checked_mul(workers)
            .is_none_or(|count| count > 1 << 20)
        {
            return Err(Error::config(
                "workers",
                format!("{world} ranks of {workers}: use up to 2^20 in all"),
            ));
        }
        if self.shuffle.is_some_and(|shuffle| shuffle.window == 0) {
            return Err(Error::config("shuffle window", "0 records: use at least 1"));
        }
        if self.batch == 0 {
            return Err(Error::config("batch", "0 samples: use at least 1"));
        }
        match self.threads {
            1..=256 => Ok(()),
            threads => Err(Error::config("threads", format!("{threads}: use 1 to 256"))),
        }
    }
}
