//! Until when something may take: set, and brought nearer, while others already wait for it.

use std::time::Instant;

use tokio::sync::watch;

/// A time limit that may come. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Cutoff(watch::Sender<Option<Instant>>);

impl Cutoff {
    /// Nothing goes on after `at`, or after what was said before, if that is sooner.
    pub(super) fn set(&self, at: Instant) {
        self.0.send_if_modified(|limit| {
            let sooner = limit.is_none_or(|limit| at < limit);
            if sooner {
                *limit = Some(at);
            }
            sooner
        });
    }

    /// What the work gives, unless it is over before.
    pub(super) async fn or_over<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.passed() => None,
            result = work => Some(result),
        }
    }

    async fn passed(&self) {
        let mut limits = self.0.subscribe();
        loop {
            let limit = *limits.borrow_and_update();
            let until = async {
                match limit {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = until => return,
                // Its other end is in here.
                _ = limits.changed() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn work_ends_at_the_limit_also_when_that_is_set_later() {
        let cutoff = Cutoff::default();
        assert_eq!(cutoff.or_over(async { 7 }).await, Some(7));
        let waits = {
            let cutoff = cutoff.clone();
            tokio::spawn(async move { cutoff.or_over(std::future::pending::<()>()).await })
        };
        tokio::task::yield_now().await;
        let now = Instant::now();
        cutoff.set(now + Duration::from_secs(3600));
        cutoff.set(now);
        // Later is no limit any more.
        cutoff.set(now + Duration::from_secs(3600));
        assert_eq!(waits.await.unwrap(), None);
        assert_eq!(cutoff.or_over(async { 7 }).await, None);
    }
}
