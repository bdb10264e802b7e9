//! The block cache as its users see it: a client that reads through it, many processes over one, disks that fail.

use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fake_s3::{Effect, FakeS3, Latency, Rule, Shape};
use futures::future::{BoxFuture, join_all};
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use standpipe::buffer::PartBuf;
use standpipe::cache::{BlockCache, CacheConfig, CachedClient, Published};
use standpipe::client::{
    Behaviour, Depth, FaultClient, GetMeta, ListEntry, MemoryClient, ObjectClient, S3Client,
    S3Config, Schedule, resilient,
};
use standpipe::error::{Error, Result};
use standpipe::metrics::Metrics;
use standpipe::object::{ByteRange, ObjectId, ObjectMeta, ObjectUri};
use standpipe::prefetch::{PrefetchConfig, Prefetcher};
use tempfile::TempDir;

use crate::conformance::{conforms, content};
use crate::world::over_memory;

pub(crate) const BLOCK: u64 = 16 << 10;
/// Many blocks, and a bit.
pub(crate) const SIZE: u64 = 20 * BLOCK + 777;
const PATIENCE: Duration = Duration::from_secs(20);

fn config(dir: &Path) -> CacheConfig {
    let mut config = CacheConfig::new(dir);
    config.block_bytes = BLOCK;
    config.keep_free_share = 0.0;
    config
}

/// Counts what is asked of the store.
#[derive(Debug)]
struct Counting {
    inner: Arc<dyn ObjectClient>,
    gets: AtomicU64,
    bytes: AtomicU64,
}

impl ObjectClient for Counting {
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
            self.gets.fetch_add(1, Ordering::SeqCst);
            let before = into.filled().len();
            let answer = self.inner.get(id, range, into).await;
            let got = (into.filled().len() - before) as u64;
            self.bytes.fetch_add(got, Ordering::SeqCst);
            answer
        }
        .boxed()
    }

    fn list(&self, prefix: &ObjectUri, depth: Depth) -> BoxStream<'static, Result<ListEntry>> {
        self.inner.list(prefix, depth)
    }
}

/// Objects in memory, a store that counts, and a cache in a directory.
pub(crate) struct Rig {
    memory: MemoryClient,
    store: Arc<Counting>,
    pub(crate) client: CachedClient,
    pub(crate) metrics: Arc<Metrics>,
    dir: PathBuf,
    _temp: Option<TempDir>,
}

impl Rig {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let mut rig = Self::at(temp.path(), Duration::ZERO);
        rig._temp = Some(temp);
        rig
    }

    pub(crate) fn at(dir: &Path, first_byte: Duration) -> Self {
        Self::with(config(dir), MemoryClient::default(), first_byte)
    }

    fn with(config: CacheConfig, memory: MemoryClient, first_byte: Duration) -> Self {
        let slow = Schedule {
            rest: Behaviour {
                first_byte,
                ..Behaviour::default()
            },
            ..Schedule::default()
        };
        let store = Arc::new(Counting {
            inner: Arc::new(FaultClient::new(Arc::new(memory.clone()), slow)),
            gets: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        });
        let metrics = Arc::new(Metrics::default());
        let dir = config.dir.clone();
        let cache = BlockCache::open(config, metrics.clone()).unwrap();
        Self {
            memory,
            client: CachedClient::new(store.clone(), cache),
            store,
            metrics,
            dir,
            _temp: None,
        }
    }

    /// Another process, as far as one test can be two: nothing is shared but the directory and the store's objects.
    fn sibling(&self) -> Self {
        Self::with(config(&self.dir), self.memory.clone(), Duration::ZERO)
    }

    pub(crate) async fn put(&self, n: u8) -> ObjectId {
        let uri: ObjectUri = format!("memory://b/k{n}").parse().unwrap();
        self.memory.put(uri.clone(), content(SIZE, n));
        self.memory.head(&uri).await.unwrap().id
    }

    /// Reads and compares.
    pub(crate) async fn reads(&self, id: &ObjectId, n: u8, start: u64, end: u64) {
        let mut part = PartBuf::heap((end - start) as usize);
        let range = ByteRange::new(start, end);
        let meta = self.client.get(id, range, &mut part).await.unwrap();
        assert!(
            part.filled() == &content(SIZE, n)[start as usize..end as usize],
            "{range} of {n}"
        );
        assert_eq!((meta.size_bytes, &meta.etag), (SIZE, &id.etag));
    }

    pub(crate) fn flush(&self) {
        assert!(self.client.cache().flush(PATIENCE));
    }

    fn gets(&self) -> u64 {
        self.store.gets.load(Ordering::SeqCst)
    }

    pub(crate) fn fetched_bytes(&self) -> u64 {
        self.store.bytes.load(Ordering::SeqCst)
    }
}

