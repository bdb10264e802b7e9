//! Values that name objects and parts of them. No I/O.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;
use std::time::SystemTime;

use crate::checksum::{Checksum, ChecksumAlgorithm};
use crate::error::{Error, Result};

/// Where an object lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scheme {
    /// `s3://bucket/key`; the bucket may be an access-point ARN or alias.
    S3,
    /// `file:///path` or a plain path; the bucket is empty and the key is the path.
    File,
    /// `memory://bucket/key`, for tests and examples.
    Memory,
}

/// The address of an object, or of every object whose key starts with `key`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectUri {
    scheme: Scheme,
    bucket: Arc<str>,
    key: Arc<str>,
}

impl ObjectUri {
    /// An S3 address from its parts; nothing is checked.
    pub fn s3(bucket: impl Into<Arc<str>>, key: impl Into<Arc<str>>) -> Self {
        Self {
            scheme: Scheme::S3,
            bucket: bucket.into(),
            key: key.into(),
        }
    }

    /// Where it lives.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The bucket's name or ARN; empty for files.
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// The key, or the path of a file.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Another key in the same bucket, sharing its name's memory.
    pub fn with_key(&self, key: impl Into<Arc<str>>) -> Self {
        Self {
            scheme: self.scheme,
            bucket: self.bucket.clone(),
            key: key.into(),
        }
    }
}

impl fmt::Display for ObjectUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.scheme {
            Scheme::S3 => write!(f, "s3://{}/{}", self.bucket, self.key),
            Scheme::File => write!(f, "file://{}", self.key),
            Scheme::Memory => write!(f, "memory://{}/{}", self.bucket, self.key),
        }
    }
}

impl fmt::Debug for ObjectUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for ObjectUri {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (scheme, rest) = match text.split_once("://") {
            Some(("s3" | "S3", rest)) => (Scheme::S3, rest),
            Some(("memory", rest)) => (Scheme::Memory, rest),
            Some(("file", rest)) => return file_uri(text, rest),
            Some((other, _)) => {
                return Err(Error::config(
                    text,
                    format!(
                        "unknown scheme {other:?}: use s3://bucket/key, file:///path or a path"
                    ),
                ));
            }
            None if text.is_empty() => {
                return Err(Error::config(
                    "URI",
                    "empty: use s3://bucket/key, file:///path or a path",
                ));
            }
            None => return file_uri(text, text),
        };
        let (bucket, key) = split_bucket(rest);
        if bucket.is_empty() {
            return Err(Error::config(text, "no bucket: use s3://bucket/key"));
        }
        Ok(Self {
            scheme,
            bucket: bucket.into(),
            key: key.into(),
        })
    }
}

fn file_uri(text: &str, path: &str) -> Result<ObjectUri> {
    if path.is_empty() {
        return Err(Error::config(
            text,
            "no path: use file:///absolute/path or a plain path",
        ));
    }
    Ok(ObjectUri {
        scheme: Scheme::File,
        bucket: "".into(),
        key: path.into(),
    })
}

/// Splits `bucket/key`; an access-point ARN has a slash or a colon of its own before its name.
fn split_bucket(rest: &str) -> (&str, &str) {
    let from = match rest.strip_prefix("arn:").and(rest.find("accesspoint/")) {
        Some(at) => at + "accesspoint/".len(),
        None => 0,
    };
    match rest[from..].find('/') {
        Some(at) => (&rest[..from + at], &rest[from + at + 1..]),
        None => (rest, ""),
    }
}

/// One version of one object: what a read is pinned to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ObjectId {
    /// Its address.
    pub uri: ObjectUri,
    /// The ETag as the server writes it, quotes included; sent as `If-Match`. `None` until the first answer tells.
    pub etag: Option<Arc<str>>,
    /// A version to read instead of the newest.
    pub version_id: Option<Arc<str>>,
    /// Its length, once known; a range that covers it all is fetched without a `Range` header.
    pub size_bytes: Option<u64>,
}

impl ObjectId {
    /// An object of which only the address is known.
    pub fn unpinned(uri: ObjectUri) -> Self {
        Self {
            uri,
            etag: None,
            version_id: None,
            size_bytes: None,
        }
    }

    /// Whether size and version are known, so that parts can be read side by side.
    pub fn is_pinned(&self) -> bool {
        self.size_bytes.is_some() && (self.etag.is_some() || self.version_id.is_some())
    }

    /// Whether `range` is the whole object.
    pub fn is_whole(&self, range: ByteRange) -> bool {
        range.start == 0 && self.size_bytes == Some(range.end)
    }
}

/// What a listing or a HEAD says of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectMeta {
    /// Its address and version.
    pub id: ObjectId,
    /// Its length.
    pub size_bytes: u64,
    /// When it was last written.
    pub last_modified: Option<SystemTime>,
    /// The CRC that is kept over the whole object; `None` when there is none, or none that parts combine to.
    pub checksum_algorithm: Option<ChecksumAlgorithm>,
    /// Its value. A listing does not tell it, a HEAD does.
    pub checksum: Option<Checksum>,
}

/// A half-open range of bytes of one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ByteRange {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

impl ByteRange {
    /// `start..end`; `end` is raised to `start` if smaller.
    pub fn new(start: u64, end: u64) -> Self {
        Self {
            start,
            end: end.max(start),
        }
    }

    /// Its length in bytes.
    pub fn len(self) -> u64 {
        self.end - self.start
    }

    /// Whether it holds no byte.
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// What is left after the first `filled` bytes.
    pub fn skip(self, filled: u64) -> Self {
        Self::new(self.start + filled, self.end)
    }

    /// The `Range` header's value (RFC 9110, 14.2); the range must not be empty.
    pub fn to_header(self) -> String {
        format!("bytes={}-{}", self.start, self.end - 1)
    }
}

impl From<Range<u64>> for ByteRange {
    fn from(range: Range<u64>) -> Self {
        Self::new(range.start, range.end)
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn uris_in_every_form() {
        let cases = [
            ("s3://b/k/x", Scheme::S3, "b", "k/x"),
            ("s3://b", Scheme::S3, "b", ""),
            ("s3://b//k", Scheme::S3, "b", "/k"),
            (
                "s3://arn:aws:s3:us-west-2:123456789012:accesspoint/ap/k/x",
                Scheme::S3,
                "arn:aws:s3:us-west-2:123456789012:accesspoint/ap",
                "k/x",
            ),
            (
                "s3://arn:aws:s3:us-west-2:123456789012:accesspoint:ap/k",
                Scheme::S3,
                "arn:aws:s3:us-west-2:123456789012:accesspoint:ap",
                "k",
            ),
            ("file:///tmp/x", Scheme::File, "", "/tmp/x"),
            ("./data", Scheme::File, "", "./data"),
            ("memory://m/a", Scheme::Memory, "m", "a"),
        ];
        for (text, scheme, bucket, key) in cases {
            let uri: ObjectUri = text.parse().unwrap();
            assert_eq!(
                (uri.scheme(), uri.bucket(), uri.key()),
                (scheme, bucket, key),
                "{text}"
            );
        }
    }

    #[test]
    fn unusable_uris_say_what_would_do() {
        for text in ["", "http://b/k", "s3://", "s3:///k", "file://"] {
            let error = text.parse::<ObjectUri>().unwrap_err().to_string();
            assert!(error.contains("use "), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn s3_uris_print_as_they_parse(bucket in "[a-z0-9.-]{3,20}", key in ".*") {
            let uri = ObjectUri::s3(bucket, key);
            prop_assert_eq!(uri.to_string().parse::<ObjectUri>().unwrap(), uri);
        }
    }
}
