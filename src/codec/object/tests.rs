use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::block::Seq;
use crate::codec::keys::MasterKey;
use crate::codec::seal::BrokenSeal;
use crate::secret::Key;

const PLACE: Place = Place {
    disk: Uuid::from_u128(7),
    kind: ObjectKind::Block,
    index: 3,
    seq: Seq(9),
};

fn keys() -> Option<Arc<DiskKeys>> {
    let master = MasterKey(Key::fill(|key| key.fill(1)));
    Some(Arc::new(DiskKeys::derive(&master, PLACE.disk)))
}

fn compressions() -> [Compression; 4] {
    ["none", "zstd:1", "lz4", "zlib:1"].map(|text| text.parse().expect("a compression"))
}

/// Every way to write an object, by whether it is sealed.
fn codecs() -> Vec<(bool, ObjectCodec)> {
    let of = |keys: &Option<Arc<DiskKeys>>| {
        compressions().map(|c| (keys.is_some(), ObjectCodec::new(c, keys.clone())))
    };
    [of(&None), of(&keys())].concat()
}

/// Content that shrinks.
fn text(bytes: usize) -> Vec<u8> {
    let words = b"every block, record and checkpoint carries a checksum ";
    words.iter().copied().cycle().take(bytes).collect()
}

#[test]
fn decoding_answers_what_was_encoded() {
    for (_, codec) in codecs() {
        for plain in [&b""[..], b"x", &[7; 100_000], &text(262_144)] {
            let object = codec.encode(&PLACE, plain);
            assert_eq!(codec.decode(&PLACE, object).expect("decodes"), plain);
        }
    }
}

#[test]
fn what_is_neither_packed_nor_sealed_is_decoded_without_copying_it() {
    let object = ObjectCodec::PLAIN.encode(&PLACE, b"content");
    let back = ObjectCodec::PLAIN.decode(&PLACE, object.clone());
    assert_eq!(
        back.expect("decodes").as_ptr(),
        object[HEADER_BYTES..].as_ptr()
    );
}

#[test]
fn blocks_are_packed_and_nothing_else_is() {
    let plain = text(262_144);
    for (_, codec) in codecs() {
        let block = codec.encode(&PLACE, &plain);
        let packs = codec.compression != Compression::None;
        assert_eq!(block.len() < plain.len() / 4, packs, "{codec:?}");
        assert_eq!(block[6] != 0, packs);
        let place = Place {
            kind: ObjectKind::Checkpoint,
            ..PLACE
        };
        let checkpoint = codec.encode(&place, &plain);
        assert_eq!(checkpoint.len(), codec.header_bytes() + plain.len());
    }
}

#[test]
fn every_codec_reads_what_any_other_of_the_disk_has_packed() {
    let plain = text(65_536);
    for (sealed, writer) in codecs() {
        let object = writer.encode(&PLACE, &plain);
        for (_, reader) in codecs().iter().filter(|(other, _)| *other == sealed) {
            let back = reader.decode(&PLACE, object.clone());
            assert_eq!(back.expect("decodes"), plain);
        }
    }
}

#[test]
fn sealed_and_plain_objects_do_not_pass_for_each_other() {
    for (sealed, writer) in codecs() {
        let object = writer.encode(&PLACE, b"content");
        for (_, reader) in codecs().iter().filter(|(other, _)| *other != sealed) {
            let expected = match sealed {
                true => DecodeError::Sealed,
                false => DecodeError::NotSealed,
            };
            assert_eq!(reader.decode(&PLACE, object.clone()), Err(expected));
        }
    }
}

#[test]
fn an_object_at_another_place_is_refused() {
    for (sealed, codec) in codecs() {
        let object = codec.encode(&PLACE, &text(5000));
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
        let expected = match sealed {
            true => DecodeError::BrokenSeal(BrokenSeal),
            false => DecodeError::WrongChecksum,
        };
        for place in elsewhere {
            assert_eq!(codec.decode(&place, object.clone()), Err(expected));
        }
        let place = Place {
            kind: ObjectKind::Record,
            ..PLACE
        };
        assert_eq!(
            codec.decode(&place, object),
            Err(DecodeError::WrongKind {
                expected: ObjectKind::Record,
                found: 1
            })
        );
    }
}

