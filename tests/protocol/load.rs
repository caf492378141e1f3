//! Reading the state: `load.rs` of the program, and `replay`.
//!
//! | here | there |
//! |---|---|
//! | `LoadMaps` to `LoadAgain` | `load` |
//! | `LoadCheckpoint`, `LoadRecords` | `from_log`, `Replay::from_checkpoint`, `Replay::apply` (here `View::follow`) |
//! | `read`, `Changed` | `VersionedStore::missing`, `was_changed_since` |
//!
//! Several requests of the program are one step in one place: the records that a mount reads are read at one instant. (The program
//! asks for several at once, so in any order. Under a number there is first the one true record, then nothing, then perhaps a void
//! claim, and pruning has no order either; so what several reads can find together one can find.)

use super::listing;
use super::machine::{Asks, At, Goal, Load, Machine};
use super::mount::{list_log, mounted};
use super::objects::{Checkpoint, Kind, each, last, up_to};
use super::rules::Rule;
use super::world::View;

/// Adds what a machine that reads the state can do next.
pub fn steps(machine: &mut Machine, at: At) {
    match at {
        At::LoadMaps(goal) => list_maps(machine, goal),
        At::LoadLog(load) => look_for_records(machine, load),
        At::LoadCheckpoint(load) => read_checkpoint(machine, load),
        At::LoadRecords { load, view } => read_records(machine, load, view),
        At::LoadDoubt(load) => {
            let what = || "lists map/ again".to_owned();
            match last(machine.bucket().checkpoints()) == load.newest {
                true => machine.refuse(what),
                false => machine.go(what, At::LoadMaps(load.goal)),
            }
        }
        At::LoadAgain { goal, view } => look_again(machine, goal, view),
        At::Changed { asks, first } => has_changed(machine, asks, first),
        _ => {}
    }
}

fn list_maps(machine: &mut Machine, goal: Goal) {
    // Where a rule is broken, the checkpoints that would have told that the claim is void are passed over.
    let seen = match machine.keep(Rule::VoidClaims) || !goal.claimed {
        true => machine.bucket().checkpoints(),
        false => machine.bucket().checkpoints() & up_to(goal.end),
    };
    let newest = last(seen);
    let void = newest == goal.end && goal.claimed && machine.keep(Rule::VoidClaims);
    if void || newest > goal.end {
        let at = match goal.claimed && !machine.keep(Rule::LeaveVoidClaims) {
            true => At::Unclaim(goal.end),
            false => At::Idle,
        };
        return machine.go(|| format!("lists map/: {newest} is too new"), at);
    }
    let load = Load {
        goal,
        newest,
        checkpoints: seen,
        records: 0,
        after: 0,
    };
    machine.go(|| "lists map/".to_owned(), At::LoadLog(load));
}

fn look_for_records(machine: &mut Machine, load: Load) {
    let part = |records, after| {
        At::LoadLog(Load {
            records,
            after,
            ..load
        })
    };
    let end = load.goal.end;
    let records = list_log(machine, load.records, load.after, part) & up_to(end);
    let complete = (load.newest + 1..=end).all(|seq| records & 1 << seq != 0);
    let load = Load {
        records,
        after: 0,
        ..load
    };
    let at = match machine.role().lists {
        _ if !complete && machine.scene.gap_check => At::LoadMaps(load.goal),
        true => listing::begin(machine.scene, load),
        false => At::LoadCheckpoint(load),
    };
    machine.go(|| "lists log/".to_owned(), at);
}

fn read_checkpoint(machine: &mut Machine, load: Load) {
    let newest = load.newest;
    let view = match machine.bucket().checkpoint(newest) {
        Some(map) => from_checkpoint(map),
        None if newest == 0 => View::empty(),
        None => return machine.gone("map", newest, At::LoadMaps(load.goal)),
    };
    let view = Box::new(View {
        checkpoint: newest,
        checkpoints: load.checkpoints,
        ..view
    });
    let what = || match newest {
        0 => "begins with an empty map".to_owned(),
        _ => format!("reads map/{newest}"),
    };
    machine.go(what, At::LoadRecords { load, view });
}

