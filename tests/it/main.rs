//! One test binary: a crate of its own per file would link the SDK once each.

mod cli;
mod conformance;
mod prefetch;
mod world;
