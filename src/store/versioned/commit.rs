//! A commit: every changed block under a new version, all of them durable; then one record, create-if-absent.
//!
//! Before the record nothing of it is visible, after it everything is. What a try has done is kept: the next try stores only the
//! blocks that are missing, and puts the record as the very same bytes, so that a record whose answer was lost is recognised as
//! this session's own, and one of another session as the end of this one.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::block::{BlockIndex, Seq};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Changes, JournalMark};

use super::checkpoint::Garbage;
use super::mount::{host_name, next_number};
use super::objects::RecordPut;
use super::record::{Digest, Record, RecordBody};
use super::upkeep::{CHECKPOINT_EVERY, GRACE};
use super::volume::{Attempt, LogEnd, VersionedStore};

/// After this long without a record of its own, a writer looks whether the log has gone on without it before it commits. Claims are
/// kept for longer than that, so a sleeper always finds the one that fenced it.
const SLEPT: Duration = Duration::from_secs(24 * 60 * 60);

impl VersionedStore {
    pub(super) async fn commit_changes(&self, changes: Arc<dyn Changes>) -> Result<Seq> {
        let began = Instant::now();
        let mut log = self.log.lock().await;
        self.begin_record(&mut log).await?;
        let head = self.view.read().head;
        let journal = changes.journal().or(log.journal);
        log.journal = journal;
        let attempt = match &mut log.attempt {
            Some(attempt) => attempt,
            none => none.insert(Attempt {
                seq: next_number(head)?,
                sent: Default::default(),
                done: Default::default(),
                record: None,
            }),
        };
        self.store_blocks(attempt, &changes).await?;
        if attempt.record.is_none() {
            let Some(body) = self.difference(attempt, &*changes) else {
                log.attempt = None;
                return Ok(head);
            };
            attempt.record = Some(self.next_record(attempt.seq, body, journal));
        }
        let seq = attempt.seq;
        if let Some((record, object)) = &attempt.record {
            self.append(record, object).await?;
        }
        log.attempt = None;
        log.last_record = self.sources.moment();
        self.commits.fetch_add(1, Ordering::Relaxed);
        *self.last_commit.lock() = Some((self.sources.now(), began.elapsed()));
        Ok(seq)
    }

    /// Gives an unfinished commit up by putting a claim of this very session on its number. Blocks of it may be stored, and requests
    /// for more of them on their way, under that number; a claim is kept for good, and no block has a claim's number as its
    /// version, so that not even a listing of the blocks ever takes one of them for a block of the disk. (A heartbeat would be
    /// pruned one day.)
    pub(super) async fn give_up_commit(&self) -> Result<bool> {
        let mut log = self.log.lock().await;
        self.begin_record(&mut log).await?;
        match &log.attempt {
            None => return Ok(true),
            Some(attempt) if attempt.record.is_some() => return Ok(false),
            Some(_) => {}
        }
        let claim = RecordBody::Claim {
            host: host_name(),
            pid: std::process::id(),
            took_over: None,
        };
        self.write_record(&mut log, claim).await?;
        self.end_given_up(&mut log);
        Ok(true)
    }

    /// Ends the unfinished commit if its number is taken, by this session's claim: what it has sent is garbage.
    fn end_given_up(&self, log: &mut LogEnd) {
        let mut view = self.view.write();
        let Some(attempt) = log.attempt.take_if(|attempt| attempt.seq <= view.head) else {
            return;
        };
        let zero = |index: &BlockIndex| attempt.done.get(index) == Some(&false);
        let sent = attempt.sent.iter().filter(|index| !zero(index));
        let left = sent.map(|index| Garbage {
            index: *index,
            version: attempt.seq,
            superseded_by: attempt.seq,
        });
        let due = Instant::now() + GRACE;
        view.garbage.entry(due).or_default().extend(left);
    }

    /// To be called before a record is written: this session has not been fenced, as far as can be known, and no earlier
    /// record is in doubt.
    pub(super) async fn begin_record(&self, log: &mut LogEnd) -> Result<()> {
        self.check_log(log).await?;
        if let Some((record, object)) = &log.pending {
            self.append(record, object).await?;
            log.pending = None;
            self.end_given_up(log);
        }
        Ok(())
    }

    /// Writes a record other than a commit's.
    ///
    /// # Errors
    /// Those of [`VersionedStore::append`]; the record is then in doubt until the next [`VersionedStore::begin_record`].
    pub(super) async fn write_record(&self, log: &mut LogEnd, body: RecordBody) -> Result<()> {
        let seq = next_number(self.view.read().head)?;
        let next = self.next_record(seq, body, log.journal);
        let (record, object) = log.pending.insert(next);
        self.append(record, object).await?;
        log.pending = None;
        log.last_record = self.sources.moment();
        Ok(())
    }

    async fn check_log(&self, log: &LogEnd) -> Result<()> {
        if let Some(error) = self.fenced() {
            return Err(error);
        }
        if self.sources.since(log.last_record) < SLEPT {
            return Ok(());
        }
        self.look_for_successor().await?;
        self.fenced().map_or(Ok(()), Err)
    }

    /// Looks whether the log has gone on with another session, which then has fenced this one.
    pub(super) async fn look_for_successor(&self) -> Result<()> {
        let head = self.view.read().head;
        let later: Vec<Seq> = self
            .objects
            .record_numbers()
            .await?
            .range(head..)
            .map(|(seq, _)| *seq)
            .collect();
        for seq in later.into_iter().filter(|seq| *seq > head) {
            if let Some(stored) = self.objects.record(seq).await?
                && stored.record.session != self.session
            {
                self.fence(&stored.record);
                break;
            }
        }
        Ok(())
    }

