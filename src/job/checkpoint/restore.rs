//! From S3 to the checkpoint directory, before the trainer starts: in parallel, and only what is not here already.
//!
//! A file whose size and time are the object's is here; so is one that an earlier run has uploaded from here, if neither it
//! nor the object has changed since ([`Stored`]). One that is newer than the object is the trainer's latest work: a run that
//! was killed before it could upload it. It stays, and goes up. (Whether it is newer its date tells, unless the object is
//! what was uploaded from here: then it is newer whatever the clocks say.) But what the trainer may have been writing when it
//! was killed is put aside. All else is downloaded as in File mode: each file appears whole, and a large one that was
//! interrupted goes on inside.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;

use super::changes::{DRAFT_SUFFIX, Scan, Signature, UNSETTLED_SUFFIX};
use super::stored::{Known, Stored};
use crate::client::{Depth, ListEntry};
use crate::download::{Download, DownloadConfig, DownloadProgress, Stop, is_temporary, local_name};
use crate::error::{Error, Result};
use crate::input::Listed;
use crate::object::{ObjectMeta, ObjectUri};
use crate::prefetch::{PrefetchConfig, Prefetcher};
use crate::runtime;

/// How long a listing goes on for somebody who has asked for the end: nobody notices it.
const STOP_POLL: Duration = Duration::from_millis(50);

/// What was there, and what was fetched.
#[derive(Debug, Default)]
pub(in crate::job) struct Restored {
    /// Files that are in S3.
    pub(in crate::job) scan: Scan,
    /// Which objects they are.
    pub(in crate::job) stored: Stored,
    pub(in crate::job) files: u64,
    pub(in crate::job) bytes: u64,
    /// How many were here already.
    pub(in crate::job) kept_files: u64,
}

/// Hears of the download.
type Begun<'a> = &'a dyn Fn(&Arc<DownloadProgress>);

/// Where checkpoints are, and what brings them.
#[derive(Debug)]
pub(in crate::job) struct Restore<'a> {
    pub(in crate::job) engine: &'a Prefetcher,
    pub(in crate::job) config: &'a PrefetchConfig,
    pub(in crate::job) prefix: &'a ObjectUri,
    pub(in crate::job) directory: &'a Path,
    /// Where what is stored is written down.
    pub(in crate::job) record: &'a Path,
    /// Whether files count as whole that a trainer may have been writing when it was killed.
    pub(in crate::job) keeps_unsettled: bool,
}

impl Restore<'_> {
    /// Fetches what lies below the prefix and is not in the directory. `begun` hears of the download, if there is one.
    pub(in crate::job) fn run(&self, stop: &Arc<Stop>, begun: Begun<'_>) -> Result<Restored> {
        let directory = self.directory;
        fs::create_dir_all(directory).map_err(|error| Error::io(directory, error))?;
        sweep(directory, &|name| {
            name.ends_with(DRAFT_SUFFIX) && name.starts_with('.')
        });
        let known = Stored::read(self.record, self.prefix);
        if !self.keeps_unsettled {
            put_aside(directory, &known)?;
        }
        let mut restored = Restored {
            stored: Stored::new(self.record, self.prefix),
            ..Restored::default()
        };
        let (mut missing, mut paths) = (Listed::new(self.prefix.clone()), Vec::new());
        for meta in self.list(stop)? {
            let path = directory.join(local_name(self.prefix, &meta.id.uri)?);
            let key = self.key(&meta);
            let etag = meta.id.etag.as_deref();
            match is_needed(&path, &meta, |signature| known.is(&key, signature, etag)) {
                Needed::Fetch => {
                    missing.push(&meta);
                    paths.push((path, meta));
                }
                Needed::Same(signature) => {
                    restored.kept_files += 1;
                    restored.stored.insert(&key, signature, etag);
                    restored.scan.insert(key, signature);
                }
                Needed::NewerHere => _ = restored.scan.insert(key, elsewhere(&meta)),
            }
        }
        self.fetch(missing, paths, (stop, begun), &mut restored)?;
        // Of objects that are not there any more.
        sweep(directory, &is_temporary);
        restored.stored.write();
        Ok(restored)
    }

    fn key(&self, meta: &ObjectMeta) -> String {
        meta.id.uri.key()[self.prefix.key().len()..].to_owned()
    }

    fn list(&self, stop: &Stop) -> Result<Vec<ObjectMeta>> {
        let entries = self.engine.client().list(self.prefix, Depth::All);
        let objects = entries.try_filter_map(|entry| async move {
            Ok(match entry {
                // Markers of folders are no files.
                ListEntry::Object(meta) if !meta.id.uri.key().ends_with('/') => Some(meta),
                _ => None,
            })
        });
        let mut listed = std::pin::pin!(objects.try_collect());
        loop {
            if stop.is_stopped() {
                return Err(Error::Cancelled);
            }
            let next = async { tokio::time::timeout(STOP_POLL, &mut listed).await };
            if let Ok(listed) = runtime::handle().block_on(next) {
                return listed;
            }
        }
    }

    fn fetch(
        &self,
        missing: Listed,
        paths: Vec<(PathBuf, ObjectMeta)>,
        (stop, begun): (&Arc<Stop>, Begun<'_>),
        restored: &mut Restored,
    ) -> Result<()> {
        if paths.is_empty() {
            return Ok(());
        }
        // Of a date that agrees to the second the download would think that the file is here.
        for (path, meta) in &paths {
            if fs::metadata(path).is_ok_and(|here| here.len() != meta.size_bytes) {
                continue;
            }
            match fs::remove_file(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io(path, error));
                }
                _ => {}
            }
        }
        let config = DownloadConfig::fitting(self.config);
        let engine = self.engine.clone();
        let download = Download::listed(engine, Arc::new(missing), self.directory, config)
            .stopped_by(stop.clone());
        begun(download.progress());
        download.run()?;
        for (path, meta) in paths {
            let here = fs::metadata(&path).map_err(|error| Error::io(&path, error))?;
            let (key, signature) = (self.key(&meta), Signature::of(&here));
            let etag = meta.id.etag.as_deref();
            restored.stored.insert(&key, signature, etag);
            restored.scan.insert(key, signature);
            restored.files += 1;
            restored.bytes += meta.size_bytes;
        }
        Ok(())
    }
}

