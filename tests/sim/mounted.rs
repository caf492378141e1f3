//! A disk that is mounted for writing, as all who use it have it: with what was written to it, by which what it shows is judged.

use std::sync::Arc;
use std::time::Duration;

use bucketdisk::disk::Disk;
use bucketdisk::error::{Error, ErrorKind};
use bucketdisk::store::versioned::SessionId;
use tokio::time::{Instant, timeout};

use super::stamp::{Stamps, stamps};
use super::support::local_disk::LocalDisk;
use super::truth::{Ack, Crash, State};
use super::world::{Line, World};

/// For what has to come to an end by itself once the store answers.
pub const LATER: Duration = Duration::from_secs(4 * 60 * 60);
/// How long a request is tried again where only an end of all faults is of interest.
pub const PATIENCE: Duration = Duration::from_secs(60 * 60);

/// See the module.
#[derive(Clone)]
pub struct Mounted {
    pub world: Arc<World>,
    pub line: Arc<Line>,
    pub disk: Arc<Disk>,
    pub id: SessionId,
    pub claim: u32,
    pub branch: usize,
    pub since: Instant,
    /// Where the journal is; `None` without one.
    pub local: Option<Arc<LocalDisk>>,
}

impl Mounted {
    /// Begins with looking at what is there.
    ///
    /// # Errors
    /// The line again, where that cannot be read, since another has taken the disk meanwhile.
    pub async fn begin(
        world: &Arc<World>,
        line: Line,
        id: SessionId,
        disk: Arc<Disk>,
        local: Option<Arc<LocalDisk>>,
    ) -> Result<Mounted, Arc<Line>> {
        let mut mounted = Mounted {
            world: Arc::clone(world),
            line: Arc::new(line),
            claim: disk.status().store.head,
            disk,
            id,
            branch: 0,
            since: Instant::now(),
            local,
        };
        world.claimed(mounted.claim, id);
        let changes = world.bucket.changes();
        let Some(found) = mounted.whole_disk().await else {
            return Err(mounted.line);
        };
        let found = State {
            changes,
            stamps: found,
            told: None,
        };
        mounted.branch = world.truth.lock().begin(id, mounted.claim, found);
        Ok(mounted)
    }

    /// The newest state and its number.
    pub fn now(&self) -> (usize, Stamps) {
        self.world.truth.lock().now(self.branch)
    }

    /// Notes what a change would make of the disk; until that is known it may be there, or in part. Not after the local disk has refused
    /// one: that is what may be there then.
    /// Answers whether it is this one.
    pub fn attempt(&self, first: usize, count: usize, write: u32) -> bool {
        let mut truth = self.world.truth.lock();
        let mut next = truth.now(self.branch).1.to_vec();
        next[first..first + count].fill(write);
        let attempt = &mut truth.branches[self.branch].attempt;
        let noted = attempt.is_none();
        attempt.get_or_insert(next.into());
        noted
    }

    /// Notes that nothing has come of it.
    pub fn give_up_attempt(&self) {
        self.world.truth.lock().branches[self.branch].attempt = None;
    }

    /// Notes what a change has made of the disk.
    pub fn note(&self, first: usize, count: usize, write: u32) {
        let changes = self.world.bucket.changes();
        let mut truth = self.world.truth.lock();
        let mut next = truth.now(self.branch).1.to_vec();
        next[first..first + count].fill(write);
        let branch = &mut truth.branches[self.branch];
        branch.attempt = None;
        branch.states.push(State {
            changes,
            stamps: next.into(),
            told: (write > 0).then_some(branch.acked),
        });
    }

    /// Notes that a state was acknowledged, by a flush or by an unmount.
    pub fn acknowledge(&self, state: usize, released: bool) {
        let in_bucket = released || self.disk.status().flush == "bucket";
        let mut truth = self.world.truth.lock();
        truth.acks.push(Ack {
            changes: self.world.bucket.changes(),
            branch: self.branch,
            state,
            released,
            in_bucket,
        });
        let branch = &mut truth.branches[self.branch];
        branch.acked = branch.acked.max(state);
        drop(truth);
        if !in_bucket {
            self.world.count("flushes acknowledged by the journal");
        }
    }

    /// Notes that the local disk is about to fail.
    pub fn is_troubled(&self) {
        self.world.truth.lock().branches[self.branch].troubled = true;
    }

    /// Notes that the machine is about to die.
    pub fn crashes(&self) {
        self.world.truth.lock().crashes.push(Crash {
            session: self.id,
            changes: self.world.bucket.changes(),
            committing: self.disk.status().commit_blocks > 0,
        });
    }

    /// The content of the disk as stamps, with all patience; `None` where it cannot be had.
    pub async fn whole_disk(&self) -> Option<Stamps> {
        self.line.patience.set(PATIENCE);
        let size = usize::try_from(self.disk.geometry().size_bytes()).expect("a small disk");
        let mut all = vec![0xEE; size];
        for _ in 0..10 {
            let since = Instant::now();
            match timeout(LATER, self.disk.read(0, &mut all)).await {
                Ok(Ok(())) => match stamps(0, &all) {
                    Ok(found) => return Some(found),
                    Err(what) => {
                        self.world.violated(format!("session {}: {what}", self.id));
                        return None;
                    }
                },
                Ok(Err(error)) if self.excuses(&error, since) => {}
                Ok(Err(error)) => {
                    self.violated("the disk does not read", &error);
                    return None;
                }
                Err(_) => {
                    self.world.violated("a read never ends".to_owned());
                    return None;
                }
            }
        }
        None
    }

    /// Whether the local disk has not failed it.
    pub fn has_all(&self) -> bool {
        !self.world.truth.lock().branches[self.branch].troubled
    }

    /// Whether another session has claimed the disk since.
    pub fn overtaken(&self) -> bool {
        self.world.overtaken(self.id, self.claim)
    }

    /// Whether the error of what has lasted since then can be put down to the faults, or to another session that has deleted what this
    /// one's disk consists of.
    pub fn excuses(&self, error: &Error, since: Instant) -> bool {
        self.line.excuses(error.kind(), since)
            || self.local_excuses(error)
            || (error.kind() == ErrorKind::Superseded && self.overtaken())
    }

    /// Whether the error can be put down to the local disk.
    pub fn local_excuses(&self, error: &Error) -> bool {
        let troubled = self.world.truth.lock().branches[self.branch].troubled;
        let status = self.disk.status();
        match error.kind() {
            ErrorKind::System => troubled && status.journal_error.is_some(),
            ErrorKind::Full => self.local.as_ref().is_some_and(|local| local.is_full()),
            _ => false,
        }
    }

    pub fn violated(&self, what: &str, error: &Error) {
        let text = format!("session {}: {what}: {:?}", self.id, error);
        self.world.violated(text);
    }
}
