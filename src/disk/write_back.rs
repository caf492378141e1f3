//! Write-back: the open epoch takes writes while the sealed one is being committed.
//!
//! At any moment there is one open epoch and at most one sealed one, and a reader sees open over sealed over store. A seal is an
//! instant, under the state's lock: so what a commit carries is the disk exactly as it was at one point of the order of writes.
//! One task, the `committer`, seals and commits:
//!
//! ```text
//!          write                seal                     commit acknowledged
//! (empty) ------> open epoch ---------> sealed epoch -------------------------> (in the store)
//!                   ^   ^                 |    |   ^
//!      later writes |   +-----------------+    +---+ commit failed: the same epoch again, after a pause
//!                         it cannot be completed
//! ```
//!
//! With a journal, a write is appended to it before the open epoch takes it, both under one lock of order, and a seal takes that
//! lock, too: so the journal's end at a seal parts what the epoch holds from what comes later, and once the epoch is committed,
//! all before that mark is released. A journal that is full makes writers wait as the dirty limit does. One that has failed takes
//! no more writes; all that was taken is committed as soon as can be, first what is durable in it (see `failed`), and flushes wait.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard, RwLock};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout};

use crate::error::{Error, ErrorKind, Result};
use crate::journal::{AppendError, Journal, Mark};

use super::DiskConfig;
use super::epoch::Epoch;
use super::pace::{Fill, Pace};
use super::reader::Reader;
use super::sealed::{Sealed, blocking, shared_error};

mod committer;
mod failed;

/// How soon a writer looks again whether the journal has room, which readers may have kept from being written anew.
const HELD_PAUSE: Duration = Duration::from_millis(100);
/// The most of the dirty limit, of which it is a quarter otherwise, that is kept for the data of writes that wait for room: as
/// many of the largest size as a frontend lets wait at a time.
const WAITING_BYTES: u64 = 64 << 20;

/// What readers and writers share; every change is made under one short lock.
#[derive(Debug)]
pub(super) struct State {
    pub(super) open: Epoch,
    pub(super) sealed: Option<Arc<Sealed>>,
    /// The journal's end when the open epoch began; `None` without a journal.
    journal_begin: Option<Mark>,
    /// The number of the open epoch.
    open_number: u64,
    /// Epochs up to this number are to be sealed as soon as possible.
    wanted: u64,
    /// Stop when everything wanted is committed.
    stopping: bool,
    /// Nothing can be committed before a damaged block is written to its ends, or discarded.
    incompletable: bool,
}

impl State {
    /// Memory that dirty data takes, in bytes.
    pub(super) fn dirty_cost(&self) -> u64 {
        self.open.cost() + self.sealed.as_ref().map_or(0, |s| s.epoch.cost())
    }

    /// When the oldest write that is not committed was taken.
    pub(super) fn oldest_write(&self) -> Option<Instant> {
        let sealed = self.sealed.as_ref().and_then(|s| s.epoch.first_write());
        sealed.into_iter().chain(self.open.first_write()).min()
    }

    /// The number of the newest epoch that holds writes; 0 if none ever did.
    fn newest_written(&self) -> u64 {
        if self.open.is_empty() {
            self.open_number - 1
        } else {
            self.open_number
        }
    }
}

/// How far the committer has come; watched by flushes.
#[derive(Debug, Clone, Default)]
pub(super) struct Outcome {
    /// Epochs up to this number are committed.
    committed: u64,
    /// Commits that failed for another reason than an unreachable store.
    failures: u64,
    /// Why the last try failed; `None` when it did not.
    pub(super) error: Option<Arc<Error>>,
    /// The session has lost the disk.
    pub(super) fenced: bool,
    /// The committer was stopped: nothing will be committed any more.
    stopped: bool,
}

/// The state of write-back and the signals around it.
#[derive(Debug)]
pub(super) struct WriteBack {
    pub(super) state: RwLock<State>,
    /// Where what is written is kept before it is taken; `None` where memory alone has it.
    pub(super) journal: Option<Arc<Journal>>,
    pace: Pace,
    /// With a journal: held while a record is appended and taken, and at a seal. Locked before `state`.
    order: Mutex<()>,
    reader: Arc<Reader>,
    config: DiskConfig,
    /// The most memory for epochs: the dirty limit less what is kept for writes that wait.
    limit: u64,
    /// The committer has something to look at.
    wake: Notify,
    /// Dirty data has been committed: starved writers may try again.
    room: Notify,
    outcome: watch::Sender<Outcome>,
}

