//! What a crash at one call to the local disk leaves there: the machine is mounted again with it, on the bucket as it was at that moment,
//! by the program's own way to a journal. The crash is of the program alone, or of the machine's power, and the local disk may have
//! been damaged since.
//!
//! Then the disk is as its session left it after one of its changes, none before the last that was acknowledged; after the program's
//! crash it has every change. The change that was under way may be there up to the end of one of its sectors. A journal of a session that
//! has lost the disk is refused, a damaged one too, and both are kept.

use std::sync::Arc;
use std::time::Duration;

use bucketdisk::disk::Disk;
use bucketdisk::error::{Error, ErrorKind};
use bucketdisk::store::versioned::{MountOptions, SessionId, Sources};
use bytes::Bytes;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use tokio::runtime::Handle;
use tokio::time::sleep;

use super::fork::{MAX_DIRTY, whole};
use super::local::{JOURNAL_BYTES, Known, Overlay, held, look, overlay};
use super::stamp::{SECTOR, Stamps, content, difference};
use super::support::local_disk::LocalDisk;
use super::support::memory::Bucket;
use super::support::volume::{config, mount, options};
use super::truth::Truth;
use super::world::{World, epoch};

/// See the module.
#[derive(Debug, Clone)]
pub struct Remains {
    /// The local disk just before the call, or just after.
    pub disk: Arc<LocalDisk>,
    /// The changes that the bucket had seen, and how many had been sent to it.
    pub changes: usize,
    pub sent: usize,
    pub known: Known,
    /// Of the session whose journal it is: how many states it had, the oldest that may be there, and what was under way.
    pub states: usize,
    pub acked: usize,
    pub attempt: Option<Stamps>,
    /// The local disk has failed it.
    pub troubled: bool,
}

impl Remains {
    pub fn at(truth: &Truth, bucket: &Bucket, disk: Arc<LocalDisk>, known: Known) -> Remains {
        let branch = known.root.and_then(|root| truth.of(root));
        Remains {
            disk,
            changes: bucket.changes(),
            sent: bucket.flights_begun(),
            states: branch.map_or(0, |branch| branch.states.len()),
            acked: branch.map_or(0, |branch| branch.acked),
            attempt: branch.and_then(|branch| branch.attempt.clone()),
            troubled: branch.is_some_and(|branch| branch.troubled),
            known,
        }
    }
}

/// Whether a state is one of these, or one with a beginning of the change that leads to the next; after the last comes what was under
/// way.
pub fn among(states: &[Stamps], attempt: Option<&Stamps>, found: &[u32]) -> bool {
    let next = states.iter().skip(1).map(Some).chain([attempt]);
    let mut pairs = states.iter().zip(next);
    pairs.any(|(state, next)| **state == *found || next.is_some_and(|n| leads(state, n, found)))
}

/// Whether a state is the first one with a beginning of the change that makes the second of it. What is made zero is so as a whole.
fn leads(before: &[u32], after: &[u32], found: &[u32]) -> bool {
    let cut = (0..found.len()).find(|at| found[*at] != after[*at]);
    let cut = cut.unwrap_or(found.len());
    let written = (0..found.len()).any(|at| after[at] != before[at] && after[at] > 0);
    found[cut..] == before[cut..] && (written || cut == found.len())
}

/// How the machine ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Kill,
    PowerCut,
    /// A kill, and then a bit of a segment flips.
    BitRot,
    /// A kill, and then a segment is gone.
    LostSegment,
    /// A kill, and then a bit of the state flips.
    StateRot,
}

/// A crash to be judged.
pub struct LocalCrash<'a> {
    pub world: &'a World,
    /// The bucket as the crash has left it.
    pub bucket: Bucket,
    pub remains: &'a Remains,
    /// The states that the session had by then, and what the journal was told with each.
    pub states: Vec<Stamps>,
    pub told: Vec<Option<usize>>,
    /// What the bucket may show; and whether only sessions of this machine have claimed the disk since.
    pub below: Vec<Stamps>,
    pub intact: bool,
}

/// A mount that has found something, and what was applied.
struct Again {
    disk: Arc<Disk>,
    applied: Overlay,
}

