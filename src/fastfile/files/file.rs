//! An open file, for threads and for tasks.

use std::fmt;
use std::io::{self, Read, Seek, SeekFrom};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncSeek, ReadBuf};

use super::super::errno::to_io;
use super::super::read::Pieces;
use super::super::source::{Windowed, Windows};
use super::local::{self, LocalFile, MappedFile};
use super::wait;
use crate::error::Result;
use crate::object::{ByteRange, ObjectMeta};

/// An open file. Reading in order opens a window ahead; reading at random fetches small blocks.
#[derive(Debug)]
pub struct FastFile {
    file: Arc<Windowed>,
    windows: Arc<Windows>,
    position: u64,
}

impl FastFile {
    pub(super) fn new(file: Windowed, windows: Arc<Windows>) -> Self {
        Self {
            file: Arc::new(file),
            windows,
            position: 0,
        }
    }

    /// The object.
    pub fn object(&self) -> &ObjectMeta {
        self.file.meta()
    }

    /// Its length.
    pub fn size_bytes(&self) -> u64 {
        self.object().size_bytes
    }

    /// Reads at any offset, from any thread, any number at a time; the position stays. Fewer bytes than there is room for
    /// come only at the end, or before an error, which the next read from there gives.
    ///
    /// # Errors
    /// What the client said of the byte at `offset`.
    pub fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut filled = 0;
        // In slices, so that a long read takes no more memory than a short one.
        for slice in into.chunks_mut(self.file.file().slice_bytes()) {
            let read = match self.pieces_at(offset + filled as u64, slice.len()) {
                Err(_) if filled > 0 => break,
                read => read.map_err(to_io)?,
            };
            let (wanted, n) = (slice.len(), read.copy_to(slice));
            filled += n;
            if n < wanted {
                break;
            }
        }
        Ok(filled)
    }

    /// The same, and all of it.
    ///
    /// # Errors
    /// `UnexpectedEof` when the file ends before.
    pub fn read_exact_at(&self, mut into: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !into.is_empty() {
            match self.read_at(into, offset)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => (into, offset) = (&mut into[n..], offset + n as u64),
            }
        }
        Ok(())
    }

    /// Reads at any offset without a copy; the bytes' memory is the files' until they are dropped: a long read is better
    /// made in slices of [`slice_bytes`](Self::slice_bytes).
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at).
    pub async fn read_at_async(&self, offset: u64, len: usize) -> Result<Pieces> {
        self.file.read_at(offset, len).await
    }

    /// What one read without a copy should ask for at most, in bytes.
    pub fn slice_bytes(&self) -> usize {
        self.file.file().slice_bytes()
    }

    fn pieces_at(&self, offset: u64, len: usize) -> Result<Pieces> {
        wait::until(self.file.read_at(offset, len))
    }

    /// Fetches ranges before they are read, in this order, as memory allows.
    pub fn prefetch(&self, ranges: &[ByteRange]) {
        self.file.file().prefetch(ranges);
    }

    /// All of it as a file on a local disk, for programs that want a path: fetched into the cache as far as it is not
    /// there. As long as what is returned lives, it is not evicted. An object of a local directory is its own file.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// use standpipe::cache::CacheConfig;
    /// use standpipe::client::MemoryClient;
    /// use standpipe::fastfile::FastFiles;
    ///
    /// let dir = tempfile::tempdir()?;
    /// let client = MemoryClient::default();
    /// client.put("memory://bucket/model.bin".parse()?, "weights");
    /// let files = FastFiles::builder("memory://bucket/".parse()?)
    ///     .client(Arc::new(client))
    ///     .cache(CacheConfig::new(dir.path()))
    ///     .open()?;
    /// let local = files.open_file("model.bin")?.path()?;
    /// assert_eq!(std::fs::read(&local)?, b"weights");
    /// assert_eq!(&local.mmap()?[..4], b"weig");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// Without a cache, or when the cache can't hold it; what the client said.
    pub fn path(&self) -> io::Result<LocalFile> {
        let (file, windows) = (self.file.clone(), self.windows.clone());
        wait::on_runtime(local::materialize(file, windows)).map_err(to_io)
    }

    /// The same for tasks.
    ///
    /// # Errors
    /// As [`path`](Self::path).
    pub async fn path_async(&self) -> Result<LocalFile> {
        local::materialize(self.file.clone(), self.windows.clone()).await
    }

    /// All of it in memory that is the page cache's: [`path`](Self::path), mapped. What is there only in part can't be
    /// mapped: there is no type for it.
    ///
    /// # Errors
    /// As [`path`](Self::path).
    pub fn mmap(&self) -> io::Result<MappedFile> {
        self.path()?.mmap()
    }

    /// The same file for tasks, at the same position.
    pub fn into_async(self) -> AsyncFile {
        AsyncFile {
            file: self.file,
            position: self.position,
            rest: Bytes::new(),
            reading: None,
        }
    }
}

impl Read for FastFile {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.read_at(into, self.position)?;
        self.position += n as u64;
        Ok(n)
    }
}

impl Seek for FastFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.position = sought(to, self.position, self.size_bytes())?;
        Ok(self.position)
    }
}

fn sought(to: SeekFrom, position: u64, size_bytes: u64) -> io::Result<u64> {
    let (from, by) = match to {
        SeekFrom::Start(at) => return Ok(at),
        SeekFrom::End(by) => (size_bytes, by),
        SeekFrom::Current(by) => (position, by),
    };
    let before = || io::Error::new(io::ErrorKind::InvalidInput, "a seek to before the start");
    from.checked_add_signed(by).ok_or_else(before)
}

/// A [`FastFile`] for tasks: `AsyncRead` and `AsyncSeek`.
pub struct AsyncFile {
    file: Arc<Windowed>,
    /// Of the next byte to give, behind which `rest` and `reading` go on.
    position: u64,
    rest: Bytes,
    reading: Option<BoxFuture<'static, Result<Pieces>>>,
}

impl fmt::Debug for AsyncFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncFile")
            .field("file", &self.file)
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

impl AsyncRead for AsyncFile {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.rest.is_empty() {
            let (file, position) = (self.file.clone(), self.position);
            let len = into.remaining().min(file.file().slice_bytes());
            let read = async move { file.read_at(position, len).await };
            let reading = self.reading.get_or_insert_with(|| read.boxed());
            let read = ready!(reading.poll_unpin(cx));
            self.reading = None;
            self.rest = read.map_err(to_io)?.into_bytes();
        }
        let n = self.rest.len().min(into.remaining());
        into.put_slice(&self.rest[..n]);
        self.position += n as u64;
        self.rest.advance(n);
        if self.rest.is_empty() {
            // An empty slice keeps its memory, too.
            self.rest = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncSeek for AsyncFile {
    fn start_seek(mut self: Pin<&mut Self>, to: SeekFrom) -> io::Result<()> {
        self.position = sought(to, self.position, self.file.meta().size_bytes)?;
        (self.rest, self.reading) = (Bytes::new(), None);
        Ok(())
    }

    fn poll_complete(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<u64>> {
        Poll::Ready(Ok(self.position))
    }
}
