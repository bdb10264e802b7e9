//! Files that are read without being opened: zero-message opens.
//!
//! To open a file costs two messages, OPEN and RELEASE, each of them a switch to us and back. A kernel that is told
//! once, by ENOSYS, that nobody wants them sends none any more, on the whole mount: an open is then a matter of the
//! kernel alone, which keeps pages from open to open as it does with FOPEN_KEEP_CACHE. That is what small files want,
//! whose bytes cost less than those messages. Passthrough is lost, because it is the answer to an OPEN. So large files
//! want the messages, and [`Opening`] chooses by the mean size of what is listed.
//!
//! What is opened to be read is here ([`Unopened`]), by inode: made by a file's first read, forgotten when all its bytes
//! were read (the kernel has them then), when nobody has read it for a while, or for want of room. Errors come with the
//! read, as they do anyway: to open an object takes no request.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::opens::Handle;
use crate::error::Error;
use crate::fastfile::tree::Ino;

/// Files of this mean size or less are read without being opened. A message costs about as much as to copy 100 KB, and
/// passthrough saves two copies of every byte: at half a MiB both ways cost the same.
const SMALL_BYTES: u64 = 512 << 10;

/// Files that are being read, at most: those of a thousand workers and more.
const MOST_FILES: usize = 4096;

/// Who has not read for so long has left off. Reading it again opens it again.
const IDLE: Duration = Duration::from_secs(10);

/// How files are opened on a mount.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Opening {
    /// By the mean size of the files that are known when the first one is opened: small ones without messages. Local
    /// files, which can change, are asked for each time.
    #[default]
    Auto,
    /// By a message for each open and close: passthrough, and a read-ahead window for each open file.
    PerFile,
    /// Without messages (FUSE's zero-message opens): no passthrough, and one read-ahead window for each inode.
    None,
}

impl std::str::FromStr for Opening {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "auto" => Ok(Self::Auto),
            "per-file" | "per_file" => Ok(Self::PerFile),
            "none" => Ok(Self::None),
            _ => Err(Error::config(
                "open",
                format!("{text:?}: use auto, per-file or none"),
            )),
        }
    }
}

impl Opening {
    /// Whether files are read without being opened, on a mount of so many files of so many bytes.
    pub(super) fn is_without_messages(self, files: u64, bytes: u64, are_local: bool) -> bool {
        match self {
            Self::Auto => !are_local && files > 0 && bytes / files <= SMALL_BYTES,
            Self::PerFile => false,
            Self::None => true,
        }
    }
}

/// The files that are being read.
#[derive(Debug)]
pub(super) struct Unopened {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    files: HashMap<Ino, Reading>,
    sweep_at: Instant,
}

#[derive(Debug)]
struct Reading {
    handle: Arc<Handle>,
    last: Instant,
    read_bytes: u64,
}

