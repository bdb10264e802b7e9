//! One FIFO: made, found, opened for writing, taken away.
//!
//! The write end is opened with `O_WRONLY | O_NONBLOCK`, which answers ENXIO until somebody reads, and is polled by the
//! caller. A blocking open could not be cancelled. `O_RDWR` never blocks but makes the writer its own reader: no EPIPE,
//! no end, and data lost in silence. inotify does not help: a reader that blocks in its open causes no event until a
//! writer has come, and events of two opens merge into one.

use std::fs::{Metadata, Permissions};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::{fcntl_getpipe_size, fcntl_setpipe_size};

use super::holders::{self, Inode};
use crate::error::{Error, Result};

/// A FIFO of ours in the directory. Dropping it takes it away, unless somebody has put another file there.
#[derive(Debug)]
pub(super) struct Fifo {
    path: PathBuf,
    inode: Inode,
    /// Keeps the inode alive without being a reader or a writer. Otherwise a file that replaces a removed FIFO may get
    /// the same inode number, and pass for it.
    _pin: OwnedFd,
}

impl Fifo {
    /// Makes the FIFO at `path`. One that an earlier server left there is taken over; anything else is an error, and
    /// is left alone.
    pub(super) fn create(path: PathBuf, mode: u32) -> Result<Self> {
        if let Some(found) = find(&path)? {
            if take_over(&path, &found)? {
                return Self::pin(path, mode);
            }
            std::fs::remove_file(&path).map_err(|error| Error::io(&path, error))?;
        }
        rustix::fs::mkfifoat(CWD, &path, Mode::from_raw_mode(mode))
            .map_err(|error| Error::io(&path, error.into()))?;
        Self::pin(path, mode)
    }

    /// Holds on to the FIFO at `path` and gives it its permissions: those of mkfifo are less the umask, and those of a
    /// FIFO that was left behind are another server's.
    fn pin(path: PathBuf, mode: u32) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let pin = rustix::fs::open(&path, flags, Mode::empty())
            .map_err(|error| Error::io(&path, error.into()))?;
        let stat = rustix::fs::fstat(&pin).map_err(|error| Error::io(&path, error.into()))?;
        let inode = Inode {
            dev: stat.st_dev,
            ino: stat.st_ino,
        };
        if !FileType::from_raw_mode(stat.st_mode).is_fifo() {
            return Err(replaced(&path));
        }
        if Mode::from_raw_mode(stat.st_mode) != Mode::from_raw_mode(mode) {
            permit(&pin, mode).map_err(|error| Error::io(&path, error))?;
        }
        Ok(Self {
            path,
            inode,
            _pin: pin,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn inode(&self) -> Inode {
        self.inode
    }

    /// The write end, if somebody has the FIFO open for reading.
    pub(super) fn open(&self) -> Result<Option<Sink>> {
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match rustix::fs::open(&self.path, flags, Mode::empty()) {
            Ok(fd) => {
                let stat =
                    rustix::fs::fstat(&fd).map_err(|error| Error::io(&self.path, error.into()))?;
                if (Inode {
                    dev: stat.st_dev,
                    ino: stat.st_ino,
                }) != self.inode
                {
                    return Err(replaced(&self.path));
                }
                Ok(Some(Sink { fd }))
            }
            Err(Errno::NXIO) => Ok(None),
            Err(Errno::NOENT | Errno::LOOP) => Err(replaced(&self.path)),
            Err(error) => Err(Error::io(&self.path, error.into())),
        }
    }
}

impl Drop for Fifo {
    fn drop(&mut self) {
        if std::fs::symlink_metadata(&self.path).is_ok_and(|found| Inode::of(&found) == self.inode)
        {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn replaced(path: &Path) -> Error {
    Error::config(
        path.display().to_string(),
        "this FIFO was removed or replaced while it was served: leave the directory to standpipe",
    )
}

/// Sets the permissions of the very file that is pinned, whatever its path names by now. `fchmod` takes no `O_PATH`
/// descriptor; its entry in /proc leads to the same file.
fn permit(pin: &OwnedFd, mode: u32) -> std::io::Result<()> {
    let pinned = format!("/proc/self/fd/{}", pin.as_raw_fd());
    std::fs::set_permissions(pinned, Permissions::from_mode(mode))
}

/// What lies at `path`: a FIFO, nothing, or an error.
pub(super) fn find(path: &Path) -> Result<Option<Metadata>> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_fifo() => Ok(Some(found)),
        Ok(_) => Err(Error::config(
            path.display().to_string(),
            "something that is not a FIFO lies here: move it away, or use another directory or channel name",
        )),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(path, error)),
    }
}

/// Removes the FIFO at `path`, unless somebody writes to it.
pub(super) fn clear(path: &Path) -> Result<()> {
    if let Some(found) = find(path)? {
        take_over(path, &found)?;
        std::fs::remove_file(path).map_err(|error| Error::io(path, error))?;
    }
    Ok(())
}

/// Whether the FIFO that lies at `path` can be used as it is; if not, it must be made anew.
///
/// A reader that waits in its open holds no descriptor yet: it waits on this very inode, and would wait for ever if
/// another took its place. So an idle FIFO is kept. One that somebody has open for reading belongs to a stream that was
/// cut off; its reader must not see the bytes of a new one.
fn take_over(path: &Path, found: &Metadata) -> Result<bool> {
    let inode = Inode::of(found);
    if has_writer(path, inode)? {
        return Err(Error::config(
            path.display().to_string(),
            "another process writes to this FIFO: stop it, or use another directory",
        ));
    }
    Ok(holders::of(inode).is_empty())
}

/// Asks by reading: EAGAIN means that a writer lives. A byte of a foreign stream may be lost, but only of one that we
/// then refuse to touch. (`POLLHUP` does not tell: a read end that was opened after the last writer left has none.)
fn has_writer(path: &Path, inode: Inode) -> Result<bool> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let failed = |error: Errno| Error::io(path, error.into());
    let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(failed)?;
    if rustix::io::ioctl_fionread(&fd).map_err(failed)? > 0 {
        // Bytes stay in a FIFO while any end is open: of a living writer, or of a dead one with a reader that lives.
        let held = holders::of(inode);
        let others: Vec<_> = held.iter().filter(|holder| !holder.is_self()).collect();
        return Ok(others.is_empty() || others.iter().any(|holder| holder.writes));
    }
    match rustix::io::read(&fd, &mut [0u8; 1]) {
        Ok(0) => Ok(false),
        Ok(_) | Err(Errno::AGAIN) => Ok(true),
        Err(error) => Err(failed(error)),
    }
}

/// What a wait for a pipe ended with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ready {
    /// There is room.
    Room,
    /// No reader is left.
    ReaderLeft,
    /// The server was cancelled.
    Cancelled,
    /// Nothing happened.
    TimedOut,
}

