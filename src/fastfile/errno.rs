//! From errors to what a system call returns: one table.

use std::io;

use crate::error::Error;

/// The error as file operations give it, with the kind that a file's would have and this one inside.
pub fn to_io(error: Error) -> io::Error {
    let kind = match error.root() {
        Error::NotFound { .. } => io::ErrorKind::NotFound,
        Error::Corrupt { .. } | Error::Protocol { .. } => io::ErrorKind::InvalidData,
        _ => match errno(&error) {
            libc::EIO => io::ErrorKind::Other,
            errno => io::Error::from_raw_os_error(errno).kind(),
        },
    };
    io::Error::new(kind, error)
}

/// The errno that a program on the mount sees for `error`.
///
/// An object that is gone, shorter or replaced is `ESTALE`, as on NFS: the name is there, what it stood for is not.
pub fn errno(error: &Error) -> i32 {
    match error.root() {
        Error::Changed { .. } | Error::NotFound { .. } | Error::RangeNotSatisfiable { .. } => {
            libc::ESTALE
        }
        Error::PermissionDenied { .. } | Error::Credentials { .. } => libc::EACCES,
        Error::Stalled { .. } => libc::ETIMEDOUT,
        Error::Config { .. } => libc::EINVAL,
        Error::Io { source, .. } => match source.raw_os_error() {
            None | Some(libc::EINTR | libc::EAGAIN) => libc::EIO,
            Some(libc::ENOENT) => libc::ESTALE,
            Some(other) => other,
        },
        _ => libc::EIO,
    }
}

/// Its name, for log lines.
pub fn name(errno: i32) -> &'static str {
    match errno {
        libc::ESTALE => "ESTALE",
        libc::EACCES => "EACCES",
        libc::ETIMEDOUT => "ETIMEDOUT",
        libc::EINVAL => "EINVAL",
        libc::ENOSPC => "ENOSPC",
        libc::EIO => "EIO",
        _ => "an error of the local disk",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn each_error_has_its_errno() {
        let uri = || "s3://b/k".to_string();
        let stalled = Error::Stalled {
            uri: uri(),
            offset: 0,
            idle: Duration::from_secs(1),
            proxy: None,
        };
        let cases = [
            (
                Error::Changed {
                    uri: uri(),
                    offset: 0,
                    expected: "a".into(),
                    found: "b".into(),
                    answer: Default::default(),
                },
                "ESTALE",
            ),
            (
                Error::NotFound {
                    uri: uri(),
                    offset: None,
                    answer: Box::default(),
                },
                "ESTALE",
            ),
            (
                Error::PermissionDenied {
                    uri: uri(),
                    offset: None,
                    answer: Box::default(),
                },
                "EACCES",
            ),
            (
                Error::RetriesExhausted {
                    attempts: 8,
                    elapsed: Duration::ZERO,
                    source: Box::new(stalled),
                },
                "ETIMEDOUT",
            ),
            (
                Error::io("/cache", std::io::Error::from_raw_os_error(libc::ENOSPC)),
                "ENOSPC",
            ),
            (Error::Cancelled, "EIO"),
        ];
        for (error, expected) in cases {
            assert_eq!(name(errno(&error)), expected, "{error}");
            let io = to_io(error.clone());
            assert_eq!(io.kind() == io::ErrorKind::Other, expected == "EIO", "{io}");
            assert_eq!(io.to_string(), error.to_string());
        }
    }
}
