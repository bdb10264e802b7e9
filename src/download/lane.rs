//! A lane: objects in, one engine stream, files out.
//!
//! The lister holds [`Lane`] and pushes; dropping it ends the stream, and with it the [`Writer`]. A writer that fails
//! drops its stream, and with it the queue's receiving end, so that the next push says no.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use tokio::sync::mpsc;

use super::file::PartialFile;
use super::{Download, STOP_POLL};
use crate::error::{Error, Result};
use crate::metrics::Presence;
use crate::object::ObjectMeta;
use crate::prefetch::{BlockingReader, Chunk, Next, Prefetcher};

/// Objects that wait before the engine takes them: a page of a listing, so that the lister is ahead by a request.
const QUEUE_ITEMS: usize = 1000;

/// What an object costs beside its bytes, in bytes that could be written in the time: about 50 us for create and
/// rename at 2 GB/s. It spreads small files over the lanes.
const FILE_COST_BYTES: u64 = 100_000;

/// An object and its place.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) meta: ObjectMeta,
    pub(super) path: PathBuf,
    /// When a lane got it. A lane that has nothing waits for nothing.
    pub(super) queued: Instant,
}

impl Item {
    fn cost_bytes(&self) -> u64 {
        self.meta.size_bytes.saturating_add(FILE_COST_BYTES)
    }
}

/// The lister's end.
#[derive(Debug)]
pub(super) struct Lane {
    queue: mpsc::Sender<Item>,
    waiting_bytes: Arc<AtomicU64>,
}

/// The thread's end.
#[derive(Debug)]
pub(super) struct Writer {
    reader: BlockingReader,
    taken: Taken,
    waiting_bytes: Arc<AtomicU64>,
}

/// Items that the engine has taken, in order, until their files are complete.
type Taken = Arc<Mutex<VecDeque<Item>>>;

impl Lane {
    pub(super) fn start(engine: &Prefetcher) -> Result<(Self, Writer)> {
        let (queue, received) = mpsc::channel(QUEUE_ITEMS);
        let waiting_bytes = Arc::<AtomicU64>::default();
        let taken = Taken::default();
        let objects =
            futures::stream::unfold((received, taken.clone()), |(mut received, taken)| async {
                let item: Item = received.recv().await?;
                let meta = item.meta.clone();
                taken
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push_back(item);
                Some((Ok(meta), (received, taken)))
            });
        let reader = engine.read_all(objects.boxed())?.blocking();
        let lane = Self {
            queue,
            waiting_bytes: waiting_bytes.clone(),
        };
        let writer = Writer {
            reader,
            taken,
            waiting_bytes,
        };
        Ok((lane, writer))
    }

    /// What it has before it.
    pub(super) fn waiting_bytes(&self) -> u64 {
        self.waiting_bytes.load(Ordering::Relaxed)
    }

    /// Gives it an object; waits while its queue is full. False if its writer is gone.
    pub(super) fn push(&self, item: Item) -> bool {
        self.waiting_bytes
            .fetch_add(item.cost_bytes(), Ordering::Relaxed);
        self.queue.blocking_send(item).is_ok()
    }
}

impl Writer {
    /// Writes files until the lane is closed and empty, or the download is stopped.
    pub(super) fn run(&mut self, download: &Download) -> Result<()> {
        let mut open = None;
        loop {
            let asked = Instant::now();
            let Some(chunk) = self.next(download)? else {
                return Ok(());
            };
            let got = Instant::now();
            let (mut file, item) = match open.take() {
                Some(open) => open,
                None => self.open(download, &chunk)?,
            };
            let since = asked.max(item.queued);
            let mut blocked = timed(|| write(download, &mut file, &chunk))?;
            if chunk.ends_object {
                blocked += timed(|| complete(download, file, &item))?;
                self.waiting_bytes
                    .fetch_sub(item.cost_bytes(), Ordering::Relaxed);
            } else {
                open = Some((file, item));
            }
            download.count(Presence {
                present: since.elapsed(),
                stalled: got.saturating_duration_since(since),
                blocked,
            });
        }
    }

    fn next(&mut self, download: &Download) -> Result<Option<Chunk>> {
        loop {
            if download.stop.is_set() {
                return Err(Error::Cancelled);
            }
            match self.reader.next_chunk_timeout(STOP_POLL)? {
                Next::Chunk(chunk) => return Ok(Some(chunk)),
                Next::End => return Ok(None),
                Next::TimedOut => {}
            }
        }
    }

    fn open(&self, download: &Download, chunk: &Chunk) -> Result<(PartialFile, Item)> {
        let item = self
            .taken
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
            .filter(|item| item.meta.id.uri == chunk.object.uri)
            .ok_or_else(|| {
                joins_badly(
                    chunk,
                    "the stream delivered another object than the next one",
                )
            })?;
        if let Some(parent) = item.path.parent() {
            // What fails here fails again below, where it is told.
            let _ = download.made.make(parent);
        }
        let file = PartialFile::create(item.path.clone(), item.meta.size_bytes)?;
        Ok((file, item))
    }
}

fn write(download: &Download, file: &mut PartialFile, chunk: &Chunk) -> Result<()> {
    if chunk.offset != file.written_bytes() {
        let reason = format!(
            "{} bytes are written and the next piece starts elsewhere",
            file.written_bytes()
        );
        return Err(joins_badly(chunk, reason));
    }
    let result = file.write(&chunk.bytes);
    download
        .progress
        .written_bytes
        .add(chunk.bytes.len() as u64);
    result
}

fn complete(download: &Download, file: PartialFile, item: &Item) -> Result<()> {
    let (written, listed) = (file.written_bytes(), item.meta.size_bytes);
    if written != listed {
        return Err(Error::Corrupt {
            uri: item.meta.id.uri.to_string(),
            offset: written,
            reason: format!("the listing says {listed} bytes, and the object ended here"),
            answer: Box::default(),
        });
    }
    file.finish(item.meta.last_modified, download.config.fsync)?;
    download.progress.written_files.add(1);
    Ok(())
}

fn timed(act: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let before = Instant::now();
    act()?;
    Ok(before.elapsed())
}

fn joins_badly(chunk: &Chunk, reason: impl Into<String>) -> Error {
    Error::Corrupt {
        uri: chunk.object.uri.to_string(),
        offset: chunk.offset,
        reason: reason.into(),
        answer: Box::default(),
    }
}
