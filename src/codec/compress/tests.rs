//! Round trips, strictness, and what other programs' output unpacks to.

use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::*;

const EVERY: [Compression; 8] = [
    Compression::Zstd { level: 1 },
    Compression::Zstd { level: 3 },
    Compression::Zstd { level: 9 },
    Compression::Zstd { level: 19 },
    Compression::Lz4,
    Compression::Zlib { level: 1 },
    Compression::Zlib { level: 6 },
    Compression::Zlib { level: 9 },
];
pub(super) const BLOCK: usize = 256 << 10;

pub(super) fn random(seed: u64, bytes: usize) -> Vec<u8> {
    let mut made = vec![0; bytes];
    SmallRng::seed_from_u64(seed).fill(&mut made[..]);
    made
}

/// Lines of words and numbers.
pub(super) fn text(seed: u64, bytes: usize) -> Vec<u8> {
    let mut random = SmallRng::seed_from_u64(seed);
    let words = ["disk", "bucket", "the", "block", "of", "a", "seal", "map"];
    let mut made = Vec::new();
    while made.len() < bytes {
        let word = words[random.random_range(0..words.len())];
        let number = random.random_range(0..100_000u32);
        made.extend_from_slice(format!("{word} {number}\n").as_bytes());
    }
    made.truncate(bytes);
    made
}

/// Random digits: what only a code by frequency can shorten.
pub(super) fn digits(seed: u64, bytes: usize) -> Vec<u8> {
    let mut made = random(seed, bytes);
    made.iter_mut().for_each(|byte| *byte = b'0' + *byte % 10);
    made
}

pub(super) fn packed(compression: Compression, plain: &[u8]) -> (Packing, Vec<u8>) {
    let mut into = Vec::new();
    let packing = pack(compression, plain, &mut into);
    (packing, into)
}

/// Content made of pieces of several kinds, some of them copies of what came before.
pub(super) fn content() -> impl Strategy<Value = Vec<u8>> {
    let piece = (0..5u8, any::<u64>(), 1..20_000usize);
    prop::collection::vec(piece, 0..12).prop_map(|pieces| {
        let mut made: Vec<u8> = Vec::new();
        for (kind, seed, bytes) in pieces {
            match kind {
                0 => made.extend(random(seed, bytes)),
                1 => made.extend(text(seed, bytes)),
                2 => made.extend(digits(seed, bytes)),
                3 => made.resize(made.len() + bytes, seed as u8),
                _ => {
                    let start = seed as usize % made.len().max(1);
                    let end = made.len().min(start + bytes);
                    made.extend_from_within(start..end);
                }
            }
        }
        made
    })
}

#[test]
fn a_compression_as_text_comes_back() {
    for (text, shown) in [
        ("none", "none"),
        ("lz4", "lz4"),
        ("zstd", "zstd:3"),
        ("zstd:1", "zstd:1"),
        ("zstd:19", "zstd:19"),
        ("zlib", "zlib:6"),
        ("zlib:1", "zlib:1"),
        ("zlib:9", "zlib:9"),
    ] {
        let compression: Compression = text.parse().expect(text);
        assert_eq!(compression.to_string(), shown);
        assert_eq!(shown.parse::<Compression>().expect(shown), compression);
    }
}

#[test]
fn a_text_that_is_no_compression_is_named_with_the_remedy() {
    for text in [
        "",
        "ZSTD",
        "zstd:",
        "zstd:0",
        "zstd:20",
        "zstd:-1",
        "zstd:+1",
        "zstd:01",
        "zstd:1:2",
        "zlib:0",
        "zlib:10",
        "lz4:1",
        "none:1",
        "gzip",
        " zstd",
        "zstd:9999999999999",
    ] {
        let error = text.parse::<Compression>().expect_err(text);
        assert_eq!(error.kind(), ErrorKind::Usage);
        let sentence = error.to_string();
        assert!(sentence.starts_with(&format!("'{text}' ")), "{sentence}");
        assert!(sentence.contains("zstd:1 to zstd:19"), "{sentence}");
    }
    let error = "a\nb".parse::<Compression>().expect_err("two lines");
    assert!(!error.to_string().contains('\n'));
}

