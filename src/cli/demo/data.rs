//! The data set of the demo: the shards that fixtures/generate.py makes, labelled images in WebDataset's form, as often
//! as its size asks for.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use fake_s3::FakeS3;

use crate::error::{Error, Result};

const GENERATOR: &str = include_str!("../../../fixtures/generate.py");
/// What the generator imports.
const RECORDS: &str = include_str!("../../../fixtures/records.py");
/// What the generator is pinned by: it stamps its output with them.
const SUMS: &str = include_str!("../../../fixtures/SHA256SUMS");

/// Has the shards made below `scratch`; less than a second.
pub(super) fn make(scratch: &Path) -> Result<Vec<PathBuf>> {
    let home = scratch.join("fixtures");
    std::fs::create_dir_all(&home).map_err(|source| Error::io(&home, source))?;
    for (name, text) in [
        ("generate.py", GENERATOR),
        ("records.py", RECORDS),
        ("SHA256SUMS", SUMS),
    ] {
        let path = home.join(name);
        std::fs::write(&path, text).map_err(|source| Error::io(&path, source))?;
    }
    let made = Command::new("python3")
        .arg(home.join("generate.py"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status();
    if !made.is_ok_and(|status| status.success()) {
        return Err(Error::config(
            "python3",
            "the demo's data and its trainers are made and run by Python: install python3, 3.11 or later",
        ));
    }
    let shards = home.join("data/shards");
    let failed = |source| Error::io(&shards, source);
    let mut paths = std::fs::read_dir(&shards)
        .map_err(failed)?
        .map(|entry| Ok(entry.map_err(failed)?.path()))
        .collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

/// Puts the shards into the server over and over, until there are `wanted_bytes`; at least one. Says how many bytes.
pub(super) fn put(server: &FakeS3, shards: &[PathBuf], wanted_bytes: u64) -> Result<u64> {
    let (mut bytes, mut count) = (0, 0);
    for path in shards.iter().cycle() {
        let failed = |source| Error::io(path, source);
        let key = format!("train/shard-{count:05}.tar");
        server.put_file("demo", &key, path).map_err(failed)?;
        bytes += path.metadata().map_err(failed)?.len();
        count += 1;
        if bytes >= wanted_bytes {
            break;
        }
    }
    Ok(bytes)
}
