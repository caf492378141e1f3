//! The life of a daemon, on real FUSE mounts: how it starts, who it answers, and all the ways in which it ends.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::net::unix::pipe::Receiver;

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bucketdisk"))
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("runs")
}

fn refused(code: i32, arguments: &[&str]) -> String {
    let output = run(arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    said
}

/// What has to succeed. A mount that is in use is tried again: a program that some other test is starting has all files of this
/// process until it begins.
fn done(arguments: &[&str]) -> String {
    const IN_USE: Option<i32> = Some(13);
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut output = run(arguments);
    while arguments[0] == "umount" && output.status.code() == IN_USE && Instant::now() < deadline {
        output = run(arguments);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Whether there can be a FUSE mount here; says loudly where not, which is an error where `CI` is set.
fn can_mount() -> bool {
    let can = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .is_ok();
    if !can {
        assert!(std::env::var_os("CI").is_none(), "/dev/fuse cannot be used");
        eprintln!("SKIPPED: /dev/fuse cannot be used, nothing was tested");
    }
    can
}

/// A bucket with a disk of 1 MiB, and a place to mount it. What is still mounted at the end is unmounted.
struct Place {
    directory: TempDir,
    url: String,
}

impl Place {
    fn new() -> Place {
        let directory = tempfile::tempdir().expect("directory");
        for name in ["bucket", "mnt", "other"] {
            std::fs::create_dir(directory.path().join(name)).expect("create");
        }
        let url = format!("file://{}/bucket", directory.path().display());
        done(&["create", &url, "--size", "1m", "--block-size", "4k"]);
        Place { directory, url }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("path").to_owned()
    }

    fn mount(&self, more: &[&str]) -> Output {
        let (at, log, cache) = (self.text("mnt"), self.text("log"), self.text("cache"));
        let mut line = vec!["mount", &self.url, &at, "--log", &log];
        if !more.contains(&"--read-only") {
            // These tests look into the bucket for what was flushed.
            line.extend(["--cache-dir", &cache, "--flush", "bucket"]);
        }
        line.extend(more);
        run(&line)
    }

    fn mounted(self, more: &[&str]) -> Place {
        let output = self.mount(more);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        self
    }

    fn image(&self) -> File {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.path("mnt/disk.img"))
            .expect("image")
    }

    fn pid(&self) -> Pid {
        let json = done(&["status", &self.text("mnt"), "--json"]);
        let figures: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        let pid = i32::try_from(figures["pid"].as_i64().expect("pid")).expect("pid");
        Pid::from_raw(pid).expect("pid")
    }

    fn is_mounted(&self) -> bool {
        let table = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        table.contains(&format!(" {} ", self.text("mnt")))
    }

    /// What the bucket alone holds at an offset, seen by a mount of its own.
    fn bucket_holds(&self, offset: u64, length: usize) -> Vec<u8> {
        let at = self.text("other");
        done(&[
            "mount",
            &self.url,
            &at,
            "--read-only",
            "--log",
            &self.text("log"),
        ]);
        let mut content = vec![0; length];
        File::open(self.path("other/disk.img"))
            .and_then(|image| image.read_exact_at(&mut content, offset))
            .expect("reads");
        done(&["umount", &at]);
        content
    }

    fn holder(&self) -> serde_json::Value {
        let json = done(&["info", &self.url, "--json"]);
        let figures: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        figures["holder"].clone()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for name in ["mnt", "other"] {
            // Only where a test has failed is there anything left to do.
            let _ = rustix::mount::unmount(self.path(name), rustix::mount::UnmountFlags::DETACH);
        }
    }
}

/// Returns once a process that is not a child of this one has gone.
fn wait_for(pid: Pid) {
    let descriptor = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty());
    let Ok(descriptor) = descriptor else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime");
    runtime.block_on(async {
        // A descriptor of a process becomes readable when it ends; nothing is ever read from it, as one would from a pipe.
        let ended = Receiver::from_owned_fd_unchecked(descriptor).expect("watches");
        let readable = tokio::time::timeout(Duration::from_secs(60), ended.readable());
        readable.await.expect("it goes on and on").expect("ends");
    });
}

#[test]
fn mount_returns_when_the_image_is_ready_and_umount_when_the_bucket_has_all() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let output = place.mount(&[]);
    assert!(output.status.success());
    let (at, image) = (place.text("mnt"), place.text("mnt/disk.img"));
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        lines.contains("found 0 non-zero blocks (0 B of 1 MiB)\n"),
        "{lines}"
    );
    let mounted = format!("mounted {} on {at} ({image}, 1 MiB)\n", place.url);
    assert!(lines.ends_with(&mounted), "{lines}");
    place.image().write_all_at(b"kept", 5000).expect("writes");
    let pid = place.pid();
    let lines = done(&["umount", &at]);
    assert!(lines.contains("unmounted"), "{lines}");
    assert!(!place.is_mounted());
    wait_for(pid);
    assert_eq!(place.bucket_holds(5000, 4), b"kept");
    assert!(place.holder().is_null());
    let output = place.mount(&["--list-blocks"]);
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    let found = "listing non-zero blocks ... done\nfound 1 non-zero blocks (4 KiB of 1 MiB)\n";
    assert!(lines.contains(found), "{lines}");
    done(&["umount", &at]);
}

