//! A journal's files in a directory of a file system.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::{Errno, pwritev};

use super::files::{LocalFile, LocalFiles};

/// The most parts of one vectored write: what Linux takes.
const MOST_PARTS: usize = 1024;
/// What is written at a time where the file system cannot reserve space.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Files in one directory, which has to exist.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    /// Files are opened for writing too.
    writes: bool,
}

impl Directory {
    /// Those of a directory.
    pub fn new(path: impl Into<PathBuf>) -> Arc<Directory> {
        Arc::new(Directory {
            path: path.into(),
            writes: true,
        })
    }

    /// Those of a directory that are only to be read, also where the file system takes no writes.
    pub fn for_reading(path: impl Into<PathBuf>) -> Arc<Directory> {
        Arc::new(Directory {
            path: path.into(),
            writes: false,
        })
    }

    fn named(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl LocalFiles for Directory {
    fn location(&self) -> String {
        self.path.display().to_string()
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            // A name that is not text is none of ours.
            names.extend(entry?.file_name().into_string().ok());
        }
        Ok(names)
    }

    fn open(&self, name: &str) -> io::Result<Option<Arc<dyn LocalFile>>> {
        let opened = OpenOptions::new()
            .read(true)
            .write(self.writes)
            .open(self.named(name));
        match opened {
            Ok(file) => Ok(Some(Arc::new(OpenFile(file)))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn create(&self, name: &str, len: u64) -> io::Result<Arc<dyn LocalFile>> {
        let path = self.named(name);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        if let Err(error) = reserve(&file, len) {
            drop(file);
            remove_quietly(&path);
            return Err(error);
        }
        Ok(Arc::new(OpenFile(file)))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.named(name))
    }

    fn sync_names(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}

fn remove_quietly(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::debug!(path = %path.display(), %error, "a file that was not made whole stays");
    }
}

fn reserve(file: &File, len: u64) -> io::Result<()> {
    match fallocate(file, FallocateFlags::empty(), 0, len) {
        Ok(()) => Ok(()),
        // Then only writing takes the space.
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
            let mut at = 0;
            while at < len {
                let some = (len - at).min(ZEROS.len() as u64);
                file.write_all_at(&ZEROS[..some as usize], at)?;
                at += some;
            }
            Ok(())
        }
        Err(e) => Err(e.into()),
    }
}

#[derive(Debug)]
struct OpenFile(File);

impl LocalFile for OpenFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buf, offset)
    }

    fn write_at(&self, parts: &[&[u8]], mut offset: u64) -> io::Result<()> {
        for some in parts.chunks(MOST_PARTS) {
            let mut slices: Vec<IoSlice<'_>> = some.iter().map(|part| IoSlice::new(part)).collect();
            let mut rest = &mut slices[..];
            IoSlice::advance_slices(&mut rest, 0); // takes empty parts away
            while !rest.is_empty() {
                match pwritev(&self.0, rest, offset) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(written) => {
                        offset += written as u64;
                        IoSlice::advance_slices(&mut rest, written);
                    }
                    Err(Errno::INTR) => {}
                    Err(e) => return Err(e.into()),
                }
            }
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_written_one_after_the_other_however_many_and_however_empty() {
        let root = tempfile::tempdir().expect("directory");
        let files = Directory::new(root.path());
        let file = files.create("a", 10_000).expect("creates");
        let parts: Vec<Vec<u8>> = (0..3000u32)
            .map(|n| vec![n as u8; n as usize % 4])
            .collect();
        let slices: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        file.write_at(&slices, 5).expect("writes");
        let mut found = vec![0; parts.concat().len()];
        file.read_at(&mut found, 5).expect("reads");
        assert_eq!(found, parts.concat());
        assert_eq!(file.len().expect("length"), 10_000);
        assert!(files.create("a", 1).is_err(), "it is there already");
        assert!(files.open("b").expect("opens").is_none());
    }
}
