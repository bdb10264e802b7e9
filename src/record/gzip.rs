//! Gzip: members one behind the other, zeros allowed between and behind them, as for Python's `gzip`. The CRC and length
//! at a member's end are compared; what follows the last member and is neither zeros nor a member is a flaw.

use bytes::Bytes;
use flate2::{Decompress, FlushDecompress, Status};

use super::Flaw;
use super::compression::STEP_BYTES;
use super::input::Input;

/// The largest window of deflate, 2^15 bytes.
const WINDOW_BITS: u8 = 15;

/// Whether a member may begin so (RFC 1952, 2.3): the magic number, deflate, no reserved flag, a known system or 255.
pub(super) fn is_header(bytes: &[u8; 10]) -> bool {
    let [0x1f, 0x8b, 8, flags, .., system] = bytes else {
        return false;
    };
    *flags < 0x20 && (*system <= 13 || *system == 255)
}

/// Undoes gzip.
#[derive(Debug)]
pub(super) struct Gzip {
    inflate: Decompress,
    /// Inside of a member. Else between two, or at one end of the object.
    inside: bool,
    members: u64,
    /// To be told behind what was given out.
    failed: Option<Flaw>,
}

impl Default for Gzip {
    fn default() -> Self {
        Self {
            inflate: Decompress::new_gzip(WINDOW_BITS),
            inside: false,
            members: 0,
            failed: None,
        }
    }
}

impl Gzip {
    pub(super) fn next(&mut self, input: &mut Input) -> Result<Option<Bytes>, Flaw> {
        if let Some(flaw) = &self.failed {
            return Err(flaw.clone());
        }
        let mut out = Vec::new();
        while out.len() < STEP_BYTES {
            if !self.inside && !self.begin_member(input) {
                break;
            }
            if out.capacity() == 0 {
                out.reserve_exact(STEP_BYTES);
            }
            if !self.inflate(input, &mut out)? {
                break;
            }
        }
        if out.is_empty() && self.inside && input.ended() {
            let reason = format!("the object ends inside of its gzip member {}", self.members);
            return Err(Flaw::fatal(input.offset(), reason));
        }
        Ok((!out.is_empty()).then(|| out.into()))
    }

    /// Whether a member begins at the next byte.
    fn begin_member(&mut self, input: &mut Input) -> bool {
        while self.members > 0 && input.piece().first() == Some(&0) {
            let piece = input.piece();
            let zeros = piece
                .iter()
                .position(|byte| *byte != 0)
                .unwrap_or(piece.len());
            input.skip(zeros as u64);
        }
        self.inside = !input.is_empty();
        self.members += u64::from(self.inside);
        self.inside
    }

    /// One step inside of a member; `false` when it can't get on. What came out before a flaw is sound as far as is known,
    /// and is given out first: so it does not depend on the chunks.
    fn inflate(&mut self, input: &mut Input, out: &mut Vec<u8>) -> Result<bool, Flaw> {
        let (read, written) = (self.inflate.total_in(), out.len());
        let status = self
            .inflate
            .decompress_vec(input.piece(), out, FlushDecompress::None);
        let used = self.inflate.total_in() - read;
        input.skip(used);
        match status {
            Ok(Status::StreamEnd) => {
                // `true` keeps the framing, which is gzip's.
                self.inflate.reset(true);
                self.inside = false;
                Ok(true)
            }
            Ok(_) => Ok(used > 0 || out.len() > written),
            Err(error) => {
                let what = error.message().unwrap_or("damaged");
                let reason = format!("gzip member {}: {what}", self.members);
                let flaw = Flaw::fatal(input.offset(), reason);
                if out.is_empty() {
                    return Err(flaw);
                }
                self.failed = Some(flaw);
                Ok(false)
            }
        }
    }
}
