//! The program as its users meet it: what it says, which exit code it gives, and that it changes nothing where it refuses.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::SystemTime;

use tempfile::TempDir;

/// Runs the program with nothing of this machine's configuration, and no terminal.
fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bucketdisk"));
    command.args(arguments).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("AWS_") || name.starts_with("BUCKETDISK_") {
            command.env_remove(name);
        }
    }
    // No credentials are found, wherever they might lie, and nothing outside of this machine is asked for them.
    command
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("AWS_CONFIG_FILE", "/nonexistent")
        .env("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent");
    command
}

fn run(arguments: &[&str]) -> Output {
    command(arguments).output().expect("runs")
}

/// Runs the program and expects one line on the standard error, nothing on the other, and an exit code; answers the line.
fn refused(code: i32, arguments: &[&str]) -> String {
    refusal(code, &run(arguments), &arguments.join(" "))
}

fn refusal(code: i32, output: &Output, what: &str) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{what}: {said}");
    assert_eq!(said.lines().count(), 1, "{what}: {said}");
    assert!(said.starts_with("bucketdisk: "), "{what}: {said}");
    let answered = String::from_utf8_lossy(&output.stdout);
    assert_eq!(answered, "", "{what}");
    said
}

fn done(arguments: &[&str]) -> String {
    let output = run(arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Every file below a directory, with its time and content.
fn contents(directory: &Path) -> BTreeMap<PathBuf, (SystemTime, Vec<u8>)> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(directory).expect("directory") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else {
            let modified = std::fs::metadata(&path).and_then(|m| m.modified());
            let content = std::fs::read(&path).expect("file");
            found.insert(path, (modified.expect("time"), content));
        }
    }
    found
}

/// A directory that is a bucket, and its URL.
fn bucket() -> (TempDir, String) {
    let directory = tempfile::tempdir().expect("directory");
    let url = format!("file://{}", directory.path().display());
    (directory, url)
}

/// A bucket with a disk at its root.
fn disk() -> (TempDir, String) {
    let (directory, url) = bucket();
    done(&["create", &url, "--size", "1m", "--block-size", "4k"]);
    (directory, url)
}

#[test]
fn sizes_that_no_disk_can_have_are_refused_and_nothing_is_made() {
    let (directory, url) = bucket();
    let cases: [(&[&str], &str); 12] = [
        (&["--size", "0"], "size 0"),
        (&["--size", "1000000"], "multiple of the block size"),
        (&["--size", "8e"], "beyond the layout's limit"),
        (&["--size", "1g", "--block-size", "3000"], "power of two"),
        (&["--size", "1g", "--block-size", "2k"], "4k to 64m"),
        (&["--size", "1g", "--block-size", "128m"], "4k to 64m"),
        (&["--size", "1g", "--block-size", "0"], "power of two"),
        (&["--size", "1gb"], "'1gb' is not a size"),
        (&["--size", "-1"], "-1"),
        (&["--size", "999999999999e"], "too large"),
        (&["--size", "0.1k"], "whole number of bytes"),
        (&[], "--size"),
    ];
    for (arguments, why) in cases {
        let mut line = vec!["create", &url];
        line.extend(arguments);
        let said = refused(2, &line);
        assert!(said.contains(why), "{arguments:?}: {said}");
    }
    assert!(contents(directory.path()).is_empty());
}

