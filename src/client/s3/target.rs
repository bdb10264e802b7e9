//! Where a bucket's plain GETs go: the SDK's endpoint rules, asked once per bucket.
//!
//! The rules decide over regions, partitions, path style, dual stack, FIPS and access points; their answer depends on
//! the bucket and not on the key, so it is kept. What they answer for ARNs, S3 Express and Outposts needs more than a
//! plain signature: those buckets have no target here, and go through the SDK.

use std::sync::{Arc, PoisonError, RwLock};

use aws_credential_types::Credentials;
use aws_sdk_s3::config::endpoint::{DefaultResolver, Params, ResolveEndpoint};
use aws_smithy_types::Document;

use super::sign::{Moment, SigningKey};
use crate::client::wire::Endpoint;

/// The SDK's rules with what does not change from bucket to bucket.
#[derive(Debug)]
pub(super) struct Rules {
    resolver: DefaultResolver,
    endpoint_url: Option<String>,
    path_style: bool,
    use_fips: bool,
    use_dual_stack: bool,
}

/// Where a bucket's requests go and what they are signed for.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) endpoint: Endpoint,
    /// The `Host` header.
    pub(super) host: String,
    /// What stands before `/key`: empty, or `/bucket` and whatever path the endpoint has.
    pub(super) path_prefix: String,
    signing_region: String,
    key: RwLock<Option<Arc<SigningKey>>>,
}

impl Rules {
    pub(super) fn new(
        endpoint_url: Option<String>,
        path_style: bool,
        use_fips: bool,
        use_dual_stack: bool,
    ) -> Self {
        Self {
            resolver: DefaultResolver::new(),
            endpoint_url,
            path_style,
            use_fips,
            use_dual_stack,
        }
    }

    /// Has the SDK read its table of partitions, beside whatever the caller does: the first question waits for it
    /// otherwise.
    pub(super) fn prepare() {
        tokio::spawn(async {
            let rules = Self::new(None, false, false, false);
            rules.target("bucket", "us-east-1").await.is_some()
        });
    }

    /// The target of a bucket in a region; `None` when only the SDK can speak to it.
    pub(super) async fn target(&self, bucket: &str, region: &str) -> Option<Target> {
        if bucket.contains(':') {
            return None;
        }
        let params = Params::builder()
            .bucket(bucket)
            .region(region)
            .set_endpoint(self.endpoint_url.clone())
            .force_path_style(self.path_style)
            .use_fips(self.use_fips)
            .use_dual_stack(self.use_dual_stack)
            .build()
            .ok()?;
        let resolved = self.resolver.resolve_endpoint(&params).await.ok()?;
        if resolved.headers().next().is_some() {
            return None;
        }
        let scheme = resolved.auth_schemes().first()?.as_document();
        let property = |name: &str| {
            let scheme = scheme.as_object()?;
            scheme.get(name).and_then(Document::as_string)
        };
        if property("name") != Some("sigv4") || property("signingName") != Some("s3") {
            return None;
        }
        Target::new(resolved.url(), property("signingRegion")?)
    }
}

impl Target {
    fn new(url: &str, signing_region: &str) -> Option<Self> {
        let uri: http::Uri = url.parse().ok()?;
        let endpoint = Endpoint::of(&uri).ok()?;
        Some(Self {
            host: endpoint.host_header(),
            endpoint,
            path_prefix: uri.path().trim_end_matches('/').to_owned(),
            signing_region: signing_region.to_owned(),
            key: RwLock::default(),
        })
    }

    /// The key that signs now; derived anew once a day and when the credentials have changed.
    pub(super) fn signing_key(
        &self,
        credentials: &Arc<Credentials>,
        now: Moment,
    ) -> Arc<SigningKey> {
        let held = self.key.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = held.as_ref().filter(|key| key.fits(credentials, now)) {
            return key.clone();
        }
        drop(held);
        let key = SigningKey::new(credentials.clone(), &self.signing_region, "s3", now);
        let key = Arc::new(key);
        *self.key.write().unwrap_or_else(PoisonError::into_inner) = Some(key.clone());
        key
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    async fn target(url: Option<&str>, path_style: bool, bucket: &str) -> Option<String> {
        let rules = Rules::new(url.map(str::to_owned), path_style, false, false);
        let target = rules.target(bucket, "us-west-2").await?;
        let scheme = if target.endpoint.tls { "https" } else { "http" };
        assert_eq!(target.signing_region, "us-west-2");
        Some(format!("{scheme}://{}{}", target.host, target.path_prefix))
    }

    #[tokio::test]
    async fn buckets_stand_in_the_host_or_in_the_path() {
        let cases = [
            (
                None,
                false,
                "bucket",
                "https://bucket.s3.us-west-2.amazonaws.com",
            ),
            (
                None,
                false,
                "dotted.bucket",
                "https://s3.us-west-2.amazonaws.com/dotted.bucket",
            ),
            (
                None,
                true,
                "bucket",
                "https://s3.us-west-2.amazonaws.com/bucket",
            ),
            (
                Some("http://127.0.0.1:9000"),
                true,
                "bucket",
                "http://127.0.0.1:9000/bucket",
            ),
            (
                Some("https://store.example"),
                false,
                "bucket",
                "https://bucket.store.example",
            ),
            (
                Some("https://store.example/base/"),
                true,
                "bucket",
                "https://store.example/base/bucket",
            ),
            (
                None,
                false,
                "ap-name-abcdefghijklmnopqrstuvwxyz012345-s3alias",
                "https://ap-name-abcdefghijklmnopqrstuvwxyz012345-s3alias.s3.us-west-2.amazonaws.com",
            ),
        ];
        for (url, path_style, bucket, expected) in cases {
            let found = target(url, path_style, bucket).await;
            assert_eq!(found.as_deref(), Some(expected), "{url:?} {bucket}");
        }
    }

    #[tokio::test]
    async fn what_needs_more_than_a_plain_signature_goes_through_the_sdk() {
        for bucket in [
            "arn:aws:s3:us-west-2:123456789012:accesspoint/ap",
            "arn:aws:s3-outposts:us-west-2:123456789012:outpost/op-1/accesspoint/ap",
            "data--usw2-az1--x-s3",
        ] {
            assert_eq!(target(None, false, bucket).await, None, "{bucket}");
        }
    }

    #[test]
    fn the_signing_key_is_derived_once() {
        let target = Target::new("http://127.0.0.1:1/b", "r").unwrap();
        let credentials = Arc::new(Credentials::new("AK", "SK", None, None, "test"));
        let moment = Moment::of(SystemTime::UNIX_EPOCH);
        let first = target.signing_key(&credentials, moment);
        assert!(Arc::ptr_eq(
            &first,
            &target.signing_key(&credentials, moment)
        ));
        let renewed = Arc::new((*credentials).clone());
        assert!(!Arc::ptr_eq(&first, &target.signing_key(&renewed, moment)));
    }
}
