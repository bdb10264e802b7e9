//! Which files will be read next: a pure function of which were read.
//!
//! Files have numbers, in the order of the listing. Training jobs go through them in a few ways: one walk; several
//! readers that take every eighth file, or a contiguous eighth each; batches in turn; at random. So a *stream* is a first
//! file and a stride, and any number of them is followed at once. Readers have no names here: the union of eight readers
//! that take every eighth file each is one walk, and is followed as one.
//!
//! A stream begins when a file was read whose predecessors at one distance were read among the latest misses: three of
//! them next to each other, four at a larger distance, because chance makes more of those. It foresees a few files at
//! first, and one more with every file that is then read. Files that were foreseen and not read although those behind
//! them were, are given up, and so is the stream that was not followed for the longest time when another needs its room.
//! Streams that were mostly wrong raise what the next one must show. So reads in random order foresee next to nothing.
//!
//! What the reader told comes first: [`Lookahead::tell`] takes a whole epoch's order, and as much of it is foreseen as
//! there is room for.

use std::collections::{HashMap, HashSet, VecDeque};

/// How many misses are remembered: three of each of 42 readers at once.
const RECENT: usize = 128;
/// Readers of one dataset on so many hosts, or processes, each with every so-manieth file.
const MOST_STRIDE: u64 = 64;
/// What must have been read before a file, next to each other and at a larger distance. In random order in a folder of
/// a thousand, a file has so many in 0.2 % and, over all distances, 1.7 % of all cases.
const EVIDENCE: (u64, u64) = (3, 4);
/// Several readers side by side are not in step: of so many files before it, so many were read.
const CROWD: (u64, usize) = (16, 12);
/// Of so many files behind it, so many may have been read: those of readers that are ahead.
const FRONT: (u64, usize) = (8, 2);
/// How much more at most, after wrong guesses.
const MOST_DOUBT: u64 = 4;
/// Files that a new stream foresees.
const FIRST_WINDOW: usize = 4;
/// Streams at once: more than a host's cores read in.
const MOST_STREAMS: usize = 64;
/// How many files that need not be fetched a stream passes over at once.
const MOST_PASSED: usize = 256;
/// A stream that was right so often takes back doubt.
const GOOD_HITS: u64 = 16;
/// A reader may be behind the others by so many times what is foreseen.
const MOST_LAG: usize = 4;
/// A stream that nobody followed for so many reads may be given up when another needs its room: each of 64 readers has
/// come by four times.
const PATIENCE: u64 = 256;

/// How much may be foreseen and not yet read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) files: usize,
    pub(super) bytes: u64,
}

/// The files, by number.
pub(super) trait Files {
    /// The n-th file behind one, in the order of the listing, as far as that is known.
    fn behind(&self, file: u64, n: u64) -> Option<u64>;

    /// What fetching it ahead takes.
    fn bytes(&self, file: u64) -> u64;
}

/// What to do.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Orders {
    /// Files to begin fetching, in this order.
    pub(super) fetch: Vec<u64>,
    /// Files that were fetched ahead, and are to be let go: read by now, or given up.
    pub(super) release: Vec<u64>,
}

/// What comes next.
#[derive(Debug)]
enum Course {
    Stride { at: u64, stride: u64 },
    Told(VecDeque<u64>),
}

#[derive(Debug)]
struct Stream {
    course: Course,
    /// How many files it may have foreseen.
    window: usize,
    /// Foreseen, in this order, and how many of those behind it were read since.
    pending: VecDeque<(u64, usize)>,
    foreseen: u64,
    hits: u64,
    /// The read that followed it the last.
    followed: u64,
}

impl Stream {
    fn new(course: Course, window: usize, now: u64) -> Self {
        Self {
            course,
            window,
            pending: VecDeque::new(),
            foreseen: 0,
            hits: 0,
            followed: now,
        }
    }

    /// What the reader told: nothing yet.
    fn told(limits: Limits) -> Self {
        Self::new(Course::Told(VecDeque::new()), limits.files, 0)
    }

