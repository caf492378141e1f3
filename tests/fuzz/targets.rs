//! What is fuzzed: a function for each parser of what lies in a bucket, on the local disk, or comes through the control socket. Each takes any
//! bytes, and panics where the parser breaks a promise: what was parsed and is encoded again parses to the same.
//!
//! Checksums and tags would keep all but what is in the corpus from getting anywhere, so most targets make them fit. Run by `scripts/fuzz`, with
//! libFuzzer, and by `tests/corpus.rs`.

use std::sync::{Arc, LazyLock};

use bucketdisk::block::{MAX_BLOCK_BYTES, Seq};
use bucketdisk::codec::compress::{Compression, Packing, pack, unpack};
use bucketdisk::codec::keys::{DiskKeys, MAC_BYTES, MasterKey, mac};
use bucketdisk::codec::payload::Reader;
use bucketdisk::codec::seal::seal;
use bucketdisk::codec::{Codec, ObjectCodec, ObjectKind, Place, timestamp};
use bucketdisk::config::{parse_duration, parse_size};
use bucketdisk::control::{Reply, Request};
use bucketdisk::journal::{Entry, Found};
use bucketdisk::object::Location;
use bucketdisk::open::Head;
use bucketdisk::secret::Key;
use bucketdisk::store::versioned::checkpoint::Checkpoint;
use bucketdisk::store::versioned::record::Record;
use bucketdisk::store::versioned::{Superblock, keys};
use bytes::Bytes;
use serde_json::Value;
use uuid::Uuid;
use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128};

use crate::local_disk::LocalDisk;

/// Tries an input.
pub type Run = fn(&[u8]);

/// A parser to fuzz.
pub struct Target {
    pub name: &'static str,
    pub run: Run,
}

pub const ALL: [Target; 10] = [
    Target {
        name: "object",
        run: object,
    },
    Target {
        name: "record",
        run: record,
    },
    Target {
        name: "checkpoint",
        run: checkpoint,
    },
    Target {
        name: "superblock",
        run: superblock,
    },
    Target {
        name: "journal",
        run: journal,
    },
    Target {
        name: "head",
        run: head,
    },
    Target {
        name: "payload",
        run: payload,
    },
    Target {
        name: "unpack",
        run: unpacked,
    },
    Target {
        name: "control",
        run: control,
    },
    Target {
        name: "names",
        run: names,
    },
];

const DISK: Uuid = Uuid::from_u128(0x0123_4567_89ab_4def_8123_4567_89ab_cdef);
/// Of the disk whose records and checkpoints are read. What they say may take memory for each of them.
const BLOCKS: u64 = 1 << 14;
const SEQ: Seq = Seq(1000);
/// The most that packed content may stand for here: as much is allocated, and to do that for every input takes all the time there is.
const MOST_PLAIN_BYTES: u64 = 1 << 16;

static KEYS: LazyLock<Arc<DiskKeys>> = LazyLock::new(|| {
    let master = MasterKey(Key::fill(|key| key.fill(0x5e)));
    Arc::new(DiskKeys::derive(&master, DISK))
});
static SEALED: LazyLock<ObjectCodec> =
    LazyLock::new(|| ObjectCodec::new(Compression::None, Some(Arc::clone(&KEYS))));

fn place(kind: ObjectKind) -> Place {
    let (disk, seq) = (DISK, SEQ);
    let index = if kind == ObjectKind::Block { 77 } else { 0 };
    Place {
        disk,
        kind,
        index,
        seq,
    }
}

/// What checksums and tags cover of a place.
fn place_bytes(place: &Place) -> Vec<u8> {
    let (index, seq) = (place.index.to_le_bytes(), place.seq.0.to_le_bytes());
    [&place.disk.as_bytes()[..], &index, &seq].concat()
}

