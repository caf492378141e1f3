//! A journal that fails while it holds what flushes have acknowledged, and more: at every moment of its way into the bucket, a crash leaves
//! what was acknowledged.

use std::sync::Arc;

use bucketdisk::disk::Disk;
use bytes::Bytes;
use parking_lot::Mutex;

use super::support::local_disk::{LocalDisk, Trouble};
use super::support::memory::Bucket;
use super::support::volume::content;
use super::{BLOCK, DISK_BYTES, Machine, SEGMENT, in_runtime};

/// The next call that makes something durable fails.
fn failing_sync() -> Trouble {
    Trouble {
        failing_syncs: 0..1,
        ..Trouble::default()
    }
}

fn failing_write() -> Trouble {
    Trouble {
        failing_writes: 0..1,
        ..Trouble::default()
    }
}

/// A disk and the states that it had, the last one as of now.
struct Told {
    disk: Arc<Disk>,
    states: Vec<Vec<u8>>,
}

impl Told {
    async fn write(&mut self, offset: u64, len: usize, fill: u8) {
        let data = Bytes::from(vec![fill; len]);
        self.disk.write(offset, data).await.expect("writes");
        self.next(offset as usize..offset as usize + len, fill);
    }

    async fn zero(&mut self, offset: u64, len: usize) {
        self.disk.zero(offset, len as u64).await.expect("discards");
        self.next(offset as usize..offset as usize + len, 0);
    }

    fn next(&mut self, range: std::ops::Range<usize>, fill: u8) {
        let mut next = self.states.last().expect("one").clone();
        next[range].fill(fill);
        self.states.push(next);
    }
}

/// The local disk and the bucket at one moment: what is there then, and how many changes the bucket had seen.
type Moment = (Arc<LocalDisk>, usize);

/// A machine whose journal fails, and all moments from there to the end of the flush that it fails.
async fn a_life(bucket: &Bucket, trouble: Trouble) -> (Machine, Told, usize, Vec<Moment>) {
    let mut machine = Machine::over(bucket, 7).await;
    let (disk, _) = machine.mount().await;
    let mut told = Told {
        disk,
        states: vec![vec![0; DISK_BYTES as usize]],
    };
    // In the bucket already.
    told.write(3 * BLOCK, BLOCK as usize, 1).await;
    told.disk.commit().await.expect("commits");
    // Longer than a segment, in part over what is in the bucket, and in holes.
    told.write(0, 5 * BLOCK as usize, 2).await;
    told.write(6 * BLOCK, BLOCK as usize, 3).await;
    told.write(8 * BLOCK, BLOCK as usize, 4).await;
    told.zero(3 * BLOCK, BLOCK as usize).await;
    told.disk.flush().await.expect("flushes");
    let acked = told.states.len() - 1;
    told.write(512, 1024, 5).await;
    // To nothing, as far as the bucket has heard of it.
    told.zero(6 * BLOCK, BLOCK as usize).await;
    told.zero(8 * BLOCK, BLOCK as usize).await;
    told.write(8 * BLOCK + 512, 512, 6).await;
    let moments = Arc::new(Mutex::new(Vec::new()));
    let (noted, local, there) = (
        Arc::clone(&moments),
        Arc::downgrade(&machine.local),
        bucket.clone(),
    );
    machine.local.set_trouble(trouble);
    machine.local.on_call(Arc::new(move || {
        let local = local.upgrade().expect("is there");
        noted.lock().push((local.fork(1), there.changes()));
    }));
    if told.disk.status().journal_error.is_none() {
        let refused = told.disk.write(0, Bytes::from(vec![9; 512])).await;
        assert_eq!(refused.is_err(), trouble_refuses(&machine));
        if refused.is_ok() {
            told.next(0..512, 9);
        }
    }
    told.disk.flush().await.expect("is committed instead");
    assert!(told.disk.status().journal_error.is_some());
    machine.local.on_call(Arc::new(|| {}));
    let mut moments = std::mem::take(&mut *moments.lock());
    moments.push((machine.local.fork(2), bucket.changes()));
    (machine, told, acked, moments)
}

/// It was the write that has failed.
fn trouble_refuses(machine: &Machine) -> bool {
    machine.local.has_failed()
}

