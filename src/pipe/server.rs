//! The channels of one directory, from the first FIFO to the last.

use std::fmt;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use super::attendance::Attendance;
use super::cancel::Canceller;
use super::channel::{ChannelWriter, CutOff, Shared, lock};
use super::feed::Feed;
use super::fifo;
use super::lock::DirLock;
use super::name::{ChannelName, check_names};
use super::position::{Position, Tracker};
use super::{ChannelSummary, OnFailure, PipeChannel, PipeConfig, PipeSummary};
use crate::error::{Error, Result};
use crate::metrics::Metrics;

/// How often readers that outlived everything are looked for: nobody waits for the answer.
const READER_POLL: Duration = Duration::from_millis(20);

type Ended = std::thread::Result<Result<()>>;

/// Serves channels as FIFOs.
///
/// Dropping it cancels it. Write ends of epochs that were cut off stay open until then, because a reader cannot tell a
/// closed one from the end of the data: after a failure, exit the process with the server still in hand.
pub struct PipeServer {
    shared: Arc<Shared>,
    summaries: Vec<Arc<Mutex<ChannelSummary>>>,
    trackers: Vec<Arc<Mutex<Tracker>>>,
    threads: Vec<JoinHandle<()>>,
    /// One message from each thread as it ends; gone threads that sent none are not possible, panics are caught.
    ended: Receiver<Ended>,
    failed: Option<Error>,
    started: Instant,
    lock: Option<DirLock>,
}

impl fmt::Debug for PipeServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PipeServer")
            .field("config", &self.shared.config)
            .field("channels", &self.summaries)
            .finish_non_exhaustive()
    }
}

impl PipeServer {
    /// Starts to serve. When this returns, the FIFO of epoch 0 exists for every channel, and reading ahead has begun.
    ///
    /// `on_failure` is called at once when an epoch fails, from the channel's thread; [`wait`](Self::wait) returns the
    /// error only when the reader has gone or the grace period is over.
    pub fn start(
        config: PipeConfig,
        channels: Vec<PipeChannel>,
        metrics: Arc<Metrics>,
        on_failure: OnFailure,
    ) -> Result<Self> {
        config.validate()?;
        if channels.is_empty() {
            return Err(Error::config("channel", "none is given: name at least one"));
        }
        check_names(channels.iter().map(|channel| &channel.name))?;
        // First of all: the listings are on their way while the directory is made.
        let feeds: Vec<_> = channels
            .iter()
            .map(|channel| Feed::new((channel.source)(0)))
            .collect();
        std::fs::create_dir_all(&config.dir).map_err(|error| Error::io(&config.dir, error))?;
        let dir_lock = DirLock::take(&config.dir)?;
        for channel in &channels {
            sweep(&config.dir, &channel.name, config.epochs)?;
        }
        let shared = Arc::new(Shared {
            config,
            metrics,
            canceller: Canceller::new()?,
            on_failure,
            attendance: Attendance::default(),
            is_ending: AtomicBool::new(false),
            kept: Mutex::default(),
        });
        let writers: Vec<_> = channels
            .into_iter()
            .zip(feeds)
            .map(|(channel, feed)| ChannelWriter::new(channel, feed, shared.clone()))
            .collect::<Result<_>>()?;
        Self::spawn(writers, shared, dir_lock)
    }

    fn spawn(writers: Vec<ChannelWriter>, shared: Arc<Shared>, dir_lock: DirLock) -> Result<Self> {
        let (tell, ended) = channel();
        let mut server = Self {
            summaries: writers.iter().map(ChannelWriter::summary).collect(),
            trackers: writers.iter().map(ChannelWriter::tracker).collect(),
            shared,
            threads: Vec::with_capacity(writers.len()),
            ended,
            failed: None,
            started: Instant::now(),
            lock: Some(dir_lock),
        };
        for writer in writers {
            let thread = spawn(writer, tell.clone())?;
            server.threads.push(thread);
        }
        Ok(server)
    }

    /// What stops the server, from a signal handler's task for one.
    pub fn canceller(&self) -> Canceller {
        self.shared.canceller.clone()
    }

    /// How far every channel has come.
    pub fn summary(&self) -> PipeSummary {
        self.watch().summary()
    }

    /// The same for another thread, while this one waits.
    pub fn watch(&self) -> Watch {
        Watch {
            shared: self.shared.clone(),
            summaries: self.summaries.clone(),
            trackers: self.trackers.clone(),
            started: self.started,
        }
    }

