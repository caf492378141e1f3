//! What this machine remembers of a disk, and the lock that keeps a second process on this machine away from it.
//!
//! A session's id is remembered *before* its claim is put, and trimmed once the mount stands. So when a daemon was killed, the
//! next mount on the same machine knows that the claim in the bucket is its own, and once it holds the lock, that the process
//! behind it is dead: it may take the disk over without being told to. Nothing here is needed for the data's sake: where the
//! directory cannot be written, a crashed session must be taken over with `--take-over`.

use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::{Error, ErrorKind, Result};

/// Most session ids remembered. Every failed mount adds one, every mount that succeeds leaves one.
const MOST_SESSIONS: usize = 1000;
/// What of a directory is locked.
const LOCK: &str = "lock";

/// A session of this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastSession {
    /// Its id.
    pub session: Uuid,
    /// Where its journal was; `None` where it had none.
    pub journal: Option<PathBuf>,
}

/// The lock on a directory on this machine, held until dropped.
#[derive(Debug)]
pub struct DirectoryLock {
    // Closing it gives the lock up.
    file: File,
}

impl DirectoryLock {
    /// Locks a directory.
    ///
    /// # Errors
    /// `Busy` where another process has the lock; `System` or `Denied`.
    pub fn take(directory: &Path) -> Result<DirectoryLock> {
        match lock_file(&directory.join(LOCK))? {
            Locked::Ours(file) => Ok(DirectoryLock { file }),
            Locked::Anothers(_) => Err(in_use(directory)),
        }
    }

    /// Locks a directory beside others who only read it, and changes nothing there. `None` where nobody has ever locked it.
    ///
    /// # Errors
    /// `Busy` where another process may change it; `System` or `Denied`.
    pub fn share(directory: &Path) -> Result<Option<DirectoryLock>> {
        let path = directory.join(LOCK);
        let file = match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(|e| failed("open", &path, e))?,
        };
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(Some(DirectoryLock { file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(in_use(directory)),
            Err(e) => Err(failed("lock", &path, e.into())),
        }
    }
}

fn in_use(directory: &Path) -> Error {
    let text = format!(
        "{} is in use by another process of this machine",
        directory.display()
    );
    Error::new(ErrorKind::Busy, text)
}

impl Drop for DirectoryLock {
    /// Unlocks instead of leaving that to the close, as [`LocalState`] does.
    fn drop(&mut self) {
        unlock(&self.file);
    }
}

/// The lock on a disk on this machine, held until dropped, and the sessions of earlier processes.
#[derive(Debug)]
pub struct LocalState {
    directory: PathBuf,
    dead: Vec<PastSession>,
    // Closing it gives the lock up.
    lock: File,
}

/// What the lock file says of who holds it.
#[derive(Debug, Serialize, Deserialize)]
struct Owner {
    pid: u32,
    mountpoint: PathBuf,
}

impl LocalState {
    /// The directory where this user's state of all disks lives: `/var/cache/bucketdisk` for root, else `bucketdisk` below
    /// `$XDG_CACHE_HOME` or `~/.cache`. `None` where none of these is known.
    pub fn root() -> Option<PathBuf> {
        if rustix::process::geteuid().is_root() {
            return Some(PathBuf::from("/var/cache/bucketdisk"));
        }
        absolute("XDG_CACHE_HOME")
            .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
            .map(|cache| cache.join("bucketdisk"))
    }

    /// Locks a disk for the life of a mount for writing on `mountpoint`, and reads which sessions this machine has had.
    ///
    /// # Errors
    /// `Busy`, naming the process and its mount point, where another process on this machine has the lock; `System` or `Denied`
    /// where the directory cannot be used.
    pub fn lock(root: &Path, disk: Uuid, mountpoint: &Path) -> Result<LocalState> {
        let directory = root.join(disk.to_string());
        make_private(&directory)?;
        let path = directory.join("session");
        let mut lock = match lock_file(&path)? {
            Locked::Ours(lock) => lock,
            Locked::Anothers(lock) => return Err(busy(lock, disk)),
        };
        let owner = Owner {
            pid: std::process::id(),
            mountpoint: mountpoint.to_owned(),
        };
        let text = encode(&owner)?;
        lock.set_len(0)
            .and_then(|()| lock.write_all(&text))
            .map_err(|e| failed("write", &path, e))?;
        let dead = read_sessions(&directory.join("sessions.json"));
        Ok(LocalState {
            directory,
            dead,
            lock,
        })
    }

