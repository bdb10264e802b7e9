//! Standpipe's Python module: translation, and nothing else.
//!
//! Each file binds one topic: it takes arguments apart, waits without the GIL ([`wait`]), and wraps what comes without a
//! copy. What decides anything lives in the crate `standpipe`; what is Python's own (file objects, `asyncio`, frameworks)
//! lives in the package beside it.
//!
//! Three rules hold everywhere. Nothing starts before the first read: importing makes no thread. Nothing asynchronous
//! crosses a fork ([`owned`]): what is alive carries the pid of its maker, and in a forked child it refuses to be used and
//! is not dropped. And no thread but Python's own ever touches Python: the runtime's threads ring a bell ([`bell`]), so
//! that an interpreter may end whenever it likes.

mod bell;
mod cancel;
mod chunk;
mod command;
mod config;
mod dataset;
mod download;
mod engine;
mod error;
mod fastfiles;
mod fifo;
mod file;
mod listing;
mod owned;
mod stream;
mod wait;

use pyo3::prelude::*;

/// The compiled half of the package `standpipe`.
#[pymodule]
mod _standpipe {
    #[pymodule_export]
    use super::cancel::Cancel;
    #[pymodule_export]
    use super::chunk::Chunk;
    #[pymodule_export]
    use super::command::run_command;
    #[pymodule_export]
    use super::config::Config;
    #[pymodule_export]
    use super::dataset::{Samples, check_settings, merge_states, open_rows, open_samples};
    #[pymodule_export]
    use super::download::download;
    #[pymodule_export]
    use super::fastfiles::{Entries, Entry, FastFiles, LocalFile};
    #[pymodule_export]
    use super::fifo::{FifoRecords, open_fifo};
    #[pymodule_export]
    use super::file::{ObjectHandle, open_object, read_ranges};
    #[pymodule_export]
    use super::listing::{Listing, ObjectInfo, list_manifest, list_objects, stat_object};
    #[pymodule_export]
    use super::stream::{Stream, open_listed, open_stream, open_unlisted};

    use super::{Bound, PyModule, PyModuleMethods, PyResult};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
