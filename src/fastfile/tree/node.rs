//! One file or directory in 56 bytes, and where texts of any length lie.
//!
//! A million objects must cost at most 120 bytes each beside their names. So a node holds no pointer and no `Arc`: the
//! part of the key is an offset into an arena, an ETag of the usual form (MD5, perhaps with a number of parts) is its
//! 16 bytes and that number, and a directory keeps its children where a file keeps its size. Both stores grow by whole
//! chunks: a doubling `Vec` would hold three times its content at the worst moment.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::name::Form;
use crate::checksum::ChecksumAlgorithm;

/// Index of a node; the root is 0.
pub(super) type Index = u32;

/// No node: the end of a chain of siblings.
pub(super) const NONE: Index = Index::MAX;

const NO_TIME: i64 = i64::MIN;

/// What `etag_tail` says when it is no number of parts.
const ETAG_NONE: u32 = u32::MAX;
const ETAG_TEXT: u32 = u32::MAX - 1;

const DIRECTORY: u8 = 1;
const ENCODED: u8 = 2;
const BESIDE: u8 = 4;
const ALGORITHM_SHIFT: u8 = 4;

/// A file or a directory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Node {
    etag: [u8; 16],
    /// A file's size; a directory's first child (low half) and last child.
    size_or_children: u64,
    modified_ns: i64,
    pub(super) parent: Index,
    /// The next child of the same parent, in the order of the listing.
    pub(super) next: Index,
    etag_tail: u32,
    part_at: u32,
    part_len: u16,
    part_at_high: u8,
    flags: u8,
}

const _: () = assert!(size_of::<Node>() == 56, "the module's promise");

impl Node {
    pub(super) fn directory(parent: Index, part: Text) -> Self {
        let mut node = Self::file(parent, part, 0);
        node.flags = DIRECTORY;
        node.set_children(NONE, NONE);
        node
    }

    pub(super) fn file(parent: Index, part: Text, size_bytes: u64) -> Self {
        Self {
            etag: [0; 16],
            size_or_children: size_bytes,
            modified_ns: NO_TIME,
            parent,
            next: NONE,
            etag_tail: ETAG_NONE,
            part_at: part.at as u32,
            part_len: part.len,
            part_at_high: (part.at >> 32) as u8,
            flags: 0,
        }
    }

    pub(super) fn is_directory(&self) -> bool {
        self.flags & DIRECTORY != 0
    }

    pub(super) fn part(&self) -> Text {
        Text {
            at: u64::from(self.part_at_high) << 32 | u64::from(self.part_at),
            len: self.part_len,
        }
    }

    pub(super) fn form(&self) -> Form {
        match self.flags & (ENCODED | BESIDE) {
            0 => Form::Plain,
            ENCODED => Form::Encoded,
            _ => Form::Beside,
        }
    }

    pub(super) fn set_form(&mut self, form: Form) {
        self.flags &= !(ENCODED | BESIDE);
        self.flags |= match form {
            Form::Plain => 0,
            Form::Encoded => ENCODED,
            Form::Beside => BESIDE,
        };
    }

    pub(super) fn size_bytes(&self) -> u64 {
        match self.is_directory() {
            true => 0,
            false => self.size_or_children,
        }
    }

    pub(super) fn set_size_bytes(&mut self, size_bytes: u64) {
        debug_assert!(!self.is_directory());
        self.size_or_children = size_bytes;
    }

    /// A directory's first and last child.
    pub(super) fn children(&self) -> (Index, Index) {
        match self.is_directory() {
            true => (
                self.size_or_children as u32,
                (self.size_or_children >> 32) as u32,
            ),
            false => (NONE, NONE),
        }
    }

    pub(super) fn set_children(&mut self, first: Index, last: Index) {
        self.size_or_children = u64::from(last) << 32 | u64::from(first);
    }

    pub(super) fn modified(&self) -> Option<SystemTime> {
        let ns = Some(self.modified_ns).filter(|ns| *ns != NO_TIME)?;
        let distance = Duration::from_nanos(ns.unsigned_abs());
        match ns >= 0 {
            true => UNIX_EPOCH.checked_add(distance),
            false => UNIX_EPOCH.checked_sub(distance),
        }
    }

    /// Exact to the nanosecond from 1678 to 2262.
    pub(super) fn set_modified(&mut self, at: Option<SystemTime>) {
        let ns = at.and_then(|at| match at.duration_since(UNIX_EPOCH) {
            Ok(after) => i64::try_from(after.as_nanos()).ok(),
            Err(before) => i64::try_from(before.duration().as_nanos())
                .ok()
                .map(|ns| -ns),
        });
        self.modified_ns = ns.unwrap_or(NO_TIME);
    }

