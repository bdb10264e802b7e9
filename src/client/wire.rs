//! Our own HTTP/1.1 for object bodies: from the socket straight into the part that the consumer reads.
//!
//! A general client hands a body out in frames: each is allocated, filled, sent through a channel and copied. That is
//! a quarter of the CPU time of a plain GET and more than half of a small one. Here one task owns the connection: it
//! writes the request in one call, parses the answer's head where it lies, and lets the kernel (or the decryption)
//! put the body into the [`PartBuf`], which computes its CRC while the bytes are in the cache.
//!
//! ```text
//! send ── pool: idle connection, else addresses -> connect (-> TLS) ── write head ── parse head ── on_head: plan
//!                 ^                                                                                   |
//!                 └── whole body taken, nothing left over, keep-alive ── receive into the part <──────┘
//! ```
//!
//! What is left out is the point: no redirects, no proxies, no pipelining, no request bodies, no upgrade. Whatever is
//! not exactly the answer that was asked for closes the connection, because a connection whose state is in doubt
//! would hand the rest of one object out as another. So does dropping the future of [`Wire::send`]: a `Lent`
//! connection is given back only at the end of a whole body.
//!
//! What limits it: one core decrypts or copies for one connection, and every answer costs a wake-up.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::buffer::PartBuf;
use crate::error::{Error, Result};
use crate::metrics::Metrics;

mod address;
mod chunked;
mod conn;
mod connector;
mod early;
mod head;
mod pool;
mod proxy;
mod record;
mod tls;
mod transport;
mod watch;

pub use connector::{Dest, DestSlot, JudgeHead, WireHttpClient, with_dest};
pub use head::{Head, Method};
pub use proxy::{is_proxied, proxy_of};
pub use tls::{LazyTls, tls_config, tls_config_with};

pub(crate) use address::is_unknown_host;
pub(crate) use connector::collect;

use address::Addresses;
use conn::Conn;
use early::Early;
use pool::Shelf;

/// How connections behave.
#[derive(Debug, Clone)]
pub struct WireConfig {
    /// For one address: TCP and TLS together.
    pub connect_timeout: Duration,
    /// In each such period 64 KiB of a body must arrive.
    pub progress_timeout: Duration,
    /// From sending the request to the first byte of the answer.
    pub first_byte_timeout: Duration,
    /// A connection idle for longer is not used again.
    pub idle_timeout: Duration,
    /// How many idle connections are kept for each endpoint.
    pub max_idle_per_host: usize,
    /// Certificates and sessions for `https` endpoints.
    pub tls: Option<LazyTls>,
    /// Where bytes, connections and times are counted.
    pub metrics: Arc<Metrics>,
}

impl Default for WireConfig {
    fn default() -> Self {
        Self {
            // One SYN retransmission is at 1 s, the second at 3 s: let both have their chance.
            connect_timeout: Duration::from_millis(3100),
            progress_timeout: Duration::from_secs(5),
            // S3's 99.9th percentile is below one second; beyond five, another request is faster.
            first_byte_timeout: Duration::from_secs(5),
            // S3 closes after about five idle seconds.
            idle_timeout: Duration::from_secs(4),
            max_idle_per_host: 256,
            tls: None,
            metrics: Arc::default(),
        }
    }
}

/// Where requests go: one pool of connections each.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Whether the connection is encrypted.
    pub tls: bool,
    /// A name or an IP address, without brackets.
    pub host: Arc<str>,
    /// The TCP port.
    pub port: u16,
}

impl Endpoint {
    /// The endpoint of a URL with scheme `http` or `https`.
    pub fn of(url: &http::Uri) -> Result<Self> {
        let bad = |reason: &str| Error::config("endpoint URL", format!("{url}: {reason}"));
        let tls = match url.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(bad("the scheme must be http or https")),
        };
        let host = url.host().ok_or_else(|| bad("it names no host"))?;
        Ok(Self {
            tls,
            host: host.trim_start_matches('[').trim_end_matches(']').into(),
            port: url.port_u16().unwrap_or(Self::default_port(tls)),
        })
    }

    fn default_port(tls: bool) -> u16 {
        if tls { 443 } else { 80 }
    }

    /// The `Host` header, as it is signed: without a default port.
    pub fn host_header(&self) -> String {
        let whole = self.to_string();
        match whole.rsplit_once(':') {
            Some((host, _)) if self.port == Self::default_port(self.tls) => host.to_owned(),
            _ => whole,
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// A request without a body.
#[derive(Debug, Clone, Copy)]
pub struct WireRequest<'a> {
    /// Where it goes.
    pub endpoint: &'a Endpoint,
    /// Must be the one in `head`.
    pub method: Method,
    /// The whole request as it goes over the wire, with the empty line at its end; see [`request_head`].
    pub head: &'a [u8],
    /// Which object errors are about.
    pub uri: &'a str,
    /// The object's offset of the first byte that will be stored; errors count on from it.
    pub offset: u64,
}

/// Writes a request's head. The caller gives `host` and says `accept-encoding: identity` where signing allows it.
pub fn request_head<'a>(
    method: Method,
    path_and_query: &str,
    headers: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Vec<u8> {
    let mut head = Vec::with_capacity(1024);
    for piece in [method.as_str(), " ", path_and_query, " HTTP/1.1\r\n"] {
        head.extend_from_slice(piece.as_bytes());
    }
    for (name, value) in headers {
        for piece in [name, ": ", value, "\r\n"] {
            head.extend_from_slice(piece.as_bytes());
        }
    }
    head.extend_from_slice(b"\r\n");
    head
}

/// What to do with a body, decided when its head has been read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyPlan {
    /// Receive it into the part.
    Into {
        /// Bytes to throw away first: a server that ignores `Range` sends the object from its start.
        skip: u64,
        /// Bytes to store. A body that goes on behind them is cut off, at the price of the connection.
        take: u64,
    },
    /// Return it in [`Reply::body`]: for errors and other small answers.
    Buffer {
        /// A longer body is an error.
        cap: usize,
    },
}

