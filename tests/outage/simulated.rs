//! Half an hour and more, on a clock that does not wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bucketdisk::disk::Disk;
use bucketdisk::error::{ErrorKind, Result};
use bucketdisk::object::{Count, Limit, ObjectClient, Patience, Retry, Traffic};
use bytes::Bytes;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::support::fault::{Fault, Faulty};
use crate::support::memory::Bucket;
use crate::support::volume::{content, create, open, options};

const BLOCK: u64 = 4096;
const SIZE: u64 = 64 * BLOCK;
const DIRTY: u64 = 16 * BLOCK;
/// What a mounted disk's requests are tried again for, and how long one may take: as in `open`.
const PATIENCE: Duration = Duration::from_secs(3600);
const ANSWER: Duration = Duration::from_secs(60);
const MINUTE: Duration = Duration::from_secs(60);
/// What is promised.
const SOON: Duration = Duration::from_secs(10);

/// A disk over the client's layers as the program stacks them, over faults.
struct Mounted {
    bucket: Bucket,
    faulty: Arc<Faulty>,
    traffic: Arc<Traffic>,
    disk: Arc<Disk>,
    /// What was acknowledged to the writer.
    model: Arc<Mutex<Vec<u8>>>,
    stopped: Arc<AtomicBool>,
}

impl Mounted {
    async fn new(seed: u64) -> Mounted {
        let bucket = Bucket::new();
        create(&bucket.client(), SIZE, BLOCK).await;
        let faulty = Faulty::new(bucket.client(), seed);
        let traffic = Arc::new(Traffic::default());
        let count = Count::new(
            Arc::clone(&faulty) as Arc<dyn ObjectClient>,
            Arc::clone(&traffic),
        );
        let client: Arc<dyn ObjectClient> = Arc::new(Retry::new(
            Arc::new(Limit::new(Arc::new(count), 4)),
            Patience::new(PATIENCE),
            Arc::clone(&traffic),
            seed,
        ));
        let disk = open(&client, options(), DIRTY).await.expect("mounts");
        Mounted {
            bucket,
            faulty,
            traffic,
            disk,
            model: Arc::new(Mutex::new(vec![0; SIZE as usize])),
            stopped: Arc::default(),
        }
    }

    /// Writes here and there until it is told to stop; answers how many writes that were.
    fn writer(&self, seed: u64) -> JoinHandle<Result<u64>> {
        let (disk, model) = (Arc::clone(&self.disk), Arc::clone(&self.model));
        let stopped = Arc::clone(&self.stopped);
        let mut random = SmallRng::seed_from_u64(seed);
        tokio::spawn(async move {
            let mut writes = 0;
            while !stopped.load(Ordering::Relaxed) {
                let offset = random.random_range(0..SIZE - BLOCK);
                let data = vec![random.random(); random.random_range(1..BLOCK as usize)];
                let at = offset as usize;
                disk.write(offset, Bytes::from(data.clone())).await?;
                model.lock()[at..at + data.len()].copy_from_slice(&data);
                writes += 1;
                sleep(Duration::from_millis(random.random_range(0..2000))).await;
            }
            Ok(writes)
        })
    }

    /// A write for the first flush to wait for.
    async fn write_once(&self) -> Result<()> {
        self.disk.write(0, Bytes::from_static(&[7])).await?;
        self.model.lock()[0] = 7;
        Ok(())
    }

    fn flush(&self) -> JoinHandle<Result<()>> {
        let disk = Arc::clone(&self.disk);
        tokio::spawn(async move { disk.flush().await })
    }

    /// What the bucket alone holds.
    async fn stored(&self) -> Vec<u8> {
        let mut reader = options();
        reader.read_only = true;
        let disk = open(&self.bucket.client(), reader, DIRTY).await;
        content(&disk.expect("mounts read-only")).await
    }
}

/// One outage. Answers how long everything that had been written took to be committed once the store was back.
async fn away(outage: Fault, lasts: Duration, seed: u64) -> Duration {
    let case = format!("seed {seed}, {outage:?} for {lasts:?}");
    let mounted = Mounted::new(seed).await;
    let mut random = SmallRng::seed_from_u64(seed);
    let writer = mounted.writer(seed);
    sleep(Duration::from_millis(random.random_range(20_000..60_000))).await;
    mounted.disk.flush().await.expect(&case);
    // At any moment between two commits, or within one.
    sleep(Duration::from_millis(random.random_range(0..3000))).await;

    mounted.faulty.always(Some(outage));
    mounted.write_once().await.expect(&case);
    let began = Instant::now();
    let mut flushes = Vec::new();
    let mut taken = 0;
    while began.elapsed() < lasts {
        flushes.push(mounted.flush());
        sleep(MINUTE.min(lasts - began.elapsed())).await;
        let dirty = mounted.disk.status().dirty_bytes;
        assert!(dirty >= taken, "{case}: nothing can have been committed");
        taken = dirty;
    }
    assert!(taken > DIRTY / 2, "{case}: writes went on, {taken} bytes");
    assert!(taken <= DIRTY, "{case}: and then they waited");
    let waiting = flushes.iter().filter(|flush| !flush.is_finished());
    assert_eq!(waiting.count(), flushes.len(), "{case}: flushes wait");
    assert!(!writer.is_finished(), "{case}: and so do writers");
    let figures = mounted.traffic.snapshot();
    assert!(figures.last_error.is_some(), "{case}: status tells why");

    mounted.faulty.always(None);
    let back = Instant::now();
    flushes.push(mounted.flush());
    for flush in flushes {
        let flushed = timeout(MINUTE, flush).await.expect(&case);
        flushed.expect("no panic").expect(&case);
    }
    let took = back.elapsed();
    mounted.stopped.store(true, Ordering::Relaxed);
    let writes = timeout(MINUTE, writer).await.expect(&case);
    assert!(writes.expect("no panic").expect(&case) > 10, "{case}");
    mounted.disk.close().await.expect(&case);
    let model = mounted.model.lock().clone();
    assert!(mounted.stored().await == model, "{case}: lost");
    took
}

#[tokio::test(start_paused = true)]
async fn half_an_hour_without_the_store_loses_nothing_and_is_made_up_for_within_ten_seconds() {
    let unreachable = ErrorKind::Unreachable;
    let outages = [
        Fault::Before(unreachable),
        Fault::Answer(unreachable),
        Fault::Silence(ANSWER),
        Fault::Status(503, Some(Duration::from_secs(1))),
    ];
    for outage in outages {
        let mut longest = Duration::ZERO;
        for seed in 0..12 {
            println!("seed {seed}");
            let took = away(outage, 30 * MINUTE, seed).await;
            assert!(took <= SOON, "{outage:?}, seed {seed}: took {took:?}");
            longest = longest.max(took);
        }
        println!("{outage:?}: at most {longest:?}");
    }
}

/// Longer than requests are tried again for: commits go on all the same.
#[tokio::test(start_paused = true)]
async fn an_outage_that_outlasts_the_clients_patience_is_made_up_for_as_soon() {
    for outage in [
        Fault::Before(ErrorKind::Unreachable),
        Fault::Silence(ANSWER),
    ] {
        for seed in 0..6 {
            println!("seed {seed}");
            for minutes in [59, 60, 61, 150] {
                let took = away(outage, minutes * MINUTE, seed).await;
                assert!(took <= SOON, "{outage:?}, seed {seed}: took {took:?}");
            }
        }
    }
}
