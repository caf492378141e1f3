//! The moments at which a daemon is killed.

use std::time::{Duration, Instant};

use rand::RngExt;
use rand::rngs::SmallRng;

use crate::bucket::Bucket;
use crate::pulse::Pulse;

/// A moment of a mount's life. The durations are drawn beforehand; what the machine does until then is its own.
#[derive(Debug, Clone, Copy)]
pub enum Moment {
    /// While everyone writes.
    Working(Duration),
    /// So long after a flush has begun.
    Flush(Duration),
    /// So long after the bucket has had blocks of a commit whose record it had not.
    Commit(Duration),
    /// While everyone works, so long after a checkpoint was stored; where there is none for a while, at any moment.
    Upkeep(Duration),
    /// So long after everything was synced, and nothing was written since.
    Idle(Duration),
    /// So long after the unmount of the file system has begun.
    Unmount(Duration),
    /// So long after `bucketdisk umount` has begun, which commits, writes a checkpoint and releases the disk.
    Leave(Duration),
    /// In `bucketdisk umount`, when the checkpoint has just been stored.
    Checkpoint,
}

impl Moment {
    pub fn draw(random: &mut SmallRng) -> Moment {
        let mut upto = |millis: u64| Duration::from_micros(random.random_range(0..millis * 1000));
        let (long, short) = (upto(1800), upto(60));
        match random.random_range(0..20) {
            0..5 => Moment::Working(long),
            5..7 => Moment::Flush(short / 4),
            7..12 => Moment::Commit(short / 4),
            12 => Moment::Upkeep(short / 4),
            13..15 => Moment::Idle(short),
            15..17 => Moment::Unmount(short * 2),
            17..19 => Moment::Leave(short),
            _ => Moment::Checkpoint,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Moment::Working(_) => "while files were written",
            Moment::Flush(_) => "after a flush had begun",
            Moment::Commit(_) => "during a commit",
            Moment::Upkeep(_) => "after a checkpoint at work",
            Moment::Idle(_) => "when all was synced",
            Moment::Unmount(_) => "during umount",
            Moment::Leave(_) => "during bucketdisk umount",
            Moment::Checkpoint => "after the checkpoint of bucketdisk umount",
        }
    }

    /// Whether the kill comes while everyone works.
    pub fn is_at_work(self) -> bool {
        matches!(
            self,
            Moment::Working(_) | Moment::Flush(_) | Moment::Commit(_) | Moment::Upkeep(_)
        )
    }

    /// Whether it can come where nobody flushes.
    pub fn may_be_quiet(self) -> bool {
        !matches!(self, Moment::Flush(_) | Moment::Upkeep(_))
    }

    /// Lets everyone work until the moment has come, or for a while where it is yet to come.
    pub fn wait_at_work(self, pulse: &Pulse, bucket: &Bucket, work: Duration) {
        match self {
            Moment::Working(after) => std::thread::sleep(after),
            Moment::Flush(after) => {
                std::thread::sleep(work);
                let begun = pulse.begun();
                until(|| pulse.is_stopped() || pulse.begun() > begun);
                std::thread::sleep(after);
            }
            Moment::Commit(after) => {
                std::thread::sleep(work);
                until(|| pulse.is_stopped() || bucket.is_committing());
                std::thread::sleep(after);
            }
            Moment::Upkeep(after) => {
                let before = bucket.checkpoint();
                until(|| pulse.is_stopped() || bucket.checkpoint() > before);
                std::thread::sleep(after);
            }
            _ => std::thread::sleep(work),
        }
    }

    /// The moment after work has ended and what follows has been begun. `over` tells that it has ended.
    pub fn wait_after(self, bucket: &Bucket, checkpoint: u32, mut over: impl FnMut() -> bool) {
        match self {
            Moment::Idle(after) | Moment::Unmount(after) | Moment::Leave(after) => {
                std::thread::sleep(after);
            }
            _ => until(|| bucket.checkpoint() > checkpoint || over()),
        }
    }
}

/// Waits, closely, for what may be over within a millisecond; for three seconds at most, and then any moment will do.
fn until(mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(3);
    while !holds() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_micros(200));
    }
}
