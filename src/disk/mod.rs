//! The disk: bytes in, bytes out, over a [`BlockStore`] that knows only blocks.
//!
//! ```text
//! read:  open epoch > sealed epoch > hole? > cached? > fetch (several at once, each once) > cache > reply
//! write: journal > open epoch > reply;  later: seal > commit > the store's new state > journal's space given back
//! ```
//!
//! What is dirty is known to `epoch` (made of `dirty` blocks and `ranges` of holes); the bytes lie in the journal, or where there is
//! none, in memory; `write_back` decides when it goes; `sealed` is what a
//! commit carries; `reader` is all that is clean. Frontends call [`Disk`] and nothing below it.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::block::{BlockIndex, Geometry, Seq, Span};
use crate::error::{Error, ErrorKind, Result};
use crate::journal::{Journal, Place, Placed};
use crate::store::{BlockStore, ReadError};

use dirty::Elsewhere;
use epoch::Epoch;
use parts::Parts;
use reader::Reader;
use write_back::{State, WriteBack};

mod dirty;
mod durable;
mod epoch;
mod layers;
mod pace;
mod parts;
mod ranges;
mod read_ahead;
mod reader;
mod recovered;
mod sealed;
mod status;
mod write_back;

pub use recovered::Recovered;
pub use status::DiskStatus;

/// Limits and intervals of a disk; all sizes in bytes.
#[derive(Debug, Clone)]
pub struct DiskConfig {
    /// The oldest a write may become before a commit begins.
    pub commit_interval: Duration,
    /// The most memory for dirty data, that of writes that wait for room (a quarter, at most 64 MiB) included. At least four
    /// blocks, so that a commit can run beside writes. With a journal, which has the data itself: for knowing where it lies.
    pub max_dirty_bytes: u64,
    /// What a flush waits for. [`FlushTo::Journal`] means the bucket where there is no journal.
    pub flush: FlushTo,
    /// How old a write may become uncommitted before later ones wait for it; `None`: as old as it gets.
    pub max_lag: Option<Duration>,
    /// The most memory for cached clean blocks.
    pub cache_bytes: u64,
}

/// What a write is cut at, into records of the journal: to read a byte of one is to read and verify all of it, and as a block may have
/// 64 MiB, that may not be one record. Smaller ones would make small reads quicker, and take more memory to know, 96 bytes each.
const RECORD_BYTES: usize = 16 << 10;

/// What a flush waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlushTo {
    /// That all is durable in the journal on the local disk.
    Journal,
    /// That all is committed to the store.
    Bucket,
}

/// A journal to go on with.
#[derive(Debug)]
pub struct Kept {
    /// It, open.
    pub journal: Arc<Journal>,
    /// What it holds.
    pub found: Recovered,
}

/// A mounted disk: reads and writes of any byte range, discard and flush, and the write-back behind them.
///
/// The `_now` calls answer from memory on the caller's thread and never wait for I/O; where they cannot, they change nothing and
/// answer [`Now::Wait`], and the caller runs the async twin (with [`Disk::spawn`]). Every range must lie within the disk (`Usage`
/// else). A write that has returned is seen by every later read, and is durable after the next flush that succeeds. Writes that
/// overlap in time with a read or a write of the same bytes may be seen in part.
///
/// After a crash the disk is what it was after the first so many of its writes, in the order in which they were taken; never fewer than
/// a flush had covered. In the bucket each of these is whole. With a journal, of the one that was being taken when the process died, or
/// of the last one that a power cut has left, there may be only the beginning, in whole sectors of 512 bytes: writes that no flush has
/// covered are, as on any disk, atomic by the sector.
///
/// [`Disk::close`] ends it well. Dropping it instead stops its tasks and loses what was not flushed, as a crash would.
#[derive(Debug)]
pub struct Disk {
    reader: Arc<Reader>,
    write_back: Arc<WriteBack>,
    config: DiskConfig,
    runtime: Handle,
    committer: Mutex<Option<JoinHandle<()>>>,
    /// Does the journal's upkeep.
    keeper: Option<JoinHandle<()>>,
    read_errors: AtomicU64,
}

/// Whether a `_now` call was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Now {
    /// It was, whole.
    Done,
    /// Not without waiting: use the async twin.
    Wait,
}

/// A part of a read that is neither dirty, nor a hole, nor cached.
#[derive(Debug, Clone, Copy)]
struct Need {
    index: BlockIndex,
    version: Seq,
    /// First byte within the block.
    start: usize,
    /// First byte within the read.
    at: usize,
    len: usize,
}

