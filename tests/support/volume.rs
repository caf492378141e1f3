//! Disks in the native layout for tests: making, mounting, opening.

use std::sync::Arc;
use std::time::Duration;

use bucketdisk::block::Geometry;
use bucketdisk::disk::{Disk, DiskConfig, FlushTo};
use bucketdisk::error::Result;
use bucketdisk::object::ObjectClient;
use bucketdisk::store::versioned::{
    self, DiskSpec, MountOptions, SessionId, Sources, VersionedStore,
};

/// Makes a disk.
pub async fn create(client: &Arc<dyn ObjectClient>, size_bytes: u64, block_bytes: u64) {
    let geometry = Geometry::new(size_bytes, block_bytes).expect("a valid geometry");
    let spec = DiskSpec {
        geometry,
        label: "test".to_owned(),
        unsafe_no_fencing: false,
    };
    versioned::create(client, &spec)
        .await
        .expect("the disk is made");
}

/// Options of an ordinary mount for writing.
pub fn options() -> MountOptions {
    MountOptions {
        read_only: false,
        list_blocks: false,
        take_over: false,
        unsafe_no_fencing: false,
        session: SessionId::fresh(),
        own_dead_sessions: Vec::new(),
        admit: Arc::new(|_| Ok(())),
        cache: None,
        requests: 8,
        sources: Sources::system(),
        progress: Arc::new(|_| {}),
    }
}

/// Mounts a disk.
pub async fn mount(
    client: &Arc<dyn ObjectClient>,
    options: MountOptions,
) -> Result<Arc<VersionedStore>> {
    let superblock = versioned::read_superblock(client).await?;
    versioned::mount(Arc::clone(client), superblock, options).await
}

/// Limits that make commits frequent and the cache small.
pub fn config(max_dirty_bytes: u64) -> DiskConfig {
    DiskConfig {
        flush: FlushTo::Journal,
        max_lag: None,
        commit_interval: Duration::from_secs(30),
        max_dirty_bytes,
        cache_bytes: 64 << 10,
    }
}

/// Mounts a disk and opens it.
pub async fn open(
    client: &Arc<dyn ObjectClient>,
    options: MountOptions,
    max_dirty_bytes: u64,
) -> Result<Arc<Disk>> {
    let store = mount(client, options).await?;
    Ok(Disk::open(
        store,
        config(max_dirty_bytes),
        None,
        tokio::runtime::Handle::current(),
    ))
}

/// The whole content of a disk.
pub async fn content(disk: &Disk) -> Vec<u8> {
    let mut all = vec![0xEE; usize::try_from(disk.geometry().size_bytes()).expect("a small disk")];
    disk.read(0, &mut all).await.expect("the disk reads");
    all
}
