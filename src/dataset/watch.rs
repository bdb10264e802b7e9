//! What other threads may ask while one waits for samples.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::config::DatasetConfig;
use super::plan::Inputs;
use super::state::{DatasetState, Generation, Position, Resume};
use super::stats::{Counters, Stats};

/// A view of a [`Samples`](super::Samples) for other threads: how far it is, its counters, and a way to stop it. It outlives
/// the reader.
#[derive(Debug, Clone)]
pub struct Watch(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    inputs: Arc<Inputs>,
    config: DatasetConfig,
    first_epoch: u64,
    earlier: Vec<Generation>,
    counters: Arc<Counters>,
    stopped: AtomicBool,
    told: Mutex<Told>,
}

/// Held for moments, once per sample or batch.
#[derive(Debug)]
struct Told {
    /// What was delivered: what is in a batch that is not complete was not.
    delivered: Position,
    /// The same before the last sample or batch.
    before: Position,
    stats: Stats,
    waiting_since: Option<Instant>,
}

impl Watch {
    pub(super) fn new(
        inputs: Arc<Inputs>,
        config: DatasetConfig,
        resume: &Resume,
        counters: Arc<Counters>,
    ) -> Self {
        Self(Arc::new(Shared {
            inputs,
            config,
            first_epoch: resume.first_epoch,
            earlier: resume.earlier.clone(),
            counters,
            stopped: AtomicBool::new(false),
            told: Mutex::new(Told {
                delivered: resume.position,
                before: resume.position,
                stats: Stats::default(),
                waiting_since: None,
            }),
        }))
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.0.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far the consumer is: exactly what was delivered to it, whatever was read ahead.
    pub fn state(&self) -> DatasetState {
        let delivered = self.told().delivered;
        self.state_at(delivered)
    }

    /// How far the consumer was before the last sample or batch: for whoever has to fetch what those tell of, and could not
    /// yet.
    pub fn state_before(&self) -> DatasetState {
        let before = self.told().before;
        self.state_at(before)
    }

    fn state_at(&self, position: Position) -> DatasetState {
        let Shared {
            inputs,
            config,
            first_epoch,
            earlier,
            ..
        } = &*self.0;
        let mut generations = earlier.clone();
        generations.push(Generation::of(config, position));
        DatasetState::of_consumer(inputs, config, *first_epoch, generations)
    }

    /// What was counted since it began, the wait at hand included.
    pub fn stats(&self) -> Stats {
        let told = self.told();
        let mut stats = self.0.counters.complete(&told.stats);
        stats.waited += told
            .waiting_since
            .map_or(Duration::ZERO, |since| since.elapsed());
        stats
    }

    /// The epoch of the next sample, as far as was delivered.
    pub fn epoch(&self) -> u64 {
        self.told().delivered.epoch
    }

    /// Ends the reading: who asks for the next sample finds the end, at most one of its time limits later.
    pub fn stop(&self) {
        self.0.stopped.store(true, Ordering::Relaxed);
    }

    /// Whether it was stopped.
    pub fn is_stopped(&self) -> bool {
        self.0.stopped.load(Ordering::Relaxed)
    }

    pub(super) fn delivered(&self, position: Position, stats: &Stats) {
        let mut told = self.told();
        told.before = told.delivered;
        told.delivered = position;
        told.stats.clone_from(stats);
    }

    /// The next epoch began: nothing was delivered.
    pub(super) fn moved_on(&self, position: Position, stats: &Stats) {
        let mut told = self.told();
        told.delivered = position;
        told.stats.clone_from(stats);
    }

    pub(super) fn waits(&self) {
        self.told().waiting_since = Some(Instant::now());
    }

    pub(super) fn waited(&self, stats: &Stats) {
        let mut told = self.told();
        told.waiting_since = None;
        told.stats.clone_from(stats);
    }
}
