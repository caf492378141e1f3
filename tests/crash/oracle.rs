//! The judges are judged: each refuses what it is there to refuse, and nothing that a file system may do.

use std::collections::BTreeMap;

use rand::SeedableRng;
use rand::rngs::SmallRng;

use crate::history::{Change, Found, History, Node, Promise};
use crate::pulse::Pulse;
use crate::raw::Raw;
use crate::stamps::{SECTOR, Sector, Stamps, file_of};

/// A history of an empty folder in which files are made and nothing is synced.
struct Story(History);

impl Story {
    fn new(one_moment: bool) -> Story {
        let promise = Promise {
            one_moment,
            stale_tail: false,
        };
        Story(History::new(promise, 10))
    }

    fn folder(&mut self, path: &str) {
        let number = self.0.number();
        self.0
            .change(Change::Make(path.into(), Node::Folder(number)));
    }

    fn file(&mut self, path: &str, generation: u32) -> u32 {
        let file = self.0.new_file();
        self.0.change(Change::Make(path.into(), Node::File(file)));
        self.0.write(file, 0..4, generation);
        file
    }

    fn rename(&mut self, from: &str, to: &str) {
        self.0.change(Change::Move(from.into(), to.into()));
    }

    fn finds(mut self, found: &[(&str, Found)]) -> Result<(), String> {
        let found: BTreeMap<String, Found> = found
            .iter()
            .map(|(path, what)| ((*path).to_owned(), what.clone()))
            .collect();
        self.0.check(&found)
    }
}

fn whole(file: u32, generation: u32) -> Found {
    Found::File(Some(file), vec![generation; 4])
}

#[test]
fn what_was_synced_must_be_there_and_what_was_not_may() {
    for ordered in [true, false] {
        let story = || {
            let mut story = Story::new(ordered);
            let file = story.file("kept", 1);
            story.0.file_synced(file);
            let later = story.file("later", 2);
            story.0.write(file, 1..2, 3);
            (story, file, later)
        };
        let (told, file, _) = story();
        told.finds(&[("kept", whole(file, 1))]).expect("as synced");
        let (told, file, later) = story();
        let mixed = Found::File(Some(file), vec![1, 3, 1, 1]);
        let begun = Found::File(Some(later), vec![2, 0]);
        told.finds(&[("kept", mixed), ("later", begun)])
            .expect("written since");
        let (told, ..) = story();
        told.finds(&[]).expect_err("lost");
        let (told, file, _) = story();
        told.finds(&[("kept", Found::File(Some(file), vec![1, 0, 1, 1]))])
            .expect_err("zeros in what was durable");
        let (told, file, _) = story();
        told.finds(&[("kept", Found::File(Some(file), vec![1; 3]))])
            .expect_err("cut off");
        let (told, file, later) = story();
        told.finds(&[("kept", whole(file, 1)), ("later", whole(later, 1))])
            .expect_err("never written there");
        let (told, file, _) = story();
        told.finds(&[("other", whole(file, 1))])
            .expect_err("never had that name");
    }
}

#[test]
fn a_sync_leaves_one_state() {
    for ordered in [true, false] {
        let story = || {
            let mut story = Story::new(ordered);
            let file = story.file("old", 1);
            story.rename("old", "new");
            story.0.all_synced();
            (story, file)
        };
        let (told, file) = story();
        told.finds(&[("new", whole(file, 1))]).expect("as synced");
        let (told, file) = story();
        told.finds(&[("old", whole(file, 1))]).expect_err("older");
        let (told, file) = story();
        told.finds(&[("old", whole(file, 1)), ("new", whole(file, 1))])
            .expect_err("twice");
    }
}

#[test]
fn names_are_of_one_moment_or_each_by_itself() {
    let story = |ordered| {
        let mut story = Story::new(ordered);
        story.folder("a");
        let first = story.file("a/first", 1);
        story.0.all_synced();
        story.rename("a", "b");
        let second = story.file("b/second", 2);
        story.0.file_synced(second);
        (story, first, second)
    };
    let folder = Found::Folder;
    for ordered in [true, false] {
        let (told, first, second) = story(ordered);
        told.finds(&[
            ("b", folder.clone()),
            ("b/first", whole(first, 1)),
            ("b/second", whole(second, 2)),
        ])
        .expect("the last moment");
        let (told, first, second) = story(ordered);
        let mixed = told.finds(&[
            ("a", folder.clone()),
            ("a/first", whole(first, 1)),
            ("a/second", whole(second, 2)),
        ]);
        assert_eq!(mixed.is_err(), ordered, "{mixed:?}");
        let (told, first, _) = story(ordered);
        told.finds(&[("b", folder.clone()), ("b/first", whole(first, 1))])
            .expect_err("the second was synced");
    }
}

