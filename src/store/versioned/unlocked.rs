//! A superblock with what it takes to use the disk: for an encrypted one, its keys.
//!
//! The master key is known only to who has a passphrase; once it is, the superblock is authenticated before anything in it is believed:
//! an altered size, block size or feature list, an added or altered slot are found here, whoever mended the checksum. A superblock
//! that says that the disk is not encrypted has nothing to be authenticated by: who has a key for it refuses it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::codec::compress::Compression;
use crate::codec::keys::{DiskKeys, MasterKey, is_mac, mac};
use crate::codec::seal::{NONCE_BYTES, TAG_BYTES, fresh_nonce, open, seal};
use crate::codec::slots::{KeySlot, MOST_SLOTS, SlotKind, Wrapper};
use crate::codec::{Codec, ObjectCodec};
use crate::error::{Error, ErrorKind, Result};
use crate::secret::Passphrase;

use super::Superblock;
use super::superblock::{Encryption, MAX_LABEL_BYTES};

/// What the associated data of the private part begin with.
const PURPOSE: &[u8] = b"bucketdisk 1 private";

/// A superblock that can be used.
#[derive(Debug, Clone)]
pub struct Unlocked {
    superblock: Superblock,
    label: String,
    secrets: Option<Secrets>,
}

/// What only who has a passphrase has.
#[derive(Debug, Clone)]
struct Secrets {
    master: Arc<MasterKey>,
    keys: Arc<DiskKeys>,
    /// The slot that was opened; `None` for a disk that was made just now.
    slot: Option<u32>,
}

/// What of an encrypted disk's superblock is not public.
#[derive(Serialize, Deserialize)]
struct Private {
    label: String,
}

/// What of a superblock can be changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// The key slots; empty for a disk that is not encrypted.
    pub slots: Vec<KeySlot>,
    /// A name for people.
    pub label: String,
    /// How new blocks are compressed.
    pub compression: Compression,
}

impl Unlocked {
    /// A disk that is not encrypted, for which nobody has a key.
    ///
    /// # Errors
    /// `NoKey` where it is encrypted.
    pub fn plain(superblock: Superblock) -> Result<Unlocked> {
        if superblock.encryption.is_some() {
            let text = format!("disk {} is encrypted: it takes a passphrase", superblock.id);
            return Err(Error::new(ErrorKind::NoKey, text));
        }
        Ok(Unlocked {
            label: superblock.label.clone(),
            superblock,
            secrets: None,
        })
    }

    /// Opens an encrypted disk: with the slot of that number, or any. Takes about a second for each slot that is tried: those of
    /// the passphrase's own kind come first. One that this machine cannot try does not keep the others from opening it.
    ///
    /// # Errors
    /// `NoKey` where none opens; `Usage` where the disk says that it is not encrypted; `Damaged` where the superblock was altered; where
    /// none that could be tried opens, `Unsupported` if a slot asks for more work than is ever done for one, and `System` if it asks
    /// for more memory than there is.
    pub fn open(
        superblock: Superblock,
        passphrase: &Passphrase,
        kind: SlotKind,
        slot: Option<u32>,
    ) -> Result<Unlocked> {
        let Some(encryption) = &superblock.encryption else {
            return Err(not_encrypted(superblock.id));
        };
        let mut slots: Vec<&KeySlot> = encryption.slots.iter().collect();
        if let Some(number) = slot {
            slots.retain(|slot| slot.id == number);
            if slots.is_empty() {
                return Err(no_such_slot(number));
            }
        }
        slots.sort_by_key(|slot| (slot.kind != kind, slot.id));
        let mut untried = None;
        for candidate in slots {
            let opened = candidate.open(passphrase, superblock.id);
            let opened = opened.unwrap_or_else(|error| {
                untried.get_or_insert((candidate.id, error));
                None
            });
            if let Some(master) = opened {
                let (number, master) = (candidate.id, Arc::new(master));
                let keys = Arc::new(DiskKeys::derive(&master, superblock.id));
                let secrets = Secrets {
                    master,
                    keys,
                    slot: Some(number),
                };
                return Unlocked::authentic(superblock, secrets);
            }
        }
        if let Some((number, error)) = untried {
            let text = match slot {
                Some(_) => "choose another with --key-slot".to_owned(),
                None => format!(
                    "and that {} opens no other: give what does, and name its slot with --key-slot",
                    kind.name()
                ),
            };
            let text = format!("key slot {number} cannot be tried on this machine, {text}");
            return Err(error.within(text));
        }
        let text = match slot {
            Some(number) => format!("that {} does not open key slot {number}", kind.name()),
            None => format!("that {} opens none of the disk's key slots", kind.name()),
        };
        Err(Error::new(ErrorKind::NoKey, text))
    }

