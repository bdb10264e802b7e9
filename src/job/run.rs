//! A job from its first directory to its last: the order in which everything is made, and taken away again.
//!
//! ```text
//! claim the tree ─> documents ─> checkpoints ─> channels ─> trainer ─> its end or a reason to stop
//!                                                                        │
//!                 give the tree back <─ upload <─ last sync <─ channels <┘ (every descriptor after the trainer's death)
//! ```
//!
//! Everything is decided on the calling thread, which takes [`Event`]s out of one queue. What was made is taken away by
//! dropping it, in the reverse order, also when a step fails.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::artifacts::{self, MODEL, OUTPUT, Whose};
use super::channels::{Inputs, InputsWatch, Stage};
use super::checkpoint::{self, Ending, Hold, Note, Restore, Syncer};
use super::cursor::{self, ChannelCursor, Course, Cursor};
use super::cutoff::Cutoff;
use super::documents::Documents;
use super::environment::{self, Facts};
use super::inbox::{Event, Inbox, Post};
use super::marks::Owner;
use super::notice;
use super::prometheus::Exporter;
use super::resume::Resume;
use super::share;
use super::spec::{CheckpointSpec, PLATFORM_BASE, mode_of};
use super::stop::{Act, Cause, Stopping};
use super::summary::{self, JobSummary};
use super::trainer::{self, Trainer, What};
use super::tree::{self, Tree};
use super::{Job, JobEvent};
use crate::buffer::class_bytes;
use crate::client::S3Client;
use crate::download::{DownloadProgress, Stop};
use crate::error::{Error, Result};
use crate::input::{Channel, InputMode, Shard};
use crate::object::ObjectUri;
use crate::prefetch::Prefetcher;

/// How long a process may be busy with its own end after SIGKILL: a core dump, a device that hangs.
const AFTER_KILL: Duration = Duration::from_secs(10);

/// How long ended orphans of the trainer may stay in the kernel's table.
const REAP_PAUSE: Duration = Duration::from_secs(10);

impl Job {
    /// Runs it; blocks until the trainer and everything around it has ended. The calling thread must not end before.
    ///
    /// Meanwhile this process is the subreaper of its descendants, and children in other process groups that it gets are
    /// taken for the trainer's: start none yourself.
    ///
    /// # Errors
    /// What keeps the trainer from being started. What happens later is told in the summary.
    pub fn run(mut self) -> Result<JobSummary> {
        self.config.spec.validate()?;
        let path = self.config.spec.environment.get("PATH").map(OsString::from);
        let path = path
            .or_else(|| std::env::var_os("PATH"))
            .unwrap_or_default();
        trainer::check(&self.config.command, &path, &self.config.base_dir)?;
        let shares = self.take_shares()?;
        self.share_memory();
        let inbox = Inbox::new();
        inbox.post().signals()?;
        notice::watch(
            self.config.spot_notices,
            self.config.sync_grace,
            inbox.post(),
        )?;
        let address = self.config.metrics_address;
        let exporter = address
            .map(|address| Exporter::start(address, self.means.metrics.clone()))
            .transpose()?;
        let run_id = self.run_id();
        let tree = Tree::claim(&self.config.base_dir, |base| {
            tree::record(run_id.clone(), base, &self.config.spec.channels)
        })?;
        let mut summary = JobSummary::new(&self.config.name);
        let around = Around {
            tree: &tree,
            inbox: &inbox,
            run_id: &run_id,
            shares: &shares,
            exporter: exporter.as_ref(),
        };
        let result = self.in_tree(&around, &mut summary);
        // A status file tells more than the error, but only whoever looks for it.
        let keep_status = matches!(summary.cause, Some(Cause::Input));
        tree.give_back(keep_status);
        match result {
            Ok(()) => {}
            // Asked to end before there was a trainer.
            Err(Error::Cancelled) if inbox.is_stopped() => {
                summary.cause = summary.cause.or_else(|| first_cause(&inbox));
            }
            Err(error) => return Err(error),
        }
        summary.exit_code = exit_code(&summary);
        Ok(summary)
    }

    /// Every mount reads with memory of its own, beside the engine of all other channels: together no more than there is.
    fn share_memory(&mut self) {
        let channels = &self.config.spec.channels;
        let is_mount = |channel: &&Channel| mode_of(channel) == InputMode::FastFile;
        let mounts = channels.iter().filter(is_mount).count();
        let engines = usize::from(channels.len() > mounts || self.config.spec.checkpoint.is_some());
        let engine = &mut self.means.engine;
        let share = engine.memory_bytes / (mounts + engines).max(1) as u64;
        engine.memory_bytes = share
            .max(2 * class_bytes(engine.part_bytes))
            .min(engine.memory_bytes);
    }

