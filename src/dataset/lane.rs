//! Threads that read and decode.
//!
//! Lane `t` of `n` reads every item whose number is `t` modulo `n`, and hands its records on in groups, through a
//! channel of two. The consumer takes the items in their order, so the lanes decode side by side and the order is the
//! one of a single thread. A lane's objects that nobody began are one stream of the engine, which reads ahead over their
//! ends; an object that is entered in the middle is a stream of its own.
//!
//! A lane ends when it has no more items, when its receiver is gone, or after it sent an error. It sends the end of each
//! item: a lane that dies is not the end of the data.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use futures::StreamExt as _;
use futures::stream;

use super::config::{DatasetConfig, Even, OnError};
use super::plan::{Inputs, Part, Plan, Work, Zone};
use super::progress::{Cursor, Place};
use super::samples::Sample;
use super::stats::Counters;
use crate::error::{Error, Result};
use crate::object::ObjectMeta;
use crate::prefetch::{BlockingReader, Chunk, Next, Prefetcher};
use crate::record::{Codec, Record, RecordDecoder};

/// Groups between a lane and its consumer: one to work on, one to take next.
const GROUPS: usize = 2;
/// Samples of a group at most, so that short lines don't make groups of a hundred thousand.
const GROUP_SAMPLES: usize = 1024;
/// Bytes of a group, without its last sample: what a compressed object holds is in memory group by group, however small
/// the object is. As much as one step of decompression.
pub(super) const GROUP_BYTES: u64 = 1 << 20;
/// How often a lane that waits for the network looks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(100);
/// How long lanes that are no longer wanted are waited for: some looks.
const LAST_LOOK: Duration = Duration::from_secs(1);

/// A sample with what its progress needs.
#[derive(Debug)]
pub(super) struct Tagged {
    pub(super) sample: Sample,
    /// The item it is of.
    pub(super) item: u64,
    /// Where its object goes on behind it.
    pub(super) next: Place,
}

/// Some samples of one item.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) samples: Vec<Tagged>,
    ends_item: bool,
}

/// What all lanes of an epoch share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) engine: Prefetcher,
    pub(super) inputs: Arc<Inputs>,
    pub(super) config: DatasetConfig,
    pub(super) plan: Arc<Plan>,
    pub(super) epoch: u64,
    pub(super) counters: Arc<Counters>,
    stop: AtomicBool,
}

/// The receiving end of an epoch's lanes.
#[derive(Debug)]
pub(super) struct Lanes {
    shared: Arc<Shared>,
    groups: Vec<Receiver<Result<Group>>>,
    /// The item at hand.
    item: u64,
    /// Items of padding that have ended since the last sample.
    barren: u64,
}

impl Drop for Lanes {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // A lane that ends hangs up after its streams are closed: whoever opens the next epoch's has their memory. One
        // that does not within the limit waits for a server that says nothing, and ends when its request does.
        let until = Instant::now() + LAST_LOOK;
        for groups in &self.groups {
            while groups.recv_deadline(until).is_ok() {}
        }
    }
}

/// What came of waiting for a group.
#[derive(Debug)]
pub(super) enum Taken {
    Group(Group),
    End,
    TimedOut,
}

impl Lanes {
    /// Starts the threads, at `from`.
    pub(super) fn start(
        engine: Prefetcher,
        inputs: Arc<Inputs>,
        config: DatasetConfig,
        plan: Arc<Plan>,
        epoch: u64,
        counters: Arc<Counters>,
        from: Cursor,
    ) -> Result<Self> {
        let lanes = config.threads;
        let shared = Arc::new(Shared {
            engine,
            inputs,
            config,
            plan,
            epoch,
            counters,
            stop: AtomicBool::new(false),
        });
        let groups = (0..lanes)
            .map(|lane| spawn(shared.clone(), lane as u64, from))
            .collect::<Result<_>>()?;
        Ok(Self {
            shared,
            groups,
            item: from.item,
            barren: 0,
        })
    }

