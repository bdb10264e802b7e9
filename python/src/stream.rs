//! Objects back to back, as chunks: for `for`, and for `async for`.
//!
//! **Lent memory.** What Python holds counts against the engine's memory. A program that keeps every chunk
//! (`list(stream)`) would leave the engine none to read ahead with; it goes on, but part by part. So from half of the
//! memory on, chunks are handed out as copies outside of it, and counted.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use futures::channel::mpsc;
use futures::stream::{self, BoxStream};
use pyo3::exceptions::{PyRuntimeError, PyStopAsyncIteration};
use pyo3::prelude::*;
use standpipe::error::Error;
use standpipe::input::{Lookup, REFERENCES_AHEAD, Source};
use standpipe::metrics::{Presence, Sink, Snapshot};
use standpipe::object::{ObjectMeta, ObjectUri, Scheme};
use standpipe::prefetch::{Chunk as Part, ObjectReader};

use crate::bell::Bell;
use crate::chunk::Chunk;
use crate::config::Config;
use crate::engine::Engine;
use crate::error::to_py;
use crate::listing::ObjectInfo;
use crate::owned::Owned;
use crate::wait::SLICE;

/// Objects that were fed and not looked at by the engine. Who feeds looks some thousands ahead.
const FED_AT_MOST: usize = 1 << 16;

/// What is typed becomes sources; all are checked before any is read.
pub(crate) fn sources(py: Python<'_>, uris: &[String]) -> PyResult<Vec<Source>> {
    if uris.is_empty() {
        return Err(crate::error::config(
            py,
            "uris",
            "none given: name at least one",
        ));
    }
    let parsed: Result<Vec<Source>, Error> = uris.iter().map(|uri| uri.parse()).collect();
    parsed.map_err(|error| to_py(py, &error))
}

/// The schemes that they use: a source has one.
pub(crate) fn schemes(sources: &[Source]) -> Vec<Scheme> {
    let first = sources.iter().filter_map(|source| source.uris().next());
    first.flatten().map(|uri| uri.scheme()).collect()
}

/// Opens a stream over `uris`, back to back in this order; `exact`: a lone one is an object, and not the beginning of
/// many keys.
#[pyfunction]
#[pyo3(signature = (config, uris, exact=false))]
pub(crate) fn open_stream(
    py: Python<'_>,
    config: &Config,
    uris: Vec<String>,
    exact: bool,
) -> PyResult<Stream> {
    let sources = sources(py, &uris)?;
    let engine = Engine::get(py, config, &schemes(&sources))?;
    let client = engine.reads().clone();
    // A listing would take one that is missing for the beginning of others.
    if let [only] = sources.as_slice()
        && exact
        && engine.is_cached
        && only.lone_uri().is_some()
    {
        return Stream::over(py, engine, only.objects(&client, Lookup::Object), None);
    }
    // One that stands alone is asked for at once; whether it is a prefix is looked up when there is no such object. But a
    // cache knows blocks of versions, and a listing tells the version.
    if let [only] = sources.as_slice()
        && !engine.is_cached
        && only
            .lone_uri()
            .is_some_and(|uri| uri.scheme() == Scheme::S3)
    {
        let stream = Stream::over(py, engine, only.objects(&client, Lookup::GetFirst), None)?;
        if !exact {
            stream.shared(py)?.live().maybe_prefix = Some(only.clone());
        }
        return Ok(stream);
    }
    Stream::over(py, engine, Source::objects_of(sources, &client), None)
}

/// The same over objects that a listing has told of: nothing is asked but for their bytes. With `more`, `Stream.feed`
/// adds to them.
#[pyfunction]
#[pyo3(signature = (config, objects, more=false))]
pub(crate) fn open_listed(
    py: Python<'_>,
    config: &Config,
    objects: Vec<Py<ObjectInfo>>,
    more: bool,
) -> PyResult<Stream> {
    let metas = metas(py, &objects)?;
    let schemes: Vec<Scheme> = metas.iter().map(|meta| meta.id.uri.scheme()).collect();
    let engine = Engine::get(py, config, &schemes)?;
    let first = stream::iter(metas).map(Ok);
    if !more {
        return Stream::over(py, engine, first.boxed(), None);
    }
    let (feed, fed) = mpsc::channel(FED_AT_MOST);
    Stream::over(py, engine, first.chain(fed.map(Ok)).boxed(), Some(feed))
}

fn metas(py: Python<'_>, objects: &[Py<ObjectInfo>]) -> PyResult<Vec<ObjectMeta>> {
    objects.iter().map(|info| info.get().meta(py)).collect()
}

