//! What is measured through a FIFO, and by way of the disk.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::Mode;
use serde::{Deserialize, Serialize};
use standpipe::metrics::Metrics;
use standpipe::pipe::{PipeChannel, PipeConfig, PipeServer};
use standpipe::prefetch::Prefetcher;

use crate::job::{Client, Job, Sample};
use crate::meter::{self, Meter};
use crate::server::BUCKET;
use crate::work::{engine, raw_reader};
use crate::{Outcome, floor, stack};

const READER: &str = "STANDPIPE_BENCH_READER";
const MIB: usize = 1 << 20;

/// What the reading process does.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Reading {
    /// Read to their ends, one after another.
    paths: Vec<PathBuf>,
    first_byte_only: bool,
    /// The FIFO is still to be made.
    waits: bool,
    /// The pace of a consumer that does something with each MiB before it reads the next.
    work_bytes_per_second: Option<u64>,
}

/// What it saw.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Seen {
    bytes: u64,
    fingerprint: u64,
    first_byte_ns: u64,
    end_ns: u64,
    cpu_s: f64,
}

/// Whether this process is the reader; what it saw then.
pub(crate) fn read_if_asked() -> Outcome<Option<Seen>> {
    let Ok(text) = std::env::var(READER) else {
        return Ok(None);
    };
    read(&serde_json::from_str(&text)?).map(Some)
}

/// A trainer that knows nothing of us: opens, reads a MiB at a time until the end.
fn read(reading: &Reading) -> Outcome<Seen> {
    let mut seen = Seen::default();
    let mut buffer = vec![0; MIB];
    let mut crc = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme);
    for path in &reading.paths {
        while reading.waits && !path.exists() {
            std::thread::sleep(Duration::from_micros(100));
        }
        let mut file = File::open(path)?;
        loop {
            let n = file.read(&mut buffer)?;
            if n == 0 {
                break;
            }
            if seen.bytes == 0 {
                seen.first_byte_ns = meter::now_ns();
            }
            seen.bytes += n as u64;
            crc.update(&buffer[..n]);
            if reading.first_byte_only {
                break;
            }
            if let Some(rate) = reading.work_bytes_per_second {
                std::thread::sleep(Duration::from_secs_f64(n as f64 / rate as f64));
            }
        }
    }
    seen.end_ns = meter::now_ns();
    seen.fingerprint = crc.finalize();
    seen.cpu_s = meter::cpu_seconds(std::process::id());
    Ok(seen)
}

fn spawn_reader(reading: &Reading) -> Outcome<Child> {
    Ok(Command::new(std::env::current_exe()?)
        .env(READER, serde_json::to_string(reading)?)
        .stdout(Stdio::piped())
        .spawn()?)
}

fn seen_by(reader: Child) -> Outcome<Seen> {
    let output = reader.wait_with_output()?;
    if !output.status.success() {
        return Err(format!("the reader: {}", output.status).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn sample(meter: &Meter, seen: &Seen, requests: u64) -> Sample {
    Sample {
        reader_cpu_s: seen.cpu_s,
        ..Sample::new(&meter.stop(), seen.bytes, seen.fingerprint, requests)
    }
}

/// A FIFO per epoch by our server, one epoch. The farewell that it offers late readers is not waited for.
fn serve(engine: &Prefetcher, prefix: &str, dir: &Path) -> Outcome<PipeServer> {
    let mut config = PipeConfig::new(dir);
    config.epochs = Some(1);
    config.farewell_grace = Duration::ZERO;
    let (source, prefix) = (engine.clone(), prefix.to_owned());
    let channel = PipeChannel::new("train".parse()?, move |_| {
        source.read_all(stack::list(source.client(), &prefix))
    });
    let on_failure = Arc::new(|_: &standpipe::pipe::Failure| {});
    Ok(PipeServer::start(
        config,
        vec![channel],
        engine.metrics().clone(),
        on_failure,
    )?)
}

pub(crate) fn fifo(job: &Job, key: &str, size_bytes: u64) -> Outcome<Sample> {
    let dir = tempfile::tempdir()?;
    let reading = |path: &Path| Reading {
        paths: vec![path.to_owned()],
        ..Reading::default()
    };
    if job.task.client == Client::Raw {
        let path = dir.path().join("raw");
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, Mode::RUSR | Mode::WUSR)?;
        let mut raw = raw_reader(job, key, size_bytes)?;
        raw.read(|_| {})?;
        let meter = Meter::start(job.endpoint.pid);
        let reader = spawn_reader(&reading(&path))?;
        let mut fifo = File::options().write(true).open(&path)?;
        rustix::pipe::fcntl_setpipe_size(&fifo, MIB)?;
        let mut failed = None;
        raw.read(|part| failed = fifo.write_all(part).err().or(failed.take()))?;
        failed.map_or(Ok(()), Err)?;
        drop(fifo);
        let requests = size_bytes.div_ceil(job.task.part_bytes);
        return Ok(sample(&meter, &seen_by(reader)?, requests));
    }
    let metrics = Arc::new(Metrics::default());
    let client = job.connect(&metrics)?;
    let engine = engine(job, &client, &metrics)?;
    let mut warm = engine.read_all(stack::list(&client, key))?.blocking();
    while warm.next_chunk()?.is_some() {}
    let before = metrics.requests.get();
    let meter = Meter::start(job.endpoint.pid);
    let mut server = serve(&engine, key, dir.path())?;
    let reader = spawn_reader(&reading(&dir.path().join("train_0")))?;
    let seen = seen_by(reader)?;
    let sample = sample(&meter, &seen, metrics.requests.get() - before);
    server.wait()?;
    Ok(sample)
}

/// The times of a whole life of a process, from its start.
fn timed(sample: Sample, job: &Job, seen: &Seen, client_ns: u64) -> Sample {
    let seconds = meter::seconds_between(job.started_ns, seen.end_ns);
    Sample { seconds, ..sample }.with_first_byte(job, client_ns, seen.first_byte_ns)
}

pub(crate) fn train(
    job: &Job,
    prefix: &str,
    first_byte_only: bool,
    work_bytes_per_second: Option<u64>,
) -> Outcome<Sample> {
    let dir = tempfile::tempdir()?;
    let meter = Meter::start(job.endpoint.pid);
    let metrics = Arc::new(Metrics::default());
    let client_ns = meter::now_ns();
    let client = job.connect(&metrics)?;
    let engine = engine(job, &client, &metrics)?;
    let mut server = serve(&engine, prefix, dir.path())?;
    let seen = seen_by(spawn_reader(&Reading {
        paths: vec![dir.path().join("train_0")],
        first_byte_only,
        work_bytes_per_second,
        ..Reading::default()
    })?)?;
    let sample = sample(&meter, &seen, metrics.requests.get());
    server.wait()?;
    Ok(timed(sample, job, &seen, client_ns))
}

/// What [`train`] does until its first byte, by raw sockets, with a reader that is there first.
pub(crate) fn raw_first_byte(job: &Job, prefix: &str) -> Outcome<Sample> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("raw");
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, Mode::RUSR | Mode::WUSR)?;
    let meter = Meter::start(job.endpoint.pid);
    let reading = Reading {
        paths: vec![path.clone()],
        first_byte_only: true,
        ..Reading::default()
    };
    let client_ns = meter::now_ns();
    // It starts while the listing is on its way.
    let attended = std::thread::spawn(move || {
        let reader = spawn_reader(&reading).map_err(|error| error.to_string())?;
        let fifo = File::options().write(true).open(&path);
        Ok::<_, String>((reader, fifo.map_err(|error| error.to_string())?))
    });
    let byte = floor::list_then_get(&job.endpoint, prefix)?;
    let (reader, mut fifo) = attended.join().map_err(|_| "the thread panicked")??;
    fifo.write_all(&byte)?;
    let seen = seen_by(reader)?;
    Ok(timed(sample(&meter, &seen, 2), job, &seen, client_ns))
}

