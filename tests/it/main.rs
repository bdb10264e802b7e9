//! One test binary.

mod conformance;
mod world;
