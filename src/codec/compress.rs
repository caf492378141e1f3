//! Packing: the content of a block made shorter, and made whole again.
//!
//! [`pack`] is for every new block, [`unpack`] for whatever a bucket holds, hostile or not. Neither knows headers, keys or
//! checksums: the object's header says how its content is packed, and how long the plain content is. The formats are public
//! ones, without anything of ours around them, so that any program can read them:
//!
//! - zstd: one frame of RFC 8878 with its content size, without dictionary and without checksum (the object has its own);
//! - lz4: one raw block of the LZ4 block format, without frame and without length;
//! - zlib: one stream of RFC 1950, without preset dictionary; its Adler-32 cannot be left out.
//!
//! Contexts, which cost more to make than a small block costs to pack, are kept for each thread that packs or unpacks.

use std::cell::RefCell;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use flate2::{Compress, Decompress, FlushCompress, FlushDecompress, Status};
use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};
use zstd::zstd_safe::{CCtx, DCtx, find_frame_compressed_size, get_frame_content_size};

use crate::error::{Error, ErrorKind};

mod estimate;
#[cfg(test)]
mod tests;

/// zstd's own default. On images of disks it takes a fifth more time than level 1, and leaves up to 5 % fewer bytes.
const ZSTD_DEFAULT_LEVEL: i32 = 3;
/// Above 19, a level needs more memory than a thread should keep.
const ZSTD_LEVELS: RangeInclusive<i32> = 1..=19;
/// What everybody takes for zlib's default.
const ZLIB_DEFAULT_LEVEL: u32 = 6;
const ZLIB_LEVELS: RangeInclusive<u32> = 1..=9;

/// Packed content is stored where it is shorter by one part in this many. Each read of a packed block pays for unpacking, which
/// takes about as long as a link of a few hundred MB/s takes for a sixteenth of the block: saving less would save no time.
const LEAST_SAVING: usize = 16;

/// The most scratch space that a thread keeps between blocks.
const KEPT_SCRATCH_BYTES: usize = 2 << 20;

/// What every zstd frame begins with.
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Bits of the byte after it that say dictionary (two), checksum, and reserved.
const ZSTD_REFUSED: u8 = 0b0000_1111;

/// How new blocks are compressed. As text: `none`, `zstd`, `zstd:3`, `lz4`, `zlib`, `zlib:6`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Not at all.
    None,
    /// Zstandard.
    Zstd {
        /// From 1, the fastest, to 19.
        level: i32,
    },
    /// LZ4, which has no levels.
    Lz4,
    /// Deflate, as zlib wraps it.
    Zlib {
        /// From 1, the fastest, to 9.
        level: u32,
    },
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Compression::None => f.write_str("none"),
            Compression::Zstd { level } => write!(f, "zstd:{level}"),
            Compression::Lz4 => f.write_str("lz4"),
            Compression::Zlib { level } => write!(f, "zlib:{level}"),
        }
    }
}

impl FromStr for Compression {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (name, level) = match text.split_once(':') {
            Some((name, level)) => (name, Some(level)),
            None => (text, None),
        };
        let known = match (name, level) {
            ("none", None) => Some(Compression::None),
            ("lz4", None) => Some(Compression::Lz4),
            ("zstd", level) => level_of(level, ZSTD_DEFAULT_LEVEL, ZSTD_LEVELS)
                .map(|level| Compression::Zstd { level }),
            ("zlib", level) => level_of(level, ZLIB_DEFAULT_LEVEL, ZLIB_LEVELS)
                .map(|level| Compression::Zlib { level }),
            _ => None,
        };
        known.ok_or_else(|| {
            Error::new(
                ErrorKind::Usage,
                format!(
                    "'{}' is not a compression: give none, lz4, zstd, zstd:1 to zstd:19, zlib, or zlib:1 to zlib:9",
                    text.escape_debug()
                ),
            )
        })
    }
}

/// The level that a text names, in plain digits and without leading zeros; `None` where it is not one of `levels`.
fn level_of<L>(text: Option<&str>, default: L, levels: RangeInclusive<L>) -> Option<L>
where
    L: FromStr + PartialOrd,
{
    let Some(text) = text else {
        return Some(default);
    };
    if !text.starts_with(|first: char| matches!(first, '1'..='9')) {
        return None;
    }
    text.parse().ok().filter(|level| levels.contains(level))
}

/// How the content of an object is packed; the value is the byte in its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Packing {
    /// Not at all.
    Plain = 0,
    /// One zstd frame.
    Zstd = 1,
    /// One raw LZ4 block.
    Lz4 = 2,
    /// One zlib stream.
    Zlib = 3,
}

impl Packing {
    /// The byte that stands for this packing in a header.
    pub fn byte(self) -> u8 {
        self as u8
    }

