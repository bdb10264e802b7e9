//! The server as a client sees it: bytes on a socket.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fake_s3::{
    Algorithm, BucketOptions, ChecksumKind, CredentialKind, Credentials, Effect, FakeS3, Latency,
    Operation, PutOptions, Rule, Shape, authorization, basic_date, content, presigned_target,
};

/// A response as it came.
#[derive(Debug, Default)]
struct Response {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Response {
    fn header(&self, name: &str) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|header| header.0.eq_ignore_ascii_case(name));
        found.map(|header| header.1.as_str())
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    fn has(&self, text: &str) -> bool {
        self.text().contains(text)
    }
}

/// A client that does nothing it was not told to.
struct Client<S> {
    stream: S,
    input: Vec<u8>,
}

fn connect(server: &FakeS3) -> Client<TcpStream> {
    let stream = TcpStream::connect(server.addr()).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    Client {
        stream,
        input: Vec::new(),
    }
}

impl<S: Read + Write> Client<S> {
    fn send(&mut self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) {
        let mut text = format!("{method} {target} HTTP/1.1\r\n");
        if !headers.iter().any(|header| header.0 == "host") {
            text += "host: 127.0.0.1\r\n";
        }
        for (name, value) in headers {
            text += &format!("{name}: {value}\r\n");
        }
        if !body.is_empty() {
            text += &format!("content-length: {}\r\n", body.len());
        }
        self.stream
            .write_all(&[text.as_bytes(), b"\r\n", body].concat())
            .unwrap();
    }

    fn fill(&mut self) -> io::Result<usize> {
        let mut block = [0; 64 << 10];
        let count = self.stream.read(&mut block)?;
        self.input.extend_from_slice(&block[..count]);
        Ok(count)
    }

    fn head(&mut self) -> io::Result<Response> {
        let end = loop {
            if let Some(at) = self
                .input
                .windows(4)
                .position(|window| window == b"\r\n\r\n")
            {
                break at + 4;
            }
            if self.fill()? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        };
        let text = String::from_utf8(self.input.drain(..end).collect()).unwrap();
        let mut lines = text.lines();
        let status = lines
            .next()
            .unwrap()
            .split(' ')
            .nth(1)
            .unwrap()
            .parse()
            .unwrap();
        let headers = lines.filter_map(|line| line.split_once(": "));
        let headers = headers
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        Ok(Response {
            status,
            headers,
            body: Vec::new(),
        })
    }

    /// Receives one response by its length; what is missing of the body is the error.
    fn receive(&mut self, head_only: bool) -> io::Result<Response> {
        let mut response = self.head()?;
        let len = response
            .header("content-length")
            .map_or(0, |len| len.parse().unwrap());
        if head_only {
            return Ok(response);
        }
        while self.input.len() < len {
            if self.fill()? == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    format!("{} bytes", self.input.len()),
                ));
            }
        }
        response.body = self.input.drain(..len).collect();
        Ok(response)
    }

    fn call(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Response {
        self.send(method, target, headers, body);
        self.receive(method == "HEAD").unwrap()
    }

    fn get(&mut self, target: &str, headers: &[(&str, &str)]) -> Response {
        self.call("GET", target, headers, b"")
    }

    fn rest(&mut self) -> io::Result<Vec<u8>> {
        while self.fill()? > 0 {}
        Ok(std::mem::take(&mut self.input))
    }
}

fn server() -> FakeS3 {
    FakeS3::start().unwrap()
}

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    content(seed, 0, &mut bytes);
    bytes
}

/// The whole body with everything that GetObject says about it.
#[test]
fn an_object_has_its_headers() {
    let server = server();
    let etag = server.put("b", "k", b"hello");
    assert_eq!(etag, "\"5d41402abc4b2a76b9719d911017c592\"");
    let response = connect(&server).get("/b/k", &[("x-amz-checksum-mode", "ENABLED")]);
    assert_eq!((response.status, &response.body[..]), (200, &b"hello"[..]));
    assert_eq!(response.header("ETag"), Some(&*etag));
    assert_eq!(
        response.header("x-amz-checksum-crc64nvme"),
        Some(&*Algorithm::Crc64Nvme.of(b"hello"))
    );
    assert_eq!(response.header("x-amz-checksum-type"), Some("FULL_OBJECT"));
    for name in [
        "x-amz-request-id",
        "x-amz-id-2",
        "Last-Modified",
        "Date",
        "x-amz-version-id",
    ] {
        assert!(response.header(name).is_some(), "{name}");
    }
    let head = connect(&server).call("HEAD", "/b/k", &[], b"");
    assert_eq!(
        (head.status, head.header("Content-Length")),
        (200, Some("5"))
    );
}

/// Target, headers, expected status, text in the body.
type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], u16, &'a str);

