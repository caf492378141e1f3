//! Key slots: the master key of a disk, wrapped once for each passphrase and key file that opens it.
//!
//! A slot's wrapping key is made of its passphrase by [`Kdf`], and seals the master key together with the disk's id and everything else
//! that the slot says: a slot that was altered, or belongs to another disk, does not open. A passphrase can be changed, added and
//! removed without touching any other object, because the master key stays the same.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::hex::Hex;
use super::kdf::{Kdf, SALT_BYTES};
use super::keys::MasterKey;
use super::seal::{NONCE_BYTES, TAG_BYTES, fresh_nonce, open, seal};
use crate::error::Result;
use crate::secret::{KEY_BYTES, Key, Passphrase, random};

/// The most slots that a disk has.
pub const MOST_SLOTS: usize = 32;
/// Bytes of a wrapped key: the sealed key, then the tag.
const WRAPPED_BYTES: usize = KEY_BYTES + TAG_BYTES;
/// What the associated data begin with.
const PURPOSE: &[u8] = b"bucketdisk 1 key slot";

/// What opens a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SlotKind {
    /// Something that a person types, or a program in its place.
    Passphrase,
    /// All bytes of a file.
    KeyFile,
}

impl SlotKind {
    /// The byte that stands for it in the associated data.
    fn byte(self) -> u8 {
        match self {
            SlotKind::Passphrase => 1,
            SlotKind::KeyFile => 2,
        }
    }

    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            SlotKind::Passphrase => "passphrase",
            SlotKind::KeyFile => "key file",
        }
    }
}

/// One slot, as the superblock has it. All of it is public.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeySlot {
    /// Its number, from 0: no two slots of a disk have the same.
    pub id: u32,
    /// What opens it.
    pub kind: SlotKind,
    /// When it was made, in RFC 3339, UTC, whole seconds.
    pub created: String,
    /// How a passphrase becomes the wrapping key.
    pub kdf: Kdf,
    /// Random, and never used for another slot: it also tells slots apart whose numbers are the same.
    pub salt: Hex<[u8; SALT_BYTES]>,
    nonce: Hex<[u8; NONCE_BYTES]>,
    key: Hex<[u8; WRAPPED_BYTES]>,
}

/// A passphrase on its way into a slot: its wrapping key is known, the slot's number is not yet.
#[derive(Debug)]
pub struct Wrapper {
    kind: SlotKind,
    created: String,
    kdf: Kdf,
    salt: [u8; SALT_BYTES],
    wrapping: Key,
}

impl Wrapper {
    /// Makes a wrapping key. Takes as long as the parameters say.
    ///
    /// # Errors
    /// Those of [`Kdf::derive`].
    pub fn new(
        passphrase: &Passphrase,
        kind: SlotKind,
        created: String,
        kdf: Kdf,
    ) -> Result<Wrapper> {
        let mut salt = [0; SALT_BYTES];
        random(&mut salt);
        Ok(Wrapper {
            kind,
            created,
            kdf,
            salt,
            wrapping: kdf.derive(passphrase, &salt)?,
        })
    }

    /// A slot of that number with the master key.
    pub fn wrap(&self, master: &MasterKey, disk: Uuid, id: u32) -> KeySlot {
        let mut slot = KeySlot {
            id,
            kind: self.kind,
            created: self.created.clone(),
            kdf: self.kdf,
            salt: Hex(self.salt),
            nonce: Hex(fresh_nonce()),
            key: Hex([0; WRAPPED_BYTES]),
        };
        let associated = slot.associated(disk);
        let (key, tag) = slot.key.0.split_at_mut(KEY_BYTES);
        // Plain for an instant, in what is sealed in place.
        key.copy_from_slice(master.0.bytes());
        tag.copy_from_slice(&seal(&self.wrapping, &slot.nonce.0, &associated, key));
        slot
    }

    /// Whether a slot was made by this very wrapper.
    pub fn made(&self, slot: &KeySlot) -> bool {
        slot.salt.0 == self.salt
    }
}

impl KeySlot {
    /// The master key, if that is the passphrase; `None` if not. Takes as long as the parameters say.
    ///
    /// # Errors
    /// Those of [`Kdf::derive`].
    pub fn open(&self, passphrase: &Passphrase, disk: Uuid) -> Result<Option<MasterKey>> {
        let wrapping = self.kdf.derive(passphrase, &self.salt.0)?;
        let (sealed, tag) = self.key.0.split_at(KEY_BYTES);
        let tag: &[u8; TAG_BYTES] = tag.try_into().expect("what is left after the key");
        let associated = self.associated(disk);
        let mut opened = Ok(());
        let master = Key::fill(|key| {
            key.copy_from_slice(sealed);
            opened = open(&wrapping, &self.nonce.0, &associated, key, tag);
        });
        Ok(opened.ok().map(|()| MasterKey(master)))
    }

