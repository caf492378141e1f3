//! The newest that this machine has seen of a disk, in `head.json` of this user's directory for the disk, wherever journal and cache are.
//!
//! An older pin is weaker and never wrong. So the file is replaced by a rename for each record, and made durable only when a disk is
//! mounted; a mount goes on where it cannot be written; and one that does not check out (a power loss may leave it empty) is a warning and
//! counts as none: whoever has the bucket cannot damage it, and the owner is not to be locked out by his own machine. It is only
//! ever raised, under a lock, since mounts for reading write it beside the one for writing: until a rollback is accepted.
//!
//! Beside the pin is the *history*, a random id that the read cache's objects are filed under. Another past under the same numbers is
//! another history: so it is drawn anew when a rollback is accepted, and where nothing is known.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use tracing::{debug, warn};
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

use crate::error::Result;
use crate::local::{self, LocalState, Survives, failed, make_private};
use crate::store::versioned::{OnHead, Pin};

/// What the file begins with.
const FORMAT: &str = "bucketdisk head 1";
/// The file, and the one that is locked while it is replaced.
const NAME: &str = "head.json";
const LOCK: &str = "head.lock";
/// How often, and how long apart, the lock is tried: it is only ever held for an instant.
const TRIES: u32 = 100;
const PAUSE: Duration = Duration::from_millis(1);

/// What the file says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    format: String,
    disk: Uuid,
    history: Uuid,
    pin: Pin,
}

impl Head {
    /// A disk's.
    pub fn new(disk: Uuid, history: Uuid, pin: Pin) -> Head {
        Head {
            format: FORMAT.to_owned(),
            disk,
            history,
            pin,
        }
    }

    /// What a file says.
    ///
    /// # Errors
    /// It does not check out, or is of another disk.
    pub fn parse(text: &[u8], disk: Uuid) -> io::Result<Head> {
        let Sealed { head, check } = serde_json::from_slice(text)?;
        match head.is_of(disk) && check == seal(&head)? {
            true => Ok(head),
            false => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "it does not check out",
            )),
        }
    }

    /// Whether it is in this format, and of that disk.
    pub fn is_of(&self, disk: Uuid) -> bool {
        self.format == FORMAT && self.disk == disk
    }

    /// The file that says it.
    ///
    /// # Errors
    /// It cannot be put into JSON, which nothing in it gives a reason for.
    pub fn encode(&self) -> io::Result<Vec<u8>> {
        let sealed = Sealed {
            head: self.clone(),
            check: seal(self)?,
        };
        Ok(serde_json::to_vec(&sealed)?)
    }
}

/// The file: what it says, and the XXH3 of that as it is spelled here.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed {
    head: Head,
    check: String,
}

/// What this machine has seen of a disk, as it was found.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    directory: PathBuf,
    disk: Uuid,
    pin: Option<Pin>,
    history: Uuid,
    lost: Option<String>,
}

impl Seen {
    /// Looks what this user's directory has of a disk; `None` where this user has no such place.
    pub(super) fn of(disk: Uuid) -> Option<Seen> {
        LocalState::root().map(|root| Seen::in_directory(&root.join(disk.to_string()), disk))
    }

    fn in_directory(directory: &Path, disk: Uuid) -> Seen {
        let (head, lost) = match read(directory, disk) {
            Ok(head) => (head, None),
            Err(error) => {
                let path = directory.join(NAME);
                let text = format!(
                    "{} does not say what this machine has seen of the disk ({error}): whether the bucket was put back to an older \
                     copy cannot be told this time",
                    path.display()
                );
                (None, Some(text))
            }
        };
        Seen {
            directory: directory.to_owned(),
            disk,
            history: head.as_ref().map_or_else(Uuid::new_v4, |head| head.history),
            pin: head.map(|head| head.pin),
            lost,
        }
    }

    /// What to compare the bucket with; `None` where nothing is known.
    pub(super) fn pin(&self) -> Option<Pin> {
        self.pin
    }

