//! The journal on a local disk that loses power, fails, fills up or is tampered with.

mod support;

#[path = "journal/altered.rs"]
mod altered;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bucketdisk::error::{ErrorKind, Result};
use bucketdisk::journal::{
    AppendError, Directory, Entry, Found, Journal, LocalFile, LocalFiles, Mark, Owner, Place,
    Replayed,
};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use support::local_disk::{LocalDisk, Trouble};
use support::volume::keys;

const DISK_BYTES: u64 = 1 << 20;
const OWNER: Owner = Owner {
    disk: 7,
    size_bytes: DISK_BYTES,
};
const SEGMENT: u64 = 16 << 10;
const LIMIT: u64 = 8 * SEGMENT;

/// A record as it was appended, or as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Said {
    Write(u64, Vec<u8>),
    Zeros(u64, u64),
}

fn read(place: &Place) -> Vec<u8> {
    let mut bytes = vec![0; place.len()];
    place.read(&mut bytes).expect("is sound");
    bytes
}

fn look(files: &Arc<dyn LocalFiles>) -> Result<Found> {
    let found = Found::look(files, keys().as_ref())?;
    Ok(found.expect("there is a journal"))
}

fn replay(found: &Found) -> Result<(Replayed, Vec<Said>)> {
    let mut all = Vec::new();
    let replayed = found.replay(&mut |entry| {
        all.push(match entry {
            Entry::Write { offset, place } => Said::Write(offset, read(&place)),
            Entry::Zeros { offset, len } => Said::Zeros(offset, len),
        });
    })?;
    assert_eq!(replayed.records, all.len() as u64);
    Ok((replayed, all))
}

fn fresh(disk: &Arc<LocalDisk>) -> Arc<Journal> {
    let found = Found::create(&disk.files(), OWNER, 99, SEGMENT, keys().as_ref()).expect("creates");
    found.begin(None, 1, LIMIT).expect("begins")
}

fn append(journal: &Journal, offset: u64, bytes: &[u8]) -> Vec<Said> {
    let placed = journal.append(&[(offset, bytes)]).expect("appends");
    let placed = placed.into_iter();
    placed
        .map(|p| Said::Write(p.offset, read(&p.place)))
        .collect()
}

fn flush(journal: &Journal) {
    assert!(
        journal.flush_now().expect("flushes"),
        "nobody else is at it"
    );
}

/// Flushes so often that flushes are many; answers what it appended for that.
#[test]
fn a_mark_of_before_brings_nothing_back_that_was_given_up() {
    let disk = LocalDisk::new(1);
    let journal = fresh(&disk);
    append(&journal, 0, &[1; 1000]);
    let before = journal.end();
    for at in 0..12 {
        append(&journal, at, &[2; 4000]);
    }
    journal.release(journal.end()).expect("releases");
    // In the files that the others were in.
    let kept: Vec<Said> = (0..20)
        .flat_map(|at| append(&journal, at, &[3; 4000]))
        .collect();
    flush(&journal);
    let used = journal.used_bytes();
    assert_eq!(journal.release(before).expect("changes nothing"), 0);
    assert_eq!(journal.used_bytes(), used);
    drop(journal);
    disk.lose_power();
    let (_, found) = replay(&look(&disk.files()).expect("looks")).expect("is whole");
    assert!(found == kept, "{} of {}", found.len(), kept.len());
}

fn flush_often(journal: &Journal) -> Vec<Said> {
    let flushed = (0..64).flat_map(|_| {
        let said = append(journal, 0, &[1; 10]);
        flush(journal);
        said
    });
    flushed.collect()
}

#[test]
fn what_is_released_and_still_read_is_told_apart_from_a_disk_without_space() {
    let disk = LocalDisk::new(3);
    let journal = fresh(&disk);
    let mut read = Vec::new();
    let full = loop {
        match journal.append(&[(0, &[1; 4096])]) {
            Ok(placed) => read.extend(placed),
            Err(full) => break full,
        }
    };
    assert!(matches!(full, AppendError::Full));
    assert!(!journal.is_held(), "nothing is released");
    journal.release(journal.end()).expect("releases");
    assert!(journal.is_held());
    drop(read);
    assert!(!journal.is_held());
    journal.append(&[(0, &[2; 4096])]).expect("there is room");
}

