//! A store in memory whose every applied operation is recorded, so that a test can open the bucket as it was at any cut.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bucketdisk::error::{Error, ErrorKind, Result};
use bucketdisk::object::{BATCH, ListPage, ObjectClient, ObjectEntry, PutOutcome};
use bytes::Bytes;
use parking_lot::Mutex;

/// One change to the bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Put(String, Bytes),
    Delete(String),
}

/// The objects of a bucket, shared by all clients of it.
#[derive(Debug, Default, Clone)]
pub struct Bucket {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    objects: BTreeMap<String, (Bytes, SystemTime)>,
    changes: Vec<Change>,
    gets: u64,
    puts: u64,
    lists: u64,
    deletes: u64,
    /// Seconds by which the bucket's clock is ahead of the machine's.
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
        Bucket::default()
    }

    /// A client of the bucket.
    pub fn client(&self) -> Arc<dyn ObjectClient> {
        Arc::new(self.clone())
    }

    /// How many changes were applied so far.
    pub fn changes(&self) -> usize {
        self.inner.lock().changes.len()
    }

    /// Everything that was applied, in order.
    pub fn history(&self) -> Vec<Change> {
        self.inner.lock().changes.clone()
    }

    /// The bucket as it was after the first `changes` changes.
    pub fn cut(&self, changes: usize) -> Bucket {
        let cut = Bucket::new();
        for change in self.inner.lock().changes.iter().take(changes) {
            cut.apply(change.clone());
        }
        cut
    }

    /// Applies a change behind everybody's back.
    pub fn apply(&self, change: Change) {
        let mut inner = self.inner.lock();
        let now = SystemTime::now() + inner.ahead;
        match &change {
            Change::Put(key, body) => {
                inner.objects.insert(key.clone(), (body.clone(), now));
            }
            Change::Delete(key) => {
                inner.objects.remove(key);
            }
        }
        inner.changes.push(change);
    }

    /// The keys there are, in order.
    pub fn keys(&self) -> Vec<String> {
        self.inner.lock().objects.keys().cloned().collect()
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
        let mut inner = self.inner.lock();
        inner.lists += 1;
        let mut entries: Vec<ObjectEntry> = inner
            .objects
            .iter()
            .filter(|(key, _)| {
                key.starts_with(folder) && after.is_none_or(|after| key.as_str() > after)
            })
            .take(BATCH + 1)
            .map(|(key, (body, modified))| ObjectEntry {
                key: key.clone(),
                size_bytes: body.len() as u64,
                modified: *modified,
            })
            .collect();
        let more = entries.len() > BATCH;
        entries.truncate(BATCH);
        Ok(ListPage { entries, more })
    }

    fn location(&self) -> String {
        "memory:test".to_owned()
    }
}
