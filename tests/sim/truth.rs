//! What really happened: the states that each session gave to its disk, what was acknowledged, and what readers saw. The simulation
//! notes it while it runs; `crash` judges the bucket by it.

use bucketdisk::store::versioned::SessionId;

use super::stamp::Stamps;

/// A state of the disk.
#[derive(Debug, Clone)]
pub struct State {
    /// The changes that the bucket had seen when it came about: no fewer can hold it.
    pub changes: usize,
    pub stamps: Stamps,
}

/// The states of one session, in their order; the first is what it found when it mounted.
#[derive(Debug, Clone)]
pub struct Branch {
    pub session: SessionId,
    /// The number of its claim.
    pub claim: u32,
    pub states: Vec<State>,
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
}

impl Truth {
    /// A session has mounted and found this; answers its branch.
    pub fn begin(&mut self, session: SessionId, claim: u32, found: State) -> usize {
        self.branches.push(Branch {
            session,
            claim,
            states: vec![found],
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
