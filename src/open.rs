//! The composition root: the only place that names concrete layers and stacks them.
//!
//! From the disk down: `Disk` over `VersionedStore` over `Retry` over `Limit` over `Count` over the store's client. Retries are
//! outermost, so that a request that waits to be tried again takes no place of those at work; counting is innermost, so that
//! every request that goes out is counted, retries too. The verbs call what is here and see only the traits and figures.

use std::sync::Arc;

use tracing::warn;

use crate::error::{ErrorKind, Result};
use crate::local::LocalState;
use crate::object::ObjectClient;
use crate::store::versioned;

mod cache;
mod head;
mod journal;
mod keys;
mod machine;
mod mount;
mod target;

use head::Seen;
use target::client;

pub use crate::journal::SMALLEST_BYTES as SMALLEST_JOURNAL_BYTES;
pub use crate::object::{Traffic, TrafficSnapshot};
pub use crate::store::versioned::{
    DiskInfo, DiskSpec, Holder, OnProgress, Progress, Rollback, SessionId, Superblock, TookOver,
    Unlocked,
};

pub use head::Head;
pub use keys::{
    Access, KdfWish, Keyring, Secret, Settings, add_key, change_key, key_slots, remove_key, set,
};

pub use mount::{MountSpec, Mounted, mount};
pub use target::{Reach, Target};

pub use journal::{
    Begun, CacheDirectory, JournalContent, NewJournal, Prepared, Replay, journal_content,
    journal_keys,
};

/// The superblock as of the last mount, beside the journal: for who looks after that without the bucket.
pub const SUPERBLOCK_COPY: &str = "superblock.json";

/// What is to be made.
#[derive(Debug, Clone)]
pub struct NewDisk {
    /// The disk; without its first key slot, which is asked for.
    pub spec: DiskSpec,
    /// Encrypt it.
    pub encrypt: Option<KdfWish>,
}

/// Makes a disk.
///
/// # Errors
/// `Exists`; those of the store, and of asking for a passphrase.
pub async fn create(target: &Target, new: &NewDisk, keyring: &dyn Keyring) -> Result<Unlocked> {
    let client = client(target).await?;
    if new.encrypt.is_some() {
        // Before somebody has typed a passphrase twice.
        versioned::refuse_if_there(&client).await?;
    }
    create_through(&client, new, keyring).await
}

async fn create_through(
    client: &Arc<dyn ObjectClient>,
    new: &NewDisk,
    keyring: &dyn Keyring,
) -> Result<Unlocked> {
    let mut spec = new.spec.clone();
    if let Some(wish) = new.encrypt {
        spec.encryption = Some(Arc::new(keys::wrapper(keyring, wish).await?));
    }
    versioned::create(client, &spec).await
}

/// Describes a disk, and says whether it goes on from what this machine has seen of it; of an encrypted one for which no key was given,
/// and no slot named, what can be told without.
///
/// # Errors
/// `NotFound`; those of the store, and of opening the disk.
pub async fn inspect(target: &Target, access: &Access, progress: &OnProgress) -> Result<DiskInfo> {
    let client = client(target).await?;
    let superblock = versioned::read_superblock(&client).await?;
    let closed = superblock.encryption.is_some() && !access.is_wanted(superblock.id);
    let disk = match closed {
        true => None,
        false => Some(keys::unlock(superblock.clone(), access).await?),
    };
    let pin = Seen::of(superblock.id).and_then(|seen| seen.pin());
    let (superblock, codec) = match &disk {
        None => (superblock, None),
        Some(disk) => (disk.with_label(), Some(disk.codec())),
    };
    versioned::inspect(&client, superblock, codec.as_ref(), pin, true, progress).await
}

/// Deletes a disk, and answers how many objects that were.
///
/// # Errors
/// `NotFound`; `Held` unless `even_if_held`, or a dead mount of this machine holds it; those of opening the disk, which tells who holds
/// it, unless `even_if_held`; those of the store: then some objects are left.
pub async fn delete(
    target: &Target,
    access: &Access,
    even_if_held: bool,
    progress: &OnProgress,
) -> Result<u64> {
    let client = client(target).await?;
    let superblock = match versioned::read_superblock(&client).await {
        Err(error) if !even_if_held || error.kind() == ErrorKind::NotFound => return Err(error),
        superblock => superblock.ok(),
    };
    let local = superblock
        .as_ref()
        .and_then(|superblock| Some((LocalState::root()?, superblock.id)));
    let past = local
        .iter()
        .flat_map(|(root, id)| LocalState::dead_sessions_of(root, *id));
    let own: Vec<SessionId> = past.map(|past| SessionId(past.session)).collect();
    let disk = match superblock {
        Some(superblock) if !even_if_held => Some(keys::unlock(superblock, access).await?),
        _ => None,
    };
    let guard = disk.map(|disk| (disk.with_label(), disk.codec()));
    let guard = guard
        .as_ref()
        .map(|(superblock, codec)| (superblock, codec));
    let deleted = versioned::delete(&client, guard, &own, progress).await?;
    if let Some((root, id)) = local
        && let Err(error) = LocalState::forget(&root, id)
    {
        warn!(error = %error.chain(), "what this machine has kept of the disk stays");
    }
    Ok(deleted)
}