/// The first byte of `standpipe pipe`, the program that is built beside this one, since its start.
pub(crate) fn command(job: &Job, prefix: &str) -> Outcome<Sample> {
    let program = option_env!("CARGO_BIN_EXE_standpipe").ok_or("it needs the feature `cli`")?;
    let dir = tempfile::tempdir()?;
    let reader = spawn_reader(&Reading {
        paths: vec![dir.path().join("train_0")],
        first_byte_only: true,
        waits: true,
        ..Reading::default()
    })?;
    let mut command = Command::new(program);
    command
        .env_clear()
        .arg("pipe")
        .arg(format!("--channel=train=s3://{BUCKET}/{prefix}"))
        .arg("--dir")
        .arg(dir.path())
        .args(["--epochs=1", "--no-sign-request", "--region=us-east-1"])
        .arg(format!("--endpoint-url={}", job.endpoint.url));
    if let Some(ca_file) = &job.endpoint.ca_file {
        command.arg("--ca-bundle").arg(ca_file);
    }
    let meter = Meter::start(job.endpoint.pid);
    let started_ns = meter::now_ns();
    let mut program = command.stderr(Stdio::inherit()).spawn()?;
    let seen = seen_by(reader);
    program.kill()?;
    program.wait()?;
    let seen = seen?;
    let started = Job {
        started_ns,
        ..job.clone()
    };
    Ok(timed(sample(&meter, &seen, 0), &started, &seen, started_ns))
}

pub(crate) fn download_then_train(
    job: &Job,
    prefix: &str,
    work_bytes_per_second: Option<u64>,
) -> Outcome<Sample> {
    let dir = tempfile::tempdir()?;
    let meter = Meter::start(job.endpoint.pid);
    let metrics = Arc::new(Metrics::default());
    let client_ns = meter::now_ns();
    let client = job.connect(&metrics)?;
    let engine = engine(job, &client, &metrics)?;
    let paths = download(&engine, prefix, dir.path())?;
    let seen = seen_by(spawn_reader(&Reading {
        paths,
        work_bytes_per_second,
        ..Reading::default()
    })?)?;
    let sample = sample(&meter, &seen, metrics.requests.get());
    Ok(timed(sample, job, &seen, client_ns))
}

/// Every object below a prefix to a file, in order.
fn download(engine: &Prefetcher, prefix: &str, dir: &Path) -> Outcome<Vec<PathBuf>> {
    let mut reader = engine
        .read_all(stack::list(engine.client(), prefix))?
        .blocking();
    let mut paths = Vec::new();
    let mut file = None;
    while let Some(chunk) = reader.next_chunk()? {
        if chunk.offset == 0 {
            paths.push(dir.join(paths.len().to_string()));
            file = paths.last().map(File::create).transpose()?;
        }
        if let Some(file) = &mut file {
            file.write_all(&chunk.bytes)?;
        }
    }
    Ok(paths)
}
