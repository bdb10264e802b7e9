//! What belongs to the process that made it.
//!
//! A forked child inherits the memory of streams and open files, not the threads behind them, and perhaps a lock that
//! another thread held at that moment. So in a child such a value is neither used (an exception says what to do) nor
//! dropped: its memory is the child's copy, and goes with it.

use pyo3::prelude::*;

use crate::error;

/// A value and its maker's pid.
#[derive(Debug)]
pub(crate) struct Owned<T> {
    pid: u32,
    /// `None` only while it is dropped.
    value: Option<T>,
}

impl<T> Owned<T> {
    pub(crate) fn new(value: T) -> Self {
        Self {
            pid: std::process::id(),
            value: Some(value),
        }
    }

    /// The value, for its own process; `what` names it to others.
    pub(crate) fn get(&self, py: Python<'_>, what: &str) -> PyResult<&T> {
        match &self.value {
            Some(value) if self.is_ours() => Ok(value),
            _ => Err(error::forked(py, what, self.pid)),
        }
    }

    /// Takes it out, to be dropped elsewhere; none in a forked child, where it stays.
    pub(crate) fn take(&mut self) -> Option<T> {
        match self.is_ours() {
            true => self.value.take(),
            false => None,
        }
    }

    pub(crate) fn is_ours(&self) -> bool {
        self.pid == std::process::id()
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        if !self.is_ours() {
            std::mem::forget(self.value.take());
        }
    }
}
