use super::*;
use crate::client::{Behaviour, FaultClient, FaultKind, MemoryClient, Schedule};
use futures::StreamExt;
use proptest::prelude::*;

const LEN: usize = 1000;

fn uri(key: &str) -> ObjectUri {
    format!("memory://m/{key}").parse().unwrap()
}

fn content() -> Vec<u8> {
    (0..LEN).map(|at| at as u8).collect()
}

fn memory() -> MemoryClient {
    let memory = MemoryClient::default();
    memory.put(uri("k"), content());
    memory
}

async fn pinned() -> ObjectId {
    memory().head(&uri("k")).await.unwrap().id
}

/// A retrying client over one that fails as `script` says, and both to look at.
fn over(script: Vec<Behaviour>) -> (RetryClient, Arc<FaultClient>, Arc<Metrics>) {
    over_schedule(Schedule::script(script), RetryConfig::default())
}

fn over_schedule(
    schedule: Schedule,
    config: RetryConfig,
) -> (RetryClient, Arc<FaultClient>, Arc<Metrics>) {
    let fault = Arc::new(FaultClient::new(Arc::new(memory()), schedule));
    let metrics = Arc::new(Metrics::default());
    (
        RetryClient::new(fault.clone(), config, metrics.clone()),
        fault,
        metrics,
    )
}

async fn read(client: &RetryClient, id: &ObjectId) -> (PartBuf, Result<GetMeta>) {
    let mut part = PartBuf::heap(LEN);
    let answer = client
        .get(id, ByteRange::new(0, LEN as u64), &mut part)
        .await;
    (part, answer)
}

fn failing(after: u64, kind: FaultKind) -> Behaviour {
    Behaviour::failing(after, kind)
}

