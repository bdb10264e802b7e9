//! An object as blocks, and what is recorded of each. No I/O.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::checksum::{Checksum, ChecksumAlgorithm};
use crate::object::ByteRange;

/// How an object is cut: all blocks are alike but the last one, which ends with the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Blocks {
    pub(super) size_bytes: u64,
    pub(super) block_bytes: u64,
}

impl Blocks {
    pub(super) fn count(self) -> u64 {
        self.size_bytes.div_ceil(self.block_bytes)
    }

    /// The block that holds the byte at `offset`.
    pub(super) fn at(self, offset: u64) -> u64 {
        offset / self.block_bytes
    }

    pub(super) fn start(self, block: u64) -> u64 {
        block.saturating_mul(self.block_bytes).min(self.size_bytes)
    }

    /// The bytes of some blocks in a row.
    pub(super) fn bytes(self, blocks: Range<u64>) -> ByteRange {
        ByteRange::new(self.start(blocks.start), self.start(blocks.end))
    }

    /// Every block that has a byte in `range`.
    pub(super) fn touching(self, range: ByteRange) -> Range<u64> {
        let end = range.end.min(self.size_bytes);
        if range.start >= end {
            return 0..0;
        }
        self.at(range.start)..self.at(end - 1) + 1
    }

    /// Every block that lies in `range` with all its bytes.
    pub(super) fn inside(self, range: ByteRange) -> Range<u64> {
        let first = range.start.div_ceil(self.block_bytes);
        let end = match range.end >= self.size_bytes {
            true => self.count(),
            false => self.at(range.end),
        };
        first..end.max(first)
    }
}

/// Which boot of which host this is; never zero. 32 bits: a boot takes another one's blocks for its own with a chance
/// of one in four billion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BootTag(u32);

impl BootTag {
    pub(super) fn of(boot_id: &[u8]) -> Self {
        Self((crc32c(boot_id) ^ 0x5350_4254).max(1))
    }
}

pub(super) fn crc32c(bytes: &[u8]) -> u32 {
    Checksum::of(ChecksumAlgorithm::Crc32c, bytes).value as u32
}

/// What is recorded of a block: that it was stored, in which boot, and its CRC32C. Eight bytes, of which the tag comes
/// first: one that is seen half-written has another tag, and is then as good as its CRC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    tag: u32,
    crc: u32,
}

/// What a record says to a process of some boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Absent,
    /// Stored in this boot, so the page cache has it even if the disk does not.
    Present,
    /// Stored in another boot: the record may have reached the disk without the data.
    Suspect,
}

impl Record {
    pub(super) const LEN: usize = 8;
    pub(super) const ABSENT: [u8; Self::LEN] = [0; Self::LEN];

    pub(super) fn of(boot: BootTag, crc: u32) -> Self {
        Self { tag: boot.0, crc }
    }

    pub(super) fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..4].copy_from_slice(&self.tag.to_le_bytes());
        bytes[4..].copy_from_slice(&self.crc.to_le_bytes());
        bytes
    }

    /// Any eight bytes are a record.
    pub(super) fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        let [a, b, c, d, e, f, g, h] = bytes;
        Self {
            tag: u32::from_le_bytes([a, b, c, d]),
            crc: u32::from_le_bytes([e, f, g, h]),
        }
    }

    /// All whole records of some bytes.
    pub(super) fn all(bytes: &[u8]) -> impl Iterator<Item = Self> + '_ {
        let (records, _) = bytes.as_chunks::<{ Self::LEN }>();
        records.iter().map(|bytes| Self::from_bytes(*bytes))
    }

    pub(super) fn standing(self, boot: BootTag) -> Standing {
        match self.tag {
            0 => Standing::Absent,
            tag if tag == boot.0 => Standing::Present,
            _ => Standing::Suspect,
        }
    }

    pub(super) fn agrees_with(self, bytes: &[u8]) -> bool {
        crc32c(bytes) == self.crc
    }
}

