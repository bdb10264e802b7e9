//! Pipe mode: one FIFO per channel and epoch, read like a file from front to back.
//!
//! A trainer opens `train_0`, reads to the end, closes it, and finds `train_1` for the next epoch. [`PipeServer`] makes
//! the FIFOs, fills each from an [`EpochStream`] and takes it away. What a trainer may rely on is written in
//! docs/SEMANTICS.md, clause by clause; each clause stands over the test that proves it.
//!
//! What limits it: a byte is copied into the pipe and out of it, about 2 to 3 GB/s on one core with a pipe of 1 MiB, and
//! a pipe that is full holds up its own channel alone. (Passing pages by `vmsplice` instead was tried: ARCHITECTURE.md
//! says why it is not done.) What it cannot do: a FIFO carries bytes and an end, no error. So an epoch that fails never
//! ends: its write end stays open while a status file beside the FIFO and the exit code of the process say why.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::metrics::Presence;

mod attendance;
mod cancel;
mod channel;
mod content;
mod feed;
mod fifo;
mod holders;
mod lifecycle;
mod lock;
mod name;
mod piece;
mod position;
mod reader;
mod server;
mod shape;
mod spool;
mod status;
mod stream;
mod sys;

pub use cancel::Canceller;
pub use content::Content;
pub use name::{ChannelName, check_names};
pub use position::Position;
pub use reader::{EpochReader, NextRecords};
pub use server::{PipeServer, Watch};
pub use status::Failure;
pub use stream::EpochStream;

/// Opens the stream of an epoch.
pub type EpochSource = dyn Fn(u64) -> Result<EpochStream> + Send + Sync;

/// Hears of a failure at once.
pub type OnFailure = Arc<dyn Fn(&Failure) + Send + Sync>;

/// A named source of epochs.
#[derive(Clone)]
pub struct PipeChannel {
    /// The name that the FIFOs begin with.
    pub name: ChannelName,
    /// What the epochs hold. Called once per epoch, shortly before the epoch before it ends.
    pub source: Arc<EpochSource>,
}

impl fmt::Debug for PipeChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PipeChannel")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl PipeChannel {
    /// A channel called `name`. Its epochs are readers of the engine, or what a [`Content`] makes of a channel.
    pub fn new<S: Into<EpochStream>>(
        name: ChannelName,
        source: impl Fn(u64) -> Result<S> + Send + Sync + 'static,
    ) -> Self {
        let source = Arc::new(move |epoch| source(epoch).map(Into::into));
        Self { name, source }
    }
}

/// How a [`PipeServer`] serves.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PipeConfig {
    /// Where the FIFOs are made. Created if absent. One server at a time.
    pub dir: PathBuf,
    /// How many epochs each channel has; `None` for no end.
    pub epochs: Option<u64>,
    /// Permissions of the FIFOs, whatever the umask. Whoever may read one can take its bytes.
    pub mode: u32,
    /// How large the pipes are made, if allowed: an unprivileged process gets `/proc/sys/fs/pipe-max-size`, 1 MiB
    /// unless changed. Larger pipes are slower again, because their pages no longer fit into the cache.
    pub pipe_bytes: usize,
    /// How long a reader may keep an epoch open that has failed. More than 60 s, so that readers with a timeout of their
    /// own (MLIO's is 60 s) give up first, and say so.
    pub failure_grace: Duration,
    /// How far before the last byte that a reader has taken out of the pipe its [`Position`] is told to be: as much as it
    /// may hold in buffers of its own.
    pub position_margin_bytes: u64,
    /// Whether a failure of a later epoch is told although nobody has opened its FIFO. A job whose trainer may be done with
    /// its data tells it when somebody does.
    pub tell_unread: bool,
    /// How long the empty FIFO after the last epoch is offered. TensorFlow's `repeat(N)` opens it as soon as it has read
    /// the end of the last epoch; other readers never do.
    pub farewell_grace: Duration,
}

