//! Opening a bucket as it is left behind, and going on from it.

use std::time::Duration;

use bucketdisk::disk::Disk;
use bucketdisk::error::{Error, ErrorKind};
use bucketdisk::store::versioned::{MountOptions, Pin, SessionId, Sources};
use bytes::Bytes;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use tokio::time::sleep;

use super::stamp::{SECTOR, Stamps, content, difference, stamps};
use super::support::memory::{Bucket, Change, Mutation};
use super::support::volume::{open, options};
use super::world::{BLOCK, epoch};

pub const MAX_DIRTY: u64 = 16 * BLOCK;
/// Long enough for everything that upkeep puts off.
const LATER: Duration = Duration::from_secs(20 * 60);

/// What a bucket shows to a machine that has seen so much, by checkpoint and log and, where that holds, by a listing of the blocks.
///
/// # Errors
/// That it does not open, or that the two differ.
pub async fn show(
    bucket: &Bucket,
    listings_hold: bool,
    pin: Option<Pin>,
) -> Result<Stamps, String> {
    let by_log = read_only(bucket, false, pin).await;
    let by_log = by_log.map_err(|error| format!("does not open: {error:?}"))??;
    if !listings_hold {
        return Ok(by_log);
    }
    let by_list = read_only(bucket, true, pin).await;
    let by_list = by_list.map_err(|error| format!("does not open by a listing: {error:?}"))??;
    match by_log == by_list {
        true => Ok(by_log),
        false => Err(format!(
            "a listing shows something else than the log: sectors {}",
            difference(&by_list, &by_log)
        )),
    }
}

async fn read_only(
    bucket: &Bucket,
    list_blocks: bool,
    pin: Option<Pin>,
) -> Result<Result<Stamps, String>, Error> {
    let mut reading = options();
    (reading.read_only, reading.list_blocks, reading.pin) = (true, list_blocks, pin);
    let disk = open(&bucket.client(), reading, MAX_DIRTY).await?;
    whole(&disk).await
}

pub async fn whole(disk: &Disk) -> Result<Result<Stamps, String>, Error> {
    let mut all = vec![0xEE; usize::try_from(disk.geometry().size_bytes()).expect("a small disk")];
    disk.read(0, &mut all).await?;
    Ok(stamps(0, &all))
}

/// Options of a mount for writing that repeats.
fn taking_over(list_blocks: bool, random: &mut SmallRng) -> MountOptions {
    let numbers = Mutex::new(SmallRng::seed_from_u64(random.random()));
    let sources = Sources::new(epoch, move || numbers.lock().random());
    MountOptions {
        take_over: true,
        list_blocks,
        session: SessionId(sources.id()),
        sources,
        ..options()
    }
}

/// A crash point that a writer takes over from a machine that is not quite dead, and goes on from.
pub struct WrittenOn<'a> {
    pub bucket: &'a Bucket,
    /// What it may find.
    pub allowed: &'a [Stamps],
    pub listings_hold: bool,
    /// What the writer has seen.
    pub pin: Option<Pin>,
    pub seed: u64,
}

