//! Files in memory that are read two ways.
//!
//! A plain connection sends an object with `sendfile`, which wants a descriptor; TLS, checksums and small bodies want
//! a slice. [`MemFile`] is both: a memory file (or a file on disk) and one shared mapping of it.
//!
//! Every byte is written before the first [`Arc<MemFile>`](std::sync::Arc) that covers it is handed out, and never
//! after: the arena of small objects appends behind what is already visible. That is what makes the slices sound.
#![expect(unsafe_code, reason = "memory mappings")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::ptr::NonNull;

use rustix::fs::{MemfdFlags, OFlags};
use rustix::mm::{Advice, MapFlags, ProtFlags};

/// A file and its mapping, of fixed length.
#[derive(Debug)]
pub(crate) struct MemFile {
    file: File,
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is plain shared memory that lives as long as the value; no interior pointer is handed out for
// writing.
unsafe impl Send for MemFile {}
// SAFETY: as above; concurrent reads of immutable bytes.
unsafe impl Sync for MemFile {}

impl MemFile {
    /// A zeroed memory file. With `dir`, an unlinked file there: a tmpfs mounted with huge pages makes `sendfile`
    /// cheaper than a memfd of 4 KiB pages.
    pub(crate) fn new(len: usize, dir: Option<&Path>) -> io::Result<MemFile> {
        let file = match dir {
            None => File::from(rustix::fs::memfd_create("fake-s3", MemfdFlags::CLOEXEC)?),
            Some(dir) => File::from(rustix::fs::open(
                dir,
                OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC,
                rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            )?),
        };
        file.set_len(len as u64)?;
        MemFile::map(file, len)
    }

    /// A file on disk, which nobody may change while it is served.
    pub(crate) fn open(path: &Path) -> io::Result<MemFile> {
        let file = File::open(path)?;
        let len = file.metadata()?.len() as usize;
        MemFile::map(file, len)
    }

    fn map(file: File, len: usize) -> io::Result<MemFile> {
        if len == 0 {
            return Ok(MemFile {
                file,
                start: NonNull::dangling(),
                len,
            });
        }
        // SAFETY: a fresh shared, read-only mapping at an address of the kernel's choice.
        let start = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ,
                MapFlags::SHARED,
                &file,
                0,
            )?
        };
        // SAFETY: the range was just mapped. Huge pages are a wish; where shmem has none, nothing is lost.
        let _ = unsafe { rustix::mm::madvise(start, len, Advice::LinuxHugepage) };
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(MemFile { file, start, len })
    }

    /// Writes bytes that no slice covers yet.
    pub(crate) fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, at)
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The bytes of `[start, start + len)`.
    pub(crate) fn slice(&self, start: usize, len: usize) -> &[u8] {
        assert!(
            start.checked_add(len).is_some_and(|end| end <= self.len),
            "slice past the memory file"
        );
        // SAFETY: inside the mapping, which lives as long as `self`; visible bytes are never written again.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(start), len) }
    }
}

impl AsFd for MemFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for MemFile {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: the mapping made in `map`, unmapped once.
            let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) };
        }
    }
}
