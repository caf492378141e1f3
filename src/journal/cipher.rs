//! Sealing what a journal holds, for a disk that is encrypted.
//!
//! Each segment draws 16 random bytes when it is begun, its *salt*; with a record's place in the segment, where only one record is ever
//! written under that salt, they make the record's nonce. So no nonce comes twice, also not where a journal was put back to an older
//! copy: whoever goes on with it begins a segment.
//!
//! Where a segment belongs in the log only its header says. So that nobody without the keys can take one out of the middle and have the
//! rest go on without it, the header is authenticated, by itself, as there may be no record behind it, and with each record's tag.

use std::sync::Arc;

use crate::codec::keys::{DiskKeys, mac};
use crate::codec::seal::{NONCE_BYTES, Nonce, TAG_BYTES, hide, open, seal};
use crate::secret::random;

use super::record::SAID;

/// Bytes of a salt.
pub(super) const SALT_BYTES: usize = 16;

/// The salt of a segment that is not sealed.
pub(super) const NO_SALT: [u8; SALT_BYTES] = [0; SALT_BYTES];

/// A salt from the kernel's random numbers.
pub(super) fn fresh_salt() -> [u8; SALT_BYTES] {
    let mut salt = NO_SALT;
    random(&mut salt);
    salt
}

/// Bytes of a [`Name`].
const NAME_BYTES: usize = 72;

/// Which segment it is: the journal's id, and what the segment's header says, its salt last.
pub(super) type Name = [u8; NAME_BYTES];

/// What stands in a header for its checksum, where only who has the keys may make it.
pub(super) fn name_mac(keys: &DiskKeys, name: &Name) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = mac(&keys.journal_macs, name);
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// Seals the records of one segment under its salt.
#[derive(Debug, Clone)]
pub(super) struct Sealer {
    keys: Arc<DiskKeys>,
    name: Name,
}

impl Sealer {
    pub(super) fn new(keys: Arc<DiskKeys>, name: Name) -> Sealer {
        Sealer { keys, name }
    }

    /// Encrypts the payload of the record at a place, and answers the tag for it, and for what its header and its segment's say.
    pub(super) fn seal(&self, at: u64, header: &[u8; SAID], payload: &mut [u8]) -> [u8; TAG_BYTES] {
        let associated = self.associated(header);
        seal(&self.keys.journal, &self.nonce(at), &associated, payload)
    }

    /// Decrypts the payload of the record at a place; `false` where it or its header is not what was sealed there.
    pub(super) fn open(
        &self,
        at: u64,
        header: &[u8; SAID],
        payload: &mut [u8],
        tag: &[u8; TAG_BYTES],
    ) -> bool {
        let (key, nonce) = (&self.keys.journal, self.nonce(at));
        open(key, &nonce, &self.associated(header), payload, tag).is_ok()
    }

    /// Hides where in the disk the record at a place belongs, or shows it again.
    pub(super) fn hide(&self, at: u64, place: &mut [u8]) {
        hide(&self.keys.journal_places, &self.nonce(at), place);
    }

    fn associated(&self, header: &[u8; SAID]) -> [u8; NAME_BYTES + SAID] {
        let mut associated = [0; NAME_BYTES + SAID];
        let (name, said) = associated.split_at_mut(NAME_BYTES);
        name.copy_from_slice(&self.name);
        said.copy_from_slice(header);
        associated
    }

    fn nonce(&self, at: u64) -> Nonce {
        let mut nonce = [0; NONCE_BYTES];
        let (salt, place) = nonce.split_at_mut(SALT_BYTES);
        salt.copy_from_slice(&self.name[NAME_BYTES - SALT_BYTES..]);
        place.copy_from_slice(&at.to_le_bytes());
        nonce
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::codec::keys::MasterKey;
    use crate::secret::Key;

    /// The last bytes are the salt.
    fn name(salt: [u8; SALT_BYTES]) -> Name {
        let mut name = [3; NAME_BYTES];
        name[NAME_BYTES - SALT_BYTES..].copy_from_slice(&salt);
        name
    }

    #[test]
    fn a_record_opens_only_in_the_segment_that_it_was_sealed_in() {
        let keys = Arc::new(DiskKeys::derive(&MasterKey(Key::fresh()), Uuid::nil()));
        let name = name([9; SALT_BYTES]);
        let mut sealed = [7; 32];
        let tag = Sealer::new(Arc::clone(&keys), name).seal(64, &[1; SAID], &mut sealed);
        for at in 0..NAME_BYTES {
            let mut other = name;
            other[at] ^= 1;
            let other = Sealer::new(Arc::clone(&keys), other);
            assert!(
                !other.open(64, &[1; SAID], &mut sealed.clone(), &tag),
                "{at}"
            );
        }
        let same = Sealer::new(keys, name);
        assert!(same.open(64, &[1; SAID], &mut sealed, &tag));
        assert_eq!(sealed, [7; 32]);
    }

    #[test]
    fn the_same_bytes_are_sealed_differently_in_every_segment_and_at_every_place() {
        let keys = Arc::new(DiskKeys::derive(&MasterKey(Key::fresh()), Uuid::nil()));
        let mut seen = std::collections::HashSet::new();
        for _ in 0..3 {
            let sealer = Sealer::new(Arc::clone(&keys), name(fresh_salt()));
            for at in [64, 128] {
                let mut payload = [7; 32];
                sealer.seal(at, &[1; SAID], &mut payload);
                assert!(seen.insert(payload));
                let mut place = [7; 32];
                sealer.hide(at, &mut place);
                assert!(seen.insert(place), "by another key than the payload");
            }
        }
    }
}
