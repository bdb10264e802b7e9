//! What a command says at its end: an error with its causes and its fix, one line for people, one object for machines.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::size::human;
use super::{Context, exit};
use crate::error::{Error, Result};
use crate::metrics::{Presence, Sink, Verdict};

/// What a command did.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// The line for people, without the verdict; none for commands whose output says it all.
    pub(super) line: Option<String>,
    /// Whether that is told also where nobody watches: it belongs into a job's log.
    pub(super) is_logged: bool,
    /// Bytes that reached their destination, and how many streams they came in; for the verdict.
    pub(super) traffic: Option<Traffic>,
    /// The command's own fields of the JSON object.
    pub(super) fields: Map<String, Value>,
    /// Of a command that did what it should and has a code to pass on.
    pub(super) exit_code: u8,
}

/// What was moved.
#[derive(Debug, Clone, Copy)]
pub(super) struct Traffic {
    /// Bytes that reached their destination.
    pub(super) bytes: u64,
    /// Until the first of them came.
    pub(super) first_byte: Option<Duration>,
    /// The time that the rate is of: that in which anybody was there to take them.
    pub(super) taken_in: Duration,
    /// How those who took them spent their time.
    pub(super) presence: Presence,
    /// What they went into.
    pub(super) sink: Sink,
}

/// Where the JSON object goes: beside the data, never into it.
fn json_goes_to_stderr(command: &str) -> bool {
    command == "cat"
}

/// Prints the end of `command`.
pub(super) fn print(command: &str, context: &Context, result: &Result<Report>) {
    let elapsed = context.started.elapsed();
    if context.output.json {
        // `ls` and `completions` print theirs themselves.
        if !matches!(result, Ok(report) if report.traffic.is_none() && report.fields.is_empty()) {
            write_line(
                json_goes_to_stderr(command),
                &object(command, context, result, elapsed).to_string(),
            );
        }
        return;
    }
    match result {
        Ok(report)
            if !context.output.quiet && (report.is_logged || std::io::stderr().is_terminal()) =>
        {
            if let Some(line) = &report.line {
                say(&format!("{line}\n"));
            }
            if let Some(verdict) = report.traffic.and_then(|traffic| verdict(context, traffic)) {
                say(&format!("{verdict}\n"));
            }
        }
        Ok(_) => {}
        Err(_) if context.was_told() => {}
        Err(error) => say(&explain(error)),
    }
}

/// Writes to standard error, whoever still reads it: nothing may end because nobody does.
pub(super) fn say(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// One line and a line break; a reader that is gone is not told.
fn write_line(to_stderr: bool, text: &str) {
    let _ = match to_stderr {
        true => writeln!(std::io::stderr(), "{text}"),
        false => writeln!(std::io::stdout(), "{text}"),
    };
}

/// What was done in less than a tenth of a second has no bottleneck worth a sentence.
fn verdict(context: &Context, traffic: Traffic) -> Option<Verdict> {
    let is_told = traffic.bytes > 0 && traffic.presence.present >= Duration::from_millis(100);
    is_told.then(|| {
        let snapshot = context.metrics.snapshot();
        snapshot.verdict_on(traffic.presence, traffic.sink)
    })
}

/// `standpipe: <error>: <cause>...` and `  fix: <what to do>`.
pub(super) fn explain(error: &Error) -> String {
    let mut text = format!("standpipe: {}\n", chain(error));
    if let Some(fix) = error.fix() {
        text.push_str(&format!("  fix: {fix}\n"));
    }
    text
}

/// The error and its causes, each once: some libraries repeat their cause in their own text.
pub(super) fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        let said = next.to_string();
        if !text.ends_with(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = next.source();
    }
    text
}

/// `1 file`, `2 files`.
pub(super) fn counted(number: u64, what: &str) -> String {
    let ending = if number == 1 { "" } else { "s" };
    format!("{number} {what}{ending}")
}

/// The summary line's common form.
pub(super) fn moved(what: &str, bytes: u64, elapsed: Duration) -> String {
    let rate = bytes as f64 / elapsed.as_secs_f64().max(1e-9);
    format!(
        "{what}{} in {:.2}s, {}/s",
        human(bytes as f64),
        elapsed.as_secs_f64(),
        human(rate)
    )
}

fn object(command: &str, context: &Context, result: &Result<Report>, elapsed: Duration) -> Value {
    let mut object = Map::new();
    object.insert("command".into(), json!(command));
    object.insert("ok".into(), json!(exit::number(result) == 0));
    object.insert("exit_code".into(), json!(exit::number(result)));
    object.insert("elapsed_seconds".into(), json!(elapsed.as_secs_f64()));
    match result {
        Ok(report) => {
            if let Some(traffic) = report.traffic {
                add_traffic(&mut object, context, traffic);
            }
            object.extend(report.fields.clone());
        }
        Err(error) => {
            object.insert(
                "error".into(),
                json!({"message": chain(error), "fix": error.fix()}),
            );
        }
    }
    object.insert("metrics".into(), json!(context.metrics.snapshot()));
    Value::Object(object)
}

fn add_traffic(object: &mut Map<String, Value>, context: &Context, traffic: Traffic) {
    let rate = traffic.bytes as f64 / traffic.taken_in.as_secs_f64().max(1e-9);
    object.insert("bytes".into(), json!(traffic.bytes));
    object.insert("bytes_per_second".into(), json!(rate));
    object.insert(
        "first_byte_seconds".into(),
        json!(traffic.first_byte.map(|time| time.as_secs_f64())),
    );
    object.insert("verdict".into(), json!(verdict(context, traffic)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn one_is_one() {
        assert_eq!(
            [0, 1, 2].map(|n| counted(n, "file")),
            ["0 files", "1 file", "2 files"]
        );
    }

    #[test]
    fn an_error_shows_its_causes_once_and_its_fix() {
        let refused = std::io::Error::other("connection refused");
        let error = Error::RetriesExhausted {
            attempts: 4,
            elapsed: Duration::from_secs(3),
            source: Box::new(Error::Network {
                uri: "s3://b/k".into(),
                offset: 8,
                source: Arc::new(refused),
            }),
        };
        let text = explain(&error);
        assert_eq!(
            text,
            "standpipe: gave up after 4 attempts in 3.0s: s3://b/k: connection failed at offset 8: connection refused\n  \
             fix: check the network, the endpoint (--endpoint-url) and the proxy settings\n"
        );
        let full = Error::io("/d/f", std::io::Error::from_raw_os_error(28));
        assert_eq!(explain(&full).matches("No space left").count(), 1);
    }
}
