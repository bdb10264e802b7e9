//! The kernel's requests, answered.
//!
//! Each method answers from memory or moves its reply into a task. Everything that would write is EROFS, although the
//! kernel refuses it before for a mount that is read-only.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use fuser::{
    AccessFlags, BackingId, BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle,
    FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig,
    LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use tokio::runtime::Handle as Runtime;

use super::opens::Opens;
use super::options::MountOptions;
use super::unopened::Unopened;
use crate::cache::Glance;
use crate::error::Error;
use crate::fastfile::errno;
use crate::fastfile::source::{OpenFile, Source};
use crate::fastfile::tree::{Attributes, Ino, Namespace, Step};
use crate::object::Scheme;
use crate::runtime;

/// A snapshot never changes.
const TTL: Duration = Duration::from_secs(365 * 24 * 3600);

/// What the kernel asks for at most: read-ahead is set to as much.
const MAX_REQUEST_BYTES: u32 = 1 << 20;

/// What programs take for the best size of a read; Python buffers as much. Requests are merged by read-ahead anyway.
const BLOCK_BYTES: u32 = 128 << 10;

/// The unit of `st_blocks`.
const SECTOR_BYTES: u64 = 512;

/// Two file systems may lie below: the cache is often on an overlay.
const STACK_DEPTH: u32 = 2;

const ETAG: &str = "user.standpipe.etag";
const URI: &str = "user.standpipe.uri";

/// Cookies of a directory's position: 0 before `.`, 1 before `..`, 2 before the first entry, then the number of the
/// entry before plus this.
const COOKIE_SHIFT: u64 = 2;

/// The file system of one mount.
#[derive(Debug)]
pub(super) struct Files(Arc<Shared>);

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) namespace: Arc<Namespace>,
    pub(super) source: Arc<dyn Source>,
    options: MountOptions,
    opens: Opens<BackingId>,
    pub(super) unopened: Unopened,
    pub(super) runtime: Runtime,
    /// Off once the kernel has refused: asking costs a system call per open.
    passthrough: AtomicBool,
    /// Whether the kernel opens files, and folders, without asking if it is told so.
    can_do_without: OnceLock<CanDoWithout>,
    /// Whether it was told so; decided when the first file is opened, for good.
    is_without_opens: OnceLock<bool>,
}

#[derive(Debug, Clone, Copy)]
struct CanDoWithout {
    opens: bool,
    opendirs: bool,
}

impl Files {
    pub(super) fn new(
        namespace: Arc<Namespace>,
        source: Arc<dyn Source>,
        options: &MountOptions,
    ) -> Self {
        Self(Arc::new(Shared {
            namespace,
            source,
            options: options.clone(),
            opens: Opens::default(),
            unopened: Unopened::new(Instant::now()),
            runtime: runtime::handle(),
            passthrough: AtomicBool::new(false),
            can_do_without: OnceLock::new(),
            is_without_opens: OnceLock::new(),
        }))
    }
}

/// Logs the failure and says what the program sees.
pub(super) fn failed(what: &str, error: &Error, tell: bool) -> Errno {
    let errno = errno::errno(error);
    if tell {
        let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
        tracing::warn!(
            "{what} fails with {}: {error}{}",
            errno::name(errno),
            cause.unwrap_or_default()
        );
    }
    Errno::from_i32(errno)
}

impl Shared {
    fn attr(&self, attributes: &Attributes) -> FileAttr {
        let kind = match attributes.is_directory {
            true => FileType::Directory,
            false => FileType::RegularFile,
        };
        FileAttr {
            ino: INodeNo(attributes.ino.0),
            size: attributes.size_bytes,
            blocks: attributes.size_bytes.div_ceil(SECTOR_BYTES),
            atime: attributes.modified,
            mtime: attributes.modified,
            ctime: attributes.modified,
            crtime: attributes.modified,
            kind,
            perm: self.options.mode(attributes.is_directory),
            // For a directory, "not counted", as btrfs has it.
            nlink: 1,
            uid: self.options.uid,
            gid: self.options.gid,
            rdev: 0,
            blksize: BLOCK_BYTES,
            flags: 0,
        }
    }

