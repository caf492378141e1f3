//! A part of the image that no file system uses, written sector by sector in one known order. After a crash it has to be what it was
//! after exactly the first so many writes, no fewer than a flush had covered: that is the disk's own promise, without any file
//! system's in between. Only of the write that was under way when the daemon died a journal may have no more than the first sectors.

use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::SmallRng;
use rustix::fs::{FallocateFlags, fallocate};

use crate::pulse::Pulse;
use crate::stamps::{SECTOR, Sector, Stamps};

/// Sectors of the part.
pub const SECTORS: usize = (8 << 20) / SECTOR;
/// The file number of its stamps.
const FILE: u32 = 1;

#[derive(Debug, Clone)]
pub struct Raw {
    offset: u64,
    /// The number of the write that each sector shows, before all writes.
    base: Vec<u32>,
    /// Sectors, and the number that they get; 0 where a hole is punched.
    writes: Vec<(Range<usize>, u32)>,
    /// This many writes were covered by a flush.
    flushed: usize,
    number: u32,
    random: SmallRng,
    stamps: Stamps,
}

fn open(image: &Path) -> Result<File, String> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(image)
        .map_err(|error| format!("open {}: {error}", image.display()))
}

impl Raw {
    /// The part begins at `offset`, and is all zero.
    pub fn new(offset: u64, random: SmallRng, stamps: Stamps) -> Raw {
        Raw {
            offset,
            base: vec![0; SECTORS],
            writes: Vec::new(),
            flushed: 0,
            number: 0,
            random,
            stamps,
        }
    }

    /// Works until it is told to stop.
    pub fn work(&mut self, image: &Path, pulse: &Pulse) -> Result<(), String> {
        let mut opened = None;
        pulse.run(|| {
            let file = match &opened {
                Some(file) => file,
                None => opened.insert(open(image)?),
            };
            // See the writer's.
            std::thread::sleep(Duration::from_micros(self.random.random_range(0..1500)));
            match self.random.random_range(0..20) {
                0..2 => self.flush(file, pulse),
                _ => self.write(file),
            }
        })
    }

    /// Writes once and flushes nothing, so that an unmount has something to commit.
    pub fn write_once(&mut self, image: &Path) -> Result<(), String> {
        self.write(&open(image)?)
    }

    fn write(&mut self, file: &File) -> Result<(), String> {
        let first = self.random.random_range(0..SECTORS);
        let most = match self.random.random_range(0..10) {
            0..6 => 8,
            6..9 => 100,
            _ => 2000,
        };
        let end = (first + self.random.random_range(1..=most)).min(SECTORS);
        let sectors = first..end;
        let at = self.offset + (first * SECTOR) as u64;
        if self.random.random_bool(0.15) {
            self.writes.push((sectors.clone(), 0));
            let length = (sectors.len() * SECTOR) as u64;
            let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            return fallocate(file, how, at, length).map_err(|e| format!("punch: {e}"));
        }
        self.number += 1;
        self.writes.push((sectors.clone(), self.number));
        let bytes = self.stamps.fill(FILE, self.number, sectors);
        let wrote = file
            .write_at(&bytes, at)
            .map_err(|e| format!("write: {e}"))?;
        match wrote == bytes.len() {
            true => Ok(()),
            false => Err(format!("wrote {wrote} of {} bytes", bytes.len())),
        }
    }

    fn flush(&mut self, file: &File, pulse: &Pulse) -> Result<(), String> {
        let covers = self.writes.len();
        if pulse
            .flush(|| file.sync_all())
            .map_err(|e| format!("flush: {e}"))?
        {
            self.flushed = covers;
        }
        Ok(())
    }

    /// Flushes the image, which covers whatever was written to it by then. Answers whether that counts.
    pub fn flush_image(&mut self, image: &Path, pulse: &Pulse) -> Result<bool, String> {
        self.flush(&open(image)?, pulse)?;
        Ok(self.flushed == self.writes.len())
    }

    /// An unmount has said that the bucket has everything.
    pub fn all_flushed(&mut self) {
        self.flushed = self.writes.len();
    }

    /// What each sector shows.
    pub fn look(&self, image: &Path) -> Result<Vec<u32>, String> {
        let mut bytes = vec![0; SECTORS * SECTOR];
        let file = File::open(image).map_err(|e| format!("open: {e}"))?;
        file.read_exact_at(&mut bytes, self.offset)
            .map_err(|e| format!("read: {e}"))?;
        let sectors = self.stamps.read(&bytes);
        let number = |(at, sector): (usize, &Sector)| match sector {
            Sector::Zeros => Ok(0),
            Sector::Stamped {
                file: FILE,
                generation,
            } => Ok(*generation),
            other => Err(format!("raw sector {at} is {other:?}")),
        };
        sectors.iter().enumerate().map(number).collect()
    }

    /// Compares what was found after a crash, and goes on from there. With `last_in_part` the last write may be there in part.
    ///
    /// # Errors
    /// It is none of the states that it may be.
    pub fn check(&mut self, found: Vec<u32>, last_in_part: bool) -> Result<(), String> {
        let mut state = self.base.clone();
        let mut wrong = state.iter().zip(&found).filter(|(a, b)| a != b).count();
        let mut nearest = (usize::MAX, 0);
        for count in 0..=self.writes.len() {
            if count > 0 {
                let (sectors, number) = self.writes[count - 1].clone();
                let may_be_in_part = last_in_part && count == self.writes.len() && number > 0;
                for at in sectors {
                    wrong -= usize::from(state[at] != found[at]);
                    state[at] = number;
                    wrong += usize::from(state[at] != found[at]);
                    if may_be_in_part {
                        nearest = nearest.min((wrong, count));
                    }
                }
            }
            if count >= self.flushed {
                nearest = nearest.min((wrong, count));
            }
        }
        if nearest.0 > 0 {
            return Err(format!(
                "the raw part is no state after {} to {} writes: after {} still {} sectors differ",
                self.flushed,
                self.writes.len(),
                nearest.1,
                nearest.0
            ));
        }
        self.base = found;
        self.writes.clear();
        self.flushed = 0;
        Ok(())
    }
}
