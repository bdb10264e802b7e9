//! A directory tree as S3 would list it: whole paths in byte order, cut by a prefix that may end inside a name.
//!
//! The names of a directory are sorted with a `/` behind those of directories, and a directory's content comes in
//! its place; then the paths as a whole are in byte order (`a-b`, `a.txt`, `a/x`, `ab`). What is in memory are the
//! names of the directories on the way from the root to the current file: `readdir` has no order of its own, so a
//! directory has to be read whole.

use std::fs::{self, DirEntry, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{error, meta};
use crate::client::{Depth, ListEntry};
use crate::error::{Error, Result};
use crate::object::ObjectUri;

/// Walks on each call of [`next`](Iterator::next); the system calls block.
#[derive(Debug)]
pub(super) struct Walk {
    prefix: ObjectUri,
    depth: Depth,
    /// From the root down to where the walk is.
    levels: Vec<Level>,
    started: bool,
}

/// A directory under way.
#[derive(Debug)]
struct Level {
    /// What its entries' keys begin with: empty, or ending in `/`.
    key: String,
    /// Device and inode, by which a loop is known.
    identity: (u64, u64),
    /// Names that are still to come, the next one last.
    names: Vec<Name>,
}

/// A name with a `/` behind it if it is a directory's.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Name(Vec<u8>);

impl Walk {
    pub(super) fn new(prefix: &ObjectUri, depth: Depth) -> Self {
        Self {
            prefix: prefix.clone(),
            depth,
            levels: Vec::new(),
            started: false,
        }
    }

    /// Opens the directory in which the prefix ends. That it does not exist means that nothing has the prefix.
    fn start(&mut self) -> Result<()> {
        self.started = true;
        let key = self.prefix.key();
        let (parent, start) = key.split_at(key.rfind('/').map_or(0, |slash| slash + 1));
        match read_level(parent, start.as_bytes()) {
            Ok(level) => self.levels.push(level),
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
            Err(e) => return Err(error(directory(parent), e)),
        }
        Ok(())
    }

    /// Takes one name; `None` when it is no object.
    fn visit(&mut self, key: String, is_directory: bool) -> Result<Option<ListEntry>> {
        if is_directory && self.depth == Depth::OneLevel {
            return Ok(Some(ListEntry::Prefix(self.prefix.with_key(key))));
        }
        if is_directory {
            self.descend(key)?;
            return Ok(None);
        }
        let Some(found) = stat(Path::new(&key)).map_err(|e| error(&key, e))? else {
            return Ok(None);
        };
        // Pipes, sockets and devices are no objects.
        Ok(found
            .is_file()
            .then(|| ListEntry::Object(meta(self.prefix.with_key(key), &found))))
    }

    fn descend(&mut self, key: String) -> Result<()> {
        let level = match read_level(&key, b"") {
            Ok(level) => level,
            // Removed since its name was read.
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(error(&key, e)),
        };
        if self
            .levels
            .iter()
            .any(|above| above.identity == level.identity)
        {
            return Err(Error::config(
                key,
                "a symbolic link leads back to a directory above it: remove the link, or list a directory below it",
            ));
        }
        self.levels.push(level);
        Ok(())
    }

    fn step(&mut self) -> Result<Option<ListEntry>> {
        if !self.started {
            self.start()?;
        }
        while let Some(level) = self.levels.last_mut() {
            let Some(name) = level.names.pop() else {
                self.levels.pop();
                continue;
            };
            let (key, is_directory) = (name.key(&level.key)?, name.is_directory());
            if let Some(entry) = self.visit(key, is_directory)? {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }
}

impl Iterator for Walk {
    type Item = Result<ListEntry>;

    /// The error of a directory ends the walk: what is left of it would look like everything.
    fn next(&mut self) -> Option<Self::Item> {
        let entry = self.step().transpose();
        if matches!(entry, Some(Err(_))) {
            self.levels.clear();
        }
        entry
    }
}

impl Name {
    /// Links count as what they lead to; one to nothing counts as a file, and fails where it stands.
    fn of(entry: &DirEntry) -> io::Result<Option<Self>> {
        let kind = match entry.file_type() {
            Ok(kind) => kind,
            // Removed meanwhile, on a file system whose directories do not tell the kind.
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let leads_to_directory = || fs::metadata(entry.path()).is_ok_and(|target| target.is_dir());
        let mut name = entry.file_name().as_bytes().to_vec();
        if kind.is_dir() || (kind.is_symlink() && leads_to_directory()) {
            name.push(b'/');
        }
        Ok(Some(Self(name)))
    }

    fn is_directory(&self) -> bool {
        self.0.ends_with(b"/")
    }

    /// Keys are text. A name that is not would need an escape that S3 does not know, so it is refused.
    fn key(&self, parent: &str) -> Result<String> {
        match std::str::from_utf8(&self.0) {
            Ok(name) => Ok(format!("{parent}{name}")),
            Err(_) => Err(Error::config(
                format!("{parent}{}", self.0.escape_ascii()),
                "the file's name is not UTF-8, and keys are: rename it",
            )),
        }
    }
}

/// Reads the names in a directory that begin with `start`.
fn read_level(key: &str, start: &[u8]) -> io::Result<Level> {
    let path = directory(key);
    let found = fs::metadata(path)?;
    let mut names = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_name().as_bytes().starts_with(start) {
            names.extend(Name::of(&entry)?);
        }
    }
    names.sort_unstable_by(|a, b| b.cmp(a));
    Ok(Level {
        key: key.to_string(),
        identity: (found.dev(), found.ino()),
        names,
    })
}

fn directory(key: &str) -> &Path {
    Path::new(if key.is_empty() { "." } else { key })
}

/// What a path leads to; `None` when it was removed since its name was read. A link to nowhere is an error: it
/// stands for data that is missing.
fn stat(path: &Path) -> io::Result<Option<Metadata>> {
    match fs::metadata(path) {
        Ok(found) => Ok(Some(found)),
        Err(e) if e.kind() == ErrorKind::NotFound => match fs::symlink_metadata(path) {
            Err(gone) if gone.kind() == ErrorKind::NotFound => Ok(None),
            _ => Err(io::Error::new(
                e.kind(),
                format!("{} links to nothing", path.display()),
            )),
        },
        Err(e) => Err(e),
    }
}