#[tokio::test]
async fn the_cache_conforms_cold_and_warm() {
    let dir = tempfile::tempdir().unwrap();
    let memory = MemoryClient::default();
    for _ in 0..2 {
        let metrics = Arc::new(Metrics::default());
        let cache = BlockCache::open(config(dir.path()), metrics.clone()).unwrap();
        let client = Arc::new(CachedClient::new(Arc::new(memory.clone()), cache.clone()));
        conforms(&over_memory(client, memory.clone(), metrics)).await;
        assert!(cache.flush(PATIENCE));
    }
}

/// C1: what was read once is served from the disk, to any process and in any ranges, without a request.
#[tokio::test]
async fn what_was_read_is_read_from_the_disk() {
    let rig = Rig::new();
    let id = rig.put(1).await;
    rig.reads(&id, 1, 0, SIZE).await;
    assert_eq!(rig.gets(), 1);
    // From memory, as long as it is not written.
    rig.reads(&id, 1, 5, SIZE - 5).await;
    rig.flush();
    let other = rig.sibling();
    for (start, end) in [
        (0, SIZE),
        (0, 1),
        (SIZE - 1, SIZE),
        (BLOCK - 1, BLOCK + 1),
        (12_345, 234_567),
    ] {
        rig.reads(&id, 1, start, end).await;
        other.reads(&id, 1, start, end).await;
    }
    assert_eq!((rig.gets(), other.gets()), (1, 0));
    let metrics = rig.metrics.snapshot();
    assert_eq!(
        (metrics.cache_miss_bytes, metrics.cache_written_bytes),
        (SIZE, SIZE)
    );
    assert!(metrics.cache_hit_bytes > SIZE && metrics.cache_dropped_bytes == 0);
}

#[tokio::test]
async fn random_reads_fetch_each_block_once() {
    let rig = Rig::new();
    let id = rig.put(2).await;
    let mut rng = fastrand::Rng::with_seed(3);
    for _ in 0..300 {
        let start = rng.u64(..SIZE);
        let end = (start + rng.u64(1..3 * BLOCK)).min(SIZE);
        rig.reads(&id, 2, start, end).await;
    }
    assert_eq!(rig.fetched_bytes(), SIZE);
    rig.flush();
    assert!(
        rig.client
            .cache()
            .entry(&id)
            .unwrap()
            .unwrap()
            .is_complete()
    );
}

#[tokio::test]
async fn what_is_missing_in_a_row_is_one_request() {
    let rig = Rig::new();
    let id = rig.put(1).await;
    rig.reads(&id, 1, 4 * BLOCK, 5 * BLOCK).await;
    rig.reads(&id, 1, 0, SIZE).await;
    // The blocks before, and those behind.
    assert_eq!((rig.gets(), rig.fetched_bytes()), (3, SIZE));
}

/// C4: a changed object is another entry: who is pinned to the old version goes on reading it, who lists anew reads the
/// new one.
#[tokio::test]
async fn a_changed_object_is_another_entry() {
    let rig = Rig::new();
    let old = rig.put(1).await;
    rig.reads(&old, 1, 0, 3 * BLOCK).await;
    rig.flush();
    rig.memory.put(old.uri.clone(), content(SIZE, 9));
    let new = rig.memory.head(&old.uri).await.unwrap().id;
    rig.reads(&old, 1, 0, 3 * BLOCK).await;
    rig.reads(&new, 9, 0, SIZE).await;
    // What is not there of the old version can't be had any more, and is never filled up from the new one.
    let mut part = PartBuf::heap(SIZE as usize);
    let answer = rig
        .client
        .get(&old, ByteRange::new(0, SIZE), &mut part)
        .await;
    assert!(matches!(answer, Err(Error::Changed { .. })), "{answer:?}");
    assert!(part.filled() == &content(SIZE, 1)[..3 * BLOCK as usize]);
}

