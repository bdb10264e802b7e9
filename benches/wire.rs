//! What a byte and a request cost: our wire, the SDK's own client and raw sockets, side by side.
//!
//! ```sh
//! cargo bench --bench wire              # all, three interleaved rounds
//! cargo bench --bench wire -- tls 5     # rows whose name contains `tls`, five rounds
//! ```
//!
//! The server is a child process on the same machine. Rows are interleaved, because the machine's mood changes within
//! minutes; compare rows of one run. `client` and `total` are CPU seconds for one GB (10^9 bytes), or microseconds for
//! one request; `total` has the server in it and is the stable one: the kernel moves TCP work between the two.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region, StalledStreamProtectionConfig};
use aws_smithy_http_client::tls;
use fake_s3::raw::{RawReader, small_requests};
use fake_s3::{BucketOptions, FakeS3};
use futures::{StreamExt, stream};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use standpipe::buffer::{BufferPool, MemoryBudget, PartBuf, class_bytes};
use standpipe::checksum::ChecksumAlgorithm;
use standpipe::client::wire::{
    BodyPlan, Endpoint, Method, Wire, WireConfig, WireRequest, request_head, tls_config_with,
};

const OBJECT_BYTES: u64 = 2 << 30;
const PART_BYTES: u64 = 8 << 20;
const SMALL_BYTES: u64 = 4 << 10;
const SMALL_REQUESTS: u64 = 100_000;
const SMALL_AT_ONCE: usize = 16;
const AT_ONCE: usize = 8;

fn main() {
    let args: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| arg != "--bench")
        .collect();
    match args.first().map(String::as_str) {
        Some("serve") => serve(args.get(1).is_some_and(|arg| arg == "tls")),
        // `cargo test --benches` only wants to know that it starts.
        Some("--test") => {}
        filter => {
            let rounds = args.get(1).and_then(|n| n.parse().ok()).unwrap_or(3);
            compare(filter.unwrap_or(""), rounds);
        }
    }
}

/// The child: serves until its standard input closes.
fn serve(tls: bool) {
    let server = FakeS3::builder()
        .tls(tls)
        .start()
        .expect("a server on loopback");
    server.create_bucket("b", BucketOptions::default());
    server.put_synthetic("b", "k", OBJECT_BYTES, 1);
    let mut out = std::io::stdout();
    let ca = server.ca_pem().unwrap_or("").replace('\n', "|");
    writeln!(out, "{} {ca}", server.addr()).expect("the parent reads");
    out.flush().expect("the parent reads");
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

struct Server {
    child: Child,
    _until_closed: ChildStdin,
    endpoint: Endpoint,
    ca_pem: String,
}

impl Server {
    fn start(tls: bool) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("the path of this program"))
            .args(["serve", if tls { "tls" } else { "plain" }])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program runs again");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped"))
            .read_line(&mut line)
            .expect("the server's line");
        let (address, ca) = line
            .trim_end()
            .split_once(' ')
            .unwrap_or((line.trim_end(), ""));
        let (host, port) = address.rsplit_once(':').expect("an address");
        Self {
            _until_closed: child.stdin.take().expect("piped"),
            child,
            endpoint: Endpoint {
                tls,
                host: host.into(),
                port: port.parse().expect("a port"),
            },
            ca_pem: ca.replace('|', "\n"),
        }
    }

    /// User and system time so far; Linux counts it in hundredths of a second.
    fn cpu(&self) -> Duration {
        let stat =
            std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        let fields: Vec<&str> = stat
            .rsplit(')')
            .next()
            .unwrap_or("")
            .split_whitespace()
            .collect();
        let ticks: u64 = [11, 12]
            .iter()
            .filter_map(|at| fields.get(*at)?.parse::<u64>().ok())
            .sum();
        Duration::from_millis(ticks * 10)
    }

    fn tls_roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        if !self.ca_pem.is_empty() {
            let certificate = CertificateDer::from_pem_slice(self.ca_pem.as_bytes()).expect("PEM");
            roots.add(certificate).expect("a CA");
        }
        roots
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn client_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// One way to do the work; it returns the bytes it has read.
struct Row<'a> {
    name: &'static str,
    server: &'a Server,
    small: bool,
    work: Box<dyn FnMut() -> u64 + 'a>,
    seen: Vec<Cost>,
}

#[derive(Clone, Copy)]
struct Cost {
    wall: f64,
    client: f64,
    total: f64,
    units: f64,
}

