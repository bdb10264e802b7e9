//! Memory for parts: reserved before a request is sent, filled in place, lent out without a copy.
//!
//! [`MemoryBudget`] counts bytes; [`BufferPool`] keeps warm memory; [`PartBuf`] is one part being filled. A frozen
//! part is a [`bytes::Bytes`]; when the last slice of it is dropped its memory goes back to the pool and its bytes to
//! the budget. A fresh 8 MiB allocation costs 2,048 page faults, about a tenth of the whole cost of receiving it, so
//! parts live in slabs of huge pages that are mapped once.

mod budget;
mod part;
mod pool;

pub use budget::{MemoryBudget, Released, Reservation};
pub use part::PartBuf;
pub use pool::{BufferPool, class_bytes};
