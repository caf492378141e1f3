//! A mount point: whether it can be used, what is mounted there, and taking away what is ours and nothing else.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Statx, StatxAttributes, StatxFlags, statx};
use rustix::io::Errno as Os;
use rustix::mount::UnmountFlags;

use crate::error::{Error, ErrorKind, Result};

use super::device::unmount_by_fusermount;

/// An error of the local machine.
pub(super) fn system(text: impl Into<String>, source: io::Error) -> Error {
    Error::new(ErrorKind::System, text).with_source(source)
}

/// The mount point as an absolute path, if a disk can be mounted there.
///
/// # Errors
/// `NotFound`, `Usage` where it is no directory, `Busy` where something is mounted there, be it what a dead mount left.
pub fn usable_directory(mountpoint: &Path) -> Result<PathBuf> {
    let shown = mountpoint.display();
    let refuse = |kind, text: String| Err(Error::new(kind, text));
    let unusable = |e: io::Error| match Os::from_io_error(&e) {
        Some(Os::NOENT) => {
            let text =
                format!("mount point {shown} does not exist: make it with `mkdir -p {shown}`");
            Error::new(ErrorKind::NotFound, text)
        }
        // a FUSE mount whose server is gone
        Some(Os::NOTCONN | Os::CONNABORTED) => {
            let text = format!(
                "{shown} is what a mount whose daemon has died left behind: run 'bucketdisk umount {shown}', then mount again"
            );
            Error::new(ErrorKind::Busy, text)
        }
        _ => system(format!("cannot use mount point {shown}"), e),
    };
    let directory = mountpoint.canonicalize().map_err(unusable)?;
    if !fs::metadata(&directory).map_err(unusable)?.is_dir() {
        let text = format!("mount point {shown} is not a directory");
        return refuse(ErrorKind::Usage, text);
    }
    let found = look(&directory).map_err(unusable)?;
    if found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        let text = format!("something is mounted on {shown} already: unmount it or choose another");
        return refuse(ErrorKind::Busy, text);
    }
    Ok(directory)
}

/// Looks at what is mounted at a place without a request to its file system, which may not answer.
fn look(directory: &Path) -> io::Result<Statx> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_DONT_SYNC;
    Ok(statx(CWD, directory, flags, StatxFlags::empty())?)
}

/// Where something of ours is mounted.
#[derive(Debug)]
pub(super) struct Place {
    directory: PathBuf,
    /// Nothing else has this number for as long as the session lives.
    device: (u32, u32),
}

impl Place {
    /// What has just been mounted at `directory`.
    pub(super) fn of(directory: PathBuf) -> Result<Self> {
        match look(&directory) {
            Ok(found) => Ok(Place {
                device: (found.stx_dev_major, found.stx_dev_minor),
                directory,
            }),
            Err(e) => Err(system(format!("cannot look at {}", directory.display()), e)),
        }
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The number of the FUSE connection, which is the minor one of its device.
    pub(super) fn connection(&self) -> u32 {
        self.device.1
    }

    fn is_visible(&self) -> bool {
        look(&self.directory)
            .is_ok_and(|found| (found.stx_dev_major, found.stx_dev_minor) == self.device)
    }

    /// Unmounts what is ours; the session has to be alive, or a stranger may have its device number. `lazily`: at once, while
    /// open files live on.
    ///
    /// # Errors
    /// `Busy`: it is in use, or covered, or gone from its place. `System`: the kernel or fusermount refuses.
    pub(super) fn unmount(&self, lazily: bool) -> Result<()> {
        let shown = self.directory.display();
        if !self.is_visible() {
            return Err(Error::new(
                ErrorKind::Busy,
                format!(
                    "{shown} no longer shows this disk, but it is still in use: \
                     unmount what covers it, or close the files that are still open"
                ),
            ));
        }
        let flags = match lazily {
            true => UnmountFlags::NOFOLLOW | UnmountFlags::DETACH,
            false => UnmountFlags::NOFOLLOW,
        };
        let outcome = match rustix::mount::unmount(&self.directory, flags) {
            Err(Os::PERM) => unmount_by_fusermount(&self.directory, lazily),
            outcome => outcome.map_err(io::Error::from),
        };
        outcome.map_err(|e| {
            let is_busy = Os::from_io_error(&e) == Some(Os::BUSY) || e.to_string().contains("busy");
            match (is_busy, e.kind()) {
                (true, _) => Error::new(
                    ErrorKind::Busy,
                    format!("{shown} is in use: see `fuser -m {shown}` and `losetup`, end that, and try again"),
                ),
                (_, io::ErrorKind::NotFound) => system(
                    format!("not permitted to unmount {shown}: install fusermount3 (package fuse3), or use root"),
                    e,
                ),
                _ => system(format!("cannot unmount {shown}"), e),
            }
        })
    }
}
