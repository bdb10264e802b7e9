//! What is there: objects and prefixes.

use std::sync::Mutex;
use std::time::SystemTime;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use standpipe::checksum::ChecksumAlgorithm;
use standpipe::client::{Depth, ListEntry};
use standpipe::error::Error;
use standpipe::input::{Source, manifest_objects};
use standpipe::object::{ObjectId, ObjectMeta, ObjectUri};

use crate::config::Config;
use crate::engine::Engine;
use crate::error::to_py;
use crate::owned::Owned;
use crate::stream::{schemes, sources};
use crate::wait::wait;

/// What a listing says of an object, or of a common prefix.
///
/// It pickles. Given to `standpipe.stream` in place of a URI, it is read without another look at the listing, and is just
/// this version of the object.
#[pyclass(frozen, module = "standpipe._standpipe")]
#[derive(Debug)]
pub(crate) struct ObjectInfo {
    meta: ObjectMeta,
    is_prefix: bool,
}

impl ObjectInfo {
    fn object(meta: ObjectMeta) -> Self {
        Self {
            meta,
            is_prefix: false,
        }
    }

    fn prefix(uri: ObjectUri) -> Self {
        let meta = ObjectMeta {
            id: ObjectId::unpinned(uri),
            size_bytes: 0,
            last_modified: None,
            checksum_algorithm: None,
            checksum: None,
        };
        Self {
            meta,
            is_prefix: true,
        }
    }

    /// What is to be read; a prefix is nothing that could be.
    pub(crate) fn meta(&self, py: Python<'_>) -> PyResult<ObjectMeta> {
        match self.is_prefix {
            false => Ok(self.meta.clone()),
            true => Err(crate::error::config(
                py,
                &self.uri(),
                "is a prefix: list what is below it",
            )),
        }
    }
}

#[pymethods]
impl ObjectInfo {
    #[new]
    #[pyo3(signature = (uri, *, size, etag=None, last_modified=None, checksum_algorithm=None, is_prefix=false))]
    fn new(
        py: Python<'_>,
        uri: &str,
        size: u64,
        etag: Option<String>,
        last_modified: Option<SystemTime>,
        checksum_algorithm: Option<&str>,
        is_prefix: bool,
    ) -> PyResult<Self> {
        let uri: ObjectUri = uri.parse().map_err(|error| to_py(py, &error))?;
        let id = ObjectId {
            etag: etag.map(Into::into),
            size_bytes: (!is_prefix).then_some(size),
            ..ObjectId::unpinned(uri)
        };
        let meta = ObjectMeta {
            id,
            size_bytes: size,
            last_modified,
            checksum_algorithm: checksum_algorithm.and_then(ChecksumAlgorithm::from_name),
            checksum: None,
        };
        Ok(Self { meta, is_prefix })
    }

    fn __getnewargs_ex__<'py>(&self, py: Python<'py>) -> PyResult<((String,), Bound<'py, PyDict>)> {
        let given = PyDict::new(py);
        given.set_item("size", self.size())?;
        given.set_item("etag", self.etag())?;
        given.set_item("last_modified", self.last_modified())?;
        given.set_item("checksum_algorithm", self.checksum_algorithm())?;
        given.set_item("is_prefix", self.is_prefix)?;
        Ok(((self.uri(),), given))
    }

    /// Its address; a prefix's ends in `/`.
    #[getter]
    fn uri(&self) -> String {
        self.meta.id.uri.to_string()
    }

    /// Its bucket; empty for local files.
    #[getter]
    fn bucket(&self) -> &str {
        self.meta.id.uri.bucket()
    }

    /// Its key, or the path of a local file.
    #[getter]
    fn key(&self) -> &str {
        self.meta.id.uri.key()
    }

    /// Its length in bytes; 0 of a prefix.
    #[getter]
    fn size(&self) -> u64 {
        self.meta.size_bytes
    }

    /// Its ETag, quotes included.
    #[getter]
    fn etag(&self) -> Option<&str> {
        self.meta.id.etag.as_deref()
    }

    /// When it was last written, in UTC.
    #[getter]
    fn last_modified(&self) -> Option<SystemTime> {
        self.meta.last_modified
    }

    /// The CRC that S3 keeps over all of it: `CRC64NVME`, `CRC32C` or `CRC32`.
    #[getter]
    fn checksum_algorithm(&self) -> Option<&'static str> {
        self.meta
            .checksum_algorithm
            .map(|algorithm| match algorithm {
                ChecksumAlgorithm::Crc32 => "CRC32",
                ChecksumAlgorithm::Crc32c => "CRC32C",
                ChecksumAlgorithm::Crc64Nvme => "CRC64NVME",
            })
    }

    /// Whether it is the common prefix of other objects (`recursive=False`).
    #[getter]
    fn is_prefix(&self) -> bool {
        self.is_prefix
    }

    fn __repr__(&self) -> String {
        match self.is_prefix {
            true => format!("<ObjectInfo {}>", self.uri()),
            false => format!("<ObjectInfo {} {} bytes>", self.uri(), self.size()),
        }
    }
}

