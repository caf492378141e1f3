//! The journal of a disk on this machine: found, checked against whose it is, and gone on with once the disk is claimed.
//!
//! What a journal holds may be applied only to the state that it was written over: the newest session of the disk has to be one of those
//! that may have written to the journal, and neither the bucket nor the journal may have been put back to an older copy meanwhile. If
//! that session has released the disk, all of it is committed already. A session is remembered in the journal before its claim is put,
//! so that a crash right after the claim finds both on the same side.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::keys::unlock;
use super::{Access, SUPERBLOCK_COPY, SessionId};
use crate::block::Geometry;
use crate::codec::keys::DiskKeys;
use crate::config::format_size;
use crate::disk::{Kept, Recovered};
use crate::error::{Error, ErrorKind, Result};
use crate::journal::{Directory, Found, LocalFiles, Owner, Replayed, SEGMENT_BYTES};
use crate::local::{DirectoryLock, failed, make_private};
use crate::store::versioned::{Admit, LastSession, Superblock};
use crate::store::{BlockStore, JournalMark};

/// Where a mount keeps what is not in the bucket yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CacheDirectory {
    /// This user's directory for the disk.
    Usual,
    /// One that was asked for, as an absolute path. It has to be of this disk alone.
    At(PathBuf),
    /// Nowhere but in memory.
    None,
}

/// What was found, of a disk that is not claimed yet.
#[derive(Debug)]
pub struct Prepared {
    found: Found,
    replayed: Replayed,
    recovered: Recovered,
    /// Known once the disk's last session is.
    verdict: Arc<Mutex<Verdict>>,
    discard: bool,
    location: String,
    lock: Option<DirectoryLock>,
}

/// What a journal is made with where there is none.
#[derive(Debug, Clone)]
pub struct NewJournal {
    /// Its id, to be random.
    pub id: u128,
    /// The size of its segments.
    pub segment_bytes: u64,
    /// The keys of an encrypted disk; also those of a journal that is there.
    pub keys: Option<Arc<DiskKeys>>,
}

/// What goes on with a journal once the disk is claimed: it, what of it is not in the bucket yet, if anything, and what keeps other
/// processes away from it.
pub type Begun = (Kept, Option<Replay>, Option<DirectoryLock>);

/// What is to be done with what was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Verdict {
    /// It is not in the bucket, or not known to be, and may be applied.
    #[default]
    Apply,
    /// It is in the bucket: its session has released the disk.
    Committed,
    /// It may not be applied, and is given up on purpose.
    Discard,
}

/// What a mount found in its journal and has not committed yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replay {
    /// Where the journal is.
    pub location: PathBuf,
    /// Its records.
    pub records: u64,
    /// Bytes that they wrote.
    pub written_bytes: u64,
}

impl Prepared {
    /// Looks for the journal in a directory, which is made if need be, and makes one where there is none. Keeps other
    /// processes away from the directory.
    ///
    /// # Errors
    /// `Busy`; `Usage` where it is another disk's; `Damaged` unless it is to be discarded; `Full`, `Denied`, `System`.
    pub(super) fn look(
        directory: &Path,
        superblock: &Superblock,
        keys: Option<&Arc<DiskKeys>>,
        discard: bool,
    ) -> Result<Prepared> {
        make_private(directory)?;
        let lock = DirectoryLock::take(directory)?;
        let files: Arc<dyn LocalFiles> = Directory::new(directory);
        let new = NewJournal {
            id: rand::random(),
            segment_bytes: SEGMENT_BYTES,
            keys: keys.cloned(),
        };
        let mut prepared = Prepared::look_at(&files, superblock, new, discard)?;
        prepared.lock = Some(lock);
        Ok(prepared)
    }

