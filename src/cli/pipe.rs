//! `standpipe pipe`: Pipe mode.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clap::Args;
use futures::StreamExt;

use super::flags::EngineFlags;
use super::progress::{self, Progress, Sample};
use super::report::{Report, Traffic, counted, moved};
use super::{Context, connect, interrupt};
use crate::error::Result;
use crate::input::{Channel, Lookup};
use crate::metrics::{Metrics, Sink};
use crate::pipe::{ChannelSummary, Failure, PipeChannel, PipeConfig, PipeServer, PipeSummary};
use crate::prefetch::Prefetcher;
use crate::runtime;

const NOTES: &str = "\
For --channel train=s3://bucket/prefix/ the trainer finds DIR/train_0, reads it to its end, closes it
and finds DIR/train_1 for the next epoch. The stream is every object whose key starts with the prefix,
back to back, in key order. An epoch that fails never ends: the cause is printed and written to
DIR/train_0.error.json, and the process exits with its code once the reader has gone.

  standpipe pipe --channel train=s3://bucket/train/ --dir /opt/ml/input/data --epochs 3 &
  python train.py";

/// Serve channels as FIFOs, one per epoch, as SageMaker's Pipe mode does
#[derive(Debug, Args)]
#[command(after_help = NOTES)]
pub(super) struct Pipe {
    /// A channel and its data; may be given again for more channels
    #[arg(long, required = true, value_name = "NAME=URI")]
    channel: Vec<Channel>,
    /// Where the FIFOs are made; made if missing
    #[arg(long, env = "STANDPIPE_DIR", hide_env = true)]
    dir: PathBuf,
    /// End after so many epochs [default: go on until Ctrl-C or SIGTERM]
    #[arg(long, value_name = "N", env = "STANDPIPE_EPOCHS", hide_env = true)]
    epochs: Option<u64>,
    /// Permissions of the FIFOs: 0640 lets the group read
    #[arg(long, value_name = "MODE", default_value = "0600", value_parser = permissions, env = "STANDPIPE_FIFO_MODE", hide_env = true)]
    fifo_mode: u32,
    /// Time for the reader to go away after a failure
    #[arg(long, value_name = "SECONDS", default_value_t = 75)]
    failure_grace: u64,
    #[command(flatten)]
    engine: EngineFlags,
}

impl Pipe {
    pub(super) fn run(self, context: &Context) -> Result<Report> {
        let config = self.engine.config()?;
        let client = context.connect(
            &connect::schemes(self.channel.iter().map(|c| &c.source)),
            &config,
        )?;
        let engine = Prefetcher::new(client, config, context.metrics.clone())?;
        let streams = u32::try_from(self.channel.len()).unwrap_or(u32::MAX);
        for channel in &self.channel {
            check(&engine, channel)?;
        }
        let mut server = self.start(&engine, context)?;
        self.announce(context);
        let canceller = server.canceller();
        interrupt::listen(move || canceller.cancel())?;
        let progress = Progress::start(
            context.shows_progress(),
            sampler(context.metrics.clone(), streams),
        );
        let result = server.wait();
        drop(progress);
        if result.is_err() || interrupt::exit_code().is_some() {
            // To a reader, a closed FIFO is the end of the data. What was cut off stays open until the process is gone.
            std::mem::forget(server);
        }
        match (result?, interrupt::exit_code()) {
            (_, Some(_)) => Err(crate::error::Error::Cancelled),
            (summary, None) => Ok(report(&summary, context, streams)),
        }
    }

    /// What to open, for people; scripts wait for the FIFOs themselves.
    fn announce(&self, context: &Context) {
        if !context.shows_progress() {
            return;
        }
        for channel in &self.channel {
            let fifo = self.dir.join(format!("{}_0", channel.name));
            eprintln!(
                "{} is ready for a reader: {}",
                fifo.display(),
                channel.source
            );
        }
    }

    fn start(&self, engine: &Prefetcher, context: &Context) -> Result<PipeServer> {
        let mut config = PipeConfig::new(&self.dir);
        config.epochs = self.epochs;
        config.mode = self.fifo_mode;
        config.failure_grace = Duration::from_secs(self.failure_grace);
        let channels: Result<Vec<_>> = self
            .channel
            .iter()
            .map(|channel| served(engine.clone(), channel.clone()))
            .collect();
        let (json, told, grace) = (
            context.output.json,
            context.told.clone(),
            config.failure_grace,
        );
        let on_failure = Arc::new(move |failure: &Failure| {
            if !json {
                progress::suspended(|| eprint!("{}", explain(failure, grace)));
                told.store(true, Ordering::Release);
            }
        });
        PipeServer::start(config, channels?, context.metrics.clone(), on_failure)
    }
}

/// As chmod takes them.
fn permissions(text: &str) -> std::result::Result<u32, String> {
    let octal = !text.is_empty() && text.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
    let mode = octal.then(|| u32::from_str_radix(text, 8).ok()).flatten();
    mode.ok_or_else(|| "not permissions: use octal digits, such as 0640".into())
}

/// Looks whether there is anything to serve, so that a wrong URI is told now and not in an epoch that cannot end.
fn check(engine: &Prefetcher, channel: &Channel) -> Result<()> {
    let mut objects = channel.source.objects(engine.client(), Lookup::Prefix);
    runtime::handle().block_on(objects.next()).transpose()?;
    Ok(())
}

/// Every epoch lists anew: it reads what is there when it begins.
fn served(engine: Prefetcher, channel: Channel) -> Result<PipeChannel> {
    Ok(PipeChannel::new(channel.name.parse()?, move |_epoch| {
        engine.read_all(channel.source.objects(engine.client(), Lookup::Prefix))
    }))
}

/// The failure while its reader still waits. It is all that is said: at the end only the exit code follows.
fn explain(failure: &Failure, grace: Duration) -> String {
    let fix = failure.fix.as_ref().map(|fix| format!("  fix: {fix}\n"));
    format!(
        "standpipe: {} failed after {} bytes and will not end: {}\n{}  see {}; standpipe exits when the reader has closed it, or has taken nothing for {} s\n",
        failure.fifo.display(),
        failure.delivered_bytes,
        failure.cause,
        fix.unwrap_or_default(),
        failure.status_file.display(),
        grace.as_secs()
    )
}

fn sampler(metrics: Arc<Metrics>, streams: u32) -> impl Fn() -> Sample + Send + 'static {
    move || Sample {
        bytes: metrics.bytes_delivered.get(),
        stall_ns: metrics.consumer_stall_ns.get(),
        streams,
        ..Sample::default()
    }
}

fn report(summary: &PipeSummary, context: &Context, streams: u32) -> Report {
    let total = |count: fn(&ChannelSummary) -> u64| summary.channels.iter().map(count).sum::<u64>();
    let bytes = total(|channel| channel.bytes);
    let what = format!(
        "{}, {}, ",
        counted(summary.channels.len() as u64, "channel"),
        counted(total(|channel| channel.epochs), "epoch")
    );
    let mut report = Report {
        line: Some(moved(&what, bytes, context.started.elapsed())),
        traffic: Some(Traffic {
            bytes,
            first_byte: summary
                .channels
                .iter()
                .filter_map(|channel| channel.first_byte)
                .min(),
            streams,
            sink: Sink::Consumer,
        }),
        ..Report::default()
    };
    report
        .fields
        .insert("channels".into(), serde_json::json!(summary.channels));
    report
}
