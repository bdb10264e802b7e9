//! The directory: what lies where, how it comes to be and how it goes.
//!
//! ```text
//! FORMAT                      one line: the format's number and the block size
//! ledger                      numbers that all processes share (see `ledger`)
//! lock                        held by the one that throws out
//! entries/<hh>/<sha256>/data  the object, sparse until it is whole; its length never changes
//!                       map   a head that says what it is, and 8 bytes per block (see `head`)
//! tmp/new-*                   entries that are being made
//! tmp/dead-*                  entries that are being removed
//! ```
//!
//! An entry appears by one `rename` of a whole directory, and goes by one: at any moment it is there with all its files
//! or not at all. Who loses the race to make one uses the winner's. Who has the files of a removed entry open goes on
//! reading them; nothing is ever truncated or punched. What a killed process left in `tmp` is removed by the next one
//! that opens the cache or throws something out: a maker holds a lock on its `data`, and an entry without one that is a
//! minute old has no maker.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, IoSliceMut, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, ResolveFlags, flock};
use rustix::io::{Errno, ReadWriteFlags};

use super::blocks::{BootTag, Record, Standing};
use super::config::CacheConfig;
use super::fail;
use super::head::{Digest, FIXED_BYTES, FORMAT, Head, USED_AT, u64_at};
use crate::error::{Error, Result};

const DATA: &str = "data";
const MAP: &str = "map";
/// A maker locks its `data` microseconds after it made the directory.
const ORPHAN_AGE: Duration = Duration::from_secs(60);
/// Records are written as zeros in pieces of this, so that the disk has room for all of them.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// A cache's directory.
#[derive(Debug, Clone)]
pub(super) struct Store {
    root: PathBuf,
    /// Permission bits of directories, taken from the root's.
    mode: u32,
    pub(super) block_bytes: u64,
    pub(super) boot: BootTag,
}

/// The open files of an entry.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) dir: PathBuf,
    pub(super) data: File,
    pub(super) map: File,
    /// Whether both may be written to.
    pub(super) is_writable: bool,
    pub(super) head: Head,
}

/// An entry as a scan sees it.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) dir: PathBuf,
    /// What it takes on disk.
    pub(super) disk_bytes: u64,
    pub(super) used_at: u64,
    pub(super) bits: u64,
}

