//! Cut anywhere: whatever a crash leaves of the sequence of changes to a bucket opens as the disk at one instant, not older than the
//! last flush that was acknowledged before the cut.
//!
//! A seeded workload runs over a slow store: requests take their time, land in any order, lose their answers, and land after their
//! sender has given up or died. Every sector that is written carries a stamp of its own, so a mix of two instants is no instant.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bucketdisk::disk::Disk;
use bucketdisk::error::{Error, ErrorKind, Result};
use bucketdisk::object::{ListPage, ObjectClient, PutOutcome};
use bytes::Bytes;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use support::memory::{Bucket, Change};
use support::volume::{content, create, in_runtime, open, options};
use tokio::time::{sleep, timeout};

mod support;

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 12;
const SIZE: u64 = BLOCK * BLOCKS;
const SECTOR: u64 = 512;
const DIRTY: u64 = 1 << 20;
/// Workloads, and how long each is.
const SEEDS: u64 = 10;
const STEPS: usize = 250;
/// The first workload is one long session, so that upkeep writes checkpoints and prunes in the middle of it.
const LONG_STEPS: usize = 1400;
/// Long enough for everything that upkeep puts off.
const LATER: Duration = Duration::from_secs(20 * 60);

/// A store whose requests take their time. A request once sent is applied, whether or not anybody still waits for the answer.
#[derive(Debug)]
struct Slow {
    bucket: Bucket,
    random: Mutex<SmallRng>,
}

impl Slow {
    /// Sends a request; some answers are lost, and then the request lands at any time.
    async fn send<T: Send + 'static>(
        &self,
        request: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let (wait, lost) = {
            let mut random = self.random.lock();
            (random.random_range(0..200), random.random_bool(0.04))
        };
        let late = if lost { 40 * wait } else { wait };
        let landing = tokio::spawn(async move {
            sleep(Duration::from_millis(late)).await;
            request.await
        });
        if lost {
            sleep(Duration::from_millis(wait)).await;
            return Err(Error::new(ErrorKind::Unreachable, "the answer was lost"));
        }
        landing.await.expect("the store does not panic")
    }
}

#[async_trait]
impl ObjectClient for Slow {
    async fn get(&self, key: &str) -> Result<Bytes> {
        let (bucket, key) = (self.bucket.clone(), key.to_owned());
        self.send(async move { bucket.get(&key).await }).await
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<()> {
        let (bucket, key) = (self.bucket.clone(), key.to_owned());
        self.send(async move { bucket.put(&key, body).await }).await
    }

    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<PutOutcome> {
        let (bucket, key) = (self.bucket.clone(), key.to_owned());
        self.send(async move { bucket.put_if_absent(&key, body).await })
            .await
    }

    async fn delete_many(&self, keys: &[String]) -> Result<()> {
        let (bucket, keys) = (self.bucket.clone(), keys.to_vec());
        self.send(async move { bucket.delete_many(&keys).await })
            .await
    }

    async fn list(&self, folder: &str, after: Option<&str>) -> Result<ListPage> {
        // Answers from one instant, and soon: a mount lists hundreds of times.
        self.bucket.list(folder, after).await
    }

    fn location(&self) -> String {
        self.bucket.location()
    }
}

/// The disk's states one after the other, and what a flush has acknowledged of them.
#[derive(Debug, Clone)]
struct Truth {
    /// Each with the number of changes that the bucket had seen when it came about: no fewer can hold it.
    states: Vec<(usize, Vec<u8>)>,
    /// A bucket of so many changes holds this state or a later one.
    acknowledged: Vec<(usize, usize)>,
}

impl Truth {
    /// The states that the bucket may hold after `changes` changes.
    fn at(&self, changes: usize) -> &[(usize, Vec<u8>)] {
        let first = self.acknowledged.iter().filter(|(at, _)| *at <= changes);
        let first = first.map(|(_, state)| *state).max().unwrap_or(0);
        let end = self.states.partition_point(|(at, _)| *at <= changes);
        &self.states[first..end.max(first + 1)]
    }
}

/// The workload.
struct Run {
    seed: u64,
    random: SmallRng,
    bucket: Bucket,
    client: Arc<dyn ObjectClient>,
    disk: Arc<Disk>,
    truth: Arc<Mutex<Truth>>,
    stamp: u32,
    flushes: Vec<tokio::task::JoinHandle<Result<()>>>,
}

impl Run {
    async fn new(seed: u64) -> Run {
        let bucket = Bucket::new();
        create(&bucket.client(), SIZE, BLOCK).await;
        let client: Arc<dyn ObjectClient> = Arc::new(Slow {
            bucket: bucket.clone(),
            random: Mutex::new(SmallRng::seed_from_u64(seed)),
        });
        let truth = Truth {
            states: vec![(0, vec![0; SIZE as usize])],
            acknowledged: vec![(0, 0)],
        };
        let disk = open(&bucket.client(), options(), DIRTY)
            .await
            .expect("mounts");
        Run {
            seed,
            random: SmallRng::seed_from_u64(seed + 1000),
            bucket,
            client,
            disk,
            truth: Arc::new(Mutex::new(truth)),
            stamp: 0,
            flushes: Vec::new(),
        }
    }

