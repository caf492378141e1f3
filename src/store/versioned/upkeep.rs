//! What a mounted disk does beside committing: deletes what was superseded, writes checkpoints, prunes the log, and lets others
//! know that it lives.
//!
//! The order of a checkpoint: first the checkpoint, then the records that it covers, and of those only the ones whose deletions are
//! done (so that a listing of the blocks never brings a hole back to life), and never a claim (a writer that has slept finds
//! by it that it was fenced).

use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::block::{BlockIndex, Seq};
use crate::error::{Error, ErrorKind, Result};
use crate::object::BATCH;

use super::checkpoint::{CheckpointView, Garbage, LastSession};
use super::keys;
use super::listing;
use super::mount::host_name;
use super::record::RecordBody;
use super::volume::VersionedStore;

/// How long a superseded object is kept for readers elsewhere that still have the state that names it.
pub(super) const GRACE: Duration = Duration::from_secs(5 * 60);
/// Records between two checkpoints.
pub(super) const CHECKPOINT_EVERY: u32 = 128;
/// How often there is a look at what is due.
const ROUND: Duration = Duration::from_secs(30);
/// A session that has written no record for this long writes a heartbeat.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(10 * 60);
/// A log longer than this is worth a checkpoint at unmount even if nothing was written.
const LONG_TAIL: u32 = 16;

/// The task of a mount for writing; ends with the mount, which it does not keep alive.
pub(super) async fn run(store: Weak<VersionedStore>, wanted: Arc<Notify>, leftovers: bool) {
    let mut leftovers = leftovers;
    loop {
        {
            let Some(store) = store.upgrade() else { return };
            if store.fenced().is_some() {
                return;
            }
            if leftovers {
                match store.sweep().await {
                    Ok(()) => leftovers = false,
                    Err(error) => tracing::warn!(
                        error = error.chain(),
                        "looking for leftovers of a crash failed; trying again"
                    ),
                }
            }
            if let Err(error) = store.round().await {
                // Whoever uses the disk is told that it is fenced, and tells.
                if error.kind() == ErrorKind::Fenced {
                    return;
                }
                tracing::warn!(error = error.chain(), "upkeep failed; trying again");
            }
        }
        tokio::select! {
            biased; // in one order, so that a run repeats
            () = tokio::time::sleep(ROUND) => {}
            () = wanted.notified() => {}
        }
    }
}

/// When garbage that a checkpoint already knew of may be deleted, given the store's times of the checkpoint and of now.
pub(super) fn due_of_old_garbage(
    checkpoint: Option<SystemTime>,
    now: Option<SystemTime>,
) -> Instant {
    let age = match (checkpoint, now) {
        (Some(then), Some(now)) => now.duration_since(then).unwrap_or_default(),
        _ => Duration::ZERO,
    };
    Instant::now() + GRACE.saturating_sub(age)
}

impl VersionedStore {
    /// What is due. A part that fails keeps none of the others from being done: some stores refuse to delete.
    async fn round(&self) -> Result<()> {
        let deleted = self.delete_due_garbage().await;
        let (head, checkpoint) = {
            let view = self.view.read();
            (view.head, view.checkpoint)
        };
        let shortened = match head.0.saturating_sub(checkpoint.0) >= CHECKPOINT_EVERY {
            true => self.shorten_log().await,
            false => Ok(()),
        };
        let told = self.heartbeat().await;
        deleted.and(shortened).and(told)
    }

    /// Writes a checkpoint, then prunes what it makes superfluous.
    async fn shorten_log(&self) -> Result<()> {
        self.write_checkpoint().await?;
        self.prune().await
    }

    /// Deletes superseded objects whose time has come, one request's worth at a time: a discarded disk leaves millions.
    async fn delete_due_garbage(&self) -> Result<()> {
        loop {
            let now = Instant::now();
            let due = {
                let view = self.view.read();
                view.garbage
                    .first_key_value()
                    .filter(|(due, _)| **due <= now)
                    .map(|(due, all)| (*due, all[all.len().saturating_sub(BATCH)..].to_vec()))
            };
            let Some((due, last)) = due else {
                return Ok(());
            };
            let names: Vec<String> = last
                .iter()
                .map(|g| keys::block(g.index, g.version))
                .collect();
            self.objects.client.delete_many(&names).await?;
            let mut view = self.view.write();
            // Nothing is ever added under a moment that has passed, so these are still the last ones; unless the other of this
            // task and the release was here too, and has deleted them.
            if let Some(all) = view.garbage.get_mut(&due)
                && all.ends_with(&last)
            {
                all.truncate(all.len() - last.len());
                if all.is_empty() {
                    view.garbage.remove(&due);
                }
            }
        }
    }

