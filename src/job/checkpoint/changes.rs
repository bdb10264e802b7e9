//! What of a directory must be uploaded now: plain functions of what was seen, and when.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// Names of files that are being written by us; they are nobody's checkpoint.
pub(super) const DRAFT_SUFFIX: &str = ".standpipe-tmp";

/// What tells one state of a file from another: a rename brings another inode, a write another time or size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::job) struct Signature {
    pub(super) bytes: u64,
    pub(super) mtime_ns: i128,
    pub(super) inode: u64,
}

impl Signature {
    pub(super) fn of(meta: &std::fs::Metadata) -> Self {
        Self {
            bytes: meta.len(),
            mtime_ns: i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec()),
            inode: meta.ino(),
        }
    }
}

/// Files by their path below the directory, with `/` between its parts.
pub(in crate::job) type Scan = BTreeMap<String, Signature>;

/// Looks at every file. Links to files count as files; links to directories are not followed, nor are FIFOs read.
pub(super) fn scan(directory: &Path) -> Result<Scan> {
    let mut found = Scan::new();
    walk(directory, "", &mut found)?;
    Ok(found)
}

fn walk(directory: &Path, prefix: &str, found: &mut Scan) -> Result<()> {
    let entries = match std::fs::read_dir(directory) {
        // Deleted while we look.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(|error| Error::io(directory, error))?,
    };
    for entry in entries.flatten() {
        let Ok(name) = entry.file_name().into_string() else {
            tracing::warn!(path = %entry.path().display(), "not uploaded: its name is not UTF-8, as keys are");
            continue;
        };
        let path = format!("{prefix}{name}");
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&entry.path(), &format!("{path}/"), found)?;
            continue;
        }
        if let Ok(meta) = std::fs::metadata(entry.path())
            && meta.is_file()
            && !name.ends_with(DRAFT_SUFFIX)
        {
            found.insert(path, Signature::of(&meta));
        }
    }
    Ok(())
}

/// What is known of a directory and its copy.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// What is in S3.
    stored: Scan,
    /// What was seen last, and since when it is as it is.
    seen: BTreeMap<String, (Signature, Instant)>,
}

/// What is to be done.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Due {
    /// To be uploaded, the oldest first.
    pub(super) upload: Vec<(String, Signature)>,
    /// To be deleted.
    pub(super) delete: Vec<String>,
}

impl Ledger {
    /// Begins with files that are in S3 as they are here.
    pub(super) fn new(stored: Scan) -> Self {
        Self {
            stored,
            seen: BTreeMap::new(),
        }
    }

    /// Takes note of what is there at `now`, and says what is due. With a `settle` of zero everything has settled.
    pub(super) fn due(&mut self, scan: &Scan, now: Instant, settle: Duration) -> Due {
        self.seen.retain(|path, _| scan.contains_key(path));
        let mut due = Due::default();
        let mut unsettled: Option<i128> = None;
        for (path, signature) in scan {
            let seen = self.seen.entry(path.clone()).or_insert((*signature, now));
            if seen.0 != *signature {
                *seen = (*signature, now);
            }
            let has_settled = now.saturating_duration_since(seen.1) >= settle;
            if self.stored.get(path) == Some(signature) {
                continue;
            }
            match has_settled {
                true => due.upload.push((path.clone(), *signature)),
                false => {
                    let mtime = signature.mtime_ns;
                    unsettled = Some(unsettled.map_or(mtime, |before| before.min(mtime)));
                }
            }
        }
        // What is no older than a file that must wait may point to it.
        due.upload
            .retain(|(_, signature)| unsettled.is_none_or(|time| signature.mtime_ns < time));
        due.upload.sort_by_key(|(_, signature)| signature.mtime_ns);
        let gone = self.stored.keys().filter(|path| !scan.contains_key(*path));
        due.delete.extend(gone.cloned());
        due
    }

    /// A file is in S3 as it was seen.
    pub(super) fn uploaded(&mut self, path: &str, signature: Signature) {
        self.stored.insert(path.to_owned(), signature);
    }

