//! One measured run, in a fresh process that is told what to do in its environment and prints what it found.

use std::process::{Command, Stdio};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use standpipe::client::{ObjectClient, Transport};
use standpipe::metrics::Metrics;

use crate::meter::{self, Cost};
use crate::server::{Endpoint, KEY};
use crate::{Outcome, fifo, stack, work};

const JOB: &str = "STANDPIPE_BENCH_JOB";

/// Who reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Client {
    /// `fake_s3::raw`, the baseline.
    Raw,
    /// Our transport.
    Direct,
    /// The SDK's.
    Stock,
}

/// What is done.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Work {
    /// Reads one object in order, twice: the second time is measured.
    Stream { key: String, size_bytes: u64 },
    /// Small ranges of one object, one after another on each of `concurrency` tasks.
    Small {
        key: String,
        size_bytes: u64,
        requests: u64,
    },
    /// All objects below a prefix, listed (by the baseline: known) and read whole.
    Objects {
        prefix: String,
        size_bytes: u64,
        count: u64,
    },
    /// The objects that an augmented manifest names, in its order, sizes unknown at first.
    Augmented { manifest: String },
    /// Every key below a prefix, by the way that channels list. Samples count keys as requests.
    List { prefix: String, in_one_go: bool },
    /// One object through a FIFO to a process that reads it.
    Fifo { key: String, size_bytes: u64 },
    /// From nothing to the end of a dataset, through a FIFO. `first_byte_only`: the reader leaves then.
    Train {
        prefix: String,
        first_byte_only: bool,
        work_bytes_per_second: Option<u64>,
    },
    /// The first byte of the built command, as a user starts it.
    Command { prefix: String },
    /// `Train`'s first byte by raw sockets: what nobody can do faster who has to list.
    RawFirstByte { prefix: String },
    /// `Train` by way of the disk.
    DownloadThenTrain {
        prefix: String,
        work_bytes_per_second: Option<u64>,
    },
    /// One GET of a small part on a new connection: the unit of `Train`'s first byte.
    FirstByte { key: String },
}

/// What is done, by whom, with how much.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Task {
    pub(crate) client: Client,
    pub(crate) signed: bool,
    pub(crate) concurrency: usize,
    pub(crate) part_bytes: u64,
    pub(crate) memory_bytes: u64,
    pub(crate) work: Work,
}

/// A task and where its server is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) task: Task,
    pub(crate) endpoint: Endpoint,
    /// When the process was started, on the clock that all processes share.
    pub(crate) started_ns: u64,
}

/// What a run gave. What does not apply is zero.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Sample {
    pub(crate) bytes: u64,
    /// Of the bytes, so that all who read the same can be compared.
    pub(crate) fingerprint: u64,
    pub(crate) seconds: f64,
    pub(crate) client_cpu_s: f64,
    pub(crate) server_cpu_s: f64,
    pub(crate) reader_cpu_s: f64,
    pub(crate) first_byte_s: f64,
    pub(crate) first_byte_since_client_s: f64,
    pub(crate) requests: u64,
    pub(crate) faults: u64,
    pub(crate) peak_rss_bytes: u64,
}

impl Sample {
    pub(crate) fn new(cost: &Cost, bytes: u64, fingerprint: u64, requests: u64) -> Self {
        Self {
            bytes,
            fingerprint,
            requests,
            seconds: cost.seconds,
            client_cpu_s: cost.client_cpu_s,
            server_cpu_s: cost.server_cpu_s,
            first_byte_s: cost.first_byte_s,
            faults: cost.faults,
            ..Self::default()
        }
    }

    /// When the first byte came, since the process's start and since the first thing that a client does.
    pub(crate) fn with_first_byte(self, job: &Job, client_ns: u64, first_ns: u64) -> Self {
        Self {
            first_byte_s: meter::seconds_between(job.started_ns, first_ns),
            first_byte_since_client_s: meter::seconds_between(client_ns, first_ns),
            ..self
        }
    }

    pub(crate) fn gb_per_s(&self) -> f64 {
        self.bytes as f64 / 1e9 / self.seconds
    }

    pub(crate) fn requests_per_s(&self) -> f64 {
        self.requests as f64 / self.seconds
    }

    pub(crate) fn client_per_gb(&self) -> f64 {
        (self.client_cpu_s + self.reader_cpu_s) / (self.bytes as f64 / 1e9)
    }

    pub(crate) fn total_per_gb(&self) -> f64 {
        self.client_per_gb() + self.server_cpu_s / (self.bytes as f64 / 1e9)
    }

    pub(crate) fn client_us_per_request(&self) -> f64 {
        self.client_cpu_s * 1e6 / self.requests as f64
    }
}

impl Job {
    /// Runs a task in a new process.
    pub(crate) fn run(task: &Task, endpoint: &Endpoint) -> Outcome<Sample> {
        let mut command = Command::new(std::env::current_exe()?);
        if task.signed {
            command.envs(KEY);
        }
        let job = Job {
            task: task.clone(),
            endpoint: endpoint.clone(),
            started_ns: meter::now_ns(),
        };
        let output = command
            .env(JOB, serde_json::to_string(&job)?)
            .stderr(Stdio::inherit())
            .output()?;
        if !output.status.success() {
            return Err(format!("{}: {task:?}", output.status).into());
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Whether this process is a job; its result then.
    pub(crate) fn perform_if_asked() -> Outcome<Option<Sample>> {
        let Ok(text) = std::env::var(JOB) else {
            return Ok(None);
        };
        let job: Job = serde_json::from_str(&text)?;
        let mut sample = match &job.task.work {
            Work::Stream { key, size_bytes } => work::stream(&job, key, *size_bytes),
            Work::Small {
                key,
                size_bytes,
                requests,
            } => work::small(&job, key, *size_bytes, *requests),
            Work::Objects {
                prefix,
                size_bytes,
                count,
            } => work::objects(&job, prefix, *size_bytes, *count),
            Work::Augmented { manifest } => work::augmented(&job, manifest),
            Work::List { prefix, in_one_go } => work::list(&job, prefix, *in_one_go),
            Work::Fifo { key, size_bytes } => fifo::fifo(&job, key, *size_bytes),
            Work::Train {
                prefix,
                first_byte_only,
                work_bytes_per_second,
            } => fifo::train(&job, prefix, *first_byte_only, *work_bytes_per_second),
            Work::Command { prefix } => fifo::command(&job, prefix),
            Work::RawFirstByte { prefix } => fifo::raw_first_byte(&job, prefix),
            Work::DownloadThenTrain {
                prefix,
                work_bytes_per_second,
            } => fifo::download_then_train(&job, prefix, *work_bytes_per_second),
            Work::FirstByte { key } => work::first_byte(&job, key),
        }?;
        sample.peak_rss_bytes = meter::peak_rss_bytes();
        Ok(Some(sample))
    }

    pub(crate) fn connect(&self, metrics: &Arc<Metrics>) -> Outcome<Arc<dyn ObjectClient>> {
        let transport = match self.task.client {
            Client::Raw => return Err("the baseline has no client".into()),
            Client::Direct => Transport::Direct,
            Client::Stock => Transport::Stock,
        };
        stack::connect(&self.endpoint, transport, self.task.signed, metrics)
    }
}
