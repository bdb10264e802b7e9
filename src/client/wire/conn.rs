//! One connection: a request out, an answer in.

use std::future::poll_fn;
use std::task::Poll;

use bytes::Bytes;
use tokio::time::Instant;

use super::chunked::Decoder;
use super::head::{self, Framing, MAX_HEAD_BYTES, Method};
use super::transport::Transport;
use super::watch::Watch;
use super::{After, BodyPlan, Exchanged, Fault, OnHead, WireConfig, WireRequest};
use crate::buffer::PartBuf;
use crate::metrics::Metrics;

/// Holds S3's head (about 600 bytes) and a small object behind it, so that a small answer is one system call.
const SCRATCH_BYTES: usize = 16 << 10;
/// So much is received at once that the CRC still finds it in the cache.
const RECEIVE_BYTES: u64 = 1 << 20;
/// After so much a task lets others run: a fast connection is never out of bytes, and a worker thread that does not
/// come back to the runtime does not see that other sockets have something to say. A whole part of the usual size, about
/// 3 ms: with turns of 1 MiB all parts in flight grow together, each is out of the cache when it is complete, and the
/// consumer fetches it from memory again (measured on loopback: about a sixth of the throughput).
const TURN_BYTES: usize = 8 << 20;
/// Notices (`100`, `103`) before the answer; nothing sends more than one.
const MAX_INTERIM: usize = 4;

/// A connection and what is known about it.
#[derive(Debug)]
pub(super) struct Conn {
    transport: Transport,
    watch: Watch,
    opened: Instant,
    requests: u32,
    /// Bytes of the answer in progress, head included.
    received_bytes: u64,
    /// `scratch[start..end]` has been received and not been used.
    scratch: Vec<u8>,
    start: usize,
    end: usize,
}

/// What the head said.
struct Answer {
    status: u16,
    framing: Framing,
    keep_alive: bool,
    plan: BodyPlan,
}

impl Conn {
    pub(super) fn new(transport: Transport) -> Self {
        let now = Instant::now();
        Self {
            transport,
            watch: Watch::new(now),
            opened: now,
            requests: 0,
            received_bytes: 0,
            scratch: vec![0; SCRATCH_BYTES],
            start: 0,
            end: 0,
        }
    }

    /// Whether the server has kept it open and sent nothing unasked.
    pub(super) fn is_alive(&mut self) -> bool {
        self.transport.is_quiet()
    }

    pub(super) fn is_aged(&self, now: Instant) -> bool {
        super::pool::is_aged(self.opened, self.requests, now)
    }

    /// Whether any byte of the answer in progress has come.
    pub(super) fn is_answered(&self) -> bool {
        self.received_bytes > 0
    }

    /// Sends the request and receives the answer.
    pub(super) async fn exchange(
        &mut self,
        config: &WireConfig,
        request: &WireRequest<'_>,
        into: &mut PartBuf,
        on_head: OnHead<'_>,
    ) -> Result<Exchanged, Fault> {
        let started = Instant::now();
        self.requests += 1;
        self.received_bytes = 0;
        self.watch
            .expect_first_byte(started, config.first_byte_timeout);
        self.write(request.head).await?;
        self.fill("before it answered").await?;
        let answered = Instant::now();
        self.watch
            .expect_progress(answered, config.progress_timeout, self.received_bytes);
        let answer = self.head(request.method, into, on_head).await?;
        // Listings and refusals have other times, and would hide those of the objects.
        let is_object = matches!(answer.plan, BodyPlan::Into { .. });
        if is_object {
            // Now, not at the end: a body that is cut off had a first byte too.
            config.metrics.first_byte.record(answered - started);
        }
        let (body, whole) = self.body(&answer, into, &config.metrics).await?;
        let ended = Instant::now();
        if is_object {
            config.metrics.request_time.record(ended - started);
        }
        Ok(Exchanged {
            status: answer.status,
            body,
            state: self.after(whole, answer.keep_alive),
            ended,
        })
    }

    fn after(&self, whole: bool, keep_alive: bool) -> After {
        match (whole && self.buffered().is_empty(), keep_alive) {
            (false, _) => After::Unknown,
            (true, false) => After::Closing,
            (true, true) => After::Reusable,
        }
    }

