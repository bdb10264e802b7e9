//! A channel of a training job: a name, what it reads, and how that is delivered. A value; nothing is read here.
//!
//! It is what one entry of `InputDataConfig` (`CreateTrainingJob`) says. On a command line it is written
//!
//! ```text
//! NAME=URI[,OPTION=VALUE]...      train=s3://bucket/prefix/,shuffle=7,distribution=sharded
//! ```
//!
//! | option | values | `InputDataConfig` |
//! | --- | --- | --- |
//! | `mode` | `pipe`, `fastfile`, `file` | `InputMode` |
//! | `s3-data-type` | `prefix`, `manifest`, `augmented` | `S3DataType` |
//! | `distribution` | `replicated`, `sharded` | `S3DataDistributionType` |
//! | `shuffle` | a seed | `ShuffleConfig.Seed` |
//! | `record-wrapper` | `none`, `recordio` | `RecordWrapperType` |
//! | `compression` | `none`, `gzip` | `CompressionType` |
//! | `attribute-names` | names, with `:` between them | `AttributeNames` |
//! | `content-type` | a media type | `ContentType` |
//! | `instance-groups` | names, with `:` between them | `InstanceGroupNames` |
//! | `on-missing-attribute` | `fail`, `skip` | none |
//! | `manifest-names` | `full-key`, `relative` | none |
//! | `record-part-size` | bytes | none |
//!
//! The values of the service (`ManifestFile`, `ShardedByS3Key`, ...) are taken, too. The options begin at the first comma,
//! outside of braces, that is followed by the name of an option and `=`. What else looks like an option (a word in
//! small letters, `=`, and no `/` up to the next comma) is refused, as a typing error. A comma that belongs to the URI
//! can always be written `\,`.
//!
//! [`Channel::validate`] knows the limits and which of these go with which mode.

use std::str::FromStr;

use super::braces::matching;
use super::{Distribution, ShuffleConfig, Source};
use crate::error::{Error, Result};

/// SageMaker's limit on a channel's name (`CreateTrainingJob`, `ChannelName`).
const MAX_NAME_CHARS: usize = 64;

/// `S3DataSource.S3Uri`.
const MAX_URI_CHARS: usize = 1024;

/// `S3DataSource.AttributeNames`: how many, and how long each.
const MAX_ATTRIBUTES: usize = 16;
const MAX_ATTRIBUTE_CHARS: usize = 256;

/// `S3DataSource.InstanceGroupNames`.
const MAX_GROUPS: usize = 5;

/// What a length in a RecordIO header can say: 29 bits.
pub const MAX_RECORD_BYTES: u64 = (1 << 29) - 1;

/// How a training job gets at a channel's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputMode {
    /// A FIFO per epoch.
    Pipe,
    /// Files that are fetched when they are read.
    FastFile,
    /// Files that are fetched before the job starts.
    File,
}

/// What a channel's URI names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum S3DataType {
    /// Every object whose key starts with it.
    #[default]
    S3Prefix,
    /// A JSON array of a prefix and the rest of each object's key.
    ManifestFile,
    /// JSON Lines, whose attributes are the data.
    AugmentedManifestFile,
}

/// What is put around each object or attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RecordWrapper {
    /// Nothing: all bytes back to back.
    #[default]
    None,
    /// A RecordIO record.
    RecordIo,
}

/// How the objects are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// They are delivered as they are.
    #[default]
    None,
    /// Each is a gzip file, and is delivered decompressed.
    Gzip,
}

/// What is done about a line of an augmented manifest that lacks an attribute. What SageMaker does is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnMissingAttribute {
    /// It is an error that names line and attribute, before the first byte.
    #[default]
    Fail,
    /// The line is left out, with all its attributes.
    Skip,
}

/// What the files of a manifest are called when they are downloaded. The service's rule is not documented.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ManifestNames {
    /// The whole key, the manifest's prefix included: what a user of SageMaker saw (sagemaker-python-sdk#723).
    #[default]
    FullKey,
    /// The entry as it stands in the manifest.
    Relative,
}

/// A type of which each value has names.
trait Named: Copy + 'static {
    /// What it is, in an error.
    const WHAT: &'static str;
    /// The service's name and the short one of each value.
    const NAMES: &'static [(Self, &'static str, &'static str)];
}

