//! Mounting: the disk opened, what this machine knows of it looked at, the store claimed, and `Disk` put on top.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use super::head::Seen;
use super::machine::{prepare, seen};
use super::target::{Connected, REQUEST_TIMEOUT};
use super::{
    Access, CacheDirectory, NewDisk, OnProgress, Replay, Rollback, SUPERBLOCK_COPY, SessionId,
    Superblock, Target, TookOver, Traffic, Unlocked, cache, create_through, keys,
};
use crate::block::Geometry;
use crate::config::{MemoryPlan, check_cache_size, format_size};
use crate::disk::{Disk, DiskConfig, FlushTo};
use crate::error::{Error, ErrorKind, Result};
use crate::local::{self, DirectoryLock, LocalState, PastSession, Survives};
use crate::object::ObjectClient;
use crate::store::{BlockStore, versioned};

/// A request with a larger block gets as many times [`REQUEST_TIMEOUT`] as that is larger.
const LARGE_BLOCK_BYTES: u32 = 1 << 20;
/// The least that a mounted disk's requests are tried again for.
const MOUNTED_PATIENCE: Duration = Duration::from_secs(60 * 60);

/// How a disk is to be mounted.
#[derive(Clone)]
pub struct MountSpec {
    /// Which disk.
    pub target: Target,
    /// What to make where there is no disk.
    pub create: Option<NewDisk>,
    /// How it is opened, if it is encrypted.
    pub access: Access,
    /// Mount none that is not.
    pub encrypted: bool,
    /// Take no writes.
    pub read_only: bool,
    /// List all blocks instead of reading the map.
    pub list_blocks: bool,
    /// Claim the disk from a session that has not released it.
    pub take_over: bool,
    /// Mount the disk although the bucket does not go on from what this machine has seen.
    pub accept_rollback: bool,
    /// Write even where no second writer can be kept out.
    pub unsafe_no_fencing: bool,
    /// The oldest a write becomes before it is committed.
    pub commit_interval: Duration,
    /// The most memory for dirty data, in bytes.
    pub max_dirty_bytes: u64,
    /// The longest a write may be uncommitted before later ones wait; `None`: for ever.
    pub max_lag: Option<Duration>,
    /// Where the journal is, and the read cache's disk tier.
    pub cache: CacheDirectory,
    /// The most that the disk tier takes, in bytes; 0: there is none.
    pub cache_bytes: u64,
    /// The most that the journal takes on the local disk, in bytes.
    pub journal_bytes: u64,
    /// Give up what a journal holds that may not be applied.
    pub discard_journal: bool,
    /// What a flush waits for; `None`: the journal where there is one.
    pub flush: Option<FlushTo>,
    /// For the read cache and the buffers of requests, in bytes.
    pub memory_bytes: u64,
    /// Where the disk is going to be seen, for whoever finds it locked; absolute.
    pub mountpoint: PathBuf,
    /// Receives progress.
    pub progress: OnProgress,
}

/// A mounted disk.
#[derive(Debug)]
pub struct Mounted {
    /// The disk.
    pub disk: Arc<Disk>,
    /// What goes to the store and comes from it.
    pub traffic: Arc<Traffic>,
    /// Its superblock.
    pub superblock: Superblock,
    /// Whether it was made just now.
    pub created: bool,
    /// From whom it was taken; `None` where it was free.
    pub took_over: Option<TookOver>,
    /// In what it does not go on from what this machine had seen, which was accepted; `None` where it does.
    pub rollback: Option<Rollback>,
    /// Why this machine does not know what it had seen; `None` where it does, or there was nothing.
    pub forgotten: Option<String>,
    /// Whether a second writer is kept out.
    pub fences: bool,
    /// What the journal of the last mount on this machine had that the bucket has not; being committed.
    pub replay: Option<Replay>,
    /// Whether there is a journal, so that a flush need not wait for the bucket.
    pub journalled: bool,
    // Lock the disk and its cache directory on this machine until the mount ends.
    _local: Option<LocalState>,
    _cache: Option<DirectoryLock>,
}

