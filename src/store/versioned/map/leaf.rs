//! One leaf of the block map: 8,192 blocks.

use std::ops::Range;

use bitvec::array::BitArray;
use bitvec::order::Lsb0;

use crate::block::Seq;

/// Blocks of a leaf.
pub(super) const LEAF_BLOCKS: u64 = 8192;

const WORD_BITS: usize = u64::BITS as usize;
const WORDS: usize = LEAF_BLOCKS as usize / WORD_BITS;
/// Words of a region: ranks are kept per region, so that finding one counts the bits of no more words than this.
const REGION_WORDS: usize = 16;
const REGION_BITS: usize = REGION_WORDS * WORD_BITS;
const REGIONS: usize = WORDS / REGION_WORDS;

/// A bitmap of stored blocks, and the versions of these in the order of the blocks.
///
/// `counts[r]` is the number of stored blocks in the regions up to and with `r`, so the last entry is the number of all. Exactly
/// so many leading entries of `versions` mean something; the ones behind are room to grow, at most an eighth after growing and a
/// quarter after shrinking. (A boxed slice and not a `Vec`: a third word would be one per cent of the bitmap.)
#[derive(Clone, Default)]
pub(super) struct Leaf {
    bitmap: BitArray<[u64; WORDS], Lsb0>,
    counts: [u16; REGIONS],
    versions: Box<[Seq]>,
}

impl Leaf {
    /// How many blocks are stored.
    pub(super) fn len(&self) -> u64 {
        self.stored() as u64
    }

    /// The version of a block; `None` where it is a hole.
    pub(super) fn get(&self, within: usize) -> Option<Seq> {
        if self.is_stored(within) {
            self.versions.get(self.rank(within)).copied()
        } else {
            None
        }
    }

    /// Notes a stored block, and answers its version before.
    pub(super) fn insert(&mut self, within: usize, version: Seq) -> Option<Seq> {
        let rank = self.rank(within);
        if self.is_stored(within) {
            return Some(std::mem::replace(&mut self.versions[rank], version));
        }
        let stored = self.stored();
        if stored == self.versions.len() {
            self.resize_for(stored + 1);
        }
        self.versions.copy_within(rank..stored, rank + 1);
        self.versions[rank] = version;
        self.bitmap.set(within, true);
        for count in &mut self.counts[within / REGION_BITS..] {
            *count += 1;
        }
        None
    }

    /// Notes a hole, and answers the block's version before.
    pub(super) fn remove(&mut self, within: usize) -> Option<Seq> {
        let before = self.get(within)?;
        self.remove_range(within..within + 1, |_, _| {});
        Some(before)
    }

    /// Notes a range of holes, and tells of each block that was stored.
    pub(super) fn remove_range(
        &mut self,
        range: Range<usize>,
        mut removed: impl FnMut(usize, Seq),
    ) {
        let ranks = self.rank(range.start)..self.rank(range.end);
        if ranks.is_empty() {
            return;
        }
        let places = self.bitmap[range.clone()].iter_ones();
        for (place, version) in places.zip(&self.versions[ranks.clone()]) {
            removed(range.start + place, *version);
        }
        let stored = self.stored();
        self.versions.copy_within(ranks.end..stored, ranks.start);
        self.bitmap[range.clone()].fill(false);
        self.recount(range.start / REGION_BITS);
        if self.versions.len() > self.stored() + self.stored() / 4 {
            self.resize_for(self.stored());
        }
    }

    /// How many blocks of a range are stored.
    pub(super) fn stored_in(&self, range: Range<usize>) -> u64 {
        (self.rank(range.end) - self.rank(range.start)) as u64
    }

    /// The first stored block at or after `from`.
    pub(super) fn next_stored(&self, from: usize) -> Option<usize> {
        Some(from + self.bitmap[from..].first_one()?)
    }

    /// The first hole at or after `from`.
    pub(super) fn next_hole(&self, from: usize) -> Option<usize> {
        Some(from + self.bitmap[from..].first_zero()?)
    }

    /// The stored blocks and their versions, in ascending order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, Seq)> + '_ {
        self.bitmap.iter_ones().zip(self.versions.iter().copied())
    }

    /// Bytes of memory that the leaf takes.
    pub(super) fn memory_bytes(&self) -> usize {
        size_of::<Leaf>() + size_of_val(&*self.versions)
    }

    fn stored(&self) -> usize {
        usize::from(self.counts[REGIONS - 1])
    }

    fn is_stored(&self, within: usize) -> bool {
        self.bitmap.as_raw_slice()[within / WORD_BITS] >> (within % WORD_BITS) & 1 == 1
    }

    /// How many blocks before this place are stored; the place may be the end.
    fn rank(&self, within: usize) -> usize {
        let region = within / REGION_BITS;
        let before = match region {
            0 => 0,
            _ => usize::from(self.counts[region - 1]),
        };
        let words = self.bitmap.as_raw_slice();
        let word = within / WORD_BITS;
        let whole: u32 = words[region * REGION_WORDS..word]
            .iter()
            .map(|word| word.count_ones())
            .sum();
        let part = match within % WORD_BITS {
            0 => 0,
            bits => (words[word] << (WORD_BITS - bits)).count_ones(),
        };
        before + whole as usize + part as usize
    }

    /// Mends the counts of a region and of those behind it.
    fn recount(&mut self, first_region: usize) {
        let mut count = match first_region {
            0 => 0,
            region => self.counts[region - 1],
        };
        let regions = self.bitmap.as_raw_slice().chunks(REGION_WORDS);
        for (kept, words) in self.counts.iter_mut().zip(regions).skip(first_region) {
            count += words.iter().map(|w| w.count_ones() as u16).sum::<u16>();
            *kept = count;
        }
    }

    /// Makes room for so many versions and an eighth more.
    fn resize_for(&mut self, stored: usize) {
        let room = stored + stored / 8;
        let mut versions = std::mem::take(&mut self.versions).into_vec();
        versions.truncate(room);
        versions.reserve_exact(room - versions.len());
        versions.resize(room, Seq::default());
        self.versions = versions.into_boxed_slice();
    }
}

impl PartialEq for Leaf {
    fn eq(&self, other: &Leaf) -> bool {
        self.bitmap == other.bitmap
            && self.versions[..self.stored()] == other.versions[..other.stored()]
    }
}

impl Eq for Leaf {}