    /// Looks for the journal among files that nobody else uses, and makes one where there is none.
    ///
    /// # Errors
    /// `Usage` where it is another disk's; `Damaged` unless it is to be discarded; `Full`, `Denied`, `System`.
    pub fn look_at(
        files: &Arc<dyn LocalFiles>,
        superblock: &Superblock,
        new: NewJournal,
        discard: bool,
    ) -> Result<Prepared> {
        let location = files.location();
        let owner = Owner {
            disk: superblock.id.as_u128(),
            size_bytes: superblock.geometry.size_bytes(),
        };
        let check_owner = |found: &Found| match found.owner() == owner {
            true => Ok(()),
            false => Err(Error::new(
                ErrorKind::Usage,
                format!(
                    "{location} has the journal of another disk: give this one another --cache-dir"
                ),
            )),
        };
        // By what it says itself: with this disk's keys another's looks like one that was altered, and is nothing to discard.
        if let Ok(Some(found)) = Found::look(files, None) {
            check_owner(&found)?;
        }
        let found = match Found::look(files, new.keys.as_ref()) {
            Err(error) if error.kind() == ErrorKind::Damaged && discard => {
                Found::remove(files)?;
                None
            }
            found => found.map_err(|e| advise(e, &location))?,
        };
        let mut found = match found {
            Some(found) => found,
            None => Found::create(files, owner, new.id, new.segment_bytes, new.keys.as_ref())?,
        };
        check_owner(&found)?;
        let (replayed, recovered) = match replay(&found, superblock.geometry) {
            Err(error) if error.kind() == ErrorKind::Damaged && discard => {
                (Replayed::default(), Recovered::new(superblock.geometry))
            }
            outcome => outcome.map_err(|e| advise(e, &location))?,
        };
        found.reserve()?;
        Ok(Prepared {
            found,
            replayed,
            recovered,
            verdict: Arc::default(),
            discard,
            location,
            lock: None,
        })
    }

    /// The sessions that may have written to it. Their processes are dead.
    pub fn sessions(&self) -> Vec<SessionId> {
        let sessions = self.found.sessions().iter();
        sessions
            .map(|id| SessionId(uuid::Uuid::from_u128(*id)))
            .collect()
    }

    /// Remembers the session that is about to claim the disk, and answers whether it may, given the disk's last session.
    ///
    /// # Errors
    /// `System`.
    pub fn admit(&mut self, session: SessionId) -> Result<Admit> {
        let known = self.sessions();
        let (verdict, discard) = (Arc::clone(&self.verdict), self.discard);
        let empty = self.recovered.is_empty();
        // Who may claim the disk after another session has had it is not one of those whose journal this is: should he die after
        // his claim, the next mount would take it for one that may be applied.
        if empty || !discard {
            self.found.remember(session.0.as_u128())?;
        }
        let (bytes, location) = (self.replayed.written_bytes, self.location.clone());
        let (id, end) = (self.found.id(), self.replayed.end());
        Ok(Arc::new(move |last: &LastSession| {
            let known = last.session.is_some_and(|session| known.contains(&session));
            // Whatever is in the bucket was durable in the journal first.
            let of_this = |mark: &JournalMark| mark.id.as_u128() == id;
            let is_older_copy = last.journal.filter(of_this).is_some_and(|m| m.before > end);
            let own = known && !last.rolled_back && !is_older_copy;
            *verdict.lock() = match own {
                true if last.released => Verdict::Committed,
                true => Verdict::Apply,
                false => Verdict::Discard,
            };
            if own || empty || discard {
                return Ok(());
            }
            let bytes = format_size(bytes);
            let text = if last.rolled_back {
                format!(
                    "the journal in {location} was written over a newer state than the bucket has now: {bytes} of writes in it cannot be \
                     put over an older one"
                )
            } else if known && is_older_copy {
                format!(
                    "the journal in {location} is an older copy of the one that the bucket was last written from: {bytes} of writes in it \
                     cannot be put over newer ones"
                )
            } else {
                format!(
                    "another session has had the disk since the journal in {location} was written: {bytes} of writes in it can be committed \
                     no more"
                )
            };
            Err(advise(Error::new(ErrorKind::Fenced, text), &location))
        }))
    }

    /// Goes on with it once `store` has claimed the disk for the session.
    ///
    /// # Errors
    /// `Full`, `System`. What is in the journal stays, and the next mount of this machine may apply it.
    pub async fn begin(
        self,
        store: &dyn BlockStore,
        session: SessionId,
        limit_bytes: u64,
    ) -> Result<Begun> {
        let committed = self.recovered.is_empty() || *self.verdict.lock() != Verdict::Apply;
        let begun = self.go_on(session, limit_bytes);
        if begun.is_err() && committed {
            // A claim that has been put is better released than left for the next mount to find. But a release says that all is
            // committed, so that the next mount would give up what the journal has.
            if let Err(error) = store.release().await {
                tracing::warn!(error = %error.chain(), "the disk is not released");
            }
        }
        begun
    }

    fn go_on(self, session: SessionId, limit_bytes: u64) -> Result<Begun> {
        let apply = *self.verdict.lock() == Verdict::Apply;
        let keep = Some(&self.replayed).filter(|_| apply);
        let geometry = self.recovered.geometry();
        let journal = self.found.begin(keep, session.0.as_u128(), limit_bytes)?;
        let replay = (apply && !self.recovered.is_empty()).then_some(Replay {
            location: PathBuf::from(self.location),
            records: self.replayed.records,
            written_bytes: self.replayed.written_bytes,
        });
        let found = match apply {
            true => self.recovered,
            false => Recovered::new(geometry),
        };
        Ok((Kept { journal, found }, replay, self.lock))
    }
}

