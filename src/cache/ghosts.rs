//! When objects were used that the cache has no room for.

use std::collections::HashMap;

/// Names to remember: 1.5 MiB.
const MOST: usize = 1 << 16;

/// A sample of objects by name, as large as memory allows: which are in it depends on their names only, so an object is
/// remembered at its every use or at none.
#[derive(Debug, Default)]
pub(super) struct Ghosts {
    used_at: HashMap<u64, u64>,
    /// Only names that end in so many zero bits are in the sample.
    zero_bits: u32,
}

impl Ghosts {
    /// Notes a use of the object with these random bits; gives its last one, if it is in the sample.
    pub(super) fn used(&mut self, bits: u64, clock: u64) -> Option<u64> {
        if bits.trailing_zeros() < self.zero_bits {
            return None;
        }
        let before = self.used_at.insert(bits, clock);
        if self.used_at.len() > MOST {
            self.zero_bits += 1;
            let least = self.zero_bits;
            self.used_at
                .retain(|bits, _| bits.trailing_zeros() >= least);
        }
        before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_bounded_and_remembers_the_same_names_every_time() {
        let mut ghosts = Ghosts::default();
        let mut rng = fastrand::Rng::with_seed(1);
        let names: Vec<u64> = (0..500_000).map(|_| rng.u64(..)).collect();
        for (at, name) in (0..).zip(&names) {
            ghosts.used(*name, at);
            assert!(ghosts.used_at.len() <= MOST);
        }
        let known = (0..).zip(&names).filter(|(at, name)| {
            let before = ghosts.used(**name, 1_000_000 + at);
            assert!(before.is_none_or(|before| before == *at));
            before.is_some()
        });
        let known = known.count();
        assert!((MOST / 4..=MOST).contains(&known), "{known}");
    }
}
