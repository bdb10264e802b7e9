//! The cache from within: processes that die at every failpoint, records without data, directories of every kind.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::SystemTime;

use proptest::prelude::*;
use rustix::fs::{FlockOperation, flock};

use super::fail;
use super::*;
use crate::object::{ByteRange, ObjectUri};

const BLOCK: u64 = 4 << 10;
/// Three blocks and a bit.
const SIZE: u64 = 3 * BLOCK + 1234;

fn config(dir: &Path) -> CacheConfig {
    let mut config = CacheConfig::new(dir);
    config.block_bytes = BLOCK;
    config.keep_free_share = 0.0;
    config
}

fn open(dir: &Path) -> BlockCache {
    BlockCache::open(config(dir), Arc::default()).unwrap()
}

/// As another boot of the machine would.
fn open_after_boot(dir: &Path, boot: &str) -> BlockCache {
    let mut config = config(dir);
    config.boot_id_file = dir.with_extension("boot");
    fs::write(&config.boot_id_file, boot).unwrap();
    BlockCache::open(config, Arc::default()).unwrap()
}

fn id(n: u64) -> ObjectId {
    ObjectId {
        etag: Some(format!("\"{n}\"").into()),
        size_bytes: Some(SIZE),
        ..ObjectId::unpinned(ObjectUri::s3("b", format!("k{n}")))
    }
}

fn entry(cache: &BlockCache, n: u64) -> Arc<Entry> {
    cache.entry(&id(n)).unwrap().unwrap()
}

fn content(n: u64) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(n);
    (0..SIZE).map(|_| rng.u8(1..)).collect()
}

/// Stores the blocks of an object one by one.
fn fill(entry: &Entry, n: u64) {
    let content = content(n);
    for (block, bytes) in (0..).zip(content.chunks(BLOCK as usize)) {
        assert_eq!(
            entry.publish(block * BLOCK, bytes).unwrap(),
            Published::Stored
        );
    }
}

/// Reads everything that is there, from every block on; panics on a wrong byte. How many blocks are there.
fn audit(entry: &Entry, n: u64) -> usize {
    let content = content(n);
    let mut present = 0;
    for start in (0..SIZE).step_by(BLOCK as usize) {
        let mut into = vec![0; SIZE as usize];
        let got = entry.read_present(start, &mut into);
        assert!(
            into[..got] == content[start as usize..][..got],
            "wrong bytes of {n} at {start}"
        );
        let said = entry.present(ByteRange::new(start, SIZE));
        assert_eq!(said.len(), got as u64, "at {start}");
        present += usize::from(got > 0);
    }
    present
}

#[test]
fn what_was_stored_is_there_in_any_order_and_for_another_process() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let entry = entry(&cache, 1);
    let content = content(1);
    assert_eq!(audit(&entry, 1), 0);
    for block in [3, 1, 0, 2] {
        let range = entry.blocks().bytes(block..block + 1);
        let bytes = &content[range.start as usize..range.end as usize];
        assert!(entry.complete().is_none(), "before block {block}");
        assert_eq!(
            entry.publish(range.start, bytes).unwrap(),
            Published::Stored
        );
    }
    assert_eq!(audit(&entry, 1), 4);
    // Another handle knows nothing but the files.
    let other = open(dir.path());
    let other = self::entry(&other, 1);
    assert!(other.is_complete());
    assert_eq!(audit(&other, 1), 4);
    assert_eq!(other.read_present(SIZE, &mut [0; 9]), 0);
    assert_eq!(other.read_present(u64::MAX, &mut [0; 9]), 0);
}

#[test]
fn only_whole_blocks_are_stored() {
    let dir = tempfile::tempdir().unwrap();
    let entry = entry(&open(dir.path()), 1);
    let bytes = content(1);
    for (start, end) in [
        (0, 1),
        (1, BLOCK),
        (0, BLOCK + 1),
        (BLOCK, SIZE - 1),
        (0, 0),
        (SIZE, SIZE),
    ] {
        let bytes = &bytes[start as usize..end as usize];
        assert!(entry.publish(start, bytes).is_err(), "{start}..{end}");
    }
    assert!(entry.publish(u64::MAX - 5, &bytes[..10]).is_err());
    assert_eq!(audit(&entry, 1), 0);
}

