//! Finding out what the configuration leaves open: region, endpoint, credentials, trusted certificates, proxy.

use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use aws_config::BehaviorVersion;
use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::profile::ProfileFileRegionProvider;
use aws_config::provider_config::ProviderConfig;
use aws_sdk_s3::config::{
    Credentials, IdentityCache, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    SharedCredentialsProvider, SharedHttpClient, StalledStreamProtectionConfig,
};
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::{self, TlsContext, TrustStore};
use aws_smithy_http_client::{Builder, Connector};
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::retry::RetryConfig;
use aws_smithy_types::timeout::TimeoutConfig;
use aws_types::SdkConfig;
use aws_types::service_config::ServiceConfigKey;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::checksum_mode::ChecksumMode;
use super::config::{S3Config, Transport, check_secrecy, check_url, is_loopback, needs_path_style};
use super::credentials::CredentialCache;
use super::decode::WholeListings;
use super::refusal;
use super::session::TimedSessions;
use super::target::Rules;
use crate::checksum::ChecksumPolicy;
use crate::client::wire::{
    Endpoint, LazyTls, Wire, WireConfig, WireHttpClient, proxy_of, tls_config_with,
};
use crate::error::{Error, Result};
use crate::metrics::Metrics;

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
    pub(super) rules: Rules,
    /// `None` when requests are not signed.
    pub(super) credentials: Option<Arc<CredentialCache>>,
    /// The stock transport when a proxy stands before the endpoint.
    pub(super) transport: Transport,
    /// The proxy that stands before the endpoint, for errors' texts.
    pub(super) proxy: Option<String>,
    pub(super) wire: Wire,
}

/// Reads the environment and the profile. No request is sent, but a connection may be opened for the first.
pub(super) async fn find(config: &S3Config, metrics: &Arc<Metrics>) -> Result<Setup> {
    config.validate()?;
    let trust = Trust::of(config);
    if config.ca_bundle.is_some() {
        // What was typed is checked whether it is needed or not.
        trust.bundle()?;
    }
    let http = http_client(&trust);
    let of_wire = trust.clone();
    let tls = LazyTls::new(move || match of_wire.bundle()? {
        Some(bundle) => tls_config_with(bundle.roots.clone()),
        None => tls_config_with(system_roots()),
    });
    let wire = wire(config, tls.clone(), metrics);
    if let Some(endpoint) = known_endpoint(config) {
        wire.connect_early(&endpoint);
    }
    Rules::prepare();
    let sdk_config = load(config, http.clone()).await;
    let endpoint_url = endpoint_url(config, &sdk_config);
    let endpoint = endpoint_url
        .as_deref()
        .map(|url| check_url("endpoint-url", url))
        .transpose()?;
    check_secrecy(config, endpoint.as_ref())?;
    let host = endpoint.as_ref().and_then(|uri| uri.host());
    let path_style = config
        .force_path_style
        .unwrap_or_else(|| host.is_some_and(needs_path_style));
    let credentials = sdk_config
        .credentials_provider()
        .filter(|_| !config.anonymous)
        .map(|provider| Arc::new(CredentialCache::new(provider)));
    let region = sdk_config
        .region()
        .map_or(FALLBACK_REGION, Region::as_ref)
        .to_owned();
    let proxy = proxy(endpoint_url.as_deref(), &region);
    let transport = transport(config, proxy.as_deref());
    let is_plain = |url: &str| url.starts_with("http:");
    if !endpoint_url.as_deref().is_some_and(is_plain) {
        match transport {
            // They are there when the first connection is.
            Transport::Direct => tls.prepare(),
            Transport::Stock => drop(trust.bundle()?),
        }
    }
    let http = match transport {
        Transport::Direct => SharedHttpClient::new(WireHttpClient::new(wire.clone(), http)),
        Transport::Stock => http,
    };
    let http = SharedHttpClient::new(TimedSessions::new(http, config.progress_timeout));
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
        transport,
        proxy,
        sdk,
        region,
        rules: Rules::new(
            endpoint_url.clone(),
            path_style,
            sdk_config.use_fips().unwrap_or(false),
            sdk_config.use_dual_stack().unwrap_or(false),
        ),
        endpoint_url,
        credentials,
        wire,
    })
}

