//! Tests of records.

use std::time::{Duration, UNIX_EPOCH};

use proptest::prelude::*;

use super::*;
use crate::codec::ObjectCodec;

const DISK: Uuid = Uuid::from_u128(0xd15c);
const BLOCKS: u64 = 1000;

fn record(body: RecordBody) -> Record {
    Record {
        seq: Seq(7),
        session: SessionId(Uuid::from_u128(5)),
        claim: Seq(4),
        nonce: 0x0123_4567_89ab_cdef,
        previous: Digest([0xab; 16]),
        time: UNIX_EPOCH + Duration::new(1_738_324_800, 42),
        journal: None,
        body,
    }
}

fn claim() -> Record {
    record(RecordBody::Claim {
        host: "höst".to_owned(),
        pid: 9,
        took_over: Some(SessionId(Uuid::from_u128(6))),
    })
}

/// Decodes a payload that may never have been encoded by us.
fn decode(payload: &[u8]) -> Result<Record, FormatError> {
    let object = ObjectCodec::PLAIN.encode(&place(DISK, Seq(7)), payload);
    Record::decode(&ObjectCodec::PLAIN, DISK, BLOCKS, Seq(7), &object)
}

/// A commit's payload with a tail of our choice.
fn commit_with_tail(tail: &[u8]) -> Result<Record, FormatError> {
    let empty = record(RecordBody::Commit {
        stored: vec![],
        holes: vec![],
    });
    let object = empty.encode(&ObjectCodec::PLAIN, DISK);
    let mut payload = ObjectCodec::PLAIN
        .decode(&place(DISK, Seq(7)), object)
        .expect("decodes")
        .to_vec();
    payload.truncate(payload.len() - 2);
    payload.extend_from_slice(tail);
    decode(&payload)
}

fn range(start: u64, end: u64) -> Range<BlockIndex> {
    BlockIndex(start)..BlockIndex(end)
}

#[test]
fn each_kind_of_record_comes_back() {
    let bodies = [
        claim().body,
        RecordBody::Claim {
            host: String::new(),
            pid: 0,
            took_over: None,
        },
        RecordBody::Heartbeat,
        RecordBody::Release,
        RecordBody::Commit {
            stored: vec![],
            holes: vec![],
        },
        RecordBody::Commit {
            stored: [0, 1, 2, 7, 999].map(BlockIndex).to_vec(),
            holes: vec![range(3, 5), range(5, 7), range(8, 999)],
        },
    ];
    for body in bodies {
        let record = record(body);
        let object = record.encode(&ObjectCodec::PLAIN, DISK);
        let back =
            Record::decode(&ObjectCodec::PLAIN, DISK, BLOCKS, Seq(7), &object).expect("decodes");
        assert_eq!(back, record);
    }
}

#[test]
fn a_record_is_refused_under_another_number_or_disk() {
    let object = claim().encode(&ObjectCodec::PLAIN, DISK);
    for (disk, seq) in [(DISK, Seq(8)), (Uuid::from_u128(1), Seq(7))] {
        let refused = Record::decode(&ObjectCodec::PLAIN, disk, BLOCKS, seq, &object);
        assert!(matches!(
            refused,
            Err(FormatError::Object(DecodeError::WrongChecksum))
        ));
    }
}

#[test]
fn a_tail_that_breaks_a_rule_is_refused() {
    assert!(commit_with_tail(&[1, 0, 1, 1, 1, 1]).is_ok(), "the control");
    let out_of_order = [
        &[1, 0, 0, 0][..],   // an empty run
        &[2, 0, 1, 0, 1, 0], // two runs that are one
        &[1, 0xe7, 7, 2, 0], // 999 and 1000 of 1000 blocks
        &[0, 1, 0, 0],       // an empty hole
        &[1, 0, 3, 1, 2, 1], // block 2 stored and a hole
        &[1, 2, 1, 1, 0, 5], // the same, the hole around it
    ];
    for tail in out_of_order {
        let refused = commit_with_tail(tail);
        assert!(
            matches!(refused, Err(FormatError::Blocks { .. })),
            "{tail:?}"
        );
    }
    let huge = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
    let sum = [&[1][..], &huge, &huge, &[0]].concat();
    assert!(matches!(
        commit_with_tail(&sum),
        Err(FormatError::Blocks { .. })
    ));
    let count = [&huge[..], &[0]].concat();
    for tail in [&[][..], &[0], &[1, 0, 1], &[9, 0, 1, 0], &count] {
        let refused = commit_with_tail(tail);
        assert!(
            matches!(refused, Err(FormatError::Payload(PayloadError::Truncated))),
            "{tail:?}"
        );
    }
    assert!(matches!(
        commit_with_tail(&[0, 0, 0]),
        Err(FormatError::Payload(PayloadError::Trailing { bytes: 1 }))
    ));
}

