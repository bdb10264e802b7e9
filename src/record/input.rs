//! The bytes that a decoder was fed and has not used: a queue of chunks, seen as one stream.
//!
//! Bytes that lie in one chunk are handed out as a slice of it. When a record needs more bytes than there are
//! ([`Input::want`]), what is there moves into `gathered`, and the record is completed there when the rest comes: one
//! copy, and no chunk is kept for a record that does not end yet.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};

/// Memory for a record grows at least by this, and else as the record does.
const GROWTH_BYTES: usize = 1 << 20;

/// Unused bytes, in order: first what is gathered, then the chunks.
#[derive(Debug, Default)]
pub(super) struct Input {
    gathered: BytesMut,
    chunks: VecDeque<Bytes>,
    chunks_bytes: usize,
    offset: u64,
    ended: bool,
}

impl Input {
    /// An input whose first byte stands at `offset`.
    pub(super) fn at(offset: u64) -> Self {
        Self {
            offset,
            ..Self::default()
        }
    }

    pub(super) fn push(&mut self, chunk: Bytes) {
        if !chunk.is_empty() {
            self.chunks_bytes += chunk.len();
            self.chunks.push_back(chunk);
        }
    }

    /// No more chunks will come.
    pub(super) fn end(&mut self) {
        self.ended = true;
    }

    pub(super) fn ended(&self) -> bool {
        self.ended
    }

    /// Where the next unused byte stands.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Unused bytes.
    pub(super) fn available(&self) -> usize {
        self.gathered.len() + self.chunks_bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.available() == 0
    }

    /// Whether `n` bytes are there. If not, those that are give their chunks' memory back.
    pub(super) fn want(&mut self, n: u64) -> bool {
        if self.available() as u64 >= n {
            return true;
        }
        let missing = usize::try_from(n).unwrap_or(usize::MAX) - self.gathered.len();
        // The claim is not believed: memory doubles with the bytes that have come.
        let growth = missing.min(self.available().max(GROWTH_BYTES));
        if !self.is_empty() {
            self.gathered.reserve(growth.max(self.chunks_bytes));
        }
        for chunk in self.chunks.drain(..) {
            self.gathered.extend_from_slice(&chunk);
        }
        self.chunks_bytes = 0;
        false
    }

    /// The next `N` bytes, left unused.
    pub(super) fn peek<const N: usize>(&self) -> Option<[u8; N]> {
        if self.available() < N {
            return None;
        }
        let mut bytes = [0; N];
        let mut filled = 0;
        for piece in self.pieces() {
            let n = piece.len().min(N - filled);
            bytes[filled..filled + n].copy_from_slice(&piece[..n]);
            filled += n;
            if filled == N {
                break;
            }
        }
        Some(bytes)
    }

