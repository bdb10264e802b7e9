//! Locks on ranges of a file that belong to an open file description (`F_OFD_SETLK`): the kernel drops them with the
//! process that opened it, however it dies, and no pid is compared with anything.
#![expect(unsafe_code, reason = "rustix offers locks of processes only")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// What came of trying to lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lock {
    Held,
    /// Another open file has some of it.
    Taken,
    /// This file system has no such locks, or none left.
    Unsupported,
}

/// Tries to lock `len` bytes from `start`, which need not exist.
pub(super) fn try_lock(file: &File, start: u64, len: u64) -> Lock {
    match set(file, libc::F_WRLCK, start, len) {
        Ok(()) => Lock::Held,
        Err(error) => match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EACCES) => Lock::Taken,
            _ => Lock::Unsupported,
        },
    }
}

/// Gives them back. Failure leaves them to the file's close.
pub(super) fn unlock(file: &File, start: u64, len: u64) {
    let _ = set(file, libc::F_UNLCK, start, len);
}

fn set(file: &File, kind: libc::c_int, start: u64, len: u64) -> io::Result<()> {
    // SAFETY: all bytes zero are a valid `flock`; `l_pid` must be zero for this command.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = i64::try_from(start).map_err(io::Error::other)?;
    lock.l_len = i64::try_from(len).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open and `lock` lives through the call.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_opens_of_one_process_exclude_each_other_until_one_closes() {
        let dir = tempfile::tempdir().unwrap();
        let open = || {
            File::options()
                .create(true)
                .truncate(false)
                .read(true)
                .write(true)
                .open(dir.path().join("lock"))
                .unwrap()
        };
        let (a, b) = (open(), open());
        assert_eq!(try_lock(&a, 0, 8), Lock::Held);
        assert_eq!(try_lock(&b, 7, 1), Lock::Taken);
        assert_eq!(try_lock(&b, 8, 1), Lock::Held);
        unlock(&a, 7, 1);
        assert_eq!(try_lock(&b, 7, 1), Lock::Held);
        assert_eq!(try_lock(&b, 0, 1), Lock::Taken);
        drop(a);
        assert_eq!(try_lock(&b, 0, 1), Lock::Held);
    }

    #[test]
    fn a_file_that_is_only_read_cannot_be_locked() {
        let file = File::open("/proc/self/status").unwrap();
        assert_eq!(try_lock(&file, 0, 1), Lock::Unsupported);
    }
}
