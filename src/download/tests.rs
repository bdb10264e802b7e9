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

/// Memory with dates; one key never answers.
#[derive(Debug, Clone, Default)]
struct Dated {
    inner: MemoryClient,
    gets: Arc<Counter>,
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
    let first = file::PartialFile::create(path.clone(), 10).unwrap();
    let error = file::PartialFile::create(path, 10).unwrap_err();
    assert!(error.to_string().contains("another standpipe"), "{error}");
    drop(first);
    assert!(tree(target.path()).is_empty());
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
fn stopping_removes_what_is_unfinished() {
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