impl Store {
    /// Opens the directory, or makes it.
    pub(super) fn open(config: &CacheConfig) -> Result<Self> {
        // A daemon goes to another directory.
        let root = std::path::absolute(&config.dir).unwrap_or_else(|_| config.dir.clone());
        let at = |path: &Path| {
            let path = path.to_path_buf();
            move |error| Error::io(path, error)
        };
        // Private unless somebody made it otherwise: what is cached may be confidential.
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&root);
        made.map_err(at(&root))?;
        let mode = root.metadata().map_err(at(&root))?.permissions().mode() & 0o2777;
        let mut store = Self {
            root,
            mode,
            block_bytes: config.block_bytes,
            boot: boot_tag(&config.boot_id_file),
        };
        let format = store.root.join("FORMAT");
        let text = match std::fs::read_to_string(&format) {
            Err(error) if error.kind() == ErrorKind::NotFound => store.write_format(&format)?,
            text => text.map_err(at(&format))?,
        };
        store.block_bytes = parse_format(&text)
            .map_err(|reason| Error::config(store.root.display().to_string(), reason))?;
        for name in ["entries", "tmp"] {
            let dir = store.root.join(name);
            if let Err(error) = store.make_dir(&dir)
                && !dir.is_dir()
            {
                return Err(Error::io(dir, error));
            }
        }
        store.sweep();
        Ok(store)
    }

    /// Claims an empty directory for a cache; gives what `FORMAT` says then.
    fn write_format(&self, path: &Path) -> Result<String> {
        let names = std::fs::read_dir(&self.root).map_err(|error| Error::io(&self.root, error))?;
        // Another process may be at the same, and a disk of its own comes with `lost+found`.
        let ours = |name: &str| {
            matches!(
                name,
                "entries" | "tmp" | "ledger" | "lock" | "lost+found" | "FORMAT"
            ) || name.starts_with(".FORMAT-")
        };
        let foreign = names
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .find(|name| !ours(name));
        if let Some(name) = foreign {
            return Err(Error::config(
                self.root.display().to_string(),
                format!("holds {name:?} and is no cache: use an empty directory, or a new one"),
            ));
        }
        let text = format_line(self.block_bytes);
        let staged = self
            .root
            .join(format!(".FORMAT-{:016x}", fastrand::u64(..)));
        let written = self.write_new(&staged, text.as_bytes());
        // A link, not a rename: the first one wins.
        let linked = written.and_then(|()| match std::fs::hard_link(&staged, path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            // File systems without links: two that begin at once write the same, unless their settings differ.
            Err(_) => std::fs::rename(&staged, path),
            Ok(()) => Ok(()),
        });
        let _ = std::fs::remove_file(&staged);
        linked
            .and_then(|()| std::fs::read_to_string(path))
            .map_err(|error| Error::io(path, error))
    }

    fn write_new(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut file = self.create(path)?;
        file.write_all(bytes)?;
        // Once per cache: an empty FORMAT after a power cut would make people throw away what is sound.
        file.sync_all()
    }

    /// Opens or makes a file that all processes share.
    pub(super) fn shared_file(&self, name: &str) -> io::Result<File> {
        let path = self.root.join(name);
        let open = || OpenOptions::new().read(true).write(true).open(&path);
        match open() {
            Err(error) if error.kind() == ErrorKind::NotFound => match self.create(&path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => open(),
                made => made,
            },
            opened => opened,
        }
    }

    /// A new file with the permissions of the root, whatever the umask.
    fn create(&self, path: &Path) -> io::Result<File> {
        let mode = self.mode & 0o666;
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(path)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        Ok(file)
    }

    fn make_dir(&self, path: &Path) -> io::Result<()> {
        DirBuilder::new().mode(self.mode & 0o777).create(path)?;
        std::fs::set_permissions(path, Permissions::from_mode(self.mode))
    }

    fn entry_dir(&self, digest: Digest) -> PathBuf {
        let name = digest.name();
        self.root.join("entries").join(&name[..2]).join(name)
    }

    /// Opens an entry; `None` if there is none. One that is damaged is removed.
    pub(super) fn find(&self, digest: Digest, head: &Head) -> io::Result<Option<Files>> {
        let dir = self.entry_dir(digest);
        match open_entry(&dir, head) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) if error.kind() == ErrorKind::InvalidData => {
                self.remove(&dir)?;
                Ok(None)
            }
            opened => opened.map(Some),
        }
    }

    /// The data of an entry that is whole, open for reading and held against eviction, and when it was last used; `None`
    /// if something of it is missing, or its blocks must be verified first. Seven system calls, for those who open files
    /// by the ten thousand.
    pub(super) fn find_whole(
        &self,
        digest: Digest,
        head: &Head,
        look: Look,
    ) -> io::Result<Option<(File, u64)>> {
        let dir = self.entry_dir(digest);
        let data = look.open(&dir.join(DATA))?;
        // Without locks eviction may take its name away, and nothing else.
        let _ = flock(&data, FlockOperation::NonBlockingLockShared);
        // One byte more shows a file that is too long.
        let found = look.read(&look.open(&dir.join(MAP))?, head.map_bytes() as usize + 1)?;
        let (start, records) = found.split_at(found.len().min(head.records_at() as usize));
        let is_whole = found.len() as u64 == head.map_bytes()
            && head.is(start)
            && Record::all(records).all(|record| record.standing(self.boot) == Standing::Present);
        if !is_whole {
            return Ok(None);
        }
        // The map must be this file's: before the lock another entry may have taken the place.
        let (ours, there) = (data.metadata()?, dir.join(DATA).metadata()?);
        let is_it = (ours.dev(), ours.ino()) == (there.dev(), there.ino())
            && ours.len() == head.blocks.size_bytes;
        Ok(is_it.then(|| (data, u64_at(start, USED_AT as usize))))
    }

    /// Makes an entry, or opens the one that another process has made meanwhile.
    pub(super) fn make(&self, digest: Digest, head: Head, used_at: u64) -> io::Result<Files> {
        let tmp = self.tmp("new");
        let dir = self.entry_dir(digest);
        let made = self.build(&tmp, &dir, &head, used_at);
        match made {
            Ok((data, map)) => Ok(Files {
                dir,
                data,
                map,
                is_writable: true,
                head,
            }),
            Err(error) => {
                let _ = remove_tree(&tmp);
                let is_there = matches!(error.raw_os_error(), Some(libc::EEXIST | libc::ENOTEMPTY));
                if is_there {
                    open_entry(&dir, &head)
                } else {
                    Err(error)
                }
            }
        }
    }

    fn build(&self, tmp: &Path, dir: &Path, head: &Head, used_at: u64) -> io::Result<(File, File)> {
        self.make_dir(tmp)?;
        fail::point("create: directory");
        let data = self.create(&tmp.join(DATA))?;
        // Tells the sweeper that its maker lives. A file system without locks has only the age.
        let _ = flock(&data, FlockOperation::NonBlockingLockShared);
        fail::point("create: data");
        data.set_len(head.blocks.size_bytes)?;
        let mut map = self.create(&tmp.join(MAP))?;
        map.write_all(&head.encode(used_at))?;
        fail::point("create: head");
        let mut left = head.map_bytes() - head.records_at();
        while left > 0 {
            let n = left.min(ZEROS.len() as u64);
            map.write_all(&ZEROS[..n as usize])?;
            left -= n;
        }
        fail::point("create: map");
        let renamed = std::fs::rename(tmp, dir);
        if matches!(&renamed, Err(error) if error.kind() == ErrorKind::NotFound) {
            // Only this level: `entries` itself is missing when somebody took the cache away, and stays so.
            match self.make_dir(dir.parent().unwrap_or(&self.root)) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
                _ => std::fs::rename(tmp, dir)?,
            }
        } else {
            renamed?;
        }
        fail::point("create: renamed");
        let _ = flock(&data, FlockOperation::NonBlockingUnlock);
        Ok((data, map))
    }

    fn tmp(&self, kind: &str) -> PathBuf {
        // Random, because processes in containers that share the cache may share a pid.
        let name = format!("{kind}-{}-{:016x}", std::process::id(), fastrand::u64(..));
        self.root.join("tmp").join(name)
    }

    /// Takes an entry away at once and frees its space as soon as nobody reads it.
    pub(super) fn remove(&self, dir: &Path) -> io::Result<()> {
        fail::point("evict: chosen");
        let dead = self.tmp("dead");
        std::fs::rename(dir, &dead)?;
        fail::point("evict: renamed");
        remove_tree(&dead)
    }

    /// Takes an entry away unless somebody holds on to it; whether it went.
    pub(super) fn remove_if_unused(&self, dir: &Path) -> bool {
        let data = match File::open(dir.join(DATA)) {
            Ok(data) => data,
            // A damaged one.
            Err(error) => return error.kind() == ErrorKind::NotFound && self.remove(dir).is_ok(),
        };
        // Held until the end of this function: nobody takes hold of it meanwhile.
        match flock(&data, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => false,
            _ => self.remove(dir).is_ok(),
        }
    }

    /// Every entry there is; what can't be read is left out.
    pub(super) fn scan(&self) -> impl Iterator<Item = Found> + '_ {
        let list = |path: &Path| std::fs::read_dir(path).into_iter().flatten().flatten();
        list(&self.root.join("entries"))
            .flat_map(move |shard| list(&shard.path()))
            .filter_map(|entry| {
                let dir = entry.path();
                let bits = u64::from_str_radix(dir.file_name()?.to_str()?.get(..16)?, 16).ok()?;
                let disk = |path: &Path| path.metadata().map_or(0, |found| found.blocks() * 512);
                let map = dir.join(MAP);
                let disk_bytes = disk(&dir.join(DATA)) + disk(&map) + disk(&dir);
                let used_at = File::open(map).ok().and_then(|map| used_at(&map).ok());
                Some(Found {
                    disk_bytes,
                    used_at: used_at.unwrap_or(0),
                    bits,
                    dir,
                })
            })
    }

    /// The one that throws out; `None` while another process does.
    pub(super) fn lock_eviction(&self) -> io::Result<Option<File>> {
        let file = self.shared_file("lock")?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            // Without locks, two at once throw out more than is needed and nothing worse.
            _ => Ok(Some(file)),
        }
    }

    /// Removes what dead processes have left in `tmp`.
    pub(super) fn sweep(&self) {
        let entries = std::fs::read_dir(self.root.join("tmp"));
        for entry in entries.into_iter().flatten().flatten() {
            let path = entry.path();
            if entry.file_name().to_string_lossy().starts_with("dead-") || is_orphan(&path) {
                let _ = remove_tree(&path);
            }
        }
    }

    /// Free bytes for this user, and all bytes, of the file system.
    pub(super) fn free_bytes(&self) -> io::Result<(u64, u64)> {
        let found = rustix::fs::statvfs(&self.root)?;
        let unit = found.f_frsize;
        Ok((
            found.f_bavail.saturating_mul(unit),
            found.f_blocks.saturating_mul(unit),
        ))
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }
}

