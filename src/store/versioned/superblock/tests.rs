//! The superblock of a disk that is not encrypted, and what every superblock must be.

use std::time::{Duration, UNIX_EPOCH};

use serde_json::json;

use super::*;

fn sample() -> Superblock {
    Superblock::plain(
        Uuid::from_u128(0x0123_4567_89ab_4def_8123_4567_89ab_cdef),
        Geometry::new(100 << 30, 256 << 10).expect("geometry"),
        "büro \"1\"\n\u{1}\u{7f}".to_owned(),
        UNIX_EPOCH + Duration::from_secs(1_738_324_800),
    )
}

/// The sample with one member changed (`Value::Null` removes it) and the checksum made to fit.
fn changed(name: &str, value: Value) -> Result<Superblock, SuperblockError> {
    let mut members: Map<String, Value> =
        serde_json::from_slice(&sample().to_json()).expect("JSON");
    members.remove("checksum");
    members.remove(name);
    if !value.is_null() {
        members.insert(name.to_owned(), value);
    }
    let fitting = checksum(&members);
    members.insert("checksum".to_owned(), fitting.into());
    Superblock::parse(&serde_json::to_vec(&members).expect("JSON"))
}

#[test]
fn a_superblock_comes_back() {
    assert_eq!(
        Superblock::parse(&sample().to_json()).expect("parses"),
        sample()
    );
}

#[test]
fn members_of_a_newer_program_are_ignored_unless_they_are_features() {
    let extra = json!({"z": [1, {"b": null, "a": true}], "a": -1});
    let newer = changed("hint", extra.clone()).expect("parses");
    assert_eq!(newer.geometry, sample().geometry);
    // And are there when it is written anew.
    let again: Value = serde_json::from_slice(&newer.to_json()).expect("JSON");
    assert_eq!(again["hint"], extra);
    assert_eq!(Superblock::parse(&newer.to_json()).expect("parses"), newer);
    assert!(matches!(
        changed("features", json!(["tiers"])),
        Err(SuperblockError::UnknownFeature { feature }) if feature == "tiers"
    ));
}

#[test]
fn each_thing_that_does_not_fit_is_named() {
    use SuperblockError as E;
    assert!(matches!(Superblock::parse(b"{"), Err(E::NotJson(_))));
    assert!(matches!(Superblock::parse(b"[]"), Err(E::NotOurs)));
    assert!(matches!(Superblock::parse(b"{}"), Err(E::NotOurs)));
    let long = vec![b' '; MAX_SUPERBLOCK_BYTES + 1];
    assert!(matches!(Superblock::parse(&long), Err(E::TooLong { .. })));
    assert!(matches!(changed("format", json!("other")), Err(E::NotOurs)));
    for version in [json!(2), json!(1.0), json!("1"), Value::Null] {
        assert!(matches!(
            changed("version", version),
            Err(E::UnknownVersion { .. })
        ));
    }
    assert!(matches!(
        changed("compression", json!("zstd")),
        Err(E::UnknownCompression { .. })
    ));
    assert!(matches!(
        changed("size", json!(1000)),
        Err(E::InvalidGeometry(_))
    ));
    assert!(matches!(
        changed("block_size", json!(3)),
        Err(E::InvalidGeometry(_))
    ));
    assert!(matches!(
        changed("size", json!(-4096)),
        Err(E::InvalidMember(_))
    ));
    assert!(matches!(
        changed("id", Value::Null),
        Err(E::InvalidMember(_))
    ));
    assert!(matches!(
        changed("created", json!("today")),
        Err(E::InvalidTime { .. })
    ));
}

#[test]
fn an_altered_superblock_is_damaged_not_misread() {
    let text = String::from_utf8(sample().to_json().to_vec()).expect("UTF-8");
    let larger = text.replace("107374182400", "107374444544");
    assert_ne!(larger, text);
    assert!(matches!(
        Superblock::parse(larger.as_bytes()),
        Err(SuperblockError::WrongChecksum)
    ));
}

#[test]
fn the_longest_label_fits() {
    let label = "\u{1}".repeat(MAX_LABEL_BYTES);
    let long = Superblock { label, ..sample() };
    assert_eq!(Superblock::parse(&long.to_json()).expect("parses"), long);
}
