//! Mounting, for writing and for reading: the first look, the claim, and the end; `load` and `listing` have what is between.
//!
//! | here | there |
//! |---|---|
//! | `Idle` to `LookMaps` | `FirstLook::take`, `some_block` |
//! | `decide` | `FirstLook::holder`, `may_claim` |
//! | `claim` | `claim`, `put_record` |
//! | `mounted` | `VersionedStore::start`; there a sweep follows only where something may be left over, here it always may |

use super::bucket::Bucket;
use super::machine::{At, Goal, Look, Machine};
use super::objects::{
    Answer, BLOCKS, Digest, Kind, Numbers, Record, Request, Session, each, last, name, next, up_to,
};
use super::rules::Rule;
use super::world::{Actor, Scene, Sweep, View};
use super::{listing, load};

/// Adds what a machine that is not mounted yet can do next.
pub fn steps(machine: &mut Machine) {
    let bucket = machine.bucket();
    match machine.actor().at.clone() {
        At::Gone | At::Mounted => {}
        At::Idle => begin(machine),
        At::LookLog {
            newest,
            seen,
            after,
        } => {
            let part = |seen, after| At::LookLog {
                newest,
                seen,
                after,
            };
            let records = list_log(machine, seen, after, part);
            let head = last(records).max(newest);
            let at = match records & 1 << head != 0 {
                _ if head == 0 => At::LookBlocks,
                true => At::LookRecord { newest, head },
                false => At::LookCheckpoint { newest, head },
            };
            machine.go(|| "lists log/".to_owned(), at);
        }
        At::LookBlocks => look_blocks(machine),
        At::LookLogAgain => {
            let what = || "lists log/ and map/ again".to_owned();
            match bucket.records() != 0 || bucket.checkpoints() != 0 {
                true => machine.go(what, At::Idle),
                false => machine.refuse(what),
            }
        }
        At::LookRecord { newest, head } => look_record(machine, newest, head),
        At::LookCheckpoint { newest, head } => match bucket.checkpoint(newest) {
            None => machine.gone("map", newest, At::Idle),
            Some(map) => {
                let look = Look {
                    head,
                    digest: map.head,
                    claim: map.claim,
                    holder: Some(map.session),
                };
                decide(machine, || format!("reads map/{newest}"), look);
            }
        },
        At::LookMaps { newest, look } => {
            let what = || "lists map/ again".to_owned();
            match last(bucket.checkpoints()) == newest {
                true => decide(machine, what, look),
                false => machine.go(what, At::Idle),
            }
        }
        At::Claim { look, early } => claim(machine, look, early),
        At::Unclaim(seq) => machine.send(
            &Request::DeleteRecord(seq),
            |_, actor, _| {
                actor.at = At::Idle;
                Ok(())
            },
            None,
        ),
        At::List(list) => listing::steps(machine, *list),
        at => load::steps(machine, at),
    }
}

/// Lists the log: all that is left of it. Where a listing takes two requests the first may also end at any record, and `part` is where
/// that leads.
pub fn list_log(
    machine: &mut Machine,
    seen: Numbers,
    after: u8,
    part: impl Fn(Numbers, u8) -> At,
) -> Numbers {
    let records = machine.bucket().records();
    if machine.scene.pages && after == 0 {
        for end in each(records).filter(|end| *end < last(records)) {
            let what = || format!("lists log/ up to {end}");
            machine.go(what, part(records & up_to(end), end));
        }
    }
    seen | records & !up_to(after)
}

fn begin(machine: &mut Machine) {
    let newest = last(machine.bucket().checkpoints());
    let (role, head) = (machine.role(), machine.bucket().head);
    for fast in [true, false] {
        if fast && !role.lists {
            continue;
        }
        let how = if fast {
            "a mount that is quick"
        } else {
            "a mount"
        };
        machine.step(
            || format!("begins {how}: lists map/"),
            |actor| {
                if role.lists || !role.writes {
                    (actor.since, actor.fast) = (head, fast);
                }
                actor.at = At::LookLog {
                    newest,
                    seen: 0,
                    after: 0,
                };
                Ok(())
            },
        );
    }
}

fn look_blocks(machine: &mut Machine) {
    let bucket = machine.bucket();
    let any = (0..BLOCKS).any(|index| bucket.versions(index) != 0);
    let what = || "lists blocks/".to_owned();
    match any {
        true if machine.keep(Rule::LogAgainBeforeDamage) => machine.go(what, At::LookLogAgain),
        true => machine.refuse(what),
        false => {
            let look = Look {
                head: 0,
                digest: Digest::default(),
                claim: 0,
                holder: None,
            };
            decide(machine, what, look);
        }
    }
}

