//! A lane: objects in, one engine stream, files out.
//!
//! The lister holds [`Lane`] and pushes; dropping it ends the stream, and with it the [`Writer`]. A writer that fails
//! drops its stream, and with it the queue's receiving end, so that the next push says no.
//!
//! Files that an earlier run has begun go another way: where their streams start is known only when what is there was
//! read again, and one that turns out wrong must be fetched anew without failing the others. Each gets a stream of its
//! own, between two files of the lane's.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc as blocking;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use tokio::sync::mpsc;

use super::file::PartialFile;
use super::record::{self, Proven};
use super::{Download, STOP_POLL};
use crate::error::{Error, Result};
use crate::metrics::Presence;
use crate::object::ObjectMeta;
use crate::prefetch::{BlockingReader, Chunk, Next, Prefetcher};

/// Objects that wait before the engine takes them: a page of a listing, so that the lister is ahead by a request.
const QUEUE_ITEMS: usize = 1000;

/// Files of earlier runs that wait: there are about as many as an earlier run had lanes.
const BEGUN_ITEMS: usize = 64;

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
    begun: blocking::SyncSender<Item>,
    waiting_bytes: Arc<AtomicU64>,
}

/// The thread's end.
#[derive(Debug)]
pub(super) struct Writer {
    reader: BlockingReader,
    taken: Taken,
    begun: blocking::Receiver<Item>,
    waiting_bytes: Arc<AtomicU64>,
}

/// Items that the engine has taken, in order, until their files are complete.
type Taken = Arc<Mutex<VecDeque<Item>>>;

impl Lane {
    pub(super) fn start(engine: &Prefetcher) -> Result<(Self, Writer)> {
        let (queue, received) = mpsc::channel(QUEUE_ITEMS);
        let (begun, continued) = blocking::sync_channel(BEGUN_ITEMS);
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
        let reader = engine.read_each(objects.boxed())?.blocking();
        let lane = Self {
            queue,
            begun,
            waiting_bytes: waiting_bytes.clone(),
        };
        let writer = Writer {
            reader,
            taken,
            begun: continued,
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
        match record::exists(&item.path, &item.meta) {
            true => self.begun.send(item).is_ok(),
            false => self.queue.blocking_send(item).is_ok(),
        }
    }
}

impl Writer {
    /// Writes files until the lane is closed and empty, or the download is stopped.
    pub(super) fn run(&mut self, download: &Download) -> Result<()> {
        let mut asked = Instant::now();
        loop {
            while let Ok(item) = self.begun.try_recv() {
                self.resume(download, &item)?;
                asked = Instant::now();
            }
            match poll(&mut self.reader, download)? {
                Next::Chunk(chunk) => {
                    self.write(download, chunk, asked)?;
                    asked = Instant::now();
                }
                Next::TimedOut => {}
                Next::End => break,
            }
        }
        // The lane is gone: what it has handed out is all there will be.
        while let Ok(item) = self.begun.recv() {
            self.resume(download, &item)?;
        }
        Ok(())
    }

    /// Writes the object that begins with `chunk`, which has been waited for since `asked`.
    fn write(&mut self, download: &Download, chunk: Chunk, asked: Instant) -> Result<()> {
        let came = Instant::now();
        let item = self.next_taken(&chunk)?;
        if let Some(parent) = item.path.parent() {
            // What fails here fails again below, where it is told.
            let _ = download.made.make(parent);
        }
        let mut file = PartialFile::create(item.path.clone(), &item.meta)?;
        let filled = fill(
            download,
            &mut file,
            &mut self.reader,
            asked.max(item.queued),
            Some((chunk, came)),
        );
        self.end(download, file, &item, filled)
    }

    fn next_taken(&self, chunk: &Chunk) -> Result<Item> {
        self.taken
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
            .filter(|item| item.meta.id.uri == chunk.object.uri)
            .ok_or_else(|| {
                joins_badly(
                    chunk,
                    "the stream delivered another object than the next one",
                )
            })
    }

