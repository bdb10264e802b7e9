//! The records of an established TLS 1.3 session (RFC 8446, sections 4.6 and 5).
//!
//! rustls shakes hands, and then hands over the traffic keys: it would copy each record into an allocation of its own,
//! and its caller from there to where the bytes belong. Here a record is opened where it was received, and the payload
//! moves to the front while it is decrypted, over the headers and tags between the records. So ciphertext that was
//! received into a part becomes the part's bytes without a copy. rustls keeps the secrets behind the keys: it derives
//! the next ones for a key update and stores the session tickets.
//!
//! Nothing here waits or touches a socket. What can't be a record of this session ends it for good: what was opened
//! before counts, and an alert tells the server.

use ring::aead::{
    AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey,
};
use rustls::client::ClientConnectionData;
use rustls::crypto::cipher::{Iv, Nonce as TlsNonce};
use rustls::kernel::KernelConnection;
use rustls::{ConnectionTrafficSecrets, ExtractedSecrets, SupportedCipherSuite};

const HEADER_BYTES: usize = 5;
const TAG_BYTES: usize = 16;
/// The payload of a record (5.1).
const MAX_PAYLOAD_BYTES: usize = 1 << 14;
/// The payload, its type, padding and the tag (5.2).
const MAX_SEALED_BYTES: usize = MAX_PAYLOAD_BYTES + 256;
/// A whole record: what a buffer for them must have room for.
pub(super) const MAX_RECORD_BYTES: usize = HEADER_BYTES + MAX_SEALED_BYTES;
/// A handshake message's type and length (4).
const MESSAGE_HEADER_BYTES: usize = 4;
/// As much as rustls accepts. Tickets are a few hundred bytes, and key updates one.
const MAX_HANDSHAKE_BYTES: usize = 0xffff;
/// Key updates without a byte of payload between them: only an attack needs more (rustls' and BoringSSL's limit).
const MAX_KEY_UPDATES: u32 = 32;
/// Pointless, but some servers send one before they close (rustls' and BoringSSL's limit).
const MAX_WARNINGS: u32 = 4;
/// Keys are replaced so many records before the cipher's limit, for those that the replacement itself takes.
const LIMIT_RESERVE: u64 = 16;

const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const PAYLOAD: u8 = 23;

const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;

const CLOSE_NOTIFY: u8 = 0;
const UNEXPECTED_MESSAGE: u8 = 10;
const BAD_RECORD_MAC: u8 = 20;
const RECORD_OVERFLOW: u8 = 22;
const ILLEGAL_PARAMETER: u8 = 47;
const DECODE_ERROR: u8 = 50;
const INTERNAL_ERROR: u8 = 80;
const USER_CANCELED: u8 = 90;

/// Why a session can't go on, and the alert that says so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub(super) struct Broken {
    /// `None` after the server's own alert, which is not answered.
    alert: Option<u8>,
    reason: String,
}

impl Broken {
    fn new(alert: u8, reason: impl Into<String>) -> Self {
        Self {
            alert: Some(alert),
            reason: reason.into(),
        }
    }
}

/// How a session has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// With the server's `close_notify`: everything has come.
    Closed,
    Broken(Broken),
}

/// A key and how often it was used: the nonce of the next record.
struct Keys {
    key: LessSafeKey,
    iv: Iv,
    sequence: u64,
}

impl Keys {
    fn new((sequence, secrets): (u64, ConnectionTrafficSecrets)) -> Result<Self, rustls::Error> {
        let (algorithm, key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => return Err(rustls::Error::General("an unknown cipher".into())),
        };
        let key = UnboundKey::new(algorithm, key.as_ref())
            .map_err(|_| rustls::Error::General("a key of the wrong length".into()))?;
        Ok(Self {
            key: LessSafeKey::new(key),
            iv,
            sequence,
        })
    }

