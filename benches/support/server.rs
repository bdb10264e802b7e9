//! The S3 server of a benchmark, in a process of its own, so that its work can be told from the client's.
//!
//! The benchmark executes itself again with a variable in the environment: no other program has to be found.

use std::io::{self, BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use fake_s3::{BucketOptions, Credentials, FakeS3, Shape};
use serde::{Deserialize, Serialize};

use crate::Outcome;

const SPEC: &str = "STANDPIPE_BENCH_SERVER";

/// The bucket of all objects. Whoever signs is checked, and whoever does not is let in.
pub(crate) const BUCKET: &str = "bench";

/// The key of those who sign.
pub(crate) const KEY: [(&str, &str); 2] = [
    ("AWS_ACCESS_KEY_ID", "BENCHBENCHBENCHBENCH"),
    ("AWS_SECRET_ACCESS_KEY", "a-secret-that-nobody-else-uses"),
];

/// What the server has and how slow it is.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Spec {
    pub(crate) tls: bool,
    pub(crate) shape: Shape,
    pub(crate) objects: Vec<Objects>,
    /// Keys of augmented manifests, each with a line for every object below a prefix.
    #[serde(default)]
    pub(crate) manifests: Vec<(String, String)>,
}

/// Computed objects: the one called `key`, or `count` of them with numbers behind it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Objects {
    pub(crate) key: String,
    pub(crate) size_bytes: u64,
    pub(crate) count: Option<u64>,
}

impl Objects {
    pub(crate) fn one(key: &str, size_bytes: u64) -> Self {
        Self {
            key: key.into(),
            size_bytes,
            count: None,
        }
    }

    fn keys(&self) -> Vec<String> {
        match self.count {
            None => vec![self.key.clone()],
            Some(count) => (0..count).map(|i| format!("{}{i:06}", self.key)).collect(),
        }
    }
}

/// Where the server is; the first line that it prints.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Endpoint {
    pub(crate) url: String,
    pub(crate) addr: SocketAddr,
    pub(crate) ca_file: Option<PathBuf>,
    pub(crate) pid: u32,
}

/// A running server; it ends when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    pub(crate) endpoint: Endpoint,
}

impl Server {
    pub(crate) fn start(spec: &Spec) -> Outcome<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .env(SPEC, serde_json::to_string(spec)?)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let stdout = child.stdout.take().ok_or("the server has an output")?;
        BufReader::new(stdout).read_line(&mut line)?;
        let endpoint = serde_json::from_str(&line)?;
        Ok(Self { child, endpoint })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It ends with its input, so it also ends when this process is killed.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// Whether this process is the server; it has served then and must end.
pub(crate) fn serve_if_asked() -> Outcome<bool> {
    let Ok(spec) = std::env::var(SPEC) else {
        return Ok(false);
    };
    serve(&serde_json::from_str(&spec)?)?;
    Ok(true)
}

fn serve(spec: &Spec) -> Outcome<()> {
    let [(_, id), (_, secret)] = KEY;
    let server = FakeS3::builder()
        .tls(spec.tls)
        .auth(Credentials::new(id, secret))
        .shape(spec.shape)
        .log_limit(0)
        .start()?;
    let options = BucketOptions {
        public: true,
        ..BucketOptions::default()
    };
    server.create_bucket(BUCKET, options);
    for objects in &spec.objects {
        for (seed, key) in (0..).zip(objects.keys()) {
            server.put_synthetic(BUCKET, &key, objects.size_bytes, seed);
        }
    }
    for (key, prefix) in &spec.manifests {
        let named = spec.objects.iter().filter(|objects| objects.key == *prefix);
        let lines = named
            .flat_map(Objects::keys)
            .map(|key| format!("{{\"x-ref\": \"s3://{BUCKET}/{key}\"}}\n"));
        server.put(BUCKET, key, lines.collect::<String>().as_bytes());
    }
    let ca_file = tempfile::NamedTempFile::new()?;
    let pem = server.ca_pem();
    std::fs::write(ca_file.path(), pem.unwrap_or_default())?;
    let endpoint = Endpoint {
        url: server.endpoint(),
        addr: server.addr(),
        ca_file: pem.map(|_| ca_file.path().to_owned()),
        pid: std::process::id(),
    };
    let mut stdout = io::stdout();
    writeln!(stdout, "{}", serde_json::to_string(&endpoint)?)?;
    stdout.flush()?;
    io::copy(&mut io::stdin().lock(), &mut io::sink())?;
    Ok(())
}