    /// Stores the blocks of an attempt that are not stored yet, several at once. After a failure those that are under way are
    /// waited for, so that the next try need not repeat them.
    async fn store_blocks(&self, attempt: &mut Attempt, changes: &Arc<dyn Changes>) -> Result<()> {
        let mut left = changes
            .blocks()
            .into_iter()
            .filter(|index| !attempt.done.contains_key(index))
            .collect::<Vec<_>>();
        left.reverse();
        let mut running = JoinSet::new();
        let mut failure: Option<Error> = None;
        loop {
            while failure.is_none() && running.len() < self.requests {
                let Some(index) = left.pop() else { break };
                attempt.sent.insert(index);
                running.spawn(store_block(
                    self.objects.clone(),
                    Arc::clone(changes),
                    index,
                    attempt.seq,
                ));
            }
            let Some(joined) = running.join_next().await else {
                break;
            };
            match joined {
                Ok(Ok((index, stored))) => {
                    attempt.done.insert(index, stored);
                }
                Ok(Err(error)) => failure = failure.or(Some(error)),
                Err(gone) => {
                    let error = Error::new(ErrorKind::System, "a task of a commit has failed")
                        .with_source(gone);
                    failure = failure.or(Some(error));
                }
            }
        }
        match failure {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// What a commit's record has to say: `None` if the disk is the same before and after.
    fn difference(&self, attempt: &Attempt, changes: &dyn Changes) -> Option<RecordBody> {
        let view = self.view.read();
        let stored: Vec<BlockIndex> = attempt
            .done
            .iter()
            .filter(|(_, stored)| **stored)
            .map(|(index, _)| *index)
            .collect();
        let mut holes = changes.holes();
        holes.retain(|range| view.map.stored_in(range.clone()) > 0);
        let zeros = attempt
            .done
            .iter()
            .filter(|(_, stored)| !**stored)
            .map(|(index, _)| *index);
        holes.extend(
            zeros
                .filter(|index| view.map.get(*index).is_some())
                .map(|index| index..index.next()),
        );
        holes.sort_by_key(|range| range.start);
        holes.dedup_by(|next, range| {
            let joined = range.end == next.start;
            if joined {
                range.end = next.end;
            }
            joined
        });
        (!stored.is_empty() || !holes.is_empty()).then_some(RecordBody::Commit { stored, holes })
    }

    /// The record that follows the head, and its bytes.
    fn next_record(
        &self,
        seq: Seq,
        body: RecordBody,
        journal: Option<JournalMark>,
    ) -> (Record, bytes::Bytes) {
        let (claim, previous) = {
            let view = self.view.read();
            (view.claim, view.digest)
        };
        let record = Record {
            seq,
            session: self.session,
            claim,
            nonce: self.sources.number(),
            previous,
            time: self.sources.now(),
            journal,
            body,
        };
        let object = self.objects.encode_record(&record);
        (record, object)
    }

    /// Puts the record that follows the head, and makes it the head.
    ///
    /// # Errors
    /// `Fenced` where another session's record has the number. Else whether the record is there is unknown: put the same bytes again.
    async fn append(&self, record: &Record, object: &bytes::Bytes) -> Result<()> {
        if let RecordPut::Taken(other) = self.objects.put_record(record.seq, object).await? {
            return Err(self.fence(&other));
        }
        let superseded = self.apply(record, Digest::of(&*self.objects.codec, object));
        self.tell_head();
        if let Some(cache) = &self.objects.cache {
            for (index, version) in superseded {
                cache.remove(index, version);
            }
        }
        Ok(())
    }

    /// Makes an acknowledged record the head, and answers which versions it has superseded.
    fn apply(&self, record: &Record, digest: Digest) -> Vec<(BlockIndex, Seq)> {
        let mut view = self.view.write();
        let mut superseded: Vec<Garbage> = Vec::new();
        if let RecordBody::Commit { stored, holes } = &record.body {
            for index in stored {
                let old = view.map.insert(*index, record.seq);
                superseded.extend(old.map(|version| Garbage {
                    index: *index,
                    version,
                    superseded_by: record.seq,
                }));
            }
            for range in holes {
                view.map.remove_range(range.clone(), |index, version| {
                    superseded.push(Garbage {
                        index,
                        version,
                        superseded_by: record.seq,
                    });
                });
            }
            view.changed = true;
        }
        let versions = superseded.iter().map(|old| (old.index, old.version));
        let versions = versions.collect();
        if !superseded.is_empty() {
            view.garbage
                .entry(Instant::now() + GRACE)
                .or_default()
                .extend(superseded);
        }
        if record.is_claim() {
            (view.claim, view.claim_digest) = (record.seq, digest);
        } else {
            view.unpruned.push(record.seq);
        }
        view.head = record.seq;
        view.digest = digest;
        if view.head.0.saturating_sub(view.checkpoint.0) >= CHECKPOINT_EVERY {
            self.upkeep_wanted.notify_one();
        }
        versions
    }
}

/// Stores one block of a commit; answers whether it was stored, or turned out to be all zero.
async fn store_block(
    objects: super::objects::Objects,
    changes: Arc<dyn Changes>,
    index: BlockIndex,
    seq: Seq,
) -> Result<(BlockIndex, bool)> {
    let Some(block) = changes.block(index).await? else {
        return Ok((index, false));
    };
    objects.put_block(index, seq, &block).await?;
    changes.stored(index, seq, &block);
    Ok((index, true))
}
