//! Small requests, signed by hand and sent on our own connections: no orchestrator.
//!
//! The SDK spends about 100 us of CPU on a request whatever its size. That is 2 % of receiving 8 MiB and ten times
//! the cost of receiving 4 KiB. Its first request costs milliseconds more, and its transport keeps connections of its
//! own. What is here does the same for the plain case, one key, one region, one host: GETs below 1 MiB, HEADs and
//! listings. So the first byte of a dataset waits for a LIST and a GET on one connection, and for nothing else. The
//! answers of HEAD and LIST are read by the SDK's own parsers ([`super::decode`]).

use std::time::SystemTime;

use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

use super::Want;
use super::checksum_mode::CHECKSUM_MODE;
use super::config::S3Config;
use super::credentials::CredentialCache;
use super::intake::Intake;
use super::refusal::Failure;
use super::sign::{Moment, UNSIGNED_PAYLOAD, push_path, push_query};
use super::target::Target;
use crate::buffer::PartBuf;
use crate::checksum::ChecksumPolicy;
use crate::client::wire::{self, Method, Wire, WireRequest, request_head};
use crate::client::{Depth, GetMeta};
use crate::error::{Error, Result};
use crate::object::ObjectUri;

/// Sent, not signed.
const USER_AGENT: &str = concat!("standpipe/", env!("CARGO_PKG_VERSION"));

/// The customer's key in the form of its headers, encoded once.
#[derive(Clone)]
pub(super) struct SseHeaders {
    key: String,
    md5: String,
}

impl std::fmt::Debug for SseHeaders {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SseHeaders(..)")
    }
}

/// A page has a thousand keys of up to 1 KiB, each byte of which may be escaped as three, and three times as much around
/// them. Larger is none.
const MAX_PAGE_BYTES: usize = 16 << 20;

/// Sends plain requests.
#[derive(Debug)]
pub(super) struct Hand {
    wire: Wire,
    checksums: ChecksumPolicy,
    request_payer: bool,
    sse_c: Option<SseHeaders>,
}

impl Hand {
    pub(super) fn new(wire: Wire, config: &S3Config) -> Self {
        Self {
            wire,
            checksums: config.checksums,
            request_payer: config.request_payer,
            sse_c: config.sse_c.as_ref().map(|key| SseHeaders {
                key: key.key_base64(),
                md5: key.md5_base64().to_owned(),
            }),
        }
    }

