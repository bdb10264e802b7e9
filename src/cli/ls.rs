//! `standpipe ls`: a listing in the AWS CLI's format.

use std::io::{BufWriter, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use futures::StreamExt;
use serde_json::json;

use super::Context;
use super::report::Report;
use super::stdout::{Written, check_open, settle};
use crate::client::{Depth, ListEntry};
use crate::error::{Answer, Error, Result};
use crate::object::{ObjectMeta, ObjectUri, Scheme};
use crate::prefetch::PrefetchConfig;
use crate::runtime;

/// Keys and prefixes that S3 gives at a time.
const PAGE_ENTRIES: usize = 1000;

const NOTES: &str = "\
As with `aws s3 ls`, s3://bucket/dir lists what begins with dir; end it with / to look inside.
Braces are part of the name here; `cat`, `download` and `pipe` expand them.";

/// List what lies under a prefix, in the AWS CLI's format (times are UTC)
#[derive(Debug, Args)]
#[command(after_help = NOTES)]
pub(super) struct Ls {
    /// s3://bucket/prefix/, file:///path or a path
    uri: ObjectUri,
    /// Everything below, not one level
    #[arg(long)]
    recursive: bool,
    /// Sizes as 1.5 KiB instead of 1536
    #[arg(long, visible_alias = "human-readable")]
    human: bool,
    /// Count objects and bytes at the end
    #[arg(long)]
    summarize: bool,
}

/// What has been listed.
#[derive(Debug, Default)]
struct Total {
    entries: u64,
    objects: u64,
    bytes: u64,
}

impl Ls {
    pub(super) fn run(self, context: &Context) -> Result<Report> {
        check_open()?;
        let client = context.connect(&[self.uri.scheme()], &PrefetchConfig::default())?;
        let depth = if self.recursive {
            Depth::All
        } else {
            Depth::OneLevel
        };
        let mut pages = client.list(&prefix(&self.uri), depth).chunks(PAGE_ENTRIES);
        let mut out = BufWriter::new(std::io::stdout().lock());
        let mut total = Total::default();
        while let Some(page) = runtime::handle().block_on(pages.next()) {
            for entry in prefixes_first(page) {
                let text = match context.output.json {
                    true => json_entry(&total, &entry?),
                    false => line(&self, &entry?),
                };
                let text = total.add(text);
                if settle(out.write_all(text.as_bytes()))? == Written::ReaderGone {
                    return Ok(Report::default());
                }
            }
        }
        if total.entries == 0 && !self.uri.key().is_empty() {
            return Err(nothing(&self.uri));
        }
        let end = match (context.output.json, self.summarize) {
            (true, _) => json_end(&total),
            (false, true) => summary(&self, &total),
            (false, false) => String::new(),
        };
        settle(out.write_all(end.as_bytes()).and_then(|()| out.flush()))?;
        Ok(Report::default())
    }
}

/// A directory on disk is looked into, with or without the slash at its end.
fn prefix(uri: &ObjectUri) -> ObjectUri {
    let is_directory = uri.scheme() == Scheme::File
        && !uri.key().ends_with('/')
        && std::path::Path::new(uri.key()).is_dir();
    match is_directory {
        true => uri.with_key(format!("{}/", uri.key())),
        false => uri.clone(),
    }
}

fn nothing(uri: &ObjectUri) -> Error {
    Error::NotFound {
        uri: uri.to_string(),
        offset: None,
        answer: Box::new(Answer {
            message: Some("no object's key starts with this".into()),
            ..Answer::default()
        }),
    }
}

impl Total {
    /// Counts an entry and passes its text on.
    fn add(&mut self, (text, bytes): (String, Option<u64>)) -> String {
        self.entries += 1;
        self.objects += u64::from(bytes.is_some());
        self.bytes += bytes.unwrap_or(0);
        text
    }
}

/// The columns of `aws s3 ls`: date in 19, size in 10, name; prefixes as PRE, right-aligned to 30.
fn line(ls: &Ls, entry: &ListEntry) -> (String, Option<u64>) {
    match entry {
        ListEntry::Prefix(uri) => (format!("{:>30} {}\n", "PRE", last_part(uri)), None),
        ListEntry::Object(meta) => {
            let date = meta.last_modified.map(utc).unwrap_or_default();
            let size = shown_size(ls, meta.size_bytes);
            let text = format!("{date:<19} {size:>10} {}\n", name(ls, &meta.id.uri));
            (text, Some(meta.size_bytes))
        }
    }
}

/// A page as the AWS CLI prints it.
fn prefixes_first(page: Vec<Result<ListEntry>>) -> impl Iterator<Item = Result<ListEntry>> {
    let is_prefix = |entry: &Result<ListEntry>| matches!(entry, Ok(ListEntry::Prefix(_)));
    let (prefixes, others): (Vec<_>, Vec<_>) = page.into_iter().partition(is_prefix);
    prefixes.into_iter().chain(others)
}

/// Recursive listings show whole keys, others what follows the prefix's last slash: nothing, for the marker of the
/// directory itself.
fn name<'a>(ls: &Ls, uri: &'a ObjectUri) -> &'a str {
    let key = uri.key();
    match ls.recursive {
        true => key,
        false => &key[key.rfind('/').map_or(0, |at| at + 1)..],
    }
}

