//! Reads at any offset of open objects, out of one bounded memory.
//!
//! An open object is a map of *parts*: ranges that are queued, on their way, or ready as [`bytes::Bytes`]. A read
//! takes slices of the ready ones without a copy and waits for the others; all handles on one version of an object
//! share its parts, so a range that two of them want is fetched once, and a seek into what is on its way waits for it.
//!
//! What is fetched depends on how a handle reads (`plan`): a random miss fetches one small aligned block; reads that
//! follow each other open a window that doubles, with parts that grow with it up to full ones; a read near the end of
//! the object (the index of a parquet, zip or tar file) fetches the tail and leaves the window alone. Objects of at
//! most one part are fetched whole, so that the server can send their checksum.
//!
//! Every decision is made by `core::Core`, a plain state machine behind one mutex, as in the engine
//! ([`crate::prefetch`]); each part is received by a task of its own. Memory is given first to what is read now, then
//! to hints, then to windows. A read that finds none takes parts that were used the longest ago, then revokes what was
//! fetched ahead, then waits for the reads before it, and if none is under way, goes beyond the budget by just what it
//! needs, which is counted as an overdraft. So nothing that reads ahead can block a read, and no read waits for
//! memory that nobody will give back.
//!
//! A part that fails gives its error to those who wait for it, after the good bytes before it, and is forgotten: the
//! next read asks again.

mod config;
mod core;
mod plan;
mod task;

pub use config::ReadConfig;
pub use task::{OpenFile, OpenFiles, Pieces};
