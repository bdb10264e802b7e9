//! Idle connections: who may be used again, and which first.
//!
//! Last in, first out: the connection that was used last is the least likely to have been closed by the server, and
//! its socket buffers are warm. S3 closes a connection after about five idle seconds, so one that has been idle for
//! longer than the limit is dropped unasked.

use std::time::Duration;

use tokio::time::Instant;

/// Load balancers want connections to move on; a fresh one may also reach another, less busy address.
const MAX_REQUESTS: u32 = 10_000;
/// See [`MAX_REQUESTS`].
const MAX_AGE: Duration = Duration::from_secs(600);

/// Whether a connection has served long enough.
pub(super) fn is_aged(opened: Instant, requests: u32, now: Instant) -> bool {
    requests >= MAX_REQUESTS || now.duration_since(opened) >= MAX_AGE
}

/// The idle connections to one endpoint, the oldest first.
#[derive(Debug)]
pub(super) struct Shelf<C>(Vec<(Instant, C)>);

impl<C> Default for Shelf<C> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<C> Shelf<C> {
    /// The connection that was put back last, unless it has been idle for too long; then all have.
    pub(super) fn take(&mut self, now: Instant, idle_timeout: Duration) -> Option<C> {
        let (since, conn) = self.0.pop()?;
        if now.duration_since(since) < idle_timeout {
            return Some(conn);
        }
        self.0.clear();
        None
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Puts a connection back, and drops those that are too old or too many.
    pub(super) fn put(&mut self, conn: C, now: Instant, idle_timeout: Duration, max_idle: usize) {
        let too_old = self
            .0
            .partition_point(|(since, _)| now.duration_since(*since) >= idle_timeout);
        let too_many = (self.0.len() + 1).saturating_sub(max_idle);
        self.0.drain(..too_old.max(too_many).min(self.0.len()));
        if max_idle > 0 {
            self.0.push((now, conn));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const IDLE: Duration = Duration::from_secs(4);

    #[test]
    fn the_last_one_back_is_the_first_out_until_it_is_stale() {
        let start = Instant::now();
        let mut shelf = Shelf::default();
        shelf.put('a', start, IDLE, 8);
        shelf.put('b', start + IDLE / 2, IDLE, 8);
        assert_eq!(shelf.take(start + IDLE / 2, IDLE), Some('b'));
        assert_eq!(shelf.take(start + IDLE, IDLE), None);
        assert!(shelf.0.is_empty());
    }

    #[test]
    fn age_and_requests_end_a_connection() {
        let start = Instant::now();
        assert!(!is_aged(start, 9_999, start + Duration::from_secs(599)));
        assert!(is_aged(start, 10_000, start));
        assert!(is_aged(start, 0, start + Duration::from_secs(600)));
    }

    proptest! {
        #[test]
        fn never_too_many_and_never_a_stale_one(
            steps in proptest::collection::vec((0..3000u64, any::<bool>()), 1..60), max_idle in 0..5usize,
        ) {
            let (mut now, mut shelf) = (Instant::now(), Shelf::default());
            for (millis, put) in steps {
                now += Duration::from_millis(millis);
                if put {
                    shelf.put(now, now, IDLE, max_idle);
                } else if let Some(since) = shelf.take(now, IDLE) {
                    prop_assert!(now.duration_since(since) < IDLE);
                }
                prop_assert!(shelf.0.len() <= max_idle);
            }
        }
    }
}
