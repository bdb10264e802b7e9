//! Sizes and versions of objects that a manifest names.
//!
//! The engine reads many objects at once only when it knows how long each is. A manifest does not tell, so it is asked
//! for, ahead of the engine: by a HEAD for each object ([`REFERENCES_AHEAD`] at a time), and, where many of them lie in
//! one folder, by listing that folder, which tells a thousand with one request. What is known is kept for the later
//! epochs.
//!
//! The listings are help and no more: an object that none has told of yet is asked for by itself, so that the first byte
//! waits for nothing, and a listing that is refused or fails is done without. A folder is listed while that is cheaper
//! than HEADs: until it has shown [`KEYS_PER_REFERENCE`] keys for each object that is wanted from it.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, PoisonError, RwLock};

use futures::StreamExt;
use futures::future::{AbortHandle, Abortable};
use hashbrown::{HashSet, HashTable};

use super::{Catalog, listing};
use crate::client::ObjectClient;
use crate::error::Result;
use crate::object::{ObjectMeta, ObjectUri};
use crate::runtime;

/// HEADs under way: as many as S3 gives one prefix at 30 ms each without slowing it, with room for the GETs beside them.
pub const REFERENCES_AHEAD: usize = 64;

/// Objects that lie in one folder, and not in one below it, from which on it is listed: a page costs what twelve HEADs cost, and a tenth of a second.
const LISTED_FROM: u64 = 64;

/// A page of a thousand keys is worth it when twenty of them are wanted.
const KEYS_PER_REFERENCE: u64 = 50;

/// Folders that are listed at once.
const FOLDERS_AT_ONCE: usize = 8;

/// What is known, and whom to ask for the rest.
#[derive(Debug)]
pub(super) struct Pins {
    shared: Arc<Shared>,
    lister: Option<AbortHandle>,
}

#[derive(Debug)]
struct Shared {
    client: Arc<dyn ObjectClient>,
    hasher: RandomState,
    known: RwLock<Known>,
}

/// Objects by their addresses: places in a catalogue.
#[derive(Debug, Default)]
struct Known {
    catalog: Catalog,
    places: HashTable<u32>,
}

impl Pins {
    /// Of nothing yet.
    pub(super) fn new(client: Arc<dyn ObjectClient>) -> Self {
        let shared = Shared {
            client,
            hasher: RandomState::new(),
            known: RwLock::default(),
        };
        Self {
            shared: Arc::new(shared),
            lister: None,
        }
    }

    /// Begins to list the folders in which many of `wanted` lie.
    pub(super) fn list_folders(&mut self, wanted: impl Iterator<Item = ObjectUri>) {
        let mut folders: HashMap<ObjectUri, u64> = HashMap::new();
        // Hashes are enough: one of 10^12 keys that are not wanted is kept by mistake.
        let mut hashes = HashSet::with_hasher(RandomState::new());
        for uri in wanted {
            if hashes.insert(self.shared.hasher.hash_one(&uri)) {
                let folder = &uri.key()[..uri.key().rfind('/').map_or(0, |slash| slash + 1)];
                *folders.entry(uri.with_key(folder)).or_default() += 1;
            }
        }
        folders.retain(|_, count| *count >= LISTED_FROM);
        if folders.is_empty() {
            return;
        }
        let (lister, registration) = AbortHandle::new_pair();
        let (shared, hashes) = (self.shared.clone(), Arc::new(hashes));
        let listing = futures::stream::iter(folders)
            .for_each_concurrent(FOLDERS_AT_ONCE, move |(folder, count)| {
                list_folder(shared.clone(), hashes.clone(), folder, count)
            });
        runtime::handle().spawn(Abortable::new(listing, registration));
        self.lister = Some(lister);
    }

