//! What a file system may show after a crash: the history of one writer's names and contents, and what each kind of file system
//! promises of them.
//!
//! All three: a sector of a file is what a write of this file put there since the file was last made durable, or what it was then;
//! or zeros where the file did not reach, or was cut off, meanwhile. Never another file's data, never anything older. The size lies
//! between the smallest and the largest since then. So a file that was made durable and left alone is exactly that.
//!
//! ext4 adds one thing: a file that is written on within its last page gets its new size before that page is
//! written, so the rest of that page may show what an earlier crash had left behind the file's end: an older write of the same
//! file, which had reached the disk when its size had not. (So it does on any disk; XFS and btrfs write the page first.)
//!
//! A completed fsync makes a file's content durable, and the name it was last given. A completed fsync of a folder makes the names
//! in it durable, a completed sync everything.
//!
//! Names: ext4 and XFS log their changes in the order in which they were made, so the names after a crash are those of *one* moment,
//! not before the last one that was made durable. btrfs promises that of a sync only: fsync writes the one file's names ahead of the
//! others, so each entry of a folder is what it was at *a* moment since it was made durable, and a file that was made durable is where it
//! was then or later.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::content::Content;
use crate::entries::Entries;

/// Changes that are shown where something is wrong.
const SHOWN: usize = 60;

/// A name's meaning: a folder or file by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Node {
    Folder(u32),
    File(u32),
}

/// Paths below the writer's folder.
pub type Names = BTreeMap<String, Node>;

/// A change of names.
#[derive(Debug, Clone)]
pub enum Change {
    Make(String, Node),
    Remove(String),
    /// What had the second name is replaced; what is below the first goes along.
    Move(String, String),
}

/// What was found at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    Folder,
    /// The generation of each sector, 0 for zeros; the file's number, where any sector tells it.
    File(Option<u32>, Vec<u32>),
}

/// What kinds of file systems promise differently.
#[derive(Debug, Clone, Copy)]
pub struct Promise {
    /// Names come back as they were at one moment.
    pub one_moment: bool,
    /// The rest of a file's last page may come back older.
    pub stale_tail: bool,
}

#[derive(Debug)]
pub struct History {
    promise: Promise,
    /// The names before all changes, and now.
    base: Names,
    now: Names,
    changes: Vec<Change>,
    /// This many changes are durable.
    durable: usize,
    /// Where names come back each by itself: what counts there.
    entries: Entries,
    files: BTreeMap<u32, Content>,
    last_number: u32,
}

/// The folder that a path is in.
pub fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

fn below<'a>(path: &'a str, folder: &str) -> Option<&'a str> {
    path.strip_prefix(folder)?.strip_prefix('/')
}

fn apply(names: &mut Names, change: &Change) {
    match change {
        Change::Make(path, node) => {
            names.insert(path.clone(), *node);
        }
        Change::Remove(path) => {
            names.remove(path);
        }
        Change::Move(from, to) => {
            let moved: Vec<String> = names
                .keys()
                .filter(|path| *path == from || below(path, from).is_some())
                .cloned()
                .collect();
            for path in moved {
                if let Some(node) = names.remove(&path) {
                    names.insert(format!("{to}{}", &path[from.len()..]), node);
                }
            }
        }
    }
}

impl History {
    /// Of an empty folder. Files and folders get numbers beyond `after`.
    pub fn new(promise: Promise, after: u32) -> History {
        History {
            promise,
            base: Names::new(),
            now: Names::new(),
            changes: Vec::new(),
            durable: 0,
            entries: Entries::default(),
            files: BTreeMap::new(),
            last_number: after,
        }
    }

    pub fn names(&self) -> &Names {
        &self.now
    }

    /// A file's length in sectors.
    pub fn length(&self, file: u32) -> usize {
        self.files[&file].now.len()
    }

    pub fn new_file(&mut self) -> u32 {
        let file = self.number();
        self.files.insert(file, Content::default());
        file
    }

    /// A number that nothing has yet.
    pub fn number(&mut self) -> u32 {
        self.last_number += 1;
        self.last_number
    }

    /// A change of names is about to be made.
    pub fn change(&mut self, change: Change) {
        self.entries.change(&self.now, &change);
        apply(&mut self.now, &change);
        self.changes.push(change.clone());
        if let Change::Make(path, _) | Change::Move(_, path) = change
            && let Some(Node::File(file)) = self.now.get(&path)
        {
            self.file(*file).named = self.changes.len();
        }
    }

    /// Sectors of a file are about to be written, from within it or its end.
    pub fn write(&mut self, file: u32, sectors: Range<usize>, generation: u32) {
        self.file(file).write(sectors, generation);
    }

