//! Writing to S3, on our scripted server and on `s3s-fs`, which somebody else wrote.

use std::sync::Arc;

use bytes::Bytes;
use fake_s3::{Effect, FakeS3, Operation, Rule};
use standpipe::client::{AccessKey, ObjectClient, S3Client, S3Config, Transport};
use standpipe::error::Error;
use standpipe::metrics::Metrics;
use standpipe::object::{ByteRange, ObjectId, ObjectUri};

use crate::world::{Wire, World, s3_config, serve_s3s, server};

const PART: usize = 5 << 20;

async fn scripted(server: &FakeS3) -> S3Client {
    let (config, _) = s3_config(server, Transport::Direct);
    S3Client::connect(config, Arc::new(Metrics::default()))
        .await
        .unwrap()
}

async fn whole(client: &S3Client, uri: &ObjectUri) -> Vec<u8> {
    let world = World::new(
        Arc::new(client.clone()),
        uri.clone(),
        Arc::default(),
        |_, _| {},
    );
    let size = client.head(uri).await.unwrap().size_bytes;
    let id = ObjectId::unpinned(uri.clone());
    let (bytes, answer) = world.read(&id, ByteRange::new(0, size)).await;
    answer.unwrap();
    bytes
}

/// What any server must do.
async fn writes(client: S3Client) {
    let uri = |key: &str| ObjectUri::s3("bucket", key.to_owned());
    let is_missing = |uri: ObjectUri| {
        let client = client.clone();
        async move { matches!(client.head(&uri).await, Err(Error::NotFound { .. })) }
    };
    let small = uri("dir/small");
    client
        .put(&small, Bytes::from_static(b"old"))
        .await
        .unwrap();
    client
        .put(&small, Bytes::from_static(b"new one"))
        .await
        .unwrap();
    assert_eq!(whole(&client, &small).await, b"new one");

    let large = uri("large");
    let upload = client.start_upload(&large).await.unwrap();
    // In any order: the numbers decide.
    let second = upload.part(2, Bytes::from_static(b"tail")).await.unwrap();
    let first = upload.part(1, vec![7; PART].into()).await.unwrap();
    assert!(
        is_missing(large.clone()).await,
        "it is seen when it is complete"
    );
    let size = (PART + 4) as u64;
    upload.complete(vec![second, first], size).await.unwrap();
    let mut expected = vec![7; PART];
    expected.extend_from_slice(b"tail");
    assert!(whole(&client, &large).await == expected);

    let given_up = uri("given-up");
    let upload = client.start_upload(&given_up).await.unwrap();
    upload.part(1, Bytes::from_static(b"x")).await.unwrap();
    upload.abort().await.unwrap();
    assert!(is_missing(given_up).await);

    client.delete(&small).await.unwrap();
    assert!(is_missing(small).await);
}

#[tokio::test]
async fn objects_are_written_whole_in_parts_and_deleted() {
    let server = server(Wire::Plain);
    server.put("bucket", "another", b"");
    writes(scripted(&server).await).await;
}

#[tokio::test]
async fn another_server_agrees() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("bucket")).unwrap();
    let address = serve_s3s(directory.path()).await;
    let config = S3Config {
        endpoint_url: Some(format!("http://{address}")),
        region: Some("us-east-1".into()),
        access_key: Some(AccessKey {
            id: "AK".into(),
            secret: "SK".into(),
            session_token: None,
        }),
        ..S3Config::default()
    };
    let client = S3Client::connect(config, Arc::new(Metrics::default()));
    writes(client.await.unwrap()).await;
}

#[tokio::test]
async fn a_server_that_is_busy_is_asked_again_and_one_that_refuses_is_not() {
    let server = server(Wire::Plain);
    server.put("bucket", "another", b"");
    let client = scripted(&server).await;
    let status = |status, code: &str| Effect::Status {
        status,
        code: code.into(),
    };
    let puts = |effect, times| Rule::new(effect).operations(&[Operation::Put]).times(times);
    server.script("bucket/busy", vec![puts(status(500, "InternalError"), 2)]);
    let busy = ObjectUri::s3("bucket", "busy");
    client.put(&busy, Bytes::from_static(b"x")).await.unwrap();
    assert_eq!(whole(&client, &busy).await, b"x");

    server.script("bucket/mine", vec![puts(status(403, "AccessDenied"), 9)]);
    server.clear_log();
    let mine = ObjectUri::s3("bucket", "mine");
    let error = client
        .put(&mine, Bytes::from_static(b"x"))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::PermissionDenied { .. }), "{error}");
    assert!(error.to_string().contains("s3://bucket/mine"), "{error}");
    assert_eq!(server.log().len(), 1);
}
