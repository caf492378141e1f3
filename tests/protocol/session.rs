//! What a mounted writer puts into the log beside commits: `heartbeat` and `write_release` of the program, and what `commit.rs` has
//! for all records.
//!
//! | here | there |
//! |---|---|
//! | `heartbeat`, `release`, `write` | `heartbeat`, `write_release`, `write_record` |
//! | `put_again` | `begin_record` |
//! | `answered` | `append` |
//! | `fenced` | `fence` |
//! | `wake` | `check_log`, `look_for_successor` |

use super::bucket::Bucket;
use super::commit;
use super::machine::Machine;
use super::objects::{Answer, BLOCKS, Kind, Record, Request, each, has, last, name, next};
use super::rules::{Rule, Rules};
use super::world::{Actor, Budget, Role, World};

/// Adds what a mounted writer can do next.
pub fn steps(machine: &mut Machine) {
    let actor = machine.actor();
    if let Some(pending) = actor.pending {
        put_again(machine, pending);
    }
    if actor.pending.is_none() || !machine.keep(Rule::PendingFirst) {
        commit::steps(machine);
        if actor.attempt.is_none() || !machine.keep(Rule::HeartbeatWaits) {
            heartbeat(machine);
        }
        if actor.attempt.is_none() || !machine.keep(Rule::ReleaseWaits) {
            release(machine);
        }
    }
    wake(machine);
}

/// A record that follows the head.
pub fn record(actor: &Actor, kind: Kind) -> Record {
    Record {
        kind,
        session: actor.session,
        claim: actor.view.claim,
        previous: actor.view.digest,
        stored: 0,
        holes: 0,
        content: 0,
        nonce: actor.forgotten,
    }
}

/// A record of this session is answered: it is there, and must be part of the true history; or another has its number (`false`).
pub fn answered(
    (rules, role): (Rules, &Role),
    bucket: &Bucket,
    actor: &mut Actor,
    (seq, record): (u8, Record),
    answer: Answer,
) -> Result<bool, String> {
    match answer {
        Answer::Exists(other) if other != record && rules.keep(Rule::ReadBack) => {
            fenced(bucket, actor, role)?;
            Ok(false)
        }
        _ if bucket.truth[usize::from(seq)] != Some(record) => Err(format!(
            "{} takes log/{seq}, {}, for acknowledged, and nobody will see it",
            name(actor.session),
            record.describe()
        )),
        _ => {
            actor.view.follow(seq, &record);
            Ok(true)
        }
    }
}

/// The session takes itself for fenced. Somebody must have claimed the disk.
fn fenced(bucket: &Bucket, actor: &mut Actor, role: &Role) -> Result<(), String> {
    if bucket.owner() == Some(actor.session) {
        return Err(format!(
            "{} takes itself for fenced, and still has the disk",
            name(actor.session)
        ));
    }
    actor.end(role);
    Ok(())
}

/// Where a rule is broken: the session writes something else although a record is in doubt.
pub fn forget_pending(actor: &mut Actor) {
    if actor.pending.take().is_some() {
        actor.forgotten += 1;
    }
}

/// The world in which the session begins a record that it has so many of left; `None` where it has none.
fn begin(machine: &Machine, left: fn(&mut Budget) -> &mut u8) -> Option<World> {
    let mut begun = machine.world.clone();
    let actor = &mut begun.actors[machine.who];
    let left = left(&mut actor.left);
    *left = left.checked_sub(1)?;
    forget_pending(actor);
    Some(begun)
}

fn heartbeat(machine: &mut Machine) {
    let Some(begun) = begin(machine, |left| &mut left.heartbeats) else {
        return;
    };
    let actor = &begun.actors[machine.who];
    let heartbeat = record(actor, Kind::Heartbeat);
    let seq = next(actor.view.head);
    write(&mut machine.within(&begun), seq, heartbeat);
}

fn release(machine: &mut Machine) {
    let Some(begun) = begin(machine, |left| &mut left.releases) else {
        return;
    };
    let actor = &begun.actors[machine.who];
    let mut release = record(actor, Kind::Release);
    let mut head = actor.view.head;
    if !machine.keep(Rule::ReleaseAtOwnHead) {
        head = last(machine.bucket().records());
        let newest = machine.bucket().log[usize::from(head)];
        release.previous = newest.map_or(release.previous, |record| record.digest());
    }
    write(&mut machine.within(&begun), next(head), release);
}

/// Puts a record other than a commit's: `write_record`.
pub fn write(machine: &mut Machine, seq: u8, record: Record) {
    let (rules, role) = (machine.scene.rules, machine.role());
    let done = |bucket: &Bucket, actor: &mut Actor, answer: Answer| {
        let there = written((rules, role), bucket, actor, (seq, record), answer)?;
        let over = there && record.kind == Kind::Release;
        if over && rules.keep(Rule::CheckpointBeforeRelease) {
            actor.end(role);
        }
        Ok(())
    };
    let request = Request::PutRecord(seq, record);
    machine.send(&request, done, Some(&|actor| actor.pending = Some(record)));
}

/// Such a record is there, or another has its number (`false`).
fn written(
    (rules, role): (Rules, &Role),
    bucket: &Bucket,
    actor: &mut Actor,
    (seq, record): (u8, Record),
    answer: Answer,
) -> Result<bool, String> {
    if !answered((rules, role), bucket, actor, (seq, record), answer)? {
        return Ok(false);
    }
    actor.pending = None;
    // `end_given_up`: a heartbeat does not come to it, because it waits.
    let burnt = actor
        .attempt
        .take_if(|attempt| attempt.seq <= seq && rules.keep(Rule::HeartbeatWaits));
    if let Some(attempt) = burnt {
        for index in (0..BLOCKS).filter(|index| has(attempt.sent, *index)) {
            actor.view.garbage[index][usize::from(attempt.seq)] = attempt.seq;
        }
        commit::given_up(actor);
    }
    Ok(true)
}

/// The record in doubt is put again. A session whose release was in doubt may go on, with a heartbeat or a commit: its upkeep does not
/// know that the mount is about to end, and the mount need not end where its release has failed.
fn put_again(machine: &mut Machine, pending: Record) {
    let seq = next(machine.actor().view.head);
    write(machine, seq, pending);
    let left = machine.actor().left;
    if pending.kind == Kind::Release && left.heartbeats + left.commits > 0 {
        let context = (machine.scene.rules, machine.role());
        let done = |bucket: &Bucket, actor: &mut Actor, answer: Answer| {
            written(context, bucket, actor, (seq, pending), answer).map(drop)
        };
        let request = Request::PutRecord(seq, pending);
        machine.send(&request, done, Some(&|_| ()));
    }
}

/// A session that has slept for long, or finds a block missing, looks at the log. If there is nothing to see, nothing has changed.
fn wake(machine: &mut Machine) {
    let (actor, bucket, role) = (machine.actor(), machine.bucket(), machine.role());
    let later = each(bucket.records()).filter(|seq| *seq > actor.view.head);
    let mut later = later.filter_map(|seq| bucket.log[usize::from(seq)]);
    if later.any(|record| record.session != actor.session) {
        machine.step(
            || "looks at the log".to_owned(),
            |actor| fenced(bucket, actor, role),
        );
    }
}
