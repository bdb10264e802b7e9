//! What the endpoint rules make of buckets at AWS itself: names in the host, access points, directory buckets.
//!
//! A proxy leads every host to the scripted server; what the host was stands in both logs.

use fake_s3::{BucketOptions, Credentials, FakeS3, Operation};

use super::stub::Stub;
use super::{KEY, SECRET, bytes, cat, code, put_both, text};

struct Case {
    /// `None`: the endpoint rules alone.
    endpoint: Option<&'static str>,
    /// As in `s3://bucket/key`.
    bucket: &'static str,
    host: &'static str,
}

const CASES: [Case; 6] = [
    Case {
        endpoint: None,
        bucket: "bucket",
        host: "bucket.s3.us-east-1.amazonaws.com",
    },
    Case {
        endpoint: None,
        bucket: "arn:aws:s3:us-east-1:123456789012:accesspoint/point",
        host: "point-123456789012.s3-accesspoint.us-east-1.amazonaws.com",
    },
    // The ARN's region and not the configured one.
    Case {
        endpoint: None,
        bucket: "arn:aws:s3:eu-west-1:123456789012:accesspoint/far",
        host: "far-123456789012.s3-accesspoint.eu-west-1.amazonaws.com",
    },
    Case {
        endpoint: None,
        bucket: "data--use1-az4--x-s3",
        host: "data--use1-az4--x-s3.s3express-use1-az4.us-east-1.amazonaws.com",
    },
    Case {
        endpoint: Some("http://s3.us-east-1.amazonaws.com"),
        bucket: "bucket",
        host: "bucket.s3.us-east-1.amazonaws.com",
    },
    Case {
        endpoint: Some("http://s3.us-east-1.amazonaws.com"),
        bucket: "arn:aws:s3:us-east-1:123456789012:accesspoint/point",
        host: "point-123456789012.s3.us-east-1.amazonaws.com",
    },
];

fn server(tls: bool) -> FakeS3 {
    let server = FakeS3::builder()
        .auth(Credentials::new(KEY, SECRET))
        .base_domain("s3-accesspoint.us-east-1.amazonaws.com")
        .base_domain("s3-accesspoint.eu-west-1.amazonaws.com")
        .tls(tls)
        .start()
        .unwrap();
    let far = BucketOptions {
        region: Some("eu-west-1".into()),
        ..BucketOptions::default()
    };
    server.create_bucket("far-123456789012", far);
    for bucket in [
        "bucket",
        "point-123456789012",
        "far-123456789012",
        "data--use1-az4--x-s3",
    ] {
        put_both(&server, bucket);
    }
    server
}

fn check(case: &Case, transport: &str) {
    let server = server(case.endpoint.is_none());
    let proxy = Stub::proxy(server.addr());
    let dir = tempfile::tempdir().unwrap();
    let bundle = dir.path().join("ca.pem");
    std::fs::write(&bundle, server.ca_pem().unwrap_or_default()).unwrap();
    let mut variables = vec![("ALL_PROXY", proxy.url())];
    match case.endpoint {
        Some(endpoint) => variables.push(("AWS_ENDPOINT_URL", endpoint.into())),
        None => variables.push(("AWS_CA_BUNDLE", bundle.display().to_string())),
    }
    let uri = |key: &str| format!("s3://{}/dir/{key}", case.bucket);
    let (small, large) = (uri("small"), uri("large"));
    let output = cat(&variables, &["--transport", transport, &small, &large]);
    let (bucket, host) = (case.bucket, case.host);
    assert_eq!(code(&output), 0, "{bucket}: {}", text(&output.stderr));
    assert!(output.stdout == bytes(), "{bucket}: other bytes");
    let (seen, log) = (proxy.seen(), server.log());
    assert!(!seen.is_empty());
    for seen in seen {
        let asked = match case.endpoint {
            Some(_) => seen.target.starts_with(&format!("http://{host}/")),
            None => seen.method == "CONNECT" && seen.target == format!("{host}:443"),
        };
        assert!(asked, "{bucket}: {seen:?}");
    }
    for entry in &log {
        assert_eq!(entry.host.as_deref(), Some(host), "{entry:?}");
        assert!(entry.authenticated && entry.status < 300, "{entry:?}");
    }
    let gets = log.iter().filter(|entry| entry.operation == Operation::Get);
    let paths: std::collections::BTreeSet<&str> = gets.map(|entry| entry.path.as_str()).collect();
    assert!(paths.iter().eq(&["/dir/large", "/dir/small"]), "{paths:?}");
}

#[test]
fn buckets_stand_in_the_host_and_access_points_have_their_own() {
    for case in &CASES {
        check(case, "direct");
    }
}

#[test]
fn the_stock_transport_asks_the_same_hosts() {
    for case in &CASES {
        check(case, "stock");
    }
}
