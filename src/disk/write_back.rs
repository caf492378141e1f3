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
//! With a journal, a write is appended to it before the open epoch takes it, both under one lock of order, and a seal takes that lock,
//! too: so the journal's end at a seal parts what the epoch holds from what comes later, and once the epoch is committed, all before
//! that mark is released. Before the commit the journal is made durable, so that none can be ahead of it. A journal that is full makes writers wait as the dirty limit does. One that has failed takes no more
//! writes; all that was taken is committed as soon as can be, and flushes wait for that.
//!
//! A partly written block whose rest is damaged in the store cannot be completed, and to commit the others without it would make a
//! state that the disk never had. So that commit is given up and its epoch taken back, under the open one, and nothing is sealed before
//! every such block is whole: written to its ends, discarded, or readable after all. Until then flushes fail, and say so.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard, RwLock};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

use crate::block::BlockIndex;
use crate::error::{Error, ErrorKind, Result};
use crate::journal::{AppendError, Journal, Mark};
use crate::store::Changes;

use super::DiskConfig;
use super::epoch::Epoch;
use super::pace::{Fill, Pace};
use super::reader::Reader;
use super::sealed::{self, Sealed, blocking, shared_error};

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
    /// The journal's end when the open epoch began; `None` without a journal.
    journal_begin: Option<Mark>,
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
        let lags = |limit: Duration| state.oldest_write().is_some_and(|t| t.elapsed() > limit);
        if dirty > 0
            && (dirty.saturating_add(bytes) > self.limit || self.config.max_lag.is_some_and(lags))
        {
            self.ask_for_room(&mut state);
            return Ok(false);
        }
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
        let (was_empty, was_due) = (state.open.is_empty(), self.is_large(&state));
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
        if matches!(outcome, Err(AppendError::Full)) && self.is_empty() {
            // All of it is committed, or was made zero again before it was.
            journal.release(journal.end())?;
            outcome = keep(journal);
        }
        match outcome {
            Ok(kept) => Ok(Some(kept)),
            Err(AppendError::Failed(error)) => {
                self.wake.notify_one();
                Err(error)
            }
            Err(AppendError::Full) if self.is_empty() => Err(Error::new(
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
            room.await;
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
            let (due, done) = {
                // Whoever has it may be waiting for the local disk.
                let _order = blocking(|| self.in_order());
                let mut state = self.state.write();
                let asked = state.stopping
                    || state.wanted >= state.open_number
                    || self.is_large(&state)
                    || self.journal.as_ref().is_some_and(|j| j.failure().is_some());
                match state.open.first_write() {
                    None if state.stopping => return None,
                    None if asked => (None, self.skip(&mut state)),
                    None => (None, None),
                    Some(first) => {
                        let due = first + self.config.commit_interval;
                        if asked || due <= Instant::now() {
                            return Some(self.seal(&mut state));
                        }
                        (Some(due), None)
                    }
                }
            };
            self.release_journal(done);
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
    /// to commit, and who waits for that must not wait for ever. Answers up to where the journal is done with.
    fn skip(&self, state: &mut State) -> Option<Mark> {
        let number = state.open_number;
        state.open_number += 1;
        state.journal_begin = self.journal.as_ref().map(|journal| journal.end());
        self.outcome.send_modify(|o| o.committed = number);
        self.room.notify_waiters();
        state.journal_begin
    }

    /// Gives up what of the journal is committed. Where that fails, the journal says so itself and takes no more writes.
    fn release_journal(&self, upto: Option<Mark>) {
        let (Some(journal), Some(upto)) = (&self.journal, upto) else {
            return;
        };
        match blocking(|| journal.release(upto)) {
            Ok(freed) => self.pace.end(freed, Instant::now()),
            Err(error) => {
                tracing::debug!(
                    error = error.chain(),
                    "what is committed stays in the journal"
                );
            }
        }
    }

    fn seal(&self, state: &mut State) -> Arc<Sealed> {
        let epoch = std::mem::take(&mut state.open);
        state.journal_begin = self.journal.as_ref().map(|journal| journal.end());
        let sealed = Arc::new(Sealed::new(
            state.open_number,
            epoch,
            state.journal_begin,
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
        self.secure().await;
        self.pace.begin(Instant::now());
        loop {
            let changes: Arc<dyn Changes> = Arc::clone(&sealed) as Arc<dyn Changes>;
            let error = match store.commit(changes).await {
                Ok(seq) => {
                    tracing::debug!(%seq, blocks = sealed.epoch.block_count(), "committed");
                    self.state.write().sealed = None;
                    self.release_journal(sealed.journal_end);
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

    /// Before a commit: makes durable in the journal what it carries. A crash right after the commit finds the journal with all of that,
    /// and to replay it once more changes nothing; with a part of it, older writes would be put over newer ones. A journal that
    /// has failed may hold any part, and is made to forget it.
    async fn secure(&self) {
        let Some(journal) = &self.journal else {
            return;
        };
        let block = |flush: &dyn Fn() -> Result<bool>| blocking(flush);
        if journal.flush(block).await.is_ok() && journal.failure().is_none() {
            return;
        }
        if let Err(error) = blocking(|| journal.disown()) {
            tracing::error!(error = error.chain(), "the local disk fails");
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

    /// Waits until no dirty block is known to be damaged, in the journal or, where it is written in part, below.
    async fn wait_until_completable(&self) {
        let mut pause = RETRY_FAILED;
        let mut first = BlockIndex(0);
        while let Some((index, error)) = self.incompletable(first).await {
            // The next look begins where this one ended, so that it costs one request.
            first = index;
            self.pause_after_failure(error, &mut pause).await;
        }
    }

    /// A block, looked for from `first` on and then from the start, that cannot be completed.
    async fn incompletable(&self, first: BlockIndex) -> Option<(BlockIndex, Error)> {
        let mut all: Vec<BlockIndex> = self.state.read().open.blocks().collect();
        let before = all.partition_point(|index| *index < first);
        all.rotate_left(before);
        for index in all {
            match self.check_completable(index).await {
                Err(error) if error.kind() == ErrorKind::Damaged => return Some((index, error)),
                // Whatever else is wrong is the next commit's to deal with.
                _ => {}
            }
        }
        None
    }

    /// Whether a dirty block can be completed: what lies below where that is needed, and what the journal has of it.
    async fn check_completable(&self, index: BlockIndex) -> Result<()> {
        let geometry = self.reader.store().geometry();
        let (needs_below, kept) = {
            let state = self.state.read();
            (
                state.open.needs_below(index, geometry),
                state.open.kept(index),
            )
        };
        if !kept.is_empty() {
            let mut content = vec![0; geometry.block_len()];
            sealed::read_kept(index, &kept, &mut content)?;
        }
        match needs_below {
            true => sealed::base(&self.reader, index).await.map(drop),
            false => Ok(()),
        }
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
