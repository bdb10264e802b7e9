//! Signature version 4, checked as S3 checks it: the canonical request is built again from what arrived.
//!
//! The signing key of a scope (access key, day, region, service) costs four HMACs, so each connection remembers the
//! last one it used; after that a request costs two hashes of a few hundred bytes.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Mutex;

use hmac::{Hmac, KeyInit, Mac};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sha2::{Digest, Sha256};

use crate::date;
use crate::log::CredentialKind;
use crate::request::Request;
use crate::response::S3Error;
use crate::store::hex;

type HmacSha256 = Hmac<Sha256>;

/// What SigV4 leaves unencoded in a query.
pub(crate) const QUERY: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');
/// The same for paths, where slashes stay.
pub(crate) const PATH: &AsciiSet = &QUERY.remove(b'/');

/// S3's tolerance for clocks.
const MAX_SKEW_S: i64 = 15 * 60;

/// An access key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// `AWS_ACCESS_KEY_ID`.
    pub access_key: String,
    /// `AWS_SECRET_ACCESS_KEY`.
    pub secret_key: String,
    /// `AWS_SESSION_TOKEN`, which requests with this key must then carry.
    pub session_token: Option<String>,
}

impl Credentials {
    /// A permanent key.
    pub fn new(access_key: impl Into<String>, secret_key: impl Into<String>) -> Credentials {
        Credentials {
            access_key: access_key.into(),
            secret_key: secret_key.into(),
            session_token: None,
        }
    }

    /// A temporary key.
    pub fn with_token(mut self, token: impl Into<String>) -> Credentials {
        self.session_token = Some(token.into());
        self
    }
}

/// A signing key remembered by a connection.
#[derive(Debug, Default)]
pub(crate) struct KeyCache {
    scope: String,
    key: Option<HmacSha256>,
}

/// The keys that the server knows. None: everybody may do everything.
#[derive(Debug, Default)]
pub(crate) struct Auth {
    keys: Vec<Credentials>,
    /// Sessions of S3 Express: credentials by access key, with the bucket they are for.
    sessions: Mutex<HashMap<String, (Credentials, String)>>,
}

/// The parts of a signature, from header or query.
#[derive(Debug)]
struct Claim<'a> {
    access_key: Cow<'a, str>,
    /// `date/region/service/aws4_request`.
    scope: Cow<'a, str>,
    signed_headers: Cow<'a, str>,
    signature: Cow<'a, str>,
    timestamp: Cow<'a, str>,
    token: Option<Cow<'a, str>>,
    expires_s: Option<i64>,
}

impl Auth {
    pub(crate) fn new(keys: Vec<Credentials>) -> Auth {
        Auth {
            keys,
            sessions: Mutex::default(),
        }
    }

    /// Whether signatures are checked.
    pub(crate) fn is_on(&self) -> bool {
        !self.keys.is_empty()
    }

    /// Gives out the credentials of an S3 Express session.
    pub(crate) fn open_session(&self, bucket: &str, unique: &str) -> Credentials {
        let credentials = Credentials::new(
            format!("SESSION{}", unique.to_uppercase()),
            format!("secret-{unique}"),
        )
        .with_token(format!("token-{unique}"));
        let mut sessions = self
            .sessions
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        sessions.insert(
            credentials.access_key.clone(),
            (credentials.clone(), bucket.to_owned()),
        );
        credentials
    }

    /// Checks the signature of a request that has one.
    pub(crate) fn verify(
        &self,
        request: &Request<'_>,
        now: i64,
        cache: &mut KeyCache,
    ) -> Result<(), S3Error> {
        let claim = claim(request).ok_or_else(|| {
            denied(
                "AuthorizationHeaderMalformed",
                "The signature is incomplete",
            )
        })?;
        let credentials = self.find(&claim, request)?;
        check_service(&claim, request)?;
        check_time(&claim, now)?;
        check_token(&claim, &credentials)?;
        let canonical = canonical_request(
            request,
            &claim.signed_headers,
            payload_hash(request, &claim),
        );
        let to_sign = string_to_sign(&claim.timestamp, &claim.scope, &canonical);
        let expected = sign(cache, &credentials, &claim.scope, &to_sign);
        if expected.as_bytes() == claim.signature.as_bytes() {
            return Ok(());
        }
        let message = "The request signature we calculated does not match the signature you provided. Check your key and signing method.";
        Err(denied("SignatureDoesNotMatch", message)
            .element("AWSAccessKeyId", claim.access_key)
            .element("StringToSign", to_sign)
            .element("SignatureProvided", claim.signature)
            .element("CanonicalRequest", canonical))
    }

