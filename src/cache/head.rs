//! The head of an entry's `map` file, and how an object is named in the cache. No I/O.
//!
//! ```text
//! 0   magic                       8
//! 8   format                      u32
//! 12  length of the identity      u32
//! 16  object's size               u64
//! 24  block size                  u64
//! 32  CRC32C of the above and of the identity  u32, and 4 bytes of zeros
//! 40  when it was last used       u64   changes; on the cache's clock, which counts bytes
//! 48  the object's CRC            16    changes once: algorithm u32, check u32, value u64
//! 64  identity, padded to 8
//! ..  one record of 8 bytes per block
//! ```
//!
//! Numbers are little-endian. What changes is not covered by the CRC; no value of it can do harm.

use sha2::{Digest as _, Sha256};

use super::blocks::{Blocks, Record, crc32c};
use crate::checksum::{Checksum, ChecksumAlgorithm};
use crate::object::{ObjectId, Scheme};

const MAGIC: [u8; 8] = *b"STNDBLKS";
/// Of directory and entries alike.
pub(super) const FORMAT: u32 = 1;
pub(super) const FIXED_BYTES: usize = 64;
pub(super) const USED_AT: u64 = 40;
pub(super) const CHECKSUM_AT: u64 = 48;
pub(super) const CHECKSUM_BYTES: usize = 16;
/// A namespace, a bucket's ARN, a key of 1 KiB, an ETag and a version are far below.
const MOST_IDENTITY_BYTES: usize = 16 << 10;

/// One version of one object, spelled out: equal if and only if the bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity(Vec<u8>);

impl Identity {
    /// `None` when the object is not pinned to a size and a strong version, or its names are absurdly long.
    pub(super) fn of(id: &ObjectId, namespace: &str) -> Option<Self> {
        let size_bytes = id.size_bytes?;
        // A weak ETag promises the same meaning, not the same bytes.
        let etag = id.etag.as_deref().filter(|etag| !etag.starts_with("W/"));
        let version = match (etag, &id.version_id) {
            (Some(etag), _) => ("etag", etag),
            (None, Some(version)) => ("version", &**version),
            (None, None) => return None,
        };
        let scheme = match id.uri.scheme() {
            Scheme::S3 => "s3",
            Scheme::File => "file",
            Scheme::Memory => "memory",
        };
        let mut bytes = size_bytes.to_le_bytes().to_vec();
        let texts = [
            scheme,
            namespace,
            id.uri.bucket(),
            id.uri.key(),
            version.0,
            version.1,
        ];
        for text in texts {
            // Lengths first: no two lists of texts are spelled alike.
            bytes.extend_from_slice(&u32::try_from(text.len()).ok()?.to_le_bytes());
            bytes.extend_from_slice(text.as_bytes());
        }
        (bytes.len() <= MOST_IDENTITY_BYTES).then_some(Self(bytes))
    }

    /// The name of its directory: SHA-256, in hexadecimal.
    pub(super) fn digest(&self) -> Digest {
        Digest(Sha256::digest(&self.0).into())
    }
}

/// What an entry is found by.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Digest(pub(super) [u8; 32]);

impl Digest {
    pub(super) fn name(self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Some of its bits, which are as good as random.
    pub(super) fn bits(self) -> u64 {
        self.0
            .iter()
            .take(8)
            .fold(0, |bits, byte| bits << 8 | u64::from(*byte))
    }
}

impl std::fmt::Debug for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name())
    }
}

/// What does not change of a `map` file's head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) identity: Identity,
    pub(super) blocks: Blocks,
}

impl Head {
    /// Where the records begin.
    pub(super) fn records_at(&self) -> u64 {
        (FIXED_BYTES + self.identity.0.len()).next_multiple_of(8) as u64
    }

    /// The length of the whole file.
    pub(super) fn map_bytes(&self) -> u64 {
        self.records_at() + self.blocks.count() * Record::LEN as u64
    }

