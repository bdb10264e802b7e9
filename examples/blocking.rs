//! The engine without async: `std::io::Read` over objects, here in memory; a missing one is an error, not an end.
//!
//! `cargo run --example blocking`

use std::io::{BufRead, BufReader};
use std::sync::Arc;

use standpipe::client::MemoryClient;
use standpipe::error::{Error, Result};
use standpipe::object::ObjectId;
use standpipe::prefetch::{PrefetchConfig, Prefetcher};

fn main() -> Result<()> {
    let client = MemoryClient::default();
    client.put("memory://bucket/lines".parse()?, "one\ntwo\nthree\n");
    let engine = Prefetcher::new(Arc::new(client), PrefetchConfig::default(), Arc::default())?;

    let reader = engine.read(ObjectId::unpinned("memory://bucket/lines".parse()?))?;
    for line in BufReader::new(reader.blocking()).lines() {
        eprintln!(
            "{}",
            line.map_err(|error| Error::io("memory://bucket/lines", error))?
        );
    }

    let missing = engine.read(ObjectId::unpinned("memory://bucket/missing".parse()?))?;
    let error = missing
        .blocking()
        .next_chunk()
        .expect_err("there is no such object");
    eprintln!("{error}; fix: {}", error.fix().unwrap_or("none known"));
    Ok(())
}
