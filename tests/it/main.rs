//! One test binary: a crate of its own per file would link the SDK once each.

mod cache;
mod cache_hosts;
mod cache_policy;
mod cli;
mod conformance;
mod fastfile;
mod fastfile_files;
mod fastfile_model;
mod fastfile_programs;
mod fastfile_read;
mod faults;
mod first_part;
mod fixtures;
mod hostile;
mod layering;
mod pages;
mod pipe;
mod prefetch;
mod readers;
mod records;
mod s3;
mod s3_reach;
mod semantics;
mod soak;
mod source;
mod world;