    async fn go(&mut self) {
        let long = self.seed == 1;
        let (steps, kinds) = match long {
            true => (LONG_STEPS, 22),
            false => (STEPS, 24),
        };
        for _ in 0..steps {
            match self.random.random_range(0..kinds) {
                0..10 => self.write().await,
                10..13 => self.discard().await,
                13..18 => sleep(Duration::from_millis(self.random.random_range(0..300))).await,
                18..22 => self.flush(),
                22 => self.reopen().await,
                _ => self.take_over().await,
            }
            if self.disk.is_read_only() {
                // A claim that was thought lost has landed.
                self.take_over().await;
            }
        }
        if long {
            let checkpoint =
                |change: &Change| matches!(change, Change::Put(key, _) if key.starts_with("map/"));
            assert!(self.bucket.history().iter().any(checkpoint));
        }
        self.reopen().await;
    }

    fn range(&mut self) -> (u64, u64) {
        let sectors = SIZE / SECTOR;
        let first = self.random.random_range(0..sectors);
        let count = match self.random.random_bool(0.5) {
            true => self.random.random_range(1..4),
            false => self.random.random_range(1..30),
        };
        (first * SECTOR, count.min(sectors - first) * SECTOR)
    }

    fn now(&self) -> Vec<u8> {
        let truth = self.truth.lock();
        truth.states.last().expect("there is one").1.clone()
    }

    /// What a change makes of the disk, from the moment at which it is given to it.
    fn note(&self, state: Vec<u8>) {
        let changes = self.bucket.changes();
        self.truth.lock().states.push((changes, state));
    }

    async fn write(&mut self) {
        let (offset, len) = self.range();
        let mut data = vec![0; len as usize];
        for sector in data.chunks_mut(SECTOR as usize) {
            self.stamp += 1;
            sector[..4].copy_from_slice(&self.stamp.to_le_bytes());
            sector[508..].copy_from_slice(&self.stamp.to_le_bytes());
        }
        let mut state = self.now();
        state[offset as usize..(offset + len) as usize].copy_from_slice(&data);
        match self.disk.write(offset, data.into()).await {
            Ok(()) => self.note(state),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Fenced, "seed {}", self.seed),
        }
    }

    async fn discard(&mut self) {
        let (offset, len) = match self.random.random_bool(0.1) {
            true => (0, SIZE),
            false => self.range(),
        };
        let mut state = self.now();
        state[offset as usize..(offset + len) as usize].fill(0);
        match self.disk.zero(offset, len).await {
            Ok(()) => self.note(state),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Fenced, "seed {}", self.seed),
        }
    }

    /// Begins a flush, which is acknowledged some time later.
    fn flush(&mut self) {
        let (disk, truth, bucket) = (
            Arc::clone(&self.disk),
            Arc::clone(&self.truth),
            self.bucket.clone(),
        );
        let covers = truth.lock().states.len() - 1;
        self.flushes.push(tokio::spawn(async move {
            disk.flush().await?;
            truth.lock().acknowledged.push((bucket.changes(), covers));
            Ok(())
        }));
    }

    /// Ends the session well, if it still has the disk, and begins another.
    async fn reopen(&mut self) {
        let covers = self.truth.lock().states.len() - 1;
        loop {
            match self.disk.close().await {
                Ok(()) => break,
                Err(error) if error.kind() == ErrorKind::Unreachable => {}
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Fenced, "seed {}", self.seed);
                    return self.take_over().await;
                }
            }
        }
        let changes = self.bucket.changes();
        self.truth.lock().acknowledged.push((changes, covers));
        for flush in self.flushes.drain(..) {
            let flushed = timeout(LATER, flush).await;
            let flushed = flushed.expect("a flush ends").expect("no panic");
            flushed.expect("the disk was never lost");
        }
        self.mount().await;
    }

    /// Takes the disk from the session, which then finds out, or dies at once.
    async fn take_over(&mut self) {
        let first = Arc::clone(&self.disk);
        self.mount().await;
        if self.random.random_bool(0.5) {
            let error = loop {
                let error = first.close().await.expect_err("is fenced");
                if error.kind() != ErrorKind::Unreachable {
                    break error;
                }
            };
            assert_eq!(error.kind(), ErrorKind::Fenced, "seed {}", self.seed);
        }
        for flush in self.flushes.drain(..) {
            flush.abort();
        }
    }

    /// Mounts, and goes on from what is there, which has to be one of the states.
    async fn mount(&mut self) {
        self.disk = loop {
            let mut over = options();
            over.take_over = true;
            over.list_blocks = self.random.random_bool(0.3);
            match open(&self.client, over, DIRTY).await {
                Ok(disk) => break disk,
                Err(error) => assert_eq!(
                    error.kind(),
                    ErrorKind::Unreachable,
                    "seed {}: {}",
                    self.seed,
                    error.chain()
                ),
            }
        };
        let changes = self.bucket.changes();
        let mut found = vec![0; SIZE as usize];
        while let Err(error) = self.disk.read(0, &mut found).await {
            assert_eq!(error.kind(), ErrorKind::Unreachable, "seed {}", self.seed);
        }
        let mut truth = self.truth.lock();
        let known = truth.at(usize::MAX).iter().any(|(_, s)| *s == found);
        assert!(known, "seed {}: mounted what never was", self.seed);
        truth.states.push((changes, found));
        let newest = truth.states.len() - 1;
        truth.acknowledged.push((changes, newest));
    }
}

