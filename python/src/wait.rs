//! Waiting without the GIL, and within a tenth of a second of Ctrl-C.

use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use standpipe::error::Error;
use standpipe::runtime;

use crate::bell::Bell;
use crate::cancel;
use crate::error::to_py;

/// How long a thread may be away from Python before it looks for signals. Ctrl-C is to work within 0.2 s.
pub(crate) const SLICE: Duration = Duration::from_millis(100);

/// Polls `future` on this thread, without the GIL, until it is ready or a signal's handler has raised.
///
/// Dropping the future cancels it, so Ctrl-C leaves nothing running.
pub(crate) fn wait<T: Send>(
    py: Python<'_>,
    future: impl Future<Output = Result<T, Error>> + Send,
) -> PyResult<T> {
    wait_for(py, future)?.map_err(|error| to_py(py, &error))
}

/// The same for futures whose errors are somebody else's.
pub(crate) fn wait_for<T: Send>(
    py: Python<'_>,
    future: impl Future<Output = T> + Send,
) -> PyResult<T> {
    let mut future = pin!(future);
    let bell = Bell::new();
    loop {
        let polled = future.as_mut();
        // Whoever gives up a wait on another thread waits for that thread: so it looks more often.
        let slice = match cancel::is_entered() {
            true => SLICE / 4,
            false => SLICE,
        };
        if let Some(output) = py.detach(|| poll_for(polled, &bell, Instant::now() + slice)) {
            return Ok(output);
        }
        py.check_signals()?;
        if cancel::is_set() {
            return Err(to_py(py, &Error::Cancelled));
        }
    }
}

fn poll_for<T>(
    mut future: Pin<&mut (impl Future<Output = T> + Send)>,
    bell: &std::sync::Arc<Bell>,
    deadline: Instant,
) -> Option<T> {
    // Timers and sockets belong to the process's runtime, on whatever thread they are made.
    let runtime = runtime::handle();
    let _entered = runtime.enter();
    let waker = bell.waker();
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Some(output);
        }
        if !bell.wait(deadline) {
            return None;
        }
    }
}