/// The same over objects of which nothing but the address is known: a HEAD for each, some ahead of the reading.
#[pyfunction]
pub(crate) fn open_unlisted(
    py: Python<'_>,
    config: &Config,
    uris: Vec<String>,
) -> PyResult<Stream> {
    let parsed: Result<Vec<ObjectUri>, Error> = uris.iter().map(|uri| uri.parse()).collect();
    let parsed = parsed.map_err(|error| to_py(py, &error))?;
    let schemes: Vec<Scheme> = parsed.iter().map(ObjectUri::scheme).collect();
    let engine = Engine::get(py, config, &schemes)?;
    let client = engine.reads().clone();
    let heads = stream::iter(parsed).map(move |uri| {
        let client = client.clone();
        async move { client.head(&uri).await }
    });
    Stream::over(py, engine, heads.buffered(REFERENCES_AHEAD).boxed(), None)
}

/// The bytes of objects, in order: an iterator of `Chunk`s that reads ahead while you work.
///
/// Dropping or closing it cancels what is in flight. One thread at a time.
#[pyclass(frozen, module = "standpipe")]
#[derive(Debug)]
pub(crate) struct Stream(Owned<Shared>);

#[derive(Debug)]
struct Shared {
    /// Held by whoever reads, waits included.
    turn: Mutex<()>,
    /// Held for moments: who reads does not keep others from its counters, nor from closing it.
    live: Mutex<Live>,
    bell: Arc<Bell>,
}

#[derive(Debug)]
struct Live {
    /// `None` once it was closed.
    reader: Option<ObjectReader>,
    /// By which objects are added, where the stream was opened so.
    feed: Option<mpsc::Sender<ObjectMeta>>,
    /// What is read as an object and, if there is none, listed as a prefix; `None` once its first chunk is there.
    maybe_prefix: Option<Source>,
    engine: Arc<Engine>,
    /// The engine's counters when the stream began.
    before: Snapshot,
    tally: Tally,
}

/// What this stream's consumer did.
#[derive(Debug, Default)]
struct Tally {
    first_asked: Option<Instant>,
    ended: Option<Instant>,
    waiting_since: Option<Instant>,
    stalled: Duration,
    chunks: u64,
    bytes: u64,
    objects: u64,
    copied_bytes: u64,
}

/// What a look at the stream gave.
enum Look {
    Chunk(Chunk),
    End,
    Pending,
}

#[pymethods]
impl Stream {
    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Chunk>> {
        loop {
            let shared = self.shared(py)?;
            let look = py.detach(|| {
                let _turn = shared.turn.try_lock().ok()?;
                let deadline = Instant::now() + SLICE;
                loop {
                    let look = shared.live().look(&shared.bell);
                    match look {
                        Ok(Look::Pending) if shared.bell.wait(deadline) => {}
                        look => return Some(look),
                    }
                }
            });
            match look.ok_or_else(busy)?.map_err(|error| to_py(py, &error))? {
                Look::Chunk(chunk) => return Ok(Some(chunk)),
                Look::End => return Ok(None),
                Look::Pending => py.check_signals()?,
            }
        }
    }

    /// For event loops: the next chunk, or None when there is none yet; `fileno()` gets readable when it is worth
    /// asking again. Raises StopAsyncIteration at the end.
    fn poll(&self, py: Python<'_>) -> PyResult<Option<Chunk>> {
        let shared = self.shared(py)?;
        // Before the look: what rings after it must find the descriptor.
        self.fileno(py)?;
        let look = py.detach(|| {
            let _turn = shared.turn.try_lock().ok()?;
            shared.bell.silence();
            Some(shared.live().look(&shared.bell))
        });
        match look.ok_or_else(busy)?.map_err(|error| to_py(py, &error))? {
            Look::Chunk(chunk) => Ok(Some(chunk)),
            Look::End => Err(PyStopAsyncIteration::new_err(())),
            Look::Pending => Ok(None),
        }
    }

    /// A descriptor that gets readable when `poll` is worth calling. It is the stream's: don't close it.
    fn fileno(&self, py: Python<'_>) -> PyResult<i32> {
        Ok(self.shared(py)?.bell.descriptor()?)
    }

    /// Adds objects behind those that it has. Only of streams that were opened for that; 65,536 that the engine has not
    /// looked at yet are the limit.
    fn feed(&self, py: Python<'_>, objects: Vec<Py<ObjectInfo>>) -> PyResult<()> {
        let metas = metas(py, &objects)?;
        let shared = self.shared(py)?;
        let mut live = shared.live();
        let feed = live.feed.as_mut().ok_or_else(|| {
            PyRuntimeError::new_err("the stream is closed, or takes no more objects")
        })?;
        for meta in metas {
            feed.try_send(meta).map_err(|_| {
                PyRuntimeError::new_err("the stream has failed, or has too many objects to come")
            })?;
        }
        Ok(())
    }

    /// Cancels what is in flight and gives all memory back but that of chunks that are still held. Whoever waits for a
    /// chunk meanwhile, a thread or a task, finds the end.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let shared = self.shared(py)?;
        py.detach(|| {
            let mut live = shared.live();
            live.tally.end();
            live.feed = None;
            let reader = live.reader.take();
            drop(live);
            drop(reader);
            shared.bell.waker().wake();
        });
        Ok(())
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __exit__(
        &self,
        py: Python<'_>,
        _type: Py<PyAny>,
        _value: Py<PyAny>,
        _traceback: Py<PyAny>,
    ) -> PyResult<()> {
        self.close(py)
    }

