//! A block that is damaged in the store and written in part: nothing is made up for the rest of it, nothing that was written is
//! lost, and the disk goes on as soon as its owner has said what the block is to be.

use std::sync::Arc;
use std::time::Duration;

use bucketdisk::block::{BlockIndex, Seq};
use bucketdisk::disk::{Disk, DiskConfig};
use bucketdisk::error::{Error, ErrorKind};
use bucketdisk::object::ObjectClient;
use bucketdisk::store::versioned::keys;
use bytes::Bytes;
use support::fault::{Fault, Faulty, Request};
use support::memory::{Bucket, Change};
use support::volume::{config, content, create, mount, open, options};
use tokio::time::sleep;

mod support;

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 16;
const SIZE: u64 = BLOCK * BLOCKS;
const DIRTY: u64 = 1 << 20;
/// The damaged block.
const BAD: u64 = 5;

/// A disk whose block 5 is damaged, and which has been written to: that block in part, others before and after it.
struct Damaged {
    bucket: Bucket,
    faulty: Arc<Faulty>,
    disk: Arc<Disk>,
    /// The disk as its user sees it, the damaged part as it was before the damage.
    model: Vec<u8>,
    /// The damaged object, and what it was.
    key: String,
    whole: Bytes,
}

impl Damaged {
    async fn new() -> Damaged {
        Damaged::with(None).await
    }

    /// With a limit to how far the store may be behind.
    async fn with(max_lag: Option<Duration>) -> Damaged {
        let bucket = Bucket::new();
        create(&bucket.client(), SIZE, BLOCK).await;
        let mut model: Vec<u8> = (0..SIZE).map(|at| (at / 512) as u8 | 1).collect();
        let disk = open(&bucket.client(), options(), DIRTY)
            .await
            .expect("mounts");
        write(&disk, 0, &model).await;
        disk.close().await.expect("closes");
        let key = bucket
            .keys()
            .into_iter()
            .find(|key| keys::parse_block(key).is_some_and(|(index, _)| index.0 == BAD))
            .expect("is stored");
        let whole = bucket.body(&key).expect("is there");
        let mut flipped = whole.to_vec();
        let last = flipped.len() - 1;
        flipped[last] ^= 4;
        bucket.apply(Change::Put(key.clone(), flipped.into()));

        let faulty = Faulty::new(bucket.client(), 1);
        let client: Arc<dyn ObjectClient> = faulty.clone();
        let limits = DiskConfig {
            max_lag,
            ..config(DIRTY)
        };
        let store = mount(&client, options()).await.expect("mounts");
        let disk = Disk::open(store, limits, None, tokio::runtime::Handle::current());
        for (offset, len, fill) in [
            (0, 5000, 7),
            (BAD * BLOCK + 512, 1024, 8),
            (40_000, 9000, 9),
        ] {
            write(&disk, offset, &vec![fill; len]).await;
            model[offset as usize..offset as usize + len].fill(fill);
        }
        disk.zero(14 * BLOCK, BLOCK).await.expect("discards");
        model[14 * BLOCK as usize..15 * BLOCK as usize].fill(0);
        Damaged {
            bucket,
            faulty,
            disk,
            model,
            key,
            whole,
        }
    }

    /// Flushes, which fails, and answers how.
    async fn flush(&self) -> Error {
        let error = self.disk.flush().await.expect_err("cannot be completed");
        assert_eq!(error.kind(), ErrorKind::Damaged);
        error
    }

    /// Whether what was written reads back, and of the damaged block no more than that.
    async fn reads_what_was_written(&self) {
        let bad = (BAD * BLOCK) as usize;
        for range in [
            0..bad,
            bad + 512..bad + 1536,
            bad + BLOCK as usize..SIZE as usize,
        ] {
            let mut buf = vec![0xEE; range.len()];
            self.disk
                .read(range.start as u64, &mut buf)
                .await
                .expect("is not damaged");
            assert!(buf == self.model[range.clone()], "{range:?}");
        }
        let mut buf = [0; 512];
        let error = self
            .disk
            .read(BAD * BLOCK, &mut buf)
            .await
            .expect_err("is damaged");
        assert_eq!(error.kind(), ErrorKind::Damaged);
    }

