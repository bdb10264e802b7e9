//! `standpipe bench`: what this host gets out of this endpoint, and which limit it meets.
//!
//! Two series of short runs. First bare ranged GETs that throw the bytes away, with more and more of them in flight:
//! the ceiling, with nothing of the engine in it. Then the engine, in order, for several part sizes and concurrencies.
//! [`plan`] says which, and gives each run its share of the time and of the bytes; [`measure`] makes one run; [`judge`]
//! says what the figures mean; a bar shows on a terminal how far it is.

mod judge;
mod measure;
mod plan;
mod watch;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use fake_s3::{FakeS3, Latency, Shape};
use futures::StreamExt;
use serde_json::json;

use super::chart::{Chart, Line, page};
use super::report::{Report, counted};
use super::size::human;
use super::stdout::settle;
use super::{Context, Size, connect};
use crate::error::{Error, Result};
use crate::input::{Lookup, Source};
use crate::object::ObjectMeta;
use crate::prefetch::PrefetchConfig;
use crate::runtime;

use measure::Point;
use plan::{Grid, LEAST_SECONDS, Reader};
use watch::Watch;

/// Objects that are looked at: enough to read from, and one page of a listing.
const MOST_OBJECTS: usize = 1000;

/// A GET of S3 Standard in us-east-1, dollars; transfer within a region is free, out of it is not.
const DOLLARS_PER_REQUEST: f64 = 0.4e-6;

/// Either is required, which the usage line made by clap does not say.
const USAGE: &str = "standpipe bench [OPTIONS] <URI>\n       standpipe bench [OPTIONS] --synthetic";

const NOTES: &str = "\
Reads for --seconds, or about --max-bytes if that is less, and throws everything away. In less than 10
seconds fewer settings are tried. The objects should be large and many: if they are not enough they are
read again. Transfer out of the bucket's region costs money.";

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
    /// Time for all measurements, 4 to 3600
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(LEAST_SECONDS..=3600))]
    seconds: u64,
    /// Bytes to read, at most about
    #[arg(long, value_name = "SIZE", default_value_t = Size(16 << 30))]
    max_bytes: Size,
    /// Where to write bench.svg and bench.html
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
}

/// All that was measured.
#[derive(Debug)]
struct Results {
    what: String,
    /// Part sizes that the engine was tried with.
    parts: &'static [u64],
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
        let results = self.measure(context, &uri, &objects, connect)?;
        self.report(context, &results)
    }

    fn time(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }

    fn grid(&self) -> &'static Grid {
        Grid::within(self.time())
    }

    /// What it will cost, before it does.
    fn announce(&self, context: &Context, objects: &[ObjectMeta]) {
        if context.output.quiet || context.output.json {
            return;
        }
        let sizes: Vec<u64> = objects.iter().map(|meta| meta.size_bytes).collect();
        let requests = self.grid().requests(&sizes, self.max_bytes.0);
        let (shortest, longest) = self.grid().run_times(self.time());
        eprintln!(
            "{} with {}: {} settings of {:.1} to {:.1} s, {} s in all; at most about {} and {requests} GETs (${:.4} at S3's price)",
            counted(objects.len() as u64, "object"),
            human(sizes.iter().sum::<u64>() as f64),
            self.grid().settings().len(),
            shortest.as_secs_f64(),
            longest.as_secs_f64(),
            self.seconds,
            human(self.max_bytes.0 as f64),
            requests as f64 * DOLLARS_PER_REQUEST
        );
    }

    fn measure(
        &self,
        context: &Context,
        uri: &Source,
        objects: &[ObjectMeta],
        connect: impl Fn(&PrefetchConfig) -> Result<(measure::Client, measure::Counters)>,
    ) -> Result<Results> {
        let mut results = Results {
            what: uri.to_string(),
            parts: self.grid().parts(),
            ceiling: Vec::new(),
            engine: Vec::new(),
        };
        let settings = self.grid().settings();
        let (begun, mut left_bytes) = (Instant::now(), self.max_bytes.0);
        let watch = Watch::start(context.shows_progress(), self.time(), settings.len());
        for (index, setting) in settings.iter().enumerate() {
            let (client, metrics) = connect(&setting.config())?;
            watch.begin(setting.name(), metrics.clone());
            let left = self.time().saturating_sub(begun.elapsed());
            let share = plan::share(&settings[index..], left, left_bytes);
            let point = measure::run(client, &metrics, objects, setting, share)?;
            left_bytes = left_bytes.saturating_sub(metrics.bytes_received.get());
            match setting.reader {
                Reader::Bare => results.ceiling.push(point),
                Reader::Engine => results.engine.push(point),
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
        let text = format!(
            "{}\n{}{}{note}",
            judge::table(results),
            judgement.text(),
            judge::doubt(results)
        );
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
        format!("bare GETs of {}", Size(plan::BARE_PART_BYTES)),
        &mut results.ceiling.iter(),
    )];
    for &part in results.parts {
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
