//! A long listing as several short ones at once.
//!
//! S3 lists 1,000 keys at a time, and each page is asked for with what the one before ended with: at a latency of 36 ms
//! that makes 27,000 keys a second, whatever the link. Folders can be listed side by side. So a listing that turns out
//! to be long, in a folder that has few others in it, goes on folder by folder, several at once, and theirs do likewise.
//! Its objects come in the same order.
//!
//! That costs a request for what is in the folder, and at most [`MOST_ENTRIES`] for folders that are small. A listing
//! that is in no order (directory buckets), or whose parts may not be listed, goes on as it began.

use std::collections::VecDeque;
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt, TryStreamExt};
use tokio::sync::mpsc;

use crate::client::{Depth, ListEntry, ObjectClient};
use crate::error::{Error, Result};
use crate::object::{ObjectMeta, ObjectUri, Scheme};
use crate::runtime;

/// A listing is long after so many objects: four pages.
const LONG: usize = 4_000;
/// What a folder may have in it, so that it is worth listing its folders: one page.
const MOST_ENTRIES: usize = 1_000;
/// Folders that are listed at once. With eight the listing takes as much of a core as building the tree does.
const LANES: usize = 8;
/// What waits of each folder: 16 pages, or 5 MB.
const LANE_BATCHES: usize = 16;
/// A page.
const BATCH_OBJECTS: usize = 1_000;

/// Of a bucket that lists in no order.
const DIRECTORY_BUCKET: &str = "--x-s3";

pub(super) type Objects = BoxStream<'static, Result<ObjectMeta>>;

#[derive(Debug)]
enum Message {
    Batch(Vec<Result<ObjectMeta>>),
    /// Without it the lister died, and there may be more.
    End,
}

/// What one lister tells.
#[derive(Debug)]
struct Lane {
    is_folder: bool,
    peeked: Option<Message>,
    messages: mpsc::Receiver<Message>,
}

impl Lane {
    /// Objects that are known already.
    fn of(objects: Vec<Result<ObjectMeta>>) -> Self {
        let (sender, messages) = mpsc::channel(2);
        // There is room for both.
        let _ = sender.try_send(Message::Batch(objects));
        let _ = sender.try_send(Message::End);
        Self {
            is_folder: false,
            peeked: None,
            messages,
        }
    }

    /// Lists a folder.
    fn start(client: Arc<dyn ObjectClient>, prefix: ObjectUri) -> Self {
        let (sender, messages) = mpsc::channel(LANE_BATCHES);
        runtime::handle().spawn(async move {
            // Nobody listens any more: nothing to tell.
            let _ = walk(client, prefix, sender).await;
        });
        Self {
            is_folder: true,
            peeked: None,
            messages,
        }
    }

    async fn next(&mut self) -> Message {
        match self.peeked.take() {
            Some(message) => message,
            None => {
                (self.messages.recv().await).unwrap_or_else(|| Message::Batch(vec![Err(died())]))
            }
        }
    }

    /// Whether it begins well.
    async fn is_good(&mut self) -> bool {
        let message = self.next().await;
        let is_good =
            !matches!(&message, Message::Batch(batch) if batch.iter().any(Result::is_err));
        self.peeked = Some(message);
        is_good
    }
}

/// Every object below `prefix`, in the order of a listing.
pub(super) fn objects(client: &Arc<dyn ObjectClient>, prefix: &ObjectUri) -> Objects {
    let is_apart = prefix.scheme() == Scheme::File || prefix.bucket().ends_with(DIRECTORY_BUCKET);
    if is_apart {
        return plain(client, prefix);
    }
    let lane = Lane::start(client.clone(), prefix.clone());
    let batches = stream::unfold(Some(lane), async |lane| {
        let mut lane = lane?;
        let Message::Batch(batch) = lane.next().await else {
            return None;
        };
        let failed = batch.iter().any(Result::is_err);
        Some((stream::iter(batch), (!failed).then_some(lane)))
    });
    batches.flatten().boxed()
}

