//! The thread that writes and removes files, and keeps to the limit.
//!
//! The limit is settled once, from what is free when the mount begins. Others fill the file system too, the journal among them: so that
//! they find room, each file is written only if some is left free after it, and else files are removed; and while nothing is to be written,
//! that is looked after now and then.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use rustix::fs::statvfs;
use rustix::process::setpriority_process;

use super::origin::{beside, clear, create};
use super::queue::Job;
use super::shards::{Key, SHARDS, cost, length};
use super::shared::Shared;
use crate::block::Seq;

/// As nice(1) counts it.
const LOW_PRIORITY: i32 = 19;
/// What is left free of the file system: a twentieth of it, or this if that is less.
const MOST_RESERVE: u64 = 1 << 30;

/// What a file system has.
struct Space {
    free: u64,
    reserve: u64,
}

/// Works until the queue ends.
pub(super) fn run(shared: &Shared) {
    // Of this thread alone: the disk's own work comes first, and where that takes all of the machine, objects are not kept.
    if let Err(error) = setpriority_process(None, LOW_PRIORITY) {
        tracing::debug!(%error, "the cache's thread keeps its priority");
    }
    let Some(newest) = shared.queue.until_begun() else {
        return;
    };
    match look_around(shared, newest) {
        Ok(true) => shared.looked.store(true, Ordering::Release),
        Ok(false) => return,
        Err(error) => {
            // What is there can be read, but nothing is added to what cannot be counted.
            shared.limit.store(0, Ordering::Relaxed);
            shared.write_failed("look into", &error);
        }
    }
    let mut done = 0;
    while let Some(job) = shared.queue.next(done, shared.spec.look_every) {
        done = match job {
            Job::Put(key, object) => {
                put(shared, key, &object);
                object.len()
            }
            Job::Remove(key) => {
                if let Err(error) = shared.shards.remove(key) {
                    shared.write_failed("remove from", &error);
                }
                0
            }
            Job::Look => {
                if let Err(error) = leave_free(shared, 0) {
                    shared.write_failed("remove from", &error);
                }
                0
            }
        };
    }
}

/// Adds up what is there, removes what is of another past or was set aside, and settles the limit. Answers `false` where the end
/// comes first, and nothing waits to be written.
fn look_around(shared: &Shared, newest: Seq) -> io::Result<bool> {
    clear(&shared.spec.directory)?;
    for shard in 0..SHARDS {
        if shared.queue.is_done() {
            return Ok(false);
        }
        for entry in shared.shards.look(shard)? {
            if entry.key.version > newest {
                shared.shards.remove(entry.key)?;
            }
        }
    }
    let bytes = shared.shards.bytes();
    let half = (space(&shared.spec.directory)?.free.saturating_add(bytes)) / 2;
    let mut limit = shared.spec.limit_bytes.min(half);
    if limit < shared.spec.least_bytes {
        shared.tell(format!(
            "the file system of the cache in {} has too little space",
            shared.spec.directory.display()
        ));
        limit = 0;
    }
    shared.limit.store(limit, Ordering::Relaxed);
    shrink(shared, limit)?;
    Ok(true)
}

fn put(shared: &Shared, key: Key, object: &Bytes) {
    let written = make_room(shared, cost(object.len() as u64)).and_then(|room| match room {
        true => write(shared, key, object).map(|()| true),
        false => Ok(false),
    });
    match written {
        Ok(true) => {}
        Ok(false) => shared.count_dropped(),
        Err(error) => {
            shared.count_dropped();
            match error.kind() {
                // Of bytes there were enough: of something else, files or a quota.
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    shared.note("write", &error);
                    if let Err(error) = shared.shards.evict(cost(object.len() as u64)) {
                        shared.write_failed("remove from", &error);
                    }
                }
                _ => shared.write_failed("write", &error),
            }
        }
    }
}

/// Removes files until one more may be written. Answers whether it may.
fn make_room(shared: &Shared, cost: u64) -> io::Result<bool> {
    let limit = shared.limit.load(Ordering::Relaxed);
    if cost > limit || !shrink(shared, limit - cost)? {
        return Ok(false);
    }
    let room = leave_free(shared, cost)?;
    if !room {
        shared.note("write", &io::ErrorKind::StorageFull.into());
    }
    Ok(room)
}

/// Removes files until so much, and the reserve, is free. Answers whether it is.
fn leave_free(shared: &Shared, cost: u64) -> io::Result<bool> {
    loop {
        let Space { free, reserve } = space(&shared.spec.directory)?;
        let wanted = reserve.saturating_add(cost);
        if free >= wanted {
            return Ok(true);
        }
        if shared.shards.evict(wanted - free)? == 0 {
            return Ok(false);
        }
    }
}

/// Removes files until they take no more than that. Answers whether they do.
fn shrink(shared: &Shared, bytes: u64) -> io::Result<bool> {
    loop {
        let taken = shared.shards.bytes();
        if taken <= bytes {
            return Ok(true);
        }
        if shared.shards.evict(taken - bytes)? == 0 {
            return Ok(false);
        }
    }
}

/// Writes a file beside its place, and gives it its name.
fn write(shared: &Shared, key: Key, object: &[u8]) -> io::Result<()> {
    let (new, path) = (beside(&shared.spec.directory), shared.shards.path(key));
    let before = length(&path)?.map_or(0, cost);
    let mut written = create(&new)
        .and_then(|mut file| file.write_all(object))
        .and_then(|()| fs::rename(&new, &path));
    if let Err(error) = &written
        && error.kind() == io::ErrorKind::NotFound
    {
        written = shared
            .shards
            .make_folder(key)
            .and_then(|()| fs::rename(&new, &path));
    }
    if written.is_err() {
        // What could not be written takes no room.
        drop(fs::remove_file(&new));
    } else {
        shared.shards.note(key, before, cost(object.len() as u64));
    }
    written
}

fn space(directory: &Path) -> io::Result<Space> {
    let found = statvfs(directory)?;
    Ok(Space {
        free: found.f_bavail.saturating_mul(found.f_frsize),
        reserve: (found.f_blocks.saturating_mul(found.f_frsize) / 20).min(MOST_RESERVE),
    })
}
