//! The disk tier of the read cache under a real mount.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::real::{
    Machine, Mount, can_mount, read_at, run, sh, wait_for, with_directory, write_at,
};
use crate::support::s3_server::S3Server;

const MIB: u64 = 1 << 20;
const BYTES: usize = 8 << 20;

fn data() -> Vec<u8> {
    (0..BYTES as u32)
        .map(|n| (n / 512 % 251) as u8 + 1)
        .collect()
}

/// Options of a mount with a disk tier in a directory of its own.
fn with_tier(directory: &Path) -> [&str; 4] {
    let directory = directory.to_str().expect("UTF-8");
    ["--cache-size", "1g", "--cache-dir", directory]
}

fn tier(disk: &Mount<'_>, figure: &str) -> u64 {
    disk.status()["store"]["disk_cache"][figure]
        .as_u64()
        .expect("a number")
}

fn has_tier(disk: &Mount<'_>) -> bool {
    !disk.status()["store"]["disk_cache"].is_null()
}

fn gets(disk: &Mount<'_>) -> u64 {
    disk.status()["traffic"]["gets"].as_u64().expect("a number")
}

/// A machine with a filled disk of 32 MiB in a directory, of which no cache knows.
fn filled(machine: &Machine, url: &str) {
    let new = ["--create", "--size", "32m", "--block-size", "64k"];
    let options = [&new[..], &["--compress", "none"]].concat();
    let disk = machine.mount(url, "disk", &options);
    write_at(&disk, MIB, &data(), true);
    disk.umount();
}

