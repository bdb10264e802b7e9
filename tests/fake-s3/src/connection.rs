//! One client: read a head, decide, answer, again.
//!
//! Each connection has a thread and blocking sockets. With at most some hundred connections that is as cheap as an
//! event loop, and a scripted pause is a sleep. Buffers live as long as the connection, so a small request costs one
//! `recv`, one `sendmsg` and no allocation worth naming.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::api;
use crate::auth::{self, KeyCache};
use crate::date;
use crate::log::LogEntry;
use crate::request::{Body as RequestBody, MAX_HEAD_BYTES, MAX_HEADERS, Request};
use crate::response::{Body, Response, S3Error, start_head};
use crate::script::{Faults, Phase};
use crate::server::Shared;
use crate::shape::{Clock, Pacer};
use crate::transport::Transport;

/// A connection's state between requests.
#[derive(Debug)]
pub(crate) struct Connection<'a> {
    server: &'a Shared,
    transport: Transport,
    number: u64,
    /// Bytes received and not yet used: at most one head and what came with it.
    input: Vec<u8>,
    head: Vec<u8>,
    keys: KeyCache,
    /// `Date`, formatted once a second.
    date: (i64, String),
    idle: Option<Duration>,
}

/// What becomes of the connection after a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Keep,
    Close,
}

/// A request while it is being answered.
#[derive(Debug)]
pub(crate) struct Exchange<'a> {
    pub(crate) server: &'a Shared,
    pub(crate) request: &'a Request<'a>,
    pub(crate) operation: crate::script::Operation,
    pub(crate) request_id: &'a str,
    pub(crate) faults: Faults,
    pub(crate) authenticated: bool,
    pub(crate) error: Option<String>,
}

