//! FastFile mode by the library's calls: files without a mount, and what is fetched before they are opened.

use std::fs;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fake_s3::{FakeS3, Latency, Shape};
use standpipe::cache::CacheConfig;
use standpipe::client::{MemoryClient, ObjectClient, S3Client, Transport, resilient};
use standpipe::error::Error;
use standpipe::fastfile::FastFiles;
use standpipe::fastfile::read::ReadConfig;
use standpipe::prefetch::PrefetchConfig;
use standpipe::runtime;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use crate::world::s3_config;

fn content(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fake_s3::content(seed, 0, &mut bytes);
    bytes
}

/// Parts and blocks so small that a megabyte is many.
fn reads() -> ReadConfig {
    let mut config = ReadConfig::default();
    config.part_bytes = 256 << 10;
    config.block_bytes = 64 << 10;
    config.memory_bytes = 16 << 20;
    config
}

fn cache(dir: &Path) -> CacheConfig {
    let mut config = CacheConfig::new(dir);
    config.block_bytes = 64 << 10;
    config.keep_free_share = 0.0;
    config
}

/// The crate's error inside.
fn cause(error: &std::io::Error) -> &Error {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    inner.expect("it carries the crate's error")
}

fn in_memory(keys: &[(&str, &[u8])]) -> MemoryClient {
    let client = MemoryClient::default();
    for (key, bytes) in keys {
        let uri = format!("memory://b/{key}").parse().unwrap();
        client.put(uri, bytes.to_vec());
    }
    client
}

fn over(client: &MemoryClient, cache: Option<CacheConfig>) -> FastFiles {
    let files = FastFiles::builder("memory://b/d/".parse().unwrap())
        .client(Arc::new(client.clone()))
        .reads(reads());
    match cache {
        Some(config) => files.cache(config).open().unwrap(),
        None => files.open().unwrap(),
    }
}

/// L1, L2: names, sizes and bytes by calls that block, outside of a runtime.
fn use_them(files: &FastFiles, big: &[u8]) {
    let paths = |entries: standpipe::fastfile::files::Entries| -> Vec<String> {
        entries.map(|entry| entry.unwrap().path).collect()
    };
    assert_eq!(paths(files.list("").unwrap()), ["a", "big", "in"]);
    assert_eq!(paths(files.list("in/").unwrap()), ["in/x", "in/y"]);
    let all = ["a", "big", "in", "in/x", "in/y", "in/y/z"];
    assert_eq!(paths(files.walk("/").unwrap()), all);
    let entry = files.stat("./in//y/z").unwrap();
    assert_eq!((entry.path.as_str(), entry.size_bytes), ("in/y/z", 4));
    assert_eq!(entry.uri.to_string(), "memory://b/d/in/y/z");
    assert!(entry.etag.is_some() && !entry.is_directory);

    let mut file = files.open_file("big").unwrap();
    let mut some = vec![0; 1000];
    file.read_exact_at(&mut some, 700_000).unwrap();
    assert!(some == big[700_000..701_000]);
    assert_eq!(file.seek(SeekFrom::End(-5)).unwrap(), big.len() as u64 - 5);
    let mut tail = Vec::new();
    file.read_to_end(&mut tail).unwrap();
    assert!(tail == big[big.len() - 5..]);
    file.rewind().unwrap();
    let mut whole = Vec::new();
    file.read_to_end(&mut whole).unwrap();
    assert!(whole == big);
    assert_eq!(file.read_at(&mut some, u64::MAX - 3).unwrap(), 0);
    let short = file.read_exact_at(&mut some, big.len() as u64 - 3);
    assert_eq!(short.unwrap_err().kind(), ErrorKind::UnexpectedEof);
    assert!(file.seek(SeekFrom::Current(-1_000_000_000)).is_err());
    std::thread::scope(|scope| {
        for at in (0..8).map(|n| n * 100_000) {
            let file = &file;
            scope.spawn(move || {
                let mut some = vec![0; 50_000];
                file.read_exact_at(&mut some, at).unwrap();
                assert!(some == big[at as usize..][..50_000]);
            });
        }
    });
}

fn some_files() -> (MemoryClient, Vec<u8>) {
    let big = content(1, 1_000_003);
    let client = in_memory(&[
        ("d/a", b"first"),
        ("d/big", &big),
        ("d/in/x", b"x"),
        ("d/in/y/z", b"last"),
    ]);
    (client, big)
}

/// L1, L2: the library lists, stats, opens and reads without a mount, outside of a runtime.
#[test]
fn files_without_a_mount() {
    let (client, big) = some_files();
    use_them(&over(&client, None), &big);
    let dir = tempfile::tempdir().unwrap();
    use_them(&over(&client, Some(cache(dir.path()))), &big);
}

