//! Against `s3s-fs`: somebody else's reading of S3, with signatures checked.

use std::net::SocketAddr;
use std::path::Path;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use tokio::net::TcpListener;

use super::*;

/// Serves a folder, whose folders are buckets, until the test's runtime ends.
async fn serve(root: &Path) -> SocketAddr {
    let service = {
        let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(root).unwrap());
        builder.set_auth(SimpleAuth::from_single("AK", "SK"));
        builder.build()
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let server = Builder::new(TokioExecutor::new());
        while let Ok((socket, _)) = listener.accept().await {
            let connection = server
                .serve_connection(TokioIo::new(socket), service.clone())
                .into_owned();
            tokio::spawn(connection);
        }
    });
    addr
}

fn config_of(addr: SocketAddr, transport: Transport) -> S3Config {
    S3Config {
        endpoint_url: Some(format!("http://{addr}")),
        access_key: Some(AccessKey {
            id: "AK".into(),
            secret: "SK".into(),
            session_token: None,
        }),
        transport,
        ..S3Config::default()
    }
}

#[tokio::test]
async fn objects_are_listed_and_read() {
    let root = tempfile::tempdir().unwrap();
    let data = bytes(3_000_000);
    std::fs::create_dir_all(root.path().join("bucket/a b")).unwrap();
    std::fs::write(root.path().join("bucket/a b/ü+%20.bin"), &data).unwrap();
    std::fs::write(root.path().join("bucket/top"), b"0123456789").unwrap();
    let addr = serve(root.path()).await;
    for transport in TRANSPORTS {
        let (client, _) = client(config_of(addr, transport)).await;
        let listed = list(&client, "", Depth::All).await.unwrap();
        assert_eq!(listed, ["a b/ü+%20.bin", "top"]);
        assert_eq!(
            list(&client, "", Depth::OneLevel).await.unwrap(),
            ["a b/*", "top"]
        );
        let (got, meta) = read(&client, "a b/ü+%20.bin", 5..2_500_000).await.unwrap();
        assert!(got == data[5..2_500_000] && meta.size_bytes == 3_000_000);
        let (got, _) = read(&client, "top", 2..5).await.unwrap();
        assert_eq!(got, b"234");
        assert!(read_whole(&client, "a b/ü+%20.bin").await.unwrap().0 == data);
        let error = read(&client, "none", 0..1).await.unwrap_err();
        assert!(matches!(error, Error::NotFound { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn a_wrong_key_is_refused() {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(root.path().join("bucket")).unwrap();
    std::fs::write(root.path().join("bucket/top"), b"0123456789").unwrap();
    let addr = serve(root.path()).await;
    for transport in TRANSPORTS {
        let mut wrong = config_of(addr, transport);
        wrong.access_key.as_mut().unwrap().secret = "wrong".into();
        let (client, _) = client(wrong).await;
        let error = read(&client, "top", 0..1).await.unwrap_err();
        assert!(matches!(error, Error::PermissionDenied { .. }), "{error:?}");
    }
}