    pub(super) fn algorithm(&self) -> Option<ChecksumAlgorithm> {
        match self.flags >> ALGORITHM_SHIFT {
            1 => Some(ChecksumAlgorithm::Crc32),
            2 => Some(ChecksumAlgorithm::Crc32c),
            3 => Some(ChecksumAlgorithm::Crc64Nvme),
            _ => None,
        }
    }

    pub(super) fn set_algorithm(&mut self, algorithm: Option<ChecksumAlgorithm>) {
        let code = match algorithm {
            None => 0,
            Some(ChecksumAlgorithm::Crc32) => 1,
            Some(ChecksumAlgorithm::Crc32c) => 2,
            Some(ChecksumAlgorithm::Crc64Nvme) => 3,
        };
        self.flags = self.flags & ((1 << ALGORITHM_SHIFT) - 1) | code << ALGORITHM_SHIFT;
    }

    pub(super) fn etag(&self, texts: &Texts) -> Option<String> {
        match self.etag_tail {
            ETAG_NONE => None,
            ETAG_TEXT => {
                let [at, len] = [0, 8].map(|from| {
                    let mut half = [0; 8];
                    half.copy_from_slice(&self.etag[from..from + 8]);
                    u64::from_le_bytes(half)
                });
                let len = len as u16;
                Some(texts.get(Text { at, len }).to_owned())
            }
            parts => Some(rendered(&self.etag, parts)),
        }
    }

    pub(super) fn set_etag(&mut self, etag: Option<&str>, texts: &mut Texts) {
        (self.etag, self.etag_tail) = match etag {
            None => ([0; 16], ETAG_NONE),
            Some(etag) => packed(etag).unwrap_or_else(|| {
                let text = texts.add(etag);
                let mut bytes = [0; 16];
                bytes[..8].copy_from_slice(&text.at.to_le_bytes());
                bytes[8..].copy_from_slice(&u64::from(text.len).to_le_bytes());
                (bytes, ETAG_TEXT)
            }),
        };
    }
}

/// An ETag of the usual form: quotes around 32 hexadecimal digits, for a multipart upload `-` and the number of parts.
fn packed(etag: &str) -> Option<([u8; 16], u32)> {
    let inner = etag.strip_prefix('"')?.strip_suffix('"')?;
    let (digits, parts) = match inner.split_once('-') {
        Some((digits, parts)) => (digits, parts.parse().ok().filter(|parts| *parts > 0)?),
        None => (inner, 0),
    };
    if digits.len() != 32 || !digits.is_ascii() {
        return None;
    }
    let mut bytes = [0; 16];
    for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok()?;
    }
    // Upper case, `+1` and `-007` are other texts: an ETag is compared byte by byte.
    (parts < ETAG_TEXT && rendered(&bytes, parts) == etag).then_some((bytes, parts))
}

fn rendered(bytes: &[u8; 16], parts: u32) -> String {
    let digits = u128::from_be_bytes(*bytes);
    match parts {
        0 => format!("\"{digits:032x}\""),
        _ => format!("\"{digits:032x}-{parts}\""),
    }
}

/// Nodes by index, in chunks.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    chunks: Vec<Vec<Node>>,
}

const NODES_PER_CHUNK: usize = 4096;

impl Nodes {
    pub(super) fn len(&self) -> usize {
        match self.chunks.last() {
            Some(last) => (self.chunks.len() - 1) * NODES_PER_CHUNK + last.len(),
            None => 0,
        }
    }

    pub(super) fn push(&mut self, node: Node) -> Index {
        let index = self.len();
        if index.is_multiple_of(NODES_PER_CHUNK) {
            self.chunks.push(Vec::with_capacity(NODES_PER_CHUNK));
        }
        self.chunks[index / NODES_PER_CHUNK].push(node);
        index as Index
    }

    pub(super) fn get(&self, index: Index) -> Option<&Node> {
        let index = index as usize;
        self.chunks
            .get(index / NODES_PER_CHUNK)?
            .get(index % NODES_PER_CHUNK)
    }

    /// # Panics
    /// When there is no such node.
    pub(super) fn at(&self, index: Index) -> &Node {
        self.get(index).expect("an index that push gave")
    }

    /// # Panics
    /// When there is no such node.
    pub(super) fn at_mut(&mut self, index: Index) -> &mut Node {
        let index = index as usize;
        &mut self.chunks[index / NODES_PER_CHUNK][index % NODES_PER_CHUNK]
    }

    pub(super) fn heap_bytes(&self) -> usize {
        self.chunks.len() * NODES_PER_CHUNK * size_of::<Node>()
            + self.chunks.capacity() * size_of::<Vec<Node>>()
    }
}

/// Where a text lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Text {
    at: u64,
    len: u16,
}

