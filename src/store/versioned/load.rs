//! Reading a disk's state: checkpoint, then the records after it, then a second look that nothing was pruned meanwhile.

use std::time::{Duration, SystemTime};

use futures::{StreamExt, TryStreamExt, stream};

use crate::block::Seq;
use crate::error::{Error, ErrorKind, Result};
use crate::object::ObjectEntry;
use crate::store::JournalMark;

use super::checkpoint::Checkpoint;
use super::listing::Records;
use super::objects::{Numbers, Objects, Stored};
use super::pin::End;
use super::record::{Digest, Record, RecordBody, SessionId};
use super::replay::Replay;
use super::sources::{Moment, Sources};
use super::upkeep::GRACE;
use super::{Holder, OnProgress, Progress};
use super::{keys, listing};

/// How often reading begins anew, because a writer went on or a listing was stale, before giving up.
pub(super) const TRIES: usize = 20;
/// The pause after a listing that does not show what is known to be there: stores that promise that it does need none.
pub(super) const LAG_PAUSE: Duration = Duration::from_millis(500);

/// The first look: what there is, and who wrote last. Nothing that it finds is relied on, but the number to claim.
#[derive(Debug)]
pub(super) struct FirstLook {
    /// The highest number in use; 0 if none is.
    pub(super) head: Seq,
    /// The newest record, or the checkpoint that has made it superfluous.
    newest: Newest,
    records: Numbers,
    checkpoints: Numbers,
}

#[derive(Debug)]
enum Newest {
    Nothing,
    Record(Box<Stored>),
    Checkpoint(Box<Checkpoint>),
}

impl FirstLook {
    /// Lists checkpoints and log, and reads the newest of them.
    pub(super) async fn take(objects: &Objects) -> Result<FirstLook> {
        for _ in 0..TRIES {
            let checkpoints = objects.checkpoint_numbers().await?;
            let records = objects.record_numbers().await?;
            let checkpoint = last(&checkpoints);
            let head = last(&records).max(checkpoint);
            let record = match records.contains_key(&head) {
                true => objects.record(head).await?,
                false => None,
            };
            // A claim of the checkpoint's own number may have come after that record was pruned: then it is void, and the log
            // goes on after the checkpoint.
            if head == Seq(0)
                && let Some(block) = some_block(objects).await?
            {
                // The first writer of all may have come between the two looks: its claim is there before its first block.
                if objects.record_numbers().await?.is_empty()
                    && objects.checkpoint_numbers().await?.is_empty()
                {
                    return Err(blocks_without_log(objects, &block));
                }
                continue;
            }
            let newest = match record {
                _ if head == Seq(0) => Some(Newest::Nothing),
                Some(stored) if head > checkpoint || !stored.record.is_claim() => {
                    Some(Newest::Record(Box::new(stored)))
                }
                None if head > checkpoint => None,
                _ => objects
                    .checkpoint(checkpoint)
                    .await?
                    .map(|c| Newest::Checkpoint(Box::new(c))),
            };
            // A claim that names a void one as the one before it would break the log for good: was the record pruned, and its
            // number taken by a late claim, since the checkpoints were listed?
            if head > checkpoint && last(&objects.checkpoint_numbers().await?) != checkpoint {
                continue;
            }
            if let Some(newest) = newest {
                return Ok(FirstLook {
                    head,
                    newest,
                    records,
                    checkpoints,
                });
            }
        }
        Err(restless())
    }

    /// The digest that a record after the newest one must name.
    pub(super) fn digest(&self) -> Digest {
        match &self.newest {
            Newest::Nothing => Digest::ZERO,
            Newest::Record(stored) => stored.digest,
            Newest::Checkpoint(checkpoint) => checkpoint.head,
        }
    }

    /// The newest claim that is not void; 0 if there is none.
    pub(super) fn newest_claim(&self) -> Seq {
        match &self.newest {
            Newest::Nothing => Seq(0),
            Newest::Record(stored) => stored.record.newest_claim(),
            Newest::Checkpoint(checkpoint) => checkpoint.last.claim,
        }
    }

    /// The end of the log.
    pub(super) fn end(&self) -> End {
        End {
            seq: self.head,
            digest: self.digest(),
            claim: self.newest_claim(),
        }
    }

