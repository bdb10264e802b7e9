//! The channels of a job, each started in its mode, and what became of them.
//!
//! A File channel is downloaded before the trainer starts, a FastFile channel is mounted, and the FIFOs of Pipe channels
//! are served by a [`PipeServer`] on a thread of its own. That thread keeps the server: the write ends of epochs that
//! failed stay open as long as it lives, and it lives until the trainer is dead.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures::TryStreamExt;
use futures::future::try_join_all;

use super::Means;
use super::cursor::{ChannelCursor, Course};
use super::inbox::{Event, Inbox, Post};
use super::resume::{self, Resume};
use super::spec::mode_of;
use super::summary::ChannelReport;
use super::tree::Tree;
use crate::download::{Download, DownloadConfig, DownloadProgress};
use crate::error::{Error, Result};
use crate::fastfile::refuse_to_require;
use crate::input::{Channel, InputMode, Selection, Shard};
use crate::object::ObjectMeta;
use crate::pipe::{
    Canceller, Content, Failure, PipeChannel, PipeConfig, PipeServer, Position, Watch,
};
use crate::prefetch::Prefetcher;
use crate::runtime;

#[cfg(all(feature = "fuse", target_os = "linux"))]
mod mount;
#[cfg(all(feature = "fuse", target_os = "linux"))]
use mount::Mounted;

/// How long a listing goes on for somebody who has asked for the end: nobody notices it.
const STOP_POLL: Duration = Duration::from_millis(50);

/// How long a FIFO that was cut off stays open for a reader that has outlived the trainer and was not killed.
const READER_PATIENCE: Duration = Duration::from_secs(10);

/// Hears how a download goes: the channel's name, and its counters.
pub type OnDownload = Arc<dyn Fn(&str, &Arc<DownloadProgress>) + Send + Sync>;

/// The started channels.
#[derive(Debug, Default)]
pub(super) struct Inputs {
    files: Vec<(String, Arc<DownloadProgress>, Duration)>,
    #[cfg(all(feature = "fuse", target_os = "linux"))]
    mounts: Vec<Mounted>,
    pipes: Option<Pipes>,
}

/// Where and for whom channels are started.
pub(super) struct Stage<'a> {
    pub(super) means: &'a Means,
    pub(super) engine: &'a Prefetcher,
    pub(super) tree: &'a Tree,
    pub(super) inbox: &'a Inbox,
    /// This host's shares of channels that are shared out.
    pub(super) shares: &'a BTreeMap<String, Shard>,
    /// Where each Pipe channel begins.
    pub(super) courses: &'a [(Course, Option<ChannelCursor>)],
    /// How precisely.
    pub(super) resume: Resume,
    /// What a trainer may hold of what it has taken.
    pub(super) resume_margin_bytes: u64,
}

impl Stage<'_> {
    fn share(&self, channel: &Channel) -> Shard {
        self.shares[&channel.name]
    }

    /// What a future gives, unless there is a reason to stop before.
    fn unless_stopped<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let stopped = async {
            while !self.inbox.is_stopped() {
                tokio::time::sleep(STOP_POLL).await;
            }
        };
        runtime::handle().block_on(async {
            tokio::select! {
                result = work => result,
                () = stopped => Err(Error::Cancelled),
            }
        })
    }
}

impl Inputs {
    /// Starts them: what takes long first, and FIFOs last, because reading ahead begins with them. When this returns,
    /// the FIFO of epoch 0 exists for every Pipe channel.
    pub(super) fn start(stage: &Stage<'_>, channels: &[Channel]) -> Result<Self> {
        let of = |mode| {
            channels
                .iter()
                .filter(move |channel| mode_of(channel) == mode)
        };
        for channel in of(InputMode::FastFile) {
            check_mount(channel, stage.share(channel))?;
            refuse_to_require(stage.means.engine.checksums)?;
        }
        let mut inputs = Self::default();
        check_space(stage, of(InputMode::File))?;
        for channel in of(InputMode::File) {
            inputs.files.push(download(stage, channel)?);
        }
        for channel in of(InputMode::FastFile) {
            inputs.mount(stage, channel)?;
        }
        if !stage.courses.is_empty() {
            inputs.pipes = Some(Pipes::start(stage)?);
        }
        Ok(inputs)
    }

    #[cfg(all(feature = "fuse", target_os = "linux"))]
    fn mount(&mut self, stage: &Stage<'_>, channel: &Channel) -> Result<()> {
        let directory = stage.tree.data_dir().join(&channel.name);
        self.mounts
            .push(Mounted::start(stage.means, channel, directory)?);
        Ok(())
    }

