//! RecordIO: `magic, flag and length, payload, padding to four bytes`, little-endian (dmlc-core `recordio.h`).
//!
//! A payload may be split into parts, flagged first, middle and last. Two dialects exist, which nothing in the bytes
//! tells apart. dmlc-core splits where the payload holds the magic number at a multiple of four, leaves the number out, and
//! its reader puts it back. AWS's readers (ml-io, sagemaker-tensorflow-extensions) join parts back to back, and
//! their fixtures are split anywhere. A record that is not split is the same in both.
//!
//! [`frames`] splits only what is too long for one part (2^29 - 1 bytes), or longer than the caller says, the AWS way:
//! every reader named above then reads a payload below 512 MiB.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::decoder::Framing;
use super::input::Input;
use super::{Data, Dialect, Flaw, Record, protobuf};

/// What every part begins with.
pub const MAGIC: u32 = 0xced7_230a;
/// The longest payload of a part: the length has 29 bits.
pub const MAX_PART_BYTES: u32 = (1 << 29) - 1;

const HEADER_BYTES: usize = 8;
const ALIGN: u64 = 4;

/// Payloads of at most `limit` bytes.
#[derive(Debug)]
pub(super) struct RecordIo {
    pub(super) limit: u64,
    pub(super) dialect: Dialect,
    /// Payloads are parsed as tensors.
    pub(super) protobuf: bool,
    /// The parts of a record whose last one has not come, and where it began.
    pub(super) parts: Option<(u64, BytesMut)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flag {
    Whole,
    First,
    Middle,
    Last,
}

impl Framing for RecordIo {
    fn next(&mut self, input: &mut Input) -> Result<Option<Record>, Flaw> {
        loop {
            let Some((flag, bytes)) = self.part(input)? else {
                return Ok(None);
            };
            if flag == Flag::Whole {
                let offset = input.offset() - framed_bytes(bytes.len() as u64);
                return self.record(offset, input.offset(), bytes).map(Some);
            }
            let (offset, mut joined) = self.parts.take().unwrap_or_default();
            joined.extend_from_slice(&bytes);
            if flag == Flag::Last {
                return self
                    .record(offset, input.offset(), joined.freeze())
                    .map(Some);
            }
            self.parts = Some((offset, joined));
        }
    }
}

impl RecordIo {
    /// The next part, whose flag fits what was before it. A first part is noted in `parts`, without its bytes.
    fn part(&mut self, input: &mut Input) -> Result<Option<(Flag, Bytes)>, Flaw> {
        let offset = input.offset();
        if !input.want(HEADER_BYTES as u64) {
            return self.end_within(
                input,
                "the header of a RecordIO record",
                HEADER_BYTES as u64,
            );
        }
        let header = input.peek::<HEADER_BYTES>().expect("it was asked for");
        let (flag, len) = parse(&header).map_err(|reason| Flaw::fatal(offset, reason))?;
        let so_far = self.check_order(offset, flag)?;
        if so_far + u64::from(len) > self.limit {
            return Err(Flaw::too_long(
                offset,
                "a RecordIO record",
                so_far + u64::from(len),
                self.limit,
            ));
        }
        let frame = framed_bytes(u64::from(len));
        if !input.want(frame) {
            return self.end_within(input, "a RecordIO record", frame);
        }
        input.take(HEADER_BYTES);
        let bytes = input.take(len as usize);
        input.skip(frame - HEADER_BYTES as u64 - u64::from(len));
        match (flag, &mut self.parts) {
            (Flag::First, parts) => *parts = Some((offset, BytesMut::new())),
            (Flag::Middle | Flag::Last, Some((_, joined))) if self.dialect == Dialect::Dmlc => {
                joined.extend_from_slice(&MAGIC.to_le_bytes());
            }
            _ => {}
        }
        Ok(Some((flag, bytes)))
    }

