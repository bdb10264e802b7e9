//! The few numbers that all processes share: the file `ledger`.
//!
//! How many bytes are stored, how many were asked for (the cache's clock) and how far apart two uses of an object are.
//! Each change reads, adds and writes under a lock that dies with its holder. A process that is killed in between, or
//! that finds no lock, leaves the numbers a little wrong; the next eviction counts what is there and corrects them. So
//! nothing depends on them but when to look for something to throw out.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::fork::PerProcess;
use super::head::u64_at;
use super::lease::{self, Lock};

const MAGIC: [u8; 8] = *b"STNDLEDG";
const LEN: usize = 32;
/// The lock is held for two system calls; who has not got it by then goes without.
const TRIES: u32 = 50;

/// The numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) used_bytes: u64,
    /// Bytes asked for since the cache was made.
    pub(super) clock: u64,
    /// See [`policy::learn`](super::policy::learn).
    pub(super) reuse: u64,
}

impl Totals {
    fn to_bytes(self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..16].copy_from_slice(&self.used_bytes.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.clock.to_le_bytes());
        bytes[24..].copy_from_slice(&self.reuse.to_le_bytes());
        bytes
    }

    /// Anything that is not ours counts as nothing.
    fn from_bytes(bytes: &[u8; LEN]) -> Option<Self> {
        (bytes[..8] == MAGIC).then(|| Self {
            used_bytes: u64_at(bytes, 8),
            clock: u64_at(bytes, 16),
            reuse: u64_at(bytes, 24),
        })
    }
}

/// The file, and what was last read of it.
#[derive(Debug)]
pub(super) struct Ledger {
    file: PerProcess<Option<File>>,
    used_bytes: AtomicU64,
    clock: AtomicU64,
    reuse: AtomicU64,
    /// Bytes asked for that the file does not know of yet.
    unwritten: AtomicU64,
}

/// The clock in the file moves in steps of this: 64 parts of the engine cost one lock.
const CLOCK_STEP_BYTES: u64 = 64 << 20;

impl Ledger {
    /// `open` opens or makes the file.
    pub(super) fn new(open: impl Fn() -> Option<File> + Send + Sync + 'static) -> Self {
        let ledger = Self {
            file: PerProcess::new(open),
            used_bytes: AtomicU64::new(0),
            clock: AtomicU64::new(0),
            reuse: AtomicU64::new(0),
            unwritten: AtomicU64::new(0),
        };
        ledger.update(|_| {});
        ledger
    }

    /// The numbers as they were at the last change by this process.
    pub(super) fn totals(&self) -> Totals {
        Totals {
            used_bytes: self.used_bytes.load(Relaxed),
            clock: (self.clock.load(Relaxed)).saturating_add(self.unwritten.load(Relaxed)),
            reuse: self.reuse.load(Relaxed),
        }
    }

    /// Bytes were asked for; `step_bytes` says how far the file may lag behind.
    pub(super) fn tick(&self, bytes: u64, step_bytes: u64) {
        let unwritten = self.unwritten.fetch_add(bytes, Relaxed) + bytes;
        if unwritten >= step_bytes.min(CLOCK_STEP_BYTES) {
            self.update(|_| {});
        }
    }

    /// Changes the numbers, in the file too if that is possible, and gives the new ones.
    pub(super) fn update(&self, change: impl FnOnce(&mut Totals)) -> Totals {
        let elapsed = self.unwritten.swap(0, Relaxed);
        let file = self.file.get().as_ref().filter(|file| locked(file));
        let found = file.and_then(read);
        let mut totals = found.unwrap_or_else(|| self.totals());
        totals.clock = totals.clock.saturating_add(elapsed);
        change(&mut totals);
        if let Some(file) = file {
            // A full disk does not matter: the file was written whole when it was made.
            let _ = file.write_all_at(&totals.to_bytes(), 0);
            lease::unlock(file, 0, 1);
        }
        self.used_bytes.store(totals.used_bytes, Relaxed);
        self.clock.store(totals.clock, Relaxed);
        self.reuse.store(totals.reuse, Relaxed);
        totals
    }
}

fn read(file: &File) -> Option<Totals> {
    let mut bytes = [0; LEN];
    file.read_exact_at(&mut bytes, 0).ok()?;
    Totals::from_bytes(&bytes)
}

/// Never waits for long: its holder may have been stopped by a debugger.
fn locked(file: &File) -> bool {
    for _ in 0..TRIES {
        match lease::try_lock(file, 0, 1) {
            Lock::Held => return true,
            Lock::Unsupported => return false,
            Lock::Taken => std::thread::yield_now(),
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(path: std::path::PathBuf) -> Ledger {
        Ledger::new(move || {
            let mut options = File::options();
            options.create(true).truncate(false).read(true).write(true);
            options.open(&path).ok()
        })
    }

    #[test]
    fn changes_of_many_add_up_and_outlive_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        std::thread::scope(|scope| {
            for _ in 0..2 {
                let path = path.clone();
                scope.spawn(move || {
                    let ledger = ledger(path);
                    for _ in 0..100 {
                        ledger.tick(3, 1);
                        ledger.update(|totals| totals.used_bytes += 2);
                    }
                });
            }
        });
        // A change whose lock could not be had is allowed to be lost, but seldom is.
        let totals = ledger(path).totals();
        assert!((300..=400).contains(&totals.used_bytes), "{totals:?}");
        assert!((450..=600).contains(&totals.clock), "{totals:?}");
    }

    #[test]
    fn without_a_file_or_with_a_foreign_one_it_counts_for_itself() {
        let none = Ledger::new(|| None);
        none.tick(5, 1);
        assert_eq!(none.totals().clock, 5);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        std::fs::write(&path, "something else, longer than a ledger is").unwrap();
        let foreign = ledger(path.clone());
        assert_eq!(foreign.totals(), Totals::default());
        foreign.update(|totals| totals.used_bytes = 9);
        assert_eq!(ledger(path).totals().used_bytes, 9);
    }
}
