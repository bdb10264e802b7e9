//! ListObjectsV2, and as much of its first version as old clients need.
//!
//! Keys are walked in byte order. A common prefix is one entry; once it is found the walk jumps over everything below
//! it. A continuation token is the last entry that was returned, so listings survive changes between their pages.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as TOKEN;
use percent_encoding::utf8_percent_encode;

use super::Answer;
use crate::auth::PATH;
use crate::connection::Exchange;
use crate::date;
use crate::response::{Response, S3Error};
use crate::store::{Bucket, Jump, Version};
use crate::xml::Xml;

/// S3's largest page.
const MAX_KEYS: usize = 1000;

/// A listing as asked for.
#[derive(Debug)]
struct Query {
    second_version: bool,
    prefix: String,
    delimiter: String,
    /// `start-after`, or `marker` of the first version.
    start_after: String,
    token: Option<String>,
    max_keys: usize,
    encode: bool,
    fetch_owner: bool,
}

/// A page.
#[derive(Debug, Default)]
struct Page {
    contents: String,
    prefixes: Vec<String>,
    count: usize,
    /// The last entry on the page, if more follow.
    next: Option<String>,
}

pub(super) fn list(exchange: &Exchange<'_>, bucket: &Bucket) -> Answer {
    let query = Query::new(exchange)?;
    let page = query.page(bucket)?;
    Ok(Response::xml(200, query.document(bucket, page))
        .header("x-amz-bucket-region", region(exchange, bucket)))
}

fn region<'a>(exchange: &'a Exchange<'_>, bucket: &'a Bucket) -> &'a str {
    bucket
        .options
        .region
        .as_deref()
        .unwrap_or(&exchange.server.region)
}

impl Query {
    fn new(exchange: &Exchange<'_>) -> Result<Query, S3Error> {
        let get = |name: &str| exchange.request.query(name).map(|value| value.into_owned());
        let second_version = get("list-type").as_deref() == Some("2");
        let start = if second_version {
            get("start-after")
        } else {
            get("marker")
        };
        let max_keys = match get("max-keys") {
            None => MAX_KEYS,
            Some(text) => text
                .parse::<usize>()
                .map_err(|_| invalid("Provided max-keys not an integer or within integer range"))?,
        };
        Ok(Query {
            second_version,
            prefix: get("prefix").unwrap_or_default(),
            delimiter: get("delimiter").unwrap_or_default(),
            start_after: start.unwrap_or_default(),
            token: get("continuation-token"),
            max_keys: max_keys.min(MAX_KEYS),
            encode: get("encoding-type").as_deref() == Some("url"),
            fetch_owner: !second_version || get("fetch-owner").as_deref() == Some("true"),
        })
    }

    /// Where the walk begins.
    fn start(&self) -> Result<Jump, S3Error> {
        let after = match &self.token {
            Some(token) => {
                let bytes = TOKEN
                    .decode(token)
                    .ok()
                    .and_then(|bytes| String::from_utf8(bytes).ok());
                bytes.ok_or_else(|| invalid("The continuation token provided is incorrect"))?
            }
            None => self.start_after.clone(),
        };
        if after.is_empty() || after < self.prefix {
            return Ok(Jump::From(self.prefix.clone()));
        }
        Ok(match self.common_prefix(&after) {
            // A page that ended with a common prefix goes on behind all of its keys. A `start-after` inside one does
            // not: S3 then returns the prefix, for the keys that follow.
            Some(prefix) if after == prefix && self.token.is_some() => past(&prefix),
            _ => Jump::After(after),
        })
    }

    /// The key's part up to the first delimiter behind the prefix.
    fn common_prefix(&self, key: &str) -> Option<String> {
        if self.delimiter.is_empty() {
            return None;
        }
        let rest = key.strip_prefix(&self.prefix)?;
        let end = self.prefix.len() + rest.find(&self.delimiter)? + self.delimiter.len();
        Some(key[..end].to_owned())
    }