    /// Size and version of an object.
    ///
    /// # Errors
    /// The HEAD's.
    pub(super) fn resolve(
        &self,
        uri: ObjectUri,
    ) -> impl Future<Output = Result<ObjectMeta>> + Send + use<> {
        let shared = self.shared.clone();
        async move {
            if let Some(known) = shared.get(&uri) {
                return Ok(known);
            }
            let meta = shared.client.head(&uri).await?;
            shared.keep(&meta);
            Ok(meta)
        }
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        if let Some(lister) = &self.lister {
            lister.abort();
        }
    }
}

impl Shared {
    fn get(&self, uri: &ObjectUri) -> Option<ObjectMeta> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(self.hasher.hash_one(uri), uri)
    }

    fn keep(&self, meta: &ObjectMeta) {
        if !meta.id.is_pinned() {
            return;
        }
        let uri = &meta.id.uri;
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let hash = self.hasher.hash_one(uri);
        if known.get(hash, uri).is_some() {
            return;
        }
        let Known { catalog, places } = &mut *known;
        let Ok(place) = u32::try_from(catalog.len()) else {
            return;
        };
        catalog.push(meta);
        places.insert_unique(hash, place, |place| {
            catalog
                .get(*place as usize)
                .map_or(0, |meta| self.hasher.hash_one(&meta.id.uri))
        });
    }
}

impl Known {
    fn get(&self, hash: u64, uri: &ObjectUri) -> Option<ObjectMeta> {
        let at = |place: &u32| self.catalog.get(*place as usize);
        let same = |place: &u32| at(place).is_some_and(|meta| meta.id.uri == *uri);
        self.places.find(hash, same).and_then(at)
    }
}

async fn list_folder(
    shared: Arc<Shared>,
    wanted: Arc<HashSet<u64, RandomState>>,
    folder: ObjectUri,
    count: u64,
) {
    let mut objects = listing::every_object(&shared.client, &folder);
    let mut left = count;
    let mut allowed = count.saturating_mul(KEYS_PER_REFERENCE);
    while left > 0 && allowed > 0 {
        match objects.next().await {
            Some(Ok(meta)) if wanted.contains(&shared.hasher.hash_one(&meta.id.uri)) => {
                shared.keep(&meta);
                left -= 1;
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => {
                tracing::info!(%folder, %error, "not listed: each object of the manifest is asked for by itself");
                return;
            }
            None => return,
        }
        allowed -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::MemoryClient;
    use crate::error::Error;

    fn uri(n: usize) -> ObjectUri {
        format!("memory://m/d/{n:04}").parse().unwrap()
    }

    fn pins(objects: usize) -> Pins {
        let memory = MemoryClient::default();
        for n in 0..objects {
            memory.put(uri(n), format!("{n}"));
        }
        Pins::new(Arc::new(memory))
    }

    #[tokio::test]
    async fn what_was_asked_for_once_is_known() {
        let pins = pins(500);
        for _ in 0..2 {
            for n in (0..500).rev() {
                let meta = pins.resolve(uri(n)).await.unwrap();
                assert!(meta.id.is_pinned() && meta.id.uri == uri(n));
            }
        }
        assert_eq!(pins.shared.known.read().unwrap().catalog.len(), 500);
        let missing = pins.resolve(uri(500)).await.unwrap_err();
        assert!(matches!(missing, Error::NotFound { .. }), "{missing}");
    }

    #[tokio::test]
    async fn a_folder_is_listed_for_what_is_wanted_of_it() {
        let mut pins = pins(500);
        pins.list_folders((0..LISTED_FROM as usize - 1).map(uri));
        assert!(pins.lister.is_none(), "so few are asked for one by one");
        pins.list_folders((0..500).step_by(5).map(uri));
        let since = std::time::Instant::now();
        while pins.shared.get(&uri(495)).is_none() {
            assert!(since.elapsed().as_secs() < 10);
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        assert_eq!(pins.shared.known.read().unwrap().catalog.len(), 100);
        assert!(pins.shared.get(&uri(1)).is_none());
    }
}
