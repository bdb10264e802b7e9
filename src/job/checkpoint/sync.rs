//! The thread that keeps S3 like the directory.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use super::CheckpointConfig;
use super::changes::{Due, Ledger, Scan, Signature, scan};
use crate::client::S3Client;
use crate::error::{Error, Result};
use crate::job::cursor::{self, Cursor, Notes};
use crate::job::summary::CheckpointReport;
use crate::job::upload::{Uploaded, upload};
use crate::object::ObjectUri;
use crate::runtime;

/// Tells where the trainer is in its input.
pub(in crate::job) type Note = Box<dyn Fn(SystemTime) -> Cursor + Send>;

/// How often the directory is looked at, at least: half the settle time finds a change within one and a half of it.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Keeps S3 like a directory until it is told to finish. Dropping it ends it without a last look.
#[derive(Debug)]
pub(in crate::job) struct Syncer {
    /// Dropped to end it; a message asks for the last look.
    orders: Option<Sender<()>>,
    thread: Option<JoinHandle<(CheckpointReport, Result<()>)>>,
}

impl Syncer {
    /// Begins with what is in S3 already.
    pub(in crate::job) fn start(
        client: S3Client,
        (prefix, directory): (ObjectUri, PathBuf),
        config: CheckpointConfig,
        stored: Scan,
        note: Option<Note>,
    ) -> Result<Self> {
        let (sender, orders) = channel();
        let mut keeper = Keeper {
            client,
            prefix,
            directory,
            config,
            ledger: Ledger::new(stored),
            report: CheckpointReport::default(),
            note,
            notes: Notes::default(),
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

    /// The last look, when nobody writes any more: everything goes up, settled or not.
    pub(in crate::job) fn finish(mut self) -> (CheckpointReport, Result<()>) {
        if let Some(orders) = &self.orders {
            let _ = orders.send(());
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

/// The thread's own.
struct Keeper {
    client: S3Client,
    prefix: ObjectUri,
    directory: PathBuf,
    config: CheckpointConfig,
    ledger: Ledger,
    report: CheckpointReport,
    note: Option<Note>,
    notes: Notes,
}

impl Keeper {
    fn run(mut self, orders: &Receiver<()>) -> (CheckpointReport, Result<()>) {
        let pause = (self.config.settle / 2).clamp(Duration::from_millis(20), LONGEST_PAUSE);
        loop {
            match orders.recv_timeout(pause) {
                Err(RecvTimeoutError::Timeout) => {
                    // It may go better the next time; the last look insists.
                    if let Err(error) = self.look(self.config.settle) {
                        tracing::warn!(%error, "checkpoints are not in S3 yet");
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return (self.report, Ok(())),
                Ok(()) => break,
            }
        }
        let begun = Instant::now();
        let result = self.look(Duration::ZERO);
        self.report.last_sync_seconds = begun.elapsed().as_secs_f64();
        (self.report, result)
    }

    fn look(&mut self, settle: Duration) -> Result<()> {
        self.take_note();
        let found = scan(&self.directory)?;
        let Due { upload, delete } = self.ledger.due(&found, Instant::now(), settle);
        let (mut oldest, mut unreadable) = (None, None);
        for (path, signature) in upload {
            let file = match self.open(&path, signature) {
                Ok(Some(file)) => file,
                Ok(None) => continue,
                // Nobody gets it into S3; all others go there. The last look makes a failure of it.
                Err(error) => {
                    unreadable.get_or_insert(error);
                    continue;
                }
            };
            // In their order: what comes after a failure may point to what failed.
            let is_stored = self.upload(&path, signature, file)?;
            if is_stored && !cursor::is_ours(&path) {
                oldest.get_or_insert(signature.mtime_ns);
            }
        }
        if let Some(mtime_ns) = oldest {
            self.upload_cursor(cursor::time_of(mtime_ns))?;
        }
        for path in delete.iter().filter(|_| self.config.delete) {
            runtime::handle().block_on(self.client.delete(&self.uri(path)))?;
            self.ledger.deleted(path);
            self.report.deleted_files += 1;
        }
        unreadable.map_or(Ok(()), Err)
    }

    fn take_note(&mut self) {
        if let Some(note) = &self.note {
            let now = SystemTime::now();
            self.notes.add(now, note(now));
        }
    }

    /// Where the trainer was when the oldest of these files was written goes behind them: should it not arrive, the data
    /// in between is read twice, not left out.
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

    /// Whether the file is in S3 now as it was seen.
    fn upload(&mut self, path: &str, signature: Signature, file: File) -> Result<bool> {
        let local = self.directory.join(path);
        let uri = self.uri(path);
        let sent = upload(&self.client, &uri, file, || is_as_seen(&local, signature));
        match runtime::handle().block_on(sent)? {
            Uploaded::Whole(bytes) => {
                self.ledger.uploaded(path, signature);
                self.report.uploaded_files += 1;
                self.report.uploaded_bytes += bytes;
                Ok(true)
            }
            Uploaded::GivenUp => {
                self.report.changed_meanwhile += 1;
                Ok(false)
            }
        }
    }

    fn uri(&self, path: &str) -> ObjectUri {
        self.prefix.with_key(format!("{}{path}", self.prefix.key()))
    }
}

/// Whether the name still leads to the same file in the same state.
fn is_as_seen(path: &Path, signature: Signature) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| Signature::of(&meta) == signature)
}
