//! What a disk shows after an attack, and whether it may.

use std::collections::BTreeMap;
use std::fmt;

use bucketdisk::block::BlockIndex;
use bucketdisk::codec::ObjectKind;
use bucketdisk::error::{Error, ErrorKind};
use bucketdisk::store::versioned::keys;
use bucketdisk::store::{BlockStore, ReadError};

use super::scene::{BLOCK, BLOCKS, Scene, Way};
use crate::support::memory::Bucket;
use crate::support::volume::mount;

/// How a disk was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Opened {
    ByLog,
    ByListing,
}

/// What it shows.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shown {
    /// All of the disk as it is: what was attacked was not needed.
    Whole,
    /// The disk as it is, but for blocks of which each is refused by number, range and key.
    Partly,
    /// Nothing: the disk cannot be opened.
    Refused,
    /// The disk as it was as of an older record.
    Older(u32),
    /// Something that it must not.
    Wrong(String),
}

/// A block that the disk shows, or why not.
type Read = Result<Vec<u8>, Error>;

/// Opens a disk and reads all of it.
pub async fn look(scene: &Scene, bucket: &Bucket, opened: Opened) -> Result<Vec<Read>, Error> {
    let mut options = scene.options();
    options.read_only = true;
    options.list_blocks = opened == Opened::ByListing;
    let store = mount(&bucket.client(), options).await?;
    let mut blocks = Vec::new();
    for index in (0..BLOCKS).map(BlockIndex) {
        blocks.push(match store.version(index) {
            None => Ok(vec![0; BLOCK as usize]),
            Some(version) => match store.read(index, version).await {
                Ok(block) => Ok(block.bytes().to_vec()),
                Err(ReadError::Failed(error)) => Err(error),
                Err(ReadError::Stale) => panic!("nobody writes"),
            },
        });
    }
    Ok(blocks)
}

/// Whether blocks are those of a state, where they are not refused.
fn is(blocks: &[Read], state: &[u8]) -> bool {
    let chunks = state.chunks(BLOCK as usize);
    blocks.iter().zip(chunks).all(|(block, chunk)| match block {
        Ok(bytes) => bytes == chunk,
        Err(_) => true,
    })
}

/// Whether an error says what a user needs to know of a damaged block.
pub fn names_the_block(error: &Error, index: u64) -> bool {
    let text = error.chain();
    let range = format!("bytes {} to {}", index * BLOCK, (index + 1) * BLOCK);
    let key = format!("{:02x}/{index:010x}.", index % 256);
    error.kind() == ErrorKind::Damaged
        && text.contains(&format!("block {index} "))
        && text.contains(&range)
        && text.contains(&key)
}

pub fn judge(scene: &Scene, shown: Result<Vec<Read>, Error>) -> Shown {
    let blocks = match shown {
        Ok(blocks) => blocks,
        Err(error) if error.kind() == ErrorKind::Damaged => return Shown::Refused,
        Err(error) => return Shown::Wrong(format!("{:?}: {}", error.kind(), error.chain())),
    };
    let mut refused = 0;
    for (index, block) in (0..).zip(&blocks) {
        if let Err(error) = block {
            if !names_the_block(error, index) {
                return Shown::Wrong(format!(
                    "block {index}: {:?}: {}",
                    error.kind(),
                    error.chain()
                ));
            }
            refused += 1;
        }
    }
    if is(&blocks, scene.truth()) {
        return if refused == 0 {
            Shown::Whole
        } else {
            Shown::Partly
        };
    }
    let older = scene
        .states
        .iter()
        .rev()
        .find(|(_, state)| is(&blocks, state));
    match older {
        Some((record, _)) if refused == 0 => Shown::Older(*record),
        _ => {
            let chunks = scene.truth().chunks(BLOCK as usize);
            let other: Vec<usize> = (0..)
                .zip(blocks.iter().zip(chunks))
                .filter(|(_, (block, chunk))| block.as_ref().is_ok_and(|bytes| bytes != chunk))
                .map(|(index, _)| index)
                .collect();
            Shown::Wrong(format!("blocks {other:?} have other content"))
        }
    }
}

/// What an object is to its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    LiveBlock,
    DeadBlock,
    Record,
    Checkpoint,
}

impl Standing {
    pub const ALL: [Standing; 4] = [
        Standing::LiveBlock,
        Standing::DeadBlock,
        Standing::Record,
        Standing::Checkpoint,
    ];
}

/// The standing of every object of a disk.
pub async fn standings(scene: &Scene) -> BTreeMap<String, Standing> {
    let mut options = scene.options();
    options.read_only = true;
    let store = mount(&scene.bucket.client(), options)
        .await
        .expect("mounts");
    let objects = scene.objects().into_iter();
    let standings = objects.map(|(key, place, _)| {
        let standing = match place.kind {
            ObjectKind::Record => Standing::Record,
            ObjectKind::Checkpoint => Standing::Checkpoint,
            ObjectKind::Block => {
                let (index, version) = keys::parse_block(&key).expect("is a block");
                match store.version(index) == Some(version) {
                    true => Standing::LiveBlock,
                    false => Standing::DeadBlock,
                }
            }
        };
        (key, standing)
    });
    standings.collect()
}

/// How many cases of each sort came to what.
#[derive(Debug, Default)]
pub struct Tally {
    cells: BTreeMap<(Standing, &'static str), Counts>,
    /// What must not be.
    pub wrong: Vec<String>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    ways: [u64; 3],
    whole: u64,
    partly: u64,
    refused: u64,
    older: u64,
}

impl Tally {
    /// Counts a case. `older`: the record as of which the disk may be shown, where nothing in the bucket can tell.
    pub fn count(
        &mut self,
        way: Way,
        (standing, attack): (Standing, &'static str),
        shown: Shown,
        older: Option<u32>,
        what: &dyn fmt::Display,
    ) {
        let counts = self.cells.entry((standing, attack)).or_default();
        counts.ways[way as usize] += 1;
        match shown {
            Shown::Whole => counts.whole += 1,
            Shown::Partly => counts.partly += 1,
            Shown::Refused => counts.refused += 1,
            Shown::Older(record) if older == Some(record) => counts.older += 1,
            shown => self
                .wrong
                .push(format!("{way:?}, {standing:?} {attack}, {what}: {shown:?}")),
        }
    }

    /// The cases of one sort and way.
    pub fn cases(&self, way: Way, standing: Standing, attack: &'static str) -> u64 {
        let counts = self.cells.get(&(standing, attack));
        counts.map_or(0, |counts| counts.ways[way as usize])
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| object | attack | plain | compressed | encrypted | not needed | block refused | disk refused | older state |"
        )?;
        writeln!(f, "|---|---|---|---|---|---|---|---|---|")?;
        for ((standing, attack), counts) in &self.cells {
            let Counts {
                ways: [plain, compressed, encrypted],
                whole,
                partly,
                refused,
                older,
            } = counts;
            writeln!(
                f,
                "| {standing:?} | {attack} | {plain} | {compressed} | {encrypted} | {whole} | {partly} | {refused} | {older} |"
            )?;
        }
        Ok(())
    }
}
