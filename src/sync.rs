//! The primitives that model checking replaces.
//!
//! `tests/loom` compiles the sources of the budget and the part queue against a module of this name with loom's
//! types in it, so the real code is checked under every interleaving without a second build of the dependencies.

pub(crate) use std::sync::Mutex;
pub(crate) use std::sync::atomic::{AtomicU64, Ordering};