/// C5: readers that want the same blocks at once send one request for them.
#[tokio::test]
async fn readers_at_once_share_a_fetch() {
    let temp = tempfile::tempdir().unwrap();
    let rig = Rig::at(temp.path(), Duration::from_millis(50));
    let id = rig.put(1).await;
    join_all((0..16).map(|_| rig.reads(&id, 1, 0, SIZE))).await;
    assert_eq!((rig.gets(), rig.fetched_bytes()), (1, SIZE));
    let id = rig.put(2).await;
    let small = (0..32).map(|at| rig.reads(&id, 2, BLOCK + at * 100, BLOCK + at * 100 + 50));
    join_all(small).await;
    assert_eq!((rig.gets(), rig.fetched_bytes()), (2, SIZE + BLOCK));
    assert!(rig.metrics.snapshot().cache_waits >= 46);
}

#[tokio::test]
async fn a_reader_that_goes_away_leaves_its_blocks_to_the_next() {
    let temp = tempfile::tempdir().unwrap();
    let rig = Rig::at(temp.path(), Duration::from_millis(100));
    let id = rig.put(1).await;
    let gone = tokio::time::timeout(Duration::from_millis(30), rig.reads(&id, 1, 0, SIZE));
    let (gone, ()) = tokio::join!(gone, async {
        tokio::time::sleep(Duration::from_millis(10)).await;
        rig.reads(&id, 1, BLOCK, SIZE).await;
    });
    assert!(gone.is_err());
    rig.reads(&id, 1, 0, SIZE).await;
}

/// Two caches over one directory claim as two processes do.
#[tokio::test]
async fn another_process_is_waited_for_but_not_for_ever() {
    let temp = tempfile::tempdir().unwrap();
    let rig = Rig::at(temp.path(), Duration::from_millis(100));
    let other = rig.sibling();
    let id = rig.put(1).await;
    let (_, _) = tokio::join!(rig.reads(&id, 1, 0, SIZE), async {
        while rig.gets() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        other.reads(&id, 1, 0, SIZE).await;
    });
    assert_eq!((rig.gets(), other.gets()), (1, 0));

    let mut impatient = config(&rig.dir);
    impatient.claim_patience = Duration::from_millis(50);
    let impatient = Rig::with(impatient, rig.memory.clone(), Duration::ZERO);
    let slow = Rig::with(config(&rig.dir), rig.memory.clone(), PATIENCE);
    let id = rig.put(2).await;
    let stuck = slow.reads(&id, 2, 0, SIZE);
    tokio::select! {
        () = stuck => panic!("it is stuck"),
        () = async {
            while slow.gets() == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            impatient.reads(&id, 2, 0, SIZE).await;
        } => {}
    }
    assert_eq!(impatient.gets(), 1);
}

/// Nor at all for what the cache has no room for: it would not be found there.
#[tokio::test]
async fn what_does_not_fit_is_not_waited_for() {
    let temp = tempfile::tempdir().unwrap();
    let mut small = config(temp.path());
    small.max_bytes = Some(30 * BLOCK);
    let rig = Rig::with(small.clone(), MemoryClient::default(), Duration::ZERO);
    let (other, id) = (rig.put(2).await, rig.put(1).await);
    rig.reads(&other, 2, 0, SIZE).await;
    for block in 0..12 {
        rig.reads(&id, 1, block * BLOCK, (block + 1) * BLOCK).await;
        rig.flush();
        // Counts what directories and heads take.
        rig.client.cache().stat().unwrap();
    }
    let metrics = rig.metrics.snapshot();
    assert!(metrics.cache_declined_bytes > 0 && metrics.cache_evicted_bytes == 0);
    let slow = Rig::with(small, rig.memory.clone(), PATIENCE);
    let stuck = slow.reads(&id, 1, 15 * BLOCK, 16 * BLOCK);
    let begun = Instant::now();
    tokio::select! {
        () = stuck => panic!("it is stuck"),
        () = async {
            while slow.gets() == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            rig.reads(&id, 1, 14 * BLOCK, 17 * BLOCK).await;
        } => {}
    }
    assert!(begun.elapsed() < rig.client.cache().config().claim_patience / 2);
}

