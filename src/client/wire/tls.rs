//! TLS without a stream in between: records are decrypted where they were received.
//!
//! The usual adapters ask the socket for 4 KiB at a time and hand out one 16 KiB record per call. Here the kernel
//! fills a staging buffer with as much as it has, rustls decrypts the records in it one after another, and each
//! payload is copied into the part while it is in the cache. What limits it: AES at 2 to 4 GB/s a core, and one copy
//! more than plain HTTP.
//!
//! The end of the stream counts only with the server's `close_notify`; a connection that ends without it was cut off.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, InsufficientSizeError,
    UnbufferedStatus,
};
use rustls::{CertificateError, CipherSuite, ClientConfig, RootCertStore};
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;

use super::transport::{is_quiet, poll_recv};
use super::{Endpoint, Fault};
use crate::error::{Error, Result as CrateResult};

/// Small answers fit; a long body makes the buffer grow, see [`LARGE_STAGING_BYTES`].
const SMALL_STAGING_BYTES: usize = 32 << 10;
/// As much as stays in the second-level cache between the receive and the decryption.
const LARGE_STAGING_BYTES: usize = 256 << 10;
/// A record's payload and its overhead (RFC 8446, 5.2): the buffer must have room for one.
const MAX_RECORD_BYTES: usize = (16 << 10) + 256 + 5;

/// A configuration that is made when it is first needed: a hundred certificates are read and parsed, for plain HTTP in
/// vain, and for TLS while the name is looked up and the connection opened.
#[derive(Clone)]
pub struct LazyTls(Shared<BoxFuture<'static, CrateResult<Arc<ClientConfig>>>>);

impl LazyTls {
    /// To be made by `make`, once, on a thread where it may block.
    pub fn new(make: impl FnOnce() -> CrateResult<Arc<ClientConfig>> + Send + 'static) -> Self {
        let made = async {
            let made = tokio::task::spawn_blocking(make).await;
            made.unwrap_or_else(|_| {
                Err(Error::Internal {
                    what: "reading the certificates".into(),
                })
            })
        };
        Self(made.boxed().shared())
    }

    /// Has it made ahead of the first connection. Must be called on a Tokio runtime.
    pub fn prepare(&self) {
        drop(tokio::spawn(self.0.clone()));
    }

    pub(super) async fn get(&self) -> Result<Arc<ClientConfig>, Fault> {
        self.0.clone().await.map_err(Fault::Refused)
    }
}

impl From<Arc<ClientConfig>> for LazyTls {
    fn from(config: Arc<ClientConfig>) -> Self {
        Self(std::future::ready(Ok(config)).boxed().shared())
    }
}

impl std::fmt::Debug for LazyTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("LazyTls")
            .field(&self.0.peek().is_some())
            .finish()
    }
}

/// The trust and the sessions that all connections share: the system's roots and those of a bundle.
///
/// `ca_bundle` is a PEM file whose certificates are trusted beside the system's.
pub fn tls_config(ca_bundle: Option<&Path>) -> CrateResult<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    let (native_count, _) = roots.add_parsable_certificates(native.certs);
    if let Some(path) = ca_bundle {
        add_bundle(&mut roots, path)?;
    } else if native_count == 0 {
        let causes: Vec<String> = native.errors.iter().map(ToString::to_string).collect();
        return Err(Error::config(
            "ca_bundle",
            format!(
                "the system has no CA certificates ({}): install them (package ca-certificates) or name a PEM file",
                causes.join("; ")
            ),
        ));
    }
    tls_config_with(roots)
}