    /// A nonce that has not been used; the sequence moves on.
    fn nonce(&mut self) -> Result<Nonce, Broken> {
        let nonce = TlsNonce::new(&self.iv, self.sequence);
        // 2^64 records never come, but the nonce must not repeat.
        self.sequence = self
            .sequence
            .checked_add(1)
            .ok_or_else(|| Broken::new(INTERNAL_ERROR, "too many records under one key"))?;
        Ok(Nonce::assume_unique_for_key(nonce.0))
    }

    /// Opens the record at `from`; its content begins at `to`. Returns its type and how long the content is.
    fn open(
        &mut self,
        buffer: &mut [u8],
        to: usize,
        from: usize,
        sealed_bytes: usize,
    ) -> Result<(u8, usize), Broken> {
        let header: [u8; HEADER_BYTES] = header_of(&buffer[from..]);
        let sealed = from + HEADER_BYTES;
        let nonce = self.nonce()?;
        let opened = self
            .key
            .open_within(
                nonce,
                Aad::from(header),
                &mut buffer[to..sealed + sealed_bytes],
                sealed - to..,
            )
            .map_err(|_| Broken::new(BAD_RECORD_MAC, "a TLS record was changed on its way"))?;
        if opened.len() > MAX_PAYLOAD_BYTES + 1 {
            return Err(Broken::new(RECORD_OVERFLOW, "a TLS record is too long"));
        }
        // The type is the last byte that is not padding.
        let len = opened
            .iter()
            .rposition(|&byte| byte != 0)
            .ok_or_else(|| Broken::new(UNEXPECTED_MESSAGE, "a TLS record without a type"))?;
        Ok((opened[len], len))
    }

    /// Appends a record with `content`, of at most [`MAX_PAYLOAD_BYTES`].
    fn seal(&mut self, kind: u8, content: &[u8], out: &mut Vec<u8>) -> Result<(), Broken> {
        let nonce = self.nonce()?;
        let sealed_bytes = content.len() + 1 + TAG_BYTES;
        let [.., high, low] = sealed_bytes.to_be_bytes();
        let header = [PAYLOAD, 3, 3, high, low];
        out.reserve(HEADER_BYTES + sealed_bytes);
        out.extend_from_slice(&header);
        let start = out.len();
        out.extend_from_slice(content);
        out.push(kind);
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce, Aad::from(header), &mut out[start..])
            .map_err(|_| Broken::new(INTERNAL_ERROR, "a TLS record could not be encrypted"))?;
        out.extend_from_slice(tag.as_ref());
        Ok(())
    }
}

/// `None` until the record that begins here is complete; otherwise how long it is behind its header.
fn sealed_bytes(received: &[u8]) -> Result<Option<usize>, Broken> {
    if received.len() < HEADER_BYTES {
        return Ok(None);
    }
    let [kind, _, _, high, low] = header_of(received);
    let len = usize::from(u16::from_be_bytes([high, low]));
    if kind != PAYLOAD {
        let reason = format!("a record of type {kind} that is not encrypted in a TLS 1.3 session");
        return Err(Broken::new(UNEXPECTED_MESSAGE, reason));
    }
    if len > MAX_SEALED_BYTES {
        let reason = format!("a TLS record of {len} bytes");
        return Err(Broken::new(RECORD_OVERFLOW, reason));
    }
    if len <= TAG_BYTES {
        let reason = format!("a TLS record of {len} bytes");
        return Err(Broken::new(DECODE_ERROR, reason));
    }
    Ok((received.len() - HEADER_BYTES >= len).then_some(len))
}

fn header_of(received: &[u8]) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header.copy_from_slice(&received[..HEADER_BYTES]);
    header
}

/// How far [`Records::open`] came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Progress {
    /// The payload ends here.
    pub(super) filled: usize,
    /// The first record that is not complete begins here.
    pub(super) used: usize,
}

