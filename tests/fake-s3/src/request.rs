//! A request as it came: the head parsed in place, the body read on demand.
//!
//! Nothing is copied but what percent-decoding changes; a GET of a plain key allocates nothing here.

use std::borrow::Cow;
use std::io::{self, BufReader, Read};

use percent_encoding::percent_decode_str;

use crate::transport::Transport;

/// More headers than any S3 client sends.
pub(crate) const MAX_HEADERS: usize = 64;
/// S3's own limit on a head is 8 KiB; some more for long keys.
pub(crate) const MAX_HEAD_BYTES: usize = 64 << 10;
/// S3's limit on one PUT is 5 GiB; ours is kinder to the machine.
const MAX_BODY_BYTES: u64 = 2 << 30;

/// A parsed head.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    pub(crate) method: &'a str,
    /// The path as sent, still encoded: what signatures cover.
    pub(crate) raw_path: &'a str,
    pub(crate) raw_query: &'a str,
    headers: &'a [httparse::Header<'a>],
    pub(crate) bucket: Cow<'a, str>,
    pub(crate) key: Cow<'a, str>,
}

impl<'a> Request<'a> {
    /// Makes sense of a head; `base_domains` tell virtual-host style from path style.
    pub(crate) fn new(
        parsed: &'a httparse::Request<'a, 'a>,
        base_domains: &[String],
    ) -> Option<Request<'a>> {
        let target = origin_form(parsed.path?);
        let (raw_path, raw_query) = target.split_once('?').unwrap_or((target, ""));
        let mut request = Request {
            method: parsed.method?,
            raw_path,
            raw_query,
            headers: parsed.headers,
            bucket: Cow::Borrowed(""),
            key: Cow::Borrowed(""),
        };
        let path = raw_path.strip_prefix('/').unwrap_or(raw_path);
        let host = request.header("host").unwrap_or("");
        let (bucket, key) = match bucket_of_host(host, base_domains) {
            // The admin path is ours under any host.
            Some(bucket) if !path.starts_with("_fake/") => (bucket, path),
            _ => path.split_once('/').unwrap_or((path, "")),
        };
        request.bucket = decode(bucket)?;
        request.key = decode(key)?;
        Some(request)
    }

    /// The first header of that name (lower case).
    pub(crate) fn header(&self, name: &str) -> Option<&'a str> {
        self.header_values(name).next()
    }

    /// All headers of that name (lower case).
    pub(crate) fn header_values(&self, name: &str) -> impl Iterator<Item = &'a str> {
        self.headers
            .iter()
            .filter(move |header| header.name.eq_ignore_ascii_case(name))
            .filter_map(|header| std::str::from_utf8(header.value).ok())
            .map(str::trim)
    }

    /// All headers.
    pub(crate) fn headers(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.headers.iter().filter_map(|header| {
            Some((header.name, std::str::from_utf8(header.value).ok()?.trim()))
        })
    }

    /// Decoded pairs of the query, in order; a name without `=` has an empty value.
    pub(crate) fn query_pairs(&self) -> impl Iterator<Item = (Cow<'a, str>, Cow<'a, str>)> {
        self.raw_query
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                (decode_query(name), decode_query(value))
            })
    }

    /// The decoded value of a query parameter.
    pub(crate) fn query(&self, name: &str) -> Option<Cow<'a, str>> {
        if self.raw_query.is_empty() {
            return None;
        }
        self.query_pairs()
            .find(|(found, _)| found == name)
            .map(|(_, value)| value)
    }

    /// The length that the client announced, if it did.
    pub(crate) fn content_length(&self) -> Option<u64> {
        self.header("content-length")?.parse().ok()
    }

    /// Whether bytes follow the head.
    pub(crate) fn has_body(&self) -> bool {
        self.content_length().unwrap_or(0) > 0 || self.header("transfer-encoding").is_some()
    }

    pub(crate) fn is_head(&self) -> bool {
        self.method == "HEAD"
    }
}

/// The target without scheme and host, which proxied requests carry.
fn origin_form(target: &str) -> &str {
    match target
        .strip_prefix("http://")
        .or_else(|| target.strip_prefix("https://"))
    {
        Some(rest) => rest.find('/').map_or("/", |at| &rest[at..]),
        None => target,
    }
}

fn decode(text: &str) -> Option<Cow<'_, str>> {
    percent_decode_str(text).decode_utf8().ok()
}

/// In a query, `+` is a space.
fn decode_query(text: &str) -> Cow<'_, str> {
    if text.contains('+') {
        let spaced = text.replace('+', " ");
        return Cow::Owned(percent_decode_str(&spaced).decode_utf8_lossy().into_owned());
    }
    percent_decode_str(text).decode_utf8_lossy()
}

/// The bucket in `bucket.base`, for the longest base that fits, or in the names of S3 Express zones.
fn bucket_of_host<'a>(host: &'a str, base_domains: &[String]) -> Option<&'a str> {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    if base_domains.iter().any(|base| base == name) {
        return None;
    }
    if let Some((bucket, zone)) = name.split_once(".s3express-") {
        return zone.contains('.').then_some(bucket);
    }
    let fits = |base: &String| name.strip_suffix(base.as_str())?.strip_suffix('.');
    base_domains
        .iter()
        .filter_map(fits)
        .min_by_key(|bucket| bucket.len())
}

