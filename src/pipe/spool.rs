//! Bytes that are kept until it is known how many they will be: in memory as long as they are few, else in a file without
//! a name, which is gone with the process.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;
use rustix::fs::{Mode, OFlags};

use crate::error::{Error, Result};

/// What is kept in memory, per channel; most compressed samples are smaller.
pub(super) const MEMORY_BYTES: u64 = 16 << 20;

/// What is read of the file at once.
const STEP_BYTES: u64 = 1 << 20;

/// Bytes in, then the same bytes out.
#[derive(Debug, Default)]
pub(super) struct Spool {
    memory: VecDeque<Bytes>,
    memory_bytes: u64,
    file: Option<File>,
    /// Written to the file, and read of it.
    filed_bytes: u64,
    read_bytes: u64,
}

impl Spool {
    /// Takes bytes.
    pub(super) fn push(&mut self, bytes: Bytes) -> Result<()> {
        if self.file.is_none() && self.memory_bytes + bytes.len() as u64 <= MEMORY_BYTES {
            self.memory_bytes += bytes.len() as u64;
            self.memory.push_back(bytes);
            return Ok(());
        }
        let dir = std::env::temp_dir();
        self.write(&dir, &bytes)
            .map_err(|error| Error::io(&dir, error))
    }

    fn write(&mut self, dir: &Path, bytes: &[u8]) -> io::Result<()> {
        let file = match &self.file {
            Some(file) => file,
            None => self.file.insert(nameless(dir)?),
        };
        file.write_all_at(bytes, self.filed_bytes)?;
        self.filed_bytes += bytes.len() as u64;
        Ok(())
    }

    /// How many were taken.
    pub(super) fn len_bytes(&self) -> u64 {
        self.memory_bytes + self.filed_bytes
    }

    /// The next ones of what was taken; none at the end.
    pub(super) fn next(&mut self) -> Result<Option<Bytes>> {
        if let Some(bytes) = self.memory.pop_front() {
            return Ok(Some(bytes));
        }
        let Some(file) = self
            .file
            .as_ref()
            .filter(|_| self.read_bytes < self.filed_bytes)
        else {
            return Ok(None);
        };
        let len = STEP_BYTES.min(self.filed_bytes - self.read_bytes);
        let mut bytes = vec![0; len as usize];
        file.read_exact_at(&mut bytes, self.read_bytes)
            .map_err(|error| Error::io(std::env::temp_dir(), error))?;
        self.read_bytes += len;
        Ok(Some(bytes.into()))
    }
}

/// A file that has no name. Not every file system can make one; there it gets one for a moment.
fn nameless(dir: &Path) -> io::Result<File> {
    let mode = Mode::RUSR | Mode::WUSR;
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    if let Ok(file) = rustix::fs::open(dir, flags | OFlags::TMPFILE, mode) {
        return Ok(file.into());
    }
    let path = dir.join(format!(
        ".standpipe-{}-{:016x}",
        std::process::id(),
        fastrand::u64(..)
    ));
    let file = rustix::fs::open(&path, flags | OFlags::CREATE | OFlags::EXCL, mode)?;
    std::fs::remove_file(&path)?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_bytes_stay_in_memory_and_many_come_back_from_the_file_in_order() {
        for pieces in [0usize, 3, 40] {
            let mut spool = Spool::default();
            let piece = |n: usize| Bytes::from(vec![n as u8; 600_001]);
            for n in 0..pieces {
                spool.push(piece(n)).unwrap();
            }
            assert_eq!(spool.len_bytes(), pieces as u64 * 600_001);
            assert_eq!(spool.file.is_some(), pieces == 40);
            assert!(spool.memory_bytes <= MEMORY_BYTES);
            let mut all = Vec::new();
            while let Some(bytes) = spool.next().unwrap() {
                all.extend_from_slice(&bytes);
            }
            let expected: Vec<u8> = (0..pieces).flat_map(|n| piece(n).to_vec()).collect();
            assert!(all == expected, "{pieces} pieces");
        }
    }

    #[test]
    fn a_directory_that_is_not_there_is_an_error() {
        assert!(
            Spool::default()
                .write(Path::new("/no/such/directory"), b"x")
                .is_err()
        );
    }
}
