//! A bound on the requests that run at once, with a lane that only reads use.
//!
//! Of N requests at most three quarters are puts, deletes and listings; a burst of uploads therefore never makes a read wait for
//! more than other reads. (With N = 1 there is one lane for all.) Whoever comes first is served first.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{BATCH, ListPage, ObjectClient, PutOutcome};
use crate::error::{Error, ErrorKind, Result};

/// Bounds the requests to the client that it wraps.
#[derive(Debug)]
pub struct Limit {
    inner: Arc<dyn ObjectClient>,
    all: Semaphore,
    /// Taken before a permit of `all`, by everything but reads; never the other way round, so nobody waits in a circle.
    others: Semaphore,
}

impl Limit {
    /// At most `requests` at once; 0 counts as 1.
    pub fn new(inner: Arc<dyn ObjectClient>, requests: usize) -> Limit {
        let requests = requests.clamp(1, Semaphore::MAX_PERMITS);
        Limit {
            inner,
            all: Semaphore::new(requests),
            others: Semaphore::new((requests - requests.div_ceil(4)).max(1)),
        }
    }

    async fn lane(&self) -> Result<SemaphorePermit<'_>> {
        granted(self.all.acquire().await)
    }

    async fn other_lane(&self) -> Result<(SemaphorePermit<'_>, SemaphorePermit<'_>)> {
        let other = granted(self.others.acquire().await)?;
        Ok((other, self.lane().await?))
    }
}

/// The semaphores are never closed; if one were, that is a fault of this program and no reason to die of it.
fn granted<T>(permit: std::result::Result<T, tokio::sync::AcquireError>) -> Result<T> {
    permit.map_err(|error| {
        Error::new(ErrorKind::System, "no more requests are taken").with_source(error)
    })
}

#[async_trait]
impl ObjectClient for Limit {
    async fn get(&self, key: &str) -> Result<Bytes> {
        let _lane = self.lane().await?;
        self.inner.get(key).await
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<()> {
        let _lane = self.other_lane().await?;
        self.inner.put(key, body).await
    }

    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<PutOutcome> {
        let _lane = self.other_lane().await?;
        self.inner.put_if_absent(key, body).await
    }

    async fn delete_many(&self, keys: &[String]) -> Result<()> {
        for batch in keys.chunks(BATCH) {
            let _lane = self.other_lane().await?;
            self.inner.delete_many(batch).await?;
        }
        Ok(())
    }

    async fn list(&self, folder: &str, after: Option<&str>) -> Result<ListPage> {
        let _lane = self.other_lane().await?;
        self.inner.list(folder, after).await
    }

    fn location(&self) -> String {
        self.inner.location()
    }
}