#[test]
fn malformed_options_are_refused_by_name() {
    let (directory, url) = bucket();
    let mountpoint = tempfile::tempdir().expect("directory");
    let at = mountpoint.path().to_str().expect("path");
    let mount: [(&[&str], &str); 25] = [
        (&["--commit-interval", "soon"], "'soon'"),
        (&["--commit-interval", "0s"], "'0s'"),
        (&["--requests", "0"], "--requests"),
        (&["--requests", "many"], "--requests"),
        (&["--mode", "888"], "octal"),
        (&["--journal-size", "63m"], "64 MiB"),
        (&["--filename", "a/b"], "--filename"),
        (&["--filename", "stats"], "'stats'"),
        (&["--size", "1g"], "--create"),
        (&["--create"], "--size"),
        (&["--block-size", "4k"], "--create"),
        (&["--label", "text"], "--create"),
        (&["-o", "block_size=4k"], "--create"),
        (&["--kdf-time", "1s", "--encrypt"], "--create"),
        (&["-o", "kdf_memory=1g"], "--create"),
        (
            &["--create", "--size", "1m", "--kdf-time", "1s"],
            "--encrypt",
        ),
        (&["--create", "--size", "1m", "--read-only"], "--read-only"),
        (&["--create", "--size", "1g", "--memory", "1m"], "--memory"),
        (
            &["--create", "--size", "1g", "--cache-size", "4m"],
            "4259840",
        ),
        (
            &[
                "--create",
                "--size",
                "1g",
                "--max-dirty",
                "1m",
                "--block-size",
                "512k",
            ],
            "--max-dirty",
        ),
        (&["--endpoint", "http://key:secret@host"], "credentials"),
        (&["--prefix", "a/../b"], "prefix"),
        (&["-o", "sizze=1g"], "'sizze'"),
        (&["-o", "ro,uid"], "'uid'"),
        (&["--sizze", "1g"], "--sizze"),
    ];
    for (arguments, why) in mount {
        let mut line = vec!["mount", &url, at];
        line.extend(arguments);
        let said = refused(2, &line);
        assert!(said.contains(why), "{arguments:?}: {said}");
    }
    let others: [(&[&str], &str); 11] = [
        (&[], "subcommand"),
        (&["dance"], "dance"),
        (&["create", "ftp://host/disk", "--size", "1g"], "'ftp'"),
        (&["create", "disk", "--size", "1g"], "scheme"),
        (
            &["create", "file://relative/path", "--size", "1g"],
            "absolute",
        ),
        (&["create", "s3://", "--size", "1g"], "bucket"),
        (
            &["create", "s3://key:secret@bucket", "--size", "1g"],
            "credentials",
        ),
        (&["create", "memory:", "--size", "1g"], "memory"),
        (
            &["create", &url, "--size", "1g", "--kdf-time", "1s"],
            "--encrypt",
        ),
        (
            &["create", &url, "--size", "1g", "--kdf-memory", "1g"],
            "--encrypt",
        ),
        (&["mount", "memory:", "/"], "--create"),
    ];
    for (line, why) in others {
        let said = refused(2, line);
        assert!(said.contains(why), "{line:?}: {said}");
        assert!(!said.contains("secret"), "{said}");
    }
    assert!(contents(directory.path()).is_empty());
}

#[test]
fn a_bucket_that_is_not_there_is_named_and_not_made() {
    let (directory, url) = bucket();
    let url = format!("{url}/none");
    let mountpoint = tempfile::tempdir().expect("directory");
    let at = mountpoint.path().to_str().expect("path");
    for line in [
        vec!["create", &url, "--size", "1m"],
        vec!["info", &url],
        vec!["delete", &url, "--yes"],
        vec!["mount", &url, at],
        vec!["mount", &url, at, "--create", "--size", "1m"],
    ] {
        let said = refused(3, &line);
        assert!(said.contains("/none"), "{said}");
    }
    assert_eq!(
        std::fs::read_dir(directory.path())
            .expect("directory")
            .count(),
        0
    );
}

#[test]
fn an_existing_disk_is_not_touched_by_create() {
    let (directory, url) = disk();
    let before = contents(directory.path());
    let said = refused(4, &["create", &url, "--size", "2m"]);
    assert!(said.contains(&url), "{said}");
    assert_eq!(contents(directory.path()), before);
}

