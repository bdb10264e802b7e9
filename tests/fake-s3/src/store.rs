//! Buckets, keys and versions: everything that the server knows.
//!
//! A version never changes after it was put; replacing an object adds one. Readers hold an `Arc` of the version that
//! they began with, so a download that is under way keeps its bytes, as in S3.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, RwLock};

use md5::{Digest, Md5};

use crate::checksum::{Algorithm, ChecksumKind};
use crate::content::{Content, Memory, mix};
use crate::date;

/// Above this size an ETag is made of the CRC and the length: MD5 runs at half a gigabyte per second.
const MD5_BYTES: u64 = 8 << 20;

/// How a bucket differs from an ordinary one.
#[derive(Debug, Clone, Default)]
pub struct BucketOptions {
    /// The region it lives in; the server's, if `None`.
    pub region: Option<String>,
    /// Requests without `x-amz-request-payer: requester` get 403.
    pub requester_pays: bool,
    /// Unsigned requests are served even if the server demands signatures.
    pub public: bool,
}

/// What is stored with an object beside its bytes.
#[derive(Debug, Clone, Default)]
pub struct PutOptions {
    /// The checksum S3 keeps; CRC64NVME by default.
    pub algorithm: Algorithm,
    /// Full-object or composite; composite needs `part_bytes`.
    pub kind: ChecksumKind,
    /// No checksum at all, as in objects from before 2024.
    pub no_checksum: bool,
    /// As if uploaded in parts of this size: the ETag ends in `-N` and `partNumber` works.
    pub part_bytes: Option<u64>,
    /// `Content-Type`; `binary/octet-stream` if `None`.
    pub content_type: Option<String>,
    /// `Content-Encoding`.
    pub content_encoding: Option<String>,
    /// User metadata: names without `x-amz-meta-`.
    pub metadata: Vec<(String, String)>,
    /// Storage class; `STANDARD` if `None`.
    pub storage_class: Option<String>,
    /// The base64 MD5 of the customer's key (SSE-C): reads must present it.
    pub customer_key_md5: Option<String>,
    /// An ETag to use in place of the computed one, without quotes.
    pub etag: Option<String>,
}

/// One version of an object, or a delete marker.
#[derive(Debug)]
pub(crate) struct Version {
    pub(crate) id: String,
    /// With its quotes.
    pub(crate) etag: String,
    /// Seconds since 1970.
    pub(crate) modified: i64,
    /// `Last-Modified`, formatted once: it goes out with every request.
    pub(crate) modified_http: String,
    pub(crate) content: Content,
    /// Sizes of the parts; empty if the object was put in one piece.
    pub(crate) parts: Vec<u64>,
    pub(crate) options: PutOptions,
    pub(crate) delete_marker: bool,
    checksum: OnceLock<String>,
}

impl Version {
    /// The header value of the object's checksum, computed when first asked for.
    pub(crate) fn checksum(&self) -> Option<&str> {
        if self.options.no_checksum {
            return None;
        }
        Some(self.checksum.get_or_init(|| {
            let algorithm = self.options.algorithm;
            match self.options.kind {
                ChecksumKind::FullObject => {
                    algorithm.encode(algorithm.of_content(&self.content, 0..self.content.len()))
                }
                ChecksumKind::Composite => {
                    let parts: Vec<u64> = (1..=self.parts.len().max(1))
                        .filter_map(|number| self.part(number))
                        .map(|range| algorithm.of_content(&self.content, range))
                        .collect();
                    algorithm.composite(&parts)
                }
            }
        }))
    }

    /// The bytes of part `number`, counted from 1. An object in one piece is its own only part.
    pub(crate) fn part(&self, number: usize) -> Option<Range<u64>> {
        if self.parts.is_empty() {
            return (number == 1).then(|| 0..self.content.len());
        }
        let size = *self.parts.get(number.checked_sub(1)?)?;
        let start = self.parts[..number - 1].iter().sum();
        Some(start..start + size)
    }

    /// Whether `range` is exactly one part of a multipart object.
    pub(crate) fn is_part(&self, range: &Range<u64>) -> bool {
        (1..=self.parts.len()).any(|number| self.part(number).as_ref() == Some(range))
    }
}

/// An upload in parts that is not complete.
#[derive(Debug)]
pub(crate) struct Upload {
    pub(crate) key: String,
    pub(crate) options: PutOptions,
    /// Content and ETag (without quotes) by part number.
    pub(crate) parts: BTreeMap<u32, (Content, String)>,
}

