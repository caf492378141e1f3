//! The disk's objects by what they are: records, checkpoints and blocks instead of keys and bodies.

use std::collections::BTreeMap;
use std::future::ready;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use uuid::Uuid;

use crate::block::{Block, BlockIndex, Geometry, Seq};
use crate::cache::ObjectCache;
use crate::codec::{Codec, DecodeError, ObjectKind, Place};
use crate::error::{Error, ErrorKind, Result, Source};
use crate::object::{ObjectClient, PutOutcome, list_all};

use super::checkpoint::Checkpoint;
use super::coding::Coding;
use super::keys;
use super::record::{Digest, Record};

/// A disk's part of a bucket.
#[derive(Debug, Clone)]
pub(super) struct Objects {
    pub(super) client: Arc<dyn ObjectClient>,
    pub(super) codec: Arc<dyn Codec>,
    /// The same, for blocks.
    pub(super) blocks: Coding,
    pub(super) disk: Uuid,
    pub(super) geometry: Geometry,
    /// Asked for blocks before the store is.
    pub(super) cache: Option<Arc<dyn ObjectCache>>,
    /// Whether the store's create-if-absent works. Where it does not, records are written after a look: a race that only
    /// `--unsafe-no-fencing` accepts.
    pub(super) fencing: bool,
}

/// A record as it lies in the store.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub(super) record: Record,
    pub(super) digest: Digest,
}

/// The answer to writing a record.
#[derive(Debug)]
pub(super) enum RecordPut {
    /// The number is the caller's record, by this try or by an earlier one whose answer was lost.
    Ours,
    /// The number was taken by this other record.
    Taken(Box<Record>),
}

/// Numbered objects of a folder with the time at which each was stored, by the store's clock.
pub(super) type Numbers = BTreeMap<Seq, SystemTime>;

impl Objects {
    /// The records there are.
    pub(super) async fn record_numbers(&self) -> Result<Numbers> {
        self.numbers(keys::LOG_FOLDER, keys::parse_record).await
    }

    /// The checkpoints there are.
    pub(super) async fn checkpoint_numbers(&self) -> Result<Numbers> {
        self.numbers(keys::MAP_FOLDER, keys::parse_checkpoint).await
    }

    async fn numbers(&self, folder: &str, parse: fn(&str) -> Option<Seq>) -> Result<Numbers> {
        let entries = list_all(&*self.client, folder).await?;
        Ok(entries
            .iter()
            .filter_map(|e| Some((parse(&e.key)?, e.modified)))
            .collect())
    }

    /// An object, decoded; `None` where there is none. One that does not decode is fetched once more first: the damage may have
    /// happened on the way.
    ///
    /// # Errors
    /// Those of the object client; within, those of `decode`.
    async fn fetch<T, E: Into<Source>, F: Future<Output = Result<T, E>>>(
        &self,
        key: &str,
        decode: impl Fn(Bytes) -> F,
    ) -> Result<Option<Result<T, Source>>> {
        let mut tries = 0;
        loop {
            let Some(object) = found(self.client.get(key).await)? else {
                return Ok(None);
            };
            tries += 1;
            match decode(object).await.map_err(E::into) {
                Err(error) if tries < 2 => {
                    tracing::warn!(%key, %error, "an object does not check out; fetching it once more");
                }
                outcome => return Ok(Some(outcome)),
            }
        }
    }

    /// A record; `None` where there is none of that number.
    ///
    /// # Errors
    /// `Damaged` where it does not decode.
    pub(super) async fn record(&self, seq: Seq) -> Result<Option<Stored>> {
        let key = keys::record(seq);
        let decode = |object: Bytes| {
            let (codec, blocks) = (&*self.codec, self.geometry.blocks());
            let decoded = Record::decode(codec, self.disk, blocks, seq, &object);
            ready(decoded.map(|record| Stored {
                record,
                digest: Digest::of(codec, &object),
            }))
        };
        let fetched = self.fetch(&key, decode).await?.transpose();
        fetched.map_err(|error| {
            let text = format!("log record {key} is damaged: put the object back as it was");
            Error::new(ErrorKind::Damaged, text).with_source(error)
        })
    }

    /// The record as the store would keep it.
    pub(super) fn encode_record(&self, record: &Record) -> Bytes {
        record.encode(&*self.codec, self.disk)
    }

    /// Writes a record under its number if that is free; when it returns `Ours`, the record is the log's.
    ///
    /// # Errors
    /// Those of the object client: whether the record is there is then unknown, and writing the very same bytes again finds out.
    pub(super) async fn put_record(&self, seq: Seq, object: &Bytes) -> Result<RecordPut> {
        let key = keys::record(seq);
        if self.fencing {
            if self.client.put_if_absent(&key, object.clone()).await? == PutOutcome::Created {
                return Ok(RecordPut::Ours);
            }
        } else if found(self.client.get(&key).await)?.is_none() {
            self.client.put(&key, object.clone()).await?;
            return Ok(RecordPut::Ours);
        }
        let Some(there) = self.record(seq).await? else {
            let text = format!("log record {key} was pruned while it was looked at; try again");
            return Err(Error::new(ErrorKind::Unreachable, text));
        };
        if there.digest == Digest::of(&*self.codec, object) {
            return Ok(RecordPut::Ours);
        }
        Ok(RecordPut::Taken(Box::new(there.record)))
    }