    #[cfg(not(all(feature = "fuse", target_os = "linux")))]
    fn mount(&mut self, _: &Stage<'_>, channel: &Channel) -> Result<()> {
        Err(Error::unusable(
            format!("channel {}", channel.name),
            "FastFile mode was left out of this program",
            "use mode=file or mode=pipe",
        ))
    }

    /// How they stand.
    pub(super) fn report(&self) -> Vec<ChannelReport> {
        self.watch().report()
    }

    /// What looks at them from another thread.
    pub(super) fn watch(&self) -> InputsWatch {
        InputsWatch {
            pipes: self.pipes.as_ref().map(|pipes| pipes.watch.clone()),
            #[cfg(all(feature = "fuse", target_os = "linux"))]
            mounts: self.mounts.iter().map(Mounted::counters).collect(),
            files: self.files.clone(),
        }
    }

    /// Ends them. The trainer must be dead: what it still read would look like the end of the data.
    pub(super) fn stop(self) {
        if let Some(pipes) = self.pipes {
            pipes.stop();
        }
    }
}

/// See [`Inputs::watch`].
#[derive(Debug, Clone)]
pub(super) struct InputsWatch {
    pipes: Option<Watch>,
    #[cfg(all(feature = "fuse", target_os = "linux"))]
    mounts: Vec<mount::Counters>,
    files: Vec<(String, Arc<DownloadProgress>, Duration)>,
}

impl InputsWatch {
    /// How far the trainer has come in each Pipe channel.
    pub(super) fn positions(&self) -> BTreeMap<String, Position> {
        let positions = self.pipes.iter().flat_map(Watch::positions);
        positions
            .map(|(name, position)| (name.as_str().to_owned(), position))
            .collect()
    }

    pub(super) fn report(&self) -> Vec<ChannelReport> {
        let mut reports = Vec::new();
        for (name, progress, taken) in &self.files {
            reports.push(ChannelReport::of_files(name, progress, *taken));
        }
        #[cfg(all(feature = "fuse", target_os = "linux"))]
        reports.extend(self.mounts.iter().map(mount::Counters::report));
        if let Some(pipes) = &self.pipes {
            let channels = pipes.summary().channels;
            reports.extend(channels.iter().map(ChannelReport::of_pipe));
        }
        reports
    }
}

/// What the mount cannot do. (Other contradictions were told before there was a tree.)
fn check_mount(channel: &Channel, share: Shard) -> Result<()> {
    match channel.distribution.shard(share) == Shard::WHOLE {
        true => Ok(()),
        false => Err(Error::unusable(
            format!("channel {}: S3DataDistributionType", channel.name),
            "a mount shows every host the whole prefix",
            "use mode=file or mode=pipe for ShardedByS3Key",
        )),
    }
}

/// Whether everything fits onto the disk, before the first byte is written.
fn check_space<'a>(stage: &Stage<'_>, channels: impl Iterator<Item = &'a Channel>) -> Result<()> {
    let (mut needed, mut there, mut names) = (0u64, 0u64, Vec::new());
    for channel in channels {
        let directory = stage.tree.files_directory(channel, stage.share(channel))?;
        needed = needed.saturating_add(listed_bytes(stage, channel)?);
        there = there.saturating_add(bytes_below(&directory));
        names.push(channel.name.as_str());
    }
    if names.is_empty() {
        return Ok(());
    }
    let data = stage.tree.data_dir();
    let free = free_bytes(&data)?;
    match needed.saturating_sub(there) <= free {
        true => Ok(()),
        false => Err(Error::unusable(
            format!("channel {}", names.join(", ")),
            format!(
                "File mode needs {} bytes more in {}, and {free} are free",
                needed.saturating_sub(there),
                data.display()
            ),
            "use mode=pipe or mode=fastfile, which need no disk, or a larger disk (--base-dir)",
        )),
    }
}

fn listed_bytes(stage: &Stage<'_>, channel: &Channel) -> Result<u64> {
    let selection = Selection::of_channel(channel, stage.share(channel))?;
    stage.unless_stopped(async {
        let (_, objects) = selection.open(stage.engine.client()).await?;
        let add = |sum: u64, meta: ObjectMeta| {
            std::future::ready(Ok::<_, Error>(sum.saturating_add(meta.size_bytes)))
        };
        objects.try_fold(0, add).await
    })
}

fn bytes_below(directory: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return 0;
    };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => bytes_below(&entry.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    });
    sizes.sum()
}

