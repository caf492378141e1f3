//! A writer of stamped files: makes, overwrites, appends to, cuts off, renames and deletes them, alone and as a copier of trees does,
//! and has some of it made durable. It notes in its history what it is about to do before it does it.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rand::RngExt;
use rand::rngs::SmallRng;

use crate::history::{Change, Found, History, Node, parent};
use crate::pulse::Pulse;
use crate::stamps::{SECTOR, Stamps, file_of};

/// About as many names as there are at most, and sectors in a file.
const NAMES: usize = 60;
const LONG: usize = 1000;

#[derive(Debug)]
pub struct Writer {
    /// Where its folder is, on whatever mount.
    name: String,
    pub history: History,
    random: SmallRng,
    stamps: Stamps,
    generation: u32,
    serial: u32,
}

type Step = Result<(), String>;

fn told<T>(what: &str, path: &Path, outcome: std::io::Result<T>) -> Result<T, String> {
    outcome.map_err(|error| format!("{what} {}: {error}", path.display()))
}

impl Writer {
    pub fn new(name: &str, history: History, random: SmallRng, stamps: Stamps) -> Writer {
        Writer {
            name: name.to_owned(),
            history,
            random,
            stamps,
            generation: 0,
            serial: 0,
        }
    }

    /// The writer's folder on a mount.
    pub fn folder(&self, files: &Path) -> PathBuf {
        files.join(&self.name)
    }

    /// Works until it is told to stop.
    pub fn work(&mut self, files: &Path, pulse: &Pulse) -> Step {
        let root = self.folder(files);
        pulse.run(|| {
            // As busy as several people, and not as a benchmark: it is the moments that count.
            std::thread::sleep(Duration::from_micros(self.random.random_range(0..1500)));
            self.step(&root, pulse)
        })
    }

    fn step(&mut self, root: &Path, pulse: &Pulse) -> Step {
        if self.history.names().len() > NAMES {
            return self.remove_any(root);
        }
        match self.random.random_range(0..100) {
            0..22 => self.make(root).map(drop),
            22..40 => self.overwrite(root),
            40..50 => self.append(root),
            50..57 => self.resize(root),
            57..63 => self.replace(root, pulse),
            63..70 => self.rename(root),
            70..73 => self.rename_folder(root),
            73..79 => self.remove_any(root),
            79..90 => self.sync_file(root, pulse),
            90..93 => self.sync_folder(root, pulse),
            93..95 => self.sync_all(root, pulse),
            95..98 => self.copy_tree(root),
            _ => self.remove_tree(root),
        }
    }

    fn fresh_name(&mut self, folder: &str, kind: &str) -> String {
        self.serial += 1;
        match folder {
            "" => format!("{kind}{}", self.serial),
            folder => format!("{folder}/{kind}{}", self.serial),
        }
    }

    fn any(&mut self, wanted: impl Fn(&Node) -> bool) -> Option<(String, Node)> {
        let names: Vec<(&String, &Node)> = self
            .history
            .names()
            .iter()
            .filter(|(_, node)| wanted(node))
            .collect();
        let at = (!names.is_empty()).then(|| self.random.random_range(0..names.len()))?;
        Some((names[at].0.clone(), *names[at].1))
    }

    fn any_file(&mut self) -> Option<(String, u32)> {
        match self.any(|node| matches!(node, Node::File(_)))? {
            (path, Node::File(file)) => Some((path, file)),
            (_, Node::Folder(_)) => None,
        }
    }

    /// Any folder, the writer's own included.
    fn any_folder(&mut self) -> String {
        match self.random.random_bool(0.4) {
            true => String::new(),
            false => self
                .any(|node| matches!(node, Node::Folder(_)))
                .map_or_else(String::new, |(path, _)| path),
        }
    }

    fn length(&mut self) -> usize {
        match self.random.random_range(0..10) {
            0..4 => self.random.random_range(1..20),
            4..9 => self.random.random_range(1..200),
            _ => self.random.random_range(1..LONG),
        }
    }

    fn make_file(&mut self, root: &Path, path: &str) -> Result<u32, String> {
        let file = self.history.new_file();
        self.history
            .change(Change::Make(path.to_owned(), Node::File(file)));
        let at = root.join(path);
        told("make", &at, File::create_new(&at))?;
        let length = self.length();
        self.write(root, path, file, 0..length)?;
        Ok(file)
    }

