//! The files that were downloaded for a channel, by name: kept beside the tree's other marks, so that a later run takes away
//! those that are none of the data any more. A name a line; names with a line break in them are not kept, and their
//! files are left alone.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::tree::write_whole;
use crate::error::Result;

/// One channel's.
#[derive(Debug)]
pub(super) struct FileList(PathBuf);

impl FileList {
    pub(super) fn of(base: &Path, channel: &str) -> Self {
        Self(
            base.join("input")
                .join(format!(".standpipe-files.{channel}")),
        )
    }

    /// What earlier runs have downloaded; nothing if that is not known.
    pub(super) fn read(&self) -> BTreeSet<PathBuf> {
        let text = fs::read_to_string(&self.0).unwrap_or_default();
        text.lines().map(PathBuf::from).collect()
    }

    pub(super) fn write<'a>(&self, names: impl Iterator<Item = &'a PathBuf>) -> Result<()> {
        let mut text = String::new();
        for name in names.filter_map(|name| name.to_str()) {
            if !name.contains('\n') {
                text.push_str(name);
                text.push('\n');
            }
        }
        write_whole(&self.0, text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("input")).unwrap();
        let list = FileList::of(dir.path(), "train");
        assert_eq!(list.read(), BTreeSet::new());
        let names: BTreeSet<_> = ["a", "b/c d", "e\nf"].map(PathBuf::from).into();
        list.write(names.iter()).unwrap();
        let kept: BTreeSet<_> = ["a", "b/c d"].map(PathBuf::from).into();
        assert_eq!(list.read(), kept);
    }
}