/// Where the first request will go over our own transport, if the configuration alone tells: not with buckets in host
/// names, nor through a proxy.
fn known_endpoint(config: &S3Config) -> Option<Endpoint> {
    let uri = check_url("endpoint-url", config.endpoint_url.as_deref()?).ok()?;
    check_secrecy(config, Some(&uri)).ok()?;
    let in_path = config.force_path_style;
    let in_path = in_path.unwrap_or_else(|| uri.host().is_some_and(needs_path_style));
    let is_direct = config.transport == Transport::Direct
        && proxy(config.endpoint_url.as_deref(), FALLBACK_REGION).is_none();
    Endpoint::of(&uri).ok().filter(|_| in_path && is_direct)
}

/// Our own transport, trusting what the stock one trusts.
fn wire(config: &S3Config, tls: LazyTls, metrics: &Arc<Metrics>) -> Wire {
    Wire::new(WireConfig {
        connect_timeout: config.connect_timeout,
        progress_timeout: config.progress_timeout,
        first_byte_timeout: config.first_byte_timeout,
        idle_timeout: IDLE_TIMEOUT,
        tls: Some(tls),
        metrics: metrics.clone(),
        ..WireConfig::default()
    })
}

async fn load(config: &S3Config, http: SharedHttpClient) -> SdkConfig {
    let mut profile_region = ProfileFileRegionProvider::builder();
    let mut loader = aws_config::defaults(BehaviorVersion::latest()).http_client(http.clone());
    if let Some(profile) = &config.profile {
        profile_region = profile_region.profile_name(profile);
        loader = loader.profile_name(profile);
        // Named outright, it comes before keys in the environment, as with the AWS CLI: those may be another account's.
        let provider = ProviderConfig::without_region().with_http_client(http.clone());
        let credentials = ProfileFileCredentialsProvider::builder()
            .configure(&provider)
            .profile_name(profile)
            .build();
        loader = loader.credentials_provider(credentials);
    }
    if config.anonymous {
        loader = loader.no_credentials();
    }
    if let Some(key) = &config.access_key {
        let token = key.session_token.clone();
        let key = Credentials::new(&key.id, &key.secret, token, None, "S3Config");
        loader = loader.credentials_provider(key);
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
        .map(with_closed_path)
}

/// One spelling for one endpoint: caches know stores by it. The SDK's rules glue a bucket to the endpoint's path as it is:
/// `/base` would become `/basebucket`.
fn with_closed_path(url: String) -> String {
    let has_path = url.parse().is_ok_and(|uri: http::Uri| uri.path().len() > 1);
    let bare = url.trim_end_matches('/');
    match has_path {
        true => format!("{bare}/"),
        false => bare.to_owned(),
    }
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
    builder = builder.interceptor(WholeListings);
    if config.checksums != ChecksumPolicy::Off {
        builder = builder.interceptor(ChecksumMode);
    }
    builder
}

/// The certificates that are trusted instead of the system's, in both transports' forms.
struct Bundle {
    pem: Vec<u8>,
    roots: RootCertStore,
}

/// Whom to trust: the bundle of the flag or of `AWS_CA_BUNDLE`, or else the system's certificates. Read when the first
/// connection needs it: parsing a hundred and forty certificates takes a millisecond, and plain HTTP needs none.
#[derive(Clone)]
struct Trust(OnUse<Result<Option<Bundle>>>);

impl Trust {
    fn of(config: &S3Config) -> Self {
        let from_env = || {
            std::env::var_os("AWS_CA_BUNDLE")
                .filter(|path| !path.is_empty())
                .map(PathBuf::from)
        };
        let path = config.ca_bundle.clone().or_else(from_env);
        Self(OnUse::of(move || path.map(ca_bundle).transpose()))
    }

    fn bundle(&self) -> Result<Option<&Bundle>> {
        match self.0.get() {
            Ok(bundle) => Ok(bundle.as_ref()),
            Err(error) => Err(error.clone()),
        }
    }

    fn of_stock(&self) -> Result<TlsContext> {
        let store = match self.bundle()? {
            Some(bundle) => TrustStore::empty().with_pem_certificate(bundle.pem.as_slice()),
            // The SDK's connector asserts that there are some.
            None => TrustStore::empty().with_native_roots(!system_roots().is_empty()),
        };
        let tls = TlsContext::builder().with_trust_store(store).build();
        Ok(tls.unwrap_or_default())
    }
}

/// Reads a bundle, and makes sure that it holds certificates.
fn ca_bundle(path: PathBuf) -> Result<Bundle> {
    // A setting that names nothing is an unusable setting, whatever the file system calls it.
    let pem = std::fs::read(&path)
        .map_err(|error| Error::config("ca-bundle", format!("{}: {error}", path.display())))?;
    let mut roots = RootCertStore::empty();
    let usable = CertificateDer::pem_slice_iter(&pem)
        .all(|certificate| certificate.is_ok_and(|certificate| roots.add(certificate).is_ok()));
    if usable && !roots.is_empty() {
        return Ok(Bundle { pem, roots });
    }
    Err(Error::config(
        "ca-bundle",
        format!("{} holds no certificates in PEM form", path.display()),
    ))
}

/// The system's certificates, read once. A system without any can still use plain HTTP or a bundle; over TLS it
/// learns that the server's certificate is not trusted.
fn system_roots() -> RootCertStore {
    static ROOTS: LazyLock<RootCertStore> = LazyLock::new(|| {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        roots
    });
    ROOTS.clone()
}

/// The stock client: rustls with ring; certificates from the bundle or else the system; proxies of the environment.
fn http_client(trust: &Trust) -> SharedHttpClient {
    let (direct, proxied) = (trust.clone(), trust.clone());
    SharedHttpClient::new(ByHost {
        direct: OnUse::of(move || stock(direct, None)),
        proxied: OnUse::of(move || stock(proxied, Some(ProxyConfig::from_env()))),
    })
}

fn stock(trust: Trust, proxy: Option<ProxyConfig>) -> SharedHttpClient {
    let tls = match trust.of_stock() {
        Ok(tls) => tls,
        Err(error) => return SharedHttpClient::new(Untrusting(error)),
    };
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

/// A client whose bundle cannot be read: it says so, and does not trust the system's certificates instead.
#[derive(Debug, Clone)]
struct Untrusting(Error);

impl HttpClient for Untrusting {
    fn http_connector(
        &self,
        _: &HttpConnectorSettings,
        _: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}

impl HttpConnector for Untrusting {
    fn call(&self, _: HttpRequest) -> HttpConnectorFuture {
        HttpConnectorFuture::ready(Err(ConnectorError::user(self.0.clone().into())))
    }
}

/// The proxy that requests to the endpoint go through.
fn proxy(endpoint_url: Option<&str>, region: &str) -> Option<String> {
    let url = match endpoint_url {
        Some(url) => url.to_owned(),
        None => format!("https://s3.{region}.amazonaws.com"),
    };
    let endpoint = Endpoint::of(&url.parse().ok()?).ok()?;
    match is_loopback(&endpoint.host) {
        true => None,
        false => proxy_of(&endpoint, |name| std::env::var(name).ok()),
    }
}

/// Our own transport speaks to the endpoint itself; behind a proxy only the stock one can.
fn transport(config: &S3Config, proxy: Option<&str>) -> Transport {
    match proxy {
        Some(proxy) if config.transport == Transport::Direct => {
            tracing::info!(
                proxy,
                "a proxy is set for the endpoint: using the stock transport"
            );
            Transport::Stock
        }
        _ => config.transport,
    }
}

/// Requests to this machine and to the metadata service never go through a proxy, as in Go and botocore.
#[derive(Debug)]
struct ByHost<C> {
    direct: C,
    proxied: C,
}

impl HttpClient for ByHost<OnUse<SharedHttpClient>> {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        let connector = |client: &OnUse<SharedHttpClient>| {
            let (client, settings, components) =
                (client.clone(), settings.clone(), components.clone());
            OnUse::of(move || client.get().http_connector(&settings, &components))
        };
        SharedHttpConnector::new(ByHost {
            direct: connector(&self.direct),
            proxied: connector(&self.proxied),
        })
    }
}

/// What is made when it is first used. The stock client and its connectors take milliseconds, most of them for the
/// system's certificates, and a job whose requests all go over our own transport needs none of it.
struct OnUse<T>(Arc<LazyLock<T, Box<dyn FnOnce() -> T + Send>>>);

impl<T> OnUse<T> {
    fn of(make: impl FnOnce() -> T + Send + 'static) -> Self {
        Self(Arc::new(LazyLock::new(Box::new(make))))
    }

    fn get(&self) -> &T {
        &self.0
    }
}

impl<T> Clone for OnUse<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> std::fmt::Debug for OnUse<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OnUse").finish_non_exhaustive()
    }
}

