//! Bytes of a disk copied into a sparse file: for `export`, and for what a mount keeps when it ends without the disk.
//!
//! The file appears under its name when it is complete and durable, and not before: until then it is `NAME.part`.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::{Error, ErrorKind, Result};

/// What is read at a time, if a block is not larger.
const STEP_BYTES: u64 = 1 << 20;

/// A file that is being written; removed if it is dropped before [`Draft::finish`].
#[derive(Debug)]
pub struct Draft {
    file: File,
    name: PathBuf,
    part: PathBuf,
    finished: bool,
}

impl Draft {
    /// Begins a file, for its owner alone.
    ///
    /// # Errors
    /// `Exists` where there is one of that name, unless it is to be replaced; `System`.
    pub fn begin(name: &Path, replace: bool) -> Result<Draft> {
        may_make(name, replace)?;
        let part = beside(name, ".part");
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&part)
            .map_err(|e| cannot("create", &part, e))?;
        Ok(Draft {
            file,
            name: name.to_owned(),
            part,
            finished: false,
        })
    }

    /// Makes the file durable, and gives it its name.
    ///
    /// # Errors
    /// `System`, `Full`.
    pub fn finish(mut self) -> Result<()> {
        self.file
            .sync_all()
            .and_then(|()| std::fs::rename(&self.part, &self.name))
            .map_err(|e| cannot("complete", &self.name, e))?;
        self.finished = true;
        let folder = self.name.parent().filter(|p| !p.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(|e| cannot("sync", folder, e))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.finished {
            // What stays is named as what it is.
            let _ = std::fs::remove_file(&self.part);
        }
    }
}

/// What a copy is made of.
pub struct Copying<'a> {
    /// Size of the disk.
    pub size_bytes: u64,
    /// Size of a block: what cannot be read is left out by blocks.
    pub block_bytes: u64,
    /// Reads from the disk. `Damaged` and `Superseded` are of that range alone; every other error ends the copy.
    pub read: &'a mut dyn FnMut(u64, &mut [u8]) -> Result<()>,
    /// Is told how many bytes are done.
    pub done: &'a mut dyn FnMut(u64),
}

/// What could not be copied.
#[derive(Debug, Default)]
pub struct Missing {
    /// Byte ranges, ascending. They are holes in the copy.
    pub ranges: Vec<Range<u64>>,
    /// Why the first of them is missing.
    pub reason: Option<Error>,
}

impl Copying<'_> {
    /// Copies byte ranges into a file of the disk's size; all else, and what is zero, stays a hole.
    ///
    /// # Errors
    /// `System`, `Full`, and those of reading that are not of one range.
    pub fn run(mut self, draft: &Draft, ranges: &[Range<u64>]) -> Result<Missing> {
        let mut missing = Missing::default();
        let failed = |e| cannot("write", &draft.part, e);
        draft.file.set_len(self.size_bytes).map_err(failed)?;
        let mut total = 0;
        for range in ranges {
            for step in steps(range.clone(), self.block_bytes.max(STEP_BYTES)) {
                total += step.end - step.start;
                match self.step(draft, step.clone()) {
                    Err(error) if is_local(&error) && step.end - step.start > self.block_bytes => {
                        for block in steps(step, self.block_bytes) {
                            let outcome = self.step(draft, block.clone());
                            missing.note(block, outcome)?;
                        }
                    }
                    outcome => missing.note(step, outcome)?,
                }
                (self.done)(total);
            }
        }
        Ok(missing)
    }

    fn step(&mut self, draft: &Draft, step: Range<u64>) -> Result<()> {
        // At most a block or STEP_BYTES.
        let mut buffer = vec![0; (step.end - step.start) as usize];
        (self.read)(step.start, &mut buffer)?;
        for (part, at) in buffer.chunks(4096).zip((step.start..).step_by(4096)) {
            if part.iter().any(|byte| *byte != 0) {
                draft
                    .file
                    .write_all_at(part, at)
                    .map_err(|e| cannot("write", &draft.part, e))?;
            }
        }
        Ok(())
    }
}

impl Missing {
    /// How many bytes.
    pub fn bytes(&self) -> u64 {
        length(&self.ranges)
    }

    fn note(&mut self, range: Range<u64>, outcome: Result<()>) -> Result<()> {
        match outcome {
            Err(error) if is_local(&error) => {
                self.reason.get_or_insert(error);
                match self.ranges.last_mut().filter(|l| l.end == range.start) {
                    Some(last) => last.end = range.end,
                    None => self.ranges.push(range),
                }
                Ok(())
            }
            outcome => outcome,
        }
    }
}

