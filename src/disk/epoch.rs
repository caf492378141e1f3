//! An epoch: the writes between two seals, as the difference that they make to what lies below.

use std::collections::BTreeMap;
use std::ops::Range;

use tokio::time::Instant;

use crate::block::{BlockIndex, Geometry, Span};

use super::dirty::{Base, DirtyBlock, Elsewhere};
use super::ranges::BlockRanges;
use crate::journal::Place;

/// Memory that one range of holes takes; an estimate.
const RANGE_COST: u64 = 64;

/// Dirty blocks, and the blocks that became holes. No block is in both.
#[derive(Debug, Default, Clone)]
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

    /// Takes a write whose bytes lie in the journal.
    pub(super) fn place_at(
        &mut self,
        geometry: Geometry,
        offset: u64,
        place: &Place,
        now: Instant,
    ) {
        for span in geometry.spans(offset, place.len()) {
            self.first_write.get_or_insert(now);
            let part = place.part(span.outer());
            self.change(span.index, |dirty| dirty.place(span.start, part));
        }
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

    /// Has a block, below which there is a hole, stay what it is though something is about to be there.
    pub(super) fn hide(&mut self, index: BlockIndex) {
        match self.blocks.get_mut(&index) {
            Some(dirty) => dirty.hide_below(),
            None => self.holes.insert(index..index.next()),
        }
    }

    /// Takes what was written after it, in the order in which it was.
    pub(super) fn append(&mut self, newer: Epoch) {
        let first_write = self.first_write.or(newer.first_write);
        for range in newer.holes.iter() {
            self.forget(range.clone());
            self.holes.insert(range);
        }
        for (index, dirty) in newer.blocks {
            if dirty.base() == Base::Zeros {
                self.forget(index..index.next());
                self.holes.insert(index..index.next());
            }
            self.change(index, |older| older.append(dirty));
        }
        self.first_write = first_write;
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

    /// Fills `buf` with bytes of one block from `start`, as far as they are in memory; hands the other parts to `elsewhere`.
    pub(super) fn read(
        &self,
        index: BlockIndex,
        start: usize,
        buf: &mut [u8],
        mut elsewhere: impl FnMut(Elsewhere<'_>),
    ) {
        match self.blocks.get(&index) {
            Some(dirty) => dirty.read(start, buf, elsewhere),
            None if self.holes.contains(index) => buf.fill(0),
            None => elsewhere(Elsewhere::Below(buf, start)),
        }
    }

    /// What of a block lies in the journal, and the first byte of each part within the block.
    pub(super) fn kept(&self, index: BlockIndex) -> Vec<(Place, usize)> {
        let dirty = self.blocks.get(&index);
        dirty.map(DirtyBlock::kept).unwrap_or_default()
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

    /// The bytes of the disk that were written or made zero, in no order; ranges may overlap.
    pub(super) fn written(&self, geometry: Geometry) -> impl Iterator<Item = Range<u64>> {
        let blocks = self.blocks.iter().flat_map(move |(index, dirty)| {
            let start = geometry.offset_of(*index);
            let parts = dirty.written(geometry.block_len());
            parts.map(move |part| start + part.start as u64..start + part.end as u64)
        });
        let holes = self.holes.iter();
        let holes =
            holes.map(move |range| geometry.offset_of(range.start)..geometry.offset_of(range.end));
        blocks.chain(holes)
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BLOCK: usize = 16;
    const BLOCKS: u64 = 4;

    #[derive(Debug, Clone)]
    enum Op {
        Write(u64, usize, Vec<u8>),
        Zero(u64, Range<usize>),
        Punch(Range<u64>),
        Forget(Range<u64>),
    }

    fn op() -> impl Strategy<Value = Op> {
        let part = (0..BLOCK).prop_flat_map(|start| (Just(start), start..=BLOCK));
        let blocks = (0..BLOCKS).prop_flat_map(|start| (Just(start), start + 1..=BLOCKS));
        (0..4, 0..BLOCKS, part, blocks, 1u8..).prop_map(
            |(kind, index, (start, end), (from, to), fill)| match kind {
                0 => Op::Write(index, start, vec![fill; end - start]),
                1 => Op::Zero(index, start..end),
                2 => Op::Punch(from..to),
                _ => Op::Forget(from..to),
            },
        )
    }

    fn apply(epoch: &mut Epoch, op: &Op, now: Instant) {
        let span = |index: u64, range: Range<usize>| Span {
            index: BlockIndex(index),
            start: range.start,
            at: 0,
            len: range.len(),
        };
        let blocks = |range: &Range<u64>| BlockIndex(range.start)..BlockIndex(range.end);
        match op {
            Op::Write(index, start, data) => {
                epoch.write(&span(*index, *start..*start + data.len()), data, now);
            }
            Op::Zero(index, range) => epoch.zero_part(&span(*index, range.clone()), now),
            Op::Punch(range) => epoch.punch(blocks(range), now),
            Op::Forget(range) => epoch.forget(blocks(range)),
        }
    }

    /// What it says of every byte and every block: `None` where it says nothing.
    fn seen(epoch: &Epoch) -> Vec<(Option<Says>, Vec<Option<u8>>)> {
        let block = |index| {
            let mut below = vec![false; BLOCK];
            let mut bytes = [0; BLOCK];
            epoch.read(index, 0, &mut bytes, |elsewhere| match elsewhere {
                Elsewhere::Below(part, start) => below[start..start + part.len()].fill(true),
                Elsewhere::Journal(place, at) => panic!("{place:?} at {at}, but all is in memory"),
            });
            let bytes = bytes
                .iter()
                .zip(below)
                .map(|(byte, below)| (!below).then_some(*byte));
            (epoch.says(index), bytes.collect())
        };
        (0..BLOCKS).map(BlockIndex).map(block).collect()
    }

    proptest! {
        /// What `forget` drops is known to be zero below the epoch it is dropped from, so it is never the first thing
        /// that the newer epoch does to a block that the older one knows: the newer one punches that.
        #[test]
        fn an_epoch_and_the_next_one_appended_are_as_one_epoch_of_all_their_writes(
            older in prop::collection::vec(op(), 0..12),
            newer in prop::collection::vec(op().prop_filter("forgets nothing", |op| !matches!(op, Op::Forget(_))), 0..12),
        ) {
            let now = Instant::now();
            let mut both = Epoch::default();
            let (mut first, mut second) = (Epoch::default(), Epoch::default());
            for op in &older {
                apply(&mut first, op, now);
                apply(&mut both, op, now);
            }
            for op in &newer {
                apply(&mut second, op, now);
                apply(&mut both, op, now);
            }
            first.append(second);
            prop_assert_eq!(seen(&first), seen(&both));
            prop_assert_eq!(first.first_write().is_some(), !first.is_empty());
            let each: u64 = first.blocks.values().map(DirtyBlock::cost).sum();
            prop_assert_eq!(first.block_cost, each);
        }
    }
}
