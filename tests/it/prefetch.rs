//! The engine's invariants (ARCHITECTURE.md) as properties, in virtual time over simulated clients.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt};
use proptest::prelude::*;
use standpipe::buffer::PartBuf;
use standpipe::checksum::Checksum;
use standpipe::client::{
    Behaviour, Chaos, Depth, FaultClient, FaultKind, GetMeta, ListEntry, MemoryClient,
    ObjectClient, RetryClient, RetryConfig, Schedule, Unreadable,
};
use standpipe::error::{Error, Result};
use standpipe::object::{ByteRange, ObjectId, ObjectMeta, ObjectUri};
use standpipe::prefetch::{Chunk, ObjectReader, PrefetchConfig, Prefetcher};
use tokio::io::AsyncReadExt;
use tokio::runtime::{Builder, Handle};
use tokio::time::{Instant, sleep, timeout};

/// Longer than any schedule of finite faults lasts, in virtual time: past it, the stream hangs.
const FOREVER: Duration = Duration::from_secs(24 * 3600);
const KIB: u64 = 1 << 10;

/// Bytes that differ between objects and between offsets.
fn content(object: usize, len: usize) -> Vec<u8> {
    (0..len)
        .map(|at| (at.wrapping_mul(31) ^ (at >> 8) ^ object.wrapping_mul(97)) as u8)
        .collect()
}

fn uri(object: usize) -> ObjectUri {
    format!("memory://bucket/{object:04}").parse().unwrap()
}

fn seeded(sizes: &[usize]) -> MemoryClient {
    let client = MemoryClient::default();
    for (object, size) in sizes.iter().enumerate() {
        client.put(uri(object), content(object, *size));
    }
    client
}

fn whole(sizes: &[usize]) -> Vec<u8> {
    let objects = sizes.iter().enumerate();
    objects
        .flat_map(|(object, size)| content(object, *size))
        .collect()
}

fn listing(client: &dyn ObjectClient) -> BoxStream<'static, Result<ObjectMeta>> {
    let entries = client.list(&"memory://bucket/".parse().unwrap(), Depth::All);
    let objects = entries.map(|entry| match entry? {
        ListEntry::Object(meta) => Ok(meta),
        ListEntry::Prefix(_) => unreachable!("a deep listing has no prefixes"),
    });
    objects.boxed()
}

/// A small engine: parts of 64 to 256 KiB, so that a few hundred kilobytes make many of them.
#[derive(Debug, Clone)]
struct Knobs {
    part_kib: u64,
    parts_of_memory: u64,
    concurrency: usize,
    window_kib: u64,
    lead_kib: u64,
}

impl Knobs {
    fn config(&self, streams: u64) -> PrefetchConfig {
        let mut config = PrefetchConfig::default();
        config.part_bytes = self.part_kib * KIB;
        // A buffer is a power of two here; every stream needs one.
        config.memory_bytes = 256 * KIB * (streams + self.parts_of_memory);
        config.concurrency = self.concurrency;
        config.initial_window_bytes = self.window_kib * KIB;
        config.lead_bytes = self.lead_kib * KIB;
        config
    }
}

fn knobs() -> impl Strategy<Value = Knobs> {
    (64..=256u64, 0..6u64, 1..8usize, 0..2000u64, 1..64u64).prop_map(
        |(part_kib, parts_of_memory, concurrency, window_kib, lead_kib)| Knobs {
            part_kib,
            parts_of_memory,
            concurrency,
            window_kib,
            lead_kib,
        },
    )
}

fn sizes() -> impl Strategy<Value = Vec<usize>> {
    let size = prop_oneof![
        Just(0),
        1..100usize,
        1000..300_000usize,
        1_000_000..1_600_000usize
    ];
    proptest::collection::vec(size, 1..5)
}

/// Faults that heal: a finite number of them, each one that a retry gets over.
fn healing() -> impl Strategy<Value = Schedule> {
    (any::<u64>(), 0.0..0.6f64, 0..300u64, 0..2000u64).prop_map(
        |(seed, share, most_kib, slowest_ms)| {
            Schedule::chaos(Chaos {
                seed,
                share,
                heals_after: 200,
                most_after: most_kib * KIB,
                slowest_first_byte: Duration::from_millis(slowest_ms),
                ..Chaos::default()
            })
        },
    )
}

fn engine(client: Arc<dyn ObjectClient>, config: PrefetchConfig) -> Prefetcher {
    Prefetcher::on(Handle::current(), client, config, Arc::default()).unwrap()
}

fn retrying(inner: Arc<dyn ObjectClient>) -> Arc<dyn ObjectClient> {
    // Patient: the schedules fail up to six requests in ten, and what is tested is the engine.
    let config = RetryConfig {
        max_attempts: 200,
        deadline: FOREVER,
        ..RetryConfig::default()
    };
    Arc::new(RetryClient::new(inner, config, Arc::default()))
}

