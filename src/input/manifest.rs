//! `ManifestFile`: a JSON array whose first element names a prefix, and whose others name objects below it.
//!
//! ```json
//! [{"prefix": "s3://bucket/some/prefix/"}, "relative/path/1", "relative/path/2"]
//! ```
//!
//! An entry is the rest of one key, not a prefix; it is delivered as often as it stands there, in the manifest's order.
//! What SageMaker does about duplicates and missing objects is not documented. Here a missing object is an error.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::Catalog;
use crate::error::{Error, Result};
use crate::object::{ObjectId, ObjectMeta, ObjectUri};

const FIX: &str = "a manifest is [{\"prefix\": \"s3://bucket/prefix/\"}, \"key1\", \"key2\"], with the rest of each object's key";

/// The objects that a manifest names.
#[derive(Debug)]
pub struct Manifest {
    /// What all keys begin with.
    pub prefix: ObjectUri,
    /// The objects, whose sizes and versions are not known.
    pub objects: Catalog,
}

impl Manifest {
    /// Reads the manifest at `uri`.
    ///
    /// # Errors
    /// [`Error::Config`] that names the manifest, the element and the line.
    pub fn parse(uri: &ObjectUri, text: &[u8]) -> Result<Self> {
        let manifest: Self = serde_json::from_slice(text).map_err(|error| {
            Error::unusable(uri.to_string(), format!("not a manifest: {error}"), FIX)
        })?;
        if manifest.objects.is_empty() {
            return Err(Error::unusable(
                uri.to_string(),
                "the manifest names no object",
                FIX,
            ));
        }
        Ok(manifest)
    }
}

/// A source's object of which only the address is known.
pub(super) fn unseen(uri: ObjectUri) -> ObjectMeta {
    ObjectMeta {
        id: ObjectId::unpinned(uri),
        size_bytes: 0,
        last_modified: None,
        checksum_algorithm: None,
        checksum: None,
    }
}

/// An address in a manifest. One without a scheme would be a file in whatever directory the process is.
pub(super) fn absolute_uri(text: &str) -> Result<ObjectUri> {
    if !text.contains("://") {
        return Err(Error::config(
            format!("{text:?}"),
            "no URI: use s3://bucket/key or file:///path",
        ));
    }
    text.parse()
}

impl<'de> Deserialize<'de> for Manifest {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        from.deserialize_seq(Elements)
    }
}

struct Elements;

impl<'de> Visitor<'de> for Elements {
    type Value = Manifest;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of a prefix and keys")
    }

    fn visit_seq<A: SeqAccess<'de>>(
        self,
        mut elements: A,
    ) -> std::result::Result<Manifest, A::Error> {
        let head: Head = element(0, elements.next_element())?
            .ok_or_else(|| A::Error::custom("an empty array"))?;
        let prefix = head.0;
        let mut objects = Catalog::default();
        while let Some(Suffix(suffix)) = element(objects.len() + 1, elements.next_element())? {
            objects.push(&unseen(
                prefix.with_key(format!("{}{suffix}", prefix.key())),
            ));
        }
        Ok(Manifest { prefix, objects })
    }
}

/// Says which element an error is about; serde_json adds line and column.
fn element<T, E: serde::de::Error>(
    index: usize,
    result: std::result::Result<T, E>,
) -> std::result::Result<T, E> {
    result.map_err(|error| {
        let text = error.to_string();
        // The place is added again at the end.
        let what = text.split(" at line ").next().unwrap_or_default();
        E::custom(format!("element {index}: {what}"))
    })
}

/// `{"prefix": "s3://..."}`.
struct Head(ObjectUri);

