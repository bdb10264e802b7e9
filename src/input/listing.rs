//! Every object under a prefix, in order, listed in several places at once where the listing is long.
//!
//! A listing of a million keys is a thousand requests of a tenth of a second, one after the other. Here the first
//! [`UNIT_KEYS`] are asked for in order, so that a short listing costs what it always did and the first keys are there at
//! once. What lies behind them is cut into ranges ([`cuts`]), [`AT_ONCE`] of which are listed side by side; one that turns
//! out long is cut again when its turn comes. What is ahead waits, at most `AT_ONCE` units of it
//! ([`MOST_UNIT_KEYS`]: about 40 MB, for the time of the listing).
//!
//! That takes a server whose listing can begin anywhere and is in the order of its keys. One that shows anything else in
//! its first keys is listed in one go; an order that is lost later is an error, because keys could be lost with it.

use std::collections::VecDeque;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::task::JoinSet;

use super::ranges::cuts;
use crate::client::{Depth, ListEntry, ObjectClient};
use crate::error::{Error, Result};
use crate::object::{ObjectMeta, ObjectUri};
use crate::runtime;

/// Keys of a range after which it is thought about: four pages, so that the page that is asked for in vain where a range
/// ends weighs little.
const UNIT_KEYS: usize = 4000;

/// Keys of a range that cannot be cut, after which it waits for its turn all the same.
const MOST_UNIT_KEYS: usize = 3 * UNIT_KEYS;

/// Ranges listed at once: a page each in 0.1 s come to 160,000 keys a second, about what a core can parse.
const AT_ONCE: usize = 16;

type Entries = BoxStream<'static, Result<ListEntry>>;

/// The objects under `prefix`, as `list` with [`Depth::All`] gives them.
pub(crate) fn every_object(
    client: &Arc<dyn ObjectClient>,
    prefix: &ObjectUri,
) -> BoxStream<'static, Result<ObjectMeta>> {
    let listing = Listing {
        client: client.clone(),
        prefix: prefix.clone(),
        ready: VecDeque::new(),
        failed: None,
        state: State::Whole(Range {
            until: None,
            entries: client.list(prefix, Depth::All),
            first: String::new(),
            last: String::new(),
            seen: 0,
        }),
    };
    stream::unfold(listing, |mut listing| async move {
        Some((listing.next().await?, listing))
    })
    .boxed()
}

struct Listing {
    client: Arc<dyn ObjectClient>,
    prefix: ObjectUri,
    /// What comes next.
    ready: VecDeque<ObjectMeta>,
    /// What comes after that, and is the end.
    failed: Option<Error>,
    state: State,
}

enum State {
    /// In one go, entry by entry, as long as it may be short.
    Whole(Range),
    /// In one go for good.
    Uncut(Entries),
    /// In ranges, in order.
    Cut(VecDeque<Slot>),
    Over,
}

enum Slot {
    Waiting(Range),
    /// One task; dropping the set stops it.
    Running(JoinSet<Unit>),
}

/// A listing up to the key `until`.
struct Range {
    until: Option<String>,
    entries: Entries,
    /// The first key of the latest unit, the last one, and how many there were.
    first: String,
    last: String,
    seen: usize,
}

/// What listing a range for a while gave.
struct Unit {
    objects: Vec<ObjectMeta>,
    end: End,
}

enum End {
    /// The range has no more.
    Done,
    /// It goes on.
    More(Range),
    Failed(Error),
}

impl Listing {
    async fn next(&mut self) -> Option<Result<ObjectMeta>> {
        loop {
            if let Some(meta) = self.ready.pop_front() {
                return Some(Ok(meta));
            }
            if let Some(error) = self.failed.take() {
                self.state = State::Over;
                return Some(Err(error));
            }
            match std::mem::replace(&mut self.state, State::Over) {
                State::Over => return None,
                State::Uncut(mut entries) => {
                    let entry = entries.next().await?;
                    self.state = State::Uncut(entries);
                    self.pass(entry);
                }
                State::Whole(mut range) => {
                    let entry = range.entries.next().await?;
                    if let Ok(ListEntry::Object(meta)) = &entry {
                        let in_order = range.note(meta.id.uri.key());
                        self.state = match in_order {
                            true => self.cut_if_long(range),
                            false => State::Uncut(range.entries),
                        };
                    } else {
                        self.state = State::Whole(range);
                    }
                    self.pass(entry);
                }
                State::Cut(ranges) => self.turn(ranges).await,
            }
        }
    }

    fn pass(&mut self, entry: Result<ListEntry>) {
        match entry {
            Ok(ListEntry::Object(meta)) => self.ready.push_back(meta),
            Ok(ListEntry::Prefix(_)) => {}
            Err(error) => self.failed = Some(error),
        }
    }

    fn cut_if_long(&self, range: Range) -> State {
        if !range.seen.is_multiple_of(UNIT_KEYS) {
            return State::Whole(range);
        }
        match self.cut(range) {
            Ok(ranges) => State::Cut(ranges.into_iter().map(Slot::Waiting).collect()),
            Err(mut whole) => {
                whole.first.clear();
                State::Whole(*whole)
            }
        }
    }

