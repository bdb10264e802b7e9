//! What to fetch next: the engine's state and every decision over it, without I/O.
//!
//! [`Core`] is driven by events and answers with [`Action`]s; `task.rs` holds it behind one mutex and carries the
//! actions out. No buffer is dropped in here, because dropping one tells the budget's listeners, who take that mutex.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Waker;
use std::time::{Duration, Instant};

use futures::future::{AbortHandle, AbortRegistration};
use tokio::sync::mpsc::{self, error::TryRecvError};

use super::config::PrefetchConfig;
use super::plan::Grid;
use super::queue::{PartQueue, Taken};
use super::verify::{Verdict, Verifier, unverifiable};
use super::window::ReadWindow;
use crate::buffer::{MemoryBudget, PartBuf, Reservation, class_bytes};
use crate::checksum::{Checksum, ChecksumAlgorithm, ChecksumPolicy};
use crate::client::GetMeta;
use crate::error::{Error, Result};
use crate::object::{ByteRange, ObjectId, ObjectUri};

/// After this many parts for consumers that wait, one goes to read-ahead, so that it never starves wholly.
const URGENT_RUN: u32 = 7;

pub(super) type StreamId = u64;

/// One object to read, as a listing or the caller describes it.
#[derive(Debug)]
pub(super) struct Planned {
    pub(super) id: ObjectId,
    pub(super) algorithm: Option<ChecksumAlgorithm>,
}

/// What feeds a stream. The end is said, not implied by a dropped sender: a lister that dies is not an end.
#[derive(Debug)]
pub(super) enum Feed {
    Object(Planned),
    Failed(Error),
    End,
}

/// Something for the shell to do, outside the lock.
pub(super) enum Action {
    Fetch(Fetch),
    /// Ask for the checksum of an object that is fetched in parts.
    Head {
        stream: StreamId,
        serial: u64,
        uri: ObjectUri,
    },
    Wake(Waker),
}

/// One part to fetch.
pub(super) struct Fetch {
    pub(super) stream: StreamId,
    pub(super) index: u64,
    pub(super) serial: u64,
    pub(super) object: Arc<ObjectId>,
    pub(super) range: ByteRange,
    /// `None`: beyond the budget, because the consumer holds all of it.
    pub(super) reservation: Option<Reservation>,
    pub(super) algorithm: Option<ChecksumAlgorithm>,
    pub(super) abort: AbortRegistration,
}

/// A part that was fetched, or why it was not.
#[derive(Debug)]
pub(super) enum Done {
    Part(Part),
    Failed(Error),
}

#[derive(Debug)]
pub(super) struct Part {
    pub(super) object: Arc<ObjectId>,
    pub(super) offset: u64,
    pub(super) buf: PartBuf,
    pub(super) ends_object: bool,
    serial: u64,
    /// Fetched whole, in one request: the client has compared its checksum if there was one.
    whole: Option<bool>,
    charged_bytes: u64,
}

/// What a consumer gets when it asks.
pub(super) enum Take {
    Part(Part),
    Pending,
    End,
    Failed(Error, Leftovers),
}

/// What a stream leaves behind when it stops: to be dropped, and tasks to be stopped, outside the lock.
#[derive(Debug, Default)]
pub(super) struct Leftovers {
    buffers: Vec<PartBuf>,
    aborts: Vec<AbortHandle>,
}

impl Leftovers {
    /// Stops the tasks and gives the buffers back; returns how many bytes were fetched for nothing.
    pub(super) fn discard(self) -> u64 {
        self.aborts.iter().for_each(AbortHandle::abort);
        self.buffers
            .iter()
            .map(|buf| buf.filled().len() as u64)
            .sum()
    }

    fn keep(&mut self, done: Done) {
        if let Done::Part(part) = done {
            self.buffers.push(part.buf);
        }
    }
}

/// What completing a part leads to.
#[derive(Default)]
pub(super) struct Completion {
    pub(super) wake: Option<Waker>,
    pub(super) leftovers: Leftovers,
}

