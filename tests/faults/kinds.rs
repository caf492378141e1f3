//! Each kind of fault, with the product's own retries over it: what it may cost, and what it may not.

use std::sync::Arc;
use std::time::Duration;

use bucketdisk::disk::Disk;
use bucketdisk::error::{ErrorKind, Result};
use bucketdisk::object::{ObjectClient, Patience};
use bucketdisk::store::versioned::MountOptions;
use bytes::Bytes;
use tokio::time::{Instant, sleep};

use super::support::fault::{Fault, Faulty, Request, TIMEOUT, Weather};
use super::support::memory::Bucket;
use super::support::volume::{content, create, open, options};
use super::{BLOCK, DIRTY, SIZE, bucket_with_a_void_claim, filled, stored, write};

const PATIENCE: Duration = Duration::from_secs(3600);

/// A bucket with a disk, the faults in front of it, and the client that retries.
async fn home() -> (Bucket, Arc<Faulty>, Arc<dyn ObjectClient>) {
    let bucket = Bucket::new();
    create(&bucket.client(), SIZE, BLOCK).await;
    let faulty = Faulty::over(&bucket, 1);
    let client = faulty.behind_retries(Patience::new(PATIENCE), 8, 1);
    (bucket, faulty, client)
}

fn reading(list_blocks: bool) -> MountOptions {
    MountOptions {
        read_only: true,
        list_blocks,
        ..options()
    }
}

fn taking_over() -> MountOptions {
    MountOptions {
        take_over: true,
        ..options()
    }
}

/// What a bucket holds, by log and by listing.
async fn both(bucket: &Bucket) -> Vec<u8> {
    let by_log = stored(bucket).await;
    let disk = open(&bucket.client(), reading(true), DIRTY).await;
    assert!(content(&disk.expect("mounts")).await == by_log);
    by_log
}

fn is_put_of_block(request: &Request) -> bool {
    matches!(request, Request::Put(key) if key.starts_with("blocks/"))
}

fn is_get_of_block(request: &Request) -> bool {
    matches!(request, Request::Get(key) if key.starts_with("blocks/"))
}

fn is_record(request: &Request) -> bool {
    matches!(request, Request::PutIfAbsent(key) if key.starts_with("log/"))
}

#[tokio::test(start_paused = true)]
async fn a_truncated_block_is_fetched_again_and_never_shown() {
    let (bucket, faulty, client) = home().await;
    let disk = open(&client, options(), DIRTY).await.expect("mounts");
    let model = filled(&disk).await;
    disk.close().await.expect("closes");
    for len in [0, 31, 32, 1000, 4127] {
        let disk = open(&client, reading(false), DIRTY).await.expect("mounts");
        faulty.next_of(is_get_of_block, [Fault::Truncated(len); 3]);
        assert!(content(&disk).await == model, "{len} bytes");
    }
    let disk = open(&client, reading(false), DIRTY).await.expect("mounts");
    faulty.always(Some(Fault::Truncated(4127)));
    let error = disk.read(0, &mut [0; 512]).await.expect_err("damaged");
    assert_eq!(error.kind(), ErrorKind::Damaged, "{}", error.chain());
    assert!(error.chain().contains("block 0"), "{}", error.chain());
    faulty.always(None);
    assert!(content(&disk).await == model, "the damage was on the way");
    assert!(both(&bucket).await == model);
}

