//! A superblock that somebody without the key has altered, checksum and all.

use bucketdisk::error::ErrorKind;
use bucketdisk::store::versioned::{Superblock, Unlocked};
use serde_json::{Map, Value, json};
use xxhash_rust::xxh3::xxh3_128;

use crate::support::encrypted::{create, open_at};
use crate::support::memory::Bucket;
use crate::{Do, change};

/// The members of a superblock with the checksum made to fit.
fn resealed(mut members: Map<String, Value>) -> Vec<u8> {
    members.remove("checksum");
    // The library keeps members sorted here, as its own test demands.
    let text = serde_json::to_string(&members).expect("JSON");
    let checksum = format!("xxh3-128:{:032x}", xxh3_128(text.as_bytes()));
    members.insert("checksum".to_owned(), checksum.into());
    serde_json::to_vec(&members).expect("JSON")
}

fn members(body: &[u8]) -> Map<String, Value> {
    serde_json::from_slice(body).expect("JSON")
}

async fn disk() -> (Bucket, Unlocked) {
    let bucket = Bucket::new();
    let disk = create(&bucket.client(), "a").await;
    let disk = change(&bucket.client(), &disk, &Do::Add("b"))
        .await
        .expect("adds");
    (bucket, disk)
}

#[tokio::test]
async fn every_member_of_an_encrypted_disk_s_superblock_is_authenticated() {
    let (bucket, _) = disk().await;
    let body = bucket.body("disk.json").expect("there");
    let sound = members(&body);
    let control = Superblock::parse(&resealed(sound.clone())).expect("parses");
    open_at(control, "b").expect("opens");
    type Alter = fn(&mut Map<String, Value>);
    let altered: [(&str, Alter); 11] = [
        ("size", |m| drop(m.insert("size".into(), json!(2 << 20)))),
        ("block size", |m| {
            drop(m.insert("block_size".into(), json!(8192)));
        }),
        ("created", |m| {
            drop(m.insert("created".into(), json!("2001-01-31T12:00:00Z")));
        }),
        ("compression", |m| {
            drop(m.insert("compression".into(), json!("lz4")));
        }),
        ("generation", |m| {
            drop(m.insert("generation".into(), json!(9)));
        }),
        ("another member", |m| {
            drop(m.insert("hint".into(), json!(true)));
        }),
        ("a slot removed", |m| {
            m["encryption"]["slots"]
                .as_array_mut()
                .expect("slots")
                .remove(0);
        }),
        ("a slot copied", |m| {
            let slots = m["encryption"]["slots"].as_array_mut().expect("slots");
            let mut copy = slots[0].clone();
            copy["id"] = json!(7);
            slots.push(copy);
        }),
        ("another slot's parameters", |m| {
            m["encryption"]["slots"][0]["kdf"]["passes"] = json!(2);
        }),
        ("another slot's kind", |m| {
            m["encryption"]["slots"][0]["kind"] = json!("key-file");
        }),
        ("authentication", |m| {
            let zeros = format!("hmac-sha-256:{:064}", 0);
            drop(m.insert("authentication".into(), json!(zeros)));
        }),
    ];
    for (what, alter) in altered {
        let mut members = sound.clone();
        alter(&mut members);
        let superblock = Superblock::parse(&resealed(members)).expect(what);
        let error = open_at(superblock, "b").expect_err(what);
        assert_eq!(error.kind(), ErrorKind::Damaged, "{what}: {error:?}");
        assert!(error.chain().contains("altered"), "{what}: {error:?}");
    }
}

#[tokio::test]
async fn the_sealed_part_of_another_generation_or_disk_does_not_fit() {
    let (bucket, disk) = disk().await;
    let older = members(&bucket.body("disk.json").expect("there"));
    change(&bucket.client(), &disk, &Do::Label("new"))
        .await
        .expect("labels");
    let mut newer = members(&bucket.body("disk.json").expect("there"));
    newer.insert("private".into(), older["private"].clone());
    let superblock = Superblock::parse(&resealed(newer.clone())).expect("parses");
    let error = open_at(superblock, "b").expect_err("does not fit");
    assert_eq!(error.kind(), ErrorKind::Damaged);
    // Another disk's slots: its keys are not this one's.
    let other = Bucket::new();
    create(&other.client(), "b").await;
    let other = members(&other.body("disk.json").expect("there"));
    newer.insert("encryption".into(), other["encryption"].clone());
    let superblock = Superblock::parse(&resealed(newer)).expect("parses");
    let error = open_at(superblock, "b").expect_err("is another disk's");
    assert_eq!(error.kind(), ErrorKind::NoKey);
}

#[tokio::test]
async fn encryption_that_was_taken_away_is_refused_by_who_has_a_key() {
    let (bucket, disk) = disk().await;
    let sound = members(&bucket.body("disk.json").expect("there"));
    let mut stripped = sound.clone();
    stripped["features"] = json!([]);
    for name in ["encryption", "private", "authentication"] {
        // Half of it is not even a superblock.
        assert!(Superblock::parse(&resealed(stripped.clone())).is_err());
        stripped.remove(name);
    }
    let superblock = Superblock::parse(&resealed(stripped)).expect("parses");
    let error = open_at(superblock.clone(), "b").expect_err("has a key");
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.chain().contains("altered"), "{error:?}");
    disk.at(superblock).expect_err("it was encrypted before");
    let mut half = sound;
    half["features"] = json!([]);
    assert!(Superblock::parse(&resealed(half)).is_err());
}

#[tokio::test]
async fn a_slot_is_made_at_a_moment_and_at_nothing_that_a_terminal_would_act_on() {
    let (bucket, _) = disk().await;
    let sound = members(&bucket.body("disk.json").expect("there"));
    for created in [
        "\u{1b}]0;owned\u{7}",
        "",
        "2025-01-31 12:00:00Z",
        "2025-01-31T12:00:00Z\n",
    ] {
        let mut altered = sound.clone();
        altered["encryption"]["slots"][1]["created"] = json!(created);
        let error = Superblock::parse(&resealed(altered)).expect_err(created);
        assert!(!error.to_string().contains(char::is_control), "{error:?}");
    }
}

#[tokio::test]
async fn a_slot_that_asks_for_the_impossible_is_refused_before_it_is_computed() {
    let (bucket, _) = disk().await;
    let mut asking = members(&bucket.body("disk.json").expect("there"));
    asking["encryption"]["slots"][0]["kdf"]["memory_kib"] = json!(u32::MAX);
    let superblock = Superblock::parse(&resealed(asking)).expect("parses");
    let error = open_at(superblock.clone(), "a").expect_err("asks for 4 TiB");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let error = open_at(superblock, "b").expect_err("was altered");
    assert_eq!(error.kind(), ErrorKind::Damaged);
}
