//! The map from a listing of all blocks: for a disk whose checkpoint is lost, or where the owner asks for it.
//!
//! Of each block the newest version counts that (a) is not newer than the state asked for, (b) does not carry the number of a
//! claim: a writer stores blocks for the number after its head before it commits, and when it dies there the next claim
//! takes that very number (void claims, which stand where a pruned record was, do not count: each claim names the one before it,
//! and void ones are not in that chain); (c) is not older than a hole that a remaining record made there. A record is pruned only when the
//! deletions that it caused are done, so what (c) needs is always there.

use std::collections::{BTreeMap, BTreeSet};

use futures::{StreamExt, TryStreamExt, stream};

use crate::block::{BlockIndex, Seq};
use crate::error::{Error, ErrorKind, Result};
use crate::object::list_all;

use super::checkpoint::{Checkpoint, Garbage};
use super::keys;
use super::load::Wanted;
use super::objects::{Numbers, Objects, Stored};
use super::record::{Record, RecordBody};
use super::replay::{self, Replay};
use super::{OnProgress, Progress};

/// Records by their number.
pub(super) type Records = BTreeMap<Seq, Stored>;

/// Builds the state as of record `wanted.end` from a listing, and answers it with the records that it has read. `None` where one has gone
/// meanwhile.
pub(super) async fn rebuild(
    objects: &Objects,
    wanted: &Wanted<'_>,
    records: &Numbers,
) -> Result<Option<(Replay, Records)>> {
    let Some(records) = read_records(objects, wanted, records).await? else {
        return Ok(None);
    };
    let mut replay = Replay::empty(objects.geometry.blocks())?;
    replay.seq = wanted.end;
    // A mount for writing ends with its own claim. Else a checkpoint as new as the newest record knows better than that.
    let checkpoint = match wanted.claimed {
        true => None,
        false => match objects.checkpoint(wanted.end).await {
            // A listing is how to do without it.
            Err(error) if error.kind() == ErrorKind::Damaged => None,
            read => read?,
        },
    };
    let claims = claims(checkpoint.as_ref(), &records);
    check_chain(&records, &claims)?;
    for stored in records
        .values()
        .filter(|stored| !stored.record.is_claim() || claims.contains(&stored.record.seq))
    {
        replay.note(stored);
    }
    // The record may be pruned, and a void claim in its place.
    let record = records.get(&wanted.end).map(|end| end.digest);
    if let Some(digest) = checkpoint.as_ref().map(|c| c.head).or(record) {
        replay.digest = digest;
    }

    // Superseded by the version that displaced it, and not by the end: else the record of a hole that a still newer record made
    // could be pruned before all that it hides from a listing is deleted.
    let mut stale: Vec<Garbage> = Vec::new();
    for_each_block(
        objects,
        wanted.requests,
        wanted.progress,
        |index, version| {
            if version > wanted.end || claims.contains(&version) {
                return;
            }
            let garbage = |version, superseded_by| Garbage {
                index,
                version,
                superseded_by,
            };
            match replay.map.get(index) {
                Some(newer) if newer > version => stale.push(garbage(version, newer)),
                _ => stale.extend(
                    replay
                        .map
                        .insert(index, version)
                        .map(|older| garbage(older, version)),
                ),
            }
        },
    )
    .await?;
    replay.garbage.append(&mut stale);
    for stored in records.values() {
        punch_holes(&mut replay, &stored.record);
    }
    Ok(Some((replay, records)))
}

/// Whether each record names the one before it, where that is there. Void claims are in nobody's chain.
fn check_chain(records: &Records, claims: &BTreeSet<Seq>) -> Result<()> {
    let is_void = |stored: &Stored| {
        let record = &stored.record;
        record.is_claim() && !claims.contains(&record.seq)
    };
    for (one, next) in records.values().zip(records.values().skip(1)) {
        let follows = one.record.seq.next() == Some(next.record.seq);
        if follows && !is_void(one) && !is_void(next) {
            replay::check_follows(&next.record, one.digest)?;
        }
    }
    Ok(())
}

/// Removes the blocks that a record made holes of, and that were not written again later.
fn punch_holes(replay: &mut Replay, record: &Record) {
    let RecordBody::Commit { holes, .. } = &record.body else {
        return;
    };
    for range in holes {
        let mut older: Vec<(BlockIndex, Seq)> = Vec::new();
        let mut at = range.start;
        while let Some(index) = replay
            .map
            .next_stored(at)
            .filter(|index| *index < range.end)
        {
            older.extend(
                replay
                    .map
                    .get(index)
                    .filter(|version| *version < record.seq)
                    .map(|version| (index, version)),
            );
            at = index.next();
        }
        for (index, version) in older {
            replay.map.remove(index);
            replay.garbage.push(Garbage {
                index,
                version,
                superseded_by: record.seq,
            });
        }
    }
}

/// The claims up to the end that are not void: the newest, and from each the one before it.
fn claims(checkpoint: Option<&Checkpoint>, records: &Records) -> BTreeSet<Seq> {
    let mut at = match checkpoint {
        Some(checkpoint) => checkpoint.last.claim,
        None => records
            .last_key_value()
            .map_or(Seq(0), |(_, stored)| stored.record.newest_claim()),
    };
    let mut claims = BTreeSet::new();
    while let Some(claim) = records.get(&at).filter(|stored| stored.record.is_claim()) {
        claims.insert(at);
        // Always a smaller number: the format sees to it.
        at = claim.record.claim;
    }
    claims
}

async fn read_records(
    objects: &Objects,
    wanted: &Wanted<'_>,
    records: &Numbers,
) -> Result<Option<Records>> {
    let numbers: Vec<Seq> = records.range(..=wanted.end).map(|(seq, _)| *seq).collect();
    let read: Vec<Option<Stored>> = stream::iter(numbers)
        .map(|seq| objects.record(seq))
        .buffered(wanted.requests)
        .try_collect()
        .await?;
    if read.iter().any(Option::is_none) {
        return Ok(None);
    }
    Ok(Some(
        read.into_iter()
            .flatten()
            .map(|stored| (stored.record.seq, stored))
            .collect(),
    ))
}

/// Lists the shards of `blocks/`, several at once, and calls `each` for every object in them that is a block of the disk.
pub(super) async fn for_each_block(
    objects: &Objects,
    requests: usize,
    progress: &OnProgress,
    mut each: impl FnMut(BlockIndex, Seq),
) -> Result<()> {
    let blocks = objects.geometry.blocks();
    let shards = (0..=u8::MAX).map(keys::shard_folder);
    let client = &*objects.client;
    let mut listings = stream::iter(shards)
        .map(|folder| async move { list_all(client, &folder).await })
        .buffer_unordered(requests);
    let (mut done, mut found) = (0, 0);
    progress(Progress::ListingBlocks {
        shards: done,
        found,
    });
    while let Some(entries) = listings.try_next().await? {
        for entry in entries {
            let Some((index, version)) = keys::parse_block(&entry.key) else {
                continue;
            };
            if index.0 >= blocks {
                let text = format!(
                    "object {} is of a block beyond the end of the disk",
                    entry.key
                );
                return Err(Error::new(ErrorKind::Damaged, text));
            }
            found += 1;
            each(index, version);
        }
        done += 1;
        progress(Progress::ListingBlocks {
            shards: done,
            found,
        });
    }
    Ok(())
}