/// The last part of a prefix, with its slash.
fn last_part(uri: &ObjectUri) -> &str {
    let key = uri.key();
    let body = key.strip_suffix('/').unwrap_or(key);
    &key[body.rfind('/').map_or(0, |at| at + 1)..]
}

fn shown_size(ls: &Ls, bytes: u64) -> String {
    match ls.human {
        true => aws_human(bytes),
        false => bytes.to_string(),
    }
}

/// Sizes as the AWS CLI writes them with `--human-readable`.
fn aws_human(bytes: u64) -> String {
    match bytes {
        1 => return "1 Byte".into(),
        0..1024 => return format!("{bytes} Bytes"),
        _ => {}
    }
    let mut value = bytes as f64;
    let mut unit = "Bytes";
    for next in ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"] {
        // The CLI goes on to the next unit where rounding would print 1024.
        if value.round() < 1024.0 && unit != "Bytes" {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    format!("{value:.1} {unit}")
}

fn summary(ls: &Ls, total: &Total) -> String {
    format!(
        "\nTotal Objects: {}\n   Total Size: {}\n",
        total.objects,
        shown_size(ls, total.bytes)
    )
}

fn json_entry(total: &Total, entry: &ListEntry) -> (String, Option<u64>) {
    let before = if total.entries == 0 {
        "{\"entries\":[\n"
    } else {
        ",\n"
    };
    let (value, bytes) = match entry {
        ListEntry::Prefix(uri) => (json!({"prefix": uri.to_string()}), None),
        ListEntry::Object(meta) => (json_object(meta), Some(meta.size_bytes)),
    };
    (format!("{before}{value}"), bytes)
}

fn json_object(meta: &ObjectMeta) -> serde_json::Value {
    json!({
        "uri": meta.id.uri.to_string(),
        "size_bytes": meta.size_bytes,
        "etag": meta.id.etag.as_deref(),
        "last_modified": meta.last_modified.map(|time| format!("{}Z", utc(time).replace(' ', "T"))),
    })
}

fn json_end(total: &Total) -> String {
    let open = if total.entries == 0 {
        "{\"entries\":["
    } else {
        ""
    };
    format!(
        "{open}\n],\"objects\":{},\"bytes\":{}}}\n",
        total.objects, total.bytes
    )
}

/// `2023-11-14 22:13:20`.
fn utc(time: SystemTime) -> String {
    let seconds = match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
        Err(before) => -i64::try_from(before.duration().as_secs()).unwrap_or(i64::MAX),
    };
    let (year, month, day) = civil(seconds.div_euclid(86_400));
    let second = seconds.rem_euclid(86_400);
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

/// Days since 1970 to year, month, day: Howard Hinnant's `civil_from_days`.
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::ObjectId;
    use std::time::Duration;

    fn ls(recursive: bool, human: bool) -> Ls {
        let uri = ObjectUri::s3("b", "p/");
        Ls {
            uri,
            recursive,
            human,
            summarize: true,
        }
    }

    fn object(key: &str, size_bytes: u64) -> ListEntry {
        ListEntry::Object(ObjectMeta {
            id: ObjectId::unpinned(ObjectUri::s3("b", key)),
            size_bytes,
            last_modified: Some(UNIX_EPOCH + Duration::from_secs(1_700_000_000)),
            checksum_algorithm: None,
            checksum: None,
        })
    }

    #[test]
    fn lines_are_those_of_the_aws_cli() {
        let file = object("p/file.txt", 1536);
        assert_eq!(
            line(&ls(false, false), &file).0,
            "2023-11-14 22:13:20       1536 file.txt\n"
        );
        assert_eq!(
            line(&ls(true, true), &file).0,
            "2023-11-14 22:13:20    1.5 KiB p/file.txt\n"
        );
        let prefix = ListEntry::Prefix(ObjectUri::s3("b", "p/dir/"));
        assert_eq!(
            line(&ls(false, false), &prefix).0,
            "                           PRE dir/\n"
        );
        let total = Total {
            entries: 3,
            objects: 2,
            bytes: 2048,
        };
        assert_eq!(
            summary(&ls(false, true), &total),
            "\nTotal Objects: 2\n   Total Size: 2.0 KiB\n"
        );
    }

    #[test]
    fn sizes_round_as_the_aws_cli_does() {
        let shown = [0, 1, 1023, 1024, 1_048_575, 1 << 20, u64::MAX].map(aws_human);
        assert_eq!(
            shown,
            [
                "0 Bytes",
                "1 Byte",
                "1023 Bytes",
                "1.0 KiB",
                "1.0 MiB",
                "1.0 MiB",
                "16.0 EiB"
            ]
        );
    }

    #[test]
    fn dates_over_leap_years() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_400, "2000-02-29 00:00:00"),
            (4_107_542_399, "2100-02-28 23:59:59"),
        ] {
            assert_eq!(utc(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }
}
