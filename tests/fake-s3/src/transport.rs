//! Bytes to and from one client, plain or over TLS.
//!
//! Plain: a head goes out with `MSG_MORE`, so that the kernel puts it in one segment with the first bytes of the body
//! that `sendfile` adds. TLS: slices of the object's mapping are copied once, to be encrypted, see [`crate::session`].

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::SendFlags;

use crate::content::Content;
use crate::session::Session;

/// Bodies up to this size are copied behind their head in one `sendmsg`: cheaper than a second system call.
const COPY_BYTES: u64 = 32 << 10;

/// A connection to a client.
#[derive(Debug)]
pub(crate) enum Transport {
    Plain(Arc<TcpStream>),
    Tls(Box<Session>),
}

impl Transport {
    pub(crate) fn plain(socket: Arc<TcpStream>) -> Transport {
        Transport::Plain(socket)
    }

    /// The handshake happens with the first read.
    pub(crate) fn tls(
        config: Arc<rustls::ServerConfig>,
        socket: Arc<TcpStream>,
    ) -> io::Result<Transport> {
        Ok(Transport::Tls(Box::new(Session::new(config, socket)?)))
    }

    fn socket(&self) -> &TcpStream {
        match self {
            Transport::Plain(socket) => socket,
            Transport::Tls(session) => session.socket(),
        }
    }

    /// Makes reads fail after so much silence.
    pub(crate) fn set_idle(&self, limit: Option<Duration>) -> io::Result<()> {
        self.socket()
            .set_read_timeout(limit.map(|limit| limit.max(Duration::from_millis(1))))
    }

    pub(crate) fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self {
            Transport::Plain(socket) => (&**socket).read(out),
            Transport::Tls(session) => session.read(out),
        }
    }

    /// Sends all of `bytes`; `more` promises that something follows at once.
    pub(crate) fn send(&mut self, bytes: &[u8], more: bool) -> io::Result<()> {
        match self {
            Transport::Plain(socket) => send_plain(socket, bytes, more),
            Transport::Tls(session) => session.send(bytes, more),
        }
    }

    /// Sends a head and the whole body behind it.
    pub(crate) fn send_response(
        &mut self,
        head: &[u8],
        content: &Content,
        range: Range<u64>,
    ) -> io::Result<()> {
        let small = range.end - range.start <= COPY_BYTES;
        match (&mut *self, content.contiguous(&range)) {
            (Transport::Plain(socket), Some(body)) if small => {
                return send_both(socket, head, body);
            }
            _ => self.send(head, !range.is_empty())?,
        }
        self.send_content(content, range)
    }

    /// Sends a range of an object.
    pub(crate) fn send_content(&mut self, content: &Content, range: Range<u64>) -> io::Result<()> {
        content.try_pieces(range, |piece| match self {
            Transport::Plain(socket) => sendfile(socket, content, piece),
            Transport::Tls(session) => {
                let slice = content
                    .file()
                    .slice(piece.start as usize, (piece.end - piece.start) as usize);
                session.send(slice, false)
            }
        })
    }

    /// Ends the connection so that the client sees a reset.
    pub(crate) fn reset(&mut self) {
        let _ = rustix::net::sockopt::set_socket_linger(self.socket(), Some(Duration::ZERO));
        // The reset goes out when the last descriptor is closed, at the end of the connection's thread. Not
        // `shutdown`: that would send a clean end first.
    }

    /// Ends the connection cleanly: a TLS client sees the close alert, so nothing hints that bytes are missing.
    pub(crate) fn finish(&mut self) {
        if let Transport::Tls(session) = self {
            let _ = session.finish();
        }
        let _ = self.socket().shutdown(Shutdown::Write);
    }
}

fn send_plain(socket: &TcpStream, mut bytes: &[u8], more: bool) -> io::Result<()> {
    let flags = if more {
        SendFlags::MORE | SendFlags::NOSIGNAL
    } else {
        SendFlags::NOSIGNAL
    };
    while !bytes.is_empty() {
        match rustix::net::send(socket, bytes, flags) {
            Ok(sent) => bytes = &bytes[sent..],
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn send_both(mut socket: &TcpStream, head: &[u8], body: &[u8]) -> io::Result<()> {
    let sent = socket.write_vectored(&[IoSlice::new(head), IoSlice::new(body)])?;
    if sent < head.len() {
        socket.write_all(&head[sent..])?;
        return socket.write_all(body);
    }
    socket.write_all(&body[sent - head.len()..])
}

fn sendfile(socket: &TcpStream, content: &Content, piece: Range<u64>) -> io::Result<()> {
    let mut at = piece.start;
    while at < piece.end {
        let left = (piece.end - at) as usize;
        match rustix::fs::sendfile(socket, content.file(), Some(&mut at), left) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