    /// The session that had the disk last; `None` where there was none.
    pub(super) fn last_session(&self) -> Option<SessionId> {
        match &self.newest {
            Newest::Nothing => None,
            Newest::Record(stored) => Some(stored.record.session),
            Newest::Checkpoint(checkpoint) => Some(checkpoint.last.session),
        }
    }

    /// The newest mark of a journal; `None` where there is none, or the record that had it is pruned.
    pub(super) fn journal(&self) -> Option<JournalMark> {
        match &self.newest {
            Newest::Record(stored) => stored.record.journal,
            Newest::Nothing | Newest::Checkpoint(_) => None,
        }
    }

    /// Whether the session that had the disk last took it from one that had not released it.
    pub(super) async fn took_over(&self, objects: &Objects) -> Result<bool> {
        let claim = self.first_claim(objects).await?;
        Ok(claim.is_some_and(|claim| {
            matches!(claim.body, RecordBody::Claim { took_over, .. } if took_over.is_some())
        }))
    }

    /// The claim by which the session that had the disk last got it. It may have put others since, to give commits up.
    async fn first_claim(&self, objects: &Objects) -> Result<Option<Record>> {
        let mut first: Option<Record> = None;
        let mut at = self.newest_claim();
        while at > Seq(0)
            && let Some(Stored { record, .. }) = objects.record(at).await?
            && record.is_claim()
            && first.as_ref().is_none_or(|f| f.session == record.session)
        {
            at = record.claim;
            first = Some(record);
        }
        Ok(first)
    }

    /// Who holds the disk: the session that wrote last, unless it has released. `None` when the disk is free.
    pub(super) async fn holder(&self, objects: &Objects) -> Result<Option<Holder>> {
        let stored_at = |seq: Seq| {
            self.records
                .get(&seq)
                .or(self.checkpoints.get(&seq))
                .copied()
        };
        let last_record = stored_at(self.head).unwrap_or(SystemTime::UNIX_EPOCH);
        let released = match &self.newest {
            Newest::Nothing => true,
            Newest::Checkpoint(checkpoint) => checkpoint.last.released,
            Newest::Record(stored) => stored.record.body == RecordBody::Release,
        };
        if released {
            return Ok(None);
        }
        // Claims are never pruned, so this one is there.
        let claim = self.first_claim(objects).await?;
        let since = claim.as_ref().and_then(|claim| stored_at(claim.seq));
        let (session, host, pid) = match (&self.newest, claim.map(|claim| claim.body)) {
            (Newest::Checkpoint(checkpoint), _) => {
                let last = &checkpoint.last;
                (last.session, last.host.clone(), last.pid)
            }
            (Newest::Record(stored), Some(RecordBody::Claim { host, pid, .. })) => {
                (stored.record.session, host, pid)
            }
            (Newest::Record(stored), _) => (stored.record.session, "an unknown host".to_owned(), 0),
            (Newest::Nothing, _) => return Ok(None),
        };
        Ok(Some(Holder {
            session,
            host,
            pid,
            since: since.unwrap_or(last_record),
            last_record,
        }))
    }
}

/// How a state is to be read.
pub(super) struct Wanted<'a> {
    /// The record up to which, inclusive.
    pub(super) end: Seq,
    /// Whether the disk is claimed by record `end`: then a checkpoint at or past it voids the claim.
    pub(super) claimed: bool,
    /// Build the map from a listing of the blocks.
    pub(super) list_blocks: bool,
    /// A moment at which `end` was not superseded yet.
    pub(super) since: Moment,
    pub(super) sources: &'a Sources,
    /// Requests at once.
    pub(super) requests: usize,
    pub(super) progress: &'a OnProgress,
}

/// A state and what there is beside it.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) replay: Replay,
    /// The checkpoints that exist, with the store's time of each.
    pub(super) checkpoints: Numbers,
    /// The number of the checkpoint that was built on; 0 if none was.
    pub(super) checkpoint: Seq,
    /// The store's clock, as of the newest record.
    pub(super) store_time: Option<std::time::SystemTime>,
}

/// What reading the state came to.
#[derive(Debug)]
pub(super) enum Reading {
    State(Box<Loaded>),
    /// The claim's slot had been pruned: claim another.
    Void,
    /// A writer has gone on past `end`, so that its state cannot be known any more: look again.
    Passed,
}

