//! The life of one disk: files are written, the daemon is killed, and the disk comes back from its bucket alone, several times.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::bucket::Bucket;
use crate::history::{History, Promise};
use crate::moment::Moment;
use crate::others::{Copies, Fio};
use crate::pulse::Pulse;
use crate::raw::Raw;
use crate::stamps::{SECTOR, Stamps};
use crate::support::kinds::Kind;
use crate::support::real::{Daemon, FileSystem, Loop, Machine, Mount, run};
use crate::tally::Tally;
use crate::writer::Writer;

#[path = "kills.rs"]
mod kills;
#[path = "recovery.rs"]
mod recovery;

/// The part of the image that the file system gets, as large as XFS wants it at least. The raw part follows.
const FILE_SYSTEM: u64 = 320 << 20;
const RAW: u64 = (super::raw::SECTORS * SECTOR) as u64;

/// A disk that is mounted, attached, and its file system mounted.
#[derive(Debug)]
struct Stage<'a> {
    // Dropped in this order where a test fails.
    files: FileSystem,
    device: Loop,
    disk: Mount<'a>,
    daemon: Daemon,
}

pub struct Life<'a> {
    kind: &'static Kind,
    options: String,
    machine: &'a Machine,
    bucket: &'a Bucket,
    /// What the program remembers of the disk on this machine.
    memory: PathBuf,
    /// The machine keeps a journal, which flushes wait for, and goes on with it; without, all it keeps is forgotten after a kill.
    journal: bool,
    encrypted: bool,
    random: SmallRng,
    raw: Raw,
    writers: Vec<Writer>,
    copies: Copies,
    tally: &'a mut Tally,
}

/// What else a file system may be mounted with.
fn more_options(kind: &Kind, random: &mut SmallRng) -> &'static str {
    let more: &[&str] = match kind.name {
        // Not data=journal: ftruncate zeroes the rest of a page while the kernel writes it to its journal under the checksum of what was
        // there before (seen with 6.18), and refuses to replay that.
        "ext4" => &["", ",commit=1", ",discard"],
        "btrfs" => &["", ",commit=1", ",nodiscard", ",compress=zstd"],
        _ => &["", ",discard"],
    };
    more[random.random_range(0..more.len())]
}

/// Whether the disk of a seed is encrypted: every other one of those with a journal, and of those without.
pub fn is_encrypted(seed: u64) -> bool {
    seed / 2 % 2 == 1
}

impl<'a> Life<'a> {
    /// Runs until there were so many kills. Every other seed is that of a machine with a journal. Where the disk [`is_encrypted`], the
    /// machine has its passphrase.
    ///
    /// # Errors
    /// What came back and should not have, or did not come back.
    pub fn run(
        kind: &'static Kind,
        machine: &'a Machine,
        bucket: &'a Bucket,
        source: &Path,
        seed: u64,
        kills: u32,
        tally: &'a mut Tally,
    ) -> Result<(), String> {
        let mut random = SmallRng::seed_from_u64(seed);
        let (journal, encrypted) = (seed % 2 == 1, is_encrypted(seed));
        let stamps = Stamps::new(seed);
        let options = format!("{}{}", kind.options, more_options(kind, &mut random));
        let promise = Promise {
            one_moment: kind.name != "btrfs",
            stale_tail: kind.name == "ext4",
        };
        let mut branch = || SmallRng::seed_from_u64(random.random());
        let raw = Raw::new(FILE_SYSTEM, branch(), stamps);
        let copies = Copies::new(source, branch());
        let writers = (1..=2).map(|number| {
            let history = History::new(promise, number << 24);
            Writer::new(&format!("writer {number}"), history, branch(), stamps)
        });
        let writers = writers.collect();
        println!(
            "{}: a new disk on {}, {options}{}{}",
            kind.name,
            bucket.store(),
            if journal { ", with a journal" } else { "" },
            if encrypted { ", encrypted" } else { "" }
        );
        let mut life = Life {
            kind,
            options,
            machine,
            bucket,
            memory: PathBuf::new(),
            journal,
            encrypted,
            random,
            raw,
            writers,
            copies,
            tally,
        };
        let end = life.tally.kills + kills;
        let mut stage = life.begin()?;
        while life.tally.kills < end {
            life.round(stage)?;
            stage = life.come_back(end)?;
        }
        let Stage {
            files,
            device,
            disk,
            ..
        } = stage;
        files.umount();
        device.detach();
        disk.umount();
        Ok(())
    }

    fn files(&self) -> PathBuf {
        self.machine.path().join("files")
    }

