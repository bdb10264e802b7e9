//! Files as objects: `file://` and plain paths.
//!
//! A key is a path, relative ones are taken from the working directory, and a listing treats it as S3 does: as a
//! prefix of text, so `data/tr` lists `data/train/0` and `data/trial`. Links to files and directories are followed;
//! one that leads back to a directory above it, or to nothing, is an error, and so is a name that is not UTF-8.
//! Pipes, sockets and devices are no objects. An empty directory has no objects, but shows as a prefix in a listing
//! of [one level](Depth::OneLevel).
//!
//! The ETag is made of device, inode, time of the last change in nanoseconds and size: a file that is replaced or
//! written to has another one, as long as the clock of the file system ticked between two changes of equal size
//! (4 ms on older kernels).
//!
//! System calls on files block, so they run on Tokio's threads for that, a part at a time, in slices that leave the
//! bytes in the cache for their CRC. The buffer travels with them and comes back with the answer. A caller that goes
//! away ends the read at the next slice; its buffer is freed there.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Instant;

use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt, TryStreamExt};
use tokio::task::spawn_blocking;

use super::{Depth, GetMeta, ListEntry, ObjectClient};
use crate::buffer::PartBuf;
use crate::error::{Answer, Error, Result};
use crate::metrics::Metrics;
use crate::object::{ByteRange, ObjectId, ObjectMeta, ObjectUri, Scheme};

mod walk;

use walk::Walk;

/// One `pread`: [`PartBuf::advance`] wants its bytes while they are in the cache.
const SLICE_BYTES: usize = 1 << 20;
/// Entries that a listing fetches at a time: a trip to another thread costs as much as several `stat`s.
const PAGE_ENTRIES: usize = 256;

/// Reads files.
#[derive(Debug, Clone, Default)]
pub struct LocalClient {
    metrics: Arc<Metrics>,
}

impl LocalClient {
    /// A client that counts its reads in `metrics`.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics }
    }
}

impl ObjectClient for LocalClient {
    fn head<'a>(&'a self, uri: &'a ObjectUri) -> BoxFuture<'a, Result<ObjectMeta>> {
        async move {
            let path = path(uri)?;
            let found = blocking(move || open(&path).map(|(_, found)| found)).await?;
            Ok(meta(uri.clone(), &found?))
        }
        .boxed()
    }

    fn get<'a>(
        &'a self,
        id: &'a ObjectId,
        range: ByteRange,
        into: &'a mut PartBuf,
    ) -> BoxFuture<'a, Result<GetMeta>> {
        async move {
            let wanted = Arc::new(());
            let mut read = Read {
                path: path(&id.uri)?,
                id: id.clone(),
                range,
                part: into.take(),
                wanted: Arc::downgrade(&wanted),
                metrics: self.metrics.clone(),
            };
            let (part, answer) = blocking(move || {
                let answer = read.run();
                (read.part, answer)
            })
            .await?;
            *into = part;
            answer
        }
        .boxed()
    }

    fn list(&self, prefix: &ObjectUri, depth: Depth) -> BoxStream<'static, Result<ListEntry>> {
        if let Err(error) = path(prefix) {
            return stream::iter([Err(error)]).boxed();
        }
        stream::try_unfold(Walk::new(prefix, depth), |mut walk| async move {
            let page = blocking(move || {
                let page: Vec<_> = walk.by_ref().take(PAGE_ENTRIES).collect();
                (page, walk)
            });
            let (page, walk) = page.await?;
            Ok((!page.is_empty()).then(|| (stream::iter(page), walk)))
        })
        .try_flatten()
        .boxed()
    }
}

/// Runs what blocks. It fails only when the runtime is shut down under it.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    spawn_blocking(work).await.map_err(|_| Error::Cancelled)
}

/// One GET on its way through a thread for blocking calls.
struct Read {
    path: PathBuf,
    id: ObjectId,
    range: ByteRange,
    part: PartBuf,
    /// Dead once the caller is gone.
    wanted: Weak<()>,
    metrics: Arc<Metrics>,
}

impl Read {
    fn run(&mut self) -> Result<GetMeta> {
        let begun = Instant::now();
        self.metrics.requests.add(1);
        self.metrics.requests_in_flight.add(1);
        let answer = self.read();
        self.metrics.requests_in_flight.sub(1);
        self.metrics.request_time.record(begun.elapsed());
        answer
    }