/// Judges the head of an answer before any byte of the body is stored.
pub type OnHead<'a> = &'a mut (dyn FnMut(&Head<'_>, &mut PartBuf) -> Result<BodyPlan> + Send);

/// The end of a request that went well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// The body of [`BodyPlan::Buffer`], else empty.
    pub body: Bytes,
    /// Whether the connection had served another request before.
    pub reused: bool,
}

/// The client: its connections and addresses. Clones share them.
#[derive(Clone)]
pub struct Wire(Arc<Shared>);

struct Shared {
    config: WireConfig,
    addresses: Addresses,
    idle: Mutex<HashMap<Endpoint, Shelf<Box<Conn>>>>,
    /// For the first request; taken out by it.
    early: Mutex<Option<Early>>,
}

impl Wire {
    /// A client without connections; they are opened by requests.
    pub fn new(config: WireConfig) -> Self {
        Self(Arc::new(Shared {
            config,
            addresses: Addresses::default(),
            idle: Mutex::default(),
            early: Mutex::default(),
        }))
    }

    /// Begins to open a connection for a request that is to come. If that fails, the request is told.
    ///
    /// # Panics
    /// Outside of a Tokio runtime.
    pub fn connect_early(&self, endpoint: &Endpoint) {
        let (wire, to) = (self.clone(), endpoint.clone());
        let connecting =
            async move { address::connect(&wire.0.addresses, &to, &wire.0.config).await };
        *self.early() = Some(Early::open(endpoint.clone(), connecting));
    }

    /// Sends a request and receives its answer.
    ///
    /// `on_head` sees the head before any byte of the body is stored, and says what becomes of the body or refuses
    /// it. On an error, what had arrived stays in `into`, and the error's offset is the first byte that did not. The
    /// connection is used again only after a body that ended exactly where it should. A connection that was used
    /// before and breaks before the first byte of the answer is replaced by a new one, once: the server had closed
    /// it while it was idle.
    pub async fn send(
        &self,
        request: WireRequest<'_>,
        into: &mut PartBuf,
        on_head: OnHead<'_>,
    ) -> Result<Reply> {
        let before = into.filled().len();
        self.try_send(&request, into, on_head)
            .await
            .map_err(|fault| {
                let stored = into.filled().len().saturating_sub(before);
                fault.into_error(&request, stored as u64)
            })
    }

    async fn try_send(
        &self,
        request: &WireRequest<'_>,
        into: &mut PartBuf,
        on_head: OnHead<'_>,
    ) -> Result<Reply, Fault> {
        if let Some(mut lent) = self.take_idle(request.endpoint) {
            self.0.config.metrics.connections_reused.add(1);
            let result = lent
                .conn()
                .exchange(&self.0.config, request, into, &mut *on_head)
                .await;
            match result {
                Err(Fault::Io(_)) if !lent.conn().is_answered() => {}
                result => return lent.finish(request.endpoint, result, true),
            }
        }
        let mut lent = self.lend(self.connect(request.endpoint).await?);
        let result = lent
            .conn()
            .exchange(&self.0.config, request, into, &mut *on_head)
            .await;
        lent.finish(request.endpoint, result, false)
    }

    async fn connect(&self, endpoint: &Endpoint) -> Result<Box<Conn>, Fault> {
        let config = &self.0.config;
        let early = self.early().take_if(|early| early.is_for(endpoint));
        let opened = match early {
            Some(early) => early.take(config.idle_timeout).await,
            None => None,
        };
        let conn = match opened {
            Some(opened) => opened?,
            None => address::connect(&self.0.addresses, endpoint, config).await?,
        };
        config.metrics.connections_opened.add(1);
        Ok(conn)
    }

    /// An idle connection that is young enough and that the server has not closed.
    fn take_idle(&self, endpoint: &Endpoint) -> Option<Lent<'_>> {
        let now = Instant::now();
        loop {
            let mut conn = self
                .idle()
                .get_mut(endpoint)?
                .take(now, self.0.config.idle_timeout)?;
            if conn.is_alive() {
                return Some(self.lend(conn));
            }
        }
    }

    fn lend(&self, conn: Box<Conn>) -> Lent<'_> {
        Lent {
            conn: Some(conn),
            wire: self,
        }
    }

    fn put_idle(&self, endpoint: &Endpoint, conn: Box<Conn>, now: Instant) {
        let config = &self.0.config;
        let (timeout, max) = (config.idle_timeout, config.max_idle_per_host);
        let mut idle = self.idle();
        if let Some(shelf) = idle.get_mut(endpoint) {
            shelf.put(conn, now, timeout, max);
        } else {
            idle.entry(endpoint.clone())
                .or_default()
                .put(conn, now, timeout, max);
        }
    }

    fn early(&self) -> MutexGuard<'_, Option<Early>> {
        self.0.early.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn idle(&self) -> MutexGuard<'_, HashMap<Endpoint, Shelf<Box<Conn>>>> {
        self.0.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire")
            .field("config", &self.0.config)
            .finish_non_exhaustive()
    }
}