fn boot_tag(path: &Path) -> BootTag {
    match std::fs::read(path) {
        Ok(text) if !text.trim_ascii().is_empty() => BootTag::of(text.trim_ascii()),
        // Unknown: whatever others have stored is compared before it is served.
        _ => BootTag::of(&fastrand::u64(..).to_le_bytes()),
    }
}

fn format_line(block_bytes: u64) -> String {
    format!("standpipe block cache, format {FORMAT}, block_bytes {block_bytes}\n")
}

/// The block size, or why this directory can't be used.
fn parse_format(text: &str) -> Result<u64, String> {
    let rest = text
        .strip_prefix("standpipe block cache, format ")
        .ok_or("its FORMAT file is not a cache's: use an empty directory, or a new one")?;
    let (format, rest) = rest.split_once(',').unwrap_or((rest.trim(), ""));
    if format != FORMAT.to_string() {
        return Err(format!(
            "it is of format {format}, and this program knows format {FORMAT} only: use the program that made it, or \
             another directory for this one"
        ));
    }
    let mut config = CacheConfig::new("/");
    config.block_bytes = rest
        .trim()
        .strip_prefix("block_bytes ")
        .and_then(|number| number.parse().ok())
        .unwrap_or(0);
    config.write_behind_bytes = u64::MAX;
    match config.validate() {
        Ok(()) => Ok(config.block_bytes),
        Err(_) => Err("its FORMAT file names no usable block size: use another directory".into()),
    }
}