/// Objects: as they are, and with a checksum or tag that fits. First byte: which; second: the kind.
fn object(input: &[u8]) {
    let [how, kind, input @ ..] = input else {
        return;
    };
    let kinds = [
        ObjectKind::Block,
        ObjectKind::Record,
        ObjectKind::Checkpoint,
    ];
    let place = place(kinds[usize::from(*kind) % 3]);
    let fitting = input.split_first_chunk::<16>().filter(|(header, _)| {
        let [.., a, b, c, d, e, f, g, h] = **header;
        let plain_bytes = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        // Larger than any block is refused, and asks for nothing.
        plain_bytes <= MOST_PLAIN_BYTES || plain_bytes > u64::from(MAX_BLOCK_BYTES)
    });
    let (codec, object) = match (how % 4, fitting) {
        (0, _) => (&ObjectCodec::PLAIN, input.to_vec()),
        (1, _) => (&*SEALED, input.to_vec()),
        (2, Some((header, content))) => {
            let checked = [header, &place_bytes(&place)[..], content].concat();
            let checksum = xxh3_128(&checked).to_be_bytes();
            (
                &ObjectCodec::PLAIN,
                [header, &checksum[..], content].concat(),
            )
        }
        (3, Some((header, content))) => {
            let (nonce, associated) = ([7; 24], [header, &place_bytes(&place)[..]].concat());
            let mut content = content.to_vec();
            let tag = seal(&KEYS.objects, &nonce, &associated, &mut content);
            (&*SEALED, [header, &nonce[..], &tag, &content].concat())
        }
        _ => return,
    };
    let _ = codec.digest(&object);
    let Ok(content) = codec.decode(&place, object.into()) else {
        return;
    };
    let again = codec.encode(&place, &content);
    assert_eq!(codec.decode(&place, again).expect("was just made"), content);
}

/// Records, from their content on.
fn record(input: &[u8]) {
    let object = ObjectCodec::PLAIN.encode(&place(ObjectKind::Record), input);
    let read = |object: &Bytes| Record::decode(&ObjectCodec::PLAIN, DISK, BLOCKS, SEQ, object);
    if let Ok(record) = read(&object) {
        let again = record.encode(&ObjectCodec::PLAIN, DISK);
        assert_eq!(read(&again).expect("was just made"), record);
    }
}

/// Checkpoints, from their content on.
fn checkpoint(input: &[u8]) {
    let object = ObjectCodec::PLAIN.encode(&place(ObjectKind::Checkpoint), input);
    let read = |object: &Bytes| Checkpoint::decode(&ObjectCodec::PLAIN, DISK, SEQ, BLOCKS, object);
    if let Ok(checkpoint) = read(&object) {
        let again = checkpoint.encode(&ObjectCodec::PLAIN, DISK);
        assert_eq!(read(&again).expect("was just made"), checkpoint);
    }
}

/// Superblocks: as they are, and with a checksum that fits where they are JSON.
fn superblock(input: &[u8]) {
    parse_superblock(input);
    let Ok(Value::Object(mut members)) = serde_json::from_slice(input) else {
        return;
    };
    if members.values().any(has_fraction) {
        return;
    }
    members.remove("checksum");
    let text = Value::Object(members.clone()).to_string();
    let checksum = format!("xxh3-128:{:032x}", xxh3_128(text.as_bytes()));
    members.insert("checksum".to_owned(), checksum.into());
    parse_superblock(Value::Object(members).to_string().as_bytes());
}

fn parse_superblock(json: &[u8]) {
    if let Ok(superblock) = Superblock::parse(json) {
        let again = Superblock::parse(&superblock.to_json()).expect("was just made");
        assert_eq!(again, superblock);
        for slot in superblock.encryption.iter().flat_map(|e| &e.slots) {
            let work = u64::from(slot.kdf.memory_kib) * u64::from(slot.kdf.passes);
            assert!(slot.kdf.check().is_err() || (1..=64 << 20).contains(&work));
        }
    }
}

const SEGMENT_BYTES: usize = 4096;
const SLOT_BYTES: usize = 4096;
/// What an input says of a slot of the state: all but sessions beyond the second, and zeros.
const SAID_OF_STATE: usize = 160;
/// What an input says of a segment: its beginning.
const SAID_OF_SEGMENT: usize = 704;
const HEADER_BYTES: usize = 64;
const CHECKED: usize = 56;
const SALT: usize = 40;

