//! The S3 client against two servers: our scripted one, and `s3s-fs`, which somebody else wrote.

use std::sync::Arc;

use fake_s3::{BucketOptions, Credentials, Effect, FakeS3, Latency, Operation, PutOptions, Rule};
use futures::{StreamExt, TryStreamExt};
use standpipe::buffer::PartBuf;
use standpipe::checksum::{ChecksumAlgorithm, ChecksumPolicy};
use standpipe::client::{
    AccessKey, Depth, GetMeta, ListEntry, ObjectClient, RetryClient, RetryConfig, S3Client,
    S3Config, SseCustomerKey, Transport,
};
use standpipe::error::{Error, Result};
use standpipe::metrics::Metrics;
use standpipe::object::{ByteRange, ObjectId, ObjectUri};
use standpipe::prefetch::{PrefetchConfig, Prefetcher};

mod foreign;

const TRANSPORTS: [Transport; 2] = [Transport::Direct, Transport::Stock];

/// A client of `server` that signs with nobody's key.
fn config(server: &FakeS3, transport: Transport) -> S3Config {
    S3Config {
        endpoint_url: Some(server.endpoint()),
        region: Some("us-east-1".into()),
        anonymous: true,
        transport,
        ..S3Config::default()
    }
}

async fn client(config: S3Config) -> (S3Client, Arc<Metrics>) {
    let metrics = Arc::<Metrics>::default();
    let client = S3Client::connect(config, metrics.clone()).await.unwrap();
    (client, metrics)
}

async fn connect(server: &FakeS3, transport: Transport) -> (S3Client, Arc<Metrics>) {
    client(config(server, transport)).await
}

fn uri(key: &str) -> ObjectUri {
    ObjectUri::s3("bucket", key)
}

/// Reads `range` of an object of which nothing is known.
async fn read(
    client: &dyn ObjectClient,
    key: &str,
    range: std::ops::Range<u64>,
) -> Result<(Vec<u8>, GetMeta)> {
    let mut part = PartBuf::heap((range.end - range.start) as usize);
    let meta = client
        .get(&ObjectId::unpinned(uri(key)), range.into(), &mut part)
        .await?;
    Ok((part.filled().to_vec(), meta))
}

/// Reads all of an object, as the engine does after a listing.
async fn read_whole(client: &S3Client, key: &str) -> Result<(Vec<u8>, GetMeta)> {
    let id = client.head(&uri(key)).await?.id;
    read_id(client, &id).await
}

async fn read_id(client: &S3Client, id: &ObjectId) -> Result<(Vec<u8>, GetMeta)> {
    let size = id.size_bytes.unwrap();
    let mut part = PartBuf::heap(size as usize);
    let meta = client.get(id, ByteRange::new(0, size), &mut part).await?;
    Ok((part.filled().to_vec(), meta))
}

async fn list(client: &dyn ObjectClient, prefix: &str, depth: Depth) -> Result<Vec<String>> {
    let entries: Vec<ListEntry> = client.list(&uri(prefix), depth).try_collect().await?;
    Ok(entries
        .into_iter()
        .map(|entry| match entry {
            ListEntry::Object(meta) => meta.id.uri.key().to_owned(),
            ListEntry::Prefix(uri) => format!("{}*", uri.key()),
        })
        .collect())
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 251) as u8).collect()
}

