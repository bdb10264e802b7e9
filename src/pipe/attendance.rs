//! How long any channel of a server has had a reader: the time that its rate is of.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Counts the readers that are there.
#[derive(Debug, Default)]
pub(super) struct Attendance(Mutex<State>);

#[derive(Debug, Default, Clone, Copy)]
struct State {
    readers: u32,
    since: Option<Instant>,
    before: Duration,
}

impl State {
    fn came(&mut self, now: Instant) {
        self.readers += 1;
        self.since.get_or_insert(now);
    }

    fn left(&mut self, now: Instant) {
        self.readers = self.readers.saturating_sub(1);
        if self.readers == 0 {
            self.before = self.total(now);
            self.since = None;
        }
    }

    fn total(&self, now: Instant) -> Duration {
        let running = self.since.map(|since| now.saturating_duration_since(since));
        self.before + running.unwrap_or_default()
    }
}

impl Attendance {
    /// A reader came.
    pub(super) fn came(&self, now: Instant) {
        self.with(|state| state.came(now));
    }

    /// One of them left.
    pub(super) fn left(&self, now: Instant) {
        self.with(|state| state.left(now));
    }

    /// Whether anybody is there.
    pub(super) fn is_anybody_there(&self) -> bool {
        self.with(|state| state.readers > 0)
    }

    /// Time until `now` in which at least one was there.
    pub(super) fn total(&self, now: Instant) -> Duration {
        self.with(|state| state.total(now))
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_readers_at_once_count_once_and_nobody_counts_nothing() {
        let attendance = Attendance::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        attendance.came(at(2));
        attendance.came(at(3));
        attendance.left(at(5));
        assert!(attendance.is_anybody_there());
        assert_eq!(attendance.total(at(6)), Duration::from_secs(4));
        attendance.left(at(7));
        assert_eq!(attendance.total(at(60)), Duration::from_secs(5));
        assert!(!attendance.is_anybody_there());
        attendance.came(at(61));
        assert_eq!(attendance.total(at(62)), Duration::from_secs(6));
    }
}
