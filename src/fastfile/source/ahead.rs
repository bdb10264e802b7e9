//! Fetches files before they are opened: [`Lookahead`] decides, this acts.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::lookahead::{self, Limits, Lookahead, Orders};
use crate::buffer::class_bytes;
use crate::fastfile::read::{OpenFile, OpenFiles};
use crate::fastfile::tree::{Ino, Namespace, Tree};
use crate::object::ByteRange;

/// Files that wait to be read, for each request that may fly: what is on its way, as much that has come, and twice that
/// for readers that are behind the others.
const FILES_PER_REQUEST: usize = 4;
/// The rest of the memory is for files that are open.
const MEMORY_SHARE: u64 = 4;

/// The files that are fetched ahead of a namespace's readers.
#[derive(Debug)]
pub(super) struct Ahead {
    files: OpenFiles,
    namespace: Arc<Namespace>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    policy: Lookahead,
    /// As long as one is open, so are its parts.
    held: HashMap<u64, OpenFile>,
}

impl Ahead {
    pub(super) fn new(files: OpenFiles, namespace: Arc<Namespace>) -> Self {
        let config = files.config();
        let limits = Limits {
            files: config.most_requests().saturating_mul(FILES_PER_REQUEST),
            bytes: config.memory_bytes / MEMORY_SHARE,
        };
        let state = State {
            policy: Lookahead::new(limits),
            held: HashMap::new(),
        };
        Self {
            files,
            namespace,
            state: Mutex::new(state),
        }
    }

    /// A file is read for the first time by its opener.
    pub(super) fn read(&self, ino: Ino) {
        self.act(|policy, files| policy.read(ino.0, files));
    }

    /// The kernel reads a file without us.
    pub(super) fn bypassed(&self, ino: Ino) {
        self.act(|policy, files| policy.bypassed(ino.0, files));
    }

    /// These will be read, in this order.
    pub(super) fn tell(&self, order: impl IntoIterator<Item = Ino>) {
        let order = order.into_iter().map(|ino| ino.0);
        self.act(|policy, files| policy.tell(order, files));
    }

    fn act(&self, decide: impl FnOnce(&mut Lookahead, &Numbered<'_>) -> Orders) {
        let mut state = self.lock();
        let tree = self.namespace.tree();
        let numbered = Numbered {
            tree: &tree,
            files: &self.files,
        };
        let orders = decide(&mut state.policy, &numbered);
        let release = orders.release.iter();
        let released: Vec<_> = release.filter_map(|file| state.held.remove(file)).collect();
        for file in orders.fetch {
            if let Some(open) = numbered.fetch(file) {
                state.held.insert(file, open);
            }
        }
        drop(tree);
        drop(state);
        // It has work of its own to do.
        drop(released);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A tree's files by number.
struct Numbered<'a> {
    tree: &'a Tree,
    files: &'a OpenFiles,
}

impl Numbered<'_> {
    /// Small files whole; of the others what the first read asks for, which opens a window of its own.
    fn fetched_bytes(&self, size_bytes: u64) -> u64 {
        let config = self.files.config();
        match size_bytes <= config.part_bytes {
            true => size_bytes,
            false => config.block_bytes,
        }
    }

    fn fetch(&self, file: u64) -> Option<OpenFile> {
        let object = self.tree.object(Ino(file))?;
        let range = ByteRange::new(0, self.fetched_bytes(object.size_bytes));
        let file = self.files.open(object.id).ok()?;
        file.prefetch(&[range]);
        Some(file)
    }
}

impl lookahead::Files for Numbered<'_> {
    fn behind(&self, file: u64, n: u64) -> Option<u64> {
        self.tree.file_behind(Ino(file), n).map(|ino| ino.0)
    }

    fn bytes(&self, file: u64) -> u64 {
        let attributes = self.tree.attributes(Ino(file));
        let size_bytes = attributes.map_or(0, |attributes| attributes.size_bytes);
        class_bytes(self.fetched_bytes(size_bytes))
    }
}
