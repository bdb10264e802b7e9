//! One test binary.

mod fixtures;
mod layering;
mod readers;
mod semantics;
mod source;