    pub(super) fn encode(&self, used_at: u64) -> Vec<u8> {
        let mut bytes = vec![0; self.records_at() as usize];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        bytes[12..16].copy_from_slice(&(self.identity.0.len() as u32).to_le_bytes());
        bytes[16..24].copy_from_slice(&self.blocks.size_bytes.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.blocks.block_bytes.to_le_bytes());
        bytes[FIXED_BYTES..FIXED_BYTES + self.identity.0.len()].copy_from_slice(&self.identity.0);
        let check = check(&bytes[..32], &self.identity.0);
        bytes[32..36].copy_from_slice(&check.to_le_bytes());
        bytes[40..48].copy_from_slice(&used_at.to_le_bytes());
        bytes
    }

    /// Whether `found`, which ends where the records begin, is this head with whatever changes.
    pub(super) fn is(&self, found: &[u8]) -> bool {
        let expected = self.encode(0);
        found.len() == expected.len()
            && found[..USED_AT as usize] == expected[..USED_AT as usize]
            && found[FIXED_BYTES..] == expected[FIXED_BYTES..]
    }

    /// How long the identity behind these first [`FIXED_BYTES`] is, if they are a head's at all.
    pub(super) fn identity_bytes(fixed: &[u8]) -> Result<usize, String> {
        if fixed.len() < FIXED_BYTES || fixed[..8] != MAGIC {
            return Err("not a cache entry".into());
        }
        let format = u32_at(fixed, 8);
        if format != FORMAT {
            return Err(format!("format {format}, not {FORMAT}"));
        }
        let len = u32_at(fixed, 12) as usize;
        if len > MOST_IDENTITY_BYTES {
            return Err(format!("an identity of {len} bytes"));
        }
        Ok(len)
    }

    /// Reads a head from at least its first [`records_at`](Self::records_at) bytes.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let len = Self::identity_bytes(bytes)?;
        let identity = bytes
            .get(FIXED_BYTES..FIXED_BYTES + len)
            .ok_or("cut off in its identity")?;
        if check(&bytes[..32], identity) != u32_at(bytes, 32) {
            return Err("its head's checksum is wrong".into());
        }
        let blocks = Blocks {
            size_bytes: u64_at(bytes, 16),
            block_bytes: u64_at(bytes, 24),
        };
        if !blocks.block_bytes.is_power_of_two() || blocks.size_bytes > 1 << 62 {
            return Err("impossible sizes".into());
        }
        Ok(Self {
            identity: Identity(identity.to_vec()),
            blocks,
        })
    }
}

fn check(fixed: &[u8], identity: &[u8]) -> u32 {
    crc32c(&[fixed, identity].concat())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut four = [0; 4];
    four.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(four)
}

/// # Panics
/// When `bytes` are too few.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut eight = [0; 8];
    eight.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(eight)
}

/// The object's CRC as it stands in the head.
pub(super) fn encode_checksum(checksum: Checksum) -> [u8; CHECKSUM_BYTES] {
    let algorithm: u32 = match checksum.algorithm {
        ChecksumAlgorithm::Crc32 => 1,
        ChecksumAlgorithm::Crc32c => 2,
        ChecksumAlgorithm::Crc64Nvme => 3,
    };
    let mut bytes = [0; CHECKSUM_BYTES];
    bytes[..4].copy_from_slice(&algorithm.to_le_bytes());
    bytes[8..].copy_from_slice(&checksum.value.to_le_bytes());
    let check = crc32c(&bytes);
    bytes[4..8].copy_from_slice(&check.to_le_bytes());
    bytes
}