/// C14: only an object that is there to the last block can be mapped, and what is mapped is not evicted.
#[test]
fn a_whole_object_is_mapped_and_stays() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let entry = entry(&cache, 1);
    fill(&entry, 1);
    fill(&self::entry(&cache, 2), 2);
    let whole = entry.complete().unwrap();
    let mapping = whole.mmap().unwrap();
    assert!(mapping[..] == content(1));
    assert!(fs::read(whole.path()).unwrap() == content(1));
    assert!(
        whole.file().write_at(b"x", 0).is_err(),
        "it is open for reading only"
    );
    drop((entry, whole));
    let removed = cache.clear().unwrap();
    assert_eq!((removed.entries, removed.kept_entries), (1, 1));
    assert!(mapping[..] == content(1));
    drop(mapping);
    assert_eq!(cache.clear().unwrap().entries, 1);
    assert_eq!(cache.stat().unwrap().disk_bytes, 0);
}

/// C14: a file is given only of what is whole, and stays while it is open; a look makes nothing.
#[test]
fn a_look_for_a_whole_file_makes_nothing_and_trusts_nothing() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("cache");
    // Each cache is another process: it has not opened the entry.
    let look = || open_after_boot(&dir, "one").whole_file(&id(1));
    assert!(look().is_none());
    assert_eq!(open_after_boot(&dir, "one").stat().unwrap().entries, 0);
    let cache = open_after_boot(&dir, "one");
    let entry = entry(&cache, 1);
    for (block, bytes) in (0..).zip(content(1).chunks(BLOCK as usize)) {
        assert!(look().is_none(), "before block {block}");
        entry.publish(block * BLOCK, bytes).unwrap();
    }
    let path = entry.complete().unwrap().path();
    drop(entry);
    drop(cache);
    let held = look().unwrap();
    assert!(held.write_at(b"x", 0).is_err(), "open for reading only");
    assert_eq!(
        open_after_boot(&dir, "one").clear().unwrap().kept_entries,
        1
    );
    let is_right = |file: File| {
        let mut bytes = vec![0; SIZE as usize];
        file.read_exact_at(&mut bytes, 0).is_ok() && bytes == content(1)
    };
    assert!(is_right(held));

    // Another process is about to throw it out: that takes its name, not its bytes.
    let evictor = File::open(&path).unwrap();
    flock(&evictor, FlockOperation::NonBlockingLockExclusive).unwrap();
    assert!(look().is_some_and(is_right));
    drop(evictor);

    // What another boot has stored is compared with its checksums first.
    let damaged = File::options().write(true).open(&path).unwrap();
    damaged.write_all_at(&[0; BLOCK as usize], BLOCK).unwrap();
    let after = open_after_boot(&dir, "two");
    assert!(after.whole_file(&id(1)).is_none());
    assert_eq!(after.metrics().snapshot().cache_blocks_verified, 3);

    // And a map of another length is none.
    let map = File::options().write(true).open(path.with_file_name("map"));
    map.unwrap().set_len(1).unwrap();
    assert!(look().is_none());
}

#[test]
fn an_empty_object_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let empty = ObjectId {
        size_bytes: Some(0),
        ..id(0)
    };
    let entry = open(dir.path()).entry(&empty).unwrap().unwrap();
    assert_eq!(entry.complete().unwrap().mmap().unwrap().len(), 0);
}

