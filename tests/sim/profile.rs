//! Kinds of worlds: who does what how often, and what the network is like. The seed chooses one.
//!
//! Most keep to what the layout asks of a store. Two do not, and are judged without a listing of the blocks, which
//! bucketdisk-layout(5) calls the second choice for that reason: in one, requests land hours late; in the other, listings lag behind.

use std::ops::Range;
use std::time::Duration;

use bucketdisk::error::ErrorKind;
use rand::RngExt;
use rand::rngs::SmallRng;

use super::support::fault::{Fault, Weather};

/// Draws the figures of a fault.
type Draw = fn(&mut SmallRng) -> Fault;

/// Figures of a world; shares are from 0 to 1, times in milliseconds.
#[derive(Debug, Clone)]
pub struct Profile {
    pub name: &'static str,
    pub blocks: u64,
    /// The world ends when its bucket has seen so many changes.
    pub changes: usize,
    /// How long a session lasts, and what is between two of a machine.
    pub session: Range<u64>,
    pub pause: Range<u64>,
    /// Between two operations of a session, and between two mounts of the viewer.
    pub think: Range<u64>,
    pub views: Range<u64>,
    pub commit_interval: Duration,
    pub max_dirty_blocks: u64,
    /// Of writes: those that fill whole blocks one after the other, as a first backup does, and so supersede nothing.
    pub appends: f64,
    /// Of operations: discards and flushes; the others are writes.
    pub discards: f64,
    pub flushes: f64,
    /// Of sessions: those that end in a crash.
    pub crashes: f64,
    /// Of operations: those at which a block cannot be fetched undamaged for a while.
    pub damages: f64,
    /// Of mounts refused because the other machine holds the disk: those that take it over.
    pub takeovers: f64,
    /// Of mounts: those whose claim takes long on its way.
    pub slow_claims: f64,
    /// Of operations: those at which the machine falls asleep, and for how long.
    pub sleeps: f64,
    pub sleep: Range<u64>,
    /// The second machine is there.
    pub rival: bool,
    /// Of machines: those that keep a journal.
    pub journals: f64,
    /// Of mounts with a journal: those that the local disk fails. Of operations: a tenth of that, and as much for the want of space.
    pub local_trouble: f64,
    /// Of calls to a local disk: those at which a crash is looked at.
    pub local_looks: f64,
    /// How much goes wrong in the network; 1 is bad weather.
    pub trouble: f64,
    pub latency_ms: Range<u64>,
    /// Requests may land so long after they were sent that what they store was superseded and deleted.
    pub late: bool,
    /// The most by which a listing lags behind.
    pub lag: Duration,
}

const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// The latest that a request lands after it was sent. Less than the five minutes for which superseded objects are kept: a version
/// that is brought back after its deletion can deceive a listing of the blocks.
const LATEST: u64 = 200 * SECOND;
/// The same in the world where requests are late.
const LATE: u64 = 8 * HOUR;
/// The most by which a listing lags behind, in the world where they do.
const LAG: u64 = 10 * SECOND;