/// Moves away what a trainer may have left half written, as long as nobody has written it since.
fn put_aside(directory: &Path, known: &Stored) -> Result<()> {
    for name in known.doubtful() {
        let path = directory.join(name);
        let is_it =
            fs::metadata(&path).is_ok_and(|here| known.is_doubtful(name, Signature::of(&here)));
        if is_it {
            let aside = directory.join(format!("{name}{UNSETTLED_SUFFIX}"));
            fs::rename(&path, &aside).map_err(|error| Error::io(&path, error))?;
            tracing::warn!(path = %aside.display(), "an earlier run was killed while it may have been writing this: not used");
        }
    }
    Ok(())
}

/// Takes away what a run that was killed had not finished. What cannot be looked at stays: it is nothing of ours.
fn sweep(directory: &Path, is_unfinished: &dyn Fn(&str) -> bool) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => sweep(&path, is_unfinished),
            Ok(kind) if kind.is_file() && is_unfinished(&name.to_string_lossy()) => {
                if let Err(error) = fs::remove_file(&path) {
                    tracing::warn!(%error, path = %path.display(), "what is left of an earlier run stays");
                }
            }
            _ => {}
        }
    }
}

/// What no file here can be: it goes up if it is here, and down if it was deleted.
fn elsewhere(meta: &ObjectMeta) -> Signature {
    Signature {
        bytes: meta.size_bytes,
        mtime_ns: i128::MIN,
        inode: 0,
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Needed {
    Fetch,
    Same(Signature),
    NewerHere,
}

fn is_needed(path: &Path, meta: &ObjectMeta, known: impl FnOnce(Signature) -> Known) -> Needed {
    let Ok(here) = fs::metadata(path) else {
        return Needed::Fetch;
    };
    let signature = Signature::of(&here);
    match known(signature) {
        Known::Same if here.len() == meta.size_bytes => return Needed::Same(signature),
        // Whatever the dates say, which are of whole seconds there, and of two clocks.
        Known::Same | Known::ObjectChanged => return Needed::Fetch,
        Known::FileChanged => return Needed::NewerHere,
        Known::Unknown => {}
    }
    match (here.modified().ok(), meta.last_modified) {
        (Some(here_at), Some(there_at)) if here_at > there_at => Needed::NewerHere,
        (Some(here_at), Some(there_at)) if here_at == there_at && here.len() == meta.size_bytes => {
            Needed::Same(signature)
        }
        _ => Needed::Fetch,
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::object::ObjectId;

    #[test]
    fn drafts_of_a_killed_run_are_swept_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        for name in ["sub/.x.standpipe-tmp", "x.standpipe-tmp", "sub/x", ".y"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        sweep(dir.path(), &|name| {
            name.ends_with(DRAFT_SUFFIX) && name.starts_with('.')
        });
        let is_there = |name: &str| dir.path().join(name).exists();
        assert!(!is_there("sub/.x.standpipe-tmp"));
        assert!(is_there("x.standpipe-tmp") && is_there("sub/x") && is_there(".y"));
    }

    #[test]
    fn a_file_is_fetched_unless_it_is_the_object_or_newer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let meta = |size_bytes, seconds| ObjectMeta {
            id: ObjectId::unpinned(ObjectUri::s3("b", "x")),
            size_bytes,
            last_modified: Some(at(seconds)),
            checksum_algorithm: None,
            checksum: None,
        };
        assert_eq!(
            is_needed(&path, &meta(3, 10), |_| Known::Same),
            Needed::Fetch
        );
        fs::write(&path, "abc").unwrap();
        let file = fs::File::options().append(true).open(&path).unwrap();
        file.set_modified(at(10)).unwrap();
        let same = Needed::Same(Signature::of(&fs::metadata(&path).unwrap()));
        assert_eq!(is_needed(&path, &meta(3, 10), |_| Known::Unknown), same);
        assert_eq!(
            is_needed(&path, &meta(4, 10), |_| Known::Unknown),
            Needed::Fetch
        );
        assert_eq!(
            is_needed(&path, &meta(3, 9), |_| Known::Unknown),
            Needed::NewerHere
        );
        // Uploaded from here, so the object is younger.
        assert_eq!(
            is_needed(&path, &meta(3, 99), |_| Known::Unknown),
            Needed::Fetch
        );
        assert_eq!(is_needed(&path, &meta(3, 99), |_| Known::Same), same);
        assert_eq!(
            is_needed(&path, &meta(4, 99), |_| Known::Same),
            Needed::Fetch
        );
        assert_eq!(
            is_needed(&path, &meta(3, 9), |_| Known::ObjectChanged),
            Needed::Fetch
        );
        // The object is what went up from here before: the file is newer, whatever a clock that is behind says.
        assert_eq!(
            is_needed(&path, &meta(3, 99), |_| Known::FileChanged),
            Needed::NewerHere
        );
    }
}
