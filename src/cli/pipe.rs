//! `standpipe pipe`: Pipe mode.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::Args;
use futures::future::join_all;
use serde_json::json;

use super::flags::{EngineFlags, HostFlags};
use super::progress::{self, Progress, Sample};
use super::report::{Report, Traffic, counted, moved};
use super::total::{Listed, Total};
use super::{Context, connect, interrupt};
use crate::error::{Error, Result};
use crate::input::{Channel, Distribution, InputMode, S3DataType, Shard};
use crate::metrics::Sink;
use crate::object::Scheme;
use crate::pipe::{
    ChannelSummary, Content, EpochStream, Failure, PipeChannel, PipeConfig, PipeServer,
    PipeSummary, Watch,
};
use crate::prefetch::Prefetcher;
use crate::runtime;

const NOTES: &str = "\
For --channel train=s3://bucket/prefix/ the trainer finds DIR/train_0, reads it to its end, closes it
and finds DIR/train_1 for the next epoch. The stream is every object whose key starts with the prefix,
back to back, in key order. An epoch that fails never ends: the cause is printed and written to
DIR/train_0.error.json, and the process exits with its code once the reader has gone.

Options follow the URI, with commas between them (a comma of the URI itself is written \\,):
  shuffle=SEED                      another order of the objects in each epoch
  distribution=sharded              each host its share (--hosts and --current-host, or --shard)
  s3-data-type=manifest|augmented   the URI is a manifest; augmented needs attribute-names=A-ref:B
  on-missing-attribute=skip         leave out lines that lack one [default: fail]
  record-wrapper=recordio           a RecordIO record around each object or attribute
  record-part-size=BYTES            records of more than that are split
  compression=gzip                  decompress each object

  standpipe pipe --channel train=s3://bucket/train/ --dir /opt/ml/input/data --epochs 3 &
  python train.py
  standpipe pipe --channel train=s3://bucket/train/,shuffle=7,distribution=sharded --shard 0/4 --dir .";

/// Serve channels as FIFOs, one per epoch, as SageMaker's Pipe mode does
#[derive(Debug, Args)]
#[command(after_help = NOTES)]
pub(super) struct Pipe {
    /// A channel and its data; may be given again for more channels
    #[arg(long, required = true, value_name = "NAME=URI[,OPTION=VALUE]...")]
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
    hosts: HostFlags,
    #[command(flatten)]
    engine: EngineFlags,
}

impl Pipe {
    pub(super) fn run(self, context: &Context) -> Result<Report> {
        let config = self.engine.config()?;
        let host = self.host()?;
        let client = context.connect(&self.schemes(), &config)?;
        let engine = Prefetcher::new(client, config, context.metrics.clone())?;
        let totals: Vec<_> = self
            .channel
            .iter()
            .map(|_| EpochTotals::default())
            .collect();
        let (contents, first_epochs) = self.begin(&engine, host, &totals)?;
        let mut server = self.start(&contents, first_epochs, &totals, context)?;
        self.announce(context);
        let canceller = server.canceller();
        interrupt::listen(move || canceller.cancel())?;
        let progress = Progress::start(
            context.shows_progress(),
            sampler(server.watch(), contents, totals, self.epochs),
        );
        let result = server.wait();
        drop(progress);
        if result.is_err() && interrupt::exit_code().is_none() {
            // The other channels were cut off, too: their readers are given as long to notice.
            server.outlast_grace(|| interrupt::exit_code().is_none());
        }
        if result.is_err() || interrupt::exit_code().is_some() {
            // To a reader, a closed FIFO is the end of the data. What was cut off stays open until the process is gone.
            std::mem::forget(server);
        }
        match (result?, interrupt::exit_code()) {
            (_, Some(_)) => Err(Error::Cancelled),
            (summary, None) => Ok(report(&summary)),
        }
    }

    fn host(&self) -> Result<Shard> {
        for channel in &self.channel {
            channel.validate(InputMode::Pipe)?;
            if let Some(mode) = channel.mode.filter(|mode| *mode != InputMode::Pipe) {
                return Err(Error::config(
                    format!("channel {}", channel.name),
                    format!(
                        "{} mode is not what `standpipe pipe` serves: leave mode out",
                        mode.as_str()
                    ),
                ));
            }
        }
        let sharded = self
            .channel
            .iter()
            .find(|channel| channel.distribution == Distribution::ShardedByS3Key);
        match (self.hosts.shard()?, sharded) {
            (Some(shard), _) => Ok(shard),
            (None, None) => Ok(Shard::WHOLE),
            (None, Some(channel)) => Err(Error::config(
                format!("channel {}", channel.name),
                "it is shared out over hosts, and which one is this? Name them: --hosts a,b --current-host a, or --shard 0/2",
            )),
        }
    }