/// L6: a read that is longer than the memory is made in slices: it goes beyond the memory no more than a short one does.
#[test]
fn a_read_longer_than_the_memory_keeps_to_it() {
    let big = content(3, 9_000_001);
    let client = in_memory(&[("d/big", &big)]);
    let mut reads = reads();
    reads.memory_bytes = 2 << 20;
    let files = FastFiles::builder("memory://b/d/".parse().unwrap())
        .client(Arc::new(client))
        .reads(reads)
        .open()
        .unwrap();
    let mut file = files.open_file("big").unwrap();
    let mut into = vec![0; big.len() + 5];
    assert_eq!(file.read_at(&mut into, 0).unwrap(), big.len());
    assert!(into[..big.len()] == big);
    let mut whole = Vec::new();
    file.read_to_end(&mut whole).unwrap();
    assert!(whole == big);
    let snapshot = files.open_files().snapshot();
    assert_eq!(snapshot.overdraft_bytes, 0);
    assert!(snapshot.reserved_bytes <= 2 << 20);
}

/// L2: calls that block work within a runtime, on its only thread.
#[tokio::test]
async fn blocking_calls_work_within_a_runtime() {
    let (client, big) = some_files();
    let dir = tempfile::tempdir().unwrap();
    let files = over(&client, Some(cache(dir.path())));
    use_them(&files, &big);
    let local = files.open_file("big").unwrap().path().unwrap();
    assert!(fs::read(&local).unwrap() == big);
}

/// L2: the same files for tasks.
#[tokio::test]
async fn files_for_tasks() {
    let (client, big) = some_files();
    let files = FastFiles::builder("memory://b/d/".parse().unwrap())
        .client(Arc::new(client))
        .open_async()
        .await
        .unwrap();
    assert_eq!(files.stat_async("a").await.unwrap().size_bytes, 5);
    let mut entries = files.list("in").unwrap();
    let first = entries.next_entry().await.unwrap().unwrap();
    assert_eq!(first.path, "in/x");
    let file = files.open_file_async("big").await.unwrap();
    let pieces = file.read_at_async(3, 10).await.unwrap();
    assert!(pieces.into_bytes() == big[3..13]);
    let mut file = file.into_async();
    let mut whole = Vec::new();
    file.read_to_end(&mut whole).await.unwrap();
    assert!(whole == big);
    let mut some = [0; 100];
    let at = file.seek(SeekFrom::Current(-500_000)).await.unwrap();
    file.read_exact(&mut some).await.unwrap();
    assert!(some == big[at as usize..][..100]);
}

/// L3: errors are of the kind that a file's would be, and carry the crate's, which names the object.
#[test]
fn errors_have_kinds_and_name_the_object() {
    let (client, _) = some_files();
    let files = over(&client, None);
    for (path, kind, named) in [
        ("none", ErrorKind::NotFound, "memory://b/d/none"),
        ("a/none", ErrorKind::NotFound, "memory://b/d/a/none"),
        ("../a", ErrorKind::NotFound, "memory://b/d/../a"),
        ("in", ErrorKind::IsADirectory, "memory://b/d/in/"),
    ] {
        let error = files.open_file(path).unwrap_err();
        assert_eq!(error.kind(), kind, "{path}: {error}");
        assert!(cause(&error).to_string().contains(named), "{error}");
    }
    assert_eq!(
        files.list("a").unwrap_err().kind(),
        ErrorKind::NotADirectory
    );
    let mut file = files.open_file("a").unwrap();
    client.put("memory://b/d/a".parse().unwrap(), "other");
    let error = file.read(&mut [0; 5]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StaleNetworkFileHandle, "{error}");
    assert!(matches!(cause(&error), Error::Changed { uri, .. } if uri == "memory://b/d/a"));
    let unkept = files.open_file("big").unwrap().path().unwrap_err();
    assert_eq!(unkept.kind(), ErrorKind::InvalidInput, "{unkept}");
    assert!(
        unkept.to_string().contains("open the files with one"),
        "{unkept}"
    );
    let missing = FastFiles::builder("memory://b/none/".parse().unwrap()).client(Arc::new(client));
    assert!(matches!(missing.open(), Err(Error::NotFound { .. })));
}

