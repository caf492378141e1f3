//! Going on with a journal: what a mount, by the program's own way to it, makes of what the last one has left, whatever the local disk does
//! meanwhile, and whoever has had the disk.

mod support;

#[path = "recovery/failed.rs"]
mod failed;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bucketdisk::codec::keys::{DiskKeys, MasterKey};
use bucketdisk::disk::{Disk, DiskConfig, FlushTo};
use bucketdisk::error::{ErrorKind, Result};
use bucketdisk::journal::{Found, Owner};
use bucketdisk::object::ObjectClient;
use bucketdisk::open::{NewJournal, Prepared};
use bucketdisk::secret::Key;
use bucketdisk::store::versioned::{self, SessionId, VersionedStore};
use bytes::Bytes;
use futures::FutureExt;
use support::local_disk::{LocalDisk, Trouble};
use support::memory::Bucket;
use support::volume::{self, content, in_runtime, keys, write};
use uuid::Uuid;

const DISK_BYTES: u64 = 256 << 10;
const BLOCK: u64 = 16 << 10;
const SEGMENT: u64 = 64 << 10;
/// A machine with a bucket somewhere.
struct Machine {
    client: Arc<dyn ObjectClient>,
    local: Arc<LocalDisk>,
    /// Gives up what its journal may not apply.
    discards: bool,
    /// What it remembers of itself: its sessions, all of them dead but the last.
    own: Vec<SessionId>,
    config: DiskConfig,
}

impl Machine {
    async fn new(seed: u64) -> Machine {
        Machine::over(&Bucket::new(), seed).await
    }

    /// With a bucket, and in it a new disk, unless there is one.
    async fn over(bucket: &Bucket, seed: u64) -> Machine {
        let client = bucket.client();
        if bucket.keys().is_empty() {
            volume::create(&client, DISK_BYTES, BLOCK).await;
        }
        Machine {
            client,
            local: LocalDisk::new(seed),
            discards: false,
            own: Vec::new(),
            config: DiskConfig {
                commit_interval: Duration::from_secs(3600),
                flush: FlushTo::Journal,
                ..volume::config(1 << 20)
            },
        }
    }

    /// Mounts as the program does, and answers how many records were found.
    async fn mount(&mut self) -> (Arc<Disk>, u64) {
        self.try_mount().await.expect("mounts")
    }

    async fn try_mount(&mut self) -> Result<(Arc<Disk>, u64)> {
        let (store, prepared, session) = self.claim().await?;
        let (kept, replay, _) = prepared.begin(&*store, session, 16 * SEGMENT).await?;
        let runtime = tokio::runtime::Handle::current();
        let disk = Disk::open(store, self.config.clone(), Some(kept), runtime);
        Ok((disk, replay.map_or(0, |replay| replay.records)))
    }

    /// Claims the disk, and does not go on with the journal yet.
    async fn claim(&mut self) -> Result<(Arc<VersionedStore>, Prepared, SessionId)> {
        let superblock = versioned::read_superblock(&self.client).await?;
        let new = NewJournal {
            id: rand::random(),
            segment_bytes: SEGMENT,
            keys: keys(),
        };
        let files = self.local.files();
        let mut prepared = Prepared::look_at(&files, &superblock, new, self.discards)?;
        let mut options = volume::options();
        let session = options.session;
        let journals = prepared.sessions().into_iter();
        options.own_dead_sessions = journals.chain(self.own.iter().copied()).collect();
        self.own.push(session);
        options.admit = prepared.admit(session)?;
        let store = volume::mount(&self.client, options).await?;
        Ok((store, prepared, session))
    }
}

#[test]
fn a_mount_that_the_local_disk_fails_leaves_the_journal_to_the_next() {
    in_runtime(async {
        let mut failed = 0;
        for call in 0..20 {
            let mut machine = Machine::new(0).await;
            let (disk, _) = machine.mount().await;
            write(&disk, 5, &b"flushed"[..]).await;
            disk.flush().await.expect("flushes");
            drop(disk);
            machine.local.set_trouble(Trouble {
                failing_syncs: call..call + 1,
                ..Trouble::default()
            });
            failed += u32::from(machine.try_mount().await.is_err());
            machine.local.set_trouble(Trouble::default());
            let (disk, _) = machine.mount().await;
            let mut found = [0; 7];
            disk.read(5, &mut found).await.expect("reads");
            assert_eq!(&found, b"flushed", "after call {call} has failed");
        }
        assert!(failed > 3, "{failed} mounts have failed");
    });
}