fn free_bytes(directory: &Path) -> Result<u64> {
    let stat = rustix::fs::statvfs(directory)
        .map_err(|error| Error::io(directory, std::io::Error::from(error)))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

fn download(
    stage: &Stage<'_>,
    channel: &Channel,
) -> Result<(String, Arc<DownloadProgress>, Duration)> {
    let directory = stage.tree.files_directory(channel, stage.share(channel))?;
    let selection = Selection::of_channel(channel, stage.share(channel))?;
    let config = DownloadConfig::default();
    let download = Download::of(stage.engine.clone(), selection, directory, config);
    let (begun, progress) = (Instant::now(), download.progress().clone());
    if let Some(tell) = &stage.means.on_download {
        tell(&channel.name, &progress);
    }
    let stop = download.stop().clone();
    stage.inbox.busy(&stop, || download.run())?;
    Ok((channel.name.clone(), progress, begun.elapsed()))
}

/// The server, its thread, and what is seen of it.
#[derive(Debug)]
struct Pipes {
    watch: Watch,
    canceller: Canceller,
    /// Gives the server back, so that nothing of it is dropped before it is joined.
    thread: Option<JoinHandle<PipeServer>>,
}

impl Pipes {
    fn start(stage: &Stage<'_>) -> Result<Self> {
        let mut config = PipeConfig::new(stage.tree.data_dir());
        // Whoever reads is ours, and is stopped; until it is dead, nothing may end.
        config.failure_grace = Duration::from_secs(24 * 3600);
        config.mode = stage.means.fifo_mode;
        config.position_margin_bytes = stage.resume_margin_bytes;
        let how = (stage.resume, stage.means.engine.checksums);
        let opened = stage.courses.iter().map(|(course, at)| async move {
            let (channel, mut at) = (&course.channel, at.clone());
            let content = Content::open(stage.engine, channel, stage.share(channel)).await?;
            if let Some(at) = &mut at {
                resume::settle(stage.engine, channel, &content, how, at).await?;
            }
            Ok::<_, Error>((content, at))
        });
        // So that a wrong URI or manifest is told now, and not in an epoch that cannot end.
        let contents = stage.unless_stopped(try_join_all(opened))?;
        let each = stage.courses.iter().zip(contents);
        let channels: Result<Vec<_>> = each
            .map(|((course, _), (content, at))| served(content, course.clone(), at))
            .collect();
        let post = stage.inbox.post();
        let told = post.clone();
        let on_failure = Arc::new(move |failure: &Failure| {
            told.send(Event::InputFailed(failure.error.clone()));
        });
        let metrics = stage.means.metrics.clone();
        let server = PipeServer::start(config, channels?, metrics, on_failure)?;
        Self::watch(server, post)
    }

    fn watch(mut server: PipeServer, post: Post) -> Result<Self> {
        let (watch, canceller) = (server.watch(), server.canceller());
        let thread = std::thread::Builder::new().name("pipes".into());
        let thread = thread.spawn(move || {
            // A panic must not drop the server, which would close what is open.
            let waited = catch_unwind(AssertUnwindSafe(|| server.wait()));
            match waited {
                Ok(Ok(_) | Err(Error::Cancelled)) => {}
                Ok(Err(error)) => post.send(Event::InputFailed(error)),
                Err(_) => post.send(Event::InputFailed(Error::Internal {
                    what: "a channel's thread".into(),
                })),
            }
            server
        });
        let thread = thread.map_err(|error| Error::io("pipes", error))?;
        Ok(Self {
            watch,
            canceller,
            thread: Some(thread),
        })
    }

    fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.canceller.cancel();
        if let Some(thread) = self.thread.take()
            // Panics were caught.
            && let Ok(server) = thread.join()
            && !server.outlast_readers(READER_PATIENCE)
        {
            tracing::error!(
                "a process that could not be killed still reads a FIFO: what it takes for an end is none"
            );
        }
    }
}

impl Drop for Pipes {
    fn drop(&mut self) {
        self.end();
    }
}

/// The first FIFO may begin inside of its epoch.
fn served(content: Content, course: Course, at: Option<ChannelCursor>) -> Result<PipeChannel> {
    let name = course.channel.name.parse()?;
    Ok(PipeChannel::new(name, move |fifo| match &at {
        Some(at) if fifo == 0 => resume::epoch(&content, &course.channel, &course, at),
        _ => content.epoch(course.first_epoch + fifo, |objects| objects),
    }))
}
