//! Exit codes: the one place that makes them.

use std::fmt::Write as _;

use crate::error::ErrorKind;

/// Every kind of error, its exit code and what the code tells a script; codes are never reused for another meaning.
pub const EXIT_STATUS: [(ErrorKind, u8, &str); 16] = [
    (
        ErrorKind::System,
        1,
        "the local machine failed, or a daemon died",
    ),
    (
        ErrorKind::Usage,
        2,
        "an option, size or URL is wrong; nothing was done",
    ),
    (
        ErrorKind::NotFound,
        3,
        "no such bucket, disk, object or mount",
    ),
    (ErrorKind::Exists, 4, "there is a disk, or a file, already"),
    (ErrorKind::Held, 5, "another session holds the disk"),
    (
        ErrorKind::Fenced,
        6,
        "another session has taken the disk over",
    ),
    (
        ErrorKind::Denied,
        7,
        "the store, or the system, does not permit it",
    ),
    (ErrorKind::Unreachable, 8, "the store does not answer"),
    (ErrorKind::Damaged, 9, "stored data is damaged"),
    (
        ErrorKind::Unsupported,
        10,
        "a format, feature or ability is missing",
    ),
    (
        ErrorKind::Full,
        11,
        "no space is left in the store, or on the local disk",
    ),
    (
        ErrorKind::ReadOnly,
        12,
        "the store or the disk takes no writes",
    ),
    (ErrorKind::Busy, 13, "the mount point or the disk is in use"),
    (
        ErrorKind::Superseded,
        14,
        "another session has replaced the data and removed it",
    ),
    (
        ErrorKind::RolledBack,
        15,
        "the bucket is not the one that this machine has seen, but an older or another one",
    ),
    (
        ErrorKind::NoKey,
        16,
        "no passphrase or key file opens the disk",
    ),
];

/// The exit code of an error.
pub fn exit_code(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::Usage => 2,
        ErrorKind::NotFound => 3,
        ErrorKind::Exists => 4,
        ErrorKind::Held => 5,
        ErrorKind::Fenced => 6,
        ErrorKind::Denied => 7,
        ErrorKind::Unreachable => 8,
        ErrorKind::Damaged => 9,
        ErrorKind::Unsupported => 10,
        ErrorKind::Full => 11,
        ErrorKind::ReadOnly => 12,
        ErrorKind::Busy => 13,
        ErrorKind::Superseded => 14,
        ErrorKind::RolledBack => 15,
        ErrorKind::NoKey => 16,
        ErrorKind::System => 1,
    }
}

/// The table as `--help` shows it.
pub fn help_table() -> String {
    let mut text = String::from("Exit status:\n   0  done\n");
    for (_, code, meaning) in EXIT_STATUS {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {code:>2}  {meaning}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_agrees_with_the_code_and_has_no_code_twice() {
        for (at, (kind, code, _)) in EXIT_STATUS.iter().enumerate() {
            assert_eq!(exit_code(*kind), *code, "{kind:?}");
            assert!(
                EXIT_STATUS[..at].iter().all(|(_, other, _)| other != code),
                "{code} twice"
            );
        }
    }

    #[test]
    fn help_shows_every_code() {
        let text = help_table();
        for (_, code, meaning) in EXIT_STATUS {
            assert!(text.contains(&format!("{code:>2}  {meaning}")));
        }
    }
}
