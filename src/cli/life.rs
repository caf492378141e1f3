//! The life of a mount from the moment it is ready until its daemon may exit.
//!
//! A session ends when the kernel ends it: because someone ran `umount` or `fusermount3 -u`, because a client of the control socket
//! asked for it, or after a signal. Whichever it is, what is dirty then is committed and the disk released, however long the store
//! makes that take; only then does the process exit.
//!
//! *A client* gets a commit while the disk is still mounted, so that nearly nothing is left to do once it is not; then an unmount
//! that fails where the mount is in use, in which case all goes on as before. *The first signal* does the same, but where the mount
//! is in use it is detached: it disappears, and is served until its last user has closed it. *The second signal* ends the session
//! under its users; what they had written is committed.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use rustix::mount::UnmountFlags;
use serde_json::Value;
use tokio::sync::{oneshot, watch};
use tokio::task::spawn_blocking;
use tracing::{error, info, warn};

use super::report::Source;
use super::rescue;
use super::signals::Signals;
use super::sparse::length;
use crate::config::format_size;
use crate::control::{Progress, Service, Unmounted};
use crate::disk::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::frontend::fuse::FuseMount;

/// Between two tries to commit what is left, where the reason was not only that the store does not answer.
const AGAIN: Duration = Duration::from_secs(10);
/// Between two lines of the log that say that the last commit is not done yet.
const REMIND: Duration = Duration::from_secs(60);

/// How it ended, for whoever waits.
type Outcome = Option<Result<(), (ErrorKind, String)>>;

/// A mount that is being served.
#[derive(Debug)]
pub struct Life {
    source: Arc<Source>,
    fuse: Arc<FuseMount>,
    // Writing to it ends the session.
    abort_switch: PathBuf,
    outcome: watch::Sender<Outcome>,
    /// What can be committed no more is given up.
    discard: AtomicBool,
}

impl Life {
    /// Of a mount that has just begun.
    pub fn new(source: Arc<Source>, fuse: FuseMount) -> Arc<Life> {
        let connection = fuse.connection();
        Arc::new(Life {
            source,
            fuse: Arc::new(fuse),
            abort_switch: PathBuf::from(format!("/sys/fs/fuse/connections/{connection}/abort")),
            outcome: watch::Sender::new(None),
            discard: AtomicBool::new(false),
        })
    }

    /// Returns when the mount has ended, everything is committed and the disk is released.
    ///
    /// # Errors
    /// Why not everything is; then the disk is not released.
    pub async fn run(self: &Arc<Self>, signals: &mut Signals) -> Result<()> {
        let served = self.serve(signals).await;
        if !self.disk().is_read_only() {
            info!(
                dirty_bytes = self.disk().status().dirty_bytes,
                "unmounted; committing what is left"
            );
        }
        let closed = self.close(signals).await;
        let outcome = closed.and(served);
        let told = match &outcome {
            Ok(()) => Ok(()),
            Err(e) => Err((e.kind(), e.chain())),
        };
        self.outcome.send_replace(Some(told));
        outcome
    }

    fn disk(&self) -> &Arc<Disk> {
        &self.source.disk
    }

    /// Until the session has ended.
    async fn serve(self: &Arc<Self>, signals: &mut Signals) -> Result<()> {
        let mut ended = self.watch_session()?;
        let mut leaving = false;
        loop {
            tokio::select! {
                end = &mut ended => {
                    return end.unwrap_or_else(|_| {
                        Err(Error::new(ErrorKind::System, "the thread that served the mount has gone"))
                    });
                }
                signal = signals.next() => {
                    if leaving {
                        warn!(signal, "ending the mount under its users");
                        if let Err(error) = self.abort() {
                            warn!(error = %error.chain(), "the mount cannot be ended; what was written so far is committed");
                            return Ok(());
                        }
                    } else {
                        info!(signal, "committing, then unmounting");
                        leaving = true;
                        tokio::spawn(Arc::clone(self).leave());
                    }
                }
            }
        }
    }

