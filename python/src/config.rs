//! The settings: the command line's flags as keywords, and its `STANDPIPE_*` variables.

use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use standpipe::cache::CacheConfig;
use standpipe::checksum::ChecksumPolicy;
use standpipe::cli::Size;
use standpipe::client::{S3Config, SseCustomerKey, Transport};
use standpipe::error::Error;
use standpipe::prefetch::{PrefetchConfig, model_concurrency};

use crate::error::{config as refused, to_py};

const SSE_C_KEY_BYTES: usize = 32;
/// What the engine takes at least, and how many of them hide latency.
const SMALLEST_PART_BYTES: u64 = 64 << 10;
const LEAST_PARTS: u64 = 4;

/// The link that the number of requests in flight is meant for: what the engine's default assumes, too.
const LINK_GBPS: f64 = 10.0;

/// Where the data is and how it is read; see `standpipe.Options` for the keywords.
///
/// A value: hashable, comparable, picklable. It opens nothing.
#[pyclass(frozen, eq, hash, module = "standpipe._standpipe")]
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Config {
    endpoint_url: Option<String>,
    region: Option<String>,
    profile: Option<String>,
    no_sign_request: bool,
    request_payer: bool,
    sse_c_key: Option<Vec<u8>>,
    ca_bundle: Option<PathBuf>,
    transport: String,
    memory: Option<u64>,
    part_size: Option<u64>,
    concurrency: Option<usize>,
    checksums: String,
    cache: Option<PathBuf>,
    cache_size: Option<u64>,
}

/// A number of bytes, or a size as people type it.
#[derive(Debug, FromPyObject)]
pub(crate) enum SizeArgument {
    Bytes(u64),
    Text(String),
}

impl SizeArgument {
    pub(crate) fn bytes(self) -> Result<u64, Error> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Text(text) => text.parse().map(|Size(bytes)| bytes),
        }
    }
}

