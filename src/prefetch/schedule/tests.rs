//! Fairness of the pure scheduler: what each stream is given, in bytes, whatever the sizes of its parts.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use futures::future::AbortHandle;
use proptest::prelude::*;
use tokio::sync::mpsc;

use super::*;
use crate::object::ObjectId;
use crate::prefetch::plan::Lead;
use crate::prefetch::stream::{Feed, Planned};

const PART_BYTES: u64 = 1 << 20;
/// Nobody waits for memory: it is only counted here, the buffers are as large as the parts in flight.
const MEMORY_BYTES: u64 = 1 << 40;

/// Streams that never run dry, whose parts arrive in the order in which they were asked for.
struct Sim {
    core: Core,
    feeds: BTreeMap<StreamId, (mpsc::Sender<Feed>, ObjectId)>,
    in_flight: VecDeque<Fetch>,
    /// Bytes fetched for each stream, by our own count.
    given: BTreeMap<StreamId, u64>,
    largest: BTreeMap<StreamId, u64>,
}

impl Sim {
    fn new(concurrency: usize) -> Self {
        let config = PrefetchConfig {
            part_bytes: PART_BYTES,
            concurrency,
            memory_bytes: MEMORY_BYTES,
            ..PrefetchConfig::default()
        };
        Self {
            core: Core::new(config, MemoryBudget::new(MEMORY_BYTES)),
            feeds: BTreeMap::new(),
            in_flight: VecDeque::new(),
            given: BTreeMap::new(),
            largest: BTreeMap::new(),
        }
    }

    /// A stream of objects of this size: its parts are as large, up to the part size.
    fn open(&mut self, object_bytes: u64) -> StreamId {
        let (sender, feed) = mpsc::channel(2);
        let source = Source {
            feed,
            starved: Arc::new(AtomicBool::new(true)),
            lead: Lead::Large,
            lister: AbortHandle::new_pair().0,
        };
        let id = self.core.open(source, u64::MAX).unwrap();
        let object = ObjectId {
            etag: Some("\"e\"".into()),
            size_bytes: Some(object_bytes),
            ..ObjectId::unpinned("memory://bucket/key".parse().unwrap())
        };
        self.feeds.insert(id, (sender, object));
        self.given.insert(id, 0);
        self.largest.insert(id, 0);
        id
    }

    /// Issues what may be issued, and returns for whom.
    fn issue(&mut self) -> Vec<StreamId> {
        let mut issued = Vec::new();
        loop {
            for (sender, object) in self.feeds.values() {
                let planned = Planned::whole(object.clone(), None);
                // Full is fed enough.
                let _ = sender.try_send(Feed::Object(planned));
            }
            match self.core.next_action(Instant::now()) {
                None => return issued,
                Some(Action::Fetch(fetch)) => {
                    let (id, bytes) = (fetch.ticket.stream, fetch.ticket.piece.range.len());
                    *self.given.get_mut(&id).unwrap() += bytes;
                    let largest = self.largest.get_mut(&id).unwrap();
                    *largest = bytes.max(*largest);
                    self.in_flight.push_back(fetch);
                    issued.push(id);
                }
                Some(Action::Wake(_) | Action::Head(_)) => {}
                Some(Action::Discard(_)) => panic!("there is memory for all"),
            }
        }
    }

    /// The oldest part in flight arrives, and its consumer takes it.
    fn arrive(&mut self) -> StreamId {
        let fetch = self.in_flight.pop_front().unwrap();
        let range = fetch.ticket.piece.range;
        let mut buf = PartBuf::heap(range.len() as usize);
        buf.advance(range.len() as usize);
        let meta = GetMeta {
            etag: fetch.ticket.piece.object.etag.clone(),
            size_bytes: fetch.ticket.piece.object.size_bytes.unwrap(),
            checksum: None,
        };
        self.core.complete(&fetch.ticket, buf, Ok(meta));
        let id = fetch.ticket.stream;
        assert!(matches!(self.core.take(id, Waker::noop()), Take::Part(_)));
        id
    }