/// Runs on a clock of its own that jumps to the next timer whenever nothing else can run.
fn in_virtual_time<T>(future: impl Future<Output = T>) -> T {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let begun = Instant::now();
        let output = timeout(FOREVER, future).await.expect("the stream ends");
        // The time limit polls once more when it is over: a lost wake would be healed by that.
        assert!(begun.elapsed() < FOREVER, "nothing woke the consumer");
        output
    })
}

async fn read_to_end(reader: &mut ObjectReader) -> (Vec<u8>, Result<()>) {
    let mut bytes = Vec::new();
    loop {
        match reader.next_chunk().await {
            Ok(Some(chunk)) => bytes.extend_from_slice(&chunk.bytes),
            Ok(None) => return (bytes, Ok(())),
            Err(error) => return (bytes, Err(error)),
        }
    }
}

/// Lets aborted tasks run to their end.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[test]
fn objects_come_back_to_back_and_chunks_say_what_they_are() {
    let sizes = [3_000_000, 0, 10, 500_000];
    let client = seeded(&sizes);
    let objects = listing(&client);
    let mut config = PrefetchConfig::default();
    config.part_bytes = 1 << 20;
    config.memory_bytes = 8 << 20;
    let engine = Prefetcher::new(Arc::new(client), config, Arc::default()).unwrap();
    let mut reader = engine.read_all(objects).unwrap().blocking();
    let (mut ends, mut bytes) = (Vec::new(), Vec::new());
    while let Some(Chunk {
        object,
        offset,
        bytes: piece,
        ends_object,
    }) = reader.next_chunk().unwrap()
    {
        bytes.extend_from_slice(&piece);
        if ends_object {
            assert_eq!(Some(offset + piece.len() as u64), object.size_bytes);
            ends.push(object.uri.clone());
        }
    }
    assert_eq!(ends, (0..4).map(uri).collect::<Vec<_>>());
    assert!(bytes == whole(&sizes));
    let snapshot = engine.snapshot();
    assert_eq!((snapshot.reserved_bytes, snapshot.lent_bytes), (0, 0));
    assert_eq!(
        (snapshot.checksums_verified, snapshot.checksums_unverified),
        (1, 0)
    );
    assert_eq!(snapshot.bytes_delivered, bytes.len() as u64);
}

#[test]
fn the_readers_agree() {
    let sizes = [700_000, 0, 300_000];
    let client = seeded(&sizes);
    let mut config = PrefetchConfig::default();
    config.part_bytes = 64 << 10;
    config.memory_bytes = 1 << 20;
    let engine = Prefetcher::new(Arc::new(client.clone()), config, Arc::default()).unwrap();
    let open = || engine.read_all(listing(&client)).unwrap();
    let mut blocking = Vec::new();
    std::io::Read::read_to_end(&mut open().blocking(), &mut blocking).unwrap();
    assert!(blocking == whole(&sizes));
    standpipe::runtime::handle().block_on(async {
        let mut read = Vec::new();
        open().read_to_end(&mut read).await.unwrap();
        assert!(read == blocking);
        let pieces: Vec<_> = open().collect().await;
        assert!(
            pieces
                .into_iter()
                .map(Result::unwrap)
                .collect::<Vec<_>>()
                .concat()
                == blocking
        );
    });
}

/// A consumer that keeps everything it was given still gets the rest, and what that cost is counted.
#[test]
fn a_hoarding_consumer_is_served_beyond_the_budget() {
    let sizes = [3_000_000];
    let client = seeded(&sizes);
    in_virtual_time(async {
        let knobs = Knobs {
            part_kib: 256,
            parts_of_memory: 1,
            concurrency: 4,
            window_kib: 4096,
            lead_kib: 64,
        };
        let engine = engine(Arc::new(client.clone()), knobs.config(1));
        let pieces: Vec<_> = engine.read_all(listing(&client)).unwrap().collect().await;
        assert!(engine.budget().reserved() <= engine.budget().limit());
        let bytes: Vec<u8> = pieces
            .iter()
            .flat_map(|piece| piece.clone().unwrap())
            .collect();
        assert!(bytes == whole(&sizes));
        assert!(engine.snapshot().overdraft_bytes > 2_000_000);
        drop(pieces);
        assert_eq!(engine.budget().reserved(), 0);
    });
}

#[test]
fn one_stream_more_than_memory_can_serve_is_refused() {
    let client = seeded(&[3_000_000]);
    in_virtual_time(async {
        let knobs = Knobs {
            part_kib: 256,
            parts_of_memory: 0,
            concurrency: 4,
            window_kib: 0,
            lead_kib: 64,
        };
        let engine = engine(Arc::new(client.clone()), knobs.config(2));
        let open = || engine.read_all(listing(&client));
        let readers = (open().unwrap(), open().unwrap());
        assert!(matches!(open(), Err(Error::Config { .. })));
        drop(readers);
        open().unwrap();
    });
}

