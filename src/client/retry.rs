//! Retries: a failed request is sent again, from the byte where it broke.
//!
//! What bounds them is progress. A part that gets a byte further has [`RetryConfig::max_attempts`] attempts and
//! [`RetryConfig::deadline`] of time again, so a slow, broken line ends late and a dead one early. All requests
//! together have an allowance that a dead endpoint drains. Between attempts they wait with full jitter.
//!
//! - Only what [`Error::is_retryable`] says is tried again; 403, 404, 412, 416 and a changed object are final.
//! - Bytes of two versions never meet: the rest of a broken part is asked for only when the request is pinned to an
//!   ETag or a version. An unpinned one starts from its first byte, and what had arrived counts as wasted.
//! - [`Error::Corrupt`] is answered by fetching the whole part once more, at once: TCP's 16-bit checksum lets damage
//!   on the way through, and no byte of an unfinished part has been delivered. If the second copy is bad too, it is
//!   bad at rest and the error stands.
//! - A listing goes on where it broke: see [`ObjectClient::list`].
//!
//! There is no time limit on an attempt that goes on. Noticing that an answer has stopped coming is the transport's
//! part; it sees each byte. Put [`LimitClient`](super::LimitClient) inside, not outside: then a request that waits
//! for its next attempt holds no slot.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use tokio::time::{Instant, sleep};

use super::{Depth, GetMeta, ListEntry, ObjectClient};
use crate::buffer::PartBuf;
use crate::error::{Error, Result};
use crate::metrics::Metrics;
use crate::object::{ByteRange, ObjectId, ObjectMeta, ObjectUri};

mod allowance;
mod backoff;
mod listing;

use allowance::Allowance;
pub use backoff::{Backoff, FailureKind};
use backoff::{Next, Patience};

/// When to give up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryConfig {
    /// Attempts since the last progress, the first included.
    pub max_attempts: u32,
    /// Bound of the first wait after a broken connection or a server error.
    pub base: Duration,
    /// Bound of the first wait after the server throttled.
    pub throttle_base: Duration,
    /// Largest bound of a wait.
    pub cap: Duration,
    /// Time since the last progress.
    pub deadline: Duration,
    /// Retries without progress that all requests together may make before one of them has to succeed.
    pub allowance: u32,
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self {
            // Twelve attempts stretch over half a minute on average when connections are refused: a load balancer's
            // restart. Eight gave up after 3 s. Whatever stalls or is throttled reaches the deadline first.
            max_attempts: 12,
            // One round trip to a distant region.
            base: Duration::from_millis(50),
            // The AWS SDKs' first wait after a throttle.
            throttle_base: Duration::from_millis(500),
            // The AWS SDKs' longest wait.
            cap: Duration::from_secs(20),
            // An object store that is silent for two minutes is down, and a job that says so is restarted sooner.
            deadline: Duration::from_secs(120),
            // 512 parts in flight (a 200 Gb/s host) that use all of their twelve attempts once: no short outage
            // drains it. The AWS SDKs' 500 tokens last for 100 retries, which one lost connection pool uses up.
            allowance: 512 * 12,
        }
    }
}

impl RetryConfig {
    /// The waits between attempts.
    pub fn backoff(&self) -> Backoff {
        Backoff {
            base: self.base,
            throttle_base: self.throttle_base,
            cap: self.cap,
        }
    }

    /// Refuses settings that cannot work.
    pub fn validate(&self) -> Result<()> {
        if self.max_attempts == 0 {
            return Err(Error::config(
                "max_attempts",
                "0 attempts read nothing: use at least 1",
            ));
        }
        Ok(())
    }
}

/// Sends requests again when they fail in a way that may pass.
#[derive(Debug)]
pub struct RetryClient {
    inner: Arc<dyn ObjectClient>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: RetryConfig,
    allowance: Allowance,
    metrics: Arc<Metrics>,
}

impl RetryClient {
    /// Retries around `inner`; `metrics` counts them.
    pub fn new(inner: Arc<dyn ObjectClient>, config: RetryConfig, metrics: Arc<Metrics>) -> Self {
        let shared = Arc::new(Shared {
            allowance: Allowance::new(config.allowance),
            config,
            metrics,
        });
        Self { inner, shared }
    }

