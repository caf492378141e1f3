//! Garbage and readers: what crashes leave behind is found and removed, only some minutes after it became superfluous, and nothing that
//! the disk needs; and a mount that reads sees its one state or an error, whatever is removed under it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bucketdisk::block::{BlockIndex, Seq};
use bucketdisk::disk::Disk;
use bucketdisk::error::ErrorKind;
use bucketdisk::object::ObjectClient;
use bucketdisk::store::BlockStore;
use bucketdisk::store::versioned::{MountOptions, keys};
use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use support::block_store_contract::{Incomplete, given};
use support::fault::{Fault, Faulty};
use support::memory::{Bucket, Change};
use support::volume::{self, content, create, open, options};
use tokio::time::sleep;

mod support;

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 48;
const DIRTY: u64 = 1 << 20;
const MINUTE: Duration = Duration::from_secs(60);

fn over() -> MountOptions {
    let mut over = options();
    over.take_over = true;
    over
}

fn reading() -> MountOptions {
    let mut reading = options();
    reading.read_only = true;
    reading
}

async fn mount(bucket: &Bucket, options: MountOptions) -> Arc<Disk> {
    open(&bucket.client(), options, DIRTY)
        .await
        .expect("mounts")
}

async fn write(disk: &Disk, offset: u64, data: &[u8]) {
    let data = Bytes::copy_from_slice(data);
    disk.write(offset, data).await.expect("takes the write");
}

fn blocks(bucket: &Bucket) -> BTreeSet<String> {
    let keys = bucket.keys().into_iter();
    keys.filter(|key| key.starts_with("blocks/")).collect()
}

/// A bucket whose last session died after it had stored the blocks of a commit, all of them, and before its record. Also that
/// blocks' keys, and what the disk holds.
async fn crashed() -> (Bucket, BTreeSet<String>, Vec<u8>) {
    let bucket = Bucket::new();
    create(&bucket.client(), BLOCKS * BLOCK, BLOCK).await;
    let disk = mount(&bucket, options()).await;
    write(&disk, 0, &[1; 10 * 4096]).await;
    disk.flush().await.expect("flushes");
    disk.close().await.expect("closes");
    let disk = mount(&bucket, options()).await;
    let held = content(&disk).await;
    let before = blocks(&bucket);
    let record = keys::record(Seq(disk.status().store.head + 1));
    write(&disk, 4 * BLOCK, &[2; 3 * 4096]).await;
    write(&disk, 30 * BLOCK, &[2; 4096]).await;
    disk.flush().await.expect("flushes");
    let landed = |change: &Change| matches!(change, Change::Put(key, _) if *key == record);
    let crash = bucket.history().iter().position(landed);
    let cut = bucket.cut(crash.expect("it committed"));
    let left: BTreeSet<String> = blocks(&cut).difference(&before).cloned().collect();
    assert_eq!(left.len(), 4);
    (cut, left, held)
}

#[tokio::test(start_paused = true)]
async fn what_a_crash_left_is_removed_some_minutes_after_the_next_mount_and_nothing_else() {
    let (bucket, left, held) = crashed().await;
    let before = blocks(&bucket);
    let disk = mount(&bucket, over()).await;
    let reader = mount(&bucket, reading()).await;
    sleep(4 * MINUTE).await;
    assert_eq!(blocks(&bucket), before, "a reader elsewhere has time");
    sleep(2 * MINUTE).await;
    let expected: BTreeSet<String> = before.difference(&left).cloned().collect();
    assert_eq!(blocks(&bucket), expected);
    assert!(content(&disk).await == held && content(&reader).await == held);
}

/// Neither a session that ends before the leftovers are due nor one that ends before it has found them all makes them stay for good.
#[tokio::test(start_paused = true)]
async fn what_a_crash_left_is_removed_in_the_end_however_short_the_next_session_was() {
    for finds_them in [true, false] {
        let (bucket, left, held) = crashed().await;
        let faulty = Faulty::new(bucket.client(), 1);
        let client: Arc<dyn ObjectClient> = faulty.clone();
        let short = open(&client, over(), DIRTY).await.expect("takes over");
        if finds_them {
            sleep(MINUTE).await;
        } else {
            // A listing takes much longer than the session.
            faulty.always(Some(Fault::Delay(Duration::from_secs(1))));
        }
        short.close().await.expect("closes");
        assert!(blocks(&bucket).is_superset(&left), "they are not due");
        // It finds them again, or what the first one noted, and is as short.
        let short = mount(&bucket, options()).await;
        sleep(MINUTE).await;
        short.close().await.expect("closes");
        assert!(blocks(&bucket).is_superset(&left), "they are not due");
        bucket.set_ahead(MINUTE);
        let next = mount(&bucket, options()).await;
        sleep(6 * MINUTE).await;
        assert!(blocks(&bucket).is_disjoint(&left), "found: {finds_them}");
        assert!(content(&next).await == held);
        next.close().await.expect("closes");

        // And that is the end of it: nobody lists all blocks after a clean session.
        let before = bucket.requests().lists;
        let last = mount(&bucket, options()).await;
        sleep(MINUTE).await;
        let lists = bucket.requests().lists - before;
        assert!(lists < 20, "{lists} listings");
        last.close().await.expect("closes");
    }
}

