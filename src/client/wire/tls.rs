//! TLS without a stream in between: records are decrypted where they were received.
//!
//! The usual adapters ask the socket for 4 KiB at a time and hand out one 16 KiB record per call. Here the kernel
//! receives ciphertext into the part itself, and the records in it are opened there, see [`super::record`]. What limits
//! it: AES at 2 to 4 GB/s a core.
//!
//! rustls shakes hands and encrypts the first request; then nothing is left in it, and its traffic keys are taken out. A
//! session of TLS 1.2 stays with rustls: its records are decrypted in a staging buffer, and copied twice.
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
use rustls::{CertificateError, CipherSuite, ClientConfig, ProtocolVersion, RootCertStore};
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;

use super::record::{End, MAX_RECORD_BYTES, Progress, Records};
use super::transport::{is_quiet, poll_recv};
use super::{Endpoint, Fault};
use crate::error::{Error, Result as CrateResult};

/// Small answers fit; with TLS 1.2 a long body makes the buffer grow, see [`LARGE_STAGING_BYTES`].
const SMALL_STAGING_BYTES: usize = 32 << 10;
/// As much as stays in the second-level cache between the receive and the decryption.
const LARGE_STAGING_BYTES: usize = 256 << 10;
/// With so much room ciphertext is received where the payload belongs. It must be more than a record: part of one may
/// have come before.
const DIRECT_BYTES: usize = 64 << 10;

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
    // For `record`: the keys go no further than there.
    config.enable_secret_extraction = true;
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
    session: Session,
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