#[tokio::test]
async fn what_is_not_pinned_passes_by() {
    let rig = Rig::new();
    let id = ObjectId::unpinned(rig.put(1).await.uri);
    for _ in 0..2 {
        let mut part = PartBuf::heap(100);
        let range = ByteRange::new(0, 100);
        rig.client.get(&id, range, &mut part).await.unwrap();
    }
    assert_eq!(rig.gets(), 2);
    assert_eq!(rig.client.cache().stat().unwrap().entries, 0);
}

#[tokio::test]
async fn a_slow_disk_drops_blocks_and_never_waits() {
    let temp = tempfile::tempdir().unwrap();
    let mut config = config(temp.path());
    config.write_behind_bytes = BLOCK;
    let rig = Rig::with(config, MemoryClient::default(), Duration::ZERO);
    let id = rig.put(1).await;
    // Larger than the queue: none of it can be kept.
    rig.reads(&id, 1, 0, SIZE).await;
    rig.flush();
    let metrics = rig.metrics.snapshot();
    assert_eq!(
        (metrics.cache_dropped_bytes, metrics.cache_written_bytes),
        (SIZE, 0)
    );
    rig.reads(&id, 1, 0, BLOCK).await;
    rig.flush();
    assert_eq!(rig.metrics.snapshot().cache_written_bytes, BLOCK);
}

/// The engine over the cache: the second epoch sends no GET, and what comes from the disk is compared with the server's
/// checksum as what comes from the network is.
#[tokio::test]
async fn the_second_epoch_of_the_engine_is_from_the_disk() {
    let server = Arc::new(FakeS3::start().unwrap());
    for (key, size, seed) in [("a", 3_000_001, 1), ("b", 40_000, 2), ("c", 1 << 20, 3)] {
        server.put_synthetic("bucket", key, size, seed);
    }
    let dir = tempfile::tempdir().unwrap();
    for epoch in 0..3 {
        let metrics = Arc::new(Metrics::default());
        let cache = BlockCache::open(config(dir.path()), metrics.clone()).unwrap();
        let client = Arc::new(CachedClient::new(
            connect(&server.endpoint(), &metrics).await,
            cache.clone(),
        ));
        let mut engine = PrefetchConfig::default();
        engine.part_bytes = 1 << 20;
        engine.memory_bytes = 16 << 20;
        let engine = Prefetcher::new(client.clone(), engine, metrics.clone()).unwrap();
        let metas = client.list(&ObjectUri::s3("bucket", ""), Depth::All);
        let metas = metas.filter_map(|entry| async move {
            match entry {
                Ok(ListEntry::Object(meta)) => Some(Ok(meta)),
                other => panic!("{other:?}"),
            }
        });
        let mut reader = engine.read_all(metas.boxed()).unwrap();
        let mut all = Vec::new();
        while let Some(chunk) = reader.next_chunk().await.unwrap() {
            all.extend_from_slice(&chunk.bytes);
        }
        let mut expected = Vec::new();
        for (size, seed) in [(3_000_001, 1), (40_000, 2), (1 << 20, 3)] {
            let mut bytes = vec![0; size];
            fake_s3::content(seed, 0, &mut bytes);
            expected.extend(bytes);
        }
        assert!(all == expected, "epoch {epoch}");
        let gets = server
            .log()
            .iter()
            .filter(|line| {
                line.method == "GET" && !line.key.is_empty() && !line.query.contains("list-type")
            })
            .count();
        if epoch > 0 {
            assert_eq!(gets, 0, "epoch {epoch}: {:?}", server.log());
        }
        assert_eq!(metrics.snapshot().checksums_verified, 3, "epoch {epoch}");
        assert!(cache.flush(PATIENCE));
        server.clear_log();
    }
}

