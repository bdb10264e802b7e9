//! A listing kept for the whole job: what the engine needs of each object, in few bytes and in order.
//!
//! Sixteen objects make a block. In it, a key is written as the number of bytes that it shares with the one before and
//! the rest; numbers as varints; an ETag that is an MD5, with or without the number of parts behind it, as 16 bytes. An
//! object of a usual listing (keys that differ in their last digits) takes about 35 bytes; what a catalogue takes is told
//! by [`Catalog::memory_bytes`]. To look an object up, at most one block is read: less than a microsecond.
//!
//! Not kept: dates, and values of checksums, which listings do not have.

use std::fmt;
use std::sync::Arc;

use crate::checksum::ChecksumAlgorithm;
use crate::object::{ObjectId, ObjectMeta, ObjectUri};

/// A shorter block costs more per object, a longer one more per look-up.
const BLOCK_OBJECTS: usize = 16;

/// Bits of an entry's first byte.
const HAS_SIZE: u8 = 1;
const ETAG_SHIFT: u8 = 1;
const HAS_VERSION: u8 = 1 << 3;
const ALGORITHM_SHIFT: u8 = 4;

/// An algorithm's code is its place here and one.
const ALGORITHMS: [ChecksumAlgorithm; 3] = ChecksumAlgorithm::ALL;

/// Objects in order.
#[derive(Default)]
pub struct Catalog {
    /// Full blocks.
    blocks: Vec<Box<[u8]>>,
    /// The block that grows.
    open: Vec<u8>,
    len: usize,
    /// The key before, from which the next one is told.
    last_key: String,
    /// One address of each bucket, without its key.
    buckets: Vec<ObjectUri>,
    key_bytes: u64,
    total_bytes: u64,
}

impl fmt::Debug for Catalog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Catalog")
            .field("len", &self.len)
            .field("total_bytes", &self.total_bytes)
            .finish_non_exhaustive()
    }
}

impl Catalog {
    /// Adds an object at the end.
    pub fn push(&mut self, meta: &ObjectMeta) {
        if self.len.is_multiple_of(BLOCK_OBJECTS) {
            self.close_block();
        }
        let key = meta.id.uri.key();
        let bucket = self.bucket(&meta.id.uri);
        let shared = common_bytes(&self.last_key, key);
        write_entry(&mut self.open, bucket, shared, meta);
        self.last_key.truncate(shared);
        self.last_key.push_str(&key[shared..]);
        self.len += 1;
        self.key_bytes += key.len() as u64;
        self.total_bytes = self.total_bytes.saturating_add(meta.size_bytes);
    }

    /// The object at a place; none beyond the end.
    pub fn get(&self, at: usize) -> Option<ObjectMeta> {
        self.range(at, 1).pop()
    }

    /// Up to `most` objects from a place on.
    pub fn range(&self, at: usize, most: usize) -> Vec<ObjectMeta> {
        let end = at.saturating_add(most).min(self.len);
        let mut found = Vec::with_capacity(end.saturating_sub(at));
        let mut place = at - at % BLOCK_OBJECTS;
        while place < end {
            let mut reader = Reader::new(self.block(place / BLOCK_OBJECTS));
            while let Some(meta) = reader.next(&self.buckets, place >= at && place < end) {
                found.extend(meta);
                place += 1;
            }
        }
        found
    }

    /// How many objects.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The sum of the sizes that are known.
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// The sum of the keys' lengths.
    pub fn key_bytes(&self) -> u64 {
        self.key_bytes
    }

    /// What it takes of memory.
    pub fn memory_bytes(&self) -> u64 {
        // The allocator keeps 8 bytes before each allocation and rounds up to 16.
        let allocated = |bytes: usize| (bytes + 8).next_multiple_of(16).max(32);
        let blocks: usize = self.blocks.iter().map(|block| allocated(block.len())).sum();
        let table = self.blocks.capacity() * size_of::<Box<[u8]>>();
        (blocks + table + self.open.capacity()) as u64
    }

    fn block(&self, at: usize) -> &[u8] {
        self.blocks.get(at).map_or(&self.open, |block| block)
    }

    fn close_block(&mut self) {
        if !self.open.is_empty() {
            self.blocks.push(self.open.as_slice().into());
            self.open.clear();
        }
        self.last_key.clear();
    }

    fn bucket(&mut self, uri: &ObjectUri) -> usize {
        let same =
            |known: &ObjectUri| (known.scheme(), known.bucket()) == (uri.scheme(), uri.bucket());
        // The last one first: objects of one bucket come together.
        if let Some(at) = self.buckets.iter().rposition(same) {
            return at;
        }
        self.buckets.push(uri.with_key(""));
        self.buckets.len() - 1
    }
}

