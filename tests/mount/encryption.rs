//! Encrypted disks on real mounts: how the daemon, which has neither terminal nor standard input, comes by what opens them.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::support::real::{can_mount, read_at, run, with_directory, write_at};

const NEW: [&str; 8] = [
    "--create",
    "--size",
    "4m",
    "--encrypt",
    "--kdf-time",
    "1ms",
    "--kdf-memory",
    "64k",
];

/// Runs a line on a terminal of its own, types an answer at each prompt for a passphrase, and ends as the line does.
const AT_A_TERMINAL: &str = r#"
import os, pty, sys, termios
answers = sys.argv[1].split(",")
pid, terminal = pty.fork()
if pid == 0:
    os.execvp(sys.argv[2], sys.argv[2:])
said = b""
while True:
    try:
        part = os.read(terminal, 4096)
    except OSError:
        break
    if not part:
        break
    said += part
    if part.rstrip().endswith(b":") and answers:
        # The prompt is there an instant before what is typed is hidden.
        while termios.tcgetattr(terminal)[3] & termios.ECHO:
            os.sched_yield()
        os.write(terminal, answers.pop(0).encode() + b"\n")
sys.stdout.buffer.write(said)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"#;

#[test]
fn a_daemon_gets_its_passphrase_from_who_started_it() {
    if !can_mount("a_daemon_gets_its_passphrase_from_who_started_it") {
        return;
    }
    let (machine, url) = with_directory();
    let marker = b"a marker that is nowhere to be read".repeat(100);
    let file = machine.path().join("passphrase");
    std::fs::write(&file, "secret\n").expect("write");
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).expect("mode");
    let file = file.to_str().expect("UTF-8");
    let options = [&NEW[..], &["--passphrase-file", file]].concat();
    let (disk, said) = machine.mount_saying(&url, "disk", &options);
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.contains("chmod 600") && said.contains(file), "{said}");
    write_at(&disk, 12_345, &marker, true);
    disk.umount();
    // A wrong one claims nothing.
    let bucket = url.strip_prefix("file://").expect("a directory");
    let keys = || run(Command::new("find").arg(bucket));
    let before = keys();
    let directory = machine.path().join("disk");
    let directory = directory.to_str().expect("UTF-8");
    let wrong = ["mount", &url, directory, "--passphrase-command", "echo no"];
    let refused = machine.try_run(&wrong);
    assert_eq!(refused.status.code(), Some(16), "{refused:?}");
    assert_eq!(String::from_utf8_lossy(&refused.stderr).lines().count(), 1);
    assert_eq!(keys(), before);
    let options = ["--passphrase-command", "echo secret"];
    let disk = machine.mount(&url, "disk", &options);
    assert_eq!(read_at(&disk, 12_345, marker.len()), marker);
    let copy = machine
        .cache_directory(&format!("{url}/"))
        .join("superblock.json");
    let copy = std::fs::read(copy).expect("a copy beside the journal");
    assert_eq!(
        copy,
        std::fs::read(format!("{bucket}/disk.json")).expect("there")
    );
    disk.umount();
    let found = Command::new("grep")
        .args(["-rl", "a marker that is nowhere", bucket])
        .arg(machine.cache_directory(&format!("{url}/")))
        .output()
        .expect("runs");
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
}

#[test]
fn a_passphrase_is_asked_for_on_the_terminal_before_the_daemon_leaves_it() {
    if !can_mount("a_passphrase_is_asked_for_on_the_terminal_before_the_daemon_leaves_it") {
        return;
    }
    let (machine, url) = with_directory();
    let directory = machine.path().join("disk");
    std::fs::create_dir_all(&directory).expect("a folder");
    let directory = directory.to_str().expect("UTF-8");
    let at_a_terminal = |answers: &str, more: &[&str]| {
        let mut line = Command::new("python3");
        line.args(["-c", AT_A_TERMINAL, answers]);
        line.arg(env!("CARGO_BIN_EXE_bucketdisk"));
        line.args(["mount", &url, directory, "--cache-dir", "none"]);
        let output = line.args(more).output().expect("python3");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code(), said)
    };
    let umount = || machine.run(&["umount", directory]);
    // Two that differ make nothing.
    let (code, said) = at_a_terminal("secret,Secret", &NEW);
    assert_eq!(code, Some(2), "{said}");
    let (code, said) = at_a_terminal("secret,secret", &NEW);
    assert_eq!(code, Some(0), "{said}");
    assert!(!said.contains("secret"), "{said}");
    umount();
    let (code, said) = at_a_terminal("wrong,secret", &[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("does not open"), "{said}");
    umount();
    let (code, said) = at_a_terminal("a,b,c", &[]);
    assert_eq!(code, Some(16), "{said}");
}

