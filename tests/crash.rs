//! The daemon is killed at random moments of a real mount, with ext4, XFS and btrfs under writers, `cp -a` and fio. After each kill of
//! every other disk the bucket alone is mounted as another machine would mount it, since flushes waited for the bucket; the others have a
//! journal that flushes waited for, and are mounted with that. The file system replays its journal, its checker finds nothing, and
//! everything in it is as it was at an earlier moment, as exactly as that file system promises (see `crash/history.rs`); a part of
//! the disk without a file system is exactly as it was at one instant (see `crash/raw.rs`).
//!
//! Nine kills, or as many as `BUCKETDISK_KILLS` says; `scripts/crash` makes 200. `BUCKETDISK_CRASH_SEED` repeats what is done with
//! which options, and not when exactly a kill falls: that is up to the machine.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Instant;

use bucket::Bucket;
use entries::TWO_NAMES;
use life::Life;
use support::kinds::{BTRFS, EXT4, Kind, XFS};
use support::real::{can_mount, make_tree};
use tally::Tally;

#[path = "crash/bucket.rs"]
mod bucket;
#[path = "crash/content.rs"]
mod content;
#[path = "crash/entries.rs"]
mod entries;
#[path = "crash/history.rs"]
mod history;
#[path = "crash/life.rs"]
mod life;
#[path = "crash/moment.rs"]
mod moment;
#[path = "crash/oracle.rs"]
mod oracle;
#[path = "crash/others.rs"]
mod others;
#[path = "crash/pulse.rs"]
mod pulse;
#[path = "crash/raw.rs"]
mod raw;
#[path = "crash/stamps.rs"]
mod stamps;
mod support;
#[path = "crash/tally.rs"]
mod tally;
#[path = "crash/writer.rs"]
mod writer;

/// Kills that one disk goes through before another is made.
const KILLS_OF_A_DISK: u32 = 8;

#[test]
fn s3_server_process() {
    support::s3_server::serve_if_asked();
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().expect("a number"))
}

/// The file systems: all, or three times the one that is asked for.
fn kinds() -> [&'static Kind; 3] {
    let all = [&EXT4, &XFS, &BTRFS];
    let Ok(asked) = std::env::var("BUCKETDISK_CRASH_KIND") else {
        return all;
    };
    let one = all.into_iter().find(|kind| kind.name == asked);
    [one.expect("ext4, xfs or btrfs"); 3]
}

/// The seed of a disk: odd where its machine keeps a journal. Of the first disks of the three kinds some do and some do not, and some are
/// encrypted.
fn seed_of_disk(seed: u64, disk: u64) -> u64 {
    let seed = seed.wrapping_mul(1001).wrapping_add(disk);
    match std::env::var("BUCKETDISK_CRASH_KEEPS").as_deref() {
        Err(_) => seed,
        Ok("journal") => seed.wrapping_mul(2) | 1,
        Ok("bucket") => seed.wrapping_mul(2),
        Ok(other) => panic!("{other:?} is neither 'journal' nor 'bucket'"),
    }
}

/// A tree to copy, of some 5 MiB.
fn tree() -> tempfile::TempDir {
    let tree = tempfile::tempdir().expect("a folder");
    make_tree(tree.path(), 3);
    std::fs::remove_file(tree.path().join("big")).expect("is removed");
    for folder in 4..12 {
        std::fs::remove_dir_all(tree.path().join(format!("folder {folder}"))).expect("is removed");
    }
    tree
}