    /// Writes the map as of the head.
    async fn write_checkpoint(&self) -> Result<()> {
        let (seq, object) = {
            let view = self.view.read();
            let checkpoint = CheckpointView {
                seq: view.head,
                head: view.digest,
                last: LastSession {
                    session: self.session,
                    claim: view.claim,
                    released: false,
                    host: host_name(),
                    pid: std::process::id(),
                },
                map: &view.map,
                garbage: view.garbage.values().flatten().copied().collect(),
                unpruned: &view.unpruned,
            };
            let checkpoint = checkpoint.encode(&*self.objects.codec, self.objects.disk);
            (view.head, checkpoint)
        };
        self.objects.put_checkpoint(seq, object).await?;
        let mut view = self.view.write();
        view.checkpoint = seq;
        view.checkpoints.push(seq);
        view.changed = view.head != seq && view.changed;
        Ok(())
    }

    /// Deletes the records that the newest checkpoint has made superfluous, and the older checkpoints.
    async fn prune(&self) -> Result<()> {
        let (records, checkpoints) = {
            let view = self.view.read();
            // A record whose commit superseded something is needed until that is deleted.
            let needed = view
                .garbage
                .values()
                .flatten()
                .map(|g| g.superseded_by)
                .min();
            let limit = needed.map_or(view.checkpoint, |first| {
                view.checkpoint.min(Seq(first.0.saturating_sub(1)))
            });
            let records: Vec<Seq> = view
                .unpruned
                .iter()
                .copied()
                .filter(|seq| *seq <= limit)
                .collect();
            let checkpoints: Vec<Seq> = view
                .checkpoints
                .iter()
                .copied()
                .filter(|seq| *seq < view.checkpoint)
                .collect();
            (records, checkpoints)
        };
        let names = records
            .iter()
            .map(|seq| keys::record(*seq))
            .chain(checkpoints.iter().map(|seq| keys::checkpoint(*seq)));
        let names: Vec<String> = names.collect();
        if names.is_empty() {
            return Ok(());
        }
        self.objects.client.delete_many(&names).await?;
        let mut view = self.view.write();
        view.unpruned
            .retain(|seq| records.binary_search(seq).is_err());
        view.checkpoints.retain(|seq| !checkpoints.contains(seq));
        Ok(())
    }

    /// Writes a heartbeat if no record was written for long, and no commit is unfinished: that one has the next number.
    async fn heartbeat(&self) -> Result<()> {
        let Ok(mut log) = self.log.try_lock() else {
            return Ok(());
        };
        if log.attempt.is_some() || self.sources.since(log.last_record) < HEARTBEAT {
            return Ok(());
        }
        self.begin_record(&mut log).await?;
        self.write_record(&mut log, RecordBody::Heartbeat).await
    }

    /// The end of a session: a checkpoint if it is worth one, then the record that frees the disk.
    pub(super) async fn write_release(&self) -> Result<()> {
        let mut log = self.log.lock().await;
        let releasing = log
            .pending
            .as_ref()
            .is_some_and(|(record, _)| record.body == RecordBody::Release);
        self.begin_record(&mut log).await?;
        if releasing {
            return Ok(());
        }
        if log.attempt.is_some() {
            // Its blocks may be half stored under the next number, which then may only ever be a claim's.
            return Err(Error::new(
                ErrorKind::Busy,
                "a commit is unfinished, so the disk stays claimed",
            ));
        }
        let deleted = self.delete_due_garbage().await;
        let (head, checkpoint, changed) = {
            let view = self.view.read();
            (view.head, view.checkpoint, view.changed)
        };
        let mut pruned = Ok(());
        if changed || head.0.saturating_sub(checkpoint.0) >= LONG_TAIL {
            self.write_checkpoint().await?;
            pruned = self.prune().await;
        }
        if let Err(error) = deleted.and(pruned) {
            tracing::warn!(
                error = error.chain(),
                "what is superfluous could not be deleted; it is left to a later session"
            );
        }
        self.write_record(&mut log, RecordBody::Release).await
    }

    /// Finds blocks that a crashed session stored and never committed, and hands them to the garbage. Only versions up to this
    /// mount's own claim are looked at: later ones are this session's.
    async fn sweep(&self) -> Result<()> {
        let claim = self.view.read().head;
        let mut candidates: Vec<(BlockIndex, Seq)> = Vec::new();
        let quiet: super::OnProgress = Arc::new(|_| {});
        listing::for_each_block(&self.objects, self.requests, &quiet, |index, version| {
            if version <= claim && self.view.read().map.get(index) != Some(version) {
                candidates.push((index, version));
            }
        })
        .await?;
        let mut view = self.view.write();
        let known: std::collections::HashSet<(BlockIndex, Seq)> = view
            .garbage
            .values()
            .flatten()
            .map(|g| (g.index, g.version))
            .collect();
        let found: Vec<Garbage> = candidates
            .into_iter()
            .filter(|(index, version)| {
                view.map.get(*index) != Some(*version) && !known.contains(&(*index, *version))
            })
            .map(|(index, version)| Garbage {
                index,
                version,
                superseded_by: claim,
            })
            .collect();
        if !found.is_empty() {
            tracing::info!(
                objects = found.len(),
                "found blocks that a crashed session left; deleting them"
            );
            view.garbage
                .entry(Instant::now() + GRACE)
                .or_default()
                .extend(found);
            // So that the checkpoint at the end tells the next session, should this one end before they are due.
            view.changed = true;
        }
        Ok(())
    }
}