/// The same with exactly these roots.
pub fn tls_config_with(roots: RootCertStore) -> CrateResult<Arc<ClientConfig>> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::config("tls", error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// AES-128 first: S3 chooses it anyway, and servers that follow the client save a fifth of the work of AES-256.
fn provider() -> CryptoProvider {
    let mut provider = ring::default_provider();
    provider
        .cipher_suites
        .sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    provider
}

fn add_bundle(roots: &mut RootCertStore, path: &Path) -> CrateResult<()> {
    let bad = |reason: String| Error::config("ca_bundle", format!("{}: {reason}", path.display()));
    let certificates =
        CertificateDer::pem_file_iter(path).map_err(|error| bad(error.to_string()))?;
    let mut count = 0;
    for certificate in certificates {
        let certificate = certificate.map_err(|error| bad(format!("not PEM: {error}")))?;
        roots
            .add(certificate)
            .map_err(|error| bad(format!("certificate {}: {error}", count + 1)))?;
        count += 1;
    }
    if count == 0 {
        return Err(bad(
            "no certificate in it: a PEM file begins with -----BEGIN CERTIFICATE-----".into(),
        ));
    }
    Ok(())
}

/// An encrypted connection.
pub(super) struct TlsStream {
    tcp: TcpStream,
    session: UnbufferedClientConnection,
    /// `staged[start..end]` has been received and not been decrypted.
    staged: Vec<u8>,
    start: usize,
    end: usize,
    /// `plain[taken..]` has been decrypted and not been handed out: the rest of a record that did not fit.
    plain: Vec<u8>,
    taken: usize,
    /// `outgoing[sent..]` is encrypted and not sent.
    outgoing: Vec<u8>,
    sent: usize,
    /// The server's `close_notify` has come.
    ended: bool,
}

/// Why the session does not go on by itself.
#[derive(Debug, PartialEq, Eq)]
enum Wants {
    /// More bytes from the server; the handshake is under way.
    Handshake,
    /// Nothing: requests may go out, and answers come in.
    Traffic,
    /// Nothing will come any more.
    End,
    /// `into` is full.
    Room,
}

impl TlsStream {
    /// Shakes hands. The client's last message leaves with the first request.
    pub(super) async fn connect(
        tcp: TcpStream,
        endpoint: &Endpoint,
        config: Arc<ClientConfig>,
    ) -> Result<Self, Fault> {
        let name = ServerName::try_from(endpoint.host.to_string())
            .map_err(|_| Fault::Tls(format!("{:?} is no host name", endpoint.host)))?;
        let session = UnbufferedClientConnection::new(config, name)
            .map_err(|error| Fault::Tls(describe(&error)))?;
        let mut stream = Self {
            tcp,
            session,
            staged: vec![0; SMALL_STAGING_BYTES],
            start: 0,
            end: 0,
            plain: Vec::new(),
            taken: 0,
            outgoing: Vec::new(),
            sent: 0,
            ended: false,
        };
        std::future::poll_fn(|cx| stream.poll_handshake(cx)).await?;
        Ok(stream)
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        loop {
            match self.pump(&mut []) {
                Err(error) => {
                    self.send_alert(&error, cx);
                    return Poll::Ready(Err(Fault::Tls(describe(&error))));
                }
                Ok((_, Wants::Traffic)) => return Poll::Ready(Ok(())),
                Ok((_, Wants::Handshake)) => {}
                Ok((_, Wants::End | Wants::Room)) => {
                    return Poll::Ready(Err(Fault::eof("in the TLS handshake")));
                }
            }
            ready!(self.poll_flush(cx)).map_err(Fault::Io)?;
            if ready!(self.poll_receive(cx)).map_err(Fault::Io)? == 0 {
                return Poll::Ready(Err(Fault::eof("in the TLS handshake")));
            }
        }
    }

    /// Tells the server what is wrong with its certificate, if the socket takes it at once.
    ///
    /// After an error the session must not be run over its input again; only here is it certain that it hands out the
    /// alert before it looks there.
    fn send_alert(&mut self, error: &rustls::Error, cx: &mut Context<'_>) {
        if !matches!(error, rustls::Error::InvalidCertificate(_)) {
            return;
        }
        let staged = &mut self.staged[self.start..self.end];
        if let Ok(ConnectionState::EncodeTlsData(mut alert)) =
            self.session.process_tls_records(staged).state
            && encode(&mut alert, &mut self.outgoing).is_ok()
        {
            let _ = self.poll_flush(cx);
        }
    }

    /// Decrypts into the front of `into`; zero bytes mean that the server has said it is done.
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        into: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let (n, wants) = self.pump(into).map_err(invalid)?;
            // A key update asks for an answer. If the socket is full it goes with the next request.
            if let Poll::Ready(flushed) = self.poll_flush(cx) {
                flushed?;
            }
            if n > 0 || wants == Wants::End {
                return Poll::Ready(Ok(n));
            }
            if ready!(self.poll_receive(cx))? == 0 {
                return Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::ConnectionAborted,
                    "the connection was cut off: it ended without TLS close_notify",
                )));
            }
        }
    }

    /// Encrypts all of `bytes`; [`poll_flush`](Self::poll_flush) sends it.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let (_, wants) = self.pump(&mut []).map_err(invalid)?;
        if wants != Wants::Traffic {
            return Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the server has ended the TLS session",
            ));
        }
        // The same bytes again: the session keeps count of an incomplete record at their front.
        let status = self
            .session
            .process_tls_records(&mut self.staged[self.start..self.end]);
        self.start += status.discard;
        let Ok(ConnectionState::WriteTraffic(mut traffic)) = status.state else {
            return Err(io::Error::other(
                "the TLS session is not ready for a request",
            ));
        };
        let start = self.outgoing.len();
        loop {
            match traffic.encrypt(bytes, &mut self.outgoing[start..]) {
                Ok(n) => {
                    self.outgoing.truncate(start + n);
                    return Ok(());
                }
                Err(EncryptError::InsufficientSize(size)) => grow(&mut self.outgoing, start, &size),
                Err(error) => return Err(io::Error::other(error)),
            }
        }
    }

    /// Sends what is encrypted.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.outgoing.len() {
            let n = ready!(Pin::new(&mut self.tcp).poll_write(cx, &self.outgoing[self.sent..]))?;
            self.sent += n;
        }
        self.outgoing.clear();
        self.sent = 0;
        Poll::Ready(Ok(()))
    }

    /// Whether nothing has come that nobody asked for. Tickets and key updates that came last are dealt with here.
    pub(super) fn is_quiet(&mut self) -> bool {
        let settled = matches!(self.pump(&mut []), Ok((0, Wants::Traffic)));
        settled && self.start == self.end && is_quiet(&self.tcp)
    }

    /// Lets the session run over what is staged: payload goes to `into`, answers to `outgoing`.
    fn pump(&mut self, into: &mut [u8]) -> Result<(usize, Wants), rustls::Error> {
        let mut filled = self.take_plain(into);
        loop {
            if self.taken < self.plain.len() {
                return Ok((filled, Wants::Room));
            }
            let UnbufferedStatus {
                mut discard, state, ..
            } = self
                .session
                .process_tls_records(&mut self.staged[self.start..self.end]);
            let state = match state {
                Ok(state) => state,
                Err(error) => {
                    self.start += discard;
                    return Err(error);
                }
            };
            let wants = match state {
                ConnectionState::ReadTraffic(mut traffic) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record?;
                        discard += record.discard;
                        let n = record.payload.len().min(into.len() - filled);
                        into[filled..filled + n].copy_from_slice(&record.payload[..n]);
                        filled += n;
                        self.plain.extend_from_slice(&record.payload[n..]);
                    }
                    None
                }
                ConnectionState::EncodeTlsData(mut message) => {
                    encode(&mut message, &mut self.outgoing)?;
                    None
                }
                // It stands in `outgoing`, and nothing overtakes it there.
                ConnectionState::TransmitTlsData(transmit) => {
                    transmit.done();
                    None
                }
                ConnectionState::PeerClosed => {
                    self.ended = true;
                    Some(Wants::End)
                }
                ConnectionState::Closed => Some(Wants::End),
                ConnectionState::WriteTraffic(_) if self.ended => Some(Wants::End),
                ConnectionState::WriteTraffic(_) => Some(Wants::Traffic),
                ConnectionState::BlockedHandshake => Some(Wants::Handshake),
                other => {
                    return Err(rustls::Error::General(format!(
                        "unexpected state {other:?}"
                    )));
                }
            };
            self.start += discard;
            if let Some(wants) = wants {
                return Ok((filled, wants));
            }
        }
    }

    fn take_plain(&mut self, into: &mut [u8]) -> usize {
        let rest = &self.plain[self.taken..];
        let n = rest.len().min(into.len());
        into[..n].copy_from_slice(&rest[..n]);
        self.taken += n;
        if self.taken == self.plain.len() {
            self.plain.clear();
            self.taken = 0;
        }
        n
    }

    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        if self.staged.len() - self.start < MAX_RECORD_BYTES {
            self.staged.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let n = ready!(poll_recv(&mut self.tcp, cx, &mut self.staged[self.end..]))?;
        self.end += n;
        if self.end == self.staged.len() && self.end < LARGE_STAGING_BYTES {
            self.staged.resize(LARGE_STAGING_BYTES, 0);
        }
        Poll::Ready(Ok(n))
    }
}