/// How long a look may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// As long as the disk does.
    Patient,
    /// Only what the kernel has in memory is seen; of the rest, and on kernels before 5.12, `WouldBlock` is said.
    AtOnce,
}

impl Look {
    fn open(self, path: &Path) -> io::Result<File> {
        if self == Self::Patient {
            return File::open(path);
        }
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        match rustix::fs::openat2(CWD, path, flags, Mode::empty(), ResolveFlags::CACHED) {
            Ok(file) => Ok(file.into()),
            Err(Errno::NOENT) => Err(ErrorKind::NotFound.into()),
            Err(_) => Err(ErrorKind::WouldBlock.into()),
        }
    }

    /// The first bytes of a file, up to so many.
    fn read(self, file: &File, most: usize) -> io::Result<Vec<u8>> {
        let flags = match self {
            Self::Patient => ReadWriteFlags::empty(),
            Self::AtOnce => ReadWriteFlags::NOWAIT,
        };
        let (mut bytes, mut at) = (vec![0; most], 0);
        while at < most {
            let mut rest = [IoSliceMut::new(&mut bytes[at..])];
            match rustix::io::preadv2(file, &mut rest, at as u64, flags) {
                Ok(0) => break,
                Ok(n) => at += n,
                Err(_) if self == Self::AtOnce => return Err(ErrorKind::WouldBlock.into()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            // A look at the end as well would cost as much as the read.
            if self == Self::AtOnce && at + 1 == most {
                break;
            }
        }
        bytes.truncate(at);
        Ok(bytes)
    }
}

/// Both files by way of one open directory: an entry that takes the place of an evicted one has another, and its data
/// must never be read by the records of the old one.
fn open_entry(dir: &Path, head: &Head) -> io::Result<Files> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let place = rustix::fs::openat(CWD, dir, flags, Mode::empty())?;
    let (map, map_is_writable) = open_best(&place, MAP)?;
    fail::point("open: map");
    let (data, data_is_writable) = open_best(&place, DATA)?;
    let mut found = vec![0; head.records_at() as usize];
    let damaged = || io::Error::from(ErrorKind::InvalidData);
    if map.metadata()?.len() != head.map_bytes()
        || data.metadata()?.len() != head.blocks.size_bytes
        || map.read_exact_at(&mut found, 0).is_err()
        || !head.is(&found)
    {
        return Err(damaged());
    }
    Ok(Files {
        dir: dir.to_path_buf(),
        data,
        map,
        is_writable: map_is_writable && data_is_writable,
        head: head.clone(),
    })
}

/// To read and write if that is allowed.
fn open_best(dir: &OwnedFd, name: &str) -> io::Result<(File, bool)> {
    let open = |access| rustix::fs::openat(dir, name, access | OFlags::CLOEXEC, Mode::empty());
    match open(OFlags::RDWR) {
        Ok(file) => Ok((file.into(), true)),
        Err(Errno::ACCESS | Errno::PERM | Errno::ROFS) => Ok((open(OFlags::RDONLY)?.into(), false)),
        Err(error) => Err(error.into()),
    }
}

/// The head of an entry of which only the place is known, its open files, and whether they fit it.
pub(super) fn open_found(dir: &Path) -> Result<Files, String> {
    let told = |error: io::Error| error.to_string();
    let map = File::open(dir.join(MAP)).map_err(told)?;
    let mut fixed = vec![0; FIXED_BYTES];
    map.read_exact_at(&mut fixed, 0).map_err(told)?;
    let len = Head::identity_bytes(&fixed)?;
    let mut bytes = vec![0; FIXED_BYTES + len];
    map.read_exact_at(&mut bytes, 0).map_err(told)?;
    let head = Head::decode(&bytes)?;
    if dir.file_name().and_then(|name| name.to_str()) != Some(&head.identity.digest().name()) {
        return Err("it is not what its name says".into());
    }
    open_entry(dir, &head).map_err(told)
}

pub(super) fn used_at(map: &File) -> io::Result<u64> {
    let mut bytes = [0; 8];
    map.read_exact_at(&mut bytes, USED_AT)?;
    Ok(u64_at(&bytes, 0))
}

/// Whether the maker of a new entry is dead.
fn is_orphan(path: &Path) -> bool {
    let Ok(found) = path.metadata() else {
        return false;
    };
    // A time in the future is as good as an old one: if its maker lives after all, it makes it again.
    let age = |modified: SystemTime| match SystemTime::now().duration_since(modified) {
        Ok(age) => age,
        Err(ahead) => ahead.duration(),
    };
    if !found
        .modified()
        .is_ok_and(|modified| age(modified) > ORPHAN_AGE)
    {
        return false;
    }
    File::open(path.join(DATA)).map_or(true, |data| {
        flock(&data, FlockOperation::NonBlockingLockExclusive) != Err(rustix::io::Errno::WOULDBLOCK)
    })
}

/// Removes an entry's directory; what else lies in it stays, and keeps it.
fn remove_tree(dir: &Path) -> io::Result<()> {
    for name in [DATA, MAP] {
        match std::fs::remove_file(dir.join(name)) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => fail::point("evict: unlinked"),
        }
    }
    std::fs::remove_dir(dir)
}

/// Whether the name that a file had still leads to it.
pub(super) fn is_linked(file: &File) -> bool {
    file.metadata().is_ok_and(|found| found.nlink() > 0)
}
