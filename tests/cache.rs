//! The disk tier of the read cache: what it has spares the store a request, also after a restart; and whatever happens to its files,
//! what is read is right.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use bucketdisk::block::Seq;
use bucketdisk::cache::ObjectCache;
use bucketdisk::disk::Disk;
use bucketdisk::object::ObjectClient;
use bucketdisk::store::versioned::keys;
use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use support::cache::{Call, Opened, Told, files, spec};
use support::fault::{Fault, Faulty, Weather};
use support::log::Log;
use support::memory::Bucket;
use support::volume::{content, create, open, options};

#[path = "cache/hung.rs"]
mod hung;
#[path = "cache/files.rs"]
mod of_files;
mod support;

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 24;
const SIZE: u64 = BLOCK * BLOCKS;
const DIRTY: u64 = 1 << 20;

async fn new_bucket() -> Bucket {
    let bucket = Bucket::new();
    create(&bucket.client(), SIZE, BLOCK).await;
    bucket
}

/// Every block with content of its own.
fn pattern(salt: u8) -> Vec<u8> {
    (0..SIZE)
        .map(|at| ((at / 512) as u8).wrapping_mul(3).wrapping_add(salt) | 1)
        .collect()
}

async fn open_with(bucket: &Bucket, cache: Option<Arc<dyn ObjectCache>>) -> Arc<Disk> {
    let mut with = options();
    with.cache = cache;
    open(&bucket.client(), with, DIRTY).await.expect("mounts")
}

async fn write(disk: &Disk, offset: u64, data: &[u8]) {
    let data = Bytes::copy_from_slice(data);
    disk.write(offset, data).await.expect("takes the write");
}

/// Writes the whole disk in a mount of its own. With a cache in a directory, that has all of it afterwards.
async fn fill(bucket: &Bucket, directory: Option<&Path>, data: &[u8]) {
    let opened = directory.map(|directory| Opened::new(spec(directory)));
    let disk = open_with(bucket, opened.as_ref().and_then(Opened::as_dyn)).await;
    write(&disk, 0, data).await;
    disk.close().await.expect("closes");
    drop(disk);
    if let (Some(opened), Some(directory)) = (opened, directory) {
        opened.end().await;
        assert!(read(bucket, directory).await.content == data);
    }
}

/// What a mount of its own reads with a cache in a directory.
struct Reading {
    content: Vec<u8>,
    /// Requests for blocks.
    gets: u64,
    hits: u64,
    damaged: u64,
}

/// Reads the whole disk in a mount of its own.
async fn read(bucket: &Bucket, directory: &Path) -> Reading {
    read_from(bucket, Opened::new(spec(directory))).await
}

async fn read_from(bucket: &Bucket, opened: Opened) -> Reading {
    let disk = open_with(bucket, opened.as_dyn()).await;
    let before = bucket.requests().gets;
    let content = content(&disk).await;
    let gets = bucket.requests().gets - before;
    let status = opened.cache.status();
    disk.close().await.expect("closes");
    drop(disk);
    opened.end().await;
    Reading {
        content,
        gets,
        hits: status.hits,
        damaged: status.damaged,
    }
}

#[tokio::test]
async fn what_was_read_is_there_after_a_restart_without_a_request() {
    let (bucket, home) = (new_bucket().await, tempfile::tempdir().expect("a folder"));
    fill(&bucket, None, &pattern(1)).await;
    let first = read(&bucket, home.path()).await;
    assert!(first.content == pattern(1));
    assert_eq!((first.gets, first.hits), (BLOCKS, 0));
    let second = read(&bucket, home.path()).await;
    assert!(second.content == pattern(1));
    assert_eq!((second.gets, second.hits), (0, BLOCKS));
    assert_eq!(second.damaged, 0);
}