impl std::fmt::Debug for TlsStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsStream")
            .field("tcp", &self.tcp)
            .finish_non_exhaustive()
    }
}

/// Appends a handshake message.
fn encode(
    message: &mut EncodeTlsData<'_, ClientConnectionData>,
    outgoing: &mut Vec<u8>,
) -> Result<(), rustls::Error> {
    let start = outgoing.len();
    loop {
        match message.encode(&mut outgoing[start..]) {
            Ok(n) => {
                outgoing.truncate(start + n);
                return Ok(());
            }
            Err(EncodeError::InsufficientSize(size)) => grow(outgoing, start, &size),
            Err(error) => return Err(rustls::Error::General(error.to_string())),
        }
    }
}

fn grow(buffer: &mut Vec<u8>, start: usize, size: &InsufficientSizeError) {
    buffer.resize(start + size.required_size, 0);
}

fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// Which certificate failed and why, or what else TLS had to complain about.
fn describe(error: &rustls::Error) -> String {
    use CertificateError as Certificate;
    let rustls::Error::InvalidCertificate(problem) = error else {
        return error.to_string();
    };
    let meaning = match problem {
        Certificate::UnknownIssuer => "it is signed by a CA that is not trusted here",
        Certificate::Expired | Certificate::ExpiredContext { .. } => "it has expired",
        Certificate::NotValidYet | Certificate::NotValidYetContext { .. } => "it is not valid yet",
        Certificate::NotValidForName | Certificate::NotValidForNameContext { .. } => {
            "it is for another host name"
        }
        _ => "it is not acceptable",
    };
    format!("the server's certificate was refused: {meaning} ({problem})")
}
