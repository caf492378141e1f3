//! The journal's space: files that wait to be written anew, and new ones.
//!
//! A new file has space but was never written to, so the file system below writes down, at each flush, which part of it now holds
//! something, and that takes as long again as what was to be flushed. Where flushes are many, [`Journal::upkeep`] writes zeros
//! to the next files ahead. Where they are few, as in a burst, that would only be in the way of what is written.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use super::files::LocalFile;
use super::log::{AppendError, Journal, LEAST, Log};
use super::record::{HEADER_BYTES, aligned};
use super::segment::Segment;
use crate::error::Result;

/// The most that is lost of a segment to its header and to a record that does not fit.
const LOST: u64 = 2 * HEADER_BYTES as u64 + LEAST;
/// How many files wait for their turn when the journal has shrunk.
const SPARES_KEPT: usize = 3;
/// From so many flushes of a segment on, flushes are many.
pub(super) const MANY_FLUSHES: u32 = 64;
/// How many files are made ready ahead.
const READY: usize = 2;
/// Zeros that are written, and made durable, at a time: a flush beside that waits for no more of them.
static ZEROS: [u8; 1 << 18] = [0; 1 << 18];

/// A file to write anew.
#[derive(Debug)]
pub(super) struct Spare {
    pub(super) name: String,
    pub(super) file: Arc<dyn LocalFile>,
    /// What it held, or zeros, was written to it, so that the next records only replace that.
    pub(super) written: bool,
    /// Somebody writes zeros to it.
    pub(super) busy: bool,
}

impl Spare {
    pub(super) fn new(name: String, file: Arc<dyn LocalFile>, written: bool) -> Spare {
        Spare {
            name,
            file,
            written,
            busy: false,
        }
    }
}

impl Log {
    /// The file that records go into next.
    pub(super) fn take_spare(&mut self) -> Option<Spare> {
        let last = self.spare.iter().rposition(|spare| !spare.busy)?;
        Some(self.spare.remove(last))
    }

    fn spares(&self) -> usize {
        self.spare.iter().filter(|spare| !spare.busy).count()
    }

    fn files(&self) -> usize {
        self.older.len() + 1 + self.spare.len()
    }

    /// Moves the segments that are released, and that nobody reads from, to those that may be written anew.
    fn gather_free(&mut self) {
        let (tail, spare) = (self.tail.segment, &mut self.spare);
        self.older.retain(|segment| {
            // Nobody else can come to refer to it: places are made from the active segment and from other places only.
            let free = segment.header.number < tail && Arc::strong_count(segment) == 1;
            if free {
                let file = Arc::clone(&segment.file);
                spare.push(Spare::new(segment.name.clone(), file, true));
            }
            !free
        });
    }
}

impl Journal {
    /// Sees to it that records with payloads of these sizes can be appended, each after the other, without anything being waited for.
    pub(super) fn make_room(
        &self,
        log: &mut Log,
        sizes: impl Iterator<Item = u64>,
    ) -> Result<(), AppendError> {
        if let Some(failure) = self.failure() {
            return Err(AppendError::Failed(failure));
        }
        let needed: u64 = sizes.map(|len| aligned(len) + HEADER_BYTES as u64).sum();
        let here = (self.segment_bytes - log.end.at).saturating_sub(LEAST);
        let beyond = needed.saturating_sub(here);
        let segments =
            usize::try_from(beyond.div_ceil(self.segment_bytes - LOST)).unwrap_or(usize::MAX);
        if segments > log.spares() {
            self.gather_spares(log, segments)?;
        }
        Ok(())
    }

    /// Whether there is content that is released and that somebody still reads, or a file that is being made ready: when that is done there
    /// may be room.
    pub fn is_held(&self) -> bool {
        let log = self.log.lock();
        if log.spare.iter().any(|spare| spare.busy) {
            return true;
        }
        let released = |segment: &&Arc<Segment>| segment.header.number < log.tail.segment;
        let mut released = log.older.iter().filter(released);
        released.any(|segment| Arc::strong_count(segment) > 1)
    }

    fn gather_spares(&self, log: &mut Log, wanted: usize) -> Result<(), AppendError> {
        log.gather_free();
        while log.spares() < wanted {
            if log.files() >= self.most {
                return Err(AppendError::Full);
            }
            match self.make_file(log) {
                Ok(file) => log.spare.push(file),
                Err(e) if is_full(&e) => return Err(AppendError::Full),
                Err(e) => return Err(AppendError::Failed(self.fail("make a file of", e))),
            }
        }
        Ok(())
    }

