//! Directory buckets of S3 Express: every request is signed by a session, which the SDK opens and keeps.
//!
//! The server checks the service of each signature, the session's token and the bucket that it is for.

use std::sync::Arc;
use std::time::Duration;

use fake_s3::{CredentialKind, Credentials, Effect, FakeS3, LogEntry, Operation, Rule};
use futures::TryStreamExt;
use standpipe::buffer::PartBuf;
use standpipe::client::{AccessKey, Depth, ListEntry, ObjectClient, S3Client, S3Config, Transport};
use standpipe::error::{Error, Result};
use standpipe::object::{ByteRange, ObjectId, ObjectUri};
use tokio::time::timeout;

use crate::conformance::content;

const BUCKET: &str = "data--use1-az4--x-s3";
/// Below the size from which on requests go through the SDK anyway, and above it.
const SIZES: [(&str, u64); 2] = [("dir/small", 100_000), ("dir/large", 3_000_000)];

fn server(session_s: i64) -> FakeS3 {
    let server = FakeS3::builder()
        .auth(Credentials::new("AK", "SK"))
        .session_s(session_s)
        .start()
        .unwrap();
    for (key, len) in SIZES {
        server.put(BUCKET, key, &content(len, 0));
    }
    server
}

async fn client(server: &FakeS3, transport: Transport, secret: &str) -> S3Client {
    let patience = S3Config::default().progress_timeout;
    client_within(server, transport, secret, patience).await
}

async fn client_within(
    server: &FakeS3,
    transport: Transport,
    secret: &str,
    progress_timeout: Duration,
) -> S3Client {
    let config = S3Config {
        endpoint_url: Some(server.endpoint()),
        region: Some("us-east-1".into()),
        access_key: Some(AccessKey {
            id: "AK".into(),
            secret: secret.into(),
            session_token: None,
        }),
        transport,
        progress_timeout,
        ..S3Config::default()
    };
    S3Client::connect(config, Arc::default()).await.unwrap()
}

/// Reads an object of which only the size is known; a small one in two parts.
async fn read(client: &S3Client, (key, len): (&str, u64)) -> Result<()> {
    let id = ObjectId {
        size_bytes: Some(len),
        ..ObjectId::unpinned(ObjectUri::s3(BUCKET, key))
    };
    let cut = len.min(1 << 20) / 2;
    for range in [0..cut, cut..len] {
        let mut part = PartBuf::heap((range.end - range.start) as usize);
        let meta = client
            .get(&id, ByteRange::new(range.start, range.end), &mut part)
            .await?;
        let expected = &content(len, 0)[range.start as usize..range.end as usize];
        assert!(part.filled() == expected, "other bytes of {key}");
        assert_eq!(meta.size_bytes, len);
    }
    Ok(())
}

async fn list(client: &S3Client) -> Result<Vec<String>> {
    let listing = client.list(&ObjectUri::s3(BUCKET, "dir/"), Depth::All);
    let entries: Vec<ListEntry> = listing.try_collect().await?;
    let key = |entry: ListEntry| match entry {
        ListEntry::Object(meta) => meta.id.uri.key().to_owned(),
        ListEntry::Prefix(uri) => panic!("{uri}"),
    };
    Ok(entries.into_iter().map(key).collect())
}

/// How many sessions were opened; everything else must have been signed by one.
fn sessions(log: &[LogEntry]) -> usize {
    for entry in log {
        let expected = match entry.operation {
            Operation::Bucket => CredentialKind::Header,
            _ => CredentialKind::Session,
        };
        assert_eq!(entry.credentials, expected, "{entry:?}");
        assert!(entry.authenticated && entry.status < 300, "{entry:?}");
    }
    let opened = log.iter().filter(|entry| entry.query.contains("session"));
    opened.count()
}

