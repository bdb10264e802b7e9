//! How a trainer is stopped: SIGTERM, time to save its work, SIGKILL. A state machine without a clock.

use std::time::{Duration, Instant};

use serde::Serialize;

/// Why a job ends before its trainer does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Cause {
    /// This process was asked to end: by Ctrl-C, by an orchestrator (ECS, Batch and Kubernetes send SIGTERM).
    Signal {
        /// Its number.
        number: u8,
    },
    /// The instance is to be taken away: EC2's interruption notice.
    SpotTermination,
    /// The instance is likely to be taken away soon: EC2's rebalance recommendation.
    SpotRebalance,
    /// An input failed, and what the trainer would read from now on is not the data.
    Input,
    /// `StoppingCondition.MaxRuntimeInSeconds` is over.
    MaxRuntime,
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    /// Send this signal to the trainer.
    Send(u8),
    /// Kill it and all that it has started.
    Kill,
    /// Nothing.
    Nothing,
}

const SIGINT: u8 = 2;
const SIGTERM: u8 = 15;

/// What the last sync has in any case, however long cleaning up after a kill took (unless it was given less): enough for
/// what is small, and little beside the two minutes of an instance that is taken away.
const LEAST_TO_SAVE: Duration = Duration::from_secs(5);

/// How the stopping stands.
#[derive(Debug)]
pub(super) struct Stopping {
    grace: Duration,
    cause: Option<Cause>,
    kill_at: Option<Instant>,
    killed: bool,
    /// Somebody has asked twice.
    hurried: bool,
}

impl Stopping {
    /// Nothing has happened yet; a trainer gets `grace` from the first request to end.
    pub(super) fn new(grace: Duration) -> Self {
        Self {
            grace,
            cause: None,
            kill_at: None,
            killed: false,
            hurried: false,
        }
    }

    /// Somebody wants the end; `within` is the time that is left in any case, if that is known.
    pub(super) fn ask(&mut self, cause: Cause, now: Instant, within: Option<Duration>) -> Act {
        let grace = within.map_or(self.grace, |within| within.min(self.grace));
        // What no clock reaches is never.
        let kill_at = now.checked_add(grace);
        let Some(first) = self.cause else {
            self.cause = Some(cause);
            self.kill_at = kill_at;
            return Act::Send(signal_of(cause));
        };
        let is_signal = |cause| matches!(cause, Cause::Signal { .. });
        if is_signal(first) && is_signal(cause) {
            // Whoever asks twice does not want to wait.
            self.hurried = true;
            return self.kill();
        }
        self.kill_at = [self.kill_at, kill_at].into_iter().flatten().min();
        // A second reason is no second request: the trainer is about to end.
        Act::Nothing
    }

    /// Time has passed.
    pub(super) fn tick(&mut self, now: Instant) -> Act {
        match self.kill_at {
            Some(at) if now >= at => self.kill(),
            _ => Act::Nothing,
        }
    }

    fn kill(&mut self) -> Act {
        match std::mem::replace(&mut self.killed, true) {
            true => Act::Nothing,
            false => Act::Kill,
        }
    }

    /// The first reason, if there is one.
    pub(super) fn cause(&self) -> Option<Cause> {
        self.cause
    }

    /// Until when what the trainer has left may be saved, of which `reserve` is sure: none without a reason to stop.
    pub(super) fn save_until(&self, now: Instant, reserve: Duration) -> Option<Instant> {
        self.cause?;
        match self.hurried {
            true => now.checked_add(reserve),
            // A trainer that ends early leaves the rest of its time; one that is killed, and all that is waited for then,
            // takes of this one's.
            false => {
                let until = self.kill_at?.checked_add(reserve)?;
                Some(until.max(now.checked_add(reserve.min(LEAST_TO_SAVE))?))
            }
        }
    }

    /// Whether somebody has asked twice.
    pub(super) fn is_hurried(&self) -> bool {
        self.hurried
    }

    /// Whether the trainer did not end in time.
    pub(super) fn was_killed(&self) -> bool {
        self.killed
    }

    /// When to look again at the latest.
    pub(super) fn wake(&self) -> Option<Instant> {
        self.kill_at.filter(|_| !self.killed)
    }
}

fn signal_of(cause: Cause) -> u8 {
    match cause {
        Cause::Signal { number } => number,
        _ => SIGTERM,
    }
}

impl Cause {
    /// The exit code that says so, whatever the trainer made of it; none where the failure itself has one.
    pub fn exit_code(self) -> Option<u8> {
        match self {
            Self::Signal { number } => Some(128 + number),
            Self::SpotTermination | Self::SpotRebalance => Some(INTERRUPTED),
            Self::MaxRuntime => Some(OUT_OF_TIME),
            Self::Input => None,
        }
    }

