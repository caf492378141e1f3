//! A mounted disk in the native layout: its map, and who does what to it.
//!
//! `commit` and `upkeep` hold the rest of what it does. Two locks: `log` is held by whoever writes a record (a commit, a
//! heartbeat, the release) for as long as that takes; `view` guards the map and is only ever held for an instant. `log` is taken first.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::block::{Block, BlockIndex, Geometry, Seq};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{BlockStore, Changes, JournalMark, ReadError, StoreStatus};

use super::checkpoint::Garbage;
use super::load::{Loaded, was_changed_since};
use super::map::BlockMap;
use super::mount::describe;
use super::objects::Objects;
use super::pin::Listener;
use super::record::{Digest, Record, SessionId};
use super::sources::Moment;
use super::{MountOptions, Rollback, Sources, Superblock, SuperblockMark, TookOver, keys, upkeep};

/// What a mount begins with.
pub(super) struct Start {
    pub(super) objects: Objects,
    pub(super) superblock: Superblock,
    pub(super) options: MountOptions,
    pub(super) loaded: Loaded,
    /// The newest claim up to there, and its digest; `None` where it is not there.
    pub(super) claim: Option<(Seq, Digest)>,
    /// The newest mark of a journal up to there.
    pub(super) journal: Option<JournalMark>,
    /// An earlier session may have left blocks that it never committed.
    pub(super) leftovers: bool,
    pub(super) took_over: Option<TookOver>,
    pub(super) accepted: Option<Rollback>,
}

/// A mounted disk in the native layout.
#[derive(Debug)]
pub struct VersionedStore {
    pub(super) objects: Objects,
    pub(super) session: SessionId,
    pub(super) sources: Sources,
    /// Blocks of a commit that are stored at once.
    pub(super) requests: usize,
    label: String,
    read_only: bool,
    took_over: Option<TookOver>,
    accepted: Option<Rollback>,
    listener: Listener,
    pub(super) view: RwLock<View>,
    pub(super) log: tokio::sync::Mutex<LogEnd>,
    fenced_by: OnceLock<String>,
    /// Told once `fenced_by` is set.
    fencing: Notify,
    released: AtomicBool,
    pub(super) upkeep_wanted: Arc<Notify>,
    upkeep: Mutex<Option<JoinHandle<()>>>,
    pub(super) commits: AtomicU64,
    pub(super) last_commit: Mutex<Option<(SystemTime, Duration)>>,
}

/// What the newest acknowledged record made of the disk.
#[derive(Debug)]
pub(super) struct View {
    pub(super) map: BlockMap,
    /// The number of that record, and its digest.
    pub(super) head: Seq,
    pub(super) digest: Digest,
    /// The number of this session's newest claim; 0 for a read-only mount.
    pub(super) claim: Seq,
    /// The digest of the newest claim that is not void.
    pub(super) claim_digest: Digest,
    /// Superseded objects by when they may be deleted.
    pub(super) garbage: BTreeMap<Instant, Vec<Garbage>>,
    /// Records up to `head` that are not claims and may still exist.
    pub(super) unpruned: Vec<Seq>,
    /// The newest checkpoint, 0 if none; and all that there are.
    pub(super) checkpoint: Seq,
    pub(super) checkpoints: Vec<Seq>,
    /// Whether the map differs from the newest checkpoint's.
    pub(super) changed: bool,
}

/// The right to write the next record; held by one task at a time.
#[derive(Debug)]
pub(super) struct LogEnd {
    /// A commit that has begun and is not acknowledged. Its number is taken: nothing else may be written before it is, but the
    /// claim that gives it up.
    pub(super) attempt: Option<Attempt>,
    /// A heartbeat, a release, or a claim that gives the attempt up, of which it is not known whether it is in the log: it is put
    /// again before anything else.
    pub(super) pending: Option<(Record, Bytes)>,
    /// When this session last wrote a record.
    pub(super) last_record: Moment,
    /// The newest mark of a journal that the log has, or is about to.
    pub(super) journal: Option<JournalMark>,
}

