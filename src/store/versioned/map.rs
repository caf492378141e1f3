//! The block map: which blocks are stored, and in which version.
//!
//! It is asked for every block that is read or written, and it is the largest thing in memory, so it is a bitmap with the
//! versions of the stored blocks beside it, in order: at most 5 bytes for a stored block, plus 1 bit for every block, plus 4 %
//! of that bit. Blocks are divided into leaves of 8,192; a leaf without stored blocks takes no more than a pointer. The version of
//! a stored block is found by its rank: how many of the leaf's stored blocks come before it.
//!
//! Nothing here knows of objects or records. Not synchronised: the owner locks it.

use std::fmt;
use std::ops::Range;

use crate::block::{BlockIndex, Seq};

mod leaf;

use leaf::{LEAF_BLOCKS, Leaf};

/// A disk with so many blocks that its map does not fit in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "there is not enough memory for the map of {blocks} blocks: a larger block size makes it smaller"
)]
pub struct MapTooLarge {
    /// Blocks of the disk.
    pub blocks: u64,
}

/// Which blocks of a disk are stored, and in which version. Blocks at or beyond the end of the disk are never stored.
#[derive(Clone, PartialEq, Eq)]
pub struct BlockMap {
    blocks: u64,
    stored: u64,
    leaves: Vec<Option<Box<Leaf>>>,
}

impl BlockMap {
    /// The map of a disk of so many blocks, all of them holes.
    ///
    /// # Errors
    /// [`MapTooLarge`]: it takes a pointer per 8,192 blocks even when empty.
    pub fn new(blocks: u64) -> Result<BlockMap, MapTooLarge> {
        let too_large = MapTooLarge { blocks };
        let count = usize::try_from(blocks.div_ceil(LEAF_BLOCKS)).map_err(|_| too_large)?;
        let mut leaves = Vec::new();
        leaves.try_reserve_exact(count).map_err(|_| too_large)?;
        leaves.resize_with(count, || None);
        Ok(BlockMap {
            blocks,
            stored: 0,
            leaves,
        })
    }

    /// Blocks of the disk, holes included.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// The version of a block; `None` where it is a hole.
    pub fn get(&self, index: BlockIndex) -> Option<Seq> {
        let (leaf, within) = split(index);
        self.leaves.get(leaf)?.as_ref()?.get(within)
    }

    /// Notes that a block is stored in a version, and answers the version that it was stored in before.
    ///
    /// # Panics
    /// Where the block lies beyond the end of the disk: whoever reads indices from outside checks them first.
    pub fn insert(&mut self, index: BlockIndex, version: Seq) -> Option<Seq> {
        assert!(index.0 < self.blocks, "{index:?} lies beyond the disk");
        let (leaf, within) = split(index);
        let slot = self
            .leaves
            .get_mut(leaf)
            .expect("the block lies within the disk");
        let before = slot.get_or_insert_default().insert(within, version);
        self.stored += u64::from(before.is_none());
        before
    }

    /// Notes that a block is a hole, and answers the version that it was stored in before.
    pub fn remove(&mut self, index: BlockIndex) -> Option<Seq> {
        let (leaf, within) = split(index);
        let slot = self.leaves.get_mut(leaf)?;
        let before = slot.as_mut()?.remove(within)?;
        self.stored -= 1;
        release_if_empty(slot);
        Some(before)
    }

    /// Notes that all blocks of a range are holes, and tells of each that was stored, in ascending order.
    pub fn remove_range(
        &mut self,
        range: Range<BlockIndex>,
        mut removed: impl FnMut(BlockIndex, Seq),
    ) {
        for (number, within) in self.pieces(range) {
            let Some(slot) = self.leaves.get_mut(number) else {
                return;
            };
            let Some(leaf) = slot else { continue };
            let before = leaf.len();
            leaf.remove_range(within, |at, version| removed(join(number, at), version));
            self.stored -= before - leaf.len();
            release_if_empty(slot);
        }
    }

