//! What a channel delivers on this host, epoch by epoch.
//!
//! Opening reads what there is to know once: the manifest, or the beginning of the listing, which then goes on beside the
//! first epoch. Epochs are computed from that. Later epochs deliver the same objects in the same versions; one that was
//! replaced meanwhile is an error of the read.
//!
//! An epoch is a stream of objects for the engine, and, for an augmented manifest, a [`Script`] that says where texts
//! stand between them. Both follow from the same order, so they need no queue between them.

use std::sync::Arc;

use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt, TryStreamExt};

use super::fetch::fetch;
use super::order::Places;
use super::pins::{Pins, REFERENCES_AHEAD};
use super::source::{in_key_order, is_marker};
use super::{
    AugmentedManifest, Channel, Inventory, Item, Lookup, Manifest, Order, S3DataType, Shard,
};
use crate::client::ObjectClient;
use crate::error::{Error, Result};
use crate::object::{ObjectId, ObjectMeta, ObjectUri};

/// The objects of an epoch, in order.
pub type Objects = BoxStream<'static, Result<ObjectMeta>>;

/// A channel that was opened.
#[derive(Debug)]
pub struct Agenda {
    order: Order,
    plan: Plan,
}

#[derive(Debug)]
enum Plan {
    /// A prefix, an object or a pattern.
    Listed(Inventory),
    /// A manifest's objects.
    Named {
        manifest: ObjectUri,
        objects: Inventory,
        pins: Arc<Pins>,
    },
    /// An augmented manifest's lines.
    Lines {
        manifest: Arc<AugmentedManifest>,
        id: Arc<ObjectId>,
        pins: Arc<Pins>,
    },
}

impl Agenda {
    /// Finds out what there is to deliver. `host` is this host's share of sharded channels.
    ///
    /// # Errors
    /// What is wrong with the manifest, or that nothing is there, or not to be seen.
    pub async fn open(
        client: &Arc<dyn ObjectClient>,
        channel: &Channel,
        host: Shard,
    ) -> Result<Self> {
        Self::open_as(client, channel, host, false).await
    }

