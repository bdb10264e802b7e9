//! Every misbehaviour of a server that the module promises to survive, played by a script on a socket.

use super::*;
use crate::checksum::{Checksum, ChecksumAlgorithm};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What a server does with one connection, in order.
#[derive(Debug, Clone)]
enum Step {
    /// Wait for a whole request head.
    Request,
    Send(Vec<u8>),
    /// Close with an RST instead of a FIN.
    Reset,
    /// Wait until the client closes.
    Hold,
}
use Step::{Hold, Request, Reset, Send as Say};

fn say(text: impl AsRef<[u8]>) -> Step {
    Say(text.as_ref().to_vec())
}

fn ok(body: &[u8]) -> Step {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    say([head.as_bytes(), body].concat())
}

/// Plays one script per connection, in the order of arrival; its result is how many connections came.
async fn play(scripts: Vec<Vec<Step>>) -> (Endpoint, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = Endpoint {
        tls: false,
        host: "127.0.0.1".into(),
        port: listener.local_addr().unwrap().port(),
    };
    let server = tokio::spawn(async move {
        let mut played = tokio::task::JoinSet::new();
        for script in scripts {
            let (tcp, _) = listener.accept().await.unwrap();
            played.spawn(play_one(tcp, script));
        }
        while let Some(done) = played.join_next().await {
            done.unwrap();
        }
    });
    (endpoint, server)
}

async fn play_one(mut tcp: TcpStream, script: Vec<Step>) {
    for step in script {
        match step {
            Request => {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(tcp.read_u8().await.unwrap());
                }
            }
            Say(bytes) => {
                // The client may have hung up: that is what some scripts are about.
                let _ = tcp.write_all(&bytes).await;
            }
            Reset => {
                socket2::SockRef::from(&tcp)
                    .set_linger(Some(Duration::ZERO))
                    .unwrap();
            }
            Hold => {
                let mut rest = Vec::new();
                let _ = tcp.read_to_end(&mut rest).await;
            }
        }
    }
}

fn wire() -> Wire {
    Wire::new(WireConfig::default())
}

fn counts(wire: &Wire) -> (u64, u64, u64) {
    let metrics = &wire.0.config.metrics;
    (
        metrics.connections_opened.get(),
        metrics.connections_reused.get(),
        metrics.connections_dropped.get(),
    )
}

fn idle(wire: &Wire) -> usize {
    wire.idle().values().map(Shelf::len).sum()
}

#[tokio::test]
async fn the_first_request_takes_the_connection_that_was_opened_before_it() {
    let (endpoint, server) = play(vec![vec![Request, ok(b"abc"), Hold]]).await;
    let wire = wire();
    wire.connect_early(&endpoint);
    assert_eq!(counts(&wire), (0, 0, 0), "nobody uses it yet");
    assert_eq!(get(&wire, &endpoint, 3).await.unwrap(), b"abc");
    assert_eq!(counts(&wire), (1, 0, 0));
    assert_eq!(idle(&wire), 1, "and it is kept");
    drop(wire);
    server.await.unwrap();
}

/// One that the server has closed meanwhile, one that is too old, and one to another endpoint are not used.
#[tokio::test]
async fn an_early_connection_that_is_of_no_use_is_replaced() {
    let (endpoint, server) = play(vec![vec![], vec![Request, ok(b"abc"), Hold]]).await;
    let wire = wire();
    wire.connect_early(&endpoint);
    while !wire.early().as_ref().is_some_and(Early::is_there) {
        tokio::task::yield_now().await;
    }
    // The end of the connection may come a moment after it.
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(get(&wire, &endpoint, 3).await.unwrap(), b"abc");
    drop(wire);
    server.await.unwrap();

    let (endpoint, server) = play(vec![vec![Hold], vec![Request, ok(b"abc"), Hold]]).await;
    let wire = Wire::new(WireConfig {
        idle_timeout: Duration::ZERO,
        ..WireConfig::default()
    });
    wire.connect_early(&endpoint);
    while !wire.early().as_ref().is_some_and(Early::is_there) {
        tokio::task::yield_now().await;
    }
    assert_eq!(get(&wire, &endpoint, 3).await.unwrap(), b"abc");
    drop(wire);
    server.await.unwrap();
}

/// The request is told what became of it, and its retry opens another.
#[tokio::test]
async fn an_early_connection_that_fails_is_the_requests_failure() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let endpoint = Endpoint {
        tls: false,
        host: "127.0.0.1".into(),
        port,
    };
    let wire = wire();
    wire.connect_early(&endpoint);
    let error = get(&wire, &endpoint, 3).await.unwrap_err();
    assert!(matches!(error, Error::Network { .. }), "{error}");
    assert!(wire.early().is_none());
}

const GET: &[u8] = b"GET /k HTTP/1.1\r\nHost: x\r\n\r\n";

fn request(endpoint: &Endpoint) -> WireRequest<'_> {
    WireRequest {
        endpoint,
        method: Method::Get,
        head: GET,
        uri: "s3://b/k",
        offset: 1000,
    }
}

/// Sends a GET whose whole body goes into a part of `len` bytes.
async fn get(wire: &Wire, endpoint: &Endpoint, len: usize) -> Result<Vec<u8>> {
    let mut part = PartBuf::heap(len);
    let take = len as u64;
    wire.send(request(endpoint), &mut part, &mut |_, _| {
        Ok(BodyPlan::Into { skip: 0, take })
    })
    .await?;
    Ok(part.filled().to_vec())
}

