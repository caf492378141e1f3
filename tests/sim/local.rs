//! What a machine has that outlives its processes: the sessions that it remembers, as `bucketdisk::local` does, and, on some machines,
//! a journal on a disk of its own. Whatever that disk is asked to do, a crash at that moment may be looked at later, see `remains`.

use std::sync::Arc;

use bucketdisk::block::Geometry;
use bucketdisk::disk::Recovered;
use bucketdisk::error::{Error, Result};
use bucketdisk::journal::Found;
use bucketdisk::open::{NewJournal, Prepared};
use bucketdisk::store::versioned::{OnHead, Pin, SessionId, Superblock};
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::remains::Remains;
use super::stamp::{SECTOR, Stamps, stamps};
use super::support::local_disk::LocalDisk;
use super::support::volume::keys;
use super::world::World;

/// Small segments, so that the log goes from one to the next all the time.
const SEGMENT_BYTES: u64 = 16 << 10;
/// The most that a journal takes.
pub const JOURNAL_BYTES: u64 = 6 * SEGMENT_BYTES;

/// What a journal has written: from a sector on, these stamps.
pub type Overlay = Vec<(usize, Stamps)>;

/// See the module.
pub struct Local {
    world: Arc<World>,
    known: Arc<Mutex<Known>>,
    /// Where the journal is; `None` where the machine keeps none.
    pub disk: Option<Arc<LocalDisk>>,
}

/// What a machine knows of its sessions.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// Those that are dead, and may have claimed the disk, and the one that lives.
    pub sessions: Vec<SessionId>,
    /// The one whose writes the journal has; `None` before any has begun one.
    pub root: Option<SessionId>,
    /// The power has been cut since.
    pub power_cut: bool,
    /// The newest record that it has seen.
    pub pin: Option<Pin>,
}

impl Local {
    pub fn new(world: &Arc<World>, journal: bool) -> Local {
        let mut local = Local {
            world: Arc::clone(world),
            known: Arc::default(),
            disk: None,
        };
        if journal {
            local.put_disk_in();
        }
        local
    }

    /// A disk without anything on it.
    fn put_disk_in(&mut self) {
        let disk = LocalDisk::new(self.world.fork_seed());
        let (world, known) = (Arc::downgrade(&self.world), Arc::downgrade(&self.known));
        let of = Arc::downgrade(&disk);
        let random = Mutex::new(SmallRng::seed_from_u64(self.world.fork_seed()));
        let share = self.world.profile.local_looks;
        disk.on_call(Arc::new(move || {
            let mut random = random.lock();
            if !random.random_bool(share) {
                return;
            }
            if let (Some(world), Some(disk), Some(known)) =
                (world.upgrade(), of.upgrade(), known.upgrade())
            {
                let fork = disk.fork(random.random());
                let known = known.lock().clone();
                let mut truth = world.truth.lock();
                let remains = Remains::at(&truth, &world.bucket, fork, known);
                truth.remains.push(remains);
            }
        }));
        self.disk = Some(disk);
    }

    /// Keeps what a mount of the machine has seen.
    pub fn on_head(&self) -> OnHead {
        let (world, known) = (Arc::downgrade(&self.world), Arc::clone(&self.known));
        Arc::new(move |pin| {
            let pinned = &mut known.lock().pin;
            *pinned = Some(pinned.map_or(*pin, |before| before.raised_to(*pin)));
            if let Some(world) = world.upgrade() {
                let changes = world.bucket.changes();
                world.truth.lock().pins.push((changes, *pin));
            }
        })
    }

    pub fn known(&self) -> Known {
        self.known.lock().clone()
    }

    pub fn change(&self, change: impl FnOnce(&mut Known)) {
        change(&mut self.known.lock());
    }

    /// All of it is gone, and the machine gets another disk.
    pub fn lose(&mut self) {
        // Another one: nothing that still calls the old disk is looked at.
        self.known = Arc::default();
        if self.disk.is_some() {
            self.put_disk_in();
        }
    }
}

/// Looks for a journal as the program does, or makes one.
///
/// # Errors
/// Those of [`Prepared::look_at`].
pub fn look(
    disk: &Arc<LocalDisk>,
    superblock: &Superblock,
    id: u128,
    discard: bool,
) -> Result<Prepared> {
    let new = NewJournal {
        id,
        segment_bytes: SEGMENT_BYTES,
        keys: keys(),
    };
    Prepared::look_at(&disk.files(), superblock, new, discard)
}

/// What a journal holds that nobody has open; nothing where there is none.
///
/// # Errors
/// What is wrong with it.
pub fn held(disk: &Arc<LocalDisk>, geometry: Geometry) -> Result<Overlay, String> {
    let told = |error: Error| format!("the journal: {}", error.chain());
    let mut recovered = Recovered::new(geometry);
    if let Some(found) = Found::look(&disk.files(), keys().as_ref()).map_err(told)? {
        found
            .replay(&mut |entry| recovered.take(entry))
            .map_err(told)?;
    }
    overlay(&recovered)
}

/// What was recovered.
///
/// # Errors
/// What is in it that no write has put there.
pub fn overlay(recovered: &Recovered) -> Result<Overlay, String> {
    let each = recovered.ranges().into_iter().map(|range| {
        let mut bytes = vec![0xEE; (range.end - range.start) as usize];
        let read = recovered.read(range.start, &mut bytes);
        read.map_err(|error| format!("the journal does not read: {}", error.chain()))?;
        let first = range.start as usize;
        if !first.is_multiple_of(SECTOR) || !bytes.len().is_multiple_of(SECTOR) {
            return Err(format!(
                "the journal ends a write within a sector: {range:?}"
            ));
        }
        Ok((first / SECTOR, stamps(first / SECTOR, &bytes)?))
    });
    each.collect()
}

/// A disk with what a journal has written over it.
pub fn with(below: &Stamps, overlay: &Overlay) -> Stamps {
    let mut all = below.to_vec();
    for (first, stamps) in overlay {
        all[*first..first + stamps.len()].copy_from_slice(stamps);
    }
    all.into()
}
