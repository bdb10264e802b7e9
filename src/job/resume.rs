//! Where a run goes on: what a cursor means at the granularity that is wanted.
//!
//! The finest place that is known is a byte: what the trainer has taken out of the pipe. A trainer that reads records cannot
//! begin in the middle of one, so at granularity `record` the object is read from its beginning up to that byte, here and
//! not by the trainer, and the last boundary before it is taken. Where records are not known (no format, a compressed
//! object) it is the object's beginning: data is rather read twice than left out.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};

use super::cursor::{ChannelCursor, Course};
use crate::checksum::ChecksumPolicy;
use crate::error::{Error, Result};
use crate::input::{Channel, Item, Script};
use crate::object::{ObjectId, ObjectMeta, ObjectUri};
use crate::pipe::{Content, EpochStream};
use crate::prefetch::Prefetcher;
use crate::record::{Codec, Decoding, Dialect, RecordFormat};

/// How precisely a run goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Resume {
    /// It does not: every channel begins with its first epoch, as on the platform.
    #[default]
    Off,
    /// At the beginning of the epoch.
    Epoch,
    /// At the beginning of the object, or of an augmented manifest's line.
    Object,
    /// At the beginning of the record.
    Record,
    /// At the byte.
    Offset,
}

/// The first epoch of a channel that goes on at a cursor.
pub(super) fn epoch(
    content: &Content,
    channel: &Channel,
    course: &Course,
    at: &ChannelCursor,
) -> Result<EpochStream> {
    let skipped = course.skipped_objects.clone();
    if let Some(line) = lines_before(channel, skipped.load(Ordering::Relaxed)) {
        return content.epoch_from_line(course.first_epoch, line);
    }
    let (object, offset) = (at.object.clone(), at.offset);
    let first_byte = move |meta: &ObjectMeta| match object {
        Some(object) if object == meta.id.uri.to_string() => offset,
        _ => 0,
    };
    let at = at.clone();
    content.epoch_from(
        course.first_epoch,
        |objects| from_cursor(objects, at, skipped),
        first_byte,
    )
}

/// Whole lines among so many attributes of an augmented manifest; none of other channels.
pub(super) fn lines_before(channel: &Channel, attributes: u64) -> Option<usize> {
    let is_augmented = channel.data_type == crate::input::S3DataType::AugmentedManifestFile;
    let each = channel.attribute_names.len().max(1) as u64;
    is_augmented.then(|| usize::try_from(attributes / each).unwrap_or(usize::MAX))
}

/// Looks at what the cursor points to, before anything is served: whether it is still there, and where its record begins.
pub(super) async fn settle(
    engine: &Prefetcher,
    channel: &Channel,
    content: &Content,
    (resume, checksums): (Resume, ChecksumPolicy),
    at: &mut ChannelCursor,
) -> Result<()> {
    if let Some(script) = content.agenda().script(at.epoch).transpose()? {
        return is_same_attribute(script, at);
    }
    // What is read from the middle cannot be verified.
    let must_verify = checksums == ChecksumPolicy::Require;
    match resume {
        Resume::Record if !must_verify => at.offset = record_start(engine, channel, at).await?,
        Resume::Offset if !must_verify => {}
        _ => at.offset = 0,
    }
    Ok(())
}

fn is_same_attribute(mut script: Script, at: &ChannelCursor) -> Result<()> {
    let place = usize::try_from(at.objects_before).unwrap_or(usize::MAX);
    let (Some(before), step) = (&at.object, script.nth(place)) else {
        return Ok(());
    };
    let now = step.map(|step| match step.item {
        Item::Object(uri) => uri.to_string(),
        Item::Text(_) => script.text_origin(step.place).0.uri.to_string(),
    });
    match now {
        Some(now) if now == *before => Ok(()),
        now => Err(changed(at, now.unwrap_or_else(|| "not there".into()))),
    }
}

/// Where the record begins that byte `at.offset` is of.
async fn record_start(engine: &Prefetcher, channel: &Channel, at: &ChannelCursor) -> Result<u64> {
    let Some(uri) = at.object.as_deref().filter(|_| at.offset > 0) else {
        return Ok(0);
    };
    let uri: ObjectUri = uri.parse()?;
    let Some(format) = format_of(channel.content_type.as_deref(), uri.key()) else {
        return Ok(0);
    };
    let id = ObjectId {
        etag: at.etag.as_deref().map(Into::into),
        ..ObjectId::unpinned(uri.clone())
    };
    let (mut reader, mut decoder) = (engine.read(id)?, Decoding::new(format).decoder(uri.key()));
    let (mut seen, mut start) = (0u64, 0);
    while seen < at.offset {
        let chunk = match reader.next_chunk().await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => return Err(changed(at, format!("{seen} bytes long"))),
            Err(error @ (Error::Changed { .. } | Error::NotFound { .. })) => {
                return Err(changed(at, error.to_string()));
            }
            Err(error) => return Err(error),
        };
        let wanted = (at.offset - seen).min(chunk.bytes.len() as u64);
        seen += wanted;
        decoder.push(chunk.bytes.slice(..wanted as usize));
        loop {
            match decoder.next_record() {
                Ok(Some(record)) => start = record.end,
                Ok(None) => break,
                Err(flaw) => {
                    let error = flaw.of(&uri);
                    tracing::warn!(%error, "its records cannot be found: the object is read from its beginning");
                    return Ok(0);
                }
            }
        }
        if decoder.codec().is_some_and(|codec| codec != Codec::None) {
            return Ok(0);
        }
    }
    Ok(start)
}

