//! GetObject and HeadObject: conditions, ranges, parts, checksums.

use std::ops::Range;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use md5::{Digest, Md5};

use super::Answer;
use crate::connection::Exchange;
use crate::date;
use crate::request::Request;
use crate::response::{Body, Response, S3Error};
use crate::store::{Bucket, Version};

/// Which bytes of which version are sent, and as what.
#[derive(Debug)]
struct Selection {
    status: u16,
    range: Range<u64>,
    part: Option<usize>,
}

pub(super) fn read(exchange: &mut Exchange<'_>, bucket: &Bucket) -> Answer {
    let request = exchange.request;
    let version = find(request, bucket)?;
    check_customer_key(request, &version)?;
    check_conditions(request, &version)?;
    let selection = select(exchange, &version)?;
    if !request.is_head() && !exchange.faults.ok_with_error {
        exchange.decide_body(selection.range.end - selection.range.start);
    } else if request.is_head() {
        decide_head(exchange);
    }
    Ok(respond(exchange, &version, selection))
}

/// Rules about a body's bytes have nothing to hit in an answer to HEAD; those about its headers have.
fn decide_head(exchange: &mut Exchange<'_>) {
    exchange.decide_body(0);
    let faults = &mut exchange.faults;
    (
        faults.reset_at,
        faults.truncate_at,
        faults.stall,
        faults.flip_at,
    ) = (None, None, None, None);
    (faults.chunked, faults.surplus) = (false, 0);
}

fn find(request: &Request<'_>, bucket: &Bucket) -> Result<Arc<Version>, S3Error> {
    let missing = || {
        S3Error::new(404, "NoSuchKey", "The specified key does not exist.")
            .element("Key", &*request.key)
    };
    let Some(id) = request.query("versionId") else {
        return bucket.newest(&request.key).ok_or_else(missing);
    };
    let version = bucket.version(&request.key, &id).ok_or_else(|| {
        S3Error::new(
            404,
            "NoSuchVersion",
            "The specified version does not exist.",
        )
        .element("VersionId", &*id)
    })?;
    if version.delete_marker {
        let message = "The specified method is not allowed against this resource.";
        return Err(
            S3Error::new(405, "MethodNotAllowed", message).header("x-amz-delete-marker", "true")
        );
    }
    Ok(version)
}

fn check_customer_key(request: &Request<'_>, version: &Version) -> Result<(), S3Error> {
    let sent = sent_key_md5(request)?;
    match (&version.options.customer_key_md5, sent) {
        (None, None) => Ok(()),
        (Some(stored), Some(sent)) if stored == sent => Ok(()),
        (Some(_), Some(_)) => Err(super::access_denied()),
        (Some(_), None) => {
            let message = "The object was stored using a form of Server Side Encryption. The correct parameters must be provided to retrieve the object.";
            Err(S3Error::new(400, "InvalidRequest", message))
        }
        (None, Some(_)) => {
            let message = "The encryption parameters are not applicable to this object.";
            Err(S3Error::new(400, "InvalidRequest", message))
        }
    }
}

/// The MD5 of the key that was sent, after S3's checks: all three headers or none, the one algorithm, 32 bytes, and the
/// MD5 is theirs.
fn sent_key_md5<'a>(request: &'a Request<'_>) -> Result<Option<&'a str>, S3Error> {
    let header =
        |name: &str| request.header(&format!("x-amz-server-side-encryption-customer-{name}"));
    let wrong = |message: &str| Err(S3Error::new(400, "InvalidArgument", message));
    match (header("algorithm"), header("key"), header("key-md5")) {
        (None, None, None) => Ok(None),
        (Some("AES256"), Some(key), Some(md5)) => {
            let key = BASE64.decode(key).unwrap_or_default();
            if key.len() != 32 {
                return wrong("The secret key was invalid for the specified algorithm.");
            }
            if BASE64.encode(Md5::digest(&key)) != md5 {
                return wrong(
                    "The calculated MD5 hash of the key did not match the hash that was provided.",
                );
            }
            Ok(Some(md5))
        }
        (Some("AES256"), ..) => wrong(
            "Requests specifying Server Side Encryption with Customer provided keys must provide an appropriate secret key.",
        ),
        _ => wrong(
            "Requests specifying Server Side Encryption with Customer provided keys must provide a valid encryption algorithm.",
        ),
    }
}