/// An object of which only the address is known is read without a HEAD, pinned by the first answer.
#[test]
fn an_unknown_object_is_pinned_by_its_first_answer() {
    for size in [0, 1, 65_536, 65_537, 2_000_000] {
        let client = seeded(&[size]);
        in_virtual_time(async {
            let knobs = Knobs {
                part_kib: 256,
                parts_of_memory: 4,
                concurrency: 4,
                window_kib: 4096,
                lead_kib: 64,
            };
            let engine = engine(Arc::new(client), knobs.config(1));
            let mut reader = engine.read(ObjectId::unpinned(uri(0))).unwrap();
            let (bytes, end) = read_to_end(&mut reader).await;
            end.unwrap();
            assert!(bytes == content(0, size), "{size}");
        });
    }
}

/// A slow channel holds its share of the memory and no more: the other one reads on as if it were alone.
#[test]
fn a_stream_that_nobody_reads_does_not_stop_another() {
    let client = seeded(&[8_000_000]);
    in_virtual_time(async {
        let knobs = Knobs {
            part_kib: 256,
            parts_of_memory: 6,
            concurrency: 8,
            window_kib: 1 << 20,
            lead_kib: 64,
        };
        let engine = engine(Arc::new(client.clone()), knobs.config(2));
        let idle = engine.read_all(listing(&client)).unwrap();
        settle().await;
        assert!(engine.budget().reserved() > 0);
        let mut busy = engine.read_all(listing(&client)).unwrap();
        let (bytes, end) = read_to_end(&mut busy).await;
        end.unwrap();
        assert_eq!(bytes.len(), 8_000_000);
        assert_eq!(engine.snapshot().overdraft_bytes, 0);
        drop(idle);
        settle().await;
        assert_eq!(engine.budget().reserved(), 0);
    });
}

/// Parts of 256 KiB and memory for eight of them.
const ROOMY: Knobs = Knobs {
    part_kib: 256,
    parts_of_memory: 7,
    concurrency: 8,
    window_kib: 1 << 20,
    lead_kib: 64,
};

/// Invariants 4 and 5: whatever becomes of a listing while the consumer waits for it, the consumer hears of it, and
/// only a whole listing is an end.
#[test]
fn a_listing_that_breaks_off_or_dies_is_no_end() {
    let sizes = [10, 300_000];
    let memory = seeded(&sizes);
    let end_of = |last: fn() -> Option<Result<ObjectMeta>>| {
        in_virtual_time(async {
            let engine = engine(Arc::new(memory.clone()), ROOMY.config(1));
            let late = stream::once(async move {
                sleep(Duration::from_secs(1)).await;
                stream::iter(last())
            });
            let objects = listing(&memory).chain(late.flatten()).boxed();
            let mut reader = engine.read_all(objects).unwrap();
            let (bytes, end) = read_to_end(&mut reader).await;
            assert!(bytes == whole(&sizes));
            end
        })
    };
    end_of(|| None).unwrap();
    let denied = end_of(|| {
        Some(Err(Error::PermissionDenied {
            uri: "memory://bucket/".into(),
            offset: None,
            answer: Box::default(),
        }))
    });
    assert!(matches!(denied, Err(Error::PermissionDenied { .. })));
    let dead = end_of(|| panic!("a listing that panics"));
    assert!(matches!(dead, Err(Error::Internal { .. })), "{dead:?}");
}

/// Breaks the promises of an [`ObjectClient`].
#[derive(Debug)]
struct Broken {
    inner: MemoryClient,
    how: How,
}

#[derive(Debug, Clone, Copy)]
enum How {
    /// Says that all is well with one byte too few.
    Short,
    Panics,
}

impl ObjectClient for Broken {
    fn head<'a>(&'a self, uri: &'a ObjectUri) -> BoxFuture<'a, Result<ObjectMeta>> {
        self.inner.head(uri)
    }

    fn get<'a>(
        &'a self,
        id: &'a ObjectId,
        range: ByteRange,
        into: &'a mut PartBuf,
    ) -> BoxFuture<'a, Result<GetMeta>> {
        async move {
            let How::Short = self.how else {
                panic!("a client that panics");
            };
            let mut aside = PartBuf::heap(range.len() as usize - 1);
            let short = ByteRange::new(range.start, range.end - 1);
            let meta = self.inner.get(id, short, &mut aside).await?;
            into.put(aside.filled());
            Ok(meta)
        }
        .boxed()
    }

    fn list(&self, prefix: &ObjectUri, depth: Depth) -> BoxStream<'static, Result<ListEntry>> {
        self.inner.list(prefix, depth)
    }
}

/// Invariants 4, 5 and 7: a client that panics or stops early ends the stream with an error, and nothing stays behind.
#[test]
fn a_broken_client_is_an_error_and_no_end() {
    let memory = seeded(&[700_000]);
    for how in [How::Short, How::Panics] {
        in_virtual_time(async {
            let client = Broken {
                inner: memory.clone(),
                how,
            };
            let engine = engine(Arc::new(client), ROOMY.config(1));
            let mut reader = engine.read_all(listing(&memory)).unwrap();
            let (bytes, end) = read_to_end(&mut reader).await;
            match how {
                How::Short => assert!(matches!(end, Err(Error::Corrupt { .. })), "{end:?}"),
                How::Panics => assert!(matches!(end, Err(Error::Internal { .. })), "{end:?}"),
            }
            assert!(bytes.is_empty());
            settle().await;
            assert_eq!(engine.budget().reserved(), 0);
            assert_eq!(Handle::current().metrics().num_alive_tasks(), 0);
        });
    }
}

