//! The native layout, byte for byte: objects that are checked in, every change to one of them found, and a whole disk read by
//! a program that knows nothing but the description (`tests/decode.py`).

use std::fs;
use std::ops::Range;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bucketdisk::block::{BlockIndex, Geometry, Seq};
use bucketdisk::codec::{Codec, ObjectCodec, ObjectKind, Place};
use bucketdisk::store::versioned::checkpoint::{Checkpoint, Garbage, LastSession};
use bucketdisk::store::versioned::map::BlockMap;
use bucketdisk::store::versioned::record::{Digest, Record, RecordBody, SessionId};
use bucketdisk::store::versioned::{Superblock, keys};
use bytes::Bytes;
use uuid::Uuid;

const DISK: Uuid = Uuid::from_u128(0x0123_4567_89ab_4def_8123_4567_89ab_cdef);
const SESSION: SessionId = SessionId(Uuid::from_u128(0xfedc_ba98_7654_4321_8edc_ba98_7654_3210));
const BLOCK_BYTES: usize = 4096;
const BLOCKS: u64 = 1024;

fn time() -> SystemTime {
    UNIX_EPOCH + Duration::new(1_738_324_800, 123_456_789)
}

fn superblock() -> Superblock {
    Superblock::plain(
        DISK,
        Geometry::new(BLOCKS * BLOCK_BYTES as u64, BLOCK_BYTES as u64).expect("valid"),
        "büro".to_owned(),
        UNIX_EPOCH + Duration::from_secs(1_738_324_800),
    )
}

/// The content of a version of a block: recognisable, and nowhere the same.
fn content(index: u64, version: u32) -> Vec<u8> {
    let words = (0..BLOCK_BYTES as u64 / 8).map(|n| n << 40 | index << 16 | u64::from(version));
    words.flat_map(u64::to_le_bytes).collect()
}

fn block_place(index: u64, version: u32) -> Place {
    Place {
        disk: DISK,
        kind: ObjectKind::Block,
        index,
        seq: Seq(version),
    }
}

fn block(index: u64, version: u32) -> Bytes {
    ObjectCodec::PLAIN.encode(&block_place(index, version), &content(index, version))
}

fn record(seq: u32, claim: u32, previous: Digest, body: RecordBody) -> Bytes {
    let record = Record {
        seq: Seq(seq),
        session: SESSION,
        claim: Seq(claim),
        nonce: 0x0011_2233_4455_6677,
        previous,
        time: time(),
        journal: None,
        body,
    };
    record.encode(&ObjectCodec::PLAIN, DISK)
}

fn decode_record(seq: u32, object: &Bytes) -> Option<Record> {
    Record::decode(&ObjectCodec::PLAIN, DISK, BLOCKS, Seq(seq), object).ok()
}

fn claim() -> RecordBody {
    RecordBody::Claim {
        host: "tower".to_owned(),
        pid: 4711,
        took_over: None,
    }
}

fn commit(stored: &[u64], holes: &[Range<u64>]) -> RecordBody {
    RecordBody::Commit {
        stored: stored.iter().copied().map(BlockIndex).collect(),
        holes: holes
            .iter()
            .map(|hole| BlockIndex(hole.start)..BlockIndex(hole.end))
            .collect(),
    }
}

fn checkpoint(seq: u32, head: Digest, stored: &[(u64, u32)], garbage: &[(u64, u32, u32)]) -> Bytes {
    let mut map = BlockMap::new(BLOCKS).expect("small");
    for (index, version) in stored {
        map.insert(BlockIndex(*index), Seq(*version));
    }
    let garbage = garbage.iter().map(|(index, version, by)| Garbage {
        index: BlockIndex(*index),
        version: Seq(*version),
        superseded_by: Seq(*by),
    });
    let checkpoint = Checkpoint {
        seq: Seq(seq),
        head,
        last: LastSession {
            session: SESSION,
            claim: Seq(1),
            released: true,
            host: "tower".to_owned(),
            pid: 4711,
        },
        map,
        garbage: garbage.collect(),
        unpruned: vec![Seq(seq - 1), Seq(seq)],
    };
    checkpoint.encode(&ObjectCodec::PLAIN, DISK)
}

fn decode_checkpoint(seq: u32, object: &Bytes) -> Option<Checkpoint> {
    Checkpoint::decode(&ObjectCodec::PLAIN, DISK, Seq(seq), BLOCKS, object).ok()
}

