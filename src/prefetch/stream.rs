//! One stream's state: what it reads next, what is under way, and what is ready.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Waker;

use futures::future::{AbortHandle, AbortRegistration};
use tokio::sync::mpsc::{self, error::TryRecvError};

use super::plan::{Grid, Lead};
use super::queue::{PartQueue, Taken};
use super::verify::{Verdict, Verifier, unverifiable};
use super::window::ReadWindow;
use crate::buffer::{PartBuf, class_bytes};
use crate::checksum::{Checksum, ChecksumAlgorithm, ChecksumPolicy};
use crate::client::GetMeta;
use crate::error::{Error, Result};
use crate::object::{ByteRange, ObjectId, ObjectMeta, ObjectUri};

/// One object to read, as a listing or the caller describes it.
#[derive(Debug)]
pub(super) struct Planned {
    pub(super) id: ObjectId,
    pub(super) algorithm: Option<ChecksumAlgorithm>,
    /// Where reading begins. Beyond 0 the object must be the first one of its stream.
    pub(super) start: u64,
    /// The CRC of the bytes before, so that the whole can be judged.
    pub(super) before: Option<Checksum>,
}

impl Planned {
    /// All of an object.
    pub(super) fn whole(id: ObjectId, algorithm: Option<ChecksumAlgorithm>) -> Self {
        Self {
            id,
            algorithm,
            start: 0,
            before: None,
        }
    }
}

/// What feeds a stream. The end is said, not implied by a dropped sender: a lister that dies is not an end.
#[derive(Debug)]
pub(super) enum Feed {
    Object(Planned),
    Failed(Error),
    End,
}

/// The receiving end of a stream's lister.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) feed: mpsc::Receiver<Feed>,
    /// Tells the lister that the stream had nothing to plan.
    pub(super) starved: Arc<AtomicBool>,
    /// How its next object begins.
    pub(super) lead: Lead,
    pub(super) lister: AbortHandle,
}

/// A range of one object to fetch.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    pub(super) object: Arc<ObjectId>,
    /// Which object of the stream, counted from 0.
    pub(super) serial: u64,
    pub(super) range: ByteRange,
    /// The CRC to keep, when the object is verified over its parts.
    pub(super) algorithm: Option<ChecksumAlgorithm>,
    /// The stream's first bytes are in it.
    pub(super) leads: bool,
}

impl Piece {
    /// What it takes from the budget.
    pub(super) fn charged_bytes(&self) -> u64 {
        class_bytes(self.range.len())
    }
}

/// What was fetched for a slot, or why it was not.
#[derive(Debug)]
pub(super) enum Done {
    Part(Part),
    /// A part that broke: its good bytes, then the error.
    Broken(Part, Error),
    Failed(Error),
}

/// A part on its way to the consumer.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) object: Arc<ObjectId>,
    pub(super) offset: u64,
    pub(super) buf: PartBuf,
    pub(super) ends_object: bool,
    serial: u64,
    /// Fetched whole, in one request: whether the client compared its checksum.
    whole: Option<bool>,
    charged_bytes: u64,
}

impl Part {
    /// Whether the stream begins with it.
    pub(super) fn is_first(&self) -> bool {
        self.serial == 0 && self.offset == 0
    }
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

    pub(super) fn of(buf: PartBuf) -> Self {
        Self {
            buffers: vec![buf],
            aborts: Vec::new(),
        }
    }

    fn keep(&mut self, done: Done) {
        if let Done::Part(part) | Done::Broken(part, _) = done {
            self.buffers.push(part.buf);
        }
    }
}

/// What planning came upon.
pub(super) enum PlanEvent {
    Wake(Waker),
    /// The checksum of an object that is fetched in parts is to be asked for.
    Head(u64, ObjectUri, AbortRegistration),
}

#[derive(Debug)]
pub(super) struct Stream {
    source: Source,
    /// The feed has ended or failed.
    exhausted: bool,
    cursor: Option<Cursor>,
    /// What stood in slots that were revoked, the next one last: a piece to fetch again, and what lies behind it.
    revoked: Vec<Revoked>,
    objects_begun: u64,
    queue: PartQueue<Done>,
    /// Pieces with a slot that a task fills or has filled, by growing slot. There are thousands of small ones.
    issued: VecDeque<Issued>,
    pub(super) window: ReadWindow,
    /// Memory of the parts between issue and delivery.
    pub(super) outstanding_bytes: u64,
    pub(super) waiting: bool,
    /// Bytes issued so far, on a scale shared by all streams: the smallest is served next.
    pub(super) served_bytes: u64,
    pub(super) credit_bytes: u64,
    verifier: Verifier,
    checks: VecDeque<Check>,
    /// What ends the stream now that the good bytes of the broken part were delivered.
    broken: Option<Error>,
}

