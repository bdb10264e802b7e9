//! Standpipe streams training data from S3.

pub mod buffer;
pub mod checksum;
#[cfg(feature = "cli")]
pub mod cli;
pub mod client;
pub mod download;
pub mod error;
pub mod input;
pub mod metrics;
pub mod object;
pub mod pipe;
pub mod prefetch;
pub mod runtime;
mod sync;
