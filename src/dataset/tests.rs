//! Each sample comes once: whatever the consumers, formats, shards and shuffles, interrupted or not.

use std::collections::BTreeMap;
use std::str::FromStr as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::client::{MemoryClient, ObjectClient as _};
use crate::object::ObjectUri;
use crate::prefetch::PrefetchConfig;
use crate::record::{Codec, Compression, Data, Decoding, RecordFormat, recordio, tfrecord};

/// An engine over objects in memory, and what is in them.
#[derive(Debug)]
struct World {
    engine: Prefetcher,
    listing: Vec<ObjectMeta>,
    /// Every sample's name, sorted.
    all: Vec<String>,
    counts: Vec<u64>,
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
}

/// The payload whose name is `object-record`.
fn payload(object: usize, record: usize) -> Vec<u8> {
    let mut bytes = format!("{object}-{record} ").into_bytes();
    bytes.resize(8 + record * 7 % 30, b'x');
    bytes
}

fn name(sample: &Sample) -> String {
    let bytes = match &sample.record.data {
        Data::Bytes(bytes) => bytes.clone(),
        Data::Files(files) => files.files[0].1.clone(),
        Data::Tensors(_) => unreachable!("not among the formats"),
    };
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    text.split(' ').next().unwrap().to_owned()
}

