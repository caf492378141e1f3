//! What readers and the thread that writes share: the files, the figures, and what has gone wrong.

use std::fs::{File, FileTimes};
use std::io::{self, Read};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use parking_lot::Mutex;
use tracing::warn;

use super::FileCacheSpec;
use super::origin::objects;
use super::queue::Queue;
use super::shards::{Key, Shards};
use crate::block::Seq;
use crate::cache::CacheStatus;

/// How long the local disk is left alone after it has failed.
const REST: Duration = Duration::from_secs(60);
/// How old an access time has to be to be set anew.
const FRESH: Duration = Duration::from_secs(600);

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) spec: FileCacheSpec,
    pub(super) shards: Shards,
    pub(super) queue: Queue,
    newest: OnceLock<Seq>,
    /// Set once the thread has looked at everything, and what is of another past is gone.
    pub(super) looked: AtomicBool,
    /// What the objects may take; final once `looked` is set.
    pub(super) limit: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
    damaged: AtomicU64,
    dropped: AtomicU64,
    trouble: Mutex<Trouble>,
}

#[derive(Debug, Default)]
struct Trouble {
    /// What last went wrong.
    text: Option<String>,
    /// Until when nothing is read, and nothing written.
    no_reads: Option<Instant>,
    no_writes: Option<Instant>,
}

impl Shared {
    pub(super) fn new(spec: FileCacheSpec) -> Shared {
        Shared {
            shards: Shards::new(objects(&spec.directory)),
            queue: Queue::new(spec.queue_bytes),
            newest: OnceLock::new(),
            looked: AtomicBool::new(false),
            limit: AtomicU64::new(spec.limit_bytes),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            damaged: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            trouble: Mutex::default(),
            spec,
        }
    }

    pub(super) fn begin(&self, newest: Seq) {
        if self.newest.set(newest).is_ok() {
            self.queue.begin(newest);
        }
    }

    /// Whether it makes sense to look for an object: not for one of another past, nor on a disk that does not answer.
    pub(super) fn may_have(&self, key: Key) -> bool {
        let known = self
            .newest
            .get()
            .is_some_and(|newest| key.version <= *newest || self.looked.load(Ordering::Acquire));
        known && !is_resting(&self.trouble.lock().no_reads)
    }

    pub(super) fn put(&self, key: Key, object: Bytes) {
        let resting = is_resting(&self.trouble.lock().no_writes);
        if resting || !self.queue.put(key, object) {
            self.count_dropped();
        }
    }

    /// Reads a file as a whole; `None` where there is none. Waits for the local disk.
    pub(super) fn read(&self, key: Key) -> Option<Bytes> {
        match self.read_file(key) {
            // A crash has come before its content. What is too large is none of ours.
            Ok(object) if object.is_empty() => {
                self.queue.remove(key);
                None
            }
            Ok(object) => Some(object),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                self.note("read", &error);
                self.queue.remove(key);
                None
            }
        }
    }

    fn read_file(&self, key: Key) -> io::Result<Bytes> {
        let mut file = File::open(self.shards.path(key))?;
        let metadata = file.metadata()?;
        let length = metadata.len();
        let capacity = match usize::try_from(length) {
            Ok(capacity) if length <= self.spec.object_bytes => capacity,
            _ => return Ok(Bytes::new()),
        };
        let mut object = Vec::with_capacity(capacity);
        (&mut file).take(length).read_to_end(&mut object)?;
        let (kept, used) = (metadata.modified()?, metadata.accessed()?);
        let now = SystemTime::now();
        if used <= kept || now.duration_since(used).is_ok_and(|age| age > FRESH) {
            // File systems are mounted with relatime or noatime. Where it cannot be set, the file looks older than it is.
            let _ = file.set_times(FileTimes::new().set_accessed(now));
        }
        Ok(object.into())
    }

    /// Notes that the local disk failed, and lets the writing rest. Warns the first time.
    pub(super) fn write_failed(&self, verb: &str, error: &io::Error) {
        self.note(verb, error);
        self.trouble.lock().no_writes = Some(Instant::now() + REST);
    }

    /// Notes that the local disk does not answer, and lets it rest. Warns the first time.
    pub(super) fn is_silent(&self) {
        self.note("read", &io::ErrorKind::TimedOut.into());
        let until = Some(Instant::now() + REST);
        let mut trouble = self.trouble.lock();
        (trouble.no_reads, trouble.no_writes) = (until, until);
    }

    /// Notes that something has failed. Warns the first time.
    pub(super) fn note(&self, verb: &str, error: &io::Error) {
        self.tell(format!(
            "cannot {verb} the cache in {}: {error}",
            self.spec.directory.display()
        ));
    }

    /// Shows what is wrong, and warns of it the first time that anything is.
    pub(super) fn tell(&self, text: String) {
        let mut trouble = self.trouble.lock();
        if trouble.text.is_none() {
            warn!("{text}; blocks are fetched from the store instead");
        }
        trouble.text = Some(text);
    }

    pub(super) fn count(&self, found: bool) {
        let figure = if found { &self.hits } else { &self.misses };
        figure.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_damaged(&self) {
        self.damaged.fetch_add(1, Ordering::Relaxed);
        self.misses.fetch_add(1, Ordering::Relaxed);
        self.hits.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn count_dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn status(&self) -> CacheStatus {
        let read = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        CacheStatus {
            location: self.spec.directory.display().to_string(),
            bytes: self.shards.bytes(),
            max_bytes: read(&self.limit),
            hits: read(&self.hits),
            misses: read(&self.misses),
            damaged: read(&self.damaged),
            dropped: read(&self.dropped),
            error: self.trouble.lock().text.clone(),
        }
    }
}

fn is_resting(until: &Option<Instant>) -> bool {
    until.is_some_and(|until| Instant::now() < until)
}