macro_rules! named {
    ($type:ident, $what:literal, $($value:ident $service:literal $short:literal),+) => {
        impl Named for $type {
            const WHAT: &'static str = $what;
            const NAMES: &'static [(Self, &'static str, &'static str)] =
                &[$((Self::$value, $service, $short)),+];
        }

        impl $type {
            /// As `CreateTrainingJob` writes it.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$value => $service),+
                }
            }
        }

        impl FromStr for $type {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self> {
                parse_named(text)
            }
        }
    };
}

named!(InputMode, "mode", Pipe "Pipe" "pipe", FastFile "FastFile" "fastfile", File "File" "file");
named!(S3DataType, "s3-data-type", S3Prefix "S3Prefix" "prefix", ManifestFile "ManifestFile" "manifest",
    AugmentedManifestFile "AugmentedManifestFile" "augmented");
named!(RecordWrapper, "record-wrapper", None "None" "none", RecordIo "RecordIO" "recordio");
named!(Compression, "compression", None "None" "none", Gzip "Gzip" "gzip");
named!(OnMissingAttribute, "on-missing-attribute", Fail "Fail" "fail", Skip "Skip" "skip");
named!(ManifestNames, "manifest-names", FullKey "FullKey" "full-key", Relative "Relative" "relative");

fn parse_named<T: Named>(text: &str) -> Result<T> {
    let found = T::NAMES
        .iter()
        .find(|(_, service, short)| text == *service || text == *short);
    found.map(|(value, ..)| *value).ok_or_else(|| {
        let all: Vec<_> = T::NAMES.iter().map(|(_, _, short)| *short).collect();
        Error::config(T::WHAT, format!("{text:?} is none: use {}", all.join(", ")))
    })
}

/// A channel: the name under which a training job finds its data, what the data is, and how it is delivered.
#[derive(Debug, Clone)]
pub struct Channel {
    /// `[A-Za-z0-9._-]{1,64}`, as SageMaker demands; it becomes a file name.
    pub name: String,
    /// What it reads: a prefix, an object, a pattern, or the manifest.
    pub source: Source,
    /// How the job gets at it; none where the job or the command says it.
    pub mode: Option<InputMode>,
    /// What the source names.
    pub data_type: S3DataType,
    /// Whether each host gets everything.
    pub distribution: Distribution,
    /// Another order in each epoch.
    pub shuffle: Option<ShuffleConfig>,
    /// What is put around each object.
    pub record_wrapper: RecordWrapper,
    /// How the objects are compressed.
    pub compression: Compression,
    /// Of an augmented manifest: which attributes are delivered, in this order.
    pub attribute_names: Vec<String>,
    /// Told to the job; nothing is done about it.
    pub content_type: Option<String>,
    /// Only the hosts of these groups get the channel; all when there are none.
    pub instance_groups: Vec<String>,
    /// Of an augmented manifest: lines that lack an attribute.
    pub on_missing_attribute: OnMissingAttribute,
    /// Of a manifest in File mode: names on disk.
    pub manifest_names: ManifestNames,
    /// With RecordIO: the most bytes of a record or of a part of one. Smaller ones imitate a writer that splits.
    pub record_part_bytes: u64,
}

impl Channel {
    /// Everything below a prefix, for every host, as it is.
    ///
    /// # Errors
    /// [`Error::Config`] when no file can have the name.
    pub fn new(name: impl Into<String>, source: Source) -> Result<Self> {
        let name = name.into();
        check_name(&name)?;
        Ok(Self {
            name,
            source,
            mode: None,
            data_type: S3DataType::default(),
            distribution: Distribution::default(),
            shuffle: None,
            record_wrapper: RecordWrapper::default(),
            compression: Compression::default(),
            attribute_names: Vec::new(),
            content_type: None,
            instance_groups: Vec::new(),
            on_missing_attribute: OnMissingAttribute::default(),
            manifest_names: ManifestNames::default(),
            record_part_bytes: MAX_RECORD_BYTES,
        })
    }

