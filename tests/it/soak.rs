//! `cat` and `pipe`, plain and over TLS, under a 5 % fault rate: the right bytes, within the memory promised, with no
//! descriptor or thread left over, however long it runs.
//!
//! CI runs two gigabytes of it; `make soak` runs 100 GiB (`STANDPIPE_SOAK_BYTES`, shared by the four runs). The objects
//! share one pattern on the server, so that they cost no memory there. Every checksum is required: a flipped bit that
//! went unseen would be seen here, too, by the comparison of every byte.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fake_s3::{Effect, FakeS3, Rule, content};
use serde_json::Value;
use tempfile::NamedTempFile;

use crate::world::Wire;

/// The largest object.
const BIG_BYTES: u64 = 128 << 20;
/// An object that is fetched whole, so that a flipped bit is seen before a byte of it is delivered, and asked for again.
const SMALL_BYTES: u64 = 700_001;
/// Small, so that a gigabyte is a thousand requests and meets fifty faults. Requests of this size go through the SDK,
/// those for the small objects are signed by hand.
const PART_SIZE: &str = "1MiB";
const CONCURRENCY: usize = 16;
const BUDGET_BYTES: u64 = 64 << 20;
/// What the program may need beside its budget.
const BESIDE_BYTES: u64 = 64 << 20;
/// How many more may be open after the first quarter than in it: a new connection may stand beside one that is closing.
/// More connections than that are broken later, even in CI.
const MORE_DESCRIPTORS: usize = 6;
/// Likewise: the runtime starts a few to wait for names and files.
const MORE_THREADS: usize = 4;
/// Of one in so many small objects a bit is flipped. More than there are in flight: the second try is never hit again,
/// which would rightly be an error.
const FLIP_EVERY: usize = 50;
/// Bytes for each stall that only a new request ends. It takes five to ten
/// seconds.
const STALL_EVERY_BYTES: u64 = 4 << 30;

/// What each of the four runs reads.
fn soak_bytes() -> u64 {
    let text = std::env::var("STANDPIPE_SOAK_BYTES").unwrap_or_else(|_| "2GiB".into());
    let gibibytes = text
        .strip_suffix("GiB")
        .and_then(|number| number.parse::<u64>().ok());
    let gibibytes = gibibytes.unwrap_or_else(|| {
        panic!("STANDPIPE_SOAK_BYTES: {text:?}: use a number and GiB, such as 100GiB")
    });
    (gibibytes << 30) / 4
}

/// A bucket with big objects and then small ones, and what each request to it may meet.
struct Source {
    server: FakeS3,
    ca_file: Option<NamedTempFile>,
    /// In the order of the keys; an object's place is its seed.
    sizes: Vec<u64>,
    flips: usize,
    /// What the command says beside the data: in a file, because a pipe that nobody reads would fill up.
    said: NamedTempFile,
}

impl Source {
    fn new(wire: Wire) -> Self {
        let total = soak_bytes();
        let server = FakeS3::builder()
            .tls(wire == Wire::Tls)
            .log_limit(0)
            .start()
            .unwrap();
        let ca_file = server.ca_pem().map(|pem| {
            let mut file = NamedTempFile::new().unwrap();
            file.write_all(pem.as_bytes()).unwrap();
            file
        });
        // Odd sizes, so that no part is ever the whole grid.
        let big = (0..total / 4 * 3 / BIG_BYTES).map(|at| BIG_BYTES - at % 977 - 1);
        let small = (0..total / 4 / SMALL_BYTES).map(|_| SMALL_BYTES);
        let sizes: Vec<u64> = big.chain(small).collect();
        for (seed, size) in sizes.iter().enumerate() {
            let kind = if *size > SMALL_BYTES { "big" } else { "small" };
            server.put_synthetic("soak", &format!("{kind}/{seed:06}"), *size, seed as u64);
        }
        let small = sizes.iter().filter(|size| **size == SMALL_BYTES).count();
        let flips = small / FLIP_EVERY;
        server.script("soak", faults(total, flips));
        Self {
            server,
            ca_file,
            sizes,
            flips,
            said: NamedTempFile::new().unwrap(),
        }
    }