    /// Waits for the session's end on a thread of its own: it may last for months.
    fn watch_session(&self) -> Result<oneshot::Receiver<Result<()>>> {
        let (tell, ended) = oneshot::channel();
        let fuse = Arc::clone(&self.fuse);
        std::thread::Builder::new()
            .name("session-end".to_owned())
            .spawn(move || {
                // Nobody listens any more after the second signal.
                let _ = tell.send(fuse.wait());
            })
            .map_err(|e| Error::new(ErrorKind::System, "cannot start a thread").with_source(e))?;
        Ok(ended)
    }

    /// What the first signal asks for.
    async fn leave(self: Arc<Self>) {
        if let Err(error) = self.disk().commit().await {
            warn!(error = %error.chain(), "not everything is committed; unmounting all the same");
        }
        let Err(error) = self.unmount_fuse().await else {
            return;
        };
        warn!(error = %error.chain(), "detaching the mount; it is served until its last user closes it");
        let fuse = Arc::clone(&self.fuse);
        if let Ok(Err(error)) = spawn_blocking(move || fuse.detach()).await {
            warn!(error = %error.chain(), "the mount cannot be detached and goes on; a second signal ends it");
        }
    }

    async fn unmount_fuse(&self) -> Result<()> {
        let fuse = Arc::clone(&self.fuse);
        spawn_blocking(move || fuse.unmount()).await.map_err(|e| {
            Error::new(ErrorKind::System, "the thread that unmounts has failed").with_source(e)
        })?
    }

    /// Ends the session at once: requests of its users fail from here on.
    fn abort(&self) -> Result<()> {
        let directory = self.fuse.directory();
        if std::fs::write(&self.abort_switch, "1").is_ok() {
            return Ok(());
        }
        rustix::mount::unmount(directory, UnmountFlags::FORCE | UnmountFlags::DETACH).map_err(|e| {
            let context = format!("cannot end the mount on {}", directory.display());
            Error::new(ErrorKind::System, context).with_source(e)
        })
    }

    /// Commits what is left and releases the disk. Tries again for as long as there is something to lose, unless a signal says that
    /// it may be lost.
    async fn close(&self, signals: &mut Signals) -> Result<()> {
        loop {
            let Err(failure) = self.close_once().await else {
                return Ok(());
            };
            let failure = match failure.kind() {
                ErrorKind::Fenced => match self.settle(failure).await {
                    Ok(settled) => return Err(settled),
                    Err(failure) => failure,
                },
                _ => failure,
            };
            let dirty_bytes = self.disk().status().dirty_bytes;
            if dirty_bytes == 0 && !failure.kind().is_transient() {
                return Err(failure);
            }
            error!(
                error = %failure.chain(), dirty_bytes,
                "not everything is in the bucket: trying again; a signal gives it up"
            );
            tokio::select! {
                () = tokio::time::sleep(AGAIN) => {}
                signal = signals.next() => {
                    error!(signal, dirty_bytes, "given up");
                    return Err(failure);
                }
            }
        }
    }

    /// The end of a session that has lost the disk: what it could not commit is kept on this machine, or given up. Answers what is
    /// to be said of it.
    ///
    /// # Errors
    /// Why it cannot be kept; it is still in memory.
    async fn settle(&self, fenced: Error) -> Result<Error> {
        let shown = self.fuse.directory().display();
        if length(&self.disk().dirty_ranges()) == 0 {
            return Ok(fenced.within(format!(
                "{shown} is unmounted; everything written to it was committed before it lost the disk"
            )));
        }
        if self.discard.load(Ordering::Acquire) {
            self.disk().give_up_journal()?;
            return Ok(fenced.within("what was not committed is given up, as was asked for"));
        }
        if let Some(journal) = self.disk().keep_in_journal() {
            let bytes = format_size(length(&self.disk().dirty_ranges()));
            return Ok(fenced.within(format!(
                "{bytes} of writes to {shown} were not committed; the journal keeps them: copy them with 'bucketdisk journal export \
                 {journal} FILE'"
            )));
        }
        let (file, bytes) = rescue::keep(self.disk()).await.map_err(|error| {
            error.within("the writes that can be committed no more cannot be kept on this machine")
        })?;
        let (file, bytes) = (file.display(), format_size(bytes));
        Ok(fenced.within(format!(
            "{bytes} of writes to {shown} were not committed; they are kept in {file}"
        )))
    }

