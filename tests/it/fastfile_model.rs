//! FastFile's files against a model: whatever two processes do with them over one cache, and however they die, what is
//! read is what the objects held.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use fake_s3::{Effect, FakeS3, Latency, Operation, Rule, Shape};
use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use standpipe::cache::{BlockCache, CacheConfig};
use standpipe::client::S3Config;
use standpipe::error::Error;
use standpipe::fastfile::files::MappedFile;
use standpipe::fastfile::read::ReadConfig;
use standpipe::fastfile::{FastFile, FastFiles};

const KIB: u64 = 1 << 10;
const OBJECTS: usize = 3;
const PROCESSES: usize = 2;
/// The objects' first sizes; each version is longer by a bit.
const SIZES: [u64; OBJECTS] = [700 * KIB + 1, 100 * KIB, 9 * KIB];
const TOLD: &str = "STANDPIPE_TEST_MODEL";
const DONE: &str = "step: done";

/// What a process does. Handles are numbered among those that are open; places are shares of 65,536 of the object.
#[derive(Debug, Clone, Serialize, Deserialize)]
enum Step {
    Open(usize),
    Close(usize),
    ReadAt(usize, u16, usize),
    /// A seek, and reads in order.
    Run(usize, u16, usize, usize),
    /// Makes it whole, and maps it.
    Map(usize),
    Unmap,
    /// Evicts until so many KiB are left.
    Evict(u64),
    /// Lists anew, and forgets all handles.
    List,
    /// `kill -9` of itself in so many microseconds, wherever it is then.
    Die(u64),
}

#[derive(Debug, Clone)]
enum Event {
    Step(usize, Step),
    Replace(usize),
}

fn event() -> impl Strategy<Value = Event> {
    let handle = || any::<usize>();
    let step = prop_oneof![
        3 => (0..OBJECTS).prop_map(Step::Open),
        1 => handle().prop_map(Step::Close),
        6 => (handle(), any::<u16>(), 1..200_000usize).prop_map(|(h, at, len)| Step::ReadAt(h, at, len)),
        6 => (handle(), any::<u16>(), 1..60_000usize, 1..10usize).prop_map(|(h, at, len, n)| Step::Run(h, at, len, n)),
        3 => handle().prop_map(Step::Map),
        1 => Just(Step::Unmap),
        2 => (0..900u64).prop_map(Step::Evict),
        1 => Just(Step::List),
        2 => (0..30_000u64).prop_map(Step::Die),
    ];
    prop_oneof![
        12 => (0..PROCESSES, step).prop_map(|(who, step)| Event::Step(who, step)),
        1 => (0..OBJECTS).prop_map(Event::Replace),
    ]
}

fn content(object: usize, version: u64) -> Vec<u8> {
    let mut bytes = vec![0; (SIZES[object] + 777 * version) as usize];
    fake_s3::content(object as u64 + 10 * version, 0, &mut bytes);
    bytes
}

fn cache(dir: &Path, most_kib: Option<u64>) -> CacheConfig {
    let mut config = CacheConfig::new(dir);
    config.block_bytes = 16 * KIB;
    config.keep_free_share = 0.0;
    config.max_bytes = most_kib.map(|kib| kib * KIB);
    config
}

fn open(dir: &Path, endpoint: &str, most_kib: Option<u64>) -> FastFiles {
    let s3 = S3Config {
        endpoint_url: Some(endpoint.into()),
        region: Some("us-east-1".into()),
        anonymous: true,
        ..S3Config::default()
    };
    let mut reads = ReadConfig::default();
    reads.part_bytes = 64 * KIB;
    reads.block_bytes = 16 * KIB;
    reads.memory_bytes = 512 * KIB;
    FastFiles::builder("s3://b/d/".parse().unwrap())
        .s3(s3)
        .reads(reads)
        .cache(cache(dir, most_kib))
        .open()
        .unwrap()
}

/// A file, and the version that the listing pinned it to.
struct Opened {
    file: FastFile,
    object: usize,
    version: u64,
}

/// What one process has, and what it knows of the objects.
struct Reader {
    dir: String,
    endpoint: String,
    most_kib: Option<u64>,
    files: FastFiles,
    listed: [u64; OBJECTS],
    /// On the server now.
    current: [u64; OBJECTS],
    opened: Vec<Opened>,
    maps: Vec<(MappedFile, usize, u64)>,
}

impl Reader {
    fn start(told: &str) -> Self {
        let (dir, endpoint, most_kib, current): (String, String, Option<u64>, _) =
            serde_json::from_str(told).unwrap();
        Self {
            files: open(Path::new(&dir), &endpoint, most_kib),
            listed: current,
            current,
            opened: Vec::new(),
            maps: Vec::new(),
            dir,
            endpoint,
            most_kib,
        }
    }