/// Reads the state as of a record.
///
/// # Errors
/// `Damaged` where the log does not add up.
pub(super) async fn load(objects: &Objects, wanted: &Wanted<'_>) -> Result<Reading> {
    (wanted.progress)(Progress::ReadingMap);
    let mut gaps_without_checkpoint = 0;
    let mut gap: Option<Gap> = None;
    for _ in 0..TRIES {
        let checkpoints = objects.checkpoint_numbers().await?;
        let newest = last(&checkpoints);
        if newest > wanted.end || (newest == wanted.end && wanted.claimed) {
            return Ok(if wanted.claimed {
                Reading::Void
            } else {
                Reading::Passed
            });
        }
        let records = objects.record_numbers().await?;
        if newest < wanted.end && !records.contains_key(&wanted.end) {
            // It is there, so the listing lags behind: what else it does not show may be there too.
            tokio::time::sleep(LAG_PAUSE).await;
            continue;
        }
        let mut needed = (newest.0..wanted.end.0).map(|before| Seq(before + 1));
        let missing = needed.find(|seq| !records.contains_key(seq));
        gap = missing.map(|missing| Gap::seen(gap, newest, missing));
        let complete = missing.is_none();
        if !complete && newest == Seq(0) {
            gaps_without_checkpoint += 1;
        }
        // Records were pruned, and the checkpoint that allowed it is gone: what is left is to look at the blocks themselves. Another
        // session's checkpoint could look like that once, so it has to be seen again.
        let no_checkpoint = gaps_without_checkpoint >= 3;
        if !complete && !no_checkpoint {
            continue;
        }
        let listed = wanted.list_blocks || no_checkpoint;
        let replay = if listed {
            listing::rebuild(objects, wanted, &records).await
        } else {
            let replay = from_log(objects, wanted, newest).await;
            replay.map(|replay| replay.map(|replay| (replay, Records::new())))
        };
        if matches!(replay, Ok(None)) {
            continue;
        }
        // Before the log is called damaged, too: where a record was pruned a void claim may stand.
        if last(&objects.checkpoint_numbers().await?) != newest {
            continue;
        }
        let Some((replay, read)) = replay? else {
            continue;
        };
        // What has been superseded since is deleted some time later: a listing that took as long may have found a hole in its place.
        if listed
            && wanted.sources.since(wanted.since) >= GRACE
            && was_changed_since(objects, wanted.end).await?
        {
            return Ok(Reading::Passed);
        }
        if listed && complete && !agrees_with_log(objects, newest, &replay, &read).await? {
            continue;
        }
        (wanted.progress)(Progress::MapKnown {
            stored: replay.map.len(),
        });
        let store_time = records.get(&wanted.end).copied();
        return Ok(Reading::State(Box::new(Loaded {
            replay,
            checkpoints,
            checkpoint: newest,
            store_time,
        })));
    }
    Err(match gap {
        Some(gap) if gap.times == TRIES => lost_record(gap.missing),
        _ => restless(),
    })
}

/// A record that is needed, and missing.
#[derive(Debug, Clone, Copy)]
struct Gap {
    /// The checkpoint after which it is.
    checkpoint: Seq,
    missing: Seq,
    /// How often it was missing in one go.
    times: usize,
}

impl Gap {
    fn seen(before: Option<Gap>, checkpoint: Seq, missing: Seq) -> Gap {
        let same = before.filter(|gap| (gap.checkpoint, gap.missing) == (checkpoint, missing));
        Gap {
            checkpoint,
            missing,
            times: same.map_or(0, |gap| gap.times) + 1,
        }
    }
}

/// Whether checkpoint and log, as far as they can be read, say the same as a listing: a listing alone takes a block that was lost for a
/// hole, or for what it was before. `false` where the checkpoint has gone meanwhile.
///
/// # Errors
/// `Damaged`, naming the first block of which they say something else.
async fn agrees_with_log(
    objects: &Objects,
    checkpoint: Seq,
    listed: &Replay,
    records: &Records,
) -> Result<bool> {
    let mut known = match before_log(objects, checkpoint).await {
        Ok(Some(known)) => known,
        Ok(None) => return Ok(false),
        // A listing is how to do without it.
        Err(error) if error.kind() == ErrorKind::Damaged => return Ok(true),
        Err(error) => return Err(error),
    };
    for (_, stored) in records.range(Seq(checkpoint.0.saturating_add(1))..) {
        known.apply(stored)?;
    }
    let (mut ours, mut theirs) = (known.map.iter(), listed.map.iter());
    loop {
        let (one, other) = (ours.next(), theirs.next());
        if one == other {
            match one {
                Some(_) => continue,
                None => return Ok(true),
            }
        }
        let first = one.into_iter().chain(other).min_by_key(|(index, _)| *index);
        let Some((index, version)) = first else {
            return Ok(true);
        };
        let damaged = objects.damaged(index, &keys::block(index, version));
        return Err(damaged.within(
            "a listing of the blocks does not show what the log says: mount without --list-blocks",
        ));
    }
}

