//! Whose objects a cache holds.
//!
//! An object checks out wherever it has the same disk id, index and version. That is not enough: a copy of a bucket has the same id,
//! and goes its own way under the same numbers. So a cache says where its objects come from, and begins anew where that is another place.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// What the file begins with: another format of the cache is another origin.
const FORMAT: &str = "bucketdisk cache 1";
/// What objects are set aside under until they are removed.
const GONE: &str = "gone-";

/// Where the objects' folders are.
pub(super) fn objects(directory: &Path) -> PathBuf {
    directory.join("blocks")
}

/// Where a file is written before it gets its name.
pub(super) fn beside(directory: &Path) -> PathBuf {
    directory.join("new")
}

/// Makes the cache in a directory one of this origin: with what it holds if that is its origin, else with nothing.
pub(super) fn settle(directory: &Path, origin: &str) -> io::Result<()> {
    let text = format!("{FORMAT}\n{origin}\n");
    let path = directory.join("origin");
    if std::fs::read(&path).is_ok_and(|found| found == text.as_bytes()) {
        return Ok(());
    }
    let aside = directory.join(format!("{GONE}{:016x}", rand::random::<u64>()));
    match std::fs::rename(objects(directory), aside) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    // Whoever finds the new origin is not to find the old objects.
    File::open(directory)?.sync_all()?;
    let new = beside(directory);
    create(&new)?.write_all(text.as_bytes())?;
    std::fs::rename(&new, &path)
}

/// Removes what was set aside, by this or an earlier mount.
pub(super) fn clear(directory: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(GONE) {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// A new file for its owner alone.
pub(super) fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
}