impl WriteBack {
    /// Begins with what was found in the journal, which is to be committed at once.
    pub(super) fn new(
        reader: Arc<Reader>,
        config: DiskConfig,
        journal: Option<Arc<Journal>>,
        found: Epoch,
    ) -> Self {
        let state = State {
            journal_begin: journal.as_ref().map(|journal| journal.end()),
            wanted: u64::from(!found.is_empty()),
            open: found,
            sealed: None,
            open_number: 1,
            stopping: false,
            incompletable: false,
        };
        WriteBack {
            state: RwLock::new(state),
            journal,
            pace: Pace::new(Instant::now()),
            order: Mutex::new(()),
            reader,
            limit: config.max_dirty_bytes - (config.max_dirty_bytes / 4).min(WAITING_BYTES),
            config,
            wake: Notify::new(),
            room: Notify::new(),
            outcome: watch::Sender::new(Outcome::default()),
        }
    }

    /// Applies a change that adds about `bytes` of dirty data to the open epoch, unless a limit is reached: then nothing is changed,
    /// the answer is `false`, and [`WriteBack::room`] tells when to try again. With nothing dirty any change is taken, however
    /// large. With a journal, `keep` appends the change to it first, and `apply` gets what it answers.
    ///
    /// # Errors
    /// `Fenced` once the session has lost the disk, `System` once the committer was stopped or where the journal has failed.
    pub(super) fn change<K: Default>(
        &self,
        bytes: u64,
        keep: impl Fn(&Journal) -> Result<K, AppendError>,
        apply: impl FnOnce(&mut State, Instant, K),
    ) -> Result<bool> {
        if let Some(error) = self.fenced() {
            return Err(error);
        }
        let _order = self.in_order();
        let mut state = self.state.write();
        if state.stopping {
            return Err(closed());
        }
        let dirty = state.dirty_cost();
        let lags = |limit: Duration| {
            // A block that cannot be completed is mended by a write or a discard.
            !state.incompletable && state.oldest_write().is_some_and(|t| t.elapsed() > limit)
        };
        if dirty > 0
            && (dirty.saturating_add(bytes) > self.limit || self.config.max_lag.is_some_and(lags))
        {
            self.ask_for_room(&mut state);
            return Ok(false);
        }
        // Before the journal has it, which is then longer.
        let was_due = self.is_large(&state);
        let mut kept = K::default();
        if let Some(journal) = &self.journal {
            // Readers and the committer go on while the local disk is written to.
            drop(state);
            kept = match self.keep(journal, &keep)? {
                Some(kept) => kept,
                None => {
                    self.ask_for_room(&mut self.state.write());
                    return Ok(false);
                }
            };
            state = self.state.write();
        }
        let was_empty = state.open.is_empty();
        apply(&mut state, Instant::now(), kept);
        let wake = (was_empty && !state.open.is_empty()) || (!was_due && self.is_large(&state));
        drop(state);
        if wake {
            self.wake.notify_one();
        }
        Ok(true)
    }

    /// Appends to the journal; `None` where there is no room before something is committed.
    fn keep<K>(
        &self,
        journal: &Journal,
        keep: impl Fn(&Journal) -> Result<K, AppendError>,
    ) -> Result<Option<K>> {
        let mut outcome = keep(journal);
        let mut held = true;
        if matches!(outcome, Err(AppendError::Full)) && self.is_empty() {
            // All of it is committed, or was made zero again before it was.
            journal.release(journal.end())?;
            // Asked first: what is held no more by the time of the answer may have room.
            held = journal.is_held();
            outcome = keep(journal);
        }
        match outcome {
            Ok(kept) => Ok(Some(kept)),
            Err(AppendError::Failed(error)) => {
                self.wake.notify_one();
                Err(error)
            }
            Err(AppendError::Full) if !held => Err(Error::new(
                ErrorKind::Full,
                format!(
                    "there is no space for the journal in {}: make some, or mount with another --cache-dir",
                    journal.location()
                ),
            )),
            Err(AppendError::Full) => Ok(None),
        }
    }