/// The write end. Closing it (dropping it) is what the reader sees as the end.
#[derive(Debug)]
pub(super) struct Sink {
    fd: OwnedFd,
}

/// No pipe holds more: an `int` counts its bytes (`F_SETPIPE_SZ`).
pub(super) const LARGEST_PIPE_BYTES: u64 = 1 << 31;

/// Bytes that lie in a pipe, whose end `fd` is.
pub(super) fn unread_bytes(fd: &OwnedFd) -> u64 {
    rustix::io::ioctl_fionread(fd).unwrap_or(LARGEST_PIPE_BYTES)
}

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wrote {
    /// This many bytes are in the pipe.
    Bytes(usize),
    /// The pipe is full.
    Full,
    /// No reader is left.
    ReaderLeft,
}

impl Sink {
    /// Makes the pipe as large as allowed, up to `wanted`, and says how large it is. A refusal is not an error: only
    /// speed depends on it.
    pub(super) fn raise(&self, wanted: usize) -> usize {
        let mut size = fcntl_getpipe_size(&self.fd).unwrap_or(0);
        let mut try_bytes = wanted;
        // EPERM: above the limit of an unprivileged user, or the user's pages are used up; a smaller one may pass.
        // EBUSY: more bytes wait in it than would fit. EINVAL: more than the kernel can count.
        while try_bytes > size {
            match fcntl_setpipe_size(&self.fd, try_bytes) {
                Ok(_) => size = fcntl_getpipe_size(&self.fd).unwrap_or(try_bytes),
                Err(_) => try_bytes /= 2,
            }
        }
        size
    }

    #[cfg(test)]
    pub(super) fn of(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Bytes that lie in the pipe.
    pub(super) fn unread_bytes(&self) -> u64 {
        unread_bytes(&self.fd)
    }

    /// A read end of the same pipe, which only looks. Not before the last write: a pipe with a reader takes bytes.
    pub(super) fn read_end(&self) -> Option<OwnedFd> {
        let path = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::empty()).ok()
    }

