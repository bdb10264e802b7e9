//! The trainer of the demo: a Python process, and what it says.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};

const SCRIPT: &str = include_str!("reader.py");

/// The script, ready to run.
#[derive(Debug)]
pub(super) struct Reader {
    script: PathBuf,
    step_ms: f64,
}

/// A run of it.
#[derive(Debug)]
pub(super) struct Running {
    child: Child,
    said: BufReader<ChildStdout>,
    started: SystemTime,
}

/// What it received when.
#[derive(Debug, Default)]
pub(super) struct Reading {
    /// Time since the job's start, and bytes until then.
    pub(super) progress: Vec<(Duration, u64)>,
    pub(super) digest: String,
    /// From the job's start to the trainer's end.
    pub(super) total: Duration,
}

impl Reader {
    /// Writes the script into `directory` and looks whether there is a Python to run it.
    pub(super) fn prepare(directory: &Path, step_ms: f64) -> Result<Self> {
        let found = Command::new("python3")
            .arg("--version")
            .stdout(Stdio::null())
            .status();
        if !found.is_ok_and(|status| status.success()) {
            return Err(Error::config(
                "python3",
                "not found: the demo's trainer is a Python script; install python3",
            ));
        }
        let script = directory.join("reader.py");
        std::fs::write(&script, SCRIPT).map_err(|source| Error::io(&script, source))?;
        Ok(Self { script, step_ms })
    }

    /// Starts it on `paths`; the job began at `started`.
    pub(super) fn start(
        &self,
        paths: impl IntoIterator<Item = PathBuf>,
        started: SystemTime,
    ) -> Result<Running> {
        let failed = |source| Error::io("python3", source);
        let mut child = Command::new("python3")
            .arg(&self.script)
            .arg(self.step_ms.to_string())
            .args(paths)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let said = child
            .stdout
            .take()
            .ok_or_else(|| failed(std::io::Error::other("no output")))?;
        Ok(Running {
            child,
            said: BufReader::new(said),
            started,
        })
    }
}

impl Running {
    /// Waits for its end.
    pub(super) fn finish(mut self) -> Result<Reading> {
        let failed = |source| Error::io("python3", source);
        let mut reading = Reading::default();
        for line in (&mut self.said).lines() {
            note(&mut reading, self.started, &line.map_err(failed)?);
        }
        let status = self.child.wait().map_err(failed)?;
        reading.total = self.started.elapsed().unwrap_or_default();
        match status.success() && !reading.digest.is_empty() {
            true => Ok(reading),
            false => Err(failed(std::io::Error::other(format!(
                "the trainer failed: {status}"
            )))),
        }
    }
}

impl Drop for Running {
    /// A trainer that nobody waits for any more would wait for its pipe for ever.
    fn drop(&mut self) {
        // Both fail when it has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn note(reading: &mut Reading, started: SystemTime, line: &str) {
    match line.split_once(' ') {
        Some(("sha256", digest)) => reading.digest = digest.into(),
        Some((time, bytes)) => {
            let time = time
                .parse::<f64>()
                .ok()
                .and_then(|time| Duration::try_from_secs_f64(time).ok());
            if let (Some(time), Ok(bytes)) = (time, bytes.parse()) {
                let since = (UNIX_EPOCH + time)
                    .duration_since(started)
                    .unwrap_or_default();
                reading.progress.push((since, bytes));
            }
        }
        None => {}
    }
}

impl Reading {
    /// All that it received.
    pub(super) fn bytes(&self) -> u64 {
        self.progress.last().map_or(0, |(_, bytes)| *bytes)
    }

    /// When it had the first byte.
    pub(super) fn first_byte(&self) -> Duration {
        self.progress.first().map_or(self.total, |(time, _)| *time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_script_prints_is_understood() {
        let started = UNIX_EPOCH + Duration::from_secs(100);
        let mut reading = Reading::default();
        for line in ["100.250000 1048576", "101.5 2097152", "noise", "sha256 abc"] {
            note(&mut reading, started, line);
        }
        assert_eq!((reading.bytes(), reading.digest.as_str()), (2 << 20, "abc"));
        assert_eq!(reading.first_byte(), Duration::from_millis(250));
    }
}
