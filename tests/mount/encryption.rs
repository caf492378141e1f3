//! Encrypted disks on real mounts: how the daemon, which has neither terminal nor standard input, comes by what opens them.

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
import os, pty, sys
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
    let file = file.to_str().expect("UTF-8");
    let options = [&NEW[..], &["--passphrase-file", file]].concat();
    let disk = machine.mount(&url, "disk", &options);
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
