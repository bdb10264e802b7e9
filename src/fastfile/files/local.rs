//! Whole files on a local disk.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};

use super::super::errno::to_io;
use super::super::source::{Windowed, Windows};
use crate::cache::{BlockCache, CompleteEntry, Entry, Hold, Mapping};
use crate::error::{Error, Result};
use crate::object::{ByteRange, ObjectId};
use crate::runtime;

/// A disk that takes longer for what may wait to be written is broken.
const FLUSH_PATIENCE: Duration = Duration::from_secs(300);

/// What is still missing then is not kept for another reason than that others were in the way.
const MOST_FILLS: usize = 8;

/// A whole object as a local file. It stays where it is as long as this lives: eviction leaves it alone.
///
/// It must not be written to. Its name is the cache's and has no suffix.
#[derive(Debug)]
pub struct LocalFile {
    path: PathBuf,
    whole: Whole,
}

#[derive(Debug)]
enum Whole {
    Cached(CompleteEntry),
    /// The object is a local file itself.
    Own(File),
}

impl LocalFile {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// It, open for reading.
    pub fn file(&self) -> &File {
        match &self.whole {
            Whole::Cached(entry) => entry.file(),
            Whole::Own(file) => file,
        }
    }

    /// Maps it into memory, read-only.
    ///
    /// A page that the disk can't read raises SIGBUS, as with every mapping of a file; so does one of a file in a local
    /// directory that is cut short while it is mapped.
    ///
    /// # Errors
    /// The system's.
    pub fn mmap(&self) -> io::Result<MappedFile> {
        let mapped = match &self.whole {
            Whole::Cached(entry) => Mapped::Cached(entry.mmap().map_err(to_io)?),
            Whole::Own(file) => Mapped::Own(map(file)?),
        };
        Ok(MappedFile(mapped))
    }
}

impl AsRef<Path> for LocalFile {
    fn as_ref(&self) -> &Path {
        &self.path
    }
}

/// A mapping of nothing is an error.
#[expect(unsafe_code, reason = "mapping a file")]
fn map(file: &File) -> io::Result<Option<memmap2::Mmap>> {
    if file.metadata()?.len() == 0 {
        return Ok(None);
    }
    // SAFETY: that nobody writes to the local directory while it is mapped is the documented condition.
    unsafe { memmap2::Mmap::map(file) }.map(Some)
}

/// A whole object in memory that is the page cache's.
#[derive(Debug)]
pub struct MappedFile(Mapped);

#[derive(Debug)]
enum Mapped {
    Cached(Mapping),
    Own(Option<memmap2::Mmap>),
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Mapped::Cached(mapping) => mapping,
            Mapped::Own(map) => map.as_deref().unwrap_or_default(),
        }
    }
}

impl AsRef<[u8]> for MappedFile {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

/// Fetches what is missing. Runs on any runtime; the work is done on the process's.
pub(super) async fn materialize(file: Arc<Windowed>, windows: Arc<Windows>) -> Result<LocalFile> {
    let work = runtime::handle().spawn(async move {
        let id = file.meta().id.clone();
        let uri = id.uri.to_string();
        if let Some(own) = file.local() {
            let path = PathBuf::from(id.uri.key());
            let whole = Whole::Own(own);
            return Ok(LocalFile { path, whole });
        }
        let Some(cache) = windows.cache().cloned() else {
            let reason = "only what is kept in a cache has a path: open the files with one";
            return Err(Error::config(uri, reason));
        };
        let no_room = || {
            let dir = cache.config().dir.display();
            let reason = format!(
                "the cache in {dir} can't keep it: it is full of what is in use, its disk failed, or the object has no \
                 strong ETag"
            );
            Error::config(uri.clone(), reason)
        };
        let (found, wanted) = (cache.clone(), id.clone());
        let held = blocking(move || held(&found, &wanted)).await??;
        let (entry, _hold) = held.ok_or_else(no_room)?;
        // Reads beside it may have filled the queue of what is to be written, or have brought what they did not keep.
        for _ in 0..MOST_FILLS {
            fill(&windows, &cache, &entry, &id).await?;
            let filled = entry.clone();
            if let Some(entry) = blocking(move || filled.complete()).await? {
                return Ok(LocalFile {
                    path: entry.path(),
                    whole: Whole::Cached(entry),
                });
            }
            if !cache.is_storing() {
                break;
            }
        }
        Err(no_room())
    });
    // It fails only when it panics, or when the process ends.
    work.await.unwrap_or(Err(Error::Cancelled))
}

/// The entry, which nobody evicts while it is filled.
fn held(cache: &BlockCache, id: &ObjectId) -> Result<Option<(Arc<Entry>, Hold)>> {
    // It can be evicted in between; whoever loses that race three times over has no cache to speak of.
    for _ in 0..3 {
        let Some(entry) = cache.entry(id)? else {
            break;
        };
        if let Ok(hold) = entry.hold() {
            return Ok(Some((entry, hold)));
        }
    }
    Ok(None)
}

/// Fetches what the entry lacks, no faster than the disk takes it: the cache drops what it has no room to remember.
async fn fill(
    windows: &Windows,
    cache: &BlockCache,
    entry: &Arc<Entry>,
    id: &ObjectId,
) -> Result<()> {
    let config = windows.files().config();
    let lanes = cache.config().write_behind_bytes / config.part_bytes;
    let lanes = usize::try_from(lanes).unwrap_or(usize::MAX);
    let (size, part) = (entry.size_bytes(), config.part_bytes);
    let starts = (0..size.div_ceil(part)).map(|at| at * part);
    let parts = starts.map(|start| ByteRange::new(start, size.min(start + part)));
    stream::iter(parts)
        .map(|range| fill_part(windows, cache, entry, id, range))
        .buffer_unordered(lanes.clamp(1, config.concurrency))
        .try_collect()
        .await
}

async fn fill_part(
    windows: &Windows,
    cache: &BlockCache,
    entry: &Arc<Entry>,
    id: &ObjectId,
    range: ByteRange,
) -> Result<()> {
    let known = entry.clone();
    let present = blocking(move || known.present(range)).await?;
    let missing = ByteRange::new(present.end, range.end);
    if !missing.is_empty() {
        let files = windows.files();
        let mut buf = files.buffer(missing.len() as usize);
        files.client().get(id, missing, &mut buf).await?;
    }
    let cache = cache.clone();
    match blocking(move || cache.flush(FLUSH_PATIENCE)).await? {
        true => Ok(()),
        false => Err(Error::io("the cache", io::ErrorKind::TimedOut.into())),
    }
}

/// Disks may be slow.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| Error::Cancelled)
}
