//! The file that tells what a FIFO cannot: why an epoch has no end.
//!
//! A FIFO has no channel for errors; all its reader can see is bytes and the end. So beside `train_3` a
//! `train_3.error.json` appears, whole or not at all: it is written under another name, synced and renamed.

use std::error::Error as _;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::error::{Error, Result};
use crate::object::ObjectUri;

use super::lock::DirLock;
use super::name::ChannelName;

/// Why an epoch was cut off. Serializes to the status file.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Failure {
    /// The channel.
    pub channel: ChannelName,
    /// The epoch.
    pub epoch: u64,
    /// The FIFO that will not end cleanly.
    pub fifo: PathBuf,
    /// Where this is written.
    #[serde(skip)]
    pub status_file: PathBuf,
    /// The object that failed, or else the last one that bytes were delivered of.
    pub object: Option<String>,
    /// Where in that object.
    pub offset: Option<u64>,
    /// Bytes of the epoch that the reader can trust.
    pub delivered_bytes: u64,
    /// The error in one line, with what caused it.
    pub cause: String,
    /// What to do about it.
    pub fix: Option<String>,
    /// Seconds since 1970.
    pub unix_time: u64,
    /// The error itself.
    #[serde(skip)]
    pub error: Error,
}

/// Where an epoch was cut off.
#[derive(Debug, Clone)]
pub(super) struct Place<'a> {
    pub(super) dir: &'a Path,
    pub(super) channel: &'a ChannelName,
    pub(super) epoch: u64,
    pub(super) delivered_bytes: u64,
    pub(super) last: Option<(ObjectUri, u64)>,
}

impl Failure {
    pub(super) fn new(place: Place<'_>, error: Error, now: SystemTime) -> Self {
        let last = place
            .last
            .map(|(uri, offset)| (uri.to_string(), Some(offset)));
        // Errors that know no offset (403, 404) struck the part after the last one that was delivered.
        let after_last = last.clone();
        let (object, offset) = match object_and_offset(&error) {
            Some((object, None)) => {
                let same = after_last.filter(|(uri, _)| *uri == object);
                Some((
                    object,
                    Some(same.and_then(|(_, offset)| offset).unwrap_or(0)),
                ))
            }
            known => known.or(last),
        }
        .unzip();
        Self {
            channel: place.channel.clone(),
            epoch: place.epoch,
            fifo: place.dir.join(place.channel.fifo(place.epoch)),
            status_file: place.dir.join(place.channel.status(place.epoch)),
            object,
            offset: offset.flatten(),
            delivered_bytes: place.delivered_bytes,
            cause: chain(&error),
            fix: error.fix().map(Into::into),
            unix_time: now
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
            error,
        }
    }

    /// Says beside the FIFO that would have been there why `channel` cannot be served at all. A directory that another
    /// server has is left alone.
    pub fn before_the_start(dir: &Path, channel: &ChannelName, error: Error) -> Result<Self> {
        std::fs::create_dir_all(dir).map_err(|error| Error::io(dir, error))?;
        let _lock = DirLock::take(dir)?;
        let place = Place {
            dir,
            channel,
            epoch: 0,
            delivered_bytes: 0,
            last: None,
        };
        let failure = Self::new(place, error, SystemTime::now());
        failure.write()?;
        Ok(failure)
    }

    /// Writes the status file.
    pub(super) fn write(&self) -> Result<()> {
        let name = self
            .status_file
            .file_name()
            .unwrap_or_default()
            .to_string_lossy();
        let draft = self.status_file.with_file_name(format!(".{name}.tmp"));
        let written =
            write_synced(&draft, self).and_then(|()| std::fs::rename(&draft, &self.status_file));
        written.map_err(|error| {
            let _ = std::fs::remove_file(&draft);
            Error::io(&self.status_file, error)
        })
    }
}

fn write_synced(path: &Path, failure: &Failure) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    serde_json::to_writer_pretty(&mut file, failure)?;
    file.write_all(b"\n")?;
    file.sync_all()
}

/// An error and its causes in one line.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// The object that an error is about, and where in it.
fn object_and_offset(error: &Error) -> Option<(String, Option<u64>)> {
    let (uri, offset) = match error.root() {
        Error::NotFound { uri, offset, .. }
        | Error::PermissionDenied { uri, offset, .. }
        | Error::Throttled { uri, offset, .. }
        | Error::Refused { uri, offset, .. } => (uri, *offset),
        Error::UnknownHost { uri, .. } => (uri, None),
        Error::Changed { uri, offset, .. }
        | Error::RangeNotSatisfiable { uri, offset, .. }
        | Error::Corrupt { uri, offset, .. }
        | Error::Server { uri, offset, .. }
        | Error::Network { uri, offset, .. }
        | Error::Protocol { uri, offset, .. }
        | Error::Stalled { uri, offset, .. } => (uri, Some(*offset)),
        _ => return None,
    };
    Some((uri.clone(), offset))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn failure(dir: &Path, error: Error, last: Option<(ObjectUri, u64)>) -> Failure {
        let channel = "train".parse().unwrap();
        let place = Place {
            dir,
            channel: &channel,
            epoch: 3,
            delivered_bytes: 10,
            last,
        };
        Failure::new(place, error, UNIX_EPOCH + Duration::from_secs(9))
    }

    #[test]
    fn the_file_names_object_offset_cause_and_fix() {
        let dir = tempfile::tempdir().unwrap();
        let stalled = Error::Stalled {
            uri: "s3://b/k".into(),
            offset: 7,
            idle: Duration::from_secs(5),
            proxy: None,
        };
        let error = Error::RetriesExhausted {
            attempts: 8,
            elapsed: Duration::from_secs(12),
            source: Box::new(stalled),
        };
        let failure = failure(dir.path(), error, None);
        failure.write().unwrap();
        let text = std::fs::read(dir.path().join("train_3.error.json")).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(json["object"], "s3://b/k");
        assert_eq!(json["offset"], 7);
        assert_eq!(json["delivered_bytes"], 10);
        assert_eq!(json["unix_time"], 9);
        let cause = json["cause"].as_str().unwrap();
        assert!(
            cause.contains("8 attempts") && cause.contains("offset 7"),
            "{cause}"
        );
        assert!(json["fix"].is_string());
        assert_eq!(
            std::fs::read_dir(dir.path()).unwrap().count(),
            1,
            "no draft stays behind"
        );
    }

    #[test]
    fn an_error_without_a_place_gets_the_last_good_one() {
        let last = Some(("s3://b/k".parse().unwrap(), 5));
        let failure = failure(Path::new("/d"), Error::Cancelled, last);
        assert_eq!(
            (failure.object.as_deref(), failure.offset),
            (Some("s3://b/k"), Some(5))
        );
    }
}
