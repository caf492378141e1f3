//! A real S3 server in a process of its own: s3s-fs over a temporary directory, with strict signatures, on 127.0.0.1.
//!
//! The process is the test binary itself, started again to run the one test `s3_server_process`. It ends when it is killed or when
//! its standard input ends, so it never outlives the tests.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use bucketdisk::object::{Connection, Environment};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::real::Machine;
use super::s3_service::{self, Pace};

pub use super::s3_service::{ACCESS_KEY, SECRET_KEY};

const DATA_DIR: &str = "BUCKETDISK_TEST_S3_DATA";
const PORT: &str = "BUCKETDISK_TEST_S3_PORT";
const LISTENING: &str = "s3-server-listens-on-port ";

/// A running (or stopped) server; killed when dropped.
pub struct S3Server {
    data: TempDir,
    port: u16,
    process: Option<Child>,
}

impl S3Server {
    /// Starts a server without buckets, on a free port.
    pub fn start() -> S3Server {
        let mut server = S3Server {
            data: tempfile::tempdir().expect("data directory"),
            port: 0,
            process: None,
        };
        server.launch();
        server
    }

    /// Makes a bucket.
    pub fn make_bucket(&self, name: &str) {
        std::fs::create_dir(self.bucket_dir(name)).expect("bucket");
    }

    /// Where the objects of a bucket are, one file each.
    pub fn bucket_dir(&self, name: &str) -> PathBuf {
        self.data_dir().join(name)
    }

    /// The directory of all buckets.
    pub fn data_dir(&self) -> &Path {
        self.data.path()
    }

    /// The server's URL.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The variables that a program needs to be let in.
    pub fn variables(&self) -> HashMap<String, String> {
        variables(ACCESS_KEY, SECRET_KEY)
    }

    /// The same, for a client in this process.
    pub fn environment(&self) -> Environment {
        Environment::fixed(None, self.variables())
    }

    /// A machine whose program reaches this server.
    pub fn machine(&self) -> Machine {
        self.variables().iter().fold(
            Machine::new().with("AWS_ENDPOINT_URL", &self.endpoint()),
            |machine, (name, value)| machine.with(name, value),
        )
    }

    /// The options that lead a client here.
    pub fn connection(&self) -> Connection {
        Connection {
            endpoint: Some(self.endpoint()),
            ..Connection::default()
        }
    }

    /// Kills the server, as an outage would. What it stored stays.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("kill the server");
            process.wait().expect("wait for the server");
        }
    }

    /// Stops the server in its tracks: connections are accepted, requests taken, and nothing is answered.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Ends a pause: what was asked meanwhile is answered now.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let process = self.process.as_ref().expect("the server runs");
        kill_process(Pid::from_child(process), signal).expect("signals");
    }

    /// Ends an outage.
    pub fn restart_on_same_port(&mut self) {
        self.stop();
        self.launch();
    }

    fn launch(&mut self) {
        let mut process = Command::new(std::env::current_exe().expect("this test binary"))
            .args([
                "s3_server_process",
                "--exact",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(DATA_DIR, self.data.path())
            .env(PORT, self.port.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start the server");
        let output = BufReader::new(process.stdout.take().expect("its output"));
        self.process = Some(process);
        self.port = output
            .lines()
            .map_while(Result::ok)
            .find_map(|line| line.split_once(LISTENING)?.1.trim().parse().ok())
            .expect("the server's port: does this binary have the test s3_server_process?");
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Variables with these keys, and nothing of the machine's own.
pub fn variables(access_key: &str, secret_key: &str) -> HashMap<String, String> {
    [
        ("AWS_ACCESS_KEY_ID", access_key),
        ("AWS_SECRET_ACCESS_KEY", secret_key),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into()
}

/// The body of the test `s3_server_process`: nothing, unless this process was started to be a server.
pub fn serve_if_asked() {
    let Some(data) = std::env::var_os(DATA_DIR) else {
        return;
    };
    let port = std::env::var(PORT).expect("port").parse().expect("port");
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    tokio::runtime::Runtime::new()
        .expect("runtime")
        .block_on(s3_service::serve(
            Path::new(&data),
            port,
            Pace::default(),
            |port| {
                println!("\n{LISTENING}{port}");
            },
        ));
}
