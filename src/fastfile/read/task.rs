//! The shell around [`Core`]: handles, the tasks that fetch, and the waits between them.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use bytes::Bytes;
use futures::future::{AbortRegistration, Abortable};
use tokio::runtime::Handle;

use super::config::ReadConfig;
use super::core::{Action, Arrived, Core, Fetch, Garbage, HandleId, Piece, Ticket};
use crate::buffer::{BufferPool, MemoryBudget, PartBuf, Released, class_bytes};
use crate::client::{GetMeta, ObjectClient};
use crate::error::{Error, Result};
use crate::metrics::{Metrics, Snapshot};
use crate::object::{ByteRange, ObjectId};
use crate::runtime;

/// The open objects of a process: they share memory and requests. Clones are the same.
#[derive(Clone)]
pub struct OpenFiles(Arc<Shared>);

impl OpenFiles {
    /// Reads through `client`, on the process's runtime; counts into `metrics`.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field when the configuration can't work.
    pub fn new(
        client: Arc<dyn ObjectClient>,
        config: ReadConfig,
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
        config: ReadConfig,
        metrics: Arc<Metrics>,
    ) -> Result<Self> {
        config.validate()?;
        let budget = MemoryBudget::new(config.memory_bytes);
        let pool = BufferPool::new(config.memory_bytes, metrics.clone());
        let core = Mutex::new(Core::new(config.clone(), budget.clone()));
        let pid = std::process::id();
        let shared = Arc::new_cyclic(|this: &Weak<Shared>| Shared {
            this: this.clone(),
            config,
            core,
            client,
            pool,
            budget,
            metrics,
            runtime,
            pid,
        });
        let listener: Weak<dyn Released> = shared.this.clone();
        shared.budget.subscribe(listener);
        Ok(Self(shared))
    }

    /// Opens one version of an object, without a request.
    ///
    /// # Errors
    /// [`Error::Config`] when its size is not known: [`ObjectClient::head`] tells it.
    pub fn open(&self, object: ObjectId) -> Result<OpenFile> {
        let size_bytes = object.size_bytes.ok_or_else(|| {
            Error::config(
                object.uri.to_string(),
                "its size is not known: open what a listing or a HEAD describes",
            )
        })?;
        let id = self.0.lock().open(object.clone(), size_bytes);
        Ok(OpenFile {
            shared: self.0.clone(),
            id,
            object,
            size_bytes,
        })
    }

    /// Fetches whole objects before they are opened, in this order, as memory allows: the next ones of a sampler or of
    /// a directory. What is returned holds the hints: dropping it forgets what was not begun.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn prefetch(&self, objects: impl IntoIterator<Item = ObjectId>) -> Result<Vec<OpenFile>> {
        let files: Vec<OpenFile> = objects
            .into_iter()
            .map(|object| self.open(object))
            .collect::<Result<_>>()?;
        for file in &files {
            file.prefetch(&[ByteRange::new(0, file.size_bytes)]);
        }
        Ok(files)
    }

    /// Memory for bytes that are on their way elsewhere; beyond the budget if nothing of it is free.
    pub(in crate::fastfile) fn buffer(&self, len: usize) -> PartBuf {
        match self.0.budget.try_reserve(class_bytes(len as u64), 0) {
            Some(reservation) => self.0.pool.part(reservation, len),
            None => {
                self.0.metrics.overdraft_bytes.add(len as u64);
                PartBuf::heap(len)
            }
        }
    }

    /// How they are read.
    pub fn config(&self) -> &ReadConfig {
        &self.0.config
    }

    /// Where they are read from.
    pub fn client(&self) -> &Arc<dyn ObjectClient> {
        &self.0.client
    }

    /// Whether something that was to be fetched ahead has not been asked for yet.
    pub(in crate::fastfile) fn has_hints(&self) -> bool {
        self.0.lock().has_hints()
    }

    /// Their counters.
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// Their memory.
    pub fn budget(&self) -> &MemoryBudget {
        &self.0.budget
    }

    /// The counters at this moment, the memory's included.
    pub fn snapshot(&self) -> Snapshot {
        self.0.metrics.reserved_bytes.set(self.0.budget.reserved());
        self.0.metrics.lent_bytes.set(self.0.budget.lent());
        self.0.metrics.snapshot()
    }
}

impl fmt::Debug for OpenFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenFiles")
            .field("client", &self.0.client)
            .field("budget", &self.0.budget)
            .finish_non_exhaustive()
    }
}

/// One handle on an object: how it is read decides what is fetched ahead for it. Dropping it cancels that.
pub struct OpenFile {
    shared: Arc<Shared>,
    id: HandleId,
    object: ObjectId,
    size_bytes: u64,
}

impl OpenFile {
    /// The version that is read.
    pub fn object(&self) -> &ObjectId {
        &self.object
    }

