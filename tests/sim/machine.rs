//! A machine that writes to the disk: it mounts, lives through a session, and mounts again. It remembers its sessions, and may keep a
//! journal, see `local`, so that it may go on after one of its own that died.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bucketdisk::disk::{FlushTo, Kept};
use bucketdisk::error::{Error, ErrorKind};
use bucketdisk::open::Prepared;
use bucketdisk::store::versioned::{MountOptions, SessionId, Sources};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use tokio::time::{Instant, sleep, timeout};

use super::local::{JOURNAL_BYTES, Local, held, look, overlay};
use super::mounted::{Mounted, PATIENCE};
use super::session::{Ending, Session};
use super::support::fault::{Fault, Request};
use super::support::local_disk::Trouble;
use super::support::volume;
use super::truth::Heir;
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
    local: Local,
    /// The next mount gives up what its journal may not apply.
    discards: bool,
    /// The local disk has not failed the last session.
    has_all: bool,
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
        let mut random = SmallRng::seed_from_u64(world.fork_seed());
        let journal = random.random_bool(world.profile.journals);
        Machine {
            world: Arc::clone(world),
            number,
            random,
            sources: world.sources(Arc::clone(&skew)),
            skew,
            local: Local::new(world, journal),
            discards: false,
            has_all: true,
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
                    self.has_all = session.mounted.has_all();
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
            self.local.lose();
            self.world.count("crashes that take the local disk");
        } else if let Some(disk) = &self.local.disk {
            if self.random.random_bool(0.5) {
                disk.lose_power();
                self.local.change(|known| known.power_cut = true);
                self.world.count("crashes that cut the power of a journal");
            } else {
                disk.kill();
                self.world.count("crashes that leave a journal");
            }
        }
    }

    async fn mount(&mut self, take_over: bool) -> Mounting {
        let id = SessionId(self.sources.id());
        let mut prepared = match self.prepare(id) {
            Ok(prepared) => prepared,
            Err(error) => return self.local_failed(&error),
        };
        let journals = prepared.iter().flat_map(|prepared| prepared.sessions());
        let own = self.local.known().sessions.into_iter().chain(journals);
        let own_dead_sessions = own.collect();
        self.local.change(|known| known.sessions.push(id));
        let admit = match prepared.as_mut().map(|prepared| prepared.admit(id)) {
            Some(Ok(admit)) => admit,
            Some(Err(error)) => return self.local_failed(&error),
            None => volume::options().admit,
        };
        let patience = MOUNTING_PATIENCE.choose(&mut self.random);
        let since = Instant::now();
        let line = self.world.connect(*patience.expect("there are some"));
        let list_blocks = self.random.random_bool(0.2);
        let options = MountOptions {
            take_over,
            list_blocks: list_blocks && self.world.profile.listings_hold(),
            session: id,
            own_dead_sessions,
            admit,
            pin: self.local.known().pin,
            on_head: Some(self.local.on_head()),
            requests: self.random.random_range(1..7),
            sources: self.sources.clone(),
            ..volume::options()
        };
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
        let kept = match prepared {
            Some(prepared) => {
                let begun = prepared.begin(&*store, id, JOURNAL_BYTES).await;
                match begun.map(|(kept, ..)| kept) {
                    Ok(kept) => Some(kept),
                    Err(error) => {
                        line.cut();
                        return self.local_failed(&error);
                    }
                }
            }
            None => None,
        };
        self.begun(id, kept.as_ref());
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
        let flush = match self.random.random_bool(0.7) {
            true => FlushTo::Journal,
            false => FlushTo::Bucket,
        };
        let disk = self.world.open(store, kept, flush);
        let local = self.local.disk.clone();
        match Mounted::begin(&self.world, line, id, disk, local).await {
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
                if let Some(local) = &self.local.disk {
                    local.kill();
                }
                self.world.alive.lock()[self.number] = false;
                Mounting::Failed
            }
        }
    }

    /// Looks for the journal, on a local disk that may fail meanwhile.
    fn prepare(&mut self, id: SessionId) -> Result<Option<Prepared>, Error> {
        let Some(disk) = &self.local.disk else {
            return Ok(None);
        };
        let heir = Heir {
            of: self.local.known().root,
            applied: None,
            discards: self.discards,
            has_all: self.has_all && !self.local.known().power_cut,
        };
        self.world.truth.lock().heirs.insert(id, heir);
        disk.set_trouble(Trouble::default());
        if self.random.random_bool(self.world.profile.local_trouble) {
            self.world.count("local disks that fail a mount");
            let first = self.random.random_range(0..6);
            disk.set_trouble(Trouble {
                failing_syncs: first..first + 1,
                ..Trouble::default()
            });
        }
        let superblock = &self.world.superblock;
        look(disk, superblock, self.random.random(), self.discards).map(Some)
    }

    /// The session has the disk, and, if it keeps one, a journal.
    fn begun(&mut self, id: SessionId, kept: Option<&Kept>) {
        self.local.change(|known| known.sessions = vec![id]);
        let (Some(kept), Some(disk)) = (kept, &self.local.disk) else {
            return;
        };
        disk.set_trouble(Trouble::default());
        (self.discards, self.has_all) = (false, true);
        self.local
            .change(|known| (known.root, known.power_cut) = (Some(id), false));
        match overlay(&kept.found) {
            Ok(applied) => {
                if !applied.is_empty() {
                    self.world.count("journals applied");
                }
                let mut truth = self.world.truth.lock();
                truth.heirs.entry(id).or_default().applied = Some(applied);
            }
            Err(what) => self.world.violated(what),
        }
    }

    /// A mount has ended since the local disk failed it. What the journal has is still there.
    fn local_failed(&mut self, error: &Error) -> Mounting {
        let disk = self.local.disk.as_ref();
        if error.kind() != ErrorKind::System || !disk.is_some_and(|disk| disk.has_failed()) {
            let text = format!("machine {} has no journal: {error:?}", self.number);
            self.world.violated(text);
        }
        self.world.count("mounts that the local disk failed");
        Mounting::Failed
    }

    /// The journal is of a session that has lost the disk. It is kept; some time later it is given up.
    fn refused(&mut self) -> Mounting {
        self.world.count("mounts refused for their journal");
        let geometry = self.world.superblock.geometry;
        let kept = self.local.disk.as_ref().map(|disk| held(disk, geometry));
        if !kept.is_some_and(|kept| kept.is_ok_and(|kept| !kept.is_empty())) {
            let text = "a journal that is refused has nothing, or is not kept";
            self.world.violated(text.to_owned());
        }
        self.discards = self.random.random_bool(0.5);
        Mounting::Failed
    }

    /// A mount may be refused, and requests may fail; anything else is wrong.
    fn not_mounted(&mut self, line: &Line, since: Instant, error: &Error) -> Mounting {
        if error.kind() == ErrorKind::Fenced {
            return self.refused();
        }
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
