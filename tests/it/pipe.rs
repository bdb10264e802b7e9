//! Pipe mode as a trainer sees it: small readers of every kind that is known, over objects in memory.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags};
use standpipe::client::{
    Behaviour, Depth, FaultClient, FaultKind, ListEntry, MemoryClient, Schedule, Unreadable,
};
use standpipe::error::{Error, Result};
use standpipe::metrics::Metrics;
use standpipe::object::ObjectUri;
use standpipe::pipe::{Failure, PipeChannel, PipeConfig, PipeServer};
use standpipe::prefetch::{ObjectReader, PrefetchConfig, Prefetcher};
use tempfile::TempDir;

const MIB: usize = 1 << 20;

/// No step of a test takes this long unless something hangs.
const HANG: Duration = Duration::from_secs(20);

/// Objects, an engine over them, and a directory for FIFOs.
struct Stage {
    dir: TempDir,
    objects: Vec<Bytes>,
    client: Arc<FaultClient>,
    engine: Prefetcher,
    failures: Arc<Mutex<Vec<Failure>>>,
    config: PipeConfig,
}

impl Stage {
    /// `sizes` of objects called `d/0`, `d/1`, ...
    fn new(sizes: &[usize]) -> Self {
        Self::faulty(sizes, Schedule::default())
    }

    fn faulty(sizes: &[usize], schedule: Schedule) -> Self {
        let memory = MemoryClient::default();
        let mut rng = fastrand::Rng::with_seed(7);
        let objects: Vec<Bytes> = sizes
            .iter()
            .map(|size| (0..*size).map(|_| rng.u8(..)).collect())
            .collect();
        for (i, object) in objects.iter().enumerate() {
            memory.put(uri(&format!("d/{i:04}")), object.clone());
        }
        let client = Arc::new(FaultClient::new(Arc::new(memory), schedule));
        let mut engine = PrefetchConfig::default();
        engine.part_bytes = 1 << 20;
        engine.memory_bytes = 64 << 20;
        let engine = Prefetcher::new(client.clone(), engine, Arc::new(Metrics::default())).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut config = PipeConfig::new(dir.path());
        config.farewell_grace = Duration::from_millis(20);
        config.failure_grace = HANG;
        Self {
            dir,
            objects,
            client,
            engine,
            failures: Arc::default(),
            config,
        }
    }

    /// What an epoch must deliver.
    fn bytes(&self) -> Vec<u8> {
        self.objects.concat()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn source(&self) -> impl Fn(u64) -> Result<ObjectReader> + Send + Sync + 'static {
        let engine = self.engine.clone();
        move |_| {
            let listing = engine.client().list(&uri("d/"), Depth::All);
            engine.read_all(
                listing
                    .try_filter_map(|entry| async move {
                        Ok(match entry {
                            ListEntry::Object(meta) => Some(meta),
                            ListEntry::Prefix(_) => None,
                        })
                    })
                    .boxed(),
            )
        }
    }

    fn channel(&self, name: &str) -> PipeChannel {
        PipeChannel::new(name.parse().unwrap(), self.source())
    }

    fn start(&self, channels: &[&str]) -> Result<PipeServer> {
        self.serve(channels.iter().map(|name| self.channel(name)).collect())
    }

    fn serve(&self, channels: Vec<PipeChannel>) -> Result<PipeServer> {
        let failures = self.failures.clone();
        PipeServer::start(
            self.config.clone(),
            channels,
            self.engine.metrics().clone(),
            Arc::new(move |failure| failures.lock().unwrap().push(failure.clone())),
        )
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path()).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn status(&self, name: &str) -> serde_json::Value {
        serde_json::from_slice(&fs::read(self.path(name)).unwrap()).unwrap()
    }
}

fn uri(key: &str) -> ObjectUri {
    format!("memory://m/{key}").parse().unwrap()
}

/// Runs `f` in a thread, so that a hang is a failure and not a hang.
fn within<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
    let (tell, told) = mpsc::channel();
    thread::spawn(move || tell.send(f()));
    told.recv_timeout(HANG).expect("it hangs, or it panicked")
}