/// Random appends, flushes and releases, and a crash, over and over. What is found has to be what was appended, from the tail on, in
/// order, up to some record not before the last that was flushed.
fn run(seed: u64, rounds: usize) {
    let mut random = StdRng::seed_from_u64(seed);
    let disk = LocalDisk::new(random.random());
    let files = disk.files();
    let mut journal = fresh(&disk);
    // What the log holds, and how much of it is flushed.
    let mut log: Vec<Said> = Vec::new();
    let mut flushed = 0;
    let mut marks: Vec<(usize, Mark)> = Vec::new();
    let mut kept: Vec<(Place, Vec<u8>)> = Vec::new();
    // Where in the log the journal was opened anew.
    let mut openings: Vec<usize> = Vec::new();
    for round in 0..rounds {
        // Where the log may begin: a release that the power failed in may have moved it or not.
        let mut begins = vec![0];
        for _ in 0..random.random_range(0..60) {
            match random.random_range(0..20) {
                0..12 => {
                    let len = match random.random_range(0..8) {
                        0 => random.random_range(1..9000),
                        1 => 512 * random.random_range(1..20),
                        _ => random.random_range(1..700),
                    };
                    let offset = random.random_range(0..DISK_BYTES - len);
                    let bytes: Vec<u8> = (0..len).map(|_| random.random()).collect();
                    match journal.append(&[(offset, &bytes)]) {
                        Ok(placed) => {
                            let joined: Vec<u8> =
                                placed.iter().flat_map(|p| read(&p.place)).collect();
                            assert_eq!(joined, bytes);
                            for placed in placed {
                                let bytes = read(&placed.place);
                                if random.random_bool(0.05) {
                                    kept.push((placed.place, bytes.clone()));
                                }
                                log.push(Said::Write(placed.offset, bytes));
                            }
                        }
                        Err(AppendError::Full) => {
                            // The segment that ended before an opening may be as good as empty.
                            let unused = (3 + openings.len() as u64) * SEGMENT;
                            assert!(
                                journal.used_bytes() + len + unused > LIMIT || !kept.is_empty()
                            );
                            kept.clear();
                        }
                        Err(AppendError::Failed(error)) => panic!("{error}"),
                    }
                }
                12..14 => {
                    let offset = random.random_range(0..DISK_BYTES - 5000);
                    let len = random.random_range(1..5000);
                    if journal.append_zeros(offset, len).is_ok() {
                        log.push(Said::Zeros(offset, len));
                    }
                }
                14..16 => {
                    flush(&journal);
                    flushed = log.len();
                }
                16 => {
                    if random.random_bool(0.2) && journal.used_bytes() < LIMIT / 4 {
                        log.extend(flush_often(&journal));
                        flushed = log.len();
                    }
                    if random.random_bool(0.1) {
                        disk.fail_power_after(random.random_range(1..20));
                    }
                    let made = catch_unwind(AssertUnwindSafe(|| journal.upkeep()));
                    if disk.is_without_power() {
                        break;
                    }
                    made.expect("has power").expect("makes files ready");
                    disk.fail_power_after(u32::MAX);
                }
                17 => marks.push((log.len(), journal.end())),
                _ => {
                    if !marks.is_empty() {
                        let (count, mark) = marks.remove(random.random_range(0..marks.len()));
                        if random.random_bool(0.1) {
                            disk.fail_power_after(random.random_range(1..8));
                        }
                        let released = catch_unwind(AssertUnwindSafe(|| journal.release(mark)));
                        if disk.is_without_power() {
                            begins = vec![0, count];
                            break;
                        }
                        released.expect("has power").expect("releases");
                        disk.fail_power_after(u32::MAX);
                        // It makes the rest durable, too.
                        flushed = log.len() - count;
                        log.drain(..count);
                        openings.retain(|at| *at > count);
                        openings.iter_mut().for_each(|at| *at -= count);
                        marks.retain_mut(|(at, _)| {
                            let later = *at >= count;
                            *at = at.saturating_sub(count);
                            later
                        });
                    }
                }
            }
            for (place, bytes) in &kept {
                assert_eq!(read(place), *bytes, "seed {seed} round {round}");
            }
        }
        drop(journal);
        let power = disk.is_without_power() || random.random_bool(0.7);
        if power {
            kept.clear();
            disk.lose_power();
        }
        let found = look(&files).expect("is sound");
        assert_eq!(found.owner(), OWNER);
        let (replayed, all) =
            replay(&found).unwrap_or_else(|e| panic!("seed {seed} round {round}: {}", e.chain()));
        let fits = |begin: usize| {
            let end = begin + all.len();
            end >= flushed && end <= log.len() && all[..] == log[begin..end]
        };
        assert!(
            begins.iter().any(|begin| fits(*begin)),
            "seed {seed} round {round}: {} records found, {flushed} of {} flushed",
            all.len(),
            log.len()
        );
        if !power {
            assert_eq!(
                all.len(),
                log.len(),
                "nothing is lost with the program alone"
            );
        }
        let discard = random.random_bool(0.2);
        log = if discard { Vec::new() } else { all };
        let keep = (!discard).then_some(&replayed);
        if discard {
            openings.clear();
        }
        openings.retain(|at| *at <= log.len());
        openings.push(log.len());
        journal = found.begin(keep, round as u128 + 2, LIMIT).expect("begins");
        if random.random_bool(0.2) {
            // Right after it has begun.
            disk.lose_power();
            let found = look(&files).expect("is sound");
            let (replayed, again) = replay(&found).expect("is sound");
            assert_eq!(again, log, "seed {seed} round {round}");
            journal = found.begin(Some(&replayed), 1, LIMIT).expect("begins");
            openings.push(log.len());
        }
        kept.clear();
        flushed = log.len();
        marks = vec![(log.len(), journal.end())];
        if log.len() > 200 {
            journal.release(journal.end()).expect("releases");
            log.clear();
            marks.clear();
            flushed = 0;
            openings.clear();
        }
    }
}

