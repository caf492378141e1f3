//! Reads a mounted disk at any time, and compares.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::time::{Instant, sleep};

use super::mounted::Mounted;
use super::stamp::{SECTOR, stamps};

/// Reads until it is stopped. What is written while a read lasts may be in it in part, sector by sector.
pub async fn live(session: Mounted, seed: u64) {
    let mut random = SmallRng::seed_from_u64(seed);
    let world = &session.world;
    let pauses = world.profile.think.end.max(2) * 2;
    loop {
        sleep(Duration::from_millis(random.random_range(1..pauses))).await;
        let (before, whole) = session.now();
        let first = random.random_range(0..whole.len());
        let count = random.random_range(1..40).min(whole.len() - first);
        let mut buf = vec![0xEE; count * SECTOR];
        let committing = session.disk.status().commit_blocks > 0;
        let since = Instant::now();
        match session.disk.read((first * SECTOR) as u64, &mut buf).await {
            Err(error) if session.excuses(&error, since) => continue,
            Err(error) => {
                session.violated("a read failed", &error);
                return;
            }
            Ok(()) => {}
        }
        let found = match stamps(first, &buf) {
            Ok(found) => found,
            Err(what) => return world.violated(format!("session {}: {what}", session.id)),
        };
        let truth = world.truth.lock();
        let states = &truth.branches[session.branch].states[before..];
        let wrong = found.iter().enumerate().find(|(place, write)| {
            states
                .iter()
                .all(|state| state.stamps[first + place] != **write)
        });
        if let Some((place, write)) = wrong {
            let sector = first + place;
            let text = format!(
                "session {} shows write {write} in sector {sector}, which has {} (state {before} of it)",
                session.id, whole[sector],
            );
            drop(truth);
            return world.violated(text);
        }
        drop(truth);
        world.count("reads checked");
        if committing {
            world.count("reads during commits");
        }
    }
}
