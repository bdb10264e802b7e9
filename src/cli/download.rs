//! `standpipe download`: File mode.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::flags::{EngineFlags, switch};
use super::progress::{Progress, Sample};
use super::report::{Report, Traffic, counted, moved};
use super::size::human;
use super::total::Total;
use super::{Context, connect, interrupt};
use crate::download::{self, DownloadConfig, DownloadProgress};
use crate::error::Result;
use crate::input::Source;
use crate::metrics::Sink;
use crate::prefetch::Prefetcher;

const NOTES: &str = "\
Files are named by their keys, relative to the prefix up to its last /. Each appears only when it is
complete and verified. A second run fetches only what is missing or different (in size or date); it
goes on inside large files (8 MiB and more) that were interrupted. Those are hidden, named
.standpipe-*.part and .sums, and may be deleted when no download runs.

  standpipe download s3://bucket/train/ ./train
  standpipe download 's3://bucket/shard-{000..015}.tar' ./shards";

/// Download an object, a prefix or a pattern into a directory
#[derive(Debug, Args)]
#[command(after_help = NOTES)]
pub(super) struct Download {
    /// s3://bucket/prefix/, s3://bucket/key, file:///path or a path; braces expand
    uri: Source,
    /// Where to put it; made if missing
    dir: PathBuf,
    /// Flush each file before it gets its name: survives a loss of power
    #[arg(long, value_parser = switch, env = "STANDPIPE_FSYNC", hide_env = true)]
    fsync: bool,
    #[command(flatten)]
    engine: EngineFlags,
}

impl Download {
    pub(super) fn run(self, context: &Context) -> Result<Report> {
        let engine = self.engine.config()?;
        let mut config = DownloadConfig::fitting(&engine);
        config.fsync = self.fsync;
        let client = context.connect(&connect::schemes([&self.uri]), &engine)?;
        let engine = Prefetcher::new(client, engine, context.metrics.clone())?;
        let download = download::Download::new(engine, self.uri, self.dir, config);
        let stop = download.stop().clone();
        interrupt::listen(move || stop.cancel())?;
        let progress = Progress::start(
            context.shows_progress(),
            sampler(download.progress().clone()),
        );
        let result = download.run();
        drop(progress);
        if result.is_err() && !context.output.json {
            tell_what_is_kept(download.progress());
        }
        result?;
        Ok(report(download.progress(), context))
    }
}

/// Whoever sees a download fail is to know that it is not for nothing.
fn tell_what_is_kept(progress: &DownloadProgress) {
    let kept = progress.kept_bytes.get();
    if kept > 0 {
        let kept = human(kept as f64);
        eprintln!("standpipe: {kept} of unfinished files are kept: run again to continue");
    }
}

fn sampler(progress: Arc<DownloadProgress>) -> impl Fn() -> Sample + Send + 'static {
    move || {
        // Before the numbers that it makes final.
        let is_listed = progress.is_listed();
        let there = progress.skipped_bytes.get() + progress.resumed_bytes.get();
        let found = progress.found_bytes.get();
        Sample {
            bytes: progress.written_bytes.get(),
            total: (is_listed || found > 0).then_some(Total {
                bytes: found.saturating_sub(there),
                is_final: is_listed,
            }),
            count: Some(format!(
                "{}/{} files",
                progress.written_files.get() + progress.skipped_files.get(),
                progress.found_files.get()
            )),
            presence: progress.presence(),
            waits_for: None,
        }
    }
}

fn report(progress: &DownloadProgress, context: &Context) -> Report {
    let (written, skipped) = (progress.written_files.get(), progress.skipped_files.get());
    let (bytes, resumed) = (progress.written_bytes.get(), progress.resumed_bytes.get());
    let elapsed = context.started.elapsed();
    let mut what = counted(written, "file");
    if skipped > 0 {
        what += &format!(" ({skipped} more were there)");
    }
    what += ", ";
    if resumed > 0 {
        what += &format!("{} resumed, ", human(resumed as f64));
    }
    let mut report = Report {
        line: Some(moved(&what, bytes, elapsed)),
        traffic: Some(Traffic {
            bytes,
            first_byte: None,
            taken_in: elapsed,
            presence: progress.presence(),
            sink: Sink::Disk,
        }),
        ..Report::default()
    };
    report.fields.insert("files_written".into(), written.into());
    report.fields.insert("files_skipped".into(), skipped.into());
    report.fields.insert("resumed_bytes".into(), resumed.into());
    report
}