/// Where what a violation has left is kept.
fn evidence(kind: &Kind, seed: u64, disk: u64) -> PathBuf {
    let name = format!("crash-{seed}-{}-{disk}", kind.name);
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

/// Kills so many daemons under one kind of file system.
fn kills(kind: &'static Kind, kills: u32, seed: u64, source: &Path) -> Tally {
    let mut tally = Tally::default();
    for disk in 0.. {
        if tally.kills >= kills {
            break;
        }
        let (bucket, mut machine) = Bucket::new((seed + disk) % 4 == 3);
        let some = (kills - tally.kills).min(KILLS_OF_A_DISK);
        let seed_of_disk = seed_of_disk(seed, disk);
        if life::is_encrypted(seed_of_disk) {
            machine = machine.with_passphrase();
        }
        let life = AssertUnwindSafe(|| {
            Life::run(
                kind,
                &machine,
                &bucket,
                source,
                seed_of_disk,
                some,
                &mut tally,
            )
        });
        let wrong = match catch_unwind(life) {
            Ok(Ok(())) => continue,
            // What btrfs (6.18) itself does when it replays its log: on a file of an XFS, cloned at an instant while folders and files
            // were made, renamed and synced, it showed such files after 17 of 80 clones. Counted; this disk is looked at no further.
            Ok(Err(wrong)) if kind.name == "btrfs" && wrong.contains(TWO_NAMES) => {
                println!("btrfs: {wrong}");
                tally.two_names += 1;
                continue;
            }
            Ok(Err(wrong)) => wrong,
            Err(_) => "a panic, see above".to_owned(),
        };
        let kept = evidence(kind, seed, disk);
        std::fs::create_dir_all(&kept).expect("a folder");
        bucket.keep(&kept);
        std::fs::write(kept.join("log"), machine.log()).expect("the log is kept");
        std::fs::write(kept.join("violation"), &wrong).expect("what was wrong is kept");
        let (at, last) = (tally.kills, tally.last);
        tally.violations.push(format!(
            "{} on {}, disk {disk}, after {at} kills, the last {last}: {wrong}; bucket and log are in {}",
            kind.name,
            bucket.store(),
            kept.display()
        ));
        println!("VIOLATION {}", tally.violations[tally.violations.len() - 1]);
        if tally.violations.len() > 3 {
            break;
        }
    }
    tally
}

#[test]
fn after_kill_9_the_bucket_alone_or_with_the_journal_has_an_earlier_state_of_every_file() {
    if !can_mount(
        "after_kill_9_the_bucket_alone_or_with_the_journal_has_an_earlier_state_of_every_file",
    ) {
        return;
    }
    let wanted = number("BUCKETDISK_KILLS").unwrap_or(9);
    let seed = number("BUCKETDISK_CRASH_SEED").unwrap_or_else(|| u64::from(rand::random::<u32>()));
    println!("seed {seed}");
    let (tree, begun) = (tree(), Instant::now());
    let mut total = Tally::default();
    let mut each = Vec::new();
    std::thread::scope(|scope| {
        let runs: Vec<_> = kinds()
            .into_iter()
            .zip(0..)
            .map(|(kind, place)| {
                let share = u32::try_from((wanted + 2 - place) / 3).expect("so many");
                let source = tree.path();
                scope.spawn(move || (kind, kills(kind, share, seed + place, source)))
            })
            .collect();
        for run in runs {
            let (kind, tally) = run.join().expect("violations are no panics");
            each.push(format!("{} {}", kind.name, tally.kills));
            total.add(tally);
        }
    });
    println!("kills {}", total.moments());
    println!(
        "{} disks given up since btrfs had a file under its old and its new name",
        total.two_names
    );
    println!(
        "crash: {} kills ({}; {} left a commit unfinished, {} with a journal), seed {seed}, {} records, {} flushes acknowledged, {} s, {} violations",
        total.kills,
        each.join(", "),
        total.unfinished,
        total.with_journal,
        total.commits,
        total.acknowledged,
        begun.elapsed().as_secs(),
        total.violations.len()
    );
    assert!(
        total.violations.is_empty(),
        "again (the same steps, kills at other instants): BUCKETDISK_CRASH_SEED={seed} BUCKETDISK_KILLS={wanted} cargo test --test crash\n{}",
        total.violations.join("\n")
    );
}
