//! What to fetch next: the engine's decisions over all its streams, without I/O.
//!
//! [`Core`] is driven by events and answers with [`Action`]s; `task.rs` holds it behind one mutex and carries the
//! actions out. No buffer is dropped in here, because dropping one tells the budget's listeners, who take that mutex.
//!
//! Memory is shared by three rules. A stream takes no more than its *fair share*, the budget divided by the streams
//! that still read. One part of it, the *head credit*, stays free while the stream has none under way. When a new
//! stream makes the shares smaller and finds the memory taken, the parts at the far end of the stream with the most
//! are *revoked*: dropped, and fetched again later. So is, for a consumer that waits and has nothing under way, whatever
//! lies behind another stream's head: a stream that has no more to fetch counts in no share, and may still hold the
//! memory that it took while it was alone.

use std::collections::BTreeMap;
use std::task::Waker;
use std::time::{Duration, Instant};

use futures::future::AbortRegistration;

use super::config::PrefetchConfig;
use super::plan::Grid;
use super::stream::{Leftovers, Piece, PlanEvent, Source, Stream, Take};
use super::verify::Verdict;
use super::window::ReadWindow;
use crate::buffer::{MemoryBudget, PartBuf, Reservation, class_bytes};
use crate::client::GetMeta;
use crate::error::{Error, Result};
use crate::object::{ObjectMeta, ObjectUri};

/// After this many parts for consumers that wait, one goes to read-ahead, so that it never starves wholly.
const URGENT_RUN: u32 = 7;

pub(super) type StreamId = u64;

/// Something for the shell to do, outside the lock.
pub(super) enum Action {
    Fetch(Fetch),
    Head(HeadCheck),
    Wake(Waker),
    Discard(Leftovers),
}

/// The checksum of one object to ask for.
pub(super) struct HeadCheck {
    pub(super) stream: StreamId,
    pub(super) serial: u64,
    pub(super) uri: ObjectUri,
    pub(super) abort: AbortRegistration,
}

/// One part to fetch.
pub(super) struct Fetch {
    pub(super) ticket: Ticket,
    /// `None`: beyond the budget, because the consumer holds all of it.
    pub(super) reservation: Option<Reservation>,
    pub(super) abort: AbortRegistration,
}

