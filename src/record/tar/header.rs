//! One header block (POSIX.1-2017, pax: "ustar Interchange Format"; GNU's base-256 numbers).

use super::pax;

pub(super) const BLOCK_BYTES: u64 = 512;

/// What a header says, as far as samples need it.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) name: String,
    pub(super) size: u64,
    pub(super) kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Extended(pax::Kind),
    /// Links, devices, directories: nothing follows, whatever size they tell.
    Empty,
    /// Kinds of other systems.
    Other,
}

impl Header {
    pub(super) fn parse(block: &[u8; BLOCK_BYTES as usize]) -> Result<Self, String> {
        check(block)?;
        let kind = match block[156] {
            b'0' | b'7' | 0 => Kind::File,
            b'x' | b'X' => Kind::Extended(pax::Kind::Pax),
            b'L' => Kind::Extended(pax::Kind::LongName),
            b'K' | b'g' => Kind::Extended(pax::Kind::Ignored),
            b'S' => {
                return Err("a sparse file in a tar archive: its bytes are not the file's".into());
            }
            b'1'..=b'6' => Kind::Empty,
            _ => Kind::Other,
        };
        let size = match kind {
            Kind::Empty => 0,
            _ => number(&block[124..136])?,
        };
        Ok(Self {
            name: name(block),
            size,
            kind,
        })
    }
}

/// The name, with ustar's prefix. GNU's own format has other things there.
fn name(block: &[u8; BLOCK_BYTES as usize]) -> String {
    let name = until_nul(&block[..100]);
    let prefix = match &block[257..263] == b"ustar\0" {
        true => until_nul(&block[345..500]),
        false => "".into(),
    };
    match prefix.is_empty() {
        true => name.into_owned(),
        false => format!("{prefix}/{name}"),
    }
}

pub(super) fn until_nul(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    let end = memchr::memchr(0, bytes).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end])
}

/// Octal digits between blanks, or, with the highest bit set, a big-endian number.
fn number(field: &[u8]) -> Result<u64, String> {
    if field[0] & 0x80 != 0 {
        let bytes = std::iter::once(field[0] & 0x7f).chain(field[1..].iter().copied());
        return bytes
            .into_iter()
            .try_fold(0u64, |value, byte| {
                Some(value.checked_mul(256)? + u64::from(byte))
            })
            .filter(|_| field[0] & 0x40 == 0)
            .ok_or_else(|| "a number beyond 64 bits in a tar header".into());
    }
    let digits = field.trim_ascii_start();
    let end = digits
        .iter()
        .position(|byte| matches!(byte, 0 | b' '))
        .unwrap_or(digits.len());
    digits[..end]
        .iter()
        .try_fold(0u64, |value, digit| match digit {
            // Twelve digits of three bits.
            b'0'..=b'7' => Ok(value << 3 | u64::from(digit - b'0')),
            _ => Err(format!(
                "{:?} in place of an octal number in a tar header",
                String::from_utf8_lossy(field)
            )),
        })
}

/// The checksum: the sum of all bytes, its own field taken as blanks. Some writers of old summed signed bytes.
fn check(block: &[u8; BLOCK_BYTES as usize]) -> Result<(), String> {
    let stored = number(&block[148..156])
        .map_err(|_| "no tar header: its checksum is no number".to_owned())?;
    let others = || block[..148].iter().chain(&block[156..]);
    let blanks = 8 * i64::from(b' ');
    let unsigned = blanks + others().map(|byte| i64::from(*byte)).sum::<i64>();
    let signed = blanks + others().map(|byte| i64::from(*byte as i8)).sum::<i64>();
    let stored = i64::try_from(stored).unwrap_or(-1);
    match stored == unsigned || stored == signed {
        true => Ok(()),
        false => Err(format!(
            "no tar header: its checksum is {stored}, and its bytes sum up to {unsigned}"
        )),
    }
}
