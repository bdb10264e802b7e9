//! What to fetch, keep and give back: the decisions over all open objects, without I/O.
//!
//! Events go in (a read, a part that is done, a handle that closes), and [`Action`]s come out. No bytes are dropped in
//! here, because dropping them tells the budget's listeners, who take the mutex around this: they leave as
//! [`Garbage`].

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use futures::future::{AbortHandle, AbortRegistration};
use tokio::sync::oneshot;

use super::config::ReadConfig;
use super::plan::{self, Access, Detector, SLACK_BYTES};
use crate::buffer::{MemoryBudget, Reservation, class_bytes};
use crate::error::Error;
use crate::object::{ByteRange, ObjectId};

/// Hints that wait to be fetched, at most; those beyond are forgotten.
const MOST_HINTS: usize = 16 << 10;

pub(super) type FileId = u64;
pub(super) type HandleId = u64;

/// What a part's task ended with: the good bytes from the part's start, and what came instead of the rest.
#[derive(Debug, Clone)]
pub(super) struct Arrived {
    pub(super) bytes: Bytes,
    pub(super) error: Option<Error>,
}

/// A piece of what a read wants.
#[derive(Debug)]
pub(super) enum Piece {
    Ready(Bytes),
    /// The part from which to take `range`, once it is there.
    Wait {
        arrival: oneshot::Receiver<Arrived>,
        part_start: u64,
        range: ByteRange,
    },
}

/// To be dropped and stopped outside the lock.
#[derive(Debug, Default)]
pub(super) struct Garbage {
    bytes: Vec<Bytes>,
    aborts: Vec<AbortHandle>,
    /// Bytes that were fetched and never read.
    wasted_bytes: u64,
}

impl Garbage {
    /// Gives it all back; returns how many bytes were fetched for nothing.
    pub(super) fn discard(self) -> u64 {
        self.aborts.iter().for_each(AbortHandle::abort);
        self.wasted_bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.aborts.is_empty()
    }
}

/// Something for the shell to do.
pub(super) enum Action {
    Fetch(Fetch),
    Discard(Garbage),
}

/// One part to fetch.
pub(super) struct Fetch {
    pub(super) ticket: Ticket,
    pub(super) object: Arc<ObjectId>,
    /// `None`: beyond the budget.
    pub(super) reservation: Option<Reservation>,
    pub(super) abort: AbortRegistration,
}

/// What a fetching task knows of its part.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ticket {
    file: FileId,
    serial: u64,
    pub(super) range: ByteRange,
    cause: Cause,
}

/// Who asked for a part first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    Read,
    Ahead(HandleId),
    Hint,
}

#[derive(Debug)]
enum State {
    Queued,
    Fetching(AbortHandle),
    Ready { bytes: Bytes, tick: u64 },
}

#[derive(Debug)]
struct Part {
    serial: u64,
    end: u64,
    cause: Cause,
    /// Some read took bytes of it.
    is_read: bool,
    state: State,
    waiters: Vec<oneshot::Sender<Arrived>>,
}

impl Part {
    fn is_wanted(&self) -> bool {
        self.waiters.iter().any(|waiter| !waiter.is_closed())
    }
}

#[derive(Debug)]
struct File {
    object: Arc<ObjectId>,
    size: u64,
    handles: Vec<HandleId>,
    /// By start; they never overlap.
    parts: BTreeMap<u64, Part>,
    /// Fetching ahead failed here: only a read tries again.
    barred_from: u64,
}

impl File {
    /// Where the first part from `at` on begins, or the end.
    fn next_start(&self, at: u64) -> u64 {
        self.parts
            .range(at..)
            .next()
            .map_or(self.size, |(start, _)| *start)
    }

    fn covering(&self, at: u64) -> Option<u64> {
        let (start, part) = self.parts.range(..=at).next_back()?;
        (part.end > at).then_some(*start)
    }

    /// The end of what is there or under way without a gap from `at` on.
    fn covered_to(&self, mut at: u64) -> u64 {
        while let Some(start) = self.covering(at) {
            at = self.parts[&start].end;
        }
        at
    }
}

#[derive(Debug)]
struct Handle {
    file: FileId,
    detector: Detector,
    /// Everything from the detector's end to here is there or under way.
    ahead_end: u64,
    /// Parts before this were given up by this handle.
    released_to: u64,
    is_hungry: bool,
    /// The part for which the window last grew.
    stalled_at: Option<u64>,
}