#[tokio::test]
async fn ranges_wholes_and_unknown_sizes() {
    let server = FakeS3::start().unwrap();
    let data = bytes(100_000);
    server.put("bucket", "k", &data);
    server.put("bucket", "empty", b"");
    for transport in TRANSPORTS {
        let (client, metrics) = connect(&server, transport).await;
        let (got, meta) = read(&client, "k", 10..50_000).await.unwrap();
        assert!(got == data[10..50_000] && meta.size_bytes == 100_000);
        let (got, meta) = read(&client, "k", 99_990..200_000).await.unwrap();
        assert!(got == data[99_990..] && meta.size_bytes == 100_000);
        let (got, meta) = read_whole(&client, "k").await.unwrap();
        assert!(got == data && meta.checksum.is_some());
        let (got, meta) = read(&client, "empty", 0..100).await.unwrap();
        assert!(got.is_empty() && meta.size_bytes == 0 && meta.etag.is_some());
        assert!(read_whole(&client, "empty").await.unwrap().0.is_empty());
        let error = read(&client, "k", 200_000..200_001).await.unwrap_err();
        assert!(
            matches!(
                error,
                Error::RangeNotSatisfiable {
                    offset: 200_000,
                    ..
                }
            ),
            "{error}"
        );
        let snapshot = metrics.snapshot();
        assert_eq!(
            (snapshot.checksums_verified, snapshot.requests_in_flight),
            (1, 0)
        );
        assert_eq!(snapshot.bytes_wasted, 0);
    }
}

#[tokio::test]
async fn no_head_before_a_get_and_no_range_for_a_whole_object() {
    let server = FakeS3::start().unwrap();
    let etag = server.put("bucket", "k", b"0123456789");
    for transport in TRANSPORTS {
        let (client, metrics) = connect(&server, transport).await;
        server.clear_log();
        let id = ObjectId {
            etag: Some(etag.as_str().into()),
            size_bytes: Some(10),
            ..ObjectId::unpinned(uri("k"))
        };
        read_id(&client, &id).await.unwrap();
        let mut part = PartBuf::heap(6);
        part.put(b"23");
        client
            .get(&id, ByteRange::new(2, 8), &mut part)
            .await
            .unwrap();
        assert_eq!(part.filled(), b"234567");
        let log = server.log();
        let asked: Vec<_> = log
            .iter()
            .map(|e| (e.operation, e.range.as_deref()))
            .collect();
        assert_eq!(
            asked,
            [(Operation::Get, None), (Operation::Get, Some("bytes=4-7"))]
        );
        assert!(
            log.iter()
                .all(|entry| entry.if_match.as_deref() == Some(&*etag))
        );
        assert_eq!(metrics.snapshot().requests, 2);
    }
}