/// A connection in use. Unless it is finished it is closed: by an error, or because the request's future is dropped
/// in the middle of a body.
struct Lent<'a> {
    conn: Option<Box<Conn>>,
    wire: &'a Wire,
}

impl Lent<'_> {
    fn conn(&mut self) -> &mut Conn {
        self.conn
            .as_mut()
            .expect("a lent connection is there until it is finished")
    }

    /// Puts the connection back on the shelf if the exchange left it in a known state.
    fn finish(
        mut self,
        endpoint: &Endpoint,
        result: Result<Exchanged, Fault>,
        reused: bool,
    ) -> Result<Reply, Fault> {
        let exchanged = result?;
        if exchanged.state != After::Unknown
            && let Some(conn) = self.conn.take()
            && exchanged.state == After::Reusable
            && !conn.is_aged(exchanged.ended)
        {
            self.wire.put_idle(endpoint, conn, exchanged.ended);
        }
        Ok(Reply {
            status: exchanged.status,
            body: exchanged.body,
            reused,
        })
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        if self.conn.is_some() {
            self.wire.0.config.metrics.connections_dropped.add(1);
        }
    }
}

/// What a whole answer leaves behind.
struct Exchanged {
    status: u16,
    body: Bytes,
    state: After,
    ended: Instant,
}

/// The state of a connection behind an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    /// The next request may go out.
    Reusable,
    /// The server said that it will close it.
    Closing,
    /// Part of a body is still to come, or something came that nobody asked for.
    Unknown,
}

/// Why an exchange failed, before it is known which object it was for.
#[derive(Debug)]
enum Fault {
    /// The connection could not be opened, or broke.
    Io(io::Error),
    /// Nothing came for this long.
    Stalled(Duration),
    /// What came was not the HTTP that was asked for.
    Bad(String),
    /// The endpoint's name has no address.
    UnknownHost(io::Error),
    /// TLS failed.
    Tls(String),
    /// The endpoint speaks plain HTTP where TLS is asked for, or the other way round.
    WrongScheme,
    /// `on_head` refused the answer.
    Refused(Error),
}

impl Fault {
    fn eof(what: &str) -> Self {
        Self::Io(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!("the server closed the connection {what}"),
        ))
    }

    fn into_error(self, request: &WireRequest<'_>, stored_bytes: u64) -> Error {
        let uri = request.uri.to_owned();
        let offset = request.offset + stored_bytes;
        match self {
            Self::Io(source) => Error::Network {
                uri,
                offset,
                source: Arc::new(source),
            },
            Self::UnknownHost(source) => Error::UnknownHost {
                uri,
                host: request.endpoint.host.to_string(),
                source: Arc::new(source),
            },
            Self::Stalled(idle) => Error::Stalled {
                uri,
                offset,
                idle,
                proxy: None,
            },
            Self::Bad(reason) => Error::Protocol {
                uri,
                offset,
                reason,
                answer: Box::default(),
            },
            Self::Tls(reason) => Error::Tls {
                endpoint: request.endpoint.to_string(),
                reason,
            },
            Self::WrongScheme => wrong_scheme(request.endpoint),
            Self::Refused(error) => error,
        }
    }
}

/// Asking again changes nothing, so it is a setting that is wrong.
pub(crate) fn wrong_scheme(endpoint: &Endpoint) -> Error {
    let (reason, fix) = match endpoint.tls {
        true => (
            "the endpoint speaks plain HTTP and not TLS",
            "use http:// in --endpoint-url",
        ),
        false => (
            "the endpoint speaks TLS and not plain HTTP",
            "use https:// in --endpoint-url",
        ),
    };
    Error::unusable(endpoint.to_string(), reason, fix)
}

#[cfg(test)]
mod tests;
