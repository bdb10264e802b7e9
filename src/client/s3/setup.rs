//! Finding out what the configuration leaves open: region, endpoint, credentials, trusted certificates, proxy.

use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use aws_config::BehaviorVersion;
use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::ProfileFileRegionProvider;
use aws_sdk_s3::config::{
    IdentityCache, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    SharedCredentialsProvider, SharedHttpClient, StalledStreamProtectionConfig,
};
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::{self, TlsContext, TrustStore};
use aws_smithy_http_client::{Builder, Connector};
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::retry::RetryConfig;
use aws_smithy_types::timeout::TimeoutConfig;
use aws_types::SdkConfig;
use aws_types::service_config::ServiceConfigKey;
use hyper_util::client::proxy::matcher::Matcher;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::checksum_mode::ChecksumMode;
use super::config::{S3Config, Transport, check_url, is_loopback, needs_path_style};
use super::credentials::CredentialCache;
use crate::checksum::ChecksumPolicy;
use crate::error::{Error, Result};

/// S3 closes idle connections after about 5 s; one that is older may be gone when a request is sent on it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// The region that answers for every bucket: with the object, or with the name of the right region.
const FALLBACK_REGION: &str = "us-east-1";

/// What was found out.
#[derive(Debug)]
pub(super) struct Setup {
    /// Everything the SDK's client needs but a region.
    pub(super) sdk: aws_sdk_s3::config::Builder,
    pub(super) region: String,
    pub(super) endpoint_url: Option<String>,
    pub(super) path_style: bool,
    pub(super) use_fips: bool,
    pub(super) use_dual_stack: bool,
    /// `None` when requests are not signed.
    pub(super) credentials: Option<Arc<CredentialCache>>,
    /// The stock transport when a proxy stands before the endpoint.
    pub(super) transport: Transport,
    pub(super) ca_pem: Option<Vec<u8>>,
}

/// Reads the environment and the profile. Nothing is sent.
pub(super) async fn find(config: &S3Config) -> Result<Setup> {
    config.validate()?;
    let ca_pem = ca_bundle(config)?;
    let http = http_client(ca_pem.as_deref());
    let sdk_config = load(config, http.clone()).await;
    let endpoint_url = endpoint_url(config, &sdk_config);
    let host = match &endpoint_url {
        Some(url) => check_url("endpoint-url", url)?.host().map(str::to_owned),
        None => None,
    };
    let path_style = config
        .force_path_style
        .unwrap_or_else(|| host.as_deref().is_some_and(needs_path_style));
    let credentials = sdk_config
        .credentials_provider()
        .filter(|_| !config.anonymous)
        .map(|provider| Arc::new(CredentialCache::new(provider)));
    let region = sdk_config
        .region()
        .map_or(FALLBACK_REGION, Region::as_ref)
        .to_owned();
    let mut sdk = sdk_builder(config, &sdk_config, http).force_path_style(path_style);
    sdk.set_endpoint_url(endpoint_url.clone());
    match &credentials {
        Some(cache) => {
            let shared = SharedCredentialsProvider::new(Shared(cache.clone()));
            sdk.set_credentials_provider(Some(shared));
        }
        None => {
            sdk.set_credentials_provider(None);
            sdk.set_allow_no_auth();
        }
    }
    Ok(Setup {
        transport: transport(config, endpoint_url.as_deref(), &region),
        sdk,
        region,
        endpoint_url,
        path_style,
        use_fips: sdk_config.use_fips().unwrap_or(false),
        use_dual_stack: sdk_config.use_dual_stack().unwrap_or(false),
        credentials,
        ca_pem,
    })
}

async fn load(config: &S3Config, http: SharedHttpClient) -> SdkConfig {
    let mut profile_region = ProfileFileRegionProvider::builder();
    let mut loader = aws_config::defaults(BehaviorVersion::latest()).http_client(http);
    if let Some(profile) = &config.profile {
        profile_region = profile_region.profile_name(profile);
        loader = loader.profile_name(profile);
    }
    if config.anonymous {
        loader = loader.no_credentials();
    }
    // The metadata service is not asked: on a host without one that takes seconds, and a bucket's region is learned
    // from its first answer anyway.
    let region = RegionProviderChain::first_try(config.region.clone().map(Region::new))
        .or_else(EnvironmentVariableRegionProvider::new())
        .or_else(profile_region.build())
        .or_else(Region::from_static(FALLBACK_REGION));
    loader.region(region).load().await
}

/// A flag before `AWS_ENDPOINT_URL_S3` (or the profile's service section) before `AWS_ENDPOINT_URL`.
fn endpoint_url(config: &S3Config, sdk_config: &SdkConfig) -> Option<String> {
    let of_service = || {
        let key = ServiceConfigKey::builder()
            .service_id("S3")
            .env("AWS_ENDPOINT_URL")
            .profile("endpoint_url")
            .build()
            .ok()?;
        sdk_config.service_config()?.load_config(key)
    };
    config
        .endpoint_url
        .clone()
        .or_else(of_service)
        .or_else(|| sdk_config.endpoint_url().map(str::to_owned))
}

