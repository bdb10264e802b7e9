//! The shell around [`Core`]: tasks that fetch, and the wakes between them.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures::future::{AbortHandle, AbortRegistration, Abortable, BoxFuture};
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::config::PrefetchConfig;
use super::plan::Lead;
use super::reader::ObjectReader;
use super::schedule::{Action, Completion, Core, Fetch, StreamId, Ticket};
use super::stream::{Feed, Planned, Source, Take};
use crate::buffer::{BufferPool, MemoryBudget, PartBuf, Released};
use crate::checksum::Checksum;
use crate::client::{GetMeta, ObjectClient};
use crate::error::{Error, Result};
use crate::metrics::{Metrics, Snapshot};
use crate::object::{ObjectId, ObjectMeta, ObjectUri};
use crate::runtime;

/// When memory for a stream's first part is made ready: behind the first request, a listing's in most cases.
const PREPARE_AFTER: Duration = Duration::from_millis(3);

/// Objects that a stream knows of before they are planned: one page of a listing.
const LISTED_AHEAD: usize = 1000;

/// Reads objects ahead of their consumers. Clones share the memory and the requests in flight.
///
/// ```
/// use std::sync::Arc;
/// use standpipe::client::MemoryClient;
/// use standpipe::object::ObjectId;
/// use standpipe::prefetch::{PrefetchConfig, Prefetcher};
///
/// let client = MemoryClient::default();
/// client.put("memory://bucket/key".parse()?, "some bytes");
/// let engine = Prefetcher::new(Arc::new(client), PrefetchConfig::default(), Arc::default())?;
/// let mut reader = engine.read(ObjectId::unpinned("memory://bucket/key".parse()?))?.blocking();
/// while let Some(chunk) = reader.next_chunk()? {
///     println!("{} bytes at {}", chunk.bytes.len(), chunk.offset);
/// }
/// # Ok::<(), standpipe::error::Error>(())
/// ```
#[derive(Clone)]
pub struct Prefetcher(Arc<Shared>);

impl Prefetcher {
    /// An engine over `client`, on the process's runtime; it counts into `metrics`.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field when the configuration can't work.
    pub fn new(
        client: Arc<dyn ObjectClient>,
        config: PrefetchConfig,
        metrics: Arc<Metrics>,
    ) -> Result<Self> {
        Self::on(runtime::handle(), client, config, metrics)
    }

