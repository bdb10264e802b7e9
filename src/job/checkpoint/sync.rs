//! The thread that keeps S3 like the directory.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::CheckpointConfig;
use super::changes::{Due, Ledger, Signature, scan};
use super::restore::Restored;
use super::stored::Stored;
use crate::client::S3Client;
use crate::error::{Error, Result};
use crate::job::cursor::{self, Cursor, Notes};
use crate::job::cutoff::Cutoff;
use crate::job::summary::CheckpointReport;
use crate::job::trainer::is_dying;
use crate::job::upload::{Uploaded, upload};
use crate::object::ObjectUri;
use crate::runtime;

/// Tells where the trainer is in its input.
pub(in crate::job) type Note = Box<dyn Fn(SystemTime) -> Cursor + Send>;

/// How often the directory is looked at, at least: half the settle time finds a change within one and a half of it.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How the last look is made.
#[derive(Debug, Clone, Copy)]
pub(in crate::job) struct Ending {
    /// When the trainer was killed, or died: what it was writing then is nobody's checkpoint. None if it ended by itself.
    pub(in crate::job) died: Option<SystemTime>,
}

/// From the moment on that a trainer is killed, or dies, nothing settles any more: nobody looks until the last look.
#[derive(Debug, Clone, Default)]
pub(in crate::job) struct Hold(Arc<Held>);

#[derive(Debug, Default)]
struct Held {
    since: Mutex<Option<SystemTime>>,
    /// 0 before there is one.
    trainer: AtomicI32,
}

impl Hold {
    /// Whose death it is about. That may take long (a core dump, much memory), and is told at its end only.
    pub(in crate::job) fn watch(&self, trainer: i32) {
        self.0.trainer.store(trainer, Ordering::Relaxed);
    }

    /// It is over with the trainer; since when, as far as anybody has noticed.
    pub(in crate::job) fn set(&self) -> SystemTime {
        let mut since = self.0.since.lock().unwrap_or_else(PoisonError::into_inner);
        *since.get_or_insert_with(SystemTime::now)
    }

    fn is_set(&self) -> bool {
        let since = *self.0.since.lock().unwrap_or_else(PoisonError::into_inner);
        let is_dying = since.is_none() && is_dying(self.0.trainer.load(Ordering::Relaxed));
        if is_dying {
            self.set();
        }
        since.is_some() || is_dying
    }
}

/// Keeps S3 like a directory until it is told to finish. Dropping it ends it without a last look.
#[derive(Debug)]
pub(in crate::job) struct Syncer {
    /// Dropped to end it; a message asks for the last look.
    orders: Option<Sender<Ending>>,
    thread: Option<JoinHandle<(CheckpointReport, Result<()>)>>,
}

impl Syncer {
    /// Begins with what is in S3 already.
    pub(in crate::job) fn start(
        client: S3Client,
        (prefix, directory): (ObjectUri, PathBuf),
        config: CheckpointConfig,
        restored: Restored,
        note: Option<Note>,
        (cutoff, hold): (Cutoff, Hold),
    ) -> Result<Self> {
        let (sender, orders) = channel();
        let mut keeper = Keeper {
            client,
            prefix,
            directory,
            config,
            ledger: Ledger::new(restored.scan),
            stored: restored.stored,
            report: CheckpointReport {
                restored_files: restored.files,
                restored_bytes: restored.bytes,
                kept_files: restored.kept_files,
                ..CheckpointReport::default()
            },
            cutoff,
            hold,
            note,
            notes: Notes::default(),
            written: None,
        };
        // Before there is a trainer: nothing was read.
        keeper.take_note();
        let thread = std::thread::Builder::new()
            .name("checkpoints".into())
            .spawn(move || keeper.run(&orders))
            .map_err(|error| Error::io("checkpoints", error))?;
        Ok(Self {
            orders: Some(sender),
            thread: Some(thread),
        })
    }

