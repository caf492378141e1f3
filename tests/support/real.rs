//! The real program on real mounts, loop devices and file systems, for tests that run as root.

use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::Value;

/// Whether real mounts can be made here. Says loudly that a test is skipped where not; where `CI` is set that is an error.
pub fn can_mount(test: &str) -> bool {
    let missing = if !rustix::process::geteuid().is_root() {
        "root"
    } else if !Path::new("/dev/fuse").exists() {
        "/dev/fuse"
    } else if !Path::new("/dev/loop-control").exists() {
        "/dev/loop-control"
    } else {
        return true;
    };
    assert!(std::env::var_os("CI").is_none(), "{test} needs {missing}");
    eprintln!("SKIPPED: {test} needs {missing}");
    false
}

/// Runs a command to its end and answers its standard output.
///
/// # Panics
/// Where it fails.
pub fn run(command: &mut Command) -> String {
    let output = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A command of the system by its words.
pub fn sh(line: &str) -> String {
    run(Command::new("sh").args(["-euc", line]))
}

/// Waits until something holds: for what another process does.
pub fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "waited a minute for {what}");
        std::thread::yield_now();
        // Another process is waited for: nothing here could tell when it is done.
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A folder in memory where there is one: every put to a directory store is synced, and the tests are not about the local disk.
fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        tempfile::tempdir_in(memory).expect("a folder")
    } else {
        tempfile::tempdir().expect("a folder")
    }
}

/// A machine's own view of a store: where its program keeps its state, and how it reaches the store.
#[derive(Debug)]
pub struct Machine {
    home: tempfile::TempDir,
    environment: Vec<(String, String)>,
}

impl Machine {
    pub fn new() -> Self {
        Machine {
            home: folder(),
            environment: Vec::new(),
        }
    }

    /// A variable for every run of the program here.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Opens encrypted disks, and makes them, with a passphrase that every run of the program finds as systemd would give it.
    pub fn with_passphrase(self) -> Self {
        let credentials = self.path().join("credentials");
        fs::create_dir(&credentials).expect("a folder");
        fs::write(credentials.join("bucketdisk.passphrase"), "secret").expect("a file");
        let credentials = credentials.to_str().expect("UTF-8").to_owned();
        self.with("CREDENTIALS_DIRECTORY", &credentials)
    }

    pub fn path(&self) -> &Path {
        self.home.path()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.home.path().join("log")).unwrap_or_default()
    }

    /// The program with some arguments.
    pub fn program(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bucketdisk"));
        command.args(arguments).stdin(Stdio::null());
        for name in [
            "AWS_PROFILE",
            "AWS_REGION",
            "AWS_ENDPOINT_URL",
            "AWS_SESSION_TOKEN",
        ] {
            command.env_remove(name);
        }
        command.envs(self.environment.iter().cloned());
        command
    }

    /// Runs the program, which must succeed, and answers its standard output.
    pub fn run(&self, arguments: &[&str]) -> String {
        run(&mut self.program(arguments))
    }

    /// Runs the program and answers what came of it.
    pub fn try_run(&self, arguments: &[&str]) -> Output {
        self.program(arguments)
            .output()
            .expect("the program starts")
    }

    /// Where the journal of a disk is on this machine, unless a test says otherwise.
    pub fn cache_directory(&self, url: &str) -> PathBuf {
        let name: String = url
            .trim_end_matches('/')
            .chars()
            .map(|c| if c.is_alphanumeric() { c } else { '-' })
            .collect();
        self.home.path().join(format!("cache-{name}"))
    }

    /// Mounts a disk on a folder of this machine. Its dirty data is in a journal, but a flush waits for the bucket, and what is read
    /// comes from there.
    pub fn mount(&self, url: &str, name: &str, options: &[&str]) -> Mount<'_> {
        self.mount_saying(url, name, options).0
    }

    /// Mounts a disk on a folder of this machine, and answers what is said on the way too.
    pub fn mount_saying(&self, url: &str, name: &str, options: &[&str]) -> (Mount<'_>, Output) {
        let mut arguments = Vec::new();
        let prefix = options.iter().position(|o| *o == "--prefix");
        let prefix = prefix.map_or("", |at| options[at + 1]);
        let cache = self.cache_directory(&format!("{url}/{prefix}"));
        if !options
            .iter()
            .any(|o| ["--cache-dir", "--read-only"].contains(o))
        {
            // Most tests are about what the bucket has.
            let cache = cache.to_str().expect("UTF-8");
            arguments.extend(["--cache-dir", cache, "--flush", "bucket"]);
        }
        if !options.contains(&"--cache-size") {
            arguments.extend(["--cache-size", "0"]);
        }
        arguments.extend(options);
        self.mount_as_usual(url, name, &arguments)
    }

    /// Mounts a disk as one does who gives these options and no others.
    pub fn mount_as_usual(&self, url: &str, name: &str, options: &[&str]) -> (Mount<'_>, Output) {
        let directory = self.home.path().join(name);
        fs::create_dir_all(&directory).expect("a folder");
        let log = self.home.path().join("log");
        let mut arguments = vec![
            "mount",
            url,
            directory.to_str().expect("UTF-8"),
            "--log",
            log.to_str().expect("UTF-8"),
        ];
        arguments.extend(options);
        let said = self.try_run(&arguments);
        assert!(said.status.success(), "{arguments:?}: {said:?}");
        let mount = Mount {
            machine: self,
            directory,
            filename: "disk.img",
        };
        (mount, said)
    }

    /// Runs a script as another machine would: with its own name, and nothing of what the program remembers on this one. What it
    /// mounts is seen by the script alone. `$PROGRAM` is the program, `$URL` the disk, `$DIR` a folder, `$LOG` a file to log to.
    pub fn elsewhere(&self, url: &str, script: &str) -> Output {
        let folder = self.path().join("elsewhere");
        fs::create_dir_all(&folder).expect("a folder");
        let own = "for place in /var/cache/bucketdisk /run/bucketdisk; do mount -t tmpfs -o mode=700 none $place; done\n\
                   hostname elsewhere\n";
        Command::new("unshare")
            .args(["--mount", "--uts", "sh", "-euc", &format!("{own}{script}")])
            .env("PROGRAM", env!("CARGO_BIN_EXE_bucketdisk"))
            .env("URL", url)
            .env("DIR", folder)
            .env("LOG", self.path().join("log elsewhere"))
            .envs(self.environment.iter().cloned())
            .output()
            .expect("runs")
    }
}

