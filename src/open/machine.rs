//! What this machine knows of a disk that is about to be mounted: the lock, its own sessions, the journal, the newest that it has seen.

use std::path::Path;
use std::sync::Arc;

use tracing::warn;

use super::head::Seen;
use super::{CacheDirectory, MountSpec, Prepared, SessionId, Superblock, journal};
use crate::codec::keys::DiskKeys;
use crate::disk::FlushTo;
use crate::error::{Error, ErrorKind, Result};
use crate::local::{LocalState, PastSession};

/// What this machine has seen of a disk; `None` where there is no place for that.
pub(super) fn seen(superblock: &Superblock, spec: &MountSpec) -> Option<Seen> {
    if spec.target.is_memory() {
        return None;
    }
    let seen = Seen::of(superblock.id);
    if seen.is_none() {
        warn!("there is no cache directory: this machine cannot tell an older copy of the bucket");
    }
    let mut seen = seen?;
    if spec.accept_rollback {
        seen.begin_anew();
    }
    Some(seen)
}

/// What this machine knows of a disk: the lock and its sessions, the new one remembered; and the journal, if there is to be one.
///
/// # Errors
/// `Busy`; `Fenced` or `Damaged` where a journal may not be applied, or would be left behind; those of a directory that was asked for.
pub(super) fn prepare(
    superblock: &Superblock,
    keys: Option<&Arc<DiskKeys>>,
    spec: &MountSpec,
    session: SessionId,
) -> Result<(Option<LocalState>, Option<Prepared>)> {
    let local = lock_locally(superblock, keys, spec)?;
    let directory = match (&spec.cache, &local) {
        // This user's directory, which cannot be used: that has been said.
        (CacheDirectory::Usual, None) => None,
        (cache, _) => cache.of(superblock),
    };
    if directory.is_none() && spec.flush == Some(FlushTo::Journal) {
        let text =
            "--flush journal needs a journal, and there is no directory for one: give --cache-dir";
        return Err(Error::new(ErrorKind::Usage, text));
    }
    if let Some(local) = &local
        && !spec.discard_journal
    {
        left_behind(local, directory.as_deref(), keys)?;
    }
    let prepared = match &directory {
        None => None,
        Some(directory) => {
            let look = Prepared::look(directory, superblock, keys, spec.discard_journal);
            match look {
                Ok(prepared) => Some(prepared),
                Err(error)
                    if is_the_machines(&error)
                        && !spec.discard_journal
                        && journal::holds_something(directory, keys) =>
                {
                    return Err(not_to_be_lost(directory, &error));
                }
                // Nobody has asked for this one, and there is nothing in it.
                Err(error) if may_do_without(spec, &error) => {
                    warn!(error = %error.chain(), "there is no journal: flushes wait for the bucket");
                    None
                }
                Err(error) => return Err(error),
            }
        }
    };
    if let Some(local) = &local {
        let remembered = local.remember(&PastSession {
            session: session.0,
            journal: prepared.as_ref().and(directory),
        });
        if let Err(error) = remembered {
            warn!(error = %error.chain(), "{FORGETFUL}");
        }
    }
    Ok((local, prepared))
}

/// What follows where this machine cannot remember a session.
const FORGETFUL: &str = "this machine cannot remember the session: should this daemon die, mounting again takes --take-over";

/// Why a mount cannot do without the journal in a directory, which cannot be had: flushed writes in it are in no bucket.
fn not_to_be_lost(directory: &Path, cause: &Error) -> Error {
    let text = format!(
        "the journal in {} has writes of the last mount on this machine that are not in the bucket, and cannot be gone on with: {}; \
         nothing is lost: mend that (where space is short, the folder 'cache' there may be removed), and mount again",
        directory.display(),
        cause.chain()
    );
    Error::new(cause.kind(), text)
}

/// Whether an error is one of the local disk, and says nothing against the journal.
fn is_the_machines(error: &Error) -> bool {
    let kind = error.kind();
    matches!(
        kind,
        ErrorKind::Full | ErrorKind::Denied | ErrorKind::System
    )
}

/// Whether a journal that cannot be had is only a comfort that is missing.
fn may_do_without(spec: &MountSpec, error: &Error) -> bool {
    let asked = spec.cache != CacheDirectory::Usual || spec.flush == Some(FlushTo::Journal);
    !asked && matches!(error.kind(), ErrorKind::Full | ErrorKind::Denied)
}

/// Refuses to leave what an earlier mount of this machine kept in another directory.
fn left_behind(
    local: &LocalState,
    directory: Option<&Path>,
    keys: Option<&Arc<DiskKeys>>,
) -> Result<()> {
    let others = local
        .dead_sessions()
        .iter()
        .filter_map(|past| past.journal.as_deref());
    for other in others.filter(|other| Some(*other) != directory) {
        if journal::holds_something(other, keys) {
            let shown = other.display();
            return Err(Error::new(
                ErrorKind::Fenced,
                format!(
                    "the journal in {shown} has writes of the last mount on this machine that are not in the bucket: mount with \
                     --cache-dir {shown}, or copy them with 'bucketdisk journal export {shown} FILE' and mount with --discard-journal"
                ),
            ));
        }
    }
    Ok(())
}

/// The lock on this machine; `None` where this machine cannot remember anything.
///
/// # Errors
/// `Busy`; what keeps this user's directory from being used, where there is a journal in it that is to be gone on with.
fn lock_locally(
    superblock: &Superblock,
    keys: Option<&Arc<DiskKeys>>,
    spec: &MountSpec,
) -> Result<Option<LocalState>> {
    let Some(root) = LocalState::root() else {
        warn!("there is no cache directory: {FORGETFUL}");
        return Ok(None);
    };
    match LocalState::lock(&root, superblock.id, &spec.mountpoint) {
        Ok(local) => Ok(Some(local)),
        Err(error) if error.kind() == ErrorKind::Busy => Err(error),
        Err(error) => {
            let usual = CacheDirectory::Usual.of(superblock);
            match usual.filter(|directory| journal::holds_something(directory, keys)) {
                Some(directory) if !spec.discard_journal => {
                    return Err(not_to_be_lost(&directory, &error));
                }
                _ => warn!(error = %error.chain(), "{FORGETFUL}"),
            }
            Ok(None)
        }
    }
}
