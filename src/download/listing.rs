//! Listing: what is there, what is missing here, and which lane writes it.

use std::sync::atomic::Ordering;
use std::time::Instant;

use futures::StreamExt;

use super::file::is_complete;
use super::lane::{Item, Lane};
use super::names::local_name;
use super::{Download, STOP_POLL};
use crate::error::{Error, Result};
use crate::input::Lookup;
use crate::object::{ObjectMeta, ObjectUri};
use crate::runtime;

/// Hands every object that is not on disk to a lane. The lanes end when theirs are written.
pub(super) fn distribute(download: &Download, root: &ObjectUri, lanes: Vec<Lane>) -> Result<()> {
    let mut objects = download
        .source
        .objects(download.engine.client(), Lookup::ListFirst);
    while let Some(meta) = next(download, &mut objects)? {
        if let Some(item) = missing(download, root, meta)? {
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

fn next(
    download: &Download,
    objects: &mut (impl futures::Stream<Item = Result<ObjectMeta>> + Unpin),
) -> Result<Option<ObjectMeta>> {
    loop {
        if download.stop.is_stopped() {
            return Err(Error::Cancelled);
        }
        let next = async { tokio::time::timeout(STOP_POLL, objects.next()).await };
        if let Ok(next) = runtime::handle().block_on(next) {
            return next.transpose();
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
