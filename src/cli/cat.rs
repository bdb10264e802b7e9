//! `standpipe cat`: objects and prefixes to standard output, in order.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::Args;
use futures::StreamExt;
use futures::stream::{self, BoxStream};

use super::flags::EngineFlags;
use super::progress::{Progress, Sample};
use super::report::{Report, Traffic, moved};
use super::stdout::{Stdout, Written};
use super::total::Listed;
use super::{Context, connect};
use crate::client::ObjectClient;
use crate::error::{Error, Result};
use crate::input::{Lookup, Source};
use crate::metrics::{Metrics, Presence, Sink};
use crate::object::ObjectMeta;
use crate::prefetch::{Chunk, Prefetcher};

const NOTES: &str = "\
A URI that ends in / is a prefix: all objects below it, in key order. Any other URI is an object or,
if there is no such object, the beginning of many keys. Braces expand as in the shell; quoted, they
are ours, so that no command line gets too long:

  standpipe cat 's3://bucket/shard-{000..015}.tar' | tar t
  webdataset: pipe:standpipe cat s3://bucket/shard-000.tar";

/// Write objects and prefixes to standard output, back to back, in the order given
#[derive(Debug, Args)]
#[command(after_help = NOTES)]
pub(super) struct Cat {
    /// s3://bucket/key, s3://bucket/prefix/, file:///path or a path
    #[arg(required = true, value_name = "URI")]
    uris: Vec<Source>,
    #[command(flatten)]
    engine: EngineFlags,
}

impl Cat {
    pub(super) fn run(self, context: &Context) -> Result<Report> {
        let config = self.engine.config()?;
        let client = context.connect(&connect::schemes(&self.uris), &config)?;
        let engine = Prefetcher::new(client, config, context.metrics.clone())?;
        let mut copy = Copy::new(Stdout::open()?);
        // On a terminal the data itself is on the screen.
        let show = context.shows_progress() && !std::io::stdout().is_terminal();
        let progress = Progress::start(show, copy.sampler(context));
        let listed = copy.listed.clone();
        let result = concatenate(&engine, &self.uris, &listed, |chunk| {
            copy.take(&chunk, context)
        });
        drop(progress);
        result?;
        Ok(copy.report(context))
    }
}

/// Feeds every chunk of `sources` to `take`, until it says that the reader is gone.
///
/// A lone URI is read as an object first. When it turns out not to exist, the stream is begun anew at that source, as
/// a prefix: all before it is delivered, and of itself nothing was.
fn concatenate(
    engine: &Prefetcher,
    sources: &[Source],
    listed: &Listed,
    mut take: impl FnMut(Chunk) -> Result<Written>,
) -> Result<()> {
    let client = engine.client();
    let mut guesses = Guesses::default();
    let mut objects = all_objects(client, sources, 0, &guesses);
    loop {
        let mut reader = engine.read_all(listed.counting(objects))?.blocking();
        let (mut place, mut is_within) = (0, false);
        let missing = loop {
            match reader.next_chunk() {
                Ok(None) => return Ok(()),
                Ok(Some(chunk)) => {
                    place += u64::from(chunk.ends_object);
                    is_within = !chunk.ends_object;
                    if take(chunk)? == Written::ReaderGone {
                        return Ok(());
                    }
                }
                Err(error) => break error,
            }
        };
        // An object that goes away while it is read, or after it was listed, is no prefix.
        let guess = guesses.at(place).filter(|_| !is_within);
        let prefix =
            guess.and_then(|index| Some((index, as_prefix(client, &sources[index], &missing)?)));
        let Some((index, prefix)) = prefix else {
            return Err(missing);
        };
        listed.begin_anew();
        guesses = Guesses::default();
        let prefix = guesses.counting(prefix, None);
        objects = prefix
            .chain(all_objects(client, sources, index + 1, &guesses))
            .boxed();
    }
}

/// The objects of the sources from `from` on.
fn all_objects(
    client: &Arc<dyn ObjectClient>,
    sources: &[Source],
    from: usize,
    guesses: &Guesses,
) -> BoxStream<'static, Result<ObjectMeta>> {
    let (client, guesses) = (client.clone(), guesses.clone());
    let sources: Vec<_> = sources.iter().cloned().enumerate().skip(from).collect();
    stream::iter(sources)
        .flat_map(move |(index, source)| {
            let guess = source.lone_uri().map(|_| index);
            guesses.counting(source.objects(&client, Lookup::GetFirst), guess)
        })
        .boxed()
}

