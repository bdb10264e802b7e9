//! Downloads from memory into a temporary directory.

use std::path::Path;
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;

use super::*;
use crate::buffer::PartBuf;
use crate::client::{Depth, GetMeta, ListEntry, MemoryClient, ObjectClient};
use crate::object::{ByteRange, ObjectId, ObjectMeta, ObjectUri};
use crate::prefetch::PrefetchConfig;
use crate::runtime;

/// Memory with dates; one key never answers.
#[derive(Debug, Clone, Default)]
struct Dated {
    inner: MemoryClient,
    gets: Arc<Counter>,
    /// Reads from this offset on fail; 0 for none.
    fails_from: Arc<Gauge>,
}

const STUCK: &str = "stuck";

fn date() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)
}

fn dated(mut meta: ObjectMeta) -> ObjectMeta {
    meta.last_modified = Some(date());
    meta
}

impl ObjectClient for Dated {
    fn head<'a>(&'a self, uri: &'a ObjectUri) -> BoxFuture<'a, Result<ObjectMeta>> {
        Box::pin(async move { self.inner.head(uri).await.map(dated) })
    }

    fn get<'a>(
        &'a self,
        id: &'a ObjectId,
        range: ByteRange,
        into: &'a mut PartBuf,
    ) -> BoxFuture<'a, Result<GetMeta>> {
        self.gets.add(1);
        let fails_from = self.fails_from.get();
        if fails_from > 0 && range.start >= fails_from {
            let what = id.uri.to_string();
            return Box::pin(async { Err(Error::Internal { what }) });
        }
        match id.uri.key().ends_with(STUCK) {
            true => Box::pin(std::future::pending()),
            false => self.inner.get(id, range, into),
        }
    }

    fn list(&self, prefix: &ObjectUri, depth: Depth) -> BoxStream<'static, Result<ListEntry>> {
        let entries = self.inner.list(prefix, depth);
        let dated = |entry| match entry {
            Ok(ListEntry::Object(meta)) => Ok(ListEntry::Object(dated(meta))),
            other => other,
        };
        entries.map(dated).boxed()
    }
}

fn store(keys: &[&str]) -> Dated {
    let client = Dated::default();
    for key in keys {
        client
            .inner
            .put(ObjectUri::s3("b", *key), key.repeat(100_000));
    }
    client
}

fn download(client: &Dated, source: &str, directory: &Path) -> Download {
    let config = PrefetchConfig {
        part_bytes: 64 << 10,
        ..PrefetchConfig::default()
    };
    let engine = Prefetcher::new(Arc::new(client.clone()), config, Arc::default()).unwrap();
    Download::new(
        engine,
        source.parse().unwrap(),
        directory,
        DownloadConfig::default(),
    )
}

/// Relative paths of all files below, sorted.
fn tree(directory: &Path) -> Vec<String> {
    let mut names = Vec::new();
    let mut open = vec![directory.to_path_buf()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => open.push(path),
                false => names.push(path.strip_prefix(directory).unwrap().display().to_string()),
            }
        }
    }
    names.sort();
    names
}

#[test]
fn every_object_becomes_a_file_with_its_bytes_and_its_date() {
    let (client, target) = (
        store(&["p/a", "p/d/b", "p/d/e/c", "q"]),
        tempfile::tempdir().unwrap(),
    );
    client.inner.put(ObjectUri::s3("b", "p/d/"), "");
    client.inner.put(ObjectUri::s3("b", "p/empty"), "");
    download(&client, "s3://b/p/", target.path()).run().unwrap();
    assert_eq!(tree(target.path()), ["a", "d/b", "d/e/c", "empty"]);
    let file = target.path().join("d/b");
    assert_eq!(
        std::fs::read_to_string(&file).unwrap(),
        "p/d/b".repeat(100_000)
    );
    assert_eq!(file.metadata().unwrap().modified().unwrap(), date());
}

