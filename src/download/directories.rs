//! The directories that a download made: those that stayed empty go away with its failure.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Directories that were not there before.
#[derive(Debug, Default)]
pub(super) struct MadeDirectories(Mutex<Vec<PathBuf>>);

impl MadeDirectories {
    /// Makes `path` and what is missing above it.
    pub(super) fn make(&self, path: &Path) -> io::Result<()> {
        // Once per directory: all files after its first find it here.
        if path.is_dir() {
            return Ok(());
        }
        let missing: Vec<_> = path
            .ancestors()
            .filter(|above| !above.as_os_str().is_empty())
            .take_while(|above| std::fs::symlink_metadata(above).is_err())
            .map(Path::to_owned)
            .collect();
        // Noted first: a failure half-way leaves some of them.
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(missing);
        std::fs::create_dir_all(path)
    }

    /// Removes those that are empty, the deepest first.
    pub(super) fn take_away(&self) {
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        made.sort_by_key(|path| path.components().count());
        for path in made.drain(..).rev() {
            // One that holds files stays.
            let _ = std::fs::remove_dir(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_made_and_is_empty_goes_away() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        std::fs::create_dir(at("old")).unwrap();
        let made = MadeDirectories::default();
        for name in ["old/x", "new/a/b", "new/c", "old"] {
            made.make(&at(name)).unwrap();
        }
        std::fs::write(at("new/c/file"), "").unwrap();
        made.take_away();
        let there = ["old", "old/x", "new/c/file", "new/a"].map(|name| at(name).exists());
        assert_eq!(there, [true, false, true, false]);
        std::fs::write(at("file"), "").unwrap();
        assert!(made.make(&at("file/below")).is_err());
        made.take_away();
        assert!(at("file").exists());
    }
}
