//! Which blocks of a large file will be read that is read at random: a pure function of those that were.
//!
//! A random read costs a latency and brings a block. Whoever reads a whole file in random order (a shuffled table, an
//! index of samples in a few large files) pays that for each of them, although nothing is cheaper than the same bytes in
//! full parts. So once a sixteenth of the blocks was read, and they lie scattered, parts of the others are foreseen, spread
//! over the file. Unread at any time are at most as many foreseen blocks as were fetched by reads, and [`TRUST`] for each
//! that was foreseen and then read. So a reader of scattered blocks who wants no others (every tenth column) costs
//! twice what he reads and no more, and for one who reads everything the share that is foreseen grows with each hit, until
//! it is all of the file: each block is fetched once.

use std::ops::Range;

use super::lookahead::Bits;

/// Of so many blocks one must have been read before others are foreseen.
const SPARSE: u64 = 16;
/// And at least so many.
const LEAST: u64 = 4;
/// Of so many blocks that were read, this many must begin a run: chance makes nine in ten at that time, and
/// sixteen readers in order make fewer with each block that they read.
const SCATTERED: (u64, u64) = (4, 3);
/// Blocks that are foreseen for one that was rightly so.
const TRUST: u64 = 8;

/// What was read of one file, and what was foreseen.
#[derive(Debug)]
pub(super) struct Coverage {
    blocks: u64,
    blocks_in_part: u64,
    read: Bits,
    foreseen: Bits,
    /// Runs of blocks that were read.
    runs: u64,
    /// Blocks that were read, by whether they had been foreseen.
    misses: u64,
    hits: u64,
    /// Foreseen and not read.
    unread: u64,
    is_random: bool,
    /// Parts that were gone through.
    parts: u64,
}

impl Coverage {
    pub(super) fn new(blocks: u64, blocks_in_part: u64) -> Self {
        Self {
            blocks,
            blocks_in_part: blocks_in_part.max(1),
            read: Bits::default(),
            foreseen: Bits::default(),
            runs: 0,
            misses: 0,
            hits: 0,
            unread: 0,
            is_random: false,
            parts: 0,
        }
    }

    /// Blocks are read.
    pub(super) fn read(&mut self, blocks: Range<u64>) {
        for block in blocks.start..blocks.end.min(self.blocks) {
            if self.read.set(block) {
                continue;
            }
            match self.foreseen.has(block) {
                true => (self.hits, self.unread) = (self.hits + 1, self.unread - 1),
                false => self.misses += 1,
            }
            let before = block.checked_sub(1).is_some_and(|at| self.read.has(at));
            let behind = self.read.has(block + 1);
            self.runs = (self.runs + 1) - u64::from(before) - u64::from(behind);
        }
    }

    /// The blocks to fetch now, each run of them in one request; of `most` parts at most.
    pub(super) fn foresee(&mut self, most: usize) -> Vec<Range<u64>> {
        let mut found = Vec::new();
        self.is_random |= self.looks_random();
        for _ in 0..most {
            if !self.is_random || self.unread + self.blocks_in_part > self.allowed() {
                break;
            }
            let Some(part) = self.next_part() else { break };
            self.take(part, &mut found);
        }
        found
    }

    fn looks_random(&self) -> bool {
        let read = self.misses + self.hits;
        read >= LEAST.max(self.blocks / SPARSE) && self.runs * SCATTERED.0 >= read * SCATTERED.1
    }

    fn allowed(&self) -> u64 {
        self.misses + TRUST * self.hits
    }

    /// Parts in an order that spreads them: steps of about 0.618 of all (the golden ratio), which meet each part once.
    fn next_part(&mut self) -> Option<Range<u64>> {
        let parts = self.blocks.div_ceil(self.blocks_in_part);
        if self.parts >= parts {
            return None;
        }
        let golden = (parts * 5 / 8).max(1);
        let step = (golden..).find(|step| gcd(*step, parts) == 1)?;
        let part = (u128::from(self.parts) * u128::from(step) % u128::from(parts)) as u64;
        self.parts += 1;
        let start = part * self.blocks_in_part;
        Some(start..(start + self.blocks_in_part).min(self.blocks))
    }