    /// Its length.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// What one read should ask for at most: what was read stays in the files' memory until its pieces are dropped, and
    /// what comes next needs memory as well. A quarter of it, and no less than a part.
    pub fn slice_bytes(&self) -> usize {
        let config = &self.shared.config;
        let slice = (config.memory_bytes / 4).max(config.part_bytes);
        usize::try_from(slice).unwrap_or(usize::MAX)
    }

    /// Reads at any offset, from any thread, any number at a time. Fewer bytes than asked for come only at the end of
    /// the object, or before an error, which the next read from there gives. A long read is better made in
    /// [slices](Self::slice_bytes).
    ///
    /// # Errors
    /// What the client said of the byte at `offset`. [`Error::Config`] in a forked child, which must open anew.
    pub async fn read_at(&self, offset: u64, len: usize) -> Result<Pieces> {
        let range = self.within(offset, len);
        if range.is_empty() {
            return Ok(Pieces::default());
        }
        self.shared.refuse_after_fork()?;
        let pieces = self.begin(range);
        let mut read = Pieces::default();
        let mut waiting_since = None;
        for piece in pieces {
            let (bytes, error) = match piece {
                Piece::Ready(bytes) => (bytes, None),
                Piece::Wait {
                    arrival,
                    part_start,
                    range,
                } => {
                    waiting_since.get_or_insert_with(Instant::now);
                    // The sender goes without a word only when the handle is closed.
                    let arrived = arrival.await.map_err(|_| Error::Cancelled)?;
                    arrived.slice(part_start, range)
                }
            };
            read.push(bytes);
            if let Some(error) = error {
                if read.is_empty() {
                    return Err(error);
                }
                break;
            }
        }
        if let Some(since) = waiting_since {
            self.shared
                .metrics
                .consumer_stall_ns
                .add_time(since.elapsed());
        }
        self.shared.metrics.bytes_delivered.add(read.len() as u64);
        Ok(read)
    }

    /// The same when all of it is in memory; `None`, and nothing is begun, when it is not.
    pub fn try_read_at(&self, offset: u64, len: usize) -> Option<Pieces> {
        let range = self.within(offset, len);
        if range.is_empty() {
            return Some(Pieces::default());
        }
        let (pieces, garbage) = {
            let mut core = self.shared.lock();
            if !core.is_ready(self.id, range) {
                return None;
            }
            core.read(self.id, range)
        };
        self.shared.discard(garbage);
        self.shared.pump();
        let mut read = Pieces::default();
        for piece in pieces {
            match piece {
                Piece::Ready(bytes) => read.push(bytes),
                Piece::Wait { .. } => unreachable!("looked at under the same lock"),
            }
        }
        self.shared.metrics.bytes_delivered.add(read.len() as u64);
        Some(read)
    }

    /// Fetches ranges before they are read, in this order, as memory allows.
    pub fn prefetch(&self, ranges: &[ByteRange]) {
        self.shared.lock().hint(self.id, ranges);
        self.shared.pump();
    }

    fn within(&self, offset: u64, len: usize) -> ByteRange {
        let end = offset.saturating_add(len as u64).min(self.size_bytes);
        ByteRange::new(offset.min(end), end)
    }

    fn begin(&self, range: ByteRange) -> Vec<Piece> {
        let (pieces, garbage) = self.shared.lock().read(self.id, range);
        self.shared.discard(garbage);
        self.shared.pump();
        pieces
    }
}

impl fmt::Debug for OpenFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenFile")
            .field("object", &self.object)
            .finish_non_exhaustive()
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        let garbage = self.shared.lock().close(self.id);
        self.shared.discard(garbage);
        self.shared.pump();
    }
}

/// What a read gave: slices of the parts, in order, mostly one or two. Their memory counts against the budget until
/// they are dropped.
#[derive(Debug, Clone, Default)]
pub struct Pieces {
    first: Bytes,
    rest: Vec<Bytes>,
}

impl Pieces {
    /// How many bytes.
    pub fn len(&self) -> usize {
        self.iter().map(Bytes::len).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.first.is_empty()
    }

    /// The pieces.
    pub fn iter(&self) -> impl Iterator<Item = &Bytes> {
        std::iter::once(&self.first).chain(&self.rest)
    }

    /// Copies them to the front of `into`, as far as it reaches; returns how many bytes those were.
    pub fn copy_to(&self, into: &mut [u8]) -> usize {
        let mut at = 0;
        for piece in self.iter() {
            let n = piece.len().min(into.len() - at);
            into[at..at + n].copy_from_slice(&piece[..n]);
            at += n;
        }
        at
    }

    /// One run of bytes: a copy only when there are several pieces.
    pub fn into_bytes(self) -> Bytes {
        if self.rest.is_empty() {
            return self.first;
        }
        self.iter()
            .fold(Vec::with_capacity(self.len()), |mut all, piece| {
                all.extend_from_slice(piece);
                all
            })
            .into()
    }

    fn push(&mut self, bytes: Bytes) {
        if self.first.is_empty() {
            self.first = bytes;
        } else if !bytes.is_empty() {
            self.rest.push(bytes);
        }
    }
}

