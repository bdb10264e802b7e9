//! Faults on command, around any client.
//!
//! [`FaultClient`] makes requests slow, breaks them after some bytes or leaves them without an answer, as a
//! [`Schedule`] says. It sleeps by Tokio's clock, so a test with paused time runs hours of outages in milliseconds.
//! It is what the engine's property tests run over, and is at hand for programs that want to see their own
//! behaviour on a bad day.
//!
//! A GET that is touched in any way is first read from the inner client into memory of its own, then handed on at
//! the pace and up to the point that the schedule says: the inner client sees one request for what the caller
//! asked, and none when no byte is to arrive. Untouched ones are passed on as they are.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt};
use tokio::time::sleep;

use super::{Depth, GetMeta, ListEntry, ObjectClient};
use crate::buffer::PartBuf;
use crate::error::{Answer, Error, Result};
use crate::object::{ByteRange, ObjectId, ObjectMeta, ObjectUri};

mod schedule;

pub use schedule::{Behaviour, Chaos, Fault, FaultKind, Schedule, Unreadable};

/// Paced bodies arrive in pieces of this size, about what one read from a socket gives.
const PIECE_BYTES: usize = 64 << 10;

/// Fails as its schedule says, and otherwise answers as the client inside does.
#[derive(Debug)]
pub struct FaultClient {
    inner: Arc<dyn ObjectClient>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    schedule: Schedule,
    requests: AtomicU64,
}

impl FaultClient {
    /// How long a stalled request waits before it says so: the S3 client's default limit without progress.
    pub const STALL: Duration = Duration::from_secs(5);

    /// Puts `schedule` between callers and `inner`.
    pub fn new(inner: Arc<dyn ObjectClient>, schedule: Schedule) -> Self {
        let shared = Arc::new(Shared {
            schedule,
            requests: AtomicU64::new(0),
        });
        Self { inner, shared }
    }

    /// How many requests have begun: the number that the next one gets.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    async fn faulty_get(
        &self,
        id: &ObjectId,
        range: ByteRange,
        into: &mut PartBuf,
    ) -> Result<GetMeta> {
        let behaviour = self.shared.next();
        let wanted = range.skip(into.filled().len() as u64);
        let strike = self
            .shared
            .schedule
            .strikes(behaviour.fault, id.uri.key(), wanted);
        sleep(behaviour.first_byte).await;
        match strike {
            Some((offset, kind)) if offset == wanted.start => {
                return Err(strike_with(kind, &id.uri, offset).await);
            }
            None if behaviour.bytes_per_second.is_none() && behaviour.flipped.is_none() => {
                return self.inner.get(id, range, into).await;
            }
            _ => {}
        }
        let (meta, mut body) = self.read_aside(id, wanted, into).await?;
        if let Some(byte) = behaviour
            .flipped
            .and_then(|at| body.get_mut(usize::try_from(at).ok()?))
        {
            *byte ^= 1;
        }
        let cut = strike.filter(|(offset, _)| *offset < wanted.start + body.len() as u64);
        let arriving = cut.map_or(body.len(), |(offset, _)| (offset - wanted.start) as usize);
        trickle(&body[..arriving], behaviour.bytes_per_second, into).await;
        match cut {
            Some((offset, kind)) => Err(strike_with(kind, &id.uri, offset).await),
            None => Ok(meta),
        }
    }

    /// Reads `wanted` from the inner client; what it learnt of the checksum goes into `into`.
    async fn read_aside(
        &self,
        id: &ObjectId,
        wanted: ByteRange,
        into: &mut PartBuf,
    ) -> Result<(GetMeta, Vec<u8>)> {
        let mut aside = PartBuf::heap(into.remaining());
        let answer = self.inner.get(id, wanted, &mut aside).await;
        if let Some(checksum) = aside.expected() {
            into.expect(checksum);
        }
        match answer {
            Ok(meta) => Ok((meta, aside.filled().to_vec())),
            Err(error) => {
                into.put(aside.filled());
                Err(error)
            }
        }
    }
}

impl Shared {
    fn next(&self) -> Behaviour {
        self.schedule
            .behaviour(self.requests.fetch_add(1, Ordering::Relaxed))
    }
}