#[tokio::test]
async fn a_commit_removes_what_it_supersedes_and_keeps_nothing_itself() {
    let (bucket, home) = (new_bucket().await, tempfile::tempdir().expect("a folder"));
    fill(&bucket, Some(home.path()), &pattern(1)).await;
    let opened = Opened::new(spec(home.path()));
    let disk = open_with(&bucket, opened.as_dyn()).await;
    let mut model = pattern(1);
    let half = model.len() / 2;
    model[..half].copy_from_slice(&pattern(2)[..half]);
    write(&disk, 0, &model[..half]).await;
    disk.zero(SIZE - BLOCK, BLOCK).await.expect("discards");
    model[(SIZE - BLOCK) as usize..].fill(0);
    disk.close().await.expect("closes");
    drop(disk);
    opened.end().await;
    assert_eq!(files(home.path()).len() as u64, BLOCKS / 2 - 1);
    let found = read(&bucket, home.path()).await;
    assert!(found.content == model);
    assert_eq!((found.gets, found.damaged), (BLOCKS / 2, 0));
    assert_eq!(read(&bucket, home.path()).await.gets, 0);
}

#[tokio::test]
async fn a_mount_for_reading_fills_the_cache_and_uses_it() {
    let (bucket, home) = (new_bucket().await, tempfile::tempdir().expect("a folder"));
    fill(&bucket, None, &pattern(1)).await;
    for gets in [BLOCKS, 0] {
        let opened = Opened::new(spec(home.path()));
        let mut reader = options();
        (reader.read_only, reader.cache) = (true, opened.as_dyn());
        let disk = open(&bucket.client(), reader, DIRTY).await.expect("mounts");
        let before = bucket.requests().gets;
        assert!(content(&disk).await == pattern(1));
        assert_eq!(bucket.requests().gets - before, gets);
        disk.close().await.expect("closes");
        drop(disk);
        opened.end().await;
    }
}

#[tokio::test]
async fn a_damaged_file_is_told_of_fetched_again_and_put_right() {
    let (bucket, home) = (new_bucket().await, tempfile::tempdir().expect("a folder"));
    fill(&bucket, Some(home.path()), &pattern(1)).await;
    let names = files(home.path());
    for (at, name) in names.iter().enumerate() {
        let mut object = fs::read(name).expect("a file");
        let middle = object.len() / 2;
        match at % 4 {
            0 => object[middle] ^= 1,
            1 => object.truncate(middle),
            2 => object.push(0),
            _ => object[5] ^= 1,
        }
        fs::write(name, object).expect("is written");
    }
    let log = Log::begin();
    let found = read(&bucket, home.path()).await;
    assert!(found.content == pattern(1));
    assert_eq!((found.gets, found.damaged, found.hits), (BLOCKS, BLOCKS, 0));
    let told = log.lines();
    assert_eq!(told.len() as u64, BLOCKS, "{told:?}");
    assert!(
        told.iter().all(|line| line.contains("does not check out")),
        "{told:?}"
    );
    drop(log);
    let again = read(&bucket, home.path()).await;
    assert!(again.content == pattern(1));
    assert_eq!((again.gets, again.damaged), (0, 0));
}

/// After a power cut, a file may have its name and not its content: that is nothing to warn of.
#[tokio::test]
async fn an_empty_file_is_a_miss() {
    let (bucket, home) = (new_bucket().await, tempfile::tempdir().expect("a folder"));
    fill(&bucket, Some(home.path()), &pattern(1)).await;
    for name in files(home.path()) {
        fs::write(name, b"").expect("is written");
    }
    let log = Log::begin();
    let found = read(&bucket, home.path()).await;
    assert!(found.content == pattern(1));
    assert_eq!((found.gets, found.damaged), (BLOCKS, 0));
    assert_eq!(log.lines(), [""; 0]);
    assert_eq!(read(&bucket, home.path()).await.gets, 0);
}

#[tokio::test]
async fn files_under_each_others_names_are_not_believed() {
    let (bucket, home) = (new_bucket().await, tempfile::tempdir().expect("a folder"));
    fill(&bucket, Some(home.path()), &pattern(1)).await;
    let names = files(home.path());
    for pair in names.chunks_exact(2) {
        let (one, other) = (fs::read(&pair[0]).expect("a file"), &pair[1]);
        fs::copy(other, &pair[0]).expect("is written");
        fs::write(other, one).expect("is written");
    }
    let found = read(&bucket, home.path()).await;
    assert!(found.content == pattern(1));
    assert_eq!(found.damaged, BLOCKS);
}

