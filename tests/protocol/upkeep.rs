//! What a mounted writer does beside: `upkeep.rs` of the program. It runs while a commit is under way.
//!
//! | here | there |
//! |---|---|
//! | `delete` | `delete_due_garbage` |
//! | `checkpoint` | `write_checkpoint`: the view as it is, and later the request |
//! | `prune` | `prune`: there only after a checkpoint, here at any time |
//! | `sweep` | `sweep` |

use super::bucket::Bucket;
use super::machine::Machine;
use super::objects::{BLOCKS, Checkpoint, Kind, Request, each, has, up_to};
use super::rules::{Rule, Rules};
use super::world::{Actor, Sweep, View};

/// Adds what the upkeep of a mounted writer can do next.
pub fn steps(machine: &mut Machine) {
    delete(machine);
    checkpoint(machine);
    prune(machine);
    sweep(machine);
}

fn delete(machine: &mut Machine) {
    for (index, version, by) in machine.actor().view.garbage() {
        if !machine.scene.grace_is_over(machine.world, by) {
            continue;
        }
        let deleted = |_: &Bucket, actor: &mut Actor, _| {
            actor.view.garbage[index][usize::from(version)] = 0;
            Ok(())
        };
        machine.send(
            &Request::DeleteBlock { index, version },
            deleted,
            Some(&|_| ()),
        );
    }
}

fn checkpoint(machine: &mut Machine) {
    let actor = machine.actor();
    for (place, map) in actor.snapshots.iter().enumerate() {
        let seq = map.seq;
        let stored = |_: &Bucket, actor: &mut Actor, _| {
            actor.snapshots.remove(place);
            actor.view.checkpoint = seq;
            actor.view.checkpoints |= 1 << seq;
            Ok(())
        };
        machine.send(
            &Request::PutCheckpoint(map.clone()),
            stored,
            Some(&|actor| {
                actor.snapshots.remove(place);
            }),
        );
    }
    // Between a release that was put again and what follows it, no checkpoint is due: `write_release` has put one if it was.
    let newest = machine.bucket().truth[usize::from(actor.view.head)];
    let released = newest.is_some_and(|record| record.kind == Kind::Release);
    let released = released && machine.keep(Rule::CheckpointBeforeRelease);
    let busy = actor.snapshots.len() == 2 || actor.left.checkpoints == 0;
    if busy || actor.view.checkpoint == actor.view.head || released {
        return;
    }
    let snapshot = snapshot(machine.scene.rules, actor);
    let what = || format!("makes a checkpoint of its head, {}", actor.view.head);
    machine.step(what, |actor| {
        actor.left.checkpoints -= 1;
        let place = actor.snapshots.partition_point(|other| *other < snapshot);
        actor.snapshots.insert(place, snapshot);
        Ok(())
    });
}

fn snapshot(rules: Rules, actor: &Actor) -> Checkpoint {
    let mut view = actor.view.clone();
    if let Some(record) = actor.attempt.as_ref().and_then(|attempt| attempt.record)
        && !rules.keep(Rule::CheckpointOfHead)
    {
        view.follow(view.head + 1, &record);
    }
    if !rules.keep(Rule::CheckpointKeepsGarbage) {
        view.garbage = View::empty().garbage;
    }
    Checkpoint {
        seq: view.head,
        head: view.digest,
        session: actor.session,
        claim: view.claim,
        map: view.map,
        garbage: view.garbage,
        unpruned: view.unpruned,
    }
}

fn prune(machine: &mut Machine) {
    let actor = machine.actor();
    let view = &actor.view;
    let ahead = actor.snapshots.iter().map(|map| map.seq).max().unwrap_or(0);
    let covered = match machine.keep(Rule::CheckpointBeforePrune) {
        true => view.checkpoint,
        false => view.checkpoint.max(ahead),
    };
    let needed = view
        .garbage()
        .map(|(_, _, by)| by)
        .min()
        .filter(|_| machine.keep(Rule::DeleteBeforePrune));
    let limit = needed.map_or(covered, |first| covered.min(first - 1));
    let mut records = view.unpruned & up_to(limit);
    if !machine.keep(Rule::KeepClaims) {
        let all = machine.bucket().log.iter().enumerate();
        let claims = all.filter(|(_, record)| record.is_some_and(|r| r.kind == Kind::Claim));
        records |= claims.fold(0, |all, (seq, _)| all | 1 << seq) & up_to(limit);
    }
    for seq in each(records) {
        let pruned = |_: &Bucket, actor: &mut Actor, _| {
            actor.view.unpruned &= !(1 << seq);
            Ok(())
        };
        machine.send(&Request::DeleteRecord(seq), pruned, Some(&|_| ()));
    }
    let newest = match machine.keep(Rule::NewCheckpointBeforeOldGoes) {
        true => view.checkpoint,
        false => view.checkpoint.max(ahead),
    };
    for seq in each(view.checkpoints).filter(|seq| *seq < newest) {
        let pruned = |_: &Bucket, actor: &mut Actor, _| {
            actor.view.checkpoints &= !(1 << seq);
            Ok(())
        };
        machine.send(&Request::DeleteCheckpoint(seq), pruned, Some(&|_| ()));
    }
}

fn sweep(machine: &mut Machine) {
    let actor = machine.actor();
    let Some(sweep) = actor.sweep.clone() else {
        return;
    };
    let head = if sweep.head == 0 {
        actor.view.head
    } else {
        sweep.head
    };
    for index in (0..BLOCKS).filter(|index| has(sweep.left, *index)) {
        let mut found = machine.bucket().versions(index);
        if machine.keep(Rule::SweepSparesNewer) {
            found &= up_to(head);
        }
        if machine.keep(Rule::SweepSparesMap) {
            found &= !(1 << actor.view.map[index]);
        }
        let what = || format!("sweeps the shard of block {index}");
        machine.step(what, |actor| {
            for version in each(found) {
                let by = &mut actor.view.garbage[index][usize::from(version)];
                if *by == 0 {
                    *by = head;
                }
            }
            let left = sweep.left & !(1 << index);
            actor.sweep = (left != 0).then_some(Sweep { head, left });
            Ok(())
        });
    }
}
