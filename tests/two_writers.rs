//! Two writers: the first is stopped wherever it waits for its store, another session takes the disk over and works for weeks, and then
//! the first goes on. Nothing of it may ever be seen, it has to notice, and what only it has must still be there.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bucketdisk::block::Seq;
use bucketdisk::disk::Disk;
use bucketdisk::error::ErrorKind;
use bucketdisk::object::ObjectClient;
use bucketdisk::store::versioned::{MountOptions, keys};
use bytes::Bytes;
use support::fault::{Fault, Faulty};
use support::log::Log;
use support::memory::{Bucket, Change};
use support::pause::{Held, Pausing, Side};
use support::volume::{content, create, open, options};
use tokio::time::{sleep, timeout};

mod support;

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 64;
const DIRTY: u64 = 1 << 20;
const SECOND: Duration = Duration::from_secs(1);
const WEEKS: Duration = Duration::from_secs(2 * 7 * 24 * 60 * 60);

fn over() -> MountOptions {
    let mut over = options();
    over.take_over = true;
    over
}

fn reading(list_blocks: bool) -> MountOptions {
    let mut reading = options();
    (reading.read_only, reading.list_blocks) = (true, list_blocks);
    reading
}

/// Writes to the disk and to the array that it has to equal.
async fn write(disk: &Disk, model: &mut [u8], offset: u64, data: &[u8]) {
    let at = usize::try_from(offset).expect("a small disk");
    model[at..at + data.len()].copy_from_slice(data);
    let data = Bytes::copy_from_slice(data);
    disk.write(offset, data).await.expect("takes the write");
}

/// The first writer, at a point where one flush makes it do everything that a session ever does: its store, what the disk holds,
/// and the number of its next commit.
struct First {
    bucket: Bucket,
    pausing: Arc<Pausing>,
    disk: Arc<Disk>,
    model: Vec<u8>,
    next: Seq,
}

async fn first() -> First {
    let bucket = Bucket::new();
    create(&bucket.client(), BLOCKS * BLOCK, BLOCK).await;
    let mut model = vec![0; (BLOCKS * BLOCK) as usize];
    let before = open(&bucket.client(), options(), DIRTY)
        .await
        .expect("mounts");
    let filled: Vec<u8> = (0..24 * BLOCK).map(|at| (at / 512) as u8 | 1).collect();
    write(&before, &mut model, 0, &filled).await;
    before.close().await.expect("closes");
    let checkpoint = newest(&bucket, "map/").expect("a closed disk has a checkpoint");

    let pausing = Pausing::new(bucket.client());
    let client: Arc<dyn ObjectClient> = pausing.clone();
    let disk = open(&client, options(), DIRTY).await.expect("mounts");
    // Between two looks at what is due, so that the garbage of these commits is due when the next commit makes it look again.
    sleep(10 * SECOND).await;
    while disk.status().store.head < checkpoint + 127 {
        let fill = disk.status().store.head as u8 | 1;
        write(&disk, &mut model, 30 * BLOCK, &[fill; 512]).await;
        disk.flush().await.expect("flushes");
    }
    sleep(301 * SECOND).await;
    let next = Seq(disk.status().store.head + 1);
    First {
        bucket,
        pausing,
        disk,
        model,
        next,
    }
}

/// The highest number in a folder.
fn newest(bucket: &Bucket, folder: &str) -> Option<u32> {
    let keys = bucket.keys();
    let number = keys.iter().rfind(|key| key.starts_with(folder))?;
    u32::from_str_radix(&number[folder.len()..], 16).ok()
}

/// What is written before the flush under test: parts of two blocks, a whole one, a new one, and a hole.
async fn change(disk: &Disk, model: &mut [u8]) {
    write(disk, model, 100, &[0xA1; 2 * 4096]).await;
    write(disk, model, 31 * BLOCK, &[0xA2; 4096]).await;
    let hole = (5 * BLOCK) as usize;
    model[hole..hole + BLOCK as usize].fill(0);
    disk.zero(hole as u64, BLOCK).await.expect("discards");
}

/// A third mount sees what the second writer has, however it finds the blocks.
async fn assert_visible(bucket: &Bucket, expected: &[u8], case: &str) {
    for list_blocks in [false, true] {
        let disk = open(&bucket.client(), reading(list_blocks), DIRTY)
            .await
            .expect("mounts");
        assert!(
            content(&disk).await == expected,
            "{case}: listing {list_blocks}"
        );
    }
}

