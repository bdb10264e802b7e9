//! GETs through the SDK's orchestrator over its own transport (hyper): slower than ours, and it knows proxies.
//!
//! Frames are copied into the part as they come: one copy, no collecting.

use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::operation::get_object::builders::GetObjectFluentBuilder;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::RequestPayer;
use bytes::Bytes;
use tokio::time::{Duration, Instant, timeout_at};

use super::answer::{self, Head, Plan, Verdict};
use super::bucket::Bucket;
use super::config::S3Config;
use super::refusal::{self, Failure, Subject};
use super::{Want, protocol_of};
use crate::buffer::PartBuf;
use crate::client::GetMeta;
use crate::error::{Error, Result};
use crate::metrics::Metrics;

/// An error document is a few hundred bytes; one that is larger is none.
pub(super) const MAX_ERROR_BYTES: usize = 64 << 10;

/// In each period at least this much must come: 13 KB/s with the usual five seconds.
const PROGRESS_BYTES: u64 = 64 << 10;

/// The request, as the SDK wants it.
pub(super) fn request(
    bucket: &Bucket,
    config: &S3Config,
    want: &Want<'_>,
) -> GetObjectFluentBuilder {
    let id = want.id;
    let mut request = bucket
        .client()
        .get_object()
        .bucket(id.uri.bucket())
        .key(id.uri.key())
        .set_range(want.range_header())
        .set_if_match(id.etag.as_deref().map(str::to_owned))
        .set_version_id(id.version_id.as_deref().map(str::to_owned))
        .set_request_payer(config.request_payer.then_some(RequestPayer::Requester));
    if let Some(key) = &config.sse_c {
        request = request
            .sse_customer_algorithm("AES256")
            .sse_customer_key(key.key_base64())
            .sse_customer_key_md5(key.md5_base64());
    }
    request
}

/// What the SDK tells of the head. It hides the status, but only a 206 has a `Content-Range`.
fn head_of(output: &GetObjectOutput) -> Head {
    use aws_sdk_s3::operation::RequestId as _;
    let length = output.content_length().map(|length| length.to_string());
    Head::of(
        if output.content_range().is_some() {
            206
        } else {
            200
        },
        |name| match name {
            "content-length" => length.as_deref(),
            "content-range" => output.content_range(),
            "content-type" => output.content_type(),
            "etag" => output.e_tag(),
            "x-amz-checksum-type" => output.checksum_type().map(|kind| kind.as_str()),
            "x-amz-checksum-crc32" => output.checksum_crc32(),
            "x-amz-checksum-crc32c" => output.checksum_crc32_c(),
            "x-amz-checksum-crc64nvme" => output.checksum_crc64_nvme(),
            "x-amz-request-id" => output.request_id(),
            _ => None,
        },
    )
}

/// One attempt.
pub(super) async fn get(
    bucket: &Bucket,
    config: &S3Config,
    endpoint: &str,
    metrics: &Metrics,
    want: &Want<'_>,
    into: &mut PartBuf,
) -> Result<GetMeta, Failure> {
    let sent = Instant::now();
    let output = request(bucket, config, want)
        .send()
        .await
        .map_err(|error| refusal::of_sdk(want.subject(), config, endpoint, error))?;
    metrics.first_byte.record(sent.elapsed());
    let meta = take_in(output, config, metrics, want, into).await?;
    metrics.request_time.record(sent.elapsed());
    Ok(meta)
}

/// Judges the head and receives the body.
pub(super) async fn take_in(
    output: GetObjectOutput,
    config: &S3Config,
    metrics: &Metrics,
    want: &Want<'_>,
    into: &mut PartBuf,
) -> Result<GetMeta, Failure> {
    let head = head_of(&output);
    let plan = match answer::judge(want.id, want.missing, &head) {
        Verdict::Store(plan) => plan,
        Verdict::Fail(error) => return Err(error.into()),
        Verdict::ErrorDocument => return Err(error_document(config, want, output).await),
    };
    want.expect(&plan, config.checksums, into)?;
    let mut body = Body {
        frames: output.body,
        watch: Watch::new(Instant::now(), config.progress_timeout),
    };
    Ok(receive(&mut body, metrics, want, &plan, into).await?)
}

async fn error_document(config: &S3Config, want: &Want<'_>, output: GetObjectOutput) -> Failure {
    use aws_sdk_s3::operation::RequestId as _;
    let request_id = output.request_id().map(str::to_owned);
    let mut body = Body {
        frames: output.body,
        watch: Watch::new(Instant::now(), config.progress_timeout),
    };
    let mut document = Vec::new();
    loop {
        match body.next(want.subject()).await {
            Ok(Some(frame)) if document.len() + frame.len() <= MAX_ERROR_BYTES => {
                document.extend_from_slice(&frame);
            }
            Ok(None) => break,
            Ok(Some(_)) => return not_the_object(want).into(),
            Err(error) => return error.into(),
        }
    }
    judge_document(want, request_id.as_deref(), &document)
}

/// The body of a 200 that may be an error document, complete.
pub(super) fn judge_document(
    want: &Want<'_>,
    request_id: Option<&str>,
    document: &[u8],
) -> Failure {
    if !refusal::is_error_document(document) {
        return not_the_object(want).into();
    }
    let get = |name: &str| request_id.filter(|_| name == "x-amz-request-id");
    refusal::refused(want.subject(), 200, get, document)
}

