//! One test binary: a crate of its own per file would link the SDK once each.

mod cache;
mod cache_policy;
mod cli;
mod conformance;
mod content;
mod fastfile;
mod fastfile_files;
mod fastfile_programs;
mod fastfile_read;
mod faults;
mod fixtures;
mod hostile;
mod job;
mod layering;
mod pages;
mod pipe;
mod prefetch;
mod readers;
mod records;
mod s3;
mod s3_reach;
mod s3_write;
mod semantics;
mod soak;
mod source;
mod world;
