//! What is wrong with an object's bytes, and where.

use crate::error::Error;
use crate::object::ObjectUri;

/// Bytes that are no record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flaw {
    /// Where the bad bytes begin: in the object; for records in a compressed object, in what it decompresses to.
    pub offset: u64,
    /// What was found and what was expected.
    pub reason: String,
    /// Whether the decoder knows where the next record begins: then it can be asked for it.
    pub recoverable: bool,
}

impl Flaw {
    /// A flaw behind which nothing can be found.
    pub(super) fn fatal(offset: u64, reason: impl Into<String>) -> Self {
        Self {
            offset,
            reason: reason.into(),
            recoverable: false,
        }
    }

    /// A bad record behind which the next one is known.
    pub(super) fn record(offset: u64, reason: impl Into<String>) -> Self {
        Self {
            recoverable: true,
            ..Self::fatal(offset, reason)
        }
    }

    /// The object ends inside of a record that begins at `offset`.
    pub(super) fn truncated(offset: u64, what: &str, has: u64, needs: u64) -> Self {
        Self::fatal(
            offset,
            format!("the object ends inside of {what}: {has} bytes of {needs} are there"),
        )
    }

    /// The claim of a length that is over the limit.
    pub(super) fn too_long(offset: u64, what: &str, len: u64, limit: u64) -> Self {
        Self::fatal(
            offset,
            format!(
                "{what} claims {len} bytes; the limit for a record is {limit} (max_record_bytes)"
            ),
        )
    }

    /// The error, with the object's name.
    pub fn of(self, uri: &ObjectUri) -> Error {
        Error::Corrupt {
            uri: uri.to_string(),
            offset: self.offset,
            reason: self.reason,
            answer: Box::default(),
        }
    }
}