/// The state of all open objects.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) config: ReadConfig,
    budget: MemoryBudget,
    files: HashMap<FileId, File>,
    ids: HashMap<Arc<ObjectId>, FileId>,
    handles: HashMap<HandleId, Handle>,
    next_id: u64,
    /// Ready parts that were read, by when.
    used: BTreeMap<u64, (FileId, u64)>,
    /// Parts that reads wait for and that have no memory yet.
    demand: VecDeque<(FileId, u64, u64)>,
    /// Handles whose windows have room, in turn.
    hungry: VecDeque<HandleId>,
    hints: VecDeque<(FileId, ByteRange)>,
    in_flight: usize,
    in_flight_bytes: u64,
    reads_in_flight: usize,
    /// Tasks under way whose parts were given up: their memory is about to come back.
    revoking: usize,
    pub(super) overdraft_bytes: u64,
}

impl Core {
    pub(super) fn new(config: ReadConfig, budget: MemoryBudget) -> Self {
        Self {
            config,
            budget,
            files: HashMap::new(),
            ids: HashMap::new(),
            handles: HashMap::new(),
            next_id: 0,
            used: BTreeMap::new(),
            demand: VecDeque::new(),
            hungry: VecDeque::new(),
            hints: VecDeque::new(),
            in_flight: 0,
            in_flight_bytes: 0,
            reads_in_flight: 0,
            revoking: 0,
            overdraft_bytes: 0,
        }
    }

