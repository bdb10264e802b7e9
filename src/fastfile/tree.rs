//! The namespace: a listing turned into directories and files, while it still arrives.
//!
//! Every object gets exactly one name (`name` has the rules). Directories exist because keys pass through them; a key
//! that ends in `/` and has no content is a directory's marker and gives it its date. A directory wins over an object
//! of the same name, which is then found beside it under a name of ours.
//!
//! Listings come in byte order of the keys. So a name can be decided before the listing is complete, as soon as the
//! listing has passed the place where a key could still change the answer: for a name `n` in a directory `d/`, that is
//! `d/n/` (a directory of that name may follow its object at some distance: `n`, `n-1`, `n.txt`, `n/x`). Until then the
//! answer is [`Found::NotYet`], and the caller asks again when more has come. A directory bucket lists in no order, and
//! a listing that turns out not to be sorted is treated alike: nothing is decided before it is complete.
//!
//! What it costs: 56 bytes per object or directory, 5 to 11 for its place in the hash table (peak, while that grows: 16),
//! and the part of the key itself. 1,000,000 objects: see the test.

mod listing;
mod name;
mod node;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::SystemTime;

use hashbrown::HashTable;

use crate::error::{Error, Result};
use crate::object::{ObjectId, ObjectMeta, ObjectUri};
use name::Form;
use node::{Index, NONE, Node, Nodes, Texts};

pub use listing::{Namespace, Root};
pub use name::RESERVED;

/// How far the next file is looked for: a microsecond or two.
const MOST_STEPS: Index = 1024;

/// A file or directory. The root is 1, as FUSE wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ino(pub u64);

impl Ino {
    /// The directory that is mounted.
    pub const ROOT: Self = Self(1);

    fn of(index: Index) -> Self {
        Self(u64::from(index) + 1)
    }

    fn index(self) -> Option<Index> {
        Index::try_from(self.0.checked_sub(1)?).ok()
    }
}

/// The answer to a lookup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// There it is.
    Here(Ino),
    /// There is no such name, and there will be none.
    Absent,
    /// The listing has not come so far.
    NotYet,
}

/// One step through a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// An entry and its name.
    Entry(Ino, String),
    /// There are no more.
    End,
    /// The listing has not come so far.
    NotYet,
}

/// What `stat` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// The number it is known by.
    pub ino: Ino,
    /// Whether it is a directory.
    pub is_directory: bool,
    /// The object's length; 0 for directories.
    pub size_bytes: u64,
    /// The object's date, or its marker's; for directories without a marker, when the tree was made.
    pub modified: SystemTime,
}

/// Directories and files below one prefix.
#[derive(Debug)]
pub struct Tree {
    /// What every key begins with; empty or ending in `/`.
    root: ObjectUri,
    born: SystemTime,
    nodes: Nodes,
    texts: Texts,
    /// Nodes by parent and name.
    names: HashTable<Index>,
    hasher: RandomState,
    /// The directory of the latest object, and its key's part behind the root's: the next is mostly there too.
    latest_directory: (String, Index),
    /// The latest key behind the root's.
    latest_key: String,
    is_sorted: bool,
    is_complete: bool,
    files: u64,
    total_bytes: u64,
    renamed: u64,
}

impl Tree {
    /// An empty tree for the objects below `root`, whose key is empty or ends in `/`.
    ///
    /// `born` is the date of directories that have no marker.
    pub fn new(root: ObjectUri, born: SystemTime) -> Self {
        let is_sorted = !root.bucket().ends_with("--x-s3");
        let (mut nodes, mut texts) = (Nodes::default(), Texts::default());
        let index = nodes.push(Node::directory(NONE, texts.add("")));
        Self {
            root,
            born,
            nodes,
            texts,
            names: HashTable::new(),
            hasher: RandomState::new(),
            latest_directory: (String::new(), index),
            latest_key: String::new(),
            is_sorted,
            is_complete: false,
            files: 0,
            total_bytes: 0,
            renamed: 0,
        }
    }

    /// What every key begins with.
    pub fn root(&self) -> &ObjectUri {
        &self.root
    }

    /// How many objects have a name.
    pub fn files(&self) -> u64 {
        self.files
    }

    /// Their bytes.
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// How many names begin with [`RESERVED`].
    pub fn renamed(&self) -> u64 {
        self.renamed
    }

    /// Whether the listing has ended.
    pub fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// The memory that it takes, names included.
    pub fn heap_bytes(&self) -> usize {
        self.nodes.heap_bytes() + self.texts.heap_bytes() + self.names.allocation_size()
    }

    /// The memory that the parts of keys and unusual ETags take.
    pub fn text_bytes(&self) -> usize {
        self.texts.heap_bytes()
    }

    /// The listing has ended: everything is decided.
    pub fn complete(&mut self) {
        self.is_complete = true;
    }