fn refused(machine: &Machine, code: i32, arguments: &[&str]) -> String {
    let output = machine.try_run(arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    said
}

#[test]
fn after_a_restart_what_was_read_is_served_while_the_store_is_away() {
    if !can_mount("after_a_restart_what_was_read_is_served_while_the_store_is_away") {
        return;
    }
    let mut server = S3Server::start();
    server.make_bucket("bucket");
    let machine = server.machine();
    let (url, home) = ("s3://bucket", machine.path().join("tier"));
    filled(&machine, url);
    let disk = machine.mount(url, "disk", &with_tier(&home));
    assert_eq!(read_at(&disk, MIB, BYTES), data());
    assert!(tier(&disk, "misses") >= 128 && tier(&disk, "hits") == 0);
    disk.umount();
    // After a kill too.
    for end in ["umount", "kill"] {
        let disk = machine.mount(url, "disk", &with_tier(&home));
        let before = gets(&disk);
        server.stop();
        assert_eq!(read_at(&disk, MIB, BYTES), data());
        assert_eq!(gets(&disk), before);
        assert!(tier(&disk, "hits") >= 128 && tier(&disk, "misses") == 0);
        server.restart_on_same_port();
        match end {
            "umount" => disk.umount(),
            _ => disk.kill(),
        }
    }
    let mut reader = with_tier(&home).to_vec();
    reader.push("--read-only");
    let disk = machine.mount(url, "disk", &reader);
    server.stop();
    assert_eq!(
        read_at(&disk, MIB, BYTES),
        data(),
        "a mount for reading too"
    );
    disk.umount();
    server.restart_on_same_port();
}

#[test]
fn a_damaged_cache_is_told_of_and_the_disk_reads_right() {
    if !can_mount("a_damaged_cache_is_told_of_and_the_disk_reads_right") {
        return;
    }
    let (machine, url) = with_directory();
    let home = machine.path().join("tier");
    filled(&machine, &url);
    let disk = machine.mount(&url, "disk", &with_tier(&home));
    assert_eq!(read_at(&disk, MIB, BYTES), data());
    disk.umount();
    sh(&format!(
        "for file in {}/cache/blocks/*/*; do \
           dd if=/dev/urandom of=$file bs=100 seek=7 count=1 conv=notrunc status=none; done",
        home.display()
    ));
    let disk = machine.mount(&url, "disk", &with_tier(&home));
    assert_eq!(read_at(&disk, MIB, BYTES), data());
    let damaged = tier(&disk, "damaged");
    assert!(damaged >= 128, "{damaged}");
    let shown = machine.run(&["status", disk.dir()]);
    assert!(shown.contains(&format!("{damaged} damaged")), "{shown}");
    let log = machine.log();
    assert!(log.contains("a cached object does not check out"), "{log}");
    disk.umount();
    let disk = machine.mount(&url, "disk", &with_tier(&home));
    let before = gets(&disk);
    assert_eq!(read_at(&disk, MIB, BYTES), data());
    assert_eq!((gets(&disk) - before, tier(&disk, "damaged")), (0, 0));
    // All of it deleted is a cache that begins anew.
    disk.umount();
    fs::remove_dir_all(home.join("cache")).expect("is removed");
    let disk = machine.mount(&url, "disk", &with_tier(&home));
    assert_eq!(read_at(&disk, MIB, BYTES), data());
    assert!(tier(&disk, "misses") >= 128);
    disk.umount();
}

#[test]
fn the_size_is_checked_and_zero_or_none_is_no_disk_tier() {
    if !can_mount("the_size_is_checked_and_zero_or_none_is_no_disk_tier") {
        return;
    }
    let (machine, url) = with_directory();
    filled(&machine, &url);
    let home = machine.path().join("tier");
    let place = home.to_str().expect("UTF-8");
    let at = machine.path().join("other");
    fs::create_dir(&at).expect("a folder");
    let at = at.to_str().expect("UTF-8");
    let said = refused(&machine, 2, &["mount", &url, at, "--cache-size", "1m"]);
    assert!(said.contains("at least 1114112, or 0 for none"), "{said}");
    for options in [
        ["--cache-size", "0", "--cache-dir", place],
        ["--cache-size", "1g", "--cache-dir", "none"],
        ["--cache-size", "1m", "--cache-dir", "none"],
    ] {
        let disk = machine.mount(&url, "disk", &options);
        assert_eq!(read_at(&disk, MIB, 1000), data()[..1000]);
        assert!(!has_tier(&disk));
        assert!(machine.run(&["status", disk.dir()]).contains("no cache"));
        disk.umount();
    }
    assert!(!home.join("cache").exists());
    let least = ["--cache-size", "1114112", "--cache-dir", place];
    let disk = machine.mount(&url, "disk", &least);
    assert_eq!(read_at(&disk, MIB, BYTES), data());
    assert_eq!(tier(&disk, "max_bytes"), 1_114_112);
    assert!(tier(&disk, "bytes") <= 1_114_112);
    disk.umount();
}

#[test]
fn a_second_mount_on_this_machine_goes_without_the_disk_tier() {
    if !can_mount("a_second_mount_on_this_machine_goes_without_the_disk_tier") {
        return;
    }
    let (machine, url) = with_directory();
    filled(&machine, &url);
    let home = machine.path().join("tier");
    let mut reader = with_tier(&home).to_vec();
    reader.push("--read-only");
    let first = machine.mount(&url, "first", &reader);
    let second = machine.mount(&url, "second", &reader);
    let writer = machine.mount(&url, "disk", &with_tier(&home));
    let tiers = [&first, &second, &writer].map(has_tier);
    assert_eq!(tiers, [true, false, false]);
    for disk in [&first, &second, &writer] {
        assert_eq!(read_at(disk, MIB, BYTES), data());
    }
    let log = machine.log();
    assert!(log.contains("this one goes without"), "{log}");
    for disk in [first, second, writer] {
        disk.umount();
    }
    let disk = machine.mount(&url, "disk", &with_tier(&home));
    assert!(has_tier(&disk), "it is free again");
    disk.umount();
}

#[test]
fn a_directory_that_cannot_be_used_is_a_mount_without_the_disk_tier() {
    if !can_mount("a_directory_that_cannot_be_used_is_a_mount_without_the_disk_tier") {
        return;
    }
    let (machine, url) = with_directory();
    filled(&machine, &url);
    let home = machine.path().join("tier");
    fs::create_dir(&home).expect("a folder");
    fs::write(home.join("cache"), b"a file").expect("is written");
    sh(&format!("chmod 700 {}", home.display()));
    for extra in [&[][..], &["--read-only"]] {
        let mut options = with_tier(&home).to_vec();
        options.extend(extra);
        let disk = machine.mount(&url, "disk", &options);
        assert!(!has_tier(&disk));
        assert_eq!(read_at(&disk, MIB, BYTES), data());
        disk.umount();
    }
    let log = machine.log();
    let told = log.matches("there is no read cache on the local disk");
    assert_eq!(told.count(), 2, "{log}");
}

/// Unmounted when dropped.
struct Small(PathBuf);

impl Drop for Small {
    fn drop(&mut self) {
        run(Command::new("umount").arg("--lazy").arg(&self.0));
    }
}

#[test]
fn on_a_full_local_disk_the_mount_reads_and_writes_as_before() {
    if !can_mount("on_a_full_local_disk_the_mount_reads_and_writes_as_before") {
        return;
    }
    let (machine, url) = with_directory();
    filled(&machine, &url);
    let home = machine.path().join("tier");
    fs::create_dir(&home).expect("a folder");
    run(Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=112m,mode=700", "none"])
        .arg(&home));
    let small = Small(home.clone());
    let disk = machine.mount(&url, "disk", &with_tier(&home));
    assert_eq!(read_at(&disk, MIB, BYTES), data());
    assert!(tier(&disk, "max_bytes") < 56 * MIB, "half of what is free");
    wait_for("the cache to have it", || {
        tier(&disk, "bytes") >= 128 * (68 << 10)
    });
    drop(fs::write(home.join("others"), vec![1; 112 << 20]).expect_err("is full"));
    let mut new = data();
    new.reverse();
    write_at(&disk, MIB, &new, true);
    assert_eq!(read_at(&disk, MIB, BYTES), new);
    // What is cached has made room for what others write.
    wait_for("some space", || {
        let free = rustix::fs::statvfs(&home).expect("is mounted");
        free.f_bavail * free.f_frsize >= 5 * MIB
    });
    disk.umount();
    let disk = machine.mount(&url, "disk", &["--read-only"]);
    assert_eq!(read_at(&disk, MIB, BYTES), new, "the bucket has it");
    disk.umount();
    drop(small);
}

#[test]
fn deleting_a_disk_deletes_what_is_cached_of_it() {
    if !can_mount("deleting_a_disk_deletes_what_is_cached_of_it") {
        return;
    }
    let (machine, url) = with_directory();
    filled(&machine, &url);
    let disk = machine.mount(&url, "disk", &["--read-only", "--cache-size", "1g"]);
    let home = disk.status()["store"]["disk_cache"]["location"]
        .as_str()
        .map(PathBuf::from)
        .expect("a place");
    assert_eq!(read_at(&disk, MIB, 1000), data()[..1000]);
    disk.umount();
    assert!(home.join("blocks").exists());
    machine.run(&["delete", &url, "--yes"]);
    assert!(!home.exists());
}
