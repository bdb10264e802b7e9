//! Turning pages of a listing into entries, and the keys back from their encoding. Pure functions.

use std::time::SystemTime;

use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use aws_sdk_s3::types::{ChecksumType, EncodingType, Object};
use percent_encoding::percent_decode_str;

use crate::checksum::ChecksumAlgorithm;
use crate::client::ListEntry;
use crate::error::{Error, Result};
use crate::object::{ObjectId, ObjectMeta, ObjectUri};

/// One page, and where the next one begins.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) entries: Vec<ListEntry>,
    pub(super) next_token: Option<String>,
}

/// Reads the answer to a request for the page of `token`. Objects and prefixes of a page are merged into the order of
/// their keys, as the server counts them.
pub(super) fn page(
    prefix: &ObjectUri,
    token: Option<&str>,
    output: &ListObjectsV2Output,
) -> Result<Page> {
    let encoded = is_encoded(output);
    let objects = output
        .contents()
        .iter()
        .map(|found| object(prefix, found, encoded));
    let prefixes = output.common_prefixes().iter().filter_map(|found| {
        let key = decode(prefix, found.prefix()?, encoded);
        Some(key.map(|key| ListEntry::Prefix(prefix.with_key(key))))
    });
    let mut entries = objects.chain(prefixes).collect::<Result<Vec<_>>>()?;
    if !output.common_prefixes().is_empty() {
        entries.sort_by(|a, b| key_of(a).cmp(key_of(b)));
    }
    Ok(Page {
        entries,
        next_token: next_token(prefix, token, output)?,
    })
}

/// Whether the keys are encoded: the answer says so, and none holds what the encoding would have escaped. Some servers
/// (`s3s-fs`) repeat the `encoding-type` that was asked for and send the keys as they are.
fn is_encoded(output: &ListObjectsV2Output) -> bool {
    let objects = output.contents().iter().filter_map(Object::key);
    let prefixes = output
        .common_prefixes()
        .iter()
        .filter_map(|found| found.prefix());
    output.encoding_type() == Some(&EncodingType::Url)
        && objects.chain(prefixes).all(could_be_encoded)
}

fn could_be_encoded(text: &str) -> bool {
    let bytes = text.as_bytes();
    let is_escape = |at: usize| {
        let digits = bytes.get(at + 1..at + 3).unwrap_or_default();
        digits.len() == 2 && digits.iter().all(u8::is_ascii_hexdigit)
    };
    bytes.iter().enumerate().all(|(at, byte)| match byte {
        b'%' => is_escape(at),
        b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}' => false,
        byte => byte.is_ascii_graphic(),
    })
}

/// A listing that is said to go on but does not say where would end early in silence; one that goes on where it is
/// would never end.
fn next_token(
    prefix: &ObjectUri,
    asked: Option<&str>,
    output: &ListObjectsV2Output,
) -> Result<Option<String>> {
    if !output.is_truncated().unwrap_or(false) {
        return Ok(None);
    }
    match output.next_continuation_token() {
        Some(token) if asked == Some(token) => Err(bad_listing(
            prefix,
            "it goes on with the page that was asked for: the same continuation token",
        )),
        Some(token) if !token.is_empty() => Ok(Some(token.into())),
        _ => Err(bad_listing(
            prefix,
            "it is truncated but names no continuation token",
        )),
    }
}

fn key_of(entry: &ListEntry) -> &str {
    match entry {
        ListEntry::Object(meta) => meta.id.uri.key(),
        ListEntry::Prefix(uri) => uri.key(),
    }
}

fn object(prefix: &ObjectUri, found: &Object, encoded: bool) -> Result<ListEntry> {
    let key = found
        .key()
        .ok_or_else(|| bad_listing(prefix, "an object without a key"))?;
    let size_bytes = found
        .size()
        .and_then(|size| u64::try_from(size).ok())
        .ok_or_else(|| bad_listing(prefix, &format!("no usable size for {key:?}")))?;
    Ok(ListEntry::Object(ObjectMeta {
        id: ObjectId {
            uri: prefix.with_key(decode(prefix, key, encoded)?),
            etag: found.e_tag().map(Into::into),
            version_id: None,
            size_bytes: Some(size_bytes),
        },
        size_bytes,
        last_modified: found
            .last_modified()
            .and_then(|time| SystemTime::try_from(*time).ok()),
        checksum_algorithm: algorithm(found),
        checksum: None,
    }))
}