fn sample_commit() -> Bytes {
    record(
        3,
        1,
        Digest([0xa5; 16]),
        commit(&[0, 1, 2, 300], &[4..300, 301..1024]),
    )
}

fn sample_checkpoint() -> Bytes {
    let stored = [(0, 2), (1, 2), (2, 9), (300, 1)];
    checkpoint(9, Digest([0xa5; 16]), &stored, &[(1, 1, 2), (900, 3, 9)])
}

// ---- golden bytes: a change here is a change of the format ----

const SUPERBLOCK: &str = r#"{
  "format": "bucketdisk",
  "version": 1,
  "features": [],
  "id": "01234567-89ab-4def-8123-456789abcdef",
  "generation": 1,
  "label": "büro",
  "created": "2025-01-31T12:00:00Z",
  "size": 4194304,
  "block_size": 4096,
  "compression": "none",
  "checksum": "xxh3-128:2f92af18629fb8192d8703cba96d5e06"
}"#;

const BLOCK_HEADER: &str = "424b5444 01 01 0000 0010000000000000 cfdddc6c8e8350caf96c5221b3ef114a";

const CLAIM: &str = r#"
    424b5444 01 02 0000 da00000000000000 ec1ae698e965b2010a1ec299d77b1ce9
    d6000000
    '{"kind":"claim","session":"fedcba98-7654-4321-8edc-ba9876543210","claim":0,"nonce":"0011223344556677",'
    '"previous":"00000000000000000000000000000000","time":"2025-01-31T12:00:00.123456789Z",'
    '"host":"tower","pid":4711}'
"#;

const COMMIT: &str = r#"
    424b5444 01 02 0000 ce00000000000000 cdc37863975b28229cd62c51113dac84
    bd000000
    '{"kind":"commit","session":"fedcba98-7654-4321-8edc-ba9876543210","claim":1,"nonce":"0011223344556677",'
    '"previous":"a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5","time":"2025-01-31T12:00:00.123456789Z"}'
    02 00 03 a9 02 01 02 04 a8 02 01 d3 05
"#;

const HEARTBEAT: &str = r#"
    424b5444 01 02 0000 c400000000000000 4050b18fbb43551aa6b2f29748bfaa44
    c0000000
    '{"kind":"heartbeat","session":"fedcba98-7654-4321-8edc-ba9876543210","claim":2,"nonce":"0011223344556677",'
    '"previous":"a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5","time":"2025-01-31T12:00:00.123456789Z"}'
"#;

const RELEASE: &str = r#"
    424b5444 01 02 0000 c200000000000000 21815e344c299b9c5a431905a2bc7d82
    be000000
    '{"kind":"release","session":"fedcba98-7654-4321-8edc-ba9876543210","claim":2,"nonce":"0011223344556677",'
    '"previous":"a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5","time":"2025-01-31T12:00:00.123456789Z"}'
"#;

const CHECKPOINT: &str = r#"
    424b5444 01 03 0000 be00000000000000 dca240f48046aadc2922e6babb3dcaa4
    a4000000
    '{"head":"a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5","last":{"session":"fedcba98-7654-4321-8edc-ba9876543210","claim":1,'
    '"released":true,"host":"tower","pid":4711},"stored":4}'
    03 00 02 04 00 01 0e a9 02 01 0f 02 01 01 01 83 07 03 06 02 08 01
"#;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Hexadecimal digits and, between quotes, text as it is; white space between them is for the reader.
fn unhex(golden: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (place, part) in golden.split('\'').enumerate() {
        if place % 2 == 1 {
            bytes.extend_from_slice(part.as_bytes());
            continue;
        }
        let digits: Vec<char> = part.chars().filter(|c| !c.is_whitespace()).collect();
        for pair in digits.chunks(2) {
            let pair: String = pair.iter().collect();
            bytes.push(u8::from_str_radix(&pair, 16).expect("hexadecimal"));
        }
    }
    bytes
}

fn assert_golden(object: &[u8], golden: &str) {
    assert_eq!(
        hex(object),
        hex(&unhex(golden)),
        "{}",
        String::from_utf8_lossy(object)
    );
}

#[test]
fn a_superblock_is_stored_as_these_bytes() {
    let json = superblock().to_json();
    assert_eq!(String::from_utf8_lossy(&json), SUPERBLOCK);
    assert_eq!(
        Superblock::parse(SUPERBLOCK.as_bytes()).expect("parses"),
        superblock()
    );
}

