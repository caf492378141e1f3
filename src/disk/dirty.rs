//! The dirty part of one block: what was written to it since the last seal, without having read what it was written over.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::journal::Place;

/// Memory that one piece takes beside its bytes: its place in the tree and the allocator's share. An estimate, on the safe
/// side, so that a flood of tiny writes is stopped by the dirty limit too.
pub(super) const PIECE_COST: u64 = 96;

/// What lies under the written parts of a dirty block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Base {
    /// The block as the layer below has it.
    Below,
    /// Zeros: the block became a hole in this epoch before it was written to.
    Zeros,
}

/// Bytes that a reader has to look for in another place than memory.
#[derive(Debug)]
pub(super) enum Elsewhere<'a> {
    /// What was not written: a part of the buffer, and the first byte of it within the block.
    Below(&'a mut [u8], usize),
    /// What lies in the journal, and the first byte of it within the block. Its part of the buffer is left as it was.
    Journal(&'a Place, usize),
}

/// A run of bytes with one origin. Where it begins is its key in the block's map.
#[derive(Debug, Clone)]
enum Piece {
    /// In memory.
    Data(Box<[u8]>),
    /// In the journal.
    Kept(Place),
    Zeros(usize),
}

impl Piece {
    fn len(&self) -> usize {
        match self {
            Piece::Data(bytes) => bytes.len(),
            Piece::Kept(place) => place.len(),
            Piece::Zeros(len) => *len,
        }
    }

    /// Memory that it takes.
    fn cost(&self) -> u64 {
        match self {
            Piece::Data(bytes) => bytes.len() as u64 + PIECE_COST,
            Piece::Kept(_) | Piece::Zeros(_) => PIECE_COST,
        }
    }

    /// A part of it, in bytes from its beginning.
    fn part(&self, range: Range<usize>) -> Piece {
        match self {
            Piece::Data(bytes) => Piece::Data(bytes[range].into()),
            Piece::Kept(place) => Piece::Kept(place.part(range)),
            Piece::Zeros(_) => Piece::Zeros(range.len()),
        }
    }
}

/// The written parts of one block: disjoint pieces by their first byte. Data in memory is overwritten in place where it lies already,
/// so a block that is written to a thousand times holds each byte once.
#[derive(Debug, Clone)]
pub(super) struct DirtyBlock {
    base: Base,
    pieces: BTreeMap<usize, Piece>,
    covered: usize,
    cost: u64,
}

impl DirtyBlock {
    /// A block of which nothing is written yet.
    pub(super) fn new(base: Base) -> Self {
        DirtyBlock {
            base,
            pieces: BTreeMap::new(),
            covered: 0,
            cost: PIECE_COST,
        }
    }

    /// Memory that the block takes, in bytes.
    pub(super) fn cost(&self) -> u64 {
        self.cost
    }

    /// What lies under the written parts.
    pub(super) fn base(&self) -> Base {
        self.base
    }

    /// Has the block hide what lies below.
    pub(super) fn hide_below(&mut self) {
        self.base = Base::Zeros;
    }

    /// Takes what was written after it to the same block.
    pub(super) fn append(&mut self, newer: DirtyBlock) {
        for (from, piece) in newer.pieces {
            match piece {
                Piece::Data(bytes) => self.write(from, &bytes),
                Piece::Kept(place) => self.place(from, place),
                Piece::Zeros(len) => self.zero(from..from + len),
            }
        }
    }

    /// Whether nothing of what lies below shows through in a block of `block_len` bytes.
    pub(super) fn hides_below(&self, block_len: usize) -> bool {
        self.base == Base::Zeros || self.covered == block_len
    }

    /// What lies in the journal, and where in the block.
    pub(super) fn kept(&self) -> Vec<(Place, usize)> {
        let pieces = self.pieces.iter();
        let kept = pieces.filter_map(|(from, piece)| match piece {
            Piece::Kept(place) => Some((place.clone(), *from)),
            _ => None,
        });
        kept.collect()
    }

    /// The bytes that do not come from below, in a block of `block_len`.
    pub(super) fn written(&self, block_len: usize) -> impl Iterator<Item = Range<usize>> {
        let whole = (self.base == Base::Zeros).then_some(0..block_len);
        let pieces = self.pieces.iter();
        let parts = pieces.map(|(start, piece)| *start..*start + piece.len());
        whole.into_iter().chain(parts)
    }

    /// Takes bytes at `start`.
    pub(super) fn write(&mut self, start: usize, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        let range = start..start + data.len();
        self.cut(&range, |piece| !matches!(piece, Piece::Data(_)));
        let mut gaps = Vec::new();
        let mut at = range.start;
        for (from, piece) in self.pieces_in_mut(&range) {
            if let Piece::Data(bytes) = piece {
                let overlap = range.start.max(from)..range.end.min(from + bytes.len());
                if at < overlap.start {
                    gaps.push(at..overlap.start);
                }
                bytes[overlap.start - from..overlap.end - from]
                    .copy_from_slice(&data[overlap.start - start..overlap.end - start]);
                at = overlap.end;
            }
        }
        if at < range.end {
            gaps.push(at..range.end);
        }
        for gap in gaps {
            self.insert(
                gap.start,
                Piece::Data(data[gap.start - start..gap.end - start].into()),
            );
        }
    }

    /// Takes bytes at `start` that lie in the journal.
    pub(super) fn place(&mut self, start: usize, place: Place) {
        if place.is_empty() {
            return;
        }
        self.cut(&(start..start + place.len()), |_| true);
        self.insert(start, Piece::Kept(place));
    }

    /// Makes bytes read as zeros. Data that is wholly covered gives its memory back.
    pub(super) fn zero(&mut self, range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        self.cut(&range, |piece| !matches!(piece, Piece::Data(_)));
        let inside: Vec<usize> = self
            .pieces
            .range(range.clone())
            .filter(|(from, piece)| *from + piece.len() <= range.end)
            .map(|(from, _)| *from)
            .collect();
        for from in inside {
            self.remove(from);
        }
        let mut gaps = Vec::new();
        let mut at = range.start;
        for (from, piece) in self.pieces_in_mut(&range) {
            if let Piece::Data(bytes) = piece {
                let overlap = range.start.max(from)..range.end.min(from + bytes.len());
                if at < overlap.start {
                    gaps.push(at..overlap.start);
                }
                bytes[overlap.start - from..overlap.end - from].fill(0);
                at = overlap.end;
            }
        }
        if at < range.end {
            gaps.push(at..range.end);
        }
        for gap in gaps {
            self.insert(gap.start, Piece::Zeros(gap.len()));
        }
    }

    /// Copies what is written of `start..start + buf.len()` and in memory into `buf`, and calls `elsewhere` with each part that is
    /// not, in order. Where the base is zeros nothing is below.
    pub(super) fn read(
        &self,
        start: usize,
        buf: &mut [u8],
        mut elsewhere: impl FnMut(Elsewhere<'_>),
    ) {
        let end = start + buf.len();
        let base = self.base;
        let gap = |part: &mut [u8], at: usize, elsewhere: &mut dyn FnMut(Elsewhere<'_>)| match base
        {
            Base::Zeros => part.fill(0),
            Base::Below => elsewhere(Elsewhere::Below(part, at)),
        };
        let mut at = start;
        for (from, piece) in self.pieces_in(&(start..end)) {
            let overlap = start.max(from)..end.min(from + piece.len());
            if at < overlap.start {
                gap(
                    &mut buf[at - start..overlap.start - start],
                    at,
                    &mut elsewhere,
                );
            }
            let to = &mut buf[overlap.start - start..overlap.end - start];
            match piece {
                Piece::Data(bytes) => {
                    to.copy_from_slice(&bytes[overlap.start - from..overlap.end - from])
                }
                Piece::Kept(place) => {
                    let part = place.part(overlap.start - from..overlap.end - from);
                    elsewhere(Elsewhere::Journal(&part, overlap.start));
                }
                Piece::Zeros(_) => to.fill(0),
            }
            at = overlap.end;
        }
        if at < end {
            gap(&mut buf[at - start..], at, &mut elsewhere);
        }
    }

    fn pieces_in(&self, range: &Range<usize>) -> impl Iterator<Item = (usize, &Piece)> {
        let first = self.first_in(range);
        self.pieces
            .range(first..range.end)
            .map(|(from, piece)| (*from, piece))
    }

    fn pieces_in_mut(&mut self, range: &Range<usize>) -> impl Iterator<Item = (usize, &mut Piece)> {
        let first = self.first_in(range);
        self.pieces
            .range_mut(first..range.end)
            .map(|(from, piece)| (*from, piece))
    }

    /// Where the first piece that reaches into the range begins.
    fn first_in(&self, range: &Range<usize>) -> usize {
        match self.pieces.range(..range.start).next_back() {
            Some((from, piece)) if from + piece.len() > range.start => *from,
            _ => range.start,
        }
    }

    /// Takes the range out of those of the pieces that reach into it.
    fn cut(&mut self, range: &Range<usize>, those: impl Fn(&Piece) -> bool) {
        let found: Vec<usize> = self
            .pieces_in(range)
            .filter(|(_, piece)| those(piece))
            .map(|(from, _)| from)
            .collect();
        for from in found {
            let Some(old) = self.remove(from) else {
                continue;
            };
            let end = from + old.len();
            if from < range.start {
                self.insert(from, old.part(0..range.start - from));
            }
            if range.end < end {
                self.insert(range.end, old.part(range.end - from..old.len()));
            }
        }
    }

    fn insert(&mut self, from: usize, piece: Piece) {
        self.covered += piece.len();
        self.cost += piece.cost();
        let old = self.pieces.insert(from, piece);
        debug_assert!(old.is_none(), "pieces are disjoint");
    }

    fn remove(&mut self, from: usize) -> Option<Piece> {
        let piece = self.pieces.remove(&from)?;
        self.covered -= piece.len();
        self.cost -= piece.cost();
        Some(piece)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LEN: usize = 64;

    #[derive(Debug, Clone)]
    enum Op {
        Write(usize, Vec<u8>),
        Zero(Range<usize>),
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let range = (0..LEN).prop_flat_map(|start| (Just(start), start..=LEN));
        let op =
            (range, any::<bool>(), 1u8..=255).prop_map(|((start, end), zero, fill)| match zero {
                true => Op::Zero(start..end),
                false => Op::Write(start, vec![fill; end - start]),
            });
        prop::collection::vec(op, 0..40)
    }

    proptest! {
        #[test]
        fn a_dirty_block_reads_as_the_last_write_to_each_byte(ops in ops(), zeros in any::<bool>(), (from, to) in (0..LEN).prop_flat_map(|f| (Just(f), f..=LEN))) {
            let base = if zeros { Base::Zeros } else { Base::Below };
            let mut dirty = DirtyBlock::new(base);
            let mut model: Vec<Option<u8>> = vec![if zeros { Some(0) } else { None }; LEN];
            for op in ops {
                match op {
                    Op::Write(start, data) => {
                        dirty.write(start, &data);
                        for (at, byte) in data.iter().enumerate() {
                            model[start + at] = Some(*byte);
                        }
                    }
                    Op::Zero(range) => {
                        dirty.zero(range.clone());
                        model[range].fill(Some(0));
                    }
                }
                let covered = dirty.pieces.values().map(Piece::len).sum::<usize>();
                prop_assert_eq!(dirty.covered, covered);
                prop_assert_eq!(dirty.cost, PIECE_COST + dirty.pieces.values().map(Piece::cost).sum::<u64>());
            }
            prop_assert_eq!(dirty.hides_below(LEN), model.iter().all(Option::is_some));
            let mut buf = vec![0xEE; to - from];
            dirty.read(from, &mut buf, |elsewhere| match elsewhere {
                Elsewhere::Below(part, _) => part.fill(0xBB),
                Elsewhere::Journal(place, at) => panic!("{place:?} at {at}, but all is in memory"),
            });
            let expected: Vec<u8> = model[from..to].iter().map(|b| b.unwrap_or(0xBB)).collect();
            prop_assert_eq!(buf, expected);
        }
    }

    #[test]
    fn rewriting_the_same_bytes_takes_no_more_memory() {
        let mut dirty = DirtyBlock::new(Base::Below);
        dirty.write(0, &[1; 32]);
        let once = dirty.cost();
        for fill in 0..100 {
            dirty.write(8, &[fill; 16]);
        }
        assert_eq!(dirty.cost(), once);
        dirty.zero(0..32);
        assert!(dirty.cost() < once);
    }
}