impl Arrived {
    /// What there is of a range of the object, and why it is not all.
    fn slice(self, part_start: u64, range: ByteRange) -> (Bytes, Option<Error>) {
        let there = part_start + self.bytes.len() as u64;
        let error = self.error.filter(|_| there < range.end);
        let end = range.end.min(there).max(range.start.min(there));
        let start = range.start.min(end);
        (
            self.bytes
                .slice((start - part_start) as usize..(end - part_start) as usize),
            error,
        )
    }
}

struct Shared {
    this: Weak<Shared>,
    config: ReadConfig,
    core: Mutex<Core>,
    client: Arc<dyn ObjectClient>,
    pool: BufferPool,
    budget: MemoryBudget,
    metrics: Arc<Metrics>,
    runtime: Handle,
    pid: u32,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A forked child has none of the threads that would answer, and shares the parent's connections.
    fn refuse_after_fork(&self) -> Result<()> {
        if std::process::id() == self.pid {
            return Ok(());
        }
        Err(Error::config(
            "open files",
            "they were opened before this process was forked: open them in the child",
        ))
    }

    fn discard(&self, garbage: Garbage) {
        if !garbage.is_empty() {
            self.metrics.bytes_wasted.add(garbage.discard());
        }
    }

    /// Carries out what the core wants done, until it wants nothing.
    fn pump(self: &Arc<Self>) {
        loop {
            let (action, overdraft_bytes) = {
                let mut core = self.lock();
                (
                    core.next_action(),
                    std::mem::take(&mut core.overdraft_bytes),
                )
            };
            self.metrics.overdraft_bytes.add(overdraft_bytes);
            match action {
                None => break,
                Some(Action::Discard(garbage)) => self.discard(garbage),
                Some(Action::Fetch(fetch)) => self.fetch(fetch),
            }
        }
    }

    /// Each part is received by a task of its own, in its turns: futures polled inside one task share a core.
    fn fetch(self: &Arc<Self>, fetch: Fetch) {
        let Fetch {
            ticket,
            object,
            reservation,
            abort,
        } = fetch;
        let len = usize::try_from(ticket.range.len()).expect("a part fits in memory");
        let buf = match reservation {
            Some(reservation) => self.pool.part(reservation, len),
            None => PartBuf::heap(len),
        };
        let task = FetchTask {
            shared: self.clone(),
            ticket,
            object,
            is_finished: false,
        };
        self.runtime.spawn(task.run(buf, abort));
    }
}

impl Released for Shared {
    fn released(&self) {
        if let Some(this) = self.this.upgrade() {
            this.pump();
        }
    }
}

/// One part's task. However it ends (done, failed, stopped, panicked), those who wait hear of it.
struct FetchTask {
    shared: Arc<Shared>,
    ticket: Ticket,
    object: Arc<ObjectId>,
    is_finished: bool,
}

impl FetchTask {
    async fn run(mut self, mut buf: PartBuf, abort: AbortRegistration) {
        let object = self.object.clone();
        let get = self.shared.client.get(&object, self.ticket.range, &mut buf);
        let outcome = Abortable::new(get, abort)
            .await
            .unwrap_or(Err(Error::Cancelled));
        self.finish(buf, outcome);
    }

    fn finish(&mut self, mut buf: PartBuf, outcome: Result<GetMeta>) {
        self.is_finished = true;
        let error = outcome.and_then(|meta| self.check(&buf, &meta)).err();
        // Of bytes that are known to be wrong, or of another version, none is good.
        if error.as_ref().is_some_and(|error| {
            matches!(error.root(), Error::Corrupt { .. } | Error::Changed { .. })
        }) {
            buf.clear();
        }
        let arrived = Arrived {
            bytes: buf.freeze(),
            error,
        };
        let (waiters, garbage) = self.shared.lock().complete(&self.ticket, &arrived);
        for waiter in waiters {
            // A reader that went away needs no answer.
            let _ = waiter.send(arrived.clone());
        }
        drop(arrived);
        self.shared.metrics.bytes_wasted.add(garbage.discard());
        self.shared.pump();
    }

    fn check(&self, buf: &PartBuf, meta: &GetMeta) -> Result<()> {
        let filled = buf.filled().len() as u64;
        if filled == self.ticket.range.len() && self.object.size_bytes == Some(meta.size_bytes) {
            return Ok(());
        }
        Err(Error::Corrupt {
            uri: self.object.uri.to_string(),
            offset: self.ticket.range.start + filled,
            reason: format!(
                "{filled} bytes of {} arrived, of an object of {}",
                self.ticket.range, meta.size_bytes
            ),
            answer: Box::default(),
        })
    }
}

impl Drop for FetchTask {
    fn drop(&mut self) {
        if !self.is_finished {
            let what = format!(
                "the task of {}, bytes {}",
                self.object.uri, self.ticket.range
            );
            self.finish(PartBuf::heap(0), Err(Error::Internal { what }));
        }
    }
}
