//! How an object is cut into parts: a pure function, so a 1 TiB object costs no list.
//!
//! Parts end at multiples of the part size, counted from the object's start, because objects are usually uploaded in
//! parts of that size. An object of at most one part is fetched whole, without a `Range`, which lets the server send
//! its checksum.
//!
//! A stream's first object begins with small parts that grow. The first bytes then arrive after one latency and not
//! after one part; and although every connection is busy from the start and shares the link with the others, the next
//! bytes follow soon, not when a whole round of large parts is through (0.7 s on a link of 2.5 Gb/s). How far this goes
//! is a [`Lead`]: it costs a small object two requests more.

use crate::object::ByteRange;

const MIB: u64 = 1 << 20;
/// While a stream's first object starts before the first number, its parts end at multiples of the second.
const RAMP: [(u64, u64); 3] = [(8 * MIB, MIB), (16 * MIB, 2 * MIB), (32 * MIB, 4 * MIB)];

/// How an object begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lead {
    /// Like every other: it is not the first of its stream.
    Not,
    /// With small parts, if it has more than a MiB: all of a smaller one is there soon.
    Large,
    /// With small parts, whatever its size: somebody waits for the first byte.
    Any,
    /// With a part that most small objects fit into: nothing is known of it, and what is behind that part can only be
    /// asked for, and waited for, when its answer has come.
    Blind,
}

/// Takes S3 a millisecond beside the latency.
const BLIND_BYTES: u64 = 64 << 10;

/// The sizes that cut objects into parts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grid {
    pub(super) part_bytes: u64,
    pub(super) lead_bytes: u64,
}

impl Grid {
    /// The part that starts at `start` of an object of `size_bytes`; empty at its end.
    pub(super) fn part_at(self, start: u64, size_bytes: u64, lead: Lead) -> ByteRange {
        let ramps = match lead {
            Lead::Not => false,
            Lead::Large => size_bytes > MIB.min(self.part_bytes),
            Lead::Any | Lead::Blind => size_bytes > self.lead_bytes,
        };
        let end = if ramps {
            self.ramp_end(start, self.first_bytes(lead))
        } else {
            self.grid_end(start)
        };
        ByteRange::new(start, end.min(size_bytes))
    }

    fn first_bytes(self, lead: Lead) -> u64 {
        match lead {
            Lead::Blind => self.lead_bytes.max(BLIND_BYTES),
            _ => self.lead_bytes,
        }
    }

    fn ramp_end(self, start: u64, first_bytes: u64) -> u64 {
        let step = RAMP
            .into_iter()
            .find(|(until, _)| start < *until)
            .map(|(_, step)| step);
        let end = match step {
            _ if start < first_bytes => first_bytes,
            Some(step) => (start / step + 1) * step,
            None => u64::MAX,
        };
        end.min(self.grid_end(start))
    }

    fn grid_end(self, start: u64) -> u64 {
        (start / self.part_bytes + 1).saturating_mul(self.part_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GRID: Grid = Grid {
        part_bytes: 8 << 20,
        lead_bytes: 4 << 10,
    };

    fn parts(grid: Grid, size: u64, lead: Lead) -> Vec<ByteRange> {
        let mut parts = Vec::new();
        let mut start = 0;
        while start < size {
            parts.push(grid.part_at(start, size, lead));
            start = parts.last().unwrap().end;
        }
        parts
    }

    #[test]
    fn the_first_object_starts_small_and_the_others_on_the_grid() {
        let ends = |size, lead| {
            parts(GRID, size, lead)
                .iter()
                .map(|part| part.end)
                .collect::<Vec<_>>()
        };
        let mib = |ends: &[u64]| ends.iter().map(|end| end << 20).collect::<Vec<_>>();
        let ramp = mib(&[
            1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 45,
        ]);
        for lead in [Lead::Large, Lead::Any] {
            let ramp = ramp.clone();
            assert_eq!(ends(45 << 20, lead), [vec![4 << 10], ramp].concat());
        }
        assert_eq!(ends(45 << 20, Lead::Blind), [vec![64 << 10], ramp].concat());
        assert_eq!(ends(20 << 20, Lead::Not), [8 << 20, 16 << 20, 20 << 20]);
        assert_eq!(ends(8 << 20, Lead::Not), [8 << 20]);
        assert_eq!(ends(100_000, Lead::Large), [100_000]);
        assert_eq!(ends(100_000, Lead::Any), [4 << 10, 100_000]);
        assert_eq!(ends(4 << 10, Lead::Any), [4 << 10]);
        assert_eq!(ends(64 << 10, Lead::Blind), [64 << 10]);
    }

    #[test]
    fn a_tebibyte_is_planned_part_by_part() {
        assert_eq!(
            GRID.part_at((1 << 40) - 5, 1 << 40, Lead::Not),
            ByteRange::new((1 << 40) - 5, 1 << 40)
        );
        assert!(GRID.part_at(u64::MAX - 1, u64::MAX, Lead::Any).len() == 1);
    }

    proptest! {
        #[test]
        fn parts_tile_the_object(size in 0..100_000u64, part_bytes in 1..5_000u64, lead_bytes in 1..200u64, lead in prop_oneof![Just(Lead::Not), Just(Lead::Large), Just(Lead::Any), Just(Lead::Blind)]) {
            let grid = Grid { part_bytes, lead_bytes };
            let parts = parts(grid, size, lead);
            let mut at = 0;
            for part in &parts {
                prop_assert_eq!(part.start, at);
                prop_assert!(!part.is_empty() && part.len() <= part_bytes);
                at = part.end;
            }
            prop_assert_eq!(at, size);
            if size <= part_bytes && lead == Lead::Not { prop_assert!(parts.len() <= 1); }
        }
    }
}
