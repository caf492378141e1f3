//! The state of the model: the bucket, requests on their way, and what each machine that uses the disk knows.

use super::bucket::Bucket;
use super::machine::{At, Machine};
use super::objects::{
    BLOCKS, Checkpoint, Digest, Garbage, Kind, Map, NUMBERS, Numbers, Record, Request, Session,
    Set, has, last, name,
};
use super::rules::{Rule, Rules};
use super::search::{Model, Steps};
use super::{load, mount, session, upkeep};

/// What one machine does in a scene.
#[derive(Debug, Clone, Copy)]
pub struct Role {
    /// Mounts for writing.
    pub writes: bool,
    /// Mounts with `--take-over`.
    pub takes_over: bool,
    /// Mounts with `--list-blocks`.
    pub lists: bool,
    /// What it may do in all its sessions together.
    pub budget: Budget,
    /// Its sessions at most: 1 + its crashes, releases and losses of the disk.
    pub lives: u8,
}

/// How often something may yet happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Budget {
    pub commits: u8,
    pub heartbeats: u8,
    pub checkpoints: u8,
    pub give_ups: u8,
    pub releases: u8,
}

pub type Roles = Vec<Role>;

/// A bounded world.
#[derive(Debug, Clone)]
pub struct Scene {
    pub name: &'static str,
    pub roles: Roles,
    /// What commits do: blocks that they store, and that they make holes.
    pub commits: Vec<(Set, Set)>,
    /// Requests that can be on their way at once.
    pub flight: usize,
    /// Answers that living senders can lose.
    pub doubts: u8,
    /// Whether the put of a block may arrive after that very version was acknowledged, superseded and deleted.
    pub revivals: bool,
    /// Whether a mount that finds a hole in the log begins anew at once.
    pub gap_check: bool,
    /// Whether a listing, of the log or of a block's shard, may take two requests.
    pub pages: bool,
    pub rules: Rules,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct World {
    pub bucket: Bucket,
    /// Requests whose senders know no answer and that may be applied at any time, in order so that worlds compare.
    pub flight: Vec<Request>,
    pub actors: Vec<Actor>,
    pub doubts: u8,
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Actor {
    pub life: u8,
    /// `MountOptions::session`.
    pub session: Session,
    pub at: At,
    pub left: Budget,
    /// Readers: the true head when the mount began, and whether the mount takes less than the grace.
    pub since: u8,
    pub fast: bool,
    pub view: View,
    pub attempt: Option<Attempt>,
    /// `LogEnd::pending`.
    pub pending: Option<Record>,
    /// The checkpoints that `write_checkpoint` has made and is about to put: the release may make one beside the upkeep.
    pub snapshots: Vec<Checkpoint>,
    pub sweep: Option<Sweep>,
    /// Commits that the session has given up: their successors carry other content.
    pub given_up: u8,
    /// Records in doubt that were forgotten, where a rule is broken.
    pub forgotten: u8,
}

/// `View`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct View {
    pub head: u8,
    pub digest: Digest,
    pub claim: u8,
    pub map: Map,
    pub garbage: Garbage,
    pub unpruned: Numbers,
    pub checkpoint: u8,
    pub checkpoints: Numbers,
}

/// `Attempt`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Attempt {
    pub seq: u8,
    pub stored: Set,
    pub holes: Set,
    pub content: u8,
    pub sent: Set,
    pub done: Set,
    pub record: Option<Record>,
}

/// A sweep that is not done: the head at which it began, and the shards that are left to list.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Sweep {
    pub head: u8,
    pub left: Set,
}

impl View {
    pub fn empty() -> Self {
        View {
            head: 0,
            digest: Digest::default(),
            claim: 0,
            map: [0; BLOCKS],
            garbage: [[0; NUMBERS]; BLOCKS],
            unpruned: 0,
            checkpoint: 0,
            checkpoints: 0,
        }
    }

    /// Superseded versions: block, version, and the number of the record that superseded it.
    pub fn garbage(&self) -> impl Iterator<Item = (usize, u8, u8)> + '_ {
        let all = self.garbage.iter().enumerate();
        all.flat_map(|(index, versions)| {
            let there = versions.iter().enumerate().filter(|(_, by)| **by != 0);
            there.map(move |(version, by)| (index, version as u8, *by))
        })
    }

    /// What a commit does to the map: `Replay::apply` and `VersionedStore::append` alike.
    pub fn change(&mut self, seq: u8, record: &Record) {
        for index in 0..BLOCKS {
            let stored = has(record.stored, index);
            if !stored && !has(record.holes, index) {
                continue;
            }
            let old = self.map[index];
            self.map[index] = if stored { seq } else { 0 };
            if old != 0 {
                self.garbage[index][usize::from(old)] = seq;
            }
        }
    }

    /// Takes the next record for the head.
    pub fn follow(&mut self, seq: u8, record: &Record) {
        if record.kind == Kind::Commit {
            self.change(seq, record);
        }
        match record.kind {
            Kind::Claim => self.claim = seq,
            _ => self.unpruned |= 1 << seq,
        }
        self.head = seq;
        self.digest = record.digest();
    }
}

