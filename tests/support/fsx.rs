//! An exerciser for one file, after the idea of fsx: random operations through a real file descriptor, each answer compared with
//! a plain `Vec<u8>`.
//!
//! [`exercise`] is for any file of fixed size whose file system can punch holes and zero ranges. The sequence of operations
//! depends on the seed alone, so a failure can be run again.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FallocateFlags, OFlags, SeekFrom};

/// How many operations are told about when one goes wrong.
const HISTORY: usize = 24;
/// What direct I/O is aligned to, in bytes.
const DIRECT_BYTES: usize = 4096;

/// Runs `operations` random operations on the file at `path`, which holds `size` bytes of anything, then compares all of it.
///
/// `block_size` is where the file's storage has its seams: offsets and lengths are chosen around its multiples often.
///
/// # Errors
/// What was wrong, the seed, and the last operations before it.
pub fn exercise(
    path: &Path,
    size: usize,
    operations: usize,
    seed: u64,
    block_size: usize,
) -> Result<(), String> {
    println!("fsx: seed {seed}, {operations} operations on {size} bytes");
    let mut exerciser = Exerciser::open(path, size, seed, block_size)?;
    for _ in 0..operations {
        exerciser.step()?;
    }
    exerciser.compare_all()
}

/// A file and what it ought to hold.
pub struct Exerciser {
    file: File,
    /// The same file opened for direct I/O.
    direct: File,
    model: Vec<u8>,
    block: usize,
    random: Random,
    seed: u64,
    done: u64,
    history: VecDeque<String>,
}

