//! The picture of FastFile beside File mode.

use crate::Outcome;
use crate::chart::{Chart, Line};
use crate::rows::RowResult;

const ROWS: [(&str, &str); 2] = [("modes-jpegs", "images"), ("modes-tfrecords", "shards")];

/// Whether the picture shows this row.
pub(crate) fn shows(row: &str) -> bool {
    ROWS.iter().any(|(name, _)| *name == row)
}

/// How much of an epoch has been read, over the time since the job began.
pub(crate) fn modes(results: &[RowResult]) -> Outcome<String> {
    let mut lines = Vec::new();
    for (row, what) in ROWS {
        let Some(result) = results.iter().find(|result| result.name == row) else {
            return Err(format!("the picture needs row {row}").into());
        };
        for case in &result.cases {
            let sample = case.samples.last().ok_or("a case without a sample")?;
            let first = sample.progress.first().map_or(0.0, |(at, _)| *at);
            let points = [(0.0, 0.0), (first, 0.0)].into_iter();
            let read = sample
                .progress
                .iter()
                .map(|(at, share)| (*at, share * 100.0));
            lines.push(Line {
                name: format!("{}, {what}", case.label),
                points: points.chain(read).collect(),
                dots: false,
            });
        }
    }
    let chart = Chart {
        title: "FastFile begins at once; File mode downloads first".into(),
        subtitle: "an epoch of images of 110 KB or of shards of 110 MB, 4 readers, latency 30 ms + 20 ms/MiB".into(),
        x_label: "seconds since the job began".into(),
        y_label: "% of the epoch read".into(),
        lines,
        ..Chart::default()
    };
    Ok(chart.svg())
}
