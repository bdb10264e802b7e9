//! Where the bytes of a mount's or a program's files come from.
//!
//! [`Windows`] reads out of the memory that all open files share ([`read`](mod@super::read)) and leaves to the kernel what
//! lies whole in a [cache](crate::cache). Knowing the names, it also looks ahead of the file that is read: most jobs read
//! the files in some order, and a small file costs little but a round trip, which can be spent before it is opened.
//! `lookahead` says which files come next, from the numbers of those that were read; `ahead` fetches them, small ones
//! whole and the beginning of large ones, as hints that give way to reads. At most a quarter of the memory and four files
//! per request lie there unread.
//!
//! Within a large file that is read at random `coverage` says which of its blocks will be read, and `fill` fetches those in
//! full parts.

mod ahead;
mod coverage;
mod fill;
mod lookahead;

use std::fmt::Debug;
use std::fs::File;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;

use crate::cache::{BlockCache, Glance};
use crate::error::Result;
use crate::fastfile::read::{self, OpenFiles, Pieces};
use crate::fastfile::tree::{Ino, Namespace};
use crate::metrics::Metrics;
use crate::object::{ByteRange, ObjectMeta, Scheme};
use ahead::Ahead;
use fill::Fill;

/// Opens objects for reading.
pub trait Source: Debug + Send + Sync + 'static {
    /// Opens an object. Must not wait: it is called on a session thread.
    ///
    /// # Errors
    /// What the object lacks to be opened.
    fn open(&self, ino: Ino, object: ObjectMeta) -> Result<Arc<dyn OpenFile>>;

    /// Where what is done with them is counted.
    fn metrics(&self) -> &Metrics;
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

    /// A local file that holds the whole object. May wait for the disk.
    fn whole(&self) -> Option<File>;

    /// The same, as far as it is known. Must not wait.
    fn glance(&self) -> Glance;

    /// It is read from the whole file: few reads will come, or none.
    fn bypassed(&self) {}
}

/// The read path of FastFile mode: windows ahead of what is read in order, out of one memory, and perhaps a cache.
#[derive(Debug)]
pub struct Windows {
    files: OpenFiles,
    cache: Option<BlockCache>,
    ahead: Option<Arc<Ahead>>,
    fill: Arc<Fill>,
}

impl Windows {
    /// Reads by way of `files`; what `cache`, through which those read, has whole is left to the kernel.
    pub fn new(files: OpenFiles, cache: Option<BlockCache>) -> Self {
        Self {
            fill: Arc::new(Fill::new(files.clone(), cache.clone())),
            files,
            cache,
            ahead: None,
        }
    }

    /// Looks ahead of the files that are read in the order of `namespace`.
    pub fn looking_ahead(mut self, namespace: Arc<Namespace>) -> Self {
        self.ahead = Some(Arc::new(Ahead::new(self.files.clone(), namespace)));
        self
    }

    /// These files will be read, in this order, after those that were told before. As many are fetched as there is room
    /// for, and the others as those are read. Nothing, without a namespace to look ahead in.
    pub fn prefetch(&self, order: impl IntoIterator<Item = Ino>) {
        if let Some(ahead) = &self.ahead {
            ahead.tell(order);
        }
    }

    pub(super) fn files(&self) -> &OpenFiles {
        &self.files
    }

    pub(super) fn cache(&self) -> Option<&BlockCache> {
        self.cache.as_ref()
    }

    pub(super) fn windowed(&self, ino: Ino, object: ObjectMeta) -> Result<Windowed> {
        Ok(Windowed {
            ino,
            file: self.files.open(object.id.clone())?,
            object,
            cache: self.cache.clone(),
            ahead: self.ahead.clone(),
            fill: self.fill.clone(),
            is_read: AtomicBool::new(false),
        })
    }
}

impl Source for Windows {
    fn open(&self, ino: Ino, object: ObjectMeta) -> Result<Arc<dyn OpenFile>> {
        Ok(Arc::new(self.windowed(ino, object)?))
    }

    fn metrics(&self) -> &Metrics {
        self.files.metrics()
    }
}

/// An open file, and what is known of it beside its bytes.
#[derive(Debug)]
pub(super) struct Windowed {
    ino: Ino,
    file: read::OpenFile,
    object: ObjectMeta,
    cache: Option<BlockCache>,
    ahead: Option<Arc<Ahead>>,
    fill: Arc<Fill>,
    is_read: AtomicBool,
}

impl OpenFile for Windowed {
    fn object(&self) -> &ObjectMeta {
        &self.object
    }

    fn read(&self, range: ByteRange) -> BoxFuture<'_, Result<Bytes>> {
        self.noted(range, all_of(&self.file, range)).boxed()
    }

    fn may_be_whole(&self) -> bool {
        self.cache.is_some() || self.object.id.uri.scheme() == Scheme::File
    }

    fn whole(&self) -> Option<File> {
        match &self.cache {
            // The descriptor carries the lock that keeps eviction away.
            Some(cache) => cache.whole_file(&self.object.id),
            None => self.local(),
        }
    }

    fn glance(&self) -> Glance {
        match &self.cache {
            Some(cache) => cache.glance(&self.object.id),
            None => Glance::Unknown,
        }
    }

    fn bypassed(&self) {
        if let Some(ahead) = &self.ahead {
            ahead.bypassed(self.ino);
        }
    }
}

impl Windowed {
    /// The object.
    pub(super) fn meta(&self) -> &ObjectMeta {
        &self.object
    }

    /// Its bytes.
    pub(super) fn file(&self) -> &read::OpenFile {
        &self.file
    }

    /// As [`OpenFile::read_at`](read::OpenFile::read_at).
    pub(super) async fn read_at(&self, offset: u64, len: usize) -> Result<Pieces> {
        let range = within(offset, len, self.object.size_bytes);
        self.noted(range, self.file.read_at(offset, len)).await
    }

    /// The first read is what the look-ahead goes by: an open alone may be of a file that the kernel knows already. It
    /// begins before anything is fetched ahead.
    async fn noted<T>(&self, range: ByteRange, read: impl Future<Output = T>) -> T {
        let mut read = pin!(read);
        let begun = futures::poll!(read.as_mut());
        if let Some(ahead) = &self.ahead
            && !self.is_read.swap(true, Ordering::Relaxed)
        {
            ahead.read(self.ino);
        }
        self.fill.read(self.ino, &self.object, &self.file, range);
        match begun {
            Poll::Ready(done) => done,
            Poll::Pending => read.await,
        }
    }

    /// A local object is its file, as long as that is the one that was listed.
    pub(super) fn local(&self) -> Option<File> {
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

fn within(offset: u64, len: usize, size_bytes: u64) -> ByteRange {
    let start = offset.min(size_bytes);
    ByteRange::new(start, start.saturating_add(len as u64).min(size_bytes))
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
