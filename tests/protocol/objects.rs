//! What the model knows of objects and requests: `record.rs` and `checkpoint.rs` of the program.
//!
//! An object is what matters of it: a block in a version is a number that stands for its content, a digest is the record without
//! the chain behind it. A number of the log is `0` where there is none.

use std::hash::{Hash, Hasher};

/// One more than the highest number that a record can have here.
pub const NUMBERS: usize = 14;
/// Blocks of the disk.
pub const BLOCKS: usize = 2;

/// Blocks as bits.
pub type Set = u8;
/// Numbers as bits.
pub type Numbers = u16;
/// For each block the version that is stored; 0 where it is a hole.
pub type Map = [u8; BLOCKS];
/// For each block and version the number of the record that superseded it; 0 where it is not garbage.
pub type Garbage = [[u8; NUMBERS]; BLOCKS];

/// A mount for writing: which of the actors, and the how many-th of its lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Session(u8);

impl Session {
    pub fn new(who: usize, life: u8) -> Self {
        Session(who as u8 * 8 + life)
    }

    /// The actor, in other words the machine.
    pub fn who(self) -> usize {
        usize::from(self.0 / 8)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Claim,
    Commit,
    Heartbeat,
    Release,
}

/// `Record`: only `nonce` is less than there: it tells a record from another that is alike and that its session has forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Record {
    pub kind: Kind,
    pub session: Session,
    /// The claim of the session; in a claim the one before it.
    pub claim: u8,
    pub previous: Digest,
    pub stored: Set,
    pub holes: Set,
    /// What the blocks of a commit hold.
    pub content: u8,
    pub nonce: u8,
}

/// Tells a record from all others of its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Digest(u64);

// In two words: most of the time of a search goes into fingerprints.
impl Hash for Record {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        hasher.write_u64(self.digest().0 | u64::from(self.claim));
        hasher.write_u64(self.previous.0);
    }
}

impl Record {
    pub fn digest(&self) -> Digest {
        let parts = [
            self.kind as u8 + 1,
            self.session.0,
            self.stored,
            self.holes,
            self.content,
            self.nonce,
            0,
            0,
        ];
        Digest(u64::from_be_bytes(parts))
    }

    /// `Record::newest_claim`.
    pub fn newest_claim(&self, seq: u8) -> u8 {
        match self.kind {
            Kind::Claim => seq,
            _ => self.claim,
        }
    }

    pub fn describe(&self) -> String {
        let who = format!("{:?} of {}", self.kind, name(self.session));
        match self.kind {
            Kind::Commit => format!(
                "{who} (stores {}, holes {})",
                blocks(self.stored),
                blocks(self.holes)
            ),
            _ => who,
        }
    }
}

/// `Checkpoint`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Checkpoint {
    pub seq: u8,
    pub head: Digest,
    /// `LastSession`: never released, since no session puts a checkpoint after its release.
    pub session: Session,
    pub claim: u8,
    pub map: Map,
    pub garbage: Garbage,
    pub unpruned: Numbers,
}

/// A request that changes the bucket.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Request {
    PutRecord(u8, Record),
    DeleteRecord(u8),
    PutBlock {
        index: usize,
        version: u8,
        content: u8,
    },
    DeleteBlock {
        index: usize,
        version: u8,
    },
    PutCheckpoint(Checkpoint),
    DeleteCheckpoint(u8),
}

impl Request {
    pub fn describe(&self) -> String {
        match self {
            Request::PutRecord(seq, record) => format!("put log/{seq}, {}", record.describe()),
            Request::DeleteRecord(seq) => format!("delete log/{seq}"),
            Request::PutBlock {
                index,
                version,
                content,
            } => format!("put block {index}.{version} (content {content})"),
            Request::DeleteBlock { index, version } => format!("delete block {index}.{version}"),
            Request::PutCheckpoint(map) => format!("put map/{} (map {:?})", map.seq, map.map),
            Request::DeleteCheckpoint(seq) => format!("delete map/{seq}"),
        }
    }
}

/// The answer to one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Done,
    /// Create-if-absent found this record.
    Exists(Record),
}

/// Whether a set has a block.
pub fn has(set: Set, index: usize) -> bool {
    set & 1 << index != 0
}

/// The highest of some numbers; 0 if there is none.
pub fn last(numbers: Numbers) -> u8 {
    numbers.checked_ilog2().map_or(0, |highest| highest as u8)
}

/// All numbers up to one.
pub fn up_to(limit: u8) -> Numbers {
    (2 << limit) - 1
}

/// Numbers in ascending order.
pub fn each(numbers: Numbers) -> impl DoubleEndedIterator<Item = u8> {
    (0..NUMBERS as u8).filter(move |seq| numbers & 1 << seq != 0)
}

/// The number after another. A scene in which there are too many is for a model with more of them.
pub fn next(seq: u8) -> u8 {
    assert!(usize::from(seq) + 1 < NUMBERS, "the log is full");
    seq + 1
}

/// A session as it is called in a path: the machine's letter and its life.
pub fn name(session: Session) -> String {
    let letter = char::from(b'A' + session.who() as u8);
    format!("{letter}{}", session.0 % 8)
}

/// A set as it is written in a path.
pub fn blocks(set: Set) -> String {
    let all: Vec<String> = (0..BLOCKS)
        .filter(|index| has(set, *index))
        .map(|index| index.to_string())
        .collect();
    match all.is_empty() {
        true => "none".to_owned(),
        false => all.join(" and "),
    }
}
