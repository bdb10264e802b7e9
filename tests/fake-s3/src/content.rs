//! What objects are made of.
//!
//! An object is a window of a memory file. Real bytes lie in a file of their own or, when small, in an arena that many
//! share, because a descriptor per object would run out at ten thousand. Synthetic objects are all windows of one
//! *pattern file* that repeats: a 100 GiB object costs 64 MiB. The pattern's length is a prime, so that no two parts
//! of any sensible size hold the same bytes: a reader that swaps parts is caught.
//!
//! [`content`] computes the bytes of a synthetic object without the file, so that a test can check what it received.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use crate::memory::MemFile;

/// Length of the pattern: the first prime above 64 MiB.
pub const PATTERN_BYTES: u64 = 67_108_879;

/// Small objects share arenas of this size; one of them is wasted at most.
const ARENA_BYTES: usize = 16 << 20;
/// Objects up to this size go to an arena: 16 or more to a descriptor.
const ARENA_OBJECT_BYTES: usize = 1 << 20;

/// Fills `out` with the bytes that the synthetic object of `seed` has from `offset` on.
pub fn content(seed: u64, offset: u64, out: &mut [u8]) {
    let mut at = (pattern_origin(seed) + offset % PATTERN_BYTES) % PATTERN_BYTES;
    let mut filled = 0;
    while filled < out.len() {
        let run = (out.len() - filled).min((PATTERN_BYTES - at) as usize);
        pattern(at, &mut out[filled..filled + run]);
        filled += run;
        at = 0;
    }
}

/// Where in the pattern the object of `seed` begins.
fn pattern_origin(seed: u64) -> u64 {
    mix(seed) % PATTERN_BYTES
}

/// The pattern's own bytes from `at` on, not wrapping: little-endian words, each a hash of its index.
fn pattern(at: u64, out: &mut [u8]) {
    let mut word = at / 8;
    let lead = (at % 8) as usize;
    let (first, rest) = out.split_at_mut(if lead == 0 {
        0
    } else {
        (8 - lead).min(out.len())
    });
    if lead > 0 {
        first.copy_from_slice(&mix(word).to_le_bytes()[lead..lead + first.len()]);
        word += 1;
    }
    for chunk in rest.chunks_mut(8) {
        chunk.copy_from_slice(&mix(word).to_le_bytes()[..chunk.len()]);
        word += 1;
    }
}

/// SplitMix64's output function: every input bit reaches every output bit.
pub(crate) fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The bytes of one version of an object.
#[derive(Debug, Clone)]
pub(crate) struct Content {
    file: Arc<MemFile>,
    /// Where the object's first byte lies in the file.
    start: u64,
    len: u64,
}

impl Content {
    /// A window of the pattern file.
    pub(crate) fn synthetic(seed: u64, len: u64, memory: &Memory) -> io::Result<Content> {
        Ok(Content {
            file: memory.pattern()?,
            start: pattern_origin(seed),
            len,
        })
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn file(&self) -> &MemFile {
        &self.file
    }

    /// Calls `f` with each contiguous piece of the file that makes up `range` of the object.
    pub(crate) fn try_pieces<E>(
        &self,
        range: Range<u64>,
        mut f: impl FnMut(Range<u64>) -> Result<(), E>,
    ) -> Result<(), E> {
        let period = self.file.len() as u64;
        let mut offset = range.start;
        while offset < range.end {
            let at = (self.start + offset) % period;
            let run = (range.end - offset).min(period - at);
            f(at..at + run)?;
            offset += run;
        }
        Ok(())
    }

    /// The range as one slice, unless it wraps around the pattern's end.
    pub(crate) fn contiguous(&self, range: &Range<u64>) -> Option<&[u8]> {
        let period = self.file.len() as u64;
        let len = range.end - range.start;
        if len == 0 {
            return Some(&[]);
        }
        let at = (self.start + range.start) % period;
        (at + len <= period).then(|| self.file.slice(at as usize, len as usize))
    }

    /// Calls `f` with slices that together are `range`.
    pub(crate) fn for_each(&self, range: Range<u64>, mut f: impl FnMut(&[u8])) {
        let _ = self.try_pieces(range, |piece| {
            f(self
                .file
                .slice(piece.start as usize, (piece.end - piece.start) as usize));
            Ok::<(), std::convert::Infallible>(())
        });
    }
}

/// Where new contents are put: the arena for small ones and the one pattern file.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    dir: Option<PathBuf>,
    arena: Mutex<Option<(Arc<MemFile>, usize)>>,
    pattern: OnceLock<Arc<MemFile>>,
}