impl PipeConfig {
    /// The defaults, for FIFOs in `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            epochs: None,
            mode: 0o600,
            pipe_bytes: 1 << 20,
            failure_grace: Duration::from_secs(75),
            position_margin_bytes: 0,
            tell_unread: true,
            farewell_grace: Duration::from_secs(5),
        }
    }

    /// Refuses what cannot work.
    pub fn validate(&self) -> Result<()> {
        if self.epochs == Some(0) {
            return Err(Error::config(
                "epochs",
                "0 epochs would serve nothing: use 1 or more, or leave it out for no end",
            ));
        }
        // The owner must read, too: that is how a FIFO that was left behind is looked at.
        if self.mode & 0o600 != 0o600 || self.mode > 0o777 {
            return Err(Error::config(
                "fifo-mode",
                format!(
                    "{:04o} cannot be served: the owner must read and write (0600), and beyond that are only the group and all others (0640, 0660, 0644)",
                    self.mode
                ),
            ));
        }
        Ok(())
    }
}

/// What became of one channel.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct ChannelSummary {
    /// Its name.
    pub channel: ChannelName,
    /// Epochs that were delivered to their end.
    pub epochs: u64,
    /// Epochs that the reader closed before their end.
    pub early_closes: u64,
    /// Whether the first epoch's first bytes are there, or that there are none.
    #[serde(skip)]
    pub begun: bool,
    /// Bytes put into pipes.
    pub bytes: u64,
    /// The part of them that is of the epoch that is read.
    #[serde(skip)]
    pub epoch_bytes: u64,
    /// Time that a reader was there, from its open to its end. Seconds.
    #[serde(serialize_with = "seconds")]
    pub attended: Duration,
    /// Time from the reader's open to the first byte in the pipe, in the first epoch that had one, seconds.
    #[serde(serialize_with = "option_seconds")]
    pub first_byte: Option<Duration>,
    /// The longest such time of any epoch, seconds.
    #[serde(serialize_with = "option_seconds")]
    pub slowest_first_byte: Option<Duration>,
    /// Time that the pipe was full: the reader was the limit. Seconds.
    #[serde(serialize_with = "seconds")]
    pub blocked: Duration,
    /// Time that a reader waited for bytes: the loader was the limit. Seconds.
    #[serde(serialize_with = "seconds")]
    pub stalled: Duration,
    /// How large the pipe of the latest epoch is.
    pub pipe_bytes: usize,
}

impl ChannelSummary {
    /// Of a channel that has served nothing yet.
    pub fn new(channel: ChannelName) -> Self {
        Self {
            channel,
            epochs: 0,
            early_closes: 0,
            begun: false,
            bytes: 0,
            epoch_bytes: 0,
            attended: Duration::ZERO,
            first_byte: None,
            slowest_first_byte: None,
            blocked: Duration::ZERO,
            stalled: Duration::ZERO,
            pipe_bytes: 0,
        }
    }

    /// How its readers spent their time.
    pub fn presence(&self) -> Presence {
        Presence {
            present: self.attended,
            stalled: self.stalled,
            blocked: self.blocked,
        }
    }

    fn record_first_byte(&mut self, time: Duration) {
        self.first_byte.get_or_insert(time);
        self.slowest_first_byte = self.slowest_first_byte.max(Some(time));
    }
}

/// What became of a server's channels.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct PipeSummary {
    /// Time since the start, seconds.
    #[serde(serialize_with = "seconds")]
    pub elapsed: Duration,
    /// Time that any channel had a reader, seconds.
    #[serde(serialize_with = "seconds")]
    pub attended: Duration,
    /// Each channel, in the order given.
    pub channels: Vec<ChannelSummary>,
}

fn seconds<S: serde::Serializer>(time: &Duration, to: S) -> std::result::Result<S::Ok, S::Error> {
    to.serialize_f64(time.as_secs_f64())
}

fn option_seconds<S: serde::Serializer>(
    time: &Option<Duration>,
    to: S,
) -> std::result::Result<S::Ok, S::Error> {
    time.map(|time| time.as_secs_f64()).serialize(to)
}
