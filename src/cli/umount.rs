//! `bucketdisk umount`.

use std::path::Path;
use std::process::Command;

use parking_lot::Mutex;
use rustix::mount::UnmountFlags;

use super::Context;
use super::args::UmountArgs;
use super::mount_table::{self, Without};
use crate::config::format_size;
use crate::control::{self, Client, Progress, Unmounted};
use crate::error::{Error, ErrorKind, Result};

/// Asks a mount's daemon to unmount, and waits until the bucket has everything and the daemon has gone.
///
/// # Errors
/// `NotFound` where the directory is no mount of ours; `Busy` where it is in use: it stays mounted; `Fenced` where what was
/// written can be committed no more: it stays mounted, unless that is to be given up; `System` where the daemon has died: what it
/// left in the way is cleared, but its last writes are not in the bucket; others: why data is not in the bucket.
pub fn run(args: &UmountArgs, context: &Context) -> Result<()> {
    let mountpoint = control::mount_point(&args.mountpoint)?;
    let shown = mountpoint.display();
    let Some(client) = Client::connect(&control::directory(), &mountpoint)? else {
        return Err(match mount_table::without_daemon(&mountpoint)? {
            Without::Dead => clear_away(&mountpoint)?,
            Without::Refused(error) => error,
        });
    };
    let step = Mutex::new(context.reporter.step("committing"));
    // What there was to do when it began, to show how much of that is done.
    let most = Mutex::new(0u64);
    let outcome = client.unmount(args.discard, |progress| {
        let (most, done) = most_and_done(&mut most.lock(), progress);
        step.lock().update(done, most, &words(progress));
    });
    drop(step);
    let outcome = match outcome {
        Ok(outcome) => outcome,
        // It may have been dying already when it took the question.
        Err(error) if error.kind() == ErrorKind::System && mount_table::is_dead(&mountpoint) => {
            return Err(clear_away(&mountpoint)?.with_source(error));
        }
        Err(error) => return Err(error),
    };
    context.reporter.line(&match outcome {
        Unmounted::Released => {
            format!("unmounted {shown}: everything is in the bucket, and the disk is released")
        }
        Unmounted::ReadOnly => format!("unmounted {shown}, which was read-only"),
        Unmounted::GivenUp { bytes } => format!(
            "unmounted {shown}: {} of writes are given up",
            format_size(bytes)
        ),
    });
    Ok(())
}

/// Unmounts what a dead daemon has left; answers what there is to say of that.
fn clear_away(mountpoint: &Path) -> Result<Error> {
    clear(mountpoint)?;
    let shown = mountpoint.display();
    Ok(Error::new(
        ErrorKind::System,
        format!(
            "the daemon of {shown} had died: {shown} is unmounted now, and what was not committed is what its journal has kept, for \
             the next mount"
        ),
    ))
}

/// The most that there was to do so far, and how much of that is done, in bytes.
pub fn most_and_done(most: &mut u64, progress: &Progress) -> (u64, u64) {
    *most = progress.dirty_bytes.max(*most);
    (*most, *most - progress.dirty_bytes)
}

/// How far it is, for people.
pub fn words(progress: &Progress) -> String {
    let left = format!("{} left", format_size(progress.dirty_bytes));
    match &progress.trouble {
        Some(trouble) => format!("{left}; trying again: {trouble}"),
        None if progress.commit_blocks_left > 0 => {
            format!(
                "{left}, {} blocks of this commit",
                progress.commit_blocks_left
            )
        }
        None => left,
    }
}

/// Unmounts what a dead daemon has left.
fn clear(mountpoint: &Path) -> Result<()> {
    let shown = mountpoint.display();
    match rustix::mount::unmount(mountpoint, UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::PERM) => {
            let output = Command::new("fusermount3")
                .arg("-u")
                .arg("--")
                .arg(mountpoint)
                .output()
                .map_err(|e| {
                    let context = format!("cannot run fusermount3 to unmount {shown}");
                    Error::new(ErrorKind::System, context).with_source(e)
                })?;
            if output.status.success() {
                return Ok(());
            }
            let said = String::from_utf8_lossy(&output.stderr);
            let kind = match said.contains("busy") {
                true => ErrorKind::Busy,
                false => ErrorKind::System,
            };
            let context = format!(
                "cannot unmount {shown}, whose daemon has died: {}",
                said.trim()
            );
            Err(Error::new(kind, context))
        }
        Err(rustix::io::Errno::BUSY) => Err(Error::new(
            ErrorKind::Busy,
            format!(
                "the daemon of {shown} has died, and {shown} is in use: see 'losetup' and 'fuser -m {shown}', then try again"
            ),
        )),
        Err(e) => {
            let context = format!("cannot unmount {shown}, whose daemon has died");
            Err(Error::new(ErrorKind::System, context).with_source(e))
        }
    }
}
