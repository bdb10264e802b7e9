//! One test binary: a crate of its own per file would link the SDK once each.

mod conformance;
mod faults;
mod prefetch;
mod s3;
mod world;
