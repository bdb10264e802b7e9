//! The server as a program: flags in, one line of JSON out, then it serves until it is told to stop.

use std::error::Error;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use fake_s3::{BucketOptions, Credentials, FakeS3, Latency, Rule, Shape};

/// A scripted S3 server on loopback.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Port on 127.0.0.1; 0 lets the system choose.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Serves the files below this directory: the first level are buckets, unless --bucket names one for all.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Makes this bucket. May be repeated.
    #[arg(long)]
    bucket: Vec<String>,
    /// Makes an object of computed bytes: bucket/key=SIZE[,SEED[,COUNT]]. With COUNT, keys get -000000 and so on. May be repeated.
    #[arg(long, value_name = "BUCKET/KEY=SIZE[,SEED[,COUNT]]")]
    synthetic: Vec<String>,
    /// s3, none, 30ms, or 30ms+20ms/MiB.
    #[arg(long, default_value = "none")]
    latency_model: String,
    /// Bandwidth of one connection, per second: 90MB.
    #[arg(long)]
    bandwidth_per_connection: Option<String>,
    /// Bandwidth of all connections together, per second.
    #[arg(long)]
    total_bandwidth: Option<String>,
    /// Speaks TLS; the certificate to trust is named in the line that is printed.
    #[arg(long)]
    tls: bool,
    /// Where the certificate to trust is written, with --tls; a temporary file otherwise.
    #[arg(long, requires = "tls")]
    ca_file: Option<PathBuf>,
    /// Demands signatures by this key. May be repeated.
    #[arg(long, value_name = "KEY:SECRET[:TOKEN]")]
    auth: Vec<String>,
    /// The server's region.
    #[arg(long, default_value = "us-east-1")]
    region: String,
    /// Rules, as a JSON array.
    #[arg(long)]
    script: Option<PathBuf>,
    /// Seed of probabilities and latencies.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Writes each request as a line of JSON.
    #[arg(long)]
    log: Option<PathBuf>,
    /// Keeps so many requests for GET /_fake/log.
    #[arg(long, default_value_t = 0)]
    log_limit: usize,
    /// Where contents lie: a tmpfs with huge pages, for benchmarks.
    #[arg(long)]
    memory_dir: Option<PathBuf>,
    /// Exits when stdin closes: a child that can't outlive its parent.
    #[arg(long)]
    until_stdin_closes: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "fake-s3: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let server = start(args)?;
    seed(&server, args)?;
    if let Some(path) = &args.script {
        let rules: Vec<Rule> = serde_json::from_slice(&std::fs::read(path)?)?;
        server.script("", rules);
    }
    announce(&server, args)?;
    wait_for_the_end(args.until_stdin_closes)?;
    drop(server);
    remove_ca(args);
    Ok(())
}

/// Returns at SIGTERM or SIGINT, or when stdin closes if that is asked for.
fn wait_for_the_end(until_stdin_closes: bool) -> std::io::Result<()> {
    let (mut wake, ours) = std::io::pipe()?;
    let ours = Arc::new(ours);
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::INT] {
        notify(signal.as_raw(), Arc::clone(&ours))?;
    }
    if until_stdin_closes {
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
            let _ = (&*ours).write(b"e");
        });
    }
    wake.read(&mut [0]).map(|_| ())
}

#[expect(unsafe_code, reason = "a signal handler")]
fn notify(signal: i32, pipe: Arc<std::io::PipeWriter>) -> std::io::Result<()> {
    let handler = move || {
        let _ = rustix::io::write(&*pipe, b"s");
    };
    // SAFETY: the handler only writes to a pipe, which is async-signal-safe.
    unsafe { signal_hook_registry::register(signal, handler) }.map(|_| ())
}

fn start(args: &Args) -> Result<FakeS3, Box<dyn Error>> {
    let latency = Latency::parse(&args.latency_model)
        .ok_or("--latency-model: s3, none, 30ms or 30ms+20ms/MiB")?;
    let shape = Shape {
        latency,
        connection_bytes_per_second: args
            .bandwidth_per_connection
            .as_deref()
            .map(parse_size)
            .transpose()?,
        total_bytes_per_second: args
            .total_bandwidth
            .as_deref()
            .map(parse_size)
            .transpose()?,
    };
    let mut builder = FakeS3::builder()
        .port(args.port)
        .tls(args.tls)
        .region(&args.region)
        .seed(args.seed)
        .shape(shape)
        .log_limit(args.log_limit);
    for auth in &args.auth {
        builder = builder.auth(parse_credentials(auth)?);
    }
    if let Some(path) = &args.log {
        builder = builder.log_file(path);
    }
    if let Some(dir) = &args.memory_dir {
        builder = builder.memory_dir(dir);
    }
    Ok(builder.start()?)
}

