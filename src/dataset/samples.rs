//! The consumer's end: samples one by one, or in batches.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::config::{Consumer, DatasetConfig};
use super::lane::{Lanes, Taken};
use super::plan::{Inputs, Plan};
use super::progress::Progress;
use super::state::{DatasetState, Generation, Position, Resume};
use super::stats::{Counters, Stats};
use super::watch::Watch;
use super::window::Windows;
use crate::error::{Error, Result};
use crate::object::ObjectId;
use crate::prefetch::Prefetcher;
use crate::record::Record;

/// Shuffled, a consumer of several may get objects without records for some epochs, and others later: with half of the
/// objects empty, this often in a row once in 10^19.
const BARREN_EPOCHS: u32 = 64;

/// A record and where it is from.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Its object, with the version that was read.
    pub object: Arc<ObjectId>,
    /// The object's place in the data set's unshuffled order.
    pub object_index: u32,
    /// The epoch that it was given out in.
    pub epoch: u64,
    /// What it holds.
    pub record: Record,
}

/// What a wait with a time limit gave.
#[derive(Debug)]
pub enum Next {
    /// A sample.
    Sample(Box<Sample>),
    /// There are no more.
    End,
    /// None came in time; ask again.
    TimedOut,
}

/// What a wait for a batch gave.
#[derive(Debug)]
pub enum NextBatch {
    /// Samples of one epoch.
    Batch(Vec<Sample>),
    /// There are no more.
    End,
    /// It is not complete yet; ask again.
    TimedOut,
}

/// Samples of one consumer, epoch after epoch. It blocks the thread that asks; its own threads stop when it is dropped.
///
/// As an iterator it yields an error once, as its last item; asked otherwise, it gives the same error again.
#[derive(Debug)]
pub struct Samples {
    engine: Prefetcher,
    inputs: Arc<Inputs>,
    config: DatasetConfig,
    first_epoch: u64,
    earlier: Vec<Generation>,
    epoch: u64,
    /// The epoch that is being read; none before its first sample is asked for, and at the end.
    run: Option<Run>,
    /// Where that epoch begins.
    start: Progress,
    /// What was delivered: what is in a batch that is not complete was not.
    delivered: Position,
    /// Whether anything was delivered, or left out as was asked, in this epoch.
    gave: bool,
    /// Epochs in a row, up to the last one, that gave nothing.
    barren: u32,
    batch: Vec<Sample>,
    skip: u64,
    failed: Option<Error>,
    told: bool,
    counters: Arc<Counters>,
    stats: Stats,
    watch: Watch,
}

/// An epoch that is being read.
#[derive(Debug)]
struct Run {
    lanes: Lanes,
    windows: Windows,
    target: Option<u64>,
    /// Whether samples of the epoch are given again until there are so many.
    is_padded: bool,
    /// What comes behind the samples that are there.
    failed: Option<Error>,
}

impl Run {
    /// While one window is given out, the next one fills, with what is there.
    fn fill(&mut self) {
        if self.failed.is_some() || !self.windows.is_hungry() {
            return;
        }
        match self.lanes.take(Instant::now()) {
            Ok(Taken::Group(group)) => self.windows.push(group.samples),
            Ok(Taken::End | Taken::TimedOut) => {}
            Err(error) => self.failed = Some(error),
        }
    }
}

impl Samples {
    pub(super) fn start(
        engine: Prefetcher,
        inputs: Arc<Inputs>,
        config: DatasetConfig,
        resume: Resume,
    ) -> Result<Self> {
        let counters = Arc::<Counters>::default();
        let watch = Watch::new(inputs.clone(), config.clone(), &resume, counters.clone());
        let mut samples = Self {
            engine,
            inputs,
            config,
            first_epoch: resume.first_epoch,
            earlier: resume.earlier,
            epoch: resume.position.epoch,
            run: None,
            start: resume.position.progress,
            delivered: resume.position,
            gave: resume.position.progress != Progress::default(),
            barren: 0,
            batch: Vec::new(),
            skip: resume.position.skip,
            failed: None,
            told: false,
            counters,
            stats: Stats::default(),
            watch,
        };
        if !samples.is_last_done() {
            samples.run = Some(samples.open()?);
        }
        Ok(samples)
    }