    fn fresh(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// A new handle; those on one version of an object share its parts.
    pub(super) fn open(&mut self, object: ObjectId, size: u64) -> HandleId {
        let file = self.file(object, size);
        let id = self.fresh();
        let handle = Handle {
            file,
            detector: Detector::default(),
            ahead_end: 0,
            released_to: 0,
            is_hungry: false,
            stalled_at: None,
        };
        self.handles.insert(id, handle);
        self.files
            .get_mut(&file)
            .expect("just looked up")
            .handles
            .push(id);
        id
    }

    fn file(&mut self, object: ObjectId, size: u64) -> FileId {
        if let Some(id) = self.ids.get(&object) {
            return *id;
        }
        let (id, object) = (self.fresh(), Arc::new(object));
        self.ids.insert(object.clone(), id);
        let file = File {
            object,
            size,
            handles: Vec::new(),
            parts: BTreeMap::new(),
            barred_from: u64::MAX,
        };
        self.files.insert(id, file);
        id
    }

    /// Forgets a handle, and with an object's last one all of its parts.
    pub(super) fn close(&mut self, id: HandleId) -> Garbage {
        let mut garbage = Garbage::default();
        let Some(handle) = self.handles.remove(&id) else {
            return garbage;
        };
        let Some(file) = self.files.get_mut(&handle.file) else {
            return garbage;
        };
        file.handles.retain(|other| *other != id);
        let is_last = file.handles.is_empty();
        let mine = file.parts.iter().filter(|(_, part)| {
            is_last || (part.cause == Cause::Ahead(id) && !part.is_read && !part.is_wanted())
        });
        let starts: Vec<u64> = mine.map(|(start, _)| *start).collect();
        for start in starts {
            self.remove(handle.file, start, &mut garbage);
        }
        if is_last {
            self.hints.retain(|(file, _)| *file != handle.file);
            self.forget(handle.file);
        }
        garbage
    }

    fn forget(&mut self, id: FileId) {
        if let Some(file) = self.files.remove(&id) {
            self.ids.remove(&file.object);
        }
    }

    /// Takes a part out; windows that counted on it begin before it again.
    fn remove(&mut self, id: FileId, start: u64, garbage: &mut Garbage) {
        let Some(file) = self.files.get_mut(&id) else {
            return;
        };
        let Some(part) = file.parts.remove(&start) else {
            return;
        };
        for handle in &file.handles {
            if let Some(handle) = self.handles.get_mut(handle) {
                handle.ahead_end = handle.ahead_end.min(start);
            }
        }
        match part.state {
            State::Queued => {}
            State::Fetching(abort) => {
                self.revoking += 1;
                garbage.aborts.push(abort);
            }
            State::Ready { bytes, tick } => {
                self.used.remove(&tick);
                if !part.is_read {
                    garbage.wasted_bytes += bytes.len() as u64;
                }
                garbage.bytes.push(bytes);
            }
        }
    }

    /// A read of a range within the object: its pieces in order, and what it made superfluous.
    pub(super) fn read(&mut self, id: HandleId, range: ByteRange) -> (Vec<Piece>, Garbage) {
        let Some(handle) = self.handles.get_mut(&id) else {
            return (Vec::new(), Garbage::default());
        };
        let (file, config) = (handle.file, &self.config);
        let size = self.files[&file].size;
        let access = handle.detector.observe(range, size, config);
        let pieces = self.pieces(id, file, range, access);
        let garbage = self.release(id);
        self.feed(id);
        (pieces, garbage)
    }

    /// Whether all of a range is ready.
    pub(super) fn is_ready(&self, id: HandleId, range: ByteRange) -> bool {
        let Some(file) = self
            .handles
            .get(&id)
            .and_then(|handle| self.files.get(&handle.file))
        else {
            return false;
        };
        let mut at = range.start;
        while at < range.end {
            let part = file.covering(at).map(|start| &file.parts[&start]);
            match part {
                Some(Part {
                    state: State::Ready { .. },
                    end,
                    ..
                }) => at = *end,
                _ => return false,
            }
        }
        true
    }

    fn pieces(
        &mut self,
        id: HandleId,
        file_id: FileId,
        range: ByteRange,
        access: Access,
    ) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let file = &self.files[&file_id];
            let start = match file.covering(at) {
                Some(start) => start,
                None => self.demand(id, file_id, at, range.end, access),
            };
            let end = self.files[&file_id].parts[&start].end.min(range.end);
            pieces.push(self.piece(id, file_id, start, ByteRange::new(at, end)));
            at = end;
        }
        pieces
    }

    fn piece(&mut self, id: HandleId, file_id: FileId, start: u64, range: ByteRange) -> Piece {
        let tick = self.fresh();
        let file = self.files.get_mut(&file_id).expect("an open object");
        let part = file
            .parts
            .get_mut(&start)
            .expect("a part that was just found");
        if let State::Ready { bytes, tick: last } = &mut part.state {
            self.used.remove(last);
            *last = tick;
            part.is_read = true;
            self.used.insert(tick, (file_id, start));
            return Piece::Ready(
                bytes.slice((range.start - start) as usize..(range.end - start) as usize),
            );
        }
        let (sender, arrival) = oneshot::channel();
        part.waiters.retain(|waiter| !waiter.is_closed());
        part.waiters.push(sender);
        let handle = self.handles.get_mut(&id).expect("an open handle");
        // Once for each part: the requests that the kernel sends side by side wait together.
        if handle.stalled_at != Some(start) {
            handle.stalled_at = Some(start);
            handle.detector.grow(&self.config);
        }
        Piece::Wait {
            arrival,
            part_start: start,
            range,
        }
    }

    /// Queues the part that covers `at`, cut where others begin; returns its start.
    fn demand(
        &mut self,
        id: HandleId,
        file_id: FileId,
        at: u64,
        until: u64,
        access: Access,
    ) -> u64 {
        let serial = self.fresh();
        let window_bytes = self.handles[&id].detector.window_bytes;
        let file = self.files.get_mut(&file_id).expect("an open object");
        let wanted = plan::demand(access, at, until, file.size, window_bytes, &self.config);
        let before = file
            .parts
            .range(..=at)
            .next_back()
            .map_or(0, |(_, part)| part.end);
        let range = ByteRange::new(
            wanted.start.max(before),
            wanted.end.min(file.next_start(at)),
        );
        if range.end > file.barred_from {
            file.barred_from = u64::MAX;
        }
        let part = Part {
            serial,
            end: range.end,
            cause: Cause::Read,
            is_read: false,
            state: State::Queued,
            waiters: Vec::new(),
        };
        file.parts.insert(range.start, part);
        self.demand.push_back((file_id, range.start, serial));
        range.start
    }

    /// Lets go of the parts that a handle that reads in order has left behind, unless another will come by.
    fn release(&mut self, id: HandleId) -> Garbage {
        let mut garbage = Garbage::default();
        let handle = &self.handles[&id];
        let detector = handle.detector;
        let file = &self.files[&handle.file];
        // A small object is read again in no time, by seeks within a header for example.
        if detector.window_bytes == 0 || file.size <= self.config.part_bytes {
            return garbage;
        }
        // A read that was overtaken reaches back by its own length too.
        let to = detector.end.saturating_sub(2 * SLACK_BYTES);
        let others: Vec<Detector> = file
            .handles
            .iter()
            .filter(|other| **other != id)
            .map(|other| self.handles[other].detector)
            .collect();
        let is_needed = |start: u64, end: u64| {
            others.iter().any(|other| {
                other.end < end.saturating_add(SLACK_BYTES)
                    && start <= other.end.saturating_add(other.window_bytes)
            })
        };
        let from = handle.released_to.max(detector.begin).min(to);
        let behind = file
            .parts
            .range(from..to)
            .filter(|(_, part)| part.end <= to && matches!(part.state, State::Ready { .. }));
        let spent: Vec<u64> = behind
            .filter(|(start, part)| !is_needed(**start, part.end))
            .map(|(start, _)| *start)
            .collect();
        let first_open = file
            .parts
            .range(from..)
            .find(|(_, part)| part.end > to)
            .map_or(to, |(start, _)| *start);
        let file_id = handle.file;
        for start in spent {
            self.remove(file_id, start, &mut garbage);
        }
        if let Some(handle) = self.handles.get_mut(&id) {
            handle.released_to = first_open.min(to);
        }
        garbage
    }

    /// Notes that a handle's window may have room.
    fn feed(&mut self, id: HandleId) {
        if self.ahead(id).is_none() {
            return;
        }
        let handle = self.handles.get_mut(&id).expect("an open handle");
        if !handle.is_hungry {
            handle.is_hungry = true;
            self.hungry.push_back(id);
        }
    }

    /// The part that a handle's window has room for.
    fn ahead(&mut self, id: HandleId) -> Option<ByteRange> {
        // Most of what is open is small, and to share is to count all of it.
        let handle = self.handles.get(&id)?;
        let size = self.files.get(&handle.file)?.size;
        if handle.detector.window_bytes == 0 || size <= self.config.part_bytes {
            return None;
        }
        let share_bytes = self.share_bytes();
        let handle = self.handles.get_mut(&id)?;
        let file = self.files.get(&handle.file)?;
        let end = handle.detector.end;
        handle.ahead_end = file.covered_to(handle.ahead_end.max(end));
        let window_bytes = handle.detector.window_bytes.min(share_bytes);
        let part = plan::ahead(handle.ahead_end, end, file.size, window_bytes, &self.config)?;
        let part = ByteRange::new(part.start, part.end.min(file.next_start(part.start)));
        (part.end <= file.barred_from).then_some(part)
    }

    /// What each handle that reads in order may have ahead.
    fn share_bytes(&self) -> u64 {
        let readers = self
            .handles
            .values()
            .filter(|handle| handle.detector.window_bytes > 0)
            .count() as u64;
        (self.budget.limit() - self.kept_for_reads()) / readers.max(1)
    }

    /// What fetching ahead leaves free, so that a random read need not wait for a task to stop.
    fn kept_for_reads(&self) -> u64 {
        class_bytes(self.config.part_bytes).min(self.budget.limit() / 4)
    }

    /// The next thing to do, or `None` until another event.
    pub(super) fn next_action(&mut self) -> Option<Action> {
        while let Some(&(file, start, serial)) = self.demand.front() {
            let is_wanted = self.part(file, start, serial).map(|part| part.is_wanted());
            match is_wanted {
                Some(true) => return self.serve(file, start),
                Some(false) => self.remove(file, start, &mut Garbage::default()),
                None => {}
            }
            self.demand.pop_front();
        }
        if !self.config.has_slot(self.in_flight, self.in_flight_bytes) {
            return None;
        }
        let hint = self.serve_hint();
        // A window is of a file that is not small, whatever its next part is.
        let has_slot = self.in_flight < self.config.concurrency;
        hint.or_else(|| has_slot.then(|| self.serve_window()).flatten())
    }

    fn part(&self, file: FileId, start: u64, serial: u64) -> Option<&Part> {
        self.files
            .get(&file)?
            .parts
            .get(&start)
            .filter(|part| part.serial == serial)
    }

    /// Finds memory for the read at the head of the queue.
    fn serve(&mut self, file: FileId, start: u64) -> Option<Action> {
        let end = self.files[&file].parts[&start].end;
        let mut reservation = self.budget.try_reserve(class_bytes(end - start), 0);
        if reservation.is_none() {
            if let Some(garbage) = self.reclaim(None).or_else(|| self.revoke()) {
                return Some(Action::Discard(garbage));
            }
            if self.revoking > 0 || self.reads_in_flight > 0 {
                return None;
            }
            // Consumers hold it all: this read has only what it needs beyond the budget.
            reservation = self.reserve_or_overdraw(file, start);
        }
        self.demand.pop_front();
        self.reads_in_flight += 1;
        Some(Action::Fetch(self.issue(file, start, reservation)))
    }

    /// Memory for a part, which goes beyond the budget when there is none.
    fn reserve_or_overdraw(&mut self, file: FileId, start: u64) -> Option<Reservation> {
        let part = self.files.get_mut(&file)?.parts.get_mut(&start)?;
        let reservation = self.budget.try_reserve(class_bytes(part.end - start), 0);
        if reservation.is_none() {
            self.overdraft_bytes += part.end - start;
        }
        reservation
    }

    fn issue(&mut self, file_id: FileId, start: u64, reservation: Option<Reservation>) -> Fetch {
        let (handle, abort) = AbortHandle::new_pair();
        let file = self.files.get_mut(&file_id).expect("an open object");
        let object = file.object.clone();
        let part = file.parts.get_mut(&start).expect("a queued part");
        part.state = State::Fetching(handle);
        let ticket = Ticket {
            file: file_id,
            serial: part.serial,
            range: ByteRange::new(start, part.end),
            cause: part.cause,
        };
        self.in_flight += 1;
        self.in_flight_bytes += ticket.range.len();
        Fetch {
            ticket,
            object,
            reservation,
            abort,
        }
    }

    /// Gives up the part that was used the longest ago; `spare`: not one that a reader is about to go on in.
    fn reclaim(&mut self, spare: Option<()>) -> Option<Garbage> {
        let mut order = self.used.values();
        let (file, start) = *match spare {
            None => order.next(),
            Some(()) => order.find(|(file, start)| !self.is_current(*file, *start)),
        }?;
        let mut garbage = Garbage::default();
        self.remove(file, start, &mut garbage);
        Some(garbage)
    }

    fn is_current(&self, file: FileId, start: u64) -> bool {
        let file = &self.files[&file];
        let end = file.parts[&start].end;
        let readers = file
            .handles
            .iter()
            .map(|handle| self.handles[handle].detector);
        readers
            .into_iter()
            .any(|reader| reader.window_bytes > 0 && (start..end).contains(&reader.end))
    }

    /// Takes back what was fetched ahead and nobody waits for, the furthest first.
    fn revoke(&mut self) -> Option<Garbage> {
        if self.revoking > 0 {
            return None;
        }
        let mut furthest: Option<(u64, FileId, u64)> = None;
        for (id, file) in &self.files {
            for (start, part) in &file.parts {
                if part.cause == Cause::Read
                    || part.is_read
                    || part.is_wanted()
                    || matches!(part.state, State::Queued)
                {
                    continue;
                }
                let distance = match part.cause {
                    Cause::Ahead(handle) => self
                        .handles
                        .get(&handle)
                        .map_or(u64::MAX, |handle| start.saturating_sub(handle.detector.end)),
                    _ => 0,
                };
                furthest = furthest.max(Some((distance, *id, *start)));
            }
        }
        let (_, file, start) = furthest?;
        let mut garbage = Garbage::default();
        self.remove(file, start, &mut garbage);
        Some(garbage)
    }

    /// Reserves for what nobody waits for.
    fn reserve_spare(&mut self, bytes: u64) -> Result<Reservation, Option<Garbage>> {
        self.budget
            .try_reserve(bytes, self.kept_for_reads())
            .ok_or_else(|| self.reclaim(Some(())))
    }

    fn serve_hint(&mut self) -> Option<Action> {
        loop {
            let (file_id, range) = *self.hints.front()?;
            let Some(file) = self.files.get(&file_id) else {
                self.hints.pop_front();
                continue;
            };
            let at = file.covered_to(range.start);
            if at >= range.end {
                self.hints.pop_front();
                continue;
            }
            let part_bytes = self.config.part_bytes;
            let end = range
                .end
                .min((at / part_bytes + 1) * part_bytes)
                .min(file.next_start(at));
            return match self.reserve_spare(class_bytes(end - at)) {
                Ok(reservation) => Some(Action::Fetch(self.start(
                    file_id,
                    ByteRange::new(at, end),
                    Cause::Hint,
                    reservation,
                ))),
                Err(garbage) => garbage.map(Action::Discard),
            };
        }
    }

    fn serve_window(&mut self) -> Option<Action> {
        while let Some(id) = self.hungry.front().copied() {
            let Some(part) = self.ahead(id) else {
                self.hungry.pop_front();
                if let Some(handle) = self.handles.get_mut(&id) {
                    handle.is_hungry = false;
                }
                continue;
            };
            return match self.reserve_spare(class_bytes(part.len())) {
                Ok(reservation) => {
                    self.hungry.rotate_left(1);
                    let file = self.handles[&id].file;
                    Some(Action::Fetch(self.start(
                        file,
                        part,
                        Cause::Ahead(id),
                        reservation,
                    )))
                }
                Err(garbage) => garbage.map(Action::Discard),
            };
        }
        None
    }

    fn start(
        &mut self,
        file_id: FileId,
        range: ByteRange,
        cause: Cause,
        reservation: Reservation,
    ) -> Fetch {
        let serial = self.fresh();
        let part = Part {
            serial,
            end: range.end,
            cause,
            is_read: false,
            state: State::Queued,
            waiters: Vec::new(),
        };
        self.files
            .get_mut(&file_id)
            .expect("an open object")
            .parts
            .insert(range.start, part);
        self.issue(file_id, range.start, Some(reservation))
    }

    /// Fetches ranges of a handle's object before they are read, in this order.
    pub(super) fn hint(&mut self, id: HandleId, ranges: &[ByteRange]) {
        let Some(file_id) = self.handles.get(&id).map(|handle| handle.file) else {
            return;
        };
        let file = &self.files[&file_id];
        let (size, edge) = (
            file.size,
            if self.config.over_cache {
                self.config.block_bytes
            } else {
                1
            },
        );
        let room = MOST_HINTS.saturating_sub(self.hints.len());
        for range in ranges.iter().take(room) {
            let whole = size <= self.config.part_bytes;
            let start = if whole { 0 } else { range.start / edge * edge };
            let end = if whole {
                size
            } else {
                range.end.div_ceil(edge).saturating_mul(edge).min(size)
            };
            if start < end && range.start < size {
                self.hints.push_back((file_id, ByteRange::new(start, end)));
            }
        }
    }

    pub(super) fn has_hints(&self) -> bool {
        !self.hints.is_empty()
    }

    /// A part's task has ended. Returns who waits for it, and what to drop.
    pub(super) fn complete(
        &mut self,
        ticket: &Ticket,
        arrived: &Arrived,
    ) -> (Vec<oneshot::Sender<Arrived>>, Garbage) {
        self.in_flight -= 1;
        self.in_flight_bytes -= ticket.range.len();
        if ticket.cause == Cause::Read {
            self.reads_in_flight -= 1;
        }
        let mut garbage = Garbage::default();
        let tick = self.fresh();
        let start = ticket.range.start;
        if self.part(ticket.file, start, ticket.serial).is_none() {
            self.revoking -= 1;
            garbage.wasted_bytes += arrived.bytes.len() as u64;
            return (Vec::new(), garbage);
        }
        let file = self.files.get_mut(&ticket.file).expect("an open object");
        let part = file
            .parts
            .get_mut(&start)
            .expect("a part that was just found");
        let waiters = std::mem::take(&mut part.waiters);
        // Its task is over: there is nothing to stop any more.
        part.state = State::Queued;
        if arrived.error.is_some() {
            if let Cause::Ahead(handle) = ticket.cause {
                file.barred_from = file.barred_from.min(start + arrived.bytes.len() as u64);
                if let Some(handle) = self.handles.get_mut(&handle) {
                    handle.detector.collapse();
                }
            }
            self.remove(ticket.file, start, &mut garbage);
            return (waiters, garbage);
        }
        let is_read = waiters.iter().any(|waiter| !waiter.is_closed());
        part.is_read = is_read;
        part.state = State::Ready {
            bytes: arrived.bytes.clone(),
            tick,
        };
        if is_read
            || ticket.cause == Cause::Read
            || (self.config.over_cache && ticket.cause == Cause::Hint)
        {
            self.used.insert(tick, (ticket.file, start));
        }
        (waiters, garbage)
    }
}