    /// What the read cache's objects are filed under.
    pub(super) fn history(&self) -> Uuid {
        self.history
    }

    /// Why nothing is known, although something was.
    pub(super) fn lost(&self) -> Option<&str> {
        self.lost.as_deref()
    }

    /// Goes by another history from now on: what is told first takes the place of what was seen.
    pub(super) fn begin_anew(&mut self) {
        self.history = Uuid::new_v4();
    }

    /// Keeps what a mount tells. `anew`: what it tells first takes the place of what was seen.
    pub(super) fn keeper(&self, anew: bool) -> OnHead {
        let keeper = Mutex::new(Keeper {
            seen: self.clone(),
            replace: anew,
            begun: false,
            failed: false,
        });
        Arc::new(move |pin| keeper.lock().keep(pin))
    }
}

/// Writes the file for one mount.
#[derive(Debug)]
struct Keeper {
    seen: Seen,
    /// What comes next takes the place of what is there.
    replace: bool,
    /// The first pin is durable.
    begun: bool,
    failed: bool,
}

impl Keeper {
    fn keep(&mut self, pin: &Pin) {
        match self.write(pin) {
            Ok(()) => (self.replace, self.begun) = (false, true),
            Err(error) if self.failed => debug!(error = %error.chain(), "the head is not kept"),
            Err(error) => {
                self.failed = true;
                warn!(
                    error = %error.chain(),
                    "this machine cannot remember how far the disk has come: should the bucket be put back to an older copy, nobody notices"
                );
            }
        }
    }

    fn write(&self, pin: &Pin) -> Result<()> {
        let Seen {
            directory, disk, ..
        } = &self.seen;
        make_private(directory)?;
        let _lock = lock(&directory.join(LOCK))?;
        let fresh = Head::new(*disk, self.seen.history, *pin);
        let there = match self.replace {
            true => None,
            // What cannot be read is written anew.
            false => read(directory, *disk).unwrap_or_default(),
        };
        let head = match &there {
            Some(there) => Head {
                pin: there.pin.raised_to(*pin),
                ..there.clone()
            },
            None => fresh,
        };
        if there.as_ref() == Some(&head) && self.begun {
            return Ok(());
        }
        let survives = match self.begun {
            false => Survives::PowerLoss,
            true => Survives::Kill,
        };
        replace(directory, &head, survives)
    }
}