/// Whichever object of the log is cut on its way, with and without a void claim.
#[tokio::test(start_paused = true)]
async fn a_truncated_record_or_checkpoint_is_fetched_again() {
    let bucket = bucket_with_a_void_claim().await;
    for list_blocks in [false, true] {
        for place in 0.. {
            let faulty = Faulty::over(&bucket, 1);
            let is_log = |request: &Request| matches!(request, Request::Get(key) if key.starts_with("log/") || key.starts_with("map/"));
            let fine = std::iter::repeat_n(Fault::Delay(Duration::ZERO), place);
            faulty.next_of(is_log, fine.chain([Fault::Truncated(40)]));
            let client: Arc<dyn ObjectClient> = faulty.clone();
            let disk = open(&client, reading(list_blocks), DIRTY).await;
            let all = content(&disk.expect("mounts")).await;
            assert_eq!((all[0], all[BLOCK as usize]), (1, 2), "get {place}");
            if faulty.dealt().of("truncated bodies") == 0 {
                assert!(place > 1, "there are records and a checkpoint");
                break;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_is_cut_is_repeated() {
    let (bucket, faulty, client) = home().await;
    let disk = open(&client, options(), DIRTY).await.expect("mounts");
    faulty.next([Fault::Truncated(100); 9]);
    let model = filled(&disk).await;
    assert_eq!(faulty.dealt().of("truncated bodies"), 9);
    assert!(both(&bucket).await == model);
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_for_a_while_is_kept_and_committed_when_that_is_over() {
    let (bucket, faulty, client) = home().await;
    let disk = open(&client, options(), DIRTY).await.expect("mounts");
    let mut model = filled(&disk).await;
    faulty.for_a_while(Duration::from_secs(600), Fault::Status(403, None));
    model[..3000].fill(9);
    write(&disk, 0, &[9; 3000]).await;
    let error = disk.flush().await.expect_err("is refused");
    assert_eq!(error.kind(), ErrorKind::Denied, "{}", error.chain());
    let mut kept = [0; 3000];
    disk.read(0, &mut kept).await.expect("reads");
    assert!(kept == model[..3000], "it is kept");
    assert!(disk.status().commit_error.is_some(), "and status tells");
    // Nobody asks again.
    sleep(Duration::from_secs(700)).await;
    assert!(disk.status().commit_error.is_none());
    assert!(both(&bucket).await == model);
}

/// 500, 503 and 429 pass; where the store says when to come again, it is believed.
#[tokio::test(start_paused = true)]
async fn a_busy_store_is_asked_again_and_not_before_it_wants_to_be() {
    let wait = Duration::from_secs(20);
    for (status, asked) in [
        (500, None),
        (503, None),
        (429, None),
        (503, Some(wait)),
        (429, Some(wait)),
    ] {
        let (bucket, faulty, client) = home().await;
        let disk = open(&client, options(), DIRTY).await.expect("mounts");
        let so_far = faulty.log().len();
        faulty.for_a_while(Duration::from_secs(60), Fault::Status(status, asked));
        let model = filled(&disk).await;
        assert!(both(&bucket).await == model, "{status}");
        let log = &faulty.log()[so_far..];
        for (place, sent) in log.iter().enumerate() {
            let again = log[place + 1..]
                .iter()
                .find(|other| other.request == sent.request);
            let early = again.is_some_and(|again| again.at - sent.at < asked.unwrap_or_default());
            assert!(!early, "{status}: {:?} came again too soon", sent.request);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_never_answered_is_given_up_and_repeated() {
    for landing in [
        None,
        Some(Duration::from_secs(5)),
        Some(Duration::from_secs(100)),
    ] {
        for which in [is_put_of_block, is_record] {
            let (bucket, faulty, client) = home().await;
            let disk = open(&client, options(), DIRTY).await.expect("mounts");
            let mut model = filled(&disk).await;
            faulty.next_of(which, [Fault::Stall(landing)]);
            model[..512].fill(7);
            write(&disk, 0, &[7; 512]).await;
            let begun = Instant::now();
            disk.flush().await.expect("flushes");
            assert!(begun.elapsed() >= TIMEOUT, "it was waited for");
            assert!(both(&bucket).await == model);
            sleep(Duration::from_secs(200)).await;
            assert!(
                both(&bucket).await == model,
                "what landed late changes nothing"
            );
            disk.close().await.expect("closes");
        }
    }
}

/// Of a commit, every request's connection is reset, and the request lands all the same, after what has come since.
#[tokio::test(start_paused = true)]
async fn what_lands_after_its_retry_has_succeeded_changes_nothing() {
    for late in [None, Some(1), Some(40), Some(250)] {
        for fault in [Fault::Reset, |late: Option<Duration>| {
            Fault::Twice(late.unwrap_or_default())
        }] {
            let (bucket, faulty, client) = home().await;
            let disk = open(&client, options(), DIRTY).await.expect("mounts");
            let mut model = filled(&disk).await;
            for fill in 1..=3 {
                let so_far = faulty.log().len();
                let fault = fault(late.map(Duration::from_secs));
                faulty.next_of(is_put_of_block, [fault; 4]);
                faulty.next_of(is_record, [fault]);
                model[..4 * BLOCK as usize].fill(fill);
                write(&disk, 0, &[fill; 4 * BLOCK as usize]).await;
                disk.flush().await.expect("flushes");
                assert!(faulty.log().len() >= so_far + 5);
                assert!(both(&bucket).await == model);
            }
            model[..BLOCK as usize].fill(0);
            disk.zero(0, BLOCK).await.expect("discards");
            disk.flush().await.expect("flushes");
            for _ in 0..10 {
                sleep(Duration::from_secs(60)).await;
                assert!(both(&bucket).await == model, "{late:?}");
            }
            disk.close().await.expect("closes");
            assert!(both(&bucket).await == model, "{late:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_deletion_that_is_half_done_is_finished() {
    let (bucket, faulty, client) = home().await;
    let disk = open(&client, options(), DIRTY).await.expect("mounts");
    let model = filled(&disk).await;
    filled(&disk).await;
    let is_deletion = |request: &Request| matches!(request, Request::Delete(_));
    faulty.next_of(is_deletion, [Fault::Part, Fault::Part]);
    sleep(Duration::from_secs(900)).await;
    assert_eq!(faulty.dealt().of("half deletions"), 2);
    let blocks = bucket
        .keys()
        .into_iter()
        .filter(|key| key.starts_with("blocks/"));
    assert_eq!(blocks.count() as u64, SIZE / BLOCK);
    assert!(both(&bucket).await == model);
}

/// Writes the whole disk with one byte again and again, a commit each.
async fn overwrite(disk: &Disk, fills: std::ops::Range<u8>) -> Result<()> {
    for fill in fills {
        disk.write(0, Bytes::from(vec![fill; SIZE as usize]))
            .await?;
        disk.flush().await?;
    }
    Ok(())
}

fn uniform(all: &[u8]) -> Option<u8> {
    all.iter().all(|byte| *byte == all[0]).then_some(all[0])
}

/// Every listing takes many pages, between which the log and the blocks go on.
#[tokio::test(start_paused = true)]
async fn a_listing_in_pages_shows_no_mixture_of_states() {
    let (bucket, faulty, client) = home().await;
    let writer = open(&bucket.client(), options(), DIRTY)
        .await
        .expect("mounts");
    overwrite(&writer, 1..10).await.expect("writes");
    faulty.always(Some(Fault::Pages(2)));
    faulty.weather(Weather {
        latency_ms: 5..90,
        troubles: Vec::new(),
    });
    let going_on = tokio::spawn(async move {
        for fill in 10..200 {
            overwrite(&writer, fill..fill + 1).await.expect("writes");
            sleep(Duration::from_millis(800)).await;
        }
    });
    let mut mounts = 0;
    while !going_on.is_finished() {
        for list_blocks in [false, true] {
            let disk = open(&client, reading(list_blocks), DIRTY)
                .await
                .expect("mounts");
            let all = content(&disk).await;
            assert!(
                uniform(&all).is_some_and(|fill| fill > 0),
                "listing {list_blocks}"
            );
            mounts += 1;
        }
    }
    assert!(mounts > 4, "{mounts} mounts");
    going_on.await.expect("no panic");
}

/// The layout asks for listings that show what was stored before they began. Should they lag all the same, a reader sees an earlier
/// state, and a writer loses nothing: it waits, or does not mount.
#[tokio::test(start_paused = true)]
async fn a_listing_that_lags_shows_no_mixture_and_loses_no_commit() {
    for lag in [1, 5, 30] {
        for after in [0, 4, 20, 60] {
            let (bucket, faulty, client) = home().await;
            let writer = open(&bucket.client(), options(), DIRTY)
                .await
                .expect("mounts");
            for fill in 1..20 {
                overwrite(&writer, fill..fill + 1).await.expect("writes");
                sleep(Duration::from_secs(1)).await;
            }
            drop(writer);
            sleep(Duration::from_secs(after)).await;
            faulty.always(Some(Fault::Lag(Duration::from_secs(lag))));
            for list_blocks in [false, true] {
                let disk = open(&client, reading(list_blocks), DIRTY)
                    .await
                    .expect("mounts");
                let case = format!("lag {lag}, after {after}, listing {list_blocks}");
                let all = content(&disk).await;
                assert!(uniform(&all).is_some(), "{case}: a mixture");
            }
            match open(&client, taking_over(), DIRTY).await {
                Ok(disk) => {
                    assert_eq!(uniform(&content(&disk).await), Some(19));
                    overwrite(&disk, 20..21).await.expect("writes");
                }
                Err(error) => {
                    let kind = error.kind();
                    assert!(
                        matches!(kind, ErrorKind::Unreachable | ErrorKind::Held),
                        "{error:?}"
                    );
                }
            }
            // And whoever comes when listings are right again finds all of it.
            faulty.always(None);
            let disk = open(&client, taking_over(), DIRTY).await.expect("mounts");
            assert!(uniform(&content(&disk).await).is_some_and(|fill| fill >= 19));
            overwrite(&disk, 30..31).await.expect("writes");
            assert_eq!(uniform(&both(&bucket).await), Some(30));
        }
    }
}
