//! Listing: what is there, what is missing here, and which lane writes it.

use std::sync::atomic::Ordering;
use std::time::Instant;

use futures::StreamExt;

use super::file::is_complete;
use super::lane::{Item, Lane};
use super::names::local_name;
use super::{Download, STOP_POLL, What};
use crate::error::{Error, Result};
use crate::input::Objects;
use crate::object::{ObjectMeta, ObjectUri};
use crate::runtime;

/// Hands every object that is not on disk to a lane. The lanes end when theirs are written.
pub(super) fn distribute(download: &Download, lanes: Vec<Lane>) -> Result<()> {
    let client = download.engine.client();
    let (root, mut objects) = match &download.what {
        What::Selection(selection) => unless_stopped(download, selection.open(client))??,
        What::Listed(listed) => (listed.root().clone(), listed.objects()),
    };
    while let Some(meta) = next(download, &mut objects)? {
        if let Some(item) = missing(download, &root, meta)? {
            let emptiest = lanes.iter().min_by_key(|lane| lane.waiting_bytes());
            // A lane that takes nothing has failed, and said so.
            if !emptiest.is_some_and(|lane| lane.push(item)) {
                return Err(Error::Cancelled);
            }
        }
    }
    download.progress.listed.store(true, Ordering::Release);
    Ok(())
}

fn next(download: &Download, objects: &mut Objects) -> Result<Option<ObjectMeta>> {
    unless_stopped(download, objects.next())?.transpose()
}

/// Waits for an answer, or for the end of the download.
fn unless_stopped<T>(download: &Download, answer: impl Future<Output = T>) -> Result<T> {
    let mut answer = std::pin::pin!(answer);
    loop {
        if download.stop.is_stopped() {
            return Err(Error::Cancelled);
        }
        let next = async { tokio::time::timeout(STOP_POLL, &mut answer).await };
        if let Ok(next) = runtime::handle().block_on(next) {
            return Ok(next);
        }
    }
}

fn missing(download: &Download, root: &ObjectUri, meta: ObjectMeta) -> Result<Option<Item>> {
    let path = download.directory.join(local_name(root, &meta.id.uri)?);
    let progress = &download.progress;
    progress.found_files.add(1);
    progress.found_bytes.add(meta.size_bytes);
    if is_complete(&path, &meta) {
        progress.skipped_files.add(1);
        progress.skipped_bytes.add(meta.size_bytes);
        return Ok(None);
    }
    let queued = Instant::now();
    Ok(Some(Item { meta, path, queued }))
}