/// The source's objects as a prefix, if what is missing is the object that it names.
fn as_prefix(
    client: &Arc<dyn ObjectClient>,
    source: &Source,
    missing: &Error,
) -> Option<BoxStream<'static, Result<ObjectMeta>>> {
    let Error::NotFound { uri, .. } = missing.root() else {
        return None;
    };
    let lone = source.lone_uri()?;
    (lone.to_string() == *uri).then(|| source.as_prefix(client, missing.clone()))?
}

/// How many objects have passed, and of those that are guesses their number and their source's.
type Counted = (u64, Vec<(u64, usize)>);

/// Which objects of a stream, counted from 0, stand for a lone URI that nobody has looked at, and for which source.
#[derive(Debug, Clone, Default)]
struct Guesses(Arc<Mutex<Counted>>);

impl Guesses {
    /// `objects`, counted as they pass; those of a lone URI are noted.
    fn counting(
        &self,
        objects: BoxStream<'static, Result<ObjectMeta>>,
        source: Option<usize>,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let this = self.clone();
        let count = move |object: &Result<ObjectMeta>| {
            let mut state = this.0.lock().unwrap_or_else(PoisonError::into_inner);
            let (count, guesses) = &mut *state;
            if let (Ok(meta), Some(source)) = (object, source)
                && !meta.id.is_pinned()
            {
                guesses.push((*count, source));
            }
            *count += 1;
        };
        objects.inspect(count).boxed()
    }

    fn at(&self, place: u64) -> Option<usize> {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = state.1.binary_search_by_key(&place, |(at, _)| *at).ok()?;
        Some(state.1[found].1)
    }
}

/// There is one reader, from the first moment to the last.
pub(super) fn presence(metrics: &Metrics, elapsed: Duration) -> Presence {
    Presence {
        present: elapsed,
        stalled: Duration::from_nanos(metrics.consumer_stall_ns.get()),
        blocked: Duration::from_nanos(metrics.sink_wait_ns.get()),
    }
}

/// Copies chunks to standard output and counts.
#[derive(Debug)]
struct Copy {
    stdout: Stdout,
    bytes: Arc<AtomicU64>,
    /// Until when the waits are counted: a wait is, when it is over.
    seen_ns: Arc<AtomicU64>,
    listed: Listed,
    objects: u64,
    first_byte: Option<Duration>,
}

impl Copy {
    fn new(stdout: Stdout) -> Self {
        Self {
            stdout,
            bytes: Arc::default(),
            seen_ns: Arc::default(),
            listed: Listed::default(),
            objects: 0,
            first_byte: None,
        }
    }

    fn sampler(&self, context: &Context) -> impl Fn() -> Sample + Send + 'static {
        let (bytes, metrics) = (self.bytes.clone(), context.metrics.clone());
        let (seen, listed) = (self.seen_ns.clone(), self.listed.clone());
        move || Sample {
            bytes: bytes.load(Ordering::Relaxed),
            total: listed.total(),
            presence: presence(&metrics, Duration::from_nanos(seen.load(Ordering::Relaxed))),
            ..Sample::default()
        }
    }

    fn take(&mut self, chunk: &Chunk, context: &Context) -> Result<Written> {
        self.first_byte
            .get_or_insert_with(|| context.started.elapsed());
        self.listed.took(chunk);
        let written = self.stdout.write(&chunk.bytes, &context.metrics)?;
        let seen = u64::try_from(context.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.seen_ns.store(seen, Ordering::Relaxed);
        if written == Written::All {
            self.bytes
                .fetch_add(chunk.bytes.len() as u64, Ordering::Relaxed);
            self.objects += u64::from(chunk.ends_object);
        }
        Ok(written)
    }

    fn report(&self, context: &Context) -> Report {
        let bytes = self.bytes.load(Ordering::Relaxed);
        let elapsed = context.started.elapsed();
        let mut report = Report {
            line: Some(moved("", bytes, elapsed)),
            traffic: Some(Traffic {
                bytes,
                first_byte: self.first_byte,
                taken_in: elapsed,
                presence: presence(&context.metrics, elapsed),
                sink: Sink::Consumer,
            }),
            ..Report::default()
        };
        report.fields.insert("objects".into(), self.objects.into());
        report
    }
}