    fn attr_of(&self, ino: Ino) -> Option<FileAttr> {
        let attributes = self.namespace.tree().attributes(ino)?;
        Some(self.attr(&attributes))
    }

    fn answer_lookup(&self, found: Option<Ino>, reply: ReplyEntry) {
        match found.and_then(|ino| self.attr_of(ino)) {
            Some(attr) => reply.entry(&TTL, &attr, Generation(0)),
            // An entry without a number: the kernel remembers that the name is absent.
            None => reply.entry(&TTL, &absent(), Generation(0)),
        }
    }

    /// Puts in what fits; on `Err` nothing was there yet, and something may come behind that entry.
    fn fill(
        &self,
        ino: Ino,
        cookie: u64,
        mut add: impl FnMut(Ino, u64, &str, FileAttr) -> bool,
    ) -> Result<(), Option<Ino>> {
        let tree = self.namespace.tree();
        let attr = |ino| {
            tree.attributes(ino)
                .map(|attributes| self.attr(&attributes))
        };
        let mut added = false;
        if cookie < COOKIE_SHIFT {
            let parent = tree.parent(ino).unwrap_or(ino);
            let dots = [(ino, "."), (parent, "..")];
            for (at, (of, name)) in dots.into_iter().enumerate().skip(cookie as usize) {
                let Some(attr) = attr(of) else { continue };
                if add(of, at as u64 + 1, name, attr) {
                    return Ok(());
                }
                added = true;
            }
        }
        let mut after = cookie
            .checked_sub(COOKIE_SHIFT)
            .filter(|last| *last > 0)
            .map(Ino);
        loop {
            match tree.step(ino, after) {
                Step::Entry(entry, name) => {
                    let Some(attr) = attr(entry) else {
                        return Ok(());
                    };
                    if add(entry, entry.0 + COOKIE_SHIFT, &name, attr) {
                        return Ok(());
                    }
                    after = Some(entry);
                    added = true;
                }
                Step::End => return Ok(()),
                Step::NotYet if added => return Ok(()),
                Step::NotYet => return Err(after),
            }
        }
    }

    fn answer_readdirplus(self: &Arc<Self>, ino: Ino, cookie: u64, mut reply: ReplyDirectoryPlus) {
        let filled = self.fill(ino, cookie, |ino, next, name, attr| {
            reply.add(INodeNo(ino.0), next, name, &TTL, &attr, Generation(0))
        });
        let Err(after) = filled else {
            return reply.ok();
        };
        let shared = self.clone();
        self.runtime.spawn(async move {
            match shared.namespace.wait_for_step(ino, after).await {
                Ok(()) => shared.answer_readdirplus(ino, cookie, reply),
                Err(error) => reply.error(failed("reading a directory", &error, true)),
            }
        });
    }

    fn answer_readdir(self: &Arc<Self>, ino: Ino, cookie: u64, mut reply: ReplyDirectory) {
        let filled = self.fill(ino, cookie, |ino, next, name, attr| {
            reply.add(INodeNo(ino.0), next, attr.kind, name)
        });
        let Err(after) = filled else {
            return reply.ok();
        };
        let shared = self.clone();
        self.runtime.spawn(async move {
            match shared.namespace.wait_for_step(ino, after).await {
                Ok(()) => shared.answer_readdir(ino, cookie, reply),
                Err(error) => reply.error(failed("reading a directory", &error, true)),
            }
        });
    }

    /// `whole` is a local file that holds all of it.
    fn answer_open(
        &self,
        ino: Ino,
        file: Arc<dyn OpenFile>,
        whole: Option<File>,
        reply: ReplyOpen,
    ) {
        let is_whole = whole.is_some();
        let decide = |whole: &File| self.backing(whole, &reply);
        let (handle, backing) = self.opens.open(ino, file.clone(), whole, decide);
        let handle = FileHandle(handle);
        let metrics = self.source.metrics();
        metrics.opens.add(1);
        metrics.passthrough_opens.add(u64::from(backing.is_some()));
        match backing {
            Some(backing) => reply.opened_passthrough(handle, FopenFlags::empty(), &backing),
            None => reply.opened(
                handle,
                FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH,
            ),
        }
        if is_whole {
            file.bypassed();
        }
    }

