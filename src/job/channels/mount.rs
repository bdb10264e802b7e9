//! A FastFile channel: a mount, with counters of its own.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use super::super::summary::ChannelReport;
use super::Stage;
use crate::error::{Error, Result};
use crate::fastfile::FastFiles;
use crate::fastfile::fuse::{Mount, MountOptions};
use crate::fastfile::read::ReadConfig;
use crate::input::{Channel, Shard};
use crate::metrics::Metrics;

/// A mounted channel. Dropping it takes the mount away, and the directory that was made for it.
#[derive(Debug)]
pub(super) struct Mounted {
    /// Gone when it is dropped.
    mount: Option<Mount>,
    directory: PathBuf,
    counters: Counters,
}

/// What is counted of it.
#[derive(Debug, Clone)]
pub(super) struct Counters {
    name: String,
    metrics: Arc<Metrics>,
    since: Instant,
}

impl Mounted {
    /// Mounts a host's share of a channel.
    pub(super) fn start(
        stage: &Stage<'_>,
        channel: &Channel,
        share: Shard,
        directory: PathBuf,
    ) -> Result<Self> {
        let means = stage.means;
        let uri = channel.source.lone_uri().ok_or_else(|| {
            Error::unusable(
                format!("channel {}: S3Uri", channel.name),
                "FastFile mode takes one prefix, not a pattern",
                "use mode=file or mode=pipe for braces",
            )
        })?;
        let reads = ReadConfig::of(&means.engine);
        let metrics = Arc::new(Metrics::default());
        let mut files = FastFiles::builder(uri)
            .client(means.client.clone())
            .reads(reads)
            .shard(share)
            .metrics(metrics.clone());
        if let Some(cache) = &means.cache {
            files = files.cache(cache.clone());
        }
        let files = stage.unless_stopped(files.open_async())?;
        std::fs::create_dir_all(&directory).map_err(|error| Error::io(&directory, error))?;
        let (names, source) = (files.namespace().clone(), files.source().clone());
        let options = MountOptions::default();
        let mount = Mount::start(names, source, &directory, &options).map_err(|error| {
            let _ = std::fs::remove_dir(&directory);
            cannot_mount(channel, error)
        })?;
        Ok(Self {
            mount: Some(mount),
            directory,
            counters: Counters {
                name: channel.name.clone(),
                metrics,
                since: Instant::now(),
            },
        })
    }

    pub(super) fn counters(&self) -> Counters {
        self.counters.clone()
    }
}

impl Counters {
    pub(super) fn report(&self) -> ChannelReport {
        ChannelReport::of_mount(&self.name, &self.metrics.snapshot(), self.since.elapsed())
    }
}

/// Who cannot mount can still have the files.
fn cannot_mount(channel: &Channel, error: Error) -> Error {
    Error::unusable(
        format!("channel {}: InputMode FastFile", channel.name),
        format!("the mount failed: {error}"),
        "use mode=file, which downloads the channel first, or mode=pipe; or make /dev/fuse and the right to mount available",
    )
}

impl Drop for Mounted {
    fn drop(&mut self) {
        drop(self.mount.take());
        // Only what was made for the mount: a directory with files stays.
        let _ = std::fs::remove_dir(&self.directory);
    }
}
