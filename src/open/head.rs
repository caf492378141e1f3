//! The newest that this machine has seen of a disk, in `head.json` of this user's directory for the disk, wherever journal and cache are.
//!
//! An older pin is weaker and never wrong. So the file is replaced by a rename for each record, and made durable only when a disk is
//! mounted; a mount goes on where it cannot be written; and one that does not check out (a power loss may leave it empty) is a warning and
//! counts as none: whoever has the bucket cannot damage it, and the owner is not to be locked out by his own machine. It is only
//! ever raised, under a lock, since mounts for reading write it beside the one for writing: until a rollback is accepted.
//!
//! Beside the pin is the *history*, a random id that the read cache's objects are filed under. Another past under the same numbers is
//! another history: so it is drawn anew when a rollback is accepted, and where nothing is known.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tracing::{debug, warn};
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

use crate::error::Result;
use crate::local::{self, LocalState, Locked, Survives, failed, make_private};
use crate::store::versioned::{OnHead, Pin, SuperblockMark};

/// What the file begins with.
const FORMAT: &str = "bucketdisk head 1";
/// The file, and the one that is locked while it is replaced.
const NAME: &str = "head.json";
const LOCK: &str = "head.lock";
/// How often, and how long apart, the lock is tried: it is only ever held for an instant.
const TRIES: u32 = 100;
const PAUSE: Duration = Duration::from_millis(1);
/// What follows where the file cannot be written.
const FORGETFUL: &str = "this machine cannot remember how far the disk has come: should the bucket be put back to an older copy, nobody notices";

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

    /// Remembers a superblock that this machine has made, durably. Where nothing is known of the disk that stays so, since a pin is of the
    /// log above all; and what cannot be kept is told, as for a mount.
    pub(super) fn raise(&self, made: SuperblockMark) {
        if let Err(error) = self.try_raise(made) {
            warn!(error = %error.chain(), "{FORGETFUL}");
        }
    }

    fn try_raise(&self, made: SuperblockMark) -> Result<()> {
        if !self.directory.join(NAME).exists() {
            return Ok(());
        }
        let _lock = lock(&self.directory.join(LOCK))?;
        let Some(mut head) = read(&self.directory, self.disk).unwrap_or_default() else {
            return Ok(());
        };
        head.pin.superblock = head.pin.superblock.raised_to(made);
        replace(&self.directory, &head, Survives::PowerLoss)
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
                warn!(error = %error.chain(), "{FORGETFUL}");
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
    for _ in 0..TRIES {
        match local::lock_file(path)? {
            Locked::Ours(file) => return Ok(file),
            Locked::Anothers(_) => std::thread::sleep(PAUSE),
        }
    }
    Err(failed("lock", path, io::ErrorKind::WouldBlock.into()))
}

#[cfg(test)]
mod tests;