/// Bytes that are known to be bad are not among the good ones before the error.
#[test]
fn what_arrived_of_a_corrupt_part_is_not_delivered() {
    let memory = seeded(&[200_000]);
    in_virtual_time(async {
        let schedule = Schedule {
            rest: Behaviour::failing(1000, FaultKind::Corrupt),
            ..Schedule::default()
        };
        let faulty = FaultClient::new(Arc::new(memory.clone()), schedule);
        let engine = engine(Arc::new(faulty), ROOMY.config(1));
        let mut reader = engine.read_all(listing(&memory)).unwrap();
        let (bytes, end) = read_to_end(&mut reader).await;
        assert!(matches!(end, Err(Error::Corrupt { .. })), "{end:?}");
        assert!(bytes.is_empty());
    });
}

/// Whoever has the beginning of an object is given the rest, and the whole is judged.
#[test]
fn reading_on_verifies_the_whole_object() {
    let size = 1_000_000;
    let memory = seeded(&[size]);
    let bytes = content(0, size);
    in_virtual_time(async {
        let meta = memory.head(&uri(0)).await.unwrap();
        let algorithm = meta.checksum_algorithm.unwrap();
        for start in [0, 1, 70_000, 262_144, 300_001, size - 1] {
            let engine = engine(Arc::new(memory.clone()), ROOMY.config(1));
            let before = Checksum::of(algorithm, &bytes[..start]);
            let read = |before| engine.read_from(meta.clone(), start as u64, before);
            let (rest, end) = read_to_end(&mut read(Some(before)).unwrap()).await;
            assert!(end.is_ok() && rest == bytes[start..], "{start}: {end:?}");
            assert_eq!(engine.snapshot().checksums_verified, 1, "{start}");
            if start == 0 {
                continue;
            }
            let (_, end) = read_to_end(&mut read(None).unwrap()).await;
            assert!(end.is_ok(), "{start}: {end:?}");
            assert_eq!(engine.snapshot().checksums_unverified, 1, "{start}");
            let wrong = Checksum::of(algorithm, &bytes[1..=start]);
            let (rest, end) = read_to_end(&mut read(Some(wrong)).unwrap()).await;
            assert!(
                matches!(end, Err(Error::Corrupt { .. })),
                "{start}: {end:?}"
            );
            assert!(rest.len() < size - start, "its end was delivered");
        }
        let engine = engine(Arc::new(memory.clone()), ROOMY.config(1));
        for start in [size, size + 1] {
            let refused = engine.read_from(meta.clone(), start as u64, None);
            assert!(matches!(refused, Err(Error::Config { .. })));
        }
    });
}

/// Invariant 7: the requests behind a failure are stopped when it happens, not when its consumer comes to it.
#[test]
fn a_failure_stops_what_comes_after_it_at_once() {
    let memory = seeded(&[2_000_000]);
    in_virtual_time(async {
        let schedule = Schedule {
            rest: Behaviour::failing(0, FaultKind::Silence),
            // Late, so that the others are under way.
            ..Schedule::script(vec![Behaviour {
                first_byte: Duration::from_millis(1),
                ..Behaviour::failing(0, FaultKind::NotFound)
            }])
        };
        let id = memory.head(&uri(0)).await.unwrap().id;
        let faulty = Arc::new(FaultClient::new(Arc::new(memory.clone()), schedule));
        let engine = engine(faulty.clone(), ROOMY.config(1));
        let mut reader = engine.read(id).unwrap();
        sleep(Duration::from_millis(2)).await;
        settle().await;
        assert!(faulty.requests() > 1, "there was something to stop");
        assert_eq!(engine.budget().reserved(), 0);
        assert_eq!(Handle::current().metrics().num_alive_tasks(), 0);
        let end = reader.next_chunk().await;
        assert!(matches!(end, Err(Error::NotFound { .. })), "{end:?}");
    });
}

/// Invariant 7: a listing that waits for its server ends with its reader.
#[test]
fn a_dropped_reader_stops_its_listing() {
    let memory = seeded(&[10]);
    in_virtual_time(async {
        let engine = engine(Arc::new(memory.clone()), ROOMY.config(1));
        let objects = listing(&memory).chain(stream::pending()).boxed();
        let mut reader = engine.read_all(objects).unwrap();
        reader.next_chunk().await.unwrap().unwrap();
        drop(reader);
        settle().await;
        assert_eq!(Handle::current().metrics().num_alive_tasks(), 0);
    });
}

