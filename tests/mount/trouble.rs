//! Stores in trouble under a real mount: gone for a while, full, refusing, read-only, damaged.

use std::fs;
use std::os::unix::fs::FileExt;
use std::process::Command;

use crate::support::real::{
    FileSystem, Machine, can_mount, read_at, run, sh, wait_for, with_directory, write_at,
};
use crate::support::s3_server::S3Server;

#[test]
fn a_store_that_goes_away_for_a_while_costs_nothing_but_time() {
    if !can_mount("a_store_that_goes_away_for_a_while_costs_nothing_but_time") {
        return;
    }
    let mut server = S3Server::start();
    server.make_bucket("bucket");
    let machine = server.machine();
    let url = "s3://bucket".to_owned();
    let disk = machine.mount(
        &url,
        "disk",
        &[
            "--create",
            "--size",
            "64m",
            "--timeout",
            "2s",
            "--commit-interval",
            "300ms",
        ],
    );
    write_at(&disk, 0, &[1; 1_000_000], true);
    server.stop();
    write_at(&disk, 10_000_000, &[2; 1_000_000], false);
    let image = disk.image();
    let syncing = std::thread::spawn(move || {
        fs::OpenOptions::new()
            .write(true)
            .open(image)
            .expect("opens")
            .sync_all()
    });
    wait_for("the commit to meet the outage", || {
        disk.status()["traffic"]["last_error"].is_string()
    });
    assert_eq!(
        read_at(&disk, 10_000_000, 1_000_000),
        vec![2; 1_000_000],
        "dirty data is read all the while"
    );
    assert!(!syncing.is_finished(), "a flush waits for the store");
    server.restart_on_same_port();
    syncing
        .join()
        .expect("joins")
        .expect("the flush succeeds by itself");
    disk.umount();
    let disk = machine.mount(&url, "disk", &["--read-only"]);
    assert_eq!(read_at(&disk, 0, 1_000_000), vec![1; 1_000_000]);
    assert_eq!(read_at(&disk, 10_000_000, 1_000_000), vec![2; 1_000_000]);
    disk.umount();
}

/// A store without space: the flush fails with ENOSPC, the data stays, and is committed once there is space.
#[test]
fn a_full_store_fails_the_flush_and_loses_nothing() {
    if !can_mount("a_full_store_fails_the_flush_and_loses_nothing") {
        return;
    }
    let machine = Machine::new();
    let small = machine.path().join("small");
    fs::create_dir(&small).expect("a folder");
    run(Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=8m", "none"])
        .arg(&small));
    let small = FileSystem { directory: small };
    let url = format!("file://{}", small.directory.display());
    let new = ["--create", "--size", "64m", "--compress", "none"];
    let disk = machine.mount(&url, "disk", &new);
    let data: Vec<u8> = (0..12_000_000u32).map(|n| (n % 251) as u8 + 1).collect();
    write_at(&disk, 0, &data, false);
    let file = fs::OpenOptions::new()
        .write(true)
        .open(disk.image())
        .expect("opens");
    let error = file.sync_all().expect_err("there is no space");
    assert_eq!(error.raw_os_error(), Some(28), "{error}");
    assert_eq!(read_at(&disk, 0, data.len()), data);
    let refused = machine.try_run(&["umount", disk.directory.to_str().expect("UTF-8")]);
    assert!(disk.is_mounted(), "{refused:?}");
    run(Command::new("mount")
        .args(["-o", "remount,size=64m"])
        .arg(&small.directory));
    file.sync_all().expect("there is space now");
    drop(file);
    disk.umount();
    let disk = machine.mount(&url, "disk", &["--read-only"]);
    assert_eq!(read_at(&disk, 0, data.len()), data);
    disk.umount();
}

/// A damaged object is an I/O error for its range, named in the log and counted, and nothing else.
#[test]
fn a_damaged_object_is_an_error_for_its_range_alone() {
    if !can_mount("a_damaged_object_is_an_error_for_its_range_alone") {
        return;
    }
    let (machine, url) = with_directory();
    let disk = machine.mount(&url, "disk", &["--create", "--size", "16m"]);
    write_at(&disk, 0, &vec![5; 1 << 20], true);
    disk.umount();
    let objects = sh(&format!(
        "find {}/bucket/blocks/01 -type f",
        machine.path().display()
    ));
    let object = objects
        .lines()
        .next()
        .expect("block 1 is stored")
        .to_owned();
    sh(&format!(
        "printf X | dd of={object} bs=1 seek=1000 conv=notrunc status=none"
    ));
    let disk = machine.mount(&url, "disk", &[]);
    let file = fs::File::open(disk.image()).expect("opens");
    let mut buf = vec![0; 4096];
    let error = file
        .read_exact_at(&mut buf, 300_000)
        .expect_err("is damaged");
    assert_eq!(error.raw_os_error(), Some(5));
    file.read_exact_at(&mut buf, 0).expect("block 0 is not");
    assert_eq!(disk.status()["read_errors"], 1);
    assert!(machine.log().contains("block 1 "), "{}", machine.log());
    drop(file);
    disk.umount();
}

