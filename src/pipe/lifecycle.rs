//! What happens to the FIFOs of one channel, and in which order: a pure state machine.
//!
//! The order is the contract. FIFO n+1 exists from the moment that n has a reader, so a reader that looks for it at
//! the end of n, or after closing n early, finds it without waiting (created only after n was closed, it was missed in
//! 26 to 37 of 39 epochs by a reader that does not wait). FIFO n leaves the directory before its write end is closed,
//! so nobody can open it late and wait for a writer that has gone.

/// What the writer saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// A reader has the epoch's FIFO open, and so has the writer.
    ReaderOpened,
    /// The epoch's stream has given its last chunk.
    Exhausted,
    /// Every byte of the epoch is in the pipe.
    Delivered,
    /// The reader closed before the last byte was in the pipe.
    ReaderLeft,
    /// Nobody opened the FIFO after the last epoch.
    GaveUp,
    /// The epoch failed or was cancelled.
    CutOff,
}

/// What the writer does about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Make the epoch's FIFO.
    Create(u64),
    /// Start its stream.
    ReadAhead(u64),
    /// Drop its stream; what is in flight is cancelled.
    Stop(u64),
    /// Take its FIFO out of the directory.
    Unlink(u64),
    /// Close the write end: the reader sees the end.
    Close(u64),
    /// Set the write end aside, open: the reader must not see an end.
    Keep(u64),
}

/// Where the channel stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// For a reader of the current epoch.
    Waiting,
    /// The current epoch has a reader.
    Streaming,
    /// Nothing more to do.
    Done,
}

/// The state of one channel.
#[derive(Debug, Clone)]
pub(super) struct Lifecycle {
    epochs: Option<u64>,
    epoch: u64,
    phase: Phase,
    reading_ahead: bool,
}