    /// The packing that a byte stands for; `None` where it stands for none that this program knows.
    pub fn from_byte(byte: u8) -> Option<Packing> {
        [Packing::Plain, Packing::Zstd, Packing::Lz4, Packing::Zlib]
            .into_iter()
            .find(|packing| packing.byte() == byte)
    }
}

impl fmt::Display for Packing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Packing::Plain => "plain",
            Packing::Zstd => "zstd",
            Packing::Lz4 => "lz4",
            Packing::Zlib => "zlib",
        })
    }
}

/// Why content could not be unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnpackError {
    /// It is no shorter than what it stands for, which `pack` never answers.
    #[error("{packed_bytes} packed bytes stand for no more than {plain_bytes}")]
    NotShorter {
        /// Bytes that there are.
        packed_bytes: usize,
        /// Bytes that they should unpack to.
        plain_bytes: usize,
    },
    /// It unpacks to another length.
    #[error("the content has {found} bytes where {expected} belong")]
    WrongLength {
        /// Bytes that it should unpack to.
        expected: u64,
        /// Bytes that it unpacks to, or says it does.
        found: u64,
    },
    /// Something follows the end of the packed content.
    #[error("{bytes} bytes follow the end of the packed content")]
    Trailing {
        /// How many.
        bytes: u64,
    },
    /// It is a zstd frame with a dictionary, with a checksum, without its content size, or of a later format.
    #[error("the zstd frame is not of the kind that belongs in a disk")]
    ForeignFrame,
    /// It is not of the format that it should be, is cut, or goes on past the length that it should unpack to.
    #[error("the {packing} content is malformed")]
    Malformed {
        /// The format that it should be of.
        packing: Packing,
    },
}

/// Contexts and scratch space of one thread, made when first used.
struct Contexts {
    zstd: Option<CCtx<'static>>,
    unzstd: Option<DCtx<'static>>,
    /// The level is part of it.
    zlib: Option<(u32, Compress)>,
    unzlib: Option<Decompress>,
    lz4: Option<CompressTable>,
    /// lz4_flex wants room for the worst case, which is more than content may take here.
    scratch: Vec<u8>,
}

thread_local! {
    static CONTEXTS: RefCell<Contexts> = const {
        RefCell::new(Contexts { zstd: None, unzstd: None, zlib: None, unzlib: None, lz4: None, scratch: Vec::new() })
    };
}

/// Appends the packed form of `plain` to `into`, and answers how it is packed. Where that would not be shorter by a sixteenth, or
/// does not look so beforehand, nothing is appended and the answer is `Plain`.
///
/// Equal arguments give equal bytes, on every thread.
pub fn pack(compression: Compression, plain: &[u8], into: &mut Vec<u8>) -> Packing {
    let most = plain.len() - plain.len().div_ceil(LEAST_SAVING);
    let hopeless = match compression {
        Compression::None => true,
        // passes over what it cannot shorten faster than any estimate could
        Compression::Lz4 => false,
        Compression::Zstd { .. } | Compression::Zlib { .. } => !estimate::may_shrink(plain),
    };
    if hopeless || most == 0 {
        return Packing::Plain;
    }
    let start = into.len();
    let packed = CONTEXTS.with_borrow_mut(|contexts| match compression {
        Compression::None => None,
        Compression::Zstd { level } => contexts
            .zstd(level, plain, room(into, most))
            .map(|bytes| (Packing::Zstd, bytes)),
        Compression::Zlib { level } => contexts
            .zlib(level, plain, room(into, most))
            .map(|bytes| (Packing::Zlib, bytes)),
        Compression::Lz4 => contexts
            .lz4(plain, most, into)
            .map(|bytes| (Packing::Lz4, bytes)),
    });
    let (packing, bytes) = packed.unwrap_or((Packing::Plain, 0));
    into.truncate(start + bytes);
    packing
}

/// `bytes` new bytes at the end of `into`.
fn room(into: &mut Vec<u8>, bytes: usize) -> &mut [u8] {
    let start = into.len();
    into.resize(start + bytes, 0);
    &mut into[start..]
}

/// Unpacks to exactly `plain_bytes` bytes. That number must have been found plausible (no larger than a block): so much is
/// allocated at once, and no more.
///
/// # Errors
/// An [`UnpackError`] that says what does not fit.
pub fn unpack(packing: Packing, packed: &[u8], plain_bytes: usize) -> Result<Vec<u8>, UnpackError> {
    if packing != Packing::Plain && packed.len() >= plain_bytes {
        return Err(UnpackError::NotShorter {
            packed_bytes: packed.len(),
            plain_bytes,
        });
    }
    let plain = CONTEXTS.with_borrow_mut(|contexts| match packing {
        Packing::Plain => Ok(packed.to_vec()),
        Packing::Zstd => contexts.unzstd(packed, plain_bytes),
        Packing::Lz4 => unlz4(packed, plain_bytes),
        Packing::Zlib => contexts.unzlib(packed, plain_bytes),
    })?;
    same_length(plain_bytes, plain.len() as u64)?;
    Ok(plain)
}