/// Counts of what happened, for the shell to add to the metrics.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) verified: u64,
    pub(super) unverified: u64,
    pub(super) bad: u64,
    pub(super) overdraft_bytes: u64,
    pub(super) memory_blocked: Duration,
}

/// The engine's state.
#[derive(Debug)]
pub(super) struct Core {
    config: PrefetchConfig,
    grid: Grid,
    budget: MemoryBudget,
    streams: BTreeMap<StreamId, Stream>,
    next_stream: StreamId,
    in_flight: usize,
    urgent_run: u32,
    memory_blocked_since: Option<Instant>,
    tally: Tally,
}

#[derive(Debug)]
struct Stream {
    feed: mpsc::Receiver<Feed>,
    /// Tells the lister that the stream had nothing to plan.
    starved: Arc<AtomicBool>,
    lister: AbortHandle,
    cursor: Option<Cursor>,
    /// Nothing more will be planned: the feed ended, or failed, or a part did.
    exhausted: bool,
    objects_begun: u64,
    queue: PartQueue<Done>,
    aborts: VecDeque<(u64, AbortHandle)>,
    window: ReadWindow,
    /// Memory of the parts between issue and delivery.
    outstanding_bytes: u64,
    waiting: bool,
    /// Bytes issued so far, or what an older stream had when this one began: the smallest is served next.
    served_bytes: u64,
    credit_bytes: u64,
    verifier: Verifier,
    checks: VecDeque<Check>,
}

/// Where in the current object the next part starts.
#[derive(Debug)]
struct Cursor {
    object: Arc<ObjectId>,
    algorithm: Option<ChecksumAlgorithm>,
    serial: u64,
    next: u64,
    /// The first part of an object of unknown size or version is under way; its answer pins the object.
    discovering: bool,
}

#[derive(Debug)]
struct Check {
    serial: u64,
    answer: Option<Result<Option<Checksum>>>,
}

impl Core {
    pub(super) fn new(config: PrefetchConfig, budget: MemoryBudget) -> Self {
        let grid = Grid {
            part_bytes: config.part_bytes,
            lead_bytes: config.lead_bytes,
        };
        Self {
            config,
            grid,
            budget,
            streams: BTreeMap::new(),
            next_stream: 0,
            in_flight: 0,
            urgent_run: 0,
            memory_blocked_since: None,
            tally: Tally::default(),
        }
    }

    /// Registers a stream; refused when not every stream could have its head part in memory.
    pub(super) fn open(
        &mut self,
        feed: mpsc::Receiver<Feed>,
        starved: Arc<AtomicBool>,
        lister: AbortHandle,
        largest_part_bytes: u64,
    ) -> Result<StreamId> {
        let credit_bytes = class_bytes(largest_part_bytes.min(self.config.part_bytes));
        let promised: u64 = self.live().map(|stream| stream.credit_bytes).sum();
        if promised + credit_bytes > self.budget.limit() {
            let reason = format!(
                "{} bytes hold the next part of {} streams but not of one more: raise --memory, lower --part-size, or read fewer streams at once",
                self.budget.limit(),
                self.live().count()
            );
            return Err(Error::config("memory", reason));
        }
        let stream = Stream {
            feed,
            starved,
            lister,
            cursor: None,
            exhausted: false,
            objects_begun: 0,
            queue: PartQueue::new(),
            aborts: VecDeque::new(),
            window: ReadWindow::new(self.config.initial_window_bytes),
            outstanding_bytes: 0,
            waiting: false,
            served_bytes: self
                .live()
                .map(|stream| stream.served_bytes)
                .min()
                .unwrap_or(0),
            credit_bytes,
            verifier: Verifier::default(),
            checks: VecDeque::new(),
        };
        let id = self.next_stream;
        self.next_stream += 1;
        self.streams.insert(id, stream);
        Ok(id)
    }

    /// Forgets a stream; what it leaves is dropped by the caller.
    pub(super) fn close(&mut self, id: StreamId) -> Leftovers {
        self.streams
            .remove(&id)
            .map(|mut stream| stream.stop())
            .unwrap_or_default()
    }

    /// The counts since the last call.
    pub(super) fn tally(&mut self) -> Tally {
        std::mem::take(&mut self.tally)
    }

