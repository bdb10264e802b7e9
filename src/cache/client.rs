//! A client that reads through the cache.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use super::BlockCache;
use super::entry::Entry;
use super::flight::{Claim, Landed, Turn};
use crate::buffer::PartBuf;
use crate::client::{Depth, GetMeta, ListEntry, ObjectClient};
use crate::error::{Error, Result};
use crate::metrics::Metrics;
use crate::object::{ByteRange, ObjectId, ObjectMeta, ObjectUri};

/// The first and the longest pause between looks at a block that another process fetches. S3 takes 50 ms for it.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(20));

/// Serves from a [`BlockCache`] what is there, and fetches the rest from another client, each block once per host.
///
/// Put it around the retries: a block is claimed while it is fetched. What was fetched goes to the reader at once, and
/// to the disk behind his back. Blocks that a range covers are fetched into the reader's own buffer, as many in one
/// request as are missing in a row; one that it only touches is fetched whole. Objects that are not pinned to a version
/// and a size pass through, and so do all while the cache has no room for new ones.
#[derive(Debug)]
pub struct CachedClient {
    inner: Arc<dyn ObjectClient>,
    cache: BlockCache,
}

impl CachedClient {
    /// `inner` behind `cache`.
    pub fn new(inner: Arc<dyn ObjectClient>, cache: BlockCache) -> Self {
        Self { inner, cache }
    }

    /// The cache.
    pub fn cache(&self) -> &BlockCache {
        &self.cache
    }

    async fn read(&self, id: &ObjectId, range: ByteRange, into: &mut PartBuf) -> Result<GetMeta> {
        let Some(entry) = self.look(id, range, into, None).await? else {
            self.metrics().cache_bypass_bytes.add(range.len());
            return self.inner.get(id, range, into).await;
        };
        if let Some(checksum) = entry.checksum().filter(|_| id.is_whole(range)) {
            into.expect(checksum);
        }
        let (mut meta, mut fetched_to) = (None, None);
        let mut pause = Pause::new(self.cache.config().claim_patience);
        loop {
            let at = range.start + into.filled().len() as u64;
            if at >= range.end {
                break;
            }
            // What the cache won't keep, nobody else will find there: waiting for it would only come on top.
            let alone = pause.is_over() || !self.cache.is_storing();
            match Claim::take(&entry, wanted(&entry, at, range), alone) {
                Turn::Mine(claim) => {
                    meta = Some(self.fetch(id, range, claim, into).await?);
                    fetched_to = Some(range.start + into.filled().len() as u64);
                    pause = Pause::new(self.cache.config().claim_patience);
                }
                Turn::Here(landed) => {
                    self.metrics().cache_waits.add(1);
                    take_landed(landed, at, range.end, into).await;
                }
                Turn::Elsewhere => {
                    self.metrics().cache_waits.add(1);
                    pause.sleep().await;
                }
                Turn::Done => {}
            }
            if range.start + (into.filled().len() as u64) < range.end {
                self.look(id, range, into, Some(entry.clone())).await?;
            }
        }
        // A whole that was fetched to its end was verified there.
        if fetched_to != Some(range.end) && !self.agrees(&entry, into) {
            return self.inner.get(id, range, into).await;
        }
        Ok(GetMeta {
            etag: id.etag.clone().or(meta.and_then(|meta| meta.etag)),
            size_bytes: entry.size_bytes(),
            checksum: entry.checksum(),
        })
    }

    /// Compares a whole object from the disk with the CRC that the server told. If the disk has other bytes than it was
    /// given, the entry goes.
    fn agrees(&self, entry: &Entry, into: &mut PartBuf) -> bool {
        let (Some(expected), Some(found)) = (into.expected(), into.digest()) else {
            return true;
        };
        if expected == found {
            self.metrics().checksums_verified.add(1);
            return true;
        }
        self.metrics().cache_blocks_bad.add(entry.blocks().count());
        entry.discard();
        into.clear();
        false
    }

    /// Fills in what is on the disk or on its way there. The disk may be slow, so this happens on another thread.
    async fn look(
        &self,
        id: &ObjectId,
        range: ByteRange,
        into: &mut PartBuf,
        known: Option<Arc<Entry>>,
    ) -> Result<Option<Arc<Entry>>> {
        let (cache, id, mut part) = (self.cache.clone(), id.clone(), into.take());
        let looked = spawn_blocking(move || {
            let entry = match known {
                Some(entry) => Ok(Some(entry)),
                None => {
                    cache.tick(range.len());
                    cache.entry(&id)
                }
            };
            if let Ok(Some(entry)) = &entry {
                fill_present(entry, range, &mut part);
            }
            (part, entry)
        });
        // It fails only when the runtime is shut down under it.
        let (part, entry) = looked.await.map_err(|_| Error::Cancelled)?;
        *into = part;
        entry
    }

    /// Fetches the first claimed blocks, and sees to it that they are stored.
    async fn fetch(
        &self,
        id: &ObjectId,
        range: ByteRange,
        mut claim: Claim,
        into: &mut PartBuf,
    ) -> Result<GetMeta> {
        let entry = claim.lease.entry().clone();
        let at = range.start + into.filled().len() as u64;
        let covered = entry.blocks().inside(ByteRange::new(at, range.end));
        let meta = if covered.contains(&claim.blocks.start) {
            claim.shrink(claim.blocks.end.min(covered.end));
            self.fetch_covered(id, range, claim, into).await?
        } else {
            claim.shrink(claim.blocks.start + 1);
            self.fetch_touched(id, range, claim, into).await?
        };
        if let Some(checksum) = meta.checksum {
            entry.set_checksum(checksum);
        }
        Ok(meta)
    }

