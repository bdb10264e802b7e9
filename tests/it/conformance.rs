//! What every client promises, whatever it reads: [`ObjectClient`]'s documentation as a suite.
//!
//! A clause is a function over a [`World`] and keeps to a prefix of its own. [`conforms`] runs them all.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use futures::{StreamExt, TryStreamExt};
use standpipe::client::{
    Behaviour, Chaos, Depth, FaultClient, LimitClient, LimitConfig, ListEntry, MemoryClient,
    ObjectClient, RetryClient, RetryConfig, Schedule, Transport,
};
use standpipe::error::Error;
use standpipe::metrics::Metrics;
use standpipe::object::{ByteRange, ObjectId};

use crate::world::{Wire, World, eventually, local, memory, over_memory, s3, s3s_fs, server};

/// Not a multiple of anything, and larger than a read from a socket.
const LEN: u64 = 300_001;

pub(crate) fn content(len: u64, salt: u8) -> Vec<u8> {
    (0..len)
        .map(|at| (at.wrapping_mul(0x9e37_79b9) >> 13) as u8 ^ salt)
        .collect()
}

pub(crate) async fn conforms(world: &World) {
    a_head_tells_size_and_etag(world).await;
    a_whole_object_arrives(world).await;
    any_range_arrives(world).await;
    a_part_goes_on_behind_what_is_filled(world).await;
    an_object_of_unknown_size_arrives_to_its_end(world).await;
    an_empty_object_is_no_error(world).await;
    beyond_the_end_there_is_nothing(world).await;
    a_replaced_object_has_changed(world).await;
    what_is_not_there_is_not_found(world).await;
    odd_keys_are_keys(world).await;
    a_listing_is_in_byte_order(world).await;
    one_level_shows_objects_and_prefixes(world).await;
    a_listing_of_many_pages_is_whole(world).await;
    a_listing_can_begin_behind_a_key(world).await;
    many_reads_at_once_do_not_mix(world).await;
    a_dropped_request_leaves_no_trace(world).await;
    world.assert_nothing_leaked().await;
}

async fn a_head_tells_size_and_etag(world: &World) {
    let uri = world.put("head/k", &content(LEN, 0));
    let meta = world.client.head(&uri).await.unwrap();
    assert_eq!((&meta.id.uri, meta.size_bytes), (&uri, LEN));
    assert_eq!(meta.id.size_bytes, Some(LEN));
    assert!(meta.id.etag.is_some_and(|etag| etag.len() > 2));
}

async fn pinned(world: &World, key: &str, bytes: &[u8]) -> ObjectId {
    let uri = world.put(key, bytes);
    world.client.head(&uri).await.unwrap().id
}

async fn a_whole_object_arrives(world: &World) {
    let id = pinned(world, "whole/k", &content(LEN, 0)).await;
    let (bytes, answer) = world.read(&id, ByteRange::new(0, LEN)).await;
    let meta = answer.unwrap();
    assert!(bytes == content(LEN, 0));
    assert_eq!((meta.size_bytes, meta.etag), (LEN, id.etag));
}

async fn any_range_arrives(world: &World) {
    let id = pinned(world, "ranges/k", &content(LEN, 1)).await;
    let ranges = [
        (0, 1),
        (0, LEN - 1),
        (1, 2),
        (65_535, 65_537),
        (1, LEN),
        (LEN - 1, LEN),
        (7, 7),
    ];
    for (start, end) in ranges {
        for id in [&id, &ObjectId::unpinned(id.uri.clone())] {
            let (bytes, answer) = world.read(id, ByteRange::new(start, end)).await;
            assert!(answer.is_ok(), "{start}..{end}: {answer:?}");
            let expected = &content(LEN, 1)[start as usize..end as usize];
            assert!(bytes == expected, "{start}..{end}");
        }
    }
}

async fn a_part_goes_on_behind_what_is_filled(world: &World) {
    let whole = content(LEN, 2);
    let id = pinned(world, "resumed/k", &whole).await;
    for (start, end, filled) in [
        (0, LEN, 1),
        (0, LEN, LEN - 1),
        (1000, 2000, 500),
        (1000, LEN, 70_000),
        (0, LEN, LEN),
    ] {
        let mut part = world.part(end - start);
        part.put(&whole[start as usize..(start + filled) as usize]);
        let answer = world
            .client
            .get(&id, ByteRange::new(start, end), &mut part)
            .await;
        assert!(answer.is_ok(), "{start}..{end} from {filled}: {answer:?}");
        assert!(
            part.filled() == &whole[start as usize..end as usize],
            "{start}..{end} from {filled}"
        );
    }
}

