//! File mode: the whole input on disk, in parallel, each file there completely or not at all.
//!
//! One thread lists; it skips what is on disk already and hands each other object to one of a few lanes, the one with
//! the fewest bytes before it. A lane is a thread with a stream of its own from the shared engine (which fetches the
//! parts of all lanes in parallel, within one budget) and writes its files one after another:
//!
//! ```text
//! listing ──> skip what is complete ──┬─> lane 0: engine stream ──> temp file ──> rename
//!                                     └─> lane 1: ...
//! ```
//!
//! **Atomic.** A file is written under a temporary name beside its place and renamed when its last byte is there, so
//! that no name ever shows half a file. The temporary name is a function of the final one and is locked: what a killed
//! process left behind is used up by the next run, and two processes never write the same file.
//!
//! **Resuming.** A file whose size and modification time are the object's is complete: a finished file gets the
//! object's `LastModified` as its time, as `aws s3 sync` does it. A large one that was interrupted stays under its
//! temporary name, with a record of checksums beside it (`record`). The next run reads it again, keeps what is sound,
//! and has the engine go on behind that.
//!
//! **Verified.** The engine compares checksums and pins each object to one version; here the pieces must join up to
//! exactly the object's size before the rename.

mod directories;
mod file;
mod lane;
mod listing;
mod names;
mod record;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::input::{Listed, Selection, Source};
use crate::metrics::{Counter, Gauge, Presence};
use crate::prefetch::{PrefetchConfig, Prefetcher};

use directories::MadeDirectories;
use lane::Lane;

pub(crate) use names::is_temporary;
pub use names::local_name;

/// How long a thread waits for bytes or for a listing before it looks whether it should stop: a person who presses
/// Ctrl-C does not notice it.
const STOP_POLL: Duration = Duration::from_millis(50);

/// One that is written, and some on their way.
const PARTS_PER_LANE: u64 = 4;

/// How files are written.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DownloadConfig {
    /// Threads that write files, at most. Eight saturate a local NVMe disk with small files; each also holds at least
    /// one part of the engine's memory.
    pub lanes: NonZeroUsize,
    /// Whether each file is flushed to the disk before it gets its name, and its directory after. Without it a killed
    /// process never leaves half a file, but a machine that loses power may; it then costs a second download, which
    /// is why it is off.
    pub fsync: bool,
}

impl Default for DownloadConfig {
    fn default() -> Self {
        Self {
            lanes: NonZeroUsize::new(8).unwrap_or(NonZeroUsize::MIN),
            fsync: false,
        }
    }
}

impl DownloadConfig {
    /// As many lanes as have some parts of the engine's memory each: one that owns a single part waits a round trip for
    /// each next.
    pub fn fitting(engine: &PrefetchConfig) -> Self {
        let mut config = Self::default();
        let affordable = engine.memory_bytes / (PARTS_PER_LANE * engine.part_bytes.max(1));
        let affordable = usize::try_from(affordable).unwrap_or(usize::MAX);
        let affordable = NonZeroUsize::new(affordable).unwrap_or(NonZeroUsize::MIN);
        config.lanes = config.lanes.min(affordable);
        config
    }
}

/// How far a download is; shared with whoever shows it.
#[derive(Debug, Default)]
pub struct DownloadProgress {
    /// Objects listed so far.
    pub found_files: Counter,
    /// Their bytes.
    pub found_bytes: Counter,
    /// Files that were complete before.
    pub skipped_files: Counter,
    /// Their bytes.
    pub skipped_bytes: Counter,
    /// Files finished by this run.
    pub written_files: Counter,
    /// Bytes written by this run, also to files that are not finished.
    pub written_bytes: Counter,
    /// Bytes of its files that an earlier run had written and that were found sound.
    pub resumed_bytes: Gauge,
    /// Bytes of unfinished files that another run can go on with: known at the end.
    pub kept_bytes: Counter,
    /// Nanoseconds that lanes had a file to write.
    busy_ns: Counter,
    /// Nanoseconds of them that they waited for its bytes.
    stalled_ns: Counter,
    /// Nanoseconds of them that the disk took.
    blocked_ns: Counter,
    listed: AtomicBool,
}

impl DownloadProgress {
    /// Whether the listing is complete, so that the totals are final.
    pub fn is_listed(&self) -> bool {
        self.listed.load(Ordering::Acquire)
    }

    /// How the lanes spent the time in which they had a file to write.
    pub fn presence(&self) -> Presence {
        Presence {
            present: Duration::from_nanos(self.busy_ns.get()),
            stalled: Duration::from_nanos(self.stalled_ns.get()),
            blocked: Duration::from_nanos(self.blocked_ns.get()),
        }
    }
}