    async fn get_retrying(
        &self,
        id: &ObjectId,
        range: ByteRange,
        into: &mut PartBuf,
    ) -> Result<GetMeta> {
        let mut ordeal = Ordeal::new(self.shared.clone());
        let mut furthest = into.filled().len();
        let mut doubted = false;
        loop {
            let error = match self.inner.get(id, range, into).await {
                Ok(meta) => {
                    ordeal.succeeded();
                    return Ok(meta);
                }
                Err(error) => error,
            };
            if matches!(error, Error::Corrupt { .. }) && !doubted {
                doubted = true;
                self.shared.discard(into);
                self.shared.metrics.retries.add(1);
                continue;
            }
            if into.filled().len() > furthest {
                furthest = into.filled().len();
                ordeal.progressed();
            }
            ordeal.failed(error).await?;
            if !can_resume(id, range, into) {
                self.shared.discard(into);
            }
        }
    }
}

/// Whether the rest of the part can be asked for: it has one, and it is of the same version as what has arrived.
fn can_resume(id: &ObjectId, range: ByteRange, into: &PartBuf) -> bool {
    let pinned = id.etag.is_some() || id.version_id.is_some();
    pinned && (into.filled().len() as u64) < range.len()
}

impl Shared {
    fn discard(&self, part: &mut PartBuf) {
        self.metrics.bytes_wasted.add(part.filled().len() as u64);
        part.clear();
    }
}

/// One request's way through its failures.
#[derive(Debug)]
struct Ordeal {
    shared: Arc<Shared>,
    patience: Patience,
    /// The attempt that failed last had brought something.
    fresh: bool,
    retried: bool,
}

impl Ordeal {
    fn new(shared: Arc<Shared>) -> Self {
        let patience = Patience::new(&shared.config, Instant::now());
        Self {
            shared,
            patience,
            fresh: false,
            retried: false,
        }
    }

    fn progressed(&mut self) {
        self.patience.progressed(Instant::now());
        self.fresh = true;
    }

    fn succeeded(&self) {
        self.shared.allowance.succeeded(self.retried);
    }

    /// Returns when it is time for the next attempt, or with the error when there is none.
    async fn failed(&mut self, error: Error) -> Result<()> {
        if !error.is_retryable() {
            return Err(error);
        }
        let next = self.decide(&error, Instant::now(), fastrand::f64());
        match next {
            Next::Wait(delay) => {
                tracing::debug!(%error, ?delay, "trying again");
                self.shared.metrics.retries.add(1);
                sleep(delay).await;
                Ok(())
            }
            Next::GiveUp { attempts, elapsed } => Err(Error::RetriesExhausted {
                attempts,
                elapsed,
                source: Box::new(error),
            }),
        }
    }

    fn decide(&mut self, error: &Error, now: Instant, random: f64) -> Next {
        let next = self.patience.failed(error.into(), now, random);
        // An endpoint that sends bytes is not dead: going on from there costs nothing.
        let free = std::mem::take(&mut self.fresh);
        if matches!(next, Next::Wait(_)) && !free {
            if !self.shared.allowance.take() {
                return self.patience.give_up(now);
            }
            self.retried = true;
        }
        next
    }
}

impl ObjectClient for RetryClient {
    fn head<'a>(&'a self, uri: &'a ObjectUri) -> BoxFuture<'a, Result<ObjectMeta>> {
        async move {
            let mut ordeal = Ordeal::new(self.shared.clone());
            loop {
                match self.inner.head(uri).await {
                    Ok(meta) => {
                        ordeal.succeeded();
                        return Ok(meta);
                    }
                    Err(error) => ordeal.failed(error).await?,
                }
            }
        }
        .boxed()
    }

    fn get<'a>(
        &'a self,
        id: &'a ObjectId,
        range: ByteRange,
        into: &'a mut PartBuf,
    ) -> BoxFuture<'a, Result<GetMeta>> {
        self.get_retrying(id, range, into).boxed()
    }

    fn list(&self, prefix: &ObjectUri, depth: Depth) -> BoxStream<'static, Result<ListEntry>> {
        let (inner, prefix) = (self.inner.clone(), prefix.clone());
        listing::retrying(self.shared.clone(), move || inner.list(&prefix, depth))
    }

    fn list_after(
        &self,
        prefix: &ObjectUri,
        after: &str,
    ) -> Option<BoxStream<'static, Result<ListEntry>>> {
        let _possible = self.inner.list_after(prefix, after)?;
        let (inner, prefix, after) = (self.inner.clone(), prefix.clone(), after.to_owned());
        let begin = move || {
            let entries = inner.list_after(&prefix, &after);
            // It could be begun a moment ago.
            entries.unwrap_or_else(|| inner.list(&prefix, Depth::All))
        };
        Some(listing::retrying(self.shared.clone(), begin))
    }
}

#[cfg(test)]
mod tests;
