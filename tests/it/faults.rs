//! Every condition that the scripted server knows, against both transports, plain and TLS.
//!
//! One table: a condition, the operations it is tried on, and what the reader must see. The client is the one that
//! ships, `Retry(Limit(S3))`, with shorter waits. After each case nothing may be left: no reserved byte, no request
//! under way, no socket; and after all of them no descriptor of any kind. A case that takes longer than [`PATIENCE`] hangs.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use fake_s3::{Effect, FakeS3, Latency, Operation, Rule};
use futures::{StreamExt, TryStreamExt};
use standpipe::client::{
    Depth, LimitClient, LimitConfig, ListEntry, ObjectClient, RetryClient, RetryConfig, Transport,
};
use standpipe::error::{Error, Result};
use standpipe::metrics::Metrics;
use standpipe::object::{ByteRange, ObjectId};

use crate::conformance::content;
use crate::world::{Wire, World, eventually, s3_within, server};

/// Every request is below the size from which on the SDK signs and sends it.
const SMALL: u64 = 300_001;
/// The whole object and each of its parts are above it.
const LARGE: u64 = 4_000_003;
const PARTS: u64 = 3;
/// Two pages.
const KEYS: usize = 1_100;
const PATIENCE: Duration = Duration::from_secs(20);
/// Cases at once: most of them wait.
const AT_ONCE: usize = 16;

/// What is done while the condition holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doing {
    Head,
    /// Two pages.
    List,
    /// The whole object, pinned, in one GET without a range.
    Whole,
    /// The object, pinned, in ranges at once.
    Parts,
    /// The object, of which only the address is known.
    Unpinned,
    /// One small range after the other.
    Sips,
}

use Doing::{Head, List, Parts, Sips, Unpinned, Whole};

/// What the reader sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    /// The right bytes, keys or sizes.
    Right,
    /// [`Error::Changed`].
    Changed,
    /// [`Error::Corrupt`].
    Corrupt,
    /// [`Error::NotFound`].
    NotFound,
    /// [`Error::PermissionDenied`].
    Denied,
    /// [`Error::Refused`].
    Refused,
    /// [`Error::RangeNotSatisfiable`].
    Beyond,
    /// [`Error::RetriesExhausted`] because of the network.
    Network,
    /// ... because the answers were not HTTP, or not the ones to these requests.
    Protocol,
    /// ... because nothing came.
    Stalled,
    /// ... because of 5xx.
    Server,
    /// ... because of 503.
    Throttled,
    /// Anything else.
    Other,
}

fn seen(answer: &Result<()>) -> Seen {
    let Err(error) = answer else {
        return Seen::Right;
    };
    let exhausted = matches!(error, Error::RetriesExhausted { .. });
    match (error.root(), exhausted) {
        (Error::Changed { .. }, false) => Seen::Changed,
        (Error::Corrupt { .. }, false) => Seen::Corrupt,
        (Error::NotFound { .. }, false) => Seen::NotFound,
        (Error::PermissionDenied { .. }, false) => Seen::Denied,
        (Error::Refused { .. }, false) => Seen::Refused,
        (Error::RangeNotSatisfiable { .. }, false) => Seen::Beyond,
        (Error::Network { .. }, true) => Seen::Network,
        (Error::Protocol { .. }, true) => Seen::Protocol,
        (Error::Stalled { .. }, true) => Seen::Stalled,
        (Error::Server { .. }, true) => Seen::Server,
        (Error::Throttled { .. }, true) => Seen::Throttled,
        _ => Seen::Other,
    }
}

struct Case {
    rule: Rule,
    doing: &'static [Doing],
    seen: Seen,
}

/// The condition heals or does no harm: all operations that it is about go well.
fn right(rule: Rule, doing: &'static [Doing]) -> Case {
    case(rule, doing, Seen::Right)
}

fn case(rule: Rule, doing: &'static [Doing], seen: Seen) -> Case {
    Case { rule, doing, seen }
}

fn status(status: u16) -> Rule {
    Rule::new(Effect::Status {
        status,
        code: String::new(),
    })
}

