//! FastFile mode: objects as files that are there before they are downloaded.
//!
//! [`tree`] turns a listing into directories and files while it arrives; [`read`](mod@read) serves reads at any offset
//! of any number of open objects out of one bounded memory, and reads ahead of those that are read in order;
//! [`fuse`](mod@fuse) (feature `fuse`, Linux) mounts both; [`errno`] says what a program sees when a read fails.

pub mod errno;
#[cfg(all(feature = "fuse", target_os = "linux"))]
pub mod fuse;
pub mod read;
pub mod source;
pub mod tree;
