//! Objects in memory, for tests, examples and simulations.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt};

use super::{Depth, GetMeta, ListEntry, ObjectClient};
use crate::buffer::PartBuf;
use crate::checksum::{Checksum, ChecksumAlgorithm};
use crate::error::{Answer, Error, Result};
use crate::object::{ByteRange, ObjectId, ObjectMeta, ObjectUri};

/// Serves objects that were [`put`](Self::put) into it. Clones share the objects.
#[derive(Debug, Clone, Default)]
pub struct MemoryClient {
    objects: Arc<Mutex<BTreeMap<ObjectUri, Stored>>>,
}

#[derive(Debug, Clone)]
struct Stored {
    bytes: Bytes,
    checksum: Checksum,
    etag: Arc<str>,
}

impl MemoryClient {
    /// Stores an object; an older one at `uri` is replaced, and its readers will see
    /// [`Error::Changed`] unless the bytes are the same.
    pub fn put(&self, uri: ObjectUri, bytes: impl Into<Bytes>) {
        let bytes = bytes.into();
        let checksum = Checksum::of(ChecksumAlgorithm::Crc64Nvme, &bytes);
        let etag = format!("\"{:016x}-{}\"", checksum.value, bytes.len()).into();
        self.lock().insert(
            uri,
            Stored {
                bytes,
                checksum,
                etag,
            },
        );
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ObjectUri, Stored>> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, uri: &ObjectUri) -> Result<Stored> {
        self.lock().get(uri).cloned().ok_or_else(|| {
            let answer = Answer {
                message: Some("no such object in memory".into()),
                ..Answer::default()
            };
            Error::NotFound {
                uri: uri.to_string(),
                offset: None,
                answer: Box::new(answer),
            }
        })
    }

    fn read(&self, id: &ObjectId, range: ByteRange, into: &mut PartBuf) -> Result<GetMeta> {
        let stored = self.find(&id.uri)?;
        if let Some(expected) = id.etag.as_ref().filter(|etag| **etag != stored.etag) {
            return Err(Error::Changed {
                uri: id.uri.to_string(),
                offset: range.start + into.filled().len() as u64,
                expected: expected.to_string(),
                found: stored.etag.to_string(),
                answer: Box::default(),
            });
        }
        let size_bytes = stored.bytes.len() as u64;
        let wanted = range.skip(into.filled().len() as u64);
        if wanted.start > size_bytes || (id.size_bytes.is_some() && wanted.end > size_bytes) {
            return Err(Error::RangeNotSatisfiable {
                uri: id.uri.to_string(),
                offset: wanted.start,
                answer: Answer::default(),
            });
        }
        into.put(&stored.bytes[wanted.start as usize..wanted.end.min(size_bytes) as usize]);
        Ok(GetMeta {
            etag: Some(stored.etag),
            size_bytes,
            checksum: Some(stored.checksum),
        })
    }
}

impl Stored {
    fn meta(&self, uri: &ObjectUri) -> ObjectMeta {
        let size_bytes = self.bytes.len() as u64;
        ObjectMeta {
            id: ObjectId {
                uri: uri.clone(),
                etag: Some(self.etag.clone()),
                version_id: None,
                size_bytes: Some(size_bytes),
            },
            size_bytes,
            last_modified: None,
            checksum_algorithm: Some(self.checksum.algorithm),
            checksum: Some(self.checksum),
        }
    }
}

impl ObjectClient for MemoryClient {
    fn head<'a>(&'a self, uri: &'a ObjectUri) -> BoxFuture<'a, Result<ObjectMeta>> {
        std::future::ready(self.find(uri).map(|stored| stored.meta(uri))).boxed()
    }

    fn get<'a>(
        &'a self,
        id: &'a ObjectId,
        range: ByteRange,
        into: &'a mut PartBuf,
    ) -> BoxFuture<'a, Result<GetMeta>> {
        async move { self.read(id, range, into) }.boxed()
    }

    fn list(&self, prefix: &ObjectUri, depth: Depth) -> BoxStream<'static, Result<ListEntry>> {
        let mut entries: Vec<ListEntry> = Vec::new();
        for (uri, stored) in self.lock().iter().filter(|(uri, _)| is_under(uri, prefix)) {
            let rest = &uri.key()[prefix.key().len()..];
            let entry = match rest.find('/').filter(|_| depth == Depth::OneLevel) {
                Some(at) => {
                    ListEntry::Prefix(prefix.with_key(&uri.key()[..prefix.key().len() + at + 1]))
                }
                None => ListEntry::Object(stored.meta(uri)),
            };
            if entries.last() != Some(&entry) {
                entries.push(entry);
            }
        }
        stream::iter(entries.into_iter().map(Ok)).boxed()
    }

    fn list_after(
        &self,
        prefix: &ObjectUri,
        after: &str,
    ) -> Option<BoxStream<'static, Result<ListEntry>>> {
        let objects = self.lock();
        let behind = objects
            .iter()
            .filter(|(uri, _)| is_under(uri, prefix) && uri.key() > after);
        let entries: Vec<_> = behind
            .map(|(uri, stored)| Ok(ListEntry::Object(stored.meta(uri))))
            .collect();
        Some(stream::iter(entries).boxed())
    }
}

fn is_under(uri: &ObjectUri, prefix: &ObjectUri) -> bool {
    (uri.scheme(), uri.bucket()) == (prefix.scheme(), prefix.bucket())
        && uri.key().starts_with(prefix.key())
}
