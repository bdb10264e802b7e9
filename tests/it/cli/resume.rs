//! Downloads that end before they are done, and the runs after them.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::time::Duration;

use fake_s3::{Effect, FakeS3, Operation, Rule};
use rustix::process::Signal;

use super::{code, command, ended, files, server, signal, text, wait_for};
use crate::cache::Mount;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 24 * MIB + 123;
const KEY: &str = "big/object";
/// So that the bytes in flight are few beside the object's.
const MEMORY: u64 = 8 * MIB;

/// What a server has to send is slow enough that a command can be stopped in the middle of it.
fn slow_server(seed: u64) -> FakeS3 {
    let server = server();
    server.put_synthetic("bkt", KEY, SIZE, seed);
    slow_down(&server);
    server
}

fn slow_down(server: &FakeS3) {
    let bandwidth = Effect::TotalBandwidth {
        bytes_per_second: 16 * MIB,
    };
    server.script("bkt/big/", vec![Rule::new(bandwidth)]);
}

fn start(server: &FakeS3, target: &Path) -> Child {
    let target = target.display().to_string();
    let memory = MEMORY.to_string();
    let args = [
        "download",
        "s3://bkt/big/",
        &target,
        "--part-size",
        "1MiB",
        "--memory",
        &memory,
    ];
    command(server, &args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The temporary file whose name ends so.
fn left(target: &Path, suffix: &str) -> Option<PathBuf> {
    let mut entries = std::fs::read_dir(target).ok()?;
    entries.find_map(|entry| {
        let path = entry.ok()?.path();
        let name = path.file_name()?.to_str()?;
        (name.starts_with(".standpipe-") && name.ends_with(suffix)).then_some(path)
    })
}

/// How many blocks are recorded: 8 bytes each, behind a line.
fn recorded_blocks(target: &Path) -> u64 {
    let record = left(target, ".sums").and_then(|path| std::fs::read(path).ok());
    record.map_or(0, |record| {
        let header = record.iter().position(|byte| *byte == b'\n');
        header.map_or(0, |at| (record.len() - at - 1) as u64 / 8)
    })
}

/// Ends a download by `how` once it has recorded so many blocks.
fn interrupted(server: &FakeS3, target: &Path, blocks: u64, how: Signal) -> Output {
    let child = start(server, target);
    wait_for("some of the file is recorded", || {
        recorded_blocks(target) >= blocks
    });
    signal(&child, how);
    ended(child)
}

fn is_whole(target: &Path, seed: u64) {
    let mut expected = vec![0; SIZE as usize];
    fake_s3::content(seed, 0, &mut expected);
    assert_eq!(files(target), ["object"]);
    assert!(std::fs::read(target.join("object")).unwrap() == expected);
}

/// Bytes that were asked for, each as often as it was.
fn asked_bytes(server: &FakeS3) -> u64 {
    let gets = server
        .log()
        .into_iter()
        .filter(|entry| entry.operation == Operation::Get);
    gets.map(|entry| {
        let range = entry.range.expect("it is fetched in parts");
        let (start, end) = range
            .strip_prefix("bytes=")
            .and_then(|range| range.split_once('-'))
            .unwrap();
        end.parse::<u64>().unwrap() + 1 - start.parse::<u64>().unwrap()
    })
    .sum()
}

/// Runs the download to its end, at full speed, and tells how much of it was there.
fn resumed_bytes(server: &FakeS3, target: &Path) -> u64 {
    server.clear_script();
    let path = target.display().to_string();
    let args = ["download", "s3://bkt/big/", &path, "--json"];
    let output = super::run(server, &args);
    assert_eq!(code(&output), 0, "{}", text(&output.stdout));
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let (resumed, written) = (&summary["resumed_bytes"], &summary["bytes"]);
    let resumed = resumed.as_u64().unwrap();
    assert!(resumed + written.as_u64().unwrap() >= SIZE, "{summary}");
    resumed
}

/// F5: however often it is killed, a download goes on where it was; what is fetched twice is what was in flight, and the
/// last MiB.
#[test]
fn a_download_that_is_killed_again_and_again_comes_to_its_end() {
    let server = slow_server(1);
    let target = tempfile::tempdir().unwrap();
    let (mut kills, mut random) = (0, 1_u64);
    loop {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let blocks = recorded_blocks(target.path()) + (random >> 33 & 3);
        let mut child = start(&server, target.path());
        wait_for("it has gone on, or is done", || {
            recorded_blocks(target.path()) > blocks || child.try_wait().unwrap().is_some()
        });
        std::thread::sleep(Duration::from_micros(random >> 40 & 0x3fff));
        child.kill().unwrap();
        let output = ended(child);
        if code(&output) == 0 {
            break;
        }
        assert_eq!(output.status.code(), None, "{}", text(&output.stderr));
        kills += 1;
        assert!(kills < 100);
    }
    is_whole(target.path(), 1);
    // On a busy machine fewer, because a run may be done before it is looked at.
    assert!(kills >= 1);
    let most = SIZE + kills * (MEMORY + MIB);
    let asked = asked_bytes(&server);
    assert!((SIZE..=most).contains(&asked), "{asked}, {kills} kills");
}

/// F3: what Ctrl-C and SIGTERM leave is told, hidden, and where the next run goes on.
#[test]
fn an_interrupted_download_says_that_it_goes_on_and_does() {
    for (how, expected) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let server = slow_server(2);
        let target = tempfile::tempdir().unwrap();
        let output = interrupted(&server, target.path(), 4, how);
        let said = text(&output.stderr);
        assert_eq!(code(&output), expected, "{said}");
        let lines: Vec<&str> = said.lines().collect();
        assert!(
            matches!(&lines[..], [kept, "standpipe: cancelled"]
                if kept.ends_with("MiB of unfinished files are kept: run again to continue")),
            "{said}"
        );
        assert!(!target.path().join("object").exists());
        let kept = recorded_blocks(target.path()) * MIB;
        let part = left(target.path(), ".part").unwrap();
        assert_eq!(part.metadata().unwrap().len(), kept);
        assert_eq!(resumed_bytes(&server, target.path()), kept);
        is_whole(target.path(), 2);
    }
}

/// F6: nothing of an older version gets into a file.
#[test]
fn an_object_that_is_replaced_between_two_runs_is_fetched_anew() {
    let server = slow_server(3);
    let target = tempfile::tempdir().unwrap();
    interrupted(&server, target.path(), 4, Signal::KILL);
    server.put_synthetic("bkt", KEY, SIZE, 4);
    assert_eq!(resumed_bytes(&server, target.path()), 0);
    is_whole(target.path(), 4);
}

/// F6: neither is what somebody else has written, nor what is missing.
#[test]
fn a_file_that_was_tampered_with_is_mended() {
    let server = slow_server(5);
    let target = tempfile::tempdir().unwrap();
    let interrupt = || {
        interrupted(&server, target.path(), 4, Signal::INT);
        let part = left(target.path(), ".part").unwrap();
        std::fs::File::options().write(true).open(part).unwrap()
    };
    let part = interrupt();
    std::os::unix::fs::FileExt::write_all_at(&part, b"garbled", 2 * MIB).unwrap();
    assert_eq!(resumed_bytes(&server, target.path()), 2 * MIB);
    is_whole(target.path(), 5);

    std::fs::remove_file(target.path().join("object")).unwrap();
    slow_down(&server);
    interrupt().set_len(3 * MIB + 7).unwrap();
    assert_eq!(resumed_bytes(&server, target.path()), 3 * MIB);
    is_whole(target.path(), 5);
}

/// F7: where the whole does not have the object's checksum, all of it is fetched once more, and only then given up.
#[test]
fn a_resumed_file_with_a_wrong_checksum_is_fetched_once_more() {
    let server = slow_server(6);
    let target = tempfile::tempdir().unwrap();
    interrupted(&server, target.path(), 4, Signal::INT);
    server.clear_log();
    server.clear_script();
    server.script(
        "bkt/big/",
        vec![Rule::new(Effect::WrongChecksum).operations(&[Operation::Head])],
    );
    let output = ended(start(&server, target.path()));
    assert_eq!(code(&output), 5, "{}", text(&output.stderr));
    assert!(files(target.path()).is_empty());
    let asked = asked_bytes(&server);
    assert!((SIZE + MIB..2 * SIZE).contains(&asked), "{asked}");
}

/// F8: of two downloads of the same file the second says so and leaves it alone.
#[test]
fn two_downloads_do_not_meet_in_a_file() {
    let server = slow_server(7);
    let target = tempfile::tempdir().unwrap();
    let first = start(&server, target.path());
    wait_for("the first has begun", || {
        recorded_blocks(target.path()) >= 2
    });
    signal(&first, Signal::STOP);
    let second = ended(start(&server, target.path()));
    signal(&first, Signal::CONT);
    let said = text(&second.stderr);
    assert_eq!(code(&second), 2, "{said}");
    assert!(said.contains("another standpipe is downloading"), "{said}");
    assert_eq!(code(&ended(first)), 0);
    is_whole(target.path(), 7);
}

/// F8: nor do any number of them that begin at the same moment.
#[test]
fn downloads_that_begin_together_leave_a_whole_file() {
    let server = slow_server(8);
    let target = tempfile::tempdir().unwrap();
    interrupted(&server, target.path(), 2, Signal::KILL);
    let children: Vec<Child> = (0..4).map(|_| start(&server, target.path())).collect();
    let codes: Vec<i32> = children
        .into_iter()
        .map(|child| code(&ended(child)))
        .collect();
    assert!(codes.contains(&0), "{codes:?}");
    assert!(codes.iter().all(|code| [0, 2].contains(code)), "{codes:?}");
    is_whole(target.path(), 8);
}

/// F4: a disk that is full in the middle is told, and keeps what it has for a run with more room.
#[test]
fn a_full_disk_keeps_what_it_has() {
    let disk = Mount::tmpfs("size=28m");
    let server = slow_server(9);
    let target = disk.root().join("in");
    std::fs::create_dir(&target).unwrap();
    interrupted(&server, &target, 4, Signal::INT);
    let kept = recorded_blocks(&target);
    // The space of what is missing was given back, and is somebody else's now.
    let filler = disk.root().join("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    let full = std::iter::repeat_with(|| file.write_all(&[1; 4096])).find_map(Result::err);
    assert_eq!(full.unwrap().kind(), std::io::ErrorKind::StorageFull);
    let output = ended(start(&server, &target));
    let said = text(&output.stderr);
    assert_eq!(code(&output), 1, "{said}");
    assert!(
        said.contains("No space left") && said.contains("run again to continue"),
        "{said}"
    );
    drop(file);
    std::fs::remove_file(filler).unwrap();
    assert_eq!(resumed_bytes(&server, &target), kept * MIB);
    is_whole(&target, 9);
}
