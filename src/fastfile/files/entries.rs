//! What `stat` and listings give.

use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use super::super::errno::to_io;
use super::super::tree::{Ino, Namespace, Step, Tree};
use super::wait;
use crate::error::Result;
use crate::object::ObjectUri;

/// A file or folder.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry {
    /// Its path below the prefix: the parts of its key, but for those that can't be names (docs/SEMANTICS.md, M2 and M3).
    pub path: String,
    /// Whether it is a folder.
    pub is_directory: bool,
    /// The object's length; 0 for folders.
    pub size_bytes: u64,
    /// The object's date; that of the listing for folders without a marker.
    pub modified: SystemTime,
    /// Its address; a folder's ends in `/`.
    pub uri: ObjectUri,
    /// The object's ETag, quotes included.
    pub etag: Option<Arc<str>>,
    ino: Ino,
}

impl Entry {
    pub(super) fn of(tree: &Tree, ino: Ino, path: String) -> Option<Self> {
        let attributes = tree.attributes(ino)?;
        Some(Self {
            path,
            is_directory: attributes.is_directory,
            size_bytes: attributes.size_bytes,
            modified: attributes.modified,
            uri: tree.uri(ino)?,
            etag: tree.object(ino).and_then(|object| object.id.etag),
            ino,
        })
    }
}

/// A listing: an iterator that waits for what has not arrived yet.
#[derive(Debug)]
pub struct Entries {
    namespace: Arc<Namespace>,
    /// The folders that it is in, the innermost last.
    levels: Vec<Level>,
    is_deep: bool,
}

#[derive(Debug)]
struct Level {
    path: String,
    directory: Ino,
    after: Option<Ino>,
}

impl Level {
    fn of(entry: &Entry) -> Self {
        Self {
            path: entry.path.clone(),
            directory: entry.ino,
            after: None,
        }
    }

    fn path_of(&self, name: &str) -> String {
        match self.path.as_str() {
            "" => name.to_owned(),
            folder => format!("{folder}/{name}"),
        }
    }
}

impl Entries {
    pub(super) fn new(namespace: Arc<Namespace>, folder: Entry, is_deep: bool) -> Self {
        Self {
            namespace,
            levels: vec![Level::of(&folder)],
            is_deep,
        }
    }

    /// The next one, for tasks; `None` at the end.
    ///
    /// # Errors
    /// The listing's failure; then it is at its end.
    pub async fn next_entry(&mut self) -> Result<Option<Entry>> {
        loop {
            let (directory, after) = match self.step() {
                Next::Entry(entry) => return Ok(entry),
                Next::NotYet(directory, after) => (directory, after),
            };
            if let Err(error) = self.namespace.wait_for_step(directory, after).await {
                self.levels.clear();
                return Err(error);
            }
        }
    }

    fn step(&mut self) -> Next {
        let tree = self.namespace.tree();
        while let Some(level) = self.levels.last_mut() {
            match tree.step(level.directory, level.after) {
                Step::Entry(ino, name) => {
                    level.after = Some(ino);
                    let Some(entry) = Entry::of(&tree, ino, level.path_of(&name)) else {
                        continue;
                    };
                    if self.is_deep && entry.is_directory {
                        self.levels.push(Level::of(&entry));
                    }
                    return Next::Entry(Some(entry));
                }
                Step::End => drop(self.levels.pop()),
                Step::NotYet => return Next::NotYet(level.directory, level.after),
            }
        }
        Next::Entry(None)
    }
}

/// A step through a listing.
enum Next {
    /// `None` at the end.
    Entry(Option<Entry>),
    /// What follows this one in this folder has not arrived.
    NotYet(Ino, Option<Ino>),
}

impl Iterator for Entries {
    type Item = io::Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        wait::until(self.next_entry()).map_err(to_io).transpose()
    }
}
