//! The disk with its journal, when the machine loses power or the program is killed: what is there afterwards is the disk as it was after
//! some write, not before the last that a flush covered, whatever had been committed by then. The write after that may be there up to the
//! end of one of its sectors, as on any disk.

mod support;

use std::sync::Arc;
use std::time::Duration;

use bucketdisk::block::Geometry;
use bucketdisk::disk::{Disk, DiskConfig, FlushTo, Kept, Recovered};
use bucketdisk::error::{ErrorKind, Result};
use bucketdisk::journal::{Found, Owner};
use bucketdisk::object::ObjectClient;
use bucketdisk::store::BlockStore;
use bucketdisk::store::versioned::SessionId;
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use support::in_place::{Blocks, InPlace};
use support::local_disk::{LocalDisk, Trouble};
use support::memory::Bucket;
use support::volume::{self, content, in_runtime, keys};

const DISK_BYTES: u64 = 256 << 10;
const BLOCK: u64 = 16 << 10;
const SEGMENT: u64 = 64 << 10;
/// Nothing here takes a minute of the paused clock.
const FOR_EVER: Duration = Duration::from_secs(60);

/// What the disk is kept in.
enum Layout {
    Versioned(Arc<dyn ObjectClient>),
    /// Whose commits a crash leaves half done.
    InPlace(Arc<Blocks>),
}

/// A machine with a bucket somewhere.
struct Machine {
    layout: Layout,
    local: Arc<LocalDisk>,
    last: Option<SessionId>,
    config: DiskConfig,
}

impl Machine {
    async fn new(seed: u64) -> Machine {
        let client: Arc<dyn ObjectClient> = Arc::new(Bucket::new());
        volume::create(&client, DISK_BYTES, BLOCK).await;
        Machine::with(seed, Layout::Versioned(client))
    }

    fn with(seed: u64, layout: Layout) -> Machine {
        Machine {
            layout,
            local: LocalDisk::new(seed),
            last: None,
            config: DiskConfig {
                commit_interval: Duration::from_secs(3600),
                flush: FlushTo::Journal,
                ..volume::config(1 << 20)
            },
        }
    }

    /// Mounts as the program does, and answers how many records were found.
    async fn mount(&mut self) -> (Arc<Disk>, u64) {
        let files = self.local.files();
        let owner = Owner {
            disk: 1,
            size_bytes: DISK_BYTES,
        };
        let found = match Found::look(&files, keys().as_ref()).expect("is sound") {
            Some(found) => found,
            None => Found::create(&files, owner, rand::random(), SEGMENT, keys().as_ref())
                .expect("creates"),
        };
        let store: Arc<dyn BlockStore> = match &self.layout {
            Layout::Versioned(client) => {
                let mut options = volume::options();
                options.own_dead_sessions = self.last.into_iter().collect();
                self.last = Some(options.session);
                volume::mount(client, options).await.expect("mounts")
            }
            Layout::InPlace(blocks) => Arc::new(InPlace {
                blocks: Arc::clone(blocks),
                geometry: Geometry::new(DISK_BYTES, BLOCK).expect("a valid geometry"),
                machine: Arc::clone(&self.local),
            }),
        };
        let mut recovered = Recovered::new(store.geometry());
        let replayed = found
            .replay(&mut |entry| recovered.take(entry))
            .expect("is sound");
        let journal = found
            .begin(Some(&replayed), 1, 16 * SEGMENT)
            .expect("begins");
        let kept = Kept {
            journal,
            found: recovered,
        };
        let runtime = tokio::runtime::Handle::current();
        let disk = Disk::open(store, self.config.clone(), Some(kept), runtime);
        (disk, replayed.records)
    }
}

/// Whether a state is the first one with a beginning of the change that leads to the second.
fn is_part_of_next(states: &[Vec<u8>], found: &[u8]) -> bool {
    let [before, after, ..] = states else {
        return false;
    };
    let first_old = (0..found.len()).find(|at| found[*at] != after[*at]);
    let cut = first_old.map_or(found.len(), |at| at - at % 512);
    found[cut..] == before[cut..]
}

