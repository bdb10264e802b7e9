//! Proxies, as the environment names them. Hosts that are made up lead to the scripted server, through the proxy only.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use fake_s3::{Credentials, FakeS3};
use standpipe::client::{ObjectClient, S3Client, S3Config};
use standpipe::error::Error;
use standpipe::object::ObjectUri;

use super::stub::Stub;
use super::{KEY, SECRET, bytes, cat, code, put_both, text};

fn server(tls: bool) -> FakeS3 {
    let server = FakeS3::builder()
        .auth(Credentials::new(KEY, SECRET))
        .tls(tls)
        .start()
        .unwrap();
    put_both(&server, "bucket");
    server
}

/// A small and a large object of a host that only the proxy knows.
fn both<'a>(endpoint: &'a str, transport: &'a str) -> [&'a str; 6] {
    [
        "--endpoint-url",
        endpoint,
        "--transport",
        transport,
        "s3://bucket/dir/small",
        "s3://bucket/dir/large",
    ]
}

#[test]
fn plain_requests_are_forwarded() {
    let server = server(false);
    for (variable, transport) in [
        ("HTTP_PROXY", "direct"),
        ("http_proxy", "stock"),
        ("ALL_PROXY", "stock"),
        ("all_proxy", "direct"),
    ] {
        let proxy = Stub::proxy(server.addr());
        server.clear_log();
        let variables = [(variable, proxy.url())];
        let output = cat(&variables, &both("http://store.example", transport));
        assert_eq!(code(&output), 0, "{variable}: {}", text(&output.stderr));
        assert!(output.stdout == bytes(), "{variable}: other bytes");
        let (seen, log) = (proxy.seen(), server.log());
        assert!(!log.is_empty() && seen.len() == log.len(), "{variable}");
        for (seen, entry) in seen.iter().zip(&log) {
            let about = "http://store.example/bucket";
            assert!(seen.target.starts_with(about), "{seen:?}");
            assert_eq!(entry.host.as_deref(), Some("store.example"));
            assert!(entry.authenticated, "{entry:?}");
        }
    }
}

#[test]
fn tls_goes_through_a_tunnel() {
    let server = server(true);
    let dir = tempfile::tempdir().unwrap();
    let bundle = dir.path().join("ca.pem");
    std::fs::write(&bundle, server.ca_pem().unwrap()).unwrap();
    for (variable, transport) in [
        ("HTTPS_PROXY", "direct"),
        ("https_proxy", "stock"),
        ("ALL_PROXY", "direct"),
    ] {
        let proxy = Stub::proxy(server.addr());
        server.clear_log();
        let variables = [
            (variable, proxy.url()),
            ("AWS_CA_BUNDLE", bundle.display().to_string()),
        ];
        let output = cat(&variables, &both("https://store.example", transport));
        assert_eq!(code(&output), 0, "{variable}: {}", text(&output.stderr));
        assert!(output.stdout == bytes(), "{variable}: other bytes");
        let seen = proxy.seen();
        assert!(!seen.is_empty(), "{variable}");
        for seen in &seen {
            let asked = (seen.method.as_str(), seen.target.as_str());
            assert_eq!(asked, ("CONNECT", "store.example:443"));
        }
        assert!(server.log().iter().all(|entry| entry.authenticated));
    }
}

/// The password goes to the proxy, and not to the server behind a tunnel.
#[test]
fn a_proxy_is_told_its_password() {
    let server = server(false);
    let proxy = Stub::proxy(server.addr());
    let url = format!("http://user:word@{}", proxy.addr());
    let variables = [("HTTP_PROXY", url)];
    let output = cat(&variables, &both("http://store.example", "direct"));
    assert_eq!(code(&output), 0, "{}", text(&output.stderr));
    let basic = base64::engine::general_purpose::STANDARD.encode("user:word");
    for seen in proxy.seen() {
        let told = seen.header("proxy-authorization");
        assert_eq!(told, Some(format!("Basic {basic}").as_str()));
    }
}

#[test]
fn this_machine_is_never_asked_of_a_proxy() {
    let server = server(false);
    let proxy = Stub::proxy(server.addr());
    let everything = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"];
    let variables = everything.map(|name| (name, proxy.url()));
    for transport in ["direct", "stock"] {
        let output = cat(&variables, &both(&server.endpoint(), transport));
        assert_eq!(code(&output), 0, "{}", text(&output.stderr));
        assert!(output.stdout == bytes(), "other bytes");
    }
    assert!(proxy.seen().is_empty(), "{:?}", proxy.seen());
}

/// The error says which proxy refused and where it was set, and keeps its password.
#[test]
fn a_proxy_that_refuses_is_named() {
    for (status, variable, endpoint) in [
        (403, "HTTP_PROXY", "http://store.example"),
        (407, "ALL_PROXY", "http://store.example"),
        (407, "HTTPS_PROXY", "https://store.example"),
    ] {
        let proxy = Stub::answering(move |_| (status, "go away".into()));
        let url = format!("http://user:word@{}", proxy.addr());
        for transport in ["direct", "stock"] {
            let output = cat(&[(variable, url.clone())], &both(endpoint, transport));
            let said = text(&output.stderr);
            let name = format!("proxy http://{} of {variable}", proxy.addr());
            assert!(said.contains(&name), "{status} of {variable}: {said}");
            assert!(!said.contains("word"), "{said}");
            assert!(output.stdout.is_empty() && code(&output) != 0, "{said}");
        }
        assert!(!proxy.seen().is_empty());
    }
}

/// Set in the process that the next test starts: variables are process-wide, and no flag makes a command as impatient.
const ASKING: &str = "STANDPIPE_TEST_ASKING_A_PROXY";

/// Asks an impatient client for an object behind a proxy, and prints the error.
fn ask() {
    let config = S3Config {
        endpoint_url: Some("http://store.example".into()),
        region: Some("us-east-1".into()),
        anonymous: true,
        first_byte_timeout: Duration::from_millis(200),
        ..S3Config::default()
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let client = S3Client::connect(config, Arc::default()).await.unwrap();
        let error = client.head(&ObjectUri::s3("bucket", "key")).await;
        let error = error.unwrap_err();
        eprintln!("{error}");
        assert!(matches!(error, Error::Stalled { .. }), "{error:?}");
    });
}

/// The kernel takes the connection, and nobody ever answers.
#[test]
fn a_proxy_that_says_nothing_is_named() {
    if std::env::var_os(ASKING).is_some() {
        return ask();
    }
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = silent.local_addr().unwrap();
    let this = "s3_reach::proxy::a_proxy_that_says_nothing_is_named";
    let output = Command::new(std::env::current_exe().unwrap())
        .args([this, "--exact", "--nocapture"])
        .env(ASKING, "1")
        .env("HTTP_PROXY", format!("http://user:word@{addr}"))
        .env_remove("http_proxy")
        .env_remove("NO_PROXY")
        .env_remove("no_proxy")
        .output()
        .unwrap();
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    let name = format!("(through the proxy http://{addr} of HTTP_PROXY)");
    assert!(said.contains("no progress for 200ms"), "{said}");
    assert!(said.contains(&name) && !said.contains("word"), "{said}");
}
