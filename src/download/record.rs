//! What proves an unfinished file: the CRC of each of its blocks, in a file beside it.
//!
//! The record begins with a line that says which version of which object the bytes are of, and holds one checksum for
//! each MiB, appended after that MiB was written. Nothing else is believed of what an earlier run left: the next one
//! reads the blocks again, and goes on behind the last that is what the record says. So it does not matter how the
//! earlier run ended. After `kill -9` both files are as they were written; after a crash of the machine either may lack
//! its end or have zeros there, which no checksum fits; and the record of another version is none.
//!
//! What is proven is that these are the bytes that were received. Whether those were the object's is judged by the
//! engine, over the whole: the blocks have checksums of the object's own algorithm, and combine to that of the part
//! that is there.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::names::record_path;
use crate::checksum::{Checksum, ChecksumAlgorithm, Digest};
use crate::error::{Error, Result};
use crate::object::ObjectMeta;

/// What is checked, and lost, as one piece. A kill costs half of it on average, and a checksum 8 bytes in 1 MiB.
const BLOCK_BYTES: u64 = 1 << 20;

/// Objects from this size on are worth a second file: fetching a smaller one again costs about what a single request
/// of the usual size does.
const RECORDED_FROM_BYTES: u64 = 8 << 20;

/// A checksum in the record: little-endian, narrower ones in the low bits.
const SUM_BYTES: usize = 8;

/// The record of a file that is being written.
#[derive(Debug)]
pub(super) struct Record {
    file: File,
    path: PathBuf,
    digest: Digest,
    in_block_bytes: u64,
    recorded_bytes: u64,
    /// A checksum could not be written: those before it stand, and none may come after it.
    torn: bool,
}

/// What was found of an earlier run.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Proven {
    /// Bytes from the start that are sound, in whole blocks and less than the object.
    pub(super) bytes: u64,
    /// Their CRC; `None` when there are none.
    pub(super) checksum: Option<Checksum>,
}

/// Whether files of this object have a record: it is large, and a later run can tell that it is the same version.
pub(super) fn is_recorded(meta: &ObjectMeta) -> bool {
    meta.size_bytes >= RECORDED_FROM_BYTES && meta.id.is_pinned()
}

/// Whether an earlier run may have left something of the file at `path`.
pub(super) fn exists(path: &Path, meta: &ObjectMeta) -> bool {
    is_recorded(meta) && record_path(path).exists()
}

impl Record {
    /// Starts one for an empty file.
    pub(super) fn begin(path: &Path, meta: &ObjectMeta) -> std::io::Result<Self> {
        let path = record_path(path);
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)?;
        file.write_all(identity(meta).as_bytes())?;
        Ok(Self::over(file, path, algorithm(meta), 0))
    }

    /// Finds out what of `data` is sound, and cuts record and `data` behind it. `None` if there is no record of this
    /// version, or nothing is sound.
    ///
    /// # Errors
    /// [`Error::Cancelled`] once `is_stopped`; both files are then as they were.
    pub(super) fn prove(
        path: &Path,
        meta: &ObjectMeta,
        data: &File,
        is_stopped: impl Fn() -> bool,
    ) -> Result<Option<(Self, Proven)>> {
        let path = record_path(path);
        let failed = |source| Error::io(&path, source);
        let found = match std::fs::read(&path) {
            Ok(found) => found,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let identity = identity(meta);
        let Some(sums) = found.strip_prefix(identity.as_bytes()) else {
            return Ok(None);
        };
        let proven = sound_blocks(data, sums, meta, is_stopped)?;
        if proven.bytes == 0 {
            return Ok(None);
        }
        data.set_len(proven.bytes).map_err(failed)?;
        let file = File::options().append(true).open(&path).map_err(failed)?;
        let kept = proven.bytes / BLOCK_BYTES * SUM_BYTES as u64;
        file.set_len(identity.len() as u64 + kept).map_err(failed)?;
        let record = Self::over(file, path, algorithm(meta), proven.bytes);
        Ok(Some((record, proven)))
    }

    fn over(file: File, path: PathBuf, algorithm: ChecksumAlgorithm, recorded_bytes: u64) -> Self {
        Self {
            file,
            path,
            digest: Digest::new(algorithm),
            in_block_bytes: 0,
            recorded_bytes,
            torn: false,
        }
    }

    /// These bytes were written behind those before.
    pub(super) fn add(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.torn {
            let room = usize::try_from(BLOCK_BYTES - self.in_block_bytes).unwrap_or(usize::MAX);
            let (now, rest) = bytes.split_at(room.min(bytes.len()));
            self.digest.update(now);
            self.in_block_bytes += now.len() as u64;
            if self.in_block_bytes == BLOCK_BYTES {
                self.end_block();
            }
            bytes = rest;
        }
    }

    fn end_block(&mut self) {
        let sum = self.digest.value();
        match self.file.write_all(&sum.value.to_le_bytes()) {
            Ok(()) => self.recorded_bytes += BLOCK_BYTES,
            Err(error) => {
                // No obstacle for the file itself.
                tracing::warn!(path = %self.path.display(), %error, "what is downloaded from here on could not be resumed");
                self.torn = true;
            }
        }
        self.digest = Digest::new(sum.algorithm);
        self.in_block_bytes = 0;
    }

    /// How much a later run would find sound.
    pub(super) fn recorded_bytes(&self) -> u64 {
        self.recorded_bytes
    }
}

