//! What of a directory must be uploaded now: plain functions of what was seen, and when.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::download::is_temporary;
use crate::error::Error;

/// Names of files that are being written by us; they are nobody's checkpoint.
pub(super) const DRAFT_SUFFIX: &str = ".standpipe-tmp";

/// Names of files that an earlier run's trainer may have left half written: they are for whoever wants them.
pub(super) const UNSETTLED_SUFFIX: &str = ".standpipe-unsettled";

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

/// A look at a directory.
#[derive(Debug, Default)]
pub(in crate::job) struct Seen {
    pub(in crate::job) files: Scan,
    /// What could not be looked at, a directory with a `/` at its end, and why. It may be there.
    pub(in crate::job) unknown: Vec<(String, Error)>,
    /// Links that lead nowhere.
    dangling: Vec<String>,
}

impl Seen {
    /// Whether a file that was not seen may be there all the same.
    fn may_be_there(&self, path: &str) -> bool {
        let covers = |(unknown, _): &(String, Error)| match unknown.as_str() {
            "" => true,
            directory if directory.ends_with('/') => path.starts_with(directory),
            file => path == file,
        };
        self.unknown.iter().any(covers) || self.dangling.iter().any(|link| link == path)
    }
}

/// Of the root of a file system, and nobody's checkpoint.
const LOST_AND_FOUND: &str = "lost+found";

/// Looks at every file. Links to files count as files; links to directories are not followed, nor are FIFOs read.
pub(super) fn scan(directory: &Path) -> Seen {
    let mut seen = Seen::default();
    walk(directory, "", &mut seen);
    seen
}

fn walk(directory: &Path, prefix: &str, seen: &mut Seen) {
    let mut unknown = |error| {
        seen.unknown
            .push((prefix.to_owned(), Error::io(directory, error)));
    };
    let entries = match std::fs::read_dir(directory) {
        // Deleted while we look; of a directory that is gone as a whole nobody meant each file.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !prefix.is_empty() => return,
        Err(error) => return unknown(error),
        Ok(entries) => entries,
    };
    let (found, failed): (Vec<_>, Vec<_>) = entries.partition(|entry| entry.is_ok());
    failed
        .into_iter()
        .filter_map(Result::err)
        .for_each(&mut unknown);
    for entry in found.into_iter().flatten() {
        let Ok(name) = entry.file_name().into_string() else {
            tracing::warn!(path = %entry.path().display(), "not uploaded: its name is not UTF-8, as keys are");
            continue;
        };
        let path = format!("{prefix}{name}");
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if path != LOST_AND_FOUND {
                walk(&entry.path(), &format!("{path}/"), seen);
            }
            continue;
        }
        let is_ours = [DRAFT_SUFFIX, UNSETTLED_SUFFIX]
            .iter()
            .any(|suffix| name.ends_with(suffix))
            || is_temporary(&name);
        match std::fs::metadata(entry.path()) {
            Ok(meta) if meta.is_file() && !is_ours => {
                seen.files.insert(path, Signature::of(&meta));
            }
            Ok(_) => {}
            // Deleted meanwhile, or a link that leads nowhere: one that is about to lead to another file, maybe.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                if std::fs::symlink_metadata(entry.path()).is_ok() {
                    tracing::debug!(path, "a link that leads nowhere");
                    seen.dangling.push(path);
                }
            }
            Err(error) => seen.unknown.push((path, Error::io(entry.path(), error))),
        }
    }
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
    /// To be uploaded later: they may change yet.
    pub(super) unsettled: Vec<String>,
}

impl Ledger {
    /// Begins with files that are in S3 as they are here.
    pub(super) fn new(stored: Scan) -> Self {
        Self {
            stored,
            seen: BTreeMap::new(),
        }
    }

