//! The counters in Prometheus' text format (0.0.4), on a port of their own while the job runs.
//!
//! The responder is as small as what it does: it reads a head, answers one document, and closes. A few connections at a
//! time, each within a few seconds; who is slower is cut off.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::channels::InputsWatch;
use super::summary::ChannelReport;
use crate::error::{Error, Result};
use crate::metrics::{Metrics, Snapshot};
use crate::runtime;

const PATIENCE: Duration = Duration::from_secs(5);
const CONNECTIONS: usize = 8;
const MAX_HEAD_BYTES: usize = 8 << 10;

/// Answers until it is dropped.
#[derive(Debug)]
pub(super) struct Exporter {
    task: JoinHandle<()>,
    channels: Arc<Mutex<Option<InputsWatch>>>,
}

impl Exporter {
    pub(super) fn start(address: SocketAddr, metrics: Arc<Metrics>) -> Result<Self> {
        let runtime = runtime::handle();
        let listener = runtime
            .block_on(TcpListener::bind(address))
            .map_err(|error| {
                Error::unusable(
                    "--metrics-port",
                    format!("{address} cannot be listened on: {error}"),
                    "choose another port, or stop whoever has it",
                )
            })?;
        if let Ok(address) = listener.local_addr() {
            tracing::info!("metrics are on http://{address}/metrics");
        }
        let channels = Arc::<Mutex<Option<InputsWatch>>>::default();
        let shown = channels.clone();
        let page = move || {
            let channels = shown.lock().unwrap_or_else(PoisonError::into_inner);
            let reports = channels.as_ref().map(InputsWatch::report);
            render(&metrics.snapshot(), &reports.unwrap_or_default())
        };
        let task = runtime.spawn(serve(listener, Arc::new(page)));
        Ok(Self { task, channels })
    }

    /// From now on the channels are told, too.
    pub(super) fn show(&self, channels: InputsWatch) {
        *self.channels.lock().unwrap_or_else(PoisonError::into_inner) = Some(channels);
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Page = Arc<dyn Fn() -> String + Send + Sync>;

async fn serve(listener: TcpListener, page: Page) {
    let free = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = free.clone().acquire_owned().await else {
            return;
        };
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, for one: it passes.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let page = page.clone();
        tokio::spawn(async move {
            // Whoever is not there any more needs no answer.
            let _ = tokio::time::timeout(PATIENCE, answer(stream, &page)).await;
            drop(permit);
        });
    }
}

async fn answer(mut stream: TcpStream, page: &Page) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if head.len() > MAX_HEAD_BYTES || stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let (status, body) = match path_of(&head) {
        Some("/metrics" | "/") => ("200 OK", page()),
        Some(_) => ("404 Not Found", "see /metrics\n".to_owned()),
        None => ("405 Method Not Allowed", "GET only\n".to_owned()),
    };
    let length = body.len();
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}

/// The path of a GET, without its query.
fn path_of(head: &[u8]) -> Option<&str> {
    let line = head.split(|byte| *byte == b'\r').next()?;
    let target = str::from_utf8(line).ok()?.strip_prefix("GET ")?;
    let target = target.split(' ').next()?;
    target.split('?').next()
}

/// The document: a pure function of the counters.
pub(super) fn render(snapshot: &Snapshot, channels: &[ChannelReport]) -> String {
    let mut text = String::new();
    let values = serde_json::to_value(snapshot).unwrap_or_default();
    for (name, only_grows) in Metrics::NAMES {
        let value = values.get(name).and_then(Value::as_u64).unwrap_or_default();
        let (name, value) = in_base_unit(name, value);
        let (kind, ending) = match only_grows {
            true => ("counter", "_total"),
            false => ("gauge", ""),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "# TYPE standpipe_{name}{ending} {kind}\nstandpipe_{name}{ending} {value}"
        );
    }
    type Column = (
        &'static str,
        &'static str,
        fn(&ChannelReport) -> Option<f64>,
    );
    let columns: [Column; 7] = [
        ("bytes_total", "counter", |channel| {
            Some(channel.bytes as f64)
        }),
        ("attended_seconds_total", "counter", |channel| {
            Some(channel.presence.present.as_secs_f64())
        }),
        ("stalled_seconds_total", "counter", |channel| {
            Some(channel.presence.stalled.as_secs_f64())
        }),
        ("blocked_seconds_total", "counter", |channel| {
            Some(channel.presence.blocked.as_secs_f64())
        }),
        ("epochs_total", "counter", |channel| {
            channel.epochs.map(|n| n as f64)
        }),
        ("early_closes_total", "counter", |channel| {
            channel.early_closes.map(|n| n as f64)
        }),
        ("first_byte_seconds", "gauge", |channel| {
            channel.first_byte_seconds
        }),
    ];
    for (name, kind, value) in columns {
        let told = channels
            .iter()
            .filter_map(|channel| Some((channel, value(channel)?)));
        let lines: Vec<_> = told
            .map(|(channel, value)| {
                // Channel names need no escapes: letters, digits, `.`, `-` and `_`.
                let (name_of, mode) = (&channel.channel, channel.mode);
                format!("standpipe_channel_{name}{{channel=\"{name_of}\",mode=\"{mode}\"}} {value}")
            })
            .collect();
        if !lines.is_empty() {
            let _ = writeln!(
                text,
                "# TYPE standpipe_channel_{name} {kind}\n{}",
                lines.join("\n")
            );
        }
    }
    text
}

/// Seconds, as Prometheus wants them.
fn in_base_unit(name: &str, value: u64) -> (String, f64) {
    match name.strip_suffix("_ns") {
        Some(name) => (format!("{name}_seconds"), value as f64 / 1e9),
        None => (name.to_owned(), value as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_have_their_types_units_and_labels() {
        let metrics = Metrics::default();
        metrics.bytes_received.add(7);
        metrics.consumer_stall_ns.add(1_500_000_000);
        metrics.requests_in_flight.add(3);
        let summary = crate::pipe::ChannelSummary::new("train".parse().unwrap());
        let channels = [ChannelReport::of_pipe(&summary)];
        let text = render(&metrics.snapshot(), &channels);
        for line in [
            "# TYPE standpipe_bytes_received_total counter",
            "standpipe_bytes_received_total 7",
            "standpipe_consumer_stall_seconds_total 1.5",
            "# TYPE standpipe_requests_in_flight gauge",
            "standpipe_requests_in_flight 3",
            "standpipe_channel_epochs_total{channel=\"train\",mode=\"Pipe\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(!text.contains("first_byte_seconds{"), "there was none");
    }

    #[test]
    fn requests_name_a_path() {
        assert_eq!(
            path_of(b"GET /metrics?x=1 HTTP/1.1\r\n\r\n"),
            Some("/metrics")
        );
        assert_eq!(path_of(b"POST /metrics HTTP/1.1\r\n\r\n"), None);
        assert_eq!(path_of(b"\xff\r\n"), None);
    }
}
