//! What is measured without a FIFO.

use std::sync::Arc;

use fake_s3::raw::{self, Order, RawReader};
use standpipe::buffer::PartBuf;
use standpipe::client::ObjectClient;
use standpipe::input::{Agenda, Catalog, Channel, Lookup, Shard, Source};
use standpipe::metrics::Metrics;
use standpipe::object::{ByteRange, ObjectId};
use standpipe::prefetch::{PrefetchConfig, Prefetcher};

use crate::job::{Client, Job, Sample};
use crate::meter::{self, Meter};
use crate::server::BUCKET;
use crate::{Outcome, stack};

/// A consumer that looks at every cache line, once.
#[derive(Default)]
pub(crate) struct Consumer {
    pub(crate) bytes: u64,
    pub(crate) fingerprint: u64,
}

impl Consumer {
    pub(crate) fn eat(&mut self, bytes: &[u8]) {
        let touched: u64 = bytes.iter().step_by(64).map(|byte| u64::from(*byte)).sum();
        self.bytes += bytes.len() as u64;
        self.fingerprint += touched;
    }
}

pub(crate) fn engine(
    job: &Job,
    client: &Arc<dyn ObjectClient>,
    metrics: &Arc<Metrics>,
) -> Outcome<Prefetcher> {
    let mut config = PrefetchConfig::default();
    config.concurrency = job.task.concurrency;
    config.part_bytes = job.task.part_bytes;
    config.memory_bytes = job.task.memory_bytes;
    Ok(Prefetcher::new(client.clone(), config, metrics.clone())?)
}

pub(crate) fn raw_reader(job: &Job, key: &str, size_bytes: u64) -> Outcome<RawReader> {
    Ok(RawReader::connect(
        job.endpoint.addr,
        &format!("/{BUCKET}/{key}"),
        size_bytes,
        job.task.part_bytes,
        job.task.concurrency,
    )?)
}

/// Reads a prefix to its end.
fn pass(
    engine: &Prefetcher,
    prefix: &str,
    meter: &mut Meter,
    consumer: &mut Consumer,
) -> Outcome<()> {
    let mut reader = engine
        .read_all(stack::list(engine.client(), prefix))?
        .blocking();
    while let Some(chunk) = reader.next_chunk()? {
        meter.byte_seen();
        consumer.eat(&chunk.bytes);
    }
    Ok(())
}

pub(crate) fn stream(job: &Job, key: &str, size_bytes: u64) -> Outcome<Sample> {
    let server = job.endpoint.pid;
    let (mut consumer, mut meter);
    if job.task.client == Client::Raw {
        let mut reader = raw_reader(job, key, size_bytes)?;
        reader.read(|part| Consumer::default().eat(part))?;
        (consumer, meter) = (Consumer::default(), Meter::start(server));
        reader.read(|part| {
            meter.byte_seen();
            consumer.eat(part);
        })?;
        let requests = size_bytes.div_ceil(job.task.part_bytes);
        return Ok(Sample::new(
            &meter.stop(),
            consumer.bytes,
            consumer.fingerprint,
            requests,
        ));
    }
    let metrics = Arc::new(Metrics::default());
    let client = job.connect(&metrics)?;
    let engine = engine(job, &client, &metrics)?;
    pass(
        &engine,
        key,
        &mut Meter::start(server),
        &mut Consumer::default(),
    )?;
    let before = metrics.requests.get();
    (consumer, meter) = (Consumer::default(), Meter::start(server));
    pass(&engine, key, &mut meter, &mut consumer)?;
    let requests = metrics.requests.get() - before;
    Ok(Sample::new(
        &meter.stop(),
        consumer.bytes,
        consumer.fingerprint,
        requests,
    ))
}

pub(crate) fn small(job: &Job, key: &str, size_bytes: u64, requests: u64) -> Outcome<Sample> {
    let server = job.endpoint.pid;
    if job.task.client == Client::Raw {
        let path = format!("/{BUCKET}/{key}");
        let meter = Meter::start(server);
        let bytes = raw::small_requests(
            job.endpoint.addr,
            &path,
            size_bytes,
            job.task.part_bytes,
            job.task.concurrency,
            requests,
        )?;
        return Ok(Sample::new(&meter.stop(), bytes, 0, requests));
    }
    let metrics = Arc::new(Metrics::default());
    let client = job.connect(&metrics)?;
    let runtime = standpipe::runtime::handle();
    let id = runtime.block_on(async {
        use futures::StreamExt;
        let meta = stack::list(&client, key).next().await;
        meta.ok_or("the object is listed")?
            .map_err(|error| error.to_string())
    })?;
    // One request on each connection first: opening them is not what is measured.
    run_small(
        &client,
        &id.id,
        job,
        size_bytes,
        job.task.concurrency as u64,
    )?;
    let meter = Meter::start(server);
    let bytes = run_small(&client, &id.id, job, size_bytes, requests)?;
    Ok(Sample::new(&meter.stop(), bytes, 0, requests))
}