/// How an object is cut into records: its channel's type says so, else its key's suffix.
fn format_of(content_type: Option<&str>, key: &str) -> Option<RecordFormat> {
    let media = content_type.map(|text| text.split(';').next().unwrap_or(text).trim());
    match media {
        Some("application/x-recordio" | "application/x-recordio-protobuf") => {
            Some(RecordFormat::RecordIo(Dialect::Aws))
        }
        Some("application/x-tfrecord" | "application/tfrecord") => Some(RecordFormat::TfRecord),
        Some("application/x-tar") => Some(RecordFormat::Tar),
        Some("application/jsonlines" | "application/x-ndjson") => Some(RecordFormat::Lines),
        Some(media) if media.starts_with("text/") => Some(RecordFormat::Lines),
        _ => RecordFormat::of_key(key).map(|format| match format {
            // Framed alike; what a record says is not looked at.
            RecordFormat::RecordIoProtobuf => RecordFormat::RecordIo(Dialect::Aws),
            RecordFormat::JsonLines => RecordFormat::Lines,
            format => format,
        }),
    }
}

/// An epoch's objects without those that were left behind. The first one must be the one that was read; if all of it was,
/// it is one more in `skipped`.
fn from_cursor(
    objects: BoxStream<'static, Result<ObjectMeta>>,
    at: ChannelCursor,
    skipped: Arc<AtomicU64>,
) -> BoxStream<'static, Result<ObjectMeta>> {
    let state = (objects, at.objects_before, Some(at), skipped);
    let rest = futures::stream::try_unfold(state, |state| async move {
        let (mut objects, mut skip, mut due, skipped) = state;
        loop {
            let Some(meta) = objects.try_next().await? else {
                // Not reached: an epoch that is over at once would look like one that was read.
                due.map_or(Ok(()), |at| is_empty_too(&at))?;
                return Ok(None);
            };
            if skip > 0 {
                skip -= 1;
                continue;
            }
            if let Some(at) = due.take() {
                is_same(&at, &meta)?;
                // Its last byte was taken, too. Of an object that could not be listed the size is not known yet.
                let size_bytes = meta.id.size_bytes;
                if at.offset > 0 && size_bytes.is_some_and(|size| at.offset >= size) {
                    skipped.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
            }
            return Ok(Some((meta, (objects, skip, due, skipped))));
        }
    });
    rest.boxed()
}

fn is_empty_too(at: &ChannelCursor) -> Result<()> {
    match at.objects_before == 0 && at.object.is_none() {
        true => Ok(()),
        false => Err(changed(at, "not there".into())),
    }
}

fn changed(at: &ChannelCursor, now: String) -> Error {
    let before = at.object.as_deref().unwrap_or("another");
    Error::unusable(
        format!("object {} of epoch {}", at.objects_before, at.epoch),
        format!(
            "is {now}, and when the checkpoint was made it was {before}: the input has changed"
        ),
        "run with --resume epoch, which repeats the epoch, or with --resume off",
    )
}

