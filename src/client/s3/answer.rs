//! Judging the head of a GET's answer before a byte of it is stored. Pure functions.
//!
//! A body goes into a part only when its head proves that it is the range that was asked for, of the version that
//! was asked for:
//!
//! * the status is 206 with a `Content-Range` that starts where the part goes on, or 200, which is the whole object:
//!   a server may ignore `Range`, and then the bytes before the part are skipped;
//! * the ETag equals the pinned one, whatever the server thought of `If-Match`;
//! * the lengths in `Content-Range`, `Content-Length` and the listing agree.
//!
//! S3 can fail after it has sent "200 OK": the body is then an `<Error>` document. It is told from an object by what
//! an error document cannot have: an ETag, or the length that is known from the listing. A document that has neither
//! against it (unknown length, no ETag ever seen, type not XML) is taken for the object; its missing checksum is
//! counted as unverified, or is an error under [`ChecksumPolicy::Require`](crate::checksum::ChecksumPolicy).

use std::sync::Arc;

use crate::checksum::{Checksum, ChecksumAlgorithm};
use crate::client::GetMeta;
use crate::error::{Answer, Error};
use crate::object::{ByteRange, ObjectId};

/// What of a head matters, whichever transport read it.
#[derive(Debug, Clone, Default)]
pub(super) struct Head {
    pub(super) status: u16,
    pub(super) content_length: Option<u64>,
    pub(super) content_range: Option<String>,
    pub(super) etag: Option<Arc<str>>,
    pub(super) checksum: Option<Checksum>,
    pub(super) is_xml: bool,
    pub(super) request_id: Option<String>,
}

impl Head {
    /// Reads headers by name.
    pub(super) fn of<'a>(status: u16, get: impl Fn(&str) -> Option<&'a str>) -> Self {
        Self {
            status,
            content_length: get("content-length").and_then(|text| text.trim().parse().ok()),
            content_range: get("content-range").map(str::to_owned),
            etag: get("etag").map(Into::into),
            checksum: full_object_checksum(&get),
            is_xml: get("content-type").is_some_and(is_xml),
            request_id: get("x-amz-request-id").map(str::to_owned),
        }
    }

    /// For errors.
    fn answer(&self) -> Answer {
        Answer {
            status: self.status,
            request_id: self.request_id.clone(),
            ..Answer::default()
        }
    }
}

fn is_xml(content_type: &str) -> bool {
    let kind = content_type.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("application/xml") || kind.eq_ignore_ascii_case("text/xml")
}

/// The CRC of the whole object, if the server tells one. `COMPOSITE` ones are CRCs of CRCs and say nothing of bytes.
pub(super) fn full_object_checksum<'a>(get: &impl Fn(&str) -> Option<&'a str>) -> Option<Checksum> {
    if get("x-amz-checksum-type").is_some_and(|kind| !kind.eq_ignore_ascii_case("FULL_OBJECT")) {
        return None;
    }
    ChecksumAlgorithm::ALL
        .into_iter()
        .find_map(|algorithm| Checksum::from_base64(algorithm, get(algorithm.header())?))
}

/// What to do with the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    /// Bytes that lie before the part: the server ignored the range.
    pub(super) skip_bytes: u64,
    /// Bytes for the part; `None`: as many as come, because the object's length is not known.
    pub(super) take_bytes: Option<u64>,
    /// Whether the body goes on behind those: the connection is not worth keeping then.
    pub(super) has_more: bool,
    /// The whole object's length, if known already.
    pub(super) size_bytes: Option<u64>,
    pub(super) etag: Option<Arc<str>>,
    /// The whole object's CRC.
    pub(super) checksum: Option<Checksum>,
}

impl Plan {
    /// The answer's facts, once the body was read and `body_bytes` of it had come.
    pub(super) fn meta(&self, body_bytes: u64) -> GetMeta {
        GetMeta {
            etag: self.etag.clone(),
            size_bytes: self.size_bytes.unwrap_or(body_bytes),
            checksum: self.checksum,
        }
    }
}

/// A head's judgement.
#[derive(Debug)]
pub(super) enum Verdict {
    /// The body is what was asked for.
    Store(Plan),
    /// The body is an error document under a good status: read it and see.
    ErrorDocument,
    /// The answer cannot be used.
    Fail(Error),
}

