//! What a mounted writer commits, and gives up: `commit.rs` of the program.
//!
//! | here | there |
//! |---|---|
//! | `begin`, `put_blocks`, `put_record` | `commit_changes`, `store_blocks`, `append` |
//! | `give_up`, `given_up` | `give_up_commit`, `end_given_up` |

use super::bucket::Bucket;
use super::machine::Machine;
use super::objects::{Answer, BLOCKS, Kind, Record, Request, blocks, has, next};
use super::rules::Rule;
use super::session::{answered, forget_pending, record, write};
use super::world::{Actor, Attempt};

/// Adds what a writer that has no record in doubt can do for a commit.
pub fn steps(machine: &mut Machine) {
    let Some(attempt) = &machine.actor().attempt else {
        return begin(machine);
    };
    let complete = attempt.done == attempt.stored;
    let sent = attempt.record.is_some();
    if !sent {
        put_blocks(machine, attempt);
    }
    if complete || !machine.keep(Rule::BlocksBeforeRecord) {
        put_record(machine, attempt);
    }
    if !sent || !machine.keep(Rule::GiveUpBeforeRecord) {
        give_up(machine, attempt);
    }
    let early = !machine.keep(Rule::DeleteAfterRecord);
    if complete && (early || (sent && !machine.keep(Rule::DeleteAfterAnswer))) {
        delete_superseded(machine, attempt);
    }
}

fn begin(machine: &mut Machine) {
    let actor = machine.actor();
    if actor.left.commits == 0 {
        return;
    }
    let seq = next(actor.view.head);
    for (stored, holes) in &machine.scene.commits {
        let holes = (0..BLOCKS)
            .filter(|i| has(*holes, *i) && actor.view.map[*i] != 0)
            .fold(0, |set, i| set | 1 << i);
        if *stored | holes == 0 {
            continue;
        }
        let content = actor.content();
        let what = || {
            let (stores, holes) = (blocks(*stored), blocks(holes));
            format!("begins commit {seq} (content {content}): stores {stores}, holes {holes}")
        };
        machine.step(what, |actor| {
            actor.left.commits -= 1;
            forget_pending(actor);
            actor.attempt = Some(Attempt {
                seq,
                stored: *stored,
                holes,
                content,
                sent: 0,
                done: 0,
                record: None,
            });
            Ok(())
        });
    }
}

fn put_blocks(machine: &mut Machine, attempt: &Attempt) {
    for index in (0..BLOCKS).filter(|index| has(attempt.stored & !attempt.done, *index)) {
        let request = Request::PutBlock {
            index,
            version: attempt.seq,
            content: attempt.content,
        };
        let tried = move |actor: &mut Actor, done: bool| {
            if let Some(attempt) = &mut actor.attempt {
                attempt.sent |= 1 << index;
                attempt.done |= u8::from(done) << index;
            }
        };
        let stored = |_: &Bucket, actor: &mut Actor, _: Answer| {
            tried(actor, true);
            Ok(())
        };
        machine.send(&request, stored, Some(&|actor| tried(actor, false)));
    }
}

fn put_record(machine: &mut Machine, attempt: &Attempt) {
    let fresh = Record {
        stored: attempt.stored,
        holes: attempt.holes,
        content: attempt.content,
        ..record(machine.actor(), Kind::Commit)
    };
    let (seq, record) = (attempt.seq, attempt.record.unwrap_or(fresh));
    let context = (machine.scene.rules, machine.role());
    let done = |bucket: &Bucket, actor: &mut Actor, answer: Answer| {
        if answered(context, bucket, actor, (seq, record), answer)? {
            actor.attempt = None;
        }
        Ok(())
    };
    let in_doubt = |actor: &mut Actor| {
        if let Some(attempt) = &mut actor.attempt {
            attempt.record = Some(record);
        }
    };
    machine.send(&Request::PutRecord(seq, record), done, Some(&in_doubt));
}

/// A commit that cannot be completed. (One of which nothing was sent is given up in the same way; that shows nothing more.)
fn give_up(machine: &mut Machine, attempt: &Attempt) {
    let actor = machine.actor();
    if actor.left.give_ups == 0 || attempt.sent == 0 || actor.pending.is_some() {
        return;
    }
    let mut begun = machine.world.clone();
    begun.actors[machine.who].left.give_ups -= 1;
    let mut machine = machine.within(&begun);
    if !machine.keep(Rule::GiveUpBurns) {
        let what = || format!("gives commit {} up, and puts no record", attempt.seq);
        return machine.step(what, |actor| {
            actor.attempt = None;
            given_up(actor);
            Ok(())
        });
    }
    let kind = match machine.keep(Rule::GiveUpByClaim) {
        true => Kind::Claim,
        false => Kind::Heartbeat,
    };
    write(&mut machine, next(actor.view.head), record(actor, kind));
}

/// The commit is given up: what it changed goes into a later one, with other content.
pub fn given_up(actor: &mut Actor) {
    actor.given_up += 1;
    actor.left.commits += 1;
}

/// Where a rule is broken.
fn delete_superseded(machine: &mut Machine, attempt: &Attempt) {
    let map = machine.actor().view.map.into_iter().enumerate();
    let changed = |index| has(attempt.stored | attempt.holes, index);
    for (index, version) in map.filter(|(index, version)| *version != 0 && changed(*index)) {
        let request = Request::DeleteBlock { index, version };
        machine.send(&request, |_, _, _| Ok(()), None);
    }
}
