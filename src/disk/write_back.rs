//! Write-back: the open epoch takes writes while the sealed one is being committed.
//!
//! At any moment there is one open epoch and at most one sealed one, and a reader sees open over sealed over store. A seal is an
//! instant, under the state's lock: so what a commit carries is the disk exactly as it was at one point of the order of writes.
//! One task, the committer, seals and commits:
//!
//! ```text
//!          write                seal                     commit acknowledged
//! (empty) ------> open epoch ---------> sealed epoch -------------------------> (in the store)
//!                   ^   ^                 |    |   ^
//!      later writes |   +-----------------+    +---+ commit failed: the same epoch again, after a pause
//!                         it cannot be completed
//! ```
//!
//! It seals when a flush or a starved writer asks, when the open epoch is a quarter of the dirty limit, or when its first write
//! is older than the commit interval; never while another epoch is sealed, since epochs are committed in order. A store that
//! cannot be reached is waited for, however long. Any other failure fails the flushes that wait, keeps the data and is tried
//! again. A session that has been fenced stops for good, whoever finds out: writes are refused, what is dirty stays readable.
//!
//! A partly written block whose rest is damaged in the store cannot be completed, and to commit the others without it would make a
//! state that the disk never had. So that commit is given up and its epoch taken back, under the open one, and nothing is sealed before
//! every such block is whole: written to its ends, discarded, or readable after all. Until then flushes fail, and say so.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

use crate::block::BlockIndex;
use crate::error::{Error, ErrorKind, Result};
use crate::store::Changes;

use super::DiskConfig;
use super::epoch::Epoch;
use super::reader::Reader;
use super::sealed::{self, Sealed, shared_error};

/// The pause before a commit is tried again when the store could not be reached: its client has waited and tried by then.
const RETRY_UNREACHABLE: Duration = Duration::from_secs(1);
/// The first pause after a failure that waiting alone does not mend, doubled each time...
const RETRY_FAILED: Duration = Duration::from_secs(5);
/// ... up to this one.
const RETRY_FAILED_MAX: Duration = Duration::from_secs(60);

/// The most of the dirty limit, of which it is a quarter otherwise, that is kept for the data of writes that wait for room: as
/// many of the largest size as a frontend lets wait at a time.
const WAITING_BYTES: u64 = 64 << 20;

/// What readers and writers share; every change is made under one short lock.
#[derive(Debug)]
pub(super) struct State {
    pub(super) open: Epoch,
    pub(super) sealed: Option<Arc<Sealed>>,
    /// The number of the open epoch.
    open_number: u64,
    /// Epochs up to this number are to be sealed as soon as possible.
    wanted: u64,
    /// Stop when everything wanted is committed.
    stopping: bool,
}

impl State {
    /// Memory that dirty data takes, in bytes.
    pub(super) fn dirty_cost(&self) -> u64 {
        self.open.cost() + self.sealed.as_ref().map_or(0, |s| s.epoch.cost())
    }

    /// When the oldest write that is not committed was taken.
    pub(super) fn oldest_write(&self) -> Option<Instant> {
        self.sealed
            .as_ref()
            .map_or(self.open.first_write(), |s| s.epoch.first_write())
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
    pub(super) fn new(reader: Arc<Reader>, config: DiskConfig) -> Self {
        let state = State {
            open: Epoch::default(),
            sealed: None,
            open_number: 1,
            wanted: 0,
            stopping: false,
        };
        WriteBack {
            state: RwLock::new(state),
            reader,
            limit: config.max_dirty_bytes - (config.max_dirty_bytes / 4).min(WAITING_BYTES),
            config,
            wake: Notify::new(),
            room: Notify::new(),
            outcome: watch::Sender::new(Outcome::default()),
        }
    }

    /// Applies a change that adds about `bytes` of dirty data to the open epoch, unless the dirty limit is reached: then
    /// nothing is changed, the answer is `false`, and [`WriteBack::room`] tells when to try again. With nothing dirty any change is
    /// taken, however large.
    ///
    /// # Errors
    /// `Fenced` once the session has lost the disk, `System` once the committer was stopped.
    pub(super) fn change(
        &self,
        bytes: u64,
        apply: impl FnOnce(&mut State, Instant),
    ) -> Result<bool> {
        if let Some(error) = self.fenced() {
            return Err(error);
        }
        let mut state = self.state.write();
        if state.stopping {
            return Err(closed());
        }
        let dirty = state.dirty_cost();
        if dirty > 0 && dirty.saturating_add(bytes) > self.limit {
            let number = state.newest_written();
            let ask = state.wanted < number;
            state.wanted = state.wanted.max(number);
            drop(state);
            if ask {
                self.wake.notify_one();
            }
            return Ok(false);
        }
        let (was_empty, was_due) = (state.open.is_empty(), self.is_large(&state));
        apply(&mut state, Instant::now());
        let wake = (was_empty && !state.open.is_empty()) || (!was_due && self.is_large(&state));
        drop(state);
        if wake {
            self.wake.notify_one();
        }
        Ok(true)
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
            room.await;
        }
    }

