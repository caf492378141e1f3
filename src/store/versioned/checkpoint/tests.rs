//! Tests of checkpoints.

use proptest::prelude::*;

use super::*;
use crate::codec::payload::PayloadError;
use crate::codec::{DecodeError, ObjectCodec};

const DISK: Uuid = Uuid::from_u128(0xd15c);
const BLOCKS: u64 = 20_000;
const SEQ: Seq = Seq(100);

fn checkpoint(stored: impl IntoIterator<Item = (u64, u32)>, garbage: Vec<Garbage>) -> Checkpoint {
    let mut map = BlockMap::new(BLOCKS).expect("small");
    for (index, version) in stored {
        map.insert(BlockIndex(index), Seq(version));
    }
    Checkpoint {
        seq: SEQ,
        head: Digest([0xcd; 16]),
        last: LastSession {
            session: SessionId(Uuid::from_u128(5)),
            claim: Seq(70),
            released: true,
            host: "höst".to_owned(),
            pid: 9,
        },
        map,
        garbage,
        unpruned: vec![Seq(3), Seq(99), SEQ],
    }
}

fn garbage(index: u64, version: u32, superseded_by: u32) -> Garbage {
    Garbage {
        index: BlockIndex(index),
        version: Seq(version),
        superseded_by: Seq(superseded_by),
    }
}

fn payload(checkpoint: &Checkpoint) -> Vec<u8> {
    let object = checkpoint.encode(&ObjectCodec::PLAIN, DISK);
    let plain = ObjectCodec::PLAIN.decode(&place(DISK, SEQ), object);
    plain.expect("decodes").to_vec()
}

/// Decodes a payload that may never have been encoded by us.
fn decode(payload: &[u8]) -> Result<Checkpoint, FormatError> {
    let object = ObjectCodec::PLAIN.encode(&place(DISK, SEQ), payload);
    Checkpoint::decode(&ObjectCodec::PLAIN, DISK, SEQ, BLOCKS, &object)
}

/// A payload that announces so many stored blocks, with a tail of our choice.
fn with_tail(stored: u64, tail: &[u8]) -> Result<Checkpoint, FormatError> {
    let empty = checkpoint([], vec![]);
    let mut writer = Writer::with_header(&Header {
        head: empty.head,
        last: empty.last,
        stored,
    });
    for byte in tail {
        assert!(*byte < 0x80, "one byte, one integer");
        writer.integer(u64::from(*byte));
    }
    decode(&writer.finish())
}

#[test]
fn a_checkpoint_comes_back() {
    let samples = [
        checkpoint([], vec![]),
        checkpoint([(0, 1), (1, 1), (2, 100), (3, 1), (BLOCKS - 1, 50)], vec![]),
        checkpoint(
            [(8191, 7), (8192, 7)],
            vec![garbage(3, 1, 2), garbage(3, 5, 9), garbage(8191, 6, 7)],
        ),
    ];
    for sample in samples {
        let object = sample.encode(&ObjectCodec::PLAIN, DISK);
        let back =
            Checkpoint::decode(&ObjectCodec::PLAIN, DISK, SEQ, BLOCKS, &object).expect("decodes");
        assert_eq!(back, sample);
    }
}

#[test]
fn a_full_disk_of_one_version_takes_a_few_bytes() {
    let full = checkpoint((0..BLOCKS).map(|index| (index, 3)), vec![]);
    let empty = checkpoint([], vec![]);
    assert!(payload(&full).len() < payload(&empty).len() + 16);
}

#[test]
fn garbage_is_written_in_order_and_once() {
    let untidy = vec![
        garbage(9, 1, 2),
        garbage(3, 5, 9),
        garbage(3, 1, 2),
        garbage(9, 1, 2),
    ];
    let back = decode(&payload(&checkpoint([], untidy))).expect("decodes");
    assert_eq!(
        back.garbage,
        [garbage(3, 1, 2), garbage(3, 5, 9), garbage(9, 1, 2)]
    );
}

#[test]
fn a_checkpoint_is_refused_under_another_number() {
    let object = checkpoint([(1, 1)], vec![]).encode(&ObjectCodec::PLAIN, DISK);
    let refused = Checkpoint::decode(&ObjectCodec::PLAIN, DISK, Seq(101), BLOCKS, &object);
    assert!(matches!(
        refused,
        Err(FormatError::Object(DecodeError::WrongChecksum))
    ));
}

#[test]
fn a_checkpoint_of_a_larger_disk_is_refused() {
    let object = checkpoint([(BLOCKS - 1, 1)], vec![]).encode(&ObjectCodec::PLAIN, DISK);
    let refused = Checkpoint::decode(&ObjectCodec::PLAIN, DISK, SEQ, BLOCKS - 1, &object);
    assert!(matches!(refused, Err(FormatError::Blocks { .. })));
}