/// The body of one request: what came with the head, then the connection.
pub(crate) struct Body<'a> {
    leftover: &'a [u8],
    used: usize,
    transport: &'a mut Transport,
    continue_expected: bool,
    /// Whether the body was read to its end; otherwise the connection can't be used again.
    pub(crate) consumed: bool,
}

impl<'a> Body<'a> {
    pub(crate) fn new(
        request: &Request<'_>,
        leftover: &'a [u8],
        transport: &'a mut Transport,
    ) -> Body<'a> {
        let continue_expected = request
            .header("expect")
            .is_some_and(|value| value.eq_ignore_ascii_case("100-continue"));
        Body {
            leftover,
            used: 0,
            transport,
            continue_expected,
            consumed: !request.has_body(),
        }
    }

    /// How many bytes behind the head belonged to this body.
    pub(crate) fn used(&self) -> usize {
        self.used
    }

    /// Reads the whole body, out of its chunks if it is chunked in one way, or both: HTTP's and AWS's.
    pub(crate) fn read_all(&mut self, request: &Request<'_>) -> io::Result<Vec<u8>> {
        if std::mem::take(&mut self.continue_expected) {
            self.transport
                .send(b"HTTP/1.1 100 Continue\r\n\r\n", false)?;
        }
        let aws_chunked = request
            .header("x-amz-content-sha256")
            .is_some_and(|hash| hash.starts_with("STREAMING-"));
        let bytes = if request.header("transfer-encoding").is_some() {
            dechunk(self)?
        } else {
            self.read_exactly(request.content_length().unwrap_or(0))?
        };
        self.consumed = true;
        if aws_chunked {
            dechunk(&mut BufReader::new(&bytes[..]))
        } else {
            Ok(bytes)
        }
    }

    fn read_exactly(&mut self, len: u64) -> io::Result<Vec<u8>> {
        if len > MAX_BODY_BYTES {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut bytes = Vec::new();
        // `take` and not a buffer of `len`: nothing is allocated on the word of a header alone.
        self.take(len).read_to_end(&mut bytes)?;
        if (bytes.len() as u64) < len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(bytes)
    }
}

impl Read for Body<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let rest = &self.leftover[self.used..];
        if rest.is_empty() {
            return self.transport.read(out);
        }
        let count = rest.len().min(out.len());
        out[..count].copy_from_slice(&rest[..count]);
        self.used += count;
        Ok(count)
    }
}

/// Reads `size[;extension] CRLF bytes CRLF ... 0 CRLF [trailers] CRLF`: both chunked codings look so. Trailers and
/// chunk signatures are read over: they are about integrity on the way, and the way here is loopback.
fn dechunk(source: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        let line = read_line(source)?;
        let size = line.split(';').next().unwrap_or("").trim();
        let size = u64::from_str_radix(size, 16).map_err(|_| io::ErrorKind::InvalidData)?;
        if size == 0 {
            // The end of the trailers is an empty line; AWS chunks may leave it out.
            while !read_line(source).unwrap_or_default().is_empty() {}
            return Ok(bytes);
        }
        if bytes.len() as u64 + size > MAX_BODY_BYTES {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let before = bytes.len() as u64;
        source.take(size).read_to_end(&mut bytes)?;
        if bytes.len() as u64 - before < size || !read_line(source)?.is_empty() {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
}

fn read_line(source: &mut impl Read) -> io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        source.read_exact(&mut byte)?;
        if byte[0] == b'\n' {
            break;
        }
        line.push(byte[0]);
        if line.len() > MAX_HEAD_BYTES {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    String::from_utf8(line).map_err(|_| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_name_buckets() {
        let bases = ["localhost".to_owned(), "s3.localhost".to_owned()];
        assert_eq!(bucket_of_host("127.0.0.1:9000", &bases), None);
        assert_eq!(bucket_of_host("localhost:9000", &bases), None);
        assert_eq!(bucket_of_host("s3.localhost:9000", &bases), None);
        assert_eq!(bucket_of_host("a.b.localhost:9000", &bases), Some("a.b"));
        assert_eq!(bucket_of_host("data.s3.localhost", &bases), Some("data"));
        assert_eq!(
            bucket_of_host("x--a--x-s3.s3express-a.us-east-1.amazonaws.com", &bases),
            Some("x--a--x-s3")
        );
    }

    #[test]
    fn chunks_and_trailers_are_taken_apart() {
        let wire = b"4;chunk-signature=ab\r\nabcd\r\n3\r\nefg\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\nrest";
        let mut source = &wire[..];
        assert_eq!(dechunk(&mut source).unwrap(), b"abcdefg");
        assert_eq!(source, b"rest");
        assert!(dechunk(&mut &b"5\r\nabc"[..]).is_err());
    }
}