    /// What is unused, piece by piece.
    fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        std::iter::once(&self.gathered[..]).chain(self.chunks.iter().map(|chunk| &chunk[..]))
    }

    /// How far the first `byte` is, looking from the unused byte number `from` on.
    pub(super) fn find(&self, byte: u8, from: usize) -> Option<usize> {
        let mut before = 0;
        for piece in self.pieces() {
            let start = from.saturating_sub(before).min(piece.len());
            if let Some(at) = memchr::memchr(byte, &piece[start..]) {
                return Some(before + start + at);
            }
            before += piece.len();
        }
        None
    }

    /// Uses the next `n` bytes.
    ///
    /// # Panics
    /// When they are not there: ask with [`want`](Self::want) first.
    pub(super) fn take(&mut self, n: usize) -> Bytes {
        assert!(
            n <= self.available(),
            "bytes are asked for before they are used"
        );
        self.offset += n as u64;
        if self.gathered.is_empty() {
            if let Some(front) = self.chunks.front_mut().filter(|front| front.len() >= n) {
                let bytes = front.split_to(n);
                self.chunks_bytes -= n;
                self.drop_empty_front();
                return bytes;
            }
            if n == 0 {
                return Bytes::new();
            }
        }
        let missing = n.saturating_sub(self.gathered.len());
        self.gathered.reserve(missing);
        self.gather(missing);
        let bytes = self.gathered.split_to(n).freeze();
        if self.gathered.is_empty() {
            // What is behind it belongs to the record that was taken.
            self.gathered = BytesMut::new();
        }
        bytes
    }

    /// The next bytes that lie together, left unused; empty when there are none.
    pub(super) fn piece(&self) -> &[u8] {
        self.pieces()
            .find(|piece| !piece.is_empty())
            .unwrap_or_default()
    }

    /// Uses them.
    pub(super) fn take_piece(&mut self) -> Option<Bytes> {
        let len = self.piece().len();
        (len > 0).then(|| self.take(len))
    }

    /// Moves the next `n` bytes from the chunks.
    fn gather(&mut self, mut n: usize) {
        self.chunks_bytes -= n;
        while n > 0 {
            let front = self.chunks.front_mut().expect("the bytes are there");
            let taken = n.min(front.len());
            self.gathered.extend_from_slice(&front[..taken]);
            front.advance(taken);
            n -= taken;
            self.drop_empty_front();
        }
    }

    fn drop_empty_front(&mut self) {
        while self.chunks.pop_front_if(|front| front.is_empty()).is_some() {}
    }

    /// Uses the next `n` bytes or as many as there are, and returns how many.
    pub(super) fn skip(&mut self, n: u64) -> u64 {
        let mut left = usize::try_from(n)
            .unwrap_or(usize::MAX)
            .min(self.available());
        let skipped = left as u64;
        self.offset += skipped;
        let from_gathered = left.min(self.gathered.len());
        self.gathered.advance(from_gathered);
        if self.gathered.is_empty() {
            self.gathered = BytesMut::new();
        }
        left -= from_gathered;
        self.chunks_bytes -= left;
        while left > 0 {
            let front = self.chunks.front_mut().expect("the bytes are there");
            let taken = left.min(front.len());
            front.advance(taken);
            left -= taken;
            self.drop_empty_front();
        }
        skipped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_one_chunk_are_its_slices_and_others_are_copied_once() {
        let mut input = Input::at(100);
        let first = Bytes::from_static(b"0123456789");
        input.push(first.clone());
        let head = input.take(4);
        assert_eq!((&head[..], head.as_ptr()), (&b"0123"[..], first.as_ptr()));
        assert!(!input.want(8), "six bytes are left");
        let second = Bytes::from_static(b"abcdefgh");
        input.push(second.clone());
        assert!(input.want(8));
        assert_eq!(input.take(8), "456789ab");
        let rest = input.take(6);
        assert_eq!(
            (&rest[..], rest.as_ptr()),
            (&b"cdefgh"[..], second[2..].as_ptr())
        );
        assert_eq!((input.offset(), input.available()), (118, 0));
    }

    #[test]
    fn a_claimed_length_reserves_no_more_than_has_come() {
        let mut input = Input::at(0);
        input.push(Bytes::from_static(b"x"));
        assert!(!input.want(u64::MAX));
        assert!(input.gathered.capacity() <= 2 * GROWTH_BYTES);
    }

    #[test]
    fn finding_and_skipping_go_over_chunks() {
        let mut input = Input::at(0);
        for chunk in ["ab", "cd", "e\n"] {
            input.push(Bytes::from_static(chunk.as_bytes()));
        }
        assert_eq!(
            (
                input.find(b'\n', 0),
                input.find(b'\n', 5),
                input.find(b'b', 2)
            ),
            (Some(5), Some(5), None)
        );
        assert_eq!(input.peek::<3>(), Some(*b"abc"));
        assert_eq!((input.skip(3), input.skip(9), input.offset()), (3, 3, 6));
    }
}
