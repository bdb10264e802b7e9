//! A client, a way to put objects where it reads, and what to look at when it is done.

use std::any::Any;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fake_s3::FakeS3;
use futures::TryStreamExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::service::S3ServiceBuilder;
use standpipe::buffer::{BufferPool, MemoryBudget, PartBuf, class_bytes};
use standpipe::client::{
    AccessKey, Depth, GetMeta, ListEntry, LocalClient, MemoryClient, ObjectClient, S3Client,
    S3Config, Transport,
};
use standpipe::error::Result;
use standpipe::metrics::Metrics;
use standpipe::object::{ByteRange, ObjectId, ObjectUri};
use tempfile::NamedTempFile;
use tokio::net::TcpListener;

/// Puts the bytes under a key below the root.
type Put = Box<dyn Fn(&str, &[u8]) + Send + Sync>;

/// Everything that a suite needs of one client.
pub(crate) struct World {
    pub(crate) client: Arc<dyn ObjectClient>,
    /// The prefix that all keys of the world have.
    pub(crate) root: ObjectUri,
    pub(crate) put: Put,
    /// An object in a bucket that does not exist, where there are buckets.
    pub(crate) missing_bucket: Option<ObjectUri>,
    /// Whether a listing tells every key as it is.
    pub(crate) tells_all_keys: bool,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) budget: MemoryBudget,
    pub(crate) pool: BufferPool,
    /// Servers and directories that the client needs.
    pub(crate) keep: Box<dyn Any + Send + Sync>,
}

impl World {
    pub(crate) fn new(
        client: Arc<dyn ObjectClient>,
        root: ObjectUri,
        metrics: Arc<Metrics>,
        put: impl Fn(&str, &[u8]) + Send + Sync + 'static,
    ) -> Self {
        Self {
            client,
            root,
            put: Box::new(put),
            missing_bucket: None,
            tells_all_keys: true,
            budget: MemoryBudget::new(64 << 20),
            pool: BufferPool::new(64 << 20, metrics.clone()),
            metrics,
            keep: Box::new(()),
        }
    }

    pub(crate) fn uri(&self, key: &str) -> ObjectUri {
        self.root.with_key(format!("{}{key}", self.root.key()))
    }

    pub(crate) fn put(&self, key: &str, bytes: &[u8]) -> ObjectUri {
        (self.put)(key, bytes);
        self.uri(key)
    }

    /// A buffer that is paid for, as the engine's are.
    pub(crate) fn part(&self, len: u64) -> PartBuf {
        let reservation = self.budget.try_reserve(class_bytes(len), 0);
        self.pool
            .part(reservation.expect("room in the budget"), len as usize)
    }

    /// Reads `range` into a new part and gives what has arrived, whatever the answer.
    pub(crate) async fn read(&self, id: &ObjectId, range: ByteRange) -> (Vec<u8>, Result<GetMeta>) {
        let mut part = self.part(range.len());
        let answer = self.client.get(id, range, &mut part).await;
        (part.filled().to_vec(), answer)
    }

    /// Keys below the root; common prefixes end in `/`.
    pub(crate) async fn list(&self, prefix: &str, depth: Depth) -> Result<Vec<String>> {
        let entries: Vec<ListEntry> = self
            .client
            .list(&self.uri(prefix), depth)
            .try_collect()
            .await?;
        let root = self.root.key().len();
        let key = |entry: &ListEntry| match entry {
            ListEntry::Object(meta) => meta.id.uri.key()[root..].to_string(),
            ListEntry::Prefix(uri) => uri.key()[root..].to_string(),
        };
        Ok(entries.iter().map(key).collect())
    }

    /// Nothing is held and nothing is under way, at the latest in a moment.
    pub(crate) async fn assert_nothing_leaked(&self) {
        let held = || {
            (
                self.budget.reserved(),
                self.metrics.requests_in_flight.get(),
            )
        };
        eventually("no bytes and no requests are held", || held() == (0, 0)).await;
    }
}

/// Waits for what happens on another thread. The limit is for a test that fails.
pub(crate) async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(5), "not so: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

pub(crate) fn memory() -> World {
    let memory = MemoryClient::default();
    over_memory(Arc::new(memory.clone()), memory, Arc::default())
}

/// `client` reads what is in `memory`, in whatever way.
pub(crate) fn over_memory(
    client: Arc<dyn ObjectClient>,
    memory: MemoryClient,
    metrics: Arc<Metrics>,
) -> World {
    let root: ObjectUri = "memory://bucket/".parse().unwrap();
    let of = root.clone();
    World::new(client, root, metrics, move |key, bytes| {
        memory.put(of.with_key(key), bytes.to_vec());
    })
}