impl WrittenOn<'_> {
    /// Of the requests that are under way some land before it, the others after it has mounted: it finds one of the allowed states, what
    /// it writes is kept, and what it deletes is not the disk.
    ///
    /// # Errors
    /// What is not so.
    pub async fn judge(&self, under_way: [Vec<Mutation>; 2]) -> Result<(), String> {
        let mut random = SmallRng::seed_from_u64(self.seed);
        let fork = self.bucket.fork();
        let [first, last] = under_way;
        for mutation in first {
            fork.mutate(mutation);
        }
        let list_blocks = random.random_bool(0.5) && self.listings_hold;
        let mut over = taking_over(list_blocks, &mut random);
        over.pin = self.pin;
        let told = |what: &str, error: &Error| format!("a writer that goes on {what}: {error:?}");
        let disk = open(&fork.client(), over, MAX_DIRTY).await;
        let disk = disk.map_err(|error| told("cannot mount", &error))?;
        let found = whole(&disk).await;
        let found = found.map_err(|error| told("cannot read", &error))??;
        if !self.allowed.contains(&found) {
            return Err("a writer that goes on finds what may not be".to_owned());
        }
        for mutation in last {
            fork.mutate(mutation);
        }
        let mut model = found.to_vec();
        let at = random.random_range(0..model.len());
        let count = random.random_range(1..12).min(model.len() - at);
        model[at..at + count].fill(u32::MAX);
        let data = Bytes::from(content(at, count, u32::MAX));
        let going_on = async {
            disk.write((at * SECTOR) as u64, data).await?;
            disk.flush().await?;
            // Leftovers are looked for, and superseded objects deleted.
            sleep(LATER).await;
            match random.random_bool(0.5) {
                true => disk.close().await,
                false => Ok(()),
            }
        };
        going_on.await.map_err(|error| told("fails", &error))?;
        drop(disk);
        let shown = show(&fork, self.listings_hold, self.pin).await?;
        match *shown == *model {
            true => Ok(()),
            false => Err(format!(
                "what a writer that goes on has stored is not there: sectors {}",
                difference(&shown, &model)
            )),
        }
    }
}

/// After everything has landed, on a store without faults, the disk can be had; and two sessions that list the blocks leave nothing but
/// the disk.
///
/// # Errors
/// What they have left beside, or that they fail.
pub async fn tidy(bucket: &Bucket, listings_hold: bool, seed: u64) -> Result<(), String> {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut stored = 0;
    for _ in 0..2 {
        let over = taking_over(listings_hold, &mut random);
        let session = async {
            let disk = open(&bucket.client(), over, MAX_DIRTY).await?;
            sleep(LATER).await;
            stored = disk.status().store.stored_blocks;
            disk.close().await
        };
        let tidied: Result<(), Error> = session.await;
        tidied.map_err(|error| format!("a session that tidies up fails: {error:?}"))?;
    }
    let blocks = bucket
        .keys()
        .into_iter()
        .filter(|key| key.starts_with("blocks/"))
        .count();
    match !listings_hold || blocks as u64 == stored {
        true => Ok(()),
        false => Err(format!("{blocks} objects are left of {stored} blocks")),
    }
}

/// Damages an object. The disk then shows what it did, if that is no part of it, or an error: never zeros, never anything old. Answers
/// whether it was an error.
///
/// # Errors
/// What it shows instead.
pub async fn damage(bucket: &Bucket, shown: &Stamps, seed: u64) -> Result<bool, String> {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut keys = bucket.keys();
    // That the newest record is gone, nothing tells; so of log and checkpoints nothing is deleted.
    let folder = *["blocks/", "blocks/", "log/", "map/"]
        .choose(&mut random)
        .expect("some");
    keys.retain(|key| key.starts_with(folder));
    let (Some(key), Some(other)) = (keys.choose(&mut random), keys.choose(&mut random)) else {
        return Ok(false);
    };
    let fork = bucket.fork();
    let body = |key: &str| fork.body(key).unwrap_or_default();
    let kinds = if folder == "blocks/" { 0..4 } else { 1..4 };
    let change = match random.random_range(kinds) {
        0 => Change::Delete(key.clone()),
        1 => {
            let whole = body(key);
            let len = random.random_range(0..whole.len());
            Change::Put(key.clone(), whole.slice(..len))
        }
        2 => Change::Put(key.clone(), body(other)),
        _ => {
            let mut flipped = body(key).to_vec();
            let at = random.random_range(0..flipped.len());
            flipped[at] ^= 1;
            Change::Put(key.clone(), flipped.into())
        }
    };
    fork.apply(change);
    match read_only(&fork, false, None).await {
        Ok(Ok(found)) if found == *shown => Ok(false),
        Ok(Ok(found)) => Err(format!(
            "with {key} damaged, other data is shown: sectors {}",
            difference(&found, shown)
        )),
        Ok(Err(what)) => Err(format!("with {key} damaged: {what}")),
        Err(error) if error.kind() == ErrorKind::Damaged => Ok(true),
        Err(error) => Err(format!("with {key} damaged: {error:?}")),
    }
}
