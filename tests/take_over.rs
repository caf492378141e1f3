//! Two machines and one disk, on real mounts: what both sides are told, what the one that loses the disk still serves, and how its
//! owner gets at what it could not commit.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use support::real::{Machine, Mount, can_mount, run, sh, wait_for};

mod support;

const EROFS: i32 = 30;
const ESTALE: i32 = 116;
const BLOCK: u64 = 64 << 10;

/// A machine with a mounted disk in a directory: 8 MiB, of which the first four blocks are 1, 2, 3 and 4.
struct Scene {
    machine: Machine,
    url: String,
}

impl Scene {
    fn new() -> Scene {
        let machine = Machine::new();
        let bucket = machine.path().join("bucket");
        fs::create_dir(&bucket).expect("a folder");
        let url = format!("file://{}", bucket.display());
        Scene { machine, url }
    }

    /// The disk, mounted anew after it was filled: nothing of it is in memory.
    fn mounted(&self) -> Mount<'_> {
        self.mounted_with(&[])
    }

    /// The same, with more options.
    fn mounted_with(&self, more: &[&str]) -> Mount<'_> {
        let options = ["--create", "--size", "8m", "--block-size", "64k"];
        let disk = self.machine.mount(&self.url, "disk", &options);
        for block in 0..4 {
            write(&disk, block * BLOCK, &[block as u8 + 1; BLOCK as usize]).expect("writes");
        }
        disk.umount();
        let mut hour = vec!["--commit-interval", "1h"];
        hour.extend(more);
        self.machine.mount(&self.url, "disk", &hour)
    }

    /// Another machine takes the disk over, fills the third block with 9, and leaves. Answers what it was told.
    fn take_over(&self) -> String {
        let took = self.machine.elsewhere(
            &self.url,
            "\"$PROGRAM\" mount \"$URL\" \"$DIR\" --take-over --log \"$LOG\"\n\
             head -c 65536 /dev/zero | tr '\\0' '\\011' | dd of=\"$DIR/disk.img\" bs=64k seek=2 conv=notrunc,fsync status=none\n\
             \"$PROGRAM\" umount \"$DIR\" --quiet",
        );
        assert!(took.status.success(), "{took:?}");
        String::from_utf8_lossy(&took.stdout).into_owned()
    }

    /// What the new owner does five minutes later: what it has replaced goes.
    fn remove_superseded(&self) {
        let mut versions: Vec<_> = fs::read_dir(self.machine.path().join("bucket/blocks/02"))
            .expect("a folder")
            .map(|entry| entry.expect("an entry").path())
            .collect();
        versions.sort();
        assert_eq!(versions.len(), 2, "{versions:?}");
        fs::remove_file(&versions[0]).expect("removes");
    }

    fn file(&self, name: &str) -> PathBuf {
        self.machine.path().join(name)
    }

    fn export(&self, disk: &Mount<'_>, name: &str, options: &[&str]) -> Output {
        let file = self.file(name);
        let mut arguments = vec!["export", disk.dir(), file.to_str().expect("UTF-8")];
        arguments.extend(options);
        self.machine.try_run(&arguments)
    }
}

fn write(disk: &Mount<'_>, offset: u64, data: &[u8]) -> std::io::Result<()> {
    let file = fs::OpenOptions::new().write(true).open(disk.image())?;
    file.write_all_at(data, offset)
}