/// How many bytes two keys begin with in common, ending between two characters.
fn common_bytes(a: &str, b: &str) -> usize {
    let mut shared = a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    while !b.is_char_boundary(shared) {
        shared -= 1;
    }
    shared
}

fn write_entry(into: &mut Vec<u8>, bucket: usize, shared: usize, meta: &ObjectMeta) {
    let id = &meta.id;
    let etag = id.etag.as_deref().map_or(Etag::None, Etag::of);
    let algorithm = meta.checksum_algorithm.map_or(0, |algorithm| {
        ALGORITHMS
            .iter()
            .position(|known| *known == algorithm)
            .map_or(0, |at| at as u8 + 1)
    });
    let mut tag = etag.code() << ETAG_SHIFT | algorithm << ALGORITHM_SHIFT;
    tag |= if id.size_bytes.is_some() { HAS_SIZE } else { 0 };
    tag |= if id.version_id.is_some() {
        HAS_VERSION
    } else {
        0
    };
    into.push(tag);
    write_number(into, bucket as u64);
    write_number(into, shared as u64);
    write_text(into, &id.uri.key()[shared..]);
    if let Some(size) = id.size_bytes {
        write_number(into, size);
    }
    match etag {
        Etag::None => {}
        Etag::Md5(digest) => into.extend_from_slice(&digest),
        Etag::Parts(digest, parts) => {
            into.extend_from_slice(&digest);
            write_number(into, parts);
        }
        Etag::Text(text) => write_text(into, text),
    }
    if let Some(version) = &id.version_id {
        write_text(into, version);
    }
}

/// What an ETag looks like.
#[derive(Debug, PartialEq, Eq)]
enum Etag<'a> {
    None,
    /// `"32 hexadecimal digits"`.
    Md5([u8; 16]),
    /// The same, a dash and a number.
    Parts([u8; 16], u64),
    Text(&'a str),
}

impl<'a> Etag<'a> {
    fn of(text: &'a str) -> Self {
        Self::packed(text)
            .filter(|packed| *packed.text() == *text)
            .unwrap_or(Self::Text(text))
    }

    fn packed(text: &str) -> Option<Self> {
        let inner = text.strip_prefix('"')?.strip_suffix('"')?;
        let (hex, parts) = match inner.split_once('-') {
            Some((hex, parts)) => (hex, Some(parts.parse().ok()?)),
            None => (inner, None),
        };
        if hex.len() != 32 || !hex.is_ascii() {
            return None;
        }
        let mut digest = [0; 16];
        for (byte, at) in digest.iter_mut().zip((0..).step_by(2)) {
            *byte = u8::from_str_radix(&hex[at..at + 2], 16).ok()?;
        }
        Some(parts.map_or(Self::Md5(digest), |parts| Self::Parts(digest, parts)))
    }

    fn text(&self) -> String {
        use std::fmt::Write as _;
        let hex = |digest: &[u8; 16]| {
            digest
                .iter()
                .fold(String::with_capacity(48), |mut text, byte| {
                    // Writing to a String cannot fail.
                    let _ = write!(text, "{byte:02x}");
                    text
                })
        };
        match self {
            Self::None => String::new(),
            Self::Md5(digest) => format!("\"{}\"", hex(digest)),
            Self::Parts(digest, parts) => format!("\"{}-{parts}\"", hex(digest)),
            Self::Text(text) => (*text).into(),
        }
    }

    fn code(&self) -> u8 {
        match self {
            Self::None => 0,
            Self::Md5(_) => 1,
            Self::Parts(..) => 2,
            Self::Text(_) => 3,
        }
    }
}

/// Seven bits a byte, the low ones first; the high bit says that more follow.
fn write_number(into: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        into.push(number as u8 | 0x80);
        number >>= 7;
    }
    into.push(number as u8);
}

fn write_text(into: &mut Vec<u8>, text: &str) {
    write_number(into, text.len() as u64);
    into.extend_from_slice(text.as_bytes());
}

/// Reads a block from its beginning. What it reads was written above.
struct Reader<'a> {
    rest: &'a [u8],
    key: String,
}

impl<'a> Reader<'a> {
    fn new(block: &'a [u8]) -> Self {
        Self {
            rest: block,
            key: String::new(),
        }
    }

