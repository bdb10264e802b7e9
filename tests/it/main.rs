//! One test binary.

mod layering;
mod semantics;
mod source;