fn plain(client: &Arc<dyn ObjectClient>, prefix: &ObjectUri) -> Objects {
    let entries = client.list(prefix, Depth::All);
    let objects = entries.try_filter_map(async |entry| {
        Ok(match entry {
            ListEntry::Object(meta) => Some(meta),
            ListEntry::Prefix(_) => None,
        })
    });
    objects.boxed()
}

fn died() -> Error {
    Error::Internal {
        what: "a part of the listing".into(),
    }
}

/// The receiver is gone, or has been told of an error: in both cases there is nothing left to do.
struct Over;

async fn send(to: &mpsc::Sender<Message>, batch: Vec<Result<ObjectMeta>>) -> Result<(), Over> {
    let failed = batch.iter().any(Result::is_err);
    to.send(Message::Batch(batch)).await.map_err(|_| Over)?;
    if failed { Err(Over) } else { Ok(()) }
}

/// Lists page by page, and folder by folder once that is worth it. Boxed, because it starts others like itself.
fn walk(
    client: Arc<dyn ObjectClient>,
    prefix: ObjectUri,
    to: mpsc::Sender<Message>,
) -> BoxFuture<'static, Result<(), Over>> {
    async move {
        let mut batches = plain(&client, &prefix).ready_chunks(BATCH_OBJECTS);
        let (mut passed, mut last) = (0, String::new());
        while let Some(batch) = batches.next().await {
            let was_long = passed >= LONG;
            passed += batch.len();
            let is_in_order = in_order(&mut last, &batch);
            send(&to, batch).await?;
            if was_long || passed < LONG || !is_in_order {
                continue;
            }
            if let Some(fan) = Fan::open(&client, &prefix, &last).await {
                fan.rest_of(batches, &to).await?;
                fan.drain(&to).await?;
                break;
            }
        }
        to.send(Message::End).await.map_err(|_| Over)
    }
    .boxed()
}

/// Whether the batch goes on behind `last`, which becomes its last key.
fn in_order(last: &mut String, batch: &[Result<ObjectMeta>]) -> bool {
    let keys = batch.iter().flatten().map(|meta| meta.id.uri.key());
    let mut is_in_order = true;
    for key in keys {
        is_in_order &= last.as_str() < key;
        key.clone_into(last);
    }
    is_in_order
}

/// What is left of a listing, folder by folder.
struct Fan {
    client: Arc<dyn ObjectClient>,
    /// The folder that is being listed: it goes on as it began.
    current: Option<String>,
    rest: VecDeque<ListEntry>,
    lanes: VecDeque<Lane>,
}

impl Fan {
    /// `None` when there is nothing to gain, or it can't be done. Begins listing.
    async fn open(client: &Arc<dyn ObjectClient>, prefix: &ObjectUri, last: &str) -> Option<Self> {
        let entries = client.list(prefix, Depth::OneLevel);
        let entries: Vec<ListEntry> = entries.take(MOST_ENTRIES + 1).try_collect().await.ok()?;
        let (current, rest) = behind(last, entries)?;
        let mut fan = Self {
            client: client.clone(),
            current,
            rest,
            lanes: VecDeque::new(),
        };
        fan.fill();
        // A policy may allow the whole and not its parts.
        let folder = fan.lanes.iter_mut().find(|lane| lane.is_folder)?;
        folder.is_good().await.then_some(fan)
    }

    fn fill(&mut self) {
        while self.lanes.len() < LANES {
            let mut objects = Vec::new();
            let folder = loop {
                match self.rest.pop_front() {
                    Some(ListEntry::Object(meta)) => objects.push(Ok(meta)),
                    Some(ListEntry::Prefix(folder)) => break Some(folder),
                    None => break None,
                }
            };
            if !objects.is_empty() {
                self.lanes.push_back(Lane::of(objects));
            }
            let Some(folder) = folder else {
                return;
            };
            let lane = Lane::start(self.client.clone(), folder);
            self.lanes.push_back(lane);
        }
    }

