//! Every answer of fixtures/hostile/http, played to the S3 client over both transports.
//!
//! The server here is a listener that answers each request with a file and closes its side; it counts connections,
//! so a client that reuses one after such an answer is found out.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use standpipe::buffer::PartBuf;
use standpipe::client::{ObjectClient, S3Client, S3Config, Transport};
use standpipe::error::{Error, Result};
use standpipe::object::{ByteRange, ObjectId, ObjectUri};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::source;

/// The range that every answer pretends to answer.
const PART_BYTES: u64 = 1024;
/// Far beyond the client's own timeouts below: whoever takes longer hangs.
const GUARD: Duration = Duration::from_secs(20);

/// A line of expect.tsv.
#[derive(Debug, Clone)]
struct Case {
    name: String,
    outcome: String,
    answer: Arc<[u8]>,
}

fn cases() -> Vec<Case> {
    let lines = source::read("fixtures/hostile/http/expect.tsv");
    let case = |line: &str| {
        let mut fields = line.split('\t').map(str::to_owned);
        let (name, outcome) = (fields.next().unwrap(), fields.next().unwrap());
        let path = source::root().join(format!("fixtures/hostile/http/{name}.bin"));
        let answer = std::fs::read(path).unwrap().into();
        Case {
            name,
            outcome,
            answer,
        }
    };
    lines.lines().map(case).collect()
}

/// What fixtures/generate.py says the object is.
fn part() -> Vec<u8> {
    (0..PART_BYTES)
        .map(|index| (index * 7 % 251) as u8)
        .collect()
}

/// Answers every request on every connection with `answer`; returns its address and the count of connections.
async fn serve(answer: Arc<[u8]>) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(play(socket, answer.clone()));
        }
    });
    (address, connections)
}

/// One request, one answer, and then only listening: a client that reuses the connection waits in vain.
async fn play(mut socket: TcpStream, answer: Arc<[u8]>) {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        match socket.read_buf(&mut request).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
    // The client may hang up in the middle of what it refuses.
    if socket.write_all(&answer).await.is_ok() && socket.shutdown().await.is_ok() {
        let _ = tokio::io::copy(&mut socket, &mut tokio::io::sink()).await;
    }
}

async fn client(address: SocketAddr, transport: Transport) -> S3Client {
    let config = S3Config {
        endpoint_url: Some(format!("http://{address}")),
        region: Some("us-east-1".into()),
        anonymous: true,
        transport,
        first_byte_timeout: Duration::from_secs(2),
        progress_timeout: Duration::from_secs(2),
        ..S3Config::default()
    };
    S3Client::connect(config, Arc::default()).await.unwrap()
}

async fn get(client: &dyn ObjectClient) -> Result<Vec<u8>> {
    let id = ObjectId {
        etag: Some("\"right\"".into()),
        size_bytes: Some(4 * PART_BYTES),
        ..ObjectId::unpinned(ObjectUri::s3("bucket", "key"))
    };
    let mut into = PartBuf::heap(PART_BYTES as usize);
    let got = client
        .get(&id, ByteRange::new(0, PART_BYTES), &mut into)
        .await;
    // Whatever arrived before an error must be the object's: a retry goes on behind it.
    assert_eq!(into.filled(), &part()[..into.filled().len()], "wrong bytes");
    got.map(|_| into.filled().to_vec())
}

/// The variant's name, as expect.tsv writes it.
fn variant(error: &Error) -> String {
    let debug = format!("{error:?}");
    debug
        .chars()
        .take_while(|char| char.is_ascii_alphanumeric())
        .collect()
}

/// What is wrong with a result, if anything.
fn objection(outcome: &str, transport: Transport, result: &Result<Vec<u8>>) -> Option<String> {
    let is_right = matches!(result, Ok(bytes) if *bytes == part());
    let outcome = match (outcome, transport) {
        ("framing", Transport::Direct) => "error",
        ("framing", Transport::Stock) => "bytes-or-error",
        (outcome, _) => outcome,
    };
    let fits = match outcome {
        "bytes" => is_right,
        "error" => result.is_err(),
        "bytes-or-error" => is_right || result.is_err(),
        name => matches!(result, Err(error) if variant(error.root()) == name),
    };
    let got = result.as_ref().map(Vec::len).map_err(variant);
    (!fits).then(|| format!("wanted {outcome}, got {got:?}"))
}

/// Two requests with one client: each must end as expected, and the second must not ride on the first's connection.
async fn judge(case: Case, transport: Transport) -> Option<String> {
    let (address, connections) = serve(case.answer.clone()).await;
    let client = client(address, transport).await;
    let mut found = Vec::new();
    for _ in 0..2 {
        match tokio::time::timeout(GUARD, get(&client)).await {
            Ok(result) => found.extend(objection(&case.outcome, transport, &result)),
            Err(_) => found.push("it hangs".into()),
        }
    }
    let connections = connections.load(Ordering::Relaxed);
    // How the stock transport manages its connections is not ours to judge.
    if transport == Transport::Direct && connections < 2 {
        found.push(format!("{connections} connection for two requests"));
    }
    (!found.is_empty()).then(|| format!("{} over {transport:?}: {}", case.name, found.join("; ")))
}

async fn judge_all(transport: Transport) {
    let judged = cases().into_iter().map(|case| judge(case, transport));
    let found: Vec<String> = futures::future::join_all(judged)
        .await
        .into_iter()
        .flatten()
        .collect();
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_own_transport_survives_every_answer() {
    judge_all(Transport::Direct).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stock_transport_survives_every_answer() {
    judge_all(Transport::Stock).await;
}

#[test]
fn every_answer_has_an_expectation_and_the_control_is_among_them() {
    let cases = cases();
    let files = std::fs::read_dir(source::root().join("fixtures/hostile/http")).unwrap();
    let files = files
        .filter(|file| {
            file.as_ref()
                .unwrap()
                .path()
                .extension()
                .is_some_and(|ext| ext == "bin")
        })
        .count();
    assert_eq!(cases.len(), files);
    assert!(cases.iter().any(|case| case.outcome == "bytes"));
}