fn parse_credentials(text: &str) -> Result<Credentials, String> {
    let mut parts = text.splitn(3, ':');
    let (Some(key), Some(secret)) = (parts.next(), parts.next()) else {
        return Err(format!("--auth {text}: KEY:SECRET[:TOKEN]"));
    };
    let credentials = Credentials::new(key, secret);
    Ok(match parts.next() {
        Some(token) => credentials.with_token(token),
        None => credentials,
    })
}

fn seed(server: &FakeS3, args: &Args) -> Result<(), Box<dyn Error>> {
    for bucket in &args.bucket {
        server.create_bucket(bucket, BucketOptions::default());
    }
    for text in &args.synthetic {
        put_synthetic(server, text)?;
    }
    if let Some(dir) = &args.dir {
        put_dir(server, dir, args.bucket.first().map(String::as_str))?;
    }
    Ok(())
}

fn put_synthetic(server: &FakeS3, text: &str) -> Result<(), Box<dyn Error>> {
    let wrong = || format!("--synthetic {text}: BUCKET/KEY=SIZE[,SEED[,COUNT]]");
    let (name, numbers) = text.rsplit_once('=').ok_or_else(wrong)?;
    let (bucket, key) = name.split_once('/').ok_or_else(wrong)?;
    let mut numbers = numbers.split(',');
    let size = parse_size(numbers.next().unwrap_or(""))?;
    let seed: u64 = numbers.next().map_or(Ok(0), str::parse)?;
    let Some(count) = numbers.next() else {
        server.put_synthetic(bucket, key, size, seed);
        return Ok(());
    };
    for index in 0..count.parse()? {
        server.put_synthetic(bucket, &format!("{key}-{index:06}"), size, seed + index);
    }
    Ok(())
}

/// Puts all files below `dir`, named by their path.
fn put_dir(server: &FakeS3, dir: &Path, bucket: Option<&str>) -> Result<(), Box<dyn Error>> {
    let mut pending = vec![dir.to_owned()];
    while let Some(current) = pending.pop() {
        for entry in std::fs::read_dir(&current)? {
            let path = entry?.path();
            if path.is_dir() {
                pending.push(path);
                continue;
            }
            let name = path
                .strip_prefix(dir)?
                .to_str()
                .ok_or("a file's name is not UTF-8")?;
            match (bucket, name.split_once('/')) {
                (Some(bucket), _) => server.put_file(bucket, name, &path)?,
                (None, Some((bucket, key))) => server.put_file(bucket, key, &path)?,
                (None, None) => return Err(format!("{name} is in no bucket: use --bucket").into()),
            };
        }
    }
    Ok(())
}

fn announce(server: &FakeS3, args: &Args) -> Result<(), Box<dyn Error>> {
    let ca_file = match server.ca_pem() {
        Some(pem) => {
            let path = ca_path(args);
            std::fs::write(&path, pem)?;
            Some(path)
        }
        None => None,
    };
    let line = serde_json::json!({
        "endpoint": server.endpoint(),
        "port": server.addr().port(),
        "region": server.region(),
        "ca_file": ca_file,
        "pid": std::process::id(),
    });
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{line}")?;
    Ok(stdout.flush()?)
}

fn ca_path(args: &Args) -> PathBuf {
    let temporary = || std::env::temp_dir().join(format!("fake-s3-{}.pem", std::process::id()));
    args.ca_file.clone().unwrap_or_else(temporary)
}

/// Leaves no temporary file behind.
fn remove_ca(args: &Args) {
    if args.tls && args.ca_file.is_none() {
        let _ = std::fs::remove_file(ca_path(args));
    }
}

/// `90MB`, `8MiB`, `512`, `1GiB`, `4k`.
fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        "tib" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return Err(format!("{text}: not a size like 90MB or 8MiB")),
    };
    let number: f64 = number
        .parse()
        .map_err(|_| format!("{text}: not a size like 90MB or 8MiB"))?;
    Ok((number * factor) as u64)
}
