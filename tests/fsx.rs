//! The file exerciser, proven on an ordinary file: it accepts a right one and catches a wrong one.

#[path = "support/fsx.rs"]
mod fsx;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;

use fsx::Exerciser;
use tempfile::NamedTempFile;

const BLOCK: usize = 16 << 10;
const SIZE: usize = 20 * BLOCK;

/// A file of zeros on the file system that the build is on: it must be able to punch holes and zero ranges.
fn file() -> NamedTempFile {
    let file = NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a file to exercise");
    file.as_file().set_len(SIZE as u64).expect("its size");
    file
}

fn change(file: &NamedTempFile, change: impl FnOnce(&File)) {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(file.path())
        .expect("open beside the exerciser");
    change(&file);
}

#[test]
fn an_ordinary_file_passes() {
    for seed in [1, 2, 3] {
        let file = file();
        fsx::exercise(file.path(), SIZE, 1500, seed, BLOCK).unwrap_or_else(|e| panic!("{e}"));
    }
}

#[test]
fn one_changed_byte_is_caught_and_told_with_the_seed() {
    let file = file();
    let mut exerciser = Exerciser::open(file.path(), SIZE, 77, BLOCK).expect("open");
    for _ in 0..200 {
        exerciser.step().expect("right so far");
    }
    change(&file, |file| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, 12_345).expect("read");
        file.write_all_at(&[byte[0] ^ 1], 12_345).expect("write");
    });
    let error = exerciser.compare_all().expect_err("caught");
    assert!(
        error.contains("byte 12345 is") && error.contains("seed 77"),
        "{error}"
    );
    assert!(
        error.contains("200: ") && error.contains("compare all"),
        "{error}"
    );
}

#[test]
fn data_lost_between_operations_is_caught_by_the_operations_themselves() {
    let file = file();
    let mut exerciser = Exerciser::open(file.path(), SIZE, 5, BLOCK).expect("open");
    let outcome = (0..2000).try_for_each(|at| {
        if at % 100 == 99 {
            change(&file, |file| {
                file.write_all_at(&[0; BLOCK], 3 * BLOCK as u64)
                    .expect("write");
            });
        }
        exerciser.step()
    });
    outcome.expect_err("caught by a read, not only at the end");
}

#[test]
fn a_file_that_changes_its_size_is_caught() {
    let file = file();
    let mut exerciser = Exerciser::open(file.path(), SIZE, 6, BLOCK).expect("open");
    change(&file, |file| file.set_len(SIZE as u64 + 1).expect("resize"));
    let error = exerciser.compare_all().expect_err("caught");
    assert!(error.contains("the file has"), "{error}");
}