impl Actor {
    fn new(who: usize, role: &Role) -> Self {
        Actor {
            life: 1,
            session: Session::new(who, 1),
            at: At::Idle,
            left: role.budget,
            since: 0,
            fast: false,
            view: View::empty(),
            attempt: None,
            pending: None,
            snapshots: Vec::new(),
            sweep: None,
            given_up: 0,
            forgotten: 0,
        }
    }

    /// The session is over, well or badly: nothing of it is left but what is in the bucket or on its way there.
    pub fn end(&mut self, role: &Role) {
        let (who, life, left) = (self.session.who(), self.life + 1, self.left);
        *self = Actor::new(who, role);
        self.life = life;
        self.left = left;
        self.session = Session::new(who, life);
        if life > role.lives {
            self.at = At::Gone;
            self.left = Budget::default();
        }
    }

    /// What the blocks of its next commit hold: nothing that another commit has stored under the same version.
    pub fn content(&self) -> u8 {
        1 + self.given_up + 4 * self.life + 32 * self.session.who() as u8
    }

    /// Mounted for writing, and not aware of having lost the disk.
    pub fn is_writer(&self) -> bool {
        self.at == At::Mounted && self.view.claim != 0
    }
}

impl Scene {
    /// The blocks that its commits change: only their shards are listed.
    pub fn blocks(&self) -> Set {
        let all = self.commits.iter();
        all.fold(0, |blocks, (stored, holes)| blocks | stored | holes)
    }

    /// Whether the deletion of what a record superseded can fall into the mount of a reader that began before and takes less than
    /// the grace.
    pub fn grace_is_over(&self, world: &World, superseded_by: u8) -> bool {
        let reading = |actor: &Actor| actor.fast && actor.at != At::Idle && actor.at != At::Mounted;
        !self.rules.keep(Rule::Grace)
            || !world
                .actors
                .iter()
                .any(|a| reading(a) && a.since < superseded_by)
    }

    /// Whether a request that is on its way can still be applied.
    fn can_land(&self, world: &World, request: &Request) -> bool {
        let Request::PutBlock { index, version, .. } = request else {
            return true;
        };
        let there = world.bucket.blocks[*index][usize::from(*version)] != 0;
        let committed =
            world.bucket.truth[usize::from(*version)].is_some_and(|r| has(r.stored, *index));
        self.revivals || there || !committed
    }
}

impl Model for Scene {
    type State = World;

    fn start(&self) -> World {
        World {
            bucket: Bucket::empty(),
            flight: Vec::new(),
            actors: self
                .roles
                .iter()
                .enumerate()
                .map(|(who, role)| Actor::new(who, role))
                .collect(),
            doubts: self.doubts,
        }
    }

    fn steps(&self, world: &World, steps: &mut Steps<World>) {
        for (at, request) in world.flight.iter().enumerate() {
            if !self.can_land(world, request) {
                continue;
            }
            let mut to = world.clone();
            to.flight.remove(at);
            let applied = to.bucket.apply(request, self.rules, &self.roles);
            steps.add(
                || format!("late: {}", request.describe()),
                applied.map(|_| to),
            );
        }
        for (who, actor) in world.actors.iter().enumerate() {
            let mut machine = Machine {
                scene: self,
                world,
                who,
                steps,
            };
            mount::steps(&mut machine);
            if actor.is_writer() {
                session::steps(&mut machine);
                upkeep::steps(&mut machine);
            } else if actor.at == At::Mounted {
                load::read(&mut machine);
            }
        }
    }

    fn check(&self, world: &World) -> Result<(), String> {
        let bucket = &world.bucket;
        let newest = last(bucket.checkpoints());
        for seq in newest + 1..=bucket.head {
            let (there, truth) = (bucket.log[usize::from(seq)], bucket.truth[usize::from(seq)]);
            match there {
                _ if there == truth => {}
                None => return Err(format!("log/{seq} is gone, and is in no checkpoint")),
                Some(other) => {
                    let other = other.describe();
                    return Err(format!("log/{seq} was acknowledged, and now is {other}"));
                }
            }
        }
        let state = bucket.state(bucket.head);
        let lost = bucket.missing(&state).next();
        if let Some((index, version)) = lost {
            return Err(format!(
                "block {index}.{version}, of the newest state, is gone"
            ));
        }
        bucket
            .holds(&state)
            .map_err(|what| format!("of the newest state, {what}"))?;
        for actor in world.actors.iter().filter(|actor| actor.at == At::Mounted) {
            let session = name(actor.session);
            bucket
                .holds(&actor.view.map)
                .map_err(|what| format!("of what {session} has mounted, {what}"))?;
            // Others find out by the log that a block was superseded: see `session::wake`, `load::read`.
            let current = actor.is_writer() && bucket.owner() == Some(actor.session);
            if let Some((index, version)) =
                bucket.missing(&actor.view.map).next().filter(|_| current)
            {
                return Err(format!(
                    "block {index}.{version}, of what {session} has mounted, is gone"
                ));
            }
        }
        Ok(())
    }
}