/// What a fetching task knows of its part.
#[derive(Debug)]
pub(super) struct Ticket {
    stream: StreamId,
    slot: u64,
    pub(super) piece: Piece,
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
    /// Tickets that were revoked while their tasks ran, and the memory that those still hold.
    revoking: BTreeMap<(StreamId, u64), u64>,
    memory_blocked_since: Option<Instant>,
    tally: Tally,
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
            revoking: BTreeMap::new(),
            memory_blocked_since: None,
            tally: Tally::default(),
        }
    }

    /// Registers a stream; refused when not every stream could have its head part in memory.
    pub(super) fn open(&mut self, source: Source, largest_part_bytes: u64) -> Result<StreamId> {
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
        let window = ReadWindow::new(self.config.initial_window_bytes);
        let served_bytes = self
            .live()
            .map(|stream| stream.served_bytes)
            .min()
            .unwrap_or(0);
        let id = self.next_stream;
        self.next_stream += 1;
        self.streams
            .insert(id, Stream::new(source, window, served_bytes, credit_bytes));
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

    /// The next thing to do, or `None` until another event.
    pub(super) fn next_action(&mut self, now: Instant) -> Option<Action> {
        if let Some(action) = self.plan() {
            return Some(action);
        }
        if self.in_flight >= self.config.concurrency {
            return None;
        }
        let share = self.share_bytes();
        let candidates = self.candidates(share);
        for (id, piece) in &candidates {
            let reservation = self.reserve(*id, piece);
            if reservation.is_none() {
                if let Some(leftovers) = self.revoke_for(*id, piece, share) {
                    return Some(Action::Discard(leftovers));
                }
                if !self.may_overdraw(*id) {
                    continue;
                }
            }
            if let Some(since) = self.memory_blocked_since.take() {
                self.tally.memory_blocked += now.saturating_duration_since(since);
            }
            return Some(Action::Fetch(self.issue(*id, piece.clone(), reservation)));
        }
        if !candidates.is_empty() {
            self.memory_blocked_since.get_or_insert(now);
        }
        None
    }

    fn live(&self) -> impl Iterator<Item = &Stream> {
        self.streams.values().filter(|stream| stream.has_more())
    }

    fn share_bytes(&self) -> u64 {
        self.budget.limit() / (self.live().count() as u64).max(1)
    }

    /// Gives every stream that lacks one its next object.
    fn plan(&mut self) -> Option<Action> {
        let (grid, policy) = (self.grid, self.config.checksums);
        let mut streams = self.streams.iter_mut();
        let (id, event) =
            streams.find_map(|(id, stream)| Some((*id, stream.plan(grid, policy)?)))?;
        Some(match event {
            PlanEvent::Wake(waker) => Action::Wake(waker),
            PlanEvent::Head(serial, uri, abort) => Action::Head(HeadCheck {
                stream: id,
                serial,
                uri,
                abort,
            }),
        })
    }

    /// The parts that could be fetched, the most deserving first: those whose consumer waits and has nothing under
    /// way, then by bytes served.
    fn candidates(&mut self, share_bytes: u64) -> Vec<(StreamId, Piece)> {
        let mut candidates: Vec<(bool, u64, StreamId, Piece)> = Vec::new();
        for (id, stream) in &self.streams {
            let Some(piece) = stream.next_piece(self.grid) else {
                continue;
            };
            let share_bytes = share_bytes.max(stream.credit_bytes);
            if stream
                .window
                .admits(stream.outstanding_bytes, piece.charged_bytes(), share_bytes)
            {
                candidates.push((!stream.is_urgent(), stream.served_bytes, *id, piece));
            }
        }
        candidates.sort_by_key(|(patient, served_bytes, id, _)| (*patient, *served_bytes, *id));
        let first_patient = candidates.iter().position(|candidate| candidate.0);
        self.urgent_run = match (candidates.first(), first_patient) {
            (Some((false, ..)), Some(at)) if self.urgent_run >= URGENT_RUN => {
                candidates.swap(0, at);
                0
            }
            (Some((false, ..)), _) => self.urgent_run + 1,
            _ => 0,
        };
        candidates
            .into_iter()
            .map(|(_, _, id, piece)| (id, piece))
            .collect()
    }

    /// Takes the memory for a part, leaving the head credits of the other streams free.
    fn reserve(&self, id: StreamId, piece: &Piece) -> Option<Reservation> {
        let others = self.streams.iter().filter(|(other, _)| **other != id);
        let keep_free = others.map(|(_, stream)| stream.idle_credit_bytes()).sum();
        self.budget.try_reserve(piece.charged_bytes(), keep_free)
    }

    /// Takes a part back from the stream that exceeds its share the most, if stream `id` is within its own; for an
    /// urgent one, from the stream that has the most behind its head. One at a time: memory that a stopped task still
    /// holds is on its way.
    fn revoke_for(&mut self, id: StreamId, piece: &Piece, share_bytes: u64) -> Option<Leftovers> {
        let needy = &self.streams[&id];
        if !self.revoking.is_empty()
            || needy.outstanding_bytes + piece.charged_bytes() > share_bytes.max(needy.credit_bytes)
        {
            return None;
        }
        let least_left = if needy.is_urgent() { 0 } else { share_bytes };
        let owners = self.streams.iter_mut().filter(|(owner, stream)| {
            let left = stream
                .revocable_bytes()
                .map(|bytes| stream.outstanding_bytes - bytes);
            **owner != id && left.is_some_and(|left| left >= least_left)
        });
        let (owner, stream) = owners.max_by_key(|(_, stream)| stream.outstanding_bytes)?;
        let (slot, leftovers, held_bytes) = stream.revoke()?;
        if held_bytes > 0 {
            self.revoking.insert((*owner, slot), held_bytes);
        }
        Some(leftovers)
    }

    /// Only a consumer that waits for its very next part may go beyond the budget, when memory is lent out or can't
    /// be taken back: otherwise the head credit holds, or will.
    fn may_overdraw(&self, id: StreamId) -> bool {
        self.streams[&id].is_urgent() && self.revoking.is_empty()
    }

    fn issue(&mut self, id: StreamId, piece: Piece, reservation: Option<Reservation>) -> Fetch {
        if reservation.is_none() {
            self.tally.overdraft_bytes += piece.charged_bytes();
        }
        self.in_flight += 1;
        let stream = self
            .streams
            .get_mut(&id)
            .expect("a candidate is an open stream");
        let (slot, abort) = stream.issue(piece.clone());
        Fetch {
            ticket: Ticket {
                stream: id,
                slot,
                piece,
            },
            reservation,
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
        self.revoking.remove(&(ticket.stream, ticket.slot));
        let (wake, leftovers) = match self.streams.get_mut(&ticket.stream) {
            Some(stream) => stream.complete(ticket.slot, &ticket.piece, buf, outcome),
            None => (None, Leftovers::of(buf)),
        };
        Completion { wake, leftovers }
    }

    /// The answer to [`Action::Head`].
    pub(super) fn checked(
        &mut self,
        id: StreamId,
        serial: u64,
        answer: Result<ObjectMeta>,
    ) -> Option<Waker> {
        self.streams.get_mut(&id)?.checked(serial, answer)
    }

    /// Whether the consumer has taken its last part. Looking is not asking: nothing is fetched because of it.
    pub(super) fn is_at_end(&self, id: StreamId) -> bool {
        self.streams.get(&id).is_none_or(Stream::is_at_end)
    }

    /// The consumer asks for its next part.
    pub(super) fn take(&mut self, id: StreamId, waker: &Waker) -> Take {
        let Some(stream) = self.streams.get_mut(&id) else {
            return Take::End;
        };
        let (take, verdict) = stream.take(
            waker,
            self.config.checksums,
            class_bytes(self.config.part_bytes),
        );
        match verdict {
            Some(Verdict::Verified) => self.tally.verified += 1,
            Some(Verdict::Unverified) => self.tally.unverified += 1,
            Some(Verdict::Bad(_)) => self.tally.bad += 1,
            None => {}
        }
        take
    }
}

#[cfg(test)]
mod tests;