    fn carry_out(&mut self, step: Step) {
        match step {
            Step::Open(object) => self.open(object),
            Step::Close(handle) => {
                let handle = self.pick(handle);
                self.opened.swap_remove(handle);
            }
            Step::ReadAt(handle, share, len) => self.read_at(handle, share, len),
            Step::Run(handle, share, len, reads) => self.run(handle, share, len, reads),
            Step::Map(handle) => self.map(handle),
            Step::Unmap => drop(self.maps.pop()),
            Step::Evict(kib) => {
                let cache = self.files.cache().unwrap();
                cache.evict(kib * KIB).unwrap();
                self.check_maps();
            }
            Step::List => {
                self.opened.clear();
                self.files = open(Path::new(&self.dir), &self.endpoint, self.most_kib);
                self.listed = self.current;
            }
            Step::Die(after_us) => {
                std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_micros(after_us));
                    let own = rustix::process::getpid();
                    rustix::process::kill_process(own, rustix::process::Signal::KILL).unwrap();
                });
            }
        }
    }

    fn open(&mut self, object: usize) {
        let file = self.files.open_file(object.to_string()).unwrap();
        let version = self.listed[object];
        let expected = content(object, version).len() as u64;
        assert_eq!(file.size_bytes(), expected, "the size of {object}");
        self.opened.push(Opened {
            file,
            object,
            version,
        });
    }

    /// One that is open; opens one if there is none.
    fn pick(&mut self, handle: usize) -> usize {
        if self.opened.is_empty() {
            self.open(handle % OBJECTS);
        }
        handle % self.opened.len()
    }

    fn read_at(&mut self, handle: usize, share: u16, len: usize) {
        let handle = self.pick(handle);
        let opened = &self.opened[handle];
        let (expected, mut into) = (content(opened.object, opened.version), vec![0; len]);
        let at = (expected.len() * usize::from(share)) >> 16;
        let end = (at + len).min(expected.len());
        let into = &mut into[..end - at];
        match opened.file.read_exact_at(into, at as u64) {
            Ok(()) => assert!(into == &expected[at..end], "{} at {at}", opened.object),
            Err(error) => self.excuse(opened, &error),
        }
    }

    fn run(&mut self, handle: usize, share: u16, len: usize, reads: usize) {
        let handle = self.pick(handle);
        let opened = &mut self.opened[handle];
        let expected = content(opened.object, opened.version);
        let mut at = (expected.len() * usize::from(share)) >> 16;
        opened.file.seek(SeekFrom::Start(at as u64)).unwrap();
        for _ in 0..reads {
            let mut into = vec![0; len];
            match opened.file.read(&mut into) {
                Ok(n) => {
                    assert!(n > 0 || at == expected.len(), "an end at {at}");
                    assert!(
                        into[..n] == expected[at..at + n],
                        "{} at {at}",
                        opened.object
                    );
                    at += n;
                }
                Err(error) => {
                    let opened = &self.opened[handle];
                    return self.excuse(opened, &error);
                }
            }
        }
    }

    fn map(&mut self, handle: usize) {
        let handle = self.pick(handle);
        let opened = &self.opened[handle];
        match opened.file.path() {
            Ok(local) => {
                let map = (local.mmap().unwrap(), opened.object, opened.version);
                self.maps.push(map);
                self.check_maps();
            }
            // A cache with a limit may have no room.
            Err(error) if self.most_kib.is_some() && is_no_room(&error) => {}
            Err(error) => self.excuse(opened, &error),
        }
    }

    /// Bytes of a version that is no more can't be had. There is no other excuse.
    fn excuse(&self, opened: &Opened, error: &io::Error) {
        assert!(
            error.kind() == ErrorKind::StaleNetworkFileHandle
                && opened.version != self.current[opened.object],
            "{} of version {}, and {} is current: {error}",
            opened.object,
            opened.version,
            self.current[opened.object],
        );
    }

    /// What is mapped stays what it was.
    fn check_maps(&self) {
        for (map, object, version) in &self.maps {
            assert!(map[..] == content(*object, *version), "the map of {object}");
        }
    }
}

fn is_no_room(error: &io::Error) -> bool {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
    matches!(cause, Some(Error::Config { reason, .. }) if reason.contains("can't keep it"))
}

fn done() {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{DONE}").unwrap();
}

/// Does what the lines on standard input say, each with the versions that are on the server by then.
fn serve(told: &str) {
    let mut reader = Reader::start(told);
    // It has listed what it was told of.
    done();
    for line in io::stdin().lines() {
        let (step, current) = serde_json::from_str(&line.unwrap()).unwrap();
        reader.current = current;
        reader.carry_out(step);
        done();
    }
    reader.check_maps();
}

/// A process that serves, as its parent sees it.
struct Served {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    may_die: bool,
}

