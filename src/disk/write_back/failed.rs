//! A journal that has failed, on the way of its content into the bucket.
//!
//! It holds the writes up to some record for sure, all that a flush has acknowledged among them; of what was written after that, the
//! local disk may have kept any part. So the bucket gets it in three steps, in this order:
//!
//! ```text
//! journal        bucket          a crash then leaves
//! ...d|e?        ...             what is durable (d) and maybe some more, out of the journal
//! ...d|e?        ...d            the same: to apply it to a state that has it changes nothing
//! (nothing)      ...d            d
//! (nothing)      ...de           all
//! ```
//!
//! To commit all at once would put the journal's older writes over newer ones after a crash, or, with the journal disowned before that,
//! lose what was acknowledged. Where all of it is durable, d is everything, and the journal is disowned after the commit. One that can
//! be read no more as far as it was durable is of no use to anybody: it is disowned at once. Where the local disk cannot even be made to
//! disown it, nothing newer is committed until it can: flushes fail, and say why.

use std::sync::Arc;

use super::super::recovered::Recovered;
use super::super::sealed::{Sealed, blocking};
use super::WriteBack;
use super::committer::{Ended, RETRY_FAILED};
use crate::error::{ErrorKind, Result};
use crate::journal::Journal;

impl WriteBack {
    /// Has a journal that has failed out of the way of the next commit, however many tries it takes. Nothing where it is not in the way.
    ///
    /// # Errors
    /// `Fenced`.
    pub(super) async fn settle(&self) -> Result<()> {
        let failed = self.journal.as_ref().filter(|j| j.failure().is_some());
        let Some(journal) = failed.filter(|journal| blocking(|| self.is_in_the_way(journal)))
        else {
            return Ok(());
        };
        let mut pause = RETRY_FAILED;
        loop {
            let error = match blocking(|| self.seal_durable(journal)) {
                Ok(None) => break,
                Ok(Some(sealed)) => match self.commit(&sealed).await? {
                    Ended::Committed => break,
                    // All of it is in the open epoch, too.
                    Ended::GivenUp(error) => {
                        self.state.write().sealed = None;
                        error
                    }
                },
                Err(error) if error.kind() == ErrorKind::Damaged => {
                    tracing::error!(error = error.chain(), "the journal is given up");
                    break;
                }
                Err(error) => error,
            };
            self.pause_after_failure(error, &mut pause).await;
        }
        while let Err(error) = blocking(|| journal.disown()) {
            self.pause_after_failure(error, &mut pause).await;
        }
        Ok(())
    }

    /// Whether a crash after the next commit would find something older than that in the journal.
    fn is_in_the_way(&self, journal: &Journal) -> bool {
        if journal.is_disowned() {
            return false;
        }
        // What was appended before it failed is taken by then, and nothing is any more.
        let _order = self.in_order();
        self.is_empty() || !journal.has_durable(&journal.end())
    }

    /// Seals what is durable in the journal, under the open epoch, which holds all of it and more. `None` where there is nothing to
    /// commit.
    ///
    /// # Errors
    /// Those of [`Journal::durable_records`].
    fn seal_durable(&self, journal: &Journal) -> Result<Option<Arc<Sealed>>> {
        if self.is_empty() {
            return Ok(None);
        }
        if let Err(error) = journal.vouch() {
            tracing::debug!(error = error.chain(), "what is durable is not vouched for");
        }
        let store = self.reader.store();
        let epoch = Recovered::durable_in(journal, store.geometry())?.into_epoch();
        if epoch.is_empty() {
            return Ok(None);
        }
        let committed = self.outcome().committed;
        let mut state = self.state.write();
        // What was written to a hole and then discarded is nowhere in the open epoch, since it has come to nothing.
        for index in epoch
            .blocks()
            .filter(|index| store.version(*index).is_none())
        {
            state.open.hide(index);
        }
        // It ends no epoch: nobody waits for it, and nothing is released after it.
        let sealed = Sealed::new(committed, epoch, None, Arc::clone(&self.reader));
        let sealed = Arc::new(sealed);
        state.sealed = Some(Arc::clone(&sealed));
        Ok(Some(sealed))
    }
}