#[derive(Debug)]
struct Issued {
    slot: u64,
    piece: Piece,
    abort: AbortHandle,
}

/// What a revoked slot held.
#[derive(Debug)]
enum Revoked {
    /// A part, to be fetched again.
    Piece(Piece),
    /// What took no fetching (an empty object, the end in an error): it comes again after the part before it.
    Ready(Box<Done>),
}

/// Where in the current object the next part starts.
#[derive(Debug)]
struct Cursor {
    object: Arc<ObjectId>,
    algorithm: Option<ChecksumAlgorithm>,
    lead: Lead,
    serial: u64,
    next: u64,
    /// The first part of an object of unknown size or version is under way; its answer pins the object.
    discovering: bool,
}

impl Cursor {
    /// Its size, or the largest possible while it is unknown.
    fn size_bytes(&self) -> u64 {
        self.object.size_bytes.unwrap_or(u64::MAX)
    }
}

#[derive(Debug)]
struct Check {
    serial: u64,
    answer: Option<Result<ObjectMeta>>,
    abort: AbortHandle,
}

enum Begun {
    /// There is a part to fetch, or nothing to plan.
    Fetch(Option<PlanEvent>),
    /// Something that takes no fetching.
    Empty(Done),
}

/// What the answer to a part's request says of its object.
struct Accepted {
    object: Arc<ObjectId>,
    ends_object: bool,
    whole: Option<bool>,
}

impl Accepted {
    fn part(self, piece: &Piece, buf: PartBuf) -> Part {
        Part {
            object: self.object,
            offset: piece.range.start,
            buf,
            ends_object: self.ends_object,
            serial: piece.serial,
            whole: self.whole,
            charged_bytes: piece.charged_bytes(),
        }
    }
}

impl Stream {
    pub(super) fn new(
        source: Source,
        window: ReadWindow,
        served_bytes: u64,
        credit_bytes: u64,
    ) -> Self {
        Self {
            source,
            exhausted: false,
            cursor: None,
            revoked: Vec::new(),
            objects_begun: 0,
            queue: PartQueue::new(),
            issued: VecDeque::new(),
            window,
            outstanding_bytes: 0,
            waiting: false,
            served_bytes,
            credit_bytes,
            verifier: Verifier::default(),
            checks: VecDeque::new(),
            broken: None,
        }
    }

    /// Whether it will need memory for more parts.
    pub(super) fn has_more(&self) -> bool {
        !self.exhausted || self.cursor.is_some() || !self.revoked.is_empty()
    }

    /// Whether the last part was taken, and was sound.
    pub(super) fn is_at_end(&self) -> bool {
        !self.has_more() && self.queue.len() == 0 && self.broken.is_none()
    }

    /// Its consumer waits for a part that was not issued yet.
    pub(super) fn is_urgent(&self) -> bool {
        self.waiting && self.queue.len() == 0
    }

    /// What must stay free for this stream: nothing while a part of it is under way or ready.
    ///
    /// Empty objects that wait for the consumer are no such part.
    pub(super) fn idle_credit_bytes(&self) -> u64 {
        if self.has_more() && self.outstanding_bytes == 0 {
            self.credit_bytes
        } else {
            0
        }
    }

    /// The part to fetch next, if it is known.
    pub(super) fn next_piece(&self, grid: Grid) -> Option<Piece> {
        match self.revoked.last() {
            Some(Revoked::Piece(piece)) => return Some(piece.clone()),
            // It comes by planning.
            Some(Revoked::Ready(_)) => return None,
            None => {}
        }
        let cursor = self.cursor.as_ref().filter(|cursor| !cursor.discovering)?;
        let range = grid.part_at(cursor.next, cursor.size_bytes(), cursor.lead);
        let algorithm = cursor.algorithm.filter(|_| !cursor.object.is_whole(range));
        Some(Piece {
            object: cursor.object.clone(),
            serial: cursor.serial,
            range,
            algorithm,
            leads: cursor.lead != Lead::Not && range.start == 0,
        })
    }

    /// Opens a slot for the next part.
    pub(super) fn issue(&mut self, piece: Piece) -> (u64, AbortRegistration) {
        if self.revoked.pop().is_none() {
            self.advance(piece.range.end);
        }
        self.outstanding_bytes += piece.charged_bytes();
        self.served_bytes += piece.range.len();
        let slot = self.queue.open();
        let (abort, registration) = AbortHandle::new_pair();
        self.issued.push_back(Issued { slot, piece, abort });
        (slot, registration)
    }

