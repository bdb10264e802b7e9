//! Where a mount's bytes come from.

use std::fmt::Debug;
use std::fs::File;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;

use crate::buffer::PartBuf;
use crate::client::ObjectClient;
use crate::error::Result;
use crate::object::{ByteRange, ObjectMeta, Scheme};

/// Opens objects for reading.
pub trait Source: Debug + Send + Sync + 'static {
    /// Opens an object. Must not wait: it is called on a session thread.
    fn open(&self, object: ObjectMeta) -> Arc<dyn OpenFile>;
}

/// An object that is being read.
pub trait OpenFile: Debug + Send + Sync + 'static {
    /// The object.
    fn object(&self) -> &ObjectMeta;

    /// The bytes of a range, if they are here already. Must not wait.
    fn read_now(&self, range: ByteRange) -> Option<Bytes>;

    /// The bytes of a range that lies within the object.
    fn read(&self, range: ByteRange) -> BoxFuture<'_, Result<Bytes>>;

    /// A local file that holds the whole object, for passthrough.
    fn whole(&self) -> Option<File>;
}

/// Asks the client for exactly what the kernel asks for.
#[derive(Debug)]
pub struct Direct {
    client: Arc<dyn ObjectClient>,
}

impl Direct {
    /// Reads through `client`.
    pub fn new(client: Arc<dyn ObjectClient>) -> Self {
        Self { client }
    }
}

impl Source for Direct {
    fn open(&self, object: ObjectMeta) -> Arc<dyn OpenFile> {
        Arc::new(DirectFile {
            client: self.client.clone(),
            object,
        })
    }
}

#[derive(Debug)]
struct DirectFile {
    client: Arc<dyn ObjectClient>,
    object: ObjectMeta,
}

impl OpenFile for DirectFile {
    fn object(&self) -> &ObjectMeta {
        &self.object
    }

    fn read_now(&self, _range: ByteRange) -> Option<Bytes> {
        None
    }

    fn read(&self, range: ByteRange) -> BoxFuture<'_, Result<Bytes>> {
        async move {
            let len = usize::try_from(range.len()).unwrap_or(usize::MAX);
            let mut part = PartBuf::heap(len);
            self.client.get(&self.object.id, range, &mut part).await?;
            Ok(part.freeze())
        }
        .boxed()
    }

    /// A local object is its file, as long as that is the one that was listed.
    fn whole(&self) -> Option<File> {
        let uri = &self.object.id.uri;
        if uri.scheme() != Scheme::File {
            return None;
        }
        let file = File::open(uri.key()).ok()?;
        let now = file.metadata().ok()?;
        let same = now.is_file()
            && now.len() == self.object.size_bytes
            && now.modified().ok() == self.object.last_modified;
        same.then_some(file)
    }
}
