//! A listing that is made once and shared by all epochs.
//!
//! One task reads the listing into a [`Catalog`], as fast as the server sends it: what is kept is small. Epochs read the
//! catalogue while it grows; an order that is shuffled waits for the end of the listing. When the listing fails, what came
//! before is delivered, and then the error. Dropping the inventory stops the listing.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use futures::future::{AbortHandle, Abortable};
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt, TryStreamExt};
use tokio::sync::watch;

use super::{Catalog, Order};
use crate::error::{Error, Result};
use crate::object::ObjectMeta;
use crate::runtime;

/// How many objects are taken out of the catalogue at once, and put in: a page of S3.
const BATCH_OBJECTS: usize = 1000;

/// A listing under way or done.
#[derive(Debug)]
pub struct Inventory {
    shared: Arc<Shared>,
    lister: Option<AbortHandle>,
}

#[derive(Debug)]
struct Shared {
    catalog: RwLock<Catalog>,
    progress: watch::Sender<Progress>,
}

#[derive(Debug, Clone, Default)]
struct Progress {
    len: usize,
    end: Option<Result<()>>,
}

impl Inventory {
    /// Starts to read a listing.
    pub fn start(objects: BoxStream<'static, Result<ObjectMeta>>) -> Self {
        let shared = Arc::new(Shared {
            catalog: RwLock::default(),
            progress: watch::Sender::default(),
        });
        let (lister, registration) = AbortHandle::new_pair();
        // Made here, so that it tells the end even of a task that never ran.
        let listing = Listing(shared.clone());
        runtime::handle().spawn(Abortable::new(list(listing, objects), registration));
        Self {
            shared,
            lister: Some(lister),
        }
    }

    /// What is known already.
    pub fn of(catalog: Catalog) -> Self {
        let progress = Progress {
            len: catalog.len(),
            end: Some(Ok(())),
        };
        let shared = Arc::new(Shared {
            catalog: RwLock::new(catalog),
            progress: watch::Sender::new(progress),
        });
        Self {
            shared,
            lister: None,
        }
    }

    /// Waits for the first object, so that a wrong URI is told before anything is served.
    ///
    /// # Errors
    /// The listing's, when it fails before it has brought anything.
    pub async fn first(&self) -> Result<()> {
        self.shared.reached(1).await.map(drop)
    }

    /// Waits for the end of the listing.
    ///
    /// # Errors
    /// The listing's.
    pub async fn complete(&self) -> Result<()> {
        self.shared.reached(usize::MAX).await.map(drop)
    }

    /// The catalogue as far as it is known.
    pub fn catalog(&self) -> RwLockReadGuard<'_, Catalog> {
        self.shared.read()
    }

    /// Whether the listing has come to its end.
    pub fn is_complete(&self) -> bool {
        matches!(self.shared.progress.borrow().end, Some(Ok(())))
    }

    /// The objects of an epoch.
    pub fn epoch(&self, order: Order, epoch: u64) -> BoxStream<'static, Result<ObjectMeta>> {
        let shared = self.shared.clone();
        match order.shuffle {
            None => in_order(shared, order),
            Some(_) => shuffled(shared, order, epoch),
        }
    }
}

impl Drop for Inventory {
    fn drop(&mut self) {
        if let Some(lister) = &self.lister {
            lister.abort();
        }
    }
}

impl Shared {
    fn read(&self) -> RwLockReadGuard<'_, Catalog> {
        self.catalog.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, batch: Vec<ObjectMeta>) {
        let mut catalog = self.catalog.write().unwrap_or_else(PoisonError::into_inner);
        batch.iter().for_each(|meta| catalog.push(meta));
        let len = catalog.len();
        drop(catalog);
        self.progress.send_modify(|progress| progress.len = len);
    }

    fn end(&self, result: Result<()>) {
        self.progress.send_modify(|progress| {
            progress.end.get_or_insert(result);
        });
    }

    /// Waits until there are `len` objects or the listing is over; how many there are then.
    async fn reached(&self, len: usize) -> Result<usize> {
        let mut progress = self.progress.subscribe();
        let reached = progress
            .wait_for(|progress| progress.len >= len || progress.end.is_some())
            .await;
        match reached.as_deref() {
            Ok(Progress { len: known, .. }) if *known >= len => Ok(*known),
            Ok(Progress {
                len: known,
                end: Some(end),
            }) => end.clone().map(|()| *known),
            // The sender is in `self`.
            Ok(_) | Err(_) => Err(Error::Cancelled),
        }
    }
}

/// Tells the end of a listing in any case: nobody waits for a task that has gone.
struct Listing(Arc<Shared>);

impl Drop for Listing {
    fn drop(&mut self) {
        self.0.end(Err(Error::Cancelled));
    }
}

async fn list(listing: Listing, objects: BoxStream<'static, Result<ObjectMeta>>) {
    let shared = &listing.0;
    let mut batches = objects.ready_chunks(BATCH_OBJECTS);
    while let Some(batch) = batches.next().await {
        let mut failed = None;
        let good = batch
            .into_iter()
            .map_while(|meta| meta.map_err(|error| failed = Some(error)).ok());
        shared.add(good.collect());
        if let Some(error) = failed {
            return shared.end(Err(error));
        }
    }
    shared.end(Ok(()));
}

