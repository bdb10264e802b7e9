//! Stopping: a flag for threads that compute, and an eventfd for threads that poll.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd};

use super::fifo::poll_for;
use crate::error::{Error, Result};

/// Stops a server, from any thread, as often as wanted.
#[derive(Debug, Clone)]
pub struct Canceller(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    cancelled: AtomicBool,
    /// Written once and never read: it stays readable for every thread that polls it.
    event: OwnedFd,
}

impl Canceller {
    pub(super) fn new() -> Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| Error::io("eventfd", error.into()))?;
        Ok(Self(Arc::new(Inner {
            cancelled: AtomicBool::new(false),
            event,
        })))
    }

    /// Stops it. Returns at once; every channel has stopped within 100 ms.
    pub fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::Release);
        // Cannot fail: the counter has room for 2^64 - 2 calls.
        let _ = rustix::io::write(&self.0.event, &1u64.to_ne_bytes());
    }

    /// Whether it was stopped.
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::Acquire)
    }

    /// Sleeps, unless it is or gets stopped.
    pub(super) fn sleep(&self, time: Duration) {
        poll_for(&mut [PollFd::new(&self.0.event, PollFlags::IN)], Some(time));
    }
}

impl AsFd for Canceller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.event.as_fd()
    }
}
