//! Mounts read-only, again and again: it is to see one state for as long as it is mounted, or to be told that it is gone.

use std::sync::Arc;
use std::time::Duration;

use bucketdisk::disk::{Disk, FlushTo};
use bucketdisk::error::ErrorKind;
use bucketdisk::store::versioned::Pin;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::time::{Instant, sleep};

use super::stamp::{SECTOR, Stamps, stamps};
use super::support::volume;
use super::truth::View;
use super::world::{BLOCK, Line, World};

const PATIENCE: Duration = Duration::from_secs(60);

/// Until the world ends.
pub async fn live(world: Arc<World>) {
    let mut random = SmallRng::seed_from_u64(world.fork_seed());
    let seen = Arc::new(Mutex::new(None::<Pin>));
    while !world.over() {
        let pause = random.random_range(world.profile.views.clone());
        sleep(Duration::from_millis(pause)).await;
        let since = Instant::now();
        let line = world.connect(PATIENCE);
        let began = world.changes_before(world.profile.lag);
        let mut options = volume::options();
        options.read_only = true;
        options.pin = *seen.lock();
        let told = Arc::clone(&seen);
        options.on_head = Some(Arc::new(move |pin| *told.lock() = Some(*pin)));
        options.list_blocks = world.profile.listings_hold() && random.random_bool(0.3);
        options.sources = world.sources(Arc::default());
        let disk = match volume::mount(&line.client, options).await {
            Ok(store) => world.open(store, None, FlushTo::Bucket),
            Err(error) if line.excuses_mount(error.kind(), since) => {
                world.count("read-only mounts failed");
                continue;
            }
            Err(error) => return world.violated(format!("cannot mount read-only: {error:?}")),
        };
        world.count("read-only mounts");
        let blocks = world.profile.blocks as usize;
        let Some(seen) = look(&world, &line, &disk, 0, blocks).await else {
            continue;
        };
        let head = disk.status().store.head;
        let stamps = Arc::clone(&seen);
        world.truth.lock().views.push(View {
            head,
            stamps,
            began,
        });
        stay(&world, &line, &disk, &seen, &mut random).await;
    }
}

/// Goes on looking, for up to an hour.
async fn stay(world: &World, line: &Line, disk: &Disk, seen: &Stamps, random: &mut SmallRng) {
    let stay = Duration::from_secs(random.random_range(10..3600));
    let end = Instant::now() + stay;
    let blocks = world.profile.blocks as usize;
    let per_block = BLOCK as usize / SECTOR;
    while Instant::now() < end && !world.over() {
        sleep(Duration::from_secs(random.random_range(1..120))).await;
        let first = random.random_range(0..blocks);
        let count = random.random_range(1..4).min(blocks - first);
        let Some(found) = look(world, line, disk, first, count).await else {
            continue;
        };
        let expected = &seen[first * per_block..(first + count) * per_block];
        if *found != *expected {
            return world.violated("a read-only mount shows another state than before".to_owned());
        }
        world.count("read-only reads checked");
    }
}

/// Some blocks; `None` where they cannot be had: then the error has to say that they are superseded, unless a fault is to blame.
async fn look(
    world: &World,
    line: &Line,
    disk: &Disk,
    first: usize,
    count: usize,
) -> Option<Stamps> {
    let mut buf = vec![0xEE; count * BLOCK as usize];
    let since = Instant::now();
    match disk.read(first as u64 * BLOCK, &mut buf).await {
        Ok(()) => {}
        Err(error) => {
            match error.kind() == ErrorKind::Superseded {
                true => world.count("superseded reads"),
                false if line.excuses(error.kind(), since) => {}
                false => world.violated(format!("a read-only mount does not read: {error:?}")),
            }
            return None;
        }
    }
    match stamps(first * (BLOCK as usize / SECTOR), &buf) {
        Ok(found) => Some(found),
        Err(what) => {
            world.violated(format!("a read-only mount: {what}"));
            None
        }
    }
}
