//! What a session takes from outside: the time of day, and numbers that nobody can guess. They come in as a parameter, so that a
//! test repeats a run exactly. (Waiting and its clock are the runtime's, which a test can drive already.)

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use uuid::{Builder, Uuid};

/// Where time of day and random numbers come from; clones share them.
#[derive(Clone)]
pub struct Sources {
    now: Arc<dyn Fn() -> SystemTime + Send + Sync>,
    random: Arc<dyn Fn() -> u64 + Send + Sync>,
}

impl Sources {
    /// The system's clock, and its randomness.
    pub fn system() -> Sources {
        Sources::new(SystemTime::now, rand::random)
    }

    /// Others. `random` has to be as good as the system's wherever two sessions are to be told apart.
    pub fn new(
        now: impl Fn() -> SystemTime + Send + Sync + 'static,
        random: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> Sources {
        Sources {
            now: Arc::new(now),
            random: Arc::new(random),
        }
    }

    /// The time of day.
    pub fn now(&self) -> SystemTime {
        (self.now)()
    }

    /// This moment, by both clocks.
    pub(super) fn moment(&self) -> Moment {
        Moment {
            monotonic: Instant::now(),
            wall: self.now(),
        }
    }

    /// How long ago a moment was, by the clock that says more: one stands still while the machine sleeps, the other one may be set back.
    pub(super) fn since(&self, moment: Moment) -> Duration {
        let wall = self.now().duration_since(moment.wall).unwrap_or_default();
        wall.max(moment.monotonic.elapsed())
    }

    /// A random number.
    pub fn number(&self) -> u64 {
        (self.random)()
    }

    /// A random id.
    pub fn id(&self) -> Uuid {
        let random = (u128::from(self.number()) << 64) | u128::from(self.number());
        Builder::from_random_bytes(random.to_be_bytes()).into_uuid()
    }
}

/// A moment to count from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    monotonic: Instant,
    wall: SystemTime,
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sources")
    }
}