    /// Whether it matters that a file is whole. What lies in a local directory can change, so it is left to the kernel or
    /// compared at each read.
    pub(super) fn asks_for_whole(&self, file: &dyn OpenFile) -> bool {
        let is_local = file.object().id.uri.scheme() == Scheme::File;
        file.may_be_whole() && (self.passthrough.load(Ordering::Relaxed) || !is_local)
    }

    /// Registers a file with the kernel, if the kernel may read it there.
    fn backing(&self, whole: &File, reply: &ReplyOpen) -> Option<BackingId> {
        if !self.passthrough.load(Ordering::Relaxed) {
            return None;
        }
        match reply.open_backing(whole) {
            Ok(backing) => Some(backing),
            Err(error) => {
                tracing::info!("no passthrough, local files are read by way of us: {error}");
                self.passthrough.store(false, Ordering::Relaxed);
                None
            }
        }
    }

    /// Whether files are read without being opened.
    pub(super) fn is_without_opens(&self) -> bool {
        self.is_without_opens.get().copied().unwrap_or_default()
    }

    /// The same; decided now at the latest, by what is known of the listing. The kernel asks no more once it was told
    /// not to, so it must hear the same each time.
    fn decide_about_opens(&self) -> bool {
        *self.is_without_opens.get_or_init(|| {
            let tree = self.namespace.tree();
            let (files, bytes) = (tree.files(), tree.total_bytes());
            let are_local = tree.root().scheme() == Scheme::File;
            drop(tree);
            let wanted = self
                .options
                .open
                .is_without_messages(files, bytes, are_local);
            let can = self.can_do_without.get().is_some_and(|can| can.opens);
            if wanted && !can {
                tracing::info!("the kernel asks for each open: it is too old to do without");
            }
            wanted && can
        })
    }

    fn xattr(&self, ino: Ino, name: &OsStr) -> Option<String> {
        let tree = self.namespace.tree();
        match name.to_str()? {
            ETAG => tree.object(ino)?.id.etag.map(|etag| etag.to_string()),
            URI => tree.uri(ino).map(|uri| uri.to_string()),
            _ => None,
        }
    }
}

fn absent() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: SystemTime::UNIX_EPOCH,
        mtime: SystemTime::UNIX_EPOCH,
        ctime: SystemTime::UNIX_EPOCH,
        crtime: SystemTime::UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

fn answer_xattr(value: &[u8], size: u32, reply: ReplyXattr) {
    match size as usize {
        0 => reply.size(value.len() as u32),
        room if room < value.len() => reply.error(Errno::ERANGE),
        _ => reply.data(value),
    }
}

