//! The read path of FastFile mode: whatever is read in whatever order is what the object holds, within the memory.

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::{BoxFuture, join_all};
use futures::stream::BoxStream;
use proptest::prelude::*;
use standpipe::buffer::PartBuf;
use standpipe::client::{
    Chaos, Depth, FaultClient, FaultKind, GetMeta, ListEntry, MemoryClient, ObjectClient,
    RetryClient, RetryConfig, Schedule, Unreadable,
};
use standpipe::error::{Error, Result};
use standpipe::fastfile::read::{OpenFile, OpenFiles, ReadConfig};
use standpipe::object::{ByteRange, ObjectId, ObjectMeta, ObjectUri};
use tokio::runtime::{Builder, Handle};
use tokio::time::{Instant, timeout};

/// Longer than any schedule of finite faults lasts, in virtual time.
const FOREVER: Duration = Duration::from_secs(24 * 3600);
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

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

/// Notes the range of every GET.
#[derive(Debug)]
struct Noted {
    inner: Arc<dyn ObjectClient>,
    gets: Mutex<Vec<ByteRange>>,
}

impl Noted {
    fn over(inner: impl ObjectClient) -> Arc<Self> {
        Arc::new(Self {
            inner: Arc::new(inner),
            gets: Mutex::default(),
        })
    }

    fn gets(&self) -> Vec<ByteRange> {
        self.gets.lock().unwrap().clone()
    }

    fn bytes(&self) -> u64 {
        self.gets().iter().map(|range| range.len()).sum()
    }
}

impl ObjectClient for Noted {
    fn head<'a>(&'a self, uri: &'a ObjectUri) -> BoxFuture<'a, Result<ObjectMeta>> {
        self.inner.head(uri)
    }

    fn get<'a>(
        &'a self,
        id: &'a ObjectId,
        range: ByteRange,
        into: &'a mut PartBuf,
    ) -> BoxFuture<'a, Result<GetMeta>> {
        self.gets.lock().unwrap().push(range);
        self.inner.get(id, range, into)
    }

    fn list(&self, prefix: &ObjectUri, depth: Depth) -> BoxStream<'static, Result<ListEntry>> {
        self.inner.list(prefix, depth)
    }
}

fn in_virtual_time<T>(future: impl Future<Output = T>) -> T {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let begun = Instant::now();
        let output = timeout(FOREVER, future).await.expect("every read ends");
        // The time limit polls once more when it is over: a lost wake would be healed by that.
        assert!(begun.elapsed() < FOREVER, "nothing woke the reader");
        output
    })
}

async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

fn files(client: Arc<dyn ObjectClient>, config: ReadConfig) -> OpenFiles {
    OpenFiles::on(Handle::current(), client, config, Arc::default()).unwrap()
}

async fn open(files: &OpenFiles, object: usize) -> OpenFile {
    let meta = files.client().head(&uri(object)).await.unwrap();
    files.open(meta.id).unwrap()
}

/// Small sizes, so that a megabyte makes many parts; memory for `parts` of them.
fn config(parts: u64) -> ReadConfig {
    let mut config = ReadConfig::default();
    config.part_bytes = 256 * KIB;
    config.block_bytes = 64 * KIB;
    config.memory_bytes = parts * 256 * KIB;
    config.concurrency = 4;
    config
}

fn retrying(inner: FaultClient) -> Arc<dyn ObjectClient> {
    let config = RetryConfig {
        max_attempts: 200,
        deadline: FOREVER,
        ..RetryConfig::default()
    };
    Arc::new(RetryClient::new(Arc::new(inner), config, Arc::default()))
}

#[derive(Debug, Clone)]
enum Step {
    Open(usize),
    Close(usize),
    /// Handle, where as a share of 65,536, length.
    Read(usize, u16, usize),
    /// Some reads in order, side by side.
    Run(usize, u16, usize, usize),
    Hint(usize, u16, u64),
    /// A read that is given up at once.
    Abandon(usize, u16, usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0..3usize).prop_map(Step::Open),
        1 => any::<usize>().prop_map(Step::Close),
        4 => (any::<usize>(), any::<u16>(), 1..300_000usize).prop_map(|(h, at, len)| Step::Read(h, at, len)),
        4 => (any::<usize>(), any::<u16>(), 1..130_000usize, 1..12usize).prop_map(|(h, at, len, n)| Step::Run(h, at, len, n)),
        1 => (any::<usize>(), any::<u16>(), 0..2_000_000u64).prop_map(|(h, at, len)| Step::Hint(h, at, len)),
        1 => (any::<usize>(), any::<u16>(), 1..300_000usize).prop_map(|(h, at, len)| Step::Abandon(h, at, len)),
    ]
}