async fn buffered(wire: &Wire, endpoint: &Endpoint, cap: usize) -> Result<Reply> {
    let mut part = PartBuf::heap(0);
    wire.send(request(endpoint), &mut part, &mut |_, _| {
        Ok(BodyPlan::Buffer { cap })
    })
    .await
}

fn reason(error: Error) -> String {
    match error {
        Error::Protocol { uri, reason, .. } => {
            assert_eq!(uri, "s3://b/k");
            reason
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_body_goes_into_the_part_and_the_connection_back_to_the_shelf() {
    let body: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    let (endpoint, server) =
        play(vec![vec![Request, ok(&body), Request, ok(b"again"), Hold]]).await;
    let wire = wire();
    let mut part = PartBuf::heap(body.len());
    part.start_digest(ChecksumAlgorithm::Crc64Nvme);
    let take = body.len() as u64;
    let reply = wire
        .send(request(&endpoint), &mut part, &mut |head, part| {
            assert!(part.filled().is_empty());
            assert_eq!((head.status, head.content_length), (200, Some(take)));
            Ok(BodyPlan::Into { skip: 0, take })
        })
        .await
        .unwrap();
    assert_eq!((reply.status, reply.reused), (200, false));
    assert!(part.filled() == body);
    assert_eq!(
        part.digest(),
        Some(Checksum::of(ChecksumAlgorithm::Crc64Nvme, &body))
    );
    assert_eq!(get(&wire, &endpoint, 5).await.unwrap(), b"again");
    assert_eq!(counts(&wire), (1, 1, 0));
    assert_eq!(wire.0.config.metrics.bytes_received.get(), take + 5);
    drop(wire);
    server.await.unwrap();
}

#[tokio::test]
async fn a_resumed_part_is_filled_behind_what_it_has() {
    let (endpoint, _server) = play(vec![vec![Request, ok(b"skipped-def-rest"), Hold]]).await;
    let wire = wire();
    let mut part = PartBuf::heap(6);
    part.put(b"abc");
    wire.send(request(&endpoint), &mut part, &mut |_, _| {
        Ok(BodyPlan::Into { skip: 8, take: 3 })
    })
    .await
    .unwrap();
    assert_eq!(part.filled(), b"abcdef");
    // The rest of the body is still on the wire: that connection is of no more use.
    assert_eq!((counts(&wire), idle(&wire)), ((1, 0, 1), 0));
    assert_eq!(wire.0.config.metrics.bytes_wasted.get(), 8);
}

#[tokio::test]
async fn each_misbehaviour_is_an_error_and_ends_the_connection() {
    let long = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "a".repeat(70 << 10));
    let cases: Vec<(&str, &str)> = vec![
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n12345",
            "announces 4",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n123",
            "of a body of 3",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n",
            "both",
        ),
        ("HTTP/1.1 200 OK\r\n\r\n1234", "without a length"),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz",
            "chunked body",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n123\r\n0\r\n\r\n",
            "1 bytes too short",
        ),
        ("HTTP/1.1 101 Switching Protocols\r\n\r\n", "status 101"),
        ("220 ftp.example.com ready\r\n", "malformed head"),
        (&long, "more than 65536 bytes"),
    ];
    for (answer, why) in cases {
        let (endpoint, server) = play(vec![vec![Request, say(answer), Hold]]).await;
        let wire = wire();
        let error = get(&wire, &endpoint, 4).await.unwrap_err();
        assert!(error.is_retryable());
        let reason = reason(error);
        assert!(reason.contains(why), "{answer:.60}: {reason}");
        assert_eq!((counts(&wire), idle(&wire)), ((1, 0, 1), 0), "{answer:.60}");
        // The server's `Hold` ends only when our side is closed: no descriptor is left.
        server.await.unwrap();
    }
}

#[tokio::test]
async fn interim_answers_are_passed_over_but_not_for_ever() {
    let notice = "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n";
    let patient = vec![Request, say(notice), ok(b"1234"), Hold];
    let endless = vec![Request, say(notice.repeat(9)), Hold];
    let (endpoint, _server) = play(vec![patient, endless]).await;
    let first = wire();
    assert_eq!(get(&first, &endpoint, 4).await.unwrap(), b"1234");
    let error = get(&wire(), &endpoint, 4).await.unwrap_err();
    assert!(reason(error).contains("only interim"));
}