/// Judges a 2xx head. `wanted` is what the part still needs; it is not empty.
pub(super) fn judge(id: &ObjectId, wanted: ByteRange, head: &Head) -> Verdict {
    if looks_like_an_error(id, head) {
        return Verdict::ErrorDocument;
    }
    if let Err(error) = same_version(id, head, wanted.start) {
        return Verdict::Fail(error);
    }
    let plan = match head.status {
        206 => partial(id, wanted, head),
        200 => whole(id, wanted, head),
        status => Err(protocol(
            id,
            wanted.start,
            format!("HTTP {status} to a GET"),
            head.answer(),
        )),
    };
    plan.map_or_else(Verdict::Fail, Verdict::Store)
}

fn looks_like_an_error(id: &ObjectId, head: &Head) -> bool {
    let wrong_length = id
        .size_bytes
        .zip(head.content_length)
        .is_some_and(|(size, length)| size != length);
    head.status == 200
        && head.etag.is_none()
        && (head.is_xml || (id.etag.is_some() && wrong_length))
}

/// Compares without the quotes, which some servers forget in one place or the other.
pub(super) fn same_etag(a: &str, b: &str) -> bool {
    let bare = |text: &str| -> String { text.trim_start_matches("W/").trim_matches('"').into() };
    a == b || bare(a) == bare(b)
}

fn same_version(id: &ObjectId, head: &Head, offset: u64) -> Result<(), Error> {
    let (Some(expected), Some(found)) = (id.etag.as_deref(), head.etag.as_deref()) else {
        return match id.etag {
            Some(_) => Err(protocol(
                id,
                offset,
                "no ETag: nothing proves the version".into(),
                head.answer(),
            )),
            None => Ok(()),
        };
    };
    if same_etag(expected, found) {
        return Ok(());
    }
    Err(changed(id, offset, expected, found, head.answer()))
}

pub(super) fn changed(
    id: &ObjectId,
    offset: u64,
    expected: &str,
    found: &str,
    answer: Answer,
) -> Error {
    Error::Changed {
        uri: id.uri.to_string(),
        offset,
        expected: expected.into(),
        found: found.into(),
        answer: Box::new(answer),
    }
}

fn protocol(id: &ObjectId, offset: u64, reason: String, answer: Answer) -> Error {
    Error::Protocol {
        uri: id.uri.to_string(),
        offset,
        reason,
        answer: Box::new(answer),
    }
}

/// `bytes 0-9/100`; the total may be `*`.
pub(super) fn parse_content_range(text: &str) -> Option<(ByteRange, Option<u64>)> {
    let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse::<u64>().ok()).flatten()
    };
    let (first, last) = (number(first)?, number(last)?);
    let total = match total {
        "*" => None,
        total => Some(number(total)?),
    };
    let end = last.checked_add(1)?;
    let sound = first <= last && total.is_none_or(|total| end <= total);
    sound.then_some((ByteRange::new(first, end), total))
}

fn partial(id: &ObjectId, wanted: ByteRange, head: &Head) -> Result<Plan, Error> {
    let text = head.content_range.as_deref().unwrap_or_default();
    let wrong = |why: &str| {
        protocol(
            id,
            wanted.start,
            format!("Content-Range {text:?} for bytes {wanted}: {why}"),
            head.answer(),
        )
    };
    let (got, total) = parse_content_range(text).ok_or_else(|| wrong("unreadable"))?;
    if got.start != wanted.start {
        return Err(wrong("it starts elsewhere"));
    }
    if got.end > wanted.end {
        return Err(wrong("it is longer"));
    }
    if got.end < wanted.end && (id.size_bytes.is_some() || total != Some(got.end)) {
        return Err(wrong("it is shorter, and the object goes on"));
    }
    if head
        .content_length
        .is_some_and(|length| length != got.len())
    {
        return Err(wrong("Content-Length differs"));
    }
    same_size(id, total, wanted.start, head)?;
    let size_bytes = total
        .or(id.size_bytes)
        .ok_or_else(|| wrong("the object's size is not told"))?;
    // A range along the borders of an upload's part comes with that part's checksum.
    let is_whole = got.start == 0 && got.end == size_bytes;
    Ok(Plan {
        skip_bytes: 0,
        take_bytes: Some(got.len()),
        has_more: false,
        size_bytes: Some(size_bytes),
        etag: head.etag.clone(),
        checksum: head.checksum.filter(|_| is_whole),
    })
}