    fn find(&self, claim: &Claim<'_>, request: &Request<'_>) -> Result<Credentials, S3Error> {
        let unknown = || {
            denied(
                "InvalidAccessKeyId",
                "The AWS Access Key Id you provided does not exist in our records.",
            )
            .element("AWSAccessKeyId", claim.access_key.clone())
        };
        if let Some(key) = self
            .keys
            .iter()
            .find(|key| key.access_key == claim.access_key)
        {
            return Ok(key.clone());
        }
        let sessions = self
            .sessions
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        match sessions.get(&*claim.access_key) {
            Some((credentials, bucket)) if *bucket == request.bucket => Ok(credentials.clone()),
            _ => Err(unknown()),
        }
    }
}

/// How the request is signed, whether or not that is checked.
pub(crate) fn kind(request: &Request<'_>) -> CredentialKind {
    if request.header("x-amz-s3session-token").is_some() {
        CredentialKind::Session
    } else if request.header("authorization").is_some() {
        CredentialKind::Header
    } else if request.raw_query.contains("X-Amz-Signature=") {
        CredentialKind::Presigned
    } else {
        CredentialKind::None
    }
}

/// The region a request was signed for.
pub(crate) fn signed_region(request: &Request<'_>) -> Option<String> {
    claim(request)?.scope.split('/').nth(1).map(str::to_owned)
}

/// The service that requests to this bucket must be signed for.
pub(crate) fn service(bucket: &str) -> &'static str {
    match bucket.ends_with("--x-s3") {
        true => "s3express",
        false => "s3",
    }
}

fn check_service(claim: &Claim<'_>, request: &Request<'_>) -> Result<(), S3Error> {
    let (signed, right) = (claim.scope.split('/').nth(2), service(&request.bucket));
    if signed == Some(right) {
        return Ok(());
    }
    let message = format!(
        "The authorization header is malformed; incorrect service {signed:?}. This endpoint belongs to '{right}'."
    );
    Err(denied("AuthorizationHeaderMalformed", &message))
}

fn denied(code: &str, message: &str) -> S3Error {
    S3Error::new(
        if code == "AuthorizationHeaderMalformed" {
            400
        } else {
            403
        },
        code,
        message,
    )
}

fn claim<'a>(request: &Request<'a>) -> Option<Claim<'a>> {
    match request.header("authorization") {
        Some(header) => header_claim(request, header),
        None => query_claim(request),
    }
}

fn header_claim<'a>(request: &Request<'a>, header: &'a str) -> Option<Claim<'a>> {
    let fields = header.strip_prefix("AWS4-HMAC-SHA256")?;
    let field = |name: &str| {
        fields
            .split(',')
            .find_map(|field| field.trim().strip_prefix(name)?.strip_prefix('='))
            .map(Cow::Borrowed)
    };
    let Cow::Borrowed(credential) = field("Credential")? else {
        return None;
    };
    let (access_key, scope) = credential.split_once('/')?;
    let token = request
        .header("x-amz-s3session-token")
        .or_else(|| request.header("x-amz-security-token"));
    Some(Claim {
        access_key: Cow::Borrowed(access_key),
        scope: Cow::Borrowed(scope),
        signed_headers: field("SignedHeaders")?,
        signature: field("Signature")?,
        timestamp: Cow::Borrowed(request.header("x-amz-date")?),
        token: token.map(Cow::Borrowed),
        expires_s: None,
    })
}

fn query_claim<'a>(request: &Request<'a>) -> Option<Claim<'a>> {
    let credential = request.query("X-Amz-Credential")?;
    let (access_key, scope) = credential.split_once('/')?;
    Some(Claim {
        access_key: Cow::Owned(access_key.to_owned()),
        scope: Cow::Owned(scope.to_owned()),
        signed_headers: request.query("X-Amz-SignedHeaders")?,
        signature: request.query("X-Amz-Signature")?,
        timestamp: request.query("X-Amz-Date")?,
        token: request
            .query("X-Amz-Security-Token")
            .or_else(|| request.query("X-Amz-S3session-Token")),
        expires_s: Some(request.query("X-Amz-Expires")?.parse().ok()?),
    })
}

fn check_time(claim: &Claim<'_>, now: i64) -> Result<(), S3Error> {
    let signed = date::parse_basic(&claim.timestamp).ok_or_else(|| {
        denied(
            "AccessDenied",
            "AWS authentication requires a valid Date or x-amz-date header",
        )
    })?;
    if let Some(expires) = claim.expires_s {
        return if now <= signed + expires && signed <= now + MAX_SKEW_S {
            Ok(())
        } else {
            Err(denied("AccessDenied", "Request has expired")
                .element("Expires", date::xml(signed + expires)))
        };
    }
    if (signed - now).abs() <= MAX_SKEW_S {
        return Ok(());
    }
    let message = "The difference between the request time and the current time is too large.";
    Err(denied("RequestTimeTooSkewed", message)
        .element("RequestTime", claim.timestamp.clone())
        .element("ServerTime", date::xml(now))
        .element("MaxAllowedSkewMilliseconds", "900000"))
}

