//! The server's life: a listener, a thread per connection, and an orderly end.
//!
//! Dropping [`FakeS3`] stops everything: the listener is shut down, which ends the accept thread; every socket is shut
//! down, which ends its thread's system call; every scripted pause is cut short. Then the drop waits for the threads.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustls::ServerConfig;

use crate::auth::{Auth, Credentials};
use crate::connection::Connection;
use crate::content::{Content, Memory};
use crate::log::{Log, LogEntry, Stats};
use crate::script::{Rule, Script};
use crate::shape::{Clock, Shape};
use crate::store::{Bucket, BucketOptions, PutOptions, Store};
use crate::tls::{self, Authority};
use crate::transport::Transport;

/// Enough for rustls' handshake without optimisation; only touched pages cost.
const STACK_BYTES: usize = 512 << 10;
/// Connections that wait to be accepted. The standard library's 128 are too few for clients that open hundreds at once:
/// the kernel drops some, and they try again a second later.
const BACKLOG: i32 = 4096;
/// How long a drop waits for connections' threads. They need microseconds.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// Entries that the log keeps unless told otherwise: some 100 MB at worst.
const LOG_LIMIT: usize = 200_000;

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) store: Store,
    pub(crate) script: Script,
    pub(crate) auth: Auth,
    pub(crate) log: Log,
    pub(crate) region: String,
    pub(crate) base_domains: Vec<String>,
    pub(crate) clock_offset_s: i64,
    pub(crate) session_s: i64,
    pub(crate) stop: Stop,
    shape: RwLock<(Shape, Option<Arc<Clock>>)>,
    tls: Option<Arc<ServerConfig>>,
    sockets: Mutex<HashMap<u64, Arc<TcpStream>>>,
    ended: Condvar,
}

