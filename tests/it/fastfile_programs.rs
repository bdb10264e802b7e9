//! FastFile mode under programs that others wrote: what they read through a mount is what they read from a copy.

use std::path::{Path, PathBuf};
use std::process::Command;

use fake_s3::FakeS3;

use crate::fastfile::Mounted;

fn run(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}: `scripts/setup` installs it"));
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// `tests/programs/files.py` with the packages that training jobs use.
fn files(what: &str, dir: &Path) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let script = root.join("tests/programs/files.py");
    run(Command::new(root.join(".venv/bin/python"))
        .arg(script)
        .arg(what)
        .arg(dir))
}

/// Puts every file below `dir` into bucket `b`, under its path.
fn upload(server: &FakeS3, dir: &Path) {
    for path in files_below(dir) {
        let key = path.strip_prefix(dir).unwrap().to_str().unwrap();
        server.put_file("b", key, &path).unwrap();
    }
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .flat_map(|path| match path.is_dir() {
            true => files_below(&path),
            false => vec![path],
        })
        .collect()
}

/// M17: images by Pillow in the manner of ImageFolder, parquet by pyarrow, arrays by `np.load(mmap_mode="r")`, a database by
/// sqlite: cold, again, and over a cache.
#[test]
fn the_readers_of_training_jobs_find_the_same_in_a_mount_as_in_a_copy() {
    let (copy, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    files("make", copy.path());
    let server = FakeS3::start().unwrap();
    upload(&server, copy.path());
    let expected = files("read", copy.path());
    assert_eq!(expected.lines().count(), 5);
    let cached = ["--cache", cache.path().to_str().unwrap()];
    for flags in [&[][..], &cached[..], &cached[..]] {
        let dir = tempfile::tempdir().unwrap();
        let mount = Mounted::at(&server, "s3://b/", dir, flags);
        assert_eq!(files("read", &mount.path("")), expected, "{flags:?}");
        assert_eq!(files("read", &mount.path("")), expected, "{flags:?}, again");
    }
}

/// Runs fio on `file` in `dir`; it knows what every block must hold.
fn fio(dir: &Path, state: &Path, more: &[&str]) -> std::process::Output {
    Command::new("fio")
        // Where it leaves notes of what failed.
        .current_dir(state)
        // The order matters: a directory holds for the names behind it.
        .arg(format!("--directory={}", dir.display()))
        .args(["--name=job", "--filename=file", "--size=32m", "--minimal"])
        .args(["--verify=crc32c", "--verify_interval=4096"])
        .args(["--verify_fatal=1", "--randseed=7"])
        .args(more)
        .output()
        .unwrap_or_else(|error| panic!("fio: {error}: `scripts/setup` installs it"))
}

/// M17: fio reads in order and at random, by many jobs at once and asynchronously, and verifies the checksum of every
/// block that it reads.
#[test]
fn fio_verifies_every_block() {
    let (copy, cache, state) = (
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
    );
    let in_order = ["--rw=read", "--bs=1m"];
    let small = ["--rw=randread", "--bs=4k", "--io_size=2m", "--numjobs=16"];
    let large = ["--rw=randread", "--bs=128k", "--io_size=8m", "--numjobs=16"];
    let deep = [
        "--rw=randread",
        "--bs=128k",
        "--ioengine=libaio",
        "--iodepth=16",
        "--direct=1",
    ];
    let check = |dir: &Path, more: &[&str]| {
        let output = fio(dir, state.path(), more);
        assert!(output.status.success(), "{more:?}: {output:?}");
    };
    check(copy.path(), &["--rw=write", "--bs=1m", "--do_verify=0"]);
    let server = FakeS3::start().unwrap();
    let file = copy.path().join("file");
    server.put_file("b", "right/file", &file).unwrap();
    let cached = ["--cache", cache.path().to_str().unwrap()];
    for flags in [&[][..], &cached[..]] {
        for pattern in [&in_order[..], &small, &large, &deep] {
            // Each begins with an empty page cache, as a new mount has it.
            let dir = tempfile::tempdir().unwrap();
            let mount = Mounted::at(&server, "s3://b/right/", dir, flags);
            check(&mount.path(""), pattern);
        }
    }
    // It finds what is wrong: one bit of one block.
    let mut wrong = std::fs::read(file).unwrap();
    wrong[(20 << 20) + 300] ^= 1;
    server.put("b", "wrong/file", &wrong);
    let mount = Mounted::new(&server, "s3://b/wrong/");
    let output = fio(&mount.path(""), state.path(), &in_order);
    assert!(!output.status.success(), "{output:?}");
}
