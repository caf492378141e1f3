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
//! | 40 | 8 | checksum of the payload |
//! | 48 | 8 | zero |
//! | 56 | 8 | checksum of the 56 bytes before |

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Bytes of a header, and what records are aligned to.
pub(super) const HEADER_BYTES: usize = 64;

const MAGIC: [u8; 4] = *b"BDJr";
const CHECKED: usize = 56;

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
    pub(super) payload_check: u64,
}

impl Record {
    /// Bytes of the payload.
    pub(super) fn payload_len(&self) -> u64 {
        match self.kind {
            Kind::Write => self.len,
            Kind::Zeros => 0,
        }
    }

    /// Encodes a header under its segment's seed.
    pub(super) fn encode(&self, seed: u64) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        header[..4].copy_from_slice(&MAGIC);
        let kind: u32 = match self.kind {
            Kind::Write => 1,
            Kind::Zeros => 2,
        };
        header[4..8].copy_from_slice(&kind.to_le_bytes());
        let words = [
            self.number,
            self.durable,
            self.offset,
            self.len,
            self.payload_check,
            0,
        ];
        for (at, word) in words.into_iter().enumerate() {
            put(&mut header, 8 + 8 * at, word);
        }
        let check = check(&header[..CHECKED], seed);
        put(&mut header, CHECKED, check);
        header
    }

    /// Decodes a header; `None` where there is none, or none of this segment.
    pub(super) fn decode(header: &[u8; HEADER_BYTES], seed: u64) -> Option<Record> {
        if header[..4] != MAGIC || get(header, CHECKED) != check(&header[..CHECKED], seed) {
            return None;
        }
        let kind = match header[4..8] {
            [1, 0, 0, 0] => Kind::Write,
            [2, 0, 0, 0] => Kind::Zeros,
            _ => return None,
        };
        Some(Record {
            kind,
            number: get(header, 8),
            durable: get(header, 16),
            offset: get(header, 24),
            len: get(header, 32),
            payload_check: get(header, 40),
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
    use super::*;

    const RECORD: Record = Record {
        kind: Kind::Write,
        number: 0x0102_0304_0506_0708,
        durable: 7,
        offset: 4096,
        len: 512,
        payload_check: u64::MAX,
    };

    #[test]
    fn a_header_is_what_was_encoded_and_only_under_its_seed() {
        for kind in [Kind::Write, Kind::Zeros] {
            let record = Record { kind, ..RECORD };
            let header = record.encode(5);
            assert_eq!(Record::decode(&header, 5), Some(record));
            assert_eq!(Record::decode(&header, 6), None);
        }
    }

    #[test]
    fn a_header_with_any_bit_flipped_is_none() {
        let header = RECORD.encode(5);
        for bit in 0..HEADER_BYTES * 8 {
            let mut altered = header;
            altered[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Record::decode(&altered, 5), None, "bit {bit}");
        }
    }
}
