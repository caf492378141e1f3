//! One world under one seed: a bucket, a clock, two machines that write to the disk, and readers. It runs on a runtime of one thread
//! whose clock stands still while anybody has something to do, so that nothing but the seed decides what happens when.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bucketdisk::block::Geometry;
use bucketdisk::disk::{Disk, DiskConfig, FlushTo, Kept};
use bucketdisk::error::ErrorKind;
use bucketdisk::object::{ObjectClient, Patience};
use bucketdisk::store::BlockStore;
use bucketdisk::store::versioned::record::Record;
use bucketdisk::store::versioned::{SessionId, Sources, Superblock};
use bytes::Bytes;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep, timeout_at};
use uuid::Uuid;

use super::machine::Machine;
use super::profile::Profile;
use super::stamp::SECTOR;
use super::support::fault::{Faulty, Sent};
use super::support::memory::Bucket;
use super::support::volume::codec;
use super::tally::Tally;
use super::truth::Truth;
use super::viewer;

pub const BLOCK: u64 = 4096;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Longer than it takes from a fault to the error that comes of it, where nothing else is waited for.
const SHORTLY: Duration = Duration::from_secs(180);
/// A world in which so little happens in so long ends.
const LONGEST: Duration = DAY.saturating_mul(1000);
/// By then all who live in it have come to an end.
const HALT: Duration = LONGEST.saturating_mul(2);

/// What all in a world share.
pub struct World {
    pub seed: u64,
    pub profile: Profile,
    pub bucket: Bucket,
    pub superblock: Superblock,
    pub truth: Mutex<Truth>,
    pub tally: Mutex<Tally>,
    /// What went wrong while it ran.
    pub violations: Mutex<Vec<String>>,
    /// Which machines have the disk mounted for writing, as far as they know.
    pub alive: Mutex<[bool; 2]>,
    /// The newest claim of which a machine knows that it stands, and since when.
    newest: Mutex<Option<(u32, SessionId, Instant)>>,
    began: Instant,
    writes: AtomicU32,
    appends: AtomicU32,
    /// Seeds of whatever needs one, drawn in the order in which they are asked for.
    seeds: Mutex<SmallRng>,
    layers: Mutex<Vec<Arc<Faulty>>>,
}

/// A process's connection to the bucket: the product's own decorators over the faults.
pub struct Line {
    pub faulty: Arc<Faulty>,
    pub client: Arc<dyn ObjectClient>,
    pub patience: Patience,
}

impl Line {
    /// The process is gone: what it had sent may still land, and what it would send never leaves.
    pub fn cut(&self) {
        self.faulty.crash();
    }

    /// Whether the error of what has lasted since then can be put down to a fault of this connection.
    pub fn excuses(&self, kind: ErrorKind, since: Instant) -> bool {
        match kind {
            ErrorKind::Unreachable => true,
            ErrorKind::Denied => self.had_since(since, "403"),
            ErrorKind::Full => self.had_since(since, "other 5xx"),
            ErrorKind::Damaged => self.had_since(since, "truncated bodies"),
            _ => false,
        }
    }

    /// The same of a mount, which listings that lag behind may show blocks without a log.
    pub fn excuses_mount(&self, kind: ErrorKind, since: Instant) -> bool {
        let lagging = kind == ErrorKind::Damaged && self.had_since(since, "lagging listings");
        lagging || self.excuses(kind, since)
    }

    /// Whether a fault has happened since, or shortly before: others may have begun what fails.
    fn had_since(&self, since: Instant, fault: &str) -> bool {
        let last = self.faulty.dealt().since(fault);
        last.is_some_and(|ago| ago < since.elapsed() + SHORTLY)
    }
}

impl World {
    fn new(seed: u64) -> Arc<World> {
        let began = Instant::now();
        let profile = Profile::of(seed);
        let mut seeds = SmallRng::seed_from_u64(seed);
        let superblock = Superblock::plain(
            Uuid::from_u128(seeds.random()),
            Geometry::new(profile.blocks * BLOCK, BLOCK).expect("a geometry"),
            String::new(),
            epoch(),
        );
        Arc::new(World {
            seed,
            bucket: Bucket::with_clock(move || epoch() + began.elapsed()),
            superblock,
            profile,
            truth: Mutex::default(),
            tally: Mutex::default(),
            violations: Mutex::default(),
            alive: Mutex::default(),
            newest: Mutex::default(),
            began,
            writes: AtomicU32::new(0),
            appends: AtomicU32::new(0),
            seeds: Mutex::new(seeds),
            layers: Mutex::default(),
        })
    }

