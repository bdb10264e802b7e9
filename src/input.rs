//! What to read, and in what order.
//!
//! A [`Source`] is one thing that was typed: a URI, or a pattern of URIs with braces (`shard-{000..015}.tar`).
//! [`Source::objects`] turns it into a stream of objects that the engine reads while the listing still goes on.
//!
//! # Which requests that costs
//!
//! A URI that ends in `/` (or names a bucket only) is a prefix: it is listed, one request per 1,000 objects, and the
//! listing tells sizes and ETags, so nothing else is asked. A URI that came out of braces and has no such end is an
//! object. What remains is a lone `s3://b/key`, an object or the beginning of many keys; [`Lookup`] says how that is
//! found out:
//!
//! - [`Lookup::GetFirst`] (`cat`): the object is read at once, as if it were there: no listing, no HEAD before it (the engine
//!   asks one beside it, for the checksum, and does without), only
//!   `s3:GetObject` is needed, and the first byte is one round trip away. The first part's answer tells its size. Only
//!   when the answer is "not found" is the prefix listed ([`Source::as_prefix`]).
//! - [`Lookup::ListFirst`] (`download`): sizes and dates are wanted before any byte is. The listing is asked; a key
//!   sorts before all longer ones, so its first entry decides whether the URI is an object. Without `s3:ListBucket`
//!   a HEAD tells the same of the object (`s3:GetObject` suffices). Out of braces, a HEAD is asked straight away,
//!   [`HEADS_AHEAD`] at a time: it costs a twelfth of a listing.
//! - [`Lookup::Prefix`] (Pipe mode): everything whose key starts with the URI's, the key itself included, as
//!   SageMaker's `S3Prefix` has it (`train` also takes `train-old/x`). Without `s3:ListBucket` it is read as an
//!   object.
//! - [`Lookup::Object`] (lists of URIs, [`Source::objects_of`]): it is an object, or missing.
//!
//! Directory markers (`x/` with no bytes) are skipped everywhere: they are not data.

mod agenda;
mod augmented;
mod braces;
mod catalog;
mod channel;
mod distribution;
mod fetch;
mod inventory;
mod listed;
mod listing;
mod manifest;
mod order;
mod pins;
mod ranges;
mod selection;
mod shuffle;
mod source;

pub use agenda::{Agenda, Objects, Place, Script, Step, manifest_objects, read_manifest};
pub use augmented::{AugmentedManifest, Item};
pub use braces::{Braces, MAX_EXPANSION};
pub use catalog::Catalog;
pub use channel::{
    Channel, Compression, InputMode, MAX_RECORD_BYTES, ManifestNames, OnMissingAttribute,
    RecordWrapper, S3DataType,
};
pub use distribution::{Distribution, Shard};
pub use inventory::Inventory;
pub use listed::Listed;
pub(crate) use listing::every_object;
pub use manifest::Manifest;
pub use order::{Order, Places};
pub use pins::REFERENCES_AHEAD;
pub use selection::Selection;
pub use shuffle::{ShuffleConfig, permutation};
pub use source::{HEADS_AHEAD, Lookup, Source};
