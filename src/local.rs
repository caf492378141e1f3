//! What this machine remembers of a disk, and the lock that keeps a second process on this machine away from it.
//!
//! A session's id is remembered *before* its claim is put, and trimmed once the mount stands. So when a daemon was killed, the
//! next mount on the same machine knows that the claim in the bucket is its own, and once it holds the lock, that the process
//! behind it is dead: it may take the disk over without being told to. Nothing here is needed for the data's sake: where the
//! directory cannot be written, a crashed session must be taken over with `--take-over`.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::{Error, ErrorKind, Result};

/// Most session ids remembered. Every failed mount adds one, every mount that succeeds leaves one.
const MOST_SESSIONS: usize = 1000;

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
        match lock_file(&directory.join("lock"))? {
            Locked::Ours(file) => Ok(DirectoryLock { file }),
            Locked::Anothers(_) => Err(Error::new(
                ErrorKind::Busy,
                format!(
                    "{} is in use by another process of this machine",
                    directory.display()
                ),
            )),
        }
    }
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
enum Locked {
    Ours(File),
    Anothers(File),
}

/// Locks a file, which is made where there is none, unless another process has the lock.
fn lock_file(path: &Path) -> Result<Locked> {
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

/// Makes a directory that only its owner can enter, and refuses one that belongs to someone else.
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
    if !metadata.is_dir() || metadata.uid() != own || metadata.mode() & 0o022 != 0 {
        return Err(Error::new(
            ErrorKind::Denied,
            format!(
                "{} is not a directory of user {own} that no one else can write to: remove it",
                directory.display()
            ),
        ));
    }
    Ok(())
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
mod tests {
    use super::*;

    const DISK: Uuid = Uuid::from_u128(7);

    fn lock(root: &Path) -> Result<LocalState> {
        LocalState::lock(root, DISK, Path::new("/mnt"))
    }

    fn fresh() -> PastSession {
        PastSession {
            session: Uuid::new_v4(),
            journal: Some(PathBuf::from("/somewhere")),
        }
    }

    #[test]
    fn a_locked_directory_is_busy() {
        let root = tempfile::tempdir().expect("directory");
        let held = DirectoryLock::take(root.path()).expect("first");
        let error = DirectoryLock::take(root.path()).expect_err("second");
        assert_eq!(error.kind(), ErrorKind::Busy);
        drop(held);
        DirectoryLock::take(root.path()).expect("after the first has ended");
    }

    #[test]
    fn a_second_process_is_refused_and_told_who_has_the_disk() {
        let root = tempfile::tempdir().expect("directory");
        let held = lock(root.path()).expect("first");
        let error = lock(root.path()).expect_err("second");
        assert_eq!(error.kind(), ErrorKind::Busy);
        let text = error.to_string();
        assert!(text.contains("on /mnt "), "{text}");
        assert!(text.contains(&std::process::id().to_string()), "{text}");
        drop(held);
        lock(root.path()).expect("after the first has ended");
    }

    #[test]
    fn the_lock_ends_with_its_owner_though_a_child_still_has_the_file() {
        let root = tempfile::tempdir().expect("directory");
        let held = lock(root.path()).expect("first");
        let _child = held.lock.try_clone().expect("the same open file");
        drop(held);
        lock(root.path()).expect("after the first has ended");
    }

    #[test]
    fn other_disks_have_locks_of_their_own() {
        let root = tempfile::tempdir().expect("directory");
        let _held = lock(root.path()).expect("first");
        LocalState::lock(root.path(), Uuid::from_u128(8), Path::new("/mnt")).expect("other disk");
    }

    #[test]
    fn all_of_a_disk_is_forgotten_unless_a_process_has_it() {
        let root = tempfile::tempdir().expect("directory");
        LocalState::forget(root.path(), DISK).expect("there is nothing");
        assert_eq!(std::fs::read_dir(root.path()).expect("reads").count(), 0);
        let held = lock(root.path()).expect("lock");
        LocalState::forget(root.path(), DISK).expect("is left alone");
        assert!(held.directory.is_dir());
        drop(held);
        LocalState::forget(root.path(), DISK).expect("forgets");
        // A mount for reading leaves no session, only what it has cached.
        let cache = root.path().join(DISK.to_string()).join("cache");
        std::fs::create_dir_all(&cache).expect("a folder");
        LocalState::forget(root.path(), DISK).expect("forgets");
        assert_eq!(std::fs::read_dir(root.path()).expect("reads").count(), 0);
    }

    #[test]
    fn sessions_are_remembered_until_a_later_one_stands() {
        let root = tempfile::tempdir().expect("directory");
        let (first, second) = (fresh(), fresh());
        lock(root.path())
            .expect("lock")
            .remember(&first)
            .expect("remember");
        let state = lock(root.path()).expect("lock");
        assert_eq!(state.dead_sessions(), std::slice::from_ref(&first));
        state.remember(&second).expect("remember");
        drop(state);
        let state = lock(root.path()).expect("lock");
        assert_eq!(state.dead_sessions(), [first, second.clone()]);
        state.trim(&second).expect("trim");
        drop(state);
        assert_eq!(lock(root.path()).expect("lock").dead_sessions(), [second]);
    }

    #[test]
    fn whoever_only_looks_sees_the_sessions_of_dead_processes_and_none_of_a_live_one() {
        let root = tempfile::tempdir().expect("directory");
        assert!(LocalState::dead_sessions_of(root.path(), DISK).is_empty());
        let session = fresh();
        let state = lock(root.path()).expect("lock");
        state.remember(&session).expect("remember");
        assert!(LocalState::dead_sessions_of(root.path(), DISK).is_empty());
        drop(state);
        assert_eq!(LocalState::dead_sessions_of(root.path(), DISK), [session]);
        lock(root.path()).expect("nothing is locked any more");
    }

    #[test]
    fn a_list_that_is_not_one_is_no_obstacle() {
        let root = tempfile::tempdir().expect("directory");
        drop(lock(root.path()).expect("lock"));
        let list = root.path().join(DISK.to_string()).join("sessions.json");
        std::fs::write(&list, b"[\"half").expect("write");
        assert!(lock(root.path()).expect("lock").dead_sessions().is_empty());
    }

    #[test]
    fn the_directory_is_private() {
        let root = tempfile::tempdir().expect("directory");
        let _state = lock(root.path()).expect("lock");
        let metadata = std::fs::metadata(root.path().join(DISK.to_string())).expect("metadata");
        assert_eq!(metadata.mode() & 0o777, 0o700);
    }
}
