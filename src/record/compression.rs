//! Compression around an object, found out and undone in steps of bounded size.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;

use super::gzip::{self, Gzip};
use super::input::Input;
use super::zstd::Zstd;
use super::{Flaw, RecordFormat, tfrecord};
use crate::error::Error;

/// The most that one step puts out: however much a few bytes expand to, memory does not.
pub(super) const STEP_BYTES: usize = 1 << 20;

/// How an object is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    /// It is not.
    None,
    /// Gzip (RFC 1952), any number of members.
    Gzip,
    /// Zstandard (RFC 8878), any number of frames, windows up to 128 MiB.
    Zstd,
}

impl Codec {
    /// A name without its suffix of compression, and what that says. `name` is in lower case.
    pub(super) fn split_suffix(name: &str) -> (&str, Option<Self>) {
        let suffixes = [
            (".gz", Self::Gzip),
            (".gzip", Self::Gzip),
            (".tgz", Self::Gzip),
            (".zst", Self::Zstd),
            (".zstd", Self::Zstd),
        ];
        suffixes
            .into_iter()
            .find_map(|(suffix, codec)| Some((name.strip_suffix(suffix)?, Some(codec))))
            .unwrap_or((name, None))
    }

    /// What an object's first bytes say; `None`: more of them are needed.
    ///
    /// Two bytes are too few for gzip: a TFRecord of 35,615 bytes begins with them, as one in 65,536 objects of binary
    /// records does. So the whole header is looked at, and a TFRecord's own header, which has a CRC, goes before.
    fn of_magic(bytes: &Input, format: Option<RecordFormat>) -> Option<Self> {
        let too_short = || bytes.ended().then_some(Self::None);
        let suspect = match bytes.peek::<2>() {
            Some([0x1f, 0x8b]) => Self::Gzip,
            Some([0x28, 0xb5]) => Self::Zstd,
            Some(_) => return Some(Self::None),
            None => return too_short(),
        };
        if format == Some(RecordFormat::TfRecord) {
            match bytes.peek() {
                Some(header) if tfrecord::is_header(&header) => return Some(Self::None),
                None if !bytes.ended() => return None,
                _ => {}
            }
        }
        let is_it = match suspect {
            Self::Gzip => bytes.peek().map(|header| gzip::is_header(&header)),
            _ => bytes
                .peek::<4>()
                .map(|magic| magic == [0x28, 0xb5, 0x2f, 0xfd]),
        };
        match is_it {
            Some(true) => Some(suspect),
            Some(false) => Some(Self::None),
            None => too_short(),
        }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        })
    }
}

/// What is known of the compression beforehand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Compression {
    /// The key's suffix decides; without one, the object's first bytes. Objects that are read `raw` are taken as they
    /// are unless their suffix says otherwise: a payload may well begin like gzip.
    #[default]
    Auto,
    /// It is this, whatever key and bytes look like.
    Is(Codec),
}

impl Compression {
    /// What is known of an object by its key.
    pub(super) fn of_key(self, key: &str, format: RecordFormat) -> Option<Codec> {
        match (self, Codec::split_suffix(&key.to_ascii_lowercase()).1) {
            (Self::Is(codec), _) | (Self::Auto, Some(codec)) => Some(codec),
            (Self::Auto, None) => (format == RecordFormat::Raw).then_some(Codec::None),
        }
    }
}

impl FromStr for Compression {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Ok(match text {
            "auto" => Self::Auto,
            "none" => Self::Is(Codec::None),
            "gzip" => Self::Is(Codec::Gzip),
            "zstd" => Self::Is(Codec::Zstd),
            _ => {
                let reason = format!("{text:?} is none: use auto, none, gzip or zstd");
                return Err(Error::config("compression", reason));
            }
        })
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Is(codec) => write!(f, "{codec}"),
        }
    }
}

/// Undoes an object's compression, chunk by chunk; hands on what is not compressed without a copy.
#[derive(Debug)]
pub struct Decompressor {
    input: Input,
    state: State,
    /// What is in it, where that is known.
    format: Option<RecordFormat>,
}

#[derive(Debug)]
enum State {
    /// The first bytes will tell.
    Unknown,
    Plain,
    Gzip(Box<Gzip>),
    Zstd(Box<Zstd>),
}

impl State {
    fn of(codec: Codec) -> Self {
        match codec {
            Codec::None => Self::Plain,
            Codec::Gzip => Self::Gzip(Box::default()),
            Codec::Zstd => Self::Zstd(Box::default()),
        }
    }
}

impl Decompressor {
    /// For an object from its first byte on; without a codec its first bytes decide.
    pub fn new(codec: Option<Codec>) -> Self {
        Self {
            input: Input::at(0),
            state: codec.map_or(State::Unknown, State::of),
            format: None,
        }
    }

    /// The same for an object of records: what begins like these is not taken for compressed.
    pub(super) fn of_records(codec: Option<Codec>, format: RecordFormat) -> Self {
        Self {
            format: Some(format),
            ..Self::new(codec)
        }
    }

    /// The codec, once it is known.
    pub fn codec(&self) -> Option<Codec> {
        match self.state {
            State::Unknown => None,
            State::Plain => Some(Codec::None),
            State::Gzip(_) => Some(Codec::Gzip),
            State::Zstd(_) => Some(Codec::Zstd),
        }
    }

    /// Takes the object's next bytes.
    pub fn push(&mut self, chunk: Bytes) {
        self.input.push(chunk);
    }

    /// Takes the object's end.
    pub fn finish(&mut self) {
        self.input.end();
    }

    /// The next decompressed bytes, at most 1 MiB of them; `None` when more of the object is needed or, after
    /// [`finish`](Self::finish), at the end.
    ///
    /// # Errors
    /// A fatal [`Flaw`] whose offset is that of compressed bytes.
    pub fn next_chunk(&mut self) -> Result<Option<Bytes>, Flaw> {
        if let State::Unknown = self.state {
            match Codec::of_magic(&self.input, self.format) {
                Some(codec) => self.state = State::of(codec),
                None => return Ok(None),
            }
        }
        match &mut self.state {
            State::Gzip(gzip) => gzip.next(&mut self.input),
            State::Zstd(zstd) => zstd.next(&mut self.input),
            State::Plain | State::Unknown => Ok(self.input.take_piece()),
        }
    }

    /// Whether the object's end was taken.
    pub(super) fn finished(&self) -> bool {
        self.input.ended()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compressions_print_as_they_parse() {
        for name in ["auto", "none", "gzip", "zstd"] {
            assert_eq!(name.parse::<Compression>().unwrap().to_string(), name);
        }
        assert!(
            "bzip2"
                .parse::<Compression>()
                .unwrap_err()
                .to_string()
                .contains("use auto")
        );
    }

    #[test]
    fn the_suffix_decides_then_the_first_bytes_but_not_of_raw_objects() {
        let auto = |key, format| Compression::Auto.of_key(key, format);
        assert_eq!(auto("a.tar.GZ", RecordFormat::Tar), Some(Codec::Gzip));
        assert_eq!(auto("a.tgz", RecordFormat::Tar), Some(Codec::Gzip));
        assert_eq!(auto("a.zst", RecordFormat::Raw), Some(Codec::Zstd));
        assert_eq!(auto("a.tar", RecordFormat::Tar), None);
        assert_eq!(auto("a.bin", RecordFormat::Raw), Some(Codec::None));
        let named = Compression::Is(Codec::None);
        assert_eq!(named.of_key("a.gz", RecordFormat::Lines), Some(Codec::None));
    }
}
