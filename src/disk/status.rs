//! A disk's figures for `status` and the `stats` file.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::Serialize;

use crate::journal::Journal;
use crate::store::StoreStatus;

use super::Disk;
use super::ranges::joined;

/// A disk's figures at one moment; sizes in bytes.
#[derive(Debug, Clone, Serialize)]
pub struct DiskStatus {
    /// Size of the disk.
    pub size_bytes: u64,
    /// Size of a block.
    pub block_bytes: u32,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Bytes in blocks that are not holes, dirty ones counted.
    pub allocated_bytes: u64,
    /// What is written and not yet committed takes so much: of the journal, or where there is none, of memory.
    pub dirty_bytes: u64,
    /// The limit of `dirty_bytes`.
    pub max_dirty_bytes: u64,
    /// Memory that it takes to know what is dirty, without a journal the data itself.
    pub dirty_memory_bytes: u64,
    /// The limit of `dirty_memory_bytes`.
    pub max_dirty_memory_bytes: u64,
    /// Where the journal is; `None` without one.
    pub journal: Option<String>,
    /// What a flush waits for: `journal` or `bucket`.
    pub flush: &'static str,
    /// Why the journal takes nothing any more; `None` while it does.
    pub journal_error: Option<String>,
    /// Blocks of the commit that is running; 0 when none is.
    pub commit_blocks: u64,
    /// Those of them that are still to be stored.
    pub commit_blocks_left: u64,
    /// Age of the oldest write that is not committed yet; `None` when all is.
    pub oldest_dirty_seconds: Option<f64>,
    /// Why the last commit failed; `None` once one has succeeded since.
    pub commit_error: Option<String>,
    /// Memory that cached clean blocks take.
    pub cache_bytes: u64,
    /// The limit of `cache_bytes`.
    pub max_cache_bytes: u64,
    /// Look-ups of blocks that found them in the cache.
    pub cache_hits: u64,
    /// Look-ups that did not.
    pub cache_misses: u64,
    /// Reads that failed for good.
    pub read_errors: u64,
    /// Fetches of a block, to answer a read or to complete a commit, that found its object damaged or missing, and reads of what is not
    /// committed that found the journal damaged.
    pub damaged_blocks_read: u64,
    /// The store's own figures.
    pub store: StoreStatus,
}

impl Disk {
    /// The bytes that were written, or made zero, and are not committed: ascending ranges that do not touch.
    pub fn dirty_ranges(&self) -> Vec<Range<u64>> {
        let geometry = self.geometry();
        let state = self.write_back.state.read();
        let sealed = state.sealed.iter().flat_map(|s| s.epoch.written(geometry));
        joined(state.open.written(geometry).chain(sealed).collect())
    }

    /// Figures for `status`.
    pub fn status(&self) -> DiskStatus {
        let allocated_bytes = self.allocated_bytes();
        let outcome = self.write_back.outcome();
        let state = self.write_back.state.read();
        let (commit_blocks, done) = match &state.sealed {
            Some(sealed) if !outcome.fenced => (
                sealed.epoch.block_count(),
                sealed.done.load(Ordering::Relaxed),
            ),
            _ => (0, 0),
        };
        let journal = self.write_back.journal.as_ref();
        let failure = journal.and_then(|journal| journal.failure());
        let dirty_memory_bytes = state.dirty_cost();
        let max_dirty_memory_bytes = self.config.max_dirty_bytes;
        let (dirty_bytes, max_dirty_bytes) = match journal {
            // What is released a moment later is committed already.
            Some(_) if state.open.is_empty() && state.sealed.is_none() => (0, None),
            Some(journal) => (journal.used_bytes(), None),
            None => (dirty_memory_bytes, Some(max_dirty_memory_bytes)),
        };
        let limit = |journal: &Arc<Journal>| journal.limit_bytes();
        let max_dirty_bytes = max_dirty_bytes.or(journal.map(limit)).unwrap_or_default();
        let to_journal = self.flush_journal().is_some() && failure.is_none();
        DiskStatus {
            size_bytes: self.geometry().size_bytes(),
            block_bytes: self.geometry().block_bytes(),
            read_only: self.is_read_only(),
            allocated_bytes,
            dirty_bytes,
            max_dirty_bytes,
            dirty_memory_bytes,
            max_dirty_memory_bytes,
            journal: journal.map(|journal| journal.location()),
            flush: if to_journal { "journal" } else { "bucket" },
            journal_error: failure.map(|e| e.chain()),
            commit_blocks,
            commit_blocks_left: commit_blocks.saturating_sub(done),
            oldest_dirty_seconds: state.oldest_write().map(|t| t.elapsed().as_secs_f64()),
            commit_error: outcome.error.map(|e| e.chain()),
            cache_bytes: self.reader.cache_bytes(),
            max_cache_bytes: self.config.cache_bytes,
            cache_hits: self.reader.hits.load(Ordering::Relaxed),
            cache_misses: self.reader.misses.load(Ordering::Relaxed),
            read_errors: self.read_errors.load(Ordering::Relaxed),
            damaged_blocks_read: self.reader.damaged.load(Ordering::Relaxed),
            store: self.reader.store().status(),
        }
    }
}
