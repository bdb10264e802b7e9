//! A scripted S3 server on loopback, for tests, demos and benchmarks.
//!
//! It speaks as much of S3 as a reader needs, strictly, and goes wrong on command: a [`Rule`] resets a connection at a
//! byte, answers 503 above a rate, replaces an object between two requests. Bodies go out by `sendfile` from memory
//! files, so that in a benchmark on one machine the server costs little beside the client. Every request is logged.
//!
//! ```
//! use fake_s3::{Effect, FakeS3, Rule};
//!
//! let server = FakeS3::start()?;
//! server.put("bucket", "key", b"hello");
//! server.script("bucket/", vec![Rule::new(Effect::Reset { at_byte: 3 }).times(1)]);
//! println!("{}/bucket/key", server.endpoint());
//! # Ok::<(), std::io::Error>(())
//! ```

mod api;
mod auth;
mod checksum;
mod connection;
mod content;
mod date;
mod log;
mod memory;
pub mod raw;
mod request;
mod response;
mod script;
mod server;
mod session;
mod shape;
mod store;
mod tls;
mod transport;
mod xml;

pub use auth::{Credentials, authorization, presigned_target};
pub use checksum::{Algorithm, ChecksumKind};
pub use content::{PATTERN_BYTES, content};
pub use date::basic as basic_date;
pub use log::{CredentialKind, LogEntry, Stats};
pub use script::{Effect, Operation, Rule};
pub use server::{Builder, FakeS3};
pub use shape::{Latency, Shape};
pub use store::{BucketOptions, PutOptions};
