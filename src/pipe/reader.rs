//! The other end: one epoch's FIFO, read as records by whoever trains.
//!
//! [`EpochReader`] serves jobs of Standpipe's own server and of SageMaker's alike: all it takes for granted is a FIFO that
//! somebody writes to and closes. It opens with `O_NONBLOCK` and polls, so that it never blocks where a caller could not
//! stop it: neither in `open`, for a writer, nor in `read`. Linux tells "no writer yet" from "the writer has gone" by
//! `POLLHUP`, which a read end gets only when a writer has come and gone since it was opened.
//!
//! A FIFO carries no error: a server that fails leaves it open, writes a status file beside it, and is killed in the end.
//! So that file is looked for whenever nothing comes, and once more at the end, before the end is believed.
//!
//! What limits it: one copy out of the pipe, and the decoder. Bytes are read when records are asked for, one buffer (at
//! most 1 MiB) at a time; nothing is read ahead but what lies in the pipe.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::fifo::{poll_for, unread_bytes};
use super::name::ChannelName;
use crate::error::{Error, Result};
use crate::object::ObjectUri;
use crate::record::{Codec, Compression, Data, Decoding, Record, RecordDecoder, RecordFormat};

/// A read's bytes: at most what the largest pipe of an unprivileged server holds, at least a pipe's usual 64 KiB.
const MOST_BYTES: u64 = 1 << 20;
const LEAST_BYTES: u64 = 64 << 10;
/// Records that are given at once: enough that what a crossing into another language costs is nothing beside them.
const MOST_RECORDS: usize = 256;
/// How often a FIFO that is not there yet, or has no writer yet, is looked at.
const LOOK: Duration = Duration::from_millis(5);
/// How often the status file is looked for while nothing comes.
const LOOK_FOR_FAILURE: Duration = Duration::from_millis(500);

/// What a wait for records gave.
#[derive(Debug)]
pub enum NextRecords {
    /// At least one, in order.
    Records(Vec<Record>),
    /// The epoch is over.
    End,
    /// None came in time; ask again.
    TimedOut,
}

/// Reads one FIFO, once, from its first byte to its end.
#[derive(Debug)]
pub struct EpochReader {
    path: PathBuf,
    status_file: PathBuf,
    uri: ObjectUri,
    cut: Cut,
    source: Source,
    received_bytes: u64,
    /// Whether the FIFO was opened: its server has noticed, and makes the next one.
    was_opened: bool,
    /// What comes behind the records that are there.
    failed: Option<Error>,
    looked: Option<Instant>,
}

#[derive(Debug)]
enum Source {
    /// Not opened.
    Absent,
    Open(OwnedFd, u64),
    /// Read to its end, or closed.
    Done,
}

/// How bytes become records.
#[derive(Debug)]
enum Cut {
    Records(Box<RecordDecoder>),
    /// Each read's bytes are one.
    Chunks(VecDeque<Record>),
}

/// What a look at the FIFO gave.
enum Fetched {
    Bytes(Vec<u8>),
    End,
    Nothing,
}

impl EpochReader {
    /// The FIFO of an epoch of `channel` in `dir`; it is opened when it is first asked for records, and may not be there
    /// before. With [`RecordFormat::Raw`] records are pieces of the bytes, as they come.
    ///
    /// # Errors
    /// [`Error::Config`] naming what can't work.
    pub fn new(dir: &Path, channel: &ChannelName, epoch: u64, decoding: &Decoding) -> Result<Self> {
        decoding.validate()?;
        let path = dir.join(channel.fifo(epoch));
        let cut = match (decoding.format, decoding.compression) {
            (RecordFormat::Raw, Compression::Auto | Compression::Is(Codec::None)) => {
                Cut::Chunks(VecDeque::new())
            }
            (RecordFormat::Raw, _) => {
                let reason =
                    "raw bytes are given as they come: decompress them where they are read";
                return Err(Error::config("compression", reason));
            }
            // The channel's name tells nothing; the first bytes do.
            _ => Cut::Records(Box::new(decoding.decoder(""))),
        };
        Ok(Self {
            uri: path.to_string_lossy().parse()?,
            status_file: dir.join(channel.status(epoch)),
            path,
            cut,
            source: Source::Absent,
            received_bytes: 0,
            was_opened: false,
            failed: None,
            looked: None,
        })
    }

    /// The FIFO.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its address.
    pub fn uri(&self) -> &ObjectUri {
        &self.uri
    }

