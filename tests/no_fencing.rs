//! Stores that cannot keep a second writer out: they ignore `If-None-Match`, or refuse it. Writing to them is refused unless it is
//! asked for, and then said. And stores that can, which are several programs.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use support::canned_http::{Canned, CannedServer};
use support::real::{Machine, can_mount, run, wait_for};
use support::s3_server::{self, S3Server, variables};

mod support;

/// The other side of [`S3Server`]: this test binary, started again, is the server process.
#[test]
fn s3_server_process() {
    s3_server::serve_if_asked();
}

/// A machine that reaches a server with any credentials at all.
fn machine(endpoint: &str) -> Machine {
    let machine = Machine::new().with("AWS_ENDPOINT_URL", endpoint);
    variables("S3RVER", "S3RVER")
        .iter()
        .fold(machine, |machine, (name, value)| machine.with(name, value))
}

fn refused(output: &Output, code: i32, parts: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert_eq!(said.trim_end().lines().count(), 1, "{said}");
    for part in parts {
        assert!(said.contains(part), "lacks {part:?}: {said}");
    }
}

/// Writes at the beginning of an image, whose size cannot be changed.
fn write(image: &Path, text: &str) {
    let file = fs::OpenOptions::new().write(true).open(image);
    file.and_then(|file| file.write_all_at(text.as_bytes(), 0))
        .expect("writes");
}

/// What is lost is said, and what can be done.
const LOST: [&str; 4] = [
    "destroy each other's commits",
    "not be told",
    "another store",
    "--unsafe-no-fencing",
];

fn xml(code: &str) -> String {
    format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>x</Message></Error>")
}

/// Answers to a `create`: there is no disk; what the two conditional puts come to; and the probe is deleted.
fn create_on(puts: Vec<Canned>, how: &str) {
    let mut answers = vec![Canned::Answer("404 Not Found", "", xml("NoSuchKey"))];
    answers.extend(puts);
    let deleted = "<?xml version=\"1.0\"?><DeleteResult></DeleteResult>".to_owned();
    answers.push(Canned::Answer("200 OK", "", deleted));
    let server = CannedServer::start(answers);
    let create = [
        "create",
        "s3://bucket/disk",
        "--size",
        "64m",
        "--timeout",
        "5s",
    ];
    let output = machine(&server.endpoint()).try_run(&create);
    refused(&output, 10, &LOST);
    refused(&output, 10, &[how]);
    let requests = server.requests();
    let puts: Vec<_> = requests
        .iter()
        .filter(|line| line.starts_with("PUT "))
        .collect();
    assert!(
        puts.iter().all(|line| line.contains("/probe/")),
        "{requests:?}"
    );
    let last = requests.last().expect("requests");
    assert!(
        !last.starts_with("PUT "),
        "the probe is deleted: {requests:?}"
    );
}

#[test]
fn a_server_that_ignores_the_condition_is_refused_and_what_that_costs_is_said() {
    let put = || Canned::Answer("200 OK", "ETag: \"x\"\r\n", String::new());
    create_on(vec![put(), put()], "ignores If-None-Match");
}

#[test]
fn a_server_that_answers_501_is_refused_and_what_that_costs_is_said() {
    let put = Canned::Answer("501 Not Implemented", "", xml("NotImplemented"));
    create_on(vec![put], "refuses If-None-Match");
}

/// A store that fences: two sessions, the second is refused; and who says that it need not fence is fenced all the same.
fn keeps_a_second_writer_out(machine: &Machine, test: &str) {
    let url = "s3://bucket/disk";
    machine.run(&["create", url, "--size", "64m"]);
    refused(
        &machine.try_run(&["create", url, "--size", "64m"]),
        4,
        &["already"],
    );
    if !can_mount(test) {
        return;
    }
    for option in ["--commit-interval=1h", "--unsafe-no-fencing"] {
        let (disk, output) = machine.mount_saying(url, "disk", &[option]);
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "no warning");
        write(&disk.image(), option);
        let taken = machine.elsewhere(
            url,
            "\"$PROGRAM\" mount \"$URL\" \"$DIR\" --take-over --unsafe-no-fencing --log \"$LOG\"\n\
             \"$PROGRAM\" umount \"$DIR\"",
        );
        assert!(taken.status.success(), "{taken:?}");
        refused(&machine.try_run(&["umount", disk.dir()]), 6, &["elsewhere"]);
        machine.run(&["umount", "--discard", disk.dir()]);
    }
}

