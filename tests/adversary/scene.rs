//! The disks that are attacked: small, with a history that leaves objects of every kind and standing.
//!
//! Session 1 writes, writes again, discards and releases, so that there is a checkpoint; session 2 writes on, leaves a block behind that it has
//! never committed, and dies. So there are live blocks, superseded ones and garbage, a checkpoint with records before and after it,
//! claims and a release.

use std::collections::BTreeMap;
use std::sync::Arc;

use bucketdisk::block::{Block, BlockIndex, Seq};
use bucketdisk::codec::compress::Compression;
use bucketdisk::codec::keys::{DiskKeys, MasterKey};
use bucketdisk::codec::{Codec, ObjectCodec, ObjectKind, Place};
use bucketdisk::disk::Disk;
use bucketdisk::secret::Key;
use bucketdisk::store::versioned::{MountOptions, Superblock, keys};
use bytes::Bytes;
use uuid::Uuid;

use crate::support::memory::{Bucket, Change};
use crate::support::volume::{create, open, options};

pub const BLOCK: u64 = 4096;
pub const BLOCKS: u64 = 20;

/// How a disk's objects are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Plain,
    Compressed,
    Encrypted,
}

impl Way {
    pub const ALL: [Way; 3] = [Way::Plain, Way::Compressed, Way::Encrypted];

    /// The codec of a disk under a master key.
    pub fn codec(self, disk: Uuid, master: u8) -> ObjectCodec {
        let zstd = Compression::Zstd { level: 3 };
        match self {
            Way::Plain => ObjectCodec::PLAIN,
            Way::Compressed => ObjectCodec::new(zstd, None),
            Way::Encrypted => {
                let master = MasterKey(Key::fill(|key| key.fill(master)));
                let keys = DiskKeys::derive(&master, disk);
                ObjectCodec::new(zstd, Some(Arc::new(keys)))
            }
        }
    }
}

/// A disk, and what its owner knows of it.
pub struct Scene {
    pub way: Way,
    pub codec: Arc<dyn Codec>,
    pub disk: Uuid,
    pub bucket: Bucket,
    /// The content as of each record.
    pub states: BTreeMap<u32, Vec<u8>>,
    /// The newest record.
    pub head: u32,
    /// The last record of the first session.
    pub released: u32,
    /// How many changes the bucket had seen when the first session had ended.
    pub changes_released: usize,
}

/// What of a disk may differ from that of another.
#[derive(Debug, Clone)]
pub struct Made {
    pub way: Way,
    /// Fills the master key.
    pub master: u8,
    /// Tells its content from that of others.
    pub salt: u8,
    /// The superblock of another disk, to have its id.
    pub superblock: Option<Bytes>,
}

impl Made {
    pub fn new(way: Way) -> Made {
        Made {
            way,
            master: 0x5e,
            salt: 1,
            superblock: None,
        }
    }

    pub async fn build(self) -> Scene {
        let bucket = Bucket::new();
        match self.superblock {
            Some(json) => bucket.apply(Change::Put(keys::SUPERBLOCK.to_owned(), json)),
            None => create(&bucket.client(), BLOCKS * BLOCK, BLOCK).await,
        }
        let disk = superblock(&bucket).id;
        let mut scene = Scene {
            way: self.way,
            codec: Arc::new(self.way.codec(disk, self.master)),
            disk,
            bucket,
            states: BTreeMap::from([(0, vec![0; (BLOCKS * BLOCK) as usize])]),
            head: 0,
            released: 0,
            changes_released: 0,
        };
        scene.first_session(self.salt).await;
        scene.second_session(self.salt, 0).await;
        scene
    }
}

fn superblock(bucket: &Bucket) -> Superblock {
    let json = bucket.body(keys::SUPERBLOCK).expect("is there");
    Superblock::parse(&json).expect("is sound")
}

impl Scene {
    pub fn options(&self) -> MountOptions {
        let mut options = options();
        options.codec = Arc::clone(&self.codec);
        options
    }

    async fn first_session(&mut self, salt: u8) {
        let disk = self.mount().await;
        self.write(&disk, 0..12, salt).await;
        self.commit(&disk).await;
        self.write(&disk, 3..7, salt + 1).await;
        self.discard(&disk, 8..10).await;
        self.commit(&disk).await;
        disk.close().await.expect("closes");
        self.head = disk.status().store.head;
        self.keep();
        self.released = self.head;
        self.changes_released = self.bucket.changes();
    }

    /// Goes on after the first session; what is written and discarded lies so many blocks further.
    pub async fn second_session(&mut self, salt: u8, further: u64) {
        let by = |blocks: std::ops::Range<u64>| blocks.start + further..blocks.end + further;
        let disk = self.mount().await;
        self.keep();
        self.write(&disk, by(9..15), salt + 2).await;
        self.commit(&disk).await;
        self.write(&disk, by(0..2), salt + 3).await;
        self.discard(&disk, by(4..6)).await;
        self.commit(&disk).await;
        self.write(&disk, by(1..4), salt + 4).await;
        self.commit(&disk).await;
        drop(disk);
        let index = BlockIndex(16);
        let version = Seq(self.head + 1);
        let place = self.place(ObjectKind::Block, index.0, version.0);
        let object = self.codec.encode(&place, &content(index.0, salt));
        self.bucket
            .apply(Change::Put(keys::block(index, version), object));
    }