#[test]
fn statuses_of_get() {
    let server = server();
    let etag = server.put("b", "k", b"0123456789");
    let past = ("if-modified-since", "Tue, 27 Mar 2007 19:36:42 GMT");
    let future = ("if-modified-since", "Tue, 27 Mar 2107 19:36:42 GMT");
    let cases: &[Case<'_>] = &[
        ("/b/k", &[], 200, "0123456789"),
        ("/b/k", &[("range", "bytes=2-4")], 206, "234"),
        ("/b/k", &[("range", "bytes=7-")], 206, "789"),
        ("/b/k", &[("range", "bytes=-2")], 206, "89"),
        ("/b/k", &[("range", "bytes=8-100")], 206, "89"),
        ("/b/k", &[("range", "bytes=0-0,3-4")], 200, "0123456789"),
        ("/b/k", &[("range", "bytes=10-")], 416, "InvalidRange"),
        ("/b/k", &[("if-match", &etag)], 200, "0123456789"),
        (
            "/b/k",
            &[("if-match", "\"other\"")],
            412,
            "PreconditionFailed",
        ),
        ("/b/k", &[("if-none-match", &etag)], 304, ""),
        ("/b/k", &[("if-none-match", "\"other\"")], 200, "0123456789"),
        ("/b/k", &[past], 200, "0123456789"),
        ("/b/k", &[future], 304, ""),
        (
            "/b/k",
            &[("if-unmodified-since", past.1)],
            412,
            "If-Unmodified-Since",
        ),
        (
            "/b/k",
            &[("if-match", &etag), ("if-unmodified-since", past.1)],
            200,
            "0123456789",
        ),
        ("/b/k?versionId=none", &[], 404, "NoSuchVersion"),
        ("/b/k?partNumber=1", &[], 206, "0123456789"),
        ("/b/k?partNumber=2", &[], 416, "InvalidPartNumber"),
        (
            "/b/k?partNumber=1",
            &[("range", "bytes=0-1")],
            400,
            "InvalidRequest",
        ),
        ("/b/none", &[], 404, "NoSuchKey"),
        ("/none/k", &[], 404, "NoSuchBucket"),
        ("/b/k?acl", &[], 501, "NotImplemented"),
    ];
    let mut client = connect(&server);
    for (target, headers, status, text) in cases {
        let response = client.get(target, headers);
        assert_eq!(response.status, *status, "{target} {headers:?}");
        assert!(
            response.has(text),
            "{target} {headers:?}: {}",
            response.text()
        );
    }
    let response = client.get("/b/k", &[("range", "bytes=10-")]);
    assert_eq!(response.header("Content-Range"), Some("bytes */10"));
    let response = client.get("/b/k", &[("range", "bytes=2-4")]);
    assert_eq!(response.header("Content-Range"), Some("bytes 2-4/10"));
    // All of that on one connection.
    assert_eq!(server.stats().connections, 1);
}

#[test]
fn parts_have_numbers_and_checksums() {
    let server = server();
    let body = bytes(9, 2500);
    let put = |key: &str, kind| {
        let options = PutOptions {
            algorithm: Algorithm::Crc32c,
            kind,
            part_bytes: Some(1000),
            ..PutOptions::default()
        };
        server.put_with("b", key, &body, options)
    };
    assert!(put("full", ChecksumKind::FullObject).ends_with("-3\""));
    put("composite", ChecksumKind::Composite);
    let mut client = connect(&server);
    let mode = ("x-amz-checksum-mode", "ENABLED");
    let crc = |response: &Response| response.header("x-amz-checksum-crc32c").map(str::to_owned);

    assert_eq!(
        crc(&client.get("/b/full", &[mode])),
        Some(Algorithm::Crc32c.of(&body))
    );
    let composite = client.get("/b/composite", &[mode]);
    assert!(crc(&composite).unwrap().ends_with("-3"));
    assert_eq!(composite.header("x-amz-checksum-type"), Some("COMPOSITE"));

    let part = client.get("/b/full?partNumber=3", &[mode]);
    assert_eq!(
        (part.status, part.header("x-amz-mp-parts-count")),
        (206, Some("3"))
    );
    assert_eq!(part.header("Content-Range"), Some("bytes 2000-2499/2500"));
    assert_eq!(part.body, body[2000..]);
    assert_eq!(crc(&part), Some(Algorithm::Crc32c.of(&body[2000..])));

    // A range has a checksum only if it is a part.
    let part = client.get("/b/full", &[mode, ("range", "bytes=1000-1999")]);
    assert_eq!(crc(&part), Some(Algorithm::Crc32c.of(&body[1000..2000])));
    assert_eq!(
        crc(&client.get("/b/full", &[mode, ("range", "bytes=1000-1998")])),
        None
    );
    assert_eq!(crc(&client.get("/b/full", &[])), None);
}

