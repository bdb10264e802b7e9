//! The baseline: what raw sockets can do, with nothing in between.
//!
//! Benchmarks divide by these numbers, so they must be honest and fast. Each connection has a thread and a blocking
//! socket. A response is received straight into a pooled, prefaulted buffer on huge pages, head and body in one run of
//! `recv`; the body is handed out where it lies, behind the head, so that no byte is copied in user space. No
//! signatures, no retries, no checks but the length: a server in anonymous mode is needed.
//!
//! [`RawReader`] reads one object in order by ranges, [`fetch_objects`] many objects whole, [`small_requests`] one
//! range after another on each connection.
#![expect(unsafe_code, reason = "buffers on huge pages")]

use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::ptr::NonNull;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use rustix::mm::{Advice, MapFlags, ProtFlags};
use rustix::net::RecvFlags;

/// Room for a response's head, in front of the body.
const HEAD_BYTES: usize = 4 << 10;
/// Size of a huge page.
const HUGE_BYTES: usize = 2 << 20;

/// In which order results reach the sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// As asked for, on the calling thread.
    InOrder,
    /// As they come, on the thread that received them, one at a time.
    Any,
}

/// Reads an object by ranged GETs on several connections, parts in order. Connections and buffers are kept, so a second
/// [`RawReader::read`] is warm.
#[derive(Debug)]
pub struct RawReader {
    connections: Vec<Connection>,
    buffers: Vec<Buffer>,
    host: String,
    path: String,
    size_bytes: u64,
    part_bytes: u64,
}

impl RawReader {
    /// Connects and allocates two buffers for each connection: one being filled, one waiting for its turn. `path` is
    /// `/bucket/key`, encoded.
    pub fn connect(
        addr: SocketAddr,
        path: &str,
        size_bytes: u64,
        part_bytes: u64,
        connections: usize,
    ) -> io::Result<RawReader> {
        Ok(RawReader {
            connections: connect_all(addr, connections)?,
            buffers: Buffer::several(2 * connections, part_bytes.min(size_bytes) as usize)?,
            host: addr.to_string(),
            path: path.to_owned(),
            size_bytes,
            part_bytes,
        })
    }

    /// Reads the whole object; `sink` gets each part in order, on the calling thread. Returns the bytes.
    pub fn read(&mut self, sink: impl FnMut(&[u8]) + Send) -> io::Result<u64> {
        let mut sink = sink;
        let (size, part) = (self.size_bytes, self.part_bytes);
        let (host, path) = (&self.host, &self.path);
        let request = |index: u64, out: &mut Vec<u8>| {
            let first = index * part;
            let last = (first + part).min(size) - 1;
            write_get(out, host, path, Some((first, last)));
        };
        let parts = size.div_ceil(part);
        let bytes = run(
            &mut self.connections,
            &mut self.buffers,
            parts,
            &request,
            Order::InOrder,
            &mut |_, body| sink(body),
        )?;
        if bytes == size {
            Ok(bytes)
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }
}

/// Gets whole objects, each connection one after another. `paths` are `/bucket/key`, encoded; no object is larger than
/// `max_bytes`. Returns the bytes.
pub fn fetch_objects(
    addr: SocketAddr,
    paths: &[String],
    max_bytes: u64,
    connections: usize,
    order: Order,
    mut sink: impl FnMut(u64, &[u8]) + Send,
) -> io::Result<u64> {
    let mut buffers = Buffer::several(2 * connections, max_bytes as usize)?;
    let mut connections = connect_all(addr, connections)?;
    let host = addr.to_string();
    let request =
        |index: u64, out: &mut Vec<u8>| write_get(out, &host, &paths[index as usize], None);
    run(
        &mut connections,
        &mut buffers,
        paths.len() as u64,
        &request,
        order,
        &mut sink,
    )
}

/// Sends `requests` GETs of `request_bytes` at growing offsets, one at a time on each connection; results are dropped
/// where they arrive. Returns the bytes.
pub fn small_requests(
    addr: SocketAddr,
    path: &str,
    size_bytes: u64,
    request_bytes: u64,
    connections: usize,
    requests: u64,
) -> io::Result<u64> {
    let slots = (size_bytes / request_bytes).max(1);
    let host = addr.to_string();
    let one = |connection: &mut Connection, buffer: &mut Buffer, index: u64| {
        let first = index % slots * request_bytes;
        connection.exchange(buffer, |out| {
            write_get(out, &host, path, Some((first, first + request_bytes - 1)))
        })
    };
    let count = connections as u64;
    let mut all = connect_all(addr, connections)?;
    let mut buffers = Buffer::several(connections, request_bytes as usize)?;
    std::thread::scope(|scope| {
        let workers: Vec<_> = all
            .iter_mut()
            .zip(&mut buffers)
            .zip(0..count)
            .map(|((connection, buffer), first)| {
                scope.spawn(move || {
                    let indices = (first..requests).step_by(count as usize);
                    indices
                        .map(|index| one(connection, buffer, index))
                        .sum::<io::Result<u64>>()
                })
            })
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or(Err(io::ErrorKind::Other.into())))
            .sum()
    })
}

