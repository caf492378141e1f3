//! Records of the log: who claimed the disk, what each commit changed, and when it was left.
//!
//! A record is stored create-if-absent under its number and never changed. Each names the digest of the one before it, so that
//! a log that was cut or spliced is noticed. This file only turns records into objects and back; what they mean is decided by
//! whoever mounts.

use std::fmt;
use std::ops::Range;
use std::time::SystemTime;

use bytes::Bytes;
use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, Serialize, Serializer};
use uuid::Uuid;

use crate::block::{BlockIndex, Seq};
use crate::codec::payload::{PayloadError, Reader, Writer};
use crate::codec::{Codec, DecodeError, ObjectKind, Place, timestamp};
use crate::store::JournalMark;

/// Identifies one mount for writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SessionId(pub Uuid);

impl SessionId {
    /// A new one, random.
    pub fn fresh() -> Self {
        SessionId(Uuid::new_v4())
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What stands for a record's whole object in the record after it: see [`Codec::digest`].
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(pub [u8; 16]);

impl Digest {
    /// What the first record names as the digest of the one before it.
    pub const ZERO: Digest = Digest([0; 16]);

    /// That of a record's object.
    pub fn of(codec: &dyn Codec, object: &[u8]) -> Digest {
        Digest(codec.digest(object))
    }

    /// The digest that 32 lower-case hexadecimal digits spell; `None` for any other text.
    fn parse(text: &str) -> Option<Digest> {
        parse_hex(text, 32).map(|value| Digest(value.to_be_bytes()))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        Digest::parse(&text)
            .ok_or_else(|| D::Error::custom("not a digest of 32 hexadecimal digits"))
    }
}

/// One record of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its number; not in the object's content, but bound to it as its place.
    pub seq: Seq,
    /// The session that put it.
    pub session: SessionId,
    /// The claim by which that session took the disk; in a claim, the claim before it: 0 in the first. Void claims (whose
    /// slot had been pruned) are in no such chain, which is how a listing of the blocks tells them apart.
    pub claim: Seq,
    /// Random: tells whether a record that is there after an unanswered request is the sender's own.
    pub nonce: u64,
    /// The digest of the record before it; [`Digest::ZERO`] in record 1.
    pub previous: Digest,
    /// When it was made, by the sender's clock; moments before 1970 or after 9999 become the nearest one inside. For people only:
    /// nothing is decided by it.
    pub time: SystemTime,
    /// The newest mark of a journal, of this commit or an earlier one; `None` where no commit had one.
    pub journal: Option<JournalMark>,
    /// What it says.
    pub body: RecordBody,
}

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordBody {
    /// The session takes the disk for writing.
    Claim {
        /// The machine that it runs on, as that calls itself.
        host: String,
        /// Its process there.
        pid: u32,
        /// The session, not released, that it took the disk from.
        took_over: Option<SessionId>,
    },
    /// The disk changed.
    Commit {
        /// The blocks that are stored under this record's number as their version, in ascending order.
        stored: Vec<BlockIndex>,
        /// The blocks that became holes: not empty, in ascending order, disjoint from one another and from `stored`.
        holes: Vec<Range<BlockIndex>>,
    },
    /// The session still lives.
    Heartbeat,
    /// The session leaves the disk.
    Release,
}

/// Why a record or checkpoint could not be read.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The object itself is not right.
    #[error(transparent)]
    Object(#[from] DecodeError),
    /// Its content ends too early or too late, or is malformed.
    #[error(transparent)]
    Payload(#[from] PayloadError),
    /// A member of the header is missing, malformed, or does not belong there.
    #[error("member {member} of the header is missing, malformed or out of place")]
    Member {
        /// Its name.
        member: &'static str,
    },
    /// Blocks are not in ascending order, are named twice, or lie beyond the end of the disk.
    #[error("the blocks of the content are out of order or beyond the disk's {blocks} blocks")]
    Blocks {
        /// Blocks of the disk.
        blocks: u64,
    },
    /// A version is 0, newer than the object that names it, or not older than the one that superseded it.
    #[error("a version in the content is out of range")]
    Version,
    /// There is not enough memory for what the content describes.
    #[error("there is not enough memory for the content: {blocks} blocks")]
    Memory {
        /// Blocks that the content describes.
        blocks: u64,
    },
}

#[derive(Serialize, Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Claim,
    Commit,
    Heartbeat,
    Release,
}

/// The JSON header of a record.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    kind: Kind,
    session: SessionId,
    claim: u32,
    nonce: String,
    previous: Digest,
    time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    journal: Option<JournalMark>,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    took_over: Option<SessionId>,
}

