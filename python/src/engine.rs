//! One engine per process and configuration, made at the first read.
//!
//! Whoever reads with the same settings shares connections, credentials, memory and requests in flight. A forked child
//! makes its own: the map is the process's.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use pyo3::prelude::*;
use standpipe::cache::{BlockCache, CachedClient};
use standpipe::client::{LocalClient, ObjectClient, S3Client, S3Config, SchemeClient, resilient};
use standpipe::error::Error;
use standpipe::fastfile::read::{OpenFiles, ReadConfig};
use standpipe::metrics::{Metrics, Snapshot};
use standpipe::object::Scheme;
use standpipe::prefetch::{PrefetchConfig, Prefetcher};
use standpipe::runtime::PerProcess;

use crate::config::Config;
use crate::error::to_py;
use crate::wait::wait;

/// Engines that are kept for the next reader at most; those in use don't count. Programs have one or two settings.
const KEPT: usize = 8;

type Key = (Config, bool);

type Engines = Vec<(Key, Arc<Engine>)>;

static ENGINES: PerProcess<Mutex<Engines>> = PerProcess::new();

/// What reads.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) prefetcher: Prefetcher,
    pub(crate) config: PrefetchConfig,
    /// The store's address, for whoever tells stores apart; `None` is AWS.
    pub(crate) endpoint_url: Option<String>,
    /// The client below the cache.
    pub(crate) client: Arc<dyn ObjectClient>,
    metrics: Arc<Metrics>,
    /// Whether what is read is kept on disk.
    pub(crate) is_cached: bool,
    files: OnceLock<OpenFiles>,
}

impl Engine {
    /// The process's engine for `config`; it can read S3 if one of the schemes wants that.
    pub(crate) fn get(py: Python<'_>, config: &Config, schemes: &[Scheme]) -> PyResult<Arc<Self>> {
        if schemes.contains(&Scheme::Memory) {
            let reason = "lives in one process only: use s3://bucket/key, file:///path or a path";
            return Err(to_py(py, &Error::config("memory://", reason)));
        }
        let key = (config.clone(), schemes.contains(&Scheme::S3));
        if let Some(found) = find(&engines(), &key) {
            return Ok(found);
        }
        // Credentials may take seconds: no lock meanwhile. Whoever is second uses what the first has made.
        let made = Arc::new(Self::connect(py, config, key.1)?);
        let mut engines = engines();
        if let Some(found) = find(&engines, &key) {
            return Ok(found);
        }
        make_room(&mut engines);
        engines.push((key, made.clone()));
        Ok(made)
    }

    fn connect(py: Python<'_>, config: &Config, with_s3: bool) -> PyResult<Self> {
        let engine = config.engine(py)?;
        let metrics = Arc::<Metrics>::default();
        let local: Arc<dyn ObjectClient> = Arc::new(LocalClient::new(metrics.clone()));
        if !with_s3 {
            return Self::over(local, engine, metrics, None, None)
                .map_err(|error| to_py(py, &error));
        }
        let s3 = wait(
            py,
            connect_s3(config.s3(py)?, metrics.clone(), config.profile()),
        )?;
        let endpoint_url = s3.endpoint_url().map(str::to_owned);
        let s3 = resilient(Arc::new(s3), engine.most_requests(), &metrics);
        let client: Arc<dyn ObjectClient> = Arc::new(SchemeClient::new(s3, local));
        let cache = config.cache(endpoint_url.as_deref());
        let made = py.detach(|| {
            let cache = cache
                .map(|cache| BlockCache::open(cache, metrics.clone()))
                .transpose()?;
            Self::over(client, engine, metrics, endpoint_url, cache)
        });
        made.map_err(|error| to_py(py, &error))
    }

    fn over(
        client: Arc<dyn ObjectClient>,
        config: PrefetchConfig,
        metrics: Arc<Metrics>,
        endpoint_url: Option<String>,
        cache: Option<BlockCache>,
    ) -> Result<Self, Error> {
        let is_cached = cache.is_some();
        let reads: Arc<dyn ObjectClient> = match cache {
            Some(cache) => Arc::new(CachedClient::new(client.clone(), cache)),
            None => client.clone(),
        };
        Ok(Self {
            prefetcher: Prefetcher::new(reads, config.clone(), metrics.clone())?,
            config,
            endpoint_url,
            client,
            metrics,
            is_cached,
            files: OnceLock::new(),
        })
    }

    /// Where objects are read from and listed: through the cache, if there is one.
    pub(crate) fn reads(&self) -> &Arc<dyn ObjectClient> {
        self.prefetcher.client()
    }

    /// Size of a ranged request.
    pub(crate) fn part_bytes(&self) -> usize {
        usize::try_from(self.config.part_bytes).unwrap_or(usize::MAX)
    }

    /// Requests in flight, at most.
    pub(crate) fn concurrency(&self) -> usize {
        self.config.concurrency
    }

    /// Its open files: they have memory of their own, as much as the streams have.
    pub(crate) fn files(&self) -> Result<&OpenFiles, Error> {
        if self.files.get().is_none() {
            let config = reads(&self.config, self.is_cached);
            let files = OpenFiles::new(self.reads().clone(), config, self.metrics.clone())?;
            let _ = self.files.set(files);
        }
        self.files.get().ok_or(Error::Cancelled)
    }

    /// Its counters now.
    pub(crate) fn snapshot(&self) -> Snapshot {
        self.prefetcher.snapshot()
    }
}

/// How files are read by an engine that is configured so.
pub(crate) fn reads(engine: &PrefetchConfig, over_cache: bool) -> ReadConfig {
    let mut reads = ReadConfig::of(engine);
    reads.over_cache = over_cache;
    while reads.block_bytes > reads.part_bytes {
        reads.block_bytes /= 2;
    }
    reads
}

async fn connect_s3(
    config: S3Config,
    metrics: Arc<Metrics>,
    profile: Option<&str>,
) -> Result<S3Client, Error> {
    match (S3Client::connect(config, metrics).await, profile) {
        (Err(Error::Credentials { reason }), Some(name)) => Err(Error::Credentials {
            reason: format!("the profile {name:?} gives none, or is not there: {reason}"),
        }),
        (result, _) => result,
    }
}

fn engines() -> MutexGuard<'static, Engines> {
    let engines = ENGINES.get(Mutex::default);
    engines.lock().unwrap_or_else(PoisonError::into_inner)
}

fn find(engines: &[(Key, Arc<Engine>)], key: &Key) -> Option<Arc<Engine>> {
    let (_, engine) = engines.iter().find(|(known, _)| known == key)?;
    Some(engine.clone())
}

/// Lets go of the oldest engines that nobody uses.
fn make_room(engines: &mut Engines) {
    while engines.len() >= KEPT {
        let idle = engines
            .iter()
            .position(|(_, engine)| Arc::strong_count(engine) == 1);
        match idle {
            Some(at) => drop(engines.remove(at)),
            None => return,
        }
    }
}
