//! Where a run stands, as a value that can be stored, merged and looked at.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::config::DatasetConfig;
use super::plan::Inputs;
use super::progress::Progress;
use super::unusable_state;
use crate::error::Result;

/// The form of the value; another number is another form. 1 is as 2 is, but without what is still to be skipped.
const VERSION: u32 = 2;
const OLDEST: u32 = 1;

/// How far one consumer is, or all of them. Serde makes JSON of it: a few hundred bytes, and for a merged one some hundred
/// more per consumer.
///
/// It is versioned. It holds seed and window size, what identifies the inputs, and how far each consumer is: `epoch`,
/// `item` (it counts the objects it was dealt), `offset` of the next record's first byte in the one at hand; a `window`
/// that is being given out begins there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetState {
    version: u32,
    inputs: String,
    seed: Option<i64>,
    window: u32,
    /// The run's first epoch.
    first_epoch: u64,
    /// Whose it is; none: everyone's.
    consumer: Option<u32>,
    /// One for each number of consumers that it was read with, in turn. The last one of one consumer's state is its own.
    generations: Vec<Generation>,
}

/// How far consumers came, as long as their number was the same.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Generation {
    pub(super) consumers: u32,
    pub(super) positions: BTreeMap<u32, Position>,
}

/// How far one consumer came.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    pub(super) epoch: u64,
    #[serde(flatten)]
    pub(super) progress: Progress,
    /// Samples that are left out behind it ([`DatasetConfig::skip`]).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(super) skip: u64,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Generation {
    /// One consumer's alone.
    pub(super) fn of(config: &DatasetConfig, position: Position) -> Self {
        Self {
            consumers: config.consumer.count(),
            positions: BTreeMap::from([(config.consumer.index(), position)]),
        }
    }

    /// How far a consumer came in an epoch: it may be before or behind it.
    pub(super) fn progress(&self, epoch: u64, consumer: u32) -> Progress {
        match self.positions.get(&consumer) {
            Some(position) if position.epoch > epoch => Progress::done(),
            Some(position) if position.epoch == epoch => position.progress,
            _ => Progress::default(),
        }
    }

    /// Whether nobody began this epoch.
    pub(super) fn is_before(&self, epoch: u64) -> bool {
        self.positions
            .values()
            .all(|position| position.epoch < epoch)
    }

    fn first_epoch(&self) -> Option<u64> {
        self.positions.values().map(|position| position.epoch).min()
    }
}

impl DatasetState {
    /// The epoch that it is in; of a merged one the first that is not finished.
    pub fn epoch(&self) -> u64 {
        self.generations
            .last()
            .and_then(Generation::first_epoch)
            .unwrap_or(self.first_epoch)
    }

    /// One consumer's state.
    pub(super) fn of_consumer(
        inputs: &Inputs,
        config: &DatasetConfig,
        first_epoch: u64,
        generations: Vec<Generation>,
    ) -> Self {
        Self {
            version: VERSION,
            inputs: inputs.fingerprint.clone(),
            seed: config.shuffle.map(|shuffle| shuffle.seed),
            window: config.shuffle.map_or(1, |shuffle| shuffle.window),
            first_epoch,
            consumer: Some(config.consumer.index()),
            generations,
        }
    }

    /// One state of all consumers' (every worker's of every rank), with which any number of consumers can go on.
    ///
    /// # Errors
    /// [`Error::Config`](crate::error::Error::Config) when they are not of one run, or one is missing or there twice.
    pub fn merge(states: &[Self]) -> Result<Self> {
        let first = states
            .first()
            .ok_or_else(|| unusable_state("there is none to merge"))?;
        let mut found = BTreeSet::new();
        let mut merged = first.clone();
        merged.consumer = None;
        let all = merged.generations.last_mut();
        let all = all.ok_or_else(|| unusable_state("a state to merge is not of one consumer"))?;
        for state in states {
            let (consumer, own) = first.of_same_run(state)?;
            if !found.insert(consumer) {
                return Err(unusable_state(format!(
                    "the state of consumer {consumer} is there twice"
                )));
            }
            all.positions.extend(
                own.positions
                    .get(&consumer)
                    .map(|position| (consumer, *position)),
            );
        }
        let consumers = all.consumers;
        match (0..consumers).find(|consumer| !all.positions.contains_key(consumer)) {
            Some(missing) => Err(unusable_state(format!(
                "the state of consumer {missing} of {consumers} is missing"
            ))),
            None => Ok(merged),
        }
    }

