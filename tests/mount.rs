//! The main job on real mounts: the program, the kernel's FUSE, loop devices, file systems, a directory and an S3 server process
//! as stores.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use support::real::{Machine, Mount, assert_same_tree, can_mount, make_tree, run, sh, wait_for};
use support::s3_server::S3Server;
use support::{fsx, s3_server};

mod support;

/// The other side of [`S3Server`]: this test binary, started again, is the server process.
#[test]
fn s3_server_process() {
    s3_server::serve_if_asked();
}

/// A file system: how it is made, checked without changing anything, and the options it is mounted with.
struct Kind {
    make: &'static str,
    check: &'static str,
    options: &'static str,
}

const EXT4: Kind = Kind {
    make: "mkfs.ext4 -q",
    check: "fsck.ext4 -fn",
    options: "noatime",
};
const XFS: Kind = Kind {
    make: "mkfs.xfs -q",
    check: "xfs_repair -n",
    options: "noatime,nouuid",
};
const BTRFS: Kind = Kind {
    make: "mkfs.btrfs -q",
    check: "btrfs check --readonly",
    options: "noatime",
};

/// Make a disk, put a file system and a tree on it, take all down, and find every byte on what only the bucket holds.
fn round_trip(machine: &Machine, url: &str, kind: &Kind, loop_options: &[&str]) {
    let tree = machine.path().join("tree");
    fs::create_dir(&tree).expect("a folder");
    make_tree(&tree, 7);
    let files = machine.path().join("files");

    machine.run(&["create", url, "--size", "512m", "--label", "round trip"]);
    let disk = machine.mount(url, "disk", &["--commit-interval", "2s"]);
    let device = disk.attach(loop_options);
    sh(&format!("{} {}", kind.make, device.device));
    let mounted = device.mount(&files, kind.options);
    run(Command::new("cp").arg("-a").arg(tree.join(".")).arg(&files));
    sh(&format!("rm -r '{}/folder 3'", files.display()));
    sh(&format!("rm -r '{}/folder 3'", tree.display()));
    assert_same_tree(&tree, &files);
    mounted.umount();
    device.detach();
    disk.umount();

    let info: serde_json::Value =
        serde_json::from_str(&machine.run(&["info", "--json", url])).expect("JSON");
    assert!(info["holder"].is_null(), "{info}");

    // On what the bucket says, once from the checkpoint and once from the blocks themselves.
    for options in [&["--read-only"][..], &["--list-blocks"]] {
        let disk = machine.mount(url, "again", options);
        let device = disk.attach(loop_options);
        sh(&format!("{} {}", kind.check, device.device));
        let read_only = format!("ro,{}", kind.options);
        let mounted = device.mount(&files, &read_only);
        assert_same_tree(&tree, &files);
        mounted.umount();
        device.detach();
        disk.umount();
    }
}

fn on_a_directory(kind: &Kind, loop_options: &[&str]) {
    let machine = Machine::new();
    let bucket = machine.path().join("bucket");
    fs::create_dir(&bucket).expect("a folder");
    round_trip(
        &machine,
        &format!("file://{}", bucket.display()),
        kind,
        loop_options,
    );
}

fn on_s3(kind: &Kind, loop_options: &[&str]) {
    let server = S3Server::start();
    server.make_bucket("bucket");
    round_trip(
        &machine_for(&server),
        "s3://bucket/some/where",
        kind,
        loop_options,
    );
}

fn machine_for(server: &S3Server) -> Machine {
    let variables = server.variables();
    let machine = Machine::new().with("AWS_ENDPOINT_URL", &server.endpoint());
    variables
        .iter()
        .fold(machine, |machine, (name, value)| machine.with(name, value))
}

#[test]
fn ext4_on_a_directory_comes_back_whole() {
    if can_mount("ext4_on_a_directory_comes_back_whole") {
        on_a_directory(&EXT4, &["--direct-io=on"]);
    }
}

#[test]
fn xfs_on_a_directory_comes_back_whole() {
    if can_mount("xfs_on_a_directory_comes_back_whole") {
        on_a_directory(&XFS, &[]);
    }
}

#[test]
fn btrfs_on_a_directory_comes_back_whole() {
    if can_mount("btrfs_on_a_directory_comes_back_whole") {
        on_a_directory(&BTRFS, &["--direct-io=on"]);
    }
}

#[test]
fn ext4_on_s3_comes_back_whole() {
    if can_mount("ext4_on_s3_comes_back_whole") {
        on_s3(&EXT4, &[]);
    }
}