#[test]
fn a_tail_that_breaks_a_rule_is_refused() {
    // Signed 2 is 4. The control: blocks 0 and 1 in version 2, then a version of block 0 that version 2 superseded.
    assert!(
        with_tail(2, &[1, 0, 2, 4, 1, 0, 1, 1, 0]).is_ok(),
        "the control"
    );
    let refused = |stored, tail: &[u8]| with_tail(stored, tail).expect_err("refused");
    for (stored, tail) in [
        (0, &[1, 0, 0, 4, 0, 0][..]),      // an empty run
        (2, &[2, 0, 1, 4, 0, 1, 0, 0, 0]), // two runs that are one
        (0, &[0, 2, 5, 1, 1, 0, 1, 1, 0]), // twice the same garbage
    ] {
        assert!(with_tail(stored, tail).is_err(), "{tail:?}");
    }
    assert!(matches!(
        refused(3, &[1, 0, 2, 4, 0]),
        FormatError::Member { member: "stored" }
    ));
    for tail in [
        &[1, 0, 1, 0, 0][..],      // version 0
        &[1, 0, 1, 1, 0],          // version -1
        &[0, 1, 0, 0, 1],          // garbage of version 0
        &[0, 1, 0, 1, 100],        // superseded after the checkpoint
        &[1, 0, 1, 4, 1, 0, 2, 1], // garbage that the map names
        &[0, 0, 1, 0],             // record 0
        &[0, 0, 1, 101],           // a record after the checkpoint
        &[0, 0, 2, 1, 0],          // twice the same record
    ] {
        let stored = u64::from(tail[0]);
        assert!(
            matches!(refused(stored, tail), FormatError::Version),
            "{tail:?}"
        );
    }
    assert!(matches!(
        refused(0, &[0, 2, 1, 1, 1, 0, 1, 1]),
        FormatError::Blocks { .. }
    ));
    for tail in [
        &[][..],
        &[0],
        &[0, 0],
        &[1, 0, 1],
        &[9, 0, 1, 4, 0],
        &[0, 1, 0, 1],
    ] {
        assert!(
            matches!(
                refused(0, tail),
                FormatError::Payload(PayloadError::Truncated)
            ),
            "{tail:?}"
        );
    }
    assert!(matches!(
        refused(0, &[0, 0, 0, 0]),
        FormatError::Payload(PayloadError::Trailing { bytes: 1 })
    ));
}

#[test]
#[should_panic(expected = "in checkpoint 100")]
fn a_checkpoint_that_would_delete_a_live_object_is_never_written() {
    checkpoint([(4, 9)], vec![garbage(4, 9, 10)]).encode(&ObjectCodec::PLAIN, DISK);
}

#[test]
#[should_panic(expected = "has version 101 in checkpoint 100")]
fn a_checkpoint_that_names_a_later_version_is_never_written() {
    checkpoint([(4, 101)], vec![]).encode(&ObjectCodec::PLAIN, DISK);
}

/// Any map of versions up to 60, and garbage above these, so that none of it is in the map.
fn arbitrary() -> impl Strategy<Value = Checkpoint> {
    let runs = prop::collection::vec((0..40u64, 1..40u64, 1..=60u32), 0..40);
    let objects = prop::collection::btree_map((0..BLOCKS, 61..=80u32), 81..=100u32, 0..20);
    (runs, objects).prop_map(|(runs, objects)| {
        let mut stored = Vec::new();
        let mut end = 0;
        for (gap, length, version) in runs {
            stored.extend((end + gap..end + gap + length).map(|index| (index, version)));
            end += gap + length;
        }
        let objects = objects
            .into_iter()
            .map(|((index, version), by)| garbage(index, version, by));
        checkpoint(stored, objects.collect())
    })
}

proptest! {
    #[test]
    fn any_checkpoint_comes_back(sample in arbitrary()) {
        prop_assert_eq!(decode(&payload(&sample)).expect("decodes"), sample);
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&bytes);
        let object = Bytes::from(bytes);
        let _ = Checkpoint::decode(&ObjectCodec::PLAIN, DISK, SEQ, BLOCKS, &object);
    }

    #[test]
    fn any_tail_is_refused_or_the_only_spelling(tail in prop::collection::vec(0..8u8, 0..24)) {
        for stored in 0..8 {
            if let Ok(sample) = with_tail(stored, &tail) {
                prop_assert!(payload(&sample).ends_with(&tail));
            }
        }
    }

    #[test]
    fn a_changed_payload_is_read_or_refused(
        sample in arbitrary(),
        at in any::<prop::sample::Index>(),
        bit in 0..8u32,
    ) {
        let mut payload = payload(&sample);
        let at = at.index(payload.len());
        payload[at] ^= 1 << bit;
        let _ = decode(&payload);
    }

    #[test]
    fn a_cut_payload_is_refused(sample in arbitrary(), at in any::<prop::sample::Index>()) {
        let payload = payload(&sample);
        let at = at.index(payload.len());
        prop_assert!(decode(&payload[..at]).is_err());
    }
}