/// What a commit has done so far.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) seq: Seq,
    /// Blocks that may be stored under that number.
    pub(super) sent: BTreeSet<BlockIndex>,
    /// Blocks that are durable (`true`), or turned out to be all zero (`false`).
    pub(super) done: BTreeMap<BlockIndex, bool>,
    /// The record, once all blocks are: the same bytes for every try.
    pub(super) record: Option<(Record, Bytes)>,
}

impl VersionedStore {
    /// Begins the mount's life: for a writer, with the task that looks after garbage, checkpoints and heartbeats.
    pub(super) fn start(start: Start) -> Arc<Self> {
        let Start {
            objects,
            superblock,
            options,
            loaded,
            claim,
            journal,
            leftovers,
            took_over,
            accepted,
        } = start;
        let Loaded {
            replay,
            checkpoints,
            checkpoint,
            store_time,
        } = loaded;
        let mut garbage: BTreeMap<Instant, Vec<Garbage>> = BTreeMap::new();
        let due_of_old =
            upkeep::due_of_old_garbage(checkpoints.get(&checkpoint).copied(), store_time);
        let due_of_new = Instant::now() + upkeep::GRACE;
        for old in replay.garbage {
            let due = match old.superseded_by <= checkpoint {
                true => due_of_old,
                false => due_of_new,
            };
            garbage.entry(due).or_default().push(old);
        }
        if let Some(cache) = &objects.cache {
            cache.begin(replay.seq);
        }
        let listener = Listener {
            on_head: options.on_head,
            superblock: SuperblockMark::of(&superblock),
        };
        // Where a listing stands for a damaged checkpoint, the digest may be unknown.
        if let Some(claim) = claim.filter(|_| replay.digest != Digest::ZERO) {
            listener.tell((replay.seq, replay.digest), claim);
        }
        let read_only = options.read_only;
        let store = Arc::new(VersionedStore {
            objects,
            session: options.session,
            sources: options.sources.clone(),
            requests: options.requests.max(1),
            label: superblock.label,
            read_only,
            took_over,
            accepted,
            listener,
            view: RwLock::new(View {
                map: replay.map,
                head: replay.seq,
                digest: replay.digest,
                claim: if read_only { Seq(0) } else { replay.seq },
                claim_digest: claim.map_or(Digest::ZERO, |(_, digest)| digest),
                garbage,
                unpruned: replay.unpruned,
                checkpoint,
                checkpoints: checkpoints.into_keys().collect(),
                changed: options.list_blocks,
            }),
            log: tokio::sync::Mutex::new(LogEnd {
                attempt: None,
                pending: None,
                last_record: options.sources.moment(),
                journal,
            }),
            fenced_by: OnceLock::new(),
            fencing: Notify::new(),
            released: AtomicBool::new(false),
            upkeep_wanted: Arc::new(Notify::new()),
            upkeep: Mutex::new(None),
            commits: AtomicU64::new(0),
            last_commit: Mutex::new(None),
        });
        if !read_only {
            let task = tokio::spawn(upkeep::run(
                Arc::downgrade(&store),
                Arc::clone(&store.upkeep_wanted),
                leftovers,
            ));
            *store.upkeep.lock() = Some(task);
        }
        store
    }

    /// From whom this mount took the disk; `None` where it was free.
    pub fn took_over(&self) -> Option<&TookOver> {
        self.took_over.as_ref()
    }

    /// In what the disk does not go on from what this machine had seen, which was accepted; `None` where it does.
    pub fn accepted(&self) -> Option<Rollback> {
        self.accepted
    }

    /// Tells of the record that is now the newest.
    pub(super) fn tell_head(&self) {
        let (head, claim) = {
            let view = self.view.read();
            ((view.head, view.digest), (view.claim, view.claim_digest))
        };
        self.listener.tell(head, claim);
    }

    /// Whether a second writer is kept out. `false` only where the mount's options accept that.
    pub fn fences(&self) -> bool {
        self.objects.fencing
    }

    /// The error that every commit gets once another session has taken the disk over.
    pub(super) fn fenced(&self) -> Option<Error> {
        self.fenced_by.get().map(|by| {
            Error::new(
                ErrorKind::Fenced,
                format!("the disk was taken over by {by}"),
            )
        })
    }

