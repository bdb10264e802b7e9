//! What an [`S3Client`](super::S3Client) is told; everything else it finds out by itself.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use md5::{Digest, Md5};

use crate::checksum::ChecksumPolicy;
use crate::error::{Error, Result};

/// The settings of an [`S3Client`](super::S3Client). The fields that the AWS CLI has a flag for bear its name.
///
/// What is `None` comes from where the AWS tools take it: the environment (`AWS_REGION`, `AWS_PROFILE`,
/// `AWS_ENDPOINT_URL_S3` before `AWS_ENDPOINT_URL`, `AWS_CA_BUNDLE`), then the profile.
#[derive(Debug, Clone)]
pub struct S3Config {
    /// Another server than Amazon's, such as `http://127.0.0.1:9000`.
    pub endpoint_url: Option<String>,
    /// The region that requests are signed for. Without one in sight, `us-east-1`, which tells every other bucket's.
    pub region: Option<String>,
    /// A profile of `~/.aws/config`.
    pub profile: Option<String>,
    /// The key to sign with. `None`: the SDK's chain looks for one in the environment, profiles, SSO, a process, a web
    /// identity, containers and the instance's metadata, in this order.
    pub access_key: Option<AccessKey>,
    /// Send unsigned requests (`--no-sign-request`), for public data.
    pub anonymous: bool,
    /// Agree to pay for requests and transfer (`--request-payer requester`).
    pub request_payer: bool,
    /// A file of PEM certificates that are trusted *instead of* the system's, as with the AWS CLI.
    pub ca_bundle: Option<PathBuf>,
    /// `endpoint/bucket/key` instead of `bucket.endpoint/key`. `None`: only where the endpoint is an IP address or
    /// `localhost`, because no DNS name lies below those.
    pub force_path_style: Option<bool>,
    /// The key of objects that are encrypted with a key of the customer's (SSE-C).
    pub sse_c: Option<SseCustomerKey>,
    /// How bodies are received.
    pub transport: Transport,
    /// Whether checksums are asked for and compared.
    pub checksums: ChecksumPolicy,
    /// How long opening a connection may take, TLS included.
    pub connect_timeout: Duration,
    /// How long the server may take from the request to the first byte of its answer.
    pub first_byte_timeout: Duration,
    /// In each such period at least 64 KiB, or the rest of the body, must arrive. There is no limit on the whole.
    pub progress_timeout: Duration,
}

/// How bodies are received.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Transport {
    /// Our own HTTP/1.1, straight into the part's buffer.
    #[default]
    Direct,
    /// The SDK's (hyper): slower, and able to go through a proxy. Chosen by itself where a proxy is set.
    Stock,
}

/// A key to sign with. Its debug output hides the secrets.
#[derive(Clone, PartialEq, Eq)]
pub struct AccessKey {
    /// `AWS_ACCESS_KEY_ID`.
    pub id: String,
    /// `AWS_SECRET_ACCESS_KEY`.
    pub secret: String,
    /// `AWS_SESSION_TOKEN`, of temporary keys.
    pub session_token: Option<String>,
}

impl fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessKey")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// A customer's own AES-256 key (SSE-C). Its debug output is blank.
#[derive(Clone, PartialEq, Eq)]
pub struct SseCustomerKey {
    key: [u8; 32],
    md5: String,
}

impl SseCustomerKey {
    /// From the key itself.
    pub fn new(key: [u8; 32]) -> Self {
        // S3 wants it beside the key, to tell one that was garbled on its way.
        let md5 = BASE64.encode(Md5::digest(key));
        Self { key, md5 }
    }

    /// From the key's base64 form.
    pub fn from_base64(key: &str) -> Result<Self> {
        let bytes = BASE64.decode(key.trim()).unwrap_or_default();
        let key = <[u8; 32]>::try_from(bytes.as_slice()).map_err(|_| {
            Error::config(
                "sse-c-key",
                "not the base64 form of 32 bytes, an AES-256 key",
            )
        })?;
        Ok(Self::new(key))
    }

    pub(super) fn key_base64(&self) -> String {
        BASE64.encode(self.key)
    }

    pub(super) fn md5_base64(&self) -> &str {
        &self.md5
    }
}

impl fmt::Debug for SseCustomerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SseCustomerKey(..)")
    }
}

impl Default for S3Config {
    fn default() -> Self {
        Self {
            endpoint_url: None,
            region: None,
            profile: None,
            access_key: None,
            anonymous: false,
            request_payer: false,
            ca_bundle: None,
            force_path_style: None,
            sse_c: None,
            transport: Transport::default(),
            checksums: ChecksumPolicy::default(),
            // One SYN may be lost (retransmitted after 1 s) and its repetition too (2 s): the SDKs' own default.
            connect_timeout: Duration::from_millis(3_100),
            // 1 % of S3's answers take over 200 ms; one that takes 5 s is faster when asked for again.
            first_byte_timeout: Duration::from_secs(5),
            // 64 KiB in 5 s is 13 KB/s, a thousandth of what S3 gives one connection.
            progress_timeout: Duration::from_secs(5),
        }
    }
}