#[tokio::test]
async fn an_early_end_names_the_first_byte_that_did_not_come() {
    let head = "HTTP/1.1 206 P\r\nContent-Length: 10\r\n\r\n1234";
    for script in [
        vec![Request, say(head)],
        vec![Request, say(head), say("5"), Reset],
    ] {
        let reset = script.len() == 4;
        let (endpoint, _server) = play(vec![script]).await;
        let wire = wire();
        let mut part = PartBuf::heap(10);
        let error = wire
            .send(request(&endpoint), &mut part, &mut |_, _| {
                Ok(BodyPlan::Into { skip: 0, take: 10 })
            })
            .await
            .unwrap_err();
        match error {
            // A reset may overtake bytes that were sent before it.
            Error::Network { offset, .. } if reset => {
                assert_eq!(offset, 1000 + part.filled().len() as u64);
            }
            Error::Network { offset, .. } => {
                assert_eq!((offset, part.filled()), (1004, &b"1234"[..]));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(idle(&wire), 0);
    }
}

#[tokio::test]
async fn a_connection_that_was_closed_while_idle_is_replaced_unseen() {
    // The server closes after the first answer; whether the client sees that before or after it has sent the second
    // request, the request succeeds.
    for _ in 0..20 {
        let first = vec![Request, ok(b"1234")];
        let (endpoint, _server) = play(vec![first, vec![Request, ok(b"5678"), Hold]]).await;
        let wire = wire();
        assert_eq!(get(&wire, &endpoint, 4).await.unwrap(), b"1234");
        assert_eq!(get(&wire, &endpoint, 4).await.unwrap(), b"5678");
        assert_eq!(wire.0.config.metrics.connections_opened.get(), 2);
    }
}

#[tokio::test]
async fn a_reused_connection_that_breaks_before_its_answer_is_replaced_once() {
    let broken = vec![Request, ok(b"1234"), Request, Reset];
    let (endpoint, _server) = play(vec![broken, vec![Request, ok(b"5678"), Hold]]).await;
    let wire = wire();
    assert_eq!(get(&wire, &endpoint, 4).await.unwrap(), b"1234");
    assert_eq!(get(&wire, &endpoint, 4).await.unwrap(), b"5678");
    assert_eq!(counts(&wire), (2, 1, 1));
}

#[tokio::test]
async fn a_new_connection_that_breaks_is_an_error_at_once() {
    let (endpoint, server) = play(vec![vec![Request]]).await;
    let error = get(&wire(), &endpoint, 4).await.unwrap_err();
    assert!(
        matches!(error, Error::Network { offset: 1000, .. }),
        "{error:?}"
    );
    server.await.unwrap();
    let refused = get(&wire(), &endpoint, 4).await.unwrap_err();
    let source = std::error::Error::source(&refused).unwrap().to_string();
    assert!(source.contains("connecting to 127.0.0.1:"), "{source}");
}

#[tokio::test]
async fn bytes_that_nobody_asked_for_are_never_taken_for_the_next_answer() {
    let smuggled = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    let told = Arc::new(tokio::sync::Notify::new());
    let heard = Arc::new(tokio::sync::Notify::new());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = Endpoint {
        tls: false,
        host: "127.0.0.1".into(),
        port: listener.local_addr().unwrap().port(),
    };
    let (tell, hear) = (told.clone(), heard.clone());
    let server = tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        let mut head = [0; GET.len()];
        tcp.read_exact(&mut head).await.unwrap();
        let Say(answer) = ok(b"1234") else {
            unreachable!()
        };
        tcp.write_all(&answer).await.unwrap();
        // Only once the first answer is used up: behind the body, not with it.
        tell.notified().await;
        tcp.write_all(smuggled.as_bytes()).await.unwrap();
        hear.notify_one();
        play_one(
            listener.accept().await.unwrap().0,
            vec![Request, ok(b"good"), Hold],
        )
        .await;
    });
    let wire = wire();
    assert_eq!(get(&wire, &endpoint, 4).await.unwrap(), b"1234");
    told.notify_one();
    heard.notified().await;
    assert_eq!(get(&wire, &endpoint, 4).await.unwrap(), b"good");
    assert_eq!(wire.0.config.metrics.connections_opened.get(), 2);
    drop(wire);
    server.await.unwrap();
}

#[tokio::test]
async fn a_future_dropped_in_the_middle_of_a_body_takes_its_connection_along() {
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nsome";
    let (endpoint, server) = play(vec![vec![Request, say(head), Hold]]).await;
    let wire = wire();
    let mut part = PartBuf::heap(100);
    let (judged, seen) = tokio::sync::oneshot::channel();
    let mut judged = Some(judged);
    {
        let mut on_head = |_: &Head<'_>, _: &mut PartBuf| {
            judged.take().unwrap().send(()).unwrap();
            Ok(BodyPlan::Into { skip: 0, take: 100 })
        };
        let sending = wire.send(request(&endpoint), &mut part, &mut on_head);
        tokio::select! {
            biased;
            _ = seen => {}
            result = sending => panic!("{result:?}"),
        }
    }
    assert_eq!((counts(&wire), idle(&wire)), ((1, 0, 1), 0));
    server.await.unwrap();
}

#[tokio::test]
async fn silence_and_trickle_are_stalls() {
    let config = || WireConfig {
        first_byte_timeout: Duration::from_millis(30),
        progress_timeout: Duration::from_millis(40),
        ..WireConfig::default()
    };
    let silent = vec![Request, Hold];
    let trickle = vec![
        Request,
        say("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n123"),
        Hold,
    ];
    for (script, at, period) in [(silent, 1000, 30), (trickle, 1003, 40)] {
        let (endpoint, server) = play(vec![script]).await;
        let wire = Wire::new(config());
        match get(&wire, &endpoint, 9).await.unwrap_err() {
            Error::Stalled { offset, idle, .. } => {
                assert_eq!((offset, idle), (at, Duration::from_millis(period)));
            }
            other => panic!("{other:?}"),
        }
        server.await.unwrap();
    }
}

