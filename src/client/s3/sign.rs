//! AWS Signature Version 4 for GETs, by hand: a few microseconds instead of the orchestrator's 100
//! (`benches/requests.rs`).
//!
//! Of the four HMACs that make a signing key, all depend only on the day, the region and the secret: the key is
//! derived once (by the SDK's own crate) and kept as a keyed HMAC. What is left per request is one SHA-256 of about
//! 500 bytes and one HMAC of about 130. The payload is `UNSIGNED-PAYLOAD`: a GET has none. S3 encodes each byte of
//! the path once and normalizes nothing, so the path that is signed is the path that is sent.
//!
//! The property test compares every signature with `aws-sigv4`, the SDK's signer.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use crate::client::wire::Method;

/// What stands for the hash of a body that is not signed.
pub(super) const UNSIGNED_PAYLOAD: &str = "UNSIGNED-PAYLOAD";

const SECONDS_PER_DAY: u64 = 86_400;

/// A moment as signatures write it: `20130524T000000Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Moment {
    text: [u8; 16],
    day: u64,
}

impl Moment {
    pub(super) fn of(time: SystemTime) -> Self {
        let since = time
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or(Duration::ZERO)
            .as_secs();
        let (day, second) = (since / SECONDS_PER_DAY, since % SECONDS_PER_DAY);
        let (year, month, date) = civil(day);
        let mut text = *b"00000000T000000Z";
        put_digits(&mut text[0..4], year);
        put_digits(&mut text[4..6], month);
        put_digits(&mut text[6..8], date);
        put_digits(&mut text[9..11], second / 3600);
        put_digits(&mut text[11..13], second / 60 % 60);
        put_digits(&mut text[13..15], second % 60);
        Self { text, day }
    }

    pub(super) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.text).expect("digits are ASCII")
    }

    fn date(&self) -> &str {
        &self.as_str()[..8]
    }
}

fn put_digits(into: &mut [u8], mut number: u64) {
    for digit in into.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

/// Year, month and day of the n-th day since 1970 (Howard Hinnant's `civil_from_days`, for days after 0000-03-01).
fn civil(day: u64) -> (u64, u64, u64) {
    let day = day + 719_468;
    let era = day / 146_097;
    let of_era = day % 146_097;
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let date = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, date)
}

/// A key that signs for one day, region and set of credentials.
pub(super) struct SigningKey {
    keyed: Hmac<Sha256>,
    day: u64,
    credentials: Arc<Credentials>,
    /// `20130524/us-east-1/s3/aws4_request`.
    scope: String,
}

impl SigningKey {
    /// Derives the key.
    pub(super) fn new(
        credentials: Arc<Credentials>,
        region: &str,
        service: &str,
        now: Moment,
    ) -> Self {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(now.day * SECONDS_PER_DAY);
        let secret = credentials.secret_access_key();
        let key = aws_sigv4::sign::v4::generate_signing_key(secret, time, region, service);
        Self {
            keyed: Hmac::new_from_slice(key.as_ref()).expect("an HMAC takes keys of any length"),
            day: now.day,
            scope: format!("{}/{region}/{service}/aws4_request", now.date()),
            credentials,
        }
    }

    /// Whether it signs for these credentials at this moment.
    pub(super) fn fits(&self, credentials: &Arc<Credentials>, now: Moment) -> bool {
        self.day == now.day && Arc::ptr_eq(&self.credentials, credentials)
    }

    /// The value of `Authorization` for a request without a body. `headers` have lower-case names in their order, `x-amz-date` and
    /// `x-amz-content-sha256` among them; all of them are signed.
    pub(super) fn authorize(
        &self,
        now: Moment,
        method: Method,
        path: &str,
        query: &str,
        headers: &[(&str, &str)],
    ) -> String {
        debug_assert!(headers.is_sorted_by_key(|(name, _)| name));
        let hash = Sha256::digest(canonical_request(method, path, query, headers));
        let mut text = String::with_capacity(160);
        text.push_str("AWS4-HMAC-SHA256\n");
        for line in [now.as_str(), &self.scope] {
            text.push_str(line);
            text.push('\n');
        }
        push_hex(&mut text, &hash);
        let mut mac = self.keyed.clone();
        mac.update(text.as_bytes());
        let mut value = String::with_capacity(400);
        value.push_str("AWS4-HMAC-SHA256 Credential=");
        value.push_str(self.credentials.access_key_id());
        value.push('/');
        value.push_str(&self.scope);
        value.push_str(", SignedHeaders=");
        push_names(&mut value, headers);
        value.push_str(", Signature=");
        push_hex(&mut value, &mac.finalize().into_bytes());
        value
    }
}

fn canonical_request(method: Method, path: &str, query: &str, headers: &[(&str, &str)]) -> String {
    let mut text = String::with_capacity(1024);
    for line in [method.as_str(), path, query] {
        text.push_str(line);
        text.push('\n');
    }
    for (name, value) in headers {
        text.push_str(name);
        text.push(':');
        push_trimmed(&mut text, value);
        text.push('\n');
    }
    text.push('\n');
    push_names(&mut text, headers);
    text.push('\n');
    text.push_str(UNSIGNED_PAYLOAD);
    text
}

/// Surrounding spaces do not count, and several in a row count as one.
fn push_trimmed(text: &mut String, value: &str) {
    let value = value.trim_matches(' ');
    if !value.contains("  ") {
        text.push_str(value);
        return;
    }
    let mut after_space = false;
    text.extend(value.chars().filter(|&character| {
        let drop = after_space && character == ' ';
        after_space = character == ' ';
        !drop
    }));
}