#[test]
fn a_disk_that_does_not_exist_is_not_found() {
    let (directory, url) = disk();
    let before = contents(directory.path());
    let mountpoint = tempfile::tempdir().expect("directory");
    let at = mountpoint.path().to_str().expect("path");
    for line in [
        vec!["info", &url, "--prefix", "other"],
        vec!["delete", &url, "--prefix", "other", "--yes"],
        vec!["mount", &url, at, "--prefix", "other"],
    ] {
        let said = refused(3, &line);
        assert!(said.contains("/other"), "{said}");
    }
    assert_eq!(contents(directory.path()), before);
}

#[test]
fn a_superblock_that_cannot_be_trusted_stops_every_verb() {
    let (directory, url) = disk();
    let path = directory.path().join("disk.json");
    let sound = std::fs::read_to_string(&path).expect("superblock");
    let mountpoint = tempfile::tempdir().expect("directory");
    let at = mountpoint.path().to_str().expect("path");
    let cases = [
        (9, sound.replace("1048576", "2097152")),
        (9, sound[..sound.len() / 2].to_owned()),
        (9, String::new()),
        (9, "{\"format\":\"something else\"}".to_owned()),
    ];
    for (code, altered) in cases {
        assert_ne!(altered, sound);
        std::fs::write(&path, &altered).expect("write");
        for line in [vec!["info", &url], vec!["mount", &url, at]] {
            let said = refused(code, &line);
            assert!(said.contains(&url), "{said}");
        }
        refused(4, &["create", &url, "--size", "1m"]);
        let said = refused(9, &["delete", &url, "--yes"]);
        assert!(said.contains("--even-if-held"), "{said}");
        assert_eq!(std::fs::read_to_string(&path).expect("superblock"), altered);
    }
}

/// The superblock with one member changed, and the checksum that belongs to it.
fn resealed(superblock: &str, member: &str, value: serde_json::Value) -> String {
    let mut json: serde_json::Value = serde_json::from_str(superblock).expect("JSON");
    let members = json.as_object_mut().expect("an object");
    members.remove("checksum").expect("a checksum");
    members.insert(member.to_owned(), value);
    let digest = xxhash_rust::xxh3::xxh3_128(json.to_string().as_bytes());
    json["checksum"] = format!("xxh3-128:{digest:032x}").into();
    json.to_string()
}

#[test]
fn a_disk_of_a_newer_program_is_left_alone() {
    let (directory, url) = disk();
    let path = directory.path().join("disk.json");
    let sound = std::fs::read_to_string(&path).expect("superblock");
    let label = resealed(&sound, "label", "still sound".into());
    std::fs::write(&path, label).expect("write");
    assert!(done(&["info", &url]).contains("still sound"));
    let mountpoint = tempfile::tempdir().expect("directory");
    let at = mountpoint.path().to_str().expect("path");
    let newer = [
        resealed(&sound, "version", 2.into()),
        resealed(&sound, "features", serde_json::json!(["telepathy"])),
    ];
    for superblock in newer {
        std::fs::write(&path, &superblock).expect("write");
        let before = contents(directory.path());
        refused(10, &["info", &url]);
        refused(10, &["mount", &url, at]);
        assert_eq!(contents(directory.path()), before);
    }
}

#[test]
fn a_mount_point_that_is_missing_or_no_directory_is_refused_before_anything_is_made() {
    let (directory, url) = bucket();
    let elsewhere = tempfile::tempdir().expect("directory");
    let missing = elsewhere.path().join("missing");
    let file = elsewhere.path().join("file");
    std::fs::write(&file, "").expect("write");
    let log = elsewhere.path().join("log");
    for (code, at) in [(3, &missing), (2, &file)] {
        let at = at.to_str().expect("path");
        let log = log.to_str().expect("path");
        let line = ["mount", &url, at, "--create", "--size", "1m", "--log", log];
        let said = refused(code, &line);
        assert!(said.contains(at), "{said}");
        // In the foreground it is the same.
        let line = ["mount", &url, at, "--create", "--size", "1m", "-f"];
        assert_eq!(refused(code, &line), said);
    }
    assert!(contents(directory.path()).is_empty());
}

