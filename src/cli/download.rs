//! `standpipe download`: File mode.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::flags::EngineFlags;
use super::progress::{Progress, Sample};
use super::report::{Report, Traffic, moved};
use super::{Context, connect, interrupt};
use crate::download::{self, DownloadConfig, DownloadProgress};
use crate::error::Result;
use crate::input::Source;
use crate::metrics::{Metrics, Sink};
use crate::prefetch::Prefetcher;

/// Download an object, a prefix or a pattern into a directory
///
/// Files are named by their keys, relative to the prefix (up to its last `/`). Each appears only when it is complete
/// and verified. A second run fetches only what is missing or different (size or date), so an interrupted download
/// goes on where it was.
#[derive(Debug, Args)]
pub(super) struct Download {
    /// s3://bucket/prefix/, s3://bucket/key, file:///path or a path; braces expand
    uri: Source,
    /// Where to put it; made if missing
    dir: PathBuf,
    /// Flush each file to the disk before it gets its name, so that it also survives a loss of power
    #[arg(long, env = "STANDPIPE_FSYNC")]
    fsync: bool,
    #[command(flatten)]
    engine: EngineFlags,
}

impl Download {
    pub(super) fn run(self, context: &Context) -> Result<Report> {
        let client = context.connect(connect::schemes([&self.uri]))?;
        let engine = Prefetcher::new(client, self.engine.config(), context.metrics.clone())?;
        let mut config = DownloadConfig::default();
        config.fsync = self.fsync;
        let streams = u32::try_from(config.lanes.get()).unwrap_or(u32::MAX);
        let download = download::Download::new(engine, self.uri, self.dir, config);
        let stop = download.stop().clone();
        interrupt::listen(move || stop.cancel())?;
        let progress = Progress::start(
            context.shows_progress(),
            sampler(
                download.progress().clone(),
                context.metrics.clone(),
                streams,
            ),
        );
        let result = download.run();
        drop(progress);
        result?;
        Ok(report(download.progress(), context, streams))
    }
}

fn sampler(
    progress: Arc<DownloadProgress>,
    metrics: Arc<Metrics>,
    streams: u32,
) -> impl Fn() -> Sample + Send + 'static {
    move || {
        let skipped = progress.skipped_bytes.get();
        Sample {
            bytes: progress.written_bytes.get(),
            total_bytes: progress
                .is_listed()
                .then(|| progress.found_bytes.get().saturating_sub(skipped)),
            files: Some((
                progress.written_files.get() + progress.skipped_files.get(),
                progress.found_files.get(),
            )),
            stall_ns: metrics.consumer_stall_ns.get(),
            streams,
        }
    }
}

fn report(progress: &DownloadProgress, context: &Context, streams: u32) -> Report {
    let (written, skipped) = (progress.written_files.get(), progress.skipped_files.get());
    let bytes = progress.written_bytes.get();
    let what = match skipped {
        0 => format!("{written} files, "),
        _ => format!("{written} files ({skipped} were complete before), "),
    };
    let mut report = Report {
        line: Some(moved(&what, bytes, context.started.elapsed())),
        traffic: Some(Traffic {
            bytes,
            first_byte: None,
            streams,
            sink: Sink::Disk,
        }),
        ..Report::default()
    };
    report.fields.insert("files_written".into(), written.into());
    report.fields.insert("files_skipped".into(), skipped.into());
    report
}