#[test]
fn an_evicted_entry_is_readable_while_it_is_held_and_made_anew_after() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let old = entry(&cache, 1);
    fill(&old, 1);
    assert_eq!(cache.clear().unwrap().entries, 1);
    assert_eq!(audit(&old, 1), 4);
    assert!(old.complete().is_none(), "it has no path any more");
    let new = entry(&cache, 1);
    assert_eq!(audit(&new, 1), 0);
    fill(&new, 1);
    assert_eq!((audit(&new, 1), audit(&old, 1)), (4, 4));
}

/// C10: the cache keeps to its limit of bytes; what does not fit is declined, not an error.
#[test]
fn it_keeps_to_its_limit() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    let limit = 40 * BLOCK;
    config.max_bytes = Some(limit);
    let cache = BlockCache::open(config, Arc::default()).unwrap();
    let mut declined = 0;
    for n in 0..30 {
        cache.tick(SIZE);
        let Some(entry) = cache.entry(&id(n)).unwrap() else {
            declined += 1;
            continue;
        };
        let content = content(n);
        if entry.publish(0, &content).unwrap() == Published::Declined {
            declined += 1;
        }
        assert_eq!(audit(&entry, n), entry.stored_blocks() as usize);
    }
    assert!(declined > 10, "{declined}");
    // Directories and heads are counted when it is looked through; here they are as large as the data.
    let stat = cache.stat().unwrap();
    assert!(
        stat.stored_bytes > limit / 3 && stat.stored_bytes <= limit,
        "{stat:?}"
    );
    // A lower limit holds at once.
    cache.evict(limit / 4).unwrap();
    assert!(cache.stat().unwrap().disk_bytes <= limit / 4);
}

/// C17: numbers that are lost or absurd (the clock, the use of the disk) cost hits, never bytes or errors.
#[test]
fn absurd_numbers_do_no_harm() {
    for numbers in [[u64::MAX; 3], [0, u64::MAX, 1], [u64::MAX, 0, 0]] {
        let dir = tempfile::tempdir().unwrap();
        let cache = open(dir.path());
        fill(&entry(&cache, 1), 1);
        let ledger = File::options()
            .write(true)
            .open(dir.path().join("ledger"))
            .unwrap();
        for (at, number) in (1..).zip(numbers) {
            ledger
                .write_all_at(&u64::to_le_bytes(number), at * 8)
                .unwrap();
        }
        let mut config = config(dir.path());
        config.max_bytes = Some(400 * BLOCK);
        let cache = BlockCache::open(config, Arc::default()).unwrap();
        for n in 1..20 {
            cache.tick(SIZE);
            let Some(entry) = cache.entry(&id(n)).unwrap() else {
                continue;
            };
            entry.publish(0, &content(n)).unwrap();
            audit(&entry, n);
        }
        assert!(cache.stat().unwrap().stored_bytes > 0);
    }
}

// What dies.

const DIR: &str = "STANDPIPE_TEST_CACHE_DIR";

/// Where a process can be killed, in the order in which it comes there.
const POINTS: [&str; 13] = [
    "create: directory",
    "create: data",
    "create: head",
    "create: map",
    "create: renamed",
    "publish: begun",
    "publish: half of the data",
    "publish: data",
    "publish: part of a record",
    "publish: records",
    "evict: chosen",
    "evict: renamed",
    "evict: unlinked",
];

/// Makes, fills and evicts entries.
fn live(dir: &Path) {
    let cache = open(dir);
    for n in 0..3 {
        fill(&entry(&cache, n), n);
    }
    cache.clear().unwrap();
    for n in 0..3 {
        fill(&entry(&cache, n), n);
    }
}

/// Makes what lies in `tmp` two minutes old.
fn age(dir: &Path) {
    let then = SystemTime::now() - Duration::from_secs(120);
    for entry in fs::read_dir(dir.join("tmp")).unwrap() {
        let dir = File::open(entry.unwrap().path()).unwrap();
        dir.set_modified(then).unwrap();
    }
}