    /// Whether nothing written is waiting to be committed.
    ///
    /// # Errors
    /// `Fenced` where something is, and the session has lost the disk.
    pub(super) fn is_clean(&self) -> Result<bool> {
        let state = self.state.read();
        if state.open.is_empty() && state.sealed.is_none() {
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

    fn is_large(&self, state: &State) -> bool {
        state.open.cost() >= self.config.max_dirty_bytes / 4
    }

    /// The committer: runs until it is stopped, or fenced.
    pub(super) async fn run(self: Arc<Self>) {
        let ended = tokio::select! {
            biased; // in one order, so that a run repeats
            ended = self.commit_all() => ended,
            // A heartbeat or a read has found out. A commit that is under way has lost too.
            error = self.reader.store().until_fenced() => Err(error),
        };
        if let Err(error) = ended {
            tracing::error!(
                error = error.chain(),
                dirty_bytes = self.state.read().dirty_cost(),
                "the disk is lost to another session; it is read-only from now on, and what is not committed is kept"
            );
            self.outcome.send_modify(|o| {
                o.fenced = true;
                o.error = Some(Arc::new(error));
            });
        }
        self.outcome.send_modify(|o| o.stopped = true);
        self.room.notify_waiters();
    }

    /// Seals and commits until it is stopped.
    ///
    /// # Errors
    /// `Fenced`.
    async fn commit_all(&self) -> Result<()> {
        while let Some(sealed) = self.next_sealed().await {
            match self.commit(sealed).await? {
                Ended::Committed => self.room.notify_waiters(),
                Ended::TakenBack => self.wait_until_completable().await,
            }
        }
        Ok(())
    }

    /// Waits until there is a reason to seal, and seals. `None` when it is time to stop.
    async fn next_sealed(&self) -> Option<Arc<Sealed>> {
        loop {
            let woken = self.wake.notified();
            let due = {
                let mut state = self.state.write();
                let asked =
                    state.stopping || state.wanted >= state.open_number || self.is_large(&state);
                match state.open.first_write() {
                    None if state.stopping => return None,
                    None => {
                        if state.wanted >= state.open_number {
                            self.skip(&mut state);
                        }
                        None
                    }
                    Some(first) => {
                        let due = first + self.config.commit_interval;
                        if asked || due <= Instant::now() {
                            return Some(self.seal(&mut state));
                        }
                        Some(due)
                    }
                }
            };
            match due {
                Some(due) => tokio::select! {
                    biased; // in one order, so that a run repeats
                    () = woken => {}
                    () = sleep_until(due) => {}
                },
                None => woken.await,
            }
        }
    }

    /// Ends an open epoch that is wanted and has become empty, since all that was written in it was discarded: there is nothing
    /// to commit, and who waits for that must not wait for ever.
    fn skip(&self, state: &mut State) {
        let number = state.open_number;
        state.open_number += 1;
        self.outcome.send_modify(|o| o.committed = number);
        self.room.notify_waiters();
    }

    fn seal(&self, state: &mut State) -> Arc<Sealed> {
        let epoch = std::mem::take(&mut state.open);
        let sealed = Arc::new(Sealed::new(
            state.open_number,
            epoch,
            Arc::clone(&self.reader),
        ));
        state.open_number += 1;
        state.sealed = Some(Arc::clone(&sealed));
        sealed
    }

    /// Commits a sealed epoch, however many tries it takes.
    ///
    /// # Errors
    /// `Fenced`.
    async fn commit(&self, sealed: Arc<Sealed>) -> Result<Ended> {
        let store = self.reader.store();
        let mut pause = RETRY_FAILED;
        loop {
            let changes: Arc<dyn Changes> = Arc::clone(&sealed) as Arc<dyn Changes>;
            let error = match store.commit(changes).await {
                Ok(seq) => {
                    tracing::debug!(%seq, blocks = sealed.epoch.block_count(), "committed");
                    self.state.write().sealed = None;
                    self.outcome.send_modify(|o| {
                        o.committed = sealed.number;
                        o.error = None;
                    });
                    return Ok(Ended::Committed);
                }
                Err(error) if error.kind() == ErrorKind::Damaged => match store.give_up().await {
                    Ok(true) => {
                        self.take_back(sealed);
                        return Ok(Ended::TakenBack);
                    }
                    // It may have landed: only another try can tell.
                    Ok(false) => error,
                    Err(error) => error,
                },
                Err(error) => error,
            };
            match error.kind() {
                ErrorKind::Fenced => return Err(error),
                kind if kind.is_transient() => {
                    tracing::warn!(
                        error = error.chain(),
                        "the store cannot be reached; writes are kept and the commit goes on"
                    );
                    self.outcome
                        .send_modify(|o| o.error = Some(Arc::new(error)));
                    self.pause(RETRY_UNREACHABLE).await;
                }
                _ => self.pause_after_failure(error, &mut pause).await,
            }
        }
    }

    /// Puts a sealed epoch back under the open one, as if it had never been sealed.
    fn take_back(&self, sealed: Arc<Sealed>) {
        let mut state = self.state.write();
        state.sealed = None;
        let newer = std::mem::replace(&mut state.open, sealed.into_epoch());
        state.open.append(newer);
        // There was a reason to seal it, and that is still there.
        state.wanted = state.wanted.max(state.open_number);
    }

    /// Waits until no partly written block is known to be damaged below.
    async fn wait_until_completable(&self) {
        let mut pause = RETRY_FAILED;
        let mut first = BlockIndex(0);
        while let Some((index, error)) = self.incompletable(first).await {
            // The next look begins where this one ended, so that it costs one request.
            first = index;
            self.pause_after_failure(error, &mut pause).await;
        }
    }

    /// A block, looked for from `first` on and then from the start, that is written in part and damaged below.
    async fn incompletable(&self, first: BlockIndex) -> Option<(BlockIndex, Error)> {
        let geometry = self.reader.store().geometry();
        let mut partly: Vec<BlockIndex> = {
            let state = self.state.read();
            let open = &state.open;
            open.blocks()
                .filter(|index| open.needs_below(*index, geometry))
                .collect()
        };
        let before = partly.partition_point(|index| *index < first);
        partly.rotate_left(before);
        for index in partly {
            match sealed::base(&self.reader, index).await {
                Err(error) if error.kind() == ErrorKind::Damaged => return Some((index, error)),
                // Whatever else is wrong is the next commit's to deal with.
                _ => {}
            }
        }
        None
    }

    async fn pause_after_failure(&self, error: Error, pause: &mut Duration) {
        tracing::error!(error = error.chain(), retry_in = ?pause, "a commit failed; its writes are kept");
        self.outcome.send_modify(|o| {
            o.failures += 1;
            o.error = Some(Arc::new(error));
        });
        self.pause(*pause).await;
        *pause = (*pause * 2).min(RETRY_FAILED_MAX);
    }

    /// Waits, but no longer than until somebody wants the data stored now.
    async fn pause(&self, pause: Duration) {
        tokio::select! {
            biased; // in one order, so that a run repeats
            () = tokio::time::sleep(pause) => {}
            () = self.wake.notified() => {}
        }
    }
}

/// How the way of a sealed epoch ended.
enum Ended {
    /// In the store.
    Committed,
    /// It is the older part of the open epoch again.
    TakenBack,
}

fn closed() -> Error {
    Error::new(
        ErrorKind::System,
        "the disk is being closed: it takes no more writes",
    )
}