/// Checkpoint and the records after it. `None` where one of them has gone meanwhile.
async fn from_log(
    objects: &Objects,
    wanted: &Wanted<'_>,
    checkpoint: Seq,
) -> Result<Option<Replay>> {
    let Some(mut replay) = before_log(objects, checkpoint).await? else {
        return Ok(None);
    };
    let numbers = (checkpoint.0..wanted.end.0).map(|before| Seq(before + 1));
    let mut records = stream::iter(numbers)
        .map(|seq| objects.record(seq))
        .buffered(wanted.requests);
    while let Some(stored) = records.try_next().await? {
        match stored {
            Some(stored) => replay.apply(&stored)?,
            None => return Ok(None),
        }
    }
    Ok(Some(replay))
}

/// The state of a checkpoint, 0 for that of a new disk. `None` where it has gone meanwhile.
async fn before_log(objects: &Objects, checkpoint: Seq) -> Result<Option<Replay>> {
    if checkpoint == Seq(0) {
        return Replay::empty(objects.geometry.blocks()).map(Some);
    }
    let checkpoint = objects.checkpoint(checkpoint).await?;
    Ok(checkpoint.map(Replay::from_checkpoint))
}

/// Whether the disk has changed, as far as can be known, since a record. The log is looked at first: a commit that is pruned before
/// that is in a checkpoint by then, and the other way round it could be missed in both.
pub(super) async fn was_changed_since(objects: &Objects, seq: Seq) -> Result<bool> {
    let records = objects.record_numbers().await?;
    for later in records.into_keys().filter(|later| *later > seq) {
        match objects.record(later).await? {
            Some(stored) if !matches!(stored.record.body, RecordBody::Commit { .. }) => {}
            _ => return Ok(true),
        }
    }
    Ok(last(&objects.checkpoint_numbers().await?) > seq)
}

/// The key of some block; `None` where there is none, whatever else lies in their folder.
async fn some_block(objects: &Objects) -> Result<Option<String>> {
    let mut after: Option<String> = None;
    loop {
        let page = objects
            .client
            .list(keys::BLOCKS_FOLDER, after.as_deref())
            .await?;
        let is_block = |entry: &&ObjectEntry| keys::parse_block(&entry.key).is_some();
        if let Some(entry) = page.entries.iter().find(is_block) {
            return Ok(Some(entry.key.clone()));
        }
        after = page.entries.last().map(|entry| entry.key.clone());
        if !page.more || after.is_none() {
            return Ok(None);
        }
    }
}

/// A disk without any record or checkpoint is new, and has no blocks: a claim comes before the first of them. Where there are some,
/// log and checkpoints were lost, and taking the disk for an empty one would make zeros of its data.
fn blocks_without_log(objects: &Objects, block: &str) -> Error {
    let text = format!(
        "{} has blocks ({block}) but neither log/ nor map/: put these back as they were, or delete the disk",
        objects.client.location(),
    );
    Error::new(ErrorKind::Damaged, text)
}

/// The highest number; 0 if there is none.
pub(super) fn last(numbers: &Numbers) -> Seq {
    numbers.last_key_value().map_or(Seq(0), |(seq, _)| *seq)
}

/// The error for a log of which one record is missing for good.
fn lost_record(seq: Seq) -> Error {
    let text = format!(
        "log record {} is missing: put the object back as it was",
        keys::record(seq)
    );
    Error::new(ErrorKind::Damaged, text)
}

fn restless() -> Error {
    Error::new(
        ErrorKind::Unreachable,
        "the disk's log changes faster than it can be read; try again",
    )
}
