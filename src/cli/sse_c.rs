//! The customer's key of `--sse-c-key`, from a file.
//!
//! The AWS CLI's high-level commands take the key's bytes, which in practice means `fileb://PATH`; a key typed into a
//! command line is there for every user of the machine to read. So a file is all that is taken here, and what may have
//! been meant as the key itself is not repeated in any message.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::flags::SourceFlags;
use crate::client::SseCustomerKey;
use crate::error::{Error, Result};

const FLAG: &str = "--sse-c-key";
const KEY_BYTES: usize = 32;
/// More than any form of a key has; whatever else the file may be, it is not read.
const MOST_BYTES: u64 = 256;

/// The key that the flags name, if they name one.
pub(super) fn key(flags: &SourceFlags) -> Result<Option<SseCustomerKey>> {
    // A variable that is set to nothing is one that is not set.
    match flags
        .sse_c_key
        .as_deref()
        .filter(|path| !path.as_os_str().is_empty())
    {
        Some(path) => read(path).map(Some),
        None if flags.sse_c.is_some() => Err(Error::config(
            "--sse-c",
            "needs the key: name its file with --sse-c-key",
        )),
        None => Ok(None),
    }
}

/// Refuses to keep on disk, in plain, what its owner keeps encrypted.
pub(super) fn refuse_cache(flags: &SourceFlags) -> Result<()> {
    match key(flags)? {
        Some(_) => Err(Error::unusable(
            FLAG,
            "a cache would keep on disk, in plain, what is encrypted with your own key",
            "leave out --cache (and STANDPIPE_CACHE), or say --no-cache",
        )),
        None => Ok(()),
    }
}

fn read(named: &Path) -> Result<SseCustomerKey> {
    let marked = named
        .to_str()
        .and_then(|name| name.strip_prefix("fileb://"));
    let path = marked.map_or(named, Path::new);
    let unreadable = |error: std::io::Error| match marked {
        Some(path) => Error::config(FLAG, format!("{path}: {error}")),
        None => Error::config(
            FLAG,
            format!("no readable file ({error}): give a file's name, never the key itself"),
        ),
    };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(MOST_BYTES)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    parse(&bytes).ok_or_else(|| {
        Error::config(
            FLAG,
            format!(
                "{} holds no AES-256 key: it must be {KEY_BYTES} bytes or their base64, as `openssl rand -out FILE {KEY_BYTES}` makes them",
                path.display()
            ),
        )
    })
}

/// The bytes of a key as they are, or in base64; their lengths tell them apart.
fn parse(bytes: &[u8]) -> Option<SseCustomerKey> {
    if let Ok(key) = <[u8; KEY_BYTES]>::try_from(bytes) {
        return Some(SseCustomerKey::new(key));
    }
    let text = std::str::from_utf8(bytes).ok()?;
    SseCustomerKey::from_base64(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_its_bytes_or_their_base64() {
        let key = SseCustomerKey::new([7; 32]);
        assert_eq!(parse(&[7; 32]).as_ref(), Some(&key));
        let text = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";
        assert_eq!(parse(text.as_bytes()).as_ref(), Some(&key));
        assert_eq!(parse(format!("{text}\n").as_bytes()), Some(key));
        for bad in [&[7; 31][..], &[7; 33], b"", b"AAAA", &[255; 44]] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }
}