impl<'de> Deserialize<'de> for Head {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Head;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("{\"prefix\": \"s3://bucket/prefix/\"}")
            }

            fn visit_map<A: MapAccess<'de>>(
                self,
                mut fields: A,
            ) -> std::result::Result<Head, A::Error> {
                let mut prefix = None;
                while let Some(name) = fields.next_key::<String>()? {
                    match name.as_str() {
                        "prefix" => prefix = Some(fields.next_value::<String>()?),
                        _ => drop(fields.next_value::<IgnoredAny>()?),
                    }
                }
                let prefix = prefix.ok_or_else(|| A::Error::missing_field("prefix"))?;
                absolute_uri(&prefix).map(Head).map_err(A::Error::custom)
            }
        }
        from.deserialize_map(Fields)
    }
}

/// The rest of a key.
struct Suffix(String);

impl<'de> Deserialize<'de> for Suffix {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(from).map(Suffix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn uri() -> ObjectUri {
        ObjectUri::s3("b", "m.manifest")
    }

    #[test]
    fn entries_are_keys_behind_the_prefix_in_order() {
        let text = br#"[ {"prefix": "s3://data/some/prefix/", "ignored": [1]},
            "b/1", "a", "a", "\u00e4 \"q\"" ]"#;
        let manifest = Manifest::parse(&uri(), text).unwrap();
        let keys: Vec<String> = manifest
            .objects
            .range(0, 10)
            .into_iter()
            .map(|meta| meta.id.uri.to_string())
            .collect();
        let prefix = "s3://data/some/prefix/";
        assert_eq!(
            keys,
            ["b/1", "a", "a", "ä \"q\""].map(|key| format!("{prefix}{key}"))
        );
        assert_eq!(manifest.prefix.to_string(), prefix);
    }

    #[test]
    fn errors_name_the_manifest_the_element_and_the_line() {
        for (text, words) in [
            (
                "[{\"prefix\": \"s3://d/\"},\n\"a\",\n7]",
                ["element 2", "line 3"],
            ),
            (
                "[{\"prefix\": \"s3://d/\"},\n{\"prefix\": \"s3://e/\"}]",
                ["element 1", "line 2"],
            ),
            ("[\"a\", \"b\"]", ["element 0", "prefix"]),
            ("[{\"prefx\": \"s3://d/\"}]", ["element 0", "prefix"]),
            ("[{\"prefix\": \"d/\"}, \"a\"]", ["element 0", "no URI"]),
            (
                "[{\"prefix\": \"s3://\"}, \"a\"]",
                ["element 0", "no bucket"],
            ),
            ("[]", ["empty array", "line 1"]),
            ("[{\"prefix\": \"s3://d/\"}]", ["names no object", ""]),
            ("[{\"prefix\": \"s3://d/\"}, \"a\"", ["line 1", "EOF"]),
            (
                "[{\"prefix\": \"s3://d/\"}, \"a\"] x",
                ["line 1", "trailing"],
            ),
            ("{\"source-ref\": \"s3://d/a\"}", ["array", "line 1"]),
            ("", ["line 1", "EOF"]),
        ] {
            let error = Manifest::parse(&uri(), text.as_bytes()).unwrap_err();
            let said = error.to_string();
            assert!(
                said.starts_with("s3://b/m.manifest: ") && error.fix().is_some(),
                "{said}"
            );
            assert!(
                words.iter().all(|word| said.contains(word)),
                "{text}: {said}"
            );
        }
        assert!(Manifest::parse(&uri(), b"[{\"prefix\": \"s3://d/\"}, \"\xff\"]").is_err());
    }

    proptest! {
        #[test]
        fn what_a_json_writer_writes_is_read(keys in proptest::collection::vec(".{0,20}", 1..30)) {
            let mut elements = vec![serde_json::json!({"prefix": "s3://d/p/"})];
            elements.extend(keys.iter().map(|key| serde_json::json!(key)));
            let manifest = Manifest::parse(&uri(), &serde_json::to_vec(&elements).unwrap()).unwrap();
            let found: Vec<String> = manifest.objects.range(0, 100).into_iter().map(|meta| meta.id.uri.key()[2..].to_owned()).collect();
            prop_assert_eq!(found, keys);
        }

        #[test]
        fn nothing_panics(text in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = Manifest::parse(&uri(), &text);
        }
    }
}
