//! How many requests the server bears: a state machine, told what happened and when.

use std::time::Duration;

use tokio::time::Instant;

/// Cuts nearer together than this are one: the answers to requests that were all sent before the first of them.
const CUT_EVERY: Duration = Duration::from_secs(1);
/// Time after a cut before the target grows again: S3 needs seconds to spread a hot prefix.
const HOLD: Duration = Duration::from_secs(5);
/// Growth steps come this far apart, each a sixteenth of the most: from the floor back to the top in 16 s.
const GROW_EVERY: Duration = Duration::from_secs(1);
const STEPS: u32 = 16;
/// First pause of all requests after a throttle, doubled by each further one that no success preceded.
const PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(4);
/// Fewer than this cannot tell a throttled server from a slow one.
const FLOOR: u32 = 4;

/// Decides how many requests may be under way, and when the next may be sent.
///
/// Additive increase, multiplicative decrease, as TCP does: a throttle halves the target, successes raise it again
/// step by step. [`throttled`](Self::throttled) and [`succeeded`](Self::succeeded) are the only ways in and
/// [`target`](Self::target) and [`not_before`](Self::not_before) the only ways out: a controller that measures
/// throughput takes its place here.
#[derive(Debug, Clone)]
pub struct Throttle {
    most: u32,
    target: u32,
    cut_at: Option<Instant>,
    grown_at: Instant,
    not_before: Instant,
    pauses_in_a_row: u32,
}

impl Throttle {
    /// Starts with `most` requests (at least 1), the number it never exceeds.
    pub fn new(most: u32, now: Instant) -> Self {
        let most = most.max(1);
        Self {
            most,
            target: most,
            cut_at: None,
            grown_at: now,
            not_before: now,
            pauses_in_a_row: 0,
        }
    }

    /// How many requests may be under way.
    pub fn target(&self) -> u32 {
        self.target
    }

    /// No request is sent before this time.
    pub fn not_before(&self) -> Instant {
        self.not_before
    }

    /// Whether the server's wish holds requests back at `now`.
    pub fn is_slowed(&self, now: Instant) -> bool {
        self.target < self.most || now < self.not_before
    }

    /// The server asked for fewer requests.
    pub fn throttled(&mut self, now: Instant) {
        self.pause(now);
        if self
            .cut_at
            .is_some_and(|cut| now.duration_since(cut) < CUT_EVERY)
        {
            return;
        }
        self.target = (self.target / 2).max(FLOOR).min(self.most);
        self.cut_at = Some(now);
        self.grown_at = now + HOLD;
    }

    /// Answers that come during a pause are to requests from before it.
    fn pause(&mut self, now: Instant) {
        if now < self.not_before {
            return;
        }
        let doublings = self.pauses_in_a_row.min(8);
        self.not_before = now + PAUSE.saturating_mul(1 << doublings).min(LONGEST_PAUSE);
        self.pauses_in_a_row += 1;
    }

    /// The server answered a request well.
    pub fn succeeded(&mut self, now: Instant) {
        self.pauses_in_a_row = 0;
        if self.target < self.most && now.saturating_duration_since(self.grown_at) >= GROW_EVERY {
            self.target = (self.target + self.most.div_ceil(STEPS)).min(self.most);
            self.grown_at = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_burst_of_throttles_is_one_cut() {
        let now = Instant::now();
        let mut throttle = Throttle::new(64, now);
        for millis in 0..250 {
            throttle.throttled(now + Duration::from_millis(millis));
        }
        assert_eq!(
            (throttle.target(), throttle.not_before()),
            (32, now + PAUSE)
        );
        // After the pause: another pause, twice as long, but no cut so soon.
        throttle.throttled(now + PAUSE);
        assert_eq!(
            (throttle.target(), throttle.not_before()),
            (32, now + 3 * PAUSE)
        );
        throttle.throttled(now + CUT_EVERY);
        assert_eq!(
            (throttle.target(), throttle.not_before()),
            (16, now + CUT_EVERY + 4 * PAUSE)
        );
    }

    #[test]
    fn it_holds_and_then_grows_back() {
        let begun = Instant::now();
        let mut throttle = Throttle::new(64, begun);
        for second in 0..10 {
            throttle.throttled(begun + Duration::from_secs(second));
        }
        let cut = begun + Duration::from_secs(9);
        assert_eq!(throttle.target(), 4);
        let target_after = |throttle: &mut Throttle, seconds| {
            throttle.succeeded(cut + Duration::from_secs(seconds));
            throttle.target()
        };
        assert_eq!(target_after(&mut throttle, 5), 4);
        assert_eq!(target_after(&mut throttle, 6), 8);
        for seconds in 7..21 {
            target_after(&mut throttle, seconds);
        }
        assert_eq!(throttle.target(), 64);
        assert!(!throttle.is_slowed(cut + Duration::from_secs(21)));
    }

    #[test]
    fn a_limit_below_the_floor_stays_the_limit() {
        let now = Instant::now();
        let mut throttle = Throttle::new(2, now);
        throttle.throttled(now);
        assert_eq!(throttle.target(), 2);
    }

    /// A server with a token bucket of `rate` requests a second; each target's worth of requests takes 100 ms.
    /// Returns the share of good answers among all, and the good ones a second, over the last minute of two.
    fn storm(rate: f64) -> (f64, f64) {
        let begun = Instant::now();
        let mut throttle = Throttle::new(256, begun);
        let (mut good, mut bad) = (0.0, 0.0);
        let mut tokens = rate;
        for tick in 0..1200 {
            let now = begun + Duration::from_millis(100 * tick);
            tokens = (tokens + rate / 10.0).min(rate);
            if now < throttle.not_before() {
                continue;
            }
            for _ in 0..throttle.target() {
                let served = tokens >= 1.0;
                if served {
                    tokens -= 1.0;
                    throttle.succeeded(now);
                } else {
                    throttle.throttled(now);
                }
                if tick >= 600 {
                    *(if served { &mut good } else { &mut bad }) += 1.0;
                }
            }
        }
        (good / (good + bad), good / 60.0)
    }

    /// Under a limit on the rate, few requests are sent in vain and most of the rate is used.
    #[test]
    fn a_rate_limit_is_approached_and_not_hammered() {
        for rate in [200.0, 500.0, 1000.0] {
            let (share, per_second) = storm(rate);
            assert!(
                share > 1.0 / 1.5,
                "{rate}: {share} of the answers were good"
            );
            assert!(
                per_second > 0.6 * rate,
                "{rate}: {per_second} good answers a second"
            );
        }
    }

    proptest! {
        #[test]
        fn the_target_keeps_its_bounds(most in 1..500u32, events in proptest::collection::vec((0..3000u64, any::<bool>()), 0..200)) {
            let mut now = Instant::now();
            let mut throttle = Throttle::new(most, now);
            for (millis, is_throttle) in events {
                now += Duration::from_millis(millis);
                let before = throttle.target();
                if is_throttle { throttle.throttled(now) } else { throttle.succeeded(now) }
                let after = throttle.target();
                prop_assert!((FLOOR.min(most)..=most).contains(&after));
                let right_way = if is_throttle { after <= before } else { after >= before };
                prop_assert!(right_way, "{before} to {after}");
                prop_assert!(throttle.not_before() <= now + LONGEST_PAUSE);
            }
        }
    }
}