    /// The counters and the verdict, as JSON; `standpipe.stats` takes it apart.
    fn _stats(&self, py: Python<'_>) -> PyResult<String> {
        let shared = self.shared(py)?;
        Ok(py.detach(|| shared.live().stats()))
    }
}

impl Stream {
    fn over(
        py: Python<'_>,
        engine: Arc<Engine>,
        objects: BoxStream<'static, Result<ObjectMeta, Error>>,
        feed: Option<mpsc::Sender<ObjectMeta>>,
    ) -> PyResult<Self> {
        let before = engine.snapshot();
        let reader = py
            .detach(|| engine.prefetcher.read_all(objects))
            .map_err(|error| to_py(py, &error))?;
        let live = Live {
            reader: Some(reader),
            feed,
            maybe_prefix: None,
            engine,
            before,
            tally: Tally::default(),
        };
        Ok(Self(Owned::new(Shared {
            turn: Mutex::new(()),
            live: Mutex::new(live),
            bell: Bell::new(),
        })))
    }

    fn shared(&self, py: Python<'_>) -> PyResult<&Shared> {
        self.0.get(py, "this stream")
    }
}

impl Shared {
    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// As with generators: whoever shares an iterator takes turns.
fn busy() -> PyErr {
    PyRuntimeError::new_err(
        "the stream is being read by another thread: give each thread its own, or a lock",
    )
}

impl Live {
    fn look(&mut self, bell: &Arc<Bell>) -> Result<Look, Error> {
        let now = Instant::now();
        let waker = bell.waker();
        let Some(reader) = &mut self.reader else {
            return Ok(Look::End);
        };
        self.tally.first_asked.get_or_insert(now);
        let polled = reader.poll_chunk(&mut Context::from_waker(&waker));
        let Poll::Ready(next) = polled else {
            self.tally.waiting_since.get_or_insert(now);
            return Ok(Look::Pending);
        };
        let prefix = self.maybe_prefix.take();
        if let (Err(error @ Error::NotFound { .. }), Some(source)) = (&next, prefix)
            && let Some(objects) = source.as_prefix(self.engine.reads(), error.clone())
        {
            self.reader = Some(self.engine.prefetcher.read_all(objects)?);
            self.tally.waiting_since.get_or_insert(now);
            return self.look(bell);
        }
        self.tally.waited(now);
        match next {
            Ok(Some(part)) => Ok(Look::Chunk(self.hand_out(part))),
            Ok(None) => {
                self.tally.end();
                Ok(Look::End)
            }
            Err(error) => {
                self.tally.end();
                Err(error)
            }
        }
    }

    fn hand_out(&mut self, part: Part) -> Chunk {
        let budget = self.engine.prefetcher.budget();
        let held_by_others = budget.lent().saturating_sub(part.bytes.len() as u64);
        let bytes = match held_by_others > budget.limit() / 2 {
            true => {
                self.tally.copied_bytes += part.bytes.len() as u64;
                Bytes::copy_from_slice(&part.bytes)
            }
            false => part.bytes,
        };
        self.tally.chunks += 1;
        self.tally.bytes += bytes.len() as u64;
        self.tally.objects += u64::from(part.ends_object);
        Chunk::new(part.object, part.offset, bytes, part.ends_object)
    }

    fn stats(&self) -> String {
        let now = self.engine.snapshot();
        let presence = self.tally.presence();
        let verdict = now.verdict_on(presence, Sink::Consumer);
        let tally = &self.tally;
        serde_json::json!({
            "chunks": tally.chunks,
            "bytes": tally.bytes,
            "objects": tally.objects,
            "copied_bytes": tally.copied_bytes,
            "elapsed_seconds": presence.present.as_secs_f64(),
            "waited_seconds": presence.stalled.as_secs_f64(),
            "verdict": verdict,
            "engine": now,
            "engine_before": self.before,
        })
        .to_string()
    }
}

impl Tally {
    fn waited(&mut self, now: Instant) {
        if let Some(since) = self.waiting_since.take() {
            self.stalled += now - since;
        }
    }

    fn end(&mut self) {
        let now = Instant::now();
        self.waited(now);
        self.ended.get_or_insert(now);
    }

    /// From the first question to the end, or to now: there is one consumer, and when it does not wait for the loader the
    /// loader waits for it.
    fn presence(&self) -> Presence {
        let until = self.ended.unwrap_or_else(Instant::now);
        let present = self
            .first_asked
            .map_or(Duration::ZERO, |from| until.saturating_duration_since(from));
        Presence {
            present,
            stalled: self.stalled,
            blocked: present.saturating_sub(self.stalled),
        }
    }
}
