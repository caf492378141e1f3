//! Crash points: the bucket after every change that was applied to it, and with any of the requests applied that were under way. All
//! machines and their disks are gone; what the bucket holds is opened, by checkpoint and log and by a listing of the blocks.
//!
//! Both must show the same, and
//! - nothing but the record of a commit changes what they show, and that only if its session is the last to have claimed the disk;
//! - what a commit makes of it is a state that its session gave to the disk, none older than what was shown before, none older than
//!   what was acknowledged;
//! - what a session found when it mounted, and what a read-only mount showed, is what was there as of its record;
//! - no block and no record is ever stored again as something else;
//! - an unmount that was acknowledged has released the disk;
//! - no machine, whatever it has seen by then, takes it for one that was put back to an older copy;
//! - a session that goes on with a journal begins with what the one before it has left, all that was acknowledged, unless that had lost
//!   the disk: then its journal is refused, and kept;
//! - a writer that goes on from there keeps all this, and in the end nothing is left but the disk.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::SystemTime;

use bucketdisk::codec::{ObjectKind, Place};
use bucketdisk::store::versioned::record::{Record, RecordBody};
use bucketdisk::store::versioned::{Pin, SessionId, keys};
use bytes::Bytes;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::time::Instant;

use super::flights::{Flights, names};
use super::fork;
use super::stamp::{Stamps, difference};
use super::support::memory::{Applied, Bucket, Change};
use super::support::volume::codec;
use super::tally::Tally;
use super::truth::Truth;
use super::world::{World, epoch};

#[path = "succession.rs"]
mod succession;

/// Of crash points: those that a writer goes on from, and those with a damaged object.
const WRITTEN_ON: f64 = 0.06;
const DAMAGED: f64 = 0.05;

/// A judge of one world's bucket.
struct Judge<'a> {
    world: &'a World,
    truth: Truth,
    flights: Flights,
    random: SmallRng,
    /// The bucket as of the changes so far, and its clock: the time of the last change, and when the judge was there.
    bucket: Bucket,
    clock: Arc<Mutex<(SystemTime, Instant)>>,
    cut: usize,
    /// What it shows.
    shown: Stamps,
    /// The newest that a machine has seen by then, and how many of `truth.pins` that takes in.
    pin: Option<Pin>,
    pinned: usize,
    /// The session that has claimed the disk last, and the first of its states that `shown` may be.
    holder: Option<(SessionId, usize)>,
    /// The highest number that a record or a checkpoint has had.
    newest: u32,
    /// What each session that keeps a journal began with: what was there, and over it what its journal had.
    first: HashMap<SessionId, Stamps>,
    /// Of sessions that were to go on with a journal: whose, if that had not lost the disk.
    goes_on_after: HashMap<SessionId, SessionId>,
    /// How many of the crashes of machines with a journal were judged.
    local_judged: usize,
    /// What was there as of each record, and whose record it was.
    as_of: BTreeMap<u32, (SessionId, Stamps)>,
    /// What each session has left that lost the disk.
    left: HashMap<SessionId, Stamps>,
    released: HashSet<SessionId>,
    /// After how many changes each session has last committed.
    committed: HashMap<SessionId, usize>,
    tally: Tally,
}

