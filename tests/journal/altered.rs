//! The journal of an encrypted disk on a local disk that others can write to: they have no keys, but can make every checksum fit. Of what
//! a flush has covered they may hide nothing but by hiding what came after it, too.

use std::sync::Arc;

use bucketdisk::codec::keys::{DiskKeys, MasterKey};
use bucketdisk::error::{Error, ErrorKind};
use bucketdisk::journal::Found;
use bucketdisk::secret::Key;
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::support::local_disk::LocalDisk;
use super::{LIMIT, OWNER, SEGMENT};

const ID: u128 = 99;
const SLOT: usize = 4096;
const HEADER: usize = 64;

fn disk_keys() -> Arc<DiskKeys> {
    let master = MasterKey(Key::fill(|key| key.fill(0x5e)));
    Arc::new(DiskKeys::derive(&master, Uuid::nil()))
}

/// A journal with four full segments and more, all of it flushed.
fn written(keys: &Arc<DiskKeys>) -> Arc<LocalDisk> {
    let disk = LocalDisk::new(0);
    let found = Found::create(&disk.files(), OWNER, ID, SEGMENT, Some(keys)).expect("creates");
    let journal = found.begin(None, 1, LIMIT).expect("begins");
    for fill in 0..16 {
        journal.append(&[(0, &[fill; 5000])]).expect("appends");
    }
    assert!(journal.flush_now().expect("flushes"));
    disk
}

/// What a mount finds: how many records, or what is wrong.
fn found(disk: &Arc<LocalDisk>, keys: &Arc<DiskKeys>) -> Result<u64, Error> {
    let found = Found::look(&disk.files(), Some(keys))?;
    let found = found.expect("there is a journal");
    Ok(found.replay(&mut |_| {})?.records)
}

fn must_be_damaged(disk: &Arc<LocalDisk>, keys: &Arc<DiskKeys>, how: &str) {
    match found(disk, keys) {
        Ok(records) => panic!("{how}: {records} records are taken for all"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::Damaged, "{how}: {}", error.chain()),
    }
}

fn get(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

fn put(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

fn overwrite(disk: &Arc<LocalDisk>, name: &str, at: usize, bytes: &[u8]) {
    let file = disk.files().open(name).expect("opens").expect("is there");
    file.write_at(&[bytes], at as u64).expect("writes");
}

/// The file with a segment, and its header.
fn segment(disk: &Arc<LocalDisk>, number: u64) -> (String, Vec<u8>) {
    let names = disk.names().into_iter();
    let mut segments = names
        .filter(|name| name.starts_with("segment"))
        .map(|name| {
            let header = disk.content(&name)[..HEADER].to_vec();
            (name, header)
        });
    let found =
        segments.find(|(_, header)| header.starts_with(b"BDJs") && get(header, 8) == number);
    found.expect("is there")
}

/// Puts a header with a checksum that fits, as it does where a disk is not encrypted.
fn put_header(disk: &Arc<LocalDisk>, name: &str, header: &mut [u8]) {
    let seed = xxh3_64_with_seed(&[&ID.to_le_bytes()[..], &[0; 8]].concat(), 0);
    let sum = xxh3_64_with_seed(&header[..HEADER - 8], seed);
    put(header, HEADER - 8, sum);
    overwrite(disk, name, 0, header);
}

#[test]
fn a_segment_cannot_be_made_to_go_on_after_another() {
    let keys = disk_keys();
    for emptied in [false, true] {
        let disk = written(&keys);
        let (second, before) = segment(&disk, 2);
        let (third, mut header) = segment(&disk, 3);
        let (_, after) = segment(&disk, 4);
        disk.lose_file(&second);
        put(&mut header, 16, 1);
        put(&mut header, 32, get(&before, 32));
        if emptied {
            // So that no record is there to tell: the next segment follows on it as it did.
            put(&mut header, 24, get(&after, 32));
            overwrite(&disk, &third, HEADER, &vec![0; SEGMENT as usize - HEADER]);
        }
        put_header(&disk, &third, &mut header);
        must_be_damaged(&disk, &keys, &format!("emptied: {emptied}"));
    }
}

#[test]
fn a_segment_that_is_removed_is_missed_and_no_header_may_be_altered() {
    let keys = disk_keys();
    for number in 1..=4 {
        let disk = written(&keys);
        disk.lose_file(&segment(&disk, number).0);
        must_be_damaged(&disk, &keys, &format!("segment {number} is removed"));
        for at in (8..HEADER - 8).step_by(8) {
            let disk = written(&keys);
            let (name, mut header) = segment(&disk, number);
            header[at] ^= 1;
            put_header(&disk, &name, &mut header);
            must_be_damaged(&disk, &keys, &format!("segment {number}, byte {at}"));
        }
    }
}

/// Edits both slots of the state, and has their checksums fit.
fn edit_state(disk: &Arc<LocalDisk>, edit: impl Fn(&mut [u8])) {
    let mut state = disk.content("state");
    for slot in state.chunks_mut(SLOT) {
        edit(slot);
        let sum = xxh3_64_with_seed(&slot[..SLOT - 8], 0);
        put(slot, SLOT - 8, sum);
    }
    overwrite(disk, "state", 0, &state);
}

#[test]
fn a_state_that_was_altered_counts_for_nothing() {
    let keys = disk_keys();
    let disk = written(&keys);
    let whole = found(&disk, &keys).expect("is sound");
    assert!(whole >= 16);
    // The log begins with its third segment.
    let (_, third) = segment(&disk, 3);
    edit_state(&disk, |slot| {
        put(slot, 72, 3);
        put(slot, 80, HEADER as u64);
        put(slot, 88, get(&third, 24));
    });
    must_be_damaged(&disk, &keys, "a later tail");

    // It ends with its second.
    let disk = written(&keys);
    for number in [3, 4] {
        disk.lose_file(&segment(&disk, number).0);
    }
    let (_, second) = segment(&disk, 2);
    edit_state(&disk, |slot| {
        put(slot, 96, 2);
        put(slot, 104, get(&second, 24));
    });
    must_be_damaged(&disk, &keys, "an earlier end");

    // It is that of another session.
    let disk = written(&keys);
    edit_state(&disk, |slot| slot[128] ^= 1);
    must_be_damaged(&disk, &keys, "another session");

    // It is not encrypted.
    let disk = written(&keys);
    edit_state(&disk, |slot| slot[SLOT - 40..SLOT - 8].fill(0));
    must_be_damaged(&disk, &keys, "no MAC");
}