/// Who keeps the keys.
enum Session {
    /// During the handshake; and for good with TLS 1.2, or if secrets may not be extracted.
    Rustls {
        session: Box<UnbufferedClientConnection>,
        is_extractable: bool,
    },
    Records(Box<Records>),
    /// The keys could not be taken over.
    Lost,
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
        let is_extractable = config.enable_secret_extraction;
        let session = UnbufferedClientConnection::new(config, name)
            .map_err(|error| Fault::Tls(describe(&error)))?;
        let mut stream = Self {
            tcp,
            session: Session::Rustls {
                session: Box::new(session),
                is_extractable,
            },
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
            match self.pump_rustls(&mut []) {
                Err(error) => {
                    if self.staged[..self.end].starts_with(b"HTTP/") {
                        return Poll::Ready(Err(Fault::WrongScheme));
                    }
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
            let received = ready!(self.poll_receive(cx)).map_err(Fault::Io)?;
            if received.is_none() {
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
        if let Session::Rustls { session, .. } = &mut self.session
            && let Ok(ConnectionState::EncodeTlsData(mut alert)) =
                session.process_tls_records(staged).state
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
            let pumped = self.pump(into);
            // An error is told, if the socket takes it.
            if let Poll::Ready(flushed) = self.poll_flush(cx)
                && pumped.is_ok()
            {
                flushed?;
            }
            let (n, wants) = pumped?;
            if n > 0 || wants == Wants::End {
                return Poll::Ready(Ok(n));
            }
            let is_direct =
                into.len() >= DIRECT_BYTES && matches!(self.session, Session::Records(_));
            let received = if is_direct {
                ready!(self.poll_receive_into(cx, into))?
            } else {
                ready!(self.poll_receive(cx))?.map(|()| 0)
            };
            match received {
                Some(0) => {}
                Some(n) => return Poll::Ready(Ok(n)),
                None => {
                    return Poll::Ready(Err(io::Error::new(
                        io::ErrorKind::ConnectionAborted,
                        "the connection was cut off: it ended without TLS close_notify",
                    )));
                }
            }
        }
    }

    /// Encrypts all of `bytes`; [`poll_flush`](Self::poll_flush) sends it.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let (_, wants) = self.pump(&mut [])?;
        if wants != Wants::Traffic {
            return Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the server has ended the TLS session",
            ));
        }
        match &mut self.session {
            Session::Records(records) => records.seal(bytes, &mut self.outgoing).map_err(invalid),
            Session::Rustls { .. } => {
                self.write_rustls(bytes)?;
                self.take_over().map_err(invalid)
            }
            Session::Lost => Err(lost()),
        }
    }

    fn write_rustls(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Session::Rustls { session, .. } = &mut self.session else {
            return Err(lost());
        };
        // The same bytes again: the session keeps count of an incomplete record at their front.
        let status = session.process_tls_records(&mut self.staged[self.start..self.end]);
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

    /// Takes the keys out of rustls, if nothing is left in it.
    ///
    /// Right after a request was encrypted it has no message of its own to send: the answer to a key update, for one,
    /// goes out before the request. What came in is used up if nothing is staged, also as part of a message. Otherwise
    /// the next request is another opportunity.
    fn take_over(&mut self) -> Result<(), rustls::Error> {
        let is_settled = self.pump_rustls(&mut [])? == (0, Wants::Traffic)
            && self.start == self.end
            && self.plain.is_empty();
        match std::mem::replace(&mut self.session, Session::Lost) {
            Session::Rustls {
                session,
                is_extractable: true,
            } if is_settled && session.protocol_version() == Some(ProtocolVersion::TLSv1_3) => {
                let (secrets, kernel) = session.dangerous_into_kernel_connection()?;
                self.session = Session::Records(Box::new(Records::new(secrets, kernel)?));
            }
            session => self.session = session,
        }
        Ok(())
    }

    /// Whether rustls has given the keys away.
    #[cfg(test)]
    pub(super) fn is_taken_over(&self) -> bool {
        matches!(self.session, Session::Records(_))
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
    fn pump(&mut self, into: &mut [u8]) -> io::Result<(usize, Wants)> {
        match self.session {
            Session::Records(_) => self.pump_records(into),
            Session::Rustls { .. } => self.pump_rustls(into).map_err(invalid),
            Session::Lost => Err(lost()),
        }
    }

    fn pump_records(&mut self, into: &mut [u8]) -> io::Result<(usize, Wants)> {
        let mut filled = take_plain(&mut self.plain, &mut self.taken, into);
        if self.taken < self.plain.len() {
            return Ok((filled, Wants::Room));
        }
        let Session::Records(records) = &mut self.session else {
            return Err(lost());
        };
        let start = self.start;
        let opened = records.open(
            &mut self.staged[..self.end],
            start,
            start,
            &mut self.outgoing,
        );
        self.start = opened.used;
        let payload = &self.staged[start..opened.filled];
        let n = payload.len().min(into.len() - filled);
        into[filled..filled + n].copy_from_slice(&payload[..n]);
        filled += n;
        self.plain.extend_from_slice(&payload[n..]);
        if !self.plain.is_empty() {
            return Ok((filled, Wants::Room));
        }
        match records.end() {
            None => Ok((filled, Wants::Traffic)),
            Some(End::Closed) => Ok((filled, Wants::End)),
            // What came before it counts.
            Some(End::Broken(_)) if filled > 0 => Ok((filled, Wants::End)),
            Some(End::Broken(broken)) => Err(invalid(broken.clone())),
        }
    }

    fn pump_rustls(&mut self, into: &mut [u8]) -> Result<(usize, Wants), rustls::Error> {
        let Session::Rustls { session, .. } = &mut self.session else {
            return Err(rustls::Error::General("the session is not rustls'".into()));
        };
        let mut filled = take_plain(&mut self.plain, &mut self.taken, into);
        loop {
            if self.taken < self.plain.len() {
                return Ok((filled, Wants::Room));
            }
            let UnbufferedStatus {
                mut discard, state, ..
            } = session.process_tls_records(&mut self.staged[self.start..self.end]);
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

    /// Receives ciphertext to be staged. `None` means that the connection has ended.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<()>>> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        if self.staged.len() - self.start < MAX_RECORD_BYTES {
            self.staged.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let n = ready!(poll_recv(&mut self.tcp, cx, &mut self.staged[self.end..]))?;
        self.end += n;
        let is_long = self.end == self.staged.len() && self.end < LARGE_STAGING_BYTES;
        if is_long && matches!(self.session, Session::Rustls { .. }) {
            self.staged.resize(LARGE_STAGING_BYTES, 0);
        }
        Poll::Ready(Ok((n > 0).then_some(())))
    }

    /// Receives ciphertext into `into` and opens it there: how much payload came of it. `None` means that the connection
    /// has ended. What is staged must be less than a record.
    fn poll_receive_into(
        &mut self,
        cx: &mut Context<'_>,
        into: &mut [u8],
    ) -> Poll<io::Result<Option<usize>>> {
        let Session::Records(records) = &mut self.session else {
            return Poll::Ready(Err(lost()));
        };
        let front = self.end - self.start;
        let room = into.len().min(LARGE_STAGING_BYTES);
        let n = ready!(poll_recv(&mut self.tcp, cx, &mut into[front..room]))?;
        if n == 0 {
            return Poll::Ready(Ok(None));
        }
        into[..front].copy_from_slice(&self.staged[self.start..self.end]);
        let end = front + n;
        let Progress { filled, used } = records.open(&mut into[..end], 0, 0, &mut self.outgoing);
        // The front of a record. After the end of the session nothing is one.
        let rest = match records.end() {
            None => &into[used..end],
            Some(_) => &[],
        };
        self.staged[..rest.len()].copy_from_slice(rest);
        (self.start, self.end) = (0, rest.len());
        Poll::Ready(Ok(Some(filled)))
    }
}

impl std::fmt::Debug for TlsStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsStream")
            .field("tcp", &self.tcp)
            .finish_non_exhaustive()
    }
}

fn take_plain(plain: &mut Vec<u8>, taken: &mut usize, into: &mut [u8]) -> usize {
    let rest = &plain[*taken..];
    let n = rest.len().min(into.len());
    into[..n].copy_from_slice(&rest[..n]);
    *taken += n;
    if *taken == plain.len() {
        plain.clear();
        *taken = 0;
    }
    n
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

fn invalid(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn lost() -> io::Error {
    io::Error::other("the TLS session was lost")
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
