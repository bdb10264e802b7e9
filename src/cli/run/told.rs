//! What people, logs and machines are told of a job: while it runs, and at its end.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::json;

use super::super::exit;
use super::super::progress;
use super::super::report::{self, Report, Traffic, moved};
use super::super::size::human;
use crate::error::{Error, Result};
use crate::job::{Cause, JobEvent, JobSummary};
use crate::metrics::Sink;

/// What is told and not written yet, at most; a job has few events.
const UNTOLD: usize = 64;

/// Tells what happens on a thread of its own: a log whose reader stalls must not keep a trainer from being stopped.
#[derive(Debug)]
pub(super) struct Teller {
    events: SyncSender<Option<JobEvent>>,
    thread: Option<JoinHandle<()>>,
}

/// Its other end.
#[derive(Debug, Clone)]
pub(super) struct Told(SyncSender<Option<JobEvent>>);

impl Teller {
    pub(super) fn start() -> Result<Self> {
        let (events, untold) = sync_channel(UNTOLD);
        let thread = std::thread::Builder::new()
            .name("events".into())
            .spawn(move || tell_all(&untold))
            .map_err(|error| Error::io("events", error))?;
        Ok(Self {
            events,
            thread: Some(thread),
        })
    }

    pub(super) fn told(&self) -> Told {
        Told(self.events.clone())
    }
}

impl Drop for Teller {
    /// Waits until all is told.
    fn drop(&mut self) {
        let _ = self.events.send(None);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Told {
    /// Does not wait: what there is no room for is not told.
    pub(super) fn tell(&self, event: &JobEvent) {
        if let Err(TrySendError::Full(event)) = self.0.try_send(Some(event.clone())) {
            tracing::debug!(?event, "not told: nobody reads");
        }
    }
}

fn tell_all(untold: &Receiver<Option<JobEvent>>) {
    while let Ok(Some(event)) = untold.recv() {
        progress::suspended(|| tell(&event));
    }
}

/// What people should know while it runs.
fn tell(event: &JobEvent) {
    report::say(&match event {
        JobEvent::Training { .. } => return,
        JobEvent::InputFailed { error } => format!(
            "{}standpipe: the trainer is stopped: what it would read is not the whole data\n",
            report::explain(error)
        ),
        JobEvent::Stopping { cause } => {
            format!(
                "standpipe: {}: the trainer is asked to end\n",
                cause.describe()
            )
        }
        JobEvent::Saving { cause } => format!(
            "standpipe: {}: the trainer has ended, what it has left is being saved; once more to stop at once\n",
            cause.describe()
        ),
        JobEvent::LeftOut { files } => format!(
            "standpipe: not saved, because the trainer was cut off while it may have been writing them: {}\n  \
             fix: --checkpoint-unsettled saves them all the same; a trainer that renames finished files needs it, and \
             more --stop-grace\n",
            first_few(files)
        ),
        JobEvent::UploadFailed { error } => report::explain(error),
        JobEvent::Killing => "standpipe: the trainer has not ended in time: killed\n".into(),
        JobEvent::Strays { count } => {
            format!("standpipe: killed {count} processes that the trainer has left behind\n")
        }
    });
}

fn first_few(files: &[String]) -> String {
    let more = files.len().saturating_sub(5);
    let mut text = files[..files.len() - more].join(", ");
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

pub(super) fn report(mut summary: JobSummary) -> Report {
    if let Some(error) = &summary.error
        && (summary.exit_code == 0 || summary.cause == Some(Cause::Input))
    {
        summary.exit_code = exit::of(error);
    }
    let trained = Duration::from_secs_f64(summary.trained_seconds);
    let (bytes, presence) = (summary.bytes(), summary.presence());
    let first = summary
        .channels
        .iter()
        .filter_map(|channel| channel.first_byte_seconds)
        .reduce(f64::min);
    let mut fields = BTreeMap::new();
    if let serde_json::Value::Object(told) = json!(summary) {
        fields.extend(told);
    }
    fields.insert(
        "error".into(),
        json!(
            summary
                .error
                .as_ref()
                .map(|error| json!({"message": report::chain(error), "fix": error.fix()}))
        ),
    );
    Report {
        line: Some(lines(&summary, trained)),
        is_logged: true,
        // Files were there before: what the trainer made of them is not seen.
        traffic: (!presence.present.is_zero()).then_some(Traffic {
            bytes,
            first_byte: first.map(Duration::from_secs_f64),
            taken_in: trained,
            presence,
            sink: Sink::Consumer,
        }),
        fields: fields.into_iter().collect(),
        exit_code: summary.exit_code,
    }
}

/// A line per channel, and one for the whole.
fn lines(summary: &JobSummary, trained: Duration) -> String {
    let mut text = String::new();
    for channel in &summary.channels {
        text += &format!(
            "  {} ({}): {}, {}/s",
            channel.channel,
            channel.mode,
            human(channel.bytes as f64),
            human(channel.bytes_per_second),
        );
        // Of files it is the download's, before there was a trainer that could have waited.
        if channel.mode != "File" {
            text += &format!(", waited {:.0}% for data", channel.stall_share * 100.0);
        }
        if let Some(epochs) = channel.epochs {
            text += &format!(", {}", report::counted(epochs, "epoch"));
        }
        if let Some(time) = channel.first_byte_seconds {
            text += &format!(", first byte after {:.0} ms", time * 1e3);
        }
        text.push('\n');
    }
    if let Some(kept) = &summary.checkpoint {
        text += &format!(
            "  checkpoints: {} restored, {} here already, {} uploaded",
            report::counted(kept.restored_files, "file"),
            kept.kept_files,
            kept.uploaded_files
        );
        if !kept.missing_files.is_empty() {
            text += &format!(", {} not in S3", kept.missing_files.len());
        }
        text.push('\n');
    }
    for uri in &summary.uploaded {
        text += &format!("  uploaded: {uri}\n");
    }
    if let Some(reason) = &summary.failure_reason {
        text += &format!("failure: {reason}\n");
    }
    let what = match summary.trainer_exit_code {
        Some(code) => format!("{}: exit code {code}, ", summary.job_name),
        None => format!("{}: not started, ", summary.job_name),
    };
    text + &moved(&what, summary.bytes(), trained)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_names_are_told_in_few_words() {
        let names: Vec<String> = (0..7).map(|n| n.to_string()).collect();
        assert_eq!(first_few(&names), "0, 1, 2, 3, 4 and 2 more");
        assert_eq!(first_few(&names[..2]), "0, 1");
    }
}