const SIZES: [usize; 3] = [2_500_000, 100_000, 300_000];

async fn check(file: &OpenFile, object: usize, at: u64, len: usize) {
    let wanted = content(object, SIZES[object]);
    let end = (at as usize + len).min(wanted.len());
    let read = file.read_at(at, len).await.unwrap().into_bytes();
    assert!(
        read == wanted[at as usize..end],
        "{object}, {len} bytes at {at}"
    );
}

async fn carry_out(steps: Vec<Step>, files: &OpenFiles) {
    let mut open_files: Vec<(usize, OpenFile)> = Vec::new();
    for step in steps {
        let limit = files.budget().limit();
        assert!(files.budget().reserved() <= limit);
        let pick = |handle: usize| open_files.get(handle % open_files.len().max(1));
        let at = |object: usize, share: u16| (SIZES[object] as u64 * u64::from(share)) >> 16;
        match step {
            Step::Open(object) => open_files.push((object, open(files, object).await)),
            Step::Close(handle) if !open_files.is_empty() => {
                let handle = handle % open_files.len();
                drop(open_files.swap_remove(handle));
            }
            Step::Read(handle, share, len) => {
                if let Some((object, file)) = pick(handle) {
                    check(file, *object, at(*object, share), len).await;
                }
            }
            Step::Run(handle, share, len, count) => {
                if let Some((object, file)) = pick(handle) {
                    let size = SIZES[*object] as u64;
                    let starts =
                        (0..count).map(|n| (at(*object, share) + (n * len) as u64).min(size));
                    join_all(starts.map(|start| check(file, *object, start, len))).await;
                }
            }
            Step::Hint(handle, share, len) => {
                if let Some((object, file)) = pick(handle) {
                    let start = at(*object, share);
                    file.prefetch(&[ByteRange::new(start, start + len)]);
                }
            }
            Step::Abandon(handle, share, len) => {
                if let Some((object, file)) = pick(handle) {
                    let _ = futures::poll!(Box::pin(file.read_at(at(*object, share), len)));
                }
            }
            Step::Close(_) => {}
        }
    }
    drop(open_files);
    settle().await;
    assert_eq!(files.budget().reserved(), 0, "bytes held by nobody");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Invariants 1, 2 and 5 for reads at any offset: at the smallest budget too, whatever heals.
    #[test]
    fn any_sequence_of_reads_gives_the_objects_bytes(
        steps in proptest::collection::vec(step(), 1..40),
        parts in 1..12u64,
        over_cache: bool,
        (seed, share, slowest_ms) in (any::<u64>(), 0.0..0.5f64, 0..500u64),
    ) {
        in_virtual_time(async {
            let chaos = Chaos { seed, share, heals_after: 300, most_after: 200 * KIB, slowest_first_byte: Duration::from_millis(slowest_ms), ..Chaos::default() };
            let client = FaultClient::new(Arc::new(seeded(&SIZES)), Schedule::chaos(chaos));
            let mut config = config(parts);
            config.over_cache = over_cache;
            carry_out(steps, &files(retrying(client), config)).await;
        });
    }
}

#[test]
fn reads_in_order_fetch_each_byte_once_in_full_parts() {
    let size = 64 * MIB;
    let client = Noted::over(seeded(&[size as usize]));
    in_virtual_time(async {
        let mut config = ReadConfig::default();
        config.memory_bytes = 64 * MIB;
        config.part_bytes = MIB;
        config.block_bytes = 128 * KIB;
        let files = files(client.clone(), config);
        let file = open(&files, 0).await;
        let mut at = 0;
        while at < size {
            at += file.read_at(at, 128 << 10).await.unwrap().len() as u64;
        }
        assert!(files.budget().reserved() <= 64 * MIB);
    });
    assert_eq!(client.bytes(), size);
    let full = client
        .gets()
        .iter()
        .filter(|range| range.len() == MIB)
        .count();
    assert!(
        full >= 48 && client.gets().len() < 110,
        "{full} of {}",
        client.gets().len()
    );
}

