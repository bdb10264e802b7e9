//! What holds for every format: chunks don't matter, boundaries are where decoding may begin, and damage is told.

use std::io::{Read as _, Write as _};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// An object and what is in it.
#[derive(Debug, Clone)]
struct Sample {
    decoding: Decoding,
    key: &'static str,
    object: Bytes,
    payloads: Vec<Data>,
}

/// All that a decoder tells of an object that comes in these chunks, up to the first flaw that is fatal.
fn decode(mut decoder: RecordDecoder, chunks: &[Bytes]) -> (Vec<Record>, Vec<Flaw>) {
    let (mut records, mut flaws) = (Vec::new(), Vec::new());
    let mut chunks = chunks.iter();
    let mut finished = false;
    loop {
        match decoder.next_record() {
            Ok(Some(record)) => records.push(record),
            Ok(None) if finished => break,
            Ok(None) => match chunks.next() {
                Some(chunk) => decoder.push(chunk.clone()),
                None => {
                    decoder.finish();
                    finished = true;
                }
            },
            Err(flaw) => {
                flaws.push(flaw.clone());
                if !flaw.recoverable {
                    assert_eq!(
                        decoder.next_record(),
                        Err(flaw),
                        "a failed decoder stays so"
                    );
                    break;
                }
            }
        }
    }
    (records, flaws)
}

/// `object` cut at these places, which are taken modulo its length.
fn cut(object: &Bytes, cuts: &[usize]) -> Vec<Bytes> {
    let mut places: Vec<usize> = cuts.iter().map(|cut| cut % (object.len() + 1)).collect();
    places.extend([0, object.len()]);
    places.sort_unstable();
    places
        .windows(2)
        .map(|pair| object.slice(pair[0]..pair[1]))
        .collect()
}

fn tar_file(name: &str, data: &[u8], into: &mut Vec<u8>) {
    let mut block = [0u8; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[124..136].copy_from_slice(format!("{:011o}\0", data.len()).as_bytes());
    block[148..156].fill(b' ');
    block[156] = b'0';
    block[257..263].copy_from_slice(b"ustar\0");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    into.extend_from_slice(&block);
    into.extend_from_slice(data);
    into.resize(into.len().next_multiple_of(512), 0);
}

fn tensors(payload: &[u8]) -> protobuf::Tensors {
    let values = Bytes::copy_from_slice(&payload[..payload.len() / 4 * 4]);
    let shape = vec![values.len() as u64 / 4];
    let label = protobuf::Tensor::dense(protobuf::Dtype::I32, values.clone(), Vec::new());
    protobuf::Tensors::dense(
        protobuf::Tensor::dense(protobuf::Dtype::F32, values, shape),
        Some(label),
    )
}

fn encode(format: RecordFormat, payloads: &[Vec<u8>], part_bytes: u32) -> (Vec<u8>, Vec<Data>) {
    let mut object = Vec::new();
    let mut data = Vec::new();
    for (index, payload) in payloads.iter().enumerate() {
        let mut payload = payload.clone();
        match format {
            RecordFormat::TfRecord => tfrecord::encode(&payload, &mut object),
            RecordFormat::RecordIo(_) => recordio::encode(&payload, part_bytes, &mut object),
            RecordFormat::RecordIoProtobuf => {
                let record = tensors(&payload);
                let mut message = Vec::new();
                record.encode(&mut message);
                recordio::encode(&message, recordio::MAX_PART_BYTES, &mut object);
                data.push(Data::Tensors(record));
                continue;
            }
            RecordFormat::Tar => {
                let key = format!("d/{index:03}");
                tar_file(&format!("{key}.bin"), &payload, &mut object);
                tar_file(&format!("{key}.CLS"), b"1", &mut object);
                let files = vec![
                    ("bin".to_owned(), payload.into()),
                    ("cls".to_owned(), Bytes::from_static(b"1")),
                ];
                data.push(Data::Files(Files { key, files }));
                continue;
            }
            RecordFormat::Lines => {
                payload.retain(|byte| !matches!(byte, b'\n' | b'\r'));
                object.extend_from_slice(&payload);
                object.extend_from_slice(if index % 2 == 0 { b"\n" } else { b"\r\n" });
            }
            RecordFormat::JsonLines => {
                payload = serde_json::to_vec(&payload).unwrap();
                object.extend_from_slice(&payload);
                object.push(b'\n');
            }
            RecordFormat::Fixed(len) => {
                payload.resize(len.get() as usize, 7);
                object.extend_from_slice(&payload);
            }
            RecordFormat::Raw => object.extend_from_slice(&payload),
        }
        data.push(Data::Bytes(payload.into()));
    }
    if format == RecordFormat::Raw {
        data = vec![Data::Bytes(object.clone().into())];
    }
    (object, data)
}

fn compress(codec: Codec, object: Vec<u8>) -> (Bytes, &'static str) {
    let half = object.len() / 2;
    let (first, second) = object.split_at(half);
    match codec {
        Codec::None => (object.into(), "key"),
        Codec::Gzip => {
            let member = |bytes: &[u8]| {
                let mut gzip =
                    flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                gzip.write_all(bytes).unwrap();
                gzip.finish().unwrap()
            };
            ([member(first), member(second)].concat().into(), "key.gz")
        }
        Codec::Zstd => {
            let level = ruzstd::encoding::CompressionLevel::Fastest;
            let frame = |bytes| ruzstd::encoding::compress_to_vec(bytes, level);
            ([frame(first), frame(second)].concat().into(), "key.zst")
        }
    }
}

/// What is in an object that may be compressed, by the reference; `None` if it is not whole.
fn decompressed_bytes(object: &[u8]) -> Option<u64> {
    let (mut out, mut rest) = (Vec::new(), object);
    if object.starts_with(&[0x1f, 0x8b]) {
        flate2::read::MultiGzDecoder::new(rest)
            .read_to_end(&mut out)
            .ok()?;
    } else if object.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        while !rest.is_empty() {
            let mut frame = ruzstd::decoding::StreamingDecoder::new(&mut rest).ok()?;
            frame.read_to_end(&mut out).ok()?;
        }
    } else {
        return Some(object.len() as u64);
    }
    Some(out.len() as u64)
}