    /// Whose another state of the same run is, and how far that one came.
    fn of_same_run<'a>(&self, other: &'a Self) -> Result<(u32, &'a Generation)> {
        let run = |state: &Self| {
            (
                state.version,
                state.inputs.clone(),
                state.seed,
                state.window,
                state.first_epoch,
            )
        };
        if run(self) != run(other) {
            return Err(unusable_state("the states are of different runs"));
        }
        let split = (
            self.generations.split_last(),
            other.generations.split_last(),
        );
        let (Some((mine, before)), Some((own, same)), Some(consumer)) =
            (split.0, split.1, other.consumer)
        else {
            return Err(unusable_state("a state to merge is not of one consumer"));
        };
        if before != same {
            return Err(unusable_state("the states went on from different ones"));
        }
        match mine.consumers == own.consumers {
            true => Ok((consumer, own)),
            false => Err(unusable_state(
                "the states are of different numbers of consumers",
            )),
        }
    }

    fn check(&self, inputs: &Inputs, config: &DatasetConfig) -> Result<()> {
        if !(OLDEST..=VERSION).contains(&self.version) {
            return Err(unusable_state(format!(
                "it has version {}; this is {VERSION}",
                self.version
            )));
        }
        if self.inputs != inputs.fingerprint {
            return Err(unusable_state(
                "objects were added, removed or replaced since, or the format is another",
            ));
        }
        let shuffle = config.shuffle.map(|shuffle| (shuffle.seed, shuffle.window));
        let saved = self.seed.map(|seed| (seed, self.window));
        match shuffle == saved {
            true => Ok(()),
            false => Err(unusable_state(format!(
                "it was made with the shuffle {saved:?} (seed, window); this is {shuffle:?}"
            ))),
        }
    }
}

/// Where a consumer begins.
#[derive(Debug, Clone, Default)]
pub(super) struct Resume {
    pub(super) first_epoch: u64,
    pub(super) position: Position,
    /// What was read with other numbers of consumers.
    pub(super) earlier: Vec<Generation>,
}

impl Resume {
    /// At the beginning of an epoch, without its first `skip` samples.
    pub(super) fn start(epoch: u64, skip: u64) -> Self {
        Self {
            first_epoch: epoch,
            position: Position {
                epoch,
                skip,
                ..Position::default()
            },
            ..Self::default()
        }
    }

    pub(super) fn from(
        state: &DatasetState,
        inputs: &Inputs,
        config: &DatasetConfig,
    ) -> Result<Self> {
        state.check(inputs, config)?;
        let (index, count) = (config.consumer.index(), config.consumer.count());
        let mut resume = Self {
            first_epoch: state.first_epoch,
            position: Position {
                epoch: state.epoch(),
                ..Position::default()
            },
            earlier: state.generations.clone(),
        };
        let of = resume
            .earlier
            .last()
            .map_or(0, |generation| generation.consumers);
        if let Some(consumer) = state
            .consumer
            .filter(|consumer| (*consumer, of) != (index, count))
        {
            return Err(unusable_state(format!(
                "it is of consumer {consumer} of {of}, and this is {index} of {count}: merge the states of all to go on with other numbers"
            )));
        }
        // As many consumers as before: each goes on with its own.
        if let Some(own) = resume
            .earlier
            .pop_if(|generation| generation.consumers == count)
            && let Some(position) = own.positions.get(&index)
        {
            resume.position = *position;
        }
        // Whoever else gets what was to be skipped would give it out.
        let mut dealt_anew = resume.earlier.iter().flat_map(|all| all.positions.values());
        if dealt_anew.any(|position| position.skip > 0) {
            return Err(unusable_state(
                "samples are still to be skipped: go on with as many consumers",
            ));
        }
        if resume.position.progress.done {
            resume.position = Position {
                epoch: resume.position.epoch + 1,
                ..Position::default()
            };
        }
        Ok(resume)
    }
}