#[test]
fn a_log_that_cannot_be_opened_is_refused_before_anything_is_made() {
    let (directory, url) = bucket();
    let mountpoint = tempfile::tempdir().expect("directory");
    let at = mountpoint.path().to_str().expect("path");
    // A directory is no log file.
    let said = refused(
        1,
        &["mount", &url, at, "--create", "--size", "1m", "--log", at],
    );
    assert!(said.contains("--log"), "{said}");
    assert!(contents(directory.path()).is_empty());
}

#[test]
fn what_is_no_mount_cannot_be_unmounted_or_asked() {
    let directory = tempfile::tempdir().expect("directory");
    let at = directory.path().to_str().expect("path");
    let inside = format!("{at}/missing");
    for verb in ["umount", "status"] {
        let said = refused(3, &[verb, at]);
        assert!(said.contains("is not a bucketdisk mount"), "{said}");
        refused(3, &[verb, &inside]);
        // Another file system's mount is none of ours.
        refused(3, &[verb, "/proc"]);
    }
}

#[test]
fn no_credentials_is_said_before_anything_is_asked() {
    let said = refused(
        7,
        &[
            "info",
            "s3://bucket/disk",
            "--endpoint",
            "http://127.0.0.1:9",
        ],
    );
    assert!(said.contains("AWS_ACCESS_KEY_ID"), "{said}");
}

#[test]
fn a_store_that_does_not_answer_is_given_up_in_time() {
    // Nobody listens at a port that was just given back.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a port")
        .port();
    let endpoint = format!("http://127.0.0.1:{port}");
    let mountpoint = tempfile::tempdir().expect("directory");
    let at = mountpoint.path().to_str().expect("path");
    let log = tempfile::NamedTempFile::new().expect("file");
    let log = log.path().to_str().expect("path");
    for line in [
        vec!["create", "s3://bucket/disk", "--size", "1m"],
        vec!["info", "s3://bucket/disk"],
        vec!["delete", "s3://bucket/disk", "--yes"],
        vec!["mount", "s3://bucket/disk", at, "--log", log],
    ] {
        let mut command = command(&line);
        command
            .args(["--endpoint", &endpoint, "--timeout", "300ms"])
            .env("AWS_ACCESS_KEY_ID", "key")
            .env("AWS_SECRET_ACCESS_KEY", "never-shown");
        let output = command.output().expect("runs");
        let said = refusal(8, &output, &line.join(" "));
        assert!(said.contains(&endpoint), "{said}");
        assert!(!said.contains("never-shown"), "{said}");
    }
}

#[test]
fn a_store_that_takes_a_connection_and_says_nothing_is_given_up_in_time() {
    // The system takes connections for it, and nobody ever reads them.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let endpoint = format!("http://{}", silent.local_addr().expect("an address"));
    let mut command = command(&["info", "s3://bucket/disk", "--timeout", "300ms"]);
    command
        .args(["--endpoint", &endpoint])
        .env("AWS_ACCESS_KEY_ID", "key")
        .env("AWS_SECRET_ACCESS_KEY", "secret");
    let begun = std::time::Instant::now();
    let said = refusal(8, &command.output().expect("runs"), "info");
    assert!(said.contains("no answer"), "{said}");
    assert!(begun.elapsed().as_secs() < 20, "{:?}", begun.elapsed());
}

#[test]
fn delete_asks_and_without_a_terminal_does_nothing() {
    let (directory, url) = disk();
    let before = contents(directory.path());
    let said = refused(2, &["delete", &url]);
    assert!(said.contains("--yes"), "{said}");
    assert_eq!(contents(directory.path()), before);
}

#[test]
fn delete_takes_the_disk_and_nothing_else() {
    let (directory, url) = disk();
    done(&["create", &url, "--prefix", "other", "--size", "1m"]);
    std::fs::write(directory.path().join("mine.txt"), "mine").expect("write");
    done(&["delete", &url, "--yes"]);
    let left: Vec<PathBuf> = contents(directory.path()).into_keys().collect();
    assert_eq!(
        left,
        [
            directory.path().join("mine.txt"),
            directory.path().join("other/disk.json")
        ]
    );
    refused(3, &["info", &url]);
    done(&["info", &url, "--prefix", "other"]);
}

