//! The thread of one channel: it waits for readers and moves chunks from the engine into the pipe.
//!
//! One blocking thread per channel, and one stream: a reader that is slow, or never comes, holds up nobody else. The
//! thread waits in three places, and looks at the canceller in each: for a reader (opening is tried every 1 to 20 ms,
//! and meanwhile the first chunk is awaited, so that a failure is reported although nobody reads), for the engine (50
//! ms at a time), and for room in the pipe (poll on the pipe and the canceller's eventfd).
//!
//! A chunk is written in slices straight from the engine's memory: one copy, into the pipe's pages.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Buf;

use super::attendance::Attendance;
use super::cancel::Canceller;
use super::feed::{Feed, Progress};
use super::fifo::{Fifo, Ready, Sink, Wrote};
use super::holders;
use super::lifecycle::{Event, Lifecycle, Phase, Step};
use super::name::ChannelName;
use super::piece::Piece;
use super::position::Tracker;
use super::status::{Failure, Place};
use super::sys;
use super::{ChannelSummary, EpochSource, OnFailure, PipeChannel, PipeConfig};
use crate::error::{Error, Result};
use crate::metrics::Metrics;

/// How often opening is tried: at once for a reader that comes right after the last epoch, and at no more than 50
/// failing system calls a second for one that does not come.
const OPEN_PAUSE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(20));

/// How long a thread waits for the engine before it looks whether the reader is still there.
const ENGINE_WAIT: Duration = Duration::from_millis(50);

/// Bytes per write: a large write into a pipe of its own size leaves reader and writer to take turns; a quarter of the
/// pipe lets them overlap (from ready 8 MiB buffers to a reader of 1 MiB: 3.3 against 2.2 GB/s). With the network before
/// it the size hardly matters: from 128 KiB to 1 MiB the rate and the CPU differ by less than two runs do.
const SLICE_BYTES: usize = 256 << 10;

/// When a second reader is looked for: not before the first bytes are in the pipe (a look takes 2 ms, and there is nothing
/// yet that two could split), soon after, then ever more seldom.
const LOOK_PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(30));

/// What the channels of a server share.
pub(super) struct Shared {
    pub(super) config: PipeConfig,
    pub(super) metrics: Arc<Metrics>,
    pub(super) canceller: Canceller,
    pub(super) on_failure: OnFailure,
    pub(super) attendance: Attendance,
    /// Readers were asked to end.
    pub(super) is_ending: AtomicBool,
    /// Write ends of epochs that were cut off. They must outlive the failure, because closing one looks like an end.
    pub(super) kept: Mutex<Vec<CutOff>>,
}

/// The write end of an epoch that was cut off.
pub(super) struct CutOff {
    pub(super) sink: Arc<Sink>,
    /// The end of its reader's grace.
    pub(super) until: Instant,
}