/// Texts, one behind the other; none crosses a chunk's border.
#[derive(Debug, Default)]
pub(super) struct Texts {
    chunks: Vec<String>,
}

/// A text has at most 64 KiB, so at most a sixteenth is lost at a chunk's end; keys have at most 1 KiB.
const TEXT_CHUNK_BYTES: usize = 1 << 20;

impl Texts {
    /// Stores a text; what is beyond 65,535 bytes is cut off (keys and ETags have at most 1 KiB).
    pub(super) fn add(&mut self, text: &str) -> Text {
        let mut len = text.len().min(usize::from(u16::MAX));
        while !text.is_char_boundary(len) {
            len -= 1;
        }
        let fits = |chunk: &String| chunk.len() + len <= TEXT_CHUNK_BYTES;
        if !self.chunks.last().is_some_and(fits) {
            self.chunks.push(String::with_capacity(TEXT_CHUNK_BYTES));
        }
        let last = self.chunks.len() - 1;
        let at = (last * TEXT_CHUNK_BYTES + self.chunks[last].len()) as u64;
        self.chunks[last].push_str(&text[..len]);
        Text {
            at,
            len: len as u16,
        }
    }

    pub(super) fn get(&self, text: Text) -> &str {
        let at = text.at as usize % TEXT_CHUNK_BYTES;
        let chunk = self.chunks.get(text.at as usize / TEXT_CHUNK_BYTES);
        // An empty text that ends a full chunk lies at the start of one that may not exist.
        chunk.map_or("", |chunk| &chunk[at..at + usize::from(text.len)])
    }

    pub(super) fn heap_bytes(&self) -> usize {
        self.chunks.len() * TEXT_CHUNK_BYTES + self.chunks.capacity() * size_of::<String>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn etag() -> impl Strategy<Value = String> {
        prop_oneof![
            "\"[0-9a-f]{32}\"",
            "\"[0-9a-f]{32}-[0-9]{1,10}\"",
            "\"[0-9a-fA-F]{31,33}(-[0-9+]{0,3})?\"",
            ".{0,20}",
        ]
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(
            part in ".{0,40}",
            size_bytes: u64,
            ns in -9_000_000_000_000_000_000i64..9_000_000_000_000_000_000,
            etag in prop::option::of(etag()),
            algorithm in 0..4usize,
        ) {
            let mut texts = Texts::default();
            let modified = match ns >= 0 {
                true => UNIX_EPOCH + Duration::from_nanos(ns as u64),
                false => UNIX_EPOCH - Duration::from_nanos(ns.unsigned_abs()),
            };
            let algorithm = [
                None,
                Some(ChecksumAlgorithm::Crc32),
                Some(ChecksumAlgorithm::Crc32c),
                Some(ChecksumAlgorithm::Crc64Nvme),
            ][algorithm];
            let mut node = Node::file(7, texts.add(&part), size_bytes);
            node.set_form(Form::Beside);
            node.set_algorithm(algorithm);
            node.set_modified(Some(modified));
            node.set_etag(etag.as_deref(), &mut texts);
            prop_assert_eq!(texts.get(node.part()), part);
            prop_assert_eq!(node.size_bytes(), size_bytes);
            prop_assert_eq!(node.modified(), Some(modified));
            prop_assert_eq!(node.etag(&texts), etag);
            prop_assert_eq!((node.form(), node.algorithm()), (Form::Beside, algorithm));
            prop_assert!(!node.is_directory() && node.parent == 7);
        }

        #[test]
        fn texts_survive_chunk_borders(lens in prop::collection::vec(0..70_000usize, 1..60)) {
            let mut texts = Texts::default();
            let all: Vec<String> = lens.iter().map(|len| "é".repeat(len / 2)).collect();
            let stored: Vec<Text> = all.iter().map(|text| texts.add(text)).collect();
            for (text, at) in all.iter().zip(stored) {
                let expected = &text[..text.len().min(65_534)];
                prop_assert_eq!(texts.get(at), expected);
            }
        }
    }

    #[test]
    fn the_usual_etags_take_no_text() {
        let usual = "\"0123456789abcdef0123456789abcdef\"";
        assert!(packed(usual).is_some());
        assert!(packed("\"0123456789abcdef0123456789abcdef-17\"").is_some());
        for odd in [
            "0123456789abcdef0123456789abcdef",
            "\"0123456789ABCDEF0123456789abcdef\"",
            "\"0123456789abcdef0123456789abcdef-0\"",
            "\"0123456789abcdef0123456789abcdef-07\"",
            "\"0123456789abcdef0123456789abcde+1\"",
            "W/\"0123456789abcdef0123456789abcdef\"",
        ] {
            assert!(packed(odd).is_none(), "{odd}");
        }
    }
}
