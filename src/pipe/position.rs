//! How far a reader has come in its epoch: which object it is in, counted by what it has taken out of the pipe.
//!
//! What was written is not what was read: a pipe holds up to a megabyte, which may be a thousand small objects. So an
//! object counts as reached when the reader has taken its first byte, and the bytes that still lie in the pipe
//! (FIONREAD) are taken off. What the reader holds in buffers of its own nobody outside of it can know: a margin may be
//! taken off for it.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

use super::fifo::{self, Sink};
use super::piece::Piece;
use crate::object::ObjectId;

/// A place in an epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Position {
    /// The epoch, as its FIFO counts.
    pub epoch: u64,
    /// How many objects of the epoch, or attributes of an augmented manifest, come before the one that is read.
    pub objects_before: u64,
    /// The object that is read, or the manifest whose text is; none before the first.
    pub object: Option<Arc<ObjectId>>,
    /// How many bytes of that object have been left behind, all of them included; 0 where the bytes are not the object's own
    /// (decompressed, wrapped).
    pub offset: u64,
    /// Bytes of the epoch's FIFO that the reader has taken, less the margin.
    pub taken_bytes: u64,
}

impl Position {
    /// The first byte of an epoch.
    pub fn start(epoch: u64) -> Self {
        Self {
            epoch,
            objects_before: 0,
            object: None,
            offset: 0,
            taken_bytes: 0,
        }
    }
}

/// A channel's place, for whoever asks from another thread: the pipe is looked at when it is asked for.
#[derive(Debug, Default)]
pub(super) struct Tracker {
    track: Track,
    stage: Stage,
}

/// Where the bytes that the reader has not taken can be counted.
#[derive(Debug, Default)]
enum Stage {
    /// Nobody has opened the epoch's FIFO.
    #[default]
    Unopened,
    /// In the pipe that is written to. Not held here: that would put off the end that its reader waits for.
    Streaming(Weak<Sink>),
    /// All is written. A read end of our own, which is never read from, tells what is left.
    Delivered(Option<OwnedFd>),
    /// Its reader has closed it early.
    Left(Position),
}

impl Tracker {
    /// A reader is taken to hold up to `margin_bytes` that it has not used yet.
    pub(super) fn new(margin_bytes: u64) -> Self {
        Self {
            track: Track::new(0, margin_bytes),
            stage: Stage::default(),
        }
    }

    pub(super) fn opened(&mut self, epoch: u64, sink: &Arc<Sink>) {
        self.track = Track::new(epoch, self.track.margin_bytes);
        self.stage = Stage::Streaming(Arc::downgrade(sink));
    }

    pub(super) fn goes_on(&mut self, piece: &Piece) {
        if !piece.begins_item {
            return;
        }
        self.track
            .begins(&piece.object, piece.is_plain.then_some(piece.from));
        // Nobody may ever ask for the position: what the reader has left is forgotten all the same.
        if self.track.is_long() {
            self.position();
            self.track.look_again_at_twice();
        }
    }

    pub(super) fn wrote(&mut self, bytes: usize) {
        self.track.wrote(bytes);
    }

    pub(super) fn delivered(&mut self, read_end: Option<OwnedFd>) {
        self.stage = Stage::Delivered(read_end);
    }

    /// Its reader has closed it early. That is what it wanted of the epoch, unless it `is_ending`: whoever was asked to end
    /// closes first and saves then.
    pub(super) fn left(&mut self, is_ending: bool) {
        let at = match is_ending {
            // The pipe's bytes are still counted: its write end is open.
            true => self.position(),
            false => Position::start(self.track.epoch + 1),
        };
        self.stage = Stage::Left(at);
    }

    /// Where the reader is now.
    pub(super) fn position(&mut self) -> Position {
        let epoch = self.track.epoch;
        let unread = match &self.stage {
            Stage::Unopened => return Position::start(epoch),
            Stage::Left(at) => return at.clone(),
            Stage::Streaming(sink) => sink.upgrade().map(|sink| sink.unread_bytes()),
            Stage::Delivered(read_end) => match read_end.as_ref().map(fifo::unread_bytes) {
                // Whoever sees an epoch's end has use for all before it, whatever the margin.
                Some(0) => return Position::start(epoch + 1),
                unread => unread,
            },
        };
        // What cannot be counted may all be unread: one place too early is better than one too late.
        let unread = unread.unwrap_or(fifo::LARGEST_PIPE_BYTES);
        self.track.position(unread)
    }
}