fn not_the_object(want: &Want<'_>) -> Error {
    protocol_of(
        want.subject(),
        "HTTP 200 without an ETag, and neither the object nor an error document",
    )
}

/// The frames of a body, with a limit on how long nothing may come.
struct Body {
    frames: ByteStream,
    watch: Watch,
}

impl Body {
    async fn next(&mut self, subject: Subject<'_>) -> Result<Option<Bytes>> {
        loop {
            match timeout_at(self.watch.deadline, self.frames.next()).await {
                Ok(None) => return Ok(None),
                Ok(Some(Ok(frame))) => {
                    self.watch.received += frame.len() as u64;
                    return Ok(Some(frame));
                }
                Ok(Some(Err(error))) => return Err(refusal::broken_body(subject, &error)),
                Err(_) if self.watch.goes_on(Instant::now()) => {}
                Err(_) => return Err(refusal::no_progress(subject, self.watch.period)),
            }
        }
    }
}

/// Judges progress period by period.
#[derive(Debug)]
struct Watch {
    period: Duration,
    deadline: Instant,
    received: u64,
    needed: u64,
}

impl Watch {
    fn new(now: Instant, period: Duration) -> Self {
        Self {
            period,
            deadline: now + period,
            received: 0,
            needed: PROGRESS_BYTES,
        }
    }

    /// At the deadline: whether enough came for another period.
    fn goes_on(&mut self, now: Instant) -> bool {
        let enough = self.received >= self.needed;
        self.deadline = now + self.period;
        self.needed = self.received + PROGRESS_BYTES;
        enough
    }
}

async fn receive(
    body: &mut Body,
    metrics: &Metrics,
    want: &Want<'_>,
    plan: &Plan,
    into: &mut PartBuf,
) -> Result<GetMeta> {
    let filled_before = into.filled().len() as u64;
    let mut seen = 0;
    let stored = |into: &PartBuf| into.filled().len() as u64 - filled_before;
    loop {
        if plan.has_more && plan.take_bytes.is_some_and(|take| stored(into) >= take) {
            break;
        }
        let subject = Subject {
            offset: Some(want.missing.start + stored(into)),
            ..want.subject()
        };
        let Some(frame) = body.next(subject).await? else {
            break;
        };
        metrics.bytes_received.add(frame.len() as u64);
        let kept = store(&frame, seen, plan, into, stored(into));
        metrics.bytes_wasted.add(frame.len() as u64 - kept);
        seen += frame.len() as u64;
    }
    check_end(want, plan, seen, stored(into))?;
    Ok(plan.meta(seen))
}

/// Puts what lies in the part into it, and says how much that was.
fn store(frame: &[u8], seen: u64, plan: &Plan, into: &mut PartBuf, stored: u64) -> u64 {
    let before = plan.skip_bytes.saturating_sub(seen).min(frame.len() as u64);
    let wanted = plan
        .take_bytes
        .map_or(u64::MAX, |take| take.saturating_sub(stored));
    let rest = &frame[before as usize..];
    let len = wanted.min(rest.len() as u64) as usize;
    into.put(&rest[..len]) as u64
}

/// At the body's end, whether it was as long as its head said.
fn check_end(want: &Want<'_>, plan: &Plan, seen: u64, stored: u64) -> Result<()> {
    let expected = plan.take_bytes.map(|take| plan.skip_bytes + take);
    let subject = Subject {
        offset: Some(want.missing.start + stored),
        ..want.subject()
    };
    match expected {
        Some(expected) if seen < expected => {
            let text = format!("the body ended after {seen} of {expected} bytes");
            let eof = std::io::Error::new(std::io::ErrorKind::UnexpectedEof, text);
            Err(refusal::broken_body(subject, &eof))
        }
        Some(expected) if seen > expected && !plan.has_more => Err(protocol_of(
            subject,
            "the body is longer than its head says",
        )),
        None if seen < plan.skip_bytes => {
            Err(protocol_of(subject, "the object ends before the range"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_trickle_is_a_stall() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut watch = Watch::new(start, second);
        watch.received = PROGRESS_BYTES;
        assert!(watch.goes_on(start + second));
        watch.received += PROGRESS_BYTES - 1;
        assert!(!watch.goes_on(start + second * 2));
    }

    proptest! {
        /// However the body is cut into frames, exactly the part's bytes are kept.
        #[test]
        fn frames_fall_into_place(
            body in proptest::collection::vec(any::<u8>(), 1..300),
            start: proptest::sample::Index, len in 1..100usize,
            cuts in proptest::collection::vec(1..40usize, 1..50),
        ) {
            let start = start.index(body.len());
            let end = (start + len).min(body.len());
            let plan = Plan {
                skip_bytes: start as u64,
                take_bytes: Some((end - start) as u64),
                has_more: end < body.len(),
                size_bytes: Some(body.len() as u64),
                etag: None,
                checksum: None,
            };
            let mut into = PartBuf::heap(end - start);
            let (mut seen, mut cuts) = (0, cuts.into_iter().cycle());
            while seen < body.len() {
                let next = (seen + cuts.next().unwrap()).min(body.len());
                let stored = into.filled().len() as u64;
                store(&body[seen..next], seen as u64, &plan, &mut into, stored);
                seen = next;
            }
            prop_assert_eq!(into.filled(), &body[start..end]);
        }
    }
}
