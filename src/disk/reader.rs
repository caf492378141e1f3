//! Clean blocks: the memory cache, one fetch per block however many ask for it, and reading ahead of a sequential reader.
//!
//! Everything here is keyed by (block, version). A version never changes, so a cached block is valid for as long as anyone asks
//! for it, and nothing is ever invalidated.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};
use tokio::runtime::Handle;

use crate::block::{Block, BlockIndex, Seq};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{BlockStore, ReadError};

use super::read_ahead::ReadAhead;
use super::sealed::shared_error;

type Key = (BlockIndex, Seq);
type Fetched = Result<Block, Arc<ReadError>>;

/// Memory that a cached block takes beside its content; an estimate.
const ENTRY_COST: u64 = 160;

#[derive(Debug, Clone)]
struct ByLength;

impl Weighter<Key, Block> for ByLength {
    fn weight(&self, _: &Key, block: &Block) -> u64 {
        block.bytes().len() as u64 + ENTRY_COST
    }
}

/// Reads clean blocks from memory or from the store.
pub(super) struct Reader {
    store: Arc<dyn BlockStore>,
    runtime: Handle,
    cache: Cache<Key, Block, ByLength>,
    in_flight: DashMap<Key, Shared<BoxFuture<'static, Fetched>>>,
    ahead: ReadAhead,
    pub(super) hits: AtomicU64,
    pub(super) misses: AtomicU64,
    /// Fetches that found the block damaged or missing, and reads that found the journal damaged.
    pub(super) damaged: AtomicU64,
}

impl Reader {
    pub(super) fn new(store: Arc<dyn BlockStore>, cache_bytes: u64, runtime: Handle) -> Arc<Self> {
        let block_bytes = u64::from(store.geometry().block_bytes());
        let items = usize::try_from((cache_bytes / block_bytes).max(1)).unwrap_or(usize::MAX);
        // A block larger than a shard's share could never be kept, so few blocks mean few shards.
        let options = OptionsBuilder::new()
            .shards((items / 16).clamp(1, 16))
            .estimated_items_capacity(items)
            .weight_capacity(cache_bytes)
            // Half for blocks that were read once: with the default of 3 % what was read ahead is gone before it is asked for.
            .hot_allocation(0.5)
            .build()
            .expect("both capacities are given");
        Arc::new(Reader {
            ahead: ReadAhead::new((cache_bytes / 4).min(8 << 20) / block_bytes),
            cache: Cache::with_options(
                options,
                ByLength,
                DefaultHashBuilder::default(),
                DefaultLifecycle::default(),
            ),
            in_flight: DashMap::new(),
            store,
            runtime,
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            damaged: AtomicU64::new(0),
        })
    }

    pub(super) fn store(&self) -> &Arc<dyn BlockStore> {
        &self.store
    }

    /// A block's content if it is in memory.
    pub(super) fn cached(&self, index: BlockIndex, version: Seq) -> Option<Block> {
        let block = self.cache.get(&(index, version));
        let counter = if block.is_some() {
            &self.hits
        } else {
            &self.misses
        };
        counter.fetch_add(1, Ordering::Relaxed);
        block
    }

    /// Keeps a block's content.
    pub(super) fn keep(&self, index: BlockIndex, version: Seq, block: &Block) {
        self.cache.insert((index, version), block.clone());
    }

    /// Memory that cached blocks take, in bytes.
    pub(super) fn cache_bytes(&self) -> u64 {
        self.cache.weight()
    }

    /// A block's content, fetched if need be. Any number of callers share one fetch and its outcome, good or bad; it goes on
    /// when they all have given up.
    pub(super) async fn fetch(self: &Arc<Self>, index: BlockIndex, version: Seq) -> Fetched {
        match self.cache.get(&(index, version)) {
            Some(block) => Ok(block),
            None => self.start_fetch((index, version)).await,
        }
    }

    fn start_fetch(self: &Arc<Self>, key: Key) -> Shared<BoxFuture<'static, Fetched>> {
        let shared = self.in_flight.entry(key).or_insert_with(|| {
            let reader = Arc::clone(self);
            let task = self.runtime.spawn(async move {
                let fetched = reader.store.read(key.0, key.1).await.map_err(Arc::new);
                match &fetched {
                    Ok(block) => reader.cache.insert(key, block.clone()),
                    Err(error) => {
                        if let ReadError::Failed(error) = &**error {
                            reader.count_if_damaged(error);
                        }
                    }
                }
                reader.in_flight.remove(&key);
                fetched
            });
            let outcome = async move {
                task.await.unwrap_or_else(|gone| {
                    let error = Error::new(ErrorKind::System, "the task of a read has ended")
                        .with_source(gone);
                    Err(Arc::new(ReadError::Failed(error)))
                })
            };
            outcome.boxed().shared()
        });
        shared.clone()
    }

    /// Counts what a read, or a block's completion, has failed with.
    pub(super) fn count_if_damaged(&self, error: &Error) {
        if error.kind() == ErrorKind::Damaged {
            self.damaged.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A block as the store has it; `None` where it is a hole.
    ///
    /// # Errors
    /// Those of [`BlockStore::read`].
    pub(super) async fn newest(self: &Arc<Self>, index: BlockIndex) -> Result<Option<Block>> {
        loop {
            let Some(version) = self.store.version(index) else {
                return Ok(None);
            };
            match self.fetch(index, version).await {
                Ok(block) => return Ok(Some(block)),
                Err(error) => match &*error {
                    ReadError::Stale => {}
                    ReadError::Failed(error) => return Err(shared_error(error)),
                },
            }
        }
    }

    /// Tells that a block is being read, so that what a sequential reader wants next is on its way when it asks.
    pub(super) fn note_read(self: &Arc<Self>, index: BlockIndex) {
        for next in self.ahead.observe(index) {
            if next.0 >= self.store.geometry().blocks() {
                return;
            }
            if let Some(version) = self.store.version(next)
                && self.cache.peek(&(next, version)).is_none()
            {
                drop(self.start_fetch((next, version)));
            }
        }
    }
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader")
            .field("cache_bytes", &self.cache_bytes())
            .finish_non_exhaustive()
    }
}
