//! The cache as one file for each object, below one directory.
//!
//! The file system is the index: a look-up opens a file by its name, so that a mount can use what is there at once, however much
//! that is, and no memory is taken for it. Whoever removes files, at whatever moment, has removed cached objects and nothing else.
//! A file is written beside its place and then renamed; nothing is made durable, and what a crash tears is found by whoever decodes it.
//!
//! One thread writes and removes (`worker`), from a bounded `queue`; it begins by adding up what is there. Reads do not wait for it.
//! `shards` knows names, sizes and which files go first.
//!
//! Why not a library: foyer 0.22, which is the well-kept one, was measured. With 2 GiB in it, it is as fast to open (40 ms, 120 ms with
//! blocks of 4 KiB) and to read. But its writer panics, and is gone for good, when the local disk is full; it takes a damaged entry for a miss
//! and so cannot be counted; it holds a file open for every 16 MiB, of which a process may have 1024; it evicts in the order of
//! insertion; and it brings 25 crates with two C libraries. Others (cacache, LSM trees) have no limit of their own.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::{CacheStatus, ObjectCache};
use crate::block::{BlockIndex, Seq};
use crate::error::{Error, ErrorKind, Result};

use shards::Key;
use shared::Shared;

mod origin;
mod queue;
mod shards;
mod shared;
mod worker;

/// How long a read may take before the local disk counts as one that does not answer.
const READ_PATIENCE: Duration = Duration::from_secs(2);
/// How long the end of a cache waits for its thread, which a local disk that does not answer may hold.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// What a [`FileCache`] is to be.
#[derive(Debug, Clone)]
pub struct FileCacheSpec {
    /// The directory, which has to exist and is the cache's alone.
    pub directory: PathBuf,
    /// Where the objects come from: one text for each bucket and disk. What a cache has from elsewhere is thrown away.
    pub origin: String,
    /// The most that the objects may take, in bytes; half of what is free, with what they take already, if that is less.
    pub limit_bytes: u64,
    /// A limit below this is of no use: nothing is kept then.
    pub least_bytes: u64,
    /// The largest object, in bytes: what is larger is none.
    pub object_bytes: u64,
    /// The most memory for objects that wait to be written, in bytes; one object may be larger.
    pub queue_bytes: usize,
    /// The most reads at once.
    pub reads: usize,
    /// How often it is looked whether others need the space, while nothing is kept.
    pub look_every: Duration,
}

/// Objects in files.
#[derive(Debug)]
pub struct FileCache {
    shared: Arc<Shared>,
    reads: Arc<Semaphore>,
    /// Hears of the thread's end.
    ended: Mutex<Receiver<()>>,
}

impl FileCache {
    /// Opens the cache in a directory, and starts its thread, which has `guard` until its end: what keeps other processes away.
    ///
    /// # Errors
    /// `Denied`, `Full`, `System`, of the local disk.
    pub fn open(spec: FileCacheSpec, guard: impl Send + 'static) -> Result<FileCache> {
        origin::settle(&spec.directory, &spec.origin).map_err(|e| failed(&spec.directory, e))?;
        let reads = Arc::new(Semaphore::new(spec.reads.max(1)));
        let directory = spec.directory.clone();
        let shared = Arc::new(Shared::new(spec));
        let (living, ended) = channel::<()>();
        let work = Arc::clone(&shared);
        let run = move || {
            worker::run(&work);
            // The guard goes before whoever waits is told.
            drop(guard);
            drop(living);
        };
        thread::Builder::new()
            .name("cache".to_owned())
            .spawn(run)
            .map_err(|e| failed(&directory, e))?;
        Ok(FileCache {
            shared,
            reads,
            ended: Mutex::new(ended),
        })
    }

    async fn find(&self, key: Key) -> Option<Bytes> {
        if !self.shared.may_have(key) {
            return None;
        }
        let read = async {
            let place = Arc::clone(&self.reads).acquire_owned().await.ok()?;
            let shared = Arc::clone(&self.shared);
            let task = spawn_blocking(move || {
                let found = shared.read(key);
                // Held for as long as the read takes, even if nobody waits for it any more.
                drop(place);
                found
            });
            task.await.ok().flatten()
        };
        match timeout(READ_PATIENCE, read).await {
            Ok(found) => found,
            Err(_) => {
                self.shared.is_silent();
                None
            }
        }
    }
}

#[async_trait]
impl ObjectCache for FileCache {
    fn begin(&self, newest: Seq) {
        self.shared.begin(newest);
    }

    async fn get(&self, index: BlockIndex, version: Seq) -> Option<Bytes> {
        let found = self.find(Key { index, version }).await;
        self.shared.count(found.is_some());
        found
    }

    fn put(&self, index: BlockIndex, version: Seq, object: Bytes) {
        self.shared.put(Key { index, version }, object);
    }

    fn remove(&self, index: BlockIndex, version: Seq) {
        self.shared.queue.remove(Key { index, version });
    }

    fn damaged(&self, index: BlockIndex, version: Seq) {
        self.shared.count_damaged();
        self.shared.queue.remove(Key { index, version });
    }

    fn status(&self) -> CacheStatus {
        self.shared.status()
    }
}

impl Drop for FileCache {
    /// What waits is written; then the thread ends, and with it the guard.
    fn drop(&mut self) {
        self.shared.queue.end();
        // Hears nothing but the end of the other side; past the patience, the thread is left with its guard.
        let _ = self.ended.lock().recv_timeout(END_PATIENCE);
    }
}

fn failed(directory: &Path, cause: std::io::Error) -> Error {
    use std::io::ErrorKind as Io;
    let kind = match cause.kind() {
        Io::PermissionDenied => ErrorKind::Denied,
        Io::StorageFull | Io::QuotaExceeded => ErrorKind::Full,
        _ => ErrorKind::System,
    };
    let text = format!("cannot use the cache in {}", directory.display());
    Error::new(kind, text).with_source(cause)
}
