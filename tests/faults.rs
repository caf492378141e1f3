//! The disk over a store that fails: answers lost, requests refused, hours without an answer, the disk lost to another session. What
//! flush and reads promise has to hold all the same, and the bucket has to hold it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bucketdisk::disk::{Disk, Now};
use bucketdisk::error::{Error, ErrorKind, Result};
use bucketdisk::object::{ListPage, ObjectClient, PutOutcome};
use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use support::fault::{Fault, Faulty, Request};
use support::memory::{Bucket, Change};
use support::volume::{content, create, open, options};
use tokio::time::{Instant, sleep, timeout};

#[path = "faults/kinds.rs"]
mod kinds;
mod support;

const BLOCK: u64 = 4096;
const SIZE: u64 = 16 * BLOCK;
const DIRTY: u64 = 1 << 20;
/// For something that has to happen by itself.
const SOON: Duration = Duration::from_secs(10);

/// Nothing happens to a request.
const FINE: Fault = Fault::Delay(Duration::ZERO);

/// A bucket with a disk, and a store in front of it that can be told to fail.
async fn home() -> (Bucket, Arc<Faulty>) {
    let bucket = Bucket::new();
    create(&bucket.client(), SIZE, BLOCK).await;
    let faulty = Faulty::new(bucket.client(), 1);
    (bucket, faulty)
}

async fn open_over(faulty: &Arc<Faulty>) -> Arc<Disk> {
    let client: Arc<dyn ObjectClient> = faulty.clone();
    open(&client, options(), DIRTY).await.expect("mounts")
}

/// What the bucket alone holds.
async fn stored(bucket: &Bucket) -> Vec<u8> {
    let mut reader = options();
    reader.read_only = true;
    let disk = open(&bucket.client(), reader, DIRTY)
        .await
        .expect("mounts read-only");
    content(&disk).await
}

async fn write(disk: &Disk, offset: u64, data: &[u8]) {
    let data = Bytes::copy_from_slice(data);
    disk.write(offset, data).await.expect("takes the write");
}

/// A disk with something in it, and its content.
async fn filled(disk: &Disk) -> Vec<u8> {
    let model: Vec<u8> = (0..SIZE).map(|at| (at / 512) as u8 | 1).collect();
    write(disk, 0, &model).await;
    disk.flush().await.expect("flushes");
    model
}

#[tokio::test(start_paused = true)]
async fn no_lost_answer_loses_a_write() {
    for every in 1..=9 {
        let (bucket, faulty) = home().await;
        let disk = open_over(&faulty).await;
        let mut model = filled(&disk).await;
        let mut pattern = vec![FINE; every - 1];
        pattern.push(Fault::Answer(ErrorKind::Unreachable));
        for round in 0..12u8 {
            faulty.next(pattern.iter().copied().cycle().take(40));
            let at = usize::from(round) * 3000;
            model[at..at + 5000].fill(round + 1);
            write(&disk, at as u64, &[round + 1; 5000]).await;
            let hole = (round as usize % 16) * BLOCK as usize;
            model[hole..hole + BLOCK as usize].fill(0);
            disk.zero(hole as u64, BLOCK).await.expect("discards");
            disk.flush().await.expect("flushes");
            assert!(
                stored(&bucket).await == model,
                "every {every}, round {round}"
            );
        }
        loop {
            match disk.close().await {
                Ok(()) => break,
                Err(error) => assert_eq!(error.kind(), ErrorKind::Unreachable),
            }
        }
        open(&bucket.client(), options(), DIRTY)
            .await
            .expect("the disk is free");
    }
}

