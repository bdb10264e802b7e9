//! From keys to names and back. Pure.
//!
//! A key is cut at its slashes; each part becomes a name. Most parts are names as they are. A part that no directory
//! can hold (empty, `.`, `..`, with a NUL, above 255 bytes), and an object whose name a directory has taken, get a name
//! of ours: [`RESERVED`], the part with `%`, NUL and dots-only parts percent-encoded, a digest in place of what does not
//! fit, and `%file` for an object beside a directory. A part that begins with [`RESERVED`] by itself is encoded too, so
//! no two parts ever share a name.

use std::borrow::Cow;
use std::fmt::Write as _;

use sha2::{Digest, Sha256};

/// What every name of ours begins with: hidden, so that patterns and `ls` pass over it, and unlikely in a key.
pub const RESERVED: &str = ".s3key%";

/// What a name of ours ends with when the object stands beside a directory of its name.
const FILE: &str = "%file";

/// The longest name that Linux takes.
const NAME_MAX_BYTES: usize = 255;

/// Half of a SHA-256: nobody finds two keys with the same.
const DIGEST_BYTES: usize = 16;

/// Which name a part of a key gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// The part itself.
    Plain,
    /// One of ours.
    Encoded,
    /// One of ours, for an object whose own name is a directory's.
    Beside,
}

impl Form {
    /// The form of a part that nothing stands in the way of.
    pub(super) fn of(part: &str) -> Self {
        match is_name(part) {
            true => Self::Plain,
            false => Self::Encoded,
        }
    }
}

/// Whether a part of a key can be a name as it is.
fn is_name(part: &str) -> bool {
    !matches!(part, "" | "." | "..")
        && part.len() <= NAME_MAX_BYTES
        && !part.contains('\0')
        && !part.starts_with(RESERVED)
}

/// The name of `part` in the given form.
pub(super) fn name(part: &str, form: Form) -> Cow<'_, str> {
    match form {
        Form::Plain => Cow::Borrowed(part),
        Form::Encoded => Cow::Owned(encoded(part, "")),
        Form::Beside => Cow::Owned(encoded(part, FILE)),
    }
}

fn encoded(part: &str, suffix: &str) -> String {
    let mut name = String::from(RESERVED);
    let dots = matches!(part, "." | "..");
    for c in part.chars() {
        match c {
            '%' | '\0' => {
                let _ = write!(name, "%{:02X}", u32::from(c));
            }
            '.' if dots => name.push_str("%2E"),
            _ => name.push(c),
        }
    }
    if name.len() + suffix.len() > NAME_MAX_BYTES {
        shorten(&mut name, part, suffix.len());
    }
    name.push_str(suffix);
    name
}

/// Cuts the name and puts the part's digest behind it: `%~` is no percent-encoding, so it cannot be mistaken.
fn shorten(name: &mut String, part: &str, suffix_bytes: usize) {
    let mut end = NAME_MAX_BYTES - suffix_bytes - "%~".len() - 2 * DIGEST_BYTES;
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name.truncate(end);
    name.push_str("%~");
    for byte in &Sha256::digest(part.as_bytes())[..DIGEST_BYTES] {
        let _ = write!(name, "{byte:02x}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[test]
    fn names_of_odd_parts() {
        for (part, form, expected) in [
            ("a b%20", Form::Plain, "a b%20"),
            ("", Form::Encoded, ".s3key%"),
            (".", Form::Encoded, ".s3key%%2E"),
            ("..", Form::Encoded, ".s3key%%2E%2E"),
            ("x\0y%", Form::Encoded, ".s3key%x%00y%25"),
            (".s3key%", Form::Encoded, ".s3key%.s3key%25"),
            ("a", Form::Beside, ".s3key%a%file"),
            ("", Form::Beside, ".s3key%%file"),
        ] {
            assert_eq!(name(part, form), expected, "{part:?}");
        }
        assert_eq!(Form::of("..."), Form::Plain);
        assert_eq!(Form::of("..\n"), Form::Plain);
        assert_eq!(Form::of(&"x".repeat(256)), Form::Encoded);
    }

    /// Parts that are likely to collide if the rules were wrong.
    fn part() -> impl Strategy<Value = String> {
        prop_oneof![
            "[.%0-2EFfile~\0]{0,8}",
            "\\.s3key%[.%0-2EFfile~\0]{0,8}",
            "é{120,135}[ab]{0,3}",
            "x{240,260}",
        ]
    }

    proptest! {
        #[test]
        fn every_name_can_be_a_name_and_is_one_parts_alone(parts in prop::collection::vec(part(), 1..40)) {
            let mut owners: HashMap<String, (String, bool)> = HashMap::new();
            for part in parts {
                for form in [Form::of(&part), Form::Beside] {
                    let name = name(&part, form).into_owned();
                    prop_assert!(!name.is_empty() && name != "." && name != "..");
                    prop_assert!(name.len() <= NAME_MAX_BYTES && !name.contains(['\0', '/']));
                    let owner = (part.clone(), form == Form::Beside);
                    let first = owners.entry(name).or_insert_with(|| owner.clone());
                    prop_assert_eq!(&*first, &owner);
                }
            }
        }
    }
}