    /// The next samples in order.
    pub(super) fn take(&mut self, deadline: Instant) -> Result<Taken> {
        loop {
            let plan = &self.shared.plan;
            // Padding comes round without end; where each record of a whole round was corrupt there will be none.
            if plan.item(self.item).is_none()
                || (self.barren > 0 && self.barren > plan.padding_round())
            {
                return Ok(Taken::End);
            }
            let is_padding = plan.zone(self.item) == Zone::Padding;
            let lane = (self.item % self.groups.len() as u64) as usize;
            let group = match self.groups[lane].recv_deadline(deadline) {
                Ok(group) => group?,
                Err(RecvTimeoutError::Timeout) => return Ok(Taken::TimedOut),
                Err(RecvTimeoutError::Disconnected) => {
                    let what = format!(
                        "a decoding thread, in item {} of epoch {}",
                        self.item, self.shared.epoch
                    );
                    return Err(Error::Internal { what });
                }
            };
            self.item += u64::from(group.ends_item);
            self.barren += u64::from(group.ends_item && is_padding);
            if !group.samples.is_empty() {
                self.barren = 0;
                return Ok(Taken::Group(group));
            }
        }
    }
}

fn spawn(shared: Arc<Shared>, lane: u64, from: Cursor) -> Result<Receiver<Result<Group>>> {
    let (sender, groups) = crossbeam_channel::bounded(GROUPS);
    let lane = Lane {
        lanes: shared.config.threads as u64,
        lane,
        from,
        shared,
        sender,
    };
    std::thread::Builder::new()
        .name("standpipe-decode".into())
        .spawn(move || lane.run())
        .map_err(|error| {
            Error::config("threads", format!("the system starts no thread: {error}"))
        })?;
    Ok(groups)
}