fn run_small(
    client: &Arc<dyn ObjectClient>,
    id: &ObjectId,
    job: &Job,
    size_bytes: u64,
    requests: u64,
) -> Outcome<u64> {
    let (part_bytes, lanes) = (job.task.part_bytes, job.task.concurrency as u64);
    let slots = (size_bytes / part_bytes).max(1);
    let lane = move |client: Arc<dyn ObjectClient>, id: ObjectId, first: u64| async move {
        let mut part = PartBuf::heap(part_bytes as usize);
        let mut bytes = 0;
        for index in (first..requests).step_by(lanes as usize) {
            let start = index % slots * part_bytes;
            part.clear();
            client
                .get(&id, ByteRange::new(start, start + part_bytes), &mut part)
                .await?;
            bytes += part.filled().len() as u64;
        }
        Ok::<u64, standpipe::error::Error>(bytes)
    };
    let runtime = standpipe::runtime::handle();
    let lanes: Vec<_> = (0..lanes)
        .map(|first| runtime.spawn(lane(client.clone(), id.clone(), first)))
        .collect();
    let results = runtime.block_on(futures::future::try_join_all(lanes))?;
    results
        .into_iter()
        .map(|bytes| bytes.map_err(Into::into))
        .sum()
}

pub(crate) fn objects(job: &Job, prefix: &str, size_bytes: u64, count: u64) -> Outcome<Sample> {
    let server = job.endpoint.pid;
    let mut consumer = Consumer::default();
    if job.task.client == Client::Raw {
        let paths: Vec<_> = (0..count)
            .map(|i| format!("/{BUCKET}/{prefix}{i:06}"))
            .collect();
        let meter = Meter::start(server);
        raw::fetch_objects(
            job.endpoint.addr,
            &paths,
            size_bytes,
            job.task.concurrency,
            Order::Any,
            |_, body| consumer.eat(body),
        )?;
        return Ok(Sample::new(
            &meter.stop(),
            consumer.bytes,
            consumer.fingerprint,
            count,
        ));
    }
    let metrics = Arc::new(Metrics::default());
    let client = job.connect(&metrics)?;
    let engine = engine(job, &client, &metrics)?;
    let mut meter = Meter::start(server);
    pass(&engine, prefix, &mut meter, &mut consumer)?;
    Ok(Sample::new(
        &meter.stop(),
        consumer.bytes,
        consumer.fingerprint,
        metrics.requests.get(),
    ))
}

/// As `standpipe pipe` reads them, without the FIFO.
pub(crate) fn augmented(job: &Job, manifest: &str) -> Outcome<Sample> {
    let metrics = Arc::new(Metrics::default());
    let client = job.connect(&metrics)?;
    let engine = engine(job, &client, &metrics)?;
    let channel =
        format!("train=s3://{BUCKET}/{manifest},s3-data-type=augmented,attribute-names=x-ref");
    let channel: Channel = channel.parse()?;
    let (mut meter, mut consumer) = (Meter::start(job.endpoint.pid), Consumer::default());
    let agenda = Agenda::open(&client, &channel, Shard::WHOLE);
    let agenda = standpipe::runtime::handle().block_on(agenda)?;
    let mut reader = engine.read_all(agenda.objects(0))?.blocking();
    while let Some(chunk) = reader.next_chunk()? {
        meter.byte_seen();
        consumer.eat(&chunk.bytes);
    }
    Ok(Sample::new(
        &meter.stop(),
        consumer.bytes,
        consumer.fingerprint,
        metrics.requests.get(),
    ))
}

/// Lists a prefix; the fingerprint is of the keys.
pub(crate) fn list(job: &Job, prefix: &str, in_one_go: bool) -> Outcome<Sample> {
    use futures::StreamExt;
    let metrics = Arc::new(Metrics::default());
    let client = job.connect(&metrics)?;
    let meter = Meter::start(job.endpoint.pid);
    let mut objects = match in_one_go {
        true => stack::list(&client, prefix),
        false => format!("s3://{BUCKET}/{prefix}")
            .parse::<Source>()?
            .objects(&client, Lookup::Prefix),
    };
    let (mut consumer, mut keys) = (Consumer::default(), 0);
    let catalog = standpipe::runtime::handle().block_on(async {
        let mut catalog = Catalog::default();
        while let Some(meta) = objects.next().await.transpose()? {
            consumer.eat(meta.id.uri.key().as_bytes());
            keys += 1;
            catalog.push(&meta);
        }
        Ok::<_, standpipe::error::Error>(catalog)
    })?;
    assert_eq!(catalog.len(), keys);
    Ok(Sample::new(
        &meter.stop(),
        consumer.bytes,
        consumer.fingerprint,
        keys as u64,
    ))
}

/// One small GET by raw sockets, on a new connection. Its times begin where those of [`Work::Train`] begin: with the
/// process, and with what a client does first.
///
/// [`Work::Train`]: crate::job::Work::Train
pub(crate) fn first_byte(job: &Job, key: &str) -> Outcome<Sample> {
    let mut meter = Meter::start(job.endpoint.pid);
    let client_ns = meter::now_ns();
    let mut first_ns = 0;
    let bytes = raw_reader(job, key, job.task.part_bytes)?.read(|_| {
        first_ns = meter::now_ns();
        meter.byte_seen();
    })?;
    Ok(Sample::new(&meter.stop(), bytes, 0, 1).with_first_byte(job, client_ns, first_ns))
}