/// A mount that ends at a call to the local disk, if it comes to that.
async fn mount_until(machine: &mut Machine, call: u32) {
    machine.local.fail_power_after(call);
    // Whoever has no power ends by a panic.
    drop(AssertUnwindSafe(machine.try_mount()).catch_unwind().await);
}

#[test]
fn a_mount_that_is_killed_and_one_whose_power_is_cut_leave_a_journal_to_go_on_with() {
    in_runtime(async {
        for (killed, cut) in (1..24).flat_map(|killed| (0..24).map(move |cut| (killed, cut))) {
            let mut machine = Machine::new(u64::from(killed * 100 + cut)).await;
            let (disk, _) = machine.mount().await;
            write(&disk, 5, &b"flushed"[..]).await;
            disk.flush().await.expect("flushes");
            if cut % 2 == 0 {
                disk.close().await.expect("closes");
            }
            drop(disk);
            mount_until(&mut machine, killed).await;
            machine.local.kill();
            if cut > 0 {
                mount_until(&mut machine, cut).await;
                machine.local.lose_power();
            }
            machine.local.fail_power_after(u32::MAX);
            let (disk, _) = machine.mount().await;
            let mut found = [0; 7];
            disk.read(5, &mut found).await.expect("reads");
            assert_eq!(&found, b"flushed", "killed at {killed}, power cut at {cut}");
        }
    });
}

#[test]
fn a_mount_that_gives_a_journal_up_and_dies_after_its_claim_does_not_let_the_next_apply_it() {
    in_runtime(async {
        let mut machine = Machine::new(0).await;
        let (disk, _) = machine.mount().await;
        write(&disk, 0, &b"older"[..]).await;
        disk.flush().await.expect("flushes");
        drop(disk);
        let mut other = volume::options();
        other.take_over = true;
        let disk = volume::open(&machine.client, other, 1 << 20).await;
        let disk = disk.expect("takes over");
        write(&disk, 0, &b"newer"[..]).await;
        disk.close().await.expect("closes");
        machine.discards = true;
        let (store, ..) = machine.claim().await.expect("claims");
        drop(store);
        machine.discards = false;
        let refused = machine.try_mount().await.map(drop);
        let error = refused.expect_err("is refused");
        assert_eq!(error.kind(), ErrorKind::Fenced, "{}", error.chain());
        machine.discards = true;
        let (disk, records) = machine.mount().await;
        assert_eq!(records, 0);
        assert_eq!(content(&disk).await[..5], *b"newer");
    });
}

#[test]
fn a_flush_after_the_journal_has_failed_waits_for_the_bucket_though_all_was_durable_there() {
    in_runtime(async {
        let mut machine = Machine::new(0).await;
        let (disk, _) = machine.mount().await;
        write(&disk, 0, &b"first"[..]).await;
        disk.flush().await.expect("flushes");
        assert!(disk.status().dirty_bytes > 0, "the journal has it");
        machine.local.set_trouble(Trouble {
            failing_writes: 0..1,
            ..Trouble::default()
        });
        let refused = disk.write(0, Bytes::from_static(b"again")).await;
        assert!(refused.is_err());
        // The journal is going to be given up before what it has is committed.
        disk.flush().await.expect("is committed");
        assert_eq!(disk.status().dirty_bytes, 0);
    });
}

#[test]
fn what_was_discarded_before_a_flush_does_not_come_back_though_nothing_was_left_to_commit() {
    in_runtime(async {
        for seed in 0..60 {
            let mut machine = Machine::new(seed).await;
            if seed % 2 == 0 {
                machine.config.flush = FlushTo::Bucket;
            }
            let (disk, _) = machine.mount().await;
            write(&disk, 0, vec![1; 5000]).await;
            if seed % 3 == 0 {
                assert!(disk.keep_in_journal().is_some());
            }
            disk.zero(0, DISK_BYTES).await.expect("discards");
            disk.flush().await.expect("flushes");
            drop(disk);
            machine.local.lose_power();
            let (disk, _) = machine.mount().await;
            let found = content(&disk).await;
            assert!(found.iter().all(|byte| *byte == 0), "seed {seed}");
        }
    });
}