/// L4: a path is of a whole file, which stays as long as it is held; what is there is not fetched again.
#[test]
fn paths_and_maps_are_whole_and_stay() {
    let server = FakeS3::start().unwrap();
    let big = content(2, 3_000_001);
    server.put("b", "d/big", &big);
    server.put("b", "d/empty", b"");
    let dir = tempfile::tempdir().unwrap();
    let files = on_server(&server, reads(), Some(cache(dir.path())));
    let file = files.open_file("big").unwrap();
    file.read_exact_at(&mut [0; 100], 1_000_000).unwrap();
    let sent = server.stats().bytes_sent;
    let local = file.path().unwrap();
    assert!(
        server.stats().bytes_sent - sent < 3_000_001,
        "what is there is kept"
    );
    assert!(fs::read(&local).unwrap() == big);
    let map = files.open_file("big").unwrap().mmap().unwrap();
    assert!(map[..] == big);
    assert!(files.open_file("empty").unwrap().mmap().unwrap().is_empty());

    let held = files.cache().unwrap().clear().unwrap();
    assert!(held.kept_entries > 0 && local.path().exists(), "{held:?}");
    let path = local.path().to_owned();
    drop((local, map, file));
    files.cache().unwrap().clear().unwrap();
    assert!(!path.exists(), "nobody holds it any more");
}

/// L4: an object of a local directory is its own file.
#[test]
fn local_files_have_their_own_path() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("f"), "bytes").unwrap();
    let files = FastFiles::open(dir.path().to_str().unwrap()).unwrap();
    let file = files.open_file("f").unwrap();
    assert_eq!(file.path().unwrap().path(), dir.path().join("f"));
    assert_eq!(&file.mmap().unwrap()[..], b"bytes");
}

fn on_server(server: &FakeS3, reads: ReadConfig, cache: Option<CacheConfig>) -> FastFiles {
    let (config, _ca) = s3_config(server, Transport::Direct);
    let s3 = runtime::handle()
        .block_on(S3Client::connect(config, Arc::default()))
        .unwrap();
    let most = reads.most_requests();
    let client: Arc<dyn ObjectClient> = resilient(Arc::new(s3), most, &Arc::default());
    let files = FastFiles::builder("s3://b/d/".parse().unwrap())
        .client(client)
        .reads(reads);
    match cache {
        Some(config) => files.cache(config).open().unwrap(),
        None => files.open().unwrap(),
    }
}

const FILES: usize = 600;
const FILE_BYTES: u64 = 20_000;

fn folder() -> FakeS3 {
    let server = FakeS3::start().unwrap();
    for at in 0..FILES {
        let key = format!("d/{}/{at:05}", at / 200);
        server.put_synthetic("b", &key, FILE_BYTES, at as u64);
    }
    server.set_shape(Shape {
        latency: Latency::fixed(Duration::from_millis(3)),
        ..Shape::default()
    });
    server
}

fn path(at: usize) -> String {
    format!("{}/{at:05}", at / 200)
}

fn read_and_compare(files: &FastFiles, at: usize) {
    let mut bytes = Vec::new();
    files
        .open_file(path(at))
        .unwrap()
        .read_to_end(&mut bytes)
        .unwrap();
    assert!(bytes == content(at as u64, FILE_BYTES as usize), "{at}");
}

/// Bytes sent for objects, relative to all of them once.
fn fetched(server: &FakeS3, before: u64) -> f64 {
    (server.stats().bytes_sent - before) as f64 / (FILES as u64 * FILE_BYTES) as f64
}

/// How many of the server's requests are for objects.
fn gets(server: &FakeS3) -> u64 {
    server.stats().requests
}

/// M20: files that are read in the listing's order are fetched before they are opened, each once.
#[test]
fn a_walk_is_looked_ahead_of() {
    for readers in [1, 3] {
        let server = folder();
        let files = on_server(&server, ReadConfig::default(), None);
        let (sent, requests) = (server.stats().bytes_sent, gets(&server));
        std::thread::scope(|scope| {
            for reader in 0..readers {
                let files = &files;
                let mine = (reader..FILES).step_by(readers);
                scope.spawn(move || mine.for_each(|at| read_and_compare(files, at)));
            }
        });
        let fetched = fetched(&server, sent);
        assert!(fetched < 1.05, "{fetched} of the bytes");
        assert!(gets(&server) - requests <= FILES as u64 * 21 / 20);
        let ahead = server.stats().in_flight_peak;
        assert!(ahead > readers + 4, "{ahead} at once by {readers} readers");
    }
}

/// M20: small files fly in larger numbers than parts do, and never in larger ones than they may.
#[test]
fn small_files_fly_in_larger_numbers() {
    for (told, least, most) in [(None, 40, 96), (Some(5), 4, 5)] {
        let server = folder();
        server.set_shape(Shape {
            latency: Latency::fixed(Duration::from_millis(50)),
            ..Shape::default()
        });
        let engine = PrefetchConfig::fitting(None, None, told);
        let files = on_server(&server, ReadConfig::of(&engine), None);
        std::thread::scope(|scope| {
            for reader in 0..4 {
                let files = &files;
                let mine = (reader..FILES / 2).step_by(4);
                scope.spawn(move || mine.for_each(|at| read_and_compare(files, at)));
            }
        });
        let peak = server.stats().in_flight_peak;
        // A listing has no part in the limit.
        assert!(
            (least..=most + 1).contains(&peak),
            "{peak} at once, told {told:?}"
        );
    }
}

