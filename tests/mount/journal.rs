//! The journal under a real mount: what was flushed is there after a kill, and no journal is applied that may not be.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::support::real::{
    Machine, Mount, can_mount, read_at, run, sh, wait_for, with_directory, write_at,
};
use crate::support::s3_server::S3Server;

const MIB: u64 = 1 << 20;

/// A disk whose flushes wait for the journal alone, and whose commits do not come by themselves.
const LAZY: [&str; 4] = ["--flush", "journal", "--commit-interval", "1h"];

/// Of the disk on a server.
const URL: &str = "s3://bucket";

/// A server with a disk, and a machine that reaches it.
fn with_server() -> (S3Server, Machine) {
    let server = S3Server::start();
    server.make_bucket("bucket");
    let machine = server.machine();
    create(&machine, URL);
    (server, machine)
}

fn create(machine: &Machine, url: &str) {
    machine.run(&["create", url, "--size", "64m"]);
}

fn refused(machine: &Machine, code: i32, arguments: &[&str]) -> String {
    let output = machine.try_run(arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if let (true, ["mount", _, at, ..]) = (output.status.success(), arguments) {
        machine.run(&["umount", at]);
    }
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    said
}

fn commits(disk: &Mount<'_>) -> u64 {
    disk.status()["store"]["commits"]
        .as_u64()
        .expect("a number")
}

#[test]
fn a_flush_does_not_wait_for_a_store_that_is_away_and_survives_a_kill() {
    if !can_mount("a_flush_does_not_wait_for_a_store_that_is_away_and_survives_a_kill") {
        return;
    }
    let (mut server, machine) = with_server();
    let disk = machine.mount(URL, "disk", &LAZY);
    server.stop();
    write_at(&disk, MIB, &[1; 100_000], true);
    write_at(&disk, MIB + 50_000, &[2; 10_000], true);
    assert_eq!(commits(&disk), 0);
    disk.kill();
    server.restart_on_same_port();
    let (disk, told) = machine.mount_saying(URL, "disk", &LAZY);
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(
        told.contains("has died") && told.contains("its journal in"),
        "{told}"
    );
    let mut expected = vec![1; 100_000];
    expected[50_000..60_000].fill(2);
    assert_eq!(read_at(&disk, MIB, 100_000), expected);
    // It is committed without being asked for.
    wait_for("the commit of what was found", || commits(&disk) > 0);
    disk.kill();
    let disk = machine.mount(URL, "disk", &["--read-only"]);
    assert_eq!(read_at(&disk, MIB, 100_000), expected, "the bucket has it");
    disk.umount();
}

#[test]
fn a_full_local_disk_refuses_the_mount_and_does_not_cost_what_the_journal_has() {
    if !can_mount("a_full_local_disk_refuses_the_mount") {
        return;
    }
    let (machine, url) = with_directory();
    create(&machine, &url);
    let info = machine.run(&["info", "--json", &url]);
    let info: serde_json::Value = serde_json::from_str(&info).expect("JSON");
    let root = bucketdisk::local::LocalState::root().expect("a place");
    let home = root.join(info["disk_id"].as_str().expect("an id"));
    fs::create_dir_all(&home).expect("a folder");
    sh(&format!(
        "mount -t tmpfs -o size=72m,mode=700 none {}",
        home.display()
    ));
    let (disk, _) = machine.mount_as_usual(&url, "disk", &["--commit-interval", "1h"]);
    for at in 0..54 {
        write_at(
            &disk,
            at * MIB,
            &vec![at as u8 + 1; MIB as usize],
            at % 9 == 8,
        );
    }
    assert_eq!(commits(&disk), 0);
    let at = disk.dir().to_owned();
    disk.kill();
    let filler = home.join("filler");
    sh(&format!(
        "cat /dev/zero >{} 2>/dev/null || true",
        filler.display()
    ));
    let said = refused(&machine, 11, &["mount", &url, &at]);
    for part in [home.to_str().expect("UTF-8"), "nothing is lost"] {
        assert!(said.contains(part), "lacks {part:?}: {said}");
    }
    sh(&format!("mount -o remount,size=128m {}", home.display()));
    let (disk, _) = machine.mount_as_usual(&url, "disk", &[]);
    for at in 0..54 {
        assert!(
            read_at(&disk, at * MIB, MIB as usize) == vec![at as u8 + 1; MIB as usize],
            "MiB {at}"
        );
    }
    disk.umount();
    sh(&format!("umount {}", home.display()));
}

#[test]
fn flush_bucket_commits_and_flush_alone_does_not() {
    if !can_mount("flush_bucket_commits_and_flush_alone_does_not") {
        return;
    }
    let (machine, url) = with_directory();
    create(&machine, &url);
    let disk = machine.mount(&url, "disk", &LAZY);
    write_at(&disk, 0, &[1; 5000], false);
    let told = machine.run(&["flush", disk.dir()]);
    assert!(told.contains("in the journal"), "{told}");
    assert_eq!(commits(&disk), 0);
    assert!(disk.status()["dirty_bytes"].as_u64() > Some(5000));
    let told = machine.run(&["flush", "--bucket", disk.dir()]);
    assert!(told.contains("in the bucket"), "{told}");
    assert_eq!(commits(&disk), 1);
    assert_eq!(disk.status()["dirty_bytes"], 0);
    let told = machine.run(&["flush", disk.dir()]);
    assert!(
        told.contains("in the bucket"),
        "nothing is left for the journal: {told}"
    );
    disk.umount();
    refused(
        &machine,
        3,
        &["flush", machine.path().to_str().expect("UTF-8")],
    );
}

#[test]
fn after_an_umount_the_journal_is_empty_and_small_and_nothing_is_replayed() {
    if !can_mount("after_an_umount_the_journal_is_empty_and_small") {
        return;
    }
    let (machine, url) = with_directory();
    create(&machine, &url);
    let cache = machine.cache_directory(&url);
    for fill in 0..2 {
        let (disk, told) = machine.mount_saying(&url, "disk", &LAZY);
        let told = String::from_utf8_lossy(&told.stdout).into_owned();
        assert!(!told.contains("journal"), "{told}");
        for at in 0..60 {
            write_at(&disk, at * MIB, &vec![fill; MIB as usize], at % 10 == 0);
        }
        for at in 0..60 {
            write_at(&disk, at * MIB, &vec![fill + 7; MIB as usize], false);
        }
        assert_eq!(read_at(&disk, 59 * MIB, 1000), [fill + 7; 1000]);
        disk.umount();
        let names = fs::read_dir(&cache).expect("a folder");
        let bytes: u64 = names
            .map(|e| e.expect("an entry").metadata().expect("metadata").len())
            .sum();
        assert!(bytes <= 65 * MIB, "{bytes}");
    }
}

#[test]
fn a_journal_is_not_left_behind_in_another_directory() {
    if !can_mount("a_journal_is_not_left_behind_in_another_directory") {
        return;
    }
    let (machine, url) = with_directory();
    create(&machine, &url);
    let disk = machine.mount(&url, "disk", &LAZY);
    write_at(&disk, 5, b"only in the journal", true);
    let at = disk.dir().to_owned();
    disk.kill();
    let cache = machine.cache_directory(&url);
    let cache = cache.to_str().expect("UTF-8");
    let other = machine.path().join("other cache");
    let other = other.to_str().expect("UTF-8");
    for directory in [other, "none"] {
        let said = refused(&machine, 6, &["mount", &url, &at, "--cache-dir", directory]);
        assert!(
            said.contains(cache) && said.contains("--cache-dir"),
            "{said}"
        );
    }
    let disk = machine.mount(&url, "disk", &LAZY);
    assert_eq!(read_at(&disk, 5, 19), b"only in the journal");
    // Else what is written now may go into the same commit.
    wait_for("the commit of what was found", || commits(&disk) > 0);
    write_at(&disk, 5, b"given up in the end", true);
    disk.kill();
    let disk = machine.mount(&url, "disk", &["--cache-dir", "none", "--discard-journal"]);
    assert_ne!(read_at(&disk, 5, 19), b"given up in the end");
    disk.umount();
    // The one that was given up has been overtaken.
    let said = refused(&machine, 6, &["mount", &url, &at, "--cache-dir", cache]);
    assert!(said.contains("another session"), "{said}");
}

#[test]
fn a_cache_directory_may_be_given_as_seen_from_where_the_mount_was_started() {
    if !can_mount("a_cache_directory_may_be_given_as_seen_from_where_the_mount_was_started") {
        return;
    }
    let (machine, url) = with_directory();
    create(&machine, &url);
    let at = machine.path().join("disk");
    fs::create_dir(&at).expect("a folder");
    let at = at.to_str().expect("UTF-8");
    let log = machine.path().join("log");
    let log = log.to_str().expect("UTF-8");
    run(machine
        .program(&["mount", &url, at, "--cache-dir", "here", "--log", log])
        .current_dir(machine.path()));
    let found = machine.path().join("here/state").exists();
    machine.run(&["umount", at]);
    assert!(found);
}

#[test]
fn a_cache_directory_is_of_one_disk_and_one_process() {
    if !can_mount("a_cache_directory_is_of_one_disk_and_one_process") {
        return;
    }
    let (machine, url) = with_directory();
    create(&machine, &url);
    let second = format!("{url}/second");
    fs::create_dir_all(Path::new(url.trim_start_matches("file://")).join("second"))
        .expect("a folder");
    create(&machine, &second);
    let cache = machine.cache_directory(&url);
    let cache = cache.to_str().expect("UTF-8");
    let folder = machine.path().join("second");
    fs::create_dir(&folder).expect("a folder");
    let at = folder.to_str().expect("UTF-8");
    let disk = machine.mount(&url, "disk", &LAZY);
    let mount = ["mount", &second, at, "--cache-dir", cache];
    let said = refused(&machine, 13, &mount);
    assert!(said.contains(cache), "{said}");
    let file = machine.path().join("file");
    let file = file.to_str().expect("UTF-8");
    refused(&machine, 13, &["journal", "export", cache, file]);
    disk.umount();
    let said = refused(&machine, 2, &mount);
    assert!(said.contains("another disk"), "{said}");
    let said = refused(&machine, 2, &[&mount[..], &["--discard-journal"]].concat());
    assert!(said.contains("another disk"), "{said}");
    refused(&machine, 3, &["journal", "export", at, file]);
    let none = ["--cache-dir", "none", "--flush", "journal"];
    refused(&machine, 2, &[&["mount", &second, at][..], &none].concat());
}

#[test]
fn a_damaged_journal_is_kept_told_of_exported_and_given_up_on_request_only() {
    if !can_mount("a_damaged_journal_is_kept_told_of_exported_and_given_up_on_request_only") {
        return;
    }
    let (machine, url) = with_directory();
    create(&machine, &url);
    let disk = machine.mount(&url, "disk", &LAZY);
    for n in 0..3u8 {
        write_at(&disk, u64::from(n) * MIB, &[n + 1; 4096], true);
    }
    let at = disk.dir().to_owned();
    disk.kill();
    let cache = machine.cache_directory(&url);
    let flip = || {
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(cache.join("segment-00000"))
            .expect("opens");
        // In the second record: the header of the segment, a record of 4 KiB, a header.
        let place = 64 + (64 + 4096) + 64 + 1000;
        let mut byte = [0];
        file.read_exact_at(&mut byte, place).expect("reads");
        file.write_all_at(&[byte[0] ^ 1], place).expect("writes");
    };
    flip();
    let cache = cache.to_str().expect("UTF-8");
    let mount = ["mount", &url, &at, "--cache-dir", cache];
    let said = refused(&machine, 9, &mount);
    assert!(
        said.contains("damaged") && said.contains("journal export"),
        "{said}"
    );
    let file = machine.path().join("file");
    let text = file.to_str().expect("UTF-8");
    let said = refused(&machine, 9, &["journal", "export", cache, text]);
    assert!(said.contains("and not all"), "{said}");
    let content = fs::read(&file).expect("reads");
    assert_eq!(content.len() as u64, 64 * MIB);
    assert_eq!(content[..4096], [1; 4096]);
    assert!(content[4096..].iter().all(|byte| *byte == 0));
    flip();
    // It was only looked at: mended, it is as good as it was.
    let disk = machine.mount(&url, "disk", &LAZY);
    for n in 0..3u8 {
        assert_eq!(read_at(&disk, u64::from(n) * MIB, 4096), [n + 1; 4096]);
        write_at(&disk, u64::from(n) * MIB, &[n + 11; 4096], true);
    }
    machine.run(&["flush", "--bucket", disk.dir()]);
    for n in 0..3u8 {
        write_at(&disk, u64::from(n) * MIB, &[n + 21; 4096], true);
    }
    disk.kill();
    fs::remove_file(Path::new(cache).join("state")).expect("removes");
    let said = refused(&machine, 9, &mount);
    assert!(said.contains("'state'"), "{said}");
    let disk = machine.mount(&url, "disk", &["--discard-journal"]);
    for n in 0..3u8 {
        assert_eq!(read_at(&disk, u64::from(n) * MIB, 4096), [n + 11; 4096]);
    }
    disk.umount();
}

#[test]
fn a_journal_that_can_only_be_read_is_exported_and_one_that_cannot_is_denied() {
    if !can_mount("a_journal_that_can_only_be_read_is_exported_and_one_that_cannot_is_denied") {
        return;
    }
    let (machine, url) = with_directory();
    create(&machine, &url);
    let disk = machine.mount(&url, "disk", &LAZY);
    write_at(&disk, 0, &[7; 4096], true);
    disk.kill();
    let cache = machine.cache_directory(&url);
    let (cache, file) = (cache.display(), machine.path().join("copy"));
    let export = |program: &str| {
        let script = format!(
            "mount --bind {cache} {cache}\n\
             mount -o remount,bind,ro {cache}\n\
             ! touch {cache}/lock 2>/dev/null\n\
             mount -t tmpfs none /mnt\n\
             touch /mnt/program\n\
             mount --bind \"$PROGRAM\" /mnt/program\n\
             {program} journal export {cache} {} --force\n",
            file.display()
        );
        let output = machine.elsewhere(&url, &script);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), said)
    };
    let (code, said) = export("/mnt/program");
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(fs::read(&file).expect("reads")[..4096], [7; 4096]);
    let (code, said) = export("setpriv --reuid=65534 --clear-groups /mnt/program");
    assert_eq!(code, Some(7), "{said}");
    assert!(said.contains(&cache.to_string()), "{said}");
}

#[test]
fn writers_wait_where_the_bucket_lags_too_far_behind() {
    if !can_mount("writers_wait_where_the_bucket_lags_too_far_behind") {
        return;
    }
    let (mut server, machine) = with_server();
    let disk = machine.mount(
        URL,
        "disk",
        &[&LAZY[..], &["--max-lag", "1s", "--timeout", "2s"]].concat(),
    );
    server.stop();
    write_at(&disk, 0, &[1; 4096], true);
    wait_for("the lag to be too long", || {
        disk.status()["oldest_dirty_seconds"].as_f64() > Some(1.1)
    });
    let image = disk.image();
    let writing = std::thread::spawn(move || {
        let file = fs::OpenOptions::new()
            .write(true)
            .open(image)
            .expect("opens");
        file.write_all_at(&[2; 4096], 4096)
    });
    wait_for("the store to be asked", || {
        disk.status()["traffic"]["last_error"].is_string()
    });
    assert!(!writing.is_finished(), "it waits");
    assert_eq!(read_at(&disk, 0, 4096), [1; 4096], "reads do not");
    server.restart_on_same_port();
    writing.join().expect("joins").expect("writes");
    assert_eq!(read_at(&disk, 4096, 4096), [2; 4096]);
    disk.umount();
}
