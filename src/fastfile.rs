//! FastFile mode: objects as files that are there before they are downloaded.
//!
//! [`tree`] turns a listing into directories and files while it arrives; [`read`](mod@read) serves reads at any offset
//! of any number of open objects out of one bounded memory, and reads ahead of those that are read in order;
//! [`source`] puts a cache below and looks ahead from file to file. [`FastFiles`] is all of that for programs, without a
//! mount; [`fuse`](mod@fuse) (feature `fuse`, Linux) mounts it. [`errno`] says what a program sees when a read fails.

pub mod errno;
pub mod files;
#[cfg(all(feature = "fuse", target_os = "linux"))]
pub mod fuse;
pub mod read;
pub mod source;
pub mod tree;

pub(crate) use files::refuse_to_require;
pub use files::{FastFile, FastFiles};