const ALL: &[Doing] = &[Head, List, Whole, Parts, Unpinned];
const GETS: &[Doing] = &[Whole, Parts, Unpinned];
const PINNED: &[Doing] = &[Whole, Parts];

/// Operations whose answers have bodies.
const BODIES: &[Doing] = &[List, Whole, Parts, Unpinned];

/// The client's patience where the condition is a stall, so that the table stays quick.
const STALL_PATIENCE: Duration = Duration::from_millis(500);
/// Where no condition is a stall, silence is the machine's: other work may have its cores for seconds.
const CALM_PATIENCE: Duration = Duration::from_secs(6);
/// A stall is three times as long.
const STALL_MS: u64 = 1_500;

fn table() -> Vec<Case> {
    let mut cases = slow();
    cases.extend(refused());
    cases.extend(broken());
    cases.extend(lying());
    cases.extend(odd());
    cases
}

fn slow() -> Vec<Case> {
    let latency = Latency::fixed(Duration::from_millis(30));
    vec![
        right(Rule::new(Effect::Latency(latency)), ALL),
        right(
            Rule::new(Effect::Bandwidth {
                bytes_per_second: 2 << 20,
            }),
            GETS,
        ),
        right(
            Rule::new(Effect::TotalBandwidth {
                bytes_per_second: 2 << 20,
            }),
            GETS,
        ),
        right(
            Rule::new(Effect::RequestRate {
                per_second: 10.0,
                burst: 1.0,
            }),
            &[Parts, Sips],
        ),
    ]
}

fn refused() -> Vec<Case> {
    let mut cases = vec![
        right(status(500).times(2), ALL),
        right(status(502).times(1), ALL),
        right(status(503).times(2), ALL),
        right(status(504).times(1), ALL),
        right(status(429).times(1), ALL),
        // The second page of the listing fails.
        right(status(500).skip(1).times(1), &[List]),
        case(status(500), ALL, Seen::Server),
        // The answer to a HEAD has no body, and so no code: its status has to do.
        case(status(503), &[List, Whole, Head], Seen::Throttled),
        case(status(400), ALL, Seen::Refused),
        case(status(403), ALL, Seen::Denied),
        case(status(404), ALL, Seen::NotFound),
        case(status(412), PINNED, Seen::Changed),
        case(
            Rule::new(Effect::Status {
                status: 416,
                code: "InvalidRange".into(),
            }),
            PINNED,
            Seen::Beyond,
        ),
    ];
    let pinned_and_list = &[List, Whole, Parts];
    cases.push(right(
        Rule::new(Effect::OkWithError).times(1),
        pinned_and_list,
    ));
    cases.push(case(
        Rule::new(Effect::OkWithError),
        pinned_and_list,
        Seen::Server,
    ));
    cases
}

fn broken() -> Vec<Case> {
    let mut cases = Vec::new();
    for at_byte in [0, 1, 70_000] {
        // Of a listing, the second page is long enough to break at the last of these.
        cases.push(right(Rule::new(Effect::Reset { at_byte }).times(1), BODIES));
        cases.push(right(
            Rule::new(Effect::Truncate { at_byte }).times(1),
            BODIES,
        ));
        cases.push(right(
            Rule::new(Effect::Stall {
                at_byte,
                ms: STALL_MS,
            })
            .times(1),
            GETS,
        ));
    }
    // Every answer breaks, and each brings the part further.
    cases.push(right(Rule::new(Effect::Reset { at_byte: 60_000 }), PINNED));
    cases.push(right(
        Rule::new(Effect::Truncate { at_byte: 60_000 }),
        PINNED,
    ));
    // A page is read whole or not at all.
    cases.push(case(
        Rule::new(Effect::Reset { at_byte: 60_000 }),
        &[List],
        Seen::Network,
    ));
    cases.push(case(
        Rule::new(Effect::Truncate { at_byte: 60_000 }),
        &[List],
        Seen::Network,
    ));
    cases.push(case(
        Rule::new(Effect::Reset { at_byte: 0 }),
        &[List, Whole],
        Seen::Network,
    ));
    cases.push(case(
        Rule::new(Effect::Truncate { at_byte: 0 }),
        &[List, Whole],
        Seen::Network,
    ));
    cases.push(case(
        Rule::new(Effect::Stall {
            at_byte: 0,
            ms: STALL_MS,
        }),
        &[Whole],
        Seen::Stalled,
    ));
    cases.push(right(Rule::new(Effect::Garbage).times(1), ALL));
    cases.push(case(Rule::new(Effect::Garbage), &[Whole], Seen::Protocol));
    cases.push(right(
        Rule::new(Effect::CloseIdle { after_ms: 1 }),
        &[Sips, Parts],
    ));
    cases
}