fn in_order(shared: Arc<Shared>, order: Order) -> BoxStream<'static, Result<ObjectMeta>> {
    let batches = stream::try_unfold((shared, 0usize), move |(shared, at)| async move {
        let len = shared.reached(at + 1).await?;
        let batch = shared.read().range(at, BATCH_OBJECTS);
        let next = at + batch.len();
        let mine: Vec<_> = (at as u64..)
            .zip(batch)
            .filter(|(place, _)| order.shard.has(*place))
            .map(|(_, meta)| Ok(meta))
            .collect();
        Ok::<_, Error>((at < len).then(|| (stream::iter(mine), (shared, next))))
    });
    batches.try_flatten().boxed()
}

fn shuffled(
    shared: Arc<Shared>,
    order: Order,
    epoch: u64,
) -> BoxStream<'static, Result<ObjectMeta>> {
    async move {
        let len = shared.reached(usize::MAX).await?;
        let places = order.places(epoch, len)?;
        let objects = places.map(move |place| {
            let meta = shared.read().get(place);
            meta.ok_or(Error::Cancelled)
        });
        Ok::<_, Error>(stream::iter(objects))
    }
    .into_stream()
    .try_flatten()
    .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::manifest::unseen;
    use crate::input::{Shard, ShuffleConfig};
    use crate::object::ObjectUri;
    use std::time::Duration;

    fn meta(n: usize) -> ObjectMeta {
        unseen(ObjectUri::s3("b", format!("{n:06}")))
    }

    async fn numbers(inventory: &Inventory, order: Order, epoch: u64) -> Vec<usize> {
        let objects: Vec<ObjectMeta> = inventory.epoch(order, epoch).try_collect().await.unwrap();
        objects
            .iter()
            .map(|meta| meta.id.uri.key().parse().unwrap())
            .collect()
    }

    fn order(seed: Option<i64>, rank: u64, count: u64) -> Order {
        Order {
            shuffle: seed.map(|seed| ShuffleConfig { seed }),
            shard: Shard::new(rank, count).unwrap(),
        }
    }

    #[tokio::test]
    async fn every_epoch_reads_the_one_listing() {
        let inventory = Inventory::start(stream::iter((0..2500).map(|n| Ok(meta(n)))).boxed());
        for epoch in 0..3 {
            let all: Vec<usize> = (0..2500).collect();
            assert_eq!(numbers(&inventory, order(None, 0, 1), epoch).await, all);
            let third: Vec<usize> = (0..2500).filter(|n| n % 3 == 1).collect();
            assert_eq!(numbers(&inventory, order(None, 1, 3), epoch).await, third);
            let places: Vec<usize> = order(Some(4), 2, 3).places(epoch, 2500).unwrap().collect();
            assert_eq!(
                numbers(&inventory, order(Some(4), 2, 3), epoch).await,
                places
            );
        }
        assert!(inventory.is_complete());
    }

    /// I16: without shuffling, bytes flow while the listing still arrives; a shuffled order waits for its end.
    #[tokio::test]
    async fn objects_flow_before_the_listing_ends_unless_they_are_shuffled() {
        let (more, pages) = tokio::sync::mpsc::unbounded_channel();
        let pages = stream::unfold(
            pages,
            |mut pages: tokio::sync::mpsc::UnboundedReceiver<usize>| async {
                Some((Ok(meta(pages.recv().await?)), pages))
            },
        );
        let inventory = Inventory::start(pages.boxed());
        let mut plain = inventory.epoch(order(None, 0, 1), 0);
        let mut shuffled = inventory.epoch(order(Some(1), 0, 1), 0);
        for n in 0..3 {
            more.send(n).unwrap();
            assert_eq!(plain.next().await.unwrap().unwrap(), meta(n));
        }
        let early = tokio::time::timeout(Duration::from_millis(20), shuffled.next()).await;
        assert!(early.is_err());
        drop(more);
        assert!(plain.next().await.is_none());
        assert_eq!(shuffled.count().await, 3);
    }

    #[tokio::test]
    async fn a_listing_that_breaks_is_an_error_after_what_came_before() {
        let broken = stream::iter([
            Ok(meta(0)),
            Ok(meta(1)),
            Err(Error::Internal { what: "x".into() }),
            Ok(meta(2)),
        ]);
        let inventory = Inventory::start(broken.boxed());
        inventory.first().await.unwrap();
        for _ in 0..2 {
            let all: Vec<_> = inventory.epoch(order(None, 0, 1), 0).collect().await;
            assert!(
                matches!(&all[..], [Ok(_), Ok(_), Err(Error::Internal { .. })]),
                "{all:?}"
            );
            let all: Vec<_> = inventory.epoch(order(Some(1), 0, 1), 0).collect().await;
            assert!(matches!(&all[..], [Err(Error::Internal { .. })]), "{all:?}");
        }
    }

    #[tokio::test]
    async fn an_inventory_that_is_dropped_lists_no_more_and_its_epochs_end_in_an_error() {
        let inventory =
            Inventory::start(stream::iter([Ok(meta(0))]).chain(stream::pending()).boxed());
        let mut epoch = inventory.epoch(order(None, 0, 1), 0);
        assert!(epoch.next().await.unwrap().is_ok());
        drop(inventory);
        assert!(matches!(epoch.next().await, Some(Err(Error::Cancelled))));
    }
}