    /// Refuses what cannot work, with its own mode or else in `default_mode`.
    ///
    /// # Errors
    /// [`Error::Config`] that names the channel and, where they are known, has the service's own words.
    pub fn validate(&self, default_mode: InputMode) -> Result<()> {
        let mode = self.mode.unwrap_or(default_mode);
        check_name(&self.name)?;
        self.check_mode(mode)?;
        self.check_attributes()?;
        let uri_chars = self.source.to_string().chars().count();
        self.demand(uri_chars <= MAX_URI_CHARS, || {
            format!("its URI has {uri_chars} characters: use at most {MAX_URI_CHARS}")
        })?;
        self.demand(
            self.data_type == S3DataType::S3Prefix || self.source.lone_uri().is_some(),
            || format!("{} is a pattern: name one manifest", self.source),
        )?;
        self.demand(self.instance_groups.len() <= MAX_GROUPS, || {
            format!(
                "{} instance groups: use at most {MAX_GROUPS}",
                self.instance_groups.len()
            )
        })?;
        let part = self.record_part_bytes;
        self.demand((1..=MAX_RECORD_BYTES).contains(&part), || {
            format!("records of {part} bytes: use 1 to {MAX_RECORD_BYTES} (2^29 - 1, what a header can say)")
        })?;
        let has_parts = self.record_wrapper == RecordWrapper::None && part != MAX_RECORD_BYTES;
        self.demand(!has_parts, || {
            "record-part-size goes with record-wrapper=recordio".into()
        })
    }

    fn check_mode(&self, mode: InputMode) -> Result<()> {
        if mode == InputMode::Pipe {
            return Ok(());
        }
        // Word for word what CreateTrainingJob answers (sagemaker-python-sdk#716).
        self.demand(self.compression == Compression::None, || {
            format!(
                "Invalid compression type for channel {}: {} mode only supports NONE, got Gzip instead",
                self.name,
                mode.as_str()
            )
        })?;
        self.demand(self.record_wrapper == RecordWrapper::None, || {
            format!(
                "{} mode wraps no records: leave RecordWrapperType unset, or use Pipe mode",
                mode.as_str()
            )
        })?;
        // The sentence of the API's reference (S3DataSource, S3DataType).
        self.demand(self.data_type != S3DataType::AugmentedManifestFile, || {
            format!("AugmentedManifestFile can only be used if the Channel's input mode is Pipe, and it is {}", mode.as_str())
        })?;
        let is_manifest = self.data_type == S3DataType::ManifestFile;
        self.demand(!(is_manifest && mode == InputMode::FastFile), || {
            "FastFile mode only supports S3Prefix, got ManifestFile instead: use Pipe or File mode"
                .into()
        })
    }

    fn check_attributes(&self) -> Result<()> {
        let names = &self.attribute_names;
        if self.data_type != S3DataType::AugmentedManifestFile {
            return self.demand(names.is_empty(), || {
                format!(
                    "AttributeNames go with AugmentedManifestFile, and it is {}",
                    self.data_type.as_str()
                )
            });
        }
        self.demand((1..=MAX_ATTRIBUTES).contains(&names.len()), || {
            format!("{} AttributeNames: an augmented manifest needs 1 to {MAX_ATTRIBUTES}, in the order of delivery", names.len())
        })?;
        let bad = names
            .iter()
            .find(|name| !(1..=MAX_ATTRIBUTE_CHARS).contains(&name.chars().count()));
        self.demand(bad.is_none(), || {
            format!("{bad:?} in AttributeNames: use 1 to {MAX_ATTRIBUTE_CHARS} characters")
        })
    }

    fn demand(&self, holds: bool, reason: impl FnOnce() -> String) -> Result<()> {
        match holds {
            true => Ok(()),
            false => Err(Error::config(format!("channel {}", self.name), reason())),
        }
    }

    fn set(&mut self, option: &str, value: &str) -> Result<()> {
        match option {
            "mode" => self.mode = Some(value.parse()?),
            "s3-data-type" => self.data_type = value.parse()?,
            "distribution" => self.distribution = value.parse()?,
            "shuffle" => {
                self.shuffle = Some(ShuffleConfig {
                    seed: number(option, value)?,
                })
            }
            "record-wrapper" => self.record_wrapper = value.parse()?,
            "compression" => self.compression = value.parse()?,
            "attribute-names" => self.attribute_names = names(value),
            "content-type" => self.content_type = Some(value.into()),
            "instance-groups" => self.instance_groups = names(value),
            "on-missing-attribute" => self.on_missing_attribute = value.parse()?,
            "manifest-names" => self.manifest_names = value.parse()?,
            "record-part-size" => self.record_part_bytes = number(option, value)?,
            _ => {
                return Err(Error::config(
                    option,
                    format!(
                        "no option of a channel: use {}; a comma of the URI is written \\,",
                        OPTIONS.join(", ")
                    ),
                ));
            }
        }
        Ok(())
    }
}