/// Only a CRC over the whole object can be compared. A listing that does not say which kind it is (older servers)
/// means a composite one for objects of several parts, whose ETag ends in `-N`.
fn algorithm(found: &Object) -> Option<ChecksumAlgorithm> {
    let is_whole = match found.checksum_type() {
        Some(kind) => *kind == ChecksumType::FullObject,
        None => !found.e_tag().is_some_and(|etag| etag.contains('-')),
    };
    found
        .checksum_algorithm()
        .iter()
        .filter(|_| is_whole)
        .find_map(|name| ChecksumAlgorithm::from_name(name.as_str()))
}

/// Undoes `encoding-type=url` once, and only if the answer says that it was applied. S3 writes a space as `+` and a
/// plus as `%2B`.
fn decode(prefix: &ObjectUri, text: &str, encoded: bool) -> Result<String> {
    if !encoded {
        return Ok(text.into());
    }
    let spaced = text.replace('+', " ");
    percent_decode_str(&spaced)
        .decode_utf8()
        .map(Into::into)
        .map_err(|_| bad_listing(prefix, &format!("a key that is not UTF-8: {text:?}")))
}

fn bad_listing(prefix: &ObjectUri, reason: &str) -> Error {
    Error::Protocol {
        uri: prefix.to_string(),
        offset: 0,
        reason: format!("bad listing: {reason}"),
        answer: Box::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_sdk_s3::types::{ChecksumAlgorithm as Sdk, CommonPrefix};
    use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
    use proptest::prelude::*;

    fn listed(key: &str) -> Object {
        Object::builder().key(key).size(3).e_tag("\"e\"").build()
    }

    fn keys(output: &ListObjectsV2Output) -> Vec<String> {
        let page = page(&ObjectUri::s3("b", ""), None, output).unwrap();
        page.entries
            .iter()
            .map(|entry| key_of(entry).to_owned())
            .collect()
    }

    #[test]
    fn prefixes_stand_among_the_objects() {
        let output = ListObjectsV2Output::builder()
            .contents(listed("a"))
            .contents(listed("c"))
            .common_prefixes(CommonPrefix::builder().prefix("b/").build())
            .build();
        assert_eq!(keys(&output), ["a", "b/", "c"]);
    }

    #[test]
    fn keys_are_decoded_once_and_only_if_encoded() {
        let text = "a%252B+b%2Bc";
        let plain = ListObjectsV2Output::builder().contents(listed(text));
        assert_eq!(keys(&plain.clone().build()), [text]);
        assert_eq!(
            keys(&plain.encoding_type(EncodingType::Url).build()),
            ["a%2B b+c"]
        );
    }

    #[test]
    fn a_server_that_only_says_that_it_encodes_is_not_believed() {
        let output = ListObjectsV2Output::builder()
            .encoding_type(EncodingType::Url)
            .contents(listed("a+b%20"))
            .contents(listed("ü"))
            .build();
        assert_eq!(keys(&output), ["a+b%20", "ü"]);
    }

    #[test]
    fn a_listing_never_ends_early_in_silence() {
        let output = ListObjectsV2Output::builder().is_truncated(true).build();
        let error = page(&ObjectUri::s3("b", "p"), None, &output).unwrap_err();
        assert!(
            error.is_retryable() && error.to_string().contains("s3://b/p"),
            "{error}"
        );
    }

    #[test]
    fn only_crcs_of_whole_objects_are_promised() {
        let with = |kind, etag: &str| {
            algorithm(
                &Object::builder()
                    .checksum_algorithm(Sdk::Crc32C)
                    .set_checksum_type(kind)
                    .e_tag(etag)
                    .build(),
            )
        };
        assert_eq!(
            with(Some(ChecksumType::FullObject), "e-2"),
            Some(ChecksumAlgorithm::Crc32c)
        );
        assert_eq!(with(Some(ChecksumType::Composite), "e-2"), None);
        assert_eq!(with(None, "e-2"), None);
        assert_eq!(with(None, "e"), Some(ChecksumAlgorithm::Crc32c));
        let sha = Object::builder()
            .checksum_algorithm(Sdk::Sha256)
            .e_tag("e")
            .build();
        assert_eq!(algorithm(&sha), None);
    }

    proptest! {
        #[test]
        fn every_key_comes_back(key in "\\PC{0,20}[\\x00-\\x1f+% ]{0,3}") {
            let encoded = utf8_percent_encode(&key, NON_ALPHANUMERIC).to_string().replace("%20", "+");
            prop_assert_eq!(decode(&ObjectUri::s3("b", ""), &encoded, true).unwrap(), key);
        }
    }
}