/// One channel.
pub(super) struct ChannelWriter {
    name: ChannelName,
    source: Arc<EpochSource>,
    shared: Arc<Shared>,
    summary: Arc<Mutex<ChannelSummary>>,
    life: Lifecycle,
    fifos: BTreeMap<u64, Fifo>,
    feeds: BTreeMap<u64, Feed>,
    sink: Option<Arc<Sink>>,
    progress: Progress,
    tracker: Arc<Mutex<Tracker>>,
    opened: Instant,
    /// Until when the reader's presence is counted; none while there is no reader.
    attended_until: Option<Instant>,
    next_look: (Instant, Duration),
    /// The failure that was reported, and until when its reader is waited for.
    failed: Option<(Error, Instant)>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ChannelWriter {
    /// Makes the first FIFO, for what `feed` has begun to read.
    pub(super) fn new(channel: PipeChannel, feed: Feed, shared: Arc<Shared>) -> Result<Self> {
        let (life, steps) = Lifecycle::start(shared.config.epochs);
        let now = Instant::now();
        let summary = ChannelSummary::new(channel.name.clone());
        let tracker = Arc::new(Mutex::new(Tracker::new(
            shared.config.position_margin_bytes,
        )));
        let mut writer = Self {
            name: channel.name,
            source: channel.source,
            shared,
            summary: Arc::new(Mutex::new(summary)),
            life,
            fifos: BTreeMap::new(),
            feeds: BTreeMap::from([(0, feed)]),
            sink: None,
            progress: Progress::default(),
            tracker,
            opened: now,
            attended_until: None,
            next_look: (now, LOOK_PAUSE.0),
            failed: None,
        };
        writer.take(steps)?;
        Ok(writer)
    }

    pub(super) fn name(&self) -> &ChannelName {
        &self.name
    }

    pub(super) fn summary(&self) -> Arc<Mutex<ChannelSummary>> {
        self.summary.clone()
    }

    pub(super) fn tracker(&self) -> Arc<Mutex<Tracker>> {
        self.tracker.clone()
    }

    /// Serves epoch after epoch, until the last, a failure or the canceller.
    pub(super) fn run(mut self) -> Result<()> {
        sys::block_sigpipe();
        let served = self.serve();
        if let Err(error) = &served {
            self.end_badly(error.clone());
        }
        served
    }

    fn serve(&mut self) -> Result<()> {
        loop {
            match self.life.phase() {
                Phase::Waiting => self.await_reader()?,
                Phase::Streaming => self.stream()?,
                Phase::Done => return Ok(()),
            }
        }
    }

    fn await_reader(&mut self) -> Result<()> {
        let since = Instant::now();
        let mut pause = OPEN_PAUSE.0;
        loop {
            self.check_cancelled()?;
            if let Some(sink) = self.fifo().open()? {
                return self.begin(sink);
            }
            if self.life.is_farewell() && since.elapsed() >= self.shared.config.farewell_grace {
                return self.on(Event::GaveUp);
            }
            self.check_grace()?;
            // A stream that could not even be made is told at once, too.
            if self.feed().is_some_and(|feed| feed.failure().is_some()) {
                self.fill(Duration::ZERO)?;
            }
            if self.feed().is_some_and(|feed| feed.wants_filling()) {
                self.fill(pause)?;
            } else {
                self.shared.canceller.sleep(pause);
            }
            pause = (pause * 2).min(OPEN_PAUSE.1);
        }
    }

    fn begin(&mut self, sink: Sink) -> Result<()> {
        self.opened = Instant::now();
        self.attended_until = (!self.life.is_farewell()).then_some(self.opened);
        if self.attended_until.is_some() {
            self.shared.attendance.came(self.opened);
        }
        self.next_look = (self.opened + LOOK_PAUSE.0, LOOK_PAUSE.0);
        self.progress = Progress::default();
        lock(&self.summary).pipe_bytes = sink.raise(self.shared.config.pipe_bytes);
        let sink = Arc::new(sink);
        lock(&self.tracker).opened(self.life.epoch(), &sink);
        self.sink = Some(sink);
        self.on(Event::ReaderOpened)
    }

    fn stream(&mut self) -> Result<()> {
        while let Some(chunk) = self.next_chunk()? {
            if let Some(event) = self.put(chunk)? {
                return self.end_epoch(event);
            }
        }
        let event = match self.feed().is_some_and(|feed| feed.is_exhausted()) {
            true => Event::Delivered,
            false => Event::ReaderLeft,
        };
        self.end_epoch(event)
    }

    /// The next chunk; `None` when the stream is at its end or its reader has gone.
    fn next_chunk(&mut self) -> Result<Option<Piece>> {
        let since = Instant::now();
        let chunk = self.await_chunk();
        let stalled = since.elapsed();
        self.count_presence(|summary| summary.stalled += stalled);
        chunk
    }

    /// Counts the reader's presence until now, together with what it did since.
    fn count_presence(&mut self, also: impl FnOnce(&mut ChannelSummary)) {
        let now = Instant::now();
        let mut summary = lock(&self.summary);
        if let Some(until) = &mut self.attended_until {
            summary.attended += now.saturating_duration_since(*until);
            *until = now;
        }
        also(&mut summary);
    }

    /// The reader has gone, or will get nothing more.
    fn end_presence(&mut self) {
        self.count_presence(|_| {});
        if let Some(until) = self.attended_until.take() {
            self.shared.attendance.left(until);
        }
    }

    fn await_chunk(&mut self) -> Result<Option<Piece>> {
        loop {
            self.check_cancelled()?;
            let Some(feed) = self.feeds.get_mut(&self.life.epoch()) else {
                return Ok(None);
            };
            if let Some(chunk) = feed.take() {
                return Ok(Some(chunk));
            }
            if let Some(error) = feed.failure() {
                return Err(error.clone());
            }
            if feed.is_exhausted() || !self.reader_is_there() {
                return Ok(None);
            }
            if self.progress.bytes > 0 {
                self.look_for_second_reader()?;
            }
            self.fill(ENGINE_WAIT)?;
        }
    }

    /// Writes a piece. An event when the epoch ends over it.
    fn put(&mut self, piece: Piece) -> Result<Option<Event>> {
        lock(&self.tracker).goes_on(&piece);
        let mut rest = piece.bytes.clone();
        while !rest.is_empty() {
            let slice = &rest[..rest.len().min(SLICE_BYTES)];
            match self.write(slice)? {
                Wrote::Bytes(written) => {
                    rest.advance(written);
                    self.count(
                        written,
                        &piece,
                        piece.reached(piece.bytes.len() - rest.len()),
                    );
                }
                Wrote::Full if self.wait_for_room()? => {}
                Wrote::Full | Wrote::ReaderLeft => return Ok(Some(Event::ReaderLeft)),
            }
            // The next epoch's reading begins while this one's last chunk is written.
            if piece.ends_object && self.feed().is_some_and(|feed| feed.is_at_end()) {
                self.on(Event::Exhausted)?;
            }
        }
        Ok(None)
    }

    fn write(&self, bytes: &[u8]) -> Result<Wrote> {
        let Some(sink) = &self.sink else {
            return Ok(Wrote::ReaderLeft);
        };
        sink.write(bytes)
            .map_err(|error| Error::io(self.fifo().path(), error.into()))
    }

    fn count(&mut self, written: usize, piece: &Piece, end: u64) {
        let mut summary = lock(&self.summary);
        if self.progress.bytes == 0 {
            summary.record_first_byte(self.opened.elapsed());
            self.next_look = (Instant::now() + LOOK_PAUSE.0, LOOK_PAUSE.0);
        }
        summary.bytes += written as u64;
        summary.epoch_bytes += written as u64;
        drop(summary);
        lock(&self.tracker).wrote(written);
        self.progress.bytes += written as u64;
        match &mut self.progress.last {
            Some((uri, offset)) if *uri == piece.object.uri => *offset = end,
            last => *last = Some((piece.object.uri.clone(), end)),
        }
        if let Some((_, until)) = &mut self.failed {
            *until = Instant::now() + self.shared.config.failure_grace;
        }
    }

    /// Waits until the pipe has room; false when its reader has gone.
    fn wait_for_room(&mut self) -> Result<bool> {
        let since = Instant::now();
        let waited = self.await_room();
        let time = since.elapsed();
        self.shared.metrics.sink_wait_ns.add_time(time);
        self.count_presence(|summary| summary.blocked += time);
        waited
    }

    fn await_room(&mut self) -> Result<bool> {
        loop {
            self.look_for_second_reader()?;
            self.check_grace()?;
            let wake = self
                .failed
                .as_ref()
                .map_or(self.next_look.0, |(_, until)| *until);
            let limit = wake
                .min(self.next_look.0)
                .saturating_duration_since(Instant::now());
            let Some(sink) = &self.sink else {
                return Ok(false);
            };
            match sink.wait_for_room(self.cancel_fd(), Some(limit)) {
                Ready::Room => return Ok(true),
                Ready::ReaderLeft => return Ok(false),
                Ready::Cancelled => return Err(Error::Cancelled),
                Ready::TimedOut => {}
            }
        }
    }

    /// Asks the engine, and acts at once on what it says.
    fn fill(&mut self, limit: Duration) -> Result<()> {
        let Some(feed) = self.feeds.get_mut(&self.life.epoch()) else {
            return Ok(());
        };
        feed.fill(limit);
        let failure = feed.failure().cloned();
        // A failure is told below, and is no beginning.
        if !feed.wants_filling() && failure.is_none() && self.life.epoch() == 0 {
            lock(&self.summary).begun = true;
        }
        if feed.is_exhausted() {
            self.on(Event::Exhausted)?;
        } else if let Some(error) = failure
            && (self.shared.config.tell_unread || self.sink.is_some() || self.life.epoch() == 0)
        {
            self.report(error);
        }
        Ok(())
    }

    fn end_epoch(&mut self, event: Event) -> Result<()> {
        self.end_presence();
        let mut summary = lock(&self.summary);
        match event {
            // The reader may have left right after the last byte; that is not early.
            Event::ReaderLeft => {
                lock(&self.tracker).left(self.shared.is_ending.load(Ordering::Relaxed));
                summary.early_closes += 1;
            }
            _ => {
                // Its last bytes may not be read yet.
                let read_end = self.sink.as_ref().and_then(|sink| sink.read_end());
                lock(&self.tracker).delivered(read_end);
                summary.epochs += 1;
            }
        }
        summary.epoch_bytes = 0;
        drop(summary);
        self.on(event)
    }

    fn on(&mut self, event: Event) -> Result<()> {
        let steps = self.life.on(event);
        self.take(steps)
    }

    fn take(&mut self, steps: Vec<Step>) -> Result<()> {
        for step in steps {
            match step {
                Step::Create(n) => {
                    let fifo = Fifo::create(self.path(n), self.shared.config.mode)?;
                    self.fifos.insert(n, fifo);
                }
                Step::ReadAhead(n) => {
                    let source = &self.source;
                    self.feeds
                        .entry(n)
                        .or_insert_with(|| Feed::new((source)(n)));
                }
                Step::Stop(n) => drop(self.feeds.remove(&n)),
                Step::Unlink(n) => drop(self.fifos.remove(&n)),
                Step::Close(n) => {
                    self.sink = None;
                    self.feeds.remove(&n);
                }
                Step::Keep(_) => self.keep(),
            }
        }
        Ok(())
    }

    /// Says what failed, once, at once: the status file first, so that whoever is told finds it.
    fn report(&mut self, error: Error) {
        if self.failed.is_some() {
            return;
        }
        let until = Instant::now() + self.shared.config.failure_grace;
        self.failed = Some((error.clone(), until));
        let failure = self.failure(error);
        if let Err(error) = failure.write() {
            tracing::error!(%error, "the status file could not be written");
        }
        (self.shared.on_failure)(&failure);
    }

    fn failure(&self, error: Error) -> Failure {
        let place = Place {
            dir: &self.shared.config.dir,
            channel: &self.name,
            epoch: self.life.epoch(),
            delivered_bytes: self.progress.bytes,
            last: self.progress.last.clone(),
        };
        Failure::new(place, error, SystemTime::now())
    }

    /// The end that must not look like one: the reason goes beside the FIFO, the write end stays open.
    fn end_badly(&mut self, error: Error) {
        self.end_presence();
        if !matches!(error, Error::Cancelled) {
            self.report(error);
            self.hold();
        } else if self.sink.is_some() && self.failed.is_none() {
            // Whoever cancelled knows; the reader does not.
            if let Err(error) = self.failure(error).write() {
                tracing::error!(%error, "the status file could not be written");
            }
        }
        let _ = self.on(Event::CutOff);
    }

    /// Puts the write end where it outlives this channel.
    fn keep(&mut self) {
        let grace = || Instant::now() + self.shared.config.failure_grace;
        let until = self.failed.as_ref().map_or_else(grace, |(_, until)| *until);
        let cut_off = self.sink.take().map(|sink| CutOff { sink, until });
        lock(&self.shared.kept).extend(cut_off);
    }

    /// Waits until the reader has gone or the grace period is over.
    fn hold(&self) {
        if let (Some(sink), Some((_, until))) = (&self.sink, &self.failed) {
            let left = until.saturating_duration_since(Instant::now());
            sink.wait_for_end(self.cancel_fd(), Some(left));
        }
    }

    fn check_cancelled(&self) -> Result<()> {
        match self.shared.canceller.is_cancelled() {
            true => Err(Error::Cancelled),
            false => Ok(()),
        }
    }

    /// Gives up on a failed epoch whose reader does not come or does not read.
    fn check_grace(&self) -> Result<()> {
        match &self.failed {
            Some((error, until)) if Instant::now() >= *until => Err(error.clone()),
            _ => Ok(()),
        }
    }

    fn look_for_second_reader(&mut self) -> Result<()> {
        let (due, pause) = self.next_look;
        let now = Instant::now();
        if now < due {
            return Ok(());
        }
        self.next_look = (now + pause, (pause * 2).min(LOOK_PAUSE.1));
        match holders::two_readers(self.fifo().inode()) {
            Some((a, b)) => Err(Error::unusable(
                self.fifo().path().display().to_string(),
                format!(
                    "two readers (process {} and process {}) would split its bytes between them",
                    a.pid, b.pid
                ),
                "give each reader a channel of its own",
            )),
            None => Ok(()),
        }
    }

    fn reader_is_there(&self) -> bool {
        let cancel = self.cancel_fd();
        self.sink
            .as_ref()
            .is_some_and(|sink| sink.has_reader(cancel))
    }

    fn cancel_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.shared.canceller)
    }

    fn feed(&self) -> Option<&Feed> {
        self.feeds.get(&self.life.epoch())
    }

    /// The current epoch's FIFO, which exists from `Create` to `Unlink`.
    fn fifo(&self) -> &Fifo {
        &self.fifos[&self.life.epoch()]
    }

    fn path(&self, epoch: u64) -> PathBuf {
        self.shared.config.dir.join(self.name.fifo(epoch))
    }
}

impl Drop for ChannelWriter {
    /// Not even a panic may look like the end of the data.
    fn drop(&mut self) {
        self.keep();
    }
}
