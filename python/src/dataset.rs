//! Objects as samples: the crate's `dataset`, and its values as Python's.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};
use standpipe::dataset::{
    Consumer, Dataset, DatasetConfig, DatasetState, Even, NextBatch, OnError, RowGroup, Sample,
    Samples as Reader, Shuffle, Watch,
};
use standpipe::error::Error;
use standpipe::metrics::{Presence, Sink, Snapshot};
use standpipe::object::{ObjectId, ObjectMeta, Scheme};
use standpipe::record::protobuf::{Dtype, Tensor, Tensors, Value};
use standpipe::record::{Data, Decoding, Files, Record, RecordFormat};

use crate::chunk::Chunk;
use crate::config::{Config, SizeArgument};
use crate::engine::Engine;
use crate::error::{config as refused, to_py};
use crate::listing::ObjectInfo;
use crate::owned::Owned;
use crate::wait::SLICE;

/// What a dataset is told beside where its data is; `standpipe.Dataset` documents it.
#[derive(Debug, FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct Settings {
    format: String,
    compression: String,
    max_record_size: Option<SizeArgument>,
    shuffle: Option<u32>,
    seed: i64,
    rank: u32,
    world_size: u32,
    worker: u32,
    workers: u32,
    epoch: u64,
    epochs: Option<u64>,
    skip: u64,
    on_error: String,
    even: String,
    counts: Option<Vec<u64>>,
    batch_size: usize,
    drop_last: bool,
    threads: usize,
}

impl Settings {
    fn config(self) -> Result<DatasetConfig, Error> {
        let mut decoding = Decoding::new(self.format.parse::<RecordFormat>()?);
        decoding.compression = self.compression.parse()?;
        if let Some(size) = self.max_record_size {
            decoding.max_record_bytes = size.bytes()?;
        }
        let mut config = DatasetConfig::new(decoding);
        let seed = self.seed;
        config.shuffle = self.shuffle.map(|window| Shuffle { seed, window });
        config.consumer = Consumer {
            rank: self.rank,
            world: self.world_size,
            worker: self.worker,
            workers: self.workers,
        };
        config.epoch = self.epoch;
        config.epochs = self.epochs;
        config.skip = self.skip;
        config.on_error = match self.on_error.as_str() {
            "raise" => OnError::Fail,
            "skip" => OnError::Skip,
            other => {
                return Err(Error::config(
                    "on_error",
                    format!("{other:?}: use \"raise\" or \"skip\""),
                ));
            }
        };
        config.even = match self.even.as_str() {
            "none" => Even::None,
            "drop" => Even::Drop,
            "pad" => Even::Pad,
            other => {
                return Err(Error::config(
                    "even",
                    format!("{other:?}: use \"none\", \"drop\" or \"pad\""),
                ));
            }
        };
        config.counts = self.counts;
        config.batch = self.batch_size;
        config.drop_last = self.drop_last;
        config.threads = self.threads;
        Ok(config)
    }
}

/// Refuses settings that can't work, before anything is listed.
#[pyfunction]
pub(crate) fn check_settings(py: Python<'_>, settings: Settings) -> PyResult<()> {
    let checked = settings.config().and_then(|config| config.validate());
    checked.map_err(|error| to_py(py, &error))
}

/// Starts reading `objects` as samples; `state` is what `Samples.state` gave, or `merge_states`.
#[pyfunction]
pub(crate) fn open_samples(
    py: Python<'_>,
    config: &Config,
    objects: Vec<Py<ObjectInfo>>,
    settings: Settings,
    state: Option<&str>,
) -> PyResult<Samples> {
    let metas: PyResult<Vec<ObjectMeta>> = objects.iter().map(|info| info.get().meta(py)).collect();
    let metas = metas?;
    let state = state.map(|text| parse(py, text)).transpose()?;
    let schemes: Vec<Scheme> = metas.iter().map(|meta| meta.id.uri.scheme()).collect();
    let engine = Engine::get(py, config, &schemes)?;
    Samples::start(py, state, Some(&engine), || {
        Dataset::new(engine.prefetcher.clone(), metas, settings.config()?)
    })
}

/// The same over rows of groups, (uri, etag, number in the file, rows) each: samples are (index of the group, row).
#[pyfunction]
pub(crate) fn open_rows(
    py: Python<'_>,
    groups: Vec<(String, Option<String>, u32, u64)>,
    settings: Settings,
    state: Option<&str>,
) -> PyResult<Samples> {
    let state = state.map(|text| parse(py, text)).transpose()?;
    Samples::start(py, state, None, || {
        let groups: Result<Vec<_>, Error> = groups
            .into_iter()
            .map(|(uri, etag, number, rows)| {
                Ok(RowGroup {
                    uri: uri.parse()?,
                    etag: etag.map(Into::into),
                    number,
                    rows,
                })
            })
            .collect();
        Dataset::of_rows(&groups?, settings.config()?)
    })
}