    fn advance(&mut self, end: u64) {
        let Some(cursor) = &mut self.cursor else {
            return;
        };
        cursor.next = end;
        cursor.discovering = !cursor.object.is_pinned();
        if cursor.object.size_bytes == Some(end) && !cursor.discovering {
            self.cursor = None;
        }
    }

    /// What the last part would give back, if it may be taken back: never the head, nor one that pins its object.
    pub(super) fn revocable_bytes(&self) -> Option<u64> {
        let discovering = self
            .cursor
            .as_ref()
            .is_some_and(|cursor| cursor.discovering);
        let last = self.issued.back().filter(|_| !discovering)?;
        (last.slot > self.queue.head()).then(|| last.piece.charged_bytes())
    }

    /// Takes the last part back, to be fetched again later, and with it what lies behind it: its slot, what is to be
    /// dropped, and the memory that a task holds until it has stopped.
    pub(super) fn revoke(&mut self) -> Option<(u64, Leftovers, u64)> {
        let Issued { slot, piece, abort } = self.issued.pop_back()?;
        let mut leftovers = Leftovers {
            buffers: Vec::new(),
            aborts: vec![abort],
        };
        while let Some(behind) = self.queue.tail().filter(|tail| *tail > slot) {
            // Without an issued piece there is no task: what lies there was ready from the start.
            let ready = self.queue.revoke(behind).flatten();
            self.revoked
                .extend(ready.map(|done| Revoked::Ready(Box::new(done))));
        }
        let ready = self.queue.revoke(slot).flatten();
        let held_bytes = if ready.is_some() {
            0
        } else {
            piece.charged_bytes()
        };
        ready.into_iter().for_each(|done| leftovers.keep(done));
        self.outstanding_bytes -= piece.charged_bytes();
        self.served_bytes = self.served_bytes.saturating_sub(piece.range.len());
        self.revoked.push(Revoked::Piece(piece));
        Some((slot, leftovers, held_bytes))
    }

    /// Takes the next object from the feed, until there is one to fetch or the feed is dry.
    pub(super) fn plan(&mut self, grid: Grid, policy: ChecksumPolicy) -> Option<PlanEvent> {
        loop {
            let done = match self.revoked.last() {
                Some(Revoked::Ready(_)) => match self.revoked.pop() {
                    Some(Revoked::Ready(done)) => *done,
                    _ => unreachable!("it was looked at"),
                },
                // Revoked pieces come before everything that is still to be planned, empty objects and errors included.
                Some(Revoked::Piece(_)) => return None,
                None if self.cursor.is_some() || self.exhausted => return None,
                None => match self.next_object(grid, policy) {
                    Begun::Empty(done) => done,
                    Begun::Fetch(event) => return event,
                },
            };
            let slot = self.queue.open();
            let wake = self
                .queue
                .complete(slot, done)
                .expect("a slot that was just opened is empty");
            if let Some(waker) = wake {
                return Some(PlanEvent::Wake(waker));
            }
        }
    }

    fn next_object(&mut self, grid: Grid, policy: ChecksumPolicy) -> Begun {
        // Set before looking: a lister that sends after the look sees it.
        self.source.starved.store(true, Ordering::SeqCst);
        match self.source.feed.try_recv() {
            Ok(Feed::Object(planned)) => self.begin(planned, grid, policy),
            Ok(Feed::Failed(error)) => Begun::Empty(self.ended_by(error)),
            Ok(Feed::End) => {
                self.exhausted = true;
                Begun::Fetch(self.queue.wake().map(PlanEvent::Wake))
            }
            Err(TryRecvError::Empty) => Begun::Fetch(None),
            Err(TryRecvError::Disconnected) => Begun::Empty(self.ended_by(Error::Internal {
                what: "the listing's task".into(),
            })),
        }
    }

    fn ended_by(&mut self, error: Error) -> Done {
        self.exhausted = true;
        Done::Failed(error)
    }