    /// The same in an order that does not depend on how the store lists: a later run goes on in it by counting.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(crate) async fn open_repeatable(
        client: &Arc<dyn ObjectClient>,
        channel: &Channel,
        host: Shard,
    ) -> Result<Self> {
        Self::open_as(client, channel, host, true).await
    }

    async fn open_as(
        client: &Arc<dyn ObjectClient>,
        channel: &Channel,
        host: Shard,
        is_repeatable: bool,
    ) -> Result<Self> {
        let order = Order {
            shuffle: channel.shuffle,
            shard: channel.distribution.shard(host),
        };
        let plan = match channel.data_type {
            S3DataType::S3Prefix => {
                let mut objects = channel.source.objects(client, Lookup::Prefix);
                let is_agreed_on =
                    is_repeatable || order.shuffle.is_some() || order.shard != Shard::WHOLE;
                if is_agreed_on && channel.source.is_unordered() {
                    objects = in_key_order(objects);
                }
                let inventory = Inventory::start(objects);
                inventory.first().await?;
                Plan::Listed(inventory)
            }
            S3DataType::ManifestFile => open_manifest(client, &manifest_uri(channel)?).await?,
            S3DataType::AugmentedManifestFile => open_augmented(client, channel).await?,
        };
        Ok(Self { order, plan })
    }

    /// Waits until a byte of an epoch can come without waiting for a listing: of a shuffled order that is its end.
    ///
    /// # Errors
    /// The listing's.
    pub async fn ready(&self) -> Result<()> {
        match (&self.plan, self.order.shuffle) {
            (Plan::Listed(inventory), Some(_)) => inventory.complete().await,
            _ => Ok(()),
        }
    }

    /// The objects of an epoch. Those of a manifest are asked for as the engine takes them; an error names the entry.
    pub fn objects(&self, epoch: u64) -> Objects {
        self.objects_from(epoch, 0)
    }

    /// The same from a line of this host's share on; other channels than augmented manifests have no lines.
    pub fn objects_from(&self, epoch: u64, line: usize) -> Objects {
        match &self.plan {
            Plan::Listed(inventory) => inventory.epoch(self.order, epoch),
            Plan::Named {
                manifest,
                objects,
                pins,
            } => {
                let (manifest, pins) = (manifest.clone(), pins.clone());
                objects
                    .epoch(self.order, epoch)
                    .map_ok(move |meta| {
                        let manifest = manifest.clone();
                        pins.resolve(meta.id.uri).map(move |result| {
                            result.map_err(|error| {
                                entry_error(format!("an entry of {manifest}"), error)
                            })
                        })
                    })
                    .try_buffered(REFERENCES_AHEAD)
                    .try_filter(|meta| std::future::ready(!is_marker(meta)))
                    .boxed()
            }
            Plan::Lines { manifest, pins, .. } => match self.script_from(epoch, line) {
                Some(Ok(script)) => references(script, manifest.clone(), pins.clone()),
                Some(Err(error)) => stream::iter([Err(error)]).boxed(),
                None => stream::empty().boxed(),
            },
        }
    }

    /// What an epoch of an augmented manifest delivers, step by step; none of other channels.
    pub fn script(&self, epoch: u64) -> Option<Result<Script>> {
        self.script_from(epoch, 0)
    }

    /// The same from a line of this host's share on.
    pub fn script_from(&self, epoch: u64, line: usize) -> Option<Result<Script>> {
        let Plan::Lines { manifest, id, .. } = &self.plan else {
            return None;
        };
        let places = self.order.places(epoch, manifest.len());
        Some(places.map(|mut places| {
            if let Some(last) = line.checked_sub(1) {
                places.nth(last);
            }
            Script {
                manifest: manifest.clone(),
                id: id.clone(),
                places,
                line: Vec::new().into_iter(),
                at: 0,
                attribute: 0,
            }
        }))
    }

    /// How many attributes each line delivers; none of other channels than augmented manifests.
    pub fn attributes(&self) -> Option<usize> {
        match &self.plan {
            Plan::Lines { manifest, .. } => Some(manifest.names().len()),
            _ => None,
        }
    }

    /// Whether not all that is delivered is of objects.
    pub fn has_texts(&self) -> bool {
        matches!(self.plan, Plan::Lines { .. })
    }

    /// Objects, entries or lines known so far, of all hosts, and whether that is all.
    pub fn known_items(&self) -> (usize, bool) {
        match &self.plan {
            Plan::Listed(inventory) => (inventory.catalog().len(), inventory.is_complete()),
            Plan::Named { objects, .. } => (objects.catalog().len(), true),
            Plan::Lines { manifest, .. } => (manifest.len(), true),
        }
    }
}

fn manifest_uri(channel: &Channel) -> Result<ObjectUri> {
    channel
        .source
        .lone_uri()
        .ok_or_else(|| Error::config(channel.source.to_string(), "a pattern: name one manifest"))
}

async fn open_manifest(client: &Arc<dyn ObjectClient>, uri: &ObjectUri) -> Result<Plan> {
    let manifest = read_manifest(client, uri).await?;
    let objects = manifest.objects;
    let mut pins = Pins::new(client.clone());
    pins.list_folders((0..objects.len()).filter_map(|at| Some(objects.get(at)?.id.uri)));
    Ok(Plan::Named {
        manifest: uri.clone(),
        objects: Inventory::of(objects),
        pins: Arc::new(pins),
    })
}

/// Reads a `ManifestFile`.
///
/// # Errors
/// The read's, or what is wrong with it.
pub async fn read_manifest(client: &Arc<dyn ObjectClient>, uri: &ObjectUri) -> Result<Manifest> {
    let text = fetch(client, uri).await?;
    Manifest::parse(uri, &text)
}