#[test]
fn xfs_on_s3_comes_back_whole() {
    if can_mount("xfs_on_s3_comes_back_whole") {
        on_s3(&XFS, &["--direct-io=on"]);
    }
}

#[test]
fn btrfs_on_s3_comes_back_whole() {
    if can_mount("btrfs_on_s3_comes_back_whole") {
        on_s3(&BTRFS, &[]);
    }
}

/// A machine with a bucket in a directory, and that bucket's URL.
fn with_directory() -> (Machine, String) {
    let machine = Machine::new();
    let bucket = machine.path().join("bucket");
    fs::create_dir(&bucket).expect("a folder");
    let url = format!("file://{}", bucket.display());
    (machine, url)
}

#[test]
fn the_image_behaves_as_a_file_under_random_operations() {
    if !can_mount("the_image_behaves_as_a_file_under_random_operations") {
        return;
    }
    let (machine, url) = with_directory();
    let options = [
        "--create",
        "--size",
        "4m",
        "--block-size",
        "16k",
        "--max-dirty",
        "256k",
        "--memory",
        "2m",
        "--requests",
        "8",
        "--commit-interval",
        "200ms",
    ];
    let seed = u64::from_le_bytes(
        uuid::Uuid::new_v4().as_bytes()[..8]
            .try_into()
            .expect("eight"),
    );
    for round in 0..3 {
        let disk = machine.mount(
            &url,
            "disk",
            if round == 0 { &options } else { &options[5..] },
        );
        let outcome = fsx::exercise(
            &disk.image(),
            4 << 20,
            1500,
            seed.wrapping_add(round),
            16 << 10,
        );
        assert_eq!(outcome, Ok(()));
        disk.umount();
    }
}

#[test]
fn fio_verifies_what_it_wrote_through_a_loop_device() {
    if !can_mount("fio_verifies_what_it_wrote_through_a_loop_device") {
        return;
    }
    let (machine, url) = with_directory();
    let disk = machine.mount(
        &url,
        "disk",
        &[
            "--create",
            "--size",
            "128m",
            "--max-dirty",
            "8m",
            "--memory",
            "32m",
        ],
    );
    let device = disk.attach(&["--direct-io=on"]);
    let job = format!(
        "fio --name=v --filename={} --rw=randwrite --bsrange=4k-256k --direct=1 --ioengine=libaio --iodepth=8 --size=128m \
         --io_size=96m --verify=crc32c --verify_backlog=64 --fsync=50 --verify_fatal=1 --verify_state_save=0 --randseed=11",
        device.device
    );
    sh(&job);
    device.detach();
    disk.umount();
    // And again from the bucket.
    let disk = machine.mount(&url, "disk", &["--read-only"]);
    let device = disk.attach(&["--direct-io=on"]);
    sh(&format!("{job} --verify_only"));
    device.detach();
    disk.umount();
}