/// What the program says and answers where a store is not as it should be: one line, and the exit code of the manual page.
fn refused(machine: &Machine, arguments: &[&str], code: i32, says: &[&str]) {
    let output = machine.try_run(arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    assert_eq!(said.trim_end().lines().count(), 1, "{arguments:?}: {said}");
    for part in says {
        assert!(said.contains(part), "{arguments:?} lacks {part:?}: {said}");
    }
}

#[test]
fn an_s3_store_that_refuses_is_told_in_one_line() {
    let mut server = S3Server::start();
    server.make_bucket("bucket");
    let url = "s3://bucket/disk";
    let machine = server.machine();
    refused(
        &machine,
        &["info", url],
        3,
        &["no disk at s3://bucket/disk", "create"],
    );
    machine.run(&["create", url, "--size", "64m"]);
    refused(
        &machine,
        &["create", url, "--size", "64m"],
        4,
        &["s3://bucket/disk", "already"],
    );
    refused(
        &machine,
        &["info", "s3://nosuchbucket/disk"],
        3,
        &["no such bucket: nosuchbucket: check its name"],
    );
    refused(
        &machine,
        &["info", url, "--prefix", "other"],
        3,
        &["s3://bucket/disk/other"],
    );

    let stranger = server.machine().with("AWS_SECRET_ACCESS_KEY", "wrong");
    refused(&stranger, &["info", url], 7, &["SignatureDoesNotMatch"]);
    let nobody = Machine::new()
        .with("AWS_ENDPOINT_URL", &server.endpoint())
        .with("AWS_EC2_METADATA_DISABLED", "true")
        .with("HOME", "/nonexistent")
        .with("AWS_ACCESS_KEY_ID", "")
        .with("AWS_SECRET_ACCESS_KEY", "");
    refused(&nobody, &["info", url], 7, &["credentials"]);

    server.stop();
    let endpoint = server.endpoint();
    refused(&machine, &["info", url, "--timeout", "1s"], 8, &[&endpoint]);
    server.restart_on_same_port();
    machine.run(&["delete", url, "--yes"]);
}

#[test]
fn a_store_that_takes_no_writes_can_be_read_and_says_why_it_is_not_written() {
    if !can_mount("a_store_that_takes_no_writes_can_be_read") {
        return;
    }
    let machine = Machine::new();
    let bucket = machine.path().join("bucket");
    fs::create_dir(&bucket).expect("a folder");
    run(Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=32m", "none"])
        .arg(&bucket));
    let bucket = FileSystem { directory: bucket };
    let url = format!("file://{}", bucket.directory.display());
    let disk = machine.mount(&url, "disk", &["--create", "--size", "16m"]);
    write_at(&disk, 4096, &[9; 5000], true);
    disk.umount();
    run(Command::new("mount")
        .args(["-o", "remount,ro"])
        .arg(&bucket.directory));
    let second = machine.path().join("second");
    fs::create_dir(&second).expect("a folder");
    let second = second.to_str().expect("UTF-8");
    refused(
        &machine,
        &["mount", &url, second],
        12,
        &["cannot write to the store"],
    );
    refused(
        &machine,
        &["create", &url, "--prefix", "x", "--size", "16m"],
        12,
        &["cannot write to the store"],
    );
    let disk = machine.mount(&url, "disk", &["--read-only"]);
    assert_eq!(read_at(&disk, 4096, 5000), vec![9; 5000]);
    disk.umount();
}

/// The user is told which bytes of the image to write or discard, does that, and the disk goes on.
#[test]
fn a_damaged_block_that_was_written_in_part_is_mended_by_discarding_it() {
    if !can_mount("a_damaged_block_that_was_written_in_part_is_mended_by_discarding_it") {
        return;
    }
    let (machine, url) = with_directory();
    let disk = machine.mount(&url, "disk", &["--create", "--size", "16m"]);
    write_at(&disk, 0, &vec![5; 1 << 20], true);
    disk.umount();
    sh(&format!(
        "rm {}/bucket/blocks/01/*",
        machine.path().display()
    ));
    let disk = machine.mount(&url, "disk", &[]);
    write_at(&disk, 300_000, &[6; 5000], false);
    write_at(&disk, 0, &[7; 5000], false);
    let file = fs::File::open(disk.image()).expect("opens");
    let error = file.sync_all().expect_err("cannot be completed");
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
    let refused = machine.try_run(&["umount", disk.directory.to_str().expect("UTF-8")]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    for words in ["stays mounted", "block 1", "262144 bytes from 262144 "] {
        assert!(said.contains(words), "{said}");
    }
    assert_eq!(refused.status.code(), Some(9), "{said}");
    sh(&format!(
        "fallocate -p -o 262144 -l 262144 {}",
        disk.image().display()
    ));
    file.sync_all().expect("can be completed now");
    drop(file);
    disk.umount();
    let disk = machine.mount(&url, "disk", &["--read-only"]);
    assert_eq!(read_at(&disk, 0, 5000), vec![7; 5000]);
    assert_eq!(read_at(&disk, 262_144, 262_144), vec![0; 262_144]);
    assert_eq!(read_at(&disk, 524_288, 5000), vec![5; 5000]);
    disk.umount();
}
