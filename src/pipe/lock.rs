//! One server per directory: a lock file that a kill -9 releases.
//!
//! The lock is `flock` on `.standpipe.lock`: the kernel drops it with the process, however it dies, so a lock file that
//! stayed behind never blocks a restart. The file is removed at the end while the lock is held; whoever opened the old
//! file in between notices that the path leads elsewhere and tries again.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::error::{Error, Result};

const FILE_NAME: &str = ".standpipe.lock";

/// Held while a server serves a directory.
#[derive(Debug)]
pub(super) struct DirLock {
    path: PathBuf,
    _file: File,
}

impl DirLock {
    /// Takes the lock, or says who has it.
    pub(super) fn take(dir: &Path) -> Result<Self> {
        let path = dir.join(FILE_NAME);
        loop {
            let mut file = open(&path)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK) => return Err(taken(dir, &mut file)),
                Err(error) => return Err(Error::io(path, error.into())),
                Ok(()) if is_at(&file, &path) => {}
                // Its owner removed it between our open and our lock.
                Ok(()) => continue,
            }
            let written = file
                .set_len(0)
                .and_then(|()| writeln!(file, "{}", std::process::id()));
            written.map_err(|error| Error::io(&path, error))?;
            return Ok(Self { path, _file: file });
        }
    }
}

impl Drop for DirLock {
    fn drop(&mut self) {
        // Still locked here: the descriptor closes after this.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn open(path: &Path) -> Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|error| Error::io(path, error))
}

fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::symlink_metadata(path)) {
        (Ok(open), Ok(there)) => (open.dev(), open.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

fn taken(dir: &Path, file: &mut File) -> Error {
    let mut pid = String::new();
    let owner = match file.read_to_string(&mut pid) {
        Ok(_) if !pid.trim().is_empty() => format!("process {}", pid.trim()),
        _ => "another process".into(),
    };
    Error::config(
        dir.display().to_string(),
        format!("{owner} serves this directory already: stop it, or use another directory"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_and_nothing_stays_behind() {
        let dir = tempfile::tempdir().unwrap();
        let lock = DirLock::take(dir.path()).unwrap();
        let error = DirLock::take(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains(&format!("process {}", std::process::id())),
            "{error}"
        );
        drop(lock);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        drop(DirLock::take(dir.path()).unwrap());
    }

    #[test]
    fn a_file_without_an_owner_does_not_block() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE_NAME), "1\n").unwrap();
        DirLock::take(dir.path()).unwrap();
    }
}