/// M20: files that are read in random order are not.
#[test]
fn random_reads_are_not_looked_ahead_of() {
    let server = folder();
    let files = on_server(&server, ReadConfig::default(), None);
    let sent = server.stats().bytes_sent;
    let mut order: Vec<usize> = (0..FILES).collect();
    fastrand::Rng::with_seed(5).shuffle(&mut order);
    order.iter().for_each(|at| read_and_compare(&files, *at));
    let fetched = fetched(&server, sent);
    assert!(fetched < 1.1, "{fetched} of the bytes");
}

/// L5: an order that the reader tells is fetched ahead as it is read, whatever it is, within its share of the memory.
#[test]
fn what_is_told_is_looked_ahead_of() {
    let server = folder();
    let mut config = ReadConfig::default();
    config.part_bytes = 256 << 10;
    config.block_bytes = 64 << 10;
    config.memory_bytes = 4 << 20;
    let files = on_server(&server, config, None);
    let sent = server.stats().bytes_sent;
    let mut order: Vec<usize> = (0..FILES).collect();
    fastrand::Rng::with_seed(5).shuffle(&mut order);
    files.prefetch(order.iter().map(|at| path(*at))).unwrap();
    order.iter().for_each(|at| read_and_compare(&files, *at));
    let fetched = fetched(&server, sent);
    assert!(fetched < 1.02, "{fetched} of the bytes, heads included");
    assert!(server.stats().in_flight_peak > 8);
    // The task that brought the last part may still be about to let go of it.
    let begun = Instant::now();
    while files.open_files().budget().reserved() > 0 {
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "something is left"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    files.prefetch(order.iter().map(|at| path(*at))).unwrap();
    let held = files.open_files().budget().reserved();
    assert!(
        held <= (4 << 20) / 4,
        "{held} bytes for files that nobody has read"
    );
    assert!(files.prefetch(["none"]).is_err());
}

/// Reads a little of so many blocks of an object, in random order, by eight readers.
fn read_at_random(files: &FastFiles, bytes: &[u8], reads: usize) {
    let mut order: Vec<usize> = (0..bytes.len() / (64 << 10)).collect();
    fastrand::Rng::with_seed(9).shuffle(&mut order);
    order.truncate(reads);
    std::thread::scope(|scope| {
        for reader in 0..8 {
            let mine: Vec<_> = order.iter().skip(reader).step_by(8).copied().collect();
            scope.spawn(move || {
                let file = files.open_file("big").unwrap();
                let mut some = vec![0; 10_000];
                for block in mine {
                    let at = block * (64 << 10) + 777;
                    let n = file.read_at(&mut some, at as u64).unwrap();
                    assert!(some[..n] == bytes[at..at + n], "{at}");
                }
            });
        }
    });
}

/// M22: of a large file that is read at random all over, the rest is fetched in full parts, each byte once; one that is read
/// here and there is not.
#[test]
fn a_file_that_is_read_at_random_is_filled() {
    const BLOCKS: usize = 400;
    let bytes = content(3, BLOCKS * (64 << 10));
    let server = FakeS3::start().unwrap();
    server.put("b", "d/big", &bytes);
    server.set_shape(Shape {
        latency: Latency::fixed(Duration::from_millis(5)),
        ..Shape::default()
    });
    let sent = |fills: bool, blocks: usize| {
        let dir = tempfile::tempdir().unwrap();
        let mut config = reads();
        config.fills = fills;
        let files = on_server(&server, config, Some(cache(dir.path())));
        let before = server.stats();
        read_at_random(&files, &bytes, blocks);
        assert!(files.cache().unwrap().flush(Duration::from_secs(60)));
        let after = server.stats();
        let share = (after.bytes_sent - before.bytes_sent) as f64 / bytes.len() as f64;
        (share, after.requests - before.requests)
    };
    let (share, requests) = sent(true, BLOCKS);
    assert!(share < 1.2, "{share} of the bytes");
    assert!(requests < BLOCKS as u64 / 2, "{requests} requests");
    let (share, requests) = sent(false, BLOCKS);
    assert!(share < 1.2, "{share} of the bytes, not filled");
    assert!(requests >= BLOCKS as u64, "{requests} requests, not filled");
    let (share, _) = sent(true, BLOCKS / 20);
    assert!(share < 0.06, "{share} of the bytes for a twentieth of them");
}
