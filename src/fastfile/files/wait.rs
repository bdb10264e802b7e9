//! Waiting on a thread for what tasks do, whether or not the thread belongs to a runtime.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use crate::error::{Error, Result};
use crate::runtime;

/// Polls here, and parks the thread in between. For futures that need no runtime around them.
pub(super) fn until<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            // Whoever else wakes this thread makes it look again, no more.
            Poll::Pending => thread::park(),
        }
    }
}

/// Runs on the process's runtime. `block_on` would panic in a thread that belongs to another.
pub(super) fn on_runtime<T: Send + 'static>(
    future: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    // It fails only when it panics, or when the process ends.
    until(runtime::handle().spawn(future)).unwrap_or(Err(Error::Cancelled))
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}