/// Lists what `uris` stand for; with `recursive`, all objects, as they would be read.
#[pyfunction]
pub(crate) fn list_objects(
    py: Python<'_>,
    config: &Config,
    uris: Vec<String>,
    recursive: bool,
) -> PyResult<Listing> {
    let sources = sources(py, &uris)?;
    let engine = Engine::get(py, config, &schemes(&sources))?;
    let client = engine.client.clone();
    let entries = match recursive {
        true => Source::objects_of(sources, &client)
            .map(|meta| meta.map(ListEntry::Object))
            .boxed(),
        false => stream::iter(sources)
            .flat_map(|source: Source| stream::iter(source.uris()))
            .flat_map(move |uri| match uri {
                Ok(uri) => client.list(&uri, Depth::OneLevel),
                Err(error) => stream::iter([Err(error)]).boxed(),
            })
            .boxed(),
    };
    Ok(Listing(Owned::new(Mutex::new(entries))))
}

/// The objects of a SageMaker manifest (`ManifestFile`), in its order; one HEAD each.
#[pyfunction]
pub(crate) fn list_manifest(py: Python<'_>, config: &Config, uri: &str) -> PyResult<Listing> {
    let uri: ObjectUri = uri.parse().map_err(|error| to_py(py, &error))?;
    let engine = Engine::get(py, config, &[uri.scheme()])?;
    let client = engine.client.clone();
    let (_, objects) = wait(py, async { manifest_objects(&client, &uri).await })?;
    let entries = objects.map(|meta| meta.map(ListEntry::Object)).boxed();
    Ok(Listing(Owned::new(Mutex::new(entries))))
}

/// What is known of one object: one HEAD.
#[pyfunction]
pub(crate) fn stat_object(py: Python<'_>, config: &Config, uri: &str) -> PyResult<ObjectInfo> {
    let uri: ObjectUri = uri.parse().map_err(|error| to_py(py, &error))?;
    let engine = Engine::get(py, config, &[uri.scheme()])?;
    let meta = wait(py, engine.client.head(&uri))?;
    Ok(ObjectInfo::object(meta))
}

/// An iterator of `ObjectInfo`s: a page of a thousand at a time is asked for, as it is read.
#[pyclass(frozen, module = "standpipe")]
pub(crate) struct Listing(Owned<Mutex<BoxStream<'static, Result<ListEntry, Error>>>>);

#[pymethods]
impl Listing {
    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<ObjectInfo>> {
        let entries = self.0.get(py, "this listing")?;
        let mut entries = entries
            .try_lock()
            .map_err(|_| PyRuntimeError::new_err("the listing is being read by another thread"))?;
        let entries = &mut *entries;
        let next = wait(py, async { entries.next().await.transpose() })?;
        Ok(next.map(|entry| match entry {
            ListEntry::Object(meta) => ObjectInfo::object(meta),
            ListEntry::Prefix(uri) => ObjectInfo::prefix(uri),
        }))
    }
}