    /// An object is gone.
    pub(super) fn deleted(&mut self, path: &str) {
        self.stored.remove(path);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(bytes: u64, mtime_ns: i128) -> Signature {
        Signature {
            bytes,
            mtime_ns,
            inode: 1,
        }
    }

    fn scan_of(files: &[(&str, Signature)]) -> Scan {
        let owned = files.iter().map(|(path, file)| ((*path).to_owned(), *file));
        owned.collect()
    }

    fn paths(due: &Due) -> Vec<&str> {
        due.upload.iter().map(|(path, _)| path.as_str()).collect()
    }

    #[test]
    fn a_file_is_due_when_it_has_settled_and_until_it_is_stored() {
        let (start, settle) = (Instant::now(), Duration::from_secs(2));
        let at = |millis| start + Duration::from_millis(millis);
        let mut ledger = Ledger::new(scan_of(&[("old", file(1, 1))]));
        let mut look =
            |files: &[(&str, Signature)], millis| ledger.due(&scan_of(files), at(millis), settle);
        let old = ("old", file(1, 1));
        assert_eq!(paths(&look(&[old, ("a", file(5, 9))], 0)), [""; 0]);
        // It still grows.
        assert_eq!(paths(&look(&[old, ("a", file(6, 10))], 1900)), [""; 0]);
        assert_eq!(paths(&look(&[old, ("a", file(6, 10))], 3800)), [""; 0]);
        assert_eq!(paths(&look(&[old, ("a", file(6, 10))], 3900)), ["a"]);
        ledger.uploaded("a", file(6, 10));
        assert_eq!(
            paths(&ledger.due(&scan_of(&[old, ("a", file(6, 10))]), at(9000), settle)),
            [""; 0]
        );
        // A rename over it: another inode, although size and time agree.
        let renamed = Signature {
            inode: 2,
            ..file(6, 10)
        };
        let due = ledger.due(&scan_of(&[("a", renamed)]), at(9000), Duration::ZERO);
        assert_eq!(
            (paths(&due), due.delete.clone()),
            (vec!["a"], vec!["old".to_owned()])
        );
    }

    #[test]
    fn nothing_goes_up_before_an_older_file_that_has_not_settled() {
        let (start, settle) = (Instant::now(), Duration::from_secs(2));
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut ledger = Ledger::default();
        let pointer = ("latest", file(1, 30));
        let old = ("step-1", file(1, 10));
        ledger.due(&scan_of(&[pointer, old]), at(0), settle);
        // Moved here with its time.
        let all = [pointer, old, ("step-2", file(9, 20))];
        assert_eq!(
            paths(&ledger.due(&scan_of(&all), at(3), settle)),
            ["step-1"]
        );
        let due = ledger.due(&scan_of(&all), at(5), settle);
        assert_eq!(paths(&due), ["step-1", "step-2", "latest"]);
    }

    #[test]
    fn what_was_written_first_goes_up_first() {
        let mut ledger = Ledger::default();
        let files = [
            ("latest", file(1, 30)),
            ("step-1", file(9, 10)),
            ("step-2", file(9, 20)),
        ];
        let due = ledger.due(&scan_of(&files), Instant::now(), Duration::ZERO);
        assert_eq!(paths(&due), ["step-1", "step-2", "latest"]);
    }

    proptest! {
        /// Whatever happened before, a look without a settle time and its uploads leave nothing due.
        #[test]
        fn the_last_look_leaves_nothing_behind(
            looks in proptest::collection::vec(
                proptest::collection::btree_map("[a-c]", (0u64..3, 0i128..3), 0..4), 1..6,
            ),
            uploads in proptest::collection::vec(any::<bool>(), 24),
        ) {
            let (mut now, mut ledger) = (Instant::now(), Ledger::default());
            let mut luck = uploads.into_iter().cycle();
            let mut last = Scan::new();
            for files in looks {
                last = files.into_iter().map(|(path, (bytes, time))| (path, file(bytes, time))).collect();
                now += Duration::from_secs(1);
                let due = ledger.due(&last, now, Duration::from_secs(2));
                for (path, signature) in due.upload {
                    if luck.next() == Some(true) {
                        ledger.uploaded(&path, signature);
                    }
                }
            }
            let due = ledger.due(&last, now, Duration::ZERO);
            for (path, signature) in due.upload {
                ledger.uploaded(&path, signature);
            }
            for path in due.delete {
                ledger.deleted(&path);
            }
            prop_assert_eq!(ledger.due(&last, now, Duration::ZERO), Due::default());
            prop_assert_eq!(&ledger.stored, &last);
        }
    }

    #[test]
    fn links_to_files_count_and_drafts_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        std::fs::create_dir_all(at("sub")).unwrap();
        std::fs::write(at("sub/weights"), "w").unwrap();
        std::fs::write(at(".x.standpipe-tmp"), "half").unwrap();
        std::os::unix::fs::symlink("sub/weights", at("latest")).unwrap();
        std::os::unix::fs::symlink("sub", at("loop")).unwrap();
        std::os::unix::fs::symlink("nowhere", at("broken")).unwrap();
        let found: Vec<_> = scan(dir.path()).unwrap().into_keys().collect();
        assert_eq!(found, ["latest", "sub/weights"]);
        assert!(scan(&at("absent")).unwrap().is_empty());
    }
}
