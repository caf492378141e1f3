//! A bucket that was put back to an older copy, that has lost its newest objects, or that goes on from another copy, is refused by every
//! machine that has seen a later state, before anything is written to it; and nothing that machines regularly do to a disk is taken for
//! that (`tests/rollback/walk.rs`).

use std::sync::Arc;
use std::time::Duration;

use bucketdisk::block::Seq;
use bucketdisk::error::{Error, ErrorKind};
use bucketdisk::object::ObjectClient;
use bucketdisk::store::BlockStore;
use bucketdisk::store::versioned::record::Digest;
use bucketdisk::store::versioned::{
    MountOptions, Pin, Rollback, VersionedStore, inspect, keys, read_superblock,
};
use parking_lot::Mutex;
use support::block_store_contract::given;
use support::fault::{Fault, Faulty, Request};
use support::memory::{Bucket, Change};
use support::volume::{codec, create, mount, options};
use tokio::time::sleep;

#[path = "rollback/exchanged.rs"]
mod exchanged;
mod support;
#[path = "rollback/walk.rs"]
mod walk;

/// Long enough for everything that upkeep puts off.
const LATER: Duration = Duration::from_secs(20 * 60);

async fn bucket() -> Bucket {
    let bucket = Bucket::new();
    create(&bucket.client(), 32 * 4096, 4096).await;
    bucket
}

/// What a machine keeps of what it has seen.
#[derive(Debug, Clone, Default)]
struct Memory(Arc<Mutex<Vec<Pin>>>);

impl Memory {
    /// The newest that it was told of.
    fn pin(&self) -> Option<Pin> {
        self.0.lock().last().copied()
    }

    /// A mount that goes by it.
    fn options(&self) -> MountOptions {
        let told = Arc::clone(&self.0);
        let mut options = options();
        options.take_over = true;
        options.pin = self.pin();
        options.on_head = Some(Arc::new(move |pin| told.lock().push(*pin)));
        options
    }

    fn reading(&self, list_blocks: bool) -> MountOptions {
        let mut options = self.options();
        (options.read_only, options.list_blocks, options.take_over) = (true, list_blocks, false);
        options
    }

    async fn mount(&self, bucket: &Bucket) -> Arc<VersionedStore> {
        let mounted = mount(&bucket.client(), self.options()).await;
        mounted.expect("mounts")
    }
}

async fn commit(store: &VersionedStore, fill: u8) -> Seq {
    let changes = given(&[(u64::from(fill) % 32, fill | 1)], &[]);
    store.commit(changes).await.expect("commits")
}

/// A session with so many commits that ends well.
async fn session(memory: &Memory, bucket: &Bucket, commits: u8) {
    let store = memory.mount(bucket).await;
    for fill in 0..commits {
        commit(&store, fill).await;
    }
    store.release().await.expect("releases");
}

/// Every way to mount the bucket is refused, and leaves it as it is; answers with what.
async fn refused(memory: &Memory, bucket: &Bucket) -> Error {
    let before = bucket.keys();
    let told = memory.0.lock().len();
    let mut listing = memory.options();
    listing.list_blocks = true;
    let ways = [
        memory.options(),
        listing,
        memory.reading(false),
        memory.reading(true),
    ];
    let mut last = None;
    for options in ways {
        let outcome = mount(&bucket.client(), options).await;
        let error = outcome.map(|_| ()).expect_err("is refused");
        assert_eq!(error.kind(), ErrorKind::RolledBack, "{error:?}");
        assert!(error.to_string().contains("--accept-rollback"), "{error}");
        last = Some(error);
    }
    assert_eq!(bucket.keys(), before, "nothing is written");
    assert_eq!(memory.0.lock().len(), told, "and nothing is believed");
    last.expect("several ways")
}