#[test]
fn versions_stay() {
    let server = server();
    server.put("b", "k", b"one");
    let mut client = connect(&server);
    let first = client.get("/b/k", &[]);
    let id = first.header("x-amz-version-id").unwrap();
    server.replace("b", "k", b"two");
    assert_eq!(client.get("/b/k", &[]).body, b"two");
    assert_eq!(
        client.get(&format!("/b/k?versionId={id}"), &[]).body,
        b"one"
    );
    let etag = first.header("ETag").unwrap();
    assert_eq!(
        client
            .get("/b/k", &[("if-match", etag), ("range", "bytes=0-0")])
            .status,
        412
    );
    let deleted = client.call("DELETE", "/b/k", &[], b"");
    assert_eq!(
        (deleted.status, deleted.header("x-amz-delete-marker")),
        (204, Some("true"))
    );
    assert_eq!(client.get("/b/k", &[]).status, 404);
    assert_eq!(
        client.get(&format!("/b/k?versionId={id}"), &[]).body,
        b"one"
    );
    assert!(!client.get("/b?list-type=2", &[]).has("<Contents>"));
}

/// Collects keys and prefixes over all pages.
fn list_all(client: &mut Client<TcpStream>, query: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut token = String::new();
    loop {
        let page = client
            .get(&format!("/b?list-type=2&{query}{token}"), &[])
            .text();
        let listing = page.split_once("<IsTruncated>").unwrap().1;
        for piece in listing.split("<Contents>").skip(1) {
            found.push(between(piece, "<Key>", "</Key>").to_owned());
        }
        for piece in listing.split("<CommonPrefixes>").skip(1) {
            found.push(between(piece, "<Prefix>", "</Prefix>").to_owned());
        }
        if !page.contains("<IsTruncated>true") {
            return found;
        }
        token = format!(
            "&continuation-token={}",
            between(&page, "<NextContinuationToken>", "</Next")
        );
    }
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> &'a str {
    text.split_once(start).unwrap().1.split_once(end).unwrap().0
}

#[test]
fn listings_have_pages_prefixes_and_starts() {
    let server = server();
    for key in [
        "a/1", "a/2", "a/3", "b/1", "c", "d/x/1", "d/x/2", "d/y", "\u{fffd}",
    ] {
        server.put("b", key, key.as_bytes());
    }
    let mut client = connect(&server);
    for size in 1..=10 {
        let page = format!("max-keys={size}");
        assert_eq!(list_all(&mut client, &page).len(), 9, "{page}");
        let top = ["a/", "b/", "c", "d/", "\u{fffd}"];
        let mut found = list_all(&mut client, &format!("{page}&delimiter=%2F"));
        found.sort();
        assert_eq!(found, top, "{page}");
        let mut below = list_all(&mut client, &format!("{page}&delimiter=/&prefix=d/"));
        below.sort();
        assert_eq!(below, ["d/x/", "d/y"]);
    }
    assert_eq!(
        list_all(&mut client, "start-after=b/1"),
        ["c", "d/x/1", "d/x/2", "d/y", "\u{fffd}"]
    );
    assert_eq!(
        list_all(&mut client, "start-after=a/2&delimiter=/"),
        ["c", "\u{fffd}", "a/", "b/", "d/"]
    );
    assert_eq!(list_all(&mut client, "prefix=a/"), ["a/1", "a/2", "a/3"]);
    assert!(
        client
            .get("/b?list-type=2&max-keys=0", &[])
            .has("<KeyCount>0<")
    );
    assert!(
        client
            .get("/b?list-type=2&continuation-token=%25", &[])
            .has("InvalidArgument")
    );
    let page = client.get("/b?list-type=2&prefix=c", &[]).text();
    for text in [
        "<Size>1<",
        "<ETag>&quot;",
        "<StorageClass>STANDARD<",
        "<ChecksumType>FULL_OBJECT<",
        "<ChecksumAlgorithm>CRC64NVME<",
    ] {
        assert!(page.contains(text), "{text} in {page}");
    }
}

#[test]
fn any_key_goes_round() {
    let server = server();
    let keys = [
        ("a b", "a%20b"),
        ("a+b", "a%2Bb"),
        ("100%", "100%25"),
        ("x//y", "x//y"),
        ("grün/日本", "gr%C3%BCn/%E6%97%A5%E6%9C%AC"),
        ("new\nline", "new%0Aline"),
        ("?&#=", "%3F%26%23%3D"),
        ("-._~", "-._~"),
    ];
    let mut client = connect(&server);
    for (key, encoded) in keys {
        client.call("PUT", &format!("/b2/{encoded}"), &[], b"");
        server.put("b", key, key.as_bytes());
        assert_eq!(client.get(&format!("/b/{encoded}"), &[]).text(), key);
    }
    let mut listed = list_all(&mut client, "encoding-type=url");
    listed.sort();
    let mut expected: Vec<&str> = keys.iter().map(|key| key.1).collect();
    expected.sort_unstable();
    assert_eq!(listed, expected);
}

