//! The protocol of mounting, committing, checkpointing and pruning, as a model whose every state is looked at.
//!
//! `store::versioned` and bucketdisk-layout(5) say in which order the program sends its requests, and claim that whatever happens
//! in between (a crash, a lost answer, a request that arrives much later, another machine) the disk stays one. Here every such
//! course of events is tried, in worlds that are small but hold everything that has been found to matter. The code is a
//! transcript of the program, function by function; each file begins with a table of what is what:
//!
//! | file | what of the program |
//! |---|---|
//! | `objects`, `bucket` | `record`, `checkpoint`, `objects`; what the store does with a request |
//! | `mount`, `load`, `listing` | the same, and `replay` |
//! | `commit` | the same |
//! | `session` | of `upkeep` heartbeat and release; what `commit` has for all records |
//! | `upkeep` | of `upkeep` garbage, checkpoints, pruning, the sweep |
//! | `world` | what a session knows (`volume`); what must hold in every state |
//! | `machine` | what a machine can be waiting for; what can become of a request |
//! | `rules`, `without` | what the program does not do by chance: each rule is a switch, and what goes wrong without it |
//! | `scenes` | which machines there are, and what they may do |
//! | `search` | breadth first, so that the first violation has a shortest path |
//!
//! # What is checked
//!
//! In every state: each block that the newest state names, and each that the map of a writer that still has the disk names, is
//! there and holds what its commit stored; what a reader or a fenced writer names is that or gone. All records after the newest
//! checkpoint are there, as they were acknowledged.
//! At each step: a mount that completes shows exactly the state of its record, which is as new as the mount's beginning, whether
//! it has read the log or listed the blocks; a claim that stands in a pruned place mounts nothing. An acknowledged record is part
//! of the one history; only whoever holds the disk extends that, and each record names the one before and the claim. A checkpoint is
//! of that history. A disk is claimed only if it is free, or if its holder is a dead session of the same machine, or if a take-over
//! was asked for. A session takes itself for fenced only if it is; a first look that is up to date names the true holder. A sound
//! disk is never called damaged: not by a mount, nor by a reader that finds a block superseded.
//!
//! # What is left out
//!
//! - Damage: objects that are lost or altered; and so a listing in the place of a lost checkpoint, and what the digests are for.
//! - Stores whose listings lag behind, or whose create-if-absent does not work. Two mounts of the same session at once.
//! - Time, but for the grace: a deletion does not fall into a mount that began before and is quick. A session may look at the log at any
//!   moment, or never: what it does after a day's sleep is in between.
//! - That something never ends, or that garbage stays for ever.
//! - Blocks of a commit that turn out to be zero: such a commit is one with a hole.
//! - Some requests of the program are one step here, because more can not be found by several: reading the records (`load` says why).
//!   A record that is there already is read in the step that finds it: it is the session's own, or a claim, which stays, or the session
//!   has been fenced in between. A listing of `map/` is one step: the newest in it is the newest of some moment, however many requests it
//!   takes. What the sweep finds is garbage at once, and not when all shards are listed: it can only be deleted earlier.
//! - The disk is two blocks, a log has a dozen records. Nothing says that a third block or a fourth machine could not show more.
//!
//! # Sizes
//!
//! The scenes of every run have two million states and take some seconds. `PROTOCOL_SIZE=large` searches larger ones too, for ten
//! minutes; `PROTOCOL_SCENE=text` only those with the text in their name. `--nocapture` shows the number of states, and for each rule
//! the path to what goes wrong without it.

#[path = "protocol/bucket.rs"]
mod bucket;
#[path = "protocol/commit.rs"]
mod commit;
#[path = "protocol/listing.rs"]
mod listing;
#[path = "protocol/load.rs"]
mod load;
#[path = "protocol/machine.rs"]
mod machine;
#[path = "protocol/mount.rs"]
mod mount;
#[path = "protocol/objects.rs"]
mod objects;
#[path = "protocol/rules.rs"]
mod rules;
#[path = "protocol/scenes.rs"]
mod scenes;
#[path = "protocol/search.rs"]
mod search;
#[path = "protocol/session.rs"]
mod session;
#[path = "protocol/upkeep.rs"]
mod upkeep;
#[path = "protocol/without.rs"]
mod without;
#[path = "protocol/world.rs"]
mod world;

