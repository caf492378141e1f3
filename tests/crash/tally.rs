//! What a run has seen.

use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub struct Tally {
    pub kills: u32,
    /// When the last one was.
    pub last: &'static str,
    pub moments: BTreeMap<&'static str, u32>,
    /// Disks on which btrfs had a file under its old and its new name.
    pub two_names: u32,
    /// Kills of machines that keep a journal.
    pub with_journal: u32,
    /// Kills that left blocks of a commit without its record.
    pub unfinished: u32,
    /// Records that were put by sessions while they worked.
    pub commits: u64,
    /// Flushes that were acknowledged before a kill.
    pub acknowledged: u64,
    pub violations: Vec<String>,
}

impl Tally {
    pub fn add(&mut self, other: Tally) {
        self.kills += other.kills;
        for (moment, count) in other.moments {
            *self.moments.entry(moment).or_default() += count;
        }
        self.unfinished += other.unfinished;
        self.with_journal += other.with_journal;
        self.two_names += other.two_names;
        self.commits += other.commits;
        self.acknowledged += other.acknowledged;
        self.violations.extend(other.violations);
    }

    /// The kills at each moment.
    pub fn moments(&self) -> String {
        let each = self
            .moments
            .iter()
            .map(|(moment, count)| format!("{count} {moment}"));
        each.collect::<Vec<_>>().join(", ")
    }
}