/// Removes the record of the file at `path`, if there is one.
pub(super) fn remove(path: &Path) {
    let path = record_path(path);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "the record of an unfinished file could not be removed");
        }
        _ => {}
    }
}

fn algorithm(meta: &ObjectMeta) -> ChecksumAlgorithm {
    meta.checksum_algorithm
        .unwrap_or(ChecksumAlgorithm::Crc64Nvme)
}

/// The record's first line: whatever makes bytes another object's. Strings are quoted, so that it is one line.
fn identity(meta: &ObjectMeta) -> String {
    format!(
        "standpipe 1 {} {BLOCK_BYTES} {} {:?} {:?} {:?}\n",
        algorithm(meta).header(),
        meta.size_bytes,
        meta.id.etag,
        meta.id.version_id,
        meta.id.uri.to_string(),
    )
}

/// Reads the blocks that have a checksum, up to the first that is not sound, or can't be read. The object's last byte is
/// always left to be fetched, because the engine judges the whole with it.
fn sound_blocks(
    data: &File,
    sums: &[u8],
    meta: &ObjectMeta,
    is_stopped: impl Fn() -> bool,
) -> Result<Proven> {
    let algorithm = algorithm(meta);
    let mut block = vec![0; usize::try_from(BLOCK_BYTES).unwrap_or(usize::MAX)];
    let mut proven = Proven::default();
    for sum in sums.as_chunks::<SUM_BYTES>().0 {
        if is_stopped() {
            return Err(Error::Cancelled);
        }
        let is_last = proven.bytes + BLOCK_BYTES >= meta.size_bytes;
        if is_last || data.read_exact_at(&mut block, proven.bytes).is_err() {
            break;
        }
        let found = Checksum::of(algorithm, &block);
        if found.value != u64::from_le_bytes(*sum) {
            break;
        }
        let whole = |before: Checksum| before.then(found, BLOCK_BYTES);
        proven.checksum = Some(proven.checksum.map_or(found, whole));
        proven.bytes += BLOCK_BYTES;
    }
    Ok(proven)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::{ObjectId, ObjectUri};
    use proptest::prelude::*;

    const SIZE_BYTES: u64 = 4 * BLOCK_BYTES + 77;

    fn meta() -> ObjectMeta {
        ObjectMeta {
            id: ObjectId {
                etag: Some("\"e\"".into()),
                size_bytes: Some(SIZE_BYTES),
                ..ObjectId::unpinned(ObjectUri::s3("b", "k"))
            },
            size_bytes: SIZE_BYTES,
            last_modified: None,
            checksum_algorithm: None,
            checksum: None,
        }
    }

    fn content() -> Vec<u8> {
        (0..SIZE_BYTES)
            .map(|at| (at ^ (at >> 9) ^ (at >> 20)) as u8)
            .collect()
    }

    /// Data and record of a file that was written whole, in pieces that are no blocks.
    struct Left {
        _dir: tempfile::TempDir,
        path: PathBuf,
        data: File,
    }

    impl Left {
        fn new(meta: &ObjectMeta) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("a");
            let mut record = Record::begin(&path, meta).unwrap();
            content()
                .chunks(300_000)
                .for_each(|piece| record.add(piece));
            let mut data = tempfile::tempfile().unwrap();
            data.write_all(&content()).unwrap();
            Self {
                _dir: dir,
                path,
                data,
            }
        }

        fn record(&self) -> File {
            let path = record_path(&self.path);
            File::options().write(true).open(path).unwrap()
        }

        fn proven(&self, meta: &ObjectMeta) -> u64 {
            let found = Record::prove(&self.path, meta, &self.data, || false).unwrap();
            found.map_or(0, |(record, proven)| {
                assert_eq!(record.recorded_bytes(), proven.bytes);
                let before = &content()[..usize::try_from(proven.bytes).unwrap()];
                let expected = Checksum::of(algorithm(meta), before);
                assert_eq!(proven.checksum, Some(expected));
                assert_eq!(self.data.metadata().unwrap().len(), proven.bytes);
                proven.bytes
            })
        }
    }

    /// What becomes of a file while nobody looks.
    #[derive(Debug, Clone)]
    enum Harm {
        Flip(u64),
        Cut(u64),
        Zeros(u64),
        CutRecord(u64),
        ZerosInRecord(u64),
    }

    impl Harm {
        fn do_to(&self, left: &Left, header_bytes: u64) {
            let in_record = |at| header_bytes + at % (4 * SUM_BYTES as u64);
            match *self {
                Self::Flip(at) => {
                    let flipped = !content()[usize::try_from(at).unwrap()];
                    left.data.write_all_at(&[flipped], at).unwrap();
                }
                Self::Cut(at) => left.data.set_len(at).unwrap(),
                Self::Zeros(at) => {
                    left.data.set_len(at).unwrap();
                    left.data.set_len(SIZE_BYTES).unwrap();
                }
                Self::CutRecord(at) => left.record().set_len(in_record(at)).unwrap(),
                Self::ZerosInRecord(at) => {
                    left.record().set_len(in_record(at)).unwrap();
                    left.record().set_len(in_record(u64::MAX) + 1).unwrap();
                }
            }
        }
    }

    /// How many blocks are what they were, with their checksums.
    fn same_blocks(left: &Left, record_before: &[u8], header_bytes: usize) -> u64 {
        let mut data = vec![0; content().len()];
        let len = usize::try_from(left.data.metadata().unwrap().len()).unwrap();
        left.data.read_exact_at(&mut data[..len], 0).unwrap();
        let record = std::fs::read(record_path(&left.path)).unwrap();
        let block = usize::try_from(BLOCK_BYTES).unwrap();
        let is_same = |n: &usize| {
            let (bytes, sums) = (n * block..(n + 1) * block, header_bytes + n * SUM_BYTES);
            let sum = sums..sums + SUM_BYTES;
            bytes.end <= len
                && data[bytes.clone()] == content()[bytes]
                && record.get(sum.clone()) == Some(&record_before[sum])
        };
        (0..4).take_while(is_same).count() as u64
    }

    fn harm() -> impl Strategy<Value = Harm> {
        (0..5, 0..SIZE_BYTES).prop_map(|(kind, at)| match kind {
            0 => Harm::Flip(at),
            1 => Harm::Cut(at),
            2 => Harm::Zeros(at),
            3 => Harm::CutRecord(at),
            _ => Harm::ZerosInRecord(at),
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        /// F6: of what is there, whatever was not written by us as it is now is not used.
        #[test]
        fn only_sound_blocks_are_proven(harms in proptest::collection::vec(harm(), 0..3), algorithm in proptest::sample::select(vec![None, Some(ChecksumAlgorithm::Crc64Nvme), Some(ChecksumAlgorithm::Crc32c)])) {
            let meta = ObjectMeta { checksum_algorithm: algorithm, ..meta() };
            let left = Left::new(&meta);
            let (header_bytes, before) = (identity(&meta).len(), std::fs::read(record_path(&left.path)).unwrap());
            harms.iter().for_each(|harm| harm.do_to(&left, header_bytes as u64));
            let sound = same_blocks(&left, &before, header_bytes) * BLOCK_BYTES;
            prop_assert_eq!(left.proven(&meta), sound);
            // And so it is for the run after.
            prop_assert_eq!(left.proven(&meta), sound);
        }
    }

    /// F6: bytes of another version, or of another object, are never used.
    #[test]
    fn the_record_of_another_version_is_none() {
        let left = Left::new(&meta());
        let other = |change: fn(&mut ObjectMeta)| {
            let mut meta = meta();
            change(&mut meta);
            left.proven(&meta)
        };
        assert_eq!(other(|meta| meta.id.etag = Some("\"f\"".into())), 0);
        assert_eq!(other(|meta| meta.id.version_id = Some("1".into())), 0);
        assert_eq!(other(|meta| meta.size_bytes += 1), 0);
        assert_eq!(other(|meta| meta.id.uri = ObjectUri::s3("b", "k\n")), 0);
        assert_eq!(
            other(|meta| meta.checksum_algorithm = Some(ChecksumAlgorithm::Crc32)),
            0
        );
        assert_eq!(other(|_| {}), 4 * BLOCK_BYTES);
    }

    #[test]
    fn the_last_byte_is_always_left_to_fetch() {
        let mut meta = meta();
        meta.size_bytes = 4 * BLOCK_BYTES;
        assert_eq!(Left::new(&meta).proven(&meta), 3 * BLOCK_BYTES);
    }

    #[test]
    fn a_stopped_proof_leaves_everything_as_it_was() {
        let left = Left::new(&meta());
        let stopped = Record::prove(&left.path, &meta(), &left.data, || true);
        assert!(matches!(stopped, Err(Error::Cancelled)));
        assert_eq!(left.proven(&meta()), 4 * BLOCK_BYTES);
    }

    /// What a crash of the machine leaves of both files, at the same place.
    #[test]
    fn zeros_do_not_prove_zeros() {
        let zeros = vec![0; usize::try_from(BLOCK_BYTES).unwrap()];
        for algorithm in ChecksumAlgorithm::ALL {
            assert_ne!(Checksum::of(algorithm, &zeros).value, 0);
        }
    }
}