/// A journal: state and segments as they are found on the local disk. First byte: bit 0, the disk is encrypted; bit 1, no checksum and no
/// MAC is made to fit; bit 2, the segments are shorter than the state says.
fn journal(input: &[u8]) {
    let [how, input @ ..] = input else { return };
    let fits = how & 2 == 0;
    let keys = (how & 1 == 1).then_some(&*KEYS);
    let (said, rest) = input.split_at(input.len().min(SAID_OF_STATE));
    let mut state = vec![0; SLOT_BYTES];
    state[..said.len()].copy_from_slice(said);
    let id: [u8; 16] = state[32..48].try_into().expect("16 bytes");
    if fits {
        state[..16].copy_from_slice(b"bucketdisk jrnl\n");
        state[16..20].copy_from_slice(&1u32.to_le_bytes());
        state[112..120].copy_from_slice(&(SEGMENT_BYTES as u64).to_le_bytes());
        if let Some(keys) = keys {
            let (said, rest) = state.split_at_mut(SLOT_BYTES - 8 - MAC_BYTES);
            rest[..MAC_BYTES].copy_from_slice(&mac(&keys.journal_macs, said));
        }
        sum(&mut state, SLOT_BYTES - 8, 0);
    }
    let disk = LocalDisk::new(0);
    let files = disk.files();
    let put = |name: &str, len: usize, bytes: &[u8]| {
        let file = files.create(name, len as u64).expect("makes a file");
        file.write_at(&[bytes], 0).expect("writes");
    };
    put("state", 2 * SLOT_BYTES, &state);
    for (number, said) in rest.chunks(SAID_OF_SEGMENT).take(4).enumerate() {
        let len = SEGMENT_BYTES >> (how >> 2 & 1);
        let mut segment = said.to_vec();
        segment.resize(segment.len().max(HEADER_BYTES), 0);
        if fits {
            make_sound(&mut segment, &id, keys.map(Arc::as_ref));
        }
        put(&format!("segment-{number:05}"), len, &segment);
    }
    let Ok(Some(found)) = Found::look(&files, keys) else {
        return;
    };
    let size = found.owner().size_bytes;
    let mut records = 0;
    let mut total = 0u64;
    let mut visit = |entry| {
        records += 1;
        let (offset, len) = match entry {
            Entry::Write { offset, place } => {
                let mut bytes = vec![0; place.len()];
                place.read(&mut bytes).expect("was found sound");
                total += place.len() as u64;
                (offset, place.len() as u64)
            }
            Entry::Zeros { offset, len } => (offset, len),
        };
        let end = offset.checked_add(len).expect("does not overflow");
        assert!(end <= size, "lies within the disk");
    };
    if let Ok(replayed) = found.replay(&mut visit) {
        assert_eq!((replayed.records, replayed.written_bytes), (records, total));
        let begun = found.begin(Some(&replayed), 3, 0);
        assert!(begun.is_ok_and(|journal| journal.failure().is_none()));
    }
}

/// Has the checksums, and the MAC, of a segment's header and of the records behind it fit.
fn make_sound(segment: &mut [u8], id: &[u8; 16], keys: Option<&DiskKeys>) {
    let seed = |number: &[u8]| xxh3_64_with_seed(&[id, number].concat(), 0);
    let of_segment = seed(&segment[8..16]);
    segment[..4].copy_from_slice(b"BDJs");
    segment[4..8].copy_from_slice(&1u32.to_le_bytes());
    sum(&mut segment[..HEADER_BYTES], CHECKED, seed(&[0; 8]));
    let is_sealed = segment[SALT..CHECKED] != [0; CHECKED - SALT];
    if let Some(keys) = keys.filter(|_| is_sealed) {
        let mac = mac(&keys.journal_macs, &[id, &segment[..CHECKED]].concat());
        segment[CHECKED..HEADER_BYTES].copy_from_slice(&mac[..8]);
    }
    let mut at = HEADER_BYTES;
    while at + HEADER_BYTES <= segment.len() {
        let (header, payload) = segment[at..].split_at_mut(HEADER_BYTES);
        if !header.starts_with(b"BDJr") {
            return;
        }
        let mut takes = 0;
        if header[4] == 1 {
            let len = u64::from_le_bytes(header[32..40].try_into().expect("8 bytes"));
            let len = usize::try_from(len).unwrap_or(usize::MAX);
            if let Some(payload) = payload.get(..len) {
                header[40..56].fill(0);
                let sum = xxh3_64_with_seed(payload, of_segment);
                header[40..48].copy_from_slice(&sum.to_le_bytes());
                takes = len.next_multiple_of(HEADER_BYTES);
            }
        }
        sum(header, CHECKED, of_segment.wrapping_add(at as u64));
        at += HEADER_BYTES + takes;
    }
}

/// Puts the checksum of what is before it.
fn sum(bytes: &mut [u8], at: usize, seed: u64) {
    let sum = xxh3_64_with_seed(&bytes[..at], seed);
    bytes[at..at + 8].copy_from_slice(&sum.to_le_bytes());
}

/// Whether there is a fraction in it: the JSON library reads one back but for the last digit, and no format here has any that counts.
fn has_fraction(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.is_f64(),
        Value::Array(items) => items.iter().any(has_fraction),
        Value::Object(members) => members.values().any(has_fraction),
        _ => false,
    }
}