fn sdk_builder(
    config: &S3Config,
    sdk_config: &SdkConfig,
    http: SharedHttpClient,
) -> aws_sdk_s3::config::Builder {
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(config.connect_timeout)
        .read_timeout(config.first_byte_timeout)
        .build();
    let mut builder = aws_sdk_s3::config::Builder::from(sdk_config)
        .http_client(http)
        .identity_cache(IdentityCache::no_cache())
        .use_arn_region(true)
        // Ours resume a body where it broke; the SDK's do not cover the body at all.
        .retry_config(RetryConfig::disabled())
        .timeout_config(timeouts)
        // It costs a clock reading and a timer per frame; the progress timeout is ours.
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        // Bytes are checked once, by us, while they are in the cache.
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired);
    if config.checksums != ChecksumPolicy::Off {
        builder = builder.interceptor(ChecksumMode);
    }
    builder
}

/// Reads the bundle of the flag or of `AWS_CA_BUNDLE`, and makes sure that it holds certificates.
fn ca_bundle(config: &S3Config) -> Result<Option<Vec<u8>>> {
    let from_env = || {
        std::env::var_os("AWS_CA_BUNDLE")
            .filter(|path| !path.is_empty())
            .map(PathBuf::from)
    };
    let Some(path) = config.ca_bundle.clone().or_else(from_env) else {
        return Ok(None);
    };
    let pem = std::fs::read(&path).map_err(|error| Error::io(&path, error))?;
    let certificates = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    let mut roots = rustls::RootCertStore::empty();
    let usable = certificates.is_ok_and(|all| {
        !all.is_empty()
            && all
                .into_iter()
                .all(|certificate| roots.add(certificate).is_ok())
    });
    if usable {
        return Ok(Some(pem));
    }
    Err(Error::config(
        "ca-bundle",
        format!("{} holds no certificates in PEM form", path.display()),
    ))
}

/// The stock client: rustls with ring; certificates from the bundle or else the system; proxies of the environment.
fn http_client(ca_pem: Option<&[u8]>) -> SharedHttpClient {
    let trust = match ca_pem {
        Some(pem) => TrustStore::empty().with_pem_certificate(pem),
        None => TrustStore::empty().with_native_roots(has_system_roots()),
    };
    let tls = TlsContext::builder().with_trust_store(trust).build();
    let tls = tls.unwrap_or_default();
    let plain = stock(tls.clone(), None);
    match Matcher::from_env() {
        matcher if intercepts_anything(&matcher) => SharedHttpClient::new(ByHost {
            direct: plain,
            proxied: stock(tls, Some(ProxyConfig::from_env())),
        }),
        _ => plain,
    }
}

/// The SDK's connector asserts that there are some.
fn has_system_roots() -> bool {
    static FOUND: LazyLock<bool> =
        LazyLock::new(|| !rustls_native_certs::load_native_certs().certs.is_empty());
    *FOUND
}

fn stock(tls: TlsContext, proxy: Option<ProxyConfig>) -> SharedHttpClient {
    let provider = tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring);
    Builder::new().build_with_connector_fn(move |settings, components| {
        let mut builder = Connector::builder().pool_idle_timeout(IDLE_TIMEOUT);
        builder.set_connector_settings(settings.cloned());
        builder.set_sleep_impl(components.and_then(RuntimeComponents::sleep_impl));
        builder.set_proxy_config(proxy.clone());
        builder
            .tls_provider(provider.clone())
            .tls_context(tls.clone())
            .build()
    })
}

/// Whether any request at all would go through a proxy.
fn intercepts_anything(matcher: &Matcher) -> bool {
    ["http://example.invalid", "https://example.invalid"]
        .into_iter()
        .any(|url| matcher.intercept(&http::Uri::from_static(url)).is_some())
}

/// Our own transport speaks to the endpoint itself; behind a proxy only the stock one can.
fn transport(config: &S3Config, endpoint_url: Option<&str>, region: &str) -> Transport {
    let url = match endpoint_url {
        Some(url) => url.to_owned(),
        None => format!("https://s3.{region}.amazonaws.com"),
    };
    let Ok(uri) = url.parse::<http::Uri>() else {
        return config.transport;
    };
    let is_direct = uri.host().is_none_or(is_loopback);
    if !is_direct && config.transport == Transport::Direct && is_proxied(&uri) {
        tracing::info!(endpoint = %url, "a proxy is set for this endpoint: using the stock transport");
        return Transport::Stock;
    }
    config.transport
}

fn is_proxied(uri: &http::Uri) -> bool {
    Matcher::from_env().intercept(uri).is_some()
}

/// Requests to this machine and to the metadata service never go through a proxy, as in Go and botocore.
#[derive(Debug)]
struct ByHost<C> {
    direct: C,
    proxied: C,
}

impl HttpClient for ByHost<SharedHttpClient> {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(ByHost {
            direct: self.direct.http_connector(settings, components),
            proxied: self.proxied.http_connector(settings, components),
        })
    }
}

impl HttpConnector for ByHost<SharedHttpConnector> {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let uri = request.uri().parse::<http::Uri>().ok();
        let host = uri.as_ref().and_then(http::Uri::host).unwrap_or_default();
        match is_loopback(host) || is_metadata_service(host) {
            true => self.direct.call(request),
            false => self.proxied.call(request),
        }
    }
}

/// IMDS (IPv4 and IPv6) and the ECS and EKS agents: link-local addresses.
fn is_metadata_service(host: &str) -> bool {
    host.starts_with("169.254.") || host.trim_start_matches('[').starts_with("fd00:ec2::")
}

/// The SDK wants to own its provider.
#[derive(Debug)]
struct Shared(Arc<CredentialCache>);

impl aws_credential_types::provider::ProvideCredentials for Shared {
    fn provide_credentials<'a>(
        &'a self,
    ) -> aws_credential_types::provider::future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        self.0.provide_credentials()
    }
}
