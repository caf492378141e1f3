//! The codec of disks that are neither compressed nor encrypted: a header with a checksum, then the plain bytes.
//!
//! The checksum (XXH3-128, see <https://github.com/Cyan4973/xxHash>) finds accidents, not adversaries.

use bytes::{BufMut, Bytes, BytesMut};
use xxhash_rust::xxh3::Xxh3;

use super::{Codec, DecodeError, Place};

/// Bytes of the header.
pub const HEADER_BYTES: usize = 32;

const MAGIC: [u8; 4] = *b"BKTD";
const FORMAT_VERSION: u8 = 1;
const CODEC_PLAIN: u8 = 0;
const NO_FLAGS: u8 = 0;
/// Bytes of the header before the checksum: these are themselves part of what is checked.
const PREAMBLE_BYTES: usize = 16;
const CHECKSUM_BYTES: usize = 16;

/// Plain bytes behind a 32-byte header; every bit of header, content and [`Place`] is checked.
#[derive(Debug, Clone, Copy, Default)]
pub struct Checked;

impl Codec for Checked {
    fn encode(&self, place: &Place, plain: &[u8]) -> Bytes {
        let preamble = preamble(place, plain.len() as u64);
        let mut object = BytesMut::with_capacity(HEADER_BYTES + plain.len());
        object.put_slice(&preamble);
        object.put_slice(&checksum(&preamble, place, plain));
        object.put_slice(plain);
        object.freeze()
    }

    fn decode(&self, place: &Place, object: Bytes) -> Result<Bytes, DecodeError> {
        let too_short = DecodeError::TooShort {
            length: object.len(),
        };
        let (preamble, rest) = object
            .split_first_chunk::<PREAMBLE_BYTES>()
            .ok_or(too_short)?;
        let (stored, plain) = rest
            .split_first_chunk::<CHECKSUM_BYTES>()
            .ok_or(too_short)?;
        let [m0, m1, m2, m3, version, kind, codec, flags, length @ ..] = *preamble;
        if [m0, m1, m2, m3] != MAGIC {
            return Err(DecodeError::NotOurs);
        }
        if version != FORMAT_VERSION {
            return Err(DecodeError::UnknownVersion { version });
        }
        if kind != place.kind.byte() {
            return Err(DecodeError::WrongKind {
                expected: place.kind,
                found: kind,
            });
        }
        if codec != CODEC_PLAIN || flags != NO_FLAGS {
            return Err(DecodeError::UnknownCodec { codec, flags });
        }
        let (expected, found) = (u64::from_le_bytes(length), plain.len() as u64);
        if expected != found {
            return Err(DecodeError::WrongLength { expected, found });
        }
        if checksum(preamble, place, plain) != *stored {
            return Err(DecodeError::WrongChecksum);
        }
        Ok(object.slice(HEADER_BYTES..))
    }
}

/// The part of the header before the checksum.
fn preamble(place: &Place, plain_bytes: u64) -> [u8; PREAMBLE_BYTES] {
    let [m0, m1, m2, m3] = MAGIC;
    let [l0, l1, l2, l3, l4, l5, l6, l7] = plain_bytes.to_le_bytes();
    let kind = place.kind.byte();
    [
        m0,
        m1,
        m2,
        m3,
        FORMAT_VERSION,
        kind,
        CODEC_PLAIN,
        NO_FLAGS,
        l0,
        l1,
        l2,
        l3,
        l4,
        l5,
        l6,
        l7,
    ]
}

/// The checksum over preamble, place and content, in canonical (big-endian) form.
fn checksum(preamble: &[u8; PREAMBLE_BYTES], place: &Place, plain: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut hash = Xxh3::new();
    hash.update(preamble);
    hash.update(place.disk.as_bytes());
    hash.update(&place.index.to_le_bytes());
    hash.update(&place.seq.0.to_le_bytes());
    hash.update(plain);
    hash.digest128().to_be_bytes()
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::block::Seq;
    use crate::codec::ObjectKind;

    const PLACE: Place = Place {
        disk: Uuid::from_u128(7),
        kind: ObjectKind::Block,
        index: 3,
        seq: Seq(9),
    };

    #[test]
    fn decoding_answers_what_was_encoded_without_copying_it() {
        for plain in [&b""[..], b"x", &[7; 100_000]] {
            let object = Checked.encode(&PLACE, plain);
            assert_eq!(object.len(), HEADER_BYTES + plain.len());
            let back = Checked.decode(&PLACE, object.clone()).expect("decodes");
            assert_eq!(back, plain);
            if !plain.is_empty() {
                assert_eq!(back.as_ptr(), object[HEADER_BYTES..].as_ptr());
            }
        }
    }

    #[test]
    fn an_object_at_another_place_is_refused() {
        let object = Checked.encode(&PLACE, b"content");
        let elsewhere = [
            Place {
                disk: Uuid::from_u128(8),
                ..PLACE
            },
            Place { index: 4, ..PLACE },
            Place {
                seq: Seq(10),
                ..PLACE
            },
        ];
        for place in elsewhere {
            assert_eq!(
                Checked.decode(&place, object.clone()),
                Err(DecodeError::WrongChecksum)
            );
        }
        let place = Place {
            kind: ObjectKind::Record,
            ..PLACE
        };
        assert_eq!(
            Checked.decode(&place, object),
            Err(DecodeError::WrongKind {
                expected: ObjectKind::Record,
                found: 1
            })
        );
    }

    #[test]
    fn a_header_of_another_program_is_named_not_guessed() {
        let object = Checked.encode(&PLACE, b"content").to_vec();
        let with = |at: usize, value: u8| {
            let mut changed = object.clone();
            changed[at] = value;
            Checked.decode(&PLACE, changed.into())
        };
        assert_eq!(with(0, b'X'), Err(DecodeError::NotOurs));
        assert_eq!(with(4, 2), Err(DecodeError::UnknownVersion { version: 2 }));
        assert_eq!(
            with(6, 1),
            Err(DecodeError::UnknownCodec { codec: 1, flags: 0 })
        );
        assert_eq!(
            with(7, 128),
            Err(DecodeError::UnknownCodec {
                codec: 0,
                flags: 128
            })
        );
        assert_eq!(
            with(8, 8),
            Err(DecodeError::WrongLength {
                expected: 8,
                found: 7
            })
        );
        assert_eq!(
            Checked.decode(&PLACE, Bytes::copy_from_slice(&object[..31])),
            Err(DecodeError::TooShort { length: 31 })
        );
    }
}