/// In the order of RFC 9110, 13.2.2: an ETag that matches or not makes the dates irrelevant.
fn check_conditions(request: &Request<'_>, version: &Version) -> Result<(), S3Error> {
    let date_of = |name: &str| request.header(name).and_then(date::parse_http);
    let failed = |condition: &str| {
        S3Error::new(
            412,
            "PreconditionFailed",
            "At least one of the pre-conditions you specified did not hold",
        )
        .element("Condition", condition)
    };
    match request.header("if-match") {
        Some(tags) if !matches_tag(tags, &version.etag) => return Err(failed("If-Match")),
        Some(_) => {}
        None if date_of("if-unmodified-since").is_some_and(|date| version.modified > date) => {
            return Err(failed("If-Unmodified-Since"));
        }
        None => {}
    }
    let unchanged = match request.header("if-none-match") {
        Some(tags) => matches_tag(tags, &version.etag),
        None => date_of("if-modified-since").is_some_and(|date| version.modified <= date),
    };
    if unchanged {
        let error = S3Error::new(304, "NotModified", "Not Modified");
        return Err(error
            .header("ETag", &version.etag)
            .header("Last-Modified", &version.modified_http));
    }
    Ok(())
}

/// Whether a list of tags, with or without their quotes, has this one.
fn matches_tag(tags: &str, etag: &str) -> bool {
    let bare = etag.trim_matches('"');
    tags.split(',')
        .map(str::trim)
        .any(|tag| tag == "*" || tag.trim_start_matches("W/").trim_matches('"') == bare)
}

fn select(exchange: &Exchange<'_>, version: &Version) -> Result<Selection, S3Error> {
    let request = exchange.request;
    let len = version.content.len();
    let range = request.header("range");
    if let Some(number) = request.query("partNumber") {
        return select_part(&number, range.is_some(), version);
    }
    let whole = Selection {
        status: 200,
        range: 0..len,
        part: None,
    };
    if exchange.faults.ignore_range {
        return Ok(whole);
    }
    match range.and_then(|range| parse_range(range, len)) {
        None => Ok(whole),
        Some(Some(range)) => Ok(Selection {
            status: 206,
            range,
            part: None,
        }),
        Some(None) => Err(S3Error::new(
            416,
            "InvalidRange",
            "The requested range is not satisfiable",
        )
        .element("RangeRequested", range.unwrap_or(""))
        .element("ActualObjectSize", len.to_string())
        .header("Content-Range", format!("bytes */{len}"))),
    }
}

fn select_part(number: &str, has_range: bool, version: &Version) -> Result<Selection, S3Error> {
    if has_range {
        return Err(S3Error::new(
            400,
            "InvalidRequest",
            "Cannot specify both Range header and partNumber query parameter",
        ));
    }
    let number: usize = number
        .parse()
        .ok()
        .filter(|number| (1..=10_000).contains(number))
        .ok_or_else(|| {
            S3Error::new(
                400,
                "InvalidArgument",
                "Part number must be an integer between 1 and 10000, inclusive",
            )
        })?;
    let range = version.part(number).ok_or_else(|| {
        S3Error::new(
            416,
            "InvalidPartNumber",
            "The requested partnumber is not satisfiable",
        )
        .element("PartNumberRequested", number.to_string())
        .element("ActualPartCount", version.parts.len().max(1).to_string())
    })?;
    // An empty range has no `Content-Range`.
    let status = if range.is_empty() { 200 } else { 206 };
    Ok(Selection {
        status,
        range,
        part: Some(number),
    })
}

/// `None`: ignore the header (syntax, several ranges). `Some(None)`: not satisfiable.
fn parse_range(header: &str, len: u64) -> Option<Option<Range<u64>>> {
    let (first, last) = header.strip_prefix("bytes=")?.trim().split_once('-')?;
    let number = |text: &str| text.trim().parse::<u64>().ok();
    if first.is_empty() {
        let suffix = number(last)?;
        return Some((suffix > 0 && len > 0).then(|| len.saturating_sub(suffix)..len));
    }
    let first = number(first)?;
    let last = if last.is_empty() {
        u64::MAX
    } else {
        number(last)?
    };
    if last < first {
        return None;
    }
    Some((first < len).then(|| first..last.saturating_add(1).min(len)))
}

fn respond(exchange: &Exchange<'_>, version: &Version, selection: Selection) -> Response {
    let request = exchange.request;
    let mut response = Response {
        headers: Vec::with_capacity(512),
        ..Response::new(selection.status)
    };
    push_identity(&mut response, exchange, version);
    let len = version.content.len();
    if selection.status == 206 {
        let shift = u64::from(exchange.faults.wrong_content_range);
        let Range { start, end } = selection.range;
        let _ = std::io::Write::write_fmt(
            &mut response.headers,
            format_args!(
                "Content-Range: bytes {}-{}/{len}\r\n",
                start + shift,
                end - 1 + shift
            ),
        );
    }
    if selection.part.is_some() && !version.parts.is_empty() {
        response.push("x-amz-mp-parts-count", &version.parts.len().to_string());
    }
    if request
        .header("x-amz-checksum-mode")
        .is_some_and(|mode| mode.eq_ignore_ascii_case("enabled"))
    {
        push_checksum(&mut response, exchange, version, &selection);
    }
    push_metadata(&mut response, request, version);
    response.body = if request.is_head() {
        Body::Announced(selection.range.end - selection.range.start)
    } else {
        Body::Object(version.content.clone(), selection.range)
    };
    response
}