/// Objects that are kept in mind without a look at the pipe: some 50 KB.
const MANY_OBJECTS: usize = 256;

/// The objects whose bytes may be in the pipe, or with the reader.
#[derive(Debug, Default)]
pub(super) struct Track {
    epoch: u64,
    margin_bytes: u64,
    written_bytes: u64,
    /// How many objects come before the first of those below.
    before: u64,
    begun: VecDeque<Begun>,
    /// How many of them are worth a look at the pipe; zero before the first.
    many: usize,
}

/// An object, or an attribute's text.
#[derive(Debug)]
struct Begun {
    /// The byte of the epoch that it begins at.
    start: u64,
    object: Arc<ObjectId>,
    /// Which of its bytes that is; none where the bytes are not its own.
    from: Option<u64>,
}

impl Track {
    /// Nothing of this epoch was written yet.
    pub(super) fn new(epoch: u64, margin_bytes: u64) -> Self {
        Self {
            epoch,
            margin_bytes,
            ..Self::default()
        }
    }

    /// Bytes of this object are about to be written for the first time, from byte `from` of it on if they are its own.
    pub(super) fn begins(&mut self, object: &Arc<ObjectId>, from: Option<u64>) {
        self.begun.push_back(Begun {
            start: self.written_bytes,
            object: object.clone(),
            from,
        });
    }

    /// Whether there are so many objects that some will have been left.
    fn is_long(&self) -> bool {
        self.begun.len() >= self.many.max(MANY_OBJECTS)
    }

    /// Looks cost a system call: the next comes when there are twice as many objects as really are in the pipe.
    fn look_again_at_twice(&mut self) {
        self.many = 2 * self.begun.len();
    }

    /// So many bytes were written.
    pub(super) fn wrote(&mut self, bytes: usize) {
        self.written_bytes += bytes as u64;
    }

