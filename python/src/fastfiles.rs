//! FastFile mode's files by calls: names, bytes, look-ahead and cache without a mount.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use standpipe::error::Error;
use standpipe::fastfile::files as fast;
use standpipe::object::ObjectUri;

use crate::config::Config;
use crate::engine::{Engine, reads};
use crate::error::to_py;
use crate::file::{ObjectHandle, Reads};
use crate::owned::Owned;
use crate::wait::{wait, wait_for};

/// The files below a prefix, which are there before they are downloaded.
///
/// It may cross a fork and a pickle: what it was opened with goes along, and the process that reads opens anew.
#[pyclass(frozen, module = "standpipe._standpipe")]
#[derive(Debug)]
pub(crate) struct FastFiles {
    config: Config,
    uri: ObjectUri,
    /// The open files of the process that read last. Held for moments, and with the GIL: no fork finds it locked.
    opened: Mutex<Option<Owned<fast::FastFiles>>>,
}

/// A file or folder below the prefix.
#[pyclass(frozen, get_all, module = "standpipe")]
#[derive(Debug)]
pub(crate) struct Entry {
    /// Its path below the prefix.
    path: String,
    /// Whether it is a folder.
    is_dir: bool,
    /// The object's length in bytes; 0 for folders.
    size: u64,
    /// The object's date, in UTC.
    last_modified: SystemTime,
    /// Its address; a folder's ends in `/`.
    uri: String,
    /// The object's ETag, quotes included.
    etag: Option<String>,
}

impl From<fast::Entry> for Entry {
    fn from(entry: fast::Entry) -> Self {
        Self {
            path: entry.path,
            is_dir: entry.is_directory,
            size: entry.size_bytes,
            last_modified: entry.modified,
            uri: entry.uri.to_string(),
            etag: entry.etag.as_deref().map(str::to_owned),
        }
    }
}

#[pymethods]
impl Entry {
    fn __repr__(&self) -> String {
        let kind = if self.is_dir { "folder" } else { "file" };
        format!("<Entry {kind} {:?}>", self.path)
    }
}

#[pymethods]
impl FastFiles {
    #[new]
    fn new(py: Python<'_>, config: &Config, uri: &str) -> PyResult<Self> {
        Ok(Self {
            config: config.clone(),
            uri: uri.parse().map_err(|error| to_py(py, &error))?,
            opened: Mutex::default(),
        })
    }

    fn __getnewargs__(&self) -> (Config, String) {
        (self.config.clone(), self.uri.to_string())
    }

    #[getter]
    fn uri(&self) -> String {
        self.uri.to_string()
    }

    /// What is in a folder as the listing arrives; with `deep`, everything below it.
    fn entries(&self, py: Python<'_>, folder: PathBuf, deep: bool) -> PyResult<Entries> {
        let files = self.opened(py)?;
        // Decided by the listing so far: after that, nothing below waits.
        wait(py, files.stat_async(&folder))?;
        let entries = py.detach(|| match deep {
            true => files.walk(&folder),
            false => files.list(&folder),
        });
        Ok(Entries(Owned::new(Mutex::new(
            entries.map_err(|error| io_to_py(py, error))?,
        ))))
    }

    fn stat(&self, py: Python<'_>, path: PathBuf) -> PyResult<Entry> {
        let files = self.opened(py)?;
        wait(py, files.stat_async(&path)).map(Entry::from)
    }

    fn open(&self, py: Python<'_>, path: PathBuf) -> PyResult<ObjectHandle> {
        let files = self.opened(py)?;
        let file = self.open_fast(py, &files, &path)?;
        let meta = file.object().clone();
        Ok(ObjectHandle::new(Reads::Fast(Box::new(file)), meta))
    }

    /// Says which files will be read, in this order.
    fn prefetch(&self, py: Python<'_>, paths: Vec<PathBuf>) -> PyResult<()> {
        let files = self.opened(py)?;
        for path in &paths {
            wait(py, files.stat_async(path))?;
        }
        py.detach(|| files.prefetch(&paths))
            .map_err(|error| io_to_py(py, error))
    }

    /// All of a file on the local disk.
    fn local(&self, py: Python<'_>, path: PathBuf) -> PyResult<LocalFile> {
        let files = self.opened(py)?;
        let file = self.open_fast(py, &files, &path)?;
        let local = wait(py, async { file.path_async().await })?;
        Ok(LocalFile(Owned::new(local)))
    }

    fn __repr__(&self) -> String {
        format!("<FastFiles {}>", self.uri)
    }
}

impl FastFiles {
    fn open_fast(
        &self,
        py: Python<'_>,
        files: &fast::FastFiles,
        path: &Path,
    ) -> PyResult<fast::FastFile> {
        let opened = wait_for(py, files.open_file_async(path))?;
        opened.map_err(|error| io_to_py(py, error))
    }

    /// The open files of this process; opened if there are none.
    fn opened(&self, py: Python<'_>) -> PyResult<fast::FastFiles> {
        if let Some(known) = self.known(py) {
            return Ok(known);
        }
        let engine = Engine::get(py, &self.config, &[self.uri.scheme()])?;
        let builder = fast::FastFiles::builder(self.uri.clone())
            .client(engine.client.clone())
            .reads(reads(&engine.config, false));
        let builder = match self.config.cache(engine.endpoint_url.as_deref()) {
            Some(cache) => builder.cache(cache),
            None => builder,
        };
        let made = wait(py, builder.open_async())?;
        if let Some(known) = self.known(py) {
            return Ok(known);
        }
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        *opened = Some(Owned::new(made.clone()));
        Ok(made)
    }

    fn known(&self, py: Python<'_>) -> Option<fast::FastFiles> {
        let opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        let owned = opened.as_ref().filter(|owned| owned.is_ours())?;
        owned.get(py, "these files").ok().cloned()
    }
}

/// Around each is one of ours, which says more.
fn io_to_py(py: Python<'_>, error: std::io::Error) -> PyErr {
    match error.downcast::<Error>() {
        Ok(ours) => to_py(py, &ours),
        Err(other) => other.into(),
    }
}

/// An iterator of entries, which waits for what the listing has not brought yet.
#[pyclass(frozen, module = "standpipe._standpipe")]
#[derive(Debug)]
pub(crate) struct Entries(Owned<Mutex<fast::Entries>>);

#[pymethods]
impl Entries {
    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Entry>> {
        let entries = self.0.get(py, "this listing")?;
        let mut entries = entries
            .try_lock()
            .map_err(|_| PyRuntimeError::new_err("the listing is being read by another thread"))?;
        let next = wait(py, entries.next_entry())?;
        Ok(next.map(Entry::from))
    }
}

/// A whole file on the local disk. As long as it lives, the cache does not evict it. Don't write to it.
#[pyclass(frozen, module = "standpipe")]
#[derive(Debug)]
pub(crate) struct LocalFile(Owned<fast::LocalFile>);

#[pymethods]
impl LocalFile {
    /// Where it is.
    #[getter]
    fn path(&self, py: Python<'_>) -> PyResult<PathBuf> {
        Ok(self.0.get(py, "this file")?.path().to_owned())
    }

    fn __fspath__(&self, py: Python<'_>) -> PyResult<String> {
        let path = self.path(py)?;
        Ok(path.to_string_lossy().into_owned())
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        Ok(format!("<LocalFile {}>", self.path(py)?.display()))
    }
}