    /// How many blocks are stored.
    pub fn len(&self) -> u64 {
        self.stored
    }

    /// Whether no block is stored.
    pub fn is_empty(&self) -> bool {
        self.stored == 0
    }

    /// The first stored block at or after `from`; `None` where only holes follow.
    pub fn next_stored(&self, from: BlockIndex) -> Option<BlockIndex> {
        let (first, within) = split(from);
        let leaves = self.leaves.get(first..)?.iter().enumerate();
        for (offset, leaf) in leaves {
            let start = if offset == 0 { within } else { 0 };
            if let Some(at) = leaf.as_ref().and_then(|leaf| leaf.next_stored(start)) {
                return Some(join(first + offset, at));
            }
        }
        None
    }

    /// The first hole at or after `from`; `None` where all blocks up to the end of the disk are stored.
    pub fn next_hole(&self, from: BlockIndex) -> Option<BlockIndex> {
        let (first, within) = split(from);
        let leaves = self.leaves.get(first..)?.iter().enumerate();
        for (offset, leaf) in leaves {
            let start = if offset == 0 { within } else { 0 };
            let hole = leaf
                .as_ref()
                .map_or(Some(start), |leaf| leaf.next_hole(start));
            if let Some(at) = hole {
                return Some(join(first + offset, at)).filter(|index| index.0 < self.blocks);
            }
        }
        None
    }

    /// How many blocks of a range are stored.
    pub fn stored_in(&self, range: Range<BlockIndex>) -> u64 {
        self.pieces(range)
            .filter_map(|(number, within)| {
                Some(self.leaves.get(number)?.as_ref()?.stored_in(within))
            })
            .sum()
    }

    /// The stored blocks and their versions, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = (BlockIndex, Seq)> + '_ {
        let leaves = self.leaves.iter().enumerate();
        leaves
            .filter_map(|(number, leaf)| Some((number, leaf.as_ref()?)))
            .flat_map(|(number, leaf)| {
                leaf.iter()
                    .map(move |(within, version)| (join(number, within), version))
            })
    }

    /// Bytes of memory that the map takes, but for what the allocator adds.
    pub fn memory_bytes(&self) -> u64 {
        let pointers = self.leaves.capacity() * size_of::<Option<Box<Leaf>>>();
        let leaves = self.leaves.iter().flatten();
        let bytes = leaves.map(|leaf| leaf.memory_bytes()).sum::<usize>();
        (size_of::<BlockMap>() + pointers + bytes) as u64
    }

    /// A range cut at the ends of leaves and of the disk: the number of each leaf, and the part within it.
    fn pieces(
        &self,
        range: Range<BlockIndex>,
    ) -> impl Iterator<Item = (usize, Range<usize>)> + use<> {
        let end = range.end.0.min(self.blocks);
        let mut at = range.start.0;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let (leaf, start) = split(BlockIndex(at));
            let length = (LEAF_BLOCKS - start as u64).min(end - at);
            at += length;
            Some((leaf, start..start + length as usize))
        })
    }
}

impl fmt::Debug for BlockMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "BlockMap({} of {} blocks stored)",
            self.stored, self.blocks
        )
    }
}

/// The number of a block's leaf, and its place there.
fn split(index: BlockIndex) -> (usize, usize) {
    let leaf = usize::try_from(index.0 / LEAF_BLOCKS).unwrap_or(usize::MAX);
    (leaf, (index.0 % LEAF_BLOCKS) as usize)
}

/// The index of the block at a place of a leaf.
fn join(leaf: usize, within: usize) -> BlockIndex {
    BlockIndex(leaf as u64 * LEAF_BLOCKS + within as u64)
}

/// Gives a leaf's memory back once it has no stored block.
fn release_if_empty(slot: &mut Option<Box<Leaf>>) {
    if slot.as_ref().is_some_and(|leaf| leaf.len() == 0) {
        *slot = None;
    }
}

#[cfg(test)]
mod tests;
