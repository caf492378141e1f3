//! Two machines with pins, in turns, and readers, under a seed: nothing that they do to the disk is ever taken for a rollback, and an older
//! copy of the bucket always is, also when a third machine has written on it.
//!
//! ```console
//! BUCKETDISK_ROLLBACK_SEED=17 cargo test --test rollback random_walk
//! ```

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bucketdisk::block::{Block, BlockIndex, Seq};
use bucketdisk::error::{Error, ErrorKind, Result};
use bucketdisk::store::versioned::{Pin, VersionedStore};
use bucketdisk::store::{BlockStore, Changes};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::time::sleep;

use crate::support::block_store_contract::{Given, given};
use crate::support::memory::Bucket;
use crate::support::volume::mount;
use crate::{Memory, bucket, commit};

/// What is done in one walk.
const STEPS: usize = 400;
const WALKS: u64 = 6;

/// Changes of which one block can never be completed.
struct Incomplete(Arc<Given>);

#[async_trait]
impl Changes for Incomplete {
    fn blocks(&self) -> Vec<BlockIndex> {
        self.0.blocks()
    }

    fn holes(&self) -> Vec<std::ops::Range<BlockIndex>> {
        self.0.holes()
    }

    async fn block(&self, index: BlockIndex) -> Result<Option<Block>> {
        match index {
            BlockIndex(2) => Err(Error::new(ErrorKind::Damaged, "the block below is damaged")),
            _ => self.0.block(index).await,
        }
    }

    fn stored(&self, index: BlockIndex, version: Seq, block: &Block) {
        self.0.stored(index, version, block);
    }
}

/// A machine, with a session or without.
#[derive(Default)]
struct Machine {
    memory: Memory,
    store: Option<Arc<VersionedStore>>,
}

/// A copy of the bucket from some moment.
struct Copy {
    bucket: Bucket,
    /// What each machine had seen by then.
    seen: [Option<Pin>; 2],
}

struct Walk {
    random: SmallRng,
    bucket: Bucket,
    machines: [Machine; 2],
    copies: Vec<Copy>,
    refused: usize,
    written_on: usize,
}

impl Walk {
    async fn new(seed: u64) -> Walk {
        Walk {
            random: SmallRng::seed_from_u64(seed),
            bucket: bucket().await,
            machines: Default::default(),
            copies: Vec::new(),
            refused: 0,
            written_on: 0,
        }
    }

    async fn step(&mut self) {
        let who = self.random.random_range(0..2);
        if self.machines[who].store.is_none() {
            return self.mount(who).await;
        }
        match self.random.random_range(0..100) {
            0..50 => self.commit(who).await,
            50..58 => self.give_up(who).await,
            58..66 => self.leave(who).await,
            // It dies.
            66..72 => self.machines[who].store = None,
            72..76 => {
                let seconds = self.random.random_range(1..2000);
                sleep(Duration::from_secs(seconds)).await;
            }
            76..78 => {
                // Enough for a checkpoint, after which records are pruned.
                for _ in 0..140 {
                    self.commit(who).await;
                }
                sleep(Duration::from_secs(400)).await;
            }
            78..84 => self.read(who).await,
            84..88 => self.forget_a_little(who),
            88..94 => self.copies.push(Copy {
                bucket: self.bucket.fork(),
                seen: [0, 1].map(|who| self.machines[who].memory.pin()),
            }),
            _ => self.put_back(who).await,
        }
    }

    async fn mount(&mut self, who: usize) {
        let mut options = self.machines[who].memory.options();
        options.list_blocks = self.random.random_bool(0.2);
        let mounted = mount(&self.bucket.client(), options).await;
        self.machines[who].store = Some(mounted.expect("is no rollback"));
    }

    async fn read(&mut self, who: usize) {
        let options = self.machines[who]
            .memory
            .reading(self.random.random_bool(0.4));
        let mounted = mount(&self.bucket.client(), options).await;
        mounted.expect("is no rollback");
    }

