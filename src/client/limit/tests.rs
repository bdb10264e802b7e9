use super::*;
use crate::client::{Behaviour, FaultClient, FaultKind, MemoryClient, Schedule};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

fn uri() -> ObjectUri {
    "memory://m/k".parse().unwrap()
}

fn memory() -> Arc<MemoryClient> {
    let memory = MemoryClient::default();
    memory.put(uri(), vec![1; 10]);
    Arc::new(memory)
}

/// Takes a second for each HEAD and keeps count of those under way.
#[derive(Debug, Default)]
struct Counting {
    now: AtomicU32,
    most: AtomicU32,
    order: Mutex<Vec<String>>,
}

impl ObjectClient for Counting {
    fn head<'a>(&'a self, uri: &'a ObjectUri) -> BoxFuture<'a, Result<ObjectMeta>> {
        async move {
            self.order.lock().unwrap().push(uri.key().to_string());
            self.most
                .fetch_max(self.now.fetch_add(1, Relaxed) + 1, Relaxed);
            tokio::time::sleep(Duration::from_secs(1)).await;
            self.now.fetch_sub(1, Relaxed);
            Err(Error::Cancelled)
        }
        .boxed()
    }

    fn get<'a>(
        &'a self,
        _: &'a ObjectId,
        _: ByteRange,
        _: &'a mut PartBuf,
    ) -> BoxFuture<'a, Result<GetMeta>> {
        unreachable!("only HEADs are sent")
    }

    fn list(&self, _: &ObjectUri, _: Depth) -> BoxStream<'static, Result<ListEntry>> {
        stream::empty().boxed()
    }
}

#[tokio::test(start_paused = true)]
async fn no_more_than_the_limit_and_in_the_order_of_arrival() {
    let counting = Arc::new(Counting::default());
    let limit = LimitClient::new(
        counting.clone(),
        LimitConfig { most_requests: 3 },
        Arc::default(),
    );
    let uris: Vec<ObjectUri> = (0..10).map(|at| uri().with_key(format!("{at}"))).collect();
    let begun = Instant::now();
    futures::future::join_all(uris.iter().map(|uri| limit.head(uri))).await;
    assert_eq!(counting.most.load(Relaxed), 3);
    assert_eq!(begun.elapsed().as_secs(), 4);
    let keys: Vec<&str> = uris.iter().map(ObjectUri::key).collect();
    assert_eq!(*counting.order.lock().unwrap(), keys);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_request_gives_its_slot_or_its_place_back() {
    let gate = Gate::new(1, Arc::default());
    let held = gate.enter().await;
    let waiting = tokio::time::timeout(Duration::from_secs(1), gate.enter()).await;
    assert!(waiting.is_err());
    drop(held);
    let again = tokio::time::timeout(Duration::from_secs(1), gate.enter()).await;
    assert!(again.is_ok());
}

fn throttled() -> Result<()> {
    Err(Error::Throttled {
        uri: String::new(),
        offset: None,
        answer: Box::new(crate::error::Answer::default()),
    })
}

/// Slots in use when the target falls are retired as they come back, and are made anew when it rises.
#[tokio::test(start_paused = true)]
async fn the_gate_narrows_under_way_and_widens_again() {
    let metrics = Arc::new(Metrics::default());
    let gate = Gate::new(8, metrics.clone());
    let mut held: Vec<_> = futures::future::join_all((0..8).map(|_| gate.enter())).await;
    gate.observe(&throttled());
    assert_eq!(metrics.concurrency_target.get(), 4);
    held.truncate(4);
    assert_eq!(gate.semaphore.available_permits(), 0);
    held.truncate(3);
    assert_eq!(gate.semaphore.available_permits(), 1);
    for _ in 0..20 {
        tokio::time::advance(Duration::from_secs(1)).await;
        gate.observe(&Ok(()));
    }
    assert_eq!(metrics.concurrency_target.get(), 8);
    drop(held);
    assert_eq!(gate.semaphore.available_permits(), 8);
}

#[tokio::test(start_paused = true)]
async fn one_throttle_stops_the_whole_client_for_a_moment() {
    let throttle = Behaviour::failing(0, FaultKind::Throttled);
    let fault = FaultClient::new(memory(), Schedule::script([throttle]));
    let metrics = Arc::new(Metrics::default());
    let limit = LimitClient::new(Arc::new(fault), LimitConfig::default(), metrics.clone());
    let begun = Instant::now();
    limit.head(&uri()).await.unwrap_err();
    assert_eq!(begun.elapsed(), Duration::ZERO);
    limit.head(&uri()).await.unwrap();
    assert_eq!(begun.elapsed(), Duration::from_millis(250));
    assert_eq!(metrics.concurrency_target.get(), 32);
    assert_eq!(metrics.throttle_wait_ns.get(), 250_000_000);
}

#[tokio::test(start_paused = true)]
async fn a_listings_throttle_counts_and_its_next_page_waits() {
    let throttle = Behaviour::failing(0, FaultKind::Throttled);
    let fault = FaultClient::new(memory(), Schedule::script([throttle]));
    let limit = LimitClient::new(Arc::new(fault), LimitConfig::default(), Arc::default());
    let begun = Instant::now();
    let entries: Vec<_> = limit.list(&uri(), Depth::All).collect().await;
    assert!(matches!(
        &entries[..],
        [Err(Error::Throttled { .. }), Ok(ListEntry::Object(_))]
    ));
    assert_eq!(begun.elapsed(), Duration::from_millis(250));
}
