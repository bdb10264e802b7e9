//! A limit on requests under way, for the whole client, that gives way when the server throttles.
//!
//! Every GET and HEAD passes one gate, first come first served. [`Throttle`] decides how wide the gate is: a 503
//! halves it and stops all requests for a moment, not only the one that was refused, because S3 throttles a prefix
//! and not a connection. A request counts from the gate until its last byte, its error, or its caller's loss of
//! interest.
//!
//! A listing passes the gate without a slot: it sends one request at a time, and holding a slot while the consumer
//! of the listing thinks could starve the reads that the consumer waits for. It does wait out a pause, and its
//! throttles count. Whoever lists a long prefix in several ranges at once bounds them itself, to 16.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep_until};

use super::{Depth, GetMeta, ListEntry, ObjectClient};
use crate::buffer::PartBuf;
use crate::error::{Error, Result};
use crate::metrics::Metrics;
use crate::object::{ByteRange, ObjectId, ObjectMeta, ObjectUri};

mod throttle;

pub use throttle::Throttle;

/// How many requests may be under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitConfig {
    /// GETs and HEADs at once; the server's throttling lowers it for a while.
    pub most_requests: u32,
}

impl Default for LimitConfig {
    fn default() -> Self {
        // S3 gives about 50 MiB/s to a request of 8 MiB: 25 Gb/s take 71 of them, and small objects at 30 ms each
        // come at 2,000 a second, below the 5,500 that one prefix bears.
        Self { most_requests: 64 }
    }
}

impl LimitConfig {
    /// Refuses settings that cannot work.
    pub fn validate(&self) -> Result<()> {
        if self.most_requests == 0 {
            return Err(Error::config(
                "most_requests",
                "0 requests read nothing: use at least 1",
            ));
        }
        Ok(())
    }
}

/// Holds requests back.
#[derive(Debug)]
pub struct LimitClient {
    inner: Arc<dyn ObjectClient>,
    gate: Arc<Gate>,
}

impl LimitClient {
    /// A gate before `inner`; `metrics` tells its width and what it cost.
    pub fn new(inner: Arc<dyn ObjectClient>, config: LimitConfig, metrics: Arc<Metrics>) -> Self {
        let gate = Arc::new(Gate::new(config.most_requests, metrics));
        Self { inner, gate }
    }
}

/// As many slots as the throttle's target, given out in the order of arrival.
///
/// Tokio's semaphore keeps the queue: it is fair, and a caller that goes away leaves it. `slots` counts what the
/// semaphore has, given out or not; a slot that comes back when there are more than the target is not given again.
#[derive(Debug)]
struct Gate {
    semaphore: Semaphore,
    state: Mutex<State>,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct State {
    throttle: Throttle,
    slots: u32,
}

/// Leave to send one request; dropping it lets the next one in.
#[derive(Debug)]
struct Slot<'a> {
    gate: &'a Gate,
    /// `None` only while it is dropped.
    permit: Option<SemaphorePermit<'a>>,
}

impl Gate {
    fn new(most: u32, metrics: Arc<Metrics>) -> Self {
        let throttle = Throttle::new(most, Instant::now());
        let slots = throttle.target();
        metrics.concurrency_target.set(u64::from(slots));
        Self {
            semaphore: Semaphore::new(slots as usize),
            state: Mutex::new(State { throttle, slots }),
            metrics,
        }
    }

    /// Waits for a slot and for the end of a pause.
    async fn enter(&self) -> Slot<'_> {
        let arrived = Instant::now();
        let slowed = self.lock().throttle.is_slowed(arrived);
        let permit = self
            .semaphore
            .acquire()
            .await
            .expect("the semaphore is never closed");
        let slot = Slot {
            gate: self,
            permit: Some(permit),
        };
        let paused = self.sit_out_pause().await;
        if slowed || paused {
            self.metrics.throttle_wait_ns.add_time(arrived.elapsed());
        }
        slot
    }

    /// Waits until requests may be sent; `true` if that took any time. A new throttle can prolong the pause.
    async fn sit_out_pause(&self) -> bool {
        let mut paused = false;
        loop {
            let until = self.lock().throttle.not_before();
            if until <= Instant::now() {
                return paused;
            }
            paused = true;
            sleep_until(until).await;
        }
    }

    /// Tells the throttle how a request ended.
    fn observe<T>(&self, result: &Result<T>) {
        let now = Instant::now();
        let mut state = self.lock();
        match result {
            Ok(_) => state.throttle.succeeded(now),
            Err(Error::Throttled { .. }) => state.throttle.throttled(now),
            Err(_) => return,
        }
        self.fit(&mut state);
    }

    /// Makes the number of slots follow the target, as far as they are not in use.
    fn fit(&self, state: &mut State) {
        let target = state.throttle.target();
        if state.slots < target {
            self.semaphore.add_permits((target - state.slots) as usize);
            state.slots = target;
        } else if state.slots > target {
            let forgotten = self
                .semaphore
                .forget_permits((state.slots - target) as usize);
            state.slots -= forgotten as u32;
        }
        self.metrics.concurrency_target.set(u64::from(target));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        let mut state = self.gate.lock();
        let permit = self.permit.take();
        if state.slots > state.throttle.target() {
            state.slots -= 1;
            permit.map(SemaphorePermit::forget).unwrap_or_default();
        }
    }
}

impl ObjectClient for LimitClient {
    fn head<'a>(&'a self, uri: &'a ObjectUri) -> BoxFuture<'a, Result<ObjectMeta>> {
        async move {
            let _slot = self.gate.enter().await;
            let answer = self.inner.head(uri).await;
            self.gate.observe(&answer);
            answer
        }
        .boxed()
    }

    fn get<'a>(
        &'a self,
        id: &'a ObjectId,
        range: ByteRange,
        into: &'a mut PartBuf,
    ) -> BoxFuture<'a, Result<GetMeta>> {
        async move {
            let _slot = self.gate.enter().await;
            let answer = self.inner.get(id, range, into).await;
            self.gate.observe(&answer);
            answer
        }
        .boxed()
    }

    fn list(&self, prefix: &ObjectUri, depth: Depth) -> BoxStream<'static, Result<ListEntry>> {
        self.gated(self.inner.list(prefix, depth))
    }

    fn list_after(
        &self,
        prefix: &ObjectUri,
        after: &str,
    ) -> Option<BoxStream<'static, Result<ListEntry>>> {
        Some(self.gated(self.inner.list_after(prefix, after)?))
    }
}

impl LimitClient {
    fn gated(
        &self,
        entries: BoxStream<'static, Result<ListEntry>>,
    ) -> BoxStream<'static, Result<ListEntry>> {
        let state = (entries, self.gate.clone());
        stream::unfold(state, |(mut entries, gate)| async move {
            let arrived = Instant::now();
            if gate.sit_out_pause().await {
                gate.metrics.throttle_wait_ns.add_time(arrived.elapsed());
            }
            let entry = entries.next().await?;
            if entry.is_err() {
                gate.observe(&entry);
            }
            Some((entry, (entries, gate)))
        })
        .boxed()
    }
}

#[cfg(test)]
mod tests;
