//! The superblock, `disk.json`: what a program must know before it can read anything else of a disk.
//!
//! JSON for people to read, with a checksum for programs: `xxh3-128:` and the XXH3-128, as 32 lower-case hexadecimal digits, of
//! the same object without its `checksum` member, serialised with sorted keys, without white space, in UTF-8, with nothing
//! escaped that JSON does not demand (Python: `json.dumps(obj, sort_keys=True, separators=(",", ":"), ensure_ascii=False)`).
//! Members that this program does not know are checked and otherwise ignored: what a reader must know is in `features`.

use std::time::SystemTime;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_128;

use crate::block::Geometry;
use crate::codec::timestamp;
use crate::error::Error;

/// The longest superblock that is read, in bytes.
pub const MAX_SUPERBLOCK_BYTES: usize = 64 << 10;
/// The longest label that a disk may be given, in bytes: whatever it is made of, the superblock stays far below its limit.
pub const MAX_LABEL_BYTES: usize = 255;

const FORMAT: &str = "bucketdisk";
const VERSION: u64 = 1;
const NO_COMPRESSION: &str = "none";

/// What never changes about a disk, and its label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// The disk's id, random.
    pub id: Uuid,
    /// Size and block size.
    pub geometry: Geometry,
    /// A name for people; may be empty. At most [`MAX_LABEL_BYTES`].
    pub label: String,
    /// When the disk was made, by the clock of the machine that made it; whole seconds.
    pub created: SystemTime,
}

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
    /// The moment of creation is not a moment in RFC 3339, UTC, whole seconds.
    #[error("created {text:?} is not a moment such as 2025-01-31T12:00:00Z")]
    InvalidTime {
        /// What there is.
        text: String,
    },
    /// It was altered.
    #[error("the checksum differs: the superblock was altered")]
    WrongChecksum,
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

/// All members, in the order in which people read them.
#[derive(Serialize)]
struct Stored<'a> {
    format: &'static str,
    version: u64,
    features: [&'static str; 0],
    id: Uuid,
    label: &'a str,
    created: String,
    size: u64,
    block_size: u32,
    compression: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    checksum: Option<String>,
}

/// The members that a reader needs, but for those that are looked at before.
#[derive(Deserialize)]
struct Members {
    features: Vec<String>,
    id: Uuid,
    size: u64,
    block_size: u64,
    label: String,
    created: String,
    compression: String,
}

impl Superblock {
    /// The superblock as it is stored.
    pub fn to_json(&self) -> Bytes {
        let mut stored = Stored {
            format: FORMAT,
            version: VERSION,
            features: [],
            id: self.id,
            label: &self.label,
            created: timestamp::to_seconds(self.created),
            size: self.geometry.size_bytes(),
            block_size: self.geometry.block_bytes(),
            compression: NO_COMPRESSION,
            checksum: None,
        };
        let members = serde_json::to_value(&stored).expect("plain data in memory serialises");
        let members = members
            .as_object()
            .expect("a struct serialises as an object");
        stored.checksum = Some(checksum(members));
        serde_json::to_vec_pretty(&stored)
            .expect("plain data in memory serialises")
            .into()
    }

    /// Reads and checks a superblock.
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
        let members: Members = serde_json::from_value(Value::Object(members))
            .map_err(SuperblockError::InvalidMember)?;
        members.check()
    }
}

impl Members {
    /// The superblock that the members describe.
    fn check(self) -> Result<Superblock, SuperblockError> {
        if let Some(feature) = self.features.into_iter().next() {
            return Err(SuperblockError::UnknownFeature { feature });
        }
        if self.compression != NO_COMPRESSION {
            return Err(SuperblockError::UnknownCompression {
                name: self.compression,
            });
        }
        let geometry =
            Geometry::new(self.size, self.block_size).map_err(SuperblockError::InvalidGeometry)?;
        let created = timestamp::from_seconds(&self.created)
            .ok_or(SuperblockError::InvalidTime { text: self.created })?;
        Ok(Superblock {
            id: self.id,
            geometry,
            label: self.label,
            created,
        })
    }
}

/// The checksum over members, `checksum` itself not among them.
fn checksum(members: &Map<String, Value>) -> String {
    let mut text = String::new();
    write_object(&mut text, members);
    format!("xxh3-128:{:032x}", xxh3_128(text.as_bytes()))
}

/// Serialises compactly and with sorted keys, also where the JSON library was built to keep keys in their order of insertion.
fn write_sorted(text: &mut String, value: &Value) {
    match value {
        Value::Object(members) => write_object(text, members),
        Value::Array(items) => {
            text.push('[');
            for (place, item) in items.iter().enumerate() {
                if place > 0 {
                    text.push(',');
                }
                write_sorted(text, item);
            }
            text.push(']');
        }
        scalar => text.push_str(&scalar.to_string()),
    }
}

