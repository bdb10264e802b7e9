//! One object, read at any offset: what `standpipe.open` and `FastFiles.open` make file objects of.

#![expect(
    unsafe_code,
    reason = "bytes are copied into a buffer of Python's without the GIL"
)]

use std::time::SystemTime;

use bytes::Bytes;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyBufferError, PyMemoryError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use standpipe::buffer::PartBuf;
use standpipe::error::Error;
use standpipe::fastfile::FastFile;
use standpipe::fastfile::read::{OpenFile, Pieces};
use standpipe::object::{ByteRange, ObjectId, ObjectMeta, ObjectUri};

use crate::config::Config;
use crate::engine::Engine;
use crate::error::to_py;
use crate::listing::ObjectInfo;
use crate::owned::Owned;
use crate::wait::wait;

/// Opens one object: one HEAD, which tells its size and version.
#[pyfunction]
pub(crate) fn open_object(py: Python<'_>, config: &Config, uri: &str) -> PyResult<ObjectHandle> {
    let uri: ObjectUri = uri.parse().map_err(|error| to_py(py, &error))?;
    let engine = Engine::get(py, config, &[uri.scheme()])?;
    let client = engine.reads().clone();
    let meta: ObjectMeta = wait(py, async { client.head(&uri).await })?;
    let files = engine.files().map_err(|error| to_py(py, &error))?;
    let file = files
        .open(meta.id.clone())
        .map_err(|error| to_py(py, &error))?;
    Ok(ObjectHandle::new(Reads::Plain(Box::new(file)), meta))
}

/// The bytes of ranges (start, end) of just this version of an object, each as they are asked for and no more: for readers
/// that know what they need. Long ones are fetched in parts, side by side.
#[pyfunction]
pub(crate) fn read_ranges<'py>(
    py: Python<'py>,
    config: &Config,
    info: &ObjectInfo,
    ranges: Vec<(u64, u64)>,
) -> PyResult<Vec<Bound<'py, PyBytes>>> {
    let meta = info.meta(py)?;
    if let Some((start, end)) = ranges
        .iter()
        .find(|(start, end)| start > end || *end > meta.size_bytes)
    {
        let reason = format!(
            "{start} to {end} of {} bytes: no range of it",
            meta.size_bytes
        );
        return Err(to_py(py, &Error::config(meta.id.uri.to_string(), reason)));
    }
    let engine = Engine::get(py, config, &[meta.id.uri.scheme()])?;
    let (client, id) = (engine.reads().clone(), meta.id);
    let mut parts = Vec::new();
    for (number, (start, end)) in ranges.iter().enumerate() {
        for at in (*start..*end).step_by(engine.part_bytes()) {
            let range = ByteRange::new(at, (*end).min(at + engine.part_bytes() as u64));
            parts.push((number, range));
        }
    }
    let fetched: Vec<(usize, Bytes)> = wait(py, async {
        let (client, id) = (&client, &id);
        let fetch = |(number, range): (usize, ByteRange)| async move {
            let mut into = PartBuf::heap(range.len() as usize);
            client.get(id, range, &mut into).await?;
            Ok::<_, Error>((number, into.freeze()))
        };
        let parts: Vec<_> = parts.into_iter().map(fetch).collect();
        stream::iter(parts)
            .buffered(engine.concurrency())
            .try_collect()
            .await
    })?;
    let joined = |number: usize, (start, end): (u64, u64)| {
        PyBytes::new_with(py, (end - start) as usize, |into| {
            let mut filled = 0;
            for (_, part) in fetched.iter().filter(|(of, _)| *of == number) {
                into[filled..filled + part.len()].copy_from_slice(part);
                filled += part.len();
            }
            Ok(())
        })
    };
    let all = ranges.into_iter().enumerate();
    all.map(|(number, range)| joined(number, range)).collect()
}

/// An open object: reads at any offset, from any thread, any number at a time.
#[pyclass(frozen, module = "standpipe._standpipe")]
#[derive(Debug)]
pub(crate) struct ObjectHandle {
    reads: Owned<Reads>,
    meta: ObjectMeta,
}

/// How it was opened.
#[derive(Debug)]
pub(crate) enum Reads {
    Plain(Box<OpenFile>),
    Fast(Box<FastFile>),
}

impl Reads {
    async fn at(&self, offset: u64, len: usize) -> Result<Pieces, Error> {
        match self {
            Self::Plain(file) => file.read_at(offset, len).await,
            Self::Fast(file) => file.read_at_async(offset, len).await,
        }
    }

    fn slice_bytes(&self) -> usize {
        match self {
            Self::Plain(file) => file.slice_bytes(),
            Self::Fast(file) => file.slice_bytes(),
        }
    }