/// What this machine has seen of a disk: as it is, and with a checksum that fits where it says all that there is to say.
fn head(input: &[u8]) {
    let same = |head: &Head| {
        let again = Head::parse(&head.encode().expect("is plain data"), DISK);
        again.is_ok_and(|again| again == *head)
    };
    if let Ok(head) = Head::parse(input, DISK) {
        assert!(same(&head));
    }
    if let Ok(head) = serde_json::from_slice::<Head>(input) {
        assert_eq!(same(&head), head.is_of(DISK));
    }
}

/// Headers and integers of payloads.
fn payload(input: &[u8]) {
    let Ok((header, mut reader)) = Reader::with_header::<Value>(input) else {
        return;
    };
    if has_fraction(&header) {
        return;
    }
    let mut read = Vec::new();
    let mut end = None;
    for turn in 0.. {
        let number = match turn % 3 {
            0 => reader.integer(),
            1 => reader.signed().map(|number| number as u64),
            _ => reader.count(1).map(|count| count as u64),
        };
        match number {
            Ok(number) => read.push(number),
            Err(error) => {
                end = Some(error);
                break;
            }
        }
    }
    assert!(end.is_some(), "every payload ends");
    assert!(read.len() <= input.len());
    let mut writer = bucketdisk::codec::payload::Writer::with_header(&header);
    for (turn, number) in (0..).zip(&read) {
        match turn % 3 {
            1 => writer.signed(*number as i64),
            _ => writer.integer(*number),
        }
    }
    let again = writer.finish();
    let (same, mut reader) = Reader::with_header::<Value>(&again).expect("was just made");
    assert_eq!(same, header);
    for (turn, number) in (0..).zip(&read) {
        let same = match turn % 3 {
            1 => reader.signed().map(|number| number as u64),
            _ => reader.integer(),
        };
        assert_eq!(same.expect("was just made"), *number);
    }
    reader.finish().expect("was just made");
}

/// Packed content. First byte: the packing; two more: how long it is to become.
fn unpacked(input: &[u8]) {
    let [packing, low, high, packed @ ..] = input else {
        return;
    };
    let Some(packing) = Packing::from_byte(packing % 4) else {
        return;
    };
    let plain_bytes = usize::from(u16::from_le_bytes([*low, *high]));
    let Ok(plain) = unpack(packing, packed, plain_bytes) else {
        return;
    };
    assert_eq!(plain.len(), plain_bytes);
    assert!(plain.capacity() <= 2 * plain_bytes.max(1));
    let compression = match packing {
        Packing::Plain => Compression::None,
        Packing::Zstd => Compression::Zstd { level: 1 },
        Packing::Lz4 => Compression::Lz4,
        Packing::Zlib => Compression::Zlib { level: 1 },
    };
    let mut again = Vec::new();
    if pack(compression, &plain, &mut again) == packing && packing != Packing::Plain {
        assert_eq!(
            unpack(packing, &again, plain_bytes).expect("was just made"),
            plain
        );
    }
}

/// What comes through the control socket, either way.
fn control(input: &[u8]) {
    if let Ok(request) = serde_json::from_slice::<Request>(input) {
        let again = serde_json::to_vec(&request).expect("is plain data");
        assert_eq!(
            serde_json::from_slice::<Request>(&again).expect("was just made"),
            request
        );
    }
    if let Ok(reply) = serde_json::from_slice::<Reply>(input)
        && !matches!(&reply, Reply::Status { figures, .. } if has_fraction(figures))
    {
        let again = serde_json::to_vec(&reply).expect("is plain data");
        assert_eq!(
            serde_json::from_slice::<Reply>(&again).expect("was just made"),
            reply
        );
    }
}

/// Keys of objects, and what is written as text: moments, compressions, sizes, intervals, locations.
fn names(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    if let Some((index, version)) = keys::parse_block(text) {
        assert_eq!(keys::block(index, version), text);
    }
    if let Some(seq) = keys::parse_record(text) {
        assert_eq!(keys::record(seq), text);
    }
    if let Some(seq) = keys::parse_checkpoint(text) {
        assert_eq!(keys::checkpoint(seq), text);
    }
    let _ = keys::is_own(text);
    if let Some(time) = timestamp::from_nanos(text) {
        assert_eq!(timestamp::to_nanos(time), text);
    }
    if let Some(time) = timestamp::from_seconds(text) {
        assert_eq!(timestamp::to_seconds(time), text);
    }
    if let Ok(compression) = text.parse::<Compression>() {
        assert_eq!(
            compression.to_string().parse::<Compression>().ok(),
            Some(compression)
        );
    }
    let _ = (parse_size(text).is_ok(), parse_duration(text).is_ok());
    if let Ok(location) = Location::parse(text) {
        assert!(location.prefix().len() <= 3 * text.len());
    }
}