pub(crate) fn local() -> World {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_path_buf();
    let root = format!("file://{}/", path.display()).parse().unwrap();
    let metrics = Arc::new(Metrics::default());
    let client = Arc::new(LocalClient::new(metrics.clone()));
    let mut world = World::new(client, root, metrics, move |key, bytes| {
        let to = path.join(key);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        // Under another name first: a reader sees the old file or the new one.
        let staged = path.join(".staged");
        std::fs::write(&staged, bytes).unwrap();
        std::fs::rename(staged, to).unwrap();
    });
    world.keep = Box::new(directory);
    world
}

/// How a server is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wire {
    Plain,
    Tls,
}

pub(crate) fn server(wire: Wire) -> Arc<FakeS3> {
    Arc::new(FakeS3::builder().tls(wire == Wire::Tls).start().unwrap())
}

/// What a client waits for a server on loopback. It answers within a millisecond, unless two cores run twenty tests:
/// then 400 ms have been too few.
pub(crate) const PATIENCE: Duration = Duration::from_millis(1_500);

/// Settings for `server`, with time limits for a server on loopback, and what they need on disk.
pub(crate) fn s3_config(
    server: &FakeS3,
    transport: Transport,
) -> (S3Config, Option<NamedTempFile>) {
    let ca_file = server.ca_pem().map(|pem| {
        let file = NamedTempFile::new().unwrap();
        std::fs::write(file.path(), pem).unwrap();
        file
    });
    let config = S3Config {
        endpoint_url: Some(server.endpoint()),
        region: Some(server.region().to_string()),
        anonymous: true,
        ca_bundle: ca_file.as_ref().map(|file| file.path().to_path_buf()),
        transport,
        first_byte_timeout: PATIENCE,
        progress_timeout: PATIENCE,
        ..S3Config::default()
    };
    (config, ca_file)
}

/// `bucket` of a scripted server, through whatever `decorate` puts around the client.
pub(crate) async fn s3(
    server: Arc<FakeS3>,
    transport: Transport,
    decorate: impl FnOnce(Arc<dyn ObjectClient>, Arc<Metrics>) -> Arc<dyn ObjectClient>,
) -> World {
    s3_within(server, transport, PATIENCE, decorate).await
}

/// The same with another patience.
pub(crate) async fn s3_within(
    server: Arc<FakeS3>,
    transport: Transport,
    patience: Duration,
    decorate: impl FnOnce(Arc<dyn ObjectClient>, Arc<Metrics>) -> Arc<dyn ObjectClient>,
) -> World {
    let (mut config, ca_file) = s3_config(&server, transport);
    (config.first_byte_timeout, config.progress_timeout) = (patience, patience);
    let metrics = Arc::new(Metrics::default());
    let client = S3Client::connect(config, metrics.clone()).await.unwrap();
    assert_eq!(client.transport(), transport);
    let client = decorate(Arc::new(client), metrics.clone());
    let puts = server.clone();
    let root = ObjectUri::s3("bucket", "");
    let mut world = World::new(client, root, metrics, move |key, bytes| {
        puts.put("bucket", key, bytes);
    });
    world.missing_bucket = Some(ObjectUri::s3("no-such-bucket", "k"));
    world.keep = Box::new((server, ca_file));
    world
}

/// A bucket of `s3s-fs`, a server that somebody else wrote, with signatures checked.
pub(crate) async fn s3s_fs(transport: Transport) -> World {
    let directory = tempfile::tempdir().unwrap();
    let bucket = directory.path().join("bucket");
    std::fs::create_dir(&bucket).unwrap();
    let addr = serve_s3s(directory.path()).await;
    let config = S3Config {
        endpoint_url: Some(format!("http://{addr}")),
        region: Some("us-east-1".into()),
        access_key: Some(AccessKey {
            id: "AK".into(),
            secret: "SK".into(),
            session_token: None,
        }),
        transport,
        ..S3Config::default()
    };
    let metrics = Arc::new(Metrics::default());
    let client = S3Client::connect(config, metrics.clone()).await.unwrap();
    let root = ObjectUri::s3("bucket", "");
    let mut world = World::new(Arc::new(client), root, metrics, move |key, bytes| {
        let to = bucket.join(key);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::write(to, bytes).unwrap();
    });
    world.missing_bucket = Some(ObjectUri::s3("no-such-bucket", "k"));
    // Its listings claim to be URL-encoded and are not, so that `%2F` cannot be told from `/`, nor `+` from a space.
    world.tells_all_keys = false;
    world.keep = Box::new(directory);
    world
}

/// Serves a folder, whose folders are buckets, until the test's runtime ends.
pub(crate) async fn serve_s3s(root: &Path) -> SocketAddr {
    let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(root).unwrap());
    builder.set_auth(s3s::auth::SimpleAuth::from_single("AK", "SK"));
    let service = builder.build();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let http = Builder::new(TokioExecutor::new());
        while let Ok((socket, _)) = listener.accept().await {
            let connection = http.serve_connection(TokioIo::new(socket), service.clone());
            tokio::spawn(connection.into_owned());
        }
    });
    addr
}