fn is_same(at: &ChannelCursor, meta: &ObjectMeta) -> Result<()> {
    let Some(object) = &at.object else {
        return Ok(());
    };
    let now = meta.id.etag.as_deref();
    // What could not be listed has no ETag before it is read.
    let is_version = now.is_none() || at.etag.is_none() || at.etag.as_deref() == now;
    match *object == meta.id.uri.to_string() && is_version {
        true => Ok(()),
        false => Err(changed(at, meta.id.uri.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{Depth, ListEntry, MemoryClient, ObjectClient};
    use crate::metrics::Metrics;
    use crate::prefetch::PrefetchConfig;

    fn at(object: &str, objects_before: u64, offset: u64) -> ChannelCursor {
        ChannelCursor {
            source: "memory://b/".into(),
            seed: None,
            epoch: 0,
            objects_before,
            object: Some(object.into()),
            etag: None,
            offset,
        }
    }

    #[tokio::test]
    async fn the_object_where_it_goes_on_must_be_the_same() {
        let client = MemoryClient::default();
        for key in ["a", "b", "c"] {
            client.put(format!("memory://b/{key}").parse().unwrap(), key.to_owned());
        }
        let list = || {
            let entries = client.list(&"memory://b/".parse().unwrap(), Depth::All);
            let objects = entries.try_filter_map(|entry| async move {
                Ok(match entry {
                    ListEntry::Object(meta) => Some(meta),
                    ListEntry::Prefix(_) => None,
                })
            });
            objects.boxed()
        };
        let metas: Vec<ObjectMeta> = list().try_collect().await.unwrap();
        let mut at = at("memory://b/b", 1, 0);
        at.etag = metas[1].id.etag.as_deref().map(str::to_owned);
        let rest: Vec<ObjectMeta> = from_cursor(list(), at.clone(), Arc::default())
            .try_collect()
            .await
            .unwrap();
        assert_eq!(rest, metas[1..]);
        // All of it was taken: the next one is due.
        let taken = ChannelCursor {
            offset: 1,
            ..at.clone()
        };
        let skipped = Arc::new(AtomicU64::new(1));
        let rest = from_cursor(list(), taken, skipped.clone());
        let rest: Vec<ObjectMeta> = rest.try_collect().await.unwrap();
        assert_eq!(rest, metas[2..]);
        assert_eq!(
            skipped.load(Ordering::Relaxed),
            2,
            "it counts as left behind"
        );
        // Of one that cannot be listed nothing is known but its name: it is not taken for another, nor for an empty one.
        let unseen = ObjectMeta {
            id: ObjectId::unpinned(metas[1].id.uri.clone()),
            size_bytes: 0,
            last_modified: None,
            checksum_algorithm: None,
            checksum: None,
        };
        let taken = ChannelCursor {
            objects_before: 0,
            offset: 1,
            ..at.clone()
        };
        let listed = futures::stream::iter([Ok(unseen.clone())]).boxed();
        let rest = from_cursor(listed, taken, Arc::default());
        let rest: Vec<ObjectMeta> = rest.try_collect().await.unwrap();
        assert_eq!(rest, [unseen]);
        client.put("memory://b/b".parse().unwrap(), "new");
        let changed: Result<Vec<_>> = from_cursor(list(), at.clone(), Arc::default())
            .try_collect()
            .await;
        assert!(changed.unwrap_err().to_string().contains("memory://b/b"));
        // It shrank: nothing is left behind what was read, which is no end of an epoch.
        for (objects_before, object) in [(3, None), (9, at.object.clone())] {
            let at = ChannelCursor {
                objects_before,
                object,
                ..at.clone()
            };
            let shrunk: Result<Vec<_>> =
                from_cursor(list(), at, Arc::default()).try_collect().await;
            let told = shrunk.unwrap_err().to_string();
            assert!(told.contains("not there"), "{told}");
        }
    }

    #[tokio::test]
    async fn a_record_begins_at_the_last_boundary_before_the_byte() {
        let client = MemoryClient::default();
        let mut records = Vec::new();
        for payload in [&b"first"[..], b"the second", b"3"] {
            crate::record::recordio::encode(payload, u32::MAX, &mut records);
        }
        client.put("memory://b/x.rec".parse().unwrap(), records);
        client.put("memory://b/x.csv".parse().unwrap(), "1,2\n3,4\n5,6\n");
        client.put("memory://b/x.bin".parse().unwrap(), "1,2\n3,4\n5,6\n");
        client.put(
            "memory://b/x.tfrecord".parse().unwrap(),
            "no such records, but long",
        );
        let metrics = Arc::new(Metrics::default());
        let engine = Prefetcher::on(
            tokio::runtime::Handle::current(),
            Arc::new(client),
            PrefetchConfig::default(),
            metrics,
        )
        .unwrap();
        let plain: Channel = "train=memory://b/".parse().unwrap();
        let typed: Channel = "train=memory://b/,content-type=text/csv; charset=utf-8"
            .parse()
            .unwrap();
        for (channel, key, offset, start) in [
            (&plain, "x.rec", 15, 0),
            (&plain, "x.rec", 16, 16),
            (&plain, "x.rec", 35, 16),
            (&plain, "x.rec", 36, 36),
            (&plain, "x.rec", 48, 48),
            (&plain, "x.csv", 7, 4),
            (&plain, "x.csv", 8, 8),
            (&plain, "x.bin", 7, 0),
            (&typed, "x.bin", 7, 4),
            (&plain, "x.tfrecord", 20, 0),
        ] {
            let at = at(&format!("memory://b/{key}"), 0, offset);
            let found = record_start(&engine, channel, &at).await.unwrap();
            assert_eq!(found, start, "{key} {offset}");
        }
        let beyond = record_start(&engine, &plain, &at("memory://b/x.csv", 0, 99)).await;
        assert!(beyond.unwrap_err().to_string().contains("12 bytes long"));
    }

    #[test]
    fn attributes_are_resumed_by_whole_lines() {
        let text = "train=s3://b/m.jsonl,s3-data-type=augmented,attribute-names=a-ref:b:c";
        let channel: Channel = text.parse().unwrap();
        assert_eq!(
            [0, 2, 3, 8].map(|n| lines_before(&channel, n)),
            [Some(0), Some(0), Some(1), Some(2)]
        );
        assert_eq!(lines_before(&"train=s3://b/".parse().unwrap(), 8), None);
    }
}
