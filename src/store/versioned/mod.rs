//! The native layout ("versioned"): every object is written once, and one linear log makes commits atomic and fences writers.
//! The bytes are described in bucketdisk-layout(5).
//!
//! # The protocol, and why each step stands where it does
//!
//! What breaks without each step is told one by one in bucketdisk-layout(5), under WHY IN THIS ORDER. `tests/protocol.rs` is a model of
//! these files, function by function, that tries every course of events (several machines, crashes, lost answers, late requests); each
//! step is a switch there (`tests/protocol/rules.rs`), and without any one of them it finds a way to lose something. Whoever changes
//! a step here changes it there.
//!
//! *Commit n* (`commit`): every changed block is put under the version n and acknowledged; only then `log/n` is put,
//! create-if-absent. Were the record first, a crash would leave a map that names blocks that are not there. A lost answer is
//! resolved by reading `log/n` back: the same bytes mean done, other bytes mean that another session has the disk. A record in doubt is
//! put again before any other, or the session would take its own for another's. Superseded versions are deleted after the record is
//! acknowledged, and then some minutes later (`upkeep`), never before: until then they are the disk.
//!
//! A commit that cannot be completed is given up by a claim of the same session on its number: a late request of it may store a block
//! under that number at any time, and claims alone are never pruned, so that a listing can always tell. For the same reason heartbeat
//! and release wait for an unfinished commit.
//!
//! *Mount for writing* (`mount`, `load`): (1) a first look finds the highest number h and who holds the disk; (2) a claim is put at
//! h+1, create-if-absent: whoever writes with a head of h or less cannot commit any more, since its next number is taken;
//! (3) only now the state is read: newest checkpoint, then every record up to the claim. A checkpoint at or past the claim means that
//! the claim's slot had been used and pruned: the claim is void, and fences nobody. It stays where it is: it may have been true when it
//! was put, and removing it would let in whom it has fenced. A missing record means that a newer checkpoint has made it superfluous:
//! list again; (4) the checkpoints are listed once more: a newer one means that records may have been pruned, and their slots filled by
//! a late claim, while reading: back to (3). The first look does the same, so that no claim ever names a void one as the one before.
//!
//! *Checkpoint and pruning* (`upkeep`): the checkpoint is durable before any record that it covers is deleted, and is of the newest
//! acknowledged record, never of a release. A record whose commit superseded something is kept until that is deleted, or a listing would
//! bring a hole's old data back. Claims are kept for good: the claim at h+1 is what fences a writer that sleeps with head h, however
//! long. (So its look at the log after a day's sleep only saves it the upload.)
//!
//! *Reading* (`load`, `listing`): whether a missing block was superseded is looked up in the log and then among the checkpoints, so that
//! a commit which is pruned in between is seen in one of them. A listing reads the records first, since what they hide is deleted before
//! they are pruned, and looks for a change of the disk if it took as long as superseded versions are kept.
//!
//! `tests/races.rs` has what the model found.
//!
//! *What this machine has seen* (`pin`): a bucket that was put back to an older copy is consistent, and no step above notices. So a mount
//! compares the first look with the newest record that this machine has seen, before it puts a claim, and what it then reads with the
//! first look.
//!
//! Who does what: `keys` names objects; `superblock` (with its keys: `unlocked`), `record`, `checkpoint` are formats; `map` is the block map; `objects` reads and
//! writes them, `coding` the blocks among them; `replay` makes a state of records; `load` and `listing` read a state; `pin` compares it with what was
//! seen; `generations` reads and changes the superblock; `probe`, `create`, `mount`, `inspect` are the
//! operations on a disk at rest; `volume` is a mounted one, with `commit` and `upkeep`; `sources` are its time of day and randomness.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::block::Geometry;
use crate::cache::ObjectCache;
use crate::codec::Codec;
use crate::codec::compress::Compression;
use crate::codec::slots::Wrapper;
use crate::store::JournalMark;

pub mod checkpoint;
mod coding;
mod commit;
mod create;
mod generations;
mod inspect;
pub mod keys;
mod listing;
mod load;
pub mod map;
mod mount;
mod objects;
pub mod pin;
mod probe;
pub mod record;
mod replay;
mod sources;
pub mod superblock;
mod unlocked;
mod upkeep;
mod volume;

pub use create::{create, refuse_if_there};
pub use generations::{change, read_superblock};
pub use inspect::{delete, inspect};
pub use mount::mount;
pub use pin::{OnHead, Pin, Rollback, SuperblockMark};
pub use probe::fences;
pub use record::SessionId;
pub use sources::Sources;
pub use superblock::Superblock;
pub use unlocked::{Draft, Unlocked};
pub use volume::VersionedStore;

/// What `create` makes.
#[derive(Debug, Clone)]
pub struct DiskSpec {
    /// Size and block size.
    pub geometry: Geometry,
    /// A name for people; may be empty.
    pub label: String,
    /// How new blocks are compressed.
    pub compression: Compression,
    /// The first key slot of an encrypted disk; `None`: the disk is not encrypted.
    pub encryption: Option<Arc<Wrapper>>,
    /// Make the disk even where the store has no working create-if-absent.
    pub unsafe_no_fencing: bool,
}

