//! One test binary: a crate of its own per file would link the SDK once each.

mod cli;
mod conformance;
mod faults;
mod pipe;
mod prefetch;
mod s3;
mod world;
