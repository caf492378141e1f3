//! The superblock, `disk.json`: what a program must know before it can read anything else of a disk.
//!
//! JSON for people to read, with a checksum for programs: `xxh3-128:` and the XXH3-128, as 32 lower-case hexadecimal digits, of
//! the canonical text of the same object without its `checksum`. Members that this program does not know are checked, kept when the superblock is written anew, and
//! otherwise ignored: what a reader must know is in `features`.
//!
//! That of an encrypted disk has more: key slots, a sealed part that is not public, and an authentication, which takes the disk's keys to
//! make and to check. [`Unlocked`](super::Unlocked) is a superblock with its keys.

use std::time::SystemTime;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_128;

use crate::block::Geometry;
use crate::codec::compress::Compression;
use crate::codec::hex::{self, Hex};
use crate::codec::keys::MAC_BYTES;
use crate::codec::slots::{KeySlot, MOST_SLOTS};
use crate::codec::timestamp;

mod canonical;
mod error;
#[cfg(test)]
mod tests;

pub use error::SuperblockError;

/// The longest superblock that is read, in bytes.
pub const MAX_SUPERBLOCK_BYTES: usize = 64 << 10;
/// The longest label that a disk may be given, in bytes: whatever it is made of, the superblock stays far below its limit.
pub const MAX_LABEL_BYTES: usize = 255;

const FORMAT: &str = "bucketdisk";
const VERSION: u64 = 1;
const ENCRYPTION: &str = "encryption";
/// What the text of an authentication begins with.
const AUTHENTICATION: &str = "hmac-sha-256:";

/// What says what a disk is. It changes only as a whole: each change is a new generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// The disk's id, random.
    pub id: Uuid,
    /// Size and block size.
    pub geometry: Geometry,
    /// When the disk was made, by the clock of the machine that made it; whole seconds.
    pub created: SystemTime,
    /// 1 as the disk is made, and higher with every change.
    pub generation: u32,
    /// How new blocks are compressed.
    pub compression: Compression,
    /// A name for people; may be empty, and is for an encrypted disk, whose label is not public. At most [`MAX_LABEL_BYTES`].
    pub label: String,
    /// What opens an encrypted disk; `None`: the disk says that it is not encrypted.
    pub encryption: Option<Encryption>,
    /// Members of a newer program.
    other: Map<String, Value>,
}

/// What the superblock of an encrypted disk has beside those members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encryption {
    /// What holds the master key: from 1 to [`MOST_SLOTS`], each with a number of its own.
    pub slots: Vec<KeySlot>,
    /// What is not public, sealed.
    pub(super) private: Vec<u8>,
    /// The MAC of all other members.
    pub(super) authentication: [u8; MAC_BYTES],
}

/// The only cipher there is.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
enum Cipher {
    #[serde(rename = "xchacha20-poly1305")]
    XChaCha20Poly1305,
}

/// The member `encryption`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredEncryption {
    cipher: Cipher,
    slots: Vec<KeySlot>,
}

/// All members but the checksum, in the order in which people read them.
#[derive(Serialize, Deserialize)]
struct Stored {
    format: String,
    version: u64,
    features: Vec<String>,
    id: Uuid,
    #[serde(default = "first")]
    generation: u32,
    label: String,
    created: String,
    size: u64,
    block_size: u64,
    compression: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    encryption: Option<StoredEncryption>,
    #[serde(skip_serializing_if = "Option::is_none")]
    private: Option<Hex<Vec<u8>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    authentication: Option<String>,
    #[serde(flatten)]
    other: Map<String, Value>,
}

/// All members.
#[derive(Serialize)]
struct Checksummed {
    #[serde(flatten)]
    stored: Stored,
    checksum: String,
}

/// Of a disk whose superblock does not say.
fn first() -> u32 {
    1
}

impl Superblock {
    /// That of a new disk that is not encrypted.
    pub fn plain(id: Uuid, geometry: Geometry, label: String, created: SystemTime) -> Superblock {
        Superblock {
            id,
            geometry,
            created,
            generation: first(),
            compression: Compression::None,
            label,
            encryption: None,
            other: Map::new(),
        }
    }

    /// The superblock as it is stored.
    pub fn to_json(&self) -> Bytes {
        let stored = Checksummed {
            stored: self.stored(),
            checksum: checksum(&self.members()),
        };
        serde_json::to_vec_pretty(&stored)
            .expect("plain data in memory serialises")
            .into()
    }

    /// What an authentication is the MAC of.
    pub(super) fn to_be_authenticated(&self) -> String {
        canonical::text_without(&self.members(), &["authentication"])
    }

    fn members(&self) -> Map<String, Value> {
        let members = serde_json::to_value(self.stored()).expect("plain data in memory serialises");
        let members = members.as_object();
        members.expect("a struct serialises as an object").clone()
    }