#[test]
fn no_more_requests_than_the_concurrency_are_under_way() {
    let memory = seeded(&[2_000_000]);
    in_virtual_time(async {
        let schedule = Schedule {
            rest: Behaviour::failing(0, FaultKind::Silence),
            ..Schedule::default()
        };
        let id = memory.head(&uri(0)).await.unwrap().id;
        let faulty = Arc::new(FaultClient::new(Arc::new(memory.clone()), schedule));
        let knobs = Knobs {
            concurrency: 3,
            ..ROOMY
        };
        let engine = engine(faulty.clone(), knobs.config(1));
        let reader = engine.read(id).unwrap();
        settle().await;
        assert_eq!(faulty.requests(), 3);
        drop(reader);
    });
}

/// Invariant 4, for whoever reads without chunks: an error is no end of the file.
#[test]
fn an_error_is_an_error_to_every_kind_of_reader() {
    let memory = seeded(&[10, 10]);
    let schedule = Schedule {
        unreadable: vec![Unreadable {
            key: Some(uri(1).key().to_owned()),
            offset: 5,
            kind: FaultKind::NotFound,
        }],
        ..Schedule::default()
    };
    let faulty: Arc<dyn ObjectClient> =
        Arc::new(FaultClient::new(Arc::new(memory.clone()), schedule));
    in_virtual_time(async {
        let engine = engine(faulty.clone(), ROOMY.config(1));
        let open = || engine.read_all(listing(&memory)).unwrap();
        let mut bytes = Vec::new();
        let end = open().read_to_end(&mut bytes).await;
        assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::NotFound);
        assert!(bytes == whole(&[10, 10])[..15]);
        let mut pieces: Vec<_> = open().collect().await;
        let end = pieces.pop().unwrap();
        assert!(matches!(end, Err(Error::NotFound { .. })), "{end:?}");
        assert_eq!(pieces.len(), 2);
    });
    let engine = Prefetcher::new(faulty, ROOMY.config(1), Arc::default()).unwrap();
    let mut reader = engine.read_all(listing(&memory)).unwrap().blocking();
    let mut bytes = Vec::new();
    let end = std::io::Read::read_to_end(&mut reader, &mut bytes);
    assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::NotFound);
    assert!(bytes == whole(&[10, 10])[..15]);
}

/// A reader that copies gives a part's memory back with its last byte, not when it asks for the next one.
#[test]
fn a_copying_reader_gets_on_with_memory_for_one_part() {
    let memory = seeded(&[1_000_000]);
    in_virtual_time(async {
        let knobs = Knobs {
            parts_of_memory: 0,
            ..ROOMY
        };
        let engine = engine(Arc::new(memory.clone()), knobs.config(1));
        let mut bytes = Vec::new();
        let mut reader = engine.read_all(listing(&memory)).unwrap();
        reader.read_to_end(&mut bytes).await.unwrap();
        assert!(bytes == whole(&[1_000_000]));
        assert_eq!(engine.snapshot().overdraft_bytes, 0);
    });
}

/// Two consumers that always wait, one request at a time: the stream that nobody asks is read ahead all the same.
#[test]
fn read_ahead_is_never_starved_by_consumers_that_wait() {
    let memory = seeded(&[8_000_000]);
    in_virtual_time(async {
        let slow = Behaviour {
            first_byte: Duration::from_millis(10),
            ..Behaviour::default()
        };
        let schedule = Schedule {
            rest: slow,
            ..Schedule::default()
        };
        let id = memory.head(&uri(0)).await.unwrap().id;
        let faulty = FaultClient::new(Arc::new(memory.clone()), schedule);
        let knobs = Knobs {
            concurrency: 1,
            ..ROOMY
        };
        let engine = engine(Arc::new(faulty), knobs.config(3));
        let [mut one, mut two, mut idle] = [(); 3].map(|()| engine.read(id.clone()).unwrap());
        let twelve = async |reader: &mut ObjectReader| {
            for _ in 0..12 {
                reader.next_chunk().await.unwrap().unwrap();
            }
        };
        futures::join!(twelve(&mut one), twelve(&mut two));
        let next = idle.next_chunk().now_or_never();
        assert!(matches!(next, Some(Ok(Some(_)))), "{next:?}");
    });
}