#[tokio::test]
async fn an_older_version_under_the_name_of_a_newer_one_is_not_believed() {
    let (bucket, home) = (new_bucket().await, tempfile::tempdir().expect("a folder"));
    fill(&bucket, Some(home.path()), &pattern(1)).await;
    let old: Vec<Vec<u8>> = files(home.path())
        .iter()
        .map(|name| fs::read(name).expect("a file"))
        .collect();
    fill(&bucket, Some(home.path()), &pattern(2)).await;
    for (name, object) in files(home.path()).iter().zip(old) {
        fs::write(name, object).expect("is written");
    }
    let found = read(&bucket, home.path()).await;
    assert!(found.content == pattern(2));
    assert_eq!((found.gets, found.damaged), (BLOCKS, BLOCKS));
}

#[tokio::test]
async fn another_disks_files_are_not_believed() {
    let (bucket, other) = (new_bucket().await, new_bucket().await);
    let homes = [(); 2].map(|()| tempfile::tempdir().expect("a folder"));
    fill(&bucket, Some(homes[0].path()), &pattern(1)).await;
    fill(&other, Some(homes[1].path()), &pattern(2)).await;
    let (own, strange) = (files(homes[0].path()), files(homes[1].path()));
    for (own, strange) in own.iter().zip(&strange) {
        assert_eq!(own.file_name(), strange.file_name());
        fs::copy(strange, own).expect("is copied");
    }
    let found = read(&bucket, homes[0].path()).await;
    assert!(found.content == pattern(1));
    assert_eq!((found.gets, found.damaged), (BLOCKS, BLOCKS));
}

/// Both have the same id, and the same numbers for other content.
#[tokio::test]
async fn a_copy_of_the_bucket_does_not_get_what_was_cached_of_the_other() {
    let (bucket, home) = (new_bucket().await, tempfile::tempdir().expect("a folder"));
    let copy = bucket.fork();
    fill(&bucket, Some(home.path()), &pattern(1)).await;
    fill(&copy, None, &pattern(2)).await;
    let elsewhere = || {
        let mut elsewhere = spec(home.path());
        elsewhere.origin = "elsewhere".to_owned();
        Opened::new(elsewhere)
    };
    let found = read_from(&copy, elsewhere()).await;
    assert!(found.content == pattern(2));
    assert_eq!((found.gets, found.damaged), (BLOCKS, 0));
    assert_eq!(read_from(&copy, elsewhere()).await.gets, 0);
    let found = read(&bucket, home.path()).await;
    assert!(found.content == pattern(1));
}

/// The numbers that the bucket had are used again, for other content.
#[tokio::test]
async fn a_bucket_that_was_put_back_to_an_older_copy_does_not_get_what_was_cached_since() {
    let (bucket, home) = (new_bucket().await, tempfile::tempdir().expect("a folder"));
    fill(&bucket, Some(home.path()), &pattern(1)).await;
    let older = bucket.fork();
    fill(&bucket, Some(home.path()), &pattern(2)).await;
    let opened = Opened::new(spec(home.path()));
    let disk = open_with(&older, opened.as_dyn()).await;
    write(&disk, 0, &pattern(3)).await;
    disk.flush().await.expect("flushes");
    assert!(content(&disk).await == pattern(3));
    disk.close().await.expect("closes");
    drop(disk);
    opened.end().await;
    assert!(read(&older, home.path()).await.content == pattern(3));
}

#[tokio::test]
async fn files_may_be_removed_at_any_time() {
    let (bucket, home) = (new_bucket().await, tempfile::tempdir().expect("a folder"));
    fill(&bucket, Some(home.path()), &pattern(1)).await;
    for name in files(home.path()).iter().step_by(2) {
        fs::remove_file(name).expect("is removed");
    }
    let found = read(&bucket, home.path()).await;
    assert!(found.content == pattern(1));
    assert_eq!((found.gets, found.damaged), (BLOCKS / 2, 0));
    fs::remove_dir_all(home.path().join("blocks")).expect("are removed");
    assert_eq!(read(&bucket, home.path()).await.gets, BLOCKS);

    // And while they are in use.
    let opened = Opened::new(spec(home.path()));
    let disk = open_with(&bucket, opened.as_dyn()).await;
    fs::remove_dir_all(home.path().join("blocks")).expect("are removed");
    assert!(content(&disk).await == pattern(1));
    assert_eq!(opened.cache.status().error, None);
    disk.close().await.expect("closes");
    drop(disk);
    opened.end().await;
    assert_eq!(read(&bucket, home.path()).await.gets, 0);
}

