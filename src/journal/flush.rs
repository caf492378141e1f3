//! Making records durable: one `fdatasync` for everybody who waits.
//!
//! Whoever comes first leads: it makes durable all that is appended by then. Those who come meanwhile wait, and if that did not
//! cover what they wrote, the first of them leads next.

use std::sync::atomic::Ordering;

use super::log::{Journal, Log, Mark};
use super::space::MANY_FLUSHES;
use crate::error::{Error, ErrorKind, Result};

impl Journal {
    /// The number that the next record will get: what is to be durable for all that is appended by now to be.
    pub fn appended(&self) -> u64 {
        self.appended.load(Ordering::Acquire)
    }

    /// Makes everything durable that is appended by now. Blocks for as long as the local disk takes. `false` where somebody else is at
    /// it and this call has done nothing.
    ///
    /// # Errors
    /// `System`: the journal has failed, now or earlier.
    pub fn flush_now(&self) -> Result<bool> {
        // First: one that has failed is given up soon, with all that was ever durable in it.
        if let Some(failure) = self.failure() {
            return Err(failure);
        }
        let wanted = self.appended();
        if *self.durable.borrow() >= wanted {
            return Ok(true);
        }
        let Some(leading) = self.leader.try_lock() else {
            return match self.failure() {
                Some(failure) => Err(failure),
                // Whoever leads, for whatever reason, tells when that is over.
                None => Ok(false),
            };
        };
        let outcome = self.lead();
        drop(leading);
        self.tell();
        outcome.map(|upto| upto >= wanted)
    }

    /// Returns when there is something for [`Journal::upkeep`] to do.
    pub async fn wants_upkeep(&self) {
        self.upkeep.notified().await;
    }

    /// Does what is better done before somebody waits for it: makes durable what has filled a segment, so that a flush after a burst
    /// finds little left, and writes zeros ahead where flushes are many. Blocks for as long as the local disk takes; appends and
    /// flushes go on meanwhile.
    ///
    /// # Errors
    /// `System`: the journal has failed, now or earlier.
    pub fn upkeep(&self) -> Result<()> {
        let (filled, many_flushes) = {
            let log = self.log.lock();
            let active = log.active.header.number;
            let filled = log.unsynced.iter().any(|s| s.header.number < active);
            (filled, log.flushes >= MANY_FLUSHES)
        };
        if filled {
            // If somebody else is at it, that does as well.
            self.flush_now()?;
        }
        if many_flushes {
            self.make_ready()?;
        }
        Ok(())
    }

    /// Gives up what lies before a mark, unless that is given up already; durable when it returns. Answers how many bytes of the log that
    /// were. Blocks for as long as the local disk takes.
    ///
    /// # Errors
    /// `System`: then the journal has failed.
    pub fn release(&self, upto: Mark) -> Result<u64> {
        if let Some(failure) = self.failure() {
            return Err(failure);
        }
        let leading = self.leader.lock();
        let tail = self.log.lock().tail;
        let outcome = self.move_tail(upto);
        drop(leading);
        self.tell();
        outcome.map(|_| upto.since(&tail))
    }

    /// Gives up what lies before the end, which is all, and the space of all but a few segments; durable when it returns. The journal
    /// goes on to take records.
    ///
    /// # Errors
    /// `System`.
    pub fn shrink(&self) -> Result<()> {
        self.release(self.end())?;
        let surplus = self.surplus();
        for name in surplus {
            self.files
                .remove(&name)
                .map_err(|e| self.fail("remove a file of", e))?;
        }
        Ok(())
    }

    /// Whether all before a mark is durable, and stays so should the journal fail, or have failed.
    pub fn has_durable(&self, upto: &Mark) -> bool {
        let leading = self.leader.lock();
        let durable = *self.durable.borrow() >= upto.record;
        drop(leading);
        self.tell();
        durable
    }

    /// Whether [`Journal::disown`] has been done.
    pub fn is_disowned(&self) -> bool {
        self.state.lock().state.is_empty()
    }

    /// Has a journal that has failed forget all that it holds, durably: what was durable in it is committed, and the rest is going to be;
    /// what of it would be found after that is older. Nothing where it has been done.
    ///
    /// # Errors
    /// `System`: then the next mount may find it, and nothing that is newer may be committed.
    pub fn disown(&self) -> Result<()> {
        let leading = self.leader.lock();
        let disowned = self.disown_alone();
        drop(leading);
        self.tell();
        disowned
    }

