//! The head of an answer: parsed where it lies, judged strictly.
//!
//! A client that disagrees with its server about where a body ends reads one answer as another, so everything that
//! leaves room for two opinions (two lengths, a length and a transfer coding, a coding we do not know) is refused.
//! Nothing is allocated: the headers are slices of the connection's scratch buffer.

use std::mem::MaybeUninit;

/// S3's own limit for metadata is 2 KiB; 64 KiB leaves room for any proxy and none for an attack on memory.
pub(super) const MAX_HEAD_BYTES: usize = 64 << 10;
/// S3 answers with about 20 headers, and user metadata adds at most some dozens.
const MAX_HEADERS: usize = 128;

/// What the request was, as far as it decides whether a body follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// `GET`.
    Get,
    /// `HEAD`: the answer has no body whatever its headers say.
    Head,
}

impl Method {
    /// As it stands in the request line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
        }
    }
}

/// The head of an answer, borrowed from the connection's scratch buffer.
#[derive(Debug)]
pub struct Head<'a> {
    /// The status code.
    pub status: u16,
    /// `Content-Length`; of a HEAD answer too.
    pub content_length: Option<u64>,
    /// Whether the body comes in chunks.
    pub chunked: bool,
    headers: &'a [httparse::Header<'a>],
    pub(super) keep_alive: bool,
}

impl<'a> Head<'a> {
    /// The first header of this name, in any case; `None` too when it is not UTF-8.
    pub fn get(&self, name: &str) -> Option<&'a str> {
        values(self.headers, name)
            .next()
            .and_then(|value| std::str::from_utf8(value).ok())
    }

    /// Every header in the server's order.
    pub fn iter(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> + use<'a> {
        self.headers
            .iter()
            .map(|header| (header.name, header.value))
    }

    /// How the end of the body is known.
    pub(super) fn framing(&self, method: Method) -> Framing {
        if method == Method::Head || matches!(self.status, 204 | 304) {
            Framing::Length(0)
        } else if self.chunked {
            Framing::Chunked
        } else {
            self.content_length
                .map_or(Framing::UntilClose, Framing::Length)
        }
    }
}

/// How the end of a body is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    Length(u64),
    Chunked,
    UntilClose,
}

/// Parses the head at the front of `bytes` and hands it, with its length, to `then`; `None` while it is incomplete.
pub(super) fn parse<R>(
    bytes: &[u8],
    then: impl FnOnce(&Head<'_>, usize) -> R,
) -> Result<Option<R>, String> {
    let mut slots = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut []);
    let status = httparse::ParserConfig::default()
        .parse_response_with_uninit_headers(&mut response, bytes, &mut slots)
        .map_err(|error| format!("malformed head: {error}"))?;
    let httparse::Status::Complete(len) = status else {
        return if bytes.len() >= MAX_HEAD_BYTES {
            Err(format!("a head of more than {MAX_HEAD_BYTES} bytes"))
        } else {
            Ok(None)
        };
    };
    if len > MAX_HEAD_BYTES {
        return Err(format!("a head of more than {MAX_HEAD_BYTES} bytes"));
    }
    let head = judge(
        response.version.unwrap_or(0),
        response.code.unwrap_or(0),
        response.headers,
    )?;
    Ok(Some(then(&head, len)))
}

/// Whether a head is only a notice before the real one. `101` would change the protocol: we never ask for that.
pub(super) fn is_interim(status: u16) -> bool {
    (100..200).contains(&status) && status != 101
}

fn judge<'a>(
    version: u8,
    status: u16,
    headers: &'a [httparse::Header<'a>],
) -> Result<Head<'a>, String> {
    if !(100..600).contains(&status) || status == 101 {
        return Err(format!("status {status}"));
    }
    let content_length = content_length(headers)?;
    let chunked = is_chunked(version, headers)?;
    if chunked && content_length.is_some() {
        return Err("both Content-Length and Transfer-Encoding".into());
    }
    refuse_transcoding(headers, content_length)?;
    Ok(Head {
        status,
        content_length,
        chunked,
        headers,
        keep_alive: keep_alive(version, headers),
    })
}

