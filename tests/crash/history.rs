//! What a file system may show after a crash: the history of one writer's names and contents, and what each kind of file system
//! promises of them.
//!
//! All three: a sector of a file is what a write of this file put there since the file was last made durable, or what it was then;
//! or zeros where the file did not reach, or was cut off, meanwhile. Never another file's data, never anything older. The size lies
//! between the smallest and the largest since then. So a file that was made durable and left alone is exactly that.
//!
//! A completed fsync makes a file's content durable, and the name it was last given. A completed fsync of a folder makes the names
//! in it durable, a completed sync everything.
//!
//! Names: ext4 and XFS log their changes in the order in which they were made, so the names after a crash are those of *one* moment,
//! not before the last one that was made durable. btrfs promises that of a sync only: fsync writes the one file's names ahead of the
//! others, so each name is what it was at *a* moment since it was made durable, and a file that was made durable is where it was
//! then or later.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::content::Content;

/// A name's meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Node {
    Folder,
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

#[derive(Debug)]
pub struct History {
    /// Whether names come back as they were at one moment.
    ordered: bool,
    /// The names before all changes, and now.
    base: Names,
    now: Names,
    changes: Vec<Change>,
    /// This many changes are durable...
    durable: usize,
    /// ... and as far as these names go, this many.
    durable_names: BTreeMap<String, usize>,
    /// Files that were made durable, with the number of changes at their last name.
    held: BTreeMap<u32, usize>,
    files: BTreeMap<u32, Content>,
    next_file: u32,
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
    /// Of an empty folder. `first_file` is the first number that files get.
    pub fn new(ordered: bool, first_file: u32) -> History {
        History {
            ordered,
            base: Names::new(),
            now: Names::new(),
            changes: Vec::new(),
            durable: 0,
            durable_names: BTreeMap::new(),
            held: BTreeMap::new(),
            files: BTreeMap::new(),
            next_file: first_file,
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
        self.next_file += 1;
        self.files.insert(self.next_file, Content::default());
        self.next_file
    }

    /// A change of names is about to be made.
    pub fn change(&mut self, change: Change) {
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
        match self.ordered {
            true => self.durable = self.durable.max(named),
            false => {
                self.held.insert(file, named.max(self.durable));
            }
        }
    }

    /// An fsync of a folder has been acknowledged.
    pub fn folder_synced(&mut self, folder: &str) {
        if self.ordered {
            let in_it = |change: &Change| match change {
                Change::Make(path, _) | Change::Remove(path) => parent(path) == folder,
                Change::Move(from, to) => parent(from) == folder || parent(to) == folder,
            };
            let last = self.changes.iter().rposition(in_it).map_or(0, |at| at + 1);
            self.durable = self.durable.max(last);
            return;
        }
        let changed = self.changes.iter().flat_map(|change| match change {
            Change::Make(path, _) | Change::Remove(path) => vec![path],
            Change::Move(from, to) => vec![from, to],
        });
        let paths: BTreeSet<&String> = self.base.keys().chain(changed).collect();
        for path in paths {
            if parent(path) == folder {
                self.durable_names.insert(path.clone(), self.changes.len());
            }
        }
    }

    /// A sync of everything has been acknowledged.
    pub fn all_synced(&mut self) {
        self.durable = self.changes.len();
        self.durable_names.clear();
        self.held.clear();
        self.files.values_mut().for_each(Content::settle);
    }

    /// Compares what was found after a crash, and goes on from there.
    ///
    /// # Errors
    /// What the file system had promised otherwise.
    pub fn check(&mut self, found: &BTreeMap<String, Found>) -> Result<(), String> {
        let numbered = match self.ordered {
            true => self.one_moment(found)?,
            false => self.each_name(found)?,
        };
        *self = History::new(self.ordered, self.next_file);
        for (path, what) in found {
            let Found::File(_, sectors) = what else {
                self.base.insert(path.clone(), Node::Folder);
                continue;
            };
            let file = match numbered.get(path) {
                Some(file) => *file,
                None => self.new_file(),
            };
            self.files.insert(file, Content::new(sectors.clone()));
            self.base.insert(path.clone(), Node::File(file));
        }
        self.now = self.base.clone();
        Ok(())
    }

    /// Looks for the moment whose names were found; answers the files' numbers.
    fn one_moment(&self, found: &BTreeMap<String, Found>) -> Result<BTreeMap<String, u32>, String> {
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
                return Ok(files(&names));
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

    /// Looks at each name by itself; answers the numbers of files that tell them.
    fn each_name(&self, found: &BTreeMap<String, Found>) -> Result<BTreeMap<String, u32>, String> {
        let mut names = self.base.clone();
        let mut places: BTreeMap<u32, Vec<Option<String>>> = BTreeMap::new();
        let mut every: BTreeSet<String> = found.keys().cloned().collect();
        every.extend(names.keys().cloned());
        let mut later = names.clone();
        for change in &self.changes {
            apply(&mut later, change);
            every.extend(later.keys().cloned());
        }
        let mut meanings: BTreeMap<String, Vec<Option<Node>>> =
            every.into_iter().map(|path| (path, Vec::new())).collect();
        for at in 0..=self.changes.len() {
            if at > 0 {
                apply(&mut names, &self.changes[at - 1]);
            }
            for (path, meanings) in &mut meanings {
                let durable = self.durable_names.get(path).copied().unwrap_or(0);
                if at >= self.durable.max(durable) {
                    note(meanings, names.get(path).copied());
                }
            }
            for (file, _) in self.held.iter().filter(|(_, since)| at >= **since) {
                let place = names.iter().find(|(_, node)| **node == Node::File(*file));
                note(
                    places.entry(*file).or_default(),
                    place.map(|(path, _)| path.clone()),
                );
            }
        }
        for (path, meanings) in &meanings {
            let wrong: Vec<String> = meanings
                .iter()
                .map(|named| self.fits(named.as_ref(), found.get(path)))
                .map_while(Result::err)
                .collect();
            if wrong.len() == meanings.len() {
                return Err(format!("{path}: {}", wrong.join("; or ")));
            }
        }
        let mut numbers = BTreeMap::new();
        let mut at_path: BTreeMap<u32, &String> = BTreeMap::new();
        for (path, what) in found {
            if let Found::File(Some(file), _) = what {
                numbers.insert(path.clone(), *file);
                if let Some(other) = at_path.insert(*file, path) {
                    return Err(format!("file {file} is both {other} and {path}"));
                }
            }
        }
        for (file, places) in &places {
            let place = at_path.get(file).map(|path| (*path).clone());
            let nameless = self.files[file]
                .durable
                .iter()
                .all(|generation| *generation == 0);
            if !nameless && !places.contains(&place) {
                return Err(format!(
                    "file {file} was synced at one of {places:?} and is at {place:?}"
                ));
            }
        }
        Ok(numbers)
    }

    /// Whether what was found can be what was named.
    fn fits(&self, named: Option<&Node>, found: Option<&Found>) -> Result<(), String> {
        match (named, found) {
            (None, None) | (Some(Node::Folder), Some(Found::Folder)) => Ok(()),
            (Some(Node::File(file)), Some(Found::File(number, sectors))) => {
                if number.is_some_and(|number| number != *file) {
                    return Err(format!("is file {number:?} instead of {file}"));
                }
                let content = &self.files[file];
                content
                    .fits(sectors)
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

fn files(names: &Names) -> BTreeMap<String, u32> {
    let file = |(path, node): (&String, &Node)| match node {
        Node::File(file) => Some((path.clone(), *file)),
        Node::Folder => None,
    };
    names.iter().filter_map(file).collect()
}

fn note<T: PartialEq>(all: &mut Vec<T>, one: T) {
    if !all.contains(&one) {
        all.push(one);
    }
}