/// Two consumers that always read, one of objects a quarter as large as the other's: while requests are what is
/// scarce, both get the same bytes, and so one gets four times the requests.
#[test]
fn streams_share_the_requests_by_bytes_whatever_the_size_of_their_objects() {
    const CONCURRENCY: usize = 20;
    let sizes = [64 << 10, 256 << 10];
    let memory = seeded(&sizes);
    in_virtual_time(async {
        let rest = Behaviour {
            first_byte: Duration::from_millis(100),
            ..Behaviour::default()
        };
        let schedule = Schedule {
            rest,
            ..Schedule::default()
        };
        let faulty = FaultClient::new(Arc::new(memory.clone()), schedule);
        let knobs = Knobs {
            parts_of_memory: 100,
            concurrency: CONCURRENCY,
            ..ROOMY
        };
        let engine = engine(Arc::new(faulty), knobs.config(2));
        let read = async |object: usize| {
            let meta = memory.head(&uri(object)).await.unwrap();
            let endless = stream::repeat_with(move || Ok(meta.clone())).boxed();
            let mut reader = engine.read_all(endless).unwrap();
            let mut bytes = 0;
            let reading = async {
                loop {
                    bytes += reader.next_chunk().await.unwrap().unwrap().bytes.len();
                }
            };
            assert!(timeout(Duration::from_secs(5), reading).await.is_err());
            bytes
        };
        let given = futures::join!(read(0), read(1));
        // Each consumer may have taken the last round's parts, or not yet, and the smaller parts are the later ones.
        let round = CONCURRENCY * sizes[1];
        assert!(given.0.abs_diff(given.1) <= round, "{given:?}");
        assert!(given.0.min(given.1) > 10 * round / 4, "{given:?}");
    });
}

/// A window of one part would take one latency for each of the 33 parts.
#[test]
fn a_window_grows_when_its_consumer_stalls() {
    let memory = seeded(&[8_000_000]);
    in_virtual_time(async {
        let slow = Behaviour {
            first_byte: Duration::from_secs(1),
            ..Behaviour::default()
        };
        let schedule = Schedule {
            rest: slow,
            ..Schedule::default()
        };
        let faulty = FaultClient::new(Arc::new(memory.clone()), schedule);
        let knobs = Knobs {
            window_kib: 0,
            ..ROOMY
        };
        let engine = engine(Arc::new(faulty), knobs.config(1));
        let begun = Instant::now();
        let mut reader = engine.read_all(listing(&memory)).unwrap();
        read_to_end(&mut reader).await.1.unwrap();
        assert!(
            begun.elapsed() < Duration::from_secs(15),
            "{:?}",
            begun.elapsed()
        );
    });
}

/// One consumer reads three streams by turns, and holds on to so many chunks.
fn three_streams(
    sizes: &[usize],
    knobs: &Knobs,
    schedule: Schedule,
    turns: &[usize],
    hold: usize,
    staggered: bool,
) {
    let memory = seeded(sizes);
    in_virtual_time(async {
        let faulty = FaultClient::new(Arc::new(memory.clone()), schedule);
        let engine = engine(retrying(Arc::new(faulty)), knobs.config(3));
        let mut readers = Vec::new();
        for first in 0..3 {
            // Each stream begins with another object, so that bytes of another stream are wrong bytes.
            let mut objects: Vec<_> = listing(&memory).collect().await;
            objects.rotate_left(first % sizes.len());
            // Staggered, the first stream has all the memory when the next one comes.
            let objects = stream::iter(objects).boxed();
            readers.push((engine.read_all(objects).unwrap(), Vec::new(), false));
            if staggered {
                settle().await;
            }
        }
        let mut held = VecDeque::new();
        let mut turns = turns.iter().cycle();
        while readers.iter().any(|(_, _, ended)| !ended) {
            let turn = turns.next().unwrap();
            let at = (0..3).map(|next| (turn + next) % 3);
            let at = at.into_iter().find(|at| !readers[*at].2).unwrap();
            let (reader, bytes, ended) = &mut readers[at];
            match reader.next_chunk().await.unwrap() {
                Some(chunk) => {
                    bytes.extend_from_slice(&chunk.bytes);
                    held.push_back(chunk);
                    if held.len() > hold {
                        held.pop_front();
                    }
                }
                None => *ended = true,
            }
            assert!(engine.budget().reserved() <= engine.budget().limit());
        }
        for (first, (_, bytes, _)) in readers.iter().enumerate() {
            let objects = (0..sizes.len()).map(|at| (at + first) % sizes.len());
            let expected: Vec<u8> = objects
                .flat_map(|object| content(object, sizes[object]))
                .collect();
            assert!(
                *bytes == expected,
                "{} bytes instead of {}",
                bytes.len(),
                expected.len()
            );
        }
        if hold == 0 {
            // Whoever holds nothing is owed all of the memory, however the streams share it.
            assert_eq!(engine.snapshot().overdraft_bytes, 0);
        }
        drop((held, readers));
        settle().await;
        let budget = engine.budget();
        assert_eq!((budget.reserved(), budget.lent()), (0, 0));
    });
}

/// A stream that was alone has fetched all that it has, with an empty object at its end: it counts in no share any
/// more, and its last slot holds no memory. The ones that come after it get theirs all the same.
#[test]
fn a_stream_that_has_fetched_all_gives_memory_back() {
    let knobs = Knobs {
        part_kib: 224,
        parts_of_memory: 3,
        concurrency: 7,
        window_kib: 1344,
        lead_kib: 1,
    };
    let sizes = [1_114_113, 0];
    three_streams(&sizes, &knobs, Schedule::default(), &[1, 0], 0, true);
}

