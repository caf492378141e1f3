//! The state from a listing of the blocks: `listing.rs` of the program.
//!
//! | here | there |
//! |---|---|
//! | `ReadRecords` | `read_records` |
//! | `ReadCheckpoint`, the first half of `rebuild` | `claims` |
//! | `ListBlocks` | `for_each_block`: each shard at another moment, in any order |
//! | `rebuild` | `rebuild`, `punch_holes` |

use super::machine::{At, Load, Machine};
use super::objects::{BLOCKS, Kind, Numbers, Record, Set, each, has, last, up_to};
use super::rules::Rule;
use super::world::{Scene, View};

/// How far a listing is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Listing {
    load: Load,
    next: Next,
    /// The records that were read.
    read: Vec<(u8, Record)>,
    /// The newest claim, from which the chain of claims goes back.
    newest_claim: u8,
    /// The versions that were found of each block, up to which version these are all, and the blocks of which some are left.
    found: [Numbers; BLOCKS],
    after: [u8; BLOCKS],
    left: Set,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Next {
    ReadRecords,
    ReadCheckpoint,
    ListBlocks,
}

/// A listing begins. (The records are read after the blocks are listed where a rule is broken.)
pub fn begin(scene: &Scene, load: Load) -> At {
    let next = match scene.rules.keep(Rule::ListRecordsFirst) {
        true => Next::ReadRecords,
        false => Next::ListBlocks,
    };
    At::List(Box::new(Listing {
        load,
        next,
        read: Vec::new(),
        newest_claim: 0,
        found: [0; BLOCKS],
        after: [0; BLOCKS],
        left: scene.blocks(),
    }))
}

/// Adds what a machine that lists the blocks can do next.
pub fn steps(machine: &mut Machine, listing: Listing) {
    match listing.next {
        Next::ReadRecords => read_records(machine, listing),
        Next::ReadCheckpoint => {
            let map = machine.bucket().checkpoint(listing.load.goal.end);
            let listing = Listing {
                next: Next::ListBlocks,
                newest_claim: map.map_or(listing.newest_claim, |map| map.claim),
                ..listing
            };
            machine.go(
                || "reads the checkpoint of the end, if there is one".to_owned(),
                At::List(Box::new(listing)),
            );
        }
        Next::ListBlocks => {
            for index in (0..BLOCKS).filter(|index| has(listing.left, *index)) {
                list_shard(machine, &listing, index);
            }
        }
    }
}

/// Lists the shard of a block, or the first part of it: it may take two requests.
fn list_shard(machine: &mut Machine, listing: &Listing, index: usize) {
    let versions = machine.bucket().versions(index);
    let after = listing.after[index];
    if machine.scene.pages && after == 0 {
        for end in each(versions).filter(|end| *end < last(versions)) {
            let mut listing = listing.clone();
            listing.found[index] = versions & up_to(end);
            listing.after[index] = end;
            let what = || format!("lists the shard of block {index} up to version {end}");
            machine.go(what, At::List(Box::new(listing)));
        }
    }
    let mut listing = listing.clone();
    listing.found[index] |= versions & !up_to(after);
    listing.after[index] = 0;
    listing.left &= !(1 << index);
    let what = || format!("lists the shard of block {index}");
    if listing.left == 0 && !machine.keep(Rule::ListRecordsFirst) {
        listing.load.records = machine.bucket().records() & up_to(listing.load.goal.end);
        listing.next = Next::ReadRecords;
    }
    let at = match listing.left == 0 && listing.next == Next::ListBlocks {
        true => rebuilt(machine.scene, &listing),
        false => At::List(Box::new(listing)),
    };
    machine.go(what, at);
}

fn read_records(machine: &mut Machine, mut listing: Listing) {
    let goal = listing.load.goal;
    for seq in each(listing.load.records) {
        match machine.bucket().log[usize::from(seq)] {
            Some(record) => listing.read.push((seq, record)),
            None => return machine.gone("log", seq, At::LoadMaps(goal)),
        }
    }
    listing.newest_claim = listing
        .read
        .last()
        .map_or(0, |(seq, record)| record.newest_claim(*seq));
    listing.next = if goal.claimed {
        Next::ListBlocks
    } else {
        Next::ReadCheckpoint
    };
    let at = match listing.left {
        0 => rebuilt(machine.scene, &listing),
        _ => At::List(Box::new(listing)),
    };
    machine.go(|| "reads the records".to_owned(), at);
}

fn rebuilt(scene: &Scene, listing: &Listing) -> At {
    let view = Box::new(rebuild(scene, listing));
    let goal = listing.load.goal;
    At::LoadAgain { goal, view }
}

fn rebuild(scene: &Scene, listing: &Listing) -> View {
    let Listing { load, read, .. } = listing;
    let end = load.goal.end;
    let claims = claims(scene, listing);
    let numbers = |kind: Kind| {
        let those = read.iter().filter(move |(_, record)| record.kind == kind);
        those.fold(0, |all: Numbers, (seq, _)| all | 1 << seq)
    };
    let mut view = View {
        head: end,
        digest: read
            .iter()
            .find(|(seq, _)| *seq == end)
            .map_or_else(Default::default, |(_, r)| r.digest()),
        claim: last(claims),
        unpruned: numbers(Kind::Commit) | numbers(Kind::Heartbeat) | numbers(Kind::Release),
        checkpoint: load.newest,
        checkpoints: load.checkpoints,
        ..View::empty()
    };
    let mut skipped = 0;
    if scene.rules.keep(Rule::ListSkipsClaims) {
        skipped |= claims;
    }
    if !scene.rules.keep(Rule::GiveUpByClaim) {
        // The other way would need this, and fails all the same: heartbeats are pruned.
        skipped |= numbers(Kind::Heartbeat);
    }
    for index in 0..BLOCKS {
        let mut versions = listing.found[index] & !skipped;
        if scene.rules.keep(Rule::ListUpToEnd) {
            versions &= up_to(end);
        }
        view.map[index] = last(versions);
        for older in each(versions & !(1 << view.map[index])) {
            let newer = each(versions & !up_to(older)).next().unwrap_or(end);
            let known = scene.rules.keep(Rule::ListKnowsSuperseder);
            view.garbage[index][usize::from(older)] = if known { newer } else { end };
        }
        for (seq, record) in read {
            let version = view.map[index];
            let hides = has(record.holes, index) && scene.rules.keep(Rule::ListHides);
            if hides && version != 0 && version < *seq {
                view.garbage[index][usize::from(version)] = *seq;
                view.map[index] = 0;
            }
        }
    }
    view
}

/// The claims that are not void: from the newest, each names the one before it.
fn claims(scene: &Scene, listing: &Listing) -> Numbers {
    let claim = |at: u8| {
        let record = listing.read.iter().find(|(seq, _)| *seq == at);
        record.filter(|(_, record)| record.kind == Kind::Claim)
    };
    if !scene.rules.keep(Rule::ListKnowsVoidClaims) {
        return each(!0)
            .filter(|seq| claim(*seq).is_some())
            .fold(0, |all, seq| all | 1 << seq);
    }
    let mut claims = 0;
    let mut at = listing.newest_claim;
    while let Some((seq, record)) = claim(at) {
        claims |= 1 << seq;
        at = record.claim;
    }
    claims
}