    /// A new disk, encrypted with a master key of its own, which one slot holds.
    pub(super) fn encrypted(
        mut superblock: Superblock,
        first: &Wrapper,
        master: MasterKey,
    ) -> Unlocked {
        let label = std::mem::take(&mut superblock.label);
        let slots = vec![first.wrap(&master, superblock.id, 0)];
        let keys = Arc::new(DiskKeys::derive(&master, superblock.id));
        let secrets = Secrets {
            master: Arc::new(master),
            keys,
            slot: None,
        };
        sealed(superblock, label, slots, secrets)
    }

    /// A superblock with the keys that it has to be authenticated by.
    fn authentic(superblock: Superblock, secrets: Secrets) -> Result<Unlocked> {
        let encryption = superblock
            .encryption
            .as_ref()
            .ok_or_else(|| not_encrypted(superblock.id))?;
        let text = superblock.to_be_authenticated();
        let key = &secrets.keys.superblock;
        if !is_mac(key, text.as_bytes(), &encryption.authentication) {
            return Err(altered(superblock.id));
        }
        let label = label(&superblock, encryption, &secrets)?;
        Ok(Unlocked {
            superblock,
            label,
            secrets: Some(secrets),
        })
    }

    /// Another generation of the same disk's superblock, with the keys of this one.
    ///
    /// # Errors
    /// `Damaged` where it was altered; `Usage` where it is not encrypted and this one is; `NoKey` the other way round; `NotFound` where it
    /// is that of another disk.
    pub fn at(&self, superblock: Superblock) -> Result<Unlocked> {
        if superblock.id != self.superblock.id {
            let text = format!(
                "disk {} is gone, and there is disk {} in its place",
                self.superblock.id, superblock.id
            );
            return Err(Error::new(ErrorKind::NotFound, text));
        }
        match &self.secrets {
            None => Unlocked::plain(superblock),
            Some(secrets) => Unlocked::authentic(superblock, secrets.clone()),
        }
    }

    /// The next generation: this one with changes.
    ///
    /// # Errors
    /// `Usage` where a disk would be left without slots, with too many, or with a label or compression that there is not.
    pub fn changed(&self, draft: Draft, generation: u32) -> Result<Unlocked> {
        let usage = |text: String| Err(Error::new(ErrorKind::Usage, text));
        if draft.label.len() > MAX_LABEL_BYTES {
            return usage(format!("a label has at most {MAX_LABEL_BYTES} bytes"));
        }
        let mut superblock = self.superblock.clone();
        superblock.generation = generation;
        superblock.compression = draft.compression;
        let Some(secrets) = &self.secrets else {
            superblock.label.clone_from(&draft.label);
            return Ok(Unlocked {
                superblock,
                label: draft.label,
                secrets: None,
            });
        };
        if draft.slots.is_empty() {
            return usage(
                "the last key slot stays: without one nobody could open the disk".to_owned(),
            );
        }
        if draft.slots.len() > MOST_SLOTS {
            return usage(format!(
                "a disk has at most {MOST_SLOTS} key slots: remove one first"
            ));
        }
        Ok(sealed(
            superblock,
            draft.label,
            draft.slots,
            secrets.clone(),
        ))
    }

    /// What can be changed, as it is.
    pub fn draft(&self) -> Draft {
        Draft {
            slots: self.slots().to_vec(),
            label: self.label.clone(),
            compression: self.superblock.compression,
        }
    }