/// Its first blocks are missing, its last ones are there: what is fetched is the beginning of the object only, and must not
/// be compared with the CRC of the whole.
#[tokio::test]
async fn a_whole_object_of_which_the_beginning_is_missing_is_compared_at_its_end() {
    const SIZE: u64 = 1 << 20;
    let server = FakeS3::start().unwrap();
    server.put_synthetic("bucket", "k", SIZE, 5);
    let dir = tempfile::tempdir().unwrap();
    let uri = ObjectUri::s3("bucket", "k");
    let mut bytes = vec![0; SIZE as usize];
    fake_s3::content(5, 0, &mut bytes);
    let metrics = Arc::new(Metrics::default());
    let bare = connect(&server.endpoint(), &metrics).await;
    let id = bare.head(&uri).await.unwrap().id;
    let fill = |cache: BlockCache| {
        let client = CachedClient::new(bare.clone(), cache.clone());
        let id = id.clone();
        async move {
            let mut whole = PartBuf::heap(SIZE as usize);
            client
                .get(&id, ByteRange::new(0, SIZE), &mut whole)
                .await
                .unwrap();
            assert!(cache.flush(PATIENCE));
            whole.freeze()
        }
    };
    let cache = BlockCache::open(config(dir.path()), metrics.clone()).unwrap();
    let block_bytes = cache.block_bytes();
    assert!(fill(cache).await[..] == bytes);
    // The first half is forgotten: its records become those of nothing.
    let inner = |path: PathBuf| {
        std::fs::read_dir(path)
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .path()
    };
    let map = inner(inner(dir.path().join("entries"))).join("map");
    let file = std::fs::File::options().write(true).open(&map).unwrap();
    let records = SIZE / block_bytes * 8;
    let at = file.metadata().unwrap().len() - records;
    file.write_all_at(&vec![0; records as usize / 2], at)
        .unwrap();

    let metrics = Arc::new(Metrics::default());
    let cache = BlockCache::open(config(dir.path()), metrics.clone()).unwrap();
    server.clear_log();
    assert!(fill(cache).await[..] == bytes);
    let gets = server
        .log()
        .iter()
        .filter(|line| line.method == "GET")
        .count();
    assert_eq!(gets, 1);
    assert_eq!(metrics.snapshot().checksums_verified, 1);
}

async fn connect(endpoint: &str, metrics: &Arc<Metrics>) -> Arc<dyn ObjectClient> {
    let config = S3Config {
        endpoint_url: Some(endpoint.into()),
        region: Some("us-east-1".into()),
        anonymous: true,
        ..S3Config::default()
    };
    let client = S3Client::connect(config, metrics.clone()).await.unwrap();
    resilient(Arc::new(client), 16, metrics)
}

// Many processes.

const SHARED: &str = "STANDPIPE_TEST_SHARED_CACHE";
const MANY_BLOCK: u64 = 32 << 10;
const MANY_OBJECTS: u64 = 8;
const MANY_BLOCKS: u64 = 256;

/// Reads a random range of every block, in an order that every fourth process shares, until the file `stop` is there;
/// compares every byte. Those that share an order meet at the same blocks, as ranks that read one dataset do.
async fn read_at_random(dir: &Path, endpoint: &str, etags: &[&str], seed: u64) {
    let metrics = Arc::new(Metrics::default());
    let mut config = config(&dir.join("cache"));
    config.block_bytes = MANY_BLOCK;
    let cache = BlockCache::open(config, metrics.clone()).unwrap();
    let client = CachedClient::new(connect(endpoint, &metrics).await, cache);
    let (mut order, mut rng) = (
        fastrand::Rng::with_seed(seed % 4),
        fastrand::Rng::with_seed(seed),
    );
    let size = MANY_BLOCKS * MANY_BLOCK;
    loop {
        let mut blocks: Vec<(u64, u64)> = (0..MANY_OBJECTS)
            .flat_map(|object| (0..MANY_BLOCKS).map(move |block| (object, block)))
            .collect();
        order.shuffle(&mut blocks);
        for (object, block) in blocks {
            let start = block * MANY_BLOCK + rng.u64(..MANY_BLOCK);
            let end = (start + rng.u64(1..MANY_BLOCK)).min(size);
            let id = ObjectId {
                etag: Some(etags[object as usize].into()),
                size_bytes: Some(size),
                ..ObjectId::unpinned(ObjectUri::s3("bucket", object.to_string()))
            };
            let mut part = PartBuf::heap((end - start) as usize);
            client
                .get(&id, ByteRange::new(start, end), &mut part)
                .await
                .unwrap();
            let mut expected = vec![0; (end - start) as usize];
            fake_s3::content(object, start, &mut expected);
            assert!(
                part.filled() == expected,
                "wrong bytes of {object} at {start}..{end}"
            );
        }
        if dir.join("stop").exists() {
            return;
        }
    }
}

