//! `cat` and `pipe` under a 5 % fault rate: the right bytes, within the memory promised, however long it runs.
//!
//! CI runs a gigabyte of it; `make soak` runs 100 GiB (`STANDPIPE_SOAK_BYTES`). The objects share one pattern on the
//! server, so that they cost no memory there.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fake_s3::{Effect, FakeS3, Rule, content};

/// The largest object; the last one is what is left.
const OBJECT_BYTES: u64 = 256 << 20;
const BUDGET_BYTES: u64 = 64 << 20;
/// What the program may need beside its budget.
const BESIDE_BYTES: u64 = 64 << 20;

fn soak_bytes() -> u64 {
    let text = std::env::var("STANDPIPE_SOAK_BYTES").unwrap_or_else(|_| "1GiB".into());
    let gibibytes = text
        .strip_suffix("GiB")
        .and_then(|number| number.parse::<u64>().ok());
    gibibytes.unwrap_or_else(|| {
        panic!("STANDPIPE_SOAK_BYTES: {text:?}: use a number and GiB, such as 100GiB")
    }) << 30
}

fn object_sizes(total: u64) -> Vec<u64> {
    // Odd sizes, so that no part is ever the whole grid.
    let mut sizes = Vec::new();
    let mut left = total;
    while left > 0 {
        sizes.push(left.min(OBJECT_BYTES - sizes.len() as u64 % 977));
        left -= sizes.last().unwrap();
    }
    sizes
}

/// One request in twenty fails, in five ways.
fn faulty(sizes: &[u64]) -> FakeS3 {
    let server = FakeS3::builder().log_limit(0).start().unwrap();
    for (seed, size) in sizes.iter().enumerate() {
        server.put_synthetic("soak", &format!("{seed:05}"), *size, seed as u64);
    }
    let effects = [
        Effect::Reset { at_byte: 1 << 20 },
        Effect::Truncate { at_byte: 3_333_333 },
        Effect::Status {
            status: 500,
            code: "InternalError".into(),
        },
        Effect::Status {
            status: 503,
            code: "ServiceUnavailable".into(),
        },
        Effect::Garbage,
    ];
    server.script(
        "soak",
        effects
            .map(|effect| Rule::new(effect).probability(0.01))
            .to_vec(),
    );
    server
}

fn standpipe(server: &FakeS3, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_standpipe"));
    command
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("AWS_REGION", "us-east-1")
        .args(args)
        .args([
            "--endpoint-url",
            &server.endpoint(),
            "--no-sign-request",
            "--memory",
            "64MiB",
        ])
        .stdin(Stdio::null());
    command
}

/// Reads to the end, comparing every byte; the largest memory of `child` seen on the way.
fn compare(mut from: impl Read, sizes: &[u64], child: &Child) -> u64 {
    let (mut got, mut expected) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut peak = 0;
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
        }
        peak = peak.max(peak_memory(child.id()));
    }
    assert_eq!(from.read(&mut got).unwrap(), 0, "more than was asked for");
    peak
}

fn peak_memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
        .map_or(0, |kib| kib << 10)
}

fn ends_well(mut child: Child, peak: u64) {
    assert!(child.wait().unwrap().success());
    assert!(
        peak > BUDGET_BYTES / 2,
        "nothing was measured: {peak} bytes"
    );
    assert!(
        peak <= BUDGET_BYTES + BESIDE_BYTES,
        "{} MiB with a budget of {} MiB",
        peak >> 20,
        BUDGET_BYTES >> 20
    );
}

#[test]
fn cat_delivers_every_byte_under_faults() {
    let sizes = object_sizes(soak_bytes());
    let server = faulty(&sizes);
    let mut child = standpipe(&server, &["cat", "s3://soak/"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let out = child.stdout.take().unwrap();
    let peak = compare(out, &sizes, &child);
    ends_well(child, peak);
}

#[test]
fn pipe_delivers_every_byte_under_faults() {
    let sizes = object_sizes(soak_bytes());
    let server = faulty(&sizes);
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path().to_str().unwrap();
    let args = [
        "pipe",
        "--channel",
        "train=s3://soak/",
        "--dir",
        dir,
        "--epochs",
        "1",
    ];
    let child = standpipe(&server, &args).spawn().unwrap();
    let fifo = open_when_there(&directory.path().join("train_0"));
    let peak = compare(fifo, &sizes, &child);
    // The empty FIFO behind the last epoch, as a reader that repeats would open it.
    drop(open_when_there(&directory.path().join("train_1")));
    ends_well(child, peak);
}

fn open_when_there(path: &Path) -> File {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match File::open(path) {
            Ok(file) => return file,
            Err(error) => assert!(Instant::now() < deadline, "{}: {error}", path.display()),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
