//! What happens to a job while it runs, in one queue: signals, notices, failures, the trainer's end.
//!
//! One thread takes it out and decides; everybody else only posts. Before there is a trainer that thread may be busy with
//! a download: then a reason to stop ends that, too.

use std::process::ExitStatus;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};

use super::stop::Cause;
use super::trainer;
use crate::download::Stop;
use crate::error::{Error, Result};
use crate::runtime;

/// Something happened.
#[derive(Debug)]
pub(super) enum Event {
    /// There is a reason to stop, and maybe a time limit.
    Stop(Cause, Option<Duration>),
    /// An input failed for good.
    InputFailed(Error),
    /// A signal that is the trainer's business alone.
    Forward(u8),
    /// The trainer has ended.
    Ended(ExitStatus),
    /// What it has left is saved, or will not be.
    Saved,
}

/// The queue.
#[derive(Debug)]
pub(super) struct Inbox {
    events: Receiver<Event>,
    post: Post,
}

/// Its other end.
#[derive(Debug, Clone)]
pub(super) struct Post {
    events: Sender<Event>,
    busy: Arc<Mutex<Busy>>,
}

/// What the deciding thread is busy with, and whether it should not be.
#[derive(Debug, Default)]
struct Busy {
    with: Option<Arc<Stop>>,
    stopped: bool,
}

impl Inbox {
    pub(super) fn new() -> Self {
        let (sender, events) = channel();
        let post = Post {
            events: sender,
            busy: Arc::default(),
        };
        Self { events, post }
    }

    pub(super) fn post(&self) -> Post {
        self.post.clone()
    }

    /// The next event; none when `until` has passed.
    pub(super) fn next(&self, until: Option<Instant>) -> Option<Event> {
        // The queue cannot end: its other end is in here.
        match until {
            None => self.events.recv().ok(),
            Some(until) => {
                let left = until.saturating_duration_since(Instant::now());
                self.events.recv_timeout(left).ok()
            }
        }
    }

    /// Runs work that `stop` ends, and that ends when there is a reason to.
    pub(super) fn busy<T>(&self, stop: &Arc<Stop>, work: impl FnOnce() -> T) -> T {
        {
            let mut busy = self.post.busy();
            if busy.stopped {
                stop.cancel();
            }
            busy.with = Some(stop.clone());
        }
        let result = work();
        self.post.busy().with = None;
        result
    }

    /// Whether there is a reason to stop among what has happened.
    pub(super) fn is_stopped(&self) -> bool {
        self.post.busy().stopped
    }
}

impl Post {
    pub(super) fn send(&self, event: Event) {
        if matches!(event, Event::Stop(..)) {
            let mut busy = self.busy();
            busy.stopped = true;
            if let Some(stop) = &busy.with {
                stop.cancel();
            }
        }
        // The job is over when nobody listens.
        let _ = self.events.send(event);
    }

    fn busy(&self) -> std::sync::MutexGuard<'_, Busy> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Posts the signals that this process gets from now on.
    pub(super) fn signals(&self) -> Result<()> {
        let runtime = runtime::handle();
        let _entered = runtime.enter();
        let ends = [
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::hangup(),
            SignalKind::quit(),
        ];
        let others = [SignalKind::user_defined1(), SignalKind::user_defined2()];
        let all = ends.iter().map(|kind| (*kind, true));
        for (kind, ends) in all.chain(others.iter().map(|kind| (*kind, false))) {
            // `nohup`, or a shell that has put us into the background: whoever has started us does not want it heeded.
            // The trainer inherits that.
            if kind != SignalKind::terminate() && trainer::is_ignored(kind.as_raw_value()) {
                continue;
            }
            let mut signals = signal(kind).map_err(|error| Error::io("signal handler", error))?;
            let number = u8::try_from(kind.as_raw_value()).unwrap_or_default();
            let post = self.clone();
            runtime.spawn(async move {
                while signals.recv().await.is_some() {
                    post.send(match ends {
                        true => Event::Stop(Cause::Signal { number }, None),
                        false => Event::Forward(number),
                    });
                }
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_to_stop_ends_what_the_thread_is_busy_with_then_and_later() {
        let inbox = Inbox::new();
        let stop = Arc::new(Stop::default());
        let seen = inbox.busy(&stop, || {
            assert!(!stop.is_stopped());
            let cause = Cause::Signal { number: 15 };
            inbox.post().send(Event::Stop(cause, None));
            stop.is_stopped()
        });
        assert!(seen && inbox.is_stopped());
        let later = Arc::new(Stop::default());
        assert!(inbox.busy(&later, || later.is_stopped()));
        assert!(matches!(
            inbox.next(Some(Instant::now())),
            Some(Event::Stop(..))
        ));
        assert!(inbox.next(Some(Instant::now())).is_none());
    }
}