    fn read(&mut self) -> Result<GetMeta> {
        let (file, found) = open(&self.path)?;
        let tag = etag(&found);
        if let Some(expected) = &self.id.etag {
            self.same(expected, &tag)?;
        }
        self.fill(&file, found.len())?;
        let after = file.metadata().map_err(|e| error(&self.path, e))?;
        self.same(&tag, &etag(&after))?;
        Ok(GetMeta {
            etag: Some(tag),
            size_bytes: found.len(),
            checksum: None,
        })
    }

    fn fill(&mut self, file: &File, size_bytes: u64) -> Result<()> {
        let wanted = self.range.skip(self.part.filled().len() as u64);
        let beyond = self.id.size_bytes.is_some() && wanted.end > size_bytes;
        if wanted.start > size_bytes || beyond {
            return Err(Error::RangeNotSatisfiable {
                uri: self.id.uri.to_string(),
                offset: wanted.start,
                answer: said(format!("the file has {size_bytes} bytes")),
            });
        }
        let mut offset = wanted.start;
        let end = wanted.end.min(size_bytes);
        while offset < end && self.part.remaining() > 0 {
            if self.wanted.strong_count() == 0 {
                return Err(Error::Cancelled);
            }
            let n = self.fill_slice(file, offset, end)?;
            if n == 0 {
                // It was cut off; its new ETag is told by the second look at it.
                return Ok(());
            }
            offset += n as u64;
        }
        Ok(())
    }

    fn fill_slice(&mut self, file: &File, offset: u64, end: u64) -> Result<usize> {
        let slice = self.part.unfilled_mut();
        let len = slice
            .len()
            .min(SLICE_BYTES)
            .min(usize::try_from(end - offset).unwrap_or(SLICE_BYTES));
        loop {
            match file.read_at(&mut slice[..len], offset) {
                Ok(n) => {
                    self.part.advance(n);
                    self.metrics.bytes_received.add(n as u64);
                    return Ok(n);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(error(&self.path, e)),
            }
        }
    }

    fn same(&self, expected: &str, found: &str) -> Result<()> {
        if expected == found {
            return Ok(());
        }
        Err(Error::Changed {
            uri: self.id.uri.to_string(),
            offset: self.range.start + self.part.filled().len() as u64,
            expected: expected.to_string(),
            found: found.to_string(),
            answer: Box::default(),
        })
    }
}

fn path(uri: &ObjectUri) -> Result<PathBuf> {
    if uri.scheme() != Scheme::File {
        return Err(Error::config(
            uri.to_string(),
            "not a file: use file:///path or a plain path",
        ));
    }
    Ok(PathBuf::from(uri.key()))
}

/// Opens a regular file. `O_NONBLOCK` has no effect on one, and keeps a FIFO of that name from blocking forever.
fn open(path: &Path) -> Result<(File, Metadata)> {
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)
        .map_err(|e| error(path, e))?;
    let found = file.metadata().map_err(|e| error(path, e))?;
    if !found.is_file() {
        let what = if found.is_dir() {
            "it is a directory"
        } else {
            "it is not a regular file"
        };
        return Err(Error::NotFound {
            uri: display(path),
            offset: None,
            answer: Box::new(said(what)),
        });
    }
    Ok((file, found))
}

fn etag(found: &Metadata) -> Arc<str> {
    let nanoseconds = i128::from(found.mtime()) * 1_000_000_000 + i128::from(found.mtime_nsec());
    format!(
        "\"{:x}-{:x}-{nanoseconds:x}-{:x}\"",
        found.dev(),
        found.ino(),
        found.len()
    )
    .into()
}

fn meta(uri: ObjectUri, found: &Metadata) -> ObjectMeta {
    ObjectMeta {
        id: ObjectId {
            uri,
            etag: Some(etag(found)),
            version_id: None,
            size_bytes: Some(found.len()),
        },
        size_bytes: found.len(),
        last_modified: found.modified().ok(),
        checksum_algorithm: None,
        checksum: None,
    }
}

/// The system's error in the words that S3's have.
fn error(path: impl AsRef<Path>, source: io::Error) -> Error {
    let path = path.as_ref();
    match source.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => Error::NotFound {
            uri: display(path),
            offset: None,
            answer: Box::new(said(source.to_string())),
        },
        ErrorKind::PermissionDenied => Error::PermissionDenied {
            uri: display(path),
            offset: None,
            answer: Box::new(said(source.to_string())),
        },
        _ => Error::io(path, source),
    }
}

fn display(path: &Path) -> String {
    format!("file://{}", path.display())
}

fn said(message: impl Into<String>) -> Answer {
    Answer {
        message: Some(message.into()),
        ..Answer::default()
    }
}

#[cfg(test)]
mod tests;