/// A mounted disk. Unmounted, by force if need be, when a test fails before it does that itself.
#[derive(Debug)]
pub struct Mount<'a> {
    pub machine: &'a Machine,
    pub directory: PathBuf,
    filename: &'static str,
}

impl Mount<'_> {
    pub fn image(&self) -> PathBuf {
        self.directory.join(self.filename)
    }

    pub fn dir(&self) -> &str {
        self.directory.to_str().expect("UTF-8")
    }

    pub fn status(&self) -> Value {
        serde_json::from_str(&self.machine.run(&["status", "--json", self.dir()])).expect("JSON")
    }

    pub fn pid(&self) -> i32 {
        self.status()["pid"]
            .as_i64()
            .and_then(|pid| i32::try_from(pid).ok())
            .expect("a pid")
    }

    /// Unmounts with everything committed. Where the mount is in use, waits: a program that some other thread is starting has all
    /// files of this process until it begins.
    pub fn umount(self) {
        const IN_USE: Option<i32> = Some(13);
        wait_for("nobody to use the mount", || {
            let output = self.machine.try_run(&["umount", self.dir()]);
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(
                output.status.success() || output.status.code() == IN_USE,
                "{said}"
            );
            output.status.success()
        });
        assert!(!self.is_mounted());
    }

    pub fn is_mounted(&self) -> bool {
        mounts().iter().any(|mounted| mounted == &self.directory)
    }

    /// Kills the daemon as `kill -9` does, and takes the dead mount away.
    pub fn kill(self) {
        self.daemon().kill();
        self.clear_away();
    }

    /// The process that serves the mount, to be killed without asking it anything any more.
    pub fn daemon(&self) -> Daemon {
        let pid = Pid::from_raw(self.pid()).expect("a pid");
        let descriptor = pidfd_open(pid, PidfdFlags::empty()).expect("it lives");
        Daemon { pid, descriptor }
    }

    /// Takes away what a dead daemon has left mounted, if anything.
    pub fn clear_away(self) {
        if self.is_mounted() {
            run(Command::new("umount").arg("--lazy").arg(&self.directory));
        }
    }

    /// Attaches the image to a loop device.
    pub fn attach(&self, options: &[&str]) -> Loop {
        for _ in 0..3 {
            let device = run(Command::new("losetup")
                .args(["--find", "--show"])
                .args(options)
                .arg(self.image()));
            let device = device.trim().to_owned();
            let attached = Loop { device };
            let bytes = sh(&format!("blockdev --getsize64 {}", attached.device));
            if bytes.trim() != "0" {
                return attached;
            }
            // Seen once, with other tests attaching and detaching beside it; what is below is to tell why.
            eprintln!(
                "{} is empty, though attached to {:?}:\n{}",
                attached.device,
                fs::metadata(self.image()),
                sh("losetup --list")
            );
            attached.detach();
        }
        panic!("no loop device takes {}", self.image().display());
    }
}

/// The process of a daemon; another that gets its number later is not taken for it.
#[derive(Debug)]
pub struct Daemon {
    pid: Pid,
    descriptor: OwnedFd,
}

