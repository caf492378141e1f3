//! The file `state`: two slots of 4 KiB, written in turn and each made durable before the other is written again, so that one of them
//! is always whole. The sound one of the higher generation counts. Of an encrypted disk a slot is sound only with its MAC: else who can write
//! to the local disk, and no more, could have the log begin later than it does, or hold nothing.
//!
//! | at | bytes | what (little-endian) |
//! |---|---|---|
//! | 0 | 16 | `bucketdisk jrnl\n` |
//! | 16 | 4 | format version: 1 |
//! | 20 | 4 | how many sessions |
//! | 24 | 8 | generation |
//! | 32 | 16 | the journal's id |
//! | 48 | 16 | the disk's id |
//! | 64 | 8 | size of the disk in bytes |
//! | 72 | 24 | the tail: segment, byte in it, record |
//! | 96 | 8 | the log reaches at least to this segment |
//! | 104 | 8 | records with smaller numbers are durable |
//! | 112 | 8 | size of a segment in bytes |
//! | 128 | 16 each | sessions of the disk that may have written here |
//! | 4056 | 32 | HMAC-SHA-256 of what is before; all zero where the disk is not encrypted |
//! | 4088 | 8 | checksum of what is before |

use std::sync::Arc;

use super::files::LocalFile;
use super::log::Mark;
use super::record::{NO_NUMBER, check, get, put};
use crate::codec::keys::{DiskKeys, MAC_BYTES, is_mac, mac};

/// The file's name.
pub(super) const NAME: &str = "state";
/// Its size.
pub(super) const STATE_BYTES: u64 = 2 * SLOT as u64;
/// The most sessions that are kept.
pub(super) const MOST_SESSIONS: usize = (SEALED - SESSIONS) / 16;

/// The sizes that a segment may have: a place in it is 32 bits wide.
const SMALLEST: u64 = 4096;
const LARGEST: u64 = 1 << 30;

const SLOT: usize = 4096;
const CHECKED: usize = SLOT - 8;
const SEALED: usize = CHECKED - MAC_BYTES;
const SESSIONS: usize = 128;
const MAGIC: &[u8; 16] = b"bucketdisk jrnl\n";
const VERSION: u32 = 1;

/// Whose journal it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The disk's id.
    pub disk: u128,
    /// The disk's size in bytes: no record lies beyond it.
    pub size_bytes: u64,
}

/// What the file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct State {
    pub(super) generation: u64,
    pub(super) journal: u128,
    pub(super) owner: Owner,
    pub(super) segment_bytes: u64,
    pub(super) sessions: Vec<u128>,
    pub(super) tail: Mark,
    pub(super) reaches: u64,
    pub(super) durable: u64,
}

impl State {
    /// Whether the log has never begun, or has been given up.
    pub(super) fn is_empty(&self) -> bool {
        self.tail.segment == 0 && self.reaches == 0
    }

    /// Gives the log up. Numbers go on from those that were used.
    pub(super) fn empty(&mut self) {
        self.durable = self.durable.max(self.tail.record);
        self.tail = Mark {
            segment: 0,
            at: 0,
            record: self.tail.record,
            position: 0,
        };
        self.reaches = 0;
    }

    fn encode(&self, keys: Option<&DiskKeys>) -> Vec<u8> {
        let mut slot = vec![0; SLOT];
        slot[..16].copy_from_slice(MAGIC);
        slot[16..20].copy_from_slice(&VERSION.to_le_bytes());
        let count = self.sessions.len().min(MOST_SESSIONS);
        slot[20..24].copy_from_slice(&(count as u32).to_le_bytes());
        put(&mut slot, 24, self.generation);
        slot[32..48].copy_from_slice(&self.journal.to_le_bytes());
        slot[48..64].copy_from_slice(&self.owner.disk.to_le_bytes());
        put(&mut slot, 64, self.owner.size_bytes);
        put(&mut slot, 72, self.tail.segment);
        put(&mut slot, 80, self.tail.at);
        put(&mut slot, 88, self.tail.record);
        put(&mut slot, 96, self.reaches);
        put(&mut slot, 104, self.durable);
        put(&mut slot, 112, self.segment_bytes);
        for (n, session) in self.sessions[..count].iter().enumerate() {
            let at = SESSIONS + 16 * n;
            slot[at..at + 16].copy_from_slice(&session.to_le_bytes());
        }
        if let Some(keys) = keys {
            let mac = mac(&keys.journal_macs, &slot[..SEALED]);
            slot[SEALED..CHECKED].copy_from_slice(&mac);
        }
        let sum = check(&slot[..CHECKED], 0);
        put(&mut slot, CHECKED, sum);
        slot
    }