/// The names of the options, as [`Channel::set`] knows them.
const OPTIONS: [&str; 12] = [
    "mode",
    "s3-data-type",
    "distribution",
    "shuffle",
    "record-wrapper",
    "compression",
    "attribute-names",
    "content-type",
    "instance-groups",
    "on-missing-attribute",
    "manifest-names",
    "record-part-size",
];

fn number<T: FromStr>(option: &str, value: &str) -> Result<T> {
    value.parse().map_err(|_| {
        Error::config(
            option,
            format!("{value:?} is no number that it can be: use a whole one"),
        )
    })
}

fn names(value: &str) -> Vec<String> {
    value.split(':').map(Into::into).collect()
}

fn check_name(name: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let dots = name.chars().all(|c| c == '.');
    if dots || name.len() > MAX_NAME_CHARS || !name.chars().all(allowed) {
        return Err(Error::config(
            "channel",
            format!(
                "{name:?} is no name for a channel: use 1 to {MAX_NAME_CHARS} letters, digits, `.`, `_` or `-`"
            ),
        ));
    }
    Ok(())
}

/// Where the options begin: at a comma outside of braces that something follows which looks like one.
fn split_options(text: &str) -> (&str, &str) {
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let at = text.len() - rest.len();
        if c == ',' && looks_like_option(&rest[1..]) {
            return (&text[..at], &text[at + 1..]);
        }
        rest = match matching(rest).filter(|_| c == '{') {
            Some((_, after)) => after,
            // A backslash takes the next character with it.
            None => {
                let mut chars = rest.chars();
                let escaped = chars.next() == Some('\\');
                if escaped {
                    chars.next();
                }
                chars.as_str()
            }
        };
    }
    (text, "")
}

fn looks_like_option(text: &str) -> bool {
    let Some((word, value)) = text.split_once('=') else {
        return false;
    };
    let is_word = !word.is_empty()
        && word
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    let value = value.split(',').next().unwrap_or_default();
    OPTIONS.contains(&word) || (is_word && !value.contains('/'))
}

