//! In-process mode: objects become samples, in an order that every process can compute, and each sample comes once.
//!
//! ```text
//! listing --permuted per epoch--> objects --dealt out--> this consumer's objects
//!   --engine, decoder threads--> records --windows, shuffled--> samples --> batches
//! ```
//!
//! # Order
//!
//! The order is a pure function of seed, epoch and listing. An epoch's objects are permuted as one list
//! ([`permutation`](crate::input::permutation)), then dealt out in turn to the *consumers*: every worker of every rank. A
//! consumer reads its objects one after the other. Its records are cut into *windows* of consecutive ones, and each
//! window is shuffled by itself: the order within depends on the seed, the epoch and the place where the window begins. So
//! a shuffle is rebuilt exactly from that place and the number of samples that were given out, and no record is read that
//! the window does not hold. While one window is given out, the next is being filled.
//!
//! # State
//!
//! [`Samples::state`] says how far a consumer is: a small value, JSON for who stores it. It counts what was delivered,
//! not what was read ahead. [`DatasetState::merge`] makes one of all consumers' states, and [`Dataset::load`] goes on
//! from either: with the same number of consumers each goes on where it was, in the same order. With another number the
//! rest is dealt out anew, beginning with what was begun; each remaining sample comes once. Reading goes on at a
//! record's first byte by a ranged request; only compressed objects are inflated again from their start.
//!
//! # Threads
//!
//! A [`Samples`] has [`DatasetConfig::threads`] threads that read and decode; they stop when it is dropped. Its consumer
//! waits for them with a time limit, so that a caller can look at signals. Samples are slices of the engine's memory and
//! count against its budget while they live; when consumers hold more than half of it, further ones are copied out, and
//! counted ([`Stats::copied_bytes`]), so that whoever collects an epoch into a list does not starve the engine. What is
//! decompressed is no part of that budget: it is bounded by the groups that threads hand over (1 MiB each, three a thread)
//! and the windows of a shuffle. Other threads ask a [`Watch`] how far it is.

mod config;
mod lane;
mod plan;
mod progress;
mod rows;
mod samples;
mod state;
mod stats;
mod watch;
mod window;

pub use config::{Consumer, DatasetConfig, Even, OnError, Shuffle};
pub use rows::{RowGroup, row_decoding};
pub use samples::{Next, NextBatch, Sample, Samples};
pub use state::DatasetState;
pub use stats::Stats;
pub use watch::Watch;

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::object::ObjectMeta;
use crate::prefetch::Prefetcher;
use plan::Inputs;
use state::Resume;

/// Objects as samples. It starts nothing by itself; [`samples`](Self::samples) does.
///
/// ```
/// use std::sync::Arc;
/// use futures::TryStreamExt as _;
/// use standpipe::client::{MemoryClient, ObjectClient as _};
/// use standpipe::dataset::{Dataset, DatasetConfig};
/// use standpipe::prefetch::{PrefetchConfig, Prefetcher};
/// use standpipe::record::{Data, Decoding, RecordFormat};
///
/// # let runtime = tokio::runtime::Runtime::new().unwrap();
/// let client = MemoryClient::default();
/// client.put("memory://bucket/words.txt".parse()?, "one\ntwo\n");
/// # let listed = runtime.block_on(async { client.head(&"memory://bucket/words.txt".parse()?).await })?;
/// let engine = Prefetcher::new(Arc::new(client), PrefetchConfig::default(), Arc::default())?;
/// let config = DatasetConfig::new(Decoding::new(RecordFormat::Lines));
/// let dataset = Dataset::new(engine, vec![listed], config)?;
/// let mut words = Vec::new();
/// for sample in dataset.samples()? {
///     words.push(sample?.record.data);
/// }
/// assert_eq!(words, [Data::Bytes("one".into()), Data::Bytes("two".into())]);
/// # Ok::<(), standpipe::error::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Dataset {
    engine: Prefetcher,
    inputs: Arc<Inputs>,
    config: DatasetConfig,
    resume: Resume,
}

impl Dataset {
    /// The objects in their unshuffled order, sizes and versions known, as a listing gives them.
    ///
    /// # Errors
    /// [`Error::Config`] naming the setting that can't work.
    pub fn new(
        engine: Prefetcher,
        objects: Vec<ObjectMeta>,
        config: DatasetConfig,
    ) -> Result<Self> {
        config.validate()?;
        let inputs = Arc::new(Inputs::new(objects, &config)?);
        Ok(Self {
            engine,
            inputs,
            resume: Resume::start(config.epoch, config.skip),
            config,
        })
    }

    /// Goes on from a state: of this very consumer, or merged from all.
    ///
    /// # Errors
    /// [`Error::Config`] when the state belongs to other inputs, settings or consumers; nothing has changed then.
    pub fn load(&mut self, state: &DatasetState) -> Result<()> {
        self.resume = Resume::from(state, &self.inputs, &self.config)?;
        Ok(())
    }

    /// Starts anew at `epoch`.
    pub fn set_epoch(&mut self, epoch: u64) {
        self.config.epoch = epoch;
        self.resume = Resume::start(epoch, self.config.skip);
    }

    /// How it was set up.
    pub fn config(&self) -> &DatasetConfig {
        &self.config
    }

    /// The objects, in their unshuffled order.
    pub fn objects(&self) -> &[ObjectMeta] {
        &self.inputs.objects
    }

    /// The engine that reads them.
    pub fn engine(&self) -> &Prefetcher {
        &self.engine
    }

    /// Starts reading.
    ///
    /// # Errors
    /// [`Error::Config`] when the engine's memory can't hold one more stream.
    pub fn samples(&self) -> Result<Samples> {
        Samples::start(
            self.engine.clone(),
            self.inputs.clone(),
            self.config.clone(),
            self.resume.clone(),
        )
    }
}

#[cfg(test)]
mod tests;

/// An unusable state.
fn unusable_state(reason: impl Into<String>) -> Error {
    Error::unusable(
        "state",
        reason,
        "load the state into a dataset of the same inputs and settings, or start the epoch anew",
    )
}