fn lying() -> Vec<Case> {
    let flip = || Rule::new(Effect::FlipBit { at_byte: 1_000 });
    vec![
        // One flipped bit of a range is for the engine to find: it combines the parts' checksums.
        right(flip().times(1), &[Whole]),
        case(flip(), &[Whole], Seen::Corrupt),
        right(Rule::new(Effect::WrongChecksum).times(1), &[Whole]),
        case(Rule::new(Effect::WrongChecksum), &[Whole], Seen::Corrupt),
        case(Rule::new(Effect::WrongEtag).times(1), PINNED, Seen::Changed),
        case(
            Rule::new(Effect::Replace { seed: 1 }).times(1),
            PINNED,
            Seen::Changed,
        ),
        right(Rule::new(Effect::WrongContentRange).times(1), &[Parts]),
        case(
            Rule::new(Effect::WrongContentRange),
            &[Parts],
            Seen::Protocol,
        ),
    ]
}

fn odd() -> Vec<Case> {
    vec![
        right(
            Rule::new(Effect::IgnoreRange),
            &[Whole, Parts, Unpinned, Sips],
        ),
        right(Rule::new(Effect::Chunked), BODIES),
        right(Rule::new(Effect::NoContentLength), &[List, Whole, Parts]),
        // Behind a large body the surplus is seen when the connection would be reused, and closes it. Behind a small
        // one it comes with the head: our transport then trusts nothing of that answer, and asks again.
        right(Rule::new(Effect::Surplus { bytes: 10 }), &[Whole, Parts]),
        right(Rule::new(Effect::Surplus { bytes: 10 }).times(1), &[Sips]),
    ]
}

/// Has no wildcard: a new effect does not compile until it is named here, and the test fails until it is in the table.
fn name(effect: &Effect) -> &'static str {
    match effect {
        Effect::Latency(_) => "latency",
        Effect::Bandwidth { .. } => "bandwidth",
        Effect::TotalBandwidth { .. } => "total bandwidth",
        Effect::RequestRate { .. } => "request rate",
        Effect::Status { .. } => "status",
        Effect::OkWithError => "200 with an error",
        Effect::Garbage => "garbage",
        Effect::IgnoreRange => "range ignored",
        Effect::Replace { .. } => "replaced",
        Effect::Reset { .. } => "reset",
        Effect::Truncate { .. } => "truncated",
        Effect::Stall { .. } => "stall",
        Effect::FlipBit { .. } => "flipped bit",
        Effect::Chunked => "chunked",
        Effect::NoContentLength => "no length",
        Effect::Surplus { .. } => "surplus",
        Effect::WrongContentRange => "wrong Content-Range",
        Effect::WrongEtag => "wrong ETag",
        Effect::WrongChecksum => "wrong checksum",
        Effect::CloseIdle { .. } => "closed when idle",
    }
}

#[test]
fn no_condition_is_missing() {
    let cases = table();
    let names: BTreeSet<&str> = cases.iter().map(|case| name(&case.rule.effect)).collect();
    assert_eq!(names.len(), 20, "{names:?}");
}

fn shipped(client: Arc<dyn ObjectClient>, metrics: Arc<Metrics>) -> Arc<dyn ObjectClient> {
    let limited = LimitClient::new(client, LimitConfig::default(), metrics.clone());
    let config = RetryConfig {
        // Two more than any healing condition takes, but for the limit on the rate.
        max_attempts: 5,
        base: Duration::from_millis(2),
        throttle_base: Duration::from_millis(100),
        ..RetryConfig::default()
    };
    Arc::new(RetryClient::new(Arc::new(limited), config, metrics))
}

