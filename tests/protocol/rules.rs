//! The rules of the protocol, one switch each: what the program does, and where; and what goes wrong without. The search shows that:
//! `cargo test --test protocol without -- --nocapture` prints for each the shortest path to it. `without` says in which scene, and what
//! is violated at its end.

use std::fmt;

macro_rules! rules {
    ($($(#[doc = $text:literal])+ $name:ident),+ $(,)?) => {
        /// One rule.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Rule {
            $($(#[doc = $text])+ $name),+
        }

        impl Rule {
            /// All of them.
            pub const ALL: &[Rule] = &[$(Rule::$name),+];

            fn text(self) -> &'static [&'static str] {
                match self {
                    $(Rule::$name => &[$($text),+]),+
                }
            }
        }
    };
}

rules! {
    // Committing
    /// A commit's record is put when all its blocks are acknowledged (`commit_changes`).
    /// Without: a crash after the record leaves a map that names blocks which were never stored.
    BlocksBeforeRecord,
    /// Records are put create-if-absent (`put_record`).
    /// Without: two machines put the same number, and the second overwrites the first: a record that was acknowledged is lost, and
    /// with it a claim or a whole commit.
    CreateIfAbsent,
    /// A record that is there already is read, and compared with the one that was sent (`put_record`).
    /// Without: a session takes another's record for its own. It believes that its commit is in the log, and nobody ever sees it.
    ReadBack,
    /// A record in doubt is put again, as the same bytes, before anything else is written (`begin_record`).
    /// Without: the next record finds the number taken by the session's own earlier one, whose answer was lost. The session takes
    /// itself for fenced though nobody has claimed the disk.
    PendingFirst,
    /// What a commit supersedes is deleted after its record was put (`append`).
    /// Without: a crash between deletion and record leaves the old state, whose blocks are gone.
    DeleteAfterRecord,
    /// It is deleted after the record was acknowledged (`append`).
    /// Without: the record may never come, or another session's claim has its number: blocks are deleted that the disk still has, or
    /// that the successor of a fenced session has.
    DeleteAfterAnswer,

    // Heartbeat and release
    /// A heartbeat waits for an unfinished commit (`heartbeat`).
    /// Without: both go under one number. Whichever comes second finds the other there, and the session takes itself for fenced though
    /// nobody has claimed the disk.
    HeartbeatWaits,
    /// A release is refused while a commit is unfinished (`write_release`).
    /// Without: the number of the commit belongs to a release. A block of that commit may arrive later, and a listing takes it for one
    /// of the disk, since no claim has its number.
    ReleaseWaits,
    /// A release goes under the number after its session's own head, and no other (`write_release`).
    /// Without: a session that has been fenced, and does not know it, frees the disk that its successor holds.
    ReleaseAtOwnHead,

    // Giving a commit up
    /// A commit's content changes only after a record has used up its number (`give_up_commit`).
    /// Without: a late request of the first try stores the old content over the new under one version. The commit is a mix.
    GiveUpBurns,
    /// A commit is given up by a claim, and not by a heartbeat (`give_up_commit`).
    /// Without: the heartbeat is pruned one day. A block of the commit that arrives after that has a number of which nothing says that
    /// it was no commit, and a listing takes it for one of the disk.
    GiveUpByClaim,
    /// A commit is not given up once its record may have been sent (`give_up_commit`).
    /// Without: the record may be there. The claim that is to give the commit up finds it under its number, and the session takes
    /// itself for fenced.
    GiveUpBeforeRecord,

    // Mounting
    /// A mount for writing asks who holds the disk before it claims it (`may_claim`).
    /// Without: a second mount by mistake takes the disk from a session that lives.
    AskHolder,
    /// Whoever goes on after a dead session of its own machine claims the disk like any other (`mount`).
    /// Without: it commits under the very number that the dead session was about to use. A late request of that one overwrites a block
    /// of the new commit with other content: a mix.
    ResumeClaims,
    /// The first look takes the checkpoint of a number for true, and not a claim that stands under it (`FirstLook::take`).
    /// Without: a void claim is taken for the newest record. The disk seems to be held by one who never had it; and a claim that names
    /// it as the record before would break the log for good.
    CheckpointCounts,
    /// The first look lists the checkpoints once more after it has read the newest record (`FirstLook::take`).
    /// Without: the record can be pruned, and a void claim come in its place, after the checkpoints were listed: the same happens.
    FirstLookAgain,
    /// Blocks without log and checkpoint are called damage only if a second look at the log finds nothing either
    /// (`FirstLook::take`).
    /// Without: a new disk is called damaged if its first writer comes between the two listings.
    LogAgainBeforeDamage,
    /// The state is read, and the checkpoints that void the claim are looked for, after the claim was put (`mount`, `load`).
    /// Without: what is committed and pruned between reading and claim is missing from the mounted disk, and the claim does not hold.
    ClaimBeforeRead,
    /// A checkpoint at or past the claim voids it (`load`).
    /// Without: a slow claim lands under a number that was used and pruned, and its session mounts. It fences nobody: the one that
    /// holds the disk goes on beside it.
    VoidClaims,
    /// A void claim is left where it is (`mount`).
    /// Without: it may have fenced somebody before it was passed over. Once it is deleted, that one's next commit finds the number
    /// free: it is acknowledged, and nobody ever sees it.
    LeaveVoidClaims,
    /// A checkpoint or record that was listed and is gone means that there is a newer checkpoint: begin again (`load`).
    /// Without: a sound disk is called damaged because its writer has pruned the log.
    GoneIsNoDamage,
    /// The checkpoints are listed once more after the records were read (`load`).
    /// Without: a record can be pruned while the log is read, and a void claim come in its place that follows the record before it. What
    /// is mounted lacks the commit that was there.
    MapsAgain,
    /// They are also listed before a record that does not follow the one before it is called damage (`load`).
    /// Without: such a void claim, read together with what follows the true record, makes a sound log look spliced.
    MapsAgainBeforeDamage,

    // Checkpoints and pruning
    /// A checkpoint is of the newest acknowledged record, and not of what is being committed (`write_checkpoint`).
    /// Without: the record may never come. The next mount stands on a state that nobody committed, and after a number that is in no
    /// log.
    CheckpointOfHead,
    /// A session puts no checkpoint of its own release (`write_release`: the checkpoint comes first).
    /// Without: the checkpoint names its session as the holder, and after the release is pruned the free disk seems to be held.
    CheckpointBeforeRelease,
    /// A checkpoint is deleted only when a newer one is durable (`prune`).
    /// Without: a crash between leaves none, and the records before it are pruned: nobody can mount.
    NewCheckpointBeforeOldGoes,
    /// A record is pruned only when a checkpoint that covers it is durable (`shorten_log`).
    /// Without: a crash between leaves neither: the log has a hole, and nobody can mount.
    CheckpointBeforePrune,
    /// Claims are never pruned (`note`, `append`: only other records are counted as to be pruned).
    /// Without: a writer that has slept since before the claim finds its next number free. Its commit is acknowledged, and nobody ever
    /// sees it.
    KeepClaims,
    /// A record is pruned only when the deletions that it caused are done (`prune`).
    /// Without: a listing finds a block in its last version, and no record that says that it became a hole: old data is back.
    DeleteBeforePrune,
    /// A checkpoint carries the garbage that is not deleted yet (`write_checkpoint`).
    /// Without: whoever mounts from it believes that nothing is left to delete, prunes the record of the hole, and the same happens.
    CheckpointKeepsGarbage,

    // Garbage, and those who read meanwhile
    /// Garbage is deleted some minutes after it was superseded (`GRACE`).
    /// Without: a listing that began before finds a hole where a version was deleted whose successor is too new for it.
    Grace,
    /// A reader that finds a block missing looks whether the disk has changed since it was mounted (`missing`).
    /// Without: it calls a disk damaged that was only written elsewhere.
    AskWhyGone,
    /// Whether the disk has changed is looked up in the log first, and then among the checkpoints (`was_changed_since`).
    /// Without: a commit that goes from the log into a checkpoint between the two is seen in neither, and the same happens.
    ChangesInLogFirst,
    /// The sweep takes no version that is newer than the head at which it began (`sweep`).
    /// Without: it deletes the blocks that the session itself is about to commit.
    SweepSparesNewer,
    /// The sweep takes no version that the map names (`sweep`).
    /// Without: it deletes the disk.
    SweepSparesMap,

    // Listing the blocks
    /// A listing takes no version that is newer than the end of the state (`listing::rebuild`).
    /// Without: what is mounted has blocks of a commit that is not finished, or only some blocks of a newer one: a mix.
    ListUpToEnd,
    /// A listing takes no version with the number of a claim (`listing::rebuild`).
    /// Without: blocks that a dead session stored for a commit that never came to be are taken for blocks of the disk.
    ListSkipsClaims,
    /// Void claims do not count in that: they are not in the chain of claims (`listing::claims`).
    /// Without: a void claim stands where the record of a commit was pruned, and the blocks of that commit are passed over: holes, or old
    /// versions, in their place.
    ListKnowsVoidClaims,
    /// A listing takes no version that is older than a record which made the block a hole (`punch_holes`).
    /// Without: a hole whose old version is not deleted yet has its old data back.
    ListHides,
    /// The records are listed and read before the blocks are listed (`listing::rebuild`).
    /// Without: the old version is listed, then deleted, then the record of the hole is pruned; and the listing knows nothing of the hole.
    ListRecordsFirst,
    /// What a listing finds to be older than another version was superseded by that one, and not by the newest record
    /// (`listing::rebuild`).
    /// Without: of two old versions of a hole the newer one is deleted first, the record of the hole is pruned, and the next listing
    /// takes the other for the block.
    ListKnowsSuperseder,
    /// A mount whose listing took as long as the grace looks whether the disk has changed meanwhile (`load`).
    /// Without: it finds a hole where a version was deleted whose successor is too new for it.
    SlowListingLooksAgain,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}:{}", self.text().concat())
    }
}

/// The rules that are kept: all, or all but one.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    broken: u64,
}

impl Rules {
    pub const ALL: Rules = Rules { broken: 0 };

    /// All but one.
    pub fn without(rule: Rule) -> Rules {
        Rules {
            broken: 1 << rule as u64,
        }
    }

    pub fn keep(&self, rule: Rule) -> bool {
        self.broken & (1 << rule as u64) == 0
    }
}