    /// Where the reader is when `in_pipe` bytes still lie in the pipe. Objects that it has left are forgotten.
    pub(super) fn position(&mut self, in_pipe: u64) -> Position {
        let taken_bytes = self
            .written_bytes
            .saturating_sub(in_pipe)
            .saturating_sub(self.margin_bytes);
        // An object is left when a byte of a later one was taken.
        while self
            .begun
            .get(1)
            .is_some_and(|next| next.start < taken_bytes)
        {
            self.begun.pop_front();
            self.before += 1;
        }
        let first = self.begun.front();
        // Between two looks the pipe may come to hold bytes that are not counted as written yet.
        let offset =
            first.and_then(|begun| Some(begun.from? + taken_bytes.saturating_sub(begun.start)));
        Position {
            epoch: self.epoch,
            objects_before: self.before,
            object: first.map(|begun| begun.object.clone()),
            offset: offset.unwrap_or_default(),
            taken_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::pipe::fifo::Wrote;

    fn object(n: usize) -> Arc<ObjectId> {
        let uri = format!("memory://b/{n}").parse().unwrap();
        Arc::new(ObjectId::unpinned(uri))
    }

    fn piece(object: &Arc<ObjectId>, from: u64) -> Piece {
        Piece {
            object: object.clone(),
            bytes: bytes::Bytes::new(),
            from,
            to: from,
            ends_object: false,
            begins_item: true,
            is_plain: true,
        }
    }

    /// A reader that keeps up, of an epoch of small objects whose position nobody asks for.
    #[test]
    fn objects_that_were_left_are_forgotten() {
        let (read_end, write_end) = rustix::pipe::pipe().unwrap();
        let sink = Arc::new(Sink::of(write_end));
        let mut tracker = Tracker::default();
        tracker.opened(0, &sink);
        let mut bytes = [0; 64];
        for n in 0..10_000 {
            tracker.goes_on(&piece(&object(n), 0));
            assert!(matches!(sink.write(&bytes).unwrap(), Wrote::Bytes(64)));
            tracker.wrote(64);
            rustix::io::read(&read_end, &mut bytes).unwrap();
            assert!(tracker.track.begun.len() <= MANY_OBJECTS, "{n}");
        }
        assert_eq!(tracker.position().objects_before, 9_999);
    }

    #[test]
    fn a_reader_that_leaves_because_it_is_to_end_has_not_used_up_the_epoch() {
        for (is_ending, place) in [(false, (1, 0)), (true, (0, 40))] {
            let (read_end, write_end) = rustix::pipe::pipe().unwrap();
            let sink = Arc::new(Sink::of(write_end));
            let mut tracker = Tracker::default();
            tracker.opened(0, &sink);
            tracker.goes_on(&piece(&object(0), 0));
            assert!(matches!(sink.write(&[0; 64]).unwrap(), Wrote::Bytes(64)));
            tracker.wrote(64);
            rustix::io::read(&read_end, &mut [0; 40]).unwrap();
            drop(read_end);
            tracker.left(is_ending);
            drop(sink);
            let position = tracker.position();
            assert_eq!((position.epoch, position.offset), place, "{is_ending}");
        }
    }

    /// Bytes are counted as written after they are: for a moment the pipe holds more than is counted.
    #[test]
    fn a_pipe_that_holds_more_than_at_the_last_look_is_no_offset_before_the_object() {
        let mut track = Track::new(0, 0);
        for n in 0..2 {
            track.begins(&object(n), Some(0));
            track.wrote(10);
        }
        assert_eq!(track.position(5).objects_before, 1);
        let position = track.position(12);
        assert_eq!((position.objects_before, position.offset), (1, 0));
    }

    #[test]
    fn what_lies_in_the_pipe_was_not_read() {
        let mut track = Track::new(3, 0);
        let objects = [object(0), object(1), object(2)];
        for object in &objects {
            track.begins(object, Some(0));
            track.wrote(10);
        }
        let mut at = |in_pipe| {
            let position = track.position(in_pipe);
            (position.objects_before, position.taken_bytes)
        };
        assert_eq!(at(30), (0, 0));
        assert_eq!(at(20), (0, 10), "the second has not been begun");
        assert_eq!(at(19), (1, 11));
        assert_eq!(at(0), (2, 30));
    }

    #[test]
    fn the_offset_is_the_objects_and_what_the_reader_may_hold_is_taken_off() {
        let at = |margin, in_pipe| {
            let mut track = Track::new(0, margin);
            // Entered at byte 100 of the first.
            track.begins(&object(0), Some(100));
            track.wrote(10);
            track.begins(&object(1), Some(0));
            track.wrote(10);
            // Decompressed: its bytes say nothing of the object's.
            track.begins(&object(2), None);
            track.wrote(10);
            let position = track.position(in_pipe);
            (position.objects_before, position.offset)
        };
        assert_eq!(
            [30, 27, 20, 15, 10, 4, 0].map(|in_pipe| at(0, in_pipe)),
            [
                (0, 100),
                (0, 103),
                (0, 110),
                (1, 5),
                (1, 10),
                (2, 0),
                (2, 0)
            ]
        );
        assert_eq!(at(8, 15), (0, 107));
        assert_eq!(at(1000, 0), (0, 100), "an epoch's beginning is the limit");
    }

    proptest! {
        /// No object is passed of which a byte may not have been read, whatever the sizes, empty ones included.
        #[test]
        fn nothing_unread_is_ever_passed(
            sizes in proptest::collection::vec(0usize..5, 1..20), lag in 0u64..40, margin in 0u64..9,
        ) {
            let mut track = Track::new(0, margin);
            let mut starts = Vec::new();
            let mut written = 0u64;
            for (n, size) in sizes.iter().enumerate() {
                starts.push(written);
                track.begins(&object(n), Some(0));
                for _ in 0..*size {
                    track.wrote(1);
                    written += 1;
                    let position = track.position(lag.min(written));
                    let passed = position.objects_before as usize;
                    prop_assert!(starts[passed] <= position.taken_bytes);
                    let later = starts.get(passed + 1);
                    prop_assert!(later.is_none_or(|start| *start >= position.taken_bytes));
                    prop_assert_eq!(starts[passed] + position.offset, position.taken_bytes);
                    prop_assert!(position.taken_bytes + margin + lag.min(written) <= written.max(margin + lag.min(written)));
                }
            }
        }
    }
}