#[tokio::test]
async fn listings_in_pages_levels_and_odd_keys() {
    let server = FakeS3::start().unwrap();
    let odd = [
        "a b",
        "a%20b",
        "a+b",
        "a/b/c",
        "a/b//d",
        "ünï/日本",
        "x&y=z?#",
        "~.-_",
        "ctrl\u{1}",
        "a\\b",
    ];
    for key in odd {
        server.put("bucket", &format!("odd/{key}"), key.as_bytes());
    }
    for n in 0..2_500 {
        server.put("bucket", &format!("many/{n:05}"), b"x");
    }
    for transport in TRANSPORTS {
        let (client, _) = connect(&server, transport).await;
        let mut expected: Vec<_> = odd.iter().map(|key| format!("odd/{key}")).collect();
        expected.sort();
        assert_eq!(list(&client, "odd/", Depth::All).await.unwrap(), expected);
        for key in odd {
            let (got, _) = read_whole(&client, &format!("odd/{key}")).await.unwrap();
            assert_eq!(got, key.as_bytes(), "{key}");
        }
        let many = list(&client, "many/", Depth::All).await.unwrap();
        assert_eq!(many.len(), 2_500);
        assert!(many.is_sorted());
        assert_eq!(
            list(&client, "", Depth::OneLevel).await.unwrap(),
            ["many/*", "odd/*"]
        );
        let level = list(&client, "odd/a/", Depth::OneLevel).await.unwrap();
        assert_eq!(level, ["odd/a/b/*"]);
        assert!(list(&client, "none/", Depth::All).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_listing_and_a_head_tell_etag_size_time_and_checksum() {
    let server = FakeS3::start().unwrap();
    let composite = PutOptions {
        algorithm: fake_s3::Algorithm::Crc32c,
        kind: fake_s3::ChecksumKind::Composite,
        part_bytes: Some(4),
        ..PutOptions::default()
    };
    server.put("bucket", "full", b"0123456789");
    server.put_with("bucket", "composite", b"0123456789", composite);
    for transport in TRANSPORTS {
        let (client, _) = connect(&server, transport).await;
        let entries: Vec<_> = client
            .list(&uri(""), Depth::All)
            .try_collect()
            .await
            .unwrap();
        for (entry, algorithm) in entries
            .iter()
            .zip([None, Some(ChecksumAlgorithm::Crc64Nvme)])
        {
            let ListEntry::Object(meta) = entry else {
                panic!("{entry:?}")
            };
            assert_eq!((meta.size_bytes, meta.checksum_algorithm), (10, algorithm));
            assert!(meta.id.etag.is_some() && meta.last_modified.is_some());
            let head = client.head(&meta.id.uri).await.unwrap();
            assert_eq!(head.id, meta.id);
            assert_eq!(head.checksum.map(|sum| sum.algorithm), algorithm);
        }
    }
}

#[tokio::test]
async fn what_is_missing_or_changed_says_so() {
    let server = FakeS3::start().unwrap();
    server.put("bucket", "k", &bytes(1000));
    for transport in TRANSPORTS {
        let (client, _) = connect(&server, transport).await;
        for error in [
            read(&client, "none", 0..1).await.unwrap_err(),
            client.head(&uri("none")).await.unwrap_err(),
            client
                .head(&ObjectUri::s3("nowhere", "k"))
                .await
                .unwrap_err(),
        ] {
            assert!(matches!(error, Error::NotFound { .. }), "{error}");
        }
        let error = read(&client, "none", 0..1).await.unwrap_err().to_string();
        assert!(
            error.contains("s3://bucket/none") && error.contains("NoSuchKey"),
            "{error}"
        );
        assert!(error.contains("request id"), "{error}");
        let id = client.head(&uri("k")).await.unwrap().id;
        server.replace("bucket", "k", &bytes(999));
        let error = read_id(&client, &id).await.unwrap_err();
        assert!(matches!(error, Error::Changed { .. }), "{error}");
        server.replace("bucket", "k", &bytes(1000));
    }
}

#[tokio::test]
async fn the_versions_that_are_named_are_read() {
    let server = FakeS3::start().unwrap();
    server.put("bucket", "k", b"one");
    let (client, _) = connect(&server, Transport::Stock).await;
    let listed = server.log().len();
    assert_eq!(listed, 0);
    let mut id = client.head(&uri("k")).await.unwrap().id;
    server.replace("bucket", "k", b"two");
    id.version_id = Some("nonsense".into());
    for transport in TRANSPORTS {
        let (client, _) = connect(&server, transport).await;
        let error = read_id(&client, &id).await.unwrap_err();
        assert!(!error.is_retryable(), "{error}");
        assert!(
            server
                .log()
                .last()
                .unwrap()
                .query
                .contains("versionId=nonsense")
        );
    }
}

/// Each fault gives the right bytes or the right error, and never wrong bytes.
#[tokio::test]
async fn faults_of_the_server() {
    type Check = fn(&Error) -> bool;
    let network: Check = |e| matches!(e, Error::Network { .. } | Error::Protocol { .. });
    let server_fault: Check = |e| matches!(e, Error::Server { .. });
    let throttled: Check = |e| matches!(e, Error::Throttled { .. });
    let protocol: Check = |e| matches!(e, Error::Protocol { .. });
    let changed: Check = |e| matches!(e, Error::Changed { .. });
    let corrupt: Check = |e| matches!(e, Error::Corrupt { .. });
    let status = |status, code: &str| Effect::Status {
        status,
        code: code.into(),
    };
    let cases: Vec<(Effect, Option<Check>)> = vec![
        (status(500, ""), Some(server_fault)),
        (status(503, "SlowDown"), Some(throttled)),
        (status(503, "ServiceUnavailable"), Some(server_fault)),
        (Effect::OkWithError, Some(|e| e.is_retryable())),
        (Effect::Garbage, Some(network)),
        (Effect::Reset { at_byte: 500 }, Some(network)),
        (Effect::Truncate { at_byte: 500 }, Some(network)),
        (Effect::FlipBit { at_byte: 500 }, Some(corrupt)),
        (Effect::WrongEtag, Some(changed)),
        (Effect::WrongChecksum, Some(corrupt)),
        (Effect::Chunked, None),
        (Effect::NoContentLength, None),
        (Effect::IgnoreRange, None),
    ];
    let server = FakeS3::start().unwrap();
    let data = bytes(2000);
    server.put("bucket", "k", &data);
    for transport in TRANSPORTS {
        for (effect, expected) in &cases {
            let (client, metrics) = connect(&server, transport).await;
            let id = client.head(&uri("k")).await.unwrap().id;
            server.script(
                "",
                vec![
                    Rule::new(effect.clone())
                        .operations(&[Operation::Get])
                        .times(1),
                ],
            );
            let got = read_id(&client, &id).await;
            match expected {
                None => assert!(got.unwrap().0 == data, "{effect:?}"),
                Some(check) => {
                    let error = got.unwrap_err();
                    assert!(check(&error), "{effect:?} over {transport:?}: {error:?}");
                }
            }
            assert_eq!(metrics.snapshot().requests_in_flight, 0, "{effect:?}");
            let throttles =
                u64::from(matches!(effect, Effect::Status { code, .. } if code == "SlowDown"));
            assert_eq!(metrics.snapshot().throttles, throttles, "{effect:?}");
            server.clear_script();
            assert!(
                read_id(&client, &id).await.unwrap().0 == data,
                "after {effect:?}"
            );
        }
        let (client, metrics) = connect(&server, transport).await;
        for (effect, expected) in [
            (Effect::IgnoreRange, None),
            (Effect::WrongContentRange, Some(protocol)),
        ] {
            server.script("", vec![Rule::new(effect.clone()).times(1)]);
            let got = read(&client, "k", 100..300).await;
            match expected {
                None => assert!(got.unwrap().0 == data[100..300], "{effect:?}"),
                Some(check) => assert!(check(&got.unwrap_err()), "{effect:?}"),
            }
            server.clear_script();
        }
        assert!(metrics.snapshot().bytes_wasted >= 100);
    }
}

#[tokio::test]
async fn a_broken_body_is_resumed_where_it_broke_and_still_verified() {
    let server = FakeS3::start().unwrap();
    let data = bytes(300_000);
    server.put("bucket", "k", &data);
    for transport in TRANSPORTS {
        let (client, metrics) = connect(&server, transport).await;
        let id = client.head(&uri("k")).await.unwrap().id;
        server.script(
            "",
            vec![Rule::new(Effect::Truncate { at_byte: 200_000 }).times(1)],
        );
        let mut part = PartBuf::heap(data.len());
        let whole = ByteRange::new(0, data.len() as u64);
        let error = client.get(&id, whole, &mut part).await.unwrap_err();
        let arrived = part.filled().len() as u64;
        assert!(
            matches!(error, Error::Network { offset, .. } if offset == arrived),
            "{error:?}"
        );
        assert!(arrived > 0, "what had arrived stays");
        let meta = client.get(&id, whole, &mut part).await.unwrap();
        assert!(part.filled() == data && meta.checksum.is_some());
        let snapshot = metrics.snapshot();
        assert_eq!((snapshot.checksums_verified, snapshot.bytes_wasted), (1, 0));
        assert_eq!(snapshot.bytes_received, data.len() as u64);
    }
}

#[tokio::test]
async fn silence_is_a_stall_and_not_a_hang() {
    let server = FakeS3::start().unwrap();
    server.put("bucket", "k", &bytes(2000));
    for transport in TRANSPORTS {
        let quick = S3Config {
            progress_timeout: std::time::Duration::from_millis(100),
            ..config(&server, transport)
        };
        let (client, _) = client(quick).await;
        let stall = Effect::Stall {
            at_byte: 1000,
            ms: 3_000,
        };
        server.script("", vec![Rule::new(stall).times(1)]);
        let error = read(&client, "k", 0..2000).await.unwrap_err();
        assert!(
            matches!(error, Error::Stalled { offset: 1000, .. }),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn checksums_are_required_or_left_out_as_told() {
    let server = FakeS3::start().unwrap();
    let without = PutOptions {
        no_checksum: true,
        ..PutOptions::default()
    };
    server.put_with("bucket", "old", b"0123456789", without);
    server.put("bucket", "new", b"0123456789");
    for transport in TRANSPORTS {
        let with = |checksums| S3Config {
            checksums,
            ..config(&server, transport)
        };
        let (strict, _) = client(with(ChecksumPolicy::Require)).await;
        assert!(matches!(
            read_whole(&strict, "old").await.unwrap_err(),
            Error::Corrupt { .. }
        ));
        assert!(read_whole(&strict, "new").await.is_ok());
        let (lax, metrics) = client(with(ChecksumPolicy::Off)).await;
        assert_eq!(read_whole(&lax, "new").await.unwrap().1.checksum, None);
        assert_eq!(metrics.snapshot().checksums_verified, 0);
    }
}

/// A client that signs with this key.
fn signed(server: &FakeS3, transport: Transport, key: &Credentials) -> S3Config {
    S3Config {
        anonymous: false,
        access_key: Some(AccessKey {
            id: key.access_key.clone(),
            secret: key.secret_key.clone(),
            session_token: key.session_token.clone(),
        }),
        ..config(server, transport)
    }
}

#[tokio::test]
async fn requester_pays_and_customer_keys() {
    let server = FakeS3::start().unwrap();
    let paid = BucketOptions {
        requester_pays: true,
        ..BucketOptions::default()
    };
    server.create_bucket("bucket", paid);
    let (key, md5) = (
        "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=",
        "y4HAEFCYWuvAXWFTtA1Qpg==",
    );
    let locked = PutOptions {
        customer_key_md5: Some(md5.into()),
        ..PutOptions::default()
    };
    server.put_with("bucket", "locked", b"secret", locked);
    server.put("bucket", "open", b"open");
    for transport in TRANSPORTS {
        let stingy = signed(&server, transport, &Credentials::new("AK", "SK"));
        let (client_, _) = client(stingy.clone()).await;
        let error = read(&client_, "open", 0..4).await.unwrap_err();
        assert!(matches!(error, Error::PermissionDenied { .. }), "{error}");
        let paying = S3Config {
            request_payer: true,
            ..stingy
        };
        let (client_, _) = client(paying.clone()).await;
        assert_eq!(read_whole(&client_, "open").await.unwrap().0, b"open");
        assert_eq!(
            list(&client_, "", Depth::All).await.unwrap(),
            ["locked", "open"]
        );
        let error = read(&client_, "locked", 0..6).await.unwrap_err();
        assert!(
            matches!(
                error,
                Error::Refused { .. } | Error::PermissionDenied { .. }
            ),
            "{error}"
        );
        let sse_c = Some(SseCustomerKey::from_base64(key).unwrap());
        let (client_, _) = client(S3Config { sse_c, ..paying }).await;
        assert_eq!(read_whole(&client_, "locked").await.unwrap().0, b"secret");
    }
}

#[tokio::test]
async fn signatures_are_checked_and_right() {
    let mut temporary = Credentials::new("AKTEMP", "secret/+=");
    temporary.session_token = Some("token+with/odd=chars".into());
    let keys = [Credentials::new("AK", "SK"), temporary];
    let server = keys
        .iter()
        .fold(FakeS3::builder(), |builder, key| builder.auth(key.clone()))
        .start()
        .unwrap();
    let odd = "a b/ü+%20&=~'()*!$,:;@[]\u{7f}";
    server.put("bucket", odd, b"odd");
    for transport in TRANSPORTS {
        for key in &keys {
            let (client, _) = client(signed(&server, transport, key)).await;
            assert_eq!(read_whole(&client, odd).await.unwrap().0, b"odd");
            assert_eq!(read(&client, odd, 1..2).await.unwrap().0, b"d");
            assert_eq!(list(&client, "a b", Depth::All).await.unwrap(), [odd]);
            assert!(server.log().iter().all(|entry| entry.authenticated));
        }
        let code = |error: Error| match error {
            Error::PermissionDenied { answer, .. } => answer.code.unwrap_or_default(),
            other => panic!("{other}"),
        };
        let wrong_secret = signed(&server, transport, &Credentials::new("AK", "wrong"));
        let (client_, _) = client(wrong_secret).await;
        assert_eq!(
            code(read(&client_, odd, 0..1).await.unwrap_err()),
            "SignatureDoesNotMatch"
        );
        let nobody = signed(&server, transport, &Credentials::new("NOBODY", "SK"));
        let (client_, _) = client(nobody).await;
        assert_eq!(
            code(read(&client_, odd, 0..1).await.unwrap_err()),
            "InvalidAccessKeyId"
        );
        let (client_, _) = connect(&server, transport).await;
        assert_eq!(
            code(read(&client_, odd, 0..1).await.unwrap_err()),
            "AccessDenied"
        );
        server.clear_log();
    }
}

#[tokio::test]
async fn a_skewed_clock_is_named() {
    let key = Credentials::new("AK", "SK");
    let server = FakeS3::builder()
        .auth(key.clone())
        .clock_offset_s(3600)
        .start()
        .unwrap();
    server.put("bucket", "k", b"x");
    for transport in TRANSPORTS {
        let (client, _) = client(signed(&server, transport, &key)).await;
        let error = read(&client, "k", 0..1).await.unwrap_err();
        assert!(error.fix().unwrap().contains("clock"), "{error}");
    }
}

#[tokio::test]
async fn an_expired_token_is_renewed_once() {
    let key = Credentials::new("AK", "SK");
    let server = FakeS3::builder().auth(key.clone()).start().unwrap();
    server.put("bucket", "k", b"x");
    let expired = Effect::Status {
        status: 400,
        code: "ExpiredToken".into(),
    };
    for transport in TRANSPORTS {
        let (client, metrics) = client(signed(&server, transport, &key)).await;
        server.script("", vec![Rule::new(expired.clone()).times(1)]);
        assert_eq!(read(&client, "k", 0..1).await.unwrap().0, b"x");
        assert_eq!(metrics.snapshot().requests, 2);
        server.clear_script();
        server.script("", vec![Rule::new(expired.clone())]);
        let error = read(&client, "k", 0..1).await.unwrap_err();
        assert!(error.fix().unwrap().contains("expired"), "{error}");
        assert_eq!(metrics.snapshot().requests, 4);
        server.clear_script();
    }
}

#[tokio::test]
async fn a_buckets_region_is_learned_from_its_first_refusal() {
    let key = Credentials::new("AK", "SK");
    let server = FakeS3::builder().auth(key.clone()).start().unwrap();
    let far = BucketOptions {
        region: Some("eu-central-1".into()),
        ..BucketOptions::default()
    };
    server.create_bucket("bucket", far);
    server.put("bucket", "k", b"x");
    for transport in TRANSPORTS {
        let (client, metrics) = client(signed(&server, transport, &key)).await;
        assert_eq!(read(&client, "k", 0..1).await.unwrap().0, b"x");
        assert_eq!(metrics.snapshot().requests, 2);
        assert_eq!(read(&client, "k", 0..1).await.unwrap().0, b"x");
        client.head(&uri("k")).await.unwrap();
        assert_eq!(list(&client, "", Depth::All).await.unwrap(), ["k"]);
        assert_eq!(metrics.snapshot().requests, 5, "known from then on");
    }
}

#[tokio::test]
async fn buckets_are_in_the_path_below_localhost_and_addresses() {
    let server = FakeS3::start().unwrap();
    server.put("bucket", "k", b"x");
    for transport in TRANSPORTS {
        for host in ["localhost", "127.0.0.1"] {
            let config = S3Config {
                endpoint_url: Some(format!("http://{host}:{}", server.addr().port())),
                ..config(&server, transport)
            };
            let (client, _) = client(config).await;
            let got = read(&client, "k", 0..1).await;
            assert_eq!(got.unwrap().0, b"x", "{host}");
        }
    }
}

#[tokio::test]
async fn tls_trusts_the_bundle_and_nothing_else() {
    let server = FakeS3::builder().tls(true).start().unwrap();
    server.put("bucket", "k", &bytes(100_000));
    let dir = tempfile::tempdir().unwrap();
    let bundle = dir.path().join("ca.pem");
    std::fs::write(&bundle, server.ca_pem().unwrap()).unwrap();
    for transport in TRANSPORTS {
        let trusting = S3Config {
            ca_bundle: Some(bundle.clone()),
            ..config(&server, transport)
        };
        let (client_, _) = client(trusting).await;
        assert!(read_whole(&client_, "k").await.unwrap().0 == bytes(100_000));
        let (client_, _) = connect(&server, transport).await;
        let error = read(&client_, "k", 0..1).await.unwrap_err();
        assert!(matches!(error, Error::Tls { .. }), "{error:?}");
        assert!(error.fix().unwrap().contains("--ca-bundle"));
        assert!(error.to_string().contains("certificate"), "{error}");
    }
}

#[tokio::test]
async fn what_cannot_work_is_said_before_anything_is_sent() {
    let server = FakeS3::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let junk = dir.path().join("junk.pem");
    std::fs::write(&junk, "no certificate").unwrap();
    let base = config(&server, Transport::Stock);
    let cases = [
        S3Config {
            endpoint_url: Some("127.0.0.1:1".into()),
            ..base.clone()
        },
        S3Config {
            ca_bundle: Some(junk),
            ..base.clone()
        },
        S3Config {
            ca_bundle: Some(dir.path().join("absent.pem")),
            ..base
        },
    ];
    for case in cases {
        let error = S3Client::connect(case, Arc::default()).await.unwrap_err();
        assert!(matches!(error, Error::Config { .. }), "{error}");
    }
    assert!(server.log().is_empty());
}

#[tokio::test]
async fn nobody_listening_is_a_network_error() {
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    for transport in TRANSPORTS {
        let config = S3Config {
            endpoint_url: Some(format!("http://127.0.0.1:{port}")),
            anonymous: true,
            transport,
            ..S3Config::default()
        };
        let (client, _) = client(config).await;
        for error in [
            read(&client, "k", 0..1).await.unwrap_err(),
            client.head(&uri("k")).await.unwrap_err(),
            list(&client, "", Depth::All).await.unwrap_err(),
        ] {
            assert!(matches!(error, Error::Network { .. }), "{error:?}");
        }
    }
}

/// A label of more than 63 characters cannot be asked of any name server, so nothing is sent.
#[tokio::test]
async fn a_host_that_does_not_exist_is_named_and_not_waited_for() {
    let host = "x".repeat(64);
    for transport in TRANSPORTS {
        let config = S3Config {
            endpoint_url: Some(format!("http://{host}:1")),
            anonymous: true,
            transport,
            ..S3Config::default()
        };
        let (client, metrics) = client(config).await;
        let client = RetryClient::new(Arc::new(client), RetryConfig::default(), metrics.clone());
        for error in [
            read(&client, "k", 0..1).await.unwrap_err(),
            client.head(&uri("k")).await.unwrap_err(),
            list(&client, "", Depth::All).await.unwrap_err(),
        ] {
            assert!(
                matches!(error.root(), Error::UnknownHost { host: named, .. } if *named == host),
                "{transport:?}: {error:?}"
            );
        }
        assert_eq!(metrics.requests.get(), 3 * 4, "{transport:?}");
    }
}

/// The first byte of a dataset waits for a LIST and a GET on one connection.
#[tokio::test]
async fn listings_heads_and_small_gets_share_a_connection() {
    let server = FakeS3::start().unwrap();
    server.put("bucket", "k", b"bytes");
    let (client, metrics) = connect(&server, Transport::Direct).await;
    assert_eq!(list(&client, "", Depth::All).await.unwrap(), ["k"]);
    client.head(&uri("k")).await.unwrap();
    // Neither brought bytes of an object, nor says how long one takes.
    assert_eq!(metrics.bytes_received.get(), 0);
    assert!(metrics.first_byte.quantile(1.0).is_zero());
    read(&client, "k", 0..5).await.unwrap();
    assert_eq!(metrics.bytes_received.get(), 5);
    assert!(!metrics.first_byte.quantile(1.0).is_zero());
    let connections = (
        metrics.connections_opened.get(),
        metrics.connections_reused.get(),
    );
    assert_eq!(connections, (1, 2));
}

/// However many keys there are, the first page is short, and the first object is asked for behind it, on the listing's
/// connection and before all others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_begins_the_same_way_however_many_keys_there_are() {
    for keys in [5_000, 20_000] {
        // Sent first; but of requests sent within a fraction of a millisecond, a busy server may see later ones sooner.
        let mut places = Vec::new();
        while places.len() < 4 && places.last().is_none_or(|at| *at >= 5) {
            places.push(place_of_the_first_get(keys).await);
        }
        assert!(
            places.last().is_some_and(|at| *at < 5),
            "{keys} keys: {places:?}"
        );
    }
}

/// Which of the server's requests a stream's first GET is. It must be small and on the listing's connection.
async fn place_of_the_first_get(keys: u64) -> usize {
    let server = FakeS3::start().unwrap();
    for index in 0..keys {
        server.put_synthetic("bucket", &format!("{index:05}"), 100_000, index);
    }
    // Long enough for the other requests to be under way before the first is answered.
    let latency = Latency::fixed(std::time::Duration::from_millis(50));
    server.script("bucket", vec![Rule::new(Effect::Latency(latency))]);
    let (client, metrics) = connect(&server, Transport::Direct).await;
    let objects = client.list(&uri(""), Depth::All);
    let objects = objects.map_ok(|entry| match entry {
        ListEntry::Object(meta) => meta,
        ListEntry::Prefix(uri) => panic!("{uri}"),
    });
    let here = tokio::runtime::Handle::current();
    let engine = Prefetcher::on(here, Arc::new(client), PrefetchConfig::default(), metrics);
    let engine = engine.unwrap();
    let mut reader = engine.read_all(objects.boxed()).unwrap();
    let first = reader.next_chunk().await.unwrap().unwrap();
    assert_eq!(first.object.uri.key(), "00000");
    // Of the small object, only so much is waited for; a HEAD for its checksum and the next page go beside it.
    assert_eq!(first.bytes.len(), 4 << 10);
    let log = server.log();
    assert!(log[0].query.ends_with("max-keys=16"), "{}", log[0].query);
    let is_first = |request: &fake_s3::LogEntry| request.range.as_deref() == Some("bytes=0-4095");
    let at = log.iter().position(is_first);
    let at = at.unwrap();
    assert_eq!(log[at].connection, log[0].connection, "{keys} keys");
    at
}
