//! The golden files against our code: values that were computed by other means than ours.

use serde::Deserialize;
use standpipe::checksum::{Checksum, ChecksumAlgorithm, Digest};

use crate::source;

/// A line of fixtures/golden/checksums.json.
#[derive(Debug, Deserialize)]
struct Golden {
    input: String,
    algorithm: String,
    value: String,
}

fn input(name: &str) -> Vec<u8> {
    match name {
        "empty" => Vec::new(),
        "check" => b"123456789".to_vec(),
        "zeros" => vec![0; 4096],
        // The same formula stands in fixtures/generate.py.
        "ramp" => (0..10_000u32)
            .map(|index| (index * 7 % 251) as u8)
            .collect(),
        other => panic!("unknown input {other}"),
    }
}

#[test]
fn checksums_are_those_of_a_bitwise_implementation_in_the_form_of_the_headers() {
    let cases: Vec<Golden> =
        serde_json::from_str(&source::read("fixtures/golden/checksums.json")).unwrap();
    assert_eq!(cases.len(), 4 * ChecksumAlgorithm::ALL.len());
    for case in cases {
        let algorithm = ChecksumAlgorithm::from_name(&case.algorithm).unwrap();
        let bytes = input(&case.input);
        let whole = Checksum::of(algorithm, &bytes);
        assert_eq!(whole.to_base64(), case.value, "{case:?}");
        assert_eq!(Checksum::from_base64(algorithm, &case.value), Some(whole));

        let (first, second) = bytes.split_at(bytes.len() / 3);
        let combined = Checksum::of(algorithm, first)
            .then(Checksum::of(algorithm, second), second.len() as u64);
        assert_eq!(combined.to_base64(), case.value, "{case:?}, combined");
        let mut digest = Digest::new(algorithm);
        digest.update(first);
        digest.update(second);
        assert_eq!(digest.value().to_base64(), case.value, "{case:?}, running");
    }
}
