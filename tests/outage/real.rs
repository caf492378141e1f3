//! Real mounts on a real server that is killed, stopped in its tracks, or cut off.
//!
//! Short outages are no proof of how long it takes to make up for them, and the machine may be busy: it is only where
//! `BUCKETDISK_OUTAGE_SECONDS` asks for a long one that the ten seconds are an assertion.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::support::kinds::EXT4;
use crate::support::real::{Daemon, can_mount, run, sh, wait_for};
use crate::support::s3_server::S3Server;

const SECONDS: &str = "BUCKETDISK_OUTAGE_SECONDS";
const SHORT: u64 = 4;
/// What is promised.
const SOON: Duration = Duration::from_secs(10);

const FILE_SYSTEM: u64 = 512 << 20;
const CHUNK: usize = 64 << 10;
const CHUNKS: u64 = 512;
const MAX_DIRTY: u64 = 32 << 20;

/// How the store is lost.
#[derive(Debug, Clone, Copy)]
enum Outage {
    /// Connections are refused.
    Killed,
    /// Connections are accepted, and nothing is answered.
    Stopped,
    /// No packet gets anywhere. Only in a network of one's own.
    CutOff,
}

impl Outage {
    fn begin(self, server: &mut S3Server) {
        match self {
            Outage::Killed => server.stop(),
            Outage::Stopped => server.pause(),
            Outage::CutOff => drop(sh("tc qdisc replace dev lo root blackhole")),
        }
    }

    fn end(self, server: &mut S3Server) {
        match self {
            Outage::Killed => server.restart_on_same_port(),
            Outage::Stopped => server.resume(),
            Outage::CutOff => drop(sh("tc qdisc delete dev lo root")),
        }
    }
}

/// The content of a file or chunk by its number.
fn content(number: u64, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend(number.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn file_length(number: u64) -> usize {
    1000 + (number as usize * 7919) % 300_000
}

/// What the writers have come to.
#[derive(Debug, Default)]
struct Progress {
    stopped: AtomicBool,
    /// Nobody syncs for now. The kernel lets no write pass an fsync of the image, so what the disk takes while its store is away is
    /// seen only where none waits.
    quiet: AtomicBool,
    /// The one who syncs knows.
    is_quiet: AtomicBool,
    /// Files that were written and synced, and those that were only written.
    synced: AtomicU64,
    written: AtomicU64,
    /// Chunks that were written beyond the file system.
    chunks: AtomicU64,
}

impl Progress {
    /// Steps until stopped; `count` has their number.
    fn run(&self, count: &AtomicU64, pause: Duration, step: impl Fn(u64) -> io::Result<()>) {
        while !self.stopped.load(Ordering::SeqCst) {
            let number = count.load(Ordering::SeqCst) + 1;
            step(number).expect("a writer sees no error");
            count.store(number, Ordering::SeqCst);
            // The rate of a user, so that the figures are about the store and not about the machine.
            std::thread::sleep(pause);
        }
    }
}

fn count(of: &AtomicU64) -> u64 {
    of.load(Ordering::SeqCst)
}

fn name(files: &Path, kind: &str, number: u64) -> PathBuf {
    files.join(format!("{kind}-{number}"))
}

/// Where the test fails, kills the daemon and stops the writers: those that wait for either would never end.
struct EndsWriters<'a>(&'a Daemon, &'a Progress);

impl Drop for EndsWriters<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.1.stopped.store(true, Ordering::SeqCst);
            self.1.quiet.store(false, Ordering::SeqCst);
            self.0.kill();
        }
    }
}

/// How long it took, once the store was back.
struct Recovery {
    /// Until everything was committed that had been written by then.
    committed: Duration,
    /// Until the writer that waited got on.
    writer: Duration,
}

