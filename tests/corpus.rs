//! What fuzzing begins with and has found: every input of the corpus, and some thousand seeded mutations of it, through the same functions
//! that `scripts/fuzz` runs for long.

use std::fs;
use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use support::local_disk;

mod support;
#[path = "fuzz/targets.rs"]
mod targets;

/// Mutations of each target's corpus.
const MUTATIONS: u64 = 4000;
/// The corpus is to stay small: in bytes.
const MOST_BYTES: usize = 100_000;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus")
}

/// The inputs of a target, in order.
fn inputs(target: &targets::Target) -> Vec<Vec<u8>> {
    let folder = corpus().join(target.name);
    let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    paths.sort();
    let read = |path| fs::read(path).expect("reads");
    paths.iter().map(read).collect()
}

/// The same seed makes the same mutation.
fn mutated(inputs: &[Vec<u8>], seed: u64) -> Vec<u8> {
    let random = &mut StdRng::seed_from_u64(seed);
    let mut input = inputs[random.random_range(0..inputs.len())].clone();
    for _ in 0..random.random_range(1..5) {
        let at = random.random_range(0..=input.len());
        let more = at
            .saturating_add(random.random_range(0..16))
            .min(input.len());
        match random.random_range(0..6) {
            0 => input.truncate(at),
            1 => drop(input.drain(at..more)),
            2 => {
                let part = input[at..more].to_vec();
                input.splice(at..at, part);
            }
            3 => {
                let other = &inputs[random.random_range(0..inputs.len())];
                let from = random.random_range(0..=other.len());
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            _ if input.is_empty() => {}
            4 => {
                let at = at.min(input.len() - 1);
                input[at] ^= 1 << random.random_range(0..8);
            }
            _ => {
                let at = at.min(input.len() - 1);
                let values = [0, 1, 0x7f, 0x80, 0xff, random.random()];
                input[at] = values[random.random_range(0..values.len())];
            }
        }
    }
    input
}

#[test]
fn every_parser_keeps_its_promises_on_the_corpus_and_on_mutations_of_it() {
    let first: u64 = std::env::var("BUCKETDISK_CORPUS_SEED").map_or_else(
        |_| rand::random::<u32>().into(),
        |seed| seed.parse().expect("a number"),
    );
    println!("seed {first}: run again with BUCKETDISK_CORPUS_SEED={first}");
    for target in &targets::ALL {
        let inputs = inputs(target);
        assert!(!inputs.is_empty(), "{} has a corpus", target.name);
        for input in &inputs {
            (target.run)(input);
        }
        for seed in first..first + MUTATIONS {
            (target.run)(&mutated(&inputs, seed));
        }
    }
}

#[test]
fn the_corpus_is_small_and_each_of_its_folders_is_a_targets() {
    let bytes: usize = targets::ALL
        .iter()
        .flat_map(inputs)
        .map(|input| input.len())
        .sum();
    assert!(bytes <= MOST_BYTES, "{bytes} bytes");
    for entry in fs::read_dir(corpus()).expect("reads") {
        let name = entry.expect("an entry").file_name();
        assert!(
            targets::ALL.iter().any(|target| name == target.name),
            "{name:?}"
        );
    }
}