    fn live(&self) -> impl Iterator<Item = &Stream> {
        self.streams.values().filter(|stream| !stream.exhausted)
    }

    /// The next thing to do, or `None` until another event.
    pub(super) fn next_action(&mut self, now: Instant) -> Option<Action> {
        if let Some(action) = self.plan() {
            return Some(action);
        }
        if self.in_flight >= self.config.concurrency {
            return None;
        }
        let candidates = self.candidates();
        for &id in &candidates {
            let reservation = match self.reserve(id) {
                Some(reservation) => Some(reservation),
                None if self.may_overdraw(id) => None,
                None => continue,
            };
            if let Some(since) = self.memory_blocked_since.take() {
                self.tally.memory_blocked += now.saturating_duration_since(since);
            }
            return Some(Action::Fetch(self.issue(id, reservation)));
        }
        if !candidates.is_empty() {
            self.memory_blocked_since.get_or_insert(now);
        }
        None
    }

    /// Gives every stream that lacks one its next object.
    fn plan(&mut self) -> Option<Action> {
        let policy = self.config.checksums;
        let grid = self.grid;
        let (id, action) = self
            .streams
            .iter_mut()
            .find_map(|(id, stream)| Some((*id, stream.plan(grid, policy)?)))?;
        Some(match action {
            PlanEvent::Wake(waker) => Action::Wake(waker),
            PlanEvent::Head(serial, uri) => Action::Head {
                stream: id,
                serial,
                uri,
            },
        })
    }

    /// The streams that could use a part, the most deserving first: those whose consumer waits for a part that was
    /// not issued yet, then by bytes served.
    fn candidates(&mut self) -> Vec<StreamId> {
        let share = self.budget.limit() / (self.live().count() as u64).max(1);
        let mut candidates: Vec<(bool, u64, StreamId)> = Vec::new();
        for (id, stream) in &self.streams {
            let Some(range) = stream.next_range(self.grid) else {
                continue;
            };
            if stream.window.admits(
                stream.outstanding_bytes,
                class_bytes(range.len()),
                share.max(stream.credit_bytes),
            ) {
                candidates.push((!stream.is_urgent(), stream.served_bytes, *id));
            }
        }
        candidates.sort_unstable();
        let speculative = candidates.iter().position(|candidate| candidate.0);
        match (candidates.first(), speculative) {
            (Some((false, ..)), Some(at)) if self.urgent_run >= URGENT_RUN => {
                candidates.swap(0, at);
                self.urgent_run = 0;
            }
            (Some((false, ..)), _) => self.urgent_run += 1,
            _ => self.urgent_run = 0,
        }
        candidates.into_iter().map(|(_, _, id)| id).collect()
    }

    /// Takes the memory for the stream's next part, leaving the head credits of the others free.
    fn reserve(&self, id: StreamId) -> Option<Reservation> {
        let others = self.streams.iter().filter(|(other, _)| **other != id);
        let keep_free = others.map(|(_, stream)| stream.idle_credit_bytes()).sum();
        let range = self.streams[&id].next_range(self.grid)?;
        self.budget.try_reserve(class_bytes(range.len()), keep_free)
    }

    /// Only a consumer that waits for its very next part, while memory is lent out, may go beyond the budget: with
    /// nothing lent the head credit would have held.
    fn may_overdraw(&self, id: StreamId) -> bool {
        let stream = &self.streams[&id];
        stream.is_urgent() && self.budget.lent() > 0
    }