    /// Sessions of a disk that this machine has had, whose processes are dead; none where one of them holds the lock, or nothing
    /// is remembered.
    pub fn dead_sessions_of(root: &Path, disk: Uuid) -> Vec<PastSession> {
        let directory = root.join(disk.to_string());
        let Ok(lock) = File::open(directory.join("session")) else {
            return Vec::new();
        };
        match flock(&lock, FlockOperation::NonBlockingLockShared) {
            Ok(()) => read_sessions(&directory.join("sessions.json")),
            Err(_) => Vec::new(),
        }
    }

    /// Removes what this machine has of a disk that is no more, unless one of its processes holds the lock.
    ///
    /// # Errors
    /// `System` or `Denied`.
    pub fn forget(root: &Path, disk: Uuid) -> Result<()> {
        let directory = root.join(disk.to_string());
        if !directory.is_dir() {
            return Ok(());
        }
        match lock_file(&directory.join("session"))? {
            Locked::Ours(_lock) => {
                std::fs::remove_dir_all(&directory).map_err(|e| failed("remove", &directory, e))
            }
            Locked::Anothers(_) => Ok(()),
        }
    }

    /// Sessions of this machine and user whose processes are dead, since the lock is held.
    pub fn dead_sessions(&self) -> &[PastSession] {
        &self.dead
    }

    /// Remembers a session that is about to claim the disk, beside those before it; durable when it returns.
    ///
    /// # Errors
    /// `System` or `Denied`: then nothing has changed.
    pub fn remember(&self, session: &PastSession) -> Result<()> {
        let mut sessions = self.dead.clone();
        sessions.push(session.clone());
        let surplus = sessions.len().saturating_sub(MOST_SESSIONS);
        self.write(&sessions[surplus..])
    }

    /// Forgets every session but this one: its claim stands, so theirs are history.
    ///
    /// # Errors
    /// `System` or `Denied`: then nothing has changed.
    pub fn trim(&self, session: &PastSession) -> Result<()> {
        self.write(std::slice::from_ref(session))
    }

    /// Replaces the list as a whole: a crash leaves the old one or the new one.
    fn write(&self, sessions: &[PastSession]) -> Result<()> {
        let text = encode(&sessions)?;
        replace(&self.directory, "sessions.json", &text, Survives::PowerLoss)
    }
}

/// What a file that is replaced has to survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Survives {
    /// The end of the process. After a loss of power it may be the old one, or be empty.
    Kill,
    /// A loss of power: it is durable.
    PowerLoss,
}

/// Replaces a file of a private directory as a whole: what it is to survive leaves the old one or the new one.
///
/// # Errors
/// `System` or `Denied`: then the old one is there.
pub fn replace(directory: &Path, name: &str, content: &[u8], survives: Survives) -> Result<()> {
    let path = directory.join(name);
    let beside = directory.join(format!("{name}.new"));
    let replace = || -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&beside)?;
        file.write_all(content)?;
        if survives == Survives::Kill {
            return std::fs::rename(&beside, &path);
        }
        file.sync_all()?;
        std::fs::rename(&beside, &path)?;
        File::open(directory)?.sync_all()
    };
    replace().map_err(|e| failed("write", &path, e))
}

impl Drop for LocalState {
    /// Unlocks instead of leaving that to the close: a child that is being started has the file too until its program begins, and
    /// would keep the lock that long.
    fn drop(&mut self) {
        unlock(&self.lock);
    }
}

/// A lock file, and who has the lock.
pub(crate) enum Locked {
    Ours(File),
    Anothers(File),
}