    /// Whether this is among the next that it would foresee.
    fn reaches(&self, file: u64) -> bool {
        match self.course {
            Course::Stride { at, stride } => {
                file > at
                    && (file - at).is_multiple_of(stride)
                    && (file - at) / stride <= self.window as u64
            }
            Course::Told(_) => false,
        }
    }

    /// Whether a file lies where it has passed a short while ago.
    fn has_passed(&self, file: u64) -> bool {
        match self.course {
            Course::Stride { at, stride } => {
                file <= at
                    && (at - file).is_multiple_of(stride)
                    && (at - file) / stride < MOST_PASSED as u64
            }
            Course::Told(_) => false,
        }
    }

    fn next(&self, files: &impl Files) -> Option<u64> {
        match &self.course {
            Course::Stride { at, stride } => files.behind(*at, *stride),
            Course::Told(order) => order.front().copied(),
        }
    }

    /// Goes past the next one.
    fn advance(&mut self, file: u64) {
        match &mut self.course {
            Course::Stride { at, .. } => *at = file,
            Course::Told(order) => drop(order.pop_front()),
        }
    }
}

type StreamId = u64;

/// What the reader told. It is there from the beginning.
const TOLD: StreamId = 0;

/// Follows who reads which files.
#[derive(Debug)]
pub(super) struct Lookahead {
    limits: Limits,
    /// Reads so far.
    now: u64,
    streams: HashMap<StreamId, Stream>,
    next_stream: StreamId,
    /// Foreseen and not read: whose, and what it takes.
    pending: HashMap<u64, (StreamId, u64)>,
    pending_bytes: u64,
    missed: Recent,
    latest: Recent,
    seen: Bits,
    doubt: u64,
}

