//! Mount options as fstab and `-o` write them.

use fuser::MountOption;
use rustix::mount::MountFlags;

use super::unopened::Opening;
use crate::error::{Error, Result};

/// How the mount looks to its users.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountOptions {
    /// Other users may use it.
    pub allow_other: bool,
    /// Root may use it beside its owner.
    pub allow_root: bool,
    /// Owner of all files.
    pub uid: u32,
    /// Group of all files.
    pub gid: u32,
    /// Bits that files lack: 0222 lets them be run.
    pub fmask: u32,
    /// Bits that directories lack.
    pub dmask: u32,
    /// Programs on it may not be run.
    pub noexec: bool,
    /// Files that lie whole on a local disk are read by way of us all the same. Slower; but what the disk fails to read is
    /// then fetched, and not the reader's EIO.
    pub no_passthrough: bool,
    /// Whether the kernel asks for each file that is opened.
    pub open: Opening,
}

impl Default for MountOptions {
    /// Files 0444 and directories 0555, owned by this process's user: what SageMaker shows is not documented beyond
    /// "read-only".
    fn default() -> Self {
        Self {
            allow_other: false,
            allow_root: false,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            fmask: 0o333,
            dmask: 0o222,
            noexec: false,
            no_passthrough: false,
            open: Opening::default(),
        }
    }
}

/// An option that is not of the mount itself: its name, and its value if it has one.
pub type StrayOption = (String, Option<String>);

impl MountOptions {
    /// Takes a list such as `ro,allow_other,uid=1000`; gives back what it does not know.
    pub fn apply(&mut self, list: &str) -> Result<Vec<StrayOption>> {
        let mut stray = Vec::new();
        for option in list.split(',').filter(|option| !option.is_empty()) {
            let (name, value) = match option.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (option, None),
            };
            if !self.apply_one(name, value)? {
                stray.push((name.into(), value.map(Into::into)));
            }
        }
        Ok(stray)
    }

    fn apply_one(&mut self, name: &str, value: Option<&str>) -> Result<bool> {
        let number = |radix| {
            value
                .and_then(|text| u32::from_str_radix(text, radix).ok())
                .ok_or_else(|| Error::config(format!("-o {name}"), "needs a number"))
        };
        match name {
            "rw" => {
                return Err(Error::config(
                    "-o rw",
                    "FastFile mode is read-only: leave rw away, or say ro",
                ));
            }
            "allow_other" => self.allow_other = true,
            "allow_root" => self.allow_root = true,
            "noexec" => self.noexec = true,
            "exec" => self.noexec = false,
            "no_passthrough" => self.no_passthrough = true,
            "open" => self.open = value.unwrap_or_default().parse()?,
            "uid" => self.uid = number(10)?,
            "gid" => self.gid = number(10)?,
            "umask" => (self.fmask, self.dmask) = (number(8)?, number(8)?),
            "fmask" => self.fmask = number(8)?,
            "dmask" => self.dmask = number(8)?,
            // What the mount is anyway, and what mount(8) and systemd say to each other.
            "ro"
            | "defaults"
            | "auto"
            | "noauto"
            | "nofail"
            | "_netdev"
            | "nouser"
            | "user"
            | "users"
            | "owner"
            | "group"
            | "dev"
            | "nodev"
            | "suid"
            | "nosuid"
            | "async"
            | "atime"
            | "noatime"
            | "diratime"
            | "nodiratime"
            | "relatime"
            | "norelatime"
            | "default_permissions"
            | "fsname"
            | "subtype"
            | "comment" => {}
            _ if name.starts_with("x-") || name.starts_with("X-") => {}
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The mode of files or directories; never writable.
    pub(super) fn mode(&self, is_directory: bool) -> u16 {
        let mask = if is_directory { self.dmask } else { self.fmask };
        (0o555 & !mask) as u16
    }

    pub(super) fn flags(&self) -> MountFlags {
        let flags =
            MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOATIME;
        match self.noexec {
            true => flags | MountFlags::NOEXEC,
            false => flags,
        }
    }

    pub(super) fn for_fusermount(&self, name: &str) -> Vec<MountOption> {
        let mut options = vec![
            MountOption::RO,
            MountOption::NoAtime,
            MountOption::DefaultPermissions,
            MountOption::Subtype("standpipe".into()),
            MountOption::FSName(name.replace(',', "%2C")),
        ];
        options.extend(self.noexec.then_some(MountOption::NoExec));
        options
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_as_fstab_writes_them() {
        let mut options = MountOptions::default();
        let stray = options.apply("ro,allow_other,,uid=7,umask=027,fmask=0133,noauto,x-systemd.automount,cache=/c,no_passthrough,open=per_file,no_sign_request");
        assert_eq!(
            stray.unwrap(),
            [
                ("cache".into(), Some("/c".into())),
                ("no_sign_request".into(), None)
            ]
        );
        assert!(options.allow_other && options.uid == 7 && options.no_passthrough);
        assert_eq!(options.open, Opening::PerFile);
        assert!(options.apply("open").is_err() && options.apply("open=often").is_err());
        assert_eq!((options.mode(false), options.mode(true)), (0o444, 0o550));
        assert!(
            options
                .apply("rw")
                .unwrap_err()
                .to_string()
                .contains("read-only")
        );
        assert!(options.apply("uid=me").is_err() && options.apply("uid").is_err());
    }
}
