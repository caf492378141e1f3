//! What every block store has to do, whatever its layout. Each case gets a factory of fresh, empty stores of 32 blocks of 4 KiB.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bucketdisk::block::{Block, BlockIndex, Seq};
use bucketdisk::error::{Error, ErrorKind, Result};
use bucketdisk::store::{BlockStore, Changes, ReadError};
use bytes::Bytes;
use parking_lot::Mutex;

/// A block store of which the test can mount the same bucket again.
#[async_trait]
pub trait Home: Send + Sync {
    /// Mounts for writing (the former mount has been released).
    async fn mount(&self) -> Arc<dyn BlockStore>;
}

/// Changes given in full.
#[derive(Debug, Default)]
pub struct Given {
    pub blocks: BTreeMap<BlockIndex, Vec<u8>>,
    pub holes: Vec<Range<BlockIndex>>,
    pub stored: Mutex<Vec<(BlockIndex, Seq)>>,
}

#[async_trait]
impl Changes for Given {
    fn blocks(&self) -> Vec<BlockIndex> {
        self.blocks.keys().copied().collect()
    }

    fn holes(&self) -> Vec<Range<BlockIndex>> {
        self.holes.clone()
    }

    async fn block(&self, index: BlockIndex) -> Result<Option<Block>> {
        Ok(Block::new(Bytes::from(self.blocks[&index].clone())))
    }

    fn stored(&self, index: BlockIndex, version: Seq, _: &Block) {
        self.stored.lock().push((index, version));
    }
}

/// Blocks filled with one byte each, and holes from the first to before the second.
pub fn given(blocks: &[(u64, u8)], holes: &[(u64, u64)]) -> Arc<Given> {
    Arc::new(Given {
        blocks: blocks
            .iter()
            .map(|(index, fill)| (BlockIndex(*index), vec![*fill; 4096]))
            .collect(),
        holes: holes
            .iter()
            .map(|(start, end)| BlockIndex(*start)..BlockIndex(*end))
            .collect(),
        stored: Mutex::new(Vec::new()),
    })
}

/// The first byte of a block; 0 for a hole.
pub async fn first_byte(store: &dyn BlockStore, index: u64) -> u8 {
    let index = BlockIndex(index);
    match store.version(index) {
        None => 0,
        Some(version) => {
            let block = store
                .read(index, version)
                .await
                .expect("a stored block reads");
            assert!(block.bytes().iter().all(|byte| *byte == block.bytes()[0]));
            block.bytes()[0]
        }
    }
}

/// Every case.
pub async fn check(fresh: impl AsyncFn() -> Arc<dyn Home>) {
    a_new_store_is_all_holes(&*fresh().await.mount().await);
    commits_are_read_back(&*fresh().await.mount().await).await;
    holes_are_holes_again(&*fresh().await.mount().await).await;
    a_block_of_zeros_becomes_a_hole(&*fresh().await.mount().await).await;
    an_old_version_is_stale_not_damaged(&*fresh().await.mount().await).await;
    stored_blocks_are_told_with_their_version(&*fresh().await.mount().await).await;
    a_commit_that_was_given_up_leaves_nothing_behind(&*fresh().await).await;
    what_is_committed_survives_release(&*fresh().await).await;
}

fn a_new_store_is_all_holes(store: &dyn BlockStore) {
    assert_eq!(store.next_stored(BlockIndex(0)), None);
    assert_eq!(store.next_hole(BlockIndex(0)), Some(BlockIndex(0)));
    assert_eq!(store.stored_in(BlockIndex(0)..BlockIndex(32)), 0);
    assert_eq!(store.version(BlockIndex(31)), None);
    assert!(!store.is_read_only());
}

async fn commits_are_read_back(store: &dyn BlockStore) {
    store
        .commit(given(&[(0, 1), (5, 2), (31, 3)], &[]))
        .await
        .expect("commits");
    store
        .commit(given(&[(5, 4), (6, 5)], &[]))
        .await
        .expect("commits");
    for (index, fill) in [(0, 1), (5, 4), (6, 5), (31, 3), (7, 0)] {
        assert_eq!(first_byte(store, index).await, fill, "block {index}");
    }
    assert_eq!(store.stored_in(BlockIndex(1)..BlockIndex(32)), 3);
    assert_eq!(store.next_stored(BlockIndex(7)), Some(BlockIndex(31)));
    assert_eq!(store.next_hole(BlockIndex(5)), Some(BlockIndex(7)));
}

async fn holes_are_holes_again(store: &dyn BlockStore) {
    store
        .commit(given(&[(1, 1), (2, 1), (3, 1), (4, 1)], &[]))
        .await
        .expect("commits");
    store
        .commit(given(&[(3, 9)], &[(0, 3), (4, 32)]))
        .await
        .expect("commits");
    for (index, fill) in [(1, 0), (2, 0), (3, 9), (4, 0)] {
        assert_eq!(first_byte(store, index).await, fill, "block {index}");
    }
}