    /// Keeps the channels that are for this host, and says what its shares of them are.
    fn take_shares(&mut self) -> Result<BTreeMap<String, Shard>> {
        let (spec, cluster) = (&self.config.spec, &self.config.cluster);
        let mut shares = BTreeMap::new();
        for channel in &spec.channels {
            if let Some(share) = share::share(spec, cluster, channel)? {
                shares.insert(channel.name.clone(), share);
            }
        }
        let channels = &mut self.config.spec.channels;
        channels.retain(|channel| shares.contains_key(&channel.name));
        Ok(shares)
    }

    fn in_tree(&self, around: &Around<'_>, summary: &mut JobSummary) -> Result<()> {
        let (config, tree, inbox) = (&self.config, around.tree, around.inbox);
        let interface = config.network_interface.as_str();
        let documents = Documents::new(
            &config.spec,
            &config.cluster,
            interface,
            config.fast_file_as,
        )?;
        let checkpoint = config.spec.checkpoint.as_ref().map(|spec| {
            let directory = checkpoint_dir(spec, tree.base());
            (directory, checkpoint::folder(&spec.uri))
        });
        tree.admit(Owner {
            name: config.spec.name.as_deref(),
            uploads: config.spec.output.is_some(),
            checkpoint: checkpoint
                .as_ref()
                .map(|(directory, prefix)| (directory.as_path(), prefix)),
        })?;
        tree.lay_out(&documents)?;
        let variables = self.variables(tree, &documents)?;
        let engine = Prefetcher::new(
            self.means.client.clone(),
            self.means.engine.clone(),
            self.means.metrics.clone(),
        )?;
        let restored = self.restored(&engine, around)?;
        let courses = self.courses(restored.as_ref())?;
        let stage = Stage {
            means: &self.means,
            engine: &engine,
            tree,
            inbox,
            shares: around.shares,
            courses: &courses,
            resume: config.resume,
            resume_margin_bytes: config.resume_margin_bytes,
            is_gone_on_with: config.spec.checkpoint.is_some(),
        };
        let inputs = Inputs::start(&stage, &config.spec.channels)?;
        if inbox.is_stopped() {
            return Err(Error::Cancelled);
        }
        if let Some(exporter) = around.exporter {
            exporter.show(inputs.watch());
        }
        let (cutoff, hold) = (Cutoff::default(), Hold::default());
        let limits = || (cutoff.clone(), hold.clone());
        let sync = restored
            .map(|restored| self.keep(restored, inputs.watch(), &courses, limits()))
            .transpose()?;
        let trained = self.train(around, &variables, (inputs.watch(), &hold), summary);
        summary.channels = inputs.report();
        // Not before the trainer is dead: `train` has seen to that, also when it failed.
        inputs.stop();
        let (stopping, died) = trained?;
        let failure = std::fs::read(tree.failure_file()).unwrap_or_default();
        summary.failure_reason = summary::failure_reason(&failure);
        let left = Left { sync, cutoff, died };
        self.save(left, stopping, around, summary);
        Ok(())
    }

    /// Saves what the trainer has left, within the time that there is. Who asks for the end now wants it within a grace;
    /// who asks twice, at once.
    fn save(
        &self,
        left: Left,
        mut stopping: Stopping,
        around: &Around<'_>,
        summary: &mut JobSummary,
    ) {
        let (inbox, reserve) = (around.inbox, self.config.sync_grace);
        let cutoff = left.cutoff.clone();
        let limit = |stopping: &Stopping| {
            if let Some(until) = stopping.save_until(Instant::now(), reserve) {
                cutoff.set(until);
            }
        };
        limit(&stopping);
        let (tree, saved) = (around.tree, Saved(inbox.post()));
        std::thread::scope(|scope| {
            scope.spawn(move || {
                // Told also when it panics.
                let _saved = saved;
                self.finish(left, tree, summary);
            });
            loop {
                match inbox.next(None) {
                    Some(Event::Stop(cause, within)) => {
                        if stopping.cause().is_none() {
                            self.tell(JobEvent::Saving { cause });
                        }
                        stopping.ask(cause, Instant::now(), within);
                        if stopping.is_hurried() && matches!(cause, Cause::Signal { .. }) {
                            cutoff.set(Instant::now());
                        }
                        limit(&stopping);
                    }
                    Some(Event::Saved) | None => break,
                    Some(_) => {}
                }
            }
        });
    }