/// What a journal holds, read without the bucket.
#[derive(Debug)]
pub struct JournalContent {
    /// The disk's size in bytes.
    pub size_bytes: u64,
    /// What it has written.
    pub recovered: Recovered,
    /// What is wrong with it: the content is what it holds up to there.
    pub damage: Option<Error>,
    _lock: Option<DirectoryLock>,
}

/// The keys of the journal in a directory, by the copy of the superblock that its mounts leave there; `None` where the disk is not
/// encrypted.
///
/// # Errors
/// Those of opening an encrypted disk; `Damaged` where the copy is; `Denied`, `System`.
pub async fn journal_keys(directory: &Path, access: &Access) -> Result<Option<Arc<DiskKeys>>> {
    let path = directory.join(SUPERBLOCK_COPY);
    let shown = path.display();
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        // Of a disk that was never mounted with a journal, or by a program that left no copy.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed("read", &path, e)),
    };
    let superblock = Superblock::parse(&text).map_err(|e| {
        let text = format!("{shown} is damaged: copy disk.json of the bucket there");
        Error::new(ErrorKind::Damaged, text).with_source(e)
    })?;
    if superblock.encryption.is_none() {
        return Ok(None);
    }
    match unlock(superblock, access).await {
        Ok(disk) => Ok(disk.keys().cloned()),
        Err(e) if e.kind() == ErrorKind::NoKey => Err(e.within(format!(
            "cannot open the journal by the key slots in {shown}, which are those of the last mount: if they were changed since, copy \
             disk.json of the bucket there"
        ))),
        Err(e) => Err(e),
    }
}

/// Reads the journal in a directory that no mount uses, and changes nothing: the file system may be one that takes no writes.
///
/// # Errors
/// `NotFound`, `Busy`, `Damaged` where nothing can be read, `Denied`, `System`.
pub fn journal_content(directory: &Path, keys: Option<&Arc<DiskKeys>>) -> Result<JournalContent> {
    let nothing = || {
        let text = format!("there is no journal in {}", directory.display());
        Error::new(ErrorKind::NotFound, text)
    };
    let state = directory.join("state");
    if !state
        .try_exists()
        .map_err(|e| failed("examine", &state, e))?
    {
        return Err(nothing());
    }
    let lock = DirectoryLock::share(directory)?;
    let files: Arc<dyn LocalFiles> = Directory::for_reading(directory);
    let found = Found::look(&files, keys)?.ok_or_else(nothing)?;
    let size_bytes = found.owner().size_bytes;
    // Any block size does: only the content's place matters here.
    let geometry = Geometry::new(size_bytes, u64::from(crate::block::MIN_BLOCK_BYTES))?;
    let mut recovered = Recovered::new(geometry);
    let damage = match found.replay(&mut |entry| recovered.take(entry)) {
        Ok(_) => None,
        Err(error) if error.kind() == ErrorKind::Damaged => Some(error),
        Err(error) => return Err(error),
    };
    Ok(JournalContent {
        size_bytes,
        recovered,
        damage,
        _lock: lock,
    })
}

/// Whether a directory has a journal with something in it; what cannot be read counts.
pub(super) fn holds_something(directory: &Path, keys: Option<&Arc<DiskKeys>>) -> bool {
    let files: Arc<dyn LocalFiles> = Directory::for_reading(directory);
    if !directory.join("state").exists() {
        return false;
    }
    let mut any = false;
    match Found::look(&files, keys) {
        Ok(Some(found)) => found.replay(&mut |_| any = true).is_err() || any,
        Ok(None) => false,
        Err(_) => true,
    }
}

fn replay(found: &Found, geometry: Geometry) -> Result<(Replayed, Recovered)> {
    let mut recovered = Recovered::new(geometry);
    let replayed = found.replay(&mut |entry| recovered.take(entry))?;
    Ok((replayed, recovered))
}

/// Says what can be done with a journal that may not be applied.
fn advise(error: Error, location: &str) -> Error {
    if !matches!(error.kind(), ErrorKind::Damaged | ErrorKind::Fenced) {
        return error;
    }
    let (kind, text) = (error.kind(), error.chain());
    Error::new(
        kind,
        format!(
            "{text}; it is kept: copy what it holds with 'bucketdisk journal export {location} FILE', then mount with --discard-journal"
        ),
    )
}
