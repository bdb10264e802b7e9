//! From flags to a client: the one place that knows which there are.

use std::sync::Arc;

#[cfg(all(feature = "fuse", target_os = "linux"))]
use super::flags::CacheFlags;
use super::flags::TransportFlag;
use super::{Context, sse_c};
#[cfg(all(feature = "fuse", target_os = "linux"))]
use crate::cache::CacheConfig;
use crate::client::{
    LocalClient, ObjectClient, S3Client, S3Config, SchemeClient, Transport, resilient,
};
use crate::error::{Error, Result};
use crate::input::Source;
use crate::object::Scheme;
use crate::prefetch::PrefetchConfig;
use crate::runtime;

/// The schemes that `sources` use.
pub(super) fn schemes<'a>(sources: impl IntoIterator<Item = &'a Source>) -> Vec<Scheme> {
    let uris = sources
        .into_iter()
        .filter_map(|source| source.uris().next());
    uris.flatten().map(|uri| uri.scheme()).collect()
}

impl Context {
    /// A client for URIs of these schemes: local files as they are, S3 behind a limit and retries.
    pub(super) fn connect(
        &self,
        schemes: &[Scheme],
        engine: &PrefetchConfig,
    ) -> Result<Arc<dyn ObjectClient>> {
        self.connect_to(schemes, engine).map(|(client, _)| client)
    }

    /// The same, and S3's endpoint, which is `None` for AWS.
    pub(super) fn connect_to(
        &self,
        schemes: &[Scheme],
        engine: &PrefetchConfig,
    ) -> Result<(Arc<dyn ObjectClient>, Option<String>)> {
        if schemes.contains(&Scheme::Memory) {
            return Err(Error::config(
                "memory://",
                "lives in one process only: use s3://bucket/key, file:///path or a path",
            ));
        }
        let local: Arc<dyn ObjectClient> = Arc::new(LocalClient::new(self.metrics.clone()));
        if !schemes.contains(&Scheme::S3) {
            return Ok((local, None));
        }
        let s3 = self.s3(engine)?;
        let endpoint_url = s3.endpoint_url().map(str::to_owned);
        let s3 = resilient(Arc::new(s3), engine.most_requests(), &self.metrics);
        if !schemes.contains(&Scheme::File) {
            return Ok((s3, endpoint_url));
        }
        Ok((Arc::new(SchemeClient::new(s3, local)), endpoint_url))
    }

    /// The same for one scheme, and the cache that the flags want; what is local needs none.
    #[cfg(all(feature = "fuse", target_os = "linux"))]
    pub(super) fn connect_cached(
        &self,
        scheme: Scheme,
        engine: &PrefetchConfig,
        flags: &CacheFlags,
    ) -> Result<(Arc<dyn ObjectClient>, Option<CacheConfig>)> {
        if scheme != Scheme::S3 || flags.dir().is_none() {
            return Ok((self.connect(&[scheme], engine)?, None));
        }
        sse_c::refuse_cache(&self.source)?;
        let (s3, endpoint_url) = self.connect_to(&[scheme], engine)?;
        Ok((s3, flags.config(endpoint_url.as_deref())))
    }

    /// A client that can write, too.
    pub(super) fn s3(&self, engine: &PrefetchConfig) -> Result<S3Client> {
        let connect = S3Client::connect(self.s3_config(engine)?, self.metrics.clone());
        runtime::handle().block_on(connect)
    }

    fn s3_config(&self, engine: &PrefetchConfig) -> Result<S3Config> {
        let flags = &self.source;
        // A variable that is set to nothing is one that is not set.
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        Ok(S3Config {
            endpoint_url: given(&flags.endpoint_url),
            region: given(&flags.region),
            profile: given(&flags.profile),
            anonymous: flags.no_sign_request,
            request_payer: flags.request_payer.is_some(),
            sse_c: sse_c::key(flags)?,
            ca_bundle: flags.ca_bundle.clone(),
            transport: match flags.transport {
                TransportFlag::Direct => Transport::Direct,
                TransportFlag::Stock => Transport::Stock,
            },
            checksums: engine.checksums,
            ..S3Config::default()
        })
    }
}
