//! Bytes that Python sees where the engine put them.
//!
//! The memory is lent: it is the engine's again when the last view of it is gone. See `stream` for what happens when
//! somebody keeps it all.

#![expect(
    unsafe_code,
    reason = "the buffer protocol fills a C struct with a pointer"
)]

use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use standpipe::object::{ObjectId, ObjectUri};

use crate::error::to_py;

/// A piece of an object, in order. It has the buffer protocol (read-only): `memoryview(chunk)`, `numpy.frombuffer(chunk)`
/// and `torch.frombuffer(chunk)` see its bytes without a copy, `bytes(chunk)` copies them.
///
/// Its memory is the engine's, and is reserved until the chunk and all views of it are gone, or `release` is called.
#[pyclass(frozen, module = "standpipe")]
#[derive(Debug)]
pub(crate) struct Chunk {
    object: Arc<ObjectId>,
    offset: u64,
    len: usize,
    ends_object: bool,
    pid: u32,
    held: Mutex<Held>,
}

#[derive(Debug)]
struct Held {
    /// `None` once it was released.
    bytes: Option<Bytes>,
    /// Views that were given out and not given back.
    views: usize,
}

impl Chunk {
    pub(crate) fn new(object: Arc<ObjectId>, offset: u64, bytes: Bytes, ends_object: bool) -> Self {
        Self {
            object,
            offset,
            len: bytes.len(),
            ends_object,
            pid: std::process::id(),
            held: Mutex::new(Held {
                bytes: Some(bytes),
                views: 0,
            }),
        }
    }

    /// Held for moments only, and never while the GIL is not: so no fork finds it locked.
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Of a forked child's copy the engine must not hear.
    fn let_go(&self, bytes: Option<Bytes>) {
        match self.pid == std::process::id() {
            true => drop(bytes),
            false => std::mem::forget(bytes),
        }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        let bytes = self.held().bytes.take();
        self.let_go(bytes);
    }
}

#[pymethods]
impl Chunk {
    /// A chunk of memory of its own: what a pickle is made into.
    #[new]
    #[pyo3(signature = (uri, data, *, offset=0, etag=None, object_size=None, ends_object=false))]
    fn made(
        py: Python<'_>,
        uri: &str,
        data: &[u8],
        offset: u64,
        etag: Option<String>,
        object_size: Option<u64>,
        ends_object: bool,
    ) -> PyResult<Self> {
        let uri: ObjectUri = uri.parse().map_err(|error| to_py(py, &error))?;
        let object = ObjectId {
            etag: etag.map(Into::into),
            size_bytes: object_size,
            ..ObjectId::unpinned(uri)
        };
        let bytes = Bytes::copy_from_slice(data);
        Ok(Self::new(Arc::new(object), offset, bytes, ends_object))
    }

