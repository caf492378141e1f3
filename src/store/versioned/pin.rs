//! What a machine has seen of a disk, and whether the bucket still shows it.
//!
//! A bucket cannot be asked whether what it shows is the newest that there was: one that was put back to an older copy, or has lost
//! its newest objects, is as consistent as ever. So a machine remembers the newest record that it knows to be in the log, a [`Pin`], and
//! compares (`compare`). Each record names the digest of the one before it, so that a record with the pinned digest has the
//! pinned past. Where the record itself was pruned, the claims tell: they are never pruned, and each names the one before it. On any
//! other branch of the log another session has claimed the disk, or this one again, at or before the pinned number.
//!
//! Only what is acknowledged, or was read, may be pinned; of claims only those that have turned out not to be void.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::block::Seq;
use crate::error::{Error, ErrorKind, Result};

use super::load::{FirstLook, LAG_PAUSE, TRIES};
use super::objects::Objects;
use super::record::Digest;
use super::{Superblock, keys};

/// The newest that a machine has seen of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    /// The number of the newest record.
    pub seq: Seq,
    /// Its digest.
    pub digest: Digest,
    /// The number of the newest claim that is not void, at or before that record.
    pub claim: Seq,
    /// Its digest.
    pub claim_digest: Digest,
    /// What is remembered of the superblock.
    pub superblock: SuperblockMark,
}

impl Pin {
    /// This pin, raised to whatever is newer in another one.
    #[must_use]
    pub fn raised_to(self, other: Pin) -> Pin {
        let newest = if other.seq > self.seq { other } else { self };
        Pin {
            superblock: self.superblock.raised_to(other.superblock),
            ..newest
        }
    }
}

/// What only ever goes one way in the superblock of a disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SuperblockMark {
    /// Its generation: how often it was rewritten.
    pub generation: u64,
    /// Whether it says that the disk is encrypted.
    pub encrypted: bool,
}

impl SuperblockMark {
    /// The mark of a superblock.
    pub fn of(superblock: &Superblock) -> SuperblockMark {
        SuperblockMark {
            generation: u64::from(superblock.generation),
            encrypted: superblock.encryption.is_some(),
        }
    }

    /// Whether a superblock with this mark may be the successor of what was `seen`, or that itself.
    ///
    /// # Errors
    /// In what it is older.
    pub fn follows(self, seen: SuperblockMark) -> Result<(), Rollback> {
        if seen.encrypted && !self.encrypted {
            return Err(Rollback::Decrypted);
        }
        if self.generation < seen.generation {
            return Err(Rollback::Superblock {
                seen: seen.generation,
                found: self.generation,
            });
        }
        Ok(())
    }

    /// This mark, raised to whatever is newer in another one.
    #[must_use]
    pub fn raised_to(self, other: SuperblockMark) -> SuperblockMark {
        SuperblockMark {
            generation: self.generation.max(other.generation),
            encrypted: self.encrypted || other.encrypted,
        }
    }
}

/// In what a bucket is behind, or beside, what this machine has seen of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rollback {
    /// The newest records are gone.
    #[error(
        "its log ends at record {found}, but this machine has seen record {seen}: the bucket was put back to an older copy, or its \
         newest objects were removed"
    )]
    Older {
        /// The newest record that this machine has seen.
        seen: Seq,
        /// The newest that there is.
        found: Seq,
    },
    /// The log does not have the record that this machine has seen: it went another way before that.
    #[error(
        "its log, up to record {found}, is another one than this machine has seen up to record {seen}: the bucket was put back to an \
         older copy and written to again, or another copy of it was put in its place"
    )]
    OtherBranch {
        /// The newest record that this machine has seen.
        seen: Seq,
        /// The newest that there is.
        found: Seq,
    },
    /// The superblock is an older one.
    #[error(
        "its superblock is of generation {found}, but this machine has seen generation {seen}: an older copy of {} was put back",
        keys::SUPERBLOCK
    )]
    Superblock {
        /// The generation that this machine has seen.
        seen: u64,
        /// The one that there is.
        found: u64,
    },
    /// The superblock says that the disk is not encrypted, and it was.
    #[error(
        "its superblock says that it is not encrypted, but this machine has seen it encrypted: {} was replaced",
        keys::SUPERBLOCK
    )]
    Decrypted,
}

impl Rollback {
    /// The refusal to mount, or to believe, the disk at `location`.
    pub fn refusal(&self, location: &str) -> Error {
        let text = format!(
            "{location} is not what it was: {self}; if that is meant to be, mount with --accept-rollback"
        );
        Error::new(ErrorKind::RolledBack, text)
    }
}

/// Told of each record that is known to be the newest of the log: when a disk is mounted, and whenever the mount has put one. Called
/// while the log is locked: it must not take long.
pub type OnHead = Arc<dyn Fn(&Pin) + Send + Sync>;

/// Whoever wants to know of a mount's newest record, if anybody does.
#[derive(Clone)]
pub(super) struct Listener {
    pub(super) on_head: Option<OnHead>,
    pub(super) superblock: SuperblockMark,
}

impl Listener {
    /// Tells of the newest record, and of the newest claim at or before it.
    pub(super) fn tell(&self, (seq, digest): (Seq, Digest), (claim, claim_digest): (Seq, Digest)) {
        if let Some(on_head) = &self.on_head {
            on_head(&Pin {
                seq,
                digest,
                claim,
                claim_digest,
                superblock: self.superblock,
            });
        }
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Listener({})", self.on_head.is_some())
    }
}