    /// Makes the disk and everything on it.
    fn begin(&mut self) -> Result<Stage<'a>, String> {
        let size = (FILE_SYSTEM + RAW).to_string();
        let block = ["16k", "64k", "256k"][self.random.random_range(0..3)];
        let compress = ["none", "zstd:1", "lz4"][self.random.random_range(0..3)];
        let mut create = vec!["create", self.bucket.url(), "--size", &size];
        create.extend(["--block-size", block, "--compress", compress]);
        if self.encrypted {
            create.extend(["--encrypt", "--kdf-time", "1ms", "--kdf-memory", "64k"]);
        }
        self.machine.run(&create);
        let disk = self.mount();
        let id = disk.status()["store"]["disk_id"]
            .as_str()
            .expect("an id")
            .to_owned();
        self.memory = Path::new("/var/cache/bucketdisk").join(id);
        assert!(self.memory.is_dir(), "the program's memory of the disk");
        let device = self.attach(&disk);
        // A file system of this size would get blocks of 1 KiB, which no file system of use has.
        let more = if self.kind.name == "ext4" {
            "-b 4096"
        } else {
            ""
        };
        self.kind.make(more, &device.device);
        let files = device.mount(&self.files(), &self.options);
        Fio::prepare(&files.directory);
        Copies::prepare(&files.directory);
        for writer in &self.writers {
            fs::create_dir(writer.folder(&files.directory)).expect("a folder");
        }
        let daemon = disk.daemon();
        let stage = Stage {
            files,
            device,
            disk,
            daemon,
        };
        self.settle(&stage)?;
        Ok(stage)
    }

    fn mount_options(&mut self) -> Vec<String> {
        let interval = ["100ms", "500ms", "5s"][self.random.random_range(0..3)];
        let dirty = ["8m", "32m", "256m"][self.random.random_range(0..3)];
        let mut options = vec!["--memory", "48m", "--max-dirty", dirty, "--commit-interval"];
        options.push(interval);
        let cache = self.machine.cache_directory(self.bucket.url());
        match self.journal {
            true => options.extend(["--cache-dir", cache.to_str().expect("UTF-8")]),
            false => options.extend(["--take-over", "--cache-dir", "none"]),
        }
        options.into_iter().map(str::to_owned).collect()
    }

    fn mount(&mut self) -> Mount<'a> {
        let options = self.mount_options();
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        self.machine.mount(self.bucket.url(), "disk", &options)
    }

    fn attach(&mut self, disk: &Mount<'_>) -> Loop {
        let limit = FILE_SYSTEM.to_string();
        let direct = ["--direct-io=on", "--direct-io=off"][self.random.random_range(0..2)];
        disk.attach(&["--sizelimit", &limit, direct])
    }

    /// Makes everything durable that there is.
    fn settle(&mut self, stage: &Stage<'_>) -> Result<(), String> {
        run(Command::new("sync").arg("-f").arg(&stage.files.directory));
        self.raw
            .flush_image(&stage.disk.image(), &Pulse::default())?;
        self.all_synced();
        Ok(())
    }

    fn all_synced(&mut self) {
        for writer in &mut self.writers {
            writer.history.all_synced();
        }
        self.copies.all_synced();
    }

    /// Lets everyone work, kills the daemon, and takes down what is left.
    fn round(&mut self, stage: Stage<'a>) -> Result<(), String> {
        let (head, moment) = (self.bucket.head(), Moment::draw(&mut self.random));
        let work = Duration::from_millis(self.random.random_range(100..900));
        let pulse = Pulse::new(moment.may_be_quiet() && self.random.random_bool(0.4));
        let lived = self.work(&stage, moment, work, &pulse);
        let lived = lived.map_err(|error| format!("{}: {error}", moment.name()))?;
        let lived = match moment {
            _ if moment.is_at_work() => self.take_down(stage, lived),
            Moment::Idle(_) => self.kill_idle(stage, moment, &pulse)?,
            Moment::Unmount(_) => self.kill_in_umount(stage, moment, &pulse),
            _ => self.kill_in_leave(stage, moment, &pulse)?,
        };
        self.tally.commits += u64::from(self.bucket.head().saturating_sub(head));
        self.tally.acknowledged += pulse.acknowledged();
        if lived {
            self.killed(moment.name());
        }
        Ok(())
    }

    fn killed(&mut self, when: &'static str) {
        let unfinished = self.bucket.is_committing();
        self.bucket.note_crash();
        self.tally.last = when;
        self.tally.unfinished += u32::from(unfinished);
        self.tally.with_journal += u32::from(self.journal);
        self.tally.kills += 1;
        *self.tally.moments.entry(when).or_default() += 1;
        println!(
            "{} kill {}: {when}{}, record {}",
            self.kind.name,
            self.tally.kills,
            if unfinished {
                ", with a commit unfinished"
            } else {
                ""
            },
            self.bucket.head()
        );
    }

    /// Lets everyone work until they are stopped, by the kill or before it. Answers whether the daemon was killed.
    fn work(
        &mut self,
        stage: &Stage<'_>,
        moment: Moment,
        work: Duration,
        pulse: &Pulse,
    ) -> Result<bool, String> {
        let (files, image) = (&stage.files.directory, stage.disk.image());
        let fio = Fio::start(files, pulse.is_quiet(), &mut self.random);
        let (raw, copies, bucket) = (&mut self.raw, &mut self.copies, self.bucket);
        let image = &image;
        let (lived, outcomes) = std::thread::scope(|scope| {
            let mut all = vec![
                scope.spawn(move || raw.work(image, pulse)),
                scope.spawn(move || copies.work(files, pulse)),
            ];
            for writer in &mut self.writers {
                all.push(scope.spawn(move || writer.work(files, pulse)));
            }
            moment.wait_at_work(pulse, bucket, work);
            let mut lived = false;
            if moment.is_at_work() {
                pulse.kill();
                lived = stage.daemon.kill();
            }
            pulse.stop();
            let outcomes: Vec<Result<(), String>> = all
                .into_iter()
                .map(|one| {
                    one.join()
                        .unwrap_or_else(|_| Err("a writer panicked".to_owned()))
                })
                .collect();
            (lived, outcomes)
        });
        fio.stop();
        outcomes.into_iter().collect::<Result<(), String>>()?;
        Ok(lived)
    }
}
