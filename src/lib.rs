//! Standpipe streams training data from S3.

pub mod buffer;
pub mod checksum;
pub mod client;
pub mod error;
pub mod metrics;
pub mod object;
pub mod pipe;
pub mod prefetch;
pub mod runtime;
mod sync;