#[test]
fn a_packing_has_one_byte_and_unknown_bytes_are_none() {
    for (byte, packing) in [Packing::Plain, Packing::Zstd, Packing::Lz4, Packing::Zlib]
        .into_iter()
        .enumerate()
    {
        assert_eq!(usize::from(packing.byte()), byte);
        assert_eq!(Packing::from_byte(packing.byte()), Some(packing));
    }
    for byte in 4..=255 {
        assert_eq!(Packing::from_byte(byte), None);
    }
}

#[test]
fn content_that_does_not_shrink_by_a_sixteenth_is_left_plain() {
    let nearly_random = {
        let mut made = random(1, BLOCK);
        made[..BLOCK / 20].fill(0);
        made
    };
    let contents = [
        vec![],
        vec![7],
        vec![7; 16],
        random(2, 100),
        random(3, 4096),
        random(4, BLOCK),
        nearly_random,
    ];
    for compression in EVERY {
        for plain in &contents {
            let mut into = b"header".to_vec();
            let packing = pack(compression, plain, &mut into);
            if packing != Packing::Plain {
                assert_eq!(plain, &vec![7; 16], "{compression}");
            } else {
                assert_eq!(into, b"header", "{compression}");
            }
        }
    }
    let plain = text(5, BLOCK);
    assert_eq!(packed(Compression::None, &plain), (Packing::Plain, vec![]));
}

#[test]
fn content_that_shrinks_is_packed_as_was_asked_for() {
    for (bytes, compression) in [100, 4096, BLOCK, 3_000_000]
        .into_iter()
        .flat_map(|bytes| EVERY.map(|compression| (bytes, compression)))
    {
        let plain = vec![0; bytes];
        let (packing, packed) = packed(compression, &plain);
        let asked_for = match compression {
            Compression::None => Packing::Plain,
            Compression::Zstd { .. } => Packing::Zstd,
            Compression::Lz4 => Packing::Lz4,
            Compression::Zlib { .. } => Packing::Zlib,
        };
        assert_eq!(packing, asked_for, "{compression}, {bytes} bytes");
        assert_eq!(unpack(packing, &packed, bytes), Ok(plain));
    }
}

#[test]
fn equal_content_is_packed_equally_whatever_the_thread_did_before() {
    let plain = text(6, BLOCK);
    for compression in EVERY {
        let fresh = std::thread::scope(|scope| {
            scope
                .spawn(|| packed(compression, &plain))
                .join()
                .expect("packs")
        });
        for other in EVERY {
            packed(other, &text(7, 70_000));
            let (packing, bytes) = packed(other, &text(9, 5_000));
            assert!(unpack(packing, &bytes[..bytes.len() / 2], 5_000).is_err());
            assert_eq!(
                packed(compression, &plain),
                fresh,
                "{compression} after {other}"
            );
            assert_eq!(unpack(fresh.0, &fresh.1, BLOCK).as_ref(), Ok(&plain));
        }
    }
}

#[test]
fn content_that_was_given_up_leaves_no_trace_in_what_is_packed_next() {
    for compression in EVERY {
        for (seed, bytes) in (1..40).map(|step| (step, 400 * step as usize)) {
            assert_eq!(packed(compression, &random(seed, bytes)).0, Packing::Plain);
            let plain = text(seed, 5_000);
            let (packing, packed) = packed(compression, &plain);
            assert_eq!(unpack(packing, &packed, 5_000), Ok(plain), "{compression}");
        }
    }
}

#[test]
fn content_that_unpacks_to_another_length_is_refused() {
    let plain = vec![0; 1 << 20];
    for compression in EVERY {
        let (packing, packed) = packed(compression, &plain);
        for wrong in [
            plain.len() - 1,
            plain.len() + 1,
            plain.len() / 2,
            2 * plain.len(),
        ] {
            assert!(
                unpack(packing, &packed, wrong).is_err(),
                "{compression}, {wrong}"
            );
        }
        assert!(matches!(
            unpack(packing, &packed, packed.len()),
            Err(UnpackError::NotShorter { .. })
        ));
    }
    assert_eq!(
        unpack(Packing::Plain, b"abc", 4),
        Err(UnpackError::WrongLength {
            expected: 4,
            found: 3
        })
    );
    assert_eq!(unpack(Packing::Plain, b"abc", 3), Ok(b"abc".to_vec()));
}