    fn disown_alone(&self) -> Result<()> {
        let mut state = self.state.lock();
        if state.state.is_empty() {
            return Ok(());
        }
        let durable = *self.durable.borrow();
        let emptied = state.change(|state| {
            // No record of it tells of more, so that none belies this.
            state.durable = durable.max(state.durable);
            state.empty();
        });
        emptied.map_err(|e| {
            let text = format!(
                "the journal in {} has failed, and cannot be told that it holds nothing any more: until it can, nothing newer is committed",
                self.files.location()
            );
            Error::new(ErrorKind::System, text).with_source(e)
        })
    }

    /// Has those who wait look at what has become durable, or has failed. Not before the lead is free for one of them.
    pub(super) fn tell(&self) {
        self.durable.send_modify(|_| {});
    }

    fn move_tail(&self, upto: Mark) -> Result<u64> {
        // The segment with the tail has to be there after a crash, and until the tail has moved, all before it.
        let durable = self.lead()?;
        // Segments behind a tail that has moved further are written anew.
        if upto.record < self.log.lock().tail.record {
            return Ok(durable);
        }
        let moved = self.state.lock().change(|state| {
            state.tail = upto;
            state.durable = durable;
        });
        moved.map_err(|e| self.fail("write to", e))?;
        self.log.lock().tail = upto;
        Ok(durable)
    }

    /// Returns when everything is durable that was appended before the call. Its `fdatasync` blocks the thread, by way of `block`.
    ///
    /// # Errors
    /// Those of [`Journal::flush_now`].
    pub async fn flush(
        &self,
        block: impl Fn(&dyn Fn() -> Result<bool>) -> Result<bool>,
    ) -> Result<()> {
        let wanted = self.appended();
        let mut durable = self.durable.subscribe();
        loop {
            if self.failure().is_none() && *durable.borrow_and_update() >= wanted {
                return Ok(());
            }
            if block(&|| self.flush_now())? {
                return Ok(());
            }
            durable.changed().await.map_err(|_| {
                Error::new(ErrorKind::System, "the journal was closed during a flush")
            })?;
        }
    }

    /// Has the state say, durably, what is durable: that of the last record nothing else tells. Blocks for as long as the local disk takes.
    ///
    /// # Errors
    /// `System`: the journal has failed, if it had not before.
    pub fn vouch(&self) -> Result<()> {
        let durable = *self.durable.borrow();
        let mut state = self.state.lock();
        if state.state.durable >= durable {
            return Ok(());
        }
        let changed = state.change(|state| state.durable = durable);
        changed.map_err(|e| self.fail("write to", e))
    }

    /// Makes all durable that is appended; answers up to which record that is.
    fn lead(&self) -> Result<u64> {
        let upto = self.make_durable()?;
        // Before somebody else leads, or asks what is durable for sure.
        self.durable.send_if_modified(|durable| {
            *durable = upto.max(*durable);
            false
        });
        Ok(upto)
    }

    fn make_durable(&self) -> Result<u64> {
        let (upto, reaches, segments, names) = {
            let mut log = self.log.lock();
            // One that has failed since the caller looked: what its `fdatasync` has lost, another would not miss.
            if let Some(failure) = self.failure() {
                return Err(failure);
            }
            let Log {
                end,
                unsynced,
                names_unsynced,
                flushes,
                ..
            } = &mut *log;
            *flushes += 1;
            if *flushes == MANY_FLUSHES {
                self.upkeep.notify_one();
            }
            (
                end.record,
                end.segment,
                std::mem::take(unsynced),
                std::mem::take(names_unsynced),
            )
        };
        for segment in segments {
            let synced = segment.file.sync();
            synced.map_err(|e| self.fail("make durable", e))?;
        }
        if names {
            let synced = self.files.sync_names();
            synced.map_err(|e| self.fail("make durable", e))?;
        }
        let mut state = self.state.lock();
        if state.state.reaches < reaches {
            let changed = state.change(|state| {
                state.reaches = reaches;
                state.durable = upto;
            });
            changed.map_err(|e| self.fail("write to", e))?;
        }
        Ok(upto)
    }
}
