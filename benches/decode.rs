//! Decoders alone: bytes in memory, in chunks of 8 MiB as the engine delivers them, to records of 100 KB.
//!
//! criterion prints GB/s of the object's bytes and the time of one pass; a pass is 320 records, so 1 ms is 3.1 us each.
//! `lines` are 100 bytes long: the time is that of 320,000 of them. Consumers that touch the bytes pay for that themselves;
//! TFRecord and gzip touch them for their CRC.

use std::hint::black_box;
use std::io::Write as _;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use standpipe::record::protobuf::{Dtype, Tensor, Tensors};
use standpipe::record::{Decoding, recordio, tfrecord};

const RECORDS: usize = 320;
const RECORD_BYTES: usize = 100_000;
const CHUNK_BYTES: usize = 8 << 20;

/// Bytes that compress to about a half, as images of few colours do.
fn payload(index: usize) -> Vec<u8> {
    let mut state = index as u32 + 1;
    (0..RECORD_BYTES)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 28) as u8
        })
        .collect()
}

fn object(format: &str) -> Bytes {
    let mut object = Vec::new();
    for index in 0..RECORDS {
        let payload = payload(index);
        match format {
            "tfrecord" => tfrecord::encode(&payload, &mut object),
            "recordio" => recordio::encode(&payload, recordio::MAX_PART_BYTES, &mut object),
            "recordio-protobuf" => {
                let tensor =
                    Tensor::dense(Dtype::F32, payload.into(), vec![RECORD_BYTES as u64 / 4]);
                let mut message = Vec::new();
                Tensors::dense(tensor, None).encode(&mut message);
                recordio::encode(&message, recordio::MAX_PART_BYTES, &mut object);
            }
            "tar" => tar_file(&format!("{index:06}.bin"), &payload, &mut object),
            "lines" | "jsonl" => (0..RECORD_BYTES / 100).for_each(|line| {
                writeln!(object, "{{\"at\": {:>91}}}", index * 1000 + line).expect("memory")
            }),
            _ => object.extend_from_slice(&payload),
        }
    }
    object.into()
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

/// One pass over the object; returns how many records there were.
fn pass(decoding: &Decoding, key: &str, object: &Bytes) -> usize {
    let mut decoder = decoding.decoder(key);
    let mut rest = object.clone();
    let mut records = 0;
    while !rest.is_empty() {
        decoder.push(rest.split_to(CHUNK_BYTES.min(rest.len())));
        if rest.is_empty() {
            decoder.finish();
        }
        while let Some(record) = decoder.next_record().expect("sound") {
            black_box(record);
            records += 1;
        }
    }
    records
}

fn bench(
    criterion: &mut Criterion,
    name: &str,
    format: &str,
    key: &str,
    object: &Bytes,
    plain_bytes: usize,
) {
    let decoding = Decoding::new(format.parse().expect("a format"));
    let mut group = criterion.benchmark_group("decode");
    group
        .sample_size(10)
        .throughput(Throughput::Bytes(plain_bytes as u64));
    group.bench_function(name, |bencher| {
        bencher.iter(|| assert!(pass(&decoding, key, object) >= 1));
    });
    group.finish();
}

fn decode(criterion: &mut Criterion) {
    for format in [
        "tar",
        "tfrecord",
        "recordio",
        "recordio-protobuf",
        "lines",
        "jsonl",
        "fixed:100000",
        "raw",
    ] {
        let object = object(format);
        bench(criterion, format, format, "key.bin", &object, object.len());
    }
    let plain = object("fixed:100000");
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).expect("memory");
    let gzip = gzip.finish().expect("memory").into();
    bench(
        criterion,
        "gzip",
        "fixed:100000",
        "key.gz",
        &gzip,
        plain.len(),
    );
    let level = ruzstd::encoding::CompressionLevel::Fastest;
    let zstd = ruzstd::encoding::compress_to_vec(&plain[..], level).into();
    bench(
        criterion,
        "zstd",
        "fixed:100000",
        "key.zst",
        &zstd,
        plain.len(),
    );
}

criterion_group!(benches, decode);
criterion_main!(benches);
