//! Disks in the native layout for tests: making, mounting, opening.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bucketdisk::block::Geometry;
use bucketdisk::codec::compress::Compression;
use bucketdisk::codec::keys::{DiskKeys, MasterKey};
use bucketdisk::codec::{Codec, ObjectCodec};
use bucketdisk::disk::{Disk, DiskConfig, FlushTo};
use bucketdisk::error::Result;
use bucketdisk::object::ObjectClient;
use bucketdisk::secret::Key;
use bucketdisk::store::versioned::{
    self, DiskSpec, MountOptions, SessionId, Sources, VersionedStore,
};
use bytes::Bytes;
use uuid::Uuid;

/// Makes a disk.
pub async fn create(client: &Arc<dyn ObjectClient>, size_bytes: u64, block_bytes: u64) {
    let geometry = Geometry::new(size_bytes, block_bytes).expect("a valid geometry");
    let spec = DiskSpec {
        geometry,
        label: "test".to_owned(),
        compression: bucketdisk::codec::compress::Compression::None,
        encryption: None,
        unsafe_no_fencing: false,
    };
    versioned::create(client, &spec)
        .await
        .expect("the disk is made");
}

/// How objects are made: as the variable `BUCKETDISK_TEST_CODEC` says, `plain` (where it is not set), or a compression, or `encrypted`, or
/// both: `encrypted zstd:1`. The keys are always the same.
pub fn codec() -> Arc<dyn Codec> {
    Arc::new(CODEC.0.clone())
}

/// The keys of the journal and of [`codec`], where that encrypts. Always the same.
pub fn keys() -> Option<Arc<DiskKeys>> {
    CODEC.1.clone()
}

static CODEC: LazyLock<(ObjectCodec, Option<Arc<DiskKeys>>)> = LazyLock::new(|| {
    let asked = std::env::var("BUCKETDISK_TEST_CODEC").unwrap_or_default();
    let (mut compression, mut keys) = (Compression::None, None);
    for word in asked.split_whitespace().filter(|word| *word != "plain") {
        match word {
            "encrypted" => {
                let master = MasterKey(Key::fill(|key| key.fill(0x5e)));
                keys = Some(Arc::new(DiskKeys::derive(&master, Uuid::nil())));
            }
            other => compression = other.parse().expect("a compression"),
        }
    }
    (ObjectCodec::new(compression, keys.clone()), keys)
});

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
        codec: codec(),
        pin: None,
        accept_rollback: false,
        on_head: None,
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

/// Runs something on one thread, with a clock that goes on only when nobody has anything to do.
pub fn in_runtime<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("runtime");
    runtime.block_on(work)
}

/// Writes what the disk has to take.
pub async fn write(disk: &Disk, offset: u64, data: impl Into<Bytes>) {
    disk.write(offset, data.into()).await.expect("writes");
}

/// The whole content of a disk.
pub async fn content(disk: &Disk) -> Vec<u8> {
    let mut all = vec![0xEE; usize::try_from(disk.geometry().size_bytes()).expect("a small disk")];
    disk.read(0, &mut all).await.expect("the disk reads");
    all
}
