//! Talking to the daemon of a mount: one Unix socket for each mount point, one request per connection, lines of JSON.
//!
//! The daemon binds the socket before it claims the disk and keeps it until it exits, so whoever can connect knows that the daemon
//! lives, and the end of the connection that asked it to unmount is the end of the process. This room carries requests and
//! answers; what they do is the [`Service`]'s business.

use std::ffi::OsStr;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_128;

use crate::error::{Error, ErrorKind, Result};

mod client;
mod server;
#[cfg(test)]
mod tests;

pub use client::Client;
pub use server::Listening;

/// The longest line that is read, in bytes.
const MAX_LINE_BYTES: u64 = 1 << 20;

/// What can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// The mount's figures: one [`Reply::Status`].
    Status,
    /// Commit, unmount, release: [`Reply::Progress`] while it lasts, then [`Reply::Done`] or [`Reply::Failed`].
    Unmount {
        /// Give up what cannot be committed because another session has taken the disk.
        #[serde(default)]
        discard: bool,
    },
    /// The byte ranges that are not committed: [`Reply::Dirty`] until all are told.
    Dirty,
    /// Make everything durable that was written so far: [`Reply::Progress`] while it lasts, then [`Reply::Flushed`] or
    /// [`Reply::Failed`].
    Flush {
        /// In the bucket, and not only in the journal.
        bucket: bool,
    },
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// The mount's figures.
    Status {
        /// For people.
        text: String,
        /// For programs.
        figures: Value,
    },
    /// How far an unmount has come.
    Progress(Progress),
    /// Byte ranges that are not committed, ascending: first byte and length of each.
    Dirty {
        /// Some of them.
        ranges: Vec<(u64, u64)>,
        /// Whether another line follows.
        more: bool,
    },
    /// Everything that was written before the request is durable.
    Flushed {
        /// It is in the bucket, not only in the journal.
        in_bucket: bool,
    },
    /// It is unmounted. The daemon exits; the connection ends when it has.
    Done(Unmounted),
    /// The request failed.
    Failed {
        /// The error's kind, in lower case with dashes: `not-found`.
        kind: String,
        /// One sentence.
        message: String,
    },
}

/// How an unmount ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Unmounted {
    /// Everything is in the bucket and the disk is released.
    Released,
    /// The mount was for reading only: there was nothing to commit or to release.
    ReadOnly,
    /// Another session had taken the disk, and what could not be committed was given up, as was asked for.
    GivenUp {
        /// How much that was.
        bytes: u64,
    },
}

/// How far an unmount has come.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Bytes that are not committed yet.
    pub dirty_bytes: u64,
    /// Blocks that the running commit still has to store.
    pub commit_blocks_left: u64,
    /// Blocks of the running commit.
    pub commit_blocks: u64,
    /// What keeps it from going on, if something does.
    pub trouble: Option<String>,
}

/// What a daemon can be asked to do.
#[async_trait]
pub trait Service: Send + Sync {
    /// The figures, for people and for programs.
    ///
    /// # Errors
    /// `System`.
    fn status(&self) -> Result<(String, Value)>;

    /// How far the commit of everything has come.
    fn progress(&self) -> Progress;

    /// The byte ranges that are not committed, ascending.
    fn dirty(&self) -> Vec<Range<u64>>;

    /// Makes everything durable that was written so far: in the bucket if `bucket` asks for it or flushes wait for it anyway, else in the
    /// journal. Answers whether all is in the bucket.
    ///
    /// # Errors
    /// Why it is not; it stays dirty.
    async fn flush(&self, bucket: bool) -> Result<bool>;

    /// Commits everything, unmounts, commits what came last and releases the disk. With `discard`, what cannot be committed
    /// because another session has taken the disk is given up.
    ///
    /// # Errors
    /// `Busy` where the mount is in use, and `Fenced` where something cannot be committed and is not to be given up: everything
    /// goes on as before. Others: what kept the data from the bucket, or the disk from being released.
    async fn unmount(&self, discard: bool) -> Result<Unmounted>;
}

/// Names of the kinds, as they go over the socket.
const KINDS: [(ErrorKind, &str); 15] = [
    (ErrorKind::Usage, "usage"),
    (ErrorKind::NotFound, "not-found"),
    (ErrorKind::Exists, "exists"),
    (ErrorKind::Held, "held"),
    (ErrorKind::Fenced, "fenced"),
    (ErrorKind::Denied, "denied"),
    (ErrorKind::Unreachable, "unreachable"),
    (ErrorKind::Damaged, "damaged"),
    (ErrorKind::Unsupported, "unsupported"),
    (ErrorKind::Full, "full"),
    (ErrorKind::ReadOnly, "read-only"),
    (ErrorKind::Busy, "busy"),
    (ErrorKind::Superseded, "superseded"),
    (ErrorKind::RolledBack, "rolled-back"),
    (ErrorKind::System, "system"),
];

/// The name of a kind of error on the socket.
fn kind_name(kind: ErrorKind) -> &'static str {
    KINDS
        .iter()
        .find(|(known, _)| *known == kind)
        .map_or("system", |(_, name)| name)
}

/// The kind of a name; `System` for one of a newer program.
fn kind_of(name: &str) -> ErrorKind {
    KINDS
        .iter()
        .find(|(_, known)| *known == name)
        .map_or(ErrorKind::System, |(kind, _)| *kind)
}

/// The directory of this user's sockets: `/run/bucketdisk` for root, else `bucketdisk` below `$XDG_RUNTIME_DIR`, else
/// `/tmp/bucketdisk-UID`.
pub fn directory() -> PathBuf {
    let user = rustix::process::geteuid();
    if user.is_root() {
        return PathBuf::from("/run/bucketdisk");
    }
    match std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from) {
        Some(runtime) if runtime.is_absolute() => runtime.join("bucketdisk"),
        _ => PathBuf::from(format!("/tmp/bucketdisk-{}", user.as_raw())),
    }
}

/// The socket of a mount point, in the form that [`mount_point`] answers. A digest: a path may be longer than a socket's name.
fn socket_path(directory: &Path, mountpoint: &Path) -> PathBuf {
    let digest = xxh3_128(mountpoint.as_os_str().as_bytes());
    directory.join(format!("{digest:032x}.sock"))
}

/// The one form of a mount point's path: absolute, without links. Works for a mount whose daemon has died, too.
///
/// # Errors
/// `NotFound` where the directory that holds it does not exist.
pub fn mount_point(path: &Path) -> Result<PathBuf> {
    if let Ok(canonical) = path.canonicalize() {
        return Ok(canonical);
    }
    let missing = |cause: std::io::Error| {
        let context = format!("there is no directory {}", path.display());
        Error::new(ErrorKind::NotFound, context).with_source(cause)
    };
    let absolute = std::path::absolute(path).map_err(missing)?;
    let name = absolute.file_name().unwrap_or(OsStr::new("/"));
    let parent = absolute.parent().unwrap_or(Path::new("/"));
    Ok(parent.canonicalize().map_err(missing)?.join(name))
}