    /// Bytes that came out of it.
    pub fn received_bytes(&self) -> u64 {
        self.received_bytes
    }

    /// Whether the FIFO was opened and is neither read to its end nor closed.
    pub fn is_open(&self) -> bool {
        matches!(self.source, Source::Open(..))
    }

    /// Whether the FIFO was opened: then this epoch is used up, however much of it was read.
    pub fn was_opened(&self) -> bool {
        self.was_opened
    }

    /// Whether nothing is left to be read: the end was given, an error, or it was closed.
    pub fn is_done(&self) -> bool {
        matches!(self.source, Source::Done)
    }

    /// Stops reading. Its server sees a reader that left, and goes on to the next epoch.
    pub fn close(&mut self) {
        self.source = Source::Done;
        self.cut = Cut::Chunks(VecDeque::new());
    }

    /// Waits at most `limit` for records.
    ///
    /// # Errors
    /// After the records before it, and again whenever asked again: what is corrupt or truncated, with the FIFO's name
    /// and the offset; [`Error::Io`] when the server says that it failed.
    pub fn next_timeout(&mut self, limit: Duration) -> Result<NextRecords> {
        let deadline = Instant::now() + limit;
        loop {
            let records = self.decoded();
            if !records.is_empty() {
                return Ok(NextRecords::Records(records));
            }
            if let Some(error) = &self.failed {
                return Err(error.clone());
            }
            if self.is_done() {
                return Ok(NextRecords::End);
            }
            match self.fetch(deadline) {
                Ok(Fetched::Bytes(bytes)) => self.take(bytes),
                Ok(Fetched::End) => self.end(),
                Ok(Fetched::Nothing) => return Ok(NextRecords::TimedOut),
                Err(error) => self.fail(error),
            }
        }
    }

    fn take(&mut self, bytes: Vec<u8>) {
        let offset = self.received_bytes;
        self.received_bytes += bytes.len() as u64;
        match &mut self.cut {
            Cut::Records(decoder) => decoder.push(bytes.into()),
            Cut::Chunks(chunks) => chunks.push_back(Record {
                offset,
                end: self.received_bytes,
                data: Data::Bytes(Bytes::from(bytes)),
            }),
        }
    }

    /// The writer has gone: for good, or because it failed.
    fn end(&mut self) {
        self.source = Source::Done;
        if let Err(error) = self.look_for_failure() {
            return self.fail(error);
        }
        if let Cut::Records(decoder) = &mut self.cut {
            decoder.finish();
        }
    }

    fn fail(&mut self, error: Error) {
        self.source = Source::Done;
        self.failed = Some(error);
    }

    /// The records that the bytes at hand hold. What is wrong with them comes behind those before it.
    fn decoded(&mut self) -> Vec<Record> {
        let decoder = match &mut self.cut {
            Cut::Chunks(chunks) => return chunks.drain(..).collect(),
            Cut::Records(decoder) => decoder,
        };
        let mut records = Vec::new();
        while self.failed.is_none() && records.len() < MOST_RECORDS {
            match decoder.next_record() {
                Ok(Some(record)) => records.push(record),
                Ok(None) => break,
                Err(flaw) => {
                    self.source = Source::Done;
                    self.failed = Some(flaw.of(&self.uri));
                }
            }
        }
        records
    }

    /// What lies in the pipe; waits for it until `deadline`.
    fn fetch(&mut self, deadline: Instant) -> Result<Fetched> {
        loop {
            let now = Instant::now();
            let is_new = match &self.source {
                Source::Open(fd, _) => {
                    let until = deadline.min(now + LOOK_FOR_FAILURE);
                    let wait = match self.received_bytes {
                        // A FIFO that another took the place of gets no writer.
                        0 => LOOK.min(until.saturating_duration_since(now)),
                        _ => until.saturating_duration_since(now),
                    };
                    match receive(fd, wait).map_err(|error| Error::io(&self.path, error.into()))? {
                        Fetched::Nothing => false,
                        found => return Ok(found),
                    }
                }
                Source::Done => return Ok(Fetched::End),
                Source::Absent => true,
            };
            if self.looked.is_none_or(|at| now >= at + LOOK_FOR_FAILURE) {
                self.looked = Some(now);
                self.look_for_failure()?;
            }
            if is_new || (self.received_bytes == 0 && self.was_replaced()) {
                self.source = match open(&self.path)? {
                    Some((fd, inode)) => Source::Open(fd, inode),
                    None => Source::Absent,
                };
                self.was_opened |= self.is_open();
            }
            if Instant::now() >= deadline {
                return Ok(Fetched::Nothing);
            }
            if matches!(self.source, Source::Absent) {
                std::thread::sleep(LOOK.min(deadline.saturating_duration_since(now)));
            }
        }
    }