    /// The next entry, made into a value if it is wanted; none at the block's end.
    fn next(&mut self, buckets: &[ObjectUri], wanted: bool) -> Option<Option<ObjectMeta>> {
        let tag = *self.rest.first()?;
        self.rest = &self.rest[1..];
        let bucket = self.number() as usize;
        let shared = self.number() as usize;
        let suffix = self.text();
        self.key.truncate(shared);
        self.key.push_str(suffix);
        let size_bytes = (tag & HAS_SIZE != 0).then(|| self.number());
        let etag = match tag >> ETAG_SHIFT & 3 {
            0 => Etag::None,
            1 => Etag::Md5(self.digest()),
            2 => Etag::Parts(self.digest(), self.number()),
            _ => Etag::Text(self.text()),
        };
        let version = (tag & HAS_VERSION != 0).then(|| self.text());
        Some(wanted.then(|| {
            ObjectMeta {
                id: ObjectId {
                    uri: buckets[bucket].with_key(self.key.as_str()),
                    etag: (etag != Etag::None).then(|| Arc::from(etag.text())),
                    version_id: version.map(Arc::from),
                    size_bytes,
                },
                size_bytes: size_bytes.unwrap_or(0),
                last_modified: None,
                checksum_algorithm: usize::from(tag >> ALGORITHM_SHIFT)
                    .checked_sub(1)
                    .map(|at| ALGORITHMS[at]),
                checksum: None,
            }
        }))
    }

    fn number(&mut self) -> u64 {
        let mut number = 0;
        for (at, byte) in self.rest.iter().enumerate() {
            number |= u64::from(byte & 0x7f) << (7 * at);
            if byte & 0x80 == 0 {
                self.rest = &self.rest[at + 1..];
                break;
            }
        }
        number
    }

    fn text(&mut self) -> &'a str {
        let len = self.number() as usize;
        let (text, rest) = self.rest.split_at(len);
        self.rest = rest;
        std::str::from_utf8(text).expect("it was written from text")
    }

    fn digest(&mut self) -> [u8; 16] {
        let (digest, rest) = self.rest.split_at(16);
        self.rest = rest;
        digest.try_into().expect("sixteen bytes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn meta(uri: ObjectUri, size: Option<u64>, etag: Option<&str>) -> ObjectMeta {
        ObjectMeta {
            id: ObjectId {
                uri,
                etag: etag.map(Into::into),
                version_id: None,
                size_bytes: size,
            },
            size_bytes: size.unwrap_or(0),
            last_modified: None,
            checksum_algorithm: None,
            checksum: None,
        }
    }

    fn any_meta() -> impl Strategy<Value = ObjectMeta> {
        let etag = prop_oneof![
            Just(None),
            "\"[0-9a-f]{32}\"".prop_map(Some),
            "\"[0-9a-f]{32}-[0-9]{1,3}\"".prop_map(Some),
            "\"[0-9A-F]{32}\"".prop_map(Some),
            ".{0,40}".prop_map(Some),
        ];
        let algorithm = proptest::option::of(proptest::sample::select(&ALGORITHMS[..]));
        let size = proptest::option::of(any::<u64>());
        (
            "[a-c]{1,2}",
            "[aä/0-9€]{0,12}",
            size,
            etag,
            algorithm,
            proptest::option::of("v.{0,5}"),
        )
            .prop_map(|(bucket, key, size, etag, algorithm, version)| {
                let mut meta = meta(ObjectUri::s3(bucket, key), size, etag.as_deref());
                meta.checksum_algorithm = algorithm;
                meta.id.version_id = version.map(Into::into);
                meta
            })
    }

    proptest! {
        #[test]
        fn everything_comes_back(metas in proptest::collection::vec(any_meta(), 0..70), at in 0usize..80, most in 0usize..40) {
            let mut catalog = Catalog::default();
            metas.iter().for_each(|meta| catalog.push(meta));
            prop_assert_eq!(catalog.len(), metas.len());
            for (at, meta) in metas.iter().enumerate() {
                let found = catalog.get(at);
                prop_assert_eq!(found.as_ref(), Some(meta));
            }
            prop_assert_eq!(catalog.get(metas.len()), None);
            let expected: Vec<_> = metas.iter().skip(at).take(most).cloned().collect();
            prop_assert_eq!(catalog.range(at, most), expected);
        }
    }

    /// The number that ARCHITECTURE.md and the module's notes state.
    #[test]
    fn an_object_takes_few_bytes() {
        let mut catalog = Catalog::default();
        for n in 0..100_000u64 {
            let etag = format!(
                "\"{:032x}\"",
                u128::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)
            );
            catalog.push(&meta(
                ObjectUri::s3("b", format!("imagenet/train/n{:08}/{n:08}.jpeg", n / 1300)),
                Some(100_000 + n),
                Some(&etag),
            ));
        }
        let each = catalog.memory_bytes() as f64 / 100_000.0;
        assert!((25.0..40.0).contains(&each), "{each} bytes per object");
        assert!(catalog.key_bytes() > 30 * 100_000);
    }
}
