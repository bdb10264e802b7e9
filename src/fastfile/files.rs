//! The files of a prefix without a mount: the same names, bytes, windows and cache, by calls of this library.
//!
//! [`FastFiles::open`] starts the listing and returns; names are known as it arrives, and whoever asks for one that has
//! not come yet waits for it. A [`FastFile`] is read as a [`std::fs::File`] is (`Read`, `Seek`, `read_at` from many
//! threads), or asynchronously ([`FastFile::into_async`]); nothing is fetched before it is read. Calls that wait may be
//! made from any thread, within a Tokio runtime or without one: the work is done on the process's own runtime. They hold
//! up their thread, as file operations do.
//!
//! With a [cache](FastFilesBuilder::cache) what was read stays on disk, and [`FastFile::path`] gives a file that other
//! programs can read. Errors are [`std::io::Error`]s around a [`crate::error::Error`], which names the object.
//!
//! ```
//! use std::io::Read;
//! use std::sync::Arc;
//! use standpipe::client::MemoryClient;
//! use standpipe::fastfile::FastFiles;
//!
//! let client = MemoryClient::default();
//! client.put("memory://bucket/train/cats/1.jpg".parse()?, "a cat");
//! client.put("memory://bucket/train/dogs/1.jpg".parse()?, "a dog");
//! let files = FastFiles::builder("memory://bucket/train/".parse()?)
//!     .client(Arc::new(client))
//!     .open()?;
//!
//! let names: Vec<_> = files.list("")?.map(|entry| entry.unwrap().path).collect();
//! assert_eq!(names, ["cats", "dogs"]);
//! let mut bytes = String::new();
//! files.open_file("dogs/1.jpg")?.read_to_string(&mut bytes)?;
//! assert_eq!(bytes, "a dog");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! An S3 prefix takes one line, `FastFiles::open("s3://bucket/train/")?`, with the credentials and region that the AWS
//! CLI would use.

mod entries;
mod file;
mod local;
mod wait;

use std::fmt;
use std::io;
use std::path::{Component, Path};
use std::sync::Arc;

use super::errno::to_io;
use super::read::{OpenFiles, ReadConfig};
use super::source::Windows;
use super::tree::{Ino, Namespace, Root};
use crate::buffer::class_bytes;
use crate::cache::{BlockCache, CacheConfig, CachedClient};
use crate::checksum::ChecksumPolicy;
use crate::client::{LocalClient, ObjectClient, S3Client, S3Config, resilient};
use crate::error::{Answer, Error, Result};
use crate::input::Shard;
use crate::metrics::Metrics;
use crate::object::{ObjectUri, Scheme};

pub use entries::{Entries, Entry};
pub use file::{AsyncFile, FastFile};
pub use local::{LocalFile, MappedFile};

/// The files below a prefix. Clones are the same.
#[derive(Debug, Clone)]
pub struct FastFiles {
    namespace: Arc<Namespace>,
    windows: Arc<Windows>,
}

impl FastFiles {
    /// The files below `s3://bucket/prefix/` or in a local directory, with default settings and without a cache.
    ///
    /// ```
    /// use standpipe::fastfile::FastFiles;
    ///
    /// let dir = tempfile::tempdir()?;
    /// std::fs::write(dir.path().join("a"), "bytes")?;
    /// let files = FastFiles::open(dir.path().to_str().unwrap())?;
    /// assert_eq!(files.stat("a")?.size_bytes, 5);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// What is wrong with the URI, the credentials, or the first page of the listing.
    pub fn open(uri: &str) -> Result<Self> {
        Self::builder(uri.parse()?).open()
    }

    /// Says how they are opened.
    pub fn builder(uri: ObjectUri) -> FastFilesBuilder {
        FastFilesBuilder {
            uri,
            client: None,
            s3: S3Config::default(),
            cache: None,
            reads: ReadConfig::default(),
            shard: Shard::WHOLE,
            metrics: Arc::default(),
        }
    }

    /// What is in a folder, in the order of the listing, as the listing arrives; `""` is the prefix itself.
    ///
    /// # Errors
    /// `NotFound`, `NotADirectory`, or the listing's failure.
    pub fn list(&self, folder: impl AsRef<Path>) -> io::Result<Entries> {
        self.entries(folder.as_ref(), false)
    }