    /// Takes note of what is there at `now`, and says what is due. With a `settle` of zero everything has settled, and so has
    /// a file that was written before `settled_before_ns`.
    pub(super) fn due(
        &mut self,
        seen: &Seen,
        now: Instant,
        settle: Duration,
        settled_before_ns: i128,
    ) -> Due {
        let (whole, scan) = (seen, &seen.files);
        self.seen.retain(|path, _| scan.contains_key(path));
        let mut due = Due::default();
        let mut unsettled: Option<i128> = None;
        for (path, signature) in scan {
            let seen = self.seen.entry(path.clone()).or_insert((*signature, now));
            if seen.0 != *signature {
                *seen = (*signature, now);
            }
            let has_settled = now.saturating_duration_since(seen.1) >= settle
                || signature.mtime_ns < settled_before_ns;
            if self.stored.get(path) == Some(signature) {
                continue;
            }
            match has_settled {
                true => due.upload.push((path.clone(), *signature)),
                false => {
                    due.unsettled.push(path.clone());
                    let mtime = signature.mtime_ns;
                    unsettled = Some(unsettled.map_or(mtime, |before| before.min(mtime)));
                }
            }
        }
        // What is no older than a file that must wait may point to it.
        let mut waits = |(path, signature): &(String, Signature)| {
            let waits = unsettled.is_some_and(|time| signature.mtime_ns >= time);
            if waits {
                due.unsettled.push(path.clone());
            }
            waits
        };
        due.upload = std::mem::take(&mut due.upload)
            .into_iter()
            .filter(|file| !waits(file))
            .collect();
        due.upload.sort_by_key(|(_, signature)| signature.mtime_ns);
        let gone = self
            .stored
            .keys()
            .filter(|path| !scan.contains_key(path.as_str()) && !whole.may_be_there(path));
        due.delete.extend(gone.cloned());
        due
    }

    /// A file is in S3 as it was seen.
    pub(super) fn uploaded(&mut self, path: &str, signature: Signature) {
        self.stored.insert(path.to_owned(), signature);
    }

    /// How a file was when it was seen last.
    pub(super) fn seen(&self, path: &str) -> Option<Signature> {
        self.seen.get(path).map(|(signature, _)| *signature)
    }