    fn begin(&mut self, planned: Planned, grid: Grid, policy: ChecksumPolicy) -> Begun {
        let serial = self.objects_begun;
        self.objects_begun += 1;
        let object = Arc::new(planned.id);
        if object.size_bytes == Some(0) {
            let buf = PartBuf::heap(0);
            let empty = Part {
                object,
                offset: 0,
                buf,
                ends_object: true,
                serial,
                whole: Some(true),
                charged_bytes: 0,
            };
            return Begun::Empty(Done::Part(empty));
        }
        // Of an object that no listing described, the usual CRC is kept: what the server has is told too late.
        let usual = (!object.is_pinned()).then_some(ChecksumAlgorithm::Crc64Nvme);
        let algorithm = planned
            .algorithm
            .or(usual)
            .filter(|_| policy != ChecksumPolicy::Off);
        // The first that has bytes: many prefixes begin with an empty object that stands for a directory.
        let lead = match std::mem::replace(&mut self.source.lead, Lead::Not) {
            Lead::Not => Lead::Not,
            _ if !object.is_pinned() => Lead::Blind,
            // A small object whose checksum no listing told is fetched whole: only that answer may tell it.
            Lead::Any if algorithm.is_none() && policy != ChecksumPolicy::Off => Lead::Large,
            lead => lead,
        };
        let cursor = Cursor {
            object,
            algorithm,
            lead,
            serial,
            next: planned.start,
            discovering: false,
        };
        if planned.start > 0 {
            self.verifier = Verifier::after(planned.before);
        }
        let first = grid.part_at(planned.start, cursor.size_bytes(), lead);
        let in_parts = planned.start > 0 || first.end < cursor.size_bytes();
        // A HEAD asks for the newest version.
        let is_newest = cursor.object.version_id.is_none();
        let head = (in_parts && is_newest && algorithm.is_some()).then(|| {
            let (abort, registration) = AbortHandle::new_pair();
            self.checks.push_back(Check {
                serial,
                answer: None,
                abort,
            });
            PlanEvent::Head(serial, cursor.object.uri.clone(), registration)
        });
        self.cursor = Some(cursor);
        Begun::Fetch(head)
    }

    /// The task of slot `slot` has ended.
    pub(super) fn complete(
        &mut self,
        slot: u64,
        piece: &Piece,
        buf: PartBuf,
        outcome: Result<GetMeta>,
    ) -> (Option<Waker>, Leftovers) {
        // A revoked part must not fail the stream, nor pin anything.
        if self
            .issued
            .binary_search_by_key(&slot, |issued| issued.slot)
            .is_err()
        {
            return (None, Leftovers::of(buf));
        }
        let mut leftovers = Leftovers::default();
        let done = match outcome.and_then(|meta| self.accept(piece, &buf, &meta)) {
            Ok(accepted) => Done::Part(accepted.part(piece, buf)),
            Err(error) => {
                leftovers = self.fail_after(slot);
                let sound = !matches!(error.root(), Error::Corrupt { .. });
                if sound && !buf.filled().is_empty() {
                    let accepted = Accepted {
                        object: piece.object.clone(),
                        ends_object: false,
                        whole: None,
                    };
                    Done::Broken(accepted.part(piece, buf), error)
                } else {
                    self.outstanding_bytes -= piece.charged_bytes();
                    leftovers.buffers.push(buf);
                    Done::Failed(error)
                }
            }
        };
        let wake = self.queue.complete(slot, done).unwrap_or_else(|done| {
            leftovers.keep(done);
            None
        });
        (wake, leftovers)
    }

    /// Checks that the part is what was asked for, and pins an object that was unknown until now.
    fn accept(&mut self, piece: &Piece, buf: &PartBuf, meta: &GetMeta) -> Result<Accepted> {
        let filled = buf.filled().len() as u64;
        let end = piece.range.start + filled;
        if end != piece.range.end.min(meta.size_bytes) {
            return Err(Error::Corrupt {
                uri: piece.object.uri.to_string(),
                offset: end,
                reason: format!(
                    "{filled} bytes of {} arrived, of an object of {}",
                    piece.range, meta.size_bytes
                ),
                answer: Box::default(),
            });
        }
        let object = if piece.object.is_pinned() {
            piece.object.clone()
        } else {
            self.pin(piece, meta, end)
        };
        let ends_object = object.size_bytes == Some(end);
        let whole = (ends_object && piece.range.start == 0).then_some(meta.checksum.is_some());
        Ok(Accepted {
            object,
            ends_object,
            whole,
        })
    }

    /// The first answer tells the object's size and version: the parts after it are read from just that.
    fn pin(&mut self, piece: &Piece, meta: &GetMeta, end: u64) -> Arc<ObjectId> {
        let etag = meta.etag.clone().or_else(|| piece.object.etag.clone());
        let object = Arc::new(ObjectId {
            etag,
            size_bytes: Some(meta.size_bytes),
            ..(*piece.object).clone()
        });
        if let Some(cursor) = self
            .cursor
            .as_mut()
            .filter(|cursor| cursor.serial == piece.serial)
        {
            cursor.object = object.clone();
            cursor.discovering = false;
            if end >= meta.size_bytes {
                self.cursor = None;
            }
        }
        object
    }

