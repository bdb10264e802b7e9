//! Names: of channels, of the FIFO of each epoch, and of the files beside them.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::error::{Error, Result};

/// The platform's limit on a channel's name (`CreateTrainingJob`, `ChannelName`).
const MAX_NAME_CHARS: usize = 64;

/// What a status file's name adds to its FIFO's.
const STATUS_SUFFIX: &str = ".error.json";

/// A channel's name: 1 to 64 of `A-Z a-z 0-9 . - _`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelName(Arc<str>);

impl ChannelName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The file name of an epoch's FIFO.
    pub fn fifo(&self, epoch: u64) -> String {
        format!("{self}_{epoch}")
    }

    /// The file name of an epoch's error status.
    pub fn status(&self, epoch: u64) -> String {
        format!("{self}_{epoch}{STATUS_SUFFIX}")
    }

    /// The epoch, when `file_name` is the name of a FIFO of this channel.
    pub fn epoch_of_fifo(&self, file_name: &str) -> Option<u64> {
        let digits = file_name.strip_prefix(self.as_str())?.strip_prefix('_')?;
        // `train_01` and `train_+1` are files of somebody else.
        digits
            .parse()
            .ok()
            .filter(|epoch: &u64| epoch.to_string() == digits)
    }

    /// The epoch, when `file_name` is the name of an error status of this channel.
    pub fn epoch_of_status(&self, file_name: &str) -> Option<u64> {
        self.epoch_of_fifo(file_name.strip_suffix(STATUS_SUFFIX)?)
    }

    /// Whether the directory of a channel `other` would lie where one of this channel's FIFOs does: `train` in its
    /// epoch 1 and `train_1`.
    pub fn shadows(&self, other: &ChannelName) -> bool {
        self.epoch_of_fifo(other.as_str()).is_some()
    }
}

impl FromStr for ChannelName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if text.is_empty() || text.len() > MAX_NAME_CHARS || !text.chars().all(allowed) {
            return Err(Error::config(
                "channel",
                format!(
                    "{text:?} cannot name a channel: use 1 to {MAX_NAME_CHARS} letters, digits, '.', '-' or '_'"
                ),
            ));
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for ChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl serde::Serialize for ChannelName {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.0)
    }
}

/// Refuses a set of channels of which two would share a path.
pub fn check_names<'a>(names: impl IntoIterator<Item = &'a ChannelName>) -> Result<()> {
    let names: Vec<_> = names.into_iter().collect();
    for (at, name) in names.iter().enumerate() {
        if names[..at].contains(name) {
            return Err(Error::config(
                "channel",
                format!("{name} is given twice: give each channel a name of its own"),
            ));
        }
        if let Some(other) = names.iter().find(|other| other.shadows(name)) {
            return Err(Error::config(
                "channel",
                format!(
                    "{name} is also the path of an epoch of channel {other}: rename one of them"
                ),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> ChannelName {
        text.parse().unwrap()
    }

    #[test]
    fn names_of_the_platform_and_no_others() {
        for good in ["a", "train", "A.b-c_9", "..", &"x".repeat(64)] {
            assert_eq!(name(good).as_str(), good);
        }
        for bad in ["", "a/b", "a b", "ä", "a\0", &"x".repeat(65)] {
            assert!(bad.parse::<ChannelName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_channel_named_like_an_epoch_of_another_is_refused() {
        assert!(check_names(&[name("train"), name("train_1")]).is_err());
        assert!(check_names(&[name("train_1"), name("train")]).is_err());
        assert!(check_names(&[name("train"), name("train")]).is_err());
        assert!(check_names(&[name("train"), name("train_01"), name("train_x")]).is_ok());
    }

    proptest! {
        #[test]
        fn fifo_names_give_their_epoch_back(channel in "[A-Za-z0-9._-]{1,64}", epoch: u64) {
            let channel = name(&channel);
            prop_assert_eq!(channel.epoch_of_fifo(&channel.fifo(epoch)), Some(epoch));
            prop_assert_eq!(channel.epoch_of_status(&channel.status(epoch)), Some(epoch));
            prop_assert_eq!(channel.epoch_of_fifo(&channel.status(epoch)), None);
        }

        #[test]
        fn channels_that_pass_never_share_a_path(
            a in "[a_0-9]{1,6}", b in "[a_0-9]{1,6}", m in 0u64..20, n in 0u64..20,
        ) {
            let (a, b) = (name(&a), name(&b));
            if check_names([&a, &b]).is_ok() {
                prop_assert_ne!(a.fifo(m), b.fifo(n));
                prop_assert_ne!(a.fifo(m), b.as_str());
            }
        }
    }
}
