//! How an object is cut into parts: a pure function, so a 1 TiB object costs no list.
//!
//! Parts end at multiples of the part size, counted from the object's start, because objects are usually uploaded in
//! parts of that size. An object of at most one part is fetched whole, without a `Range`, which lets the server send
//! its checksum. A stream's first object begins with two small parts, so that its first bytes arrive after one
//! latency and not after one part.

use crate::object::ByteRange;

/// The end of a stream's second part: after it the grid begins.
const RAMP_BYTES: u64 = 1 << 20;

/// The sizes that cut objects into parts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grid {
    pub(super) part_bytes: u64,
    pub(super) lead_bytes: u64,
}

impl Grid {
    /// The part that starts at `start` of an object of `size_bytes`; empty at its end.
    ///
    /// `leads`: the object is the first of its stream.
    pub(super) fn part_at(self, start: u64, size_bytes: u64, leads: bool) -> ByteRange {
        let end = if leads && size_bytes > RAMP_BYTES.min(self.part_bytes) {
            let ramp = [self.lead_bytes, RAMP_BYTES]
                .into_iter()
                .find(|end| start < *end);
            ramp.unwrap_or(u64::MAX).min(self.grid_end(start))
        } else {
            self.grid_end(start)
        };
        ByteRange::new(start, end.min(size_bytes))
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
        lead_bytes: 64 << 10,
    };

    fn parts(grid: Grid, size: u64, leads: bool) -> Vec<ByteRange> {
        let mut parts = Vec::new();
        let mut start = 0;
        while start < size {
            parts.push(grid.part_at(start, size, leads));
            start = parts.last().unwrap().end;
        }
        parts
    }

    #[test]
    fn the_first_object_starts_small_and_the_others_on_the_grid() {
        let ends = |size, leads| {
            parts(GRID, size, leads)
                .iter()
                .map(|part| part.end)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            ends(20 << 20, true),
            [64 << 10, 1 << 20, 8 << 20, 16 << 20, 20 << 20]
        );
        assert_eq!(ends(20 << 20, false), [8 << 20, 16 << 20, 20 << 20]);
        assert_eq!(ends(8 << 20, false), [8 << 20]);
        assert_eq!(ends(100_000, true), [100_000]);
    }

    #[test]
    fn a_tebibyte_is_planned_part_by_part() {
        assert_eq!(
            GRID.part_at((1 << 40) - 5, 1 << 40, false),
            ByteRange::new((1 << 40) - 5, 1 << 40)
        );
        assert!(GRID.part_at(u64::MAX - 1, u64::MAX, true).len() == 1);
    }

    proptest! {
        #[test]
        fn parts_tile_the_object(size in 0..100_000u64, part_bytes in 1..5_000u64, lead_bytes in 1..200u64, leads: bool) {
            let grid = Grid { part_bytes, lead_bytes };
            let parts = parts(grid, size, leads);
            let mut at = 0;
            for part in &parts {
                prop_assert_eq!(part.start, at);
                prop_assert!(!part.is_empty() && part.len() <= part_bytes);
                at = part.end;
            }
            prop_assert_eq!(at, size);
            if size <= part_bytes && !leads { prop_assert!(parts.len() <= 1); }
        }
    }
}