#[tokio::test]
async fn a_surplus_behind_a_buffered_answer_costs_the_connection() {
    let refused =
        "HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n";
    let smuggled = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    let scripts = vec![
        vec![Request, say([refused, smuggled].concat()), Hold],
        vec![Request, ok(b"good"), Hold],
    ];
    let (endpoint, server) = play(scripts).await;
    let wire = wire();
    let reply = buffered(&wire, &endpoint, 100).await.unwrap();
    assert_eq!((&reply.body[..], idle(&wire)), (&b"no"[..], 0));
    assert_eq!(get(&wire, &endpoint, 4).await.unwrap(), b"good");
    drop(wire);
    server.await.unwrap();
}

#[tokio::test]
async fn error_answers_are_buffered_whole_and_keep_their_connection() {
    let error = b"<Error><Code>NoSuchKey</Code></Error>";
    let chunked = [
        b"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n25\r\n".as_slice(),
        error,
        b"\r\n0\r\n\r\n",
    ]
    .concat();
    let script = vec![
        Request,
        Say(chunked),
        Request,
        ok(error),
        Request,
        ok(error),
        Hold,
    ];
    let (endpoint, _server) = play(vec![script]).await;
    let wire = wire();
    let reply = buffered(&wire, &endpoint, 1000).await.unwrap();
    assert_eq!((reply.status, &reply.body[..]), (404, &error[..]));
    let reply = buffered(&wire, &endpoint, error.len()).await.unwrap();
    assert_eq!((reply.reused, &reply.body[..]), (true, &error[..]));
    let error = buffered(&wire, &endpoint, 36).await.unwrap_err();
    assert!(reason(error).contains("more than 36 bytes"));
    assert_eq!((counts(&wire), idle(&wire)), ((1, 2, 1), 0));
}

#[tokio::test]
async fn a_body_until_the_end_of_the_connection_is_buffered_and_its_connection_forgotten() {
    let (endpoint, _server) = play(vec![vec![Request, say("HTTP/1.0 500 X\r\n\r\noops")]]).await;
    let wire = wire();
    let reply = buffered(&wire, &endpoint, 10).await.unwrap();
    assert_eq!(
        (reply.status, &reply.body[..], idle(&wire)),
        (500, &b"oops"[..], 0)
    );
}

#[tokio::test]
async fn a_head_request_has_no_body_and_close_is_honoured() {
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 77\r\n\r\n";
    let last = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let script = vec![Request, say(head), Request, say(last), Hold];
    let (endpoint, server) = play(vec![script]).await;
    let wire = wire();
    let request = WireRequest {
        method: Method::Head,
        ..request(&endpoint)
    };
    for expected in [77, 0] {
        let mut seen = None;
        wire.send(request, &mut PartBuf::heap(0), &mut |head, _| {
            seen = head.content_length;
            Ok(BodyPlan::Buffer { cap: 0 })
        })
        .await
        .unwrap();
        assert_eq!(seen, Some(expected));
    }
    assert_eq!((counts(&wire), idle(&wire)), ((1, 1, 0), 0));
    server.await.unwrap();
}

#[tokio::test]
async fn what_on_head_refuses_is_not_received() {
    let (endpoint, server) = play(vec![vec![Request, ok(b"wrong"), Hold]]).await;
    let wire = wire();
    let mut part = PartBuf::heap(5);
    let error = wire
        .send(request(&endpoint), &mut part, &mut |_, _| {
            Err(Error::Cancelled)
        })
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Cancelled) && part.filled().is_empty());
    server.await.unwrap();
}

/// Chunked bodies of objects come from stores that are not S3: right, but not fast.
#[tokio::test]
async fn a_chunked_object_is_decoded_whatever_the_pieces() {
    let mut script = vec![Request];
    let text =
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n4\r\ncdef\r\n0\r\n\r\n";
    script.extend(text.bytes().map(|byte| say([byte])));
    script.push(Hold);
    let (endpoint, server) = play(vec![script]).await;
    let wire = wire();
    let mut part = PartBuf::heap(4);
    let plan = BodyPlan::Into { skip: 1, take: 4 };
    wire.send(request(&endpoint), &mut part, &mut |head, _| {
        assert!(head.chunked);
        Ok(plan)
    })
    .await
    .unwrap();
    assert_eq!((part.filled(), idle(&wire)), (&b"bcde"[..], 0));
    server.await.unwrap();
}

#[tokio::test]
async fn many_requests_at_once_each_have_their_connection_and_share_them_later() {
    const N: usize = 16;
    let script: Vec<Step> = std::iter::repeat_n([Request, ok(b"1234")], 2 * N)
        .flatten()
        .collect();
    let (endpoint, _server) = play(vec![script; N]).await;
    let wire = wire();
    let all = |wire: Wire, endpoint: Endpoint| async move {
        let gets: Vec<_> = (0..N)
            .map(|_| {
                let (wire, endpoint) = (wire.clone(), endpoint.clone());
                tokio::spawn(async move { get(&wire, &endpoint, 4).await.unwrap() })
            })
            .collect();
        futures::future::join_all(gets).await
    };
    all(wire.clone(), endpoint.clone()).await;
    all(wire.clone(), endpoint.clone()).await;
    let (opened, reused, dropped) = counts(&wire);
    assert_eq!((opened + reused, dropped), (2 * N as u64, 0));
    assert!(opened <= N as u64);
}