    async fn head(
        &mut self,
        method: Method,
        into: &mut PartBuf,
        on_head: OnHead<'_>,
    ) -> Result<Answer, Fault> {
        let mut interim = 0;
        loop {
            let buffered = self.end - self.start;
            let parsed = head::parse(self.buffered(), |head, len| {
                let judged = (!head::is_interim(head.status))
                    .then(|| judge(head, buffered - len, method, into, on_head));
                (len, judged)
            });
            let is_tls = is_tls_record(self.buffered());
            let unreadable = |reason| match is_tls {
                true => Fault::WrongScheme,
                false => Fault::Bad(reason),
            };
            match parsed.map_err(unreadable)? {
                Some((len, Some(judged))) => {
                    self.start += len;
                    return judged;
                }
                Some((len, None)) => {
                    self.start += len;
                    interim += 1;
                    if interim > MAX_INTERIM {
                        return Err(Fault::Bad("only interim answers".into()));
                    }
                }
                None => self.fill("in the head of its answer").await?,
            }
        }
    }

    /// The body as the plan wants it, and whether it was received to its end.
    async fn body(
        &mut self,
        answer: &Answer,
        into: &mut PartBuf,
        metrics: &Metrics,
    ) -> Result<(Bytes, bool), Fault> {
        match (answer.plan, answer.framing) {
            (BodyPlan::Buffer { cap }, framing) => self.buffer(framing, cap).await,
            (BodyPlan::Into { skip, take }, Framing::Length(len)) => {
                check_plan(skip, take, Some(len), into)?;
                self.skip(skip, metrics).await?;
                self.receive(take, into, metrics).await?;
                Ok((Bytes::new(), skip + take == len))
            }
            (BodyPlan::Into { skip, take }, Framing::Chunked) => {
                check_plan(skip, take, None, into)?;
                self.dechunk(skip, take, into, metrics).await?;
                Ok((Bytes::new(), false))
            }
            (BodyPlan::Into { .. }, Framing::UntilClose) => {
                Err(Fault::Bad("a body without a length".into()))
            }
        }
    }

    async fn skip(&mut self, mut left: u64, metrics: &Metrics) -> Result<(), Fault> {
        loop {
            let n = self.buffered().len().min(to_usize(left));
            self.start += n;
            metrics.bytes_received.add(n as u64);
            metrics.bytes_wasted.add(n as u64);
            left -= n as u64;
            if left == 0 {
                return Ok(());
            }
            self.fill("in the middle of a body").await?;
        }
    }

