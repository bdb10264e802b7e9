//! One test binary: a crate of its own per file would link the SDK once each.

mod pipe;
mod prefetch;