#[test]
fn buckets_are_in_paths_or_hosts() {
    let server = FakeS3::builder()
        .base_domain("s3.example.test")
        .start()
        .unwrap();
    server.put("my.bucket", "k/1", b"x");
    let mut client = connect(&server);
    for host in [
        "my.bucket.localhost:1234",
        "my.bucket.s3.localhost",
        "my.bucket.s3.example.test",
        "my.bucket.s3.us-east-1.amazonaws.com",
    ] {
        assert_eq!(client.get("/k/1", &[("host", host)]).status, 200, "{host}");
        assert!(
            client
                .get("/?list-type=2", &[("host", host)])
                .has("<Key>k/1<"),
            "{host}"
        );
    }
    assert!(client.get("/", &[]).has("<Name>my.bucket<"));
    let head = client.call("HEAD", "/my.bucket", &[], b"");
    assert_eq!(head.header("x-amz-bucket-region"), Some("us-east-1"));
    assert!(
        client
            .get("/my.bucket?location", &[])
            .has("<LocationConstraint")
    );
}

#[test]
fn objects_are_put_in_one_piece_and_in_parts() {
    let server = server();
    server.create_bucket("b", BucketOptions::default());
    let mut client = connect(&server);
    let put = client.call(
        "PUT",
        "/b/one",
        &[("x-amz-meta-a", "1"), ("content-type", "text/plain")],
        b"hello",
    );
    assert_eq!(
        put.header("ETag"),
        Some("\"5d41402abc4b2a76b9719d911017c592\"")
    );
    let got = client.get("/b/one", &[]);
    assert_eq!(
        (got.header("x-amz-meta-a"), got.header("content-type")),
        (Some("1"), Some("text/plain"))
    );
    let bad = client.call(
        "PUT",
        "/b/one",
        &[("x-amz-checksum-crc32c", "AAAAAA==")],
        b"hello",
    );
    assert!(bad.has("BadDigest"));
    assert_eq!(
        client
            .call("PUT", "/b/one", &[("if-none-match", "*")], b"again")
            .status,
        412
    );
    let chunked = b"5;chunk-signature=0\r\nhello\r\n0;chunk-signature=0\r\n\r\n";
    let streaming = ("x-amz-content-sha256", "STREAMING-UNSIGNED-PAYLOAD-TRAILER");
    client.call(
        "PUT",
        "/b/chunked",
        &[streaming, ("expect", "100-continue")],
        chunked,
    );
    let after_continue = client.receive(false).unwrap();
    assert_eq!(after_continue.status, 200);
    assert_eq!(client.get("/b/chunked", &[]).body, b"hello");

    let created = client.call(
        "POST",
        "/b/multi?uploads",
        &[("x-amz-checksum-algorithm", "CRC32C")],
        b"",
    );
    let id = between(&created.text(), "<UploadId>", "<").to_owned();
    let mut list = String::new();
    for (number, part) in [(1, &b"first "[..]), (2, b"second")] {
        let response = client.call(
            "PUT",
            &format!("/b/multi?partNumber={number}&uploadId={id}"),
            &[],
            part,
        );
        let etag = response.header("ETag").unwrap();
        list += &format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>");
    }
    let list = format!("<CompleteMultipartUpload>{list}</CompleteMultipartUpload>");
    let done = client.call(
        "POST",
        &format!("/b/multi?uploadId={id}"),
        &[],
        list.as_bytes(),
    );
    assert_eq!(done.status, 200);
    let whole = client.get("/b/multi", &[]);
    assert_eq!(whole.body, b"first second");
    assert!(whole.header("ETag").unwrap().ends_with("-2\""));
    assert_eq!(client.get("/b/multi?partNumber=2", &[]).body, b"second");
    assert_eq!(
        client
            .call("DELETE", &format!("/b/multi?uploadId={id}"), &[], b"")
            .status,
        404
    );
}

/// Signs as a client would.
fn signed(
    credentials: &Credentials,
    region: &str,
    method: &str,
    target: &str,
    at: i64,
) -> Vec<(String, String)> {
    let date = basic_date(at);
    let mut headers = vec![
        ("host", "127.0.0.1"),
        ("x-amz-content-sha256", "UNSIGNED-PAYLOAD"),
        ("x-amz-date", &date),
    ];
    if let Some(token) = &credentials.session_token {
        headers.push(("x-amz-security-token", token));
    }
    let authorization = authorization(credentials, region, method, target, &headers);
    headers.push(("authorization", &authorization));
    headers
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

fn call_signed(
    client: &mut Client<TcpStream>,
    headers: &[(String, String)],
    target: &str,
) -> Response {
    let headers: Vec<(&str, &str)> = headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    client.get(target, &headers)
}

fn now() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs() as i64
}

