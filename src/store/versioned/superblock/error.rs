//! What can be wrong with a superblock.

use crate::error::Error;

/// Why a superblock could not be read.
#[derive(Debug, thiserror::Error)]
pub enum SuperblockError {
    /// It is longer than any superblock is.
    #[error("{bytes} bytes are more than a superblock has")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// It is not JSON.
    #[error("not valid JSON")]
    NotJson(#[source] serde_json::Error),
    /// It is JSON of somebody else.
    #[error("not the superblock of a bucketdisk disk")]
    NotOurs,
    /// A newer program made the disk.
    #[error("format version {version} is not known to this program: use a newer one")]
    UnknownVersion {
        /// What the superblock says, as JSON.
        version: String,
    },
    /// The disk uses something that this program has not got.
    #[error("feature {feature:?} is not known to this program: use a newer one")]
    UnknownFeature {
        /// Its name.
        feature: String,
    },
    /// The disk's blocks are compressed in a way that this program has not got.
    #[error("compression {name:?} is not known to this program: use a newer one")]
    UnknownCompression {
        /// Its name.
        name: String,
    },
    /// Size and block size do not make a disk.
    #[error("size and block size are not those of a disk")]
    InvalidGeometry(#[source] Error),
    /// A member is missing or malformed.
    #[error("a member is missing or malformed")]
    InvalidMember(#[source] serde_json::Error),
    /// The moment at which the disk or a key slot was made is not a moment in RFC 3339, UTC, whole seconds.
    #[error("created {text:?} is not a moment such as 2025-01-31T12:00:00Z")]
    InvalidTime {
        /// What there is.
        text: String,
    },
    /// It was altered.
    #[error("the checksum differs: the superblock was altered")]
    WrongChecksum,
    /// Some members say that the disk is encrypted, others that it is not.
    #[error("it is half that of an encrypted disk: the superblock was altered")]
    HalfEncrypted,
    /// There is no generation 0.
    #[error("its generation is 0, and the first is 1")]
    NoGeneration,
    /// It is not the generation of its key.
    #[error("its generation is not that of its key: the object was renamed")]
    WrongGeneration,
    /// There are no key slots, too many, or two of one number.
    #[error("its key slots are not those of a disk: the superblock was altered")]
    InvalidSlots,
}

impl SuperblockError {
    /// Whether the disk is likely intact, and only beyond this program.
    pub fn is_unsupported(&self) -> bool {
        matches!(
            self,
            SuperblockError::UnknownVersion { .. }
                | SuperblockError::UnknownFeature { .. }
                | SuperblockError::UnknownCompression { .. }
        )
    }
}
