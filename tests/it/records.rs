//! Record files that others wrote are read as they meant, ours are theirs byte for byte, and hostile ones are told.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use standpipe::record::protobuf::{Dtype, Tensor, Tensors, Value};
use standpipe::record::{
    Data, Decoding, Flaw, Record, RecordDecoder, RecordFormat, recordio, tfrecord,
};

use crate::source;

fn read(name: &str) -> Bytes {
    let path = source::root().join("fixtures").join(name);
    std::fs::read(&path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        .into()
}

/// Records and flaws of an object that comes in chunks of `chunk_bytes`.
fn decode(
    mut decoder: RecordDecoder,
    object: &Bytes,
    chunk_bytes: usize,
) -> (Vec<Record>, Vec<Flaw>) {
    let (mut records, mut flaws) = (Vec::new(), Vec::new());
    let mut rest = object.clone();
    let mut finished = false;
    loop {
        match decoder.next_record() {
            Ok(Some(record)) => records.push(record),
            Ok(None) if finished => return (records, flaws),
            Ok(None) if rest.is_empty() => {
                decoder.finish();
                finished = true;
            }
            Ok(None) => decoder.push(rest.split_to(chunk_bytes.min(rest.len()))),
            Err(flaw) => {
                let fatal = !flaw.recoverable;
                flaws.push(flaw);
                if fatal {
                    return (records, flaws);
                }
            }
        }
    }
}

/// A part of a record as expect.json has it: name, length, hash.
fn part(name: &str, bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes)
        .iter()
        .fold(String::new(), |mut hex, byte| {
            write!(hex, "{byte:02x}").unwrap();
            hex
        });
    format!("{name} {} {digest}", bytes.len())
}

fn tensor_parts(name: &str, tensor: &Tensor, parts: &mut Vec<String>) {
    let dtype = match tensor.dtype {
        Dtype::F32 => "f32",
        Dtype::F64 => "f64",
        Dtype::I32 => "i32",
    };
    let keys: Vec<u8> = tensor
        .keys
        .iter()
        .flat_map(|key| key.to_le_bytes())
        .collect();
    parts.push(part(
        &format!("{name}:{dtype}{:?}", tensor.shape),
        &tensor.values,
    ));
    parts.push(part(&format!("{name}:keys"), &keys));
}

fn describe(record: &Record) -> Vec<String> {
    match &record.data {
        Data::Bytes(bytes) => vec![part("", bytes)],
        Data::Files(files) => {
            let named =
                |(kind, bytes): &(String, Bytes)| part(&format!("{}.{kind}", files.key), bytes);
            files.files.iter().map(named).collect()
        }
        Data::Tensors(tensors) => {
            let mut parts = Vec::new();
            for (map, entries) in [("features", &tensors.features), ("label", &tensors.label)] {
                for (name, value) in entries {
                    let Value::Tensor(tensor) = value else {
                        panic!("the fixtures hold tensors")
                    };
                    tensor_parts(&format!("{map}/{name}"), tensor, &mut parts);
                }
            }
            parts
        }
    }
}

fn decoding(name: &str) -> Decoding {
    Decoding::new(match name.contains("dmlc") {
        true => "recordio:dmlc".parse().unwrap(),
        false => RecordFormat::of_key(name).expect("golden files have suffixes"),
    })
}

/// Written by the SageMaker SDK, the package `tfrecord`, Python's `tarfile` and `gzip`, and `zstandard`: read in whole, in
/// odd chunks and byte by byte.
#[test]
fn golden_files_hold_what_their_writers_put_in() {
    let expect: BTreeMap<String, Vec<Vec<String>>> =
        serde_json::from_str(&source::read("fixtures/golden/records/expect.json")).unwrap();
    assert_eq!(expect.len(), 13, "every golden file is looked at");
    for (name, records) in expect {
        let object = read(&format!("golden/records/{name}"));
        for chunk_bytes in [1, 1000, usize::MAX] {
            let (found, flaws) = decode(decoding(&name).decoder(&name), &object, chunk_bytes);
            assert_eq!(flaws, [], "{name}");
            let found: Vec<Vec<String>> = found.iter().map(describe).collect();
            assert_eq!(found, records, "{name} in chunks of {chunk_bytes}");
        }
    }
}

/// What is equal to a reference writer's bytes is read by whatever reads those.
#[test]
fn our_files_are_the_reference_writers_byte_for_byte() {
    for name in [
        "tfrecord.tfrecord",
        "sagemaker.rec",
        "dense-float32.pbr",
        "dense-float64.pbr",
        "dense-int64.pbr",
    ] {
        let object = read(&format!("golden/records/{name}"));
        let (records, _) = decode(decoding(name).decoder(name), &object, usize::MAX);
        let mut ours = Vec::new();
        for record in &records {
            match (&record.data, decoding(name).format) {
                (Data::Bytes(bytes), RecordFormat::TfRecord) => tfrecord::encode(bytes, &mut ours),
                (Data::Bytes(bytes), _) => {
                    recordio::encode(bytes, recordio::MAX_PART_BYTES, &mut ours)
                }
                (Data::Tensors(tensors), _) => encode_dense(tensors, &mut ours),
                (Data::Files(_), _) => unreachable!("not among the names"),
            }
        }
        assert!(!ours.is_empty() && object == ours, "{name}");
    }
}

fn encode_dense(tensors: &Tensors, into: &mut Vec<u8>) {
    let tensor = |entries: &[(String, Value)]| match &entries[0].1 {
        Value::Tensor(tensor) => tensor.clone(),
        Value::Bytes { .. } => panic!("the fixtures hold tensors"),
    };
    let ours = Tensors::dense(tensor(&tensors.features), Some(tensor(&tensors.label)));
    let mut message = Vec::new();
    ours.encode(&mut message);
    recordio::encode(&message, recordio::MAX_PART_BYTES, into);
}

/// R2: each flaw is told where it is, whatever the chunks; what is sound before it, and behind it where that can be known,
/// is delivered.
#[test]
fn hostile_files_are_told_and_harm_nothing() {
    let expect = source::read("fixtures/hostile/records/expect.tsv");
    let mut seen = 0;
    for line in expect.lines() {
        let [name, format, compression, records, outcome, why] = line
            .split('\t')
            .collect::<Vec<_>>()
            .try_into()
            .unwrap_or_else(|_| panic!("six columns: {line}"));
        let object = read(&format!("hostile/records/{name}.bin"));
        let mut decoding = Decoding::new(format.parse().unwrap());
        decoding.compression = compression.parse().unwrap();
        for chunk_bytes in [1, 7, usize::MAX] {
            let (found, flaws) = decode(decoding.decoder("key"), &object, chunk_bytes);
            let told = match &flaws[..] {
                [] => "end",
                [flaw] if flaw.recoverable => "record",
                [_] => "fatal",
                _ => "several",
            };
            assert_eq!(
                (told, found.len().to_string().as_str()),
                (outcome, records),
                "{name} ({why}) in chunks of {chunk_bytes}: {flaws:?}"
            );
            assert!(
                flaws.iter().all(|flaw| flaw.offset <= object.len() as u64),
                "{name}: {flaws:?}"
            );
        }
        seen += 1;
    }
    assert!(seen > 60, "{seen} hostile files");
}
