//! Both S3 and local files, each URI where it belongs.

use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::BoxStream;

use super::{Depth, GetMeta, ListEntry, ObjectClient};
use crate::buffer::PartBuf;
use crate::error::Result;
use crate::object::{ByteRange, ObjectId, ObjectMeta, ObjectUri, Scheme};

/// Sends each URI to its scheme's client.
#[derive(Debug)]
pub struct SchemeClient {
    s3: Arc<dyn ObjectClient>,
    local: Arc<dyn ObjectClient>,
}

impl SchemeClient {
    /// `s3://` to the one, everything else to the other.
    pub fn new(s3: Arc<dyn ObjectClient>, local: Arc<dyn ObjectClient>) -> Self {
        Self { s3, local }
    }

    fn of(&self, uri: &ObjectUri) -> &dyn ObjectClient {
        match uri.scheme() {
            Scheme::S3 => &*self.s3,
            Scheme::File | Scheme::Memory => &*self.local,
        }
    }
}

impl ObjectClient for SchemeClient {
    fn head<'a>(&'a self, uri: &'a ObjectUri) -> BoxFuture<'a, Result<ObjectMeta>> {
        self.of(uri).head(uri)
    }

    fn get<'a>(
        &'a self,
        id: &'a ObjectId,
        range: ByteRange,
        into: &'a mut PartBuf,
    ) -> BoxFuture<'a, Result<GetMeta>> {
        self.of(&id.uri).get(id, range, into)
    }

    fn list(&self, prefix: &ObjectUri, depth: Depth) -> BoxStream<'static, Result<ListEntry>> {
        self.of(prefix).list(prefix, depth)
    }
}