    fn issue(&mut self, id: StreamId, reservation: Option<Reservation>) -> Fetch {
        let grid = self.grid;
        let stream = self
            .streams
            .get_mut(&id)
            .expect("a candidate is an open stream");
        let range = stream
            .next_range(grid)
            .expect("a candidate has a next part");
        let cursor = stream.cursor.as_mut().expect("a candidate has an object");
        let whole = cursor.object.is_whole(range);
        let object = cursor.object.clone();
        let serial = cursor.serial;
        let algorithm = cursor
            .algorithm
            .filter(|_| !whole && self.config.checksums != ChecksumPolicy::Off);
        cursor.discovering = !object.is_pinned();
        cursor.next = range.end;
        if object.size_bytes == Some(range.end) && !cursor.discovering {
            stream.cursor = None;
        }
        let charged = class_bytes(range.len());
        if reservation.is_none() {
            self.tally.overdraft_bytes += charged;
        }
        stream.outstanding_bytes += charged;
        stream.served_bytes += range.len();
        let index = stream.queue.open();
        let (handle, abort) = AbortHandle::new_pair();
        stream.aborts.push_back((index, handle));
        self.in_flight += 1;
        Fetch {
            stream: id,
            index,
            serial,
            object,
            range,
            reservation,
            algorithm,
            abort,
        }
    }

    /// A part's task has ended.
    pub(super) fn complete(
        &mut self,
        ticket: &Ticket,
        buf: PartBuf,
        outcome: Result<GetMeta>,
    ) -> Completion {
        self.in_flight -= 1;
        let mut leftovers = Leftovers::default();
        let Some(stream) = self.streams.get_mut(&ticket.stream) else {
            leftovers.buffers.push(buf);
            return Completion {
                wake: None,
                leftovers,
            };
        };
        let done = match outcome.and_then(|meta| stream.accept(ticket, &buf, &meta)) {
            Ok(accepted) => Done::Part(accepted.part(ticket, buf)),
            Err(error) => {
                leftovers = stream.fail_after(ticket.index);
                leftovers.buffers.push(buf);
                Done::Failed(error)
            }
        };
        let wake = stream
            .queue
            .complete(ticket.index, done)
            .unwrap_or_else(|done| {
                leftovers.keep(done);
                None
            });
        Completion { wake, leftovers }
    }

    /// The answer to [`Action::Head`].
    pub(super) fn checked(
        &mut self,
        id: StreamId,
        serial: u64,
        answer: Result<Option<Checksum>>,
    ) -> Option<Waker> {
        let stream = self.streams.get_mut(&id)?;
        let check = stream
            .checks
            .iter_mut()
            .find(|check| check.serial == serial)?;
        check.answer = Some(answer);
        stream.queue.wake()
    }

    /// The consumer asks for its next part.
    pub(super) fn take(&mut self, id: StreamId, waker: &Waker) -> Take {
        let policy = self.config.checksums;
        let Some(stream) = self.streams.get_mut(&id) else {
            return Take::End;
        };
        if stream.waits_for_check() {
            stream.queue.wait(waker);
            return Take::Pending;
        }
        match stream.queue.take(waker) {
            Taken::Ready(Done::Part(part)) => {
                stream.delivered(&part);
                match stream.verify(&part, policy) {
                    Some(Verdict::Bad(error)) => {
                        self.tally.bad += 1;
                        let mut leftovers = stream.stop();
                        leftovers.buffers.push(part.buf);
                        return Take::Failed(error, leftovers);
                    }
                    Some(Verdict::Verified) => self.tally.verified += 1,
                    Some(Verdict::Unverified) => self.tally.unverified += 1,
                    None => {}
                }
                Take::Part(part)
            }
            Taken::Ready(Done::Failed(error)) => Take::Failed(error, stream.stop()),
            Taken::Pending => {
                stream.waiting = true;
                stream.window.stalled(
                    stream.outstanding_bytes,
                    class_bytes(self.config.part_bytes),
                );
                Take::Pending
            }
            Taken::Empty if stream.is_finished() => Take::End,
            Taken::Empty => {
                stream.waiting = true;
                Take::Pending
            }
        }
    }
}

/// What a fetching task knows of its part.
#[derive(Debug)]
pub(super) struct Ticket {
    pub(super) stream: StreamId,
    pub(super) index: u64,
    pub(super) serial: u64,
    pub(super) object: Arc<ObjectId>,
    pub(super) range: ByteRange,
    pub(super) finished: bool,
}

/// What the answer to a part's request says of its object.
struct Accepted {
    object: Arc<ObjectId>,
    ends_object: bool,
    whole: Option<bool>,
}