fn same_length(expected: usize, found: u64) -> Result<(), UnpackError> {
    let expected = expected as u64;
    if expected == found {
        Ok(())
    } else {
        Err(UnpackError::WrongLength { expected, found })
    }
}

/// `used` of the packed bytes were all there is to the content: nothing may follow.
fn nothing_follows(packed: &[u8], used: u64) -> Result<(), UnpackError> {
    match (packed.len() as u64).saturating_sub(used) {
        0 => Ok(()),
        bytes => Err(UnpackError::Trailing { bytes }),
    }
}

impl Contexts {
    /// Bytes of `room` that were written; `None` where there were too few.
    fn zstd(&mut self, level: i32, plain: &[u8], room: &mut [u8]) -> Option<usize> {
        let context = self.zstd.get_or_insert_with(CCtx::create);
        context.compress(room, plain, level).ok()
    }

    fn unzstd(&mut self, packed: &[u8], plain_bytes: usize) -> Result<Vec<u8>, UnpackError> {
        let malformed = UnpackError::Malformed {
            packing: Packing::Zstd,
        };
        let (&magic, rest) = packed.split_first_chunk::<4>().ok_or(malformed)?;
        let &descriptor = rest.first().ok_or(malformed)?;
        if magic != ZSTD_MAGIC {
            return Err(malformed);
        }
        if descriptor & ZSTD_REFUSED != 0 {
            return Err(UnpackError::ForeignFrame);
        }
        let announced = get_frame_content_size(packed).map_err(|_| malformed)?;
        same_length(plain_bytes, announced.ok_or(UnpackError::ForeignFrame)?)?;
        let used = find_frame_compressed_size(packed).map_err(|_| malformed)?;
        nothing_follows(packed, used as u64)?;
        let mut plain = Vec::with_capacity(plain_bytes);
        let context = self.unzstd.get_or_insert_with(DCtx::create);
        context
            .decompress(&mut plain, packed)
            .map_err(|_| malformed)?;
        Ok(plain)
    }

    /// Bytes of `room` that were written; `None` where there were too few.
    ///
    /// A context is kept only after a whole stream: the reset of zlib-rs 0.6 forgets too little of one that was given up, and the
    /// next stream would be unreadable.
    fn zlib(&mut self, level: u32, plain: &[u8], room: &mut [u8]) -> Option<usize> {
        let mut context = match self.zlib.take() {
            Some((made, mut context)) if made == level => {
                context.reset();
                context
            }
            _ => {
                let level = level.clamp(*ZLIB_LEVELS.start(), *ZLIB_LEVELS.end());
                Compress::new(flate2::Compression::new(level), true)
            }
        };
        let status = context.compress(plain, room, FlushCompress::Finish).ok()?;
        if status != Status::StreamEnd {
            return None;
        }
        let bytes = usize::try_from(context.total_out()).ok();
        self.zlib = Some((level, context));
        bytes
    }

    fn unzlib(&mut self, packed: &[u8], plain_bytes: usize) -> Result<Vec<u8>, UnpackError> {
        let context = self.unzlib.get_or_insert_with(|| Decompress::new(true));
        context.reset(true);
        let mut plain = Vec::with_capacity(plain_bytes);
        match context.decompress_vec(packed, &mut plain, FlushDecompress::Finish) {
            Ok(Status::StreamEnd) => {
                nothing_follows(packed, context.total_in())?;
                Ok(plain)
            }
            _ => Err(UnpackError::Malformed {
                packing: Packing::Zlib,
            }),
        }
    }

    /// Bytes that were appended to `into`; `None` where they would have been more than `most`.
    fn lz4(&mut self, plain: &[u8], most: usize, into: &mut Vec<u8>) -> Option<usize> {
        let table = self.lz4.get_or_insert_with(CompressTable::large);
        let worst = get_maximum_output_size(plain.len());
        if self.scratch.len() < worst {
            self.scratch.resize(worst, 0);
        }
        let bytes = compress_into_with_table(plain, &mut self.scratch, table).ok();
        let packed = bytes.and_then(|bytes| self.scratch.get(..bytes));
        let appended = packed.filter(|packed| packed.len() <= most).map(|packed| {
            into.extend_from_slice(packed);
            packed.len()
        });
        if self.scratch.len() > KEPT_SCRATCH_BYTES {
            self.scratch = Vec::new();
        }
        appended
    }
}

/// The format has no end mark: a decoder stops where its input ends, and any input that goes on when the content is whole fails.
fn unlz4(packed: &[u8], plain_bytes: usize) -> Result<Vec<u8>, UnpackError> {
    let mut plain = vec![0; plain_bytes];
    let bytes = lz4_flex::block::decompress_into(packed, &mut plain).map_err(|_| {
        UnpackError::Malformed {
            packing: Packing::Lz4,
        }
    })?;
    plain.truncate(bytes);
    Ok(plain)
}