    /// Cuts what is left of a range; gives it back where there is no place or no way to.
    fn cut(&self, mut range: Range) -> std::result::Result<Vec<Range>, Box<Range>> {
        let until = range.until.take();
        let cuts = cuts(
            self.prefix.key().len(),
            &range.first,
            &range.last,
            until.as_deref(),
        );
        let begun: Option<Vec<Entries>> = cuts
            .iter()
            .map(|cut| self.client.list_after(&self.prefix, cut))
            .collect();
        let Some(begun) = begun.filter(|begun| !begun.is_empty()) else {
            range.until = until;
            return Err(Box::new(range));
        };
        let ends = cuts[1..].iter().cloned().map(Some).chain([until]);
        let behind = begun
            .into_iter()
            .zip(&cuts)
            .zip(ends)
            .map(|((entries, cut), until)| Range {
                until,
                entries,
                first: String::new(),
                last: cut.clone(),
                seen: 0,
            });
        range.until = Some(cuts[0].clone());
        Ok(std::iter::once(range).chain(behind).collect())
    }

    /// Takes what the first range has brought, with those behind it under way.
    async fn turn(&mut self, mut ranges: VecDeque<Slot>) {
        start(&mut ranges, self.prefix.key().len());
        let Some(Slot::Running(mut task)) = ranges.pop_front() else {
            return;
        };
        let unit = joined(task.join_next().await);
        self.ready.extend(unit.objects);
        match unit.end {
            End::Done => {}
            End::Failed(error) => self.failed = Some(error),
            End::More(range) => {
                let rest = self.cut(range).unwrap_or_else(|whole| vec![*whole]);
                rest.into_iter()
                    .rev()
                    .for_each(|range| ranges.push_front(Slot::Waiting(range)));
            }
        }
        self.state = State::Cut(ranges);
    }
}

fn start(ranges: &mut VecDeque<Slot>, prefix_bytes: usize) {
    for slot in ranges.iter_mut().take(AT_ONCE) {
        if let Slot::Waiting(_) = slot
            && let Slot::Waiting(range) = std::mem::replace(slot, Slot::Running(JoinSet::new()))
            && let Slot::Running(task) = slot
        {
            task.spawn_on(range.unit(prefix_bytes), &runtime::handle());
        }
    }
}

impl Range {
    /// Takes note of a key; false when it comes before the one that was there.
    fn note(&mut self, key: &str) -> bool {
        let in_order = self.last.is_empty() || *self.last < *key;
        if self.first.is_empty() {
            self.first = key.into();
        }
        key.clone_into(&mut self.last);
        self.seen += 1;
        in_order
    }

    /// Whether there is a place to cut at what the latest keys show.
    fn can_be_cut(&self, prefix_bytes: usize) -> bool {
        !cuts(prefix_bytes, &self.first, &self.last, self.until.as_deref()).is_empty()
    }

    /// Lists until its end, or until it is long and can be cut.
    async fn unit(mut self, prefix_bytes: usize) -> Unit {
        let mut objects = Vec::new();
        self.first.clear();
        let end = loop {
            if !objects.is_empty() && objects.len().is_multiple_of(UNIT_KEYS) {
                if objects.len() >= MOST_UNIT_KEYS || self.can_be_cut(prefix_bytes) {
                    break End::More(self);
                }
                self.first.clear();
            }
            match self.entries.next().await {
                None => break End::Done,
                Some(Err(error)) => break End::Failed(error),
                Some(Ok(ListEntry::Prefix(_))) => {}
                Some(Ok(ListEntry::Object(meta))) => {
                    let key = meta.id.uri.key();
                    if self.until.as_deref().is_some_and(|until| key > until) {
                        break End::Done;
                    }
                    if self.seen == 0 && key <= self.last.as_str() {
                        // From a server that cannot begin inside of a listing and does not say so.
                        continue;
                    }
                    if !self.note(key) {
                        break End::Failed(disordered(&meta.id.uri));
                    }
                    objects.push(meta);
                }
            }
        };
        Unit { objects, end }
    }
}

fn disordered(uri: &ObjectUri) -> Error {
    Error::Protocol {
        uri: uri.to_string(),
        offset: 0,
        reason: "bad listing: this key came behind one that is greater, though the keys before came in order".into(),
        answer: Box::default(),
    }
}