impl Memory {
    pub(crate) fn new(dir: Option<PathBuf>) -> Memory {
        Memory {
            dir,
            ..Memory::default()
        }
    }

    /// Copies `bytes` into memory that can be sent.
    pub(crate) fn store(&self, bytes: &[u8]) -> io::Result<Content> {
        let len = bytes.len() as u64;
        if bytes.len() > ARENA_OBJECT_BYTES {
            let file = MemFile::new(bytes.len(), self.dir.as_deref())?;
            file.write_at(bytes, 0)?;
            return Ok(Content {
                file: Arc::new(file),
                start: 0,
                len,
            });
        }
        let mut arena = self
            .arena
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let (file, used) = match arena.take() {
            Some((file, used)) if used + bytes.len() <= file.len() => (file, used),
            _ => (Arc::new(MemFile::new(ARENA_BYTES, self.dir.as_deref())?), 0),
        };
        file.write_at(bytes, used as u64)?;
        // Whole cache lines, so that neighbours do not share one.
        *arena = Some((Arc::clone(&file), (used + bytes.len()).next_multiple_of(64)));
        Ok(Content {
            file,
            start: used as u64,
            len,
        })
    }

    /// One content made of others, end to end.
    pub(crate) fn concat(&self, parts: &[Content]) -> io::Result<Content> {
        let len: u64 = parts.iter().map(Content::len).sum();
        let file = MemFile::new(len as usize, self.dir.as_deref())?;
        let mut at = 0;
        for part in parts {
            part.try_pieces(0..part.len(), |piece| {
                let slice = part
                    .file
                    .slice(piece.start as usize, (piece.end - piece.start) as usize);
                file.write_at(slice, at)?;
                at += slice.len() as u64;
                Ok::<(), io::Error>(())
            })?;
        }
        Ok(Content {
            file: Arc::new(file),
            start: 0,
            len,
        })
    }

    /// A file on disk as it lies; small ones are copied, to save descriptors.
    pub(crate) fn open(&self, path: &Path) -> io::Result<Content> {
        if std::fs::metadata(path)?.len() <= ARENA_OBJECT_BYTES as u64 {
            return self.store(&std::fs::read(path)?);
        }
        let file = MemFile::open(path)?;
        let len = file.len() as u64;
        Ok(Content {
            file: Arc::new(file),
            start: 0,
            len,
        })
    }

    fn pattern(&self) -> io::Result<Arc<MemFile>> {
        if let Some(file) = self.pattern.get() {
            return Ok(Arc::clone(file));
        }
        let file = MemFile::new(PATTERN_BYTES as usize, self.dir.as_deref())?;
        let mut block = vec![0; 1 << 20];
        let mut at = 0;
        while at < PATTERN_BYTES {
            let run = (block.len() as u64).min(PATTERN_BYTES - at) as usize;
            pattern(at, &mut block[..run]);
            file.write_at(&block[..run], at)?;
            at += run as u64;
        }
        // Two threads may both have filled one; the loser's is dropped.
        Ok(Arc::clone(self.pattern.get_or_init(|| Arc::new(file))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn computed_and_stored_bytes_agree_across_the_wrap() {
        let memory = Memory::default();
        let object = Content::synthetic(7, 3 * PATTERN_BYTES, &memory).unwrap();
        let wrap = PATTERN_BYTES - pattern_origin(7);
        for start in [0, 1, 13, wrap - 5, wrap, PATTERN_BYTES + wrap - 3] {
            let mut expected = vec![0; 1001];
            content(7, start, &mut expected);
            let mut found = Vec::new();
            object.for_each(start..start + 1001, |slice| found.extend_from_slice(slice));
            assert_eq!(found, expected, "at {start}");
        }
    }

    #[test]
    fn objects_in_one_arena_keep_apart() {
        let memory = Memory::default();
        let all: Vec<_> = (0..100u8)
            .map(|i| memory.store(&[i; 1000]).unwrap())
            .collect();
        for (i, object) in all.iter().enumerate() {
            assert_eq!(object.contiguous(&(0..1000)).unwrap(), [i as u8; 1000]);
        }
    }
}
