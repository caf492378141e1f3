//! The contract of an object cache, kept by the one in files; and what it does when the local disk is small, full or not usable.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use bucketdisk::block::{BlockIndex, Seq};
use bucketdisk::cache::{FileCache, ObjectCache};
use bytes::Bytes;

use crate::support::cache::{Opened, files, spec};
use crate::support::real::{run, wait_for};

/// What one of the objects here takes of the limit.
const OBJECT: u64 = 8192;

fn object(index: u64, version: u32) -> Bytes {
    Bytes::from(vec![(index as u8).wrapping_add(version as u8); 5000])
}

fn put(opened: &Opened, index: u64, version: u32) {
    let (block, seq) = (BlockIndex(index), Seq(version));
    opened.cache.put(block, seq, object(index, version));
}

/// Whether an object is there, and is what was put.
async fn has(opened: &Opened, index: u64, version: u32) -> bool {
    let found = opened.cache.get(BlockIndex(index), Seq(version)).await;
    if let Some(found) = &found {
        assert_eq!(*found, object(index, version));
    }
    found.is_some()
}

/// A cache that may begin, with nothing newer than version 100 in the store.
fn begun(spec: bucketdisk::cache::FileCacheSpec) -> Opened {
    let opened = Opened::new(spec);
    opened.cache.begin(Seq(100));
    opened
}

/// A cache that has kept a hundred objects.
fn hundred(home: &Path) -> Opened {
    let opened = begun(spec(home));
    for index in 0..100 {
        put(&opened, index, 1);
    }
    wait_for("all to be kept", || files(home).len() == 100);
    opened
}

#[tokio::test]
async fn an_object_is_found_under_its_index_and_version_alone_also_after_a_restart() {
    let home = tempfile::tempdir().expect("a folder");
    let opened = begun(spec(home.path()));
    for (index, version) in [(0, 1), (0, 2), (256, 1), (0xff_ffff_ffff, 100)] {
        put(&opened, index, version);
    }
    opened.end().await;
    let opened = begun(spec(home.path()));
    for (index, version) in [(0, 1), (0, 2), (256, 1), (0xff_ffff_ffff, 100)] {
        assert!(has(&opened, index, version).await, "{index} {version}");
    }
    for (index, version) in [(0, 3), (1, 1), (512, 1), (256, 2)] {
        assert!(!has(&opened, index, version).await, "{index} {version}");
    }
    let status = opened.cache.status();
    assert_eq!((status.hits, status.misses, status.damaged), (4, 4, 0));
    opened.end().await;
}

#[tokio::test]
async fn what_was_removed_or_was_damaged_is_gone_and_may_be_put_again() {
    let home = tempfile::tempdir().expect("a folder");
    let opened = begun(spec(home.path()));
    for index in 0..4 {
        put(&opened, index, 1);
    }
    opened.cache.remove(BlockIndex(1), Seq(1));
    opened.cache.remove(BlockIndex(9), Seq(9));
    opened.cache.damaged(BlockIndex(2), Seq(1));
    opened.cache.damaged(BlockIndex(3), Seq(1));
    put(&opened, 3, 1);
    opened.end().await;
    let opened = begun(spec(home.path()));
    let mut found = Vec::new();
    for index in 0..4 {
        found.push(has(&opened, index, 1).await);
    }
    assert_eq!(found, [true, false, false, true]);
    opened.end().await;
    let opened = begun(spec(home.path()));
    opened.end().await;
}

#[tokio::test]
async fn nothing_is_answered_before_the_beginning_and_nothing_of_another_past_after_it() {
    let home = tempfile::tempdir().expect("a folder");
    let opened = begun(spec(home.path()));
    for version in [7, 8, 9] {
        put(&opened, 5, version);
    }
    opened.end().await;
    let opened = Opened::new(spec(home.path()));
    assert!(!has(&opened, 5, 7).await);
    opened.cache.begin(Seq(8));
    assert!(has(&opened, 5, 7).await && has(&opened, 5, 8).await);
    assert!(!has(&opened, 5, 9).await, "there is no such version yet");
    // What is put now is of this past; that it is written means that the other one is gone.
    put(&opened, 6, 9);
    opened.end().await;
    let opened = begun(spec(home.path()));
    assert!(has(&opened, 6, 9).await);
    assert!(!has(&opened, 5, 9).await);
    opened.end().await;
}