/// Writes a list of ranges, one JSON object a line, as a file.
///
/// # Errors
/// Those of [`Draft`].
pub fn write_ranges(name: &Path, replace: bool, ranges: &[Range<u64>]) -> Result<()> {
    #[derive(Serialize)]
    struct Line {
        offset: u64,
        length: u64,
    }
    let draft = Draft::begin(name, replace)?;
    let mut writer = BufWriter::new(&draft.file);
    for range in ranges {
        let line = Line {
            offset: range.start,
            length: range.end - range.start,
        };
        serde_json::to_writer(&mut writer, &line)
            .map_err(io::Error::from)
            .and_then(|()| writer.write_all(b"\n"))
            .map_err(|e| cannot("write", &draft.part, e))?;
    }
    writer
        .flush()
        .map_err(|e| cannot("write", &draft.part, e))?;
    drop(writer);
    draft.finish()
}

/// Whether a file of that name may be made.
///
/// # Errors
/// `Exists` where there is one, unless it is to be replaced.
pub fn may_make(name: &Path, replace: bool) -> Result<()> {
    if replace || name.symlink_metadata().is_err() {
        return Ok(());
    }
    let text = format!(
        "there is a {} already: choose another name, or replace it with --force",
        name.display()
    );
    Err(Error::new(ErrorKind::Exists, text))
}

/// The bytes of ranges that do not overlap.
pub fn length(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

/// A name with more at its end.
pub fn beside(name: &Path, more: &str) -> PathBuf {
    let mut name = name.as_os_str().to_owned();
    name.push(more);
    PathBuf::from(name)
}

/// A range in pieces that end at multiples of a size.
fn steps(range: Range<u64>, size: u64) -> impl Iterator<Item = Range<u64>> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        (at < range.end).then(|| {
            let start = at;
            at = ((at / size + 1) * size).min(range.end);
            start..at
        })
    })
}

/// Whether an error says nothing of other ranges.
fn is_local(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Damaged | ErrorKind::Superseded)
}

fn cannot(verb: &str, path: &Path, cause: io::Error) -> Error {
    let kind = match cause.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::Full,
        io::ErrorKind::PermissionDenied => ErrorKind::Denied,
        _ => ErrorKind::System,
    };
    Error::new(kind, format!("cannot {verb} {}", path.display())).with_source(cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Copies a disk of four blocks of 4 KiB of which one cannot be read.
    fn copy(name: &Path, damaged: u64) -> Missing {
        let draft = Draft::begin(name, true).expect("begins");
        let copying = Copying {
            size_bytes: 16384,
            block_bytes: 4096,
            read: &mut |offset, buffer| {
                let end = offset + buffer.len() as u64;
                if (offset..end).contains(&(damaged * 4096)) {
                    return Err(Error::new(ErrorKind::Damaged, "x"));
                }
                buffer.fill(7);
                Ok(())
            },
            done: &mut |_| {},
        };
        let missing = copying.run(&draft, &[0..8192, 12000..16384]);
        draft.finish().expect("finishes");
        missing.expect("copies")
    }

    #[test]
    fn what_cannot_be_read_is_left_out_and_told_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let name = folder.path().join("copy");
        let missing = copy(&name, 1);
        assert_eq!(missing.ranges, vec![4096..8192]);
        assert_eq!(missing.reason.map(|e| e.kind()), Some(ErrorKind::Damaged));
        let mut expected = vec![0; 16384];
        expected[..4096].fill(7);
        expected[12000..].fill(7);
        assert_eq!(std::fs::read(&name).expect("reads"), expected);
        assert_eq!(copy(&name, 3).ranges, vec![12288..16384]);
        assert!(copy(&name, 9).ranges.is_empty());
    }

    #[test]
    fn a_file_has_its_name_only_when_it_is_complete_and_replaces_nothing_unasked() {
        let folder = tempfile::tempdir().expect("a folder");
        let name = folder.path().join("copy");
        drop(Draft::begin(&name, false).expect("begins"));
        assert_eq!(std::fs::read_dir(&folder).expect("reads").count(), 0);
        write_ranges(&name, false, &[0..512, 4096..4097]).expect("writes");
        let error = Draft::begin(&name, false).expect_err("is there");
        assert_eq!(error.kind(), ErrorKind::Exists);
        let text = std::fs::read_to_string(&name).expect("reads");
        assert_eq!(
            text,
            "{\"offset\":0,\"length\":512}\n{\"offset\":4096,\"length\":1}\n"
        );
    }

    #[test]
    fn steps_end_at_multiples() {
        let found: Vec<_> = steps(5..25, 10).collect();
        assert_eq!(found, [5..10, 10..20, 20..25]);
        assert_eq!(steps(3..3, 10).count(), 0);
    }
}
