//! A manifest's bytes: all of them, in memory, of one version, compared with their checksum where there is one.

use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};

use crate::buffer::PartBuf;
use crate::checksum::Checksum;
use crate::client::ObjectClient;
use crate::error::{Error, Result};
use crate::object::{ByteRange, ObjectUri};

/// The largest manifest: ten million lines of 200 bytes. More than that belongs into several channels.
const MAX_MANIFEST_BYTES: u64 = 2 << 30;

/// What one request fetches, and how many are under way.
const PIECE_BYTES: u64 = 8 << 20;
const PIECES_AHEAD: usize = 8;

/// Reads a whole object.
pub(super) async fn fetch(client: &Arc<dyn ObjectClient>, uri: &ObjectUri) -> Result<Bytes> {
    let meta = client.head(uri).await?;
    if meta.size_bytes > MAX_MANIFEST_BYTES {
        let reason = format!(
            "a manifest of {} bytes: split it over several channels, {MAX_MANIFEST_BYTES} bytes each at most",
            meta.size_bytes
        );
        return Err(Error::config(uri.to_string(), reason));
    }
    let pieces = (0..meta.size_bytes.div_ceil(PIECE_BYTES)).map(|piece| {
        let start = piece * PIECE_BYTES;
        let range = ByteRange::new(start, (start + PIECE_BYTES).min(meta.size_bytes));
        let (client, id) = (client.clone(), meta.id.clone());
        async move {
            let mut part = PartBuf::heap(range.len() as usize);
            client.get(&id, range, &mut part).await?;
            Ok::<_, Error>(part.freeze())
        }
    });
    let pieces: Vec<Bytes> = stream::iter(pieces)
        .buffered(PIECES_AHEAD)
        .try_collect()
        .await?;
    let text: Bytes = match <[Bytes; 1]>::try_from(pieces) {
        Ok([only]) => only,
        Err(pieces) => pieces.concat().into(),
    };
    match meta.checksum {
        Some(expected) if Checksum::of(expected.algorithm, &text) != expected => {
            Err(Error::Corrupt {
                uri: uri.to_string(),
                offset: 0,
                reason: "the manifest's bytes do not have its checksum".into(),
                answer: Box::default(),
            })
        }
        _ => Ok(text),
    }
}
