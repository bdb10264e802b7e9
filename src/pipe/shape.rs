//! From an object's bytes to what is delivered of it: decompressed, then wrapped. No I/O but the spool's.
//!
//! A RecordIO header tells the length of what follows. Of an object that is delivered as it is, the length is known with
//! its first byte, and its bytes pass through without a copy. What a compressed object inflates to is known when it has
//! been: it is kept until then (`spool`: 16 MiB in memory, beyond that in a temporary file), because a record in parts of
//! bounded size, which would need no keeping, is read wrong by MXNet's readers, who put a magic number between the parts.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use super::piece::Piece;
use super::spool::Spool;
use crate::error::{Error, Result};
use crate::object::ObjectId;
use crate::prefetch::Chunk;
use crate::record::recordio::{self, Frame};
use crate::record::{Codec, Decompressor};

/// What is done to each object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Shape {
    /// Each is a gzip file.
    pub(super) gzip: bool,
    /// Each becomes a RecordIO record in parts of at most so many bytes.
    pub(super) part_bytes: Option<u32>,
}

impl Shape {
    /// Whether anything is done at all.
    pub(super) fn is_plain(self) -> bool {
        self == Self::default()
    }

    /// A text, as it is delivered.
    pub(super) fn text(self, text: Bytes) -> Bytes {
        let Some(part_bytes) = self.part_bytes else {
            return text;
        };
        let mut record = Vec::with_capacity(text.len() + 16);
        recordio::encode(&text, part_bytes, &mut record);
        record.into()
    }
}

/// Objects on their way through.
#[derive(Debug)]
pub(super) struct Shaper {
    shape: Shape,
    current: Option<Current>,
    out: VecDeque<Bytes>,
}

/// The object at hand.
#[derive(Debug)]
struct Current {
    object: Arc<ObjectId>,
    /// How much of it has come, and how much of it had when a piece was last given out.
    taken: u64,
    told: u64,
    ended: bool,
    /// Whether its first piece was given out.
    begun: bool,
    inflate: Option<Decompressor>,
    spool: Option<Spool>,
    part_bytes: Option<u32>,
    framing: Option<Framing>,
}

impl Shaper {
    pub(super) fn new(shape: Shape) -> Self {
        Self {
            shape,
            current: None,
            out: VecDeque::new(),
        }
    }

    /// Whether it is between two objects.
    pub(super) fn is_idle(&self) -> bool {
        self.current.is_none()
    }

    /// Takes a chunk. Everything must have been taken out before.
    pub(super) fn push(&mut self, chunk: Chunk) -> Result<()> {
        let current = match &mut self.current {
            Some(current) => current,
            none => none.insert(Current::begin(self.shape, &chunk, &mut self.out)?),
        };
        current.taken = chunk.offset + chunk.bytes.len() as u64;
        current.ended = chunk.ends_object;
        match &mut current.inflate {
            Some(inflate) => {
                inflate.push(chunk.bytes);
                if chunk.ends_object {
                    inflate.finish();
                }
            }
            None => current.deliver(chunk.bytes, &mut self.out)?,
        }
        Ok(())
    }

    /// The next piece; none when a chunk is needed.
    pub(super) fn next(&mut self) -> Result<Option<Piece>> {
        loop {
            let Some(current) = &mut self.current else {
                return Ok(None);
            };
            if let Some(bytes) = self.out.pop_front() {
                return Ok(Some(current.piece(bytes)));
            }
            if !current.advance(&mut self.out)? {
                if !current.ended {
                    return Ok(None);
                }
                if !current.begun {
                    // It inflates to nothing, and counts all the same.
                    return Ok(Some(current.piece(Bytes::new())));
                }
                self.current = None;
            }
        }
    }
}
impl Current {
    fn begin(shape: Shape, chunk: &Chunk, out: &mut VecDeque<Bytes>) -> Result<Self> {
        let inflate = shape.gzip.then(|| Decompressor::new(Some(Codec::Gzip)));
        let framing = match (shape.part_bytes, shape.gzip) {
            (Some(part_bytes), false) => {
                let size = chunk.object.size_bytes.ok_or_else(|| Error::Internal {
                    what: format!(
                        "the size of {}, of which a part is there,",
                        chunk.object.uri
                    ),
                })?;
                Some(Framing::new(size, part_bytes, out))
            }
            _ => None,
        };
        Ok(Self {
            object: chunk.object.clone(),
            taken: 0,
            told: 0,
            ended: false,
            begun: false,
            inflate,
            spool: shape
                .part_bytes
                .filter(|_| shape.gzip)
                .map(|_| Spool::default()),
            part_bytes: shape.part_bytes,
            framing,
        })
    }