#[test]
fn a_header_that_breaks_a_rule_is_refused() {
    let good = r#"{"kind":"release","session":"00000000-0000-0000-0000-000000000005","claim":4,"nonce":"0123456789abcdef","previous":"abababababababababababababababab","time":"2025-01-31T12:00:00.000000042Z"}"#;
    let decode = |header: &str| {
        let length = u32::try_from(header.len()).expect("short");
        decode(&[&length.to_le_bytes(), header.as_bytes()].concat())
    };
    assert_eq!(
        decode(good).expect("the control"),
        record(RecordBody::Release)
    );
    for (from, to, member) in [
        ("\"claim\":4", "\"claim\":7", "claim"),
        ("0123456789abcdef", "0123456789ABCDEF", "nonce"),
        ("0123456789abcdef", "+123456789abcdef", "nonce"),
        ("000000042Z", "000042Z", "time"),
        ("\"release\"", "\"claim\"", "host"),
        ("\"release\"", "\"release\",\"pid\":1", "pid"),
    ] {
        let refused = decode(&good.replace(from, to));
        assert!(
            matches!(refused, Err(FormatError::Member { member: m }) if m == member),
            "{to}: {refused:?}"
        );
    }
    for (from, to) in [
        ("\"release\"", "\"other\""),
        ("\"release\"", "\"release\",\"extra\":1"),
        ("abab\"", "abaB\""),
        ("\"kind\"", "\"kind\":\"release\",\"kind\""),
    ] {
        let refused = decode(&good.replace(from, to));
        assert!(
            matches!(refused, Err(FormatError::Payload(PayloadError::Header(_)))),
            "{to}: {refused:?}"
        );
    }
}

#[test]
#[should_panic(expected = "stored and a hole at once")]
fn a_commit_that_contradicts_itself_is_never_written() {
    let body = RecordBody::Commit {
        stored: vec![BlockIndex(4)],
        holes: vec![range(2, 6)],
    };
    record(body).encode(&ObjectCodec::PLAIN, DISK);
}

#[test]
fn a_digest_depends_on_every_byte() {
    let object = claim().encode(&ObjectCodec::PLAIN, DISK).to_vec();
    let digest = Digest::of(&ObjectCodec::PLAIN, &object);
    for at in 0..object.len() {
        let mut other = object.clone();
        other[at] ^= 1;
        assert_ne!(Digest::of(&ObjectCodec::PLAIN, &other), digest, "byte {at}");
    }
    assert_eq!(Digest::parse(&digest.to_string()), Some(digest));
}

/// Stored blocks and holes as a commit may have them: each block is one, the other, or neither.
fn arbitrary_commit() -> impl Strategy<Value = RecordBody> {
    prop::collection::vec((0..3u8, 1..20u64), 0..40).prop_map(|pieces| {
        let (mut stored, mut holes, mut at) = (vec![], vec![], 0);
        for (what, length) in pieces {
            let end = at + length;
            match what {
                0 => stored.extend((at..end).map(BlockIndex)),
                1 => holes.push(range(at, end)),
                _ => {}
            }
            at = end;
        }
        RecordBody::Commit { stored, holes }
    })
}

proptest! {
    #[test]
    fn any_commit_comes_back(body in arbitrary_commit()) {
        let record = record(body);
        let object = record.encode(&ObjectCodec::PLAIN, DISK);
        let back = Record::decode(&ObjectCodec::PLAIN, DISK, BLOCKS, Seq(7), &object).expect("decodes");
        prop_assert_eq!(back, record);
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&bytes);
        let object = Bytes::from(bytes);
        let _ = Record::decode(&ObjectCodec::PLAIN, DISK, BLOCKS, Seq(7), &object);
    }

    #[test]
    fn any_tail_is_refused_or_the_only_spelling(tail in prop::collection::vec(0..12u8, 0..24)) {
        if let Ok(record) = commit_with_tail(&tail) {
            let object = record.encode(&ObjectCodec::PLAIN, DISK);
            let payload = ObjectCodec::PLAIN.decode(&place(DISK, Seq(7)), object).expect("decodes");
            prop_assert!(payload.ends_with(&tail));
        }
    }

    #[test]
    fn a_changed_payload_is_read_or_refused(body in arbitrary_commit(), at in any::<prop::sample::Index>(), bit in 0..8u32) {
        let object = record(body).encode(&ObjectCodec::PLAIN, DISK);
        let mut payload = ObjectCodec::PLAIN.decode(&place(DISK, Seq(7)), object).expect("decodes").to_vec();
        let at = at.index(payload.len());
        payload[at] ^= 1 << bit;
        let _ = decode(&payload);
    }
}
