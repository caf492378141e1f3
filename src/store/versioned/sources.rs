//! What a session takes from outside: the time of day, and numbers that nobody can guess. They come in as a parameter, so that a
//! test repeats a run exactly. (Waiting and its clock are the runtime's, which a test can drive already.)

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

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

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sources")
    }
}
