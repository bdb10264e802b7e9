use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;

use crate::client::MemoryClient;

fn uri(path: impl AsRef<Path>) -> ObjectUri {
    path.as_ref().to_str().unwrap().parse().unwrap()
}

fn write(root: &Path, name: &str, bytes: &[u8]) {
    let path = root.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// Keys of a listing of `root` joined with `rest` as text, without the root.
async fn list(root: &Path, rest: &str, depth: Depth) -> Result<Vec<String>> {
    let root = root.to_str().unwrap();
    LocalClient::default()
        .list(&uri(format!("{root}/{rest}")), depth)
        .map_ok(|entry| {
            let key = match &entry {
                ListEntry::Object(meta) => meta.id.uri.key(),
                ListEntry::Prefix(uri) => uri.key(),
            };
            key.strip_prefix(root).unwrap()[1..].to_string()
        })
        .try_collect()
        .await
}

#[tokio::test]
async fn whole_paths_are_in_byte_order() {
    let root = tempfile::tempdir().unwrap();
    for name in ["ab", "a/x", "a.txt", "a-b", "a/-", "a0/y", "é"] {
        write(root.path(), name, b"");
    }
    let all = list(root.path(), "", Depth::All).await.unwrap();
    assert_eq!(all, ["a-b", "a.txt", "a/-", "a/x", "a0/y", "ab", "é"]);
    let level = list(root.path(), "a", Depth::OneLevel).await.unwrap();
    assert_eq!(level, ["a-b", "a.txt", "a/", "a0/", "ab"]);
    let none = list(root.path(), "no/such/directory", Depth::All).await;
    assert_eq!(none.unwrap(), [""; 0]);
}

#[tokio::test]
async fn links_are_followed_and_loops_and_dead_ends_refused() {
    let root = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    write(elsewhere.path(), "far/file", b"12");
    write(root.path(), "a/file", b"1");
    symlink("file", root.path().join("a/link")).unwrap();
    symlink(elsewhere.path(), root.path().join("b")).unwrap();
    let all = list(root.path(), "", Depth::All).await.unwrap();
    assert_eq!(all, ["a/file", "a/link", "b/far/file"]);

    symlink("..", root.path().join("a/up")).unwrap();
    let error = list(root.path(), "", Depth::All)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("a/up/") && error.contains("leads back"),
        "{error}"
    );
    fs::remove_file(root.path().join("a/up")).unwrap();

    symlink("nowhere", root.path().join("c")).unwrap();
    let error = list(root.path(), "", Depth::All).await.unwrap_err();
    assert!(error.to_string().contains("/c links to nothing"), "{error}");
}

#[tokio::test]
async fn a_name_that_is_no_text_is_refused_where_it_is_wanted() {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), "fine", b"");
    fs::write(root.path().join(OsStr::from_bytes(b"x\xff")), b"").unwrap();
    assert_eq!(list(root.path(), "f", Depth::All).await.unwrap(), ["fine"]);
    let error = list(root.path(), "", Depth::All).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("x\\xff: the file's name is not UTF-8"),
        "{error}"
    );
}

#[tokio::test]
async fn pipes_and_directories_are_no_objects_and_block_nobody() {
    let root = tempfile::tempdir().unwrap();
    let fifo = root.path().join("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    let client = LocalClient::default();
    for path in [fifo.as_path(), root.path()] {
        let error = client.head(&uri(path)).await.unwrap_err();
        assert!(matches!(error, Error::NotFound { .. }), "{error}");
    }
    assert_eq!(list(root.path(), "", Depth::All).await.unwrap(), [""; 0]);
}

async fn read(client: &LocalClient, id: &ObjectId, len: usize) -> (PartBuf, Result<GetMeta>) {
    let mut part = PartBuf::heap(len);
    let answer = client
        .get(id, ByteRange::new(0, len as u64), &mut part)
        .await;
    (part, answer)
}

#[tokio::test]
async fn a_replaced_or_rewritten_file_has_changed_and_the_buffer_comes_back() {
    let root = tempfile::tempdir().unwrap();
    let metrics = Arc::new(Metrics::default());
    let client = LocalClient::new(metrics.clone());
    write(root.path(), "f", b"before");
    let id = client.head(&uri(root.path().join("f"))).await.unwrap().id;
    let (part, answer) = read(&client, &id, 6).await;
    assert_eq!(
        (part.filled(), answer.unwrap().etag),
        (&b"before"[..], id.etag.clone())
    );
    write(root.path(), "g", b"after!");
    fs::rename(root.path().join("g"), root.path().join("f")).unwrap();
    let (part, answer) = read(&client, &id, 6).await;
    assert!(matches!(answer, Err(Error::Changed { .. })), "{answer:?}");
    assert_eq!((part.filled().len(), part.capacity()), (0, 6));
    assert_eq!(
        (
            metrics.bytes_received.get(),
            metrics.requests.get(),
            metrics.requests_in_flight.get()
        ),
        (6, 2, 0)
    );
}

#[tokio::test]
async fn a_file_that_is_cut_short_under_way_has_changed() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("f");
    fs::write(&path, [1; 100]).unwrap();
    let (file, found) = open(&path).unwrap();
    fs::write(&path, [1; 10]).unwrap();
    let wanted = Arc::new(());
    let mut reading = Read {
        path: path.clone(),
        id: ObjectId::unpinned(uri(&path)),
        range: ByteRange::new(0, 100),
        part: PartBuf::heap(100),
        wanted: Arc::downgrade(&wanted),
        metrics: Arc::default(),
    };
    // The size is that of the first look; the second one tells the difference.
    reading.fill(&file, found.len()).unwrap();
    assert_eq!(reading.part.filled().len(), 10);
    assert_ne!(etag(&found), etag(&file.metadata().unwrap()));
}

