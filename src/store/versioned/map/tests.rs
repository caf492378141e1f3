//! Tests of the block map, against an ordered map of the standard library.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// Three leaves and a part of a fourth.
const BLOCKS: u64 = 3 * LEAF_BLOCKS + 100;

#[derive(Debug, Clone)]
enum Step {
    Insert(u64, u32),
    InsertRun(u64, u64, u32),
    Remove(u64),
    RemoveRange(u64, u64),
}

/// A block: anywhere, or where leaves, regions and words meet.
fn place() -> impl Strategy<Value = u64> {
    let edge = prop::sample::select(vec![0, 64, 1024, LEAF_BLOCKS, 2 * LEAF_BLOCKS, BLOCKS - 1]);
    prop_oneof![
        0..BLOCKS,
        (edge, -2..3i64).prop_map(|(edge, by)| edge.saturating_add_signed(by).min(BLOCKS - 1)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (place(), 1..9u32).prop_map(|(at, version)| Step::Insert(at, version)),
        2 => (place(), 1..3000u64, 1..9u32).prop_map(|(at, n, v)| Step::InsertRun(at, n, v)),
        2 => place().prop_map(Step::Remove),
        1 => (place(), place()).prop_map(|(a, b)| Step::RemoveRange(a, b)),
    ]
}

fn empty() -> BlockMap {
    BlockMap::new(BLOCKS).expect("small")
}

fn range(start: u64, end: u64) -> Range<BlockIndex> {
    BlockIndex(start)..BlockIndex(end)
}

/// Every question that can be asked of a map, at one place.
fn check(map: &BlockMap, model: &BTreeMap<u64, Seq>, at: u64, end: u64) {
    let index = BlockIndex(at);
    assert_eq!(map.get(index), model.get(&at).copied());
    let stored = model.range(at..).next().map(|(at, _)| BlockIndex(*at));
    assert_eq!(map.next_stored(index), stored, "next stored from {at}");
    let hole = (at..BLOCKS).find(|at| !model.contains_key(at));
    assert_eq!(
        map.next_hole(index),
        hole.map(BlockIndex),
        "next hole from {at}"
    );
    let count = if at < end {
        model.range(at..end).count()
    } else {
        0
    };
    assert_eq!(map.stored_in(range(at, end)), count as u64, "{at}..{end}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_map_answers_as_an_ordered_map_does(
        steps in prop::collection::vec(step(), 1..40),
        questions in prop::collection::vec((place(), place()), 20),
    ) {
        let (mut map, mut model) = (empty(), BTreeMap::new());
        for step in steps {
            match step {
                Step::Insert(at, version) => {
                    let version = Seq(version);
                    prop_assert_eq!(map.insert(BlockIndex(at), version), model.insert(at, version));
                }
                Step::InsertRun(at, length, version) => {
                    for at in at..(at + length).min(BLOCKS) {
                        let version = Seq(version);
                        prop_assert_eq!(map.insert(BlockIndex(at), version), model.insert(at, version));
                    }
                }
                Step::Remove(at) => prop_assert_eq!(map.remove(BlockIndex(at)), model.remove(&at)),
                Step::RemoveRange(start, end) => {
                    let mut told = Vec::new();
                    map.remove_range(range(start, end), |index, version| told.push((index.0, version)));
                    let mut expected = Vec::new();
                    model.retain(|at, version| {
                        let goes = (start..end).contains(at);
                        if goes {
                            expected.push((*at, *version));
                        }
                        !goes
                    });
                    prop_assert_eq!(told, expected);
                }
            }
            prop_assert_eq!(map.len(), model.len() as u64);
        }
        for (at, end) in questions {
            check(&map, &model, at, end);
        }
        prop_assert!(map.iter().map(|(index, version)| (index.0, version)).eq(model.clone()));
        let mut rebuilt = empty();
        for (at, version) in model.iter().rev() {
            rebuilt.insert(BlockIndex(*at), *version);
        }
        prop_assert_eq!(rebuilt, map, "equal whatever the way there");
    }
}

#[test]
fn blocks_beyond_the_end_are_never_stored() {
    let mut map = empty();
    for at in 0..BLOCKS {
        map.insert(BlockIndex(at), Seq(1));
    }
    for beyond in [BLOCKS, 4 * LEAF_BLOCKS, u64::MAX] {
        assert_eq!(map.get(BlockIndex(beyond)), None);
        assert_eq!(map.remove(BlockIndex(beyond)), None);
        assert_eq!(map.next_stored(BlockIndex(beyond)), None);
        assert_eq!(map.next_hole(BlockIndex(beyond)), None);
    }
    assert_eq!(map.next_hole(BlockIndex(0)), None);
    assert_eq!(map.stored_in(range(0, u64::MAX)), BLOCKS);
    let mut removed = 0;
    map.remove_range(range(0, u64::MAX), |_, _| removed += 1);
    assert_eq!((removed, map.len()), (BLOCKS, 0));
}

#[test]
#[should_panic(expected = "beyond the disk")]
fn a_block_beyond_the_end_cannot_be_inserted() {
    empty().insert(BlockIndex(BLOCKS), Seq(1));
}

#[test]
fn a_disk_too_large_for_memory_is_an_error() {
    assert_eq!(
        BlockMap::new(u64::MAX).expect_err("too large"),
        MapTooLarge { blocks: u64::MAX }
    );
}

/// Every block of 16 million exactly once, in an order that jumps about: multiplication by an odd number modulo a power of two.
fn shuffled(count: u64) -> impl Iterator<Item = BlockIndex> {
    (0..count).map(move |n| BlockIndex(n.wrapping_mul(0x9e37_79b9_7f4a_7c15) & (count - 1)))
}

#[test]
fn memory_stays_within_five_bytes_for_a_stored_block_and_a_bit_for_every_block() {
    const BLOCKS: u64 = 16 << 20;
    const BIT_PER_BLOCK: u64 = BLOCKS / 8;
    let mut map = BlockMap::new(BLOCKS).expect("fits");
    let within = |map: &BlockMap, stored: u64| {
        assert_eq!(map.len(), stored);
        let limit = 5 * stored + BIT_PER_BLOCK + BIT_PER_BLOCK / 25;
        let bytes = map.memory_bytes();
        assert!(
            bytes <= limit,
            "{bytes} bytes for {stored} blocks, {limit} are allowed"
        );
    };
    let mut stored = 0;
    let mut order = shuffled(BLOCKS);
    within(&map, 0);
    assert!(
        map.memory_bytes() < BIT_PER_BLOCK / 100,
        "holes alone take next to nothing"
    );
    for goal in [BLOCKS / 1000, BLOCKS / 10, BLOCKS / 2, BLOCKS] {
        for index in order.by_ref().take((goal - stored) as usize) {
            map.insert(index, Seq(1));
        }
        stored = goal;
        within(&map, stored);
    }
    for index in shuffled(BLOCKS).take(BLOCKS as usize / 4) {
        map.remove(index);
    }
    within(&map, BLOCKS - BLOCKS / 4);
    map.remove_range(range(1000, BLOCKS), |_, _| {});
    within(&map, map.stored_in(range(0, 1000)));
    map.remove_range(range(0, BLOCKS), |_, _| {});
    assert_eq!(
        map.memory_bytes(),
        BlockMap::new(BLOCKS).expect("fits").memory_bytes()
    );
}