#[test]
fn a_mount_in_use_is_not_unmounted_and_goes_on() {
    if !can_mount() {
        return;
    }
    let place = Place::new().mounted(&[]);
    let image = place.image();
    image.write_all_at(b"first", 0).expect("writes");
    let said = refused(13, &["umount", &place.text("mnt")]);
    assert!(said.contains("in use"), "{said}");
    // What was written by then is in the bucket all the same.
    assert_eq!(place.bucket_holds(0, 5), b"first");
    image.write_all_at(b"later", 0).expect("writes on");
    drop(image);
    done(&["umount", &place.text("mnt")]);
    assert_eq!(place.bucket_holds(0, 5), b"later");
}

#[test]
fn a_disk_that_is_mounted_is_refused_to_everyone_else() {
    if !can_mount() {
        return;
    }
    let place = Place::new().mounted(&[]);
    let (at, other) = (place.text("mnt"), place.text("other"));
    let log = place.text("log");
    // The mount point, then the disk: on this machine, and as another machine would see it.
    let said = refused(13, &["mount", &place.url, &at, "--log", &log]);
    assert!(said.contains(&at), "{said}");
    let said = refused(13, &["mount", &place.url, &other, "--log", &log]);
    assert!(said.contains(&at) && said.contains("process"), "{said}");
    let said = refused(5, &["delete", &place.url, "--yes"]);
    assert!(said.contains("held"), "{said}");
    place.image().write_all_at(b"mine", 0).expect("writes");
    done(&["umount", &at]);
    assert_eq!(place.bucket_holds(0, 4), b"mine");
}

#[test]
fn a_daemon_that_was_killed_is_told_of_cleared_away_and_its_disk_mounted_again() {
    if !can_mount() {
        return;
    }
    let place = Place::new().mounted(&[]);
    let at = place.text("mnt");
    let image = place.image();
    image.write_all_at(b"flushed", 0).expect("writes");
    image.sync_all().expect("flushes");
    drop(image);
    let pid = place.pid();
    kill_process(pid, Signal::KILL).expect("kills");
    wait_for(pid);
    let said = refused(1, &["status", &at]);
    assert!(said.contains("died"), "{said}");
    let said = refused(13, &["mount", &place.url, &at, "--log", &place.text("log")]);
    assert!(said.contains("umount"), "{said}");
    let said = refused(1, &["umount", &at]);
    assert!(said.contains("died"), "{said}");
    assert!(!place.is_mounted());
    refused(3, &["umount", &at]);
    // Its claim is still there, but it was this machine's own.
    assert!(!place.holder().is_null());
    let place = place.mounted(&[]);
    let mut content = [0; 7];
    place.image().read_exact_at(&mut content, 0).expect("reads");
    assert_eq!(&content, b"flushed");
    done(&["umount", &at]);
    assert!(place.holder().is_null());
}

#[test]
fn the_disk_of_a_daemon_of_this_machine_that_was_killed_is_deleted_without_force() {
    if !can_mount() {
        return;
    }
    let place = Place::new().mounted(&[]);
    let at = place.text("mnt");
    let pid = place.pid();
    kill_process(pid, Signal::KILL).expect("kills");
    // Whether it is dead yet or still dying.
    let said = refused(1, &["umount", &at]);
    assert!(said.contains("died"), "{said}");
    assert!(!place.is_mounted());
    wait_for(pid);
    assert!(!place.holder().is_null());
    done(&["delete", &place.url, "--yes"]);
    refused(3, &["info", &place.url]);
}

#[test]
fn unmounting_a_read_only_mount_says_nothing_of_commits() {
    if !can_mount() {
        return;
    }
    let place = Place::new().mounted(&["--read-only"]);
    let said = done(&["umount", &place.text("mnt")]);
    assert!(said.contains("which was read-only"), "{said}");
    assert!(!said.contains("bucket"), "{said}");
}

#[test]
fn a_plain_umount_commits_before_the_daemon_exits() {
    if !can_mount() {
        return;
    }
    let place = Place::new().mounted(&[]);
    let pid = place.pid();
    place.image().write_all_at(b"plain", 0).expect("writes");
    let plain = Command::new("umount").arg(place.path("mnt")).status();
    assert!(plain.expect("umount").success());
    wait_for(pid);
    assert_eq!(place.bucket_holds(0, 5), b"plain");
    assert!(place.holder().is_null());
}

#[test]
fn a_signal_to_a_daemon_in_use_detaches_the_mount_and_serves_its_last_user() {
    if !can_mount() {
        return;
    }
    let place = Place::new().mounted(&[]);
    let pid = place.pid();
    let image = place.image();
    image.write_all_at(b"before", 0).expect("writes");
    kill_process(pid, Signal::TERM).expect("signals");
    // Nothing but the table of mounts tells when it has been detached.
    while place.is_mounted() {
        std::thread::yield_now();
    }
    image.write_all_at(b"after", 6).expect("writes on");
    drop(image);
    wait_for(pid);
    assert_eq!(place.bucket_holds(0, 11), b"beforeafter");
    assert!(place.holder().is_null());
}