/// Three times a sentence of 45 bytes, and "end".
fn sentence() -> Vec<u8> {
    let mut plain = b"the quick brown fox jumps over the lazy dog; ".repeat(3);
    plain.extend_from_slice(b"end");
    plain
}

/// `zstd -1 --no-check` of version 1.5.4, of a file.
const ZSTD_OF_SENTENCE: &[u8] =
    b"\x28\xb5\x2f\xfd\x20\x8a\xcd\x01\x00\xf4\x02the quick brown fox jumps over \
    the lazy dog;end\x02\x00\x03\xd5\x00\x46\x3b\xcb";
/// The same without `--no-check`.
const ZSTD_WITH_CHECKSUM: &[u8] =
    b"\x28\xb5\x2f\xfd\x24\x8a\xcd\x01\x00\xf4\x02the quick brown fox jumps over \
    the lazy dog;end\x02\x00\x03\xd5\x00\x46\x3b\xcb\x05\x57\x7c\xaf";
/// `zstd -1 --no-check` of a pipe.
const ZSTD_WITHOUT_SIZE: &[u8] =
    b"\x28\xb5\x2f\xfd\x00\x48\xc5\x01\x00\x04\x03the quick brown fox jumps over \
    the lazy dog; end\x01\x00\x3d\x38\xa9\x32";
/// liblz4 1.9.4 through Python's `lz4.block.compress(..., store_size=False)`.
const LZ4_OF_SENTENCE: &[u8] =
    b"\xf0\x10the quick brown fox jumps over \x1f\x00\x91lazy dog;\x0e\x00\x0f\x2d\x00\
    \x41\x50; end";
/// Python's `zlib.compress(..., 9)`, zlib 1.2.13.
const ZLIB_OF_SENTENCE: &[u8] = &[
    120, 218, 43, 201, 72, 85, 40, 44, 205, 76, 206, 86, 72, 42, 202, 47, 207, 83, 72, 203, 175,
    80, 200, 42, 205, 45, 40, 86, 200, 47, 75, 45, 82, 40, 1, 74, 231, 36, 86, 85, 42, 164, 228,
    167, 91, 131, 121, 180, 81, 156, 154, 151, 2, 0, 183, 154, 50, 52,
];

#[test]
fn what_the_reference_programs_pack_unpacks() {
    for (packing, packed) in [
        (Packing::Zstd, ZSTD_OF_SENTENCE),
        (Packing::Lz4, LZ4_OF_SENTENCE),
        (Packing::Zlib, ZLIB_OF_SENTENCE),
    ] {
        assert_eq!(unpack(packing, packed, 138), Ok(sentence()), "{packing}");
    }
}

#[test]
fn a_zstd_frame_of_another_kind_is_refused() {
    let foreign = |packed: &[u8]| unpack(Packing::Zstd, packed, 138);
    assert_eq!(foreign(ZSTD_WITH_CHECKSUM), Err(UnpackError::ForeignFrame));
    assert_eq!(foreign(ZSTD_WITHOUT_SIZE), Err(UnpackError::ForeignFrame));
    // a dictionary id of one byte, after the descriptor (the frame is a single segment, so there is no window descriptor)
    let mut with_dictionary = ZSTD_OF_SENTENCE.to_vec();
    with_dictionary[4] |= 1;
    with_dictionary.insert(5, 9);
    assert_eq!(foreign(&with_dictionary), Err(UnpackError::ForeignFrame));
    // a skippable frame, before and after
    let skippable = b"\x50\x2a\x4d\x18\x01\x00\x00\x00x";
    assert_eq!(
        foreign(&[&skippable[..], ZSTD_OF_SENTENCE].concat()),
        Err(UnpackError::Malformed {
            packing: Packing::Zstd
        })
    );
    assert_eq!(
        foreign(&[ZSTD_OF_SENTENCE, &skippable[..]].concat()),
        Err(UnpackError::Trailing { bytes: 9 })
    );
}

