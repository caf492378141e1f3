//! The one place where requests are sent again.
//!
//! Only failures that may pass by themselves are retried ([`crate::error::ErrorKind::is_transient`]), after a wait drawn at random
//! between nothing and a limit that doubles from 100 ms to 5 s (full jitter: many clients that failed together do not come back
//! together), and never before the store asked to be asked again, which is believed up to a minute. When the [`Patience`] is used
//! up the last error is handed on, saying how often and how long it was tried.
//!
//! A create-if-absent whose answer was lost may find its own object on the next try and answer `Exists`: that is in the contract,
//! and only the caller can tell whose it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::time::Instant;

use super::{BATCH, ListPage, ObjectClient, PutOutcome, Traffic};
use crate::error::{Error, Result};

/// The longest the first wait can be.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// The longest any wait can be that the store did not ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// The longest wait that a store is granted.
const LONGEST_ASKED: Duration = Duration::from_secs(60);

/// How long failing requests are tried again, measured from their first try. Shared, and settable while requests run: short while
/// starting, when somebody waits for an answer; long afterwards, when data does.
#[derive(Debug, Clone)]
pub struct Patience(Arc<AtomicU64>);

impl Patience {
    /// This long.
    pub fn new(patience: Duration) -> Patience {
        let shared = Patience(Arc::new(AtomicU64::new(0)));
        shared.set(patience);
        shared
    }

    /// This long from now on, for requests under way too, as soon as they fail again.
    pub fn set(&self, patience: Duration) {
        let millis = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        self.0.store(millis, Ordering::Relaxed);
    }

    fn get(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }
}

/// Retries the requests to the client that it wraps.
#[derive(Debug)]
pub struct Retry {
    inner: Arc<dyn ObjectClient>,
    patience: Patience,
    traffic: Arc<Traffic>,
    jitter: Mutex<SmallRng>,
    notices: Mutex<Notices>,
}

impl Retry {
    /// Retries for as long as `patience` says, counts retries in `traffic`; `seed` decides the waits.
    pub fn new(
        inner: Arc<dyn ObjectClient>,
        patience: Patience,
        traffic: Arc<Traffic>,
        seed: u64,
    ) -> Retry {
        Retry {
            inner,
            patience,
            traffic,
            jitter: Mutex::new(SmallRng::seed_from_u64(seed)),
            notices: Mutex::new(Notices::default()),
        }
    }

    /// Makes one request until it succeeds, fails for good, or patience is used up.
    async fn until_done<T, F>(&self, request: impl Fn() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let begun = Instant::now();
        let mut tries = 0;
        loop {
            tries += 1;
            let error = match request().await {
                Err(error) if error.kind().is_transient() => error,
                result => return result,
            };
            let took = begun.elapsed();
            let Some(wait) = self.wait(tries, took, error.retry_after()) else {
                return Err(given_up(error, tries, took));
            };
            self.traffic.note_retry();
            let silent = self.notices.lock().next(Instant::now());
            if let Some(silent) = silent {
                tracing::warn!(
                    error = error.chain(),
                    tries,
                    wait_ms = wait.as_millis(),
                    retries_not_shown = silent,
                    store = self.inner.location(),
                    "request failed, trying again"
                );
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// How long to wait after `tries` tries; `None` where patience does not last for another.
    fn wait(&self, tries: u32, took: Duration, asked: Option<Duration>) -> Option<Duration> {
        let left = self
            .patience
            .get()
            .checked_sub(took)
            .filter(|left| !left.is_zero())?;
        let asked = asked.unwrap_or_default().min(LONGEST_ASKED);
        if asked > left {
            return None;
        }
        let doubled = FIRST_WAIT.saturating_mul(1_u32.checked_shl(tries - 1).unwrap_or(u32::MAX));
        let most = doubled.min(LONGEST_WAIT);
        let drawn = self.jitter.lock().random_range(Duration::ZERO..=most);
        // spread out those too who were all asked for the same wait; the last try comes when patience ends
        let wait = match asked.is_zero() {
            true => drawn,
            false => asked.saturating_add(drawn.min(FIRST_WAIT)),
        };
        Some(wait.min(left))
    }
}

fn given_up(error: Error, tries: u32, took: Duration) -> Error {
    if tries == 1 {
        return error;
    }
    let said = format!(
        "{error} (tried {tries} times in {:.1}s)",
        took.as_secs_f64()
    );
    error.within(said)
}

#[async_trait]
impl ObjectClient for Retry {
    async fn get(&self, key: &str) -> Result<Bytes> {
        self.until_done(|| self.inner.get(key)).await
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<()> {
        self.until_done(|| self.inner.put(key, body.clone())).await
    }

    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<PutOutcome> {
        self.until_done(|| self.inner.put_if_absent(key, body.clone()))
            .await
    }

    async fn delete_many(&self, keys: &[String]) -> Result<()> {
        // batch by batch, so that one that fails does not send the others again
        for batch in keys.chunks(BATCH) {
            self.until_done(|| self.inner.delete_many(batch)).await?;
        }
        Ok(())
    }

    async fn list(&self, folder: &str, after: Option<&str>) -> Result<ListPage> {
        self.until_done(|| self.inner.list(folder, after)).await
    }

    fn location(&self) -> String {
        self.inner.location()
    }
}

/// Which retries are worth a line in the log: the first, then ever fewer while the trouble lasts, whoever runs into it.
#[derive(Debug, Default)]
struct Notices {
    last_retry: Option<Instant>,
    next: Option<Instant>,
    distance: Duration,
    silent: u64,
}

impl Notices {
    const FIRST_DISTANCE: Duration = Duration::from_secs(1);
    const LONGEST_DISTANCE: Duration = Duration::from_secs(5 * 60);
    /// Trouble is over when nothing was retried for this long.
    const QUIET: Duration = Duration::from_secs(60);

    /// Whether to tell of a retry now, and how many were not told of since the last time.
    fn next(&mut self, now: Instant) -> Option<u64> {
        let over = self.last_retry.is_none_or(|last| now - last >= Self::QUIET);
        self.last_retry = Some(now);
        if over {
            self.next = None;
            self.distance = Self::FIRST_DISTANCE;
        }
        if self.next.is_some_and(|next| now < next) {
            self.silent += 1;
            return None;
        }
        self.next = Some(now + self.distance);
        self.distance = self.distance.saturating_mul(2).min(Self::LONGEST_DISTANCE);
        Some(std::mem::take(&mut self.silent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_outage_is_told_of_at_growing_distance_and_a_new_one_at_once() {
        let mut notices = Notices::default();
        let begun = Instant::now();
        let mut told = Vec::new();
        for tenth in 0..600 {
            let now = begun + Duration::from_millis(100 * tenth);
            if let Some(silent) = notices.next(now) {
                told.push((tenth, silent));
            }
        }
        assert_eq!(
            told,
            [(0, 0), (10, 9), (30, 19), (70, 39), (150, 79), (310, 159)]
        );
        let later = begun + Duration::from_secs(600);
        assert!(notices.next(later).is_some());
        assert!(notices.next(later + Duration::from_millis(999)).is_none());
        assert!(notices.next(later + Duration::from_secs(1)).is_some());
    }
}