    /// Whether the name has become another FIFO's: a server that starts anew makes one, where somebody still reads.
    fn was_replaced(&self) -> bool {
        let Source::Open(_, inode) = &self.source else {
            return false;
        };
        std::fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() != *inode)
    }

    /// What the server says of this epoch beside the FIFO.
    fn look_for_failure(&self) -> Result<()> {
        let Ok(text) = std::fs::read(&self.status_file) else {
            return Ok(());
        };
        let told: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
        let cause = told["cause"]
            .as_str()
            .unwrap_or("its status file does not tell why");
        let reason = format!(
            "the epoch was cut off after {} bytes: {cause} (see {})",
            self.received_bytes,
            self.status_file.display()
        );
        let source = std::io::Error::new(std::io::ErrorKind::UnexpectedEof, reason);
        Err(Error::io(&self.path, source))
    }
}

/// The read end, and the FIFO's inode; none if there is no FIFO yet.
fn open(path: &Path) -> Result<Option<(OwnedFd, u64)>> {
    let failed = |error: Errno| Error::io(path, error.into());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let stat = rustix::fs::fstat(&fd).map_err(failed)?;
    if !FileType::from_raw_mode(stat.st_mode).is_fifo() {
        return Err(Error::unusable(
            path.display().to_string(),
            "this is no FIFO",
            "name the directory and the channel of a job in Pipe mode; files are read by what reads File mode",
        ));
    }
    Ok(Some((fd, stat.st_ino)))
}

