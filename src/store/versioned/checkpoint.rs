//! Checkpoints: the whole block map as of one record, so that a mount need not replay the log from its beginning.
//!
//! A checkpoint also carries what else the records that it replaces would have told: the digest that the next record must name,
//! the last session, and the superseded objects that are still to be deleted. This file only turns checkpoints into objects and
//! back.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::map::BlockMap;
use super::record::{Digest, FormatError, SessionId};
use crate::block::{BlockIndex, Seq};
use crate::codec::payload::{Reader, Writer};
use crate::codec::{Codec, ObjectKind, Place};

/// The state of a disk as of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// The number of that record, and of the checkpoint; not in the object's content, but bound to it as its place.
    pub seq: Seq,
    /// The digest of that record.
    pub head: Digest,
    /// The session that claimed the disk last.
    pub last: LastSession,
    /// Which blocks are stored, in which version. No version is newer than `seq`.
    pub map: BlockMap,
    /// Objects that commits up to `seq` superseded and that are still to be deleted. None of them is in the map.
    pub garbage: Vec<Garbage>,
    /// Records up to `seq` that are not claims and may still exist, in ascending order: what is to be pruned one day.
    pub unpruned: Vec<Seq>,
}

/// What a checkpoint is made of, where that lies: the map of a mounted disk is not copied to write it down.
#[derive(Debug)]
pub struct CheckpointView<'a> {
    /// As [`Checkpoint::seq`].
    pub seq: Seq,
    /// As [`Checkpoint::head`].
    pub head: Digest,
    /// As [`Checkpoint::last`].
    pub last: LastSession,
    /// As [`Checkpoint::map`].
    pub map: &'a BlockMap,
    /// As [`Checkpoint::garbage`], in any order.
    pub garbage: Vec<Garbage>,
    /// As [`Checkpoint::unpruned`].
    pub unpruned: &'a [Seq],
}

/// The last session that claimed the disk, as of a record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LastSession {
    /// Its id.
    pub session: SessionId,
    /// The number of its claim.
    pub claim: Seq,
    /// Whether it had left the disk.
    pub released: bool,
    /// The machine that it said it runs on.
    pub host: String,
    /// Its process there.
    pub pid: u32,
}

/// One version of a block that a commit superseded, by a newer version or by a hole; or one that a crashed session stored and
/// never committed, which the claim of its own number superseded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Garbage {
    /// The block.
    pub index: BlockIndex,
    /// The version that is to be deleted.
    pub version: Seq,
    /// The number of the commit that superseded it.
    pub superseded_by: Seq,
}

/// The JSON header of a checkpoint.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    head: Digest,
    last: LastSession,
    /// Stored blocks, for people and as a check.
    stored: u64,
}

/// Consecutive stored blocks of the same version.
struct Run {
    start: u64,
    length: u64,
    version: Seq,
}

impl CheckpointView<'_> {
    /// The checkpoint as an object. Garbage is written in ascending order, each object once.
    ///
    /// # Panics
    /// Where a version is 0 or newer than `seq`, or garbage is in the map or newer than what superseded it, or the records are
    /// out of order: such a checkpoint could not be read again.
    pub fn encode(&self, codec: &dyn Codec, disk: Uuid) -> Bytes {
        let mut writer = Writer::with_header(&Header {
            head: self.head,
            last: self.last.clone(),
            stored: self.map.len(),
        });
        self.write_map(&mut writer);
        self.write_garbage(&mut writer);
        self.write_unpruned(&mut writer);
        codec.encode(&place(disk, self.seq), &writer.finish())
    }

    /// The number of runs, then for each the gap to the end of the one before, its length, and how its version differs from the
    /// one before.
    fn write_map(&self, writer: &mut Writer) {
        writer.integer(runs(self.map).count() as u64);
        let (mut end, mut before) = (0, 0);
        for run in runs(self.map) {
            assert!(
                run.version > Seq(0) && run.version <= self.seq,
                "block {} has version {} in checkpoint {}",
                run.start,
                run.version,
                self.seq
            );
            writer.integer(run.start - end);
            writer.integer(run.length);
            writer.signed(i64::from(run.version.0) - before);
            end = run.start + run.length;
            before = i64::from(run.version.0);
        }
    }

    /// The number of objects, then for each how its index differs from the one before, its version, and how much newer the
    /// commit is that superseded it.
    fn write_garbage(&self, writer: &mut Writer) {
        let mut garbage = self.garbage.clone();
        garbage.sort_unstable();
        garbage.dedup_by_key(|object| (object.index, object.version));
        writer.integer(garbage.len() as u64);
        let mut before = 0;
        for object in &garbage {
            assert!(
                is_garbage(object, self.seq, self.map),
                "{object:?} in checkpoint {}",
                self.seq
            );
            writer.integer(object.index.0 - before);
            writer.integer(u64::from(object.version.0));
            writer.integer(u64::from(object.superseded_by.0 - object.version.0));
            before = object.index.0;
        }
    }

    /// The number of records, then how the number of each differs from the one before.
    fn write_unpruned(&self, writer: &mut Writer) {
        writer.integer(self.unpruned.len() as u64);
        let mut before = Seq(0);
        for seq in self.unpruned {
            assert!(
                *seq > before && *seq <= self.seq,
                "record {seq} in checkpoint {}",
                self.seq
            );
            writer.integer(u64::from(seq.0 - before.0));
            before = *seq;
        }
    }
}

impl Checkpoint {
    /// The checkpoint as an object.
    ///
    /// # Panics
    /// Those of [`CheckpointView::encode`].
    pub fn encode(&self, codec: &dyn Codec, disk: Uuid) -> Bytes {
        let view = CheckpointView {
            seq: self.seq,
            head: self.head,
            last: self.last.clone(),
            map: &self.map,
            garbage: self.garbage.clone(),
            unpruned: &self.unpruned,
        };
        view.encode(codec, disk)
    }

