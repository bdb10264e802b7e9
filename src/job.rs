//! The container contract: what SageMaker promises a training container, kept anywhere.
//!
//! A job is a [`JobSpec`], read from a CreateTrainingJob request or put together from flags, on one host of a
//! [`Cluster`]. What follows from these is computed by plain functions: the [`Documents`] below `/opt/ml/input/config`,
//! the environment, and what is to be done when something happens. A [`Job`] acts: it makes the tree, starts the
//! channels and the trainer, forwards signals, and takes everything away again.
//!
//! What limits it: the FIFOs and mounts are this process's, so the trainer is its child and cannot outlive it
//! (`PR_SET_PDEATHSIG`; what the trainer itself has started is found by a mark in its environment, by this run or by the
//! next one in the same tree). docs/SEMANTICS.md has the promises, clause by clause.

use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::cache::CacheConfig;
use crate::client::{ObjectClient, S3Client};
use crate::error::Error;
use crate::metrics::Metrics;
use crate::prefetch::PrefetchConfig;

mod artifacts;
mod channels;
mod check;
mod checkpoint;
mod cluster;
mod cursor;
mod cutoff;
mod documents;
mod environment;
mod file_list;
mod inbox;
mod marks;
mod notice;
mod prometheus;
mod request;
mod resume;
mod run;
mod share;
mod spec;
mod stop;
mod strays;
mod summary;
mod trainer;
mod tree;
mod upload;

pub use channels::{LiveChannels, OnDownload};
pub use checkpoint::CheckpointConfig;
pub use cluster::{Cluster, ClusterFlags};
pub use documents::{Documents, FastFileAs};
pub use notice::SpotNotices;
pub use resume::Resume;
pub use spec::{CheckpointSpec, InstanceGroup, JobSpec, OutputSpec};
pub use stop::{Cause, INTERRUPTED, OUT_OF_TIME};
pub use summary::{ChannelReport, CheckpointReport, JobSummary};
pub use trainer::{NOT_EXECUTABLE, NOT_FOUND};

/// What is to be run, and how.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct JobConfig {
    /// The job.
    pub spec: JobSpec,
    /// Its name: the spec's, or one that was made up.
    pub name: String,
    /// The hosts.
    pub cluster: Cluster,
    /// The trainer and its arguments.
    pub command: Vec<OsString>,
    /// What the container knows as `/opt/ml`.
    pub base_dir: PathBuf,
    /// From the request to end to SIGKILL. The platform's is 120 s.
    pub stop_grace: Duration,
    /// What there is for the last sync and the uploads behind `stop_grace`. Of a spot interruption's time so much is kept.
    /// A trainer that ends by itself has no limit, unless somebody asks for the end meanwhile.
    pub sync_grace: Duration,
    /// Whether the training toolkit's `SM_*` variables are set.
    pub sm_env: bool,
    /// What FastFile mode is called in `inputdataconfig.json`.
    pub fast_file_as: FastFileAs,
    /// For `resourceconfig.json`.
    pub network_interface: String,
    /// For the job's ARN.
    pub region: String,
    /// How checkpoints are kept, if they are.
    pub checkpoint: CheckpointConfig,
    /// Whether Pipe channels go on where the checkpoint was made.
    pub resume: Resume,
    /// How much of what it has taken out of a pipe the trainer may hold and not have used when it writes a checkpoint: so
    /// much is given again. The default, 16 MiB, is the largest buffer of AWS's own readers.
    pub resume_margin_bytes: u64,
    /// Which of EC2's notices are heeded.
    pub spot_notices: SpotNotices,
    /// Where Prometheus finds the counters while the job runs.
    pub metrics_address: Option<SocketAddr>,
}

impl JobConfig {
    /// The platform's ways, for `command` in `/opt/ml` on one host.
    pub fn new(spec: JobSpec, name: impl Into<String>, command: Vec<OsString>) -> Self {
        Self {
            spec,
            name: name.into(),
            cluster: Cluster::numbered(0, 1),
            command,
            base_dir: spec::PLATFORM_BASE.into(),
            stop_grace: Duration::from_secs(120),
            sync_grace: Duration::from_secs(30),
            sm_env: false,
            fast_file_as: FastFileAs::default(),
            network_interface: "eth0".into(),
            region: "us-east-1".into(),
            checkpoint: CheckpointConfig::default(),
            resume: Resume::Off,
            resume_margin_bytes: 16 << 20,
            spot_notices: SpotNotices::Off,
            metrics_address: None,
        }
    }
}

