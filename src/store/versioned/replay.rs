//! From records to a map: what a mount's state is made of.

use crate::block::Seq;
use crate::error::{Error, ErrorKind, Result};

use super::checkpoint::{Checkpoint, Garbage, LastSession};
use super::keys;
use super::map::BlockMap;
use super::objects::Stored;
use super::record::{Digest, Record, RecordBody};

/// The state as of one record.
#[derive(Debug)]
pub(super) struct Replay {
    /// The record.
    pub(super) seq: Seq,
    /// Its digest, which the next record must name.
    pub(super) digest: Digest,
    /// Which blocks are stored, in which version.
    pub(super) map: BlockMap,
    /// Superseded versions whose deletion nobody has confirmed.
    pub(super) garbage: Vec<Garbage>,
    /// The records up to it that are not claims and may still exist: to be pruned one day.
    pub(super) unpruned: Vec<Seq>,
    /// The session that wrote last; `None` before the first.
    pub(super) last: Option<LastSession>,
}

impl Replay {
    /// The state before the first record: a disk of holes.
    pub(super) fn empty(blocks: u64) -> Result<Self> {
        Ok(Replay {
            seq: Seq(0),
            digest: Digest::ZERO,
            map: new_map(blocks)?,
            garbage: Vec::new(),
            unpruned: Vec::new(),
            last: None,
        })
    }

    /// The state that a checkpoint holds.
    pub(super) fn from_checkpoint(checkpoint: Checkpoint) -> Self {
        let Checkpoint {
            seq,
            head,
            last,
            map,
            garbage,
            unpruned,
        } = checkpoint;
        Replay {
            seq,
            digest: head,
            map,
            garbage,
            unpruned,
            last: Some(last),
        }
    }

    /// Goes on by the next record.
    ///
    /// # Errors
    /// `Damaged` where the record does not follow this state: another number, or the digest of another predecessor.
    pub(super) fn apply(&mut self, stored: &Stored) -> Result<()> {
        let record = &stored.record;
        if Some(record.seq) != self.seq.next() {
            return Err(altered(record));
        }
        check_follows(record, self.digest)?;
        if let RecordBody::Commit { stored, holes } = &record.body {
            for index in stored {
                if let Some(version) = self.map.insert(*index, record.seq) {
                    self.garbage.push(Garbage {
                        index: *index,
                        version,
                        superseded_by: record.seq,
                    });
                }
            }
            for range in holes {
                let garbage = &mut self.garbage;
                self.map.remove_range(range.clone(), |index, version| {
                    garbage.push(Garbage {
                        index,
                        version,
                        superseded_by: record.seq,
                    });
                });
            }
        }
        self.note(stored);
        self.seq = record.seq;
        self.digest = stored.digest;
        Ok(())
    }

    /// Keeps up who wrote last, and what is to be pruned.
    pub(super) fn note(&mut self, stored: &Stored) {
        let record = &stored.record;
        if !record.is_claim() {
            self.unpruned.push(record.seq);
        }
        match &record.body {
            RecordBody::Claim { host, pid, .. } => {
                self.last = Some(LastSession {
                    session: record.session,
                    claim: record.seq,
                    released: false,
                    host: host.clone(),
                    pid: *pid,
                });
            }
            RecordBody::Release => {
                if let Some(last) = self
                    .last
                    .as_mut()
                    .filter(|last| last.session == record.session)
                {
                    last.released = true;
                }
            }
            RecordBody::Commit { .. } | RecordBody::Heartbeat => {}
        }
    }
}

/// Whether a record names the one before it, of that digest.
///
/// # Errors
/// `Damaged` where it names another.
pub(super) fn check_follows(record: &Record, previous: Digest) -> Result<()> {
    match record.previous == previous {
        true => Ok(()),
        false => Err(altered(record)),
    }
}

fn altered(record: &Record) -> Error {
    let text = format!(
        "log record {} does not follow the one before it: the log was altered",
        keys::record(record.seq)
    );
    Error::new(ErrorKind::Damaged, text)
}

/// An empty map.
///
/// # Errors
/// `System` where there is not enough memory for a disk of that many blocks.
pub(super) fn new_map(blocks: u64) -> Result<BlockMap> {
    BlockMap::new(blocks).map_err(|e| {
        Error::new(
            ErrorKind::System,
            format!("no memory for the map of {blocks} blocks: use larger blocks"),
        )
        .with_source(e)
    })
}