#[test]
fn a_crash_leaves_a_beginning_of_the_log_with_all_that_was_flushed() {
    for seed in 0..400 {
        run(seed, 12);
    }
    let seed = rand::random();
    println!("seed {seed}");
    run(seed, 100);
}

#[test]
fn what_was_never_flushed_and_is_cut_off_never_comes_back() {
    // The record behind a torn one is whole; after the next crash it would follow well on a new record of the torn one's length.
    for seed in 0..200 {
        let disk = LocalDisk::new(seed);
        let files = disk.files();
        let journal = fresh(&disk);
        append(&journal, 0, &[1; 4032]);
        flush(&journal);
        append(&journal, 0, &[2; 4032]);
        append(&journal, 0, &[3; 4032]);
        disk.lose_power();
        let found = look(&files).expect("is sound");
        let (replayed, first) = replay(&found).expect("replays");
        let journal = found.begin(Some(&replayed), 2, LIMIT).expect("begins");
        let second = append(&journal, 0, &[4; 4032]);
        flush(&journal);
        disk.lose_power();
        let (_, all) = replay(&look(&files).expect("is sound")).expect("replays");
        assert_eq!(all, [first, second].concat(), "seed {seed}");
    }
}

/// A journal with three flushed records, the first in the first segment file.
fn flushed_records(disk: &Arc<LocalDisk>) {
    let journal = fresh(disk);
    for fill in 1..4 {
        append(&journal, 4096, &[fill; 600]);
        flush(&journal);
    }
}

#[test]
fn a_durable_record_that_is_altered_is_damage_and_no_torn_tail() {
    // The header of the segment, the header of the first record, its payload.
    for at in [20, 64 + 8, 64 + 60, 64 + 64 + 599] {
        let disk = LocalDisk::new(0);
        flushed_records(&disk);
        disk.flip("segment-00000", at);
        let before = disk.content("segment-00000");
        let found = look(&disk.files()).expect("whose it is can be told");
        let error = replay(&found).expect_err("is damaged");
        assert_eq!(error.kind(), ErrorKind::Damaged, "{}", error.chain());
        drop(found);
        assert_eq!(disk.content("segment-00000"), before, "nothing is removed");
    }
}

#[test]
fn what_was_not_durable_may_be_torn() {
    let disk = LocalDisk::new(0);
    let journal = fresh(&disk);
    let first = append(&journal, 0, &[1; 600]);
    flush(&journal);
    append(&journal, 0, &[2; 600]);
    append(&journal, 0, &[3; 600]);
    drop(journal);
    // In the second record.
    disk.flip("segment-00000", 64 + 64 + 640 + 100);
    let (_, all) = replay(&look(&disk.files()).expect("is sound")).expect("replays");
    assert_eq!(all, first);
}

