//! The composition root: the only place that names concrete layers and stacks them.
//!
//! From the disk down: `Disk` over `VersionedStore` over `Retry` over `Limit` over `Count` over the store's client. Retries are
//! outermost, so that a request that waits to be tried again takes no place of those at work; counting is innermost, so that
//! every request that goes out is counted, retries too. The verbs call what is here and see only the traits and figures.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use crate::block::Geometry;
use crate::codec::keys::DiskKeys;
use crate::config::{MemoryPlan, check_cache_size, format_size};
use crate::disk::{Disk, DiskConfig, FlushTo};
use crate::error::{Error, ErrorKind, Result};
use crate::local::{self, DirectoryLock, LocalState, PastSession};
use crate::object::ObjectClient;
use crate::object::{Connection, Count, Limit, Location, Patience, Retry, connect};
use crate::store::BlockStore;
use crate::store::versioned;

mod cache;
mod head;
mod journal;
mod keys;

pub use crate::object::{Traffic, TrafficSnapshot};
pub use crate::store::versioned::{
    DiskInfo, DiskSpec, Holder, OnProgress, Progress, Rollback, SessionId, Superblock, TookOver,
    Unlocked,
};

pub use keys::{
    Access, KdfWish, Keyring, Secret, Settings, add_key, change_key, key_slots, remove_key, set,
};

use head::Seen;
pub use journal::{
    Begun, CacheDirectory, JournalContent, NewJournal, Prepared, Replay, journal_content,
    journal_keys,
};

/// How long a connection may take to come about, and one answer to come: beyond it the request counts as failed and is tried again.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// A request with a larger block gets as many times [`REQUEST_TIMEOUT`] as that is larger.
const LARGE_BLOCK_BYTES: u32 = 1 << 20;
/// The least that a mounted disk's requests are tried again for.
const MOUNTED_PATIENCE: Duration = Duration::from_secs(60 * 60);

/// The superblock as of the last mount, beside the journal: for who looks after that without the bucket.
pub const SUPERBLOCK_COPY: &str = "superblock.json";

/// Which disk, and how its store is reached.
#[derive(Debug, Clone)]
pub struct Target {
    location: Location,
    connection: Connection,
    patience: Duration,
}

/// What may be said about reaching a store beside its URL; where it is `None` or `false`, the environment and the
/// AWS configuration files decide.
#[derive(Debug, Clone)]
pub struct Reach {
    /// The S3 service.
    pub endpoint: Option<String>,
    /// The bucket's region.
    pub region: Option<String>,
    /// The bucket's name goes into the path of requests.
    pub path_style: bool,
    /// The profile to take credentials from.
    pub profile: Option<String>,
    /// How long a request is tried again before it counts as failed.
    pub patience: Duration,
    /// The most requests at once.
    pub requests: usize,
}

impl Target {
    /// Takes a URL and a prefix below it. Contacts nobody.
    ///
    /// # Errors
    /// `Usage`.
    pub fn new(url: &str, prefix: Option<&str>, reach: Reach) -> Result<Target> {
        let location = Location::parse(url)?.with_prefix(prefix.unwrap_or_default())?;
        Ok(Target {
            location,
            connection: Connection {
                endpoint: reach.endpoint,
                region: reach.region,
                path_style: reach.path_style,
                profile: reach.profile,
                request_timeout: REQUEST_TIMEOUT,
                connect_timeout: CONNECT_TIMEOUT,
                requests: reach.requests,
            },
            patience: reach.patience,
        })
    }

    /// The URL, prefix included.
    pub fn url(&self) -> String {
        self.location.to_string()
    }

    /// Where its objects are, servers included: what two copies of one bucket differ in.
    fn source(&self) -> String {
        match self.connection.server() {
            Some(server) => format!("{} at {server}", self.location),
            None => self.location.to_string(),
        }
    }

    /// Whether the disk lives in the memory of this process, and so ends with it.
    pub fn is_memory(&self) -> bool {
        matches!(self.location, Location::Memory { .. })
    }
}

/// A client of a target's store, before its requests are limited: how many there may be is known once the block size is.
struct Connected {
    counted: Arc<Count>,
    traffic: Arc<Traffic>,
    patience: Patience,
}

impl Connected {
    async fn new(target: &Target) -> Result<Connected> {
        let cloud = connect(&target.location, &target.connection).await?;
        let traffic = Arc::new(Traffic::default());
        Ok(Connected {
            counted: Arc::new(Count::new(cloud, Arc::clone(&traffic))),
            traffic,
            patience: Patience::new(target.patience),
        })
    }

    fn with_requests(&self, requests: usize) -> Arc<dyn ObjectClient> {
        let limited = Arc::new(Limit::new(self.counted.clone(), requests));
        Arc::new(Retry::new(
            limited,
            self.patience.clone(),
            Arc::clone(&self.traffic),
            rand::random(),
        ))
    }
}

