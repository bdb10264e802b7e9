//! The tree below `/opt/ml`: made for a job, claimed while it runs, and cleaned of what a killed run left.
//!
//! A run writes what it is about to make (FIFOs, mounts, the mark of its processes) into `.standpipe-run.json` before it
//! makes it, and holds a lock on that file. The kernel drops the lock however the process ends; so whoever finds the
//! file unlocked finds in it what is left to take away.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::documents::Documents;
use super::file_list::FileList;
use super::marks::{Marks, Owner};
use super::spec::mode_of;
use super::strays;
use crate::download::local_name;
use crate::error::{Error, Result};
use crate::input::{Channel, InputMode, Listed, Shard};
use crate::pipe::ChannelName;

/// The record of the run that owns the tree.
const RUN_FILE: &str = ".standpipe-run.json";

/// What a run has made, or is about to.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct RunRecord {
    /// The mark in the environment of all its processes.
    pub(super) run_id: String,
    /// Whose lock it is, for people.
    pub(super) pid: u32,
    /// Channels with FIFOs.
    pub(super) pipes: Vec<String>,
    /// Mount points.
    pub(super) mounts: Vec<PathBuf>,
}

/// A tree that is this run's. Dropping it gives it back, cleaned.
#[derive(Debug)]
pub(super) struct Tree {
    base: PathBuf,
    record: RunRecord,
    file: File,
    /// Something is left that the next run must know of.
    is_dirty: bool,
}

