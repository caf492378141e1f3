//! Programs that write beside the writers: `cp -a` of a tree, and fio on a file of which every block is checksummed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rand::RngExt;
use rand::rngs::SmallRng;

use crate::pulse::Pulse;

/// Copies that are kept.
const KEPT: usize = 2;
const PAGE: usize = 4096;

fn command(line: &mut Command) -> Result<(), String> {
    let output = line
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("{line:?}: {e}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!(
            "{line:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        )),
    }
}

/// Copies of one tree, made by `cp -a` and removed by `rm -r`.
#[derive(Debug)]
pub struct Copies {
    source: PathBuf,
    next: u32,
    kept: Vec<u32>,
    /// Those that a sync has covered whole.
    synced: BTreeSet<u32>,
    random: SmallRng,
}

impl Copies {
    pub fn new(source: &Path, random: SmallRng) -> Copies {
        Copies {
            source: source.to_owned(),
            next: 0,
            kept: Vec::new(),
            synced: BTreeSet::new(),
            random,
        }
    }

    fn folder(files: &Path) -> PathBuf {
        files.join("copies")
    }

    /// Makes the folder of the copies.
    pub fn prepare(files: &Path) {
        fs::create_dir(Copies::folder(files)).expect("a folder");
    }

    /// Works until it is told to stop.
    pub fn work(&mut self, files: &Path, pulse: &Pulse) -> Result<(), String> {
        let folder = Copies::folder(files);
        pulse.run(|| {
            if self.kept.len() >= KEPT {
                let old = self.kept.remove(0);
                self.synced.remove(&old);
                command(
                    Command::new("rm")
                        .arg("-r")
                        .arg(folder.join(old.to_string())),
                )?;
            }
            self.next += 1;
            self.kept.push(self.next);
            let to = folder.join(self.next.to_string());
            command(Command::new("cp").arg("-a").arg(&self.source).arg(to))?;
            if self.random.random_bool(0.5) {
                self.sync(files, pulse)?;
            }
            Ok(())
        })
    }

    fn sync(&mut self, files: &Path, pulse: &Pulse) -> Result<(), String> {
        if pulse.flush(|| command(Command::new("sync").arg("-f").arg(files)))? {
            self.all_synced();
        }
        Ok(())
    }

    /// Everything has been made durable, by whomever.
    pub fn all_synced(&mut self) {
        self.synced.extend(&self.kept);
    }

    /// Compares the copies with the tree: those that were synced are whole, and the others have nothing in them that is not of the
    /// tree. Then removes what is not whole.
    pub fn check(&mut self, files: &Path) -> Result<(), String> {
        let folder = Copies::folder(files);
        for copy in &self.synced {
            let to = folder.join(copy.to_string());
            command(
                Command::new("diff")
                    .args(["--recursive", "--no-dereference", "--brief"])
                    .arg(&self.source)
                    .arg(to),
            )?;
        }
        self.kept = self.synced.iter().copied().collect();
        for copy in list(&folder)? {
            let whole = |number: &u32| copy.ends_with(number.to_string());
            if !self.synced.iter().any(whole) {
                part_of(&self.source, &copy)?;
                command(Command::new("rm").arg("-r").arg(&copy))?;
            }
        }
        Ok(())
    }
}

fn list(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let all = fs::read_dir(folder).and_then(|entries| entries.map(|e| Ok(e?.path())).collect());
    all.map_err(|error| format!("list {}: {error}", folder.display()))
}

/// Whether a copy has nothing that the source has not: pages of zeros are those that were not written yet.
fn part_of(source: &Path, copy: &Path) -> Result<(), String> {
    let wrong = |what: &str| Err(format!("{} {what}", copy.display()));
    let Ok(of_source) = fs::symlink_metadata(source) else {
        return wrong("was never copied");
    };
    let found = fs::symlink_metadata(copy).map_err(|e| format!("{}: {e}", copy.display()))?;
    if found.file_type() != of_source.file_type() {
        return wrong("is of another kind");
    }
    if found.is_dir() {
        for inside in list(copy)? {
            let name = inside.file_name().ok_or("a path without a name")?;
            part_of(&source.join(name), &inside)?;
        }
        return Ok(());
    }
    if found.is_symlink() {
        return match fs::read_link(copy).ok() == fs::read_link(source).ok() {
            true => Ok(()),
            false => wrong("leads elsewhere"),
        };
    }
    let whole = fs::read(source).map_err(|e| format!("{}: {e}", source.display()))?;
    let part = fs::read(copy).map_err(|e| format!("{}: {e}", copy.display()))?;
    if part.len() > whole.len() {
        return wrong("is too long");
    }
    for (at, page) in part.chunks(PAGE).enumerate() {
        let zeros = page.iter().all(|byte| *byte == 0);
        if !zeros && *page != whole[at * PAGE..at * PAGE + page.len()] {
            return wrong(&format!("has a page that is not of it, at {}", at * PAGE));
        }
    }
    Ok(())
}

/// fio, overwriting a file block by block; each block says where it belongs and has a checksum.
#[derive(Debug)]
pub struct Fio(Child);

impl Fio {
    fn arguments(files: &Path, more: &[&str]) -> Command {
        let mut line = Command::new("fio");
        line.args(["--name=crash", "--size=8m", "--bs=4k", "--verify=crc32c"])
            .args(["--verify_state_save=0", "--thread", "--output-format=terse"])
            .arg(format!("--filename={}", files.join("fio").display()))
            .args(more);
        line
    }

    /// Writes every block of the file once.
    pub fn prepare(files: &Path) {
        let more = ["--rw=write", "--do_verify=0", "--end_fsync=1"];
        command(&mut Fio::arguments(files, &more)).expect("fio writes");
    }

    /// Begins to overwrite blocks at random.
    pub fn start(files: &Path, quiet: bool, random: &mut SmallRng) -> Fio {
        let seed = format!("--randseed={}", random.random::<u32>());
        let direct = format!("--direct={}", u8::from(random.random_bool(0.5)));
        let sync = match quiet {
            true => "--fsync=0",
            false => ["--fsync=40", "--fdatasync=100"][random.random_range(0..2)],
        };
        let more = [
            "--rw=randwrite",
            "--norandommap",
            "--do_verify=0",
            "--time_based",
            "--runtime=600",
            "--rate_iops=400",
            sync,
            &direct,
            &seed,
        ];
        let child = Fio::arguments(files, &more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Fio(child.expect("fio starts"))
    }

    /// Ends it, if it has not run into an error.
    pub fn stop(mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        self.0.wait().expect("fio ends");
    }

    /// Whether each block is one that was written there, in whichever round.
    pub fn check(files: &Path) -> Result<(), String> {
        command(&mut Fio::arguments(files, &["--rw=read"]))
    }
}
