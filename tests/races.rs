//! What others do to a disk while a mount reads it. Most of these were found by a model of the protocol.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use bucketdisk::block::{BlockIndex, Seq};
use bucketdisk::error::ErrorKind;
use bucketdisk::object::ObjectClient;
use bucketdisk::store::versioned::{MountOptions, Sources, VersionedStore, keys};
use bucketdisk::store::{BlockStore, ReadError};
use support::block_store_contract::{first_byte, given};
use support::fault::{Fault, Faulty, Request};
use support::memory::{Bucket, Change};
use support::pause::{Held, Pausing, Side};
use support::volume::{create, mount, options};

mod support;

/// Longer than superseded objects are kept.
const LONG: Duration = Duration::from_secs(1000);

async fn bucket() -> Bucket {
    let bucket = Bucket::new();
    create(&bucket.client(), 32 * 4096, 4096).await;
    bucket
}

fn taking_over() -> MountOptions {
    let mut options = options();
    options.take_over = true;
    // One after the other, so that a request can be told by how many came before it.
    options.requests = 1;
    options
}

/// Mounts the disk; `meanwhile` happens right before the `nth` (from 1) listing of a folder.
async fn mount_while(
    bucket: &Bucket,
    options: MountOptions,
    (folder, nth): (&str, usize),
    meanwhile: impl AsyncFnOnce(),
) -> bucketdisk::error::Result<Arc<VersionedStore>> {
    let rehearsal = Faulty::new(bucket.cut(bucket.changes()).client(), 0);
    let client: Arc<dyn ObjectClient> = rehearsal.clone();
    mount(&client, options.clone())
        .await
        .expect("mounts undisturbed");
    let listing = Request::List(folder.to_owned());
    let requests = rehearsal.requests();
    let mut listings = requests
        .iter()
        .enumerate()
        .filter(|(_, request)| **request == listing);
    let (before, _) = listings.nth(nth - 1).expect("that many listings");

    let slow = Faulty::new(bucket.client(), 0);
    slow.next(vec![Fault::Delay(Duration::ZERO); before]);
    slow.next([Fault::Delay(LONG)]);
    let client: Arc<dyn ObjectClient> = slow.clone();
    let mounting = tokio::spawn(async move { mount(&client, options).await });
    while slow.requests().len() <= before {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    meanwhile().await;
    mounting.await.expect("no panic")
}

/// A disk at record 3 whose writer is about to put a checkpoint of that, and what becomes of slot 3 then: the record is pruned, and
/// a claim lands there that was sent when the head was 2.
struct Pruned {
    before: Bucket,
    checkpoint: Change,
    claim: Change,
}

async fn pruned() -> Pruned {
    let bucket = bucket().await;
    let writer = mount(&bucket.client(), options()).await.expect("mounts");
    writer.commit(given(&[(1, 1)], &[])).await.expect("commits");
    let late = bucket.cut(bucket.changes());
    mount(&late.client(), taking_over())
        .await
        .expect("claims the slot, in its own world");
    let third = writer.commit(given(&[(2, 2)], &[])).await.expect("commits");
    assert_eq!(third, Seq(3));
    writer
        .release()
        .await
        .expect("checkpoints, prunes and releases");
    let history = bucket.history();
    let is_put = |change: &Change, key: &str| matches!(change, Change::Put(k, _) if k == key);
    let checkpoint = history
        .iter()
        .position(|change| is_put(change, &keys::checkpoint(third)));
    let checkpoint = checkpoint.expect("was put");
    let claims = late.history();
    let claim = claims
        .iter()
        .find(|change| is_put(change, &keys::record(third)));
    Pruned {
        before: bucket.cut(checkpoint),
        checkpoint: history[checkpoint].clone(),
        claim: claim.expect("it claimed").clone(),
    }
}

/// The first look's listings of checkpoints and of records are two requests. Between them a record can be pruned and its number
/// be taken by a void claim, and a claim that names that one as its predecessor would break the log for good.
#[tokio::test(start_paused = true)]
async fn a_void_claim_is_not_followed_although_its_checkpoint_came_after_the_look() {
    let Pruned {
        before: bucket,
        checkpoint,
        claim,
    } = pruned().await;
    let store = mount_while(&bucket, taking_over(), ("log/", 1), async || {
        bucket.apply(checkpoint);
        bucket.apply(Change::Delete(keys::record(Seq(2))));
        bucket.apply(Change::Delete(keys::record(Seq(3))));
        bucket.apply(claim);
    })
    .await
    .expect("mounts");
    store.commit(given(&[(3, 3)], &[])).await.expect("commits");
    store.release().await.expect("releases");
    for list_blocks in [false, true] {
        let mut again = options();
        (again.read_only, again.list_blocks) = (true, list_blocks);
        let again = mount(&bucket.client(), again)
            .await
            .expect("the log is whole");
        for index in 1..=3 {
            assert_eq!(
                first_byte(&*again, index).await,
                index as u8,
                "listing: {list_blocks}"
            );
        }
    }
}

/// The same between the two listings of the second pass: the log looks spliced for as long as the checkpoint is not seen.
#[tokio::test(start_paused = true)]
async fn a_log_that_is_pruned_while_it_is_read_is_no_damage() {
    let Pruned {
        before: bucket,
        checkpoint,
        claim,
    } = pruned().await;
    let store = mount_while(&bucket, taking_over(), ("log/", 2), async || {
        bucket.apply(checkpoint);
        bucket.apply(Change::Delete(keys::record(Seq(3))));
        bucket.apply(claim);
    })
    .await
    .expect("mounts");
    assert_eq!(
        (first_byte(&*store, 1).await, first_byte(&*store, 2).await),
        (1, 2)
    );
}

/// A mount for writing that lists the blocks may take longer than superseded ones are kept; when it was itself taken over
/// meanwhile, what it finds is of no one state.
#[tokio::test(start_paused = true)]
async fn a_slow_listing_that_was_overtaken_is_begun_anew() {
    let bucket = bucket().await;
    let writer = mount(&bucket.client(), options()).await.expect("mounts");
    writer.commit(given(&[(1, 1)], &[])).await.expect("commits");
    let mut listing = taking_over();
    listing.list_blocks = true;
    let store = mount_while(&bucket, listing, ("blocks/01/", 1), async || {
        let second = mount(&bucket.client(), taking_over())
            .await
            .expect("takes over");
        second.commit(given(&[(1, 2)], &[])).await.expect("commits");
        tokio::time::sleep(LONG / 2).await;
        assert_eq!(
            second.status().garbage_objects,
            0,
            "what it superseded is gone"
        );
    })
    .await
    .expect("mounts");
    assert_eq!(first_byte(&*store, 1).await, 2);
}

/// As above, but it was the machine that slept, and with it the clock that is never set.
#[tokio::test(start_paused = true)]
async fn a_listing_that_slept_while_it_was_overtaken_is_begun_anew() {
    let bucket = bucket().await;
    let writer = mount(&bucket.client(), options()).await.expect("mounts");
    writer.commit(given(&[(1, 1)], &[])).await.expect("commits");
    let superseded = bucket.keys().into_iter();
    let superseded = superseded.filter(|key| key.starts_with("blocks/01/"));
    let superseded: Vec<String> = superseded.collect();
    assert_eq!(superseded.len(), 1, "{superseded:?}");
    let mut listing = taking_over();
    listing.list_blocks = true;
    let slept = Arc::new(AtomicBool::new(false));
    let (is_later, began) = (Arc::clone(&slept), SystemTime::now());
    let now = move || match is_later.load(Ordering::Relaxed) {
        true => began + LONG,
        false => began,
    };
    listing.sources = Sources::new(now, rand::random);
    let store = mount_while(&bucket, listing, ("blocks/01/", 1), async || {
        let second = mount(&bucket.client(), taking_over())
            .await
            .expect("takes over");
        second.commit(given(&[(1, 2)], &[])).await.expect("commits");
        for key in &superseded {
            bucket.apply(Change::Delete(key.clone()));
        }
        slept.store(true, Ordering::Relaxed);
    })
    .await
    .expect("mounts");
    assert_eq!(first_byte(&*store, 1).await, 2);
}

/// Of two old versions of a block that has become a hole, one is deleted before the other. As long as one is there, so is the
/// record of the hole: a listing needs it.
#[tokio::test(start_paused = true)]
async fn a_hole_stays_one_for_listings_until_every_old_version_is_deleted() {
    let bucket = bucket().await;
    let store = mount(&bucket.client(), options()).await.expect("mounts");
    for fill in [1, 2] {
        store
            .commit(given(&[(1, fill)], &[]))
            .await
            .expect("commits");
    }
    store.commit(given(&[], &[(1, 2)])).await.expect("commits");
    store.release().await.expect("releases");
    bucket.set_ahead(LONG);
    let mut listing = options();
    listing.list_blocks = true;
    let store = mount(&bucket.client(), listing.clone())
        .await
        .expect("mounts");
    tokio::time::sleep(Duration::from_secs(60)).await;
    store
        .release()
        .await
        .expect("checkpoints, prunes and releases");
    let store = mount(&bucket.client(), listing).await.expect("mounts");
    assert_eq!(first_byte(&*store, 1).await, 0);
}

/// Two mounts find the disk free at the same time: the number of the claim goes to one of them.
#[tokio::test(start_paused = true)]
async fn a_claim_that_another_was_quicker_to_put_is_no_claim() {
    let bucket = bucket().await;
    let slow = Faulty::new(bucket.client(), 0);
    let is_claim =
        |request: &Request| matches!(request, Request::PutIfAbsent(key) if key.starts_with("log/"));
    slow.next_of(is_claim, [Fault::Delay(LONG)]);
    let client: Arc<dyn ObjectClient> = slow.clone();
    let mounting = tokio::spawn(async move { mount(&client, options()).await });
    while !slow.requests().iter().any(is_claim) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let quicker = mount(&bucket.client(), options()).await.expect("is free");
    let error = mounting
        .await
        .expect("no panic")
        .expect_err("is held by now");
    assert_eq!(error.kind(), ErrorKind::Held);
    quicker
        .commit(given(&[(1, 1)], &[]))
        .await
        .expect("has the disk");
}

/// A reader tells a superseded block from a lost one by checkpoints and log. Between the two listings what it looks for can go from the
/// log into a checkpoint.
#[tokio::test(start_paused = true)]
async fn a_commit_that_is_pruned_while_a_reader_asks_for_it_is_no_damage() {
    let bucket = bucket().await;
    let writer = mount(&bucket.client(), options()).await.expect("mounts");
    writer.commit(given(&[(1, 1)], &[])).await.expect("commits");
    let slow = Pausing::new(bucket.client());
    let client: Arc<dyn ObjectClient> = slow.clone();
    let mut reading = options();
    reading.read_only = true;
    let reader = mount(&client, reading).await.expect("mounts");
    writer.commit(given(&[(1, 2)], &[])).await.expect("commits");
    tokio::time::sleep(LONG).await;
    assert_eq!(writer.status().garbage_objects, 0);

    // The block, the first listing; and then the writer leaves, with a checkpoint.
    slow.stop_after(2, Side::Before, Held::This);
    let read = tokio::spawn(async move {
        let version = reader.version(BlockIndex(1)).expect("stored");
        reader.read(BlockIndex(1), version).await
    });
    slow.stopped().await;
    writer.release().await.expect("releases");
    let records = bucket.client().list("log/", None).await.expect("lists");
    assert_eq!(records.entries.len(), 2, "only claim and release are left");
    slow.resume();
    match read.await.expect("no panic") {
        Err(ReadError::Failed(error)) => assert_eq!(error.kind(), ErrorKind::Superseded),
        other => panic!("{other:?}"),
    }
}