/// What is done to the disk.
#[derive(Clone)]
enum Change {
    Write(u64, Bytes),
    Zero(u64, u64),
    Flush,
    Commit,
    /// A commit that is not waited for.
    CommitBeside,
    Pause,
}

/// What is known after it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum After {
    Changed,
    Durable,
    Nothing,
}

impl Change {
    /// Draws one, and makes it in a copy of the disk.
    fn draw(random: &mut StdRng, copy: &mut [u8]) -> (Change, After) {
        let len = match random.random_range(0..3) {
            0 => random.random_range(1..3 * BLOCK),
            1 => 512 * random.random_range(1..16),
            _ => BLOCK,
        };
        let offset = match random.random_bool(0.3) {
            true => random.random_range(0..(DISK_BYTES - len) / BLOCK + 1) * BLOCK,
            false => random.random_range(0..=DISK_BYTES - len),
        };
        let range = offset as usize..(offset + len).min(DISK_BYTES) as usize;
        match random.random_range(0..20) {
            0..10 => {
                let bytes: Vec<u8> = range.clone().map(|_| random.random()).collect();
                copy[range].copy_from_slice(&bytes);
                (Change::Write(offset, Bytes::from(bytes)), After::Changed)
            }
            10..14 => {
                let len = range.len() as u64;
                copy[range].fill(0);
                (Change::Zero(offset, len), After::Changed)
            }
            14..16 => (Change::Flush, After::Durable),
            16 => (Change::Commit, After::Durable),
            17 => (Change::CommitBeside, After::Nothing),
            _ => (Change::Pause, After::Nothing),
        }
    }

    fn make(&self, disk: Arc<Disk>) -> impl Future<Output = Result<()>> + Send + 'static {
        let change = self.clone();
        async move {
            match change {
                Change::Write(offset, bytes) => disk.write(offset, bytes).await,
                Change::Zero(offset, len) => disk.zero(offset, len).await,
                Change::Flush => disk.flush().await,
                Change::Commit | Change::CommitBeside => disk.commit().await,
                Change::Pause => Ok(()),
            }
        }
    }
}

async fn some_time(random: &mut StdRng) {
    for _ in 0..random.random_range(0..40) {
        tokio::task::yield_now().await;
    }
}