#[test]
fn what_a_bucket_says_of_a_disk_does_nothing_to_the_terminal() {
    let (directory, url) = disk();
    let path = directory.path().join("disk.json");
    let label = "a\u{1b}]0;b\u{7}c\u{9b}d";
    let sound = std::fs::read_to_string(&path).expect("superblock");
    std::fs::write(&path, resealed(&sound, "label", label.into())).expect("writes");
    let said = done(&["info", &url]);
    assert!(said.contains("a\\u001b]0;b\\u0007c"), "{said}");
    let figures = done(&["info", &url, "--json"]);
    let figures: serde_json::Value = serde_json::from_str(&figures).expect("JSON");
    assert_eq!(figures["label"], label, "programs get it as it is");
}

#[test]
fn info_describes_a_disk_for_people_and_for_programs() {
    let (_directory, url) = bucket();
    let created = done(&["create", &url, "--size", "1.5g", "--label", "a disk"]);
    assert_eq!(
        created,
        format!("created {url}: 1.5 GiB in blocks of 256 KiB\n")
    );
    let text = done(&["info", &url]);
    for part in ["a disk", "1.5 GiB", "256 KiB", "nobody", &url] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let json = done(&["info", &url, "--json"]);
    let figures: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(figures["size_bytes"], 3u64 << 29);
    assert_eq!(figures["block_bytes"], 256 << 10);
    assert_eq!(figures["label"], "a disk");
    assert_eq!(figures["stored_blocks"], 0);
    assert_eq!(figures["holder"], serde_json::Value::Null);
}

#[test]
fn quiet_says_nothing_where_all_is_well() {
    let (_directory, url) = bucket();
    assert_eq!(done(&["-q", "create", &url, "--size", "1m"]), "");
    assert_eq!(done(&["delete", &url, "--yes", "--quiet"]), "");
}

#[test]
fn help_and_version_are_answers() {
    assert!(done(&["--version"]).starts_with("bucketdisk "));
    let help = done(&["--help"]);
    assert!(
        help.contains("Usage: bucketdisk ") && help.contains("Exit status:"),
        "{help}"
    );
    for verb in ["create", "mount", "umount", "info", "status", "delete"] {
        let usage = format!("Usage: bucketdisk {verb} ");
        assert!(done(&[verb, "--help"]).contains(&usage), "{verb}");
        assert!(help.contains(verb), "{verb}");
    }
}

// ---- encrypted disks ----

/// A file with some content that only its owner can read, in a directory of its own.
fn secret_file(content: &str) -> (TempDir, String) {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("secret");
    std::fs::write(&path, content).expect("write");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).expect("mode");
    let path = path.to_str().expect("path").to_owned();
    (directory, path)
}

/// What makes trying a passphrase cheap.
const CHEAP: [&str; 4] = ["--kdf-time", "1ms", "--kdf-memory", "64k"];

/// A bucket with an encrypted disk that the passphrase "first" opens.
fn encrypted() -> (TempDir, String) {
    let (directory, url) = bucket();
    let (_kept, first) = secret_file("first\nsecond line\n");
    let mut line = vec!["create", &url, "--size", "1m", "--encrypt"];
    line.extend(["--label", "private", "--passphrase-file", &first]);
    line.extend(CHEAP);
    done(&line);
    (directory, url)
}

const FIRST: [&str; 2] = ["--passphrase-command", "echo first"];
const SECOND: [&str; 2] = ["--passphrase-command", "printf second"];
const WRONG: [&str; 2] = ["--passphrase-command", "echo wrong"];

fn with<'a>(line: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [line, more].concat()
}

