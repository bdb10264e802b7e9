//! A tree that grows while it is asked.
//!
//! One task reads the listing and adds it in batches under the write lock; whoever asks for what has not come yet waits
//! for the next batch. When the listing fails for good, what was decided stays, and what was not fails with that error.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::SystemTime;

use futures::stream;
use futures::{StreamExt, TryStreamExt};
use tokio::sync::watch;

use super::{Found, Ino, RESERVED, Step, Tree};
use crate::client::{Depth, ListEntry, ObjectClient};
use crate::error::{Answer, Error, Result};
use crate::input::{Objects, Shard, every_object};
use crate::object::{ObjectMeta, ObjectUri, Scheme};
use crate::runtime;

/// A page of S3; the lock is held for a third of a millisecond.
const BATCH_OBJECTS: usize = 1000;

/// What a URI stands for as a directory.
#[derive(Debug, Clone)]
pub enum Root {
    /// Everything below a prefix that is empty or ends in `/`.
    Folder(ObjectUri),
    /// One object, which becomes the only file.
    Object(Box<ObjectMeta>),
}

impl Root {
    /// Says what `uri` stands for.
    ///
    /// Without a `/` at its end it must be exactly one folder or exactly one object: SageMaker's rule that a prefix
    /// must not be part of a folder's name, and the only reading that does not depend on what is uploaded later.
    pub async fn resolve(client: &Arc<dyn ObjectClient>, uri: &ObjectUri) -> Result<Self> {
        if uri.key().is_empty() || uri.key().ends_with('/') {
            return Ok(Self::Folder(uri.clone()));
        }
        let folder = uri.with_key(format!("{}/", uri.key()));
        if uri.scheme() == Scheme::File {
            return Ok(match client.head(uri).await {
                Ok(meta) => Self::Object(Box::new(meta)),
                Err(_) => Self::Folder(folder),
            });
        }
        let listed = client.list(uri, Depth::OneLevel).take(2);
        let listed: Vec<ListEntry> = listed.try_collect().await?;
        match listed.as_slice() {
            [] => Err(not_found(uri)),
            [ListEntry::Prefix(only)] if *only == folder => Ok(Self::Folder(folder)),
            [ListEntry::Object(only)] if only.id.uri == *uri => {
                Ok(Self::Object(Box::new(only.clone())))
            }
            several => Err(ambiguous(uri, several)),
        }
    }

    fn parts(self, client: &Arc<dyn ObjectClient>) -> (ObjectUri, Objects) {
        match self {
            Self::Folder(uri) => {
                let objects = every_object(client, &uri);
                (uri, objects)
            }
            Self::Object(meta) => {
                let key = meta.id.uri.key();
                let folder = &key[..key.rfind('/').map_or(0, |slash| slash + 1)];
                let uri = meta.id.uri.with_key(folder);
                (uri, stream::iter([Ok(*meta)]).boxed())
            }
        }
    }
}

fn not_found(uri: &ObjectUri) -> Error {
    Error::NotFound {
        uri: uri.to_string(),
        offset: None,
        answer: Box::new(Answer {
            message: Some("no object's key starts with this".into()),
            ..Answer::default()
        }),
    }
}

fn ambiguous(uri: &ObjectUri, several: &[ListEntry]) -> Error {
    let shown = several.iter().map(|entry| match entry {
        ListEntry::Object(meta) => meta.id.uri.key(),
        ListEntry::Prefix(uri) => uri.key(),
    });
    Error::config(
        uri.to_string(),
        format!(
            "does not end in / and is not exactly one folder or object (there are {}, ...): a folder's name ends in /, so \
             write {uri}/ (FastFile mode of SageMaker takes no part of a folder's name either)",
            shown.collect::<Vec<_>>().join(", ")
        ),
    )
}

/// The tree, and how far the listing has come.
#[derive(Debug)]
pub struct Namespace {
    tree: RwLock<Tree>,
    progress: watch::Sender<Progress>,
}

#[derive(Debug, Clone, Default)]
struct Progress {
    batches: u64,
    end: Option<Result<()>>,
}

impl Namespace {
    /// Starts the listing and waits for its first objects, so that a wrong URI is told at once.
    pub async fn start(client: &Arc<dyn ObjectClient>, root: Root) -> Result<Arc<Self>> {
        Self::start_share(client, root, Shard::WHOLE).await
    }