#[test]
fn a_crash_on_the_way_of_a_failed_journal_into_the_bucket_loses_nothing_acknowledged() {
    in_runtime(async {
        for trouble in [failing_sync(), failing_write()] {
            let bucket = Bucket::new();
            let (mut machine, told, acked, moments) = a_life(&bucket, trouble).await;
            let now = told.states.last().expect("some");
            assert!(content(&told.disk).await == *now);
            let mut crashes = 0;
            let ends = moments[1..].iter().map(|(_, changes)| *changes);
            let ends: Vec<usize> = ends.chain([bucket.changes()]).collect();
            for ((local, from), to) in moments.iter().zip(ends) {
                for (changes, seed) in (*from..=to).flat_map(|c| (0..6).map(move |s| (c, s))) {
                    machine.local = local.fork(seed);
                    match seed {
                        0 => machine.local.kill(),
                        _ => machine.local.lose_power(),
                    }
                    machine.client = bucket.cut(changes).client();
                    let own = machine.own.len();
                    let (disk, _) = machine.mount().await;
                    machine.own.truncate(own);
                    let found = content(&disk).await;
                    assert!(
                        told.states[acked..].contains(&found),
                        "after {changes} changes, seed {seed}: {:?}",
                        told.states.iter().position(|state| *state == found)
                    );
                    if changes == bucket.changes() {
                        assert!(found == *now, "was acknowledged at last");
                    }
                    crashes += 1;
                }
            }
            assert!(crashes > 50, "{crashes}");
        }
    });
}

#[test]
fn nothing_newer_is_committed_while_a_failed_journal_cannot_be_made_to_forget() {
    in_runtime(async {
        let bucket = Bucket::new();
        let mut machine = Machine::over(&bucket, 0).await;
        let (disk, _) = machine.mount().await;
        let write = |fill: u8| disk.write(0, Bytes::from(vec![fill; 512]));
        write(1).await.expect("writes");
        disk.flush().await.expect("flushes");
        write(2).await.expect("writes");
        machine.local.set_trouble(Trouble {
            failing_syncs: 0..1000,
            ..Trouble::default()
        });
        let error = disk.flush().await.expect_err("cannot be");
        assert!(error.chain().contains("forget") || error.chain().contains("told"));
        // The bucket has what was acknowledged, and a crash finds either that or what came later.
        let mut other = Machine::over(&bucket.fork(), 0).await;
        other.own = machine.own.clone();
        other.local = machine.local.fork(0);
        other.local.lose_power();
        let (again, _) = other.mount().await;
        assert!([1, 2].contains(&content(&again).await[0]));
        other.local = LocalDisk::new(0);
        other.client = bucket.fork().client();
        let (again, _) = other.mount().await;
        assert_eq!(content(&again).await[0], 1, "the bucket alone");
        // The local disk has recovered.
        machine.local.set_trouble(Trouble::default());
        disk.flush().await.expect("is committed");
        other.local = machine.local.fork(0);
        other.local.lose_power();
        other.client = bucket.fork().client();
        let (again, _) = other.mount().await;
        assert_eq!(content(&again).await[0], 2);
    });
}

#[test]
fn a_failed_journal_that_reads_no_more_does_not_keep_the_rest_from_the_bucket() {
    in_runtime(async {
        let mut machine = Machine::new(0).await;
        let (disk, _) = machine.mount().await;
        let write = |fill: u8| disk.write(0, Bytes::from(vec![fill; 512]));
        write(1).await.expect("writes");
        disk.flush().await.expect("flushes");
        write(2).await.expect("writes");
        // The first record's payload, of which nothing is left to be committed.
        machine.local.flip("segment-00000", 64 + 64 + 100);
        machine.local.set_trouble(failing_sync());
        disk.flush().await.expect("is committed");
        drop(disk);
        machine.local.lose_power();
        let (disk, records) = machine.mount().await;
        assert_eq!((records, content(&disk).await[0]), (0, 2));
    });
}

/// After a failed `fdatasync` what it has lost can still be read, and the next one succeeds.
#[test]
fn what_a_mount_finds_after_a_failed_sync_is_there_after_the_power_fails_too() {
    in_runtime(async {
        let bucket = Bucket::new();
        let (mut machine, .., moments) = a_life(&bucket, failing_sync()).await;
        let killed = |local: &Arc<LocalDisk>, seed| {
            let local = local.fork(seed);
            local.kill();
            local
        };
        let own = machine.own.clone();
        for (n, (local, changes)) in moments.iter().enumerate() {
            machine.own = own.clone();
            machine.local = killed(local, 0);
            machine.client = bucket.cut(*changes).client();
            let found = content(&machine.mount().await.0).await;
            for seed in 0..10 {
                machine.own = own.clone();
                machine.local = killed(local, seed);
                machine.client = bucket.cut(*changes).client();
                // One that commits nothing of it.
                let (store, prepared, session) = machine.claim().await.expect("claims");
                let begun = prepared.begin(&*store, session, 16 * SEGMENT).await;
                drop(begun.expect("begins"));
                machine.local.lose_power();
                let again = content(&machine.mount().await.0).await;
                assert!(again == found, "moment {n}, seed {seed}");
            }
        }
    });
}
