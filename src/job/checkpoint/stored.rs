//! Which objects the files here are: written down beside the tree, so that the next run on this host fetches nothing that
//! it has. Without it, or with one that is damaged, all that is in doubt is fetched.
//!
//! So are the files that a trainer may have been writing when it was killed: the next run must not take them for whole.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::changes::Signature;
use crate::job::tree::write_whole;
use crate::object::ObjectUri;

/// Below the base directory.
pub(in crate::job) const FILE: &str = "input/.standpipe-stored.json";

/// Files by their paths below the checkpoint directory.
#[derive(Debug, Default)]
pub(in crate::job) struct Stored {
    file: PathBuf,
    content: Content,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Content {
    /// Below which they are stored.
    prefix: String,
    files: BTreeMap<String, Copy>,
    /// Half written, maybe, as long as they are as they are.
    #[serde(default)]
    doubtful: BTreeMap<String, Copy>,
}

/// What is known of a file that is here, and of an object of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// The file is the object, as far as anybody can tell without reading it.
    Same,
    /// It was, and somebody else has written the object since.
    ObjectChanged,
    /// It was, and was written to since.
    FileChanged,
    /// Neither is what was written down.
    Unknown,
}

/// A file and its object.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Copy {
    bytes: u64,
    /// Seconds since 1970, and nanoseconds.
    modified: (i64, u32),
    inode: u64,
    etag: String,
}

impl Copy {
    fn new(signature: Signature, etag: &str) -> Self {
        let second = 1_000_000_000;
        Self {
            bytes: signature.bytes,
            modified: (
                signature.mtime_ns.div_euclid(second) as i64,
                signature.mtime_ns.rem_euclid(second) as u32,
            ),
            inode: signature.inode,
            etag: etag.to_owned(),
        }
    }
}

impl Stored {
    /// Nothing yet.
    pub(super) fn new(file: &Path, prefix: &ObjectUri) -> Self {
        Self {
            file: file.to_owned(),
            content: Content {
                prefix: prefix.to_string(),
                ..Content::default()
            },
        }
    }

    /// What an earlier run has written down of this prefix.
    pub(super) fn read(file: &Path, prefix: &ObjectUri) -> Self {
        let mut stored = Self::new(file, prefix);
        let text = std::fs::read(file).ok();
        let content = text.and_then(|text| serde_json::from_slice::<Content>(&text).ok());
        if let Some(content) = content.filter(|content| content.prefix == stored.content.prefix) {
            stored.content = content;
        }
        stored
    }

    /// Whether the file is this object.
    pub(super) fn is(&self, path: &str, signature: Signature, etag: Option<&str>) -> Known {
        let Some(known) = self.content.files.get(path) else {
            return Known::Unknown;
        };
        let now = Copy::new(signature, &known.etag);
        // A copy of the whole tree brings other inodes, and is nobody's work.
        let was_written = (known.bytes, known.modified) != (now.bytes, now.modified);
        match (*known == now, etag == Some(&*known.etag)) {
            (true, true) => Known::Same,
            (true, false) => Known::ObjectChanged,
            (false, true) if was_written => Known::FileChanged,
            (false, _) => Known::Unknown,
        }
    }

    /// The file may be half of one.
    pub(super) fn doubt(&mut self, path: &str, signature: Signature) {
        let copy = Copy::new(signature, "");
        self.content.doubtful.insert(path.to_owned(), copy);
    }

    /// Files that may be half of one if they still are what they were.
    pub(super) fn doubtful(&self) -> impl Iterator<Item = &str> {
        self.content.doubtful.keys().map(String::as_str)
    }

    /// Whether this is such a file.
    pub(super) fn is_doubtful(&self, path: &str, signature: Signature) -> bool {
        self.content.doubtful.get(path) == Some(&Copy::new(signature, ""))
    }

    /// The file is the object. Of one without an ETag nothing is known later.
    pub(super) fn insert(&mut self, path: &str, signature: Signature, etag: Option<&str>) {
        match etag {
            Some(etag) => {
                let copy = Copy::new(signature, etag);
                self.content.files.insert(path.to_owned(), copy);
            }
            None => self.remove(path),
        }
    }

    /// There is no such object.
    pub(super) fn remove(&mut self, path: &str) {
        self.content.files.remove(path);
    }

    /// Writes it down. Without it the next run fetches more.
    pub(super) fn write(&self) {
        let text = serde_json::to_vec(&self.content).unwrap_or_default();
        if let Err(error) = write_whole(&self.file, &text) {
            tracing::warn!(%error, "the next run here will fetch checkpoints that it has");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_again_unless_it_or_the_object_has_changed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("stored.json");
        let prefix = ObjectUri::s3("b", "ckpt/");
        let signature = Signature {
            bytes: 3,
            mtime_ns: 1_700_000_000_123_456_789,
            inode: 7,
        };
        let mut stored = Stored::new(&file, &prefix);
        stored.insert("a", signature, Some("\"e\""));
        stored.insert("b", signature, None);
        stored.doubt("c", signature);
        stored.write();
        let read = Stored::read(&file, &prefix);
        assert_eq!(read.is("a", signature, Some("\"e\"")), Known::Same);
        assert_eq!(read.is("a", signature, Some("\"f\"")), Known::ObjectChanged);
        assert_eq!(read.is("a", signature, None), Known::ObjectChanged);
        assert_eq!(read.is("b", signature, Some("\"e\"")), Known::Unknown);
        let later = Signature {
            mtime_ns: signature.mtime_ns + 1,
            ..signature
        };
        assert_eq!(read.is("a", later, Some("\"e\"")), Known::FileChanged);
        assert_eq!(read.is("a", later, Some("\"f\"")), Known::Unknown);
        let moved = Signature {
            inode: 8,
            ..signature
        };
        assert_eq!(read.is("a", moved, Some("\"e\"")), Known::Unknown);
        assert!(read.is_doubtful("c", signature) && !read.is_doubtful("c", later));
        let other = Stored::read(&file, &ObjectUri::s3("b", "other/"));
        assert_eq!(other.is("a", signature, Some("\"e\"")), Known::Unknown);
        assert_eq!(other.doubtful().count(), 0);
        std::fs::write(&file, "{").unwrap();
        let damaged = Stored::read(&file, &prefix);
        assert_eq!(damaged.is("a", signature, Some("\"e\"")), Known::Unknown);
    }
}
