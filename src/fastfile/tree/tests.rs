use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, UNIX_EPOCH};

fn meta(key: &str, size_bytes: u64) -> ObjectMeta {
    ObjectMeta {
        id: ObjectId {
            uri: ObjectUri::s3("b", key),
            etag: Some("\"0123456789abcdef0123456789abcdef\"".into()),
            version_id: None,
            size_bytes: Some(size_bytes),
        },
        size_bytes,
        last_modified: Some(UNIX_EPOCH + Duration::from_secs(1_700_000_000)),
        checksum_algorithm: None,
        checksum: None,
    }
}

fn tree(bucket: &str, prefix: &str) -> Tree {
    Tree::new(ObjectUri::s3(bucket, prefix), UNIX_EPOCH)
}

/// A complete tree of objects below `p/` whose size is their key's length; markers are empty.
fn complete(keys: &[&str]) -> Tree {
    let mut tree = tree("b", "p/");
    for key in keys {
        let size = if key.ends_with('/') {
            0
        } else {
            key.len() as u64
        };
        tree.add(&meta(&format!("p/{key}"), size)).unwrap();
    }
    tree.complete();
    tree
}

/// Every path, directories with a `/` behind them.
fn walk(tree: &Tree) -> Vec<String> {
    fn below(tree: &Tree, directory: Ino, path: &str, found: &mut Vec<String>) {
        let mut after = None;
        while let Step::Entry(ino, name) = tree.step(directory, after) {
            assert_eq!(tree.lookup(directory, name.as_bytes()), Found::Here(ino));
            assert_eq!(tree.parent(ino), Some(directory));
            after = Some(ino);
            match tree.attributes(ino).unwrap().is_directory {
                true => {
                    found.push(format!("{path}{name}/"));
                    below(tree, ino, &format!("{path}{name}/"), found);
                }
                false => found.push(format!("{path}{name}")),
            }
        }
        assert_eq!(tree.step(directory, after), Step::End);
    }
    let mut found = Vec::new();
    below(tree, Ino::ROOT, "", &mut found);
    found.sort();
    found
}

/// M2, M3: what each odd key becomes.
#[test]
fn odd_keys_have_names() {
    let long = "é".repeat(200);
    let cases: Vec<(Vec<&str>, Vec<&str>)> = vec![
        (vec!["a/b/c", "a/d"], vec!["a/", "a/b/", "a/b/c", "a/d"]),
        (
            vec!["a", "a-1", "a/b"],
            vec![".s3key%a%file", "a-1", "a/", "a/b"],
        ),
        (vec!["dir/"], vec!["dir/"]),
        (vec!["", "x"], vec!["x"]),
        (
            vec!["//x", "/y"],
            vec![
                ".s3key%/",
                ".s3key%/.s3key%/",
                ".s3key%/.s3key%/x",
                ".s3key%/y",
            ],
        ),
        (
            vec!["../x", "./x", "..."],
            vec![
                "...",
                ".s3key%%2E%2E/",
                ".s3key%%2E%2E/x",
                ".s3key%%2E/",
                ".s3key%%2E/x",
            ],
        ),
        (vec!["a\0b"], vec![".s3key%a%00b"]),
    ];
    for (keys, paths) in cases {
        assert_eq!(walk(&complete(&keys)), paths, "{keys:?}");
    }
    let path = &walk(&complete(&[&long]))[0];
    assert!(path.starts_with(".s3key%éé") && path.len() <= 255, "{path}");

    let mut with_content = tree("b", "p/");
    with_content.add(&meta("p/", 3)).unwrap();
    with_content.add(&meta("p/d/", 4)).unwrap();
    with_content.complete();
    assert_eq!(
        walk(&with_content),
        [".s3key%%file", "d/", "d/.s3key%%file"]
    );
}

#[test]
fn a_marker_gives_its_directory_its_date() {
    let tree = complete(&["a/", "b/c"]);
    let modified = |name: &[u8]| match tree.lookup(Ino::ROOT, name) {
        Found::Here(ino) => tree.attributes(ino).unwrap().modified,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        modified(b"a"),
        UNIX_EPOCH + Duration::from_secs(1_700_000_000)
    );
    assert_eq!(modified(b"b"), UNIX_EPOCH);
}

#[test]
fn a_name_is_decided_once_the_listing_has_passed_it() {
    let mut tree = tree("b", "p/");
    tree.add(&meta("p/a", 1)).unwrap();
    assert_eq!(
        tree.lookup(Ino::ROOT, b"a"),
        Found::NotYet,
        "a/x may follow"
    );
    assert_eq!(tree.step(Ino::ROOT, None), Step::NotYet);
    assert_eq!(tree.lookup(Ino::ROOT, b"0"), Found::Absent);
    tree.add(&meta("p/a-b", 1)).unwrap();
    assert_eq!(
        tree.lookup(Ino::ROOT, b"a"),
        Found::NotYet,
        "a/x may still follow"
    );
    tree.add(&meta("p/d/x", 1)).unwrap();
    assert!(matches!(tree.lookup(Ino::ROOT, b"a"), Found::Here(_)));
    let Found::Here(d) = tree.lookup(Ino::ROOT, b"d") else {
        panic!("a directory is decided when it is seen");
    };
    assert_eq!(tree.lookup(d, b"a"), Found::Absent);
    assert_eq!(tree.lookup(d, b"y"), Found::NotYet);
    assert_eq!(tree.lookup(d, b"y\xff"), Found::Absent, "keys are UTF-8");
    tree.add(&meta("p/e", 1)).unwrap();
    assert_eq!(
        tree.lookup(d, b"y"),
        Found::Absent,
        "the listing has left d/"
    );
    assert_eq!(tree.lookup(Ino::ROOT, b"f"), Found::NotYet);
    tree.complete();
    assert_eq!(tree.lookup(Ino::ROOT, b"f"), Found::Absent);
}

