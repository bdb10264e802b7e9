//! The engine (its first, sequential form: it serves until the real one stands).

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, TryStreamExt};

use crate::buffer::PartBuf;
use crate::checksum::ChecksumPolicy;
use crate::client::ObjectClient;
use crate::error::{Error, Result};
use crate::metrics::Metrics;
use crate::object::{ByteRange, ObjectId, ObjectMeta};
use crate::runtime;

/// How the engine reads ahead.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PrefetchConfig {
    /// Memory for parts, in bytes: the limit of what is in flight, ready or held by consumers.
    pub memory_bytes: u64,
    /// Size of a ranged GET.
    pub part_bytes: u64,
    /// Requests in flight at most.
    pub concurrency: usize,
    /// What to do about checksums of objects that are fetched in several parts.
    pub checksums: ChecksumPolicy,
}

impl Default for PrefetchConfig {
    fn default() -> Self {
        Self {
            memory_bytes: 512 << 20,
            part_bytes: 8 << 20,
            concurrency: 32,
            checksums: ChecksumPolicy::default(),
        }
    }
}

/// Reads objects ahead of their consumers. Clones share the budget and the requests in flight.
#[derive(Debug, Clone)]
pub struct Prefetcher {
    client: Arc<dyn ObjectClient>,
    config: PrefetchConfig,
    metrics: Arc<Metrics>,
}

/// A piece of an object, in order.
#[derive(Debug, Clone)]
pub struct Chunk {
    /// The object it belongs to, with the ETag and size that the read is pinned to.
    pub object: Arc<ObjectId>,
    /// Where the piece starts in the object.
    pub offset: u64,
    /// The bytes; empty only for an empty object. Its memory counts against the budget until it is dropped.
    pub bytes: Bytes,
    /// Whether this is the object's last piece.
    pub ends_object: bool,
}

impl Prefetcher {
    /// An engine over `client`.
    pub fn new(
        client: Arc<dyn ObjectClient>,
        config: PrefetchConfig,
        metrics: Arc<Metrics>,
    ) -> Result<Self> {
        Ok(Self {
            client,
            config,
            metrics,
        })
    }

    /// Where it counts.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Where it reads from.
    pub fn client(&self) -> &Arc<dyn ObjectClient> {
        &self.client
    }

    /// Reads one object; its size and ETag need not be known.
    pub fn read(&self, id: ObjectId) -> Result<ObjectReader> {
        self.read_ids(futures::stream::once(std::future::ready(Ok(id))).boxed())
    }

    /// Reads many objects back to back, in the order in which `objects` yields them; reading starts before the
    /// listing ends.
    pub fn read_all(
        &self,
        objects: BoxStream<'static, Result<ObjectMeta>>,
    ) -> Result<ObjectReader> {
        self.read_ids(objects.map_ok(|meta| meta.id).boxed())
    }

    fn read_ids(&self, ids: BoxStream<'static, Result<ObjectId>>) -> Result<ObjectReader> {
        let (client, part, metrics) = (
            self.client.clone(),
            self.config.part_bytes,
            self.metrics.clone(),
        );
        let chunks = ids
            .and_then(move |id| {
                let (client, metrics) = (client.clone(), metrics.clone());
                std::future::ready(Ok(futures::stream::try_unfold(
                    (id, 0, false),
                    move |(mut id, offset, done)| {
                        let (client, metrics) = (client.clone(), metrics.clone());
                        async move {
                            if done {
                                return Ok(None);
                            }
                            let end = id
                                .size_bytes
                                .map_or(offset + part, |size| size.min(offset + part));
                            let range = ByteRange::new(offset, end);
                            let mut into = PartBuf::heap(range.len() as usize);
                            if !range.is_empty() {
                                let meta = client.get(&id, range, &mut into).await?;
                                id.size_bytes = Some(meta.size_bytes);
                                id.etag = meta.etag;
                            }
                            let bytes = into.freeze();
                            let next = offset + bytes.len() as u64;
                            let ends_object = id.size_bytes == Some(next);
                            metrics.bytes_delivered.add(bytes.len() as u64);
                            let chunk = Chunk {
                                object: Arc::new(id.clone()),
                                offset,
                                bytes,
                                ends_object,
                            };
                            Ok(Some((chunk, (id, next, ends_object))))
                        }
                    },
                )))
            })
            .try_flatten()
            .boxed();
        Ok(ObjectReader {
            chunks,
            failed: None,
        })
    }
}

/// One stream of bytes, in order. Dropping it cancels what is in flight.
pub struct ObjectReader {
    chunks: BoxStream<'static, Result<Chunk>>,
    failed: Option<Error>,
}

impl std::fmt::Debug for ObjectReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ObjectReader").finish_non_exhaustive()
    }
}

impl ObjectReader {
    /// The next piece; `None` at the end. After an error every further call gives that error again: a failed read
    /// never looks like the end of the data.
    pub fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Chunk>>> {
        if let Some(error) = &self.failed {
            return Poll::Ready(Err(error.clone()));
        }
        let next = std::task::ready!(self.chunks.as_mut().poll_next(cx)).transpose();
        if let Err(error) = &next {
            self.failed = Some(error.clone());
        }
        Poll::Ready(next)
    }

    /// [`poll_chunk`](Self::poll_chunk) as a future.
    pub async fn next_chunk(&mut self) -> Result<Option<Chunk>> {
        std::future::poll_fn(|cx| self.poll_chunk(cx)).await
    }

    /// The same stream for a thread that blocks.
    pub fn blocking(self) -> BlockingReader {
        BlockingReader { inner: self }
    }
}

impl Stream for ObjectReader {
    type Item = Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_chunk(cx)
            .map(|next| next.map(|chunk| chunk.map(|chunk| chunk.bytes)).transpose())
    }
}

/// [`ObjectReader`] for threads that block: FIFO writers, Python, plain programs. Must not be used inside async code.
#[derive(Debug)]
pub struct BlockingReader {
    inner: ObjectReader,
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
    /// Waits for the next piece; `None` at the end.
    pub fn next_chunk(&mut self) -> Result<Option<Chunk>> {
        runtime::handle().block_on(self.inner.next_chunk())
    }

    /// Waits at most `limit`, so that the caller can look at signals in between.
    pub fn next_chunk_timeout(&mut self, limit: Duration) -> Result<Next> {
        let next = runtime::handle()
            .block_on(async { tokio::time::timeout(limit, self.inner.next_chunk()).await });
        Ok(match next {
            Err(_) => Next::TimedOut,
            Ok(next) => next?.map_or(Next::End, Next::Chunk),
        })
    }
}