    /// A checkpoint; `None` where there is none of that number.
    ///
    /// # Errors
    /// `Damaged` where it does not decode.
    pub(super) async fn checkpoint(&self, seq: Seq) -> Result<Option<Checkpoint>> {
        let key = keys::checkpoint(seq);
        let decode = |object: Bytes| {
            let (codec, blocks) = (&*self.codec, self.geometry.blocks());
            ready(Checkpoint::decode(codec, self.disk, seq, blocks, &object))
        };
        let fetched = self.fetch(&key, decode).await?.transpose();
        fetched.map_err(|error| {
            let text =
                format!("checkpoint {key} is damaged: mount with --list-blocks to do without it");
            Error::new(ErrorKind::Damaged, text).with_source(error)
        })
    }

    /// Writes a checkpoint; one that is there already says the same.
    pub(super) async fn put_checkpoint(&self, seq: Seq, object: Bytes) -> Result<()> {
        self.client.put(&keys::checkpoint(seq), object).await
    }

    /// A version of a block; `None` where there is no such object.
    ///
    /// # Errors
    /// `Damaged`, naming the block, its byte range and its key.
    pub(super) async fn block(&self, index: BlockIndex, version: Seq) -> Result<Option<Block>> {
        if let Some(block) = self.cached_block(index, version).await {
            return Ok(Some(block));
        }
        let key = keys::block(index, version);
        let decode = |object: Bytes| self.block_and_object(index, version, object);
        let fetched = self.fetch(&key, decode).await?.transpose();
        let found = fetched.map_err(|error| self.damaged(index, &key).with_source(error))?;
        Ok(found.map(|(block, object)| {
            if let Some(cache) = &self.cache {
                cache.put(index, version, object);
            }
            block
        }))
    }

    /// A version of a block from this machine's own disk, checked as one from the store is.
    async fn cached_block(&self, index: BlockIndex, version: Seq) -> Option<Block> {
        let cache = self.cache.as_ref()?;
        let object = cache.get(index, version).await?;
        match self.decode_block(index, version, object).await {
            Ok(block) => Some(block),
            Err(error) => {
                let key = keys::block(index, version);
                tracing::warn!(%key, %error, "a cached object does not check out; fetching it from the store");
                cache.damaged(index, version);
                None
            }
        }
    }

    async fn block_and_object(
        &self,
        index: BlockIndex,
        version: Seq,
        object: Bytes,
    ) -> Result<(Block, Bytes), BlockError> {
        let block = self.decode_block(index, version, object.clone()).await?;
        Ok((block, object))
    }

    async fn decode_block(
        &self,
        index: BlockIndex,
        version: Seq,
        object: Bytes,
    ) -> Result<Block, BlockError> {
        let place = self.block_place(index, version);
        let content = self.blocks.decode(place, object).await?;
        if content.len() != self.geometry.block_len() {
            return Err(BlockError::Length {
                got: content.len(),
                want: self.geometry.block_len(),
            });
        }
        Block::new(content).ok_or(BlockError::Zeros)
    }

    /// Stores a version of a block. It is not put into the cache: all that is written would be written to the local disk a second
    /// time, where it competes with the journal, and most of it is never read again while it matters.
    pub(super) async fn put_block(
        &self,
        index: BlockIndex,
        version: Seq,
        block: &Block,
    ) -> Result<()> {
        let place = self.block_place(index, version);
        let object = self.blocks.encode(place, block).await;
        self.client.put(&keys::block(index, version), object).await
    }

    fn block_place(&self, index: BlockIndex, version: Seq) -> Place {
        Place {
            disk: self.disk,
            kind: ObjectKind::Block,
            index: index.0,
            seq: version,
        }
    }

    /// The error for a block that is not what was written.
    pub(super) fn damaged(&self, index: BlockIndex, key: &str) -> Error {
        let block = self.describe(index, key);
        Error::new(ErrorKind::Damaged, format!("{block} is damaged or missing"))
    }

    /// The error for a block of a state that another session has replaced; `by` says how that is known.
    pub(super) fn superseded(&self, index: BlockIndex, key: &str, by: &str) -> Error {
        let block = self.describe(index, key);
        Error::new(
            ErrorKind::Superseded,
            format!(
                "{block} was superseded and removed: {by}; mount again to see the disk as it is now"
            ),
        )
    }

    fn describe(&self, index: BlockIndex, key: &str) -> String {
        let start = self.geometry.offset_of(index);
        let end = start + u64::from(self.geometry.block_bytes());
        format!("block {index} (bytes {start} to {end}, object {key})")
    }
}

/// Why the object of a block is not one.
#[derive(Debug, thiserror::Error)]
enum BlockError {
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error("it holds {got} bytes instead of {want}")]
    Length { got: usize, want: usize },
    #[error("it holds only zeros")]
    Zeros,
}

/// Turns "there is no such object" into `None`.
pub(super) fn found<T>(outcome: Result<T>) -> Result<Option<T>> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