impl Record {
    /// Whether it takes the disk: such a record is never pruned.
    pub fn is_claim(&self) -> bool {
        matches!(self.body, RecordBody::Claim { .. })
    }

    /// The newest claim that is not void as of this record: itself, or the one of its session.
    pub fn newest_claim(&self) -> Seq {
        if self.is_claim() {
            self.seq
        } else {
            self.claim
        }
    }

    /// The record as an object.
    ///
    /// # Panics
    /// Where a commit's blocks break the order that [`RecordBody::Commit`] asks for: such a record could not be read again.
    pub fn encode(&self, codec: &dyn Codec, disk: Uuid) -> Bytes {
        let mut header = Header {
            kind: Kind::Heartbeat,
            session: self.session,
            claim: self.claim.0,
            nonce: format!("{:016x}", self.nonce),
            previous: self.previous,
            time: timestamp::to_nanos(self.time),
            journal: self.journal,
            host: None,
            pid: None,
            took_over: None,
        };
        match &self.body {
            RecordBody::Claim {
                host,
                pid,
                took_over,
            } => {
                header.kind = Kind::Claim;
                header.host = Some(host.clone());
                header.pid = Some(*pid);
                header.took_over = *took_over;
            }
            RecordBody::Commit { .. } => header.kind = Kind::Commit,
            RecordBody::Heartbeat => {}
            RecordBody::Release => header.kind = Kind::Release,
        }
        let mut writer = Writer::with_header(&header);
        if let RecordBody::Commit { stored, holes } = &self.body {
            assert!(
                are_disjoint(stored, holes),
                "a block is stored and a hole at once"
            );
            write_runs(&mut writer, &runs(stored));
            write_runs(&mut writer, holes);
        }
        codec.encode(&place(disk, self.seq), &writer.finish())
    }

    /// The record that an object found under number `seq` holds, of a disk of so many blocks.
    ///
    /// # Errors
    /// A [`FormatError`] that says what does not fit.
    pub fn decode(
        codec: &dyn Codec,
        disk: Uuid,
        blocks: u64,
        seq: Seq,
        object: &Bytes,
    ) -> Result<Record, FormatError> {
        let payload = codec.decode(&place(disk, seq), object.clone())?;
        let (header, mut reader) = Reader::with_header::<Header>(&payload)?;
        let body = match header.kind {
            Kind::Claim => RecordBody::Claim {
                host: header
                    .host
                    .clone()
                    .ok_or(FormatError::Member { member: "host" })?,
                pid: header.pid.ok_or(FormatError::Member { member: "pid" })?,
                took_over: header.took_over,
            },
            Kind::Commit => read_commit(&mut reader, blocks)?,
            Kind::Heartbeat => RecordBody::Heartbeat,
            Kind::Release => RecordBody::Release,
        };
        reader.finish()?;
        let of_a_claim = [
            ("host", header.host.is_some()),
            ("pid", header.pid.is_some()),
            ("took_over", header.took_over.is_some()),
        ];
        if let Some((member, _)) = of_a_claim
            .into_iter()
            .find(|(_, given)| *given && !matches!(header.kind, Kind::Claim))
        {
            return Err(FormatError::Member { member });
        }
        let nonce = parse_hex(&header.nonce, 16).and_then(|nonce| u64::try_from(nonce).ok());
        Ok(Record {
            seq,
            session: header.session,
            claim: Some(Seq(header.claim))
                .filter(|claim| *claim < seq)
                .ok_or(FormatError::Member { member: "claim" })?,
            nonce: nonce.ok_or(FormatError::Member { member: "nonce" })?,
            previous: header.previous,
            time: timestamp::from_nanos(&header.time)
                .ok_or(FormatError::Member { member: "time" })?,
            journal: header.journal,
            body,
        })
    }
}

