//! What is asked of the system: mounting, unmounting, and whether what is mounted lives.

use std::ffi::{CString, OsStr};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::MountOptions;
use crate::error::{Error, Result};

const DEVICE: &str = "/dev/fuse";
const FILE_SYSTEM: &str = "fuse.standpipe";

/// Requests of 1 MiB need read-ahead of as much; more gave nothing.
const READ_AHEAD_KIB: u64 = 1024;

/// By which way the mount came to be, and goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    SystemCall,
    Fusermount,
}

/// Mounts and gives the open device; `None` when this process may not and `fusermount3` might.
pub(super) fn mount(
    directory: &Path,
    name: &str,
    options: &MountOptions,
) -> Result<Option<OwnedFd>> {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .open(DEVICE)
        .map_err(no_device)?;
    let metadata = directory
        .metadata()
        .map_err(|error| Error::io(directory, error))?;
    if !metadata.is_dir() {
        return Err(Error::config(
            directory.display().to_string(),
            "is no directory",
        ));
    }
    let mut data = format!(
        "fd={},rootmode={:o},user_id={},group_id={},default_permissions",
        device.as_raw_fd(),
        metadata.mode() & libc::S_IFMT,
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    if options.allow_other || options.allow_root {
        data.push_str(",allow_other");
    }
    let data = CString::new(data).expect("numbers and words");
    let name = name.replace('\0', "");
    let mounted = rustix::mount::mount(
        name.as_str(),
        directory,
        FILE_SYSTEM,
        options.flags(),
        data.as_c_str(),
    );
    match mounted {
        Ok(()) => Ok(Some(device.into())),
        Err(Errno::PERM) if has_fusermount() => Ok(None),
        Err(Errno::PERM) => Err(no_right(directory)),
        Err(error) => Err(Error::io(directory, error.into())),
    }
}

fn no_device(error: io::Error) -> Error {
    let what = match error.kind() {
        io::ErrorKind::NotFound => {
            "there is none: `modprobe fuse` on the host, and `--device /dev/fuse` for a container"
        }
        io::ErrorKind::PermissionDenied => {
            "this process may not use it: run as root, or give the container `--device /dev/fuse`"
        }
        _ => return Error::io(DEVICE, error),
    };
    Error::config(
        DEVICE,
        format!(
            "{what} (a mount needs it; `standpipe download`, `pipe` and the library's FastFiles work without)"
        ),
    )
}

fn no_right(directory: &Path) -> Error {
    Error::config(
        directory.display().to_string(),
        "this process may not mount: run as root, give the container `--cap-add SYS_ADMIN`, or install fusermount3 \
         (package fuse3); `standpipe download`, `pipe` and the library's FastFiles work without a mount",
    )
}

fn has_fusermount() -> bool {
    ["fusermount3", "fusermount"].iter().any(|program| {
        let mut command = Command::new(program);
        let ran = command
            .arg("--version")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        ran.status().is_ok()
    })
}

/// The session did not start.
pub(super) fn refused(directory: &Path, how: How, error: io::Error) -> Error {
    if how == How::SystemCall {
        let _ = detach(directory, how);
    }
    Error::io(directory, error)
}

/// Takes away a mount whose server is gone: everything on it answers ENOTCONN.
pub(super) fn replace_stale(directory: &Path) -> Result<()> {
    // stat is answered from the kernel's cache for as long as we told it to; statvfs never is.
    match rustix::fs::statvfs(directory) {
        Err(Errno::NOTCONN | Errno::CONNABORTED) => {
            tracing::info!(
                "{}: replacing a mount whose server is gone",
                directory.display()
            );
            unmount(directory, true)
        }
        _ => Ok(()),
    }
}

/// A second mount would hide the first, and `umount` would take the wrong one away.
pub(super) fn refuse_double(directory: &Path) -> Result<()> {
    match is_mounted(directory) {
        true => Err(Error::config(
            directory.display().to_string(),
            "FastFile mode is mounted here already: `standpipe umount` it first",
        )),
        false => Ok(()),
    }
}

/// Whether a file system of ours is mounted at exactly this path, alive or not.
pub fn is_mounted(directory: &Path) -> bool {
    let mounts = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    let mut on_top = false;
    for line in mounts.split(|byte| *byte == b'\n') {
        if let Some((path, kind)) = mount_of(line).filter(|(path, _)| path == directory) {
            let _ = path;
            on_top = kind == FILE_SYSTEM.as_bytes() || kind == b"fuse";
        }
    }
    on_top
}

/// Path and type of a line of mountinfo (proc(5)).
fn mount_of(line: &[u8]) -> Option<(PathBuf, &[u8])> {
    let mut fields = line.split(|byte| *byte == b' ');
    let path = fields.nth(4)?;
    fields.find(|field| *field == b"-")?;
    Some((unescaped(path), fields.next()?))
}

/// Blanks and the like are written as `\040`.
fn unescaped(path: &[u8]) -> PathBuf {
    let mut plain = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((byte, after)) = rest.split_first() {
        let code = (*byte == b'\\').then(|| after.get(..3)).flatten();
        let code = code.and_then(|code| u8::from_str_radix(str::from_utf8(code).ok()?, 8).ok());
        match code {
            Some(code) => {
                plain.push(code);
                rest = &after[3..];
            }
            None => {
                plain.push(*byte);
                rest = after;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(plain))
}

/// Unmounts; `lazy` takes it out of the tree at once although files are open.
pub fn unmount(directory: &Path, lazy: bool) -> Result<()> {
    let flags = match lazy {
        true => UnmountFlags::DETACH,
        false => UnmountFlags::empty(),
    };
    match rustix::mount::unmount(directory, flags | UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(Errno::PERM) => fusermount_unmount(directory, lazy),
        Err(Errno::BUSY) => Err(Error::config(
            directory.display().to_string(),
            "files on it are open: close them, or unmount with --lazy",
        )),
        Err(Errno::INVAL) => Err(Error::config(
            directory.display().to_string(),
            "nothing is mounted here",
        )),
        Err(error) => Err(Error::io(directory, error.into())),
    }
}

pub(super) fn detach(directory: &Path, how: How) -> Result<()> {
    match how {
        // Unmounted by somebody else before: as wanted.
        _ if !is_mounted(directory) => Ok(()),
        How::SystemCall => unmount(directory, true),
        How::Fusermount => fusermount_unmount(directory, true),
    }
}

fn fusermount_unmount(directory: &Path, lazy: bool) -> Result<()> {
    let mut failure = io::Error::from(io::ErrorKind::PermissionDenied);
    for program in ["fusermount3", "fusermount"] {
        let flags: &[&str] = if lazy { &["-u", "-z"] } else { &["-u"] };
        let mut command = Command::new(program);
        match command.args(flags).arg("--").arg(directory).output() {
            Ok(output) if output.status.success() => return Ok(()),
            Ok(output) => {
                let said = OsStr::from_bytes(output.stderr.trim_ascii());
                failure = io::Error::other(said.to_string_lossy().into_owned());
                break;
            }
            Err(_) => continue,
        }
    }
    Err(Error::Io {
        path: directory.into(),
        source: Arc::new(failure),
    })
}

/// Lets the kernel read ahead by more than its 128 KiB. Not everybody may; the mount works without.
pub(super) fn raise_read_ahead(directory: &Path) {
    let set = || -> io::Result<()> {
        let device = File::open(directory)?.metadata()?.dev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        std::fs::write(
            format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"),
            READ_AHEAD_KIB.to_string(),
        )
    };
    if let Err(error) = set() {
        tracing::debug!(
            "{}: the kernel's read-ahead stays small: {error}",
            directory.display()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_in_mountinfo() {
        let line = br"36 35 98:0 / /mnt/a\040b\134 rw,noatime shared:1 - fuse.standpipe s3://b/p/ rw,user_id=0";
        let (path, kind) = mount_of(line).unwrap();
        assert_eq!(
            (path.as_path(), kind),
            (Path::new(r"/mnt/a b\"), &b"fuse.standpipe"[..])
        );
        assert_eq!(mount_of(b""), None);
    }
}
