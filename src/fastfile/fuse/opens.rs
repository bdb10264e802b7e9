//! Which files are open, and how.
//!
//! The kernel takes either buffered or passthrough opens of an inode at a time and answers EIO to the other kind. So the
//! first open decides, the others follow, and the last close forgets.

use std::collections::HashMap;
use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::fastfile::source::OpenFile;
use crate::fastfile::tree::Ino;

/// Beyond so many open files no more descriptors are kept for them.
pub(super) const MOST_WHOLE: usize = 256;

/// An open file.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) ino: Ino,
    pub(super) file: Arc<dyn OpenFile>,
    /// All of it, where the kernel does not read that by itself.
    pub(super) whole: Option<File>,
    /// Whether a failure of this handle was logged: the kernel asks again for what failed.
    told: AtomicBool,
}

impl Handle {
    /// `whole` is kept where the kernel does not read that by itself.
    pub(super) fn new(ino: Ino, file: Arc<dyn OpenFile>, whole: Option<File>) -> Self {
        Self {
            ino,
            file,
            whole,
            told: AtomicBool::new(false),
        }
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.file.object().size_bytes
    }

    /// Whether to log a failure: each handle's first.
    pub(super) fn tells(&self) -> bool {
        !self.told.swap(true, Ordering::Relaxed)
    }
}

/// All open files. `B` is what passthrough needs for as long as a file is open.
#[derive(Debug)]
pub(super) struct Opens<B> {
    inner: Mutex<Inner<B>>,
}

#[derive(Debug)]
struct Inner<B> {
    next: u64,
    handles: HashMap<u64, Arc<Handle>>,
    inodes: HashMap<Ino, Open<B>>,
}

#[derive(Debug)]
struct Open<B> {
    handles: u64,
    backing: Option<Arc<B>>,
}

impl<B> Default for Opens<B> {
    fn default() -> Self {
        Self {
            inner: Mutex::new(Inner {
                next: 1,
                handles: HashMap::new(),
                inodes: HashMap::new(),
            }),
        }
    }
}

impl<B> Opens<B> {
    fn lock(&self) -> MutexGuard<'_, Inner<B>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers an open file; `decide` is asked whether the kernel reads `whole` if no other open of the inode has decided
    /// that.
    pub(super) fn open(
        &self,
        ino: Ino,
        file: Arc<dyn OpenFile>,
        whole: Option<File>,
        decide: impl FnOnce(&File) -> Option<B>,
    ) -> (u64, Option<Arc<B>>) {
        let mut inner = self.lock();
        let has_room = inner.handles.len() < MOST_WHOLE;
        let open = inner.inodes.entry(ino).or_insert_with(|| Open {
            handles: 0,
            backing: whole.as_ref().and_then(decide).map(Arc::new),
        });
        open.handles += 1;
        let backing = open.backing.clone();
        let number = inner.next;
        inner.next += 1;
        let whole = whole.filter(|_| backing.is_none() && has_room);
        let handle = Handle::new(ino, file, whole);
        inner.handles.insert(number, Arc::new(handle));
        (number, backing)
    }

    pub(super) fn get(&self, number: u64) -> Option<Arc<Handle>> {
        self.lock().handles.get(&number).cloned()
    }

    /// Forgets an open file, and gives it back: dropping it has work to do, which should not be done under this lock.
    pub(super) fn close(&self, number: u64) -> Option<Arc<Handle>> {
        let mut inner = self.lock();
        let handle = inner.handles.remove(&number)?;
        if let Some(open) = inner.inodes.get_mut(&handle.ino) {
            open.handles -= 1;
            if open.handles == 0 {
                inner.inodes.remove(&handle.ino);
            }
        }
        Some(handle)
    }
}

/// Handles that only a test opens.
#[cfg(test)]
pub(super) mod testing {
    use super::*;
    use crate::cache::Glance;
    use crate::error::Result;
    use crate::object::{ByteRange, ObjectId, ObjectMeta};
    use bytes::Bytes;
    use futures::future::BoxFuture;

    #[derive(Debug)]
    pub(in super::super) struct Unread(ObjectMeta);

    impl Unread {
        pub(in super::super) fn file(size_bytes: u64) -> Arc<dyn OpenFile> {
            let uri = "memory://b/k".parse().expect("a URI");
            Arc::new(Self(ObjectMeta {
                id: ObjectId::unpinned(uri),
                size_bytes,
                last_modified: None,
                checksum_algorithm: None,
                checksum: None,
            }))
        }
    }

    pub(in super::super) fn handle(ino: u64, size_bytes: u64) -> Handle {
        Handle::new(Ino(ino), Unread::file(size_bytes), None)
    }

    impl OpenFile for Unread {
        fn object(&self) -> &ObjectMeta {
            &self.0
        }

        fn read(&self, _: ByteRange) -> BoxFuture<'_, Result<Bytes>> {
            unreachable!("only open")
        }

        fn may_be_whole(&self) -> bool {
            false
        }

        fn whole(&self) -> Option<File> {
            None
        }

        fn glance(&self) -> Glance {
            Glance::Unknown
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_open_decides_until_the_last_close() {
        let opens = Opens::<&str>::default();
        let whole = || File::open("/dev/null").ok();
        let open = |would: Option<&'static str>| {
            opens.open(Ino(7), testing::Unread::file(1), whole(), |_| would)
        };
        let (first, backing) = open(None);
        assert_eq!(backing, None);
        let (second, backing) = open(Some("whole by now"));
        assert_eq!(backing, None, "a buffered open lives");
        assert_ne!(first, second);
        opens.close(first);
        opens.close(first);
        let (third, backing) = open(Some("whole by now"));
        assert_eq!(backing, None);
        opens.close(second);
        opens.close(third);
        let (_, backing) = open(Some("whole by now"));
        assert_eq!(backing.as_deref(), Some(&"whole by now"));
        let (_, backing) = open(None);
        assert_eq!(backing.as_deref(), Some(&"whole by now"));
        assert!(opens.get(first).is_none());
        let (passed, _) = open(None);
        assert!(
            opens
                .get(passed)
                .is_some_and(|handle| handle.whole.is_none())
        );
        let (ours, _) = opens.open(Ino(8), testing::Unread::file(1), whole(), |_| None);
        assert!(opens.get(ours).is_some_and(|handle| handle.whole.is_some()));
    }
}
