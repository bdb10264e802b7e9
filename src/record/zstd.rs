//! Zstandard: frames one behind the other, skippable ones among them (RFC 8878).
//!
//! ruzstd decodes a block when all of it is there, and keeps a window back that later blocks refer to. Blocks are at most
//! 128 KiB, so a step's output and its input are bounded; the window is bounded by what `zstd -d` accepts, 128 MiB.
//! Checksum and content size of a frame are compared where it has them.

use std::fmt;
use std::io::Read as _;

use bytes::Bytes;
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use super::Flaw;
use super::compression::STEP_BYTES;
use super::input::Input;

const MAGIC: u32 = 0xfd2f_b528;
/// `184D2A50` to `184D2A5F`.
const SKIPPABLE_MAGIC: u32 = 0x184d_2a50;
const MAX_BLOCK_BYTES: u32 = 128 << 10;
const BLOCK_HEADER_BYTES: u64 = 3;
const CHECKSUM_BYTES: u64 = 4;
const MAX_WINDOW_BYTES: u64 = 128 << 20;

/// Undoes Zstandard.
pub(super) struct Zstd {
    decoder: FrameDecoder,
    state: State,
    /// Of the frame at hand: what it says that it holds, and what came out so far.
    content_bytes: Option<u64>,
    written_bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Between,
    Skipping(u64),
    Frame { checksum: bool },
    LastBlockDone,
}

impl Default for Zstd {
    fn default() -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(MAX_WINDOW_BYTES);
        Self {
            decoder,
            state: State::Between,
            content_bytes: None,
            written_bytes: 0,
        }
    }
}

