//! Codecs: what the bytes of an object look like around what it holds. Pure functions of bytes, no I/O, no keys.
//!
//! [`Codec`] is the one contract: plain bytes and their place in, an object out, and back. `object` implements it: `compress` packs what
//! shrinks, `seal` encrypts with what `keys` has derived, or a checksum does where there is no key. `payload` holds the shape that records and checkpoints share: a JSON header and a strict binary tail.
//! `timestamp` writes moments as text, `hex` bytes. `slots` and `kdf` are about what opens an encrypted disk. The byte-by-byte description is `man/bucketdisk-layout.5`.

use std::fmt;

use bytes::Bytes;
use uuid::Uuid;

use self::compress::UnpackError;
use self::seal::BrokenSeal;
use crate::block::Seq;

pub mod compress;
pub mod hex;
pub mod kdf;
pub mod keys;
pub mod object;
pub mod payload;
pub mod seal;
pub mod slots;
pub mod timestamp;

pub use object::ObjectCodec;

/// Bytes of a digest.
pub const DIGEST_BYTES: usize = 16;

/// What an object is; the value is the byte in its header. 4 is reserved for snapshots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ObjectKind {
    /// One version of one block.
    Block = 1,
    /// A record of the log.
    Record = 2,
    /// A checkpoint of the block map.
    Checkpoint = 3,
}

impl ObjectKind {
    /// The byte that stands for this kind in a header.
    pub fn byte(self) -> u8 {
        self as u8
    }
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ObjectKind::Block => "block",
            ObjectKind::Record => "record",
            ObjectKind::Checkpoint => "checkpoint",
        })
    }
}

/// Where an object belongs: a codec binds it to its bytes, so that an object under another's key, or of another disk, is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The disk.
    pub disk: Uuid,
    /// What it is.
    pub kind: ObjectKind,
    /// The block's index; 0 for everything that is not a block.
    pub index: u64,
    /// The version of a block, or the number of a record or checkpoint.
    pub seq: Seq,
}

/// Turns plain bytes into an object and back.
///
/// `decode` answers exactly what `encode` was given for the same place, or an error: never other bytes. It is meant for
/// hostile input: it neither panics nor allocates more than the object's own length warrants.
pub trait Codec: Send + Sync + fmt::Debug {
    /// The object for some content at a place.
    fn encode(&self, place: &Place, plain: &[u8]) -> Bytes;

    /// The content of an object that was found at a place.
    ///
    /// # Errors
    /// A [`DecodeError`] that says what does not fit.
    fn decode(&self, place: &Place, object: Bytes) -> Result<Bytes, DecodeError>;

    /// Whether it only makes and checks checksums: takes no longer than to copy the bytes.
    fn is_light(&self) -> bool;

    /// Stands for an object where another one names it. Where there are keys, nobody can make one for an object of his own.
    fn digest(&self, object: &[u8]) -> [u8; DIGEST_BYTES];
}

/// Why an object could not be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// There are fewer bytes than a header has.
    #[error("the object has {length} bytes, fewer than a header")]
    TooShort {
        /// Bytes of the object.
        length: usize,
    },
    /// The magic is missing.
    #[error("the object does not begin as a bucketdisk object does")]
    NotOurs,
    /// The format is of another program version.
    #[error("object format version {version} is not known to this program: use a newer one")]
    UnknownVersion {
        /// The version that the header names.
        version: u8,
    },
    /// The codec, or one of its flags, is not known.
    #[error(
        "object codec {codec} with flags {flags:#04x} is not known to this program: use a newer one"
    )]
    UnknownCodec {
        /// The codec that the header names.
        codec: u8,
        /// The flags that the header carries.
        flags: u8,
    },
    /// The object is of another kind than its key says.
    #[error("the object is of kind {found} where a {expected} belongs")]
    WrongKind {
        /// What belongs there.
        expected: ObjectKind,
        /// The byte in the header.
        found: u8,
    },
    /// The object was cut, or something was added to it.
    #[error("the object holds {found} bytes where its header says {expected}")]
    WrongLength {
        /// Bytes of content that the header announces.
        expected: u64,
        /// Bytes of content that there are.
        found: u64,
    },
    /// The object is sealed, and the disk is not encrypted, or its key is not known.
    #[error("the object is encrypted, and by its superblock the disk is not")]
    Sealed,
    /// The object is not sealed, and the disk is encrypted.
    #[error("the object is not encrypted, and the disk is: somebody else has put it there")]
    NotSealed,
    /// Content or place differ from what was sealed.
    #[error(transparent)]
    BrokenSeal(#[from] BrokenSeal),
    /// What was packed cannot be unpacked.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// Content or place differ from what was written.
    #[error("the checksum differs: the object was altered, or belongs elsewhere")]
    WrongChecksum,
}