    /// Whole blocks of the reader's range, right into his buffer.
    async fn fetch_covered(
        &self,
        id: &ObjectId,
        range: ByteRange,
        claim: Claim,
        into: &mut PartBuf,
    ) -> Result<GetMeta> {
        let bytes = claim.lease.entry().blocks().bytes(claim.blocks.clone());
        let asked = ByteRange::new(range.start, bytes.end);
        let meta = self.inner.get(id, asked, into).await?;
        let start = (bytes.start - range.start) as usize;
        let fetched = into.filled().get(start..start + bytes.len() as usize);
        let Some(fetched) = fetched else {
            return Err(short(id, range.start + into.filled().len() as u64));
        };
        self.metrics().cache_miss_bytes.add(bytes.len());
        // The buffer is the reader's; who else wants the bytes gets a copy.
        let room = self.cache.room(bytes.len());
        let copy = (room.is_some() || claim.is_awaited()).then(|| Bytes::copy_from_slice(fetched));
        self.cache.store(claim, copy, room);
        Ok(meta)
    }

    /// A block of which the reader wants a part, into a buffer of its own.
    async fn fetch_touched(
        &self,
        id: &ObjectId,
        range: ByteRange,
        claim: Claim,
        into: &mut PartBuf,
    ) -> Result<GetMeta> {
        let bytes = claim.lease.entry().blocks().bytes(claim.blocks.clone());
        let mut block = PartBuf::heap(bytes.len() as usize);
        let meta = self.inner.get(id, bytes, &mut block).await?;
        if block.remaining() > 0 {
            return Err(short(id, bytes.start + block.filled().len() as u64));
        }
        let block = block.freeze();
        self.metrics().cache_miss_bytes.add(bytes.len());
        let at = range.start + into.filled().len() as u64;
        let end = bytes.end.min(range.end);
        into.put(&block[(at - bytes.start) as usize..(end - bytes.start) as usize]);
        let room = self.cache.room(bytes.len());
        self.cache.store(claim, Some(block), room);
        Ok(meta)
    }

    fn metrics(&self) -> &Metrics {
        self.cache.metrics()
    }
}

/// From the block at `at` on, the blocks that `range` touches.
fn wanted(entry: &Entry, at: u64, range: ByteRange) -> Range<u64> {
    entry.blocks().touching(ByteRange::new(at, range.end))
}

fn fill_present(entry: &Entry, range: ByteRange, part: &mut PartBuf) {
    // In slices that are still in the CPU's cache for their CRC, which `advance` computes.
    const SLICE_BYTES: usize = 1 << 20;
    let mut left = (range.len() as usize).saturating_sub(part.filled().len());
    while left > 0 {
        let at = range.start + part.filled().len() as u64;
        let n = left.min(SLICE_BYTES);
        let n = entry.read_present(at, &mut part.unfilled_mut()[..n]);
        if n == 0 {
            return;
        }
        part.advance(n);
        left -= n;
        entry.core().metrics.cache_hit_bytes.add(n as u64);
    }
}

/// Waits for what another reader of this process fetches, and takes it if he kept it.
async fn take_landed(mut landed: watch::Receiver<Landed>, at: u64, end: u64, into: &mut PartBuf) {
    // An error means that he gave up: the next turn is ours.
    let _ = landed.changed().await;
    let Some((start, bytes)) = landed.borrow().clone() else {
        return;
    };
    let Some(skip) = at.checked_sub(start) else {
        return;
    };
    let have = bytes.get(skip as usize..).unwrap_or_default();
    let n = have.len().min((end - at) as usize);
    into.put(&have[..n]);
}

fn short(id: &ObjectId, offset: u64) -> Error {
    Error::Corrupt {
        uri: id.uri.to_string(),
        offset,
        reason: "the object ended before the size it was listed with".into(),
        answer: Box::default(),
    }
}

/// How long another process is waited for.
struct Pause {
    until: Instant,
    next: Duration,
}

impl Pause {
    fn new(patience: Duration) -> Self {
        Self {
            until: Instant::now() + patience,
            next: LOOK_AGAIN.0,
        }
    }

    fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }

    async fn sleep(&mut self) {
        tokio::time::sleep(self.next).await;
        self.next = (self.next * 2).min(LOOK_AGAIN.1);
    }
}

impl ObjectClient for CachedClient {
    fn head<'a>(&'a self, uri: &'a ObjectUri) -> BoxFuture<'a, Result<ObjectMeta>> {
        self.inner.head(uri)
    }

    fn get<'a>(
        &'a self,
        id: &'a ObjectId,
        range: ByteRange,
        into: &'a mut PartBuf,
    ) -> BoxFuture<'a, Result<GetMeta>> {
        // What is wrong with a range is the other client's to say.
        let is_inside = id.size_bytes.is_some_and(|size| range.end <= size);
        if range.is_empty() || !is_inside || !id.is_pinned() {
            return self.inner.get(id, range, into);
        }
        self.read(id, range, into).boxed()
    }

    fn list(&self, prefix: &ObjectUri, depth: Depth) -> BoxStream<'static, Result<ListEntry>> {
        self.inner.list(prefix, depth)
    }

    fn list_after(
        &self,
        prefix: &ObjectUri,
        after: &str,
    ) -> Option<BoxStream<'static, Result<ListEntry>>> {
        self.inner.list_after(prefix, after)
    }
}
