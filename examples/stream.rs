//! Streams every object under a prefix, in order and within 64 MiB: the engine in one screen.
//!
//! Without arguments it serves itself some data from a scripted S3 server on loopback:
//! `cargo run --example stream`, or `cargo run --example stream -- s3://bucket/prefix/`.

use std::sync::Arc;
use std::time::Instant;

use fake_s3::FakeS3;
use futures::StreamExt;
use standpipe::client::{Depth, ListEntry, S3Client, S3Config, resilient};
use standpipe::error::Result;
use standpipe::metrics::{Metrics, Sink};
use standpipe::object::ObjectUri;
use standpipe::prefetch::{PrefetchConfig, Prefetcher};

#[tokio::main]
async fn main() -> Result<()> {
    let mut s3 = S3Config::default();
    let server;
    let prefix: ObjectUri = match std::env::args().nth(1) {
        Some(uri) => uri.parse()?,
        None => {
            server = FakeS3::start().expect("a port on loopback is free");
            for shard in 0..4 {
                server.put_synthetic("demo", &format!("shards/{shard:03}"), 32 << 20, shard);
            }
            s3.endpoint_url = Some(server.endpoint());
            s3.anonymous = true;
            "s3://demo/shards/".parse()?
        }
    };

    let metrics = Arc::new(Metrics::default());
    let mut config = PrefetchConfig::default();
    config.memory_bytes = 64 << 20;
    let client = S3Client::connect(s3, metrics.clone()).await?;
    let client = resilient(Arc::new(client), config.concurrency, &metrics);
    let objects = client
        .list(&prefix, Depth::All)
        .filter_map(async |entry| match entry {
            Ok(ListEntry::Object(meta)) => Some(Ok(meta)),
            Ok(ListEntry::Prefix(_)) => None,
            Err(error) => Some(Err(error)),
        });
    let engine = Prefetcher::new(client.clone(), config, metrics)?;

    let start = Instant::now();
    let mut reader = engine.read_all(objects.boxed())?;
    let mut total_bytes = 0;
    while let Some(chunk) = reader.next_chunk().await? {
        total_bytes += chunk.bytes.len() as u64;
        if chunk.ends_object {
            eprintln!(
                "{}: whole, checksum compared where there was one",
                chunk.object.uri
            );
        }
    }
    let verdict = engine
        .snapshot()
        .verdict(start.elapsed(), 1, Sink::Consumer);
    eprintln!("{total_bytes} bytes in {:.2?}; {verdict}", start.elapsed());
    Ok(())
}
