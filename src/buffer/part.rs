//! One part of an object while it is being filled.

use bytes::Bytes;

use super::budget::Reservation;
use super::pool::Lease;
use crate::checksum::{Checksum, ChecksumAlgorithm, Digest};

/// A buffer that is filled from the front, by as many attempts as it takes.
///
/// Writers put bytes into [`unfilled_mut`](Self::unfilled_mut) and [`advance`](Self::advance) over them; a retry goes
/// on behind what is [`filled`](Self::filled). A running CRC, when one was started, covers every byte as it arrives.
pub struct PartBuf {
    memory: Memory,
    capacity: usize,
    filled: usize,
    /// Boxed: its state is several hundred bytes, and most parts have none.
    digest: Option<Box<Digest>>,
    expected: Option<Checksum>,
}

enum Memory {
    Heap(Box<[u8]>),
    /// Fields drop in order: the memory is back in the pool before its bytes are back in the budget.
    Pooled(Lease, Reservation),
}

impl PartBuf {
    /// A buffer outside any pool and budget, for tests, small answers and overdrafts.
    pub fn heap(len: usize) -> Self {
        Self::new(Memory::Heap(vec![0; len].into_boxed_slice()), len)
    }

    pub(super) fn pooled(lease: Lease, reservation: Reservation, len: usize) -> Self {
        Self::new(Memory::Pooled(lease, reservation), len)
    }

    fn new(memory: Memory, capacity: usize) -> Self {
        Self {
            memory,
            capacity,
            filled: 0,
            digest: None,
            expected: None,
        }
    }

    /// Takes the buffer out and leaves an empty one, for hand-over to a task that outlives the borrow.
    pub fn take(&mut self) -> Self {
        std::mem::replace(self, Self::heap(0))
    }

    /// How many bytes it is for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// The bytes that have arrived.
    pub fn filled(&self) -> &[u8] {
        &self.memory.bytes()[..self.filled]
    }

    /// How many bytes have not arrived.
    pub fn remaining(&self) -> usize {
        self.capacity - self.filled
    }

    /// Where the next bytes go. The memory is initialised, its content is not meaningful.
    pub fn unfilled_mut(&mut self) -> &mut [u8] {
        let (filled, capacity) = (self.filled, self.capacity);
        &mut self.memory.bytes_mut()[filled..capacity]
    }

    /// Declares the next `n` bytes filled. Call it after every receive of at most about 1 MiB: the CRC is then
    /// computed while the bytes are in the cache.
    ///
    /// # Panics
    /// When fewer than `n` bytes remain.
    pub fn advance(&mut self, n: usize) {
        assert!(
            n <= self.remaining(),
            "{n} bytes into a part with {} left",
            self.remaining()
        );
        if let Some(digest) = &mut self.digest {
            digest.update(&self.memory.bytes()[self.filled..self.filled + n]);
        }
        self.filled += n;
    }

    /// Appends as much of `bytes` as fits and says how much that was.
    pub fn put(&mut self, bytes: &[u8]) -> usize {
        let n = bytes.len().min(self.remaining());
        self.unfilled_mut()[..n].copy_from_slice(&bytes[..n]);
        self.advance(n);
        n
    }

    /// Forgets what has arrived; the CRC starts anew.
    pub fn clear(&mut self) {
        self.filled = 0;
        self.expected = None;
        if let Some(digest) = &mut self.digest {
            **digest = Digest::new(digest.algorithm());
        }
    }

    /// Keeps a CRC of all bytes from the first on. Nothing changes when one of this algorithm already runs.
    ///
    /// When bytes have arrived before, they are read again.
    pub fn start_digest(&mut self, algorithm: ChecksumAlgorithm) {
        if self
            .digest
            .as_ref()
            .is_some_and(|digest| digest.algorithm() == algorithm)
        {
            return;
        }
        let mut digest = Digest::new(algorithm);
        digest.update(self.filled());
        self.digest = Some(Box::new(digest));
    }

    /// The CRC of the bytes that have arrived, if one was started.
    pub fn digest(&self) -> Option<Checksum> {
        self.digest.as_ref().map(|digest| digest.value())
    }

    /// Notes what the whole part's CRC must be and starts computing it. It outlives a broken attempt: the answer to
    /// the resuming request carries no checksum.
    pub fn expect(&mut self, checksum: Checksum) {
        self.start_digest(checksum.algorithm);
        self.expected = Some(checksum);
    }

    /// What the server said the whole part's CRC is.
    pub fn expected(&self) -> Option<Checksum> {
        self.expected
    }

    /// What it takes from a budget: zero outside one.
    pub fn reserved_bytes(&self) -> u64 {
        match &self.memory {
            Memory::Heap(_) => 0,
            Memory::Pooled(_, reservation) => reservation.bytes(),
        }
    }

    /// Turns what has arrived into shared bytes, without a copy; the memory counts as lent until they are dropped.
    pub fn freeze(mut self) -> Bytes {
        if let Memory::Pooled(_, reservation) = &mut self.memory {
            reservation.lend();
        }
        Bytes::from_owner(Frozen(self))
    }
}

impl Memory {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Heap(bytes) => bytes,
            Self::Pooled(lease, _) => lease.bytes(),
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Heap(bytes) => bytes,
            Self::Pooled(lease, _) => lease.bytes_mut(),
        }
    }
}

impl std::fmt::Debug for PartBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PartBuf({} of {} bytes)", self.filled, self.capacity)
    }
}

struct Frozen(PartBuf);

impl AsRef<[u8]> for Frozen {
    fn as_ref(&self) -> &[u8] {
        self.0.filled()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::{BufferPool, MemoryBudget};
    use std::sync::Arc;

    #[test]
    fn the_budget_is_whole_again_when_the_last_slice_is_dropped() {
        let budget = MemoryBudget::new(1 << 20);
        let pool = BufferPool::new(1 << 20, Arc::default());
        let mut part = pool.part(budget.try_reserve(64 << 10, 0).unwrap(), 10);
        part.put(b"0123456789");
        let slice = part.freeze().slice(2..4);
        assert_eq!(
            (&slice[..], budget.reserved(), budget.lent()),
            (&b"23"[..], 64 << 10, 64 << 10)
        );
        drop(slice);
        assert_eq!((budget.reserved(), budget.lent()), (0, 0));
    }

    #[test]
    fn a_retry_goes_on_where_the_bytes_end_and_the_crc_with_it() {
        let mut part = PartBuf::heap(6);
        part.put(b"ab");
        part.start_digest(ChecksumAlgorithm::Crc32c);
        assert_eq!(part.put(b"cdefgh"), 4);
        assert_eq!(
            part.digest(),
            Some(Checksum::of(ChecksumAlgorithm::Crc32c, b"abcdef"))
        );
        part.clear();
        part.put(b"x");
        assert_eq!(
            part.digest(),
            Some(Checksum::of(ChecksumAlgorithm::Crc32c, b"x"))
        );
    }

    #[test]
    #[should_panic(expected = "3 bytes into a part with 2 left")]
    fn nothing_is_written_past_the_end() {
        PartBuf::heap(2).advance(3);
    }
}
