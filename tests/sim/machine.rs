//! A machine that writes to the disk: it mounts, lives through a session, and mounts again. It remembers its sessions as
//! `bucketdisk::local` does, so that it may go on after one of its own that died.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bucketdisk::error::{Error, ErrorKind};
use bucketdisk::store::versioned::{MountOptions, SessionId, Sources};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use tokio::time::{Instant, sleep, timeout};

use super::mounted::{Mounted, PATIENCE};
use super::session::{Ending, Session};
use super::support::fault::{Fault, Request};
use super::support::volume;
use super::world::{Line, World};

/// How long a request is tried again while mounting: not at all after it had no answer, or several times.
const MOUNTING_PATIENCE: [Duration; 2] = [Duration::from_secs(30), Duration::from_secs(300)];
/// And afterwards: where that is short, it is for those above to try again.
const MOUNTED_PATIENCE: [Duration; 3] = [Duration::ZERO, Duration::from_secs(10), PATIENCE];
/// Of crashes: those that take the local disk with them.
const DISKS_LOST: f64 = 0.15;

/// See the module.
pub struct Machine {
    pub world: Arc<World>,
    number: usize,
    random: SmallRng,
    sources: Sources,
    /// Seconds by which its clock is ahead.
    skew: Arc<AtomicU64>,
    local: LocalDisk,
}

/// What a machine has that outlives its processes.
#[derive(Default)]
struct LocalDisk {
    /// Its sessions that are dead, and that may have claimed the disk.
    sessions: Vec<SessionId>,
}

/// What a mount has come to.
enum Mounting {
    Done(Box<Session>),
    Held,
    Failed,
}

impl Machine {
    pub fn new(world: &Arc<World>, number: usize) -> Machine {
        let skew = Arc::new(AtomicU64::new(0));
        Machine {
            world: Arc::clone(world),
            number,
            random: SmallRng::seed_from_u64(world.fork_seed()),
            sources: world.sources(Arc::clone(&skew)),
            skew,
            local: LocalDisk::default(),
        }
    }

    /// Its life, until the world ends.
    pub async fn live(mut self) {
        let profile = self.world.profile.clone();
        while !self.world.over() {
            let by_force = profile.takeovers * 0.2;
            let take_over = self.random.random_bool(by_force);
            let mut mounting = self.mount(take_over).await;
            if matches!(mounting, Mounting::Held) && self.random.random_bool(profile.takeovers) {
                mounting = self.mount(true).await;
            }
            match mounting {
                Mounting::Done(mut session) => {
                    let ending = session.live(&mut self).await;
                    match ending {
                        Ending::Crash => self.crash(session.line()),
                        Ending::Closed | Ending::Fenced => session.line().cut(),
                    }
                    session.end().await;
                    self.world.alive.lock()[self.number] = false;
                }
                Mounting::Held => sleep(Duration::from_secs(10)).await,
                Mounting::Failed => {}
            }
            let pause = self.random.random_range(profile.pause.clone());
            sleep(Duration::from_millis(pause)).await;
        }
    }

    /// The machine dies, and whatever it was doing with it. All that a crash does is done here: to what is on its way to the bucket, and
    /// to the local disk.
    fn crash(&mut self, line: &Line) {
        line.cut();
        self.world.count("crashes");
        if self.random.random_bool(DISKS_LOST) {
            self.local = LocalDisk::default();
            self.world.count("crashes that take the local disk");
        }
    }

    async fn mount(&mut self, take_over: bool) -> Mounting {
        let id = SessionId(self.sources.id());
        let patience = MOUNTING_PATIENCE.choose(&mut self.random);
        let since = Instant::now();
        let line = self.world.connect(*patience.expect("there are some"));
        let list_blocks = self.random.random_bool(0.2);
        let options = MountOptions {
            take_over,
            list_blocks: list_blocks && self.world.profile.listings_hold(),
            session: id,
            own_dead_sessions: self.local.sessions.clone(),
            requests: self.random.random_range(1..7),
            sources: self.sources.clone(),
            ..volume::options()
        };
        self.local.sessions.push(id);
        if self.random.random_bool(self.world.profile.slow_claims) {
            let late = Duration::from_secs(self.random.random_range(10..180));
            line.faulty.next_of(is_record, [Fault::Stall(Some(late))]);
        }
        let mounting = volume::mount(&line.client, options);
        let outcome = match self.random.random_bool(0.1 * self.world.profile.crashes) {
            true => {
                let after = Duration::from_millis(self.random.random_range(0..8000));
                timeout(after, mounting).await
            }
            false => Ok(mounting.await),
        };
        let store = match outcome {
            Err(_) => {
                self.world.count("crashes while mounting");
                self.crash(&line);
                return Mounting::Failed;
            }
            Ok(Err(error)) => return self.not_mounted(&line, since, &error),
            Ok(Ok(store)) => store,
        };
        self.local.sessions = vec![id];
        if let Some(took) = store.took_over() {
            let from = match (took.was_dead, self.world.alive.lock()[1 - self.number]) {
                (true, _) => "resumes of an own session",
                (false, true) => "take-overs while the other lives",
                (false, false) => "take-overs from the dead",
            };
            self.world.count(from);
            if !took.was_dead && !take_over {
                let text = format!("session {id} has taken over a disk without being told to");
                self.world.violated(text);
            }
        }
        self.world.alive.lock()[self.number] = true;
        let disk = self.world.open(store);
        match Mounted::begin(&self.world, line, id, disk).await {
            Ok(mounted) => {
                let patience = MOUNTED_PATIENCE.choose(&mut self.random);
                mounted
                    .line
                    .patience
                    .set(*patience.expect("there are some"));
                let seed = self.random.random();
                Mounting::Done(Box::new(Session::new(mounted, seed)))
            }
            Err(line) => {
                line.cut();
                self.world.alive.lock()[self.number] = false;
                Mounting::Failed
            }
        }
    }

    /// A mount may be refused, and requests may fail; anything else is wrong.
    fn not_mounted(&self, line: &Line, since: Instant, error: &Error) -> Mounting {
        if error.kind() == ErrorKind::Held {
            self.world.count("mounts refused as held");
            return Mounting::Held;
        }
        if !line.excuses_mount(error.kind(), since) {
            let text = format!("machine {} cannot mount: {}", self.number, error.chain());
            self.world.violated(text);
        }
        Mounting::Failed
    }

    /// The machine's clock says that so much time has passed, in which nothing happened in it.
    pub fn skip(&self, time: Duration) {
        self.skew.fetch_add(time.as_secs(), Ordering::Relaxed);
    }
}

/// Whether a request is to put a record.
pub fn is_record(request: &Request) -> bool {
    matches!(request, Request::PutIfAbsent(key) if key.starts_with("log/"))
}