impl HttpConnector for ByHost<OnUse<SharedHttpConnector>> {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let uri = request.uri().parse::<http::Uri>().unwrap_or_default();
        let host = uri.host().unwrap_or_default();
        if is_loopback(host) || is_metadata_service(host) {
            return self.direct.get().call(request);
        }
        let sent = self.proxied.get().call(request);
        HttpConnectorFuture::new(async move { sent.await.map_err(|error| named(&uri, error)) })
    }
}

/// A lookup that failed, with the name that was looked up: hyper does not tell it.
fn named(uri: &http::Uri, error: ConnectorError) -> ConnectorError {
    let is_direct = |endpoint| proxy_of(&endpoint, |name| std::env::var(name).ok()).is_none();
    let said = refusal::with_causes(&error);
    // Behind a proxy it is the proxy's name that was looked up.
    if !said.contains("dns error") || !Endpoint::of(uri).is_ok_and(is_direct) {
        return error;
    }
    let host = uri.host().unwrap_or_default().to_owned();
    let failed = refusal::LookupFailed { host, said };
    ConnectorError::io(failed.into())
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

#[cfg(test)]
mod tests {
    use super::*;

    async fn set_up(url: &str) -> Wire {
        let config = S3Config {
            endpoint_url: Some(url.into()),
            anonymous: true,
            ..S3Config::default()
        };
        find(&config, &Arc::default()).await.unwrap().wire
    }

    /// For plain HTTP none are read; for TLS all are, before the first request.
    #[tokio::test]
    async fn certificates_are_read_for_tls_only() {
        let has_read = |wire: &Wire| format!("{wire:?}").contains("LazyTls(true)");
        let plain = set_up("http://127.0.0.1:1").await;
        let encrypted = set_up("https://127.0.0.1:1").await;
        tokio::time::timeout(Duration::from_secs(20), async {
            while !has_read(&encrypted) {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("they are read ahead");
        assert!(!has_read(&plain));
    }

    #[test]
    fn a_bundle_that_cannot_be_read_is_not_replaced_by_the_system() {
        let config = S3Config {
            ca_bundle: Some("/no/such/bundle.pem".into()),
            ..S3Config::default()
        };
        let trust = Trust::of(&config);
        assert!(matches!(trust.of_stock(), Err(Error::Config { .. })));
    }
}