/// Hears what people should know at once.
pub type OnEvent = Arc<dyn Fn(&JobEvent) + Send + Sync>;

/// Which of its outputs a trainer has written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Output,
    /// Standard error.
    Error,
}

/// Takes what a trainer writes, in pieces; nothing is its end.
pub type OnOutput = Arc<dyn Fn(Stream, &[u8]) + Send + Sync>;

/// Where the trainer's output goes.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum TrainerOutput {
    /// Where ours does.
    #[default]
    Ours,
    /// Into a file, both of it, at its end.
    File(PathBuf),
    /// To whoever wants these two; what is not wanted goes where ours does.
    Heard {
        /// Whether standard output is wanted.
        output: bool,
        /// Whether standard error is.
        error: bool,
        /// By whom.
        by: OnOutput,
    },
}

impl fmt::Debug for TrainerOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ours => f.write_str("Ours"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Heard { output, error, .. } => f
                .debug_struct("Heard")
                .field("output", output)
                .field("error", error)
                .finish_non_exhaustive(),
        }
    }
}

/// What a job is run with.
#[derive(Clone)]
#[non_exhaustive]
pub struct Means {
    /// Reads the channels.
    pub client: Arc<dyn ObjectClient>,
    /// How the engine reads ahead.
    pub engine: PrefetchConfig,
    /// What it counts into.
    pub metrics: Arc<Metrics>,
    /// Writes checkpoints, model and output; needed for these only.
    pub s3: Option<S3Client>,
    /// The cache of FastFile channels.
    pub cache: Option<CacheConfig>,
    /// Permissions of FIFOs.
    pub fifo_mode: u32,
    /// Hears of downloads that begin.
    pub on_download: Option<OnDownload>,
    /// Hears what people should know at once.
    pub on_event: Option<OnEvent>,
    /// Where the trainer's output goes.
    pub output: TrainerOutput,
}

impl Means {
    /// Without a cache, and with nobody listening.
    pub fn new(
        client: Arc<dyn ObjectClient>,
        engine: PrefetchConfig,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            client,
            engine,
            metrics,
            s3: None,
            cache: None,
            fifo_mode: 0o600,
            on_download: None,
            on_event: None,
            output: TrainerOutput::Ours,
        }
    }
}

impl fmt::Debug for Means {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Means")
            .field("client", &self.client)
            .field("engine", &self.engine)
            .field("cache", &self.cache)
            .finish_non_exhaustive()
    }
}

/// What people should know at once.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum JobEvent {
    /// All inputs are there, and the trainer is about to start: the terminal is its.
    Training {
        /// How they stand, whenever it is asked.
        channels: LiveChannels,
    },
    /// An input failed; the trainer is stopped before it can take that for the end of the data.
    InputFailed {
        /// Why.
        error: Error,
    },
    /// The trainer is asked to end.
    Stopping {
        /// Why.
        cause: Cause,
    },
    /// The trainer has ended, and somebody asks for the end while what it has left is saved.
    Saving {
        /// Why.
        cause: Cause,
    },
    /// Checkpoint files were left out, because the trainer was cut off so shortly after they were changed that they may
    /// be half written.
    LeftOut {
        /// Their paths below the checkpoint directory.
        files: Vec<String>,
    },
    /// Checkpoints, model or output are not in S3.
    UploadFailed {
        /// Why.
        error: Error,
    },
    /// The trainer did not end in time.
    Killing,
    /// The trainer left processes behind, which were killed.
    Strays {
        /// How many.
        count: usize,
    },
}

/// A job that can be [run](Self::run).
#[derive(Debug)]
pub struct Job {
    config: JobConfig,
    means: Means,
}

impl Job {
    /// Nothing is made before it is run.
    pub fn new(config: JobConfig, means: Means) -> Self {
        Self { config, means }
    }
}