    /// Takes the next object of the listing.
    pub fn add(&mut self, meta: &ObjectMeta) -> Result<()> {
        let key = meta.id.uri.key();
        let Some(key) = key.strip_prefix(self.root.key()) else {
            return Err(Error::config(
                meta.id.uri.to_string(),
                format!(
                    "listed below {}, which its key does not begin with",
                    self.root
                ),
            ));
        };
        if self.nodes.len() + key.matches('/').count() + 1 >= NONE as usize {
            return Err(Error::config(
                self.root.to_string(),
                "more than 4,294,967,294 names: mount a longer prefix",
            ));
        }
        self.is_sorted &= key >= self.latest_key.as_str();
        key.clone_into(&mut self.latest_key);
        let (directories, file) = key.split_at(key.rfind('/').map_or(0, |slash| slash + 1));
        let parent = self.directory_of(directories);
        if file.is_empty() && meta.size_bytes == 0 {
            self.nodes.at_mut(parent).set_modified(meta.last_modified);
        } else {
            self.add_file(parent, file, meta);
        }
        Ok(())
    }

    /// The directory of `path`, which is empty or ends in `/`; made if missing.
    fn directory_of(&mut self, path: &str) -> Index {
        if self.latest_directory.0 == path {
            return self.latest_directory.1;
        }
        let mut at = 0;
        for part in path.split_terminator('/') {
            at = self.directory(at, part);
        }
        path.clone_into(&mut self.latest_directory.0);
        self.latest_directory.1 = at;
        at
    }

    fn directory(&mut self, parent: Index, part: &str) -> Index {
        let form = Form::of(part);
        if let Some(index) = self.find(parent, &name::name(part, form)) {
            if self.nodes.at(index).is_directory() {
                return index;
            }
            self.step_aside(index);
        }
        let mut node = Node::directory(parent, self.texts.add(part));
        node.set_form(form);
        self.insert(node)
    }

    fn add_file(&mut self, parent: Index, part: &str, meta: &ObjectMeta) {
        let beside = (part.is_empty()).then_some(Form::Beside);
        let mut form = beside.unwrap_or_else(|| Form::of(part));
        let mut found = self.find(parent, &name::name(part, form));
        if found.is_some_and(|index| self.nodes.at(index).is_directory()) {
            form = Form::Beside;
            found = self.find(parent, &name::name(part, form));
        }
        let index = found.unwrap_or_else(|| {
            let mut node = Node::file(parent, self.texts.add(part), 0);
            node.set_form(form);
            self.files += 1;
            self.insert(node)
        });
        let texts = &mut self.texts;
        let node = self.nodes.at_mut(index);
        self.total_bytes = self.total_bytes - node.size_bytes() + meta.size_bytes;
        node.set_size_bytes(meta.size_bytes);
        node.set_modified(meta.last_modified);
        node.set_algorithm(meta.checksum_algorithm);
        node.set_etag(meta.id.etag.as_deref(), texts);
    }

    /// A directory takes this file's name.
    fn step_aside(&mut self, index: Index) {
        let hash = self.hash_of(index);
        if let Ok(entry) = self.names.find_entry(hash, |other| *other == index) {
            entry.remove();
        }
        self.renamed += u64::from(self.nodes.at(index).form() == Form::Plain);
        self.nodes.at_mut(index).set_form(Form::Beside);
        self.enter(index);
    }

    /// Puts a node behind its last sibling and makes it known by its name.
    fn insert(&mut self, node: Node) -> Index {
        self.renamed += u64::from(node.form() != Form::Plain);
        let index = self.nodes.push(node);
        let (first, last) = self.nodes.at(node.parent).children();
        match last {
            NONE => self.nodes.at_mut(node.parent).set_children(index, index),
            last => {
                self.nodes.at_mut(last).next = index;
                self.nodes.at_mut(node.parent).set_children(first, index);
            }
        }
        self.enter(index);
        index
    }

    fn enter(&mut self, index: Index) {
        let hash = self.hash_of(index);
        let (nodes, texts, hasher) = (&self.nodes, &self.texts, &self.hasher);
        self.names.insert_unique(hash, index, |other| {
            let node = nodes.at(*other);
            hash_name(
                hasher,
                node.parent,
                &name::name(texts.get(node.part()), node.form()),
            )
        });
    }

    fn hash_of(&self, index: Index) -> u64 {
        hash_name(
            &self.hasher,
            self.nodes.at(index).parent,
            &self.name_of(index),
        )
    }

