//! A bucket that is put back to an older copy, as the program and its user see it.

use std::fs;

use serde_json::Value;

use crate::support::real::{Machine, can_mount, read_at, sh, with_directory, write_at};

const BYTES: usize = 1 << 20;

fn info(machine: &Machine, url: &str) -> Value {
    let answer = machine.run(&["info", url, "--json"]);
    serde_json::from_str(&answer).expect("JSON")
}

#[test]
fn a_bucket_put_back_is_refused_until_that_is_accepted_and_the_cache_forgets_the_other_past() {
    if !can_mount("a_bucket_put_back_is_refused_until_that_is_accepted") {
        return;
    }
    let (machine, url) = with_directory();
    let home = machine.path().join("tier");
    let tier = [
        "--cache-size",
        "1g",
        "--cache-dir",
        home.to_str().expect("UTF-8"),
    ];
    let create = ["--create", "--size", "8m", "--block-size", "64k"];
    machine.mount(&url, "disk", &create).umount();
    let bucket = machine.path().join("bucket");
    let (bucket, copy) = (bucket.display(), machine.path().join("copy"));
    let copy = copy.display();
    sh(&format!("cp -a {bucket} {copy}"));
    let write = |fill: u8, options: &[&str]| {
        let disk = machine.mount(&url, "disk", options);
        write_at(&disk, 0, &[fill; BYTES], true);
        disk.umount();
    };
    write(1, &tier);
    let disk = machine.mount(&url, "disk", &tier);
    assert_eq!(read_at(&disk, 0, BYTES), [1; BYTES], "and is cached");
    disk.umount();
    // Put back, and written to under the same numbers, by a machine that does not know.
    sh(&format!("rm -r {bucket} && cp -a {copy} {bucket}"));
    let other = machine.elsewhere(
        &url,
        "\"$PROGRAM\" mount \"$URL\" \"$DIR\" --log \"$LOG\"\n\
         head -c 1048576 /dev/zero | tr '\\0' '\\002' | dd of=\"$DIR/disk.img\" bs=1M conv=notrunc,fsync status=none\n\
         \"$PROGRAM\" umount \"$DIR\" --quiet\n\
         \"$PROGRAM\" mount \"$URL\" \"$DIR\" --log \"$LOG\"\n\
         \"$PROGRAM\" umount \"$DIR\" --quiet\n",
    );
    assert!(other.status.success(), "{other:?}");

    let at = machine.path().join("refused");
    fs::create_dir(&at).expect("a folder");
    let at = at.to_str().expect("UTF-8");
    for read_only in [&[][..], &["--read-only"]] {
        let mut line = vec!["mount", &url, at];
        line.extend(read_only);
        let output = machine.try_run(&line);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(15), "{said}");
        for part in [url.as_str(), "older copy", "--accept-rollback"] {
            assert!(said.contains(part), "lacks {part:?}: {said}");
        }
    }
    let described = machine.try_run(&["info", &url]);
    let said = String::from_utf8_lossy(&described.stderr).into_owned();
    assert!(
        described.status.success() && said.contains("is not what it was"),
        "{said}"
    );
    assert!(info(&machine, &url)["rollback"].is_string());

    let accepting = [&tier[..], &["--accept-rollback"]].concat();
    let (disk, said) = machine.mount_saying(&url, "disk", &accepting);
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.contains("which is accepted"), "{said}");
    assert_eq!(
        read_at(&disk, 0, BYTES),
        [2; BYTES],
        "nothing of the other past"
    );
    disk.umount();
    assert!(info(&machine, &url)["rollback"].is_null());
    let (disk, said) = machine.mount_saying(&url, "disk", &tier);
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(!said.contains("accepted"), "{said}");
    assert_eq!(read_at(&disk, 0, BYTES), [2; BYTES]);
    disk.umount();
}

