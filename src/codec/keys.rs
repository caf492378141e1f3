//! The keys of an encrypted disk: one master key, made at random when the disk is, and a key for each purpose derived from it.
//!
//! HKDF (RFC 5869) with SHA-256, the disk's id as salt and `bucketdisk 1 ` with the purpose as info: two disks have no key in common
//! even if their master keys were the same, and what one purpose gives away helps nobody with another.

use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use uuid::Uuid;

use crate::secret::{KEY_BYTES, Key};

/// Bytes of a [`mac`].
pub const MAC_BYTES: usize = 32;

/// The key that key slots wrap: whoever has it has the disk. It never changes.
#[derive(Debug)]
pub struct MasterKey(pub Key);

/// What is derived from a disk's master key.
#[derive(Debug)]
pub struct DiskKeys {
    /// Seals blocks, records, checkpoints, snapshots.
    pub objects: Key,
    /// Makes the digests by which a record names the one before it.
    pub digests: Key,
    /// Authenticates the superblock.
    pub superblock: Key,
    /// Seals what of the superblock is not public.
    pub private: Key,
    /// Seals the bytes of the journal on the local disk.
    pub journal: Key,
    /// Hides where in the disk they belong.
    pub journal_places: Key,
    /// Authenticates what the journal says of itself: its state, and the headers of its segments.
    pub journal_macs: Key,
}

impl DiskKeys {
    /// The keys of a disk.
    pub fn derive(master: &MasterKey, disk: Uuid) -> DiskKeys {
        let source = Hkdf::<Sha256>::new(Some(disk.as_bytes()), master.0.bytes());
        let key = |purpose: &str| {
            Key::fill(|into: &mut [u8; KEY_BYTES]| {
                let info = [b"bucketdisk 1 ", purpose.as_bytes()].concat();
                let filled = source.expand(&info, into);
                filled.expect("HKDF with SHA-256 gives up to 8160 bytes");
            })
        };
        DiskKeys {
            objects: key("objects"),
            digests: key("digests"),
            superblock: key("superblock"),
            private: key("private"),
            journal: key("journal"),
            journal_places: key("journal places"),
            journal_macs: key("journal macs"),
        }
    }
}

/// HMAC-SHA-256 (RFC 2104, RFC 6234) of bytes: only who has the key can make it.
pub fn mac(key: &Key, bytes: &[u8]) -> [u8; MAC_BYTES] {
    keyed(key, bytes).finalize().into_bytes().into()
}

/// Whether a MAC is that of the bytes; takes the same time wherever it differs.
pub fn is_mac(key: &Key, bytes: &[u8], mac: &[u8]) -> bool {
    keyed(key, bytes).verify_slice(mac).is_ok()
}

fn keyed(key: &Key, bytes: &[u8]) -> Hmac<Sha256> {
    let mut hmac = Hmac::<Sha256>::new_from_slice(key.bytes()).expect("a key of any length does");
    hmac.update(bytes);
    hmac
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    /// RFC 5869, A.1.
    #[test]
    fn keys_are_derived_as_published() {
        let salt: Vec<u8> = (0..=0x0c).collect();
        let info: Vec<u8> = (0xf0..=0xf9).collect();
        let mut okm = [0; 42];
        Hkdf::<Sha256>::new(Some(&salt), &[0x0b; 22])
            .expand(&info, &mut okm)
            .expect("42 bytes");
        assert_eq!(
            hex(&okm),
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
        );
    }

    /// RFC 4231, test case 1: its key has 20 bytes, which HMAC fills up with zeros itself.
    #[test]
    fn a_mac_is_as_published() {
        let key = Key::fill(|key| key[..20].fill(0x0b));
        let made = mac(&key, b"Hi There");
        assert_eq!(
            hex(&made),
            "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"
        );
        assert!(is_mac(&key, b"Hi There", &made));
        assert!(!is_mac(&key, b"Hi there", &made));
        assert!(!is_mac(&key, b"Hi There", &made[..31]));
    }

    #[test]
    fn every_purpose_and_every_disk_has_keys_of_its_own() {
        let master = MasterKey(Key::fresh());
        let mut seen = std::collections::HashSet::new();
        for disk in [1, 2] {
            let keys = DiskKeys::derive(&master, Uuid::from_u128(disk));
            for key in [
                &keys.objects,
                &keys.digests,
                &keys.superblock,
                &keys.private,
                &keys.journal,
                &keys.journal_places,
                &keys.journal_macs,
            ] {
                assert!(seen.insert(*key.bytes()));
            }
        }
    }
}