fn check_token(claim: &Claim<'_>, credentials: &Credentials) -> Result<(), S3Error> {
    if claim.token.as_deref() == credentials.session_token.as_deref() {
        return Ok(());
    }
    Err(S3Error::new(
        400,
        "InvalidToken",
        "The provided token is malformed or otherwise invalid.",
    ))
}

fn payload_hash<'a>(request: &Request<'a>, claim: &Claim<'_>) -> &'a str {
    match request.header("x-amz-content-sha256") {
        Some(hash) => hash,
        None if claim.expires_s.is_some() => "UNSIGNED-PAYLOAD",
        // Of the empty payload.
        None => "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    }
}

fn canonical_request(request: &Request<'_>, signed_headers: &str, payload_hash: &str) -> String {
    let mut out = String::with_capacity(512);
    out.push_str(request.method);
    out.push('\n');
    // Decoded and encoded again: what the client left unencoded does not matter.
    let path: Cow<'_, [u8]> = percent_decode_str(request.raw_path).into();
    let _ = writeln!(out, "{}", percent_encoding::percent_encode(&path, PATH));
    push_canonical_query(&mut out, request);
    out.push('\n');
    for name in signed_headers.split(';') {
        out.push_str(name);
        out.push(':');
        push_header_values(&mut out, request, name);
        out.push('\n');
    }
    let _ = write!(out, "\n{signed_headers}\n{payload_hash}");
    out
}

fn push_canonical_query(out: &mut String, request: &Request<'_>) {
    if request.raw_query.is_empty() {
        return;
    }
    let mut pairs: Vec<(String, String)> = request
        .query_pairs()
        .filter(|(name, _)| name != "X-Amz-Signature")
        .map(|(name, value)| {
            (
                utf8_percent_encode(&name, QUERY).to_string(),
                utf8_percent_encode(&value, QUERY).to_string(),
            )
        })
        .collect();
    pairs.sort_unstable();
    for (index, (name, value)) in pairs.iter().enumerate() {
        let _ = write!(out, "{}{name}={value}", if index == 0 { "" } else { "&" });
    }
}

/// Values of equal names joined by commas, runs of spaces as one.
fn push_header_values(out: &mut String, request: &Request<'_>, name: &str) {
    for (index, value) in request.header_values(name).enumerate() {
        if index > 0 {
            out.push(',');
        }
        let mut words = value.split(' ').filter(|word| !word.is_empty());
        out.push_str(words.next().unwrap_or(""));
        for word in words {
            out.push(' ');
            out.push_str(word);
        }
    }
}

fn string_to_sign(timestamp: &str, scope: &str, canonical: &str) -> String {
    format!(
        "AWS4-HMAC-SHA256\n{timestamp}\n{scope}\n{}",
        hex(&Sha256::digest(canonical))
    )
}

fn sign(cache: &mut KeyCache, credentials: &Credentials, scope: &str, to_sign: &str) -> String {
    let known = cache
        .scope
        .strip_prefix(&credentials.access_key)
        .and_then(|rest| rest.strip_prefix('/'))
        == Some(scope);
    if !known || cache.key.is_none() {
        cache.key = Some(hmac(&signing_key(&credentials.secret_key, scope)));
        cache.scope = format!("{}/{scope}", credentials.access_key);
    }
    let mut mac = cache.key.clone().unwrap_or_else(|| hmac(b""));
    mac.update(to_sign.as_bytes());
    hex(&mac.finalize().into_bytes())
}

/// The key of a scope: date, region, service and `aws4_request` mixed in, one after another.
fn signing_key(secret_key: &str, scope: &str) -> Vec<u8> {
    scope
        .split('/')
        .fold(format!("AWS4{secret_key}").into_bytes(), |key, step| {
            let mut mac = hmac(&key);
            mac.update(step.as_bytes());
            mac.finalize().into_bytes().to_vec()
        })
}

fn hmac(key: &[u8]) -> HmacSha256 {
    HmacSha256::new_from_slice(key)
        .unwrap_or_else(|_| unreachable!("HMAC takes keys of any length"))
}

/// Whether the body has the hash that was signed with it.
pub(crate) fn payload_matches(request: &Request<'_>, body: &[u8]) -> bool {
    match request.header("x-amz-content-sha256") {
        Some(hash) if hash.len() == 64 => hex(&Sha256::digest(body)).eq_ignore_ascii_case(hash),
        _ => true,
    }
}

/// Signs a request for a test: the value of its `Authorization` header. `headers` are all that is signed, lower-case
/// and sorted, and must hold `host`, `x-amz-content-sha256` and `x-amz-date`.
pub fn authorization(
    credentials: &Credentials,
    region: &str,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
) -> String {
    let find = |name: &str| {
        headers
            .iter()
            .find(|header| header.0 == name)
            .map_or("", |header| header.1)
    };
    let signed = headers
        .iter()
        .map(|header| header.0)
        .collect::<Vec<_>>()
        .join(";");
    let bucket = target.trim_start_matches('/').split(['/', '?']).next();
    let service = service(bucket.unwrap_or(""));
    let scope = scope(find("x-amz-date"), region, service);
    let payload = (find("x-amz-date"), find("x-amz-content-sha256"));
    let signature = signature(credentials, &scope, method, target, headers, payload);
    let access_key = &credentials.access_key;
    format!(
        "AWS4-HMAC-SHA256 Credential={access_key}/{scope},SignedHeaders={signed},Signature={signature}"
    )
}

/// Presigns a request for a test: the target to ask for on `host`, good from second `at` on for `expires_s` seconds.
pub fn presigned_target(
    credentials: &Credentials,
    region: &str,
    method: &str,
    host: &str,
    path: &str,
    at: i64,
    expires_s: u32,
) -> String {
    let date = date::basic(at);
    let scope = scope(&date, region, "s3");
    let credential = format!("{}/{scope}", credentials.access_key);
    let credential = utf8_percent_encode(&credential, QUERY);
    let mut target = format!(
        "{path}?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={credential}&X-Amz-Date={date}\
         &X-Amz-Expires={expires_s}&X-Amz-SignedHeaders=host"
    );
    if let Some(token) = &credentials.session_token {
        let _ = write!(
            target,
            "&X-Amz-Security-Token={}",
            utf8_percent_encode(token, QUERY)
        );
    }
    let payload = (&*date, "UNSIGNED-PAYLOAD");
    let signature = signature(
        credentials,
        &scope,
        method,
        &target,
        &[("host", host)],
        payload,
    );
    format!("{target}&X-Amz-Signature={signature}")
}

fn scope(timestamp: &str, region: &str, service: &str) -> String {
    format!(
        "{}/{region}/{service}/aws4_request",
        timestamp.get(..8).unwrap_or("")
    )
}

/// The signature over these headers; `payload` is the timestamp and the payload's hash.
fn signature(
    credentials: &Credentials,
    scope: &str,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    payload: (&str, &str),
) -> String {
    let mut parsed: Vec<httparse::Header<'_>> = headers
        .iter()
        .map(|(name, value)| httparse::Header {
            name,
            value: value.as_bytes(),
        })
        .collect();
    let mut head = httparse::Request::new(&mut parsed);
    head.method = Some(method);
    head.path = Some(target);
    let Some(request) = Request::new(&head, &[]) else {
        return String::new();
    };
    let signed = headers
        .iter()
        .map(|header| header.0)
        .collect::<Vec<_>>()
        .join(";");
    let canonical = canonical_request(&request, &signed, payload.1);
    let to_sign = string_to_sign(payload.0, scope, &canonical);
    sign(&mut KeyCache::default(), credentials, scope, &to_sign)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    /// The examples of "Signature Calculations for the Authorization Header" in the S3 API reference.
    #[test]
    fn signatures_are_those_of_the_manual() {
        let credentials = Credentials::new(
            "AKIAIOSFODNN7EXAMPLE",
            "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
        );
        let host = ("host", "examplebucket.s3.amazonaws.com");
        let hash = ("x-amz-content-sha256", EMPTY);
        let date = ("x-amz-date", "20130524T000000Z");
        let sign = |target: &str, headers: &[(&str, &str)]| {
            authorization(&credentials, "us-east-1", "GET", target, headers)
        };
        let object = sign("/test.txt", &[host, ("range", "bytes=0-9"), hash, date]);
        assert!(
            object.ends_with("f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"),
            "{object}"
        );
        let lifecycle = sign("/?lifecycle", &[host, hash, date]);
        assert!(
            lifecycle.ends_with("fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"),
            "{lifecycle}"
        );
        let list = sign("/?max-keys=2&prefix=J", &[host, hash, date]);
        assert!(
            list.ends_with("34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"),
            "{list}"
        ); // From "Authenticating Requests: Using Query Parameters".
        let at = date::parse_basic("20130524T000000Z").unwrap();
        let presigned = presigned_target(
            &credentials,
            "us-east-1",
            "GET",
            host.1,
            "/test.txt",
            at,
            86_400,
        );
        assert!(
            presigned.ends_with("aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"),
            "{presigned}"
        );
    }
}