fn wait(mut server: PipeServer) -> (Result<standpipe::pipe::PipeSummary>, PipeServer) {
    within(move || (server.wait(), server))
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < HANG, "never: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Reads a file to its end in one go, as soon as it is there.
fn read(path: PathBuf) -> Vec<u8> {
    within(move || {
        until("the FIFO exists", || path.exists());
        fs::read(path).unwrap()
    })
}

fn open_nonblocking(path: &Path) -> File {
    let nonblocking = OFlags::NONBLOCK.bits() as i32;
    File::options()
        .read(true)
        .custom_flags(nonblocking)
        .open(path)
        .unwrap()
}

/// Whether bytes or the end are there to be read.
fn is_readable(file: &File, limit: Duration) -> bool {
    let limit = Timespec {
        tv_sec: limit.as_secs() as i64,
        tv_nsec: i64::from(limit.subsec_nanos()),
    };
    let mut fds = [PollFd::new(file, PollFlags::IN)];
    poll(&mut fds, Some(&limit)).unwrap() > 0
}

/// As MLIO does: opens without blocking, then waits with a limit and reads what is there.
fn read_by_select(path: PathBuf) -> Vec<u8> {
    let mut file = open_nonblocking(&path);
    let (mut all, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
    while is_readable(&file, HANG) {
        match file.read(&mut buffer) {
            Ok(0) => return all,
            Ok(n) => all.extend_from_slice(&buffer[..n]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => panic!("{error}"),
        }
    }
    panic!("data timeout after {} bytes", all.len())
}

/// As PipeModeDataset does: looks, sleeps longer each time, then opens and reads 64 KiB at a time.
fn read_with_growing_sleeps(path: PathBuf) -> Vec<u8> {
    let mut pause = Duration::from_millis(1);
    while !path.exists() {
        thread::sleep(pause);
        pause += Duration::from_millis(1);
    }
    let (mut file, mut all) = (File::open(path).unwrap(), Vec::new());
    let mut buffer = vec![0; 64 << 10];
    loop {
        match file.read(&mut buffer).unwrap() {
            0 => return all,
            n => all.extend_from_slice(&buffer[..n]),
        }
    }
}

/// A process that has a FIFO as its standard input and does nothing with it.
struct Holder(Child);

impl Holder {
    fn of(file: File) -> Self {
        let sleep = Command::new("sleep")
            .arg("60")
            .stdin(Stdio::from(file))
            .spawn();
        Self(sleep.unwrap())
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// P1: the FIFO of epoch 0 exists for every channel before the trainer starts.
#[test]
fn every_first_fifo_exists_when_start_returns() {
    let stage = Stage::new(&[10]);
    let server = stage.start(&["train", "validation", "a.b-c"]).unwrap();
    for name in ["train_0", "validation_0", "a.b-c_0"] {
        assert!(stage.path(name).exists(), "{name}");
    }
    drop(server);
    assert_eq!(stage.names(), [""; 0]);
}

/// P2: an epoch is the bytes of its objects back to back, then the end; every epoch anew.
#[test]
fn three_epochs_are_the_objects_to_the_byte() {
    let mut stage = Stage::new(&[3 * MIB + 7, 0, 1, 100_000, MIB]);
    stage.config.epochs = Some(3);
    let server = stage.start(&["train"]).unwrap();
    for epoch in 0..3 {
        assert!(
            read(stage.path(&format!("train_{epoch}"))) == stage.bytes(),
            "epoch {epoch}"
        );
    }
    let summary = wait(server).0.unwrap();
    let channel = &summary.channels[0];
    assert_eq!((channel.epochs, channel.early_closes), (3, 0));
    assert_eq!(channel.bytes, 3 * stage.bytes().len() as u64);
    assert!(channel.first_byte.is_some() && channel.pipe_bytes > 0);
}

/// P3: FIFO n+1 exists before the reader of n sees its end, and n is gone by then.
#[test]
fn a_reader_that_does_not_wait_misses_no_epoch() {
    let mut stage = Stage::new(&[1000, 2000]);
    stage.config.epochs = Some(40);
    let server = stage.start(&["train"]).unwrap();
    let (dir, bytes) = (stage.dir.path().to_owned(), stage.bytes());
    within(move || {
        for epoch in 0..40 {
            let path = dir.join(format!("train_{epoch}"));
            let mut file = File::open(&path).expect("the next FIFO is there");
            let mut read = Vec::new();
            file.read_to_end(&mut read).unwrap();
            assert!(!path.exists(), "epoch {epoch} is gone at its end");
            assert!(read == bytes);
        }
    });
    assert_eq!(wait(server).0.unwrap().channels[0].epochs, 40);
}

/// P4: readers that block, that look with growing pauses, and that select without blocking all get every byte.
#[test]
fn readers_of_every_style_get_every_byte() {
    let mut stage = Stage::new(&[2 * MIB + 1, 5]);
    stage.config.epochs = Some(3);
    let styles: [fn(PathBuf) -> Vec<u8>; 3] = [read, read_with_growing_sleeps, read_by_select];
    let server = stage.start(&["train"]).unwrap();
    for (epoch, style) in styles.into_iter().enumerate() {
        let path = stage.path(&format!("train_{epoch}"));
        assert!(
            within(move || style(path)) == stage.bytes(),
            "style {epoch}"
        );
    }
    wait(server).0.unwrap();
}

/// P5: a reader that opens and closes without reading has used up its epoch; the next one is whole.
#[test]
fn opening_and_closing_ends_the_epoch() {
    let mut stage = Stage::new(&[2 * MIB]);
    stage.config.epochs = Some(2);
    let server = stage.start(&["train"]).unwrap();
    let first = stage.path("train_0");
    within(move || drop(File::open(first).unwrap()));
    assert!(read(stage.path("train_1")) == stage.bytes());
    let summary = wait(server).0.unwrap();
    assert_eq!(
        (summary.channels[0].epochs, summary.channels[0].early_closes),
        (1, 1)
    );
}

/// P6: reading begins when the FIFO is made, not when it is opened.
#[test]
fn bytes_are_fetched_before_anybody_reads() {
    let stage = Stage::new(&[4 * MIB]);
    let server = stage.start(&["train"]).unwrap();
    let held = || stage.engine.snapshot().reserved_bytes;
    until("the object is in memory", || held() >= 4 * MIB as u64);
    assert!(stage.client.requests() > 0);
    drop(server);
    until("memory is given back", || {
        stage.engine.snapshot().reserved_bytes == 0
    });
}

/// P7: reading of the next epoch begins when the engine has handed over this one's last chunk, however slowly the
/// reader takes it.
#[test]
fn the_next_epoch_is_fetched_while_the_last_chunk_waits() {
    let stage = Stage::new(&[2 * MIB]);
    let (tell, asked) = mpsc::channel();
    let source = stage.source();
    let channel = PipeChannel::new("train".parse().unwrap(), move |epoch| {
        tell.send(epoch).unwrap();
        source(epoch)
    });
    let _server = stage.serve(vec![channel]).unwrap();
    assert_eq!(asked.recv_timeout(HANG), Ok(0));
    let path = stage.path("train_0");
    let mut file = within(move || File::open(path).unwrap());
    assert_eq!(asked.try_recv().ok(), None, "not while chunks are left");
    // Leaves more than a pipe and less than a part: the last chunk is at the writer, and cannot leave it.
    file.read_exact(&mut vec![0; 600 << 10]).unwrap();
    assert_eq!(asked.recv_timeout(HANG), Ok(1));
    assert!(stage.path("train_0").exists());
}

/// P8: a reader that closes early ends its epoch and nothing else; it need not wait for the next FIFO.
#[test]
fn early_close_goes_on_to_the_next_epoch() {
    let mut stage = Stage::new(&[8 * MIB]);
    stage.config.epochs = Some(5);
    let server = stage.start(&["train"]).unwrap();
    let dir = stage.dir.path().to_owned();
    within(move || {
        for epoch in 0..5 {
            let mut file = File::open(dir.join(format!("train_{epoch}"))).unwrap();
            file.read_exact(&mut vec![0; 100_000]).unwrap();
        }
    });
    let summary = wait(server).0.unwrap();
    assert_eq!(
        (summary.channels[0].epochs, summary.channels[0].early_closes),
        (0, 5)
    );
    until("memory is given back", || {
        stage.engine.snapshot().reserved_bytes == 0
    });
}

/// P9: a reader that is killed ends its epoch and nothing else.
#[test]
fn a_killed_reader_ends_its_epoch() {
    let mut stage = Stage::new(&[8 * MIB]);
    stage.config.epochs = Some(2);
    let server = stage.start(&["train"]).unwrap();
    let path = stage.path("train_0");
    drop(Holder::of(within(move || File::open(path).unwrap())));
    assert!(read(stage.path("train_1")) == stage.bytes());
    assert_eq!(wait(server).0.unwrap().channels[0].early_closes, 1);
}

/// P10: channels do not wait for each other: not for one that nobody opens, nor for one that is read slowly.
#[test]
fn sixteen_channels_of_which_one_is_never_opened_and_one_is_stuck() {
    let stage = Stage::new(&[2 * MIB, 17]);
    let names: Vec<String> = (0..16).map(|i| format!("c{i}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let server = stage.start(&names).unwrap();
    let stuck = stage.path("c1_0");
    let _stuck = within(move || File::open(stuck).unwrap());
    for epoch in 0..3 {
        let readers: Vec<_> = (2..16)
            .map(|i| {
                let path = stage.path(&format!("c{i}_{epoch}"));
                thread::spawn(move || read(path))
            })
            .collect();
        for reader in readers {
            assert!(reader.join().unwrap() == stage.bytes());
        }
    }
    assert_eq!(server.summary().channels[0].bytes, 0);
    assert!(server.summary().channels[1].bytes < stage.bytes().len() as u64);
}

/// P11: a reader that stops holds no more than the engine's memory and its pipe.
#[test]
fn a_slow_reader_bounds_what_is_fetched() {
    let stage = Stage::new(&[40 * MIB, 40 * MIB, 40 * MIB]);
    let server = stage.start(&["train"]).unwrap();
    let path = stage.path("train_0");
    let mut file = within(move || File::open(path).unwrap());
    let full = || server.summary().channels[0].bytes;
    until("the pipe is full", || {
        full() as usize == server.summary().channels[0].pipe_bytes
    });
    let requests = || stage.client.requests();
    until("memory is used up", || {
        stage.engine.snapshot().reserved_bytes >= 62 * MIB as u64
    });
    let mut before = requests();
    until("fetching rests", || {
        thread::sleep(Duration::from_millis(20));
        std::mem::replace(&mut before, requests()) == requests()
    });
    // Parts of 1 MiB: 64 in memory, 1 in the pipe, a small first one, the listing. All would be more than 120.
    assert!(requests() <= 70, "{}", requests());
    assert!(stage.engine.snapshot().reserved_bytes <= 64 * MIB as u64);
    let all = within(move || {
        let mut all = Vec::new();
        file.read_to_end(&mut all).unwrap();
        all
    });
    assert!(all == stage.bytes());
    assert!(stage.engine.snapshot().sink_wait_ns > 0);
}

fn unreadable(offset: u64) -> Schedule {
    Schedule {
        unreadable: vec![Unreadable {
            key: Some("d/0001".into()),
            offset,
            kind: FaultKind::PermissionDenied,
        }],
        ..Schedule::default()
    }
}

/// P12: an epoch that fails delivers the bytes before the failure and then no end while its reader is there; the
/// failure is told at once, and lies beside the FIFO.
#[test]
fn a_failed_get_never_looks_like_the_end() {
    let stage = Stage::faulty(&[3 * MIB, 2 * MIB], unreadable(MIB as u64 + 5));
    let server = stage.start(&["train"]).unwrap();
    let path = stage.path("train_0");
    let good = 4 * MIB;
    let (mut file, got) = within(move || {
        let mut file = File::open(path).unwrap();
        let mut got = vec![0; good];
        file.read_exact(&mut got).unwrap();
        (file, got)
    });
    assert!(got == stage.bytes()[..good]);
    until("the failure is told", || {
        !stage.failures.lock().unwrap().is_empty()
    });
    let status = stage.status("train_0.error.json");
    assert_eq!(status["object"], "memory://m/d/0001");
    assert!(status["offset"].is_u64(), "{status}");
    assert_eq!(
        (&status["channel"], &status["epoch"]),
        (&"train".into(), &0.into())
    );
    assert!(
        status["cause"]
            .as_str()
            .unwrap()
            .contains("permission denied"),
        "{status}"
    );
    assert!(status["fix"].is_string());
    // Whatever of the failing part came along is good; then there is neither a byte nor an end.
    let extra = drain(&mut file);
    assert!(extra[..] == stage.bytes()[good..good + extra.len()]);
    assert_eq!(status["delivered_bytes"], good + extra.len());
    let (told, waiting) = mpsc::channel();
    let waiter = thread::spawn(move || {
        let outcome = wait(server);
        told.send(()).unwrap();
        outcome
    });
    assert!(!is_readable(&file, Duration::from_millis(100)), "no end");
    assert!(
        waiting.try_recv().is_err(),
        "the server waits for the reader"
    );
    drop(file);
    let (outcome, _server) = waiter.join().unwrap();
    assert!(
        matches!(outcome, Err(Error::PermissionDenied { .. })),
        "{outcome:?}"
    );
    assert_eq!(stage.names(), ["train_0.error.json"]);
}

/// Reads until nothing comes for a moment; an end is a failure of the test.
fn drain(file: &mut File) -> Vec<u8> {
    let (mut all, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
    while is_readable(file, Duration::from_millis(50)) {
        let n = file.read(&mut buffer).unwrap();
        assert_ne!(n, 0, "an end after {} bytes", all.len());
        all.extend_from_slice(&buffer[..n]);
    }
    all
}

/// P14: an epoch whose stream cannot even be made is told although nobody reads.
#[test]
fn a_stream_that_cannot_be_made_is_told_at_once() {
    let stage = Stage::new(&[10]);
    let channel = PipeChannel::new("train".parse().unwrap(), |_| {
        Err::<ObjectReader, _>(Error::config("order", "none"))
    });
    let _server = stage.serve(vec![channel]).unwrap();
    until("it is told", || !stage.failures.lock().unwrap().is_empty());
}

/// A panic of the program that serves is no end of the data either, as long as the process lives.
#[test]
fn a_panic_never_looks_like_the_end() {
    let stage = Stage::new(&[10]);
    let source = stage.source();
    let channel = PipeChannel::new("train".parse().unwrap(), move |epoch| {
        assert_eq!(epoch, 0, "a source that panics");
        source(epoch)
    });
    let mut server = stage.serve(vec![channel]).unwrap();
    let mut file = open_nonblocking(&stage.path("train_0"));
    let server = within(move || {
        let waited = std::panic::AssertUnwindSafe(|| server.wait());
        assert!(std::panic::catch_unwind(waited).is_err());
        server
    });
    assert_eq!(drain(&mut file), stage.objects[0]);
    drop(server);
    assert!(is_readable(&file, HANG), "dropping the server closes it");
}

/// P13: a reader that stays is waited for no longer than the grace period; its FIFO has no end even then, as long as
/// the process lives.
#[test]
fn the_grace_period_ends_the_wait_and_not_the_epoch() {
    let mut stage = Stage::faulty(&[10, 10], unreadable(0));
    stage.config.failure_grace = Duration::from_millis(50);
    let server = stage.start(&["train", "other"]).unwrap();
    let mut file = open_nonblocking(&stage.path("train_0"));
    let (outcome, server) = wait(server);
    assert!(outcome.is_err());
    assert_eq!(drain(&mut file), stage.objects[0]);
    drop(server);
    assert!(is_readable(&file, HANG), "dropping the server closes it");
}

/// P26: when one channel fails, the readers of the others find the reason beside their FIFOs and no end, and are given
/// the same grace, counted from the moment that they were cut off.
#[test]
fn a_failure_gives_the_readers_of_other_channels_their_grace() {
    // The other one is stuck in its first object, which is more than its pipe holds.
    let mut stage = Stage::faulty(&[3 << 20, 10], unreadable(1));
    stage.config.failure_grace = Duration::from_secs(4);
    let server = stage.start(&["train", "other"]).unwrap();
    let mut failing = open_nonblocking(&stage.path("train_0"));
    let other = open_nonblocking(&stage.path("other_0"));
    assert!(is_readable(&other, HANG), "both have begun");
    let first = &stage.objects[0];
    assert!(drain(&mut failing)[..first.len()] == first[..]);
    // The failed one's reader has seen enough: the server ends.
    drop(failing);
    let (outcome, server) = wait(server);
    assert!(outcome.is_err());
    let told = std::fs::read_dir(stage.path("")).unwrap();
    let told: Vec<_> = told.map(|entry| entry.unwrap().file_name()).collect();
    assert!(
        told.iter().any(|name| name == "other_0.error.json"),
        "{told:?}"
    );
    assert!(!server.outlast_grace(|| false), "somebody reads");
    let begun = Instant::now();
    assert!(!server.outlast_grace(|| true), "it reads to the end");
    assert!(begun.elapsed() > Duration::from_secs(1));
    drop(other);
    assert!(server.outlast_grace(|| true), "nobody reads");
}

/// P14: a failure is told although nobody has opened the FIFO.
#[test]
fn a_failure_before_the_open_is_told_at_once() {
    let mut stage = Stage::faulty(
        &[10],
        Schedule {
            rest: Behaviour::failing(0, FaultKind::NotFound),
            ..Schedule::default()
        },
    );
    stage.config.failure_grace = Duration::from_millis(200);
    let server = stage.start(&["train"]).unwrap();
    until("the failure is told", || {
        !stage.failures.lock().unwrap().is_empty()
    });
    assert!(
        stage.path("train_0").exists(),
        "a reader that comes now must not wait for ever"
    );
    assert!(matches!(wait(server).0, Err(Error::NotFound { .. })));
    assert_eq!(stage.names(), ["train_0.error.json"]);
}

/// P15: what lies at a FIFO's path and is no FIFO is an error, and stays as it is.
#[test]
fn a_file_in_the_way_is_an_error_and_is_left_alone() {
    for name in ["train_0", "train_3"] {
        let stage = Stage::new(&[10]);
        fs::write(stage.path(name), "precious").unwrap();
        let error = stage.start(&["other", "train"]).unwrap_err().to_string();
        assert!(
            error.contains(name) && error.contains("not a FIFO"),
            "{error}"
        );
        assert_eq!(fs::read(stage.path(name)).unwrap(), b"precious");
        assert_eq!(stage.names(), [name], "nothing else stays behind");
    }
}

/// P16: a directory has one server at a time.
#[test]
fn a_second_server_is_refused_and_disturbs_nothing() {
    let stage = Stage::new(&[MIB]);
    let server = stage.start(&["train"]).unwrap();
    let error = stage.start(&["train"]).unwrap_err().to_string();
    assert!(error.contains("serves this directory already"), "{error}");
    assert!(read(stage.path("train_0")) == stage.bytes());
    drop(server);
    drop(stage.start(&["train"]).unwrap());
}

/// P17: a FIFO that another program writes to is an error.
#[test]
fn a_foreign_writer_is_an_error() {
    let stage = Stage::new(&[10]);
    let path = stage.path("train_0");
    rustix::fs::mkfifoat(CWD, &path, Mode::RUSR | Mode::WUSR).unwrap();
    let reader = open_nonblocking(&path);
    let writer = File::options().write(true).open(&path).unwrap();
    let error = stage.start(&["train"]).unwrap_err().to_string();
    assert!(error.contains("writes to this FIFO"), "{error}");
    drop((reader, writer));
    drop(stage.start(&["train"]).unwrap());
}

const SERVE: &str = "STANDPIPE_TEST_SERVE_DIR";

/// P18: after a kill -9 a new server takes over: a reader that waits on the old FIFO is served by it.
#[test]
fn a_killed_server_leaves_nothing_that_blocks_the_next() {
    if let Some(dir) = std::env::var_os(SERVE) {
        let mut stage = Stage::new(&[MIB]);
        stage.config.dir = dir.into();
        let mut server = stage.start(&["train"]).unwrap();
        server.wait().unwrap();
    }
    let stage = Stage::new(&[MIB]);
    let exe = std::env::current_exe().unwrap();
    let name = "pipe::a_killed_server_leaves_nothing_that_blocks_the_next";
    let child = Command::new(exe)
        .args(["--exact", name])
        .env(SERVE, stage.dir.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let child = Holder(child);
    assert!(read(stage.path("train_0")) == stage.bytes());
    until("epoch 1 is offered", || stage.path("train_1").exists());
    drop(child);
    assert!(stage.path("train_1").exists() && stage.path(".standpipe.lock").exists());
    // The trainer starts before the server does.
    let old = stage.path("train_0");
    rustix::fs::mkfifoat(CWD, &old, Mode::RUSR | Mode::WUSR).unwrap();
    let reader = thread::Builder::new().name("opener".into());
    let reader = reader.spawn(move || fs::read(old).unwrap()).unwrap();
    until("the reader waits in its open", || is_asleep("opener"));
    let server = stage.start(&["train"]).unwrap();
    assert!(within(move || reader.join().unwrap()) == stage.bytes());
    drop(server);
    assert_eq!(stage.names(), [""; 0]);
}

/// Whether the thread of this name waits in the kernel. (Opening the FIFO for writing would tell too, and end the wait.)
fn is_asleep(name: &str) -> bool {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    let state = format!("({name}) S");
    tasks
        .filter_map(|task| fs::read_to_string(task.path().join("stat")).ok())
        .any(|stat| stat.contains(&state))
}

/// P19: two readers of one FIFO are an error, because each would get a part of the bytes.
#[test]
fn two_readers_are_an_error() {
    let mut stage = Stage::new(&[8 * MIB]);
    stage.config.failure_grace = Duration::from_millis(1);
    let server = stage.start(&["train"]).unwrap();
    let path = stage.path("train_0");
    let first = open_nonblocking(&path);
    let second = open_nonblocking(&path);
    let error = wait(server).0.unwrap_err().to_string();
    assert!(
        error.contains("two readers") && error.contains("train_0"),
        "{error}"
    );
    assert!(stage.path("train_0.error.json").exists());
    drop((first, second));
}

/// P20: a process that inherited the descriptor of its parent is not a second reader.
#[test]
fn an_inherited_descriptor_is_no_second_reader() {
    let mut stage = Stage::new(&[8 * MIB]);
    stage.config.epochs = Some(1);
    let server = stage.start(&["train"]).unwrap();
    let path = stage.path("train_0");
    let mut file = within(move || File::open(path).unwrap());
    let _child = Holder::of(file.try_clone().unwrap());
    let (mut all, mut buffer) = (Vec::new(), vec![0; 256 << 10]);
    // Slow enough for the server to look twice.
    while let Ok(n @ 1..) = file.read(&mut buffer) {
        all.extend_from_slice(&buffer[..n]);
        thread::sleep(Duration::from_millis(4));
    }
    assert!(all == stage.bytes());
    assert_eq!(wait(server).0.unwrap().channels[0].epochs, 1);
}

/// P21: after the last of N epochs one more FIFO is offered, which is empty; nobody needs to open it.
#[test]
fn the_fifo_after_the_last_epoch_is_empty() {
    let mut stage = Stage::new(&[1000]);
    stage.config.epochs = Some(1);
    stage.config.farewell_grace = HANG;
    let server = stage.start(&["train"]).unwrap();
    assert!(read(stage.path("train_0")) == stage.bytes());
    assert!(read(stage.path("train_1")).is_empty());
    let summary = wait(server).0.unwrap();
    assert_eq!(
        (summary.channels[0].epochs, summary.channels[0].early_closes),
        (1, 0)
    );
    assert_eq!(stage.names(), [""; 0]);
}

/// P22: a cancelled server stops at once (100 ms), whatever its channels wait for; an epoch with a reader gets no end while
/// the server is held, and its reason lies beside the FIFO.
#[test]
fn cancelling_is_quick_and_is_no_end() {
    let silence = Behaviour::failing(0, FaultKind::Silence);
    let stage = Stage::new(&[8 * MIB]);
    let silent = Stage::faulty(
        &[10],
        Schedule {
            rest: silence,
            ..Schedule::default()
        },
    );
    let channels = vec![
        stage.channel("waiting"),
        stage.channel("full"),
        silent.channel("silent"),
    ];
    let server = stage.serve(channels).unwrap();
    let full = open_nonblocking(&stage.path("full_0"));
    let mute = open_nonblocking(&stage.path("silent_0"));
    until("both have a writer", || {
        stage.path("full_1").exists() && stage.path("silent_1").exists()
    });
    let canceller = server.canceller();
    let since = Instant::now();
    canceller.cancel();
    let (outcome, server) = wait(server);
    // 50 ms at most by design; the rest is for a busy machine.
    assert!(
        since.elapsed() < Duration::from_millis(500),
        "{:?}",
        since.elapsed()
    );
    assert!(matches!(outcome, Err(Error::Cancelled)), "{outcome:?}");
    assert_eq!(stage.names(), ["full_0.error.json", "silent_0.error.json"]);
    assert!(!is_readable(&mute, Duration::from_millis(20)), "no end");
    drop((full, server));
    assert!(is_readable(&mute, HANG));
}

const HOST: &str = "STANDPIPE_TEST_SIGPIPE_DIR";

/// P23: a reader that goes away never kills the host, even one in which SIGPIPE has its default effect.
#[test]
#[expect(
    unsafe_code,
    reason = "Rust's start-up ignores SIGPIPE; a foreign host does not"
)]
fn a_host_with_the_default_sigpipe_survives() {
    if let Some(dir) = std::env::var_os(HOST) {
        // SAFETY: no handler is installed, only the default disposition.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
        let mut stage = Stage::new(&[8 * MIB]);
        stage.config.dir = dir.into();
        stage.config.epochs = Some(2);
        let mut server = stage.start(&["train"]).unwrap();
        let summary = server.wait().unwrap();
        assert_eq!(summary.channels[0].early_closes, 2);
        return;
    }
    let stage = Stage::new(&[1]);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "pipe::a_host_with_the_default_sigpipe_survives"])
        .env(HOST, stage.dir.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    for epoch in 0..2 {
        let path = stage.path(&format!("train_{epoch}"));
        within(move || {
            until("the FIFO exists", || path.exists());
            File::open(path)
                .unwrap()
                .read_exact(&mut [0; 1000])
                .unwrap();
        });
    }
    assert!(within(move || child.wait().unwrap()).success());
}

/// P24: settings that cannot work are refused before anything is made.
#[test]
fn unusable_settings_are_refused() {
    let mut stage = Stage::new(&[1]);
    assert!(stage.start(&[]).is_err());
    assert!(stage.start(&["train", "train_1"]).is_err());
    stage.config.epochs = Some(0);
    assert!(stage.start(&["train"]).is_err());
    assert_eq!(stage.names(), [""; 0]);
}

/// P25: the reason of an earlier failure is gone once the channel is served again.
#[test]
fn an_old_status_file_is_cleared_away() {
    let stage = Stage::new(&[1]);
    fs::write(stage.path("train_4.error.json"), "{}").unwrap();
    fs::write(stage.path("other_4.error.json"), "{}").unwrap();
    drop(stage.start(&["train"]).unwrap());
    assert_eq!(stage.names(), ["other_4.error.json"]);
}
