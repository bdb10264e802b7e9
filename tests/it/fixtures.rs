//! The fixtures against our code: checksums that others computed, and keys that need care.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use fake_s3::FakeS3;
use futures::TryStreamExt as _;
use serde::Deserialize;
use standpipe::buffer::PartBuf;
use standpipe::checksum::{Checksum, ChecksumAlgorithm, Digest};
use standpipe::client::{Depth, ListEntry, ObjectClient, S3Client, S3Config, Transport};
use standpipe::object::{ByteRange, ObjectMeta, ObjectUri};

use crate::source;

/// A line of fixtures/golden/checksums.json.
#[derive(Debug, Deserialize)]
struct Golden {
    input: String,
    algorithm: String,
    value: String,
}

fn input(name: &str) -> Vec<u8> {
    match name {
        "empty" => Vec::new(),
        "check" => b"123456789".to_vec(),
        "zeros" => vec![0; 4096],
        // The same formula stands in fixtures/generate.py.
        "ramp" => (0..10_000u32)
            .map(|index| (index * 7 % 251) as u8)
            .collect(),
        other => panic!("unknown input {other}"),
    }
}

#[test]
fn checksums_are_those_that_aws_computes_in_the_form_of_the_headers() {
    let cases: Vec<Golden> =
        serde_json::from_str(&source::read("fixtures/golden/checksums.json")).unwrap();
    assert_eq!(cases.len(), 4 * ChecksumAlgorithm::ALL.len());
    for case in cases {
        let algorithm = ChecksumAlgorithm::from_name(&case.algorithm).unwrap();
        let bytes = input(&case.input);
        let whole = Checksum::of(algorithm, &bytes);
        assert_eq!(whole.to_base64(), case.value, "{case:?}");
        assert_eq!(Checksum::from_base64(algorithm, &case.value), Some(whole));

        let (first, second) = bytes.split_at(bytes.len() / 3);
        let combined = Checksum::of(algorithm, first)
            .then(Checksum::of(algorithm, second), second.len() as u64);
        assert_eq!(combined.to_base64(), case.value, "{case:?}, combined");
        let mut digest = Digest::new(algorithm);
        digest.update(first);
        digest.update(second);
        assert_eq!(digest.value().to_base64(), case.value, "{case:?}, running");
    }
}

/// The files below `dir` by their path from `base`, which is their key.
fn files(base: &Path, dir: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
    for path in fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
    {
        if path.is_dir() {
            files(base, &path, found);
        } else {
            let key = path
                .strip_prefix(base)
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned();
            found.insert(key, fs::read(&path).unwrap());
        }
    }
}

async fn client(server: &FakeS3, transport: Transport) -> S3Client {
    let config = S3Config {
        endpoint_url: Some(server.endpoint()),
        region: Some(server.region().to_owned()),
        anonymous: true,
        transport,
        ..S3Config::default()
    };
    S3Client::connect(config, Arc::default()).await.unwrap()
}

async fn read(client: &S3Client, meta: &ObjectMeta) -> Vec<u8> {
    let mut into = PartBuf::heap(meta.size_bytes as usize);
    if meta.size_bytes > 0 {
        let range = ByteRange::new(0, meta.size_bytes);
        client.get(&meta.id, range, &mut into).await.unwrap();
    }
    into.filled().to_vec()
}

#[tokio::test]
async fn keys_that_need_care_are_listed_and_read_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    source::make_sample_data(dir.path());
    let mut wanted = BTreeMap::new();
    files(dir.path(), &dir.path().join("odd"), &mut wanted);
    assert!(wanted.len() > 10 && wanted.values().any(Vec::is_empty));

    let server = FakeS3::start().unwrap();
    for (key, bytes) in &wanted {
        server.put("bucket", key, bytes);
    }
    for transport in [Transport::Direct, Transport::Stock] {
        let client = client(&server, transport).await;
        let listing = client.list(&ObjectUri::s3("bucket", "odd/"), Depth::All);
        let entries: Vec<ListEntry> = listing.try_collect().await.unwrap();
        let mut got = BTreeMap::new();
        for entry in entries {
            let ListEntry::Object(meta) = entry else {
                panic!("{entry:?} in a listing of all objects")
            };
            let bytes = read(&client, &meta).await;
            got.insert(meta.id.uri.key().to_owned(), bytes);
        }
        assert_eq!(got, wanted, "{transport:?}");
    }
}