/// Reads what it can of a fenced disk: each block is what the session had, or an error that says that it was superseded.
async fn assert_own_state(disk: &Disk, model: &[u8], kept: &[u64], case: &str) {
    for block in 0..BLOCKS {
        let mut found = vec![0; BLOCK as usize];
        let at = (block * BLOCK) as usize;
        match disk.read(at as u64, &mut found).await {
            Ok(()) => assert!(
                found == model[at..at + BLOCK as usize],
                "{case}: block {block}"
            ),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Superseded, "{case}: {error:?}");
                assert!(!kept.contains(&block), "{case}: {error:?}");
            }
        }
    }
}

/// One pause of a commit and of the upkeep after it. `None` where there were not so many requests; else the kind of request.
async fn pause_at(place: usize, side: Side, held: Held, lost_answer: bool) -> Option<String> {
    let First {
        bucket,
        pausing,
        disk: first,
        model: before,
        next,
    } = first().await;
    let mut after = before.clone();
    change(&first, &mut after).await;
    if lost_answer {
        pausing.lose_answer_to(&keys::record(next));
    }
    pausing.stop_after(place, side, held);
    let flushing = tokio::spawn({
        let first = Arc::clone(&first);
        async move { first.flush().await }
    });
    let request = timeout(15 * SECOND, pausing.stopped()).await.ok()?;
    let case =
        format!("{side:?} {request} (request {place}, {held:?}, lost answer: {lost_answer})");

    // Weeks in which another has the disk. What it writes lies on what the first is writing, beside it, and where the first has
    // not looked yet.
    let landed = bucket.body(&keys::record(next)).is_some();
    let second = open(&bucket.client(), over(), DIRTY)
        .await
        .expect("takes over");
    let mut model = if landed { after.clone() } else { before };
    assert!(content(&second).await == model, "{case}: a mix");
    for offset in [0, 31 * BLOCK, 12 * BLOCK + 7] {
        write(&second, &mut model, offset, &[0xB1; 1000]).await;
    }
    second.flush().await.expect("flushes");
    let claim = second.status().store.head - 1;
    bucket.set_ahead(WEEKS);
    sleep(WEEKS).await;
    let claims = bucket.body(&keys::record(Seq(claim)));
    assert!(claims.is_some(), "{case}: the claim is kept");
    assert!(
        bucket.body(&keys::record(Seq(claim + 1))).is_none(),
        "{case}: the log was pruned"
    );

    pausing.resume();
    let flushed = flushing.await.expect("no panic");
    match flushed {
        // It was committed before the disk was taken over, and the second writer began with it.
        Ok(()) => assert!(landed, "{case}"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::Fenced, "{case}: {error:?}"),
    }
    // The next commit at the latest.
    let late = Bytes::from_static(&[0xA3; 100]);
    if first.write(40 * BLOCK, late).await.is_ok() {
        let at = (40 * BLOCK) as usize;
        after[at..at + 100].fill(0xA3);
        let error = first.flush().await.expect_err(&case);
        assert_eq!(error.kind(), ErrorKind::Fenced, "{case}: {error:?}");
    }
    assert!(first.is_read_only(), "{case}");
    for refused in [
        first.write_now(0, &[1; 512]),
        first.zero_now(0, 512),
        first.write_now(50 * BLOCK, &[1; 512]),
    ] {
        let error = refused.expect_err(&case);
        assert_eq!(error.kind(), ErrorKind::Fenced, "{case}: {error:?}");
    }
    let status = first.status();
    assert!(
        status.read_only && status.store.fenced_by.is_some(),
        "{case}"
    );
    // What only this session has is still there, and so is all that the other has not replaced.
    let kept: Vec<u64> = (0..BLOCKS)
        .filter(|block| ![0, 1, 2, 12, 30, 31].contains(block))
        .chain([1])
        .collect();
    assert_own_state(&first, &after, &kept, &case).await;
    if !landed {
        assert!(status.dirty_bytes > 3 * BLOCK, "{case}");
        let mut dirty = vec![0; 2 * BLOCK as usize];
        first.read(100, &mut dirty).await.expect("dirty data reads");
        assert!(dirty == after[100..][..2 * BLOCK as usize], "{case}");
    }
    let error = first.close().await.expect_err(&case);
    assert_eq!(error.kind(), ErrorKind::Fenced, "{case}: {error:?}");
    drop(first);

    assert!(content(&second).await == model, "{case}");
    assert_visible(&bucket, &model, &case).await;
    write(&second, &mut model, 3 * BLOCK, &[0xB2; 5000]).await;
    second.close().await.expect("closes");
    assert_visible(&bucket, &model, &case).await;
    assert_clean(&bucket, &model, &case).await;
    let kind = request.split('/').next().unwrap_or_default().to_owned();
    Some(kind)
}