fn push_names(text: &mut String, headers: &[(&str, &str)]) {
    for (index, (name, _)) in headers.iter().enumerate() {
        if index > 0 {
            text.push(';');
        }
        text.push_str(name);
    }
}

fn push_hex(text: &mut String, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
}

/// Appends an object's key as it stands in a path: everything but the unreserved characters and `/` is escaped.
pub(super) fn push_path(text: &mut String, key: &str) {
    push_escaped(text, key, |byte| byte == b'/');
}

/// Appends the value of a query parameter.
pub(super) fn push_query(text: &mut String, value: &str) {
    push_escaped(text, value, |_| false);
}

fn push_escaped(text: &mut String, plain: &str, keeps: impl Fn(u8) -> bool) {
    text.reserve(plain.len());
    for byte in plain.bytes() {
        let is_unreserved =
            byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
        if is_unreserved || keeps(byte) {
            text.push(char::from(byte));
        } else {
            write!(text, "%{byte:02X}").expect("a String takes everything");
        }
    }
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SigningKey({})", self.scope)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_credential_types::provider::ProvideCredentials as _;
    use aws_sigv4::http_request::{
        PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SigningSettings,
        UriPathNormalizationMode, sign,
    };
    use aws_sigv4::sign::v4;
    use proptest::prelude::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn moments_are_written_as_signatures_want_them() {
        for (seconds, text) in [
            (0, "19700101T000000Z"),
            (951_827_696, "20000229T123456Z"),
            (1_369_353_600, "20130524T000000Z"),
            (4_107_542_399, "21000228T235959Z"),
        ] {
            assert_eq!(Moment::of(at(seconds)).as_str(), text);
        }
    }

    /// What the SDK's signer says of the same request; its session token is a header like any other.
    fn reference(
        credentials: &Credentials,
        region: &str,
        time: SystemTime,
        method: Method,
        url: &str,
        headers: &[(&str, &str)],
    ) -> String {
        let mut settings = SigningSettings::default();
        settings.percent_encoding_mode = PercentEncodingMode::Single;
        settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
        settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
        let identity = credentials.clone().into();
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(region)
            .name("s3")
            .time(time)
            .settings(settings)
            .build()
            .unwrap();
        let own = ["x-amz-date", "x-amz-content-sha256", "x-amz-security-token"];
        let given = headers
            .iter()
            .copied()
            .filter(|(name, _)| !own.contains(name));
        let body = SignableBody::UnsignedPayload;
        let request = SignableRequest::new(method.as_str(), url, given, body).unwrap();
        let (instructions, _) = sign(request, &params.into()).unwrap().into_parts();
        let value = instructions
            .headers()
            .find(|(name, _)| *name == "authorization");
        value.unwrap().1.to_owned()
    }

    proptest! {
        #[test]
        fn signatures_equal_those_of_the_sdk(
            key in "\\PC{0,20}[ -~]{0,20}[/.%+ ]{0,4}",
            secret in "[A-Za-z0-9/+]{1,40}",
            token in proptest::option::of("[A-Za-z0-9/+=]{1,80}"),
            version in proptest::option::of("[!-~]{1,10}"),
            etag in proptest::option::of("\"[ -~]{0,20}\""),
            range in proptest::option::of(0..1u64 << 40),
            seconds in 0..4_000_000_000u64,
        ) {
            let time = at(seconds);
            let method = if seconds % 2 == 0 { Method::Get } else { Method::Head };
            let now = Moment::of(time);
            let credentials = Credentials::new("AKID", secret, token.clone(), None, "test");
            let mut path = String::from("/bucket/");
            push_path(&mut path, &key);
            let mut query = String::new();
            if let Some(version) = &version {
                query.push_str("versionId=");
                push_query(&mut query, version);
            }
            let range = range.map(|start| format!("bytes={start}-{}", start + 9));
            let mut headers = vec![
                ("host", "127.0.0.1:9000"),
                ("x-amz-content-sha256", UNSIGNED_PAYLOAD),
                ("x-amz-date", now.as_str()),
            ];
            headers.extend(token.as_deref().map(|token| ("x-amz-security-token", token)));
            headers.extend(range.as_deref().map(|range| ("range", range)));
            headers.extend(etag.as_deref().map(|etag| ("if-match", etag)));
            headers.sort_unstable();
            let url = match query.is_empty() {
                true => format!("http://127.0.0.1:9000{path}"),
                false => format!("http://127.0.0.1:9000{path}?{query}"),
            };
            let expected = reference(&credentials, "us-west-2", time, method, &url, &headers);
            let signer = SigningKey::new(Arc::new(credentials), "us-west-2", "s3", now);
            prop_assert_eq!(signer.authorize(now, method, &path, &query, &headers), expected);
        }
    }

    #[tokio::test]
    async fn a_key_is_good_for_its_day_and_its_credentials() {
        let plain = Credentials::new("AK", "SK", None, None, "test");
        let first = Arc::new(plain.provide_credentials().await.unwrap());
        let second = Arc::new(plain);
        let morning = Moment::of(at(SECONDS_PER_DAY * 5));
        let signer = SigningKey::new(first.clone(), "r", "s3", morning);
        assert!(signer.fits(&first, Moment::of(at(SECONDS_PER_DAY * 6 - 1))));
        assert!(!signer.fits(&first, Moment::of(at(SECONDS_PER_DAY * 6))));
        assert!(!signer.fits(&second, morning));
    }
}