    /// For pickle, by which samples leave the workers of a loader: its bytes, copied.
    fn __getnewargs_ex__<'py>(&self, py: Python<'py>) -> PyResult<NewArguments<'py>> {
        let given = PyDict::new(py);
        given.set_item("offset", self.offset)?;
        given.set_item("etag", self.etag())?;
        given.set_item("object_size", self.object_size())?;
        given.set_item("ends_object", self.ends_object)?;
        Ok(((self.uri(), self.__bytes__(py)?), given))
    }

    /// The object's address.
    #[getter]
    fn uri(&self) -> String {
        self.object.uri.to_string()
    }

    /// The object's bucket; empty for local files.
    #[getter]
    fn bucket(&self) -> &str {
        self.object.uri.bucket()
    }

    /// The object's key, or the path of a local file.
    #[getter]
    fn key(&self) -> &str {
        self.object.uri.key()
    }

    /// The ETag of the version that is read, quotes included.
    #[getter]
    fn etag(&self) -> Option<&str> {
        self.object.etag.as_deref()
    }

    /// The object's length in bytes, once it is known.
    #[getter]
    fn object_size(&self) -> Option<u64> {
        self.object.size_bytes
    }

    /// Where the chunk starts in the object, in bytes. Of a dataset's sample: where its record starts, header included, in
    /// what a compressed object holds.
    #[getter]
    fn offset(&self) -> u64 {
        self.offset
    }

    /// Whether it is the object's last one. An empty object is one empty chunk. False for a dataset's samples.
    #[getter]
    fn ends_object(&self) -> bool {
        self.ends_object
    }

    /// Gives the memory back now. Raises BufferError while views of it exist.
    fn release(&self) -> PyResult<()> {
        let mut held = self.held();
        if held.views > 0 {
            let reason = format!(
                "{} views of this chunk exist: release them first",
                held.views
            );
            return Err(PyBufferError::new_err(reason));
        }
        let bytes = held.bytes.take();
        drop(held);
        self.let_go(bytes);
        Ok(())
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __exit__(&self, _type: Py<PyAny>, _value: Py<PyAny>, _traceback: Py<PyAny>) -> PyResult<()> {
        self.release()
    }

    fn __len__(&self) -> usize {
        self.len
    }

    fn __bytes__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let bytes = self.held().bytes.clone().ok_or_else(released)?;
        let copy = PyBytes::new(py, &bytes);
        self.let_go(Some(bytes));
        Ok(copy)
    }

    /// For `torch.from_dlpack`, `numpy.from_dlpack` and others: its bytes as a read-only tensor, without a copy. NumPy makes
    /// it, and must be there.
    #[pyo3(signature = (**how))]
    fn __dlpack__<'py>(
        slf: &Bound<'py, Self>,
        how: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        array(slf)?.call_method("__dlpack__", (), how)
    }

    /// Where the tensor is: in the host's memory.
    fn __dlpack_device__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        array(slf)?.call_method0("__dlpack_device__")
    }

    fn __repr__(&self) -> String {
        let end = self.offset + self.len as u64;
        format!(
            "<standpipe.Chunk {} bytes {}..{end}>",
            self.object.uri, self.offset
        )
    }

    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        if view.is_null() {
            return Err(PyBufferError::new_err("no view to fill"));
        }
        if flags & ffi::PyBUF_WRITABLE != 0 {
            return Err(PyBufferError::new_err(
                "the bytes of a chunk are read-only: copy them",
            ));
        }
        let chunk = slf.get();
        let mut held = chunk.held();
        let (data, len) = {
            let bytes = held.bytes.as_ref().ok_or_else(released)?;
            (bytes.as_ptr(), bytes.len())
        };
        held.views += 1;
        drop(held);
        // SAFETY: the caller gave a view to fill, which is not null. The bytes stay where they are as long as the chunk
        // holds them: it does while there are views, and a view holds the chunk.
        unsafe { fill(view, flags, data, len, slf.into_any()) };
        Ok(())
    }

    unsafe fn __releasebuffer__(&self, _view: *mut ffi::Py_buffer) {
        let mut held = self.held();
        held.views = held.views.saturating_sub(1);
    }
}

/// A view of the chunk, which keeps it.
fn array<'py>(chunk: &Bound<'py, Chunk>) -> PyResult<Bound<'py, PyAny>> {
    let numpy = chunk.py().import("numpy")?;
    numpy.call_method1("frombuffer", (chunk, numpy.getattr("uint8")?))
}

fn released() -> PyErr {
    PyBufferError::new_err("this chunk was released")
}

/// Describes read-only bytes in one dimension.
///
/// # Safety
/// `view` can be written to; `len` bytes lie at `data` until the view is released.
unsafe fn fill(
    view: *mut ffi::Py_buffer,
    flags: c_int,
    data: *const u8,
    len: usize,
    owner: Bound<'_, PyAny>,
) {
    let wants = |flag| flags & flag == flag;
    // SAFETY: as promised by the caller. The pointers into the view itself are what CPython's own PyBuffer_FillInfo sets.
    unsafe {
        (*view).obj = owner.into_ptr();
        (*view).buf = data.cast_mut().cast::<c_void>();
        (*view).len = len.cast_signed();
        (*view).readonly = 1;
        (*view).itemsize = 1;
        (*view).ndim = 1;
        (*view).format = match wants(ffi::PyBUF_FORMAT) {
            true => c"B".as_ptr().cast_mut(),
            false => ptr::null_mut(),
        };
        (*view).shape = match wants(ffi::PyBUF_ND) {
            true => &raw mut (*view).len,
            false => ptr::null_mut(),
        };
        (*view).strides = match wants(ffi::PyBUF_STRIDES) {
            true => &raw mut (*view).itemsize,
            false => ptr::null_mut(),
        };
        (*view).suboffsets = ptr::null_mut();
        (*view).internal = ptr::null_mut();
    }
}

/// What pickle gives to `__new__`: by position, and by name.
type NewArguments<'py> = ((String, Bound<'py, PyBytes>), Bound<'py, PyDict>);
