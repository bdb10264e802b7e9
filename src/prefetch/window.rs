//! How far a stream may read ahead of its consumer.

/// A limit in bytes that doubles whenever the consumer had to wait although the window was full: no rate needs to be
/// estimated, the stall itself says that more must be in flight (the rule of Mountpoint's prefetcher).
///
/// It never exceeds the stream's fair share of the memory, so that a slow consumer's stream cannot starve another.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReadWindow {
    bytes: u64,
}

impl ReadWindow {
    pub(super) fn new(initial_bytes: u64) -> Self {
        Self {
            bytes: initial_bytes,
        }
    }

    /// Whether another part may be issued. One always may: a window can't be smaller than a part.
    pub(super) fn admits(self, outstanding_bytes: u64, part_bytes: u64, share_bytes: u64) -> bool {
        outstanding_bytes == 0
            || outstanding_bytes.saturating_add(part_bytes) <= self.bytes.min(share_bytes)
    }

    /// The consumer waits while `outstanding_bytes` are on their way.
    pub(super) fn stalled(&mut self, outstanding_bytes: u64, part_bytes: u64) {
        if !self.admits(outstanding_bytes, part_bytes, u64::MAX) {
            self.bytes = self.bytes.saturating_mul(2).max(part_bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn it_grows_only_when_it_was_the_limit() {
        let mut window = ReadWindow::new(10);
        window.stalled(2, 4);
        assert!(window.admits(6, 4, 100) && !window.admits(8, 4, 100));
        window.stalled(8, 4);
        assert!(window.admits(16, 4, 100) && !window.admits(16, 4, 19));
    }

    proptest! {
        #[test]
        fn one_part_always_fits_and_the_share_always_holds(initial: u64, part in 1..u64::MAX, outstanding in 1..u64::MAX, share: u64) {
            let window = ReadWindow::new(initial);
            prop_assert!(window.admits(0, part, share));
            if window.admits(outstanding, part, share) { prop_assert!(outstanding + part <= share); }
        }
    }
}