#[test]
fn tools_that_care_about_holes_work_on_the_image() {
    if !can_mount("tools_that_care_about_holes_work_on_the_image") {
        return;
    }
    let (machine, url) = with_directory();
    let disk = machine.mount(
        &url,
        "disk",
        &["--create", "--size", "64m", "--block-size", "64k"],
    );
    let image = disk.image();
    let at = image.display();
    let blocks = |path: &Path| fs::metadata(path).expect("there").blocks();
    assert_eq!(blocks(&image), 0, "a new disk takes no space");

    sh(&format!(
        "dd if=/dev/urandom of={at} bs=1M count=16 seek=8 conv=notrunc,fsync status=none"
    ));
    assert_eq!(blocks(&image), 16 * 2048);
    sh(&format!(
        "dd if=/dev/zero of={at} bs=1M count=2 seek=10 conv=notrunc,fsync status=none"
    ));
    assert_eq!(
        blocks(&image),
        14 * 2048,
        "zeros that were written are holes once committed"
    );
    sh(&format!(
        "fallocate --punch-hole --offset 8M --length 1M {at}"
    ));
    sh(&format!(
        "fallocate --zero-range --keep-size --offset 9M --length 1M {at}"
    ));
    assert_eq!(blocks(&image), 12 * 2048);
    let refused = Command::new("fallocate")
        .args(["--length", "1M"])
        .arg(&image)
        .output()
        .expect("runs");
    assert!(!refused.status.success(), "space cannot be set aside");
    let refused = Command::new("truncate")
        .args(["--size", "65M"])
        .arg(&image)
        .output()
        .expect("runs");
    assert!(!refused.status.success(), "the size is fixed");
    sh(&format!("truncate --size 64M {at}"));

    let copy = machine.path().join("copy");
    run(Command::new("cp")
        .arg("--sparse=always")
        .arg(&image)
        .arg(&copy));
    sh(&format!("cmp {at} {}", copy.display()));
    let back = machine.path().join("back.qcow2");
    run(Command::new("qemu-img")
        .args(["convert", "-f", "raw", "-O", "qcow2"])
        .arg(&image)
        .arg(&back));
    sh(&format!(
        "qemu-img compare -f raw -F qcow2 {at} {}",
        back.display()
    ));
    // And into the image.
    sh(&format!(
        "fallocate --punch-hole --offset 0 --length 64M {at} && sync {at}"
    ));
    assert_eq!(blocks(&image), 0);
    run(Command::new("qemu-img")
        .args(["convert", "-n", "-f", "qcow2", "-O", "raw"])
        .arg(&back)
        .arg(&image));
    sh(&format!("sync {at} && cmp {at} {}", copy.display()));
    assert_eq!(blocks(&image), 12 * 2048);

    let device = disk.attach(&["--direct-io=on"]);
    sh(&format!("blkdiscard {}", device.device));
    sh(&format!("sync {at}"));
    assert_eq!(blocks(&image), 0, "a discarded device is all holes");
    sh(&format!("mkfs.ext4 -q {}", device.device));
    let files = device.mount(&machine.path().join("files"), "noatime");
    sh(&format!(
        "dd if=/dev/urandom of={}/x bs=1M count=20 status=none; sync",
        files.directory.display()
    ));
    let full = blocks(&image);
    sh(&format!(
        "rm {0}/x; sync; fstrim {0}; sync {at}",
        files.directory.display()
    ));
    assert!(
        blocks(&image) + 19 * 2048 < full,
        "a trimmed file gives its space back"
    );
    files.umount();
    device.detach();
    disk.umount();
}

/// Reads a part of the image.
fn read_at(mount: &Mount<'_>, offset: u64, len: usize) -> Vec<u8> {
    let mut buf = vec![0; len];
    fs::File::open(mount.image())
        .and_then(|f| f.read_exact_at(&mut buf, offset))
        .expect("reads");
    buf
}

fn write_at(mount: &Mount<'_>, offset: u64, data: &[u8], sync: bool) {
    let file = fs::OpenOptions::new()
        .write(true)
        .open(mount.image())
        .expect("opens");
    file.write_all_at(data, offset).expect("writes");
    if sync {
        file.sync_all().expect("syncs");
    }
}

#[test]
fn what_was_synced_survives_kill_9_and_the_same_machine_goes_on_without_questions() {
    if !can_mount("what_was_synced_survives_kill_9") {
        return;
    }
    let (machine, url) = with_directory();
    let disk = machine.mount(&url, "disk", &["--create", "--size", "16m"]);
    write_at(&disk, 5_000_000, &[7; 100_000], true);
    write_at(&disk, 9_000_000, &[8; 100], false);
    disk.kill();
    let disk = machine.mount(&url, "disk", &[]);
    assert_eq!(read_at(&disk, 5_000_000, 100_000), vec![7; 100_000]);
    disk.umount();
}