/// One state of all consumers', with which any number of them can go on.
#[pyfunction]
pub(crate) fn merge_states(py: Python<'_>, states: Vec<String>) -> PyResult<String> {
    let parsed: PyResult<Vec<DatasetState>> = states.iter().map(|text| parse(py, text)).collect();
    let merged = DatasetState::merge(&parsed?).map_err(|error| to_py(py, &error))?;
    written(py, &merged)
}

fn parse(py: Python<'_>, text: &str) -> PyResult<DatasetState> {
    serde_json::from_str(text)
        .map_err(|error| refused(py, "state", &format!("no state of a dataset: {error}")))
}

fn written(py: Python<'_>, state: &DatasetState) -> PyResult<String> {
    serde_json::to_string(state).map_err(|error| refused(py, "state", &error.to_string()))
}

/// Samples of one consumer, epoch after epoch: an iterator of batches.
#[pyclass(frozen, module = "standpipe._standpipe")]
#[derive(Debug)]
pub(crate) struct Samples(Owned<Live>);

#[derive(Debug)]
struct Live {
    /// `None` once it was closed. Held by whoever asks for the next samples, for a slice of time.
    reader: Mutex<Option<Reader>>,
    /// What all others ask: one thread that waits does not keep them from it.
    watch: Watch,
    /// None: what it reads is rows, told by number.
    engine: Option<Arc<Engine>>,
    /// The engine's counters when it was opened.
    before: Snapshot,
    /// When it was first asked.
    began: OnceLock<Instant>,
    /// When it was at its end, or closed.
    ended: OnceLock<Instant>,
}

impl Live {
    fn new(reader: Reader, engine: Option<Arc<Engine>>) -> Self {
        Self {
            watch: reader.watch().clone(),
            reader: Mutex::new(Some(reader)),
            before: snapshot(engine.as_deref()),
            engine,
            began: OnceLock::new(),
            ended: OnceLock::new(),
        }
    }

    fn take(&self) -> Option<Reader> {
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        reader.take()
    }

    fn end(&self) {
        self.ended.get_or_init(Instant::now);
    }

    fn stats(&self) -> String {
        let stats = self.watch.stats();
        let until = self.ended.get().copied().unwrap_or_else(Instant::now);
        let present = self
            .began
            .get()
            .map(|began| until.saturating_duration_since(*began))
            .unwrap_or_default();
        let presence = Presence {
            present,
            stalled: stats.waited,
            blocked: present.saturating_sub(stats.waited),
        };
        let mut engine = snapshot(self.engine.as_deref());
        engine.throttles = engine.throttles.saturating_sub(self.before.throttles);
        engine.requests = engine.requests.saturating_sub(self.before.requests);
        let verdict = stats
            .verdict(presence)
            .unwrap_or_else(|| engine.verdict_on(presence, Sink::Consumer));
        serde_json::json!({
            "samples": stats.samples,
            "bytes": stats.bytes,
            "skipped_records": stats.skipped_records,
            "skipped_objects": stats.skipped_objects,
            "skipped": stats.skipped,
            "copied_bytes": stats.copied_bytes,
            "elapsed_seconds": present.as_secs_f64(),
            "waited_seconds": stats.waited.as_secs_f64(),
            "decoding_seconds": stats.decoding.as_secs_f64(),
            "verdict": verdict,
        })
        .to_string()
    }
}

fn snapshot(engine: Option<&Engine>) -> Snapshot {
    engine.map(Engine::snapshot).unwrap_or_default()
}

/// Its threads are waited for; not with the GIL.
impl Drop for Samples {
    fn drop(&mut self) {
        let Some(live) = self.0.take() else {
            return;
        };
        let mut live = Some(live);
        Python::try_attach(|py| py.detach(|| drop(live.take())));
    }
}

#[pymethods]
impl Samples {
    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    /// The next batch, or None at the end: each sample as `convert` says.
    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyList>>> {
        let live = self.live(py)?;
        loop {
            let next = py.detach(|| {
                let mut reader = match live.reader.try_lock() {
                    Ok(reader) => reader,
                    // Whoever closes it has it.
                    Err(_) if live.watch.is_stopped() => return Some(Ok(NextBatch::End)),
                    Err(_) => return None,
                };
                live.began.get_or_init(Instant::now);
                let next = match &mut *reader {
                    Some(reader) => reader.next_batch_timeout(SLICE),
                    None => Ok(NextBatch::End),
                };
                if matches!(next, Ok(NextBatch::End)) {
                    live.end();
                }
                Some(next)
            });
            match next.ok_or_else(busy)?.map_err(|error| to_py(py, &error))? {
                NextBatch::Batch(samples) => {
                    return batch(py, samples, live.engine.is_none()).map(Some);
                }
                NextBatch::End => return Ok(None),
                NextBatch::TimedOut => py.check_signals()?,
            }
        }
    }

    /// The epoch of the next sample.
    #[getter]
    fn epoch(&self, py: Python<'_>) -> PyResult<Option<u64>> {
        let watch = &self.live(py)?.watch;
        Ok((!watch.is_stopped()).then(|| watch.epoch()))
    }

