//! An epoch: the writes between two seals, as the difference that they make to what lies below.

use std::collections::BTreeMap;
use std::ops::Range;

use tokio::time::Instant;

use crate::block::{BlockIndex, Geometry, Span};

use super::dirty::{Base, DirtyBlock};
use super::ranges::BlockRanges;

/// Memory that one range of holes takes; an estimate.
const RANGE_COST: u64 = 64;

/// Dirty blocks, and the blocks that became holes. No block is in both.
#[derive(Debug, Default)]
pub(super) struct Epoch {
    blocks: BTreeMap<BlockIndex, DirtyBlock>,
    holes: BlockRanges,
    block_cost: u64,
    first_write: Option<Instant>,
}

impl Epoch {
    /// Whether nothing was written in it.
    pub(super) fn is_empty(&self) -> bool {
        self.blocks.is_empty() && self.holes.is_empty()
    }

    /// Memory that it takes, in bytes.
    pub(super) fn cost(&self) -> u64 {
        self.block_cost + self.holes.count() as u64 * RANGE_COST
    }

    /// When the first of its writes was taken; `None` while it is empty.
    pub(super) fn first_write(&self) -> Option<Instant> {
        self.first_write
    }

    /// Takes a write within one block.
    pub(super) fn write(&mut self, span: &Span, data: &[u8], now: Instant) {
        self.first_write.get_or_insert(now);
        self.change(span.index, |dirty| dirty.write(span.start, data));
    }

    /// Makes a part of one block read as zeros.
    pub(super) fn zero_part(&mut self, span: &Span, now: Instant) {
        self.first_write.get_or_insert(now);
        self.change(span.index, |dirty| dirty.zero(span.within()));
    }

    /// Makes whole blocks holes.
    pub(super) fn punch(&mut self, range: Range<BlockIndex>, now: Instant) {
        self.forget(range.clone());
        self.first_write.get_or_insert(now);
        self.holes.insert(range);
    }

    /// Drops what was written to whole blocks, whose content below is zero already.
    pub(super) fn forget(&mut self, range: Range<BlockIndex>) {
        let gone: Vec<BlockIndex> = self.blocks.range(range).map(|(index, _)| *index).collect();
        for index in gone {
            if let Some(dirty) = self.blocks.remove(&index) {
                self.block_cost -= dirty.cost();
            }
        }
        if self.is_empty() {
            self.first_write = None;
        }
    }

    fn change(&mut self, index: BlockIndex, change: impl FnOnce(&mut DirtyBlock)) {
        let holes = &mut self.holes;
        let block_cost = &mut self.block_cost;
        let dirty = self.blocks.entry(index).or_insert_with(|| {
            let base = if holes.remove(index) {
                Base::Zeros
            } else {
                Base::Below
            };
            let dirty = DirtyBlock::new(base);
            *block_cost += dirty.cost();
            dirty
        });
        *block_cost -= dirty.cost();
        change(dirty);
        *block_cost += dirty.cost();
    }

    /// What the epoch says of a block as a whole; `None` if it says nothing.
    pub(super) fn says(&self, index: BlockIndex) -> Option<Says> {
        if self.blocks.contains_key(&index) {
            Some(Says::Data)
        } else if self.holes.contains(index) {
            Some(Says::Hole)
        } else {
            None
        }
    }

    /// Fills `buf` with bytes of one block from `start`, handing the parts that it knows nothing of to `below` (part, first
    /// byte in the block).
    pub(super) fn read(
        &self,
        index: BlockIndex,
        start: usize,
        buf: &mut [u8],
        mut below: impl FnMut(&mut [u8], usize),
    ) {
        match self.blocks.get(&index) {
            Some(dirty) => dirty.read(start, buf, |part, range| below(part, range.start)),
            None if self.holes.contains(index) => buf.fill(0),
            None => below(buf, start),
        }
    }

    /// Whether the content of a dirty block depends on what lies below the epoch.
    pub(super) fn needs_below(&self, index: BlockIndex, geometry: Geometry) -> bool {
        self.blocks
            .get(&index)
            .is_none_or(|dirty| !dirty.hides_below(geometry.block_len()))
    }

    /// The dirty blocks, ascending.
    pub(super) fn blocks(&self) -> impl Iterator<Item = BlockIndex> {
        self.blocks.keys().copied()
    }

    /// How many blocks are dirty.
    pub(super) fn block_count(&self) -> u64 {
        self.blocks.len() as u64
    }

    /// The dirty blocks of a range, ascending.
    pub(super) fn blocks_in(&self, range: Range<BlockIndex>) -> impl Iterator<Item = BlockIndex> {
        self.blocks.range(range).map(|(index, _)| *index)
    }

    /// The ranges that became holes.
    pub(super) fn holes(&self) -> &BlockRanges {
        &self.holes
    }
}

/// What an epoch says of a block as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Says {
    /// It was written to.
    Data,
    /// It became a hole.
    Hole,
}
