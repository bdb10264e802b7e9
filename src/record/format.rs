//! The names of the formats.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use crate::error::Error;

/// How an object is cut into records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RecordFormat {
    /// `tar`: files grouped into samples, as WebDataset does.
    Tar,
    /// `tfrecord`.
    TfRecord,
    /// `recordio` or `recordio:dmlc`.
    RecordIo(Dialect),
    /// `recordio-protobuf`: tensors in RecordIO.
    RecordIoProtobuf,
    /// `lines`.
    Lines,
    /// `jsonl`.
    JsonLines,
    /// `raw`: the object is the record.
    Raw,
    /// `fixed:N`: records of N bytes.
    Fixed(NonZeroU32),
}

/// How the parts of a split RecordIO record become one payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Dialect {
    /// Back to back, as AWS's readers do and its writers mean.
    #[default]
    Aws,
    /// With the magic number between them: dmlc-core splits a payload only where it holds that number, and leaves it
    /// out.
    Dmlc,
}

const NAMES: &str =
    "tar, tfrecord, recordio, recordio:dmlc, recordio-protobuf, lines, jsonl, raw or fixed:N";

impl RecordFormat {
    /// The format that a key's suffix stands for, a suffix of compression aside.
    pub fn of_key(key: &str) -> Option<Self> {
        let name = key.rsplit('/').next().unwrap_or(key).to_ascii_lowercase();
        let (stem, _) = super::Codec::split_suffix(&name);
        if name.ends_with(".tgz") {
            return Some(Self::Tar);
        }
        Some(match stem.rsplit_once('.')?.1 {
            "tar" => Self::Tar,
            "tfrecord" | "tfrecords" => Self::TfRecord,
            "rec" | "recordio" => Self::RecordIo(Dialect::Aws),
            "pbr" => Self::RecordIoProtobuf,
            "jsonl" | "ndjson" => Self::JsonLines,
            "txt" | "csv" | "tsv" => Self::Lines,
            _ => return None,
        })
    }
}

impl FromStr for RecordFormat {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Ok(match text {
            "tar" => Self::Tar,
            "tfrecord" => Self::TfRecord,
            "recordio" => Self::RecordIo(Dialect::Aws),
            "recordio:dmlc" => Self::RecordIo(Dialect::Dmlc),
            "recordio-protobuf" => Self::RecordIoProtobuf,
            "lines" => Self::Lines,
            "jsonl" => Self::JsonLines,
            "raw" => Self::Raw,
            _ => {
                let fixed = text.strip_prefix("fixed:").and_then(|n| n.parse().ok());
                return fixed.map(Self::Fixed).ok_or_else(|| {
                    Error::config("format", format!("{text:?} is none: use {NAMES}"))
                });
            }
        })
    }
}

impl fmt::Display for RecordFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tar => "tar",
            Self::TfRecord => "tfrecord",
            Self::RecordIo(Dialect::Aws) => "recordio",
            Self::RecordIo(Dialect::Dmlc) => "recordio:dmlc",
            Self::RecordIoProtobuf => "recordio-protobuf",
            Self::Lines => "lines",
            Self::JsonLines => "jsonl",
            Self::Raw => "raw",
            Self::Fixed(bytes) => return write!(f, "fixed:{bytes}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_print_as_they_parse() {
        let names = [
            "tar",
            "tfrecord",
            "recordio",
            "recordio:dmlc",
            "recordio-protobuf",
            "lines",
            "jsonl",
            "raw",
            "fixed:784",
        ];
        for name in names {
            assert_eq!(name.parse::<RecordFormat>().unwrap().to_string(), name);
        }
        for bad in [
            "",
            "zip",
            "fixed:0",
            "fixed:",
            "fixed:-1",
            "fixed:4294967296",
            "TAR",
        ] {
            let error = bad.parse::<RecordFormat>().unwrap_err().to_string();
            assert!(error.contains("fixed:N"), "{bad}: {error}");
        }
    }

    #[test]
    fn keys_tell_formats() {
        let of = RecordFormat::of_key;
        assert_eq!(of("a/train-0.tar"), Some(RecordFormat::Tar));
        assert_eq!(of("a/train-0.TAR.gz"), Some(RecordFormat::Tar));
        assert_eq!(of("a/train-0.tgz"), Some(RecordFormat::Tar));
        assert_eq!(of("x.tfrecord"), Some(RecordFormat::TfRecord));
        assert_eq!(of("x.jsonl.zst"), Some(RecordFormat::JsonLines));
        assert_eq!((of("a.tar/x"), of("x"), of("x.gz")), (None, None, None));
    }
}