#[test]
fn signatures_are_checked() {
    let credentials = Credentials::new("AK", "SK");
    let temporary = Credentials::new("TK", "TS").with_token("token");
    let server = FakeS3::builder()
        .auth(credentials.clone())
        .auth(temporary.clone())
        .start()
        .unwrap();
    server.put("b", "a b", b"x");
    server.create_bucket(
        "public",
        BucketOptions {
            public: true,
            ..BucketOptions::default()
        },
    );
    server.put("public", "k", b"x");
    let mut client = connect(&server);
    let mut get = |credentials: &Credentials, region: &str, at: i64| {
        let headers = signed(credentials, region, "GET", "/b/a%20b?x-id=GetObject", at);
        call_signed(&mut client, &headers, "/b/a%20b?x-id=GetObject")
    };
    let cases = [
        (credentials.clone(), "us-east-1", 0, 200, ""),
        (temporary.clone(), "us-east-1", 0, 200, ""),
        (
            Credentials::new("TK", "TS"),
            "us-east-1",
            0,
            400,
            "InvalidToken",
        ),
        (
            Credentials::new("AK", "wrong"),
            "us-east-1",
            0,
            403,
            "SignatureDoesNotMatch",
        ),
        (
            Credentials::new("none", "SK"),
            "us-east-1",
            0,
            403,
            "InvalidAccessKeyId",
        ),
        (
            credentials.clone(),
            "us-east-1",
            -1000,
            403,
            "RequestTimeTooSkewed",
        ),
        (
            credentials.clone(),
            "us-east-1",
            1000,
            403,
            "RequestTimeTooSkewed",
        ),
        (credentials.clone(), "us-east-1", -600, 200, ""),
        (
            credentials.clone(),
            "eu-west-1",
            0,
            400,
            "AuthorizationHeaderMalformed",
        ),
    ];
    for (credentials, region, skew, status, code) in cases {
        let response = get(&credentials, region, now() + skew);
        assert_eq!(
            response.status,
            status,
            "{credentials:?} {region} {skew}: {}",
            response.text()
        );
        assert!(response.has(code));
    }
    assert_eq!(connect(&server).get("/b/a%20b", &[]).status, 403);
    assert_eq!(connect(&server).get("/public/k", &[]).status, 200);
    let log = server.log();
    assert!(log[0].authenticated && log[0].credentials == CredentialKind::Header);
    assert_eq!(log[3].error.as_deref(), Some("SignatureDoesNotMatch"));
}

#[test]
fn signatures_in_queries_expire() {
    let credentials = Credentials::new("AK", "SK").with_token("to/ken");
    let server = FakeS3::builder().auth(credentials.clone()).start().unwrap();
    server.put("b", "k+1", b"x");
    let mut client = connect(&server);
    let sign = |at: i64| {
        presigned_target(
            &credentials,
            "us-east-1",
            "GET",
            "127.0.0.1",
            "/b/k%2B1",
            at,
            60,
        )
    };
    assert_eq!(
        client.get(&sign(now()), &[("range", "bytes=0-0")]).status,
        206
    );
    assert!(
        client
            .get(&sign(now() - 61), &[])
            .has("Request has expired")
    );
    assert!(
        client
            .get(&sign(now()).replace("Expires=60", "Expires=61"), &[])
            .has("SignatureDoesNotMatch")
    );
    assert_eq!(server.log()[0].credentials, CredentialKind::Presigned);
}

#[test]
fn express_buckets_want_a_session() {
    let credentials = Credentials::new("AK", "SK");
    let server = FakeS3::builder().auth(credentials.clone()).start().unwrap();
    let bucket = "x--zone--x-s3";
    server.put(bucket, "k", b"x");
    let mut client = connect(&server);
    let (object, session) = (format!("/{bucket}/k"), format!("/{bucket}?session"));
    let plain = signed(&credentials, "us-east-1", "GET", &object, now());
    assert_eq!(call_signed(&mut client, &plain, &object).status, 403);
    let opened = call_signed(
        &mut client,
        &signed(&credentials, "us-east-1", "GET", &session, now()),
        &session,
    )
    .text();
    let temporary = Credentials::new(
        between(&opened, "<AccessKeyId>", "<"),
        between(&opened, "<SecretAccessKey>", "<"),
    );
    let token = between(&opened, "<SessionToken>", "<");
    let mut headers = signed(&temporary, "us-east-1", "GET", &object, now());
    assert_eq!(call_signed(&mut client, &headers, &object).status, 400);
    headers.push(("x-amz-s3session-token".to_owned(), token.to_owned()));
    assert_eq!(call_signed(&mut client, &headers, &object).status, 200);
    assert_eq!(
        server.log().last().unwrap().credentials,
        CredentialKind::Session
    );
}

#[test]
fn buckets_elsewhere_redirect() {
    let credentials = Credentials::new("AK", "SK");
    let server = FakeS3::builder().auth(credentials.clone()).start().unwrap();
    server.create_bucket(
        "b",
        BucketOptions {
            region: Some("eu-west-1".to_owned()),
            ..BucketOptions::default()
        },
    );
    server.put("b", "k", b"x");
    let mut client = connect(&server);
    let wrong = call_signed(
        &mut client,
        &signed(&credentials, "us-east-1", "GET", "/b/k", now()),
        "/b/k",
    );
    assert_eq!(
        (wrong.status, wrong.header("x-amz-bucket-region")),
        (301, Some("eu-west-1"))
    );
    assert!(wrong.has("PermanentRedirect"));
    let right = call_signed(
        &mut client,
        &signed(&credentials, "eu-west-1", "GET", "/b/k", now()),
        "/b/k",
    );
    assert_eq!(right.status, 200);
}