/// Also where the store answers less than there is, again and again.
#[tokio::test(start_paused = true)]
async fn what_is_cached_is_what_the_bucket_has_to_the_byte() {
    for seed in 0..20 {
        let bucket = new_bucket().await;
        let faulty = Faulty::over(&bucket, seed);
        let client: Arc<dyn ObjectClient> = faulty.clone();
        let told = Told::new(Box::new(|_, _| None));
        let mut with = options();
        with.cache = Some(told.clone());
        let disk = open(&client, with, DIRTY).await.expect("mounts");
        write(&disk, 0, &pattern(1)).await;
        disk.flush().await.expect("flushes");
        let puts = || {
            let calls = told.calls().into_iter();
            calls.filter_map(|call| match call {
                Call::Put(index, version, object) => Some((keys::block(index, version), object)),
                _ => None,
            })
        };
        assert_eq!(puts().count(), 0, "what is written is not put");
        let cut: fn(&mut SmallRng) -> Fault =
            |random| Fault::Truncated(random.random_range(0..5000));
        faulty.weather(Weather {
            troubles: vec![(0.4, cut)],
            ..Weather::fine()
        });
        let mut buf = vec![0; BLOCK as usize];
        for block in (0..BLOCKS).chain(0..BLOCKS) {
            // Whether it succeeds does not matter: what it has put does.
            let _ = disk.read(block * BLOCK, &mut buf).await;
        }
        assert!(puts().count() > 0, "seed {seed}");
        for (key, object) in puts() {
            assert_eq!(bucket.body(&key), Some(object), "seed {seed}: {key}");
        }
        assert!(faulty.dealt().of("truncated bodies") > 0, "seed {seed}");
    }
}

/// What a cache may come to answer, whoever has had the local disk.
#[tokio::test]
async fn over_a_cache_that_lies_the_disk_reads_what_was_written() {
    for seed in 0..30 {
        println!("seed {seed}");
        let mut random = SmallRng::seed_from_u64(seed);
        let (bucket, other) = (new_bucket().await, new_bucket().await);
        fill(&other, None, &pattern(99)).await;
        let strange: Vec<Bytes> = [&bucket, &other]
            .into_iter()
            .flat_map(|bucket| bucket.keys().into_iter().map(move |key| (bucket, key)))
            .filter_map(|(bucket, key)| bucket.body(&key))
            .collect();
        let (of, choice) = (bucket.clone(), random.random_range(0..7u64));
        let answer = Box::new(move |index: bucketdisk::block::BlockIndex, version: Seq| {
            let kind = (index.0 * 31 + u64::from(version.0) * 17 + choice) % 7;
            let object = of.body(&keys::block(index, version))?;
            let at = (index.0 as usize * 97) % object.len();
            Some(match kind {
                0 => return None,
                1 => Bytes::new(),
                2 => object.slice(..at),
                3 => {
                    let mut flipped = object.to_vec();
                    flipped[at] ^= 0x10;
                    flipped.into()
                }
                4 => strange[(index.0 as usize + choice as usize) % strange.len()].clone(),
                5 => of.body(&keys::block(index, Seq(version.0 - 1)))?,
                _ => object,
            })
        });
        let told = Told::new(answer);
        let mut model = pattern(0);
        let disk = open_with(&bucket, Some(told.clone())).await;
        write(&disk, 0, &model).await;
        for _ in 0..30 {
            let at = random.random_range(0..SIZE as usize - 9000);
            let fill: u8 = random.random_range(1..=255);
            model[at..at + 9000].fill(fill);
            write(&disk, at as u64, &[fill; 9000]).await;
            disk.flush().await.expect("flushes");
            assert!(content(&disk).await == model);
        }
        disk.close().await.expect("closes");
        let disk = open_with(&bucket, Some(told.clone())).await;
        assert!(content(&disk).await == model);
        let calls = told.calls();
        let damaged = calls.iter().filter(|c| matches!(c, Call::Damaged(..)));
        assert!(damaged.count() > 0, "the cache has lied");
    }
}