#[test]
fn a_second_run_fetches_only_what_is_missing_or_different() {
    let (client, target) = (store(&["a", "b", "c"]), tempfile::tempdir().unwrap());
    download(&client, "s3://b/", target.path()).run().unwrap();
    std::fs::write(target.path().join("b"), "short").unwrap();
    std::fs::remove_file(target.path().join("c")).unwrap();
    let gets = client.gets.get();
    let again = download(&client, "s3://b/", target.path());
    again.run().unwrap();
    assert_eq!(
        (
            again.progress().skipped_files.get(),
            again.progress().written_files.get()
        ),
        (1, 2)
    );
    // Each is cut in pieces: lead, part, rest.
    assert!(client.gets.get() > gets);
    assert_eq!(
        std::fs::read_to_string(target.path().join("b")).unwrap(),
        "b".repeat(100_000)
    );
}

#[test]
fn what_a_killed_run_left_is_used_up() {
    let (client, target) = (store(&["a"]), tempfile::tempdir().unwrap());
    let left = names::temporary_path(&target.path().join("a"));
    std::fs::write(&left, "x".repeat(5000)).unwrap();
    download(&client, "s3://b/a", target.path()).run().unwrap();
    assert_eq!(tree(target.path()), ["a"]);
    assert_eq!(
        std::fs::read_to_string(target.path().join("a")).unwrap(),
        "a".repeat(100_000)
    );
}

#[test]
fn a_file_that_another_process_writes_is_left_alone() {
    let target = tempfile::tempdir().unwrap();
    let path = target.path().join("a");
    let meta = large(&Dated::default(), 1);
    let first = file::PartialFile::create(path.clone(), &meta).unwrap();
    for error in [
        file::PartialFile::create(path.clone(), &meta).unwrap_err(),
        file::PartialFile::resume(path, &meta, || false).unwrap_err(),
    ] {
        assert!(error.to_string().contains("another standpipe"), "{error}");
    }
    drop(first);
    assert!(tree(target.path()).is_empty());
}

const LARGE_BYTES: usize = 9 * MIB + 5;
const MIB: usize = 1 << 20;

fn large_content(seed: u8) -> Vec<u8> {
    (0..LARGE_BYTES)
        .map(|at| (at ^ (at >> 9)) as u8 ^ seed)
        .collect()
}

/// Puts an object that is worth a record.
fn large(client: &Dated, seed: u8) -> ObjectMeta {
    let uri = ObjectUri::s3("b", "a");
    client.inner.put(uri.clone(), large_content(seed));
    runtime::handle().block_on(client.head(&uri)).unwrap()
}

/// What a run leaves that had written so much of `content` when it ended.
fn begun(target: &Path, meta: &ObjectMeta, content: &[u8]) {
    let mut file = file::PartialFile::create(target.join("a"), meta).unwrap();
    for piece in content.chunks(300_000) {
        file.write(piece).unwrap();
    }
}

/// Downloads it and tells how much was resumed and how much was written.
fn finished(client: &Dated, target: &Path, seed: u8) -> (u64, u64) {
    let download = download(client, "s3://b/a", target);
    download.run().unwrap();
    assert_eq!(tree(target), ["a"]);
    assert!(std::fs::read(target.join("a")).unwrap() == large_content(seed));
    let progress = download.progress();
    (progress.resumed_bytes.get(), progress.written_bytes.get())
}

/// F5: a run goes on inside a file, behind the last whole MiB.
#[test]
fn a_begun_file_goes_on_behind_what_is_sound() {
    let (client, target) = (Dated::default(), tempfile::tempdir().unwrap());
    let meta = large(&client, 1);
    for (written, kept) in [
        (5 * MIB + 1, 5 * MIB),
        (MIB, MIB),
        (MIB - 1, 0),
        // Killed before its rename: the last byte is fetched again.
        (LARGE_BYTES, 9 * MIB),
    ] {
        begun(target.path(), &meta, &large_content(1)[..written]);
        let left = if kept > 0 { 2 } else { 0 };
        assert_eq!(tree(target.path()).len(), left, "{written}");
        let (kept, rest) = (kept as u64, (LARGE_BYTES - kept) as u64);
        assert_eq!(finished(&client, target.path(), 1), (kept, rest));
        std::fs::remove_file(target.path().join("a")).unwrap();
    }
}

