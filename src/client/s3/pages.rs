//! A listing as a stream: while one page is being consumed, the next is on its way.
//!
//! A listing of a million keys is a thousand requests in a row, each with the token of the one before; a page ahead
//! hides their latency behind the work on the page at hand. It is asked for when the first entry has been worked on: the
//! GET of a stream's first object goes out on the connection that the first page leaves. After an error that may pass, the stream stays where it
//! is: the next poll asks for the same page again. Any other error ends it.

use std::collections::VecDeque;
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt};
use tokio::task::JoinSet;

use super::listing::Page;
use crate::client::ListEntry;
use crate::error::{Error, Result};

/// Fetches the page that a token names; without one, the first.
pub(super) type Fetch =
    Arc<dyn Fn(Option<String>) -> BoxFuture<'static, Result<Page>> + Send + Sync>;

/// Where the listing stands.
struct Listing {
    fetch: Fetch,
    entries: VecDeque<ListEntry>,
    /// None of them has been given out.
    is_fresh: bool,
    next: Next,
}

enum Next {
    /// The page of this token has to be asked for.
    Ask(Option<String>),
    /// It was asked for; dropping the set takes the question back.
    Asked(Option<String>, JoinSet<Result<Page>>),
    End,
}

/// The stream. It is lazy: the first page is asked for at the first poll.
pub(super) fn stream(fetch: Fetch) -> BoxStream<'static, Result<ListEntry>> {
    let listing = Listing {
        fetch,
        entries: VecDeque::new(),
        is_fresh: false,
        next: Next::Ask(None),
    };
    stream::unfold(listing, |mut listing| {
        async move { listing.step().await.map(|entry| (entry, listing)) }.boxed()
    })
    .boxed()
}

impl Listing {
    async fn step(&mut self) -> Option<Result<ListEntry>> {
        loop {
            if let Some(entry) = self.entries.pop_front() {
                self.ask_ahead();
                return Some(Ok(entry));
            }
            match std::mem::replace(&mut self.next, Next::End) {
                Next::End => return None,
                Next::Ask(token) => self.ask(token),
                Next::Asked(token, mut page) => match joined(page.join_next().await) {
                    Ok(page) => self.turn(page),
                    Err(error) => {
                        if error.is_retryable() {
                            self.next = Next::Ask(token);
                        }
                        return Some(Err(error));
                    }
                },
            }
        }
    }

    fn ask(&mut self, token: Option<String>) {
        let mut page = JoinSet::new();
        page.spawn((self.fetch)(token.clone()));
        self.next = Next::Asked(token, page);
    }

    fn turn(&mut self, page: Page) {
        self.entries = page.entries.into();
        self.is_fresh = true;
        if page.next_token.is_some() {
            self.next = Next::Ask(page.next_token);
        }
    }

    /// Asks for the next page, but not before the first entry of this one.
    fn ask_ahead(&mut self) {
        if std::mem::take(&mut self.is_fresh) {
            return;
        }
        if let Next::Ask(token) = &mut self.next {
            let token = token.take();
            self.ask(token);
        }
    }
}

/// The task is aborted only together with the runtime.
fn joined(page: Option<Result<Result<Page>, tokio::task::JoinError>>) -> Result<Page> {
    match page {
        Some(Ok(page)) => page,
        Some(Err(error)) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        _ => Err(Error::Cancelled),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::ObjectUri;
    use std::sync::atomic::{AtomicUsize, Ordering};

    const PAGES: usize = 4;

    fn entry(n: usize) -> ListEntry {
        ListEntry::Prefix(ObjectUri::s3("b", n.to_string()))
    }

    /// Pages of two entries; the second fails once.
    fn fetch(asked: Arc<AtomicUsize>, failures: usize) -> Fetch {
        let failures = Arc::new(AtomicUsize::new(failures));
        Arc::new(move |token| {
            asked.fetch_add(1, Ordering::SeqCst);
            let n: usize = token.map_or(0, |token| token.parse().unwrap());
            let left = failures.clone();
            async move {
                let again = |left: usize| left.checked_sub(1);
                if n == 1
                    && left
                        .fetch_update(Ordering::SeqCst, Ordering::SeqCst, again)
                        .is_ok()
                {
                    return Err(Error::Throttled {
                        uri: "s3://b".into(),
                        offset: None,
                        answer: Box::default(),
                    });
                }
                Ok(Page {
                    entries: vec![entry(2 * n), entry(2 * n + 1)],
                    next_token: (n + 1 < PAGES).then(|| (n + 1).to_string()),
                })
            }
            .boxed()
        })
    }

    #[tokio::test]
    async fn pages_follow_each_other_and_one_is_fetched_ahead() {
        let asked = Arc::new(AtomicUsize::new(0));
        let mut stream = stream(fetch(asked.clone(), 0));
        assert_eq!(asked.load(Ordering::SeqCst), 0);
        assert_eq!(stream.next().await.unwrap().unwrap(), entry(0));
        tokio::task::yield_now().await;
        assert_eq!(
            asked.load(Ordering::SeqCst),
            1,
            "first the work on the first entry"
        );
        assert_eq!(stream.next().await.unwrap().unwrap(), entry(1));
        tokio::task::yield_now().await;
        assert_eq!(
            asked.load(Ordering::SeqCst),
            2,
            "the page at hand and one ahead"
        );
        let rest: Vec<_> = stream.map(Result::unwrap).collect().await;
        assert_eq!(rest, (2..2 * PAGES).map(entry).collect::<Vec<_>>());
        assert_eq!(asked.load(Ordering::SeqCst), PAGES);
    }

    #[tokio::test]
    async fn after_an_error_the_same_page_is_asked_for_again() {
        let all: Vec<_> = stream(fetch(Arc::default(), 1)).collect().await;
        assert_eq!(all.iter().filter(|entry| entry.is_err()).count(), 1);
        let good: Vec<_> = all.into_iter().filter_map(Result::ok).collect();
        assert_eq!(good, (0..2 * PAGES).map(entry).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_lasting_error_ends_the_listing() {
        let fetch: Fetch = Arc::new(|_| async { Err(Error::Cancelled) }.boxed());
        let all: Vec<_> = stream(fetch).collect().await;
        assert!(matches!(all[..], [Err(Error::Cancelled)]));
    }
}