/// What the file says; `None` where there is none.
///
/// # Errors
/// It cannot be read, or does not check out.
fn read(directory: &Path, disk: Uuid) -> io::Result<Option<Head>> {
    let text = match std::fs::read(directory.join(NAME)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    Head::parse(&text, disk).map(Some)
}

fn seal(head: &Head) -> io::Result<String> {
    Ok(format!("{:016x}", xxh3_64(&serde_json::to_vec(head)?)))
}

/// Replaces the file as a whole. To be called under the lock.
fn replace(directory: &Path, head: &Head, survives: Survives) -> Result<()> {
    let encoded = head.encode();
    let text = encoded.map_err(|e| failed("write", &directory.join(NAME), e))?;
    local::replace(directory, NAME, &text, survives)
}

/// Keeps other processes from writing the file, until it is dropped.
fn lock(path: &Path) -> Result<File> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|e| failed("open", path, e))?;
    for _ in 0..TRIES {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) => std::thread::sleep(PAUSE),
            Err(e) => return Err(failed("lock", path, e.into())),
        }
    }
    Err(failed("lock", path, io::ErrorKind::WouldBlock.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::Seq;
    use crate::store::versioned::SuperblockMark;
    use crate::store::versioned::record::Digest;

    const DISK: Uuid = Uuid::from_u128(7);

    fn pin(seq: u32) -> Pin {
        Pin {
            seq: Seq(seq),
            digest: Digest([seq.to_le_bytes()[0]; 16]),
            claim: Seq(1),
            claim_digest: Digest([1; 16]),
            superblock: SuperblockMark::default(),
        }
    }

    fn seen(home: &Path) -> Seen {
        Seen::in_directory(home, DISK)
    }

    #[test]
    fn what_was_told_is_found_again_by_the_next_process() {
        let home = tempfile::tempdir().expect("directory");
        let first = seen(home.path());
        assert_eq!((first.pin(), first.lost()), (None, None));
        let keep = first.keeper(false);
        for seq in [3, 4] {
            keep(&pin(seq));
            assert_eq!(seen(home.path()).pin(), Some(pin(seq)));
        }
        assert_eq!(seen(home.path()).history(), first.history());
    }

    #[test]
    fn a_reader_and_a_writer_only_ever_raise_it() {
        let home = tempfile::tempdir().expect("directory");
        // Both have found nothing, and each would file its cache elsewhere.
        let (writer, reader) = (seen(home.path()), seen(home.path()));
        let (writes, reads) = (writer.keeper(false), reader.keeper(false));
        writes(&pin(5));
        reads(&pin(4));
        assert_eq!(seen(home.path()).pin(), Some(pin(5)));
        reads(&pin(6));
        writes(&pin(5));
        let now = seen(home.path());
        assert_eq!(now.pin(), Some(pin(6)));
        assert_eq!(now.history(), writer.history(), "of who came first");
    }

    #[test]
    fn many_processes_at_once_leave_the_highest() {
        let home = tempfile::tempdir().expect("directory");
        std::thread::scope(|scope| {
            for first in 0..4 {
                let keep = seen(home.path()).keeper(false);
                scope.spawn(move || (0..50).for_each(|n| keep(&pin(1 + first + 4 * n))));
            }
        });
        assert_eq!(seen(home.path()).pin(), Some(pin(200)));
    }

    #[test]
    fn what_is_accepted_takes_its_place_with_another_history() {
        let home = tempfile::tempdir().expect("directory");
        seen(home.path()).keeper(false)(&pin(9));
        let mut accepted = seen(home.path());
        let before = accepted.history();
        accepted.begin_anew();
        let keep = accepted.keeper(true);
        keep(&pin(5));
        let now = seen(home.path());
        assert_eq!(now.pin(), Some(pin(5)));
        assert_ne!(now.history(), before);
        // From then on it is raised again.
        keep(&pin(4));
        assert_eq!(seen(home.path()).pin(), Some(pin(5)));
    }

    #[test]
    fn a_file_that_does_not_check_out_is_told_of_and_written_anew() {
        let home = tempfile::tempdir().expect("directory");
        seen(home.path()).keeper(false)(&pin(5));
        let path = home.path().join(NAME);
        let whole = std::fs::read(&path).expect("reads");
        let mut others: Vec<Vec<u8>> = (0..whole.len()).map(|n| whole[..n].to_vec()).collect();
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            others.push(flipped);
        }
        for other in others {
            std::fs::write(&path, &other).expect("writes");
            let found = seen(home.path());
            assert!(found.pin().is_none(), "{}", String::from_utf8_lossy(&other));
            assert!(found.lost().is_some_and(|text| text.contains(NAME)));
        }
        seen(home.path()).keeper(false)(&pin(6));
        assert_eq!(seen(home.path()).pin(), Some(pin(6)));
        let other = Seen::in_directory(home.path(), Uuid::from_u128(8));
        assert!(other.pin().is_none(), "it is of another disk");
    }

    #[test]
    fn a_directory_that_cannot_be_written_keeps_nothing_and_is_no_error() {
        let home = tempfile::tempdir().expect("directory");
        let file = home.path().join("file");
        std::fs::write(&file, b"").expect("writes");
        seen(&file.join("below")).keeper(false)(&pin(5));
        assert_eq!(std::fs::read_dir(home.path()).expect("reads").count(), 1);
    }
}