impl Daemon {
    /// Kills it as `kill -9` does and waits until it is dead. Answers whether it still lived.
    pub fn kill(&self) -> bool {
        let lived = !self.is_dead();
        // It may have ended by itself.
        let _ = pidfd_send_signal(&self.descriptor, Signal::KILL);
        wait_for("the daemon to be dead", || self.is_dead());
        lived
    }

    fn is_dead(&self) -> bool {
        !Path::new(&format!("/proc/{}/fd", self.pid)).exists() || is_zombie(self.pid)
    }
}

fn is_zombie(pid: Pid) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        if self.is_mounted() {
            if std::thread::panicking() {
                eprintln!("---- log of the daemon ----\n{}", self.machine.log());
            }
            let _ = Command::new("umount")
                .arg("--lazy")
                .arg(&self.directory)
                .status();
        }
    }
}

/// What is mounted, by mount point.
pub fn mounts() -> Vec<PathBuf> {
    let mut text = String::new();
    fs::File::open("/proc/self/mounts")
        .and_then(|mut f| f.read_to_string(&mut text))
        .expect("reads");
    text.lines()
        .filter_map(|line| line.split(' ').nth(1))
        .map(PathBuf::from)
        .collect()
}

/// A loop device, detached at the end.
#[derive(Debug)]
pub struct Loop {
    pub device: String,
}

impl Loop {
    /// Detaches it, and waits until the kernel has let go of the image.
    pub fn detach(self) {
        run(Command::new("losetup").args(["--detach", &self.device]));
        let device = self.device.clone();
        std::mem::forget(self);
        wait_for("the loop device to be free", || {
            !sh("losetup --noheadings --output NAME --list")
                .lines()
                .any(|line| line.trim() == device)
        });
    }

    /// Mounts the file system on it.
    pub fn mount(&self, directory: &Path, options: &str) -> FileSystem {
        fs::create_dir_all(directory).expect("a folder");
        run(Command::new("mount")
            .args(["-o", options, &self.device])
            .arg(directory));
        FileSystem {
            directory: directory.to_owned(),
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup")
            .args(["--detach", &self.device])
            .status();
    }
}

/// A mounted file system, unmounted at the end.
#[derive(Debug)]
pub struct FileSystem {
    pub directory: PathBuf,
}

impl FileSystem {
    pub fn umount(self) {
        run(Command::new("umount").arg(&self.directory));
        std::mem::forget(self);
    }
}

impl Drop for FileSystem {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg("--lazy")
            .arg(&self.directory)
            .status();
    }
}

/// Fills a folder with files of many sizes and kinds, some 24 MiB, the same for the same seed.
pub fn make_tree(root: &Path, seed: u64) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for folder in 0..12 {
        let folder = root.join(format!("folder {folder}"));
        fs::create_dir_all(folder.join("empty")).expect("a folder");
        for file in 0..20 {
            let len = match file % 5 {
                0 => next() % 100,
                1 => next() % 5_000,
                2 => next() % 70_000,
                3 => next() % 300_000,
                _ => 0,
            };
            let mut content: Vec<u8> = Vec::new();
            while (content.len() as u64) < len {
                content.extend(next().to_le_bytes());
            }
            content.truncate(len as usize);
            fs::write(folder.join(format!("file-{file}")), &content).expect("a file");
        }
        std::os::unix::fs::symlink("../folder 0/file-1", folder.join("link")).expect("a link");
    }
    let mut big: Vec<u8> = Vec::new();
    while big.len() < 8 << 20 {
        big.extend(next().to_le_bytes());
    }
    fs::write(root.join("big"), &big).expect("a file");
}

/// Compares two trees, every file of them.
pub fn assert_same_tree(one: &Path, other: &Path) {
    run(Command::new("diff")
        .args([
            "--recursive",
            "--no-dereference",
            "--brief",
            "--exclude=lost+found",
        ])
        .arg(one)
        .arg(other));
}

/// A machine with a bucket in a directory, and that bucket's URL.
pub fn with_directory() -> (Machine, String) {
    let machine = Machine::new();
    let bucket = machine.path().join("bucket");
    fs::create_dir(&bucket).expect("a folder");
    let url = format!("file://{}", bucket.display());
    (machine, url)
}

/// Reads a part of the image.
pub fn read_at(mount: &Mount<'_>, offset: u64, len: usize) -> Vec<u8> {
    let mut buf = vec![0; len];
    fs::File::open(mount.image())
        .and_then(|f| f.read_exact_at(&mut buf, offset))
        .expect("reads");
    buf
}

pub fn write_at(mount: &Mount<'_>, offset: u64, data: &[u8], sync: bool) {
    let file = fs::OpenOptions::new()
        .write(true)
        .open(mount.image())
        .expect("opens");
    file.write_all_at(data, offset).expect("writes");
    if sync {
        file.sync_all().expect("syncs");
    }
}