/// One download, to be run by [`run`](Self::run).
#[derive(Debug)]
pub struct Download {
    engine: Prefetcher,
    what: What,
    directory: PathBuf,
    config: DownloadConfig,
    progress: Arc<DownloadProgress>,
    stop: Arc<Stop>,
    made: MadeDirectories,
}

/// What is downloaded.
#[derive(Debug)]
enum What {
    /// To be found.
    Selection(Selection),
    /// Found.
    Listed(Arc<Listed>),
}

/// Ends a download early: set by whoever asks, or by the first failure.
#[derive(Debug, Default)]
pub struct Stop {
    flag: AtomicBool,
    reason: Mutex<Option<Error>>,
}

impl Stop {
    /// Asks for the end; of large files that are not finished, another run goes on with what is there.
    pub fn cancel(&self) {
        self.fail(Error::Cancelled);
    }

    fn fail(&self, error: Error) {
        let mut reason = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        reason.get_or_insert(error);
        self.flag.store(true, Ordering::Release);
    }

    /// Whether the end was asked for, or something has failed.
    pub fn is_stopped(&self) -> bool {
        self.flag.load(Ordering::Acquire)
    }

    fn result(&self) -> Result<()> {
        let reason = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        reason.clone().map_or(Ok(()), Err)
    }
}

impl Download {
    /// A download of `source` into `directory`, which is made if it is missing.
    pub fn new(
        engine: Prefetcher,
        source: Source,
        directory: impl Into<PathBuf>,
        config: DownloadConfig,
    ) -> Self {
        Self::of(engine, source.into(), directory, config)
    }

    /// The same of a manifest, or of a host's share.
    pub fn of(
        engine: Prefetcher,
        selection: Selection,
        directory: impl Into<PathBuf>,
        config: DownloadConfig,
    ) -> Self {
        Self::what(engine, What::Selection(selection), directory, config)
    }

    /// The same of objects that were listed already.
    pub fn listed(
        engine: Prefetcher,
        listed: Arc<Listed>,
        directory: impl Into<PathBuf>,
        config: DownloadConfig,
    ) -> Self {
        Self::what(engine, What::Listed(listed), directory, config)
    }

    fn what(
        engine: Prefetcher,
        what: What,
        directory: impl Into<PathBuf>,
        config: DownloadConfig,
    ) -> Self {
        Self {
            engine,
            what,
            directory: directory.into(),
            config,
            progress: Arc::default(),
            stop: Arc::default(),
            made: MadeDirectories::default(),
        }
    }

    /// Has it ended by `stop`, which others may hold already.
    #[must_use]
    pub fn stopped_by(mut self, stop: Arc<Stop>) -> Self {
        self.stop = stop;
        self
    }

    /// How far it is.
    pub fn progress(&self) -> &Arc<DownloadProgress> {
        &self.progress
    }

    /// What ends it early.
    pub fn stop(&self) -> &Arc<Stop> {
        &self.stop
    }

    /// Downloads everything; blocks, so it must not be called inside async code.
    ///
    /// The first failure ends it. What is finished stays, large files that are not stay under temporary names, and
    /// another run goes on from there.
    pub fn run(&self) -> Result<()> {
        if let What::Selection(selection) = &self.what {
            selection.source.root()?;
        }
        self.check_directory()?;
        std::thread::scope(|scope| -> Result<()> {
            let mut lanes = Vec::new();
            for _ in 0..self.config.lanes.get() {
                let (lane, mut writer) = Lane::start(&self.engine)?;
                lanes.push(lane);
                scope.spawn(move || {
                    // The error is noted before the writer goes away: a lister that finds it gone must not be first.
                    self.unless_stopped(writer.run(self));
                    drop(writer);
                });
            }
            self.unless_stopped(listing::distribute(self, lanes));
            Ok(())
        })?;
        let result = self.stop.result();
        if result.is_err() {
            self.made.take_away();
        }
        result
    }

    /// Finds out early whether files can be put there, and leaves no directory behind.
    fn check_directory(&self) -> Result<()> {
        let made = MadeDirectories::default();
        let result = made.make(&self.directory);
        made.take_away();
        result.map_err(|source| Error::io(&self.directory, source))
    }

    fn count(&self, lane: Presence) {
        self.progress.busy_ns.add_time(lane.present);
        self.progress.stalled_ns.add_time(lane.stalled);
        self.progress.blocked_ns.add_time(lane.blocked);
        self.engine.metrics().sink_wait_ns.add_time(lane.blocked);
    }

    fn unless_stopped(&self, result: Result<()>) {
        if let Err(error) = result {
            self.stop.fail(error);
        }
    }
}

#[cfg(test)]
mod tests;
