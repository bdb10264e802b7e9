//! The mount: a [`Namespace`] as a read-only file system of the kernel's.
//!
//! Two or more session threads take requests from `/dev/fuse` and answer what is in memory on the spot: names,
//! attributes, directories, bytes. What must wait (a name that the listing has not reached, bytes that are on their
//! way) goes to a task of the runtime, which sends the reply itself; so a slow read holds up nothing but its reader.
//!
//! The listing is a snapshot, so the kernel may keep names, absences and attributes for a year and pages from open to
//! open. What was measured to matter is set: read-ahead of 1 MiB (`/sys/class/bdi`, after mounting: INIT cannot raise
//! it above 128 KiB), asynchronous reads, parallel lookups, readdirplus always. A file that lies whole on a local disk
//! is passed through to it (Linux 6.9, `CAP_SYS_ADMIN`): the kernel then reads it without us. All opens of an inode must
//! agree on that while one lives, so the switch comes with the first open after the last close.
//!
//! Small files are read without being opened: to say so would cost more than their bytes (`unopened`). Folders always are.
//!
//! We mount by the system call, as `fuse.standpipe`, and take the mount away lazily: open files do not hold it up, and
//! nothing of ours ever unmounts a path that somebody else has mounted since. Without the right to mount, `fusermount3`
//! is asked.

mod filesystem;
mod opens;
mod options;
mod reading;
mod system;
mod unopened;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fuser::{BackgroundSession, Config, Session, SessionACL};

use super::tree::Namespace;
use crate::error::{Error, Result};
use filesystem::Files;

pub use super::source::{OpenFile, Source, Windows};
pub use options::{MountOptions, StrayOption};
pub use system::{is_mounted, unmount};
pub use unopened::Opening;

/// Session threads: two at least, or a directory of a million names holds up a read; more than cores gave nothing.
fn session_threads() -> usize {
    std::thread::available_parallelism().map_or(2, |cores| cores.get().clamp(2, 8))
}

/// A mounted file system. Dropping it unmounts lazily.
#[derive(Debug)]
pub struct Mount {
    directory: PathBuf,
    /// Gone once it was waited for.
    session: Option<BackgroundSession>,
    how: system::How,
}

impl Mount {
    /// Mounts `namespace` at `directory`, which exists; a mount there whose server died is replaced.
    ///
    /// When this returns, the mount answers.
    pub fn start(
        namespace: Arc<Namespace>,
        source: Arc<dyn Source>,
        directory: &Path,
        options: &MountOptions,
    ) -> Result<Self> {
        system::replace_stale(directory)?;
        let directory = directory
            .canonicalize()
            .map_err(|error| Error::io(directory, error))?;
        system::refuse_double(&directory)?;
        let name = namespace.tree().root().to_string();
        let files = || Files::new(namespace.clone(), source.clone(), options);
        let mut config = Config::default();
        config.n_threads = Some(session_threads());
        config.acl = match (options.allow_other, options.allow_root) {
            (true, _) => SessionACL::All,
            (false, true) => SessionACL::RootAndOwner,
            (false, false) => SessionACL::Owner,
        };
        let (session, how) = match system::mount(&directory, &name, options)? {
            Some(device) => (
                Session::from_fd(files(), device, config.acl, config),
                system::How::SystemCall,
            ),
            None => {
                config.mount_options = options.for_fusermount(&name);
                (
                    Session::new(files(), &directory, &config),
                    system::How::Fusermount,
                )
            }
        };
        let session = session
            .and_then(Session::spawn)
            .map_err(|error| system::refused(&directory, how, error))?;
        system::raise_read_ahead(&directory);
        Ok(Self {
            directory,
            session: Some(session),
            how,
        })
    }

    /// Where it is mounted.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A handle that unmounts from another thread.
    pub fn unmounter(&self) -> Unmounter {
        Unmounter {
            directory: self.directory.clone(),
            how: self.how,
        }
    }

    /// Waits until it is unmounted, by whomever, and its last file is closed.
    pub fn wait(mut self) -> Result<()> {
        let Some(session) = self.session.take() else {
            return Ok(());
        };
        session
            .join()
            .map_err(|error| Error::io(&self.directory, error))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            self.unmounter().detach();
            // Its own drop would unmount the path again, which may be another's by then.
            std::mem::forget(session);
        }
    }
}

/// Takes a mount away.
#[derive(Debug, Clone)]
pub struct Unmounter {
    directory: PathBuf,
    how: system::How,
}

impl Unmounter {
    /// Takes the mount out of the tree at once; it ends when its last file is closed.
    pub fn detach(&self) {
        if let Err(error) = system::detach(&self.directory, self.how) {
            tracing::warn!("{}: unmounting failed: {error}", self.directory.display());
        }
    }
}
