//! The disk tier of the read cache, in the mount's cache directory.
//!
//! It has a lock of its own, not the journal's: a mount for reading uses the tier where it is free, and must not keep one for writing,
//! which needs the journal, from the directory. What goes wrong here is a mount without the tier.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};
use uuid::Uuid;

use super::{CacheDirectory, MountSpec, Superblock};
use crate::cache::{FileCache, FileCacheSpec, ObjectCache};
use crate::config::least_cache_bytes;
use crate::error::{ErrorKind, Result};
use crate::local::{DirectoryLock, LocalState, make_private};

/// The cache's part of the cache directory.
const FOLDER: &str = "cache";
/// What an object may be longer than its block: a header.
const HEADER_BYTES: u64 = 4096;
/// Memory for objects that wait to be written: a part of the mount's, up to a limit. It belongs to what [`crate::config::MemoryPlan`] keeps
/// for the allocator.
const QUEUE_PART: u64 = 32;
const MOST_QUEUE_BYTES: u64 = 8 << 20;
/// The most reads of the local disk at once.
const MOST_READS: usize = 16;
/// How often the tier looks whether others need its space.
const LOOK_EVERY: Duration = Duration::from_secs(60);

impl CacheDirectory {
    /// The directory for a disk; `None` where there is to be none, or this user has no place for it.
    pub(super) fn of(&self, superblock: &Superblock) -> Option<PathBuf> {
        match self {
            CacheDirectory::Usual => {
                LocalState::root().map(|root| root.join(superblock.id.to_string()))
            }
            CacheDirectory::At(path) => Some(path.clone()),
            CacheDirectory::None => None,
        }
    }
}

/// The disk tier of a mount, of the disk's past that `history` names; `None` where there is to be none, or it cannot be had.
pub(super) fn disk_tier(
    superblock: &Superblock,
    spec: &MountSpec,
    history: Option<Uuid>,
    requests: usize,
) -> Option<Arc<dyn ObjectCache>> {
    if spec.cache_bytes == 0 || spec.target.is_memory() {
        return None;
    }
    let directory = spec.cache.of(superblock)?;
    match open(&directory, superblock, spec, history, requests) {
        Ok(cache) => Some(Arc::new(cache)),
        Err(error) if error.kind() == ErrorKind::Busy => {
            info!(
                directory = %directory.display(),
                "another mount of the disk uses the read cache on the local disk: this one goes without"
            );
            None
        }
        Err(error) => {
            warn!(error = %error.chain(), "there is no read cache on the local disk");
            None
        }
    }
}

fn open(
    directory: &Path,
    superblock: &Superblock,
    spec: &MountSpec,
    history: Option<Uuid>,
    requests: usize,
) -> Result<FileCache> {
    make_private(directory)?;
    let folder = directory.join(FOLDER);
    make_private(&folder)?;
    let lock = DirectoryLock::take(&folder)?;
    let block_bytes = superblock.geometry.block_bytes();
    let queue_bytes = (spec.memory_bytes / QUEUE_PART).min(MOST_QUEUE_BYTES);
    let spec = FileCacheSpec {
        directory: folder,
        origin: format!(
            "{} {} {}",
            superblock.id,
            history.unwrap_or_default(),
            spec.target.source()
        ),
        limit_bytes: spec.cache_bytes,
        least_bytes: least_cache_bytes(block_bytes),
        object_bytes: u64::from(block_bytes) + HEADER_BYTES,
        queue_bytes: usize::try_from(queue_bytes).unwrap_or(usize::MAX),
        reads: requests.min(MOST_READS),
        look_every: LOOK_EVERY,
    };
    FileCache::open(spec, lock)
}
