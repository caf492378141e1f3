//! The bucket of the model, what requests do to it, and the one true history that everything is compared with.

use super::objects::{
    Answer, BLOCKS, Checkpoint, Digest, Kind, Map, NUMBERS, Numbers, Record, Request, Session, has,
    name,
};
use super::rules::{Rule, Rules};
use super::world::Roles;

/// What is stored.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Bucket {
    pub log: [Option<Record>; NUMBERS],
    pub maps: Vec<Checkpoint>,
    pub blocks: [[u8; NUMBERS]; BLOCKS],
    /// The true history: every record that extended it, whether it is pruned or not. Nobody in the model can see it.
    pub truth: [Option<Record>; NUMBERS],
    pub head: u8,
}

impl Bucket {
    pub fn empty() -> Self {
        Bucket {
            log: [None; NUMBERS],
            maps: Vec::new(),
            blocks: [[0; NUMBERS]; BLOCKS],
            truth: [None; NUMBERS],
            head: 0,
        }
    }

    /// Applies a request.
    ///
    /// # Errors
    /// Says what must not happen: a disk that is held is claimed though nobody has asked for it to be taken over; a record extends the
    /// log that is not of who holds the disk, or that does not fit the record before; a checkpoint is not of the true history.
    pub fn apply(
        &mut self,
        request: &Request,
        rules: Rules,
        roles: &Roles,
    ) -> Result<Answer, String> {
        match request {
            Request::PutRecord(seq, record) => {
                let there = &mut self.log[usize::from(*seq)];
                match there {
                    Some(other) if rules.keep(Rule::CreateIfAbsent) => {
                        return Ok(Answer::Exists(*other));
                    }
                    _ => *there = Some(*record),
                }
                if *seq == self.head + 1 {
                    self.extend(*seq, *record, roles)?;
                }
            }
            Request::DeleteRecord(seq) => self.log[usize::from(*seq)] = None,
            Request::PutBlock {
                index,
                version,
                content,
            } => self.blocks[*index][usize::from(*version)] = *content,
            Request::DeleteBlock { index, version } => {
                self.blocks[*index][usize::from(*version)] = 0
            }
            Request::PutCheckpoint(map) => {
                self.is_true(map)?;
                match self.maps.binary_search_by_key(&map.seq, |m| m.seq) {
                    Ok(at) => self.maps[at] = map.clone(),
                    Err(at) => self.maps.insert(at, map.clone()),
                }
            }
            Request::DeleteCheckpoint(seq) => self.maps.retain(|map| map.seq != *seq),
        }
        Ok(Answer::Done)
    }

    /// The newest claim up to a record, and the digest of that record.
    fn as_of(&self, seq: u8) -> (u8, Digest) {
        let newest = self.truth[usize::from(seq)];
        newest.map_or_else(Default::default, |r| (r.newest_claim(seq), r.digest()))
    }

    fn is_true(&self, map: &Checkpoint) -> Result<(), String> {
        let (seq, claim) = (map.seq, usize::from(map.claim));
        let session = self.truth[claim].map(|record| record.session);
        let same = self.as_of(seq) == (map.claim, map.head) && self.state(seq) == map.map;
        match same && session == Some(map.session) {
            true => Ok(()),
            false => Err(format!("map/{seq} is of a state that never was")),
        }
    }

    fn extend(&mut self, seq: u8, record: Record, roles: &Roles) -> Result<(), String> {
        let owner = self.holder();
        match (record.kind, owner) {
            (Kind::Claim, Some(owner)) => {
                let who = record.session.who();
                if owner != record.session && who != owner.who() && !roles[who].takes_over {
                    return Err(format!(
                        "{} has claimed the disk that {} holds, though nobody asked for that",
                        name(record.session),
                        name(owner)
                    ));
                }
            }
            (Kind::Claim, None) => {}
            _ if self.owner() == Some(record.session) => {}
            _ => {
                return Err(format!(
                    "log/{seq}, {}, is not of who holds the disk",
                    record.describe()
                ));
            }
        }
        if self.as_of(self.head) != (record.claim, record.previous) {
            return Err(format!(
                "log/{seq}, {}, does not follow the record before it",
                record.describe()
            ));
        }
        self.truth[usize::from(seq)] = Some(record);
        self.head = seq;
        Ok(())
    }

    /// Whose claim is the newest.
    pub fn owner(&self) -> Option<Session> {
        let records = self.truth[..=usize::from(self.head)].iter().rev().flatten();
        let mut claims = records.filter(|record| record.kind == Kind::Claim);
        claims.next().map(|record| record.session)
    }

    /// That session, unless it has released.
    pub fn holder(&self) -> Option<Session> {
        let newest = self.truth[usize::from(self.head)]?;
        (newest.kind != Kind::Release).then_some(newest.session)
    }

    /// The true state as of a record.
    pub fn state(&self, seq: u8) -> Map {
        let mut map = [0; BLOCKS];
        for number in 1..=seq {
            let Some(record) = self.truth[usize::from(number)] else {
                continue;
            };
            for (index, version) in map.iter_mut().enumerate() {
                if has(record.stored, index) {
                    *version = number;
                } else if has(record.holes, index) {
                    *version = 0;
                }
            }
        }
        map
    }

    /// The blocks that a map names and that are not there, each with its version.
    pub fn missing(&self, map: &Map) -> impl Iterator<Item = (usize, u8)> {
        let named = map.iter().copied().enumerate();
        named.filter(|(index, version)| {
            *version != 0 && self.blocks[*index][usize::from(*version)] == 0
        })
    }

    /// Whether the blocks that a map names, as far as they are there, hold what their commits stored.
    ///
    /// # Errors
    /// Names the first that does not.
    pub fn holds(&self, map: &Map) -> Result<(), String> {
        for (index, version) in map.iter().enumerate().filter(|(_, version)| **version != 0) {
            let content = self.blocks[index][usize::from(*version)];
            let truth = self.truth[usize::from(*version)].map_or(0, |record| record.content);
            if content != 0 && content != truth {
                return Err(format!(
                    "block {index}.{version} holds {content}; its commit stored {truth}"
                ));
            }
        }
        Ok(())
    }

    /// The numbers in `log/`.
    pub fn records(&self) -> Numbers {
        let there = self
            .log
            .iter()
            .enumerate()
            .filter(|(_, record)| record.is_some());
        there.fold(0, |numbers, (seq, _)| numbers | 1 << seq)
    }

    /// The numbers in `map/`.
    pub fn checkpoints(&self) -> Numbers {
        self.maps
            .iter()
            .fold(0, |numbers, map| numbers | 1 << map.seq)
    }

    pub fn checkpoint(&self, seq: u8) -> Option<&Checkpoint> {
        self.maps.iter().find(|map| map.seq == seq)
    }

    /// The versions of a block that are stored: what a listing of its shard shows.
    pub fn versions(&self, index: usize) -> Numbers {
        let there = self.blocks[index]
            .iter()
            .enumerate()
            .filter(|(_, content)| **content != 0);
        there.fold(0, |numbers, (version, _)| numbers | 1 << version)
    }
}
