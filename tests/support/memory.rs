//! A store in memory whose every applied operation is recorded, so that a test can open the bucket as it was at any cut, and as
//! it would be had other requests that were under way been applied too.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bucketdisk::error::{Error, ErrorKind, Result};
use bucketdisk::object::{BATCH, ListPage, ObjectClient, ObjectEntry, PutOutcome};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;

/// One change to the bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Put(String, Bytes),
    Delete(String),
}

/// A change as it was applied.
#[derive(Debug, Clone)]
pub struct Applied {
    pub change: Change,
    /// When, by the bucket's clock.
    pub at: SystemTime,
    /// When, by the runtime's clock.
    pub moment: Instant,
}

/// A request that changes the bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mutation {
    Put(String, Bytes),
    PutIfAbsent(String, Bytes),
    Delete(Vec<String>),
}

/// A mutation on its way to the bucket, as whoever carries it has told.
#[derive(Debug, Clone)]
pub struct Flight {
    pub what: Mutation,
    /// The number of changes that the bucket had seen when it was sent...
    pub sent: usize,
    /// ... and when it had landed, or was known never to land; `None` while it is on its way.
    pub ended: Option<usize>,
}

/// The objects of a bucket, shared by all clients of it.
#[derive(Clone)]
pub struct Bucket {
    inner: Arc<Mutex<Inner>>,
}

type Objects = BTreeMap<Arc<str>, (Bytes, SystemTime)>;

struct Inner {
    objects: Objects,
    applied: Vec<Applied>,
    flights: Vec<Flight>,
    gets: u64,
    puts: u64,
    lists: u64,
    deletes: u64,
    clock: Arc<dyn Fn() -> SystemTime + Send + Sync>,
    /// Seconds by which the bucket's clock is ahead of that.
    ahead: Duration,
}

/// Requests that a bucket has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Requests {
    pub gets: u64,
    pub puts: u64,
    pub lists: u64,
    pub deletes: u64,
}

impl Bucket {
    pub fn new() -> Self {
        Bucket::with_clock(SystemTime::now)
    }

    /// A bucket with a clock of its own.
    pub fn with_clock(clock: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Bucket::of(Objects::new(), Arc::new(clock))
    }

    fn of(objects: Objects, clock: Arc<dyn Fn() -> SystemTime + Send + Sync>) -> Self {
        let inner = Inner {
            objects,
            applied: Vec::new(),
            flights: Vec::new(),
            gets: 0,
            puts: 0,
            lists: 0,
            deletes: 0,
            clock,
            ahead: Duration::ZERO,
        };
        Bucket {
            inner: Arc::new(Mutex::new(inner)),
        }
    }

    /// A client of the bucket.
    pub fn client(&self) -> Arc<dyn ObjectClient> {
        Arc::new(self.clone())
    }

    /// Another bucket with the same objects, and no history.
    pub fn fork(&self) -> Bucket {
        let inner = self.inner.lock();
        Bucket::of(inner.objects.clone(), Arc::clone(&inner.clock))
    }

    /// How many changes were applied so far.
    pub fn changes(&self) -> usize {
        self.inner.lock().applied.len()
    }

    /// Everything that was applied, in order.
    pub fn history(&self) -> Vec<Change> {
        let inner = self.inner.lock();
        inner.applied.iter().map(|a| a.change.clone()).collect()
    }

    /// The same with when.
    pub fn applied(&self) -> Vec<Applied> {
        self.inner.lock().applied.clone()
    }

    /// The bucket as it was after the first `changes` changes.
    pub fn cut(&self, changes: usize) -> Bucket {
        let clock = Arc::clone(&self.inner.lock().clock);
        let cut = Bucket::of(Objects::new(), clock);
        for applied in self.inner.lock().applied.iter().take(changes) {
            cut.apply_at(applied.change.clone(), applied.at);
        }
        cut
    }

    /// Applies a change behind everybody's back.
    pub fn apply(&self, change: Change) {
        let now = self.now();
        self.apply_at(change, now);
    }

    /// Applies a change as if at a moment of the bucket's clock.
    pub fn apply_at(&self, change: Change, at: SystemTime) {
        let mut inner = self.inner.lock();
        match &change {
            Change::Put(key, body) => {
                inner
                    .objects
                    .insert(key.as_str().into(), (body.clone(), at));
            }
            Change::Delete(key) => {
                inner.objects.remove(key.as_str());
            }
        }
        inner.applied.push(Applied {
            change,
            at,
            moment: Instant::now(),
        });
    }

    /// Applies a mutation as a request would.
    pub fn mutate(&self, what: Mutation) {
        match what {
            Mutation::Put(key, body) => self.apply(Change::Put(key, body)),
            Mutation::PutIfAbsent(key, body) => {
                if self.body(&key).is_none() {
                    self.apply(Change::Put(key, body));
                }
            }
            Mutation::Delete(keys) => {
                for key in keys {
                    self.apply(Change::Delete(key));
                }
            }
        }
    }