#[test]
fn a_second_piece_after_the_first_is_refused() {
    for (packing, one) in [
        (Packing::Zstd, ZSTD_OF_SENTENCE),
        (Packing::Lz4, LZ4_OF_SENTENCE),
        (Packing::Zlib, ZLIB_OF_SENTENCE),
    ] {
        let two = one.repeat(2);
        for plain_bytes in [138, 2 * 138] {
            assert!(unpack(packing, &two, plain_bytes).is_err(), "{packing}");
        }
    }
}

#[test]
fn a_zlib_stream_with_a_dictionary_or_a_wrong_checksum_is_refused() {
    let malformed = Err(UnpackError::Malformed {
        packing: Packing::Zlib,
    });
    let mut with_dictionary = ZLIB_OF_SENTENCE.to_vec();
    // FDICT, and the check bits that belong to it
    with_dictionary[1] = 0xf9;
    with_dictionary.splice(2..2, [0, 0, 0, 1]);
    assert_eq!(unpack(Packing::Zlib, &with_dictionary, 138), malformed);
    let mut altered = ZLIB_OF_SENTENCE.to_vec();
    *altered.last_mut().expect("bytes") ^= 1;
    assert_eq!(unpack(Packing::Zlib, &altered, 138), malformed);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn content_comes_back_however_it_is_packed(plain in content(), prefix in 0..100usize) {
        for compression in EVERY {
            let mut into = vec![9; prefix];
            let packing = pack(compression, &plain, &mut into);
            prop_assert_eq!(&into[..prefix], &vec![9; prefix][..]);
            let packed = &into[prefix..];
            if packing == Packing::Plain {
                prop_assert!(packed.is_empty());
            } else {
                prop_assert!(packed.len() <= plain.len() - plain.len() / 16);
                let back = unpack(packing, packed, plain.len()).expect("unpacks");
                prop_assert_eq!(back.capacity(), plain.len());
                prop_assert!(back == plain);
            }
        }
    }

    #[test]
    fn cut_or_longer_content_is_refused(plain in content(), cut in any::<prop::sample::Index>(), more in 1..9usize, byte in any::<u8>()) {
        for compression in EVERY {
            let (packing, mut packed) = packed(compression, &plain);
            if packing != Packing::Plain {
                let cut = cut.index(packed.len());
                prop_assert!(unpack(packing, &packed[..cut], plain.len()).is_err());
                packed.resize(packed.len() + more, byte);
                prop_assert!(unpack(packing, &packed, plain.len()).is_err());
            }
        }
    }

    #[test]
    fn altered_content_is_refused_or_has_the_right_length(
        plain in content(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        for compression in EVERY {
            let (packing, mut packed) = packed(compression, &plain);
            if packing != Packing::Plain {
                for (at, byte) in &changes {
                    let at = at.index(packed.len());
                    packed[at] = *byte;
                }
                if let Ok(back) = unpack(packing, &packed, plain.len()) {
                    prop_assert_eq!((back.len(), back.capacity()), (plain.len(), plain.len()));
                }
            }
        }
    }

    #[test]
    fn any_bytes_unpack_to_the_right_length_or_not_at_all(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        plain_bytes in 0..10_000usize,
    ) {
        let zstd = [&ZSTD_MAGIC[..], &bytes].concat();
        let zlib = [&[0x78, 0x9c][..], &bytes].concat();
        for (packing, packed) in [
            (Packing::Plain, &bytes),
            (Packing::Zstd, &bytes),
            (Packing::Zstd, &zstd),
            (Packing::Lz4, &bytes),
            (Packing::Zlib, &bytes),
            (Packing::Zlib, &zlib),
        ] {
            if let Ok(back) = unpack(packing, packed, plain_bytes) {
                prop_assert_eq!(back.len(), plain_bytes);
            }
        }
    }
}