fn content_length(headers: &[httparse::Header<'_>]) -> Result<Option<u64>, String> {
    let mut lengths = values(headers, "content-length");
    let Some(first) = lengths.next() else {
        return Ok(None);
    };
    if lengths.next().is_some() {
        return Err("more than one Content-Length".into());
    }
    let digits = !first.is_empty() && first.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(first)
        .ok()
        .filter(|_| digits)
        .and_then(|text| text.parse().ok())
        .map(Some)
        .ok_or_else(|| format!("Content-Length {:?}", String::from_utf8_lossy(first)))
}

fn is_chunked(version: u8, headers: &[httparse::Header<'_>]) -> Result<bool, String> {
    let mut codings = values(headers, "transfer-encoding");
    let Some(coding) = codings.next() else {
        return Ok(false);
    };
    if version == 1 && coding.eq_ignore_ascii_case(b"chunked") && codings.next().is_none() {
        return Ok(true);
    }
    Err(format!(
        "Transfer-Encoding {:?}",
        String::from_utf8_lossy(coding)
    ))
}

/// An S3 object may have a stored `Content-Encoding`, and its bytes then come as stored, with their exact length. A
/// body whose length the sender does not know was encoded on the way: those are not the object's bytes.
fn refuse_transcoding(
    headers: &[httparse::Header<'_>],
    content_length: Option<u64>,
) -> Result<(), String> {
    match values(headers, "content-encoding").next() {
        Some(coding) if content_length.is_none() && !coding.eq_ignore_ascii_case(b"identity") => {
            Err(format!(
                "Content-Encoding {:?} without a length: it was encoded on the way",
                String::from_utf8_lossy(coding)
            ))
        }
        _ => Ok(()),
    }
}

fn keep_alive(version: u8, headers: &[httparse::Header<'_>]) -> bool {
    let says = |token: &[u8]| {
        values(headers, "connection")
            .flat_map(|value| value.split(|byte| *byte == b','))
            .any(|word| word.trim_ascii().eq_ignore_ascii_case(token))
    };
    !says(b"close") && (version == 1 || says(b"keep-alive"))
}

fn values<'a>(headers: &'a [httparse::Header<'a>], name: &str) -> impl Iterator<Item = &'a [u8]> {
    headers
        .iter()
        .filter(move |header| header.name.eq_ignore_ascii_case(name))
        .map(|header| header.value.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn framing(text: &str) -> Result<(Framing, bool), String> {
        parse(text.as_bytes(), |head, len| {
            assert_eq!(len, text.len());
            (head.framing(Method::Get), head.keep_alive)
        })
        .map(|parsed| parsed.expect("a complete head"))
    }

    #[test]
    fn the_length_rules_of_rfc_9112_section_6_3_read_strictly() {
        let ok = |text| framing(text).unwrap();
        assert_eq!(
            ok("HTTP/1.1 206 Partial Content\r\nContent-Length: 7\r\n\r\n"),
            (Framing::Length(7), true)
        );
        assert_eq!(
            ok("HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\nConnection: x, Close\r\n\r\n"),
            (Framing::Chunked, false)
        );
        assert_eq!(ok("HTTP/1.0 200 OK\r\n\r\n"), (Framing::UntilClose, false));
        assert_eq!(
            ok("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n"),
            (Framing::Length(0), true)
        );
        assert_eq!(
            ok("HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n").0,
            Framing::Length(0)
        );
    }

    #[test]
    fn whatever_leaves_room_for_two_opinions_is_refused() {
        for headers in [
            "Content-Length: 1\r\nContent-Length: 1\r\n",
            "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
            "Content-Length: +1\r\n",
            "Content-Length: 1, 1\r\n",
            "Content-Length:\r\n",
            "Content-Length: 99999999999999999999\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\nContent-Encoding: gzip\r\n",
            "Content-Length : 1\r\n",
        ] {
            let text = format!("HTTP/1.1 200 OK\r\n{headers}\r\n");
            assert!(framing(&text).is_err(), "{headers}");
        }
        for start in [
            "HTTP/1.1 101 Switching",
            "HTTP/1.1 700 What",
            "HTTP/2 200 OK",
            "SSH-2.0",
        ] {
            assert!(framing(&format!("{start}\r\n\r\n")).is_err(), "{start}");
        }
    }

    /// `aws s3 cp --content-encoding gzip` stores such objects; their bytes come as stored.
    #[test]
    fn a_stored_content_encoding_is_no_fault() {
        let text = "HTTP/1.1 206 P\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\n";
        assert_eq!(framing(text), Ok((Framing::Length(3), true)));
    }

    #[test]
    fn an_endless_head_is_refused() {
        let mut text = b"HTTP/1.1 200 OK\r\nX: ".to_vec();
        text.resize(MAX_HEAD_BYTES - 1, b'a');
        assert!(parse(&text, |_, _| ()).unwrap().is_none());
        text.push(b'a');
        assert!(parse(&text, |_, _| ()).is_err());
    }

    proptest! {
        #[test]
        fn hostile_heads_never_panic(tail in proptest::collection::vec(any::<u8>(), 0..300), with_status: bool) {
            let mut bytes = if with_status { b"HTTP/1.1 200 OK\r\n".to_vec() } else { Vec::new() };
            bytes.extend(tail);
            bytes.extend(b"\r\n\r\n");
            let _ = parse(&bytes, |head, len| (head.framing(Method::Get), len));
        }

        /// Every strict prefix is incomplete, and bytes behind the head change nothing.
        #[test]
        fn where_the_stream_is_cut_does_not_matter(length: u64, cut: proptest::sample::Index, behind: Vec<u8>) {
            let text = format!("HTTP/1.1 206 Partial Content\r\nETag: \"x\"\r\nContent-Length: {length}\r\n\r\n");
            let mut bytes = text.clone().into_bytes();
            prop_assert_eq!(parse(&bytes[..cut.index(bytes.len())], |_, _| ()), Ok(None));
            bytes.extend(behind);
            let seen = parse(&bytes, |head, len| (head.content_length, len, head.get("etag").map(str::to_owned)));
            prop_assert_eq!(seen, Ok(Some((Some(length), text.len(), Some("\"x\"".into())))));
        }
    }
}