fn look_record(machine: &mut Machine, newest: u8, head: u8) {
    let counts = |record: &Record| {
        head > newest || record.kind != Kind::Claim || !machine.keep(Rule::CheckpointCounts)
    };
    match machine.bucket().log[usize::from(head)] {
        Some(record) if counts(&record) => {
            let look = Look {
                head,
                digest: record.digest(),
                claim: record.newest_claim(head),
                holder: (record.kind != Kind::Release).then_some(record.session),
            };
            let what = || format!("reads log/{head}, {}", record.describe());
            match head > newest && machine.keep(Rule::FirstLookAgain) {
                true => machine.go(what, At::LookMaps { newest, look }),
                false => decide(machine, what, look),
            }
        }
        None if head > newest => machine.gone("log", head, At::Idle),
        _ => machine.go(
            || format!("reads log/{head}, which may be void"),
            At::LookCheckpoint { newest, head },
        ),
    }
}

/// The first look is taken: what it says of who holds the disk must be so, if it is the newest.
fn decide(machine: &mut Machine, what: impl FnOnce() -> String, look: Look) {
    let holder = machine.bucket().holder();
    if look.head == machine.bucket().head && look.holder != holder {
        let say = |holder: Option<Session>| holder.map_or("nobody".to_owned(), name);
        let (seems, is) = (say(look.holder), say(holder));
        return machine.step(what, |_| {
            Err(format!(
                "the disk seems to be held by {seems}, and is by {is}"
            ))
        });
    }
    let goal = Goal {
        end: look.head,
        claimed: false,
        look: None,
    };
    let role = machine.role();
    let held_by = look.holder.filter(|_| role.writes);
    let own = held_by.filter(|holder| holder.who() == machine.who);
    let resumes = own.filter(|_| !machine.keep(Rule::ResumeClaims));
    let refused = held_by.is_some() && own.is_none() && !role.takes_over;
    let at = match role.writes {
        false => At::LoadMaps(goal),
        true if resumes.is_some() => At::LoadMaps(goal),
        true if refused && machine.keep(Rule::AskHolder) => At::Idle,
        true if machine.keep(Rule::ClaimBeforeRead) => At::Claim { look, early: None },
        true => At::LoadMaps(Goal {
            look: Some(look),
            ..goal
        }),
    };
    machine.step(what, |actor| {
        actor.session = resumes.unwrap_or(actor.session);
        actor.at = at;
        Ok(())
    });
}

fn claim(machine: &mut Machine, look: Look, early: Option<Box<View>>) {
    let seq = next(look.head);
    let record = Record {
        kind: Kind::Claim,
        session: machine.actor().session,
        claim: look.claim,
        previous: look.digest,
        stored: 0,
        holes: 0,
        content: 0,
        nonce: 0,
    };
    let goal = Goal {
        end: seq,
        claimed: true,
        look: None,
    };
    let scene = machine.scene;
    let answered = |bucket: &Bucket, actor: &mut Actor, answer: Answer| {
        match (answer, early) {
            (Answer::Exists(other), _) if other != record && scene.rules.keep(Rule::ReadBack) => {
                actor.at = At::Idle;
            }
            (_, None) => actor.at = At::LoadMaps(goal),
            (_, Some(mut view)) => {
                view.follow(seq, &record);
                return mounted(bucket, scene, actor, goal, &view);
            }
        }
        Ok(())
    };
    // A claim that gets no answer is put again, as the same bytes, until the mount fails: that is its session's end.
    machine.send(&Request::PutRecord(seq, record), answered, Some(&|_| ()));
}

/// The mount is done: what it shows must be the true state.
///
/// # Errors
/// Says what is not so.
pub fn mounted(
    bucket: &Bucket,
    scene: &Scene,
    actor: &mut Actor,
    goal: Goal,
    view: &View,
) -> Result<(), String> {
    let session = name(actor.session);
    let end = goal.end;
    let own = |record: Record| record.kind == Kind::Claim && record.session == actor.session;
    if goal.claimed && !bucket.truth[usize::from(end)].is_some_and(own) {
        return Err(format!(
            "{session} has mounted with claim {end}, which is void"
        ));
    }
    if end < actor.since {
        let since = actor.since;
        return Err(format!(
            "{session} has mounted the state {end}; {since} was there when it began"
        ));
    }
    let truth = bucket.state(end);
    if view.map != truth {
        return Err(format!(
            "{session} has mounted {:?} as state {end}; that is {truth:?}",
            view.map
        ));
    }
    actor.at = At::Mounted;
    (actor.since, actor.fast) = (0, false);
    actor.view = view.clone();
    if !scene.roles[actor.session.who()].writes {
        // A reader needs no more than that.
        actor.view = View {
            map: view.map,
            head: end,
            ..View::empty()
        };
    } else if end > 1 {
        actor.sweep = Some(Sweep {
            head: 0,
            left: scene.blocks(),
        });
    }
    Ok(())
}