/// 32 times 7 and 32 times 8 in base64, and their MD5.
const CUSTOMER_KEYS: [(&str, &str); 2] = [
    (
        "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=",
        "y4HAEFCYWuvAXWFTtA1Qpg==",
    ),
    (
        "CAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAg=",
        "ry9sFyn8WYF9Mz2zWfMQhQ==",
    ),
];

#[test]
fn payers_customer_keys_and_sessions() {
    let server = server();
    server.create_bucket(
        "pays",
        BucketOptions {
            requester_pays: true,
            ..BucketOptions::default()
        },
    );
    server.put("pays", "k", b"x");
    let options = PutOptions {
        customer_key_md5: Some(CUSTOMER_KEYS[0].1.to_owned()),
        ..PutOptions::default()
    };
    server.put_with("b", "secret", b"x", options);
    let mut client = connect(&server);
    assert_eq!(client.get("/pays/k", &[]).status, 403);
    let paid = client.get("/pays/k", &[("x-amz-request-payer", "requester")]);
    assert_eq!(
        (paid.status, paid.header("x-amz-request-charged")),
        (200, Some("requester"))
    );
    server.put("b", "open", b"x");
    assert_eq!(client.get("/b/secret", &[]).status, 400);
    let [right, other] = CUSTOMER_KEYS;
    let garbled = (right.0, other.1);
    for (path, key, status) in [
        ("/b/secret", right, 200),
        ("/b/secret", other, 403),
        ("/b/secret", garbled, 400),
        ("/b/secret", ("c2hvcnQ=", right.1), 400),
        ("/b/open", right, 400),
    ] {
        let names = ["algorithm", "key", "key-md5"]
            .map(|name| format!("x-amz-server-side-encryption-customer-{name}"));
        let headers = [
            (names[0].as_str(), "AES256"),
            (names[1].as_str(), key.0),
            (names[2].as_str(), key.1),
        ];
        assert_eq!(client.get(path, &headers).status, status, "{path} {key:?}");
        assert_eq!(client.get(path, &headers[..2]).status, 400);
        assert_eq!(client.get(path, &headers[1..]).status, 400);
    }
    server.create_bucket("x--zone--x-s3", BucketOptions::default());
    assert!(
        client
            .get("/x--zone--x-s3?session", &[])
            .has("<SessionToken>token-")
    );
}

/// A server with one synthetic object of 100,000 bytes and one rule.
fn faulty(effect: Effect) -> FakeS3 {
    let server = server();
    server.put_synthetic("b", "k", 100_000, 4);
    server.script("b/", vec![Rule::new(effect).times(1)]);
    server
}

#[test]
fn bodies_break_where_told() {
    let expected = bytes(4, 100_000);
    let server = faulty(Effect::Truncate { at_byte: 70_000 });
    let mut client = connect(&server);
    client.send("GET", "/b/k", &[], b"");
    assert_eq!(
        client.head().unwrap().header("Content-Length"),
        Some("100000")
    );
    assert_eq!(client.rest().unwrap(), expected[..70_000]);
    assert_eq!(connect(&server).get("/b/k", &[]).body, expected);
    assert_eq!(server.log()[0].faults, ["truncate"]);
    assert_eq!(server.log()[0].bytes_sent, 70_000);

    let server = faulty(Effect::Reset { at_byte: 1000 });
    let mut client = connect(&server);
    client.send("GET", "/b/k", &[], b"");
    client.head().unwrap();
    assert_eq!(
        client.rest().unwrap_err().kind(),
        io::ErrorKind::ConnectionReset
    );
    assert_eq!(client.input, expected[..1000]);

    let server = faulty(Effect::FlipBit { at_byte: 50_000 });
    let got = connect(&server).get("/b/k", &[]).body;
    let differing: Vec<usize> = (0..100_000)
        .filter(|at| got[*at] != expected[*at])
        .collect();
    assert_eq!(differing, [50_000]);

    let server = faulty(Effect::Stall {
        at_byte: 10,
        ms: 150,
    });
    let start = Instant::now();
    assert_eq!(connect(&server).get("/b/k", &[]).body, expected);
    assert!(start.elapsed() >= Duration::from_millis(150));
}

#[test]
fn listings_break_like_objects() {
    let server = faulty(Effect::Truncate { at_byte: 100 });
    let mut client = connect(&server);
    client.send("GET", "/b?list-type=2&prefix=k", &[], b"");
    client.head().unwrap();
    assert_eq!(client.rest().unwrap().len(), 100);
    assert!(connect(&server).get("/b?list-type=2", &[]).has("<Key>k<"));
    server.script(
        "b/",
        vec![Rule::new(Effect::Stall { at_byte: 0, ms: 50 }).operations(&[Operation::List])],
    );
    let start = Instant::now();
    assert!(connect(&server).get("/b?list-type=2", &[]).has("<Key>k<"));
    assert!(start.elapsed() >= Duration::from_millis(50));
}

