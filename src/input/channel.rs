//! A named input: `train=s3://bucket/prefix/`.

use std::str::FromStr;

use super::Source;
use crate::error::{Error, Result};

/// SageMaker's limit on a channel's name (`CreateTrainingJob`, `ChannelName`).
const MAX_NAME_CHARS: usize = 64;

/// A channel: the name under which a training job finds its data, and what the data is.
#[derive(Debug, Clone)]
pub struct Channel {
    /// `[A-Za-z0-9._-]{1,64}`, as SageMaker demands; it becomes a file name.
    pub name: String,
    /// What it reads.
    pub source: Source,
}

impl FromStr for Channel {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let Some((name, uri)) = text.split_once('=') else {
            return Err(Error::config(
                text,
                "not a channel: use NAME=URI, such as train=s3://bucket/prefix/",
            ));
        };
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let dots = name.chars().all(|c| c == '.');
        if dots || name.len() > MAX_NAME_CHARS || !name.chars().all(allowed) {
            return Err(Error::config(
                text,
                format!(
                    "{name:?} is no name for a channel: use 1 to {MAX_NAME_CHARS} letters, digits, `.`, `_` or `-`"
                ),
            ));
        }
        Ok(Self {
            name: name.into(),
            source: uri.parse()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_is_a_name_and_a_uri() {
        let channel: Channel = "train.v1=s3://b/p=q/".parse().unwrap();
        assert_eq!(channel.name, "train.v1");
        assert_eq!(channel.source.to_string(), "s3://b/p=q/");
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
}
