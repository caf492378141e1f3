//! Which fault comes next: those that were asked for, in their order, and then what is drawn at random.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::ops::Range;
use std::time::Duration;

use bucketdisk::error::ErrorKind;
use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::time::Instant;

use super::kinds::{Fault, Request};

/// Draws the figures of a fault.
pub type Draw = fn(&mut SmallRng) -> Fault;

/// What happens to requests at random.
#[derive(Clone)]
pub struct Weather {
    /// Milliseconds that a request takes to the store, and its answer back.
    pub latency_ms: Range<u64>,
    /// Faults, each with the share of requests, from 0 to 1, that it happens to.
    pub troubles: Vec<(f64, Draw)>,
}

impl Weather {
    /// Requests are answered at once and nothing happens to them.
    pub fn fine() -> Weather {
        Weather {
            latency_ms: 0..1,
            troubles: Vec::new(),
        }
    }

    /// This share of requests is `Unreachable`, half of them after they were applied.
    pub fn failing(share: f64) -> Weather {
        let before: Draw = |_| Fault::Before(ErrorKind::Unreachable);
        let answer: Draw = |_| Fault::Answer(ErrorKind::Unreachable);
        Weather {
            troubles: vec![(share / 2.0, before), (share / 2.0, answer)],
            ..Weather::fine()
        }
    }
}

/// How often each fault has happened, and when last.
#[derive(Debug, Clone, Default)]
pub struct Dealt(BTreeMap<&'static str, (u64, Option<Instant>)>);

impl Dealt {
    /// One more.
    pub fn count(&mut self, name: &'static str) {
        let (many, last) = self.0.entry(name).or_default();
        *many += 1;
        *last = Some(Instant::now());
    }

    /// How many of a kind.
    pub fn of(&self, name: &str) -> u64 {
        self.0.get(name).map_or(0, |(many, _)| *many)
    }

    /// How long it is since the last of a kind.
    pub fn since(&self, name: &str) -> Option<Duration> {
        Some(self.0.get(name)?.1?.elapsed())
    }

    /// All kinds that have happened, with how often.
    pub fn each(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.0.iter().map(|(name, (many, _))| (*name, *many))
    }
}

/// A request, when it was made, and what it carried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    pub at: Instant,
    pub request: Request,
    pub body: Option<Bytes>,
}

/// Faults for the next requests of a kind.
struct Rule {
    which: fn(&Request) -> bool,
    faults: VecDeque<Fault>,
}

/// See the module.
pub(super) struct Plan {
    rules: Vec<Rule>,
    pub(super) always: Option<Fault>,
    pub(super) until: Option<(Instant, Fault)>,
    pub(super) weather: Weather,
    pub(super) crashed: bool,
    random: SmallRng,
    pub(super) log: Vec<Sent>,
    pub(super) dealt: Dealt,
}

impl Plan {
    pub(super) fn new(seed: u64) -> Plan {
        Plan {
            rules: Vec::new(),
            always: None,
            until: None,
            weather: Weather::fine(),
            crashed: false,
            random: SmallRng::seed_from_u64(seed),
            log: Vec::new(),
            dealt: Dealt::default(),
        }
    }

    pub(super) fn next_of(&mut self, which: fn(&Request) -> bool, faults: VecDeque<Fault>) {
        self.rules.push(Rule { which, faults });
    }

    /// Notes a request, and answers what is to happen to it.
    pub(super) fn next(&mut self, request: &Request, body: Option<&Bytes>) -> Option<Fault> {
        let now = Instant::now();
        self.log.push(Sent {
            at: now,
            request: request.clone(),
            body: body.cloned(),
        });
        self.rules.retain(|rule| !rule.faults.is_empty());
        let rule = self.rules.iter_mut().find(|rule| (rule.which)(request));
        let asked = rule
            .and_then(|rule| rule.faults.pop_front())
            .or(self.until.filter(|(end, _)| now < *end).map(|(_, f)| f))
            .or(self.always);
        let fault = asked
            .or_else(|| self.draw())
            .filter(|fault| fault.suits(request));
        if let Some(fault) = fault {
            self.dealt.count(fault.name());
        }
        fault
    }

    fn draw(&mut self) -> Option<Fault> {
        if self.weather.troubles.is_empty() {
            return None;
        }
        let mut drawn = self.random.random::<f64>();
        for (share, draw) in self.weather.troubles.clone() {
            if drawn < share {
                return Some(draw(&mut self.random));
            }
            drawn -= share;
        }
        None
    }

    /// How long a request takes to the store, and its answer back.
    pub(super) fn latency(&mut self) -> (Duration, Duration) {
        let range = self.weather.latency_ms.clone();
        if range.end <= 1 {
            return (Duration::ZERO, Duration::ZERO);
        }
        let mut way = || Duration::from_millis(self.random.random_range(range.clone()));
        (way(), way())
    }
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Plan after {} requests", self.log.len())
    }
}
