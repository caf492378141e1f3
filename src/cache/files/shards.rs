//! Where the files are, what they take, and which of them go first.
//!
//! No index is kept in memory: a file's name is its key, its times are its history. It was read since it was kept if its access
//! time is later than its modification time. Each folder's bytes are a running figure, which looking into the folder puts right.

use std::fs::{DirBuilder, DirEntry};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use crate::block::{BlockIndex, Seq};

/// Folders, by the last byte of the index: neighbours are spread, so that all are of about one size.
pub(super) const SHARDS: usize = 256;
/// What a file takes of the disk is rounded up to this.
const PAGE: u64 = 4096;
/// How many files are looked at, at least, to find the ones that go first.
const SAMPLE: usize = 128;

/// Which object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) index: BlockIndex,
    pub(super) version: Seq,
}

impl Key {
    fn shard(self) -> usize {
        usize::from(self.index.0.to_le_bytes()[0])
    }

    fn name(self) -> String {
        format!("{:010x}.{:08x}", self.index.0, self.version.0)
    }

    /// The key of a file name; `None` where it is no name that [`Key::name`] makes.
    fn parse(name: &str) -> Option<Key> {
        let (index, version) = name.split_once('.')?;
        let key = Key {
            index: BlockIndex(u64::from_str_radix(index, 16).ok()?),
            version: Seq(u32::from_str_radix(version, 16).ok()?),
        };
        (key.name() == name).then_some(key)
    }
}

/// What an object of so many bytes takes of the limit.
pub(super) fn cost(object_bytes: u64) -> u64 {
    object_bytes
        .max(1)
        .checked_next_multiple_of(PAGE)
        .unwrap_or(u64::MAX)
}

/// A file as it was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) key: Key,
    /// What it takes.
    pub(super) cost: u64,
    /// When it was written.
    pub(super) kept: SystemTime,
    /// When it was last read, if that is later.
    pub(super) used: SystemTime,
}

impl Entry {
    fn was_used(&self) -> bool {
        self.used > self.kept
    }
}

/// The folders, and what is in each.
#[derive(Debug)]
pub(super) struct Shards {
    root: PathBuf,
    bytes: [AtomicU64; SHARDS],
}