    /// Everything below a folder: each directory, then what is in it.
    ///
    /// # Errors
    /// As [`list`](Self::list).
    pub fn walk(&self, folder: impl AsRef<Path>) -> io::Result<Entries> {
        self.entries(folder.as_ref(), true)
    }

    fn entries(&self, folder: &Path, is_deep: bool) -> io::Result<Entries> {
        let entry = self.stat(folder)?;
        if !entry.is_directory {
            let error = Error::config(entry.uri.to_string(), "is a file: list its folder");
            return Err(io::Error::new(io::ErrorKind::NotADirectory, error));
        }
        Ok(Entries::new(self.namespace.clone(), entry, is_deep))
    }

    /// What is known of a file or folder, without a request.
    ///
    /// # Errors
    /// `NotFound`, or the listing's failure.
    pub fn stat(&self, path: impl AsRef<Path>) -> io::Result<Entry> {
        wait::until(self.stat_async(path)).map_err(to_io)
    }

    /// The same for tasks.
    ///
    /// # Errors
    /// [`Error::NotFound`], or the listing's failure.
    pub async fn stat_async(&self, path: impl AsRef<Path>) -> Result<Entry> {
        let path = path.as_ref();
        let ino = self.find(path).await?;
        let names = path.components().filter_map(|part| match part {
            Component::Normal(name) => name.to_str(),
            _ => None,
        });
        let name = names.collect::<Vec<_>>().join("/");
        let found = Entry::of(&self.namespace.tree(), ino, name);
        found.ok_or_else(|| self.not_found(path))
    }

    /// Opens a file, without a request. Each opener has a position and a window of its own.
    ///
    /// # Errors
    /// `NotFound`, `IsADirectory`, or the listing's failure.
    pub fn open_file(&self, path: impl AsRef<Path>) -> io::Result<FastFile> {
        let ino = wait::until(self.find(path.as_ref())).map_err(to_io)?;
        self.open_ino(ino)
    }

    /// The same for tasks.
    ///
    /// # Errors
    /// As [`open_file`](Self::open_file).
    pub async fn open_file_async(&self, path: impl AsRef<Path>) -> io::Result<FastFile> {
        let ino = self.find(path.as_ref()).await.map_err(to_io)?;
        self.open_ino(ino)
    }

    fn open_ino(&self, ino: Ino) -> io::Result<FastFile> {
        let tree = self.namespace.tree();
        let Some(object) = tree.object(ino) else {
            let uri = tree.uri(ino).map(|uri| uri.to_string());
            let error = Error::config(uri.unwrap_or_default(), "is a folder: open a file in it");
            return Err(io::Error::new(io::ErrorKind::IsADirectory, error));
        };
        drop(tree);
        let file = self.windows.windowed(ino, object).map_err(to_io)?;
        Ok(FastFile::new(file, self.windows.clone()))
    }

    /// Says which files will be read, in this order: the next ones of a sampler, or a whole epoch's. As many as fit in a
    /// quarter of the memory are fetched, and the others as those are read. Files that are read in the listing's order,
    /// also by several readers, need not be told.
    ///
    /// # Errors
    /// As [`stat`](Self::stat); nothing is fetched then.
    pub fn prefetch<P: AsRef<Path>>(&self, order: impl IntoIterator<Item = P>) -> io::Result<()> {
        let mut inos = Vec::new();
        for path in order {
            inos.push(wait::until(self.find(path.as_ref())).map_err(to_io)?);
        }
        self.windows.prefetch(inos);
        Ok(())
    }

    /// The number of a name; waits until the listing has decided it.
    async fn find(&self, path: &Path) -> Result<Ino> {
        let mut at = Ino::ROOT;
        for part in path.components() {
            let found = match part {
                Component::RootDir | Component::CurDir => continue,
                Component::Normal(name) => {
                    let name = name.as_encoded_bytes();
                    self.namespace.lookup(at, name).await?
                }
                Component::ParentDir | Component::Prefix(_) => None,
            };
            at = found.ok_or_else(|| self.not_found(path))?;
        }
        Ok(at)
    }

    fn not_found(&self, path: &Path) -> Error {
        Error::NotFound {
            uri: format!("{}{}", self.uri(), path.display()),
            offset: None,
            answer: Box::new(Answer {
                message: Some("the listing has no such name".into()),
                ..Answer::default()
            }),
        }
    }

    /// What every key begins with.
    pub fn uri(&self) -> ObjectUri {
        self.namespace.tree().root().clone()
    }