/// Whichever request of a flush is the first to be refused, and whether the store applied it or not.
#[tokio::test(start_paused = true)]
async fn a_flush_that_is_refused_keeps_the_data_and_the_next_one_stores_it() {
    let mut kinds = [false; 3];
    for kind in [ErrorKind::Denied, ErrorKind::Full, ErrorKind::System] {
        for fault in [Fault::Before(kind), Fault::Answer(kind)] {
            for place in 0.. {
                let (bucket, faulty) = home().await;
                let disk = open_over(&faulty).await;
                filled(&disk).await;
                disk.close().await.expect("closes");
                // A new mount has nothing cached, so a part of a block has to be completed from the store.
                let disk = open_over(&faulty).await;
                let mut model = stored(&bucket).await;
                let before = stored(&bucket).await;
                model[100..9000].fill(9);
                write(&disk, 100, &[9; 8900]).await;
                disk.zero(4 * BLOCK, 2 * BLOCK).await.expect("discards");
                model[4 * BLOCK as usize..6 * BLOCK as usize].fill(0);
                let so_far = faulty.requests().len();
                faulty.next(std::iter::repeat_n(FINE, place));
                faulty.always(Some(fault));
                let flushed = disk.flush().await;
                faulty.always(None);
                let requests = &faulty.requests()[so_far..];
                let Some(hit) = requests.get(place) else {
                    flushed.expect("nothing was refused");
                    assert!(place >= 5, "base blocks, blocks and a record");
                    break;
                };
                match hit {
                    Request::Get(_) => kinds[0] = true,
                    Request::Put(_) => kinds[1] = true,
                    Request::PutIfAbsent(_) => kinds[2] = true,
                    other => panic!("a flush makes no {other:?}"),
                }
                let case = format!("{fault:?} of {hit:?}");
                assert_eq!(flushed.expect_err(&case).kind(), kind, "{case}");
                assert!(disk.status().dirty_bytes > 0, "{case}");
                assert!(disk.status().commit_error.is_some(), "{case}");
                let now = stored(&bucket).await;
                assert!(now == before || now == model, "{case}: a mix");
                assert!(content(&disk).await == model, "{case}: unreadable");
                disk.flush().await.expect(&case);
                assert!(disk.status().commit_error.is_none(), "{case}");
                assert!(stored(&bucket).await == model, "{case}: not stored");
                disk.close().await.expect(&case);
            }
        }
    }
    assert_eq!(kinds, [true; 3], "reads, blocks and records were refused");
}

#[tokio::test(start_paused = true)]
async fn a_flush_waits_for_the_store_to_come_back_and_then_succeeds_by_itself() {
    for fault in [Fault::Before, Fault::Answer] {
        let (bucket, faulty) = home().await;
        let disk = open_over(&faulty).await;
        let mut model = filled(&disk).await;
        faulty.always(Some(fault(ErrorKind::Unreachable)));
        model[..7000].fill(5);
        write(&disk, 0, &[5; 7000]).await;
        let flushing = Arc::clone(&disk);
        let flush = tokio::spawn(async move { flushing.flush().await });
        sleep(Duration::from_secs(3600)).await;
        assert!(
            !flush.is_finished(),
            "nothing may fail, and nothing is acknowledged"
        );
        assert!(disk.status().commit_error.is_some(), "and status tells");
        // Writes go on meanwhile.
        model[9000..9100].fill(6);
        write(&disk, 9000, &[6; 100]).await;
        let mut dirty = [0; 7000];
        disk.read(0, &mut dirty)
            .await
            .expect("dirty data is read from memory");
        assert!(dirty == model[..7000]);
        faulty.always(None);
        let back = Instant::now();
        flush.await.expect("no panic").expect("flushes");
        assert!(back.elapsed() <= SOON, "took {:?}", back.elapsed());
        assert!(stored(&bucket).await[..7000] == model[..7000]);
        disk.close().await.expect("closes");
        assert!(stored(&bucket).await == model);
    }
}

