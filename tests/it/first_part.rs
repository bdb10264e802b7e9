//! How a stream begins: in small parts where somebody waits for its first byte, and without a request too many where
//! nobody does.

use std::sync::{Arc, Mutex};

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use standpipe::buffer::PartBuf;
use standpipe::checksum::{ChecksumAlgorithm, ChecksumPolicy};
use standpipe::client::{Depth, GetMeta, ListEntry, MemoryClient, ObjectClient};
use standpipe::error::Result;
use standpipe::object::{ByteRange, ObjectId, ObjectMeta, ObjectUri};
use standpipe::prefetch::{PrefetchConfig, Prefetcher};

const LEAD: u64 = 4 << 10;
const PART: u64 = 8 << 20;

/// Objects in memory, and what was asked of them: `GET key start-end` and `HEAD key`.
#[derive(Debug, Default)]
struct Recorder {
    inner: MemoryClient,
    asked: Mutex<Vec<String>>,
}

impl Recorder {
    fn note(&self, what: String) {
        self.asked.lock().unwrap().push(what);
    }
}

impl ObjectClient for Recorder {
    fn head<'a>(&'a self, uri: &'a ObjectUri) -> BoxFuture<'a, Result<ObjectMeta>> {
        self.note(format!("HEAD {}", uri.key()));
        self.inner.head(uri)
    }

    fn get<'a>(
        &'a self,
        id: &'a ObjectId,
        range: ByteRange,
        into: &'a mut PartBuf,
    ) -> BoxFuture<'a, Result<GetMeta>> {
        let (key, start, end) = (id.uri.key(), range.start, range.end);
        self.note(format!("GET {key} {start}-{end}"));
        self.inner.get(id, range, into)
    }

    fn list(&self, prefix: &ObjectUri, depth: Depth) -> BoxStream<'static, Result<ListEntry>> {
        self.inner.list(prefix, depth)
    }
}

/// How the listing describes the objects, and who reads them.
#[derive(Debug, Clone, Copy)]
struct Case {
    algorithm: Option<ChecksumAlgorithm>,
    policy: ChecksumPolicy,
    each: bool,
}

const WAITING: Case = Case {
    algorithm: Some(ChecksumAlgorithm::Crc64Nvme),
    policy: ChecksumPolicy::WhenPossible,
    each: false,
};

/// Reads objects of these sizes, named by their index; returns what was asked for, sorted, and how many objects the
/// engine itself verified.
fn asked_for(sizes: &[u64], case: Case) -> (Vec<String>, u64) {
    let client = Arc::new(Recorder::default());
    let mut metas = Vec::new();
    let mut expected = Vec::new();
    for (index, size) in sizes.iter().enumerate() {
        let uri: ObjectUri = format!("memory://bucket/{index}").parse().unwrap();
        let bytes: Vec<u8> = (0..*size)
            .map(|at| (at % 251) as u8 ^ index as u8)
            .collect();
        client.inner.put(uri.clone(), bytes.clone());
        expected.extend(bytes);
        let head = client.inner.head(&uri);
        let mut meta = futures::executor::block_on(head).unwrap();
        meta.checksum_algorithm = case.algorithm;
        metas.push(Ok(meta));
    }
    let mut config = PrefetchConfig::default();
    config.part_bytes = PART;
    config.checksums = case.policy;
    assert_eq!(config.lead_bytes, LEAD);
    let engine = Prefetcher::new(client.clone(), config, Arc::default()).unwrap();
    let objects = stream::iter(metas).boxed();
    let reader = match case.each {
        true => engine.read_each(objects),
        false => engine.read_all(objects),
    };
    let (mut reader, mut found) = (reader.unwrap().blocking(), Vec::new());
    while let Some(chunk) = reader.next_chunk().unwrap() {
        found.extend_from_slice(&chunk.bytes);
    }
    assert!(found == expected, "{case:?}");
    let mut asked = std::mem::take(&mut *client.asked.lock().unwrap());
    asked.sort();
    (asked, engine.metrics().checksums_verified.get())
}

/// S3 takes 2 ms for 100 KB beside its latency; a reader that waits gets the first 4 KiB of them without the rest, and
/// the object is verified all the same. What comes behind is fetched whole, in one request each.
#[test]
fn a_small_object_that_comes_first_is_begun_with_a_small_part() {
    let (asked, verified) = asked_for(&[100_000, 100_000], WAITING);
    assert_eq!(
        asked,
        [
            "GET 0 0-4096",
            "GET 0 4096-100000",
            "GET 1 0-100000",
            "HEAD 0"
        ]
    );
    assert_eq!(verified, 1);
    let (asked, _) = asked_for(&[LEAD, 100_000], WAITING);
    assert_eq!(asked, ["GET 0 0-4096", "GET 1 0-100000"]);
}

/// Many prefixes hold an empty object that stands for a directory, and it is listed first.
#[test]
fn empty_objects_before_the_first_byte_change_nothing() {
    let (asked, _) = asked_for(&[0, 0, 3 << 20, 3 << 20], WAITING);
    assert_eq!(
        asked,
        [
            "GET 2 0-4096",
            "GET 2 1048576-2097152",
            "GET 2 2097152-3145728",
            "GET 2 4096-1048576",
            "GET 3 0-3145728",
            "HEAD 2",
        ]
    );
}

/// No listing told its checksum: only the answer for the whole object may, and that is worth more than a millisecond.
#[test]
fn a_small_object_of_unknown_checksum_is_fetched_whole() {
    let algorithm = None;
    let unknown = Case {
        algorithm,
        ..WAITING
    };
    assert_eq!(asked_for(&[100_000], unknown).0, ["GET 0 0-100000"]);
    let policy = ChecksumPolicy::Off;
    let unwanted = Case { policy, ..unknown };
    let (asked, _) = asked_for(&[100_000], unwanted);
    assert_eq!(asked, ["GET 0 0-4096", "GET 0 4096-100000"]);
}

/// Of an object that no listing described, all that is behind the first part waits for that part's answer: most small
/// ones fit into it.
#[test]
fn a_small_object_that_nobody_described_is_one_request() {
    for (size, asked) in [
        (60_000, vec!["GET 0 0-65536"]),
        (100_000, vec!["GET 0 0-65536", "GET 0 65536-100000"]),
    ] {
        let client = Arc::new(Recorder::default());
        let uri: ObjectUri = "memory://bucket/0".parse().unwrap();
        client.inner.put(uri.clone(), vec![7; size]);
        let engine =
            Prefetcher::new(client.clone(), PrefetchConfig::default(), Arc::default()).unwrap();
        let mut reader = engine.read(ObjectId::unpinned(uri)).unwrap().blocking();
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut reader, &mut bytes).unwrap();
        assert!(bytes == vec![7; size]);
        let mut found = std::mem::take(&mut *client.asked.lock().unwrap());
        found.retain(|what| what.starts_with("GET"));
        assert_eq!(found, asked);
    }
}

/// Files on disk gain nothing from an early first byte.
#[test]
fn where_nobody_waits_a_small_object_is_one_request() {
    let each = Case {
        each: true,
        ..WAITING
    };
    assert_eq!(asked_for(&[100_000], each).0, ["GET 0 0-100000"]);
    let (asked, _) = asked_for(&[3 << 20], each);
    assert_eq!(
        asked[0], "GET 0 0-4096",
        "a large one begins small all the same"
    );
}
