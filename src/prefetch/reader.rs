//! The consumer's end of a stream: chunks, a `Stream` of bytes, `AsyncRead`, and a blocking reader.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker, ready};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use futures::Stream;
use tokio::io::{AsyncRead, ReadBuf};

use super::stream::Take;
use super::task::StreamHandle;
use crate::error::{Error, Result};
use crate::object::ObjectId;

/// A piece of an object, in order.
#[derive(Debug, Clone)]
pub struct Chunk {
    /// The object it belongs to, with the ETag and size that the read is pinned to.
    pub object: Arc<ObjectId>,
    /// Where the piece starts in the object.
    pub offset: u64,
    /// The bytes; empty only for an empty object. Their memory counts against the budget until they are dropped.
    pub bytes: Bytes,
    /// Whether this is the object's last piece.
    pub ends_object: bool,
}

/// One stream of bytes, in order. Dropping it cancels what is in flight.
pub struct ObjectReader {
    /// `None` once the stream has ended or failed.
    stream: Option<StreamHandle>,
    failed: Option<Error>,
    /// What is left of the last chunk, for `AsyncRead` and `Read`.
    rest: Bytes,
    waiting_since: Option<Instant>,
    /// The error was given out as the last item of the `Stream`.
    error_told: bool,
}

impl ObjectReader {
    pub(super) fn new(stream: StreamHandle) -> Self {
        Self {
            stream: Some(stream),
            failed: None,
            rest: Bytes::new(),
            waiting_since: None,
            error_told: false,
        }
    }

    /// The next piece; `None` at the end. After an error every further call gives that error again: a failed read
    /// never looks like the end of the data.
    pub fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Chunk>>> {
        if let Some(error) = &self.failed {
            return Poll::Ready(Err(error.clone()));
        }
        let Some(stream) = &self.stream else {
            return Poll::Ready(Ok(None));
        };
        let take = stream.take(cx.waker());
        if matches!(take, Take::Pending) {
            self.waiting_since.get_or_insert_with(Instant::now);
            return Poll::Pending;
        }
        let metrics = stream.metrics();
        if let Some(since) = self.waiting_since.take() {
            metrics.consumer_stall_ns.add_time(since.elapsed());
        }
        Poll::Ready(match take {
            Take::Part(part) => {
                metrics.bytes_delivered.add(part.buf.filled().len() as u64);
                let (object, offset, ends_object) = (part.object, part.offset, part.ends_object);
                Ok(Some(Chunk {
                    object,
                    offset,
                    bytes: part.buf.freeze(),
                    ends_object,
                }))
            }
            Take::Failed(error, leftovers) => {
                metrics.bytes_wasted.add(leftovers.discard());
                self.failed = Some(error.clone());
                self.stream = None;
                Err(error)
            }
            Take::End | Take::Pending => {
                self.stream = None;
                Ok(None)
            }
        })
    }

    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// What stopped the stream, after all the bytes before it were delivered.
    pub async fn next_chunk(&mut self) -> Result<Option<Chunk>> {
        std::future::poll_fn(|cx| self.poll_chunk(cx)).await
    }

    /// Whether the last piece has been taken. Unlike asking for the next one, looking makes the engine fetch nothing.
    pub fn is_at_end(&self) -> bool {
        self.failed.is_none() && self.stream.as_ref().is_none_or(StreamHandle::is_at_end)
    }

    /// The same stream for a thread that blocks.
    pub fn blocking(self) -> BlockingReader {
        let (sender, wakes) = crossbeam_channel::bounded(1);
        BlockingReader {
            inner: self,
            waker: Waker::from(Arc::new(ThreadWake(sender))),
            wakes,
        }
    }

    /// Bytes for a reader that copies; empty at the end.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<&mut Bytes>> {
        while self.rest.is_empty() {
            match ready!(self.poll_chunk(cx))? {
                Some(chunk) => self.rest = chunk.bytes,
                None => break,
            }
        }
        Poll::Ready(Ok(&mut self.rest))
    }
}

impl fmt::Debug for ObjectReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectReader")
            .field("failed", &self.failed)
            .field("ended", &self.stream.is_none())
            .finish_non_exhaustive()
    }
}