/// Both directions of a session.
pub(super) struct Records {
    kernel: KernelConnection<ClientConnectionData>,
    receive: Keys,
    send: Keys,
    /// So many records the sending key is good for.
    send_limit: u64,
    /// The front of a handshake message whose rest has not come.
    handshake: Vec<u8>,
    /// Key updates since the last payload.
    key_updates: u32,
    warnings: u32,
    /// The server wants a key update in return, before our next payload (4.6.3). Not at once: a server that closes
    /// with bytes unread resets the connection, and the end of its answer would be lost.
    owes_key_update: bool,
    end: Option<End>,
}

impl Records {
    /// Goes on where rustls stopped.
    pub(super) fn new(
        secrets: ExtractedSecrets,
        kernel: KernelConnection<ClientConnectionData>,
    ) -> Result<Self, rustls::Error> {
        let limit = match kernel.negotiated_cipher_suite() {
            SupportedCipherSuite::Tls13(suite) => suite.common.confidentiality_limit,
            SupportedCipherSuite::Tls12(_) => {
                return Err(rustls::Error::General("records of TLS 1.2".into()));
            }
        };
        Ok(Self {
            kernel,
            receive: Keys::new(secrets.rx)?,
            send: Keys::new(secrets.tx)?,
            send_limit: limit - LIMIT_RESERVE,
            handshake: Vec::new(),
            key_updates: 0,
            warnings: 0,
            owes_key_update: false,
            end: None,
        })
    }

    /// How the session has ended, if it has.
    pub(super) fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// Opens all complete records of `buffer[from..]`, `to <= from`: the payload comes to stand at `to` and behind it,
    /// and the alert is appended to `out` if the session breaks.
    pub(super) fn open(
        &mut self,
        buffer: &mut [u8],
        to: usize,
        from: usize,
        out: &mut Vec<u8>,
    ) -> Progress {
        let mut progress = Progress {
            filled: to,
            used: from,
        };
        while self.end.is_none() {
            match self.open_one(buffer, &mut progress) {
                Ok(true) => {}
                Ok(false) => break,
                Err(broken) => self.give_up(broken, out),
            }
        }
        progress
    }

    /// Whether there was a whole record.
    fn open_one(&mut self, buffer: &mut [u8], progress: &mut Progress) -> Result<bool, Broken> {
        let Progress { filled, used } = *progress;
        let Some(sealed_bytes) = sealed_bytes(&buffer[used..])? else {
            return Ok(false);
        };
        let (kind, len) = self.receive.open(buffer, filled, used, sealed_bytes)?;
        progress.used += HEADER_BYTES + sealed_bytes;
        if kind != HANDSHAKE && !self.handshake.is_empty() {
            let reason = "a TLS record in the middle of a handshake message";
            return Err(Broken::new(UNEXPECTED_MESSAGE, reason));
        }
        match kind {
            PAYLOAD => {
                progress.filled += len;
                if len > 0 {
                    self.key_updates = 0;
                }
            }
            HANDSHAKE => self.receive_handshake(&buffer[filled..filled + len])?,
            ALERT => self.receive_alert(&buffer[filled..filled + len])?,
            other => {
                let reason = format!("a TLS record of the unexpected type {other}");
                return Err(Broken::new(UNEXPECTED_MESSAGE, reason));
            }
        }
        Ok(true)
    }