/// What a long operation is doing, for whoever watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Reading checkpoint and log.
    ReadingMap,
    /// Listing the shards of `blocks/`, of which there are 256.
    ListingBlocks {
        /// Shards listed.
        shards: u32,
        /// Non-zero blocks found so far.
        found: u64,
    },
    /// The map is known.
    MapKnown {
        /// Non-zero blocks.
        stored: u64,
    },
    /// Deleting objects.
    Deleting {
        /// Deleted so far.
        done: u64,
        /// Found so far.
        found: u64,
    },
}

/// Receives progress; called often, from any thread, and must not block.
pub type OnProgress = Arc<dyn Fn(Progress) + Send + Sync>;

/// Who wrote to the disk last, as a mount finds it before its claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastSession {
    /// Its id; `None` where nobody has mounted the disk for writing yet.
    pub session: Option<SessionId>,
    /// It has released the disk: all that it had taken is committed.
    pub released: bool,
    /// The log is not what this machine has seen of it, which is accepted: it lacks what that session, too, may have committed.
    pub rolled_back: bool,
    /// How far a journal has gone into the log, as the last session says it; `None` where it says nothing of that.
    pub journal: Option<JournalMark>,
}

/// Says whether the disk may be claimed after that session; what it refuses with is the mount's error. May be asked several times.
pub type Admit = Arc<dyn Fn(&LastSession) -> crate::error::Result<()> + Send + Sync>;

/// How to mount.
#[derive(Clone)]
pub struct MountOptions {
    /// No claim, no writes: one fixed state.
    pub read_only: bool,
    /// Build the map from a listing of all blocks instead of checkpoint and log.
    pub list_blocks: bool,
    /// Claim the disk although another session has not released it.
    pub take_over: bool,
    /// Mount for writing even where the store has no working create-if-absent. Where it has, it is used all the same.
    pub unsafe_no_fencing: bool,
    /// The session's id; fresh for each mount.
    pub session: SessionId,
    /// Sessions known to be of this machine and dead: one that did not release is no obstacle.
    pub own_dead_sessions: Vec<SessionId>,
    /// Asked before each claim.
    pub admit: Admit,
    /// Makes objects and reads them: of the disk's keys, where it is encrypted.
    pub codec: Arc<dyn Codec>,
    /// What this machine has seen of the disk: a bucket that does not go on from there is refused. `None`: nothing.
    pub pin: Option<Pin>,
    /// Mount the disk although it does not.
    pub accept_rollback: bool,
    /// Told of what this machine has seen from now on.
    pub on_head: Option<OnHead>,
    /// Where objects of blocks are kept on this machine; `None`: nowhere.
    pub cache: Option<Arc<dyn ObjectCache>>,
    /// Most requests that the mount itself runs at once (listing), and the most blocks of a commit in flight.
    pub requests: usize,
    /// Time of day and randomness of the session.
    pub sources: Sources,
    /// Receives progress.
    pub progress: OnProgress,
}

/// What can be said of a disk without mounting it.
#[derive(Debug, Clone)]
pub struct DiskInfo {
    /// Its superblock.
    pub superblock: Superblock,
    /// Objects and bytes under the disk's prefix, superseded versions and records included; `None` unless asked for (it lists everything).
    pub stored: Option<Stored>,
    /// What only who can use the disk can tell; `None` for an encrypted disk for which there is no key.
    pub inner: Option<Inner>,
    /// In what it is behind, or beside, what this machine has seen; `None` where it is not, or nothing was seen.
    pub rollback: Option<Rollback>,
}

/// What can be said of a disk that can be used.
#[derive(Debug, Clone)]
pub struct Inner {
    /// Its label; empty if none.
    pub label: String,
    /// Blocks that are not holes.
    pub stored_blocks: u64,
    /// Number of the newest record.
    pub head: u32,
    /// Who holds the disk; `None` when it is free.
    pub holder: Option<Holder>,
}

/// Objects and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stored {
    /// How many objects.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A session that has not released the disk.
#[derive(Debug, Clone)]
pub struct Holder {
    /// Its id.
    pub session: SessionId,
    /// The machine that it said it runs on.
    pub host: String,
    /// Its process there.
    pub pid: u32,
    /// When it claimed the disk, by the store's clock.
    pub since: SystemTime,
    /// When it last wrote a record, by the store's clock.
    pub last_record: SystemTime,
}

impl Holder {
    /// Who it is, since when, and how long it has been silent `now`; for messages.
    pub fn describe(&self, now: SystemTime) -> String {
        let silent = now.duration_since(self.last_record).unwrap_or_default();
        format!(
            "{} (process {}) since {}, last heard of {} ago",
            self.host,
            self.pid,
            humantime::format_rfc3339_seconds(self.since),
            humantime::format_duration(Duration::from_secs(silent.as_secs())),
        )
    }
}

/// That a mount has claimed a disk which its last session had not released.
#[derive(Debug, Clone)]
pub struct TookOver {
    /// That session.
    pub from: Holder,
    /// It was known to be dead; else it may still live, and is fenced.
    pub was_dead: bool,
}