/// Why a lane stops before its end.
enum Stop {
    /// Nobody receives any more.
    Unwanted,
    Failed(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

struct Lane {
    shared: Arc<Shared>,
    lane: u64,
    lanes: u64,
    from: Cursor,
    sender: Sender<Result<Group>>,
}

impl Lane {
    fn run(self) {
        match self.items() {
            Ok(()) | Err(Stop::Unwanted) => {}
            Err(Stop::Failed(error)) => _ = self.sender.send(Err(error)),
        }
    }

    fn items(&self) -> Result<(), Stop> {
        let mut number = self.first(self.from.item);
        let opened = self.from.item + u64::from(self.from.place.is_some());
        let last_begun = self.shared.plan.begun().max(opened);
        let fresh = self.first(last_begun);
        // Opened now, so that it is ready when what was begun is read. Where memory is tight the next part of what was
        // begun needs the room: a lane must get on with one stream, as it did before it was interrupted.
        let mut stream = match self.has_room() {
            true => self.fresh_stream(fresh)?,
            false => None,
        };
        while number < last_begun {
            let Some(work) = self.shared.plan.item(number) else {
                return Ok(());
            };
            self.begun(number, self.placed(number, work))?;
            number += self.lanes;
        }
        if stream.is_none() {
            stream = self.fresh_stream(fresh)?;
        }
        while let (Some(stream), Some(Work::Object(part))) =
            (&mut stream, self.shared.plan.item(number))
        {
            let mut item = Item::new(self, number, None);
            item.read(part, stream)?;
            item.end()?;
            number += self.lanes;
        }
        Ok(())
    }

    /// Whether all lanes may have two streams, and leave half of the memory to others.
    fn has_room(&self) -> bool {
        let engine = &self.shared.engine;
        let streams = engine.budget().limit() / engine.part_bytes().max(1);
        self.lanes.saturating_mul(4) <= streams
    }

    /// The first item of this lane from `number` on.
    fn first(&self, number: u64) -> u64 {
        number + (self.lane + self.lanes - number % self.lanes) % self.lanes
    }

    /// The item where the consumer goes on, from there.
    fn placed(&self, number: u64, work: Work) -> Work {
        match (work, self.from.place.filter(|_| number == self.from.item)) {
            (Work::Object(part), Some(place)) => Work::Object(Part {
                place: Some(place),
                ..part
            }),
            (work, _) => work,
        }
    }

    /// All objects from item `first` on, as one stream; none if there is none.
    fn fresh_stream(&self, first: u64) -> Result<Option<BlockingReader>> {
        if self.shared.plan.item(first).is_none() {
            return Ok(None);
        }
        let (shared, lanes) = (self.shared.clone(), self.lanes);
        let metas =
            (0..).map_while(
                move |index| match shared.plan.item(first + index * lanes)? {
                    Work::Object(part) => {
                        Some(Ok(shared.inputs.objects[part.object as usize].clone()))
                    }
                    Work::Window { .. } => None,
                },
            );
        let reader = self.shared.engine.read_all(stream::iter(metas).boxed())?;
        Ok(Some(reader.blocking()))
    }

    /// An item that was begun: an object from a place on, or a window.
    fn begun(&self, number: u64, work: Work) -> Result<(), Stop> {
        let (parts, limit) = match work {
            Work::Object(part) => (vec![part], None),
            Work::Window { parts, len, .. } => (parts, Some(len)),
        };
        let mut item = Item::new(self, number, limit);
        for part in parts {
            if item.left == Some(0) {
                break;
            }
            let meta = &self.shared.inputs.objects[part.object as usize];
            if let Some(mut stream) = self.stream_from(meta, part.place)? {
                item.read(part, &mut stream)?;
            }
        }
        item.end()
    }

    /// A stream of one object from a place on; none if there is nothing behind it.
    fn stream_from(
        &self,
        meta: &ObjectMeta,
        place: Option<Place>,
    ) -> Result<Option<BlockingReader>> {
        let start = match place {
            Some(Place {
                offset,
                codec: Codec::None,
                ..
            }) => offset,
            _ => 0,
        };
        if start > 0 && start >= meta.size_bytes {
            return Ok(None);
        }
        let reader = self.shared.engine.read_from(meta.clone(), start, None)?;
        Ok(Some(reader.blocking()))
    }

    fn send(&self, group: Group) -> Result<(), Stop> {
        // Whoever waits for this thread's end takes groups, too.
        if self.shared.stop.load(Ordering::Relaxed) {
            return Err(Stop::Unwanted);
        }
        self.sender.send(Ok(group)).map_err(|_| Stop::Unwanted)
    }

    fn chunk(&self, stream: &mut BlockingReader) -> Result<Option<Chunk>, Stop> {
        let since = Instant::now();
        let chunk = self.next_chunk(stream);
        self.shared.counters.starved(since.elapsed());
        chunk
    }

    fn next_chunk(&self, stream: &mut BlockingReader) -> Result<Option<Chunk>, Stop> {
        loop {
            if self.shared.stop.load(Ordering::Relaxed) {
                return Err(Stop::Unwanted);
            }
            match stream.next_chunk_timeout(LOOK)? {
                Next::Chunk(chunk) => return Ok(Some(chunk)),
                Next::End => return Ok(None),
                Next::TimedOut => {}
            }
        }
    }
}

/// One item's records on their way to the consumer.
struct Item<'a> {
    lane: &'a Lane,
    number: u64,
    /// Records that are still wanted; none: all.
    left: Option<u64>,
    group: Vec<Tagged>,
    group_bytes: u64,
    /// Time in which the consumer had enough.
    held: Duration,
}

impl<'a> Item<'a> {
    fn new(lane: &'a Lane, number: u64, left: Option<u64>) -> Self {
        Self {
            lane,
            number,
            left,
            group: Vec::new(),
            group_bytes: 0,
            held: Duration::ZERO,
        }
    }

    fn end(self) -> Result<(), Stop> {
        self.lane.send(Group {
            samples: self.group,
            ends_item: true,
        })
    }