    /// Appends `bytes` as records, and before them a key update that is due.
    pub(super) fn seal(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Broken> {
        for content in bytes.chunks(MAX_PAYLOAD_BYTES) {
            if self.owes_key_update || self.send.sequence >= self.send_limit {
                self.owes_key_update = false;
                self.update_send_key(out)?;
            }
            self.send.seal(PAYLOAD, content, out)?;
        }
        Ok(())
    }

    fn give_up(&mut self, broken: Broken, out: &mut Vec<u8>) {
        const FATAL: u8 = 2;
        if let Some(alert) = broken.alert {
            // What can't be told is not told: the session is over anyway.
            let _ = self.send.seal(ALERT, &[FATAL, alert], out);
        }
        self.end = Some(End::Broken(broken));
    }

    fn receive_alert(&mut self, content: &[u8]) -> Result<(), Broken> {
        match *content {
            // The level says nothing in TLS 1.3 (6).
            [_, CLOSE_NOTIFY] => self.end = Some(End::Closed),
            [_, USER_CANCELED] if self.warnings < MAX_WARNINGS => self.warnings += 1,
            [_, alert] => {
                let alert = rustls::AlertDescription::from(alert);
                return Err(Broken {
                    alert: None,
                    reason: rustls::Error::AlertReceived(alert).to_string(),
                });
            }
            _ => return Err(Broken::new(DECODE_ERROR, "a TLS alert that is none")),
        }
        Ok(())
    }

    /// Takes in part of a message, or one, or several.
    fn receive_handshake(&mut self, content: &[u8]) -> Result<(), Broken> {
        if content.is_empty() {
            let reason = "an empty TLS handshake record";
            return Err(Broken::new(UNEXPECTED_MESSAGE, reason));
        }
        let mut messages = std::mem::take(&mut self.handshake);
        messages.extend_from_slice(content);
        let mut used = 0;
        while let [kind, high, middle, low, rest @ ..] = &messages[used..] {
            let len = u32::from_be_bytes([0, *high, *middle, *low]) as usize;
            if len > MAX_HANDSHAKE_BYTES {
                let reason = format!("a TLS handshake message of {len} bytes");
                return Err(Broken::new(DECODE_ERROR, reason));
            }
            let Some(body) = rest.get(..len) else { break };
            let is_last = rest.len() == len;
            self.receive_message(*kind, body, is_last)?;
            used += MESSAGE_HEADER_BYTES + len;
        }
        messages.drain(..used);
        self.handshake = messages;
        Ok(())
    }

    fn receive_message(&mut self, kind: u8, body: &[u8], is_last: bool) -> Result<(), Broken> {
        match kind {
            NEW_SESSION_TICKET => self
                .kernel
                .handle_new_session_ticket(body)
                .map_err(|error| Broken::new(DECODE_ERROR, error.to_string())),
            KEY_UPDATE if is_last => self.receive_key_update(body),
            KEY_UPDATE => {
                let reason = "a TLS handshake message across a change of keys";
                Err(Broken::new(UNEXPECTED_MESSAGE, reason))
            }
            other => {
                let reason = format!("a TLS handshake message of the unexpected type {other}");
                Err(Broken::new(UNEXPECTED_MESSAGE, reason))
            }
        }
    }

    fn receive_key_update(&mut self, body: &[u8]) -> Result<(), Broken> {
        let is_requested = match body {
            [0] => false,
            [1] => true,
            [_] => {
                return Err(Broken::new(
                    ILLEGAL_PARAMETER,
                    "a TLS key update of no kind",
                ));
            }
            _ => return Err(Broken::new(DECODE_ERROR, "a TLS key update that is none")),
        };
        self.key_updates += 1;
        if self.key_updates > MAX_KEY_UPDATES {
            return Err(Broken::new(UNEXPECTED_MESSAGE, "too many TLS key updates"));
        }
        let next = self.kernel.update_rx_secret().and_then(Keys::new);
        self.receive = next.map_err(internal)?;
        self.owes_key_update |= is_requested;
        Ok(())
    }

    /// The announcement is the last record under the old key.
    fn update_send_key(&mut self, out: &mut Vec<u8>) -> Result<(), Broken> {
        const NOT_REQUESTED: u8 = 0;
        self.send
            .seal(HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, NOT_REQUESTED], out)?;
        let next = self.kernel.update_tx_secret().and_then(Keys::new);
        self.send = next.map_err(internal)?;
        Ok(())
    }
}

impl std::fmt::Debug for Records {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Records")
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

fn internal(error: rustls::Error) -> Broken {
    Broken::new(INTERNAL_ERROR, error.to_string())
}

#[cfg(test)]
mod tests;