/// F6: damage is fetched again, and of another version nothing is used.
#[test]
fn what_is_not_sound_is_fetched_again() {
    let (client, target) = (Dated::default(), tempfile::tempdir().unwrap());
    let left = names::temporary_path(&target.path().join("a"));
    let meta = large(&client, 1);
    let size = LARGE_BYTES as u64;
    begun(target.path(), &meta, &large_content(1)[..5 * MIB]);
    let damaged = std::fs::File::options().write(true).open(&left).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&damaged, b"garbled", 3 * MIB as u64 + 9).unwrap();
    let sound = 3 * MIB as u64;
    assert_eq!(finished(&client, target.path(), 1), (sound, size - sound));
    begun(target.path(), &meta, &large_content(1)[..5 * MIB]);
    large(&client, 2);
    std::fs::remove_file(target.path().join("a")).unwrap();
    assert_eq!(finished(&client, target.path(), 2), (0, size));
}

/// F7: bytes that were received wrong, and are on disk as they were received, are seen over the whole.
#[test]
fn a_begun_file_that_does_not_add_up_is_fetched_once_more() {
    let (client, target) = (Dated::default(), tempfile::tempdir().unwrap());
    let meta = large(&client, 1);
    begun(target.path(), &meta, &large_content(3)[..5 * MIB]);
    let (resumed, written) = finished(&client, target.path(), 1);
    let (size, wrong) = (LARGE_BYTES as u64, 5 * MIB as u64);
    assert_eq!(resumed, 0);
    // All of it, and what of the rest was written before its last piece was refused.
    assert!((size..2 * size - wrong).contains(&written), "{written}");
}

/// F3: what was not finished when the stream broke is there for the next run, and is no file.
#[test]
fn what_is_unfinished_is_kept_for_the_next_run() {
    let (client, target) = (Dated::default(), tempfile::tempdir().unwrap());
    large(&client, 1);
    client.fails_from.add(6 * MIB as u64);
    let broken = download(&client, "s3://b/a", target.path());
    broken.run().unwrap_err();
    let kept = broken.progress().kept_bytes.get();
    assert!(kept >= 4 * MIB as u64, "{kept}");
    let names = tree(target.path());
    assert!(
        names.len() == 2 && names.iter().all(|name| name.starts_with(".standpipe-")),
        "{names:?}"
    );
    client.fails_from.sub(6 * MIB as u64);
    assert_eq!(
        finished(&client, target.path(), 1),
        (kept, LARGE_BYTES as u64 - kept)
    );
}

#[test]
fn a_key_that_is_also_a_directory_is_an_error_that_says_so() {
    let (client, target) = (store(&["a", "a/b"]), tempfile::tempdir().unwrap());
    let error = download(&client, "s3://b/", target.path())
        .run()
        .unwrap_err();
    assert!(error.to_string().contains("`a` and `a/b`"), "{error}");
    assert!(
        !tree(target.path())
            .iter()
            .any(|name| name.contains(".part"))
    );
}

#[test]
fn a_key_that_would_escape_is_an_error_and_nothing_is_written_outside() {
    let (client, outer) = (store(&["p/../../evil"]), tempfile::tempdir().unwrap());
    let error = download(&client, "s3://b/p/", &outer.path().join("in"))
        .run()
        .unwrap_err();
    assert!(error.to_string().contains("s3://b/p/../../evil"), "{error}");
    assert!(tree(outer.path()).is_empty());
}

#[test]
fn stopping_removes_what_is_not_worth_keeping() {
    let (client, target) = (store(&["a", STUCK]), tempfile::tempdir().unwrap());
    let download = download(&client, "s3://b/", target.path());
    let (stop, progress) = (download.stop().clone(), download.progress().clone());
    let result = std::thread::scope(|scope| {
        let run = scope.spawn(|| download.run());
        while progress.written_files.get() < 1 {
            std::thread::yield_now();
        }
        stop.cancel();
        run.join().unwrap()
    });
    assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
    assert_eq!(tree(target.path()), ["a"]);
}

#[test]
fn patterns_keep_the_part_that_varies_in_their_names() {
    let (client, target) = (store(&["x/data", "y/data"]), tempfile::tempdir().unwrap());
    download(&client, "s3://b/{x,y}/data", target.path())
        .run()
        .unwrap();
    assert_eq!(tree(target.path()), ["x/data", "y/data"]);
}

#[test]
fn a_full_disk_is_told_as_such() {
    // /dev/full answers every write with ENOSPC.
    let error = Error::io("/dev/full", std::fs::write("/dev/full", "x").unwrap_err());
    assert!(
        error.fix().is_some_and(|fix| fix.contains("space")),
        "{error}"
    );
}
