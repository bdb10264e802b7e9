//! What an epoch is made of on its way into the pipe: bytes, and where in an object they end.

use std::sync::Arc;

use bytes::Bytes;

use crate::object::ObjectId;
use crate::prefetch::Chunk;

/// Bytes to write.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    /// The object that they are of; a manifest, for texts out of it.
    pub(super) object: Arc<ObjectId>,
    /// The bytes.
    pub(super) bytes: Bytes,
    /// How much of the object has been delivered before them.
    pub(super) from: u64,
    /// How much of it has been when they are.
    pub(super) to: u64,
    /// Whether they may be the last of an object.
    pub(super) ends_object: bool,
    /// Whether they are the first of an object, or of a manifest's attribute.
    pub(super) begins_item: bool,
    /// Whether each of them is a byte of the object, at its place.
    pub(super) is_plain: bool,
}

impl Piece {
    /// How much of the object has been delivered when so many of the bytes are. Bytes that are not the object's own (it
    /// was decompressed, or this is a header) count when all of them are.
    pub(super) fn reached(&self, written: usize) -> u64 {
        let is_own = self.to - self.from == self.bytes.len() as u64;
        match is_own {
            true => self.from + written as u64,
            false if written >= self.bytes.len() => self.to,
            false => self.from,
        }
    }
}

impl From<Chunk> for Piece {
    fn from(chunk: Chunk) -> Self {
        let to = chunk.offset + chunk.bytes.len() as u64;
        Self {
            object: chunk.object,
            bytes: chunk.bytes,
            from: chunk.offset,
            to,
            ends_object: chunk.ends_object,
            begins_item: false,
            is_plain: true,
        }
    }
}
