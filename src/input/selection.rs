//! What a download takes: a source's objects or a manifest's, and of them this host's share.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};

use super::source::in_key_order;
use super::{
    Channel, InputMode, Lookup, ManifestNames, Objects, S3DataType, Shard, Source, manifest_objects,
};
use crate::client::ObjectClient;
use crate::error::{Error, Result};
use crate::object::ObjectUri;

/// The input of File mode. A seed changes nothing here: shares are of the listing's order.
#[derive(Debug, Clone)]
pub struct Selection {
    /// The objects, or the manifest.
    pub source: Source,
    /// Which of the two; lines of an augmented manifest are no files.
    pub data_type: S3DataType,
    /// This host's share.
    pub shard: Shard,
    /// What the files of a manifest are called.
    pub names: ManifestNames,
    /// What a lone URI without a `/` at its end means.
    pub lookup: Lookup,
}

/// All of it, as `download` takes a URI.
impl From<Source> for Selection {
    fn from(source: Source) -> Self {
        Self {
            source,
            data_type: S3DataType::S3Prefix,
            shard: Shard::WHOLE,
            names: ManifestNames::default(),
            lookup: Lookup::ListFirst,
        }
    }
}

impl Selection {
    /// What a channel in File mode is on this host.
    ///
    /// # Errors
    /// What File mode cannot do, in the service's words.
    pub fn of_channel(channel: &Channel, host: Shard) -> Result<Self> {
        channel.validate(InputMode::File)?;
        Ok(Self {
            source: channel.source.clone(),
            data_type: channel.data_type,
            shard: channel.distribution.shard(host),
            names: channel.manifest_names,
            lookup: Lookup::Prefix,
        })
    }

    /// Finds the objects, and the address that their names on disk are relative to.
    ///
    /// # Errors
    /// What is wrong with the source or the manifest; of the stream, with the listing or an object.
    pub async fn open(&self, client: &Arc<dyn ObjectClient>) -> Result<(ObjectUri, Objects)> {
        let (root, objects) = self.open_whole(client).await?;
        let shard = self.shard;
        let mut place = 0..;
        let mine = objects.try_filter(move |_| {
            std::future::ready(place.next().is_some_and(|place| shard.has(place)))
        });
        Ok((root, mine.boxed()))
    }

    /// The same for all hosts together.
    pub(super) async fn open_whole(
        &self,
        client: &Arc<dyn ObjectClient>,
    ) -> Result<(ObjectUri, Objects)> {
        match self.data_type {
            S3DataType::S3Prefix => {
                let mut objects = self.source.objects(client, self.lookup);
                if self.shard != Shard::WHOLE && self.source.is_unordered() {
                    objects = in_key_order(objects);
                }
                Ok((self.source.root()?, objects))
            }
            S3DataType::ManifestFile => self.open_manifest(client).await,
            S3DataType::AugmentedManifestFile => Err(self.no_files()),
        }
    }

    async fn open_manifest(&self, client: &Arc<dyn ObjectClient>) -> Result<(ObjectUri, Objects)> {
        let uri = self.source.lone_uri().ok_or_else(|| {
            Error::config(self.source.to_string(), "a pattern: name one manifest")
        })?;
        let (prefix, objects) = manifest_objects(client, &uri).await?;
        let root = match self.names {
            ManifestNames::FullKey => "",
            // A prefix may end inside of a name.
            ManifestNames::Relative => {
                &prefix.key()[..prefix.key().rfind('/').map_or(0, |at| at + 1)]
            }
        };
        Ok((prefix.with_key(root), objects))
    }

    /// The sentence of the API's reference (S3DataSource, S3DataType).
    pub(crate) fn no_files(&self) -> Error {
        Error::config(
            self.source.to_string(),
            "AugmentedManifestFile can only be used if the Channel's input mode is Pipe: use `standpipe pipe`",
        )
    }
}