impl<'a> Connection<'a> {
    pub(crate) fn new(server: &'a Shared, transport: Transport, number: u64) -> Connection<'a> {
        Connection {
            server,
            transport,
            number,
            input: Vec::with_capacity(8 << 10),
            head: Vec::with_capacity(1 << 10),
            keys: KeyCache::default(),
            date: (0, String::new()),
            idle: None,
        }
    }

    /// Serves until either side ends the connection. Errors are the client's going away: nobody to tell.
    pub(crate) fn serve(mut self) {
        while let Ok(Some(head_bytes)) = self.read_head() {
            match self.exchange(head_bytes) {
                Ok(Next::Keep) => {}
                Ok(Next::Close) => {
                    self.transport.finish();
                    return;
                }
                Err(_) => return,
            }
        }
    }

    /// Reads until a head is complete; its length, or `None` at the end of the connection.
    fn read_head(&mut self) -> io::Result<Option<usize>> {
        let mut searched = 0;
        loop {
            if let Some(end) = find_head_end(&self.input, searched) {
                return Ok(Some(end));
            }
            searched = self.input.len().saturating_sub(3);
            if self.input.len() > MAX_HEAD_BYTES {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let filled = self.input.len();
            self.input.resize(filled + (8 << 10), 0);
            let count = self.transport.read(&mut self.input[filled..]);
            self.input.truncate(filled + *count.as_ref().unwrap_or(&0));
            if count? == 0 {
                return Ok(None);
            }
        }
    }

    /// Answers the request whose head lies at the start of `input`.
    fn exchange(&mut self, head_bytes: usize) -> io::Result<Next> {
        let input = std::mem::take(&mut self.input);
        let used = self.answer(&input[..head_bytes], &input[head_bytes..]);
        self.input = input;
        let (next, body_bytes) = used?;
        self.input.drain(..head_bytes + body_bytes);
        Ok(next)
    }

    fn answer(&mut self, head: &[u8], leftover: &[u8]) -> io::Result<(Next, usize)> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut parsed = httparse::Request::new(&mut headers);
        let complete = matches!(parsed.parse(head), Ok(httparse::Status::Complete(_)));
        let Some(request) = Request::new(&parsed, &self.server.base_domains).filter(|_| complete)
        else {
            self.transport.send(
                b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
                false,
            )?;
            return Ok((Next::Close, 0));
        };
        let sequence = self.server.log.begin();
        let started = self.server.log.start.elapsed();
        let request_id = format!("{:016X}", crate::content::mix(sequence));
        let mut exchange = Exchange {
            server: self.server,
            request: &request,
            operation: api::operation(&request),
            request_id: &request_id,
            faults: Faults::default(),
            authenticated: false,
            error: None,
        };
        let mut body = RequestBody::new(&request, leftover, &mut self.transport);
        let response = api::handle(&mut exchange, &mut body, &mut self.keys);
        let (consumed, used) = (body.consumed, body.used());
        let entry = self
            .server
            .log
            .is_on()
            .then(|| log_entry(&exchange, sequence, self.number, started, response.status));
        let keep = entry.clone().filter(|_| self.server.log.has_file());
        if let Some(entry) = entry {
            self.server.log.push(entry);
        }
        let mut bytes_sent = 0;
        let sent = self.respond(response, &exchange, &mut bytes_sent);
        self.server.log.end(sequence, bytes_sent, keep);
        let wants_close = request
            .header("connection")
            .is_some_and(|value| value.eq_ignore_ascii_case("close"));
        let next = if consumed && !wants_close {
            sent?
        } else {
            sent.map(|_| Next::Close)?
        };
        Ok((next, used))
    }

    fn respond(
        &mut self,
        response: Response,
        exchange: &Exchange<'_>,
        bytes_sent: &mut u64,
    ) -> io::Result<Next> {
        let faults = &exchange.faults;
        self.server.stop.sleep(faults.latency)?;
        if faults.garbage {
            self.transport.send(
                b"\x00\xff\x13garbage, not HTTP\r\n\x80\x81\r\n\r\nmore of it\r\n",
                false,
            )?;
            return Ok(Next::Close);
        }
        self.start_head(&response, exchange);
        self.idle_limit(faults.close_idle)?;
        let total = self.server.shape().1;
        let clocks = faults
            .total
            .iter()
            .chain(&total)
            .map(|clock: &Arc<Clock>| &**clock)
            .collect();
        let mut sender = Sender {
            transport: &mut self.transport,
            server: self.server,
            faults,
            pacer: Pacer::new(faults.bytes_per_second, clocks),
            sent: bytes_sent,
        };
        sender.send(&self.head, &response.body)
    }

    fn start_head(&mut self, response: &Response, exchange: &Exchange<'_>) {
        let now = date::now();
        if self.date.0 != now {
            self.date = (now, date::http(now));
        }
        let faults = &exchange.faults;
        self.head.clear();
        start_head(
            &mut self.head,
            response.status,
            exchange.request_id,
            &self.date.1,
        );
        self.head.extend_from_slice(&response.headers);
        if faults.chunked {
            self.head
                .extend_from_slice(b"Transfer-Encoding: chunked\r\n");
        } else if let Some(len) = response.body.len().filter(|_| !faults.no_length) {
            let _ = io::Write::write_fmt(&mut self.head, format_args!("Content-Length: {len}\r\n"));
        }
        self.head.extend_from_slice(b"\r\n");
    }

    /// Limits how long the next head may take, if a rule says so.
    fn idle_limit(&mut self, limit: Option<Duration>) -> io::Result<()> {
        if self.idle != limit {
            self.transport.set_idle(limit)?;
            self.idle = limit;
        }
        Ok(())
    }
}

/// Sends one response, in one go or in pieces.
struct Sender<'a> {
    transport: &'a mut Transport,
    server: &'a Shared,
    faults: &'a Faults,
    pacer: Pacer<'a>,
    sent: &'a mut u64,
}

