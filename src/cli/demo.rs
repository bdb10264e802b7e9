//! `standpipe demo`: the same training job, fed by a download first and by a pipe, against an S3 on loopback.
//!
//! Everything is real but the distance: the server answers with S3's latencies over a link of limited width, the bytes
//! go through the same client and engine as always, and the trainers are Python scripts as people write them for
//! SageMaker, over tar archives of labelled images. Their speed is their own: they parse and decode every sample.

mod data;
mod reader;
mod story;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use fake_s3::{FakeS3, Latency, Shape};

use super::flags::EngineFlags;
use super::report::Report;
use super::{Context, Size, connect, interrupt};
use crate::download::{Download, DownloadConfig};
use crate::error::{Error, Result};
use crate::input::{Lookup, Source};
use crate::pipe::{PipeChannel, PipeConfig, PipeServer};
use crate::prefetch::Prefetcher;

use reader::{Reader, Reading};

/// The width of the link: 0.75 Gb/s, the baseline of an m5.large.
const LINK_BYTES_PER_SECOND: u64 = 93_750_000;

const BUCKET_URI: &str = "s3://demo/train/";

const NOTES: &str = "\
Starts a small S3 server on loopback that answers as slowly as the real one (30 ms + 20 ms/MiB, one
answer in a hundred after 200 ms) over a link of 0.75 Gb/s, runs one training job in File mode and in
Pipe mode, and draws what the trainer had received when. The trainers are ordinary Python scripts that
read tar archives of labelled images. Needs python3, no network and no account; of the flags under
Source only --transport means something here.";

/// Show Pipe mode against downloading first, with a picture, in a quarter of a minute
#[derive(Debug, Args)]
#[command(after_help = NOTES)]
pub(super) struct Demo {
    /// Where to write demo.svg and demo.html
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
    /// Size of the data set; File mode needs as much disk
    #[arg(long, value_name = "SIZE", default_value_t = Size(256 << 20))]
    size: Size,
    /// Time of a training step per image, besides decoding
    #[arg(long, value_name = "MS", default_value_t = 0.0)]
    step_ms: f64,
    #[command(flatten)]
    engine: EngineFlags,
}

/// One mode's run.
#[derive(Debug)]
struct Run {
    name: &'static str,
    reading: Reading,
    /// Time in which the trainer had nothing to do.
    waited: Duration,
}

impl Demo {
    pub(super) fn run(self, context: &Context) -> Result<Report> {
        std::fs::create_dir_all(&self.out).map_err(|source| Error::io(&self.out, source))?;
        let scratch = Scratch::new()?;
        let left = scratch.0.clone();
        interrupt::listen(move || {
            let _ = std::fs::remove_dir_all(left);
            std::process::exit(i32::from(interrupt::exit_code().unwrap_or(130)));
        })?;
        let reader = Reader::prepare(&scratch.0, self.step_ms)?;
        let (server, bytes) = self.serve(&data::make(&scratch.0)?)?;
        let file = self.file_mode(&self.engine(context, &server)?, &reader)?;
        let pipe = self.pipe_mode(&self.engine(context, &server)?, &reader)?;
        for run in [&file, &pipe] {
            if run.reading.bytes != bytes || run.reading.digest != file.reading.digest {
                return Err(Error::Corrupt {
                    uri: BUCKET_URI.into(),
                    offset: run.reading.bytes,
                    reason: format!(
                        "{} mode delivered other bytes than the server has",
                        run.name
                    ),
                    answer: Box::default(),
                });
            }
        }
        story::tell(&self, context, &file, &pipe)
    }

    /// The server with the data set, and how many bytes that is.
    fn serve(&self, shards: &[PathBuf]) -> Result<(FakeS3, u64)> {
        let shape = Shape {
            latency: Latency::s3(),
            total_bytes_per_second: Some(LINK_BYTES_PER_SECOND),
            ..Shape::default()
        };
        let server = FakeS3::builder()
            .shape(shape)
            .start()
            .map_err(|source| Error::io("the demo's S3 server", source))?;
        let bytes = data::put(&server, shards, self.size.0)?;
        Ok((server, bytes))
    }

    /// An engine of its own for each mode: neither finds the other's connections open.
    fn engine(&self, context: &Context, server: &FakeS3) -> Result<Prefetcher> {
        let context = context.at(context.source.built_in(server.endpoint()));
        let config = self.engine.config()?;
        let client = context.connect(&connect::schemes([&source()?]), &config)?;
        Prefetcher::new(client, config, context.metrics)
    }

    fn file_mode(&self, engine: &Prefetcher, reader: &Reader) -> Result<Run> {
        let directory = reader.channels().join("train");
        let started = Instant::now();
        Download::new(
            engine.clone(),
            source()?,
            &directory,
            DownloadConfig::default(),
        )
        .run()?;
        let waited = started.elapsed();
        let reading = reader.start(reader::FILE, started)?.finish()?;
        Ok(Run {
            name: "File",
            reading,
            waited,
        })
    }

    fn pipe_mode(&self, engine: &Prefetcher, reader: &Reader) -> Result<Run> {
        let mut config = PipeConfig::new(reader.channels());
        config.epochs = Some(1);
        // The reader is known: it does not look for another epoch.
        config.farewell_grace = Duration::ZERO;
        let (source, of) = (source()?, engine.clone());
        let channel = PipeChannel::new("train".parse()?, move |_epoch| {
            of.read_all(source.objects(of.client(), Lookup::Prefix))
        });
        let started = Instant::now();
        let mut server = PipeServer::start(
            config,
            vec![channel],
            engine.metrics().clone(),
            Arc::new(|_| {}),
        )?;
        let running = reader.start(reader::PIPE, started)?;
        // After a failure the reader would wait for ever: it is dropped, and ended, before the server.
        let summary = server.wait()?;
        let reading = running.finish()?;
        let stalled = summary.channels.first().map(|channel| channel.stalled);
        Ok(Run {
            name: "Pipe",
            reading,
            waited: stalled.unwrap_or_default(),
        })
    }
}

fn source() -> Result<Source> {
    BUCKET_URI.parse()
}

/// A directory for the files, removed at the end.
#[derive(Debug)]
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("standpipe-demo-{}", std::process::id()));
        std::fs::create_dir_all(&path).map_err(|source| Error::io(&path, source))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left in the temporary directory is no reason to fail.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