    fn make(&mut self, root: &Path) -> Result<(String, u32), String> {
        let folder = self.any_folder();
        let path = self.fresh_name(&folder, "f");
        let file = self.make_file(root, &path)?;
        Ok((path, file))
    }

    /// Writes stamps in a few pieces. These are whole sectors, for a file may come back as long as after any of them.
    fn write(
        &mut self,
        root: &Path,
        path: &str,
        file: u32,
        sectors: std::ops::Range<usize>,
    ) -> Step {
        self.generation += 1;
        let (from, generation) = (sectors.start, self.generation);
        self.history.write(file, sectors.clone(), generation);
        let most = sectors.len();
        let bytes = self.stamps.fill(file, generation, sectors);
        let at = root.join(path);
        let open = told("open", &at, OpenOptions::new().write(true).open(&at))?;
        let piece = self.random.random_range(1..=most) * SECTOR;
        for (number, piece_bytes) in bytes.chunks(piece).enumerate() {
            let offset = (from * SECTOR + number * piece) as u64;
            told("write", &at, open.write_all_at(piece_bytes, offset))?;
        }
        Ok(())
    }

    fn overwrite(&mut self, root: &Path) -> Step {
        let Some((path, file)) = self.any_file() else {
            return Ok(());
        };
        let length = self.history.length(file);
        if length == 0 {
            return Ok(());
        }
        let first = self.random.random_range(0..length);
        let end = (first + self.length()).min(length);
        self.write(root, &path, file, first..end)
    }

    fn append(&mut self, root: &Path) -> Step {
        let Some((path, file)) = self.any_file() else {
            return Ok(());
        };
        let length = self.history.length(file);
        let end = (length + self.length()).min(2 * LONG);
        match end > length {
            true => self.write(root, &path, file, length..end),
            false => Ok(()),
        }
    }

    /// Cuts a file off, or makes it longer by a hole; sometimes to write it anew.
    fn resize(&mut self, root: &Path) -> Step {
        let Some((path, file)) = self.any_file() else {
            return Ok(());
        };
        let anew = self.random.random_bool(0.4);
        let length = match anew {
            true => 0,
            false => self
                .random
                .random_range(0..=(self.history.length(file) + 30).min(2 * LONG)),
        };
        self.history.resize(file, length);
        let at = root.join(&path);
        let open = told("open", &at, OpenOptions::new().write(true).open(&at))?;
        told("resize", &at, open.set_len((length * SECTOR) as u64))?;
        let length = self.length();
        match anew {
            true => self.write(root, &path, file, 0..length),
            false => Ok(()),
        }
    }

    fn move_to(&mut self, root: &Path, from: &str, to: &str) -> Step {
        self.history
            .change(Change::Move(from.to_owned(), to.to_owned()));
        let at = root.join(from);
        told("rename", &at, fs::rename(&at, root.join(to)))
    }

    /// As programs do that must not lose a file: written beside it, made durable, put in its place.
    fn replace(&mut self, root: &Path, pulse: &Pulse) -> Step {
        let Some((path, _)) = self.any_file() else {
            return Ok(());
        };
        let beside = self.fresh_name(parent(&path), "new");
        let file = self.make_file(root, &beside)?;
        self.sync(root, &beside, file, pulse)?;
        self.move_to(root, &beside, &path)
    }

    fn rename(&mut self, root: &Path) -> Step {
        let Some((from, _)) = self.any_file() else {
            return Ok(());
        };
        let folder = self.any_folder();
        let to = self.fresh_name(&folder, "r");
        self.move_to(root, &from, &to)
    }

    fn rename_folder(&mut self, root: &Path) -> Step {
        let Some((from, _)) = self.any(|node| matches!(node, Node::Folder(_))) else {
            return Ok(());
        };
        let to = self.fresh_name(parent(&from), "d");
        self.move_to(root, &from, &to)
    }

    fn remove_any(&mut self, root: &Path) -> Step {
        match self.any_file() {
            Some((path, _)) => self.remove(root, &path),
            None => self.remove_tree(root),
        }
    }