    /// The last look, when nobody writes any more: everything goes up, settled or not, unless the trainer died over it.
    pub(in crate::job) fn finish(mut self, ending: Ending) -> (CheckpointReport, Result<()>) {
        if let Some(orders) = &self.orders {
            let _ = orders.send(ending);
        }
        let died = || Error::Internal {
            what: "the sync of checkpoints".into(),
        };
        let ended = self.thread.take().map(JoinHandle::join);
        match ended {
            Some(Ok(outcome)) => outcome,
            _ => (CheckpointReport::default(), Err(died())),
        }
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What became of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    /// It is in S3 as it was seen.
    Stored,
    /// It changed under the upload, which was given up.
    Changed,
    /// There was no more time.
    CutOff,
}

/// What became of a look.
struct Outcome {
    result: Result<()>,
    /// Whether anything in S3 has changed.
    wrote: bool,
}

/// The thread's own.
struct Keeper {
    client: S3Client,
    prefix: ObjectUri,
    directory: PathBuf,
    config: CheckpointConfig,
    ledger: Ledger,
    stored: Stored,
    report: CheckpointReport,
    cutoff: Cutoff,
    hold: Hold,
    note: Option<Note>,
    notes: Notes,
    /// When the oldest file was written of those that went up since the last cursor.
    written: Option<i128>,
}

impl Keeper {
    fn run(mut self, orders: &Receiver<Ending>) -> (CheckpointReport, Result<()>) {
        let pause = (self.config.settle / 2).clamp(Duration::from_millis(20), LONGEST_PAUSE);
        let ending = loop {
            match orders.recv_timeout(pause) {
                Err(RecvTimeoutError::Timeout) if self.hold.is_set() => {}
                Err(RecvTimeoutError::Timeout) => {
                    self.take_note();
                    // It may go better the next time; the last look insists.
                    if let Err(error) = self.look(self.config.settle, i128::MIN) {
                        tracing::warn!(%error, "checkpoints are not in S3 yet");
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return (self.report, Ok(())),
                Ok(ending) => break ending,
            }
        };
        let begun = Instant::now();
        let result = match ending.died.filter(|_| !self.config.upload_unsettled) {
            None => self.look(Duration::ZERO, i128::MIN),
            // How long it has been as it is, only its time tells: nobody looks at every moment.
            Some(died) => {
                let before = died.checked_sub(self.config.settle).unwrap_or(UNIX_EPOCH);
                let before = before.duration_since(UNIX_EPOCH).unwrap_or_default();
                let before = i128::try_from(before.as_nanos()).unwrap_or(i128::MAX);
                let result = self.look(Duration::MAX, before);
                self.doubt();
                result
            }
        };
        self.report.last_sync_seconds = begun.elapsed().as_secs_f64();
        (self.report, result)
    }

    /// The next run in this tree must not take for whole what was left out.
    fn doubt(&mut self) {
        for path in &self.report.unsettled_files {
            if let Some(signature) = self.ledger.seen(path) {
                self.stored.doubt(path, signature);
            }
        }
        if !self.report.unsettled_files.is_empty() {
            self.stored.write();
        }
    }

    fn look(&mut self, settle: Duration, settled_before_ns: i128) -> Result<()> {
        let seen = scan(&self.directory);
        let due = self
            .ledger
            .due(&seen, Instant::now(), settle, settled_before_ns);
        let outcome = self.act(&due);
        self.report.unsettled_files = due.unsettled;
        if outcome.wrote {
            self.stored.write();
        }
        outcome.result?;
        // Nobody gets it into S3; all others went there. The last look makes a failure of it.
        match seen.unknown.into_iter().next() {
            Some((_, error)) => Err(error),
            None => Ok(()),
        }
    }

    fn act(&mut self, due: &Due) -> Outcome {
        let before = (self.report.uploaded_files, self.report.deleted_files);
        let result = self
            .upload_all(due)
            .and_then(|()| self.delete_all(&due.delete));
        let after = (self.report.uploaded_files, self.report.deleted_files);
        Outcome {
            result,
            wrote: before != after,
        }
    }

    fn upload_all(&mut self, due: &Due) -> Result<()> {
        let mut unreadable = None;
        // What waits may be of the same checkpoint as what goes up.
        let mut is_whole = due.unsettled.iter().all(|path| cursor::is_ours(path));
        for (path, signature) in &due.upload {
            let file = match self.open(path, *signature) {
                Ok(Some(file)) => file,
                Ok(None) => {
                    is_whole = false;
                    continue;
                }
                // As with what could not be looked at.
                Err(error) => {
                    unreadable.get_or_insert(error);
                    continue;
                }
            };
            // In their order: what comes after a failure may point to what failed.
            match self.upload(path, *signature, file)? {
                Sent::Stored if !cursor::is_ours(path) => {
                    let written = self.written.get_or_insert(signature.mtime_ns);
                    *written = signature.mtime_ns.min(*written);
                }
                Sent::Stored => {}
                Sent::Changed => is_whole = false,
                Sent::CutOff => return Err(self.out_of_time(&due.upload)),
            }
        }
        if let Some(mtime_ns) = self.written.filter(|_| is_whole) {
            self.upload_cursor(cursor::time_of(mtime_ns))?;
            self.written = None;
        }
        unreadable.map_or(Ok(()), Err)
    }

    /// Says what is not in S3, and never will be.
    fn out_of_time(&mut self, due: &[(String, Signature)]) -> Error {
        let left = due
            .iter()
            .filter(|(path, signature)| !self.ledger.is_stored(path, *signature));
        let left: Vec<_> = left.map(|(path, _)| path.clone()).collect();
        let first = left.first().map(|path| self.uri(path).to_string());
        let what = format!(
            "the upload of {} checkpoint files ({}, ...)",
            left.len(),
            first.unwrap_or_default()
        );
        self.report.missing_files = left;
        Error::OutOfTime { what }
    }

    fn delete_all(&mut self, due: &[String]) -> Result<()> {
        for path in due.iter().filter(|_| self.config.delete) {
            let uri = self.uri(path);
            let deleted = self.cutoff.or_over(self.client.delete(&uri));
            match runtime::handle().block_on(deleted) {
                Some(deleted) => deleted?,
                None => {
                    let what = format!("the deletion of {uri}");
                    return Err(Error::OutOfTime { what });
                }
            }
            self.ledger.deleted(path);
            self.stored.remove(path);
            self.report.deleted_files += 1;
        }
        Ok(())
    }

    fn take_note(&mut self) {
        if let Some(note) = &self.note {
            let cursor = note(SystemTime::now());
            // Not before it was true: what was written in between would be matched to a later place than its own.
            self.notes.add(SystemTime::now(), cursor);
        }
    }

    /// Where the trainer was when the oldest of these files was written goes behind them, once nothing waits that may belong
    /// to them: should it not arrive, the data in between is read twice, not left out.
    fn upload_cursor(&mut self, written: SystemTime) -> Result<()> {
        let Some(cursor) = self.notes.at(written) else {
            return Ok(());
        };
        let path = cursor.path();
        let local = cursor::write(&self.directory, cursor)?;
        let meta = std::fs::metadata(&local).map_err(|error| Error::io(&local, error))?;
        let signature = Signature::of(&meta);
        match self.open(&path, signature)? {
            Some(file) => self.upload(&path, signature, file).map(drop),
            None => Ok(()),
        }
    }

    /// The file, if it still is as it was seen.
    fn open(&self, path: &str, signature: Signature) -> Result<Option<File>> {
        let local = self.directory.join(path);
        let file = match File::open(&local) {
            // Deleted since it was seen.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(|error| Error::io(&local, error))?,
        };
        // What was opened may be another file by now than the one that was seen.
        let is_it = file.metadata().map(|meta| Signature::of(&meta)).ok() == Some(signature);
        Ok(is_it.then_some(file))
    }

    fn upload(&mut self, path: &str, signature: Signature, file: File) -> Result<Sent> {
        let local = self.directory.join(path);
        let uri = self.uri(path);
        let check = || is_as_seen(&local, signature);
        let sent = upload(&self.client, &uri, file, &self.cutoff, check);
        Ok(match runtime::handle().block_on(sent)? {
            Uploaded::Whole(whole) => {
                self.ledger.uploaded(path, signature);
                self.stored.insert(path, signature, whole.etag.as_deref());
                self.report.uploaded_files += 1;
                self.report.uploaded_bytes += whole.bytes;
                Sent::Stored
            }
            Uploaded::GivenUp => {
                self.report.changed_meanwhile += 1;
                Sent::Changed
            }
            Uploaded::CutOff => Sent::CutOff,
        })
    }

    fn uri(&self, path: &str) -> ObjectUri {
        self.prefix.with_key(format!("{}{path}", self.prefix.key()))
    }
}

/// Whether the name still leads to the same file in the same state.
fn is_as_seen(path: &Path, signature: Signature) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| Signature::of(&meta) == signature)
}
