//! Logs to standard error, above the progress bar if there is one.

use std::io::{self, IsTerminal, Write};

use tracing_subscriber::EnvFilter;

use super::flags::OutputFlags;
use super::progress;

/// Starts logging as `-v` and `STANDPIPE_LOG` ask.
pub(super) fn start(flags: &OutputFlags) {
    // The SDK logs as errors what our retries get over (a connection that broke, say): it speaks only when asked.
    let by_flags = match (flags.quiet, flags.verbose) {
        (true, 0) => "standpipe=error",
        (_, 0) => "standpipe=warn",
        (_, 1) => "warn,standpipe=info",
        (_, 2) => "warn,standpipe=debug",
        _ => "trace",
    };
    let filter =
        EnvFilter::try_from_env("STANDPIPE_LOG").unwrap_or_else(|_| EnvFilter::new(by_flags));
    let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    // A second start in one process (tests) keeps the first.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colours)
        .with_writer(|| AboveTheBar)
        .try_init();
}

#[derive(Debug)]
struct AboveTheBar;

impl Write for AboveTheBar {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        progress::suspended(|| io::stderr().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