/// Yields an error once, as its last item: combinators that collect would never end otherwise.
impl Stream for ObjectReader {
    type Item = Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        while !self.error_told {
            return Poll::Ready(match ready!(self.poll_chunk(cx)) {
                Ok(Some(chunk)) if chunk.bytes.is_empty() => continue,
                Ok(Some(chunk)) => Some(Ok(chunk.bytes)),
                Ok(None) => None,
                Err(error) => {
                    self.error_told = true;
                    Some(Err(error))
                }
            });
        }
        Poll::Ready(None)
    }
}

impl AsyncRead for ObjectReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let rest = ready!(self.poll_fill(cx)).map_err(to_io)?;
        let n = rest.len().min(into.remaining());
        into.put_slice(&rest[..n]);
        consume(rest, n);
        Poll::Ready(Ok(()))
    }
}

/// Drops the memory with its last byte, not with the next chunk: the engine needs it for the part after.
fn consume(rest: &mut Bytes, n: usize) {
    rest.advance(n);
    if rest.is_empty() {
        *rest = Bytes::new();
    }
}

fn to_io(error: Error) -> io::Error {
    let kind = match error.root() {
        Error::NotFound { .. } => io::ErrorKind::NotFound,
        Error::PermissionDenied { .. } => io::ErrorKind::PermissionDenied,
        Error::Stalled { .. } => io::ErrorKind::TimedOut,
        Error::Corrupt { .. } | Error::Protocol { .. } => io::ErrorKind::InvalidData,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}

/// [`ObjectReader`] for threads that block: FIFO writers, Python, plain programs. Works in any thread, with or
/// without a runtime.
#[derive(Debug)]
pub struct BlockingReader {
    inner: ObjectReader,
    waker: Waker,
    wakes: Receiver<()>,
}

/// What a wait with a time limit gave.
#[derive(Debug)]
pub enum Next {
    /// A piece.
    Chunk(Chunk),
    /// The stream is at its end.
    End,
    /// Nothing came in time; ask again.
    TimedOut,
}

impl BlockingReader {
    /// As [`ObjectReader::is_at_end`].
    pub fn is_at_end(&self) -> bool {
        self.inner.is_at_end()
    }

    /// Waits for the next piece; `None` at the end.
    ///
    /// # Errors
    /// As [`ObjectReader::next_chunk`].
    pub fn next_chunk(&mut self) -> Result<Option<Chunk>> {
        loop {
            if let Poll::Ready(next) = self.inner.poll_chunk(&mut Context::from_waker(&self.waker))
            {
                return next;
            }
            self.wait(None);
        }
    }

    /// Waits at most `limit`, so that the caller can look at signals in between.
    ///
    /// # Errors
    /// As [`ObjectReader::next_chunk`].
    pub fn next_chunk_timeout(&mut self, limit: Duration) -> Result<Next> {
        let deadline = Instant::now() + limit;
        loop {
            if let Poll::Ready(next) = self.inner.poll_chunk(&mut Context::from_waker(&self.waker))
            {
                return Ok(next?.map_or(Next::End, Next::Chunk));
            }
            if !self.wait(Some(deadline)) {
                return Ok(Next::TimedOut);
            }
        }
    }

    /// Waits for a wake; `false` when the deadline came first.
    fn wait(&self, deadline: Option<Instant>) -> bool {
        match deadline {
            // The waker holds a sender, so the channel never closes.
            None => self.wakes.recv().is_ok(),
            Some(deadline) => self.wakes.recv_deadline(deadline) != Err(RecvTimeoutError::Timeout),
        }
    }
}

impl io::Read for BlockingReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.inner.poll_fill(&mut Context::from_waker(&self.waker)) {
                Poll::Ready(rest) => {
                    let rest = rest.map_err(to_io)?;
                    let n = rest.len().min(into.len());
                    into[..n].copy_from_slice(&rest[..n]);
                    consume(rest, n);
                    return Ok(n);
                }
                Poll::Pending => _ = self.wait(None),
            }
        }
    }
}

/// Wakes a blocked thread. One token is enough: the thread looks at the stream before it waits again.
struct ThreadWake(Sender<()>);

impl Wake for ThreadWake {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let _ = self.0.try_send(());
    }
}