/// A flag that cuts sleeps short.
#[derive(Debug, Default)]
pub(crate) struct Stop {
    stopped: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    fn set(&self) {
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    fn is_set(&self) -> bool {
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps, or fails because the server stops.
    pub(crate) fn sleep(&self, pause: Duration) -> io::Result<()> {
        if pause.is_zero() {
            Ok(())
        } else {
            self.sleep_until(Instant::now() + pause)
        }
    }

    /// Sleeps until `due`, or fails because the server stops.
    pub(crate) fn sleep_until(&self, due: Instant) -> io::Result<()> {
        let left = due.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        let guard = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self
            .changed
            .wait_timeout_while(guard, left, |stopped| !*stopped);
        let (stopped, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if *stopped {
            Err(io::ErrorKind::Interrupted.into())
        } else {
            Ok(())
        }
    }
}

impl Shared {
    /// The shape in force and the clock of its total bandwidth.
    pub(crate) fn shape(&self) -> (Shape, Option<Arc<Clock>>) {
        self.shape
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(crate) fn set_shape(&self, shape: Shape) {
        *self.shape.write().unwrap_or_else(PoisonError::into_inner) = with_clock(shape);
    }

    fn serve(&self, number: u64, socket: Arc<TcpStream>) {
        let transport = match &self.tls {
            Some(config) => Transport::tls(Arc::clone(config), socket),
            None => Ok(Transport::plain(socket)),
        };
        if let Ok(transport) = transport {
            Connection::new(self, transport, number).serve();
        }
        // Now the registry's is the last descriptor: removing it closes the connection, with a reset if one was asked for.
        self.log.disconnected();
        let mut sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        sockets.remove(&number);
        self.ended.notify_all();
    }

    fn sockets(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<TcpStream>>> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn with_clock(shape: Shape) -> (Shape, Option<Arc<Clock>>) {
    let clock = shape
        .total_bytes_per_second
        .map(|rate| Arc::new(Clock::new(rate as f64, Duration::from_millis(20))));
    (shape, clock)
}

/// Settings of a server before it starts.
#[derive(Debug)]
pub struct Builder {
    port: u16,
    tls: bool,
    keys: Vec<Credentials>,
    region: String,
    base_domains: Vec<String>,
    seed: u64,
    shape: Shape,
    log_limit: usize,
    log_file: Option<PathBuf>,
    memory_dir: Option<PathBuf>,
    clock_offset_s: i64,
    session_s: i64,
}

impl Default for Builder {
    fn default() -> Builder {
        Builder {
            port: 0,
            tls: false,
            keys: Vec::new(),
            region: "us-east-1".to_owned(),
            base_domains: vec!["localhost".to_owned(), "s3.localhost".to_owned()],
            seed: 0,
            shape: Shape::default(),
            log_limit: LOG_LIMIT,
            log_file: None,
            memory_dir: None,
            clock_offset_s: 0,
            session_s: 300,
        }
    }
}

impl Builder {
    /// A fixed port; by default the system chooses one.
    pub fn port(mut self, port: u16) -> Builder {
        self.port = port;
        self
    }

    /// Speaks TLS, with a certificate made at start.
    pub fn tls(mut self, tls: bool) -> Builder {
        self.tls = tls;
        self
    }

    /// Demands signatures by this key; may be called for several. Without any, everybody may do everything.
    pub fn auth(mut self, credentials: Credentials) -> Builder {
        self.keys.push(credentials);
        self
    }

    /// The server's region; buckets are there unless they say otherwise.
    pub fn region(mut self, region: impl Into<String>) -> Builder {
        self.region = region.into();
        self
    }

    /// A domain under which hosts name buckets, beside `localhost`, `s3.localhost` and Amazon's own.
    pub fn base_domain(mut self, domain: impl Into<String>) -> Builder {
        self.base_domains.push(domain.into());
        self
    }

    /// The seed of probabilities and latencies.
    pub fn seed(mut self, seed: u64) -> Builder {
        self.seed = seed;
        self
    }

    /// Latency and bandwidth of everything.
    pub fn shape(mut self, shape: Shape) -> Builder {
        self.shape = shape;
        self
    }

    /// How many log entries are kept; 0 keeps none and saves their cost.
    pub fn log_limit(mut self, entries: usize) -> Builder {
        self.log_limit = entries;
        self
    }

    /// Writes each entry as a line of JSON, too.
    pub fn log_file(mut self, path: impl Into<PathBuf>) -> Builder {
        self.log_file = Some(path.into());
        self
    }

    /// Where contents lie: a tmpfs with huge pages makes `sendfile` cheaper. By default anonymous memory files.
    pub fn memory_dir(mut self, dir: impl Into<PathBuf>) -> Builder {
        self.memory_dir = Some(dir.into());
        self
    }

    /// The server's clock runs ahead by so many seconds (or behind): clients' signatures look skewed.
    pub fn clock_offset_s(mut self, seconds: i64) -> Builder {
        self.clock_offset_s = seconds;
        self
    }

    /// How long sessions of S3 Express last; five minutes, unless told otherwise. They end on paper: what a session
    /// says of its end is for the client to heed.
    pub fn session_s(mut self, seconds: i64) -> Builder {
        self.session_s = seconds;
        self
    }

    /// Starts the server on 127.0.0.1.
    pub fn start(self) -> io::Result<FakeS3> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, self.port))?;
        rustix::net::listen(&listener, BACKLOG)?;
        // The standard library's 128 are too few for clients that open hundreds of connections at once: the kernel then
        // drops some, and they try again a second later.
        rustix::net::listen(&listener, BACKLOG)?;
        let addr = listener.local_addr()?;
        let authority = if self.tls {
            Some(Arc::new(Authority::new()?))
        } else {
            None
        };
        let log_file = self
            .log_file
            .as_ref()
            .map(std::fs::File::create)
            .transpose()?;
        let mut base_domains = self.base_domains;
        base_domains.push(format!("s3.{}.amazonaws.com", self.region));
        base_domains.push("s3.amazonaws.com".to_owned());
        let shared = Arc::new(Shared {
            store: Store::new(Memory::new(self.memory_dir)),
            script: Script::new(self.seed),
            log: Log::new(self.log_limit, log_file),
            tls: authority.as_ref().map(tls::config).transpose()?,
            auth: Auth::new(self.keys.clone()),
            region: self.region,
            base_domains,
            clock_offset_s: self.clock_offset_s,
            session_s: self.session_s,
            stop: Stop::default(),
            shape: RwLock::new(with_clock(self.shape)),
            sockets: Mutex::default(),
            ended: Condvar::new(),
        });
        let listener = Arc::new(listener);
        let accept = {
            let (shared, listener) = (Arc::clone(&shared), Arc::clone(&listener));
            std::thread::Builder::new()
                .name("fake-s3 accept".to_owned())
                .spawn(move || accept(&shared, &listener))?
        };
        Ok(FakeS3 {
            shared,
            listener,
            addr,
            authority,
            keys: self.keys,
            accept: Some(accept),
        })
    }
}

/// Accepts until the listener is shut down.
fn accept(shared: &Arc<Shared>, listener: &TcpListener) {
    loop {
        let socket = match listener.accept() {
            Ok((socket, _)) => socket,
            Err(_) if shared.stop.is_set() => return,
            // Out of descriptors, most likely: some connection will end.
            Err(_) => {
                std::thread::sleep(Duration::from_millis(5));
                continue;
            }
        };
        if shared.stop.is_set() {
            return;
        }
        // Refused only if the machine has no threads left; the client sees a closed connection.
        let _ = adopt(shared, socket);
    }
}

fn adopt(shared: &Arc<Shared>, socket: TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let socket = Arc::new(socket);
    let number = shared.log.connected();
    shared.sockets().insert(number, Arc::clone(&socket));
    let thread = Arc::clone(shared);
    let spawned = std::thread::Builder::new()
        .name("fake-s3".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(move || thread.serve(number, socket));
    if spawned.is_err() {
        shared.sockets().remove(&number);
        shared.log.disconnected();
    }
    spawned.map(|_| ())
}

/// A running server; it stops when dropped.
#[derive(Debug)]
pub struct FakeS3 {
    shared: Arc<Shared>,
    listener: Arc<TcpListener>,
    addr: SocketAddr,
    authority: Option<Arc<Authority>>,
    keys: Vec<Credentials>,
    /// Joined by the drop, after the listener was shut down.
    accept: Option<JoinHandle<()>>,
}

impl FakeS3 {
    /// Settings to start from.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// A plain, anonymous server.
    pub fn start() -> io::Result<FakeS3> {
        Builder::default().start()
    }

    /// `http://127.0.0.1:PORT`, or `https://localhost:PORT`.
    pub fn endpoint(&self) -> String {
        match self.authority {
            Some(_) => format!("https://localhost:{}", self.addr.port()),
            None => format!("http://{}", self.addr),
        }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The certificate to trust, in TLS mode.
    pub fn ca_pem(&self) -> Option<&str> {
        self.authority.as_ref().map(|authority| authority.ca_pem())
    }

    /// The first key, if signatures are checked.
    pub fn credentials(&self) -> Option<&Credentials> {
        self.keys.first()
    }

    /// The server's region.
    pub fn region(&self) -> &str {
        &self.shared.region
    }

    /// Makes a bucket, or changes the options of one.
    pub fn create_bucket(&self, name: &str, options: BucketOptions) {
        self.shared.store.create_bucket(name, options);
    }

    fn bucket(&self, name: &str) -> Arc<Bucket> {
        self.shared.store.ensure_bucket(name)
    }

    /// Puts an object and returns its ETag with quotes. The bucket is made if need be.
    ///
    /// # Panics
    /// If the system has no memory file left; so do all the methods that put.
    pub fn put(&self, bucket: &str, key: &str, bytes: &[u8]) -> String {
        self.put_with(bucket, key, bytes, PutOptions::default())
    }

    /// Puts an object with more than bytes.
    pub fn put_with(&self, bucket: &str, key: &str, bytes: &[u8], options: PutOptions) -> String {
        let version = self
            .shared
            .store
            .put(&self.bucket(bucket), key, bytes, options);
        version.expect("memory for an object").etag.clone()
    }

    /// Puts an object whose bytes are computed: [`content`](crate::content()) tells them. Any size costs no memory.
    pub fn put_synthetic(&self, bucket: &str, key: &str, size_bytes: u64, seed: u64) -> String {
        self.put_synthetic_with(bucket, key, size_bytes, seed, PutOptions::default())
    }

    /// The same with more than bytes.
    pub fn put_synthetic_with(
        &self,
        bucket: &str,
        key: &str,
        size_bytes: u64,
        seed: u64,
        options: PutOptions,
    ) -> String {
        let version =
            self.shared
                .store
                .put_synthetic(&self.bucket(bucket), key, size_bytes, seed, options);
        version.expect("memory for the pattern").etag.clone()
    }

    /// Puts a file as it lies on disk, which nobody may change afterwards.
    pub fn put_file(&self, bucket: &str, key: &str, path: &std::path::Path) -> io::Result<String> {
        let content: Content = self.shared.store.memory.open(path)?;
        let bucket = self.bucket(bucket);
        Ok(self
            .shared
            .store
            .put_content(&bucket, key, content, PutOptions::default())
            .etag
            .clone())
    }

    /// Replaces an object: a new version with a new ETag, which is returned. Downloads under way keep the old one.
    pub fn replace(&self, bucket: &str, key: &str, bytes: &[u8]) -> String {
        self.put(bucket, key, bytes)
    }

    /// Deletes an object.
    pub fn delete(&self, bucket: &str, key: &str) {
        let _ = self.shared.store.delete(&self.bucket(bucket), key);
    }

    /// Adds rules for requests whose `bucket/key` starts with `prefix` followed by the rule's own prefix.
    pub fn script(&self, prefix: &str, rules: Vec<Rule>) {
        let prefixed = rules.into_iter().map(|mut rule| {
            rule.prefix.insert_str(0, prefix);
            rule
        });
        self.shared.script.add(prefixed.collect());
    }

    /// Forgets all rules.
    pub fn clear_script(&self) {
        self.shared.script.clear();
    }

    /// Changes latency and bandwidth of everything.
    pub fn set_shape(&self, shape: Shape) {
        self.shared.set_shape(shape);
    }

    /// All requests so far, in order of arrival.
    pub fn log(&self) -> Vec<LogEntry> {
        self.shared.log.entries()
    }

    /// Forgets the requests so far.
    pub fn clear_log(&self) {
        self.shared.log.clear();
    }

    /// Counters since the start.
    pub fn stats(&self) -> Stats {
        self.shared.log.stats()
    }

    /// Shuts every open connection down, as a restart of the server would.
    pub fn disconnect_all(&self) {
        for socket in self.shared.sockets().values() {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for FakeS3 {
    fn drop(&mut self) {
        self.shared.stop.set();
        let _ = rustix::net::shutdown(&*self.listener, rustix::net::Shutdown::Both);
        if let Some(accept) = self.accept.take() {
            let _ = accept.join();
        }
        self.disconnect_all();
        let sockets = self.shared.sockets();
        let _ = self
            .shared
            .ended
            .wait_timeout_while(sockets, STOP_PATIENCE, |sockets| !sockets.is_empty());
    }
}
