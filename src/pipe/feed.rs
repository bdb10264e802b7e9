//! One epoch's stream. Its first chunk is taken before there is a stream, so that a failure is known early.

use std::time::Duration;

use crate::error::Error;
use crate::object::ObjectUri;

use super::piece::Piece;
use super::stream::{EpochStream, Given};

/// How the stream stands.
#[derive(Debug)]
enum State {
    Flowing(Box<EpochStream>),
    Ended,
    Failed(Error),
}

/// The stream of one epoch.
#[derive(Debug)]
pub(super) struct Feed {
    state: State,
    ready: Option<Piece>,
}

impl Feed {
    pub(super) fn new(stream: crate::error::Result<EpochStream>) -> Self {
        let state = match stream {
            Ok(stream) => State::Flowing(Box::new(stream)),
            Err(error) => State::Failed(error),
        };
        Self { state, ready: None }
    }

    /// Waits at most `limit` for a chunk, the end or a failure, unless one is known already.
    pub(super) fn fill(&mut self, limit: Duration) {
        if let (State::Flowing(stream), None) = (&mut self.state, &self.ready) {
            match stream.next(limit) {
                Ok(Given::Piece(piece)) => self.ready = Some(piece),
                Ok(Given::End) => self.state = State::Ended,
                Ok(Given::TimedOut) => {}
                Err(error) => self.state = State::Failed(error),
            }
        }
    }

    /// Whether [`fill`](Self::fill) would wait.
    pub(super) fn wants_filling(&self) -> bool {
        self.ready.is_none() && matches!(self.state, State::Flowing(_))
    }

    pub(super) fn take(&mut self) -> Option<Piece> {
        self.ready.take()
    }

    /// Whether the stream has given its last chunk.
    pub(super) fn is_exhausted(&self) -> bool {
        self.ready.is_none() && matches!(self.state, State::Ended)
    }

    /// Whether no further chunk will come, as far as can be told without asking for one. Asking would make the engine
    /// fetch beyond its budget for a thread that still holds a chunk, and count the time as a stall.
    pub(super) fn is_at_end(&self) -> bool {
        self.ready.is_none()
            && match &self.state {
                State::Flowing(stream) => stream.is_at_end(),
                State::Ended => true,
                State::Failed(_) => false,
            }
    }

    /// Why there will be no further chunk.
    pub(super) fn failure(&self) -> Option<&Error> {
        match &self.state {
            State::Failed(error) => Some(error),
            _ => None,
        }
    }
}

/// How far an epoch has come.
#[derive(Debug, Default)]
pub(super) struct Progress {
    pub(super) bytes: u64,
    /// The object of the last byte in the pipe, and the offset after that byte.
    pub(super) last: Option<(ObjectUri, u64)>,
}