    fn standpipe(&self, args: &[&str]) -> Command {
        let said = self.said.reopen().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_standpipe"));
        command
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_REGION", "us-east-1")
            .args(args)
            .args(["--endpoint-url", &self.server.endpoint()])
            .args(["--no-sign-request", "--json", "--checksums", "require"])
            .args(["--memory", "64MiB", "--part-size", PART_SIZE])
            .args(["--concurrency", &CONCURRENCY.to_string()])
            .stdin(Stdio::null())
            .stdout(said.try_clone().unwrap())
            .stderr(said);
        if let Some(file) = &self.ca_file {
            command.arg("--ca-bundle").arg(file.path());
        }
        command
    }
}

/// One request in twenty fails, in six ways; of some small objects a bit is flipped, and now and then an answer stops.
fn faults(total_bytes: u64, flips: usize) -> Vec<Rule> {
    let status = |status, code: &str| Effect::Status {
        status,
        code: code.into(),
    };
    // Three quarters of them break the connection, to see whether it is closed for good.
    let by_chance = [
        (1.25, Effect::Reset { at_byte: 300_000 }),
        (1.25, Effect::Truncate { at_byte: 600_000 }),
        (1.25, Effect::Garbage),
        (0.4, status(500, "InternalError")),
        (0.4, status(503, "ServiceUnavailable")),
        (
            0.45,
            Effect::Stall {
                at_byte: 500_000,
                ms: 200,
            },
        ),
    ];
    let by_chance =
        by_chance.map(|(percent, effect)| Rule::new(effect).probability(percent / 100.0));
    let flips = (0..flips).map(|at| {
        let rule = Rule::new(Effect::FlipBit { at_byte: 1_000 });
        let skip = FLIP_EVERY * at + FLIP_EVERY / 2;
        rule.prefix("/small").skip(skip as u32).times(1)
    });
    let stalls = 1 + total_bytes / STALL_EVERY_BYTES;
    let stalls = (0..stalls).map(|at| {
        let rule = Rule::new(Effect::Stall {
            at_byte: 400_000,
            ms: 12_000,
        });
        let parts_before = 100 + at * (STALL_EVERY_BYTES >> 20);
        rule.skip(parts_before as u32).times(1)
    });
    by_chance.into_iter().chain(flips).chain(stalls).collect()
}

/// What a process holds.
#[derive(Debug, Clone, Copy)]
struct Held {
    peak_bytes: u64,
    descriptors: usize,
    threads: usize,
}

impl Held {
    /// `None`: it has ended.
    fn by(pid: &str) -> Option<Self> {
        let count = |what| {
            Some(
                std::fs::read_dir(format!("/proc/{pid}/{what}"))
                    .ok()?
                    .count(),
            )
        };
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let peak = status.lines().find(|line| line.starts_with("VmHWM:"))?;
        let kib: u64 = peak.split_whitespace().nth(1)?.parse().ok()?;
        Some(Self {
            peak_bytes: kib << 10,
            descriptors: count("fd")?,
            threads: count("task")?,
        })
    }

    fn most(self, other: Self) -> Self {
        Self {
            peak_bytes: self.peak_bytes.max(other.peak_bytes),
            descriptors: self.descriptors.max(other.descriptors),
            threads: self.threads.max(other.threads),
        }
    }
}

/// Reads to the end, comparing every byte. The most that `child` held in the first quarter, and the most after it.
fn compare(mut from: impl Read, sizes: &[u64], child: &Child) -> [Held; 2] {
    let pid = child.id().to_string();
    let (mut got, mut expected) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let (total, mut read) = (sizes.iter().sum::<u64>(), 0);
    let mut held = [None; 2];
    for (seed, size) in sizes.iter().enumerate() {
        let mut offset = 0;
        while offset < *size {
            let n = (size - offset).min(got.len() as u64) as usize;
            from.read_exact(&mut got[..n])
                .unwrap_or_else(|error| panic!("object {seed} at {offset}: {error}"));
            content(seed as u64, offset, &mut expected[..n]);
            assert!(
                got[..n] == expected[..n],
                "object {seed}: wrong bytes at {offset}"
            );
            offset += n as u64;
            read += n as u64;
            if let Some(now) = Held::by(&pid) {
                let most = &mut held[usize::from(read > total / 4)];
                *most = Some(most.map_or(now, |most: Held| most.most(now)));
            }
        }
    }
    assert_eq!(from.read(&mut got).unwrap(), 0, "more than was asked for");
    held.map(|held| held.expect("it was seen alive"))
}