    /// One attempt; `None` when the answer's length is unknown, which only the stock transport can take in.
    pub(super) async fn get(
        &self,
        target: &Target,
        credentials: Option<&CredentialCache>,
        want: &Want<'_>,
        into: &mut PartBuf,
    ) -> Result<Option<GetMeta>, Failure> {
        let ask = Ask::part(target, want);
        let head = self.signed(target, credentials, &ask).await?;
        let uri = want.id.uri.to_string();
        let request = WireRequest {
            endpoint: &target.endpoint,
            method: Method::Get,
            head: &head,
            uri: &uri,
            offset: want.missing.start,
        };
        let mut intake = Intake::default();
        let sent = self
            .wire
            .send(request, into, &mut |head, part| {
                intake.on_head(want, self.checksums, head, part)
            })
            .await;
        match sent {
            Ok(reply) => intake.conclude(want, &reply).map(Some),
            Err(_) if intake.is_unmeasured => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The object's facts, in the SDK's form.
    pub(super) async fn head(
        &self,
        target: &Target,
        credentials: Option<&CredentialCache>,
        uri: &ObjectUri,
    ) -> Result<HttpResponse> {
        let ask = Ask::object(Method::Head, target, uri.key());
        self.collect(target, credentials, uri, ask).await
    }

    /// A page of a listing, in the SDK's form.
    pub(super) async fn list(
        &self,
        target: &Target,
        credentials: Option<&CredentialCache>,
        question: &Question<'_>,
    ) -> Result<HttpResponse> {
        let ask = Ask::listing(target, question);
        self.collect(target, credentials, question.prefix, ask)
            .await
    }

    async fn collect(
        &self,
        target: &Target,
        credentials: Option<&CredentialCache>,
        uri: &ObjectUri,
        ask: Ask<'_>,
    ) -> Result<HttpResponse> {
        let head = self.signed(target, credentials, &ask).await?;
        let uri = uri.to_string();
        let request = WireRequest {
            endpoint: &target.endpoint,
            method: ask.method,
            head: &head,
            uri: &uri,
            offset: 0,
        };
        wire::collect(&self.wire, request, MAX_PAGE_BYTES).await
    }

    /// The request's bytes.
    async fn signed(
        &self,
        target: &Target,
        credentials: Option<&CredentialCache>,
        ask: &Ask<'_>,
    ) -> Result<Vec<u8>> {
        let Some(credentials) = credentials else {
            return self.write(target, ask, None);
        };
        let time = SystemTime::now();
        let credentials = credentials
            .get(time)
            .await
            .map_err(|error| Error::Credentials {
                reason: super::refusal::with_causes(&*error),
            })?;
        let now = Moment::of(time);
        let key = target.signing_key(&credentials, now);
        self.write(target, ask, Some((&key, now, credentials.session_token())))
    }

    fn write(
        &self,
        target: &Target,
        ask: &Ask<'_>,
        signer: Option<(&super::sign::SigningKey, Moment, Option<&str>)>,
    ) -> Result<Vec<u8>> {
        let moment = signer.as_ref().map(|(_, now, _)| *now);
        let mut headers: Vec<(&str, &str)> = Vec::with_capacity(16);
        headers.push(("host", &target.host));
        headers.extend(ask.if_match.map(|etag| ("if-match", etag)));
        headers.extend(ask.range.as_deref().map(|range| ("range", range)));
        if ask.is_object && self.checksums != ChecksumPolicy::Off {
            headers.push((CHECKSUM_MODE, "ENABLED"));
        }
        if let Some(moment) = &moment {
            headers.push(("x-amz-content-sha256", UNSIGNED_PAYLOAD));
            headers.push(("x-amz-date", moment.as_str()));
        }
        if self.request_payer {
            headers.push(("x-amz-request-payer", "requester"));
        }
        if let Some(token) = signer.as_ref().and_then(|(_, _, token)| *token) {
            headers.push(("x-amz-security-token", token));
        }
        if let Some(sse_c) = self.sse_c.as_ref().filter(|_| ask.is_object) {
            headers.push(("x-amz-server-side-encryption-customer-algorithm", "AES256"));
            headers.push(("x-amz-server-side-encryption-customer-key", &sse_c.key));
            headers.push(("x-amz-server-side-encryption-customer-key-md5", &sse_c.md5));
        }
        refuse_controls(&headers)?;
        let (path, query) = ask.path_and_query.split_at(ask.path_len);
        let query = query.strip_prefix('?').unwrap_or_default();
        let authorization =
            signer.map(|(key, now, _)| key.authorize(now, ask.method, path, query, &headers));
        headers.extend(
            authorization
                .as_deref()
                .map(|value| ("authorization", value)),
        );
        headers.push(("accept-encoding", "identity"));
        headers.push(("user-agent", USER_AGENT));
        Ok(request_head(ask.method, &ask.path_and_query, headers))
    }
}

/// Which page of which listing.
#[derive(Debug)]
pub(super) struct Question<'a> {
    pub(super) prefix: &'a ObjectUri,
    pub(super) depth: Depth,
    /// `None`: the first page.
    pub(super) token: Option<&'a str>,
    /// The first page begins behind this key.
    pub(super) after: Option<&'a str>,
    pub(super) max_keys: Option<i32>,
}

/// A request before it is signed.
#[derive(Debug)]
struct Ask<'a> {
    method: Method,
    path_and_query: String,
    /// How much of it is the path.
    path_len: usize,
    if_match: Option<&'a str>,
    range: Option<String>,
    /// Not a listing: its checksum may be asked for, and the customer's key belongs to it.
    is_object: bool,
}

impl<'a> Ask<'a> {
    fn object(method: Method, target: &Target, key: &str) -> Self {
        let mut path = String::with_capacity(target.path_prefix.len() + key.len() + 64);
        path.push_str(&target.path_prefix);
        path.push('/');
        push_path(&mut path, key);
        Self {
            method,
            path_len: path.len(),
            path_and_query: path,
            if_match: None,
            range: None,
            is_object: true,
        }
    }

    fn part(target: &Target, want: &Want<'a>) -> Self {
        let mut ask = Self::object(Method::Get, target, want.id.uri.key());
        ask.if_match = want.id.etag.as_deref();
        ask.range = want.range_header();
        if let Some(version) = &want.id.version_id {
            ask.path_and_query.push_str("?versionId=");
            push_query(&mut ask.path_and_query, version);
        }
        ask
    }

    /// The parameters stand in the order of their names, as they are signed.
    fn listing(target: &Target, question: &Question<'_>) -> Self {
        let mut ask = Self::object(Method::Get, target, "");
        ask.is_object = false;
        let text = &mut ask.path_and_query;
        text.push('?');
        if let Some(token) = question.token {
            text.push_str("continuation-token=");
            push_query(text, token);
            text.push('&');
        }
        if question.depth == Depth::OneLevel {
            text.push_str("delimiter=%2F&");
        }
        text.push_str("encoding-type=url&list-type=2");
        if let Some(max_keys) = question.max_keys {
            text.push_str("&max-keys=");
            text.push_str(&max_keys.to_string());
        }
        if !question.prefix.key().is_empty() {
            text.push_str("&prefix=");
            push_query(text, question.prefix.key());
        }
        if let Some(after) = question.after {
            text.push_str("&start-after=");
            push_query(text, after);
        }
        ask
    }
}

/// An ETag comes from a listing, which is XML and may hold a line break: in a header it would begin another.
fn refuse_controls(headers: &[(&str, &str)]) -> Result<()> {
    let is_bad = |value: &str| value.bytes().any(|byte| byte.is_ascii_control());
    match headers.iter().find(|(_, value)| is_bad(value)) {
        Some((name, _)) => Err(Error::config(*name, "a control character cannot be sent")),
        None => Ok(()),
    }
}