#[tokio::test]
async fn putting_never_waits_and_drops_what_the_queue_has_no_room_for() {
    let home = tempfile::tempdir().expect("a folder");
    let mut narrow = spec(home.path());
    narrow.queue_bytes = 20_000;
    // Nothing is written before the beginning.
    let opened = Opened::new(narrow);
    for index in 0..10 {
        put(&opened, index, 1);
    }
    assert_eq!(opened.cache.status().dropped, 6);
    opened.cache.begin(Seq(1));
    opened.end().await;
    assert_eq!(files(home.path()).len(), 4);
}

#[tokio::test]
async fn an_object_larger_than_the_queue_is_taken_when_nothing_else_waits() {
    let home = tempfile::tempdir().expect("a folder");
    let mut narrow = spec(home.path());
    narrow.queue_bytes = 1000;
    let opened = Opened::new(narrow);
    put(&opened, 1, 1);
    put(&opened, 2, 1);
    assert_eq!(opened.cache.status().dropped, 1);
    opened.cache.begin(Seq(1));
    opened.end().await;
    assert_eq!(files(home.path()).len(), 1);
}

#[tokio::test]
async fn the_limit_is_kept_to_and_what_is_read_again_stays() {
    const FIT: u64 = 32;
    let home = tempfile::tempdir().expect("a folder");
    let small = || {
        let mut small = spec(home.path());
        small.limit_bytes = FIT * OBJECT;
        small
    };
    for pass in 0..20 {
        let opened = begun(small());
        if pass > 0 {
            assert!(has(&opened, 3, 1).await, "pass {pass}");
        }
        if pass == 0 {
            put(&opened, 3, 1);
        }
        for index in 0..FIT / 2 {
            put(&opened, 1000 * (pass + 1) + index, 1);
        }
        let shared = opened.cache.status();
        assert_eq!(shared.max_bytes, FIT * OBJECT);
        opened.end().await;
        let found = files(home.path()).len() as u64;
        assert!((FIT / 2..=FIT).contains(&found), "pass {pass}: {found}");
    }
    // A smaller limit is kept to at once.
    let mut smaller = small();
    smaller.limit_bytes = FIT / 2 * OBJECT;
    let opened = begun(smaller);
    put(&opened, 3, 2);
    opened.end().await;
    assert!(files(home.path()).len() as u64 <= FIT / 2);
}

#[tokio::test]
async fn directory_and_files_are_their_owners_alone() {
    let home = tempfile::tempdir().expect("a folder");
    let opened = begun(spec(home.path()));
    put(&opened, 1, 1);
    opened.end().await;
    let mode = |path: &Path| fs::metadata(path).expect("is there").permissions().mode() & 0o777;
    let file = files(home.path()).pop().expect("a file");
    assert_eq!(mode(&file), 0o600);
    assert_eq!(mode(file.parent().expect("a folder")), 0o700);
    assert_eq!(mode(&home.path().join("origin")), 0o600);
}

#[tokio::test]
async fn what_is_no_object_is_passed_over_or_taken_for_a_miss() {
    let home = tempfile::tempdir().expect("a folder");
    let opened = begun(spec(home.path()));
    put(&opened, 1, 1);
    put(&opened, 2, 1);
    opened.end().await;
    let names = files(home.path());
    fs::write(names[0].with_file_name("strange"), b"x").expect("is written");
    // Larger than any object may be.
    let file = fs::File::options().write(true).open(&names[0]);
    file.expect("opens").set_len(1 << 40).expect("is sparse");
    fs::remove_file(&names[1]).expect("is removed");
    fs::create_dir(&names[1]).expect("a folder");
    let opened = begun(spec(home.path()));
    assert!(!has(&opened, 1, 1).await);
    assert!(!has(&opened, 2, 1).await);
    opened.end().await;
}

#[tokio::test]
async fn a_directory_that_cannot_be_used_is_an_error_with_its_name() {
    let home = tempfile::tempdir().expect("a folder");
    let file = home.path().join("file");
    fs::write(&file, b"x").expect("is written");
    for directory in [file, home.path().join("not there")] {
        let error = FileCache::open(spec(&directory), ()).expect_err("cannot be used");
        assert!(
            error.to_string().contains(&*directory.to_string_lossy()),
            "{error}"
        );
    }
}

/// A file system of its own, in memory.
struct Small(PathBuf);