    /// Those of the channels, and of what manifests may name.
    fn schemes(&self) -> Vec<Scheme> {
        let mut schemes = connect::schemes(self.channel.iter().map(|c| &c.source));
        if self
            .channel
            .iter()
            .any(|channel| channel.data_type != S3DataType::S3Prefix)
        {
            schemes.extend([Scheme::S3, Scheme::File]);
        }
        schemes
    }

    /// Finds out what there is to serve and begins the channels' first epochs, before anything is made: a wrong URI or
    /// manifest is told now and not in an epoch that cannot end, and nothing on disk is waited for between a listing and
    /// its first GET.
    fn begin(
        &self,
        engine: &Prefetcher,
        host: Shard,
        totals: &[EpochTotals],
    ) -> Result<(Vec<Arc<Content>>, Vec<EpochStream>)> {
        let each = self.channel.iter().zip(totals);
        let begun = each.map(|(channel, totals)| begin(engine, channel, host, totals));
        let begun = runtime::handle().block_on(join_all(begun));
        let each = self.channel.iter().zip(begun);
        each.map(|(channel, begun)| begun.inspect_err(|error| self.leave_word(channel, error)))
            .collect()
    }

    /// Whoever waits for a FIFO finds the reason why it never comes.
    fn leave_word(&self, channel: &Channel, error: &Error) {
        let told = channel
            .name
            .parse()
            .and_then(|name| Failure::before_the_start(&self.dir, &name, error.clone()));
        if let Err(error) = told {
            tracing::error!(%error, "the status file could not be written");
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

    fn start(
        &self,
        contents: &[Arc<Content>],
        first_epochs: Vec<EpochStream>,
        totals: &[EpochTotals],
        context: &Context,
    ) -> Result<PipeServer> {
        let mut config = PipeConfig::new(&self.dir);
        config.epochs = self.epochs;
        config.mode = self.fifo_mode;
        config.failure_grace = Duration::from_secs(self.failure_grace);
        let channels: Result<Vec<_>> = self
            .channel
            .iter()
            .zip(contents)
            .zip(first_epochs)
            .zip(totals)
            .map(|(((channel, content), first), totals)| {
                served(&channel.name, content.clone(), first, totals.clone())
            })
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
pub(super) fn permissions(text: &str) -> std::result::Result<u32, String> {
    let octal = !text.is_empty() && text.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
    let mode = octal.then(|| u32::from_str_radix(text, 8).ok()).flatten();
    mode.ok_or_else(|| "not permissions: use octal digits, such as 0640".into())
}

/// A channel, and its first epoch begun.
async fn begin(
    engine: &Prefetcher,
    channel: &Channel,
    host: Shard,
    totals: &EpochTotals,
) -> Result<(Arc<Content>, EpochStream)> {
    let content = Arc::new(Content::open(engine, channel, host).await?);
    let first = epoch(&content, 0, totals)?;
    Ok((content, first))
}

/// The sizes of objects tell how much there will be only if they are delivered as they are.
fn epoch(content: &Content, epoch: u64, totals: &EpochTotals) -> Result<EpochStream> {
    content.epoch(epoch, |objects| match content.is_plain() {
        true => totals.begin(epoch).counting(objects),
        false => objects,
    })
}

/// The first epoch was begun already.
fn served(
    name: &str,
    content: Arc<Content>,
    first: EpochStream,
    totals: EpochTotals,
) -> Result<PipeChannel> {
    let begun = Mutex::new(Some(first));
    Ok(PipeChannel::new(name.parse()?, move |number| {
        let first = begun.lock().unwrap_or_else(PoisonError::into_inner).take();
        match first {
            Some(first) => Ok(first),
            None => epoch(&content, number, &totals),
        }
    }))
}

/// What the epochs of a channel hold: of the one that is read and of the next, which is listed ahead.
#[derive(Debug, Clone, Default)]
struct EpochTotals(Arc<Mutex<BTreeMap<u64, Listed>>>);

impl EpochTotals {
    fn begin(&self, epoch: u64) -> Listed {
        let mut listed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        listed.retain(|known, _| known + 1 >= epoch);
        listed.entry(epoch).or_default().clone()
    }

    fn of(&self, epoch: u64) -> Option<Total> {
        let listed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        listed.get(&epoch).and_then(Listed::total)
    }
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

fn sampler(
    watch: Watch,
    contents: Vec<Arc<Content>>,
    totals: Vec<EpochTotals>,
    epochs: Option<u64>,
) -> impl Fn() -> Sample + Send + 'static {
    move || {
        let channels = watch.summary().channels;
        let each = channels.iter().zip(&totals);
        Sample {
            bytes: channels.iter().map(|channel| channel.bytes).sum(),
            total: each
                .map(|(channel, totals)| {
                    whole_run(channel, totals.of(current_epoch(channel)), epochs)
                })
                .reduce(|a, b| Some(a? + b?))
                .flatten(),
            count: match (&channels[..], &contents[..]) {
                ([channel], [content]) => {
                    Some(shown_epoch(current_epoch(channel), epochs) + &still_listed(content))
                }
                _ => None,
            },
            presence: channels.iter().map(ChannelSummary::presence).sum(),
            waits_for: (!watch.has_reader()).then_some("a reader"),
        }
    }
}

/// How far a listing is that still goes on; a shuffled epoch waits for its end.
fn still_listed(content: &Content) -> String {
    match content.agenda().known_items() {
        (_, true) => String::new(),
        (objects, false) => format!(", {objects} objects listed so far"),
    }
}

fn current_epoch(channel: &ChannelSummary) -> u64 {
    channel.epochs + channel.early_closes
}

fn shown_epoch(epoch: u64, epochs: Option<u64>) -> String {
    match epochs {
        Some(epochs) => format!("epoch {}/{epochs}", (epoch + 1).min(epochs)),
        None => format!("epoch {}", epoch + 1),
    }
}

/// All bytes of all epochs, if those to come are as large as this one; without an end, those up to this one's.
fn whole_run(channel: &ChannelSummary, epoch: Option<Total>, epochs: Option<u64>) -> Option<Total> {
    let to_come = match epochs {
        // The farewell holds nothing.
        Some(epochs) if current_epoch(channel) >= epochs => {
            return Some(Total {
                bytes: channel.bytes,
                is_final: true,
            });
        }
        Some(epochs) => epochs - current_epoch(channel),
        None => 1,
    };
    let before = channel.bytes - channel.epoch_bytes;
    epoch.map(|epoch| Total {
        bytes: before.saturating_add(epoch.bytes.saturating_mul(to_come)),
        ..epoch
    })
}

fn report(summary: &PipeSummary) -> Report {
    let total = |count: fn(&ChannelSummary) -> u64| summary.channels.iter().map(count).sum::<u64>();
    let bytes = total(|channel| channel.bytes);
    let what = format!(
        "{}, {}, ",
        counted(summary.channels.len() as u64, "channel"),
        counted(total(|channel| channel.epochs), "epoch")
    );
    let mut report = Report {
        line: Some(moved(&what, bytes, summary.attended)),
        traffic: Some(Traffic {
            bytes,
            first_byte: summary
                .channels
                .iter()
                .filter_map(|channel| channel.first_byte)
                .min(),
            taken_in: summary.attended,
            presence: summary.channels.iter().map(ChannelSummary::presence).sum(),
            sink: Sink::Consumer,
        }),
        ..Report::default()
    };
    let fields = [
        ("attended_seconds", json!(summary.attended.as_secs_f64())),
        ("channels", json!(summary.channels)),
    ];
    report
        .fields
        .extend(fields.map(|(name, value)| (name.into(), value)));
    report
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipe::ChannelSummary;

    #[test]
    fn a_run_is_all_its_epochs_as_far_as_they_are_known() {
        let listed = |bytes, is_final| Some(Total { bytes, is_final });
        for (epoch, epochs, before, now, expected) in [
            (0, Some(3), 0, listed(10, true), listed(30, true)),
            (0, Some(3), 0, listed(10, false), listed(30, false)),
            (0, None, 0, listed(10, true), listed(10, true)),
            // The first was closed early, at 4 of 10.
            (1, Some(3), 4, listed(10, true), listed(24, true)),
            (1, None, 4, listed(10, true), listed(14, true)),
            (0, Some(3), 0, None, None),
            (3, Some(3), 24, None, listed(29, true)),
        ] {
            let mut channel = ChannelSummary::new("train".parse().unwrap());
            channel.epochs = epoch;
            (channel.bytes, channel.epoch_bytes) = (before + 5, 5);
            let run = whole_run(&channel, now, epochs);
            assert_eq!(run, expected, "epoch {epoch} of {epochs:?}");
        }
        assert_eq!(shown_epoch(3, Some(3)), "epoch 3/3");
        assert_eq!(shown_epoch(3, None), "epoch 4");
    }
}
