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
use crate::config::{MemoryPlan, format_size};
use crate::disk::{Disk, DiskConfig};
use crate::error::{Error, ErrorKind, Result};
use crate::local::LocalState;
use crate::object::ObjectClient;
use crate::object::{Connection, Count, Limit, Location, Patience, Retry, connect};
use crate::store::BlockStore;
use crate::store::versioned;

pub use crate::object::{Traffic, TrafficSnapshot};
pub use crate::store::versioned::{
    DiskInfo, DiskSpec, Holder, OnProgress, Progress, SessionId, Superblock, TookOver,
};

/// How long a connection may take to come about, and one answer to come: beyond it the request counts as failed and is tried again.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// A request with a larger block gets as many times [`REQUEST_TIMEOUT`] as that is larger.
const LARGE_BLOCK_BYTES: u32 = 1 << 20;
/// The least that a mounted disk's requests are tried again for.
const MOUNTED_PATIENCE: Duration = Duration::from_secs(60 * 60);

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

/// Makes a disk.
///
/// # Errors
/// `Exists`; those of the store.
pub async fn create(target: &Target, spec: &DiskSpec) -> Result<Superblock> {
    versioned::create(&client(target).await?, spec).await
}

/// Describes a disk.
///
/// # Errors
/// `NotFound`; those of the store.
pub async fn inspect(target: &Target, progress: &OnProgress) -> Result<DiskInfo> {
    versioned::inspect(&client(target).await?, true, progress).await
}

/// Deletes a disk, and answers how many objects that were.
///
/// # Errors
/// `NotFound`; `Held` unless `even_if_held`, or a dead mount of this machine holds it; those of the store: then some objects are left.
pub async fn delete(target: &Target, even_if_held: bool, progress: &OnProgress) -> Result<u64> {
    let client = client(target).await?;
    let own = match (
        versioned::read_superblock(&client).await,
        LocalState::root(),
    ) {
        (Ok(superblock), Some(root)) => LocalState::dead_sessions_of(&root, superblock.id),
        // What is wrong with it is found again, where it matters.
        _ => Vec::new(),
    };
    let own: Vec<SessionId> = own.into_iter().map(SessionId).collect();
    versioned::delete(&client, even_if_held, &own, progress).await
}

/// How a disk is to be mounted.
#[derive(Clone)]
pub struct MountSpec {
    /// Which disk.
    pub target: Target,
    /// What to make where there is no disk.
    pub create: Option<DiskSpec>,
    /// Take no writes.
    pub read_only: bool,
    /// List all blocks instead of reading the map.
    pub list_blocks: bool,
    /// Claim the disk from a session that has not released it.
    pub take_over: bool,
    /// Write even where no second writer can be kept out.
    pub unsafe_no_fencing: bool,
    /// The oldest a write becomes before it is committed.
    pub commit_interval: Duration,
    /// The most dirty data, in bytes.
    pub max_dirty_bytes: u64,
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
    /// Whether a second writer is kept out.
    pub fences: bool,
    // Locks the disk on this machine until the mount ends.
    _local: Option<LocalState>,
}

/// Mounts a disk; its tasks run on the current runtime.
///
/// # Errors
/// `NotFound` where there is no disk and none is to be made, `Usage` where a limit is too small for its block size or it is not
/// what `create` describes, `Busy` where this machine has it mounted, `Held`, and those of the store.
pub async fn mount(spec: &MountSpec) -> Result<Mounted> {
    let mut connected = Connected::new(&spec.target).await?;
    let asked = spec.target.connection.requests;
    let (superblock, created) = superblock(&connected.with_requests(asked), spec).await?;
    let block_bytes = superblock.geometry.block_bytes();
    if block_bytes > LARGE_BLOCK_BYTES && !spec.target.is_memory() {
        // Many large blocks at once take their time on a slow line.
        let mut target = spec.target.clone();
        target.connection.request_timeout = REQUEST_TIMEOUT * (block_bytes / LARGE_BLOCK_BYTES);
        connected = Connected::new(&target).await?;
    }
    let plan = MemoryPlan::divide(spec.memory_bytes, spec.max_dirty_bytes, asked, block_bytes)?;
    if plan.requests < asked {
        info!(
            requests = plan.requests,
            asked, "fewer requests at once, so that their buffers leave memory for the read cache"
        );
    }
    let session = SessionId::fresh();
    let local = match spec.read_only || spec.target.is_memory() {
        true => None,
        false => local_state(&superblock, &spec.mountpoint, session)?,
    };
    let store = versioned::mount(
        connected.with_requests(plan.requests),
        superblock.clone(),
        versioned::MountOptions {
            read_only: spec.read_only,
            list_blocks: spec.list_blocks,
            take_over: spec.take_over,
            unsafe_no_fencing: spec.unsafe_no_fencing,
            session,
            own_dead_sessions: local.as_ref().map_or_else(Vec::new, |local| {
                local
                    .dead_sessions()
                    .iter()
                    .copied()
                    .map(SessionId)
                    .collect()
            }),
            requests: plan.requests,
            sources: versioned::Sources::system(),
            progress: Arc::clone(&spec.progress),
        },
    )
    .await?;
    if let Some(Err(error)) = local.as_ref().map(|local| local.trim(session.0)) {
        warn!(error = %error.chain(), "the list of this machine's sessions is not trimmed");
    }
    let config = DiskConfig {
        commit_interval: spec.commit_interval,
        max_dirty_bytes: spec.max_dirty_bytes,
        cache_bytes: plan.cache_bytes,
    };
    let (took_over, fences) = (store.took_over().cloned(), store.fences());
    let store: Arc<dyn BlockStore> = store;
    // Until now a user has waited for an answer; from here on a file system does, which takes an error much worse than a wait.
    connected
        .patience
        .set(spec.target.patience.max(MOUNTED_PATIENCE));
    Ok(Mounted {
        disk: Disk::open(store, config, tokio::runtime::Handle::current()),
        traffic: connected.traffic,
        superblock,
        created,
        took_over,
        fences,
        _local: local,
    })
}

/// The disk's superblock, of a new disk where there is none and one is asked for; and whether it is new.
async fn superblock(
    client: &Arc<dyn ObjectClient>,
    spec: &MountSpec,
) -> Result<(Superblock, bool)> {
    let found = match (versioned::read_superblock(client).await, &spec.create) {
        (Err(error), Some(new)) if error.kind() == ErrorKind::NotFound => {
            match versioned::create(client, new).await {
                Ok(superblock) => return Ok((superblock, true)),
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
        same_size(found.geometry, asked.geometry)?;
    }
    Ok((found, false))
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

/// The lock on this machine, with the new session remembered; `None` where this machine cannot remember anything.
fn local_state(
    superblock: &Superblock,
    mountpoint: &Path,
    session: SessionId,
) -> Result<Option<LocalState>> {
    let Some(root) = LocalState::root() else {
        warn!(
            "there is no cache directory: should this daemon die, mounting again takes --take-over"
        );
        return Ok(None);
    };
    let local = LocalState::lock(&root, superblock.id, mountpoint).and_then(|local| {
        local.remember(session.0)?;
        Ok(local)
    });
    match local {
        Ok(local) => Ok(Some(local)),
        Err(error) if error.kind() == ErrorKind::Busy => Err(error),
        Err(error) => {
            warn!(
                error = %error.chain(),
                "this machine cannot remember the session: should this daemon die, mounting again takes --take-over"
            );
            Ok(None)
        }
    }
}