fn from_checkpoint(map: &Checkpoint) -> View {
    View {
        head: map.seq,
        digest: map.head,
        claim: map.claim,
        map: map.map,
        garbage: map.garbage,
        unpruned: map.unpruned,
        ..View::empty()
    }
}

fn read_records(machine: &mut Machine, load: Load, mut view: Box<View>) {
    for seq in each(load.records & !up_to(load.newest)) {
        let Some(record) = machine.bucket().log[usize::from(seq)] else {
            return machine.gone("log", seq, At::LoadMaps(load.goal));
        };
        if record.previous != view.digest || seq != view.head + 1 {
            let what = || {
                format!(
                    "reads the records: log/{seq}, {}, does not follow",
                    record.describe()
                )
            };
            return match machine.keep(Rule::MapsAgainBeforeDamage) {
                true => machine.go(what, At::LoadDoubt(load)),
                false => machine.refuse(what),
            };
        }
        view.follow(seq, &record);
    }
    let goal = load.goal;
    machine.go(
        || "reads the records".to_owned(),
        At::LoadAgain { goal, view },
    );
}

fn look_again(machine: &mut Machine, goal: Goal, view: Box<View>) {
    let now = match machine.keep(Rule::VoidClaims) {
        true => last(machine.bucket().checkpoints()),
        false => last(machine.bucket().checkpoints() & up_to(goal.end)),
    };
    let what = || "lists map/ again".to_owned();
    let slow = machine.role().lists && !machine.actor().fast;
    match goal.look {
        _ if now != view.checkpoint && machine.keep(Rule::MapsAgain) => {
            machine.go(what, At::LoadMaps(goal));
        }
        Some(look) => {
            let early = Some(view);
            machine.go(what, At::Claim { look, early });
        }
        None if slow && machine.keep(Rule::SlowListingLooksAgain) => {
            let asks = Asks::Mount { goal, view };
            machine.go(what, At::Changed { asks, first: true });
        }
        None => end(machine, what, goal, &view),
    }
}

fn end(machine: &mut Machine, what: impl FnOnce() -> String, goal: Goal, view: &View) {
    let (bucket, scene) = (machine.bucket(), machine.scene);
    machine.step(what, |actor| mounted(bucket, scene, actor, goal, view));
}

/// A reader reads a block that is not there.
pub fn read(machine: &mut Machine) {
    let missing = machine.bucket().missing(&machine.actor().view.map);
    for (index, version) in missing {
        let what = || format!("reads block {index}.{version}: it is gone");
        let asks = Asks::Reader;
        match machine.keep(Rule::AskWhyGone) {
            true => machine.go(what, At::Changed { asks, first: true }),
            false => machine.refuse(what),
        }
    }
}

fn has_changed(machine: &mut Machine, asks: Asks, first: bool) {
    let head = match &asks {
        Asks::Mount { goal, .. } => goal.end,
        Asks::Reader => machine.actor().view.head,
    };
    let bucket = machine.bucket();
    let folder = match first == machine.keep(Rule::ChangesInLogFirst) {
        true => "log",
        false => "map",
    };
    let changed = match folder {
        "map" => last(bucket.checkpoints()) > head,
        _ => {
            let mut later = bucket.log.iter().skip(usize::from(head) + 1).flatten();
            later.any(|record| record.kind == Kind::Commit)
        }
    };
    let what = || {
        let found = if changed { "has" } else { "has not" };
        format!("looks in {folder}/ whether the disk has changed since {head}: it {found}")
    };
    match asks {
        Asks::Mount { .. } if changed => machine.go(what, At::Idle),
        // It says so, and goes on.
        Asks::Reader if changed => machine.go(what, At::Mounted),
        asks if first => machine.go(what, At::Changed { asks, first: false }),
        Asks::Mount { goal, view } => end(machine, what, goal, &view),
        Asks::Reader => machine.refuse(what),
    }
}
