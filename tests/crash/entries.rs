//! Names as btrfs keeps them over a crash: each entry of a folder by itself. A folder is known by its number and not by its path, for
//! what is done in a folder may last where the folder's own renaming does not.

use std::collections::{BTreeMap, BTreeSet};

use crate::history::{Change, Found, Names, Node, parent};

/// How the message begins where a file that was renamed is found under its old and its new name.
pub const TWO_NAMES: &str = "two names: ";

/// The number of the folder that an entry is in, and its name there.
type Entry = (u32, String);

/// The writer's own folder.
const ROOT: u32 = 0;

#[derive(Debug, Default)]
pub struct Entries {
    base: BTreeMap<Entry, Node>,
    /// What each change made of entries.
    changes: Vec<Vec<(Entry, Option<Node>)>>,
    /// So many changes are durable...
    durable: usize,
    /// ... and so many, of these entries.
    durable_entries: BTreeMap<Entry, usize>,
    /// Files that were made durable, with the number of changes when each had the name that it was last given.
    held: BTreeMap<u32, usize>,
}

fn entry(names: &Names, path: &str) -> Entry {
    let folder = match names.get(parent(path)) {
        Some(Node::Folder(number) | Node::File(number)) => *number,
        None => ROOT,
    };
    let name = path.rsplit('/').next().unwrap_or(path);
    (folder, name.to_owned())
}

fn note<T: PartialEq>(all: &mut Vec<T>, one: T) {
    if !all.contains(&one) {
        all.push(one);
    }
}

impl Entries {
    pub fn new(base: &Names) -> Entries {
        Entries {
            base: base
                .iter()
                .map(|(path, node)| (entry(base, path), *node))
                .collect(),
            ..Entries::default()
        }
    }

    /// A change of names is about to be made, where these are the names.
    pub fn change(&mut self, names: &Names, change: &Change) {
        self.changes.push(match change {
            Change::Make(path, node) => vec![(entry(names, path), Some(*node))],
            Change::Remove(path) => vec![(entry(names, path), None)],
            Change::Move(from, to) => vec![
                (entry(names, from), None),
                (entry(names, to), names.get(from).copied()),
            ],
        });
    }

    /// An fsync of a file has been acknowledged, which got its name with change `named`.
    pub fn file_synced(&mut self, file: u32, named: usize) {
        self.held.insert(file, named.max(self.durable));
    }

    /// An fsync of a folder has been acknowledged.
    pub fn folder_synced(&mut self, names: &Names, folder: &str) {
        let number = entry(names, &format!("{folder}/")).0;
        let changed = self.changes.iter().flatten().map(|(entry, _)| entry);
        let inside: BTreeSet<Entry> = changed
            .chain(self.base.keys())
            .filter(|(folder, _)| *folder == number)
            .cloned()
            .collect();
        for entry in inside {
            self.durable_entries.insert(entry, self.changes.len());
        }
    }

    /// A sync of everything has been acknowledged.
    pub fn all_synced(&mut self) {
        self.durable = self.changes.len();
        self.durable_entries.clear();
        self.held.clear();
    }

    /// Compares what was found after a crash; answers what each path is. `fits` compares a file's content.
    ///
    /// # Errors
    /// What is not as it was at any moment since it was made durable.
    pub fn check(
        &self,
        found: &BTreeMap<String, Found>,
        fits: impl Fn(Option<&Node>, Option<&Found>) -> Result<(), String>,
    ) -> Result<Names, String> {
        let meanings = self.meanings();
        let mut names = Names::new();
        let mut at: BTreeMap<Entry, &String> = BTreeMap::new();
        let mut places: BTreeMap<Node, Entry> = BTreeMap::new();
        // A folder comes before what is in it.
        for (path, what) in found {
            let entry = entry(&names, path);
            let could_be = meanings.get(&entry).map_or(&[None][..], Vec::as_slice);
            let is = could_be
                .iter()
                .find(|meant| fits(meant.as_ref(), Some(what)).is_ok());
            let Some(Some(node)) = is else {
                let wrong = could_be
                    .iter()
                    .filter_map(|meant| fits(meant.as_ref(), Some(what)).err());
                let wrong: Vec<String> = wrong.collect();
                return Err(format!("{path}: {}", wrong.join("; or ")));
            };
            // Which file it is that is empty, nobody can tell.
            let tells = !matches!(what, Found::File(None, _));
            if tells && let Some(other) = places.insert(*node, entry.clone()) {
                return Err(format!("{TWO_NAMES}{node:?} is both {other:?} and {path}"));
            }
            names.insert(path.clone(), *node);
            at.insert(entry, path);
        }
        let folders: BTreeSet<u32> = names
            .values()
            .filter_map(|node| match node {
                Node::Folder(number) => Some(*number),
                Node::File(_) => None,
            })
            .chain([ROOT])
            .collect();
        for (entry, could_be) in &meanings {
            let missing = folders.contains(&entry.0) && !at.contains_key(entry);
            if missing && !could_be.contains(&None) {
                return Err(format!("{entry:?} is missing: {could_be:?}"));
            }
        }
        for (file, could_be) in self.places() {
            let place = places.get(&Node::File(file)).cloned();
            let nothing = Found::File(None, Vec::new());
            let empty = fits(Some(&Node::File(file)), Some(&nothing)).is_ok();
            if !could_be.contains(&place) && (place.is_some() || !empty) {
                return Err(format!(
                    "file {file} was synced at one of {could_be:?} and is at {place:?}"
                ));
            }
        }
        Ok(names)
    }

    /// What each entry has been since it was made durable.
    fn meanings(&self) -> BTreeMap<Entry, Vec<Option<Node>>> {
        let mut meanings: BTreeMap<Entry, Vec<Option<Node>>> = BTreeMap::new();
        let changed = self.changes.iter().flatten().map(|(entry, _)| entry);
        for entry in changed.chain(self.base.keys()) {
            let first = vec![self.base.get(entry).copied()];
            meanings.entry(entry.clone()).or_insert(first);
        }
        for (number, changes) in self.changes.iter().enumerate() {
            for (entry, node) in changes {
                let Some(meanings) = meanings.get_mut(entry) else {
                    continue;
                };
                let durable = self.durable_entries.get(entry).copied();
                if number < durable.unwrap_or(0).max(self.durable) {
                    meanings.clear();
                }
                note(meanings, *node);
            }
        }
        meanings
    }

    /// Where each file has been since it was made durable; `None` where it was removed.
    fn places(&self) -> BTreeMap<u32, Vec<Option<Entry>>> {
        let mut now: BTreeMap<Entry, Node> = self.base.clone();
        let mut places: BTreeMap<u32, Vec<Option<Entry>>> = BTreeMap::new();
        for at in 0..=self.changes.len() {
            if let Some(changes) = at.checked_sub(1).and_then(|last| self.changes.get(last)) {
                for (entry, node) in changes {
                    match node {
                        Some(node) => now.insert(entry.clone(), *node),
                        None => now.remove(entry),
                    };
                }
            }
            for (file, _) in self.held.iter().filter(|(_, since)| at >= **since) {
                let place = now.iter().find(|(_, node)| **node == Node::File(*file));
                let place = place.map(|(entry, _)| entry.clone());
                note(places.entry(*file).or_default(), place);
            }
        }
        places
    }
}