/// `None` when there is none, or it is not whole: a wrong one would condemn the right bytes.
pub(super) fn decode_checksum(bytes: [u8; CHECKSUM_BYTES]) -> Option<Checksum> {
    let algorithm = match u32_at(&bytes, 0) {
        1 => ChecksumAlgorithm::Crc32,
        2 => ChecksumAlgorithm::Crc32c,
        3 => ChecksumAlgorithm::Crc64Nvme,
        _ => return None,
    };
    let checksum = Checksum {
        algorithm,
        value: u64_at(&bytes, 8),
    };
    (encode_checksum(checksum) == bytes).then_some(checksum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::ObjectUri;
    use proptest::prelude::*;

    fn id(bucket: &str, key: &str, etag: &str, size: u64) -> ObjectId {
        ObjectId {
            etag: Some(etag.into()),
            size_bytes: Some(size),
            ..ObjectId::unpinned(ObjectUri::s3(bucket, key))
        }
    }

    fn head(key: &str, size_bytes: u64) -> Head {
        Head {
            identity: Identity::of(&id("b", key, "\"e\"", size_bytes), "").unwrap(),
            blocks: Blocks {
                size_bytes,
                block_bytes: 1 << 20,
            },
        }
    }

    #[test]
    fn another_version_place_or_store_is_another_entry() {
        let base = id("b", "k", "\"e\"", 9);
        let mut versioned = base.clone();
        (versioned.etag, versioned.version_id) = (None, Some("\"e\"".into()));
        let digests = [
            Identity::of(&base, ""),
            Identity::of(&base, "http://127.0.0.1:1"),
            Identity::of(&id("b", "k", "\"f\"", 9), ""),
            Identity::of(&id("b", "k2", "\"e\"", 9), ""),
            Identity::of(&id("bk", "", "\"e\"", 9), ""),
            Identity::of(&id("b", "k", "\"e\"", 8), ""),
            Identity::of(&versioned, ""),
        ]
        .map(|identity| identity.unwrap().digest());
        for (i, a) in digests.iter().enumerate() {
            assert!(!digests[..i].contains(a), "{i}");
        }
        assert_eq!(digests[0].name().len(), 64);
    }

    #[test]
    fn what_is_not_pinned_has_no_identity() {
        let mut weak = id("b", "k", "W/\"e\"", 9);
        assert_eq!(Identity::of(&weak, ""), None);
        weak.etag = None;
        assert_eq!(Identity::of(&weak, ""), None);
        let mut unsized_ = id("b", "k", "\"e\"", 9);
        unsized_.size_bytes = None;
        assert_eq!(Identity::of(&unsized_, ""), None);
    }

    proptest! {
        #[test]
        fn heads_read_as_they_were_written(key in ".{0,200}", size in 0..1u64 << 50, used_at: u64) {
            let head = head(&key, size);
            let bytes = head.encode(used_at);
            prop_assert_eq!(Head::decode(&bytes), Ok(head));
            prop_assert_eq!(u64_at(&bytes, USED_AT as usize), used_at);
        }

        #[test]
        fn hostile_heads_are_errors(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(Head::decode(&bytes).is_err());
            let mut magic = MAGIC.to_vec();
            magic.extend_from_slice(&FORMAT.to_le_bytes());
            magic.extend_from_slice(&bytes);
            prop_assert!(Head::decode(&magic).is_err());
        }

        #[test]
        fn a_flipped_bit_of_what_is_covered_is_seen(at in 0..100usize, bit in 0..8u8, cut in 0..120usize) {
            let bytes = head("a-key", 77).encode(5);
            let mut flipped = bytes.clone();
            let at = at % bytes.len();
            flipped[at] ^= 1 << bit;
            let is_covered = at < 36 || (FIXED_BYTES..FIXED_BYTES + head("a-key", 77).identity.0.len()).contains(&at);
            prop_assert_eq!(Head::decode(&flipped).is_err(), is_covered, "byte {}", at);
            let len = FIXED_BYTES + head("a-key", 77).identity.0.len();
            let _ = Head::decode(&bytes[..cut.min(bytes.len())]);
            prop_assert!(Head::decode(&bytes[..cut.min(len - 1)]).is_err());
        }

        #[test]
        fn a_torn_checksum_is_none(value: u64, written in 0..CHECKSUM_BYTES) {
            let checksum = Checksum { algorithm: ChecksumAlgorithm::Crc64Nvme, value };
            let whole = encode_checksum(checksum);
            prop_assert_eq!(decode_checksum(whole), Some(checksum));
            let mut torn = [0; CHECKSUM_BYTES];
            torn[..written].copy_from_slice(&whole[..written]);
            prop_assert!(torn == whole || decode_checksum(torn).is_none());
        }
    }
}