/// C2: kill -9 at any point of making, storing and evicting leaves a cache without a wrong byte, which the next process
/// goes on with and cleans up.
#[test]
fn a_kill_at_any_point_is_harmless() {
    if let Some(dir) = std::env::var_os(DIR) {
        return live(Path::new(&dir));
    }
    for (point, after) in POINTS.iter().flat_map(|point| [(point, 0), (point, 2)]) {
        let dir = tempfile::tempdir().unwrap();
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "cache::tests::a_kill_at_any_point_is_harmless"])
            .env(DIR, dir.path())
            .env(fail::CHOICE, format!("{point}:{after}"))
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert_eq!(
            status.signal(),
            Some(9),
            "{point} was not reached {after} times"
        );
        survives(dir.path(), &format!("{point}:{after}"));
    }
}

fn survives(dir: &Path, at: &str) {
    age(dir);
    let cache = open(dir);
    assert_eq!(
        fs::read_dir(dir.join("tmp")).unwrap().count(),
        0,
        "{at}: something is left"
    );
    let mut stored = 0;
    for n in 0..3 {
        let entry = entry(&cache, n);
        stored += audit(&entry, n);
        fill(&entry, n);
        assert!(
            entry.complete().unwrap().mmap().unwrap()[..] == content(n),
            "{at}"
        );
    }
    // What was stored before the kill is there: two objects and two blocks at least once storing had begun anew.
    if at.starts_with("publish") && at.ends_with(":2") {
        assert!(stored >= 2, "{at}: {stored} blocks");
    }
    let audit = cache.verify().unwrap();
    assert_eq!((audit.bad_blocks, audit.damaged_entries), (0, 0), "{at}");
    let stat = cache.stat().unwrap();
    assert_eq!(
        (stat.entries, stat.complete_entries, stat.blocks),
        (3, 3, 12),
        "{at}"
    );
}

/// Between the opens of an entry's two files, another process may throw it out and a third may make it anew: the records of
/// the old one must never vouch for the holes of the new one.
#[test]
fn an_entry_that_is_made_anew_while_it_is_opened_is_no_mixture() {
    let dir = tempfile::tempdir().unwrap();
    fill(&entry(&open(dir.path()), 1), 1);
    let path = dir.path().to_owned();
    let has_happened = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let tell = has_happened.clone();
    fail::at("open: map", move || {
        let others = open(&path);
        others.clear().unwrap();
        // Made, and nothing stored in it.
        drop(entry(&others, 1));
        tell.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    let opened = entry(&open(dir.path()), 1);
    assert!(has_happened.load(std::sync::atomic::Ordering::Relaxed));
    assert_eq!(audit(&opened, 1), 0);
    fill(&opened, 1);
    assert_eq!(audit(&entry(&open(dir.path()), 1), 1), 4);
}

/// Eviction locks an entry before it takes its name away: whoever comes in between has come too late.
#[test]
fn what_is_being_evicted_is_not_held() {
    let dir = tempfile::tempdir().unwrap();
    let entry = entry(&open(dir.path()), 1);
    fill(&entry, 1);
    let data = entry.complete().unwrap().path();
    let evictor = File::open(data).unwrap();
    flock(&evictor, FlockOperation::LockExclusive).unwrap();
    assert_eq!(
        entry.hold().unwrap_err().kind(),
        std::io::ErrorKind::NotFound
    );
    assert!(entry.complete().is_none());
    drop(evictor);
    assert!(entry.hold().is_ok());
}

/// C16: what a dead process was making is removed; what a living one is making is not, whatever the clock says.
#[test]
fn orphans_are_swept_and_children_are_not() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path());
    let make = |name: &str| {
        let tmp = dir.path().join("tmp").join(name);
        fs::create_dir(&tmp).unwrap();
        let data = File::create(tmp.join("data")).unwrap();
        (tmp, data)
    };
    let (dead, _) = make("new-1-0");
    let (alive, data) = make("new-2-0");
    rustix::fs::flock(&data, rustix::fs::FlockOperation::LockShared).unwrap();
    let (ahead, _) = make("new-3-0");
    age(dir.path());
    let tomorrow = SystemTime::now() + Duration::from_secs(86_400);
    File::open(&ahead).unwrap().set_modified(tomorrow).unwrap();
    let (young, _) = make("new-4-0");
    open(dir.path());
    assert_eq!(
        [&dead, &alive, &ahead, &young].map(|path| path.exists()),
        [false, true, false, true]
    );
}

