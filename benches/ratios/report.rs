//! Tables for people.

use std::fmt::Write;

use crate::job::Sample;
use crate::rows::{CaseResult, RowResult, Verdict, median};

/// A column: its title, a case's value, how many decimals.
type Column = (&'static str, fn(&Sample) -> f64, usize);

const COLUMNS: [Column; 10] = [
    ("GB/s", Sample::gb_per_s, 3),
    ("s", |sample| sample.seconds, 3),
    ("client s/GB", Sample::client_per_gb, 3),
    ("total s/GB", Sample::total_per_gb, 3),
    ("requests", |sample| sample.requests as f64, 0),
    ("requests/s", Sample::requests_per_s, 0),
    ("us/request", Sample::client_us_per_request, 1),
    ("first byte ms", |sample| sample.first_byte_s * 1e3, 2),
    (
        "peak RSS MiB",
        |sample| sample.peak_rss_bytes as f64 / 1048576.0,
        1,
    ),
    (
        "faults/GB",
        |sample| sample.faults as f64 / (sample.bytes as f64 / 1e9),
        0,
    ),
];

/// Everything that was measured for one row.
pub(crate) fn table(row: &RowResult) -> String {
    let mut out = format!("\n{}: {}\n", row.name, row.what);
    let width = row
        .cases
        .iter()
        .map(|case| case.label.len())
        .max()
        .unwrap_or(0);
    let _ = write!(out, "  {:width$}", "");
    for (title, _, _) in COLUMNS {
        let _ = write!(out, "  {title:>13}");
    }
    out.push_str("  GB/s min..max\n");
    for case in &row.cases {
        line(&mut out, case, width);
    }
    for verdict in &row.verdicts {
        let _ = writeln!(out, "  {}", sentence(verdict));
    }
    out
}

fn line(out: &mut String, case: &CaseResult, width: usize) {
    let _ = write!(out, "  {:width$}", case.label);
    for (_, value, decimals) in COLUMNS {
        let values: Vec<f64> = case.samples.iter().map(value).collect();
        let _ = write!(out, "  {:13.decimals$}", median(&values));
    }
    let speeds = case.samples.iter().map(Sample::gb_per_s);
    let (least, most) = speeds.fold((f64::INFINITY, 0f64), |(least, most), speed| {
        (least.min(speed), most.max(speed))
    });
    let _ = writeln!(out, "  {least:.3}..{most:.3}");
}

fn sentence(verdict: &Verdict) -> String {
    let word = match verdict.met {
        Some(true) => "pass",
        Some(false) => "MISS",
        None => "    ",
    };
    format!(
        "{word}  {}: {:.3} ({:.3}..{:.3}), aim {}",
        verdict.what, verdict.measured, verdict.least, verdict.most, verdict.aim
    )
}

/// The aims alone.
pub(crate) fn summary(rows: &[RowResult]) -> String {
    let mut out = String::from("\nSummary: medians of the rounds' ratios (smallest..largest)\n");
    for row in rows {
        for verdict in &row.verdicts {
            let _ = writeln!(out, "  {:16} {}", row.name, sentence(verdict));
        }
    }
    out
}