    fn name_of(&self, index: Index) -> std::borrow::Cow<'_, str> {
        let node = self.nodes.at(index);
        name::name(self.texts.get(node.part()), node.form())
    }

    fn find(&self, parent: Index, name: &str) -> Option<Index> {
        let hash = hash_name(&self.hasher, parent, name);
        let is_it =
            |index: &Index| self.nodes.at(*index).parent == parent && self.name_of(*index) == name;
        self.names.find(hash, is_it).copied()
    }

    /// The entry `name` of a directory.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Found {
        let Some(parent) = parent
            .index()
            .filter(|index| self.nodes.get(*index).is_some())
        else {
            return Found::Absent;
        };
        // Keys are UTF-8, so no other name is ever there.
        let Ok(name) = str::from_utf8(name) else {
            return Found::Absent;
        };
        match self.find(parent, name) {
            Some(index) if self.is_decided(index) => Found::Here(Ino::of(index)),
            Some(_) => Found::NotYet,
            None if self.is_over(parent, name) => Found::Absent,
            None => Found::NotYet,
        }
    }

    /// Whether this entry's name is final.
    fn is_decided(&self, index: Index) -> bool {
        let node = self.nodes.at(index);
        let may_step_aside = !node.is_directory() && node.form() != Form::Beside;
        self.is_complete
            || self.is_sorted && (!may_step_aside || self.has_passed(&(self.key_of(index) + "/")))
    }

    /// Whether nothing of this name can come any more.
    fn is_over(&self, parent: Index, name: &str) -> bool {
        if self.is_complete || !self.is_sorted {
            return self.is_complete;
        }
        match name.starts_with(RESERVED) {
            true => self.is_closed(parent),
            false => self.has_passed(&format!("{}{name}/", self.key_of(parent))),
        }
    }

    /// Whether nothing can come into this directory any more.
    fn is_closed(&self, directory: Index) -> bool {
        if self.is_complete || !self.is_sorted || directory == 0 {
            return self.is_complete;
        }
        let mut behind = self.key_of(directory);
        behind.pop();
        behind.push('0'); // the byte after `/`
        self.has_passed(&behind)
    }

    fn has_passed(&self, key: &str) -> bool {
        self.is_sorted && self.latest_key.as_str() >= key
    }

    /// The key behind the root's; a directory's ends in `/`.
    fn key_of(&self, index: Index) -> String {
        let mut parts = Vec::new();
        let mut at = index;
        while at != 0 {
            let node = self.nodes.at(at);
            parts.push(self.texts.get(node.part()));
            at = node.parent;
        }
        parts.reverse();
        let mut key = parts.join("/");
        if index != 0 && self.nodes.at(index).is_directory() {
            key.push('/');
        }
        key
    }

    fn node(&self, ino: Ino) -> Option<(Index, &Node)> {
        let index = ino.index()?;
        Some((index, self.nodes.get(index)?))
    }

    /// What `stat` says of it.
    pub fn attributes(&self, ino: Ino) -> Option<Attributes> {
        let (_, node) = self.node(ino)?;
        Some(Attributes {
            ino,
            is_directory: node.is_directory(),
            size_bytes: node.size_bytes(),
            modified: node.modified().unwrap_or(self.born),
        })
    }

    /// Its address; a directory's ends in `/`.
    pub fn uri(&self, ino: Ino) -> Option<ObjectUri> {
        let (index, _) = self.node(ino)?;
        Some(
            self.root
                .with_key(format!("{}{}", self.root.key(), self.key_of(index))),
        )
    }

    /// The object of a file; `None` for directories.
    pub fn object(&self, ino: Ino) -> Option<ObjectMeta> {
        let (_, node) = self.node(ino).filter(|(_, node)| !node.is_directory())?;
        let size_bytes = node.size_bytes();
        Some(ObjectMeta {
            id: ObjectId {
                uri: self.uri(ino)?,
                etag: node.etag(&self.texts).map(Into::into),
                version_id: None,
                size_bytes: Some(size_bytes),
            },
            size_bytes,
            last_modified: node.modified(),
            checksum_algorithm: node.algorithm(),
            checksum: None,
        })
    }

    /// The `n`-th file behind this one in the order of the listing, directories left out; `None` as well when a long row
    /// of directories lies between.
    pub fn file_behind(&self, ino: Ino, n: u64) -> Option<Ino> {
        let from = ino.index()?.checked_add(1)?;
        let to = from
            .saturating_add(MOST_STEPS)
            .min(self.nodes.len() as Index);
        let is_file = |index: &Index| !self.nodes.at(*index).is_directory();
        let files = (from..to).filter(is_file);
        let nth = usize::try_from(n.checked_sub(1)?).ok()?;
        files.map(Ino::of).nth(nth)
    }

    /// The directory in which it is; the root is in itself.
    pub fn parent(&self, ino: Ino) -> Option<Ino> {
        let (index, node) = self.node(ino)?;
        Some(match index {
            0 => ino,
            _ => Ino::of(node.parent),
        })
    }

    /// The entry of `directory` that follows `after`, or the first one, in the order of the listing.
    pub fn step(&self, directory: Ino, after: Option<Ino>) -> Step {
        let Some((index, node)) = self.node(directory) else {
            return Step::End;
        };
        let next = match after {
            None => node.children().0,
            Some(after) => match self.node(after) {
                Some((_, sibling)) if sibling.parent == index => sibling.next,
                _ => return Step::End,
            },
        };
        match next {
            NONE if self.is_closed(index) => Step::End,
            NONE => Step::NotYet,
            next if self.is_decided(next) => Step::Entry(Ino::of(next), self.name_of(next).into()),
            _ => Step::NotYet,
        }
    }
}

fn hash_name(hasher: &RandomState, parent: Index, name: &str) -> u64 {
    let mut state = hasher.build_hasher();
    state.write_u32(parent);
    state.write(name.as_bytes());
    state.finish()
}

#[cfg(test)]
mod tests;
