//! FastFile mode: objects as files that are there before they are downloaded.
//!
//! [`tree`] turns a listing into directories and files while it arrives; [`fuse`](mod@fuse) (feature `fuse`, Linux)
//! mounts them; [`errno`] says what a program sees when a read fails.

pub mod errno;
#[cfg(all(feature = "fuse", target_os = "linux"))]
pub mod fuse;
pub mod tree;
