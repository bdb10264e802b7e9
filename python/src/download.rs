//! File mode from Python.

use std::path::PathBuf;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyDict;
use standpipe::download::{Download, DownloadConfig, DownloadProgress};
use standpipe::error::Error;
use standpipe::prefetch::Prefetcher;

use crate::config::Config;
use crate::engine::Engine;
use crate::error::to_py;
use crate::stream::{schemes, sources};
use crate::wait::SLICE;

/// Downloads `uri` into `directory`; calls `progress(written, total)`, both in bytes, about ten times a second.
#[pyfunction]
pub(crate) fn download<'py>(
    py: Python<'py>,
    config: &Config,
    uri: String,
    directory: PathBuf,
    fsync: bool,
    progress: Option<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let mut source = sources(py, &[uri])?;
    let engine = Engine::get(py, config, &schemes(&source))?;
    let mut lanes = DownloadConfig::fitting(&engine.config);
    lanes.fsync = fsync;
    let prefetcher: Prefetcher = engine.prefetcher.clone();
    let download = Arc::new(Download::new(
        prefetcher,
        source.remove(0),
        directory,
        lanes,
    ));
    let far = download.progress().clone();
    run(py, &download, &far, progress.as_ref())?;
    let done = PyDict::new(py);
    done.set_item("files_written", far.written_files.get())?;
    done.set_item("files_skipped", far.skipped_files.get())?;
    done.set_item("bytes_written", far.written_bytes.get())?;
    done.set_item("bytes_resumed", far.resumed_bytes.get())?;
    Ok(done)
}

/// On a thread of its own, so that this one can look for signals; whatever ends the wait, that thread has ended too.
fn run(
    py: Python<'_>,
    download: &Arc<Download>,
    far: &DownloadProgress,
    progress: Option<&Bound<'_, PyAny>>,
) -> PyResult<()> {
    let (sender, done) = crossbeam_channel::bounded(1);
    let working = download.clone();
    let thread = std::thread::Builder::new()
        .name("standpipe-download".into())
        .spawn(move || sender.send(working.run()))?;
    let result = loop {
        if let Ok(result) = py.detach(|| done.recv_timeout(SLICE)) {
            break result.map_err(|error| to_py(py, &error));
        }
        if thread.is_finished() && done.is_empty() {
            let what = "the download's thread".into();
            break Err(to_py(py, &Error::Internal { what }));
        }
        if let Err(raised) = py.check_signals().and_then(|()| tell(progress, far)) {
            download.stop().cancel();
            break Err(raised);
        }
    };
    // It stops within moments; a panic in it was told above.
    let _ = py.detach(|| thread.join().is_ok());
    tell(progress, far)?;
    result
}

fn tell(progress: Option<&Bound<'_, PyAny>>, far: &DownloadProgress) -> PyResult<()> {
    let Some(progress) = progress else {
        return Ok(());
    };
    let total = far
        .found_bytes
        .get()
        .saturating_sub(far.skipped_bytes.get() + far.resumed_bytes.get());
    progress.call1((far.written_bytes.get(), total)).map(drop)
}
