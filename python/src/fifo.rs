//! A channel's FIFO of Pipe mode, as records.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
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
            live: Owned::new(Live::new(reader)),
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
    live: Owned<Live>,
    timeout: Option<Duration>,
}

#[derive(Debug)]
struct Live {
    /// Held by whoever waits for records, for a slice of time.
    reader: Mutex<EpochReader>,
    path: PathBuf,
    /// What all others ask: one thread that waits does not keep them from it.
    told: Told,
    closed: AtomicBool,
}

/// What the reader said last.
#[derive(Debug, Default)]
struct Told {
    received_bytes: AtomicU64,
    opened: AtomicBool,
    done: AtomicBool,
}

impl Live {
    fn new(reader: EpochReader) -> Self {
        Self {
            path: reader.path().to_owned(),
            reader: Mutex::new(reader),
            told: Told::default(),
            closed: AtomicBool::new(false),
        }
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// A slice of the wait; none if another thread is at it.
    fn step(&self) -> Option<Result<NextRecords, Error>> {
        let mut reader = match self.reader.try_lock() {
            Ok(reader) => reader,
            // Whoever closes it has it.
            Err(_) if self.is_closed() => return Some(Ok(NextRecords::End)),
            Err(_) => return None,
        };
        if self.is_closed() {
            reader.close();
        }
        let next = reader.next_timeout(SLICE);
        self.told.note(&reader);
        Some(next)
    }

    /// Whoever waits notices, one slice later at most.
    fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        reader.close();
        self.told.note(&reader);
    }
}

impl Told {
    fn note(&self, reader: &EpochReader) {
        self.received_bytes
            .store(reader.received_bytes(), Ordering::Relaxed);
        self.opened.store(reader.was_opened(), Ordering::Relaxed);
        self.done.store(reader.is_done(), Ordering::Relaxed);
    }
}

#[pymethods]
impl FifoRecords {
    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    /// Records that are there, at least one, or None at the end: each as a sample of a dataset.
    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyList>>> {
        let live = self.live(py)?;
        let received_bytes = || live.told.received_bytes.load(Ordering::Relaxed);
        let (mut silent_since, mut received) = (Instant::now(), received_bytes());
        loop {
            let next = py.detach(|| live.step());
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
            // A large record may take longer than any silence.
            if received_bytes() != received {
                (silent_since, received) = (Instant::now(), received_bytes());
            }
            let is_over = |limit: &Duration| silent_since.elapsed() >= *limit;
            if let Some(timeout) = self.timeout.filter(is_over) {
                let told = format!(
                    "{} gave nothing for {timeout:?}, at offset {}: is the channel served, and does it have this epoch?",
                    self.object.uri, received,
                );
                return Err(PyTimeoutError::new_err(told));
            }
        }
    }

    /// The FIFO's path.
    #[getter]
    fn path(&self, py: Python<'_>) -> PyResult<PathBuf> {
        Ok(self.live(py)?.path.clone())
    }

    /// Bytes that came out of it.
    #[getter]
    fn received_bytes(&self, py: Python<'_>) -> PyResult<u64> {
        Ok(self.live(py)?.told.received_bytes.load(Ordering::Relaxed))
    }

    /// Whether the FIFO was opened: then this epoch is used up, however much of it was read.
    #[getter]
    fn opened(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.live(py)?.told.opened.load(Ordering::Relaxed))
    }

    /// Whether nothing is left to be read: its end was found, an error, or it was closed.
    #[getter]
    fn done(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.live(py)?.told.done.load(Ordering::Relaxed))
    }

    /// Stops reading: its server goes on to the next epoch. Whoever waits for records meanwhile, on another thread, finds
    /// the end.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let live = self.live(py)?;
        py.detach(|| live.close());
        Ok(())
    }
}

impl FifoRecords {
    fn live(&self, py: Python<'_>) -> PyResult<&Live> {
        self.live.get(py, "this epoch of a channel")
    }
}

fn busy() -> PyErr {
    PyRuntimeError::new_err("the channel is being read by another thread: a FIFO has one reader")
}