/// The same without an empty object, for the one stream that still reads: all of the memory is its share, so that
/// nobody exceeds theirs, and it is taken all the same.
#[test]
fn the_only_stream_that_reads_takes_memory_from_one_that_has_fetched_all() {
    let memory = seeded(&[1_114_113]);
    in_virtual_time(async {
        let knobs = Knobs {
            part_kib: 224,
            parts_of_memory: 4,
            concurrency: 8,
            window_kib: 1 << 20,
            lead_kib: 1,
        };
        let engine = engine(Arc::new(memory.clone()), knobs.config(2));
        let mut full = engine.read_all(listing(&memory)).unwrap();
        settle().await;
        let held = engine.budget().reserved();
        assert!(held > engine.budget().limit() - 256 * KIB, "{held}");
        let mut late = engine.read_all(listing(&memory)).unwrap();
        for reader in [&mut late, &mut full] {
            let (bytes, end) = read_to_end(reader).await;
            end.unwrap();
            assert!(bytes == whole(&[1_114_113]));
        }
        assert_eq!(engine.snapshot().overdraft_bytes, 0);
    });
}

/// A part that failed for good is not fetched again because somebody needs memory: what was planned behind it is
/// forgotten, and a success would make the stream end early and in silence.
#[test]
fn a_failed_stream_stays_failed_when_its_memory_is_taken_back() {
    let memory = seeded(&[1_500_000]);
    in_virtual_time(async {
        // The third part fails, once; two are ready, and take so much that the others find too little. One request of
        // the three before it is the HEAD for the checksum.
        let mut script = vec![Behaviour::default(); 3];
        script.push(Behaviour::failing(0, FaultKind::PermissionDenied));
        let faulty = FaultClient::new(Arc::new(memory.clone()), Schedule::script(script));
        let knobs = Knobs {
            parts_of_memory: 0,
            concurrency: 1,
            lead_kib: 256,
            ..ROOMY
        };
        let engine = engine(Arc::new(faulty), knobs.config(3));
        let open = || engine.read_all(listing(&memory)).unwrap();
        let mut failed = open();
        settle().await;
        let mut others = [open(), open()];
        for other in &mut others {
            let (bytes, end) = read_to_end(other).await;
            end.unwrap();
            assert!(bytes == whole(&[1_500_000]));
        }
        assert!(engine.snapshot().bytes_wasted > 0, "memory was taken back");
        let (bytes, end) = read_to_end(&mut failed).await;
        assert!(
            matches!(end, Err(Error::PermissionDenied { .. })),
            "{end:?}"
        );
        assert!(bytes == whole(&[1_500_000])[..512 << 10]);
        assert_eq!(engine.snapshot().overdraft_bytes, 0);
        drop((failed, others));
        settle().await;
        assert_eq!(engine.budget().reserved(), 0);
    });
}