fn read(file: &Path, offset: u64, len: u64) -> std::io::Result<Vec<u8>> {
    let mut buf = vec![0; usize::try_from(len).expect("small")];
    fs::File::open(file).and_then(|f| f.read_exact_at(&mut buf, offset))?;
    Ok(buf)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn refused(output: &Output, code: i32, parts: &[&str]) {
    let said = said(output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert_eq!(said.trim_end().lines().count(), 1, "{said}");
    for part in parts {
        assert!(said.contains(part), "lacks {part:?}: {said}");
    }
}

fn lines_with(text: &str, part: &str) -> usize {
    text.lines().filter(|line| line.contains(part)).count()
}

#[test]
fn another_machine_is_refused_and_told_who_has_the_disk() {
    if !can_mount("another_machine_is_refused_and_told_who_has_the_disk") {
        return;
    }
    let scene = Scene::new();
    let disk = scene.mounted();
    let mount = "\"$PROGRAM\" mount \"$URL\" \"$DIR\" --log \"$LOG\"";
    let output = scene.machine.elsewhere(&scene.url, mount);
    let holder = format!("process {}", disk.pid());
    let parts = [
        holder.as_str(),
        " since ",
        "last heard of",
        "every 10m",
        "--take-over",
    ];
    refused(&output, 5, &parts);
    write(&disk, 0, b"still").expect("goes on");
    disk.umount();
}

#[test]
fn who_loses_the_disk_says_so_serves_reads_and_gives_its_writes_to_the_owner() {
    if !can_mount("who_loses_the_disk_says_so") {
        return;
    }
    let scene = Scene::new();
    let disk = scene.mounted();
    let file = fs::OpenOptions::new()
        .write(true)
        .open(disk.image())
        .expect("opens");
    let told = scene.take_over();
    let took = told
        .lines()
        .find(|line| line.starts_with("took the disk over: it was held by "));
    let took = took.unwrap_or_else(|| panic!("{told}"));
    assert!(took.contains(&format!("process {}", disk.pid())), "{took}");

    // It does not know yet, and takes what it can commit no more.
    file.write_all_at(b"mine!", BLOCK + 100)
        .expect("is not known yet");
    file.write_all_at(&[7; 5000], 100 * BLOCK)
        .expect("is not known yet");
    let error = file.sync_all().expect_err("is fenced");
    assert_eq!(error.raw_os_error(), Some(EROFS), "{error}");
    let error = file.write_all_at(b"more", 0).expect_err("is fenced");
    assert_eq!(error.raw_os_error(), Some(EROFS), "{error}");
    let error = write(&disk, 0, b"more").expect_err("is fenced");
    assert_eq!(error.raw_os_error(), Some(EROFS), "{error}");
    drop(file);
    let image = disk.image();
    assert_eq!(
        read(&image, BLOCK + 99, 7).expect("reads"),
        b"\x02mine!\x02"
    );
    assert_eq!(
        read(&image, 3 * BLOCK, BLOCK).expect("reads"),
        vec![4; BLOCK as usize]
    );

    let status = disk.status();
    assert_eq!(status["read_only"], true);
    assert!(status["dirty_bytes"].as_u64() >= Some(5005), "{status}");
    assert_eq!(status["commit_blocks"], 0, "nothing is being committed");
    let by = status["store"]["fenced_by"].as_str().expect("somebody");
    assert!(by.starts_with("elsewhere (process "), "{by}");
    let log = scene.machine.log();
    assert_eq!(lines_with(&log, "ERROR"), 1, "{log}");
    assert_eq!(lines_with(&log, "taken over by elsewhere"), 1, "{log}");
    let there = fs::read_to_string(scene.file("log elsewhere")).expect("a log");
    assert_eq!(
        lines_with(&there, "took the disk over: it was held by "),
        1,
        "{there}"
    );

    let output = scene.machine.try_run(&["umount", disk.dir()]);
    let parts = [
        "stays mounted",
        "4.8 KiB",
        "export",
        "--discard",
        "elsewhere",
    ];
    refused(&output, 6, &parts);
    assert!(disk.is_mounted());

    // The whole disk as this mount has it...
    let output = scene.export(&disk, "copy", &[]);
    assert!(output.status.success(), "{}", said(&output));
    let copy = scene.file("copy");
    let found = fs::metadata(&copy).expect("there");
    assert_eq!((found.len(), found.mode() & 0o777), (8 << 20, 0o600));
    assert!(found.blocks() * 512 <= 6 * BLOCK, "holes stay holes");
    sh(&format!("cmp '{}' '{}'", image.display(), copy.display()));
    refused(&scene.export(&disk, "copy", &[]), 4, &["--force"]);
    assert!(scene.export(&disk, "copy", &["--force"]).status.success());
    // ... and what only it has.
    let output = scene.export(&disk, "mine", &["--dirty-only"]);
    assert!(output.status.success(), "{}", said(&output));
    assert_mine(&scene.file("mine"));

    let told = scene.machine.run(&["umount", "--discard", disk.dir()]);
    assert!(told.contains("given up"), "{told}");
    assert!(!disk.is_mounted());
    let disk = scene.machine.mount(&scene.url, "disk", &["--read-only"]);
    assert_eq!(read(&disk.image(), BLOCK + 99, 2).expect("reads"), [2, 2]);
    assert_eq!(read(&disk.image(), 2 * BLOCK, 2).expect("reads"), [9, 9]);
    disk.umount();
}

/// Ends a mount by a line of a shell that knows its folder and its process, and waits for that to be gone.
fn end(disk: &Mount<'_>, way: &str) {
    let pid = disk.pid();
    run(Command::new("sh")
        .args(["-euc", way])
        .env("DIR", disk.dir())
        .env("PID", pid.to_string()));
    wait_for("the daemon to finish", || {
        !Path::new(&format!("/proc/{pid}")).exists()
    });
}

/// A file of the two writes of the test above, and nothing else.
fn assert_mine(file: &Path) {
    let ranges = fs::read_to_string(format!("{}.ranges", file.display())).expect("a list");
    let expected = format!(
        "{{\"offset\":{},\"length\":5}}\n{{\"offset\":{},\"length\":5000}}\n",
        BLOCK + 100,
        100 * BLOCK
    );
    assert_eq!(ranges, expected);
    let mut content = vec![0; 8 << 20];
    content[BLOCK as usize + 100..][..5].copy_from_slice(b"mine!");
    content[100 * BLOCK as usize..][..5000].fill(7);
    assert!(fs::read(file).expect("reads") == content);
    let mode = fs::metadata(file).expect("there").mode();
    assert_eq!(mode & 0o777, 0o600);
}

/// A plain umount cannot be refused, and a machine that shuts down does not wait: what is not committed stays in the journal, which the
/// next mount may not apply, and does not drop.
#[test]
fn a_mount_that_ends_without_the_disk_leaves_what_it_could_not_commit_in_the_journal() {
    if !can_mount("a_mount_that_ends_without_the_disk_leaves_a_journal") {
        return;
    }
    for way in ["umount $DIR", "kill -TERM $PID", "kill -KILL $PID"] {
        let scene = Scene::new();
        let disk = scene.mounted_with(&["--flush", "journal"]);
        write(&disk, BLOCK + 100, b"mine!").expect("writes");
        scene.take_over();
        write(&disk, 100 * BLOCK, &[7; 5000]).expect("is not known yet");
        end(&disk, way);
        let at = disk.dir().to_owned();
        disk.clear_away();
        let cache = scene.machine.cache_directory(&scene.url);
        let cache = cache.to_str().expect("UTF-8");
        if !way.contains("KILL") {
            let log = scene.machine.log();
            assert!(
                log.contains("the journal keeps them") && log.contains(cache),
                "{log}"
            );
        }
        let mount = ["mount", &scene.url, &at, "--cache-dir", cache];
        for more in [&[][..], &["--take-over"]] {
            let refusal = scene.machine.try_run(&[&mount[..], more].concat());
            refused(
                &refusal,
                6,
                &["another session", "journal export", "--discard-journal"],
            );
        }
        let file = scene.file("mine");
        let file = file.to_str().expect("UTF-8");
        scene.machine.run(&["journal", "export", cache, file]);
        assert_mine(Path::new(file));
        let again = scene.machine.try_run(&["journal", "export", cache, file]);
        refused(&again, 4, &["--force"]);
        let disk = scene
            .machine
            .mount(&scene.url, "disk", &["--discard-journal"]);
        assert_eq!(read(&disk.image(), BLOCK + 99, 2).expect("reads"), [2, 2]);
        assert_eq!(read(&disk.image(), 2 * BLOCK, 2).expect("reads"), [9, 9]);
        disk.umount();
    }
}

/// Without a journal it goes into a file.
#[test]
fn a_mount_that_ends_without_the_disk_keeps_what_it_could_not_commit_in_a_file() {
    if !can_mount("a_mount_that_ends_without_the_disk") {
        return;
    }
    for way in ["umount $DIR", "kill -TERM $PID"] {
        let scene = Scene::new();
        let disk = scene.mounted_with(&["--cache-dir", "none"]);
        scene.take_over();
        write(&disk, BLOCK + 100, b"mine!").expect("is not known yet");
        write(&disk, 100 * BLOCK, &[7; 5000]).expect("is not known yet");
        end(&disk, way);
        assert!(!disk.is_mounted(), "{way}");
        let log = scene.machine.log();
        let line = log
            .lines()
            .find(|line| line.contains("kept in "))
            .unwrap_or_else(|| panic!("{way}: {log}"));
        let (_, rest) = line.split_once("kept in ").expect("a file");
        let file = PathBuf::from(rest.split(": ").next().expect("a file"));
        assert!(file.starts_with("/var/lib/bucketdisk"), "{line}");
        assert_mine(&file);
        fs::remove_file(format!("{}.ranges", file.display())).expect("removes");
        fs::remove_file(file).expect("removes");
    }
}

/// Nothing is lost where everything was committed, and the one who unmounts is told that too.
#[test]
fn a_mount_that_lost_the_disk_with_nothing_to_commit_is_unmounted() {
    if !can_mount("a_mount_that_lost_the_disk_with_nothing_to_commit") {
        return;
    }
    let scene = Scene::new();
    let disk = scene.mounted();
    scene.take_over();
    let output = scene.machine.try_run(&["umount", disk.dir()]);
    refused(&output, 6, &["is unmounted", "was committed", "elsewhere"]);
    assert!(!disk.is_mounted());
}

#[test]
fn what_the_new_owner_has_removed_is_an_error_that_says_so_and_is_left_out_of_an_export() {
    if !can_mount("what_the_new_owner_has_removed") {
        return;
    }
    let scene = Scene::new();
    let disk = scene.mounted();
    let reader = scene.machine.mount(&scene.url, "reader", &["--read-only"]);
    scene.take_over();
    scene.remove_superseded();
    for mount in [&reader, &disk] {
        let error = read(&mount.image(), 2 * BLOCK, 10).expect_err("is superseded");
        assert_eq!(error.raw_os_error(), Some(ESTALE), "{error}");
        let beside = read(&mount.image(), 3 * BLOCK, 10).expect("reads");
        assert_eq!(beside, [4; 10]);
    }
    let log = scene.machine.log();
    assert!(lines_with(&log, "mount again") >= 2, "{log}");
    assert!(lines_with(&log, "block 2 ") >= 2, "{log}");
    assert_eq!(disk.status()["read_only"], true, "a read has found out");
    let error = write(&disk, 0, b"more").expect_err("is fenced");
    assert_eq!(error.raw_os_error(), Some(EROFS), "{error}");

    let output = scene.export(&disk, "copy", &[]);
    refused(&output, 14, &["64 KiB could not be read", "copy.missing"]);
    let missing = fs::read_to_string(scene.file("copy.missing")).expect("a list");
    assert_eq!(
        missing,
        format!("{{\"offset\":{},\"length\":{BLOCK}}}\n", 2 * BLOCK)
    );
    let copy = scene.file("copy");
    for (block, fill) in [1u8, 2, 0, 4].into_iter().enumerate() {
        let found = read(&copy, block as u64 * BLOCK, BLOCK).expect("reads");
        assert_eq!(found, vec![fill; BLOCK as usize]);
    }
    reader.umount();
    let output = scene.machine.try_run(&["umount", disk.dir()]);
    refused(&output, 6, &["is unmounted"]);
}

#[test]
fn after_a_crash_the_same_machine_goes_on_without_questions_and_says_so_in_one_line() {
    if !can_mount("after_a_crash_the_same_machine_goes_on") {
        return;
    }
    let scene = Scene::new();
    let disk = scene.mounted();
    let pid = disk.pid();
    let file = fs::OpenOptions::new()
        .write(true)
        .open(disk.image())
        .expect("opens");
    file.write_all_at(b"synced", 0).expect("writes");
    file.sync_all().expect("syncs");
    drop(file);
    disk.kill();
    let (disk, told) = scene.machine.mount_saying(&scene.url, "disk", &[]);
    let told = String::from_utf8_lossy(&told.stdout);
    let line = format!("the last mount on this machine (process {pid}) has died");
    assert_eq!(lines_with(&told, &line), 1, "{told}");
    assert_eq!(read(&disk.image(), 0, 6).expect("reads"), b"synced");
    disk.umount();
    let (disk, told) = scene.machine.mount_saying(&scene.url, "disk", &[]);
    let told = String::from_utf8_lossy(&told.stdout);
    assert_eq!(lines_with(&told, "has died"), 0, "{told}");
    disk.umount();
}