fn compare(filter: &str, rounds: usize) {
    let (plain, tls) = (Server::start(false), Server::start(true));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let mut rows = rows(&runtime, &plain, &tls);
    rows.retain(|row| row.name.contains(filter));
    for round in 0..=rounds {
        for row in &mut rows {
            let cost = measure(row);
            // The first round opens connections and maps memory.
            if round > 0 {
                row.seen.push(cost);
            }
        }
    }
    report(&rows);
}

fn measure(row: &mut Row<'_>) -> Cost {
    let (server, client, started) = (row.server.cpu(), client_cpu(), Instant::now());
    let bytes = (row.work)();
    let wall = started.elapsed().as_secs_f64();
    let client = (client_cpu() - client).as_secs_f64();
    let total = client + (row.server.cpu() - server).as_secs_f64();
    let units = if row.small {
        SMALL_REQUESTS as f64 / 1e6
    } else {
        bytes as f64 / 1e9
    };
    Cost {
        wall,
        client,
        total,
        units,
    }
}

fn report(rows: &[Row<'_>]) {
    let mut out = std::io::stdout();
    let median = |row: &Row<'_>, of: fn(&Cost) -> f64| {
        let mut all: Vec<f64> = row.seen.iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
    };
    for row in rows {
        let rate = median(row, |cost| cost.units / cost.wall);
        let (rate, unit) = if row.small {
            (rate * 1e3, "k requests/s, us each")
        } else {
            (rate, "GB/s, CPU s/GB")
        };
        let _ = writeln!(
            out,
            "{:24} {rate:8.2} {unit}: client {:6.3} total {:6.3}",
            row.name,
            median(row, |cost| cost.client / cost.units),
            median(row, |cost| cost.total / cost.units),
        );
    }
}

fn rows<'a>(
    runtime: &'a tokio::runtime::Runtime,
    plain: &'a Server,
    tls: &'a Server,
) -> Vec<Row<'a>> {
    let mut rows = Vec::new();
    let mut add = |name, server, small, work: Box<dyn FnMut() -> u64 + 'a>| {
        rows.push(Row {
            name,
            server,
            small,
            work,
            seen: Vec::new(),
        });
    };
    add("plain raw", plain, false, raw(plain));
    for (name, server, crc) in [
        ("plain wire", plain, false),
        ("plain wire crc64", plain, true),
        ("tls wire", tls, false),
    ] {
        let reader = Reader::new(server);
        add(
            name,
            server,
            false,
            Box::new(move || runtime.block_on(reader.clone().wired(crc))),
        );
    }
    for (name, server) in [("plain sdk", plain), ("tls sdk", tls)] {
        let reader = Reader::new(server);
        let client = sdk(server);
        add(
            name,
            server,
            false,
            Box::new(move || runtime.block_on(reader.clone().stock(client.clone()))),
        );
    }
    add("4k plain raw", plain, true, raw_small(plain));
    for (name, server) in [("4k plain wire", plain), ("4k tls wire", tls)] {
        let reader = Reader::new(server);
        add(
            name,
            server,
            true,
            Box::new(move || runtime.block_on(reader.clone().small())),
        );
    }
    rows
}

fn raw(server: &Server) -> Box<dyn FnMut() -> u64> {
    let address = server.endpoint.to_string().parse().expect("an address");
    let mut reader = RawReader::connect(address, "/b/k", OBJECT_BYTES, PART_BYTES, AT_ONCE)
        .expect("connections to the server");
    Box::new(move || {
        let mut sum = 0;
        let bytes = reader
            .read(|part| sum += touch(part))
            .expect("the whole object");
        std::hint::black_box(sum);
        bytes
    })
}

fn raw_small(server: &Server) -> Box<dyn FnMut() -> u64> {
    let address = server.endpoint.to_string().parse().expect("an address");
    Box::new(move || {
        small_requests(
            address,
            "/b/k",
            OBJECT_BYTES,
            SMALL_BYTES,
            SMALL_AT_ONCE,
            SMALL_REQUESTS,
        )
        .expect("all requests")
    })
}

/// What a consumer does at least: it looks at each cache line.
fn touch(part: &[u8]) -> u64 {
    part.iter().step_by(64).map(|byte| u64::from(*byte)).sum()
}

#[derive(Clone)]
struct Reader {
    wire: Wire,
    endpoint: Endpoint,
    pool: BufferPool,
    budget: MemoryBudget,
}