/// A session that gives a commit up claims the disk once more. It is still the one that went on after a crash, since its mount.
#[tokio::test(start_paused = true)]
async fn a_session_that_gave_a_commit_up_is_still_known_to_have_gone_on_after_a_crash() {
    let (bucket, left, _) = crashed().await;
    let faulty = Faulty::new(bucket.client(), 1);
    let client: Arc<dyn ObjectClient> = faulty.clone();
    let short = volume::mount(&client, over()).await.expect("takes over");
    // A listing takes much longer than the session.
    faulty.always(Some(Fault::Delay(Duration::from_secs(1))));
    let incomplete = Incomplete {
        given: given(&[(1, 7), (2, 7)], &[]),
        missing: BlockIndex(2),
    };
    let failed = short.commit(Arc::new(incomplete)).await;
    assert_eq!(failed.expect_err("fails").kind(), ErrorKind::Damaged);
    assert!(short.give_up().await.expect("gives up"));
    let held = volume::mount(&bucket.client(), options()).await;
    assert_eq!(held.expect_err("is held").kind(), ErrorKind::Held);
    short.release().await.expect("releases");
    let next = mount(&bucket, options()).await;
    sleep(6 * MINUTE).await;
    assert!(blocks(&bucket).is_disjoint(&left));
    next.close().await.expect("closes");
}

/// A crash anywhere in a session's work, many times over, leaves nothing for good: no version that the map does not name, no record
/// but claims and the tail, one checkpoint.
#[tokio::test(start_paused = true)]
async fn after_many_crashes_everything_superfluous_goes_and_claims_stay() {
    for seed in 0..8u64 {
        println!("seed {seed}");
        let mut random = SmallRng::seed_from_u64(seed);
        let mut bucket = Bucket::new();
        create(&bucket.client(), BLOCKS * BLOCK, BLOCK).await;
        let mut claims = BTreeSet::new();
        for _ in 0..6 {
            let began = bucket.changes();
            let disk = mount(&bucket, over()).await;
            claims.insert(keys::record(Seq(disk.status().store.head)));
            for _ in 0..random.random_range(1..200) {
                let block = random.random_range(0..BLOCKS);
                match random.random_range(0..4) {
                    0 => disk.zero(block * BLOCK, BLOCK).await.expect("discards"),
                    _ => write(&disk, block * BLOCK, &[random.random(); 600]).await,
                }
                disk.flush().await.expect("flushes");
                sleep(Duration::from_secs(random.random_range(0..20))).await;
            }
            drop(disk);
            // After the claim: a session that has not claimed is none.
            let changes = random.random_range(began + 4..=bucket.changes());
            bucket = bucket.cut(changes);
        }
        let disk = mount(&bucket, over()).await;
        claims.insert(keys::record(Seq(disk.status().store.head)));
        let held = content(&disk).await;
        sleep(12 * MINUTE).await;
        write(&disk, 0, &[1; 100]).await;
        disk.flush().await.expect("flushes");
        disk.close().await.expect("closes");
        bucket.set_ahead(MINUTE * 10);
        let disk = mount(&bucket, options()).await;
        claims.insert(keys::record(Seq(disk.status().store.head)));
        sleep(12 * MINUTE).await;
        assert_eq!(
            blocks(&bucket).len() as u64,
            disk.status().store.stored_blocks,
            "seed {seed}: {:?}",
            bucket.keys()
        );
        let all = content(&disk).await;
        assert!(all[100..] == held[100..], "seed {seed}");
        write(&disk, 0, &[0; 4096]).await;
        disk.zero(0, BLOCK).await.expect("discards");
        disk.close().await.expect("closes");
        let keys = bucket.keys();
        let kept = |folder: &str| keys.iter().filter(|key| key.starts_with(folder)).count();
        assert_eq!(kept("map/"), 1, "seed {seed}: {keys:?}");
        assert_eq!(kept("probe/"), 0, "seed {seed}: {keys:?}");
        for claim in &claims {
            assert!(keys.contains(claim), "seed {seed}: {claim} of {keys:?}");
        }
        assert!(kept("log/") <= claims.len() + 6, "seed {seed}: {keys:?}");
    }
}

