//! From a name to a connected socket.
//!
//! S3 answers a name with up to eight addresses out of thousands, and gives others a moment later. Spreading
//! connections over all of them is what makes hundreds of connections fast, so names are looked up again after a
//! second and the addresses are taken in turn. Requests that need the same name at the same moment share one lookup.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use rustls::ClientConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::conn::Conn;
use super::tls::TlsStream;
use super::transport::Transport;
use super::{Endpoint, Fault, WireConfig};

/// S3's own records live for a few seconds.
const LOOKUP_TTL: Duration = Duration::from_secs(1);
/// More addresses than this are not tried for one request: its retry will try others.
const MAX_TRIES: usize = 4;
/// A peer that vanished without a word is noticed after about this idle time.
const KEEPALIVE: Duration = Duration::from_secs(15);

type Found = Result<Arc<[SocketAddr]>, Arc<io::Error>>;
type Lookup = Shared<BoxFuture<'static, Found>>;

/// The addresses of recent names.
#[derive(Default)]
pub(super) struct Addresses(Mutex<HashMap<(Arc<str>, u16), Entry>>);

struct Entry {
    started: Instant,
    lookup: Lookup,
    /// Counts up with each use, from a random start, so that processes that start together spread too.
    turn: usize,
}

impl Addresses {
    /// All addresses of the endpoint, beginning with the one whose turn it is.
    async fn of(&self, endpoint: &Endpoint) -> Result<Vec<SocketAddr>, Fault> {
        if let Ok(ip) = endpoint.host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(ip, endpoint.port)]);
        }
        let (lookup, turn) = self.lookup(endpoint, Instant::now());
        let found = lookup.await.map_err(|error| {
            let text = format!("looking up {}: {error}", endpoint.host);
            let said = io::Error::new(error.kind(), text);
            match is_unknown_host(&error.to_string()) {
                true => Fault::UnknownHost(said),
                false => Fault::Io(said),
            }
        })?;
        Ok(rotated(&found, turn))
    }

    fn lookup(&self, endpoint: &Endpoint, now: Instant) -> (Lookup, usize) {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (endpoint.host.clone(), endpoint.port);
        let entry = entries.entry(key.clone()).or_insert_with(|| Entry {
            started: now,
            lookup: look_up(key.clone()),
            turn: fastrand::usize(..1 << 16),
        });
        let failed = matches!(entry.lookup.peek(), Some(Err(_)));
        if failed || now.duration_since(entry.started) >= LOOKUP_TTL {
            entry.started = now;
            entry.lookup = look_up(key);
        }
        entry.turn += 1;
        (entry.lookup.clone(), entry.turn)
    }
}

/// Whether a failed lookup says that there is no such name, by what `getaddrinfo` says of it: the standard library
/// keeps its code to itself. Everything else (no name server in reach, one that is overloaded) may pass.
pub(crate) fn is_unknown_host(said: &str) -> bool {
    [
        // EAI_NONAME and EAI_NODATA of glibc, of musl, and of the BSDs and macOS.
        "Name or service not known",
        "No address associated with hostname",
        "Name does not resolve",
        "Name has no usable address",
        "nodename nor servname provided",
        "the name has no address",
    ]
    .iter()
    .any(|text| said.contains(text))
}

fn look_up((host, port): (Arc<str>, u16)) -> Lookup {
    async move {
        let found: Arc<[SocketAddr]> = tokio::net::lookup_host((&*host, port))
            .await
            .map_err(Arc::new)?
            .collect();
        if found.is_empty() {
            return Err(Arc::new(io::Error::other("the name has no address")));
        }
        Ok(found)
    }
    .boxed()
    .shared()
}

fn rotated(addresses: &[SocketAddr], turn: usize) -> Vec<SocketAddr> {
    let mut addresses = addresses.to_vec();
    if !addresses.is_empty() {
        let by = turn % addresses.len();
        addresses.rotate_left(by);
    }
    addresses
}

/// A handshake that takes as long as this is doubted; three round trips around the world take less.
const DOUBT_AFTER: Duration = Duration::from_secs(1);

/// Opens a connection to the first address that accepts one.
pub(super) async fn connect(
    addresses: &Addresses,
    endpoint: &Endpoint,
    config: &WireConfig,
) -> Result<Box<Conn>, Fault> {
    let within = config.connect_timeout;
    let found = timeout(within, addresses.of(endpoint))
        .await
        .unwrap_or_else(|_| {
            let what = format!("looking up {}", endpoint.host);
            Err(Fault::Io(timed_out(what, within)))
        })?;
    let mut last = Fault::Io(io::Error::other("the name has no address"));
    for address in found.into_iter().take(MAX_TRIES) {
        match timeout(within, open(address, endpoint, config)).await {
            Ok(Ok(conn)) => return Ok(conn),
            Ok(Err(Fault::Io(error))) => {
                let what = format!("connecting to {endpoint} at {}: {error}", address.ip());
                last = Fault::Io(io::Error::new(error.kind(), what));
            }
            // Another address has the same certificate.
            Ok(Err(fault)) => return Err(fault),
            Err(_) => {
                let what = format!("connecting to {endpoint} at {}", address.ip());
                last = Fault::Io(timed_out(what, within));
            }
        }
    }
    Err(last)
}