/// The task is aborted only together with the runtime.
fn joined(unit: Option<std::result::Result<Unit, tokio::task::JoinError>>) -> Unit {
    match unit {
        Some(Ok(unit)) => unit,
        Some(Err(error)) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        _ => Unit {
            objects: Vec::new(),
            end: End::Failed(Error::Cancelled),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::PartBuf;
    use crate::client::{GetMeta, MemoryClient};
    use crate::object::{ByteRange, ObjectId};
    use futures::TryStreamExt;
    use futures::future::BoxFuture;
    use std::sync::Mutex;

    /// Notes where listings begin; may list in its own order, and break.
    #[derive(Debug, Default)]
    struct Lister {
        inner: MemoryClient,
        begun: Mutex<Vec<String>>,
        reversed: bool,
        cannot_begin_inside: bool,
        /// A listing that begins behind this key fails after so many.
        breaks: Option<(String, usize)>,
    }

    impl ObjectClient for Lister {
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

        fn list(&self, prefix: &ObjectUri, depth: Depth) -> Entries {
            self.begun.lock().unwrap().push(String::new());
            let entries = self.inner.list(prefix, depth);
            match self.reversed {
                true => {
                    let mut all: Vec<_> = futures::executor::block_on(entries.collect());
                    all.reverse();
                    stream::iter(all).boxed()
                }
                false => entries,
            }
        }

        fn list_after(&self, prefix: &ObjectUri, after: &str) -> Option<Entries> {
            self.begun.lock().unwrap().push(after.into());
            let entries = self
                .inner
                .list_after(prefix, after)
                .filter(|_| !self.cannot_begin_inside)?;
            match &self.breaks {
                Some((key, count)) if key == after => {
                    let error = Error::Internal { what: "x".into() };
                    Some(
                        entries
                            .take(*count)
                            .chain(stream::iter([Err(error)]))
                            .boxed(),
                    )
                }
                _ => Some(entries),
            }
        }
    }

    fn uri(key: &str) -> ObjectUri {
        format!("memory://m/{key}").parse().unwrap()
    }

    fn lister(keys: impl Iterator<Item = String>) -> Lister {
        let lister = Lister::default();
        keys.for_each(|key| lister.inner.put(uri(&key), ""));
        lister
    }

    async fn list(lister: Lister, prefix: &str) -> (Vec<String>, Option<Error>, Arc<Lister>) {
        let lister = Arc::new(lister);
        let client: Arc<dyn ObjectClient> = lister.clone();
        let mut objects = every_object(&client, &uri(prefix));
        let mut keys = Vec::new();
        loop {
            match objects.try_next().await {
                Ok(Some(meta)) => keys.push(meta.id.uri.key().to_owned()),
                Ok(None) => return (keys, None, lister),
                Err(error) => {
                    assert!(
                        objects.next().await.is_none(),
                        "an error is the last of a listing"
                    );
                    return (keys, Some(error), lister);
                }
            }
        }
    }

    fn sorted(keys: impl Iterator<Item = String>) -> Vec<String> {
        let mut keys: Vec<String> = keys.collect();
        keys.sort_unstable();
        keys
    }

    /// I17: a long listing is made at several places at once, and shows what one in one go shows, in the same order.
    #[tokio::test]
    async fn a_long_listing_is_cut_and_misses_nothing() {
        let numbered = |n: usize| format!("d/{n:07}.jpg");
        let folders = |n: usize| {
            format!(
                "d/class-{:02}/{:x}",
                n % 13,
                n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20
            )
        };
        let ragged = |n: usize| format!("d/{}ä{n}", n * n % 977);
        for (name, key) in [
            ("numbered", &numbered as &dyn Fn(usize) -> String),
            ("folders", &folders),
            ("ragged", &ragged),
        ] {
            let all = sorted((0..30_000).map(key));
            let others = ["a".into(), "d".into(), "d0".into(), "e/1".into()];
            let (keys, error, lister) = list(lister(all.iter().cloned().chain(others)), "d/").await;
            assert!(
                error.is_none() && keys == all,
                "{name}: {} keys, {error:?}",
                keys.len()
            );
            let begun = lister.begun.lock().unwrap();
            assert!(begun.len() > 5, "{name}: {begun:?}");
            assert!(
                begun.len() < 300,
                "{name}: {} requests at least",
                begun.len()
            );
        }
    }

    #[tokio::test]
    async fn a_short_listing_is_one() {
        let keys = sorted((0..UNIT_KEYS - 1).map(|n| format!("{n}")));
        let (found, _, lister) = list(lister(keys.iter().cloned()), "").await;
        assert!(found == keys);
        assert_eq!(*lister.begun.lock().unwrap(), [""]);
    }

    #[tokio::test]
    async fn without_order_or_without_a_way_to_begin_inside_it_is_one_listing() {
        let keys = || (0..20_000).map(|n| format!("{n:06}"));
        for (reversed, cannot_begin_inside) in [(true, false), (false, true)] {
            let mut lister = lister(keys());
            (lister.reversed, lister.cannot_begin_inside) = (reversed, cannot_begin_inside);
            let (mut found, error, _) = list(lister, "").await;
            found.sort_unstable();
            assert!(error.is_none() && found == sorted(keys()));
        }
    }

    #[tokio::test]
    async fn a_range_that_breaks_ends_the_listing_after_what_came_before_it() {
        let mut lister = lister((0..30_000).map(|n| format!("{n:06}")));
        lister.breaks = Some(("02".into(), 7));
        let (keys, error, _) = list(lister, "").await;
        let before = sorted((0..20_007).map(|n| format!("{n:06}")));
        assert!(matches!(error, Some(Error::Internal { .. })), "{error:?}");
        assert!(
            keys == before[..keys.len()] && keys.len() >= 20_000,
            "{} keys",
            keys.len()
        );
    }
}