    /// The part in `slot` failed: nothing after it will be delivered. It is no longer issued, so that nobody revokes
    /// it: fetched again it might succeed, and with the plan behind it forgotten that would look like the end.
    fn fail_after(&mut self, slot: u64) -> Leftovers {
        let mut leftovers = Leftovers {
            buffers: Vec::new(),
            aborts: vec![self.source.lister.clone()],
        };
        self.forget_plan(&mut leftovers);
        while let Some(issued) = self.issued.pop_back_if(|issued| issued.slot >= slot) {
            if issued.slot > slot {
                self.outstanding_bytes -= issued.piece.charged_bytes();
                leftovers.aborts.push(issued.abort);
            }
        }
        while let Some(behind) = self.queue.tail().filter(|tail| *tail > slot) {
            let ready = self.queue.revoke(behind).flatten();
            ready.into_iter().for_each(|done| leftovers.keep(done));
        }
        leftovers
    }

    /// Ends the stream for good.
    pub(super) fn stop(&mut self) -> Leftovers {
        self.outstanding_bytes = 0;
        let fetches = self.issued.drain(..).map(|issued| issued.abort);
        let checks = self.checks.drain(..).map(|check| check.abort);
        let aborts = fetches
            .chain(checks)
            .chain([self.source.lister.clone()])
            .collect();
        let mut leftovers = Leftovers {
            buffers: Vec::new(),
            aborts,
        };
        self.forget_plan(&mut leftovers);
        self.queue
            .close()
            .into_iter()
            .for_each(|done| leftovers.keep(done));
        leftovers
    }

    fn forget_plan(&mut self, leftovers: &mut Leftovers) {
        self.exhausted = true;
        self.cursor = None;
        for revoked in self.revoked.drain(..) {
            if let Revoked::Ready(done) = revoked {
                leftovers.keep(*done);
            }
        }
    }

    /// The answer to a request for an object's checksum.
    pub(super) fn checked(&mut self, serial: u64, answer: Result<ObjectMeta>) -> Option<Waker> {
        let check = self
            .checks
            .iter_mut()
            .find(|check| check.serial == serial)?;
        check.answer = Some(answer);
        self.queue.wake()
    }

    /// The consumer asks for its next part.
    pub(super) fn take(
        &mut self,
        waker: &Waker,
        policy: ChecksumPolicy,
        full_part_bytes: u64,
    ) -> (Take, Option<Verdict>) {
        if let Some(error) = self.broken.take() {
            return (Take::Failed(error, self.stop()), None);
        }
        if self.waits_for_check() {
            self.queue.wait(waker);
            return (Take::Pending, None);
        }
        match self.queue.take(waker) {
            Taken::Ready(Done::Part(part)) => {
                self.delivered(&part);
                let verdict = self.verify(&part, policy);
                match &verdict {
                    Some(Verdict::Bad(error)) => {
                        let error = error.clone();
                        let mut leftovers = self.stop();
                        leftovers.buffers.push(part.buf);
                        (Take::Failed(error, leftovers), verdict)
                    }
                    _ => (Take::Part(part), verdict),
                }
            }
            Taken::Ready(Done::Broken(part, error)) => {
                self.delivered(&part);
                self.broken = Some(error);
                (Take::Part(part), None)
            }
            Taken::Ready(Done::Failed(error)) => (Take::Failed(error, self.stop()), None),
            Taken::Empty if !self.has_more() => (Take::End, None),
            state => {
                self.waiting = true;
                if matches!(state, Taken::Pending) {
                    self.window.stalled(self.outstanding_bytes, full_part_bytes);
                }
                (Take::Pending, None)
            }
        }
    }

    fn delivered(&mut self, part: &Part) {
        self.waiting = false;
        self.outstanding_bytes -= part.charged_bytes;
        while self
            .issued
            .front()
            .is_some_and(|issued| issued.slot < self.queue.head())
        {
            self.issued.pop_front();
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
        let check = self
            .checks
            .iter()
            .position(|check| check.serial == part.serial);
        if let (Some(compared), None) = (part.whole, check) {
            return (!compared).then(|| unverifiable(&part.object, policy));
        }
        self.verifier
            .add(part.buf.digest(), part.buf.filled().len() as u64);
        if !part.ends_object {
            return None;
        }
        let answer = check
            .and_then(|at| self.checks.remove(at))
            .and_then(|check| check.answer);
        Some(std::mem::take(&mut self.verifier).judge(&part.object, answer, policy))
    }
}