/// C6: eight processes read one cache at random, under faults, and one is killed every 150 ms: every byte is right, and
/// the server gets at most 1.05 requests per block.
#[test]
fn eight_processes_share_a_cache_while_they_are_killed() {
    if let Ok(told) = std::env::var(SHARED) {
        let told: Vec<&str> = told.split('|').collect();
        let [dir, endpoint, seed, etags @ ..] = told.as_slice() else {
            panic!("{told:?}");
        };
        let runtime = tokio::runtime::Runtime::new().unwrap();
        return runtime.block_on(read_at_random(
            Path::new(dir),
            endpoint,
            etags,
            seed.parse().unwrap(),
        ));
    }
    let server = FakeS3::builder()
        .shape(Shape {
            latency: Latency::fixed(Duration::from_millis(3)),
            ..Shape::default()
        })
        .start()
        .unwrap();
    let etags: Vec<String> = (0..MANY_OBJECTS)
        .map(|object| {
            server.put_synthetic(
                "bucket",
                &object.to_string(),
                MANY_BLOCKS * MANY_BLOCK,
                object,
            )
        })
        .collect();
    let status = |status| Effect::Status {
        status,
        code: String::new(),
    };
    let faults = [
        status(500),
        Effect::Reset { at_byte: 9_000 },
        Effect::Truncate { at_byte: 100 },
        Effect::Garbage,
    ];
    server.script(
        "bucket",
        faults
            .map(|effect| Rule::new(effect).probability(0.002))
            .to_vec(),
    );
    let dir = tempfile::tempdir().unwrap();
    let mut seed = 0;
    let mut start = || {
        seed += 1;
        let told = [
            dir.path().to_str().unwrap().to_string(),
            server.endpoint(),
            seed.to_string(),
        ];
        Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "cache::eight_processes_share_a_cache_while_they_are_killed",
            ])
            .env(SHARED, [&told[..], &etags].concat().join("|"))
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    };
    let mut children: Vec<Child> = (0..8).map(|_| start()).collect();
    for victim in 0..12 {
        std::thread::sleep(Duration::from_millis(150));
        let child = &mut children[victim % 8];
        child.kill().unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.signal(), Some(9), "it ended by itself: {status}");
        *child = start();
    }
    std::fs::write(dir.path().join("stop"), "").unwrap();
    for mut child in children {
        let status = child.wait().unwrap();
        assert!(status.success(), "{status}");
    }
    let (blocks, requests) = (MANY_OBJECTS * MANY_BLOCKS, server.stats().requests);
    assert!(
        requests >= blocks,
        "{requests} requests for {blocks} blocks"
    );
    assert!(
        requests * 100 <= blocks * 105,
        "{requests} requests for {blocks} blocks"
    );
    let mut config = config(&dir.path().join("cache"));
    config.block_bytes = MANY_BLOCK;
    let cache = BlockCache::open(config, Arc::default()).unwrap();
    let audit = cache.verify().unwrap();
    assert_eq!((audit.bad_blocks, audit.damaged_entries), (0, 0));
    assert!(audit.sound_blocks * 100 >= blocks * 99, "{audit:?}");
}

// Disks.

/// A small file system in memory, unmounted at the end.
pub(crate) struct Mount(TempDir);

impl Mount {
    /// Mounting takes a privilege, which the tests of this file need as root has it.
    pub(crate) fn tmpfs(options: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mount = Self(dir);
        mount.call("mount", &["-t", "tmpfs", "-o", options, "standpipe-test"]);
        mount
    }

