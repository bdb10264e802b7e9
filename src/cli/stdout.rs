//! Standard output for data: unbuffered, and a reader that goes away is no error.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
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

impl Stdout {
    pub(super) fn open() -> Result<Self> {
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
