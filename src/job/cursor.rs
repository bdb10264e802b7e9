//! Where in the data a checkpoint was made, so that a later run can go on from there.
//!
//! The trainer's own state does not say how far it has read, and its FIFOs cannot be rewound. So the place of every Pipe
//! channel is noted at every look at the checkpoint directory (twice in a settle time, every 5 s at least, and not while an
//! upload takes longer), and when files of the checkpoint directory go up, the note that was true *when
//! they were written* goes up behind them. A later run that restores these files begins its epoch there: its FIFOs are
//! numbered from `_0`, their content goes on.
//!
//! What the place means: the trainer had taken every byte before it out of the pipe, and what it may have held in buffers of
//! its own (`JobConfig::resume_margin_bytes`) stands behind it. Whoever holds more (a framework that prefetches batches), or
//! cannot say, goes on by epoch. Between these the user chooses, because nobody else can know.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::resume::{self, Resume};
use crate::error::{Error, Result};
use crate::input::Channel;
use crate::pipe::Position;

/// Below the checkpoint directory; one file per host.
const FOLDER: &str = ".standpipe";

/// Notes that are kept: at one a second (the default settle time), twenty minutes. A file that is uploaded later than that
/// brings no cursor.
const MAX_NOTES: usize = 1200;

/// Where a channel was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ChannelCursor {
    /// What the channel read.
    pub(super) source: String,
    pub(super) seed: Option<i64>,
    /// The epoch, counted over all runs.
    pub(super) epoch: u64,
    /// How many objects of this host's share were left behind, or attributes of an augmented manifest.
    pub(super) objects_before: u64,
    /// The object that was read.
    pub(super) object: Option<String>,
    pub(super) etag: Option<String>,
    /// How many of its bytes were left behind; 0 where they are not delivered as they are.
    #[serde(default)]
    pub(super) offset: u64,
}

/// The file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Cursor {
    version: u32,
    /// Shares depend on these.
    rank: usize,
    hosts: usize,
    /// When it was true, seconds since 1970.
    unix_time: u64,
    pub(super) channels: BTreeMap<String, ChannelCursor>,
}

/// Of a host's, below the checkpoint directory.
fn path(rank: usize) -> String {
    format!("{FOLDER}/cursor-{rank}.json")
}

/// Whether a path below the checkpoint directory is a cursor's.
pub(super) fn is_ours(path: &str) -> bool {
    path.starts_with(&format!("{FOLDER}/"))
}

/// What a channel's positions are told relative to.
#[derive(Debug, Clone)]
pub(super) struct Course {
    pub(super) channel: Channel,
    /// The epoch that FIFO `_0` holds, and how many of its objects were left out.
    pub(super) first_epoch: u64,
    /// Shared, because one more is left out when the place turns out to be an object's end.
    pub(super) skipped_objects: Arc<AtomicU64>,
    /// Where the run went on. As long as nothing was read it is there.
    begun_at: Option<ChannelCursor>,
}

impl Course {
    fn cursor(&self, at: &Position) -> ChannelCursor {
        if let Some(begun_at) = &self.begun_at
            && at.epoch == 0
            && at.object.is_none()
        {
            return begun_at.clone();
        }
        let skipped = match at.epoch {
            0 => self.skipped_objects.load(Ordering::Relaxed),
            _ => 0,
        };
        ChannelCursor {
            source: self.channel.source.to_string(),
            seed: self.channel.shuffle.map(|shuffle| shuffle.seed),
            epoch: self.first_epoch + at.epoch,
            objects_before: skipped + at.objects_before,
            object: at.object.as_ref().map(|object| object.uri.to_string()),
            etag: at
                .object
                .as_ref()
                .and_then(|object| object.etag.as_deref().map(str::to_owned)),
            offset: at.offset,
        }
    }
}

impl Cursor {
    /// Where all channels are.
    pub(super) fn new(
        (rank, hosts): (usize, usize),
        courses: &[Course],
        positions: &BTreeMap<String, Position>,
        now: SystemTime,
    ) -> Self {
        let at = courses.iter().filter_map(|course| {
            let position = positions.get(&course.channel.name)?;
            Some((course.channel.name.clone(), course.cursor(position)))
        });
        Self {
            version: 1,
            rank,
            hosts,
            unix_time: now
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
            channels: at.collect(),
        }
    }