/// Three writers on a mount that loses its store: into files with fsync, into files without, and into the image itself.
fn write_through(outage: Outage, seconds: u64) {
    let mut server = S3Server::start();
    server.make_bucket("bucket");
    let machine = server.machine();
    let url = "s3://bucket/disk";
    let size = (FILE_SYSTEM + CHUNKS * CHUNK as u64).to_string();
    let dirty = MAX_DIRTY.to_string();
    let options = ["--create", "--size", &size, "--max-dirty", &dirty];
    let disk = machine.mount(url, "disk", &options);
    let limit = FILE_SYSTEM.to_string();
    let device = disk.attach(&["--direct-io=on", "--sizelimit", &limit]);
    // No flush of the file system's own, see `Progress::quiet`.
    EXT4.make("-E lazy_itable_init=0,lazy_journal_init=0", &device.device);
    let at = machine.path().join("files");
    let files = device.mount(&at, "noatime,commit=300");
    let image = OpenOptions::new().write(true).open(disk.image());
    let image = image.expect("opens");

    let (progress, daemon) = (Progress::default(), disk.daemon());
    let recovery = std::thread::scope(|scope| {
        let (progress, at, image) = (&progress, &at, &image);
        let millis = Duration::from_millis;
        let _end = EndsWriters(&daemon, progress);
        scope.spawn(move || {
            progress.run(&progress.synced, millis(1), |number| {
                let mut file = File::create(name(at, "synced", number))?;
                file.write_all(&content(number, file_length(number)))?;
                while progress.quiet.load(Ordering::SeqCst) {
                    progress.is_quiet.store(true, Ordering::SeqCst);
                    std::thread::sleep(millis(1));
                }
                file.sync_all()
            });
        });
        scope.spawn(move || {
            progress.run(&progress.written, millis(200), |number| {
                fs::write(
                    name(at, "written", number),
                    content(number, file_length(number)),
                )
            });
        });
        scope.spawn(move || {
            progress.run(&progress.chunks, millis(2), |number| {
                let offset = FILE_SYSTEM + number % CHUNKS * CHUNK as u64;
                image.write_all_at(&content(number, CHUNK), offset)
            });
        });
        wait_for("the writers to be at work", || count(&progress.synced) > 5);

        progress.quiet.store(true, Ordering::SeqCst);
        wait_for("the last fsync to end", || {
            progress.is_quiet.load(Ordering::SeqCst)
        });
        outage.begin(&mut server);
        let began = Instant::now();
        wait_for("the disk to be as full of writes as it may be", || {
            disk.status()["dirty_bytes"].as_u64() > Some(MAX_DIRTY * 7 / 10)
        });
        progress.quiet.store(false, Ordering::SeqCst);
        let synced = count(&progress.synced);
        std::thread::sleep(Duration::from_secs(seconds).saturating_sub(began.elapsed()));
        let meanwhile = count(&progress.synced) - synced;
        let error = disk.status()["traffic"]["last_error"].clone();

        outage.end(&mut server);
        let back = Instant::now();
        let flush = scope.spawn(move || {
            image.sync_all().expect("a flush sees no error");
            back.elapsed()
        });
        wait_for("the writer to get on", || {
            count(&progress.synced) > synced + meanwhile
        });
        let writer = back.elapsed();
        let committed = flush.join().expect("flushes");
        progress.stopped.store(true, Ordering::SeqCst);
        assert_eq!(meanwhile, 0, "nothing is synced without a store");
        // A request that is not answered fails after a minute.
        assert!(error.is_string() || seconds < 70, "status tells of it");
        Recovery { committed, writer }
    });
    drop(image);
    files.umount();
    device.detach();
    disk.umount();

    let disk = machine.mount(url, "again", &["--read-only"]);
    let device = disk.attach(&["--direct-io=on", "--sizelimit", &limit]);
    EXT4.check(&device.device);
    let files = device.mount(&at, "ro,noatime");
    for (kind, files) in [
        ("synced", count(&progress.synced)),
        ("written", count(&progress.written)),
    ] {
        for number in 1..=files {
            let found = fs::read(name(&at, kind, number)).expect("is there");
            assert!(
                found == content(number, file_length(number)),
                "{kind} {number}"
            );
        }
    }
    let chunks = count(&progress.chunks);
    let image = File::open(disk.image()).expect("opens");
    let mut found = vec![0; CHUNK];
    for number in chunks.saturating_sub(CHUNKS - 1).max(1)..=chunks {
        let offset = FILE_SYSTEM + number % CHUNKS * CHUNK as u64;
        image.read_exact_at(&mut found, offset).expect("reads");
        assert!(found == content(number, CHUNK), "chunk {number}");
    }
    drop(image);
    files.umount();
    device.detach();
    disk.umount();
    println!(
        "outage: {seconds} s, the server {outage:?}: all committed {:.1} s after its return, the waiting writer went on after {:.1} s; \
         {} files synced, {} only written, {chunks} chunks, no error, all there",
        recovery.committed.as_secs_f64(),
        recovery.writer.as_secs_f64(),
        count(&progress.synced),
        count(&progress.written),
    );
    if std::env::var_os(SECONDS).is_some() {
        assert!(recovery.committed <= SOON, "{:?}", recovery.committed);
        assert!(recovery.writer <= SOON, "{:?}", recovery.writer);
    }
}

fn seconds() -> u64 {
    let asked = std::env::var(SECONDS).ok();
    asked.map_or(SHORT, |seconds| seconds.parse().expect("a number"))
}

#[test]
fn writers_wait_for_a_server_that_was_killed_and_lose_nothing() {
    if can_mount("writers_wait_for_a_server_that_was_killed_and_lose_nothing") {
        write_through(Outage::Killed, seconds());
    }
}

#[test]
fn writers_wait_for_a_server_that_does_not_answer_and_lose_nothing() {
    if can_mount("writers_wait_for_a_server_that_does_not_answer_and_lose_nothing") {
        write_through(Outage::Stopped, seconds());
    }
}

/// This test binary again, in a network of its own whose packets can be dropped.
#[test]
fn writers_wait_for_a_server_that_is_cut_off_and_lose_nothing() {
    const NAME: &str = "writers_wait_for_a_server_that_is_cut_off_and_lose_nothing";
    const INSIDE: &str = "BUCKETDISK_TEST_OWN_NETWORK";
    if !can_mount(NAME) {
        return;
    }
    if std::env::var_os(INSIDE).is_some() {
        sh("ip link set lo up");
        return write_through(Outage::CutOff, seconds());
    }
    let possible =
        "unshare --net sh -c 'ip link set lo up && tc qdisc replace dev lo root blackhole'";
    let possible = Command::new("sh").args(["-c", possible]).output();
    if !possible.is_ok_and(|output| output.status.success()) {
        assert!(
            std::env::var_os("CI").is_none(),
            "{NAME} needs ip, tc and sch_blackhole"
        );
        eprintln!("SKIPPED: {NAME} needs ip, tc and sch_blackhole");
        return;
    }
    let said = run(Command::new("unshare")
        .arg("--net")
        .arg(std::env::current_exe().expect("this test binary"))
        .args([&format!("real::{NAME}"), "--exact", "--nocapture"])
        .env(INSIDE, "1"));
    let line = said.lines().find(|line| line.starts_with("outage:"));
    println!("{}", line.expect("it was run"));
}
