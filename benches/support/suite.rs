//! What the criterion benches have in common: each case is measured bare and at S3's latency, plain and over TLS.
//!
//! Criterion measures time, with confidence intervals. What a pass costs beside time (the client's CPU, memory, page
//! faults, the first byte, requests) is told by passes of fresh processes, the median of each figure; each did the same
//! once before, and its peak of memory is that of this case alone. The benchmark executes itself again for that, as for the server.

use std::process::{Command, Stdio};
use std::time::Duration;

use criterion::{Criterion, Throughput};
use fake_s3::{Latency, Shape};
use serde::{Deserialize, Serialize};

use crate::Outcome;
use crate::meter::{self, Cost, Meter};
use crate::server::{self, Endpoint, Objects, Server, Spec};

const PASS: &str = "STANDPIPE_BENCH_PASS";
/// What `--test` reads: it asks only whether everything runs.
const SMOKE_BYTES: u64 = 8 << 20;

/// One pass may fall into a moment when the machine does something else: it has told four times the CPU.
const PASSES: usize = 5;

/// Something that reads everything once, and tells the meter when the first byte was there.
pub(crate) type Work = Box<dyn FnMut(&mut Meter) -> Outcome<Pass>>;

/// What was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pass {
    pub(crate) bytes: u64,
    pub(crate) requests: u64,
}

/// One thing that is measured.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// Makes all that a pass does not pay for: connections, an engine.
    pub(crate) make: fn(&Endpoint, u64) -> Outcome<Work>,
}

/// A pass in a process of its own.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    case: String,
    endpoint: Endpoint,
    size_bytes: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Figures {
    pass: Pass,
    seconds: f64,
    client_cpu_s: f64,
    server_cpu_s: f64,
    first_byte_s: f64,
    faults: u64,
    peak_rss_bytes: u64,
}

/// Runs every case under every condition, over the objects that `objects` makes of a number of bytes.
pub(crate) fn run(name: &str, objects: fn(u64) -> Vec<Objects>, cases: &[Case]) -> Outcome<()> {
    if server::serve_if_asked()? || perform_if_asked(cases)? {
        return Ok(());
    }
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(5))
        .configure_from_args();
    let smoke = std::env::args().any(|argument| argument == "--test");
    for (condition, size_bytes, latency) in [
        ("bare", 128 << 20, Latency::default()),
        ("s3", 32 << 20, Latency::s3()),
    ] {
        let size_bytes = if smoke { SMOKE_BYTES } else { size_bytes };
        for tls in [false, true] {
            let wire = if tls { "tls" } else { "plain" };
            let server = Server::start(&Spec {
                tls,
                shape: Shape {
                    latency,
                    ..Shape::default()
                },
                objects: objects(size_bytes),
                ..Spec::default()
            })?;
            let group = format!("{name}/{condition}/{wire}");
            let measured = time(&mut criterion, &group, &server, size_bytes, cases)?;
            let passes = if smoke { 1 } else { PASSES };
            figures(&group, &server, (size_bytes, passes), &measured)?;
        }
    }
    criterion.final_summary();
    Ok(())
}

/// Has criterion measure the cases; returns the names of those that its arguments let run.
fn time(
    criterion: &mut Criterion,
    group: &str,
    server: &Server,
    size_bytes: u64,
    cases: &[Case],
) -> Outcome<Vec<&'static str>> {
    let mut measured = Vec::new();
    let mut group = criterion.benchmark_group(group);
    group.throughput(Throughput::Bytes(size_bytes));
    for case in cases {
        let mut meter = Meter::start(server.endpoint.pid);
        let mut work = None;
        group.bench_function(case.name, |bencher| {
            let work = work.get_or_insert_with(|| {
                (case.make)(&server.endpoint, size_bytes).expect("the case can be made")
            });
            bencher.iter(|| {
                let pass = work(&mut meter).expect("the case works");
                assert_eq!(pass.bytes, size_bytes, "{}", case.name);
            });
        });
        measured.extend(work.map(|_| case.name));
    }
    group.finish();
    Ok(measured)
}

/// Prints what criterion does not measure.
fn figures(
    group: &str,
    server: &Server,
    (size_bytes, passes): (u64, usize),
    names: &[&str],
) -> Outcome<()> {
    if names.is_empty() {
        return Ok(());
    }
    eprintln!(
        "\n{group:16} {:>8} {:>12} {:>12} {:>14} {:>13} {:>9} {:>9}",
        "GB/s",
        "client s/GB",
        "server s/GB",
        "first byte ms",
        "peak RSS MiB",
        "faults/GB",
        "requests"
    );
    for name in names {
        let order = Order {
            case: (*name).to_owned(),
            endpoint: server.endpoint.clone(),
            size_bytes,
        };
        let passes = (0..passes)
            .map(|_| order.have_done())
            .collect::<Outcome<Vec<_>>>()?;
        if let Some(other) = passes
            .iter()
            .find(|figures| figures.pass.bytes != size_bytes)
        {
            return Err(format!("{name}: {other:?}").into());
        }
        let median = |value: fn(&Figures) -> f64| {
            let mut values: Vec<_> = passes.iter().map(value).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        let gb = size_bytes as f64 / 1e9;
        eprintln!(
            "{name:16} {:8.3} {:12.3} {:12.3} {:14.2} {:13.1} {:9.0} {:9.0}",
            gb / median(|figures| figures.seconds),
            median(|figures| figures.client_cpu_s) / gb,
            median(|figures| figures.server_cpu_s) / gb,
            median(|figures| figures.first_byte_s * 1e3),
            median(|figures| figures.peak_rss_bytes as f64 / f64::from(1 << 20)),
            median(|figures| figures.faults as f64) / gb,
            median(|figures| figures.pass.requests as f64),
        );
    }
    eprintln!();
    Ok(())
}

impl Order {
    fn have_done(&self) -> Outcome<Figures> {
        let output = Command::new(std::env::current_exe()?)
            .env(PASS, serde_json::to_string(self)?)
            .stderr(Stdio::inherit())
            .output()?;
        if !output.status.success() {
            return Err(format!("{}: {self:?}", output.status).into());
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}

/// Whether this process is there for one pass; it has made it then and must end.
fn perform_if_asked(cases: &[Case]) -> Outcome<bool> {
    let Ok(text) = std::env::var(PASS) else {
        return Ok(false);
    };
    let order: Order = serde_json::from_str(&text)?;
    let case = cases.iter().find(|case| case.name == order.case);
    let mut work = (case.ok_or("no such case")?.make)(&order.endpoint, order.size_bytes)?;
    work(&mut Meter::start(order.endpoint.pid))?;
    let mut meter = Meter::start(order.endpoint.pid);
    let pass = work(&mut meter)?;
    let Cost {
        seconds,
        client_cpu_s,
        server_cpu_s,
        faults,
        first_byte_s,
    } = meter.stop();
    let figures = Figures {
        pass,
        seconds,
        client_cpu_s,
        server_cpu_s,
        first_byte_s,
        faults,
        peak_rss_bytes: meter::peak_rss_bytes(),
    };
    serde_json::to_writer(std::io::stdout(), &figures)?;
    Ok(true)
}
