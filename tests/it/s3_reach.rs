//! What stands between a user and the bytes on real systems: sessions, proxies, access points, sources of credentials.
//!
//! Whatever the environment decides is tried on the command in a process of its own, because variables are
//! process-wide.

use std::process::{Command, Output, Stdio};

use fake_s3::FakeS3;

use crate::conformance::content;

mod address;
mod credentials;
mod express;
mod listing;
mod proxy;
mod stub;

const KEY: &str = "AKIDTEST";
const SECRET: &str = "secret-of-the-tests";

/// Below the size from which on requests go through the SDK, and above it.
const SMALL: u64 = 100_000;
const LARGE: u64 = 3_000_000;

fn put_both(server: &FakeS3, bucket: &str) {
    for (key, len) in [("dir/small", SMALL), ("dir/large", LARGE)] {
        server.put(bucket, key, &content(len, 0));
    }
}

/// The small object's bytes and then the large one's.
fn bytes() -> Vec<u8> {
    [content(SMALL, 0), content(LARGE, 0)].concat()
}

/// `standpipe cat` in an environment that holds nothing of the machine's but the path: a key, a region, and these
/// variables.
fn cat(variables: &[(&str, String)], args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_standpipe"));
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", "/nonexistent")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("AWS_REGION", "us-east-1")
        .env("AWS_ACCESS_KEY_ID", KEY)
        .env("AWS_SECRET_ACCESS_KEY", SECRET);
    for (name, value) in variables {
        match value.is_empty() {
            true => command.env_remove(name),
            false => command.env(name, value),
        };
    }
    command.arg("cat").args(args);
    command.stdin(Stdio::null()).output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or(-1)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