    /// Runs the world of a seed to its end. To be called on a runtime of one thread with a paused clock.
    pub async fn run(seed: u64) -> Arc<World> {
        let world = World::new(seed);
        let superblock = world.superblock.to_json();
        let put = world.bucket.put("disk.json", superblock).await;
        put.expect("memory takes it");
        let mut lives = vec![tokio::spawn(Machine::new(&world, 0).live())];
        if world.profile.rival {
            lives.push(tokio::spawn(Machine::new(&world, 1).live()));
        }
        lives.push(tokio::spawn(viewer::live(Arc::clone(&world))));
        for life in lives {
            match timeout_at(world.began + HALT, life).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => world.violated(format!("an actor has failed: {error}")),
                Err(_) => world.violated("an actor waits for ever".to_owned()),
            }
        }
        // Everything that is on its way lands.
        sleep(2 * Duration::from_millis(world.profile.latest_ms())).await;
        let mut tally = world.tally.lock();
        for faulty in world.layers.lock().iter() {
            for (name, many) in faulty.dealt().each() {
                tally.add(name, many);
            }
            tally.add("requests", faulty.log().len() as u64);
        }
        drop(tally);
        world
    }

    /// Sectors of the disk.
    pub fn sectors(&self) -> usize {
        (self.profile.blocks * BLOCK) as usize / SECTOR
    }

    /// Whether the actors are to stop.
    pub fn over(&self) -> bool {
        self.bucket.changes() >= self.profile.changes
            || self.began.elapsed() > LONGEST
            || !self.violations.lock().is_empty()
    }

    /// Changes that the bucket had seen so long ago.
    pub fn changes_before(&self, ago: Duration) -> usize {
        if ago.is_zero() {
            return self.bucket.changes();
        }
        let applied = self.bucket.applied();
        applied.partition_point(|applied| applied.moment.elapsed() > ago)
    }

    /// Notes that a session knows its claim to stand.
    pub fn claimed(&self, claim: u32, session: SessionId) {
        let mut newest = self.newest.lock();
        if newest.is_none_or(|(number, ..)| number < claim) {
            *newest = Some((claim, session, Instant::now()));
        }
    }

    /// For how long it has been known that a session which claimed the disk after `claim` has it.
    pub fn lost_for(&self, session: SessionId, claim: u32) -> Option<Duration> {
        let newest = *self.newest.lock();
        let (_, _, since) = newest.filter(|(n, by, _)| *n > claim && *by != session)?;
        Some(since.elapsed())
    }

    /// Notes what must not happen.
    pub fn violated(&self, what: String) {
        self.violations.lock().push(what);
    }

    pub fn count(&self, name: &'static str) {
        self.tally.lock().count(name);
    }

    /// A seed of its own for a part of the world.
    pub fn fork_seed(&self) -> u64 {
        self.seeds.lock().random()
    }

    /// The number of the next write.
    pub fn next_write(&self) -> u32 {
        self.writes.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The number of the next write that appends.
    pub fn next_append(&self) -> u32 {
        self.appends.fetch_add(1, Ordering::Relaxed)
    }

    /// A new connection.
    pub fn connect(&self, patience: Duration) -> Line {
        let faulty = Faulty::over(&self.bucket, self.fork_seed());
        faulty.weather(self.profile.weather());
        self.layers.lock().push(Arc::clone(&faulty));
        let patience = Patience::new(patience);
        let client = faulty.behind_retries(patience.clone(), 6, self.fork_seed());
        Line {
            faulty,
            client,
            patience,
        }
    }

    /// A disk over a store, with a cache that is smaller than it.
    pub fn open(
        &self,
        store: Arc<dyn BlockStore>,
        kept: Option<Kept>,
        flush: FlushTo,
    ) -> Arc<Disk> {
        let config = DiskConfig {
            commit_interval: self.profile.commit_interval,
            max_dirty_bytes: self.profile.max_dirty_blocks * BLOCK,
            cache_bytes: 4 * BLOCK,
            flush,
            max_lag: None,
        };
        Disk::open(store, config, kept, Handle::current())
    }

    /// Time of day and randomness of a machine whose clock is so many seconds ahead.
    pub fn sources(&self, skew: Arc<AtomicU64>) -> Sources {
        let (began, random) = (self.began, SmallRng::seed_from_u64(self.fork_seed()));
        let random = Mutex::new(random);
        let ahead = move || Duration::from_secs(skew.load(Ordering::Relaxed));
        Sources::new(
            move || epoch() + began.elapsed() + ahead(),
            move || random.lock().random(),
        )
    }

    /// Whether a claim of another session stands in the log after `claim`.
    pub fn overtaken(&self, session: SessionId, claim: u32) -> bool {
        let records = self.bucket.keys().into_iter().filter_map(|key| {
            let number = u32::from_str_radix(key.strip_prefix("log/")?, 16).ok()?;
            if number <= claim {
                return None;
            }
            self.decode(number, &self.bucket.body(&key)?)
        });
        let mut claims = records.filter(Record::is_claim);
        claims.any(|record| record.session != session)
    }

    /// A record of the log.
    pub fn decode(&self, number: u32, object: &Bytes) -> Option<Record> {
        let (disk, blocks) = (self.superblock.id, self.profile.blocks);
        let seq = bucketdisk::block::Seq(number);
        Record::decode(&*codec(), disk, blocks, seq, object).ok()
    }

    /// Every request of every actor: by whom, when, what, with its body.
    pub fn requests(&self) -> Vec<(usize, Duration, Sent)> {
        let layers = self.layers.lock();
        let of = |(layer, faulty): (usize, &Arc<Faulty>)| {
            let sent = faulty.log().into_iter();
            let timed = sent.map(move |sent| (layer, sent.at - self.began, sent));
            timed.collect::<Vec<_>>()
        };
        layers.iter().enumerate().flat_map(of).collect()
    }
}

/// When every world begins.
pub fn epoch() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}
