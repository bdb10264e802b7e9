//! One file on its way: a locked temporary name, then the real one. Its record ([`Record`]) belongs to whoever holds
//! that lock.

use std::fs::{File, FileTimes};
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{FallocateFlags, FlockOperation};
use rustix::io::Errno;

use super::names::temporary_path;
use super::record::{self, Proven, Record, is_recorded};
use crate::error::{Error, Result};
use crate::object::ObjectMeta;

/// Files from this size on get their space before their first byte, so that a full disk is known at once and not after
/// an hour; smaller ones find out soon enough, and fallocate costs as much as writing them.
const PREALLOCATE_FROM_BYTES: u64 = 1 << 20;

/// How long another process may hold the temporary file: long enough for the moment between its rename and its exit.
const LOCK_PATIENCE: Duration = Duration::from_millis(300);

/// A file that is not complete yet. Dropped unfinished, what a later run can prove of it is kept, with its record;
/// where that is nothing, it is removed.
#[derive(Debug)]
pub(super) struct PartialFile {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
    /// Of large objects only.
    record: Option<Record>,
    resumed: Proven,
    written_bytes: u64,
    finished: bool,
}

impl PartialFile {
    /// Creates it beside `path`, empty, with its directories.
    pub(super) fn create(path: PathBuf, meta: &ObjectMeta) -> Result<Self> {
        let (file, temporary) = open(&path)?;
        let mut partial = Self::over(file, temporary, path);
        partial.begin_anew(meta)?;
        Ok(partial)
    }

    /// Goes on with what an earlier run left, as far as it is sound.
    ///
    /// # Errors
    /// As [`create`](Self::create), and [`Error::Cancelled`] once `is_stopped`: then nothing was touched.
    pub(super) fn resume(
        path: PathBuf,
        meta: &ObjectMeta,
        is_stopped: impl Fn() -> bool,
    ) -> Result<Self> {
        let (file, temporary) = open(&path)?;
        let proven = Record::prove(&path, meta, &file, is_stopped)?;
        let mut partial = Self::over(file, temporary, path);
        match proven {
            Some((record, proven)) => {
                partial.record = Some(record);
                partial.resumed = proven;
                partial.written_bytes = proven.bytes;
            }
            None => partial.begin_anew(meta)?,
        }
        Ok(partial)
    }

    fn over(file: File, temporary: PathBuf, path: PathBuf) -> Self {
        Self {
            file,
            temporary,
            path,
            record: None,
            resumed: Proven::default(),
            written_bytes: 0,
            finished: false,
        }
    }

    /// Throws away what is there, and takes the space.
    pub(super) fn begin_anew(&mut self, meta: &ObjectMeta) -> Result<()> {
        self.discard()?;
        self.allocate(meta.size_bytes)?;
        if is_recorded(meta) {
            self.record = Record::begin(&self.path, meta)
                .inspect_err(|error| {
                    tracing::warn!(path = %self.path.display(), %error, "this download could not be resumed");
                })
                .ok();
        }
        Ok(())
    }

    /// Throws away what is there: it is not the object's, or no longer.
    pub(super) fn discard(&mut self) -> Result<()> {
        // The record first: it is never there without its file.
        self.record = None;
        record::remove(&self.path);
        self.file
            .set_len(0)
            .map_err(|source| Error::io(&self.path, source))?;
        self.resumed = Proven::default();
        self.written_bytes = 0;
        Ok(())
    }

    /// Takes the space, so that a full disk is known at once.
    pub(super) fn allocate(&self, size_bytes: u64) -> Result<()> {
        if size_bytes < PREALLOCATE_FROM_BYTES {
            return Ok(());
        }
        match rustix::fs::fallocate(&self.file, FallocateFlags::KEEP_SIZE, 0, size_bytes) {
            Err(errno @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) => {
                Err(Error::io(&self.path, errno.into()))
            }
            // A filesystem without fallocate is no obstacle.
            _ => Ok(()),
        }
    }

