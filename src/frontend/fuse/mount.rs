//! A mounted disk: serving it, ending it.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use fuser::Session;
use parking_lot::{Condvar, Mutex};
use tracing::{info, warn};

use crate::disk::Disk;
use crate::error::Result;

use super::StatsText;
use super::device;
use super::filesystem::DiskFilesystem;
use super::options::FuseOptions;
use super::place::{Place, system, usable_directory};

/// A mounted disk that is being served.
///
/// Dropping it unmounts if nobody uses the mount; else the mount is served for as long as the process lives.
#[derive(Debug)]
pub struct FuseMount {
    place: Place,
    ending: Arc<Ending>,
}

/// How a session ended, once it has.
#[derive(Debug, Default)]
struct Ending {
    outcome: Mutex<Option<Result<(), String>>>,
    changed: Condvar,
}

impl FuseMount {
    /// Mounts `disk` at `mountpoint`; `stats` makes the text of the `stats` file. When this returns the files can be used.
    ///
    /// Nothing of this process ever asks the mount for anything, not even to see whether it answers: were it killed with such a
    /// request under way, it would wait for itself, and the kernel lets nobody end that.
    ///
    /// # Errors
    /// One sentence with the remedy. `Usage`: an option, or the mount point is not a directory. `NotFound`: there is no such
    /// directory. `Busy`: something is mounted there. `System`: the kernel or fusermount refuses.
    pub fn start(
        disk: Arc<Disk>,
        stats: StatsText,
        mountpoint: &Path,
        options: &FuseOptions,
    ) -> Result<FuseMount> {
        let resolved = options.resolved()?;
        let directory = usable_directory(mountpoint)?;
        let filesystem = DiskFilesystem::new(disk, stats, &resolved.options);
        let connection = device::mount(&directory, &resolved)?;
        let place = Place::of(directory)?;
        let ending = Arc::new(Ending::default());
        let config = resolved.config();
        let served = Session::from_fd(filesystem, connection, config.acl, config)
            .and_then(|session| serve(session, Arc::clone(&ending)));
        if let Err(e) = served {
            // Nobody can use what nobody serves.
            if let Err(left) = place.unmount(true) {
                warn!(error = %left.chain(), "a dead mount stays");
            }
            let text = format!("cannot serve the mount on {}", place.directory().display());
            return Err(system(text, e));
        }
        info!(mountpoint = %place.directory().display(), "mounted");
        Ok(FuseMount { place, ending })
    }

    /// The mount point, absolute.
    pub fn directory(&self) -> &Path {
        self.place.directory()
    }

    /// The kernel's number of the connection, below `/sys/fs/fuse/connections`.
    pub fn connection(&self) -> u32 {
        self.place.connection()
    }

    /// Whether the kernel has ended the session.
    pub fn has_ended(&self) -> bool {
        self.ending.outcome.lock().is_some()
    }

    /// Unmounts if nobody uses the mount. The session's end is for [`FuseMount::wait`] to see. Does nothing where it has ended.
    ///
    /// # Errors
    /// `Busy`, naming the mount point, where a file or directory is in use or the mount is no longer to be seen at its place:
    /// the session goes on. `System` where the kernel refuses.
    pub fn unmount(&self) -> Result<()> {
        self.leave(false)
    }

    /// Takes the mount away from its place at once, and serves whoever still has a file open until the last has closed it.
    /// Does nothing where the session has ended.
    ///
    /// # Errors
    /// `Busy` where the mount is no longer to be seen at its place, `System` where the kernel refuses.
    pub fn detach(&self) -> Result<()> {
        self.leave(true)
    }

    /// Returns when the kernel has ended the session: after any unmount, once the last file is closed. Blocks the thread.
    ///
    /// # Errors
    /// `System` where serving stopped for another reason.
    pub fn wait(&self) -> Result<()> {
        let mut outcome = self.ending.outcome.lock();
        loop {
            match &*outcome {
                Some(Ok(())) => return Ok(()),
                Some(Err(reason)) => {
                    let text = format!("serving {} failed", self.directory().display());
                    return Err(system(text, io::Error::other(reason.clone())));
                }
                None => self.ending.changed.wait(&mut outcome),
            }
        }
    }

    fn leave(&self, lazily: bool) -> Result<()> {
        if self.has_ended() {
            return Ok(());
        }
        match self.place.unmount(lazily) {
            // Somebody else was quicker.
            Err(_) if self.has_ended() => Ok(()),
            outcome => outcome,
        }
    }
}

impl Drop for FuseMount {
    fn drop(&mut self) {
        if let Err(error) = self.unmount() {
            warn!(error = %error.chain(), "the mount stays");
        }
    }
}

/// Runs the session on threads of its own, and notes how it ends.
fn serve(session: Session<DiskFilesystem>, ending: Arc<Ending>) -> io::Result<()> {
    thread::Builder::new()
        .name("fuse".to_owned())
        .spawn(move || {
            let outcome = session.run().map_err(|e| e.to_string());
            *ending.outcome.lock() = Some(outcome);
            ending.changed.notify_all();
        })
        .map(drop)
}
