//! The stream of an epoch: the engine's bytes as they are, or shaped, and with a manifest's texts between them.
//!
//! It works in the thread of its channel: decompressing takes none of the network's threads, and a channel whose reader
//! is slow decompresses no more than it can write.

use std::sync::Arc;
use std::time::Duration;

use super::piece::Piece;
use super::shape::{Shape, Shaper};
use crate::error::{Error, Result};
use crate::input::{Item, Place, Script};
use crate::object::{ObjectId, ObjectUri};
use crate::prefetch::{BlockingReader, Chunk, Next, ObjectReader};

/// One epoch.
#[derive(Debug)]
pub struct EpochStream {
    reader: BlockingReader,
    /// What comes after what, when there are texts between the objects.
    script: Option<Script>,
    shape: Shape,
    shaper: Shaper,
    /// The object of the latest chunk, where chunks are delivered as they are.
    latest: Option<Arc<ObjectId>>,
    /// The object whose first byte is due.
    due: Option<(ObjectUri, Place)>,
    /// Where the object stands that is being delivered.
    current: Option<Place>,
}

/// What a wait with a time limit gave.
#[derive(Debug)]
pub(super) enum Given {
    Piece(Piece),
    End,
    TimedOut,
}

/// What the script says.
enum Wanted {
    Object,
    Text(Piece),
    Nothing,
}

/// Objects as they are.
impl From<ObjectReader> for EpochStream {
    fn from(reader: ObjectReader) -> Self {
        Self::new(reader, None, Shape::default())
    }
}

impl EpochStream {
    pub(super) fn new(reader: ObjectReader, script: Option<Script>, shape: Shape) -> Self {
        Self {
            reader: reader.blocking(),
            script,
            shape,
            shaper: Shaper::new(shape),
            latest: None,
            due: None,
            current: None,
        }
    }

    /// Whether the engine has handed over its last chunk.
    pub(super) fn is_at_end(&self) -> bool {
        self.reader.is_at_end()
    }

    /// Waits at most `limit` for the engine.
    pub(super) fn next(&mut self, limit: Duration) -> Result<Given> {
        let given = match self.shape.is_plain() && self.script.is_none() {
            true => self.plain(limit),
            false => self.shaped(limit),
        };
        given.map_err(|error| self.placed(error))
    }

    fn plain(&mut self, limit: Duration) -> Result<Given> {
        Ok(match self.reader.next_chunk_timeout(limit)? {
            Next::Chunk(chunk) => {
                // The same object twice in a row comes in two `Arc`s; the first one may be entered in its middle.
                let begins_item = self
                    .latest
                    .as_ref()
                    .is_none_or(|latest| chunk.offset == 0 && !Arc::ptr_eq(latest, &chunk.object));
                self.latest = Some(chunk.object.clone());
                Given::Piece(Piece {
                    begins_item,
                    ..chunk.into()
                })
            }
            Next::TimedOut => Given::TimedOut,
            Next::End => Given::End,
        })
    }

    fn shaped(&mut self, limit: Duration) -> Result<Given> {
        loop {
            if let Some(piece) = self.shaper.next()? {
                return Ok(Given::Piece(piece));
            }
            if self.shaper.is_idle() && self.due.is_none() {
                match self.next_item() {
                    Wanted::Object => {}
                    Wanted::Text(piece) => return Ok(Given::Piece(piece)),
                    Wanted::Nothing => return Ok(Given::End),
                }
            }
            match self.reader.next_chunk_timeout(limit)? {
                Next::Chunk(chunk) => self.take(chunk)?,
                Next::TimedOut => return Ok(Given::TimedOut),
                Next::End if self.due.is_none() && self.shaper.is_idle() => {
                    return Ok(Given::End);
                }
                Next::End => return Err(self.out_of_step("no further object")),
            }
        }
    }

    fn next_item(&mut self) -> Wanted {
        self.current = None;
        let Some(script) = &mut self.script else {
            return Wanted::Object;
        };
        let Some(step) = script.next() else {
            return Wanted::Nothing;
        };
        match step.item {
            Item::Object(uri) => {
                self.due = Some((uri, step.place));
                Wanted::Object
            }
            Item::Text(text) => {
                let (object, offset) = script.text_origin(step.place);
                Wanted::Text(Piece {
                    object,
                    bytes: self.shape.text(text),
                    from: offset,
                    to: offset,
                    ends_object: true,
                    begins_item: true,
                    is_plain: false,
                })
            }
        }
    }

    fn take(&mut self, chunk: Chunk) -> Result<()> {
        if let Some((uri, place)) = self.due.take() {
            self.current = Some(place);
            if chunk.object.uri != uri || chunk.offset != 0 {
                let found = format!("{} at {}", chunk.object.uri, chunk.offset);
                self.due = Some((uri, place));
                return Err(self.out_of_step(&found));
            }
        }
        self.shaper.push(chunk)
    }

    /// The engine reads what the same script says: anything else is a bug, and must not reach a trainer as data.
    fn out_of_step(&self, found: &str) -> Error {
        let due = self
            .due
            .as_ref()
            .map_or("nothing".into(), |(uri, _)| uri.to_string());
        Error::Internal {
            what: format!("an epoch in which {due} was due and came {found},"),
        }
    }

    /// Says where in the manifest it happened.
    fn placed(&self, error: Error) -> Error {
        let place = self.current.or(self.due.as_ref().map(|(_, place)| *place));
        match (&self.script, place) {
            (Some(script), Some(place)) => script.error_at(place, error),
            _ => error,
        }
    }
}
