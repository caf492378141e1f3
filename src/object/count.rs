//! Figures of what goes to the store and comes back: [`Count`] takes them, [`Traffic`] holds them, `status` shows them.
//!
//! It stands closest to the store, below `retry` and `limit`, so that it counts, and logs, what is really sent. It changes nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use serde::Serialize;
use tracing::debug;

use super::{BATCH, ListPage, ObjectClient, PutOutcome};
use crate::error::{ErrorKind, Result};

/// Running figures, shared between those who count and those who show.
#[derive(Debug, Default)]
pub struct Traffic {
    gets: AtomicU64,
    puts: AtomicU64,
    conditional_puts: AtomicU64,
    deletes: AtomicU64,
    deleted_objects: AtomicU64,
    lists: AtomicU64,
    errors: AtomicU64,
    retries: AtomicU64,
    bytes_up: AtomicU64,
    bytes_down: AtomicU64,
    in_flight: AtomicU64,
    last: Mutex<Last>,
}

#[derive(Debug, Default, Clone)]
struct Last {
    success: Option<SystemTime>,
    error: Option<String>,
}

impl Traffic {
    /// The figures now. They are read one by one, so they may differ by what happens meanwhile.
    pub fn snapshot(&self) -> TrafficSnapshot {
        let read = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        let last = self.last.lock().clone();
        TrafficSnapshot {
            gets: read(&self.gets),
            puts: read(&self.puts),
            conditional_puts: read(&self.conditional_puts),
            deletes: read(&self.deletes),
            deleted_objects: read(&self.deleted_objects),
            lists: read(&self.lists),
            errors: read(&self.errors),
            retries: read(&self.retries),
            bytes_up: read(&self.bytes_up),
            bytes_down: read(&self.bytes_down),
            in_flight: read(&self.in_flight),
            last_success: last
                .success
                .and_then(|at| at.duration_since(UNIX_EPOCH).ok())
                .map(|since| since.as_secs()),
            last_error: last.error,
        }
    }

    /// Counts a request that is about to be sent again.
    pub(super) fn note_retry(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    /// Runs one request under the figures. An absent object is an answer like any other, not an error.
    async fn during<T>(
        &self,
        operation: &'static str,
        key: &str,
        request: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let begun = Instant::now();
        let under_way = UnderWay::new(self);
        let result = request.await;
        drop(under_way);
        let took = begun.elapsed();
        match &result {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                let error = error.chain();
                debug!(operation, key, ?took, error, "store request failed");
                self.errors.fetch_add(1, Ordering::Relaxed);
                self.last.lock().error = Some(error);
            }
            _ => {
                debug!(operation, key, ?took, "store request");
                self.last.lock().success = Some(SystemTime::now());
            }
        }
        result
    }
}

/// One request in flight, for as long as it lives: given up counts as ended.
struct UnderWay<'a>(&'a Traffic);

impl<'a> UnderWay<'a> {
    fn new(traffic: &'a Traffic) -> Self {
        traffic.in_flight.fetch_add(1, Ordering::Relaxed);
        UnderWay(traffic)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The figures at one moment. Requests are counted when they are sent, bytes when they are acknowledged or received.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct TrafficSnapshot {
    /// Requests for a body.
    pub gets: u64,
    /// Unconditional puts.
    pub puts: u64,
    /// Puts of the create-if-absent kind.
    pub conditional_puts: u64,
    /// Delete requests, each of up to [`BATCH`] objects.
    pub deletes: u64,
    /// Objects in delete requests that succeeded.
    pub deleted_objects: u64,
    /// Pages of listings.
    pub lists: u64,
    /// Requests that failed; asking for an object that is not there is no failure.
    pub errors: u64,
    /// Requests that were sent again after a failure.
    pub retries: u64,
    /// Bytes of bodies stored.
    pub bytes_up: u64,
    /// Bytes of bodies received.
    pub bytes_down: u64,
    /// Requests under way.
    pub in_flight: u64,
    /// When the store last answered a request, in seconds since 1970; `None` before the first.
    pub last_success: Option<u64>,
    /// What the last failure said; `None` before the first.
    pub last_error: Option<String>,
}

/// Counts the requests to the client that it wraps.
#[derive(Debug)]
pub struct Count {
    inner: Arc<dyn ObjectClient>,
    traffic: Arc<Traffic>,
}

impl Count {
    /// Counts into `traffic`.
    pub fn new(inner: Arc<dyn ObjectClient>, traffic: Arc<Traffic>) -> Count {
        Count { inner, traffic }
    }
}

fn add(figure: &AtomicU64, amount: usize) {
    figure.fetch_add(amount as u64, Ordering::Relaxed);
}

#[async_trait]
impl ObjectClient for Count {
    async fn get(&self, key: &str) -> Result<Bytes> {
        add(&self.traffic.gets, 1);
        let body = self.traffic.during("get", key, self.inner.get(key)).await?;
        add(&self.traffic.bytes_down, body.len());
        Ok(body)
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<()> {
        let len = body.len();
        add(&self.traffic.puts, 1);
        let put = self.inner.put(key, body);
        self.traffic.during("put", key, put).await?;
        add(&self.traffic.bytes_up, len);
        Ok(())
    }

    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<PutOutcome> {
        let len = body.len();
        add(&self.traffic.conditional_puts, 1);
        let put = self.inner.put_if_absent(key, body);
        let outcome = self.traffic.during("create", key, put).await?;
        if outcome == PutOutcome::Created {
            add(&self.traffic.bytes_up, len);
        }
        Ok(outcome)
    }

    async fn delete_many(&self, keys: &[String]) -> Result<()> {
        for batch in keys.chunks(BATCH) {
            add(&self.traffic.deletes, 1);
            let first = batch.first().map_or("", String::as_str);
            let deletion = self.inner.delete_many(batch);
            self.traffic.during("delete", first, deletion).await?;
            add(&self.traffic.deleted_objects, batch.len());
        }
        Ok(())
    }

    async fn list(&self, folder: &str, after: Option<&str>) -> Result<ListPage> {
        add(&self.traffic.lists, 1);
        let page = self.inner.list(folder, after);
        self.traffic.during("list", folder, page).await
    }

    fn location(&self) -> String {
        self.inner.location()
    }
}