    fn is_last_done(&self) -> bool {
        let epochs = self.config.epochs;
        self.watch.is_stopped()
            || epochs.is_some_and(|epochs| self.epoch >= self.first_epoch.saturating_add(epochs))
    }

    fn open(&self) -> Result<Run> {
        let plan = Arc::new(Plan::new(
            &self.inputs,
            &self.config,
            self.epoch,
            &self.earlier,
        ));
        let lanes = Lanes::start(
            self.engine.clone(),
            self.inputs.clone(),
            self.config.clone(),
            plan.clone(),
            self.epoch,
            self.counters.clone(),
            self.start.at,
        )?;
        Ok(Run {
            lanes,
            target: plan.target,
            is_padded: plan.padding_round() > 0,
            failed: None,
            windows: Windows::new(plan, self.config.shuffle, self.epoch, self.start),
        })
    }

    /// The epoch of the next sample.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Who it is that reads.
    pub fn consumer(&self) -> Consumer {
        self.config.consumer
    }

    /// What was counted since it began.
    pub fn stats(&self) -> Stats {
        self.counters.complete(&self.stats)
    }

    /// How far this consumer is: exactly what it delivered, whatever was read ahead.
    pub fn state(&self) -> DatasetState {
        self.watch.state()
    }

    /// For other threads, while this one waits.
    pub fn watch(&self) -> &Watch {
        &self.watch
    }

    /// Waits at most `limit` for the next sample.
    ///
    /// # Errors
    /// What stopped the reading, after the samples before it; then the same again.
    pub fn next_timeout(&mut self, limit: Duration) -> Result<Next> {
        let deadline = Instant::now() + limit;
        loop {
            let next = self.step(deadline)?;
            if let Next::Sample(_) = next {
                self.note_delivery();
            }
            match next {
                Next::End if !self.is_last_done() => self.next_epoch()?,
                next => return Ok(next),
            }
            // Epochs may hold nothing for this consumer, one after the other.
            if Instant::now() >= deadline {
                return Ok(Next::TimedOut);
            }
        }
    }

    /// Waits at most `limit` for the next batch. One batch never holds samples of two epochs.
    ///
    /// # Errors
    /// As [`next_timeout`](Self::next_timeout); samples of a batch that is not complete are not delivered.
    pub fn next_batch_timeout(&mut self, limit: Duration) -> Result<NextBatch> {
        let deadline = Instant::now() + limit;
        loop {
            match self.step(deadline)? {
                Next::Sample(sample) => self.batch.push(*sample),
                Next::TimedOut => return Ok(NextBatch::TimedOut),
                Next::End => {
                    let rest = std::mem::take(&mut self.batch);
                    if !rest.is_empty() && !self.config.drop_last {
                        self.note_delivery();
                        return Ok(NextBatch::Batch(rest));
                    }
                    if self.is_last_done() {
                        return Ok(NextBatch::End);
                    }
                    self.next_epoch()?;
                    if Instant::now() >= deadline {
                        return Ok(NextBatch::TimedOut);
                    }
                }
            }
            if self.batch.len() >= self.config.batch {
                self.note_delivery();
                return Ok(NextBatch::Batch(std::mem::take(&mut self.batch)));
            }
        }
    }

    fn note_delivery(&mut self) {
        self.gave = true;
        if let Some(run) = &self.run {
            self.delivered = Position {
                epoch: self.epoch,
                progress: run.windows.progress(),
                skip: self.skip,
            };
        }
        self.watch.delivered(self.delivered, &self.stats);
    }