#[test]
fn s3s_keeps_a_second_writer_out() {
    let server = S3Server::start();
    server.make_bucket("bucket");
    let variables = server.variables();
    let machine = Machine::new().with("AWS_ENDPOINT_URL", &server.endpoint());
    let machine = variables
        .iter()
        .fold(machine, |machine, (name, value)| machine.with(name, value));
    keeps_a_second_writer_out(&machine, "s3s_keeps_a_second_writer_out");
}

/// A server program of somebody else's, on a port of its own; killed at the end.
struct Program {
    process: Child,
    endpoint: String,
    _data: tempfile::TempDir,
}

impl Program {
    /// Starts it with its port and folder, and waits until it takes connections.
    fn start(command: impl FnOnce(u16, &Path) -> Command) -> Program {
        let data = tempfile::tempdir().expect("a folder");
        // Nobody else takes it in the moment until the server does, or the test says so.
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("a port")
            .port();
        let process = command(port, data.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let mut program = Program {
            process,
            endpoint: format!("http://127.0.0.1:{port}"),
            _data: data,
        };
        wait_for("the server to listen", || {
            if let Ok(Some(status)) = program.process.try_wait() {
                let said = program.process.stderr.take().expect("its errors");
                let said: Vec<_> = BufReader::new(said).lines().map_while(Result::ok).collect();
                panic!("the server ended, {status}: {said:#?}");
            }
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        // It is not to stop because nobody reads what it says.
        let said = program.process.stderr.take().expect("its errors");
        std::thread::spawn(move || for _ in BufReader::new(said).lines().map_while(Result::ok) {});
        program
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// `scripts/test` installs it.
#[test]
fn moto_keeps_a_second_writer_out() {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let has_moto = Command::new(&python)
        .args(["-c", "import moto.server"])
        .stderr(Stdio::null())
        .status();
    if !has_moto.is_ok_and(|status| status.success()) {
        assert!(std::env::var_os("CI").is_none(), "moto is missing");
        eprintln!("SKIPPED: moto is missing, see scripts/test");
        return;
    }
    let server = Program::start(|port, _| {
        let mut command = Command::new(&python);
        command.args(["-m", "moto.server", "-p", &port.to_string()]);
        command
    });
    run(Command::new(&python).args([
        "-c",
        "import sys, urllib.request as u; u.urlopen(u.Request(sys.argv[1] + '/bucket', method='PUT'))",
        &server.endpoint,
    ]));
    keeps_a_second_writer_out(&machine(&server.endpoint), "moto_keeps_a_second_writer_out");
}

/// A real server that takes `If-None-Match` and does as if it were not there. It comes from npm, with Node.js, which is much to
/// install for one test: `npm install s3rver@3.7.1`, and `BUCKETDISK_S3RVER` names `node_modules/.bin/s3rver`.
#[test]
fn s3rver_cannot_keep_a_second_writer_out_and_is_written_to_only_where_that_is_accepted() {
    let Some(program) = std::env::var_os("BUCKETDISK_S3RVER").map(PathBuf::from) else {
        eprintln!("SKIPPED: BUCKETDISK_S3RVER does not name an s3rver, see tests/no_fencing.rs");
        return;
    };
    let server = Program::start(|port, data| {
        let mut command = Command::new(&program);
        command.arg("--silent").args(["--port", &port.to_string()]);
        command.arg("--directory").arg(data);
        command.args(["--configure-bucket", "bucket"]);
        command
    });
    let machine = machine(&server.endpoint);
    let url = "s3://bucket/disk";
    refused(
        &machine.try_run(&["create", url, "--size", "64m"]),
        10,
        &LOST,
    );
    refused(&machine.try_run(&["info", url]), 3, &["no disk"]);
    machine.run(&["create", url, "--size", "64m", "--unsafe-no-fencing"]);
    if !can_mount("s3rver_cannot_keep_a_second_writer_out") {
        return;
    }
    let dir = machine.path().join("disk");
    fs::create_dir(&dir).expect("a folder");
    let mount = ["mount", url, dir.to_str().expect("UTF-8")];
    refused(&machine.try_run(&mount), 10, &LOST);
    let (disk, output) = machine.mount_saying(url, "disk", &["--unsafe-no-fencing"]);
    let warned = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(warned.lines().count(), 1, "{warned}");
    assert!(
        warned.contains("warning") && warned.contains("second writer"),
        "{warned}"
    );
    assert!(machine.log().contains("second writer"), "{}", machine.log());
    write(&disk.image(), "written");
    disk.umount();
    // Reading needs no fence.
    let disk = machine.mount(url, "disk", &["--read-only"]);
    let content = fs::read(disk.image()).expect("reads");
    assert!(content.starts_with(b"written"));
    disk.umount();
}
