//! Our own tree: sources as tokens, for the tests that hold the code to its documents, and fixtures.
//!
//! The lexer is `proc_macro2`, the one under every derive macro: comments vanish, strings are literals, a doc comment
//! is a `#[doc = ".."]` attribute, and the body of a macro call is as visible as any other code.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use proc_macro2::TokenStream;

/// The directory of `Cargo.toml`.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Text of a file named relative to [`root`].
pub(crate) fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every `*.rs` under `dir`, relative to [`root`], sorted.
pub(crate) fn rust_files(dir: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![root().join(dir)];
    while let Some(dir) = pending.pop() {
        let entries =
            fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        for path in entries.map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|ext| ext == "rs") {
                found.push(path.strip_prefix(root()).unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

/// The tokens of one source text.
pub(crate) fn tokens(name: &str, text: &str) -> TokenStream {
    text.parse()
        .unwrap_or_else(|error| panic!("{name}: not Rust: {error}"))
}

/// Makes the data of fixtures/generate.py anew, so that no test depends on what lies about.
pub(crate) fn make_sample_data(out: &Path) {
    let status = Command::new("python3")
        .arg(root().join("fixtures/generate.py"))
        .arg("--out")
        .arg(out)
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "fixtures/generate.py: {status}");
}