    fn wait_for_next(&mut self, id: StreamId) {
        assert!(matches!(self.core.take(id, Waker::noop()), Take::Pending));
    }

    /// No stream is ahead of another by more than the part that brought it there.
    fn is_fair(&self) -> bool {
        let least = self.given.values().min().unwrap();
        let mut streams = self.given.iter();
        streams.all(|(ahead, given)| *given <= least + self.largest[ahead])
    }

    fn assert_fair(&self) {
        let (given, largest) = (&self.given, &self.largest);
        assert!(self.is_fair(), "{given:?} with parts of {largest:?}");
    }
}

/// From small records, of which one part outweighs many, to objects of several parts.
fn object_sizes(smallest: u64) -> impl Strategy<Value = Vec<u64>> {
    let size = prop_oneof![
        smallest..2 * smallest,
        2 * smallest..PART_BYTES,
        PART_BYTES..4 * PART_BYTES
    ];
    proptest::collection::vec(size, 2..=8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Bytes, not parts, are shared evenly: at every moment, among streams that always have something to fetch.
    #[test]
    fn hungry_streams_get_the_same_bytes_within_one_part(sizes in object_sizes(1_000), concurrency in 1..=8usize) {
        let mut sim = Sim::new(concurrency);
        for size in &sizes { sim.open(*size); }
        for _ in 0..400 {
            sim.issue();
            sim.assert_fair();
            sim.arrive();
        }
    }

    /// Who comes late is served like the others from then on: it neither catches up nor waits for them.
    #[test]
    fn a_late_stream_starts_level(sizes in object_sizes(1_000), late_bytes in 1..4 * PART_BYTES) {
        let mut sim = Sim::new(4);
        for size in &sizes { sim.open(*size); }
        for _ in 0..100 { sim.issue(); sim.arrive(); }
        // It starts where the one that has got least is.
        let least = *sim.given.values().min().unwrap();
        let late = sim.open(late_bytes);
        sim.given.insert(late, least);
        for _ in 0..200 {
            sim.issue();
            sim.assert_fair();
            sim.arrive();
        }
    }

    /// A consumer that waits is served first, and pays for it: once it no longer waits, its stream gets nothing until
    /// the others have as much.
    #[test]
    fn the_urgent_lane_goes_first_and_is_charged(sizes in object_sizes(64 << 10), waiting: proptest::sample::Index, waits in 8..60u32) {
        let mut sim = Sim::new(1);
        let ids: Vec<_> = sizes.iter().map(|size| sim.open(*size)).collect();
        let urgent = *waiting.get(&ids);
        let mut patient_run = 0;
        let mut served_first = 0;
        for _ in 0..waits {
            sim.wait_for_next(urgent);
            let issued = sim.issue();
            prop_assert_eq!(issued.len(), 1);
            if issued[0] == urgent { served_first += 1; patient_run = 0; } else { patient_run += 1; }
            prop_assert!(patient_run <= 1, "a consumer waits");
            sim.arrive();
        }
        prop_assert!(served_first >= waits * URGENT_RUN / (URGENT_RUN + 1), "{served_first} of {waits}");
        // Its last wait was answered, or is answered now.
        sim.issue();
        if sim.arrive() != urgent {
            sim.issue();
            sim.arrive();
        }
        // Those whose turn came in between may have got more than it, in larger parts: all meet in the end.
        let mut rounds = 0;
        while !sim.is_fair() {
            for id in sim.issue() {
                let others = ids.iter().filter(|other| **other != urgent);
                let least = others.map(|other| sim.given[other]).min().unwrap();
                prop_assert!(id != urgent || sim.given[&urgent] <= least + sim.largest[&urgent], "{:?}", sim.given);
            }
            sim.arrive();
            rounds += 1;
            prop_assert!(rounds < 10_000, "they never meet: {:?}", sim.given);
        }
        for _ in 0..100 {
            sim.issue();
            sim.assert_fair();
            sim.arrive();
        }
    }
}