/// The end of a log as it was found.
#[derive(Debug, Clone, Copy)]
pub(super) struct End {
    /// The newest record, and its digest.
    pub(super) seq: Seq,
    pub(super) digest: Digest,
    /// The newest claim that is not void; 0 if there is none.
    pub(super) claim: Seq,
}

/// A first look, and in what the disk does not go on from what this machine has seen.
///
/// # Errors
/// Those of [`FirstLook::take`] and of reading the claims.
pub(super) async fn look(
    objects: &Objects,
    pin: Option<&Pin>,
) -> Result<(FirstLook, Option<Rollback>)> {
    let mut tries = 1;
    loop {
        let look = FirstLook::take(objects).await?;
        let Some(pin) = pin else {
            return Ok((look, None));
        };
        match compare(objects, pin, look.end()).await? {
            // What was seen may be there all the same: the listing may lag behind.
            Err(Rollback::Older { .. }) if tries < TRIES => {
                tries += 1;
                tokio::time::sleep(LAG_PAUSE).await;
            }
            compared => return Ok((look, compared.err())),
        }
    }
}

/// Whether a log goes on from what was seen.
///
/// # Errors
/// Within, in what it does not; else those of reading the claims: `Damaged`, and the object client's.
async fn compare(objects: &Objects, pin: &Pin, end: End) -> Result<Result<(), Rollback>> {
    let (seen, found) = (pin.seq, end.seq);
    if found < seen {
        return Ok(Err(Rollback::Older { seen, found }));
    }
    let same = match found == seen {
        true => end.digest == pin.digest,
        false => has_claim(objects, pin, end.claim).await? && has_record(objects, pin).await?,
    };
    Ok(match same {
        true => Ok(()),
        false => Err(Rollback::OtherBranch { seen, found }),
    })
}

/// Whether the pinned claim is the one that all later claims lead back to, from the newest one on.
async fn has_claim(objects: &Objects, pin: &Pin, newest: Seq) -> Result<bool> {
    let mut at = newest;
    while at > Seq(0) {
        let stored = objects.record(at).await?;
        let Some(stored) = stored.filter(|stored| stored.record.is_claim()) else {
            // Claims are never pruned.
            return Ok(false);
        };
        if at <= pin.seq {
            return Ok((at, stored.digest) == (pin.claim, pin.claim_digest));
        }
        if Some(at) == pin.seq.next() && stored.record.previous != pin.digest {
            return Ok(false);
        }
        // Always a smaller number: the format sees to it.
        at = stored.record.claim;
    }
    Ok(false)
}

/// Whether the pinned record is there, or was pruned. Its claim is known to be there.
async fn has_record(objects: &Objects, pin: &Pin) -> Result<bool> {
    match objects.record(pin.seq).await {
        // The pinned claim itself, or a void one in the place of what was pruned: no later claim leads to that.
        Ok(Some(stored)) if stored.record.is_claim() => Ok(true),
        Ok(Some(stored)) => Ok(stored.digest == pin.digest),
        Ok(None) => Ok(true),
        // Whoever can damage it could have removed it. If it is needed, reading the state says so.
        Err(error) if error.kind() == ErrorKind::Damaged => {
            tracing::warn!(
                error = error.chain(),
                "it cannot be compared with what this machine has seen"
            );
            Ok(true)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pin(seq: u32, fill: u8, generation: u64, encrypted: bool) -> Pin {
        Pin {
            seq: Seq(seq),
            digest: Digest([fill; 16]),
            claim: Seq(1),
            claim_digest: Digest([1; 16]),
            superblock: SuperblockMark {
                generation,
                encrypted,
            },
        }
    }

    #[test]
    fn a_pin_is_only_ever_raised() {
        let (low, high) = (pin(5, 5, 3, false), pin(9, 9, 2, true));
        let expected = pin(9, 9, 3, true);
        assert_eq!(low.raised_to(high), expected);
        assert_eq!(high.raised_to(low), expected);
        assert_eq!(
            high.raised_to(pin(9, 7, 0, false)),
            high,
            "what was first stays"
        );
    }

    #[test]
    fn a_superblock_that_is_older_or_no_longer_encrypted_is_told() {
        let mark = |generation, encrypted| SuperblockMark {
            generation,
            encrypted,
        };
        assert_eq!(mark(4, false).follows(mark(4, false)), Ok(()));
        assert_eq!(mark(5, true).follows(mark(4, false)), Ok(()));
        let (seen, found) = (5, 4);
        let older = Err(Rollback::Superblock { seen, found });
        assert_eq!(mark(4, true).follows(mark(5, true)), older);
        assert_eq!(
            mark(9, false).follows(mark(5, true)),
            Err(Rollback::Decrypted)
        );
    }

    #[test]
    fn a_refusal_names_the_place_the_records_and_the_remedy() {
        let (seen, found) = (Seq(9), Seq(5));
        let error = Rollback::Older { seen, found }.refusal("s3://bucket/disk");
        assert_eq!(error.kind(), ErrorKind::RolledBack);
        for part in [
            "s3://bucket/disk",
            "record 5",
            "record 9",
            "--accept-rollback",
        ] {
            assert!(error.to_string().contains(part), "{part}: {error}");
        }
    }
}