/// Mounts a disk; its tasks run on the current runtime.
///
/// # Errors
/// `NotFound` where there is no disk and none is to be made, `Usage` where a limit is too small for its block size, it is not what
/// `create` describes, or it is not encrypted and was to be, `Busy` where this machine has it mounted, `Held`, `RolledBack`, and those of the store.
pub async fn mount(spec: &MountSpec) -> Result<Mounted> {
    let mut connected = Connected::new(&spec.target).await?;
    let asked = spec.target.connection.requests;
    let (unlocked, created) = unlocked(&connected.with_requests(asked), spec).await?;
    let superblock = unlocked.superblock().clone();
    let block_bytes = superblock.geometry.block_bytes();
    if block_bytes > LARGE_BLOCK_BYTES && !spec.target.is_memory() {
        // Many large blocks at once take their time on a slow line.
        let mut target = spec.target.clone();
        target.connection.request_timeout = REQUEST_TIMEOUT * (block_bytes / LARGE_BLOCK_BYTES);
        connected = Connected::new(&target).await?;
    }
    if spec.cache != CacheDirectory::None {
        check_cache_size(spec.cache_bytes, block_bytes)?;
    }
    let plan = MemoryPlan::divide(spec.memory_bytes, spec.max_dirty_bytes, asked, block_bytes)?;
    if plan.requests < asked {
        info!(
            requests = plan.requests,
            asked, "fewer requests at once, so that their buffers leave memory for the read cache"
        );
    }
    let session = SessionId::fresh();
    if spec.target.is_memory() && spec.flush == Some(FlushTo::Journal) {
        let text = "--flush journal needs a journal, and a disk in memory has none: leave it out";
        return Err(Error::new(ErrorKind::Usage, text));
    }
    let writes = !spec.read_only && !spec.target.is_memory();
    let (local, mut prepared) = match writes {
        true => prepare(&superblock, unlocked.keys(), spec, session)?,
        false => (None, None),
    };
    let mut own_dead_sessions: Vec<SessionId> = local
        .iter()
        .flat_map(|local| local.dead_sessions())
        .map(|past| SessionId(past.session))
        .collect();
    let mut admit: versioned::Admit = Arc::new(|_| Ok(()));
    if let Some(prepared) = &mut prepared {
        own_dead_sessions.extend(prepared.sessions());
        admit = prepared.admit(session)?;
    }
    let seen = seen(&superblock, spec);
    let history = seen.as_ref().map(Seen::history);
    let cache = match spec.read_only || prepared.is_some() {
        true => cache::disk_tier(&superblock, spec, history, plan.requests),
        // Where there can be no journal, why has been said.
        false => None,
    };
    let store = versioned::mount(
        connected.with_requests(plan.requests),
        unlocked.with_label(),
        versioned::MountOptions {
            read_only: spec.read_only,
            list_blocks: spec.list_blocks,
            take_over: spec.take_over,
            unsafe_no_fencing: spec.unsafe_no_fencing,
            session,
            own_dead_sessions,
            admit,
            codec: unlocked.codec(),
            pin: seen.as_ref().and_then(Seen::pin),
            accept_rollback: spec.accept_rollback,
            on_head: seen.as_ref().map(|seen| seen.keeper(spec.accept_rollback)),
            cache,
            requests: plan.requests,
            sources: versioned::Sources::system(),
            progress: Arc::clone(&spec.progress),
        },
    )
    .await?;
    let (took_over, fences) = (store.took_over().cloned(), store.fences());
    let rollback = store.accepted();
    let store: Arc<dyn BlockStore> = store;
    let begun = match prepared {
        Some(prepared) => Some(prepared.begin(&*store, session, spec.journal_bytes).await?),
        None => None,
    };
    let (kept, replay, cache) = match begun {
        Some((kept, replay, cache)) => (Some(kept), replay, cache),
        None => (None, None, None),
    };
    if let (Some(_), Some(directory)) = (&kept, spec.cache.of(&superblock))
        && let Err(error) = local::replace(
            &directory,
            SUPERBLOCK_COPY,
            &superblock.to_json(),
            Survives::PowerLoss,
        )
    {
        warn!(error = %error.chain(), "there is no copy of the superblock beside the journal");
    }
    let past = PastSession {
        session: session.0,
        journal: kept
            .as_ref()
            .map(|kept| PathBuf::from(kept.journal.location())),
    };
    if let Some(Err(error)) = local.as_ref().map(|local| local.trim(&past)) {
        warn!(error = %error.chain(), "the list of this machine's sessions is not trimmed");
    }
    let config = DiskConfig {
        commit_interval: spec.commit_interval,
        max_dirty_bytes: spec.max_dirty_bytes,
        cache_bytes: plan.cache_bytes,
        flush: spec.flush.unwrap_or(FlushTo::Journal),
        max_lag: spec.max_lag,
    };
    // Until now a user has waited for an answer; from here on a file system does, which takes an error much worse than a wait.
    connected
        .patience
        .set(spec.target.patience.max(MOUNTED_PATIENCE));
    Ok(Mounted {
        journalled: kept.is_some(),
        disk: Disk::open(store, config, kept, tokio::runtime::Handle::current()),
        traffic: connected.traffic,
        superblock,
        created,
        took_over,
        rollback,
        forgotten: seen.and_then(|seen| seen.lost().map(str::to_owned)),
        fences,
        replay,
        _local: local,
        _cache: cache,
    })
}

/// The disk, opened: a new one where there is none and one is asked for; and whether it is new.
async fn unlocked(client: &Arc<dyn ObjectClient>, spec: &MountSpec) -> Result<(Unlocked, bool)> {
    let found = match (versioned::read_superblock(client).await, &spec.create) {
        (Err(error), Some(new)) if error.kind() == ErrorKind::NotFound => {
            match create_through(client, new, &*spec.access.keyring).await {
                Ok(unlocked) => return Ok((unlocked, true)),
                // Somebody else was faster.
                Err(error) if error.kind() == ErrorKind::Exists => {
                    versioned::read_superblock(client).await?
                }
                Err(error) => return Err(error),
            }
        }
        (found, _) => found?,
    };
    if let Some(asked) = &spec.create {
        same_size(found.geometry, asked.spec.geometry)?;
    }
    if spec.encrypted && found.encryption.is_none() {
        let text = format!(
            "disk {} at {} is not encrypted: if it was, it has been altered or replaced; else leave out --encrypt, or choose another prefix",
            found.id,
            spec.target.url()
        );
        return Err(Error::new(ErrorKind::Usage, text));
    }
    Ok((keys::unlock(found, &spec.access).await?, false))
}

/// Whoever asks for a size gets that size or no mount. Another block size does not matter to who uses the disk.
fn same_size(found: Geometry, asked: Geometry) -> Result<()> {
    if found.size_bytes() == asked.size_bytes() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Usage,
        format!(
            "there is a disk already, of {} and not of {}: leave out --create and --size, or choose another prefix",
            exact_size(found.size_bytes()),
            exact_size(asked.size_bytes()),
        ),
    ))
}

fn exact_size(bytes: u64) -> String {
    format!("{} ({bytes} bytes)", format_size(bytes))
}