#[test]
fn a_block_is_stored_as_these_bytes() {
    let object = block(0x12ab, 0x1f);
    assert_golden(&object[..32], BLOCK_HEADER);
    assert_eq!(object[32..], content(0x12ab, 0x1f));
}

#[test]
fn each_record_is_stored_as_these_bytes() {
    assert_golden(&record(1, 0, Digest::ZERO, claim()), CLAIM);
    assert_golden(&sample_commit(), COMMIT);
    assert_golden(
        &record(4, 2, Digest([0xa5; 16]), RecordBody::Heartbeat),
        HEARTBEAT,
    );
    assert_golden(
        &record(5, 2, Digest([0xa5; 16]), RecordBody::Release),
        RELEASE,
    );
    for (seq, golden) in [(1, CLAIM), (3, COMMIT), (4, HEARTBEAT), (5, RELEASE)] {
        let object = Bytes::from(unhex(golden));
        let record = decode_record(seq, &object).expect("decodes");
        assert_eq!(record.encode(&ObjectCodec::PLAIN, DISK), object);
    }
}

#[test]
fn a_checkpoint_is_stored_as_these_bytes() {
    assert_golden(&sample_checkpoint(), CHECKPOINT);
    let object = Bytes::from(unhex(CHECKPOINT));
    let checkpoint = decode_checkpoint(9, &object).expect("decodes");
    assert_eq!(checkpoint.encode(&ObjectCodec::PLAIN, DISK), object);
}

// ---- damage ----

/// Every object that differs from this one by a bit, by a cut, or by a byte more.
fn mutations(object: &[u8]) -> impl Iterator<Item = (String, Bytes)> + '_ {
    let flips = (0..object.len() * 8).map(|bit| {
        let mut flipped = object.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        (format!("bit {bit} flipped"), flipped.into())
    });
    let cuts = (0..object.len()).map(|length| {
        (
            format!("cut to {length}"),
            Bytes::copy_from_slice(&object[..length]),
        )
    });
    let longer = std::iter::once(("a byte more".to_owned(), [object, &[0]].concat().into()));
    flips.chain(cuts).chain(longer)
}

#[test]
fn every_change_to_a_block_is_found() {
    let place = block_place(3, 9);
    for (change, object) in mutations(&block(3, 9)) {
        assert!(
            ObjectCodec::PLAIN.decode(&place, object).is_err(),
            "{change}"
        );
    }
}

#[test]
fn every_change_to_a_record_is_found() {
    let claim = record(1, 0, Digest::ZERO, claim());
    for (seq, object) in [(1, claim), (3, sample_commit())] {
        assert!(decode_record(seq, &object).is_some(), "the control");
        for (change, object) in mutations(&object) {
            assert!(
                decode_record(seq, &object).is_none(),
                "record {seq}: {change}"
            );
        }
    }
}

#[test]
fn every_change_to_a_checkpoint_is_found() {
    for (change, object) in mutations(&sample_checkpoint()) {
        assert!(decode_checkpoint(9, &object).is_none(), "{change}");
    }
}

#[test]
fn every_change_to_a_superblock_is_found() {
    for (change, json) in mutations(&superblock().to_json()) {
        assert!(Superblock::parse(&json).is_err(), "{change}");
    }
}

#[test]
fn an_object_that_lies_where_another_belongs_is_found() {
    let good = block_place(3, 9);
    let elsewhere = [
        block_place(4, 9),
        block_place(3, 8),
        block_place(3 + (1 << 32), 9),
        Place {
            disk: Uuid::from_u128(1),
            ..good
        },
        Place {
            kind: ObjectKind::Record,
            ..good
        },
        Place {
            kind: ObjectKind::Checkpoint,
            ..good
        },
    ];
    assert!(
        ObjectCodec::PLAIN.decode(&good, block(3, 9)).is_ok(),
        "the control"
    );
    for place in elsewhere {
        assert!(
            ObjectCodec::PLAIN.decode(&place, block(3, 9)).is_err(),
            "{place:?}"
        );
    }
    assert!(decode_record(4, &sample_commit()).is_none());
    assert!(decode_record(9, &sample_checkpoint()).is_none());
    assert!(decode_checkpoint(3, &sample_commit()).is_none());
    assert!(decode_checkpoint(10, &sample_checkpoint()).is_none());
}