#[pymethods]
impl Config {
    #[new]
    #[pyo3(signature = (*, endpoint_url=None, region=None, profile=None, no_sign_request=None, request_payer=None,
        sse_c_key=None, ca_bundle=None, transport=None, memory=None, part_size=None, concurrency=None, checksums=None,
        cache=None, cache_size=None))]
    #[expect(
        clippy::too_many_arguments,
        reason = "they are the keywords that users type, each optional and named"
    )]
    fn new(
        py: Python<'_>,
        endpoint_url: Option<String>,
        region: Option<String>,
        profile: Option<String>,
        no_sign_request: Option<bool>,
        request_payer: Option<bool>,
        sse_c_key: Option<Vec<u8>>,
        ca_bundle: Option<PathBuf>,
        transport: Option<String>,
        memory: Option<SizeArgument>,
        part_size: Option<SizeArgument>,
        concurrency: Option<usize>,
        checksums: Option<String>,
        cache: Option<PathBuf>,
        cache_size: Option<SizeArgument>,
    ) -> PyResult<Self> {
        let told = |error: Error| to_py(py, &error);
        let size = |given: Option<SizeArgument>, name: &str| {
            let typed = || variable(name).map(SizeArgument::Text);
            given
                .or_else(typed)
                .map(SizeArgument::bytes)
                .transpose()
                .map_err(told)
        };
        let config = Self {
            endpoint_url: endpoint_url.or_else(|| variable("ENDPOINT_URL")),
            region: region.or_else(|| variable("REGION")),
            profile: profile.or_else(|| variable("PROFILE")),
            no_sign_request: no_sign_request
                .map_or_else(|| switch("NO_SIGN_REQUEST"), Ok)
                .map_err(told)?,
            request_payer: request_payer
                .map_or_else(requester_pays, Ok)
                .map_err(told)?,
            sse_c_key,
            ca_bundle: ca_bundle.or_else(|| variable("CA_BUNDLE").map(PathBuf::from)),
            transport: transport
                .or_else(|| variable("TRANSPORT"))
                .unwrap_or_else(|| "direct".into()),
            memory: size(memory, "MEMORY")?,
            part_size: size(part_size, "PART_SIZE")?,
            concurrency: concurrency
                .map_or_else(|| number("CONCURRENCY"), |n| Ok(Some(n)))
                .map_err(told)?,
            checksums: checksums
                .or_else(|| variable("CHECKSUMS"))
                .unwrap_or_else(|| "when-possible".into()),
            cache: cache.or_else(|| variable("CACHE").map(PathBuf::from)),
            cache_size: size(cache_size, "CACHE_SIZE")?,
        };
        config.check(py)?;
        Ok(config)
    }

    /// The same settings for one of `shares` processes that are to keep to this memory and these requests together. Parts are
    /// smaller where its share of the memory would hold fewer than four.
    fn divided(&self, py: Python<'_>, shares: u64) -> PyResult<Self> {
        let whole = self.engine(py)?;
        let shares = shares.max(1);
        let memory = whole.memory_bytes / shares;
        let mut part_size = whole.part_bytes;
        while part_size > SMALLEST_PART_BYTES && part_size * LEAST_PARTS > memory {
            part_size /= 2;
        }
        let concurrency = whole.concurrency as u64 / shares;
        let divided = Self {
            memory: Some(memory),
            part_size: Some(part_size.max(SMALLEST_PART_BYTES)),
            concurrency: Some(usize::try_from(concurrency.max(2)).unwrap_or(usize::MAX)),
            ..self.clone()
        };
        divided.check(py)?;
        Ok(divided)
    }

    /// The same for many objects of `mean_bytes` each: as many requests in flight as fill a link with those, where the
    /// user has not said how many. At the default, which is for parts, small objects wait for first bytes.
    fn for_objects(&self, py: Python<'_>, mean_bytes: u64) -> PyResult<Self> {
        let part_bytes = self.engine(py)?.part_bytes;
        let mut config = self.clone();
        if config.concurrency.is_none() && mean_bytes < part_bytes {
            config.concurrency = Some(model_concurrency(LINK_GBPS, mean_bytes.max(1)));
        }
        Ok(config)
    }

    /// For pickle: what it was made with, the environment's part included.
    fn __getnewargs_ex__<'py>(
        &self,
        py: Python<'py>,
    ) -> PyResult<(Bound<'py, PyTuple>, Bound<'py, PyDict>)> {
        Ok((PyTuple::empty(py), self.keywords(py, true)?))
    }

    /// What it says, without the key.
    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let mut said = Vec::new();
        for (name, value) in self.keywords(py, false)? {
            if !value.is_none() {
                said.push(format!("{name}={}", value.repr()?));
            }
        }
        Ok(format!("Config({})", said.join(", ")))
    }
}