    /// The end of the folder that the listing is in.
    async fn rest_of(
        &self,
        batches: impl futures::Stream<Item = Vec<Result<ObjectMeta>>>,
        to: &mpsc::Sender<Message>,
    ) -> Result<(), Over> {
        let Some(current) = &self.current else {
            return Ok(());
        };
        let is_in = |object: &Result<ObjectMeta>| match object {
            Ok(meta) => meta.id.uri.key().starts_with(current),
            Err(_) => true,
        };
        let mut batches = std::pin::pin!(batches);
        while let Some(mut batch) = batches.next().await {
            let inside = batch.iter().take_while(|object| is_in(object)).count();
            let is_over = inside < batch.len();
            batch.truncate(inside);
            send(to, batch).await?;
            if is_over {
                break;
            }
        }
        Ok(())
    }

    async fn drain(mut self, to: &mpsc::Sender<Message>) -> Result<(), Over> {
        while let Some(mut lane) = self.lanes.pop_front() {
            self.fill();
            while let Message::Batch(batch) = lane.next().await {
                send(to, batch).await?;
            }
        }
        Ok(())
    }
}

/// The folder that the key `last` is in, and what comes behind it; `None` unless there are two folders at least, and not
/// too much of anything.
fn behind(last: &str, entries: Vec<ListEntry>) -> Option<(Option<String>, VecDeque<ListEntry>)> {
    let is_in_order = entries.is_sorted_by(|a, b| name(a) < name(b));
    if entries.len() > MOST_ENTRIES || !is_in_order {
        return None;
    }
    let is_folder = |entry: &ListEntry| matches!(entry, ListEntry::Prefix(_));
    let current = entries
        .iter()
        .find(|entry| is_folder(entry) && last.starts_with(name(entry)));
    let current = current.map(|entry| name(entry).to_owned());
    let is_behind =
        |entry: &ListEntry| name(entry) > last && current.as_deref() != Some(name(entry));
    let rest: VecDeque<ListEntry> = entries.into_iter().filter(is_behind).collect();
    let folders = rest.iter().filter(|entry| is_folder(entry)).count();
    (folders >= 2).then_some((current, rest))
}