/// Locks a file, which is made where there is none, unless another process has the lock.
pub(crate) fn lock_file(path: &Path) -> Result<Locked> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|e| failed("open", path, e))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Locked::Ours(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(Locked::Anothers(file)),
        Err(e) => Err(failed("lock", path, e.into())),
    }
}

fn unlock(file: &File) {
    if let Err(error) = flock(file, FlockOperation::Unlock) {
        tracing::debug!(%error, "the lock goes with the last who has the file");
    }
}

fn encode(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| {
        Error::new(ErrorKind::System, "cannot encode the local state of a disk").with_source(e)
    })
}

/// The ids of a list; none where it is missing or not a list: it is only a memory.
fn read_sessions(path: &Path) -> Vec<PastSession> {
    let Ok(text) = std::fs::read(path) else {
        return Vec::new();
    };
    match serde_json::from_slice::<Vec<PastSession>>(&text) {
        Ok(ids) => ids,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "the list of this machine's sessions cannot be read and is begun anew");
            Vec::new()
        }
    }
}

fn busy(mut lock: File, disk: Uuid) -> Error {
    let mut text = Vec::new();
    let owner = lock
        .read_to_end(&mut text)
        .ok()
        .and_then(|_| serde_json::from_slice::<Owner>(&text).ok());
    let context = match owner {
        Some(owner) => format!(
            "disk {disk} is mounted on {} by process {} of this machine: use that mount, or end it with 'bucketdisk umount {}'",
            owner.mountpoint.display(),
            owner.pid,
            owner.mountpoint.display(),
        ),
        None => format!("disk {disk} is in use by another process of this machine"),
    };
    Error::new(ErrorKind::Busy, context)
}

/// The directory of what mounts could not commit when they ended: `/var/lib/bucketdisk` for root, else `bucketdisk` below
/// `$XDG_STATE_HOME` or `~/.local/state`. `None` where none of these is known.
pub fn rescue_directory() -> Option<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Some(PathBuf::from("/var/lib/bucketdisk"));
    }
    absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
        .map(|state| state.join("bucketdisk"))
}

/// A variable that names an absolute path.
fn absolute(name: &str) -> Option<PathBuf> {
    std::env::var_os(name)
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
}

/// Makes a directory that only its owner can enter, and refuses one that someone else could change: it belongs to him, he can write to it,
/// or it is a symbolic link.
///
/// # Errors
/// `System` or `Denied`.
pub fn make_private(directory: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|e| failed("create", directory, e))?;
    let metadata =
        std::fs::symlink_metadata(directory).map_err(|e| failed("examine", directory, e))?;
    let own = rustix::process::geteuid().as_raw();
    match not_private(directory, &metadata, own) {
        Some(reason) => Err(Error::new(ErrorKind::Denied, reason)),
        None => Ok(()),
    }
}

/// Why others than user `own` could change what is in a directory, and what to do about it; `None` where they cannot. It may hold a
/// journal, so nobody is told to remove it.
fn not_private(directory: &Path, found: &Metadata, own: u32) -> Option<String> {
    let (shown, owner, mode) = (directory.display(), found.uid(), found.mode() & 0o7777);
    if !found.is_dir() {
        return Some(format!(
            "{shown} is a symbolic link: give the directory that it leads to, or another one"
        ));
    }
    if owner != own {
        return Some(format!(
            "{shown} belongs to user {owner}, not to user {own}: give another directory"
        ));
    }
    (mode & 0o022 != 0).then(|| {
        format!(
            "others than its owner can write to {shown} (mode {mode:04o}): chmod go-w {shown}, or give another directory"
        )
    })
}

/// The error of a system call on a path.
pub(crate) fn failed(verb: &str, path: &Path, cause: io::Error) -> Error {
    let kind = match cause.kind() {
        io::ErrorKind::PermissionDenied => ErrorKind::Denied,
        _ => ErrorKind::System,
    };
    Error::new(kind, format!("cannot {verb} {}", path.display())).with_source(cause)
}

#[cfg(test)]
mod tests;
