//! One timer per connection that answers "is anything still coming?".
//!
//! Timers cost a lock and two cache misses when they are set, which would be a tenth of a 4 KiB request. So a
//! connection's timer is set once and left to run; moving the deadline back costs nothing, and when the timer fires
//! it is judged then whether the time is really up, or the timer is set anew.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// In each period at least this much must arrive: 13 KB/s with the usual five seconds.
const PROGRESS_BYTES: u64 = 64 << 10;

/// The rule that holds now.
#[derive(Debug, Clone, Copy)]
struct Rule {
    deadline: Instant,
    /// How long each period is.
    period: Duration,
    /// The count at which the next period may begin.
    needed_bytes: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum Judgement {
    Stalled,
    WaitUntil(Instant),
}

impl Rule {
    /// At the deadline, whether enough has come; then the next period begins.
    fn judge(&mut self, now: Instant, received_bytes: u64) -> Judgement {
        if now >= self.deadline {
            if received_bytes < self.needed_bytes {
                return Judgement::Stalled;
            }
            self.deadline = now + self.period;
            self.needed_bytes = received_bytes + PROGRESS_BYTES;
        }
        Judgement::WaitUntil(self.deadline)
    }
}

/// Watches one connection.
#[derive(Debug)]
pub(super) struct Watch {
    rule: Rule,
    timer: Pin<Box<Sleep>>,
}

impl Watch {
    pub(super) fn new(now: Instant) -> Self {
        let rule = Rule {
            deadline: now,
            period: Duration::ZERO,
            needed_bytes: 0,
        };
        Self {
            rule,
            timer: Box::pin(tokio::time::sleep_until(now)),
        }
    }

    /// From now on at least one byte must come within `period`.
    pub(super) fn expect_first_byte(&mut self, now: Instant, period: Duration) {
        self.rule = Rule {
            deadline: now + period,
            period,
            needed_bytes: 1,
        };
    }

    /// From now on 64 KiB must come in every `period`.
    pub(super) fn expect_progress(&mut self, now: Instant, period: Duration, received_bytes: u64) {
        self.rule = Rule {
            deadline: now + period,
            period,
            needed_bytes: received_bytes + PROGRESS_BYTES,
        };
    }

    /// The time that the rule in force allows.
    pub(super) fn period(&self) -> Duration {
        self.rule.period
    }

    /// Ready when the connection has stalled. Call it only when a read or write would block.
    pub(super) fn poll_stalled(&mut self, cx: &mut Context<'_>, received_bytes: u64) -> Poll<()> {
        if self.timer.deadline() > self.rule.deadline {
            self.timer.as_mut().reset(self.rule.deadline);
        }
        loop {
            ready!(self.timer.as_mut().poll(cx));
            match self.rule.judge(Instant::now(), received_bytes) {
                Judgement::Stalled => return Poll::Ready(()),
                Judgement::WaitUntil(deadline) => self.timer.as_mut().reset(deadline),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_period_with_too_few_bytes_is_a_stall_and_never_before_its_end() {
        let (start, period) = (Instant::now(), Duration::from_secs(5));
        let mut rule = Rule {
            deadline: start + period,
            period,
            needed_bytes: 1,
        };
        let early = start + period / 2;
        assert_eq!(rule.judge(early, 0), Judgement::WaitUntil(start + period));
        let end = start + period;
        assert_eq!(rule.judge(end, 1), Judgement::WaitUntil(end + period));
        let end = end + period;
        assert_eq!(
            rule.judge(end, 1 + PROGRESS_BYTES),
            Judgement::WaitUntil(end + period)
        );
        assert_eq!(
            rule.judge(end + period, PROGRESS_BYTES * 2),
            Judgement::Stalled
        );
    }
}