async fn an_object_of_unknown_size_arrives_to_its_end(world: &World) {
    let id = ObjectId::unpinned(world.put("unknown/k", &content(LEN, 3)));
    for start in [0, 1, LEN - 1] {
        let (bytes, answer) = world.read(&id, ByteRange::new(start, 2 * LEN)).await;
        assert_eq!(answer.unwrap().size_bytes, LEN, "from {start}");
        assert!(bytes == content(LEN, 3)[start as usize..], "from {start}");
    }
}

async fn an_empty_object_is_no_error(world: &World) {
    let id = pinned(world, "empty/k", b"").await;
    assert_eq!(id.size_bytes, Some(0));
    let ids = [(id.clone(), 0), (ObjectId::unpinned(id.uri), 100)];
    for (id, asked) in ids {
        let (bytes, answer) = world.read(&id, ByteRange::new(0, asked)).await;
        let meta = answer.unwrap();
        assert_eq!((bytes.len(), meta.size_bytes), (0, 0), "{asked} bytes");
    }
}

async fn beyond_the_end_there_is_nothing(world: &World) {
    let id = pinned(world, "beyond/k", &content(1000, 0)).await;
    for id in [id.clone(), ObjectId::unpinned(id.uri)] {
        let (bytes, answer) = world.read(&id, ByteRange::new(1001, 1010)).await;
        let error = answer.unwrap_err();
        assert!(
            matches!(error, Error::RangeNotSatisfiable { .. }),
            "{error}"
        );
        assert_eq!(bytes, b"");
    }
}

async fn a_replaced_object_has_changed(world: &World) {
    let old = content(LEN, 4);
    let id = pinned(world, "changed/k", &old).await;
    world.put("changed/k", &content(LEN, 5));
    let mut part = world.part(LEN);
    for filled in [0, 1000] {
        part.clear();
        part.put(&old[..filled]);
        let answer = world
            .client
            .get(&id, ByteRange::new(0, LEN), &mut part)
            .await;
        let error = answer.unwrap_err();
        assert!(matches!(error, Error::Changed { .. }), "{error}");
        assert!(part.filled() == &old[..filled], "bytes of the new version");
    }
    let now = ObjectId::unpinned(id.uri.clone());
    let (bytes, answer) = world.read(&now, ByteRange::new(0, LEN)).await;
    assert_ne!(answer.unwrap().etag, id.etag);
    assert!(bytes == content(LEN, 5));
}

async fn what_is_not_there_is_not_found(world: &World) {
    let not_found = |error: Error| assert!(matches!(error, Error::NotFound { .. }), "{error}");
    let missing = [Some(world.uri("missing/k")), world.missing_bucket.clone()];
    for uri in missing.into_iter().flatten() {
        not_found(world.client.head(&uri).await.unwrap_err());
        let id = ObjectId::unpinned(uri);
        not_found(world.read(&id, ByteRange::new(0, 9)).await.1.unwrap_err());
    }
    assert_eq!(
        world.list("missing/", Depth::All).await.unwrap(),
        [""; 0],
        "a prefix of nothing is no error"
    );
    if let Some(uri) = &world.missing_bucket {
        let listed: Result<Vec<_>, _> = world.client.list(uri, Depth::All).try_collect().await;
        not_found(listed.unwrap_err());
    }
}

const ODD_KEYS: [&str; 16] = [
    " leading and trailing ",
    "!-_.*'()",
    "\"quoted\"",
    "#fragment?query=1&x",
    "%2F%25+%20",
    "+plus+",
    "...",
    "<xml>&amp;",
    "=;:@,$",
    "[brackets]{braces}|^`",
    "back\\slash",
    "tilde~",
    "日本語",
    "a/日/é e",
    "\u{ff5e} sorts before the next as UTF-8, behind it as UTF-16",
    "😀",
];

async fn odd_keys_are_keys(world: &World) {
    let mut keys: Vec<String> = ODD_KEYS.iter().map(|key| format!("odd/{key}")).collect();
    for key in &keys {
        let uri = world.put(key, key.as_bytes());
        let size = key.len() as u64;
        let meta = world.client.head(&uri).await;
        assert_eq!(meta.unwrap().size_bytes, size, "{key}");
        let (bytes, answer) = world
            .read(&ObjectId::unpinned(uri), ByteRange::new(0, size))
            .await;
        answer.unwrap();
        assert_eq!(bytes, key.as_bytes());
    }
    keys.sort();
    let mut listed = world.list("odd/", Depth::All).await.unwrap();
    assert_eq!(listed.len(), keys.len());
    if !world.tells_all_keys {
        keys.retain(|key| !key.contains(['%', '+']));
        listed.retain(|key| keys.contains(key));
    }
    assert_eq!(listed, keys);
    let below = world.list("odd/a", Depth::OneLevel).await.unwrap();
    assert_eq!(below, ["odd/a/"]);
}

