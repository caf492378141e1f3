//! What really happened: the states that each session gave to its disk, what was acknowledged, and what readers saw. The simulation
//! notes it while it runs; `crash` judges the bucket by it.

use std::collections::HashMap;

use bucketdisk::store::versioned::{Pin, SessionId};

use super::local::Overlay;
use super::remains::Remains;
use super::stamp::Stamps;

/// A state of the disk.
#[derive(Debug, Clone)]
pub struct State {
    /// The changes that the bucket had seen when it came about: no fewer can hold it.
    pub changes: usize,
    pub stamps: Stamps,
    /// It was written, and the journal, if there is one, then knew this state to be durable; `None` where nothing was written.
    pub told: Option<usize>,
}

/// The states of one session, in their order; the first is what it found when it mounted.
#[derive(Debug, Clone)]
pub struct Branch {
    pub session: SessionId,
    /// The number of its claim.
    pub claim: u32,
    pub states: Vec<State>,
    /// What a change that is under way, or that the local disk has refused, makes of the newest state: it may be there in part.
    pub attempt: Option<Stamps>,
    /// The newest state that was acknowledged, wherever it is kept.
    pub acked: usize,
    /// The local disk has failed it.
    pub troubled: bool,
}

/// A flush, or an unmount, that was acknowledged.
#[derive(Debug, Clone, Copy)]
pub struct Ack {
    /// The changes that the bucket had seen by then: it must hold the state from there on.
    pub changes: usize,
    pub branch: usize,
    /// The state that it covers, or a later one.
    pub state: usize,
    /// It was that of an unmount: the disk is released, too.
    pub released: bool,
    /// The bucket has to have it; else the journal or the bucket.
    pub in_bucket: bool,
}

/// A session of a machine with a journal.
#[derive(Debug, Clone, Default)]
pub struct Heir {
    /// The session whose writes the journal had when it mounted; `None` where it was new.
    pub of: Option<SessionId>,
    /// What of the journal it has applied, once it has begun to write there itself.
    pub applied: Option<Overlay>,
    /// It was told to go on without what may not be applied.
    pub discards: bool,
    /// The one before it was killed, and the local disk has never failed that: all that it wrote is there.
    pub has_all: bool,
}

/// The end of a machine that had the disk mounted.
#[derive(Debug, Clone, Copy)]
pub struct Crash {
    pub session: SessionId,
    /// The changes that the bucket had seen by then.
    pub changes: usize,
    /// A commit was under way.
    pub committing: bool,
}

/// What a read-only mount has shown.
#[derive(Debug, Clone)]
pub struct View {
    /// The record that it stands on.
    pub head: u32,
    pub stamps: Stamps,
    /// The changes that listings showed at least when the mount began: it may not stand on anything older.
    pub began: usize,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Truth {
    pub branches: Vec<Branch>,
    pub acks: Vec<Ack>,
    pub views: Vec<View>,
    pub crashes: Vec<Crash>,
    /// The sessions that keep a journal.
    pub heirs: HashMap<SessionId, Heir>,
    /// What machines were told to be the newest record, after how many changes of the bucket.
    pub pins: Vec<(usize, Pin)>,
    /// Local disks as crashes would leave them.
    pub remains: Vec<Remains>,
}

impl Truth {
    /// A session has mounted and found this; answers its branch.
    pub fn begin(&mut self, session: SessionId, claim: u32, found: State) -> usize {
        self.branches.push(Branch {
            session,
            claim,
            states: vec![found],
            attempt: None,
            acked: 0,
            troubled: false,
        });
        self.branches.len() - 1
    }

    /// The newest state of a branch.
    pub fn now(&self, branch: usize) -> (usize, Stamps) {
        let states = &self.branches[branch].states;
        let newest = states.len() - 1;
        (newest, states[newest].stamps.clone())
    }

    /// The branch of a session, once it has found its state.
    pub fn of(&self, session: SessionId) -> Option<&Branch> {
        self.branches
            .iter()
            .find(|branch| branch.session == session)
    }
}