    /// How long the record is before this part.
    fn check_order(&self, offset: u64, flag: Flag) -> Result<u64, Flaw> {
        match (&self.parts, flag) {
            (None, Flag::Whole | Flag::First) => Ok(0),
            (Some((_, joined)), Flag::Middle | Flag::Last) => {
                let magic = if self.dialect == Dialect::Dmlc {
                    ALIGN
                } else {
                    0
                };
                Ok(joined.len() as u64 + magic)
            }
            (None, _) => Err(Flaw::fatal(
                offset,
                "a later part of a RecordIO record without its first",
            )),
            (Some((began, _)), _) => Err(Flaw::fatal(
                offset,
                format!(
                    "a RecordIO record begins before the last part of the one at {began} has come"
                ),
            )),
        }
    }

    fn end_within<T>(&self, input: &Input, what: &str, needs: u64) -> Result<Option<T>, Flaw> {
        let has = input.available() as u64;
        match &self.parts {
            _ if !input.ended() => Ok(None),
            _ if has > 0 => Err(Flaw::truncated(input.offset(), what, has, needs)),
            Some((began, _)) => Err(Flaw::fatal(
                *began,
                "the object ends before the last part of a RecordIO record",
            )),
            None => Ok(None),
        }
    }

    fn record(&self, offset: u64, end: u64, bytes: Bytes) -> Result<Record, Flaw> {
        let data = match self.protobuf {
            false => Data::Bytes(bytes),
            true => protobuf::Tensors::parse(&bytes)
                .map(Data::Tensors)
                .map_err(|reason| Flaw::record(offset, reason))?,
        };
        Ok(Record { offset, end, data })
    }
}

/// A part's bytes with header and padding.
fn framed_bytes(len: u64) -> u64 {
    HEADER_BYTES as u64 + len.next_multiple_of(ALIGN)
}

fn parse(header: &[u8; HEADER_BYTES]) -> Result<(Flag, u32), String> {
    let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
    if word(0) != MAGIC {
        return Err(format!(
            "{:#010x} where RecordIO's magic number {MAGIC:#010x} must be: damaged, or no RecordIO",
            word(0)
        ));
    }
    let flag = match word(4) >> 29 {
        0 => Flag::Whole,
        1 => Flag::First,
        2 => Flag::Middle,
        3 => Flag::Last,
        other => return Err(format!("RecordIO's flag is {other}: 0 to 3 are known")),
    };
    Ok((flag, word(4) & MAX_PART_BYTES))
}

/// A part of a record to write: `header`, the payload's bytes of `range`, then `padding` zeros.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Magic number, flag and length.
    pub header: [u8; HEADER_BYTES],
    /// Which bytes of the payload.
    pub range: Range<u64>,
    /// Zeros behind them.
    pub padding: usize,
}

/// The parts that a payload of `len` bytes is written as, none longer than `part_bytes`. They depend on the length
/// alone, so that a payload can be written while it arrives.
pub fn frames(len: u64, part_bytes: u32) -> impl Iterator<Item = Frame> {
    let part = u64::from(part_bytes.clamp(1, MAX_PART_BYTES));
    let parts = len.div_ceil(part).max(1);
    (0..parts).map(move |index| {
        let range = index * part..((index + 1) * part).min(len);
        let flag: u32 = match (index, index + 1 == parts) {
            (0, true) => 0,
            (0, false) => 1,
            (_, false) => 2,
            (_, true) => 3,
        };
        let len = (range.end - range.start) as u32;
        let mut header = [0; HEADER_BYTES];
        header[..4].copy_from_slice(&MAGIC.to_le_bytes());
        header[4..].copy_from_slice(&(flag << 29 | len).to_le_bytes());
        let padding = (len.wrapping_neg() % ALIGN as u32) as usize;
        Frame {
            header,
            range,
            padding,
        }
    })
}

/// What [`frames`] come to in all.
pub fn encoded_bytes(len: u64, part_bytes: u32) -> u64 {
    frames(len, part_bytes)
        .map(|frame| framed_bytes(frame.range.end - frame.range.start))
        .sum()
}

/// Appends one record, in parts of at most `part_bytes`; [`MAX_PART_BYTES`] splits no more than it must.
pub fn encode(payload: &[u8], part_bytes: u32, into: &mut Vec<u8>) {
    for frame in frames(payload.len() as u64, part_bytes) {
        into.extend_from_slice(&frame.header);
        into.extend_from_slice(&payload[frame.range.start as usize..frame.range.end as usize]);
        into.resize(into.len() + frame.padding, 0);
    }
}