impl Tree {
    /// Takes the tree, or says who has it; what a killed run left is taken away.
    pub(super) fn claim(base: &Path, record: impl FnOnce(&Path) -> RunRecord) -> Result<Self> {
        make(base)?;
        let base = base
            .canonicalize()
            .map_err(|error| Error::io(base, error))?;
        // Absolute, as the kernel tells mounts, wherever the next run is started.
        let record = record(&base);
        let path = base.join(RUN_FILE);
        let failed = |error| Error::io(&path, error);
        let mut file = loop {
            let file = File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .map_err(failed)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => return Err(taken(&base, file)),
                Err(error) => {
                    tracing::warn!(%error, path = %path.display(), "this file system has no locks: two runs at once would not notice");
                }
            }
            // Its owner removed it between our open and our lock.
            if is_at(&file, &path) {
                break file;
            }
        };
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(failed)?;
        let mut tree = Self {
            base,
            record,
            file,
            // Until what was left is gone.
            is_dirty: true,
        };
        if let Ok(left) = serde_json::from_str::<RunRecord>(&text) {
            tracing::info!(pid = left.pid, "cleaning up after a run that was killed");
            strays::kill(&left.run_id);
            tree.sweep(&left)?;
        }
        tree.is_dirty = false;
        tree.write_record()?;
        Ok(tree)
    }

    fn write_record(&mut self) -> Result<()> {
        let text = serde_json::to_vec(&self.record).unwrap_or_default();
        let file = &mut self.file;
        let written = file
            .rewind()
            .and_then(|()| file.set_len(0))
            .and_then(|()| file.write_all(&text));
        written.map_err(|error| Error::io(self.base.join(RUN_FILE), error))
    }

    /// Whether the job may use what lies there. Nothing is made when it may not.
    pub(super) fn admit(&self, owner: Owner<'_>) -> Result<()> {
        let mut marks = Marks::read(&self.base);
        marks.take(&self.base, owner)?;
        make(&self.base.join("input"))?;
        marks.write(&self.base)
    }

    /// Makes the directories and writes the documents.
    pub(super) fn lay_out(&self, documents: &Documents) -> Result<()> {
        for directory in ["input/config", "input/data", "model", "output/data"] {
            make(&self.base.join(directory))?;
        }
        self.forget_epochs()?;
        remove_file(&self.failure_file())?;
        for (name, text) in [
            ("hyperparameters.json", &documents.hyperparameters),
            ("inputdataconfig.json", &documents.input_data),
            ("resourceconfig.json", &documents.resources),
        ] {
            let path = self.base.join("input/config").join(name);
            write_whole(&path, text.as_bytes())?;
        }
        Ok(())
    }

    /// What PipeModeDataset of an earlier job remembers: it would ask for a later epoch first.
    fn forget_epochs(&self) -> Result<()> {
        let state = self.base.join("pipe_state");
        match fs::remove_dir_all(&state) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io(state, error))
            }
            _ => Ok(()),
        }
    }

    /// Makes a File channel's directory. One that holds files of another source is refused: a trainer would read both.
    pub(super) fn files_directory(&self, channel: &Channel, share: Shard) -> Result<PathBuf> {
        let directory = self.data_dir().join(&channel.name);
        let mut marks = Marks::read(&self.base);
        let is_empty =
            fs::read_dir(&directory).map_or(true, |mut entries| entries.next().is_none());
        let source = source_of(channel, share);
        if !is_empty && marks.channels.get(&channel.name) != Some(&source) {
            return Err(Error::unusable(
                directory.display().to_string(),
                format!(
                    "holds files that were not downloaded from {} as this host's share: the trainer would read both",
                    channel.source
                ),
                "empty it, or choose another --base-dir",
            ));
        }
        make(&directory)?;
        marks.channels.insert(channel.name.clone(), source);
        marks.write(&self.base)?;
        Ok(directory)
    }

    /// Takes away what earlier runs have downloaded for the channel and is none of its data any more; what somebody else has
    /// put there (a trainer's cache) stays. Writes down what is about to be downloaded, so that the next run can tell.
    pub(super) fn forget_files(
        &self,
        channel: &str,
        directory: &Path,
        listed: &Listed,
    ) -> Result<()> {
        let list = FileList::of(&self.base, channel);
        let names: Result<BTreeSet<PathBuf>> = listed
            .iter()
            .map(|meta| local_name(listed.root(), &meta.id.uri))
            .collect();
        let (names, before) = (names?, list.read());
        // Before anything goes, or is there.
        list.write(names.iter().chain(before.difference(&names)))?;
        for gone in before.difference(&names) {
            remove_file(&directory.join(gone))?;
            remove_empty(directory, gone);
        }
        list.write(names.iter())
    }

    pub(super) fn base(&self) -> &Path {
        &self.base
    }

    pub(super) fn data_dir(&self) -> PathBuf {
        self.base.join("input/data")
    }

    pub(super) fn failure_file(&self) -> PathBuf {
        self.base.join("output/failure")
    }

    /// Takes away what `of` has made and did not take away itself.
    fn sweep(&self, of: &RunRecord) -> Result<()> {
        for directory in &of.mounts {
            unmount(directory)?;
        }
        let data = self.data_dir();
        let Ok(entries) = fs::read_dir(&data) else {
            return Ok(());
        };
        let names: Vec<ChannelName> = of
            .pipes
            .iter()
            .filter_map(|name| name.parse().ok())
            .collect();
        for entry in entries.flatten() {
            let file_name = entry.file_name();
            let Some(text) = file_name.to_str() else {
                continue;
            };
            let is_fifo = entry.file_type().is_ok_and(|kind| kind.is_fifo());
            let is_ours = names.iter().any(|name| {
                (is_fifo && name.epoch_of_fifo(text).is_some())
                    || name.epoch_of_status(text).is_some()
            });
            if is_ours {
                remove_file(&entry.path())?;
            }
        }
        Ok(())
    }

    /// The end: everything of this run's goes, but for the status files of epochs that failed.
    pub(super) fn give_back(mut self, keep_status: bool) {
        let mut record = self.record.clone();
        if keep_status {
            record.pipes.clear();
        }
        if let Err(error) = self.sweep(&record) {
            tracing::warn!(%error, "cleaning up failed: the next run here tries again");
            self.is_dirty = true;
        }
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        if self.is_dirty {
            return;
        }
        // Still locked here: the descriptor closes after this.
        let _ = fs::remove_file(self.base.join(RUN_FILE));
    }
}

