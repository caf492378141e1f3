//! A session: the time for which a machine has the disk mounted, and its user, who writes and discards, so that the order of writes is
//! known. Flushes run beside, and so does a reader that compares what it is shown with what was written.

use std::time::Duration;

use bucketdisk::error::ErrorKind;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::machine::{Machine, is_record};
use super::mounted::{LATER, Mounted};
use super::reader;
use super::stamp::{SECTOR, content};
use super::world::{BLOCK, Line};

const SECTORS_PER_BLOCK: usize = BLOCK as usize / SECTOR;
/// How long a user waits for room before he does something else.
const PATIENCE: Duration = Duration::from_secs(120);
/// By then a session that has lost the disk knows, unless something keeps it from asking: it asks every ten minutes.
const NOTICED: Duration = Duration::from_secs(20 * 60);

/// How a session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    Closed,
    Fenced,
    /// It is to die now.
    Crash,
}

/// See the module.
pub struct Session {
    pub mounted: Mounted,
    pub random: SmallRng,
    /// Until when something keeps it from asking whether the disk is still its own.
    pub troubled_until: Instant,
    /// Until when there is no space on the local disk; `None` where there is.
    pub full_until: Option<Instant>,
    flushes: Vec<JoinHandle<()>>,
    reader: JoinHandle<()>,
}

impl Session {
    pub fn new(mounted: Mounted, seed: u64) -> Session {
        let mut random = SmallRng::seed_from_u64(seed);
        let reader = tokio::spawn(reader::live(mounted.clone(), random.random()));
        Session {
            mounted,
            random,
            troubled_until: Instant::now(),
            full_until: None,
            flushes: Vec::new(),
            reader,
        }
    }

    pub fn line(&self) -> &Line {
        &self.mounted.line
    }

    /// The session's life.
    pub async fn live(&mut self, machine: &mut Machine) -> Ending {
        let profile = machine.world.profile.clone();
        let lasts = self.random.random_range(profile.session.clone());
        let end = Instant::now() + Duration::from_millis(lasts);
        while Instant::now() < end && !machine.world.over() {
            let think = self.random.random_range(profile.think.clone());
            sleep(Duration::from_millis(think)).await;
            if self.random.random_bool(profile.sleeps) {
                self.fall_asleep(machine).await;
            } else if self.random.random_bool(profile.flushes) {
                self.flush();
            } else {
                let discards = self.random.random_bool(profile.discards);
                self.change(discards).await;
            }
            self.trouble();
            if self.mounted.disk.is_read_only() {
                return self.lose().await;
            }
            self.must_know();
        }
        match self.random.random_bool(profile.crashes) {
            true => self.crash().await,
            false => self.close().await,
        }
    }

    /// The machine is about to die: at any moment, or at one of a commit, or when the record of one has just left.
    async fn crash(&mut self) -> Ending {
        let millisecond = Duration::from_millis(1);
        match self.random.random_range(0..3) {
            0 => {}
            1 => {
                self.change(false).await;
                self.flush();
                sleep(self.random.random_range(0..1000) * millisecond).await;
            }
            _ => {
                self.change(false).await;
                self.flush();
                for _ in 0..5000 {
                    sleep(millisecond).await;
                    if self.line().faulty.newest().is_some_and(|r| is_record(&r)) {
                        break;
                    }
                }
            }
        }
        self.mounted.crashes();
        Ending::Crash
    }

    /// All who use it are gone.
    pub async fn end(self) {
        let users: Vec<JoinHandle<()>> = self.flushes.into_iter().chain([self.reader]).collect();
        // All at once: none may still be told that something is durable.
        users.iter().for_each(JoinHandle::abort);
        for user in users {
            // Aborted is how it is meant to end.
            drop(user.await);
        }
    }

    fn range(&mut self) -> (usize, usize) {
        let world = &self.mounted.world;
        let blocks = world.profile.blocks as usize;
        let sectors = blocks * SECTORS_PER_BLOCK;
        if self.random.random_bool(world.profile.appends) {
            let block = world.next_append() as usize % blocks;
            return (block * SECTORS_PER_BLOCK, SECTORS_PER_BLOCK);
        }
        let first = self.random.random_range(0..sectors);
        let (first, count) = match self.random.random_range(0..10) {
            0..4 => (first, self.random.random_range(1..4)),
            4..7 => (first, self.random.random_range(1..30)),
            // Whole blocks.
            _ => (
                first - first % SECTORS_PER_BLOCK,
                self.random.random_range(1..4) * SECTORS_PER_BLOCK,
            ),
        };
        (first, count.min(sectors - first))
    }

