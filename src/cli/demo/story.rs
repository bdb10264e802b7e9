//! What the demo says and draws.

use std::fmt::Write as _;

use serde_json::json;

use super::super::chart::{Chart, Line, Mark, page};
use super::super::report::Report;
use super::super::size::human;
use super::super::stdout::settle;
use super::{Demo, Run};
use crate::cli::Context;
use crate::error::{Error, Result};

/// `LINK_BYTES_PER_SECOND` as people say it.
const LINK: &str = "0.75 Gb/s";

/// Prints the story, writes the picture and reports.
pub(super) fn tell(demo: &Demo, context: &Context, file: &Run, pipe: &Run) -> Result<Report> {
    let text = text(file, pipe);
    let svg = chart(file, pipe).svg();
    write(demo, "demo.svg", &svg)?;
    write(
        demo,
        "demo.html",
        &page("Pipe mode against downloading first", &svg, &text),
    )?;
    if !context.output.json && !context.output.quiet {
        let drawn = demo.out.join("demo.html");
        let shown = format!("{text}\nThe picture: {}\n", drawn.display());
        settle(std::io::Write::write_all(
            &mut std::io::stdout(),
            shown.as_bytes(),
        ))?;
    }
    let mut report = Report::default();
    for run in [file, pipe] {
        let fields = json!({
            "first_byte_seconds": run.reading.first_byte().as_secs_f64(),
            "total_seconds": run.reading.total.as_secs_f64(),
            "waited_seconds": run.waited.as_secs_f64(),
            "bytes": run.reading.bytes,
            "samples": run.reading.samples,
            "sha256": run.reading.digest,
        });
        report.fields.insert(run.name.to_lowercase(), fields);
    }
    report
        .fields
        .insert("total_ratio".into(), json!(ratio(file, pipe)));
    Ok(report)
}

fn write(demo: &Demo, name: &str, text: &str) -> Result<()> {
    let path = demo.out.join(name);
    std::fs::write(&path, text).map_err(|source| Error::io(path, source))
}

fn ratio(file: &Run, pipe: &Run) -> f64 {
    pipe.reading.total.as_secs_f64() / file.reading.total.as_secs_f64().max(1e-9)
}

fn text(file: &Run, pipe: &Run) -> String {
    let mut text = format!(
        "One training job of {} ({} images in tar archives), twice, from an S3 server on loopback with S3's\n\
         latency and a link of {LINK}. The trainers are ordinary Python scripts; they know nothing of Standpipe.\n\n\
         {:<34}{:>14}{:>14}{:>14}\n",
        human(pipe.reading.bytes as f64),
        pipe.reading.samples,
        "",
        "first byte",
        "waited",
        "total"
    );
    for (run, what) in [
        (file, "File mode (download, then train)"),
        (pipe, "Pipe mode (train from a FIFO)"),
    ] {
        let seconds = |time: std::time::Duration| format!("{:.2} s", time.as_secs_f64());
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{what:<34}{:>14}{:>14}{:>14}",
            seconds(run.reading.first_byte()),
            seconds(run.waited),
            seconds(run.reading.total)
        );
    }
    let _ = write!(
        text,
        "\nPipe mode took {:.2} of File mode's time and no disk; both gave the trainer the same bytes (SHA-256 {}...).\n\
         What it can't do: be faster than the link or the trainer. It hides the one behind the other.\n",
        ratio(file, pipe),
        pipe.reading.digest.get(..12).unwrap_or_default()
    );
    text
}

fn chart(file: &Run, pipe: &Run) -> Chart {
    let line = |run: &Run, name: &str| Line {
        name: name.into(),
        points: std::iter::once((run.reading.first_byte().as_secs_f64(), 0.0))
            .chain(
                run.reading
                    .progress
                    .iter()
                    .map(|(time, bytes)| (time.as_secs_f64(), *bytes as f64 / f64::from(1 << 20))),
            )
            .collect(),
        dots: false,
    };
    let mark = |run: &Run, of: usize| Mark {
        x: run.reading.first_byte().as_secs_f64(),
        text: format!(
            "{} mode: first byte after {:.2} s",
            run.name,
            run.reading.first_byte().as_secs_f64()
        ),
        of,
    };
    Chart {
        title: format!(
            "Pipe mode needs {:.0}% of the time of downloading first",
            ratio(file, pipe) * 100.0
        ),
        subtitle: format!(
            "{} of images in tar archives, S3's latency, a link of {LINK}, an ordinary Python script as trainer",
            human(pipe.reading.bytes as f64)
        ),
        x_label: "seconds since the job began".into(),
        y_label: "MiB that the trainer has received".into(),
        doubling: false,
        lines: vec![
            line(pipe, "Pipe mode: train from a FIFO"),
            line(file, "File mode: download, then train"),
        ],
        marks: vec![mark(pipe, 0), mark(file, 1)],
    }
}
