//! The CRCs that S3 keeps with objects, whole or per part.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use crc_fast::{CrcAlgorithm, Digest};
use serde::{Deserialize, Serialize};
use std::ops::Range;

use crate::content::Content;

/// Which CRC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Algorithm {
    /// S3's default for new objects; always of the full object.
    #[default]
    Crc64Nvme,
    /// Castagnoli.
    Crc32c,
    /// The CRC of zip and Ethernet.
    Crc32,
}

/// Whether a multipart object's checksum covers its bytes or its parts' checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum ChecksumKind {
    /// Of all bytes.
    #[default]
    FullObject,
    /// Of the concatenated checksums of the parts, written `value-N`.
    Composite,
}

impl ChecksumKind {
    /// As S3 spells it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            ChecksumKind::FullObject => "FULL_OBJECT",
            ChecksumKind::Composite => "COMPOSITE",
        }
    }
}

impl Algorithm {
    /// All of them.
    pub const ALL: [Algorithm; 3] = [Algorithm::Crc64Nvme, Algorithm::Crc32c, Algorithm::Crc32];

    /// As S3 spells it in XML and in `x-amz-checksum-algorithm`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Algorithm::Crc64Nvme => "CRC64NVME",
            Algorithm::Crc32c => "CRC32C",
            Algorithm::Crc32 => "CRC32",
        }
    }

    /// The header that carries a value.
    pub(crate) fn header(self) -> &'static str {
        match self {
            Algorithm::Crc64Nvme => "x-amz-checksum-crc64nvme",
            Algorithm::Crc32c => "x-amz-checksum-crc32c",
            Algorithm::Crc32 => "x-amz-checksum-crc32",
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<Algorithm> {
        Algorithm::ALL
            .into_iter()
            .find(|algorithm| algorithm.name().eq_ignore_ascii_case(name))
    }

    fn crc(self) -> CrcAlgorithm {
        match self {
            Algorithm::Crc64Nvme => CrcAlgorithm::Crc64Nvme,
            Algorithm::Crc32c => CrcAlgorithm::Crc32Iscsi,
            Algorithm::Crc32 => CrcAlgorithm::Crc32IsoHdlc,
        }
    }

    /// The checksum of `bytes` as S3 writes it: big-endian, in base64.
    pub fn of(self, bytes: &[u8]) -> String {
        self.encode(crc_fast::checksum(self.crc(), bytes))
    }

    /// The CRC of `range` of `content`. A content that repeats the pattern many times is not read many times: CRCs of
    /// pieces combine.
    pub(crate) fn of_content(self, content: &Content, range: Range<u64>) -> u64 {
        let period = content.file().len().max(1) as u64;
        let whole_turns = (range.end - range.start) / period;
        if whole_turns < 2 {
            let mut digest = Digest::new(self.crc());
            content.for_each(range, |slice| digest.update(slice));
            return digest.finalize();
        }
        let turn = self.of_content(content, range.start..range.start + period);
        let turns = self.power(turn, period, whole_turns);
        let rest = range.start + whole_turns * period..range.end;
        let rest_bytes = rest.end - rest.start;
        crc_fast::checksum_combine(
            self.crc(),
            turns,
            self.of_content(content, rest),
            rest_bytes,
        )
    }

    /// The CRC of `count` copies of `len` bytes that have the CRC `one`.
    fn power(self, one: u64, len: u64, count: u64) -> u64 {
        if count == 1 {
            return one;
        }
        let half = self.power(one, len, count / 2);
        let even = crc_fast::checksum_combine(self.crc(), half, half, len * (count / 2));
        if count.is_multiple_of(2) {
            even
        } else {
            crc_fast::checksum_combine(self.crc(), even, one, len)
        }
    }

    pub(crate) fn encode(self, value: u64) -> String {
        BASE64.encode(self.bytes(value))
    }

    fn bytes(self, value: u64) -> Vec<u8> {
        match self {
            Algorithm::Crc64Nvme => value.to_be_bytes().to_vec(),
            Algorithm::Crc32c | Algorithm::Crc32 => (value as u32).to_be_bytes().to_vec(),
        }
    }

    /// The composite checksum over part checksums.
    pub(crate) fn composite(self, parts: &[u64]) -> String {
        let joined: Vec<u8> = parts.iter().flat_map(|part| self.bytes(*part)).collect();
        format!("{}-{}", self.of(&joined), parts.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::{Memory, PATTERN_BYTES};

    #[test]
    fn check_values_of_the_crc_catalogue() {
        let check = |algorithm: Algorithm, value: u64| {
            assert_eq!(algorithm.of(b"123456789"), algorithm.encode(value))
        };
        check(Algorithm::Crc64Nvme, 0xae8b_1486_0a79_9888);
        check(Algorithm::Crc32c, 0xe306_9283);
        check(Algorithm::Crc32, 0xcbf4_3926);
    }

    #[test]
    fn a_repeating_content_is_combined_not_read() {
        let memory = Memory::default();
        let object = Content::synthetic(3, 3 * PATTERN_BYTES + 12_345, &memory).unwrap();
        let mut digest = Digest::new(CrcAlgorithm::Crc64Nvme);
        object.for_each(0..object.len(), |slice| digest.update(slice));
        assert_eq!(
            Algorithm::Crc64Nvme.of_content(&object, 0..object.len()),
            digest.finalize()
        );
    }
}