#[test]
fn a_record_that_is_altered_after_its_commit_is_damage_though_it_is_the_last() {
    in_runtime(async {
        let mut damaged = 0;
        for call in 1..20 {
            let mut machine = Machine::new(0).await;
            let (disk, _) = machine.mount().await;
            for fill in [1, 2] {
                write(&disk, 0, vec![fill; 512]).await;
            }
            machine.local.fail_power_after(call);
            let committing = Arc::clone(&disk);
            let committing = tokio::spawn(async move { committing.commit().await });
            // Whoever waits for a committer that has ended waits for ever.
            let waiting = tokio::time::timeout(Duration::from_secs(60), committing);
            drop(waiting.await);
            drop(disk);
            machine.local.kill();
            machine.local.fail_power_after(u32::MAX);
            let mut reading = volume::options();
            reading.read_only = true;
            let shown = volume::open(&machine.client, reading, 1 << 20).await;
            let landed = content(&shown.expect("opens")).await[0] == 2;
            // The second record's payload.
            machine
                .local
                .flip("segment-00000", 64 + (64 + 512) + 64 + 100);
            match machine.try_mount().await.map(|(disk, _)| disk) {
                Ok(disk) if landed => assert_eq!(content(&disk).await[..512], [2; 512], "{call}"),
                Ok(_) => {}
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Damaged, "{}", error.chain());
                    damaged += 1;
                }
            }
        }
        assert!(damaged > 0);
    });
}

#[test]
fn another_disks_journal_is_never_discarded_though_these_keys_cannot_tell_what_it_is() {
    in_runtime(async {
        let owner = Owner {
            disk: 7,
            size_bytes: DISK_BYTES,
        };
        let fresh_keys = || {
            let master = MasterKey(Key::fresh());
            Some(Arc::new(DiskKeys::derive(&master, Uuid::nil())))
        };
        let machine = Machine::new(0).await;
        let superblock = versioned::read_superblock(&machine.client).await;
        let superblock = superblock.expect("is there");
        let files = machine.local.files();
        let other = Found::create(&files, owner, 5, SEGMENT, fresh_keys().as_ref());
        let journal = other.expect("creates").begin(None, 1, 16 * SEGMENT);
        drop(journal.expect("begins"));
        let before = machine.local.names();
        for keys in [None, fresh_keys()] {
            let new = NewJournal {
                id: 6,
                segment_bytes: SEGMENT,
                keys,
            };
            let error = Prepared::look_at(&files, &superblock, new, true).expect_err("is refused");
            assert_eq!(error.kind(), ErrorKind::Usage, "{}", error.chain());
            assert_eq!(machine.local.names(), before);
        }
    });
}

#[test]
fn a_state_of_before_the_last_change_hides_nothing_that_was_flushed() {
    in_runtime(async {
        let mut damaged = 0;
        for (slot, closed) in [(0, false), (1, false), (0, true), (1, true)] {
            let mut machine = Machine::new(0).await;
            if closed {
                let (disk, _) = machine.mount().await;
                write(&disk, 0, &b"earlier"[..]).await;
                disk.close().await.expect("closes");
            }
            let (disk, _) = machine.mount().await;
            write(&disk, 5, &b"flushed"[..]).await;
            disk.flush().await.expect("flushes");
            drop(disk);
            machine.local.kill();
            machine.local.flip("state", slot * 4096 + 40);
            match machine.try_mount().await {
                Ok((disk, _)) => assert_eq!(content(&disk).await[5..12], *b"flushed"),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Damaged, "{}", error.chain());
                    damaged += 1;
                }
            }
        }
        assert!(damaged > 0);
    });
}

#[test]
fn a_journal_that_is_a_quarter_full_is_committed_though_nobody_asks() {
    in_runtime(async {
        let mut machine = Machine::new(0).await;
        let (disk, _) = machine.mount().await;
        for fill in 0..20 {
            write(&disk, 0, vec![fill; BLOCK as usize]).await;
            // The committer has looked, and waits again.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(disk.status().store.commits, 1);
    });
}

#[test]
fn an_older_copy_of_a_journal_is_not_put_over_what_was_committed_from_it_since() {
    in_runtime(async {
        let mut machine = Machine::new(0).await;
        let (disk, _) = machine.mount().await;
        write(&disk, 0, &b"older"[..]).await;
        disk.flush().await.expect("flushes");
        // As a virtual machine is put back to a snapshot.
        let older = machine.local.fork(1);
        write(&disk, 0, &b"newer"[..]).await;
        disk.commit().await.expect("commits");
        // A heartbeat says it, too.
        tokio::time::sleep(Duration::from_secs(24 * 3600)).await;
        drop(disk);
        machine.local = older;
        machine.local.kill();
        let refused = machine.try_mount().await.map(drop);
        let error = refused.expect_err("is refused");
        assert_eq!(error.kind(), ErrorKind::Fenced, "{}", error.chain());
        assert!(error.chain().contains("an older copy"), "{}", error.chain());
        machine.discards = true;
        let (disk, records) = machine.mount().await;
        assert_eq!((records, &content(&disk).await[..5]), (0, &b"newer"[..]));
    });
}