/// Random writes, discards, reads and flushes while a fifth of all requests fail, half of these after they were applied.
#[tokio::test(start_paused = true)]
async fn a_disk_over_a_store_that_often_fails_behaves_as_an_array_of_bytes() {
    for seed in 0..30u64 {
        println!("seed {seed}");
        let mut random = SmallRng::seed_from_u64(seed);
        let bucket = Bucket::new();
        create(&bucket.client(), SIZE, BLOCK).await;
        let faulty = Faulty::new(bucket.client(), seed);
        let client: Arc<dyn ObjectClient> = faulty.clone();
        let mut disk = open(&client, options(), 4 * BLOCK).await.expect("mounts");
        let mut model = vec![0; SIZE as usize];
        faulty.at_random(0.2);
        for step in 0..150 {
            let offset = random.random_range(0..SIZE);
            let len = random.random_range(1..=(3 * BLOCK).min(SIZE - offset));
            let range = offset as usize..(offset + len) as usize;
            match random.random_range(0..12) {
                0..5 => {
                    let fill = random.random_range(0..=255u8);
                    model[range].fill(fill);
                    write(&disk, offset, &vec![fill; len as usize]).await;
                }
                5..7 => {
                    model[range].fill(0);
                    disk.zero(offset, len).await.expect("discards");
                }
                7..10 => {
                    let mut buf = vec![0xEE; len as usize];
                    while let Err(error) = disk.read(offset, &mut buf).await {
                        assert_eq!(error.kind(), ErrorKind::Unreachable);
                    }
                    assert!(buf == model[range], "seed {seed}, step {step}");
                }
                10 => {
                    disk.flush().await.expect("waits the faults out");
                    let now = stored(&bucket).await;
                    assert!(now == model, "seed {seed}, step {step}: lost");
                }
                _ => {
                    while let Err(error) = disk.close().await {
                        assert_eq!(error.kind(), ErrorKind::Unreachable, "{}", error.chain());
                    }
                    faulty.at_random(0.0);
                    disk = open(&client, options(), 4 * BLOCK)
                        .await
                        .expect("the disk is free");
                    faulty.at_random(0.2);
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_fenced_disk_refuses_writes_and_flushes_and_still_reads() {
    let (bucket, faulty) = home().await;
    let disk = open_over(&faulty).await;
    let mut model = filled(&disk).await;
    model[100..5000].fill(7);
    write(&disk, 100, &[7; 4900]).await;
    let mut over = options();
    over.take_over = true;
    let next = open(&bucket.client(), over, DIRTY)
        .await
        .expect("takes over");
    let changes = bucket.changes();
    for _ in 0..2 {
        let error = disk.flush().await.expect_err("is fenced");
        assert_eq!(error.kind(), ErrorKind::Fenced, "{}", error.chain());
    }
    let error = disk.write_now(0, &[1; 512]).expect_err("is fenced");
    assert_eq!(error.kind(), ErrorKind::Fenced, "{}", error.chain());
    let error = disk.zero(0, 512).await.expect_err("is fenced");
    assert_eq!(error.kind(), ErrorKind::Fenced, "{}", error.chain());
    assert!(disk.is_read_only());
    assert!(
        content(&disk).await == model,
        "what is dirty stays readable"
    );
    let error = disk.close().await.expect_err("is fenced");
    assert_eq!(error.kind(), ErrorKind::Fenced, "{}", error.chain());
    let records = bucket.history()[changes..]
        .iter()
        .filter(|change| format!("{change:?}").contains("log/"))
        .count();
    assert_eq!(records, 0, "nothing of it landed");
    assert!(content(&next).await != model);
    next.close().await.expect("closes");
}

/// A writer that waits for room must not wait for ever once the disk is lost.
#[tokio::test(start_paused = true)]
async fn a_write_that_waits_for_room_is_refused_when_the_disk_is_lost() {
    let (bucket, faulty) = home().await;
    let client: Arc<dyn ObjectClient> = faulty.clone();
    let disk = open(&client, options(), 2 * BLOCK).await.expect("mounts");
    let mut over = options();
    over.take_over = true;
    let next = open(&bucket.client(), over, DIRTY)
        .await
        .expect("takes over");
    let mut refused = None;
    for block in 0..16 {
        let data = Bytes::from(vec![1; BLOCK as usize]);
        let taken = timeout(SOON, disk.write(block * BLOCK, data)).await;
        refused = taken.expect("is answered").err();
        if refused.is_some() {
            break;
        }
    }
    assert_eq!(refused.map(|e| e.kind()), Some(ErrorKind::Fenced));
    drop(next);
}

#[tokio::test(start_paused = true)]
async fn a_read_error_is_shared_by_those_who_wait_and_by_no_later_reader() {
    let (_bucket, faulty) = home().await;
    let disk = open_over(&faulty).await;
    let model = filled(&disk).await;
    disk.close().await.expect("closes");
    let disk = open_over(&faulty).await;
    let so_far = faulty.requests().len();
    for kind in [ErrorKind::Unreachable, ErrorKind::Denied] {
        let before = faulty.requests().len();
        faulty.next([Fault::Before(kind)]);
        let (mut one, mut two) = ([0; 512], [0; 512]);
        let (first, second) = tokio::join!(disk.read(0, &mut one), disk.read(1024, &mut two));
        for outcome in [first, second] {
            let error: Error = outcome.expect_err("the store failed");
            assert_eq!(error.kind(), kind);
        }
        assert_eq!(faulty.requests().len(), before + 1, "one request for both");
    }
    let mut buf = vec![0; BLOCK as usize];
    disk.read(0, &mut buf).await.expect("reads");
    assert!(buf == model[..BLOCK as usize]);
    assert_eq!(faulty.requests().len(), so_far + 3);
    assert_eq!(disk.read_now(0, &mut buf).expect("reads"), Now::Done);
}

/// What a flush waits for may be discarded before its commit begins, and then there is nothing to commit.
#[tokio::test(start_paused = true)]
async fn a_flush_ends_when_what_it_waits_for_is_discarded_while_another_commit_runs() {
    let (bucket, faulty) = home().await;
    let disk = open_over(&faulty).await;
    let flush = |disk: &Arc<Disk>| {
        let disk = Arc::clone(disk);
        tokio::spawn(async move { disk.flush().await })
    };
    faulty.always(Some(Fault::Delay(Duration::from_secs(5))));
    write(&disk, 0, &[1; 512]).await;
    let first = flush(&disk);
    sleep(Duration::from_secs(1)).await;
    write(&disk, BLOCK, &[2; 512]).await;
    let second = flush(&disk);
    sleep(Duration::from_secs(1)).await;
    disk.zero(BLOCK, BLOCK).await.expect("discards");
    for flush in [first, second] {
        let flushed = timeout(4 * SOON, flush).await.expect("the flush ends");
        flushed.expect("no panic").expect("flushes");
    }
    // The number of the epoch that came to nothing is not taken for that of a later one.
    write(&disk, BLOCK, &[3; 512]).await;
    disk.flush().await.expect("flushes");
    assert_eq!(stored(&bucket).await[BLOCK as usize], 3);
}

/// A bucket whose newest record is a void claim: it arrived in its slot after that had been used, checkpointed and pruned. The first
/// two blocks begin with 1 and 2.
async fn bucket_with_a_void_claim() -> Bucket {
    let (bucket, _) = home().await;
    let disk = open(&bucket.client(), options(), DIRTY)
        .await
        .expect("mounts");
    write(&disk, 0, &[1; 512]).await;
    disk.flush().await.expect("flushes");
    // Another machine decides to take over; its claim is held up on the way.
    let (elsewhere, before) = (bucket.cut(bucket.changes()), bucket.changes());
    let mut over = options();
    over.take_over = true;
    let slow = open(&elsewhere.client(), over, DIRTY)
        .await
        .expect("takes over, as far as it can tell");
    let is_record =
        |change: &Change| matches!(change, Change::Put(key, _) if key.starts_with("log/"));
    let claim = elsewhere.history()[before..]
        .iter()
        .find(|change| is_record(change))
        .cloned();
    drop(slow);
    // Meanwhile the holder commits into that slot, writes a checkpoint, prunes, and dies before its release.
    write(&disk, BLOCK, &[2; 512]).await;
    disk.close().await.expect("closes");
    let release = bucket.history().iter().rposition(is_record);
    let bucket = bucket.cut(release.expect("it released"));
    bucket.apply(claim.expect("it claimed"));
    bucket
}

/// The checkpoint of a void claim's number knows better, and the log goes on after that.
#[tokio::test(start_paused = true)]
async fn the_log_goes_on_after_a_checkpoint_and_not_after_a_void_claim_of_its_number() {
    let bucket = bucket_with_a_void_claim().await;
    for (list_blocks, fill) in [(false, 3), (true, 4), (false, 5)] {
        let mut over = options();
        (over.take_over, over.list_blocks) = (true, list_blocks);
        let disk = open(&bucket.client(), over, DIRTY).await.expect("mounts");
        let all = content(&disk).await;
        assert_eq!((all[0], all[BLOCK as usize]), (1, 2));
        write(&disk, 2 * BLOCK, &[fill; 512]).await;
        disk.flush().await.expect("flushes");
        assert_eq!(stored(&bucket).await[2 * BLOCK as usize], fill);
    }
}

/// It may be a heartbeat that finds out; nothing was dirty then.
#[tokio::test(start_paused = true)]
async fn an_idle_disk_that_was_taken_over_says_so_to_writers() {
    let (bucket, faulty) = home().await;
    let disk = open_over(&faulty).await;
    let mut over = options();
    over.take_over = true;
    let next = open(&bucket.client(), over, DIRTY)
        .await
        .expect("takes over");
    sleep(Duration::from_secs(3600)).await;
    assert!(disk.is_read_only(), "a heartbeat was refused");
    let error = disk.write_now(0, &[1; 512]).expect_err("is fenced");
    assert_eq!(error.kind(), ErrorKind::Fenced, "{}", error.chain());
    let error = disk.zero_now(0, 512).expect_err("is fenced");
    assert_eq!(error.kind(), ErrorKind::Fenced, "{}", error.chain());
    drop(next);
}

/// A store that refuses to delete: a bucket under a retention rule, or a key that may only add.
#[derive(Debug)]
struct Keeps(Bucket);

#[async_trait]
impl ObjectClient for Keeps {
    async fn get(&self, key: &str) -> Result<Bytes> {
        self.0.get(key).await
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<()> {
        self.0.put(key, body).await
    }

    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<PutOutcome> {
        self.0.put_if_absent(key, body).await
    }

    async fn delete_many(&self, _: &[String]) -> Result<()> {
        Err(Error::new(ErrorKind::Denied, "nothing may be deleted"))
    }

    async fn list(&self, folder: &str, after: Option<&str>) -> Result<ListPage> {
        self.0.list(folder, after).await
    }

    fn location(&self) -> String {
        self.0.location()
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_deletes_nothing_keeps_no_disk_from_working_and_being_released() {
    let bucket = Bucket::new();
    create(&bucket.client(), SIZE, BLOCK).await;
    let client: Arc<dyn ObjectClient> = Arc::new(Keeps(bucket.clone()));
    let disk = open(&client, options(), DIRTY).await.expect("mounts");
    for round in 1..=150 {
        write(&disk, 0, &[round; 512]).await;
        disk.flush().await.expect("flushes");
    }
    let grace = Duration::from_secs(600);
    sleep(grace).await;
    let checkpoint = |key: &String| key.starts_with("map/");
    assert!(bucket.keys().iter().any(checkpoint), "the log stays short");
    let head = disk.status().store.head;
    sleep(Duration::from_secs(3600)).await;
    assert!(disk.status().store.head > head, "it shows that it lives");
    disk.close().await.expect("closes");
    let disk = open(&bucket.client(), options(), DIRTY)
        .await
        .expect("the disk is free");
    assert_eq!(content(&disk).await[0], 150);
    sleep(grace).await;
    let blocks = bucket.keys();
    let blocks = blocks.iter().filter(|key| key.starts_with("blocks/"));
    assert_eq!(
        blocks.count(),
        1,
        "what could not be deleted is not forgotten"
    );
}

/// A writer deletes what it has superseded after some minutes. A reader whose listing takes longer must not take that for holes.
#[tokio::test(start_paused = true)]
async fn a_listing_that_lasts_takes_no_block_that_was_superseded_meanwhile_for_a_hole() {
    let bucket = Bucket::new();
    create(&bucket.client(), 256 * BLOCK, BLOCK).await;
    let writer = open(&bucket.client(), options(), DIRTY)
        .await
        .expect("mounts");
    // In the folder that is listed last.
    write(&writer, 255 * BLOCK, &[1; 512]).await;
    writer.flush().await.expect("flushes");
    let faulty = Faulty::new(bucket.client(), 1);
    faulty.always(Some(Fault::Delay(Duration::from_secs(15))));
    let client: Arc<dyn ObjectClient> = faulty.clone();
    let mut reading = options();
    (reading.read_only, reading.list_blocks) = (true, true);
    let reader = tokio::spawn(async move { open(&client, reading, DIRTY).await });
    sleep(Duration::from_secs(60)).await;
    write(&writer, 255 * BLOCK, &[2; 512]).await;
    writer.flush().await.expect("flushes");
    let reader = reader.await.expect("no panic").expect("mounts");
    let mut found = [0; 1];
    reader.read(255 * BLOCK, &mut found).await.expect("reads");
    assert_eq!(found, [2]);
}

/// A checkpoint that cannot be read just now is not one that is damaged: without it a void claim looks like any other, and the
/// blocks of the commit whose number it has like leftovers.
#[tokio::test(start_paused = true)]
async fn a_listing_whose_requests_fail_is_right_or_fails() {
    let bucket = bucket_with_a_void_claim().await;
    let mut reading = options();
    (reading.read_only, reading.list_blocks) = (true, true);
    for place in 0.. {
        let faulty = Faulty::new(bucket.client(), 1);
        let client: Arc<dyn ObjectClient> = faulty.clone();
        let fault = Fault::Before(ErrorKind::Unreachable);
        faulty.next(std::iter::repeat_n(FINE, place).chain([fault]));
        match open(&client, reading.clone(), DIRTY).await {
            Err(error) => assert_eq!(error.kind(), ErrorKind::Unreachable),
            Ok(disk) => {
                let Some(hit) = faulty.requests().get(place).cloned() else {
                    return;
                };
                let all = content(&disk).await;
                assert_eq!((all[0], all[BLOCK as usize]), (1, 2), "{hit:?} failed");
            }
        }
    }
}

/// What a crashed session has superseded is deleted together, not object by object. The clock runs while the disk is mounted, so that
/// no two moments are the same.
#[tokio::test]
async fn the_garbage_of_a_crashed_session_is_deleted_in_few_requests() {
    let (bucket, _) = home().await;
    let disk = open(&bucket.client(), options(), DIRTY)
        .await
        .expect("mounts");
    for fill in 1..=5 {
        write(&disk, 0, &[fill; SIZE as usize]).await;
        disk.flush().await.expect("flushes");
    }
    drop(disk);
    let mut over = options();
    over.take_over = true;
    let disk = open(&bucket.client(), over, DIRTY)
        .await
        .expect("takes over");
    let before = bucket.requests().deletes;
    tokio::time::pause();
    sleep(Duration::from_secs(600)).await;
    assert_eq!(disk.status().store.garbage_objects, 0);
    let requests = bucket.requests().deletes - before;
    assert!(requests <= 2, "{requests} requests for 64 objects");
}
