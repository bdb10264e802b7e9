//! `standpipe bench`: what this host gets out of this endpoint, and which limit it meets.
//!
//! Two series of short runs. First bare ranged GETs that throw the bytes away, with more and more of them in flight:
//! the ceiling, with nothing of the engine in it. Then the engine, in order, for several part sizes and concurrencies.
//! Every run has its share of the time and of the bytes, so the whole is bounded before it begins.

mod judge;
mod measure;

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use fake_s3::{FakeS3, Latency, Shape};
use futures::StreamExt;
use serde_json::json;

use super::chart::{Chart, Line, page};
use super::report::{Report, counted};
use super::size::human;
use super::stdout::settle;
use super::{Context, Size, connect};
use crate::client::ObjectClient;
use crate::error::{Error, Result};
use crate::input::{Lookup, Source};
use crate::object::ObjectMeta;
use crate::prefetch::PrefetchConfig;
use crate::runtime;

use measure::Point;

/// Requests in flight that are tried bare: up to what 25 Gb/s take at S3's latency.
const CEILING: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];
/// Size of the bare requests: the engine's default part.
const CEILING_PART_BYTES: u64 = 8 << 20;
/// Part sizes and concurrencies that are tried through the engine.
const PARTS: [u64; 3] = [2 << 20, 8 << 20, 16 << 20];
const CONCURRENCIES: [usize; 3] = [8, 32, 64];
/// An engine's run is worth two bare ones: it begins cold, with connections and memory of its own.
const ENGINE_SHARES: u32 = 2;
const SHARES: u32 =
    CEILING.len() as u32 + ENGINE_SHARES * (PARTS.len() * CONCURRENCIES.len()) as u32;

/// Objects that are looked at: enough to read from, and one page of a listing.
const MOST_OBJECTS: usize = 1000;

/// A GET of S3 Standard in us-east-1, dollars; transfer within a region is free, out of it is not.
const DOLLARS_PER_REQUEST: f64 = 0.4e-6;

/// Either is required, which the usage line made by clap does not say.
const USAGE: &str = "standpipe bench [OPTIONS] <URI>\n       standpipe bench [OPTIONS] --synthetic";

const NOTES: &str = "\
Reads at most --max-bytes in at most about --seconds and throws everything away. The objects should be
large and many: if they are not enough they are read again. Transfer out of the bucket's region costs
money.";

/// Measure what this host gets out of an endpoint, and which flags to use
#[derive(Debug, Args)]
#[command(after_help = NOTES, override_usage = USAGE)]
pub(super) struct Bench {
    /// What to read, unless --synthetic: s3://bucket/prefix/, s3://bucket/key or a path; braces expand
    #[arg(required_unless_present = "synthetic", conflicts_with = "synthetic")]
    uri: Option<Source>,
    /// Measure against a built-in server on loopback that has S3's latency
    #[arg(long)]
    synthetic: bool,
    /// Time for all measurements
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Bytes to read, at most
    #[arg(long, value_name = "SIZE", default_value_t = Size(16 << 30))]
    max_bytes: Size,
    /// Where to write bench.svg and bench.html
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
}

/// What each run may use.
#[derive(Debug, Clone, Copy)]
struct Share {
    time: Duration,
    bytes: u64,
}

/// All that was measured.
#[derive(Debug)]
struct Results {
    what: String,
    ceiling: Vec<Point>,
    engine: Vec<Point>,
}

impl Bench {
    pub(super) fn run(mut self, context: &Context) -> Result<Report> {
        std::fs::create_dir_all(&self.out).map_err(|source| Error::io(&self.out, source))?;
        let server = self.synthetic.then(serve).transpose()?;
        let mut source = context.source.clone();
        if let Some(server) = &server {
            source = source.built_in(server.endpoint());
            self.uri = Some("s3://bench/".parse()?);
        }
        let uri = self
            .uri
            .clone()
            .ok_or_else(|| Error::config("URI", "none is given"))?;
        let connect = |engine: &PrefetchConfig| -> Result<(measure::Client, measure::Counters)> {
            let context = context.at(source.clone());
            let client = context.connect(&connect::schemes([&uri]), engine)?;
            Ok((client, context.metrics))
        };
        let objects = objects(&connect(&PrefetchConfig::default())?.0, &uri)?;
        self.announce(context, &objects);
        let results = self.measure(&uri, &objects, connect)?;
        self.report(context, &results)
    }

    fn shares(&self, of: u32) -> Share {
        Share {
            time: Duration::from_secs(self.seconds) * of / SHARES,
            bytes: self.max_bytes.0 * u64::from(of) / u64::from(SHARES),
        }
    }