async fn a_listing_is_in_byte_order(world: &World) {
    for key in ["ab", "a/x", "a.txt", "a-b", "a/-/deep/er", "B", "é"] {
        world.put(&format!("order/{key}"), key.as_bytes());
    }
    let listed = world.list("order/", Depth::All).await.unwrap();
    let expected = ["B", "a-b", "a.txt", "a/-/deep/er", "a/x", "ab", "é"];
    assert_eq!(listed, expected.map(|key| format!("order/{key}")));
    // A prefix may end inside a name, and a whole key is one, too.
    let listed = world.list("order/a/", Depth::All).await.unwrap();
    assert_eq!(listed, ["order/a/-/deep/er", "order/a/x"]);
    let listed = world.list("order/a.", Depth::All).await.unwrap();
    assert_eq!(listed, ["order/a.txt"]);
    assert_eq!(
        world.list("order/B", Depth::All).await.unwrap(),
        ["order/B"]
    );
}

async fn one_level_shows_objects_and_prefixes(world: &World) {
    for key in ["a-b", "a/x", "a/y/z", "ab", "b/c/d"] {
        world.put(&format!("level/{key}"), b"1");
    }
    let listed = world.list("level/", Depth::OneLevel).await.unwrap();
    assert_eq!(listed, ["level/a-b", "level/a/", "level/ab", "level/b/"]);
    let listed = world.list("level/a", Depth::OneLevel).await.unwrap();
    assert_eq!(listed, ["level/a-b", "level/a/", "level/ab"]);
    let listed = world.list("level/a/", Depth::OneLevel).await.unwrap();
    assert_eq!(listed, ["level/a/x", "level/a/y/"]);
    assert_eq!(
        world.list("leve", Depth::OneLevel).await.unwrap(),
        ["level/"]
    );
}

/// More than two of S3's pages of 1,000.
const MANY: usize = 2_345;

/// Where that is possible at all; the keys are those of [`a_listing_of_many_pages_is_whole`].
async fn a_listing_can_begin_behind_a_key(world: &World) {
    let prefix = world.uri("many/");
    let all: Vec<ListEntry> = world
        .client
        .list(&prefix, Depth::All)
        .try_collect()
        .await
        .unwrap();
    let key = |entry: &ListEntry| match entry {
        ListEntry::Object(meta) => meta.id.uri.key().to_owned(),
        ListEntry::Prefix(uri) => panic!("{uri} in a listing of all"),
    };
    let inside = key(&all[all.len() / 3]);
    for after in [prefix.key(), &inside, &inside[..inside.len() - 1], "~"] {
        let Some(entries) = world.client.list_after(&prefix, after) else {
            return;
        };
        let entries: Vec<ListEntry> = entries.try_collect().await.unwrap();
        let expected: Vec<ListEntry> = all
            .iter()
            .filter(|entry| key(entry).as_str() > after)
            .cloned()
            .collect();
        assert!(
            entries == expected,
            "behind {after:?}: {} of {}",
            entries.len(),
            expected.len()
        );
    }
}

async fn a_listing_of_many_pages_is_whole(world: &World) {
    for at in 0..MANY {
        world.put(&format!("many/{:02}/{at:05}", at % 7), &vec![0; at % 3]);
    }
    let entries: Vec<ListEntry> = world
        .client
        .list(&world.uri("many/"), Depth::All)
        .try_collect()
        .await
        .unwrap();
    let metas = entries.iter().map(|entry| match entry {
        ListEntry::Object(meta) => meta,
        ListEntry::Prefix(uri) => panic!("{uri} in a listing of all"),
    });
    let metas: Vec<_> = metas.collect();
    assert_eq!(metas.len(), MANY);
    assert!(metas.is_sorted_by(|a, b| a.id.uri.key() < b.id.uri.key()));
    for meta in metas.iter().step_by(500) {
        let head = world.client.head(&meta.id.uri).await.unwrap();
        assert_eq!(
            (&meta.id.uri, meta.size_bytes),
            (&head.id.uri, head.size_bytes)
        );
        // s3s-fs lists no ETags.
        if meta.id.etag.is_some() {
            assert_eq!(meta.id.etag, head.id.etag, "{:?}", meta.id.uri);
        }
    }
    let level = world.list("many/", Depth::OneLevel).await.unwrap();
    assert_eq!(level.len(), 7);
}

async fn many_reads_at_once_do_not_mix(world: &World) {
    let mut ids = Vec::new();
    for salt in 0..24 {
        let key = format!("mixed/{salt}");
        ids.push(pinned(world, &key, &content(10_000 + u64::from(salt), salt)).await);
    }
    let reads = ids.iter().map(|id| async {
        let size = id.size_bytes.unwrap();
        world.read(id, ByteRange::new(0, size)).await
    });
    let answers = futures::future::join_all(reads).await;
    for (salt, (bytes, answer)) in (0..24).zip(answers) {
        answer.unwrap();
        assert!(bytes == content(10_000 + u64::from(salt), salt), "{salt}");
    }
}

