//! The training scripts of examples/readers do what they say, without Standpipe: plain FIFOs and plain files.
//!
//! The demo and the Pipe mode tests lean on these scripts. If one of them misbehaves there, this says whose fault it is.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use rustix::fs::Mode;
use serde::Deserialize;
use tempfile::TempDir;

use crate::source;

/// What a script prints about an epoch.
#[derive(Debug, Deserialize, PartialEq, Eq)]
struct Report {
    epoch: u32,
    samples: u32,
    bytes: u64,
    sha256: String,
}

/// A base directory with `input/data`, and the shards of the sample dataset beside it.
struct Stage {
    dir: TempDir,
    shards: Vec<PathBuf>,
}

impl Stage {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let made = dir.path().join("made");
        source::make_sample_data(&made);
        fs::create_dir_all(dir.path().join("input/data")).unwrap();
        let mut shards: Vec<PathBuf> = fs::read_dir(made.join("shards"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        shards.sort();
        Self { dir, shards }
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("input/data")
    }

    /// All shards back to back: what Pipe mode delivers.
    fn stream(&self) -> Vec<u8> {
        self.shards
            .iter()
            .flat_map(|shard| fs::read(shard).unwrap())
            .collect()
    }

    fn spawn(&self, script: &str, args: &[&str]) -> Child {
        Command::new("python3")
            .arg(source::root().join("examples/readers").join(script))
            .args(args)
            .env("SAGEMAKER_BASE_DIR", self.dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn run(&self, script: &str, args: &[&str]) -> Vec<Report> {
        reports(self.spawn(script, args))
    }
}

fn reports(child: Child) -> Vec<Report> {
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", output.status);
    let lines = String::from_utf8(output.stdout).unwrap();
    lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn mkfifo(path: &Path) {
    rustix::fs::mkfifoat(rustix::fs::CWD, path, Mode::RUSR | Mode::WUSR).unwrap();
}

#[test]
fn both_scripts_see_the_same_samples_and_bytes() {
    let stage = Stage::new();
    let stream = stage.stream();
    let fifos = [stage.data().join("train_0"), stage.data().join("train_1")];
    fifos.iter().for_each(|path| mkfifo(path));
    let writer = thread::spawn({
        let stream = stream.clone();
        move || {
            for path in fifos {
                File::create(path).unwrap().write_all(&stream).unwrap();
            }
        }
    });
    let piped = stage.run("pipe_mode_train.py", &["--epochs", "2"]);
    writer.join().unwrap();

    let files = stage.data().join("train");
    fs::create_dir(&files).unwrap();
    for shard in &stage.shards {
        fs::copy(shard, files.join(shard.file_name().unwrap())).unwrap();
    }
    let filed = stage.run("file_mode_train.py", &["--epochs", "2"]);

    assert_eq!(piped, filed);
    assert_eq!(piped.len(), 2);
    assert_eq!((piped[1].epoch, piped[1].samples), (1, 192));
    assert_eq!(piped[1].bytes, stream.len() as u64);
}

#[test]
fn the_pipe_script_fails_loudly_on_a_stream_that_breaks_off_in_a_sample() {
    let stage = Stage::new();
    let path = stage.data().join("train_0");
    mkfifo(&path);
    let stream = stage.stream();
    let writer = thread::spawn(move || {
        // Ten kilobytes into the fourth shard: inside an image. At a shard's end nobody could tell.
        let cut = stream.len() / 2 + 10_000;
        File::create(path)
            .unwrap()
            .write_all(&stream[..cut])
            .unwrap();
    });
    let output = stage
        .spawn("pipe_mode_train.py", &[])
        .wait_with_output()
        .unwrap();
    writer.join().unwrap();
    assert!(!output.status.success());
    assert!(
        output.stdout.is_empty(),
        "it reported an epoch that it had not read"
    );
}

#[test]
fn the_pipe_script_names_the_fifo_that_never_came() {
    let stage = Stage::new();
    let script = stage.spawn("pipe_mode_train.py", &["--patience-s", "0"]);
    let output = script.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && errors.contains("train_0"),
        "{errors}"
    );
}