    fn stored(&self) -> Stored {
        let encryption = self.encryption.as_ref();
        Stored {
            format: FORMAT.to_owned(),
            version: VERSION,
            features: encryption
                .map(|_| ENCRYPTION.to_owned())
                .into_iter()
                .collect(),
            id: self.id,
            generation: self.generation,
            label: self.label.clone(),
            created: timestamp::to_seconds(self.created),
            size: self.geometry.size_bytes(),
            block_size: u64::from(self.geometry.block_bytes()),
            compression: self.compression.to_string(),
            encryption: encryption.map(|encryption| StoredEncryption {
                cipher: Cipher::XChaCha20Poly1305,
                slots: encryption.slots.clone(),
            }),
            private: encryption.map(|encryption| Hex(encryption.private.clone())),
            authentication: encryption
                .map(|encryption| format!("{AUTHENTICATION}{}", Hex(encryption.authentication))),
            other: self.other.clone(),
        }
    }

    /// Reads and checks a superblock, as far as that goes without the disk's keys.
    ///
    /// # Errors
    /// A [`SuperblockError`] that says what does not fit. The version is looked at before the checksum, because another version
    /// may have another one; everything else after it.
    pub fn parse(json: &[u8]) -> Result<Superblock, SuperblockError> {
        if json.len() > MAX_SUPERBLOCK_BYTES {
            return Err(SuperblockError::TooLong { bytes: json.len() });
        }
        let value: Value = serde_json::from_slice(json).map_err(SuperblockError::NotJson)?;
        let Value::Object(mut members) = value else {
            return Err(SuperblockError::NotOurs);
        };
        if members.get("format").and_then(Value::as_str) != Some(FORMAT) {
            return Err(SuperblockError::NotOurs);
        }
        match members.get("version") {
            Some(version) if version.as_u64() == Some(VERSION) => {}
            version => {
                let version = version.map_or_else(|| "(none)".to_owned(), Value::to_string);
                return Err(SuperblockError::UnknownVersion { version });
            }
        }
        let stored = members.remove("checksum");
        if stored.as_ref().and_then(Value::as_str) != Some(checksum(&members).as_str()) {
            return Err(SuperblockError::WrongChecksum);
        }
        refuse_unknown_features(&members)?;
        let stored: Stored = serde_json::from_value(Value::Object(members))
            .map_err(SuperblockError::InvalidMember)?;
        stored.check()
    }
}

/// Before anything else is looked at, which a feature may change.
fn refuse_unknown_features(members: &Map<String, Value>) -> Result<(), SuperblockError> {
    let features = members.get("features").and_then(Value::as_array);
    let mut names = features.into_iter().flatten().filter_map(Value::as_str);
    match names.find(|name| *name != ENCRYPTION) {
        Some(feature) => Err(SuperblockError::UnknownFeature {
            feature: feature.to_owned(),
        }),
        None => Ok(()),
    }
}

impl Stored {
    /// The superblock that the members describe.
    fn check(self) -> Result<Superblock, SuperblockError> {
        let encrypted = match self.features.as_slice() {
            [] => false,
            [only] if only == ENCRYPTION => true,
            _ => return Err(SuperblockError::HalfEncrypted),
        };
        let encryption = match (self.encryption, self.private, self.authentication) {
            (None, None, None) if !encrypted => None,
            (Some(stored), Some(private), Some(authentication))
                if encrypted && self.label.is_empty() =>
            {
                let authentication = authentication.strip_prefix(AUTHENTICATION);
                let mac = authentication
                    .and_then(hex::decode)
                    .and_then(|mac| mac.try_into().ok());
                let mut numbers: Vec<u32> = stored.slots.iter().map(|slot| slot.id).collect();
                numbers.sort_unstable();
                numbers.dedup();
                if numbers.len() != stored.slots.len() || !(1..=MOST_SLOTS).contains(&numbers.len())
                {
                    return Err(SuperblockError::InvalidSlots);
                }
                // It is shown without the disk's keys, and whoever wrote it may have put anything there.
                let mut times = stored.slots.iter().map(|slot| slot.created.as_str());
                if let Some(text) = times.find(|text| timestamp::from_seconds(text).is_none()) {
                    let text = text.to_owned();
                    return Err(SuperblockError::InvalidTime { text });
                }
                Some(Encryption {
                    slots: stored.slots,
                    private: private.0,
                    authentication: mac.ok_or(SuperblockError::HalfEncrypted)?,
                })
            }
            _ => return Err(SuperblockError::HalfEncrypted),
        };
        if self.generation == 0 {
            return Err(SuperblockError::NoGeneration);
        }
        // In the one spelling that it is authenticated in.
        let compression = self.compression.parse::<Compression>().ok();
        let compression = compression.filter(|known| known.to_string() == self.compression);
        let compression = compression.ok_or(SuperblockError::UnknownCompression {
            name: self.compression,
        })?;
        let geometry =
            Geometry::new(self.size, self.block_size).map_err(SuperblockError::InvalidGeometry)?;
        let created = timestamp::from_seconds(&self.created)
            .ok_or(SuperblockError::InvalidTime { text: self.created })?;
        Ok(Superblock {
            id: self.id,
            geometry,
            created,
            generation: self.generation,
            compression,
            label: self.label,
            encryption,
            other: self.other,
        })
    }
}

/// The checksum over members, `checksum` itself not among them.
fn checksum(members: &Map<String, Value>) -> String {
    let text = canonical::text_without(members, &[]);
    format!("xxh3-128:{:032x}", xxh3_128(text.as_bytes()))
}
