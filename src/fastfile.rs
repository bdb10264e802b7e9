//! FastFile mode: objects as files that are there before they are downloaded.
//!
//! [`read`](mod@read) serves reads at any offset of any number of open objects out of one bounded memory, and reads
//! ahead of those that are read in order.

pub mod read;