#[test]
fn without_order_nothing_is_decided_before_the_end() {
    let mut directory_bucket = tree("b--use1-az4--x-s3", "");
    let mut unsorted = tree("b", "");
    unsorted.add(&meta("b", 1)).unwrap();
    for tree in [&mut directory_bucket, &mut unsorted] {
        tree.add(&meta("a", 1)).unwrap();
        tree.add(&meta("c", 1)).unwrap();
        assert_eq!(tree.lookup(Ino::ROOT, b"a"), Found::NotYet);
        assert_eq!(tree.lookup(Ino::ROOT, b"0"), Found::NotYet);
        tree.complete();
        assert!(matches!(tree.lookup(Ino::ROOT, b"a"), Found::Here(_)));
    }
}

fn keys() -> impl Strategy<Value = BTreeSet<String>> {
    let part = prop_oneof![
        "[ab.]{0,2}",
        "[a-]{1,2}",
        ".s3key%[a%]{0,2}",
        Just("é".repeat(130))
    ];
    let key = prop::collection::vec(part, 1..4).prop_map(|parts| parts.join("/"));
    prop::collection::btree_set(key, 1..25)
}

proptest! {
    /// M1: every object has one name, and its name leads to it; what is decided early stays.
    #[test]
    fn every_object_is_reachable_whatever_the_keys(keys in keys(), shuffle: bool, sizes in prop::collection::vec(0..3u64, 25)) {
        let mut order: Vec<(String, u64)> = keys.iter().cloned().zip(sizes).collect();
        if shuffle {
            order.reverse();
        }
        let mut tree = tree("b", "p/");
        let mut early: BTreeMap<(Ino, String), Found> = BTreeMap::new();
        for (key, size) in &order {
            tree.add(&meta(&format!("p/{key}"), *size)).unwrap();
            if !shuffle {
                for name in ["a", "b", "a-", ".s3key%", ".s3key%a%file"] {
                    let found = tree.lookup(Ino::ROOT, name.as_bytes());
                    if found != Found::NotYet {
                        let first = early.entry((Ino::ROOT, name.into())).or_insert(found);
                        prop_assert_eq!(*first, found, "{} after {}", name, key);
                    }
                }
            }
        }
        tree.complete();
        for ((parent, name), found) in early {
            prop_assert_eq!(tree.lookup(parent, name.as_bytes()), found);
        }
        let mut reached = BTreeSet::new();
        let mut paths = BTreeSet::new();
        for path in walk(&tree) {
            prop_assert!(paths.insert(path.trim_end_matches('/').to_owned()), "{} twice", path);
        }
        let mut directories = vec![Ino::ROOT];
        while let Some(directory) = directories.pop() {
            let mut after = None;
            while let Step::Entry(ino, _) = tree.step(directory, after) {
                after = Some(ino);
                match tree.object(ino) {
                    None => directories.push(ino),
                    Some(object) => {
                        let key = object.id.uri.key()["p/".len()..].to_owned();
                        prop_assert_eq!(object.size_bytes, order.iter().find(|(k, _)| *k == key).unwrap().1);
                        prop_assert!(reached.insert(key));
                    }
                }
            }
        }
        let expected: BTreeSet<String> = order
            .into_iter()
            .filter(|(key, size)| *size > 0 || !(key.is_empty() || key.ends_with('/')))
            .map(|(key, _)| key)
            .collect();
        prop_assert_eq!(tree.files() as usize, expected.len());
        prop_assert_eq!(reached, expected);
    }
}

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// M4: a million objects cost at most 120 bytes each beside their names, by our own count and the kernel's.
#[test]
fn a_million_objects_fit() {
    const OBJECTS: usize = 1_000_000;
    let before = resident_bytes();
    let mut tree = tree("b", "");
    let mut one = meta("", 1);
    let mut name_bytes = 0;
    let mut peak = 0;
    for at in 0..OBJECTS {
        let name = format!("sample-{at:09}.jpg");
        name_bytes += name.len();
        one.id.uri = ObjectUri::s3("b", format!("class-{:04}/{name}", at / 1000));
        tree.add(&one).unwrap();
        if at.is_multiple_of(10_000) {
            peak = peak.max(resident_bytes() - before);
        }
    }
    tree.complete();
    let each = |bytes: usize| (bytes - name_bytes) as f64 / OBJECTS as f64;
    peak = peak.max(resident_bytes() - before);
    let (counted, peak) = (each(tree.heap_bytes()), each(peak));
    eprintln!("bytes per object beside its name: {counted:.1} counted, {peak:.1} resident at most");
    assert!(counted <= 120.0 && peak <= 120.0, "{counted} {peak}");
    assert!(counted >= 56.0, "the count forgets something");
    assert_eq!(tree.files(), OBJECTS as u64);
}