impl Exerciser {
    /// Opens a file of `size` bytes and takes what it holds now for right.
    pub fn open(path: &Path, size: usize, seed: u64, block: usize) -> Result<Self, String> {
        assert!(size >= 4 * DIRECT_BYTES && size.is_multiple_of(DIRECT_BYTES) && block > 1);
        let open = |flags: OFlags| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(flags.bits().cast_signed())
                .open(path)
                .map_err(|e| format!("cannot open {}: {e}", path.display()))
        };
        let file = open(OFlags::empty())?;
        let mut model = vec![0; size];
        file.read_exact_at(&mut model, 0)
            .map_err(|e| format!("cannot read {size} bytes of {}: {e}", path.display()))?;
        Ok(Exerciser {
            file,
            direct: open(OFlags::DIRECT)?,
            model,
            block,
            random: Random(seed),
            seed,
            done: 0,
            history: VecDeque::new(),
        })
    }

    /// Does one operation chosen at random.
    pub fn step(&mut self) -> Result<(), String> {
        self.done += 1;
        match self.random.below(100) {
            0..25 => self.read(),
            25..52 => self.write(),
            52..60 => self.zero(
                "punch hole",
                FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            ),
            60..66 => self.zero(
                "zero",
                FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
            ),
            66..69 => self.zero("zero, size free", FallocateFlags::ZERO_RANGE),
            69..79 => self.read_direct(),
            79..89 => self.write_direct(),
            89..92 => self.flush("fsync"),
            92..94 => self.flush("fdatasync"),
            94..97 => self.read_at_the_end(),
            _ => self.walk_holes(),
        }
    }

    /// Compares the whole file and its size.
    pub fn compare_all(&mut self) -> Result<(), String> {
        self.note("compare all".to_owned());
        let found = self.checked(self.file.metadata())?.len();
        if found != self.model.len() as u64 {
            return Err(self.report(&format!("the file has {found} bytes")));
        }
        let mut content = vec![0; self.model.len()];
        self.checked(self.file.read_exact_at(&mut content, 0))?;
        self.compare(0, &content)
    }

    fn read(&mut self) -> Result<(), String> {
        let range = self.range();
        self.note(format!("read {range:?}"));
        let mut content = vec![0; range.len()];
        self.checked(self.file.read_exact_at(&mut content, range.start as u64))?;
        self.compare(range.start, &content)
    }

    fn write(&mut self) -> Result<(), String> {
        let range = self.range();
        let content = self.content(range.len());
        self.note(format!("write {range:?}"));
        self.checked(self.file.write_all_at(&content, range.start as u64))?;
        self.model[range].copy_from_slice(&content);
        Ok(())
    }

    fn zero(&mut self, name: &str, flags: FallocateFlags) -> Result<(), String> {
        let range = self.range();
        self.note(format!("{name} {range:?}"));
        let (offset, len) = (range.start as u64, range.len() as u64);
        let outcome = rustix::fs::fallocate(&self.file, flags, offset, len);
        self.checked(outcome.map_err(io::Error::from))?;
        self.model[range].fill(0);
        Ok(())
    }

    fn read_direct(&mut self) -> Result<(), String> {
        let range = self.direct_range();
        self.note(format!("read direct {range:?}"));
        let mut buffer = Aligned::new(range.len());
        let outcome = self
            .direct
            .read_exact_at(buffer.bytes(), range.start as u64);
        self.checked(outcome)?;
        self.compare(range.start, buffer.bytes())
    }

    fn write_direct(&mut self) -> Result<(), String> {
        let range = self.direct_range();
        self.note(format!("write direct {range:?}"));
        let content = self.content(range.len());
        let mut buffer = Aligned::new(range.len());
        buffer.bytes().copy_from_slice(&content);
        let outcome = self.direct.write_all_at(buffer.bytes(), range.start as u64);
        self.checked(outcome)?;
        self.model[range].copy_from_slice(&content);
        Ok(())
    }

    fn flush(&mut self, name: &str) -> Result<(), String> {
        self.note(name.to_owned());
        let outcome = match name {
            "fsync" => self.file.sync_all(),
            _ => self.file.sync_data(),
        };
        self.checked(outcome)
    }

    /// A read across the end stops there.
    fn read_at_the_end(&mut self) -> Result<(), String> {
        let size = self.model.len();
        let start = size - self.random.below(self.block.min(size));
        self.note(format!("read past the end from {start}"));
        let mut content = vec![0; size - start + 100];
        let len = self.checked(self.file.read_at(&mut content, start as u64))?;
        if len != size - start {
            return Err(self.report(&format!("{len} bytes were read")));
        }
        self.compare(start, &content[..len])
    }

    /// Walks from data to hole to data, as cp and qemu-img do: what is called a hole must be zeros, and the walk must end at the
    /// end of the file.
    fn walk_holes(&mut self) -> Result<(), String> {
        let mut at = self.random.below(self.model.len());
        self.note(format!("walk holes from {at}"));
        let mut became_hole = None;
        while at < self.model.len() {
            let data = match rustix::fs::seek(&self.file, SeekFrom::Data(at as u64)) {
                Ok(data) => data as usize,
                Err(rustix::io::Errno::NXIO) => self.model.len(),
                Err(e) => return Err(self.report(&format!("SEEK_DATA from {at}: {e}"))),
            };
            if data < at || data > self.model.len() {
                return Err(self.report(&format!("SEEK_DATA from {at} answers {data}")));
            }
            if let Some(wrong) = self.model[at..data].iter().position(|&b| b != 0) {
                return Err(self.report(&format!("byte {} is in a hole", at + wrong)));
            }
            if data == self.model.len() {
                break;
            }
            let hole = rustix::fs::seek(&self.file, SeekFrom::Hole(data as u64));
            let hole = self.checked(hole.map_err(io::Error::from))? as usize;
            // Data of zeros may turn into a hole between two questions; it must be one when asked again.
            let turned = hole == data && became_hole.replace(data) != Some(data);
            if (hole <= data && !turned) || hole > self.model.len() {
                return Err(self.report(&format!("SEEK_HOLE from {data} answers {hole}")));
            }
            at = hole;
        }
        let end = SeekFrom::Data(self.model.len() as u64);
        match rustix::fs::seek(&self.file, end) {
            Err(rustix::io::Errno::NXIO) => Ok(()),
            other => Err(self.report(&format!("SEEK_DATA at the end answers {other:?}"))),
        }
    }

    /// A range that is not empty: often small, often with an end on or next to a seam.
    fn range(&mut self) -> Range<usize> {
        let size = self.model.len();
        let mut ends = [0; 2];
        for end in &mut ends {
            *end = self.random.below(size + 1);
            if self.random.below(3) == 0 {
                let seam = *end / self.block * self.block;
                *end = (seam + self.random.below(3)).saturating_sub(1).min(size);
            }
        }
        let (start, mut end) = (ends[0].min(ends[1]), ends[0].max(ends[1]));
        if self.random.below(2) == 0 {
            end = end.min(start + 1 + self.random.below(self.block));
        }
        let start = start.min(size - 1);
        start..end.max(start + 1)
    }

    fn direct_range(&mut self) -> Range<usize> {
        let range = self.range();
        let start = range.start / DIRECT_BYTES * DIRECT_BYTES;
        start..range.end.next_multiple_of(DIRECT_BYTES)
    }

    /// Bytes to write: now and then zeros, else random.
    fn content(&mut self, len: usize) -> Vec<u8> {
        let mut content = vec![0; len];
        if self.random.below(8) != 0 {
            for word in content.chunks_mut(8) {
                let random = self.random.next().to_le_bytes();
                word.copy_from_slice(&random[..word.len()]);
            }
        }
        content
    }

    fn compare(&self, offset: usize, content: &[u8]) -> Result<(), String> {
        let expected = &self.model[offset..offset + content.len()];
        match expected.iter().zip(content).position(|(a, b)| a != b) {
            None => Ok(()),
            Some(at) => Err(self.report(&format!(
                "byte {} is {:#04x} and not {:#04x}",
                offset + at,
                content[at],
                expected[at]
            ))),
        }
    }

    fn checked<T>(&self, outcome: io::Result<T>) -> Result<T, String> {
        outcome.map_err(|e| self.report(&e.to_string()))
    }

    fn note(&mut self, operation: String) {
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history
            .push_back(format!("{}: {operation}", self.done));
    }

    fn report(&self, wrong: &str) -> String {
        let history: Vec<&str> = self.history.iter().map(String::as_str).collect();
        format!(
            "{wrong} (seed {}, size {}); the last operations:\n  {}",
            self.seed,
            self.model.len(),
            history.join("\n  ")
        )
    }
}

/// Numbers that depend on the seed alone, whatever the version of a library (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

/// Memory that direct I/O can use.
struct Aligned {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    fn new(len: usize) -> Self {
        let memory = vec![0; len + DIRECT_BYTES];
        let start = memory.as_ptr().align_offset(DIRECT_BYTES);
        Aligned { memory, start, len }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}