    /// The same on a runtime of the caller's, such as a test's with paused time.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn on(
        runtime: Handle,
        client: Arc<dyn ObjectClient>,
        config: PrefetchConfig,
        metrics: Arc<Metrics>,
    ) -> Result<Self> {
        config.validate()?;
        metrics.concurrency_target.set(config.concurrency as u64);
        let budget = MemoryBudget::new(config.memory_bytes);
        let pool = BufferPool::new(config.memory_bytes, metrics.clone());
        let part_bytes = config.part_bytes;
        let core = Mutex::new(Core::new(config, budget.clone()));
        let shared = Arc::new_cyclic(|this: &Weak<Shared>| Shared {
            this: this.clone(),
            core,
            part_bytes,
            client,
            pool,
            budget,
            metrics,
            runtime,
        });
        let listener: Weak<dyn Released> = shared.this.clone();
        shared.budget.subscribe(listener);
        Ok(Self(shared))
    }

    /// Where it reads from.
    pub fn client(&self) -> &Arc<dyn ObjectClient> {
        &self.0.client
    }

    /// Where it counts.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.0.metrics
    }

    /// Its memory.
    pub fn budget(&self) -> &MemoryBudget {
        &self.0.budget
    }

    /// What it fetches at once at most.
    pub fn part_bytes(&self) -> u64 {
        self.0.part_bytes
    }

    /// The counters at this moment, the memory's included.
    pub fn snapshot(&self) -> Snapshot {
        self.0.metrics.reserved_bytes.set(self.0.budget.reserved());
        self.0.metrics.lent_bytes.set(self.0.budget.lent());
        self.0.metrics.snapshot()
    }

    /// Reads one object; its size and version need not be known.
    ///
    /// # Errors
    /// [`Error::Config`] when the memory can't hold one more stream's next part.
    pub fn read(&self, id: ObjectId) -> Result<ObjectReader> {
        let largest = id.size_bytes.unwrap_or(u64::MAX).max(1);
        let planned = Planned::whole(id, None);
        self.open(stream::iter([Ok(planned)]).boxed(), Lead::Large, largest)
    }

    /// Reads one object from byte `start` on, for a consumer that has the bytes before already. `before` is their CRC,
    /// of the algorithm that `meta` names: with it the object is verified as a whole, before its last piece is
    /// delivered; without it, or without an algorithm, it counts as unverified.
    ///
    /// # Errors
    /// [`Error::Config`] when the object's size or version is not known, or `start` is not inside of it; and as
    /// [`read`](Self::read).
    pub fn read_from(
        &self,
        meta: ObjectMeta,
        start: u64,
        before: Option<Checksum>,
    ) -> Result<ObjectReader> {
        let left = meta.size_bytes.saturating_sub(start);
        if !meta.id.is_pinned() || (left == 0 && start > 0) {
            let reason = format!(
                "reading on at byte {start} takes a known version, and a byte that is left to read"
            );
            return Err(Error::config(meta.id.uri.to_string(), reason));
        }
        let planned = Planned {
            id: meta.id,
            algorithm: meta.checksum_algorithm,
            start,
            before,
        };
        self.open(
            stream::iter([Ok(planned)]).boxed(),
            Lead::Large,
            left.max(1),
        )
    }

    /// Reads many objects back to back, in the order in which `objects` yields them; reading starts before the
    /// listing ends. An error of the listing is delivered after the bytes of the objects before it.
    ///
    /// The first object is fetched in parts even if it is small, so that its first bytes come one latency after the
    /// request, and verified like a large one (with a HEAD).
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_all(
        &self,
        objects: BoxStream<'static, Result<ObjectMeta>>,
    ) -> Result<ObjectReader> {
        self.read_with(objects, Lead::Any)
    }

    /// The same for a consumer to whom an early first byte is worth no request: every object of at most a MiB is
    /// fetched whole, the first one, too.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_each(
        &self,
        objects: BoxStream<'static, Result<ObjectMeta>>,
    ) -> Result<ObjectReader> {
        self.read_with(objects, Lead::Large)
    }

    /// The same from byte `start` of the first object on, as the closure says when it is known which one that is. An object
    /// whose version is not known is read from its beginning, and so is one that has no byte there; what is read from the
    /// middle counts as unverified.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_all_from(
        &self,
        objects: BoxStream<'static, Result<ObjectMeta>>,
        start: impl FnOnce(&ObjectMeta) -> u64 + Send + 'static,
    ) -> Result<ObjectReader> {
        let mut start = Some(start);
        let planned = objects.map(move |meta| {
            let meta = meta?;
            let start = start.take().map_or(0, |start| start(&meta));
            let can_start = meta.id.is_pinned() && start < meta.size_bytes;
            Ok(Planned {
                start: if can_start { start } else { 0 },
                ..Planned::whole(meta.id, meta.checksum_algorithm)
            })
        });
        self.open(planned.boxed(), Lead::Any, u64::MAX)
    }

    fn read_with(
        &self,
        objects: BoxStream<'static, Result<ObjectMeta>>,
        lead: Lead,
    ) -> Result<ObjectReader> {
        let planned =
            objects.map(|meta| meta.map(|meta| Planned::whole(meta.id, meta.checksum_algorithm)));
        self.open(planned.boxed(), lead, u64::MAX)
    }

    fn open(
        &self,
        objects: BoxStream<'static, Result<Planned>>,
        lead: Lead,
        largest_part_bytes: u64,
    ) -> Result<ObjectReader> {
        let (sender, feed) = mpsc::channel(LISTED_AHEAD);
        // It is from the start: reading ahead begins with the first object, not with the first question for one.
        let starved = Arc::new(AtomicBool::new(true));
        let (lister, registration) = AbortHandle::new_pair();
        let source = Source {
            feed,
            starved: starved.clone(),
            lead,
            lister,
        };
        let id = self.0.lock().open(source, largest_part_bytes)?;
        let feed = self.0.clone().feed(objects, sender, starved);
        let pool = self.0.pool.clone();
        let feed = runtime::meanwhile(feed, PREPARE_AFTER, move || pool.prepare(1));
        self.0.runtime.spawn(Abortable::new(feed, registration));
        Ok(ObjectReader::new(StreamHandle {
            shared: self.0.clone(),
            id,
        }))
    }
}