/// A record's place.
fn place(disk: Uuid, seq: Seq) -> Place {
    Place {
        disk,
        kind: ObjectKind::Record,
        index: 0,
        seq,
    }
}

/// The tail of a commit: runs of stored blocks, then holes.
fn read_commit(reader: &mut Reader<'_>, blocks: u64) -> Result<RecordBody, FormatError> {
    let runs = read_runs(reader, blocks)?;
    let holes = read_runs(reader, blocks)?;
    let adjacent = |pair: &[Range<BlockIndex>]| matches!(pair, [a, b] if a.end == b.start);
    if runs.windows(2).any(adjacent) {
        return Err(FormatError::Blocks { blocks });
    }
    // Runs are disjoint and end within the disk, so their sum does not overflow.
    let total = runs.iter().map(|run| run.end.0 - run.start.0).sum();
    let memory = FormatError::Memory { blocks: total };
    let mut stored: Vec<BlockIndex> = Vec::new();
    match usize::try_from(total) {
        Ok(total) if stored.try_reserve_exact(total).is_ok() => {}
        _ => return Err(memory),
    }
    for run in runs {
        stored.extend((run.start.0..run.end.0).map(BlockIndex));
    }
    if !are_disjoint(&stored, &holes) {
        return Err(FormatError::Blocks { blocks });
    }
    Ok(RecordBody::Commit { stored, holes })
}

/// Consecutive indices as ranges. The indices must ascend.
fn runs(indices: &[BlockIndex]) -> Vec<Range<BlockIndex>> {
    indices
        .chunk_by(|a, b| a.0.checked_add(1) == Some(b.0))
        .filter_map(|run| Some(*run.first()?..run.last()?.next()))
        .collect()
}

/// Writes ascending ranges: their number, then for each the gap to the end of the one before, and its length.
fn write_runs(writer: &mut Writer, runs: &[Range<BlockIndex>]) {
    writer.integer(runs.len() as u64);
    let mut end = 0;
    for run in runs {
        let gap = run.start.0.checked_sub(end).expect("blocks ascend");
        let length = run.end.0.checked_sub(run.start.0).filter(|n| *n > 0);
        writer.integer(gap);
        writer.integer(length.expect("a range of holes is not empty"));
        end = run.end.0;
    }
}

/// Reads what [`write_runs`] wrote, within a disk of so many blocks.
fn read_runs(reader: &mut Reader<'_>, blocks: u64) -> Result<Vec<Range<BlockIndex>>, FormatError> {
    let count = reader.count(2)?;
    let mut runs = Vec::with_capacity(count);
    let mut end = 0u64;
    for _ in 0..count {
        let (gap, length) = (reader.integer()?, reader.integer()?);
        let start = end.checked_add(gap);
        let stop = start.and_then(|start| start.checked_add(length));
        let (Some(start), Some(stop)) = (start, stop.filter(|stop| *stop <= blocks)) else {
            return Err(FormatError::Blocks { blocks });
        };
        if length == 0 {
            return Err(FormatError::Blocks { blocks });
        }
        runs.push(BlockIndex(start)..BlockIndex(stop));
        end = stop;
    }
    Ok(runs)
}

/// Whether no block is both stored and a hole. Both must ascend.
fn are_disjoint(stored: &[BlockIndex], holes: &[Range<BlockIndex>]) -> bool {
    holes.iter().all(|hole| {
        let first_after = stored.partition_point(|index| *index < hole.start);
        stored
            .get(first_after)
            .is_none_or(|index| *index >= hole.end)
    })
}

/// The number that exactly so many lower-case hexadecimal digits spell, 32 at most.
fn parse_hex(text: &str, digits: usize) -> Option<u128> {
    let exact =
        text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    exact.then(|| u128::from_str_radix(text, 16).ok())?
}

#[cfg(test)]
mod tests;
