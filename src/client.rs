//! Where bytes come from: one read-only trait, and behaviour added by wrapping.
//!
//! [`ObjectClient`] is the seam of the crate. Implementations read S3, local files or memory; decorators retry, limit
//! and inject faults. One conformance suite (`tests/it/conformance.rs`) runs over every implementation and decorator.

use std::fmt::Debug;
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::BoxStream;

use crate::buffer::PartBuf;
use crate::checksum::Checksum;
use crate::error::Result;
use crate::metrics::Metrics;
use crate::object::{ByteRange, ObjectId, ObjectMeta, ObjectUri};

mod fault;
mod limit;
mod local;
mod memory;
mod retry;
mod s3;
mod scheme;
#[doc(hidden)]
pub mod wire;

pub use fault::{Behaviour, Chaos, Fault, FaultClient, FaultKind, Schedule, Unreadable};
pub use limit::{LimitClient, LimitConfig, Throttle};
pub use local::LocalClient;
pub use memory::MemoryClient;
pub use retry::{Backoff, FailureKind, RetryClient, RetryConfig};
pub use s3::{AccessKey, S3Client, S3Config, SseCustomerKey, Transport};
pub use scheme::SchemeClient;

/// Wraps a client the way every mode does: retries around a limit, so that a request that waits to be tried again
/// holds no slot of the `most_requests` that may fly at once.
pub fn resilient(
    inner: Arc<dyn ObjectClient>,
    most_requests: usize,
    metrics: &Arc<Metrics>,
) -> Arc<dyn ObjectClient> {
    let limit = LimitConfig {
        most_requests: u32::try_from(most_requests.max(1)).unwrap_or(u32::MAX),
    };
    let limited = LimitClient::new(inner, limit, metrics.clone());
    Arc::new(RetryClient::new(
        Arc::new(limited),
        RetryConfig::default(),
        metrics.clone(),
    ))
}

/// Reads objects. Shared as `Arc<dyn ObjectClient>`: one virtual call per part.
pub trait ObjectClient: Debug + Send + Sync + 'static {
    /// Asks for an object's size, ETag and checksum without its bytes.
    fn head<'a>(&'a self, uri: &'a ObjectUri) -> BoxFuture<'a, Result<ObjectMeta>>;

    /// Fills `into` from `range` of exactly this version of the object.
    ///
    /// The first `into.filled().len()` bytes of the range are there already: a retry asks only for the rest. On
    /// success `into` holds the whole range, or all bytes up to the object's end when `id.size_bytes` is unknown and
    /// the object ends inside the range. On an error, what had arrived stays in `into`. When `id.etag` is set and the
    /// object has another one, the error is [`Error::Changed`](crate::error::Error::Changed).
    fn get<'a>(
        &'a self,
        id: &'a ObjectId,
        range: ByteRange,
        into: &'a mut PartBuf,
    ) -> BoxFuture<'a, Result<GetMeta>>;

    /// Lists what lies under a prefix, in the server's order, page by page as the stream is polled.
    ///
    /// A retryable error does not end the listing: polled again, the stream asks for the same page again. Only a
    /// listing that is complete, or has given an error that no retry heals, ends.
    fn list(&self, prefix: &ObjectUri, depth: Depth) -> BoxStream<'static, Result<ListEntry>>;
}

/// How far a listing goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Every object whose key starts with the prefix.
    All,
    /// One level: objects without a further `/`, and the common prefixes of the others.
    OneLevel,
}

/// One line of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListEntry {
    /// An object.
    Object(ObjectMeta),
    /// A common prefix, ending in `/`; only with [`Depth::OneLevel`].
    Prefix(ObjectUri),
}

/// What an answer says beside the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GetMeta {
    /// The ETag of the version that was read.
    pub etag: Option<Arc<str>>,
    /// The object's whole length.
    pub size_bytes: u64,
    /// The whole object's CRC, when the server told it.
    pub checksum: Option<Checksum>,
}
