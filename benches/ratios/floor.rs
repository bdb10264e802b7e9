//! What a first byte takes at least of somebody who does not know a key: raw sockets, one LIST, one GET.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::Outcome;
use crate::raw::{HEAD_BYTES, end_of_head, tls_config, tls_stream};
use crate::server::{BUCKET, Endpoint};

/// The first byte of the first object below a prefix: the first key of a prefix is asked for, then its first byte, on one
/// connection, with nothing made ready beside.
pub(crate) fn list_then_get(endpoint: &Endpoint, prefix: &str) -> Outcome<Vec<u8>> {
    if endpoint.ca_file.is_some() {
        let config = tls_config(endpoint)?;
        return first_byte(&mut tls_stream(endpoint, &config)?, endpoint, prefix);
    }
    let mut tcp = TcpStream::connect(endpoint.addr)?;
    tcp.set_nodelay(true)?;
    first_byte(&mut tcp, endpoint, prefix)
}

fn first_byte(
    stream: &mut (impl Read + Write),
    endpoint: &Endpoint,
    prefix: &str,
) -> Outcome<Vec<u8>> {
    let list = format!("/{BUCKET}/?list-type=2&max-keys=1&prefix={prefix}");
    let page = String::from_utf8(ask(stream, endpoint, &list, "")?)?;
    let key = page
        .split("<Key>")
        .nth(1)
        .and_then(|rest| rest.split('<').next());
    let path = format!("/{BUCKET}/{}", key.ok_or("the prefix holds something")?);
    ask(stream, endpoint, &path, "Range: bytes=0-0\r\n")
}

/// The body of an answer that says how long it is.
fn ask(
    stream: &mut (impl Read + Write),
    endpoint: &Endpoint,
    path: &str,
    header: &str,
) -> Outcome<Vec<u8>> {
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {}\r\n{header}\r\n",
        endpoint.addr
    );
    stream.write_all(request.as_bytes())?;
    let mut buffer = vec![0; HEAD_BYTES + (16 << 10)];
    let (mut filled, mut end) = (0, usize::MAX);
    while filled < end {
        match stream.read(&mut buffer[filled..])? {
            0 => return Err("the connection was closed".into()),
            n => filled += n,
        }
        if let (usize::MAX, Some(head_bytes)) = (end, end_of_head(&buffer[..filled])) {
            end = head_bytes + length(&buffer[..head_bytes])?;
        }
    }
    let head_bytes = end_of_head(&buffer[..filled]).unwrap_or_default();
    Ok(buffer[head_bytes..end].to_vec())
}

fn length(head: &[u8]) -> Outcome<usize> {
    let head = std::str::from_utf8(head)?.to_ascii_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"));
    Ok(length.ok_or("an answer without a length")?.trim().parse()?)
}