/// Every way to mount the bucket is good, with what the machine knows now.
async fn accepted(memory: &Memory, bucket: &Bucket) {
    for list_blocks in [false, true] {
        let mut writing = memory.options();
        writing.list_blocks = list_blocks;
        for mut options in [writing, memory.reading(list_blocks)] {
            options.on_head = None;
            let mounted = mount(&bucket.fork().client(), options).await;
            mounted.expect("mounts");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_older_copy_of_the_bucket_is_refused_before_anything_is_written() {
    let (bucket, memory) = (bucket().await, Memory::default());
    session(&memory, &bucket, 3).await;
    let copy = bucket.fork();
    accepted(&memory, &copy).await;
    let found = memory.pin().expect("was told").seq;
    session(&memory, &bucket, 2).await;
    let seen = memory.pin().expect("was told").seq;
    assert!(seen > found);
    let error = refused(&memory, &copy).await;
    let location = bucket.client().location();
    for part in [
        location.as_str(),
        &format!("record {found},"),
        &format!("record {seen}:"),
    ] {
        assert!(error.to_string().contains(part), "{part}: {error}");
    }
    accepted(&memory, &bucket).await;
    // Whoever has seen nothing yet cannot know.
    accepted(&Memory::default(), &copy).await;
}

#[tokio::test(start_paused = true)]
async fn a_bucket_whose_newest_objects_were_removed_is_refused() {
    let (bucket, memory) = (bucket().await, Memory::default());
    let store = memory.mount(&bucket).await;
    for fill in 0..5 {
        commit(&store, fill).await;
    }
    drop(store);
    let head = memory.pin().expect("was told").seq;
    for dropped in 1..head.0 {
        let cut = bucket.fork();
        for number in head.0 - dropped..head.0 {
            cut.apply(Change::Delete(keys::record(Seq(number + 1))));
        }
        refused(&memory, &cut).await;
    }
    // A released disk: without its release it looks held, and without the checkpoint before that older still.
    session(&memory, &bucket, 1).await;
    let head = memory.pin().expect("was told").seq;
    bucket.apply(Change::Delete(keys::record(head)));
    refused(&memory, &bucket).await;
}

/// Two copies of a bucket from the middle of a session on: this machine has seen the one, and another machine goes on with the other.
async fn two_copies(commits: u8) -> (Memory, Bucket, Bucket) {
    let (bucket, memory) = (bucket().await, Memory::default());
    session(&memory, &bucket, 2).await;
    let store = memory.mount(&bucket).await;
    commit(&store, 1).await;
    let copy = bucket.fork();
    for fill in 0..commits {
        commit(&store, fill).await;
    }
    (memory, bucket, copy)
}

#[tokio::test(start_paused = true)]
async fn another_copy_that_was_written_on_is_refused_while_its_records_are_there() {
    let (memory, bucket, copy) = two_copies(3).await;
    let seen = memory.pin().expect("was told").seq;
    session(&Memory::default(), &copy, 20).await;
    assert!(copy.body(&keys::record(seen)).is_some());
    let error = refused(&memory, &copy).await;
    let part = format!("up to record {seen}:");
    assert!(error.to_string().contains(&part), "{error}");
    accepted(&memory, &bucket).await;
}

#[tokio::test(start_paused = true)]
async fn another_copy_that_was_written_on_is_refused_when_its_records_are_pruned() {
    let (memory, _bucket, copy) = two_copies(3).await;
    let seen = memory.pin().expect("was told").seq;
    for _ in 0..3 {
        let other = Memory::default().mount(&copy).await;
        for fill in 0..140 {
            commit(&other, fill).await;
        }
        sleep(LATER).await;
        other.release().await.expect("releases");
    }
    assert_eq!(copy.body(&keys::record(seen)), None, "is pruned");
    refused(&memory, &copy).await;
}

/// Two logs that share the pinned claim: the record itself tells the difference, and once it is pruned, the claim that follows it.
#[tokio::test(start_paused = true)]
async fn another_end_of_the_same_session_is_refused() {
    let (bucket, memory) = (bucket().await, Memory::default());
    session(&memory, &bucket, 3).await;
    let mut pin = memory.pin().expect("was told");
    pin.digest = Digest([7; 16]);
    assert!(pin.claim < pin.seq);
    let seen = Memory(Arc::new(Mutex::new(vec![pin])));
    refused(&seen, &bucket).await;
    session(&Memory::default(), &bucket, 1).await;
    refused(&seen, &bucket).await;
    session(&Memory::default(), &bucket, 130).await;
    assert_eq!(bucket.body(&keys::record(pin.seq)), None, "is pruned");
    refused(&seen, &bucket).await;
    accepted(&memory, &bucket).await;
}

#[tokio::test(start_paused = true)]
async fn a_copy_with_as_many_records_and_another_content_is_refused() {
    let (memory, bucket, copy) = two_copies(3).await;
    let seen = memory.pin().expect("was told").seq;
    let other = Memory::default().mount(&copy).await;
    while Seq(other.status().head) < seen {
        commit(&other, 7).await;
    }
    refused(&memory, &copy).await;
    accepted(&memory, &bucket).await;
}

#[tokio::test(start_paused = true)]
async fn a_log_without_one_of_its_claims_is_refused() {
    let (bucket, memory) = (bucket().await, Memory::default());
    session(&memory, &bucket, 1).await;
    let next = Seq(memory.pin().expect("was told").seq.0 + 1);
    for _ in 0..2 {
        session(&Memory::default(), &bucket, 1).await;
    }
    accepted(&memory, &bucket).await;
    bucket.apply(Change::Delete(keys::record(next)));
    refused(&memory, &bucket).await;
}

#[tokio::test(start_paused = true)]
async fn what_others_do_to_the_disk_and_prune_since_is_no_rollback() {
    let (bucket, memory) = (bucket().await, Memory::default());
    session(&memory, &bucket, 3).await;
    let seen = memory.pin().expect("was told");
    for _ in 0..3 {
        let other = Memory::default().mount(&bucket).await;
        for fill in 0..140 {
            commit(&other, fill).await;
        }
        sleep(LATER).await;
    }
    assert_eq!(bucket.body(&keys::record(seen.seq)), None, "is pruned");
    accepted(&memory, &bucket).await;
}

#[tokio::test(start_paused = true)]
async fn a_void_claim_in_the_place_of_the_pinned_record_is_no_rollback() {
    let (bucket, memory) = (bucket().await, Memory::default());
    let store = memory.mount(&bucket).await;
    commit(&store, 1).await;
    // A claim that was sent now, and lands when its number was used and pruned.
    let late = bucket.fork();
    Memory::default().mount(&late).await;
    let seen = commit(&store, 2).await;
    let pinned = Memory::default();
    pinned.0.lock().extend(memory.pin());
    store.release().await.expect("releases");
    session(&Memory::default(), &bucket, 130).await;
    let record = keys::record(seen);
    assert_eq!(bucket.body(&record), None, "is pruned");
    let claim = late.body(&record).expect("it claimed");
    bucket.apply(Change::Put(record, claim));
    accepted(&pinned, &bucket).await;
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_died_before_it_kept_what_it_had_put_is_not_refused() {
    let (bucket, memory) = (bucket().await, Memory::default());
    let store = memory.mount(&bucket).await;
    for fill in 0..4 {
        commit(&store, fill).await;
    }
    drop(store);
    let told = memory.0.lock().clone();
    assert_eq!(told.len(), 5, "the claim and each commit");
    for kept in 0..=told.len() {
        let before = Memory(Arc::new(Mutex::new(told[..kept].to_vec())));
        accepted(&before, &bucket).await;
    }
}

#[tokio::test(start_paused = true)]
async fn only_what_is_acknowledged_is_told_also_of_heartbeats_and_readers() {
    let (bucket, memory) = (bucket().await, Memory::default());
    let faulty = Faulty::new(bucket.client(), 0);
    let client: Arc<dyn ObjectClient> = faulty.clone();
    let store = mount(&client, memory.options()).await.expect("mounts");
    let claim = memory.pin().expect("was told");
    assert_eq!((claim.seq, claim.digest), (claim.claim, claim.claim_digest));
    let is_record =
        |request: &Request| matches!(request, Request::PutIfAbsent(key) if key.starts_with("log/"));
    faulty.next_of(is_record, [Fault::Answer(ErrorKind::Unreachable)]);
    let changes = given(&[(1, 1)], &[]);
    store
        .commit(changes.clone())
        .await
        .expect_err("no answer came");
    assert_eq!(
        memory.pin(),
        Some(claim),
        "whether it is there is not known"
    );
    store.commit(changes).await.expect("it is");
    let committed = memory.pin().expect("was told");
    assert_eq!((committed.seq, committed.claim), (Seq(2), Seq(1)));
    sleep(LATER).await;
    assert!(
        memory.pin().expect("was told").seq > committed.seq,
        "a heartbeat"
    );
    let reader = Memory::default();
    mount(&bucket.client(), reader.reading(false))
        .await
        .expect("mounts");
    assert_eq!(reader.pin(), memory.pin());
    let lister = Memory::default();
    mount(&bucket.client(), lister.reading(true))
        .await
        .expect("mounts");
    assert_eq!(lister.pin(), memory.pin());
    store.release().await.expect("releases");
    mount(&bucket.client(), lister.reading(true))
        .await
        .expect("mounts");
    assert_eq!(lister.pin(), memory.pin());
}

#[tokio::test(start_paused = true)]
async fn a_listing_that_lags_behind_what_was_seen_is_asked_again() {
    let (bucket, memory) = (bucket().await, Memory::default());
    let store = memory.mount(&bucket).await;
    for fill in 0..3 {
        commit(&store, fill).await;
        sleep(Duration::from_secs(60)).await;
    }
    let lists = |request: &Request| matches!(request, Request::List(_));
    for options in [memory.reading(false), memory.options()] {
        let faulty = Faulty::over(&bucket, 0);
        faulty.next_of(lists, vec![Fault::Lag(Duration::from_secs(90)); 6]);
        let client: Arc<dyn ObjectClient> = faulty.clone();
        mount(&client, options).await.expect("mounts");
        assert!(
            faulty
                .dealt()
                .each()
                .any(|(name, many)| name == "lagging listings" && many > 0)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_accepted_is_what_counts_from_then_on() {
    let (bucket, memory) = (bucket().await, Memory::default());
    session(&memory, &bucket, 1).await;
    let copy = bucket.fork();
    session(&memory, &bucket, 4).await;
    for read_only in [true, false] {
        let mine = Memory(Arc::new(Mutex::new(memory.0.lock().clone())));
        let copy = copy.fork();
        let mut options = mine.options();
        (options.accept_rollback, options.read_only) = (true, read_only);
        let before = mine.0.lock().len();
        let store = mount(&copy.client(), options).await.expect("is accepted");
        assert!(matches!(store.accepted(), Some(Rollback::Older { .. })));
        let told = mine.0.lock()[before..].to_vec();
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].seq.0, store.status().head, "of what is there");
        drop(store);
        accepted(&mine, &copy).await;
        if !read_only {
            refused(&mine, &bucket).await;
        }
    }
    let mut needless = memory.options();
    needless.accept_rollback = true;
    let store = mount(&bucket.client(), needless).await.expect("mounts");
    assert_eq!(store.accepted(), None);
}

#[tokio::test(start_paused = true)]
async fn a_superblock_that_is_older_or_no_longer_encrypted_is_refused() {
    let (bucket, memory) = (bucket().await, Memory::default());
    session(&memory, &bucket, 1).await;
    for (generation, encrypted, part) in [(2, false, "generation 1"), (1, true, "not encrypted")] {
        let mut pin = memory.pin().expect("was told");
        pin.superblock.generation = generation;
        pin.superblock.encrypted = encrypted;
        let seen = Memory(Arc::new(Mutex::new(vec![pin])));
        let error = refused(&seen, &bucket).await;
        assert!(error.to_string().contains(part), "{error}");
        let mut options = seen.options();
        options.accept_rollback = true;
        mount(&bucket.fork().client(), options)
            .await
            .expect("is accepted");
    }
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_is_only_looked_at_is_described_and_the_rollback_told() {
    let (bucket, memory) = (bucket().await, Memory::default());
    session(&memory, &bucket, 1).await;
    let copy = bucket.fork();
    session(&memory, &bucket, 1).await;
    let seen = memory.pin().expect("was told");
    for (bucket, expected) in [(&bucket, false), (&copy, true)] {
        let progress: bucketdisk::open::OnProgress = Arc::new(|_| {});
        let superblock = read_superblock(&bucket.client()).await;
        let superblock = superblock.expect("there");
        let info = inspect(
            &bucket.client(),
            superblock,
            Some(&codec()),
            Some(seen),
            false,
            &progress,
        )
        .await;
        let rollback = info.expect("is described").rollback;
        assert_eq!(rollback.is_some(), expected, "{rollback:?}");
    }
}