    /// Why a block that the map names is not there: another session has replaced it, or it is lost.
    ///
    /// # Errors
    /// Those of looking at the log: then it is not known why.
    async fn missing(&self, index: BlockIndex, version: Seq) -> Result<Error> {
        let by = if self.read_only {
            let head = self.view.read().head;
            was_changed_since(&self.objects, head)
                .await?
                .then(|| "the disk was written elsewhere since it was mounted here".to_owned())
        } else {
            if self.fenced_by.get().is_none() {
                self.look_for_successor().await?;
            }
            self.fenced().map(|error| error.chain())
        };
        let key = keys::block(index, version);
        Ok(match by {
            Some(by) => self.objects.superseded(index, &key, &by),
            None => self.objects.damaged(index, &key),
        })
    }

    /// Notes that a record of another session stands where this one's next was to be.
    pub(super) fn fence(&self, by: &Record) -> Error {
        let by = self.fenced_by.get_or_init(|| describe(by));
        self.fencing.notify_waiters();
        Error::new(
            ErrorKind::Fenced,
            format!("the disk was taken over by {by}"),
        )
    }
}

#[async_trait]
impl BlockStore for VersionedStore {
    fn geometry(&self) -> Geometry {
        self.objects.geometry
    }

    fn commits_are_atomic(&self) -> bool {
        true
    }

    fn is_read_only(&self) -> bool {
        self.read_only || self.fenced_by.get().is_some()
    }

    fn version(&self, index: BlockIndex) -> Option<Seq> {
        self.view.read().map.get(index)
    }

    fn next_stored(&self, from: BlockIndex) -> Option<BlockIndex> {
        self.view.read().map.next_stored(from)
    }

    fn next_hole(&self, from: BlockIndex) -> Option<BlockIndex> {
        self.view.read().map.next_hole(from)
    }

    fn stored_in(&self, range: Range<BlockIndex>) -> u64 {
        self.view.read().map.stored_in(range)
    }

    async fn read(&self, index: BlockIndex, version: Seq) -> Result<Block, ReadError> {
        let outcome = self.objects.block(index, version).await;
        if !matches!(outcome, Ok(Some(_))) && self.version(index) != Some(version) {
            return Err(ReadError::Stale);
        }
        match outcome? {
            Some(block) => Ok(block),
            None => Err(self.missing(index, version).await?.into()),
        }
    }

    async fn commit(&self, changes: Arc<dyn Changes>) -> Result<Seq> {
        self.commit_changes(changes).await
    }

    async fn give_up(&self) -> Result<bool> {
        self.give_up_commit().await
    }

    async fn until_fenced(&self) -> Error {
        loop {
            let told = self.fencing.notified();
            tokio::pin!(told);
            told.as_mut().enable();
            if let Some(error) = self.fenced() {
                return error;
            }
            told.await;
        }
    }

    async fn release(&self) -> Result<()> {
        if self.read_only || self.released.load(Ordering::Acquire) {
            return Ok(());
        }
        self.write_release().await?;
        self.released.store(true, Ordering::Release);
        let upkeep = self.upkeep.lock().take();
        if let Some(upkeep) = upkeep {
            upkeep.abort();
            // Aborted is how it is meant to end.
            drop(upkeep.await);
        }
        Ok(())
    }

    fn status(&self) -> StoreStatus {
        let view = self.view.read();
        let last = *self.last_commit.lock();
        StoreStatus {
            location: self.objects.client.location(),
            disk_id: self.objects.disk.to_string(),
            label: self.label.clone(),
            head: view.head.0,
            stored_blocks: view.map.len(),
            map_bytes: view.map.memory_bytes(),
            last_commit: last.map(|(at, _)| at),
            last_commit_took: last.map(|(_, took)| took),
            commits: self.commits.load(Ordering::Relaxed),
            garbage_objects: view.garbage.values().map(|g| g.len() as u64).sum(),
            fenced_by: self.fenced_by.get().cloned(),
            disk_cache: self.objects.cache.as_ref().map(|cache| cache.status()),
        }
    }
}

impl Drop for VersionedStore {
    fn drop(&mut self) {
        if let Some(upkeep) = self.upkeep.lock().take() {
            upkeep.abort();
        }
    }
}