#[test]
fn a_segment_that_is_missing_is_damage() {
    let disk = LocalDisk::new(0);
    let journal = fresh(&disk);
    for fill in 0..12 {
        append(&journal, 0, &[fill; 5000]);
    }
    flush(&journal);
    drop(journal);
    let names = disk.names();
    assert!(names.len() > 3, "{names:?}");
    for name in names.iter().filter(|n| n.starts_with("segment")) {
        let copy = LocalDisk::new(0);
        for other in names.iter().filter(|n| *n != name) {
            let content = disk.content(other);
            let file = copy
                .files()
                .create(other, content.len() as u64)
                .expect("creates");
            file.write_at(&[&content], 0).expect("writes");
        }
        let error =
            replay(&look(&copy.files()).expect("whose it is can be told")).expect_err("is damaged");
        assert_eq!(error.kind(), ErrorKind::Damaged);
        assert!(error.chain().contains("missing"), "{}", error.chain());
    }
    disk.lose_file("state");
    let error = Found::look(&disk.files(), keys().as_ref()).expect_err("nobody knows whose it is");
    assert_eq!(error.kind(), ErrorKind::Damaged);
    Found::remove(&disk.files()).expect("removes");
    assert!(disk.names().is_empty());
    assert!(
        Found::look(&disk.files(), keys().as_ref())
            .expect("looks")
            .is_none()
    );
}

#[test]
fn after_a_failed_flush_nothing_is_taken_and_no_flush_succeeds() {
    let disk = LocalDisk::new(0);
    let journal = fresh(&disk);
    let placed = journal.append(&[(0, &[1; 100])]).expect("appends");
    disk.set_trouble(Trouble {
        failing_syncs: 0..1,
        ..Trouble::default()
    });
    for _ in 0..3 {
        let error = journal.flush_now().expect_err("fails");
        assert!(
            error.chain().contains("the disk has failed"),
            "{}",
            error.chain()
        );
    }
    assert!(matches!(
        journal.append(&[(0, &[1; 100])]),
        Err(AppendError::Failed(_))
    ));
    assert!(matches!(
        journal.append_zeros(0, 100),
        Err(AppendError::Failed(_))
    ));
    assert!(journal.release(journal.end()).is_err());
    assert!(journal.failure().is_some());
    assert_eq!(
        read(&placed[0].place),
        [1; 100],
        "what it holds can be read"
    );
}

#[test]
fn a_write_that_fails_is_not_taken() {
    let disk = LocalDisk::new(0);
    let journal = fresh(&disk);
    let first = append(&journal, 0, &[1; 100]);
    flush(&journal);
    disk.set_trouble(Trouble {
        failing_writes: 0..1,
        ..Trouble::default()
    });
    assert!(matches!(
        journal.append(&[(0, &[2; 100])]),
        Err(AppendError::Failed(_))
    ));
    drop(journal);
    let (_, all) = replay(&look(&disk.files()).expect("is sound")).expect("replays");
    assert_eq!(all, first);
}

#[test]
fn a_full_journal_takes_more_once_something_is_released() {
    for most_files in [None, Some(5)] {
        let disk = LocalDisk::new(0);
        let journal = fresh(&disk);
        disk.set_trouble(Trouble {
            most_files,
            ..Trouble::default()
        });
        let half = |journal: &Journal| {
            let mut taken = 0;
            while taken < 1000 {
                match journal.append(&[(0, &[1; 3000])]) {
                    Ok(_) => taken += 1,
                    Err(AppendError::Full) => break,
                    Err(AppendError::Failed(error)) => panic!("{error}"),
                }
            }
            taken
        };
        let taken = half(&journal);
        let segments = if most_files.is_some() { 4 } else { 8 };
        assert!((segments * 4..segments * 6).contains(&taken), "{taken}");
        journal.release(journal.end()).expect("releases");
        assert!(half(&journal) >= taken - 5);
        // A place that is held keeps its segment.
        journal.release(journal.end()).expect("releases");
        let held = journal.append(&[(0, &[9; 3000])]).expect("appends");
        journal.release(journal.end()).expect("releases");
        half(&journal);
        let content: Vec<u8> = held.iter().flat_map(|p| read(&p.place)).collect();
        assert_eq!(content, [9; 3000]);
    }
}