    fn make_file(&self, log: &mut Log) -> io::Result<Spare> {
        let spares = log.spare.iter().map(|spare| spare.name.as_str());
        let segments = log.older.iter().map(|s| s.name.as_str());
        let names = spares.chain(segments).chain([log.active.name.as_str()]);
        let name = unused_name(names.collect());
        let file = self.files.create(&name, self.segment_bytes)?;
        log.names_unsynced = true;
        Ok(Spare::new(name, file, false))
    }

    /// Takes out the files that are not needed and more than are worth keeping for what comes next; answers their names.
    pub(super) fn surplus(&self) -> Vec<String> {
        let log = &mut *self.log.lock();
        log.gather_free();
        let mut surplus = Vec::new();
        for spare in std::mem::take(&mut log.spare) {
            match spare.busy || log.spare.len() < SPARES_KEPT {
                true => log.spare.push(spare),
                false => surplus.push(spare.name),
            }
        }
        surplus
    }

    /// Writes zeros to the files that records go into next, as far as nothing was ever written to them. Blocks for as long as the local
    /// disk takes; appends and flushes go on meanwhile. Nothing where the journal is half full: then files are reused, not made.
    ///
    /// # Errors
    /// `System`: the journal has failed, now or earlier.
    pub(super) fn make_ready(&self) -> Result<()> {
        while let Some((name, file)) = self.next_to_make_ready()? {
            let written = self.fill_with_zeros(&*file);
            let log = &mut *self.log.lock();
            let at = log.spare.iter().position(|spare| spare.name == name);
            if let Some(mut spare) = at.map(|at| log.spare.remove(at)) {
                spare.busy = false;
                spare.written = matches!(written, Ok(true));
                // The last one is taken first.
                log.spare.push(spare);
            }
            if !written.map_err(|e| self.fail("write to", e))? {
                break;
            }
        }
        Ok(())
    }

    /// Has [`Journal::upkeep`] write no zeros any more, for good: once this has returned, nothing but records is written any more.
    pub fn stop_making_ready(&self) {
        *self.no_more_zeros.lock() = true;
    }

    /// A file that nothing was ever written to, marked as busy; `None` where there are enough others.
    fn next_to_make_ready(&self) -> Result<Option<(String, Arc<dyn LocalFile>)>> {
        if let Some(failure) = self.failure() {
            return Err(failure);
        }
        let log = &mut *self.log.lock();
        log.gather_free();
        let ready = log.spare.iter().filter(|spare| spare.written).count();
        if ready >= READY || log.files() >= self.most / 2 {
            return Ok(None);
        }
        let unwritten = |spare: &Spare| !spare.written && !spare.busy;
        if !log.spare.iter().any(unwritten) {
            match self.make_file(log) {
                Ok(file) => log.spare.push(file),
                // Who needs one for a record is told.
                Err(e) if is_full(&e) => return Ok(None),
                Err(e) => return Err(self.fail("make a file of", e)),
            }
        }
        let spare = log.spare.iter_mut().find(|spare| unwritten(spare));
        Ok(spare.map(|spare| {
            spare.busy = true;
            (spare.name.clone(), Arc::clone(&spare.file))
        }))
    }

    /// Answers whether it was let to its end.
    fn fill_with_zeros(&self, file: &dyn LocalFile) -> io::Result<bool> {
        let mut at = 0;
        while at < self.segment_bytes {
            let no_more = self.no_more_zeros.lock();
            if *no_more {
                return Ok(false);
            }
            let some = (self.segment_bytes - at).min(ZEROS.len() as u64);
            file.write_at(&[&ZEROS[..some as usize]], at)?;
            file.sync()?;
            at += some;
        }
        Ok(true)
    }
}

/// The name of the n-th segment file. Which segment it holds at the time, its header says.
fn segment_name(n: usize) -> String {
    format!("segment-{n:05}")
}

/// The first name for a segment file that is not among these.
pub(super) fn unused_name(names: BTreeSet<&str>) -> String {
    // So many names cannot take all of one more.
    let mut free = (0..=names.len()).map(segment_name);
    free.find(|name| !names.contains(name.as_str()))
        .unwrap_or_else(|| segment_name(names.len()))
}

/// Whether there is no space left, which may change.
fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}
