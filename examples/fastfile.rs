//! Files of a prefix without a mount: listed, read at any offset, told ahead, and as paths on a local disk.
//!
//! Without arguments it serves itself some data from a scripted S3 server on loopback:
//! `cargo run --example fastfile`, or `cargo run --example fastfile -- s3://bucket/prefix/`.

use std::io::{Read, Seek, SeekFrom};

use fake_s3::FakeS3;
use standpipe::cache::CacheConfig;
use standpipe::client::S3Config;
use standpipe::fastfile::FastFiles;
use standpipe::object::ObjectUri;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut s3 = S3Config::default();
    let server;
    let prefix: ObjectUri = match std::env::args().nth(1) {
        Some(uri) => uri.parse()?,
        None => {
            server = FakeS3::start()?;
            for image in 0..100 {
                let key = format!("train/{}/{image:03}.jpg", image % 4);
                server.put_synthetic("demo", &key, 100_000, image);
            }
            s3.endpoint_url = Some(server.endpoint());
            s3.anonymous = true;
            "s3://demo/train/".parse()?
        }
    };
    let cache = tempfile::tempdir()?;
    let files = FastFiles::builder(prefix)
        .s3(s3)
        .cache(CacheConfig::new(cache.path()))
        .open()?;

    let mut epoch = Vec::new();
    for entry in files.walk("")? {
        let entry = entry?;
        if !entry.is_directory {
            epoch.push(entry.path);
        }
    }
    fastrand::shuffle(&mut epoch);
    // Fetched in this order, as far ahead as memory allows, while the loop reads.
    files.prefetch(&epoch)?;
    let mut total_bytes = 0;
    for path in &epoch {
        total_bytes += files.open_file(path)?.read_to_end(&mut Vec::new())?;
    }
    eprintln!("{total_bytes} bytes of {} files", epoch.len());

    if let Some(path) = epoch.first() {
        let mut file = files.open_file(path)?;
        file.seek(SeekFrom::End(-4))?;
        let mut tail = Vec::new();
        file.read_to_end(&mut tail)?;
        eprintln!("{path} ends in {tail:02x?}");
        let local = file.path()?;
        eprintln!("and lies in {}", local.path().display());
    }
    Ok(())
}
