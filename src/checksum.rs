//! S3's CRC checksums: running digests, combination over parts, and the base64 form of the headers.
//!
//! S3 stores a full-object CRC with nearly every new object (CRC64NVME by default). A CRC of a whole can be computed
//! from the CRCs of its parts, so an object that is fetched as many ranges is verified at O(1) per part. SHA-1,
//! SHA-256 and composite (`-N`) checksums have no such property and are left unverified, and counted.
//! Formats: the S3 user guide, "Checking object integrity".

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use crc_fast::{CrcAlgorithm, Digest as FastDigest};

/// How much the checksums that the server offers count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ChecksumPolicy {
    /// They are neither asked for nor computed.
    Off,
    /// They are compared where the server's answer allows it; objects without one are counted.
    #[default]
    WhenPossible,
    /// An object that can't be verified is an error.
    Require,
}

/// The CRCs that S3 knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChecksumAlgorithm {
    /// `x-amz-checksum-crc32`: CRC-32/ISO-HDLC.
    Crc32,
    /// `x-amz-checksum-crc32c`: CRC-32/ISCSI.
    Crc32c,
    /// `x-amz-checksum-crc64nvme`: CRC-64/NVME, S3's default.
    Crc64Nvme,
}

impl ChecksumAlgorithm {
    /// All of them, the cheapest to trust first: the order in which headers are looked up.
    pub const ALL: [Self; 3] = [Self::Crc64Nvme, Self::Crc32c, Self::Crc32];

    /// The response header that carries the value.
    pub fn header(self) -> &'static str {
        match self {
            Self::Crc32 => "x-amz-checksum-crc32",
            Self::Crc32c => "x-amz-checksum-crc32c",
            Self::Crc64Nvme => "x-amz-checksum-crc64nvme",
        }
    }

    /// The name in a listing's `ChecksumAlgorithm`, if it is a CRC that can be combined.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "CRC32" => Self::Crc32,
            "CRC32C" => Self::Crc32c,
            "CRC64NVME" => Self::Crc64Nvme,
            _ => return None,
        })
    }

    fn fast(self) -> CrcAlgorithm {
        match self {
            Self::Crc32 => CrcAlgorithm::Crc32IsoHdlc,
            Self::Crc32c => CrcAlgorithm::Crc32Iscsi,
            Self::Crc64Nvme => CrcAlgorithm::Crc64Nvme,
        }
    }

    fn width_bytes(self) -> usize {
        match self {
            Self::Crc32 | Self::Crc32c => 4,
            Self::Crc64Nvme => 8,
        }
    }

    fn polynomial(self) -> Polynomial {
        let reflected = match self {
            Self::Crc32 => 0xedb8_8320,
            Self::Crc32c => 0x82f6_3b78,
            Self::Crc64Nvme => 0x9a6c_9329_ac4b_c9b5,
        };
        let top = 1 << (8 * self.width_bytes() - 1);
        Polynomial { reflected, top }
    }
}

/// The field that a CRC calculates in: polynomials over two elements, modulo the CRC's own. Reflected, as all CRCs of
/// S3 are: the highest bit is the coefficient of 1.
///
/// Appending n zero bytes multiplies a CRC by x^8n, and the CRC of two pieces end to end is the first one's, so shifted,
/// plus the second one's (zlib's `crc32_combine` explains why beginning and ending with ones changes nothing). Two
/// multiplications for each bit of n take about 3 us; the matrices of crc-fast take 150, on the consumer's thread.
#[derive(Debug, Clone, Copy)]
struct Polynomial {
    reflected: u64,
    top: u64,
}

impl Polynomial {
    /// `crc` times x^(8 * `zero_bytes`).
    fn shift(self, crc: u64, zero_bytes: u64) -> u64 {
        // x^8, then its square for each bit of the exponent.
        let mut power = self.top >> 8;
        let (mut shifted, mut left) = (crc, zero_bytes);
        while left > 0 {
            if left & 1 == 1 {
                shifted = self.times(shifted, power);
            }
            power = self.times(power, power);
            left >>= 1;
        }
        shifted
    }

    fn times(self, a: u64, mut b: u64) -> u64 {
        let (mut product, mut bit) = (0, self.top);
        while bit != 0 {
            // Without branches: the bits of a CRC are random, and a branch on one is guessed wrong half of the time.
            product ^= b & ((a & bit != 0) as u64).wrapping_neg();
            b = (b >> 1) ^ (self.reflected & (b & 1).wrapping_neg());
            bit >>= 1;
        }
        product
    }
}