    /// How far this consumer is, as JSON: exactly what was handed out; or how far it was `before` the last batch.
    #[pyo3(signature = (before=false))]
    fn state(&self, py: Python<'_>, before: bool) -> PyResult<String> {
        let watch = &self.live(py)?.watch;
        let state = match before {
            true => watch.state_before(),
            false => watch.state(),
        };
        written(py, &state)
    }

    /// The counters and the verdict, as JSON.
    fn stats(&self, py: Python<'_>) -> PyResult<String> {
        Ok(self.live(py)?.stats())
    }

    /// Stops reading. Whoever waits for samples meanwhile, on another thread, finds the end.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let live = self.live(py)?;
        py.detach(|| {
            live.watch.stop();
            live.end();
            let reader = live.take();
            // Its threads are waited for, without the lock.
            drop(reader);
        });
        Ok(())
    }
}

impl Samples {
    /// With the engine that reads objects; none: they are rows, told by number.
    fn start(
        py: Python<'_>,
        state: Option<DatasetState>,
        engine: Option<&Arc<Engine>>,
        dataset: impl FnOnce() -> Result<Dataset, Error> + Send,
    ) -> PyResult<Self> {
        let reader = py.detach(|| {
            let mut dataset = dataset()?;
            if let Some(state) = &state {
                dataset.load(state)?;
            }
            dataset.samples()
        });
        let reader = reader.map_err(|error| to_py(py, &error))?;
        Ok(Self(Owned::new(Live::new(reader, engine.cloned()))))
    }

    fn live(&self, py: Python<'_>) -> PyResult<&Live> {
        self.0.get(py, "this iterator")
    }
}

fn busy() -> PyErr {
    PyRuntimeError::new_err(
        "the samples are being read by another thread: give each thread its own, or a lock",
    )
}

fn batch(py: Python<'_>, samples: Vec<Sample>, rows: bool) -> PyResult<Bound<'_, PyList>> {
    let converted: PyResult<Vec<_>> = samples
        .into_iter()
        .map(|sample| match rows {
            true => (sample.object_index, sample.record.offset)
                .into_pyobject(py)
                .map(Bound::into_any),
            false => convert(py, sample.object, sample.record),
        })
        .collect();
    PyList::new(py, converted?)
}

/// A payload is a chunk, a tar sample a dict, a record of tensors a pair of dicts; nothing is copied.
pub(crate) fn convert(
    py: Python<'_>,
    object: Arc<ObjectId>,
    Record { offset, data, .. }: Record,
) -> PyResult<Bound<'_, PyAny>> {
    let view = |offset: u64, bytes: Bytes| Chunk::new(object.clone(), offset, bytes, false);
    match data {
        Data::Bytes(bytes) => Ok(Bound::new(py, view(offset, bytes))?.into_any()),
        Data::Files(files) => {
            let made = PyDict::new(py);
            let Files { key, files } = files;
            made.set_item("__key__", key)?;
            made.set_item("__url__", object.uri.to_string())?;
            for (name, bytes) in files {
                made.set_item(name, Bound::new(py, view(offset, bytes))?)?;
            }
            Ok(made.into_any())
        }
        Data::Tensors(tensors) => {
            let view = |bytes| Bound::new(py, view(offset, bytes));
            record(py, tensors, view).map(Bound::into_any)
        }
    }
}

fn record<'py>(
    py: Python<'py>,
    tensors: Tensors,
    view: impl Fn(Bytes) -> PyResult<Bound<'py, Chunk>>,
) -> PyResult<Bound<'py, PyDict>> {
    let made = PyDict::new(py);
    for (part, values) in [("features", tensors.features), ("label", tensors.label)] {
        let named = PyDict::new(py);
        for (name, value) in values {
            named.set_item(name, converted(py, value, &view)?)?;
        }
        made.set_item(part, named)?;
    }
    made.set_item("uid", tensors.uid)?;
    made.set_item("metadata", tensors.metadata)?;
    made.set_item("configuration", tensors.configuration)?;
    Ok(made)
}

/// A tensor is (type, values, keys, shape), of which Python makes an array; opaque bytes are bytes.
fn converted<'py>(
    py: Python<'py>,
    value: Value,
    view: &impl Fn(Bytes) -> PyResult<Bound<'py, Chunk>>,
) -> PyResult<Bound<'py, PyAny>> {
    match value {
        Value::Tensor(Tensor {
            dtype,
            values,
            keys,
            shape,
        }) => {
            let name = match dtype {
                Dtype::F32 => "<f4",
                Dtype::F64 => "<f8",
                Dtype::I32 => "<i4",
            };
            Ok((name, view(values)?, keys, shape)
                .into_pyobject(py)?
                .into_any())
        }
        Value::Bytes { values, .. } => Ok(PyBytes::new(py, &values.concat()).into_any()),
    }
}