/// Whether any file below a folder holds a text.
fn holds(folder: &str, text: &str) -> bool {
    let found = Command::new("grep").args(["-rlaF", text, folder]).output();
    !found.expect("grep runs").stdout.is_empty()
}

#[test]
fn what_was_flushed_before_a_kill_is_in_the_journal_for_who_has_the_passphrase_alone() {
    if !can_mount(
        "what_was_flushed_before_a_kill_is_in_the_journal_for_who_has_the_passphrase_alone",
    ) {
        return;
    }
    let (machine, url) = with_directory();
    let bucket = url.strip_prefix("file://").expect("a directory");
    let marker = b"a marker that is nowhere to be read".repeat(2000);
    let known = "a marker that is nowhere";
    let key = machine.path().join("key");
    std::fs::write(&key, [7; 64]).expect("write");
    let key = key.to_str().expect("UTF-8");
    let cache = machine.path().join("journal");
    let cache = cache.to_str().expect("UTF-8");
    let lazy = ["--flush", "journal", "--commit-interval", "1h"];
    let at = ["--key-file", key, "--cache-dir", cache];
    let options = [&NEW[..], &lazy, &at].concat();
    let disk = machine.mount(&url, "disk", &options);
    write_at(&disk, 100_000, &marker, true);
    disk.kill();
    assert!(!holds(cache, known) && !holds(bucket, known));

    let file = machine.path().join("copy");
    let file = file.to_str().expect("UTF-8");
    let export = ["journal", "export", cache, file];
    let refused = machine.try_run(&export);
    assert_eq!(refused.status.code(), Some(16), "{refused:?}");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    let copy = format!("{cache}/superblock.json");
    assert!(
        said.contains(&copy) && said.contains("disk.json of the bucket"),
        "{said}"
    );
    machine.run(&[&export[..], &["--key-file", key]].concat());
    let copy = std::fs::read(file).expect("the copy");
    assert_eq!(copy[100_000..][..marker.len()], marker);

    let disk = machine.mount(&url, "disk", &[&lazy[..], &at].concat());
    assert_eq!(read_at(&disk, 100_000, marker.len()), marker);
    disk.umount();
    // Read again, from the bucket into the cache on the local disk.
    let disk = machine.mount(&url, "disk", &at);
    assert_eq!(read_at(&disk, 100_000, marker.len()), marker);
    disk.umount();
    assert!(!holds(cache, known) && !holds(bucket, known));
}

/// `tests/decode.py` knows of the format what its description says.
#[test]
fn an_independent_program_reads_a_disk_that_is_encrypted_and_compressed() {
    if !can_mount("an_independent_program_reads_a_disk_that_is_encrypted_and_compressed") {
        return;
    }
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned());
    for compression in ["none", "zstd", "lz4", "zlib"] {
        let (machine, url) = with_directory();
        let bucket = url.strip_prefix("file://").expect("a directory");
        let passphrase = machine.path().join("passphrase");
        std::fs::write(&passphrase, "secret\n").expect("write");
        let given = passphrase.to_str().expect("UTF-8");
        let open = ["--passphrase-file", given];
        let new = ["--compress", compression, "--label", "office"];
        let options = [&NEW[..], &new, &open].concat();
        let text = b"what shrinks, and is read again by somebody else. ".repeat(20_000);
        let disk = machine.mount(&url, "disk", &options);
        write_at(&disk, 1000, &text, true);
        disk.umount();
        // What is in the superblock from now on is another generation, and what was packed before stays as it is.
        machine.run(&[&["set", &url, "compress=none", "label=büro"][..], &open].concat());
        let disk = machine.mount(&url, "disk", &open);
        write_at(&disk, 3 << 20, &text[..100_000], true);
        disk.umount();

        let image = machine.path().join("image");
        let mut decode = Command::new(&python);
        decode.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/decode.py"));
        decode.arg(bucket).arg(&image);
        decode.arg(format!("--passphrase-file={given}"));
        let told = run(&mut decode);
        let told: serde_json::Value = serde_json::from_str(&told).expect("JSON");
        assert_eq!(told["superblock"]["label"], "büro");
        assert_eq!(told["superblock"]["generation"], 2);
        let image = std::fs::read(image).expect("the image");
        assert_eq!(image.len(), 4 << 20);
        assert_eq!(image[1000..][..text.len()], text, "{compression}");
        assert_eq!(image[3 << 20..][..100_000], text[..100_000]);
        let other = image[1000 + text.len()..3 << 20].iter();
        assert!(other.chain(&image[..1000]).all(|byte| *byte == 0));
        std::fs::write(&passphrase, "Secret\n").expect("write");
        let refused = decode.output().expect("runs");
        assert!(!refused.status.success());
    }
}
