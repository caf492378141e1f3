//! Caches on the local disk for tests: opened, waited for, and looked into.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bucketdisk::block::{BlockIndex, Seq};
use bucketdisk::cache::{CacheStatus, FileCache, FileCacheSpec, ObjectCache};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;

/// What tests ask for: everything is small.
pub fn spec(directory: &Path) -> FileCacheSpec {
    FileCacheSpec {
        directory: directory.to_owned(),
        origin: "here".to_owned(),
        limit_bytes: 16 << 20,
        least_bytes: 64 << 10,
        object_bytes: 64 << 10,
        queue_bytes: 8 << 20,
        reads: 4,
        look_every: Duration::from_millis(20),
    }
}

/// A cache in files whose end can be waited for.
pub struct Opened {
    pub cache: Arc<FileCache>,
    ended: oneshot::Receiver<()>,
}

impl Opened {
    pub fn new(spec: FileCacheSpec) -> Opened {
        let (guard, ended) = oneshot::channel::<()>();
        let cache = FileCache::open(spec, guard).expect("opens");
        Opened {
            cache: Arc::new(cache),
            ended,
        }
    }

    /// What a mount is given.
    pub fn as_dyn(&self) -> Option<Arc<dyn ObjectCache>> {
        Some(self.cache.clone())
    }

    /// Lets go of the cache, and returns once nobody has it any more and all that was put is written.
    pub async fn end(self) {
        drop(self.cache);
        self.ended.await.expect_err("nothing is ever sent");
    }
}

/// The files of the objects in a cache's directory, in order.
pub fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(shards) = fs::read_dir(directory.join("blocks")) else {
        return found;
    };
    for shard in shards {
        let entries = fs::read_dir(shard.expect("an entry").path()).expect("a folder");
        found.extend(entries.map(|entry| entry.expect("an entry").path()));
    }
    found.sort();
    found
}

/// What a [`Told`] was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    Get(BlockIndex, Seq),
    Put(BlockIndex, Seq, Bytes),
    Remove(BlockIndex, Seq),
    Damaged(BlockIndex, Seq),
}

/// What is answered to a look-up.
pub type Answer = Box<dyn Fn(BlockIndex, Seq) -> Option<Bytes> + Send + Sync>;

/// A cache that answers what a test wants, and keeps what it is told.
pub struct Told {
    answer: Answer,
    calls: Mutex<Vec<Call>>,
}

impl Told {
    pub fn new(answer: Answer) -> Arc<Told> {
        Arc::new(Told {
            answer,
            calls: Mutex::default(),
        })
    }

    pub fn calls(&self) -> Vec<Call> {
        self.calls.lock().clone()
    }
}

impl std::fmt::Debug for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Told")
    }
}

#[async_trait]
impl ObjectCache for Told {
    fn begin(&self, _: Seq) {}

    async fn get(&self, index: BlockIndex, version: Seq) -> Option<Bytes> {
        self.calls.lock().push(Call::Get(index, version));
        (self.answer)(index, version)
    }

    fn put(&self, index: BlockIndex, version: Seq, object: Bytes) {
        self.calls.lock().push(Call::Put(index, version, object));
    }

    fn remove(&self, index: BlockIndex, version: Seq) {
        self.calls.lock().push(Call::Remove(index, version));
    }

    fn damaged(&self, index: BlockIndex, version: Seq) {
        self.calls.lock().push(Call::Damaged(index, version));
    }

    fn status(&self) -> CacheStatus {
        CacheStatus::default()
    }
}