    fn piece(&mut self, bytes: Bytes) -> Piece {
        let from = std::mem::replace(&mut self.told, self.taken);
        Piece {
            object: self.object.clone(),
            bytes,
            from,
            to: self.taken,
            ends_object: self.ended,
            begins_item: !std::mem::replace(&mut self.begun, true),
            is_plain: false,
        }
    }

    /// Hands on bytes as they are delivered, but for the frame.
    fn deliver(&mut self, bytes: Bytes, out: &mut VecDeque<Bytes>) -> Result<()> {
        match &mut self.framing {
            Some(framing) => framing.wrap(bytes, out).ok_or_else(|| Error::Internal {
                what: format!("{}: its bytes are more than its size,", self.object.uri),
            }),
            None if bytes.is_empty() => Ok(()),
            None => {
                out.push_back(bytes);
                Ok(())
            }
        }
    }

    /// Inflates a step, or takes one out of the spool; false when there is nothing to do.
    fn advance(&mut self, out: &mut VecDeque<Bytes>) -> Result<bool> {
        let inflated = match &mut self.inflate {
            Some(inflate) => inflate
                .next_chunk()
                .map_err(|flaw| flaw.of(&self.object.uri))?,
            None => None,
        };
        match (inflated, &mut self.spool) {
            (Some(bytes), Some(spool)) => spool.push(bytes)?,
            (Some(bytes), None) => self.deliver(bytes, out)?,
            (None, Some(_)) if self.ended => return self.empty_spool(out),
            (None, _) => return Ok(false),
        }
        Ok(true)
    }

    /// Once all is there, its length is known.
    fn empty_spool(&mut self, out: &mut VecDeque<Bytes>) -> Result<bool> {
        let (Some(spool), Some(part_bytes)) = (&mut self.spool, self.part_bytes) else {
            return Ok(false);
        };
        if self.framing.is_none() {
            self.framing = Some(Framing::new(spool.len_bytes(), part_bytes, out));
            return Ok(true);
        }
        match spool.next()? {
            Some(bytes) => self.deliver(bytes, out).map(|()| true),
            None => Ok(false),
        }
    }
}

/// A record being written while its payload arrives.
struct Framing {
    frames: Box<dyn Iterator<Item = Frame> + Send>,
    /// What the part at hand still lacks, and the zeros behind it.
    left: u64,
    padding: usize,
}

impl fmt::Debug for Framing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Framing")
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}

impl Framing {
    /// Of a payload of `len` bytes; writes the first header.
    fn new(len: u64, part_bytes: u32, out: &mut VecDeque<Bytes>) -> Self {
        let mut framing = Self {
            frames: Box::new(recordio::frames(len, part_bytes)),
            left: 0,
            padding: 0,
        };
        framing.begin_part(out);
        framing
    }

    fn begin_part(&mut self, out: &mut VecDeque<Bytes>) -> Option<()> {
        let frame = self.frames.next()?;
        out.push_back(Bytes::copy_from_slice(&frame.header));
        self.left = frame.range.end - frame.range.start;
        self.padding = frame.padding;
        Some(())
    }