    /// Appends.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file
            .write_all_at(bytes, self.written_bytes)
            .map_err(|source| Error::io(&self.path, source))?;
        self.written_bytes += bytes.len() as u64;
        if let Some(record) = &mut self.record {
            record.add(bytes);
        }
        Ok(())
    }

    /// What an earlier run had written of it.
    pub(super) fn resumed(&self) -> Proven {
        self.resumed
    }

    /// What a later run would find of it if it ended here.
    pub(super) fn kept_bytes(&self) -> u64 {
        self.record.as_ref().map_or(0, Record::recorded_bytes)
    }

    /// How much is written.
    pub(super) fn written_bytes(&self) -> u64 {
        self.written_bytes
    }

    /// Gives it its time and its name.
    pub(super) fn finish(mut self, modified: Option<SystemTime>, fsync: bool) -> Result<()> {
        let failed = |source| Error::io(&self.path, source);
        if let Some(modified) = modified {
            let times = FileTimes::new().set_modified(modified);
            self.file.set_times(times).map_err(failed)?;
        }
        if fsync {
            self.file.sync_all().map_err(failed)?;
        }
        self.record = None;
        record::remove(&self.path);
        std::fs::rename(&self.temporary, &self.path)
            .map_err(|source| occupied(&self.path, source))?;
        self.finished = true;
        if fsync && let Some(parent) = self.path.parent() {
            File::open(parent)
                .and_then(|directory| directory.sync_all())
                .map_err(|source| Error::io(parent, source))?;
        }
        Ok(())
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        let kept_bytes = self.kept_bytes();
        let result = match kept_bytes {
            0 => {
                record::remove(&self.path);
                std::fs::remove_file(&self.temporary)
            }
            // Which gives back the space that was taken for the rest.
            _ => self.file.set_len(kept_bytes),
        };
        if let Err(error) = result {
            tracing::warn!(path = %self.temporary.display(), %error, "an unfinished file could not be put away");
        }
    }
}

/// Makes the directories of `path`, and opens and locks its temporary file.
fn open(path: &Path) -> Result<(File, PathBuf)> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(|source| occupied(path, source))?;
    }
    if path.is_dir() {
        return Err(occupied(path, Errno::ISDIR.into()));
    }
    let temporary = temporary_path(path);
    Ok((lock(&temporary)?, temporary))
}

/// Opens and locks the temporary file. Between opening and locking another process may have renamed it to its final
/// name or removed it: then the lock is on a file that is no longer ours to empty, and we begin again.
fn lock(path: &Path) -> Result<File> {
    let failed = |source| Error::io(path, source);
    let until = std::time::Instant::now() + LOCK_PATIENCE;
    loop {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(failed)?;
        match rustix::fs::flock(file.as_fd(), FlockOperation::NonBlockingLockExclusive) {
            Ok(()) if is_at(&file, path).map_err(failed)? => return Ok(file),
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) if std::time::Instant::now() > until => {
                return Err(Error::config(
                    path.display().to_string(),
                    "another standpipe is downloading the same file: wait for it, or use another directory",
                ));
            }
            Err(Errno::WOULDBLOCK) => std::thread::sleep(Duration::from_millis(20)),
            // Some network filesystems have no locks; the rename stays atomic without.
            Err(Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(file),
            Err(errno) => return Err(failed(errno.into())),
        }
    }
}

fn is_at(file: &File, path: &Path) -> std::io::Result<bool> {
    let ours = file.metadata()?;
    Ok(match std::fs::metadata(path) {
        Ok(there) => (there.dev(), there.ino()) == (ours.dev(), ours.ino()),
        Err(error) if error.kind() == ErrorKind::NotFound => false,
        Err(error) => return Err(error),
    })
}

/// Whether the object is on disk: same size, same second of modification. (Some filesystems keep no finer times.)
pub(super) fn is_complete(path: &Path, meta: &ObjectMeta) -> bool {
    let (Ok(found), Some(modified)) = (std::fs::metadata(path), meta.last_modified) else {
        return false;
    };
    found.is_file()
        && found.len() == meta.size_bytes
        && found
            .modified()
            .is_ok_and(|time| seconds(time) == seconds(modified))
}

fn seconds(time: SystemTime) -> i128 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i128::from(after.as_secs()),
        Err(before) => -1 - i128::from(before.duration().as_secs()),
    }
}

/// An error of making `path`, which is often that one key is the directory of another.
fn occupied(path: &Path, source: std::io::Error) -> Error {
    match source.kind() {
        ErrorKind::NotADirectory
        | ErrorKind::IsADirectory
        | ErrorKind::AlreadyExists
        | ErrorKind::DirectoryNotEmpty => Error::config(
            path.display().to_string(),
            "a file and a directory want the same name, as the keys `a` and `a/b` do: download them into different directories, or remove what is in the way",
        ),
        _ => Error::io(path, source),
    }
}
