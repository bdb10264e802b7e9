//! FastFile mode: the built command mounts a scripted S3, and programs use the files.
//!
//! These tests mount, so they need root and `/dev/fuse`; without, they fail and say how to get it.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use fake_s3::{Effect, FakeS3, Latency, Operation, Rule};
use standpipe::cache::{BlockCache, CacheConfig};
use standpipe::client::{
    LimitClient, LimitConfig, ObjectClient, RetryClient, RetryConfig, S3Client, Transport,
};
use standpipe::fastfile::fuse::{self, Mount, MountOptions, Windows};
use standpipe::fastfile::read::{OpenFiles, ReadConfig};
use standpipe::fastfile::tree::{Namespace, Root};
use standpipe::metrics::Metrics;
use standpipe::runtime;
use tempfile::TempDir;

use crate::world::s3_config;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A mount and the process that serves it.
pub(crate) struct Mounted {
    child: Child,
    dir: TempDir,
}

fn needs_fuse() {
    assert!(
        Path::new("/dev/fuse").exists() && rustix::process::geteuid().is_root(),
        "these tests mount: run them as root where /dev/fuse exists (`modprobe fuse`; for a container \
         `--device /dev/fuse --cap-add SYS_ADMIN`)"
    );
}

pub(crate) fn wait_for(what: &str, mut happened: impl FnMut() -> bool) {
    let started = Instant::now();
    while !happened() {
        assert!(started.elapsed() < PATIENCE, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn standpipe(server: &FakeS3, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_standpipe"));
    command
        .env("AWS_ENDPOINT_URL", server.endpoint())
        .env("AWS_REGION", "us-east-1")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("STANDPIPE_NO_SIGN_REQUEST", "true")
        .args(args)
        .stdin(Stdio::null());
    command
}

fn is_alive(dir: &Path) -> bool {
    fuse::is_mounted(dir) && rustix::fs::statvfs(dir).is_ok()
}

impl Mounted {
    pub(crate) fn at(server: &FakeS3, uri: &str, dir: TempDir, more: &[&str]) -> Self {
        needs_fuse();
        let path = dir.path().to_str().unwrap().to_owned();
        let mut args = vec!["mount", uri, &path];
        args.extend(more);
        let mut child = standpipe(server, &args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        wait_for("the mount is there", || {
            if let Some(status) = child.try_wait().unwrap() {
                let mut said = String::new();
                let _ = child.stderr.take().unwrap().read_to_string(&mut said);
                panic!("mount ended with {status}: {said}");
            }
            is_alive(dir.path())
        });
        Self { child, dir }
    }

    pub(crate) fn new(server: &FakeS3, uri: &str) -> Self {
        Self::at(server, uri, tempfile::tempdir().unwrap(), &[])
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// Unmounts; what it counted, of a mount with `--json`.
    pub(crate) fn counted(mut self) -> serde_json::Value {
        fuse::unmount(self.dir.path(), true).unwrap();
        let (code, said) = self.ended();
        assert_eq!(code, Some(0), "{said}");
        let mut text = String::new();
        let stdout = self.child.stdout.take().unwrap();
        { stdout }.read_to_string(&mut text).unwrap();
        let report: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(report["command"], "mount");
        report["metrics"].clone()
    }

    fn signal(&mut self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    fn ended(&mut self) -> (Option<i32>, String) {
        let child = &mut self.child;
        wait_for("the daemon ended", || child.try_wait().unwrap().is_some());
        let mut said = String::new();
        let stderr = child.stderr.take().unwrap();
        let _ = { stderr }.read_to_string(&mut said);
        (child.wait().unwrap().code(), said)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if fuse::is_mounted(self.dir.path()) {
            let _ = fuse::unmount(self.dir.path(), true);
        }
    }
}

pub(crate) fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fake_s3::content(seed, 0, &mut bytes);
    bytes
}

pub(crate) fn server(keys: &[(&str, &[u8])]) -> FakeS3 {
    let server = FakeS3::start().unwrap();
    for (key, content) in keys {
        server.put("b", key, content);
    }
    server
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn errno<T>(result: std::io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

fn xattr(path: &Path, name: &str) -> String {
    let mut value = [0; 2048];
    let len = rustix::fs::getxattr(path, name, &mut value[..]).unwrap();
    String::from_utf8(value[..len].to_vec()).unwrap()
}

/// M1, M2, M3, M5: every key of a bucket is a file, with its size, date, address and bytes.
#[test]
fn odd_keys_are_files() {
    let long = "k".repeat(1000);
    let server = server(&[
        ("p/", b""),
        ("p/a", b"object"),
        ("p/a-b", b"between"),
        ("p/a/b", b"inside"),
        ("p//x", b"double slash"),
        ("p/../up", b"up"),
        ("p/empty/", b""),
        ("p/r\u{e4}ksm\u{f6}rg\u{e5}s \u{1f990}%+&", b"unicode"),
        ("p/zero", b""),
        (&format!("p/{long}"), b"long"),
    ]);
    let mount = Mounted::new(&server, "s3://b/p/");
    let all = names(mount.dir.path());
    assert_eq!(all.len(), 9, "{all:?}");
    for (name, content) in [
        (".s3key%a%file", "object"),
        ("a-b", "between"),
        ("a/b", "inside"),
        (".s3key%/x", "double slash"),
        (".s3key%%2E%2E/up", "up"),
        ("r\u{e4}ksm\u{f6}rg\u{e5}s \u{1f990}%+&", "unicode"),
        ("zero", ""),
    ] {
        assert_eq!(mount.read(name), content, "{name}");
        assert_eq!(
            fs::metadata(mount.path(name)).unwrap().len(),
            content.len() as u64
        );
    }
    let cut = all
        .iter()
        .find(|name| name.starts_with(".s3key%kkk"))
        .unwrap();
    assert_eq!(mount.read(cut), "long");
    assert_eq!(
        xattr(&mount.path(cut), "user.standpipe.uri"),
        format!("s3://b/p/{long}")
    );
    assert_eq!(
        xattr(&mount.path(".s3key%a%file"), "user.standpipe.uri"),
        "s3://b/p/a"
    );
    assert_eq!(xattr(&mount.path("a-b"), "user.standpipe.etag").len(), 34);
    assert!(names(&mount.path("empty")).is_empty());
    let file = fs::metadata(mount.path("a-b")).unwrap();
    assert_eq!(
        (file.permissions().mode() & 0o7777, file.nlink()),
        (0o444, 1)
    );
    let age = file.modified().unwrap().elapsed().unwrap();
    assert!(age < Duration::from_secs(600), "the object's date: {age:?}");
    let dir = fs::metadata(mount.path("a")).unwrap();
    assert_eq!(dir.permissions().mode() & 0o7777, 0o555);
    let space = rustix::fs::statvfs(mount.dir.path()).unwrap();
    assert_eq!((space.f_bavail, space.f_files), (0, 8));
}

/// M6: nothing can be written.
#[test]
fn every_write_is_erofs() {
    let server = server(&[("d/f", b"content")]);
    let mount = Mounted::new(&server, "s3://b/d/");
    let (f, new) = (mount.path("f"), mount.path("new"));
    let erofs = Some(rustix::io::Errno::ROFS.raw_os_error());
    assert_eq!(errno(OpenOptions::new().write(true).open(&f)), erofs);
    assert_eq!(errno(OpenOptions::new().append(true).open(&f)), erofs);
    assert_eq!(
        errno(OpenOptions::new().write(true).truncate(true).open(&f)),
        erofs
    );
    assert_eq!(errno(File::create(&new)), erofs);
    assert_eq!(errno(fs::create_dir(&new)), erofs);
    assert_eq!(errno(fs::remove_file(&f)), erofs);
    assert_eq!(errno(fs::rename(&f, &new)), erofs);
    assert_eq!(errno(fs::hard_link(&f, &new)), erofs);
    assert_eq!(errno(std::os::unix::fs::symlink("f", &new)), erofs);
    assert_eq!(
        errno(fs::set_permissions(&f, fs::Permissions::from_mode(0o777))),
        erofs
    );
    let set = rustix::fs::setxattr(&f, "user.x", b"1", rustix::fs::XattrFlags::empty());
    assert_eq!(set.map_err(|error| error.raw_os_error()).err(), erofs);
    assert_eq!(mount.read("f"), "content");
}

/// M7: a replaced object is ESTALE and a refused one EACCES, each with a line that names object and cause.
#[test]
fn failures_have_their_errno_and_a_log_line() {
    let big = bytes(1, 3 << 20);
    let server = server(&[("d/replaced", &big), ("d/refused", &big), ("d/gone", &big)]);
    let mounts = BOTH_WAYS.map(|more| {
        let dir = tempfile::tempdir().unwrap();
        Mounted::at(&server, "s3://b/d/", dir, &more)
    });
    server.replace("b", "d/replaced", &bytes(2, 3 << 20));
    server.delete("b", "d/gone");
    let denied = Effect::Status {
        status: 403,
        code: String::new(),
    };
    server.script("b/d/refused", vec![Rule::new(denied)]);
    mounts.into_iter().for_each(fails_and_says_so);
}

fn fails_and_says_so(mut mount: Mounted) {
    for (name, expected) in [
        ("replaced", rustix::io::Errno::STALE),
        ("gone", rustix::io::Errno::STALE),
        ("refused", rustix::io::Errno::ACCESS),
    ] {
        let failed = errno(fs::read(mount.path(name)));
        assert_eq!(failed, Some(expected.raw_os_error()), "{name}");
    }
    mount.signal(rustix::process::Signal::TERM);
    let (_, log) = mount.ended();
    for line in [
        "s3://b/d/replaced",
        "fails with ESTALE",
        "s3://b/d/refused",
        "fails with EACCES",
    ] {
        assert!(log.contains(line), "{line}: {log}");
    }
}

/// M8: what retries heal is not seen.
#[test]
fn faults_are_healed() {
    let content = bytes(3, 5_000_001);
    let server = server(&[("d/f", &content)]);
    server.script(
        "b/d/",
        vec![
            Rule::new(Effect::Reset { at_byte: 70_000 })
                .operations(&[Operation::Get])
                .times(2),
            Rule::new(Effect::Truncate { at_byte: 9_000 })
                .operations(&[Operation::Get])
                .times(1),
            Rule::new(Effect::Status {
                status: 503,
                code: String::new(),
            })
            .times(2),
        ],
    );
    let mount = Mounted::new(&server, "s3://b/d/");
    assert!(fs::read(mount.path("f")).unwrap() == content);
}

/// Whether the kernel asks for each open, or for none.
pub(crate) const BOTH_WAYS: [[&str; 2]; 2] = [["--open", "per-file"], ["--open", "none"]];

/// M9: files behave as files: seeks, maps, descriptors, direct reads, programs.
#[test]
fn files_behave_as_files() {
    for [open, how] in BOTH_WAYS {
        files_behave(&["-o", "ro,fmask=0222,allow_other", open, how]);
    }
}

fn files_behave(more: &[&str]) {
    let content = bytes(4, 2_500_001);
    let server = server(&[("d/f", &content), ("d/run.sh", b"#!/bin/sh\necho ran $1\n")]);
    let dir = tempfile::tempdir().unwrap();
    let mount = Mounted::at(&server, "s3://b/d/", dir, more);
    let mut file = File::open(mount.path("f")).unwrap();
    let mut some = [0; 1000];
    file.seek(SeekFrom::Start(2_000_000)).unwrap();
    file.read_exact(&mut some).unwrap();
    assert!(some == content[2_000_000..2_001_000]);
    assert_eq!(file.read_at(&mut some, 2_500_000).unwrap(), 1, "at the end");
    assert_eq!(
        file.read_at(&mut some, 3_000_000).unwrap(),
        0,
        "behind the end"
    );

    let twin = file.try_clone().unwrap();
    drop(file);
    assert_eq!(twin.read_at(&mut some, 7).unwrap(), 1000);
    assert!(some == content[7..1007]);

    let direct = OpenOptions::new()
        .read(true)
        .custom_flags(rustix::fs::OFlags::DIRECT.bits() as i32)
        .open(mount.path("f"))
        .unwrap();
    let mut all = vec![0; content.len()];
    direct.read_exact_at(&mut all, 0).unwrap();
    assert!(all == content, "O_DIRECT");
    mapped(&twin, &content);

    let (mut reader, writer) = std::io::pipe().unwrap();
    let sent = std::thread::spawn(move || {
        let (mut offset, end) = (0, 2_500_001);
        while offset < end {
            rustix::fs::sendfile(&writer, &twin, Some(&mut offset), 1 << 20).unwrap();
        }
    });
    let mut received = Vec::new();
    reader.read_to_end(&mut received).unwrap();
    sent.join().unwrap();
    assert!(received == content, "sendfile");

    let ran = Command::new(mount.path("run.sh"))
        .arg("here")
        .output()
        .unwrap();
    assert_eq!(ran.stdout, b"ran here\n");

    let many: Vec<File> = (0..1000)
        .map(|_| File::open(mount.path("f")).unwrap())
        .collect();
    assert_eq!(many[999].read_at(&mut some, 0).unwrap(), 1000);
    assert_eq!(many[0].metadata().unwrap().len(), content.len() as u64);
}

#[expect(unsafe_code, reason = "maps are what is tested")]
pub(crate) fn mapped(file: &File, content: &[u8]) {
    // SAFETY: the mount is read-only, and the object does not change.
    let shared = unsafe { memmap2::Mmap::map(file) }.unwrap();
    // SAFETY: as above; the copy is ours alone.
    let mut private = unsafe { memmap2::MmapOptions::new().map_copy(file) }.unwrap();
    assert!(shared[..] == *content, "shared map");
    private[5] ^= 1;
    assert!(
        private[6..] == content[6..] && shared[5] == content[5],
        "private map"
    );
}

/// M10: a mount whose server was killed is replaced by the next start.
#[test]
fn a_killed_server_is_replaced() {
    let server = server(&[("d/f", b"content")]);
    let mut mount = Mounted::new(&server, "s3://b/d/");
    let open = File::open(mount.path("f")).unwrap();
    mount.child.kill().unwrap();
    mount.child.wait().unwrap();
    let lost = errno(open.read_at(&mut [0; 4], 0)).unwrap();
    let lost = rustix::io::Errno::from_raw_os_error(lost);
    assert!(
        matches!(
            lost,
            rustix::io::Errno::NOTCONN | rustix::io::Errno::CONNABORTED
        ),
        "{lost}"
    );
    let dir = std::mem::replace(&mut mount.dir, tempfile::tempdir().unwrap());
    let again = Mounted::at(&server, "s3://b/d/", dir, &[]);
    assert_eq!(again.read("f"), "content");
}

/// M11: SIGTERM unmounts although files are open, and the process ends.
#[test]
fn sigterm_unmounts_with_files_open() {
    let server = server(&[("d/f", b"content")]);
    let mut mount = Mounted::new(&server, "s3://b/d/");
    let open = File::open(mount.path("f")).unwrap();
    mount.signal(rustix::process::Signal::TERM);
    let (code, _) = mount.ended();
    assert_eq!(code, Some(143));
    assert!(!fuse::is_mounted(mount.dir.path()));
    drop(open);
    assert!(names(mount.dir.path()).is_empty());
}

/// M12: `--daemon` returns when the mount is ready; what prevents it is told before; `umount` takes it away.
#[test]
fn a_daemon_is_ready_when_its_command_returns() {
    needs_fuse();
    let server = server(&[("d/f", b"content")]);
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("new");
    let path = at.to_str().unwrap();
    let run = |args: &[&str]| -> Output { standpipe(&server, args).output().unwrap() };
    let missing = run(&["mount", "--daemon", "s3://b/none/", path]);
    assert_eq!(missing.status.code(), Some(3), "{missing:?}");
    assert!(String::from_utf8_lossy(&missing.stderr).contains("s3://b/none/: not found"));

    // It goes to another directory, and its cache stays.
    let started = standpipe(&server, &["mount", "--daemon", "s3://b/d/", path])
        .args(["--cache", "cache"])
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert!(started.status.success(), "{started:?}");
    assert_eq!(fs::read_to_string(at.join("f")).unwrap(), "content");
    let cache = CacheConfig::new(dir.path().join("cache"));
    let cache = BlockCache::open(cache, Arc::default()).unwrap();
    wait_for("it is in the cache", || {
        cache.stat().unwrap().complete_entries == 1
    });
    let twice = run(&["mount", "--daemon", "s3://b/d/", path]);
    assert_eq!(twice.status.code(), Some(2), "{twice:?}");
    let open = File::open(at.join("f")).unwrap();
    let busy = run(&["umount", path]);
    assert!(
        String::from_utf8_lossy(&busy.stderr).contains("--lazy"),
        "{busy:?}"
    );
    drop(open);
    wait_for("umount succeeds", || {
        run(&["umount", path]).status.success()
    });
    assert!(!fuse::is_mounted(&at));
    assert_eq!(run(&["umount", path]).status.code(), Some(2));
}

/// A cache keeps more descriptors than a shell gives; the mount takes what it may have.
#[test]
fn few_descriptors_are_enough_to_start_with() {
    needs_fuse();
    let server = FakeS3::start().unwrap();
    for at in 0..300 {
        server.put_synthetic("b", &format!("d/{at:03}"), 20_000, at);
    }
    let (dir, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mount = standpipe(
        &server,
        &["mount", "s3://b/d/", dir.path().to_str().unwrap()],
    );
    let mut command = Command::new("sh");
    let child = command
        .args(["-c", "ulimit -Sn 64; exec \"$@\"", "sh"])
        .arg(mount.get_program())
        .args(mount.get_args())
        .arg("--cache")
        .arg(cache.path())
        .envs(
            mount
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        )
        .spawn()
        .unwrap();
    let mount = Mounted { child, dir };
    wait_for("the mount is there", || is_alive(mount.dir.path()));
    std::thread::scope(|scope| {
        for lane in 0..8 {
            let mount = &mount;
            scope.spawn(move || {
                for at in (lane..300).step_by(8) {
                    let mut expected = vec![0; 20_000];
                    fake_s3::content(at, 0, &mut expected);
                    assert!(fs::read(mount.path(&format!("{at:03}"))).unwrap() == expected);
                }
            });
        }
    });
    let cache = BlockCache::open(CacheConfig::new(cache.path()), Arc::default()).unwrap();
    wait_for("all are in the cache", || {
        cache.stat().unwrap().complete_entries == 300
    });
}

/// M13: a prefix without `/` at its end must be one folder or one object.
#[test]
fn a_prefix_without_slash_must_be_one_thing() {
    let server = server(&[
        ("train/a", b"1"),
        ("train-01/b", b"2"),
        ("test/c", b"3"),
        ("one.bin", b"4"),
    ]);
    assert_eq!(
        names(Mounted::new(&server, "s3://b/test").dir.path()),
        ["c"]
    );
    assert_eq!(
        names(Mounted::new(&server, "s3://b/one.bin").dir.path()),
        ["one.bin"]
    );
    assert_eq!(names(Mounted::new(&server, "s3://b").dir.path()).len(), 4);
    for uri in ["s3://b/train", "s3://b/tr"] {
        let refused = standpipe(&server, &["mount", uri, "/nonexistent/x"])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(2), "{said}");
        assert!(said.contains("not exactly one folder or object"), "{said}");
    }
}

/// M14: names are served while the listing still arrives.
#[test]
fn names_are_served_while_a_slow_listing_runs() {
    let server = FakeS3::start().unwrap();
    for at in 0..3000 {
        server.put("b", &format!("d/{at:04}"), b"x");
    }
    let slow = Effect::Latency(Latency::fixed(Duration::from_millis(1500)));
    server.script(
        "b/",
        vec![Rule::new(slow).operations(&[Operation::List]).skip(1)],
    );
    let mount = Mounted::new(&server, "s3://b/d/");
    let started = Instant::now();
    assert_eq!(mount.read("0000"), "x");
    assert_eq!(
        errno(fs::metadata(mount.path("000"))),
        Some(2),
        "it has passed this name"
    );
    assert!(
        started.elapsed() < Duration::from_millis(1400),
        "nobody waits for the rest"
    );
    assert_eq!(mount.read("2999"), "x");
    assert_eq!(errno(fs::metadata(mount.path("3000"))), Some(2));
    assert_eq!(names(mount.dir.path()).len(), 3000);
}

/// M15: a request that brings no byte ends with an error; nothing hangs, and other files are served meanwhile.
#[test]
fn a_stuck_request_times_out() {
    needs_fuse();
    let content = bytes(5, 100_000);
    let server = server(&[("d/stuck", &content), ("d/well", &content)]);
    let (config, _ca) = s3_config(&server, Transport::Direct);
    let metrics: Arc<Metrics> = Arc::default();
    // Not one byte comes: attempts that bring some are progress, and start the count of attempts anew.
    let stuck = Effect::Stall {
        at_byte: 0,
        ms: 5_000,
    };
    server.script("b/d/stuck", vec![Rule::new(stuck)]);
    let client = runtime::handle()
        .block_on(S3Client::connect(config, metrics.clone()))
        .unwrap();
    let limited = LimitClient::new(
        Arc::new(client),
        LimitConfig { most_requests: 8 },
        metrics.clone(),
    );
    let retries = RetryConfig {
        max_attempts: 2,
        ..RetryConfig::default()
    };
    let client: Arc<dyn ObjectClient> = Arc::new(RetryClient::new(
        Arc::new(limited),
        retries,
        metrics.clone(),
    ));
    let uri = "s3://b/d/".parse().unwrap();
    let namespace = runtime::handle().block_on(async {
        let root = Root::resolve(&client, &uri).await.unwrap();
        Namespace::start(&client, root).await.unwrap()
    });
    let dir = tempfile::tempdir().unwrap();
    let files = OpenFiles::new(client, ReadConfig::default(), metrics).unwrap();
    let source = Arc::new(Windows::new(files, None));
    let mount = Mount::start(namespace, source, dir.path(), &MountOptions::default()).unwrap();
    let read = |name: &str| {
        let (path, (sender, outcome)) = (dir.path().join(name), mpsc::channel());
        std::thread::spawn(move || sender.send(fs::read(path)));
        outcome
    };
    let (stuck, well) = (read("stuck"), read("well"));
    assert!(well.recv_timeout(PATIENCE).unwrap().unwrap() == content);
    let error = stuck
        .recv_timeout(PATIENCE)
        .expect("the stuck read ends")
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    drop(mount);
    assert!(!fuse::is_mounted(dir.path()));
}

/// M18: a file that is read in order is read ahead, each byte once.
#[test]
fn files_read_in_order_are_read_ahead() {
    let (server, size) = (FakeS3::start().unwrap(), 64 << 20);
    server.put_synthetic("b", "d/f", size, 7);
    let slow = Effect::Latency(Latency::fixed(Duration::from_millis(20)));
    server.script("b/d/", vec![Rule::new(slow).operations(&[Operation::Get])]);
    let mount = Mounted::new(&server, "s3://b/d/");
    let (before, mut expected) = (server.stats(), vec![0; size as usize]);
    assert_eq!(
        before.bytes_sent / size,
        0,
        "nothing is fetched before it is read"
    );
    fake_s3::content(7, 0, &mut expected);
    assert!(fs::read(mount.path("f")).unwrap() == expected);
    let after = server.stats();
    let (bytes, requests) = (
        after.bytes_sent - before.bytes_sent,
        after.requests - before.requests,
    );
    assert!(
        after.in_flight_peak >= 4,
        "{} at once",
        after.in_flight_peak
    );
    assert!(bytes < size + (1 << 20), "{bytes} bytes");
    assert!(requests < 64, "{requests} requests");
}

/// M19: with a cache, what was read is not fetched again: by a later open, another mount, or after a kill.
#[test]
fn what_was_read_is_kept_in_the_cache() {
    let (big, small) = (bytes(8, 20_000_001), bytes(9, 100_000));
    let server = server(&[("d/big", &big), ("d/small", &small)]);
    let cache = tempfile::tempdir().unwrap();
    let at = cache.path().to_str().unwrap().to_owned();
    let mount = |more: &[&str]| {
        Mounted::at(
            &server,
            "s3://b/d/",
            tempfile::tempdir().unwrap(),
            &[&["--cache", &at], more].concat(),
        )
    };
    let read = |mount: &Mounted| {
        assert!(fs::read(mount.path("big")).unwrap() == big);
        assert!(fs::read(mount.path("small")).unwrap() == small);
    };
    let sent = || server.stats().bytes_sent;
    let mut first = mount(&["--cache-size", "1GiB"]);
    read(&first);
    // It ends after what it has fetched is written.
    first.signal(rustix::process::Signal::TERM);
    first.ended();
    drop(first);

    let before = sent();
    let mut second = mount(&[]);
    read(&second);
    let open = File::open(second.path("big")).unwrap();
    mapped(&open, &big);
    second.child.kill().unwrap();
    drop(second);
    read(&mount(&[]));
    assert!(
        sent() - before < 20_000,
        "{} bytes beside listings",
        sent() - before
    );
    read(&mount(&["--no-cache"]));
    assert!(sent() - before > 20_000_000, "--no-cache");

    server.replace("b", "d/small", &bytes(10, 100_000));
    let changed = mount(&[]);
    assert!(fs::read(changed.path("small")).unwrap() == bytes(10, 100_000));
}

/// M17: real programs read what the objects hold.
#[test]
fn real_programs_read_the_objects() {
    let server = FakeS3::start().unwrap();
    let mut expected = Vec::new();
    for at in 0..40 {
        let (key, content) = (format!("t/{}/f-{at}", at % 4), bytes(at, 1 << (at % 20)));
        server.put("b", &key, &content);
        expected.push((key[2..].to_owned(), content));
    }
    server.put("b", "t/needle.txt", b"hay\nneedle\n");
    let mount = Mounted::new(&server, "s3://b/t/");
    let out = tempfile::tempdir().unwrap();
    let shell = |script: &str| {
        let output = Command::new("sh")
            .args(["-ec", script, "sh"])
            .args([mount.dir.path(), out.path()])
            .output()
            .unwrap();
        assert!(output.status.success(), "{script}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    shell("cp -r $1/. $2/copy && mkdir $2/tar && tar -C $1 -cf - . | tar -C $2/tar -xf -");
    for (name, content) in &expected {
        assert!(
            fs::read(out.path().join("copy").join(name)).unwrap() == *content,
            "{name}"
        );
        assert!(
            fs::read(out.path().join("tar").join(name)).unwrap() == *content,
            "{name}"
        );
    }
    let sums = "find . -type f | sort | xargs sha256sum | sha256sum";
    let both = shell(&format!("cd $1 && {sums}; cd $2/copy && {sums}"));
    let both: Vec<_> = both.lines().collect();
    assert_eq!(both[0], both[1]);
    assert!(shell("cd $1 && grep -rl needle .").contains("./needle.txt"));
    shell("stat -c '%w %s' $1/needle.txt && ls -laR $1 > /dev/null && df $1");
}

/// M23: checksums can't be required of a mount, which reads ranges: it says so and does not start.
#[test]
fn checksums_are_not_required_of_ranges() {
    let server = server(&[("d/a", b"alpha")]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let output = standpipe(
        &server,
        &["mount", "s3://b/d/", path, "--checksums", "require"],
    )
    .output()
    .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(told.contains("use when-possible"), "{told}");
    assert!(!fuse::is_mounted(dir.path()));
}
