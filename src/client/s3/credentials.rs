//! One cache of credentials for the SDK and for our own signing.
//!
//! The SDK's chain may ask a file, a process, SSO, STS or the instance's metadata service: milliseconds to seconds.
//! Its answer is kept until shortly before it expires, or until the server says that it has ([`forget`]). Many
//! requests may need new credentials at the same moment; they share one load.
//!
//! [`forget`]: CredentialCache::forget

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, future};
use futures::future::{BoxFuture, Shared};
use futures::{FutureExt, TryFutureExt};

/// Credentials this close to their end are loaded anew. The SDK's own margin is 10 s; a request may wait 5 s for its
/// connection and is signed before. Providers renew theirs minutes ahead, so a load then brings newer ones.
const MARGIN: Duration = Duration::from_secs(20);

type Load = Shared<BoxFuture<'static, Result<Arc<Credentials>, Arc<CredentialsError>>>>;

/// See the module.
pub(super) struct CredentialCache {
    provider: SharedCredentialsProvider,
    held: RwLock<Option<Arc<Credentials>>>,
    /// The load under way; taken out by whoever sees it end.
    load: Mutex<Option<Load>>,
}

impl CredentialCache {
    pub(super) fn new(provider: SharedCredentialsProvider) -> Self {
        Self {
            provider,
            held: RwLock::default(),
            load: Mutex::default(),
        }
    }

    /// The credentials that are good at `now`.
    pub(super) async fn get(
        &self,
        now: SystemTime,
    ) -> Result<Arc<Credentials>, Arc<CredentialsError>> {
        if let Some(held) = self.held(now) {
            return Ok(held);
        }
        let load = self.join_load();
        let loaded = load.clone().await;
        self.finish(&load, &loaded);
        loaded
    }

    /// The credentials at hand, if they are good at `now`.
    pub(super) fn held(&self, now: SystemTime) -> Option<Arc<Credentials>> {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        held.as_ref().filter(|held| is_good(held, now)).cloned()
    }

    /// The server says that these have expired: the next `get` loads.
    pub(super) fn forget(&self) {
        *self.held.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn join_load(&self) -> Load {
        let mut load = self.load.lock().unwrap_or_else(PoisonError::into_inner);
        load.get_or_insert_with(|| {
            let provider = self.provider.clone();
            async move { provider.provide_credentials().await }
                .map_ok(Arc::new)
                .map_err(Arc::new)
                .boxed()
                .shared()
        })
        .clone()
    }

    fn finish(&self, ended: &Load, loaded: &Result<Arc<Credentials>, Arc<CredentialsError>>) {
        let mut load = self.load.lock().unwrap_or_else(PoisonError::into_inner);
        if !load.as_ref().is_some_and(|load| load.ptr_eq(ended)) {
            return;
        }
        *load = None;
        if let Ok(credentials) = loaded {
            *self.held.write().unwrap_or_else(PoisonError::into_inner) = Some(credentials.clone());
        }
    }
}

fn is_good(credentials: &Credentials, now: SystemTime) -> bool {
    credentials
        .expiry()
        .is_none_or(|expiry| now + MARGIN < expiry)
}

impl ProvideCredentials for CredentialCache {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async {
            match self.get(SystemTime::now()).await {
                Ok(credentials) => Ok((*credentials).clone()),
                Err(error) => Err(CredentialsError::provider_error(error)),
            }
        })
    }
}

impl std::fmt::Debug for CredentialCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CredentialCache").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[derive(Debug)]
    struct Counting {
        loads: Arc<AtomicU64>,
        lifetime: Option<Duration>,
    }

    impl ProvideCredentials for Counting {
        fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            future::ProvideCredentials::new(async {
                tokio::task::yield_now().await;
                let n = self.loads.fetch_add(1, Ordering::Relaxed);
                let expiry = self
                    .lifetime
                    .map(|lifetime| SystemTime::UNIX_EPOCH + lifetime);
                Ok(Credentials::new(
                    format!("AK{n}"),
                    "secret",
                    None,
                    expiry,
                    "test",
                ))
            })
        }
    }

    fn cache(lifetime: Option<u64>) -> (CredentialCache, Arc<AtomicU64>) {
        let loads = Arc::new(AtomicU64::new(0));
        let provider = Counting {
            loads: loads.clone(),
            lifetime: lifetime.map(Duration::from_secs),
        };
        (
            CredentialCache::new(SharedCredentialsProvider::new(provider)),
            loads,
        )
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[tokio::test]
    async fn many_askers_share_one_load_and_its_result_is_kept() {
        let (cache, loads) = cache(None);
        let all = futures::future::join_all((0..50).map(|_| cache.get(at(0)))).await;
        assert!(
            all.iter()
                .all(|got| got.as_ref().unwrap().access_key_id() == "AK0")
        );
        cache.get(at(1_000_000)).await.unwrap();
        assert_eq!(loads.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn what_expires_or_is_forgotten_is_loaded_anew() {
        let (cache, loads) = cache(Some(100));
        cache.get(at(0)).await.unwrap();
        cache.get(at(79)).await.unwrap();
        assert_eq!(loads.load(Ordering::Relaxed), 1);
        cache.get(at(80)).await.unwrap();
        assert_eq!(loads.load(Ordering::Relaxed), 2);
        cache.forget();
        assert_eq!(cache.get(at(0)).await.unwrap().access_key_id(), "AK2");
    }
}
