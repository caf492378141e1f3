//! How often each thing has happened: what a simulation that is to prove anything must have come across.

use std::collections::BTreeMap;

/// What has to happen at least once in any set of seeds that counts as a test.
pub const INTERESTING: &[&str] = &[
    // What users do, and are told.
    "writes",
    "discards of whole blocks",
    "discards within blocks",
    "changes that found no room",
    "flushes acknowledged",
    "flushes refused as fenced",
    "flushes failed",
    "reads checked",
    "reads during commits",
    "unmounts acknowledged",
    "read-only mounts",
    "read-only reads checked",
    "superseded reads",
    // Who has the disk.
    "mounts refused as held",
    "resumes of an own session",
    "take-overs from the dead",
    "take-overs while the other lives",
    "sessions that know they are fenced",
    "sessions that lost nothing by being fenced",
    "sleepers that have lost the disk",
    "void claims",
    "void claims given up",
    // What befalls a machine.
    "crashes",
    "crashes that take the local disk",
    "crashes while mounting",
    "crashes in a commit that lands",
    "crashes in a commit that does not land",
    "sleeps",
    "weeks asleep",
    "clocks that go on without the machine",
    "machines cut off",
    "the store is away",
    "the store refuses everything",
    "the store is full",
    "blocks damaged for a while",
    "records in doubt",
    // What befalls a machine with a journal.
    "flushes acknowledged by the journal",
    "crashes that leave a journal",
    "crashes that cut the power of a journal",
    "crashes that a journal was gone on with after",
    "journals applied",
    "mounts refused for their journal",
    "local disks that fail a mount",
    "mounts that the local disk failed",
    "local disks that fail",
    "local disks that are full",
    "changes that the local disk refused",
    "local crash points of the program",
    "local crash points of the power",
    "local crash points of fenced sessions",
    "local crash points with damage that shows",
    "local crash points with damage that does not matter",
    "local crash points with a damaged state that does not matter",
    // What comes of it in the bucket.
    "commits",
    "commits given up",
    "heartbeats",
    "releases",
    "checkpoints",
    "records pruned",
    "garbage deleted",
    // What befalls a request.
    "lost answers",
    "lost requests",
    "delays",
    "late duplicates applied",
    "late requests applied",
    "resets",
    "stalls",
    "stalls of requests that land",
    "truncated bodies",
    "half deletions",
    "short pages",
    "lagging listings",
    "503 with Retry-After",
    "429",
    "403",
    "other 5xx",
    // How the bucket is judged.
    "crash points",
    "crash points with a journal",
    "crash points with requests under way applied",
    "crash points written on",
    "crash points with damage that shows",
];

/// What counts as an operation of a user.
pub const OPERATIONS: &[&str] = &[
    "writes",
    "discards of whole blocks",
    "discards within blocks",
    "flushes acknowledged",
    "reads checked",
    "read-only reads checked",
];

/// Counts by name.
#[derive(Debug, Clone, Default)]
pub struct Tally(BTreeMap<&'static str, u64>);

impl Tally {
    pub fn count(&mut self, name: &'static str) {
        self.add(name, 1);
    }

    pub fn add(&mut self, name: &'static str, many: u64) {
        *self.0.entry(name).or_default() += many;
    }

    pub fn of(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    pub fn merge(&mut self, other: &Tally) {
        for (name, many) in &other.0 {
            self.add(name, *many);
        }
    }

    /// What of [`INTERESTING`] has not happened.
    pub fn missing(&self) -> Vec<&'static str> {
        let missing = INTERESTING.iter().filter(|name| self.of(name) == 0);
        missing.copied().collect()
    }

    /// How many operations of users.
    pub fn operations(&self) -> u64 {
        OPERATIONS.iter().map(|name| self.of(name)).sum()
    }

    /// All counts on lines of text.
    pub fn lines(&self) -> String {
        let each = self
            .0
            .iter()
            .map(|(name, many)| format!("  {many:>9} {name}\n"));
        each.collect()
    }
}