    fn remove(&mut self, root: &Path, path: &str) -> Step {
        let is_folder = matches!(self.history.names().get(path), Some(Node::Folder(_)));
        self.history.change(Change::Remove(path.to_owned()));
        let at = root.join(path);
        match is_folder {
            true => told("remove", &at, fs::remove_dir(&at)),
            false => told("remove", &at, fs::remove_file(&at)),
        }
    }

    /// Removes a folder with all that is in it.
    fn remove_tree(&mut self, root: &Path) -> Step {
        let Some((folder, _)) = self.any(|node| matches!(node, Node::Folder(_))) else {
            return Ok(());
        };
        let inside = format!("{folder}/");
        let names = self.history.names().keys();
        let mut paths: Vec<String> = names
            .filter(|path| **path == folder || path.starts_with(&inside))
            .cloned()
            .collect();
        // What is inside of something sorts behind it.
        while let Some(path) = paths.pop() {
            self.remove(root, &path)?;
        }
        Ok(())
    }

    /// As rsync copies a tree: each file under a name of its own, then in its place, and nothing synced.
    fn copy_tree(&mut self, root: &Path) -> Step {
        let top = self.any_folder();
        let top = match top.matches('/').count() < 3 {
            true => self.fresh_name(&top, "t"),
            false => self.fresh_name("", "t"),
        };
        for folder in [top.clone(), format!("{top}/in")] {
            let number = self.history.number();
            self.history
                .change(Change::Make(folder.clone(), Node::Folder(number)));
            let at = root.join(&folder);
            told("make", &at, fs::create_dir(&at))?;
            for number in 0..self.random.random_range(1..6) {
                let path = format!("{folder}/f{number}");
                let beside = self.fresh_name(&folder, ".f");
                self.make_file(root, &beside)?;
                self.move_to(root, &beside, &path)?;
            }
        }
        Ok(())
    }

    fn sync(&mut self, root: &Path, path: &str, file: u32, pulse: &Pulse) -> Step {
        let at = root.join(path);
        let open = told("open", &at, File::open(&at))?;
        if told("fsync", &at, pulse.flush(|| open.sync_all()))? {
            self.history.file_synced(file);
        }
        Ok(())
    }

    fn sync_file(&mut self, root: &Path, pulse: &Pulse) -> Step {
        match self.any_file() {
            Some((path, file)) => self.sync(root, &path, file, pulse),
            None => Ok(()),
        }
    }

    fn sync_folder(&mut self, root: &Path, pulse: &Pulse) -> Step {
        let folder = self.any_folder();
        let at = root.join(&folder);
        let open = told("open", &at, File::open(&at))?;
        if told("fsync", &at, pulse.flush(|| open.sync_all()))? {
            self.history.folder_synced(&folder);
        }
        Ok(())
    }

    /// Makes everything durable. There is always a new name among it, so that XFS has something to log: it flushes the device with
    /// its log, and data that was overwritten within the same tick of the clock needs nothing logged.
    pub fn sync_all(&mut self, root: &Path, pulse: &Pulse) -> Step {
        self.make(root)?;
        let open = told("open", root, File::open(root))?;
        if told(
            "sync",
            root,
            pulse.flush(|| rustix::fs::syncfs(&open).map_err(Into::into)),
        )? {
            self.history.all_synced();
        }
        Ok(())
    }

    /// Compares what is there now with what may be there, and goes on from it.
    pub fn check(&mut self, files: &Path) -> Step {
        let root = self.folder(files);
        let mut found = BTreeMap::new();
        self.look(&root, "", &mut found)?;
        let checked = self.history.check(&found);
        checked.map_err(|error| format!("{}: {error}", self.name))
    }

    fn look(&self, root: &Path, folder: &str, found: &mut BTreeMap<String, Found>) -> Step {
        let at = root.join(folder);
        for entry in told("list", &at, fs::read_dir(&at))? {
            let entry = told("list", &at, entry)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = match folder {
                "" => name,
                folder => format!("{folder}/{name}"),
            };
            if entry.path().is_dir() {
                found.insert(path.clone(), Found::Folder);
                self.look(root, &path, found)?;
            } else {
                let bytes = told("read", &entry.path(), fs::read(entry.path()))?;
                let read = file_of(&self.stamps.read(&bytes));
                let (file, sectors) = read.map_err(|error| format!("{path}: {error}"))?;
                found.insert(path, Found::File(file, sectors));
            }
        }
        Ok(())
    }
}