/// The client of a verb that is done in one go: its user waits no longer for one answer than for the whole.
async fn client(target: &Target) -> Result<Arc<dyn ObjectClient>> {
    let mut target = target.clone();
    let longest = &mut target.connection.request_timeout;
    *longest = target.patience.min(*longest);
    let connected = Connected::new(&target).await?;
    Ok(connected.with_requests(target.connection.requests))
}

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
/// what can be told without.
///
/// # Errors
/// `NotFound`; those of the store, and of opening the disk.
pub async fn inspect(target: &Target, access: &Access, progress: &OnProgress) -> Result<DiskInfo> {
    let client = client(target).await?;
    let superblock = versioned::read_superblock(&client).await?;
    let closed = superblock.encryption.is_some() && !access.keyring.is_given(superblock.id);
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

/// How a disk is to be mounted.
#[derive(Clone)]
pub struct MountSpec {
    /// Which disk.
    pub target: Target,
    /// What to make where there is no disk.
    pub create: Option<NewDisk>,
    /// How it is opened, if it is encrypted.
    pub access: Access,
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
/// `NotFound` where there is no disk and none is to be made, `Usage` where a limit is too small for its block size or it is not
/// what `create` describes, `Busy` where this machine has it mounted, `Held`, `RolledBack`, and those of the store.
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
    check_cache_size(spec.cache_bytes, block_bytes)?;
    let plan = MemoryPlan::divide(spec.memory_bytes, spec.max_dirty_bytes, asked, block_bytes)?;
    if plan.requests < asked {
        info!(
            requests = plan.requests,
            asked, "fewer requests at once, so that their buffers leave memory for the read cache"
        );
    }
    let session = SessionId::fresh();
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
        && let Err(error) = local::replace(&directory, SUPERBLOCK_COPY, &superblock.to_json())
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
        if asked.encrypt.is_some() && found.encryption.is_none() {
            let text = "there is a disk already, and it is not encrypted: leave out --encrypt, or choose another prefix";
            return Err(Error::new(ErrorKind::Usage, text));
        }
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

/// What this machine has seen of a disk; `None` where there is no place for that.
fn seen(superblock: &Superblock, spec: &MountSpec) -> Option<Seen> {
    if spec.target.is_memory() {
        return None;
    }
    let seen = Seen::of(superblock.id);
    if seen.is_none() {
        warn!("there is no cache directory: this machine cannot tell an older copy of the bucket");
    }
    let mut seen = seen?;
    if spec.accept_rollback {
        seen.begin_anew();
    }
    Some(seen)
}

/// What this machine knows of a disk: the lock and its sessions, the new one remembered; and the journal, if there is to be one.
///
/// # Errors
/// `Busy`; `Fenced` or `Damaged` where a journal may not be applied, or would be left behind; those of a directory that was asked for.
fn prepare(
    superblock: &Superblock,
    keys: Option<&Arc<DiskKeys>>,
    spec: &MountSpec,
    session: SessionId,
) -> Result<(Option<LocalState>, Option<Prepared>)> {
    let local = lock_locally(superblock, &spec.mountpoint)?;
    let directory = match (&spec.cache, &local) {
        // This user's directory, which cannot be used: that has been said.
        (CacheDirectory::Usual, None) => None,
        (cache, _) => cache.of(superblock),
    };
    if let Some(local) = &local
        && !spec.discard_journal
    {
        left_behind(local, directory.as_deref(), keys)?;
    }
    let prepared = match &directory {
        None => None,
        Some(directory) => {
            let look = Prepared::look(directory, superblock, keys, spec.discard_journal);
            match look {
                Ok(prepared) => Some(prepared),
                // Nobody has asked for this one, and there is none yet.
                Err(error) if may_do_without(spec, &error) => {
                    warn!(error = %error.chain(), "there is no journal: flushes wait for the bucket");
                    None
                }
                Err(error) => return Err(error),
            }
        }
    };
    if let Some(local) = &local {
        let remembered = local.remember(&PastSession {
            session: session.0,
            journal: prepared.as_ref().and(directory),
        });
        if let Err(error) = remembered {
            warn!(error = %error.chain(), "{FORGETFUL}");
        }
    }
    Ok((local, prepared))
}

/// What follows where this machine cannot remember a session.
const FORGETFUL: &str = "this machine cannot remember the session: should this daemon die, mounting again takes --take-over";

/// Whether a journal that cannot be had is only a comfort that is missing.
fn may_do_without(spec: &MountSpec, error: &Error) -> bool {
    let asked = spec.cache != CacheDirectory::Usual || spec.flush == Some(FlushTo::Journal);
    !asked && matches!(error.kind(), ErrorKind::Full | ErrorKind::Denied)
}

/// Refuses to leave what an earlier mount of this machine kept in another directory.
fn left_behind(
    local: &LocalState,
    directory: Option<&Path>,
    keys: Option<&Arc<DiskKeys>>,
) -> Result<()> {
    let others = local
        .dead_sessions()
        .iter()
        .filter_map(|past| past.journal.as_deref());
    for other in others.filter(|other| Some(*other) != directory) {
        if journal::holds_something(other, keys) {
            let shown = other.display();
            return Err(Error::new(
                ErrorKind::Fenced,
                format!(
                    "the journal in {shown} has writes of the last mount on this machine that are not in the bucket: mount with \
                     --cache-dir {shown}, or copy them with 'bucketdisk journal export {shown} FILE' and mount with --discard-journal"
                ),
            ));
        }
    }
    Ok(())
}

/// The lock on this machine; `None` where this machine cannot remember anything.
fn lock_locally(superblock: &Superblock, mountpoint: &Path) -> Result<Option<LocalState>> {
    let Some(root) = LocalState::root() else {
        warn!("there is no cache directory: {FORGETFUL}");
        return Ok(None);
    };
    match LocalState::lock(&root, superblock.id, mountpoint) {
        Ok(local) => Ok(Some(local)),
        Err(error) if error.kind() == ErrorKind::Busy => Err(error),
        Err(error) => {
            warn!(error = %error.chain(), "{FORGETFUL}");
            Ok(None)
        }
    }
}
