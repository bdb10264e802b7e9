//! Standard output for data: unbuffered, and a reader that goes away is no error.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::error::{Error, Result};
use crate::metrics::Metrics;

/// The largest pipe that an unprivileged process may ask for by default (`/proc/sys/fs/pipe-max-size`). It is worth
/// a factor of 2.8 over the usual 64 KiB.
const PIPE_BYTES: usize = 1 << 20;

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    /// All of it.
    All,
    /// The reader is gone: the command ends, and it is a success.
    ReaderGone,
}

/// Standard output.
#[derive(Debug)]
pub(super) struct Stdout(File);

/// Whether the process was started without a standard output (`>&-`). The standard library puts `/dev/null` in its
/// place before `main`, and every write would go well.
static WAS_CLOSED: AtomicBool = AtomicBool::new(false);

/// Runs before the standard library looks at the descriptors.
#[used]
#[expect(
    unsafe_code,
    reason = "the one way to look before the standard library does"
)]
// SAFETY: the C library calls what lies in this section once, before `main`; `look` needs nothing that is set up later.
#[unsafe(link_section = ".init_array")]
static LOOK: extern "C" fn() = look;

extern "C" fn look() {
    #[expect(unsafe_code, reason = "there may be no descriptor to borrow")]
    // SAFETY: F_GETFD takes no argument and changes nothing, whatever the number stands for.
    let is_open = unsafe { libc::fcntl(libc::STDOUT_FILENO, libc::F_GETFD) } != -1;
    WAS_CLOSED.store(!is_open, Ordering::Relaxed);
}

/// Refuses to write where nothing arrives.
pub(super) fn check_open() -> Result<()> {
    match WAS_CLOSED.load(Ordering::Relaxed) {
        true => Err(failed(io::Error::from_raw_os_error(libc::EBADF))),
        false => Ok(()),
    }
}

impl Stdout {
    pub(super) fn open() -> Result<Self> {
        check_open()?;
        let out = io::stdout().as_fd().try_clone_to_owned().map_err(failed)?;
        // Not a pipe, or not allowed: it works as it is.
        let _ = rustix::pipe::fcntl_setpipe_size(&out, PIPE_BYTES);
        Ok(Self(File::from(out)))
    }

    /// Writes all of `bytes`; the time is counted as time in which the consumer was waited for.
    pub(super) fn write(&mut self, bytes: &[u8], metrics: &Metrics) -> Result<Written> {
        let before = Instant::now();
        let result = self.0.write_all(bytes);
        metrics.sink_wait_ns.add_time(before.elapsed());
        settle(result)
    }
}

/// A broken pipe is [`Written::ReaderGone`].
pub(super) fn settle(result: io::Result<()>) -> Result<Written> {
    match result {
        Ok(()) => Ok(Written::All),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(Written::ReaderGone),
        Err(error) => Err(failed(error)),
    }
}

fn failed(source: io::Error) -> Error {
    Error::io("standard output", source)
}