// What the machine loses.

/// C3: after a crash of the machine every block is compared with its checksum before it is served.
#[test]
fn records_without_data_are_found_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("cache");
    let cache = open_after_boot(&dir, "one");
    let first = entry(&cache, 1);
    fill(&first, 1);
    let data = first.complete().unwrap().path();
    // The record of block 1 reached the disk, its data did not.
    let disk = File::options().write(true).open(&data).unwrap();
    disk.write_all_at(&[0; BLOCK as usize], BLOCK).unwrap();

    let cache = open_after_boot(&dir, "two");
    let entry = entry(&cache, 1);
    assert!(!entry.is_complete() && entry.complete().is_none());
    assert_eq!(audit(&entry, 1), 3);
    let metrics = cache.metrics().snapshot();
    assert_eq!(metrics.cache_blocks_verified, 3);
    assert!(metrics.cache_blocks_bad >= 1);
    fill(&entry, 1);
    assert!(entry.complete().unwrap().mmap().unwrap()[..] == content(1));
    // Verified once per boot and host, not once per process.
    let again = open_after_boot(&dir, "two");
    assert!(self::entry(&again, 1).is_complete());
    assert_eq!(again.metrics().snapshot().cache_blocks_verified, 0);
}

#[test]
fn a_host_that_does_not_tell_its_boot_trusts_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let cache = || {
        let mut config = config(dir.path());
        config.boot_id_file = "/nonexistent".into();
        BlockCache::open(config, Arc::default()).unwrap()
    };
    fill(&entry(&cache(), 1), 1);
    let cache = cache();
    assert_eq!(audit(&entry(&cache, 1), 1), 4);
    assert_eq!(cache.metrics().snapshot().cache_blocks_verified, 4);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a crash has left of data and records: never a wrong byte, and what is fetched again is whole.
    #[test]
    fn any_damage_by_a_crash_is_found(holes in proptest::collection::vec((0..SIZE, 1..6000u64, any::<Option<u8>>()), 0..4), records in proptest::collection::vec((0..32usize, any::<u8>()), 0..4)) {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("cache");
        let before = open_after_boot(&dir, "one");
        let first = entry(&before, 1);
        fill(&first, 1);
        let data = first.complete().unwrap().path();
        let file = |path: &Path| File::options().read(true).write(true).open(path).unwrap();
        for (at, len, byte) in holes {
            let len = len.min(SIZE - at) as usize;
            file(&data).write_all_at(&vec![byte.unwrap_or(0); len], at).unwrap();
        }
        let map = file(&data.with_file_name("map"));
        let records_at = map.metadata().unwrap().len() - 32;
        for (at, byte) in records {
            map.write_all_at(&[byte], records_at + at as u64).unwrap();
        }
        let cache = open_after_boot(&dir, "two");
        let entry = entry(&cache, 1);
        audit(&entry, 1);
        fill(&entry, 1);
        prop_assert!(entry.complete().unwrap().mmap().unwrap()[..] == content(1));
    }

    /// A head of any bytes, or a file of another length, is an entry that is made anew.
    #[test]
    fn a_damaged_entry_is_made_anew(at in 0..64u64, byte: u8, cut in proptest::option::of(0..80u64), data_too: bool) {
        let dir = tempfile::tempdir().unwrap();
        let cache = open(dir.path());
        let first = entry(&cache, 1);
        fill(&first, 1);
        let path = first.complete().unwrap().path();
        drop((cache, first));
        let map = File::options().write(true).open(path.with_file_name("map")).unwrap();
        map.write_all_at(&[byte], at).unwrap();
        if let Some(len) = cut {
            map.set_len(len).unwrap();
            if data_too { File::options().write(true).open(&path).unwrap().set_len(len).unwrap(); }
        }
        let cache = open(dir.path());
        cache.stat().unwrap();
        let entry = entry(&cache, 1);
        audit(&entry, 1);
        fill(&entry, 1);
        prop_assert_eq!(audit(&entry, 1), 4);
        let checksum = entry.checksum();
        prop_assert!(checksum.is_none());
    }
}