    fn prefetch(&self, ranges: &[ByteRange]) {
        match self {
            Self::Plain(file) => file.prefetch(ranges),
            Self::Fast(file) => file.prefetch(ranges),
        }
    }
}

impl ObjectHandle {
    pub(crate) fn new(reads: Reads, meta: ObjectMeta) -> Self {
        Self {
            reads: Owned::new(reads),
            meta,
        }
    }

    fn id(&self) -> &ObjectId {
        &self.meta.id
    }

    /// Fills memory from `offset` on, in slices, so that a long read takes no more of the budget than a short one; says
    /// how many bytes those were. An error behind some bytes is the next read's.
    fn read(&self, py: Python<'_>, target: &Target, offset: u64) -> PyResult<usize> {
        let reads = self.reads.get(py, "this file")?;
        let mut filled = 0;
        while filled < target.len {
            let wanted = reads.slice_bytes().min(target.len - filled);
            let pieces = match wait(py, reads.at(offset + filled as u64, wanted)) {
                Err(_) if filled > 0 => break,
                pieces => pieces?,
            };
            let n = py.detach(|| target.fill(filled, &pieces));
            filled += n;
            if n < wanted {
                break;
            }
        }
        Ok(filled)
    }
}

#[pymethods]
impl ObjectHandle {
    #[getter]
    fn uri(&self) -> String {
        self.id().uri.to_string()
    }

    #[getter]
    fn bucket(&self) -> &str {
        self.id().uri.bucket()
    }

    #[getter]
    fn key(&self) -> &str {
        self.id().uri.key()
    }

    #[getter]
    fn etag(&self) -> Option<&str> {
        self.id().etag.as_deref()
    }

    #[getter]
    fn size(&self) -> u64 {
        self.meta.size_bytes
    }

    #[getter]
    fn last_modified(&self) -> Option<SystemTime> {
        self.meta.last_modified
    }

    /// Fills a writable buffer from `offset` on; says how many bytes those were: fewer than there is room for only at
    /// the end, or before an error, which the next read from there gives.
    fn read_into(&self, py: Python<'_>, buffer: PyBuffer<u8>, offset: u64) -> PyResult<usize> {
        if buffer.readonly() || !buffer.is_c_contiguous() {
            return Err(PyBufferError::new_err(
                "a writable and contiguous buffer is needed",
            ));
        }
        let target = Target {
            start: buffer.buf_ptr().cast(),
            len: buffer.len_bytes(),
        };
        self.read(py, &target, offset)
    }

    /// Up to `size` bytes from `offset` on.
    fn read_at<'py>(
        &self,
        py: Python<'py>,
        offset: u64,
        size: u64,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let left = self.meta.size_bytes.saturating_sub(offset).min(size);
        let len = usize::try_from(left)
            .map_err(|_| PyMemoryError::new_err("more than the address space"))?;
        let mut filled = 0;
        let bytes = PyBytes::new_with(py, len, |into| {
            let target = Target {
                start: into.as_mut_ptr(),
                len,
            };
            filled = self.read(py, &target, offset)?;
            Ok(())
        })?;
        match filled < len {
            true => Ok(PyBytes::new(py, &bytes.as_bytes()[..filled])),
            false => Ok(bytes),
        }
    }

    /// Fetches ranges (start, end) before they are read, in this order, as memory allows.
    fn prefetch(&self, py: Python<'_>, ranges: Vec<(u64, u64)>) -> PyResult<()> {
        let reads = self.reads.get(py, "this file")?;
        let ranges: Vec<_> = ranges
            .into_iter()
            .map(|(start, end)| ByteRange::new(start, end))
            .collect();
        py.detach(|| reads.prefetch(&ranges));
        Ok(())
    }

    fn __repr__(&self) -> String {
        format!("<ObjectHandle {}>", self.id().uri)
    }
}

/// Memory of a Python buffer, for a thread without the GIL.
struct Target {
    start: *mut u8,
    len: usize,
}

// SAFETY: the memory stays where it is as long as the buffer is held, which outlives the copy. Other threads of the
// program may write to it meanwhile, as with `readinto` of every file: then what is in it is their mixture.
unsafe impl Send for Target {}
// SAFETY: the same.
unsafe impl Sync for Target {}

impl Target {
    /// Puts the pieces behind what is filled; says how many bytes they are.
    fn fill(&self, filled: usize, pieces: &Pieces) -> usize {
        // SAFETY: see above; the buffer said that it is writable, contiguous and this long, and its memory is initialised.
        let into = unsafe { std::slice::from_raw_parts_mut(self.start, self.len) };
        pieces.copy_to(&mut into[filled..])
    }
}