/// Whatever comes first has to open the session: a small GET, a large one, a HEAD or a listing.
#[tokio::test]
async fn a_directory_bucket_is_read_and_listed_in_one_session() {
    let server = server(300);
    for transport in [Transport::Direct, Transport::Stock] {
        for first in 0..4 {
            let client = client(&server, transport, "SK").await;
            server.clear_log();
            for step in 0..4 {
                match (first + step) % 4 {
                    0 => read(&client, SIZES[0]).await.unwrap(),
                    1 => read(&client, SIZES[1]).await.unwrap(),
                    2 => {
                        let uri = ObjectUri::s3(BUCKET, SIZES[1].0);
                        assert_eq!(client.head(&uri).await.unwrap().size_bytes, SIZES[1].1);
                    }
                    _ => assert_eq!(list(&client).await.unwrap(), [SIZES[1].0, SIZES[0].0]),
                }
            }
            let log = server.log();
            assert_eq!(sessions(&log), 1, "{transport:?}, {first} first: {log:?}");
            assert_eq!(log.len(), 7, "{log:?}");
        }
    }
}

#[tokio::test]
async fn many_first_requests_open_one_session() {
    let server = server(300);
    for transport in [Transport::Direct, Transport::Stock] {
        let client = client(&server, transport, "SK").await;
        server.clear_log();
        let reads = (0..16).map(|at| read(&client, SIZES[at % 2]));
        futures::future::try_join_all(reads).await.unwrap();
        assert_eq!(sessions(&server.log()), 1, "{transport:?}");
    }
}

/// A session that is about to end is not used again.
#[tokio::test]
async fn a_session_near_its_end_is_replaced() {
    let server = server(5);
    for transport in [Transport::Direct, Transport::Stock] {
        let client = client(&server, transport, "SK").await;
        server.clear_log();
        for size in SIZES {
            read(&client, size).await.unwrap();
        }
        assert_eq!(sessions(&server.log()), 4, "{transport:?}");
    }
}

/// The error is about the session, and names the object that it was for.
#[tokio::test]
async fn a_session_that_is_refused_says_why() {
    let server = server(300);
    for transport in [Transport::Direct, Transport::Stock] {
        let client = client(&server, transport, "wrong").await;
        for size in SIZES {
            let error = read(&client, size).await.unwrap_err();
            let text = format!("{error}");
            assert!(matches!(error, Error::PermissionDenied { .. }), "{error:?}");
            assert!(text.contains("SignatureDoesNotMatch"), "{text}");
            assert!(text.contains(size.0), "{text}");
        }
    }
}

/// Nobody else sets a limit on it: the SDK collects the answer, and each request to the bucket waits for the session.
#[tokio::test]
async fn a_session_whose_answer_stops_is_a_stall_and_not_a_hang() {
    let server = server(300);
    for transport in [Transport::Direct, Transport::Stock] {
        for size in SIZES {
            for at_byte in [1, 200] {
                let patience = Duration::from_millis(200);
                let client = client_within(&server, transport, "SK", patience).await;
                let stall = Rule::new(Effect::Stall {
                    at_byte,
                    ms: 600_000,
                });
                server.script("", vec![stall.operations(&[Operation::Bucket]).times(1)]);
                let answer = timeout(Duration::from_secs(20), read(&client, size)).await;
                let error = answer.expect("no hang").unwrap_err();
                let is_right = matches!(&error, Error::Stalled { idle, .. } if *idle == patience);
                assert!(is_right && error.is_retryable(), "{error:?}");
                server.clear_script();
                read(&client, size).await.unwrap();
            }
        }
    }
}

/// Trouble with opening a session is trouble of the request that needs it: asked again where that may help.
#[tokio::test]
async fn a_session_that_fails_now_may_open_later() {
    let server = server(300);
    let status = |status, code: &str| Effect::Status {
        status,
        code: code.into(),
    };
    for transport in [Transport::Direct, Transport::Stock] {
        for size in SIZES {
            for effect in [
                status(500, "InternalError"),
                status(503, "SlowDown"),
                Effect::Garbage,
            ] {
                let client = client(&server, transport, "SK").await;
                let rule = Rule::new(effect.clone()).operations(&[Operation::Bucket]);
                server.script("", vec![rule.times(1)]);
                let error = read(&client, size).await.unwrap_err();
                assert!(error.is_retryable(), "{effect:?}: {error:?}");
                read(&client, size).await.unwrap();
                server.clear_script();
            }
        }
    }
}