    /// A file is about to get another length.
    pub fn resize(&mut self, file: u32, length: usize) {
        self.file(file).resize(length);
    }

    fn file(&mut self, file: u32) -> &mut Content {
        self.files.get_mut(&file).expect("a file of this history")
    }

    /// An fsync of a file has been acknowledged.
    pub fn file_synced(&mut self, file: u32) {
        let content = self.file(file);
        content.settle();
        let named = content.named;
        self.durable = self.durable.max(named);
        self.entries.file_synced(file, named);
    }

    /// An fsync of a folder has been acknowledged.
    pub fn folder_synced(&mut self, folder: &str) {
        let in_it = |change: &Change| match change {
            Change::Make(path, _) | Change::Remove(path) => parent(path) == folder,
            Change::Move(from, to) => parent(from) == folder || parent(to) == folder,
        };
        let last = self.changes.iter().rposition(in_it).map_or(0, |at| at + 1);
        self.durable = self.durable.max(last);
        self.entries.folder_synced(&self.now, folder);
    }

    /// A sync of everything has been acknowledged.
    pub fn all_synced(&mut self) {
        self.durable = self.changes.len();
        self.entries.all_synced();
        self.files.values_mut().for_each(Content::settle);
    }

    /// Compares what was found after a crash, and goes on from there.
    ///
    /// # Errors
    /// What the file system had promised otherwise.
    pub fn check(&mut self, found: &BTreeMap<String, Found>) -> Result<(), String> {
        let fits = |named: Option<&Node>, found: Option<&Found>| self.fits(named, found);
        let names = match self.promise.one_moment {
            true => self.one_moment(found),
            false => self.entries.check(found, fits),
        };
        let names = names.map_err(|error| {
            let last = self.changes.len().saturating_sub(SHOWN);
            format!(
                "{error}; the changes from {last} on: {:?}",
                &self.changes[last..]
            )
        })?;
        self.files.clear();
        self.base.clear();
        for (path, what) in found {
            let node = match what {
                Found::Folder => names.get(path).copied(),
                // An empty file may be any: from here on it is one of its own.
                Found::File(number, _) => number.map(Node::File),
            };
            let node = node.unwrap_or_else(|| Node::File(self.number()));
            if let (Node::File(file), Found::File(_, sectors)) = (node, what) {
                self.files.insert(file, Content::new(sectors.clone()));
            }
            self.base.insert(path.clone(), node);
        }
        self.now.clone_from(&self.base);
        self.entries = Entries::new(&self.base);
        self.changes.clear();
        self.durable = 0;
        Ok(())
    }

    /// Looks for the moment whose names were found; answers these.
    fn one_moment(&self, found: &BTreeMap<String, Found>) -> Result<Names, String> {
        let mut names = self.base.clone();
        let mut nearest: Option<(usize, String)> = None;
        for at in 0..=self.changes.len() {
            if at > 0 {
                apply(&mut names, &self.changes[at - 1]);
            }
            if at < self.durable {
                continue;
            }
            let paths: BTreeSet<&String> = names.keys().chain(found.keys()).collect();
            let wrong: Vec<String> = paths
                .into_iter()
                .filter_map(|path| {
                    let (named, found) = (names.get(path), found.get(path));
                    self.fits(named, found)
                        .err()
                        .map(|e| format!("{path}: {e}"))
                })
                .collect();
            if wrong.is_empty() {
                return Ok(names);
            }
            if nearest
                .as_ref()
                .is_none_or(|(count, _)| wrong.len() < *count)
            {
                let text = format!("after change {at}: {}", wrong.join("; "));
                nearest = Some((wrong.len(), text));
            }
        }
        Err(format!(
            "the names of no moment from change {} to {}; the nearest is {}",
            self.durable,
            self.changes.len(),
            nearest.map_or_else(String::new, |(_, text)| text)
        ))
    }

    /// Whether what was found can be what was named.
    fn fits(&self, named: Option<&Node>, found: Option<&Found>) -> Result<(), String> {
        match (named, found) {
            (None, None) | (Some(Node::Folder(_)), Some(Found::Folder)) => Ok(()),
            (Some(Node::File(file)), Some(Found::File(number, sectors))) => {
                if number.is_some_and(|number| number != *file) {
                    return Err(format!("is file {number:?} instead of {file}"));
                }
                let content = &self.files[file];
                content
                    .fits(sectors, self.promise.stale_tail)
                    .map_err(|e| format!("file {file}: {e}"))
            }
            (named, None) => Err(format!("{named:?} is missing")),
            (named, Some(Found::Folder)) => Err(format!("a folder instead of {named:?}")),
            (named, Some(Found::File(number, sectors))) => Err(format!(
                "file {number:?} of {} sectors instead of {named:?}",
                sectors.len()
            )),
        }
    }
}
