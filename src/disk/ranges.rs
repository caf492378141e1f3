//! A set of blocks kept as ranges: a discard of a whole disk is one entry, not one per block.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::block::BlockIndex;

/// Ranges of bytes, in any order and overlapping, as ascending ones that do not touch.
pub(super) fn joined(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_unstable_by_key(|range| range.start);
    ranges.dedup_by(|next, range| {
        let joins = next.start <= range.end;
        if joins {
            range.end = range.end.max(next.end);
        }
        joins
    });
    ranges
}

/// Disjoint, non-adjacent ranges of blocks.
#[derive(Debug, Default, Clone)]
pub(super) struct BlockRanges {
    /// First block to the block after the last.
    ranges: BTreeMap<u64, u64>,
}

impl BlockRanges {
    /// Adds a range, joining what it touches.
    pub(super) fn insert(&mut self, range: Range<BlockIndex>) {
        let (mut start, mut end) = (range.start.0, range.end.0);
        if start >= end {
            return;
        }
        while let Some((&from, &to)) = self.ranges.range(..=end).next_back() {
            if to < start {
                break;
            }
            start = start.min(from);
            end = end.max(to);
            self.ranges.remove(&from);
        }
        self.ranges.insert(start, end);
    }

    /// Takes one block out; answers whether it was in.
    pub(super) fn remove(&mut self, index: BlockIndex) -> bool {
        let Some((&from, &to)) = self.ranges.range(..=index.0).next_back() else {
            return false;
        };
        if to <= index.0 {
            return false;
        }
        self.ranges.remove(&from);
        if from < index.0 {
            self.ranges.insert(from, index.0);
        }
        if index.0 + 1 < to {
            self.ranges.insert(index.0 + 1, to);
        }
        true
    }

    /// The end of the range that holds a block; `None` if none does.
    pub(super) fn end_of(&self, index: BlockIndex) -> Option<BlockIndex> {
        let (_, &to) = self.ranges.range(..=index.0).next_back()?;
        (index.0 < to).then_some(BlockIndex(to))
    }

    /// Whether a block is in.
    pub(super) fn contains(&self, index: BlockIndex) -> bool {
        self.end_of(index).is_some()
    }

    /// The first block at or after `from` that is in.
    pub(super) fn next_from(&self, from: BlockIndex) -> Option<BlockIndex> {
        if self.contains(from) {
            return Some(from);
        }
        self.ranges
            .range(from.0..)
            .next()
            .map(|(&start, _)| BlockIndex(start))
    }

    /// The parts that lie within a range, in order.
    pub(super) fn within(
        &self,
        range: Range<BlockIndex>,
    ) -> impl Iterator<Item = Range<BlockIndex>> {
        let first = match self.ranges.range(..range.start.0).next_back() {
            Some((&from, &to)) if to > range.start.0 => from,
            _ => range.start.0,
        };
        self.ranges
            .range(first..range.end.0.max(first))
            .map(move |(&from, &to)| {
                BlockIndex(from.max(range.start.0))..BlockIndex(to.min(range.end.0))
            })
    }

    /// All ranges, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = Range<BlockIndex>> {
        self.ranges
            .iter()
            .map(|(&from, &to)| BlockIndex(from)..BlockIndex(to))
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// How many ranges there are.
    pub(super) fn count(&self) -> usize {
        self.ranges.len()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ranges_hold_the_same_blocks_as_a_set(ops in prop::collection::vec((any::<bool>(), 0u64..50, 0u64..12), 0..60), from in 0u64..60, len in 0u64..30) {
            let mut ranges = BlockRanges::default();
            let mut set = BTreeSet::new();
            for (add, start, len) in ops {
                if add {
                    ranges.insert(BlockIndex(start)..BlockIndex(start + len));
                    set.extend(start..start + len);
                } else {
                    prop_assert_eq!(ranges.remove(BlockIndex(start)), set.remove(&start));
                }
            }
            let listed: Vec<u64> = ranges.iter().flat_map(|r| r.start.0..r.end.0).collect();
            prop_assert_eq!(&listed, &set.iter().copied().collect::<Vec<_>>());
            let ends: Vec<_> = ranges.iter().collect();
            prop_assert!(ends.windows(2).all(|w| w[0].end < w[1].start), "adjacent ranges are joined");
            prop_assert_eq!(ranges.contains(BlockIndex(from)), set.contains(&from));
            prop_assert_eq!(ranges.next_from(BlockIndex(from)).map(|b| b.0), set.range(from..).next().copied());
            let inside: Vec<u64> = ranges.within(BlockIndex(from)..BlockIndex(from + len)).flat_map(|r| r.start.0..r.end.0).collect();
            prop_assert_eq!(inside, set.range(from..from + len).copied().collect::<Vec<_>>());
        }
    }
}
