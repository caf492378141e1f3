//! A record's header: 64 bytes, little-endian, at a multiple of 64 bytes of its segment; its payload follows.
//!
//! | at | bytes | what |
//! |---|---|---|
//! | 0 | 4 | `BDJr` |
//! | 4 | 4 | kind: 1 bytes written, 2 made zero |
//! | 8 | 8 | number of the record |
//! | 16 | 8 | every record with a smaller number than this was durable when this one was written |
//! | 24 | 8 | offset in the disk, in bytes |
//! | 32 | 8 | length in bytes: of the payload, or of the range that was made zero (then there is no payload) |
//! | 40 | 16 | checksum of the payload (8 bytes), then zero; or where the segment is sealed, a tag |
//! | 56 | 8 | checksum of the 56 bytes before |
//!
//! The tag is for the journal's id, the first 56 bytes of the segment's header, the first 40 of this one, and the payload. In a sealed
//! segment offset and length, the bytes from 24 to 40, are hidden, after the tag was made.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::cipher::Sealer;

/// Bytes of a header, and what records are aligned to.
pub(super) const HEADER_BYTES: usize = 64;

const MAGIC: [u8; 4] = *b"BDJr";
const CHECKED: usize = 56;
/// No segment and no record ever has this number or one beyond it: what names one was never written by this program, and is not counted on from.
pub(super) const NO_NUMBER: u64 = 1 << 62;
/// Bytes of what stands for the payload.
pub(super) const CHECK_BYTES: usize = 16;
/// What of a header a tag covers; its last 16 bytes are hidden.
pub(super) const SAID: usize = 40;
const OPEN: usize = 24;

/// What a record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Bytes were written.
    Write,
    /// A range was made zero.
    Zeros,
}

/// A record but for its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) kind: Kind,
    pub(super) number: u64,
    pub(super) durable: u64,
    pub(super) offset: u64,
    pub(super) len: u64,
    /// Checksum or tag of the payload.
    pub(super) check: [u8; CHECK_BYTES],
}

impl Record {
    /// Bytes of the payload.
    pub(super) fn payload_len(&self) -> u64 {
        match self.kind {
            Kind::Write => self.len,
            Kind::Zeros => 0,
        }
    }

    /// Bytes of the log that it takes, up to the place of the next one.
    pub(super) fn takes(&self) -> u64 {
        HEADER_BYTES as u64 + aligned(self.payload_len())
    }

    /// What a header says, but for what is made of it and the payload.
    pub(super) fn said(&self) -> [u8; SAID] {
        let mut said = [0; SAID];
        said[..4].copy_from_slice(&MAGIC);
        let kind: u32 = match self.kind {
            Kind::Write => 1,
            Kind::Zeros => 2,
        };
        said[4..8].copy_from_slice(&kind.to_le_bytes());
        let words = [self.number, self.durable, self.offset, self.len];
        for (at, word) in words.into_iter().enumerate() {
            put(&mut said, 8 + 8 * at, word);
        }
        said
    }

    /// Encodes a header for a place of a segment with that seed.
    pub(super) fn encode(&self, at: u64, seed: u64, sealer: Option<&Sealer>) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        header[..SAID].copy_from_slice(&self.said());
        if let Some(sealer) = sealer {
            sealer.hide(at, &mut header[OPEN..SAID]);
        }
        header[SAID..CHECKED].copy_from_slice(&self.check);
        let check = check(&header[..CHECKED], seed.wrapping_add(at));
        put(&mut header, CHECKED, check);
        header
    }

    /// Decodes a header that was found at a place of a segment with that seed; `None` where there is none, or none of this segment.
    pub(super) fn decode(
        header: &[u8; HEADER_BYTES],
        at: u64,
        seed: u64,
        sealer: Option<&Sealer>,
    ) -> Option<Record> {
        let sum = check(&header[..CHECKED], seed.wrapping_add(at));
        if header[..4] != MAGIC || get(header, CHECKED) != sum {
            return None;
        }
        let kind = match header[4..8] {
            [1, 0, 0, 0] => Kind::Write,
            [2, 0, 0, 0] => Kind::Zeros,
            _ => return None,
        };
        let mut said = *header;
        if let Some(sealer) = sealer {
            sealer.hide(at, &mut said[OPEN..SAID]);
        }
        Some(Record {
            kind,
            number: get(&said, 8),
            durable: get(&said, 16),
            offset: get(&said, 24),
            len: get(&said, 32),
            check: said[SAID..CHECKED].try_into().ok()?,
        })
    }
}

/// Whether bytes may be the beginning of a header.
pub(super) fn may_be_header(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC)
}

/// The checksum of headers and payloads.
pub(super) fn check(bytes: &[u8], seed: u64) -> u64 {
    xxh3_64_with_seed(bytes, seed)
}

/// The place after `at` bytes where a record may begin.
pub(super) fn aligned(at: u64) -> u64 {
    at.next_multiple_of(HEADER_BYTES as u64)
}

/// Puts a number.
pub(super) fn put(into: &mut [u8], at: usize, value: u64) {
    into[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

/// Gets a number; zero beyond the end.
pub(super) fn get(from: &[u8], at: usize) -> u64 {
    let bytes = from.get(at..at + 8).and_then(|b| b.try_into().ok());
    u64::from_le_bytes(bytes.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use uuid::Uuid;

    use super::super::cipher::fresh_salt;
    use super::*;
    use crate::codec::keys::{DiskKeys, MasterKey};
    use crate::secret::Key;

    const RECORD: Record = Record {
        kind: Kind::Write,
        number: 0x0102_0304_0506_0708,
        durable: 7,
        offset: 4096,
        len: 512,
        check: [0xee; CHECK_BYTES],
    };

    fn sealer() -> Sealer {
        let keys = DiskKeys::derive(&MasterKey(Key::fresh()), Uuid::nil());
        let mut name = [0; 72];
        name[56..].copy_from_slice(&fresh_salt());
        Sealer::new(Arc::new(keys), name)
    }

    #[test]
    fn a_header_is_what_was_encoded_and_only_at_its_place_under_its_seed() {
        let sealer = sealer();
        for sealer in [None, Some(&sealer)] {
            for kind in [Kind::Write, Kind::Zeros] {
                let record = Record { kind, ..RECORD };
                let header = record.encode(640, 5, sealer);
                assert_eq!(Record::decode(&header, 640, 5, sealer), Some(record));
                assert_eq!(Record::decode(&header, 640, 6, sealer), None);
                assert_eq!(Record::decode(&header, 704, 5, sealer), None);
            }
        }
    }

    #[test]
    fn a_sealed_header_does_not_show_where_in_the_disk_it_belongs() {
        let header = RECORD.encode(640, 5, Some(&sealer()));
        assert_ne!(get(&header, 24), RECORD.offset);
        assert_ne!(get(&header, 32), RECORD.len);
    }

    #[test]
    fn a_header_with_any_bit_flipped_is_none() {
        let header = RECORD.encode(64, 5, None);
        for bit in 0..HEADER_BYTES * 8 {
            let mut altered = header;
            altered[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Record::decode(&altered, 64, 5, None), None, "bit {bit}");
        }
    }
}