#[test]
fn verification_takes_out_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    for n in 0..2 {
        fill(&entry(&cache, n), n);
    }
    let path = |n| entry(&cache, n).complete().unwrap().path();
    let data = File::options().write(true).open(path(0)).unwrap();
    data.write_all_at(b"\0", 2 * BLOCK + 7).unwrap();
    fs::write(path(1).with_file_name("map"), "hostile").unwrap();
    let stat = cache.stat().unwrap();
    assert_eq!((stat.entries, stat.damaged_entries), (1, 1));
    let found = cache.verify().unwrap();
    assert_eq!(
        (found.sound_blocks, found.bad_blocks, found.damaged_entries),
        (3, 1, 1)
    );
    let cache = open(dir.path());
    assert_eq!(
        (audit(&entry(&cache, 0), 0), audit(&entry(&cache, 1), 1)),
        (3, 0)
    );
}

// Directories.

/// C11: a cache of another format is refused with what to do, and is left as it is; so is a directory that is none.
#[test]
fn other_formats_and_other_directories_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    fill(&entry(&open(dir.path()), 1), 1);
    let format = dir.path().join("FORMAT");
    let ours = fs::read_to_string(&format).unwrap();
    for text in [
        ours.replace("format 1", "format 2"),
        ours.replace("format 1", "format 0"),
        ours.replace("4096", "12345"),
        "something else".into(),
        String::new(),
    ] {
        fs::write(&format, &text).unwrap();
        let error = BlockCache::open(config(dir.path()), Arc::default())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("directory") && error.contains(&*dir.path().to_string_lossy()),
            "{text}: {error}"
        );
        assert_eq!(fs::read_to_string(&format).unwrap(), text);
    }
    fs::write(&format, &ours).unwrap();
    assert_eq!(audit(&entry(&open(dir.path()), 1), 1), 4);

    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("thesis.tex"), "").unwrap();
    let error = BlockCache::open(config(home.path()), Arc::default())
        .unwrap_err()
        .to_string();
    assert!(error.contains("thesis.tex"), "{error}");
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);
}

#[test]
fn the_directory_keeps_the_block_size_that_it_was_made_with() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path());
    let cache = BlockCache::open(CacheConfig::new(dir.path()), Arc::default()).unwrap();
    assert_eq!(cache.block_bytes(), BLOCK);
    fill(&entry(&cache, 1), 1);
}

/// C12: everything in the cache has the permissions of its directory, whatever the umask; a directory that is made is
/// private.
#[test]
fn permissions_follow_the_directory() {
    let old = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    for (mode, dirs, files) in [
        (0o2770, 0o2770, 0o660),
        (0o700, 0o700, 0o600),
        (0o755, 0o755, 0o644),
    ] {
        let root = tempfile::tempdir().unwrap();
        fs::set_permissions(root.path(), fs::Permissions::from_mode(mode)).unwrap();
        let cache = open(root.path());
        fill(&entry(&cache, 1), 1);
        cache.evict(u64::MAX).unwrap();
        let mut seen = 0;
        walk(root.path(), &mut |path, found| {
            let expected = if found.is_dir() { dirs } else { files };
            assert_eq!(found.mode() & 0o7777, expected, "{}", path.display());
            seen += 1;
        });
        assert!(seen >= 8, "{seen}");
    }
    let root = tempfile::tempdir().unwrap();
    open(&root.path().join("a/b"));
    assert_eq!(
        root.path().join("a/b").metadata().unwrap().mode() & 0o777,
        0o700
    );
    rustix::process::umask(old);
}