#[test]
fn without_its_passphrase_an_encrypted_disk_shows_what_is_public_and_no_more() {
    let (directory, url) = encrypted();
    let text = done(&["info", &url]);
    assert!(
        text.contains("1 MiB") && text.contains("takes a passphrase"),
        "{text}"
    );
    assert!(!text.contains("private"), "{text}");
    let text = done(&with(&["info", &url], &FIRST));
    assert!(
        text.contains("private") && text.contains("nobody"),
        "{text}"
    );
    let json = done(&["info", &url, "--json"]);
    let figures: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(figures["encrypted"], true);
    assert_eq!(figures["label"], serde_json::Value::Null);
    assert_eq!(figures["key_slots"], 1);
    for (path, (_, content)) in contents(directory.path()) {
        let content = String::from_utf8_lossy(&content).into_owned();
        // The sealed member has the same name as the label.
        let content = content.replace("\"private\":", "");
        for secret in ["private", "first"] {
            assert!(!content.contains(secret), "{}: {content}", path.display());
        }
    }
}

#[test]
fn a_wrong_passphrase_or_none_is_one_error_and_nothing_is_touched() {
    let (directory, url) = encrypted();
    let before = contents(directory.path());
    let mountpoint = tempfile::tempdir().expect("directory");
    let at = mountpoint.path().to_str().expect("path");
    let log = tempfile::NamedTempFile::new().expect("file");
    let log = log.path().to_str().expect("path");
    let verbs: [&[&str]; 5] = [
        &["mount", &url, at, "--log", log],
        &["delete", &url, "--yes"],
        &["key", "add", &url, "--new-passphrase-command", "echo x"],
        &["key", "remove", &url],
        &["set", &url, "label=x"],
    ];
    for line in verbs {
        let said = refused(16, &with(line, &WRONG));
        assert!(!said.contains("wrong"), "{line:?}: {said}");
        let said = refused(16, line);
        assert!(said.contains("--passphrase-file"), "{line:?}: {said}");
    }
    refused(16, &with(&["info", &url], &WRONG));
    refused(
        16,
        &["info", &url, "--passphrase-command", "echo first; false"],
    );
    refused(3, &["info", &url, "--key-file", "/nonexistent/key"]);
    // Who names a slot wants to have it opened.
    for line in [
        &["info", &url, "--key-slot", "0"][..],
        &["key", "list", &url, "--key-slot", "0"],
    ] {
        let said = refused(16, line);
        assert!(said.contains("--passphrase-file"), "{line:?}: {said}");
        done(&with(line, &FIRST));
    }
    refused(3, &with(&["key", "list", &url, "--key-slot", "7"], &FIRST));
    assert_eq!(contents(directory.path()), before);
}

#[test]
fn passphrases_are_added_changed_and_removed_but_for_the_last() {
    let (_directory, url) = encrypted();
    let (_kept, key) = secret_file("\0any\nbytes\0");
    let add = with(&["key", "add", &url], &FIRST);
    let cheap = with(&add, &CHEAP);
    done(&with(&cheap, &["--new-passphrase-command", "echo second"]));
    done(&with(&cheap, &["--new-key-file", &key]));
    refused(
        4,
        &with(&cheap, &["--new-passphrase-command", "echo second"]),
    );
    done(&with(&["info", &url], &SECOND));
    done(&["info", &url, "--key-file", &key]);
    let listed: serde_json::Value =
        serde_json::from_str(&done(&["key", "list", &url, "--json"])).expect("JSON");
    assert_eq!(listed["slots"].as_array().expect("slots").len(), 3);
    assert_eq!(listed["slots"][2]["kind"], "key-file");
    let change = with(&["key", "change", &url], &SECOND);
    let change = with(&change, &CHEAP);
    done(&with(&change, &["--new-passphrase-command", "echo third"]));
    refused(16, &with(&["info", &url], &SECOND));
    refused(
        3,
        &with(&["key", "remove", &url, "--remove-slot", "7"], &FIRST),
    );
    done(&with(
        &["key", "remove", &url, "--remove-slot", "1"],
        &FIRST,
    ));
    done(&["key", "remove", &url, "--key-file", &key]);
    refused(16, &["info", &url, "--key-file", &key]);
    let said = refused(2, &with(&["key", "remove", &url], &FIRST));
    assert!(said.contains("last"), "{said}");
    done(&with(&["info", &url], &FIRST));
    done(&with(&["set", &url, "label=new", "compress=zstd"], &FIRST));
    let text = done(&with(&["info", &url], &FIRST));
    assert!(text.contains("new") && text.contains("zstd:3"), "{text}");
    done(&with(&["delete", &url, "--yes"], &FIRST));
}