/// A bucket.
#[derive(Debug)]
pub(crate) struct Bucket {
    pub(crate) name: String,
    pub(crate) created: i64,
    pub(crate) options: BucketOptions,
    /// Versions of each key, newest last; never empty.
    objects: RwLock<BTreeMap<String, Vec<Arc<Version>>>>,
    uploads: Mutex<HashMap<String, Upload>>,
}

impl Bucket {
    /// The newest version, unless it is a delete marker.
    pub(crate) fn newest(&self, key: &str) -> Option<Arc<Version>> {
        let objects = self
            .objects
            .read()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        objects
            .get(key)?
            .last()
            .filter(|version| !version.delete_marker)
            .cloned()
    }

    /// A version by id.
    pub(crate) fn version(&self, key: &str, id: &str) -> Option<Arc<Version>> {
        let objects = self
            .objects
            .read()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        objects
            .get(key)?
            .iter()
            .find(|version| version.id == id)
            .cloned()
    }

    /// Calls `f` with live objects from `from` on, in key order, until it returns the key to jump to, or `None` to stop.
    pub(crate) fn walk(&self, from: Jump, mut f: impl FnMut(&str, &Version) -> Option<Jump>) {
        let objects = self
            .objects
            .read()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut next = Some(from);
        while let Some(jump) = next.take() {
            let range = objects.range::<str, _>(jump.bounds());
            for (key, versions) in range {
                let Some(version) = versions.last().filter(|version| !version.delete_marker) else {
                    continue;
                };
                match f(key, version) {
                    Some(Jump::Next) => {}
                    other => {
                        next = other;
                        break;
                    }
                }
            }
        }
    }

    /// Adds a version.
    pub(crate) fn put(&self, key: &str, version: Version) -> Arc<Version> {
        let version = Arc::new(version);
        let mut objects = self
            .objects
            .write()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        objects
            .entry(key.to_owned())
            .or_default()
            .push(Arc::clone(&version));
        version
    }

    /// Removes one version for good.
    pub(crate) fn remove_version(&self, key: &str, id: &str) {
        let mut objects = self
            .objects
            .write()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(versions) = objects.get_mut(key) {
            versions.retain(|version| version.id != id);
            if versions.is_empty() {
                objects.remove(key);
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.objects
            .read()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .is_empty()
    }

    pub(crate) fn uploads(&self) -> MutexGuard<'_, HashMap<String, Upload>> {
        self.uploads
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// A directory bucket of S3 Express, by its name, as in S3.
    pub(crate) fn is_express(&self) -> bool {
        crate::auth::service(&self.name) == "s3express"
    }
}

/// Where [`Bucket::walk`] goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Jump {
    /// At the key that follows.
    Next,
    /// At this key or the first above it.
    From(String),
    /// At the first key above this one.
    After(String),
}

impl Jump {
    fn bounds(&self) -> (std::ops::Bound<&str>, std::ops::Bound<&str>) {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        match self {
            Jump::Next => (Unbounded, Unbounded),
            Jump::From(key) => (Included(key), Unbounded),
            Jump::After(key) => (Excluded(key), Unbounded),
        }
    }
}

/// All buckets.
#[derive(Debug, Default)]
pub(crate) struct Store {
    pub(crate) memory: Memory,
    buckets: RwLock<BTreeMap<String, Arc<Bucket>>>,
    serial: AtomicU64,
}

impl Store {
    pub(crate) fn new(memory: Memory) -> Store {
        Store {
            memory,
            ..Store::default()
        }
    }

    pub(crate) fn bucket(&self, name: &str) -> Option<Arc<Bucket>> {
        self.buckets
            .read()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .get(name)
            .cloned()
    }

    pub(crate) fn buckets(&self) -> Vec<Arc<Bucket>> {
        self.buckets
            .read()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .values()
            .cloned()
            .collect()
    }

    /// Makes a bucket; one that exists keeps its objects and gets new options.
    pub(crate) fn create_bucket(&self, name: &str, options: BucketOptions) -> Arc<Bucket> {
        let mut buckets = self
            .buckets
            .write()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let objects = match buckets.get(name) {
            Some(old) => old
                .objects
                .read()
                .unwrap_or_else(|poisoned| poisoned.into_inner())
                .clone(),
            None => BTreeMap::new(),
        };
        let bucket = Arc::new(Bucket {
            name: name.to_owned(),
            created: date::now(),
            options,
            objects: RwLock::new(objects),
            uploads: Mutex::default(),
        });
        buckets.insert(name.to_owned(), Arc::clone(&bucket));
        bucket
    }

    /// The bucket of that name, made if need be.
    pub(crate) fn ensure_bucket(&self, name: &str) -> Arc<Bucket> {
        self.bucket(name)
            .unwrap_or_else(|| self.create_bucket(name, BucketOptions::default()))
    }