impl Served {
    fn start(world: &World) -> Self {
        let told = (
            &world.dir,
            &world.server.endpoint(),
            world.most_kib,
            world.versions,
        );
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "fastfile_model::any_history_reads_the_objects"])
            .arg("--nocapture")
            .env(TOLD, serde_json::to_string(&told).unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut served = Self {
            orders: child.stdin.take().unwrap(),
            answers: BufReader::new(child.stdout.take().unwrap()),
            child,
            may_die: false,
        };
        assert!(served.is_done(), "it does not start");
        served
    }

    fn is_done(&mut self) -> bool {
        let mut answer = String::new();
        loop {
            answer.clear();
            if self.answers.read_line(&mut answer).unwrap_or(0) == 0 {
                return false;
            }
            if answer.trim_end().ends_with(DONE) {
                return true;
            }
        }
    }

    /// Whether it lived through it.
    fn order(&mut self, step: &Step, versions: [u64; OBJECTS]) -> bool {
        self.may_die |= matches!(step, Step::Die(_));
        let line = serde_json::to_string(&(step, versions)).unwrap();
        writeln!(self.orders, "{line}").is_ok() && self.is_done()
    }

    /// It has ended as it should: by itself at the end of its orders, or by the signal that it was to die of.
    fn bury(mut self) -> bool {
        drop(self.orders);
        let _ = io::copy(&mut self.answers, &mut io::sink());
        let status = self.child.wait().unwrap();
        status.success() || (self.may_die && status.signal() == Some(9))
    }
}

struct World {
    server: FakeS3,
    dir: String,
    most_kib: Option<u64>,
    versions: [u64; OBJECTS],
}

impl World {
    fn put(&self, object: usize) {
        let bytes = content(object, self.versions[object]);
        self.server.put("b", &format!("d/{object}"), &bytes);
    }

    /// What all processes did is told by what they leave: a cache without a wrong block, and files that are right.
    fn check_what_is_left(&self) {
        let dir = Path::new(&self.dir);
        let left = BlockCache::open(cache(dir, None), Arc::default()).unwrap();
        let audit = left.verify().unwrap();
        assert_eq!((audit.bad_blocks, audit.damaged_entries), (0, 0));
        let files = open(dir, &self.server.endpoint(), None);
        for object in 0..OBJECTS {
            let mut bytes = Vec::new();
            let mut file = files.open_file(object.to_string()).unwrap();
            file.read_to_end(&mut bytes).unwrap();
            assert!(bytes == content(object, self.versions[object]), "{object}");
        }
    }
}

proptest! {
    // A case takes half a second: each starts processes.
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 100, ..ProptestConfig::default() })]

    /// Invariants 2, 3 and 9 for FastFile's files: any sequence of opens, reads, seeks, maps, evictions, replaced objects,
    /// faults and kills, in two processes over one cache, reads what the objects hold, or is ESTALE.
    #[test]
    fn any_history_reads_the_objects(
        events in proptest::collection::vec(event(), 1..50),
        most_kib in prop_oneof![2 => Just(None), 1 => (64..900u64).prop_map(Some)],
        (fault_share, latency_ms) in (0.0..0.2f64, 0..3u64),
    ) {
        if let Ok(told) = std::env::var(TOLD) {
            let served = std::panic::catch_unwind(|| serve(&told));
            // The other cases are the parent's, and so is making them smaller.
            std::process::exit(if served.is_ok() { 0 } else { 101 });
        }
        let dir = tempfile::tempdir().unwrap();
        let mut world = World {
            server: FakeS3::start().unwrap(),
            dir: dir.path().to_str().unwrap().into(),
            most_kib,
            versions: [0; OBJECTS],
        };
        (0..OBJECTS).for_each(|object| world.put(object));
        world.server.set_shape(Shape {
            latency: Latency::fixed(Duration::from_millis(latency_ms)),
            ..Shape::default()
        });
        let broken = Effect::Status { status: 500, code: String::new() };
        let faults = [broken, Effect::Reset { at_byte: 5_000 }, Effect::Truncate { at_byte: 100 }, Effect::Garbage];
        let rule = |effect| Rule::new(effect).operations(&[Operation::Get]).probability(fault_share / 4.0);
        world.server.script("b/d/", faults.map(rule).to_vec());

        let mut processes: Vec<Served> = (0..PROCESSES).map(|_| Served::start(&world)).collect();
        for event in events {
            match event {
                Event::Replace(object) => {
                    world.versions[object] += 1;
                    world.put(object);
                }
                Event::Step(who, step) => {
                    if !processes[who].order(&step, world.versions) {
                        let next = Served::start(&world);
                        prop_assert!(std::mem::replace(&mut processes[who], next).bury(), "at {step:?}");
                    }
                }
            }
        }
        for process in processes {
            prop_assert!(process.bury(), "at the end");
        }
        world.check_what_is_left();
    }
}
