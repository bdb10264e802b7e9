//! The server's side of a TLS connection.
//!
//! rustls shakes hands. With TLS 1.3 its traffic keys are then taken out and the records made here: a body is copied
//! once, from its mapping into a buffer that stays in the second-level cache, encrypted there and sent from there.
//! rustls would allocate each record and keep it in a queue. The server of a benchmark shares the machine with the
//! client: what it wastes hides what clients differ in.
//!
//! There are no key updates: one that a client sends ends the connection (rustls and OpenSSL send none unasked), and
//! the keys of a test server need not be replaced for wear. TLS 1.2 stays with rustls.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::ops::Range;
use std::sync::Arc;

use ring::aead::{
    AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey,
};
use rustls::crypto::cipher::{Iv, Nonce as TlsNonce};
use rustls::{ConnectionTrafficSecrets, ProtocolVersion, ServerConnection};

/// What is encrypted before the socket is written: 8 records, which with the client's buffers fit into the cache.
const SEND_BYTES: usize = 128 << 10;
const HEADER_BYTES: usize = 5;
const TAG_BYTES: usize = 16;
/// Of a record's content (RFC 8446, section 5.1).
const MAX_CONTENT_BYTES: usize = 1 << 14;
/// What is received at once. Requests are small; the body of an upload is not.
const RECEIVE_BYTES: usize = 64 << 10;

const ALERT: u8 = 21;
const PAYLOAD: u8 = 23;

/// A TLS connection to a client.
#[derive(Debug)]
pub(crate) struct Session {
    socket: Arc<TcpStream>,
    keeper: Keeper,
    /// Ciphertext; `received[unread]` has not been looked at.
    received: Vec<u8>,
    unread: Range<usize>,
    /// Decrypted in `received` and not handed out.
    plain: Range<usize>,
    /// Encrypted and not sent.
    outgoing: Vec<u8>,
}

/// Who has the keys.
#[derive(Debug)]
enum Keeper {
    /// During the handshake; with TLS 1.2 for good.
    Rustls(Box<ServerConnection>),
    Records(Box<Records>),
    /// They could not be taken over.
    Nobody,
}

#[derive(Debug)]
struct Records {
    receive: Keys,
    send: Keys,
}

impl Session {
    /// The handshake happens with the first read.
    pub(crate) fn new(
        config: Arc<rustls::ServerConfig>,
        socket: Arc<TcpStream>,
    ) -> io::Result<Session> {
        let mut connection = ServerConnection::new(config).map_err(io::Error::other)?;
        connection.set_buffer_limit(None);
        Ok(Session {
            socket,
            keeper: Keeper::Rustls(Box::new(connection)),
            received: vec![0; RECEIVE_BYTES],
            unread: 0..0,
            plain: 0..0,
            outgoing: Vec::new(),
        })
    }