    /// The right to append and to take what was appended; nothing without a journal.
    fn in_order(&self) -> Option<MutexGuard<'_, ()>> {
        self.journal.as_ref().map(|_| self.order.lock())
    }

    fn is_empty(&self) -> bool {
        let state = self.state.read();
        state.open.is_empty() && state.sealed.is_none()
    }

    /// Has all that is dirty committed, so that writers find room.
    fn ask_for_room(&self, state: &mut State) {
        let number = state.newest_written();
        if state.wanted < number {
            state.wanted = number;
            self.wake.notify_one();
        }
    }

    /// Whether writes wait for their turn, because the journal fills.
    pub(super) fn is_paced(&self) -> bool {
        let journal = self.journal.as_ref();
        journal.is_some_and(|j| Pace::applies(j.used_bytes(), j.limit_bytes()))
    }

    /// Waits until it is the turn of a write of so many bytes.
    pub(super) async fn wait_for_turn(&self, bytes: u64) {
        let turn = self.journal.as_ref().and_then(|journal| {
            let fill = Fill {
                used: journal.used_bytes(),
                limit: journal.limit_bytes(),
            };
            let block = u64::from(self.reader.store().geometry().block_bytes());
            let stored = |sealed: &Arc<Sealed>| sealed.done.load(Ordering::Relaxed) * block;
            let stored = self.state.read().sealed.as_ref().map_or(0, stored);
            self.pace.turn(bytes, fill, stored, Instant::now())
        });
        if let Some(turn) = turn {
            sleep_until(turn).await;
        }
    }

    /// Runs [`WriteBack::change`] until it is taken, waiting for room in between.
    pub(super) async fn change_when_room(
        &self,
        mut change: impl FnMut() -> Result<bool>,
    ) -> Result<()> {
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            if change()? {
                return Ok(());
            }
            match &self.journal {
                // Who reads from the journal tells nobody that it is done.
                Some(_) => drop(timeout(HELD_PAUSE, room).await),
                None => room.await,
            }
        }
    }

    /// With nothing dirty: has the journal know it, where it has writes that were discarded since, and the discard is not durable yet. A
    /// crash would bring them back. `false` where somebody else is at it, or where there is something to commit by now.
    ///
    /// # Errors
    /// `System`: the journal has failed, and cannot be made to forget them.
    pub(super) fn forget_now(&self) -> Result<bool> {
        match &self.journal {
            None => Ok(true),
            Some(journal) => match journal.flush_now() {
                Ok(done) => Ok(done),
                Err(_) => self.disown_if_empty(journal),
            },
        }
    }

    /// The same, waiting for whoever is at it.
    ///
    /// # Errors
    /// Those of [`WriteBack::forget_now`].
    pub(super) async fn forget(&self) -> Result<bool> {
        if let Some(journal) = &self.journal {
            let block = |flush: &dyn Fn() -> Result<bool>| blocking(flush);
            if journal.flush(block).await.is_err() {
                return blocking(|| self.disown_if_empty(journal));
            }
        }
        Ok(true)
    }

    /// Has a journal that has failed forget what it holds, unless some of that is not committed.
    fn disown_if_empty(&self, journal: &Journal) -> Result<bool> {
        // It takes no more writes: what is empty stays so.
        let _order = self.in_order();
        match self.is_empty() {
            true => journal.disown().map(|()| true),
            false => Ok(false),
        }
    }

    /// Whether nothing written is waiting to be committed.
    ///
    /// # Errors
    /// `Fenced` where something is, and the session has lost the disk.
    pub(super) fn is_clean(&self) -> Result<bool> {
        if self.is_empty() {
            return Ok(true);
        }
        match self.fenced() {
            Some(error) => Err(error),
            None => Ok(false),
        }
    }

    /// Returns when everything that was written before the call is committed, waiting out a store that cannot be reached.
    ///
    /// # Errors
    /// What a commit that began or went on after the call failed with; the data stays dirty and is tried again.
    pub(super) async fn flush(&self) -> Result<()> {
        let mut outcome = self.outcome.subscribe();
        let failures = outcome.borrow().failures;
        let target = {
            let mut state = self.state.write();
            let target = state.newest_written();
            state.wanted = state.wanted.max(target);
            target
        };
        self.wake.notify_one();
        let failed = |o: &Outcome| o.fenced || o.failures > failures;
        let reached = outcome
            .wait_for(|o| o.committed >= target || o.stopped || (failed(o) && o.error.is_some()))
            .await
            .map_err(|_| Error::new(ErrorKind::System, "the disk's committer has ended"))?;
        match &reached.error {
            _ if reached.committed >= target => Ok(()),
            Some(error) => Err(shared_error(error)),
            None => Err(closed()),
        }
    }

    /// Asks the committer to end once everything that is wanted is committed.
    pub(super) fn stop(&self) {
        self.state.write().stopping = true;
        self.wake.notify_one();
    }

    /// How far the committer has come.
    pub(super) fn outcome(&self) -> Outcome {
        self.outcome.borrow().clone()
    }

    /// The error that every write gets once the session has lost the disk.
    pub(super) fn fenced(&self) -> Option<Error> {
        let outcome = self.outcome.borrow();
        outcome.fenced.then(|| match &outcome.error {
            Some(error) => shared_error(error),
            None => Error::new(ErrorKind::Fenced, "another session has taken the disk over"),
        })
    }

    /// Whether the open epoch is so large that it is to be sealed, in memory or in the journal.
    fn is_large(&self, state: &State) -> bool {
        let in_journal = || match (&self.journal, &state.journal_begin) {
            (Some(journal), Some(begin)) => journal.end().since(begin) >= journal.limit_bytes() / 4,
            _ => false,
        };
        state.open.cost() >= self.config.max_dirty_bytes / 4 || in_journal()
    }
}

/// Does what the journal has to do beside records and flushes, until it fails.
pub(super) async fn keep_up(journal: Arc<Journal>) {
    loop {
        journal.wants_upkeep().await;
        // It says so itself where it fails.
        if blocking(|| journal.upkeep()).is_err() {
            return;
        }
    }
}

fn closed() -> Error {
    Error::new(
        ErrorKind::System,
        "the disk is being closed: it takes no more writes",
    )
}
