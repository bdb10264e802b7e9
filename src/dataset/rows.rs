//! Rows of columnar files, dealt out as samples are, and read by somebody else.
//!
//! A Parquet file is no stream of records: its rows come by groups, each a set of ranges that a columnar reader asks for.
//! What such a reader needs from here is which rows come when. So each group of rows stands for an object of as many
//! records, and a sample tells the group ([`Sample::object_index`](super::Sample::object_index)) and the row in it (its
//! record's offset). Order, shuffle, shares, states and their merging are those of all data sets, and states are in groups
//! and rows. No byte is fetched: behind the records lies one zero for each row.

use std::sync::Arc;

use futures::FutureExt as _;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};

use super::{Dataset, DatasetConfig};
use crate::buffer::PartBuf;
use crate::checksum::ChecksumPolicy;
use crate::client::{Depth, GetMeta, ListEntry, ObjectClient};
use crate::error::{Error, Result};
use crate::object::{ByteRange, ObjectId, ObjectMeta, ObjectUri};
use crate::prefetch::{PrefetchConfig, Prefetcher};
use crate::record::{Codec, Compression, Decoding, RecordFormat};

/// Rows that are stored together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowGroup {
    /// The file.
    pub uri: ObjectUri,
    /// Its version.
    pub etag: Option<Arc<str>>,
    /// The group's number in the file.
    pub number: u32,
    /// How many rows it holds.
    pub rows: u64,
}

impl RowGroup {
    /// The object that it stands for: states know it by the file's address and version.
    fn meta(&self) -> Result<ObjectMeta> {
        let uri: ObjectUri = format!("memory://rows/{}/{}", self.number, self.uri).parse()?;
        let etag = self.etag.clone().unwrap_or_else(|| "\"\"".into());
        Ok(ObjectMeta {
            id: ObjectId {
                etag: Some(etag),
                size_bytes: Some(self.rows),
                ..ObjectId::unpinned(uri)
            },
            size_bytes: self.rows,
            last_modified: None,
            checksum_algorithm: None,
            checksum: None,
        })
    }
}

/// How rows are dealt out: as records of one byte.
pub fn row_decoding() -> Decoding {
    let mut decoding = Decoding::new(RecordFormat::Fixed(std::num::NonZeroU32::MIN));
    decoding.compression = Compression::Is(Codec::None);
    decoding
}

impl Dataset {
    /// The rows of groups in their unshuffled order, by number. `config` says how they are dealt out; how they are decoded
    /// is not its business.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn of_rows(groups: &[RowGroup], mut config: DatasetConfig) -> Result<Self> {
        config.decoding = row_decoding();
        let objects = groups.iter().map(RowGroup::meta).collect::<Result<_>>()?;
        let mut reads = PrefetchConfig::fitting(Some(16 << 20), Some(64 << 10), Some(8));
        reads.checksums = ChecksumPolicy::Off;
        let engine = Prefetcher::new(Arc::new(Zeros), reads, Arc::default())?;
        Self::new(engine, objects, config)
    }
}

/// Serves zeros, as many as are asked for.
#[derive(Debug)]
struct Zeros;

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

impl ObjectClient for Zeros {
    fn head<'a>(&'a self, uri: &'a ObjectUri) -> BoxFuture<'a, Result<ObjectMeta>> {
        let error = Error::config(uri.to_string(), "groups of rows are named, not looked for");
        std::future::ready(Err(error)).boxed()
    }

    fn get<'a>(
        &'a self,
        id: &'a ObjectId,
        range: ByteRange,
        into: &'a mut PartBuf,
    ) -> BoxFuture<'a, Result<GetMeta>> {
        let size_bytes = id.size_bytes.unwrap_or(range.end);
        let mut left = range.end.min(size_bytes) - range.start - into.filled().len() as u64;
        while left > 0 {
            let put = into.put(&ZEROS[..left.min(ZEROS.len() as u64) as usize]);
            left -= put as u64;
        }
        let meta = GetMeta {
            etag: id.etag.clone(),
            size_bytes,
            checksum: None,
        };
        std::future::ready(Ok(meta)).boxed()
    }

    fn list(&self, _prefix: &ObjectUri, _depth: Depth) -> BoxStream<'static, Result<ListEntry>> {
        stream::empty().boxed()
    }
}