/// Directories that have nothing in them any more, from the inside.
fn remove_empty(directory: &Path, of: &Path) {
    for inner in of
        .ancestors()
        .skip(1)
        .filter(|inner| !inner.as_os_str().is_empty())
    {
        if fs::remove_dir(directory.join(inner)).is_err() {
            return;
        }
    }
}

/// What the files of a channel depend on.
fn source_of(channel: &Channel, share: Shard) -> String {
    format!(
        "{} {:?} {:?} {:?}",
        channel.source,
        channel.data_type,
        channel.distribution.shard(share),
        channel.manifest_names
    )
}

fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(open), Ok(there)) => (open.dev(), open.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

fn taken(base: &Path, mut file: File) -> Error {
    let mut text = String::new();
    let _ = file.read_to_string(&mut text);
    let record: RunRecord = serde_json::from_str(&text).unwrap_or_default();
    Error::unusable(
        base.display().to_string(),
        format!("another `standpipe run` (process {}) uses it", record.pid),
        "wait for its end, or give each run a --base-dir of its own",
    )
}

fn make(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).map_err(|error| {
        // The first is what /proc says.
        use std::io::ErrorKind::{NotFound, PermissionDenied, ReadOnlyFilesystem};
        match error.kind() {
            PermissionDenied | ReadOnlyFilesystem | NotFound => Error::unusable(
                directory.display().to_string(),
                format!("cannot be made: {error}"),
                "choose a place that can be written to with --base-dir or SAGEMAKER_BASE_DIR",
            ),
            _ => Error::io(directory, error),
        }
    })
}

fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path, error)),
        _ => Ok(()),
    }
}

/// The file is there whole or not at all.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let draft = path.with_file_name(format!(".{name}.standpipe-tmp"));
    let written = fs::write(&draft, bytes).and_then(|()| fs::rename(&draft, path));
    written.map_err(|error| {
        let _ = fs::remove_file(&draft);
        Error::io(path, error)
    })
}

#[cfg(all(feature = "fuse", target_os = "linux"))]
fn unmount(directory: &Path) -> Result<()> {
    use crate::fastfile::fuse;
    if fuse::is_mounted(directory) {
        fuse::unmount(directory, true)?;
    }
    // What was made for the mount; one that holds files is not ours.
    let _ = fs::remove_dir(directory);
    Ok(())
}

#[cfg(not(all(feature = "fuse", target_os = "linux")))]
fn unmount(_: &Path) -> Result<()> {
    Ok(())
}