#[test]
fn random_reads_fetch_little_more_than_each_touched_block() {
    for memory_bytes in [8 * MIB, 256 * MIB] {
        let size = 64 * MIB;
        let client = Noted::over(seeded(&[size as usize]));
        in_virtual_time(async {
            let mut config = ReadConfig::default();
            config.memory_bytes = memory_bytes;
            config.part_bytes = MIB;
            config.block_bytes = 256 * KIB;
            let files = files(client.clone(), config);
            let file = &open(&files, 0).await;
            let mut order: Vec<u64> = (0..512).collect();
            fastrand::Rng::with_seed(7).shuffle(&mut order);
            for batch in order.chunks(16) {
                let reads = batch
                    .iter()
                    .map(|block| file.read_at(block * 128 * KIB, 128 << 10));
                join_all(reads)
                    .await
                    .into_iter()
                    .for_each(|read| drop(read.unwrap()));
            }
        });
        let ratio = client.bytes() as f64 / size as f64;
        assert!(ratio <= 1.3, "{ratio} with {memory_bytes} bytes of memory");
    }
}

#[test]
fn an_error_comes_at_its_offset_and_is_not_kept() {
    in_virtual_time(async {
        let bad = Unreadable {
            key: Some("0000".into()),
            offset: 1_000_000,
            kind: FaultKind::PermissionDenied,
        };
        let schedule = Schedule {
            unreadable: vec![bad],
            ..Schedule::default()
        };
        let client = Noted::over(FaultClient::new(Arc::new(seeded(&[2_500_000])), schedule));
        let files = files(client.clone(), config(8));
        let file = open(&files, 0).await;
        let mut at = 0;
        let error = loop {
            match file.read_at(at, 100_000).await {
                Ok(read) => at += read.len() as u64,
                Err(error) => break error,
            }
        };
        assert_eq!(at, 1_000_000);
        assert!(matches!(error, Error::PermissionDenied { .. }), "{error}");
        let asked = client.gets().len();
        assert!(file.read_at(at, 10).await.is_err());
        assert!(client.gets().len() > asked, "the error was kept");
        check_tail(&file).await;
    });
}

async fn check_tail(file: &OpenFile) {
    let tail = file.read_at(2_499_000, 5_000).await.unwrap().into_bytes();
    assert!(tail == content(0, 2_500_000)[2_499_000..]);
}

#[test]
fn a_replaced_object_is_an_error() {
    in_virtual_time(async {
        let client = seeded(&[2_500_000]);
        let files = files(Arc::new(client.clone()), config(8));
        let file = open(&files, 0).await;
        client.put(uri(0), "new");
        assert!(matches!(
            file.read_at(5, 5).await,
            Err(Error::Changed { .. })
        ));
    });
}

/// Readers that keep all they were given still get the rest, beyond the budget.
#[test]
fn a_hoarder_is_served_beyond_the_budget() {
    in_virtual_time(async {
        let files = files(Arc::new(seeded(&[2_500_000])), config(1));
        let file = open(&files, 0).await;
        let mut kept = Vec::new();
        for at in (0..2_500_000).step_by(100_000) {
            kept.push(file.read_at(at, 100_000).await.unwrap());
        }
        assert!(files.budget().reserved() <= files.budget().limit());
        assert!(files.snapshot().overdraft_bytes > 0);
        drop((kept, file));
        settle().await;
        assert_eq!(files.budget().reserved(), 0);
    });
}

#[test]
fn sixteen_readers_of_one_object_fetch_it_once() {
    let client = Noted::over(seeded(&[2_500_000]));
    in_virtual_time(async {
        let files = files(client.clone(), config(64));
        let read = async |file: OpenFile| {
            let mut at = 0;
            while at < 2_500_000 {
                at += file.read_at(at, 50_000).await.unwrap().len() as u64;
                tokio::task::yield_now().await;
            }
            file
        };
        let mut readers = Vec::new();
        for _ in 0..16 {
            readers.push(read(open(&files, 0).await));
        }
        join_all(readers).await;
    });
    assert_eq!(client.bytes(), 2_500_000);
}
