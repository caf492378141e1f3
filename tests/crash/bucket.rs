//! A bucket as it lies in a directory: what a crash has left in it, and the disk in it seen as another machine sees it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::real::{Machine, run};
use crate::support::s3_server::S3Server;

/// The store of one disk.
pub struct Bucket {
    server: Option<S3Server>,
    url: String,
    folder: PathBuf,
    /// What the last crash had left.
    left: PathBuf,
}

impl Bucket {
    /// On an S3 server, or in a directory; and the machine that reaches it.
    pub fn new(on_s3: bool) -> (Bucket, Machine) {
        if on_s3 {
            let server = S3Server::start();
            server.make_bucket("bucket");
            let machine = server.machine();
            let bucket = Bucket {
                url: "s3://bucket/disk".to_owned(),
                folder: server.bucket_dir("bucket").join("disk"),
                left: server.data_dir().join("left"),
                server: Some(server),
            };
            return (bucket, machine);
        }
        let machine = Machine::new();
        let folder = machine.path().join("bucket");
        fs::create_dir(&folder).expect("a folder");
        let bucket = Bucket {
            url: format!("file://{}", folder.display()),
            left: machine.path().join("left"),
            folder,
            server: None,
        };
        (bucket, machine)
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn store(&self) -> &'static str {
        match self.server {
            Some(_) => "an S3 server",
            None => "a directory",
        }
    }

    /// The newest record.
    pub fn head(&self) -> u32 {
        self.newest("log")
    }

    /// The newest checkpoint.
    pub fn checkpoint(&self) -> u32 {
        self.newest("map")
    }

    fn newest(&self, folder: &str) -> u32 {
        let numbers = names(&self.folder.join(folder)).into_iter();
        numbers.filter_map(|name| number(&name)).max().unwrap_or(0)
    }

    /// Whether there are blocks of a commit whose record is not there: one is under way, or was when its session died.
    pub fn is_committing(&self) -> bool {
        let blocks = self.folder.join("blocks");
        let head = self.head();
        names(&blocks).iter().any(|shard| {
            let blocks = names(&blocks.join(shard));
            let version = |name: &String| number(name.split_once('.')?.1);
            blocks.iter().filter_map(version).any(|seq| seq > head)
        })
    }

    /// Remembers what a crash has left. Objects are never written to again, so links do.
    pub fn note_crash(&self) {
        run(Command::new("rm").arg("-rf").arg(&self.left));
        run(Command::new("cp")
            .arg("-al")
            .arg(&self.folder)
            .arg(&self.left));
    }

    /// Copies what the last crash had left, and what there is now, for somebody to look at.
    pub fn keep(&self, to: &Path) {
        for (from, name) in [(&self.left, "after-the-crash"), (&self.folder, "now")] {
            if from.exists() {
                run(Command::new("cp").arg("-a").arg(from).arg(to.join(name)));
            }
        }
    }
}

fn number(name: &str) -> Option<u32> {
    (name.len() == 8).then(|| u32::from_str_radix(name, 16).ok())?
}

/// The names in a folder; none where there is none. A file may go while this looks.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let name = |entry: std::io::Result<fs::DirEntry>| entry.ok()?.file_name().into_string().ok();
    entries.filter_map(name).collect()
}