/// Once somebody looks at all blocks, what the first writer left behind goes, and nothing that the disk needs.
async fn assert_clean(bucket: &Bucket, model: &[u8], case: &str) {
    let mut listing = options();
    listing.list_blocks = true;
    let disk = open(&bucket.client(), listing, DIRTY)
        .await
        .expect("is free");
    sleep(600 * SECOND).await;
    let named: BTreeSet<String> = bucket
        .keys()
        .into_iter()
        .filter(|key| key.starts_with("blocks/"))
        .collect();
    assert_eq!(
        named.len() as u64,
        disk.status().store.stored_blocks,
        "{case}: {named:?}"
    );
    assert!(content(&disk).await == model, "{case}");
    disk.close().await.expect("closes");
    let count = |folder: &str| {
        bucket
            .keys()
            .iter()
            .filter(|k| k.starts_with(folder))
            .count()
    };
    assert_eq!(count("map/"), 1, "{case}: {:?}", bucket.keys());
    assert!(count("log/") < 12, "{case}: {:?}", bucket.keys());
}

async fn pause_everywhere(lost_answer: bool, expected: &[&str]) {
    for side in [Side::Before, Side::After] {
        for held in [Held::This, Held::Everything] {
            let mut kinds = BTreeSet::new();
            for place in 0.. {
                match pause_at(place, side, held, lost_answer).await {
                    Some(kind) => kinds.insert(kind),
                    None => break,
                };
            }
            let kinds: Vec<&str> = kinds.iter().map(String::as_str).collect();
            assert_eq!(kinds, expected, "what was stopped");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_writer_stopped_anywhere_in_a_commit_is_fenced_and_shows_nothing() {
    let expected = [
        "delete blocks",
        "delete log",
        "get blocks",
        "put blocks",
        "put map",
        "put-if-absent log",
    ];
    pause_everywhere(false, &expected).await;
}

#[tokio::test(start_paused = true)]
async fn a_writer_stopped_while_it_looks_whether_its_commit_has_landed_is_fenced_and_shows_nothing()
{
    let expected = [
        "delete blocks",
        "delete log",
        "get blocks",
        "get log",
        "put blocks",
        "put map",
        "put-if-absent log",
    ];
    pause_everywhere(true, &expected).await;
}

/// A disk with data in it, of which the mount has nothing in memory; and a second writer that takes it over and replaces block 7.
async fn taken_over(
    client: &Arc<dyn ObjectClient>,
    bucket: &Bucket,
    max_dirty_bytes: u64,
) -> (Arc<Disk>, Arc<Disk>, Vec<u8>) {
    create(&bucket.client(), BLOCKS * BLOCK, BLOCK).await;
    let mut model = vec![0; (BLOCKS * BLOCK) as usize];
    let before = open(client, options(), DIRTY).await.expect("mounts");
    write(&before, &mut model, 0, &[5; 24 * 4096]).await;
    before.close().await.expect("closes");
    let first = open(client, options(), max_dirty_bytes)
        .await
        .expect("mounts");
    let second = open(&bucket.client(), over(), DIRTY)
        .await
        .expect("takes over");
    write(&second, &mut model, 7 * BLOCK, &[6; 4096]).await;
    second.flush().await.expect("flushes");
    (first, second, model)
}

/// Whatever finds out that the disk is lost, all of it turns read-only, and the log says so once and says by whom.
#[tokio::test(start_paused = true)]
async fn a_fenced_disk_is_read_only_and_says_it_once_whoever_finds_out() {
    for how in ["a heartbeat", "a commit", "a read"] {
        let log = Log::begin();
        let bucket = Bucket::new();
        let (first, second, model) = taken_over(&bucket.client(), &bucket, DIRTY).await;
        let mut found = vec![0; BLOCK as usize];
        match how {
            "a heartbeat" => sleep(11 * 60 * SECOND).await,
            "a commit" => {
                let data = Bytes::from_static(&[9; 1000]);
                first.write(50 * BLOCK, data).await.expect("is not known");
                sleep(31 * SECOND).await;
            }
            _ => {
                sleep(6 * 60 * SECOND).await;
                let error = first
                    .read(7 * BLOCK, &mut found)
                    .await
                    .expect_err("is superseded");
                assert_eq!(error.kind(), ErrorKind::Superseded, "{error:?}");
                assert!(error.chain().contains("taken over by"), "{error:?}");
            }
        }
        // Everyone who has not run yet does.
        sleep(SECOND).await;
        let status = first.status();
        assert!(status.read_only, "{how}");
        assert!(status.commit_error.is_some(), "{how}");
        let dirty = status.dirty_bytes > 0;
        assert_eq!(dirty, how == "a commit");
        for refused in [first.write_now(0, &[1; 512]), first.zero_now(0, 4096)] {
            assert_eq!(refused.expect_err(how).kind(), ErrorKind::Fenced, "{how}");
        }
        match first.flush().await {
            Ok(()) => assert!(!dirty, "{how}: a flush says that lost data is safe"),
            Err(error) => {
                assert!(dirty, "{how}: nothing is lost");
                assert_eq!(error.kind(), ErrorKind::Fenced, "{how}");
            }
        }
        let error = first.close().await.expect_err(how);
        assert_eq!(error.kind(), ErrorKind::Fenced, "{how}");
        let told = log.lines();
        let errors: Vec<&String> = told.iter().filter(|line| line.contains("ERROR")).collect();
        assert_eq!(errors.len(), 1, "{how}: {told:#?}");
        let by = format!("process {}", std::process::id());
        assert!(errors[0].contains(&by), "{how}: {told:#?}");
        assert!(
            !told.iter().any(|line| line.contains("WARN")),
            "{how}: {told:#?}"
        );
        assert!(content(&second).await == model, "{how}");
    }
}

/// A writer that waits for room must not wait for ever, also where it is not its own commit that finds out.
#[tokio::test(start_paused = true)]
async fn a_writer_that_waits_for_room_is_refused_when_a_read_finds_out_that_the_disk_is_lost() {
    let bucket = Bucket::new();
    let pausing = Pausing::new(bucket.client());
    let client: Arc<dyn ObjectClient> = pausing.clone();
    let (first, _second, _) = taken_over(&client, &bucket, 8 * BLOCK).await;
    sleep(301 * SECOND).await;
    // A commit that hangs, and a writer that waits for it.
    pausing.stop_after(0, Side::Before, Held::This);
    let writing = tokio::spawn({
        let first = Arc::clone(&first);
        async move {
            for block in 30..BLOCKS {
                let data = Bytes::from(vec![1; BLOCK as usize]);
                first.write(block * BLOCK, data).await?;
            }
            Ok(())
        }
    });
    pausing.stopped().await;
    sleep(20 * SECOND).await;
    assert!(!writing.is_finished(), "there is no room");
    let mut found = vec![0; 1];
    let error = first.read(7 * BLOCK, &mut found).await;
    let error = error.expect_err("is superseded");
    assert_eq!(error.kind(), ErrorKind::Superseded, "{error:?}");
    let error: bucketdisk::error::Error = timeout(10 * SECOND, writing)
        .await
        .expect("is answered")
        .expect("no panic")
        .expect_err("is refused");
    assert_eq!(error.kind(), ErrorKind::Fenced);
}

/// Claims are what fences a sleeper. Where one is gone, months later, the sleeper still looks at the log before it commits.
#[tokio::test(start_paused = true)]
async fn a_writer_whose_last_record_is_older_than_a_day_reads_the_log_before_it_commits() {
    let bucket = Bucket::new();
    let faulty = Faulty::new(bucket.client(), 1);
    let client: Arc<dyn ObjectClient> = faulty.clone();
    let (first, second, model) = taken_over(&client, &bucket, DIRTY).await;
    let claim = keys::record(Seq(second.status().store.head - 1));
    // The first one's machine is off the net: not even its heartbeats come through.
    faulty.always(Some(Fault::Before(ErrorKind::Unreachable)));
    let data = Bytes::from_static(&[9; 1000]);
    first.write(50 * BLOCK, data).await.expect("is not known");
    sleep(25 * 60 * 60 * SECOND).await;
    second.close().await.expect("closes");
    assert!(bucket.body(&claim).is_some());
    bucket.apply(Change::Delete(claim.clone()));
    faulty.always(None);
    let error = first.flush().await.expect_err("is fenced");
    assert_eq!(error.kind(), ErrorKind::Fenced, "{error:?}");
    assert!(bucket.body(&claim).is_none(), "it put a record there");
    assert_visible(&bucket, &model, "a claim that is gone").await;
}