    /// What any other machine finds, by the log and by the blocks themselves.
    async fn is_stored(&self) {
        for list_blocks in [false, true] {
            let mut reader = options();
            (reader.read_only, reader.list_blocks) = (true, list_blocks);
            let disk = open(&self.bucket.client(), reader, DIRTY)
                .await
                .expect("mounts");
            assert!(content(&disk).await == self.model, "listing: {list_blocks}");
        }
    }
}

async fn write(disk: &Disk, offset: u64, data: &[u8]) {
    let data = Bytes::copy_from_slice(data);
    disk.write(offset, data).await.expect("takes the write");
}

#[tokio::test(start_paused = true)]
async fn a_flush_fails_for_as_long_as_a_written_block_cannot_be_completed_and_nothing_is_lost() {
    let mut damaged = Damaged::new().await;
    let error = damaged.flush().await;
    let range = format!("{BLOCK} bytes from {}", BAD * BLOCK);
    assert!(error.chain().contains("block 5"), "{}", error.chain());
    assert!(error.chain().contains(&range), "{}", error.chain());
    damaged.reads_what_was_written().await;
    // Writes go on, also to the damaged block, and nothing of it becomes visible half.
    let states = damaged.bucket.changes();
    write(&damaged.disk, 100, &[3; 100]).await;
    damaged.model[100..200].fill(3);
    sleep(Duration::from_secs(3600)).await;
    damaged.flush().await;
    damaged.reads_what_was_written().await;
    for cut in [states, damaged.bucket.changes()] {
        let mut reader = options();
        reader.read_only = true;
        let store = mount(&damaged.bucket.cut(cut).client(), reader)
            .await
            .expect("mounts");
        use bucketdisk::store::BlockStore;
        for index in 0..BLOCKS {
            assert_eq!(
                store.version(BlockIndex(index)),
                Some(Seq(2)),
                "block {index}"
            );
        }
    }
    // The object is put back as it was: it was the owner's mistake.
    let whole = Change::Put(damaged.key.clone(), damaged.whole.clone());
    damaged.bucket.apply(whole);
    damaged.disk.flush().await.expect("can be completed now");
    damaged.is_stored().await;
    damaged.disk.close().await.expect("closes");
    damaged.is_stored().await;
}

#[tokio::test(start_paused = true)]
async fn a_damaged_block_can_be_mended_though_the_bucket_is_further_behind_than_it_may_be() {
    let mut damaged = Damaged::with(Some(Duration::from_secs(60))).await;
    damaged.flush().await;
    sleep(Duration::from_secs(3600)).await;
    let whole = vec![5; BLOCK as usize];
    let mending = write(&damaged.disk, BAD * BLOCK, &whole);
    let mended = tokio::time::timeout(Duration::from_secs(600), mending).await;
    mended.expect("does not wait for a commit, which waits for it");
    damaged.model[(BAD * BLOCK) as usize..][..whole.len()].copy_from_slice(&whole);
    damaged.disk.flush().await.expect("can be completed now");
    damaged.is_stored().await;
    damaged.disk.close().await.expect("closes");
}

#[tokio::test(start_paused = true)]
async fn each_look_at_a_damaged_block_is_counted_and_no_other() {
    let damaged = Damaged::new().await;
    let counted = || damaged.disk.status().damaged_blocks_read;
    assert_eq!(counted(), 0);
    // To read ahead is to look, too.
    damaged.reads_what_was_written().await;
    let to_read = counted();
    assert!(to_read > 0);
    damaged.flush().await;
    let to_commit = counted();
    assert!(to_commit > to_read, "a commit looks at it, too");
    let whole = Change::Put(damaged.key.clone(), damaged.whole.clone());
    damaged.bucket.apply(whole);
    damaged.disk.flush().await.expect("can be completed now");
    content(&damaged.disk).await;
    assert_eq!(counted(), to_commit);
}