/// Judges every crash point of a world that has run. To be called on a runtime of one thread with a paused clock.
///
/// # Errors
/// What is wrong, and where.
pub async fn judge(world: &World) -> Result<Tally, String> {
    let blank: Stamps = vec![0; world.sectors()].into();
    let clock = Arc::new(Mutex::new((epoch(), Instant::now())));
    let now = Arc::clone(&clock);
    let now = move || {
        let (then, since) = *now.lock();
        then + since.elapsed()
    };
    let mut judge = Judge {
        world,
        truth: std::mem::take(&mut *world.truth.lock()),
        flights: Flights::to(&world.bucket),
        random: SmallRng::seed_from_u64(!world.seed),
        bucket: Bucket::with_clock(now),
        clock,
        cut: 0,
        shown: Arc::clone(&blank),
        pin: None,
        pinned: 0,
        holder: None,
        newest: 0,
        first: HashMap::new(),
        goes_on_after: HashMap::new(),
        local_judged: 0,
        as_of: BTreeMap::from([(0, (SessionId(uuid::Uuid::nil()), blank))]),
        left: HashMap::new(),
        released: HashSet::new(),
        committed: HashMap::new(),
        tally: Tally::default(),
    };
    for applied in world.bucket.applied() {
        let name = match &applied.change {
            Change::Put(key, _) => format!("put {key}"),
            Change::Delete(key) => format!("delete {key}"),
        };
        let outcome = judge.step(applied).await;
        outcome.map_err(|what| format!("after change {} ({name}): {what}", judge.cut))?;
    }
    judge.seen()?;
    judge.crashes();
    let seed = judge.random.random();
    fork::tidy(&judge.bucket, world.profile.listings_hold(), seed).await?;
    Ok(judge.tally)
}