// ---- a stranger reads a disk ----

/// Writes the disk of two sessions into a directory, and answers its image. Between the two, a checkpoint; a superseded version
/// that is still to be deleted; a version that a crash left under the number of the claim that came next.
fn write_disk(directory: &Path) -> Vec<u8> {
    let put = |key: String, object: &[u8]| {
        let path = directory.join(key);
        fs::create_dir_all(path.parent().expect("a key has a folder")).expect("folder");
        fs::write(path, object).expect("object");
    };
    put(keys::SUPERBLOCK.to_owned(), &superblock().to_json());
    let bodies = [
        claim(),
        commit(&[0, 1, 2, 300], &[]),
        commit(&[1], &[2..3, 600..700]),
        RecordBody::Heartbeat,
        RecordBody::Release,
        claim(),
        commit(&[5, 1023], std::slice::from_ref(&(300..301))),
    ];
    let mut previous = Digest::ZERO;
    let claims = [0, 1, 1, 1, 1, 1, 6];
    for ((seq, claim), body) in (1..).zip(claims).zip(bodies) {
        let object = record(seq, claim, previous, body);
        previous = Digest::of(&ObjectCodec::PLAIN, &object);
        put(keys::record(Seq(seq)), &object);
        if seq == 5 {
            let stored = [(0, 2), (1, 3), (300, 2)];
            let object = checkpoint(5, previous, &stored, &[(1, 2, 3)]);
            put(keys::checkpoint(Seq(5)), &object);
        }
    }
    let live = [(0, 2), (1, 3), (5, 7), (1023, 7)];
    let dead = [(1, 2), (300, 2), (7, 6), (0, 6), (8, 8)];
    for (index, version) in live.into_iter().chain(dead) {
        put(
            keys::block(BlockIndex(index), Seq(version)),
            &block(index, version),
        );
    }
    let mut image = vec![0; BLOCKS as usize * BLOCK_BYTES];
    for (index, version) in live {
        let start = index as usize * BLOCK_BYTES;
        image[start..start + BLOCK_BYTES].copy_from_slice(&content(index, version));
    }
    image
}

/// Runs the stranger; `None` where Python or its xxhash is missing, which is an error where `CI` is set.
fn decode(directory: &Path, more: &[&str]) -> Option<Output> {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let probe = Command::new(&python).args(["-c", "import xxhash"]).output();
    if !probe.is_ok_and(|probe| probe.status.success()) {
        assert!(
            std::env::var_os("CI").is_none(),
            "{python} has no module xxhash"
        );
        eprintln!("SKIPPED: {python} has no module xxhash (pip install xxhash)");
        return None;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/decode.py");
    let mut command = Command::new(python);
    command.arg(script).arg(directory).args(more);
    Some(command.output().expect("python runs"))
}

#[test]
fn a_stranger_reads_a_disk_from_the_description_alone() {
    let home = tempfile::tempdir().expect("directory");
    let (disk, image) = (home.path().join("disk"), home.path().join("image.raw"));
    let expected = write_disk(&disk);
    let image_arg = image.to_str().expect("UTF-8");
    for mode in [&[image_arg][..], &[image_arg, "--list-blocks"]] {
        let Some(output) = decode(&disk, mode) else {
            return;
        };
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{mode:?}: {complaint}");
        assert!(
            fs::read(&image).expect("image") == expected,
            "{mode:?}: the image differs"
        );
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(json["head"], 7);
        assert_eq!(json["superblock"]["label"], "büro");
        assert_eq!(
            json["map"],
            serde_json::json!([[0, 2], [1, 3], [5, 7], [1023, 7]])
        );
    }
}

#[test]
fn a_stranger_finds_damage_in_each_kind_of_object() {
    let home = tempfile::tempdir().expect("directory");
    write_disk(home.path());
    let block = keys::block(BlockIndex(5), Seq(7));
    let (record, map) = (keys::record(Seq(6)), keys::checkpoint(Seq(5)));
    for key in [keys::SUPERBLOCK, &block, &record, &map] {
        let path = home.path().join(key);
        let good = fs::read(&path).expect("object");
        let mut bad = good.clone();
        bad[60] ^= 1;
        fs::write(&path, bad).expect("damage");
        let Some(output) = decode(home.path(), &[]) else {
            return;
        };
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && complaint.contains(key),
            "{key}: {complaint}"
        );
        fs::write(&path, good).expect("repair");
    }
}
