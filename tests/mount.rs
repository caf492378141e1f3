//! The main job on real mounts: the program, the kernel's FUSE, loop devices, file systems, a directory and an S3 server process
//! as stores.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use support::kinds::EXT4;
use support::real::{can_mount, read_at, run, sh, wait_for, with_directory, write_at};
use support::{fsx, s3_server};

#[path = "mount/cache.rs"]
mod cache;
#[path = "mount/encryption.rs"]
mod encryption;
#[path = "mount/file_systems.rs"]
mod file_systems;
#[path = "mount/journal.rs"]
mod journal;
#[path = "mount/rollback.rs"]
mod rollback;
mod support;
#[path = "mount/trouble.rs"]
mod trouble;

/// The other side of [`s3_server::S3Server`]: this test binary, started again, is the server process.
#[test]
fn s3_server_process() {
    s3_server::serve_if_asked();
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
    EXT4.make("", &device.device);
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
    let tasks = format!("/proc/{}/task", disk.pid());
    let stats = || {
        let tasks = fs::read_dir(&tasks).expect("tasks");
        // One that has ended meanwhile has none.
        tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("stat")).ok())
    };
    // A thread gives itself its name, which may take it a moment.
    wait_for("several threads that serve", || {
        stats().filter(|stat| stat.contains("(fuser-")).count() > 1
    });
    for stat in stats() {
        let (_, rest) = stat.rsplit_once(") ").expect("a name");
        // The ninth word of the line, two of which are cut off.
        let flags: u32 = rest
            .split(' ')
            .nth(6)
            .and_then(|word| word.parse().ok())
            .expect("flags");
        let both = PF_MEMALLOC_NOIO | PF_LOCAL_THROTTLE;
        assert_eq!(flags & both, if allowed { both } else { 0 }, "{stat}");
    }
    disk.umount();
}

/// A process that waits for an answer of its own cannot be killed, not even with `kill -9`: the kernel waits for the answer, and ends
/// nobody's wait before the process has gone.
#[test]
fn a_daemon_asks_nothing_of_its_own_mount() {
    if !can_mount("a_daemon_asks_nothing_of_its_own_mount") {
        return;
    }
    let (machine, url) = with_directory();
    let disk = machine.mount(&url, "disk", &["--create", "--size", "16m", "-vv"]);
    disk.umount();
    let log = machine.log();
    assert!(log.contains("store request"), "{log}");
    let asked = log
        .lines()
        .find(|line| line.contains(" getattr ") || line.contains(" lookup "));
    assert_eq!(asked, None);
}