    /// Without the keys of an encrypted disk nobody can tell whether it was altered.
    fn decode(slot: &[u8], keys: Option<&DiskKeys>) -> Option<State> {
        let sound = slot.get(..16)? == MAGIC
            && slot.get(16..20)? == VERSION.to_le_bytes()
            && get(slot, CHECKED) == check(slot.get(..CHECKED)?, 0);
        if !sound {
            return None;
        }
        if let Some(keys) = keys
            && !is_mac(
                &keys.journal_macs,
                slot.get(..SEALED)?,
                slot.get(SEALED..CHECKED)?,
            )
        {
            return None;
        }
        let segment_bytes = get(slot, 112);
        let fits = (SMALLEST..=LARGEST).contains(&segment_bytes);
        if !fits || !segment_bytes.is_multiple_of(SMALLEST) {
            return None;
        }
        let numbers = [24, 72, 88, 96, 104].map(|at| get(slot, at));
        let plausible = numbers.iter().all(|number| *number < NO_NUMBER);
        if !plausible || get(slot, 80) > segment_bytes {
            return None;
        }
        let wide = |at: usize| Some(u128::from_le_bytes(slot.get(at..at + 16)?.try_into().ok()?));
        let count = u32::from_le_bytes(slot.get(20..24)?.try_into().ok()?);
        let count = usize::try_from(count)
            .ok()
            .filter(|n| *n <= MOST_SESSIONS)?;
        let sessions: Option<Vec<u128>> = (0..count).map(|n| wide(SESSIONS + 16 * n)).collect();
        Some(State {
            generation: get(slot, 24),
            journal: wide(32)?,
            owner: Owner {
                disk: wide(48)?,
                size_bytes: get(slot, 64),
            },
            segment_bytes,
            sessions: sessions?,
            tail: Mark {
                segment: get(slot, 72),
                at: get(slot, 80),
                record: get(slot, 88),
                position: 0,
            },
            reaches: get(slot, 96),
            durable: get(slot, 104),
        })
    }
}

/// The file, and what is durable in it.
#[derive(Debug, Clone)]
pub(super) struct StateFile {
    file: Arc<dyn LocalFile>,
    /// Those of an encrypted disk.
    keys: Option<Arc<DiskKeys>>,
    pub(super) state: State,
    /// It is known to be durable, and not only read from the file.
    durable: bool,
}

impl StateFile {
    /// Reads the file; `None` where neither slot is sound. `keys` are those of an encrypted disk.
    ///
    /// # Errors
    /// Those of the file system.
    pub(super) fn read(
        file: Arc<dyn LocalFile>,
        keys: Option<&Arc<DiskKeys>>,
    ) -> std::io::Result<Option<StateFile>> {
        let mut both = vec![0; 2 * SLOT];
        if file.len()? < both.len() as u64 {
            return Ok(None);
        }
        file.read_at(&mut both, 0)?;
        let newest = both
            .chunks(SLOT)
            .filter_map(|slot| State::decode(slot, keys.map(Arc::as_ref)))
            .max_by_key(|state| state.generation);
        Ok(newest.map(|state| StateFile {
            file,
            keys: keys.cloned(),
            state,
            durable: false,
        }))
    }

    /// Begins a file with its first state; durable when it returns. `keys` are those of an encrypted disk.
    ///
    /// # Errors
    /// Those of the file system.
    pub(super) fn begin(
        file: Arc<dyn LocalFile>,
        state: State,
        keys: Option<&Arc<DiskKeys>>,
    ) -> std::io::Result<StateFile> {
        let mut begun = StateFile {
            file,
            keys: keys.cloned(),
            state,
            durable: true,
        };
        begun.change(|_| {})?;
        Ok(begun)
    }

    /// Changes the state; durable when it returns.
    ///
    /// # Errors
    /// Those of the file system; then nobody knows which state a crash would leave: the old one or the new one.
    pub(super) fn change(&mut self, change: impl FnOnce(&mut State)) -> std::io::Result<()> {
        // Who wrote it may have been killed before it was. Then the other slot is what a crash leaves, and is not to be written.
        self.secure()?;
        let mut next = self.state.clone();
        change(&mut next);
        next.generation += 1;
        self.write(&next)?;
        self.state = next;
        Ok(())
    }

    /// Makes the state durable, where it is only known to have been read.
    ///
    /// # Errors
    /// Those of the file system.
    pub(super) fn secure(&mut self) -> std::io::Result<()> {
        if !self.durable {
            self.write(&self.state)?;
            self.durable = true;
        }
        Ok(())
    }

    fn write(&self, state: &State) -> std::io::Result<()> {
        let at = state.generation % 2 * SLOT as u64;
        let slot = state.encode(self.keys.as_deref());
        self.file.write_at(&[&slot], at)?;
        self.file.sync()
    }
}

#[cfg(test)]
mod tests {
    use super::super::directory::Directory;
    use super::super::files::LocalFiles;
    use super::*;

    fn state(generation: u64) -> State {
        State {
            generation,
            journal: 1 << 100,
            owner: Owner {
                disk: 2 << 100,
                size_bytes: 3,
            },
            segment_bytes: 8192,
            sessions: vec![4 << 100, 5],
            tail: Mark {
                segment: 6,
                at: 7,
                record: 8,
                position: 0,
            },
            reaches: 9,
            durable: 10,
        }
    }

    #[test]
    fn the_last_change_counts_and_with_its_slot_torn_the_one_before() {
        let root = tempfile::tempdir().expect("directory");
        let file = Directory::new(root.path())
            .create(NAME, STATE_BYTES)
            .expect("creates");
        let read = || StateFile::read(Arc::clone(&file), None).expect("reads");
        assert!(read().is_none());
        let mut begun = StateFile::begin(Arc::clone(&file), state(1), None).expect("begins");
        begun.change(|s| s.durable = 11).expect("changes");
        let found = read().expect("is there").state;
        assert_eq!(found.durable, 11);
        assert_eq!(
            found,
            State {
                durable: 11,
                ..state(3)
            }
        );
        // Generation 3 lies in the second slot.
        file.write_at(&[b"torn"], SLOT as u64 + 2000)
            .expect("writes");
        assert_eq!(read().expect("is there").state, state(2));
        file.write_at(&[b"torn"], 2000).expect("writes");
        assert!(read().is_none());
    }
}