impl Lookahead {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            now: 0,
            streams: HashMap::from([(TOLD, Stream::told(limits))]),
            next_stream: TOLD + 1,
            pending: HashMap::new(),
            pending_bytes: 0,
            missed: Recent::default(),
            latest: Recent::default(),
            seen: Bits::default(),
            doubt: 0,
        }
    }

    /// A file is read, for the first time by its opener.
    pub(super) fn read(&mut self, file: u64, files: &impl Files) -> Orders {
        let mut orders = Orders::default();
        let is_foreseen = self.pending.contains_key(&file);
        if self.latest.contains(file) && !is_foreseen {
            // Opened twice: once for its header, say.
            return orders;
        }
        self.now += 1;
        self.latest.push(file);
        let is_again = self.seen.set(file);
        let was_told = self.was_told(file);
        let stream = match is_foreseen {
            true => self.hit(file, &mut orders),
            false if was_told => Some(TOLD),
            false => self.miss(file, is_again, &mut orders),
        };
        if let Some(stream) = stream {
            self.refill(stream, is_again, files, &mut orders);
        }
        orders
    }

    /// A file that may be foreseen is read by somebody without us.
    pub(super) fn bypassed(&mut self, file: u64, files: &impl Files) -> Orders {
        match self.pending.contains_key(&file) {
            true => self.read(file, files),
            false => Orders::default(),
        }
    }

    /// The reader will read these, in this order, after those that it told before.
    pub(super) fn tell(
        &mut self,
        order: impl IntoIterator<Item = u64>,
        files: &impl Files,
    ) -> Orders {
        let mut orders = Orders::default();
        if let Some(told) = self.told() {
            told.extend(order);
        }
        self.refill(TOLD, true, files, &mut orders);
        orders
    }

    fn told(&mut self) -> Option<&mut VecDeque<u64>> {
        match self.streams.get_mut(&TOLD).map(|told| &mut told.course) {
            Some(Course::Told(order)) => Some(order),
            _ => None,
        }
    }

    /// Whether the reader is ahead of what could be fetched of what it told.
    fn was_told(&mut self, file: u64) -> bool {
        let now = self.now;
        let Some(order) = self.told() else {
            return false;
        };
        let Some(at) = order
            .iter()
            .take(MOST_PASSED)
            .position(|next| *next == file)
        else {
            return false;
        };
        order.remove(at);
        if let Some(told) = self.streams.get_mut(&TOLD) {
            told.followed = now;
        }
        true
    }

    fn forget(&mut self, file: u64, orders: &mut Orders) -> Option<StreamId> {
        let (stream, bytes) = self.pending.remove(&file)?;
        self.pending_bytes -= bytes;
        orders.release.push(file);
        Some(stream)
    }

    fn hit(&mut self, file: u64, orders: &mut Orders) -> Option<StreamId> {
        let id = self.forget(file, orders)?;
        let (now, most) = (self.now, self.limits.files);
        let stream = self.streams.get_mut(&id)?;
        (stream.followed, stream.hits) = (now, stream.hits + 1);
        stream.window = (stream.window + 1).min(most);
        if stream.hits == GOOD_HITS {
            self.doubt = self.doubt.saturating_sub(1);
        }
        let mut pending = stream.pending.iter();
        let at = pending.position(|(pending, _)| *pending == file)?;
        stream.pending.remove(at);
        for (_, overtaken) in stream.pending.iter_mut().take(at) {
            *overtaken += 1;
        }
        let is_lost = |(_, overtaken): &mut (u64, usize)| *overtaken > MOST_LAG * most;
        let mut lost = Vec::new();
        while let Some((file, _)) = stream.pending.pop_front_if(is_lost) {
            lost.push(file);
        }
        for file in lost {
            self.forget(file, orders);
        }
        Some(id)
    }

    /// The stream that this file belongs to, be it a new one.
    fn miss(&mut self, file: u64, is_again: bool, orders: &mut Orders) -> Option<StreamId> {
        let now = self.now;
        let reached = |(_, stream): &(&StreamId, &mut Stream)| stream.reaches(file);
        if let Some((id, stream)) = self.streams.iter_mut().find(reached) {
            // For want of room, or because one of its readers is ahead of the others.
            stream.followed = now;
            return Some(*id);
        }
        let stride = self.stride(file);
        self.missed.push(file);
        // The first files of a stream come from several readers, out of order.
        let is_behind = !is_again && self.streams.values().any(|stream| stream.has_passed(file));
        let stride = stride.filter(|_| !is_behind)?;
        if self.streams.len() > MOST_STREAMS {
            self.retire(None, 0, orders);
        }
        let id = self.next_stream;
        self.next_stream += 1;
        let course = Course::Stride { at: file, stride };
        self.streams
            .insert(id, Stream::new(course, FIRST_WINDOW, now));
        Some(id)
    }

    /// The distance at which those before this one were missed, or 1 where most of those before it were read; and those
    /// behind it were not, because in random order in a small folder there are as many of both.
    fn stride(&self, file: u64) -> Option<u64> {
        let latest = |at: Option<u64>| at.is_some_and(|at| self.latest.contains(at));
        let missed = |at: Option<u64>| at.is_some_and(|at| self.missed.contains(at));
        let near = (1..=CROWD.0).filter(|n| latest(file.checked_sub(*n)));
        let is_crowded = near.count() >= CROWD.1;
        let is_evident = |stride: u64| {
            let least = if stride == 1 { EVIDENCE.0 } else { EVIDENCE.1 };
            let mut before = 1..=least + self.doubt;
            before.all(|n| missed(file.checked_sub(n * stride))) || stride == 1 && is_crowded
        };
        let is_front = |stride: &u64| {
            let behind = (1..=FRONT.0).filter(|n| latest(file.checked_add(n * stride)));
            behind.count() <= FRONT.1
        };
        let mut strides = (1..=MOST_STRIDE).filter(|stride| is_evident(*stride));
        strides.find(is_front)
    }

    fn refill(&mut self, id: StreamId, is_again: bool, files: &impl Files, orders: &mut Orders) {
        let share = self.share(id);
        for _ in 0..MOST_PASSED {
            let Some(stream) = self.streams.get_mut(&id) else {
                return;
            };
            if stream.pending.len() >= stream.window.min(share) {
                return;
            }
            let Some(file) = stream.next(files) else {
                return;
            };
            let bytes = files.bytes(file);
            let is_over = id != TOLD && !is_again && self.seen.has(file);
            let is_needless = is_over
                || bytes == 0
                || bytes > self.limits.bytes
                || self.latest.contains(file)
                || self.pending.contains_key(&file);
            if is_needless {
                stream.advance(file);
                continue;
            }
            while !self.has_room(bytes) {
                if !self.retire(Some(id), PATIENCE, orders) {
                    return;
                }
            }
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.advance(file);
                stream.pending.push_back((file, 0));
                stream.foreseen += 1;
            }
            self.pending.insert(file, (id, bytes));
            self.pending_bytes += bytes;
            orders.fetch.push(file);
        }
    }

    fn has_room(&self, bytes: u64) -> bool {
        self.pending.len() < self.limits.files && self.pending_bytes + bytes <= self.limits.bytes
    }

    /// How many files a stream may have foreseen beside the others that are followed. What was told comes first.
    fn share(&self, id: StreamId) -> usize {
        if id == TOLD {
            return self.limits.files;
        }
        let is_followed = |(other, stream): &(&StreamId, &Stream)| {
            **other != TOLD && self.now - stream.followed <= PATIENCE
        };
        let streams = self.streams.iter().filter(is_followed).count();
        (self.limits.files / streams.max(1)).max(1)
    }

    /// Gives up the stream that was followed the longest ago, but for `spare`, if that is at least `idle` reads.
    fn retire(&mut self, spare: Option<StreamId>, idle: u64, orders: &mut Orders) -> bool {
        let now = self.now;
        let is_idle = |(id, stream): &(&StreamId, &Stream)| {
            let has_something = **id != TOLD || !stream.pending.is_empty();
            Some(**id) != spare && has_something && now - stream.followed >= idle
        };
        let streams = self.streams.iter().filter(is_idle);
        let Some((id, _)) = streams.min_by_key(|(id, stream)| (stream.followed, **id)) else {
            return false;
        };
        let id = *id;
        let Some(stream) = self.streams.remove(&id) else {
            return false;
        };
        if stream.hits * 2 < stream.foreseen {
            self.doubt = (self.doubt + 1).min(MOST_DOUBT);
        }
        for (file, _) in stream.pending {
            self.forget(file, orders);
        }
        if id == TOLD {
            // Nobody reads what was told.
            self.streams.insert(TOLD, Stream::told(self.limits));
        }
        true
    }
}

/// The latest of some files.
#[derive(Debug, Default)]
struct Recent {
    order: VecDeque<u64>,
    set: HashSet<u64>,
}

impl Recent {
    fn push(&mut self, file: u64) {
        if !self.set.insert(file) {
            return;
        }
        self.order.push_back(file);
        if self.order.len() > RECENT
            && let Some(oldest) = self.order.pop_front()
        {
            self.set.remove(&oldest);
        }
    }

    fn contains(&self, file: u64) -> bool {
        self.set.contains(&file)
    }
}

/// A bit for each file: 125 kB for a million.
#[derive(Debug, Default)]
pub(super) struct Bits(Vec<u64>);

impl Bits {
    /// Says what it was before.
    pub(super) fn set(&mut self, at: u64) -> bool {
        let (word, bit) = ((at / 64) as usize, 1 << (at % 64));
        if word >= self.0.len() {
            self.0.resize(word + 1, 0);
        }
        let was_set = self.0[word] & bit != 0;
        self.0[word] |= bit;
        was_set
    }

    pub(super) fn has(&self, at: u64) -> bool {
        let word = self.0.get((at / 64) as usize);
        word.is_some_and(|word| word & (1 << (at % 64)) != 0)
    }
}

#[cfg(test)]
mod tests;
