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
use super::target::Rules;
use crate::checksum::ChecksumPolicy;
use crate::client::wire::{
    Endpoint, Wire, WireConfig, WireHttpClient, is_proxied, tls_config_with,
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
    pub(super) wire: Wire,
}

/// Reads the environment and the profile. Nothing is sent.
pub(super) async fn find(config: &S3Config, metrics: &Arc<Metrics>) -> Result<Setup> {
    config.validate()?;
    let bundle = ca_bundle(config)?;
    let http = http_client(bundle.as_ref());
    let wire = wire(config, bundle, metrics)?;
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
    let transport = transport(config, endpoint_url.as_deref(), &region);
    let http = match transport {
        Transport::Direct => SharedHttpClient::new(WireHttpClient::new(wire.clone(), http)),
        Transport::Stock => http,
    };
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

/// Our own transport, trusting what the stock one trusts.
fn wire(config: &S3Config, bundle: Option<Bundle>, metrics: &Arc<Metrics>) -> Result<Wire> {
    let roots = match bundle {
        Some(bundle) => bundle.roots,
        None => system_roots(),
    };
    Ok(Wire::new(WireConfig {
        connect_timeout: config.connect_timeout,
        progress_timeout: config.progress_timeout,
        first_byte_timeout: config.first_byte_timeout,
        idle_timeout: IDLE_TIMEOUT,
        tls: Some(tls_config_with(roots)?),
        metrics: metrics.clone(),
        ..WireConfig::default()
    }))
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

/// The SDK's rules glue a bucket to the endpoint's path as it is: `/base` would become `/basebucket`.
fn with_closed_path(mut url: String) -> String {
    let has_path = url.parse().is_ok_and(|uri: http::Uri| uri.path().len() > 1);
    if has_path && !url.ends_with('/') {
        url.push('/');
    }
    url
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

/// The certificates that are trusted instead of the system's, in both transports' forms.
struct Bundle {
    pem: Vec<u8>,
    roots: RootCertStore,
}

/// Reads the bundle of the flag or of `AWS_CA_BUNDLE`, and makes sure that it holds certificates.
fn ca_bundle(config: &S3Config) -> Result<Option<Bundle>> {
    let from_env = || {
        std::env::var_os("AWS_CA_BUNDLE")
            .filter(|path| !path.is_empty())
            .map(PathBuf::from)
    };
    let Some(path) = config.ca_bundle.clone().or_else(from_env) else {
        return Ok(None);
    };
    let pem = std::fs::read(&path).map_err(|error| Error::io(&path, error))?;
    let mut roots = RootCertStore::empty();
    let usable = CertificateDer::pem_slice_iter(&pem)
        .all(|certificate| certificate.is_ok_and(|certificate| roots.add(certificate).is_ok()));
    if usable && !roots.is_empty() {
        return Ok(Some(Bundle { pem, roots }));
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
fn http_client(bundle: Option<&Bundle>) -> SharedHttpClient {
    let trust = match bundle {
        Some(bundle) => TrustStore::empty().with_pem_certificate(bundle.pem.as_slice()),
        // The SDK's connector asserts that there are some.
        None => TrustStore::empty().with_native_roots(!system_roots().is_empty()),
    };
    let tls = TlsContext::builder().with_trust_store(trust).build();
    let tls = tls.unwrap_or_default();
    SharedHttpClient::new(ByHost {
        direct: stock(tls.clone(), None),
        proxied: stock(tls, Some(ProxyConfig::from_env())),
    })
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

/// Our own transport speaks to the endpoint itself; behind a proxy only the stock one can.
fn transport(config: &S3Config, endpoint_url: Option<&str>, region: &str) -> Transport {
    let url = match endpoint_url {
        Some(url) => url.to_owned(),
        None => format!("https://s3.{region}.amazonaws.com"),
    };
    let endpoint = url.parse().ok().and_then(|uri| Endpoint::of(&uri).ok());
    let needs_proxy = endpoint.is_some_and(|endpoint| {
        !is_loopback(&endpoint.host) && is_proxied(&endpoint, |name| std::env::var(name).ok())
    });
    if needs_proxy && config.transport == Transport::Direct {
        tracing::info!(endpoint = %url, "a proxy is set for this endpoint: using the stock transport");
        return Transport::Stock;
    }
    config.transport
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