    /// Its path below the checkpoint directory.
    pub(super) fn path(&self) -> String {
        path(self.rank)
    }

    /// Reads what an earlier run has left; none if there was none.
    pub(super) fn read(directory: &Path, (rank, hosts): (usize, usize)) -> Result<Option<Self>> {
        let path = directory.join(path(rank));
        let text = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            text => text.map_err(|error| Error::io(&path, error))?,
        };
        let unusable = |reason: String| {
            Error::unusable(
                path.display().to_string(),
                reason,
                "run with --resume off, which begins with the first epoch",
            )
        };
        let cursor: Self = serde_json::from_slice(&text)
            .map_err(|error| unusable(format!("not a cursor: {error}")))?;
        if (cursor.version, cursor.hosts) != (1, hosts) {
            return Err(unusable(format!(
                "is of {} hosts, and now there are {hosts}: their shares differ",
                cursor.hosts
            )));
        }
        Ok(Some(cursor))
    }
}

/// Where a channel goes on, at the granularity that is wanted.
pub(super) fn course(
    channel: &Channel,
    cursor: Option<&Cursor>,
    resume: Resume,
) -> Result<(Course, Option<ChannelCursor>)> {
    let from_the_start = Course {
        channel: channel.clone(),
        first_epoch: 0,
        skipped_objects: Arc::default(),
        begun_at: None,
    };
    let at = cursor.and_then(|cursor| cursor.channels.get(&channel.name));
    let Some(at) = at.filter(|_| resume != Resume::Off) else {
        return Ok((from_the_start, None));
    };
    let seed = channel.shuffle.map(|shuffle| shuffle.seed);
    if at.source != channel.source.to_string() || at.seed != seed {
        return Err(Error::unusable(
            format!("channel {}", channel.name),
            format!(
                "the cursor is of {} with seed {:?}: what was read is another order",
                at.source, at.seed
            ),
            "give the channel the same URI and seed, or run with --resume off",
        ));
    }
    let mut course = from_the_start;
    course.first_epoch = at.epoch;
    if resume == Resume::Epoch {
        return Ok((course, None));
    }
    // The attributes of a line belong together.
    let lines = resume::lines_before(channel, at.objects_before);
    let skipped = lines.map_or(at.objects_before, |lines| {
        (lines * channel.attribute_names.len()) as u64
    });
    course.skipped_objects = Arc::new(skipped.into());
    course.begun_at = Some(at.clone());
    Ok((course, Some(at.clone())))
}

/// What was true when.
#[derive(Debug, Default)]
pub(super) struct Notes(VecDeque<(SystemTime, Cursor)>);

impl Notes {
    /// Takes a note.
    pub(super) fn add(&mut self, now: SystemTime, cursor: Cursor) {
        if self.0.len() == MAX_NOTES {
            self.0.pop_front();
        }
        self.0.push_back((now, cursor));
    }

    /// The last note that is not of later than `time`.
    pub(super) fn at(&self, time: SystemTime) -> Option<&Cursor> {
        let before = self.0.iter().rev().find(|(noted, _)| *noted <= time);
        before.map(|(_, cursor)| cursor)
    }
}

/// Time of a file as its signature has it.
pub(super) fn time_of(mtime_ns: i128) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(u64::try_from(mtime_ns).unwrap_or_default())
}