fn receive(fd: &OwnedFd, wait: Duration) -> rustix::io::Result<Fetched> {
    let mut polled = [PollFd::new(fd, PollFlags::IN)];
    poll_for(&mut polled, Some(wait));
    let events = polled[0].revents();
    if !events.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
        return Ok(Fetched::Nothing);
    }
    let size = unread_bytes(fd).clamp(LEAST_BYTES, MOST_BYTES);
    let mut bytes: Vec<u8> = Vec::with_capacity(size as usize);
    while bytes.len() < bytes.capacity() {
        match rustix::io::read(fd, spare_capacity(&mut bytes)) {
            // Without bytes before it this is the end; else the next look finds it again.
            Ok(0) if bytes.is_empty() => return Ok(Fetched::End),
            Ok(0) | Err(Errno::AGAIN) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(match bytes.is_empty() {
        true => Fetched::Nothing,
        false => Fetched::Bytes(bytes),
    })
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write as _;

    use rustix::fs::CWD;

    use super::*;

    const SOON: Duration = Duration::from_millis(30);
    const LONG: Duration = Duration::from_secs(20);

    fn reader(dir: &Path, format: &str) -> EpochReader {
        let decoding = Decoding::new(format.parse().unwrap());
        EpochReader::new(dir, &"train".parse().unwrap(), 0, &decoding).unwrap()
    }

    fn make(dir: &Path) -> PathBuf {
        let path = dir.join("train_0");
        rustix::fs::mkfifoat(CWD, &path, Mode::from_raw_mode(0o600)).unwrap();
        path
    }

    /// Opens for writing, as soon as somebody reads.
    fn writer(
        path: PathBuf,
        writes: impl FnOnce(&mut File) + Send + 'static,
    ) -> std::thread::JoinHandle<()> {
        std::thread::spawn(move || writes(&mut File::options().write(true).open(path).unwrap()))
    }

    fn payload(record: &Record) -> Bytes {
        match &record.data {
            Data::Bytes(bytes) => bytes.clone(),
            other => panic!("{other:?}"),
        }
    }

    fn all(reader: &mut EpochReader) -> (Vec<Bytes>, Result<()>) {
        let mut found = Vec::new();
        loop {
            match reader.next_timeout(LONG) {
                Ok(NextRecords::Records(records)) => found.extend(records.iter().map(payload)),
                Ok(NextRecords::End) => return (found, Ok(())),
                Ok(NextRecords::TimedOut) => panic!("nothing in {LONG:?}"),
                Err(error) => return (found, Err(error)),
            }
        }
    }

    #[test]
    fn neither_a_missing_fifo_nor_a_missing_writer_is_an_end() {
        let dir = tempfile::tempdir().unwrap();
        let mut reader = reader(dir.path(), "lines");
        assert!(matches!(
            reader.next_timeout(SOON),
            Ok(NextRecords::TimedOut)
        ));
        let path = make(dir.path());
        assert!(matches!(
            reader.next_timeout(SOON),
            Ok(NextRecords::TimedOut)
        ));
        assert!(reader.is_open());
        let writing = writer(path, |file| {
            file.write_all(b"one\ntw").unwrap();
            std::thread::sleep(SOON);
            file.write_all(b"o\nthree").unwrap();
        });
        let (found, end) = all(&mut reader);
        writing.join().unwrap();
        assert_eq!(found, ["one", "two", "three"]);
        assert!(end.is_ok() && reader.is_done());
        assert!(
            matches!(reader.next_timeout(SOON), Ok(NextRecords::End)),
            "and again"
        );
    }

    #[test]
    fn a_writer_that_brings_nothing_is_an_empty_epoch() {
        let dir = tempfile::tempdir().unwrap();
        let writing = writer(make(dir.path()), |_| {});
        let (found, end) = all(&mut reader(dir.path(), "recordio"));
        writing.join().unwrap();
        assert!(found.is_empty() && end.is_ok());
    }

    #[test]
    fn a_record_that_is_cut_off_is_an_error_with_fifo_and_offset() {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = Vec::new();
        crate::record::recordio::encode(b"whole", 1 << 20, &mut bytes);
        let good = bytes.len();
        crate::record::recordio::encode(b"cut off", 1 << 20, &mut bytes);
        let writing = writer(make(dir.path()), move |file| {
            file.write_all(&bytes[..good + 10]).unwrap();
        });
        let mut reader = reader(dir.path(), "recordio");
        let (found, end) = all(&mut reader);
        writing.join().unwrap();
        assert_eq!(found, ["whole"]);
        let told = end.unwrap_err().to_string();
        assert!(
            told.contains("train_0") && told.contains(&format!("offset {good}")),
            "{told}"
        );
        assert!(reader.next_timeout(SOON).is_err(), "and again");
    }

    #[test]
    fn an_end_beside_a_status_file_is_an_error_whatever_came_before() {
        let dir = tempfile::tempdir().unwrap();
        let status = dir.path().join("train_0.error.json");
        let writing = writer(make(dir.path()), move |file| {
            file.write_all(b"one\n").unwrap();
            std::fs::write(status, r#"{"cause": "403 of s3://bucket/key"}"#).unwrap();
        });
        let (found, end) = all(&mut reader(dir.path(), "lines"));
        writing.join().unwrap();
        assert_eq!(found, ["one"]);
        let told = format!("{:?}", end.unwrap_err());
        assert!(told.contains("403 of s3://bucket/key"), "{told}");
    }

    #[test]
    fn a_status_file_ends_the_wait_for_a_writer_that_keeps_silent() {
        let dir = tempfile::tempdir().unwrap();
        let path = make(dir.path());
        let mut reader = reader(dir.path(), "lines");
        assert!(matches!(
            reader.next_timeout(SOON),
            Ok(NextRecords::TimedOut)
        ));
        let held = File::options().write(true).open(path).unwrap();
        std::fs::write(dir.path().join("train_0.error.json"), "{}").unwrap();
        assert!(all(&mut reader).1.is_err());
        drop(held);
    }

    #[test]
    fn a_fifo_that_takes_the_place_of_another_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = make(dir.path());
        let mut reader = reader(dir.path(), "raw");
        assert!(matches!(
            reader.next_timeout(SOON),
            Ok(NextRecords::TimedOut)
        ));
        std::fs::remove_file(&path).unwrap();
        let writing = writer(make(dir.path()), |file| {
            file.write_all(&[7; 300_000]).unwrap()
        });
        let (found, end) = all(&mut reader);
        writing.join().unwrap();
        assert!(end.is_ok());
        assert_eq!(found.concat(), [7; 300_000]);
    }

    #[test]
    fn what_is_no_fifo_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("train_0"), "a file").unwrap();
        let told = all(&mut reader(dir.path(), "lines"))
            .1
            .unwrap_err()
            .to_string();
        assert!(told.contains("no FIFO"), "{told}");
    }
}
