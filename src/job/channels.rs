//! The channels of a job, each started in its mode, and what became of them.
//!
//! A File channel is downloaded before the trainer starts, a FastFile channel is mounted, and the FIFOs of Pipe channels
//! are served by a [`PipeServer`] on a thread of its own. That thread keeps the server: the write ends of epochs that
//! failed stay open as long as it lives, and it lives until the trainer is dead.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures::future::try_join_all;

use super::Means;
use super::cursor::{ChannelCursor, Course};
use super::inbox::{Event, Inbox, Post};
use super::resume::{self, Resume};
use super::spec::mode_of;
use super::summary::ChannelReport;
use super::tree::Tree;
use crate::buffer::class_bytes;
use crate::download::{Download, DownloadConfig, DownloadProgress};
use crate::error::{Error, Result};
use crate::fastfile::refuse_to_require;
use crate::input::{Channel, InputMode, Listed, Selection, Shard};
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

/// How long the first bytes of Pipe channels are waited for: many times a first byte's latency.
const FIRST_BYTES: Duration = Duration::from_secs(5);

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
    /// Whether a later run may go on in the same order.
    pub(super) is_gone_on_with: bool,
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
        if of(InputMode::FastFile).next().is_some() {
            refuse_to_require(stage.means.engine.checksums)?;
        }
        let mut inputs = Self::default();
        let files: Result<Vec<_>> = of(InputMode::File)
            .map(|channel| FileChannel::find(stage, channel))
            .collect();
        let files = files?;
        check_space(stage, &files)?;
        for files in &files {
            inputs.files.push(files.download(stage)?);
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
        self.mounts.push(Mounted::start(
            stage,
            channel,
            channel.distribution.shard(stage.share(channel)),
            directory,
        )?);
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

/// The channels of a job that runs, as they stand whenever it is asked.
#[derive(Debug, Clone)]
pub struct LiveChannels(InputsWatch);

impl LiveChannels {
    /// Each channel.
    pub fn report(&self) -> Vec<ChannelReport> {
        self.0.report()
    }
}

impl InputsWatch {
    pub(super) fn live(self) -> LiveChannels {
        LiveChannels(self)
    }

    /// The trainer is asked to end: a FIFO that it closes from now on was not read as far as it wanted.
    pub(super) fn ending(&self) {
        self.pipes.iter().for_each(Watch::ending);
    }

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

/// A File channel whose objects were found.
struct FileChannel<'a> {
    channel: &'a Channel,
    directory: PathBuf,
    listed: Arc<Listed>,
}

impl<'a> FileChannel<'a> {
    fn find(stage: &Stage<'_>, channel: &'a Channel) -> Result<Self> {
        let share = stage.share(channel);
        let directory = stage.tree.files_directory(channel, share)?;
        let selection = Selection::of_channel(channel, share)?;
        let client = stage.engine.client();
        let listed = Arc::new(stage.unless_stopped(Listed::of(&selection, client))?);
        stage
            .tree
            .forget_files(&channel.name, &directory, &listed)?;
        Ok(Self {
            channel,
            directory,
            listed,
        })
    }

    fn download(&self, stage: &Stage<'_>) -> Result<(String, Arc<DownloadProgress>, Duration)> {
        let config = DownloadConfig::fitting(&stage.means.engine);
        let (engine, listed) = (stage.engine.clone(), self.listed.clone());
        let download = Download::listed(engine, listed, &self.directory, config);
        let (begun, progress) = (Instant::now(), download.progress().clone());
        if let Some(tell) = &stage.means.on_download {
            tell(&self.channel.name, &progress);
        }
        let stop = download.stop().clone();
        stage.inbox.busy(&stop, || download.run())?;
        Ok((self.channel.name.clone(), progress, begun.elapsed()))
    }
}

/// Whether everything fits onto the disk, before the first byte is written.
fn check_space(stage: &Stage<'_>, channels: &[FileChannel<'_>]) -> Result<()> {
    let names: Vec<_> = channels.iter().map(|files| &*files.channel.name).collect();
    if names.is_empty() {
        return Ok(());
    }
    let needed = |files: &FileChannel<'_>| files.listed.total_bytes();
    let needed = channels.iter().map(needed).fold(0, u64::saturating_add);
    let there = |files: &FileChannel<'_>| bytes_below(&files.directory);
    let there: u64 = channels.iter().map(there).sum();
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

/// Whether every channel can begin an epoch while it still delivers the one before: a part for each must be there at any
/// time.
fn check_memory(stage: &Stage<'_>) -> Result<()> {
    let config = &stage.means.engine;
    let streams = 2 * stage.courses.len() as u64;
    let needed = streams.saturating_mul(class_bytes(config.part_bytes));
    match needed <= config.memory_bytes {
        true => Ok(()),
        false => Err(Error::unusable(
            "--memory",
            format!(
                "{} bytes: {} Pipe channels need two parts each, {needed} bytes together",
                config.memory_bytes,
                stage.courses.len()
            ),
            "give more --memory, or a smaller --part-size",
        )),
    }
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
        // Epochs have no end: a trainer that has read its last one is not stopped for the next.
        config.tell_unread = false;
        let how = (stage.resume, stage.means.engine.checksums);
        let opened = stage.courses.iter().map(|(course, at)| async move {
            let (channel, mut at) = (&course.channel, at.clone());
            let (engine, share) = (stage.engine, stage.share(channel));
            let content = match stage.is_gone_on_with {
                true => Content::open_repeatable(engine, channel, share).await?,
                false => Content::open(engine, channel, share).await?,
            };
            // Some readers give up a minute after their open.
            content.agenda().ready().await?;
            if let Some(at) = &mut at {
                resume::settle(stage.engine, channel, &content, how, at).await?;
            }
            Ok::<_, Error>((content, at))
        });
        check_memory(stage)?;
        // So that a wrong URI or manifest is told now, and not in an epoch that cannot end.
        let contents = stage.unless_stopped(try_join_all(opened))?;
        let each = stage.courses.iter().zip(contents);
        let channels: Result<Vec<_>> = each
            .map(|((course, _), (content, at))| served(content, course.clone(), at))
            .collect();
        let post = stage.inbox.post();
        let (told, failed) = (post.clone(), Arc::new(OnceLock::new()));
        let first = failed.clone();
        let on_failure = Arc::new(move |failure: &Failure| {
            // The first one counts.
            let _ = first.set(failure.error.clone());
            told.send(Event::InputFailed(failure.error.clone()));
        });
        let metrics = stage.means.metrics.clone();
        let server = PipeServer::start(config, channels?, metrics, on_failure)?;
        await_first_bytes(stage, &server.watch(), &failed)?;
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

/// What cannot be read at all is told before there is a trainer. One that is only slow is not waited for.
fn await_first_bytes(stage: &Stage<'_>, watch: &Watch, failed: &OnceLock<Error>) -> Result<()> {
    let until = Instant::now() + FIRST_BYTES;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(error) = failed.get() {
            return Err(error.clone());
        }
        let begun = watch.summary().channels.iter().all(|channel| channel.begun);
        if begun || stage.inbox.is_stopped() || Instant::now() >= until {
            return Ok(());
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
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