    /// Fetches the checkpoints.
    fn restored(&self, engine: &Prefetcher, around: &Around<'_>) -> Result<Option<Kept>> {
        let Some(spec) = &self.config.spec.checkpoint else {
            return Ok(None);
        };
        let directory = checkpoint_dir(spec, around.tree.base());
        let prefix = checkpoint::folder(&spec.uri);
        let record = around.tree.base().join(checkpoint::STORED_FILE);
        let stop = Arc::new(Stop::default());
        let restore = Restore {
            engine,
            config: &self.means.engine,
            prefix: &prefix,
            directory: &directory,
            record: &record,
            keeps_unsettled: self.config.checkpoint.upload_unsettled,
        };
        let begun = |progress: &Arc<DownloadProgress>| {
            if let Some(tell) = &self.means.on_download {
                tell("checkpoints", progress);
            }
        };
        let restored = around.inbox.busy(&stop, || restore.run(&stop, &begun))?;
        Ok(Some(Kept {
            prefix,
            directory,
            restored,
        }))
    }

    /// Where each Pipe channel begins: at its beginning, or where the checkpoint was made.
    fn courses(&self, kept: Option<&Kept>) -> Result<Vec<(Course, Option<ChannelCursor>)>> {
        let cursor = match kept {
            Some(kept) if self.config.resume != Resume::Off => {
                Cursor::read(&kept.directory, self.host())?
            }
            _ => None,
        };
        let channels = self.config.spec.channels.iter();
        channels
            .filter(|channel| mode_of(channel) == InputMode::Pipe)
            .map(|channel| cursor::course(channel, cursor.as_ref(), self.config.resume))
            .collect()
    }

    /// Begins to keep the checkpoints, and with them where the trainer is in its input.
    fn keep(
        &self,
        kept: Kept,
        watch: InputsWatch,
        courses: &[(Course, Option<ChannelCursor>)],
        limits: (Cutoff, Hold),
    ) -> Result<Syncer> {
        let courses: Vec<_> = courses.iter().map(|(course, _)| course.clone()).collect();
        let host = self.host();
        let note: Option<Note> = match courses.is_empty() {
            true => None,
            false => Some(Box::new(move |now: SystemTime| {
                Cursor::new(host, &courses, &watch.positions(), now)
            })),
        };
        let client = self.writer("CheckpointConfig.S3Uri")?.clone();
        let config = self.config.checkpoint.clone();
        Syncer::start(
            client,
            (kept.prefix, kept.directory),
            config,
            kept.restored,
            note,
            limits,
        )
    }

    fn host(&self) -> (usize, usize) {
        let cluster = &self.config.cluster;
        (cluster.rank, cluster.hosts.len())
    }

    /// What is left to be written when the trainer has ended. A failure is the job's only if nothing else is.
    fn finish(&self, left: Left, tree: &Tree, summary: &mut JobSummary) {
        let mut results = Vec::new();
        let ending = Ending { died: left.died };
        if let Some((report, result)) = left.sync.map(|sync| sync.finish(ending)) {
            if left.died.is_some() && !report.unsettled_files.is_empty() {
                self.tell(JobEvent::LeftOut {
                    files: report.unsettled_files.clone(),
                });
            }
            summary.checkpoint = Some(report);
            results.push(result);
        }
        if let Some(output) = &self.config.spec.output {
            // As the platform: a model of a job that completed or was stopped, and what is in output/data in any case.
            let has_model = match summary.cause {
                None => summary.trainer_exit_code == Some(0),
                Some(cause) => cause != Cause::Input,
            };
            let all = [MODEL, OUTPUT];
            let which = &all[usize::from(!has_model)..];
            let uploaded = self
                .writer("OutputDataConfig.S3OutputPath")
                .and_then(|client| {
                    let whose = Whose {
                        job_name: &self.config.name,
                        cluster: &self.config.cluster,
                    };
                    artifacts::upload_all(client, output, whose, tree.base(), which, &left.cutoff)
                });
            match uploaded {
                Ok(uploaded) => summary.uploaded = uploaded,
                Err(error) => results.push(Err(error)),
            }
        }
        for error in results.into_iter().filter_map(Result::err) {
            self.tell(JobEvent::UploadFailed {
                error: error.clone(),
            });
            summary.error.get_or_insert(error);
        }
    }

