//! Blocks, their indices and versions, and the arithmetic between bytes and blocks. Pure values: no I/O, no knowledge of keys.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};

/// Bytes in a sector: the smallest unit a disk is written in.
pub const SECTOR_BYTES: u64 = 512;
/// The smallest block size, in bytes.
pub const MIN_BLOCK_BYTES: u32 = 4 << 10;
/// The largest block size, in bytes.
pub const MAX_BLOCK_BYTES: u32 = 64 << 20;
/// The block size when none is asked for, in bytes.
pub const DEFAULT_BLOCK_BYTES: u32 = 256 << 10;
/// The largest number of blocks a disk can have: keys carry ten hexadecimal digits.
pub const MAX_BLOCKS: u64 = 1 << 40;
/// The largest size of a disk in bytes: the largest multiple of every block size below the kernel's 2^63 - 1.
pub const MAX_DISK_BYTES: u64 = (1 << 63) - MAX_BLOCK_BYTES as u64;

/// The number of a block, from 0, in the order of the disk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockIndex(pub u64);

impl BlockIndex {
    /// The index after this one.
    #[must_use]
    pub fn next(self) -> BlockIndex {
        BlockIndex(self.0 + 1)
    }
}

impl fmt::Debug for BlockIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block {}", self.0)
    }
}

impl fmt::Display for BlockIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A record number of the log; a block's version is the number of the commit that wrote it. Numbers start at 1; 0 is "before
/// the first record".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seq(pub u32);

impl Seq {
    /// The number after this one; `None` at the end of the number space (4,294,967,295 records).
    pub fn next(self) -> Option<Seq> {
        self.0.checked_add(1).map(Seq)
    }
}

impl fmt::Debug for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Size and block size of a disk; valid by construction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    size_bytes: u64,
    block_bytes: u32,
}

impl Geometry {
    /// Checks and keeps a size and a block size, both in bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`], naming the figure and the rule: a block size is a power of two from 4 KiB to 64 MiB; a size is a
    /// positive multiple of the block size, at most [`MAX_DISK_BYTES`] and at most [`MAX_BLOCKS`] blocks.
    pub fn new(size_bytes: u64, block_bytes: u64) -> Result<Self> {
        let usage = |text: String| Err(Error::new(ErrorKind::Usage, text));
        if !block_bytes.is_power_of_two() {
            return usage(format!(
                "block size {block_bytes} is not a power of two: use one from 4k to 64m"
            ));
        }
        let block = match u32::try_from(block_bytes) {
            Ok(b) if (MIN_BLOCK_BYTES..=MAX_BLOCK_BYTES).contains(&b) => b,
            _ => {
                return usage(format!(
                    "block size {block_bytes} is out of range: use a power of two from 4k to 64m"
                ));
            }
        };
        if size_bytes == 0 {
            return usage("size 0 makes no disk: give a size such as 100g".to_owned());
        }
        if !size_bytes.is_multiple_of(block_bytes) {
            return usage(format!(
                "size {size_bytes} is not a multiple of the block size {block_bytes}: use {} or {}",
                size_bytes - size_bytes % block_bytes,
                (size_bytes - size_bytes % block_bytes).saturating_add(block_bytes)
            ));
        }
        let limit = MAX_DISK_BYTES.min(MAX_BLOCKS.saturating_mul(block_bytes));
        if size_bytes > limit {
            return usage(format!(
                "size {size_bytes} is beyond the layout's limit of {limit} bytes at block size {block_bytes}"
            ));
        }
        Ok(Geometry {
            size_bytes,
            block_bytes: block,
        })
    }

    /// Size of the disk in bytes.
    pub fn size_bytes(self) -> u64 {
        self.size_bytes
    }

    /// Size of a block in bytes.
    pub fn block_bytes(self) -> u32 {
        self.block_bytes
    }

    /// Size of a block in bytes, as a length of memory.
    pub fn block_len(self) -> usize {
        self.block_bytes as usize
    }

    /// Number of blocks of the disk.
    pub fn blocks(self) -> u64 {
        self.size_bytes / u64::from(self.block_bytes)
    }

    /// Offset of a block's first byte.
    pub fn offset_of(self, index: BlockIndex) -> u64 {
        index.0 * u64::from(self.block_bytes)
    }

