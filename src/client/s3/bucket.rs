//! What is known of each bucket: its region, and with it the SDK client that signs for it.
//!
//! Every bucket starts in the configured region. A bucket that lives elsewhere says so in its first refusal
//! (`x-amz-bucket-region`); from then on its requests go there. One SDK client per region is kept, because overriding
//! the region per operation makes the SDK build its plugins anew each time.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, PoisonError, RwLock};

use tokio::sync::OnceCell;

use super::target::{Rules, Target};

/// A bucket, as far as it is known.
#[derive(Debug)]
pub(super) struct Bucket {
    name: Arc<str>,
    pub(super) region: Arc<str>,
    client: Arc<OnUse>,
    target: OnceCell<Option<Target>>,
}

/// The SDK's client of a region, made when it is first used: most requests are signed by hand.
type OnUse = LazyLock<aws_sdk_s3::Client, Box<dyn FnOnce() -> aws_sdk_s3::Client + Send + Sync>>;

impl Bucket {
    /// For what is not signed by hand.
    pub(super) fn client(&self) -> &aws_sdk_s3::Client {
        &self.client
    }

    /// Where its plain GETs go, if they can be signed by hand.
    pub(super) async fn target(&self, rules: &Rules) -> Option<&Target> {
        self.target
            .get_or_init(|| rules.target(&self.name, &self.region))
            .await
            .as_ref()
    }
}

/// All buckets that were spoken to.
#[derive(Debug)]
pub(super) struct Buckets {
    sdk: aws_sdk_s3::config::Builder,
    home: Arc<str>,
    known: RwLock<Known>,
}

#[derive(Debug, Default)]
struct Known {
    buckets: HashMap<Arc<str>, Arc<Bucket>>,
    clients: HashMap<Arc<str>, Arc<OnUse>>,
}

impl Buckets {
    pub(super) fn new(sdk: aws_sdk_s3::config::Builder, home: &str) -> Self {
        Self {
            sdk,
            home: home.into(),
            known: RwLock::default(),
        }
    }

    /// The bucket, in its own region if that is known and in the configured one otherwise.
    pub(super) fn get(&self, name: &str) -> Arc<Bucket> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = known.buckets.get(name) {
            return bucket.clone();
        }
        drop(known);
        self.place(name, &self.home)
    }

    /// Notes where the bucket lives; `false` when that is nothing new.
    pub(super) fn moved(&self, name: &str, seen: &Bucket, region: &str) -> bool {
        if *seen.region == *region || region.is_empty() {
            return false;
        }
        tracing::info!(bucket = name, from = %seen.region, to = region, "the bucket is in another region");
        self.place(name, &region.into());
        true
    }

    fn place(&self, name: &str, region: &Arc<str>) -> Arc<Bucket> {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = known.buckets.get(name)
            && (bucket.region == *region || *region == self.home)
        {
            return bucket.clone();
        }
        let client = known
            .clients
            .entry(region.clone())
            .or_insert_with(|| self.client_in(region))
            .clone();
        let name = Arc::<str>::from(name);
        let bucket = Arc::new(Bucket {
            name: name.clone(),
            region: region.clone(),
            client,
            target: OnceCell::new(),
        });
        known.buckets.insert(name, bucket.clone());
        bucket
    }

    fn client_in(&self, region: &str) -> Arc<OnUse> {
        let region = aws_sdk_s3::config::Region::new(region.to_owned());
        let sdk = self.sdk.clone();
        Arc::new(LazyLock::new(Box::new(move || {
            aws_sdk_s3::Client::from_conf(sdk.region(region).build())
        })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_sdk_s3::config::BehaviorVersion;

    #[test]
    fn a_bucket_is_sought_at_home_until_it_says_where_it_is() {
        let sdk = aws_sdk_s3::config::Builder::new().behavior_version(BehaviorVersion::latest());
        let buckets = Buckets::new(sdk, "us-east-1");
        let at_home = buckets.get("b");
        assert_eq!(&*at_home.region, "us-east-1");
        assert!(!buckets.moved("b", &at_home, "us-east-1"));
        assert!(buckets.moved("b", &at_home, "eu-west-1"));
        assert_eq!(&*buckets.get("b").region, "eu-west-1");
        assert_eq!(&*buckets.get("c").region, "us-east-1");
    }
}
