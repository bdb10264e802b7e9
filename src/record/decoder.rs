//! From an object's bytes to its records: compression, then framing.

use std::fmt::Debug;

use bytes::Bytes;

use super::compression::{Codec, Compression, Decompressor};
use super::input::Input;
use super::lines::Lines;
use super::recordio::RecordIo;
use super::tar::Tar;
use super::tfrecord::TfRecords;
use super::whole::{Fixed, Raw};
use super::{Dialect, Flaw, Record, RecordFormat};
use crate::error::{Error, Result};

/// A format's part of the work: finds the next record in bytes that are there.
pub(super) trait Framing: Debug + Send {
    /// The next record; `None` when more bytes are needed or, after the input's end, when there is none. After a flaw that
    /// is recoverable it is asked for the record behind.
    fn next(&mut self, input: &mut Input) -> Result<Option<Record>, Flaw>;
}

/// How objects become records.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Decoding {
    /// How they are cut.
    pub format: RecordFormat,
    /// How they are compressed.
    pub compression: Compression,
    /// The most that one record may hold, in bytes. Default 1 GiB: longer than what anyone feeds to an accelerator at
    /// once, and short enough that a lying length is found out before memory ends.
    pub max_record_bytes: u64,
}

/// Where a record begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Boundary {
    /// In the object, or in what it decompresses to: a [`Record::end`].
    pub offset: u64,
    /// The object's compression, as [`RecordDecoder::codec`] told.
    pub codec: Codec,
}

impl Decoding {
    /// A format, with defaults for the rest.
    pub fn new(format: RecordFormat) -> Self {
        Self {
            format,
            compression: Compression::default(),
            max_record_bytes: 1 << 30,
        }
    }

    /// Refuses what can't work, naming the field.
    pub fn validate(&self) -> Result<()> {
        if self.max_record_bytes == 0 || self.max_record_bytes > 1 << 40 {
            let reason = format!("{} bytes: use 1 to 1TiB", self.max_record_bytes);
            return Err(Error::config("max_record_bytes", reason));
        }
        match self.format {
            RecordFormat::Fixed(len) if u64::from(len.get()) > self.max_record_bytes => {
                let reason = format!(
                    "{len} bytes, with max_record_bytes {}",
                    self.max_record_bytes
                );
                Err(Error::config("format", reason))
            }
            _ => Ok(()),
        }
    }

    /// A decoder for an object from its first byte on. Its key may tell how it is compressed.
    pub fn decoder(&self, key: &str) -> RecordDecoder {
        self.start(self.compression.of_key(key, self.format), 0)
    }

    /// A decoder that goes on at a boundary that one before it told; it wants the object from
    /// [`RecordDecoder::first_byte`] on.
    pub fn resume(&self, boundary: Boundary) -> RecordDecoder {
        self.start(Some(boundary.codec), boundary.offset)
    }

    fn start(&self, codec: Option<Codec>, offset: u64) -> RecordDecoder {
        let plain = codec == Some(Codec::None);
        RecordDecoder {
            decompressor: (!plain).then(|| Decompressor::of_records(codec, self.format)),
            discard: if plain { 0 } else { offset },
            offset,
            input: Input::at(offset),
            framing: self.framing(offset),
            failed: None,
        }
    }

    fn framing(&self, offset: u64) -> Box<dyn Framing> {
        let limit = self.max_record_bytes;
        let recordio = |dialect, protobuf| RecordIo {
            limit,
            dialect,
            protobuf,
            parts: None,
        };
        let lines = |json| Lines {
            limit,
            json,
            searched: 0,
        };
        match self.format {
            RecordFormat::Tar => Box::new(Tar::new(limit)),
            RecordFormat::TfRecord => Box::new(TfRecords { limit }),
            RecordFormat::RecordIo(dialect) => Box::new(recordio(dialect, false)),
            RecordFormat::RecordIoProtobuf => Box::new(recordio(Dialect::Aws, true)),
            RecordFormat::Lines => Box::new(lines(false)),
            RecordFormat::JsonLines => Box::new(lines(true)),
            RecordFormat::Fixed(len) => Box::new(Fixed { len: len.get() }),
            RecordFormat::Raw => Box::new(Raw {
                limit,
                // The one record was read if anything was.
                done: offset > 0,
            }),
        }
    }
}

