//! From S3 into the directory, before the trainer starts: each file whole or not at all.
//!
//! One stream over all objects, which the engine reads ahead, is cut into files. A file that is here and newer than the
//! object is kept: a run that was killed here may not have uploaded it.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use futures::{StreamExt, TryStreamExt};

use super::changes::{DRAFT_SUFFIX, Scan, Signature};
use crate::client::{Depth, ListEntry};
use crate::download::{Stop, local_name};
use crate::error::{Error, Result};
use crate::object::{ObjectMeta, ObjectUri};
use crate::prefetch::{Next, Prefetcher};
use crate::runtime;

/// How long bytes are waited for before somebody looks whether to stop.
const STOP_POLL: Duration = Duration::from_millis(50);

/// What was there, and what was fetched.
#[derive(Debug, Default)]
pub(in crate::job) struct Restored {
    pub(in crate::job) stored: Scan,
    pub(in crate::job) files: u64,
    pub(in crate::job) bytes: u64,
}

/// Fetches what lies below `prefix` and is not in `directory`.
pub(in crate::job) fn restore(
    engine: &Prefetcher,
    prefix: &ObjectUri,
    directory: &Path,
    stop: &Stop,
) -> Result<Restored> {
    fs::create_dir_all(directory).map_err(|error| Error::io(directory, error))?;
    sweep_drafts(directory)?;
    let mut restored = Restored::default();
    let mut missing = Vec::new();
    for meta in list(engine, prefix)? {
        let path = directory.join(local_name(prefix, &meta.id.uri)?);
        match is_needed(&path, &meta) {
            Needed::Fetch => missing.push((path, meta)),
            Needed::Same(signature) => _ = restored.stored.insert(key(prefix, &meta), signature),
            Needed::NewerHere => _ = restored.stored.insert(key(prefix, &meta), elsewhere(&meta)),
        }
    }
    fetch(engine, prefix, missing, stop, &mut restored)?;
    Ok(restored)
}

/// Takes away what a run that was killed had not finished.
fn sweep_drafts(directory: &Path) -> Result<()> {
    let entries = fs::read_dir(directory).map_err(|error| Error::io(directory, error))?;
    for entry in entries.flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => sweep_drafts(&path)?,
            Ok(kind) if kind.is_file() && name.starts_with('.') && name.ends_with(DRAFT_SUFFIX) => {
                fs::remove_file(&path).map_err(|error| Error::io(&path, error))?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn key(prefix: &ObjectUri, meta: &ObjectMeta) -> String {
    meta.id.uri.key()[prefix.key().len()..].to_owned()
}

fn list(engine: &Prefetcher, prefix: &ObjectUri) -> Result<Vec<ObjectMeta>> {
    let entries = engine.client().list(prefix, Depth::All);
    let objects = entries.try_filter_map(|entry| async move {
        Ok(match entry {
            // Markers of folders are no files.
            ListEntry::Object(meta) if !meta.id.uri.key().ends_with('/') => Some(meta),
            _ => None,
        })
    });
    runtime::handle().block_on(objects.try_collect())
}

/// What no file here can be: it goes up if it is here, and down if it was deleted.
fn elsewhere(meta: &ObjectMeta) -> Signature {
    Signature {
        bytes: meta.size_bytes,
        mtime_ns: i128::MIN,
        inode: 0,
    }
}

enum Needed {
    Fetch,
    Same(Signature),
    NewerHere,
}

fn is_needed(path: &Path, meta: &ObjectMeta) -> Needed {
    let Ok(here) = fs::metadata(path) else {
        return Needed::Fetch;
    };
    match (here.modified().ok(), meta.last_modified) {
        (Some(here_at), Some(there_at)) if here_at > there_at => Needed::NewerHere,
        (Some(here_at), Some(there_at)) if here_at == there_at && here.len() == meta.size_bytes => {
            Needed::Same(Signature::of(&here))
        }
        _ => Needed::Fetch,
    }
}

fn fetch(
    engine: &Prefetcher,
    prefix: &ObjectUri,
    missing: Vec<(PathBuf, ObjectMeta)>,
    stop: &Stop,
    restored: &mut Restored,
) -> Result<()> {
    let metas: Vec<_> = missing.iter().map(|(_, meta)| Ok(meta.clone())).collect();
    let mut reader = engine
        .read_all(futures::stream::iter(metas).boxed())?
        .blocking();
    for (path, meta) in missing {
        let mut draft = Draft::new(&path)?;
        loop {
            if stop.is_stopped() {
                return Err(Error::Cancelled);
            }
            match reader.next_chunk_timeout(STOP_POLL)? {
                Next::TimedOut => {}
                Next::End => {
                    return Err(Error::Internal {
                        what: format!("the restoring of {}", meta.id.uri),
                    });
                }
                Next::Chunk(chunk) => {
                    draft.write(&chunk.bytes)?;
                    restored.bytes += chunk.bytes.len() as u64;
                    if chunk.ends_object {
                        break;
                    }
                }
            }
        }
        let signature = draft.finish(&path, meta.last_modified)?;
        restored.stored.insert(key(prefix, &meta), signature);
        restored.files += 1;
    }
    Ok(())
}

/// A file under another name until it is whole.
struct Draft {
    path: PathBuf,
    file: File,
}

impl Draft {
    fn new(of: &Path) -> Result<Self> {
        if let Some(directory) = of.parent() {
            fs::create_dir_all(directory).map_err(|error| Error::io(directory, error))?;
        }
        let name = of.file_name().unwrap_or_default().to_string_lossy();
        let path = of.with_file_name(format!(".{name}{DRAFT_SUFFIX}"));
        let file = File::create(&path).map_err(|error| Error::io(&path, error))?;
        Ok(Self { path, file })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let written = self.file.write_all(bytes);
        written.map_err(|error| Error::io(&self.path, error))
    }

    fn finish(self, to: &Path, modified: Option<SystemTime>) -> Result<Signature> {
        let dated = modified.map_or(Ok(()), |time| self.file.set_modified(time));
        let meta = dated.and_then(|()| self.file.metadata());
        let renamed = fs::rename(&self.path, to);
        let meta = meta.and_then(|meta| renamed.map(|()| meta));
        meta.map(|meta| Signature::of(&meta))
            .map_err(|error| Error::io(to, error))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Gone already when it has its name.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drafts_of_a_killed_run_are_swept_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        for name in ["sub/.x.standpipe-tmp", "x.standpipe-tmp", "sub/x", ".y"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        sweep_drafts(dir.path()).unwrap();
        let is_there = |name: &str| dir.path().join(name).exists();
        assert!(!is_there("sub/.x.standpipe-tmp"));
        assert!(is_there("x.standpipe-tmp") && is_there("sub/x") && is_there(".y"));
    }
}