fn push_identity(response: &mut Response, exchange: &Exchange<'_>, version: &Version) {
    response.push("Last-Modified", &version.modified_http);
    if exchange.faults.wrong_etag {
        response.push("ETag", "\"00000000000000000000000000000bad\"");
    } else {
        response.push("ETag", &version.etag);
    }
    response.push("x-amz-version-id", &version.id);
    response.push("Accept-Ranges", "bytes");
    response.push(
        "Content-Type",
        version
            .options
            .content_type
            .as_deref()
            .unwrap_or("binary/octet-stream"),
    );
}

fn push_metadata(response: &mut Response, request: &Request<'_>, version: &Version) {
    let options = &version.options;
    if let Some(encoding) = &options.content_encoding {
        response.push("Content-Encoding", encoding);
    }
    for (name, value) in &options.metadata {
        response.push(&format!("x-amz-meta-{name}"), value);
    }
    if let Some(class) = &options.storage_class {
        response.push("x-amz-storage-class", class);
    }
    match &options.customer_key_md5 {
        Some(md5) => {
            response.push("x-amz-server-side-encryption-customer-algorithm", "AES256");
            response.push("x-amz-server-side-encryption-customer-key-MD5", md5);
        }
        None => response.push("x-amz-server-side-encryption", "AES256"),
    }
    if request.header("x-amz-request-payer").is_some() {
        response.push("x-amz-request-charged", "requester");
    }
}

/// The whole object's checksum with the whole object, a part's with exactly that part, none with other ranges.
fn push_checksum(
    response: &mut Response,
    exchange: &Exchange<'_>,
    version: &Version,
    selection: &Selection,
) {
    let options = &version.options;
    let algorithm = options.algorithm;
    let range = &selection.range;
    let multipart = !version.parts.is_empty();
    let value = if selection.status == 200 || (selection.part.is_some() && !multipart) {
        version.checksum().map(str::to_owned)
    } else if multipart
        && !options.no_checksum
        && (selection.part.is_some() || version.is_part(range))
    {
        Some(algorithm.encode(algorithm.of_content(&version.content, range.clone())))
    } else {
        None
    };
    if let Some(value) = value {
        let wrong = exchange.faults.wrong_checksum;
        response.push(
            algorithm.header(),
            if wrong { wrong_value(&value) } else { value }.as_str(),
        );
        response.push("x-amz-checksum-type", options.kind.name());
    }
}

/// Another value of the same form.
fn wrong_value(value: &str) -> String {
    let first = if value.starts_with('A') { "B" } else { "A" };
    format!("{first}{}", &value[1..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_in_all_forms() {
        let cases: &[(&str, Option<Option<Range<u64>>>)] = &[
            ("bytes=0-0", Some(Some(0..1))),
            ("bytes=10-19", Some(Some(10..20))),
            ("bytes=90-200", Some(Some(90..100))),
            ("bytes=90-", Some(Some(90..100))),
            ("bytes=-10", Some(Some(90..100))),
            ("bytes=-1000", Some(Some(0..100))),
            ("bytes=-0", Some(None)),
            ("bytes=100-", Some(None)),
            ("bytes=100-200", Some(None)),
            ("bytes=20-10", None),
            ("bytes=0-1,5-6", None),
            ("bytes=a-b", None),
            ("items=0-1", None),
            ("bytes=0-18446744073709551615", Some(Some(0..100))),
        ];
        for (header, expected) in cases {
            assert_eq!(parse_range(header, 100), *expected, "{header}");
        }
        assert_eq!(parse_range("bytes=0-", 0), Some(None));
        assert_eq!(parse_range("bytes=-5", 0), Some(None));
    }

    #[test]
    fn tags_match_with_and_without_quotes() {
        assert!(matches_tag("\"abc\"", "\"abc\""));
        assert!(matches_tag("abc", "\"abc\""));
        assert!(matches_tag("\"x\", W/\"abc\"", "\"abc\""));
        assert!(matches_tag("*", "\"abc\""));
        assert!(!matches_tag("\"ab\"", "\"abc\""));
    }
}