/// A bit per block, which threads set and read without a lock.
#[derive(Debug)]
pub(super) struct Bitmap(Box<[AtomicU64]>);

impl Bitmap {
    pub(super) fn new(bits: u64) -> Self {
        let words = usize::try_from(bits.div_ceil(64)).unwrap_or(usize::MAX);
        Self((0..words).map(|_| AtomicU64::new(0)).collect())
    }

    pub(super) fn has(&self, bit: u64) -> bool {
        let word = self.0.get((bit / 64) as usize);
        word.is_some_and(|word| word.load(Ordering::Acquire) >> (bit % 64) & 1 == 1)
    }

    pub(super) fn set(&self, bit: u64) {
        self.0[(bit / 64) as usize].fetch_or(1 << (bit % 64), Ordering::Release);
    }

    /// The first of `bits` that is not set.
    pub(super) fn first_unset(&self, bits: Range<u64>) -> Option<u64> {
        bits.into_iter().find(|bit| !self.has(*bit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn blocks_tile_the_object(size_bytes in 0..5_000u64, block_bytes in 1..700u64) {
            let blocks = Blocks { size_bytes, block_bytes };
            let mut at = 0;
            for block in 0..blocks.count() {
                let bytes = blocks.bytes(block..block + 1);
                prop_assert_eq!(bytes.start, at);
                prop_assert!(!bytes.is_empty() && bytes.len() <= block_bytes);
                prop_assert!(blocks.at(bytes.start) == block && blocks.at(bytes.end - 1) == block);
                at = bytes.end;
            }
            prop_assert_eq!(at, size_bytes);
        }

        #[test]
        fn touching_and_inside_are_what_they_say(size_bytes in 0..2_000u64, block_bytes in 1..300u64, start in 0..2_500u64, len in 0..2_500u64) {
            let blocks = Blocks { size_bytes, block_bytes };
            let range = ByteRange::new(start, start + len);
            let (touching, inside) = (blocks.touching(range), blocks.inside(range));
            for block in 0..blocks.count() {
                let bytes = blocks.bytes(block..block + 1);
                let touches = !range.is_empty() && bytes.start < range.end && range.start < bytes.end;
                let lies_inside = range.start <= bytes.start && bytes.end <= range.end;
                prop_assert_eq!(touching.contains(&block), touches, "block {}", block);
                prop_assert_eq!(inside.contains(&block), lies_inside, "block {}", block);
            }
        }

        #[test]
        fn bits_are_the_bits_that_were_set(bits in 1..300u64, steps in proptest::collection::vec(any::<proptest::sample::Index>(), 0..200)) {
            let (map, mut model) = (Bitmap::new(bits), vec![false; bits as usize]);
            for at in steps {
                let at = at.index(bits as usize);
                model[at] = true;
                map.set(at as u64);
            }
            for (at, on) in model.iter().enumerate() {
                prop_assert_eq!(map.has(at as u64), *on);
            }
            let unset = model.iter().position(|on| !on).map(|at| at as u64);
            prop_assert_eq!(map.first_unset(0..bits), unset);
            prop_assert!(!map.has(bits + 64));
        }

        /// No bytes panic, and a record that is torn while it is written is at worst suspect with the wrong CRC.
        #[test]
        fn a_torn_record_is_never_taken_for_granted(boot_id: Vec<u8>, data: Vec<u8>, written in 0..8usize) {
            let boot = BootTag::of(&boot_id);
            let whole = Record::of(boot, crc32c(&data));
            prop_assert_eq!(Record::from_bytes(whole.to_bytes()), whole);
            prop_assert_eq!(whole.standing(boot), Standing::Present);
            prop_assert!(whole.agrees_with(&data));
            let mut torn = Record::ABSENT;
            torn[..written].copy_from_slice(&whole.to_bytes()[..written]);
            let torn = Record::from_bytes(torn);
            // Present only once the whole tag is there; the data was written before it.
            prop_assert!(torn.standing(boot) != Standing::Present || torn.tag == whole.tag);
        }
    }
}
