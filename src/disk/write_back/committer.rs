//! The committer: seals epochs and commits them, one after the other.
//!
//! It seals when a flush or a starved writer asks, when the open epoch is a quarter of the dirty limit, or when its first write
//! is older than the commit interval; never while another epoch is sealed, since epochs are committed in order. A store that
//! cannot be reached is waited for, however long. Any other failure fails the flushes that wait, keeps the data and is tried
//! again. A session that has been fenced stops for good, whoever finds out: writes are refused, what is dirty stays readable.
//!
//! Before a commit the journal is made durable, so that no commit can be ahead of it. Where it fails at that, what it holds is settled
//! first, see `failed`.
//!
//! A partly written block whose rest is damaged in the store cannot be completed, and to commit the others without it would make a
//! state that the disk never had. So that commit is given up and its epoch taken back, under the open one, and nothing is sealed before
//! every such block is whole: written to its ends, discarded, or readable after all. Until then flushes fail, and say so.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use crate::block::BlockIndex;
use crate::error::{Error, ErrorKind, Result};
use crate::journal::Mark;
use crate::store::{Changes, JournalMark};

use super::super::sealed::{self, Sealed, blocking};
use super::{State, WriteBack};

/// The pause before a commit is tried again when the store could not be reached: its client has waited and tried by then.
const RETRY_UNREACHABLE: Duration = Duration::from_secs(1);
/// The first pause after a failure that waiting alone does not mend, doubled each time...
pub(super) const RETRY_FAILED: Duration = Duration::from_secs(5);
/// ... up to this one.
const RETRY_FAILED_MAX: Duration = Duration::from_secs(60);

impl WriteBack {
    /// Runs until it is stopped, or fenced.
    pub(in crate::disk) async fn run(self: Arc<Self>) {
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
        while let Some(sealed) = self.next_sealed().await? {
            if !self.secure(&sealed).await {
                self.take_back(sealed);
                continue;
            }
            match self.commit(&sealed).await? {
                Ended::Committed => {
                    // What it holds of the journal cannot be written anew.
                    drop(sealed);
                    self.room.notify_waiters();
                }
                Ended::GivenUp(_) => {
                    self.take_back(sealed);
                    self.wait_until_completable().await;
                }
            }
        }
        Ok(())
    }

    /// Waits until there is a reason to seal, and seals. `None` when it is time to stop.
    ///
    /// # Errors
    /// `Fenced`.
    async fn next_sealed(&self) -> Result<Option<Arc<Sealed>>> {
        loop {
            self.settle().await?;
            let woken = self.wake.notified();
            let (due, skipped) = {
                // Whoever has it may be waiting for the local disk.
                let _order = blocking(|| self.in_order());
                let mut state = self.state.write();
                let asked = state.stopping
                    || state.wanted >= state.open_number
                    || self.is_large(&state)
                    || self.journal.as_ref().is_some_and(|j| j.failure().is_some());
                match state.open.first_write() {
                    None if state.stopping => return Ok(None),
                    None if asked => (None, self.skip(&mut state)),
                    None => (None, None),
                    Some(first) => {
                        let due = first + self.config.commit_interval;
                        if asked || due <= Instant::now() {
                            return Ok(Some(self.seal(&mut state)));
                        }
                        (Some(due), None)
                    }
                }
            };
            if let Some((number, upto)) = skipped {
                // What was written and discarded is not to come back from the journal.
                if let Err(error) = self.forget().await {
                    self.pause_after_failure(error, &mut RETRY_FAILED.clone())
                        .await;
                    continue;
                }
                self.release_journal(upto);
                self.outcome.send_modify(|o| o.committed = number);
                self.room.notify_waiters();
            }
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
    /// to commit, and who waits for that must not wait for ever. Answers its number, and up to where the journal is done with.
    fn skip(&self, state: &mut State) -> Option<(u64, Option<Mark>)> {
        let number = state.open_number;
        state.open_number += 1;
        state.journal_begin = self.journal.as_ref().map(|journal| journal.end());
        Some((number, state.journal_begin))
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
        let end = self.journal.as_ref().map(|journal| {
            let end = journal.end();
            let (id, before) = (Uuid::from_u128(journal.id()), end.record());
            (end, JournalMark { id, before })
        });
        state.journal_begin = end.map(|(end, _)| end);
        let reader = Arc::clone(&self.reader);
        let sealed = Arc::new(Sealed::new(state.open_number, epoch, end, reader));
        state.open_number += 1;
        state.sealed = Some(Arc::clone(&sealed));
        sealed
    }

    /// Commits a sealed epoch, however many tries it takes.
    ///
    /// # Errors
    /// `Fenced`.
    pub(super) async fn commit(&self, sealed: &Arc<Sealed>) -> Result<Ended> {
        let store = self.reader.store();
        let mut pause = RETRY_FAILED;
        self.pace.begin(Instant::now());
        loop {
            let changes: Arc<dyn Changes> = Arc::clone(sealed) as Arc<dyn Changes>;
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
                    Ok(true) => return Ok(Ended::GivenUp(error)),
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
    /// and to replay it once more changes nothing; with a part of it, older writes would be put over newer ones. `false` where the journal
    /// has failed, and may hold any part: it is not to be committed yet.
    async fn secure(&self, sealed: &Sealed) -> bool {
        let (Some(journal), Some(upto)) = (&self.journal, &sealed.journal_end) else {
            return true;
        };
        let block = |flush: &dyn Fn() -> Result<bool>| blocking(flush);
        let flushed = journal.flush(block).await.is_ok();
        blocking(|| {
            if journal.is_disowned() {
                return true;
            }
            let durable = flushed || journal.has_durable(upto);
            if durable && let Err(error) = journal.vouch() {
                tracing::debug!(error = error.chain(), "what is durable is not vouched for");
            }
            durable
        })
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
            self.state.write().incompletable = true;
            self.room.notify_waiters();
            // The next look begins where this one ended, so that it costs one request.
            first = index;
            self.pause_after_failure(error, &mut pause).await;
        }
        self.state.write().incompletable = false;
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

    pub(super) async fn pause_after_failure(&self, error: Error, pause: &mut Duration) {
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
pub(super) enum Ended {
    /// In the store.
    Committed,
    /// It cannot be completed, and never becomes visible.
    GivenUp(Error),
}