impl FromStr for Channel {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let Some((name, rest)) = text.split_once('=') else {
            return Err(Error::config(
                text,
                "not a channel: use NAME=URI, such as train=s3://bucket/prefix/",
            ));
        };
        check_name(name)?;
        let (uri, options) = split_options(rest);
        let mut channel = Self::new(name, uri.parse()?)?;
        let mut seen: Vec<&str> = Vec::new();
        for option in options.split(',').filter(|_| !options.is_empty()) {
            let (word, value) = option.split_once('=').ok_or_else(|| {
                Error::config(option, "not an option: use OPTION=VALUE, such as shuffle=7")
            })?;
            if seen.contains(&word) {
                return Err(Error::config(word, "it is given twice: give it once"));
            }
            seen.push(word);
            channel.set(word, value)?;
        }
        Ok(channel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Channel {
        text.parse()
            .unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn refused(text: &str, mode: InputMode) -> String {
        let channel: Result<Channel> = text.parse();
        channel
            .and_then(|channel| channel.validate(mode))
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn a_channel_is_a_name_and_a_uri() {
        let channel = parse("train.v1=s3://b/p=q/");
        assert_eq!(channel.name, "train.v1");
        assert_eq!(channel.source.to_string(), "s3://b/p=q/");
        channel.validate(InputMode::Pipe).unwrap();
    }

    #[test]
    fn options_follow_the_uri() {
        let channel = parse(
            "train=s3://b/p/,shuffle=-7,record-wrapper=recordio,compression=gzip,s3-data-type=manifest,distribution=sharded,mode=pipe",
        );
        assert_eq!(channel.source.to_string(), "s3://b/p/");
        assert_eq!(channel.shuffle, Some(ShuffleConfig { seed: -7 }));
        assert_eq!(channel.record_wrapper, RecordWrapper::RecordIo);
        assert_eq!(channel.compression, Compression::Gzip);
        assert_eq!(channel.data_type, S3DataType::ManifestFile);
        assert_eq!(channel.distribution, Distribution::ShardedByS3Key);
        assert_eq!(channel.mode, Some(InputMode::Pipe));
        let channel = parse(
            "t=s3://b/m.jsonl,s3-data-type=AugmentedManifestFile,attribute-names=image-ref:class,content-type=application/x-recordio,instance-groups=g1:g2",
        );
        assert_eq!(channel.attribute_names, ["image-ref", "class"]);
        assert_eq!(
            channel.content_type.as_deref(),
            Some("application/x-recordio")
        );
        assert_eq!(channel.instance_groups, ["g1", "g2"]);
        channel.validate(InputMode::Pipe).unwrap();
    }

    #[test]
    fn commas_of_the_uri_stay_in_the_uri() {
        for uri in [
            "s3://b/{x,y}/",
            "s3://b/{a,shuffle=7}/x",
            "s3://b/year=1,region=eu/",
            "s3://b/a,b",
            r"s3://b/x\,shuffle=7",
            "s3://b/a{b",
        ] {
            assert_eq!(parse(&format!("t={uri}")).source.to_string(), uri);
            let channel = parse(&format!("t={uri},shuffle=1"));
            assert_eq!(
                (channel.source.to_string(), channel.shuffle.unwrap().seed),
                (uri.to_owned(), 1)
            );
        }
        let escaped = parse(r"t=s3://b/x\,shuffle=7").source.lone_uri().unwrap();
        assert_eq!(escaped.key(), "x,shuffle=7");
    }

    #[test]
    fn what_is_no_option_is_refused() {
        for (text, word) in [
            ("t=s3://b/,shufle=7", "shufle"),
            ("t=s3://b/,shuffle=x", "shuffle"),
            ("t=s3://b/,shuffle=1,shuffle=2", "twice"),
            ("t=s3://b/,shuffle=1,x", "OPTION=VALUE"),
            ("t=s3://b/,mode=tape", "pipe, fastfile, file"),
            ("t=s3://b/,distribution=half", "sharded"),
        ] {
            let error = text.parse::<Channel>().unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn every_option_is_known_by_its_name() {
        let mut channel = parse("t=s3://b/");
        for option in OPTIONS {
            let error = channel.set(option, "\u{0}");
            let unknown = error.is_err_and(|error| error.to_string().contains("no option"));
            assert!(!unknown, "{option}");
        }
    }

    #[test]
    fn names_that_cannot_be_file_names_are_refused() {
        let long = format!("{}=s3://b/", "x".repeat(65));
        for text in [
            "s3://b/p",
            "=s3://b",
            "a/b=s3://b",
            "..=s3://b",
            "ä=s3://b",
            long.as_str(),
        ] {
            let error = text.parse::<Channel>().unwrap_err().to_string();
            assert!(error.contains("use "), "{text}: {error}");
        }
        assert!("train=http://b/".parse::<Channel>().is_err());
    }

    #[test]
    fn what_a_mode_cannot_do_is_refused_in_the_services_words() {
        use InputMode::{FastFile, File, Pipe};
        for (text, mode, words) in [
            (
                "training=s3://b/,compression=gzip",
                File,
                "Invalid compression type for channel training: File mode only supports NONE, got Gzip instead",
            ),
            (
                "t=s3://b/,compression=gzip",
                FastFile,
                "FastFile mode only supports NONE",
            ),
            (
                "t=s3://b/,record-wrapper=recordio",
                File,
                "RecordWrapperType",
            ),
            (
                "t=s3://b/m,s3-data-type=augmented,attribute-names=a",
                File,
                "AugmentedManifestFile can only be used if the Channel's input mode is Pipe",
            ),
            (
                "t=s3://b/m,s3-data-type=manifest",
                FastFile,
                "only supports S3Prefix",
            ),
            ("t=s3://b/m,s3-data-type=augmented", Pipe, "needs 1 to 16"),
            (
                "t=s3://b/m,s3-data-type=augmented,attribute-names=a:",
                Pipe,
                "1 to 256",
            ),
            ("t=s3://b/,attribute-names=a", Pipe, "AugmentedManifestFile"),
            ("t=s3://b/{a,b},s3-data-type=manifest", Pipe, "one manifest"),
            ("t=s3://b/,instance-groups=a:b:c:d:e:f", Pipe, "at most 5"),
            ("t=s3://b/,record-part-size=9", Pipe, "record-wrapper"),
            (
                "t=s3://b/,record-wrapper=recordio,record-part-size=536870912",
                Pipe,
                "2^29",
            ),
        ] {
            let error = refused(text, mode);
            assert!(error.contains(words), "{text}: {error}");
        }
        let long = format!("t=s3://b/{}", "x".repeat(1024));
        assert!(refused(&long, Pipe).contains("1024"));
        // A channel's own mode counts.
        parse("t=s3://b/,compression=gzip,mode=pipe")
            .validate(File)
            .unwrap();
    }
}
