//! What became of a job: for its exit code, for people, for machines.

use std::time::Duration;

use serde::Serialize;

use super::stop::Cause;
use crate::download::DownloadProgress;
use crate::error::Error;
use crate::input::InputMode;
use crate::metrics::{Presence, Sink, Snapshot, Verdict};
use crate::pipe::ChannelSummary;

/// What became of one channel.
#[derive(Debug, Clone, Default, Serialize)]
#[non_exhaustive]
pub struct ChannelReport {
    /// Its name.
    pub channel: String,
    /// `Pipe`, `FastFile` or `File`.
    pub mode: &'static str,
    /// Bytes that reached the trainer's side: its FIFO, its reads, the disk.
    pub bytes: u64,
    /// Bytes a second of the time in which somebody was there to take them.
    pub bytes_per_second: f64,
    /// From the first open to the first byte, seconds; Pipe mode only.
    pub first_byte_seconds: Option<f64>,
    /// The share of that time in which data was waited for, 0 to 1.
    pub stall_share: f64,
    /// Epochs that were read to their end; Pipe mode only.
    pub epochs: Option<u64>,
    /// Epochs that the trainer closed before their end; Pipe mode only.
    pub early_closes: Option<u64>,
    /// How whoever took the bytes spent the time.
    #[serde(skip)]
    pub presence: Presence,
}

impl ChannelReport {
    fn new(name: &str, mode: InputMode, bytes: u64, presence: Presence) -> Self {
        Self {
            channel: name.to_owned(),
            mode: mode.as_str(),
            bytes,
            bytes_per_second: bytes as f64 / presence.present.as_secs_f64().max(1e-9),
            first_byte_seconds: None,
            stall_share: presence.stall_share(),
            epochs: None,
            early_closes: None,
            presence,
        }
    }

    pub(super) fn of_pipe(summary: &ChannelSummary) -> Self {
        let name = summary.channel.as_str();
        let mut report = Self::new(name, InputMode::Pipe, summary.bytes, summary.presence());
        report.first_byte_seconds = summary.first_byte.map(|time| time.as_secs_f64());
        report.epochs = Some(summary.epochs);
        report.early_closes = Some(summary.early_closes);
        report
    }

    /// The download took `taken`; that its lanes waited is no stall of the trainer.
    pub(super) fn of_files(name: &str, progress: &DownloadProgress, taken: Duration) -> Self {
        let bytes = progress.written_bytes.get();
        let mut report = Self::new(name, InputMode::File, bytes, progress.presence());
        report.bytes_per_second = bytes as f64 / taken.as_secs_f64().max(1e-9);
        report
    }

    #[cfg(all(feature = "fuse", target_os = "linux"))]
    pub(super) fn of_mount(name: &str, snapshot: &Snapshot, mounted: Duration) -> Self {
        let presence = Presence {
            present: mounted,
            stalled: Duration::from_nanos(snapshot.consumer_stall_ns),
            blocked: Duration::ZERO,
        };
        Self::new(
            name,
            InputMode::FastFile,
            snapshot.bytes_delivered,
            presence,
        )
    }
}

/// What became of the checkpoints.
#[derive(Debug, Clone, Default, Serialize)]
#[non_exhaustive]
pub struct CheckpointReport {
    /// Files fetched from S3 at the start.
    pub restored_files: u64,
    /// Their bytes.
    pub restored_bytes: u64,
    /// Files of S3 that were here already.
    pub kept_files: u64,
    /// Uploads, a file that changed twice counting twice.
    pub uploaded_files: u64,
    /// Their bytes.
    pub uploaded_bytes: u64,
    /// Objects deleted because their file was.
    pub deleted_files: u64,
    /// Uploads given up because the file changed meanwhile; they are made good later.
    pub changed_meanwhile: u64,
    /// Files that are not in S3 because there was no more time.
    pub missing_files: Vec<String>,
    /// Files that were left out because they were changed so shortly before the trainer was killed, or died, that they
    /// may be half written.
    pub unsettled_files: Vec<String>,
    /// How long the last sync took, after the trainer's end, seconds.
    pub last_sync_seconds: f64,
}

/// What became of a job.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct JobSummary {
    /// Its name.
    pub job_name: String,
    /// The exit code of the whole.
    pub exit_code: u8,
    /// The trainer's own; none if it was never started.
    pub trainer_exit_code: Option<u8>,
    /// Why it ended before its trainer did.
    pub cause: Option<Cause>,
    /// Whether the trainer did not end when it was asked to.
    pub killed: bool,
    /// What the trainer wrote to `output/failure`, its first 1,024 characters.
    pub failure_reason: Option<String>,
    /// What failed, other than the trainer.
    #[serde(skip)]
    pub error: Option<Error>,
    /// How long the trainer ran, seconds.
    pub trained_seconds: f64,
    /// Each channel.
    pub channels: Vec<ChannelReport>,
    /// What became of the checkpoints, where there are some.
    pub checkpoint: Option<CheckpointReport>,
    /// Where model and output went.
    pub uploaded: Vec<String>,
}

impl JobSummary {
    pub(super) fn new(job_name: &str) -> Self {
        Self {
            job_name: job_name.to_owned(),
            exit_code: 0,
            trainer_exit_code: None,
            cause: None,
            killed: false,
            failure_reason: None,
            error: None,
            trained_seconds: 0.0,
            channels: Vec::new(),
            checkpoint: None,
            uploaded: Vec::new(),
        }
    }

    /// Bytes of all channels.
    pub fn bytes(&self) -> u64 {
        self.channels.iter().map(|channel| channel.bytes).sum()
    }

    /// How those who took the bytes while the trainer ran spent their time.
    pub fn presence(&self) -> Presence {
        let streams = |channel: &&ChannelReport| channel.mode != InputMode::File.as_str();
        let while_training = self.channels.iter().filter(streams);
        while_training.map(|channel| channel.presence).sum()
    }

    /// Why it was not faster, as far as the input is concerned.
    pub fn verdict(&self, snapshot: &Snapshot) -> Option<Verdict> {
        let presence = self.presence();
        (!presence.present.is_zero()).then(|| snapshot.verdict_on(presence, Sink::Consumer))
    }
}

/// The beginning of `output/failure`, as `FailureReason` shows it.
pub(super) fn failure_reason(bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(bytes);
    let text: String = text.trim_end().chars().take(1024).collect();
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_told_by_its_first_1024_characters() {
        assert_eq!(failure_reason(b""), None);
        assert_eq!(
            failure_reason(b"out of memory\n").as_deref(),
            Some("out of memory")
        );
        let long = "ü".repeat(2000);
        let told = failure_reason(long.as_bytes()).unwrap();
        assert_eq!(told.chars().count(), 1024);
    }

    #[test]
    fn downloads_are_no_part_of_the_time_that_the_trainer_waited() {
        let mut summary = JobSummary::new("j");
        let report = |mode, present| {
            let presence = Presence {
                present: Duration::from_secs(present),
                stalled: Duration::from_secs(1),
                blocked: Duration::ZERO,
            };
            ChannelReport::new("c", mode, 10, presence)
        };
        summary.channels = vec![report(InputMode::File, 100), report(InputMode::Pipe, 4)];
        assert_eq!(summary.bytes(), 20);
        assert_eq!(summary.presence().stall_share(), 0.25);
    }
}
