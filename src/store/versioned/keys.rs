//! Keys of a disk's objects, relative to the disk's prefix: made and parsed here and nowhere else.
//!
//! Numbers are lower-case hexadecimal of fixed width, so that keys sort as their numbers do. Parsers accept exactly what the
//! makers make: anything else under the prefix is foreign, and is left alone.

use crate::block::{BlockIndex, Seq};

/// The superblock.
pub const SUPERBLOCK: &str = "disk.json";
/// Folder of the superblock's generations but the first.
pub const GENERATIONS_FOLDER: &str = "disk/";
/// Folder of all blocks; below it are [`SHARDS`] folders.
pub const BLOCKS_FOLDER: &str = "blocks/";
/// Folder of the records.
pub const LOG_FOLDER: &str = "log/";
/// Folder of the checkpoints.
pub const MAP_FOLDER: &str = "map/";
/// Folder of the snapshots.
pub const SNAPSHOTS_FOLDER: &str = "snapshots/";
/// Folder of the objects with which the store's create-if-absent is tried out.
pub const PROBE_FOLDER: &str = "probe/";
/// Number of folders that blocks are spread over, by index: they are listed in parallel.
pub const SHARDS: u32 = 256;

/// The folder of one shard of the blocks: `blocks/xx/`.
pub fn shard_folder(shard: u8) -> String {
    format!("{BLOCKS_FOLDER}{shard:02x}/")
}

/// The key of a generation of the superblock.
pub fn generation(number: u32) -> String {
    format!("{GENERATIONS_FOLDER}{number:08x}.json")
}

/// The key of a version of a block.
pub fn block(index: BlockIndex, version: Seq) -> String {
    let shard = index.0 % u64::from(SHARDS);
    format!(
        "{BLOCKS_FOLDER}{shard:02x}/{:010x}.{:08x}",
        index.0, version.0
    )
}

/// The key of a record.
pub fn record(seq: Seq) -> String {
    format!("{LOG_FOLDER}{:08x}", seq.0)
}

/// The key of a checkpoint.
pub fn checkpoint(seq: Seq) -> String {
    format!("{MAP_FOLDER}{:08x}", seq.0)
}

/// The number of the generation that a key stands for; `None` for any other key.
pub fn parse_generation(key: &str) -> Option<u32> {
    let number = key.strip_prefix(GENERATIONS_FOLDER)?;
    seq(number.strip_suffix(".json")?).map(|number| number.0)
}

/// The block and version that a key stands for; `None` for any other key, also one in the wrong shard.
pub fn parse_block(key: &str) -> Option<(BlockIndex, Seq)> {
    let (shard, name) = key.strip_prefix(BLOCKS_FOLDER)?.split_once('/')?;
    let (index, version) = name.split_once('.')?;
    let index = hex(index, 10)?;
    let fits = hex(shard, 2)? == index % u64::from(SHARDS);
    Some((BlockIndex(index), seq(version)?)).filter(|_| fits)
}

/// The number of the record that a key stands for; `None` for any other key.
pub fn parse_record(key: &str) -> Option<Seq> {
    seq(key.strip_prefix(LOG_FOLDER)?)
}

/// The number of the checkpoint that a key stands for; `None` for any other key.
pub fn parse_checkpoint(key: &str) -> Option<Seq> {
    seq(key.strip_prefix(MAP_FOLDER)?)
}

/// Whether a key is one that this layout makes: deleting the disk deletes it.
pub fn is_own(key: &str) -> bool {
    let named_in = |folder: &str| {
        key.strip_prefix(folder)
            .is_some_and(|name| !name.is_empty() && !name.contains('/'))
    };
    key == SUPERBLOCK
        || parse_generation(key).is_some()
        || parse_block(key).is_some()
        || parse_record(key).is_some()
        || parse_checkpoint(key).is_some()
        || named_in(SNAPSHOTS_FOLDER)
        || named_in(PROBE_FOLDER)
}

/// A record number in a key: eight digits, from 1.
fn seq(text: &str) -> Option<Seq> {
    let number = u32::try_from(hex(text, 8)?).ok()?;
    (number > 0).then_some(Seq(number))
}

/// A number of exactly so many lower-case hexadecimal digits.
fn hex(text: &str, digits: usize) -> Option<u64> {
    let exact =
        text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    exact.then(|| u64::from_str_radix(text, 16).ok())?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::block::MAX_BLOCKS;

    #[test]
    fn keys_are_spelled_as_the_layout_says() {
        assert_eq!(
            block(BlockIndex(0x12ab), Seq(0x1f)),
            "blocks/ab/00000012ab.0000001f"
        );
        assert_eq!(record(Seq(10)), "log/0000000a");
        assert_eq!(checkpoint(Seq(u32::MAX)), "map/ffffffff");
        assert_eq!(shard_folder(7), "blocks/07/");
        assert_eq!(generation(0x1f), "disk/0000001f.json");
    }

    #[test]
    fn a_key_that_the_layout_does_not_make_is_foreign() {
        let foreign = [
            "",
            "disk.json.bak",
            "disk/",
            "disk/00000000.json",
            "disk/00000002",
            "disk/0000002.json",
            "disk/0000000A.json",
            "blocks/",
            "blocks/readme",
            "blocks/ac/00000012ab.0000001f",
            "blocks/AB/00000012ab.0000001f",
            "blocks/ab/00000012AB.0000001f",
            "blocks/ab/0000012ab.0000001f",
            "blocks/ab/00000012ab.000000001f",
            "blocks/ab/00000012ab.00000000",
            "blocks/ab/00000012ab",
            "blocks/ab/+0000012ab.0000001f",
            "blocks/ab/x/00000012ab.0000001f",
            "log/0000000g",
            "log/+000000a",
            "log/00000000",
            "log/a",
            "log/0000000a/",
            "map/0000000a.tmp",
            "map/0000000\u{e9}",
            "snapshots/",
            "snapshots/a/b",
            "probe/",
            "logs/0000000a",
        ];
        for key in foreign {
            assert!(!is_own(key), "{key}");
        }
        for key in ["disk.json", "snapshots/before upgrade", "probe/0f"] {
            assert!(is_own(key), "{key}");
        }
    }

    proptest! {
        #[test]
        fn keys_come_back_as_what_they_were_made_from(index in 0..MAX_BLOCKS, number in 1u32..) {
            let (index, seq) = (BlockIndex(index), Seq(number));
            prop_assert_eq!(parse_block(&block(index, seq)), Some((index, seq)));
            prop_assert_eq!(parse_record(&record(seq)), Some(seq));
            prop_assert_eq!(parse_checkpoint(&checkpoint(seq)), Some(seq));
            prop_assert_eq!(parse_generation(&generation(number)), Some(number));
            prop_assert!(is_own(&generation(number)));
            prop_assert!(is_own(&block(index, seq)) && is_own(&record(seq)));
            prop_assert!(is_own(&checkpoint(seq)));
        }

        #[test]
        fn any_text_is_parsed_or_refused(key in "(blocks/|log/|map/)?[0-9a-f./é]{0,24}") {
            let spelled_back = parse_block(&key).map(|(index, version)| block(index, version))
                .or(parse_record(&key).map(record))
                .or(parse_checkpoint(&key).map(checkpoint));
            if let Some(same) = spelled_back {
                prop_assert_eq!(same, key);
            }
        }
    }
}
