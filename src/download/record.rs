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
