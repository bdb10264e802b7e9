//! Standpipe streams training data from S3: ranged GETs through bounded memory, in order, at the speed of the wire.
//!
//! # Layers
//!
//! A [`client`] reads objects; decorators add retries, limits and a [`cache`] on disk. The engine, [`prefetch`], reads
//! ahead of consumers within a memory budget ([`buffer`]) and delivers [`bytes::Bytes`] without a copy. The modes stand
//! on it: [`pipe`] serves FIFOs as SageMaker's Pipe mode does, [`download`] writes files, and [`fastfile`] is files that
//! are there before they are downloaded. [`input`] says what to read and in what order. Every [`error::Error`] names its object and offset and says what to do; [`metrics`] answers "why is it
//! slow?".
//!
//! # Reading objects
//!
//! ```
//! use std::sync::Arc;
//! use futures::StreamExt;
//! use standpipe::client::MemoryClient;
//! use standpipe::object::ObjectId;
//! use standpipe::prefetch::{PrefetchConfig, Prefetcher};
//!
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! let client = MemoryClient::default();
//! client.put("memory://bucket/key".parse()?, "streamed");
//! let engine = Prefetcher::new(Arc::new(client), PrefetchConfig::default(), Arc::default())?;
//!
//! let mut reader = engine.read(ObjectId::unpinned("memory://bucket/key".parse()?))?;
//! while let Some(chunk) = reader.next_chunk().await? {
//!     assert_eq!(&chunk.bytes[..], b"streamed"); // dropping the chunk gives its memory back
//! }
//! # Ok::<(), standpipe::error::Error>(()) }).unwrap();
//! ```
//!
//! The same reader is a [`futures::Stream`] of bytes and a [`tokio::io::AsyncRead`];
//! [`blocking`](prefetch::ObjectReader::blocking) makes it a [`std::io::Read`]. For S3, connect an
//! [`S3Client`](client::S3Client) and wrap it with [`client::resilient`]; `examples/stream.rs` shows all of it.
//!
//! # Features
//!
//! `cli` (default): the `standpipe` command and what only it needs. Without it the crate is the library alone.

pub mod buffer;
pub mod cache;
pub mod checksum;
#[cfg(feature = "cli")]
pub mod cli;
pub mod client;
pub mod dataset;
pub mod download;
pub mod error;
pub mod fastfile;
pub mod input;
pub mod job;
pub mod metrics;
pub mod object;
pub mod pipe;
pub mod prefetch;
pub mod record;
pub mod runtime;
mod sync;

/// The README's Rust is a doc test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