fn walk(dir: &Path, see: &mut impl FnMut(&Path, &fs::Metadata)) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let found = path.symlink_metadata().unwrap();
        see(&path, &found);
        if found.is_dir() {
            walk(&path, see);
        }
    }
}

#[test]
fn many_that_open_and_make_at_once_agree() {
    let dir = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let cache = open(dir.path());
                for n in 0..10 {
                    fill(&entry(&cache, n), n);
                }
            });
        }
    });
    let cache = open(dir.path());
    assert_eq!(cache.stat().unwrap().complete_entries, 10);
    assert_eq!(cache.verify().unwrap().bad_blocks, 0);
    assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
}

#[test]
fn a_thousand_objects_need_few_descriptors() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.open_entries = 8;
    let cache = BlockCache::open(config, Arc::default()).unwrap();
    let before = fs::read_dir("/proc/self/fd").unwrap().count();
    for n in 0..100 {
        drop(entry(&cache, n));
    }
    let opened = fs::read_dir("/proc/self/fd").unwrap().count() - before;
    assert!(opened <= 3 * 8, "{opened}");
}

/// A child of a fork claims for itself: what its parent has claimed is not its own, and outlives it.
#[test]
#[expect(unsafe_code, reason = "fork is what is tested")]
fn a_forked_child_claims_for_itself() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let entry = entry(&cache, 1);
    let claim = flight::Claim::take(&entry, 0..2, false);
    assert!(matches!(claim, flight::Turn::Mine(_)));
    let turn = |blocks| match flight::Claim::take(&entry, blocks, false) {
        flight::Turn::Mine(claim) => claim.blocks.end,
        flight::Turn::Elsewhere => 99,
        _ => 98,
    };
    // SAFETY: the child makes system calls, allocates, and leaves without unwinding; the harness's thread waits.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let right = (turn(0..2), turn(2..4)) == (99, 4);
        // SAFETY: as above.
        unsafe { libc::_exit(i32::from(!right)) };
    }
    let mut status = -1;
    // SAFETY: `status` lives through the call.
    unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert_eq!(status, 0);
    // The child's end has not freed it.
    let other = open(dir.path());
    let theirs = self::entry(&other, 1);
    assert!(matches!(
        flight::Claim::take(&theirs, 0..1, false),
        flight::Turn::Elsewhere
    ));
    assert!(matches!(
        flight::Claim::take(&theirs, 1..4, false),
        flight::Turn::Elsewhere
    ));
    assert!(matches!(
        flight::Claim::take(&theirs, 0..1, true),
        flight::Turn::Mine(_)
    ));
    drop(claim);
    assert!(matches!(
        flight::Claim::take(&theirs, 0..4, false),
        flight::Turn::Mine(_)
    ));
}

/// Blocks are claimed as far as they are free.
#[test]
fn a_claim_ends_where_anothers_begins() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (open(dir.path()), open(dir.path()));
    let (a, b) = (entry(&a, 1), entry(&b, 1));
    let blocks = |turn| match turn {
        flight::Turn::Mine(claim) => claim,
        turn => panic!("{turn:?}"),
    };
    let held = blocks(flight::Claim::take(&a, 2..3, false));
    let first = blocks(flight::Claim::take(&b, 0..4, false));
    assert_eq!(first.blocks, 0..2);
    // In the same process too.
    assert_eq!(blocks(flight::Claim::take(&a, 3..4, false)).blocks, 3..4);
    assert!(matches!(
        flight::Claim::take(&a, 2..4, false),
        flight::Turn::Here(_)
    ));
    drop((held, first));
    fill(&a, 1);
    assert!(matches!(
        flight::Claim::take(&b, 0..4, false),
        flight::Turn::Done
    ));
}
