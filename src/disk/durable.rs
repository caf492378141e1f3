//! Making what is written durable, in the journal or in the store, and the end of a disk.

use std::sync::Arc;

use super::{Disk, FlushTo, Now, now, sealed};
use crate::error::{Error, ErrorKind, Result};
use crate::journal::Journal;

impl Disk {
    /// Makes what is written durable if that takes no more than the local disk: [`Now::Done`] if everything written before the call is
    /// in the journal and durable there, or committed. May block for as long as an `fdatasync` takes.
    ///
    /// # Errors
    /// `Fenced`.
    pub fn flush_now(&self) -> Result<Now> {
        if self.write_back.is_clean()? {
            return self.write_back.forget_now().map(now);
        }
        match self.flush_journal() {
            // One that has failed leaves the bucket, which is waited for.
            Some(journal) => Ok(now(matches!(journal.flush_now(), Ok(true)))),
            None => Ok(Now::Wait),
        }
    }

    /// Returns when everything written before the call is durable, where [`super::DiskConfig::flush`] says: in the journal, for the next
    /// mount on this machine, or committed. A journal that has failed leaves the latter.
    ///
    /// # Errors
    /// Those of [`Disk::commit`].
    pub async fn flush(&self) -> Result<()> {
        if self.flush_now()? == Now::Done {
            return Ok(());
        }
        if self.write_back.is_clean()? && self.write_back.forget().await? {
            return Ok(());
        }
        if let Some(journal) = self.flush_journal() {
            let block = |flush: &dyn Fn() -> Result<bool>| sealed::blocking(flush);
            if journal.flush(block).await.is_ok() {
                return Ok(());
            }
        }
        self.write_back.flush().await
    }

    /// Returns when everything written before the call is committed: in the store, durable, and visible to any later mount.
    /// Several callers may share one commit. A store that cannot be reached is waited for, however long.
    ///
    /// # Errors
    /// What the commit failed with; the data stays dirty and is tried again, so a later call may succeed. `Fenced` is final.
    pub async fn commit(&self) -> Result<()> {
        match self.write_back.is_clean()? && self.write_back.forget().await? {
            true => Ok(()),
            false => self.write_back.flush().await,
        }
    }

    /// Makes durable in the journal what is not committed, for who cannot commit it any more; answers where it is. `None` where it
    /// cannot be: there is no journal, or it has failed.
    pub fn keep_in_journal(&self) -> Option<String> {
        let journal = self.write_back.journal.as_ref()?;
        // Somebody else is at it, or it is done.
        while !journal.flush_now().ok()? {
            std::thread::yield_now();
        }
        Some(journal.location())
    }

    /// Gives up what the journal holds, for who cannot commit it any more and does not want it. What is dirty stays readable.
    ///
    /// # Errors
    /// `System`.
    pub fn give_up_journal(&self) -> Result<()> {
        match &self.write_back.journal {
            Some(journal) => sealed::blocking(|| journal.release(journal.end()).map(drop)),
            None => Ok(()),
        }
    }

    /// Whether flushes wait for the journal alone.
    pub fn flushes_to_journal(&self) -> bool {
        let journal = self.flush_journal();
        journal.is_some_and(|journal| journal.failure().is_none())
    }

    /// The journal, if that is what flushes wait for.
    pub(super) fn flush_journal(&self) -> Option<&Arc<Journal>> {
        let journal = self.write_back.journal.as_ref();
        journal.filter(|_| self.config.flush == FlushTo::Journal)
    }

    /// Commits everything, waiting out a store that cannot be reached, then stops the disk's tasks and releases the store.
    /// Nothing may be written any more once it is called. After an error it may be called again and goes on where it stopped.
    ///
    /// # Errors
    /// Those of [`Disk::commit`] and of the store's release.
    pub async fn close(&self) -> Result<()> {
        self.commit().await?;
        self.write_back.stop();
        let committer = self.committer.lock().take();
        if let Some(committer) = committer {
            committer.await.map_err(|e| {
                Error::new(ErrorKind::System, "the disk's committer has failed").with_source(e)
            })?;
        }
        if let Some(journal) = &self.write_back.journal {
            journal.stop_making_ready();
            if let Err(error) = sealed::blocking(|| journal.shrink()) {
                tracing::warn!(error = error.chain(), "the journal keeps what is committed");
            }
        }
        self.reader.store().release().await
    }
}