#[test]
fn a_disk_is_mounted_for_writing_once_and_for_reading_beside_it() {
    if !can_mount("a_disk_is_mounted_for_writing_once") {
        return;
    }
    let (machine, url) = with_directory();
    let disk = machine.mount(&url, "disk", &["--create", "--size", "16m"]);
    write_at(&disk, 0, b"first", true);
    let second = machine.path().join("second");
    fs::create_dir(&second).expect("a folder");
    let refused = machine.try_run(&["mount", &url, second.to_str().expect("UTF-8")]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(matches!(refused.status.code(), Some(5 | 13)), "{refused:?}");
    assert!(
        said.contains(&disk.pid().to_string()),
        "names who has it: {said}"
    );
    let reader = machine.mount(&url, "reader", &["--read-only"]);
    write_at(&disk, 0, b"later", true);
    assert_eq!(read_at(&reader, 0, 5), b"first", "a reader sees one state");
    assert!(
        fs::OpenOptions::new()
            .write(true)
            .open(reader.image())
            .is_err()
    );
    reader.umount();
    disk.umount();
}

#[test]
fn disks_under_different_prefixes_do_not_see_each_other() {
    if !can_mount("disks_under_different_prefixes_do_not_see_each_other") {
        return;
    }
    let (machine, url) = with_directory();
    for (prefix, fill) in [("one", 1u8), ("two/deep", 2)] {
        let disk = machine.mount(
            &url,
            "disk",
            &["--prefix", prefix, "--create", "--size", "8m"],
        );
        write_at(&disk, 1000, &[fill; 5000], true);
        disk.umount();
    }
    for (prefix, fill) in [("one", 1u8), ("two/deep", 2)] {
        let disk = machine.mount(&url, "disk", &["--prefix", prefix]);
        assert_eq!(read_at(&disk, 1000, 5000), vec![fill; 5000]);
        disk.umount();
    }
    machine.run(&["delete", &url, "--prefix", "one", "--yes"]);
    machine.run(&["info", &url, "--prefix", "two/deep"]);
    assert_eq!(
        machine
            .try_run(&["info", &url, "--prefix", "one"])
            .status
            .code(),
        Some(3)
    );
}

/// Each way of ending a mount leaves everything in the bucket, synced or not, and the disk free.
#[test]
fn every_way_of_unmounting_commits_everything() {
    if !can_mount("every_way_of_unmounting_commits_everything") {
        return;
    }
    let (machine, url) = with_directory();
    machine.run(&["create", &url, "--size", "16m"]);
    let dir = machine.path().join("disk");
    let ways: [(&str, String); 4] = [
        ("umount", format!("umount {}", dir.display())),
        ("fusermount3", format!("fusermount3 -u {}", dir.display())),
        ("SIGTERM", "kill -TERM $PID".to_owned()),
        ("SIGINT", "kill -INT $PID".to_owned()),
    ];
    for (round, (way, line)) in (1u8..).zip(ways) {
        let disk = machine.mount(&url, "disk", &["--commit-interval", "1h"]);
        let pid = disk.pid();
        write_at(
            &disk,
            u64::from(round) * 1_000_000,
            &[round; 300_000],
            false,
        );
        run(Command::new("sh")
            .args(["-euc", &line])
            .env("PID", pid.to_string()));
        wait_for("the daemon to finish", || {
            !Path::new(&format!("/proc/{pid}")).exists()
        });
        assert!(!disk.is_mounted(), "{way}");
        let info: serde_json::Value =
            serde_json::from_str(&machine.run(&["info", "--json", &url])).expect("JSON");
        assert!(info["holder"].is_null(), "{way}: {info}");
    }
    let disk = machine.mount(&url, "disk", &["--read-only"]);
    for round in 1..=4u8 {
        assert_eq!(
            read_at(&disk, u64::from(round) * 1_000_000, 300_000),
            vec![round; 300_000]
        );
    }
    disk.umount();
}

#[test]
fn a_busy_mount_is_not_unmounted_and_sigterm_serves_the_last_user_to_the_end() {
    if !can_mount("a_busy_mount_is_not_unmounted") {
        return;
    }
    let (machine, url) = with_directory();
    let disk = machine.mount(
        &url,
        "disk",
        &["--create", "--size", "16m", "--commit-interval", "1h"],
    );
    let pid = disk.pid();
    let device = disk.attach(&["--direct-io=on"]);
    let refused = machine.try_run(&["umount", disk.directory.to_str().expect("UTF-8")]);
    assert_eq!(refused.status.code(), Some(13), "{refused:?}");
    assert!(disk.is_mounted());
    sh(&format!("kill -TERM {pid}"));
    wait_for("the mount to be detached", || !disk.is_mounted());
    // The loop device still works, and what it writes now is in the bucket at the end.
    sh(&format!(
        "dd if=/dev/urandom of={} bs=64k count=32 oflag=direct status=none",
        device.device
    ));
    let written = sh(&format!(
        "dd if={} bs=64k count=32 status=none | sha256sum",
        device.device
    ));
    device.detach();
    wait_for("the daemon to finish", || {
        !Path::new(&format!("/proc/{pid}")).exists()
    });
    let disk = machine.mount(&url, "disk", &["--read-only"]);
    let found = sh(&format!(
        "dd if={} bs=64k count=32 status=none | sha256sum",
        disk.image().display()
    ));
    assert_eq!(found, written);
    disk.umount();
}

#[test]
fn a_store_that_goes_away_for_a_while_costs_nothing_but_time() {
    if !can_mount("a_store_that_goes_away_for_a_while_costs_nothing_but_time") {
        return;
    }
    let mut server = S3Server::start();
    server.make_bucket("bucket");
    let machine = machine_for(&server);
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
    let small = support::real::FileSystem { directory: small };
    let url = format!("file://{}", small.directory.display());
    let disk = machine.mount(&url, "disk", &["--create", "--size", "64m"]);
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

/// What the process takes at its peak, while more is written and read than all its limits together.
#[test]
fn resident_memory_stays_within_the_limits_that_were_given() {
    if !can_mount("resident_memory_stays_within_the_limits_that_were_given") {
        return;
    }
    let (machine, url) = with_directory();
    let options = [
        "--create",
        "--size",
        "1g",
        "--memory",
        "48m",
        "--max-dirty",
        "48m",
    ];
    let disk = machine.mount(&url, "disk", &options);
    let device = disk.attach(&["--direct-io=on"]);
    for job in [
        "--rw=write --bs=1m --size=256m",
        "--rw=randrw --bs=4k --size=256m --io_size=24m",
    ] {
        sh(&format!(
            "fio --name=m --filename={} --direct=1 --ioengine=libaio --iodepth=32 {job}",
            device.device
        ));
    }
    let status = fs::read_to_string(format!("/proc/{}/status", disk.pid())).expect("reads");
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .expect("has a peak");
    let peak_kib: u64 = peak
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .expect("a number");
    assert!(peak_kib <= (48 + 48 + 64) << 10, "{} MiB", peak_kib >> 10);
    device.detach();
    disk.umount();
}

#[test]
fn the_size_of_the_image_cannot_be_changed_and_the_errno_says_so() {
    if !can_mount("the_size_of_the_image_cannot_be_changed_and_the_errno_says_so") {
        return;
    }
    let (machine, url) = with_directory();
    let disk = machine.mount(&url, "disk", &["--create", "--size", "8m"]);
    let file = fs::OpenOptions::new()
        .write(true)
        .open(disk.image())
        .expect("opens");
    for size in [0, 4096, (8 << 20) + 1] {
        assert_eq!(
            file.set_len(size).expect_err("fixed").raw_os_error(),
            Some(1),
            "{size}"
        );
    }
    file.set_len(8 << 20).expect("is its size already");
    let error = file.write_at(&[1], 8 << 20).expect_err("is the end");
    assert_eq!(error.raw_os_error(), Some(28));
    assert!(fs::File::create(disk.directory.join("other")).is_err());
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
    let machine = machine_for(&server);
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
        &["nosuchbucket"],
    );
    refused(
        &machine,
        &["info", url, "--prefix", "other"],
        3,
        &["s3://bucket/disk/other"],
    );

    let stranger = machine_for(&server).with("AWS_SECRET_ACCESS_KEY", "wrong");
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
    let bucket = support::real::FileSystem { directory: bucket };
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

/// Runs a script as another machine would: with its own name, and nothing of what the program remembers on this one. What it
/// mounts is seen by the script alone. `$PROGRAM` is the program, `$URL` the disk, `$DIR` a folder, `$LOG` a file to log to.
fn elsewhere(machine: &Machine, url: &str, script: &str) -> std::process::Output {
    let folder = machine.path().join("elsewhere");
    fs::create_dir_all(&folder).expect("a folder");
    let own = "for place in /var/cache/bucketdisk /run/bucketdisk; do mount -t tmpfs -o mode=700 none $place; done\n\
               hostname elsewhere\n";
    Command::new("unshare")
        .args(["--mount", "--uts", "sh", "-euc", &format!("{own}{script}")])
        .env("PROGRAM", env!("CARGO_BIN_EXE_bucketdisk"))
        .env("URL", url)
        .env("DIR", folder)
        .env("LOG", machine.path().join("log"))
        .output()
        .expect("runs")
}

#[test]
fn another_machine_is_refused_and_fences_the_first_where_it_takes_the_disk_over() {
    if !can_mount("another_machine_is_refused_and_fences_the_first") {
        return;
    }
    let (machine, url) = with_directory();
    let disk = machine.mount(&url, "disk", &["--create", "--size", "16m"]);
    write_at(&disk, 0, b"first", true);
    let refused = elsewhere(
        &machine,
        &url,
        "\"$PROGRAM\" mount \"$URL\" \"$DIR\" --log \"$LOG\"",
    );
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(5), "{refused:?}");
    let holder = format!("process {}", disk.pid());
    assert!(
        said.contains(&holder) && said.contains("--take-over"),
        "{said}"
    );
    write_at(&disk, 0, b"still", true);

    let file = fs::OpenOptions::new()
        .write(true)
        .open(disk.image())
        .expect("opens");
    let took = elsewhere(
        &machine,
        &url,
        "\"$PROGRAM\" mount \"$URL\" \"$DIR\" --take-over --log \"$LOG\" --quiet\n\
         head -c 5 \"$DIR/disk.img\"\n\
         printf later | dd of=\"$DIR/disk.img\" conv=notrunc,fsync status=none\n\
         \"$PROGRAM\" umount \"$DIR\" --quiet",
    );
    assert!(took.status.success(), "{took:?}");
    assert_eq!(String::from_utf8_lossy(&took.stdout), "still");

    file.write_all_at(b"lost!", 0).expect("is not known yet");
    let error = file.sync_all().expect_err("is fenced");
    assert_eq!(error.raw_os_error(), Some(30), "{error}");
    drop(file);
    let told = machine.try_run(&["umount", disk.directory.to_str().expect("UTF-8")]);
    let said = String::from_utf8_lossy(&told.stderr).into_owned();
    assert_eq!(told.status.code(), Some(6), "{said}");
    assert!(said.contains("elsewhere"), "names who has it now: {said}");
    let disk = machine.mount(&url, "disk", &[]);
    assert_eq!(read_at(&disk, 0, 5), b"later");
    disk.umount();
}

#[test]
fn verbose_logs_every_request_and_the_kernel_sends_a_whole_mebibyte_at_once() {
    if !can_mount("verbose_logs_every_request") {
        return;
    }
    let (machine, url) = with_directory();
    let disk = machine.mount(&url, "disk", &["--create", "--size", "16m", "-vv"]);
    let image = disk.image();
    let at = image.display();
    sh(&format!(
        "dd if=/dev/urandom of={at} bs=1M count=2 seek=3 conv=notrunc,fsync status=none && dd if={at} of=/dev/null bs=1M status=none"
    ));
    let traffic = disk.status()["traffic"].clone();
    let log = machine.log();
    for request in ["write ino=2 offset=3145728", "read ino=2 offset=4194304"] {
        assert!(log.contains(&format!("{request} size=1048576")), "{log}");
    }
    let count = |operation: &str| {
        let request = format!("store request operation=\"{operation}\"");
        log.lines().filter(|line| line.contains(&request)).count() as u64
    };
    assert_eq!(Some(count("put")), traffic["puts"].as_u64());
    assert!(count("put") >= 8);
    disk.umount();
}

/// Whether this process may do what takes `CAP_SYS_RESOURCE`: not every container's root may.
fn has_sys_resource() -> bool {
    let status = fs::read_to_string("/proc/self/status").expect("reads");
    let set = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .expect("the capabilities");
    let set = u64::from_str_radix(set.trim(), 16).expect("hexadecimal");
    set & (1 << 24) != 0
}

/// The kernel must not wait for the disk when the threads that serve it need memory, and there are several of them.
#[test]
fn several_threads_serve_the_mount_and_are_known_as_flushers() {
    const PF_MEMALLOC_NOIO: u32 = 0x0008_0000;
    const PF_LOCAL_THROTTLE: u32 = 0x0010_0000;
    if !can_mount("several_threads_serve_the_mount") {
        return;
    }
    let (machine, url) = with_directory();
    let disk = machine.mount(&url, "disk", &["--create", "--size", "16m"]);
    let allowed = has_sys_resource();
    if !allowed {
        eprintln!("SKIPPED: without CAP_SYS_RESOURCE no process becomes a flusher");
    }
    let mut serving = 0;
    for task in fs::read_dir(format!("/proc/{}/task", disk.pid())).expect("tasks") {
        let stat = fs::read_to_string(task.expect("a task").path().join("stat")).expect("reads");
        let (name, rest) = stat.rsplit_once(") ").expect("a name");
        // The ninth word of the line, two of which are cut off.
        let flags: u32 = rest
            .split(' ')
            .nth(6)
            .and_then(|word| word.parse().ok())
            .expect("flags");
        if name.contains("(fuser-") {
            serving += 1;
        }
        let both = PF_MEMALLOC_NOIO | PF_LOCAL_THROTTLE;
        assert_eq!(flags & both, if allowed { both } else { 0 }, "{stat}");
    }
    assert!(serving > 1, "{serving} threads");
    disk.umount();
}