/// Random writes, discards, flushes and commits, then a crash, over and over.
async fn run(seed: u64, lives: usize, in_place: bool) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut machine = match in_place {
        false => Machine::new(random.random()).await,
        true => Machine::with(random.random(), Layout::InPlace(Blocks::new(seed))),
    };
    // The disk after each change since the last crash, and which of them the last flush covers.
    let mut history = vec![vec![0u8; DISK_BYTES as usize]];
    let mut flushed = 0;
    for life in 0..lives {
        let (disk, _) = machine.mount().await;
        let found = content(&disk).await;
        let after = (flushed..history.len())
            .position(|n| found == history[n] || is_part_of_next(&history[n..], &found));
        let after = after.unwrap_or_else(|| {
            panic!("seed {seed} life {life}: a state that never was, or older than the last flush")
        });
        assert!(flushed + after < history.len());
        history = vec![found];
        // What a mount shows is not to be lost either.
        flushed = 0;
        let mut begun = Vec::new();
        if random.random_bool(0.5) {
            machine.local.fail_power_after(random.random_range(1..60));
        }
        if random.random_bool(0.2) {
            let first = random.random_range(0..20);
            machine.local.set_trouble(Trouble {
                failing_syncs: first..first + 1,
                ..Trouble::default()
            });
        }
        for _ in 0..random.random_range(0..40) {
            let mut next = history.last().expect("one").clone();
            let (change, after) = Change::draw(&mut random, &mut next);
            if after == After::Changed {
                // It may be there though nobody was told.
                history.push(next);
            }
            if let Change::Pause = change {
                some_time(&mut random).await;
                continue;
            }
            let made = tokio::spawn(change.make(Arc::clone(&disk)));
            if let Change::CommitBeside = change {
                begun.push(made.abort_handle());
                continue;
            }
            // Who waits for a task that has lost its power waits for ever.
            begun.push(made.abort_handle());
            let made = tokio::time::timeout(FOR_EVER, made).await;
            match made {
                // Whoever was told anything after that was told by nobody.
                _ if machine.local.is_without_power() => break,
                Ok(Ok(Ok(()))) if after == After::Durable => flushed = history.len() - 1,
                Ok(Ok(Ok(()))) => {}
                // No more writes are taken.
                Ok(Ok(Err(_))) if after == After::Changed && machine.local.has_failed() => {
                    history.pop();
                }
                other => panic!("seed {seed} life {life}: {other:?}"),
            }
            if random.random_bool(0.1) && !machine.local.is_without_power() {
                assert_eq!(content(&disk).await, *history.last().expect("one"));
            }
        }
        some_time(&mut random).await;
        let off = machine.local.is_without_power();
        if !off && random.random_bool(0.1) {
            let closing = Arc::clone(&disk);
            let closed = tokio::spawn(async move { closing.close().await.expect("closes") });
            begun.push(closed.abort_handle());
            match tokio::time::timeout(FOR_EVER, closed).await {
                Ok(Ok(())) => flushed = history.len() - 1,
                other => assert!(machine.local.is_without_power(), "{other:?}"),
            }
        }
        for task in begun {
            task.abort();
        }
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(Arc::strong_count(&disk), 1, "nothing of it lives on");
        drop(disk);
        match machine.local.is_without_power() || random.random_bool(0.5) {
            true => machine.local.lose_power(),
            // The program alone: all that was taken is there.
            false => {
                if !machine.local.has_failed() {
                    flushed = history.len() - 1;
                }
                machine.local.kill();
                machine.local.fail_power_after(u32::MAX);
            }
        }
        machine.local.set_trouble(Trouble::default());
        some_time(&mut random).await;
    }
}

#[test]
fn after_a_crash_the_disk_is_as_it_was_after_some_write_and_has_all_that_was_flushed() {
    lives_of_many_machines(false);
}

/// The journal holds all of a commit that was left half done.
#[test]
fn so_it_is_where_commits_are_not_atomic() {
    lives_of_many_machines(true);
}

fn lives_of_many_machines(in_place: bool) {
    for seed in 0..150 {
        in_runtime(run(seed, 6, in_place));
    }
    let seed = rand::random();
    println!("seed {seed}");
    in_runtime(run(seed, 100, in_place));
}

#[test]
fn a_journal_that_fails_takes_no_more_writes_and_everything_goes_to_the_bucket() {
    in_runtime(async {
        let mut machine = Machine::new(0).await;
        let (disk, _) = machine.mount().await;
        disk.write(0, Bytes::from_static(b"first"))
            .await
            .expect("writes");
        disk.flush().await.expect("flushes");
        disk.write(0, Bytes::from_static(b"again"))
            .await
            .expect("writes");
        machine.local.set_trouble(Trouble {
            failing_syncs: 0..1,
            ..Trouble::default()
        });
        // What fdatasync has lost nobody knows: only the bucket can keep it now.
        disk.flush().await.expect("is committed instead");
        let error = disk.write(0, Bytes::from_static(b"third")).await;
        assert!(
            error
                .expect_err("is refused")
                .chain()
                .contains("has failed")
        );
        let status = disk.status();
        assert_eq!(status.flush, "bucket");
        assert!(status.journal_error.is_some());
        assert_eq!(status.dirty_bytes, 0);
        let mut found = [0; 5];
        disk.read(0, &mut found).await.expect("reads");
        assert_eq!(&found, b"again");
        drop(disk);
        // The first of the two writes is durable there, the second perhaps not, and the bucket has both.
        machine.local.lose_power();
        let (disk, records) = machine.mount().await;
        assert_eq!(records, 0, "it has been given up");
        disk.read(0, &mut found).await.expect("reads");
        assert_eq!(&found, b"again");
    });
}

