//! A sealed epoch: what one commit carries. It never changes, so every try of the commit stores the same bytes.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::block_in_place;

use crate::block::{Block, BlockIndex, Seq};
use crate::error::{Error, ErrorKind, Result};
use crate::journal::{Mark, Place};
use crate::store::{Changes, JournalMark, ReadError};

use super::epoch::Epoch;
use super::reader::Reader;

/// An epoch on its way into the store.
#[derive(Debug)]
pub(super) struct Sealed {
    /// Its number; epochs are committed in order of number.
    pub(super) number: u64,
    /// What was written.
    pub(super) epoch: Epoch,
    /// The end of the journal when it was sealed: what lies before is done with once this is committed. `None` without a journal.
    pub(super) journal_end: Option<Mark>,
    /// The same for the store.
    mark: Option<JournalMark>,
    /// Blocks that are stored, or turned out to be holes.
    pub(super) done: AtomicU64,
    reader: Arc<Reader>,
}

impl Sealed {
    pub(super) fn new(
        number: u64,
        epoch: Epoch,
        journal_end: Option<(Mark, JournalMark)>,
        reader: Arc<Reader>,
    ) -> Self {
        let (journal_end, mark) = journal_end.unzip();
        Sealed {
            number,
            epoch,
            journal_end,
            mark,
            done: AtomicU64::new(0),
            reader,
        }
    }

    /// What was written, once no commit carries it any more.
    pub(super) fn into_epoch(self: Arc<Self>) -> Epoch {
        match Arc::try_unwrap(self) {
            Ok(sealed) => sealed.epoch,
            Err(shared) => shared.epoch.clone(),
        }
    }
}

#[async_trait]
impl Changes for Sealed {
    fn blocks(&self) -> Vec<BlockIndex> {
        self.epoch.blocks().collect()
    }

    fn holes(&self) -> Vec<Range<BlockIndex>> {
        self.epoch.holes().iter().collect()
    }

    async fn block(&self, index: BlockIndex) -> Result<Option<Block>> {
        let geometry = self.reader.store().geometry();
        let base = match self.epoch.needs_below(index, geometry) {
            // It stays that version until this epoch's own commit.
            true => base(&self.reader, index).await?,
            false => None,
        };
        let mut content = match base {
            Some(base) => base.bytes().to_vec(),
            None => vec![0; geometry.block_len()],
        };
        // What is below is there already; what the journal has comes last, into the parts that it leaves alone.
        self.epoch.read(index, 0, &mut content, |_| {});
        read_kept(index, &self.epoch.kept(index), &mut content)?;
        let block = Block::new(Bytes::from(content));
        if block.is_none() {
            self.done.fetch_add(1, Ordering::Relaxed);
        }
        Ok(block)
    }

    fn journal(&self) -> Option<JournalMark> {
        self.mark
    }

    fn stored(&self, index: BlockIndex, version: Seq, block: &Block) {
        self.done.fetch_add(1, Ordering::Relaxed);
        self.reader.keep(index, version, block);
    }
}

/// The block that a partly written one is to be completed from; `None` where it is a hole.
pub(super) async fn base(reader: &Arc<Reader>, index: BlockIndex) -> Result<Option<Block>> {
    reader.newest(index).await.map_err(|error| {
        let geometry = reader.store().geometry();
        let from = geometry.offset_of(index);
        let len = geometry.block_bytes();
        let remedy = match error.kind() {
            ErrorKind::Damaged => format!(
                "; nothing is committed before the image's {len} bytes from {from} are all written or discarded"
            ),
            _ => String::new(),
        };
        error.within(format!("cannot complete block {index}, of which a part was written{remedy}"))
    })
}

/// Reads parts of a block from the journal into the block's content.
///
/// # Errors
/// `Damaged` where the local disk has altered them: nothing is to be committed with them; `System`.
pub(super) fn read_kept(
    index: BlockIndex,
    kept: &[(Place, usize)],
    content: &mut [u8],
) -> Result<()> {
    if kept.is_empty() {
        return Ok(());
    }
    blocking(|| Place::read_all(kept, content)).map_err(|error| {
        error.within(format!(
            "cannot complete block {index}: nothing is committed before what was written to it is written again or discarded"
        ))
    })
}

/// Runs what blocks on the local disk, and lets the runtime's other tasks run meanwhile where it has threads for that.
pub(super) fn blocking<T>(run: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => block_in_place(run),
        _ => run(),
    }
}

/// A copy of an error that several callers share.
pub(super) fn shared_error(error: &Error) -> Error {
    Error::new(error.kind(), error.chain()).with_retry_after(error.retry_after())
}

/// What a reader is told: the failure, or that the block went on changing under it.
pub(super) fn read_failure(error: &ReadError) -> Error {
    match error {
        ReadError::Failed(error) => shared_error(error),
        ReadError::Stale => Error::new(ErrorKind::System, "the block has a newer version"),
    }
}