    /// The disk as the first session has left it, in a bucket of its own, where somebody else goes on.
    pub async fn fork(&self, salt: u8) -> Scene {
        let mut states = self.states.clone();
        states.retain(|record, _| *record <= self.released);
        let mut fork = Scene {
            way: self.way,
            codec: Arc::clone(&self.codec),
            disk: self.disk,
            bucket: self.bucket.cut(self.changes_released),
            states,
            head: self.released,
            released: self.released,
            changes_released: self.changes_released,
        };
        fork.second_session(salt, 2).await;
        fork
    }

    async fn mount(&mut self) -> Arc<Disk> {
        let disk = open(&self.bucket.client(), self.options(), 1 << 20).await;
        let disk = disk.expect("mounts");
        // A session begins with a record that changes nothing.
        let now = self.states[&self.head].clone();
        self.head = disk.status().store.head;
        self.states.insert(self.head, now);
        disk
    }

    /// The content is now what it was.
    fn keep(&mut self) {
        let (_, last) = self.states.last_key_value().expect("there is one");
        let last = last.clone();
        self.states.insert(self.head, last);
    }

    fn now(&mut self) -> &mut Vec<u8> {
        let last = self.states[&self.head].clone();
        self.states.entry(u32::MAX).or_insert(last)
    }

    async fn write(&mut self, disk: &Disk, blocks: std::ops::Range<u64>, salt: u8) {
        for index in blocks {
            let data = content(index, salt);
            let at = (index * BLOCK) as usize;
            self.now()[at..at + BLOCK as usize].copy_from_slice(&data);
            let written = disk.write(index * BLOCK, data.into()).await;
            written.expect("takes the write");
        }
    }

    async fn discard(&mut self, disk: &Disk, blocks: std::ops::Range<u64>) {
        let bytes = blocks.start * BLOCK..blocks.end * BLOCK;
        self.now()[bytes.start as usize..bytes.end as usize].fill(0);
        let discarded = disk.zero(bytes.start, bytes.end - bytes.start).await;
        discarded.expect("discards");
    }

    async fn commit(&mut self, disk: &Disk) {
        disk.flush().await.expect("commits");
        let now = self.states.remove(&u32::MAX).expect("was changed");
        self.head = disk.status().store.head;
        self.states.insert(self.head, now);
    }

    /// The disk as it is.
    pub fn truth(&self) -> &[u8] {
        &self.states[&self.head]
    }

    pub fn place(&self, kind: ObjectKind, index: u64, seq: u32) -> Place {
        Place {
            disk: self.disk,
            kind,
            index,
            seq: Seq(seq),
        }
    }

    /// The place that an object has by its key; `None` for the superblock.
    pub fn place_of(&self, key: &str) -> Option<Place> {
        let block =
            keys::parse_block(key).map(|(index, version)| (ObjectKind::Block, index.0, version));
        let record = || keys::parse_record(key).map(|seq| (ObjectKind::Record, 0, seq));
        let checkpoint = || keys::parse_checkpoint(key).map(|seq| (ObjectKind::Checkpoint, 0, seq));
        let (kind, index, seq) = block.or_else(record).or_else(checkpoint)?;
        Some(self.place(kind, index, seq.0))
    }

    /// All objects but the superblock: key, place, body.
    pub fn objects(&self) -> Vec<(String, Place, Bytes)> {
        let objects = self.bucket.keys().into_iter().filter_map(|key| {
            let place = self.place_of(&key)?;
            let body = self.bucket.body(&key)?;
            Some((key, place, body))
        });
        objects.collect()
    }

    /// The bucket with an object replaced behind everybody's back.
    pub fn with(&self, key: &str, body: impl Into<Bytes>) -> Bucket {
        let bucket = self.bucket.fork();
        bucket.apply(Change::Put(key.to_owned(), body.into()));
        bucket
    }

    /// The bucket without some objects.
    pub fn without<'a>(&self, keys: impl IntoIterator<Item = &'a str>) -> Bucket {
        let bucket = self.bucket.fork();
        for key in keys {
            bucket.apply(Change::Delete(key.to_owned()));
        }
        bucket
    }
}

/// The content of a block: of every second one such that it can be packed.
pub fn content(index: u64, salt: u8) -> Vec<u8> {
    let mut word = index << 8 | u64::from(salt);
    let words = (0..BLOCK / 8).map(|n| {
        if index.is_multiple_of(2) {
            return word + n / 64;
        }
        word = word
            .wrapping_mul(0x5851_f42d_4c95_7f2d)
            .wrapping_add(0x1405_7b7e_f767_814f);
        word ^ word >> 29
    });
    let bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
    assert!(Block::new(bytes.clone().into()).is_some(), "is no hole");
    bytes
}