impl Accepted {
    fn part(self, ticket: &Ticket, buf: PartBuf) -> Part {
        Part {
            object: self.object,
            offset: ticket.range.start,
            buf,
            ends_object: self.ends_object,
            serial: ticket.serial,
            whole: self.whole,
            charged_bytes: class_bytes(ticket.range.len()),
        }
    }
}

enum PlanEvent {
    Wake(Waker),
    Head(u64, ObjectUri),
}

impl Stream {
    /// Takes the next object from the feed, until there is one to fetch or the feed is dry.
    fn plan(&mut self, grid: Grid, policy: ChecksumPolicy) -> Option<PlanEvent> {
        while self.cursor.is_none() && !self.exhausted {
            // Set before looking: a lister that sends after the look sees it.
            self.starved.store(true, Ordering::SeqCst);
            let done = match self.feed.try_recv() {
                Ok(Feed::Object(planned)) => match self.begin(planned, grid, policy) {
                    Begun::Fetch(None) => return None,
                    Begun::Fetch(Some(head)) => return Some(head),
                    Begun::Empty(done) => done,
                },
                Ok(Feed::Failed(error)) => {
                    self.exhausted = true;
                    Done::Failed(error)
                }
                Ok(Feed::End) => {
                    self.exhausted = true;
                    return self.queue.wake().map(PlanEvent::Wake);
                }
                Err(TryRecvError::Empty) => return None,
                Err(TryRecvError::Disconnected) => {
                    self.exhausted = true;
                    Done::Failed(Error::Cancelled)
                }
            };
            let index = self.queue.open();
            let wake = self
                .queue
                .complete(index, done)
                .expect("a slot that was just opened is empty");
            if let Some(waker) = wake {
                return Some(PlanEvent::Wake(waker));
            }
        }
        None
    }

    fn begin(&mut self, planned: Planned, grid: Grid, policy: ChecksumPolicy) -> Begun {
        let serial = self.objects_begun;
        self.objects_begun += 1;
        let object = Arc::new(planned.id);
        if object.size_bytes == Some(0) {
            let (buf, offset) = (PartBuf::heap(0), 0);
            return Begun::Empty(Done::Part(Part {
                object,
                offset,
                buf,
                ends_object: true,
                serial,
                whole: Some(true),
                charged_bytes: 0,
            }));
        }
        let algorithm = planned.algorithm.filter(|_| policy != ChecksumPolicy::Off);
        let cursor = Cursor {
            object,
            algorithm,
            serial,
            next: 0,
            discovering: false,
        };
        let in_parts = grid.part_at(0, cursor.size_bytes(), serial == 0).end < cursor.size_bytes();
        let head = (in_parts && algorithm.is_some()).then(|| {
            self.checks.push_back(Check {
                serial,
                answer: None,
            });
            PlanEvent::Head(serial, cursor.object.uri.clone())
        });
        self.cursor = Some(cursor);
        Begun::Fetch(head)
    }

    fn next_range(&self, grid: Grid) -> Option<ByteRange> {
        let cursor = self
            .cursor
            .as_ref()
            .filter(|cursor| !cursor.discovering && !self.exhausted)?;
        let range = grid.part_at(cursor.next, cursor.size_bytes(), cursor.serial == 0);
        (!range.is_empty()).then_some(range)
    }

    fn is_urgent(&self) -> bool {
        self.waiting && self.queue.len() == 0
    }

    /// What must stay free for this stream: nothing while a part of it is under way or ready.
    fn idle_credit_bytes(&self) -> u64 {
        if self.exhausted || self.queue.len() > 0 {
            0
        } else {
            self.credit_bytes
        }
    }

    fn is_finished(&self) -> bool {
        self.exhausted && self.cursor.is_none()
    }