#[test]
fn sessions_are_remembered_and_the_one_that_begins_is_alone() {
    let disk = LocalDisk::new(0);
    drop(fresh(&disk));
    let mut found = look(&disk.files()).expect("found");
    assert_eq!(found.sessions(), [1]);
    for session in 2..600 {
        found.remember(session).expect("remembers");
    }
    disk.lose_power();
    let found = look(&disk.files()).expect("found");
    assert_eq!(found.sessions().first(), Some(&1), "the one that wrote");
    assert_eq!(found.sessions().last(), Some(&599));
    found.begin(None, 700, LIMIT).expect("begins");
    assert_eq!(look(&disk.files()).expect("found").sessions(), [700]);
}

#[test]
fn a_journal_whose_making_has_failed_is_none_or_an_empty_one_when_the_power_fails_next() {
    for seed in 0..100 {
        let disk = LocalDisk::new(seed);
        let files = disk.files();
        disk.set_trouble(Trouble {
            failing_syncs: 0..1,
            ..Trouble::default()
        });
        assert!(Found::create(&files, OWNER, 99, SEGMENT, keys().as_ref()).is_err());
        let mut found = look(&files).expect("is read, if not durable");
        found.reserve().expect("makes files");
        disk.lose_power();
        if let Err(error) = Found::look(&disk.files(), keys().as_ref()) {
            panic!("seed {seed}: {}", error.chain());
        }
    }
}

#[test]
fn of_two_crashes_while_sessions_are_remembered_one_state_is_left() {
    for seed in 0..400 {
        let disk = LocalDisk::new(seed);
        let journal = fresh(&disk);
        let appended = append(&journal, 0, &[1; 100]);
        flush(&journal);
        drop(journal);
        for (session, last_call) in [(2, 2), (3, 2 + seed as u32 % 5)] {
            let mut found = look(&disk.files()).expect("is there");
            disk.fail_power_after(last_call);
            let remembering = AssertUnwindSafe(|| found.remember(session));
            let remembered = catch_unwind(remembering);
            assert!(remembered.is_err() || session > 2, "seed {seed}");
            match session {
                // What it has written is read by the next one, though it is not durable.
                2 => disk.kill(),
                _ => disk.lose_power(),
            }
            disk.fail_power_after(u32::MAX);
        }
        let found = look(&disk.files()).unwrap_or_else(|e| panic!("seed {seed}: {}", e.chain()));
        let (_, all) = replay(&found).expect("is sound");
        assert_eq!(all, appended, "seed {seed}");
    }
}

#[test]
fn a_crash_while_a_journal_is_made_leaves_none_or_an_empty_one() {
    for seed in 0..50 {
        let disk = LocalDisk::new(seed);
        let files = disk.files();
        let file = files.create("state", 8192).expect("creates");
        file.write_at(&[&[1; 4096]], 0).expect("writes");
        disk.lose_power();
        assert!(
            Found::look(&files, keys().as_ref())
                .expect("looks")
                .is_none()
        );
        let found = Found::create(&files, OWNER, 5, SEGMENT, keys().as_ref()).expect("creates");
        disk.lose_power();
        assert_eq!(replay(&found).expect("replays").1, []);
        let found = look(&files).expect("is durable");
        assert_eq!(replay(&found).expect("replays").1, []);
    }
}

/// Files whose every sync waits until it is let go on, once the gate is closed.
#[derive(Debug)]
struct Gated {
    files: Arc<dyn LocalFiles>,
    gate: Arc<Gate>,
}

#[derive(Debug)]
struct Gate {
    closed: AtomicBool,
    arrived: mpsc::Sender<()>,
    go: Mutex<mpsc::Receiver<()>>,
}

#[derive(Debug)]
struct GatedFile {
    file: Arc<dyn LocalFile>,
    gate: Arc<Gate>,
}

impl Gate {
    /// An open one; with it, who has arrived at it and what lets one go on.
    fn new() -> (Arc<Gate>, mpsc::Receiver<()>, mpsc::Sender<()>) {
        let (arrived, arrivals) = mpsc::channel();
        let (go, going) = mpsc::channel();
        let gate = Gate {
            closed: AtomicBool::new(false),
            arrived,
            go: Mutex::new(going),
        };
        (Arc::new(gate), arrivals, go)
    }
}

