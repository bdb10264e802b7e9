//! Tables for people.

use std::fmt::Write;

use crate::rows::{RowResult, Sample, Verdict, median};

/// A column: its title, a case's value, how many decimals.
type Column = (&'static str, fn(&Sample) -> f64, usize);

const COLUMNS: [Column; 9] = [
    ("start s", |sample| sample.start_s, 3),
    ("first byte s", |sample| sample.first_byte_s, 3),
    ("s", |sample| sample.seconds, 3),
    ("GB/s", Sample::gb_per_s, 3),
    ("files/s", Sample::files_per_s, 0),
    ("wire MB", |sample| sample.wire_bytes as f64 / 1e6, 1),
    (
        "fetched/read",
        |sample| sample.wire_bytes as f64 / sample.bytes as f64,
        2,
    ),
    (
        "CPU s/GB",
        |sample| sample.cpu_s / (sample.bytes as f64 / 1e9),
        3,
    ),
    (
        "peak RSS MiB",
        |sample| sample.peak_rss_bytes as f64 / 1_048_576.0,
        1,
    ),
];

/// Everything that was measured for one row.
pub(crate) fn table(row: &RowResult) -> String {
    let mut out = format!("\n{}: {}\n", row.name, row.what);
    let labels = row.cases.iter().map(|case| case.label.len());
    let width = labels.max().unwrap_or(0);
    let _ = write!(out, "  {:width$}", "");
    for (title, _, _) in COLUMNS {
        let _ = write!(out, "  {title:>12}");
    }
    out.push('\n');
    for case in &row.cases {
        let _ = write!(out, "  {:width$}", case.label);
        for (_, value, decimals) in COLUMNS {
            let values: Vec<f64> = case.samples.iter().map(value).collect();
            let _ = write!(out, "  {:12.decimals$}", median(&values));
        }
        out.push('\n');
    }
    for verdict in &row.verdicts {
        let _ = writeln!(out, "  {}", sentence(verdict));
    }
    out
}

fn sentence(verdict: &Verdict) -> String {
    let word = if verdict.met { "pass" } else { "MISS" };
    format!(
        "{word}  {}: {:.3} ({:.3}..{:.3}), aim {}",
        verdict.what, verdict.measured, verdict.least, verdict.most, verdict.aim
    )
}

/// The aims alone.
pub(crate) fn summary(rows: &[RowResult]) -> String {
    let mut out = String::from("\nSummary: medians of the rounds (smallest..largest)\n");
    for row in rows {
        for verdict in &row.verdicts {
            let _ = writeln!(out, "  {:16} {}", row.name, sentence(verdict));
        }
    }
    out
}