fn formats() -> impl Strategy<Value = RecordFormat> {
    proptest::sample::select(
        [
            "tar",
            "tfrecord",
            "recordio",
            "recordio:dmlc",
            "recordio-protobuf",
            "lines",
            "jsonl",
            "raw",
            "fixed:9",
        ]
        .map(|name| name.parse().unwrap())
        .to_vec(),
    )
}

prop_compose! {
    fn samples()(
        format in formats(),
        codec in proptest::sample::select(vec![Codec::None, Codec::Gzip, Codec::Zstd]),
        payloads in vec(vec(any::<u8>(), 0..600), 0..8),
        part_bytes in 1u32..700,
        named in any::<bool>(),
    ) -> Sample {
        // The encoder splits as AWS does.
        let part_bytes = match format {
            RecordFormat::RecordIo(Dialect::Dmlc) => recordio::MAX_PART_BYTES,
            _ => part_bytes,
        };
        let (object, payloads) = encode(format, &payloads, part_bytes);
        let (object, suffixed) = compress(codec, object);
        let mut decoding = Decoding::new(format);
        let key = if named {
            decoding.compression = Compression::Is(codec);
            "key"
        } else {
            suffixed
        };
        // A line or a payload may begin like gzip: only a name settles that.
        if !named && codec == Codec::None {
            decoding.compression = Compression::Is(codec);
        }
        Sample { decoding, key, object, payloads }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// R1: whatever the chunks, the same records come, and decoding may begin at each one's end.
    #[test]
    fn any_chunks_give_the_same_records_and_any_boundary_the_rest(
        sample in samples(),
        cuts in vec(any::<usize>(), 0..40),
        from in any::<proptest::sample::Index>(),
    ) {
        let Sample { decoding, key, object, payloads } = sample;
        let chunks = cut(&object, &cuts);
        let (records, flaws) = decode(decoding.decoder(key), &chunks);
        prop_assert_eq!(&flaws, &[]);
        let data: Vec<Data> = records.iter().map(|record| record.data.clone()).collect();
        prop_assert_eq!(data, payloads);
        prop_assert!(records.windows(2).all(|pair| pair[0].end == pair[1].offset));

        let whole = decode(decoding.decoder(key), std::slice::from_ref(&object)).0;
        prop_assert_eq!(&whole, &records);
        if records.is_empty() || decoding.format == RecordFormat::Raw {
            return Ok(());
        }
        let mut first = decoding.decoder(key);
        first.push(object.clone());
        let _ = first.next_record();
        let at = from.index(records.len());
        let decoder = decoding.resume(Boundary { offset: records[at].end, codec: first.codec().unwrap() });
        let rest = object.slice(decoder.first_byte() as usize..);
        let (resumed, flaws) = decode(decoder, &cut(&rest, &cuts));
        prop_assert_eq!(&flaws, &[]);
        prop_assert_eq!(&resumed[..], &records[at + 1..]);
    }

    /// An object that ends too early gives its first records, then says that it is cut; unless what is left is whole.
    #[test]
    fn a_cut_object_gives_the_records_before_the_cut(sample in samples(), at in any::<proptest::sample::Index>()) {
        let Sample { decoding, key, object, payloads } = sample;
        let cut = object.slice(..at.index(object.len() + 1));
        let (records, flaws) = decode(decoding.decoder(key), &[cut]);
        // The last one of a format that does not tell lengths may be shorter than it was.
        let open = matches!(
            decoding.format,
            RecordFormat::Tar | RecordFormat::Lines | RecordFormat::JsonLines | RecordFormat::Raw
        );
        let sure = if open { records.len().saturating_sub(1) } else { records.len() };
        for (record, payload) in records[..sure].iter().zip(&payloads) {
            prop_assert_eq!(&record.data, payload);
        }
        prop_assert!(records.len() <= payloads.len());
        let lost = records.len() < payloads.len();
        let framed = matches!(decoding.format, RecordFormat::TfRecord | RecordFormat::RecordIo(_) | RecordFormat::Fixed(_));
        // A cut may fall between two records, or between two members and a record's end in one, and so be none.
        if framed && lost && flaws.is_empty() {
            let end = records.last().map_or(0, |record| record.end);
            let cut = &object[..at.index(object.len() + 1)];
            let plain = decoding.compression == Compression::Is(Codec::None);
            let whole = if plain { Some(cut.len() as u64) } else { decompressed_bytes(cut) };
            prop_assert_eq!(Some(end), whole);
        }
    }

    /// A changed bit never panics, never loops, and never gives other bytes where a checksum covers them.
    #[test]
    fn a_changed_bit_is_told_or_harmless(
        sample in samples(),
        at in any::<proptest::sample::Index>(),
        bit in 0u8..8,
        cuts in vec(any::<usize>(), 0..3),
    ) {
        let Sample { decoding, key, object, payloads } = sample;
        prop_assume!(!object.is_empty());
        let mut bytes = object.to_vec();
        bytes[at.index(object.len())] ^= 1 << bit;
        let codec = decoding.compression;
        let (records, flaws) = decode(decoding.decoder(key), &cut(&bytes.into(), &cuts));
        let gzip = codec == Compression::Is(Codec::Gzip) || key == "key.gz";
        if decoding.format == RecordFormat::TfRecord && codec == Compression::Is(Codec::None) {
            prop_assert!(!flaws.is_empty(), "every byte of a TFRecord is covered");
            prop_assert!(records.iter().all(|record| payloads.contains(&record.data)));
        }
        if gzip && flaws.is_empty() {
            let data: Vec<Data> = records.into_iter().map(|record| record.data).collect();
            prop_assert_eq!(data, payloads, "a gzip header's bits that mean nothing");
        }
    }

    /// Bytes that are nothing at all.
    #[test]
    fn garbage_never_panics(
        format in formats(),
        codec in proptest::sample::select(vec![Codec::None, Codec::Gzip, Codec::Zstd]),
        garbage in vec(any::<u8>(), 0..2000),
        framed in any::<bool>(),
    ) {
        let mut decoding = Decoding::new(format);
        decoding.compression = Compression::Is(codec);
        let mut object = garbage;
        if framed && format == RecordFormat::RecordIoProtobuf {
            let payload = std::mem::take(&mut object);
            recordio::encode(&payload, recordio::MAX_PART_BYTES, &mut object);
        }
        decode(decoding.decoder("key"), &[object.into()]);
    }

    #[test]
    fn frames_cover_a_payload_once_and_fit_their_parts(len in 0u64..5000, part in 1u32..700) {
        let frames: Vec<recordio::Frame> = recordio::frames(len, part).collect();
        prop_assert!(frames.iter().all(|frame| frame.range.end - frame.range.start <= u64::from(part)));
        prop_assert_eq!((frames[0].range.start, frames.last().unwrap().range.end), (0, len));
        prop_assert!(frames.windows(2).all(|pair| pair[0].range.end == pair[1].range.start));
        let mut encoded = Vec::new();
        recordio::encode(&vec![0; len as usize], part, &mut encoded);
        prop_assert_eq!(encoded.len() as u64, recordio::encoded_bytes(len, part));
    }
}

/// Below 2^29 bytes nothing is split, from there on it is: the largest part has 2^29 - 1.
#[test]
fn payloads_are_split_only_where_a_length_has_no_room() {
    let flags = |len| -> Vec<u8> {
        recordio::frames(len, recordio::MAX_PART_BYTES)
            .map(|frame| frame.header[7] >> 5)
            .collect()
    };
    assert_eq!(flags(0), [0]);
    assert_eq!(flags((1 << 29) - 1), [0]);
    assert_eq!(flags(1 << 29), [1, 3]);
    assert_eq!(flags(3 << 29), [1, 2, 2, 3]);
}

/// R4: dmlc-core leaves the magic number out where it splits; AWS's writers leave nothing out.
#[test]
fn the_dialect_says_what_stands_between_parts() {
    let mut object = Vec::new();
    recordio::encode(b"abcdef", 4, &mut object);
    let decode_as = |dialect| {
        let decoder = Decoding::new(RecordFormat::RecordIo(dialect)).decoder("key");
        decode(decoder, &[object.clone().into()]).0[0].data.clone()
    };
    assert_eq!(decode_as(Dialect::Aws), Data::Bytes("abcdef".into()));
    let with_magic = [&b"abcd"[..], &recordio::MAGIC.to_le_bytes(), b"ef"].concat();
    assert_eq!(decode_as(Dialect::Dmlc), Data::Bytes(with_magic.into()));
}

/// R3: a record within one chunk is a slice of it.
#[test]
fn records_within_a_chunk_are_not_copied() {
    for format in ["tar", "tfrecord", "recordio", "lines", "fixed:100", "raw"] {
        let format: RecordFormat = format.parse().unwrap();
        let (object, _) = encode(
            format,
            &[vec![b'x'; 100], vec![b'y'; 100]],
            recordio::MAX_PART_BYTES,
        );
        let object = Bytes::from(object);
        let (records, flaws) = decode(
            Decoding::new(format).resume(start()),
            std::slice::from_ref(&object),
        );
        assert_eq!(flaws, []);
        for record in records {
            let bytes = match record.data {
                Data::Bytes(bytes) => bytes,
                Data::Files(files) => files.files[0].1.clone(),
                Data::Tensors(_) => unreachable!("not among the formats"),
            };
            assert!(
                object.as_ptr_range().contains(&bytes.as_ptr()),
                "{format} copies"
            );
        }
    }
}

fn start() -> Boundary {
    Boundary {
        offset: 0,
        codec: Codec::None,
    }
}

/// R5: a few kilobytes that expand to a gigabyte are given out in steps, and end at the limit for a record.
#[test]
fn a_bomb_takes_no_more_memory_than_a_step_and_a_record() {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let zeros = vec![0; 1 << 20];
    (0..64).for_each(|_| gzip.write_all(&zeros).unwrap());
    let bomb = Bytes::from(gzip.finish().unwrap());
    assert!(bomb.len() < 100 << 10);

    let mut decompressor = Decompressor::new(None);
    decompressor.push(bomb.clone());
    decompressor.finish();
    let mut sum = 0;
    while let Some(chunk) = decompressor.next_chunk().unwrap() {
        assert!(chunk.len() <= 1 << 20);
        sum += chunk.len();
    }
    assert_eq!((sum, decompressor.codec()), (64 << 20, Some(Codec::Gzip)));

    let mut decoding = Decoding::new(RecordFormat::Lines);
    decoding.max_record_bytes = 4 << 20;
    let (records, flaws) = decode(decoding.decoder("key.gz"), &[bomb]);
    assert!(
        records.is_empty() && flaws[0].reason.contains("max_record_bytes"),
        "{flaws:?}"
    );
}

/// Whole objects that begin with gzip's two bytes, or zstd's four, and are neither.
#[test]
fn what_begins_like_compressed_bytes_is_not_taken_for_them() {
    for len in [0x8b1f, 0x8b1f + (1 << 16)] {
        let mut object = Vec::new();
        tfrecord::encode(&vec![7; len], &mut object);
        assert_eq!(object[..2], [0x1f, 0x8b]);
        let pieces: [Bytes; 2] = [object[..5].to_vec().into(), object[5..].to_vec().into()];
        let decoder = Decoding::new(RecordFormat::TfRecord).decoder("key");
        let (records, flaws) = decode(decoder, &pieces);
        assert_eq!((records.len(), flaws.len()), (1, 0), "{len}: {flaws:?}");
    }
    let fixed: RecordFormat = "fixed:4".parse().unwrap();
    for begin in [
        &[0x1f_u8, 0x8b][..],
        &[0x1f, 0x8b, 8, 0xff, 0, 0, 0, 0, 0, 0],
        &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 99],
        &[0x28, 0xb5, 0, 0],
    ] {
        let mut object = begin.to_vec();
        object.resize(12, 1);
        let (records, flaws) = decode(Decoding::new(fixed).decoder("key"), &[object.into()]);
        assert_eq!((records.len(), flaws.len()), (3, 0), "{begin:?}: {flaws:?}");
    }
    // And what is compressed is found out in any pieces, inside of which there may be such records.
    let mut plain = Vec::new();
    tfrecord::encode(b"payload", &mut plain);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).unwrap();
    let pieces: Vec<Bytes> = gzip
        .finish()
        .unwrap()
        .chunks(1)
        .map(Bytes::copy_from_slice)
        .collect();
    let decoder = Decoding::new(RecordFormat::TfRecord).decoder("key");
    assert_eq!(decode(decoder, &pieces).0.len(), 1);
}

