//! The trainers of the demo: the scripts of examples/readers as they are, in a process whose reading is watched.
//!
//! The scripts are not changed to be measured: the kernel counts what a process has read (`rchar` in `/proc/PID/io`),
//! from files and from pipes alike. The Python library that is read before the first sample counts too; at the end the
//! script says how many bytes of data it had, and the rest is taken off.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::error::{Error, Result};

/// The Pipe mode script, the File mode script, and what both import.
const SCRIPTS: [(&str, &str); 3] = [
    (
        PIPE,
        include_str!("../../../examples/readers/pipe_mode_train.py"),
    ),
    (
        FILE,
        include_str!("../../../examples/readers/file_mode_train.py"),
    ),
    (
        "samples.py",
        include_str!("../../../examples/readers/samples.py"),
    ),
];

/// The script that reads `train_0` in the channels' directory.
pub(super) const PIPE: &str = "pipe_mode_train.py";

/// The script that reads the files below `train` there.
pub(super) const FILE: &str = "file_mode_train.py";

/// How often the counter is read: finer than a picture shows.
const LOOK_PAUSE: Duration = Duration::from_millis(5);

/// The scripts, ready to run.
#[derive(Debug)]
pub(super) struct Reader {
    base: PathBuf,
    step_ms: f64,
}

/// A run of one.
#[derive(Debug)]
pub(super) struct Running {
    child: Child,
    ended: Arc<AtomicBool>,
    watcher: Option<JoinHandle<Vec<(Instant, u64)>>>,
    started: Instant,
}

/// What it received when.
#[derive(Debug, Default)]
pub(super) struct Reading {
    /// Time since the job's start, and bytes until then.
    pub(super) progress: Vec<(Duration, u64)>,
    pub(super) bytes: u64,
    pub(super) samples: u64,
    pub(super) digest: String,
    /// From the job's start to the trainer's end.
    pub(super) total: Duration,
}

/// What a script prints.
#[derive(Debug, Deserialize)]
struct Said {
    samples: u64,
    bytes: u64,
    sha256: String,
}

impl Reader {
    /// Writes the scripts below `base`, the root of the tree that a training container would see.
    pub(super) fn prepare(base: &Path, step_ms: f64) -> Result<Self> {
        for (name, text) in SCRIPTS {
            let path = base.join(name);
            std::fs::write(&path, text).map_err(|source| Error::io(&path, source))?;
        }
        Ok(Self {
            base: base.to_owned(),
            step_ms,
        })
    }

    /// Where the channels lie.
    pub(super) fn channels(&self) -> PathBuf {
        self.base.join("input/data")
    }

    /// Starts `script`; the job began at `started`.
    pub(super) fn start(&self, script: &str, started: Instant) -> Result<Running> {
        let child = Command::new("python3")
            .arg(self.base.join(script))
            .args(["--step-ms", &self.step_ms.to_string()])
            .env("SAGEMAKER_BASE_DIR", &self.base)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|source| Error::io("python3", source))?;
        let ended = Arc::new(AtomicBool::new(false));
        let (pid, flag) = (child.id(), ended.clone());
        Ok(Running {
            child,
            ended,
            watcher: Some(std::thread::spawn(move || watch(pid, &flag))),
            started,
        })
    }
}

/// The counter of a process, until it has ended.
fn watch(pid: u32, ended: &AtomicBool) -> Vec<(Instant, u64)> {
    let path = format!("/proc/{pid}/io");
    let mut seen = Vec::new();
    while !ended.load(Ordering::Acquire) {
        if let Some(read) = std::fs::read_to_string(&path)
            .ok()
            .as_deref()
            .and_then(read_bytes)
        {
            seen.push((Instant::now(), read));
        }
        std::thread::sleep(LOOK_PAUSE);
    }
    seen
}

fn read_bytes(io: &str) -> Option<u64> {
    let line = io.lines().find_map(|line| line.strip_prefix("rchar:"))?;
    line.trim().parse().ok()
}

impl Running {
    /// Waits for its end.
    pub(super) fn finish(mut self) -> Result<Reading> {
        let failed = |source| Error::io("python3", source);
        let said = match self.child.stdout.take() {
            Some(stdout) => std::io::read_to_string(stdout).map_err(failed)?,
            None => String::new(),
        };
        let status = self.child.wait().map_err(failed)?;
        let total = self.started.elapsed();
        let other = |text| Err(failed(std::io::Error::other(text)));
        if !status.success() {
            return other(format!("the trainer failed: {status}"));
        }
        match serde_json::from_str::<Said>(&said) {
            Ok(said) => Ok(Reading {
                progress: progress(&self.seen(), self.started, said.bytes),
                bytes: said.bytes,
                samples: said.samples,
                digest: said.sha256,
                total,
            }),
            Err(error) => other(format!("the trainer said {said:?}: {error}")),
        }
    }

    /// What the watcher saw. It is stopped by that.
    fn seen(&mut self) -> Vec<(Instant, u64)> {
        self.ended.store(true, Ordering::Release);
        let watcher = self.watcher.take();
        watcher
            .and_then(|thread| thread.join().ok())
            .unwrap_or_default()
    }
}

impl Drop for Running {
    /// A trainer that nobody waits for any more would wait for its pipe for ever.
    fn drop(&mut self) {
        // Both fail when it has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.seen();
    }
}

/// The counter's values without what was read besides the data: it was read before them.
fn progress(seen: &[(Instant, u64)], started: Instant, bytes: u64) -> Vec<(Duration, u64)> {
    let other = seen
        .last()
        .map_or(0, |(_, read)| read.saturating_sub(bytes));
    let of_data = |&(at, read): &(Instant, u64)| {
        let read = read.saturating_sub(other);
        (read > 0).then(|| (at.saturating_duration_since(started), read))
    };
    let mut progress: Vec<_> = seen.iter().filter_map(of_data).collect();
    progress.dedup_by_key(|(_, read)| *read);
    progress
}

impl Reading {
    /// When it had the first bytes.
    pub(super) fn first_byte(&self) -> Duration {
        self.progress.first().map_or(self.total, |(time, _)| *time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_before_the_data_is_taken_off() {
        let started = Instant::now();
        let at = |ms| started + Duration::from_millis(ms);
        let seen = [
            (at(1), 500),
            (at(2), 900),
            (at(3), 1_400),
            (at(4), 1_400),
            (at(5), 2_900),
        ];
        let ms = Duration::from_millis;
        assert_eq!(
            progress(&seen, started, 2_000),
            [(ms(3), 500), (ms(5), 2_000)]
        );
        assert_eq!(progress(&[], started, 2_000), []);
    }

    #[test]
    fn the_counter_is_found_among_the_others() {
        assert_eq!(read_bytes("rchar: 12\nwchar: 3\n"), Some(12));
        assert_eq!(read_bytes("wchar: 3\n"), None);
    }
}