#[tokio::test]
async fn a_read_that_nobody_wants_ends_at_the_next_slice() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("f");
    fs::write(&path, [1; 100]).unwrap();
    let mut reading = Read {
        path: path.clone(),
        id: ObjectId::unpinned(uri(&path)),
        range: ByteRange::new(0, 100),
        part: PartBuf::heap(100),
        wanted: Weak::new(),
        metrics: Arc::default(),
    };
    assert!(matches!(reading.run(), Err(Error::Cancelled)));
    assert_eq!(reading.part.filled().len(), 0);
}

#[tokio::test]
async fn other_schemes_are_refused() {
    let client = LocalClient::default();
    let elsewhere = ObjectUri::s3("b", "k");
    let error = client.head(&elsewhere).await.unwrap_err().to_string();
    assert!(error.contains("s3://b/k: not a file"), "{error}");
    let entries: Vec<_> = client.list(&elsewhere, Depth::All).collect().await;
    assert!(matches!(&entries[..], [Err(Error::Config { .. })]));
}

fn names() -> impl Strategy<Value = BTreeSet<String>> {
    // Names around the slash in byte order, so that sorting by name alone would be wrong.
    proptest::collection::btree_set("[a-b.0/-]{1,6}", 0..12)
}

/// Without what a file system cannot hold: empty names, `.`, `..`, and a file where a directory must be.
fn storable(names: BTreeSet<String>) -> BTreeSet<String> {
    let fine = |name: &String| name.split('/').all(|part| !matches!(part, "" | "." | ".."));
    let names: BTreeSet<String> = names.into_iter().filter(fine).collect();
    let is_directory = |name: &String| {
        names
            .iter()
            .any(|other| other.starts_with(&format!("{name}/")))
    };
    names
        .iter()
        .filter(|name| !is_directory(name))
        .cloned()
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A tree of files is listed as the same keys in memory are, for any prefix.
    #[test]
    fn a_tree_lists_as_s3_would(names in names(), prefix in "[a-b.0/-]{0,3}", one_level: bool) {
        // The file system would read `a//b` and `./a` as other names; S3 finds nothing under them.
        prop_assume!(!prefix.contains("//") && !prefix.starts_with('/'));
        prop_assume!(!prefix.split_inclusive('/').any(|part| matches!(part, "./" | "../")));
        let names = storable(names);
        let depth = if one_level { Depth::OneLevel } else { Depth::All };
        let root = tempfile::tempdir().unwrap();
        let memory = MemoryClient::default();
        for name in &names {
            write(root.path(), name, name.as_bytes());
            memory.put(format!("memory://m/{name}").parse().unwrap(), name.clone());
        }
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let expected: BTreeMap<String, Option<u64>> = memory
                .list(&format!("memory://m/{prefix}").parse().unwrap(), depth)
                .map(|entry| match entry.unwrap() {
                    ListEntry::Object(meta) => (meta.id.uri.key().to_string(), Some(meta.size_bytes)),
                    ListEntry::Prefix(uri) => (uri.key().to_string(), None),
                })
                .collect()
                .await;
            let found = list(root.path(), &prefix, depth).await.unwrap();
            assert_eq!(found, expected.keys().cloned().collect::<Vec<_>>());
        });
    }
}