    /// The block that holds the byte at `offset_bytes`.
    pub fn block_at(self, offset_bytes: u64) -> BlockIndex {
        BlockIndex(offset_bytes / u64::from(self.block_bytes))
    }

    /// The parts of blocks that a range of bytes covers, in order. The range must lie within the disk.
    pub fn spans(self, offset_bytes: u64, len: usize) -> impl Iterator<Item = Span> {
        let block = u64::from(self.block_bytes);
        let end = offset_bytes + len as u64;
        debug_assert!(end <= self.size_bytes);
        let mut at = offset_bytes;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let within = at % block;
            let take = (block - within).min(end - at);
            let span = Span {
                index: BlockIndex(at / block),
                start: within as usize,
                len: take as usize,
                at: (at - offset_bytes) as usize,
            };
            at += take;
            Some(span)
        })
    }
}

/// The part of one block that a range of bytes covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Which block.
    pub index: BlockIndex,
    /// First byte within the block.
    pub start: usize,
    /// Bytes within the block.
    pub len: usize,
    /// Where the part begins within the range it was cut from.
    pub at: usize,
}

impl Span {
    /// The part's place in its block.
    pub fn within(&self) -> std::ops::Range<usize> {
        self.start..self.start + self.len
    }

    /// The part's place in the range it was cut from.
    pub fn outer(&self) -> std::ops::Range<usize> {
        self.at..self.at + self.len
    }
}

/// The content of one block that is not a hole: exactly block-size bytes, at least one of them not zero.
///
/// Cheap to clone (shared memory). A block of zeros cannot be made: it is a hole, and a hole has no object.
#[derive(Clone, PartialEq, Eq)]
pub struct Block(Bytes);

impl Block {
    /// Keeps a block's content, or answers `None` where it is all zero: the one test for zeros in the program.
    pub fn new(content: Bytes) -> Option<Block> {
        if is_zero(&content) {
            None
        } else {
            Some(Block(content))
        }
    }

    /// The content.
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Block({} bytes)", self.0.len())
    }
}

/// Whether all bytes are zero. Works on pieces of 4 KiB, so that it is vectorised and still stops early.
fn is_zero(bytes: &[u8]) -> bool {
    bytes
        .chunks(4096)
        .all(|piece| piece.iter().fold(0u8, |all, byte| all | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_of_zeros_cannot_be_made() {
        assert!(Block::new(Bytes::from(vec![0; 8192])).is_none());
        for at in [0, 1, 4095, 4096, 8191] {
            let mut content = vec![0; 8192];
            content[at] = 1;
            assert!(Block::new(Bytes::from(content)).is_some(), "byte {at}");
        }
    }

    #[test]
    fn geometry_refuses_what_the_layout_cannot_hold() {
        let refused = [
            (100, 4096),
            (0, 4096),
            (4096, 4095),
            (4096, 2048),
            (128 << 20, 128 << 20),
            (u64::MAX, 4096),
            (1 << 62, 4096),
        ];
        for (size, block) in refused {
            let error = Geometry::new(size, block).expect_err("refused");
            assert_eq!(error.kind(), ErrorKind::Usage, "{size} {block}");
        }
        assert_eq!(
            Geometry::new(MAX_DISK_BYTES, 64 << 20)
                .expect("largest")
                .blocks(),
            (1 << 37) - 1
        );
        assert_eq!(
            Geometry::new(MAX_BLOCKS * 4096, 4096)
                .expect("most blocks")
                .blocks(),
            MAX_BLOCKS
        );
    }

    #[test]
    fn spans_cover_a_range_once_and_in_order() {
        let geometry = Geometry::new(64 << 10, 4096).expect("geometry");
        let spans: Vec<Span> = geometry.spans(4000, 8300).collect();
        assert_eq!(spans.iter().map(|s| s.len).sum::<usize>(), 8300);
        assert_eq!(
            spans[0],
            Span {
                index: BlockIndex(0),
                start: 4000,
                len: 96,
                at: 0
            }
        );
        assert_eq!(
            spans[1],
            Span {
                index: BlockIndex(1),
                start: 0,
                len: 4096,
                at: 96
            }
        );
        assert_eq!(
            spans.last().map(|s| (s.index, s.start, s.outer().end)),
            Some((BlockIndex(3), 0, 8300))
        );
        assert_eq!(geometry.spans(0, 0).count(), 0);
    }
}
