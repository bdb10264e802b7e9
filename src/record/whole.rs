//! Formats without framing: the whole object, and records of one size.

use super::decoder::Framing;
use super::input::Input;
use super::{Data, Flaw, Record};

/// The object is the record, an empty object too.
#[derive(Debug)]
pub(super) struct Raw {
    pub(super) limit: u64,
    pub(super) done: bool,
}

impl Framing for Raw {
    fn next(&mut self, input: &mut Input) -> Result<Option<Record>, Flaw> {
        if self.done {
            return Ok(None);
        }
        let available = input.available();
        if available as u64 > self.limit {
            return Err(Flaw::too_long(
                0,
                "the object",
                available as u64,
                self.limit,
            ));
        }
        if !input.ended() {
            // One chunk may be all there is: then it is the record, without a copy.
            if input.piece().len() < available {
                input.want(available as u64 + 1);
            }
            return Ok(None);
        }
        self.done = true;
        let offset = input.offset();
        let bytes = input.take(available);
        Ok(Some(Record {
            offset,
            end: input.offset(),
            data: Data::Bytes(bytes),
        }))
    }
}

/// Records of `len` bytes.
#[derive(Debug)]
pub(super) struct Fixed {
    pub(super) len: u32,
}

impl Framing for Fixed {
    fn next(&mut self, input: &mut Input) -> Result<Option<Record>, Flaw> {
        let offset = input.offset();
        if !input.want(u64::from(self.len)) {
            let has = input.available() as u64;
            return match input.ended() && has > 0 {
                true => Err(Flaw::truncated(
                    offset,
                    "a record",
                    has,
                    u64::from(self.len),
                )),
                false => Ok(None),
            };
        }
        let bytes = input.take(self.len as usize);
        Ok(Some(Record {
            offset,
            end: input.offset(),
            data: Data::Bytes(bytes),
        }))
    }
}