impl LocalCrash<'_> {
    /// Mounts again; answers what that was.
    ///
    /// # Errors
    /// What is not as it has to be.
    pub async fn judge(&self, seed: u64) -> Result<&'static str, String> {
        let random = &mut SmallRng::seed_from_u64(seed);
        let kinds = if self.intact && !self.remains.troubled {
            11
        } else {
            8
        };
        let end = match random.random_range(0..kinds) {
            0..4 => End::Kill,
            4..8 => End::PowerCut,
            8 => End::BitRot,
            9 => End::LostSegment,
            _ => End::StateRot,
        };
        let judged = self.judge_end(end, random).await;
        judged.map_err(|what| {
            let root = self.remains.known.root;
            let troubled = if self.remains.troubled {
                "that the local disk has failed "
            } else {
                ""
            };
            format!("{end:?} of a machine with the journal of {root:?} {troubled}: {what}")
        })
    }

    async fn judge_end(&self, end: End, random: &mut SmallRng) -> Result<&'static str, String> {
        let local = self.remains.disk.fork(random.random());
        match end {
            End::Kill => {}
            End::PowerCut => local.lose_power(),
            End::BitRot => rot(&local, &segments(&local), random),
            End::LostSegment => {
                if let Some(name) = segments(&local).choose(random) {
                    local.lose_file(name);
                }
            }
            End::StateRot => rot(&local, &["state".to_owned()], random),
        }
        let damaged = matches!(end, End::BitRot | End::LostSegment | End::StateRot);
        let geometry = self.world.superblock.geometry;
        let before = held(&local, geometry);
        let files = contents(&local);
        let outcome = self.mount(&local, &self.remains.known, random).await;
        let kept = || match contents(&local) == files {
            true => Ok(()),
            false => Err("a journal that is not applied has been altered".to_owned()),
        };
        let again = match outcome {
            Ok(Ok(again)) => again,
            Ok(Err(what)) => return Err(what),
            Err(error) if error.kind() == ErrorKind::Damaged && damaged => {
                kept()?;
                return Ok("local crash points with damage that shows");
            }
            // The state before the last change does not know of the session that has the disk.
            Err(error) if error.kind() == ErrorKind::Fenced && end == End::StateRot => {
                kept()?;
                return Ok("local crash points with damage that shows");
            }
            Err(error) if error.kind() == ErrorKind::Fenced && !self.intact => {
                kept()?;
                return match before?.is_empty() {
                    false => Ok("local crash points of fenced sessions"),
                    true => Err("a journal with nothing in it is refused".to_owned()),
                };
            }
            Err(error) => return Err(format!("cannot mount: {error:?}")),
        };
        if !self.intact && !before?.is_empty() {
            return Err(
                "what a session that lost the disk has in its journal is not refused".to_owned(),
            );
        }
        let found = self.found(&again, end).await?;
        if random.random_bool(0.5) {
            self.crash_again(again, local, found, random).await?;
        }
        Ok(match end {
            End::Kill => "local crash points of the program",
            End::PowerCut => "local crash points of the power",
            End::BitRot | End::LostSegment => "local crash points with damage that does not matter",
            End::StateRot => "local crash points with a damaged state that does not matter",
        })
    }

    /// What the disk shows has to be one of the states that it may.
    async fn found(&self, again: &Again, end: End) -> Result<Stamps, String> {
        let found = whole(&again.disk).await;
        let found = found.map_err(|error| format!("does not read: {error:?}"))??;
        if !self.intact || self.states.is_empty() {
            return match self.below.contains(&found) && again.applied.is_empty() {
                true => Ok(found),
                false => Err("what is shown is not what the bucket has".to_owned()),
            };
        }
        let newest = self.states.len() - 1;
        let from = match end {
            End::Kill | End::StateRot
                if !self.remains.troubled && !self.remains.known.power_cut =>
            {
                newest
            }
            // What the last record but one says of what was durable is there.
            End::BitRot => {
                let mut told = self.told.iter().rev().flatten();
                told.nth(1).copied().unwrap_or(0)
            }
            _ => self.remains.acked,
        };
        match among(&self.states[from..], self.remains.attempt.as_ref(), &found) {
            true => Ok(found),
            false => {
                let place = self.states.iter().rposition(|state| *state == found);
                Err(format!(
                    "of {} states none from {from} on is there, but {place:?}: sectors {}",
                    self.states.len(),
                    difference(&found, &self.states[newest])
                ))
            }
        }
    }

    /// What was found, and what is written after that and flushed, is there after one more crash.
    async fn crash_again(
        &self,
        again: Again,
        local: Arc<LocalDisk>,
        found: Stamps,
        random: &mut SmallRng,
    ) -> Result<(), String> {
        let mut model = found.to_vec();
        let disk = again.disk;
        if random.random_bool(0.7) {
            let at = random.random_range(0..model.len());
            let count = random.random_range(1..20).min(model.len() - at);
            model[at..at + count].fill(u32::MAX);
            let data = Bytes::from(content(at, count, u32::MAX));
            let written = disk.write((at * SECTOR) as u64, data).await;
            written.map_err(|error| format!("then a write fails: {error:?}"))?;
            let flushed = disk.flush().await;
            flushed.map_err(|error| format!("then a flush fails: {error:?}"))?;
        }
        sleep(Duration::from_millis(random.random_range(0..3))).await;
        drop(disk);
        match random.random_bool(0.5) {
            true => local.lose_power(),
            false => local.kill(),
        }
        let again = self.mount(&local, &self.remains.known, random).await;
        let again = again.map_err(|error| format!("then it cannot mount: {error:?}"))??;
        let found = whole(&again.disk).await;
        let found = found.map_err(|error| format!("then it does not read: {error:?}"))??;
        match *found == *model {
            true => Ok(()),
            false => Err(format!(
                "then one more crash loses something: sectors {}",
                difference(&found, &model)
            )),
        }
    }

    /// Mounts as the program does.
    async fn mount(
        &self,
        local: &Arc<LocalDisk>,
        known: &Known,
        random: &mut SmallRng,
    ) -> Result<Result<Again, String>, Error> {
        let numbers = Mutex::new(SmallRng::seed_from_u64(random.random()));
        let sources = Sources::new(epoch, move || numbers.lock().random());
        let session = SessionId(sources.id());
        let superblock = &self.world.superblock;
        let mut prepared = look(local, superblock, random.random(), false)?;
        let own = known.sessions.iter().copied();
        let options = MountOptions {
            // Whoever holds it instead is asked for nothing.
            take_over: !self.intact,
            own_dead_sessions: own.chain(prepared.sessions()).collect(),
            admit: prepared.admit(session)?,
            pin: known.pin,
            session,
            sources,
            ..options()
        };
        let store = mount(&self.bucket.client(), options).await?;
        let (kept, ..) = prepared.begin(&*store, session, JOURNAL_BYTES).await?;
        let applied = match overlay(&kept.found) {
            Ok(applied) => applied,
            Err(what) => return Ok(Err(what)),
        };
        let disk = Disk::open(store, config(MAX_DIRTY), Some(kept), Handle::current());
        Ok(Ok(Again { disk, applied }))
    }
}

fn segments(disk: &LocalDisk) -> Vec<String> {
    let names = disk.names().into_iter();
    names.filter(|name| name.starts_with("segment")).collect()
}

/// The segments but for those that hold nothing, of which a mount may make some.
fn contents(disk: &LocalDisk) -> Vec<(String, Vec<u8>)> {
    written(disk, &segments(disk))
}

/// Those of the files where something was written, and what.
fn written(disk: &LocalDisk, names: &[String]) -> Vec<(String, Vec<u8>)> {
    let all = names.iter().map(|name| (name.clone(), disk.content(name)));
    all.filter(|(_, content)| content.iter().any(|byte| *byte != 0))
        .collect()
}

/// Flips a bit somewhere in one of the files where something was written.
fn rot(disk: &LocalDisk, names: &[String], random: &mut SmallRng) {
    if let Some((name, content)) = written(disk, names).choose(random) {
        let written: Vec<usize> = (0..content.len()).filter(|at| content[*at] != 0).collect();
        if let Some(at) = written.choose(random) {
            disk.flip(name, *at as u64);
        }
    }
}