#[tokio::test(start_paused = true)]
async fn a_broken_part_goes_on_where_it_broke() {
    let script = vec![
        failing(10, FaultKind::Network),
        failing(20, FaultKind::Server),
    ];
    let (client, fault, metrics) = over(script);
    let (part, answer) = read(&client, &pinned().await).await;
    answer.unwrap();
    assert_eq!(part.filled(), content());
    assert_eq!((fault.requests(), metrics.retries.get()), (3, 2));
    assert_eq!(metrics.bytes_wasted.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn any_byte_starts_the_count_anew_and_costs_no_allowance() {
    let config = RetryConfig {
        allowance: 0,
        ..RetryConfig::default()
    };
    let script: Vec<_> = (0..900).map(|_| failing(1, FaultKind::Network)).collect();
    let (client, fault, _) = over_schedule(Schedule::script(script), config);
    let (part, answer) = read(&client, &pinned().await).await;
    answer.unwrap();
    assert_eq!((part.filled(), fault.requests()), (&content()[..], 901));
}

#[tokio::test(start_paused = true)]
async fn twelve_attempts_without_a_byte_are_the_end() {
    let script: Vec<_> = (0..12).map(|_| failing(0, FaultKind::Server)).collect();
    let (client, fault, _) = over(script);
    let (_, answer) = read(&client, &pinned().await).await;
    let error = answer.unwrap_err();
    assert!(
        matches!(&error, Error::RetriesExhausted { attempts: 12, source, .. } if matches!(**source, Error::Server { .. })),
        "{error}"
    );
    assert_eq!(fault.requests(), 12);
}

#[tokio::test(start_paused = true)]
async fn two_minutes_without_a_byte_are_the_end() {
    let config = RetryConfig {
        max_attempts: 1000,
        ..RetryConfig::default()
    };
    let stalls: Vec<_> = (0..1000).map(|_| failing(0, FaultKind::Stalled)).collect();
    let (client, _, _) = over_schedule(Schedule::script(stalls), config);
    let begun = Instant::now();
    let (_, answer) = read(&client, &pinned().await).await;
    assert!(
        matches!(answer, Err(Error::RetriesExhausted { .. })),
        "{answer:?}"
    );
    let took = begun.elapsed();
    assert!(
        took > Duration::from_secs(95) && took < Duration::from_secs(126),
        "{took:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn what_no_retry_heals_is_final_at_once() {
    let kinds = [
        FaultKind::NotFound,
        FaultKind::PermissionDenied,
        FaultKind::Changed,
    ];
    for kind in kinds {
        let (client, fault, metrics) = over(vec![failing(0, kind)]);
        let (_, answer) = read(&client, &pinned().await).await;
        assert!(
            matches!(
                answer,
                Err(Error::NotFound { .. }
                    | Error::PermissionDenied { .. }
                    | Error::Changed { .. })
            ),
            "{answer:?}"
        );
        assert_eq!(
            (fault.requests(), metrics.retries.get()),
            (1, 0),
            "{kind:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_range_beyond_the_end_is_final_at_once() {
    let (client, fault, _) = over(vec![]);
    let id = pinned().await;
    let range = ByteRange::new(LEN as u64 + 1, LEN as u64 + 2);
    let answer = client.get(&id, range, &mut PartBuf::heap(1)).await;
    assert!(
        matches!(answer, Err(Error::RangeNotSatisfiable { .. })),
        "{answer:?}"
    );
    assert_eq!(fault.requests(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_corrupt_part_is_fetched_once_more_from_its_first_byte() {
    let (client, _, metrics) = over(vec![failing(600, FaultKind::Corrupt)]);
    let (part, answer) = read(&client, &pinned().await).await;
    answer.unwrap();
    assert_eq!(part.filled(), content());
    assert_eq!(
        (metrics.bytes_wasted.get(), metrics.retries.get()),
        (600, 1)
    );
    let twice = vec![failing(600, FaultKind::Corrupt); 2];
    let (client, fault, _) = over(twice);
    let (_, answer) = read(&client, &pinned().await).await;
    assert!(matches!(answer, Err(Error::Corrupt { .. })), "{answer:?}");
    assert_eq!(fault.requests(), 2);
}

/// The object is replaced while an unpinned read is broken: the bytes are all of the new version.
#[tokio::test(start_paused = true)]
async fn an_unpinned_read_never_joins_two_versions() {
    let objects = memory();
    let slow = Behaviour {
        bytes_per_second: Some(1),
        ..failing(400, FaultKind::Network)
    };
    let fault = FaultClient::new(Arc::new(objects.clone()), Schedule::script([slow]));
    let metrics = Arc::new(Metrics::default());
    let client = RetryClient::new(Arc::new(fault), RetryConfig::default(), metrics.clone());
    let id = ObjectId::unpinned(uri("k"));
    let reading = read(&client, &id);
    let replacing = async {
        sleep(Duration::from_secs(100)).await;
        objects.put(uri("k"), vec![9; LEN]);
    };
    let ((part, answer), ()) = tokio::join!(reading, replacing);
    answer.unwrap();
    assert_eq!(part.filled(), [9; LEN]);
    assert_eq!(metrics.bytes_wasted.get(), 400);
}

#[tokio::test(start_paused = true)]
async fn a_dead_endpoint_gets_no_more_than_the_allowance() {
    let dead = Schedule {
        rest: failing(0, FaultKind::Network),
        ..Schedule::default()
    };
    let config = RetryConfig {
        allowance: 100,
        ..RetryConfig::default()
    };
    let (client, fault, _) = over_schedule(dead, config);
    let id = pinned().await;
    let parts = (0..50).map(|_| read(&client, &id));
    for (_, answer) in futures::future::join_all(parts).await {
        assert!(
            matches!(answer, Err(Error::RetriesExhausted { .. })),
            "{answer:?}"
        );
    }
    assert_eq!(fault.requests(), 50 + 100);
}

#[tokio::test(start_paused = true)]
async fn a_short_outage_fails_no_part_of_hundreds() {
    // Every part's first two attempts fail.
    let outage = vec![failing(0, FaultKind::Network); 1024];
    let (client, _, _) = over(outage);
    let id = pinned().await;
    let parts = (0..512).map(|_| read(&client, &id));
    for (part, answer) in futures::future::join_all(parts).await {
        answer.unwrap();
        assert_eq!(part.filled().len(), LEN);
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_is_retried() {
    let (client, fault, _) = over(vec![failing(0, FaultKind::Throttled); 7]);
    client.head(&uri("k")).await.unwrap();
    assert_eq!(fault.requests(), 8);
}

async fn keys(client: &dyn ObjectClient) -> Result<Vec<String>> {
    client
        .list(&uri(""), Depth::All)
        .map(|entry| entry.map(|entry| listing::uri(&entry).key().to_string()))
        .collect::<Vec<_>>()
        .await
        .into_iter()
        .collect()
}

fn many() -> MemoryClient {
    let many = MemoryClient::default();
    for at in 0..30 {
        many.put(uri(&format!("{at:02}")), "x");
    }
    many
}

#[tokio::test(start_paused = true)]
async fn a_listing_goes_on_where_it_broke() {
    let script = [
        failing(10, FaultKind::Network),
        failing(0, FaultKind::Throttled),
        failing(5, FaultKind::Protocol),
    ];
    let fault = Arc::new(FaultClient::new(Arc::new(many()), Schedule::script(script)));
    let client = RetryClient::new(fault.clone(), RetryConfig::default(), Arc::default());
    assert_eq!(keys(&client).await.unwrap(), keys(&many()).await.unwrap());
    assert_eq!(fault.requests(), 4);
}

/// A client whose listing ends with its first error.
#[derive(Debug)]
struct EndsOnError {
    faulty: FaultClient,
    reversed: bool,
}

impl ObjectClient for EndsOnError {
    fn head<'a>(&'a self, uri: &'a ObjectUri) -> BoxFuture<'a, Result<ObjectMeta>> {
        self.faulty.head(uri)
    }

    fn get<'a>(
        &'a self,
        id: &'a ObjectId,
        range: ByteRange,
        into: &'a mut PartBuf,
    ) -> BoxFuture<'a, Result<GetMeta>> {
        self.faulty.get(id, range, into)
    }

    fn list(&self, prefix: &ObjectUri, depth: Depth) -> BoxStream<'static, Result<ListEntry>> {
        let reversed = self.reversed;
        let entries = self.faulty.list(prefix, depth);
        let entries = entries.map(move |entry| match entry {
            Ok(ListEntry::Object(mut meta)) if reversed => {
                let at: u32 = meta.id.uri.key().parse().unwrap();
                meta.id.uri = meta.id.uri.with_key(format!("{:02}", 29 - at));
                Ok(ListEntry::Object(meta))
            }
            other => other,
        });
        let mut failed = false;
        entries
            .take_while(move |entry| {
                let go_on = !failed;
                failed |= entry.is_err();
                std::future::ready(go_on)
            })
            .fuse()
            .boxed()
    }
}

fn ending_on_error(script: Vec<Behaviour>, reversed: bool) -> RetryClient {
    let faulty = FaultClient::new(Arc::new(many()), Schedule::script(script));
    let inner = EndsOnError { faulty, reversed };
    RetryClient::new(Arc::new(inner), RetryConfig::default(), Arc::default())
}

#[tokio::test(start_paused = true)]
async fn a_listing_that_ended_with_its_error_is_begun_anew() {
    let script = vec![
        failing(10, FaultKind::Network),
        failing(20, FaultKind::Network),
        failing(0, FaultKind::Network),
    ];
    let client = ending_on_error(script, false);
    assert_eq!(keys(&client).await.unwrap(), keys(&many()).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_listing_without_order_is_never_cut_short_in_silence() {
    let client = ending_on_error(vec![failing(10, FaultKind::Network)], true);
    let error = keys(&client).await.unwrap_err();
    assert!(matches!(error, Error::Network { .. }), "{error}");
    let whole = keys(&ending_on_error(vec![], true)).await.unwrap();
    assert_eq!(whole.len(), 30);
}

#[tokio::test(start_paused = true)]
async fn a_listing_that_keeps_failing_ends_with_the_error_once() {
    let client = ending_on_error(vec![failing(0, FaultKind::Server); 60], false);
    let entries: Vec<_> = client.list(&uri(""), Depth::All).collect().await;
    assert!(
        matches!(
            &entries[..],
            [Err(Error::RetriesExhausted { attempts: 12, .. })]
        ),
        "{entries:?}"
    );
}

fn behaviour() -> impl Strategy<Value = Behaviour> {
    let kind = proptest::sample::select(FaultKind::TRANSIENT.to_vec());
    (0..400u64, kind).prop_map(|(after, kind)| Behaviour::failing(after, kind))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever breaks, the bytes are the object's, and none is asked for twice.
    #[test]
    fn healing_faults_leave_no_trace(script in proptest::collection::vec(behaviour(), 0..8), cut in 0..LEN) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let (client, _, metrics) = over(script);
            let mut part = PartBuf::heap(LEN);
            part.put(&content()[..cut]);
            let answer = client.get(&pinned().await, ByteRange::new(0, LEN as u64), &mut part).await;
            match answer {
                Ok(_) => assert_eq!(part.filled(), content()),
                // Eight faults in a row without a byte: the only way out.
                Err(error) => assert!(matches!(error, Error::RetriesExhausted { .. }), "{error}"),
            }
            assert_eq!(metrics.bytes_wasted.get(), 0);
        });
    }
}