impl Disk {
    /// Opens a disk over a store; its tasks run on `runtime`. What the journal holds is dirty, and is committed at once.
    pub fn open(
        store: Arc<dyn BlockStore>,
        config: DiskConfig,
        kept: Option<Kept>,
        runtime: Handle,
    ) -> Arc<Disk> {
        let writable = !store.is_read_only();
        let reader = Reader::new(store, config.cache_bytes, runtime.clone());
        let (journal, found) = match kept {
            Some(kept) => (Some(kept.journal), kept.found.into_epoch()),
            None => (None, Epoch::default()),
        };
        let write_back = WriteBack::new(Arc::clone(&reader), config.clone(), journal, found);
        let write_back = Arc::new(write_back);
        let committer = writable.then(|| runtime.spawn(Arc::clone(&write_back).run()));
        let keep_up = |journal| runtime.spawn(write_back::keep_up(journal));
        let keeper = write_back.journal.clone().map(keep_up);
        Arc::new(Disk {
            reader,
            write_back,
            config,
            runtime,
            committer: Mutex::new(committer),
            keeper,
            read_errors: AtomicU64::new(0),
        })
    }

    /// Size and block size.
    pub fn geometry(&self) -> Geometry {
        self.reader.store().geometry()
    }

    /// Whether writes are refused: a read-only mount, or a session that another has fenced.
    pub fn is_read_only(&self) -> bool {
        self.reader.store().is_read_only()
    }

