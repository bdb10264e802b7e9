//! What a signed GET of 4 KiB costs the client's CPU on each path: `cargo bench --bench requests`.
//!
//! The client runs on one thread, whose CPU clock is read; the server's threads do not count. Sixteen requests are in
//! flight, as in a loader of small records.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fake_s3::{Credentials, FakeS3};
use rustix::time::{ClockId, clock_gettime};
use standpipe::buffer::PartBuf;
use standpipe::client::{AccessKey, ObjectClient, S3Client, S3Config, Transport};
use standpipe::object::{ByteRange, ObjectId, ObjectUri};

const IN_FLIGHT: u64 = 16;
const LEN: u64 = 4 << 10;
const OBJECT: u64 = 64 << 20;

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

async fn reads(client: S3Client, id: ObjectId, worker: u64, requests: u64) {
    for n in 0..requests {
        let start = (worker * requests + n) * LEN % (OBJECT - LEN);
        let mut part = PartBuf::heap(LEN as usize);
        let range = ByteRange::new(start, start + LEN);
        client
            .get(&id, range, &mut part)
            .await
            .expect("the server answers");
    }
}

async fn measure(server: &FakeS3, transport: Transport, requests: u64) {
    let config = S3Config {
        endpoint_url: Some(server.endpoint()),
        region: Some("us-east-1".into()),
        access_key: Some(AccessKey {
            id: "AK".into(),
            secret: "SK".into(),
            session_token: None,
        }),
        transport,
        ..S3Config::default()
    };
    let client = S3Client::connect(config, Arc::default())
        .await
        .expect("a client");
    let uri = ObjectUri::s3("bucket", "object");
    let id = client.head(&uri).await.expect("the object is there").id;
    reads(client.clone(), id.clone(), 0, 100).await;
    let (began, cpu) = (Instant::now(), cpu_time());
    let workers: Vec<_> = (0..IN_FLIGHT)
        .map(|worker| {
            tokio::spawn(reads(
                client.clone(),
                id.clone(),
                worker,
                requests / IN_FLIGHT,
            ))
        })
        .collect();
    for worker in workers {
        worker.await.expect("a worker ends well");
    }
    let (wall, cpu) = (began.elapsed(), cpu_time() - cpu);
    eprintln!(
        "{transport:?}: {:.1} us of client CPU per request, {:.0} requests/s",
        cpu.as_secs_f64() * 1e6 / requests as f64,
        requests as f64 / wall.as_secs_f64()
    );
}

fn main() {
    // `cargo test --benches` only asks whether it runs.
    let requests = if std::env::args().any(|arg| arg == "--bench") {
        40_000
    } else {
        160
    };
    let server = FakeS3::builder()
        .auth(Credentials::new("AK", "SK"))
        .log_limit(0)
        .start()
        .expect("the server starts");
    server.put_synthetic("bucket", "object", OBJECT, 1);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    for transport in [Transport::Direct, Transport::Stock] {
        runtime.block_on(measure(&server, transport, requests));
    }
}