impl Profile {
    /// The profile of a seed.
    pub fn of(seed: u64) -> Profile {
        let steady = Profile {
            name: "steady",
            blocks: 12,
            changes: 700,
            session: 3 * MINUTE..20 * MINUTE,
            pause: 0..20 * SECOND,
            think: 0..1500,
            views: SECOND..200 * SECOND,
            commit_interval: Duration::from_secs(5),
            max_dirty_blocks: 8,
            appends: 0.0,
            discards: 0.2,
            flushes: 0.15,
            crashes: 0.5,
            damages: 0.004,
            takeovers: 0.05,
            slow_claims: 0.02,
            sleeps: 0.001,
            sleep: 30 * SECOND..5 * MINUTE,
            rival: true,
            journals: 0.4,
            local_trouble: 0.02,
            local_looks: 0.15,
            trouble: 0.3,
            latency_ms: 5..120,
            late: false,
            lag: Duration::ZERO,
        };
        match seed % 10 {
            // One machine that lives long and flushes all the time, so that upkeep comes to checkpoints in the middle of it.
            0 => Profile {
                name: "busy",
                blocks: 8,
                changes: 1100,
                session: 10 * MINUTE..60 * MINUTE,
                flushes: 0.4,
                commit_interval: Duration::from_secs(2),
                takeovers: 0.01,
                ..steady
            },
            // Two machines that do not let each other be.
            1 => Profile {
                name: "tug",
                session: 20 * SECOND..4 * MINUTE,
                think: 0..4000,
                crashes: 0.3,
                takeovers: 0.5,
                sleeps: 0.02,
                sleep: 20 * SECOND..8 * MINUTE,
                trouble: 0.6,
                ..steady
            },
            2 => Profile {
                name: "storm",
                blocks: 16,
                think: 0..4000,
                takeovers: 0.2,
                trouble: 2.5,
                latency_ms: 5..900,
                ..steady
            },
            // A machine whose process dies all the time.
            3 => Profile {
                name: "crashes",
                blocks: 24,
                max_dirty_blocks: 40,
                session: 500..MINUTE,
                think: 0..800,
                commit_interval: Duration::from_secs(20),
                crashes: 0.9,
                rival: false,
                ..steady
            },
            // Days pass: heartbeats, and sleepers that wake to find the disk gone.
            4 => Profile {
                name: "weeks",
                changes: 1200,
                session: HOUR..30 * HOUR,
                pause: 0..10 * DAY,
                think: 0..2 * HOUR,
                views: MINUTE..5 * DAY,
                takeovers: 0.5,
                sleeps: 0.15,
                sleep: HOUR..28 * DAY,
                ..steady
            },
            // Claims that take so long that their numbers have been used and pruned when they come.
            5 => Profile {
                name: "claims",
                blocks: 48,
                changes: 400,
                session: 5 * SECOND..30 * SECOND,
                pause: 0..4000,
                think: 0..5000,
                appends: 1.0,
                discards: 0.03,
                flushes: 0.4,
                crashes: 0.1,
                takeovers: 0.8,
                slow_claims: 0.5,
                trouble: 0.2,
                ..steady
            },
            6 => Profile {
                name: "late",
                session: 20 * SECOND..10 * MINUTE,
                flushes: 0.3,
                takeovers: 0.4,
                slow_claims: 0.1,
                trouble: 2.0,
                late: true,
                ..steady
            },
            7 => Profile {
                name: "lag",
                session: 20 * SECOND..4 * MINUTE,
                takeovers: 0.4,
                lag: Duration::from_millis(LAG),
                ..steady
            },
            // A machine with a journal, whose power fails all the time, and whose local disk fails now and then.
            8 => Profile {
                name: "power",
                session: 500..3 * MINUTE,
                think: 0..800,
                commit_interval: Duration::from_secs(20),
                crashes: 0.9,
                takeovers: 0.1,
                journals: 1.0,
                local_trouble: 0.1,
                local_looks: 0.3,
                ..steady
            },
            _ => steady,
        }
    }

    /// Whether the store keeps to what a listing of the blocks relies on.
    pub fn listings_hold(&self) -> bool {
        !self.late && self.lag.is_zero()
    }

    /// The latest that a request lands after it was sent, in milliseconds.
    pub fn latest_ms(&self) -> u64 {
        if self.late { LATE } else { LATEST }
    }

    /// What happens to requests.
    pub fn weather(&self) -> Weather {
        let [landing, stalling, twice]: [Draw; 3] = match self.late {
            false => [
                |r| Fault::Reset(Some(ms(r, 100..LATEST))),
                |r| Fault::Stall(Some(ms(r, 0..LATEST))),
                |r| Fault::Twice(ms(r, 100..LATEST)),
            ],
            true => [
                |r| Fault::Reset(Some(ms(r, 100..LATE))),
                |r| Fault::Stall(Some(ms(r, 0..LATE))),
                |r| Fault::Twice(ms(r, 100..LATE)),
            ],
        };
        let troubles: [(f64, Draw); 15] = [
            (0.008, |_| Fault::Before(ErrorKind::Unreachable)),
            (0.012, |_| Fault::Answer(ErrorKind::Unreachable)),
            (0.004, |_| Fault::Reset(None)),
            (0.008, landing),
            (0.002, |_| Fault::Stall(None)),
            (0.003, stalling),
            (0.010, twice),
            (0.004, |r| Fault::Status(503, Some(ms(r, 1000..20_000)))),
            (0.003, |_| Fault::Status(503, None)),
            (0.003, |_| Fault::Status(500, None)),
            (0.003, |_| Fault::Status(429, None)),
            (0.004, |r| Fault::Truncated(r.random_range(0..5000))),
            (0.004, |_| Fault::Part),
            (0.010, |r| Fault::Pages(r.random_range(1..40))),
            (0.010, |r| Fault::Delay(ms(r, 200..20_000))),
        ];
        let mut troubles = troubles
            .map(|(share, draw)| (share * self.trouble, draw))
            .to_vec();
        if !self.lag.is_zero() {
            let lag: Draw = |r| Fault::Lag(ms(r, 0..LAG));
            // Listings only: of other requests these are nothing.
            troubles.push((0.3, lag));
        }
        Weather {
            latency_ms: self.latency_ms.clone(),
            troubles,
        }
    }
}

fn ms(random: &mut SmallRng, range: Range<u64>) -> Duration {
    Duration::from_millis(random.random_range(range))
}
