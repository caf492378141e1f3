//! The native layout through its front door: the contract of block stores, and its own promises about claims, fencing, lost
//! answers, checkpoints, pruning and garbage.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bucketdisk::block::BlockIndex;
use bucketdisk::error::{Error, ErrorKind, Result};
use bucketdisk::object::{ListPage, ObjectClient, PutOutcome};
use bucketdisk::store::versioned::{self, keys};
use bucketdisk::store::{BlockStore, ReadError};
use bytes::Bytes;
use parking_lot::Mutex;
use support::block_store_contract::{self, Home, first_byte, given};
use support::memory::{Bucket, Change};
use support::volume::{codec, create, mount, options};

mod support;

const SIZE: u64 = 32 * 4096;

struct InMemory(Bucket);

#[async_trait]
impl Home for InMemory {
    async fn mount(&self) -> Arc<dyn BlockStore> {
        mount(&self.0.client(), options()).await.expect("mounts")
    }
}

async fn bucket() -> Bucket {
    let bucket = Bucket::new();
    create(&bucket.client(), SIZE, 4096).await;
    bucket
}

#[tokio::test(start_paused = true)]
async fn the_native_layout_keeps_the_contract_of_block_stores() {
    block_store_contract::check(async || Arc::new(InMemory(bucket().await)) as Arc<dyn Home>).await;
}

#[tokio::test(start_paused = true)]
async fn a_held_disk_is_refused_and_the_holder_named() {
    let bucket = bucket().await;
    let first = mount(&bucket.client(), options()).await.expect("mounts");
    let before = bucket.keys();
    let error = mount(&bucket.client(), options())
        .await
        .expect_err("is held");
    assert_eq!(error.kind(), ErrorKind::Held);
    let host = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    for part in [
        host.as_str(),
        &std::process::id().to_string(),
        "--take-over",
    ] {
        assert!(
            error.chain().contains(part),
            "{} lacks {part}",
            error.chain()
        );
    }
    assert_eq!(
        bucket.keys(),
        before,
        "a refused mount leaves nothing behind"
    );
    first
        .commit(given(&[(1, 1)], &[]))
        .await
        .expect("the holder goes on undisturbed");
}

#[tokio::test(start_paused = true)]
async fn a_session_known_to_be_dead_on_this_machine_is_no_obstacle() {
    let bucket = bucket().await;
    let first = options();
    let session = first.session;
    let store = mount(&bucket.client(), first).await.expect("mounts");
    store.commit(given(&[(1, 1)], &[])).await.expect("commits");
    drop(store);
    let mut again = options();
    again.own_dead_sessions = vec![session];
    let store = mount(&bucket.client(), again)
        .await
        .expect("goes on after the crash");
    assert_eq!(first_byte(&*store, 1).await, 1);
}

