//! How a wait on another thread is given up: that thread enters a `Cancel`, and whoever holds it sets it.
//!
//! Ctrl-C reaches the main thread only. `asyncio` and thread pools wait elsewhere, and at the end they wait for their
//! threads: so these must be told.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::prelude::*;

thread_local! {
    /// Those that this thread has entered, the last one last.
    static ENTERED: RefCell<Vec<Arc<AtomicBool>>> = const { RefCell::new(Vec::new()) };
}

/// Ends the waits of threads that are inside of it (`with cancel:`), with `CancelledError`, once it is set.
#[pyclass(frozen, module = "standpipe._standpipe")]
#[derive(Debug, Default)]
pub(crate) struct Cancel(Arc<AtomicBool>);

#[pymethods]
impl Cancel {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    /// From any thread, any number of times.
    fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        let flag = slf.get().0.clone();
        ENTERED.with_borrow_mut(|entered| entered.push(flag));
        slf
    }

    fn __exit__(&self, _type: Py<PyAny>, _value: Py<PyAny>, _traceback: Py<PyAny>) {
        ENTERED.with_borrow_mut(Vec::pop);
    }
}

/// Whether anybody may end this thread's waits.
pub(crate) fn is_entered() -> bool {
    ENTERED.with_borrow(|entered| !entered.is_empty())
}

/// Whether this thread's waits are to end.
pub(crate) fn is_set() -> bool {
    ENTERED.with_borrow(|entered| entered.iter().any(|flag| flag.load(Ordering::Relaxed)))
}
