//! One machine in one state of the world, and the steps that it can take: what an answer makes of it, and what can become of a
//! request.

use super::bucket::Bucket;
use super::listing::Listing;
use super::objects::{Answer, Digest, Numbers, Request, Session, name};
use super::rules::Rule;
use super::search::Steps;
use super::world::{Actor, Role, Scene, View, World};

/// What the program calls damage where there is none.
pub const REFUSED: &str = "a sound disk is called damaged";

/// Where a machine is: what it asks the store for next, and what it knows by then.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum At {
    /// Not mounted.
    Idle,
    /// `seen` is the part of the log up to `after` that is listed already.
    LookLog {
        newest: u8,
        seen: Numbers,
        after: u8,
    },
    LookBlocks,
    LookLogAgain,
    LookRecord {
        newest: u8,
        head: u8,
    },
    LookCheckpoint {
        newest: u8,
        head: u8,
    },
    LookMaps {
        newest: u8,
        look: Look,
    },
    Claim {
        look: Look,
        early: Option<Box<View>>,
    },
    LoadMaps(Goal),
    LoadLog(Load),
    LoadCheckpoint(Load),
    LoadRecords {
        load: Load,
        view: Box<View>,
    },
    /// A record does not follow the one before it.
    LoadDoubt(Load),
    LoadAgain {
        goal: Goal,
        view: Box<View>,
    },
    List(Box<Listing>),
    /// Has the disk changed since a record? The log and the checkpoints are looked at, one of them first.
    Changed {
        asks: Asks,
        first: bool,
    },
    /// Its claim is void and to be deleted, where a rule is broken.
    Unclaim(u8),
    Mounted,
    /// It has used up its lives.
    Gone,
}

/// Who asks whether the disk has changed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Asks {
    /// A mount whose listing took long.
    Mount { goal: Goal, view: Box<View> },
    /// A reader that finds a block missing.
    Reader,
}

/// `FirstLook`: `holder` is who has not released.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Look {
    pub head: u8,
    pub digest: Digest,
    pub claim: u8,
    pub holder: Option<Session>,
}

/// `Wanted`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Goal {
    pub end: u8,
    pub claimed: bool,
    /// Where the claim is put after the state is read, because a rule is broken.
    pub look: Option<Look>,
}

/// What `load` has found: the newest checkpoint, all of them, and the records up to the end; of those only the ones up to `after`
/// are listed yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Load {
    pub goal: Goal,
    pub newest: u8,
    pub checkpoints: Numbers,
    pub records: Numbers,
    pub after: u8,
}

/// The machine.
pub struct Machine<'a, 's> {
    pub scene: &'a Scene,
    pub world: &'a World,
    pub who: usize,
    pub steps: &'s mut Steps<World>,
}

impl<'a> Machine<'a, '_> {
    pub fn actor(&self) -> &'a Actor {
        &self.world.actors[self.who]
    }

    pub fn bucket(&self) -> &'a Bucket {
        &self.world.bucket
    }

    pub fn role(&self) -> &'a Role {
        &self.scene.roles[self.who]
    }

    pub fn keep(&self, rule: Rule) -> bool {
        self.scene.rules.keep(rule)
    }

    /// The same machine in another world: one in which it has begun something.
    pub fn within<'b>(&'b mut self, world: &'b World) -> Machine<'b, 'b> {
        Machine {
            scene: self.scene,
            world,
            who: self.who,
            steps: &mut *self.steps,
        }
    }

    /// Adds a step that changes nothing but what this machine knows.
    pub fn step(
        &mut self,
        what: impl FnOnce() -> String,
        change: impl FnOnce(&mut Actor) -> Result<(), String>,
    ) {
        let mut to = self.world.clone();
        let done = change(&mut to.actors[self.who]);
        let session = self.actor().session;
        self.steps.add(
            || format!("{}: {}", name(session), what()),
            done.map(|()| to),
        );
    }

    /// Adds a step that leads there.
    pub fn go(&mut self, what: impl FnOnce() -> String, at: At) {
        self.step(what, |actor| {
            actor.at = at;
            Ok(())
        });
    }

    /// Adds a step at which a sound disk is called damaged.
    pub fn refuse(&mut self, what: impl FnOnce() -> String) {
        self.step(what, |_| Err(REFUSED.to_owned()));
    }

    /// Adds a step at which an object that is to be read is not there: a newer checkpoint has replaced it.
    pub fn gone(&mut self, object: &str, number: u8, again: At) {
        let what = || format!("finds {object}/{number} gone");
        match self.keep(Rule::GoneIsNoDamage) {
            true => self.go(what, again),
            false => self.refuse(what),
        }
    }

    /// Sends a request. Either it is applied and answered; or its sender dies then, or before it is applied; or the sender lives on
    /// and does not know whether it was applied, or will be.
    pub fn send(
        &mut self,
        request: &Request,
        answered: impl FnOnce(&Bucket, &mut Actor, Answer) -> Result<(), String>,
        in_doubt: Option<&dyn Fn(&mut Actor)>,
    ) {
        let (scene, world, who) = (self.scene, self.world, self.who);
        let sender = self.actor();
        let say = |how: &str| format!("{}: {}{how}", name(sender.session), request.describe());
        let mut applied = world.clone();
        let answer = match applied.bucket.apply(request, scene.rules, &scene.roles) {
            Ok(answer) => answer,
            Err(violation) => return self.steps.add(|| say(""), Err(violation)),
        };
        let late = (world.flight.len() < scene.flight).then(|| {
            let mut late = world.clone();
            let place = late.flight.partition_point(|other| other < request);
            late.flight.insert(place, request.clone());
            late
        });
        if sender.life < self.role().lives {
            let mut dies = |mut to: World, how| {
                to.actors[who].end(&scene.roles[who]);
                self.steps.add(|| say(how), Ok(to));
            };
            dies(applied.clone(), ", and dies");
            if let Some(late) = &late {
                dies(late.clone(), ", and dies before it is applied");
            }
        }
        if let Some(in_doubt) = in_doubt.filter(|_| world.doubts > 0) {
            let mut doubts = |mut to: World, how| {
                to.doubts -= 1;
                in_doubt(&mut to.actors[who]);
                self.steps.add(|| say(how), Ok(to));
            };
            doubts(applied.clone(), ", and loses the answer");
            if let Some(late) = late {
                doubts(late, ", and gives up waiting before it is applied");
            }
        }
        let World { bucket, actors, .. } = &mut applied;
        let done = answered(bucket, &mut actors[who], answer);
        let how = match answer {
            Answer::Done => String::new(),
            Answer::Exists(other) => format!(": there is {}", other.describe()),
        };
        self.steps.add(|| say(&how), done.map(|()| applied));
    }
}