#[test]
fn what_the_local_disk_has_altered_is_never_committed() {
    in_runtime(async {
        let mut machine = Machine::new(0).await;
        let (disk, _) = machine.mount().await;
        disk.write(0, Bytes::from(vec![1; 1000]))
            .await
            .expect("writes");
        disk.write(BLOCK, Bytes::from(vec![2; 1000]))
            .await
            .expect("writes");
        machine.local.flip("segment-00000", 64 + 64 + 500);
        let error = disk.commit().await.expect_err("cannot be");
        assert!(error.chain().contains("block 0"), "{}", error.chain());
        assert!(error.chain().contains("altered"), "{}", error.chain());
        assert_eq!(disk.status().store.commits, 0, "not in part either");
        // Written anew, it is sound.
        disk.write(0, Bytes::from(vec![3; 1000]))
            .await
            .expect("writes");
        disk.commit().await.expect("commits");
        disk.close().await.expect("closes");
        let (disk, _) = machine.mount().await;
        let all = content(&disk).await;
        assert_eq!(all[..1000], [3; 1000]);
        assert_eq!(all[BLOCK as usize..][..1000], [2; 1000]);
    });
}

#[test]
fn what_the_local_disk_has_altered_is_an_error_to_readers_that_says_where_and_is_counted() {
    in_runtime(async {
        let mut machine = Machine::new(0).await;
        let (disk, _) = machine.mount().await;
        let write = |offset, len, fill| disk.write(offset, Bytes::from(vec![fill; len]));
        write(0, 1000, 1).await.expect("writes");
        write(BLOCK, 1000, 2).await.expect("writes");
        // Of the first record two parts are left.
        write(400, 200, 3).await.expect("writes");
        let mut found = [0; 1000];
        disk.read(0, &mut found).await.expect("reads");
        assert_eq!((found[399], found[400], found[600]), (1, 3, 1));
        // In what is overwritten, and is read no more.
        machine.local.flip("segment-00000", 64 + 64 + 500);
        for (part, errors) in [(0..1000, 1), (0..1, 3), (999..1000, 5)] {
            let buf = &mut found[part.clone()];
            let offset = part.start as u64;
            let error = disk.read(offset, buf).await.expect_err("is altered");
            assert_eq!(error.kind(), ErrorKind::Damaged);
            let told = error.chain();
            assert!(told.contains("segment-00000, byte 64"), "{told}");
            assert_eq!(disk.status().read_errors, errors);
            assert_eq!(disk.status().damaged_blocks_read, errors);
            assert!(disk.read_now(offset, buf).is_err());
        }
        disk.read(400, &mut found[..200]).await.expect("is sound");
        assert_eq!(found[..200], [3; 200]);
        disk.read(BLOCK, &mut found).await.expect("is sound");
        assert_eq!(found, [2; 1000]);
        write(0, 1000, 4).await.expect("writes");
        disk.read(0, &mut found).await.expect("is sound again");
        assert_eq!(found, [4; 1000]);
    });
}

#[test]
fn a_burst_larger_than_the_journal_goes_through_it() {
    in_runtime(async {
        let mut machine = Machine::new(0).await;
        let (disk, _) = machine.mount().await;
        for round in 0..200u64 {
            let bytes = Bytes::from(vec![round as u8; BLOCK as usize]);
            disk.write(round % 16 * BLOCK, bytes).await.expect("writes");
        }
        assert!(disk.status().store.commits > 2);
        // What comes to nothing takes no room for ever.
        disk.commit().await.expect("commits");
        disk.zero(0, DISK_BYTES).await.expect("discards");
        disk.commit().await.expect("commits");
        for _ in 0..200 {
            disk.write(0, Bytes::from(vec![7; BLOCK as usize]))
                .await
                .expect("writes");
            disk.zero(0, BLOCK).await.expect("discards");
        }
        disk.close().await.expect("closes");
        let (disk, records) = machine.mount().await;
        assert_eq!(records, 0);
        assert!(content(&disk).await.iter().all(|byte| *byte == 0));
    });
}
