//! `AugmentedManifestFile`: JSON Lines, whose chosen attributes are the data.
//!
//! ```json
//! {"image-ref": "s3://bucket/a.jpg", "class": 3, "image-metadata": {"width": 640}}
//! ```
//!
//! Of each line the attributes in `AttributeNames` are delivered, in that order, whatever the line's own. The value of an
//! attribute whose name ends in `-ref` is an address, and the object's bytes are delivered. Of any other value its text
//! is: a string without quotes and escapes, everything else as it stands in the line, byte for byte. Lines that are empty
//! are none. Of a name that stands twice in a line the last one counts.
//!
//! The whole manifest is read and every line is looked at before the first byte is delivered, so that what is wrong is
//! told at once. In memory it takes its own length and 8 bytes per line.

use std::fmt;

use bytes::Bytes;
use serde::de::IgnoredAny;

use super::OnMissingAttribute;
use super::manifest::absolute_uri;
use crate::error::{Error, Result};
use crate::object::ObjectUri;

/// What the names of attributes end in whose values are addresses.
const REFERENCE_SUFFIX: &str = "-ref";

const FIX: &str = "an augmented manifest has one JSON object per line, with every attribute in AttributeNames (names are case-sensitive)";

/// One attribute of one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// The bytes of an object.
    Object(ObjectUri),
    /// A text.
    Text(Bytes),
}

/// A manifest that was read and found good.
pub struct AugmentedManifest {
    uri: ObjectUri,
    text: Bytes,
    /// Where the lines that are delivered begin.
    starts: Vec<u64>,
    names: Vec<String>,
    skipped: u64,
}

impl fmt::Debug for AugmentedManifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AugmentedManifest")
            .field("uri", &self.uri)
            .field("lines", &self.len())
            .finish_non_exhaustive()
    }
}

impl AugmentedManifest {
    /// Reads the manifest at `uri` for these attributes.
    ///
    /// # Errors
    /// [`Error::Config`] that names the manifest, the line and the attribute.
    pub fn parse(
        uri: ObjectUri,
        text: Bytes,
        names: &[String],
        on_missing: OnMissingAttribute,
    ) -> Result<Self> {
        let mut manifest = Self {
            uri,
            text,
            starts: Vec::new(),
            names: names.to_vec(),
            skipped: 0,
        };
        let mut start = 0;
        for (line_index, line) in manifest
            .text
            .clone()
            .split(|byte| *byte == b'\n')
            .enumerate()
        {
            manifest.take(line_index + 1, start, line, on_missing)?;
            start += line.len() as u64 + 1;
        }
        if manifest.starts.is_empty() {
            let reason = match manifest.skipped {
                0 => "the manifest has no line".into(),
                lines => format!(
                    "none of the manifest's {lines} lines has every attribute in AttributeNames"
                ),
            };
            return Err(Error::unusable(manifest.uri.to_string(), reason, FIX));
        }
        Ok(manifest)
    }

    fn take(
        &mut self,
        number: usize,
        start: u64,
        line: &[u8],
        on_missing: OnMissingAttribute,
    ) -> Result<()> {
        if line.iter().all(u8::is_ascii_whitespace) {
            return Ok(());
        }
        let values = values(line, &self.names).map_err(|reason| self.wrong(number, &reason))?;
        let missing = values.iter().position(Option::is_none);
        match (missing, on_missing) {
            (Some(_), OnMissingAttribute::Skip) => self.skipped += 1,
            (Some(at), OnMissingAttribute::Fail) => {
                let reason = format!("the attribute {:?} is missing", self.names[at]);
                return Err(self.wrong(number, &reason));
            }
            (None, _) => {
                for (name, value) in self.names.iter().zip(values.into_iter().flatten()) {
                    item(name, value).map_err(|reason| {
                        self.wrong(number, &format!("attribute {name:?}: {reason}"))
                    })?;
                }
                self.starts.push(start);
            }
        }
        Ok(())
    }

    fn wrong(&self, number: usize, reason: &str) -> Error {
        Error::unusable(format!("{}, line {number}", self.uri), reason, FIX)
    }

    /// Where it was read.
    pub fn uri(&self) -> &ObjectUri {
        &self.uri
    }

    /// Lines that are delivered.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// Never so: a manifest without lines is refused.
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// Lines that were left out because they lack an attribute.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// The attributes that are delivered.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Whether any attribute is of objects.
    pub fn has_references(&self) -> bool {
        self.names
            .iter()
            .any(|name| name.ends_with(REFERENCE_SUFFIX))
    }

    /// What a line delivers, in order; nothing beyond the last.
    pub fn items(&self, at: usize) -> Vec<Item> {
        let Some(line) = self.line(at) else {
            return Vec::new();
        };
        // Found good when the manifest was read.
        let values = values(line, &self.names).unwrap_or_default();
        let items = self.names.iter().zip(values);
        items
            .filter_map(|(name, value)| item(name, value?).ok())
            .collect()
    }

