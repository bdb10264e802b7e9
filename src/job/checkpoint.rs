//! Checkpoints: restored before the trainer starts, kept in S3 while it runs, complete when it has ended.
//!
//! As on SageMaker, files go up as they are and under their own names, on every host into the same prefix; whoever runs
//! on several hosts names files by rank. What is added in S3 after the start is not pulled.
//!
//! A thread looks at the directory, decides by plain functions ([`changes`]) what has changed and settled, and uploads
//! one file after another in the order of their times, so that a pointer such as `latest` is not in S3 before what it
//! points to. A file that changes under the upload is given up before it is completed, and comes again when it has
//! settled. No object is ever half a file: S3 shows none before it is whole.

mod changes;
mod restore;
mod stored;
mod sync;

use std::time::Duration;

pub(super) use restore::{Restore, Restored};
pub(super) use stored::FILE as STORED_FILE;
pub(super) use sync::{Ending, Hold, Note, Syncer};

/// How checkpoints are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CheckpointConfig {
    /// How long a file must not have changed before it is uploaded while the trainer runs. Writers that rename a finished
    /// file are served as well by less; those that write slowly in place need more.
    pub settle: Duration,
    /// Whether a file that is deleted is deleted in S3. The platform does that; here it is asked for, because a trainer
    /// that empties its directory would empty the only copy.
    pub delete: bool,
    /// Whether what a trainer was writing when it was killed, or died of a signal, goes up all the same: files that were
    /// changed within `settle` before. They may be half written, and would take the place of a whole one.
    pub upload_unsettled: bool,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self {
            settle: Duration::from_secs(2),
            delete: false,
            upload_unsettled: false,
        }
    }
}

/// Paths of all files below a directory, relative to it.
pub(super) fn files_below(directory: &std::path::Path) -> crate::error::Result<Vec<String>> {
    let seen = changes::scan(directory);
    match seen.unknown.into_iter().next() {
        Some((_, error)) => Err(error),
        None => Ok(seen.files.into_keys().collect()),
    }
}

/// The prefix of a folder: `ckpt` means `ckpt/`, or `ckpt-old` would be restored, too.
pub(super) fn folder(uri: &crate::object::ObjectUri) -> crate::object::ObjectUri {
    let key = uri.key().trim_end_matches('/');
    match key.is_empty() {
        true => uri.with_key(""),
        false => uri.with_key(format!("{key}/")),
    }
}