    /// The superblock.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// The superblock with the label that it does not show of an encrypted disk: for what shows it to who has the key. Never stored.
    pub fn with_label(&self) -> Superblock {
        let mut superblock = self.superblock.clone();
        superblock.label.clone_from(&self.label);
        superblock
    }

    /// The label, which a superblock on its own does not say of an encrypted disk; empty if none.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The key slots; none for a disk that is not encrypted.
    pub fn slots(&self) -> &[KeySlot] {
        let encryption = self.superblock.encryption.as_ref();
        encryption.map_or(&[], |encryption| &encryption.slots)
    }

    /// The slot that was opened; `None` for a disk that was made just now, or that is not encrypted.
    pub fn opened_slot(&self) -> Option<u32> {
        self.secrets.as_ref().and_then(|secrets| secrets.slot)
    }

    /// A slot of that number for another passphrase; `None` where the disk is not encrypted.
    pub fn wrap(&self, wrapper: &Wrapper, number: u32) -> Option<KeySlot> {
        let secrets = self.secrets.as_ref()?;
        Some(wrapper.wrap(&secrets.master, self.superblock.id, number))
    }

    /// The keys of an encrypted disk.
    pub fn keys(&self) -> Option<&Arc<DiskKeys>> {
        self.secrets.as_ref().map(|secrets| &secrets.keys)
    }

    /// How the disk's objects are written and read.
    pub fn codec(&self) -> Arc<dyn Codec> {
        let compression = self.superblock.compression;
        Arc::new(ObjectCodec::new(compression, self.keys().cloned()))
    }
}

/// A superblock with slots, sealed and authenticated.
fn sealed(
    mut superblock: Superblock,
    label: String,
    slots: Vec<KeySlot>,
    secrets: Secrets,
) -> Unlocked {
    let private = Private { label };
    let mut content = serde_json::to_vec(&private).expect("plain data in memory serialises");
    let nonce = fresh_nonce();
    let key = &secrets.keys.private;
    let tag = seal(key, &nonce, &associated(&superblock), &mut content);
    let mut encryption = Encryption {
        slots,
        private: [&nonce[..], &tag, &content].concat(),
        authentication: [0; _],
    };
    superblock.encryption = Some(encryption.clone());
    let text = superblock.to_be_authenticated();
    encryption.authentication = mac(&secrets.keys.superblock, text.as_bytes());
    superblock.encryption = Some(encryption);
    Unlocked {
        superblock,
        label: private.label,
        secrets: Some(secrets),
    }
}

/// The label of an authenticated superblock.
fn label(superblock: &Superblock, encryption: &Encryption, secrets: &Secrets) -> Result<String> {
    let broken = || altered(superblock.id);
    let private = encryption.private.as_slice();
    let (nonce, rest) = private
        .split_first_chunk::<NONCE_BYTES>()
        .ok_or_else(broken)?;
    let (tag, content) = rest.split_first_chunk::<TAG_BYTES>().ok_or_else(broken)?;
    let mut content = content.to_vec();
    let key = &secrets.keys.private;
    open(key, nonce, &associated(superblock), &mut content, tag).map_err(|_| broken())?;
    let private: Private = serde_json::from_slice(&content).map_err(|_| broken())?;
    Ok(private.label)
}

/// What the private part is bound to.
fn associated(superblock: &Superblock) -> Vec<u8> {
    let generation = superblock.generation.to_le_bytes();
    [PURPOSE, superblock.id.as_bytes(), &generation].concat()
}

fn altered(disk: Uuid) -> Error {
    let text = format!(
        "the superblock of disk {disk} was altered by somebody without its key: put back the object disk.json as it was"
    );
    Error::new(ErrorKind::Damaged, text)
}

/// A key was given for a disk that says that it takes none.
fn not_encrypted(disk: Uuid) -> Error {
    let text = format!(
        "disk {disk} is not encrypted, and a key was given, by an option or as a credential of systemd: if the disk was encrypted, it has \
         been altered or replaced; else leave the key out"
    );
    Error::new(ErrorKind::Usage, text)
}

/// There is no key slot of a number.
fn no_such_slot(number: u32) -> Error {
    let text = format!("there is no key slot {number}: see 'bucketdisk key list'");
    Error::new(ErrorKind::NotFound, text)
}