/// Under the real SDK: the slot must reach the connector through the orchestrator.
mod sdk {
    use super::*;
    use aws_sdk_s3::config::retry::RetryConfig;
    use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region, StalledStreamProtectionConfig};
    use aws_sdk_s3::error::ProvideErrorMetadata;

    fn client(wire: &Wire, endpoint: &Endpoint) -> aws_sdk_s3::Client {
        let inner = aws_smithy_http_client::Builder::new().build_http();
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .credentials_provider(Credentials::new("AKID", "SECRET", None, None, "test"))
            .endpoint_url(format!("http://{endpoint}"))
            .force_path_style(true)
            .retry_config(RetryConfig::disabled())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .http_client(WireHttpClient::new(wire.clone(), inner))
            .build();
        aws_sdk_s3::Client::from_conf(config)
    }

    fn slot(len: usize) -> DestSlot {
        DestSlot::new(Dest {
            part: PartBuf::heap(len),
            on_head: Box::new(move |head, _| {
                assert_eq!(head.get("ETAG"), Some("\"e\""));
                let take = head.content_length.unwrap();
                Ok(BodyPlan::Into { skip: 0, take })
            }),
            uri: "s3://b/k".into(),
            offset: 0,
            outcome: None,
        })
    }

    fn object(body: &str) -> Step {
        let length = body.len();
        say(format!(
            "HTTP/1.1 206 Partial Content\r\nETag: \"e\"\r\nContent-Length: {length}\r\nx-amz-request-id: R1\r\n\r\n{body}"
        ))
    }

    #[tokio::test]
    async fn a_marked_get_fills_the_part_and_the_sdk_sees_the_head() {
        let (endpoint, _server) = play(vec![vec![Request, object("body"), Hold]]).await;
        let wire = wire();
        let slot = slot(4);
        let get = client(&wire, &endpoint)
            .get_object()
            .bucket("b")
            .key("k")
            .range("bytes=0-3");
        let output = with_dest(slot.clone(), get.send()).await.unwrap();
        assert_eq!(
            (output.e_tag(), output.content_length()),
            (Some("\"e\""), Some(4))
        );
        let dest = slot.take().unwrap();
        assert_eq!(dest.part.filled(), b"body");
        assert_eq!(dest.outcome.unwrap().unwrap().status, 206);
        assert_eq!(idle(&wire), 1);
    }

    #[tokio::test]
    async fn an_error_document_reaches_the_sdks_parser() {
        let document = "<Error><Code>NoSuchKey</Code><Message>gone</Message></Error>";
        let length = document.len();
        let answer =
            format!("HTTP/1.1 404 Not Found\r\nContent-Length: {length}\r\n\r\n{document}");
        let (endpoint, _server) = play(vec![vec![Request, say(answer), Hold]]).await;
        let wire = wire();
        let slot = slot(4);
        let get = client(&wire, &endpoint).get_object().bucket("b").key("k");
        let error = with_dest(slot.clone(), get.send()).await.unwrap_err();
        assert_eq!(
            (error.code(), error.message()),
            (Some("NoSuchKey"), Some("gone"))
        );
        assert!(slot.take().unwrap().part.filled().is_empty());
    }

    #[tokio::test]
    async fn a_broken_body_leaves_its_error_and_its_bytes_in_the_slot() {
        let answer = "HTTP/1.1 206 P\r\nETag: \"e\"\r\nContent-Length: 9\r\n\r\n1234";
        let (endpoint, _server) = play(vec![vec![Request, say(answer)]]).await;
        let slot = slot(9);
        let get = client(&wire(), &endpoint).get_object().bucket("b").key("k");
        assert!(with_dest(slot.clone(), get.send()).await.is_err());
        let dest = slot.take().unwrap();
        assert_eq!(dest.part.filled(), b"1234");
        let outcome = dest.outcome.unwrap();
        assert!(
            matches!(outcome, Err(Error::Network { offset: 4, .. })),
            "{outcome:?}"
        );
    }

    #[tokio::test]
    async fn a_dropped_call_gives_the_part_back() {
        let answer = "HTTP/1.1 206 P\r\nETag: \"e\"\r\nContent-Length: 9\r\n\r\n1234";
        let (endpoint, server) = play(vec![vec![Request, say(answer), Hold]]).await;
        let wire = wire();
        let slot = slot(9);
        let get = client(&wire, &endpoint).get_object().bucket("b").key("k");
        let bytes = wire.0.config.metrics.clone();
        let arrived = std::future::poll_fn(move |cx| {
            cx.waker().wake_by_ref();
            if bytes.bytes_received.get() == 4 {
                std::task::Poll::Ready(())
            } else {
                std::task::Poll::Pending
            }
        });
        tokio::select! {
            _ = with_dest(slot.clone(), get.send()) => unreachable!(),
            () = arrived => {}
        }
        assert_eq!(slot.take().unwrap().part.filled(), b"1234");
        assert_eq!((counts(&wire), idle(&wire)), ((1, 0, 1), 0));
        server.await.unwrap();
    }

    /// CreateSession, for one, is sent in the task of the GET that needs it: its answer is for the SDK alone.
    #[tokio::test]
    async fn of_what_is_sent_in_a_marked_task_only_the_gets_of_objects_fill_the_part() {
        let session = "<CreateSessionResult><Credentials><SessionToken>t</SessionToken><SecretAccessKey>s</SecretAccessKey>\
            <AccessKeyId>a</AccessKeyId><Expiration>2100-01-01T00:00:00Z</Expiration></Credentials></CreateSessionResult>";
        let others = [
            ok(b"<ListBucketResult></ListBucketResult>"),
            ok(b"<Tagging><TagSet></TagSet></Tagging>"),
            ok(session.as_bytes()),
            say("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"),
        ];
        let others = others.into_iter().flat_map(|answer| [Request, answer]);
        let (endpoint, _server) = play(vec![
            others.chain([Hold]).collect(),
            vec![Request, object("body"), Hold],
        ])
        .await;
        let wire = wire();
        let client = client(&wire, &endpoint);
        let slot = slot(4);
        let calls = async {
            let bucket = "b";
            // Its key and its prefix look like the mark of a GET of an object.
            let list = client
                .list_objects_v2()
                .bucket(bucket)
                .prefix("x-id=GetObject");
            list.send().await.unwrap();
            let tags = client
                .get_object_tagging()
                .bucket(bucket)
                .key("x-id=GetObject");
            tags.send().await.unwrap();
            let session = client.create_session().bucket(bucket).send().await.unwrap();
            assert_eq!(session.credentials().unwrap().access_key_id(), "a");
            let head = client.head_object().bucket(bucket).key("k");
            assert_eq!(head.send().await.unwrap().content_length(), Some(4));
        };
        with_dest(slot.clone(), calls).await;
        assert_eq!(counts(&wire), (0, 0, 0));
        let dest = slot.take().unwrap();
        assert!(dest.outcome.is_none() && dest.part.filled().is_empty());
        let slot = DestSlot::new(dest);
        let get = client.get_object().bucket("b").key("k").send();
        with_dest(slot.clone(), get).await.unwrap();
        assert_eq!(slot.take().unwrap().part.filled(), b"body");
        assert_eq!(counts(&wire), (1, 0, 0));
    }

    #[tokio::test]
    async fn everything_else_goes_to_the_sdks_own_client() {
        let list = "<ListBucketResult><KeyCount>0</KeyCount></ListBucketResult>";
        let (endpoint, _server) = play(vec![vec![
            Request,
            ok(list.as_bytes()),
            Request,
            object("body"),
            Hold,
        ]])
        .await;
        let wire = wire();
        let client = client(&wire, &endpoint);
        client.list_objects_v2().bucket("b").send().await.unwrap();
        let output = client
            .get_object()
            .bucket("b")
            .key("k")
            .send()
            .await
            .unwrap();
        assert_eq!(
            &output.body.collect().await.unwrap().into_bytes()[..],
            b"body"
        );
        assert_eq!(counts(&wire), (0, 0, 0));
    }
}