    fn call(&self, program: &str, args: &[&str]) {
        let output = Command::new(program)
            .args(args)
            .arg(self.0.path())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{program} {args:?} must be allowed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    fn path(&self) -> PathBuf {
        self.root().join("cache")
    }

    pub(crate) fn root(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// C7: a full disk fails no read and slows none; what fits is kept, and the cache goes on once there is room.
#[tokio::test]
async fn a_full_disk_fails_nothing() {
    let mount = Mount::tmpfs("size=1m");
    let rig = Rig::at(&mount.path(), Duration::ZERO);
    let mut ids = Vec::new();
    for n in 0..8 {
        ids.push(rig.put(n).await);
    }
    for epoch in 0..3 {
        for (n, id) in (0..).zip(&ids) {
            rig.reads(id, n, 0, SIZE).await;
            rig.flush();
        }
        assert!(
            rig.fetched_bytes() <= 8 * SIZE + epoch * 6 * SIZE,
            "epoch {epoch}"
        );
    }
    let metrics = rig.metrics.snapshot();
    assert!(metrics.cache_written_bytes >= 2 * SIZE, "{metrics:?}");
    assert!(
        metrics.cache_declined_bytes + metrics.cache_bypass_bytes > 0,
        "{metrics:?}"
    );
    assert_eq!(rig.client.cache().verify().unwrap().bad_blocks, 0);

    // Somebody else fills it to the last byte.
    let entry = rig.client.cache().entry(&ids[0]).unwrap().unwrap();
    let filler = mount.0.path().join("filler");
    let _ = std::fs::write(&filler, vec![1; 1 << 20]);
    let fresh = rig.sibling();
    for n in 20..24 {
        let id = fresh.put(n).await;
        fresh.reads(&id, n, 0, SIZE).await;
        fresh.reads(&id, n, 0, SIZE).await;
    }
    fresh.flush();
    assert!(fresh.metrics.snapshot().cache_errors > 0);
    // Where the cache can't see how full the disk is, the disk says so itself.
    std::fs::rename(mount.path(), mount.0.path().join("gone")).unwrap();
    let _ = std::fs::write(mount.0.path().join("rest"), vec![1; 1 << 20]);
    match entry.is_complete() {
        // Its blocks have their space already.
        true => assert_eq!(
            entry.publish(0, &content(SIZE, 0)).unwrap(),
            Published::Stored
        ),
        false => {
            let error = entry.publish(0, &content(SIZE, 0)).unwrap_err();
            assert!(
                matches!(&error, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull),
                "{error}"
            );
        }
    }
    std::fs::rename(mount.0.path().join("gone"), mount.path()).unwrap();
    std::fs::remove_file(filler).unwrap();
    let _ = std::fs::remove_file(mount.0.path().join("rest"));
    let after = rig.sibling();
    // Space is free once nobody has it open.
    drop((rig, fresh, entry));
    after.client.cache().clear().unwrap();
    let id = after.put(30).await;
    after.reads(&id, 30, 0, SIZE).await;
    after.flush();
    assert_eq!(after.metrics.snapshot().cache_written_bytes, SIZE);
}

/// C8: a cache that can't be written to serves what it has; the rest is fetched.
#[tokio::test]
async fn a_read_only_cache_serves_what_it_has() {
    let mount = Mount::tmpfs("size=8m");
    let rig = Rig::at(&mount.path(), Duration::ZERO);
    let (whole, half, none) = (rig.put(1).await, rig.put(2).await, rig.put(3).await);
    rig.reads(&whole, 1, 0, SIZE).await;
    rig.reads(&half, 2, 0, 10 * BLOCK).await;
    rig.flush();
    let (memory, dir) = (rig.memory.clone(), rig.dir.clone());
    drop(rig);
    // The threads that write close their files a moment after.
    let begun = Instant::now();
    loop {
        let mut remount = Command::new("mount");
        remount
            .args(["-o", "remount,ro"])
            .arg(mount.0.path())
            .stderr(Stdio::null());
        if remount.status().unwrap().success() {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "it stays busy");
        std::thread::sleep(Duration::from_millis(5));
    }
    let rig = Rig::with(config(&dir), memory, Duration::ZERO);
    for _ in 0..2 {
        rig.reads(&whole, 1, 0, SIZE).await;
        rig.reads(&half, 2, 0, SIZE).await;
        rig.reads(&none, 3, 0, SIZE).await;
    }
    rig.flush();
    assert_eq!(rig.fetched_bytes(), 2 * (SIZE - 10 * BLOCK) + 2 * SIZE);
    let cache = rig.client.cache();
    let entry = cache.entry(&whole).unwrap().unwrap();
    assert!(entry.complete().unwrap().mmap().unwrap()[..] == content(SIZE, 1));
    assert!(cache.entry(&none).unwrap().is_none());
    assert_eq!(cache.stat().unwrap().complete_entries, 1);
    drop((entry, rig));
}

/// C9: a cache whose directory is removed underneath serves on, and makes nothing where it was.
#[tokio::test]
async fn a_removed_directory_fails_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let rig = Rig::at(&temp.path().join("cache"), Duration::ZERO);
    let (first, second) = (rig.put(1).await, rig.put(2).await);
    rig.reads(&first, 1, 0, 9 * BLOCK).await;
    rig.flush();
    let held = rig.client.cache().entry(&first).unwrap().unwrap();
    std::fs::remove_dir_all(&rig.dir).unwrap();
    for _ in 0..2 {
        rig.reads(&first, 1, 0, SIZE).await;
        rig.reads(&second, 2, 0, SIZE).await;
    }
    rig.flush();
    let mut into = vec![0; 9 * BLOCK as usize];
    assert_eq!(held.read_present(0, &mut into), into.len());
    assert!(into == content(SIZE, 1)[..into.len()]);
    assert!(held.complete().is_none());
    assert!(rig.metrics.snapshot().cache_errors > 0);
    assert!(!rig.dir.exists());
    // Opened anew it is a cache again.
    let rig = rig.sibling();
    rig.reads(&second, 2, 0, SIZE).await;
    rig.flush();
    assert_eq!(rig.client.cache().stat().unwrap().complete_entries, 1);
}

/// A disk that gives other bytes than it was given, without an error and without a reboot.
#[tokio::test]
async fn a_whole_object_from_a_lying_disk_is_fetched_again() {
    let rig = Rig::new();
    let id = rig.put(1).await;
    rig.reads(&id, 1, 0, SIZE).await;
    rig.flush();
    let entry = rig.client.cache().entry(&id).unwrap().unwrap();
    let path = entry.complete().unwrap().path();
    let disk = std::fs::File::options().write(true).open(path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&disk, &[0; 3], 5).unwrap();
    rig.reads(&id, 1, 0, SIZE).await;
    rig.reads(&id, 1, 0, SIZE).await;
    rig.flush();
    rig.reads(&id, 1, 0, SIZE).await;
    assert_eq!(rig.gets(), 3);
}

/// Epochs over a dataset of twice the cache: the policy at work, not in simulation.
#[tokio::test]
async fn epochs_larger_than_the_cache_hit_what_fits() {
    let temp = tempfile::tempdir().unwrap();
    let mut config = config(temp.path());
    config.max_bytes = Some(12 * (SIZE + 16 * 1024));
    let rig = Rig::with(config, MemoryClient::default(), Duration::ZERO);
    let mut ids = Vec::new();
    for n in 0..24 {
        ids.push(rig.put(n).await);
    }
    let mut fetched = Vec::new();
    for _ in 0..4 {
        let before = rig.fetched_bytes();
        for (n, id) in (0..).zip(&ids) {
            rig.reads(id, n, 0, SIZE).await;
            rig.flush();
        }
        fetched.push((rig.fetched_bytes() - before) as f64 / (24 * SIZE) as f64);
    }
    assert!(
        fetched[0] == 1.0 && fetched[1..].iter().all(|share| *share < 0.62),
        "{fetched:?}"
    );
    let stat = rig.client.cache().stat().unwrap();
    assert!(stat.disk_bytes <= 12 * (SIZE + 16 * 1024), "{stat:?}");
}
