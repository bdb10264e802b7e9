//! Reads an object, or all below a prefix, by the engine, and sums its bytes as words: what other readers are measured
//! against, doing the same (`benches/peers`).
//!
//! `cargo run --release --example sum -- s3://bucket/key [CONCURRENCY]`, unsigned. Prints one line of JSON. Without
//! arguments it serves itself some data from a scripted S3 server on loopback, and checks the sum.

use std::time::Instant;
use std::{env, sync::Arc};

use fake_s3::FakeS3;
use futures::StreamExt;
use standpipe::client::{Depth, ListEntry, S3Client, S3Config, resilient};
use standpipe::error::Result;
use standpipe::metrics::Metrics;
use standpipe::object::{ObjectId, ObjectUri};
use standpipe::prefetch::{ObjectReader, PrefetchConfig, Prefetcher};

/// An object's sums are folded block by block, so that the order of its bytes matters.
const BLOCK_BYTES: u64 = 1 << 20;
const ODD: u64 = 0x9e37_79b9_7f4a_7c15;

#[derive(Debug, Default)]
struct Digest {
    filled: u64,
    sum: u64,
    folded: u64,
}

impl Digest {
    fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = (BLOCK_BYTES - self.filled).min(bytes.len() as u64) as usize;
            let (now, later) = bytes.split_at(room);
            self.add(now);
            bytes = later;
            if self.filled == BLOCK_BYTES {
                self.fold();
            }
        }
    }

    /// Little-endian words of eight bytes from the block's start on, whatever the pieces.
    fn add(&mut self, bytes: &[u8]) {
        let at = (self.filled % 8) as usize;
        let (head, rest) = bytes.split_at(bytes.len().min((8 - at) % 8));
        let words = rest.chunks_exact(8);
        let loose = |bytes: &[u8], at: usize| {
            let places = bytes.iter().zip(at..);
            places.fold(0, |sum: u64, (byte, at)| {
                sum.wrapping_add(u64::from(*byte) << (8 * at))
            })
        };
        let tail = loose(words.remainder(), 0);
        let word = |word: &[u8]| word.try_into().map_or(0, u64::from_le_bytes);
        let body = words.fold(0, |sum: u64, bytes| sum.wrapping_add(word(bytes)));
        let all = loose(head, at).wrapping_add(body).wrapping_add(tail);
        self.sum = self.sum.wrapping_add(all);
        self.filled += bytes.len() as u64;
    }

    fn fold(&mut self) {
        self.folded = self.folded.wrapping_mul(ODD).wrapping_add(self.sum);
        (self.filled, self.sum) = (0, 0);
    }

    /// Of a whole object; those of several are added, in whatever order they came.
    fn mixed(mut self) -> u64 {
        self.fold();
        (self.folded ^ (self.folded >> 31)).wrapping_mul(ODD)
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut s3 = S3Config {
        anonymous: true,
        ..S3Config::default()
    };
    let server;
    let uri: ObjectUri = match env::args().nth(1) {
        Some(uri) => uri.parse()?,
        None => {
            server = FakeS3::start().expect("a port on loopback is free");
            server.put("demo", "parts/a", b"\x01\x02");
            server.put("demo", "parts/b", b"0123456789");
            s3.endpoint_url = Some(server.endpoint());
            "s3://demo/parts/".parse()?
        }
    };
    let metrics = Arc::new(Metrics::default());
    let mut config = PrefetchConfig::default();
    if let Some(wanted) = env::args().nth(2) {
        config.concurrency = wanted.parse().expect("the concurrency is a number");
    }
    let client = S3Client::connect(s3, metrics.clone()).await?;
    let client = resilient(Arc::new(client), config.concurrency, &metrics);
    let engine = Prefetcher::new(client.clone(), config, metrics)?;

    let start = Instant::now();
    let reader = match uri.key().ends_with('/') {
        false => engine.read(ObjectId::unpinned(uri))?,
        true => {
            let objects = client
                .list(&uri, Depth::All)
                .filter_map(async |entry| match entry {
                    Ok(ListEntry::Object(meta)) => Some(Ok(meta)),
                    Ok(ListEntry::Prefix(_)) => None,
                    Err(error) => Some(Err(error)),
                });
            engine.read_all(objects.boxed())?
        }
    };
    let (bytes, objects, digest) = sum(reader).await?;
    let seconds = start.elapsed().as_secs_f64();
    if env::args().len() == 1 {
        assert_eq!((bytes, objects), (12, 2), "the server's objects are these");
    }
    eprintln!(
        "{}",
        serde_json::json!({"bytes": bytes, "objects": objects, "digest": digest, "seconds": seconds})
    );
    Ok(())
}

async fn sum(mut reader: ObjectReader) -> Result<(u64, u64, u64)> {
    let (mut bytes, mut objects, mut digest) = (0, 0, 0_u64);
    let mut object = Digest::default();
    while let Some(chunk) = reader.next_chunk().await? {
        object.update(&chunk.bytes);
        bytes += chunk.bytes.len() as u64;
        if chunk.ends_object {
            objects += 1;
            digest = digest.wrapping_add(std::mem::take(&mut object).mixed());
        }
    }
    Ok((bytes, objects, digest))
}