#[tokio::test(start_paused = true)]
async fn after_a_take_over_nothing_of_the_first_writer_lands() {
    let bucket = bucket().await;
    let first = mount(&bucket.client(), options()).await.expect("mounts");
    first.commit(given(&[(1, 1)], &[])).await.expect("commits");
    let mut over = options();
    over.take_over = true;
    let second = mount(&bucket.client(), over).await.expect("takes over");
    for _ in 0..2 {
        let error = first
            .commit(given(&[(1, 9), (2, 9)], &[]))
            .await
            .expect_err("is fenced");
        assert_eq!(error.kind(), ErrorKind::Fenced);
    }
    assert!(first.is_read_only());
    assert_eq!(
        first
            .release()
            .await
            .expect_err("has nothing to release")
            .kind(),
        ErrorKind::Fenced
    );
    assert_eq!(first_byte(&*first, 1).await, 1, "reads go on");
    second
        .commit(given(&[(2, 2)], &[]))
        .await
        .expect("the new holder commits");
    second.release().await.expect("releases");
    for list_blocks in [false, true] {
        let mut reader = options();
        (reader.read_only, reader.list_blocks) = (true, list_blocks);
        let store = mount(&bucket.client(), reader).await.expect("mounts");
        assert_eq!(
            (first_byte(&*store, 1).await, first_byte(&*store, 2).await),
            (1, 2),
            "listing: {list_blocks}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_read_only_mount_shows_one_state_and_writes_nothing() {
    let bucket = bucket().await;
    let writer = mount(&bucket.client(), options()).await.expect("mounts");
    writer.commit(given(&[(1, 1)], &[])).await.expect("commits");
    let before = bucket.changes();
    let mut reading = options();
    reading.read_only = true;
    let reader = mount(&bucket.client(), reading)
        .await
        .expect("a held disk may be read");
    assert_eq!(bucket.changes(), before);
    writer
        .commit(given(&[(1, 2), (2, 2)], &[]))
        .await
        .expect("commits");
    assert_eq!(
        (first_byte(&*reader, 1).await, first_byte(&*reader, 2).await),
        (1, 0)
    );
    tokio::time::sleep(Duration::from_secs(600)).await;
    let version = reader
        .version(BlockIndex(1))
        .expect("the reader's state has not changed");
    let ReadError::Failed(error) = reader
        .read(BlockIndex(1), version)
        .await
        .expect_err("its object is gone")
    else {
        panic!("the reader's map never changes")
    };
    assert_eq!(error.kind(), ErrorKind::Superseded);
    assert!(error.chain().contains("mount again"), "{}", error.chain());
}

#[tokio::test(start_paused = true)]
async fn superseded_objects_are_deleted_after_the_grace_and_not_before() {
    let bucket = bucket().await;
    let store = mount(&bucket.client(), options()).await.expect("mounts");
    let first = store.commit(given(&[(1, 1)], &[])).await.expect("commits");
    let old = keys::block(BlockIndex(1), first);
    store.commit(given(&[(1, 2)], &[])).await.expect("commits");
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert!(
        bucket.body(&old).is_some(),
        "a reader elsewhere still has time"
    );
    assert_eq!(store.status().garbage_objects, 1);
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert_eq!(bucket.body(&old), None);
    assert_eq!(store.status().garbage_objects, 0);
}

#[tokio::test(start_paused = true)]
async fn garbage_of_a_short_session_is_deleted_by_a_later_one() {
    let bucket = bucket().await;
    let store = mount(&bucket.client(), options()).await.expect("mounts");
    let first = store.commit(given(&[(1, 1)], &[])).await.expect("commits");
    store.commit(given(&[(1, 2)], &[])).await.expect("commits");
    store.release().await.expect("releases");
    let old = keys::block(BlockIndex(1), first);
    assert!(bucket.body(&old).is_some());
    bucket.set_ahead(Duration::from_secs(3600));
    let store = mount(&bucket.client(), options()).await.expect("mounts");
    tokio::time::sleep(Duration::from_secs(31)).await;
    assert_eq!(
        bucket.body(&old),
        None,
        "the checkpoint told the next session, and when"
    );
    assert_eq!(first_byte(&*store, 1).await, 2);
}

#[tokio::test(start_paused = true)]
async fn many_commits_are_checkpointed_and_the_log_is_pruned_but_for_claims() {
    let bucket = bucket().await;
    let store = mount(&bucket.client(), options()).await.expect("mounts");
    for round in 0..300u64 {
        store
            .commit(given(&[(round % 7, (round % 250) as u8 + 1)], &[]))
            .await
            .expect("commits");
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    tokio::time::sleep(Duration::from_secs(600)).await;
    store.commit(given(&[(9, 9)], &[])).await.expect("commits");
    store.release().await.expect("releases");
    let keys = bucket.keys();
    assert!(keys.contains(&"log/00000001".to_owned()), "the claim stays");
    let records = keys.iter().filter(|key| key.starts_with("log/")).count();
    assert!(records < 12, "{records} records are left");
    assert_eq!(
        keys.iter().filter(|key| key.starts_with("map/")).count(),
        1,
        "older checkpoints are gone"
    );
    let before = bucket.requests();
    let again = mount(&bucket.client(), options()).await.expect("mounts");
    let gets = bucket.requests().gets - before.gets;
    assert!(
        gets <= 6,
        "a clean mount reads superblock, checkpoint and a few records, not {gets} objects"
    );
    assert_eq!(first_byte(&*again, 9).await, 9);
    assert_eq!(first_byte(&*again, 299 % 7).await, (299 % 250) as u8 + 1);
}

#[tokio::test(start_paused = true)]
async fn an_idle_holder_shows_that_it_lives() {
    let bucket = bucket().await;
    let store = mount(&bucket.client(), options()).await.expect("mounts");
    let head = store.status().head;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(store.status().head >= head + 5, "about every ten minutes");
    store
        .commit(given(&[(1, 1)], &[]))
        .await
        .expect("commits after heartbeats");
}

/// A mount without the checkpoint must find the same disk in the blocks themselves.
#[tokio::test(start_paused = true)]
async fn a_lost_checkpoint_is_made_up_for_by_listing_the_blocks() {
    let bucket = bucket().await;
    let store = mount(&bucket.client(), options()).await.expect("mounts");
    for round in 0..200u64 {
        let hole = round % 5;
        store
            .commit(given(
                &[(5 + round % 11, (round % 250) as u8 + 1)],
                &[(hole + 20, hole + 21)],
            ))
            .await
            .expect("commits");
        store
            .commit(given(&[(20 + round % 5, 7)], &[]))
            .await
            .expect("commits");
    }
    store.commit(given(&[], &[(0, 7)])).await.expect("commits");
    store.release().await.expect("releases");
    let mut expected = Vec::new();
    for index in 0..32 {
        expected.push(first_byte(&*store, index).await);
    }
    drop(store);
    let lost: Vec<String> = bucket
        .keys()
        .into_iter()
        .filter(|key| key.starts_with("map/"))
        .collect();
    assert_eq!(lost.len(), 1);
    bucket.apply(Change::Delete(lost[0].clone()));
    let store = mount(&bucket.client(), options())
        .await
        .expect("mounts without a checkpoint");
    for (index, fill) in expected.iter().enumerate() {
        assert_eq!(
            first_byte(&*store, index as u64).await,
            *fill,
            "block {index}"
        );
    }
    tokio::time::sleep(Duration::from_secs(900)).await;
    for (index, fill) in expected.iter().enumerate() {
        assert_eq!(
            first_byte(&*store, index as u64).await,
            *fill,
            "block {index} after garbage was deleted"
        );
    }
}

/// A writer that dies between its blocks and its record leaves blocks that were never committed, under the number that the next
/// claim takes.
#[tokio::test(start_paused = true)]
async fn blocks_of_a_commit_that_never_landed_are_ignored_and_swept() {
    let bucket = bucket().await;
    let store = mount(&bucket.client(), options()).await.expect("mounts");
    store.commit(given(&[(1, 1)], &[])).await.expect("commits");
    let head = store.status().head;
    let next = store
        .commit(given(&[(1, 9), (3, 9)], &[]))
        .await
        .expect("commits");
    assert_eq!(next.0, head + 1);
    drop(store);
    let crash = bucket
        .history()
        .iter()
        .position(|c| matches!(c, Change::Put(key, _) if *key == keys::record(next)));
    let cut = bucket.cut(crash.expect("the record was put"));
    assert!(cut.body(&keys::block(BlockIndex(3), next)).is_some());
    for list_blocks in [false, true] {
        let cut = cut.cut(cut.changes());
        let mut over = options();
        (over.take_over, over.list_blocks) = (true, list_blocks);
        let store = mount(&cut.client(), over).await.expect("mounts");
        assert_eq!(
            (first_byte(&*store, 1).await, first_byte(&*store, 3).await),
            (1, 0),
            "listing: {list_blocks}"
        );
        store.commit(given(&[(4, 4)], &[])).await.expect("commits");
        tokio::time::sleep(Duration::from_secs(900)).await;
        assert_eq!(
            cut.body(&keys::block(BlockIndex(3), next)),
            None,
            "swept; listing: {list_blocks}"
        );
        assert_eq!(
            (first_byte(&*store, 1).await, first_byte(&*store, 4).await),
            (1, 4)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn damaged_missing_and_swapped_blocks_are_errors_that_name_the_block() {
    let bucket = bucket().await;
    let store = mount(&bucket.client(), options()).await.expect("mounts");
    let version = store
        .commit(given(&[(1, 1), (2, 2), (3, 3)], &[]))
        .await
        .expect("commits");
    let key = |index| keys::block(BlockIndex(index), version);
    let mut flipped = bucket.body(&key(1)).expect("there").to_vec();
    let last = flipped.len() - 1;
    flipped[last] ^= 1;
    let swapped = bucket.body(&key(3)).expect("there");
    bucket.apply(Change::Put(key(1), flipped.into()));
    bucket.apply(Change::Put(key(2), swapped));
    bucket.apply(Change::Delete(key(3)));
    for index in 1..=3 {
        let ReadError::Failed(error) = store
            .read(BlockIndex(index), version)
            .await
            .expect_err("damaged")
        else {
            panic!("not stale")
        };
        assert_eq!(error.kind(), ErrorKind::Damaged);
        assert!(
            error.chain().contains(&format!("block {index} ")),
            "{}",
            error.chain()
        );
        assert!(error.chain().contains(&key(index)), "{}", error.chain());
    }
}

#[tokio::test(start_paused = true)]
async fn create_never_touches_a_disk_that_is_there() {
    let bucket = bucket().await;
    let before = bucket.body("disk.json");
    let spec = versioned::DiskSpec {
        geometry: bucketdisk::block::Geometry::new(8192, 4096).expect("valid"),
        label: String::new(),
        compression: bucketdisk::codec::compress::Compression::None,
        encryption: None,
        unsafe_no_fencing: false,
    };
    let error = versioned::create(&bucket.client(), &spec)
        .await
        .expect_err("there is one");
    assert_eq!(error.kind(), ErrorKind::Exists);
    assert_eq!(bucket.body("disk.json"), before);
}

#[tokio::test(start_paused = true)]
async fn delete_removes_the_disk_and_nothing_else() {
    let bucket = bucket().await;
    let client: Arc<dyn ObjectClient> = bucket.client();
    let store = mount(&client, options()).await.expect("mounts");
    store
        .commit(given(&[(1, 1), (2, 2)], &[]))
        .await
        .expect("commits");
    for foreign in [
        "blocks/readme",
        "photo.jpg",
        "log/notes.txt",
        "blocks/00/0000000000.00000001.bak",
    ] {
        bucket.apply(Change::Put(foreign.to_owned(), "mine".into()));
    }
    let quiet: versioned::OnProgress = Arc::new(|_| {});
    let disk = versioned::read_superblock(&client).await.expect("is there");
    let error = versioned::delete(&client, Some((&disk, &codec())), &[], &quiet)
        .await
        .expect_err("is held");
    assert_eq!(error.kind(), ErrorKind::Held);
    store.release().await.expect("releases");
    bucket.apply(Change::Put(keys::generation(2), "old".into()));
    versioned::delete(&client, Some((&disk, &codec())), &[], &quiet)
        .await
        .expect("deletes");
    let left = [
        "blocks/00/0000000000.00000001.bak",
        "blocks/readme",
        "log/notes.txt",
        "photo.jpg",
    ];
    assert_eq!(bucket.keys(), left);
    let error = versioned::read_superblock(&client)
        .await
        .expect_err("is gone");
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

/// A claim that was sent before its slot was used and pruned, and arrives after, is void. It must fence nobody, hold nothing, and
/// not make a listing forget the blocks of the commit whose number it has.
#[tokio::test(start_paused = true)]
async fn a_void_claim_in_a_pruned_slot_changes_nothing() {
    let bucket = bucket().await;
    let first = mount(&bucket.client(), options()).await.expect("mounts");
    first.commit(given(&[(1, 1)], &[])).await.expect("commits");
    let late = bucket.cut(bucket.changes());
    let before = late.changes();
    let slow = {
        let mut over = options();
        over.take_over = true;
        mount(&late.client(), over)
            .await
            .expect("takes over, as far as it can tell")
    };
    let claim = late
        .history()
        .into_iter()
        .skip(before)
        .find(|change| matches!(change, Change::Put(key, _) if key.starts_with("log/")));
    let Some(Change::Put(slot, body)) = claim else {
        panic!("it claimed")
    };
    drop(slow);

    let committed = first
        .commit(given(&[(2, 2)], &[]))
        .await
        .expect("commits, before the claim arrives");
    assert_eq!(
        keys::record(committed),
        slot,
        "into the slot that the claim is on its way to"
    );
    first
        .release()
        .await
        .expect("checkpoints, prunes and releases");
    drop(first);
    assert_eq!(bucket.body(&slot), None, "the slot is free again");
    bucket.apply(Change::Put(slot, body));

    let expected = [(1, 1), (2, 2)];
    for list_blocks in [false, true] {
        for read_only in [true, false] {
            let bucket = bucket.cut(bucket.changes());
            let mut again = options();
            (again.list_blocks, again.read_only) = (list_blocks, read_only);
            let store = mount(&bucket.client(), again).await.expect("is free");
            for (index, fill) in expected {
                assert_eq!(
                    first_byte(&*store, index).await,
                    fill,
                    "listing: {list_blocks}, read-only: {read_only}"
                );
            }
        }
    }
    // Also where it is the newest record there is, beside the checkpoint of the same number.
    bucket.apply(Change::Delete(keys::record(bucketdisk::block::Seq(
        committed.0 + 1,
    ))));
    let mut again = options();
    again.read_only = true;
    let store = mount(&bucket.client(), again).await.expect("mounts");
    assert_eq!(first_byte(&*store, 2).await, 2);
}

/// A store whose create-if-absent cannot be relied on: it ignores the condition, or has no such operation.
#[derive(Debug)]
struct NoFence {
    bucket: Bucket,
    refuses: bool,
}

#[async_trait]
impl ObjectClient for NoFence {
    async fn get(&self, key: &str) -> Result<Bytes> {
        self.bucket.get(key).await
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<()> {
        self.bucket.put(key, body).await
    }

    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<PutOutcome> {
        if self.refuses {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "the store answered 501 NotImplemented",
            ));
        }
        self.bucket.put(key, body).await?;
        Ok(PutOutcome::Created)
    }

    async fn delete_many(&self, keys: &[String]) -> Result<()> {
        self.bucket.delete_many(keys).await
    }

    async fn list(&self, folder: &str, after: Option<&str>) -> Result<ListPage> {
        self.bucket.list(folder, after).await
    }

    fn location(&self) -> String {
        self.bucket.location()
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_cannot_fence_is_refused_for_writing_unless_that_is_accepted() {
    for refuses in [false, true] {
        let bucket = Bucket::new();
        let client: Arc<dyn ObjectClient> = Arc::new(NoFence {
            bucket: bucket.clone(),
            refuses,
        });
        let mut spec = versioned::DiskSpec {
            geometry: bucketdisk::block::Geometry::new(SIZE, 4096).expect("valid"),
            label: String::new(),
            compression: bucketdisk::codec::compress::Compression::None,
            encryption: None,
            unsafe_no_fencing: false,
        };
        let error = versioned::create(&client, &spec)
            .await
            .expect_err("is refused");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(bucket.keys().is_empty(), "{:?}", bucket.keys());
        spec.unsafe_no_fencing = true;
        versioned::create(&client, &spec)
            .await
            .expect("is accepted");
        assert_eq!(
            versioned::create(&client, &spec)
                .await
                .expect_err("is there")
                .kind(),
            ErrorKind::Exists
        );

        let error = mount(&client, options()).await.expect_err("is refused");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(
            error.chain().contains("--unsafe-no-fencing"),
            "{}",
            error.chain()
        );
        assert_eq!(
            bucket.keys(),
            ["disk.json"],
            "a refused mount leaves nothing behind"
        );
        let mut accepted = options();
        accepted.unsafe_no_fencing = true;
        let store = mount(&client, accepted).await.expect("is accepted");
        store.commit(given(&[(1, 1)], &[])).await.expect("commits");
        store.release().await.expect("releases");
        let mut reader = options();
        reader.read_only = true;
        let store = mount(&client, reader)
            .await
            .expect("reading needs no fence");
        assert_eq!(first_byte(&*store, 1).await, 1);
    }
}

/// Blocks whose log and checkpoints are gone are not an empty disk.
#[tokio::test(start_paused = true)]
async fn blocks_without_a_log_are_damage_and_not_zeros() {
    let bucket = bucket().await;
    let store = mount(&bucket.client(), options()).await.expect("mounts");
    store
        .commit(given(&[(1, 1), (200 % 32, 2)], &[]))
        .await
        .expect("commits");
    store.release().await.expect("releases");
    for key in bucket.keys() {
        if key.starts_with("log/") || key.starts_with("map/") {
            bucket.apply(Change::Delete(key));
        }
    }
    let before = bucket.keys();
    for (read_only, list_blocks) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut again = options();
        (again.read_only, again.list_blocks) = (read_only, list_blocks);
        let error = mount(&bucket.client(), again)
            .await
            .expect_err("is damaged");
        assert_eq!(error.kind(), ErrorKind::Damaged);
        assert!(error.chain().contains("log/"), "{}", error.chain());
    }
    assert_eq!(bucket.keys(), before, "nothing was claimed");
}

/// A bucket to which the first commit of all comes just before its blocks are listed.
#[derive(Debug)]
struct FirstCommit {
    bucket: Bucket,
    coming: Mutex<Vec<Change>>,
}

#[async_trait]
impl ObjectClient for FirstCommit {
    async fn get(&self, key: &str) -> Result<Bytes> {
        self.bucket.get(key).await
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<()> {
        self.bucket.put(key, body).await
    }

    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<PutOutcome> {
        self.bucket.put_if_absent(key, body).await
    }

    async fn delete_many(&self, keys: &[String]) -> Result<()> {
        self.bucket.delete_many(keys).await
    }

    async fn list(&self, folder: &str, after: Option<&str>) -> Result<ListPage> {
        if folder == keys::BLOCKS_FOLDER {
            for change in std::mem::take(&mut *self.coming.lock()) {
                self.bucket.apply(change);
            }
        }
        self.bucket.list(folder, after).await
    }

    fn location(&self) -> String {
        self.bucket.location()
    }
}

/// Who looks at the log before the first commit and at the blocks after it is not told that the log is gone.
#[tokio::test(start_paused = true)]
async fn a_reader_of_a_new_disk_sees_its_first_commit_come_without_taking_it_for_damage() {
    let bucket = bucket().await;
    let new = bucket.changes();
    let store = mount(&bucket.client(), options()).await.expect("mounts");
    store.commit(given(&[(1, 1)], &[])).await.expect("commits");
    let client: Arc<dyn ObjectClient> = Arc::new(FirstCommit {
        bucket: bucket.cut(new),
        coming: Mutex::new(bucket.history().split_off(new)),
    });
    let mut reader = options();
    reader.read_only = true;
    let store = mount(&client, reader).await.expect("mounts");
    assert_eq!(first_byte(&*store, 1).await, 1);
}

/// However many other objects lie before them.
#[tokio::test(start_paused = true)]
async fn foreign_objects_do_not_hide_blocks_without_a_log() {
    let bucket = bucket().await;
    for number in 0..2100 {
        let key = format!("{}.trash/{number:04}", keys::BLOCKS_FOLDER);
        bucket.apply(Change::Put(key, "x".into()));
    }
    let mut reader = options();
    reader.read_only = true;
    mount(&bucket.client(), reader.clone())
        .await
        .expect("none of these is a block");
    let key = keys::block(bucketdisk::block::BlockIndex(3), bucketdisk::block::Seq(2));
    bucket.apply(Change::Put(key, "x".into()));
    let error = mount(&bucket.client(), reader)
        .await
        .expect_err("is damaged");
    assert_eq!(error.kind(), ErrorKind::Damaged);
}