    /// In a few words.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Signal { number: SIGINT } => "interrupted (SIGINT)",
            Self::Signal { number: SIGTERM } => "asked to end (SIGTERM)",
            Self::Signal { .. } => "ended by a signal",
            Self::SpotTermination => "the instance is about to be taken away (spot interruption)",
            Self::SpotRebalance => {
                "the instance is likely to be taken away (rebalance recommendation)"
            }
            Self::Input => "an input failed",
            Self::MaxRuntime => "MaxRuntimeInSeconds is over",
        }
    }
}

/// EX_TEMPFAIL of sysexits.h: try again. No shell and none of our other codes uses it.
pub const INTERRUPTED: u8 = 75;

/// What timeout(1) ends with.
pub const OUT_OF_TIME: u8 = 124;

#[cfg(test)]
mod tests {
    use super::*;

    const TERM: Cause = Cause::Signal { number: SIGTERM };

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn sigterm_then_time_then_sigkill_once() {
        let start = Instant::now();
        let mut stopping = Stopping::new(Duration::from_secs(120));
        assert_eq!(stopping.tick(at(start, 1000)), Act::Nothing);
        assert_eq!(stopping.ask(TERM, start, None), Act::Send(15));
        assert_eq!(stopping.wake(), Some(at(start, 120)));
        assert_eq!(stopping.tick(at(start, 119)), Act::Nothing);
        assert_eq!(stopping.tick(at(start, 120)), Act::Kill);
        assert_eq!(stopping.tick(at(start, 121)), Act::Nothing);
        assert!(stopping.was_killed());
        assert_eq!(stopping.cause().and_then(Cause::exit_code), Some(143));
    }

    #[test]
    fn whoever_asks_twice_does_not_wait() {
        let start = Instant::now();
        let mut stopping = Stopping::new(Duration::from_secs(120));
        let interrupt = Cause::Signal { number: SIGINT };
        assert_eq!(stopping.ask(interrupt, start, None), Act::Send(2));
        assert_eq!(stopping.ask(TERM, at(start, 1), None), Act::Kill);
        assert_eq!(stopping.ask(TERM, at(start, 2), None), Act::Nothing);
        assert_eq!(stopping.cause(), Some(interrupt));
    }

    #[test]
    fn a_notice_leaves_no_more_time_than_there_is() {
        let start = Instant::now();
        let mut stopping = Stopping::new(Duration::from_secs(120));
        let left = Some(Duration::from_secs(90));
        assert_eq!(
            stopping.ask(Cause::SpotTermination, start, left),
            Act::Send(15)
        );
        assert_eq!(stopping.wake(), Some(at(start, 90)));
        // The platform's SIGTERM comes on top; the trainer has had its own.
        assert_eq!(stopping.ask(TERM, at(start, 80), None), Act::Nothing);
        assert_eq!(stopping.tick(at(start, 90)), Act::Kill);
        let code = stopping.cause().and_then(Cause::exit_code);
        assert_eq!(code, Some(INTERRUPTED));
    }

    #[test]
    fn a_grace_beyond_all_clocks_is_no_limit_until_there_is_one() {
        let start = Instant::now();
        let mut stopping = Stopping::new(Duration::MAX);
        assert_eq!(stopping.ask(TERM, start, None), Act::Send(15));
        assert_eq!(stopping.wake(), None);
        let left = Some(Duration::from_secs(90));
        assert_eq!(
            stopping.ask(Cause::SpotTermination, start, left),
            Act::Nothing
        );
        assert_eq!(stopping.wake(), Some(at(start, 90)));
    }

    #[test]
    fn what_is_saved_has_the_rest_of_the_grace_and_its_own() {
        let (start, reserve) = (Instant::now(), Duration::from_secs(30));
        let until = |stopping: &Stopping, seconds| stopping.save_until(at(start, seconds), reserve);
        let mut stopping = Stopping::new(Duration::from_secs(120));
        assert_eq!(until(&stopping, 5), None, "nobody has asked");
        stopping.ask(TERM, start, None);
        assert_eq!(until(&stopping, 10), Some(at(start, 150)));
        assert_eq!(until(&stopping, 121), Some(at(start, 150)));
        assert_eq!(until(&stopping, 149), Some(at(start, 154)));
        // A notice's time is the instance's: the reserve was taken off it.
        stopping.ask(Cause::SpotTermination, start, Some(Duration::from_secs(90)));
        assert_eq!(until(&stopping, 10), Some(at(start, 120)));
        stopping.ask(TERM, at(start, 20), None);
        assert_eq!(until(&stopping, 20), Some(at(start, 50)), "asked twice");
        let mut endless = Stopping::new(Duration::MAX);
        endless.ask(TERM, start, None);
        assert_eq!(until(&endless, 10), None);
    }

    #[test]
    fn a_failed_input_keeps_its_own_code() {
        let mut stopping = Stopping::new(Duration::ZERO);
        let now = Instant::now();
        assert_eq!(stopping.ask(Cause::Input, now, None), Act::Send(15));
        assert_eq!(stopping.tick(now), Act::Kill);
        assert_eq!(Cause::Input.exit_code(), None);
    }
}
