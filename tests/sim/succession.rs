//! Machines with a journal, as the bucket's judge sees them: what a session begins with that goes on with the journal of the one before it,
//! and what crashes at the calls to a local disk leave, see `remains`.

use std::sync::Arc;

use bucketdisk::store::versioned::SessionId;
use rand::RngExt;

use super::super::local;
use super::super::remains::{self, LocalCrash};
use super::super::stamp::{Stamps, difference};
use super::super::support::memory::Bucket;
use super::{Judge, number_of};

impl Judge<'_> {
    /// Whether only sessions of its machine that were to go on with its journal have claimed the disk since `root` did, as far as `holder`.
    fn is_intact(&self, root: SessionId, holder: Option<SessionId>) -> bool {
        let goes_on = |holder| self.goes_on_after.get(&holder) == Some(&root);
        holder.is_some_and(|holder| holder == root || goes_on(holder))
    }

    /// The states of a session, and what its journal was told with each.
    fn states_of(&self, session: SessionId) -> (Vec<Stamps>, Vec<Option<usize>>) {
        match self.truth.of(session) {
            Some(branch) => {
                let states = branch.states.iter();
                states
                    .map(|state| (Arc::clone(&state.stamps), state.told))
                    .unzip()
            }
            None => (
                self.first.get(&session).into_iter().cloned().collect(),
                vec![None],
            ),
        }
    }

    /// A session has claimed the disk: what it begins with, its journal's writes over what is shown, has to be what the session before it
    /// on its machine has left, and that session not fenced.
    pub(super) fn goes_on(&mut self, session: SessionId, shown: &Stamps) -> Result<(), String> {
        let Some(heir) = self.truth.heirs.get(&session).cloned() else {
            return Ok(());
        };
        let holder = self.holder.map(|(holder, _)| holder);
        let intact = heir.of.filter(|root| self.is_intact(*root, holder));
        // It may have claimed the disk before, and lost it again before it had mounted.
        self.goes_on_after.remove(&session);
        if let Some(root) = intact {
            self.goes_on_after.insert(session, root);
        }
        // It has died, or failed, before it went on with the journal.
        let Some(applied) = &heir.applied else {
            return Ok(());
        };
        let first = local::with(shown, applied);
        self.first.insert(session, Arc::clone(&first));
        let Some(root) = heir.of else {
            return match applied.is_empty() {
                true => Ok(()),
                false => Err("a new journal has something in it".to_owned()),
            };
        };
        let branch = self.truth.of(root);
        let acked = branch.map_or(0, |branch| branch.acked);
        let attempt = branch.and_then(|branch| branch.attempt.as_ref());
        let (states, _) = self.states_of(root);
        if intact.is_some() {
            let from = if heir.has_all {
                states.len() - 1
            } else {
                acked
            };
            if !remains::among(&states[from..], attempt, &first) {
                let place = states.iter().rposition(|state| *state == first);
                return Err(format!(
                    "session {session} goes on after {root}, of whose {} states none from {from} on is there, but {place:?}: \
                     sectors {}",
                    states.len(),
                    difference(&first, &states[states.len() - 1])
                ));
            }
            self.tally
                .count("crashes that a journal was gone on with after");
            return Ok(());
        }
        if !applied.is_empty() {
            return Err(format!(
                "session {session} applies the journal of {root}, which had lost the disk"
            ));
        }
        let left = self.left.get(&root);
        let kept = left.is_some_and(|left| states[acked..].contains(left));
        match kept || heir.discards {
            true => Ok(()),
            false => Err(format!(
                "session {session} drops what {root} had acknowledged and not committed"
            )),
        }
    }

    /// Machines with a journal that die at this point.
    pub(super) async fn local_crashes(&mut self) -> Result<(), String> {
        while let Some(remains) = self.truth.remains.get(self.local_judged).cloned() {
            if remains.changes > self.cut {
                return Ok(());
            }
            self.local_judged += 1;
            let bucket = self.bucket.fork();
            if self.random.random_bool(0.5) {
                let (sent, random) = (remains.sent, &mut self.random);
                let [landed, _] = self.flights.under_way_of(sent, self.cut, random);
                landed
                    .into_iter()
                    .for_each(|mutation| bucket.mutate(mutation));
            }
            let root = remains.known.root;
            let holder = self.holder.map(|(holder, _)| holder);
            let landed = self
                .holder_of(&bucket)
                .filter(|landed| Some(*landed) != holder);
            let heir = landed.and_then(|landed| self.truth.heirs.get(&landed));
            let stays = landed.is_none() || heir.is_some_and(|heir| heir.of == root);
            let (mut states, mut told) = root.map(|root| self.states_of(root)).unwrap_or_default();
            states.truncate(remains.states.max(1));
            told.truncate(remains.states.max(1));
            let crash = LocalCrash {
                world: self.world,
                bucket,
                remains: &remains,
                states,
                told,
                below: self.allowed(),
                intact: stays && root.is_some_and(|root| self.is_intact(root, holder)),
            };
            let seed = self.random.random();
            let kind = crash.judge(seed).await?;
            self.tally.count(kind);
            self.tally.count("crash points");
            self.tally.count("crash points with a journal");
        }
        Ok(())
    }

    /// Who has claimed the disk last in a bucket.
    fn holder_of(&self, bucket: &Bucket) -> Option<SessionId> {
        let keys = bucket.keys().into_iter();
        let numbers = keys.filter_map(|key| Some((number_of(&key, "log/")?, key)));
        let (number, key) = numbers.max()?;
        let record = self.world.decode(number, &bucket.body(&key)?)?;
        Some(record.session)
    }
}