impl Judge<'_> {
    /// What an object says. A sealed one is other bytes each time, and a block may be sealed twice; a record that is put again is not.
    fn content(&self, key: &str, object: &Bytes) -> Bytes {
        let Some((index, seq)) = keys::parse_block(key) else {
            return object.clone();
        };
        let place = Place {
            disk: self.world.superblock.id,
            kind: ObjectKind::Block,
            index: index.0,
            seq,
        };
        let plain = codec().decode(&place, object.clone());
        plain.unwrap_or_else(|_| object.clone())
    }

    async fn step(&mut self, applied: Applied) -> Result<(), String> {
        let before = match &applied.change {
            Change::Put(key, _) | Change::Delete(key) => self.bucket.body(key),
        };
        self.bucket.apply_at(applied.change.clone(), applied.at);
        *self.clock.lock() = (applied.at, Instant::now());
        self.cut += 1;
        self.tally.count("crash points");
        if let (Change::Put(key, body), Some(before)) = (&applied.change, &before)
            && (key.starts_with("blocks/") || key.starts_with("log/"))
            && self.content(key, body) != self.content(key, before)
        {
            return Err("it is stored again as something else".to_owned());
        }
        while let Some((changes, pin)) = self.truth.pins.get(self.pinned)
            && *changes <= self.cut
        {
            self.pin = Some(self.pin.map_or(*pin, |before| before.raised_to(*pin)));
            self.pinned += 1;
        }
        let shown = self.show(&self.bucket).await?;
        self.follow(&applied.change, before, shown)?;
        self.acknowledged()?;
        self.with_flights().await?;
        self.local_crashes().await?;
        if self.random.random_bool(WRITTEN_ON) {
            let under_way = self.flights.under_way(self.cut, &mut self.random);
            let allowed = self.allowed();
            let from = fork::WrittenOn {
                bucket: &self.bucket,
                allowed: &allowed,
                listings_hold: self.world.profile.listings_hold(),
                pin: self.pin,
                seed: self.random.random(),
            };
            from.judge(under_way).await?;
            self.tally.count("crash points written on");
        }
        if self.random.random_bool(DAMAGED) {
            let seed = self.random.random();
            if fork::damage(&self.bucket, &self.shown, seed).await? {
                self.tally.count("crash points with damage that shows");
            }
        }
        Ok(())
    }

    async fn show(&self, bucket: &Bucket) -> Result<Stamps, String> {
        fork::show(bucket, self.world.profile.listings_hold(), self.pin).await
    }

    /// What a change may make of what is shown.
    fn follow(
        &mut self,
        change: &Change,
        before: Option<Bytes>,
        shown: Stamps,
    ) -> Result<(), String> {
        let record = match change {
            Change::Put(key, object) => {
                if let Some(number) = number_of(key, "map/") {
                    self.newest = self.newest.max(number);
                    self.tally.count("checkpoints");
                }
                number_of(key, "log/")
                    .map(|number| (self.world.decode(number, object)).ok_or("no record"))
                    .transpose()?
            }
            Change::Delete(key) => {
                let name = match key.split_once('/').map(|(folder, _)| folder) {
                    Some("log") => "records pruned",
                    Some("blocks") => "garbage deleted",
                    _ => "other deletions",
                };
                self.tally.add(name, before.is_some().into());
                None
            }
        };
        match record {
            Some(record) if record.seq.0 > self.newest => self.next(&record, shown),
            Some(record) => {
                let void = record.is_claim() && before.is_none();
                self.tally.add("void claims", void.into());
                let mounts = void && self.truth.of(record.session).is_some();
                self.tally.add("void claims given up", mounts.into());
                self.unchanged(&shown)
            }
            None => self.unchanged(&shown),
        }
    }

    fn unchanged(&self, shown: &Stamps) -> Result<(), String> {
        match *self.shown == **shown {
            true => Ok(()),
            false => Err(format!(
                "the disk has changed without a commit: sectors {}",
                difference(shown, &self.shown)
            )),
        }
    }

    /// The log has gone on.
    fn next(&mut self, record: &Record, shown: Stamps) -> Result<(), String> {
        self.newest = record.seq.0;
        let (held, from) = match self.holder {
            Some((session, from)) => (session == record.session, from),
            None => (false, 0),
        };
        if !held && !record.is_claim() {
            return Err(format!(
                "session {} has lost the disk, and goes on",
                record.session
            ));
        }
        let branch = self.truth.of(record.session);
        match &record.body {
            RecordBody::Commit { .. } => {
                self.tally.count("commits");
                self.committed.insert(record.session, self.cut);
                let Some(branch) = branch else {
                    // Nobody has written to it: what its journal had is all that it may commit.
                    if self.first.get(&record.session) != Some(&shown) {
                        return Err("a session commits that nobody has written to".to_owned());
                    }
                    return self.went_on(record, shown);
                };
                let states = branch.states.iter().enumerate().skip(from);
                let mut given = states.take_while(|(_, state)| state.changes < self.cut);
                let Some((state, _)) = given.find(|(_, state)| state.stamps == shown) else {
                    return Err(format!(
                        "what is committed is no state of session {} from {from} on; it differs from that in sectors {}",
                        record.session,
                        difference(&shown, &branch.states[from].stamps)
                    ));
                };
                self.holder = Some((record.session, state));
            }
            RecordBody::Claim { .. } => {
                self.unchanged(&shown)?;
                if held {
                    self.tally.count("commits given up");
                } else {
                    self.tally.count("claims");
                    self.goes_on(record.session, &shown)?;
                    if let Some((lost, _)) = self.holder {
                        self.left.insert(lost, Arc::clone(&shown));
                    }
                    self.holder = Some((record.session, 0));
                }
            }
            RecordBody::Heartbeat => {
                self.tally.count("heartbeats");
                self.unchanged(&shown)?;
            }
            RecordBody::Release => {
                self.tally.count("releases");
                self.unchanged(&shown)?;
                self.released.insert(record.session);
            }
        }
        self.went_on(record, shown)
    }

    fn went_on(&mut self, record: &Record, shown: Stamps) -> Result<(), String> {
        let as_of = (record.session, Arc::clone(&shown));
        self.as_of.insert(record.seq.0, as_of);
        self.shown = shown;
        Ok(())
    }

    /// What was acknowledged at this point has to be there, and what is mounted from here on is not older than this.
    fn acknowledged(&mut self) -> Result<(), String> {
        let cut = self.cut;
        for ack in self.truth.acks.iter().filter(|ack| ack.changes == cut) {
            let branch = &self.truth.branches[ack.branch];
            if ack.released && !self.released.contains(&branch.session) {
                return Err(format!(
                    "session {} was unmounted, and has not released the disk",
                    branch.session
                ));
            }
            let holds = self.holder.is_some_and(|(s, _)| s == branch.session);
            if !ack.in_bucket {
                continue;
            }
            let kept = match holds {
                true => Some(&self.shown),
                false => self.left.get(&branch.session),
            };
            let states = &branch.states[ack.state..];
            let place = states.iter().position(|state| Some(&state.stamps) == kept);
            let Some(place) = place else {
                return Err(format!(
                    "state {} of session {} was acknowledged, and is not there",
                    ack.state, branch.session
                ));
            };
            if let Some((_, from)) = self.holder.as_mut().filter(|_| holds) {
                *from = (*from).max(ack.state + place);
            }
        }
        let views = self.truth.views.iter().filter(|view| view.began == cut);
        match views.into_iter().find(|view| view.head < self.newest) {
            None => Ok(()),
            Some(view) => Err(format!(
                "a read-only mount that begins here stands on record {}, older than {}",
                view.head, self.newest
            )),
        }
    }

    /// What mounts have found has to be what was there as of their record.
    fn seen(&self) -> Result<(), String> {
        for view in &self.truth.views {
            let there = self.as_of.get(&view.head).map(|(_, stamps)| stamps);
            if there != Some(&view.stamps) {
                return Err(format!(
                    "a read-only mount on record {} has shown what never was",
                    view.head
                ));
            }
        }
        for branch in &self.truth.branches {
            let found = &branch.states[0].stamps;
            let there = self.as_of.get(&branch.claim);
            let first = self.first.get(&branch.session);
            let by_it = there.filter(|(by, _)| *by == branch.session);
            if first.or(by_it.map(|(_, stamps)| stamps)) != Some(found) {
                return Err(format!(
                    "session {} has mounted by record {} what was not there",
                    branch.session, branch.claim
                ));
            }
        }
        Ok(())
    }

    /// What has become of the commits that were under way when a machine died.
    fn crashes(&mut self) {
        for crash in self.truth.crashes.iter().filter(|crash| crash.committing) {
            let last = self.committed.get(&crash.session).copied();
            self.tally
                .count(match last.is_some_and(|cut| cut > crash.changes) {
                    true => "crashes in a commit that lands",
                    false => "crashes in a commit that does not land",
                });
        }
    }

    /// The states that the bucket may hold if more of what is under way lands.
    fn allowed(&self) -> Vec<Stamps> {
        let mut allowed = vec![Arc::clone(&self.shown)];
        if let Some((session, from)) = self.holder
            && let Some(branch) = self.truth.of(session)
        {
            let later = branch.states.iter().skip(from);
            let given = later.take_while(|state| state.changes <= self.cut);
            allowed.extend(given.map(|state| Arc::clone(&state.stamps)));
        }
        if let Some((session, _)) = self.holder {
            // What its journal had may be committed before anybody has seen it.
            allowed.extend(self.first.get(&session).cloned());
        }
        allowed
    }

    /// The same crash point with requests applied that were under way.
    async fn with_flights(&mut self) -> Result<(), String> {
        let [landed, _] = self.flights.under_way(self.cut, &mut self.random);
        if landed.is_empty() {
            return Ok(());
        }
        let fork = self.bucket.fork();
        for mutation in &landed {
            fork.mutate(mutation.clone());
        }
        self.tally.count("crash points");
        self.tally
            .count("crash points with requests under way applied");
        let shown = self.show(&fork).await;
        let shown = shown.map_err(|what| format!("with {}: {what}", names(&landed)))?;
        match self.allowed().contains(&shown) {
            true => Ok(()),
            false => Err(format!(
                "with {}, what is shown is no state that may be: sectors {}",
                names(&landed),
                difference(&shown, &self.shown)
            )),
        }
    }
}

/// The number that a key of that folder has.
fn number_of(key: &str, folder: &str) -> Option<u32> {
    u32::from_str_radix(key.strip_prefix(folder)?, 16).ok()
}