    /// What the wrapped key is bound to.
    fn associated(&self, disk: Uuid) -> Vec<u8> {
        let Kdf {
            memory_kib,
            passes,
            lanes,
        } = self.kdf;
        let mut bytes = PURPOSE.to_vec();
        bytes.extend(disk.as_bytes());
        for number in [self.id, memory_kib, passes, lanes] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.push(self.kind.byte());
        bytes.extend(self.salt.0);
        bytes.extend(self.created.as_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: Uuid = Uuid::from_u128(7);
    const CHEAP: Kdf = Kdf {
        memory_kib: 8,
        passes: 1,
        lanes: 1,
    };

    fn passphrase(text: &str) -> Passphrase {
        Passphrase::new(text.as_bytes().to_vec())
    }

    fn wrapper(text: &str) -> Wrapper {
        let created = "2025-01-31T12:00:00Z".to_owned();
        Wrapper::new(&passphrase(text), SlotKind::Passphrase, created, CHEAP).expect("cheap")
    }

    fn opens(slot: &KeySlot, text: &str, disk: Uuid) -> Option<[u8; KEY_BYTES]> {
        let master = slot.open(&passphrase(text), disk).expect("cheap");
        master.map(|master| *master.0.bytes())
    }

    #[test]
    fn only_its_passphrase_opens_a_slot_and_only_for_its_disk() {
        let master = MasterKey(Key::fresh());
        let slot = wrapper("right").wrap(&master, DISK, 3);
        assert_eq!(opens(&slot, "right", DISK), Some(*master.0.bytes()));
        assert_eq!(opens(&slot, "Right", DISK), None);
        assert_eq!(opens(&slot, "", DISK), None);
        assert_eq!(opens(&slot, "right", Uuid::from_u128(8)), None);
    }

    #[test]
    fn an_altered_slot_does_not_open() {
        let slot = wrapper("p").wrap(&MasterKey(Key::fresh()), DISK, 0);
        let altered: [fn(&mut KeySlot); 9] = [
            |slot| slot.id = 1,
            |slot| slot.kind = SlotKind::KeyFile,
            |slot| slot.created = "2025-01-31T12:00:01Z".to_owned(),
            |slot| slot.kdf.memory_kib = 9,
            |slot| slot.kdf.passes = 2,
            |slot| slot.salt.0[0] ^= 1,
            |slot| slot.nonce.0[0] ^= 1,
            |slot| slot.key.0[0] ^= 1,
            |slot| slot.key.0[WRAPPED_BYTES - 1] ^= 1,
        ];
        assert!(opens(&slot, "p", DISK).is_some(), "the control");
        for (at, alter) in altered.iter().enumerate() {
            let mut changed = slot.clone();
            alter(&mut changed);
            assert_eq!(opens(&changed, "p", DISK), None, "alteration {at}");
        }
    }

    #[test]
    fn a_slot_comes_back_from_json_and_says_nothing_of_the_key() {
        let master = MasterKey(Key::fill(|key| key.fill(0x5a)));
        let slot = wrapper("p").wrap(&master, DISK, 0);
        let json = serde_json::to_string(&slot).expect("serialises");
        assert_eq!(
            serde_json::from_str::<KeySlot>(&json).expect("parses"),
            slot
        );
        assert!(!json.contains("5a5a5a5a"), "{json}");
        let more = json.replacen('{', "{\"hint\":1,", 1);
        assert!(serde_json::from_str::<KeySlot>(&more).is_err());
    }

    #[test]
    fn no_two_slots_have_anything_random_in_common() {
        let master = MasterKey(Key::fresh());
        let (one, two) = (wrapper("p"), wrapper("p"));
        let slots = [
            one.wrap(&master, DISK, 0),
            one.wrap(&master, DISK, 1),
            two.wrap(&master, DISK, 0),
        ];
        assert_ne!(slots[0].nonce, slots[1].nonce);
        assert_ne!(slots[0].key, slots[1].key);
        assert_ne!(slots[0].salt, slots[2].salt);
        assert!(one.made(&slots[1]) && !one.made(&slots[2]));
    }
}
