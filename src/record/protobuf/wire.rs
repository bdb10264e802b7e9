//! Protobuf's wire format, as far as `Record` needs it: a field's tag, and a value of one of four kinds
//! (protobuf.dev/programming-guides/encoding). Groups, which proto2 deprecates, are refused.

use bytes::{Buf, Bytes};

/// The longest varint: 64 bits in groups of seven.
const MAX_VARINT_BYTES: usize = 10;

/// One field.
#[derive(Debug)]
pub(super) struct Field {
    pub(super) number: u64,
    pub(super) wire: Wire,
}

/// A field's value as it was written.
#[derive(Debug)]
pub(super) enum Wire {
    Varint(u64),
    Fixed64(Bytes),
    Bytes(Bytes),
    Fixed32(Bytes),
}

/// A message's fields; ends after the first error.
#[derive(Debug)]
pub(super) struct Fields {
    rest: Bytes,
    failed: bool,
}

impl Fields {
    pub(super) fn of(message: &Bytes) -> Self {
        Self {
            rest: message.clone(),
            failed: false,
        }
    }

    fn field(&mut self) -> Result<Field, String> {
        let tag = varint(&mut self.rest)?;
        let wire = match tag & 7 {
            0 => Wire::Varint(varint(&mut self.rest)?),
            1 => Wire::Fixed64(take(&mut self.rest, 8)?),
            2 => {
                let len = varint(&mut self.rest)?;
                Wire::Bytes(take(&mut self.rest, len)?)
            }
            5 => Wire::Fixed32(take(&mut self.rest, 4)?),
            kind => return Err(format!("a protobuf field of wire type {kind}")),
        };
        Ok(Field {
            number: tag >> 3,
            wire,
        })
    }
}

impl Iterator for Fields {
    type Item = Result<Field, String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed || self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        self.failed = field.is_err();
        Some(field)
    }
}

fn take(rest: &mut Bytes, len: u64) -> Result<Bytes, String> {
    match len <= rest.len() as u64 {
        true => Ok(rest.split_to(len as usize)),
        false => Err(format!(
            "a protobuf field claims {len} bytes where {} are left",
            rest.len()
        )),
    }
}

fn varint(rest: &mut Bytes) -> Result<u64, String> {
    let (value, len) = varint_at(rest)?;
    rest.advance(len);
    Ok(value)
}

/// A varint and its length.
fn varint_at(bytes: &[u8]) -> Result<(u64, usize), String> {
    let mut value = 0u64;
    for (index, byte) in bytes.iter().take(MAX_VARINT_BYTES).enumerate() {
        let bits = u64::from(byte & 0x7f);
        if index == MAX_VARINT_BYTES - 1 && bits > 1 {
            break;
        }
        value |= bits << (7 * index);
        if byte & 0x80 == 0 {
            return Ok((value, index + 1));
        }
    }
    Err("a protobuf number that does not end, or has more than 64 bits".into())
}

impl Wire {
    pub(super) fn bytes(self, what: &str) -> Result<Bytes, String> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            other => Err(other.unexpected(what)),
        }
    }

    pub(super) fn text(self, what: &str) -> Result<String, String> {
        let bytes = self.bytes(what)?;
        String::from_utf8(bytes.to_vec())
            .map_err(|_| format!("{what} of the protobuf record is not UTF-8"))
    }

    /// Integers, packed or one by one.
    pub(super) fn varints(self, what: &str, mut each: impl FnMut(u64)) -> Result<(), String> {
        match self {
            Self::Varint(value) => each(value),
            Self::Bytes(packed) => {
                let mut rest = &packed[..];
                while !rest.is_empty() {
                    let (value, len) = varint_at(rest)?;
                    each(value);
                    rest = &rest[len..];
                }
            }
            other => return Err(other.unexpected(what)),
        }
        Ok(())
    }

    /// Values of `width` bytes, packed or one by one.
    pub(super) fn fixed(self, width: usize, what: &str) -> Result<Bytes, String> {
        match self {
            Self::Fixed32(bytes) if width == 4 => Ok(bytes),
            Self::Fixed64(bytes) if width == 8 => Ok(bytes),
            Self::Bytes(packed) if packed.len() % width == 0 => Ok(packed),
            Self::Bytes(packed) => Err(format!(
                "{what} in {} bytes: no multiple of {width}",
                packed.len()
            )),
            other => Err(other.unexpected(what)),
        }
    }

    fn unexpected(&self, what: &str) -> String {
        let kind = match self {
            Self::Varint(_) => "a varint",
            Self::Fixed64(_) => "64 bits",
            Self::Bytes(_) => "bytes",
            Self::Fixed32(_) => "32 bits",
        };
        format!("{what} of the protobuf record: not written as {kind}")
    }
}