impl S3Config {
    /// Checks what can be checked without a network.
    pub fn validate(&self) -> Result<()> {
        if let Some(url) = &self.endpoint_url {
            check_url("endpoint-url", url)?;
        }
        for (key, time) in [
            ("connect-timeout", self.connect_timeout),
            ("first-byte-timeout", self.first_byte_timeout),
            ("progress-timeout", self.progress_timeout),
        ] {
            if time.is_zero() {
                return Err(Error::config(key, "zero: use at least 1ms"));
            }
        }
        if self.anonymous && self.access_key.is_some() {
            return Err(Error::config(
                "no-sign-request",
                "a key was given to sign with: leave out one of them",
            ));
        }
        if self.anonymous && self.request_payer {
            return Err(Error::config(
                "request-payer",
                "an unsigned request has nobody to pay for it: leave out --no-sign-request",
            ));
        }
        Ok(())
    }
}

/// An endpoint is `http` or `https`, a host and nothing the rules could trip over.
pub(super) fn check_url(key: &str, url: &str) -> Result<http::Uri> {
    let reason = || format!("{url:?} is no endpoint: use http://host:port or https://host");
    let uri: http::Uri = url.parse().map_err(|_| Error::config(key, reason()))?;
    let usable = matches!(uri.scheme_str(), Some("http" | "https")) && uri.query().is_none();
    if usable && uri.host().is_some_and(|host| !host.is_empty()) {
        Ok(uri)
    } else {
        Err(Error::config(key, reason()))
    }
}

/// A customer's key goes to this machine or through TLS: S3 refuses it over plain HTTP, and takes it for disclosed.
pub(super) fn check_secrecy(config: &S3Config, endpoint: Option<&http::Uri>) -> Result<()> {
    let is_open = endpoint.is_some_and(|uri| {
        uri.scheme_str() == Some("http") && !uri.host().is_some_and(is_loopback)
    });
    match &config.sse_c {
        Some(_) if is_open => Err(Error::config(
            "sse-c-key",
            "the endpoint speaks plain HTTP, which would show the key to everybody on the way: use an https:// endpoint",
        )),
        _ => Ok(()),
    }
}

/// Whether buckets go into the path below this endpoint: everywhere but at AWS, as with the AWS CLI. Few other stores
/// have a DNS name for each bucket.
pub(super) fn needs_path_style(host: &str) -> bool {
    let host = host.to_ascii_lowercase();
    ![".amazonaws.com", ".amazonaws.com.cn", ".api.aws"]
        .iter()
        .any(|aws| host.ends_with(aws))
}

/// Whether the host is this machine, which no proxy can reach for us.
pub(super) fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || bare(host)
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip.is_loopback())
}

fn bare(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_urls_with_a_host() {
        for good in [
            "http://127.0.0.1:9000",
            "https://s3.example.com/base",
            "http://[::1]:1",
        ] {
            assert!(check_url("endpoint-url", good).is_ok(), "{good}");
        }
        for bad in [
            "127.0.0.1:9000",
            "ftp://x",
            "http://",
            "https://h/?q=1",
            "not a url",
        ] {
            let error = check_url("endpoint-url", bad).unwrap_err().to_string();
            assert!(error.contains("use http"), "{bad}: {error}");
        }
    }

    #[test]
    fn buckets_go_into_the_path_but_at_aws() {
        for host in [
            "127.0.0.1",
            "[::1]",
            "10.1.2.3",
            "LOCALHOST",
            "minio.local",
            "notamazonaws.com",
        ] {
            assert!(needs_path_style(host), "{host}");
        }
        for host in [
            "s3.amazonaws.com",
            "S3.eu-west-1.AMAZONAWS.com",
            "s3.dualstack.us-east-1.api.aws",
        ] {
            assert!(!needs_path_style(host), "{host}");
        }
        assert!(is_loopback("[::1]") && is_loopback("127.9.9.9") && !is_loopback("10.0.0.1"));
    }

    #[test]
    fn a_key_shows_nothing_and_must_be_one() {
        let key = SseCustomerKey::from_base64(&BASE64.encode([7; 32])).unwrap();
        assert_eq!(format!("{key:?}"), "SseCustomerKey(..)");
        // `head -c 32 /dev/zero | openssl md5 -binary | base64`
        assert_eq!(
            SseCustomerKey::new([0; 32]).md5_base64(),
            "cLyPS3KoaSFGi/joRB3OUQ=="
        );
        for bad in ["", "AAAA", "not base64", &BASE64.encode([7; 33])] {
            assert!(SseCustomerKey::from_base64(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_key_is_not_sent_in_the_open() {
        let config = S3Config {
            sse_c: Some(SseCustomerKey::new([7; 32])),
            ..S3Config::default()
        };
        let check = |url: &str| check_secrecy(&config, Some(&url.parse().unwrap()));
        assert!(check("http://minio.example:9000").is_err());
        assert!(check("https://minio.example:9000").is_ok());
        assert!(check("http://127.0.0.1:9000").is_ok());
        assert!(check_secrecy(&config, None).is_ok(), "AWS itself");
        let without = S3Config::default();
        let open = "http://minio.example".parse().unwrap();
        assert!(check_secrecy(&without, Some(&open)).is_ok());
    }

    #[test]
    fn unusable_settings_are_named() {
        let with = |change: fn(&mut S3Config)| {
            let mut config = S3Config::default();
            change(&mut config);
            config.validate()
        };
        assert!(with(|_| ()).is_ok());
        assert!(with(|c| c.progress_timeout = Duration::ZERO).is_err());
        assert!(with(|c| c.endpoint_url = Some("nonsense".into())).is_err());
        assert!(with(|c| (c.anonymous, c.request_payer) = (true, true)).is_err());
    }
}