impl Unopened {
    pub(super) fn new(now: Instant) -> Self {
        let inner = Inner {
            files: HashMap::new(),
            sweep_at: now + IDLE,
        };
        Self {
            inner: Mutex::new(inner),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file, if it is being read.
    pub(super) fn get(&self, ino: Ino, now: Instant) -> Option<Arc<Handle>> {
        let mut inner = self.lock();
        let reading = inner.files.get_mut(&ino)?;
        reading.last = now;
        Some(reading.handle.clone())
    }

    /// Begins to read a file; gives the handle to read by, which is another's if he was faster, and what to drop: that has
    /// work to do, which should not be done under this lock.
    pub(super) fn begin(&self, handle: Handle, now: Instant) -> (Arc<Handle>, Vec<Arc<Handle>>) {
        let (ino, handle) = (handle.ino, Arc::new(handle));
        let mut inner = self.lock();
        let idle = inner.sweep(now);
        let reading = inner.files.entry(ino).or_insert_with(|| Reading {
            handle: handle.clone(),
            last: now,
            read_bytes: 0,
        });
        reading.last = now;
        (reading.handle.clone(), idle)
    }

    /// So many bytes of a file were read. With the last of them it is forgotten, and given back.
    pub(super) fn took(&self, ino: Ino, bytes: u64) -> Option<Arc<Handle>> {
        let mut inner = self.lock();
        let reading = inner.files.get_mut(&ino)?;
        reading.read_bytes = reading.read_bytes.saturating_add(bytes);
        match reading.read_bytes >= reading.handle.size_bytes() {
            true => inner.files.remove(&ino).map(|reading| reading.handle),
            false => None,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.lock().files.len()
    }
}

impl Inner {
    /// Forgets what nobody reads any more, and what has no room.
    fn sweep(&mut self, now: Instant) -> Vec<Arc<Handle>> {
        let mut idle = Vec::new();
        if now >= self.sweep_at {
            self.sweep_at = now + IDLE / 10;
            let left_off = |reading: &Reading| now.saturating_duration_since(reading.last) >= IDLE;
            let gone = self
                .files
                .extract_if(|_, reading| left_off(reading))
                .map(|(_, reading)| reading.handle);
            idle.extend(gone);
        }
        if self.files.len() >= MOST_FILES {
            let oldest = self.files.iter().min_by_key(|(_, reading)| reading.last);
            let oldest = oldest.map(|(ino, _)| *ino);
            let gone = oldest.and_then(|ino| self.files.remove(&ino));
            idle.extend(gone.map(|reading| reading.handle));
        }
        idle
    }
}

#[cfg(test)]
mod tests {
    use super::super::opens::testing;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn small_files_are_read_without_being_opened() {
        let auto = |files, bytes| Opening::Auto.is_without_messages(files, bytes, false);
        assert!(auto(10_000, 1_000_000_000) && auto(3, 0));
        assert!(!auto(6, 660_000_000));
        assert!(!auto(0, 0), "nothing is known");
        assert!(auto(1, SMALL_BYTES) && !auto(1, SMALL_BYTES + 1));
        // A few large ones are most of the bytes.
        assert!(!auto(1_001, 1_000 * 10_000 + (2 << 30)));
        assert!(!Opening::Auto.is_without_messages(10, 10, true), "local");
        assert!(Opening::None.is_without_messages(1, u64::MAX, true));
        assert!(!Opening::PerFile.is_without_messages(10, 10, false));
    }

    #[test]
    fn a_file_is_forgotten_with_its_last_byte_or_when_its_reader_leaves_off() {
        let start = Instant::now();
        let unopened = Unopened::new(start);
        let (first, _) = unopened.begin(testing::handle(1, 100), start);
        let (same, _) = unopened.begin(testing::handle(1, 100), start);
        assert!(Arc::ptr_eq(&first, &same), "two that begin share one");
        assert!(unopened.took(Ino(1), 60).is_none() && unopened.get(Ino(1), start).is_some());
        assert!(unopened.took(Ino(1), 40).is_some(), "all of it was read");
        assert!(unopened.get(Ino(1), start).is_none() && unopened.took(Ino(1), 1).is_none());

        unopened.begin(testing::handle(3, 100), start);
        unopened.begin(testing::handle(4, 100), start + IDLE / 2);
        let (_, idle) = unopened.begin(testing::handle(5, 100), start + IDLE);
        let idle: Vec<_> = idle.iter().map(|handle| handle.ino).collect();
        assert_eq!((idle, unopened.len()), (vec![Ino(3)], 2));
    }

    proptest! {
        /// However files are read, there are never more than the most, and one that is being read is found.
        #[test]
        fn there_is_a_limit(reads in proptest::collection::vec((0..MOST_FILES as u64 * 2, 1..40u64, 0..2000u64), 1..400)) {
            let start = Instant::now();
            let unopened = Unopened::new(start);
            let mut now = start;
            for ino in 0..MOST_FILES as u64 - 50 {
                unopened.begin(testing::handle(ino + 1, 100), now);
            }
            for (ino, bytes, millis) in reads {
                now += Duration::from_millis(millis);
                if unopened.get(Ino(ino), now).is_none() {
                    unopened.begin(testing::handle(ino, 100), now);
                    prop_assert!(unopened.get(Ino(ino), now).is_some());
                }
                unopened.took(Ino(ino), bytes);
                prop_assert!(unopened.len() <= MOST_FILES);
            }
        }
    }
}