    fn take(&mut self, part: Range<u64>, found: &mut Vec<Range<u64>>) {
        let mut run: Option<Range<u64>> = None;
        for block in part {
            if self.read.has(block) {
                found.extend(run.take());
                continue;
            }
            self.foreseen.set(block);
            self.unread += 1;
            run = Some(run.map_or(block, |run| run.start)..block + 1);
        }
        found.extend(run);
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Reads blocks in this order; how many were fetched by the reads, and how many before them.
    fn walk(coverage: &mut Coverage, order: impl IntoIterator<Item = u64>) -> (u64, u64) {
        let mut there = Bits::default();
        let (mut missed, mut foreseen) = (0, 0);
        for block in order {
            missed += u64::from(!there.set(block));
            coverage.read(block..block + 1);
            assert_eq!(coverage.misses, missed);
            for run in coverage.foresee(4) {
                assert!(run.end - run.start <= coverage.blocks_in_part);
                for block in run {
                    assert!(!there.set(block), "{block} is fetched twice");
                    foreseen += 1;
                }
            }
            assert!(coverage.unread <= coverage.misses + TRUST * coverage.hits);
            assert_eq!(coverage.unread + coverage.hits, foreseen);
        }
        (missed, foreseen)
    }

    fn shuffled(blocks: u64, seed: u64) -> Vec<u64> {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut order: Vec<_> = (0..blocks).collect();
        random.shuffle(&mut order);
        order
    }

    #[test]
    fn a_file_that_is_read_whole_at_random_is_mostly_foreseen_and_fetched_once() {
        for blocks in [16, 100, 256, 2048, 100_000] {
            for seed in 0..5 {
                let mut coverage = Coverage::new(blocks, 8);
                let (missed, foreseen) = walk(&mut coverage, shuffled(blocks, seed));
                assert_eq!(missed + foreseen, blocks, "each block once");
                assert!(blocks < 100 || missed * 2 < blocks, "{missed} of {blocks}");
            }
        }
    }

    #[test]
    fn reads_in_order_foresee_nothing() {
        let mut coverage = Coverage::new(1000, 8);
        assert_eq!(walk(&mut coverage, 0..1000), (1000, 0));
        // Sixteen readers, each of a stretch of its own.
        let mut coverage = Coverage::new(1600, 8);
        let order = (0..100).flat_map(|at| (0..16).map(move |reader| reader * 100 + at));
        assert_eq!(walk(&mut coverage, order), (1600, 0));
    }

    #[test]
    fn who_wants_no_others_costs_twice_what_he_reads() {
        for stride in [10, 11, 100] {
            let mut coverage = Coverage::new(10_000, 8);
            let wanted: Vec<_> = shuffled(10_000, 3)
                .into_iter()
                .filter(|block| block % stride == 0)
                .collect();
            let (missed, foreseen) = walk(&mut coverage, wanted.iter().copied());
            assert!(
                missed + foreseen <= 3 * wanted.len() as u64,
                "{missed} + {foreseen} for {}",
                wanted.len()
            );
        }
        // A few reads of a large file.
        let mut coverage = Coverage::new(10_000, 8);
        let (_, foreseen) = walk(&mut coverage, shuffled(10_000, 4).into_iter().take(600));
        assert_eq!(foreseen, 0);
    }

    proptest! {
        /// Whatever is read: nothing is foreseen that was read, nothing twice, and no more than is allowed.
        #[test]
        fn it_keeps_to_its_allowance(blocks in 1..3000u64, in_part in 1..20u64, reads in proptest::collection::vec(any::<proptest::sample::Index>(), 1..2000)) {
            let mut coverage = Coverage::new(blocks, in_part);
            let order = reads.iter().map(|read| read.index(blocks as usize) as u64);
            let (missed, foreseen) = walk(&mut coverage, order);
            prop_assert!(missed + foreseen <= blocks);
        }
    }
}
