//! Records in objects: decoders and encoders without I/O.
//!
//! A [`RecordDecoder`] is fed an object's bytes in chunks of any size and yields [`Record`]s. A record that lies within
//! one chunk is a slice of it, without a copy; one that spans chunks is copied once, into memory of its own, so that no
//! chunk is kept until the next arrives. Every record tells where it begins and where the next one does, and decoding
//! may begin at any such boundary: that is how a training job goes on inside of an object.
//!
//! A decoder believes no length before it is checked. What a record claims to be long is compared with
//! [`Decoding::max_record_bytes`], and memory grows with the bytes that are there, not with the claim. A [`Flaw`] names
//! the offset; whether the next record can still be found is said by [`Flaw::recoverable`].
//!
//! # Formats
//!
//! | name | a record is | source of the format |
//! | --- | --- | --- |
//! | `tar` | a sample: the files that share a name up to the first dot of its last component | POSIX ustar and pax, GNU long names; grouping as in WebDataset |
//! | `tfrecord` | a payload between two masked CRC32C | tensorflow/core/lib/io/record_writer.h |
//! | `recordio` | a payload, or parts of one | dmlc-core `recordio.h`; parts as AWS's readers join them |
//! | `recordio:dmlc` | the same, parts joined by the magic number | dmlc-core `recordio.h` |
//! | `recordio-protobuf` | a RecordIO record that holds tensors | SageMaker SDK `record.proto` |
//! | `lines` | a line without its `\n` or `\r\n` | |
//! | `jsonl` | a line of JSON; blank lines are none | jsonlines.org |
//! | `raw` | the whole object | |
//! | `fixed:N` | N bytes | |
//!
//! Each may be compressed as a whole, by gzip (any number of members) or zstd (any number of frames).

mod compression;
mod decoder;
mod flaw;
mod format;
mod gzip;
mod input;
mod lines;
pub mod protobuf;
pub mod recordio;
mod tar;
pub mod tfrecord;
mod whole;
mod zstd;

pub use compression::{Codec, Compression, Decompressor};
pub use decoder::{Boundary, Decoding, RecordDecoder};
pub use flaw::Flaw;
pub use format::{Dialect, RecordFormat};

use bytes::Bytes;

/// One record, and where it lies.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Where it begins: in the object, or in what the object decompresses to.
    pub offset: u64,
    /// Where the next one begins. A decoder that starts there goes on as if it had read what is before.
    pub end: u64,
    /// What it holds.
    pub data: Data,
}

/// What a record holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Data {
    /// A payload.
    Bytes(Bytes),
    /// The files of one sample of a tar archive.
    Files(Files),
    /// Tensors.
    Tensors(protobuf::Tensors),
}

/// A sample of a tar archive, as WebDataset groups it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Files {
    /// What the files' names have in common: the directory, and the name up to its first dot.
    pub key: String,
    /// What follows that dot, in lower case, and the file's bytes; in the archive's order.
    pub files: Vec<(String, Bytes)>,
}

impl Record {
    /// Bytes of payload.
    pub fn len_bytes(&self) -> u64 {
        match &self.data {
            Data::Bytes(bytes) => bytes.len() as u64,
            Data::Files(files) => files.len_bytes(),
            Data::Tensors(tensors) => tensors.len_bytes(),
        }
    }

    /// The same record in memory of its own: dropping the chunks that it came from then frees theirs.
    #[must_use]
    pub fn detached(mut self) -> Self {
        match &mut self.data {
            Data::Bytes(bytes) => detach(bytes),
            Data::Files(files) => files.files.iter_mut().for_each(|(_, bytes)| detach(bytes)),
            Data::Tensors(tensors) => tensors.for_each_payload(detach),
        }
        self
    }
}

impl Files {
    fn len_bytes(&self) -> u64 {
        self.files.iter().map(|(_, bytes)| bytes.len() as u64).sum()
    }
}

fn detach(bytes: &mut Bytes) {
    *bytes = Bytes::copy_from_slice(bytes);
}

#[cfg(test)]
mod tests;