async fn trickle(body: &[u8], bytes_per_second: Option<u64>, into: &mut PartBuf) {
    for piece in body.chunks(PIECE_BYTES) {
        if let Some(pace) = bytes_per_second {
            sleep(Duration::from_secs_f64(
                piece.len() as f64 / pace.max(1) as f64,
            ))
            .await;
        }
        into.put(piece);
    }
}

/// Waits as this kind of fault does and says what went wrong.
async fn strike_with(kind: FaultKind, uri: &ObjectUri, offset: u64) -> Error {
    match kind {
        FaultKind::Stalled => sleep(FaultClient::STALL).await,
        FaultKind::Silence => std::future::pending().await,
        _ => {}
    }
    error(kind, uri.to_string(), offset)
}

fn error(kind: FaultKind, uri: String, offset: u64) -> Error {
    let answer = |status, code: &str| Answer {
        status,
        code: Some(code.into()),
        message: Some("injected".into()),
        request_id: None,
    };
    let reason = || "injected".to_string();
    match kind {
        FaultKind::Network => Error::Network {
            uri,
            offset,
            source: Arc::new(std::io::Error::from(std::io::ErrorKind::ConnectionReset)),
        },
        FaultKind::Stalled | FaultKind::Silence => Error::Stalled {
            uri,
            offset,
            idle: FaultClient::STALL,
            proxy: None,
        },
        FaultKind::Throttled => Error::Throttled {
            uri,
            offset: Some(offset),
            answer: Box::new(answer(503, "SlowDown")),
        },
        FaultKind::Server => Error::Server {
            uri,
            offset,
            answer: answer(500, "InternalError"),
        },
        FaultKind::Protocol => Error::Protocol {
            uri,
            offset,
            reason: reason(),
            answer: Box::default(),
        },
        FaultKind::Changed => Error::Changed {
            uri,
            offset,
            expected: "\"before\"".into(),
            found: "\"after\"".into(),
            answer: Box::new(answer(412, "PreconditionFailed")),
        },
        FaultKind::Corrupt => Error::Corrupt {
            uri,
            offset,
            reason: reason(),
            answer: Box::default(),
        },
        FaultKind::NotFound => Error::NotFound {
            uri,
            offset: Some(offset),
            answer: Box::new(answer(404, "NoSuchKey")),
        },
        FaultKind::PermissionDenied => Error::PermissionDenied {
            uri,
            offset: Some(offset),
            answer: Box::new(answer(403, "AccessDenied")),
        },
    }
}

impl ObjectClient for FaultClient {
    fn head<'a>(&'a self, uri: &'a ObjectUri) -> BoxFuture<'a, Result<ObjectMeta>> {
        async move {
            let behaviour = self.shared.next();
            sleep(behaviour.first_byte).await;
            match behaviour.fault {
                Some(fault) => Err(strike_with(fault.kind, uri, 0).await),
                None => self.inner.head(uri).await,
            }
        }
        .boxed()
    }

    fn get<'a>(
        &'a self,
        id: &'a ObjectId,
        range: ByteRange,
        into: &'a mut PartBuf,
    ) -> BoxFuture<'a, Result<GetMeta>> {
        self.faulty_get(id, range, into).boxed()
    }

    fn list(&self, prefix: &ObjectUri, depth: Depth) -> BoxStream<'static, Result<ListEntry>> {
        self.faulty(prefix, self.inner.list(prefix, depth))
    }

    fn list_after(
        &self,
        prefix: &ObjectUri,
        after: &str,
    ) -> Option<BoxStream<'static, Result<ListEntry>>> {
        Some(self.faulty(prefix, self.inner.list_after(prefix, after)?))
    }
}

impl FaultClient {
    fn faulty(
        &self,
        prefix: &ObjectUri,
        inner: BoxStream<'static, Result<ListEntry>>,
    ) -> BoxStream<'static, Result<ListEntry>> {
        let listing = Listing {
            prefix: prefix.clone(),
            inner,
            shared: self.shared.clone(),
            request: None,
        };
        stream::unfold(listing, |mut listing| async move {
            Some((listing.next().await?, listing))
        })
        .boxed()
    }
}

/// A listing under way. What breaks it is one request: polled again, the next request goes on where it broke.
struct Listing {
    prefix: ObjectUri,
    inner: BoxStream<'static, Result<ListEntry>>,
    shared: Arc<Shared>,
    /// The request's fault and the entries it has still to give before that; `None` before it is sent.
    request: Option<Option<(u64, FaultKind)>>,
}