    /// Writes to a range, or makes zeros of it.
    pub async fn change(&mut self, discards: bool) {
        let (mut first, mut count) = self.range();
        if discards && self.random.random_bool(0.05) {
            (first, count) = (0, self.mounted.world.sectors());
        }
        let Mounted { world, disk, .. } = &self.mounted;
        let (offset, len) = ((first * SECTOR) as u64, (count * SECTOR) as u64);
        let write = match discards {
            true => 0,
            false => world.next_write(),
        };
        let noted = self.mounted.attempt(first, count, write);
        let changed = async {
            match discards {
                true => disk.zero(offset, len).await,
                false => {
                    let data = content(first, count, write);
                    disk.write(offset, data.into()).await
                }
            }
        };
        // The local disk may have taken some of it.
        let mut in_part = false;
        match timeout(PATIENCE, changed).await {
            Err(_) => world.count("changes that found no room"),
            Ok(Ok(())) => {
                self.mounted.note(first, count, write);
                let blocks = first.div_ceil(SECTORS_PER_BLOCK)..(first + count) / SECTORS_PER_BLOCK;
                world.count(match (discards, blocks.is_empty()) {
                    (false, _) => "writes",
                    (true, true) => "discards within blocks",
                    (true, false) => "discards of whole blocks",
                });
            }
            Ok(Err(error)) if error.kind() == ErrorKind::Fenced => {}
            Ok(Err(error)) if self.mounted.local_excuses(&error) => {
                world.count("changes that the local disk refused");
                in_part = error.kind() == ErrorKind::System;
            }
            Ok(Err(error)) => self.mounted.violated("a change failed", &error),
        }
        if noted && !in_part {
            self.mounted.give_up_attempt();
        }
    }

    /// Begins a flush, which is acknowledged some time later.
    pub fn flush(&mut self) {
        let mounted = self.mounted.clone();
        let covers = mounted.now().0;
        self.flushes.retain(|flush| !flush.is_finished());
        self.flushes.push(tokio::spawn(async move {
            match mounted.disk.flush().await {
                Ok(()) => {
                    mounted.acknowledge(covers, false);
                    mounted.world.count("flushes acknowledged");
                }
                Err(error) if error.kind() == ErrorKind::Fenced => {
                    mounted.world.count("flushes refused as fenced");
                }
                // The commit that fails may have begun long before.
                Err(error) if mounted.excuses(&error, mounted.since) => {
                    mounted.world.count("flushes failed");
                }
                Err(error) => mounted.violated("a flush failed", &error),
            }
        }));
    }

    /// It has not been without the disk for long, and gone on as if it had it.
    fn must_know(&self) {
        let Mounted {
            world, id, claim, ..
        } = &self.mounted;
        let able = Instant::now().saturating_duration_since(self.troubled_until);
        let lost = world.lost_for(*id, *claim);
        if let Some(lost) = lost.filter(|lost| able.min(*lost) > NOTICED) {
            world.violated(format!(
                "session {id} lost the disk {lost:?} ago, and does not know"
            ));
        }
    }

    /// Unmounts, if that can be done.
    async fn close(&mut self) -> Ending {
        let mounted = self.mounted.clone();
        let world = &mounted.world;
        let covers = mounted.now().0;
        for _ in 0..20 {
            match timeout(LATER, mounted.disk.close()).await {
                Ok(Ok(())) => {
                    mounted.acknowledge(covers, true);
                    world.count("unmounts acknowledged");
                    for flush in self.flushes.drain(..) {
                        if timeout(LATER, flush).await.is_err() {
                            world.violated("a flush never ends".to_owned());
                        }
                    }
                    return Ending::Closed;
                }
                Ok(Err(error)) if error.kind() == ErrorKind::Fenced => return self.lose().await,
                Ok(Err(error)) if mounted.excuses(&error, mounted.since) => {}
                Ok(Err(error)) => {
                    mounted.violated("an unmount failed", &error);
                    break;
                }
                Err(_) => {
                    world.violated("an unmount never ends".to_owned());
                    break;
                }
            }
        }
        mounted.crashes();
        Ending::Crash
    }

    /// The session has lost the disk: to somebody, and it says so, and shows nothing that was never written.
    async fn lose(&mut self) -> Ending {
        let Mounted {
            world, disk, id, ..
        } = &self.mounted;
        world.count("sessions that know they are fenced");
        if !self.mounted.overtaken() {
            world.violated(format!("session {id} is fenced by nobody"));
        }
        match timeout(LATER, disk.flush()).await {
            Ok(Err(error)) if error.kind() == ErrorKind::Fenced => {}
            // It was a heartbeat or a read that found out, and nothing is dirty.
            Ok(Ok(())) if disk.status().dirty_bytes == 0 => {
                world.count("sessions that lost nothing by being fenced");
            }
            other => world.violated(format!("a fenced session's flush answers {other:?}")),
        }
        if let Some(found) = self.mounted.whole_disk().await
            && found != self.mounted.now().1
        {
            world.violated(format!("fenced session {id} shows something else"));
        }
        Ending::Fenced
    }
}
