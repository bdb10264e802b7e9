//! A channel's FIFO of Pipe mode, as records.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyRuntimeError, PyTimeoutError};
use pyo3::prelude::*;
use pyo3::types::PyList;
use standpipe::error::Error;
use standpipe::object::ObjectId;
use standpipe::pipe::{EpochReader, NextRecords};
use standpipe::record::{Decoding, RecordFormat};

use crate::config::SizeArgument;
use crate::dataset::convert;
use crate::error::to_py;
use crate::owned::Owned;
use crate::wait::SLICE;

/// The FIFO of one epoch of a channel; opened when it is first asked. `timeout` is how many seconds it may give nothing.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "they are Python's, by name")]
#[pyo3(signature = (directory, channel, epoch, format, compression, max_record_size, timeout))]
pub(crate) fn open_fifo(
    py: Python<'_>,
    directory: PathBuf,
    channel: &str,
    epoch: u64,
    format: &str,
    compression: &str,
    max_record_size: Option<SizeArgument>,
    timeout: Option<f64>,
) -> PyResult<FifoRecords> {
    let open = || -> Result<FifoRecords, Error> {
        let mut decoding = Decoding::new(format.parse::<RecordFormat>()?);
        decoding.compression = compression.parse()?;
        if let Some(size) = max_record_size {
            decoding.max_record_bytes = size.bytes()?;
        }
        let timeout = timeout.map(Duration::try_from_secs_f64).transpose();
        let reader = EpochReader::new(&directory, &channel.parse()?, epoch, &decoding)?;
        Ok(FifoRecords {
            object: Arc::new(ObjectId::unpinned(reader.uri().clone())),
            reader: Owned::new(Mutex::new(reader)),
            timeout: timeout.map_err(|error| Error::config("timeout", error.to_string()))?,
        })
    };
    open().map_err(|error| to_py(py, &error))
}

/// The records of one epoch, some at a time.
#[pyclass(frozen, module = "standpipe._standpipe")]
#[derive(Debug)]
pub(crate) struct FifoRecords {
    object: Arc<ObjectId>,
    reader: Owned<Mutex<EpochReader>>,
    timeout: Option<Duration>,
}

#[pymethods]
impl FifoRecords {
    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    /// Records that are there, at least one, or None at the end: each as a sample of a dataset.
    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyList>>> {
        let reader = self.reader.get(py, "this epoch of a channel")?;
        let begun = Instant::now();
        loop {
            let next = py.detach(|| Some(reader.try_lock().ok()?.next_timeout(SLICE)));
            match next.ok_or_else(busy)?.map_err(|error| to_py(py, &error))? {
                NextRecords::Records(records) => {
                    let samples: PyResult<Vec<_>> = records
                        .into_iter()
                        .map(|record| convert(py, self.object.clone(), record))
                        .collect();
                    return PyList::new(py, samples?).map(Some);
                }
                NextRecords::End => return Ok(None),
                NextRecords::TimedOut => py.check_signals()?,
            }
            if let Some(timeout) = self.timeout.filter(|limit| begun.elapsed() >= *limit) {
                let told = format!(
                    "{} gave nothing for {timeout:?}, at offset {}: is the channel served, and does it have this epoch?",
                    self.object.uri,
                    self.lock(py)?.received_bytes(),
                );
                return Err(PyTimeoutError::new_err(told));
            }
        }
    }

    /// The FIFO's path.
    #[getter]
    fn path(&self, py: Python<'_>) -> PyResult<PathBuf> {
        Ok(self.lock(py)?.path().to_owned())
    }

    /// Bytes that came out of it.
    #[getter]
    fn received_bytes(&self, py: Python<'_>) -> PyResult<u64> {
        Ok(self.lock(py)?.received_bytes())
    }

    /// Whether the FIFO was opened: then this epoch is used up, however much of it was read.
    #[getter]
    fn opened(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.lock(py)?.was_opened())
    }

    /// Whether nothing is left to be read: its end was found, an error, or it was closed.
    #[getter]
    fn done(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.lock(py)?.is_done())
    }

    /// Stops reading: its server goes on to the next epoch.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.lock(py)?.close();
        Ok(())
    }
}

impl FifoRecords {
    fn lock(&self, py: Python<'_>) -> PyResult<MutexGuard<'_, EpochReader>> {
        let reader = self.reader.get(py, "this epoch of a channel")?;
        reader.try_lock().map_err(|_| busy())
    }
}

fn busy() -> PyErr {
    PyRuntimeError::new_err("the channel is being read by another thread: a FIFO has one reader")
}