impl Gated {
    fn wrap(&self, file: Arc<dyn LocalFile>) -> Arc<dyn LocalFile> {
        let gate = Arc::clone(&self.gate);
        Arc::new(GatedFile { file, gate })
    }
}

impl LocalFiles for Gated {
    fn location(&self) -> String {
        self.files.location()
    }

    fn names(&self) -> io::Result<Vec<String>> {
        self.files.names()
    }

    fn open(&self, name: &str) -> io::Result<Option<Arc<dyn LocalFile>>> {
        Ok(self.files.open(name)?.map(|file| self.wrap(file)))
    }

    fn create(&self, name: &str, len: u64) -> io::Result<Arc<dyn LocalFile>> {
        Ok(self.wrap(self.files.create(name, len)?))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.files.remove(name)
    }

    fn sync_names(&self) -> io::Result<()> {
        self.files.sync_names()
    }
}

impl LocalFile for GatedFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_at(buf, offset)
    }

    fn write_at(&self, parts: &[&[u8]], offset: u64) -> io::Result<()> {
        self.file.write_at(parts, offset)
    }

    fn sync(&self) -> io::Result<()> {
        if self.gate.closed.load(Ordering::SeqCst) {
            self.gate.arrived.send(()).expect("is listened to");
            self.gate.go.lock().recv().expect("is let go on");
        }
        self.file.sync()
    }
}

#[test]
fn a_flush_that_comes_while_another_runs_waits_for_the_next() {
    let (gate, arrivals, go) = Gate::new();
    let (tried, tries) = mpsc::channel();
    let files: Arc<dyn LocalFiles> = Arc::new(Gated {
        files: LocalDisk::new(0).files(),
        gate: Arc::clone(&gate),
    });
    let found = Found::create(&files, OWNER, 1, SEGMENT, keys().as_ref()).expect("creates");
    let journal = found.begin(None, 1, LIMIT).expect("begins");
    let soon = Duration::from_secs(20);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .expect("runtime");
    append(&journal, 0, &[1; 100]);
    gate.closed.store(true, Ordering::SeqCst);
    let first = std::thread::spawn({
        let journal = Arc::clone(&journal);
        move || journal.flush_now()
    });
    arrivals.recv_timeout(soon).expect("the first syncs");
    append(&journal, 0, &[2; 100]);
    let second = runtime.spawn({
        let journal = Arc::clone(&journal);
        async move {
            let block = |flush: &dyn Fn() -> Result<bool>| {
                let outcome = flush();
                tried.send(()).expect("is listened to");
                outcome
            };
            journal.flush(block).await
        }
    });
    tries.recv_timeout(soon).expect("the second has tried");
    go.send(()).expect("goes on");
    first.join().expect("ends").expect("flushes");
    arrivals
        .recv_timeout(soon)
        .expect("the second syncs what the first did not see");
    assert!(!second.is_finished());
    gate.closed.store(false, Ordering::SeqCst);
    go.send(()).expect("goes on");
    runtime.block_on(second).expect("ends").expect("flushes");
}

#[test]
fn after_many_flushes_the_next_files_are_written_ahead_and_durable() {
    let disk = LocalDisk::new(0);
    let journal = fresh(&disk);
    let segments = |disk: &LocalDisk| -> Vec<String> {
        let names = disk.names().into_iter();
        names.filter(|n| n.starts_with("segment")).collect()
    };
    assert!(!wants_upkeep(&journal));
    flush_often(&journal);
    assert!(wants_upkeep(&journal));
    journal.upkeep().expect("makes files ready");
    let names = segments(&disk);
    let written = |name: &&String| disk.durable_bytes(name) == SEGMENT;
    assert_eq!(names.iter().filter(written).count(), 2, "{names:?}");
    journal.upkeep().expect("nothing to do");
    assert_eq!(segments(&disk), names);
    // They are what records go into next.
    for _ in 0..2 {
        append(&journal, 0, &[2; 16_000]);
    }
    assert_eq!(segments(&disk), names);
    // What is half full reuses its files.
    for _ in 0..2 {
        append(&journal, 0, &[3; 16_000]);
    }
    flush_often(&journal);
    let names = segments(&disk);
    journal.upkeep().expect("nothing to do");
    assert_eq!(segments(&disk), names);
    journal.release(journal.end()).expect("releases");
    journal.stop_making_ready();
    flush_often(&journal);
    journal.upkeep().expect("nothing to do");
    assert_eq!(segments(&disk), names);
}

