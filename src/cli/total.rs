//! How many bytes there will be: what a listing has found, counted as it passes on its way to the engine.
//!
//! The engine takes the listing as it needs it, so the total grows while bytes flow and is final when the listing has
//! ended. An object that nobody listed (a lone URI, a member of braces) tells its size with its first byte.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::StreamExt;
use futures::stream::{self, BoxStream};

use crate::error::Result;
use crate::object::{ObjectMeta, ObjectUri};
use crate::prefetch::Chunk;

/// A number of bytes that may still grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Total {
    pub(super) bytes: u64,
    pub(super) is_final: bool,
}

impl Total {
    /// What stands before it when it is shown.
    pub(super) fn sign(self) -> &'static str {
        if self.is_final { "" } else { "≥" }
    }
}

impl std::ops::Add for Total {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(other.bytes),
            is_final: self.is_final && other.is_final,
        }
    }
}

/// What one listing has found.
#[derive(Debug, Clone, Default)]
pub(super) struct Listed(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Which listing it is; one that was given up counts no more.
    generation: u64,
    bytes: u64,
    taken_bytes: u64,
    /// Objects of unknown size, in order.
    unseen: VecDeque<ObjectUri>,
    is_begun: bool,
    is_complete: bool,
}

impl Listed {
    /// `objects`, counted as they pass.
    pub(super) fn counting(
        &self,
        objects: BoxStream<'static, Result<ObjectMeta>>,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let (each, end) = (self.clone(), self.clone());
        let generation = self.state().generation;
        let counted = objects.inspect(move |object| {
            if let Ok(meta) = object {
                each.state().found(generation, meta);
            }
        });
        let end = stream::poll_fn(move |_| {
            end.state().completed(generation);
            std::task::Poll::Ready(None)
        });
        counted.chain(end).boxed()
    }

    /// Takes note of bytes that arrived.
    pub(super) fn took(&self, chunk: &Chunk) {
        let mut state = self.state();
        state.taken_bytes += chunk.bytes.len() as u64;
        if chunk.offset == 0 && state.unseen.front() == Some(&chunk.object.uri) {
            state.unseen.pop_front();
            state.bytes += chunk.object.size_bytes.unwrap_or(0);
        }
    }

    /// Another listing follows; of this one, what arrived counts.
    pub(super) fn begin_anew(&self) {
        let mut state = self.state();
        *state = State {
            generation: state.generation + 1,
            bytes: state.taken_bytes,
            taken_bytes: state.taken_bytes,
            ..State::default()
        };
    }

    /// All there is, as far as it is known; nothing before anything is found.
    pub(super) fn total(&self) -> Option<Total> {
        let state = self.state();
        (state.is_begun || state.is_complete).then(|| Total {
            bytes: state.bytes,
            is_final: state.is_complete && state.unseen.is_empty(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn found(&mut self, generation: u64, meta: &ObjectMeta) {
        if generation != self.generation {
            return;
        }
        match meta.id.size_bytes {
            Some(size) => {
                self.is_begun = true;
                self.bytes += size;
            }
            None => self.unseen.push_back(meta.id.uri.clone()),
        }
    }

    fn completed(&mut self, generation: u64) {
        self.is_complete |= generation == self.generation;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::ObjectId;
    use bytes::Bytes;

    fn meta(key: &str, size_bytes: Option<u64>) -> Result<ObjectMeta> {
        Ok(ObjectMeta {
            id: ObjectId {
                size_bytes,
                ..ObjectId::unpinned(ObjectUri::s3("b", key))
            },
            size_bytes: size_bytes.unwrap_or(0),
            last_modified: None,
            checksum_algorithm: None,
            checksum: None,
        })
    }

    fn chunk(key: &str, size_bytes: u64, bytes: &'static [u8]) -> Chunk {
        let id = ObjectId {
            size_bytes: Some(size_bytes),
            ..ObjectId::unpinned(ObjectUri::s3("b", key))
        };
        Chunk {
            object: Arc::new(id),
            offset: 0,
            bytes: Bytes::from_static(bytes),
            ends_object: false,
        }
    }

    fn pull(objects: &mut BoxStream<'static, Result<ObjectMeta>>) -> bool {
        futures::executor::block_on(objects.next()).is_some()
    }

    fn total(bytes: u64, is_final: bool) -> Option<Total> {
        Some(Total { bytes, is_final })
    }

    #[test]
    fn the_total_grows_with_the_listing_and_is_final_at_its_end() {
        let listed = Listed::default();
        let objects = vec![meta("a", Some(3)), meta("b", Some(4))];
        let mut objects = listed.counting(stream::iter(objects).boxed());
        assert_eq!(listed.total(), None);
        assert!(pull(&mut objects));
        assert_eq!(listed.total(), total(3, false));
        assert!(pull(&mut objects) && !pull(&mut objects));
        assert_eq!(listed.total(), total(7, true));
    }

    #[test]
    fn an_object_that_nobody_listed_tells_its_size_itself() {
        let listed = Listed::default();
        let objects = vec![meta("a", None), meta("b", None)];
        let mut objects = listed.counting(stream::iter(objects).boxed());
        while pull(&mut objects) {}
        assert_eq!(listed.total(), total(0, false));
        listed.took(&chunk("a", 10, b"12345"));
        assert_eq!(listed.total(), total(10, false));
        listed.took(&chunk("b", 5, b"12345"));
        assert_eq!(listed.total(), total(15, true));
    }

    #[test]
    fn after_a_new_beginning_the_old_listing_counts_no_more() {
        let listed = Listed::default();
        let first = vec![meta("a", Some(3)), meta("gone", None), meta("z", Some(9))];
        let mut old = listed.counting(stream::iter(first).boxed());
        assert!(pull(&mut old) && pull(&mut old));
        listed.took(&chunk("a", 3, b"123"));
        listed.begin_anew();
        assert!(pull(&mut old) && !pull(&mut old));
        let second = vec![meta("gone/1", Some(1))];
        let mut new = listed.counting(stream::iter(second).boxed());
        while pull(&mut new) {}
        assert_eq!(listed.total(), total(4, true));
    }
}