impl Lifecycle {
    /// A channel that serves `epochs` epochs, or goes on for ever.
    pub(super) fn start(epochs: Option<u64>) -> (Self, Vec<Step>) {
        let state = Self {
            epochs,
            epoch: 0,
            phase: Phase::Waiting,
            reading_ahead: false,
        };
        let mut steps = vec![Step::Create(0)];
        steps.extend(state.read_ahead(0));
        (state, steps)
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(super) fn phase(&self) -> Phase {
        self.phase
    }

    /// Whether the current FIFO is the empty one after the last epoch.
    pub(super) fn is_farewell(&self) -> bool {
        self.epochs.is_some_and(|epochs| self.epoch >= epochs)
    }

    /// What to do about `event`, in order.
    pub(super) fn on(&mut self, event: Event) -> Vec<Step> {
        let n = self.epoch;
        match event {
            Event::ReaderOpened if self.is_farewell() => self.finish(vec![]),
            Event::ReaderOpened => {
                self.phase = Phase::Streaming;
                vec![Step::Create(n + 1)]
            }
            Event::Exhausted => self.begin_next(),
            Event::Delivered => self.advance(vec![]),
            Event::ReaderLeft => self.advance(vec![Step::Stop(n)]),
            Event::GaveUp => self.finish(vec![]),
            Event::CutOff => self.cut_off(),
        }
    }

    fn read_ahead(&self, n: u64) -> Option<Step> {
        let wanted = self.epochs.is_none_or(|epochs| n < epochs);
        wanted.then_some(Step::ReadAhead(n))
    }

    fn begin_next(&mut self) -> Vec<Step> {
        if std::mem::replace(&mut self.reading_ahead, true) {
            return vec![];
        }
        self.read_ahead(self.epoch + 1).into_iter().collect()
    }

    fn advance(&mut self, mut steps: Vec<Step>) -> Vec<Step> {
        steps.extend(self.begin_next());
        steps.extend([Step::Unlink(self.epoch), Step::Close(self.epoch)]);
        self.epoch += 1;
        self.phase = Phase::Waiting;
        self.reading_ahead = false;
        steps
    }

    fn finish(&mut self, mut steps: Vec<Step>) -> Vec<Step> {
        self.phase = Phase::Done;
        steps.extend([Step::Unlink(self.epoch), Step::Close(self.epoch)]);
        steps
    }

    fn cut_off(&mut self) -> Vec<Step> {
        let n = self.epoch;
        let mut steps = vec![Step::Stop(n), Step::Keep(n), Step::Unlink(n)];
        if self.phase == Phase::Streaming {
            steps.push(Step::Unlink(n + 1));
        }
        if self.reading_ahead && self.read_ahead(n + 1).is_some() {
            steps.push(Step::Stop(n + 1));
        }
        self.phase = Phase::Done;
        steps
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use proptest::prelude::*;

    #[test]
    fn two_epochs_and_the_farewell() {
        let (mut state, steps) = Lifecycle::start(Some(2));
        assert_eq!(steps, [Step::Create(0), Step::ReadAhead(0)]);
        assert_eq!(state.on(Event::ReaderOpened), [Step::Create(1)]);
        assert_eq!(state.on(Event::Exhausted), [Step::ReadAhead(1)]);
        assert_eq!(
            state.on(Event::Delivered),
            [Step::Unlink(0), Step::Close(0)]
        );
        assert_eq!(state.on(Event::ReaderOpened), [Step::Create(2)]);
        assert_eq!(
            state.on(Event::ReaderLeft),
            [Step::Stop(1), Step::Unlink(1), Step::Close(1)]
        );
        assert!(state.is_farewell());
        assert_eq!(state.on(Event::GaveUp), [Step::Unlink(2), Step::Close(2)]);
        assert_eq!(state.phase(), Phase::Done);
    }

    /// What lies in the directory and what is open, as the steps leave it.
    #[derive(Default)]
    struct World {
        linked: BTreeSet<u64>,
        streams: BTreeSet<u64>,
        created: BTreeSet<u64>,
        begun: BTreeSet<u64>,
        closed: BTreeSet<u64>,
        kept: BTreeSet<u64>,
    }

    impl World {
        fn apply(&mut self, step: Step, epochs: Option<u64>) {
            match step {
                Step::Create(n) => {
                    assert!(self.created.insert(n) && self.linked.insert(n));
                }
                Step::ReadAhead(n) => {
                    assert!(self.begun.insert(n) && self.streams.insert(n));
                    assert!(
                        epochs.is_none_or(|epochs| n < epochs),
                        "reads no epoch too many"
                    );
                }
                Step::Stop(n) => {
                    self.streams.remove(&n);
                }
                Step::Unlink(n) => assert!(self.linked.remove(&n), "unlinks what it made, once"),
                Step::Close(n) => {
                    let last = epochs == Some(n);
                    assert!(
                        last || self.linked.contains(&(n + 1)),
                        "n+1 before the end of n"
                    );
                    assert!(!self.linked.contains(&n), "no late reader can open n");
                    assert!(self.closed.insert(n));
                    self.streams.remove(&n);
                }
                Step::Keep(n) => assert!(self.kept.insert(n)),
            }
            assert!(self.linked.len() <= 2, "two FIFOs at most");
            assert!(self.streams.len() <= 2, "two streams at most");
        }
    }

    fn possible(state: &Lifecycle, exhausted: bool) -> Vec<Event> {
        let mut events = vec![];
        match state.phase() {
            Phase::Waiting if state.is_farewell() => {
                events.extend([Event::ReaderOpened, Event::GaveUp]);
            }
            Phase::Waiting => events.push(Event::ReaderOpened),
            Phase::Streaming => events.extend([Event::Delivered, Event::ReaderLeft]),
            Phase::Done => events.clear(),
        }
        if !exhausted && state.phase() != Phase::Done && !state.is_farewell() {
            events.push(Event::Exhausted);
        }
        events
    }

    proptest! {
        #[test]
        fn whatever_happens_the_order_holds(
            epochs in proptest::option::of(1u64..6),
            picks in proptest::collection::vec(0usize..12, 1..60),
        ) {
            let (mut state, steps) = Lifecycle::start(epochs);
            let mut world = World::default();
            steps.into_iter().for_each(|step| world.apply(step, epochs));
            let mut exhausted = BTreeSet::new();
            for pick in picks {
                let mut events = possible(&state, exhausted.contains(&state.epoch()));
                if events.is_empty() {
                    break;
                }
                // Being cut off ends a run, so it is rare.
                if pick == 0 {
                    events = vec![Event::CutOff];
                }
                let event = events[pick % events.len()];
                if event == Event::Exhausted {
                    exhausted.insert(state.epoch());
                }
                let epoch = state.epoch();
                state.on(event).into_iter().for_each(|step| world.apply(step, epochs));
                if event == Event::CutOff {
                    prop_assert!(world.kept.contains(&epoch) && !world.closed.contains(&epoch));
                }
            }
            if state.phase() == Phase::Done {
                prop_assert!(world.linked.is_empty() && world.streams.is_empty(), "nothing stays behind");
            }
        }
    }
}
