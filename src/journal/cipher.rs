//! Sealing what a journal holds, for a disk that is encrypted.
//!
//! Each segment draws 16 random bytes when it is begun, its *salt*; with a record's place in the segment, where only one record is ever
//! written under that salt, they make the record's nonce. So no nonce comes twice, also not where a journal was put back to an older
//! copy: whoever goes on with it begins a segment.

use std::sync::Arc;

use crate::codec::keys::DiskKeys;
use crate::codec::seal::{NONCE_BYTES, Nonce, TAG_BYTES, open, open_part, seal};
use crate::secret::random;

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

/// Seals the records of one segment under one salt.
#[derive(Debug, Clone)]
pub(super) struct Sealer {
    keys: Arc<DiskKeys>,
    salt: [u8; SALT_BYTES],
}

impl Sealer {
    pub(super) fn new(keys: Arc<DiskKeys>, salt: [u8; SALT_BYTES]) -> Sealer {
        Sealer { keys, salt }
    }

    /// Encrypts the payload of the record at a place, and answers the tag for it and for what its header says.
    pub(super) fn seal(&self, at: u64, header: &[u8], payload: &mut [u8]) -> [u8; TAG_BYTES] {
        seal(&self.keys.journal, &self.nonce(at), header, payload)
    }

    /// Decrypts the payload of the record at a place; `false` where it or its header is not what was sealed there.
    pub(super) fn open(
        &self,
        at: u64,
        header: &[u8],
        payload: &mut [u8],
        tag: &[u8; TAG_BYTES],
    ) -> bool {
        open(&self.keys.journal, &self.nonce(at), header, payload, tag).is_ok()
    }

    /// Decrypts a part of the payload of the record at a place, unverified.
    pub(super) fn open_part(&self, at: u64, skip: u64, part: &mut [u8]) {
        open_part(&self.keys.journal, &self.nonce(at), skip, part);
    }

    /// Hides where in the disk the record at a place belongs, or shows it again.
    pub(super) fn hide(&self, at: u64, place: &mut [u8]) {
        open_part(&self.keys.journal_places, &self.nonce(at), 0, place);
    }

    fn nonce(&self, at: u64) -> Nonce {
        let mut nonce = [0; NONCE_BYTES];
        let (salt, place) = nonce.split_at_mut(SALT_BYTES);
        salt.copy_from_slice(&self.salt);
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

    #[test]
    fn the_same_bytes_are_sealed_differently_in_every_segment_and_at_every_place() {
        let keys = Arc::new(DiskKeys::derive(&MasterKey(Key::fresh()), Uuid::nil()));
        let mut seen = std::collections::HashSet::new();
        for _ in 0..3 {
            let sealer = Sealer::new(Arc::clone(&keys), fresh_salt());
            for at in [64, 128] {
                let mut payload = [7; 32];
                sealer.seal(at, b"header", &mut payload);
                assert!(seen.insert(payload));
                let mut place = [7; 32];
                sealer.hide(at, &mut place);
                assert!(seen.insert(place), "by another key than the payload");
            }
        }
    }
}
