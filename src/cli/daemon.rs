//! Going to the background: the command returns when its work can be used, and with an error if it never can.
//!
//! The fork comes first, before any thread exists, since a fork takes along only the thread that calls it. The parent
//! waits at a pipe: one byte means that the child is ready; its end without one, that the child has failed, has said why
//! on the standard error that both share, and has an exit code to pass on.

#![expect(unsafe_code, reason = "fork, which rustix leaves out")]

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Resource, Rlimit, WaitOptions, getrlimit, setrlimit};

use crate::error::{Error, Result};

/// What a child tells its parent. By default there is no parent.
#[derive(Debug, Default)]
pub(super) struct Readiness(Option<Detached>);

#[derive(Debug)]
struct Detached {
    parent: File,
    /// Takes the place of standard output and error.
    log: File,
}

/// Opens as many files as this user may have: the usual 1,024 are for programs that wait by `select`. A cache keeps 768
/// descriptors, and its looks and connections come on top. Where that is refused, fewer are to do.
pub(super) fn take_all_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let all = Rlimit {
        current: limit.maximum,
        ..limit
    };
    let _ = setrlimit(Resource::Nofile, all);
}

/// Forks. Returns in the child; the parent ends with the child's fate.
pub(super) fn detach(log: Option<&Path>) -> Result<Readiness> {
    let log = open_log(log.unwrap_or(Path::new("/dev/null")))?;
    let failed = |error: std::io::Error| Error::io("fork", error);
    let (reader, writer) = std::io::pipe().map_err(failed)?;
    // SAFETY: no thread but this one exists yet, so the child can use everything that the process had.
    match unsafe { libc::fork() } {
        -1 => Err(failed(std::io::Error::last_os_error())),
        0 => {
            drop(reader);
            // A session of its own: the terminal's Ctrl-C is not for it. It cannot lead one already.
            let _ = rustix::process::setsid();
            let parent = File::from(std::os::fd::OwnedFd::from(writer));
            Ok(Readiness(Some(Detached { parent, log })))
        }
        child => {
            drop(writer);
            std::process::exit(fate(reader, child))
        }
    }
}

/// Paths are opened before the child changes its directory; the log is for its owner's eyes.
fn open_log(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o600);
    options
        .open(path)
        .map_err(|error| Error::io(PathBuf::from(path), error))
}

fn fate(mut reader: std::io::PipeReader, child: i32) -> i32 {
    if matches!(reader.read(&mut [0]), Ok(1)) {
        return 0;
    }
    let ended =
        Pid::from_raw(child).map(|pid| rustix::process::waitpid(Some(pid), WaitOptions::empty()));
    match ended {
        Some(Ok(Some((_, status)))) => status.exit_status().unwrap_or(1),
        _ => 1,
    }
}

impl Readiness {
    /// Lets the parent go, and lets go of its terminal.
    pub(super) fn tell(self) {
        let Some(Detached { mut parent, log }) = self.0 else {
            return;
        };
        // The descriptors are the standard ones: they exist for as long as the process does.
        let _ = rustix::stdio::dup2_stdout(&log);
        let _ = rustix::stdio::dup2_stderr(&log);
        if let Ok(nothing) = File::open("/dev/null") {
            let _ = rustix::stdio::dup2_stdin(&nothing);
        }
        // A daemon holds no directory that someone may want to unmount.
        let _ = std::env::set_current_dir("/");
        let _ = parent.write_all(b"+");
    }
}
