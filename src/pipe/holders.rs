//! Who has a FIFO open, as far as `/proc` shows.
//!
//! Two readers of one FIFO split its bytes between them, and neither notices. The kernel tells a writer only whether
//! there is a reader, so the descriptors of all processes are looked through. A fork or a `dup` copies a descriptor but
//! not the open file behind it: a DataLoader worker that inherited its parent's descriptor is no second reader, one that
//! opened the FIFO itself is. `kcmp` tells them apart.
//!
//! Limits: processes of other users or in other pid namespaces are not seen, nor is a second reader that comes and goes
//! between two looks. Where `kcmp` is not allowed, equal descriptor numbers pass as inherited.

use std::fs;
use std::os::unix::fs::MetadataExt;

use super::sys;

/// What identifies a file on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Inode {
    pub(super) dev: u64,
    pub(super) ino: u64,
}

/// One descriptor of one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Holder {
    pub(super) pid: u32,
    pub(super) fd: u32,
    pub(super) reads: bool,
    pub(super) writes: bool,
}

impl Holder {
    pub(super) fn is_self(&self) -> bool {
        self.pid == std::process::id()
    }
}

/// Every visible descriptor of the file.
pub(super) fn of(inode: Inode) -> Vec<Holder> {
    numbers_in("/proc")
        .flat_map(|pid| of_process(inode, pid))
        .collect()
}

fn of_process(inode: Inode, pid: u32) -> impl Iterator<Item = Holder> {
    let descriptors = numbers_in(&format!("/proc/{pid}/fd"));
    descriptors.filter_map(move |fd| {
        let found = fs::metadata(format!("/proc/{pid}/fd/{fd}")).ok()?;
        let is_it = (found.dev(), found.ino()) == (inode.dev, inode.ino);
        is_it.then(|| holder(pid, fd)).flatten()
    })
}

fn numbers_in(dir: &str) -> impl Iterator<Item = u32> + use<> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn holder(pid: u32, fd: u32) -> Option<Holder> {
    let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).ok()?;
    let (reads, writes) = access(&info)?;
    Some(Holder {
        pid,
        fd,
        reads,
        writes,
    })
}

/// Whether the flags of a `fdinfo` file allow reading and writing.
fn access(info: &str) -> Option<(bool, bool)> {
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
    let flags = u32::from_str_radix(flags.trim(), 8).ok()?;
    match flags & 0o3 {
        _ if flags & libc::O_PATH as u32 != 0 => None,
        0 => Some((true, false)),
        1 => Some((false, true)),
        _ => Some((true, true)),
    }
}

/// Two readers that did not inherit from each other, if there are two.
pub(super) fn two_readers(inode: Inode) -> Option<(Holder, Holder)> {
    let mut readers = of(inode).into_iter().filter(|holder| holder.reads);
    let first = readers.next()?;
    let second = readers.find(|other| !is_inherited(&first, other))?;
    Some((first, second))
}

fn is_inherited(a: &Holder, b: &Holder) -> bool {
    // Without an answer nobody knows, and a job must not fail for a reader that is in order.
    sys::same_open_file((a.pid, a.fd), (b.pid, b.fd)).unwrap_or(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_is_read_from_the_flags() {
        let info = |flags: &str| format!("pos:\t0\nflags:\t{flags}\nmnt_id:\t9\n");
        assert_eq!(access(&info("0100000")), Some((true, false)));
        assert_eq!(access(&info("0104001")), Some((false, true)));
        assert_eq!(access(&info("02")), Some((true, true)));
        assert_eq!(access(&info("012000000")), None, "O_PATH reads nothing");
        assert_eq!(access("garbage"), None);
    }

    #[test]
    fn a_duplicate_is_no_second_reader_and_a_second_open_is() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || fs::File::open(file.path()).unwrap();
        let inode = Inode::of(&file.as_file().metadata().unwrap());
        let first = open();
        let _dup = first.try_clone().unwrap();
        let readers = |found: Vec<Holder>| found.iter().filter(|h| h.reads && !h.writes).count();
        assert_eq!(readers(of(inode)), 2);
        let own = |holder: &Holder| holder.reads && !holder.writes;
        let held: Vec<_> = of(inode).into_iter().filter(own).collect();
        assert!(is_inherited(&held[0], &held[1]));
        let second = open();
        let fds = [&first, &second].map(|file| std::os::fd::AsRawFd::as_raw_fd(file) as u32);
        let pid = std::process::id();
        // A kernel that is not asked (Docker's default profile) cannot tell; then it is no error.
        let can_tell = sys::same_open_file((pid, fds[0]), (pid, fds[1])).is_some();
        assert_eq!(two_readers(inode).is_some(), can_tell);
    }
}