/// A full-object checksum: algorithm and value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checksum {
    /// Which CRC.
    pub algorithm: ChecksumAlgorithm,
    /// Its value, in the low bits.
    pub value: u64,
}

impl Checksum {
    /// The CRC of `bytes`.
    pub fn of(algorithm: ChecksumAlgorithm, bytes: &[u8]) -> Self {
        Self {
            algorithm,
            value: crc_fast::checksum(algorithm.fast(), bytes),
        }
    }

    /// The CRC of `self`'s bytes followed by `next`'s, which are `next_len` long.
    ///
    /// # Panics
    /// When the two algorithms differ.
    pub fn then(self, next: Checksum, next_len: u64) -> Self {
        assert_eq!(
            self.algorithm, next.algorithm,
            "checksums of one object share an algorithm"
        );
        let polynomial = self.algorithm.polynomial();
        Self {
            algorithm: self.algorithm,
            value: polynomial.shift(self.value, next_len) ^ next.value,
        }
    }

    /// Reads a header's value; `None` for composite (`-N`) and malformed ones.
    pub fn from_base64(algorithm: ChecksumAlgorithm, text: &str) -> Option<Self> {
        let bytes = BASE64.decode(text.trim()).ok()?;
        if bytes.len() != algorithm.width_bytes() {
            return None;
        }
        let value = bytes
            .iter()
            .fold(0, |value, byte| value << 8 | u64::from(*byte));
        Some(Self { algorithm, value })
    }

    /// The header's form: base64 of the big-endian value.
    pub fn to_base64(self) -> String {
        let bytes = self.value.to_be_bytes();
        BASE64.encode(&bytes[8 - self.algorithm.width_bytes()..])
    }
}

/// A CRC under way.
#[derive(Debug, Clone)]
pub struct Digest {
    algorithm: ChecksumAlgorithm,
    state: FastDigest,
}

impl Digest {
    /// Starts at the CRC of nothing.
    pub fn new(algorithm: ChecksumAlgorithm) -> Self {
        Self {
            algorithm,
            state: FastDigest::new(algorithm.fast()),
        }
    }

    /// Goes on over `bytes`; cheapest right after they were received, while they are in the cache.
    pub fn update(&mut self, bytes: &[u8]) {
        self.state.update(bytes);
    }

    /// Which CRC.
    pub fn algorithm(&self) -> ChecksumAlgorithm {
        self.algorithm
    }

    /// The CRC so far.
    pub fn value(&self) -> Checksum {
        Checksum {
            algorithm: self.algorithm,
            value: self.state.finalize(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The catalogue's check values: the CRC of `123456789` (reveng CRC catalogue).
    #[test]
    fn check_values_of_the_catalogue() {
        let of = |algorithm| Checksum::of(algorithm, b"123456789").value;
        assert_eq!(of(ChecksumAlgorithm::Crc32), 0xcbf4_3926);
        assert_eq!(of(ChecksumAlgorithm::Crc32c), 0xe306_9283);
        assert_eq!(of(ChecksumAlgorithm::Crc64Nvme), 0xae8b_1486_0a79_9888);
    }

    #[test]
    fn composite_and_malformed_headers_are_no_checksum() {
        for text in ["", "AAAA", "yZRlqg==-3", "not base64"] {
            assert_eq!(
                Checksum::from_base64(ChecksumAlgorithm::Crc64Nvme, text),
                None,
                "{text}"
            );
        }
    }

    fn algorithm() -> impl Strategy<Value = ChecksumAlgorithm> {
        proptest::sample::select(ChecksumAlgorithm::ALL.to_vec())
    }

    proptest! {
        #[test]
        fn parts_combine_to_the_whole(algorithm in algorithm(), bytes: Vec<u8>, cut: proptest::sample::Index) {
            let (a, b) = bytes.split_at(cut.index(bytes.len() + 1));
            let mut digest = Digest::new(algorithm);
            digest.update(a);
            let first = digest.value();
            digest.update(b);
            let whole = Checksum::of(algorithm, &bytes);
            prop_assert_eq!(digest.value(), whole);
            prop_assert_eq!(first.then(Checksum::of(algorithm, b), b.len() as u64), whole);
            prop_assert_eq!(Checksum::from_base64(algorithm, &whole.to_base64()), Some(whole));
        }

        /// Invariant I12: any flipped bit changes the CRC.
        #[test]
        fn a_flipped_bit_is_seen(algorithm in algorithm(), mut bytes in proptest::collection::vec(any::<u8>(), 1..4096), at: proptest::sample::Index, bit in 0..8u8) {
            let whole = Checksum::of(algorithm, &bytes);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert_ne!(Checksum::of(algorithm, &bytes), whole);
        }
    }
}