    /// Goes on with a file that an earlier run has begun.
    fn resume(&self, download: &Download, item: &Item) -> Result<()> {
        let is_stopped = || download.stop.is_stopped();
        let mut file = PartialFile::resume(item.path.clone(), &item.meta, is_stopped)?;
        let resumed_bytes = file.resumed().bytes;
        download.progress.resumed_bytes.add(resumed_bytes);
        let mut filled = fill_alone(download, &mut file, item);
        if let Err(error) = &filled
            && resumed_bytes > 0
            && is_mismatch(error, item)
        {
            tracing::warn!(%error, "what an earlier run had written is thrown away, and fetched again");
            download.progress.resumed_bytes.sub(resumed_bytes);
            filled = file
                .begin_anew(&item.meta)
                .and_then(|()| fill_alone(download, &mut file, item));
        }
        self.end(download, file, item, filled)
    }

    /// Gives the file its name, or keeps of it what another run can go on with.
    fn end(
        &self,
        download: &Download,
        mut file: PartialFile,
        item: &Item,
        filled: Result<()>,
    ) -> Result<()> {
        let result = filled.and_then(|()| is_all_there(&file, item));
        match result {
            Ok(()) => complete(download, file, item)?,
            Err(error) => {
                // Bytes that are not the object's, or no longer, are nothing to go on with. What can't be thrown away
                // has no record any more.
                if let Error::Corrupt { .. } | Error::Changed { .. } = error.root() {
                    let _ = file.discard();
                }
                download.progress.kept_bytes.add(file.kept_bytes());
                return Err(error);
            }
        }
        self.waiting_bytes
            .fetch_sub(item.cost_bytes(), Ordering::Relaxed);
        Ok(())
    }
}

/// Fetches the rest of a file by a stream of its own.
fn fill_alone(download: &Download, file: &mut PartialFile, item: &Item) -> Result<()> {
    file.allocate(item.meta.size_bytes)?;
    let Proven { bytes, checksum } = file.resumed();
    let reader = download
        .engine
        .read_from(item.meta.clone(), bytes, checksum)?;
    fill(download, file, &mut reader.blocking(), Instant::now(), None)
}

/// Writes what comes until the object ends, waiting since `asked`; `first` came before.
fn fill(
    download: &Download,
    file: &mut PartialFile,
    reader: &mut BlockingReader,
    mut asked: Instant,
    mut first: Option<(Chunk, Instant)>,
) -> Result<()> {
    loop {
        let (next, came) = match first.take() {
            Some((chunk, came)) => (Next::Chunk(chunk), came),
            None => (poll(reader, download)?, Instant::now()),
        };
        match next {
            Next::Chunk(chunk) => {
                let blocked = timed(|| write(download, file, &chunk))?;
                download.count(Presence {
                    present: asked.elapsed(),
                    stalled: came.saturating_duration_since(asked),
                    blocked,
                });
                if chunk.ends_object {
                    return Ok(());
                }
                asked = Instant::now();
            }
            Next::TimedOut => {}
            // What is missing is told by whoever compares the sizes.
            Next::End => return Ok(()),
        }
    }
}

fn poll(reader: &mut BlockingReader, download: &Download) -> Result<Next> {
    match download.stop.is_stopped() {
        true => Err(Error::Cancelled),
        false => reader.next_chunk_timeout(STOP_POLL),
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

fn is_all_there(file: &PartialFile, item: &Item) -> Result<()> {
    let (written, listed) = (file.written_bytes(), item.meta.size_bytes);
    if written == listed {
        return Ok(());
    }
    Err(Error::Corrupt {
        uri: item.meta.id.uri.to_string(),
        offset: written,
        reason: format!("the listing says {listed} bytes, and the object ended here"),
        answer: Box::default(),
    })
}

fn complete(download: &Download, file: PartialFile, item: &Item) -> Result<()> {
    let blocked = timed(|| file.finish(item.meta.last_modified, download.config.fsync))?;
    download.count(Presence {
        present: blocked,
        stalled: Duration::ZERO,
        blocked,
    });
    download.progress.written_files.add(1);
    Ok(())
}

fn timed(act: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let before = Instant::now();
    act()?;
    Ok(before.elapsed())
}

/// Whether the bytes of an earlier run may be why the whole is not the object. Of an object without a checksum the
/// engine judges nothing that those bytes take part in.
fn is_mismatch(error: &Error, item: &Item) -> bool {
    matches!(error.root(), Error::Corrupt { .. }) && item.meta.checksum_algorithm.is_some()
}

fn joins_badly(chunk: &Chunk, reason: impl Into<String>) -> Error {
    Error::Corrupt {
        uri: chunk.object.uri.to_string(),
        offset: chunk.offset,
        reason: reason.into(),
        answer: Box::default(),
    }
}