    /// The same of a host's share: of the objects in the order of the listing every `count`-th. It may be empty.
    pub async fn start_share(
        client: &Arc<dyn ObjectClient>,
        root: Root,
        shard: Shard,
    ) -> Result<Arc<Self>> {
        let (uri, mut objects) = root.parts(client);
        let first = objects.next().await.transpose()?;
        let first = first.ok_or_else(|| not_found(&uri))?;
        let namespace = Arc::new(Self {
            tree: RwLock::new(Tree::new(uri, SystemTime::now())),
            progress: watch::Sender::default(),
        });
        let mut place = 0..;
        let objects = stream::iter([Ok(first)])
            .chain(objects)
            .try_filter(move |meta| {
                // Markers of folders are none of the data, and the share of nobody.
                let is_marker = meta.size_bytes == 0 && meta.id.uri.key().ends_with('/');
                let is_mine = !is_marker && place.next().is_some_and(|place| shard.has(place));
                std::future::ready(is_mine || (is_marker && shard == Shard::WHOLE))
            });
        runtime::handle().spawn(list(Lister(namespace.clone()), objects.boxed()));
        namespace.changed_since(0).await?;
        Ok(namespace)
    }

    /// The tree as far as it is known.
    pub fn tree(&self) -> RwLockReadGuard<'_, Tree> {
        self.tree.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks a name up, and waits until that can be answered.
    pub async fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Option<Ino>> {
        loop {
            let batches = self.batches();
            match self.tree().lookup(parent, name) {
                Found::Here(ino) => return Ok(Some(ino)),
                Found::Absent => return Ok(None),
                Found::NotYet => {}
            }
            self.changed_since(batches).await?;
        }
    }

    /// Waits until something follows `after` in the directory, or it is known that nothing does.
    pub async fn wait_for_step(&self, directory: Ino, after: Option<Ino>) -> Result<()> {
        loop {
            let batches = self.batches();
            if self.tree().step(directory, after) != Step::NotYet {
                return Ok(());
            }
            self.changed_since(batches).await?;
        }
    }

    /// Waits for the end of the listing.
    pub async fn complete(&self) -> Result<()> {
        let mut progress = self.progress.subscribe();
        let ended = progress.wait_for(|progress| progress.end.is_some()).await;
        ended
            .ok()
            .and_then(|progress| progress.end.clone())
            .unwrap_or(Ok(()))
    }

    fn batches(&self) -> u64 {
        self.progress.borrow().batches
    }

    /// Waits for more than so many batches; the listing's failure is an error, as nothing more will come.
    async fn changed_since(&self, batches: u64) -> Result<()> {
        let mut progress = self.progress.subscribe();
        let changed = |progress: &Progress| {
            progress.batches > batches || matches!(progress.end, Some(Err(_)))
        };
        let failed = match progress.wait_for(changed).await {
            Ok(progress) if progress.batches > batches => None,
            Ok(progress) => progress.end.clone(),
            Err(_) => None, // the sender is `self`'s
        };
        failed.unwrap_or(Ok(()))
    }

    fn add(&self, batch: &[ObjectMeta]) -> Result<()> {
        let mut tree = self.tree.write().unwrap_or_else(PoisonError::into_inner);
        batch.iter().try_for_each(|meta| tree.add(meta))
    }

    fn end(&self, result: Result<()>) {
        if result.is_ok() {
            let mut tree = self.tree.write().unwrap_or_else(PoisonError::into_inner);
            tree.complete();
        }
        self.progress.send_if_modified(|progress| {
            let first = progress.end.is_none();
            if first {
                progress.batches += u64::from(result.is_ok());
                progress.end = Some(result);
            }
            first
        });
    }
}

/// Ends the listing in any case: nobody waits for a task that died.
struct Lister(Arc<Namespace>);

impl Drop for Lister {
    fn drop(&mut self) {
        let what = format!("the listing of {}", self.0.tree().root());
        self.0.end(Err(Error::Internal { what }));
    }
}

async fn list(lister: Lister, objects: Objects) {
    let namespace = &lister.0;
    let result = read(namespace, objects).await;
    match &result {
        Ok(()) => tell(namespace),
        Err(error) => tracing::error!(
            "the listing of {} failed, names that it has not reached give errors: {error}",
            namespace.tree().root()
        ),
    }
    namespace.end(result);
}

async fn read(namespace: &Namespace, objects: Objects) -> Result<()> {
    let mut batches = objects.ready_chunks(BATCH_OBJECTS);
    while let Some(batch) = batches.next().await {
        let (good, failed): (Vec<_>, Vec<_>) = batch.into_iter().partition(Result::is_ok);
        let good: Vec<ObjectMeta> = good.into_iter().filter_map(Result::ok).collect();
        namespace.add(&good)?;
        namespace
            .progress
            .send_modify(|progress| progress.batches += 1);
        if let Some(Err(error)) = failed.into_iter().next() {
            return Err(error);
        }
    }
    Ok(())
}

fn tell(namespace: &Namespace) {
    let tree = namespace.tree();
    tracing::info!(
        "{}: {} objects, {} bytes",
        tree.root(),
        tree.files(),
        tree.total_bytes()
    );
    if tree.renamed() > 0 {
        tracing::warn!(
            "{}: {} names begin with {RESERVED}, because no file can have the name that the key asks for, or a directory \
             has it; the extended attribute user.standpipe.uri tells the key",
            tree.root(),
            tree.renamed()
        );
    }
}