/// TLS against a real server, also one that misbehaves.
mod tls {
    use super::super::tls::TlsStream;
    use super::*;
    use rcgen::{CertificateParams, CertifiedIssuer, KeyPair};
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use rustls::{ProtocolVersion, RootCertStore, ServerConfig, ServerConnection, StreamOwned};
    use std::io::{Read, Write};

    type Served = StreamOwned<ServerConnection, std::net::TcpStream>;

    struct Authority(CertifiedIssuer<'static, KeyPair>);

    impl Authority {
        fn new() -> Self {
            let mut params = CertificateParams::new([]).unwrap();
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            // Two authorities of one name would differ only in their signatures.
            let name = format!("authority {}", fastrand::u64(..));
            params
                .distinguished_name
                .push(rcgen::DnType::CommonName, name);
            Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
        }

        fn certificate(&self) -> CertificateDer<'static> {
            self.0.as_ref().der().clone()
        }

        fn server(
            &self,
            name: &str,
            edit: impl FnOnce(&mut CertificateParams),
        ) -> Arc<ServerConfig> {
            self.server_of(rustls::ALL_VERSIONS, name, edit)
        }

        fn server_of(
            &self,
            versions: &[&'static rustls::SupportedProtocolVersion],
            name: &str,
            edit: impl FnOnce(&mut CertificateParams),
        ) -> Arc<ServerConfig> {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new([name.to_owned()]).unwrap();
            edit(&mut params);
            let certificate = params.signed_by(&key, &self.0).unwrap();
            let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let mut config = ServerConfig::builder_with_provider(provider)
                .with_protocol_versions(versions)
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![certificate.der().clone()], key)
                .unwrap();
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            Arc::new(config)
        }

        fn wire(&self) -> Wire {
            let mut roots = RootCertStore::empty();
            roots.add(self.certificate()).unwrap();
            Wire::new(WireConfig {
                tls: Some(tls_config_with(roots).unwrap().into()),
                ..WireConfig::default()
            })
        }
    }

