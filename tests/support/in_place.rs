//! A store that keeps one copy of each block and overwrites it: commits are not atomic, and a crash leaves a mix.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bucketdisk::block::{Block, BlockIndex, Geometry, Seq};
use bucketdisk::error::{Error, Result};
use bucketdisk::store::{BlockStore, Changes, ReadError, StoreStatus};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use super::local_disk::LocalDisk;

/// What is stored, across mounts.
#[derive(Debug)]
pub struct Blocks {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    stored: BTreeMap<BlockIndex, (Seq, Block)>,
    last: Seq,
    random: StdRng,
}

impl Blocks {
    /// A disk of holes; the seed decides in which order blocks are overwritten.
    pub fn new(seed: u64) -> Arc<Blocks> {
        Arc::new(Blocks {
            inner: Mutex::new(Inner {
                stored: BTreeMap::new(),
                last: Seq(0),
                random: StdRng::seed_from_u64(seed),
            }),
        })
    }
}

/// A mount of them, by a machine with a local disk: without power it stores nothing any more.
#[derive(Debug)]
pub struct InPlace {
    pub blocks: Arc<Blocks>,
    pub geometry: Geometry,
    pub machine: Arc<LocalDisk>,
}

impl InPlace {
    /// Somebody else may have his turn, and the machine may crash.
    async fn pause(&self) {
        let turns = self.blocks.inner.lock().random.random_range(0..6);
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
    }

    /// The same before something is stored, which takes power.
    async fn pause_to_store(&self) {
        self.pause().await;
        if self.machine.is_without_power() {
            std::future::pending::<()>().await;
        }
    }
}

#[async_trait]
impl BlockStore for InPlace {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn commits_are_atomic(&self) -> bool {
        false
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn version(&self, index: BlockIndex) -> Option<Seq> {
        let inner = self.blocks.inner.lock();
        inner.stored.get(&index).map(|(version, _)| *version)
    }

    fn next_stored(&self, from: BlockIndex) -> Option<BlockIndex> {
        let inner = self.blocks.inner.lock();
        inner.stored.range(from..).next().map(|(index, _)| *index)
    }

    fn next_hole(&self, from: BlockIndex) -> Option<BlockIndex> {
        let inner = self.blocks.inner.lock();
        (from.0..self.geometry.blocks())
            .map(BlockIndex)
            .find(|index| !inner.stored.contains_key(index))
    }

    fn stored_in(&self, range: Range<BlockIndex>) -> u64 {
        self.blocks.inner.lock().stored.range(range).count() as u64
    }

    async fn read(&self, index: BlockIndex, version: Seq) -> Result<Block, ReadError> {
        self.pause().await;
        let inner = self.blocks.inner.lock();
        match inner.stored.get(&index) {
            Some((stored, block)) if *stored == version => Ok(block.clone()),
            _ => Err(ReadError::Stale),
        }
    }

    async fn commit(&self, changes: Arc<dyn Changes>) -> Result<Seq> {
        for range in changes.holes() {
            self.pause_to_store().await;
            let inner = &mut *self.blocks.inner.lock();
            inner.stored.retain(|index, _| !range.contains(index));
        }
        let mut blocks = changes.blocks();
        blocks.shuffle(&mut self.blocks.inner.lock().random);
        for index in blocks {
            self.pause_to_store().await;
            let block = changes.block(index).await?;
            let inner = &mut *self.blocks.inner.lock();
            inner.last = inner.last.next().expect("few commits");
            match block {
                Some(block) => {
                    inner.stored.insert(index, (inner.last, block));
                }
                None => {
                    inner.stored.remove(&index);
                }
            }
        }
        self.pause_to_store().await;
        Ok(self.blocks.inner.lock().last)
    }

    async fn give_up(&self) -> Result<bool> {
        Ok(true)
    }

    async fn until_fenced(&self) -> Error {
        std::future::pending().await
    }

    async fn release(&self) -> Result<()> {
        Ok(())
    }

    fn status(&self) -> StoreStatus {
        let inner = self.blocks.inner.lock();
        StoreStatus {
            location: "in place".to_owned(),
            disk_id: String::new(),
            label: String::new(),
            head: inner.last.0,
            stored_blocks: inner.stored.len() as u64,
            map_bytes: 0,
            last_commit: None,
            last_commit_took: None,
            commits: u64::from(inner.last.0),
            garbage_objects: 0,
            fenced_by: None,
            disk_cache: None,
        }
    }
}
