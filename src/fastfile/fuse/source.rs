//! Where a mount's bytes come from.

use std::fmt::Debug;
use std::fs::File;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;

use crate::cache::BlockCache;
use crate::error::Result;
use crate::fastfile::read::{self, OpenFiles, Pieces};
use crate::object::{ByteRange, ObjectMeta, Scheme};

/// Opens objects for reading.
pub trait Source: Debug + Send + Sync + 'static {
    /// Opens an object. Must not wait: it is called on a session thread.
    ///
    /// # Errors
    /// What the object lacks to be opened.
    fn open(&self, object: ObjectMeta) -> Result<Arc<dyn OpenFile>>;
}

/// An object that is being read.
pub trait OpenFile: Debug + Send + Sync + 'static {
    /// The object.
    fn object(&self) -> &ObjectMeta;

    /// The bytes of a range that lies within the object, all of them.
    ///
    /// It is polled once on the session thread, so that reads begin in the order in which the kernel sends them and what
    /// is in memory is answered on the spot; a poll must not block.
    fn read(&self, range: ByteRange) -> BoxFuture<'_, Result<Bytes>>;

    /// Whether [`whole`](Self::whole) is worth asking. Must not wait.
    fn may_be_whole(&self) -> bool;

    /// A local file that holds the whole object, for passthrough. May wait for the disk.
    fn whole(&self) -> Option<File>;
}

/// The read path of FastFile mode: windows ahead of what is read in order, out of one memory, and perhaps a cache.
#[derive(Debug)]
pub struct Windows {
    files: OpenFiles,
    cache: Option<BlockCache>,
}

impl Windows {
    /// Reads by way of `files`; what `cache`, through which those read, has whole is left to the kernel.
    pub fn new(files: OpenFiles, cache: Option<BlockCache>) -> Self {
        Self { files, cache }
    }
}

impl Source for Windows {
    fn open(&self, object: ObjectMeta) -> Result<Arc<dyn OpenFile>> {
        let file = self.files.open(object.id.clone())?;
        let cache = self.cache.clone();
        Ok(Arc::new(Windowed {
            file,
            object,
            cache,
        }))
    }
}

#[derive(Debug)]
struct Windowed {
    file: read::OpenFile,
    object: ObjectMeta,
    cache: Option<BlockCache>,
}

impl OpenFile for Windowed {
    fn object(&self) -> &ObjectMeta {
        &self.object
    }

    fn read(&self, range: ByteRange) -> BoxFuture<'_, Result<Bytes>> {
        all_of(&self.file, range).boxed()
    }

    fn may_be_whole(&self) -> bool {
        self.cache.is_some() || self.object.id.uri.scheme() == Scheme::File
    }

    fn whole(&self) -> Option<File> {
        match &self.cache {
            // The descriptor carries the lock that keeps eviction away.
            Some(cache) => {
                let entry = cache.entry(&self.object.id).ok()??;
                entry.complete()?.file().try_clone().ok()
            }
            None => self.local(),
        }
    }
}

impl Windowed {
    /// A local object is its file, as long as that is the one that was listed.
    fn local(&self) -> Option<File> {
        let uri = &self.object.id.uri;
        if uri.scheme() != Scheme::File {
            return None;
        }
        let file = File::open(uri.key()).ok()?;
        let now = file.metadata().ok()?;
        let same = now.is_file()
            && now.len() == self.object.size_bytes
            && now.modified().ok() == self.object.last_modified;
        same.then_some(file)
    }
}

/// A read that comes short is one before an error, which the next one gives; the kernel takes all or that error.
async fn all_of(file: &read::OpenFile, range: ByteRange) -> Result<Bytes> {
    let len = |range: ByteRange| usize::try_from(range.len()).unwrap_or(usize::MAX);
    let first = file.read_at(range.start, len(range)).await?;
    if first.len() == len(range) {
        return Ok(first.into_bytes());
    }
    let mut bytes = Vec::with_capacity(len(range));
    let mut append = |pieces: &Pieces| {
        pieces
            .iter()
            .for_each(|piece| bytes.extend_from_slice(piece));
        range.start + bytes.len() as u64
    };
    let mut at = append(&first);
    while at < range.end {
        let rest = ByteRange::new(at, range.end);
        let more = file.read_at(at, len(rest)).await?;
        if more.is_empty() {
            break;
        }
        at = append(&more);
    }
    Ok(bytes.into())
}