/// Runs `future` for so many polls and drops it then.
async fn poll_at_most<F: Future>(polls: usize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = polls;
    std::future::poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

async fn a_dropped_request_leaves_no_trace(world: &World) {
    let whole = content(LEN, 6);
    let id = pinned(world, "dropped/k", &whole).await;
    let range = ByteRange::new(0, LEN);
    for polls in 0..12 {
        let read = poll_at_most(polls, world.read(&id, range)).await;
        if let Some((bytes, answer)) = read {
            answer.unwrap();
            assert!(bytes == whole);
        }
        poll_at_most(polls, world.client.head(&id.uri)).await;
        poll_at_most(polls, world.list("dropped/", Depth::All)).await;
    }
    let mut half_read = world.client.list(&world.uri("many/"), Depth::All);
    half_read.next().await.unwrap().unwrap();
    drop(half_read);
    world.assert_nothing_leaked().await;
    let (bytes, answer) = world.read(&id, range).await;
    answer.unwrap();
    assert!(bytes == whole, "after dropped requests");
}

#[tokio::test]
async fn memory_conforms() {
    conforms(&memory()).await;
}

#[tokio::test]
async fn local_files_conform() {
    conforms(&local()).await;
}

fn decorated(
    decorate: impl FnOnce(Arc<dyn ObjectClient>, Arc<Metrics>) -> Arc<dyn ObjectClient>,
) -> World {
    let memory = MemoryClient::default();
    let metrics = Arc::new(Metrics::default());
    let client = decorate(Arc::new(memory.clone()), metrics.clone());
    over_memory(client, memory, metrics)
}

#[tokio::test(start_paused = true)]
async fn retries_conform() {
    let world = decorated(|inner, metrics| {
        Arc::new(RetryClient::new(inner, RetryConfig::default(), metrics))
    });
    conforms(&world).await;
    assert_eq!(world.metrics.retries.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn limits_conform() {
    for most_requests in [1, 64] {
        let config = LimitConfig { most_requests };
        let world = decorated(|inner, metrics| Arc::new(LimitClient::new(inner, config, metrics)));
        conforms(&world).await;
    }
}

#[tokio::test(start_paused = true)]
async fn slowness_conforms() {
    let slow = Schedule {
        rest: Behaviour {
            first_byte: std::time::Duration::from_millis(30),
            bytes_per_second: Some(50 << 20),
            ..Behaviour::default()
        },
        ..Schedule::default()
    };
    conforms(&decorated(|inner, _| {
        Arc::new(FaultClient::new(inner, slow))
    }))
    .await;
}

/// The whole stack, with faults that heal: nobody above notices.
#[tokio::test(start_paused = true)]
async fn healing_faults_under_retries_conform() {
    for seed in 0..8 {
        fastrand::seed(seed);
        let chaos = Chaos {
            seed,
            share: 0.3,
            heals_after: u64::MAX,
            most_after: LEN,
            ..Chaos::default()
        };
        let world = decorated(|inner, metrics| {
            let faulty = Arc::new(FaultClient::new(inner, Schedule::chaos(chaos)));
            let limited = LimitClient::new(faulty, LimitConfig::default(), metrics.clone());
            Arc::new(RetryClient::new(
                Arc::new(limited),
                RetryConfig::default(),
                metrics,
            ))
        });
        conforms(&world).await;
        assert!(world.metrics.retries.get() > 10, "seed {seed}");
    }
}

async fn s3_conforms(wire: Wire, transport: Transport) {
    let server = server(wire);
    conforms(&s3(server.clone(), transport, |client, _| client).await).await;
    eventually("no connection is left", || server.stats().open == 0).await;
}

#[tokio::test]
async fn s3_direct_conforms() {
    s3_conforms(Wire::Plain, Transport::Direct).await;
}

#[tokio::test]
async fn s3_direct_over_tls_conforms() {
    s3_conforms(Wire::Tls, Transport::Direct).await;
}

#[tokio::test]
async fn s3_stock_conforms() {
    s3_conforms(Wire::Plain, Transport::Stock).await;
}

#[tokio::test]
async fn s3_stock_over_tls_conforms() {
    s3_conforms(Wire::Tls, Transport::Stock).await;
}

#[tokio::test]
async fn s3_direct_conforms_over_a_foreign_server() {
    conforms(&s3s_fs(Transport::Direct).await).await;
}

#[tokio::test]
async fn s3_stock_conforms_over_a_foreign_server() {
    conforms(&s3s_fs(Transport::Stock).await).await;
}
