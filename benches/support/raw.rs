//! The baseline over either wire: ranged GETs on blocking sockets, one thread each, parts in order.
//!
//! Plain, it is the one of `fake_s3::raw`. Over TLS it is rustls and nothing else: what was decrypted is copied once,
//! into the part's own buffer, and handed out there.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use fake_s3::raw::RawReader;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::Outcome;
use crate::server::{BUCKET, Endpoint};

/// Longer than any head that the server sends.
pub(crate) const HEAD_BYTES: usize = 4 << 10;

pub(crate) type Stream = StreamOwned<ClientConnection, TcpStream>;

/// Reads one object; connections are kept from one pass to the next.
pub(crate) enum Raw {
    Plain(RawReader),
    Tls(TlsReader),
}

impl Raw {
    pub(crate) fn connect(
        endpoint: &Endpoint,
        key: &str,
        size_bytes: u64,
        part_bytes: u64,
        connections: usize,
    ) -> Outcome<Self> {
        let path = format!("/{BUCKET}/{key}");
        if endpoint.ca_file.is_some() {
            let reader = TlsReader::connect(endpoint, path, size_bytes, part_bytes, connections)?;
            return Ok(Self::Tls(reader));
        }
        let addr = endpoint.addr;
        let reader = RawReader::connect(addr, &path, size_bytes, part_bytes, connections)?;
        Ok(Self::Plain(reader))
    }

    /// `sink` gets each part in order.
    pub(crate) fn read(&mut self, sink: impl FnMut(&[u8]) + Send) -> Outcome<u64> {
        match self {
            Self::Plain(reader) => Ok(reader.read(sink)?),
            Self::Tls(reader) => reader.read(sink),
        }
    }
}

pub(crate) struct TlsReader {
    streams: Vec<Stream>,
    buffers: Buffers,
    host: String,
    path: String,
    size_bytes: u64,
    part_bytes: u64,
}

/// Warm memory, kept from one pass to the next: two buffers for each connection, and the one that is looked at.
#[derive(Default)]
struct Buffers(Mutex<Vec<Vec<u8>>>);

impl Buffers {
    fn take(&self) -> Vec<u8> {
        let free = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        free.unwrap_or_default()
    }

    fn put(&self, buffer: Vec<u8>) {
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        free.push(buffer);
    }
}

/// A part, received: the body lies behind the head.
struct Part {
    buffer: Vec<u8>,
    head_bytes: usize,
    body_bytes: usize,
}

impl TlsReader {
    fn connect(
        endpoint: &Endpoint,
        path: String,
        size_bytes: u64,
        part_bytes: u64,
        connections: usize,
    ) -> Outcome<Self> {
        let config = tls_config(endpoint)?;
        let stream = |_| tls_stream(endpoint, &config);
        Ok(Self {
            streams: (0..connections).map(stream).collect::<Outcome<_>>()?,
            buffers: Buffers::default(),
            host: endpoint.addr.to_string(),
            path,
            size_bytes,
            part_bytes,
        })
    }

    fn read(&mut self, mut sink: impl FnMut(&[u8])) -> Outcome<u64> {
        let parts = self.size_bytes.div_ceil(self.part_bytes);
        let lanes = self.streams.len() as u64;
        let (size_bytes, part_bytes) = (self.size_bytes, self.part_bytes);
        let (host, path, buffers) = (&self.host, &self.path, &self.buffers);
        std::thread::scope(|scope| {
            let mut received = Vec::new();
            for (first, stream) in (0..).zip(&mut self.streams) {
                // One part waits for its turn while the next one comes.
                let (full, parts_of_lane) = sync_channel(1);
                let ranges = (first..parts).step_by(lanes as usize).map(move |index| {
                    let start = index * part_bytes;
                    (start, (start + part_bytes).min(size_bytes))
                });
                scope.spawn(move || lane(stream, host, path, ranges, buffers, &full));
                received.push(parts_of_lane);
            }
            let mut bytes = 0;
            for index in 0..parts {
                let part = received[(index % lanes) as usize].recv()?;
                let part = part.map_err(|error| error.to_string())?;
                let body = &part.buffer[part.head_bytes..][..part.body_bytes];
                sink(body);
                bytes += body.len() as u64;
                buffers.put(part.buffer);
            }
            Ok(bytes)
        })
    }
}

pub(crate) fn tls_config(endpoint: &Endpoint) -> Outcome<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    let pem = std::fs::read(endpoint.ca_file.as_ref().ok_or("a bundle")?)?;
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

pub(crate) fn tls_stream(endpoint: &Endpoint, config: &Arc<ClientConfig>) -> Outcome<Stream> {
    let name = ServerName::IpAddress(endpoint.addr.ip().into());
    let tcp = TcpStream::connect(endpoint.addr)?;
    tcp.set_nodelay(true)?;
    let session = ClientConnection::new(config.clone(), name)?;
    Ok(StreamOwned::new(session, tcp))
}

fn lane(
    stream: &mut Stream,
    host: &str,
    path: &str,
    ranges: impl Iterator<Item = (u64, u64)>,
    buffers: &Buffers,
    full: &SyncSender<std::io::Result<Part>>,
) {
    for (start, end) in ranges {
        let part = get(stream, host, path, start, end, buffers.take());
        let failed = part.is_err();
        if full.send(part).is_err() || failed {
            return;
        }
    }
}

fn get(
    stream: &mut Stream,
    host: &str,
    path: &str,
    start: u64,
    end: u64,
    mut buffer: Vec<u8>,
) -> std::io::Result<Part> {
    let last = end - 1;
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nRange: bytes={start}-{last}\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let body_bytes = (end - start) as usize;
    // Filled with zeros once: buffers go round.
    buffer.resize(buffer.len().max(HEAD_BYTES + body_bytes), 0);
    let (mut filled, mut head_bytes) = (0, None);
    while head_bytes.is_none_or(|head_bytes| filled < head_bytes + body_bytes) {
        match stream.read(&mut buffer[filled..])? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            n => filled += n,
        }
        head_bytes = head_bytes.or_else(|| end_of_head(&buffer[..filled]));
    }
    if !buffer.starts_with(b"HTTP/1.1 206 ") {
        return Err(std::io::Error::other("not the part that was asked for"));
    }
    Ok(Part {
        buffer,
        head_bytes: head_bytes.unwrap_or_default(),
        body_bytes,
    })
}

pub(crate) fn end_of_head(bytes: &[u8]) -> Option<usize> {
    let head = &bytes[..bytes.len().min(HEAD_BYTES)];
    let at = head.windows(4).position(|end| end == b"\r\n\r\n")?;
    Some(at + 4)
}