impl fmt::Debug for Zstd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Zstd")
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl Zstd {
    pub(super) fn next(&mut self, input: &mut Input) -> Result<Option<Bytes>, Flaw> {
        loop {
            if matches!(self.state, State::Frame { .. } | State::LastBlockDone)
                && let Some(bytes) = self.drain(input.offset())?
            {
                return Ok(Some(bytes));
            }
            if !self.step(input)? {
                return Ok(None);
            }
        }
    }

    /// Decompressed bytes that no later block refers to.
    fn drain(&mut self, offset: u64) -> Result<Option<Bytes>, Flaw> {
        let ready = self.decoder.can_collect().min(STEP_BYTES);
        if ready == 0 {
            return Ok(None);
        }
        let mut bytes = vec![0; ready];
        let read = self
            .decoder
            .read(&mut bytes)
            .map_err(|error| flaw(offset, &error))?;
        bytes.truncate(read);
        self.written_bytes += read as u64;
        Ok(Some(bytes.into()))
    }

    /// Uses the next element of the frame format; `false` when it is not there.
    fn step(&mut self, input: &mut Input) -> Result<bool, Flaw> {
        match self.state {
            State::Between => self.begin_frame(input),
            State::Skipping(0) => {
                self.state = State::Between;
                Ok(true)
            }
            State::Skipping(left) => {
                let skipped = input.skip(left);
                self.state = State::Skipping(left - skipped);
                if skipped == 0 {
                    ended_within(input, "a skippable zstd frame", left)?;
                }
                Ok(skipped > 0)
            }
            State::Frame { checksum } => self.block(input, checksum),
            State::LastBlockDone => {
                self.end_frame(input.offset())?;
                self.state = State::Between;
                Ok(true)
            }
        }
    }

    fn begin_frame(&mut self, input: &mut Input) -> Result<bool, Flaw> {
        if input.is_empty() {
            return Ok(false);
        }
        let offset = input.offset();
        // Magic number and descriptor; a skippable frame has a length instead of the latter.
        if !input.want(5) {
            return ended_within(input, "the header of a zstd frame", 5);
        }
        let head = input.peek::<5>().expect("it was asked for");
        let magic = u32::from_le_bytes(head[..4].try_into().expect("four bytes"));
        if magic & !0xf == SKIPPABLE_MAGIC {
            if !input.want(8) {
                return ended_within(input, "the header of a skippable zstd frame", 8);
            }
            let head = input.take(8);
            let len = u32::from_le_bytes(head[4..].try_into().expect("four bytes"));
            self.state = State::Skipping(u64::from(len));
            return Ok(true);
        }
        if magic != MAGIC {
            return Err(Flaw::fatal(
                offset,
                format!("{magic:#010x} where zstd's magic number {MAGIC:#010x} must be"),
            ));
        }
        let descriptor = Descriptor(head[4]);
        let len = descriptor.header_bytes();
        if !input.want(len) {
            return ended_within(input, "the header of a zstd frame", len);
        }
        let header = input.take(len as usize);
        self.decoder
            .reset(&header[..])
            .map_err(|error| flaw(offset, &error))?;
        self.content_bytes = descriptor
            .has_content_size()
            .then(|| self.decoder.content_size());
        self.written_bytes = 0;
        self.state = State::Frame {
            checksum: descriptor.has_checksum(),
        };
        Ok(true)
    }

    fn block(&mut self, input: &mut Input, checksum: bool) -> Result<bool, Flaw> {
        let offset = input.offset();
        if !input.want(BLOCK_HEADER_BYTES) {
            return ended_within(input, "the header of a zstd block", BLOCK_HEADER_BYTES);
        }
        let [a, b, c] = input.peek::<3>().expect("it was asked for");
        let header = u32::from_le_bytes([a, b, c, 0]);
        let (last, kind, size) = (header & 1 == 1, header >> 1 & 3, header >> 3);
        if kind == 3 || size > MAX_BLOCK_BYTES {
            return Err(Flaw::fatal(
                offset,
                format!("a zstd block of kind {kind} with {size} bytes"),
            ));
        }
        // Of a run only the byte that is repeated is there.
        let body = if kind == 1 { 1 } else { u64::from(size) };
        let tail = if last && checksum { CHECKSUM_BYTES } else { 0 };
        let len = BLOCK_HEADER_BYTES + body + tail;
        if !input.want(len) {
            return ended_within(input, "a zstd block", len);
        }
        let block = input.take(len as usize);
        self.decoder
            .decode_blocks(&block[..], BlockDecodingStrategy::UptoBlocks(1))
            .map_err(|error| flaw(offset, &error))?;
        if last {
            self.state = State::LastBlockDone;
        }
        Ok(true)
    }

    /// Judges a frame that is drained.
    fn end_frame(&self, offset: u64) -> Result<(), Flaw> {
        let (written, found) = (self.written_bytes, self.decoder.get_calculated_checksum());
        if self.content_bytes.is_some_and(|content| content != written) {
            let reason = format!("a zstd frame holds {written} bytes, and says otherwise");
            return Err(Flaw::fatal(offset, reason));
        }
        match self.decoder.get_checksum_from_data() {
            Some(expected) if found != Some(expected) => Err(Flaw::fatal(
                offset,
                "the checksum of a zstd frame differs from its bytes'",
            )),
            _ => Ok(()),
        }
    }
}

/// The byte that says what a frame's header has.
#[derive(Debug, Clone, Copy)]
struct Descriptor(u8);

impl Descriptor {
    fn has_checksum(self) -> bool {
        self.0 & 1 << 2 != 0
    }

    fn is_single_segment(self) -> bool {
        self.0 & 1 << 5 != 0
    }

    fn has_content_size(self) -> bool {
        self.0 >> 6 != 0 || self.is_single_segment()
    }

    /// Magic number, descriptor, window, dictionary, content size.
    fn header_bytes(self) -> u64 {
        let window = u64::from(!self.is_single_segment());
        let dictionary = [0, 1, 2, 4][usize::from(self.0 & 3)];
        let content = match self.0 >> 6 {
            0 => u64::from(self.is_single_segment()),
            flag => 1 << flag,
        };
        5 + window + dictionary + content
    }
}

fn flaw(offset: u64, error: &dyn fmt::Display) -> Flaw {
    Flaw::fatal(offset, format!("zstd: {error}"))
}

/// More bytes are needed; a flaw if none will come.
fn ended_within(input: &Input, what: &str, needs: u64) -> Result<bool, Flaw> {
    match input.ended() {
        true => Err(Flaw::truncated(
            input.offset(),
            what,
            input.available() as u64,
            needs,
        )),
        false => Ok(false),
    }
}