    /// Where a line begins in the manifest.
    pub fn offset(&self, at: usize) -> u64 {
        self.starts
            .get(at)
            .copied()
            .unwrap_or(self.text.len() as u64)
    }

    /// A line's number as an editor counts.
    pub fn number(&self, at: usize) -> usize {
        let before = &self.text[..self.offset(at) as usize];
        before.iter().filter(|byte| **byte == b'\n').count() + 1
    }

    fn line(&self, at: usize) -> Option<&[u8]> {
        let rest = &self.text[*self.starts.get(at)? as usize..];
        rest.split(|byte| *byte == b'\n').next()
    }
}

/// What an attribute delivers.
fn item(name: &str, value: &[u8]) -> std::result::Result<Item, String> {
    let text = match value.first() {
        Some(b'"') => {
            Some(serde_json::from_slice::<String>(value).map_err(|error| error.to_string())?)
        }
        _ => None,
    };
    match (name.ends_with(REFERENCE_SUFFIX), text) {
        (false, Some(text)) => Ok(Item::Text(text.into())),
        (false, None) => Ok(Item::Text(Bytes::copy_from_slice(value))),
        (true, Some(text)) => absolute_uri(&text)
            .map(Item::Object)
            .map_err(|error| error.to_string()),
        (true, None) => Err(format!(
            "{} is no address: the value of a name in -ref is a string such as \"s3://bucket/key\"",
            String::from_utf8_lossy(value)
        )),
    }
}

/// The source text of each attribute's value. The line is checked as a whole first, so the walk below meets only good
/// JSON.
fn values<'a>(
    line: &'a [u8],
    names: &[String],
) -> std::result::Result<Vec<Option<&'a [u8]>>, String> {
    serde_json::from_slice::<IgnoredAny>(line).map_err(|error| {
        // serde_json's line is always 1.
        let text = error.to_string();
        let what = text.split(" at line ").next().unwrap_or_default();
        format!("not JSON: {what} at column {}", error.column())
    })?;
    let mut rest = line.trim_ascii();
    let mut values = vec![None; names.len()];
    rest = rest
        .strip_prefix(b"{")
        .ok_or("no JSON object: a line is {\"name\": value, ...}")?;
    loop {
        rest = rest.trim_ascii_start();
        rest = rest.strip_prefix(b",").unwrap_or(rest).trim_ascii_start();
        if rest.first() != Some(&b'"') {
            return Ok(values);
        }
        let (name, after) = rest.split_at(value_bytes(rest));
        let after = after.trim_ascii_start();
        let after = after.strip_prefix(b":").unwrap_or(after).trim_ascii_start();
        let (value, after) = after.split_at(value_bytes(after));
        for (at, wanted) in names.iter().enumerate() {
            if is_name(name, wanted) {
                values[at] = Some(value);
            }
        }
        rest = after;
    }
}

/// Whether a JSON string, quotes included, says `wanted`.
fn is_name(json: &[u8], wanted: &str) -> bool {
    match json.contains(&b'\\') {
        false => json.len() == wanted.len() + 2 && &json[1..json.len() - 1] == wanted.as_bytes(),
        true => serde_json::from_slice::<String>(json).is_ok_and(|name| name == wanted),
    }
}

