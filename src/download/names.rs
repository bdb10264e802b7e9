//! From keys to file names, and which keys have none. Pure.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::object::ObjectUri;

/// What every temporary name begins with, and what it ends with: an unfinished file and its record. A key may not be
/// named so.
const TEMP_PREFIX: &str = ".standpipe-";
const PART_SUFFIX: &str = ".part";
const RECORD_SUFFIX: &str = ".sums";

/// The path of `uri` relative to the target directory: its key after `root`'s.
///
/// Refused is whatever would leave the directory, or could not be told from another key on disk: `..`, `.`, empty
/// parts (`a//b`), a leading or trailing `/`, NUL.
pub fn local_name(root: &ObjectUri, uri: &ObjectUri) -> Result<PathBuf> {
    let refuse = |why: &str| {
        Err(Error::config(
            uri.to_string(),
            format!(
                "this key can't be a file name ({why}): name prefixes or patterns without it, or read it with `standpipe cat`"
            ),
        ))
    };
    let Some(name) = uri.key().strip_prefix(root.key()) else {
        return refuse("it lies outside of the prefix");
    };
    if name.contains('\0') {
        return refuse("it contains a NUL");
    }
    for part in name.split('/') {
        match part {
            "" => return refuse("a part of it between slashes is empty"),
            "." | ".." => return refuse("it contains `.` or `..`"),
            _ if is_temporary(part) => return refuse("unfinished downloads are named like this"),
            _ => {}
        }
    }
    Ok(PathBuf::from(name))
}

/// Whether a file's name is one of an unfinished download.
pub(crate) fn is_temporary(part: &str) -> bool {
    let ends = |suffix| part.ends_with(suffix);
    part.starts_with(TEMP_PREFIX) && (ends(PART_SUFFIX) || ends(RECORD_SUFFIX))
}

/// Where a file is written before it is complete: beside its place, of fixed length (names may have 255 bytes, which
/// leaves no room to add to them), and the same in every run.
pub(super) fn temporary_path(path: &Path) -> PathBuf {
    beside(path, PART_SUFFIX)
}

/// Where is written what proves the unfinished file.
pub(super) fn record_path(path: &Path) -> PathBuf {
    beside(path, RECORD_SUFFIX)
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default();
    let digest = fnv1a_64(name.as_encoded_bytes());
    path.with_file_name(format!("{TEMP_PREFIX}{digest:016x}{suffix}"))
}

/// FNV-1a: two files of one directory share a name in one of 10^19 cases, and then wait for each other's lock.
fn fnv1a_64(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::Component;

    #[test]
    fn names_are_relative_to_the_root() {
        let root = ObjectUri::s3("b", "p/");
        let name = local_name(&root, &ObjectUri::s3("b", "p/x/y.tar")).unwrap();
        assert_eq!(name, Path::new("x/y.tar"));
    }

    #[test]
    fn keys_that_would_escape_or_collide_are_refused() {
        let root = ObjectUri::s3("b", "p/");
        for key in [
            "p/../x",
            "p/a/..",
            "p//etc/passwd",
            "p/a//b",
            "p/./a",
            "p/a/",
            "p/",
            "q/x",
            "p/a\0b",
            "p/.standpipe-0000000000000000.part",
            "p/.standpipe-0000000000000000.sums",
        ] {
            let error = local_name(&root, &ObjectUri::s3("b", key)).unwrap_err();
            assert!(
                error.to_string().contains("can't be a file name"),
                "{key}: {error}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_name_ever_leaves_the_directory(key in r"[a./\\\x00]{0,12}") {
            if let Ok(name) = local_name(&ObjectUri::s3("b", ""), &ObjectUri::s3("b", key.as_str())) {
                prop_assert!(name.components().all(|part| matches!(part, Component::Normal(_))));
                prop_assert_eq!(name.to_str().unwrap(), key);
            }
        }

        #[test]
        fn temporary_names_stay_in_the_directory_and_fit(name in "[^/\0]{1,255}") {
            let path = Path::new("d").join(&name);
            for temporary in [temporary_path(&path), record_path(&path)] {
                prop_assert_eq!(temporary.parent(), path.parent());
                prop_assert!(temporary.file_name().unwrap().len() < 40);
            }
        }
    }
}
