//! The bytes of a connection, encrypted or not.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::net::RecvFlags;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::tls::TlsStream;

/// A connected socket.
#[derive(Debug)]
pub(super) enum Transport {
    Plain(TcpStream),
    Tls(Box<TlsStream>),
}

impl Transport {
    /// Receives into the front of `into`; zero bytes mean the end of the stream.
    ///
    /// Tokio's own read is used, not `try_read`: after a short read it knows that the socket is empty, which saves
    /// the system call that would say so.
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        into: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(tcp) => poll_recv(tcp, cx, into),
            Self::Tls(tls) => tls.poll_read(cx, into),
        }
    }

    /// Sends from the front of `bytes` and takes off what has gone; ready when all has.
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &mut &[u8],
    ) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(tcp) => {
                while !bytes.is_empty() {
                    let n = ready!(Pin::new(&mut *tcp).poll_write(cx, bytes))?;
                    *bytes = &bytes[n..];
                }
                Poll::Ready(Ok(()))
            }
            Self::Tls(tls) => {
                if !bytes.is_empty() {
                    tls.write(bytes)?;
                    *bytes = &[];
                }
                tls.poll_flush(cx)
            }
        }
    }

    /// Whether nothing is waiting to be read: neither bytes, which nobody asked for, nor the end.
    pub(super) fn is_quiet(&mut self) -> bool {
        match self {
            Self::Plain(tcp) => is_quiet(tcp),
            Self::Tls(tls) => tls.is_quiet(),
        }
    }
}

pub(super) fn poll_recv(
    tcp: &mut TcpStream,
    cx: &mut Context<'_>,
    into: &mut [u8],
) -> Poll<io::Result<usize>> {
    let mut into = ReadBuf::new(into);
    ready!(Pin::new(tcp).poll_read(cx, &mut into))?;
    Poll::Ready(Ok(into.filled().len()))
}

pub(super) fn is_quiet(tcp: &TcpStream) -> bool {
    let mut byte = [0u8];
    let peeked = rustix::net::recv(tcp, &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT);
    matches!(peeked, Err(rustix::io::Errno::AGAIN))
}