impl Reader {
    fn new(server: &Server) -> Self {
        let limit = 4 * AT_ONCE as u64 * PART_BYTES;
        Self {
            wire: Wire::new(WireConfig {
                tls: Some(
                    tls_config_with(server.tls_roots())
                        .expect("a TLS configuration")
                        .into(),
                ),
                ..WireConfig::default()
            }),
            endpoint: server.endpoint.clone(),
            pool: BufferPool::new(limit, Arc::default()),
            budget: MemoryBudget::new(limit),
        }
    }

    fn part(&self, len: u64) -> PartBuf {
        let reservation = self
            .budget
            .try_reserve(class_bytes(len), 0)
            .expect("within the limit");
        self.pool.part(reservation, len as usize)
    }

    async fn fetch(&self, offset: u64, part: &mut PartBuf) {
        let take = part.remaining() as u64;
        let range = format!("bytes={offset}-{}", offset + take - 1);
        let host = self.endpoint.host_header();
        let head = request_head(
            Method::Get,
            "/b/k",
            [
                ("host", host.as_str()),
                ("range", &range),
                ("accept-encoding", "identity"),
            ],
        );
        let request = WireRequest {
            endpoint: &self.endpoint,
            method: Method::Get,
            head: &head,
            uri: "s3://b/k",
            offset,
        };
        self.wire
            .send(request, part, &mut |head, _| {
                assert_eq!((head.status, head.content_length), (206, Some(take)));
                Ok(BodyPlan::Into { skip: 0, take })
            })
            .await
            .expect("a part");
    }

    async fn wired(self, crc: bool) -> u64 {
        self.in_order(move |reader, offset| async move {
            let mut part = reader.part(PART_BYTES);
            if crc {
                part.start_digest(ChecksumAlgorithm::Crc64Nvme);
            }
            reader.fetch(offset, &mut part).await;
            part
        })
        .await
    }

    async fn stock(self, client: aws_sdk_s3::Client) -> u64 {
        self.in_order(move |reader, offset| {
            let get = client
                .get_object()
                .bucket("b")
                .key("k")
                .range(format!("bytes={offset}-{}", offset + PART_BYTES - 1));
            async move {
                let mut part = reader.part(PART_BYTES);
                let mut body = get.send().await.expect("an answer").body;
                while let Some(frame) = body.next().await {
                    part.put(&frame.expect("a frame"));
                }
                part
            }
        })
        .await
    }

    async fn in_order<F: Future<Output = PartBuf> + Send + 'static>(
        self,
        get: impl Fn(Reader, u64) -> F,
    ) -> u64 {
        let mut parts = stream::iter((0..OBJECT_BYTES).step_by(PART_BYTES as usize))
            .map(|offset| tokio::spawn(get(self.clone(), offset)))
            .buffered(AT_ONCE);
        let (mut bytes, mut sum) = (0, 0);
        while let Some(part) = parts.next().await {
            let part = part.expect("no panic");
            bytes += part.filled().len() as u64;
            sum += touch(part.filled());
        }
        std::hint::black_box(sum);
        assert_eq!(bytes, OBJECT_BYTES);
        bytes
    }

    async fn small(self) -> u64 {
        let each = SMALL_REQUESTS / SMALL_AT_ONCE as u64;
        let workers = (0..SMALL_AT_ONCE as u64).map(|worker| {
            let reader = self.clone();
            tokio::spawn(async move {
                let mut part = PartBuf::heap(SMALL_BYTES as usize);
                for n in 0..each {
                    part.clear();
                    reader
                        .fetch((worker * each + n) * SMALL_BYTES, &mut part)
                        .await;
                }
            })
        });
        for worker in workers.collect::<Vec<_>>() {
            worker.await.expect("no panic");
        }
        SMALL_REQUESTS * SMALL_BYTES
    }
}

/// The SDK as its users configure it for throughput: no retries, no stream protection.
fn sdk(server: &Server) -> aws_sdk_s3::Client {
    let builder = aws_smithy_http_client::Builder::new();
    let (scheme, http) = if server.endpoint.tls {
        let trust = tls::TrustStore::empty().with_pem_certificate(server.ca_pem.as_bytes());
        let context = tls::TlsContext::builder()
            .with_trust_store(trust)
            .build()
            .expect("a context");
        let ring = tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring);
        (
            "https",
            builder
                .tls_provider(ring)
                .tls_context(context)
                .build_https(),
        )
    } else {
        ("http", builder.build_http())
    };
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .credentials_provider(Credentials::new("A", "S", None, None, "bench"))
        .endpoint_url(format!("{scheme}://{}", server.endpoint))
        .force_path_style(true)
        .retry_config(RetryConfig::disabled())
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .http_client(http)
        .build();
    aws_sdk_s3::Client::from_conf(config)
}
