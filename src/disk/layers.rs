//! Which blocks are data and which are holes, seen through the layers: open epoch over sealed epoch over store.

use std::ops::Range;

use crate::block::BlockIndex;
use crate::store::BlockStore;

use super::epoch::{Epoch, Says};

/// The layers of a disk at one moment.
#[derive(Clone, Copy)]
pub(super) struct Layers<'a> {
    pub(super) open: &'a Epoch,
    pub(super) sealed: Option<&'a Epoch>,
    pub(super) store: &'a dyn BlockStore,
}

impl<'a> Layers<'a> {
    fn epochs(&self) -> impl Iterator<Item = &'a Epoch> {
        std::iter::once(self.open).chain(self.sealed)
    }

    /// Whether a block is data: dirty, or stored and not made a hole since. A dirty block of zeros counts as data until its
    /// commit finds out.
    pub(super) fn is_data(&self, index: BlockIndex) -> bool {
        match self.epochs().find_map(|epoch| epoch.says(index)) {
            Some(says) => says == Says::Data,
            None => self.store.version(index).is_some(),
        }
    }

    /// Whether a range holds anything but holes once what the open epoch says of it is taken away.
    pub(super) fn has_data_below_open(&self, range: Range<BlockIndex>) -> bool {
        let dirty = |epoch: &Epoch| epoch.blocks_in(range.clone()).next().is_some();
        self.sealed.is_some_and(dirty) || self.store.stored_in(range.clone()) > 0
    }

    /// The first block of data at or after `from`.
    pub(super) fn next_data(&self, from: BlockIndex) -> Option<BlockIndex> {
        let end = BlockIndex(self.store.geometry().blocks());
        let mut at = from;
        loop {
            let dirty = self
                .epochs()
                .filter_map(|epoch| epoch.blocks_in(at..end).next())
                .min();
            let next = dirty.into_iter().chain(self.store.next_stored(at)).min()?;
            if self.is_data(next) {
                return Some(next);
            }
            at = self.end_of_hole(next);
        }
    }

    /// Past a block that an epoch says is a hole; further where the same range of holes goes on under nothing dirty.
    fn end_of_hole(&self, index: BlockIndex) -> BlockIndex {
        if let Some(end) = self.open.holes().end_of(index) {
            return end;
        }
        let end = self
            .sealed
            .and_then(|epoch| epoch.holes().end_of(index))
            .unwrap_or(index.next());
        match self
            .open
            .blocks_in(index.next()..end.max(index.next()))
            .next()
        {
            Some(dirty) => dirty,
            None => end,
        }
    }

    /// The first hole at or after `from`.
    pub(super) fn next_hole(&self, from: BlockIndex) -> Option<BlockIndex> {
        let end = BlockIndex(self.store.geometry().blocks());
        let mut at = from;
        while at < end {
            let punched = self
                .epochs()
                .filter_map(|epoch| epoch.holes().next_from(at))
                .min();
            let next = punched.into_iter().chain(self.store.next_hole(at)).min()?;
            if next >= end {
                return None;
            }
            if !self.is_data(next) {
                return Some(next);
            }
            at = next.next();
        }
        None
    }

    /// How many blocks are data.
    pub(super) fn data_blocks(&self) -> u64 {
        let all = BlockIndex(0)..BlockIndex(self.store.geometry().blocks());
        let mut count = self.store.stored_in(all);
        // From the bottom up, each epoch changes the count by what it says of blocks that the layers below it say otherwise of.
        let below_sealed = |index| self.store.version(index).is_some();
        if let Some(sealed) = self.sealed {
            count += sealed
                .blocks()
                .filter(|index| !below_sealed(*index))
                .count() as u64;
            count -= sealed
                .holes()
                .iter()
                .map(|range| self.store.stored_in(range))
                .sum::<u64>();
        }
        let below_open = |index| match self.sealed.and_then(|epoch| epoch.says(index)) {
            Some(says) => says == Says::Data,
            None => below_sealed(index),
        };
        count += self
            .open
            .blocks()
            .filter(|index| !below_open(*index))
            .count() as u64;
        for range in self.open.holes().iter() {
            let mut data = self.store.stored_in(range.clone());
            if let Some(sealed) = self.sealed {
                data += sealed
                    .blocks_in(range.clone())
                    .filter(|index| !below_sealed(*index))
                    .count() as u64;
                data -= sealed
                    .holes()
                    .within(range)
                    .map(|part| self.store.stored_in(part))
                    .sum::<u64>();
            }
            count = count.saturating_sub(data);
        }
        count
    }
}