/// The command has ended well, has kept to its limits, and was really put to the test.
fn assert_sound(source: &Source, mut child: Child, [early, late]: [Held; 2]) {
    let ended = child.wait().unwrap();
    let said = std::fs::read_to_string(source.said.path()).unwrap();
    assert!(ended.success(), "{said}");
    eprintln!("early {early:?}, late {late:?}; {said}");
    let peak_bytes = late.peak_bytes;
    assert!(peak_bytes > BUDGET_BYTES / 4, "not measured: {late:?}");
    assert!(
        peak_bytes <= BUDGET_BYTES + BESIDE_BYTES,
        "{} MiB with a budget of {} MiB",
        peak_bytes >> 20,
        BUDGET_BYTES >> 20
    );
    let descriptors = early.descriptors + MORE_DESCRIPTORS;
    assert!(late.descriptors <= descriptors, "{early:?}, {late:?}");
    let threads = early.threads + MORE_THREADS;
    assert!(late.threads <= threads, "{early:?}, {late:?}");
    let line = said.lines().find(|line| line.starts_with('{'));
    let summary: Value = serde_json::from_str(line.unwrap_or(&said)).unwrap();
    let metric = |name: &str| summary["metrics"][name].as_u64().unwrap();
    let broken = metric("connections_dropped");
    assert!(broken > 2 * MORE_DESCRIPTORS as u64, "too few: {summary}");
    assert!(metric("retries") > source.flips as u64, "{summary}");
    assert_eq!(metric("checksums_bad"), source.flips as u64, "{summary}");
    let verified = (metric("checksums_verified"), metric("checksums_unverified"));
    assert_eq!(verified, (source.sizes.len() as u64, 0), "{summary}");
}

/// Runs it, and looks at what it leaves in this process: its server's connections, descriptors and threads.
fn soak(wire: Wire, run: impl FnOnce(&Source)) {
    let held = || {
        let held = Held::by("self").unwrap();
        (held.descriptors, held.threads)
    };
    let before = held();
    let source = Source::new(wire);
    run(&source);
    wait_until("no connection is left", || source.server.stats().open == 0);
    drop(source);
    wait_until("descriptors and threads are as before", || held() == before);
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < deadline, "not so: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn cat(wire: Wire) {
    soak(wire, |source| {
        let mut command = source.standpipe(&["cat", "s3://soak/"]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let out = child.stdout.take().unwrap();
        let held = compare(out, &source.sizes, &child);
        assert_sound(source, child, held);
    });
}

fn pipe(wire: Wire) {
    soak(wire, |source| {
        let directory = tempfile::tempdir().unwrap();
        let dir = directory.path().to_str().unwrap();
        let channel = ["pipe", "--channel", "train=s3://soak/", "--dir", dir];
        let args = [&channel[..], &["--epochs", "1"]].concat();
        let child = source.standpipe(&args).spawn().unwrap();
        let fifo = open_when_there(&directory.path().join("train_0"));
        let held = compare(fifo, &source.sizes, &child);
        // The empty FIFO behind the last epoch, as a reader that repeats would open it.
        drop(open_when_there(&directory.path().join("train_1")));
        assert_sound(source, child, held);
    });
}

fn open_when_there(path: &Path) -> File {
    let mut file = None;
    wait_until("the FIFO is there", || {
        file = File::open(path).ok();
        file.is_some()
    });
    file.expect("it was opened")
}

#[test]
fn cat_delivers_every_byte_under_faults() {
    cat(Wire::Plain);
}

#[test]
fn cat_delivers_every_byte_under_faults_over_tls() {
    cat(Wire::Tls);
}

#[test]
fn pipe_delivers_every_byte_under_faults() {
    pipe(Wire::Plain);
}

#[test]
fn pipe_delivers_every_byte_under_faults_over_tls() {
    pipe(Wire::Tls);
}