/// [`write_sorted`] for an object.
fn write_object(text: &mut String, members: &Map<String, Value>) {
    let mut sorted: Vec<_> = members.iter().collect();
    sorted.sort_unstable_by_key(|(name, _)| *name);
    text.push('{');
    for (place, (name, value)) in sorted.into_iter().enumerate() {
        if place > 0 {
            text.push(',');
        }
        text.push_str(&Value::from(name.as_str()).to_string());
        text.push(':');
        write_sorted(text, value);
    }
    text.push('}');
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use serde_json::json;

    use super::*;

    fn sample() -> Superblock {
        Superblock {
            id: Uuid::from_u128(0x0123_4567_89ab_4def_8123_4567_89ab_cdef),
            geometry: Geometry::new(100 << 30, 256 << 10).expect("geometry"),
            label: "büro \"1\"\n\u{1}\u{7f}".to_owned(),
            created: UNIX_EPOCH + Duration::from_secs(1_738_324_800),
        }
    }

    /// The sample with one member changed (`Value::Null` removes it) and the checksum made to fit.
    fn changed(name: &str, value: Value) -> Result<Superblock, SuperblockError> {
        let mut members: Map<String, Value> =
            serde_json::from_slice(&sample().to_json()).expect("JSON");
        members.remove("checksum");
        members.remove(name);
        if !value.is_null() {
            members.insert(name.to_owned(), value);
        }
        let fitting = checksum(&members);
        members.insert("checksum".to_owned(), fitting.into());
        Superblock::parse(&serde_json::to_vec(&members).expect("JSON"))
    }

    #[test]
    fn a_superblock_comes_back() {
        assert_eq!(
            Superblock::parse(&sample().to_json()).expect("parses"),
            sample()
        );
    }

    #[test]
    fn members_of_a_newer_program_are_ignored_unless_they_are_features() {
        let extra = json!({"z": [1, {"b": null, "a": true}], "a": -1});
        assert_eq!(changed("hint", extra).expect("parses"), sample());
        assert!(matches!(
            changed("features", json!(["tiers"])),
            Err(SuperblockError::UnknownFeature { feature }) if feature == "tiers"
        ));
    }

    #[test]
    fn each_thing_that_does_not_fit_is_named() {
        use SuperblockError as E;
        assert!(matches!(Superblock::parse(b"{"), Err(E::NotJson(_))));
        assert!(matches!(Superblock::parse(b"[]"), Err(E::NotOurs)));
        assert!(matches!(Superblock::parse(b"{}"), Err(E::NotOurs)));
        let long = vec![b' '; MAX_SUPERBLOCK_BYTES + 1];
        assert!(matches!(Superblock::parse(&long), Err(E::TooLong { .. })));
        assert!(matches!(changed("format", json!("other")), Err(E::NotOurs)));
        for version in [json!(2), json!(1.0), json!("1"), Value::Null] {
            assert!(matches!(
                changed("version", version),
                Err(E::UnknownVersion { .. })
            ));
        }
        assert!(matches!(
            changed("compression", json!("zstd")),
            Err(E::UnknownCompression { .. })
        ));
        assert!(matches!(
            changed("size", json!(1000)),
            Err(E::InvalidGeometry(_))
        ));
        assert!(matches!(
            changed("block_size", json!(3)),
            Err(E::InvalidGeometry(_))
        ));
        assert!(matches!(
            changed("size", json!(-4096)),
            Err(E::InvalidMember(_))
        ));
        assert!(matches!(
            changed("id", Value::Null),
            Err(E::InvalidMember(_))
        ));
        assert!(matches!(
            changed("created", json!("today")),
            Err(E::InvalidTime { .. })
        ));
    }

    #[test]
    fn an_altered_superblock_is_damaged_not_misread() {
        let text = String::from_utf8(sample().to_json().to_vec()).expect("UTF-8");
        let larger = text.replace("107374182400", "107374444544");
        assert_ne!(larger, text);
        assert!(matches!(
            Superblock::parse(larger.as_bytes()),
            Err(SuperblockError::WrongChecksum)
        ));
    }

    #[test]
    fn the_longest_label_fits() {
        let label = "\u{1}".repeat(MAX_LABEL_BYTES);
        let long = Superblock { label, ..sample() };
        assert_eq!(Superblock::parse(&long.to_json()).expect("parses"), long);
    }
}