impl Config {
    fn keywords<'py>(&self, py: Python<'py>, with_key: bool) -> PyResult<Bound<'py, PyDict>> {
        let all = PyDict::new(py);
        all.set_item("endpoint_url", &self.endpoint_url)?;
        all.set_item("region", &self.region)?;
        all.set_item("profile", &self.profile)?;
        all.set_item("no_sign_request", self.no_sign_request)?;
        all.set_item("request_payer", self.request_payer)?;
        if with_key {
            all.set_item("sse_c_key", self.sse_c_key.as_deref())?;
        }
        all.set_item("ca_bundle", &self.ca_bundle)?;
        all.set_item("transport", &self.transport)?;
        all.set_item("memory", self.memory)?;
        all.set_item("part_size", self.part_size)?;
        all.set_item("concurrency", self.concurrency)?;
        all.set_item("checksums", &self.checksums)?;
        all.set_item("cache", &self.cache)?;
        all.set_item("cache_size", self.cache_size)?;
        Ok(all)
    }

    /// Refuses at once what can't work; the engine would only at the first read.
    fn check(&self, py: Python<'_>) -> PyResult<()> {
        self.engine(py)?
            .validate()
            .map_err(|error| to_py(py, &error))?;
        self.s3(py)?.validate().map_err(|error| to_py(py, &error))?;
        if self.sse_c_key.is_some() && self.cache.is_some() {
            let reason = "a cache would keep on disk, in plain, what is encrypted with your own key: leave out cache";
            return Err(refused(py, "sse_c_key", reason));
        }
        Ok(())
    }

    /// How the engine reads ahead.
    pub(crate) fn engine(&self, py: Python<'_>) -> PyResult<PrefetchConfig> {
        let mut config = PrefetchConfig::fitting(self.memory, self.part_size, self.concurrency);
        config.checksums = match self.checksums.as_str() {
            "off" => ChecksumPolicy::Off,
            "when-possible" => ChecksumPolicy::WhenPossible,
            "require" => ChecksumPolicy::Require,
            other => {
                let reason = format!("{other:?}: use \"off\", \"when-possible\" or \"require\"");
                return Err(refused(py, "checksums", &reason));
            }
        };
        Ok(config)
    }

    /// How to connect.
    pub(crate) fn s3(&self, py: Python<'_>) -> PyResult<S3Config> {
        let transport = match self.transport.as_str() {
            "direct" => Transport::Direct,
            "stock" => Transport::Stock,
            other => {
                let reason = format!("{other:?}: use \"direct\" or \"stock\"");
                return Err(refused(py, "transport", &reason));
            }
        };
        Ok(S3Config {
            endpoint_url: self.endpoint_url.clone(),
            region: self.region.clone(),
            profile: self.profile.clone(),
            anonymous: self.no_sign_request,
            request_payer: self.request_payer,
            sse_c: self
                .sse_c_key
                .as_deref()
                .map(|key| customer_key(py, key))
                .transpose()?,
            ca_bundle: self.ca_bundle.clone(),
            transport,
            checksums: self.engine(py)?.checksums,
            ..S3Config::default()
        })
    }

    /// What is kept on disk, of a store at this endpoint.
    pub(crate) fn cache(&self, endpoint_url: Option<&str>) -> Option<CacheConfig> {
        let mut config = CacheConfig::new(self.cache.as_ref()?);
        config.namespace = endpoint_url.unwrap_or_default().to_owned();
        config.max_bytes = self.cache_size;
        Some(config)
    }

    /// The profile, for errors: the SDK does not say which one had no credentials.
    pub(crate) fn profile(&self) -> Option<&str> {
        self.profile.as_deref()
    }
}

fn customer_key(py: Python<'_>, key: &[u8]) -> PyResult<SseCustomerKey> {
    let key = <[u8; SSE_C_KEY_BYTES]>::try_from(key);
    let wrong = |_| refused(py, "sse_c_key", "must be the 32 bytes of an AES-256 key");
    key.map(SseCustomerKey::new).map_err(wrong)
}

/// A variable that is set to nothing is one that is not set.
fn variable(name: &str) -> Option<String> {
    let text = std::env::var(format!("STANDPIPE_{name}")).ok()?;
    (!text.is_empty()).then_some(text)
}

/// The command takes the word that S3 does; a switch like the others is understood, too.
fn requester_pays() -> Result<bool, Error> {
    match variable("REQUEST_PAYER").as_deref() {
        Some("requester") => Ok(true),
        _ => switch("REQUEST_PAYER"),
    }
}

fn switch(name: &str) -> Result<bool, Error> {
    let text = variable(name).unwrap_or_default();
    match text.trim().to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "" | "0" | "false" | "no" | "off" => Ok(false),
        _ => Err(Error::config(
            format!("STANDPIPE_{name}"),
            "use 1 or 0, true or false, yes or no, on or off",
        )),
    }
}

fn number(name: &str) -> Result<Option<usize>, Error> {
    let parse = |text: String| {
        text.trim()
            .parse()
            .map_err(|_| Error::config(format!("STANDPIPE_{name}"), "not a number"))
    };
    variable(name).map(parse).transpose()
}