impl Filesystem for Files {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for wanted in [
            InitFlags::FUSE_PARALLEL_DIROPS,
            // Without "auto", which is worse than always and than never.
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_ASYNC_DIO,
        ] {
            // What an older kernel lacks costs speed only.
            let _ = config.add_capabilities(wanted);
        }
        // It sets the size of reads too.
        let _ = config.set_max_write(MAX_REQUEST_BYTES);
        let passthrough = !self.0.options.no_passthrough
            && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
            && config.set_max_stack_depth(STACK_DEPTH).is_ok();
        self.0.passthrough.store(passthrough, Ordering::Relaxed);
        let can = config.capabilities();
        let _ = self.0.can_do_without.set(CanDoWithout {
            opens: can.contains(InitFlags::FUSE_NO_OPEN_SUPPORT),
            opendirs: can.contains(InitFlags::FUSE_NO_OPENDIR_SUPPORT),
        });
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        use crate::fastfile::tree::Found;
        let parent = Ino(parent.0);
        let found = self.0.namespace.tree().lookup(parent, name.as_bytes());
        match found {
            Found::Here(ino) => self.0.answer_lookup(Some(ino), reply),
            Found::Absent => self.0.answer_lookup(None, reply),
            Found::NotYet => {
                let (shared, name) = (self.0.clone(), name.to_owned());
                self.0.runtime.spawn(async move {
                    match shared.namespace.lookup(parent, name.as_bytes()).await {
                        Ok(found) => shared.answer_lookup(found, reply),
                        Err(error) => {
                            let what = format!("looking for {}", name.display());
                            reply.error(failed(&what, &error, true));
                        }
                    }
                });
            }
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.0.attr_of(Ino(ino.0)) {
            Some(attr) => reply.attr(&TTL, &attr),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.acc_mode() != OpenAccMode::O_RDONLY || flags.0 & libc::O_TRUNC != 0 {
            return reply.error(Errno::EROFS);
        }
        if self.0.decide_about_opens() {
            return reply.error(Errno::ENOSYS);
        }
        let ino = Ino(ino.0);
        let Some(object) = self.0.namespace.tree().object(ino) else {
            return reply.error(Errno::EISDIR);
        };
        let file = match self.0.source.open(ino, object) {
            Ok(file) => file,
            Err(error) => return reply.error(failed("opening a file", &error, true)),
        };
        if !self.0.asks_for_whole(file.as_ref()) {
            return self.0.answer_open(ino, file, None, reply);
        }
        match file.glance() {
            Glance::Whole(whole) => return self.0.answer_open(ino, file, Some(whole), reply),
            Glance::NotWhole => return self.0.answer_open(ino, file, None, reply),
            Glance::Unknown => {}
        }
        let shared = self.0.clone();
        self.0.runtime.spawn_blocking(move || {
            let whole = file.whole();
            shared.answer_open(ino, file, whole, reply);
        });
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if self.0.is_without_opens() {
            return self.0.serve_unopened(Ino(ino.0), offset, size, reply);
        }
        match self.0.opens.get(fh.0) {
            Some(handle) => self.0.serve(handle, offset, size, reply),
            None => reply.error(Errno::EBADF),
        }
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        drop(self.0.opens.close(fh.0));
        reply.ok();
    }

    /// Told once that nobody wants to know, the kernel asks no more, and keeps what it has read of folders all the same.
    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if self.0.can_do_without.get().is_some_and(|can| can.opendirs) {
            return reply.error(Errno::ENOSYS);
        }
        let flags = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR;
        reply.opened(FileHandle(0), flags);
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        cookie: u64,
        reply: ReplyDirectory,
    ) {
        self.0.answer_readdir(Ino(ino.0), cookie, reply);
    }

    fn readdirplus(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        cookie: u64,
        reply: ReplyDirectoryPlus,
    ) {
        self.0.answer_readdirplus(Ino(ino.0), cookie, reply);
    }

    /// What is known so far: a `df` should not wait for a listing.
    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        const UNIT: u32 = 4096;
        let tree = self.0.namespace.tree();
        let blocks = tree.total_bytes().div_ceil(u64::from(UNIT));
        reply.statfs(blocks, 0, 0, tree.files(), 0, UNIT, 255, UNIT);
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        match self.0.xattr(Ino(ino.0), name) {
            Some(value) => answer_xattr(value.as_bytes(), size, reply),
            None => reply.error(Errno::ENODATA),
        }
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let names = [ETAG, URI].into_iter();
        let names = names.filter(|name| self.0.xattr(Ino(ino.0), OsStr::new(name)).is_some());
        let list: String = names.map(|name| format!("{name}\0")).collect();
        answer_xattr(list.as_bytes(), size, reply);
    }

    /// Only without `default_permissions`, which every mount of ours has.
    fn access(&self, _: &Request, _: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        match mask.contains(AccessFlags::W_OK) {
            true => reply.error(Errno::EROFS),
            false => reply.ok(),
        }
    }

    /// The kernel knows how to seek; told once, it never asks again.
    fn lseek(&self, _: &Request, _: INodeNo, _: FileHandle, _: i64, _: i32, reply: ReplyLseek) {
        reply.error(Errno::ENOSYS);
    }

    /// Nothing is ever written: told once, the kernel never asks again.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn readlink(&self, _: &Request, _: INodeNo, reply: ReplyData) {
        reply.error(Errno::EINVAL);
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn setattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.error(Errno::EROFS);
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn rename(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: INodeNo,
        _: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::EROFS);
    }

    fn create(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        reply.error(Errno::EROFS);
    }

    fn setxattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: &[u8],
        _: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: i32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }

    fn copy_file_range(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::EROFS);
    }
}
