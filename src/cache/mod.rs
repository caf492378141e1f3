//! The disk tier of the read cache: blocks' objects, exactly as the store has them, kept on this machine's own disk.
//!
//! [`ObjectCache`] is the contract, which a block store asks before it fetches, and tells what it has fetched. It knows
//! blocks by index and version and nothing of keys, logs or commits, so that any layout can use it. [`FileCache`] implements it; only
//! `open` makes one.
//!
//! A cache is a comfort. It may forget anything at any time, and what it answers is not to be believed: whoever asks decodes it as
//! an object that came from the store, and says where that fails ([`ObjectCache::damaged`]). So nothing that happens to its files
//! can make a wrong read. Nothing here fails either: what goes wrong is a miss, one warning, and a line in `status`.

use async_trait::async_trait;
use bytes::Bytes;
use serde::Serialize;

use crate::block::{BlockIndex, Seq};

mod files;

pub use files::{FileCache, FileCacheSpec};

/// Objects of blocks by index and version.
///
/// A version of a block never changes, so that what was once put is good for ever: until the store's own past is another one, see
/// [`ObjectCache::begin`].
#[async_trait]
pub trait ObjectCache: Send + Sync + std::fmt::Debug {
    /// Tells how far the store has come: `newest` is the highest version that there is, at the moment when the disk is mounted. Said
    /// once, before any other call; nothing is answered before.
    ///
    /// What is kept of a higher version is of another past (a bucket that was put back to an older copy) and is never answered.
    fn begin(&self, newest: Seq);

    /// The object of a version of a block, if it is there; not checked in any way. Never waits long: a disk that does not answer
    /// is a miss.
    async fn get(&self, index: BlockIndex, version: Seq) -> Option<Bytes>;

    /// Keeps an object that the store is known to have. Never waits; where it cannot keep up, it does not keep it.
    fn put(&self, index: BlockIndex, version: Seq, object: Bytes);

    /// Forgets a version that will hardly be asked for again, because the block has a newer one. Never waits.
    fn remove(&self, index: BlockIndex, version: Seq);

    /// Forgets what [`ObjectCache::get`] answered, because it does not check out: it was a miss. Never waits. A
    /// [`ObjectCache::put`] that follows is kept.
    fn damaged(&self, index: BlockIndex, version: Seq);

    /// Figures for `status`.
    fn status(&self) -> CacheStatus;
}

/// A cache's figures at one moment; sizes in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CacheStatus {
    /// Where it is.
    pub location: String,
    /// What its objects take, in whole pages of 4 KiB.
    pub bytes: u64,
    /// The limit of `bytes`.
    pub max_bytes: u64,
    /// Objects that were asked for and found, damaged ones not counted.
    pub hits: u64,
    /// Objects that were asked for and not found.
    pub misses: u64,
    /// Objects that were found and did not check out.
    pub damaged: u64,
    /// Objects that were not kept, because the local disk could not keep up or has no room.
    pub dropped: u64,
    /// What last went wrong with the local disk; `None` while nothing has.
    pub error: Option<String>,
}