/// The head credit: what a consumer hoards is taken from the budget only as far as every other stream keeps the memory
/// for its next part. Without it the second stream, of which only an empty object is listed in time, would find all of
/// the budget lent out.
#[test]
fn a_hoarding_consumer_leaves_every_other_stream_its_next_part() {
    let sizes = [0, 8_000_000];
    let memory = seeded(&sizes);
    in_virtual_time(async {
        let engine = engine(Arc::new(memory.clone()), ROOMY.config(2));
        let late = listing(&memory).then(|meta| async {
            if meta.as_ref().is_ok_and(|meta| meta.size_bytes > 0) {
                sleep(Duration::from_secs(1)).await;
            }
            meta
        });
        let mut patient = engine.read_all(late.boxed()).unwrap();
        settle().await;
        let hoarded: Vec<_> = engine.read_all(listing(&memory)).unwrap().collect().await;
        let budget = engine.budget();
        assert!(budget.lent() > budget.limit() / 2, "{budget:?}");
        assert!(budget.lent() <= budget.limit() - 256 * KIB, "{budget:?}");
        let before = engine.snapshot().overdraft_bytes;
        assert!(before > 0, "more was hoarded than there is memory");
        let (bytes, end) = read_to_end(&mut patient).await;
        end.unwrap();
        assert!(bytes == whole(&sizes));
        assert_eq!(engine.snapshot().overdraft_bytes, before);
        drop((hoarded, patient));
        settle().await;
        assert_eq!(engine.budget().reserved(), 0);
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Invariants 1, 2 and 5: right bytes in order, memory within the budget, and an end, whatever the sizes, knobs,
    /// faults, number of streams, the order in which one consumer reads them and how many chunks it holds on to.
    #[test]
    fn every_stream_delivers_its_bytes_and_ends(sizes in sizes(), knobs in knobs(), schedule in healing(), turns in proptest::collection::vec(0..3usize, 1..40), hold in 0..4usize, staggered: bool) {
        three_streams(&sizes, &knobs, schedule, &turns, hold, staggered);
    }

    /// Errors come at their offset, after exactly the good bytes before them, and again at every further call.
    #[test]
    fn an_error_comes_after_all_the_good_bytes_before_it(sizes in sizes(), knobs in knobs(), object: proptest::sample::Index, at: proptest::sample::Index) {
        let object = object.index(sizes.len());
        prop_assume!(sizes[object] > 0);
        let at = at.index(sizes[object]);
        let memory = seeded(&sizes);
        let schedule = Schedule {
            unreadable: vec![Unreadable { key: Some(uri(object).key().to_owned()), offset: at as u64, kind: FaultKind::PermissionDenied }],
            ..Schedule::default()
        };
        in_virtual_time(async {
            let faulty = FaultClient::new(Arc::new(memory.clone()), schedule);
            let engine = engine(Arc::new(faulty), knobs.config(1));
            let mut reader = engine.read_all(listing(&memory)).unwrap();
            let mut bytes = Vec::new();
            let end = loop {
                assert!(!reader.is_at_end(), "the error is still to come");
                match reader.next_chunk().await {
                    Ok(Some(chunk)) => bytes.extend_from_slice(&chunk.bytes),
                    Ok(None) => break Ok(()),
                    Err(error) => break Err(error),
                }
            };
            assert!(!reader.is_at_end());
            let good = sizes[..object].iter().sum::<usize>() + at;
            assert!(matches!(end, Err(Error::PermissionDenied { .. })));
            assert_eq!(bytes.len(), good);
            assert!(bytes == whole(&sizes)[..good]);
            assert!(matches!(reader.next_chunk().await, Err(Error::PermissionDenied { .. })));
            settle().await;
            assert_eq!(engine.budget().reserved(), 0, "a failed stream holds nothing, even before it is dropped");
        });
    }

    /// Invariant 3: an object that is replaced under the reader gives the old bytes or `Changed`, never a mixture.
    #[test]
    fn a_replaced_object_is_never_mixed_with_its_old_version(size in 1..1_600_000usize, knobs in knobs(), after in 0..8usize, known: bool) {
        let memory = seeded(&[size]);
        in_virtual_time(async {
            let engine = engine(Arc::new(memory.clone()), knobs.config(1));
            let mut reader = if known { engine.read_all(listing(&memory)) } else { engine.read(ObjectId::unpinned(uri(0))) }.unwrap();
            let mut bytes = Vec::new();
            let mut chunks = 0;
            let end = loop {
                if chunks == after { memory.put(uri(0), content(1, size)); }
                chunks += 1;
                match reader.next_chunk().await {
                    Ok(Some(chunk)) => bytes.extend_from_slice(&chunk.bytes),
                    Ok(None) => break Ok(()),
                    Err(error) => break Err(error),
                }
            };
            let (old, new) = (content(0, size), content(1, size));
            match end {
                Ok(()) => assert!(bytes == old || (bytes == new && after == 0 && !known)),
                Err(Error::Changed { .. }) => assert!(old.starts_with(&bytes)),
                Err(error) => panic!("{error}"),
            }
        });
    }

    /// Invariant 7: a reader dropped at any moment gives back every buffer, and its tasks end.
    #[test]
    fn a_dropped_reader_leaves_nothing(sizes in sizes(), knobs in knobs(), schedule in healing(), chunks in 0..6usize, millis in 0..500u64) {
        let memory = seeded(&sizes);
        in_virtual_time(async {
            let faulty = FaultClient::new(Arc::new(memory.clone()), schedule);
            let engine = engine(retrying(Arc::new(faulty)), knobs.config(1));
            let mut reader = engine.read_all(listing(&memory)).unwrap();
            for _ in 0..chunks {
                reader.next_chunk().await.unwrap();
            }
            // Cancelled in the middle of a wait, too.
            let _ = timeout(Duration::from_millis(millis), reader.next_chunk()).await;
            drop(reader);
            settle().await;
            assert_eq!((engine.budget().reserved(), engine.budget().lent()), (0, 0));
            assert_eq!(Handle::current().metrics().num_alive_tasks(), 0);
        });
    }

    /// A bit that flips on the way to the memory of a multi-part object is seen before the object's end.
    #[test]
    fn a_flipped_bit_never_reaches_the_end_unseen(size in 1_048_577..1_600_000usize, request in 1..4u64, byte in 0..1000u64, knobs in knobs()) {
        let memory = seeded(&[size]);
        let mut script = vec![Behaviour::default(); request as usize];
        script.push(Behaviour { flipped: Some(byte), ..Behaviour::default() });
        in_virtual_time(async {
            let faulty = FaultClient::new(Arc::new(memory.clone()), Schedule::script(script));
            let engine = engine(Arc::new(faulty), knobs.config(1));
            let mut reader = engine.read_all(listing(&memory)).unwrap();
            let (bytes, end) = read_to_end(&mut reader).await;
            let intact = content(0, size);
            if bytes == intact { end.unwrap(); } else {
                assert!(matches!(end, Err(Error::Corrupt { .. })), "{end:?}");
                assert!(bytes.len() < size);
                assert_eq!(engine.snapshot().checksums_bad, 1);
            }
        });
    }
}