#[test]
fn framing_goes_wrong_as_told() {
    let expected = bytes(4, 100_000);
    let server = faulty(Effect::Chunked);
    let mut client = connect(&server);
    client.send("GET", "/b/k", &[("connection", "close")], b"");
    let head = client.head().unwrap();
    assert_eq!(
        (
            head.header("Transfer-Encoding"),
            head.header("Content-Length")
        ),
        (Some("chunked"), None)
    );
    assert!(client.rest().unwrap().ends_with(b"\r\n0\r\n\r\n"));

    let server = faulty(Effect::NoContentLength);
    let mut client = connect(&server);
    client.send("GET", "/b/k", &[], b"");
    assert_eq!(client.head().unwrap().header("Content-Length"), None);
    assert_eq!(client.rest().unwrap(), expected);

    let server = faulty(Effect::Surplus { bytes: 10 });
    let mut client = connect(&server);
    assert_eq!(client.get("/b/k", &[]).body, expected);
    while client.input.len() < 10 {
        client.fill().unwrap();
    }
    assert_eq!(client.input, [b'!'; 10]);

    let server = faulty(Effect::Garbage);
    let mut client = connect(&server);
    client.send("GET", "/b/k", &[], b"");
    assert!(!client.rest().unwrap().starts_with(b"HTTP"));

    let server = faulty(Effect::CloseIdle { after_ms: 30 });
    let mut client = connect(&server);
    assert_eq!(client.get("/b/k", &[]).status, 200);
    assert_eq!(client.rest().unwrap(), b"");
}

#[test]
fn headers_and_statuses_lie_as_told() {
    let range = ("range", "bytes=100-199");
    let get = |effect: Effect| {
        let server = faulty(effect);
        connect(&server).get("/b/k", &[range, ("x-amz-checksum-mode", "ENABLED")])
    };
    let whole = get(Effect::IgnoreRange);
    assert_eq!((whole.status, whole.body.len()), (200, 100_000));
    assert_eq!(
        get(Effect::WrongContentRange).header("Content-Range"),
        Some("bytes 101-200/100000")
    );
    assert!(
        get(Effect::WrongEtag)
            .header("ETag")
            .unwrap()
            .contains("bad")
    );
    let error = get(Effect::Status {
        status: 500,
        code: String::new(),
    });
    assert!(error.status == 500 && error.has("<Code>InternalError<"));
    let error = get(Effect::Status {
        status: 503,
        code: "SlowDown".to_owned(),
    });
    assert!(error.status == 503 && error.has("<Code>SlowDown<"));
    let error = get(Effect::OkWithError);
    assert!(error.status == 200 && error.has("<Error>"));
    let server = faulty(Effect::WrongChecksum);
    let mut client = connect(&server);
    let mode = [("x-amz-checksum-mode", "ENABLED")];
    let wrong = client.get("/b/k", &mode);
    let right = client.get("/b/k", &mode);
    assert_ne!(
        wrong.header("x-amz-checksum-crc64nvme"),
        right.header("x-amz-checksum-crc64nvme")
    );
}

#[test]
fn an_object_is_replaced_between_two_requests() {
    let server = server();
    server.put_synthetic("b", "k", 100_000, 4);
    server.script(
        "b/k",
        vec![Rule::new(Effect::Replace { seed: 5 }).skip(1).times(1)],
    );
    let mut client = connect(&server);
    let first = client.get("/b/k", &[("range", "bytes=0-9")]);
    let etag = first.header("ETag").unwrap();
    assert_eq!(
        client
            .get("/b/k", &[("range", "bytes=10-19"), ("if-match", etag)])
            .status,
        412
    );
    assert_eq!(client.get("/b/k", &[]).body, bytes(5, 100_000));
}