impl Small {
    fn mount(directory: &Path, size: &str) -> Option<Small> {
        if !rustix::process::geteuid().is_root() {
            assert!(
                std::env::var_os("CI").is_none(),
                "only root can mount a tmpfs"
            );
            eprintln!("SKIPPED: only root can mount a tmpfs");
            return None;
        }
        let mut mount = std::process::Command::new("mount");
        let options = format!("size={size},mode=700");
        run(mount
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(directory));
        Some(Small(directory.to_owned()))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let mut umount = std::process::Command::new("umount");
        run(umount.arg("--lazy").arg(&self.0));
    }
}

#[tokio::test]
async fn a_cache_takes_half_of_what_is_free_at_most() {
    let home = tempfile::tempdir().expect("a folder");
    let Some(_small) = Small::mount(home.path(), "4m") else {
        return;
    };
    for _ in 0..2 {
        let opened = begun(spec(home.path()));
        for index in 0..500 {
            put(&opened, index, 1);
        }
        let cache = opened.cache.clone();
        assert!(cache.status().bytes <= cache.status().max_bytes);
        drop(cache);
        opened.end().await;
        let taken = files(home.path()).len() as u64 * OBJECT;
        assert!((1 << 20..=2 << 20).contains(&taken), "{taken}");
    }
}

#[tokio::test]
async fn on_a_full_disk_a_cache_gives_way_and_comes_back() {
    let home = tempfile::tempdir().expect("a folder");
    let Some(_small) = Small::mount(home.path(), "8m") else {
        return;
    };
    hundred(home.path()).end().await;

    // Others fill the file system: what is cached goes, so that they find room.
    const TWENTIETH: u64 = (8 << 20) / 20;
    let free = || {
        let found = rustix::fs::statvfs(home.path()).expect("is mounted");
        found.f_bavail * found.f_frsize
    };
    let others = home.path().join("others");
    let fill = |bytes: usize| fs::write(&others, vec![1; bytes]);
    fill(7 << 20).expect("is written");
    let mut full = spec(home.path());
    full.least_bytes = 0;
    let opened = begun(full.clone());
    for index in 200..300 {
        put(&opened, index, 1);
    }
    opened.end().await;
    assert!(free() >= TWENTIETH, "{}", free());

    // To the last byte.
    drop(fill(9 << 20).expect_err("is full"));
    let opened = begun(full);
    put(&opened, 1, 1);
    opened.end().await;
    assert!(free() >= TWENTIETH || files(home.path()).is_empty());

    fs::remove_file(&others).expect("is removed");
    let opened = begun(spec(home.path()));
    put(&opened, 1, 1);
    opened.end().await;
    let opened = begun(spec(home.path()));
    assert!(has(&opened, 1, 1).await);
    assert_eq!(opened.cache.status().error, None);
    opened.end().await;
}

#[tokio::test]
async fn a_cache_gives_way_also_while_nothing_is_put_into_it() {
    let home = tempfile::tempdir().expect("a folder");
    let Some(_small) = Small::mount(home.path(), "8m") else {
        return;
    };
    let opened = hundred(home.path());
    let space = || rustix::fs::statvfs(home.path()).expect("is mounted");
    let reserve = space().f_blocks / 20;
    let left = space().f_bavail * space().f_frsize;
    let others = vec![1; usize::try_from(left).expect("small") - 4096];
    fs::write(home.path().join("others"), others).expect("is written");
    wait_for("space", || space().f_bavail >= reserve);
    assert!(!files(home.path()).is_empty(), "no more than is needed");
    opened.end().await;
}

#[tokio::test]
async fn a_disk_that_takes_no_writes_is_read_and_warned_of_once() {
    let home = tempfile::tempdir().expect("a folder");
    let Some(_small) = Small::mount(home.path(), "8m") else {
        return;
    };
    let opened = begun(spec(home.path()));
    put(&opened, 1, 1);
    opened.end().await;
    let opened = begun(spec(home.path()));
    run(std::process::Command::new("mount")
        .args(["-o", "remount,ro"])
        .arg(home.path()));
    put(&opened, 2, 1);
    put(&opened, 3, 1);
    let watched = opened.cache.clone();
    let told = tokio::task::spawn_blocking(move || {
        crate::support::real::wait_for("the failure", || watched.status().error.is_some());
        watched.status()
    });
    let told = told.await.expect("is told");
    assert!(told.error.expect("an error").contains("write"));
    assert!(has(&opened, 1, 1).await, "what is there can be read");
    assert!(!has(&opened, 2, 1).await);
    put(&opened, 4, 1);
    assert!(opened.cache.status().dropped >= 2);
    opened.end().await;
}