#[test]
fn a_passphrase_comes_from_the_standard_input_or_from_systemd_too() {
    let (_directory, url) = encrypted();
    let (kept, first) = secret_file("first\n");
    let mut line = command(&["info", &url, "--passphrase-file", "-"]);
    let input = std::fs::File::open(&first).expect("file");
    let output = line.stdin(input).output().expect("runs");
    assert!(String::from_utf8_lossy(&output.stdout).contains("private"));
    std::fs::rename(&first, kept.path().join("bucketdisk.passphrase")).expect("rename");
    let mut line = command(&["info", &url]);
    let output = line.env("CREDENTIALS_DIRECTORY", kept.path()).output();
    let output = output.expect("runs");
    assert!(String::from_utf8_lossy(&output.stdout).contains("private"));
}

#[test]
fn a_passphrase_file_that_others_can_read_is_warned_of_without_a_terminal_too() {
    use std::os::unix::fs::PermissionsExt;
    let (_directory, url) = encrypted();
    let (_kept, first) = secret_file("first\n");
    for (mode, warnings) in [(0o600, 0), (0o640, 1), (0o604, 1)] {
        std::fs::set_permissions(&first, PermissionsExt::from_mode(mode)).expect("mode");
        let output = run(&["info", &url, "--passphrase-file", &first]);
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(said.lines().count(), warnings, "{mode:o}: {said}");
        assert_eq!(said.contains("chmod 600"), warnings == 1, "{said}");
        assert_eq!(said.contains(&first), warnings == 1, "{said}");
    }
}

#[test]
fn a_key_for_a_disk_that_is_not_encrypted_is_refused() {
    let (directory, url) = disk();
    let before = contents(directory.path());
    let said = refused(2, &with(&["info", &url], &FIRST));
    assert!(said.contains("not encrypted"), "{said}");
    let mountpoint = tempfile::tempdir().expect("directory");
    let at = mountpoint.path().to_str().expect("path");
    for options in [&["--foreground"][..], &["--foreground", "-o", "read_only"]] {
        let said = refused(2, &with(&["mount", &url, at, "--encrypt"], options));
        let named = said.contains(&url) && said.contains("leave out --encrypt");
        assert!(named && said.contains("not encrypted"), "{said}");
    }
    // Who can put a disk there chooses its id, so a credential for any counts.
    let (other, key) = (uuid::Uuid::nil(), "bucketdisk.passphrase".to_owned());
    for name in [format!("bucketdisk.{other}.passphrase"), key] {
        let credentials = tempfile::tempdir().expect("directory");
        std::fs::write(credentials.path().join(&name), "first").expect("write");
        for line in [&["info", &url][..], &["mount", &url, at, "--foreground"]] {
            let mut line = command(line);
            let output = line.env("CREDENTIALS_DIRECTORY", credentials.path());
            let said = refusal(2, &output.output().expect("runs"), &name);
            assert!(said.contains("not encrypted"), "{said}");
        }
    }
    let said = refused(2, &with(&["create", &url, "--size", "1m"], &FIRST));
    assert!(said.contains("--encrypt"), "{said}");
    refused(2, &["key", "list", &url]);
    for setting in ["size=1g", "compress=fast", "label", "label=a label=b"] {
        let words: Vec<&str> = setting.split(' ').collect();
        refused(2, &with(&["set", &url], &words));
    }
    assert_eq!(contents(directory.path()), before);
    done(&["set", &url, "label=plain"]);
    assert!(done(&["info", &url]).contains("plain"));
}