fn tar_file(name: &str, data: &[u8], into: &mut Vec<u8>) {
    let mut block = [0u8; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[124..136].copy_from_slice(format!("{:011o}\0", data.len()).as_bytes());
    block[148..156].fill(b' ');
    block[156] = b'0';
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    into.extend_from_slice(&block);
    into.extend_from_slice(data);
    into.resize(into.len().next_multiple_of(512), 0);
}

fn object(format: RecordFormat, object: usize, records: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for record in 0..records {
        let mut payload = payload(object, record);
        match format {
            RecordFormat::TfRecord => tfrecord::encode(&payload, &mut bytes),
            RecordFormat::RecordIo(_) => recordio::encode(&payload, 9, &mut bytes),
            RecordFormat::Tar => {
                tar_file(&format!("{record:03}.a"), &payload, &mut bytes);
                tar_file(&format!("{record:03}.b"), b"b", &mut bytes);
            }
            RecordFormat::Lines => {
                bytes.append(&mut payload);
                bytes.push(b'\n');
            }
            RecordFormat::Fixed(len) => {
                payload.resize(len.get() as usize, b' ');
                bytes.append(&mut payload);
            }
            _ => bytes.append(&mut payload),
        }
    }
    bytes
}

impl World {
    fn new(format: RecordFormat, codec: Codec, counts: &[usize]) -> Self {
        let client = MemoryClient::default();
        let (mut listing, mut all) = (Vec::new(), Vec::new());
        for (index, records) in counts.iter().enumerate() {
            let records = if format == RecordFormat::Raw {
                1
            } else {
                *records
            };
            let plain = object(format, index, records);
            let bytes: Bytes = match codec {
                Codec::None => plain.into(),
                _ => {
                    use std::io::Write as _;
                    let mut gzip =
                        flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                    gzip.write_all(&plain).unwrap();
                    gzip.finish().unwrap().into()
                }
            };
            let uri = ObjectUri::from_str(&format!("memory://bucket/{index:03}")).unwrap();
            client.put(uri.clone(), bytes);
            listing.push(runtime().block_on(client.head(&uri)).unwrap());
            all.extend((0..records).map(|record| format!("{index}-{record}")));
        }
        let config = PrefetchConfig {
            memory_bytes: 16 << 20,
            part_bytes: 64 << 10,
            lead_bytes: 40,
            ..PrefetchConfig::default()
        };
        all.sort_unstable();
        Self {
            engine: Prefetcher::new(Arc::new(client), config, Arc::default()).unwrap(),
            listing,
            all,
            counts: counts.iter().map(|count| *count as u64).collect(),
        }
    }

    fn dataset(&self, config: &DatasetConfig, consumer: Consumer) -> Dataset {
        let mut config = config.clone();
        config.consumer = consumer;
        Dataset::new(self.engine.clone(), self.listing.clone(), config).unwrap()
    }
}

fn consumers(world: u32, workers: u32) -> Vec<Consumer> {
    let ranks = (0..workers).flat_map(|worker| (0..world).map(move |rank| (rank, worker)));
    ranks
        .map(|(rank, worker)| Consumer {
            rank,
            world,
            worker,
            workers,
        })
        .collect()
}

/// Takes up to `limit` samples: their epochs and names, and the state behind them.
fn take(dataset: &Dataset, limit: usize) -> (Vec<(u64, String)>, DatasetState) {
    let mut samples = dataset.samples().unwrap();
    let mut names = Vec::new();
    while names.len() < limit
        && let Some(sample) = samples.next()
    {
        let sample = sample.unwrap();
        names.push((sample.epoch, name(&sample)));
    }
    (names, samples.state())
}

/// Through text, as a checkpoint would keep it.
fn stored(state: &DatasetState) -> DatasetState {
    serde_json::from_str(&serde_json::to_string(state).unwrap()).unwrap()
}

fn sorted(names: &[(u64, String)], epoch: u64) -> Vec<String> {
    let mut names: Vec<String> = names
        .iter()
        .filter(|(found, _)| *found == epoch)
        .map(|(_, name)| name.clone())
        .collect();
    names.sort_unstable();
    names
}

#[derive(Debug, Clone)]
struct Case {
    format: RecordFormat,
    codec: Codec,
    counts: Vec<usize>,
    config: DatasetConfig,
}

prop_compose! {
    fn cases()(
        format in proptest::sample::select(vec!["tar", "tfrecord", "recordio", "lines", "fixed:40", "raw"]),
        gzip in any::<bool>(),
        counts in vec(0usize..9, 0..9),
        shuffle in proptest::option::of((any::<i64>(), 1u32..9)),
        threads in 1usize..4,
        epochs in 1u64..3,
    ) -> Case {
        let format: RecordFormat = format.parse().unwrap();
        let codec = if gzip { Codec::Gzip } else { Codec::None };
        let mut decoding = Decoding::new(format);
        decoding.compression = Compression::Is(codec);
        let mut config = DatasetConfig::new(decoding);
        config.shuffle = shuffle.map(|(seed, window)| Shuffle { seed, window });
        config.threads = threads;
        config.epochs = Some(epochs);
        Case { format, codec, counts, config }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// D1: for every case of formats, shards, shuffles, ranks and workers.
    #[test]
    fn each_sample_comes_once_to_one_consumer_in_the_same_order_every_time(
        case in cases(), world in 1u32..4, workers in 1u32..3,
    ) {
        let Case { format, codec, counts, config } = case;
        let data = World::new(format, codec, &counts);
        let mut all = Vec::new();
        for consumer in consumers(world, workers) {
            let dataset = data.dataset(&config, consumer);
            let (names, _) = take(&dataset, usize::MAX);
            prop_assert_eq!(&take(&dataset, usize::MAX).0, &names, "another run has another order");
            all.extend(names);
        }
        for epoch in 0..config.epochs.unwrap() {
            prop_assert_eq!(&sorted(&all, epoch), &data.all);
        }
    }

    /// D2: a consumer that is interrupted goes on with the very sample that it would have given next.
    #[test]
    fn an_interrupted_consumer_goes_on_in_the_same_order(
        case in cases(), world in 1u32..3, workers in 1u32..3, stops in vec(0usize..9, 1..5),
    ) {
        let Case { format, codec, counts, config } = case;
        let data = World::new(format, codec, &counts);
        for consumer in consumers(world, workers) {
            let mut dataset = data.dataset(&config, consumer);
            let (expected, _) = take(&dataset, usize::MAX);
            let mut found = Vec::new();
            for stop in &stops {
                let (names, state) = take(&dataset, *stop);
                found.extend(names);
                dataset.load(&stored(&state)).unwrap();
            }
            found.extend(take(&dataset, usize::MAX).0);
            prop_assert_eq!(found, expected);
        }
    }

    /// D3: states of all are merged; with as many consumers each goes on, with others the rest is dealt out anew.
    #[test]
    fn a_merged_state_goes_on_with_any_number_of_consumers(
        case in cases(),
        generations in vec((1u32..4, 1u32..3, vec(0usize..14, 9)), 1..4),
        last in (1u32..4, 1u32..3),
    ) {
        let Case { format, codec, counts, config } = case;
        let data = World::new(format, codec, &counts);
        let mut all = Vec::new();
        let mut state: Option<DatasetState> = None;
        let mut read = |state: &Option<DatasetState>, world, workers, stops: &[usize]| {
            let mut states = Vec::new();
            for consumer in consumers(world, workers) {
                let mut dataset = data.dataset(&config, consumer);
                if let Some(state) = state {
                    dataset.load(state).unwrap();
                }
                let stop = stops[consumer.index() as usize % stops.len()];
                let (names, state) = take(&dataset, stop);
                all.extend(names);
                states.push(stored(&state));
            }
            stored(&DatasetState::merge(&states).unwrap())
        };
        for (world, workers, stops) in &generations {
            state = Some(read(&state, *world, *workers, stops));
        }
        read(&state, last.0, last.1, &[usize::MAX]);
        for epoch in 0..config.epochs.unwrap() {
            prop_assert_eq!(&sorted(&all, epoch), &data.all, "epoch {}", epoch);
        }
    }

    /// D4: `even` gives every consumer as many: those that come are of the epoch, and `drop` gives none twice.
    #[test]
    fn even_consumers_get_equally_many(
        case in cases(), world in 1u32..4, workers in 1u32..3, pad in any::<bool>(), stop in 0usize..20,
    ) {
        let Case { format, codec, counts, mut config } = case;
        let data = World::new(format, codec, &counts);
        config.even = if pad { Even::Pad } else { Even::Drop };
        if format != RecordFormat::Raw {
            config.counts = Some(data.counts.clone());
        }
        config.epochs = Some(1);
        let mut each = Vec::new();
        for consumer in consumers(world, workers) {
            let mut dataset = data.dataset(&config, consumer);
            let (mut names, state) = take(&dataset, stop);
            dataset.load(&stored(&state)).unwrap();
            names.extend(take(&dataset, usize::MAX).0);
            prop_assert!(names.iter().all(|(_, name)| data.all.contains(name)));
            each.push(names);
        }
        prop_assert!(each.iter().all(|names| names.len() == each[0].len()), "{:?}", each);
        let mut all = sorted(&each.concat(), 0);
        let given = all.len();
        all.dedup();
        if pad {
            prop_assert_eq!(&all, &data.all);
        } else {
            prop_assert_eq!(all.len(), given);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// D4: also those that go on from merged states of other numbers of consumers, some of which were padding.
    #[test]
    fn even_consumers_of_a_merged_state_get_equally_many(
        case in cases(), pad in any::<bool>(),
        generations in vec((1u32..5, 1u32..3, 0usize..30), 1..3),
        last in (1u32..4, 1u32..3),
    ) {
        let Case { format, codec, counts, mut config } = case;
        let data = World::new(format, codec, &counts);
        config.even = if pad { Even::Pad } else { Even::Drop };
        if format != RecordFormat::Raw {
            config.counts = Some(data.counts.clone());
        }
        config.epochs = Some(1);
        let mut all = Vec::new();
        let mut state: Option<DatasetState> = None;
        let mut read = |state: &Option<DatasetState>, world, workers, stop| {
            let (mut states, mut each) = (Vec::new(), Vec::new());
            for consumer in consumers(world, workers) {
                let mut dataset = data.dataset(&config, consumer);
                if let Some(state) = state {
                    dataset.load(state).unwrap();
                }
                let (names, state) = take(&dataset, stop);
                each.push(names.len());
                all.extend(names);
                states.push(stored(&state));
            }
            (stored(&DatasetState::merge(&states).unwrap()), each)
        };
        for (world, workers, stop) in &generations {
            state = Some(read(&state, *world, *workers, *stop).0);
        }
        let (_, each) = read(&state, last.0, last.1, usize::MAX);
        prop_assert!(each.iter().all(|len| *len == each[0]), "{each:?}");
        let mut all = sorted(&all, 0);
        let given = all.len();
        all.dedup();
        if pad {
            prop_assert_eq!(&all, &data.all);
        } else {
            prop_assert_eq!(all.len(), given);
        }
    }
}

fn lines(counts: &[usize]) -> (World, DatasetConfig) {
    let format = RecordFormat::Lines;
    let mut decoding = Decoding::new(format);
    decoding.compression = Compression::Is(Codec::None);
    (
        World::new(format, Codec::None, counts),
        DatasetConfig::new(decoding),
    )
}

#[test]
fn batches_are_of_one_epoch_and_the_state_counts_those_delivered() {
    let (data, mut config) = lines(&[5, 2]);
    config.batch = 3;
    config.epochs = Some(2);
    let mut dataset = data.dataset(&config, Consumer::ALONE);
    let read = |dataset: &Dataset, batches: usize| {
        let mut samples = dataset.samples().unwrap();
        let mut sizes = Vec::new();
        while sizes.len() < batches {
            match samples
                .next_batch_timeout(std::time::Duration::from_secs(10))
                .unwrap()
            {
                NextBatch::Batch(batch) => {
                    sizes.push((batch[0].epoch, batch.iter().map(name).collect::<Vec<_>>()))
                }
                NextBatch::End => break,
                NextBatch::TimedOut => panic!("it stalls"),
            }
        }
        (sizes, samples.state())
    };
    let (whole, _) = read(&dataset, usize::MAX);
    let sizes: Vec<(u64, usize)> = whole
        .iter()
        .map(|(epoch, names)| (*epoch, names.len()))
        .collect();
    assert_eq!(sizes, [(0, 3), (0, 3), (0, 1), (1, 3), (1, 3), (1, 1)]);
    let (mut first, state) = read(&dataset, 2);
    dataset.load(&stored(&state)).unwrap();
    first.extend(read(&dataset, usize::MAX).0);
    assert_eq!(first, whole);

    config.drop_last = true;
    let (whole, _) = read(&data.dataset(&config, Consumer::ALONE), usize::MAX);
    assert_eq!(whole.len(), 4);
}

#[test]
fn shuffled_epochs_differ_and_windows_mix() {
    let (data, mut config) = lines(&[20, 20, 20]);
    config.shuffle = Some(Shuffle {
        seed: 7,
        window: 30,
    });
    config.epochs = Some(2);
    let (names, _) = take(&data.dataset(&config, Consumer::ALONE), usize::MAX);
    let of = |epoch| -> Vec<&String> {
        names
            .iter()
            .filter(|(found, _)| *found == epoch)
            .map(|(_, name)| name)
            .collect()
    };
    assert_ne!(of(0), of(1));
    assert_ne!(
        sorted(&names, 0),
        of(0).into_iter().cloned().collect::<Vec<_>>()
    );
}

#[test]
fn samples_that_are_skipped_are_the_first_ones_of_the_first_epoch() {
    let (data, mut config) = lines(&[3, 3]);
    config.epochs = Some(2);
    let (whole, _) = take(&data.dataset(&config, Consumer::ALONE), usize::MAX);
    config.skip = 4;
    let (names, state) = take(&data.dataset(&config, Consumer::ALONE), usize::MAX);
    assert_eq!(names, whole[4..]);
    let mut dataset = data.dataset(&config, Consumer::ALONE);
    dataset.load(&state).unwrap();
    assert_eq!(take(&dataset, usize::MAX).0, []);
}

/// D2: also before anything was given out, and inside of a batch that was not.
#[test]
fn a_state_keeps_what_is_still_to_be_skipped() {
    let (data, mut config) = lines(&[3, 3, 5]);
    config.shuffle = Some(Shuffle { seed: 1, window: 4 });
    let (whole, _) = take(&data.dataset(&config, Consumer::ALONE), usize::MAX);
    config.skip = 5;
    let mut dataset = data.dataset(&config, Consumer::ALONE);
    for stop in [0, 1, 2] {
        let (mut names, state) = take(&dataset, stop);
        dataset.load(&stored(&state)).unwrap();
        let (_, again) = take(&dataset, 0);
        assert_eq!(again, state, "of an iterator that has given nothing");
        names.extend(take(&dataset, usize::MAX).0);
        assert_eq!(names, whole[5..], "interrupted after {stop}");
        dataset.set_epoch(0);
    }
    config.batch = 20;
    let mut samples = data.dataset(&config, Consumer::ALONE).samples().unwrap();
    let sample = samples.step(Instant::now() + Duration::from_secs(10));
    assert!(matches!(sample, Ok(Next::Sample(_))));
    dataset.load(&stored(&samples.state())).unwrap();
    assert_eq!(take(&dataset, usize::MAX).0, whole[5..]);

    // Others would give out what this one skips.
    let two = consumers(2, 1);
    let state = DatasetState::merge(&[take(&dataset, 0).1]).unwrap();
    let error = data.dataset(&config, two[0]).load(&state).unwrap_err();
    assert!(error.to_string().contains("skipped"), "{error}");
}

/// D4, D5: padding with corrupt records alone comes round once.
#[test]
fn padding_that_holds_nothing_ends() {
    let client = MemoryClient::default();
    let listing: Vec<ObjectMeta> = (0..3)
        .map(|index| {
            let uri: ObjectUri = format!("memory://bucket/{index}").parse().unwrap();
            client.put(uri.clone(), vec![b'?'; 100]);
            runtime().block_on(client.head(&uri)).unwrap()
        })
        .collect();
    let engine =
        Prefetcher::new(Arc::new(client), PrefetchConfig::default(), Arc::default()).unwrap();
    let mut config = DatasetConfig::new(Decoding::new(RecordFormat::TfRecord));
    config.on_error = OnError::Skip;
    config.even = Even::Pad;
    config.counts = Some(vec![2; 3]);
    config.epochs = Some(2);
    for threads in [1, 2] {
        config.threads = threads;
        config.consumer = consumers(2, 1)[1];
        let dataset = Dataset::new(engine.clone(), listing.clone(), config.clone()).unwrap();
        let mut samples = dataset.samples().unwrap();
        for _ in 0..2 {
            let next = samples.next_timeout(Duration::from_secs(10)).unwrap();
            assert!(matches!(next, Next::End), "{next:?}");
        }
        // In each epoch its own object, all of a round, and the one with which that is noticed; and what lanes read ahead.
        let (skipped, ahead) = (samples.stats().skipped_objects, 3 * threads as u64);
        assert!(
            (10..=2 * (5 + ahead)).contains(&skipped),
            "{skipped} objects"
        );
    }
}

/// D10: An epoch that gives a consumer nothing, with no end of epochs, is an error and no wait without end.
#[test]
fn without_end_an_epoch_that_gives_nothing_is_an_error() {
    let client = MemoryClient::default();
    let put = |name: &str, bytes: Vec<u8>| {
        let uri: ObjectUri = format!("memory://bucket/{name}").parse().unwrap();
        client.put(uri.clone(), bytes);
        runtime().block_on(client.head(&uri)).unwrap()
    };
    let (bad, empty) = (put("bad", vec![b'?'; 100]), put("empty", Vec::new()));
    let full = put("full", object(RecordFormat::TfRecord, 0, 3));
    let engine = Prefetcher::new(
        Arc::new(client.clone()),
        PrefetchConfig::default(),
        Arc::default(),
    )
    .unwrap();
    let mut config = DatasetConfig::new(Decoding::new(RecordFormat::TfRecord));
    config.on_error = OnError::Skip;
    config.epochs = None;
    let run = |listing: &[&ObjectMeta], config: &DatasetConfig, most: usize| {
        let listing = listing.iter().map(|meta| (*meta).clone()).collect();
        let mut samples = Dataset::new(engine.clone(), listing, config.clone())
            .unwrap()
            .samples()
            .unwrap();
        let mut batches = 0;
        while batches < most {
            match samples.next_batch_timeout(Duration::from_secs(20)) {
                Ok(NextBatch::Batch(_)) => batches += 1,
                Ok(other) => panic!("{other:?}"),
                Err(error) => return (batches, Some(error.to_string())),
            }
        }
        (batches, None)
    };
    let (_, told) = run(&[&bad, &empty], &config, 1);
    let told = told.unwrap();
    assert!(
        told.contains("epoch 0") && told.contains("memory://bucket/bad"),
        "{told}"
    );
    assert_eq!(run(&[&bad, &full], &config, 20), (20, None));
    // A batch that is left out is nothing, too.
    config.batch = 4;
    config.drop_last = true;
    let (batches, told) = run(&[&full], &config, 1);
    assert!(
        batches == 0
            && told.is_some_and(|told| told.contains("drop_last") || told.contains("no sample"))
    );
    // Two consumers, shuffled: each gets the empty object now and then.
    config.batch = 1;
    config.shuffle = Some(Shuffle { seed: 1, window: 2 });
    config.consumer = consumers(2, 1)[1];
    assert_eq!(run(&[&empty, &full], &config, 60), (60, None));
    assert!(run(&[&empty, &bad], &config, 1).1.is_some());
}

/// Rows are dealt out as records are: each once, with or without a resume, by group and row.
#[test]
fn rows_of_groups_come_once() {
    let rows = [4u64, 0, 7, 1, 30, 12];
    let groups: Vec<RowGroup> = rows
        .iter()
        .enumerate()
        .map(|(at, rows)| RowGroup {
            uri: format!("s3://bucket/{}.parquet", at / 2).parse().unwrap(),
            etag: Some("\"v\"".into()),
            number: at as u32 % 2,
            rows: *rows,
        })
        .collect();
    let all: Vec<(u32, u64)> = (0..rows.len())
        .flat_map(|at| (0..rows[at]).map(move |row| (at as u32, row)))
        .collect();
    let config = |consumer, window| {
        let mut config = DatasetConfig::new(row_decoding());
        config.consumer = consumer;
        config.shuffle = Some(Shuffle { seed: 3, window }).filter(|_| window > 0);
        config
    };
    let read = |dataset: &Dataset, most: usize| {
        let mut samples = dataset.samples().unwrap();
        let mut seen = Vec::new();
        while seen.len() < most
            && let Some(sample) = samples.next()
        {
            let sample = sample.unwrap();
            seen.push((sample.object_index, sample.record.offset));
        }
        (seen, samples.state())
    };
    for (window, before, after) in [(0, 1, 1), (5, 2, 3), (100, 3, 1)] {
        let (mut seen, mut states) = (Vec::new(), Vec::new());
        for (at, who) in consumers(before, 1).into_iter().enumerate() {
            let dataset = Dataset::of_rows(&groups, config(who, window)).unwrap();
            let (some, state) = read(&dataset, 3 + at);
            seen.extend(some);
            states.push(stored(&state));
        }
        let merged = DatasetState::merge(&states).unwrap();
        for who in consumers(after, 1) {
            let mut dataset = Dataset::of_rows(&groups, config(who, window)).unwrap();
            dataset.load(&merged).unwrap();
            seen.extend(read(&dataset, usize::MAX).0);
        }
        seen.sort_unstable();
        assert_eq!(seen, all, "window {window}");
    }
    let dataset = Dataset::of_rows(&groups, config(Consumer::ALONE, 0)).unwrap();
    assert_eq!(read(&dataset, usize::MAX).0, all, "in order");
}

/// D4: counts that are not true would let one consumer wait for the others without end.
#[test]
fn an_object_of_another_count_is_named() {
    let (data, mut config) = lines(&[10, 10, 10, 5]);
    for (even, counts) in [
        (Even::Drop, [10; 4]),
        (Even::Pad, [10; 4]),
        (Even::Pad, [10, 10, 10, 2]),
    ] {
        config.even = even;
        config.counts = Some(counts.to_vec());
        let errors: Vec<Error> = consumers(2, 1)
            .into_iter()
            .filter_map(|consumer| {
                let mut samples = data.dataset(&config, consumer).samples().unwrap();
                samples.find_map(Result::err)
            })
            .collect();
        assert_eq!(errors.len(), 1, "{even:?}: {errors:?}");
        let told = errors[0].to_string();
        assert!(
            told.starts_with("counts: memory://bucket/003 holds 5 records"),
            "{told}"
        );
    }
}

/// D8: what a compressed object holds is in memory group by group, however small the object is.
#[test]
fn threads_hand_over_what_they_decompress_in_groups_of_bounded_bytes() {
    use std::io::Write as _;

    let client = MemoryClient::default();
    let line = [&[b'x'; 99_999][..], b"\n"].concat();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    (0..200).for_each(|_| gzip.write_all(&line).unwrap());
    let uri: ObjectUri = "memory://bucket/packed.gz".parse().unwrap();
    client.put(uri.clone(), gzip.finish().unwrap());
    let listing = vec![runtime().block_on(client.head(&uri)).unwrap()];
    let engine =
        Prefetcher::new(Arc::new(client), PrefetchConfig::default(), Arc::default()).unwrap();
    let config = DatasetConfig::new(Decoding::new(RecordFormat::Lines));
    let inputs = Arc::new(Inputs::new(listing, &config).unwrap());
    let plan = Arc::new(plan::Plan::new(&inputs, &config, 0, &[]));
    let mut lanes = lane::Lanes::start(
        engine,
        inputs,
        config,
        plan,
        0,
        Arc::default(),
        progress::Cursor::default(),
    )
    .unwrap();
    let (mut samples, mut largest) = (0, 0_u64);
    let deadline = Instant::now() + Duration::from_secs(60);
    while let lane::Taken::Group(group) = lanes.take(deadline).unwrap() {
        let bytes = group.samples.iter();
        let bytes: u64 = bytes.map(|tagged| tagged.sample.record.len_bytes()).sum();
        samples += group.samples.len();
        largest = largest.max(bytes);
    }
    assert_eq!(samples, 200);
    assert!(
        largest <= lane::GROUP_BYTES + line.len() as u64,
        "{largest} bytes"
    );
}

/// D2: a run that had just enough memory has enough to go on.
#[test]
fn going_on_takes_no_more_memory_than_beginning() {
    let client = MemoryClient::default();
    let listing: Vec<ObjectMeta> = (0..24_u8)
        .map(|index| {
            let uri: ObjectUri = format!("memory://bucket/{index:02}").parse().unwrap();
            client.put(uri.clone(), vec![index; 80 << 10]);
            runtime().block_on(client.head(&uri)).unwrap()
        })
        .collect();
    let mut config = DatasetConfig::new(Decoding::new("fixed:1024".parse().unwrap()));
    config.decoding.compression = Compression::Is(Codec::None);
    for threads in [1, 4] {
        config.threads = threads;
        let prefetch = PrefetchConfig {
            memory_bytes: threads as u64 * (64 << 10),
            part_bytes: 64 << 10,
            ..PrefetchConfig::default()
        };
        let dataset = |consumer: Consumer| {
            let engine =
                Prefetcher::new(Arc::new(client.clone()), prefetch.clone(), Arc::default());
            let mut config = config.clone();
            config.consumer = consumer;
            Dataset::new(engine.unwrap(), listing.clone(), config).unwrap()
        };
        let taken = |dataset: &Dataset, limit: usize| {
            let mut samples = dataset.samples().unwrap();
            let found = samples.by_ref().take(limit).map(Result::unwrap).count();
            (found, samples.state())
        };
        let mut own = dataset(Consumer::ALONE);
        let (first, state) = taken(&own, 100);
        own.load(&state).unwrap();
        assert_eq!(first + taken(&own, usize::MAX).0, 24 * 80);
        let parts: Vec<(usize, DatasetState)> = consumers(5, 1)
            .into_iter()
            .map(|consumer| taken(&dataset(consumer), 100))
            .collect();
        let states: Vec<DatasetState> = parts.iter().map(|part| part.1.clone()).collect();
        let mut merged = dataset(Consumer::ALONE);
        merged.load(&DatasetState::merge(&states).unwrap()).unwrap();
        let given: usize = parts.iter().map(|part| part.0).sum();
        assert_eq!(given + taken(&merged, usize::MAX).0, 24 * 80);
    }
}

/// Others ask and stop a reader while it waits.
#[test]
fn a_watch_tells_and_stops_from_another_thread() {
    let (data, mut config) = lines(&[8; 4]);
    config.epochs = None;
    let mut samples = data.dataset(&config, Consumer::ALONE).samples().unwrap();
    for _ in 0..9 {
        samples.next().unwrap().unwrap();
    }
    let watch = samples.watch().clone();
    assert_eq!(watch.state(), samples.state());
    assert_eq!((watch.stats().samples, watch.epoch()), (9, 0));
    let reading = std::thread::spawn(move || samples.by_ref().map(Result::unwrap).count());
    while watch.stats().samples < 100 {
        std::thread::yield_now();
    }
    watch.stop();
    let read = reading.join().unwrap() as u64;
    assert_eq!(watch.stats().samples, 9 + read);
    assert!(watch.epoch() > 0);
}

/// D2: by a ranged request at the record's first byte; with a window, at the window's.
#[test]
fn going_on_reads_nothing_before_its_place() {
    let client = MemoryClient::default();
    let uri: ObjectUri = "memory://bucket/large".parse().unwrap();
    let bytes: Vec<u8> = (0..2048u32)
        .flat_map(|record| [record as u8; 1024])
        .collect();
    client.put(uri.clone(), bytes);
    let listing = vec![runtime().block_on(client.head(&uri)).unwrap()];
    let mut config = DatasetConfig::new(Decoding::new("fixed:1024".parse().unwrap()));
    config.decoding.compression = Compression::Is(Codec::None);
    for window in [None, Some(100)] {
        config.shuffle = window.map(|window| Shuffle { seed: 3, window });
        let start = || {
            let prefetch = PrefetchConfig {
                part_bytes: 64 << 10,
                ..PrefetchConfig::default()
            };
            let engine =
                Prefetcher::new(Arc::new(client.clone()), prefetch, Arc::default()).unwrap();
            Dataset::new(engine, listing.clone(), config.clone()).unwrap()
        };
        let record = |sample: Sample| sample.record.offset;
        let expected: Vec<u64> = start()
            .samples()
            .unwrap()
            .map(|sample| record(sample.unwrap()))
            .collect();
        let mut samples = start().samples().unwrap();
        let mut found: Vec<u64> = samples
            .by_ref()
            .take(1950)
            .map(|sample| record(sample.unwrap()))
            .collect();
        let mut dataset = start();
        dataset.load(&stored(&samples.state())).unwrap();
        found.extend(
            dataset
                .samples()
                .unwrap()
                .map(|sample| record(sample.unwrap())),
        );
        assert_eq!(found, expected);
        let received = dataset.engine().metrics().bytes_delivered.get();
        let rest = 2048 - if window.is_some() { 1900 } else { 1950 };
        assert_eq!(received, rest * 1024, "window {window:?}");
    }
}

/// D5: a corrupt record is an error that names it, or is left out, counted and named.
#[test]
fn corrupt_records_are_told_or_counted() {
    let client = MemoryClient::default();
    let mut bytes = Vec::new();
    for record in 0..3 {
        tfrecord::encode(&payload(0, record), &mut bytes);
    }
    // The first record has 24 bytes; the second's payload begins after its length and CRC.
    bytes[24 + 12] ^= 1;
    let uri: ObjectUri = "memory://bucket/bad".parse().unwrap();
    client.put(uri.clone(), bytes);
    let good: ObjectUri = "memory://bucket/good".parse().unwrap();
    client.put(good.clone(), object(RecordFormat::TfRecord, 1, 1));
    let listing = [&uri, &good]
        .map(|uri| runtime().block_on(client.head(uri)).unwrap())
        .to_vec();
    let engine =
        Prefetcher::new(Arc::new(client), PrefetchConfig::default(), Arc::default()).unwrap();
    let mut config = DatasetConfig::new(Decoding::new(RecordFormat::TfRecord));
    let dataset = Dataset::new(engine.clone(), listing.clone(), config.clone()).unwrap();
    let mut samples = dataset.samples().unwrap();
    assert_eq!(name(&samples.next().unwrap().unwrap()), "0-0");
    let error = samples.next().unwrap().unwrap_err().to_string();
    assert!(
        error.starts_with("memory://bucket/bad: corrupt at offset "),
        "{error}"
    );
    assert!(samples.next().is_none());
    assert!(
        samples.next_timeout(std::time::Duration::ZERO).is_err(),
        "a failure is no end"
    );

    config.on_error = OnError::Skip;
    let dataset = Dataset::new(engine, listing, config).unwrap();
    let mut samples = dataset.samples().unwrap();
    let names: Vec<String> = samples
        .by_ref()
        .map(|sample| name(&sample.unwrap()))
        .collect();
    assert_eq!(names, ["0-0", "0-2", "1-0"]);
    let stats = samples.stats();
    assert_eq!(
        (stats.samples, stats.skipped_records, stats.skipped_objects),
        (3, 1, 0)
    );
    assert!(
        stats.skipped[0].contains("memory://bucket/bad"),
        "{stats:?}"
    );
}

/// D6: an object that is gone is an error after the samples before it, and again when asked again.
#[test]
fn an_object_that_fails_is_no_end() {
    let (data, mut config) = lines(&[2, 2]);
    config.epochs = None;
    let mut listing = data.listing.clone();
    listing[1].id.uri = "memory://bucket/gone".parse().unwrap();
    let dataset = Dataset::new(data.engine.clone(), listing, config).unwrap();
    let mut samples = dataset.samples().unwrap();
    let found: Vec<bool> = samples.by_ref().map(|sample| sample.is_ok()).collect();
    assert_eq!(found, [true, true, false]);
    let again = samples
        .next_batch_timeout(std::time::Duration::ZERO)
        .unwrap_err();
    assert!(matches!(again.root(), Error::NotFound { .. }), "{again}");
}

/// D7: and the error says which.
#[test]
fn states_of_other_inputs_settings_or_consumers_are_refused() {
    let (data, config) = lines(&[3, 3]);
    let mut dataset = data.dataset(&config, Consumer::ALONE);
    let (_, state) = take(&dataset, 2);

    let refused = |error: Error, word: &str| assert!(error.to_string().contains(word), "{error}");
    let (other, _) = lines(&[3, 4]);
    refused(
        other
            .dataset(&config, Consumer::ALONE)
            .load(&state)
            .unwrap_err(),
        "replaced",
    );
    let mut shuffled = config.clone();
    shuffled.shuffle = Some(Shuffle { seed: 1, window: 2 });
    refused(
        data.dataset(&shuffled, Consumer::ALONE)
            .load(&state)
            .unwrap_err(),
        "shuffle",
    );
    let two = consumers(2, 1);
    refused(
        data.dataset(&config, two[1]).load(&state).unwrap_err(),
        "merge",
    );
    let (_, half) = take(&data.dataset(&config, two[0]), 1);
    refused(DatasetState::merge(&[]).unwrap_err(), "none");
    refused(
        DatasetState::merge(std::slice::from_ref(&half)).unwrap_err(),
        "missing",
    );
    refused(
        DatasetState::merge(&[half.clone(), half]).unwrap_err(),
        "twice",
    );
    let mut text: BTreeMap<String, serde_json::Value> =
        serde_json::from_value(serde_json::to_value(&state).unwrap()).unwrap();
    text.insert("version".into(), 3.into());
    let newer: DatasetState = serde_json::from_value(serde_json::to_value(&text).unwrap()).unwrap();
    refused(dataset.load(&newer).unwrap_err(), "version");
    text.insert("version".into(), 1.into());
    let older = serde_json::from_value(serde_json::to_value(&text).unwrap()).unwrap();
    for state in [state, older] {
        dataset.load(&state).unwrap();
        assert_eq!(
            take(&dataset, usize::MAX).0.len(),
            4,
            "a refused state has changed nothing"
        );
    }
}

/// D8: a list of all samples would hold the engine's whole memory: beyond half of it samples are copied out.
#[test]
fn a_consumer_that_keeps_everything_gets_copies_in_the_end() {
    let client = MemoryClient::default();
    let uri: ObjectUri = "memory://bucket/large".parse().unwrap();
    client.put(uri.clone(), vec![7u8; 8 << 20]);
    let listing = vec![runtime().block_on(client.head(&uri)).unwrap()];
    let prefetch = PrefetchConfig {
        memory_bytes: 1 << 20,
        part_bytes: 128 << 10,
        ..PrefetchConfig::default()
    };
    let engine = Prefetcher::new(Arc::new(client), prefetch, Arc::default()).unwrap();
    let config = DatasetConfig::new(Decoding::new("fixed:4096".parse().unwrap()));
    let dataset = Dataset::new(engine.clone(), listing, config).unwrap();
    let mut samples = dataset.samples().unwrap();
    let kept: Vec<Sample> = samples.by_ref().map(Result::unwrap).collect();
    assert_eq!(kept.len(), 2048);
    assert!(
        samples.stats().copied_bytes > 6 << 20,
        "{:?}",
        samples.stats()
    );
    assert!(engine.budget().lent() <= 1 << 20);
}

/// D9: with threads that wait for the network and such that wait for their consumer.
#[test]
fn dropping_the_reader_stops_its_threads_and_returns_the_memory() {
    let (data, mut config) = lines(&[8; 40]);
    config.epochs = None;
    config.threads = 3;
    let mut samples = data.dataset(&config, Consumer::ALONE).samples().unwrap();
    assert!(samples.next().unwrap().is_ok());
    drop(samples);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while data.engine.budget().reserved() > 0 || data.engine.budget().lent() > 0 {
        assert!(std::time::Instant::now() < deadline, "memory is held");
        std::thread::yield_now();
    }
}

#[test]
fn unusable_settings_are_named() {
    let (data, config) = lines(&[1]);
    let with = |change: &dyn Fn(&mut DatasetConfig)| {
        let mut config = config.clone();
        change(&mut config);
        Dataset::new(data.engine.clone(), data.listing.clone(), config)
            .unwrap_err()
            .to_string()
    };
    assert!(with(&|config| config.consumer.rank = 1).starts_with("rank: "));
    let endless = |config: &mut DatasetConfig| {
        config.epochs = None;
        config.consumer = consumers(2, 1)[1];
    };
    assert!(with(&endless).starts_with("inputs: "));
    // Equally many are none for all of them: two have one object.
    let even = |config: &mut DatasetConfig| {
        config.epochs = None;
        config.consumer = consumers(2, 1)[0];
        config.even = Even::Drop;
        config.counts = Some(vec![1]);
    };
    assert!(with(&even).starts_with("even: "));
    let shuffled = |config: &mut DatasetConfig| {
        even(config);
        config.shuffle = Some(Shuffle { seed: 0, window: 2 });
    };
    assert!(with(&shuffled).starts_with("even: "));
    let hollow = |config: &mut DatasetConfig| {
        even(config);
        config.even = Even::Pad;
        config.counts = Some(vec![0]);
    };
    assert!(with(&hollow).starts_with("even: "));
    let mut ends = config.clone();
    even(&mut ends);
    ends.epochs = Some(2);
    let ending = Dataset::new(data.engine.clone(), data.listing.clone(), ends).unwrap();
    assert_eq!(take(&ending, usize::MAX).0, []);
    assert!(with(&|config| config.batch = 0).starts_with("batch: "));
    assert!(with(&|config| config.threads = 0).starts_with("threads: "));
    assert!(with(&|config| config.even = Even::Drop).starts_with("even: "));
    assert!(with(&|config| config.counts = Some(vec![])).starts_with("counts: "));
    assert!(
        with(&|config| config.shuffle = Some(Shuffle { seed: 0, window: 0 }))
            .starts_with("shuffle window: ")
    );
}