async fn a_block_of_zeros_becomes_a_hole(store: &dyn BlockStore) {
    store.commit(given(&[(1, 1)], &[])).await.expect("commits");
    store
        .commit(given(&[(1, 0), (2, 0)], &[]))
        .await
        .expect("commits");
    assert_eq!(store.version(BlockIndex(1)), None);
    assert_eq!(store.version(BlockIndex(2)), None);
}

async fn an_old_version_is_stale_not_damaged(store: &dyn BlockStore) {
    store.commit(given(&[(1, 1)], &[])).await.expect("commits");
    let old = store.version(BlockIndex(1)).expect("stored");
    store.commit(given(&[(1, 2)], &[])).await.expect("commits");
    match store.read(BlockIndex(1), old).await {
        Ok(block) => assert_eq!(block.bytes()[0], 1, "an old version has its old content"),
        Err(ReadError::Stale) => {}
        Err(ReadError::Failed(error)) => panic!("{error:?}"),
    }
}

async fn stored_blocks_are_told_with_their_version(store: &dyn BlockStore) {
    let changes = given(&[(1, 1), (2, 0), (9, 3)], &[]);
    store
        .commit(Arc::clone(&changes) as Arc<dyn Changes>)
        .await
        .expect("commits");
    let mut told = changes.stored.lock().clone();
    told.sort_by_key(|(index, _)| *index);
    let expected: Vec<(BlockIndex, Seq)> = [1, 9]
        .map(|index| {
            (
                BlockIndex(index),
                store.version(BlockIndex(index)).expect("stored"),
            )
        })
        .to_vec();
    assert_eq!(told, expected);
}

/// Changes of which one block cannot be had.
pub struct Incomplete {
    pub given: Arc<Given>,
    pub missing: BlockIndex,
}

#[async_trait]
impl Changes for Incomplete {
    fn blocks(&self) -> Vec<BlockIndex> {
        self.given.blocks()
    }

    fn holes(&self) -> Vec<Range<BlockIndex>> {
        self.given.holes()
    }

    async fn block(&self, index: BlockIndex) -> Result<Option<Block>> {
        if index == self.missing {
            return Err(Error::new(ErrorKind::Damaged, "the block below is damaged"));
        }
        self.given.block(index).await
    }

    fn stored(&self, index: BlockIndex, version: Seq, block: &Block) {
        self.given.stored(index, version, block);
    }
}

async fn a_commit_that_was_given_up_leaves_nothing_behind(home: &dyn Home) {
    let store = home.mount().await;
    assert!(store.give_up().await.expect("there is nothing to give up"));
    store
        .commit(given(&[(1, 1), (2, 2), (3, 3)], &[]))
        .await
        .expect("commits");
    let incomplete = Incomplete {
        given: given(&[(1, 7), (2, 0), (9, 7), (10, 7)], &[(3, 4)]),
        missing: BlockIndex(10),
    };
    let error = store
        .commit(Arc::new(incomplete))
        .await
        .expect_err("cannot be completed");
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert!(store.give_up().await.expect("gives up"));
    let is_as_before = async |store: &dyn BlockStore| {
        for (index, fill) in [(1, 1), (2, 2), (3, 3), (9, 0), (10, 0)] {
            assert_eq!(first_byte(store, index).await, fill, "block {index}");
        }
    };
    is_as_before(&*store).await;
    // The same block again with other content, and one that is in no other commit.
    store
        .commit(given(&[(1, 8), (11, 4)], &[]))
        .await
        .expect("commits");
    assert_eq!(first_byte(&*store, 1).await, 8);
    store.commit(given(&[(1, 1)], &[])).await.expect("commits");
    is_as_before(&*store).await;
    store.release().await.expect("releases");
    drop(store);
    let store = home.mount().await;
    is_as_before(&*store).await;
    assert_eq!(first_byte(&*store, 11).await, 4);
    store.release().await.expect("releases");
}

async fn what_is_committed_survives_release(home: &dyn Home) {
    let store = home.mount().await;
    store
        .commit(given(&[(1, 1), (2, 2)], &[]))
        .await
        .expect("commits");
    store
        .commit(given(&[(2, 3)], &[(1, 2)]))
        .await
        .expect("commits");
    store.release().await.expect("releases");
    store
        .release()
        .await
        .expect("releasing twice is one release");
    drop(store);
    let store = home.mount().await;
    assert_eq!(first_byte(&*store, 1).await, 0);
    assert_eq!(first_byte(&*store, 2).await, 3);
    store.release().await.expect("releases");
}