    pub(crate) fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Zero bytes mean that the client is done.
    pub(crate) fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(count) = self.take_plain(out)? {
                return Ok(count);
            }
            let Some(record) = self.receive_record()? else {
                return Ok(0);
            };
            match &mut self.keeper {
                Keeper::Rustls(connection) => {
                    let processed = process(connection, &self.received[record]);
                    // An alert, if that failed; handshake messages otherwise.
                    flush(connection, &self.socket)?;
                    processed?;
                    self.take_over()?;
                }
                Keeper::Records(records) => {
                    match records.receive.open(&mut self.received[record.clone()])? {
                        (PAYLOAD, len) => {
                            let start = record.start + HEADER_BYTES;
                            self.plain = start..start + len;
                        }
                        // With TLS 1.3 every alert is the end.
                        (ALERT, _) => return Ok(0),
                        (kind, _) => return Err(invalid(format!("a TLS record of type {kind}"))),
                    }
                }
                Keeper::Nobody => return Err(io::ErrorKind::NotConnected.into()),
            }
        }
    }

    /// `None` if nothing has been decrypted that was not handed out.
    fn take_plain(&mut self, out: &mut [u8]) -> io::Result<Option<usize>> {
        if let Keeper::Rustls(connection) = &mut self.keeper {
            return match connection.reader().read(out) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
                done => done.map(Some),
            };
        }
        let count = self.plain.len().min(out.len());
        out[..count].copy_from_slice(&self.received[self.plain.start..][..count]);
        self.plain.start += count;
        Ok((count > 0).then_some(count))
    }

    /// Where the next record lies; `None` at the end of the stream.
    fn receive_record(&mut self) -> io::Result<Option<Range<usize>>> {
        loop {
            let start = self.unread.start;
            let unread = &self.received[self.unread.clone()];
            if let [_, _, _, high, low, rest @ ..] = unread {
                let len = usize::from(u16::from_be_bytes([*high, *low]));
                if rest.len() >= len {
                    self.unread.start += HEADER_BYTES + len;
                    return Ok(Some(start..self.unread.start));
                }
                if len > MAX_CONTENT_BYTES + 2048 {
                    return Err(invalid(format!("a TLS record of {len} bytes")));
                }
            }
            self.received.copy_within(self.unread.clone(), 0);
            self.unread = 0..self.unread.len();
            match (&*self.socket).read(&mut self.received[self.unread.end..])? {
                0 => return Ok(None),
                count => self.unread.end += count,
            }
        }
    }

    /// Takes the keys out of rustls after the handshake. It was given whole records only, so nothing is left in it.
    fn take_over(&mut self) -> io::Result<()> {
        match std::mem::replace(&mut self.keeper, Keeper::Nobody) {
            Keeper::Rustls(connection)
                if !connection.is_handshaking()
                    && connection.protocol_version() == Some(ProtocolVersion::TLSv1_3) =>
            {
                let secrets = connection
                    .dangerous_extract_secrets()
                    .map_err(io::Error::other)?;
                self.outgoing.reserve(SEND_BYTES + MAX_CONTENT_BYTES);
                self.keeper = Keeper::Records(Box::new(Records {
                    receive: Keys::new(secrets.rx)?,
                    send: Keys::new(secrets.tx)?,
                }));
            }
            keeper => self.keeper = keeper,
        }
        Ok(())
    }

    /// Sends all of `bytes`; with `more`, the end of it goes out with what follows.
    pub(crate) fn send(&mut self, bytes: &[u8], more: bool) -> io::Result<()> {
        match &mut self.keeper {
            Keeper::Rustls(connection) => {
                for chunk in bytes.chunks(SEND_BYTES) {
                    connection.writer().write_all(chunk)?;
                    flush(connection, &self.socket)?;
                }
                return Ok(());
            }
            Keeper::Records(records) => {
                for content in bytes.chunks(MAX_CONTENT_BYTES) {
                    records.send.seal(PAYLOAD, content, &mut self.outgoing)?;
                    if self.outgoing.len() >= SEND_BYTES {
                        (&*self.socket).write_all(&self.outgoing)?;
                        self.outgoing.clear();
                    }
                }
            }
            Keeper::Nobody => return Err(io::ErrorKind::NotConnected.into()),
        }
        if more { Ok(()) } else { self.flush() }
    }

    /// Says `close_notify`.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        const WARNING: u8 = 1;
        const CLOSE_NOTIFY: u8 = 0;
        match &mut self.keeper {
            Keeper::Rustls(connection) => {
                connection.send_close_notify();
                flush(connection, &self.socket)
            }
            Keeper::Records(records) => {
                records
                    .send
                    .seal(ALERT, &[WARNING, CLOSE_NOTIFY], &mut self.outgoing)?;
                self.flush()
            }
            Keeper::Nobody => Ok(()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        let sent = (&*self.socket).write_all(&self.outgoing);
        self.outgoing.clear();
        sent
    }
}

fn process(connection: &mut ServerConnection, mut record: &[u8]) -> io::Result<()> {
    while !record.is_empty() {
        connection.read_tls(&mut record)?;
    }
    connection.process_new_packets().map_err(io::Error::other)?;
    Ok(())
}

fn flush(connection: &mut ServerConnection, mut socket: &TcpStream) -> io::Result<()> {
    while connection.wants_write() {
        connection.write_tls(&mut socket)?;
    }
    Ok(())
}

/// One direction's key and the number of its next record, which makes the nonce.
struct Keys {
    key: LessSafeKey,
    iv: Iv,
    sequence: u64,
}

impl Keys {
    fn new((sequence, secrets): (u64, ConnectionTrafficSecrets)) -> io::Result<Keys> {
        let (algorithm, key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => return Err(io::Error::other("an unknown cipher")),
        };
        let key = UnboundKey::new(algorithm, key.as_ref())
            .map_err(|_| io::Error::other("a key of the wrong length"))?;
        Ok(Keys {
            key: LessSafeKey::new(key),
            iv,
            sequence,
        })
    }

    fn nonce(&mut self) -> Nonce {
        let nonce = TlsNonce::new(&self.iv, self.sequence);
        self.sequence += 1;
        Nonce::assume_unique_for_key(nonce.0)
    }

    /// Decrypts a whole record where it lies: its type, and how long the content behind the header is.
    fn open(&mut self, record: &mut [u8]) -> io::Result<(u8, usize)> {
        let nonce = self.nonce();
        let (header, sealed) = record.split_at_mut(HEADER_BYTES);
        let opened = self
            .key
            .open_in_place(nonce, Aad::from(header), sealed)
            .map_err(|_| invalid("a TLS record that can't be decrypted"))?;
        // The type is the last byte that is not padding.
        let len = opened
            .iter()
            .rposition(|&byte| byte != 0)
            .ok_or_else(|| invalid("a TLS record without a type"))?;
        Ok((opened[len], len))
    }

    /// Appends a record.
    fn seal(&mut self, kind: u8, content: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        let nonce = self.nonce();
        let sealed_bytes = content.len() + 1 + TAG_BYTES;
        let [.., high, low] = sealed_bytes.to_be_bytes();
        let header = [PAYLOAD, 3, 3, high, low];
        out.extend_from_slice(&header);
        let start = out.len();
        out.extend_from_slice(content);
        out.push(kind);
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce, Aad::from(header), &mut out[start..])
            .map_err(|_| io::Error::other("a TLS record could not be encrypted"))?;
        out.extend_from_slice(tag.as_ref());
        Ok(())
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys")
            .field("sequence", &self.sequence)
            .finish_non_exhaustive()
    }
}

fn invalid(what: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