    /// What it will cost, before it does.
    fn announce(&self, context: &Context, objects: &[ObjectMeta]) {
        if context.output.quiet || context.output.json {
            return;
        }
        let bytes: u64 = objects.iter().map(|meta| meta.size_bytes).sum();
        // No request is smaller than the smallest part, or an object.
        let mean = bytes / objects.len().max(1) as u64;
        let requests = self.max_bytes.0 / mean.clamp(1, PARTS[0]);
        eprintln!(
            "{} with {}: at most {} in {} s, at most {requests} GETs (${:.4} at S3's price)",
            counted(objects.len() as u64, "object"),
            human(bytes as f64),
            human(self.max_bytes.0 as f64),
            self.seconds,
            requests as f64 * DOLLARS_PER_REQUEST
        );
    }

    fn measure(
        &self,
        uri: &Source,
        objects: &[ObjectMeta],
        connect: impl Fn(&PrefetchConfig) -> Result<(measure::Client, measure::Counters)>,
    ) -> Result<Results> {
        let mut results = Results {
            what: uri.to_string(),
            ceiling: Vec::new(),
            engine: Vec::new(),
        };
        for concurrency in CEILING {
            let config = config(CEILING_PART_BYTES, concurrency);
            let (client, metrics) = connect(&config)?;
            let point = measure::bare(&client, &metrics, objects, &config, self.shares(1))?;
            results.ceiling.push(point);
        }
        for part_bytes in PARTS {
            for concurrency in CONCURRENCIES {
                let config = config(part_bytes, concurrency);
                let (client, metrics) = connect(&config)?;
                let point =
                    measure::engine(client, metrics, objects, config, self.shares(ENGINE_SHARES))?;
                results.engine.push(point);
            }
        }
        Ok(results)
    }

    fn report(&self, context: &Context, results: &Results) -> Result<Report> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let judgement = judge::judge(&results.ceiling, &results.engine, cores);
        let note = match self.synthetic {
            true => "The server ran in this process: its CPU time is in the figures.\n",
            false => "",
        };
        let text = format!("{}\n{}\n{note}", judge::table(results), judgement.text());
        let svg = chart(results).svg();
        for (name, content) in [
            ("bench.svg", svg.clone()),
            ("bench.html", page("standpipe bench", &svg, &text)),
        ] {
            let path = self.out.join(name);
            std::fs::write(&path, content).map_err(|source| Error::io(path, source))?;
        }
        if !context.output.json {
            let shown = format!(
                "{text}The picture: {}\n",
                self.out.join("bench.html").display()
            );
            settle(std::io::Write::write_all(
                &mut std::io::stdout(),
                shown.as_bytes(),
            ))?;
        }
        let mut report = Report::default();
        report
            .fields
            .insert("ceiling".into(), json!(results.ceiling));
        report.fields.insert("engine".into(), json!(results.engine));
        report.fields.insert("judgement".into(), json!(judgement));
        Ok(report)
    }
}

fn config(part_bytes: u64, concurrency: usize) -> PrefetchConfig {
    PrefetchConfig {
        part_bytes,
        concurrency,
        // As the engine's own default: half as much again as is in flight.
        memory_bytes: part_bytes * concurrency as u64 * 3 / 2,
        ..PrefetchConfig::default()
    }
}

fn serve() -> Result<FakeS3> {
    let shape = Shape {
        latency: Latency::s3(),
        ..Shape::default()
    };
    let server = FakeS3::builder()
        .shape(shape)
        .start()
        .map_err(|source| Error::io("the bench's S3 server", source))?;
    for index in 0..8 {
        server.put_synthetic("bench", &format!("object-{index}"), 1 << 30, index);
    }
    Ok(server)
}

/// The first objects that have bytes.
fn objects(client: &measure::Client, uri: &Source) -> Result<Vec<ObjectMeta>> {
    let listed = uri.objects(client, Lookup::ListFirst);
    let some = listed
        .filter(|meta| std::future::ready(!matches!(meta, Ok(meta) if meta.size_bytes == 0)))
        .take(MOST_OBJECTS)
        .collect::<Vec<_>>();
    let objects: Result<Vec<_>> = runtime::handle().block_on(some).into_iter().collect();
    let objects = objects?;
    match objects.is_empty() {
        true => Err(Error::config(
            uri.to_string(),
            "nothing but empty objects: there is nothing to measure",
        )),
        false => Ok(objects),
    }
}

fn chart(results: &Results) -> Chart {
    let line = |name: String, points: &mut dyn Iterator<Item = &Point>| Line {
        name,
        points: points
            .map(|point| {
                (
                    point.concurrency as f64,
                    point.bytes_per_second / f64::from(1 << 20),
                )
            })
            .collect(),
        dots: true,
    };
    let mut lines = vec![line(
        "bare GETs of 8 MiB".into(),
        &mut results.ceiling.iter(),
    )];
    for part in PARTS {
        let of_part = results
            .engine
            .iter()
            .filter(|point| point.part_bytes == part);
        lines.push(line(
            format!("engine, parts of {}", Size(part)),
            &mut of_part.into_iter(),
        ));
    }
    Chart {
        title: "Throughput by requests in flight".into(),
        subtitle: results.what.clone(),
        x_label: "requests in flight".into(),
        y_label: "MiB/s".into(),
        doubling: true,
        lines,
        ..Chart::default()
    }
}
