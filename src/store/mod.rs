//! Stores of blocks: where the disk's blocks live between mounts, one object per block that is not a hole.
//!
//! [`BlockStore`] is the contract that `disk` builds on; `versioned` (the native layout) implements it. A block store has no blocks in
//! memory, holds no dirty data and never retries a request (`object::retry` does). It may be given a `cache` for objects.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::block::{Block, BlockIndex, Geometry, Seq};
use crate::cache::CacheStatus;
use crate::error::{Error, Result};

pub mod versioned;

/// A mounted disk's blocks: which there are, reading them, and committing changes.
///
/// The map (which blocks are stored, in which version) is known at all times: [`BlockStore::version`] and its kin answer from
/// memory and never wait. Any number of readers may run beside one `commit`; there is one committer.
#[async_trait]
pub trait BlockStore: Send + Sync + std::fmt::Debug {
    /// Size and block size.
    fn geometry(&self) -> Geometry;

    /// Whether a commit becomes visible all at once or not at all. Where `false`, a crash in the middle of one leaves a mix.
    fn commits_are_atomic(&self) -> bool;

    /// Whether this mount may commit. Becomes `true` when another session has fenced this one.
    fn is_read_only(&self) -> bool;

    /// The version of a block that the map names; `None` where the block is a hole.
    fn version(&self, index: BlockIndex) -> Option<Seq>;

    /// The first stored block at or after `from`; `None` where only holes follow.
    fn next_stored(&self, from: BlockIndex) -> Option<BlockIndex>;

    /// The first hole at or after `from`; `None` where all blocks up to the end of the disk are stored.
    fn next_hole(&self, from: BlockIndex) -> Option<BlockIndex>;

    /// How many blocks of a range are stored.
    fn stored_in(&self, range: Range<BlockIndex>) -> u64;

    /// The content of a block in a version that [`BlockStore::version`] named.
    ///
    /// # Errors
    /// `Damaged` where the object is missing, altered or not what its key says, while the map still names this version;
    /// `Superseded` where it is missing because another session has replaced it since this mount's state; `Stale` where the map
    /// names another version by now (ask again with that). Else those of the object client.
    async fn read(&self, index: BlockIndex, version: Seq) -> Result<Block, ReadError>;

    /// Makes changes the store's state: durable, and where [`BlockStore::commits_are_atomic`], all at once. When it returns, the
    /// map names the new versions. Answers the commit's number.
    ///
    /// # Errors
    /// On an error the state is unchanged, as far as anyone can tell, and the caller calls again with the *same* changes, unless
    /// it gives them up first ([`BlockStore::give_up`]): blocks that the failed call has stored are not stored again. (The commit
    /// may still land: the next call finds out.) `Fenced` is final. Others may be mended or pass: every kind but `Fenced` may be
    /// tried again.
    async fn commit(&self, changes: Arc<dyn Changes>) -> Result<Seq>;

    /// Ends a commit that has failed, so that the next one may carry other changes: what it has stored never becomes visible,
    /// not even through requests of it that arrive late. `false` where it may have landed already: then only
    /// [`BlockStore::commit`] with the same changes can find out. `true` also where no commit has failed.
    ///
    /// # Errors
    /// Those of [`BlockStore::commit`]; the commit is then as unfinished as before.
    async fn give_up(&self) -> Result<bool>;

    /// Returns once another session has fenced this one, with the error that every commit gets from then on; waits for ever where
    /// that does not happen. It need not be a commit that finds out.
    async fn until_fenced(&self) -> Error;

    /// Ends the session: what it left to do is done, what it held is free for others. The last call. Nothing committed depends on it.
    ///
    /// # Errors
    /// Those of the object client; the disk is then still held by this session, as another mount will say.
    async fn release(&self) -> Result<()>;

    /// Figures for `status`.
    fn status(&self) -> StoreStatus;
}

/// Why a block could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The map names another version of the block by now.
    #[error("the block has a newer version")]
    Stale,
    /// Everything else.
    #[error(transparent)]
    Failed(#[from] Error),
}

/// How far a journal on a local disk has gone into the state of a bucket. So it can be told whether a journal is the one that the bucket was last
/// written from, or an older copy of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JournalMark {
    /// The journal's id, random.
    pub id: Uuid,
    /// All its records with smaller numbers are in the state, and were durable in the journal before they were.
    pub before: u64,
}

/// What one commit changes: the exact difference between two instants of the disk.
///
/// It never changes once handed out: every call answers the same for ever, so that a request that is sent twice, or that arrives
/// late, carries the same bytes.
#[async_trait]
pub trait Changes: Send + Sync {
    /// The blocks to store, in ascending order, disjoint from [`Changes::holes`].
    fn blocks(&self) -> Vec<BlockIndex>;

    /// The ranges that became holes, in ascending order.
    fn holes(&self) -> Vec<Range<BlockIndex>>;

    /// The content of one of [`Changes::blocks`]; `None` where it has become all zero, and so is a hole. May have to read the base
    /// of a partly written block from the store, and fails as that does: `Damaged` means that these changes cannot be
    /// completed for as long as that block is damaged.
    async fn block(&self, index: BlockIndex) -> Result<Option<Block>>;

    /// How far these changes take the journal that they come from; `None` where they come from none.
    fn journal(&self) -> Option<JournalMark> {
        None
    }

    /// Tells that a block's content is durable under a version (which the map may not name yet), so that it can be cached.
    fn stored(&self, index: BlockIndex, version: Seq, block: &Block);
}

/// A store's figures at one moment.
#[derive(Debug, Clone, Serialize)]
pub struct StoreStatus {
    /// What is mounted, as a user would name it.
    pub location: String,
    /// The disk's id.
    pub disk_id: String,
    /// The label, empty if none.
    pub label: String,
    /// The number of the last record of the log that this mount stands on.
    pub head: u32,
    /// Blocks that are not holes.
    pub stored_blocks: u64,
    /// Bytes of memory that the block map takes.
    pub map_bytes: u64,
    /// When the last commit of this session was acknowledged; `None` before the first.
    #[serde(with = "unix_seconds")]
    pub last_commit: Option<SystemTime>,
    /// How long that commit took.
    #[serde(with = "seconds")]
    pub last_commit_took: Option<Duration>,
    /// Commits of this session.
    pub commits: u64,
    /// Superseded objects that are still to be deleted.
    pub garbage_objects: u64,
    /// Who took the disk over, once this session is fenced.
    pub fenced_by: Option<String>,
    /// The cache of objects on the local disk; `None` without one.
    pub disk_cache: Option<CacheStatus>,
}

/// Serialises an optional moment as seconds since 1970.
mod unix_seconds {
    use std::time::{SystemTime, UNIX_EPOCH};

    pub fn serialize<S: serde::Serializer>(
        value: &Option<SystemTime>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        match value.and_then(|t| t.duration_since(UNIX_EPOCH).ok()) {
            Some(since) => to.serialize_some(&since.as_secs()),
            None => to.serialize_none(),
        }
    }
}

/// Serialises an optional duration as seconds.
mod seconds {
    use std::time::Duration;

    pub fn serialize<S: serde::Serializer>(
        value: &Option<Duration>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(d) => to.serialize_some(&d.as_secs_f64()),
            None => to.serialize_none(),
        }
    }
}