    /// Waits until every channel has served all its epochs, or one has failed, or the server is cancelled.
    ///
    /// After the first failure, the other channels are cut off. No FIFO is left when this returns. Their readers, if any,
    /// still have no end of the data: see [`outlast_grace`](Self::outlast_grace).
    pub fn wait(&mut self) -> Result<PipeSummary> {
        let mut panicked = None;
        for _ in 0..self.threads.len() {
            match self.ended.recv() {
                Ok(Ok(Ok(()))) => continue,
                Ok(Ok(Err(error))) => _ = self.failed.get_or_insert(error),
                Ok(Err(panic)) => panicked = Some(panic),
                Err(_) => break,
            }
            self.shared.canceller.cancel();
        }
        self.join();
        if let Some(panic) = panicked {
            resume_unwind(panic);
        }
        self.failed.clone().map_or_else(|| Ok(self.summary()), Err)
    }

    /// Waits until nobody reads what was cut off, and whether that came about in time: dropping this looks like the end
    /// of the data to whoever still does.
    pub(crate) fn outlast_readers(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        self.outlast(|_| Instant::now() < until)
    }

    /// Waits until nobody reads what was cut off, for each reader no longer than
    /// [`failure_grace`](PipeConfig::failure_grace), and only as long as `goes_on`; whether nobody does. Dropping this
    /// looks like the end of the data to whoever still reads.
    pub fn outlast_grace(&self, goes_on: impl Fn() -> bool) -> bool {
        self.outlast(|cut_off| goes_on() && Instant::now() < cut_off.until)
    }

    fn outlast(&self, is_waited_for: impl Fn(&CutOff) -> bool) -> bool {
        let cancel = self.shared.canceller.as_fd();
        loop {
            let kept = lock(&self.shared.kept);
            let is_read = |cut_off: &&CutOff| cut_off.sink.has_reader(cancel);
            if !kept
                .iter()
                .any(|cut_off| is_waited_for(cut_off) && is_read(&cut_off))
            {
                return !kept.iter().any(|cut_off| is_read(&cut_off));
            }
            drop(kept);
            std::thread::sleep(READER_POLL);
        }
    }

    fn join(&mut self) {
        for thread in self.threads.drain(..) {
            // Panics were caught and sent.
            let _ = thread.join();
        }
        self.lock = None;
    }
}

/// Looks at a [`PipeServer`] from another thread.
#[derive(Clone)]
pub struct Watch {
    shared: Arc<Shared>,
    summaries: Vec<Arc<Mutex<ChannelSummary>>>,
    trackers: Vec<Arc<Mutex<Tracker>>>,
    started: Instant,
}

impl Watch {
    /// How far every channel has come.
    pub fn summary(&self) -> PipeSummary {
        PipeSummary {
            elapsed: self.started.elapsed(),
            attended: self.shared.attendance.total(Instant::now()),
            channels: self
                .summaries
                .iter()
                .map(|summary| lock(summary).clone())
                .collect(),
        }
    }

    /// How far the readers have come: what lies in the pipes, they have not taken.
    pub fn positions(&self) -> Vec<(ChannelName, Position)> {
        let each = self.summaries.iter().zip(&self.trackers);
        each.map(|(summary, tracker)| {
            let name = lock(summary).channel.clone();
            (name, lock(tracker).position())
        })
        .collect()
    }

    /// Readers were asked to end: one that leaves from now on leaves where it is, and has not used up the epoch.
    pub(crate) fn ending(&self) {
        self.shared.is_ending.store(true, Ordering::Relaxed);
    }

    /// Whether any channel has a reader now.
    pub fn has_reader(&self) -> bool {
        self.shared.attendance.is_anybody_there()
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch")
            .field("channels", &self.summaries)
            .finish_non_exhaustive()
    }
}

impl Drop for PipeServer {
    fn drop(&mut self) {
        self.shared.canceller.cancel();
        self.join();
    }
}

fn spawn(writer: ChannelWriter, tell: Sender<Ended>) -> Result<JoinHandle<()>> {
    let name = format!("pipe {}", writer.name());
    Builder::new()
        .name(name.clone())
        .spawn(move || {
            let ended = catch_unwind(AssertUnwindSafe(|| writer.run()));
            // The server is gone when nobody listens.
            let _ = tell.send(ended);
        })
        .map_err(|error| Error::io(name, error))
}

/// Clears away what an earlier server of this channel left: FIFOs of later epochs, and the reasons why it failed.
fn sweep(dir: &Path, channel: &ChannelName, epochs: Option<u64>) -> Result<()> {
    let failed = |error| Error::io(dir, error);
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let Some(name) = name.to_str() else { continue };
        let path = dir.join(name);
        let served = |epoch: u64| epochs.is_none_or(|epochs| epoch <= epochs);
        match channel.epoch_of_fifo(name) {
            // The first one is taken over when it is made: a reader may wait for it.
            Some(0) => {}
            Some(epoch) if served(epoch) => fifo::clear(&path)?,
            _ if channel.epoch_of_status(name).is_some() => {
                std::fs::remove_file(&path).map_err(|error| Error::io(&path, error))?;
            }
            _ => {}
        }
    }
    Ok(())
}