#[test]
fn only_the_rest_of_the_last_page_may_be_older_and_only_where_that_is_said() {
    for stale_tail in [true, false] {
        let story = || {
            let promise = Promise {
                one_moment: true,
                stale_tail,
            };
            let mut story = Story(History::new(promise, 10));
            let file = story.file("file", 5);
            story.0.all_synced();
            story.0.write(file, 4..12, 6);
            (story, file)
        };
        let found = |file, rest: [u32; 8]| Found::File(Some(file), [&[5; 4][..], &rest].concat());
        let (told, file) = story();
        told.finds(&[("file", found(file, [6; 8]))]).expect("new");
        let (told, file) = story();
        let tail = told.finds(&[("file", found(file, [2, 2, 2, 2, 6, 6, 6, 6]))]);
        assert_eq!(tail.is_ok(), stale_tail, "{tail:?}");
        let (told, file) = story();
        told.finds(&[("file", found(file, [6, 6, 6, 6, 2, 6, 6, 6]))])
            .expect_err("another page");
    }
}

#[test]
fn a_sector_tells_what_it_is_and_garbage_that_it_is_not() {
    let stamps = Stamps::new(5);
    let bytes = stamps.fill(7, 9, 0..3);
    let stamped = Sector::Stamped {
        file: 7,
        generation: 9,
    };
    assert_eq!(stamps.read(&bytes), [stamped; 3]);
    assert_eq!(stamps.read(&[0; SECTOR]), [Sector::Zeros]);
    assert_eq!(Stamps::new(6).read(&bytes), [Sector::Garbage; 3]);
    assert_eq!(stamps.read(&bytes[SECTOR..])[0], Sector::Garbage, "moved");
    let mut torn = bytes.clone();
    torn[SECTOR - 1] ^= 1;
    assert_eq!(stamps.read(&torn)[0], Sector::Garbage);
    let foreign = stamps.read(&[&bytes[..SECTOR], &stamps.fill(8, 9, 1..2)].concat());
    file_of(&foreign).expect_err("two files in one");
}

/// A raw part in a file, and the states that it went through: of 30 writes the first ten were flushed.
fn raw_part() -> (Raw, Vec<Vec<u32>>) {
    let image = tempfile::NamedTempFile::new().expect("a file");
    image.as_file().set_len(8 << 20).expect("has its size");
    let stamps = Stamps::new(1);
    let mut states = Vec::new();
    let mut raw = Raw::new(0, SmallRng::seed_from_u64(1), stamps);
    for write in 0..30 {
        if write == 10 {
            let counts = raw.flush_image(image.path(), &Pulse::default());
            assert!(counts.expect("flushes"));
        }
        states.push(raw.look(image.path()).expect("reads"));
        raw.write_once(image.path()).expect("writes");
    }
    states.push(raw.look(image.path()).expect("reads"));
    (raw, states)
}

#[test]
fn the_raw_part_is_one_state_and_none_before_the_flush() {
    let (mut raw, states) = raw_part();
    for last_in_part in [false, true] {
        for (at, state) in states.iter().enumerate() {
            let judged = raw.clone().check(state.clone(), last_in_part);
            assert_eq!(judged.is_ok(), at >= 10, "{at}: {judged:?}");
        }
    }
    let half = states[29].len() / 2;
    let mixed = [&states[20][..half], &states[29][half..]].concat();
    raw.check(mixed, true).expect_err("no one instant");
}

#[test]
fn of_the_raw_part_only_the_last_write_may_be_there_in_part_and_only_its_beginning() {
    let (raw, states) = raw_part();
    let judge = |between: usize, from_first: bool, last_in_part| {
        let (before, after) = (&states[between], &states[between + 1]);
        let changed: Vec<usize> = (0..before.len())
            .filter(|at| before[*at] != after[*at])
            .collect();
        assert!(changed.len() > 1, "write {between} is of several sectors");
        let (first, rest) = changed.split_at(changed.len() / 2);
        let mut found = before.clone();
        for at in if from_first { first } else { rest } {
            found[*at] = after[*at];
        }
        raw.clone().check(found, last_in_part)
    };
    judge(29, true, true).expect("its beginning");
    judge(29, true, false).expect_err("in a commit it is whole or not at all");
    judge(29, false, true).expect_err("its end alone");
    judge(28, true, true).expect_err("it had returned when the next one began");
}