/// How long the value is that good JSON begins with.
fn value_bytes(json: &[u8]) -> usize {
    let (mut depth, mut in_string, mut escaped) = (0u32, false, false);
    for (at, byte) in json.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => {
                in_string = !in_string;
                if !in_string && depth == 0 {
                    return at + 1;
                }
            }
            _ if in_string => {}
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth > 1 => depth -= 1,
            b'}' | b']' => return at + usize::from(depth == 1),
            b',' if depth == 0 => return at,
            byte if depth == 0 && byte.is_ascii_whitespace() => return at,
            _ => {}
        }
    }
    json.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    fn parse(
        text: &str,
        names: &[&str],
        on_missing: OnMissingAttribute,
    ) -> Result<AugmentedManifest> {
        let names: Vec<String> = names.iter().map(|name| (*name).into()).collect();
        AugmentedManifest::parse(
            ObjectUri::s3("b", "m.jsonl"),
            text.to_owned().into(),
            &names,
            on_missing,
        )
    }

    fn items(text: &str, names: &[&str]) -> Vec<Item> {
        let manifest = parse(text, names, OnMissingAttribute::Fail).unwrap();
        (0..manifest.len())
            .flat_map(|at| manifest.items(at))
            .collect()
    }

    fn text(text: &str) -> Item {
        Item::Text(text.to_owned().into())
    }

    fn object(uri: &str) -> Item {
        Item::Object(uri.parse().unwrap())
    }

    #[test]
    fn attributes_come_in_the_order_of_their_names() {
        let lines = "{\"class\": 1, \"image-ref\": \"s3://d/1.jpg\"}\n{\"image-ref\":\"s3://d/2.jpg\",\"class\":\"0\"}\n";
        let expected = [
            object("s3://d/1.jpg"),
            text("1"),
            object("s3://d/2.jpg"),
            text("0"),
        ];
        assert_eq!(items(lines, &["image-ref", "class"]), expected);
        assert_eq!(items(lines, &["class"]), [text("1"), text("0")]);
    }

    #[test]
    fn strings_lose_their_quotes_and_all_else_stays_as_it_stands() {
        let line = r#"{"a": "x \"y\" ä\n", "b": [1, 2.50,  {"c": "}"}], "d": -1.0e5, "e": null, "f": true , "g":{"z" : 1 }}"#;
        let expected = [
            "x \"y\" ä\n",
            r#"[1, 2.50,  {"c": "}"}]"#,
            "-1.0e5",
            "null",
            "true",
            r#"{"z" : 1 }"#,
        ];
        assert_eq!(
            items(line, &["a", "b", "d", "e", "f", "g"]),
            expected.map(text)
        );
    }

    #[test]
    fn names_may_be_escaped_or_twice_and_lines_empty() {
        assert_eq!(
            items("\r\n{\"\\u0061\": 1}\r\n\n{\"a\": 1, \"a\": 2}\n  ", &["a"]),
            [text("1"), text("2")]
        );
    }

    #[test]
    fn errors_name_the_manifest_the_line_and_the_attribute() {
        for (lines, words) in [
            (
                "{\"a-ref\": \"s3://d/x\"}\n{\"a-ref\": }\n",
                ["line 2", "column 11"],
            ),
            (
                "{\"a-ref\": \"s3://d/x\"}\n\n{\"b\": 1}\n",
                ["line 3", "\"a-ref\" is missing"],
            ),
            ("[1]", ["line 1", "no JSON object"]),
            (
                "{\"a-ref\": 7}",
                ["line 1", "attribute \"a-ref\": 7 is no address"],
            ),
            ("{\"a-ref\": \"x.jpg\"}", ["line 1", "no URI"]),
            ("{\"a-ref\": \"ftp://d/x\"}", ["line 1", "unknown scheme"]),
            ("{\"A-REF\": \"s3://d/x\"}", ["line 1", "is missing"]),
            ("{\"a-ref\": \"s3://d/x\"", ["line 1", "EOF"]),
            ("", ["no line", ""]),
        ] {
            let error = parse(lines, &["a-ref"], OnMissingAttribute::Fail).unwrap_err();
            let said = error.to_string();
            assert!(
                said.starts_with("s3://b/m.jsonl") && error.fix().is_some(),
                "{said}"
            );
            assert!(
                words.iter().all(|word| said.contains(word)),
                "{lines}: {said}"
            );
        }
    }

    #[test]
    fn lines_that_lack_an_attribute_can_be_left_out() {
        let lines = "{\"a\": 1, \"b\": 2}\n{\"a\": 3}\n\n{\"b\": 4, \"a\": 5}";
        let manifest = parse(lines, &["a", "b"], OnMissingAttribute::Skip).unwrap();
        assert_eq!(
            (manifest.len(), manifest.skipped(), manifest.number(1)),
            (2, 1, 4)
        );
        assert_eq!(manifest.items(1), [text("5"), text("4")]);
        assert!(
            parse("{\"a\": 1}", &["b"], OnMissingAttribute::Skip)
                .unwrap_err()
                .to_string()
                .contains("none of the manifest's 1 lines")
        );
        // What is malformed is never left out.
        assert!(parse("{\"a\": 1}\n{", &["a"], OnMissingAttribute::Skip).is_err());
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<i32>().prop_map(|n| Value::from(f64::from(n) / 4.0)),
            "[\"\\\\{}\\[\\],: a-cä]{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map("[a-c\"]{0,2}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn every_value_is_found_as_a_json_parser_finds_it(
            fields in proptest::collection::btree_map("[a-d\"\\\\]{1,3}", any_json(), 1..6),
            pretty: bool,
        ) {
            let names: Vec<&str> = fields.keys().map(String::as_str).collect();
            let line = match pretty {
                true => serde_json::to_string_pretty(&fields).unwrap().replace('\n', " "),
                false => serde_json::to_string(&fields).unwrap(),
            };
            let found = items(&line, &names);
            for (value, item) in fields.values().zip(found) {
                let Item::Text(bytes) = item else { panic!("no name is a reference's") };
                match value {
                    Value::String(text) => prop_assert_eq!(&bytes[..], text.as_bytes()),
                    other => prop_assert_eq!(&serde_json::from_slice::<Value>(&bytes).unwrap(), other),
                }
            }
        }

        #[test]
        fn nothing_panics(line in "[{}\\[\\]\":,a\\\\0-9 \n]{0,40}") {
            let _ = parse(&line, &["a"], OnMissingAttribute::Skip);
        }
    }
}