    /// The heart: what came with the head is copied, the rest is received where it stays.
    async fn receive(
        &mut self,
        take: u64,
        into: &mut PartBuf,
        metrics: &Metrics,
    ) -> Result<(), Fault> {
        let n = self.buffered().len().min(to_usize(take));
        into.put(&self.scratch[self.start..self.start + n]);
        self.start += n;
        metrics.bytes_received.add(n as u64);
        let mut left = take - n as u64;
        let mut turn = 0;
        while left > 0 {
            let room = &mut into.unfilled_mut()[..to_usize(left.min(RECEIVE_BYTES))];
            let n = read(
                &mut self.transport,
                &mut self.watch,
                &mut self.received_bytes,
                room,
            )
            .await?;
            if n == 0 {
                return Err(Fault::eof("in the middle of a body"));
            }
            into.advance(n);
            metrics.bytes_received.add(n as u64);
            left -= n as u64;
            turn += n;
            if turn >= TURN_BYTES && left > 0 {
                turn = 0;
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    }

    async fn dechunk(
        &mut self,
        mut skip: u64,
        take: u64,
        into: &mut PartBuf,
        metrics: &Metrics,
    ) -> Result<(), Fault> {
        let (mut decoder, mut left) = (Decoder::new(), take);
        loop {
            let used = decoder.decode(self.buffered(), |bytes| {
                metrics.bytes_received.add(bytes.len() as u64);
                let skipped = bytes.len().min(to_usize(skip));
                metrics.bytes_wasted.add(skipped as u64);
                skip -= skipped as u64;
                let wanted = (bytes.len() - skipped).min(to_usize(left));
                into.put(&bytes[skipped..skipped + wanted]);
                left -= wanted as u64;
            });
            self.start += used.map_err(Fault::Bad)?;
            if left == 0 && skip == 0 {
                return Ok(());
            }
            if decoder.is_done() {
                let missing = left + skip;
                return Err(Fault::Bad(format!("a body {missing} bytes too short")));
            }
            self.fill("in the middle of a body").await?;
        }
    }

    async fn buffer(&mut self, framing: Framing, cap: usize) -> Result<(Bytes, bool), Fault> {
        let mut body = Vec::new();
        let mut decoder = Decoder::new();
        loop {
            let bytes = &self.scratch[self.start..self.end];
            let (used, done) = match framing {
                Framing::Length(len) => {
                    let n = bytes.len().min(to_usize(len).saturating_sub(body.len()));
                    body.extend_from_slice(&bytes[..n]);
                    (n, body.len() as u64 == len)
                }
                Framing::Chunked => {
                    let used = decoder
                        .decode(bytes, |bytes| body.extend_from_slice(bytes))
                        .map_err(Fault::Bad)?;
                    (used, decoder.is_done())
                }
                Framing::UntilClose => {
                    body.extend_from_slice(bytes);
                    (bytes.len(), false)
                }
            };
            self.start += used;
            if body.len() > cap || matches!(framing, Framing::Length(len) if len > cap as u64) {
                return Err(Fault::Bad(format!("a body of more than {cap} bytes")));
            }
            if done {
                break;
            }
            match self.fill("in the middle of a body").await {
                Err(Fault::Io(error))
                    if framing == Framing::UntilClose
                        && error.kind() == std::io::ErrorKind::UnexpectedEof =>
                {
                    break;
                }
                filled => filled?,
            }
        }
        Ok((body.into(), framing != Framing::UntilClose))
    }

    fn buffered(&self) -> &[u8] {
        &self.scratch[self.start..self.end]
    }

    /// Receives more into the scratch buffer, which grows only for a large head.
    async fn fill(&mut self, when: &str) -> Result<(), Fault> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == self.scratch.len() {
            self.scratch.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            if self.end == self.scratch.len() {
                let larger = (self.scratch.len() * 2).min(MAX_HEAD_BYTES);
                self.scratch.resize(larger, 0);
            }
        }
        let n = read(
            &mut self.transport,
            &mut self.watch,
            &mut self.received_bytes,
            &mut self.scratch[self.end..],
        )
        .await?;
        self.end += n;
        if n == 0 {
            return Err(Fault::eof(when));
        }
        Ok(())
    }

    async fn write(&mut self, mut bytes: &[u8]) -> Result<(), Fault> {
        poll_fn(|cx| match self.transport.poll_write(cx, &mut bytes) {
            Poll::Ready(written) => Poll::Ready(written.map_err(Fault::Io)),
            Poll::Pending => self
                .watch
                .poll_stalled(cx, 0)
                .map(|()| Err(Fault::Stalled(self.watch.period()))),
        })
        .await
    }
}

/// Receives once, or finds that the connection has stalled.
async fn read(
    transport: &mut Transport,
    watch: &mut Watch,
    received_bytes: &mut u64,
    into: &mut [u8],
) -> Result<usize, Fault> {
    let n = poll_fn(|cx| match transport.poll_read(cx, into) {
        Poll::Ready(read) => Poll::Ready(read.map_err(Fault::Io)),
        Poll::Pending => watch
            .poll_stalled(cx, *received_bytes)
            .map(|()| Err(Fault::Stalled(watch.period()))),
    })
    .await?;
    *received_bytes += n as u64;
    Ok(n)
}

fn judge(
    head: &head::Head<'_>,
    behind_bytes: usize,
    method: Method,
    into: &mut PartBuf,
    on_head: OnHead<'_>,
) -> Result<Answer, Fault> {
    let framing = head.framing(method);
    if let Framing::Length(len) = framing
        && behind_bytes as u64 > len
    {
        return Err(Fault::Bad(format!(
            "at least {behind_bytes} bytes behind a head that announces {len}"
        )));
    }
    Ok(Answer {
        status: head.status,
        framing,
        keep_alive: head.keep_alive,
        plan: on_head(head, into).map_err(Fault::Refused)?,
    })
}

fn check_plan(skip: u64, take: u64, len: Option<u64>, into: &PartBuf) -> Result<(), Fault> {
    let end = skip.checked_add(take);
    if end.is_none() || len.is_some_and(|len| end > Some(len)) {
        let len = len.unwrap_or(u64::MAX);
        return Err(Fault::Bad(format!(
            "{take} bytes wanted behind the first {skip} of a body of {len}"
        )));
    }
    if take > into.remaining() as u64 {
        let room = into.remaining();
        return Err(Fault::Bad(format!(
            "{take} bytes for a buffer with {room} left"
        )));
    }
    Ok(())
}

fn to_usize(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}
/// An alert (or a handshake) of TLS: what a server that expects TLS says to plain HTTP.
fn is_tls_record(bytes: &[u8]) -> bool {
    matches!(bytes, [0x15 | 0x16, 0x03, ..])
}