    pub(crate) fn delete_bucket(&self, name: &str) {
        self.buckets
            .write()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .remove(name);
    }

    /// Puts real bytes.
    pub(crate) fn put(
        &self,
        bucket: &Bucket,
        key: &str,
        bytes: &[u8],
        options: PutOptions,
    ) -> io::Result<Arc<Version>> {
        let content = self.memory.store(bytes)?;
        Ok(self.put_content(bucket, key, content, options))
    }

    /// Puts computed bytes. Their ETag is made of seed and size, not of the bytes.
    pub(crate) fn put_synthetic(
        &self,
        bucket: &Bucket,
        key: &str,
        len: u64,
        seed: u64,
        mut options: PutOptions,
    ) -> io::Result<Arc<Version>> {
        let content = Content::synthetic(seed, len, &self.memory)?;
        let etag = format!("{:016x}{:016x}", mix(seed ^ 0x5eed), mix(seed ^ len));
        options.etag.get_or_insert(match options.part_bytes {
            Some(part) => format!("{etag}-{}", len.div_ceil(part.max(1)).max(1)),
            None => etag,
        });
        Ok(self.put_content(bucket, key, content, options))
    }

    pub(crate) fn put_content(
        &self,
        bucket: &Bucket,
        key: &str,
        content: Content,
        options: PutOptions,
    ) -> Arc<Version> {
        let parts = split(content.len(), options.part_bytes);
        self.put_parts(bucket, key, content, parts, options)
    }

    /// Puts a content that consists of parts of these sizes.
    pub(crate) fn put_parts(
        &self,
        bucket: &Bucket,
        key: &str,
        content: Content,
        parts: Vec<u64>,
        options: PutOptions,
    ) -> Arc<Version> {
        let etag = options
            .etag
            .clone()
            .unwrap_or_else(|| etag(&content, &parts));
        bucket.put(key, self.version(content, parts, options, etag, false))
    }

    /// Hides a key behind a delete marker and returns the marker's version id.
    pub(crate) fn delete(&self, bucket: &Bucket, key: &str) -> io::Result<Option<String>> {
        if bucket.newest(key).is_none() {
            return Ok(None);
        }
        let content = self.memory.store(&[])?;
        let marker = self.version(
            content,
            Vec::new(),
            PutOptions::default(),
            String::new(),
            true,
        );
        Ok(Some(bucket.put(key, marker).id.clone()))
    }

    fn version(
        &self,
        content: Content,
        parts: Vec<u64>,
        options: PutOptions,
        etag: String,
        marker: bool,
    ) -> Version {
        let modified = date::now();
        Version {
            id: self.unique(),
            etag: format!("\"{etag}\""),
            modified,
            modified_http: date::http(modified),
            content,
            parts,
            options,
            delete_marker: marker,
            checksum: OnceLock::new(),
        }
    }

    /// An opaque name that was never given out before.
    pub(crate) fn unique(&self) -> String {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        format!("{:016x}{serial:016x}", mix(serial))
    }
}

/// Sizes of the parts of `len` bytes; none without a part size.
fn split(len: u64, part_bytes: Option<u64>) -> Vec<u64> {
    let Some(part) = part_bytes.filter(|part| *part > 0) else {
        return Vec::new();
    };
    (0..len.div_ceil(part).max(1))
        .map(|index| part.min(len - index * part))
        .collect()
}

fn etag(content: &Content, parts: &[u64]) -> String {
    if parts.is_empty() {
        return hex(&hash(content, 0..content.len()));
    }
    let mut all = Md5::new();
    let mut start = 0;
    for part in parts {
        all.update(hash(content, start..start + part));
        start += part;
    }
    format!("{}-{}", hex(&all.finalize()), parts.len())
}

/// MD5 of the bytes; of their CRC and length if they are many.
fn hash(content: &Content, range: Range<u64>) -> [u8; 16] {
    let mut md5 = Md5::new();
    if content.len() > MD5_BYTES {
        md5.update(
            Algorithm::Crc64Nvme
                .of_content(content, range.clone())
                .to_le_bytes(),
        );
        md5.update((range.end - range.start).to_le_bytes());
    } else {
        content.for_each(range, |slice| md5.update(slice));
    }
    md5.finalize().into()
}

/// The MD5 of some bytes as lower-case hex, as an ETag shows it.
pub(crate) fn md5_hex(bytes: &[u8]) -> String {
    hex(&Md5::digest(bytes))
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|byte| {
            [
                DIGITS[usize::from(byte >> 4)],
                DIGITS[usize::from(byte & 15)],
            ]
        })
        .map(char::from)
        .collect()
}
