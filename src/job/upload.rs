//! A stream of bytes becomes an object, which is there whole or not at all.
//!
//! A thread of the blocking pool reads pieces; a small object goes up in one request, a larger one in parts, several at a
//! time. Before it is completed, `check` has the last word: a file that changed while it was read is given up. So is one
//! whose time is over: what S3 had before stays.

use std::io::{self, Read};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::mpsc;

use super::cutoff::Cutoff;
use crate::client::S3Client;
use crate::error::{Error, Result};
use crate::object::ObjectUri;

/// The size of a part, and of the largest object that goes up in one request. S3's least is 5 MiB.
const PART_BYTES: usize = 8 << 20;

/// Parts grow after so many: 10,000 of them then hold 4 TiB, of an object whose size is not known before.
const PARTS_PER_SIZE: usize = 1_250;

/// Bytes on their way at once: eight parts fill 2 Gb/s at S3's latency, beside the engine that feeds the trainer.
const IN_FLIGHT_BYTES: usize = 64 << 20;

/// How long the parts of an upload that is cut off are waited for to go; the bucket's lifecycle rule is patient.
const ABORT_PATIENCE: Duration = Duration::from_secs(2);

/// What became of an upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Uploaded {
    /// The object is there.
    Whole(Whole),
    /// `check` said no: nothing was changed.
    GivenUp,
    /// There was no more time. Nothing was changed, or the object is there and the answer came too late.
    CutOff,
}

/// An object that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Whole {
    pub(super) bytes: u64,
    /// If the server tells it.
    pub(super) etag: Option<String>,
}

/// The size of part `index`, from 0.
fn part_bytes(index: usize) -> usize {
    PART_BYTES << (index / PARTS_PER_SIZE).min(9)
}

/// How many parts of `bytes` fly at once.
fn parts_in_flight(bytes: usize) -> usize {
    (IN_FLIGHT_BYTES / bytes).max(1)
}

/// Uploads what `source` gives. `check` is asked when its last byte was read.
pub(super) async fn upload(
    client: &S3Client,
    uri: &ObjectUri,
    source: impl Read + Send + 'static,
    cutoff: &Cutoff,
    check: impl FnOnce() -> bool,
) -> Result<Uploaded> {
    let mut pieces = read_ahead(source);
    let failed = |error| Error::io(format!("what is uploaded to {uri}"), error);
    let Some(first) = cutoff.or_over(next(&mut pieces)).await else {
        return Ok(Uploaded::CutOff);
    };
    let first = first.map_err(failed)?.unwrap_or_default();
    if first.len() < part_bytes(0) {
        if !check() {
            return Ok(Uploaded::GivenUp);
        }
        let bytes = first.len() as u64;
        let put = cutoff.or_over(client.put(uri, first)).await;
        return put.map_or(Ok(Uploaded::CutOff), |put| {
            put.map(|etag| Uploaded::Whole(Whole { bytes, etag }))
        });
    }
    let Some(upload) = cutoff.or_over(client.start_upload(uri)).await else {
        return Ok(Uploaded::CutOff);
    };
    let upload = upload?;
    let sent = cutoff.or_over(send_all(&upload, first, &mut pieces, check));
    let outcome = sent.await.unwrap_or(Ok(Uploaded::CutOff));
    if !matches!(outcome, Ok(Uploaded::Whole(_))) {
        let aborted = tokio::time::timeout(ABORT_PATIENCE, upload.abort()).await;
        if !matches!(aborted, Ok(Ok(()))) {
            tracing::debug!(%uri, "an upload that was given up is left to the bucket's lifecycle rule");
        }
    }
    outcome
}

async fn send_all(
    upload: &crate::client::Upload,
    first: Bytes,
    pieces: &mut mpsc::Receiver<io::Result<Bytes>>,
    check: impl FnOnce() -> bool,
) -> Result<Uploaded> {
    let (parts, bytes) = send_parts(upload, first, pieces).await?;
    if !check() {
        return Ok(Uploaded::GivenUp);
    }
    let etag = upload.complete(parts, bytes).await?;
    Ok(Uploaded::Whole(Whole { bytes, etag }))
}

async fn send_parts(
    upload: &crate::client::Upload,
    first: Bytes,
    pieces: &mut mpsc::Receiver<io::Result<Bytes>>,
) -> Result<(Vec<crate::client::UploadedPart>, u64)> {
    let (mut parts, mut flying) = (Vec::new(), FuturesUnordered::new());
    let (mut size, mut number, mut piece) = (0u64, 0, Some(first));
    while let Some(bytes) = piece {
        number += 1;
        size += bytes.len() as u64;
        let limit = parts_in_flight(bytes.len().max(PART_BYTES));
        flying.push(upload.part(number, bytes));
        while flying.len() >= limit {
            parts.extend(flying.next().await.transpose()?);
        }
        let failed = |error| Error::io(format!("what is uploaded to {}", upload.uri()), error);
        piece = next(pieces).await.map_err(failed)?;
    }
    while let Some(part) = flying.next().await {
        parts.push(part?);
    }
    Ok((parts, size))
}

async fn next(pieces: &mut mpsc::Receiver<io::Result<Bytes>>) -> io::Result<Option<Bytes>> {
    pieces.recv().await.transpose()
}

/// Reads pieces of the parts' sizes, one ahead. The last one is shorter; there is none after it.
fn read_ahead(mut source: impl Read + Send + 'static) -> mpsc::Receiver<io::Result<Bytes>> {
    let (sender, pieces) = mpsc::channel(1);
    tokio::task::spawn_blocking(move || {
        for index in 0.. {
            let wanted = part_bytes(index);
            let piece = read_piece(&mut source, wanted);
            let is_last = piece.as_ref().map_or(true, |bytes| bytes.len() < wanted);
            let is_nothing = index > 0 && piece.as_ref().is_ok_and(Bytes::is_empty);
            // Nobody listens after a failure.
            if is_nothing || sender.blocking_send(piece).is_err() || is_last {
                return;
            }
        }
    });
    pieces
}

fn read_piece(source: &mut impl Read, wanted: usize) -> io::Result<Bytes> {
    let mut bytes = Vec::new();
    source.take(wanted as u64).read_to_end(&mut bytes)?;
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_thousand_parts_hold_terabytes_within_a_bounded_memory() {
        let all: u64 = (0..10_000).map(|index| part_bytes(index) as u64).sum();
        assert!(all > 2 << 40, "{all}");
        assert!(
            (0..10_000).all(|index| part_bytes(index) >= 5 << 20 && part_bytes(index) <= 5 << 30)
        );
        assert_eq!([8 << 20, 32 << 20, 1 << 30].map(parts_in_flight), [8, 2, 1]);
    }

    #[tokio::test]
    async fn pieces_are_full_but_for_the_last() {
        for (bytes, sizes) in [
            (0, vec![0]),
            (5, vec![5]),
            (PART_BYTES, vec![PART_BYTES]),
            (PART_BYTES + 3, vec![PART_BYTES, 3]),
        ] {
            let mut pieces = read_ahead(io::repeat(1).take(bytes as u64));
            let mut found = Vec::new();
            while let Some(piece) = next(&mut pieces).await.unwrap() {
                found.push(piece.len());
            }
            assert_eq!(found, sizes);
        }
    }
}