/// The record of a run that is about to begin.
pub(super) fn record(run_id: String, base: &Path, channels: &[Channel]) -> RunRecord {
    let of = |mode: InputMode| {
        channels
            .iter()
            .filter(move |channel| mode_of(channel) == mode)
    };
    let data = base.join("input/data");
    RunRecord {
        run_id,
        pid: std::process::id(),
        pipes: of(InputMode::Pipe)
            .map(|channel| channel.name.clone())
            .collect(),
        mounts: of(InputMode::FastFile)
            .map(|channel| data.join(&channel.name))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::Distribution;

    fn claimed(base: &Path) -> Result<Tree> {
        let channels = ["train=s3://b/,mode=pipe".parse().unwrap()];
        Tree::claim(base, |base| record("id".into(), base, &channels))
    }

    fn documents() -> Documents {
        let text = |text: &str| text.to_owned();
        Documents {
            hyperparameters: text("{}"),
            input_data: text("{\"a\":1}"),
            resources: text("{}"),
        }
    }

    /// J1: the tree of the platform, with its three documents, and nothing of an earlier job in it.
    #[test]
    fn the_tree_is_the_platforms_and_forgets_earlier_jobs() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        fs::create_dir_all(at("pipe_state")).unwrap();
        fs::write(at("pipe_state/.train-pipe_mode-state"), "4").unwrap();
        fs::create_dir_all(at("output")).unwrap();
        fs::write(at("output/failure"), "of another job").unwrap();
        let tree = claimed(dir.path()).unwrap();
        tree.lay_out(&documents()).unwrap();
        for directory in ["input/config", "input/data", "model", "output/data"] {
            assert!(at(directory).is_dir(), "{directory}");
        }
        let text = fs::read_to_string(at("input/config/inputdataconfig.json")).unwrap();
        assert_eq!(text, "{\"a\":1}");
        assert!(!at("pipe_state").exists() && !at("output/failure").exists());
    }

    #[test]
    fn one_run_at_a_time_and_the_next_one_cleans_up_after_one_that_was_killed() {
        let dir = tempfile::tempdir().unwrap();
        let tree = claimed(dir.path()).unwrap();
        let error = claimed(dir.path()).unwrap_err().to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        tree.lay_out(&documents()).unwrap();
        let data = tree.data_dir();
        let fifo = |name: &str| {
            let mode = rustix::fs::Mode::from(0o600);
            rustix::fs::mknodat(
                rustix::fs::CWD,
                data.join(name),
                rustix::fs::FileType::Fifo,
                mode,
                0,
            )
            .unwrap();
        };
        fifo("train_3");
        fifo("other_3");
        fs::write(data.join("train_4"), "a file of somebody").unwrap();
        fs::write(data.join("train_3.error.json"), "{}").unwrap();
        // As SIGKILL would: the lock goes, the file stays.
        let record = fs::read(dir.path().join(RUN_FILE)).unwrap();
        drop(tree);
        fs::write(dir.path().join(RUN_FILE), record).unwrap();
        let tree = claimed(dir.path()).unwrap();
        let mut left: Vec<_> = fs::read_dir(&data)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["other_3", "train_4"]);
        drop(tree);
        assert!(!dir.path().join(RUN_FILE).exists());
    }

    #[test]
    fn what_a_cleanup_could_not_take_away_is_not_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let tree = claimed(dir.path()).unwrap();
        tree.lay_out(&documents()).unwrap();
        let record = fs::read(dir.path().join(RUN_FILE)).unwrap();
        // No file, so it cannot be removed as one.
        let stuck = tree.data_dir().join("train_4.error.json");
        drop(tree);
        fs::create_dir(&stuck).unwrap();
        fs::write(dir.path().join(RUN_FILE), &record).unwrap();
        for _ in 0..2 {
            assert!(claimed(dir.path()).is_err());
            assert_eq!(fs::read(dir.path().join(RUN_FILE)).unwrap(), record);
        }
        fs::remove_dir(&stuck).unwrap();
        drop(claimed(dir.path()).unwrap());
        assert!(!dir.path().join(RUN_FILE).exists());
    }

    #[test]
    fn files_of_another_source_are_not_mixed_with_a_channels_own() {
        let dir = tempfile::tempdir().unwrap();
        let tree = claimed(dir.path()).unwrap();
        tree.lay_out(&documents()).unwrap();
        let channel = |uri: &str| Channel::new("train", uri.parse().unwrap()).unwrap();
        let files = |channel: &Channel| tree.files_directory(channel, Shard::WHOLE);
        let directory = files(&channel("s3://b/a/")).unwrap();
        fs::write(directory.join("x"), "").unwrap();
        files(&channel("s3://b/a/")).unwrap();
        let error = files(&channel("s3://b/b/")).unwrap_err();
        assert!(error.to_string().contains("s3://b/b/"), "{error}");
        // Another host's share, and other names, are other files.
        let share = Shard::new(1, 2).unwrap();
        tree.files_directory(&channel("s3://b/a/"), share).unwrap();
        let mut sharded = channel("s3://b/a/");
        sharded.distribution = Distribution::ShardedByS3Key;
        assert!(tree.files_directory(&sharded, share).is_err());
        fs::remove_file(directory.join("x")).unwrap();
        files(&channel("s3://b/b/")).unwrap();
    }
}
