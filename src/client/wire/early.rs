//! A connection that is opened before there is a request for it.
//!
//! Reading a configuration takes a millisecond, and so does shaking hands: a client that knows its endpoint from the
//! start does both at once, and its first request finds the connection there, or waits for the rest of it.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::conn::Conn;
use super::{Endpoint, Fault};

/// It, or what became of it.
#[derive(Debug)]
pub(super) struct Early {
    endpoint: Endpoint,
    since: Instant,
    conn: JoinHandle<Result<Box<Conn>, Fault>>,
}

impl Early {
    /// Opens it on the runtime that this is called on.
    pub(super) fn open(
        endpoint: Endpoint,
        connecting: impl Future<Output = Result<Box<Conn>, Fault>> + Send + 'static,
    ) -> Self {
        Self {
            endpoint,
            since: Instant::now(),
            conn: tokio::spawn(connecting),
        }
    }

    pub(super) fn is_for(&self, endpoint: &Endpoint) -> bool {
        self.endpoint == *endpoint
    }

    #[cfg(test)]
    pub(super) fn is_there(&self) -> bool {
        self.conn.is_finished()
    }

    /// The connection, or why there is none. `None` when that was too long ago to mean anything, or when the server
    /// has closed it meanwhile: a new one must be opened.
    pub(super) async fn take(self, fresh: Duration) -> Option<Result<Box<Conn>, Fault>> {
        if self.since.elapsed() >= fresh {
            self.conn.abort();
            return None;
        }
        match self.conn.await {
            Ok(Ok(mut conn)) => conn.is_alive().then_some(Ok(conn)),
            Ok(failed) => Some(failed),
            // Its runtime is gone.
            Err(_) => None,
        }
    }
}
