//! Ctrl-C: the first asks the command to end cleanly, the second ends the process.
//!
//! Only commands that have something to clean up listen; the others keep the system's default and end at once.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::signal::unix::{SignalKind, signal};

use crate::error::{Error, Result};
use crate::runtime;

/// 128 + the first signal, as shells report it; 0 before there was one.
static EXIT_CODE: AtomicU8 = AtomicU8::new(0);

/// The exit code that the signal asks for, if there was one.
pub(super) fn exit_code() -> Option<u8> {
    Some(EXIT_CODE.load(Ordering::Acquire)).filter(|code| *code != 0)
}

/// Calls `cancel` at the first SIGINT or SIGTERM and ends the process at the second.
pub(super) fn listen(cancel: impl FnOnce() + Send + 'static) -> Result<()> {
    let runtime = runtime::handle();
    let _entered = runtime.enter();
    let listen = |kind| signal(kind).map_err(|source| Error::io("signal handler", source));
    let (mut interrupt, mut terminate) = (
        listen(SignalKind::interrupt())?,
        listen(SignalKind::terminate())?,
    );
    runtime.spawn(async move {
        let mut cancel = Some(cancel);
        loop {
            let code = tokio::select! {
                _ = interrupt.recv() => 130,
                _ = terminate.recv() => 143,
            };
            let Some(cancel) = cancel.take() else {
                std::process::exit(i32::from(code));
            };
            EXIT_CODE.store(code, Ordering::Release);
            if std::io::stderr().is_terminal() {
                eprintln!("\nstandpipe: stopping; once more to stop at once");
            }
            cancel();
        }
    });
    Ok(())
}