impl fmt::Debug for Prefetcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prefetcher")
            .field("client", &self.0.client)
            .field("budget", &self.0.budget)
            .finish_non_exhaustive()
    }
}

struct Shared {
    this: Weak<Shared>,
    core: Mutex<Core>,
    part_bytes: u64,
    client: Arc<dyn ObjectClient>,
    pool: BufferPool,
    budget: MemoryBudget,
    metrics: Arc<Metrics>,
    runtime: Handle,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries out what the core wants done, until it wants nothing.
    fn pump(self: &Arc<Self>) {
        // Asked for behind the parts: whoever reads waits for those first, and the first of them takes the connection
        // that the listing left.
        let mut heads = Vec::new();
        loop {
            let action = self.lock().next_action(Instant::now());
            match action {
                None => break,
                Some(Action::Wake(waker)) => waker.wake(),
                Some(Action::Discard(leftovers)) => {
                    self.metrics.bytes_wasted.add(leftovers.discard())
                }
                Some(Action::Head(check)) => heads.push(check),
                Some(Action::Fetch(fetch)) => self.fetch(fetch),
            }
        }
        for check in heads {
            let task = self.clone().check(check.stream, check.serial, check.uri);
            self.runtime.spawn(Abortable::new(task, check.abort));
        }
    }

    /// Each part is a task of its own: futures polled inside one task would take turns on one core.
    fn fetch(self: &Arc<Self>, fetch: Fetch) {
        let Fetch {
            ticket,
            reservation,
            abort,
        } = fetch;
        let len = usize::try_from(ticket.piece.range.len()).expect("a part fits in memory");
        let mut buf = match reservation {
            Some(reservation) => self.pool.part(reservation, len),
            None => PartBuf::heap(len),
        };
        if let Some(algorithm) = ticket.piece.algorithm {
            buf.start_digest(algorithm);
        }
        let leads = ticket.piece.leads;
        let task = FetchTask {
            shared: self.clone(),
            ticket,
            finished: false,
        };
        let run = task.run(buf, abort);
        match leads {
            true => self.send_at_once(run.boxed()),
            false => drop(self.runtime.spawn(run)),
        }
    }

    /// A stream's first request goes out now, on the connection that the listing left, before the tasks of the parts
    /// behind it are made. Among them it would be one of many: the runtime starts the youngest task first, and when
    /// thirty connections are opened at once, whoever comes last is milliseconds late.
    fn send_at_once(&self, mut run: BoxFuture<'static, ()>) {
        let begun = {
            let _context = self.runtime.enter();
            let mut asked = Context::from_waker(Waker::noop());
            catch_unwind(AssertUnwindSafe(|| run.as_mut().poll(&mut asked)))
        };
        // A panic has completed the slot, as it does in a task.
        if let Ok(Poll::Pending) = begun {
            self.runtime.spawn(run);
        }
    }

    async fn check(self: Arc<Self>, stream: StreamId, serial: u64, uri: ObjectUri) {
        let answer = self.client.head(&uri).await;
        let wake = self.lock().checked(stream, serial, answer);
        if let Some(waker) = wake {
            waker.wake();
        }
    }