/// Writes it, whole or not at all.
pub(super) fn write(directory: &Path, cursor: &Cursor) -> Result<PathBuf> {
    let path = directory.join(path(cursor.rank));
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|error| Error::io(folder, error))?;
    }
    let text = serde_json::to_vec_pretty(cursor).unwrap_or_default();
    super::tree::write_whole(&path, &text)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::{ObjectId, ObjectUri};

    fn channel(text: &str) -> Channel {
        text.parse().unwrap()
    }

    fn cursor_at(text: &str, epoch: u64, objects_before: u64) -> Cursor {
        let (course, _) = course(&channel(text), None, Resume::Off).unwrap();
        let mut position = Position::start(epoch);
        position.objects_before = objects_before;
        let positions = BTreeMap::from([(course.channel.name.clone(), position)]);
        Cursor::new((0, 2), &[course], &positions, UNIX_EPOCH)
    }

    #[test]
    fn a_run_goes_on_at_the_granularity_that_is_wanted_and_counts_on() {
        let text = "train=s3://b/,mode=pipe,shuffle=7";
        let cursor = cursor_at(text, 3, 5);
        let at = |resume| {
            let (course, at) = course(&channel(text), Some(&cursor), resume).unwrap();
            let skipped = course.skipped_objects.load(Ordering::Relaxed);
            (course.first_epoch, skipped, at.is_some())
        };
        assert_eq!(at(Resume::Off), (0, 0, false));
        assert_eq!(at(Resume::Epoch), (3, 0, false));
        assert_eq!(at(Resume::Object), (3, 5, true));
        // The next cursor is told in the whole job's numbers.
        let (course, _) = course(&channel(text), Some(&cursor), Resume::Object).unwrap();
        let mut position = Position::start(0);
        position.objects_before = 2;
        position.object = Some(Arc::new(ObjectId::unpinned(ObjectUri::s3("b", "x"))));
        let told = course.cursor(&position);
        assert_eq!((told.epoch, told.objects_before), (3, 7));
        let told = course.cursor(&Position::start(1));
        assert_eq!((told.epoch, told.objects_before), (4, 0));
    }

    #[test]
    fn a_run_that_has_read_nothing_is_still_where_it_went_on() {
        let mut cursor = cursor_at("train=s3://b/", 3, 5);
        let before = cursor.channels.get_mut("train").unwrap();
        before.object = Some("s3://b/x".into());
        before.offset = 7;
        let before = before.clone();
        let at = |resume, epoch| {
            let (course, _) = course(&channel("train=s3://b/"), Some(&cursor), resume).unwrap();
            course.cursor(&Position::start(epoch))
        };
        assert_eq!(at(Resume::Object, 0), before);
        let next = at(Resume::Object, 1);
        assert_eq!((next.epoch, next.offset), (4, 0));
        let repeated = at(Resume::Epoch, 0);
        assert_eq!((repeated.epoch, repeated.objects_before), (3, 0));
    }

    #[test]
    fn another_order_is_refused_and_another_channel_begins_anew() {
        let cursor = cursor_at("train=s3://b/,mode=pipe,shuffle=7", 3, 5);
        for text in [
            "train=s3://b/,shuffle=8",
            "train=s3://b/",
            "train=s3://c/,shuffle=7",
        ] {
            assert!(
                course(&channel(text), Some(&cursor), Resume::Object).is_err(),
                "{text}"
            );
            assert!(course(&channel(text), Some(&cursor), Resume::Off).is_ok());
        }
        let (other, at) = course(&channel("val=s3://b/"), Some(&cursor), Resume::Object).unwrap();
        assert_eq!((other.first_epoch, at), (0, None));
    }

    #[test]
    fn a_cursor_is_read_back_and_one_of_other_shares_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Cursor::read(dir.path(), (0, 2)).unwrap(), None);
        let cursor = cursor_at("train=s3://b/", 1, 0);
        write(dir.path(), &cursor).unwrap();
        assert_eq!(Cursor::read(dir.path(), (0, 2)).unwrap(), Some(cursor));
        assert!(Cursor::read(dir.path(), (0, 3)).is_err());
        assert_eq!(Cursor::read(dir.path(), (1, 2)).unwrap(), None);
        std::fs::write(dir.path().join(path(0)), "{").unwrap();
        assert!(Cursor::read(dir.path(), (0, 2)).is_err());
    }

    #[test]
    fn a_file_gets_the_last_note_before_it_was_written() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let mut notes = Notes::default();
        assert_eq!(notes.at(at(9)), None);
        for second in [10, 20, 30] {
            notes.add(at(second), cursor_at("train=s3://b/", second, 0));
        }
        let epoch = |seconds| {
            notes
                .at(at(seconds))
                .map(|cursor| cursor.channels["train"].epoch)
        };
        assert_eq!(
            [9, 10, 25, 99].map(epoch),
            [None, Some(10), Some(20), Some(30)]
        );
    }
}