    fn page(&self, bucket: &Bucket) -> Result<Page, S3Error> {
        let mut page = Page::default();
        if self.max_keys == 0 {
            return Ok(page);
        }
        let mut last = String::new();
        bucket.walk(self.start()?, |key, version| {
            if !key.starts_with(&self.prefix) {
                return None;
            }
            if page.count == self.max_keys {
                page.next = Some(std::mem::take(&mut last));
                return None;
            }
            page.count += 1;
            if let Some(prefix) = self.common_prefix(key) {
                let jump = past(&prefix);
                last.clone_from(&prefix);
                page.prefixes.push(prefix);
                return Some(jump);
            }
            key.clone_into(&mut last);
            page.contents.push_str(&self.entry(key, version));
            Some(Jump::Next)
        });
        Ok(page)
    }

    fn entry(&self, key: &str, version: &Version) -> String {
        let mut xml = Xml::fragment();
        xml.open("Contents");
        xml.text("Key", &self.name(key));
        xml.text("LastModified", &date::xml(version.modified));
        xml.text("ETag", &version.etag);
        if !version.options.no_checksum {
            xml.text("ChecksumAlgorithm", version.options.algorithm.name());
            xml.text("ChecksumType", version.options.kind.name());
        }
        xml.text("Size", &version.content.len().to_string());
        if self.fetch_owner {
            xml.open("Owner");
            xml.text("ID", super::bucket::OWNER);
            xml.close("Owner");
        }
        xml.text(
            "StorageClass",
            version
                .options
                .storage_class
                .as_deref()
                .unwrap_or("STANDARD"),
        );
        xml.close("Contents");
        xml.finish()
    }

    /// A key as the document holds it.
    fn name(&self, key: &str) -> String {
        if self.encode {
            utf8_percent_encode(key, PATH).to_string()
        } else {
            key.to_owned()
        }
    }

    fn document(&self, bucket: &Bucket, page: Page) -> String {
        let mut xml = Xml::document();
        xml.root("ListBucketResult");
        xml.text("Name", &bucket.name);
        xml.text("Prefix", &self.name(&self.prefix));
        if !self.delimiter.is_empty() {
            xml.text("Delimiter", &self.name(&self.delimiter));
        }
        xml.text("MaxKeys", &self.max_keys.to_string());
        if self.encode {
            xml.text("EncodingType", "url");
        }
        self.position(&mut xml, &page);
        xml.text(
            "IsTruncated",
            if page.next.is_some() { "true" } else { "false" },
        );
        xml.raw(&page.contents);
        for prefix in &page.prefixes {
            xml.open("CommonPrefixes");
            xml.text("Prefix", &self.name(prefix));
            xml.close("CommonPrefixes");
        }
        xml.close("ListBucketResult");
        xml.finish()
    }

    /// Where this page is and where the next begins.
    fn position(&self, xml: &mut Xml, page: &Page) {
        if !self.second_version {
            xml.text("Marker", &self.name(&self.start_after));
            if let Some(next) = &page.next {
                xml.text("NextMarker", &self.name(next));
            }
            return;
        }
        xml.text("KeyCount", &page.count.to_string());
        if !self.start_after.is_empty() {
            xml.text("StartAfter", &self.name(&self.start_after));
        }
        if let Some(token) = &self.token {
            xml.text("ContinuationToken", token);
        }
        if let Some(next) = &page.next {
            xml.text("NextContinuationToken", &TOKEN.encode(next));
        }
    }
}

fn invalid(message: &str) -> S3Error {
    S3Error::new(400, "InvalidArgument", message)
}

/// The first place behind all keys that start with `prefix`: its last character raised by one.
fn past(prefix: &str) -> Jump {
    let mut above: Vec<char> = prefix.chars().collect();
    while let Some(last) = above.pop() {
        // Surrogates are no characters; byte order is the order of code points.
        let next = if last as u32 == 0xD7FF {
            0xE000
        } else {
            last as u32 + 1
        };
        if let Some(next) = char::from_u32(next) {
            above.push(next);
            return Jump::From(above.into_iter().collect());
        }
    }
    Jump::From(char::MAX.to_string().repeat(300))
}
