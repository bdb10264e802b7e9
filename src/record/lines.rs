//! Lines, and lines of JSON.
//!
//! A line ends with `\n`; a `\r` before it belongs to the end, too, as in Python's text files. A `\r` alone is data: bytes
//! that are no text may hold it. What follows the last `\n` is a line if there is anything; so an object that ends
//! without `\n` loses nothing, and one that ends with it has no empty line at its end.

use bytes::Bytes;

use super::decoder::Framing;
use super::input::Input;
use super::{Data, Flaw, Record};

/// Lines of at most `limit` bytes.
#[derive(Debug)]
pub(super) struct Lines {
    pub(super) limit: u64,
    /// Each is checked to be JSON in UTF-8, and blank ones are none.
    pub(super) json: bool,
    /// Unused bytes that hold no end of a line.
    pub(super) searched: usize,
}

impl Framing for Lines {
    fn next(&mut self, input: &mut Input) -> Result<Option<Record>, Flaw> {
        loop {
            let offset = input.offset();
            let Some(line) = self.line(input)? else {
                return Ok(None);
            };
            if self.json && line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            if self.json {
                check(&line).map_err(|reason| Flaw::record(offset, reason))?;
            }
            return Ok(Some(Record {
                offset,
                end: input.offset(),
                data: Data::Bytes(line),
            }));
        }
    }
}

impl Lines {
    fn line(&mut self, input: &mut Input) -> Result<Option<Bytes>, Flaw> {
        let found = input.find(b'\n', self.searched);
        let len = found.unwrap_or(input.available());
        if len as u64 > self.limit {
            return Err(Flaw::too_long(
                input.offset(),
                "a line",
                len as u64,
                self.limit,
            ));
        }
        let Some(len) = found else {
            self.searched = len;
            if input.ended() && len > 0 {
                self.searched = 0;
                return Ok(Some(input.take(len)));
            }
            input.want(len as u64 + 1);
            return Ok(None);
        };
        self.searched = 0;
        let mut line = input.take(len + 1);
        let end = if line[..len].ends_with(b"\r") {
            len - 1
        } else {
            len
        };
        line.truncate(end);
        Ok(Some(line))
    }
}

/// Whether a line is one JSON value.
fn check(line: &[u8]) -> Result<(), String> {
    let text = std::str::from_utf8(line).map_err(|error| {
        format!(
            "a line that is not UTF-8, from its byte {} on",
            error.valid_up_to()
        )
    })?;
    serde_json::from_str::<serde::de::IgnoredAny>(text)
        .map(drop)
        .map_err(|error| {
            format!(
                "a line that is not JSON, at its column {}: {error}",
                error.column()
            )
        })
}