use std::env;

use rules::Rule;
use search::{Model, Outcome, Steps, search};
use world::Scene;

/// More states than any scene has: some 10 GB.
const MOST: usize = 60_000_000;

fn run(scene: &Scene, wrong: &str) -> Outcome {
    let outcome = search(scene, MOST, wrong);
    println!(
        "{}: {} states in {:.1?}",
        scene.name, outcome.states, outcome.took
    );
    if let Some(violation) = &outcome.violation {
        println!("{violation}");
    }
    outcome
}

/// Runs a scene that must be all right.
fn keeps(scene: &Scene) -> usize {
    let outcome = run(scene, "");
    assert!(
        outcome.complete,
        "{} has more than {MOST} states",
        scene.name
    );
    let violation = outcome.violation.map(|violation| violation.to_string());
    assert_eq!(violation, None, "in {}", scene.name);
    outcome.states
}

#[test]
fn with_all_rules_nothing_goes_wrong_in_any_scene() {
    let mut scenes = scenes::small();
    match env::var("PROTOCOL_SIZE").as_deref() {
        Ok("large") => scenes.extend(scenes::large()),
        Ok(other) => panic!("PROTOCOL_SIZE is large, or not set, but not {other}"),
        Err(_) => {}
    }
    if let Ok(part) = env::var("PROTOCOL_SCENE") {
        scenes.retain(|scene| scene.name.contains(&part));
    }
    let states: usize = scenes.iter().map(keeps).sum();
    println!("{states} states in {} scenes", scenes.len());
    assert!(states > 0, "there is no such scene");
}

#[test]
fn without_any_one_of_the_rules_something_goes_wrong() {
    let mut needless = Vec::new();
    for rule in Rule::ALL {
        println!("\n{rule}");
        let (scene, wrong) = without::without(*rule);
        match run(&scene, wrong).violation {
            // Whoever reads it has to be able to follow it.
            Some(violation) => assert!(violation.path.len() < 50, "{rule}: {violation}"),
            None => needless.push(rule),
        }
    }
    assert!(
        needless.is_empty(),
        "nothing goes wrong without {needless:?}"
    );
}

/// A mount that finds a number missing between checkpoint and end begins anew at once. It would notice without.
#[test]
fn the_look_for_gaps_in_the_log_only_spares_requests() {
    let scenes = [
        scenes::slow_claim(),
        scenes::crash(),
        scenes::three(),
        scenes::listing_reader(),
    ];
    for scene in scenes {
        keeps(&scene.no_gap_check());
    }
}

/// What bucketdisk-layout(5) says of listings: they are the second choice. Only they can be misled by this.
#[test]
fn a_very_late_put_can_mislead_a_listing() {
    let scene = scenes::listing_revived();
    let violation = run(&scene, "").violation.expect("it is misled");
    assert!(violation.what.contains("has mounted"), "{violation}");
}

/// Two clocks that are wound one at a time.
struct Clocks;

impl Model for Clocks {
    type State = (u8, u8);

    fn start(&self) -> (u8, u8) {
        (0, 0)
    }

    fn steps(&self, (a, b): &(u8, u8), steps: &mut Steps<(u8, u8)>) {
        steps.add(|| "a".to_owned(), Ok(((a + 1) % 10, *b)));
        let full = *b == 3 && *a == 2;
        steps.add(
            || "b".to_owned(),
            if full {
                Err("full".to_owned())
            } else {
                Ok((*a, (b + 1) % 10))
            },
        );
    }

    fn check(&self, state: &(u8, u8)) -> Result<(), String> {
        match state {
            (7, 7) => Err("sevens".to_owned()),
            _ => Ok(()),
        }
    }
}

#[test]
fn the_search_finds_a_shortest_path_and_says_when_it_has_not_seen_all() {
    let violation = search(&Clocks, 1000, "").violation.expect("it can be full");
    assert_eq!(violation.what, "full");
    assert_eq!(violation.path.len(), 6, "{violation}");
    assert_eq!(violation.path.last().map(String::as_str), Some("b"));
    let cut = search(&Clocks, 5, "");
    assert!(!cut.complete && cut.violation.is_none());
}