fn timed_out(what: String, within: Duration) -> io::Error {
    io::Error::new(
        io::ErrorKind::TimedOut,
        format!("{what}: no success within {within:?}"),
    )
}

async fn open(
    address: SocketAddr,
    endpoint: &Endpoint,
    config: &WireConfig,
) -> Result<Box<Conn>, Fault> {
    let tcp = TcpStream::connect(address).await.map_err(Fault::Io)?;
    set_options(&tcp).map_err(Fault::Io)?;
    let transport = match (endpoint.tls, &config.tls) {
        (false, _) => Transport::Plain(tcp),
        (true, Some(tls)) => {
            let tls = tls.get().await?;
            Transport::Tls(Box::new(shake_hands(tcp, address, endpoint, tls).await?))
        }
        (true, None) => return Err(Fault::Tls("this client was made without TLS".into())),
    };
    Ok(Box::new(Conn::new(transport)))
}

/// A server of plain HTTP takes the handshake for the beginning of a request: it closes the connection, or waits for
/// more. Then it is asked in its own language, beside the handshake, which may only be slow.
async fn shake_hands(
    tcp: TcpStream,
    address: SocketAddr,
    endpoint: &Endpoint,
    tls: Arc<ClientConfig>,
) -> Result<TlsStream, Fault> {
    let handshake = TlsStream::connect(tcp, endpoint, tls);
    let doubt = async {
        tokio::time::sleep(DOUBT_AFTER).await;
        if !speaks_plain_http(address, endpoint).await {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        biased;
        shaken = handshake => match shaken {
            Err(Fault::Io(_)) if speaks_plain_http(address, endpoint).await => Err(Fault::WrongScheme),
            shaken => shaken,
        },
        () = doubt => Err(Fault::WrongScheme),
    }
}

/// Whether a plain request gets an answer.
async fn speaks_plain_http(address: SocketAddr, endpoint: &Endpoint) -> bool {
    let asked = async {
        let mut tcp = TcpStream::connect(address).await?;
        let request = format!(
            "HEAD / HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
            endpoint.host
        );
        tcp.write_all(request.as_bytes()).await?;
        let mut start = [0; 12];
        tcp.read_exact(&mut start).await?;
        // 400 is what servers of TLS say to plain HTTP, in plain HTTP.
        io::Result::Ok(start.starts_with(b"HTTP/") && !start.ends_with(b" 400"))
    };
    matches!(timeout(DOUBT_AFTER, asked).await, Ok(Ok(true)))
}

fn set_options(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(KEEPALIVE / 3);
    socket2::SockRef::from(tcp).set_tcp_keepalive(&keepalive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_gets_its_turn_and_none_is_lost() {
        let all: Vec<SocketAddr> = (1..=3)
            .map(|n| SocketAddr::from(([127, 0, 0, n], 80)))
            .collect();
        assert_eq!(rotated(&all, 4), [all[1], all[2], all[0]]);
        assert_eq!(rotated(&[], 7), []);
    }

    /// A label of more than 63 characters cannot be asked of any name server.
    #[tokio::test]
    async fn a_name_that_cannot_be_is_unknown_and_is_named() {
        let endpoint = Endpoint {
            tls: false,
            host: "x".repeat(64).into(),
            port: 1,
        };
        let found = Addresses::default().of(&endpoint).await;
        let Err(Fault::UnknownHost(error)) = found else {
            panic!("{found:?}");
        };
        assert!(error.to_string().contains(&*endpoint.host), "{error}");
        assert!(!is_unknown_host("Temporary failure in name resolution"));
    }

    #[tokio::test]
    async fn requests_at_the_same_moment_share_a_lookup_and_a_second_later_there_is_a_new_one() {
        let addresses = Addresses::default();
        let endpoint = Endpoint {
            tls: false,
            host: "localhost".into(),
            port: 1,
        };
        let now = Instant::now();
        let (first, turn) = addresses.lookup(&endpoint, now);
        let (second, next) = addresses.lookup(&endpoint, now);
        assert!(first.ptr_eq(&second));
        assert_eq!(next, turn + 1);
        let (third, _) = addresses.lookup(&endpoint, now + LOOKUP_TTL);
        assert!(!first.ptr_eq(&third));
        assert!(
            third
                .await
                .unwrap()
                .iter()
                .all(|address| address.ip().is_loopback())
        );
    }
}