    /// Puts what fits into the pipe, without waiting.
    pub(super) fn write(&self, bytes: &[u8]) -> std::result::Result<Wrote, Errno> {
        match rustix::io::retry_on_intr(|| rustix::io::write(&self.fd, bytes)) {
            Ok(n) => Ok(Wrote::Bytes(n)),
            Err(Errno::AGAIN) => Ok(Wrote::Full),
            Err(Errno::PIPE) => Ok(Wrote::ReaderLeft),
            Err(error) => Err(error),
        }
    }

    /// Waits for room.
    pub(super) fn wait_for_room(&self, cancel: BorrowedFd<'_>, limit: Option<Duration>) -> Ready {
        self.wait(PollFlags::OUT, cancel, limit)
    }

    /// Waits for the reader to go away.
    pub(super) fn wait_for_end(&self, cancel: BorrowedFd<'_>, limit: Option<Duration>) -> Ready {
        self.wait(PollFlags::empty(), cancel, limit)
    }

    /// Whether a reader is left.
    pub(super) fn has_reader(&self, cancel: BorrowedFd<'_>) -> bool {
        self.wait_for_end(cancel, Some(Duration::ZERO)) != Ready::ReaderLeft
    }

    fn wait(&self, events: PollFlags, cancel: BorrowedFd<'_>, limit: Option<Duration>) -> Ready {
        let mut fds = [
            PollFd::new(&self.fd, events),
            PollFd::from_borrowed_fd(cancel, PollFlags::IN),
        ];
        poll_for(&mut fds, limit);
        if fds[0].revents().contains(PollFlags::ERR) {
            Ready::ReaderLeft
        } else if !fds[1].revents().is_empty() {
            Ready::Cancelled
        } else if fds[0].revents().contains(PollFlags::OUT) {
            Ready::Room
        } else {
            Ready::TimedOut
        }
    }
}

/// Polls, however often signals interrupt it; a failure reads as "nothing happened".
pub(super) fn poll_for(fds: &mut [PollFd<'_>], limit: Option<Duration>) {
    let until = limit.map(|limit| Instant::now() + limit);
    loop {
        let left = until.map(|until| {
            let left = until.saturating_duration_since(Instant::now());
            Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: i64::from(left.subsec_nanos()),
            }
        });
        if poll(fds, left.as_ref()) != Err(Errno::INTR) {
            return;
        }
    }
}

impl Inode {
    pub(super) fn of(meta: &Metadata) -> Self {
        Self {
            dev: meta.dev(),
            ino: meta.ino(),
        }
    }
}

impl AsFd for Sink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::super::cancel::Canceller;
    use super::*;

    fn opened(dir: &Path) -> (Fifo, std::fs::File, Sink) {
        let fifo = Fifo::create(dir.join("train_0"), 0o600).unwrap();
        assert!(fifo.open().unwrap().is_none(), "nobody reads yet");
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let reader = rustix::fs::open(fifo.path(), flags, Mode::empty()).unwrap();
        let sink = fifo.open().unwrap().unwrap();
        (fifo, reader.into(), sink)
    }

    #[test]
    fn a_pipe_that_may_not_grow_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let (_fifo, _reader, sink) = opened(dir.path());
        let before = sink.raise(0);
        assert!(before > 0);
        // More than any kernel allows, even to root: refused, then tried smaller until one is allowed.
        assert!(sink.raise(1 << 31) >= before);
        assert_eq!(sink.write(b"x"), Ok(Wrote::Bytes(1)), "and it works");
    }

    #[test]
    fn without_a_reader_a_write_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let (_fifo, reader, sink) = opened(dir.path());
        let cancel = Canceller::new().unwrap();
        assert!(sink.has_reader(cancel.as_fd()));
        drop(reader);
        assert!(!sink.has_reader(cancel.as_fd()));
        assert_eq!(sink.write(b"x"), Ok(Wrote::ReaderLeft));
        assert_eq!(sink.wait_for_room(cancel.as_fd(), None), Ready::ReaderLeft);
    }

    #[test]
    fn a_replaced_fifo_is_an_error_and_the_other_file_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = Fifo::create(dir.path().join("train_0"), 0o600).unwrap();
        std::fs::remove_file(fifo.path()).unwrap();
        assert!(fifo.open().is_err());
        std::fs::write(fifo.path(), "other").unwrap();
        assert!(fifo.open().is_err());
        let path = fifo.path().to_owned();
        drop(fifo);
        assert_eq!(std::fs::read(path).unwrap(), b"other");
    }
}
