//! A range of bytes, cut into whole blocks and what is left at its ends.

use std::ops::Range;

use crate::block::{BlockIndex, Geometry};

/// The parts of a range. Each may be empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Parts {
    /// Before the whole blocks, and after them; where there are none, the whole range is the first.
    pub(super) edges: [Range<u64>; 2],
    /// The whole blocks.
    pub(super) whole: Range<u64>,
}

impl Parts {
    /// Cuts a range of a disk, given in bytes.
    pub(super) fn of(geometry: Geometry, offset: u64, len: u64) -> Parts {
        let block = u64::from(geometry.block_bytes());
        let end = offset + len;
        let (inner, inner_end) = (offset.next_multiple_of(block), end - end % block);
        match inner < inner_end {
            true => Parts {
                edges: [offset..inner, inner_end..end],
                whole: inner..inner_end,
            },
            false => Parts {
                edges: [offset..end, end..end],
                whole: end..end,
            },
        }
    }

    /// The whole blocks, by index; empty where there are none.
    pub(super) fn blocks(&self, geometry: Geometry) -> Range<BlockIndex> {
        match self.whole.is_empty() {
            true => BlockIndex(0)..BlockIndex(0),
            false => geometry.block_at(self.whole.start)..geometry.block_at(self.whole.end),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_blocks_and_what_is_left() {
        let geometry = Geometry::new(1 << 20, 4096).expect("geometry");
        let parts = |offset, len| {
            let parts = Parts::of(geometry, offset, len);
            let blocks = parts.blocks(geometry);
            (parts.edges, blocks.start.0..blocks.end.0)
        };
        assert_eq!(parts(0, 8192), ([0..0, 8192..8192], 0..2));
        assert_eq!(parts(1, 8191), ([1..4096, 8192..8192], 1..2));
        assert_eq!(parts(4095, 8194), ([4095..4096, 12288..12289], 1..3));
        assert_eq!(parts(1, 8000), ([1..8001, 8001..8001], 0..0));
        assert_eq!(parts(5, 0), ([5..5, 5..5], 0..0));
    }
}