    /// The session may have lost the disk, and finds out.
    async fn commit(&mut self, who: usize) {
        let fill: u8 = self.random.random();
        let Some(store) = self.machines[who].store.clone() else {
            return;
        };
        let changes = given(&[(u64::from(fill) % 32, fill | 1)], &[]);
        self.ended(who, store.commit(changes).await.map(drop));
    }

    async fn give_up(&mut self, who: usize) {
        let Some(store) = self.machines[who].store.clone() else {
            return;
        };
        let incomplete = Arc::new(Incomplete(given(&[(1, 5), (2, 5)], &[])));
        if let Err(error) = store.commit(incomplete).await
            && error.kind() == ErrorKind::Damaged
        {
            let given_up = store.give_up().await;
            self.ended(who, given_up.map(drop));
        } else {
            self.machines[who].store = None;
        }
    }

    async fn leave(&mut self, who: usize) {
        if let Some(store) = self.machines[who].store.take() {
            self.ended(who, store.release().await);
        }
    }

    fn ended(&mut self, who: usize, outcome: Result<()>) {
        if let Err(error) = outcome {
            assert_eq!(error.kind(), ErrorKind::Fenced, "{error:?}");
            self.machines[who].store = None;
        }
    }

    /// The machine has died, and lost what it had kept last.
    fn forget_a_little(&mut self, who: usize) {
        self.machines[who].store = None;
        let mut told = self.machines[who].memory.0.lock();
        let kept = told.len() - self.random.random_range(0..told.len().min(4));
        told.truncate(kept);
    }

    /// An older copy is put in the bucket's place, for as long as it takes to look; another machine may write on it before.
    async fn put_back(&mut self, who: usize) {
        if self.copies.is_empty() {
            return;
        }
        let at = self.random.random_range(0..self.copies.len());
        let copy = &self.copies[at];
        let memory = &self.machines[who].memory;
        let Some(pin) = memory.pin() else { return };
        if copy.seen[who].is_some_and(|then| then.seq >= pin.seq) {
            return;
        }
        // It may know no more than the copy has, if it was away meanwhile.
        let stranger = Memory::default();
        let fork = copy.bucket.fork();
        let reading = mount(&fork.client(), stranger.reading(false)).await;
        let head = reading.expect("mounts").status().head;
        if Seq(head) >= pin.seq {
            return;
        }
        if self.random.random_bool(0.6) {
            let more = self.random.random_range(1..300);
            let other = stranger.mount(&fork).await;
            for fill in 0..more {
                commit(&other, fill as u8).await;
            }
            if self.random.random_bool(0.5) {
                sleep(Duration::from_secs(1000)).await;
                other.release().await.expect("releases");
            }
            self.written_on += 1;
        }
        let ways = [memory.options(), memory.reading(false)];
        for options in ways {
            let error = mount(&fork.client(), options).await.map(drop);
            let error = error.expect_err("is a rollback");
            assert_eq!(error.kind(), ErrorKind::RolledBack, "{error:?}");
        }
        self.refused += 1;
    }
}

#[tokio::test(start_paused = true)]
async fn a_random_walk_of_two_machines_is_never_refused_and_an_older_copy_always_is() {
    let named = std::env::var("BUCKETDISK_ROLLBACK_SEED").ok();
    let seeds: Vec<u64> = match named.map(|text| text.parse()) {
        Some(seed) => vec![seed.expect("a seed is a number")],
        None => (0..WALKS).chain([rand::random::<u32>().into()]).collect(),
    };
    let (mut refused, mut written_on) = (0, 0);
    for seed in &seeds {
        println!("BUCKETDISK_ROLLBACK_SEED={seed}");
        let mut walk = Walk::new(*seed).await;
        for _ in 0..STEPS {
            walk.step().await;
        }
        refused += walk.refused;
        written_on += walk.written_on;
    }
    println!("{refused} older copies refused, {written_on} of them written on");
    assert!(seeds.len() == 1 || (refused > 20 && written_on > 10));
}