fn name(entry: &ListEntry) -> &str {
    match entry {
        ListEntry::Object(meta) => meta.id.uri.key(),
        ListEntry::Prefix(uri) => uri.key(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use crate::buffer::PartBuf;
    use crate::client::{GetMeta, MemoryClient};
    use crate::object::{ByteRange, ObjectId};

    /// A store that counts its listings, takes a millisecond for each thousand keys, and may refuse some.
    #[derive(Debug)]
    struct Slow {
        inner: MemoryClient,
        refuses: fn(&str, Depth) -> bool,
        listings: AtomicUsize,
        at_once: AtomicUsize,
        most_at_once: AtomicUsize,
    }

    impl ObjectClient for Slow {
        fn head<'a>(&'a self, uri: &'a ObjectUri) -> BoxFuture<'a, Result<ObjectMeta>> {
            self.inner.head(uri)
        }

        fn get<'a>(
            &'a self,
            id: &'a ObjectId,
            range: ByteRange,
            into: &'a mut PartBuf,
        ) -> BoxFuture<'a, Result<GetMeta>> {
            self.inner.get(id, range, into)
        }

        fn list(&self, prefix: &ObjectUri, depth: Depth) -> BoxStream<'static, Result<ListEntry>> {
            self.listings.fetch_add(1, Ordering::SeqCst);
            if (self.refuses)(prefix.key(), depth) {
                let uri = prefix.to_string();
                return stream::iter([Err(Error::PermissionDenied {
                    uri,
                    offset: None,
                    answer: Box::default(),
                })])
                .boxed();
            }
            let at_once = self.at_once.fetch_add(1, Ordering::SeqCst) + 1;
            self.most_at_once.fetch_max(at_once, Ordering::SeqCst);
            let slowly = self
                .inner
                .list(prefix, depth)
                .enumerate()
                .then(async |(at, entry)| {
                    if at % 1000 == 0 {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                    entry
                });
            slowly.boxed()
        }
    }

    fn store(
        keys: impl IntoIterator<Item = String>,
        refuses: fn(&str, Depth) -> bool,
    ) -> Arc<Slow> {
        let inner = MemoryClient::default();
        for key in keys {
            inner.put(format!("memory://b/{key}").parse().unwrap(), "x");
        }
        Arc::new(Slow {
            inner,
            refuses,
            listings: AtomicUsize::new(0),
            at_once: AtomicUsize::new(0),
            most_at_once: AtomicUsize::new(0),
        })
    }

    fn listed(store: &Arc<Slow>, prefix: &str) -> Vec<Result<String>> {
        let client: Arc<dyn ObjectClient> = store.clone();
        let prefix = format!("memory://b/{prefix}").parse().unwrap();
        let keys = objects(&client, &prefix).map(|object| Ok(object?.id.uri.key().to_owned()));
        runtime::handle().block_on(keys.collect())
    }

    fn all(listed: Vec<Result<String>>) -> Vec<String> {
        listed.into_iter().map(Result::unwrap).collect()
    }

    /// Folders within folders, objects beside them, and names that sort around `/`.
    fn keys() -> Vec<String> {
        let mut keys: Vec<String> = Vec::new();
        for top in ["d/a", "d/a-b", "d/b", "d/c/x", "d/c/y", "d/c/z", "d/e"] {
            keys.extend((0..2_500).map(|n| format!("{top}/{n:05}")));
        }
        keys.extend((0..300).map(|n| format!("d/f{n:03}/only")));
        keys.extend(["d/a.txt", "d/b", "d/c", "d/zz", "d/b/"].map(String::from));
        keys.sort();
        keys
    }

    #[test]
    fn a_long_listing_is_the_same_by_folders() {
        let store = store(keys(), |_, _| false);
        assert_eq!(all(listed(&store, "d/")), keys());
        let at_once = store.most_at_once.load(Ordering::SeqCst);
        assert!(at_once >= LANES, "{at_once}");
        // One of the whole, one of its level, and one of each folder behind the one that was listed by then.
        let listings = store.listings.load(Ordering::SeqCst);
        assert!((300..=320).contains(&listings), "{listings}");
    }

    #[test]
    fn what_has_no_folders_or_too_many_goes_on_as_it_began() {
        let flat: Vec<String> = (0..9_000).map(|n| format!("d/{n:05}")).collect();
        let many: Vec<String> = (0..9_000).map(|n| format!("d/{n:05}/only")).collect();
        for keys in [flat, many] {
            let store = store(keys.clone(), |_, _| false);
            assert_eq!(all(listed(&store, "d/")), keys);
            assert_eq!(store.listings.load(Ordering::SeqCst), 2);
        }
    }

    #[test]
    fn what_may_not_be_listed_by_folders_goes_on_as_it_began() {
        let refusals: [fn(&str, Depth) -> bool; 2] = [
            |_, depth| depth == Depth::OneLevel,
            |prefix, depth| depth == Depth::All && prefix != "d/",
        ];
        for refuses in refusals {
            assert_eq!(all(listed(&store(keys(), refuses), "d/")), keys());
        }
    }

    #[test]
    fn a_folder_that_fails_ends_the_listing_with_its_error() {
        let store = store(keys(), |prefix, depth| {
            depth == Depth::All && prefix == "d/e/"
        });
        let listed = listed(&store, "d/");
        let (failed, good) = listed.split_last().unwrap();
        assert!(
            matches!(failed, Err(Error::PermissionDenied { uri, .. }) if uri.ends_with("d/e/"))
        );
        let good: Vec<&String> = good.iter().map(|key| key.as_ref().unwrap()).collect();
        let expected = keys();
        let expected: Vec<&String> = expected
            .iter()
            .filter(|key| key.as_str() < "d/e/")
            .collect();
        assert_eq!(good, expected);
    }
}