    /// Checks that the part is what was asked for, and pins an object that was unknown until now.
    fn accept(&mut self, ticket: &Ticket, buf: &PartBuf, meta: &GetMeta) -> Result<Accepted> {
        let filled = buf.filled().len() as u64;
        let end = ticket.range.start + filled;
        if end != ticket.range.end.min(meta.size_bytes) {
            return Err(Error::Corrupt {
                uri: ticket.object.uri.to_string(),
                offset: end,
                reason: format!(
                    "{filled} bytes of {} arrived, of an object of {}",
                    ticket.range, meta.size_bytes
                ),
            });
        }
        let object = if ticket.object.is_pinned() {
            ticket.object.clone()
        } else {
            self.pin(ticket, meta, end)
        };
        let ends_object = object.size_bytes == Some(end);
        let whole = (ends_object && ticket.range.start == 0).then_some(meta.checksum.is_some());
        Ok(Accepted {
            object,
            ends_object,
            whole,
        })
    }

    /// The first answer tells the object's size and version: the parts after it are read from just that.
    fn pin(&mut self, ticket: &Ticket, meta: &GetMeta, end: u64) -> Arc<ObjectId> {
        let etag = meta.etag.clone().or_else(|| ticket.object.etag.clone());
        let object = Arc::new(ObjectId {
            etag,
            size_bytes: Some(meta.size_bytes),
            ..(*ticket.object).clone()
        });
        if let Some(cursor) = self
            .cursor
            .as_mut()
            .filter(|cursor| cursor.serial == ticket.serial)
        {
            cursor.object = object.clone();
            cursor.discovering = false;
            if end >= meta.size_bytes {
                self.cursor = None;
            }
        }
        object
    }

    /// Part `index` failed: nothing after it will be delivered.
    fn fail_after(&mut self, index: u64) -> Leftovers {
        self.exhausted = true;
        self.cursor = None;
        let aborts = self
            .aborts
            .iter()
            .filter(|(later, _)| *later > index)
            .map(|(_, abort)| abort.clone());
        Leftovers {
            buffers: Vec::new(),
            aborts: aborts.chain([self.lister.clone()]).collect(),
        }
    }

    /// Ends the stream for good.
    fn stop(&mut self) -> Leftovers {
        self.exhausted = true;
        self.cursor = None;
        self.outstanding_bytes = 0;
        let aborts = self
            .aborts
            .drain(..)
            .map(|(_, abort)| abort)
            .chain([self.lister.clone()])
            .collect();
        let mut leftovers = Leftovers {
            buffers: Vec::new(),
            aborts,
        };
        self.queue
            .close()
            .into_iter()
            .for_each(|done| leftovers.keep(done));
        leftovers
    }

    fn delivered(&mut self, part: &Part) {
        self.waiting = false;
        self.outstanding_bytes -= part.charged_bytes;
        while self
            .aborts
            .front()
            .is_some_and(|(index, _)| *index < self.queue.head())
        {
            self.aborts.pop_front();
        }
    }

    /// Whether the head is the last part of an object whose checksum has not been told yet.
    fn waits_for_check(&self) -> bool {
        let Some(Done::Part(part)) = self.queue.peek() else {
            return false;
        };
        part.ends_object
            && self
                .checks
                .iter()
                .any(|check| check.serial == part.serial && check.answer.is_none())
    }

    /// Judges an object with its last part.
    fn verify(&mut self, part: &Part, policy: ChecksumPolicy) -> Option<Verdict> {
        if policy == ChecksumPolicy::Off {
            return None;
        }
        if let Some(compared) = part.whole {
            return (!compared).then(|| unverifiable(&part.object, policy));
        }
        self.verifier
            .add(part.buf.digest(), part.buf.filled().len() as u64);
        if !part.ends_object {
            return None;
        }
        let at = self
            .checks
            .iter()
            .position(|check| check.serial == part.serial);
        let answer = at
            .and_then(|at| self.checks.remove(at))
            .and_then(|check| check.answer);
        // A HEAD that fails (it may be forbidden where GET is not) leaves the object unverified.
        let expected = answer.and_then(Result::ok).flatten();
        Some(std::mem::take(&mut self.verifier).judge(&part.object, expected, policy))
    }
}

enum Begun {
    Fetch(Option<PlanEvent>),
    Empty(Done),
}

impl Cursor {
    /// Its size, or the largest possible while it is unknown.
    fn size_bytes(&self) -> u64 {
        self.object.size_bytes.unwrap_or(u64::MAX)
    }
}
