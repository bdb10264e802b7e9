//! How the runtime's threads tell a Python thread that something is there: without Python.
//!
//! A thread that blocks waits at a channel of one token; an event loop watches a file descriptor (an eventfd). Both are
//! rung by the waker that a poll leaves behind. Ringing twice is ringing once, and whoever is woken looks again.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, OnceLock};
use std::task::{Wake, Waker};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender};
use rustix::event::{EventfdFlags, eventfd};

/// What is rung.
#[derive(Debug)]
pub(crate) struct Bell {
    token: Sender<()>,
    rung: Receiver<()>,
    /// Made for the first event loop that asks.
    event: OnceLock<OwnedFd>,
}

impl Bell {
    pub(crate) fn new() -> Arc<Self> {
        let (token, rung) = crossbeam_channel::bounded(1);
        Arc::new(Self {
            token,
            rung,
            event: OnceLock::new(),
        })
    }

    pub(crate) fn waker(self: &Arc<Self>) -> Waker {
        Waker::from(self.clone())
    }

    /// Waits until it is rung; `false` when the deadline came first.
    pub(crate) fn wait(&self, deadline: Instant) -> bool {
        self.rung.recv_deadline(deadline).is_ok()
    }

    /// A descriptor that is readable after it was rung. It stays the bell's.
    pub(crate) fn descriptor(&self) -> std::io::Result<RawFd> {
        if self.event.get().is_none() {
            let made = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
            // Another thread may have been first: then this one is closed again.
            let _ = self.event.set(made);
        }
        Ok(self.event.get().map_or(-1, AsRawFd::as_raw_fd))
    }

    /// Makes the descriptor unreadable until it is rung again.
    pub(crate) fn silence(&self) {
        if let Some(event) = self.event.get() {
            // An error says that it was not rung.
            let _ = rustix::io::read(event, &mut [0; 8]);
        }
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let _ = self.token.try_send(());
        if let Some(event) = self.event.get() {
            // It can only fail when it was rung 2^64 times and nobody came.
            let _ = rustix::io::write(event, &1_u64.to_ne_bytes());
        }
    }
}