    /// Notes that a mutation is on its way; answers what to call it when it ends.
    pub fn sent(&self, what: Mutation) -> usize {
        let mut inner = self.inner.lock();
        let sent = inner.applied.len();
        inner.flights.push(Flight {
            what,
            sent,
            ended: None,
        });
        inner.flights.len() - 1
    }

    /// Notes that a mutation has landed, or never will.
    pub fn ended(&self, flight: usize) {
        let mut inner = self.inner.lock();
        inner.flights[flight].ended = Some(inner.applied.len());
    }

    /// How many mutations have been sent so far.
    pub fn flights_begun(&self) -> usize {
        self.inner.lock().flights.len()
    }

    /// All that was ever on its way.
    pub fn flights(&self) -> Vec<Flight> {
        self.inner.lock().flights.clone()
    }

    /// The keys there are, in order.
    pub fn keys(&self) -> Vec<String> {
        let inner = self.inner.lock();
        inner.objects.keys().map(|key| key.to_string()).collect()
    }

    /// The body of an object.
    pub fn body(&self, key: &str) -> Option<Bytes> {
        self.inner
            .lock()
            .objects
            .get(key)
            .map(|(body, _)| body.clone())
    }

    /// Sets the bucket's clock ahead of the machine's.
    pub fn set_ahead(&self, ahead: Duration) {
        self.inner.lock().ahead = ahead;
    }

    fn now(&self) -> SystemTime {
        let inner = self.inner.lock();
        (inner.clock)() + inner.ahead
    }

    /// Requests so far.
    pub fn requests(&self) -> Requests {
        let inner = self.inner.lock();
        Requests {
            gets: inner.gets,
            puts: inner.puts,
            lists: inner.lists,
            deletes: inner.deletes,
        }
    }

    /// A page of a listing, of at most `most` entries, that shows the bucket as it was so long ago.
    pub fn page(&self, folder: &str, after: Option<&str>, most: usize, ago: Duration) -> ListPage {
        let mut inner = self.inner.lock();
        inner.lists += 1;
        if ago.is_zero() {
            return page(&inner.objects, folder, after, most);
        }
        let mut then = Objects::new();
        for applied in &inner.applied {
            if applied.moment.elapsed() < ago {
                break;
            }
            match &applied.change {
                Change::Put(key, body) => {
                    then.insert(key.as_str().into(), (body.clone(), applied.at));
                }
                Change::Delete(key) => {
                    then.remove(key.as_str());
                }
            }
        }
        page(&then, folder, after, most)
    }
}

fn page(objects: &Objects, folder: &str, after: Option<&str>, most: usize) -> ListPage {
    let start = match after.filter(|after| *after >= folder) {
        Some(after) => Bound::Excluded(after),
        None => Bound::Included(folder),
    };
    let mut entries: Vec<ObjectEntry> = objects
        .range::<str, _>((start, Bound::Unbounded))
        .take_while(|(key, _)| key.starts_with(folder))
        .take(most + 1)
        .map(|(key, (body, modified))| ObjectEntry {
            key: key.to_string(),
            size_bytes: body.len() as u64,
            modified: *modified,
        })
        .collect();
    let more = entries.len() > most;
    entries.truncate(most);
    ListPage { entries, more }
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bucket after {} changes", self.changes())
    }
}

#[async_trait]
impl ObjectClient for Bucket {
    async fn get(&self, key: &str) -> Result<Bytes> {
        let mut inner = self.inner.lock();
        inner.gets += 1;
        match inner.objects.get(key) {
            Some((body, _)) => Ok(body.clone()),
            None => Err(Error::new(
                ErrorKind::NotFound,
                format!("no such object: {key}"),
            )),
        }
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<()> {
        self.inner.lock().puts += 1;
        self.apply(Change::Put(key.to_owned(), body));
        Ok(())
    }

    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<PutOutcome> {
        self.inner.lock().puts += 1;
        if self.body(key).is_some() {
            return Ok(PutOutcome::Exists);
        }
        self.apply(Change::Put(key.to_owned(), body));
        Ok(PutOutcome::Created)
    }

    async fn delete_many(&self, keys: &[String]) -> Result<()> {
        self.inner.lock().deletes += keys.len().div_ceil(BATCH) as u64;
        for key in keys {
            self.apply(Change::Delete(key.clone()));
        }
        Ok(())
    }

    async fn list(&self, folder: &str, after: Option<&str>) -> Result<ListPage> {
        Ok(self.page(folder, after, BATCH, Duration::ZERO))
    }

    fn location(&self) -> String {
        "memory:test".to_owned()
    }
}
