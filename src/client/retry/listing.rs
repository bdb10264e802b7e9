//! Listings that survive errors.
//!
//! A stream that failed in a retryable way is polled again and sends the request for the same page again. If it ends
//! instead, that may be the listing's end or a client that cannot go on after an error: it is then listed anew, and
//! what was delivered already, up to the last key, is skipped. So no listing ever ends early in silence.

use std::sync::Arc;

use futures::StreamExt;
use futures::stream::{self, BoxStream};

use super::{Ordeal, Shared};
use crate::client::ListEntry;
use crate::error::{Error, Result};
use crate::object::ObjectUri;

type Entries = BoxStream<'static, Result<ListEntry>>;

/// `begin` begins the listing, each time from the same place.
pub(super) fn retrying(
    shared: Arc<Shared>,
    begin: impl Fn() -> Entries + Send + 'static,
) -> Entries {
    let listing = Listing {
        entries: begin(),
        begin: Box::new(begin),
        ordeal: Ordeal::new(shared),
        broken: None,
        last: None,
        skip: None,
        over: false,
    };
    stream::unfold(listing, |mut listing| async move {
        Some((listing.next().await?, listing))
    })
    .boxed()
}

struct Listing {
    begin: Box<dyn Fn() -> Entries + Send>,
    entries: Entries,
    ordeal: Ordeal,
    /// The error after which nothing has come yet.
    broken: Option<Error>,
    /// The last entry delivered, and whether all came in byte order so far.
    last: Option<Last>,
    /// The listing began anew: what is not behind this key was delivered.
    skip: Option<ObjectUri>,
    /// An error was final.
    over: bool,
}

struct Last {
    key: ObjectUri,
    in_order: bool,
}

impl Listing {
    async fn next(&mut self) -> Option<Result<ListEntry>> {
        if self.over {
            return None;
        }
        loop {
            let result = match self.entries.next().await {
                Some(Ok(entry)) if self.was_delivered(&entry) => continue,
                Some(Ok(entry)) => {
                    self.note(&entry);
                    return Some(Ok(entry));
                }
                Some(Err(error)) => self.survive(error).await,
                None => match self.broken.take() {
                    Some(error) => self.start_over(error),
                    None => {
                        self.ordeal.succeeded();
                        return None;
                    }
                },
            };
            if let Err(error) = result {
                self.over = true;
                return Some(Err(error));
            }
        }
    }

    async fn survive(&mut self, error: Error) -> Result<()> {
        self.ordeal.failed(error.clone()).await?;
        self.broken = Some(error);
        Ok(())
    }

    /// Lists from the beginning. That needs byte order: in a directory bucket, which has none, what was delivered
    /// cannot be told from what was not.
    fn start_over(&mut self, error: Error) -> Result<()> {
        match &self.last {
            Some(last) if !last.in_order => return Err(error),
            last => self.skip = last.as_ref().map(|last| last.key.clone()),
        }
        self.entries = (self.begin)();
        Ok(())
    }

    fn was_delivered(&self, entry: &ListEntry) -> bool {
        self.skip
            .as_ref()
            .is_some_and(|last| uri(entry).key() <= last.key())
    }

    fn note(&mut self, entry: &ListEntry) {
        self.broken = None;
        self.ordeal.progressed();
        let key = uri(entry).clone();
        let in_order = match &self.last {
            Some(last) => last.in_order && last.key.key() < key.key(),
            None => true,
        };
        self.last = Some(Last { key, in_order });
    }
}

pub(super) fn uri(entry: &ListEntry) -> &ObjectUri {
    match entry {
        ListEntry::Object(meta) => &meta.id.uri,
        ListEntry::Prefix(uri) => uri,
    }
}