    fn writer(&self, field: &str) -> Result<&S3Client> {
        self.means
            .s3
            .as_ref()
            .ok_or_else(|| Error::config(field, "there is no client that could write to S3"))
    }

    /// Runs the trainer until it is dead.
    fn train(
        &self,
        around: &Around<'_>,
        variables: &BTreeMap<String, String>,
        (inputs, hold): (InputsWatch, &Hold),
        summary: &mut JobSummary,
    ) -> Result<(Stopping, Option<SystemTime>)> {
        self.tell(JobEvent::Training {
            channels: inputs.clone().live(),
        });
        let inbox = around.inbox;
        let post = inbox.post();
        let begun = Instant::now();
        let what = What {
            command: &self.config.command,
            variables,
            run_id: around.run_id,
            output: &self.means.output,
        };
        let mut trainer = Trainer::start(&what, move |status| post.send(Event::Ended(status)))?;
        hold.watch(trainer.pid());
        let mut way = Way {
            stopping: Stopping::new(self.config.stop_grace),
            max_runtime: self
                .config
                .spec
                .max_runtime
                .and_then(|time| begun.checked_add(time)),
            killed_at: None,
            error: None,
            inputs,
            hold,
        };
        let status = loop {
            let look = Instant::now() + REAP_PAUSE;
            let event = inbox.next(Some(way.wake().map_or(look, |wake| wake.min(look))));
            trainer.reap();
            if let Some(status) = way.on(event, &trainer, &|event| self.tell(event)) {
                break status;
            }
        };
        // Before all that is waited for from now on: the later it is, the more of what was half written seems settled.
        let ended_at = hold.set();
        let strays = trainer.ended();
        if strays > 0 {
            self.tell(JobEvent::Strays { count: strays });
        }
        summary.trained_seconds = begun.elapsed().as_secs_f64();
        summary.trainer_exit_code = status.map(trainer::code_of);
        summary.cause = way.stopping.cause();
        summary.killed = way.stopping.was_killed();
        summary.error = way.error;
        let was_cut_off = status.is_none_or(|status| trainer.was_cut_off(status, strays));
        let died = summary.killed || was_cut_off;
        Ok((way.stopping, died.then_some(ended_at)))
    }

    fn variables(&self, tree: &Tree, documents: &Documents) -> Result<BTreeMap<String, String>> {
        let config = &self.config;
        let base = tree.base().display().to_string();
        let facts = Facts {
            job_name: &config.name,
            region: &config.region,
            base: &base,
            network_interface: &config.network_interface,
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            gpus: if config.sm_env { gpus() } else { 0 },
        };
        let mut variables = BTreeMap::new();
        if base != PLATFORM_BASE {
            // The toolkit's own variable for a root that is elsewhere.
            variables.insert("SAGEMAKER_BASE_DIR".to_owned(), base.clone());
        }
        if config.sm_env {
            let set = environment::toolkit(&config.spec, &config.cluster, documents, &facts)?;
            variables.extend(set);
        }
        variables.extend(environment::platform(&config.spec, &facts));
        Ok(variables)
    }

    fn run_id(&self) -> String {
        let random = fastrand::u64(..);
        format!("{}-{}-{random:016x}", self.config.name, std::process::id())
    }

    fn tell(&self, event: JobEvent) {
        if let Some(tell) = &self.means.on_event {
            // Whoever cannot be told is no reason to kill a trainer.
            let told = catch_unwind(AssertUnwindSafe(|| tell(&event)));
            if told.is_err() {
                tracing::error!(?event, "could not be told");
            }
        }
    }
}

/// What a run is in the middle of.
struct Around<'a> {
    tree: &'a Tree,
    inbox: &'a Inbox,
    run_id: &'a str,
    shares: &'a BTreeMap<String, Shard>,
    exporter: Option<&'a Exporter>,
}

/// Tells the deciding thread when it is dropped.
struct Saved(Post);

impl Drop for Saved {
    fn drop(&mut self) {
        self.0.send(Event::Saved);
    }
}

/// What is to be done when the trainer has ended.
struct Left {
    sync: Option<Syncer>,
    cutoff: Cutoff,
    /// When it was killed, or died of a signal.
    died: Option<SystemTime>,
}