    /// Moves objects from a listing to a stream, no faster than they are planned.
    async fn feed(
        self: Arc<Self>,
        mut objects: BoxStream<'static, Result<Planned>>,
        sender: mpsc::Sender<Feed>,
        starved: Arc<AtomicBool>,
    ) {
        // Declared before the sender is taken in, so dropped after it: a lister that dies closes the feed, then tells.
        let _told = TellOfEnd(self.clone());
        let sender = sender;
        loop {
            let (item, last) = match objects.next().await {
                Some(Ok(planned)) => (Feed::Object(planned), false),
                Some(Err(error)) => (Feed::Failed(error), true),
                None => (Feed::End, true),
            };
            if sender.send(item).await.is_err() {
                return;
            }
            if starved.swap(false, Ordering::SeqCst) {
                self.pump();
            }
            if last {
                return;
            }
        }
    }

    fn completed(self: &Arc<Self>, completion: Completion) {
        if let Some(waker) = completion.wake {
            waker.wake();
        }
        self.metrics
            .bytes_wasted
            .add(completion.leftovers.discard());
        self.pump();
    }
}

/// Has the streams looked at when a lister ends, even by a panic: its consumer may be waiting for the next object.
struct TellOfEnd(Arc<Shared>);

impl Drop for TellOfEnd {
    fn drop(&mut self) {
        self.0.pump();
    }
}

impl Released for Shared {
    fn released(&self) {
        if let Some(this) = self.this.upgrade() {
            this.pump();
        }
    }
}

/// One part's task. However it ends (done, failed, aborted, panicked), its slot is completed.
struct FetchTask {
    shared: Arc<Shared>,
    ticket: Ticket,
    finished: bool,
}

impl FetchTask {
    async fn run(mut self, mut buf: PartBuf, abort: AbortRegistration) {
        let piece = &self.ticket.piece;
        let get = self.shared.client.get(&piece.object, piece.range, &mut buf);
        let outcome = match Abortable::new(get, abort).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Error::Cancelled),
        };
        self.finish(buf, outcome);
    }

    fn finish(&mut self, buf: PartBuf, outcome: Result<GetMeta>) {
        self.finished = true;
        let completion = self.shared.lock().complete(&self.ticket, buf, outcome);
        self.shared.completed(completion);
    }
}

impl Drop for FetchTask {
    fn drop(&mut self) {
        if !self.finished {
            let piece = &self.ticket.piece;
            let what = format!("the task of {}, bytes {}", piece.object.uri, piece.range);
            self.finish(PartBuf::heap(0), Err(Error::Internal { what }));
        }
    }
}

/// A reader's hold on its stream; dropping it cancels what is in flight.
pub(super) struct StreamHandle {
    shared: Arc<Shared>,
    id: StreamId,
}

impl StreamHandle {
    pub(super) fn take(&self, waker: &Waker) -> Take {
        let (take, tally) = {
            let mut core = self.shared.lock();
            (core.take(self.id, waker), core.tally())
        };
        let metrics = &self.shared.metrics;
        metrics.checksums_verified.add(tally.verified);
        metrics.checksums_unverified.add(tally.unverified);
        metrics.checksums_bad.add(tally.bad);
        metrics.overdraft_bytes.add(tally.overdraft_bytes);
        metrics.producer_stall_ns.add_time(tally.memory_blocked);
        match &take {
            // Somebody waits for just these bytes: what is to be asked for next is another thread's work.
            Take::Part(part) if part.is_first() => {
                let shared = self.shared.clone();
                self.shared.runtime.spawn(async move { shared.pump() });
            }
            _ => self.shared.pump(),
        }
        take
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.shared.lock().is_at_end(self.id)
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }
}

impl Drop for StreamHandle {
    fn drop(&mut self) {
        let leftovers = self.shared.lock().close(self.id);
        self.shared.metrics.bytes_wasted.add(leftovers.discard());
        self.shared.pump();
    }
}