/// The objects of a manifest in its order, with sizes and dates: what File mode needs.
///
/// # Errors
/// As [`read_manifest`]; of the stream, what is wrong with an object.
pub async fn manifest_objects(
    client: &Arc<dyn ObjectClient>,
    uri: &ObjectUri,
) -> Result<(ObjectUri, Objects)> {
    let manifest = read_manifest(client, uri).await?;
    let (client, named, place) = (client.clone(), manifest.objects, uri.clone());
    let heads = (0..named.len())
        .filter_map(move |at| named.get(at))
        .map(move |meta| {
            let (client, place) = (client.clone(), place.clone());
            async move {
                let answer = client.head(&meta.id.uri).await;
                answer.map_err(|error| entry_error(format!("an entry of {place}"), error))
            }
        });
    let objects = stream::iter(heads).buffered(REFERENCES_AHEAD);
    let objects = objects.try_filter(|meta| std::future::ready(!is_marker(meta)));
    Ok((manifest.prefix, objects.boxed()))
}

async fn open_augmented(client: &Arc<dyn ObjectClient>, channel: &Channel) -> Result<Plan> {
    let uri = manifest_uri(channel)?;
    let text = fetch(client, &uri).await?;
    let manifest = AugmentedManifest::parse(
        uri.clone(),
        text,
        &channel.attribute_names,
        channel.on_missing_attribute,
    )?;
    if manifest.skipped() > 0 {
        tracing::warn!(%uri, lines = manifest.skipped(), "left out: lines that lack an attribute");
    }
    let mut pins = Pins::new(client.clone());
    if manifest.has_references() {
        pins.list_folders(
            (0..manifest.len())
                .flat_map(|at| manifest.items(at))
                .filter_map(|item| match item {
                    Item::Object(uri) => Some(uri),
                    Item::Text(_) => None,
                }),
        );
    }
    Ok(Plan::Lines {
        manifest: Arc::new(manifest),
        id: Arc::new(ObjectId::unpinned(uri)),
        pins: Arc::new(pins),
    })
}

fn references(script: Script, manifest: Arc<AugmentedManifest>, pins: Arc<Pins>) -> Objects {
    let objects = script.filter_map(move |step| {
        let Item::Object(uri) = step.item else {
            return None;
        };
        let (manifest, place) = (manifest.clone(), step.place);
        Some(
            pins.resolve(uri)
                .map(move |result| result.map_err(|error| place.error(&manifest, error))),
        )
    });
    stream::iter(objects).buffered(REFERENCES_AHEAD).boxed()
}

fn entry_error(place: String, error: Error) -> Error {
    Error::Entry {
        place,
        source: Box::new(error),
    }
}

/// The steps of an epoch of an augmented manifest.
#[derive(Debug)]
pub struct Script {
    manifest: Arc<AugmentedManifest>,
    id: Arc<ObjectId>,
    places: Places,
    /// What is left of the current line.
    line: std::vec::IntoIter<Item>,
    at: usize,
    attribute: usize,
}

/// One attribute, and where it stands.
#[derive(Debug)]
pub struct Step {
    /// What is delivered.
    pub item: Item,
    /// Which line and attribute.
    pub place: Place,
}

/// A line and an attribute of a manifest, counted from 0.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    line: usize,
    attribute: usize,
}

impl Place {
    fn error(self, manifest: &AugmentedManifest, error: Error) -> Error {
        let number = manifest.number(self.line);
        let name = &manifest.names()[self.attribute];
        entry_error(
            format!("{}, line {number}, attribute {name:?}", manifest.uri()),
            error,
        )
    }
}

impl Script {
    /// The manifest as the object that texts are of, and where a line begins in it.
    pub fn text_origin(&self, place: Place) -> (Arc<ObjectId>, u64) {
        (self.id.clone(), self.manifest.offset(place.line))
    }

    /// An error of what stands at a place, unless it says so already.
    pub fn error_at(&self, place: Place, error: Error) -> Error {
        match error {
            Error::Entry { .. } => error,
            error => place.error(&self.manifest, error),
        }
    }
}

impl Iterator for Script {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        loop {
            if let Some(item) = self.line.next() {
                let place = Place {
                    line: self.at,
                    attribute: self.attribute,
                };
                self.attribute += 1;
                return Some(Step { item, place });
            }
            self.at = self.places.next()?;
            self.attribute = 0;
            self.line = self.manifest.items(self.at).into_iter();
        }
    }
}