    /// What is in S3 and as it is here, or not here.
    pub(super) fn is_stored(&self, path: &str, signature: Signature) -> bool {
        self.stored.get(path) == Some(&signature)
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

    fn seen(files: Scan) -> Seen {
        Seen {
            files,
            ..Seen::default()
        }
    }

    fn due(
        ledger: &mut Ledger,
        files: &[(&str, Signature)],
        now: Instant,
        settle: Duration,
    ) -> Due {
        ledger.due(&seen(scan_of(files)), now, settle, i128::MIN)
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
            |files: &[(&str, Signature)], millis| due(&mut ledger, files, at(millis), settle);
        let old = ("old", file(1, 1));
        assert_eq!(paths(&look(&[old, ("a", file(5, 9))], 0)), [""; 0]);
        // It still grows.
        assert_eq!(paths(&look(&[old, ("a", file(6, 10))], 1900)), [""; 0]);
        assert_eq!(paths(&look(&[old, ("a", file(6, 10))], 3800)), [""; 0]);
        assert_eq!(paths(&look(&[old, ("a", file(6, 10))], 3900)), ["a"]);
        ledger.uploaded("a", file(6, 10));
        assert_eq!(
            paths(&due(
                &mut ledger,
                &[old, ("a", file(6, 10))],
                at(9000),
                settle
            )),
            [""; 0]
        );
        // A rename over it: another inode, although size and time agree.
        let renamed = Signature {
            inode: 2,
            ..file(6, 10)
        };
        let last = due(&mut ledger, &[("a", renamed)], at(9000), Duration::ZERO);
        assert_eq!(
            (paths(&last), last.delete.clone()),
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
        due(&mut ledger, &[pointer, old], at(0), settle);
        // Moved here with its time.
        let all = [pointer, old, ("step-2", file(9, 20))];
        assert_eq!(paths(&due(&mut ledger, &all, at(3), settle)), ["step-1"]);
        let last = due(&mut ledger, &all, at(5), settle);
        assert_eq!(paths(&last), ["step-1", "step-2", "latest"]);
    }

    #[test]
    fn what_was_written_first_goes_up_first() {
        let mut ledger = Ledger::default();
        let files = [
            ("latest", file(1, 30)),
            ("step-1", file(9, 10)),
            ("step-2", file(9, 20)),
        ];
        let last = due(&mut ledger, &files, Instant::now(), Duration::ZERO);
        assert_eq!(paths(&last), ["step-1", "step-2", "latest"]);
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
                let due = ledger.due(&seen(last.clone()), now, Duration::from_secs(2), i128::MIN);
                for (path, signature) in due.upload {
                    if luck.next() == Some(true) {
                        ledger.uploaded(&path, signature);
                    }
                }
            }
            let due = ledger.due(&seen(last.clone()), now, Duration::ZERO, i128::MIN);
            for (path, signature) in due.upload {
                ledger.uploaded(&path, signature);
            }
            for path in due.delete {
                ledger.deleted(&path);
            }
            prop_assert_eq!(ledger.due(&seen(last.clone()), now, Duration::ZERO, i128::MIN), Due::default());
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
        std::fs::write(at("sub/x.standpipe-unsettled"), "half").unwrap();
        std::os::unix::fs::symlink("sub/weights", at("latest")).unwrap();
        std::os::unix::fs::symlink("sub", at("loop")).unwrap();
        std::os::unix::fs::symlink("nowhere", at("broken")).unwrap();
        std::fs::write(at(".standpipe-0123456789abcdef.part"), "half").unwrap();
        std::fs::create_dir(at(LOST_AND_FOUND)).unwrap();
        std::fs::write(at("lost+found/x"), "").unwrap();
        let seen = scan(dir.path());
        assert!(seen.unknown.is_empty());
        let found: Vec<_> = seen.files.into_keys().collect();
        assert_eq!(found, ["latest", "sub/weights"]);
    }

    #[test]
    fn what_could_not_be_looked_at_is_not_gone() {
        let stored = scan_of(&[("a", file(1, 1)), ("b/c", file(1, 1)), ("link", file(1, 1))]);
        let deletes = |seen: &Seen| {
            let mut ledger = Ledger::new(stored.clone());
            ledger
                .due(seen, Instant::now(), Duration::ZERO, i128::MIN)
                .delete
        };
        assert_eq!(deletes(&Seen::default()), ["a", "b/c", "link"]);
        let unknown = |path: &str| Seen {
            unknown: vec![(path.into(), Error::Cancelled)],
            ..Seen::default()
        };
        assert_eq!(deletes(&unknown("b/")), ["a", "link"]);
        assert_eq!(deletes(&unknown("a")), ["b/c", "link"]);
        // The root is gone, or unreadable: nobody has deleted each file.
        let dir = tempfile::tempdir().unwrap();
        let absent = scan(&dir.path().join("absent"));
        assert_eq!((absent.unknown.len(), deletes(&absent)), (1, vec![]));
        std::os::unix::fs::symlink("nowhere", dir.path().join("link")).unwrap();
        assert_eq!(deletes(&scan(dir.path())), ["a", "b/c"]);
    }

    #[test]
    fn what_was_written_long_before_has_settled_although_nobody_has_looked() {
        let (now, settle) = (Instant::now(), Duration::from_secs(2));
        let files = scan_of(&[
            ("old", file(1, 10)),
            ("new", file(1, 20)),
            ("newer", file(1, 30)),
        ]);
        let due = Ledger::default().due(&seen(files), now, settle, 20);
        assert_eq!(paths(&due), ["old"]);
        assert_eq!(due.unsettled, ["new", "newer"]);
    }
}
