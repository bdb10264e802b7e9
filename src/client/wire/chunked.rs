//! The chunked transfer coding, decoded in place.
//!
//! Object bodies carry a length; chunks come from error pages and from stores that generate their answers. The
//! decoder is a state machine over whatever pieces the network hands out, and never holds a byte back.

/// A chunk-size line with extensions, or a trailer line: longer ones are an attack or a fault.
const MAX_LINE_BYTES: usize = 4 << 10;
/// All trailer lines together.
const MAX_TRAILER_BYTES: usize = 16 << 10;

/// Where in the coding the next byte stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// In the hexadecimal digits of a chunk's size.
    Size { digits: usize },
    /// In the ignored rest of a size line.
    Extension { len: usize },
    /// Behind the `\r` of a size line.
    SizeEnd,
    /// In the chunk's bytes.
    Data,
    /// Before the `\r` behind the bytes.
    DataCr,
    /// Before the `\n` behind the bytes.
    DataLf,
    /// In the trailer: `line` bytes of the current line have been seen.
    Trailer { line: usize, total: usize },
    /// Behind the `\r` of a trailer line.
    TrailerEnd { line: usize, total: usize },
    /// Behind the last byte.
    Done,
}

/// Decodes one body.
#[derive(Debug)]
pub(super) struct Decoder {
    state: State,
    /// The current chunk's size while it is being read, then what is left of it.
    left: u64,
}

impl Decoder {
    pub(super) fn new() -> Self {
        Self {
            state: State::Size { digits: 0 },
            left: 0,
        }
    }

    /// Whether the last chunk and its trailer have been read.
    pub(super) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Reads `bytes`, hands payload to `sink`, and says how many bytes belong to the body; fewer than all only when
    /// the body ended within them.
    pub(super) fn decode(
        &mut self,
        bytes: &[u8],
        mut sink: impl FnMut(&[u8]),
    ) -> Result<usize, String> {
        let mut at = 0;
        while at < bytes.len() && !self.is_done() {
            if self.state == State::Data {
                let n = usize::try_from(self.left)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len() - at);
                sink(&bytes[at..at + n]);
                self.left -= n as u64;
                at += n;
                if self.left == 0 {
                    self.state = State::DataCr;
                }
            } else {
                self.state = self.step(bytes[at])?;
                at += 1;
            }
        }
        Ok(at)
    }

    fn step(&mut self, byte: u8) -> Result<State, String> {
        Ok(match (self.state, byte) {
            (State::Size { digits }, _) if byte.is_ascii_hexdigit() => {
                let digit = (byte as char).to_digit(16).map_or(0, u64::from);
                if digits >= 16 {
                    return Err("a chunk size of more than 64 bits".into());
                }
                self.left = self.left << 4 | digit;
                State::Size { digits: digits + 1 }
            }
            (State::Size { digits: 1.. }, b'\r') => State::SizeEnd,
            (State::Size { digits: 1.. }, b';' | b' ' | b'\t') => State::Extension { len: 0 },
            (State::Extension { .. }, b'\r') => State::SizeEnd,
            (State::Extension { len }, _) if byte != b'\n' && len < MAX_LINE_BYTES => {
                State::Extension { len: len + 1 }
            }
            (State::SizeEnd, b'\n') if self.left == 0 => State::Trailer { line: 0, total: 0 },
            (State::SizeEnd, b'\n') => State::Data,
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::Size { digits: 0 },
            (State::Trailer { line, total }, b'\r') => State::TrailerEnd { line, total },
            (State::Trailer { line, total }, _)
                if byte != b'\n' && line < MAX_LINE_BYTES && total < MAX_TRAILER_BYTES =>
            {
                State::Trailer {
                    line: line + 1,
                    total: total + 1,
                }
            }
            (State::TrailerEnd { line: 0, .. }, b'\n') => State::Done,
            (State::TrailerEnd { total, .. }, b'\n') => State::Trailer { line: 0, total },
            (state, byte) => return Err(format!("byte {byte:#04x} in a chunked body ({state:?})")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(pieces: &[&[u8]]) -> Result<(Vec<u8>, usize, bool), String> {
        let (mut decoder, mut out, mut used) = (Decoder::new(), Vec::new(), 0);
        for piece in pieces {
            used += decoder.decode(piece, |bytes| out.extend_from_slice(bytes))?;
        }
        Ok((out, used, decoder.is_done()))
    }

    #[test]
    fn extensions_and_trailers_are_skipped_and_the_end_is_exact() {
        let body = b"3;x=\"y\"\r\nabc\r\n00A \r\n0123456789\r\n0\r\nX-Sum: 1\r\n\r\nHTTP";
        let (out, used, done) = decode(&[body]).unwrap();
        assert_eq!(
            (&out[..], used, done),
            (&b"abc0123456789"[..], body.len() - 4, true)
        );
    }

    #[test]
    fn bad_codings_are_refused() {
        for body in [
            &b"\r\n"[..],
            b"x\r\n",
            b"-1\r\n",
            b"3\nabc",
            b"3\r\nabcd",
            b"3\r\nabc\rx",
            b"11111111111111111\r\n",
            b";x\r\n",
            b"0\r\nX\n\r\n",
            b"3\r\rabc",
        ] {
            assert!(
                decode(&[body]).is_err(),
                "{:?}",
                String::from_utf8_lossy(body)
            );
        }
        let endless = [b"0\r\n".as_slice(), &[b'a'; MAX_LINE_BYTES + 1]].concat();
        assert!(decode(&[&endless]).is_err());
        let endless = [b"1;".as_slice(), &[b'a'; MAX_LINE_BYTES + 1]].concat();
        assert!(decode(&[&endless]).is_err());
    }

    proptest! {
        #[test]
        fn any_split_of_any_body_decodes_to_the_same(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..60), 0..8),
            cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..12),
        ) {
            let mut body = Vec::new();
            for chunk in &chunks {
                body.extend(format!("{:x}\r\n", chunk.len()).bytes());
                body.extend(chunk);
                body.extend(b"\r\n");
            }
            body.extend(b"0\r\n\r\n");
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(body.len() + 1)).collect();
            cuts.extend([0, body.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &body[pair[0]..pair[1]]).collect();
            prop_assert_eq!(decode(&pieces), Ok((chunks.concat(), body.len(), true)));
            prop_assert!(!decode(&[&body[..body.len() - 1]]).unwrap().2);
        }

        #[test]
        fn noise_never_panics_and_never_reads_too_far(body: Vec<u8>) {
            if let Ok((_, used, done)) = decode(&[&body]) {
                prop_assert!(used <= body.len() && (done || used == body.len()));
            }
        }
    }
}