    /// The names, for [a mount](super::fuse) of the same files.
    pub fn namespace(&self) -> &Arc<Namespace> {
        &self.namespace
    }

    /// The bytes, for [a mount](super::fuse) of the same files.
    pub fn source(&self) -> &Arc<Windows> {
        &self.windows
    }

    /// The cache that they are read through.
    pub fn cache(&self) -> Option<&BlockCache> {
        self.windows.cache()
    }

    /// Their memory and requests.
    pub fn open_files(&self) -> &OpenFiles {
        self.windows.files()
    }
}

/// How [`FastFiles`] are opened.
#[must_use]
pub struct FastFilesBuilder {
    uri: ObjectUri,
    client: Option<Arc<dyn ObjectClient>>,
    s3: S3Config,
    cache: Option<CacheConfig>,
    reads: ReadConfig,
    shard: Shard,
    metrics: Arc<Metrics>,
}

impl FastFilesBuilder {
    /// Reads through this client, which retries by itself ([`resilient`]), and not through one for the URI's scheme.
    pub fn client(mut self, client: Arc<dyn ObjectClient>) -> Self {
        self.client = Some(client);
        self
    }

    /// How to connect to S3.
    pub fn s3(mut self, config: S3Config) -> Self {
        self.s3 = config;
        self
    }

    /// Keeps what is read on disk. Local files need none, and have none.
    /// What waits to be written is of the memory of [`reads`](Self::reads).
    pub fn cache(mut self, config: CacheConfig) -> Self {
        self.cache = Some(config);
        self
    }

    /// Memory, parts and requests. What depends on a cache is set to fit to it.
    pub fn reads(mut self, config: ReadConfig) -> Self {
        self.reads = config;
        self
    }

    /// Only a host's share of the files: of those in the order of the listing every `count`-th.
    pub fn shard(mut self, shard: Shard) -> Self {
        self.shard = shard;
        self
    }

    /// Counts into these.
    pub fn metrics(mut self, metrics: Arc<Metrics>) -> Self {
        self.metrics = metrics;
        self
    }

    /// Connects and starts the listing; returns with its first objects.
    ///
    /// # Errors
    /// As [`FastFiles::open`].
    pub fn open(self) -> Result<FastFiles> {
        wait::on_runtime(self.open_async())
    }

    /// The same for tasks.
    ///
    /// # Errors
    /// As [`FastFiles::open`].
    pub async fn open_async(mut self) -> Result<FastFiles> {
        let (client, endpoint) = self.connect().await?;
        let mut cache = None;
        let mut client = client;
        if let Some(mut config) = self.cache.take().filter(|_| self.is_remote()) {
            if config.namespace.is_empty() {
                config.namespace = endpoint.unwrap_or_default();
            }
            share(&mut self.reads, &mut config)?;
            let opened = BlockCache::open(config, self.metrics.clone())?;
            client = Arc::new(CachedClient::new(client, opened.clone()));
            fit(&mut self.reads, &opened);
            cache = Some(opened);
        }
        let files = OpenFiles::new(client.clone(), self.reads, self.metrics)?;
        let root = Root::resolve(&client, &self.uri).await?;
        let namespace = Namespace::start_share(&client, root, self.shard).await?;
        let windows = Windows::new(files, cache).looking_ahead(namespace.clone());
        Ok(FastFiles {
            namespace,
            windows: Arc::new(windows),
        })
    }

    fn is_remote(&self) -> bool {
        self.uri.scheme() != Scheme::File
    }

    /// The client, and the endpoint that tells its objects from those of other stores.
    async fn connect(&mut self) -> Result<(Arc<dyn ObjectClient>, Option<String>)> {
        if let Some(client) = self.client.take() {
            return Ok((client, None));
        }
        match self.uri.scheme() {
            Scheme::File => Ok((Arc::new(LocalClient::new(self.metrics.clone())), None)),
            Scheme::S3 => {
                let config = std::mem::take(&mut self.s3);
                refuse_to_require(config.checksums)?;
                let s3 = S3Client::connect(config, self.metrics.clone()).await?;
                let endpoint = s3.endpoint_url().map(str::to_owned);
                let most = self.reads.most_requests();
                Ok((resilient(Arc::new(s3), most, &self.metrics), endpoint))
            }
            Scheme::Memory => Err(Error::config(
                self.uri.to_string(),
                "objects in memory are a client's: hand it to the builder",
            )),
        }
    }
}

