//! Reads: at once from memory or a file whose pages are there, or in a task that may wait.

use std::cell::RefCell;
use std::fs::File;
use std::io::IoSliceMut;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Instant;

use fuser::{Errno, ReplyData};
use rustix::io::ReadWriteFlags;

use super::filesystem::{Shared, failed};
use super::opens::{Handle, MOST_WHOLE};
use crate::cache::Glance;
use crate::error::Error;
use crate::fastfile::source::OpenFile;
use crate::fastfile::tree::Ino;
use crate::object::ByteRange;

/// What of a read lies within the object.
fn within(offset: u64, size: u32, size_bytes: u64) -> ByteRange {
    let start = offset.min(size_bytes);
    ByteRange::new(start, start.saturating_add(u64::from(size)).min(size_bytes))
}

/// Polls once, for no waker: whoever goes on polls again.
fn is_done(future: &mut (impl Future<Output = ()> + Unpin)) -> bool {
    let mut context = Context::from_waker(Waker::noop());
    Pin::new(future).poll(&mut context).is_ready()
}

thread_local! {
    /// What is on its way from a file to the kernel; it stays in the CPU's cache.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Answers from a whole file's pages, if they are in memory; gives `reply` back if not, or if the disk fails: then the
/// bytes come by the way that can wait, and knows other sources.
fn read_at_once(whole: Option<&File>, range: ByteRange, reply: ReplyData) -> Option<ReplyData> {
    let Some(whole) = whole else {
        return Some(reply);
    };
    let len = range.len() as usize;
    BUFFER.with_borrow_mut(|buffer| {
        if buffer.len() < len {
            buffer.resize(len, 0);
        }
        let mut into = [IoSliceMut::new(&mut buffer[..len])];
        match rustix::io::preadv2(whole, &mut into, range.start, ReadWriteFlags::NOWAIT) {
            Ok(n) if n == len => {
                reply.data(&buffer[..len]);
                None
            }
            _ => Some(reply),
        }
    })
}

async fn read(shared: Arc<Shared>, handle: Arc<Handle>, range: ByteRange, reply: ReplyData) {
    match handle.file.read(range).await {
        Ok(bytes) if bytes.len() as u64 == range.len() => {
            reply.data(&bytes);
            shared.took(&handle, range);
        }
        // The kernel would put zeroes in place of what is missing.
        Ok(bytes) => {
            let short = Error::Internal {
                what: format!("a read of {range} gave {} bytes and", bytes.len()),
            };
            reply.error(read_failed(&handle, range, &short));
        }
        Err(error) => reply.error(read_failed(&handle, range, &error)),
    }
}

fn read_failed(handle: &Handle, range: ByteRange, error: &Error) -> Errno {
    let what = format!("{}: reading {range}", handle.file.object().id.uri);
    failed(&what, error, handle.tells())
}

impl Shared {
    /// Answers with what of `size` bytes from `offset` on there is.
    pub(super) fn serve(
        self: &Arc<Self>,
        handle: Arc<Handle>,
        offset: u64,
        size: u32,
        reply: ReplyData,
    ) {
        let range = within(offset, size, handle.size_bytes());
        if range.is_empty() {
            return reply.data(&[]);
        }
        let Some(reply) = read_at_once(handle.whole.as_ref(), range, reply) else {
            return self.took(&handle, range);
        };
        let mut read = Box::pin(read(self.clone(), handle, range, reply));
        // Begun here, in the order in which the kernel asks; whatever is not there yet goes on in a task.
        let _within = self.runtime.enter();
        if !is_done(&mut read) {
            self.runtime.spawn(read);
        }
    }

    /// The same of a file that was opened without our knowing.
    pub(super) fn serve_unopened(
        self: &Arc<Self>,
        ino: Ino,
        offset: u64,
        size: u32,
        reply: ReplyData,
    ) {
        if let Some(handle) = self.unopened.get(ino, Instant::now()) {
            return self.serve(handle, offset, size, reply);
        }
        let Some(object) = self.namespace.tree().object(ino) else {
            return reply.error(Errno::EISDIR);
        };
        let file = match self.source.open(ino, object) {
            Ok(file) => file,
            Err(error) => return reply.error(failed("opening a file", &error, true)),
        };
        let shared = self.clone();
        let begin = move |file: Arc<dyn OpenFile>, whole| {
            let handle = shared.begin(ino, file, whole);
            shared.serve(handle, offset, size, reply);
        };
        if !self.asks_for_whole(file.as_ref()) {
            return begin(file, None);
        }
        match file.glance() {
            Glance::Whole(whole) => begin(file, Some(whole)),
            Glance::NotWhole => begin(file, None),
            Glance::Unknown => {
                self.runtime.spawn_blocking(move || {
                    let whole = file.whole();
                    begin(file, whole);
                });
            }
        }
    }

    fn begin(&self, ino: Ino, file: Arc<dyn OpenFile>, whole: Option<File>) -> Arc<Handle> {
        if whole.is_some() {
            file.bypassed();
        }
        let whole = whole.filter(|_| self.unopened.len() < MOST_WHOLE);
        let (handle, idle) = self
            .unopened
            .begin(Handle::new(ino, file, whole), Instant::now());
        drop(idle);
        handle
    }

    /// Bytes of a file have gone to the kernel.
    fn took(&self, handle: &Handle, range: ByteRange) {
        if self.is_without_opens() {
            drop(self.unopened.took(handle.ino, range.len()));
        }
    }
}