/// Checkpoints that were fetched.
struct Kept {
    prefix: ObjectUri,
    directory: PathBuf,
    restored: checkpoint::Restored,
}

/// Paths of the platform are below the base directory here.
fn checkpoint_dir(spec: &CheckpointSpec, base: &Path) -> PathBuf {
    match &spec.local_path {
        None => base.join("checkpoints"),
        Some(path) => match path.strip_prefix(PLATFORM_BASE) {
            Ok(below) => base.join(below),
            Err(_) => path.clone(),
        },
    }
}

/// The trainer's way to its end.
struct Way<'a> {
    stopping: Stopping,
    max_runtime: Option<Instant>,
    killed_at: Option<Instant>,
    error: Option<Error>,
    inputs: InputsWatch,
    hold: &'a Hold,
}

impl Way<'_> {
    /// When to look again although nothing happens.
    fn wake(&self) -> Option<Instant> {
        let after_kill = self.killed_at.map(|at| at + AFTER_KILL);
        [self.stopping.wake(), self.max_runtime, after_kill]
            .into_iter()
            .flatten()
            .min()
    }

    /// Heeds an event, or the time. The trainer's status when it has ended; none inside when it cannot be awaited. What is
    /// to be done is done before it is told.
    fn on(
        &mut self,
        event: Option<Event>,
        trainer: &Trainer,
        tell: &dyn Fn(JobEvent),
    ) -> Option<Option<ExitStatus>> {
        let now = Instant::now();
        let (mut acts, mut told) = (Vec::new(), Vec::new());
        match event {
            Some(Event::Ended(status)) => return Some(Some(status)),
            // Not before it has ended.
            Some(Event::Saved) => {}
            Some(Event::Forward(number)) => trainer.signal(number),
            Some(Event::Stop(cause, within)) => acts.push(self.ask(cause, now, within, &mut told)),
            Some(Event::InputFailed(error)) => {
                told.push(JobEvent::InputFailed {
                    error: error.clone(),
                });
                self.error.get_or_insert(error);
                acts.push(self.ask(Cause::Input, now, None, &mut told));
            }
            None => {}
        }
        if self.max_runtime.is_some_and(|at| now >= at) {
            self.max_runtime = None;
            acts.push(self.ask(Cause::MaxRuntime, now, None, &mut told));
        }
        acts.push(self.stopping.tick(now));
        for act in acts {
            match act {
                Act::Send(number) => {
                    self.inputs.ending();
                    trainer.signal(number);
                }
                Act::Kill => {
                    // What it is writing now is half written, however long it takes to die.
                    self.hold.set();
                    trainer.kill();
                    self.killed_at = Some(now);
                    told.push(JobEvent::Killing);
                }
                Act::Nothing => {}
            }
        }
        told.into_iter().for_each(tell);
        let is_stuck = self.killed_at.is_some_and(|at| now >= at + AFTER_KILL);
        is_stuck.then_some(None)
    }

    fn ask(
        &mut self,
        cause: Cause,
        now: Instant,
        within: Option<Duration>,
        told: &mut Vec<JobEvent>,
    ) -> Act {
        if self.stopping.cause().is_none() {
            told.push(JobEvent::Stopping { cause });
        }
        self.stopping.ask(cause, now, within)
    }
}

fn first_cause(inbox: &Inbox) -> Option<Cause> {
    let now = Some(Instant::now());
    std::iter::from_fn(|| inbox.next(now)).find_map(|event| match event {
        Event::Stop(cause, _) => Some(cause),
        _ => None,
    })
}

/// One code for the whole: the reason why it was stopped, or the trainer's own.
fn exit_code(summary: &JobSummary) -> u8 {
    let stopped = summary.cause.and_then(Cause::exit_code);
    stopped.or(summary.trainer_exit_code).unwrap_or(1)
}

/// As the toolkit counts them: the lines of `nvidia-smi --list-gpus`, 0 where there is none.
fn gpus() -> usize {
    let mut command = std::process::Command::new("nvidia-smi");
    command
        .arg("--list-gpus")
        .stdin(std::process::Stdio::null())
        .stderr(std::process::Stdio::null());
    let output = command
        .output()
        .ok()
        .filter(|output| output.status.success());
    output.map_or(0, |output| {
        let lines = output.stdout.split(|byte| *byte == b'\n');
        lines.filter(|line| line.starts_with(b"GPU ")).count()
    })
}
