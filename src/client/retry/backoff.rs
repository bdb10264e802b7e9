//! When to try again and when to stop: plain functions of the failures so far, the time and a random number.

use std::time::Duration;

use tokio::time::Instant;

use super::RetryConfig;
use crate::error::Error;

/// How long to wait before an attempt: "full jitter", a uniform draw below a bound that doubles.
///
/// Clients that failed together then come back spread over the whole time and not in waves
/// (AWS Architecture Blog, "Exponential Backoff And Jitter").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The first bound after a broken connection or a server error.
    pub base: Duration,
    /// The first bound after the server asked for fewer requests.
    pub throttle_base: Duration,
    /// The bound never grows past this.
    pub cap: Duration,
}

/// What the server's failure says about the wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// Something broke; the next attempt goes to another connection and may well succeed at once.
    Transient,
    /// The server has too much to do: come back later.
    Throttled,
    /// The endpoint's name has no address, which waiting seldom changes.
    UnknownHost,
}

/// Attempts for a name that does not exist. A few, because a record may just be on its way to all name servers; they
/// take a fifth of a second on average. A name server that cannot answer now is another matter: see
/// [`Error::UnknownHost`].
const UNKNOWN_HOST_ATTEMPTS: u32 = 4;

impl From<&Error> for FailureKind {
    fn from(error: &Error) -> Self {
        match error {
            Error::Throttled { .. } => Self::Throttled,
            Error::UnknownHost { .. } => Self::UnknownHost,
            _ => Self::Transient,
        }
    }
}

impl Backoff {
    /// The wait after failure number `attempt` in a row (from 1; 0 counts as 1). `random` is uniform in 0 to 1.
    pub fn delay(&self, attempt: u32, kind: FailureKind, random: f64) -> Duration {
        let base = match kind {
            FailureKind::Transient | FailureKind::UnknownHost => self.base,
            FailureKind::Throttled => self.throttle_base,
        };
        // 2^31 times a millisecond is far beyond any cap; the bound keeps the shift defined.
        let doublings = attempt.saturating_sub(1).min(31);
        base.saturating_mul(1 << doublings)
            .min(self.cap)
            .mul_f64(random.clamp(0.0, 1.0))
    }
}

/// The failures of one request since it last made progress.
#[derive(Debug, Clone)]
pub(super) struct Patience {
    max_attempts: u32,
    deadline: Duration,
    backoff: Backoff,
    failures: u32,
    since: Instant,
}

/// What to do after a failure.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Next {
    /// Try again after this time.
    Wait(Duration),
    /// It has failed too often or for too long.
    GiveUp { attempts: u32, elapsed: Duration },
}

impl Patience {
    pub(super) fn new(config: &RetryConfig, now: Instant) -> Self {
        Self {
            max_attempts: config.max_attempts,
            deadline: config.deadline,
            backoff: config.backoff(),
            failures: 0,
            since: now,
        }
    }

    /// Bytes or entries came: the count of failures and the clock start anew.
    pub(super) fn progressed(&mut self, now: Instant) {
        self.failures = 0;
        self.since = now;
    }

    /// An attempt failed without progress since [`progressed`](Self::progressed).
    pub(super) fn failed(&mut self, kind: FailureKind, now: Instant, random: f64) -> Next {
        self.failures += 1;
        let elapsed = now.duration_since(self.since);
        let delay = self.backoff.delay(self.failures, kind, random);
        let max_attempts = match kind {
            FailureKind::UnknownHost => self.max_attempts.min(UNKNOWN_HOST_ATTEMPTS),
            _ => self.max_attempts,
        };
        // A wait that ends behind the deadline would be in vain.
        if self.failures >= max_attempts || elapsed + delay >= self.deadline {
            return self.give_up(now);
        }
        Next::Wait(delay)
    }

    pub(super) fn give_up(&self, now: Instant) -> Next {
        Next::GiveUp {
            attempts: self.failures,
            elapsed: now.duration_since(self.since),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn backoff() -> Backoff {
        RetryConfig::default().backoff()
    }

    #[test]
    fn the_bound_doubles_up_to_the_cap() {
        let millis = |attempt, kind| backoff().delay(attempt, kind, 1.0).as_millis();
        let transient = |attempt| millis(attempt, FailureKind::Transient);
        assert_eq!([0, 1, 2, 3, 8].map(transient), [50, 50, 100, 200, 6_400]);
        assert_eq!([10, 100, u32::MAX].map(transient), [20_000; 3]);
        assert_eq!(
            [1, 2, 7].map(|n| millis(n, FailureKind::Throttled)),
            [500, 1_000, 20_000]
        );
    }

    #[test]
    fn progress_starts_the_count_anew() {
        let now = Instant::now();
        let mut patience = Patience::new(&RetryConfig::default(), now);
        for _ in 0..100 {
            for _ in 0..7 {
                let next = patience.failed(FailureKind::Transient, now, 0.5);
                assert!(matches!(next, Next::Wait(_)), "{next:?}");
            }
            patience.progressed(now);
        }
    }

    #[test]
    fn a_name_that_does_not_exist_is_looked_up_a_few_times() {
        let now = Instant::now();
        let mut patience = Patience::new(&RetryConfig::default(), now);
        let mut fail = || patience.failed(FailureKind::UnknownHost, now, 1.0);
        let waits: Vec<_> = std::iter::from_fn(|| match fail() {
            Next::Wait(delay) => Some(delay),
            Next::GiveUp { .. } => None,
        })
        .collect();
        assert_eq!(waits, [50, 100, 200].map(Duration::from_millis));
    }

    proptest! {
        #[test]
        fn a_wait_is_jittered_over_its_whole_bound(attempt: u32, random in 0.0..1.0f64) {
            let bound = backoff().delay(attempt, FailureKind::Transient, 1.0);
            let delay = backoff().delay(attempt, FailureKind::Transient, random);
            prop_assert!(delay <= bound && bound <= backoff().cap);
            prop_assert!((delay.as_secs_f64() - bound.as_secs_f64() * random).abs() < 1e-6);
        }

        /// Without progress an ordeal ends: by count or by time, and never earlier than one of them asks.
        #[test]
        fn patience_ends_by_count_or_by_time(steps in proptest::collection::vec((0..60u64, 0.0..1.0f64, any::<bool>()), 12)) {
            let config = RetryConfig::default();
            let begun = Instant::now();
            let mut now = begun;
            let mut patience = Patience::new(&config, now);
            for (index, (seconds, random, throttled)) in steps.into_iter().enumerate() {
                now += Duration::from_secs(seconds);
                let kind = if throttled { FailureKind::Throttled } else { FailureKind::Transient };
                match patience.failed(kind, now, random) {
                    Next::Wait(delay) => {
                        prop_assert!(index < 11 && now - begun + delay < config.deadline);
                        now += delay;
                    }
                    Next::GiveUp { attempts, elapsed } => {
                        prop_assert_eq!((attempts as usize, elapsed), (index + 1, now - begun));
                        prop_assert!(attempts == 12 || elapsed + config.cap >= config.deadline);
                        return Ok(());
                    }
                }
            }
            prop_assert!(false, "twelve failures and no end");
        }
    }
}
