//! What happened: one entry per request, and counters.
//!
//! An entry is there before the first byte of its response goes out, so a client that has its answer finds its request
//! in the log; the entry's end (bytes sent, time) is filled in when the response is done.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde::{Serialize, Serializer};

use crate::script::Operation;

/// How a request proved who sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CredentialKind {
    /// Not at all.
    None,
    /// A signature in the `Authorization` header.
    Header,
    /// A signature in the query.
    Presigned,
    /// A signature by an S3 Express session's credentials.
    Session,
}

/// One request.
#[derive(Debug, Clone, Serialize)]
pub struct LogEntry {
    /// Position among all requests since the start.
    pub sequence: u64,
    /// The connection it came on, counted from 1.
    pub connection: u64,
    /// HTTP method.
    pub method: String,
    /// What it did.
    pub operation: Operation,
    /// `Host` header.
    pub host: Option<String>,
    /// Path as sent, without scheme and host if those stood before it.
    pub path: String,
    /// Bucket, decoded.
    pub bucket: String,
    /// Key, decoded; for a listing its prefix.
    pub key: String,
    /// Query as sent.
    pub query: String,
    /// `Range` header.
    pub range: Option<String>,
    /// `If-Match` header.
    pub if_match: Option<String>,
    /// `User-Agent` header.
    pub user_agent: Option<String>,
    /// How it was signed, whether or not anybody checked.
    pub credentials: CredentialKind,
    /// Whether a signature was checked and right.
    pub authenticated: bool,
    /// Status of the response; 0 if the answer was no HTTP.
    pub status: u16,
    /// S3's error code.
    pub error: Option<String>,
    /// `x-amz-request-id` of the response.
    pub request_id: String,
    /// Body bytes that were handed to the kernel.
    pub bytes_sent: u64,
    /// Effects of the script that hit it.
    pub faults: Vec<&'static str>,
    /// When its head had arrived, from the server's start.
    #[serde(serialize_with = "seconds")]
    pub started: Duration,
    /// When its response was done, from the server's start; `None` while it runs.
    #[serde(serialize_with = "maybe_seconds")]
    pub finished: Option<Duration>,
}

fn seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

/// Seconds or null.
fn maybe_seconds<S: Serializer>(
    duration: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    duration
        .map(|duration| duration.as_secs_f64())
        .serialize(serializer)
}

/// Counters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Connections accepted.
    pub connections: u64,
    /// Connections open now.
    pub open: usize,
    /// Most connections open at once.
    pub open_peak: usize,
    /// Requests.
    pub requests: u64,
    /// Requests being answered now.
    pub in_flight: usize,
    /// Most requests being answered at once.
    pub in_flight_peak: usize,
    /// Body bytes sent.
    pub bytes_sent: u64,
}

/// Entries in memory and, if asked for, in a file.
#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) start: Instant,
    limit: usize,
    entries: Mutex<VecDeque<LogEntry>>,
    file: Option<Mutex<File>>,
    connections: AtomicU64,
    open: Gauge,
    requests: AtomicU64,
    in_flight: Gauge,
    bytes_sent: AtomicU64,
}

#[derive(Debug, Default)]
struct Gauge {
    now: AtomicUsize,
    peak: AtomicUsize,
}

impl Gauge {
    fn enter(&self) {
        let now = self.now.fetch_add(1, Ordering::Relaxed) + 1;
        self.peak.fetch_max(now, Ordering::Relaxed);
    }

    fn leave(&self) {
        self.now.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Log {
    pub(crate) fn new(limit: usize, file: Option<File>) -> Log {
        Log {
            start: Instant::now(),
            limit,
            entries: Mutex::default(),
            file: file.map(Mutex::new),
            connections: AtomicU64::new(0),
            open: Gauge::default(),
            requests: AtomicU64::new(0),
            in_flight: Gauge::default(),
            bytes_sent: AtomicU64::new(0),
        }
    }

    /// Whether entries are kept at all: benchmarks spare themselves the strings.
    pub(crate) fn is_on(&self) -> bool {
        self.limit > 0 || self.file.is_some()
    }

    /// A connection came; its number.
    pub(crate) fn connected(&self) -> u64 {
        self.open.enter();
        self.connections.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(crate) fn disconnected(&self) {
        self.open.leave();
    }

    /// A request came; its number.
    pub(crate) fn begin(&self) -> u64 {
        self.in_flight.enter();
        self.requests.fetch_add(1, Ordering::Relaxed)
    }

    /// The response of a request is about to go out.
    pub(crate) fn push(&self, entry: LogEntry) {
        if self.limit == 0 {
            return;
        }
        let mut entries = self
            .entries
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        if entries.len() == self.limit {
            entries.pop_front();
        }
        entries.push_back(entry);
    }

    /// The response of a request is out.
    pub(crate) fn end(&self, sequence: u64, bytes_sent: u64, entry: Option<LogEntry>) {
        self.bytes_sent.fetch_add(bytes_sent, Ordering::Relaxed);
        let finished = self.start.elapsed();
        if self.limit > 0 {
            let mut entries = self
                .entries
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner());
            // Nearly always among the last: as many requests as run at once may have come after it.
            if let Some(entry) = entries
                .iter_mut()
                .rev()
                .find(|entry| entry.sequence == sequence)
            {
                entry.bytes_sent = bytes_sent;
                entry.finished = Some(finished);
            }
        }
        if let (Some(file), Some(mut entry)) = (&self.file, entry) {
            entry.bytes_sent = bytes_sent;
            entry.finished = Some(finished);
            let mut line = serde_json::to_vec(&entry).unwrap_or_default();
            line.push(b'\n');
            let _ = file
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner())
                .write_all(&line);
        }
        self.in_flight.leave();
    }

    /// Whether a copy of each entry must be kept for [`Log::end`].
    pub(crate) fn has_file(&self) -> bool {
        self.file.is_some()
    }

    /// All entries. Waits a moment for requests whose last bytes the client already has while our thread has not yet
    /// noted that.
    pub(crate) fn entries(&self) -> Vec<LogEntry> {
        let patience = Instant::now() + Duration::from_millis(20);
        while self.in_flight.now.load(Ordering::Acquire) > 0 && Instant::now() < patience {
            std::thread::sleep(Duration::from_micros(200));
        }
        let entries = self
            .entries
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut all: Vec<LogEntry> = entries.iter().cloned().collect();
        all.sort_by_key(|entry| entry.sequence);
        all
    }

    pub(crate) fn clear(&self) {
        self.entries
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .clear();
    }

    pub(crate) fn stats(&self) -> Stats {
        Stats {
            connections: self.connections.load(Ordering::Relaxed),
            open: self.open.now.load(Ordering::Relaxed),
            open_peak: self.open.peak.load(Ordering::Relaxed),
            requests: self.requests.load(Ordering::Relaxed),
            in_flight: self.in_flight.now.load(Ordering::Relaxed),
            in_flight_peak: self.in_flight.peak.load(Ordering::Relaxed),
            bytes_sent: self.bytes_sent.load(Ordering::Relaxed),
        }
    }
}
