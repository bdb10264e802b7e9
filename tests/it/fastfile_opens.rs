//! How files are opened on a mount: passed through to the kernel, by way of us, or without a word.
//!
//! These tests mount, and they need a kernel that passes files through (Linux 6.9, as root); without, they fail and say so.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use fake_s3::FakeS3;
use serde_json::Value;

use crate::fastfile::{BOTH_WAYS, Mounted, bytes, mapped, server, wait_for};

/// What passthrough takes of the kernel, said where it lacks that.
fn needs_passthrough() {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-', '\n']);
    let mut number = || numbers.next().unwrap().parse::<u32>().unwrap();
    let version = (number(), number());
    assert!(
        version >= (6, 9),
        "this kernel is {}: FUSE passes files through from Linux 6.9 on, so this promise can't be tested here",
        release.trim()
    );
}

fn mounted(server: &FakeS3, uri: &str, more: &[&str]) -> Mounted {
    let dir = tempfile::tempdir().unwrap();
    Mounted::at(server, uri, dir, &[more, &["--json"]].concat())
}

fn count(metrics: &Value, name: &str) -> u64 {
    metrics[name].as_u64().unwrap()
}

/// Reads and maps a file, and says how many of its opens the kernel asked for and how many were passed through.
fn opens(mount: Mounted, name: &str, content: &[u8]) -> (u64, u64) {
    assert!(fs::read(mount.path(name)).unwrap() == content);
    let one = File::open(mount.path(name)).unwrap();
    let two = File::open(mount.path(name)).unwrap();
    mapped(&one, content);
    drop(one);
    mapped(&two, content);
    drop(two);
    let metrics = mount.counted();
    let passed = count(&metrics, "passthrough_opens");
    (count(&metrics, "opens"), passed)
}

/// M16: local files are passed through to the kernel where it allows that, and read by way of us where not.
#[test]
fn local_files_are_passed_through() {
    needs_passthrough();
    let server = FakeS3::start().unwrap();
    let data = tempfile::tempdir().unwrap();
    let content = bytes(6, 3_000_000);
    fs::create_dir(data.path().join("d")).unwrap();
    fs::write(data.path().join("d/f"), &content).unwrap();
    let uri = format!("file://{}", data.path().display());
    let opens = |more: &[&str]| opens(mounted(&server, &uri, more), "d/f", &content);
    assert_eq!(opens(&[]), (3, 3));
    assert_eq!(opens(&["-o", "no_passthrough"]), (3, 0));
    assert_eq!(opens(&["--open", "none"]), (0, 0));
}

/// M16: what lies whole in the cache is passed through as well, from the first open after it was stored.
#[test]
fn cached_files_are_passed_through() {
    needs_passthrough();
    let content = bytes(7, 3_000_000);
    let server = server(&[("d/f", &content)]);
    let cache = tempfile::tempdir().unwrap();
    let cache = cache.path().to_str().unwrap();
    let opens = |more: &[&str]| {
        let more = [&["--cache", cache, "--cache-size", "1GiB"], more].concat();
        opens(mounted(&server, "s3://b/d/", &more), "f", &content)
    };
    let (asked, _) = opens(&[]);
    assert_eq!(asked, 3, "a mean of 3 MB is not small");
    assert_eq!(opens(&[]), (3, 3));
    assert_eq!(opens(&["-o", "no_passthrough"]), (3, 0));
    assert_eq!(opens(&["-o", "open=none"]), (0, 0));
}

/// M21: where files are small the kernel asks neither for opens nor, once it has read a file, for its bytes.
#[test]
fn small_files_are_read_without_being_opened() {
    let content: Vec<_> = (0..40).map(|at| bytes(at, 90_000 + at as usize)).collect();
    let keys: Vec<_> = (0..40).map(|at| format!("d/{at}")).collect();
    let pairs = keys.iter().zip(&content);
    let pairs: Vec<_> = pairs
        .map(|(key, content)| (key.as_str(), &content[..]))
        .collect();
    let server = server(&pairs);
    let read = |mount: &Mounted| {
        for (at, content) in content.iter().enumerate() {
            assert!(
                fs::read(mount.path(&at.to_string())).unwrap() == *content,
                "{at}"
            );
        }
    };
    let mount = mounted(&server, "s3://b/d/", &[]);
    read(&mount);
    let sent = server.stats().requests;
    server.replace(
        "b",
        "d/7",
        b"a later version, which a snapshot knows nothing of",
    );
    read(&mount);
    assert_eq!(server.stats().requests, sent, "the kernel has it all");
    assert_eq!(count(&mount.counted(), "opens"), 0);

    server.replace("b", "d/7", &content[7]);
    let mount = mounted(&server, "s3://b/d/", &["--open", "per-file"]);
    read(&mount);
    assert_eq!(count(&mount.counted(), "opens"), 40);
}

/// M21: a direct read has the server's bytes each time, whether or not the file was opened with our knowing.
#[test]
fn direct_reads_ask_each_time() {
    for more in BOTH_WAYS {
        let content = bytes(8, 300_000);
        let server = server(&[("d/f", &content)]);
        let mount = mounted(&server, "s3://b/d/", &more);
        let direct = |path: &Path| {
            let flags = rustix::fs::OFlags::DIRECT.bits() as i32;
            let mut options = OpenOptions::new();
            let file = options.read(true).custom_flags(flags).open(path).unwrap();
            let mut all = vec![0; content.len()];
            file.read_exact_at(&mut all[..1000], 0)?;
            file.read_exact_at(&mut all[1000..], 1000).map(|()| all)
        };
        assert!(direct(&mount.path("f")).unwrap() == content);
        assert!(direct(&mount.path("f")).unwrap() == content);
        server.replace("b", "d/f", &bytes(9, 300_000));
        let stale = rustix::io::Errno::STALE.raw_os_error();
        // As long as the close before is on its way to us, what it had in memory may be given once more.
        wait_for("the new version is met", || {
            match direct(&mount.path("f")) {
                Ok(read) => {
                    assert!(read == content, "{more:?}: bytes of another version");
                    false
                }
                Err(error) => {
                    assert_eq!(error.raw_os_error(), Some(stale), "{more:?}");
                    true
                }
            }
        });
    }
}