#[test]
fn rates_and_bandwidths_are_kept() {
    let server = server();
    server.put_synthetic("b", "k", 200_000, 4);
    server.script(
        "",
        vec![Rule::new(Effect::RequestRate {
            per_second: 1.0,
            burst: 3.0,
        })],
    );
    let mut client = connect(&server);
    let statuses: Vec<u16> = (0..5)
        .map(|_| client.get("/b/k", &[("range", "bytes=0-0")]).status)
        .collect();
    assert_eq!(statuses, [206, 206, 206, 503, 503]);
    server.clear_script();

    let timed = |client: &mut Client<TcpStream>| {
        let start = Instant::now();
        assert_eq!(client.get("/b/k", &[]).body.len(), 200_000);
        start.elapsed()
    };
    server.script(
        "",
        vec![Rule::new(Effect::Latency(Latency::fixed(Duration::from_millis(50)))).times(1)],
    );
    assert!(timed(&mut client) >= Duration::from_millis(50));
    server.set_shape(Shape {
        connection_bytes_per_second: Some(2_000_000),
        ..Shape::default()
    });
    let paced = timed(&mut client);
    assert!((90..250).contains(&paced.as_millis()), "{paced:?}");
    server.set_shape(Shape {
        total_bytes_per_second: Some(2_000_000),
        ..Shape::default()
    });
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| timed(&mut connect(&server)));
        }
    });
    assert!(
        (150..400).contains(&start.elapsed().as_millis()),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn the_log_tells_what_happened() {
    let server = server();
    server.put("b", "dir/k", b"0123456789");
    let mut client = connect(&server);
    client.get("/b?list-type=2&prefix=dir/", &[]);
    client.get("/b/dir/k", &[("range", "bytes=2-4"), ("if-match", "*")]);
    client.call("HEAD", "/b/dir/k", &[], b"");
    let log = server.log();
    let operations: Vec<Operation> = log.iter().map(|entry| entry.operation).collect();
    assert_eq!(
        operations,
        [Operation::List, Operation::Get, Operation::Head]
    );
    assert_eq!((log[0].bucket.as_str(), log[0].key.as_str()), ("b", "dir/"));
    assert_eq!(log[1].range.as_deref(), Some("bytes=2-4"));
    assert_eq!(log[1].if_match.as_deref(), Some("*"));
    assert_eq!(
        (log[1].status, log[1].bytes_sent, log[1].connection),
        (206, 3, 1)
    );
    assert!(log[1].finished.is_some() && log[2].bytes_sent == 0);
    server.clear_log();
    assert!(server.log().is_empty());
    let stats = server.stats();
    assert_eq!(
        (
            stats.connections,
            stats.open,
            stats.requests,
            stats.in_flight
        ),
        (1, 1, 3, 0)
    );
}

#[test]
fn the_admin_endpoint_commands() {
    let server = server();
    let mut client = connect(&server);
    let put = br#"{"bucket": "b", "key": "k", "size_bytes": 1000, "seed": 3}"#;
    assert_eq!(
        client.call("POST", "/_fake/synthetic", &[], put).status,
        200
    );
    assert_eq!(client.get("/b/k", &[]).body, bytes(3, 1000));
    let rules = br#"[{"prefix": "b/", "times": 1, "effect": "status", "status": 503}]"#;
    assert_eq!(client.call("POST", "/_fake/script", &[], rules).status, 200);
    assert_eq!(client.get("/b/k", &[]).status, 503);
    assert_eq!(client.get("/b/k", &[]).status, 200);
    assert!(client.get("/_fake/stats", &[]).has("\"requests\""));
    assert!(client.get("/_fake/log", &[]).has("\"faults\":[\"status\"]"));
    assert_eq!(
        client
            .call("POST", "/_fake/script", &[], b"nonsense")
            .status,
        400
    );
}

#[test]
fn tls_serves_the_same_bytes_under_any_name() {
    let server = FakeS3::builder().tls(true).start().unwrap();
    server.put_synthetic("b", "k", 3_000_000, 8);
    let mut roots = rustls::RootCertStore::empty();
    let pem = server.ca_pem().unwrap();
    let der = rustls::pki_types::pem::PemObject::from_pem_slice(pem.as_bytes()).unwrap();
    roots.add(der).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let config = Arc::new(config);
    for name in [
        "localhost",
        "127.0.0.1",
        "bucket.s3.us-east-1.amazonaws.com",
    ] {
        let name = name.to_owned().try_into().unwrap();
        let connection = rustls::ClientConnection::new(Arc::clone(&config), name).unwrap();
        let socket = TcpStream::connect(server.addr()).unwrap();
        let mut client = Client {
            stream: rustls::StreamOwned::new(connection, socket),
            input: Vec::new(),
        };
        assert_eq!(client.get("/b/k", &[]).body, bytes(8, 3_000_000));
        assert_eq!(
            client.get("/b/k", &[("range", "bytes=-9")]).body,
            bytes(8, 3_000_000)[2_999_991..]
        );
    }
}

/// Dropping the server ends scripted pauses, blocked writers and idle connections at once.
#[test]
fn a_drop_waits_for_nobody() {
    let server = server();
    server.put_synthetic("b", "k", 1 << 30, 8);
    server.script(
        "b/k",
        vec![
            Rule::new(Effect::Stall {
                at_byte: 10,
                ms: 60_000,
            })
            .times(1),
        ],
    );
    let mut idle = connect(&server);
    let (mut stalled, mut blocked) = (connect(&server), connect(&server));
    stalled.send("GET", "/b/k", &[], b"");
    stalled.head().unwrap();
    blocked.send("GET", "/b/k", &[], b"");
    blocked.head().unwrap();
    let start = Instant::now();
    drop(server);
    assert!(
        start.elapsed() < Duration::from_millis(500),
        "{:?}",
        start.elapsed()
    );
    assert!(idle.rest().is_ok_and(|rest| rest.is_empty()));
}

#[test]
fn a_stranger_is_told_off() {
    let server = server();
    let mut client = connect(&server);
    client.stream.write_all(b"not http at all\r\n\r\n").unwrap();
    assert!(client.rest().unwrap().starts_with(b"HTTP/1.1 400"));
}
