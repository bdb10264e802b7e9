//! No page fault per part once warm: the memory of parts is mapped once and used again.
//!
//! The engine runs on the thread of the test, whose own faults are counted, so that servers and other tests don't
//! matter. A part of 8 MiB in fresh memory costs 2,048 faults, or 4 where huge pages are to be had.

use std::sync::Arc;

use futures::StreamExt;
use futures::stream;
use standpipe::client::{MemoryClient, ObjectClient, S3Client, Transport};
use standpipe::object::ObjectUri;
use standpipe::prefetch::{ObjectReader, PrefetchConfig, Prefetcher};
use tokio::runtime::{Builder, Handle};

use crate::world::{Wire, s3_config, server};

const PART_BYTES: usize = 8 << 20;
/// Read before anything is counted: three times the parts that the memory holds.
const WARM_PARTS: usize = 24;
const PARTS: usize = 24;
/// Small things (tasks, heads, channels) may touch a new page of the heap now and then.
const MOST_PER_PART: f64 = 1.0;

/// Faults of this thread that took no disk: field 10 of `stat`, counted behind the name, which may hold spaces.
fn minor_faults() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
    let fields = stat.rsplit_once(')').unwrap().1;
    fields.split_whitespace().nth(7).unwrap().parse().unwrap()
}

/// Memory for eight parts, four requests at a time.
fn config() -> PrefetchConfig {
    let mut config = PrefetchConfig::default();
    config.part_bytes = PART_BYTES as u64;
    config.memory_bytes = 8 * PART_BYTES as u64;
    config.concurrency = 4;
    config
}

/// Reads so many chunks of a part each, and gives each back before it asks for the next.
async fn read(reader: &mut ObjectReader, parts: usize) {
    for _ in 0..parts {
        let chunk = reader.next_chunk().await.unwrap().unwrap();
        assert_eq!(chunk.bytes.len(), PART_BYTES);
    }
}

async fn assert_warm(what: &str, client: Arc<dyn ObjectClient>, uri: ObjectUri) {
    let meta = client.head(&uri).await.unwrap();
    // The same object on and on. Only of the first one the parts are smaller.
    let endless = stream::repeat_with(move || Ok(meta.clone())).boxed();
    let engine = Prefetcher::on(Handle::current(), client, config(), Arc::default()).unwrap();
    let mut reader = engine.read_all(endless).unwrap();
    while !reader.next_chunk().await.unwrap().unwrap().ends_object {}
    read(&mut reader, WARM_PARTS).await;
    let before = minor_faults();
    read(&mut reader, PARTS).await;
    let per_part = (minor_faults() - before) as f64 / PARTS as f64;
    assert!(per_part < MOST_PER_PART, "{what}: {per_part} faults a part");
}

/// The clock of what is counted works: touching fresh memory is seen.
fn assert_faults_are_counted() {
    let before = minor_faults();
    let fresh = vec![1u8; 4 << 20];
    std::hint::black_box(&fresh);
    assert!(minor_faults() > before, "faults are not counted here");
}

#[test]
fn a_warm_stream_faults_less_than_once_a_part() {
    assert_faults_are_counted();
    let content: Vec<u8> = vec![7; 8 * PART_BYTES];
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let memory = MemoryClient::default();
        let uri: ObjectUri = "memory://bucket/object".parse().unwrap();
        memory.put(uri.clone(), content.clone());
        assert_warm("memory", Arc::new(memory), uri).await;
        for wire in [Wire::Plain, Wire::Tls] {
            let server = server(wire);
            server.put("bucket", "object", &content);
            let (config, _ca_file) = s3_config(&server, Transport::Direct);
            let client = S3Client::connect(config, Arc::default()).await.unwrap();
            let uri = ObjectUri::s3("bucket", "object");
            assert_warm(&format!("{wire:?}"), Arc::new(client), uri).await;
        }
    });
}