impl Shards {
    pub(super) fn new(root: PathBuf) -> Shards {
        Shards {
            root,
            bytes: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    pub(super) fn path(&self, key: Key) -> PathBuf {
        self.folder(key.shard()).join(key.name())
    }

    fn folder(&self, shard: usize) -> PathBuf {
        self.root.join(format!("{shard:02x}"))
    }

    /// Makes the folder of a key.
    pub(super) fn make_folder(&self, key: Key) -> io::Result<()> {
        let mut maker = DirBuilder::new();
        maker
            .recursive(true)
            .mode(0o700)
            .create(self.folder(key.shard()))
    }

    /// What all files take, as far as is known.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.iter().map(|b| b.load(Ordering::Relaxed)).sum()
    }

    /// Notes that a file has come, or has grown or shrunk.
    pub(super) fn note(&self, key: Key, before: u64, after: u64) {
        let bytes = &self.bytes[key.shard()];
        let now = bytes
            .load(Ordering::Relaxed)
            .saturating_sub(before)
            .saturating_add(after);
        bytes.store(now, Ordering::Relaxed);
    }

    /// What is in a folder. Names that are none of ours are passed over.
    pub(super) fn look(&self, shard: usize) -> io::Result<Vec<Entry>> {
        let found = match std::fs::read_dir(self.folder(shard)) {
            Ok(entries) => entries
                .filter_map(|entry| described(&entry.ok()?))
                .filter(|entry| entry.key.shard() == shard)
                .collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let bytes = found.iter().map(|entry: &Entry| entry.cost).sum();
        self.bytes[shard].store(bytes, Ordering::Relaxed);
        Ok(found)
    }

    /// Removes a file and answers what it took; 0 where there is none.
    pub(super) fn remove(&self, key: Key) -> io::Result<u64> {
        let path = self.path(key);
        let removed = length(&path).and_then(|bytes| match bytes {
            None => Ok(0),
            Some(bytes) => std::fs::remove_file(&path).map(|()| cost(bytes)),
        });
        match removed {
            Ok(freed) => {
                self.note(key, freed, 0);
                Ok(freed)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Removes what goes first until that much is free, or nothing is left in the fullest folders. Answers what became free.
    pub(super) fn evict(&self, wanted: u64) -> io::Result<u64> {
        let mut fullest: Vec<(u64, usize)> = self
            .bytes
            .iter()
            .map(|bytes| bytes.load(Ordering::Relaxed))
            .zip(0..)
            .filter(|(bytes, _)| *bytes > 0)
            .collect();
        fullest.sort_unstable_by(|a, b| b.cmp(a));
        let (mut found, mut vanished) = (Vec::new(), 0);
        for (believed, shard) in fullest {
            let entries = self.look(shard)?;
            vanished += believed.saturating_sub(self.bytes[shard].load(Ordering::Relaxed));
            found.extend(entries);
            if found.len() >= SAMPLE {
                break;
            }
        }
        let mut freed = vanished;
        for key in first_to_go(found, wanted.saturating_sub(vanished)) {
            freed += self.remove(key)?;
        }
        Ok(freed)
    }
}

fn described(entry: &DirEntry) -> Option<Entry> {
    let key = Key::parse(entry.file_name().to_str()?)?;
    let metadata = entry.metadata().ok().filter(|m| m.is_file())?;
    Some(Entry {
        key,
        cost: cost(metadata.len()),
        kept: metadata.modified().ok()?,
        used: metadata.accessed().ok()?,
    })
}

/// The length of a file; `None` where there is none.
pub(super) fn length(path: &Path) -> io::Result<Option<u64>> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata.len())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Which of some files go first, to make that much room and an eighth of what they take, so that it is some time before they are
/// looked at again.
///
/// What was read since it was kept may take three quarters; of the rest the oldest goes. So one pass over more than the cache holds,
/// which reads each block once, does not push out what is read again and again.
fn first_to_go(mut entries: Vec<Entry>, wanted: u64) -> Vec<Key> {
    let mut left: u64 = entries.iter().map(|entry| entry.cost).sum();
    let wanted = wanted.max(left / 8);
    entries.sort_unstable_by_key(|entry| (entry.kept.max(entry.used), entry.key));
    let (used, unused): (Vec<Entry>, Vec<Entry>) = entries.into_iter().partition(Entry::was_used);
    let mut used_bytes: u64 = used.iter().map(|entry| entry.cost).sum();
    let (mut used, mut unused) = (used.into_iter(), unused.into_iter());
    let (mut chosen, mut freed) = (Vec::new(), 0);
    while freed < wanted {
        let from_used = used_bytes > left / 4 * 3;
        let next = match from_used {
            true => used.next().or_else(|| unused.next()),
            false => unused.next().or_else(|| used.next()),
        };
        let Some(entry) = next else { break };
        if entry.was_used() {
            used_bytes -= entry.cost;
        }
        left -= entry.cost;
        freed += entry.cost;
        chosen.push(entry.key);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn entry(index: u64, kept: u64, used: Option<u64>) -> Entry {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        Entry {
            key: Key {
                index: BlockIndex(index),
                version: Seq(1),
            },
            cost: PAGE,
            kept: at(kept),
            used: at(used.unwrap_or(kept)),
        }
    }

    fn gone(entries: Vec<Entry>, pages: u64) -> Vec<u64> {
        let keys = first_to_go(entries, pages * PAGE);
        keys.into_iter().map(|key| key.index.0).collect()
    }

    #[test]
    fn names_are_keys_and_nothing_else_is_a_name() {
        let key = Key {
            index: BlockIndex(0xab_cdef_0123),
            version: Seq(0x89),
        };
        assert_eq!(key.name(), "abcdef0123.00000089");
        assert_eq!(Key::parse(&key.name()), Some(key));
        for other in [
            "",
            "new",
            "abcdef0123.89",
            "ABCDEF0123.00000089",
            "+bcdef0123.00000089",
        ] {
            assert_eq!(Key::parse(other), None, "{other}");
        }
    }

    #[test]
    fn what_was_never_read_again_goes_first_and_of_that_the_oldest() {
        let entries = vec![
            entry(0, 10, Some(500)),
            entry(1, 30, None),
            entry(2, 20, None),
            entry(3, 40, None),
        ];
        assert_eq!(gone(entries, 2), [2, 1]);
    }

    #[test]
    fn what_was_read_again_takes_three_quarters_at_most() {
        let mut entries: Vec<Entry> = (0..12).map(|i| entry(i, 1, Some(100 + i))).collect();
        entries.extend([entry(20, 900, None), entry(21, 901, None)]);
        assert_eq!(gone(entries, 3), [0, 1, 2], "the longest unused of those");
    }

    #[test]
    fn an_eighth_goes_at_least_and_never_more_than_there_is() {
        let entries = || (0..16).map(|i| entry(i, i, None)).collect::<Vec<_>>();
        assert_eq!(gone(entries(), 1), [0, 1]);
        assert_eq!(gone(entries(), 99).len(), 16);
        assert!(gone(Vec::new(), 1).is_empty());
    }
}
