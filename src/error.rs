//! The one error that crosses from room to room.
//!
//! Inside a room errors are enums of situations; at its door they become an [`Error`]: what the caller may do about it
//! ([`ErrorKind`]), one sentence that names the operation and the thing, and the cause. Nothing here decides an errno or an
//! exit code: `frontend` and `cli` do, each in one function.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

/// A boxed cause.
pub type Source = Box<dyn StdError + Send + Sync + 'static>;

/// The result of everything that crosses a room's door.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the caller may do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request itself is wrong (an option, a size, a URL): mend it and ask again.
    Usage,
    /// The bucket, disk, object or mount point is not there.
    NotFound,
    /// There is a disk (or an object) already where a new one was to be made.
    Exists,
    /// Another session holds the disk: wait for it, or take over on purpose.
    Held,
    /// This session has lost the disk to another one: it may not write any more.
    Fenced,
    /// The store knows who asks, or does not, and says no: mend credentials or permissions. Trying again does not help.
    Denied,
    /// The store did not answer, or answered that it cannot just now: trying again later may help.
    Unreachable,
    /// Stored data is not what was written: give up on that range. Never answered with zeros.
    Damaged,
    /// What a mount shows was replaced by another session since, and removed: mount again. Never answered with newer data.
    Superseded,
    /// The bucket shows an older state of the disk than this machine has seen, or one with another past: find out why, or accept it on
    /// purpose.
    RolledBack,
    /// A format, feature or ability that this build or this store does not have.
    Unsupported,
    /// No space is left in the store, or on the local disk.
    Full,
    /// The store, the disk or the mount takes no writes.
    ReadOnly,
    /// No passphrase or key file that was given opens the disk, or none was given: give one that does.
    NoKey,
    /// The thing is in use (a mount point, a lock): end that use first.
    Busy,
    /// The local machine failed (a system call, a thread, memory).
    System,
}

impl ErrorKind {
    /// Whether the same request may succeed later with nothing mended by hand.
    pub fn is_transient(self) -> bool {
        matches!(self, ErrorKind::Unreachable)
    }
}

/// An error at a room's door: kind, one sentence of context (operation and thing; lower case, no full stop), cause.
///
/// `Display` is the sentence alone; [`Error::chain`] adds the causes, and is used once, where the error leaves the program.
pub struct Error {
    kind: ErrorKind,
    context: String,
    retry_after: Option<Duration>,
    source: Option<Source>,
}

impl Error {
    /// An error without a cause.
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Error {
            kind,
            context: context.into(),
            retry_after: None,
            source: None,
        }
    }

    /// The same error with its cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Source>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The same error with the time that the store asked to be left alone for.
    #[must_use]
    pub fn with_retry_after(mut self, wait: Option<Duration>) -> Self {
        self.retry_after = wait;
        self
    }

    /// A new sentence of the same kind around this error, which becomes the cause.
    #[must_use]
    pub fn within(self, context: impl Into<String>) -> Self {
        let (kind, retry_after) = (self.kind, self.retry_after);
        Error {
            kind,
            context: context.into(),
            retry_after,
            source: Some(Box::new(self)),
        }
    }

    /// What the caller may do.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// How long the store asked to be left alone for; `None` where it did not say.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// The sentence and its causes on one line, joined by `: `; a cause that only repeats what is already said is left out.
    pub fn chain(&self) -> String {
        let mut line = self.context.clone();
        let mut cause = self.source();
        while let Some(next) = cause {
            let text = next.to_string();
            if !line.contains(&text) {
                line.push_str(": ");
                line.push_str(&text);
            }
            cause = next.source();
        }
        line.replace(['\n', '\r'], " ")
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.chain())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source
            .as_deref()
            .map(|s| s as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_names_every_cause_once_on_one_line() {
        let inner = Error::new(ErrorKind::Unreachable, "connection refused")
            .with_source(std::io::Error::other("os says\nno"));
        let outer = inner.within("cannot read disk.json");
        assert_eq!(
            outer.chain(),
            "cannot read disk.json: connection refused: os says no"
        );
        assert_eq!(outer.kind(), ErrorKind::Unreachable);
        assert_eq!(outer.to_string(), "cannot read disk.json");
    }

    #[test]
    fn a_wait_that_the_store_asked_for_survives_new_context() {
        let error = Error::new(ErrorKind::Unreachable, "slow down")
            .with_retry_after(Some(Duration::from_secs(3)))
            .within("put");
        assert_eq!(error.retry_after(), Some(Duration::from_secs(3)));
    }
}