impl Listing {
    async fn next(&mut self) -> Option<Result<ListEntry>> {
        if self.request.is_none() {
            let behaviour = self.shared.next();
            sleep(behaviour.first_byte).await;
            self.request = Some(behaviour.fault.map(|fault| (fault.after, fault.kind)));
        }
        match &mut self.request {
            Some(Some((0, kind))) => {
                let kind = *kind;
                self.request = None;
                return Some(Err(strike_with(kind, &self.prefix, 0).await));
            }
            Some(Some((left, _))) => *left -= 1,
            _ => {}
        }
        self.inner.next().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::MemoryClient;
    use tokio::time::Instant;

    fn uri() -> ObjectUri {
        "memory://m/k".parse().unwrap()
    }

    fn over_bytes(len: usize, schedule: Schedule) -> FaultClient {
        let memory = MemoryClient::default();
        memory.put(uri(), vec![7; len]);
        FaultClient::new(Arc::new(memory), schedule)
    }

    async fn read(client: &FaultClient, range: ByteRange, into: &mut PartBuf) -> Result<GetMeta> {
        client.get(&ObjectId::unpinned(uri()), range, into).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_broken_body_leaves_what_arrived_and_the_next_request_goes_on() {
        let client = over_bytes(
            100,
            Schedule::script([Behaviour::failing(30, FaultKind::Network)]),
        );
        let mut part = PartBuf::heap(100);
        let error = read(&client, ByteRange::new(0, 100), &mut part)
            .await
            .unwrap_err();
        assert!(
            matches!(error, Error::Network { offset: 30, .. }),
            "{error}"
        );
        assert_eq!(part.filled().len(), 30);
        read(&client, ByteRange::new(0, 100), &mut part)
            .await
            .unwrap();
        assert_eq!((part.filled(), client.requests()), (&[7; 100][..], 2));
    }

    #[tokio::test(start_paused = true)]
    async fn latency_and_pace_take_their_time() {
        let slow = Behaviour {
            first_byte: Duration::from_secs(1),
            bytes_per_second: Some(1 << 20),
            ..Behaviour::default()
        };
        let client = over_bytes(2 << 20, Schedule::script([slow]));
        let begun = Instant::now();
        let mut part = PartBuf::heap(2 << 20);
        read(&client, ByteRange::new(0, 2 << 20), &mut part)
            .await
            .unwrap();
        // Tokio's timers round up to milliseconds: at most one for each of the 32 pieces.
        let took = begun.elapsed().as_secs_f64();
        assert!((3.0..3.1).contains(&took), "{took}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_short_answer_is_whole_and_a_flipped_bit_is_silent() {
        let late = Behaviour {
            flipped: Some(2),
            ..Behaviour::failing(4, FaultKind::Network)
        };
        let client = over_bytes(4, Schedule::script([late]));
        let mut part = PartBuf::heap(4);
        read(&client, ByteRange::new(0, 4), &mut part)
            .await
            .unwrap();
        assert_eq!(part.filled(), [7, 7, 6, 7]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_unreadable_byte_stays_unreadable() {
        let bad = Unreadable {
            key: Some("k".into()),
            offset: 5,
            kind: FaultKind::PermissionDenied,
        };
        let client = over_bytes(
            10,
            Schedule {
                unreadable: vec![bad],
                ..Schedule::default()
            },
        );
        let mut part = PartBuf::heap(10);
        for _ in 0..2 {
            let error = read(&client, ByteRange::new(0, 10), &mut part)
                .await
                .unwrap_err();
            assert!(matches!(error, Error::PermissionDenied { .. }), "{error}");
            assert_eq!(part.filled().len(), 5);
        }
        let mut behind = PartBuf::heap(4);
        read(&client, ByteRange::new(6, 10), &mut behind)
            .await
            .unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_with_the_caller_only() {
        let client = over_bytes(
            10,
            Schedule::script([Behaviour::failing(3, FaultKind::Silence)]),
        );
        let mut part = PartBuf::heap(10);
        let day = Duration::from_secs(86_400);
        let waited =
            tokio::time::timeout(day, read(&client, ByteRange::new(0, 10), &mut part)).await;
        assert!(waited.is_err());
        assert_eq!(part.filled().len(), 3);
    }
}
