//! Whose files lie in a tree: a record that outlives its run, by which the next one knows what it may go on with.
//!
//! Channels' files are known by what they were downloaded from, the model and the output by the job's name, checkpoints
//! by the prefix that they are kept at. Files that may be another job's are refused, not deleted: somebody may want them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::tree::write_whole;
use crate::error::{Error, Result};
use crate::object::ObjectUri;

/// Below `input`.
const FILE: &str = ".standpipe-files.json";

/// The record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Marks {
    /// What each File channel was downloaded from.
    pub(super) channels: BTreeMap<String, String>,
    /// The job that `model` and `output/data` are of; none when it has no name of its own, or when there were files before.
    job: Option<String>,
    /// Where the files of each checkpoint directory are kept.
    checkpoints: BTreeMap<PathBuf, String>,
}

/// The run that is about to use the tree.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owner<'a> {
    /// The job's name, if it was given one: one that was made up comes once.
    pub(super) name: Option<&'a str>,
    /// Whether the model and the output are uploaded.
    pub(super) uploads: bool,
    /// Where checkpoints are, and where they are kept.
    pub(super) checkpoint: Option<(&'a Path, &'a ObjectUri)>,
}

impl Marks {
    /// What is known of a tree; nothing of one that no run has used.
    pub(super) fn read(base: &Path) -> Self {
        let text = fs::read(base.join("input").join(FILE)).ok();
        text.and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default()
    }

    /// Keeps it.
    pub(super) fn write(&self, base: &Path) -> Result<()> {
        let text = serde_json::to_vec(self).unwrap_or_default();
        write_whole(&base.join("input").join(FILE), &text)
    }

    /// Refuses what would go up as this job's and may be another's, else notes that it is this job's.
    pub(super) fn take(&mut self, base: &Path, owner: Owner<'_>) -> Result<()> {
        self.take_artifacts(base, owner)?;
        let Some((directory, prefix)) = owner.checkpoint else {
            return Ok(());
        };
        let prefix = prefix.to_string();
        let known = self.checkpoints.get(directory);
        if let Some(known) = known.filter(|known| **known != prefix && !is_empty(directory)) {
            return Err(Error::unusable(
                directory.display().to_string(),
                format!("holds checkpoints of {known}, which would go to {prefix}"),
                "empty it, or choose another --base-dir",
            ));
        }
        self.checkpoints.insert(directory.to_owned(), prefix);
        Ok(())
    }

    fn take_artifacts(&mut self, base: &Path, owner: Owner<'_>) -> Result<()> {
        let directories = ["model", "output/data"].map(|path| base.join(path));
        let full = directories.iter().find(|directory| !is_empty(directory));
        let is_same = owner.name.is_some() && self.job.as_deref() == owner.name;
        match full {
            _ if is_same => {}
            None => self.job = owner.name.map(str::to_owned),
            Some(full) if owner.uploads => {
                return Err(Error::unusable(
                    full.display().to_string(),
                    "holds files that are not known to be this job's, and would be uploaded as its",
                    "empty it, or choose another --base-dir; runs of one --name go on in one tree",
                ));
            }
            Some(_) => self.job = None,
        }
        Ok(())
    }
}

fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).map_or(true, |mut entries| entries.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(name: Option<&str>, uploads: bool) -> Owner<'_> {
        Owner {
            name,
            uploads,
            checkpoint: None,
        }
    }

    /// J1: what may be an earlier job's model does not go up as this one's; runs of one name go on.
    #[test]
    fn a_model_of_an_earlier_job_is_not_taken_for_this_ones() {
        let dir = tempfile::tempdir().unwrap();
        let mut marks = Marks::default();
        marks.take(dir.path(), owner(Some("a"), true)).unwrap();
        fs::create_dir_all(dir.path().join("model")).unwrap();
        fs::write(dir.path().join("model/w"), "").unwrap();
        // After a spot interruption.
        marks.take(dir.path(), owner(Some("a"), true)).unwrap();
        for name in [Some("b"), None] {
            let error = marks.take(dir.path(), owner(name, true)).unwrap_err();
            assert!(error.fix().unwrap().contains("--base-dir"), "{error}");
        }
        // A run that uploads nothing may go on; what it adds is of two jobs.
        marks.take(dir.path(), owner(Some("b"), false)).unwrap();
        for name in ["a", "b"] {
            assert!(marks.take(dir.path(), owner(Some(name), true)).is_err());
        }
        fs::remove_file(dir.path().join("model/w")).unwrap();
        marks.take(dir.path(), owner(Some("b"), true)).unwrap();
    }

    #[test]
    fn runs_without_a_name_are_each_a_job_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        let mut marks = Marks::default();
        marks.take(dir.path(), owner(None, true)).unwrap();
        fs::create_dir_all(dir.path().join("output/data")).unwrap();
        fs::write(dir.path().join("output/data/log"), "").unwrap();
        assert!(marks.take(dir.path(), owner(None, true)).is_err());
    }

    #[test]
    fn checkpoints_of_another_prefix_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut marks = Marks::default();
        let mut take = |uri: &str| {
            let uri: ObjectUri = uri.parse().unwrap();
            let checkpoint = Some((dir.path(), &uri));
            let owner = Owner {
                checkpoint,
                ..owner(None, false)
            };
            marks.take(Path::new("/no/such/tree"), owner)
        };
        take("s3://b/one/").unwrap();
        fs::write(dir.path().join("step-1"), "").unwrap();
        take("s3://b/one/").unwrap();
        let error = take("s3://b/two/").unwrap_err().to_string();
        assert!(error.contains("s3://b/one/"), "{error}");
        fs::remove_file(dir.path().join("step-1")).unwrap();
        take("s3://b/two/").unwrap();
    }
}