    /// Writes payload; none when it is more than was announced.
    fn wrap(&mut self, mut payload: Bytes, out: &mut VecDeque<Bytes>) -> Option<()> {
        const ZEROS: &[u8] = &[0; 4];
        while !payload.is_empty() {
            if self.left == 0 {
                self.begin_part(out)?;
            }
            let len = self.left.min(payload.len() as u64);
            out.push_back(payload.split_to(len as usize));
            self.left -= len;
            if self.left == 0 && self.padding > 0 {
                out.push_back(Bytes::from_static(&ZEROS[..self.padding]));
            }
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::object::ObjectUri;
    use proptest::prelude::*;
    use std::io::Write as _;

    fn gzip(members: &[&[u8]]) -> Vec<u8> {
        let mut all = Vec::new();
        for member in members {
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(member).unwrap();
            all.extend(encoder.finish().unwrap());
        }
        all
    }

    fn chunks(bytes: &[u8], piece: usize) -> Vec<Chunk> {
        let object = Arc::new(ObjectId {
            size_bytes: Some(bytes.len() as u64),
            ..ObjectId::unpinned(ObjectUri::s3("b", "k"))
        });
        let pieces: Vec<&[u8]> = match bytes.is_empty() {
            true => vec![&[]],
            false => bytes.chunks(piece).collect(),
        };
        let last = pieces.len() - 1;
        let pieces = pieces.into_iter().enumerate();
        pieces
            .map(|(at, bytes)| Chunk {
                object: object.clone(),
                offset: (at * piece) as u64,
                bytes: Bytes::copy_from_slice(bytes),
                ends_object: at == last,
            })
            .collect()
    }

    /// What comes out, and how far each piece says that the object has been delivered.
    fn shaped(shaper: &mut Shaper, bytes: &[u8], piece: usize) -> Result<Vec<u8>> {
        let (mut out, mut reached) = (Vec::new(), 0);
        for chunk in chunks(bytes, piece) {
            shaper.push(chunk)?;
            while let Some(piece) = shaper.next()? {
                assert_eq!(piece.from, reached);
                reached = piece.reached(piece.bytes.len());
                out.extend_from_slice(&piece.bytes);
            }
        }
        assert!(shaper.is_idle());
        Ok(out)
    }

    fn records(payloads: &[&[u8]], part_bytes: u32) -> Vec<u8> {
        let mut all = Vec::new();
        payloads
            .iter()
            .for_each(|payload| recordio::encode(payload, part_bytes, &mut all));
        all
    }

    proptest! {
        #[test]
        fn objects_become_records_of_what_they_inflate_to(
            objects in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 1..5),
            piece in 1usize..90,
            gzipped: bool,
            part_bytes in proptest::option::of(1u32..200),
        ) {
            let mut shaper = Shaper::new(Shape { gzip: gzipped, part_bytes });
            let mut out = Vec::new();
            for object in &objects {
                let (a, b) = object.split_at(object.len() / 3);
                let stored = if gzipped { gzip(&[a, b]) } else { object.clone() };
                out.extend(shaped(&mut shaper, &stored, piece).unwrap());
            }
            let payloads: Vec<&[u8]> = objects.iter().map(Vec::as_slice).collect();
            let expected = match part_bytes {
                Some(part_bytes) => records(&payloads, part_bytes),
                None => payloads.concat(),
            };
            prop_assert_eq!(out, expected);
        }
    }

    #[test]
    fn a_large_object_goes_through_the_spool_to_one_record() {
        let large: Vec<u8> = (0..40_000_000u32).map(|n| (n / 1000) as u8).collect();
        let mut shaper = Shaper::new(Shape {
            gzip: true,
            part_bytes: Some(u32::MAX),
        });
        let out = shaped(&mut shaper, &gzip(&[&large]), 8 << 20).unwrap();
        assert!(out == records(&[&large], u32::MAX));
        assert_eq!(
            out[4..8],
            (large.len() as u32).to_le_bytes(),
            "cflag 0 and the whole length"
        );
    }

    #[test]
    fn a_record_beyond_what_a_header_can_say_is_written_in_parts() {
        let mut out = VecDeque::new();
        let size = (1u64 << 29) + 5;
        let mut framing = Framing::new(size, u32::MAX, &mut out);
        let zeros = Bytes::from(vec![0; 1 << 26]);
        for _ in 0..8 {
            framing.wrap(zeros.clone(), &mut out).unwrap();
        }
        framing.wrap(zeros.slice(..5), &mut out).unwrap();
        assert!(framing.wrap(zeros.slice(..1), &mut out).is_none());
        let headers: Vec<_> = out.iter().filter(|bytes| bytes.len() == 8).collect();
        let flags: Vec<u8> = headers.iter().map(|header| header[7] >> 5).collect();
        assert_eq!(flags, [1, 3]);
    }

    #[test]
    fn what_is_no_gzip_or_ends_early_names_object_and_offset() {
        let whole = gzip(&[&[7; 100_000]]);
        let mut wrong = whole.clone();
        let crc_at = wrong.len() - 6;
        wrong[crc_at] ^= 1;
        for bytes in [
            &b"plain text, no gzip"[..],
            &whole[..whole.len() - 9],
            &wrong,
        ] {
            for part_bytes in [None, Some(9)] {
                let mut shaper = Shaper::new(Shape {
                    gzip: true,
                    part_bytes,
                });
                let error = shaped(&mut shaper, bytes, 64).unwrap_err();
                assert!(
                    matches!(&error, Error::Corrupt { uri, .. } if uri == "s3://b/k"),
                    "{error}"
                );
                assert!(error.to_string().contains("gzip"), "{error}");
            }
        }
    }
}
