//! One test binary.

mod fixtures;
mod hostile;
mod layering;
mod readers;
mod semantics;
mod source;