fn write_get(out: &mut Vec<u8>, host: &str, path: &str, range: Option<(u64, u64)>) {
    let _ = write!(out, "GET {path} HTTP/1.1\r\nHost: {host}\r\n");
    if let Some((first, last)) = range {
        let _ = write!(out, "Range: bytes={first}-{last}\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

/// What the workers and the consumer share.
#[derive(Debug)]
struct Queue<'a> {
    state: Mutex<State<'a>>,
    freed: Condvar,
    arrived: Condvar,
}

#[derive(Debug)]
struct State<'a> {
    /// Last in, first out: the buffer used last is warmest in the cache.
    free: Vec<&'a mut Buffer>,
    /// The next job that nobody has taken.
    next: u64,
    jobs: u64,
    /// Results by job modulo the number of buffers: more can't be on their way.
    ready: Vec<Option<&'a mut Buffer>>,
    error: Option<io::Error>,
}

impl<'a> Queue<'a> {
    fn new(buffers: &'a mut [Buffer], jobs: u64) -> Queue<'a> {
        let ready = buffers.iter().map(|_| None).collect();
        let state = State {
            free: buffers.iter_mut().collect(),
            next: 0,
            jobs,
            ready,
            error: None,
        };
        Queue {
            state: Mutex::new(state),
            freed: Condvar::new(),
            arrived: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<'a>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A job and a buffer for it, taken together: so the job that is delivered next always has its buffer.
    fn take(&self) -> Option<(u64, &'a mut Buffer)> {
        let mut state = self.lock();
        loop {
            if state.next == state.jobs || state.error.is_some() {
                return None;
            }
            if let Some(buffer) = state.free.pop() {
                state.next += 1;
                return Some((state.next - 1, buffer));
            }
            state = self
                .freed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn deliver(&self, job: u64, buffer: &'a mut Buffer) {
        let mut state = self.lock();
        let slot = (job % state.ready.len() as u64) as usize;
        state.ready[slot] = Some(buffer);
        self.arrived.notify_one();
    }

    fn fail(&self, error: io::Error) {
        self.lock().error.get_or_insert(error);
        self.arrived.notify_all();
        self.freed.notify_all();
    }

    fn give_back(&self, buffer: &'a mut Buffer) {
        self.lock().free.push(buffer);
        self.freed.notify_one();
    }

    /// Waits for the result of a job.
    fn wait(&self, job: u64) -> Option<&'a mut Buffer> {
        let mut state = self.lock();
        let slot = (job % state.ready.len() as u64) as usize;
        loop {
            if let Some(buffer) = state.ready[slot].take() {
                return Some(buffer);
            }
            if state.error.is_some() {
                return None;
            }
            state = self
                .arrived
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

type Sink<'a> = &'a mut (dyn FnMut(u64, &[u8]) + Send);

/// Runs all jobs on the connections; returns the bytes received.
fn run(
    connections: &mut [Connection],
    buffers: &mut [Buffer],
    jobs: u64,
    request: &(impl Fn(u64, &mut Vec<u8>) + Sync),
    order: Order,
    sink: Sink<'_>,
) -> io::Result<u64> {
    let queue = Queue::new(buffers, jobs);
    let mut bytes = 0;
    match order {
        Order::InOrder => std::thread::scope(|scope| {
            for connection in connections {
                scope.spawn(|| {
                    work(connection, &queue, request, |job, buffer| {
                        queue.deliver(job, buffer)
                    })
                });
            }
            for job in 0..jobs {
                let Some(buffer) = queue.wait(job) else { break };
                bytes += buffer.body().len() as u64;
                sink(job, buffer.body());
                queue.give_back(buffer);
            }
        }),
        Order::Any => {
            let shared = Mutex::new((sink, &mut bytes));
            let consume = |job: u64, buffer: &mut Buffer| {
                let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
                *shared.1 += buffer.body().len() as u64;
                (shared.0)(job, buffer.body());
            };
            std::thread::scope(|scope| {
                for connection in connections {
                    scope.spawn(|| {
                        work(connection, &queue, request, |job, buffer| {
                            consume(job, buffer);
                            queue.give_back(buffer);
                        });
                    });
                }
            });
        }
    }
    match queue
        .state
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
        .error
    {
        Some(error) => Err(error),
        None => Ok(bytes),
    }
}

fn work<'a>(
    connection: &mut Connection,
    queue: &Queue<'a>,
    request: &impl Fn(u64, &mut Vec<u8>),
    mut done: impl FnMut(u64, &'a mut Buffer),
) {
    while let Some((job, buffer)) = queue.take() {
        match connection.exchange(buffer, |out| request(job, out)) {
            Ok(_) => done(job, buffer),
            Err(error) => return queue.fail(error),
        }
    }
}

/// A socket and the request being written.
#[derive(Debug)]
struct Connection {
    socket: TcpStream,
    request: Vec<u8>,
}

fn connect_all(addr: SocketAddr, count: usize) -> io::Result<Vec<Connection>> {
    let connect = |_| {
        let socket = TcpStream::connect(addr)?;
        socket.set_nodelay(true)?;
        Ok(Connection {
            socket,
            request: Vec::with_capacity(512),
        })
    };
    (0..count).map(connect).collect()
}

impl Connection {
    /// One request and its response, body left in `buffer`. Returns the body's length.
    fn exchange(
        &mut self,
        buffer: &mut Buffer,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> io::Result<u64> {
        self.request.clear();
        write(&mut self.request);
        (&self.socket).write_all(&self.request)?;
        let (head, body) = self.receive_head(buffer)?;
        if body > buffer.len - HEAD_BYTES {
            return Err(io::Error::other("the body is larger than the buffer"));
        }
        (buffer.start, buffer.end) = (head, head + body);
        while buffer.filled < buffer.end {
            self.receive(buffer, head + body)?;
        }
        if buffer.filled > buffer.end {
            return Err(io::Error::other("bytes after the body"));
        }
        Ok(body as u64)
    }

    /// Receives until the head is complete; most of the time that brings the body's beginning, too.
    fn receive_head(&self, buffer: &mut Buffer) -> io::Result<(usize, usize)> {
        buffer.filled = 0;
        loop {
            self.receive(buffer, buffer.len)?;
            let seen = &buffer.bytes()[..buffer.filled.min(HEAD_BYTES)];
            let mut headers = [httparse::EMPTY_HEADER; 32];
            let mut response = httparse::Response::new(&mut headers);
            let Ok(parsed) = response.parse(seen) else {
                return Err(io::Error::other("the response is not HTTP"));
            };
            let httparse::Status::Complete(head) = parsed else {
                if buffer.filled >= HEAD_BYTES {
                    return Err(io::Error::other("the head is too long"));
                }
                continue;
            };
            if !matches!(response.code, Some(200 | 206)) {
                return Err(io::Error::other(format!("status {:?}", response.code)));
            }
            let length = response
                .headers
                .iter()
                .find(|header| header.name.eq_ignore_ascii_case("content-length"));
            let length =
                length.and_then(|header| std::str::from_utf8(header.value).ok()?.parse().ok());
            return Ok((
                head,
                length.ok_or_else(|| io::Error::other("no content length"))?,
            ));
        }
    }

    /// One `recv`, up to `end` of the buffer. `MSG_WAITALL` was measured to make no difference.
    fn receive(&self, buffer: &mut Buffer, end: usize) -> io::Result<()> {
        let filled = buffer.filled;
        let count = loop {
            match rustix::net::recv(
                &self.socket,
                &mut buffer.bytes_mut()[filled..end],
                RecvFlags::empty(),
            ) {
                Ok((_, count)) => break count,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        };
        buffer.filled += count;
        if count == 0 {
            Err(io::ErrorKind::UnexpectedEof.into())
        } else {
            Ok(())
        }
    }
}

/// Memory that has all its pages before it is used, on huge pages where they fit and the system gives them.
#[derive(Debug)]
struct Buffer {
    map: NonNull<u8>,
    map_len: usize,
    /// Offset of the usable part in the mapping: at a huge page's boundary.
    offset: usize,
    /// Usable bytes: room for the head, then the body.
    len: usize,
    filled: usize,
    start: usize,
    end: usize,
}

// SAFETY: the mapping belongs to the value alone.
unsafe impl Send for Buffer {}

impl Buffer {
    fn several(count: usize, body_bytes: usize) -> io::Result<Vec<Buffer>> {
        (0..count).map(|_| Buffer::new(body_bytes)).collect()
    }

    fn new(body_bytes: usize) -> io::Result<Buffer> {
        let len = body_bytes + HEAD_BYTES;
        let huge = len >= HUGE_BYTES;
        let map_len = if huge {
            len.next_multiple_of(HUGE_BYTES) + HUGE_BYTES
        } else {
            len
        };
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a fresh private mapping at an address of the kernel's choice.
        let map = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                map_len,
                ProtFlags::READ | ProtFlags::WRITE,
                flags,
            )?
        };
        // SAFETY: the range was just mapped; advice changes no contents.
        let _ = unsafe { rustix::mm::madvise(map, map_len, Advice::LinuxHugepage) };
        let map = NonNull::new(map.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let offset = if huge {
            map.as_ptr().align_offset(HUGE_BYTES)
        } else {
            0
        };
        let mut buffer = Buffer {
            map,
            map_len,
            offset,
            len,
            filled: 0,
            start: 0,
            end: 0,
        };
        for page in buffer.bytes_mut().chunks_mut(4096) {
            // Written, not read: reading would map the shared zero page.
            page[0] = 1;
        }
        Ok(buffer)
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: inside the mapping, which is private, initialised to zero and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().add(self.offset), self.len) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.map.as_ptr().add(self.offset), self.len) }
    }

    fn body(&self) -> &[u8] {
        &self.bytes()[self.start..self.end]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, unmapped once.
        let _ = unsafe { rustix::mm::munmap(self.map.as_ptr().cast(), self.map_len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FakeS3, content};

    #[test]
    fn parts_come_in_order_and_whole() {
        let server = FakeS3::start().unwrap();
        let size = 3_000_017;
        server.put_synthetic("b", "k", size, 5);
        let mut expected = vec![0; size as usize];
        content(5, 0, &mut expected);
        let mut reader = RawReader::connect(server.addr(), "/b/k", size, 100_000, 3).unwrap();
        for _ in 0..2 {
            let mut found = Vec::new();
            reader.read(|part| found.extend_from_slice(part)).unwrap();
            assert!(found == expected);
        }
        assert_eq!(server.stats().connections, 3);
    }

    #[test]
    fn objects_come_in_either_order() {
        let server = FakeS3::start().unwrap();
        let paths: Vec<String> = (0..50).map(|i| format!("/b/{i}")).collect();
        for i in 0..50u8 {
            server.put("b", &i.to_string(), &vec![i; 1000 + usize::from(i)]);
        }
        for order in [Order::InOrder, Order::Any] {
            let mut seen = Vec::new();
            let sink = |index: u64, body: &[u8]| {
                assert!(body.iter().all(|byte| u64::from(*byte) == index));
                seen.push(index);
            };
            let bytes = fetch_objects(server.addr(), &paths, 2000, 4, order, sink).unwrap();
            assert_eq!(bytes, (0..50).map(|i| 1000 + i).sum::<u64>());
            if order == Order::Any {
                seen.sort_unstable();
            }
            assert!(seen.into_iter().eq(0..50));
        }
    }

    #[test]
    fn small_requests_are_counted() {
        let server = FakeS3::start().unwrap();
        server.put_synthetic("b", "k", 1 << 20, 1);
        assert_eq!(
            small_requests(server.addr(), "/b/k", 1 << 20, 4096, 3, 1000).unwrap(),
            1000 * 4096
        );
        assert_eq!(server.log().len(), 1000);
    }

    #[test]
    fn a_missing_object_is_an_error() {
        let server = FakeS3::start().unwrap();
        server.put("b", "k", b"x");
        let mut reader = RawReader::connect(server.addr(), "/b/none", 1000, 100, 2).unwrap();
        assert!(reader.read(|_| {}).is_err());
    }
}
