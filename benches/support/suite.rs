//! What the criterion benches have in common: each measures bare and at S3's latency, plain and over TLS.

use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion};
use fake_s3::{Latency, Shape};

use crate::Outcome;
use crate::server::{self, Objects, Server, Spec};

/// One bench under one condition: the group to measure in, the server's address, the bytes to read.
pub(crate) type Measure = fn(&mut BenchmarkGroup<'_, WallTime>, &Server, u64) -> Outcome<()>;

/// Runs `measure` under every condition, over the objects that `objects` makes of a number of bytes.
pub(crate) fn run(name: &str, objects: fn(u64) -> Objects, measure: Measure) -> Outcome<()> {
    if server::serve_if_asked()? {
        return Ok(());
    }
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(5))
        .configure_from_args();
    for (condition, size_bytes, latency) in [
        ("bare", 128 << 20, Latency::default()),
        ("s3", 32 << 20, Latency::s3()),
    ] {
        for tls in [false, true] {
            let wire = if tls { "tls" } else { "plain" };
            let server = Server::start(&Spec {
                tls,
                shape: Shape {
                    latency,
                    ..Shape::default()
                },
                objects: vec![objects(size_bytes)],
            })?;
            let mut group = criterion.benchmark_group(format!("{name}/{condition}/{wire}"));
            measure(&mut group, &server, size_bytes)?;
            group.finish();
        }
    }
    criterion.final_summary();
    Ok(())
}