async fn head(world: &World, len: u64) -> Result<()> {
    let meta = world.client.head(&world.uri("data/k")).await?;
    assert_eq!(meta.size_bytes, len);
    Ok(())
}

async fn list(world: &World) -> Result<()> {
    let entries: Vec<ListEntry> = world
        .client
        .list(&world.uri("list/"), Depth::All)
        .try_collect()
        .await?;
    let keys = entries.iter().map(|entry| match entry {
        ListEntry::Object(meta) => meta.id.uri.key().to_string(),
        ListEntry::Prefix(uri) => uri.key().to_string(),
    });
    let expected = (0..KEYS).map(|at| format!("list/{at:04}"));
    assert!(keys.eq(expected), "other keys");
    Ok(())
}

async fn get(world: &World, id: &ObjectId, start: u64, end: u64, len: u64) -> Result<()> {
    let (bytes, answer) = world.read(id, ByteRange::new(start, end)).await;
    answer?;
    let end = end.min(len) as usize;
    assert!(bytes == content(len, 0)[start as usize..end], "other bytes");
    Ok(())
}

async fn parts(world: &World, id: &ObjectId, len: u64) -> Result<()> {
    let size = len.div_ceil(PARTS);
    let parts = (0..PARTS).map(|at| get(world, id, at * size, ((at + 1) * size).min(len), len));
    futures::future::try_join_all(parts).await?;
    Ok(())
}

async fn sips(world: &World, id: &ObjectId, len: u64) -> Result<()> {
    for at in 0..10 {
        get(world, id, at * 1_000, at * 1_000 + 10, len).await?;
        // Long enough for the server to close what it wants to close; the case is right without it, too.
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    Ok(())
}

async fn perform(world: &World, doing: Doing, id: &ObjectId, len: u64) -> Result<()> {
    match doing {
        Head => head(world, len).await,
        List => list(world).await,
        Whole => get(world, id, 0, len, len).await,
        Parts => parts(world, id, len).await,
        Unpinned => get(world, &ObjectId::unpinned(id.uri.clone()), 0, 2 * len, len).await,
        Sips => sips(world, id, len).await,
    }
}

fn operations(doing: Doing) -> &'static [Operation] {
    match doing {
        Head => &[Operation::Head],
        List => &[Operation::List],
        Whole | Parts | Unpinned | Sips => &[Operation::Get],
    }
}

/// Performs one operation under one condition, on a server of its own, and looks for what is left. Returns what went
/// wrong.
async fn run(
    wire: Wire,
    transport: Transport,
    case: &Case,
    doing: Doing,
    len: u64,
) -> Option<String> {
    let about = format!("{:?} on {doing:?}", case.rule);
    let server = server(wire);
    let etag = server.put("bucket", "data/k", &content(len, 0));
    if doing == List {
        for at in 0..KEYS {
            server.put("bucket", &format!("list/{at:04}"), b"");
        }
    }
    let patience = match case.rule.effect {
        Effect::Stall { .. } => STALL_PATIENCE,
        _ => CALM_PATIENCE,
    };
    let world = s3_within(server.clone(), transport, patience, shipped).await;
    let id = ObjectId {
        etag: Some(etag.into()),
        size_bytes: Some(len),
        ..ObjectId::unpinned(world.uri("data/k"))
    };
    server.script("", vec![case.rule.clone().operations(operations(doing))]);
    let answer = tokio::time::timeout(PATIENCE, perform(&world, doing, &id, len)).await;
    let Ok(answer) = answer else {
        return Some(format!("{about} hangs"));
    };
    world.assert_nothing_leaked().await;
    drop(world);
    assert_no_socket(&server).await;
    let hit = server.log().iter().any(|entry| !entry.faults.is_empty());
    match (seen(&answer), hit) {
        (_, false) => Some(format!("{about} hit nothing")),
        (found, true) if found == case.seen => None,
        (found, true) => Some(format!(
            "{about}: {found:?} in place of {:?}: {answer:?}",
            case.seen
        )),
    }
}

