//! One test binary: a crate of its own per file would link the SDK once each.

mod conformance;
mod pipe;
mod prefetch;
mod world;