fn whole(id: &ObjectId, wanted: ByteRange, head: &Head) -> Result<Plan, Error> {
    let total = head.content_length;
    same_size(id, total, wanted.start, head)?;
    let total = total.or(id.size_bytes);
    if total.is_some_and(|total| wanted.start > total) {
        return Err(beyond(id, wanted.start, head));
    }
    let end = total.map(|total| total.min(wanted.end));
    Ok(Plan {
        skip_bytes: wanted.start,
        take_bytes: end.map(|end| end - wanted.start),
        has_more: total.is_none_or(|total| total > wanted.end),
        size_bytes: total,
        etag: head.etag.clone(),
        checksum: head.checksum,
    })
}

fn beyond(id: &ObjectId, offset: u64, head: &Head) -> Error {
    Error::RangeNotSatisfiable {
        uri: id.uri.to_string(),
        offset,
        answer: head.answer(),
    }
}

/// Under one ETag a length cannot change, so another length is a lie; without one it is another version.
fn same_size(id: &ObjectId, found: Option<u64>, offset: u64, head: &Head) -> Result<(), Error> {
    match (id.size_bytes, found) {
        (Some(expected), Some(found)) if expected != found => Err(match &id.etag {
            Some(_) => protocol(
                id,
                offset,
                format!("{found} bytes in all, but the object has {expected}"),
                head.answer(),
            ),
            None => changed(
                id,
                offset,
                &format!("{expected} bytes"),
                &format!("{found} bytes"),
                head.answer(),
            ),
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::ObjectUri;
    use proptest::prelude::*;

    fn id(etag: Option<&str>, size_bytes: Option<u64>) -> ObjectId {
        ObjectId {
            uri: ObjectUri::s3("b", "k"),
            etag: etag.map(Into::into),
            version_id: None,
            size_bytes,
        }
    }

    fn head(status: u16, headers: &[(&str, &str)]) -> Head {
        Head::of(status, |name| {
            headers.iter().find(|(n, _)| *n == name).map(|(_, v)| *v)
        })
    }

    fn plan(verdict: Verdict) -> Plan {
        match verdict {
            Verdict::Store(plan) => plan,
            other => panic!("{other:?}"),
        }
    }

    fn error(verdict: Verdict) -> Error {
        match verdict {
            Verdict::Fail(error) => error,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_sound_range_is_stored() {
        let head = head(
            206,
            &[
                ("content-range", "bytes 10-19/100"),
                ("content-length", "10"),
                ("etag", "\"e\""),
            ],
        );
        let plan = plan(judge(
            &id(Some("\"e\""), Some(100)),
            ByteRange::new(10, 20),
            &head,
        ));
        assert_eq!(
            (plan.skip_bytes, plan.take_bytes, plan.has_more),
            (0, Some(10), false)
        );
        assert_eq!(plan.meta(10).size_bytes, 100);
    }

    #[test]
    fn an_object_that_ends_inside_the_range_tells_its_size() {
        let head = head(206, &[("content-range", "bytes 0-6/7"), ("etag", "\"e\"")]);
        let plan = plan(judge(&id(None, None), ByteRange::new(0, 100), &head));
        assert_eq!((plan.take_bytes, plan.size_bytes), (Some(7), Some(7)));
    }

    #[test]
    fn an_ignored_range_is_skipped_into() {
        let head = head(200, &[("content-length", "100"), ("etag", "\"e\"")]);
        let plan = plan(judge(&id(None, Some(100)), ByteRange::new(10, 20), &head));
        assert_eq!(
            (plan.skip_bytes, plan.take_bytes, plan.has_more),
            (10, Some(10), true)
        );
    }

    #[test]
    fn lying_heads_store_nothing() {
        let e = ("etag", "\"e\"");
        let cases: &[&[(&str, &str)]] = &[
            &[e],
            &[e, ("content-range", "bytes 9-19/100")],
            &[e, ("content-range", "bytes 10-20/100")],
            &[e, ("content-range", "bytes 10-18/100")],
            &[e, ("content-range", "bytes 10-19/99")],
            &[e, ("content-range", "bytes 10-19/15")],
            &[
                e,
                ("content-range", "bytes 10-19/100"),
                ("content-length", "9"),
            ],
            &[e, ("content-range", "bytes +10-19/100")],
            &[("content-range", "bytes 10-19/100")],
        ];
        for headers in cases {
            let verdict = judge(
                &id(Some("\"e\""), Some(100)),
                ByteRange::new(10, 20),
                &head(206, headers),
            );
            let error = error(verdict);
            assert!(
                matches!(error, Error::Protocol { offset: 10, .. }),
                "{headers:?}: {error}"
            );
        }
    }

    #[test]
    fn another_version_is_a_change() {
        let told = [
            ("content-range", "bytes 4-9/10"),
            ("etag", "\"f\""),
            ("x-amz-request-id", "R1"),
        ];
        let verdict = judge(
            &id(Some("\"e\""), Some(10)),
            ByteRange::new(4, 10),
            &head(206, &told),
        );
        let Error::Changed {
            offset,
            found,
            answer,
            ..
        } = error(verdict)
        else {
            panic!("not a change");
        };
        assert_eq!((offset, found.as_str(), answer.status), (4, "\"f\"", 206));
        assert_eq!(answer.request_id.as_deref(), Some("R1"));
        let longer = head(200, &[("content-length", "11"), ("etag", "\"f\"")]);
        let verdict = judge(&id(None, Some(10)), ByteRange::new(0, 10), &longer);
        assert!(matches!(error(verdict), Error::Changed { found, .. } if found == "11 bytes"));
    }

    #[test]
    fn an_error_document_under_a_good_status_is_told_from_an_object() {
        let xml = head(
            200,
            &[
                ("content-type", "application/xml"),
                ("content-length", "200"),
            ],
        );
        for id in [id(None, None), id(Some("\"e\""), Some(10))] {
            let verdict = judge(&id, ByteRange::new(0, 10), &xml);
            assert!(matches!(verdict, Verdict::ErrorDocument), "{verdict:?}");
        }
        let object = head(
            200,
            &[
                ("content-type", "application/xml"),
                ("content-length", "10"),
                ("etag", "\"e\""),
            ],
        );
        assert!(matches!(
            judge(&id(Some("\"e\""), Some(10)), ByteRange::new(0, 10), &object),
            Verdict::Store(_)
        ));
    }

    #[test]
    fn composite_checksums_say_nothing_of_bytes() {
        let crc = ("x-amz-checksum-crc32", "yZRlqg==");
        assert!(head(200, &[crc]).checksum.is_some());
        assert!(
            head(200, &[crc, ("x-amz-checksum-type", "FULL_OBJECT")])
                .checksum
                .is_some()
        );
        assert!(
            head(200, &[crc, ("x-amz-checksum-type", "COMPOSITE")])
                .checksum
                .is_none()
        );
        assert!(
            head(200, &[("x-amz-checksum-crc32", "yZRlqg==-2")])
                .checksum
                .is_none()
        );
    }

    #[test]
    fn etags_compare_without_their_quotes() {
        assert!(same_etag("\"a\"", "a") && same_etag("W/\"a\"", "\"a\"") && !same_etag("a", "b"));
    }

    proptest! {
        /// Whatever the head says, no byte is stored outside the part.
        #[test]
        fn a_plan_never_leaves_the_part(
            start in 0..50u64, len in 1..50u64, size in proptest::option::of(0..100u64),
            status in proptest::sample::select(vec![200u16, 206, 204]),
            range in proptest::option::of((0..100u64, 0..100u64, proptest::option::of(0..120u64))),
            length in proptest::option::of(0..120u64),
        ) {
            let head = Head {
                status,
                content_length: length,
                content_range: range.map(|(a, b, total)| {
                    let total = total.map_or("*".to_owned(), |total| total.to_string());
                    format!("bytes {a}-{b}/{total}")
                }),
                etag: Some("\"e\"".into()),
                ..Head::default()
            };
            let wanted = ByteRange::new(start, start + len);
            if let Verdict::Store(plan) = judge(&id(Some("\"e\""), size), wanted, &head) {
                if let Some(take) = plan.take_bytes {
                    prop_assert!(take <= len);
                    if let Some(size) = plan.size_bytes {
                        prop_assert!(start + take <= size);
                        prop_assert!(take == len || start + take == size, "short without an end");
                    }
                }
                prop_assert!(status == 200 && plan.skip_bytes == start || plan.skip_bytes == 0);
            }
        }

        #[test]
        fn content_ranges_read_back(start in 0..u64::MAX / 2, len in 1..1u64 << 40, more in 0..1u64 << 40) {
            let total = start + len + more;
            let text = format!("bytes {}-{}/{}", start, start + len - 1, total);
            prop_assert_eq!(parse_content_range(&text), Some((ByteRange::new(start, start + len), Some(total))));
        }
    }
}