    /// The next sample of this epoch, or its end.
    pub(super) fn step(&mut self, deadline: Instant) -> Result<Next> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if self.watch.is_stopped() {
            self.run = None;
            self.batch.clear();
            return Ok(Next::End);
        }
        let next = self.try_step(deadline);
        if let Err(error) = &next {
            self.failed = Some(error.clone());
            self.run = None;
        }
        next
    }

    fn try_step(&mut self, deadline: Instant) -> Result<Next> {
        let Some(run) = &mut self.run else {
            return Ok(Next::End);
        };
        loop {
            let full = run
                .target
                .is_some_and(|target| run.windows.progress().given >= target);
            if full {
                return Ok(Next::End);
            }
            if let Some(sample) = run.windows.next()? {
                run.fill();
                if self.skip > 0 {
                    self.skip -= 1;
                    self.gave = true;
                    continue;
                }
                self.stats.samples += 1;
                self.stats.bytes += sample.record.len_bytes();
                return Ok(Next::Sample(Box::new(sample)));
            }
            if let Some(error) = run.failed.take() {
                return Err(error);
            }
            if run.windows.has_ended() {
                let given = run.windows.progress().given;
                return match run.target.filter(|_| !run.is_padded) {
                    Some(target) => Err(too_few(given, target)),
                    None => Ok(Next::End),
                };
            }
            let since = Instant::now();
            self.watch.waits();
            let taken = run.lanes.take(deadline);
            self.stats.waited += since.elapsed();
            self.watch.waited(&self.stats);
            match taken? {
                Taken::Group(group) => run.windows.push(group.samples),
                Taken::End => run.windows.end(),
                Taken::TimedOut => return Ok(Next::TimedOut),
            }
        }
    }

    /// Refuses to go on without end where no epoch gives anything: whoever asks for the next sample would wait for ever.
    fn check_yield(&mut self) -> Result<()> {
        self.barren = match std::mem::take(&mut self.gave) {
            true => 0,
            false => self.barren + 1,
        };
        let alone = self.config.consumer.count() == 1;
        let patience = match self.config.shuffle {
            Some(_) if !alone => BARREN_EPOCHS,
            _ => 1,
        };
        if self.config.epochs.is_some() || self.barren < patience {
            return Ok(());
        }
        let stats = self.stats();
        let flaw = stats
            .skipped
            .first()
            .map_or(String::new(), |flaw| format!("; the first flaw: {flaw}"));
        let reason = format!(
            "epoch {} gave this consumer no sample ({} objects in all; {} records and the rest of {} objects were corrupt{flaw}), and without end none would",
            self.epoch,
            self.inputs.objects.len(),
            stats.skipped_records,
            stats.skipped_objects,
        );
        Err(Error::unusable(
            "epochs",
            reason,
            "name inputs that hold samples, without drop_last a batch that they fill, or a number of epochs",
        ))
    }

    /// Goes on to the next epoch; to none behind the last.
    fn next_epoch(&mut self) -> Result<()> {
        self.run = None;
        if let Err(error) = self.check_yield() {
            self.failed = Some(error.clone());
            return Err(error);
        }
        self.epoch += 1;
        self.start = Progress::default();
        self.delivered = Position {
            epoch: self.epoch,
            progress: self.start,
            skip: self.skip,
        };
        self.watch.moved_on(self.delivered, &self.stats);
        if self.is_last_done() {
            return Ok(());
        }
        match self.open() {
            Ok(run) => {
                self.run = Some(run);
                Ok(())
            }
            Err(error) => {
                self.failed = Some(error.clone());
                Err(error)
            }
        }
    }
}

/// A consumer that ends before the others lets them wait in their next collective operation.
fn too_few(given: u64, target: u64) -> Error {
    let reason = format!(
        "this consumer has {given} samples, and {target} by the records that were given for its objects"
    );
    Error::unusable(
        "counts",
        reason,
        "count the records anew, or read without even",
    )
}

/// Blocks until there is a sample. An error is the last item.
impl Iterator for Samples {
    type Item = Result<Sample>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if self.told {
                return None;
            }
            match self.next_timeout(Duration::from_secs(3600)) {
                Ok(Next::Sample(sample)) => return Some(Ok(*sample)),
                Ok(Next::End) => return None,
                Ok(Next::TimedOut) => {}
                Err(error) => {
                    self.told = true;
                    return Some(Err(error));
                }
            }
        }
    }
}
