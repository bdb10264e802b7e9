//! TFRecord: a length, its CRC, the payload, its CRC. All little-endian; both CRCs are CRC32C, masked, because a CRC of
//! bytes that hold a CRC is weak (tensorflow/core/lib/io/record_writer.h, tsl/lib/hash/crc32c.h).

use super::decoder::Framing;
use super::input::Input;
use super::{Data, Flaw, Record};
use crate::checksum::{Checksum, ChecksumAlgorithm};

const HEADER_BYTES: usize = 12;
const FOOTER_BYTES: usize = 4;

/// Records with payloads of at most `limit` bytes.
#[derive(Debug)]
pub(super) struct TfRecords {
    pub(super) limit: u64,
}

impl Framing for TfRecords {
    fn next(&mut self, input: &mut Input) -> Result<Option<Record>, Flaw> {
        let offset = input.offset();
        if !input.want(HEADER_BYTES as u64) {
            return end_within(input, "the header of a TFRecord", HEADER_BYTES as u64);
        }
        let header = input.peek::<HEADER_BYTES>().expect("it was asked for");
        let len = length(&header).map_err(|reason| Flaw::fatal(offset, reason))?;
        if len > self.limit {
            return Err(Flaw::too_long(offset, "a TFRecord", len, self.limit));
        }
        let frame = (HEADER_BYTES + FOOTER_BYTES) as u64 + len;
        if !input.want(frame) {
            return end_within(input, "a TFRecord", frame);
        }
        input.take(HEADER_BYTES);
        let bytes = input.take(len as usize);
        let expected = input.take(FOOTER_BYTES);
        let found = masked_crc(&bytes);
        if expected != found.to_le_bytes()[..] {
            let reason = format!(
                "the CRC of a TFRecord's {len} bytes is {found:#010x}, not the {:#010x} behind them",
                u32::from_le_bytes(expected[..].try_into().expect("four bytes were taken"))
            );
            return Err(Flaw::record(offset, reason));
        }
        Ok(Some(Record {
            offset,
            end: input.offset(),
            data: Data::Bytes(bytes),
        }))
    }
}

/// Nothing yet, or the end, or the end in the middle of something.
fn end_within(input: &Input, what: &str, needs: u64) -> Result<Option<Record>, Flaw> {
    let has = input.available() as u64;
    match input.ended() && has > 0 {
        true => Err(Flaw::truncated(input.offset(), what, has, needs)),
        false => Ok(None),
    }
}

fn length(header: &[u8; HEADER_BYTES]) -> Result<u64, String> {
    let (len, crc) = header.split_at(8);
    let found = masked_crc(len);
    if crc != found.to_le_bytes() {
        return Err(format!(
            "the CRC of a TFRecord's length is {found:#010x}, not the {:#010x} behind it: damaged, or no TFRecord",
            u32::from_le_bytes(crc.try_into().expect("four bytes are left"))
        ));
    }
    Ok(u64::from_le_bytes(
        len.try_into().expect("eight bytes were split off"),
    ))
}

/// Whether a record begins so.
pub(super) fn is_header(bytes: &[u8; HEADER_BYTES]) -> bool {
    length(bytes).is_ok()
}

fn masked_crc(bytes: &[u8]) -> u32 {
    let crc = Checksum::of(ChecksumAlgorithm::Crc32c, bytes).value as u32;
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Appends one record.
pub fn encode(payload: &[u8], into: &mut Vec<u8>) {
    let len = (payload.len() as u64).to_le_bytes();
    into.reserve(HEADER_BYTES + payload.len() + FOOTER_BYTES);
    into.extend_from_slice(&len);
    into.extend_from_slice(&masked_crc(&len).to_le_bytes());
    into.extend_from_slice(payload);
    into.extend_from_slice(&masked_crc(payload).to_le_bytes());
}