    /// Reads the object at the stream's head to its end, or as far as it is wanted.
    fn read(&mut self, part: Part, stream: &mut BlockingReader) -> Result<(), Stop> {
        let shared = &self.lane.shared;
        let meta = &shared.inputs.objects[part.object as usize];
        let decoding = &shared.config.decoding;
        let (decoder, record) = match part.place {
            // A raw object's only record may be empty: its number tells that it was read, not the offset.
            Some(place)
                if decoding.format == crate::record::RecordFormat::Raw && place.record > 0 =>
            {
                return Ok(());
            }
            Some(place) => (decoding.resume(place.boundary()), place.record),
            None => (decoding.decoder(meta.id.uri.key()), 0),
        };
        let mut decoder = Some(decoder);
        let mut record = record;
        while let Some(chunk) = self.lane.chunk(stream)? {
            let ends_object = chunk.ends_object;
            let (since, held) = (Instant::now(), self.held);
            if let Some(decoder) = &mut decoder {
                decoder.push(chunk.bytes.clone());
                if ends_object {
                    decoder.finish();
                }
            }
            let sound = match &mut decoder {
                Some(decoder) => self.decode(part, &chunk, decoder, &mut record)?,
                None => false,
            };
            if !sound {
                decoder = None;
            }
            drop(chunk);
            let decoding = since.elapsed().saturating_sub(self.held - held);
            self.lane.shared.counters.decoded(decoding);
            if self.left == Some(0) {
                break;
            }
            if ends_object {
                return self.compare(part.object, record);
            }
        }
        Ok(())
    }

    /// An object that holds other than the number of records that was given for it makes consumers uneven. Where corrupt
    /// ones are left out, the others are filled up anyway.
    fn compare(&self, object: u32, records: u64) -> Result<(), Stop> {
        let Shared { inputs, config, .. } = &*self.lane.shared;
        if config.even == Even::None || config.on_error == OnError::Skip {
            return Ok(());
        }
        match inputs.counts.as_ref().map(|all| all[object as usize]) {
            Some(given) if given != records => {
                let uri = &inputs.objects[object as usize].id.uri;
                let reason =
                    format!("{uri} holds {records} records, and {given} were given for it");
                Err(Error::unusable("counts", reason, "count them anew").into())
            }
            _ => Ok(()),
        }
    }

    /// All records that are there; `false` when no more can be found in this object.
    fn decode(
        &mut self,
        part: Part,
        chunk: &Chunk,
        decoder: &mut RecordDecoder,
        number: &mut u64,
    ) -> Result<bool, Stop> {
        while self.left != Some(0) {
            match decoder.next_record() {
                Ok(None) => break,
                Ok(Some(found)) => {
                    *number += 1;
                    self.left = self.left.map(|left| left - 1);
                    let codec = decoder.codec().unwrap_or(Codec::None);
                    self.add(part, chunk, found, *number, codec)?;
                }
                Err(flaw) => {
                    let fatal = !flaw.recoverable;
                    let error = flaw.of(&chunk.object.uri);
                    match self.lane.shared.config.on_error {
                        OnError::Fail => {
                            self.flush()?;
                            return Err(error.into());
                        }
                        OnError::Skip => self.lane.shared.counters.skip(error.to_string(), fatal),
                    }
                    if fatal {
                        return Ok(false);
                    }
                }
            }
        }
        self.flush()?;
        Ok(true)
    }

    fn add(
        &mut self,
        part: Part,
        chunk: &Chunk,
        record: Record,
        number: u64,
        codec: Codec,
    ) -> Result<(), Stop> {
        let next = Place {
            offset: record.end,
            record: number,
            codec,
        };
        let sample = Sample {
            object: chunk.object.clone(),
            object_index: part.object,
            epoch: self.lane.shared.epoch,
            record: self.lent_or_own(record, codec),
        };
        self.group_bytes += sample.record.len_bytes();
        self.group.push(Tagged {
            sample,
            item: self.number,
            next,
        });
        match self.group.len() >= GROUP_SAMPLES || self.group_bytes >= GROUP_BYTES {
            true => self.flush(),
            false => Ok(()),
        }
    }

    /// A record in memory of its own when consumers hold much of the engine's: else they could hold all of it.
    fn lent_or_own(&self, record: Record, codec: Codec) -> Record {
        let budget = self.lane.shared.engine.budget();
        if codec != Codec::None || budget.lent() <= budget.limit() / 2 {
            return record;
        }
        self.lane.shared.counters.copied(record.len_bytes());
        record.detached()
    }

    fn flush(&mut self) -> Result<(), Stop> {
        if self.group.is_empty() {
            return Ok(());
        }
        self.group_bytes = 0;
        let since = Instant::now();
        self.lane.send(Group {
            samples: std::mem::take(&mut self.group),
            ends_item: false,
        })?;
        self.held += since.elapsed();
        Ok(())
    }
}