    /// Accepts connections and hands each to the closure in turn, on a thread that ends with the last one.
    fn serve(
        config: Arc<ServerConfig>,
        connections: usize,
        mut each: impl FnMut(usize, Served) + std::marker::Send + 'static,
    ) -> (Endpoint, std::thread::JoinHandle<()>) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = Endpoint {
            tls: true,
            host: "localhost".into(),
            port: listener.local_addr().unwrap().port(),
        };
        let server = std::thread::spawn(move || {
            for n in 0..connections {
                let tcp = listener.accept().unwrap().0;
                let session = ServerConnection::new(config.clone()).unwrap();
                each(n, StreamOwned::new(session, tcp));
            }
        });
        (endpoint, server)
    }

    fn read_request(tls: &mut Served) -> std::io::Result<()> {
        let mut head = [0; GET.len()];
        tls.read_exact(&mut head)
    }

    fn answer(tls: &mut Served, body: &[u8]) {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        tls.write_all(head.as_bytes()).unwrap();
        tls.write_all(body).unwrap();
        tls.flush().unwrap();
    }

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|n| (n % 251) as u8).collect()
    }

    #[tokio::test]
    async fn bodies_arrive_whole_on_a_connection_that_is_used_again() {
        let authority = Authority::new();
        let body = pattern(5_000_000);
        let bodies = [body.clone(), b"tiny".to_vec(), body.clone()];
        let (endpoint, server) = serve(
            authority.server("localhost", |_| ()),
            1,
            move |_, mut tls| {
                for body in &bodies {
                    read_request(&mut tls).unwrap();
                    // New keys in the middle of the traffic must go unnoticed.
                    tls.conn.refresh_traffic_keys().unwrap();
                    answer(&mut tls, body);
                }
                assert_eq!(tls.conn.protocol_version(), Some(ProtocolVersion::TLSv1_3));
                assert_eq!(tls.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
            },
        );
        let wire = authority.wire();
        assert!(get(&wire, &endpoint, body.len()).await.unwrap() == body);
        assert_eq!(get(&wire, &endpoint, 4).await.unwrap(), b"tiny");
        assert!(get(&wire, &endpoint, body.len()).await.unwrap() == body);
        assert_eq!(counts(&wire), (1, 2, 0));
        server.join().unwrap();
    }

    /// A connection below the pool, which can be asked who keeps its keys.
    async fn connect(endpoint: &Endpoint, authority: &Authority) -> TlsStream {
        let tcp = TcpStream::connect((&*endpoint.host, endpoint.port))
            .await
            .unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(authority.certificate()).unwrap();
        let Ok(stream) = TlsStream::connect(tcp, endpoint, tls_config_with(roots).unwrap()).await
        else {
            panic!("no TLS session");
        };
        stream
    }

    /// Asks, and reads an answer into a part that is large enough to be received into.
    async fn ask(stream: &mut TlsStream, answer_bytes: usize) -> Vec<u8> {
        stream.write(GET).unwrap();
        std::future::poll_fn(|cx| stream.poll_flush(cx))
            .await
            .unwrap();
        let mut part = vec![0; answer_bytes + (128 << 10)];
        let mut filled = 0;
        while filled < answer_bytes {
            let read = std::future::poll_fn(|cx| stream.poll_read(cx, &mut part[filled..])).await;
            let n = read.unwrap();
            assert!(n > 0, "the end after {filled} bytes");
            filled += n;
        }
        part.truncate(filled);
        part
    }

    #[tokio::test]
    async fn the_keys_are_taken_over_with_the_first_request_and_stay_with_rustls_in_tls_1_2() {
        for (version, is_taken_over) in [
            (&rustls::version::TLS13, true),
            (&rustls::version::TLS12, false),
        ] {
            let authority = Authority::new();
            let body = pattern(1_000_000);
            let sent = body.clone();
            let config = authority.server_of(&[version], "localhost", |_| ());
            let (endpoint, server) = serve(config, 1, move |_, mut tls| {
                for _ in 0..2 {
                    read_request(&mut tls).unwrap();
                    tls.write_all(&sent).unwrap();
                }
                assert_eq!(tls.conn.protocol_version(), Some(version.version));
            });
            let mut stream = connect(&endpoint, &authority).await;
            assert!(!stream.is_taken_over());
            for _ in 0..2 {
                assert!(ask(&mut stream, body.len()).await == body);
                assert_eq!(stream.is_taken_over(), is_taken_over, "{version:?}");
            }
            server.join().unwrap();
        }
    }

    #[tokio::test]
    async fn with_part_of_a_record_in_hand_the_keys_are_taken_over_a_request_later() {
        /// What every record of an established session begins with.
        const RECORD: [u8; 3] = [23, 3, 3];
        let authority = Authority::new();
        let body = pattern(300_000);
        let sent = body.clone();
        let (endpoint, server) = serve(
            authority.server("localhost", |_| ()),
            1,
            move |_, Served { mut conn, mut sock }| {
                while !conn.wants_write() {
                    conn.read_tls(&mut sock).unwrap();
                    conn.process_new_packets().unwrap();
                }
                // In one write, so that they arrive together.
                let mut flight = Vec::new();
                while conn.wants_write() {
                    conn.write_tls(&mut flight).unwrap();
                }
                flight.extend_from_slice(&RECORD);
                sock.write_all(&flight).unwrap();
                let mut head = [0; GET.len()];
                while conn.is_handshaking() {
                    conn.read_tls(&mut sock).unwrap();
                    conn.process_new_packets().unwrap();
                }
                // The tickets: their first bytes have already been sent.
                let mut rest = Vec::new();
                while conn.wants_write() {
                    conn.write_tls(&mut rest).unwrap();
                }
                sock.write_all(rest.strip_prefix(&RECORD).unwrap()).unwrap();
                let mut tls = StreamOwned::new(conn, sock);
                for _ in 0..2 {
                    tls.read_exact(&mut head).unwrap();
                    tls.write_all(&sent).unwrap();
                }
            },
        );
        let mut stream = connect(&endpoint, &authority).await;
        assert!(ask(&mut stream, body.len()).await == body);
        assert!(!stream.is_taken_over());
        assert!(ask(&mut stream, body.len()).await == body);
        assert!(stream.is_taken_over());
        server.join().unwrap();
    }

    #[tokio::test]
    async fn a_second_connection_resumes_the_session() {
        let authority = Authority::new();
        let (kinds, seen) = std::sync::mpsc::channel();
        let (endpoint, server) = serve(
            authority.server("localhost", |_| ()),
            2,
            move |_, mut tls| {
                read_request(&mut tls).unwrap();
                kinds.send(tls.conn.handshake_kind().unwrap()).unwrap();
                tls.write_all(
                    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
                )
                .unwrap();
            },
        );
        let wire = authority.wire();
        for _ in 0..2 {
            assert_eq!(get(&wire, &endpoint, 2).await.unwrap(), b"ok");
        }
        server.join().unwrap();
        assert_eq!(seen.recv().unwrap(), rustls::HandshakeKind::Full);
        assert_eq!(seen.recv().unwrap(), rustls::HandshakeKind::Resumed);
    }

    #[tokio::test]
    async fn a_certificate_that_proves_nothing_is_refused_and_named() {
        let authority = Authority::new();
        let expired = |params: &mut CertificateParams| {
            params.not_before = rcgen::date_time_ymd(2000, 1, 1);
            params.not_after = rcgen::date_time_ymd(2001, 1, 1);
        };
        let cases = [
            (
                authority.server("localhost", |_| ()),
                Authority::new().wire(),
                "not trusted here",
            ),
            (
                authority.server("localhost", expired),
                authority.wire(),
                "has expired",
            ),
            (
                authority.server("other.test", |_| ()),
                authority.wire(),
                "another host name",
            ),
        ];
        for (config, wire, why) in cases {
            let (alerts, seen) = std::sync::mpsc::channel();
            let (endpoint, server) = serve(config, 1, move |_, mut tls| {
                alerts
                    .send(read_request(&mut tls).unwrap_err().to_string())
                    .unwrap();
            });
            match get(&wire, &endpoint, 4).await.unwrap_err() {
                Error::Tls {
                    endpoint: named,
                    reason,
                } => {
                    assert!(reason.contains(why), "{reason}");
                    assert_eq!(named, endpoint.to_string());
                }
                other => panic!("{other:?}"),
            }
            // The server's log says why, too.
            let alert = seen.recv().unwrap();
            assert!(alert.contains("received fatal alert"), "{alert}");
            server.join().unwrap();
        }
    }

    #[tokio::test]
    async fn a_cut_off_stream_is_never_taken_for_the_end() {
        let authority = Authority::new();
        let (endpoint, server) = serve(authority.server("localhost", |_| ()), 3, |n, mut tls| {
            read_request(&mut tls).unwrap();
            let head: &[u8] = match n {
                0 => b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n1234",
                _ => b"HTTP/1.0 500 X\r\n\r\n1234",
            };
            tls.write_all(head).unwrap();
            if n == 2 {
                tls.conn.send_close_notify();
            }
            tls.flush().unwrap();
        });
        let wire = authority.wire();
        let error = get(&wire, &endpoint, 9).await.unwrap_err();
        assert!(
            matches!(error, Error::Network { offset: 1004, .. }),
            "{error:?}"
        );
        let error = buffered(&wire, &endpoint, 100).await.unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("cut off"), "{source}");
        assert_eq!(
            &buffered(&wire, &endpoint, 100).await.unwrap().body[..],
            b"1234"
        );
        server.join().unwrap();
    }

    #[tokio::test]
    async fn a_session_that_the_server_ended_while_idle_is_replaced_unseen() {
        let authority = Authority::new();
        let (endpoint, server) = serve(authority.server("localhost", |_| ()), 2, |_, mut tls| {
            read_request(&mut tls).unwrap();
            answer(&mut tls, b"1234");
            tls.conn.send_close_notify();
            tls.flush().unwrap();
        });
        let wire = authority.wire();
        for _ in 0..2 {
            assert_eq!(get(&wire, &endpoint, 4).await.unwrap(), b"1234");
        }
        server.join().unwrap();
    }

    #[tokio::test]
    async fn a_server_without_tls_is_named() {
        let (mut endpoint, _server) = play(vec![vec![
            Step::Send(b"HTTP/1.1 400 Bad\r\n\r\n".to_vec()),
            Hold,
        ]])
        .await;
        endpoint.tls = true;
        let error = get(&Authority::new().wire(), &endpoint, 4)
            .await
            .unwrap_err();
        assert!(matches!(error, Error::Config { .. }), "{error:?}");
        assert!(error.fix().unwrap().contains("http://"), "{error:?}");
    }

    #[test]
    fn a_bundle_is_added_or_its_fault_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (text, why) in [
            ("", "no certificate"),
            (
                "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n",
                "not PEM",
            ),
            (
                "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
                "certificate 1",
            ),
        ] {
            std::fs::write(file.path(), text).unwrap();
            let error = tls_config(Some(file.path())).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        std::fs::write(file.path(), Authority::new().0.pem()).unwrap();
        assert!(tls_config(Some(file.path())).is_ok());
        let error = tls_config(Some("/no/such/bundle.pem".as_ref())).unwrap_err();
        assert!(error.to_string().contains("/no/such/bundle.pem"), "{error}");
    }
}