#[test]
fn any_flipped_bit_and_any_cut_is_found() {
    for (_, codec) in codecs() {
        let object = codec.encode(&PLACE, &text(5000));
        for bit in 0..object.len() * 8 {
            let mut altered = object.to_vec();
            altered[bit / 8] ^= 1 << (bit % 8);
            let refused = codec.decode(&PLACE, altered.into());
            assert!(refused.is_err(), "bit {bit} of {codec:?}");
        }
        for length in 0..object.len() {
            assert!(codec.decode(&PLACE, object.slice(..length)).is_err());
        }
        let longer = [&object[..], b"x"].concat();
        assert!(codec.decode(&PLACE, longer.into()).is_err());
    }
}

#[test]
fn what_another_key_has_sealed_is_refused() {
    let master = MasterKey(Key::fill(|key| key.fill(2)));
    let other = DiskKeys::derive(&master, PLACE.disk);
    let other = ObjectCodec::new(Compression::None, Some(Arc::new(other)));
    let object = other.encode(&PLACE, b"content");
    let codec = ObjectCodec::new(Compression::None, keys());
    assert_eq!(
        codec.decode(&PLACE, object.clone()),
        Err(DecodeError::BrokenSeal(BrokenSeal))
    );
    assert_ne!(codec.digest(&object), other.digest(&object));
}

#[test]
fn no_two_objects_are_sealed_with_one_nonce() {
    let codec = ObjectCodec::new(Compression::None, keys());
    let (one, other) = (codec.encode(&PLACE, b"same"), codec.encode(&PLACE, b"same"));
    let nonce = |object: &Bytes| object.slice(PREAMBLE_BYTES..PREAMBLE_BYTES + NONCE_BYTES);
    assert_ne!(nonce(&one), nonce(&other));
    assert_ne!(
        one.slice(SEALED_HEADER_BYTES..),
        other.slice(SEALED_HEADER_BYTES..)
    );
}

#[test]
fn a_header_of_another_program_is_named_not_guessed() {
    let object = ObjectCodec::PLAIN.encode(&PLACE, b"content").to_vec();
    let with = |at: usize, value: u8| {
        let mut changed = object.clone();
        changed[at] = value;
        ObjectCodec::PLAIN.decode(&PLACE, changed.into())
    };
    assert_eq!(with(0, b'X'), Err(DecodeError::NotOurs));
    assert_eq!(with(4, 2), Err(DecodeError::UnknownVersion { version: 2 }));
    let unknown = |codec, flags| Err(DecodeError::UnknownCodec { codec, flags });
    assert_eq!(with(6, 4), unknown(4, 0));
    assert_eq!(with(7, 128), unknown(0, 128));
    assert_eq!(
        with(8, 8),
        Err(DecodeError::WrongLength {
            expected: 8,
            found: 7
        })
    );
    assert_eq!(
        ObjectCodec::PLAIN.decode(&PLACE, Bytes::copy_from_slice(&object[..31])),
        Err(DecodeError::TooShort { length: 31 })
    );
}

/// An object without keys that says whatever it likes, with the checksum made to fit.
fn forged(packing: u8, plain_bytes: u64, content: &[u8]) -> Bytes {
    let mut start = preamble(ObjectKind::Block, Packing::Plain, NO_FLAGS, plain_bytes);
    start[6] = packing;
    let check = checksum(&start, &PLACE, content);
    [&start[..], &check, content].concat().into()
}

#[test]
fn a_packed_object_cannot_ask_for_more_than_a_block() {
    for packing in 1..=3 {
        let refused = ObjectCodec::PLAIN.decode(&PLACE, forged(packing, 1 << 40, b"x"));
        assert_eq!(
            refused,
            Err(DecodeError::UnknownCodec {
                codec: packing,
                flags: 0
            })
        );
    }
}

proptest! {
    #[test]
    fn whatever_is_packed_is_unpacked_to_its_length_or_refused(
        packing in 1u8..=3,
        plain_bytes in 0u64..10_000,
        content in prop::collection::vec(any::<u8>(), 0..500),
    ) {
        if let Ok(plain) = ObjectCodec::PLAIN.decode(&PLACE, forged(packing, plain_bytes, &content)) {
            prop_assert_eq!(plain.len() as u64, plain_bytes);
        }
    }

    #[test]
    fn any_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for (_, codec) in codecs() {
            let _ = codec.decode(&PLACE, bytes.clone().into());
        }
    }
}