/// Both ends of all connections are closed: the server's by its own count, ours by the kernel's.
async fn assert_no_socket(server: &FakeS3) {
    let port = server.addr().port();
    eventually("no socket is left", || {
        server.stats().open == 0 && sockets_to(port) == 0
    })
    .await;
}

/// Sockets of any state that a descriptor still refers to and that are connected to `port`.
fn sockets_to(port: u16) -> usize {
    let suffix = format!(":{port:04X}");
    ["/proc/self/net/tcp", "/proc/self/net/tcp6"]
        .iter()
        .flat_map(std::fs::read_to_string)
        .map(|table| {
            let held = table.lines().skip(1).filter(|line| {
                let fields: Vec<&str> = line.split_whitespace().collect();
                // Field 2 is the remote address, 9 the inode, zero once no descriptor is left.
                fields[2].ends_with(&suffix) && fields[9] != "0"
            });
            held.count()
        })
        .sum()
}

async fn every_condition(wire: Wire, transport: Transport) {
    conditions(wire, transport, SMALL, |_| true).await;
}

/// The conditions on bodies again, for requests that go through the SDK and fill their part from below it.
async fn conditions_of_large_bodies(wire: Wire, transport: Transport) {
    conditions(wire, transport, LARGE, |doing| {
        matches!(doing, Whole | Parts | Unpinned)
    })
    .await;
}

async fn conditions(wire: Wire, transport: Transport, len: u64, wanted: fn(Doing) -> bool) {
    let cases = table();
    // What a process opens once and keeps is open from here on.
    let control = right(Rule::new(Effect::Chunked), &[Whole]);
    assert_eq!(run(wire, transport, &control, Whole, len).await, None);
    let before = descriptors();
    let runs = cases.iter().flat_map(|case| {
        let doing = case.doing.iter().filter(|doing| wanted(**doing));
        doing.map(move |doing| run(wire, transport, case, *doing, len))
    });
    let wrong: Vec<String> = futures::stream::iter(runs)
        .buffer_unordered(AT_ONCE)
        .filter_map(std::future::ready)
        .collect()
        .await;
    assert!(
        wrong.is_empty(),
        "{} cases:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    // Of each case the sockets were looked at; this is whatever else a fault may leave open.
    eventually("no descriptor is left", || descriptors() == before).await;
}

/// Those of this process, which runs one test.
fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[tokio::test]
async fn direct() {
    every_condition(Wire::Plain, Transport::Direct).await;
}

#[tokio::test]
async fn direct_over_tls() {
    every_condition(Wire::Tls, Transport::Direct).await;
}

#[tokio::test]
async fn stock() {
    every_condition(Wire::Plain, Transport::Stock).await;
}

#[tokio::test]
async fn stock_over_tls() {
    every_condition(Wire::Tls, Transport::Stock).await;
}

#[tokio::test]
async fn direct_through_the_sdk() {
    conditions_of_large_bodies(Wire::Plain, Transport::Direct).await;
}

#[tokio::test]
async fn direct_through_the_sdk_over_tls() {
    conditions_of_large_bodies(Wire::Tls, Transport::Direct).await;
}

/// Longer than any test takes: who waits for the end of this stall hangs.
#[tokio::test]
async fn a_listing_that_stops_half_way_is_a_stall() {
    for transport in [Transport::Direct, Transport::Stock] {
        let server = server(Wire::Plain);
        server.put("bucket", "list/k", b"");
        let patience = Duration::from_millis(100);
        let world = s3_within(server.clone(), transport, patience, |client, _| client).await;
        for at_byte in [0, 100] {
            let stall = Rule::new(Effect::Stall {
                at_byte,
                ms: 600_000,
            });
            server.script("", vec![stall.operations(&[Operation::List]).times(1)]);
            let answer = tokio::time::timeout(PATIENCE, world.list("list/", Depth::All)).await;
            let error = answer.expect("no hang").unwrap_err();
            assert!(matches!(error, Error::Stalled { .. }), "{error:?}");
            assert_eq!(world.list("list/", Depth::All).await.unwrap(), ["list/k"]);
            server.clear_script();
        }
    }
}