#[test]
fn a_detached_record_is_equal_and_shares_nothing() {
    let object = Bytes::from_static(b"one\ntwo\n");
    let (records, _) = decode(
        Decoding::new(RecordFormat::Lines).decoder("key"),
        std::slice::from_ref(&object),
    );
    let detached = records[0].clone().detached();
    assert_eq!(detached, records[0]);
    let Data::Bytes(bytes) = detached.data else {
        panic!("lines are bytes")
    };
    assert!(!object.as_ptr_range().contains(&bytes.as_ptr()));
}

#[test]
fn unusable_settings_are_named() {
    let mut decoding = Decoding::new(RecordFormat::Raw);
    decoding.validate().unwrap();
    decoding.max_record_bytes = 0;
    assert!(
        decoding
            .validate()
            .unwrap_err()
            .to_string()
            .contains("max_record_bytes")
    );
    let mut decoding = Decoding::new("fixed:100".parse().unwrap());
    decoding.max_record_bytes = 99;
    assert!(
        decoding
            .validate()
            .unwrap_err()
            .to_string()
            .contains("format")
    );
}

/// The object's name and the offset are in the error, as in all others.
#[test]
fn a_flaw_becomes_an_error_that_names_the_object() {
    let mut decoder = Decoding::new(RecordFormat::TfRecord).decoder("key");
    decoder.push(Bytes::from_static(&[7; 100]));
    let flaw = decoder.next_record().unwrap_err();
    let error = flaw.of(&"s3://bucket/key".parse().unwrap());
    assert!(
        error
            .to_string()
            .starts_with("s3://bucket/key: corrupt at offset 0: "),
        "{error}"
    );
}