/// How a cut is opened.
#[derive(Debug, Clone, Copy)]
struct How {
    read_only: bool,
    list_blocks: bool,
}

/// Opens a bucket, which this may change.
async fn state(bucket: &Bucket, how: How) -> (Arc<Disk>, Vec<u8>) {
    let mut chosen = options();
    (chosen.read_only, chosen.list_blocks) = (how.read_only, how.list_blocks);
    chosen.take_over = true;
    let disk = match open(&bucket.client(), chosen, DIRTY).await {
        Ok(disk) => disk,
        Err(error) => panic!("{how:?}: {}", error.chain()),
    };
    let content = content(&disk).await;
    (disk, content)
}

/// The states of a bucket after each number of changes, opened for reading.
async fn check_readers(seed: u64, bucket: &Bucket, truth: &Truth, changes: usize) -> Vec<u8> {
    let mut found = Vec::new();
    for list_blocks in [false, true] {
        let how = How {
            read_only: true,
            list_blocks,
        };
        let (_, state) = state(bucket, how).await;
        let allowed = truth.at(changes);
        assert!(
            allowed.iter().any(|(_, s)| *s == state),
            "seed {seed}, cut {changes}, {how:?}: none of {} states",
            allowed.len()
        );
        found.push(state);
    }
    assert!(
        found[0] == found[1],
        "seed {seed}, cut {changes}: log and listing differ"
    );
    found.swap_remove(0)
}

/// A writer goes on from a cut: it finds the same, what it writes is kept, and what it deletes is not the disk.
async fn check_writer(seed: u64, bucket: &Bucket, changes: usize, expected: &[u8]) {
    let list_blocks = changes.is_multiple_of(2);
    let how = How {
        read_only: false,
        list_blocks,
    };
    let (disk, mut model) = state(bucket, how).await;
    let case = format!("seed {seed}, cut {changes}, {how:?}");
    assert!(model == expected, "{case}: a writer finds something else");
    let at = (changes as u64 % BLOCKS * BLOCK) as usize;
    model[at + 512..at + 1024].fill(0xAA);
    disk.write(at as u64 + 512, vec![0xAA; 512].into())
        .await
        .expect(&case);
    disk.flush().await.expect(&case);
    // A late answer's time: leftovers are looked for, and superseded objects deleted.
    sleep(LATER).await;
    disk.close().await.expect(&case);
    for list_blocks in [false, true] {
        let how = How {
            read_only: true,
            list_blocks,
        };
        assert!(state(bucket, how).await.1 == model, "{case}, then {how:?}");
    }
}

fn every_cut_of(seed: u64) -> usize {
    println!("seed {seed}");
    in_runtime(async {
        let mut run = Run::new(seed).await;
        run.go().await;
        let end = run.bucket.changes();
        let truth = run.truth.lock().clone();
        let made = |change: &Change| matches!(change, Change::Put(key, _) if key == "disk.json");
        let superblock = run.bucket.history().iter().position(made);
        for changes in superblock.expect("there is a disk") + 1..=end {
            let expected = check_readers(seed, &run.bucket.cut(changes), &truth, changes).await;
            // In the long workload one cut is much like the next.
            if seed > 1 || changes.is_multiple_of(5) {
                check_writer(seed, &run.bucket.cut(changes), changes, &expected).await;
            }
        }
        check_reordered(seed, &run.bucket.history(), &truth).await;
        end
    })
}

/// The same with the blocks of each commit in another order: they are stored several at once.
async fn check_reordered(seed: u64, history: &[Change], truth: &Truth) {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut history = history.to_vec();
    let of_a_block =
        |change: &Change| matches!(change, Change::Put(key, _) if key.starts_with("blocks/"));
    let bucket = Bucket::new();
    let mut done = 0;
    let same = |a: &Change, b: &Change| of_a_block(a) == of_a_block(b);
    for run in history.chunk_by_mut(same) {
        let blocks = run.len() > 1 && of_a_block(&run[0]);
        if blocks {
            run.shuffle(&mut random);
        }
        for change in run {
            bucket.apply(change.clone());
            done += 1;
            if blocks {
                check_readers(seed, &bucket, truth, done).await;
            }
        }
    }
}

#[test]
fn every_cut_of_a_buckets_history_opens_as_the_disk_at_one_instant() {
    let next = AtomicU64::new(1);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed > SEEDS {
                        return;
                    }
                    let cuts = every_cut_of(seed);
                    assert!(cuts > 100, "seed {seed} makes only {cuts} cuts");
                }
            });
        }
    });
}
