//! The simulation: machines, their sessions and readers over a bucket that everything goes wrong with, under one seed, and then every
//! crash point of what has become of the bucket. `tests/sim/` has its parts: `world` and those who live in it (`machine`, `session` and
//! the `trouble` that befalls it, `local` disks, `reader`, `viewer`), of a kind that `profile` says; `truth` notes what they did to a `mounted` disk,
//! `judge` and `fork` judge the bucket by it, `succession` and `remains` the journals, with the `flights` that were on their way to it; `night` runs many of them, and `tally` counts.
//!
//! Nothing but the seed decides what happens: the runtime has one thread and a paused clock, and randomness, time of day, the length
//! of requests and what becomes of them are drawn from it. So a seed that fails fails again:
//!
//! ```console
//! BUCKETDISK_SIM_SEEDS=17 cargo test --test sim every_crash_point -- --nocapture
//! ```
//!
//! `BUCKETDISK_SIM_SEEDS` takes numbers and ranges (`3,10-20`); with `BUCKETDISK_SIM_POINTS` seeds go on from the last of them until
//! there were so many crash points, or `BUCKETDISK_SIM_SECONDS` have passed. `scripts/simulate` does that at the size of a night.

use std::collections::VecDeque;
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use night::{Morning, Night, note_panics};
use profile::Profile;
use support::volume::{codec, in_runtime};
use world::World;
use xxhash_rust::xxh3::xxh3_128;

mod support;

#[path = "sim/flights.rs"]
mod flights;
#[path = "sim/fork.rs"]
mod fork;
#[path = "sim/judge.rs"]
mod judge;
#[path = "sim/local.rs"]
mod local;
#[path = "sim/machine.rs"]
mod machine;
#[path = "sim/mounted.rs"]
mod mounted;
#[path = "sim/night.rs"]
mod night;
#[path = "sim/profile.rs"]
mod profile;
#[path = "sim/reader.rs"]
mod reader;
#[path = "sim/remains.rs"]
mod remains;
#[path = "sim/session.rs"]
mod session;
#[path = "sim/stamp.rs"]
mod stamp;
#[path = "sim/tally.rs"]
mod tally;
#[path = "sim/trouble.rs"]
mod trouble;
#[path = "sim/truth.rs"]
mod truth;
#[path = "sim/viewer.rs"]
mod viewer;
#[path = "sim/world.rs"]
mod world;

/// The seeds of every `cargo test`: together they come across all that `tally` calls interesting. Two more are drawn each time.
const FAST: &str = "1-9,54,66,67,75";

/// Tells another process of this test to print the history of that seed.
const HISTORY_OF: &str = "BUCKETDISK_SIM_HISTORY_OF";

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is a number")),
    )
}

/// The seeds that text such as `3,10-20` names.
fn seeds(text: &str) -> VecDeque<u64> {
    let number = |text: &str| -> u64 { text.trim().parse().expect("a seed is a number") };
    let each = text.split(',').flat_map(|part| match part.split_once('-') {
        Some((first, last)) => number(first)..=number(last),
        None => number(part)..=number(part),
    });
    each.collect()
}

/// Runs worlds, says what came of them, and how to see a failure again.
fn pass(night: Night) -> Morning {
    let morning = night.pass();
    print!("{}", morning.tally.lines());
    for (seed, what) in &morning.failures {
        println!("seed {seed} ({}): {what}", Profile::of(*seed).name);
        println!(
            "replay: BUCKETDISK_SIM_SEEDS={seed} cargo test --test sim every_crash_point -- --nocapture"
        );
    }
    print!("{}", morning.table());
    assert!(morning.failures.is_empty(), "see above");
    morning
}

#[test]
fn every_crash_point_of_seeded_worlds_opens_as_the_disk_at_one_instant() {
    note_panics();
    let named = std::env::var("BUCKETDISK_SIM_SEEDS").ok();
    let named = named.filter(|text| !text.is_empty());
    let morning = pass(Night {
        seeds: seeds(named.as_deref().unwrap_or(FAST)),
        points: number("BUCKETDISK_SIM_POINTS").unwrap_or(0),
        longest: number("BUCKETDISK_SIM_SECONDS").map_or(Duration::MAX, Duration::from_secs),
    });
    if named.is_some() {
        return;
    }
    let missing = morning.tally.missing();
    assert!(
        missing.is_empty(),
        "the seeds {FAST} have not come across {missing:?}"
    );
    pass(Night {
        seeds: [(); 2].map(|()| rand::random::<u32>().into()).into(),
        points: 0,
        longest: Duration::MAX,
    });
}

/// Every request of a seed's world: by whom, when, what; and with which body, or one as long: what is sealed is other bytes each time.
fn history(seed: u64) -> Vec<(String, Option<Bytes>)> {
    let world = in_runtime(World::run(seed));
    let requests = world.requests().into_iter();
    let told =
        requests.map(|(who, when, sent)| (format!("{who} {when:?} {:?}", sent.request), sent.body));
    let told = told.map(|(what, body)| match codec().is_light() {
        true => (what, body),
        false => (what, body.map(|body| vec![0; body.len()].into())),
    });
    told.collect()
}

#[test]
fn two_runs_of_one_seed_make_the_same_requests() {
    for seed in 0..9 {
        let (one, two) = (history(seed), history(seed));
        assert!(one.len() > 1000, "seed {seed}: {} requests", one.len());
        let differs = one.iter().zip(&two).position(|(a, b)| a != b);
        if let Some(place) = differs {
            panic!(
                "seed {seed}, request {place}: {:?} and {:?}",
                one[place], two[place]
            );
        }
        assert_eq!(one.len(), two.len(), "seed {seed}");
    }
}

/// But for the bodies: a claim names the process that makes it.
fn fingerprint(seed: u64) -> String {
    let told: Vec<String> = history(seed).into_iter().map(|(told, _)| told).collect();
    let digest = xxh3_128(told.join("\n").as_bytes());
    format!("{} requests, {digest:032x}", told.len())
}

#[test]
fn another_process_makes_the_same_requests_of_a_seed() {
    if let Some(seed) = number(HISTORY_OF) {
        return println!("history: {}", fingerprint(seed));
    }
    for seed in [1, 2, 4, 6] {
        let mut other = Command::new(std::env::current_exe().expect("this test"));
        other.args([
            "--exact",
            "another_process_makes_the_same_requests_of_a_seed",
        ]);
        other.arg("--nocapture").env(HISTORY_OF, seed.to_string());
        let said = other.output().expect("it runs").stdout;
        let said = String::from_utf8_lossy(&said).into_owned();
        let expected = format!("history: {}", fingerprint(seed));
        assert!(
            said.contains(&expected),
            "seed {seed}: {expected} here, there:\n{said}"
        );
    }
}