#[test]
fn a_burst_is_made_durable_while_it_lasts() {
    let disk = LocalDisk::new(0);
    let journal = fresh(&disk);
    let mut all = append(&journal, 0, &[1; 10_000]);
    assert!(!wants_upkeep(&journal));
    all.extend(append(&journal, 10_000, &[2; 10_000]));
    assert!(wants_upkeep(&journal));
    journal.upkeep().expect("makes durable");
    disk.lose_power();
    let (_, found) = replay(&look(&disk.files()).expect("is sound")).expect("replays");
    assert_eq!(found, all);
}

/// Whether there is upkeep to do that was not told of before.
fn wants_upkeep(journal: &Journal) -> bool {
    let wants = std::pin::pin!(journal.wants_upkeep());
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    wants.poll(&mut context).is_ready()
}

#[test]
fn a_file_that_is_being_made_ready_takes_no_records() {
    let (gate, arrivals, go) = Gate::new();
    let disk = LocalDisk::new(0);
    let files: Arc<dyn LocalFiles> = Arc::new(Gated {
        files: disk.files(),
        gate: Arc::clone(&gate),
    });
    // Larger than what is written of it at a time.
    let segment = 1 << 19;
    let found = Found::create(&files, OWNER, 1, segment, keys().as_ref()).expect("creates");
    let journal = found.begin(None, 1, 8 * segment).expect("begins");
    let soon = Duration::from_secs(20);
    let mut all = flush_often(&journal);
    gate.closed.store(true, Ordering::SeqCst);
    let keeper = std::thread::spawn({
        let journal = Arc::clone(&journal);
        move || journal.upkeep()
    });
    // The first file, in two parts, and the first part of the second.
    for _ in 0..2 {
        arrivals.recv_timeout(soon).expect("zeros are written");
        go.send(()).expect("goes on");
    }
    arrivals.recv_timeout(soon).expect("zeros are written");
    for n in 0..5 {
        all.extend(append(&journal, n * 160_000, &[n as u8 + 1; 160_000]));
    }
    gate.closed.store(false, Ordering::SeqCst);
    go.send(()).expect("goes on");
    keeper.join().expect("ends").expect("made ready");
    all.extend(append(&journal, 0, &[9; 160_000]));
    flush(&journal);
    disk.lose_power();
    let (_, found) = replay(&look(&disk.files()).expect("is sound")).expect("replays");
    assert_eq!(found, all);
}

#[test]
fn a_journal_that_cannot_be_made_ready_has_failed() {
    let disk = LocalDisk::new(0);
    let journal = fresh(&disk);
    flush_often(&journal);
    disk.set_trouble(Trouble {
        failing_syncs: 0..1,
        ..Trouble::default()
    });
    journal.upkeep().expect_err("fails");
    assert!(journal.failure().is_some());
}

#[test]
fn one_flush_serves_all_who_wait() {
    let root = tempfile::tempdir().expect("directory");
    let files: Arc<dyn LocalFiles> = Directory::new(root.path());
    let found = Found::create(&files, OWNER, 1, SEGMENT, keys().as_ref()).expect("creates");
    let journal = found.begin(None, 1, LIMIT).expect("begins");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .build()
        .expect("runtime");
    runtime.block_on(async {
        let writers: Vec<_> = (0..16u64)
            .map(|n| {
                let journal = Arc::clone(&journal);
                tokio::spawn(async move {
                    for _ in 0..20 {
                        loop {
                            match journal.append(&[(n * 4096, &[n as u8; 512])]) {
                                Ok(_) => break,
                                Err(AppendError::Full) => {
                                    journal.release(journal.end()).expect("releases");
                                }
                                Err(AppendError::Failed(error)) => panic!("{error}"),
                            }
                        }
                        journal.flush(|flush| flush()).await.expect("flushes");
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.await.expect("ends");
        }
    });
}