/// A file that is read in ranges can't be compared with the CRC of the whole, and nobody should believe that it was.
pub(crate) fn refuse_to_require(checksums: ChecksumPolicy) -> Result<()> {
    if checksums != ChecksumPolicy::Require {
        return Ok(());
    }
    Err(Error::config(
        "--checksums require",
        "FastFile mode reads ranges, of which S3 tells no checksum: use when-possible, or another mode",
    ))
}

impl fmt::Debug for FastFilesBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FastFilesBuilder")
            .field("uri", &self.uri)
            .field("cache", &self.cache)
            .field("reads", &self.reads)
            .finish_non_exhaustive()
    }
}

/// What waits to be written to the cache is of the same memory as what waits to be read: at most a quarter of it, or a
/// part. Where that leaves no part to read, parts become smaller, so that each side has half.
fn share(reads: &mut ReadConfig, cache: &mut CacheConfig) -> Result<()> {
    let half = reads.memory_bytes / 2;
    while class_bytes(reads.part_bytes) > half && reads.part_bytes / 2 >= cache.block_bytes {
        reads.part_bytes /= 2;
    }
    let part_bytes = class_bytes(reads.part_bytes);
    if part_bytes.max(cache.block_bytes) > half {
        let least = 2 * part_bytes.max(cache.block_bytes);
        let reason = format!(
            "{} bytes do not hold a part that is read and one that waits to be written to the cache: use at least {least}, \
             or no cache",
            reads.memory_bytes
        );
        return Err(Error::config("memory", reason));
    }
    // What is fetched in one request waits as one: a queue without room for it would keep nothing.
    let most = (reads.memory_bytes / 4)
        .max(part_bytes)
        .max(cache.block_bytes);
    cache.write_behind_bytes = cache.write_behind_bytes.min(most);
    reads.memory_bytes -= cache.write_behind_bytes;
    Ok(())
}

/// Parts end where the cache's blocks do, and a block is no larger than a part.
fn fit(reads: &mut ReadConfig, cache: &BlockCache) {
    reads.over_cache = true;
    reads.block_bytes = cache.block_bytes();
    while reads.block_bytes > reads.part_bytes {
        reads.block_bytes /= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    fn shared(memory_bytes: u64, part_bytes: u64) -> Result<(ReadConfig, CacheConfig)> {
        let mut reads = ReadConfig {
            memory_bytes,
            part_bytes,
            ..ReadConfig::default()
        };
        reads.block_bytes = reads.block_bytes.min(part_bytes);
        let mut cache = CacheConfig::new("unused");
        share(&mut reads, &mut cache)?;
        Ok((reads, cache))
    }

    #[test]
    fn memory_of_one_part_is_halved_and_of_one_block_refused() {
        let (reads, cache) = shared(8 * MIB, 8 * MIB).unwrap();
        assert_eq!((reads.part_bytes, reads.memory_bytes), (4 * MIB, 4 * MIB));
        assert_eq!(cache.write_behind_bytes, 4 * MIB);
        let refused = shared(MIB, MIB).unwrap_err();
        assert!(
            refused.to_string().contains("at least 2097152"),
            "{refused}"
        );
    }

    proptest! {
        /// Whatever is given, both together keep to it, and each has room for what is fetched in one request.
        #[test]
        fn the_cache_and_the_reads_share_one_memory(memory_kib in 1024..1_000_000u64, part_kib in 64..64 * 1024u64) {
            let (memory, part) = (memory_kib << 10, part_kib << 10);
            let part = if part < MIB { part.next_power_of_two().min(MIB) } else { part };
            if let Ok((reads, cache)) = shared(memory, part) {
                prop_assert!(reads.memory_bytes + cache.write_behind_bytes <= memory);
                prop_assert!(class_bytes(reads.part_bytes) <= reads.memory_bytes);
                prop_assert!(class_bytes(reads.part_bytes) <= cache.write_behind_bytes || cache.write_behind_bytes == CacheConfig::new("unused").write_behind_bytes);
                prop_assert!(reads.part_bytes <= part);
                prop_assert!(reads.validate().is_ok());
            } else {
                prop_assert!(memory < 2 * class_bytes(part.max(MIB)), "refused {memory} for parts of {part}");
            }
        }
    }
}