impl Sender<'_> {
    fn send(&mut self, head: &[u8], body: &Body) -> io::Result<Next> {
        match body {
            Body::None | Body::Announced(_) => self.transport.send(head, false)?,
            Body::Bytes(bytes) => {
                let whole = [head, bytes].concat();
                self.transport.send(&whole, false)?;
                *self.sent += bytes.len() as u64;
            }
            Body::Object(content, range) if self.pacer.is_free() && !self.faults.touch_body() => {
                self.transport.send_response(head, content, range.clone())?;
                *self.sent += range.end - range.start;
            }
            Body::Object(content, range) => {
                self.transport.send(head, false)?;
                return self.send_pieces(content, range.clone());
            }
        }
        Ok(Next::Keep)
    }

    /// Sends a body slice by slice, minding the pace and whatever is to happen at some byte.
    fn send_pieces(
        &mut self,
        content: &crate::content::Content,
        range: std::ops::Range<u64>,
    ) -> io::Result<Next> {
        let len = range.end - range.start;
        let mut at = 0;
        loop {
            if let Some(end) = self.happens(at)? {
                return Ok(end);
            }
            if at == len {
                break;
            }
            let piece = self.piece(at, len);
            let due = self.pacer.due(piece);
            self.server.stop.sleep_until(due)?;
            self.send_piece(content, range.start + at..range.start + at + piece, at)?;
            at += piece;
            *self.sent += piece;
        }
        if self.faults.chunked {
            self.transport.send(b"0\r\n\r\n", false)?;
        }
        if self.faults.surplus > 0 {
            let surplus = vec![b'!'; self.faults.surplus.min(1 << 20) as usize];
            self.transport.send(&surplus, false)?;
        }
        Ok(if self.faults.no_length {
            Next::Close
        } else {
            Next::Keep
        })
    }

    /// What is to happen before byte `at`.
    fn happens(&mut self, at: u64) -> io::Result<Option<Next>> {
        if let Some((byte, pause)) = self.faults.stall
            && byte == at
        {
            self.server.stop.sleep(pause)?;
        }
        if self.faults.reset_at == Some(at) {
            // Long enough for what was sent to get across: a reset discards what has not.
            self.server.stop.sleep(Duration::from_millis(5))?;
            self.transport.reset();
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Ok((self.faults.truncate_at == Some(at)).then_some(Next::Close))
    }

    /// Length of the next piece: not past anything that is to happen.
    fn piece(&self, at: u64, len: u64) -> u64 {
        let faults = self.faults;
        let flip = faults.flip_at.iter().flat_map(|byte| [*byte, byte + 1]);
        let stall = faults.stall.iter().map(|(byte, _)| *byte);
        let events = faults
            .reset_at
            .into_iter()
            .chain(faults.truncate_at)
            .chain(stall)
            .chain(flip);
        let next = events.filter(|event| *event > at).min().unwrap_or(len);
        let slice = if self.pacer.is_free() {
            1 << 20
        } else {
            self.pacer.slice()
        };
        slice.min(next.min(len) - at)
    }

    fn send_piece(
        &mut self,
        content: &crate::content::Content,
        range: std::ops::Range<u64>,
        at: u64,
    ) -> io::Result<()> {
        if self.faults.chunked {
            let size = format!("{:x}\r\n", range.end - range.start);
            self.transport.send(size.as_bytes(), true)?;
        }
        if self.faults.flip_at == Some(at) {
            let mut byte = [0];
            content.for_each(range, |slice| byte[0] = slice[0] ^ 1);
            self.transport.send(&byte, false)?;
        } else {
            self.transport.send_content(content, range)?;
        }
        if self.faults.chunked {
            self.transport.send(b"\r\n", false)
        } else {
            Ok(())
        }
    }
}

/// Where the head ends, if it does; the first `searched` bytes are known not to.
fn find_head_end(input: &[u8], searched: usize) -> Option<usize> {
    let tail = &input[searched..];
    tail.windows(4)
        .position(|window| window == b"\r\n\r\n")
        .map(|at| searched + at + 4)
}

fn log_entry(
    exchange: &Exchange<'_>,
    sequence: u64,
    connection: u64,
    started: Duration,
    status: u16,
) -> LogEntry {
    let request = exchange.request;
    let header = |name: &str| request.header(name).map(str::to_owned);
    LogEntry {
        sequence,
        connection,
        method: request.method.to_owned(),
        operation: exchange.operation,
        host: header("host"),
        path: request.raw_path.to_owned(),
        bucket: request.bucket.to_string(),
        key: api::scripted_key(exchange.operation, request).into_owned(),
        query: request.raw_query.to_owned(),
        range: header("range"),
        if_match: header("if-match"),
        user_agent: header("user-agent"),
        credentials: auth::kind(request),
        authenticated: exchange.authenticated,
        status: if exchange.faults.garbage { 0 } else { status },
        error: exchange.error.clone(),
        request_id: exchange.request_id.to_owned(),
        bytes_sent: 0,
        faults: exchange.faults.names.clone(),
        started,
        finished: None,
    }
}

impl Exchange<'_> {
    /// Asks the script again, now that the body's length is known.
    pub(crate) fn decide_body(&mut self, len: u64) {
        let (operation, request) = (self.operation, self.request);
        let key = api::scripted_key(operation, request);
        let script = &self.server.script;
        script.decide(
            Phase::Body(len),
            operation,
            &request.bucket,
            &key,
            &mut self.faults,
        );
    }

    /// Turns an error into a response and notes it for the log.
    pub(crate) fn fail(&mut self, error: S3Error) -> Response {
        self.error = Some(error.code.clone());
        error.into_response(
            self.request.raw_path,
            self.request_id,
            self.request.is_head(),
        )
    }
}