/// A reader is mounted at random moments of a writer's life, and reads for an hour: each block is what it was when the reader was
/// mounted, or it is superseded. Never newer, never zeros, and nothing is superseded before its time.
#[tokio::test(start_paused = true)]
async fn a_reader_sees_its_one_state_or_is_told_that_it_is_superseded() {
    let mut superseded = 0;
    for seed in 0..20u64 {
        println!("seed {seed}");
        let mut random = SmallRng::seed_from_u64(seed);
        let bucket = Bucket::new();
        create(&bucket.client(), BLOCKS * BLOCK, BLOCK).await;
        let writer = mount(&bucket, options()).await;
        let mut model = vec![0; (BLOCKS * BLOCK) as usize];
        // Each with what it has to show, and when it began.
        let mut readers: Vec<(Arc<Disk>, Vec<u8>, tokio::time::Instant)> = Vec::new();
        for step in 0..120 {
            for _ in 0..random.random_range(0..4) {
                let offset = random.random_range(0..BLOCKS - 2) * BLOCK;
                let at = offset as usize;
                if random.random_range(0..3) == 0 {
                    model[at..at + 8192].fill(0);
                    writer.zero(offset, 8192).await.expect("discards");
                } else {
                    let fill = random.random_range(1..=255);
                    model[at..at + 5000].fill(fill);
                    write(&writer, offset, &[fill; 5000]).await;
                }
            }
            writer.flush().await.expect("flushes");
            sleep(Duration::from_secs(random.random_range(0..60))).await;
            if random.random_range(0..12) == 0 {
                let mut how = reading();
                how.list_blocks = random.random_range(0..2) == 0;
                let reader = mount(&bucket, how).await;
                readers.push((reader, model.clone(), tokio::time::Instant::now()));
            }
            for (reader, shown, began) in &readers {
                let at = (random.random_range(0..BLOCKS) * BLOCK) as usize;
                let mut found = vec![0xEE; BLOCK as usize];
                match reader.read(at as u64, &mut found).await {
                    Ok(()) => assert!(
                        found == shown[at..at + BLOCK as usize],
                        "seed {seed}, step {step}: another state at {at}"
                    ),
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::Superseded, "{error:?}");
                        assert!(error.chain().contains("mount again"), "{error:?}");
                        let age = began.elapsed();
                        assert!(age >= 5 * MINUTE, "seed {seed}: after {age:?}");
                        superseded += 1;
                    }
                }
            }
        }
        writer.close().await.expect("closes");
    }
    assert!(superseded > 20, "only {superseded} reads were superseded");
}

/// Superseded is what another session replaced. What is merely gone is damage, also for a reader, and stays that for a writer.
#[tokio::test(start_paused = true)]
async fn a_block_that_is_lost_is_damage_and_not_superseded() {
    let bucket = Bucket::new();
    create(&bucket.client(), BLOCKS * BLOCK, BLOCK).await;
    let writer = mount(&bucket, options()).await;
    write(&writer, 0, &[1; 2 * 4096]).await;
    writer.flush().await.expect("flushes");
    let version = Seq(writer.status().store.head);
    writer.close().await.expect("closes");
    let writer = mount(&bucket, options()).await;
    let reader = mount(&bucket, reading()).await;
    bucket.apply(Change::Delete(keys::block(BlockIndex(1), version)));
    // Heartbeats change nothing.
    sleep(25 * MINUTE).await;
    let mut found = vec![0; 10];
    for disk in [&reader, &writer] {
        let error = disk.read(BLOCK, &mut found).await.expect_err("is lost");
        assert_eq!(error.kind(), ErrorKind::Damaged, "{error:?}");
        assert!(error.chain().contains("block 1 "), "{error:?}");
    }
    write(&writer, 5 * BLOCK, &[1; 10]).await;
    writer.flush().await.expect("is not fenced");
}

/// Whether a block was superseded or lost is for the log to say. Where that cannot be asked, neither is claimed.
#[tokio::test(start_paused = true)]
async fn a_missing_block_is_not_called_damaged_while_the_log_cannot_be_read() {
    let bucket = Bucket::new();
    create(&bucket.client(), BLOCKS * BLOCK, BLOCK).await;
    let writer = mount(&bucket, options()).await;
    write(&writer, 0, &[1; 4096]).await;
    writer.flush().await.expect("flushes");
    let faulty = Faulty::new(bucket.client(), 1);
    let client: Arc<dyn ObjectClient> = faulty.clone();
    let reader = open(&client, reading(), DIRTY).await.expect("mounts");
    write(&writer, 0, &[2; 4096]).await;
    writer.flush().await.expect("flushes");
    sleep(6 * MINUTE).await;
    let mut found = vec![0; 10];
    let fine = Fault::Delay(Duration::ZERO);
    faulty.next([fine, Fault::Before(ErrorKind::Unreachable)]);
    let error = reader.read(0, &mut found).await.expect_err("is gone");
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error:?}");
    let error = reader.read(0, &mut found).await.expect_err("is gone");
    assert_eq!(error.kind(), ErrorKind::Superseded, "{error:?}");
}
