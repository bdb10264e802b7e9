//! The command line inside the wheel.

use std::ffi::OsString;
use std::io::Write;

use pyo3::prelude::*;

/// Runs the `standpipe` command with these arguments, the program's name first; returns its exit code.
///
/// The caller has given SIGINT back to the system: commands that clean up listen for it themselves.
#[pyfunction]
pub(crate) fn run_command(py: Python<'_>, args: Vec<OsString>) -> u8 {
    py.detach(|| {
        let code = standpipe::cli::status(args);
        // A Rust program does this when its `main` returns; here nobody else does. A reader that is gone is not told.
        let _ = std::io::stdout().flush();
        code
    })
}
