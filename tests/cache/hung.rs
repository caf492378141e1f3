//! A local disk that does not answer: a file that nobody can open to its end, as on a device or a network that is gone.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bucketdisk::cache::CacheStatus;
use bucketdisk::disk::Disk;
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use rustix::io::Errno;

use super::support::cache::{Opened, files, spec};
use super::support::volume::content;
use super::{BLOCK, fill, new_bucket, open_with, pattern};

/// Longer than a read of the local disk is waited for.
const ENOUGH: u32 = 10;

/// A file whose opening waits for as long as this lives.
struct Hung(PathBuf);

impl Hung {
    /// In the place of one.
    fn at(file: PathBuf) -> Hung {
        fs::remove_file(&file).expect("was there");
        mknodat(CWD, &file, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("is made");
        Hung(file)
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        // Nobody comes any more; and whoever waits to read it goes on, since somebody writes, and comes to its end.
        let aside = self.0.with_extension("aside");
        fs::rename(&self.0, &aside).expect("is there");
        let flags = OFlags::WRONLY | OFlags::NONBLOCK;
        match rustix::fs::open(&aside, flags, Mode::empty()) {
            Ok(writer) => drop(writer),
            Err(error) => assert_eq!(error, Errno::NXIO, "nobody waits"),
        }
    }
}

fn status(disk: &Disk) -> CacheStatus {
    disk.status().store.disk_cache.expect("there is a cache")
}

#[tokio::test]
async fn a_local_disk_that_does_not_answer_costs_one_read_its_patience_and_the_next_ones_nothing() {
    let (bucket, home) = (new_bucket().await, tempfile::tempdir().expect("a folder"));
    fill(&bucket, Some(home.path()), &pattern(1)).await;
    let hung = Hung::at(files(home.path())[3].clone());
    let opened = Opened::new(spec(home.path()));
    let disk = open_with(&bucket, opened.as_dyn()).await;
    assert_eq!(status(&disk).error, None);
    // From here on only this test lets time pass, and nothing but the store answers.
    tokio::time::pause();
    let reader = Arc::clone(&disk);
    let read = tokio::spawn(async move {
        let mut found = vec![0; BLOCK as usize];
        reader.read(3 * BLOCK, &mut found).await.expect("reads");
        found
    });
    for _ in 0..ENOUGH {
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    assert!(read.is_finished(), "it still waits for the local disk");
    let found = read.await.expect("reads");
    assert!(found == pattern(1)[3 * BLOCK as usize..4 * BLOCK as usize]);
    let silent = status(&disk);
    let error = silent.error.expect("says so");
    assert!(error.contains("cannot read the cache"), "{error}");
    assert!(error.contains("timed out"), "{error}");
    // The others are in files that could be read, but it is left alone for now.
    let before = bucket.requests().gets;
    assert!(content(&disk).await == pattern(1));
    assert!(bucket.requests().gets > before, "the store answers");
    assert_eq!(status(&disk).hits, silent.hits);
    tokio::time::resume();
    drop(hung);
    disk.close().await.expect("closes");
    drop(disk);
    opened.end().await;
}