#[test]
fn a_journal_is_not_applied_to_an_older_copy_of_the_bucket_that_is_accepted() {
    if !can_mount("a_journal_is_not_applied_to_an_older_copy_of_the_bucket") {
        return;
    }
    let (machine, url) = with_directory();
    machine.run(&["create", &url, "--size", "8m", "--block-size", "64k"]);
    let lazy = ["--flush", "journal", "--commit-interval", "1h"];
    let disk = machine.mount(&url, "disk", &lazy);
    write_at(&disk, 0, &[1; 4096], true);
    machine.run(&["flush", "--bucket", disk.dir()]);
    let bucket = machine.path().join("bucket");
    let (bucket, copy) = (bucket.display(), machine.path().join("copy"));
    let copy = copy.display();
    sh(&format!("cp -a {bucket} {copy}"));
    write_at(&disk, 0, &[2; 4096], true);
    machine.run(&["flush", "--bucket", disk.dir()]);
    write_at(&disk, 8192, &[3; 4096], true);
    let at = disk.dir().to_owned();
    disk.kill();
    sh(&format!("rm -r {bucket} && cp -a {copy} {bucket}"));
    let cache = machine.cache_directory(&format!("{url}/"));
    let cache = cache.to_str().expect("UTF-8");
    for (code, accepts, says) in [
        (15, &[][..], "older copy"),
        (6, &["--accept-rollback"], "a newer state"),
    ] {
        let line = ["mount", &url, &at, "--cache-dir", cache];
        let output = machine.try_run(&[&line, accepts].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(says), "{said}");
    }
    let accepts = ["--accept-rollback", "--discard-journal"];
    let disk = machine.mount(&url, "disk", &accepts);
    assert_eq!(read_at(&disk, 0, 4096), [1; 4096]);
    assert_eq!(read_at(&disk, 8192, 4096), [0; 4096]);
    disk.umount();
}

#[test]
fn what_this_machine_has_seen_is_known_without_a_journal_and_lost_with_a_warning() {
    if !can_mount("what_this_machine_has_seen_is_known_without_a_journal") {
        return;
    }
    let (machine, url) = with_directory();
    let create = ["--create", "--size", "8m", "--cache-dir", "none"];
    machine.mount(&url, "disk", &create).umount();
    let id = info(&machine, &url)["disk_id"].as_str().map(str::to_owned);
    let id = id.expect("an id");
    let root = bucketdisk::local::LocalState::root().expect("a place");
    let head = root.join(&id).join("head.json");
    let kept: Value = serde_json::from_slice(&fs::read(&head).expect("is there")).expect("JSON");
    assert_eq!(kept["head"]["disk"], id);
    assert_eq!(kept["head"]["pin"]["seq"], info(&machine, &url)["head"]);
    fs::write(&head, b"").expect("is emptied, as by a loss of power");
    let (disk, said) = machine.mount_saying(&url, "disk", &["--cache-dir", "none"]);
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.contains("head.json"), "{said}");
    disk.umount();
    assert!(fs::metadata(&head).is_ok_and(|file| file.len() > 0));
    machine.run(&["delete", &url, "--yes"]);
    assert!(!head.exists(), "all of a deleted disk is forgotten");
}

#[test]
fn a_key_slot_that_was_removed_does_not_come_back_with_an_older_superblock() {
    if !can_mount("a_key_slot_that_was_removed_does_not_come_back_with_an_older_superblock") {
        return;
    }
    let (machine, url) = with_directory();
    let (first, second) = ("--passphrase-command=echo first", "echo second");
    let new = ["--create", "--size", "4m", "--encrypt", first];
    let cheap = ["--kdf-time", "1ms", "--kdf-memory", "64k"];
    machine
        .mount(&url, "disk", &[&new[..], &cheap].concat())
        .umount();
    let bucket = machine.path().join("bucket");
    let superblock = bucket.join("disk.json");
    let old = fs::read(&superblock).expect("there");
    let add = ["key", "add", &url, first, "--new-passphrase-command"];
    machine.run(&[&add[..], &[second], &cheap].concat());
    machine.run(&["key", "remove", &url, first]);
    fs::remove_dir_all(bucket.join("disk")).expect("there");
    fs::write(&superblock, &old).expect("writes");

    let at = machine.path().join("refused");
    fs::create_dir(&at).expect("a folder");
    let lines: [&[&str]; 5] = [
        &["mount", &url, at.to_str().expect("UTF-8"), first],
        &["key", "add", &url, first, "--new-passphrase-command=echo x"],
        &["key", "change", &url, first, "--new-passphrase-command=ls"],
        &["key", "remove", &url, first],
        &["set", &url, "label=x", first],
    ];
    for line in lines {
        let output = machine.try_run(line);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(15), "{line:?}: {said}");
        for part in [url.as_str(), "generation 1", "--accept-rollback"] {
            assert!(said.contains(part), "{line:?} lacks {part:?}: {said}");
        }
    }
    assert_eq!(fs::read(&superblock).expect("there"), old);
    assert!(!bucket.join("disk").exists(), "nothing was put");
    // That it is meant to be is said to a mount.
    machine
        .mount(&url, "disk", &["--accept-rollback", first])
        .umount();
    machine.run(&["set", &url, "label=x", first]);
}