    /// One try, which waits out a store that does not answer and says so now and then.
    async fn close_once(&self) -> Result<()> {
        let disk = Arc::clone(self.disk());
        let mut closing = tokio::spawn(async move { disk.close().await });
        loop {
            tokio::select! {
                closed = &mut closing => {
                    return closed.unwrap_or_else(|e| {
                        Err(Error::new(ErrorKind::System, "the last commit has failed").with_source(e))
                    });
                }
                () = tokio::time::sleep(REMIND) => {
                    let report = self.source.report();
                    warn!(
                        dirty_bytes = report.disk.dirty_bytes,
                        error = report.trouble(),
                        "still committing what is left"
                    );
                }
            }
        }
    }
}

#[async_trait]
impl Service for Life {
    fn status(&self) -> Result<(String, Value)> {
        let report = self.source.report();
        Ok((report.text(), report.json()?))
    }

    fn progress(&self) -> Progress {
        let report = self.source.report();
        Progress {
            dirty_bytes: report.disk.dirty_bytes,
            commit_blocks_left: report.disk.commit_blocks_left,
            commit_blocks: report.disk.commit_blocks,
            trouble: report.trouble(),
        }
    }

    fn dirty(&self) -> Vec<Range<u64>> {
        self.disk().dirty_ranges()
    }

    async fn flush(&self, bucket: bool) -> Result<bool> {
        if bucket {
            self.disk().commit().await?;
            return Ok(true);
        }
        self.disk().flush().await?;
        Ok(!self.disk().flushes_to_journal() || self.disk().status().dirty_bytes == 0)
    }

    async fn unmount(&self, discard: bool) -> Result<Unmounted> {
        let mut done = match self.disk().is_read_only() {
            true => Unmounted::ReadOnly,
            false => Unmounted::Released,
        };
        let shown = self.fuse.directory().display();
        match self.disk().commit().await {
            Err(error) if error.kind() == ErrorKind::Fenced && discard => {
                let bytes = length(&self.disk().dirty_ranges());
                done = Unmounted::GivenUp { bytes };
                self.discard.store(true, Ordering::Release);
            }
            Err(error) if error.kind() == ErrorKind::Fenced => {
                let bytes = format_size(length(&self.disk().dirty_ranges()));
                return Err(error.within(format!(
                    "{shown} stays mounted, since {bytes} of writes can be committed no more: copy the disk with 'bucketdisk \
                     export {shown} FILE', or give them up with 'bucketdisk umount --discard {shown}'"
                )));
            }
            flushed => flushed.map_err(|error| {
                error.within(format!(
                    "{shown} stays mounted, since not everything can be committed"
                ))
            })?,
        }
        if let Err(error) = self.unmount_fuse().await {
            self.discard.store(false, Ordering::Release);
            return Err(error);
        }
        let mut outcome = self.outcome.subscribe();
        let told = outcome.wait_for(Option::is_some).await.map_err(|e| {
            Error::new(ErrorKind::System, "the mount ended without a word").with_source(e)
        })?;
        match &*told {
            Some(Err((ErrorKind::Fenced, _))) if matches!(done, Unmounted::GivenUp { .. }) => {
                Ok(done)
            }
            Some(Err((kind, message))) => Err(Error::new(*kind, message.clone())),
            _ => Ok(done),
        }
    }
}