/// Finds the records of one object.
///
/// ```
/// use bytes::Bytes;
/// use standpipe::record::{Data, Decoding, RecordFormat};
///
/// let mut decoder = Decoding::new(RecordFormat::Lines).decoder("words.txt");
/// decoder.push(Bytes::from_static(b"one\ntw"));
/// decoder.push(Bytes::from_static(b"o"));
/// decoder.finish();
/// let one = decoder.next_record().unwrap().unwrap();
/// assert_eq!((one.data, one.end), (Data::Bytes("one".into()), 4));
/// assert_eq!(decoder.next_record().unwrap().unwrap().data, Data::Bytes("two".into()));
/// assert!(decoder.next_record().unwrap().is_none());
/// ```
#[derive(Debug)]
pub struct RecordDecoder {
    /// `None` for bytes that are known not to be compressed.
    decompressor: Option<Decompressor>,
    /// Decompressed bytes before the boundary, to be thrown away.
    discard: u64,
    offset: u64,
    input: Input,
    framing: Box<dyn Framing>,
    failed: Option<Flaw>,
}

impl RecordDecoder {
    /// Which byte of the object it wants first: the boundary's, or 0 of a compressed object, which can't be entered in
    /// the middle.
    pub fn first_byte(&self) -> u64 {
        match self.decompressor {
            None => self.offset,
            Some(_) => 0,
        }
    }

    /// How the object is compressed; `None` while its first bytes have not told.
    pub fn codec(&self) -> Option<Codec> {
        self.decompressor
            .as_ref()
            .map_or(Some(Codec::None), Decompressor::codec)
    }

    /// Takes the object's next bytes.
    pub fn push(&mut self, chunk: Bytes) {
        match &mut self.decompressor {
            Some(decompressor) => decompressor.push(chunk),
            None => self.input.push(chunk),
        }
    }

    /// Takes the object's end: what is left is a record, or truncated.
    pub fn finish(&mut self) {
        match &mut self.decompressor {
            Some(decompressor) => decompressor.finish(),
            None => self.input.end(),
        }
    }

    /// The next record; `None` when more bytes are needed or, after [`finish`](Self::finish), at the end.
    ///
    /// # Errors
    /// A [`Flaw`]. If it is recoverable, the next call goes on behind the bad record; else every call gives it again.
    pub fn next_record(&mut self) -> Result<Option<Record>, Flaw> {
        if let Some(flaw) = &self.failed {
            return Err(flaw.clone());
        }
        let found = self.find();
        if let Err(flaw) = &found {
            self.failed = Some(flaw.clone()).filter(|flaw| !flaw.recoverable);
        }
        found
    }

    fn find(&mut self) -> Result<Option<Record>, Flaw> {
        loop {
            let found = self.framing.next(&mut self.input)?;
            if found.is_some() || self.input.ended() || !self.refill()? {
                return Ok(found);
            }
        }
    }

    /// Decompresses a step; `false` when that takes more of the object.
    fn refill(&mut self) -> Result<bool, Flaw> {
        let Some(decompressor) = &mut self.decompressor else {
            return Ok(false);
        };
        match decompressor.next_chunk()? {
            Some(mut chunk) => {
                let before = (chunk.len() as u64).min(self.discard);
                self.discard -= before;
                self.input.push(chunk.split_off(before as usize));
                Ok(true)
            }
            None if decompressor.finished() => {
                self.input.end();
                Ok(true)
            }
            None => Ok(false),
        }
    }
}