    /// Runs a task of a frontend on the disk's runtime.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(task);
    }

    /// Fills `buf` from `offset` if all of it is in memory or holes. On [`Now::Wait`] the content of `buf` is undefined.
    ///
    /// # Errors
    /// `Usage` for a range beyond the disk.
    pub fn read_now(&self, offset: u64, buf: &mut [u8]) -> Result<Now> {
        self.check_range(offset, buf.len() as u64)?;
        let mut missing = false;
        let mut kept = Vec::new();
        for span in self.geometry().spans(offset, buf.len()) {
            let part = &mut buf[span.outer()];
            self.gather(&span, part, &mut kept, |_| missing = true);
            self.reader.note_read(span.index);
            if missing {
                return Ok(Now::Wait);
            }
        }
        self.read_kept(&kept, buf)?;
        Ok(Now::Done)
    }

    /// Fills `buf` from `offset`, fetching what is missing, all of it at once.
    ///
    /// # Errors
    /// `Usage` for a range beyond the disk; `Damaged` and the store's other errors name the block. `buf` is undefined then.
    pub async fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.check_range(offset, buf.len() as u64)?;
        let mut spans: Vec<Span> = self.geometry().spans(offset, buf.len()).collect();
        while !spans.is_empty() {
            let mut needs: Vec<Need> = Vec::new();
            let mut kept = Vec::new();
            for span in &spans {
                let part = &mut buf[span.outer()];
                self.gather(span, part, &mut kept, |need| needs.push(need));
                self.reader.note_read(span.index);
            }
            sealed::blocking(|| self.read_kept(&kept, buf))?;
            let stale = self.fetch_into(&needs, buf).await?;
            spans.retain(|span| stale.contains(&span.index));
        }
        Ok(())
    }

    /// Reads what lies in the journal into its place in the read.
    fn read_kept(&self, kept: &[(Place, usize)], buf: &mut [u8]) -> Result<()> {
        Place::read_all(kept, buf).inspect_err(|error| {
            self.read_errors.fetch_add(1, Ordering::Relaxed);
            self.reader.count_if_damaged(error);
        })
    }

    /// Fetches what is needed and copies it into place; answers the blocks that have changed since and must be looked at again.
    async fn fetch_into(&self, needs: &[Need], buf: &mut [u8]) -> Result<Vec<BlockIndex>> {
        let mut blocks: Vec<(BlockIndex, Seq)> =
            needs.iter().map(|n| (n.index, n.version)).collect();
        blocks.dedup();
        let fetched = join_all(
            blocks
                .iter()
                .map(|(index, version)| self.reader.fetch(*index, *version)),
        )
        .await;
        let mut stale = Vec::new();
        for ((index, _), outcome) in blocks.iter().zip(fetched) {
            match outcome {
                Ok(block) => {
                    for need in needs.iter().filter(|n| n.index == *index) {
                        buf[need.at..need.at + need.len]
                            .copy_from_slice(&block.bytes()[need.start..need.start + need.len]);
                    }
                }
                Err(error) if matches!(*error, ReadError::Stale) => stale.push(*index),
                Err(error) => {
                    self.read_errors.fetch_add(1, Ordering::Relaxed);
                    return Err(sealed::read_failure(&error));
                }
            }
        }
        Ok(stale)
    }

    /// Fills a part of one block from memory: open epoch, sealed epoch, hole, cache. What lies in the journal is added to `kept`, with its
    /// first byte within the read: it stays there for as long as it is kept, so that it is read without the lock. What is in none
    /// of them is answered through `need`.
    ///
    /// The epochs are looked at under the lock, the store's map after them: a commit that lands in between has put into the
    /// newer version just what the sealed epoch said, so old and new never mix in one byte.
    fn gather(
        &self,
        span: &Span,
        part: &mut [u8],
        kept: &mut Vec<(Place, usize)>,
        mut need: impl FnMut(Need),
    ) {
        let within_read = |start: usize| span.at + (start - span.start);
        let state = self.write_back.state.read();
        let mut from_store = |part: &mut [u8], start: usize| {
            let Some(version) = self.reader.store().version(span.index) else {
                part.fill(0);
                return;
            };
            match self.reader.cached(span.index, version) {
                Some(block) => part.copy_from_slice(&block.bytes()[start..start + part.len()]),
                None => need(Need {
                    index: span.index,
                    version,
                    start,
                    at: within_read(start),
                    len: part.len(),
                }),
            }
        };
        let open = &state.open;
        open.read(span.index, span.start, part, |elsewhere| {
            match (elsewhere, &state.sealed) {
                (Elsewhere::Journal(place, start), _) => {
                    kept.push((place.clone(), within_read(start)));
                }
                (Elsewhere::Below(part, start), None) => from_store(part, start),
                (Elsewhere::Below(part, start), Some(sealed)) => {
                    let sealed = &sealed.epoch;
                    sealed.read(span.index, start, part, |elsewhere| match elsewhere {
                        Elsewhere::Below(part, start) => from_store(part, start),
                        Elsewhere::Journal(place, start) => {
                            kept.push((place.clone(), within_read(start)));
                        }
                    });
                }
            }
        });
    }

    /// Takes a write if there is room for it within the limits, and it need not wait for its turn because the journal fills.
    ///
    /// # Errors
    /// `Usage` for a range beyond the disk, `ReadOnly`, `Fenced`. Nothing is written then.
    pub fn write_now(&self, offset: u64, data: &[u8]) -> Result<Now> {
        self.check_write(offset, data.len() as u64)?;
        if self.write_back.is_paced() {
            return Ok(Now::Wait);
        }
        Ok(now(self.try_write(offset, data)?))
    }

    /// Takes a write, waiting for room.
    ///
    /// # Errors
    /// Those of [`Disk::write_now`].
    pub async fn write(&self, offset: u64, data: Bytes) -> Result<()> {
        self.check_write(offset, data.len() as u64)?;
        self.write_back.wait_for_turn(data.len() as u64).await;
        self.write_back
            .change_when_room(|| self.try_write(offset, &data))
            .await
    }

    fn try_write(&self, offset: u64, data: &[u8]) -> Result<bool> {
        let geometry = self.geometry();
        let spans = || geometry.spans(offset, data.len());
        if self.write_back.journal.is_none() {
            return self.write_back.change(
                data.len() as u64,
                |_| Ok(()),
                |state, now, ()| {
                    for span in spans() {
                        state.open.write(&span, &data[span.outer()], now);
                    }
                },
            );
        }
        let mut writes: Vec<(u64, &[u8])> = Vec::new();
        for span in spans() {
            let (mut at, mut rest) = (offset + span.at as u64, &data[span.outer()]);
            while !rest.is_empty() {
                let most = RECORD_BYTES - at as usize % RECORD_BYTES;
                let (record, after) = rest.split_at(rest.len().min(most));
                writes.push((at, record));
                (at, rest) = (at + record.len() as u64, after);
            }
        }
        self.write_back.change(
            writes.len() as u64 * dirty::PIECE_COST,
            |journal| journal.append(&writes),
            |state, now, placed| {
                for Placed { offset, place } in placed {
                    state.open.place_at(geometry, offset, &place, now);
                }
            },
        )
    }

    /// Makes a range read as zeros, if there is room; blocks wholly inside become holes and cost no request.
    ///
    /// # Errors
    /// Those of [`Disk::write_now`].
    pub fn zero_now(&self, offset: u64, len: u64) -> Result<Now> {
        self.check_write(offset, len)?;
        Ok(now(self.try_zero(offset, len)?))
    }

    /// Makes a range read as zeros, waiting for room.
    ///
    /// # Errors
    /// Those of [`Disk::write_now`].
    pub async fn zero(&self, offset: u64, len: u64) -> Result<()> {
        self.check_write(offset, len)?;
        self.write_back
            .change_when_room(|| self.try_zero(offset, len))
            .await
    }

    fn try_zero(&self, offset: u64, len: u64) -> Result<bool> {
        let geometry = self.geometry();
        let parts = Parts::of(geometry, offset, len);
        let zero_part = |state: &mut State, part: &Range<u64>, now| {
            // At most one block's worth each: a length of memory.
            for span in geometry.spans(part.start, (part.end - part.start) as usize) {
                if self.layers(state).is_data(span.index) {
                    state.open.zero_part(&span, now);
                }
            }
        };
        {
            let state = self.write_back.state.read();
            let layers = self.layers(&state);
            let any = |part: &Range<u64>| {
                let first = geometry.block_at(part.start);
                let next = layers.next_data(first);
                part.start < part.end
                    && next.is_some_and(|data| geometry.offset_of(data) < part.end)
            };
            if !parts.edges.iter().any(any) && !any(&parts.whole) {
                // It reads as zeros already.
                return Ok(true);
            }
        }
        self.write_back.change(
            0,
            |journal| journal.append_zeros(offset, len),
            |state, now, ()| {
                for edge in &parts.edges {
                    zero_part(state, edge, now);
                }
                let whole = parts.blocks(geometry);
                if whole.is_empty() {
                } else if self.layers(state).has_data_below_open(whole.clone()) {
                    state.open.punch(whole, now);
                } else {
                    state.open.forget(whole);
                }
            },
        )
    }

    /// The first byte at or after `offset` that lies in a block that is not a hole; `None` if there is none.
    pub fn seek_data(&self, offset: u64) -> Option<u64> {
        let geometry = self.geometry();
        if offset >= geometry.size_bytes() {
            return None;
        }
        let state = self.write_back.state.read();
        let index = self.layers(&state).next_data(geometry.block_at(offset))?;
        Some(offset.max(geometry.offset_of(index)))
    }

    /// The first byte at or after `offset` that lies in a hole; the size of the disk if there is none.
    pub fn seek_hole(&self, offset: u64) -> u64 {
        let geometry = self.geometry();
        if offset >= geometry.size_bytes() {
            return geometry.size_bytes();
        }
        let state = self.write_back.state.read();
        match self.layers(&state).next_hole(geometry.block_at(offset)) {
            Some(index) => offset.max(geometry.offset_of(index)),
            None => geometry.size_bytes(),
        }
    }

    /// Bytes in blocks that are not holes, dirty ones counted.
    pub fn allocated_bytes(&self) -> u64 {
        let state = self.write_back.state.read();
        self.layers(&state).data_blocks() * u64::from(self.geometry().block_bytes())
    }

    fn layers<'a>(&'a self, state: &'a State) -> layers::Layers<'a> {
        let sealed = state.sealed.as_ref().map(|s| &s.epoch);
        layers::Layers {
            open: &state.open,
            sealed,
            store: &**self.reader.store(),
        }
    }

    fn check_range(&self, offset: u64, len: u64) -> Result<()> {
        let size = self.geometry().size_bytes();
        match offset.checked_add(len) {
            Some(end) if end <= size => Ok(()),
            _ => Err(Error::new(
                ErrorKind::Usage,
                format!("range {offset}+{len} is beyond the disk's {size} bytes"),
            )),
        }
    }

    fn check_write(&self, offset: u64, len: u64) -> Result<()> {
        self.check_range(offset, len)?;
        if let Some(error) = self.write_back.fenced() {
            return Err(error);
        }
        if !self.is_read_only() {
            return Ok(());
        }
        // The store may know before any commit has failed.
        Err(match self.reader.store().status().fenced_by {
            Some(by) => Error::new(
                ErrorKind::Fenced,
                format!("the disk was taken over by {by}"),
            ),
            None => Error::new(ErrorKind::ReadOnly, "the disk is mounted read-only"),
        })
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let committer = self.committer.lock().take();
        for task in committer.iter().chain(&self.keeper) {
            task.abort();
        }
        // Its files may be another's the next moment.
        if let Some(journal) = &self.write_back.journal {
            journal.stop_making_ready();
        }
    }
}

fn now(done: bool) -> Now {
    if done { Now::Done } else { Now::Wait }
}