#[test]
fn a_second_signal_ends_the_mount_under_its_users_and_commits_what_they_wrote() {
    if !can_mount() {
        return;
    }
    let place = Place::new().mounted(&[]);
    let pid = place.pid();
    let image = place.image();
    image.write_all_at(b"written", 0).expect("writes");
    kill_process(pid, Signal::TERM).expect("signals");
    while place.is_mounted() {
        std::thread::yield_now();
    }
    kill_process(pid, Signal::TERM).expect("signals");
    wait_for(pid);
    image
        .write_all_at(b"gone", 0)
        .expect_err("nobody serves it");
    assert_eq!(place.bucket_holds(0, 7), b"written");
    assert!(place.holder().is_null());
}

/// A child that is killed where its test fails.
struct Foreground(Child);

impl Drop for Foreground {
    fn drop(&mut self) {
        // It has ended where all went well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn in_the_foreground_the_exit_code_tells_that_all_is_committed() {
    use std::io::{BufRead, BufReader};

    if !can_mount() {
        return;
    }
    let place = Place::new();
    let at = place.text("mnt");
    let mut child = Foreground(
        Command::new(env!("CARGO_BIN_EXE_bucketdisk"))
            .args(["mount", &place.url, &at, "--foreground"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("runs"),
    );
    let output = child.0.stdout.take().expect("piped");
    let ready = BufReader::new(output)
        .lines()
        .map_while(Result::ok)
        .any(|line| line.starts_with("mounted "));
    assert!(ready, "it ended before the disk was ready");
    place.image().write_all_at(b"signal", 0).expect("writes");
    let pid = Pid::from_child(&child.0);
    kill_process(pid, Signal::INT).expect("signals");
    let status = child.0.wait().expect("ends");
    assert_eq!(status.code(), Some(0));
    assert_eq!(place.bucket_holds(0, 6), b"signal");
}

#[test]
fn create_at_mount_makes_a_disk_once_and_never_another_size() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let place = place.mounted(&["--prefix", "new", "--create", "--size", "2m"]);
    place.image().write_all_at(b"once", 0).expect("writes");
    done(&["umount", &place.text("mnt")]);
    let place = place.mounted(&["--prefix", "new", "--create", "--size", "2m"]);
    let mut content = [0; 4];
    place.image().read_exact_at(&mut content, 0).expect("reads");
    assert_eq!(&content, b"once");
    done(&["umount", &place.text("mnt")]);
    let output = place.mount(&["--prefix", "new", "--create", "--size", "3m"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("2 MiB") && said.contains("3 MiB"), "{said}");
    assert!(!place.is_mounted());
}

#[test]
fn a_disk_in_memory_is_mounted_and_ends() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let (at, log) = (place.text("mnt"), place.text("log"));
    done(&[
        "mount", "memory:", &at, "--create", "--size", "1m", "--log", &log,
    ]);
    place.image().write_all_at(b"short", 0).expect("writes");
    place.image().sync_all().expect("flushes");
    done(&["umount", &at]);
}

#[test]
fn a_line_of_mount_fuse_mounts_with_its_options() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let (at, log) = (place.text("mnt"), place.text("log"));
    // As mount.fuse(8) calls it: no verb, and what fstab says in -o.
    let options = format!("rw,ro,noexec,nofail,_netdev,x-test,filename=a.img,mode=0640,log={log}");
    done(&[&place.url, &at, "-o", &options]);
    let image = std::fs::metadata(place.path("mnt/a.img")).expect("image");
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&image) & 0o777, 0o440);
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    let line = table
        .lines()
        .find(|line| line.contains(&format!(" {at} ")))
        .expect("mounted");
    assert!(line.contains("noexec") && line.contains(" ro,"), "{line}");
    assert!(Path::new(&log).exists());
    done(&["umount", &at]);
}

#[test]
fn status_and_the_stats_file_say_the_same() {
    if !can_mount() {
        return;
    }
    let place = Place::new().mounted(&[]);
    let steady = |text: &str| -> Vec<String> {
        text.lines()
            .filter(|line| {
                ["disk", "id", "image", "size"]
                    .iter()
                    .any(|n| line.starts_with(n))
            })
            .map(str::to_owned)
            .collect()
    };
    let stats = std::fs::read_to_string(place.path("mnt/stats")).expect("stats");
    let status = done(&["status", &place.text("mnt")]);
    assert_eq!(steady(&stats), steady(&status));
    assert_eq!(steady(&stats).len(), 4, "{stats}");
    let json = done(&["status", &place.text("mnt"), "--json"]);
    let figures: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(figures["size_bytes"], 1 << 20);
    assert_eq!(figures["dirty_bytes"], 0);
    assert!(figures["traffic"]["gets"].as_u64() > Some(0));
    assert_eq!(figures["store"]["location"], place.url.as_str());
    done(&["umount", &place.text("mnt")]);
}
