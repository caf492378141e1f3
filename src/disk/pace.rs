//! Slows writers down as the journal fills, so that they do not run at the local disk's speed into a wall that stands until the next
//! commit is through.
//!
//! Half of the journal is for bursts: no write waits. Beyond that, writes are let in at a rate that depends on how fast commits have
//! given space back lately: four times as fast as that where 9/16 are used, as fast where 3/4 are, half as fast where all is. So while
//! commits go on as before, the journal settles around three quarters, and nobody waits for longer than his own turn takes.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// The least rate, in bytes a second: a commit that took long for other reasons must not stop everything.
const LEAST: f64 = 1_048_576.0;
/// The longest that one write waits for its turn.
const LONGEST: Duration = Duration::from_secs(5);

/// How full the journal is, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fill {
    pub(super) used: u64,
    pub(super) limit: u64,
}

/// Who may write next, and when.
#[derive(Debug)]
pub(super) struct Pace {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Bytes that commits give back in a second; `None` before the first.
    rate: Option<f64>,
    /// When space was last given back, or the first commit began.
    since: Instant,
    /// When the last turn that was given ends.
    next: Instant,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Pace {
        Pace {
            state: Mutex::new(State {
                rate: None,
                since: now,
                next: now,
            }),
        }
    }

    /// Notes that a commit begins.
    pub(super) fn begin(&self, now: Instant) {
        self.state.lock().since = now;
    }

    /// Notes that it has ended and has given bytes back.
    pub(super) fn end(&self, bytes: u64, now: Instant) {
        let state = &mut *self.state.lock();
        let took = (now - state.since).as_secs_f64();
        if bytes == 0 || took <= 0.0 {
            return;
        }
        let rate = bytes as f64 / took;
        // Large commits say more than small ones, but one alone does not decide.
        state.rate = Some(state.rate.map_or(rate, |before| (before + rate) / 2.0));
    }

    /// Whether writes wait for their turn where so much of the journal is used.
    pub(super) fn applies(used: u64, limit: u64) -> bool {
        used > limit / 2
    }

    /// The next turn, for a write of so many bytes; `None` where it may go at once. `stored` is how many bytes the running commit has
    /// stored so far: before the first one is through, nothing else tells how fast it goes.
    pub(super) fn turn(
        &self,
        bytes: u64,
        fill: Fill,
        stored: u64,
        now: Instant,
    ) -> Option<Instant> {
        let Fill { used, limit } = fill;
        if !Pace::applies(used, limit) {
            return None;
        }
        let state = &mut *self.state.lock();
        let over = (used - limit / 2) as f64;
        let so_far = || stored as f64 / (now - state.since).as_secs_f64().max(1.0);
        let rate = state.rate.unwrap_or_else(so_far).max(LEAST);
        let allowed = (rate * (limit as f64 / 4.0) / over).max(LEAST);
        let begin = state.next.clamp(now, now + LONGEST);
        state.next = begin + Duration::from_secs_f64(bytes as f64 / allowed);
        (begin > now).then_some(begin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A writer that writes as fast as it may into a journal of 4 GiB of which commits give 20 MiB/s back, a quarter of the journal at a
    /// time; answers the longest wait, and how much was taken in an hour.
    fn longest_wait(paced: bool) -> (Duration, u64) {
        let (limit, rate) = (4096 * MIB, 20 * MIB);
        let begin = Instant::now();
        let pace = Pace::new(begin);
        let (mut now, mut used, mut written) = (begin, 0, 0);
        let (mut longest, mut commit) = (Duration::ZERO, None);
        let finish = |used: &mut u64, (bytes, at): (u64, Instant)| {
            *used -= bytes;
            pace.end(bytes, at);
        };
        while now < begin + Duration::from_secs(3600) {
            if commit.is_none() && used >= limit / 4 {
                pace.begin(now);
                let bytes = limit / 4;
                commit = Some((bytes, now + Duration::from_secs(bytes / rate)));
            }
            if let Some(done) = commit.filter(|(_, at)| *at <= now) {
                finish(&mut used, done);
                commit = None;
                continue;
            }
            let stored = commit.map_or(0, |(bytes, at): (u64, Instant)| {
                bytes - (at - now).as_secs() * rate
            });
            let fill = Fill { used, limit };
            let turn = pace.turn(MIB, fill, stored, now).filter(|_| paced);
            let room = (used + MIB > limit).then(|| commit.expect("is under way").1);
            let wait = turn.max(room).map_or(Duration::ZERO, |until| until - now);
            longest = longest.max(wait);
            // A local disk of 1 GiB/s.
            now += wait + Duration::from_millis(1);
            if room.is_none() {
                used += MIB;
                written += MIB;
            }
        }
        (longest, written)
    }

    #[tokio::test(start_paused = true)]
    async fn writers_wait_often_and_shortly_instead_of_seldom_and_long_and_write_as_much() {
        let (wall, without) = longest_wait(false);
        let (paced, with) = longest_wait(true);
        assert!(wall > Duration::from_secs(40), "{wall:?}");
        assert!(paced < Duration::from_millis(200), "{paced:?}");
        assert!(with >= without * 9 / 10, "{with} {without}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_into_half_of_the_journal_does_not_wait() {
        let now = Instant::now();
        let pace = Pace::new(now);
        pace.end(MIB, now + Duration::from_secs(1));
        assert!(!Pace::applies(50, 100) && Pace::applies(51, 100));
        let half = Fill {
            used: 50,
            limit: 100,
        };
        for _ in 0..100 {
            assert_eq!(pace.turn(100 * MIB, half, 0, now), None);
        }
    }
}
