//! A selection whose objects have all been found: so that the space that they need is known before the first byte is
//! fetched, and nothing is listed twice. An object takes about 50 bytes (`catalog`, and its date).

use std::collections::HashSet;
use std::sync::Arc;
use std::time::SystemTime;

use futures::stream;
use futures::{StreamExt, TryStreamExt};

use super::{Catalog, Lookup, Objects, S3DataType, Selection};
use crate::client::ObjectClient;
use crate::error::Result;
use crate::object::{ObjectMeta, ObjectUri};

/// How many objects are taken out of the catalogue at once.
const BATCH_OBJECTS: usize = 1000;

/// Objects with sizes and dates, and what their names on disk are relative to.
#[derive(Debug)]
pub struct Listed {
    root: ObjectUri,
    catalog: Catalog,
    dates: Vec<Option<SystemTime>>,
}

impl Listed {
    /// Finds this host's share of a selection.
    ///
    /// Names are relative to the last `/` of the URI. A channel's prefix that has none at its end and is the name of a
    /// folder (every key goes on with `/`, whichever host has it) is that folder.
    ///
    /// # Errors
    /// As [`Selection::open`], the stream's included.
    pub async fn of(selection: &Selection, client: &Arc<dyn ObjectClient>) -> Result<Self> {
        let (root, mut objects) = selection.open_whole(client).await?;
        let folder = selection
            .source
            .lone_uri()
            .filter(|_| selection.lookup == Lookup::Prefix)
            .map(|uri| uri.with_key(format!("{}/", uri.key())));
        let mut listed = Self::new(root);
        let (mut is_folder, mut place) = (folder.is_some(), 0u64);
        let is_manifest = selection.data_type == S3DataType::ManifestFile;
        let mut named = HashSet::new();
        while let Some(mut meta) = objects.try_next().await? {
            // A manifest may name an object twice; it is one file.
            if is_manifest && !named.insert(meta.id.uri.to_string()) {
                place += 1;
                continue;
            }
            // Taken for an object because it may not be listed.
            if meta.id.size_bytes.is_none() {
                meta = client.head(&meta.id.uri).await?;
            }
            is_folder &= folder
                .as_ref()
                .is_some_and(|folder| meta.id.uri.key().starts_with(folder.key()));
            if selection.shard.has(place) {
                listed.push(&meta);
            }
            place += 1;
        }
        if let Some(folder) = folder.filter(|_| is_folder && place > 0) {
            listed.root = folder;
        }
        Ok(listed)
    }

    /// None yet.
    pub fn new(root: ObjectUri) -> Self {
        Self {
            root,
            catalog: Catalog::default(),
            dates: Vec::new(),
        }
    }

    /// Adds an object at the end.
    pub fn push(&mut self, meta: &ObjectMeta) {
        self.catalog.push(meta);
        self.dates.push(meta.last_modified);
    }

    /// What names on disk are relative to.
    pub fn root(&self) -> &ObjectUri {
        &self.root
    }

    /// How many bytes all objects have.
    pub fn total_bytes(&self) -> u64 {
        self.catalog.total_bytes()
    }

    /// The objects, in order.
    pub fn objects(self: &Arc<Self>) -> Objects {
        let batches = stream::unfold((self.clone(), 0), |(listed, at)| async move {
            let batch = listed.range(at);
            let next = at + batch.len();
            (!batch.is_empty()).then(|| (stream::iter(batch).map(Ok), (listed, next)))
        });
        batches.flatten().boxed()
    }

    /// The same, for whoever does not wait.
    pub fn iter(&self) -> impl Iterator<Item = ObjectMeta> {
        let starts = (0..self.catalog.len()).step_by(BATCH_OBJECTS);
        starts.flat_map(|at| self.range(at))
    }

    fn range(&self, at: usize) -> Vec<ObjectMeta> {
        let mut batch = self.catalog.range(at, BATCH_OBJECTS);
        for (meta, date) in batch
            .iter_mut()
            .zip(&self.dates[at.min(self.dates.len())..])
        {
            meta.last_modified = *date;
        }
        batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::MemoryClient;
    use crate::input::{Channel, Shard};

    async fn listed(keys: &[&str], uri: &str, shard: Shard) -> (String, Vec<String>) {
        let client = MemoryClient::default();
        for key in keys {
            client.put(format!("memory://b/{key}").parse().unwrap(), "x");
        }
        let channel: Channel = format!("c={uri},distribution=sharded").parse().unwrap();
        let selection = Selection::of_channel(&channel, shard).unwrap();
        let client: Arc<dyn ObjectClient> = Arc::new(client);
        let listed = Arc::new(Listed::of(&selection, &client).await.unwrap());
        let found: Vec<ObjectMeta> = listed.objects().try_collect().await.unwrap();
        assert_eq!(found, listed.iter().collect::<Vec<_>>());
        let keys = found.iter().map(|meta| meta.id.uri.key().to_owned());
        (listed.root().key().to_owned(), keys.collect())
    }

    #[tokio::test]
    async fn a_folder_without_its_slash_is_that_folder_and_a_part_of_a_name_is_none() {
        for (keys, uri, root) in [
            (
                &["data/train/x", "data/train/y/z"][..],
                "memory://b/data/train",
                "data/train/",
            ),
            (&["data/train/x"], "memory://b/data/train/", "data/train/"),
            (
                &["data/train/x", "data/train2/y"],
                "memory://b/data/train",
                "data/",
            ),
            (
                &["data/train-1", "data/train-2"],
                "memory://b/data/train",
                "data/",
            ),
            (&["data/train"], "memory://b/data/train", "data/"),
            (
                &["data/train", "data/train/x"],
                "memory://b/data/train",
                "data/",
            ),
            (&["x"], "memory://b", ""),
        ] {
            for rank in 0..2 {
                let shard = Shard::new(rank, 2).unwrap();
                let (found, mine) = listed(keys, uri, shard).await;
                assert_eq!(found, root, "{keys:?} {uri} {rank}");
                let expected: Vec<_> = keys.iter().skip(rank as usize).step_by(2).collect();
                assert_eq!(mine.iter().collect::<Vec<_>>(), expected);
            }
        }
    }

    #[tokio::test]
    async fn more_than_a_batch_comes_in_order_with_dates() {
        let mut all = Listed::new(ObjectUri::s3("b", ""));
        let date = |n: u64| SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(n);
        for n in 0..2_345u64 {
            let mut meta = super::super::manifest::unseen(ObjectUri::s3("b", format!("{n:05}")));
            meta.last_modified = Some(date(n));
            all.push(&meta);
        }
        let all = Arc::new(all);
        let found: Vec<ObjectMeta> = all.objects().try_collect().await.unwrap();
        assert_eq!(found.len(), 2_345);
        for (n, meta) in (0..).zip(found) {
            assert_eq!(
                (meta.id.uri.key(), meta.last_modified),
                (&*format!("{n:05}"), Some(date(n)))
            );
        }
    }
}