    /// The checkpoint that an object found under number `seq` holds, of a disk of so many blocks.
    ///
    /// # Errors
    /// A [`FormatError`] that says what does not fit.
    pub fn decode(
        codec: &dyn Codec,
        disk: Uuid,
        seq: Seq,
        blocks: u64,
        object: &Bytes,
    ) -> Result<Checkpoint, FormatError> {
        let payload = codec.decode(&place(disk, seq), object.clone())?;
        let (header, mut reader) = Reader::with_header::<Header>(&payload)?;
        let map = read_map(&mut reader, seq, blocks)?;
        if map.len() != header.stored {
            return Err(FormatError::Member { member: "stored" });
        }
        let garbage = read_garbage(&mut reader, seq, &map)?;
        let unpruned = read_unpruned(&mut reader, seq)?;
        reader.finish()?;
        Ok(Checkpoint {
            seq,
            head: header.head,
            last: header.last,
            map,
            garbage,
            unpruned,
        })
    }
}

/// A checkpoint's place.
fn place(disk: Uuid, seq: Seq) -> Place {
    Place {
        disk,
        kind: ObjectKind::Checkpoint,
        index: 0,
        seq,
    }
}

/// Whether an object may be deleted once a checkpoint stands.
fn is_garbage(object: &Garbage, seq: Seq, map: &BlockMap) -> bool {
    object.index.0 < map.blocks()
        && object.version > Seq(0)
        && object.version <= object.superseded_by
        && object.superseded_by <= seq
        && map.get(object.index) != Some(object.version)
}

/// A map as runs, in ascending order.
fn runs(map: &BlockMap) -> impl Iterator<Item = Run> + '_ {
    let mut blocks = map.iter().peekable();
    std::iter::from_fn(move || {
        let (start, version) = blocks.next()?;
        let mut length = 1;
        while blocks
            .next_if_eq(&(BlockIndex(start.0 + length), version))
            .is_some()
        {
            length += 1;
        }
        Some(Run {
            start: start.0,
            length,
            version,
        })
    })
}

/// Reads what `write_map` wrote.
fn read_map(reader: &mut Reader<'_>, seq: Seq, blocks: u64) -> Result<BlockMap, FormatError> {
    let mut map = BlockMap::new(blocks).map_err(|_| FormatError::Memory { blocks })?;
    let out_of_order = FormatError::Blocks { blocks };
    let (mut end, mut version) = (0u64, 0i64);
    for _ in 0..reader.count(3)? {
        let (gap, length, difference) = (reader.integer()?, reader.integer()?, reader.signed()?);
        let start = end.checked_add(gap);
        let stop = start.and_then(|start| start.checked_add(length));
        let (Some(start), Some(stop)) = (start, stop.filter(|stop| *stop <= blocks)) else {
            return Err(out_of_order);
        };
        version = version
            .checked_add(difference)
            .filter(|version| *version > 0 && *version <= i64::from(seq.0))
            .ok_or(FormatError::Version)?;
        let continues = gap == 0 && difference == 0;
        if length == 0 || continues {
            return Err(out_of_order);
        }
        let stored = Seq(u32::try_from(version).map_err(|_| FormatError::Version)?);
        for index in start..stop {
            map.insert(BlockIndex(index), stored);
        }
        end = stop;
    }
    Ok(map)
}

/// Reads what `write_garbage` wrote.
fn read_garbage(
    reader: &mut Reader<'_>,
    seq: Seq,
    map: &BlockMap,
) -> Result<Vec<Garbage>, FormatError> {
    let blocks = map.blocks();
    let count = reader.count(3)?;
    let mut garbage: Vec<Garbage> = Vec::with_capacity(count);
    for _ in 0..count {
        let (difference, version, newer) =
            (reader.integer()?, reader.integer()?, reader.integer()?);
        let before = garbage.last().map_or(0, |object| object.index.0);
        let index = before
            .checked_add(difference)
            .ok_or(FormatError::Blocks { blocks })?;
        let superseded_by = version.checked_add(newer).ok_or(FormatError::Version)?;
        let narrow = |number: u64| u32::try_from(number).map(Seq);
        let object = Garbage {
            index: BlockIndex(index),
            version: narrow(version).map_err(|_| FormatError::Version)?,
            superseded_by: narrow(superseded_by).map_err(|_| FormatError::Version)?,
        };
        let ascends = garbage
            .last()
            .is_none_or(|last| (last.index, last.version) < (object.index, object.version));
        if !ascends || index >= blocks {
            return Err(FormatError::Blocks { blocks });
        }
        if !is_garbage(&object, seq, map) {
            return Err(FormatError::Version);
        }
        garbage.push(object);
    }
    Ok(garbage)
}

/// Reads what `write_unpruned` wrote.
fn read_unpruned(reader: &mut Reader<'_>, seq: Seq) -> Result<Vec<Seq>, FormatError> {
    let count = reader.count(1)?;
    let mut unpruned: Vec<Seq> = Vec::with_capacity(count);
    for _ in 0..count {
        let before = unpruned.last().map_or(0, |record| u64::from(record.0));
        let record = before
            .checked_add(reader.integer()?)
            .filter(|record| *record > before);
        let record = record
            .and_then(|record| u32::try_from(record).ok())
            .map(Seq);
        unpruned.push(
            record
                .filter(|record| *record <= seq)
                .ok_or(FormatError::Version)?,
        );
    }
    Ok(unpruned)
}

#[cfg(test)]
mod tests;
