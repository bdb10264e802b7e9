//! The engine's invariants (ARCHITECTURE.md) as properties, in virtual time over simulated clients.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use proptest::prelude::*;
use standpipe::client::{Depth, ListEntry, MemoryClient, ObjectClient};
use standpipe::error::Result;
use standpipe::object::{ObjectId, ObjectMeta, ObjectUri};
use standpipe::prefetch::{Chunk, Next, ObjectReader, PrefetchConfig, Prefetcher};

/// Bytes that differ between objects and between offsets.
fn content(object: usize, len: usize) -> Vec<u8> {
    (0..len)
        .map(|at| (at.wrapping_mul(31) ^ (at >> 8) ^ object.wrapping_mul(97)) as u8)
        .collect()
}

fn uri(object: usize) -> ObjectUri {
    format!("memory://bucket/{object:04}").parse().unwrap()
}

fn seeded(sizes: &[usize]) -> MemoryClient {
    let client = MemoryClient::default();
    for (object, size) in sizes.iter().enumerate() {
        client.put(uri(object), content(object, *size));
    }
    client
}

fn listing(client: &dyn ObjectClient) -> futures::stream::BoxStream<'static, Result<ObjectMeta>> {
    let entries = client.list(&"memory://bucket/".parse().unwrap(), Depth::All);
    let objects = entries.map(|entry| match entry? {
        ListEntry::Object(meta) => Ok(meta),
        ListEntry::Prefix(_) => unreachable!("a deep listing has no prefixes"),
    });
    objects.boxed()
}

async fn read_to_end(mut reader: ObjectReader) -> (Vec<u8>, Result<()>) {
    let mut bytes = Vec::new();
    loop {
        match reader.next_chunk().await {
            Ok(Some(chunk)) => bytes.extend_from_slice(&chunk.bytes),
            Ok(None) => return (bytes, Ok(())),
            Err(error) => return (bytes, Err(error)),
        }
    }
}

#[test]
fn objects_come_back_to_back_and_chunks_say_what_they_are() {
    let sizes = [3_000_000, 0, 10, 500_000];
    let client = seeded(&sizes);
    let objects = listing(&client);
    let mut config = PrefetchConfig::default();
    config.part_bytes = 1 << 20;
    config.memory_bytes = 8 << 20;
    let engine = Prefetcher::new(Arc::new(client), config, Arc::default()).unwrap();
    let mut reader = engine.read_all(objects).unwrap().blocking();
    let (mut ends, mut bytes) = (Vec::new(), Vec::new());
    while let Some(Chunk {
        object,
        offset,
        bytes: piece,
        ends_object,
    }) = reader.next_chunk().unwrap()
    {
        bytes.extend_from_slice(&piece);
        if ends_object {
            assert_eq!(Some(offset + piece.len() as u64), object.size_bytes);
            ends.push(object.uri.clone());
        }
    }
    assert_eq!(ends, (0..4).map(uri).collect::<Vec<_>>());
    let expected: Vec<u8> = sizes
        .iter()
        .enumerate()
        .flat_map(|(object, size)| content(object, *size))
        .collect();
    assert!(bytes == expected);
    let snapshot = engine.snapshot();
    assert_eq!((snapshot.reserved_bytes, snapshot.lent_bytes), (0, 0));
    assert_eq!(
        (snapshot.checksums_verified, snapshot.checksums_unverified),
        (1, 0)
    );
    assert_eq!(snapshot.bytes_delivered, expected.len() as u64);
}