#[tokio::test(start_paused = true)]
async fn a_damaged_block_that_is_written_to_its_ends_or_discarded_is_as_good_as_new() {
    for (discard, parts) in [(false, 1), (false, 4), (true, 1)] {
        let mut damaged = Damaged::new().await;
        damaged.flush().await;
        let part = BLOCK / parts;
        for at in (0..parts).map(|n| BAD * BLOCK + n * part) {
            let range = at as usize..(at + part) as usize;
            if discard {
                damaged.disk.zero(at, part).await.expect("discards");
                damaged.model[range].fill(0);
            } else {
                write(&damaged.disk, at, &vec![6; part as usize]).await;
                damaged.model[range].fill(6);
            }
        }
        damaged.disk.flush().await.expect("is whole now");
        assert!(damaged.disk.status().commit_error.is_none());
        damaged.is_stored().await;
        assert!(content(&damaged.disk).await == damaged.model);
        damaged.disk.close().await.expect("closes");
        damaged.is_stored().await;
    }
}

/// A request of the commit that was given up arrives when all is long over: after a checkpoint, and after the log was pruned.
#[tokio::test(start_paused = true)]
async fn nothing_of_a_commit_that_was_given_up_ever_comes_back() {
    let mut damaged = Damaged::new().await;
    let before = damaged.bucket.changes();
    damaged.flush().await;
    let late: Vec<Change> = damaged
        .bucket
        .history()
        .into_iter()
        .skip(before)
        .filter(|change| matches!(change, Change::Put(key, _) if keys::parse_block(key).is_some()))
        .collect();
    assert!(late.len() >= 4, "blocks were stored before it was given up");
    damaged.disk.zero(0, SIZE).await.expect("discards");
    damaged.model.fill(0);
    damaged.disk.flush().await.expect("nothing is damaged now");
    damaged.is_stored().await;
    let leftovers = || {
        let keys = damaged.bucket.keys();
        keys.iter()
            .filter(|key| keys::parse_block(key).is_some())
            .count()
    };
    assert!(leftovers() > 0, "kept for those who read the state before");
    // Garbage is deleted, heartbeats lengthen the log until it is worth a checkpoint, and that prunes it.
    sleep(Duration::from_secs(130 * 600)).await;
    assert_eq!(
        leftovers(),
        0,
        "what it stored is garbage, and deleted in time"
    );
    damaged.disk.close().await.expect("closes");
    for change in late {
        damaged.bucket.apply(change);
    }
    damaged.is_stored().await;
    let mut writer = options();
    writer.list_blocks = true;
    let disk = open(&damaged.bucket.client(), writer, DIRTY)
        .await
        .expect("mounts");
    assert!(content(&disk).await == damaged.model);
}

/// The damaged block costs two requests at each try (one of them is to see whether it was damaged on its way), and not the blocks of the commit again.
#[tokio::test(start_paused = true)]
async fn waiting_for_a_damaged_block_does_not_store_the_others_again_and_again() {
    let damaged = Damaged::new().await;
    damaged.flush().await;
    damaged.flush().await;
    let so_far = damaged.faulty.requests().len();
    for _ in 0..10 {
        damaged.flush().await;
    }
    let requests = damaged.faulty.requests().split_off(so_far);
    assert!(requests.len() <= 22, "{requests:?}");
    assert!(
        requests
            .iter()
            .all(|request| *request == Request::Get(damaged.key.clone())),
        "{requests:?}"
    );
}

/// Every request of giving up and of the commit after it, lost on its way or with its answer.
#[tokio::test(start_paused = true)]
async fn no_lost_answer_while_a_commit_is_given_up_loses_a_write() {
    for fault in [Fault::Before, Fault::Answer] {
        for place in 0.. {
            let mut damaged = Damaged::new().await;
            let so_far = damaged.faulty.requests().len();
            let fine = Fault::Delay(Duration::ZERO);
            let lost = fault(ErrorKind::Unreachable);
            damaged
                .faulty
                .next(std::iter::repeat_n(fine, place).chain([lost]));
            damaged.flush().await;
            write(&damaged.disk, BAD * BLOCK, &[6; BLOCK as usize]).await;
            let at = (BAD * BLOCK) as usize;
            damaged.model[at..at + BLOCK as usize].fill(6);
            damaged.disk.flush().await.expect("is whole now");
            damaged.is_stored().await;
            while let Err(error) = damaged.disk.close().await {
                assert_eq!(error.kind(), ErrorKind::Unreachable);
            }
            damaged.is_stored().await;
            if damaged.faulty.requests().len() < so_far + place {
                assert!(place > 10, "blocks, a claim, blocks and a record");
                break;
            }
        }
    }
}
